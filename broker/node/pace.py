"""How long commits take, what was committed takes to its readers, and how late the loop comes: in microseconds.

Percentiles are of the last minute; histograms are of the whole run, so that whoever reads them again and again can
make percentiles of any stretch of time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from broker_native.intake import Clock

__all__ = ["Pace"]

WINDOW_US = 30_000_000
"""Half of what is told: the half that is over and the one under way are told together."""


class Recent:
    """A histogram of the last one or two windows, and of all before them.

    Args:
        clock: Steady time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now, self._before, self._past = Histogram(), Histogram(), Histogram()
        self._begun_us = clock.steady_us()

    def record(self, value_us: int) -> None:
        """Write one value down."""
        self._turn()
        self._now.record(max(value_us, 0))

    def percentile(self, percent: float) -> int:
        """Return what so many percent of the values do not pass; 0 when there are none."""
        self._turn()
        both = Histogram()
        both.merge(self._before)
        both.merge(self._now)
        return both.percentile(percent) if both.count else 0

    def whole(self) -> Histogram:
        """Return one of all values that were ever written down."""
        every = Histogram()
        for part in (self._past, self._before, self._now):
            every.merge(part)
        return every

    def _turn(self) -> None:
        now_us = self._clock.steady_us()
        windows = (now_us - self._begun_us) // WINDOW_US
        if windows:
            self._past.merge(self._before)
            if windows > 1:
                self._past.merge(self._now)
            self._before, self._now = self._now if windows == 1 else Histogram(), Histogram()
            self._begun_us += windows * WINDOW_US


class Pace:
    """The times of one broker.

    Args:
        clock: Steady time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._commits = Recent(clock)
        self._lags = Recent(clock)
        self._deliveries = Recent(clock)
        self._commit_begun_us = 0
        self._kicked_us = 0

    def commits(self) -> None:
        """A group goes to the disk."""
        self._commit_begun_us = self._clock.steady_us()

    def committed(self) -> None:
        """It is there, and the loop has heard of it."""
        if self._commit_begun_us:
            self._commits.record(self._clock.steady_us() - self._commit_begun_us)
            self._commit_begun_us = 0

    def kicked(self) -> None:
        """The end of the turn is asked for, behind what the loop has to do before."""
        self._kicked_us = self._clock.steady_us()

    def turned(self) -> None:
        """It has come."""
        if self._kicked_us:
            self._lags.record(self._clock.steady_us() - self._kicked_us)
            self._kicked_us = 0

    def delivered(self, took_us: int) -> None:
        """What a group holds is on its way to its readers, so long after its oldest record was taken."""
        self._deliveries.record(took_us)

    def histograms(self) -> dict[str, Histogram]:
        """Return the times of the whole run, microseconds; the names are stable. Some 30 µs, on the loop."""
        return {
            "commit_us": self._commits.whole(),
            "delivery_us": self._deliveries.whole(),
            "loop_lag_us": self._lags.whole(),
        }

    def percentiles(self) -> dict[str, int]:
        """Return figures of the last minute; the names are stable."""
        return {
            "commit_p50_us": self._commits.percentile(50),
            "commit_p99_us": self._commits.percentile(99),
            "delivery_p50_us": self._deliveries.percentile(50),
            "delivery_p99_us": self._deliveries.percentile(99),
            "loop_lag_p99_us": self._lags.percentile(99),
        }
