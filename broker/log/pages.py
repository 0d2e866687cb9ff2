"""A walk through an LMDB file that goes on past what is damaged.

`btree.check_tree` and `tree.TreeReader` stop at the first wrong byte, which is right for who serves and wrong for who
has to say what is left. This walk takes the file page by page, trusts nothing, tells every place that cannot be what
LMDB wrote, and yields every row that can still be reached. It knows nothing of what the rows mean, writes nothing, and
is in plain Python: it is for care of the data, never for serving.

The layout is drawn in `ext/broker_native/btree.pxd`.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from broker.log.environment import check_file
from broker.log.errors import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_TREE = struct.Struct("<IHHQQQQQ")
_PAGE_BYTES = struct.Struct("<I")
_LAST_PAGE = struct.Struct("<Q")
_PAGE_BYTES_AT, _MAIN_TREE_AT, _LAST_PAGE_AT = 40, 88, 136
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG = 1
_NO_ROOT = 2**64 - 1
_PAGES_FIRST = 2
_DEPTH_MAX = 16


class Row(NamedTuple):
    """One row: its key and value, copied, and where the value begins in the file, bytes."""

    key: bytes
    value: bytes
    offset: int


class Pages:
    """The main tree of one file, as its newer meta page has it.

    Args:
        content: the file; nobody writes to it.
        meta_at: where the newer meta page begins, bytes.
        tell: called with (offset in the file, what is wrong) for each damage met.
    """

    def __init__(self, content: mmap.mmap, meta_at: int, tell: Callable[[int, str], None]) -> None:
        self._content = content
        self._tell = tell
        self._meta_at = meta_at
        self._page_bytes: int = _PAGE_BYTES.unpack_from(content, meta_at + _PAGE_BYTES_AT)[0]
        # The last ones may be free and not written.
        last: int = _LAST_PAGE.unpack_from(content, meta_at + _LAST_PAGE_AT)[0]
        self._pages = min(last + 1, len(content) // self._page_bytes)
        self._seen = bytearray(self._pages // 8 + 1)
        self._last_key = b""

    def rows(self) -> Iterator[Row]:
        """Yield the rows in the order in which they stand, which is that of their keys where nothing is wrong."""
        for at in (0, self._page_bytes):
            if _PAGE.unpack_from(self._content, at)[2] != _META:
                self._tell(at, "the header of a meta page is wrong: LMDB refuses the file")
        at = self._meta_at + _MAIN_TREE_AT
        _, flags, depth, _, _, _, entries, root = _TREE.unpack_from(self._content, at)
        if flags != 0 or depth > _DEPTH_MAX or (depth == 0) != (root == _NO_ROOT):
            self._tell(at, "the tree's root cannot be right")
            return
        count = 0
        if depth:
            for row in self._walk(root, depth, at):
                count += 1
                yield row
        if count != entries:
            self._tell(at, f"{count} rows can be reached, LMDB counts {entries}")

    def _walk(self, number: int, depth: int, by: int) -> Iterator[Row]:
        """Yield the rows of a page and of those below it; `depth` is 1 at the leaves, `by` is what refers to it."""
        if not self._claim(number, 1):
            self._tell(by, f"page {number} is not in the file, or is referred to twice")
            return
        at = number * self._page_bytes
        found, _, flags, lower, upper = _PAGE.unpack_from(self._content, at)
        kind = _LEAF if depth == 1 else _BRANCH
        if found != number or flags != kind or not 16 <= lower <= upper <= self._page_bytes or lower % 2:
            self._tell(at, f"the header of page {number} is wrong: the rows below it cannot be reached")
            return
        self._check_filled(at, (lower - 16) // 2, upper, leaf=depth == 1)
        for index in range((lower - 16) // 2):
            node = self._node(at, index, upper)
            if node is None:
                continue
            node_at, key = node
            if depth == 1:
                row = self._row(at, node_at, key)
                if row is not None:
                    yield row
                continue
            low, high, top, _ = _NODE.unpack_from(self._content, node_at)
            # The first key of a branch is never looked at.
            if index and key <= self._last_key:
                self._tell(node_at, "a branch's key is not between its neighbours: a search may miss rows")
            yield from self._walk(low | high << 16 | top << 32, depth - 1, node_at)

    def _check_filled(self, page_at: int, count: int, upper: int, *, leaf: bool) -> None:
        """Judge whether the nodes are all that is in a page: LMDB leaves no holes, and readers refuse one."""
        filled = 0
        for index in range(count):
            low, high, flags, key_bytes = self._node_header(page_at, index)
            value_bytes = (8 if flags else low | high << 16) if leaf else 0
            filled += _NODE.size + key_bytes + value_bytes + 1 & ~1
        if filled != self._page_bytes - upper:
            self._tell(page_at, "what the page holds does not fill it: readers refuse the rows below it")

    def _node_header(self, page_at: int, index: int) -> tuple[int, int, int, int]:
        """Return the four numbers that a node begins with; zeros when it is not within its page."""
        offset = int.from_bytes(self._content[page_at + 16 + 2 * index : page_at + 18 + 2 * index], "little")
        if offset > self._page_bytes - _NODE.size:
            return 0, 0, 0, 0
        low, high, flags, key_bytes = _NODE.unpack_from(self._content, page_at + offset)
        return low, high, flags, key_bytes

    def _claim(self, first: int, count: int) -> bool:
        """Note that pages are referred to; False when one is not in the file, or is referred to already."""
        if first < _PAGES_FIRST or first + count > self._pages:
            return False
        for page in range(first, first + count):
            if self._seen[page >> 3] >> (page & 7) & 1:
                return False
            self._seen[page >> 3] |= 1 << (page & 7)
        return True

    def _node(self, page_at: int, index: int, upper: int) -> tuple[int, bytes] | None:
        """Return where a node begins, and its key; None when it is not within its page."""
        offset = int.from_bytes(self._content[page_at + 16 + 2 * index : page_at + 18 + 2 * index], "little")
        if upper <= offset <= self._page_bytes - 8:
            size = int.from_bytes(self._content[page_at + offset + 6 : page_at + offset + 8], "little")
            if size <= self._page_bytes - 8 - offset:
                at = page_at + offset
                return at, self._content[at + 8 : at + 8 + size]
        self._tell(page_at + 16 + 2 * index, "a row is not within its page: it cannot be reached")
        return None

    def _row(self, page_at: int, node_at: int, key: bytes) -> Row | None:
        """Return a leaf's row; None when its value is not within the file."""
        low, high, flags, _ = _NODE.unpack_from(self._content, node_at)
        size = low | high << 16
        value_at = node_at + 8 + len(key)
        room = page_at + self._page_bytes - value_at
        if not key:
            self._tell(node_at, "a row has no key: it cannot be found")
            return None
        if key <= self._last_key:
            self._tell(node_at, "a key is not greater than the one before it")
        self._last_key = key
        if flags == _BIG and room >= 8:
            return self._big_row(node_at, key, value_at, size)
        if flags or size > room:
            self._tell(node_at, "a row's value is not within its page: it cannot be reached")
            return None
        return Row(key, self._content[value_at : value_at + size], value_at)

    def _big_row(self, node_at: int, key: bytes, value_at: int, size: int) -> Row | None:
        first = int.from_bytes(self._content[value_at : value_at + 8], "little")
        count = (15 + size) // self._page_bytes + 1
        if not self._claim(first, count):
            self._tell(node_at, "the pages of a large value are not in the file, or are referred to twice")
            return None
        at = first * self._page_bytes
        found, _, flags, low, high = _PAGE.unpack_from(self._content, at)
        if found != first or flags != _OVERFLOW or low | high << 16 != count:
            self._tell(at, "the header of a large value's pages is wrong; the value itself is judged apart")
        return Row(key, self._content[at + 16 : at + 16 + size], at + 16)


@contextmanager
def open_pages(path: Path, tell: Callable[[int, str], None]) -> Iterator[Pages]:
    """Map a file that nobody writes to, for a walk.

    Args:
        path: the file.
        tell: as of `Pages`.

    Raises:
        StorageError: it is no LMDB file of our format or is cut (STORAGE_CORRUPT, STORAGE_FORMAT), or the system
            refuses (STORAGE_FAILED).
    """
    meta_at = check_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield Pages(content, meta_at, tell)
    except OSError as cause:
        raise failed(path, cause) from cause
