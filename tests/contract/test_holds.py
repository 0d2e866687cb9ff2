"""`hold = "consumers"`: retention takes nothing that a consumer has not done, within a bound that has a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, LimitExceeded, connect
from broker.model.profiles import RETENTION_BYTES_MIN, Profile
from tests.contract.conftest import HOMES, REMOTE
from tests.contract.homes import SEGMENT_BYTES, Home, Server, happens, take

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker import Bus

PROFILES = (
    Profile(b"h.>", retention_s=1, hold="consumers", hold_bytes_max=RETENTION_BYTES_MIN),
    Profile(b"g.>", retention_s=1),
)
CONFIG = f"""\
[storage]
segment_bytes = {SEGMENT_BYTES}
reserve_bytes = 0

[[profiles]]
pattern = "h.>"
retention_s = 1
hold = "consumers"
hold_bytes_max = {RETENTION_BYTES_MIN}

[[profiles]]
pattern = "g.>"
retention_s = 1
"""
PAYLOADS = [b"%d" % number for number in range(20)]
LARGE = b"x" * (RETENTION_BYTES_MIN // 4)
TAKEN_S = 30.0


class Holding(Home):
    """A home with these profiles."""

    def bus(self, **options: Any) -> Any:
        return super().bus(**options, **({} if self._server is not None else {"profiles": PROFILES}))


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path, evicts: bool) -> Iterator[Home]:
    """Each home in turn, of its own."""
    kind = request.param
    server = Server(evicts=evicts, config=CONFIG) if kind in REMOTE else None
    try:
        yield Holding(kind, tmp_path, server.start() if server is not None else None, evicts=evicts)
    finally:
        if server is not None:
            server.stop()


async def retention_passes(bus: Bus, name: str) -> None:
    """Wait until all that there is now is older than retention, and taken where nobody holds it."""
    await bus.publish(f"g.{name}", b"it goes")

    async def gone() -> bool:
        info = await bus.channel(f"g.{name}")
        return info.first > info.head

    assert await happens(gone, TAKEN_S)


async def first_is(bus: Bus, channel: str, first: int) -> bool:
    async def is_there() -> bool:
        return (await bus.channel(channel)).first == first

    return await happens(is_there, TAKEN_S)


async def held_by(bus: Bus, consumer: str, channels: int) -> bool:
    async def is_so() -> bool:
        return (await bus.consumer_info(consumer)).held_channels == channels

    return await happens(is_so, TAKEN_S)


@pytest.mark.parametrize("by", ["h.a", "h.*"])
async def test_what_is_not_done_stays_and_what_is_done_goes(home: Home, by: str) -> None:
    async with home.bus() as bus:
        await bus.create_queue("q", by)
        await bus.publish_many("h.a", PAYLOADS)
        await retention_passes(bus, "one")
        assert (await bus.channel("h.a")).first == 1
        assert await held_by(bus, "q", 1)
        async with bus.consume("q", window=8) as consumer:
            for job in await take(consumer, 8):
                assert job.payload == PAYLOADS[job.sequence - 1]
                await job.ack()
        # They were published together: a pattern goes by the place on the bus, which is that of all of them.
        assert await first_is(bus, "h.a", 9 if by == "h.a" else 1)
        async with bus.consume("q") as consumer:
            for job in await take(consumer, 12):
                await job.ack()
        assert await first_is(bus, "h.a", 21)
        assert await held_by(bus, "q", 0)


async def test_a_consumer_that_is_removed_holds_nothing(home: Home) -> None:
    async with home.bus() as bus:
        await bus.create_consumer("one", "h.a")
        await bus.create_consumer("all", "h.>", start="new")
        await bus.publish("h.b", b"not of the first")
        await bus.publish("h.a", b"of both")
        await retention_passes(bus, "one")
        assert [(await bus.channel(name)).first for name in ("h.a", "h.b")] == [1, 1]
        await bus.remove_consumer("all")
        assert await first_is(bus, "h.b", 2)
        assert (await bus.channel("h.a")).first == 1
        await bus.remove_consumer("one")
        assert await first_is(bus, "h.a", 2)


async def test_publishers_are_refused_while_too_much_is_held(home: Home) -> None:
    async with home.bus() as bus:
        await bus.create_queue("q", "h.a")
        await bus.publish_many("h.a", [LARGE] * 8)
        assert await held_by(bus, "q", 1)
        assert (await bus.consumer_info("q")).held_bytes > RETENTION_BYTES_MIN

        async def refused() -> bool:
            try:
                await bus.publish("h.a", b"one more")
            except LimitExceeded as failure:
                return "channel h.a" in failure.detail
            return False

        assert await happens(refused, TAKEN_S)
        await bus.publish("h.b", b"another channel")
        with pytest.raises(BrokerError, match="LIMIT"):
            await bus.schedule("h.a", b"later", delay_s=60)
        with pytest.raises(BrokerError, match="LIMIT"):
            async with bus.transaction() as transaction:
                transaction.publish("h.a", b"together")
        stats = await bus.stats()
        assert (stats["channels_full"], stats["retention_held_channels"]) == (1, 1)
        async with bus.consume("q") as consumer:
            for job in await take(consumer, 8):
                await job.ack()

        async def taken() -> bool:
            return not await refused()

        assert await happens(taken, TAKEN_S)
        assert (await bus.channel("h.a")).first > 8


async def test_what_is_held_outlives_kills_and_the_archive(evicts: bool) -> None:
    server = Server(evicts=evicts, config=CONFIG)
    try:
        server.start()
        async with connect(server.tcp_url) as bus:
            await bus.create_consumer("c", "h.a")
            await bus.create_queue("all", "h.>")
            await bus.publish_many("h.a", PAYLOADS)
            await retention_passes(bus, "one")
            for name in ("two", "three"):
                server.kill()
                server.start()
                # Nobody has asked for the consumers: retention brings them into memory itself.
                await retention_passes(bus, name)
                assert (await bus.channel("h.a")).first == 1
            async with bus.consume("c") as consumer:
                for job in await take(consumer, 20):
                    assert job.payload == PAYLOADS[job.sequence - 1]
                    await job.ack()
            server.kill()
            server.start()
            async with bus.consume("all") as consumer:
                for job in await take(consumer, 20):
                    assert job.payload == PAYLOADS[job.sequence - 1]
                    await job.ack()
            assert await first_is(bus, "h.a", 21)
    finally:
        server.stop()
