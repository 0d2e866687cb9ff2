"""Publishes under a condition and transactions against their plain-Python twin."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import BY_NAME
from broker_native import transactions as native
from tests.native.test_tails import SLOTS, Pair, small_records, some_records, take_step
from tests.native.test_tails import steps as other_steps
from tests.reference import transactions as twin
from tests.reference.frames import FRAME_HEADER, PUBLISH, Record, build_record, publish_body
from tests.reference.tails import DUPLICATE, LEVEL_EPHEMERAL

BYTES_MAX = 200_000
NOW_US = 1_700_000_000_000_000
SYNCED = 4
ACCEPTED = 2
EPHEMERAL = 0


def expecting_body(slot: int, number: int, head: tuple[int, int], records: list[bytes]) -> bytes:
    plain = publish_body(slot, number, records)
    return plain[:16] + struct.pack("<QQ", *head) + plain[16:]


def frame_of(body: bytes, flags: int = 0, kind: int = PUBLISH, reserved: int = 0) -> bytes:
    return FRAME_HEADER.pack(len(body), kind, flags, reserved) + body


def transaction_body(frames: list[bytes], publishes: int | None = None, acks: int = 0) -> bytes:
    return struct.pack("<II", len(frames) if publishes is None else publishes, acks) + b"".join(frames)


class Deciding(Pair):
    """The native tails and their twin, told of conditions and transactions too."""

    def __init__(self) -> None:
        super().__init__()
        self.native.transaction_bytes_max = BYTES_MAX
        self.set_now(NOW_US)

    def head(self, slot: int, off: int = 0) -> tuple[int, int]:
        """The head of a channel, or one that is `off` by some records."""
        channel = self.twin.channels[SLOTS[slot]]
        if channel.level == LEVEL_EPHEMERAL:
            return 0, 0
        epoch, sequence = twin.head_of(channel)
        return epoch, max(sequence + off, 0)

    def expect(self, who: int, body: bytes) -> int:
        got = native.decide_expecting(self.publishers[who], body)
        assert got == twin.decide_expecting(self.twins[who], body)
        self.check()
        return got[0]

    def transact(self, who: int, body: bytes) -> int:
        got = native.decide_transaction(self.publishers[who], body)
        assert got == twin.decide_transaction(self.twins[who], body, BYTES_MAX)
        self.check()
        return got[0]

    def parts(self, who: int, plan: list[tuple[int, list[Record], int | None]], number: int) -> list[bytes]:
        """PUBLISH frames that follow one another: (slot, records, how far the expected head is off, None for any)."""
        frames = []
        for slot, records, off in plan:
            built = [build_record(record) for record in records]
            if off is None:
                frames.append(frame_of(publish_body(slot, number, built)))
            else:
                frames.append(frame_of(expecting_body(slot, number, self.head(slot, off), built), twin.EXPECT))
            number += len(records)
        return frames

    def next(self, who: int) -> int:
        return self.twins[who].line.next


def test_codes_are_the_registry() -> None:
    own = {"DUPLICATE": DUPLICATE, "TURN_OPEN": twin.TURN_OPEN, "HAS_ACKS": twin.HAS_ACKS}
    assert {name: own[name] if name in own else BY_NAME[name].code for name in native.CODES} == native.CODES


# --- Against the twin ----------------------------------------------------------------------------------------------

who = st.integers(0, 2)
slots = st.sampled_from([2, 3, 4, 4, 5]) | st.integers(0, len(SLOTS) - 1)
offs = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
records = st.lists(some_records | small_records, min_size=1, max_size=2)
plans = st.lists(st.tuples(slots, records, st.none() | offs), min_size=1, max_size=5)
shifts = st.sampled_from([0, 0, 0, 0, 0, 0, -1, -3, 1])
mine = st.tuples(st.just("expect"), who, slots, records, offs, shifts) | st.tuples(
    st.just("transact"), who, plans, shifts
)
steps = st.tuples(other_steps, st.lists(mine, max_size=6)).flatmap(lambda both: st.permutations(both[0] + both[1]))


def take_mine(pair: Deciding, step: tuple[Any, ...]) -> None:
    match step:
        case "expect", publisher, slot, some, off, shift:
            number = max(pair.next(publisher) + shift, 0)
            body = expecting_body(slot, number, pair.head(slot, off), [build_record(record) for record in some])
            pair.expect(publisher, body)
        case "transact", publisher, plan, shift:
            body = transaction_body(pair.parts(publisher, plan, max(pair.next(publisher) + shift, 0)))
            if pair.transact(publisher, body) == twin.TURN_OPEN:
                pair.close_turn()
                assert pair.transact(publisher, body) == 0
        case _:
            take_step(pair, step)


@settings(max_examples=150, deadline=None)
@given(steps=steps)
def test_same_as_twin(steps: list[tuple[Any, ...]]) -> None:
    pair = Deciding()
    for step in steps:
        take_mine(pair, step)
    if pair.in_commit is not None:
        pair.commit()
    pair.check_replay()


@settings(max_examples=300, deadline=None)
@given(
    plan=plans,
    count=st.none() | st.integers(0, 6),
    acks=st.integers(0, 1),
    cut=st.none() | st.integers(0, 200),
    wrong=st.none() | st.tuples(st.integers(0, 300), st.integers(0, 255)),
    more=st.binary(max_size=3),
)
def test_what_is_no_transaction(plan: Any, count: Any, acks: int, cut: Any, wrong: Any, more: bytes) -> None:
    pair = Deciding()
    body = bytearray(transaction_body(pair.parts(0, plan, 1), count, acks)[:cut] + more)
    if wrong is not None and wrong[0] < len(body):
        body[wrong[0]] = wrong[1]
    pair.transact(0, bytes(body))


# --- One by one ----------------------------------------------------------------------------------------------------


def test_a_transaction_of_many_publishes_is_more_than_the_stack_holds() -> None:
    pair = Deciding()
    plan: list[tuple[int, list[Record], int | None]] = [(SYNCED, [Record(b"x")], None)] * 1000
    assert pair.transact(0, transaction_body(pair.parts(0, plan, 1))) == 0
    assert pair.native.info(SLOTS[SYNCED])[5] == 1001  # type: ignore[index]
    assert pair.transact(0, transaction_body(pair.parts(0, plan, 1))) == DUPLICATE
    wrong = [*plan, (EPHEMERAL, [Record(b"x")], None)]
    assert pair.transact(0, transaction_body(pair.parts(0, wrong, 1001))) == twin.NOT_STORED
    assert pair.native.info(SLOTS[SYNCED])[5] == 1001  # type: ignore[index]


def test_accepted_records_of_a_transaction_wait_for_the_commit() -> None:
    pair = Deciding()
    assert pair.publish(0, ACCEPTED, [Record(b"at once")]) == 0
    body = transaction_body(pair.parts(0, [(ACCEPTED, [Record(b"later")], 0)], 2))
    assert pair.transact(0, body) == twin.TURN_OPEN
    _, early = pair.close_turn()
    assert early is not None
    assert b"at once" in early
    assert pair.transact(0, body) == 0
    assert pair.close_turn() == (None, None)
    assert b"later" in pair.close_group()
    assert pair.publish(0, ACCEPTED, [Record(b"behind")]) == 0
    assert pair.close_turn() == (None, None)
    pair.commit()
    assert pair.native.accepted_waits is False
    pair.group()
    assert pair.publish(0, ACCEPTED, [Record(b"at once again")]) == 0
    _, early = pair.close_turn()
    assert early is not None


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_head_goes_back_with_its_group(handed_over: bool) -> None:
    pair = Deciding()
    assert pair.expect(0, expecting_body(SYNCED, 1, (0, 0), [build_record(Record(b"1"))])) == 0
    pair.close_group()
    assert pair.expect(1, expecting_body(SYNCED, 1, (0, 0), [build_record(Record(b"2"))])) == twin.CONFLICT
    pair.undo(handed_over)
    assert pair.expect(1, expecting_body(SYNCED, 1, (0, 0), [build_record(Record(b"2"))])) == 0
    pair.group(flags=1)


def test_the_head_of_an_epoch_that_has_no_record_is_the_one_before() -> None:
    """A run that went on after a crash draws a new epoch with its first record, not before."""
    pair = Deciding()
    assert pair.publish(0, SYNCED, [Record(b"1")]) == 0
    pair.group()
    head = pair.head(SYNCED)
    pair.native.mark_unclean(SLOTS[SYNCED])
    pair.twin.mark_unclean(SLOTS[SYNCED])
    assert pair.expect(0, expecting_body(SYNCED, 2, head, [build_record(Record(b"2"))])) == 0
    assert pair.head(SYNCED)[0] != head[0]
    pair.group()


def test_nothing_is_taken_where_consumers_hold_too_much() -> None:
    pair = Deciding()
    one = build_record(Record(b"x"))
    pair.refuse(SLOTS[SYNCED], True)
    assert pair.expect(0, expecting_body(SYNCED, 1, (0, 0), [one])) == BY_NAME["LIMIT"].code
    plan: list[tuple[int, list[Record], int | None]] = [
        (ACCEPTED, [Record(b"x")], None),
        (SYNCED, [Record(b"x")], None),
    ]
    assert pair.transact(0, transaction_body(pair.parts(0, plan, 1))) == BY_NAME["LIMIT"].code
    pair.refuse(SLOTS[SYNCED], False)
    assert pair.transact(0, transaction_body(pair.parts(0, plan, 1))) == 0


def test_while_the_journal_refuses_nothing_is_taken() -> None:
    pair = Deciding()
    one = build_record(Record(b"x"))
    pair.native.refuse_code = pair.twin.refuse_code = 1008
    assert pair.expect(0, expecting_body(SYNCED, 1, (0, 0), [one])) == 1008
    assert pair.transact(0, transaction_body(pair.parts(0, [(SYNCED, [Record(b"x")], None)], 1))) == 1008
    assert pair.expect(0, expecting_body(EPHEMERAL, 1, (0, 0), [one])) == twin.NOT_STORED
