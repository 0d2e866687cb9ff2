"""The newest committed groups, kept in memory: where a reader that has caught up with the log joins the live stream."""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from broker_native.groups import chunk_head, chunks_in, chunks_start
from broker_native.ring import ChunkRing

if TYPE_CHECKING:
    from collections.abc import Container

    from broker.core.group import Group

__all__ = ["INDEX_END", "Recent"]

INDEX_END = (1 << 32) - 1
"""Index of a bus position behind every chunk of its group."""


class Recent:
    """A ring of groups, bounded in bytes.

    Args:
        bytes_max: How much it keeps; one group stays whatever its size.
    """

    def __init__(self, bytes_max: int) -> None:
        self._groups: deque[Group] = deque()
        self._bytes = 0
        self._bytes_max = bytes_max
        self._dropped = 0
        # Groups are put into it when somebody asks: publishing pays nothing for it.
        self._ring = ChunkRing()

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def add(self, group: Group) -> None:
        """Keep a committed group; the oldest ones make room."""
        self._groups.append(group)
        self._bytes += len(group.value)
        while self._bytes > self._bytes_max and len(self._groups) > 1:
            self._bytes -= len(self._groups.popleft().value)
            self._dropped += 1

    def past(self, number: int) -> list[Group]:
        """Return the groups past a number, in order. It costs as much as there are of them."""
        found = list(takewhile(lambda group: group.number > number, reversed(self._groups)))
        found.reverse()
        return found

    def of_channel(self, channel: int, after: int) -> list[tuple[int, int, bytes]]:
        """Return what the ring has of a channel past a sequence: (group, index, chunk), in order."""
        found: list[tuple[int, int, bytes]] = []
        for number, index, offset, size in self._find(channel, after):
            group = self._groups[number - self._dropped]
            found.append((group.number, index, group.value[offset : offset + size]))
        return found

    def begins(self, channel: int, after: int) -> bool:
        """Whether the ring has the chunk of a channel that goes on behind a sequence."""
        for number, _, offset, size in self._find(channel, after):
            _, _, first, _ = chunk_head(self._groups[number - self._dropped].value[offset : offset + size])
            return first <= after + 1
        return False

    def _find(self, channel: int, after: int) -> list[tuple[int, int, int, int]]:
        """Find a channel's chunks past a sequence: (number of the group in the ring, index, offset, size)."""
        ring, dropped = self._ring, self._dropped
        ring.forget(dropped)
        new = len(self._groups) - (ring.groups_end - dropped)
        if new:
            for group in reversed(list(islice(reversed(self._groups), new))):
                ring.add(group.value)
        return ring.find(channel, after)

    def after(self, number: int, index: int, wanted: Container[int]) -> list[tuple[int, int, bytes]] | None:
        """Return the wanted chunks after a bus position, or None when the ring does not reach back to it."""
        if not self._groups or self._groups[0].predecessor > number:
            return None
        if self._groups[0].number > number and number and index < INDEX_END:
            return None  # what is left of that very group has made room
        found: list[tuple[int, int, bytes]] = []
        for group in self._groups:
            if group.number < number:
                continue
            for at, chunk in chunks_in(group.value, chunks_start(group.value), wanted):
                if group.number > number or at > index:
                    found.append((group.number, at, chunk))
        return found
