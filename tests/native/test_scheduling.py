"""PUBLISH frames with AT that are decided together, against the plain twin that decides them one by one."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.delayed import Waiting, slot_for
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.scheduling import schedule_frames
from broker_native.tails import Tails
from tests.native.starve import refusals
from tests.reference import delayed as plain
from tests.reference.delayed import PlainWaiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import SearchStrategy

KEY = bytes(range(16))
S = 1_000_000
FROM_NOW = 1 << 63
NOW = 100 * S + 7
DUE_MIN, DUE_MAX = NOW + 5, NOW + 100_000 * S
CURSOR_S = 100
PUBLISH, CHANNEL, AT, EXPECT = 16, 2, 2, 1
EPHEMERAL, SYNCED = 1, 3
SLOTS = {0: (b"a", SYNCED), 1: (b"b.c", SYNCED), 2: (b"e", EPHEMERAL)}
ENTRY = struct.Struct("<QQQIIBB6x")


class Sent(NamedTuple):
    """A frame: its channel's number, ids (None for a record without), when, and what may be wrong with it."""

    slot: int
    ids: list[bytes | None]
    when: int
    shift: int = 0
    kind: int = PUBLISH
    flags: int = AT
    count_off: int = 0

    def frame(self, number: int) -> bytes:
        some = [
            struct.pack("<IHHI", 13, 0, 0, 0) + b"x" if id is None else plain.record_with_id(id, b"payload")
            for id in self.ids
        ]
        body = struct.pack("<IIQQ", self.slot, len(some) + self.count_off, number + self.shift, self.when)
        body += b"".join(some)
        return struct.pack("<IBBH", len(body), self.kind, self.flags, 0) + body

    def due_us(self) -> int:
        return max(self.when - FROM_NOW + NOW if self.when >= FROM_NOW else self.when, DUE_MIN)

    @property
    def good(self) -> bool:
        """Whether there is nothing to be said but when it is due."""
        return (
            SLOTS.get(self.slot, (b"", EPHEMERAL))[1] != EPHEMERAL
            and bool(self.ids)
            and all(self.ids)
            and self.due_us() <= DUE_MAX
            and (self.shift, self.kind, self.flags, self.count_off) == (0, PUBLISH, AT, 0)
        )


def publisher() -> Publisher:
    tails = Tails(1, 4770)
    made = Publisher(tails, Line(b"p" * 16), None, 0)
    for slot, (name, level) in SLOTS.items():
        tails.load(name, level, 2, 1 << 20)
        made.bind(slot, name)
    return made


def waiting_for() -> Waiting:
    made = Waiting(KEY, 1 << 30)
    made.finish()
    return made


def schedule(
    waiting: Waiting, to: Publisher, frames: bytes, ticket: int = 1
) -> tuple[int, int, list[tuple[int, int, bytes, int, int]], bytes]:
    return schedule_frames(waiting, to, frames, NOW, DUE_MIN, DUE_MAX, CURSOR_S, ticket)


def answers(entries: bytes) -> list[tuple[int, ...]]:
    """What is said of each number: (number, until, slot, level, flags)."""
    return [
        (number + at, until, slot, level, flags)
        for number, epoch, until, count, slot, level, flags in ENTRY.iter_unpack(entries)
        for at in range(count)
        if not epoch
    ]


class Twin:
    """One frame after the other."""

    def __init__(self) -> None:
        self.waiting = PlainWaiting()
        self.ticket = 1
        self.number = 1

    def schedule(self, frames: list[Sent]) -> tuple[int, int, dict[tuple[int, int], list[Any]], list[object]]:
        taken = messages = 0
        slots: dict[tuple[int, int], list[Any]] = {}
        said: list[object] = []
        for each in frames:
            if not each.good:
                break
            name, level = SLOTS[each.slot]
            body = plain.publish_body(
                each.slot, self.number, [plain.record_with_id(id or b"", b"payload") for id in each.ids]
            )
            records, count, entries = self.waiting.schedule(name, body, level, each.due_us(), self.ticket)
            if count:
                whole = slots.setdefault(slot_for(each.due_us(), CURSOR_S), [b"", 0, DUE_MAX])
                whole[:] = whole[0] + records, whole[1] + count, min(whole[2], each.due_us())
            said += answers(entries)
            self.ticket += count
            self.number += len(each.ids)
            messages += count
            taken += 1
        return taken, messages, slots, said


