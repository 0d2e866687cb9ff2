"""What one segment changed in the tables, asked by key: in its sealed pages, or in memory while it has none.

A question comes as many keys at once, ascending, and is answered for those that are found alone: of a hundred thousand
channels a segment may have touched ten. Keys are bytes that sort as what they stand for; a channel's is its id,
big-endian.

A sealed segment is asked without opening its environment: the file is mapped for the length of one question, and no
more of it is read and proved than the pages that may hold an answer. Its filter, which says which those are, is read
when the segment is asked first, and kept.

Any thread may ask. Nothing here joins segments; see `resolve.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.log.environment import reading_tree
from broker.log.errors import corrupt
from broker_native.index import GroupDamaged
from broker_native.pages import (
    CHANGED,
    CHANNELS,
    CLOSED,
    HEADED,
    LINES,
    NAMES,
    OPEN,
    REST,
    TableFilter,
    find_in_pages,
    table_items,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker_native.delta import TableDelta
    from broker_native.tree import TreeReader

FILTER_KEY = b"filter"
PAGE_KEYS: Final = {NAMES: b"name", CHANNELS: b"table", LINES: b"line", REST: b"rest"}
"""What the keys of a kind's pages begin with."""

DROPPED = -1
"""The channel of a name whose channel was dropped."""

_BUT_HEADED = bytes.maketrans(bytes([OPEN, HEADED, CLOSED]), bytes([1, 0, 1]))
"""Makes of states what is passed over when a channel's head is known."""
_BUT_LIVE = bytes.maketrans(bytes([OPEN, HEADED, CLOSED]), bytes([0, 0, 1]))
"""Makes of states what is passed over since nothing older counts."""


class SegmentTables(Protocol):
    """What one segment changed in the tables."""

    def find_names(self, names: list[bytes], skip: bytearray) -> tuple[list[int], list[int]]:
        """Return the indexes of the names that the segment gave to a channel, and the channels.

        Args:
            names: ascending.
            skip: one byte a name; those with another than 0 are passed over.

        Raises:
            StorageError: a page is not what was written.
        """

    def find_channels(self, keys: list[bytes], state: bytearray) -> tuple[list[int], list[bytes]]:
        """Return the indexes of the channels that the segment has more of than newer ones tell, and their entries.

        Args:
            keys: ascending.
            state: OPEN, HEADED or CLOSED for each.
        """

    def find_lines(self, producers: list[bytes], skip: bytearray) -> tuple[list[int], list[bytes]]:
        """Return the indexes of the producers of whom the segment has something, and LINE entries; as `find_names`."""

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """Return the names with a prefix that follow another one, and the channels they were given to last."""

    def items(self, kind: int) -> Iterator[tuple[bytes, Any]]:
        """Yield all rows of a kind in the order of their keys."""


class MemoryTables:
    """A table delta that is kept in memory. It gets no more groups."""

    def __init__(self, delta: TableDelta) -> None:
        self._delta = delta

    @cached_property
    def _names(self) -> list[tuple[bytes, int]]:
        return self._delta.items(NAMES)

    def find_names(self, names: list[bytes], skip: bytearray) -> tuple[list[int], list[int]]:
        """As `SegmentTables.find_names`; a name whose channel was dropped here is given to DROPPED."""
        return self._delta.find_names(names, skip)

    def find_channels(self, keys: list[bytes], state: bytearray) -> tuple[list[int], list[bytes]]:
        """As `SegmentTables.find_channels`."""
        return self._delta.find_channels(keys, state.translate(_BUT_LIVE))

    def find_lines(self, producers: list[bytes], skip: bytearray) -> tuple[list[int], list[bytes]]:
        """As `SegmentTables.find_lines`."""
        found = ((at, self._delta.find_line(producer)) for at, producer in enumerate(producers) if not skip[at])
        there = [(at, entry) for at, entry in found if entry]
        return [at for at, _ in there], [entry for _, entry in there]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """As `SegmentTables.names`."""
        begin = bisect_left(self._names, max(prefix, after + b"\0" if after else b""), key=lambda row: row[0])
        rows = self._names[begin : begin + count_max]
        return [row for row in rows if row[0].startswith(prefix)]

    def items(self, kind: int) -> Iterator[tuple[bytes, Any]]:
        """As `SegmentTables.items`."""
        return iter(self._delta.items(kind))


