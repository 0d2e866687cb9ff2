"""`broker_native.btree`: what LMDB wrote passes, what it did not write does not, and lookups agree with LMDB's."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.environment import check_file, open_lmdb
from broker_native.btree import TreeDamaged, check_tree, find_row

if TYPE_CHECKING:
    import lmdb

MAP_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4096

Steps = list[tuple[bool, int, int]]


def written(steps: Steps) -> tuple[bytes, int, dict[bytes, bytes]]:
    """Return the file that LMDB makes of some steps, its newer meta's place, and its rows.

    A step puts (True) or deletes a key, with a value of some size; every tenth begins a new transaction, so that pages
    are freed and used again.
    """
    rows: dict[bytes, bytes] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        environment = open_lmdb(path, MAP_BYTES)
        for begin in range(0, len(steps), 10):
            with environment.begin(write=True) as transaction:
                for put, key, size in steps[begin : begin + 10]:
                    apply(transaction, rows, put, key, size)
        environment.close()
        return path.read_bytes(), check_file(path), rows


def apply(transaction: lmdb.Transaction[bytes], rows: dict[bytes, bytes], put: bool, key: int, size: int) -> None:
    name = b"%d" % key * (1 + key % 3)
    if put:
        rows[name] = bytes([key % 251]) * size
        transaction.put(name, rows[name])
    elif rows.pop(name, None) is not None:
        assert transaction.delete(name)


steps = st.lists(
    st.tuples(st.sampled_from([True, True, False]), st.integers(0, 300), st.sampled_from([0, 1, 7, 300, 1900, 5000])),
    max_size=150,
)


@given(steps)
@settings(max_examples=60, deadline=None)
def test_what_lmdb_writes_passes_and_is_found(taken: Steps) -> None:
    content, meta_at, rows = written(taken)
    check_tree(content, meta_at, True)
    for key, value in rows.items():
        found = find_row(content, meta_at, key)
        assert found is not None
        assert content[found[0] : found[0] + found[1]] == value
    for key in (b"\x00", b"5x", b"\xff" * 20):
        assert find_row(content, meta_at, key) is None


@pytest.fixture(scope="module")
def deep() -> tuple[bytes, int, dict[bytes, bytes]]:
    """A file with branches, large values and free pages."""
    pick = random.Random(3)
    taken = [(pick.random() < 0.8, pick.randrange(400), pick.choice((3, 500, 1500, 9000))) for _ in range(900)]
    content, meta_at, rows = written(taken)
    assert int.from_bytes(content[meta_at + 88 + 6 : meta_at + 88 + 8], "little") >= 2
    return content, meta_at, rows


def structure(content: bytes, meta_at: int) -> list[int]:
    """Return the offsets of the bytes that LMDB trusts: the trees of the meta, and headers and nodes of tree pages."""
    offsets = list(range(meta_at + 44, meta_at + 144))
    for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES):
        if content[page + 10] in (1, 2) and int.from_bytes(content[page : page + 8], "little") == page // PAGE_BYTES:
            lower = int.from_bytes(content[page + 12 : page + 14], "little")
            offsets += range(page, page + lower)
            for slot in range(page + 16, page + lower, 2):
                node = page + int.from_bytes(content[slot : slot + 2], "little")
                offsets += range(node, node + 16)
    return offsets


def test_flipped_bits_of_the_structure_do_no_harm(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    """A flip is refused, or everything is found as before: it hit a free page, or what nobody reads."""
    content, meta_at, rows = deep
    pick, refused = random.Random(5), 0
    offsets = structure(content, meta_at)
    for _ in range(3000):
        flipped = bytearray(content)
        at = pick.choice(offsets)
        flipped[at] ^= 1 << pick.randrange(8)
        try:
            check_tree(flipped, meta_at, True)
        except TreeDamaged:
            refused += 1
            lookups_end(flipped, meta_at, rows)
            continue
        check_rows(bytes(flipped), meta_at, rows)
    assert refused > 800


def lookups_end(flipped: bytearray, meta_at: int, rows: dict[bytes, bytes]) -> None:
    """Whatever is damaged, a lookup ends: with an answer or with an error, never outside the file."""
    for key in list(rows)[::40]:
        try:
            found = find_row(flipped, meta_at, key)
        except TreeDamaged:
            continue
        assert found is None or found[0] + found[1] <= len(flipped)


def check_rows(flipped: bytes, meta_at: int, rows: dict[bytes, bytes]) -> None:
    """All rows are found as before, but for one whose key or value the flip changed within its order."""
    changed = 0
    for key, value in rows.items():
        found = find_row(flipped, meta_at, key)
        changed += found is None or flipped[found[0] : found[0] + found[1]] != value
    assert changed <= 1


def test_a_free_page_that_is_in_use_is_refused_for_writing_only(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    """LMDB would write over it."""
    content, meta_at, _ = deep
    root = int.from_bytes(content[meta_at + 128 : meta_at + 136], "little")
    free_root = int.from_bytes(content[meta_at + 80 : meta_at + 88], "little")
    page = free_root * PAGE_BYTES
    assert content[page + 10] == 2
    node = page + int.from_bytes(content[page + 16 : page + 18], "little")
    first = node + 8 + 8 + 8  # the greatest number of the oldest list
    damaged = content[:first] + root.to_bytes(8, "little") + content[first + 8 :]
    check_tree(damaged, meta_at, False)
    with pytest.raises(TreeDamaged):
        check_tree(damaged, meta_at, True)


def test_cut_files_are_refused(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    content, meta_at, _ = deep
    for size in (0, 100, 4096, 8192, len(content) // 2, len(content) - 1):
        with pytest.raises(TreeDamaged):
            check_tree(content[:size], meta_at, False)
        with pytest.raises(TreeDamaged):
            find_row(content[:size], meta_at, b"1")


def test_an_empty_file(tmp_path: Path) -> None:
    open_lmdb(tmp_path / "file", MAP_BYTES).close()
    content = (tmp_path / "file").read_bytes()
    check_tree(content, 0, True)
    assert find_row(content, 0, b"any") is None
