"""`broker_native.delta` against the plain-Python twin: what groups come to, cut into segments however one likes."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged
from broker_native.pages import NAMES
from tests.native.starve import refusals
from tests.reference.chains import Chain
from tests.reference.groups import (
    CHANNEL,
    CLOSE,
    DROP,
    EPOCH,
    HEAD,
    IGNORABLE,
    LINE,
    LINE_WINDOW,
    RUN,
    SNAPSHOT,
    TRIM,
    Entry,
    Tables,
    build_entry,
    channel_entry,
    close_entry,
    drop_entry,
    epoch_entry,
    head_entry,
    line_entry,
    parse_entries,
    run_entry,
    trim_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCER = b"producer-0123456"


def delta_of(values: list[bytes]) -> bytes:
    delta = TableDelta()
    for value in values:
        delta.add(value)
    return delta.finish()


line_steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which producer
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 700)), min_size=1, max_size=4),  # runs: channel, count
        st.integers(0, 2),  # numbers at the beginning of the entry without a position
        st.sampled_from([0, 0, 0, 5]),  # numbers that are jumped over
    ),
    max_size=12,
)


@given(line_steps, st.lists(st.integers(0, 12), max_size=3))
@settings(max_examples=200, deadline=None)
def test_deltas_come_to_what_the_groups_come_to(
    steps: list[tuple[int, list[tuple[int, int]], int, int]], cuts: list[int]
) -> None:
    """However the groups are cut into segments, their deltas one after the other end in the same tables."""
    chain, highest = Chain(), {producer: 0 for producer in range(3)}
    positions = {channel: 1 for channel in range(1, 4)}
    for producer, runs, unknown, jump in steps:
        packed = []
        for channel, count in runs:
            packed.append((channel, positions[channel], count))
            positions[channel] += count
        count = sum(length for _, _, length in packed) + unknown
        number = highest[producer] + 1 + jump
        highest[producer] = number + count - 1
        entry = line_entry(bytes([producer]) * 16, number, count, packed)
        chain.commit(chain.build([(9, [b"x"])], [entry, epoch_entry(9, number, count)]))
    values = list(chain.values.values())
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    tables = Tables()
    for begin, end in pairwise(bounds):
        tables.apply_entries(delta_of(values[begin:end]))
    assert tables == chain.tables()


def test_delta_order_and_unknown_entries() -> None:
    chain = Chain()
    chain.commit(chain.build(entries=[run_entry(1, True), Entry(77, b"new", IGNORABLE), channel_entry(1, "a.b")]))
    chain.commit(
        chain.build([(1, [b"x"]), (2, [b"y"])], [line_entry(PRODUCER, 1, 1, [(1, 1, 1)]), epoch_entry(1, 5, 1)])
    )
    chain.commit(chain.build([(1, [b"z"])], [head_entry(2, 6, 2, 2), close_entry(1)]))
    entries = parse_entries(delta_of(list(chain.values.values())))
    assert [entry.kind for entry in entries] == [CHANNEL, EPOCH, HEAD, HEAD, LINE, RUN, 77, CLOSE]
    assert entries[6] == Entry(77, b"new", IGNORABLE)
    assert [struct.unpack("<QQQQ", entry.body) for entry in entries[2:4]] == [
        (1, chain.chunks[0][2].epoch, 3, 1),
        (2, 6, 2, 2),
    ]


def test_a_line_is_a_snapshot_only_when_it_is_whole() -> None:
    def flags(number: int, counts: list[int]) -> int:
        chain, first = Chain(), 1
        for count in counts:
            chain.commit(chain.build(entries=[line_entry(PRODUCER, number, count, [(1, first, count)])]))
            number, first = number + count, first + count
        (entry,) = parse_entries(delta_of(list(chain.values.values())))
        assert struct.unpack_from("<QQ", entry.body, 16) == (number - sum(counts), sum(counts))
        return entry.flags

    assert flags(1, [3]) == SNAPSHOT
    assert flags(50, [3, 4]) == 0
    assert flags(50, [LINE_WINDOW - 1]) == 0
    assert flags(50, [LINE_WINDOW - 1, 1]) == SNAPSHOT
    assert flags(50, [LINE_WINDOW + 1]) == SNAPSHOT


def both_of(values: list[bytes]) -> tuple[Tables, Tables]:
    """Return what an applier has after some groups, and what it has after their delta."""
    live, replayed = Tables(), Tables()
    for value in values:
        live.apply_group(value)
    replayed.apply_entries(delta_of(values))
    return live, replayed


def lines_of(*entries: Entry) -> list[bytes]:
    """Return groups with one entry each."""
    chain = Chain()
    for entry in entries:
        chain.commit(chain.build(entries=[entry]))
    return list(chain.values.values())


def test_a_snapshot_replaces_what_came_before_it() -> None:
    going_on = [line_entry(PRODUCER, 40, 2, [(1, 1, 2)]), line_entry(PRODUCER, 42, 1, [(1, 3, 1)])]
    snapshot = line_entry(PRODUCER, 43, 3, [(2, 7, 3)], SNAPSHOT)
    values = lines_of(*going_on, snapshot)
    live, replayed = both_of(values)
    assert live == replayed
    assert replayed.lines[PRODUCER].places == {43: (2, 7), 44: (2, 8), 45: (2, 9)}
    (entry,) = parse_entries(delta_of(values))
    assert entry.flags == SNAPSHOT
    (entry,) = parse_entries(delta_of(lines_of(*going_on)))
    assert entry.flags == 0


def test_a_window_of_single_numbers_moves_on() -> None:
    """Each run is of its own, and three times as many as the window holds: what is forgotten gives its room back."""
    places = [(1 + number % 2, 1 + number // 2) for number in range(3 * LINE_WINDOW)]
    entries = [
        line_entry(PRODUCER, 1 + at, 64, [(channel, first, 1) for channel, first in places[at : at + 64]])
        for at in range(0, len(places), 64)
    ]
    live, replayed = both_of(lines_of(*entries))
    assert live == replayed
    newest = dict(enumerate(places, 1))
    assert replayed.lines[PRODUCER].places == {number: newest[number] for number in list(newest)[-LINE_WINDOW:]}


@pytest.mark.parametrize("count", [2**32 - 1, 2**32 - LINE_WINDOW, 2**32 - LINE_WINDOW - 1])
def test_runs_that_would_add_up_past_32_bits_stay_two(count: int) -> None:
    values = lines_of(
        line_entry(PRODUCER, 1, LINE_WINDOW, [(1, 1, LINE_WINDOW)]),
        line_entry(PRODUCER, 1 + LINE_WINDOW, count, [(1, 1 + LINE_WINDOW, count)]),
    )
    (entry,) = parse_entries(delta_of(values))
    assert struct.unpack_from("<16sQQI", entry.body) == (PRODUCER, 1, LINE_WINDOW + count, 1)
    assert struct.unpack_from("<QQI", entry.body, 40) == (1, 1 + count, LINE_WINDOW)


def mixed(high: int) -> int:
    """The finalizer of MurmurHash3, as `delta_line` puts the second half of a producer through it."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        high = (high ^ high >> 33) * factor % 2**64
    return high ^ high >> 33


