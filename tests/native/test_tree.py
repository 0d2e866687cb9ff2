"""`broker_native.tree`: a snapshot of an LMDB file read without LMDB, against LMDB's own answers."""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.environment import open_lmdb
from broker_native.btree import TreeDamaged
from broker_native.tree import MappedFile, TreeReader
from tests.native.starve import refusals

MAP_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4096
META_PAGE_BYTES, META_TRANSACTION, LAST_PAGE = 40, 144, 136
MAIN_DEPTH, MAIN_ROOT = 88 + 6, 88 + 40
NO_PAGE = 2**64 - 1

Rows = dict[bytes, bytes]


def fill(path: Path, seed: int, steps: int) -> Rows:
    """Put and delete keys of three sizes, in transactions of ten; returns the rows."""
    pick, rows = random.Random(seed), Rows()
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    for _ in range(0, steps, 10):
        with environment.begin(write=True) as transaction:
            for _ in range(10):
                number = pick.randrange(steps)
                key = b"%d" % number * (1 + number % 3)
                if pick.random() < 0.8:
                    rows[key] = pick.randbytes(pick.choice((0, 3, 300, 1900, 9000)))
                    transaction.put(key, rows[key])
                elif rows.pop(key, None) is not None:
                    transaction.delete(key)
    environment.close()
    return rows


def newest(content: bytes) -> int:
    """Return the number of the newest transaction."""
    return max(int.from_bytes(content[at + META_TRANSACTION :][:8], "little") for at in (0, PAGE_BYTES))


def meta_at(content: bytes) -> int:
    return PAGE_BYTES if newest(content) % 2 else 0


def reader_of(path: Path) -> TreeReader:
    return TreeReader(MappedFile(str(path), MAP_BYTES), newest(path.read_bytes()[: 2 * PAGE_BYTES]))