ids = st.lists(st.sampled_from([b"1", b"2", b"3", b"4", b"\xff" * 64]), min_size=1, max_size=3)
times = st.one_of(
    st.integers(0, 200).map(lambda seconds: FROM_NOW + seconds * S // 3),
    st.integers(0, 100_000).map(lambda seconds: NOW + seconds * S),
    st.sampled_from([0, FROM_NOW, DUE_MAX, FROM_NOW + DUE_MAX - NOW]),
)


def sent(
    slots: SearchStrategy[int], some: SearchStrategy[Any], when: SearchStrategy[int], **odd: Any
) -> SearchStrategy[Sent]:
    return st.tuples(slots, some, when).map(lambda parts: Sent(*parts, **odd))


good = sent(st.sampled_from([0, 1]), ids, times)
odd = st.one_of(
    sent(st.sampled_from([2, 7, (1 << 32) - 1]), ids, times),
    sent(st.just(0), st.sampled_from([[], [None], [b"1", None]]), times),
    sent(st.just(0), ids, st.sampled_from([DUE_MAX + 1, FROM_NOW - 1, (1 << 64) - 1])),
    sent(st.just(0), ids, times, shift=1),
    sent(st.just(0), ids, times, flags=EXPECT),
    sent(st.just(0), ids, times, kind=CHANNEL),
    sent(st.just(0), ids, times, count_off=1),
    sent(st.just(0), ids, times, count_off=-1),
    sent(st.just(0), ids, times, shift=-1),
    sent(st.just(0), ids, times, flags=0),
)
runs = st.tuples(st.lists(good, max_size=6), st.lists(odd, max_size=1), st.lists(good, max_size=2))


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(runs, max_size=4), cut=st.integers(0, 12))
def test_same_as_twin(steps: list[tuple[list[Sent], list[Sent], list[Sent]]], cut: int) -> None:
    waiting, to, twin = waiting_for(), publisher(), Twin()
    for parts in steps:
        frames = [each for part in parts for each in part]
        number, packed = twin.number, []
        for each in frames:
            packed.append(each.frame(number))
            number += len(each.ids)
        # What is cut off is no frame.
        tail = Sent(0, [b"cut"], NOW).frame(number)[:cut]
        ticket = twin.ticket
        taken, messages, slots, entries = schedule(waiting, to, b"".join(packed) + tail, ticket)
        assert (taken, messages, {place[:2]: list(place[2:]) for place in slots}, answers(entries)) == twin.schedule(
            frames
        )
        assert len(slots) == len({place[:2] for place in slots})
        assert len(waiting) == len(twin.waiting.waiting)
        if taken:
            to.take_elsewhere(entries)
        assert to.line.next == twin.number


def test_neighbours_share_an_answer_and_a_slot() -> None:
    waiting, to = waiting_for(), publisher()
    frames = b"".join(Sent(0, [b"%d" % at], NOW + S).frame(at + 1) for at in range(300))
    taken, messages, slots, entries = schedule(waiting, to, frames)
    assert (taken, messages, len(slots), len(entries)) == (300, 300, 1, ENTRY.size)
    assert ENTRY.unpack(entries) == (1, 0, NOW + S, 300, 0, SYNCED, plain.DELAYED)


def test_what_is_not_stored_is_taken_back() -> None:
    waiting, to = waiting_for(), publisher()
    frame = Sent(0, [b"1", b"2"], NOW + S).frame(1)
    _, messages, _, _ = schedule(waiting, to, frame)
    waiting.take_back(messages)
    assert len(waiting) == 0
    assert schedule(waiting, to, frame, 9)[1] == 2


def test_without_memory_it_is_scheduled_whole_or_not() -> None:
    made: list[Waiting] = []
    frames = b"".join(Sent(0, [b"%d" % at], NOW + at * S).frame(at + 1) for at in range(12))

    def prepare() -> Callable[[], object]:
        made.append(waiting_for())
        to = publisher()
        return lambda: schedule(made[-1], to, frames)

    assert refusals(prepare) > 2
    assert [len(waiting) for waiting in made] == [0] * (len(made) - 1) + [12]
    assert [waiting.mark for waiting in made] == [0] * (len(made) - 1) + [12]