def test_producers_that_mix_to_one_key_are_told_apart() -> None:
    producers = [struct.pack("<QQ", mixed(1) ^ mixed(high), high) for high in range(1, 6)]
    assert len(set(producers)) == 5
    entries = [line_entry(producer, 1, 1 + at, [(1, 1 + at, 1 + at)]) for at, producer in enumerate(producers)]
    again = [line_entry(producer, 2 + at, 1, [(2, 1 + at, 1)]) for at, producer in enumerate(producers)]
    live, replayed = both_of(lines_of(*entries, *again))
    assert live == replayed
    assert [replayed.lines[producer].highest for producer in producers] == [2, 3, 4, 5, 6]


def test_a_damaged_group_is_not_taken_into_a_delta() -> None:
    value = bytearray(Chain().build([(7, [b"one"])]))
    value[-1] ^= 1
    delta = TableDelta()
    with pytest.raises(GroupDamaged, match="chunk checksum"):
        delta.add(value)
    assert delta.finish() == b""


def test_a_delta_without_memory_says_so() -> None:
    entries = [run_entry(1, True), channel_entry(1, "a"), Entry(77, bytes(9000), IGNORABLE), head_entry(50, 1, 2, 1)]
    lines = [line_entry(bytes([at]) * 16, 1, 6, [(1 + run % 2, 1, 1) for run in range(6)]) for at in range(20)]
    chunks = [(channel, [b"x"]) for channel in range(1, 40)]
    value = Chain().build(chunks, [*entries, *lines, Entry(CLOSE, bytes(9000))])
    whole = delta_of([value])

    def add() -> Callable[[], object]:
        delta = TableDelta()

        def call() -> None:
            delta.add(value)
            assert delta.finish() == whole

        return call

    assert refusals(add) > 10
    delta = TableDelta()
    delta.add(value)
    assert refusals(lambda: delta.pages) > 3
    assert refusals(lambda: delta.filter) > 0


