"""When each of the newest groups went to the disk, was there, and was on its way to its readers: broker time.

A ring of fixed size that is written three times a group and read when somebody asks for one message. What has left it
is known no more: the journal keeps when a group was closed, and nobody how long its commit took.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

__all__ = ["PASSAGES", "Passage", "Passages"]

PASSAGES = 8_192
"""Groups that are remembered: 8,192 x 40 bytes, some ten seconds of a disk that is kept busy, hours of an idle one."""


class Passage(NamedTuple):
    """One group's way; microseconds since 1970, 0 for what has not happened.

    Attributes:
        opened_us: The turn ended that took its oldest record.
        closed_us: It went to the commit thread.
        committed_us: The loop heard that it is on the disk.
        delivered_us: Its chunks were handed to the connections of those who read them live.
    """

    opened_us: int
    closed_us: int
    committed_us: int
    delivered_us: int


class Passages:
    """The ring; on the loop."""

    def __init__(self) -> None:
        self._numbers = array("Q", bytes(8 * PASSAGES))
        self._opened = array("Q", bytes(8 * PASSAGES))
        self._closed = array("Q", bytes(8 * PASSAGES))
        self._committed = array("Q", bytes(8 * PASSAGES))
        self._delivered = array("Q", bytes(8 * PASSAGES))

    def closed(self, number: int, opened_us: int, now_us: int) -> None:
        """A group goes to the disk."""
        at = number % PASSAGES
        self._numbers[at] = number
        self._opened[at] = opened_us
        self._closed[at] = now_us
        self._committed[at] = self._delivered[at] = 0

    def delivered(self, number: int, committed_us: int, now_us: int) -> None:
        """It was committed, and is on its way to those who read it."""
        at = number % PASSAGES
        if self._numbers[at] == number:
            self._committed[at] = committed_us
            self._delivered[at] = now_us

    def find(self, number: int) -> Passage | None:
        """Return the way of a group, or None if it is not known any more."""
        at = number % PASSAGES
        if not number or self._numbers[at] != number:
            return None
        return Passage(self._opened[at], self._closed[at], self._committed[at], self._delivered[at])
