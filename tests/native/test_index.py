"""`broker_native.index` against the plain-Python twin: checks of groups, indexes, pages, chunks and table deltas."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.index import (
    PAGE_BYTES_MAX,
    GroupDamaged,
    SegmentIndex,
    check_group,
    cut_chunk,
    find_in_page,
    page_key,
    read_header,
    scan_group,
)
from tests.native.starve import refusals
from tests.reference.chains import Chain
from tests.reference.groups import (
    CLOSE,
    IGNORABLE,
    Chunk,
    Entry,
    Group,
    build_chunk,
    build_group,
    channel_entry,
    close_entry,
    line_entry,
    parse_group,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_native.index import Place

PRODUCER = b"producer-0123456"
UNLIMITED = 2**63
GROUP_SIZE = 72  # where a group says how large it is, bytes


def look_up(pages: list[tuple[bytes, bytes]], channel: int, after: int, bytes_max: int = UNLIMITED) -> list[Place]:
    """Look a channel up in pages as a sealed segment does, but from the first page on."""
    places: list[Place] = []
    for _, page in pages:
        found, more = find_in_page(page, channel, after, bytes_max)
        places += found
        if not more:
            break
    return places


def chunk_sizes(places: list[Place]) -> int:
    return sum(place[3] for place in places)


# --- Groups -------------------------------------------------------------------------------------------------------


def sample_group() -> bytes:
    chain = Chain()
    entries = [channel_entry(7, "chat.a"), line_entry(PRODUCER, 1, 2, [(7, 1, 2)]), close_entry(9)]
    return chain.build([(7, [b"one", b"two"]), (8, [b""]), (7, [b"three"])], entries)


def test_check_group_reads_the_header() -> None:
    value = sample_group()
    group, header = parse_group(value), check_group(memoryview(value))
    assert (header.number, header.predecessor, header.term, header.writer, header.run, header.time_us) == (
        group.number,
        group.predecessor,
        group.term,
        group.writer,
        group.run,
        group.time_us,
    )
    assert (header.chain, header.previous_chain, header.entries, header.chunks) == (group.chain, 0, 3, 3)
    assert (header.size, header.closed_run, header.flags) == (len(value), 9, 0)
    assert read_header(value).closed_run == 0


def test_every_flipped_bit_of_a_group_is_found() -> None:
    value = sample_group()
    for bit in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(GroupDamaged):
            check_group(damaged)


def test_every_cut_of_a_group_is_found() -> None:
    value = sample_group()
    for size in range(len(value)):
        with pytest.raises(GroupDamaged):
            check_group(value[:size])
        with pytest.raises(GroupDamaged):
            read_header(value[:size])
        with pytest.raises(GroupDamaged):
            SegmentIndex().add(value[:size])


def test_damage_names_channel_and_offset() -> None:
    value = bytearray(sample_group())
    chunk = value.index(b"three")
    value[chunk] ^= 1
    with pytest.raises(GroupDamaged) as caught:
        check_group(value)
    assert caught.value.reason == "chunk checksum"
    assert caught.value.channel == 7
    assert caught.value.offset == len(value) - len(build_chunk(parse_group(sample_group()).chunks[2]))


def test_an_unknown_entry_is_refused_unless_it_is_ignorable() -> None:
    check_group(Chain().build(entries=[Entry(77, b"new", IGNORABLE)]))
    with pytest.raises(GroupDamaged) as caught:
        check_group(Chain().build(entries=[Entry(77, b"new")]))
    assert caught.value.reason == "unknown entry"


@pytest.mark.parametrize("offset", [4, 6])
def test_a_newer_format_is_told_from_damage(offset: int) -> None:
    value = bytearray(sample_group())
    value[offset] += 1
    with pytest.raises(GroupDamaged) as caught:
        read_header(value)
    assert caught.value.reason == "format"


def test_large_groups_are_checked_too() -> None:
    """Past the size up to which the interpreter lock is held."""
    value = bytearray(Chain().build([(channel, [bytes(10_000)]) for channel in range(1, 30)]))
    assert check_group(value).chunks == 29
    value[-1] ^= 1
    with pytest.raises(GroupDamaged):
        check_group(value)


def cut_after(value: bytes, extra: bytes) -> bytes:
    """Return a group with bytes behind its chunks that its header counts in."""
    made = bytearray(value + extra)
    made[GROUP_SIZE : GROUP_SIZE + 8] = len(made).to_bytes(8, "little")
    return bytes(made)


@pytest.mark.parametrize("extra", [b"\0", bytes(55), bytes(56), (55).to_bytes(4, "little") + bytes(60)])
def test_what_is_too_short_for_a_chunk_is_refused(extra: bytes) -> None:
    value = cut_after(sample_group(), extra)
    for function in (check_group, SegmentIndex().add):
        with pytest.raises(GroupDamaged) as caught:
            function(value)
        assert (caught.value.reason, caught.value.offset) == ("chunk bounds", len(sample_group()))


def test_a_close_that_names_no_run_closes_none() -> None:
    assert check_group(Chain().build(entries=[Entry(CLOSE, b"short")])).closed_run == 0
    assert check_group(Chain().build(entries=[Entry(CLOSE, b"")])).closed_run == 0


# --- Index and pages ----------------------------------------------------------------------------------------------


def build_chain(seed_groups: list[list[tuple[int, int]]]) -> Chain:
    chain = Chain()
    for chunks in seed_groups:
        chain.commit(chain.build([(channel, [b"x"] * count) for channel, count in chunks]))
    return chain


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), max_size=8), max_size=12),
    st.integers(0, 13),
    st.integers(0, 60),
    st.integers(0, 700),
)
@settings(max_examples=200, deadline=None)
def test_index_and_pages_agree_with_the_twin(
    groups: list[list[tuple[int, int]]], channel: int, after: int, bytes_max: int
) -> None:
    chain = build_chain(groups)
    index = SegmentIndex()
    for value in chain.values.values():
        index.add(value)
    expected = chain.channel(channel, after)
    pages = index.pages()
    for places in (index.find(channel, after, UNLIMITED), look_up(pages, channel, after)):
        chunks = [(place[0], place[1], cut_chunk(chain.values[place[0]], channel, place)) for place in places]
        assert chunks == expected
    bounded = index.find(channel, after, bytes_max)
    assert bounded == index.find(channel, after, UNLIMITED)[: len(bounded)]
    assert bool(bounded) == bool(expected)
    assert len(bounded) <= 1 or chunk_sizes(bounded) <= bytes_max
    assert index.chunks == len(chain.chunks)
    assert index.channels == len({chunk.channel for _, _, chunk in chain.chunks})


def test_pages_are_sorted_and_split() -> None:
    """Thousands of channels with neighbouring and extreme ids, so that pages and the hash table grow several times."""
    channels = [*range(1, 3000), *(2**64 - step for step in range(1, 100)), 2**32, 2**32 + 1]
    chain = build_chain([[(channel, 1) for channel in channels]] * 3)
    index = SegmentIndex()
    for value in chain.values.values():
        index.add(value)
    pages = index.pages()
    assert len(pages) > 10
    assert [key for key, _ in pages] == sorted(key for key, _ in pages)
    assert max(len(page) for _, page in pages) == PAGE_BYTES_MAX
    entries = b"".join(page[16:] for _, page in pages)
    keys = [struct.unpack_from("<QQ", entries, at) for at in range(0, len(entries), 40)]
    assert keys == sorted(keys)
    assert len(keys) == 3 * len(channels)
    assert pages[0][0] == page_key(1, 1)
    for channel in (1, 818, 819, 2999, 2**32, 2**64 - 1):
        assert [place[4] for place in look_up(pages, channel, 1)] == [2, 3]
        assert index.find(channel, 1, UNLIMITED) == look_up(pages, channel, 1)


def test_lookups_stop_at_their_bytes() -> None:
    """At least one place, and no place that would carry their sum past the bound."""
    chain = build_chain([[(1, 1)]] * 10)
    index = SegmentIndex()
    for value in chain.values.values():
        index.add(value)
    size = chunk_sizes(index.find(1, 0, 0))
    for bytes_max in (0, 1, size - 1, size, 2 * size - 1, 2 * size, 2 * size + 1, 10 * size - 1, 10 * size):
        expected = min(max(bytes_max // size, 1), 10)
        assert len(index.find(1, 0, bytes_max)) == expected
        assert len(look_up(index.pages(), 1, 0, bytes_max)) == expected


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17])
def test_what_is_too_short_for_a_page_is_refused(size: int) -> None:
    with pytest.raises(GroupDamaged) as caught:
        find_in_page(bytes(size), 1, 0, 1)
    assert caught.value.reason == "index page"


def test_every_flipped_bit_of_a_page_is_found() -> None:
    index = SegmentIndex()
    index.add(sample_group())
    ((_, page),) = index.pages()
    for bit in range(len(page) * 8):
        damaged = bytearray(page)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(GroupDamaged) as caught:
            find_in_page(damaged, 7, 0, 1)
        assert caught.value.reason == "index page"


@pytest.mark.parametrize("after", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 3, 2**64 - 2, 2**64 - 1])
def test_sequences_up_to_the_last_one(after: int) -> None:
    chunks = tuple(Chunk(1, 1, first, 1, b"") for first in (1, 2**32, 2**63, 2**64 - 2))
    index = SegmentIndex()
    index.add(build_group(Group(1, 0, chunks=chunks)))
    expected = [chunk.first for chunk in chunks if chunk.last > after]
    assert [place[4] for place in index.find(1, after, UNLIMITED)] == expected
    assert [place[4] for place in look_up(index.pages(), 1, after)] == expected


def test_backward_sequences_are_refused() -> None:
    index = SegmentIndex()
    with pytest.raises(GroupDamaged) as caught:
        index.add(build_group(Group(1, 0, chunks=(Chunk(5, 1, 4, 3, b""), Chunk(5, 1, 6, 1, b"")))))
    assert (caught.value.reason, caught.value.channel) == ("sequence order", 5)


def test_cut_chunk_refuses_what_the_index_does_not_mean() -> None:
    value = sample_group()
    index = SegmentIndex()
    index.add(value)
    place = index.find(7, 0, UNLIMITED)[0]
    assert cut_chunk(value, 7, place) == build_chunk(parse_group(value).chunks[0])
    for field in range(6):
        wrong = list(place)
        wrong[field] += 1
        if field == 1:
            continue  # the index in the group is carried along, the offset is what finds the chunk
        with pytest.raises(GroupDamaged):
            cut_chunk(value, 7, (wrong[0], wrong[1], wrong[2], wrong[3], wrong[4], wrong[5]))
    with pytest.raises(GroupDamaged):
        cut_chunk(value, 8, place)
    with pytest.raises(GroupDamaged):
        cut_chunk(value, 7, (place[0], 0, 2**32 - 1, *place[3:]))


def test_cut_chunk_refuses_damage() -> None:
    """It trusts neither the header of the group nor the bytes of the chunk."""
    value = bytearray(sample_group())
    index = SegmentIndex()
    index.add(value)
    place = index.find(8, 0, UNLIMITED)[0]
    for at, reason in ((0, "chunk place"), (place[2] + place[3] - 1, "chunk checksum")):
        value[at] ^= 1
        with pytest.raises(GroupDamaged) as caught:
            cut_chunk(value, 8, place)
        assert (caught.value.reason, caught.value.offset, caught.value.channel) == (reason, place[2], 8)
        value[at] ^= 1
    assert cut_chunk(value, 8, place) == build_chunk(parse_group(sample_group()).chunks[1])


def test_scan_group_refuses_damage() -> None:
    """Even in a chunk that is not wanted: its size leads to the wanted ones."""
    value = bytearray(sample_group())
    value[value.index(b"three")] ^= 1
    into: list[tuple[int, int, bytes]] = []
    with pytest.raises(GroupDamaged) as caught:
        scan_group(value, 1, -1, UNLIMITED // 2, {8}, into)
    assert (caught.value.reason, into) == ("chunk checksum", [])


@given(st.integers(-1, 6), st.integers(0, 400), st.none() | st.sets(st.integers(1, 4)))
def test_scan_group_agrees_with_the_twin(after: int, bytes_max: int, wanted: set[int] | None) -> None:
    chain = build_chain([[(1, 1), (2, 2), (3, 1), (1, 1), (4, 3)]])
    into: list[tuple[int, int, bytes]] = []
    index, taken, complete = scan_group(chain.values[1], 1, after, bytes_max, wanted, into)
    matching = [item for item in chain.bus() if item[1] > after and (wanted is None or chain_channel(item) in wanted)]
    assert into == matching[: len(into)]
    assert taken == sum(len(chunk) for _, _, chunk in into)
    assert len(into) <= 1 or taken <= bytes_max
    assert complete == (len(into) == len(matching))
    assert index == (max(after, 4) if complete else matching[len(into)][1] - 1)
    assert bool(into) == bool(matching)


def test_scan_group_refuses_another_group() -> None:
    with pytest.raises(GroupDamaged):
        scan_group(sample_group(), 2, -1, 1, None, [])


def chain_channel(item: tuple[int, int, bytes]) -> int:
    return int.from_bytes(item[2][8:16], "little")


# --- Without memory -----------------------------------------------------------------------------------------------


def many_channels() -> bytes:
    return Chain().build([(channel, [b"x"]) for channel in range(1, 40)] + [(1, [b"y"])] * 2)


def test_an_index_without_memory_says_so_and_stays_whole() -> None:
    """What did not fit is not in it; what is, is found."""
    value = many_channels()
    made: list[SegmentIndex] = []

    def add() -> Callable[[], object]:
        made.append(SegmentIndex())
        return lambda: made[-1].add(value)

    assert refusals(add) > 3
    assert [index.chunks for index in made] == sorted(index.chunks for index in made)
    assert (made[-1].chunks, made[-1].channels) == (41, 39)
    for index in made:
        found = [place for channel in range(1, 40) for place in index.find(channel, 0, UNLIMITED)]
        assert len(found) == index.chunks
    assert refusals(lambda: lambda: made[-1].find(1, 0, UNLIMITED)) > 0
    assert refusals(lambda: made[-1].pages) > 0
    assert len(made[-1].find(1, 0, UNLIMITED)) == 3


def test_buffers_are_required() -> None:
    text: Any = "text"
    for function in (check_group, read_header, SegmentIndex().add):
        with pytest.raises(TypeError):
            function(text)


def test_places_come_as_far_as_there_is_room_in_memory_and_in_pages() -> None:
    index, chain = SegmentIndex(), Chain()
    for _ in range(5):
        value = chain.build([(1, [b"x" * 100])])
        chain.commit(value)
        index.add(value)
    whole = index.find(1, 0, UNLIMITED)
    size = whole[0][3]
    ((_, page),) = index.pages()
    for room, count in ((0, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (4 * size + 1, 4), (5 * size, 5)):
        assert index.find(1, 0, room) == whole[:count]
        assert find_in_page(page, 1, 0, room)[0] == whole[:count]
    for before in range(1, 8):
        assert index.find(1, 0, UNLIMITED, before) == whole[: before - 1]
        assert find_in_page(page, 1, 0, UNLIMITED, before)[0] == whole[: before - 1]
