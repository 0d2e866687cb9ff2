"""Throughput and latency by the second, mergeable: what each process counts and what the master adds up.

Locust rounds response times below 100 ms, so latencies are kept in the native histogram, in nanoseconds. One second is
one histogram and two counts; processes send the seconds that are over, and whoever gets them adds equal seconds up. A
second that nobody adds to any more becomes a line of figures, so that a test of hours takes no more memory than its
lines.

Seconds are those of the clock that all processes of a test share (`now_ns`). Nothing here knows Locust or sockets.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker_native.messages import Batch
    from broker_native.readings import Reading

SECOND_NS: Final = 1_000_000_000
SETTLED_AFTER_S: Final = 15
"""A second is a line when so many have passed: workers report every three, and a busy one late."""

# Steady like the monotonic clock, and the same on machines whose clocks agree.
_ANCHOR_NS: Final = time.time_ns() - time.monotonic_ns()


def now_ns() -> int:
    """Return the time that payloads are stamped with: nanoseconds since 1970, and never back."""
    return time.monotonic_ns() + _ANCHOR_NS


class Second:
    """What happened in one second; latencies are kept by scenario."""

    __slots__ = ("delivered", "latencies", "published")

    def __init__(self) -> None:
        self.delivered = 0
        self.published = 0
        self.latencies: dict[str, Histogram] = {}

    def latency_of(self, kind: str) -> Histogram:
        """Return the latencies of a scenario."""
        found = self.latencies.get(kind)
        if found is None:
            found = self.latencies[kind] = Histogram()
        return found

    def whole(self) -> Histogram:
        """Return the latencies of all scenarios together."""
        return merged(self.latencies.values())


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Add histograms up in a new one."""
    whole = Histogram()
    for each in histograms:
        whole.merge(each)
    return whole


class Line(NamedTuple):
    """A second that is over: when it began, in seconds since 1970, and its figures; latencies in ms, 0 without any."""

    at_s: int
    published: int
    delivered: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def line_of(at_s: int, second: Second) -> Line:
    """Put a second into figures."""
    latency = second.whole()
    if not latency.count:
        return Line(at_s, second.published, second.delivered, 0.0, 0.0, 0.0)
    p50, p99 = latency.percentile(50), latency.percentile(99)
    return Line(at_s, second.published, second.delivered, p50 / 1e6, p99 / 1e6, latency.max / 1e6)


class Counter:
    """Counts in one process, on its one thread."""

    def __init__(self) -> None:
        self._until_ns = 0
        self._now = Second()
        self._seconds: dict[int, Second] = {}
        self.delivered = 0
        self.published = 0

    def take(self, kind: str, reading: Reading, batch: Batch, since_ns: int = 0) -> None:
        """Check a batch that has come, and count it.

        Args:
            kind: the scenario of its reader.
            reading: of its channel, at its reader.
            batch: what has come.
            since_ns: messages that were due before are in no latency.
        """
        at_ns = now_ns()
        if at_ns >= self._until_ns:
            self._turn(at_ns)
        taken = reading.take(batch, at_ns, self._now.latency_of(kind), since_ns)
        self._now.delivered += taken
        self.delivered += taken

    def publish(self, count: int) -> None:
        """Count messages that the broker has taken."""
        at_ns = now_ns()
        if at_ns >= self._until_ns:
            self._turn(at_ns)
        self._now.published += count
        self.published += count

    def _turn(self, at_ns: int) -> None:
        at_s = at_ns // SECOND_NS
        self._until_ns = (at_s + 1) * SECOND_NS
        self._now = self._seconds[at_s] = Second()

    def hand_over(self, *, all_of_it: bool = False) -> list[list[Any]]:
        """Give away the seconds that are over, in a form that Locust's messages carry.

        Args:
            all_of_it: the one under way too; counting goes on in a new one.
        """
        open_at_s = None if all_of_it else self._until_ns // SECOND_NS - 1
        over = [at_s for at_s in self._seconds if at_s != open_at_s]
        if all_of_it:
            self._until_ns = 0
        seconds = [(at_s, self._seconds.pop(at_s)) for at_s in over]
        return [
            [at_s, each.published, each.delivered, {kind: one.to_bytes() for kind, one in each.latencies.items()}]
            for at_s, each in seconds
        ]