@pytest.mark.parametrize(
    "entry",
    [
        channel_entry(1, "a"),
        epoch_entry(1, 5, 1),
        trim_entry(1, 5),
        drop_entry(1),
        line_entry(b"p" * 16, 1, 1, [(1, 1, 1)]),
    ],
)
def test_want_of_memory_for_what_is_met_first_is_said(entry: Entry) -> None:
    """Whatever a segment says of a channel first: it takes a row."""
    value = Chain().build([], [entry])
    assert refusals(lambda: lambda: TableDelta().add(value)) > 0
    published = Chain().build([(1, [b"x"])])
    assert refusals(lambda: lambda: TableDelta().add(published)) > 0


def test_many_heads_and_lines() -> None:
    """The hash tables grow, and producers that differ in either half are told apart."""
    producers = [struct.pack("<QQ", low, high) for low in range(20) for high in range(20)]
    chain = Chain()
    chain.commit(
        chain.build(
            [(channel, [b"x"]) for channel in range(1, 2000)],
            [line_entry(producer, 1, 1, [(1, 1, 1)]) for producer in producers],
        )
    )
    tables = Tables()
    tables.apply_entries(delta_of(list(chain.values.values())))
    assert tables == chain.tables()


@pytest.mark.parametrize(
    "entry",
    [
        Entry(LINE, b"short"),
        Entry(LINE, line_entry(PRODUCER, 1, 1, [(1, 1, 1)]).body[:-1]),
        line_entry(PRODUCER, 0, 1, []),
        line_entry(PRODUCER, 1, 0, []),
        line_entry(PRODUCER, 1, 2, [(1, 1, 3)]),
        Entry(HEAD, b"short"),
        Entry(CHANNEL, b"short"),
        Entry(CHANNEL, channel_entry(1, "chat.a").body[:-1]),
        Entry(EPOCH, b"short"),
        Entry(TRIM, b"short"),
        Entry(DROP, b"short"),
    ],
)
def test_malformed_entries_are_refused(entry: Entry) -> None:
    with pytest.raises(GroupDamaged) as caught:
        TableDelta().add(Chain().build(entries=[entry]))
    assert caught.value.reason == "entries"


def test_a_buffer_is_required() -> None:
    text: Any = "text"
    for function in (TableDelta().add, TableDelta().add_entries):
        with pytest.raises(TypeError):
            function(text)


# --- Trims, drops, and looking up ---------------------------------------------------------------------------------


def kinds_of(entries: bytes) -> list[int]:
    return [entry.kind for entry in parse_entries(entries)]