@given(st.integers(0, 2**32), st.sampled_from([0, 10, 100, 600]))
@settings(max_examples=12, deadline=None)
def test_rows_are_those_of_lmdb(seed: int, steps: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        rows = fill(path, seed, steps)
        check(reader_of(path), rows, random.Random(seed))


def check(reader: TreeReader, rows: Rows, pick: random.Random) -> None:
    """Demand every kind of answer."""
    keys = sorted(rows)
    asked = [*keys, b"0", b"\x00", b"55x", b"\xff" * 9]
    for order in (sorted(asked), pick.sample(asked, len(asked))):
        assert reader.get_sorted(order) == [rows.get(key) for key in order]
        assert [None if (found := reader.find(key)) is None else bytes(found) for key in order] == [
            rows.get(key) for key in order
        ]
    assert reader.range(b"\x00", b"", 10**9, 10**9) == [(key, rows[key]) for key in keys]
    assert reader.range_back(b"", b"\x00", 10**9, 10**9) == [(key, rows[key]) for key in reversed(keys)]
    for _ in range(20):
        start, end = (b"%d" % pick.randrange(700) for _ in range(2))
        if pick.random() < 0.5 and keys:
            start = pick.choice(keys)
        count, size = pick.randrange(12), pick.choice((0, 1000, 20_000))
        between = [(key, rows[key]) for key in keys[bisect_left(keys, start) :] if key < end]
        assert reader.range(start, end, count, size) == bounded(between, count, size)
        below = [(key, rows[key]) for key in reversed(keys[: bisect_left(keys, start)]) if key >= end]
        assert reader.range_back(start, end, count, size) == bounded(below, count, size)


def bounded(rows: list[tuple[bytes, bytes]], count: int, size: int) -> list[tuple[bytes, bytes]]:
    """Return what the bounds of `range` leave."""
    taken: list[tuple[bytes, bytes]] = []
    for row in rows[:count]:
        size -= sum(map(len, row))
        if taken and size < 0:
            break
        taken.append(row)
    return taken


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A file of three levels, large values and free pages."""
    path = tmp_path_factory.mktemp("tree") / "file"
    rows = fill(path, 4770, 3010)
    content = path.read_bytes()
    assert int.from_bytes(content[meta_at(content) + MAIN_DEPTH :][:2], "little") == 3
    return path, rows


def test_a_snapshot_stays_while_others_commit(tmp_path: Path) -> None:
    """With LMDB's read transaction held, and its meta page written over meanwhile."""
    path = tmp_path / "file"
    rows = fill(path, 1, 600)
    environment = open_lmdb(path, MAP_BYTES)
    with environment.begin() as held:
        reader = TreeReader(MappedFile(str(path), MAP_BYTES), held.id())
        assert not reader.overtaken
        for number in range(10):
            with environment.begin(write=True) as transaction:
                for key in list(rows)[number::10]:
                    transaction.put(key, b"new")
            check(reader, rows, random.Random(number))
    environment.close()
    check(reader_of(path), dict.fromkeys(rows, b"new"), random.Random(1))


def test_a_snapshot_that_was_overtaken_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    environment = open_lmdb(path, MAP_BYTES)
    with environment.begin(write=True) as transaction:
        transaction.put(b"key", b"first")
    mapped = MappedFile(str(path), MAP_BYTES)
    with environment.begin() as held:
        for number, overtaken in ((1, True), (2, None), (3, None)):
            with environment.begin(write=True) as transaction:
                transaction.put(b"key", b"%d" % number)
            if overtaken is None:
                with pytest.raises(LookupError, match="is gone"):
                    TreeReader(mapped, held.id())
            else:
                assert TreeReader(mapped, held.id()).overtaken is overtaken
                assert TreeReader(mapped, held.id()).get(b"key") == b"first"
    with pytest.raises(LookupError):
        TreeReader(mapped, 77)
    environment.close()


def test_a_map_may_be_longer_than_its_file_and_the_file_may_grow(tmp_path: Path) -> None:
    path = tmp_path / "file"
    open_lmdb(path, MAP_BYTES).close()
    mapped = MappedFile(str(path), MAP_BYTES)
    before = mapped.size
    assert before == path.stat().st_size
    assert TreeReader(mapped, 0).get(b"a") is None
    environment = open_lmdb(path, MAP_BYTES)
    with environment.begin(write=True) as transaction:
        transaction.put(b"a", bytes(100_000))
    environment.close()
    assert mapped.size > before
    assert TreeReader(mapped, 1).get(b"a") == bytes(100_000)


def test_a_closed_file_is_not_touched(grown: tuple[Path, Rows]) -> None:
    mapped = MappedFile(str(grown[0]), MAP_BYTES)
    reader = TreeReader(mapped, newest(grown[0].read_bytes()))
    mapped.close()
    mapped.close()
    for use in (lambda: reader.get(b"a"), lambda: TreeReader(mapped, 1), lambda: mapped.size):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="opened"):
        MappedFile(str(tmp_path / "absent"), MAP_BYTES)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="mapped"):
        MappedFile(str(tmp_path / "file"), 0)


def test_a_mapping_that_never_was_closes_nothing() -> None:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    standard = [os.fstat(descriptor) for descriptor in range(3)]
    for wrong in ((None, MAP_BYTES), ("file", -1), ("file\x00", "many"), ()):
        with pytest.raises((TypeError, OverflowError)):
            MappedFile(*wrong)
    assert [os.fstat(descriptor) for descriptor in range(3)] == standard
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == lowest


# -- damage ------------------------------------------------------------------------------------------------------------


def patched(path: Path, folder: Path, at: int, value: int, size: int) -> Path:
    """Return a copy of a file with one number changed."""
    content = path.read_bytes()
    copy = folder / "patched"
    copy.write_bytes(content[:at] + value.to_bytes(size, "little") + content[at + size :])
    return copy


