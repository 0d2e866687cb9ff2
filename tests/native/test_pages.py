"""`broker_native.pages` against dicts: what a page and a filter say of every key, and that damage is found."""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.environment import open_lmdb
from broker_native.btree import TreeDamaged
from broker_native.crc32c import crc32c_of
from broker_native.delta import TableDelta
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
    adds_up,
    find_in_pages,
    join_older,
    table_items,
)
from broker_native.tree import MappedFile, TreeReader
from tests.native.starve import refusals
from tests.reference.chains import Chain
from tests.reference.groups import (
    IGNORABLE,
    Entry,
    build_entry,
    channel_entry,
    drop_entry,
    epoch_entry,
    line_entry,
    run_entry,
    trim_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYED = (NAMES, CHANNELS, LINES)


def delta_of(channels: int, seed: int = 0) -> TableDelta:
    """Return a delta of many channels, some of them with more than a head, and of a few lines."""
    entries = [run_entry(1, True), Entry(77, b"new", IGNORABLE)]
    for channel in range(1, channels, 3):
        entries += [channel_entry(channel, f"page.{channel * (seed + 7) % 9973}.{channel}"), epoch_entry(channel, 5, 1)]
    entries += [line_entry(bytes([at]) * 16, 1, 2, [(1, 1, 2)]) for at in range(0, channels % 256, 2)]
    delta = TableDelta()
    delta.add(Chain().build([(channel, [b"x"]) for channel in range(1, channels, 2)], entries))
    return delta


PREFIXES = {NAMES: b"name", CHANNELS: b"table", LINES: b"line", REST: b"rest"}


@contextmanager
def sealed(pages: list[tuple[int, bytes, bytes]]) -> Iterator[TreeReader]:
    """Yield a file that has pages in it as a sealed segment has."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sealed"
        environment = open_lmdb(path, 1 << 26, locks=False)
        with environment.begin(write=True) as transaction:
            for kind, low, page in pages:
                transaction.put(PREFIXES[kind] + low, page)
        environment.close()
        mapped = MappedFile(str(path), path.stat().st_size)
        yield TreeReader(mapped, 1)
        mapped.close()


def find(reader: TreeReader, kind: int, keys: list[bytes], picked: list[int] | None = None) -> dict[bytes, Any]:
    """Look ascending keys up as a sealed segment does."""
    picked = list(range(len(keys))) if picked is None else picked
    indexes, values = find_in_pages(reader, kind, PREFIXES[kind], keys, picked)
    return {keys[index]: value for index, value in zip(indexes, values, strict=True)}


def look_up(pages: list[tuple[int, bytes, bytes]], kind: int, keys: list[bytes]) -> dict[bytes, Any]:
    with sealed(pages) as reader:
        return find(reader, kind, keys)


@pytest.mark.parametrize("channels", [0, 1, 2, 40, 5000])
def test_pages_hold_what_the_delta_holds(channels: int) -> None:
    delta = delta_of(channels)
    pages = delta.pages()
    for kind in (NAMES, CHANNELS, LINES, REST):
        rows = delta.items(kind)
        assert [key for key, _ in rows] == sorted(key for key, _ in rows)
        held, bound = [], b""
        for _, low, page in (page for page in pages if page[0] == kind):
            assert low == bound
            items, bound = table_items(kind, low, page)
            held += items
            assert len(page) <= 32752
        assert (held, bound) == (rows, b"")
        if kind in KEYED:
            assert look_up(pages, kind, [key for key, _ in rows]) == dict(rows)
    assert any(low for _, low, _ in pages) == (channels == 5000)


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=60), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_key_is_found_or_surely_not_there(keys: list[bytes], seed: int) -> None:
    delta = delta_of(1500, seed)
    pages = delta.pages()
    wanted = {kind: sorted({*keys, *[key for key, _ in delta.items(kind)][seed::97], bytes(8)}) for kind in KEYED}
    wanted[LINES] = [key for key in wanted[LINES] if len(key) == 16]
    for kind in KEYED:
        rows = dict(delta.items(kind))
        assert look_up(pages, kind, wanted[kind]) == {key: rows[key] for key in wanted[kind] if key in rows}


def test_picked_keys_alone_are_looked_up() -> None:
    delta = delta_of(40)
    rows = dict(delta.items(CHANNELS))
    keys = list(rows)
    with sealed(delta.pages()) as reader:
        for picked in ([], [3, 5], [1, 3, 5], [len(keys) - 1]):
            assert find(reader, CHANNELS, keys, picked) == {keys[at]: rows[keys[at]] for at in picked}


def test_what_no_key_can_be_is_refused() -> None:
    with sealed(delta_of(2).pages()) as reader:
        with pytest.raises(ValueError, match="prefix: got 17 bytes, limit 16"):
            find_in_pages(reader, NAMES, bytes(17), [], [])
        with pytest.raises(ValueError, match="key: got 256 bytes, limit 255"):
            find_in_pages(reader, NAMES, b"name", [bytes(256)], [0])


def test_damage_and_wrong_places_are_found() -> None:
    pages = delta_of(5000).pages()
    _, low, page = next(found for found in pages if found[0] == CHANNELS and found[1])

    def look(kind: int, low: bytes, page: bytes) -> object:
        return look_up([(kind, low, page)], kind, [low + b"\1"])

    reads: list[Callable[[int, bytes, bytes], object]] = [table_items, look]
    for read in reads:
        read(CHANNELS, low, page)
        wrong = [(CHANNELS, b"", page), (CHANNELS, low[:-1], page), (NAMES, low, page), (CHANNELS, low, page[:-1])]
        wrong += [(CHANNELS, low, b""), (CHANNELS, low, page[:31])]
        for at in (0, 5, 9, 13, 17, 21, 25, 29, 33, 1000, len(page) - 1):
            wrong.append((CHANNELS, low, page[:at] + bytes([page[at] ^ 4]) + page[at + 1 :]))
        for arguments in wrong:
            with pytest.raises(GroupDamaged, match="table page"):
                read(*arguments)
    # A key past the page's bound, and one that no page covers: whatever led here is damaged.
    for key in (b"\xff" * 8, bytes(8)):
        with pytest.raises(GroupDamaged):
            look_up([(CHANNELS, low, page), (NAMES, b"", b"x")], CHANNELS, [key])


def test_without_memory_nothing_is_said_to_be_there() -> None:
    delta = delta_of(40)
    rows = dict(delta.items(CHANNELS))
    with sealed(delta.pages()) as reader:
        assert refusals(lambda: lambda: find(reader, CHANNELS, list(rows))) > 0
        assert find(reader, CHANNELS, list(rows)) == rows


def test_a_damaged_tree_is_found() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sealed"
        environment = open_lmdb(path, 1 << 26, locks=False)
        with environment.begin(write=True) as transaction:
            for kind, low, page in delta_of(5000).pages():
                transaction.put(PREFIXES[kind] + low, page)
        environment.close()
        content = bytearray(path.read_bytes())
        root = int.from_bytes(content[4096 + 88 + 40 :][:8], "little")
        content[root * 4096 + 10] ^= 4
        path.write_bytes(content)
        with pytest.raises(TreeDamaged):
            find(TreeReader(MappedFile(str(path), len(content)), 1), CHANNELS, [bytes(8)])


def test_an_item_larger_than_a_page_has_one_for_itself() -> None:
    delta = TableDelta()
    epochs = [epoch_entry(2, number, number) for number in range(1, 2000)]
    chain = Chain()
    delta.add(chain.build([(1, [b"x"]), (2, [b"x"]), (3, [b"x"])], [channel_entry(2, "large"), *epochs]))
    pages = [(low, page) for kind, low, page in delta.pages() if kind == CHANNELS]
    assert [len(table_items(CHANNELS, low, page)[0]) for low, page in pages] == [1, 1, 1]
    assert look_up(delta.pages(), CHANNELS, [(2).to_bytes(8, "big")]) == {
        (2).to_bytes(8, "big"): delta.find_channel(2),
    }
    assert delta.find_channel(2).count(build_entry(epochs[1998])) == 1


# --- Joining ---


RUNS = {
    "head": [Entry(4, bytes(32))],
    "epoch": [epoch_entry(1, 5, 1)],
    "both": [epoch_entry(1, 5, 1), Entry(4, bytes(32))],
    "trim": [trim_entry(1, 5)],
    "drop": [drop_entry(1), Entry(4, bytes(32))],
    "strange": [Entry(64, b"kind"), Entry(77, b"new")],
    "nothing": [],
}


@given(st.lists(st.lists(st.sampled_from(sorted(RUNS)), min_size=3, max_size=3), max_size=5))
def test_older_runs_stand_behind_newer_ones_until_one_is_dropped(segments: list[list[str]]) -> None:
    """The newest segment comes first; each has something of three channels."""
    state, parts = bytearray(3), list[bytes | list[bytes] | None]([None] * 3)
    for kinds in segments:
        open_ones = [at for at in range(3) if state[at] != CLOSED]
        runs = [b"".join(map(build_entry, RUNS[kinds[at]])) for at in open_ones]
        join_older(open_ones, runs, state, parts)
    for at in range(3):
        expected, known = [], OPEN
        for kinds in segments:
            if kinds[at] == "drop":
                known = CLOSED
                break
            expected.append(b"".join(map(build_entry, RUNS[kinds[at]])))
            known = HEADED if kinds[at] in ("head", "both") else known
        part = parts[at]
        assert (part if isinstance(part, list) else [] if part is None else [part]) == expected
        assert state[at] == known


def test_joining_needs_a_state_for_each() -> None:
    with pytest.raises(ValueError, match="state: got 1 bytes for 2 channels"):
        join_older([], [], bytearray(1), [None, None])


@pytest.mark.parametrize(
    ("kind", "expected"), [("head", False), ("epoch", True), ("both", True), ("trim", True), ("nothing", False)]
)
def test_epochs_and_trims_add_up(kind: str, expected: bool) -> None:
    entries = b"".join(map(build_entry, RUNS[kind]))
    assert adds_up(entries) is expected
    assert adds_up(entries + bytes(5)) is expected
    assert adds_up(entries + b"\1\0\0\0\4\0\0\0" + bytes(8)) is expected, "a size that cannot be ends it"


# --- The filter ---------------------------------------------------------------------------------------------------


def test_a_filter_never_denies_and_seldom_errs() -> None:
    delta = delta_of(5000)
    named = TableFilter(delta.filter())
    for kind in KEYED:
        keys = [key for key, _ in delta.items(kind)]
        assert named.pick(kind, keys) == list(range(len(keys)))
    changed = [key for key, _ in delta.items(CHANNELS) if int.from_bytes(key, "big") % 3 == 1]
    assert named.pick(CHANGED, changed) == list(range(len(changed)))
    strangers = [(10**6 + at).to_bytes(8, "big") for at in range(20_000)]
    for kind in (NAMES, CHANNELS, CHANGED, LINES):
        assert len(named.pick(kind, strangers)) < 600
    heads = [key for key, _ in delta.items(CHANNELS) if int.from_bytes(key, "big") % 3 != 1]
    assert len(named.pick(CHANGED, heads)) < len(heads) * 0.04
    assert all(named.has_channel(channel) for channel in range(1, 5000, 2))
    assert sum(named.has_channel(channel) for channel in range(10**6, 10**6 + 1000)) < 40


@pytest.mark.parametrize(
    "entry", [channel_entry(1, "a"), epoch_entry(1, 5, 3), trim_entry(1, 1), trim_entry(1, 4), drop_entry(1)]
)
def test_a_channel_with_more_than_a_head_is_changed(entry: Entry) -> None:
    delta = TableDelta()
    delta.add(Chain().build(entries=[entry]))
    named = TableFilter(delta.filter())
    assert named.pick(CHANGED, [(1).to_bytes(8, "big")]) == [0]


def test_skipped_keys_are_not_picked() -> None:
    named = TableFilter(delta_of(40).filter())
    keys = [(channel).to_bytes(8, "big") for channel in (1, 3, 5)]
    assert named.pick(CHANNELS, keys, bytearray([0, 1, 0])) == [0, 2]
    with pytest.raises(ValueError, match="skip"):
        named.pick(CHANNELS, keys, bytearray(2))


def test_a_damaged_filter_is_found() -> None:
    value = delta_of(40).filter()
    for wrong in (b"", value[:-1], value + b"\0", *(value[:at] + b"\xff" + value[at + 1 :] for at in range(0, 24, 4))):
        with pytest.raises(GroupDamaged):
            TableFilter(wrong)


def with_crc(value: bytes) -> bytes:
    """Return a page or a filter whose size and checksum are right."""
    body = value[8:]
    return struct.pack("<II", len(value), crc32c_of(body)) + body


def table_page(
    kind: int, count: int, items: bytes, low: bytes = b"", bound: bytes = b"", end: int | None = None
) -> bytes:
    """Return a page with a right checksum, whatever it says."""
    end = 32 + len(items) if end is None else end
    return with_crc(struct.pack("<8xIIIIII", 0x42415442, count, kind, end, len(low), len(bound)) + items + low + bound)


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (NAMES, table_page(NAMES, 1, b"")),  # more items than there are
        (NAMES, table_page(NAMES, 1, b"\5room", bound=b"x" * 20)),  # a name that overruns the items
        (CHANNELS, table_page(CHANNELS, 1, bytes(11))),
        (CHANNELS, table_page(CHANNELS, 1, bytes(8) + struct.pack("<I", 1))),
        (LINES, table_page(LINES, 1, b"\0" * 3)),
        (LINES, table_page(LINES, 1, struct.pack("<I", 23) + bytes(23))),  # a line without its producer
        (REST, table_page(REST, 1, struct.pack("<I", 1 << 31))),
        (NAMES, table_page(NAMES, 0, b"", end=31)),
        (NAMES, table_page(NAMES, 0, b"", end=33)),
        (NAMES, table_page(NAMES, 0, b"more", end=32)),
    ],
)
def test_a_page_that_cannot_be_is_refused_under_a_right_checksum(kind: int, page: bytes) -> None:
    with pytest.raises(GroupDamaged, match="table page"):
        table_items(kind, b"", page)
    if kind != REST:
        with pytest.raises(GroupDamaged, match="table page"):
            look_up([(kind, b"", page)], kind, [b"x" * 16])


def test_a_kind_without_pages_is_damage() -> None:
    """Each kind has a page that covers from the very beginning, so a row of another kind stands for damage."""
    names = [page for page in delta_of(40).pages() if page[0] == NAMES]
    with pytest.raises(GroupDamaged, match="table page"):
        look_up(names, CHANNELS, [bytes(8)])
    with pytest.raises(GroupDamaged, match="table page"):
        look_up([page for page in delta_of(40).pages() if page[0] == CHANNELS], LINES, [bytes(16)])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KEYED),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 80),
)
def test_whatever_stands_in_a_page_nothing_is_read_past_its_end(
    kind: int, changes: list[tuple[int, int]], cut: int
) -> None:
    changed = bytearray(next(page for each, _, page in PAGES if each == kind))
    for at, byte in changes:
        changed[(20 if at % 2 else 8) + at % 60] = byte
    page = with_crc(bytes(changed[: len(changed) - (cut if cut > 40 else 0)]))
    with suppress(GroupDamaged):
        table_items(kind, b"", page)
    with suppress(GroupDamaged):
        look_up([(kind, b"", page)], kind, [key for key, _ in KEYED_ROWS[kind]][:20])


@pytest.mark.parametrize(("rare", "touched", "blocks"), [(0, 1, 1), (1, 0, 1), (1, 2, 2), ((1 << 32) - 1, 3, 2)])
def test_a_filter_that_cannot_be_is_refused_under_a_right_checksum(rare: int, touched: int, blocks: int) -> None:
    good = with_crc(struct.pack("<8xIIII", 0x544C4642, 0, 1, 1) + bytes(128))
    assert not TableFilter(good).has_channel(1)
    with pytest.raises(GroupDamaged):
        TableFilter(with_crc(struct.pack("<8xIIII", 0x544C4642, 0, rare, touched) + bytes(64 * blocks)))


@pytest.mark.parametrize("entries", [struct.pack("<IHH", 7, 2, 0), struct.pack("<IHH", 9, 2, 0), b"short"])
def test_of_entries_that_overrun_their_run_the_first_counts(entries: bytes) -> None:
    assert adds_up(entries) is (len(entries) == 8)


PAGES = delta_of(40).pages()
KEYED_ROWS = {kind: list(delta_of(40).items(kind)) for kind in KEYED}
