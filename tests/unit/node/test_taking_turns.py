"""Many readers that are behind beside somebody who is live: how much of each turn of the loop is theirs, and whose.

The clock stands still but for what sending takes, and each reader has a connection of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.core.recent import Recent
from broker.node.catchup import PUMP_BYTES, PUMP_US, SHARE_BYTES, SLICE_BYTES_MAX, SLICE_US_MAX, CatchUp
from broker.node.slices import Slices
from tests.reference.pipeline import Connection
from tests.unit.node.test_catchup import Station, sequences

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.node.catchup import Following

CHUNK = 64 << 10
COUNT = 40
READERS = 20


@pytest.fixture
async def station() -> AsyncIterator[Station]:
    station = Station()
    station.core.recent = Recent(1)  # else all of it would come from memory, in one piece
    for _ in range(COUNT):
        station.publish(b"s.x", bytes(CHUNK))
    station.publish(b"s.y", b"")
    yield station
    station.catchup.stop()
    station.log.gate.set()
    station.catchup.close()


class Turns:
    """Looks at each turn that those who catch up have.

    Attributes:
        handed: For each turn, the readers that got something, in order.
        lasted_us: How long each took.
        sizes: How many bytes were sent in each.
    """

    def __init__(self, station: Station, readers: list[Connection]) -> None:
        self.handed: list[list[int]] = []
        self.lasted_us: list[int] = []
        self.sizes: list[int] = []
        self._station = station
        self._readers = readers
        self._pump = station.catchup._pump
        station.catchup._pump = self._turn  # type: ignore[method-assign]

    def _turn(self) -> None:
        station, begun_us = self._station, self._station.now_us
        before = [len(reader.sent) for reader in self._readers]
        self._pump()
        self.lasted_us.append(station.now_us - begun_us)
        self.sizes.append(sum(len(reader.sent) for reader in self._readers) - sum(before))
        self.handed.append([at for at, reader in enumerate(self._readers) if len(reader.sent) > before[at]])


async def many(station: Station, count: int = READERS, behind: int = 0) -> tuple[list[Following], list[Connection]]:
    """Have readers begin together; the `n`-th of them `n` times `behind` sequences further than the first."""
    station.log.gate.clear()
    everybody, readers = [], []
    for number in range(count):
        station.reader = Connection(station.core, None)
        readers.append(station.reader)
        everybody.append(station.follow(b"s.x", after={b"s.x": number * behind}))
    return everybody, readers


async def test_a_turn_is_over_when_its_time_is(station: Station) -> None:
    everybody, readers = await many(station)
    turns = Turns(station, readers)
    station.send_us = PUMP_US // 3 + 1
    station.log.gate.set()
    await station.until(lambda: all(following.live for following in everybody))
    assert max(turns.lasted_us) <= PUMP_US + station.send_us
    assert turns.handed[0] == [0, 1, 2]
    for reader in readers:
        assert sequences(reader.deliveries()) == list(range(1, COUNT + 1))


async def test_even_a_turn_without_time_serves_somebody(station: Station) -> None:
    everybody, readers = await many(station, 3)
    turns = Turns(station, readers)
    station.send_us = 50 * PUMP_US
    station.log.gate.set()
    await station.until(lambda: all(following.live for following in everybody))
    assert max(map(len, turns.handed)) == 1


async def test_nobody_gets_a_second_share_before_all_have_had_their_first(station: Station) -> None:
    _, readers = await many(station)
    turns = Turns(station, readers)
    station.send_us = PUMP_US // 2 + 1
    station.log.gate.set()
    await station.until(lambda: sum(map(len, turns.handed)) >= 3 * READERS)
    order = [reader for turn in turns.handed for reader in turn]
    for begin in range(0, 3 * READERS, READERS):
        assert sorted(order[begin : begin + READERS]) == list(range(READERS))


async def test_a_turn_has_a_bound_in_bytes_whatever_the_clock_says(station: Station) -> None:
    everybody, readers = await many(station)
    turns = Turns(station, readers)
    station.log.gate.set()
    await station.until(lambda: all(following.live for following in everybody))
    assert len(turns.handed[0]) == PUMP_BYTES // SHARE_BYTES
    assert PUMP_BYTES <= max(turns.sizes) <= PUMP_BYTES + 2 * CHUNK


async def test_a_connection_that_takes_nothing_is_handed_nothing(station: Station) -> None:
    """What it had queued would leave at once, and with it what all others had who go on at the same moment."""
    everybody, readers = await many(station)
    for reader in readers[1:]:
        reader.outbox.pause()
    station.log.gate.set()
    await station.until(lambda: everybody[0].live)
    assert [reader.outbox.queued for reader in readers] == [0] * READERS
    for following, reader in zip(everybody, readers, strict=True):
        reader.outbox.resume()
        station.catchup.step(following)
    await station.until(lambda: all(following.live for following in everybody))
    for reader in readers:
        assert sequences(reader.deliveries()) == list(range(1, COUNT + 1))


@pytest.mark.parametrize("behind", [0, 1])
async def test_slices_that_are_not_kept_are_read_once_all_the_same(station: Station, behind: int) -> None:
    """While memory is short nothing is kept for others; whoever asked for a slice has all that it wants of it."""
    station.catchup.slices = Slices(0)
    everybody, readers = await many(station, behind=behind)
    station.log.gate.set()
    await station.until(lambda: all(following.live for following in everybody))
    for number, reader in enumerate(readers):
        assert sequences(reader.deliveries()) == list(range(number * behind + 1, COUNT + 1))
    slices = -(-COUNT * CHUNK // SLICE_BYTES_MAX) + 1
    assert len(station.log.asked) <= slices * (READERS if behind else 1)


async def test_a_slice_in_hand_is_not_kept_for_long_either(station: Station) -> None:
    station.catchup.slices = Slices(0)
    everybody, readers = await many(station, 1)
    readers[0].writelines = lambda pieces: age(station, readers[0], pieces)  # type: ignore[method-assign]
    station.log.gate.set()
    await station.until(lambda: everybody[0].live)
    assert sequences(readers[0].deliveries()) == list(range(1, COUNT + 1))
    assert len(station.log.asked) >= COUNT * CHUNK // SHARE_BYTES


def age(station: Station, reader: Connection, pieces: list[Any]) -> None:
    Connection.writelines(reader, pieces)
    station.core.tails.now_us += SLICE_US_MAX + 1


async def test_no_more_is_read_than_can_be_handed_on(station: Station) -> None:
    station.catchup._in_hand_max = 3
    station.catchup.slices = Slices(0)
    everybody, _ = await many(station, behind=1)
    most = 0

    def look() -> bool:
        nonlocal most
        catchup: CatchUp = station.catchup
        most = max(most, len(catchup._reading) + len(catchup._in_hand))
        assert catchup.slices_bytes <= 3 * (SLICE_BYTES_MAX + 2 * CHUNK)
        return all(following.live for following in everybody)

    station.log.gate.set()
    await station.until(look)
    assert most == 3
    assert not station.catchup._in_hand
    assert not station.catchup._unread
    assert station.catchup.slices_bytes == 0


async def test_who_leaves_makes_room_for_those_who_wait_to_read(station: Station) -> None:
    station.catchup._in_hand_max = 1
    station.catchup.slices = Slices(0)
    everybody, _ = await many(station, 3, behind=1)
    assert len(station.catchup._unread) == 2
    station.catchup.leave(everybody[0])
    station.catchup.leave(everybody[1])
    station.log.gate.set()
    await station.until(lambda: everybody[2].live)
    assert not station.catchup._unread
