"""Broker time: the wall clock at start plus monotonic time, steered gently towards the wall.

It never goes back and never below the last group's time, from which it goes on when the wall clock is behind that at a
start: leases end and messages fall due however wrong a clock is or was. A wall clock that jumps by more than two
seconds raises an alarm and is followed only when it has stayed there for a minute.

Ages are judged by a time of their own, which errs to the past: what is removed too late can still be removed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from broker.events import emit
from broker_native.intake import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokerTime"]

SLEW_US_PER_S = 1_000
JUMP_US = 2_000_000
JUMP_LASTS_S = 60


class BrokerTime:
    """Steers a `Clock`.

    Args:
        floor_us: The last group's time; the clock begins above it.
        wall_us: Reads the wall clock, microseconds since 1970.
        clock: The clock to steer; None for one on the machine's monotonic clock.
    """

    def __init__(
        self,
        floor_us: int = 0,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clock: Clock | None = None,
    ) -> None:
        self._wall_us = wall_us
        self.clock = Clock() if clock is None else clock
        self._offset_us = wall_us() - self.clock.steady_us()
        # How far broker time is ahead of the wall clock because groups were.
        self._ahead_us = max(0, floor_us - self.clock.steady_us() - self._offset_us)
        self.clock.offset_us = self._offset_us + self._ahead_us
        self.clock.floor_us = floor_us
        self._jump_seen_s = 0
        self._floor_us = floor_us
        self._started_us = self.clock.steady_us()
        self._settled_s = 0

    def ages_us(self) -> int:
        """Return the time by which ages are judged, microseconds since 1970; it may go back.

        It is not ahead of the time that is steered, nor of the wall clock when that is behind. Broker time may be ahead
        of both, by as much as a wall clock once was when groups were written. While the wall clock has not kept pace
        with the broker's for a minute since the start it may be a wrong one, which somebody is about to set: until then
        no more time has passed since the last group than the broker has been running.
        """
        now_us = min(self.clock.steady_us() + self._offset_us, self._wall_us())
        if self._floor_us and self._settled_s < JUMP_LASTS_S:
            now_us = min(now_us, self._floor_us + self.clock.steady_us() - self._started_us)
        return now_us

    def steer(self, seconds: int = 1) -> None:
        """Move towards the wall clock by what `seconds` allow. Call it once in that time.

        Args:
            seconds: Time since the last call.
        """
        behind_us = self._wall_us() - (self.clock.steady_us() + self._offset_us)
        if abs(behind_us) > JUMP_US:
            if self._settled_s < JUMP_LASTS_S:
                self._settled_s = 0
            if not self._jump_seen_s:
                emit("clock_jump", behind_s=behind_us / 1e6, lasts_s=JUMP_LASTS_S)
            self._jump_seen_s += seconds
            if self._jump_seen_s < JUMP_LASTS_S:
                return
        else:
            self._jump_seen_s = 0
            self._settled_s += seconds
        step = SLEW_US_PER_S * seconds
        self._offset_us += max(-step, min(step, behind_us))
        self._ahead_us = max(0, self._ahead_us - step)
        self.clock.offset_us = self._offset_us + self._ahead_us