def test_a_trim_raises_the_head_or_stands_alone() -> None:
    chain, delta = Chain(), TableDelta()
    delta.add(chain.build([(1, [b"a", b"b", b"c"])], [trim_entry(1, 3), trim_entry(1, 2), trim_entry(2, 9)]))
    (head,) = parse_entries(delta.find_channel(1))
    assert struct.unpack("<QQQQ", head.body)[2:] == (4, 3)
    assert parse_entries(delta.find_channel(2)) == (trim_entry(2, 9),)


def test_a_drop_hides_what_was_there_and_frees_the_name() -> None:
    chain, delta = Chain(), TableDelta()
    chain.commit(chain.build())
    born = [channel_entry(1, "a.b"), epoch_entry(1, 5, 1)]
    chain.commit(chain.build([(1, [b"x"])], born))
    chain.commit(chain.build(entries=[drop_entry(1), drop_entry(77)]))
    for value in chain.values.values():
        delta.add(value)
    assert kinds_of(delta.find_channel(1)) == kinds_of(delta.find_channel(77)) == [DROP]
    assert delta.find_name(b"a.b") == -1
    assert delta.items(NAMES) == []
    # One of them was created here, the other one before.
    assert (delta.channels_new, delta.id_next) == (-1, 2)
    again = chain.build([(2, [b"y"])], [channel_entry(2, "a.b"), epoch_entry(2, 6, 1)])
    delta.add(again)
    assert delta.find_name(b"a.b") == 2
    assert delta.items(NAMES) == [(b"a.b", 2)]
    assert (delta.channels_new, delta.id_next) == (0, 3)


def test_many_are_looked_up_as_each_is() -> None:
    delta = TableDelta()
    assert delta.find_names([b"a"], bytearray(1)) == ([], [])
    assert delta.find_channels([bytes(8)], bytearray(1)) == ([], [])
    entries = [channel_entry(number, f"m.{number}") for number in range(1, 9)]
    delta.add_entries(b"".join(map(build_entry, [*entries, drop_entry(3)])))
    names = [b"m.%d" % number for number in range(12)]
    keys = [number.to_bytes(8, "big") for number in range(12)]
    for skipped in ([], [1, 3, 5], list(range(12))):
        skip = bytearray(at in skipped for at in range(12))
        asked = [at for at in range(12) if at not in skipped]
        found = {at: delta.find_name(names[at]) for at in asked}
        indexes, values = delta.find_names(names, skip)
        assert dict(zip(indexes, values, strict=True)) == {
            at: value for at, value in found.items() if value is not None
        }
        indexes, runs = delta.find_channels(keys, skip)
        assert dict(zip(indexes, runs, strict=True)) == {at: run for at in asked if (run := delta.find_channel(at))}
    for find in (delta.find_names, delta.find_channels):
        with pytest.raises(ValueError, match="skip: got 1 bytes for 12"):
            find(names, bytearray(1))
    with pytest.raises(ValueError, match="key: got 3 bytes, expected 8"):
        delta.find_channels([b"m.1"], bytearray(1))


def test_what_is_not_here_is_not_found() -> None:
    delta = TableDelta()
    assert delta.find_channel(1) == delta.find_line(PRODUCER) == b""
    assert delta.find_name(b"a") is None
    assert (delta.id_next, delta.channels_new, delta.producers_new, delta.unclean_run) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="producer"):
        delta.find_line(b"short")


def test_a_level_that_changes_makes_no_new_channel() -> None:
    chain, delta = Chain(), TableDelta()
    first = [channel_entry(1, "a", 3), epoch_entry(1, 5, 1)]
    delta.add(chain.build([(1, [b"x"])], [*first, channel_entry(1, "a", 2), channel_entry(9, "old", 2)]))
    assert delta.channels_new == 1
    assert parse_entries(delta.find_channel(1))[0] == channel_entry(1, "a", 2)
    assert delta.items(NAMES) == [(b"a", 1), (b"old", 9)]


