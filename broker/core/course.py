"""How many bytes the bus has committed, and about how many it had committed at a group of this run.

For those who ask how far somebody is behind who reads by bus position: nobody counts what lies between. A mark is made
each `step` bytes; when there are too many, every second one goes and the step is twice as wide. So it costs a group two
additions, and the answer is too high by the distance of two marks at most, which is a small part of the whole.
"""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["Course"]

STEP_BYTES = 1 << 20
MARKS_MAX = 1_024


class Course:
    """The marks of one run.

    Attributes:
        size_bytes: What was committed in this run.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._step_bytes = STEP_BYTES
        self._groups: list[int] = []
        self._sizes: list[int] = []

    def add(self, number: int, size_bytes: int) -> None:
        """Note that a group was committed; numbers grow."""
        self.size_bytes += size_bytes
        if not self._sizes or self.size_bytes - self._sizes[-1] >= self._step_bytes:
            self._groups.append(number)
            self._sizes.append(self.size_bytes)
            if len(self._groups) > MARKS_MAX:
                del self._groups[1::2], self._sizes[1::2]
                self._step_bytes *= 2

    def since(self, number: int) -> int:
        """Return about how many bytes came behind a group, rather too many; all there are for a group before them."""
        at = bisect_right(self._groups, number)
        return self.size_bytes - (self._sizes[at - 1] if at else 0)