class SealedTables:
    """The table pages of a sealed segment of seal format 2."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def filter(self) -> TableFilter:
        """The segment's filter.

        Raises:
            StorageError: STORAGE_CORRUPT when it is not what was written.
        """
        with reading_tree(self._path, scattered=True) as tree:
            value = tree.get(FILTER_KEY)
        if value is None:
            raise corrupt(self._path, "its filter is missing")
        try:
            return TableFilter(value)
        except GroupDamaged as damage:
            raise corrupt(self._path, "its filter's checksum or size is wrong") from damage

    def find_names(self, names: list[bytes], skip: bytearray) -> tuple[list[int], list[int]]:
        """As `SegmentTables.find_names`; a name whose channel was dropped here is not found."""
        return self._find(NAMES, names, self.filter.pick(NAMES, names, skip))

    def find_channels(self, keys: list[bytes], state: bytearray) -> tuple[list[int], list[bytes]]:
        """As `SegmentTables.find_channels`."""
        picked = self.filter.pick(CHANNELS, keys, state)
        # Of a channel whose head is known, an older head says nothing.
        more = self.filter.pick(CHANGED, keys, state.translate(_BUT_HEADED))
        return self._find(CHANNELS, keys, sorted(picked + more) if more else picked)

    def find_lines(self, producers: list[bytes], skip: bytearray) -> tuple[list[int], list[bytes]]:
        """As `SegmentTables.find_lines`."""
        return self._find(LINES, producers, self.filter.pick(LINES, producers, skip))

    def _find(self, kind: int, keys: list[bytes], picked: list[int]) -> tuple[list[int], list[Any]]:
        """Look the picked keys up, each page once."""
        if not picked:
            return [], []
        with reading_tree(self._path, scattered=True) as tree:
            try:
                return find_in_pages(tree, kind, PAGE_KEYS[kind], keys, picked)
            except GroupDamaged as damage:
                raise self._damaged(kind) from damage

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """As `SegmentTables.names`."""
        begin = max(prefix, after + b"\0" if after else b"")
        found: list[tuple[bytes, int]] = []
        for page in self._pages(NAMES, begin):
            for name, channel in page:
                if name < begin:
                    continue
                if len(found) == count_max or not name.startswith(prefix):
                    return found
                found.append((name, channel))
        return found

    def items(self, kind: int) -> Iterator[tuple[bytes, Any]]:
        """As `SegmentTables.items`."""
        for page in self._pages(kind, b""):
            yield from page

    def _pages(self, kind: int, begin: bytes) -> Iterator[list[tuple[bytes, Any]]]:
        """Yield what the pages of a kind hold, from the one on that covers a key; each bound leads to the next page."""
        bound, is_first = begin, True
        while bound or is_first:
            with reading_tree(self._path) as tree:
                low, page = self._page(tree, kind, bound)
            if not is_first and low != bound:
                raise self._damaged(kind)
            is_first = False
            try:
                items, bound = table_items(kind, low, page)
            except GroupDamaged as damage:
                raise self._damaged(kind) from damage
            yield items

    def _page(self, tree: TreeReader, kind: int, key: bytes) -> tuple[bytes, bytes]:
        """Return what the page that covers a key begins with, and the page."""
        begin = PAGE_KEYS[kind]
        rows = tree.range_back(begin + key + b"\0", begin, 1, 0)
        if not rows:
            # Every kind has a page that covers from the very beginning.
            raise self._damaged(kind)
        return rows[0][0][len(begin) :], rows[0][1]

    def _damaged(self, kind: int) -> Exception:
        return corrupt(self._path, f"a page of its tables is wrong: {PAGE_KEYS[kind].decode()}")