def test_cut_files_are_refused(grown: tuple[Path, Rows], tmp_path: Path) -> None:
    """A page that is not there is damage when it is asked for; one that is free may be missing at the end."""
    content = grown[0].read_bytes()
    transaction = newest(content)
    for size in (0, 100, 151, 4096):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(TreeDamaged):
            TreeReader(MappedFile(str(tmp_path / "cut"), MAP_BYTES), transaction)
    for size in (8192, len(content) // 2):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(TreeDamaged):
            TreeReader(MappedFile(str(tmp_path / "cut"), MAP_BYTES), transaction).range(b"", b"", 1 << 30, 1 << 40)


@pytest.mark.parametrize(
    ("at", "value", "size"),
    [
        (16, 1, 4),
        (20, 2, 4),
        (META_PAGE_BYTES, 0, 4),
        (META_PAGE_BYTES, 511, 4),
        (META_PAGE_BYTES, 2048, 4),
        (META_PAGE_BYTES, 8192, 4),
        (META_PAGE_BYTES, 2**32 - 1, 4),
        (LAST_PAGE, 1 << 40, 8),
        (MAIN_DEPTH, 17, 2),
        (MAIN_DEPTH, 0, 2),
        (MAIN_ROOT, NO_PAGE, 8),
    ],
)
def test_a_meta_page_that_cannot_be(grown: tuple[Path, Rows], tmp_path: Path, at: int, value: int, size: int) -> None:
    path = grown[0]
    transaction = newest(path.read_bytes())
    copy = patched(path, tmp_path, meta_at(path.read_bytes()) + at, value, size)
    with pytest.raises(TreeDamaged):
        TreeReader(MappedFile(str(copy), MAP_BYTES), transaction)


@pytest.mark.parametrize(("at", "value", "size"), [(MAIN_ROOT, 0, 8), (MAIN_ROOT, 1 << 40, 8), (MAIN_DEPTH, 2, 2)])
def test_a_root_that_cannot_be(grown: tuple[Path, Rows], tmp_path: Path, at: int, value: int, size: int) -> None:
    path = grown[0]
    copy = patched(path, tmp_path, meta_at(path.read_bytes()) + at, value, size)
    reader = reader_of(copy)
    for ask in (
        lambda: reader.get(b"1"),
        lambda: reader.range(b"1", b"", 5, 5),
        lambda: reader.range_back(b"", b"", 5, 5),
        lambda: reader.range_back(b"1", b"", 5, 5),
    ):
        with pytest.raises(TreeDamaged):
            ask()


@pytest.mark.parametrize("page_bytes", [0, 511, 65537, 2**32 - 1])
def test_a_page_size_that_cannot_be(grown: tuple[Path, Rows], tmp_path: Path, page_bytes: int) -> None:
    """The first page says it, whichever meta page is the newest."""
    path, _ = grown
    copy = patched(path, tmp_path, META_PAGE_BYTES, page_bytes, 4)
    with pytest.raises(TreeDamaged):
        TreeReader(MappedFile(str(copy), MAP_BYTES), newest(path.read_bytes()))


def test_a_row_has_a_key(grown: tuple[Path, Rows], tmp_path: Path) -> None:
    path, _ = grown
    content = path.read_bytes()
    leaf = next(page for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES) if tree_page(content, page) == 2)
    node = leaf + int.from_bytes(content[leaf + 16 : leaf + 18], "little")
    copy = patched(path, tmp_path, node + 6, 0, 2)
    with pytest.raises(TreeDamaged):
        reader_of(copy).range(b"\x00", b"", 10**9, 10**9)


def tree_page(content: bytes, page: int) -> int:
    """Return whether a page is a branch (1) or a leaf (2) of some tree, 0 when it is neither."""
    is_one = int.from_bytes(content[page : page + 8], "little") == page // PAGE_BYTES
    return content[page + 10] if is_one and content[page + 10] in (1, 2) else 0


