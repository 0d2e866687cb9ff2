"""`broker_native.pages` against dicts: what a page and a filter say of every key, and that damage is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged
from broker_native.pages import CHANGED, CHANNELS, LINES, NAMES, REST, TableFilter, find_in_table, table_items
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
    from collections.abc import Callable

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


def covering(pages: list[tuple[int, bytes, bytes]], kind: int, key: bytes) -> tuple[bytes, bytes]:
    """Return the page of a kind that covers a key."""
    return max((low, page) for found, low, page in pages if found == kind and low <= key)


def look_up(pages: list[tuple[int, bytes, bytes]], kind: int, keys: list[bytes]) -> dict[bytes, Any]:
    """Look ascending keys up as a sealed segment does."""
    found: list[tuple[int, Any]] = []
    picked = list(range(len(keys)))
    at = 0
    while at < len(picked):
        low, page = covering(pages, kind, keys[picked[at]])
        at = find_in_table(kind, low, page, keys, picked, at, found)
    return {keys[index]: value for index, value in found}


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
    keys = [key for key, _ in delta.items(CHANNELS)]
    (page,) = [page for kind, _, page in delta.pages() if kind == CHANNELS]
    found: list[tuple[int, Any]] = []
    assert find_in_table(CHANNELS, b"", page, keys, [1, 3, 5], 1, found) == 3
    assert [index for index, _ in found] == [3, 5]


def test_damage_and_wrong_places_are_found() -> None:
    pages = delta_of(5000).pages()
    _, low, page = next(found for found in pages if found[0] == CHANNELS and found[1])
    reads: list[Callable[[int, bytes, bytes], object]] = [
        table_items,
        lambda kind, low, page: find_in_table(kind, low, page, [low], [0], 0, []),
    ]
    for read in reads:
        read(CHANNELS, low, page)
        wrong = [(CHANNELS, b"", page), (CHANNELS, low[:-1], page), (NAMES, low, page), (CHANNELS, low, page[:-1])]
        wrong += [(CHANNELS, low, b""), (CHANNELS, low, page[:31])]
        for at in (0, 5, 9, 13, 17, 21, 25, 29, 33, 1000, len(page) - 1):
            wrong.append((CHANNELS, low, page[:at] + bytes([page[at] ^ 4]) + page[at + 1 :]))
        for arguments in wrong:
            with pytest.raises(GroupDamaged, match="table page"):
                read(*arguments)
    # A key past the page's bound: whatever led here is damaged.
    with pytest.raises(GroupDamaged):
        find_in_table(CHANNELS, low, page, [b"\xff" * 8], [0], 0, [])


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
