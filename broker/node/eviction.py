"""Giving memory back: channels and lines that nobody has used for a while are found in the log when they are needed.

Once a second a part of the table is looked at, in short steps with room for everything else between them; all of it
when there are very many. What may go the core decides: nobody holds it, nothing of it is pending, and all of it can be
looked up elsewhere. On the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from broker.core.ports import Stored
    from broker.core.sequencer import Sequencer
    from broker_native.intake import Clock

__all__ = ["Eviction"]

UNUSED_S = 10
"""What was used within so long stays: coming back costs a look-up and holds a connection up."""
CROWD_UNUSED_S = 1
CROWD_MAX = 1_000_000
"""More channels in memory than this do not get so much time, and are all looked at each second."""
ROUND_S = 8
"""Seconds in which the whole table is looked at otherwise."""
STEP_US_MAX = 1_000
STEP_SLOTS = 1_024
STEP_INTERVAL_S = 0.004
"""Between two steps: the loop has four fifths of its time for others even while it evicts."""


class Eviction:
    """Evicts what is not used.

    Args:
        core: Whose memory it is.
        log: Knows what can be looked up elsewhere.
        clock: Broker time.
        loop: The loop that it belongs to.
    """

    def __init__(self, core: Sequencer, log: Stored, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._log = log
        self._clock = clock
        self._loop = loop
        self._left = 0
        self._unused_s = UNUSED_S
        self._timer: asyncio.TimerHandle | None = None

    def sweep(self) -> None:
        """Begin to look at a second's part of the table, unless the last one is still under way. Once a second."""
        if self._timer is not None:
            return
        crowded = len(self._core.tails) > CROWD_MAX
        self._unused_s = CROWD_UNUSED_S if crowded else UNUSED_S
        self._left = self._core.tails.slots if crowded else -(-self._core.tails.slots // ROUND_S)
        self._step()

    def _step(self) -> None:
        self._timer = None
        begun_us = self._clock.steady_us()
        used_before_s = max(0, self._clock.now_us() // 1_000_000 - self._unused_s)
        settled = self._log.settled_group
        while self._left > 0:
            self._core.evict(settled, used_before_s, min(STEP_SLOTS, self._left))
            self._left -= STEP_SLOTS
            if self._clock.steady_us() - begun_us >= STEP_US_MAX:
                break
        if self._left > 0:
            self._timer = self._loop.call_later(STEP_INTERVAL_S, self._step)

    def stop(self) -> None:
        """Evict nothing more."""
        if self._timer is not None:
            self._timer.cancel()