class Timeline:
    """All seconds of a test, of all its processes, and the latency of those that are judged.

    Attributes:
        lines: The seconds that nobody adds to any more, oldest first.
        latencies: Of the judged seconds among them, by scenario.
        delivered, published: Messages of all seconds.
        since_s, until_s: Seconds from the one and before the other are judged.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.latencies: dict[str, Histogram] = {}
        self.published = 0
        self.delivered = 0
        self.since_s = 0
        self.until_s = 1 << 62
        self._seconds: dict[int, Second] = {}
        self._settled_s = 0

    def add(self, seconds: Iterable[list[Any]]) -> None:
        """Add what a process has handed over.

        Raises:
            ValueError: It is no such thing.
        """
        for at_s, published, delivered, latencies in seconds:
            # One that comes after its line was made goes to the next that is open: no message is left out of a sum.
            second = self._seconds.setdefault(max(at_s, self._settled_s), Second())
            for kind, packed in latencies.items():
                second.latency_of(kind).merge(Histogram.from_bytes(packed))
            second.published += published
            second.delivered += delivered
            self.published += published
            self.delivered += delivered
        self.settle()

    @property
    def latency(self) -> Histogram:
        """The latencies of all scenarios together."""
        return merged(self.latencies.values())

    def settle(self, *, all_of_them: bool = False) -> None:
        """Make lines of the seconds that nobody adds to any more."""
        newest = max(self._seconds, default=0)
        for at_s in sorted(self._seconds):
            if not all_of_them and at_s > newest - SETTLED_AFTER_S:
                break
            second = self._seconds.pop(at_s)
            if self.is_judged(at_s):
                for kind, latency in second.latencies.items():
                    self.latencies.setdefault(kind, Histogram()).merge(latency)
            self.lines.append(line_of(at_s, second))
            self._settled_s = at_s + 1

    def is_judged(self, at_s: int) -> bool:
        """Whether a second counts for the verdict."""
        return self.since_s <= at_s < self.until_s

    def latest(self, lag_s: int) -> Line | None:
        """Return the newest second that all have probably reported, or None.

        Args:
            lag_s: how much later one process may report than another.
        """
        newest = max(self._seconds, default=0)
        known = max((at_s for at_s in self._seconds if at_s <= newest - lag_s), default=None)
        return None if known is None else line_of(known, self._seconds[known])

    def rate(self) -> float:
        """Return the messages delivered a second in the judged seconds; those in which nothing came count too."""
        judged = [line for line in self.lines if self.is_judged(line.at_s)]
        if not judged:
            return 0.0
        begun_s = max(self.since_s, judged[0].at_s)
        ended_s = min(self.until_s, judged[-1].at_s + 1)
        return sum(line.delivered for line in judged) / (ended_s - begun_s)

    def best_rate(self, seconds: int) -> float:
        """Return the most messages delivered a second over any stretch of so many seconds, or over all of them."""
        if not self.lines:
            return 0.0
        begun_s, ended_s = self.lines[0].at_s, self.lines[-1].at_s + 1
        counts = [0] * (ended_s - begun_s)
        for line in self.lines:
            counts[line.at_s - begun_s] = line.delivered
        stretch = min(seconds, len(counts))
        sums = [sum(counts[at : at + stretch]) for at in range(len(counts) - stretch + 1)]
        return max(sums) / stretch


CURVE: Final = (
    *(float(percent) for percent in range(0, 90, 10)),
    *(90 + percent for percent in range(0, 9)),
    *(99 + tenth / 10 for tenth in range(0, 9)),
    *(99.9 + hundredth / 100 for hundredth in range(0, 9)),
    99.99,
    99.999,
)
"""The percentiles of a curve over a logarithmic axis: as many between two nines as between the two before."""


def curve(latency: Histogram) -> list[tuple[float, float]]:
    """Return points of (percentile, ms), the maximum last as percentile 100; none when nothing was recorded."""
    if not latency.count:
        return []
    known = [percent for percent in CURVE if latency.count * (100 - percent) >= 100 - 1e-6]
    return [*((percent, latency.percentile(percent) / 1e6) for percent in known), (100.0, latency.max / 1e6)]


def percentiles(latency: Histogram) -> Mapping[str, float]:
    """Return the percentiles that people ask for, in ms; none when nothing was recorded."""
    if not latency.count:
        return {}
    asked = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
    return {**{name: latency.percentile(at) / 1e6 for name, at in asked.items()}, "max": latency.max / 1e6}
