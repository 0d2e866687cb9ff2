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
from tests.native.starve import refusals

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
    pick, refusals = random.Random(5), 0
    offsets = structure(content, meta_at)
    for _ in range(3000):
        flipped = bytearray(content)
        at = pick.choice(offsets)
        flipped[at] ^= 1 << pick.randrange(8)
        try:
            check_tree(flipped, meta_at, True)
        except TreeDamaged:
            refusals += 1
            lookups_end(flipped, meta_at, rows)
            continue
        check_rows(bytes(flipped), meta_at, rows)
    assert refusals > 800


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
    content, meta_at, rows = deep
    for size in (0, 100, 4096, 8192, len(content) // 2):
        with pytest.raises(TreeDamaged):
            check_tree(content[:size], meta_at, False)
        lookups_end(bytearray(content[:size]), meta_at, rows)
    for size in (0, 100, 151):
        with pytest.raises(TreeDamaged):
            find_row(content[:size], meta_at, b"1")


def test_free_pages_at_the_end_may_be_missing(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    """LMDB does not write a page that a transaction takes there and gives back; any other page is missed."""
    content, meta_at, rows = deep
    pages = len(content) // PAGE_BYTES
    grown = patched(content, meta_at + 136, pages + 1, 8)
    # Two pages more than there are, in no list of free ones.
    with pytest.raises(TreeDamaged):
        check_tree(grown, meta_at, False)
    with pytest.raises(TreeDamaged):
        check_tree(patched(content, meta_at + 136, 1 << 40, 8), meta_at, False)
    size = len(content)
    while True:
        size -= PAGE_BYTES
        try:
            check_tree(content[:size], meta_at, True)
        except TreeDamaged:
            break
        check_rows(content[:size], meta_at, rows)


def test_an_empty_file(tmp_path: Path) -> None:
    open_lmdb(tmp_path / "file", MAP_BYTES).close()
    content = (tmp_path / "file").read_bytes()
    check_tree(content, 0, True)
    assert find_row(content, 0, b"any") is None


# -- each rule by itself -----------------------------------------------------------------------------------------------

# Where the metas, trees, pages and nodes of an LMDB file have what the walk looks at, bytes.
META_PAGE_BYTES, FREE_TREE, MAIN_TREE, LAST_PAGE = 40, 40, 88, 136
TREE_FLAGS, TREE_DEPTH, TREE_ENTRIES, TREE_ROOT = 4, 6, 32, 40
KEY_SIZE, NODE_BYTES = 6, 8
NO_PAGE = 2**64 - 1


@pytest.fixture(scope="module")
def listed() -> tuple[bytes, int]:
    """A file whose tree of free pages has branches: a reader kept many transactions' pages from being used again."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        environment = open_lmdb(path, MAP_BYTES)
        with environment.begin(write=True) as transaction:
            transaction.put(b"key", b"first")
        with environment.begin():
            for number in range(160):
                with environment.begin(write=True) as transaction:
                    transaction.put(b"key", b"%d" % number)
        environment.close()
        content, meta_at = path.read_bytes(), check_file(path)
    assert number_at(content, meta_at + FREE_TREE + TREE_DEPTH, 2) == 2
    check_tree(content, meta_at, True)
    return content, meta_at


def number_at(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")


def patched(content: bytes, at: int, value: int, size: int) -> bytes:
    """Return the file with one number changed."""
    assert number_at(content, at, size) != value
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def node_of(content: bytes, page: int, index: int) -> int:
    """Return where a node of a page begins."""
    return page * PAGE_BYTES + number_at(content, page * PAGE_BYTES + 16 + 2 * index, 2)


def first_leaf(content: bytes, tree_at: int) -> int:
    """Return the number of the leftmost leaf of a tree."""
    page = number_at(content, tree_at + TREE_ROOT, 8)
    for _ in range(1, number_at(content, tree_at + TREE_DEPTH, 2)):
        page = number_at(content, node_of(content, page, 0), 4)
    return page


def refused(content: bytes, meta_at: int, writable: bool = False) -> int:
    """Demand that the walk refuses a file; answers where it says that the damage is."""
    with pytest.raises(TreeDamaged) as caught:
        check_tree(content, meta_at, writable)
    return caught.value.offset


@pytest.mark.parametrize(
    ("at", "value", "size"),
    [
        (TREE_FLAGS, 4, 2),
        (TREE_DEPTH, 17, 2),
        (TREE_DEPTH, 0, 2),
        (TREE_ENTRIES, 1, 8),
        (TREE_ROOT, NO_PAGE, 8),
        (TREE_ROOT, 0, 8),
        (TREE_ROOT, 1, 8),
        (TREE_ROOT, 1 << 20, 8),
    ],
)
def test_a_tree_that_cannot_be_is_refused(
    deep: tuple[bytes, int, dict[bytes, bytes]], at: int, value: int, size: int
) -> None:
    content, meta_at, _ = deep
    assert refused(patched(content, meta_at + MAIN_TREE + at, value, size), meta_at) == meta_at + MAIN_TREE


def test_a_tree_without_pages_has_no_rows(tmp_path: Path) -> None:
    open_lmdb(tmp_path / "file", MAP_BYTES).close()
    content = (tmp_path / "file").read_bytes()
    for at, size in ((TREE_DEPTH, 2), (TREE_ENTRIES, 8)):
        assert refused(patched(content, MAIN_TREE + at, 1, size), 0) == MAIN_TREE


@pytest.mark.parametrize(("value", "root"), [(17, None), (None, 0), (None, 1), (None, 1 << 20)])
def test_a_lookup_does_not_follow_a_tree_that_cannot_be(
    deep: tuple[bytes, int, dict[bytes, bytes]], value: int | None, root: int | None
) -> None:
    content, meta_at, rows = deep
    if value is not None:
        content = patched(content, meta_at + MAIN_TREE + TREE_DEPTH, value, 2)
    if root is not None:
        content = patched(content, meta_at + MAIN_TREE + TREE_ROOT, root, 8)
    with pytest.raises(TreeDamaged) as caught:
        find_row(content, meta_at, next(iter(rows)))
    assert caught.value.offset == meta_at + MAIN_TREE


@pytest.mark.parametrize("page_bytes", [0, 511, 65537, 2**32 - 1])
def test_a_page_size_that_cannot_be_is_refused(deep: tuple[bytes, int, dict[bytes, bytes]], page_bytes: int) -> None:
    content, meta_at, _ = deep
    assert refused(patched(content, meta_at + META_PAGE_BYTES, page_bytes, 4), meta_at) == meta_at


def test_a_meta_outside_the_file_is_refused(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    content, _, _ = deep
    for meta_at in (len(content) - 151, len(content), len(content) + 1, 2**64 - 1):
        refused(content, meta_at)


def test_a_value_that_leaves_its_page_is_refused(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    content, meta_at, rows = deep
    leaf = first_leaf(content, meta_at + MAIN_TREE)
    entries = (number_at(content, leaf * PAGE_BYTES + 12, 2) - 16) // 2
    nodes = [node_of(content, leaf, index) for index in range(entries)]
    node = next(node for node in nodes if number_at(content, node + 4, 2) == 0)
    room = (leaf + 1) * PAGE_BYTES - node - NODE_BYTES - number_at(content, node + KEY_SIZE, 2)
    check_tree(patched(content, node, room, 2), meta_at, False)
    damaged = patched(content, node, room + 1, 2)
    assert refused(damaged, meta_at) == node
    key = content[node + NODE_BYTES : node + NODE_BYTES + number_at(content, node + KEY_SIZE, 2)]
    assert key in rows
    with pytest.raises(TreeDamaged):
        find_row(damaged, meta_at, key)


def free_node(content: bytes, meta_at: int) -> int:
    """Return where the oldest list of free pages stands: the node, with a key of 8 bytes behind its header."""
    return node_of(content, first_leaf(content, meta_at + FREE_TREE), 0)


@pytest.mark.parametrize("size", [0, 7, 12])
def test_a_list_of_free_pages_is_of_whole_numbers(listed: tuple[bytes, int], size: int) -> None:
    content, meta_at = listed
    node = free_node(content, meta_at)
    assert refused(patched(content, node, size, 2), meta_at, True) == node
    check_tree(patched(content, node, size, 2), meta_at, False)


def test_a_list_of_free_pages_is_as_long_as_it_says(listed: tuple[bytes, int]) -> None:
    content, meta_at = listed
    node = free_node(content, meta_at)
    count = node + NODE_BYTES + 8
    room = number_at(content, node, 2) // 8 - 1
    assert refused(patched(content, count, room + 1, 8), meta_at, True) == node


def test_free_pages_go_down(listed: tuple[bytes, int]) -> None:
    content, meta_at = listed
    leaf = first_leaf(content, meta_at + FREE_TREE)
    entries = (number_at(content, leaf * PAGE_BYTES + 12, 2) - 16) // 2
    nodes = [node_of(content, leaf, index) for index in range(entries)]
    node = next(node for node in nodes if number_at(content, node + NODE_BYTES + 8, 8) > 1)
    first, second = node + NODE_BYTES + 16, node + NODE_BYTES + 24
    assert number_at(content, first, 8) > number_at(content, second, 8)
    assert refused(patched(content, second, number_at(content, first, 8), 8), meta_at, True) == node


def test_keys_of_free_lists_are_transactions(listed: tuple[bytes, int]) -> None:
    """8 bytes each, on leaves and on branches, and going up."""
    content, meta_at = listed
    node = free_node(content, meta_at)
    assert refused(patched(content, node + KEY_SIZE, 7, 2), meta_at, True) == node
    assert refused(patched(content, node + KEY_SIZE, 0, 2), meta_at, True) == node
    root = number_at(content, meta_at + FREE_TREE + TREE_ROOT, 8)
    branch = node_of(content, root, 1)
    for size in (0, 7):
        assert refused(patched(content, branch + KEY_SIZE, size, 2), meta_at, True) == branch
    assert refused(patched(content, branch + NODE_BYTES, 1, 8), meta_at, True) == branch


def test_without_memory_the_walk_says_so(deep: tuple[bytes, int, dict[bytes, bytes]]) -> None:
    content, meta_at, _ = deep
    assert refusals(lambda: lambda: check_tree(content, meta_at, True)) > 0
