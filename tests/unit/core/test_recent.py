"""The newest groups in memory: bounded in bytes, and honest about how far back they reach."""

from __future__ import annotations

from broker.core.group import Group
from broker.core.recent import INDEX_END, Recent
from tests.reference import groups as reference

EPOCH = 1 << 40


def group(number: int, predecessor: int, *chunks: reference.Chunk) -> Group:
    value = reference.build_group(reference.Group(number, predecessor, chunks=chunks))
    return Group(number, predecessor, value, 0, 0, [], 0)


def chunk(channel: int, first: int, count: int = 1) -> reference.Chunk:
    return reference.chunk_of(channel, EPOCH, first, [b"x"] * count)


def filled() -> tuple[Recent, list[Group]]:
    """Groups 5, 6 and 9: what failed between them is void."""
    groups = [
        group(5, 4, chunk(1, 1, 3), chunk(2, 1)),
        group(6, 5, chunk(2, 2), chunk(1, 4)),
        group(9, 6, chunk(1, 5, 2), chunk(2, 3)),
    ]
    recent = Recent(1 << 20)
    for one in groups:
        recent.add(one)
    return recent, groups


def test_a_channel_past_a_sequence() -> None:
    recent, _ = filled()
    found = recent.of_channel(1, 2)
    assert [(number, index) for number, index, _ in found] == [(5, 0), (6, 1), (9, 0)]
    assert [reference.parse_chunk(packed).first for _, _, packed in found] == [1, 4, 5]
    assert [(number, index) for number, index, _ in recent.of_channel(1, 4)] == [(9, 0)]
    assert recent.of_channel(1, 6) == []
    assert recent.of_channel(3, 0) == []


def test_everything_wanted_after_a_place() -> None:
    recent, _ = filled()

    def places(number: int, index: int, wanted: set[int]) -> list[tuple[int, int]] | None:
        found = recent.after(number, index, wanted)
        return None if found is None else [(at, place) for at, place, _ in found]

    assert places(4, INDEX_END, {1, 2}) == [(5, 0), (5, 1), (6, 0), (6, 1), (9, 0), (9, 1)]
    assert places(5, 0, {1, 2}) == [(5, 1), (6, 0), (6, 1), (9, 0), (9, 1)]
    assert places(6, 0, {2}) == [(9, 1)]
    assert places(8, 7, {2}) == [(9, 1)], "a place in a void group"
    assert places(9, 1, {1, 2}) == []
    assert places(20, 0, {1, 2}) == []
    assert places(4, 99, {1, 2}) is None, "the rest of group 4 is not here"
    assert places(3, INDEX_END, {1, 2}) is None, "group 4 is not here"
    assert Recent(10).after(0, 0, {1}) is None


def test_the_oldest_make_room() -> None:
    groups = [group(number, number - 1, chunk(1, number, 1)) for number in range(1, 8)]
    size = len(groups[0].value)
    recent = Recent(3 * size)
    for one in groups:
        recent.add(one)
    assert [number for number, _, _ in recent.of_channel(1, 0)] == [5, 6, 7]
    assert recent.after(3, INDEX_END, {1}) is None
    assert recent.after(4, 0, {1}) is None, "more of group 4 than its first chunk has made room, for all that is known"
    assert recent.after(4, INDEX_END, {1}) is not None


def test_one_group_stays_whatever_its_size() -> None:
    recent = Recent(10)
    recent.add(group(1, 0, chunk(1, 1)))
    recent.add(group(2, 1, chunk(1, 2)))
    assert [number for number, _, _ in recent.of_channel(1, 0)] == [2]
