"""What retention acts on in a running broker: the archiver, the loader, the sequencer and the clock.

Everything belongs to the loop's thread; what blocks is handed to other threads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker.events import emit
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.core.sequencer import Sequencer
    from broker.log.log import Log
    from broker.log.retention import Held, Policies, Step
    from broker.node.floors import Floors
    from broker.node.holds import Holding
    from broker.node.loader import Loader
    from broker.node.time import BrokerTime

__all__ = ["RetainedBroker"]

LATER_S = 0.005
"""What a few milliseconds are: 256 trims in each make 50,000 a second."""
GROUP_SHARE = 4
"""There is room while the open group is below this part of its bound."""


class RetainedBroker:
    """`broker.node.retention.Retained` for a node.

    Args:
        core: The sequencer.
        log: The log, with an archive.
        loader: Brings channels into memory.
        floors: Knows what consumers have done.
        broker_time: The clock.
        loop: The loop that it belongs to.
        kick: Has the turn end.
    """

    def __init__(
        self,
        core: Sequencer,
        log: Log,
        loader: Loader,
        floors: Floors,
        broker_time: BrokerTime,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
    ) -> None:
        self._core = core
        self._log = log
        self._loader = loader
        self._floors = floors
        self._time = broker_time
        self._loop = loop
        self._kick = kick
        self._rotating: asyncio.Future[None] | None = None

    def plan(
        self,
        policies: Policies,
        cursors: Mapping[bytes, int],
        now_us: int,
        held: Held,
        done: Callable[[Step | BrokerError], None],
    ) -> None:
        """Store cursors and plan the next step; `done` hears of it on the loop, later."""
        try:
            asked = self._log.retain(policies, cursors, now_us, held)
        except BrokerError as failure:
            self._loop.call_soon(done, failure)
            return
        asyncio.wrap_future(asked, loop=self._loop).add_done_callback(lambda step: done(_outcome(step)))

    def holding(
        self, proposals: list[tuple[bytes, int]], done: Callable[[dict[bytes, Holding] | BrokerError], None]
    ) -> None:
        """Find which of the channels, in memory, consumers hold, and since where; `done` may be called at once."""
        if proposals:
            self._floors.find(proposals, done)
        else:
            done({})

    def channel_id(self, name: bytes) -> int:
        """Return the stored id of a channel in memory, 0 when it is not."""
        tails = self._core.tails
        return tails.stored_id(name) if tails.info(name) is not None else 0

    def refuse(self, name: bytes, refused: bool) -> None:
        """Refuse a channel's publishers, or take them again."""
        self._core.tails.refuse(name, refused)

    def need(self, names: list[bytes], done: Callable[[BrokerError | None], None]) -> None:
        """Have channels in memory, or known not to be stored, within `done`; it may be called at once."""
        if not self._core.missing(names):
            done(None)
            return
        try:
            self._loader.need(names, done, self)
        except BrokerError as failure:
            done(failure)

    def trim(self, name: bytes, first: int, done: Callable[[BrokerError | None], None]) -> None:
        """Trim a channel if it is in memory; `done` hears when that is committed, in this call if there is no need."""
        if self._core.tails.info(name) is None:
            done(None)
            return
        self._core.trim(name, first, done)
        self._kick()

    def rotate(self) -> None:
        """Seal the active segment early, on a thread."""
        if self._rotating is None or self._rotating.done():
            self._rotating = self._loop.run_in_executor(None, self._log.rotate)
            self._rotating.add_done_callback(_tell)

    async def settle(self) -> None:
        """Wait until no thread does anything for retention."""
        if self._rotating is not None and not self._rotating.done():
            await asyncio.wait([self._rotating])

    def ages_us(self) -> int:
        """Return the time by which ages are judged."""
        return self._time.ages_us()

    def steady_us(self) -> int:
        """Return a time that runs on."""
        return self._time.clock.steady_us()

    @property
    def newest_group(self) -> int:
        """Number of the newest committed group."""
        return self._core.applied_number

    @property
    def archived_group(self) -> int:
        """Number of the newest group in the archive."""
        return self._log.archived_group

    @property
    def room(self) -> bool:
        """Whether the open group has room for what can wait."""
        return self._core.tails.group_bytes * GROUP_SHARE < self._core.limits.group_bytes_max

    def later(self, do: Callable[[], None]) -> None:
        """Do something a few milliseconds later."""
        self._loop.call_later(LATER_S, do)


def _outcome(step: asyncio.Future[Step]) -> Step | BrokerError:
    """Return what came of a step, a failure as the error that it is."""
    if step.cancelled():
        return error("CLOSED", "archive: archiving has ended")
    failure = step.exception()
    if failure is None:
        return step.result()
    if isinstance(failure, BrokerError):
        return failure
    return error("STORAGE_FAILED", f"the archiver: {failure}")


def _tell(rotated: asyncio.Future[None]) -> None:
    """Say why a segment was not sealed early; it is tried again when there are more groups, or is full some day."""
    failure = None if rotated.cancelled() else rotated.exception()
    if isinstance(failure, BrokerError):
        if failure.name != "CLOSED":
            emit("retention_failed", code=failure.name, detail=failure.detail)
    elif failure is not None:
        raise failure
