"""A histogram that keeps every value: the twin of `broker_native.histogram`.

What the native one rounds to a bucket is exact here, except `bucket_bounds`, which says from first principles which
bucket a value belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

SUB_BUCKETS = 128
RANGE_BITS = 40


def bucket_bounds(value: int) -> tuple[int, int]:
    """Return the smallest and the largest value of the bucket that a value below 2^40 belongs to."""
    width = 1
    while value >= 2 * SUB_BUCKETS * width:
        width *= 2
    low = value // width * width
    return low, low + width - 1


@dataclass
class Histogram:
    """Values in a list."""

    values: list[int] = field(default_factory=list)

    def record_n(self, value: int, count: int) -> None:
        self.values.extend([value] * count)

    def merge(self, other: Histogram) -> None:
        self.values.extend(other.values)

    @property
    def mean(self) -> float:
        return float(Fraction(sum(self.values), len(self.values)))

    def percentile(self, percent: float) -> int:
        """Return the smallest value that at least `percent` percent of the values do not exceed, exactly."""
        rank = -(-round(percent * 1_000_000) * len(self.values) // 100_000_000)
        return sorted(self.values)[max(rank, 1) - 1]

    def buckets(self) -> list[tuple[int, int, int]]:
        """Return what the native one's `buckets` yields."""
        counts: dict[tuple[int, int], int] = {}
        for value in self.values:
            bounds = bucket_bounds(min(value, (1 << RANGE_BITS) - 1))
            counts[bounds] = counts.get(bounds, 0) + 1
        # The last bucket of the range has no upper end of its own, and none goes beyond the maximum.
        top = max(self.values, default=0)
        return [
            (low, top if high + 1 == 1 << RANGE_BITS else min(high, top), count)
            for (low, high), count in sorted(counts.items())
        ]
