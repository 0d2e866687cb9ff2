"""`broker_native.delayed` against its plain twin, step by step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core import delayed as core
from broker_native.delayed import WHEEL, Waiting, envelopes_of, slot_for
from tests.native.starve import refusals
from tests.reference import delayed as plain
from tests.reference.delayed import PlainWaiting

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = bytes(range(16))
S = 1_000_000
CHANNELS = [b"a", b"b.c", b"x" * 255]
IDS = [b"1", b"2", b"3", b"\xff" * 64]
NEVER = (1 << 64) - 1


def body_of(ids: list[bytes], number: int = 1) -> bytes:
    return plain.publish_body(3, number, [plain.record_with_id(id, b"payload " + id[:4]) for id in ids])


CHANNEL = st.sampled_from(CHANNELS)
ID = st.sampled_from(IDS)
TIME = st.integers(1, 40)
STEP = st.one_of(
    st.tuples(st.just("schedule"), CHANNEL, st.lists(ID, min_size=1, max_size=4), TIME),
    st.tuples(st.just("cancel"), CHANNEL, ID),
    st.tuples(st.just("take"), TIME, st.integers(1, 900)),
    st.tuples(st.just("send"), st.booleans(), TIME),
    st.tuples(st.sampled_from(["settle", "undo", "take_back", "load", "spread"])),
)


class Both:
    """The kernel and its twin, which are told the same, and one slot in which both are stored."""

    def __init__(self) -> None:
        self.native = Waiting(KEY, 1 << 30)
        self.plain = PlainWaiting()
        self.native.finish()
        self.plain.finish()
        self.slot: list[bytes] = []
        self.ticket = 1
        self.place = (0, 0)
        self.now_us = 0
        self.settled_place = (0, 0)
        self.settled_slot = 0

    def put(self, records: bytes) -> int:
        """Store records; the sequence of the first."""
        first = len(self.slot) + 1
        self.slot += plain.split(records)
        return first

    def schedule(self, channel: bytes, ids: list[bytes], due: int) -> None:
        # Nothing is due before what was taken already.
        due_us = max(due * S, self.place[0] + 1, self.now_us + 1)
        body = body_of(ids)
        native = self.native.schedule(channel, body, plain.PUBLISH.size, 3, due_us, self.ticket)
        twin = self.plain.schedule(channel, body, 3, due_us, self.ticket)
        assert native == twin
        self.ticket += native[1]
        first = self.put(native[0])
        self.native.add(native[0], first)
        self.plain.add(native[0], first)

    def cancel(self, channel: bytes, id: bytes) -> None:
        native = self.native.cancel(channel, id)
        assert native == self.plain.cancel(channel, id)
        if native is not None:
            self.put(native[0])

    def take(self, now: int, bytes_max: int) -> None:
        if not self.native.in_hand:
            self.now_us = max(self.now_us, now * S)
            assert self.native.take(now * S, bytes_max) == self.plain.take(now * S, bytes_max)

    def send(self, refuse: bool, due: int) -> None:
        if not self.native.in_hand:
            return
        native = self.native.send()
        assert native == self.plain.send()
        self.place = native[1]
        for group in range(len(native[0]) if refuse else 0):
            due_us = max(due * S, self.place[0] + 1, self.now_us + 1)
            again = self.native.refuse(group, due_us)
            assert again == self.plain.refuse(group, due_us)
            first = self.put(again[0])
            self.native.add(again[0], first)
            self.plain.add(again[0], first)

    def settle(self) -> None:
        assert self.native.mark == self.plain.mark
        self.native.settle(self.native.mark)
        self.plain.settle(self.plain.mark)
        self.settled_place, self.settled_slot = self.place, len(self.slot)

    def undo(self) -> None:
        self.native.undo()
        self.plain.undo()
        self.place = self.settled_place
        del self.slot[self.settled_slot :]
        self.load()

    def take_back(self) -> None:
        """What could not be stored."""
        body = body_of([b"4", b"5"])
        assert self.native.schedule(b"new", body, plain.PUBLISH.size, 3, NEVER, self.ticket)[1] == 2
        self.native.take_back(2)

    def load(self) -> None:
        if self.native.in_hand or not self.slot:
            return
        self.native.forget_order()
        self.plain.order = []
        until = len(self.slot) + 1
        self.native.load(plain.chunk_of(1, self.slot), *self.place, until)
        self.plain.load(1, self.slot, self.place, until)

    def spread(self) -> None:
        after, until = len(self.slot) // 4, len(self.slot) + 1
        chunk = plain.chunk_of(1, self.slot)
        assert self.native.spread(chunk, after, until, 5) == self.plain.spread(1, self.slot, after, until, 5)

    def check(self) -> None:
        assert len(self.native) == self.native.count == len(self.plain)
        assert self.native.due_count == len(self.plain.order)
        assert self.native.in_hand == len(self.plain.hand)
        assert self.native.next_us == (self.plain.order[0][0] if self.plain.order else NEVER)
        for channel in CHANNELS:
            for id in IDS:
                assert self.native.find_waiting(channel, id) == self.plain.find_waiting(channel, id)

    def check_restart(self) -> None:
        """An index that is made of what is stored is the same, in whatever order chunks are read."""
        anew, twin = Waiting(KEY[::-1], 1 << 30), PlainWaiting()
        middle = len(self.slot) // 2
        for first, some in ((middle + 1, self.slot[middle:]), (1, self.slot[:middle]), (1, self.slot[:middle])):
            anew.note(plain.chunk_of(first, some), *self.place, NEVER)
            twin.note(first, some, self.place, NEVER)
        anew.finish()
        twin.finish()
        for channel in CHANNELS:
            for id in IDS:
                assert anew.find_waiting(channel, id) == self.native.find_waiting(channel, id)
                assert twin.find_waiting(channel, id) == self.native.find_waiting(channel, id)
        assert len(anew) == len(self.native)


@settings(max_examples=150)
@given(st.lists(STEP, max_size=40))
@example([("schedule", b"a", [b"1"], 2), ("schedule", b"a", [b"2"], 1), ("load",), ("take", 2, 1), ("send", False, 1)])
def test_it_answers_as_its_twin(steps: list[tuple[object, ...]]) -> None:
    both = Both()
    for name, *arguments in steps:
        getattr(both, str(name))(*arguments)
        both.check()
        if not both.native.in_hand:
            both.check_restart()


@given(st.integers(0, 1 << 40), st.integers(0, 380 * 86_400), st.integers(0, S - 1))
def test_slots_are_those_of_the_twin(cursor_s: int, further_s: int, us: int) -> None:
    due_us = (cursor_s + min(further_s, 366 * 86_400)) * S + us
    assert slot_for(due_us, cursor_s) == plain.slot_for(due_us, cursor_s)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("times", [1, 2])
def test_slots_at_their_bounds(level: int, off: int, times: int) -> None:
    for cursor_s in (0, 63, 64, 65, 4_095, 4_096, 1_795_451_934):
        due_s = max(cursor_s // 64**level * 64**level + times * 64**level + off, cursor_s)
        assert slot_for(due_s * S, cursor_s) == plain.slot_for(due_s * S, cursor_s)


def test_a_wheel_has_room_for_a_year_and_never_two_turns_in_a_slot() -> None:
    levels, slots = WHEEL
    assert (core.LEVELS, core.SLOTS) == (levels, slots) == (4, 128)
    for cursor_s in (1_795_451_934, 1 << 31, (1 << 31) - 1):
        for level in range(levels):
            width = 64**level
            last = max(
                s for s in range(0, 366 * 86_400 + 1, 1_000) if slot_for((cursor_s + s) * S, cursor_s)[0] == level
            )
            assert (cursor_s + last) // width - cursor_s // width < slots


def filled(count: int) -> Waiting:
    waiting = Waiting(KEY, 1 << 30)
    waiting.finish()
    for begin in range(0, count, 500):
        ids = [b"%d" % number for number in range(begin, min(begin + 500, count))]
        waiting.schedule(b"some.channel", body_of(ids), plain.PUBLISH.size, 3, 10 * S, begin + 1)
    waiting.settle(waiting.mark)
    return waiting


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 8_191, 8_192, 20_000])
def test_an_index_of_many(count: int) -> None:
    waiting = filled(count)
    assert len(waiting) == count
    assert all(waiting.find_waiting(b"some.channel", b"%d" % number) == (10 * S, number + 1) for number in range(count))
    assert waiting.find_waiting(b"some.channel", b"-1") is None
    for number in range(0, count, 2):
        assert waiting.cancel(b"some.channel", b"%d" % number) is not None
    waiting.settle(waiting.mark)
    assert len(waiting) == count // 2
    found = [waiting.find_waiting(b"some.channel", b"%d" % number) is not None for number in range(count)]
    assert found == [number % 2 == 1 for number in range(count)]


def test_an_entry_takes_little_and_is_given_back() -> None:
    waiting = filled(200_000)
    assert waiting.index_bytes / len(waiting) < 48
    for number in range(200_000):
        waiting.cancel(b"some.channel", b"%d" % number)
    waiting.settle(waiting.mark)
    assert waiting.index_bytes < 1 << 20


def test_an_order_with_a_bound_gives_up_the_latest_and_says_from_where() -> None:
    waiting = Waiting(KEY, 2_000)
    waiting.finish()
    due = [int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:2], "big") + 1 for number in range(100)]
    records = []
    for number, due_us in enumerate(due):
        stored, _, _ = waiting.schedule(b"c", body_of([b"%d" % number]), plain.PUBLISH.size, 3, due_us, number + 1)
        records.append(stored)
    chunk = plain.chunk_of(1, records)
    place, rounds = (0, 0), 0
    came: list[bytes] = []
    while len(came) < 100:
        waiting.forget_horizon()
        waiting.load(chunk, *place, 1_000)
        assert waiting.due_bytes <= 2_000
        while waiting.take(NEVER - 1, 300):
            groups, place = waiting.send()
            came += [each for _, packed, _ in groups for each in plain.split(packed)]
        rounds += 1
        assert rounds < 100
    expected = [
        record for _, record in sorted((plain.unpack(each).due_us, plain.unpack(each).record) for each in records)
    ]
    assert sorted(came) == sorted(expected)
    assert [plain.unpack(each).due_us for each in records] == due


def test_envelopes_are_told() -> None:
    waiting = Waiting(KEY, 1 << 20)
    records, _, _ = waiting.schedule(b"c.d", body_of([b"1", b"2"]), plain.PUBLISH.size, 3, 5 * S, 9)
    cancelled = waiting.cancel(b"c.d", b"2")
    assert cancelled is not None
    chunk = plain.chunk_of(4, [*plain.split(records), cancelled[0]])
    size = len(plain.record_with_id(b"1", b"payload 1"))
    assert envelopes_of(chunk, 4, 99) == [
        (5, 5 * S, 10, b"c.d", b"2", size, False, 0),
        (6, 5 * S, 10, b"c.d", b"2", 0, True, 0),
    ]
    assert [each[0] for each in envelopes_of(chunk, 0, 6)] == [4, 5]


def test_a_record_without_an_id_changes_nothing() -> None:
    waiting = Waiting(KEY, 1 << 20)
    body = plain.publish_body(0, 1, [plain.record_with_id(b"1", b""), plain.RECORD.pack(12, 0, 0, 0)])
    with pytest.raises(ValueError, match="record 1: it has no id"):
        waiting.schedule(b"c", body, plain.PUBLISH.size, 3, S, 1)
    assert len(waiting) == 0
    assert waiting.mark == 0


def test_without_memory_it_is_scheduled_whole_or_not() -> None:
    made = []

    def prepare() -> Callable[[], object]:
        made.append(Waiting(KEY, 1 << 20))
        return lambda: made[-1].schedule(b"c", body_of([b"%d" % n for n in range(12)]), plain.PUBLISH.size, 3, S, 1)

    assert refusals(prepare) > 2
    assert [len(waiting) for waiting in made] == [0] * (len(made) - 1) + [12]
    assert [waiting.mark for waiting in made] == [0] * (len(made) - 1) + [12]


@pytest.mark.parametrize("key", [b"", bytes(15), bytes(17)])
def test_a_key_has_sixteen_bytes(key: bytes) -> None:
    with pytest.raises(ValueError, match="expected 16"):
        Waiting(key, 1)


def test_names_that_are_too_long() -> None:
    waiting = Waiting(KEY, 1)
    for ask in (waiting.cancel, waiting.find_waiting):
        with pytest.raises(ValueError, match="limit 255"):
            ask(bytes(256), b"1")
