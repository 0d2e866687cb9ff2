"""A token bucket that is filled as time passes, in fractions: the twin of `broker_native.rates`."""

from __future__ import annotations

from fractions import Fraction


class Bucket:
    """Tokens that come at a rate, at most what comes in a second; below none it is in debt."""

    def __init__(self, per_s: int) -> None:
        # What a token costs is whole nanoseconds.
        self.cost_ns = 10**9 // per_s if per_s else 0
        self.level_ns = Fraction(10**9)
        self.at_us = 0

    def fill(self, now_us: int) -> None:
        self.level_ns = min(Fraction(10**9), self.level_ns + (now_us - self.at_us) * 1000)
        self.at_us = now_us

    def wait_ns(self) -> Fraction:
        return max(Fraction(0), self.cost_ns - self.level_ns) if self.cost_ns else Fraction(0)

    def take(self, tokens: int) -> None:
        self.level_ns -= tokens * self.cost_ns


class Rate:
    """Two of them, of which both have to have something."""

    def __init__(self, records_per_s: int, bytes_per_s: int) -> None:
        self.buckets = Bucket(records_per_s), Bucket(bytes_per_s)

    def take_some(self, records: int, size: int, now_us: int) -> int:
        for bucket in self.buckets:
            bucket.fill(now_us)
        wait_ns = max(bucket.wait_ns() for bucket in self.buckets)
        if wait_ns > 0:
            return min(60_000, -(-int(wait_ns) // 10**6))
        for bucket, tokens in zip(self.buckets, (records, size), strict=True):
            bucket.take(tokens)
        return 0
