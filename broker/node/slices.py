"""Pieces of the log in memory, for readers who are behind at the same place.

A slice is what one look into the log has found behind a place: of one channel behind a sequence, or of all channels
that some filters reach behind a bus position. Whoever stands within a slice goes on with its rest and then with what
follows it, so that readers who began at different moments meet. They are dropped the least recently used first.

They hold committed chunks only, which do not change. What is trimmed or removed meanwhile is the reader's matter.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from broker_native.groups import chunk_head

if TYPE_CHECKING:
    from collections.abc import Hashable

    from broker_native.fanout import Replay

__all__ = ["Slice", "Slices"]


class Slice:
    """One piece.

    Attributes:
        key: What it is of: a channel's id, or filters.
        begin, end: It has everything behind the one up to the other: sequences, or bus positions.
        chunks: (group, index, chunk) each, in order.
        ends: Where each of them ends: its last sequence, or its bus position.
        asked: What was committed when it was asked for: the next sequence, or the group.
        names: Of a slice by bus position: the channels' names, by id.
        firsts: And what they begin with, by id, as of `firsts_at`.
        size_bytes: What the chunks hold. The frames that `replay` keeps, of small chunks, are no more than that and the
            prefixes and names that stand before them; they are counted while somebody has them queued.
        read_us: Broker time at which it was read.
        replay: Queues them to subscriptions.
    """

    __slots__ = (
        "asked", "begin", "chunks", "end", "ends", "firsts", "firsts_at", "key", "names", "read_us", "replay",
        "size_bytes",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        begin: int | tuple[int, int],
        end: int | tuple[int, int],
        chunks: list[tuple[int, int, bytes]],
        asked: int,
        names: dict[int, bytes],
        firsts: dict[int, int],
    ) -> None:
        self.key = key
        self.begin = begin
        self.end = end
        self.chunks = chunks
        self.ends: list[int] | list[tuple[int, int]]
        if isinstance(end, int):
            heads = [chunk_head(chunk) for _, _, chunk in chunks]
            self.ends = [first + count - 1 for _, _, first, count in heads]
        else:
            self.ends = [(group, index) for group, index, _ in chunks]
        self.asked = asked
        self.names = names
        self.firsts = firsts
        self.firsts_at = -1
        self.size_bytes = sum(len(chunk) for _, _, chunk in chunks)
        self.read_us = 0
        self.replay: Replay | None = None


class Slices:
    """Those that are kept.

    Args:
        bytes_max: How much they may hold; 0 keeps none.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._by_key: dict[Hashable, list[Slice]] = {}
        self._used: OrderedDict[Slice, None] = OrderedDict()
        self.size_bytes = 0

    def find(self, key: Hashable, at: int | tuple[int, int]) -> Slice | None:
        """Return a slice that has what comes behind a place."""
        for one in self._by_key.get(key, ()):
            if one.begin <= at < one.end:  # type: ignore[operator]
                self._used.move_to_end(one)
                return one
        return None

    def keeps(self, one: Slice) -> bool:
        """Whether a slice is kept."""
        return one in self._used

    def keep(self, one: Slice) -> None:
        """Keep a slice; others make room."""
        if not one.chunks or one.size_bytes > self._bytes_max:
            return
        self._by_key.setdefault(one.key, []).append(one)
        self._used[one] = None
        self.size_bytes += one.size_bytes
        self.shrink(self._bytes_max)

    def shrink(self, bytes_max: int) -> None:
        """Drop the least recently used until they hold no more than this."""
        while self.size_bytes > bytes_max:
            self._drop(next(iter(self._used)))

    def forget(self, read_before_us: int) -> None:
        """Drop those that were read before a time: what has expired since is still in them."""
        for one in [one for one in self._used if one.read_us < read_before_us]:
            self._drop(one)

    def _drop(self, one: Slice) -> None:
        del self._used[one]
        self.size_bytes -= one.size_bytes
        same = self._by_key[one.key]
        same.remove(one)
        if not same:
            del self._by_key[one.key]
