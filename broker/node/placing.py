"""Where a consumer begins to read, or is set back to: positions of its literals, or a place of the bus.

Everything here runs on the loop's thread; times are looked up on the reader thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.recent import INDEX_END
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import check_channel, display

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import Reader
    from broker.core.sequencer import Sequencer
    from broker.model.consumers import ConsumerStart
    from broker.node.catchup import CatchUp, Place

    Floors = dict[bytes, tuple[int, int]]
    Placed = Callable[[Floors, Place], None]
    Refused = Callable[[BrokerError], None]

__all__ = ["Placing"]


class Placing:
    """Finds places.

    Args:
        core: Knows the channels in memory.
        log: Knows when what was stored.
        catchup: Has the reader thread.
    """

    def __init__(self, core: Sequencer, log: Reader, catchup: CatchUp) -> None:
        self._core = core
        self._log = log
        self._catchup = catchup

    def find(
        self, start: ConsumerStart, literals: list[bytes], patterns: list[bytes], placed: Placed, refused: Refused
    ) -> None:
        """Find where to begin.

        Args:
            start: Where.
            literals, patterns: What is read; literals are in memory.
            placed: Called with the position behind which each literal begins, (0, 0) for its beginning, and the place
                of the bus behind which a pattern does; perhaps within this call.
            refused: Called instead with why there is no such place.
        """
        try:
            if start.time_us is not None:
                self._find_time(start.time_us, literals, patterns, placed, refused)
            elif patterns:
                placed({}, self._place(start))
            else:
                placed(self._floors(start, literals), (0, 0))
        except BrokerError as failure:
            refused(failure)

    def _place(self, start: ConsumerStart) -> Place:
        """Say where on the bus a pattern begins."""
        if start.positions or start.last is not None:
            raise error(
                "INVALID_POSITION",
                "start: positions and `last` are for literals only, and the consumer has a pattern",
                "start patterns with `bus`, `time_us`, `new` or `start`",
            )
        newest = self._core.applied_number
        if start.new:
            return newest, INDEX_END
        if start.bus is None:
            return 0, 0
        if start.bus.journal != self._core.journal or start.bus.group > newest:
            raise error("INVALID_POSITION", f"start {start.bus}: this journal is {self._core.journal.hex()}:{newest}")
        return start.bus.group, min(start.bus.index, INDEX_END)

    def _floors(self, start: ConsumerStart, literals: list[bytes]) -> Floors:
        """Say behind which position each literal begins."""
        if start.bus is not None:
            raise error("INVALID_POSITION", "start: a place of the bus is for patterns, and the consumer has literals")
        asked = {check_channel(name): (epoch, sequence) for name, epoch, sequence in start.positions}
        for name in asked:
            if name not in literals:
                raise error("INVALID_POSITION", f"start: {display(name)} is not among the filters")
        floors: Floors = {}
        for name in literals:
            info = self._core.tails.info(name)
            assert info is not None
            head = info[6] - 1
            if name in asked:
                floors[name] = asked[name]
            elif start.new:
                floors[name] = info[2], head
            elif start.last is not None:
                floors[name] = self._at(name, max(info[3] - 1, head - start.last))
        return floors

    def _at(self, name: bytes, sequence: int) -> tuple[int, int]:
        """Return a channel's position at a sequence."""
        info = self._core.tails.info(name)
        assert info is not None
        epoch = next((epoch for epoch, begin in reversed(info[7]) if begin <= sequence), info[2])
        return (epoch, sequence) if sequence else (0, 0)

    def _find_time(
        self, time_us: int, literals: list[bytes], patterns: list[bytes], placed: Placed, refused: Refused
    ) -> None:
        if patterns:

            def located(group: int | BrokerError) -> None:
                if isinstance(group, BrokerError):
                    refused(group)
                else:
                    placed({}, (min(max(group - 1, 0), self._core.applied_number), INDEX_END))

            self._catchup.locate_time(time_us, located)
            return
        asked = []
        for name in literals:
            info = self._core.tails.info(name)
            assert info is not None
            if info[1] != Level.EPHEMERAL:
                asked.append((name, self._core.tails.stored_id(name), info[3], info[4]))

        def look() -> list[tuple[bytes, int]]:
            return [
                (name, self._log.sequence_at(channel, first, end, time_us) if first < end else end)
                for name, channel, first, end in asked
            ]

        def found(job: asyncio.Future[list[tuple[bytes, int]]]) -> None:
            if job.cancelled():
                return
            failure = job.exception()
            if failure is None:
                placed({name: self._at(name, sequence - 1) for name, sequence in job.result()}, (0, 0))
            elif isinstance(failure, BrokerError):
                refused(failure)
            else:
                refused(error("STORAGE_FAILED", f"time {time_us}: the log cannot be searched"))

        self._catchup.submit(look).add_done_callback(found)
