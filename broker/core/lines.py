"""Producers' number lines: which numbers a producer has published, and where the newest of them went.

A line is applied state like a head: it changes by committed groups only. It lives as long as the journal knows it, and
is in memory while somebody uses it.
"""

from __future__ import annotations

from broker_native.lines import Line

__all__ = ["Lines"]


class Lines:
    """All lines of a shard, by producer.

    Attributes:
        stored_elsewhere: Lines that the journal has and memory does not.
        evicted: How often a line was evicted so far.
    """

    def __init__(self) -> None:
        self._by_producer: dict[bytes, Line] = {}
        self._sweep: list[bytes] = []
        self.stored_elsewhere = 0
        self.evicted = 0

    def __len__(self) -> int:
        """How many producers have a line, in memory or not."""
        return len(self._by_producer) + self.stored_elsewhere

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
        if line is not None and not line.holders and line.next == line.closed_next == line.applied_next == 1:
            del self._by_producer[producer]

    def hold(self, producer: bytes) -> None:
        """Keep the producer's line in memory until `release`; a new one is made if there is none."""
        self.line(producer).holders += 1

    def release(self, producer: bytes) -> None:
        """Undo one `hold`; the line goes if it has never taken a number."""
        self._by_producer[producer].holders -= 1
        self.forget_unused(producer)

    def evict(self, settled_group: int, used_before_s: int, lines_max: int) -> int:
        """Free lines that nobody uses, going on where the last call stopped.

        Args:
            settled_group: What groups up to this one have stored can be looked up elsewhere.
            used_before_s: Lines used at this broker time or later stay, seconds.
            lines_max: How many to look at.

        Returns:
            How many were freed.
        """
        if not self._sweep:
            self._sweep = list(self._by_producer)
        freed = 0
        for producer in self._sweep[-lines_max:]:
            line = self._by_producer.get(producer)
            if line is not None and self._may_go(line, settled_group, used_before_s):
                del self._by_producer[producer]
                freed += 1
                # One that never took a number is nowhere, and nothing is lost with it.
                self.stored_elsewhere += line.applied_next > 1
                self.evicted += line.applied_next > 1
        del self._sweep[-lines_max:]
        return freed

    @staticmethod
    def _may_go(line: Line, settled_group: int, used_before_s: int) -> bool:
        # A number above what was applied is pending, or of a group whose fate is not known.
        return (
            line.holder is None
            and not line.holders
            and line.next == line.closed_next == line.applied_next
            and not line.commit_first
            and line.group <= settled_group
            and line.used_s < used_before_s
        )

    def known(self, producer: bytes) -> Line | None:
        """Return the producer's line if it is in memory."""
        return self._by_producer.get(producer)

    def highest(self, producer: bytes) -> int:
        """Return the highest number that the producer's line has taken, 0 for a producer that is not known.

        While a failed group may be on the disk all the same, its numbers count: none above the answer was ever stored.
        """
        line = self._by_producer.get(producer)
        return max(line.next, line.closed_next) - 1 if line is not None else 0
