"""Producers' number lines: which numbers a producer has published, and where the newest of them went.

A line is applied state like a head: it changes by committed groups only. It lives as long as the journal knows it.
"""

from __future__ import annotations

from broker_native.tails import Line

__all__ = ["Lines"]


class Lines:
    """All lines of a shard, by producer."""

    def __init__(self) -> None:
        self._by_producer: dict[bytes, Line] = {}

    def __len__(self) -> int:
        return len(self._by_producer)

    def line(self, producer: bytes) -> Line:
        """Return the producer's line, a new one if there is none.

        Args:
            producer: 16 bytes that the client drew at random.
        """
        line = self._by_producer.get(producer)
        if line is None:
            line = self._by_producer[producer] = Line(producer)
        return line

    def forget_unused(self, producer: bytes) -> None:
        """Drop the producer's line if it has never taken a number: nothing is lost with it."""
        line = self._by_producer.get(producer)
        if line is not None and line.next == line.closed_next == line.applied_next == 1:
            del self._by_producer[producer]

    def known(self, producer: bytes) -> Line | None:
        """Return the producer's line if there is one."""
        return self._by_producer.get(producer)

    def highest(self, producer: bytes) -> int:
        """Return the highest number that the producer's line has taken, 0 for a producer that is not known.

        While a failed group may be on the disk all the same, its numbers count: none above the answer was ever stored.
        """
        line = self._by_producer.get(producer)
        return max(line.next, line.closed_next) - 1 if line is not None else 0
