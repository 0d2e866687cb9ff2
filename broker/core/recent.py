"""The newest committed groups, kept in memory: where a reader that has caught up with the log joins the live stream."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from broker_native.groups import chunks_in, chunks_start
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

    def add(self, group: Group) -> None:
        """Keep a committed group; the oldest ones make room."""
        self._groups.append(group)
        self._bytes += len(group.value)
        while self._bytes > self._bytes_max and len(self._groups) > 1:
            self._bytes -= len(self._groups.popleft().value)
            self._dropped += 1

    def of_channel(self, channel: int, after: int) -> list[tuple[int, int, bytes]]:
        """Return what the ring has of a channel past a sequence: (group, index, chunk), in order."""
        ring, dropped = self._ring, self._dropped
        ring.forget(dropped)
        new = len(self._groups) - (ring.groups_end - dropped)
        if new:
            for group in reversed(list(islice(reversed(self._groups), new))):
                ring.add(group.value)
        found: list[tuple[int, int, bytes]] = []
        for number, index, offset, size in ring.find(channel, after):
            group = self._groups[number - dropped]
            found.append((group.number, index, group.value[offset : offset + size]))
        return found

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
