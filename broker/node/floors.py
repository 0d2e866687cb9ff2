"""What consumers have not done yet of channels that retention would shorten.

Of a channel by its name a consumer knows the sequence up to which all is done. One with a pattern knows a place of the
bus: what is stored behind it is not older than the first chunk that is, so its time is looked for in each channel that
it matches. So a consumer with a pattern holds all that it matches from there on, whatever of it is done.

It runs on the loop's thread; the log is read on the reader thread.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.model.errors import BrokerError, error
from broker.model.names import matches
from broker.node.holds import Holding

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import Reader
    from broker.core.sequencer import Sequencer
    from broker.node.catchup import Place
    from broker.node.consumer import Floor
    from broker.node.consumers import Consumers

    Found = dict[bytes, Holding]
    Submit = Callable[..., asyncio.Future[Found]]

__all__ = ["Floors"]

FIRST_TIME = Struct("<40xQ16xI")
"""Of a chunk: its own time, and how much later its first record is."""


class Floors:
    """Finds what must stay.

    Args:
        core: Has the channels.
        log: Knows when what was stored.
        consumers: Those who may hold it.
        submit: Has the reader thread call something.
    """

    def __init__(self, core: Sequencer, log: Reader, consumers: Consumers, submit: Submit) -> None:
        self._core = core
        self._log = log
        self._consumers = consumers
        self._submit = submit

    def find(self, proposals: list[tuple[bytes, int]], done: Callable[[Found | BrokerError], None]) -> None:
        """Find who holds any of what is below these sequences of channels in memory.

        Args:
            proposals: (channel, sequence).
            done: Called, perhaps within this call, with who holds the channels that anybody holds, or why this cannot
                be told.
        """

        def have(floors: list[Floor] | BrokerError) -> None:
            if isinstance(floors, BrokerError):
                done(floors)
            else:
                self._look(proposals, floors, done)

        self._consumers.floors(have)

    def _look(
        self,
        proposals: list[tuple[bytes, int]],
        floors: list[Floor],
        done: Callable[[Found | BrokerError], None],
    ) -> None:
        found: Found = {}
        literals: dict[bytes, Holding] = {}
        patterns: dict[bytes, tuple[Place, str]] = {}
        for floor in floors:
            for name, sequence in floor.sequences.items():
                holding = Holding(sequence + 1, floor.consumer)
                literals[name] = min(literals.get(name, holding), holding)
            holder = floor.place, floor.consumer
            for pattern in floor.patterns:
                patterns[pattern] = min(patterns.get(pattern, holder), holder)
        for name, first in proposals:
            if name in literals and literals[name].stays < first:
                found[name] = literals[name]
        if not patterns:
            done(found)
            return
        asked = []
        for name, first in proposals:
            info = self._core.tails.info(name)
            if info is not None and info[3] < first:
                asked.append((name, self._core.tails.stored_id(name), info[3], first))

        def read(job: asyncio.Future[Found]) -> None:
            if job.cancelled():
                return
            failure = job.exception()
            if failure is None:
                done(job.result())
            elif isinstance(failure, BrokerError):
                done(failure)
            else:
                done(error("STORAGE_FAILED", f"retention: what consumers have done cannot be looked up: {failure!r}"))

        self._submit(self._read, asked, patterns, found).add_done_callback(read)

    def _read(
        self, asked: list[tuple[bytes, int, int, int]], patterns: dict[bytes, tuple[Place, str]], found: Found
    ) -> Found:
        """Look for what patterns hold; on the reader thread."""
        times: dict[Place, int | None] = {}
        for place, _ in patterns.values():
            if place not in times:
                times[place] = self._time_behind(place)
        for name, channel, first, proposed in asked:
            holders = []
            for pattern, (place, consumer) in patterns.items():
                time_us = times[place]
                if time_us is not None and matches(pattern, name):
                    holders.append((time_us, consumer))
            if not holders:
                continue
            time_us, consumer = min(holders)
            stays = self._log.sequence_at(channel, first, proposed, time_us)
            if stays < min(proposed, found[name].stays if name in found else proposed):
                found[name] = Holding(stays, consumer)
        return found

    def _time_behind(self, place: Place) -> int | None:
        """Return the time of the first chunk behind a place of the bus; None when there is none."""
        chunks, at = self._log.read_groups(*place, 1, None)
        while not chunks and at != place:
            place = at
            chunks, at = self._log.read_groups(*place, 1, None)
        if not chunks:
            return None
        time_us, later_us = FIRST_TIME.unpack_from(chunks[0][2])
        return int(time_us + later_us)