def test_the_newest_run_that_ended_badly() -> None:
    delta = TableDelta()
    delta.add(Chain().build(entries=[run_entry(5, True), run_entry(7, False), run_entry(4, False), run_entry(9, True)]))
    assert delta.unclean_run == 6


def test_producers_are_new_when_their_lines_begin_here() -> None:
    delta = TableDelta()
    lines = [line_entry(bytes([at]) * 16, at, 2, [(1, 1, 2)]) for at in (1, 2, 3)]
    delta.add(Chain().build(entries=lines))
    assert delta.producers_new == 1
    assert parse_entries(delta.find_line(bytes([2]) * 16)) == (lines[1],)


def test_a_run_of_entries_is_taken_in_as_groups_are() -> None:
    chain = Chain()
    values = [
        chain.build(
            [(1, [b"x"]), (2, [b"y"])],
            [run_entry(2, False), channel_entry(1, "a"), epoch_entry(1, 5, 1), line_entry(PRODUCER, 1, 1, [(1, 1, 1)])],
        )
    ]
    delta = TableDelta()
    delta.add_entries(delta_of(values))
    assert delta.finish() == delta_of(values)
    assert (delta.id_next, delta.channels_new, delta.producers_new, delta.unclean_run) == (2, 1, 1, 1)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 39])
def test_a_run_of_entries_that_is_cut_is_refused(cut: int) -> None:
    whole = delta_of([Chain().build([(1, [b"x"])], [channel_entry(1, "abc")])])
    with pytest.raises(GroupDamaged, match="entries"):
        TableDelta().add_entries(whole[:-cut])


def test_an_unknown_entry_of_a_run_is_refused_unless_it_is_ignorable() -> None:
    TableDelta().add_entries(build_entry(Entry(77, b"new", IGNORABLE)))
    with pytest.raises(GroupDamaged, match="unknown entry"):
        TableDelta().add_entries(build_entry(Entry(77, b"new")))


names = st.sampled_from(["a", "b", "a.b", "c"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), names),
        st.tuples(st.just("drop"), names),
        st.tuples(st.just("trim"), names),
        st.tuples(st.just("epoch"), names),
    ),
    max_size=40,
)


@given(steps, st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=150, deadline=None)
def test_channels_that_come_and_go_are_what_a_dict_says(steps: list[tuple[str, str]], cuts: list[int]) -> None:
    """However the history is cut, the deltas' answers, the newest first, are those of a replay."""
    chain, ids, created, live = Chain(), {}, 0, {}
    bounds = {cut for cut in cuts if cut < len(steps)}
    deltas = [TableDelta()]
    for at, (what, name) in enumerate(steps):
        if at in bounds:
            deltas.append(TableDelta())
        if what == "say":
            entries = []
            if name not in ids:
                created += 1
                ids[name], live[name] = created, 1
                entries = [channel_entry(created, name), epoch_entry(created, 5, 1)]
            value = chain.build([(ids[name], [b"x"])], entries)
            live[name] += 1
        elif name not in ids:
            continue
        elif what == "drop":
            value = chain.build(entries=[drop_entry(ids.pop(name))])
        elif what == "trim":
            value = chain.build(entries=[trim_entry(ids[name], live[name] - 1)])
        else:
            value = chain.build(entries=[epoch_entry(ids[name], at + 10, live[name])])
        chain.commit(value)
        deltas[-1].add(value)
    expected, found = chain.tables(), Tables()
    for delta in deltas:
        found.apply_entries(delta.finish())
    assert found == expected
    assert sum(delta.channels_new for delta in deltas) == len(ids)
    assert max(delta.id_next for delta in deltas) == (created + 1 if created else 0)
    for name in ("a", "b", "a.b", "c"):
        said = [delta.find_name(name.encode()) for delta in reversed(deltas)]
        newest = next((channel for channel in said if channel is not None), 0)
        dropped = any(kinds_of(delta.find_channel(max(newest, 0))) == [DROP] for delta in deltas)
        assert (0 if newest <= 0 or dropped else newest) == ids.get(name, 0)