def test_a_snapshot_far_behind_is_gone(grown: tuple[Path, Rows], tmp_path: Path) -> None:
    """Whatever its own meta page says, it may be in the midst of being written over."""
    path, _ = grown
    content = path.read_bytes()
    transaction = newest(content)
    copy = patched(path, tmp_path, PAGE_BYTES - meta_at(content) + META_TRANSACTION, transaction + 2, 8)
    with pytest.raises(LookupError):
        TreeReader(MappedFile(str(copy), MAP_BYTES), transaction)


def test_a_file_longer_than_its_map_is_seen_as_far_as_that(grown: tuple[Path, Rows]) -> None:
    assert MappedFile(str(grown[0]), 4 * PAGE_BYTES).size == 4 * PAGE_BYTES


def structure(content: bytes) -> list[int]:
    """Return the offsets of bytes that a walk follows: headers, offsets and nodes of tree pages, and their keys."""
    offsets: list[int] = []
    for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES):
        if tree_page(content, page):
            lower = int.from_bytes(content[page + 12 : page + 14], "little")
            offsets += range(page, page + lower)
            for slot in range(page + 16, page + lower, 2):
                node = page + int.from_bytes(content[slot : slot + 2], "little")
                offsets += range(node, node + 12)
    return offsets


def test_flipped_bits_hide_nothing(grown: tuple[Path, Rows], tmp_path: Path) -> None:
    """A walk over all rows is refused or sees every one of them; only the row that was hit may read otherwise."""
    path, rows = grown
    content = path.read_bytes()
    pick, refused, changed = random.Random(11), 0, 0
    offsets = structure(content)
    copy = tmp_path / "flipped"
    copy.write_bytes(content)
    reader = reader_of(copy)
    keys = sorted(rows)
    for _ in range(200):
        at, bit = pick.choice(offsets), pick.randrange(8)
        poke(copy, at, content[at] ^ 1 << bit)
        try:
            seen = reader.range(b"\x00", b"", 10**9, 10**9)
            back = reader.range_back(b"", b"\x00", 10**9, 10**9)
            looked = reader.get_sorted(keys[::17])
        except TreeDamaged:
            refused += 1
        else:
            assert len(seen) == len(rows), f"bit {bit} of byte {at}"
            assert back == seen[::-1]
            wrong = [key for key, value in seen if rows.get(key) != value]
            assert len(wrong) <= 1, f"bit {bit} of byte {at}"
            assert sum(value != rows[key] for key, value in zip(keys[::17], looked, strict=True)) <= 1
            changed += len(wrong)
        poke(copy, at, content[at])
    assert refused > 70
    assert changed > 0


def poke(path: Path, at: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


def test_a_count_that_hides_rows_is_found_out(grown: tuple[Path, Rows], tmp_path: Path) -> None:
    """Of every page of the tree: one node less, which no other rule of the structure forbids."""
    path, _ = grown
    content = path.read_bytes()
    copy = tmp_path / "hidden"
    copy.write_bytes(content)
    reader = reader_of(copy)
    whole = reader.range(b"\x00", b"", 10**9, 10**9)
    caught = 0
    for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES):
        if not tree_page(content, page):
            continue
        lower = int.from_bytes(content[page + 12 : page + 14], "little")
        poke(copy, page + 12, (lower - 2) & 0xFF)
        poke(copy, page + 13, (lower - 2) >> 8)
        try:
            assert reader.range(b"\x00", b"", 10**9, 10**9) == whole
        except TreeDamaged:
            caught += 1
        poke(copy, page + 12, content[page + 12])
        poke(copy, page + 13, content[page + 13])
    assert caught > 50


def test_want_of_memory_leaves_nothing_behind(grown: tuple[Path, Rows]) -> None:
    path, rows = grown
    reader = reader_of(path)
    keys = sorted(rows)[:5]
    assert refusals(lambda: lambda: reader.get_sorted(keys)) > 0
    assert refusals(lambda: lambda: reader.range(b"\x00", b"", 5, 10**6)) > 0
    name, transaction = str(path), newest(path.read_bytes())
    assert refusals(lambda: lambda: TreeReader(MappedFile(name, MAP_BYTES), transaction)) > 0
