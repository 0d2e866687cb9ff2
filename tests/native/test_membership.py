"""The acks of transactions against their plain-Python twin, within transactions that are decided natively."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.membership import Membership
from broker_native.transactions import CODES, decide_transaction
from tests.native.plain_jobs import ACK, ACK_ENTRY, NACK
from tests.native.test_jobs import Both, chunk_of, deliver, records
from tests.native.test_transactions import SYNCED, Deciding, frame_of
from tests.reference import membership as twin
from tests.reference.frames import Record, build_record, publish_body

HAS_ACKS = CODES["HAS_ACKS"]
FIRST = 100
WINDOW = 6
MEMBERS = ((1, 1), (2, 1), (3, 2))
"""A subscription's number, and which consumer it is a member of."""


class Told(Membership):
    """A membership that counts how often its consumer was told."""

    def __init__(self) -> None:
        self.told = 0

    def on_settled(self) -> None:
        self.told += 1
        self.waits = True
        assert self.jobs is not None
        self.jobs.noted = True


class Rig:
    """Consumers with jobs under way, and a publisher whose transactions acknowledge them."""

    def __init__(self) -> None:
        self.deciding = Deciding()
        self.consumers = {at: Both(first_lease=FIRST, seed=1, by_key=at == 2) for at in (1, 2)}
        self.members: dict[int, Membership] = {}
        self.twins: dict[int, tuple[Any, int]] = {}
        for subscription, at in MEMBERS:
            consumer, member = self.consumers[at], Told()
            consumer.join(subscription, subscription, WINDOW, 1 << 20)
            member.number, member.jobs = subscription, consumer.native
            self.members[subscription] = member
            self.twins[subscription] = consumer.twin, subscription
        for at, consumer in self.consumers.items():
            some = records(40) if at == 1 else records(40, key=b"k")
            consumer.take(deliver(chunk_of(some, 1), 1))
            for subscription, where in MEMBERS:
                if where == at:
                    consumer.grant(subscription, 0)
        self.number = 1

    def transact(self, acks: bytes, count: int) -> bool:
        """Publish a record together with acks; answers whether they held, which the twin must say too."""
        publish = frame_of(publish_body(SYNCED, self.number, [build_record(Record(b"x"))]))
        body = struct.pack("<II", 1, count) + publish + acks
        code, *_ = decide_transaction(self.deciding.publishers[0], body, False, self.members)
        bodies = twin.holding(self.twins, acks, count)
        assert code == (HAS_ACKS if bodies is None else 0)
        if bodies is not None:
            twin.take(self.twins, bodies)
            self.number += 1
        for consumer in self.consumers.values():
            assert consumer.ready >= 0
            assert consumer.leased >= 0
            assert consumer.done >= 0
        return bodies is not None

    def told(self, subscription: int) -> int:
        member = self.members[subscription]
        assert isinstance(member, Told)
        return member.told


def ack_frame(subscription: int, *entries: tuple[int, int], number: int = 0, verb: int = ACK, kind: int = 19) -> bytes:
    packed = b"".join(ACK_ENTRY.pack(first, leases, verb, bytes(3), 0) for first, leases in entries)
    return frame_of(struct.pack("<IIQ", subscription, len(entries), number) + packed, kind=kind)


def one(subscription: int, lease: int) -> bytes:
    return ack_frame(subscription, (lease, 1))


entries = st.tuples(st.integers(FIRST - 1, FIRST + 14), st.sampled_from([1, 1, 1, 1, 2, 3, 0]))
frames = st.builds(
    lambda subscription, some, number: ack_frame(subscription, *some, number=number),
    st.sampled_from([1, 2, 3, 3, 4]),
    st.lists(entries, max_size=3),
    st.sampled_from([0, 0, 0, 0, 0, 1]),
)
damages = st.none() | st.none() | st.tuples(st.integers(0, 200), st.integers(0, 255)) | st.integers(0, 90)
transactions = st.tuples(st.lists(frames, min_size=1, max_size=3), st.sampled_from([0, 0, 0, 0, 1, -1]), damages)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(transactions | st.sampled_from([1, 2]), max_size=12))
def test_same_as_twin(steps: list[Any]) -> None:
    rig = Rig()
    for step in steps:
        if isinstance(step, int):
            consumer = rig.consumers[step]
            assert consumer.changes() is not None
            for subscription, at in MEMBERS:
                if at == step:
                    consumer.grant(subscription, 0)
            continue
        some, more, damage = step
        acks = bytearray(b"".join(some))
        if isinstance(damage, tuple) and damage[0] < len(acks):
            acks[damage[0]] = damage[1]
        elif isinstance(damage, int):
            del acks[damage:]
        count = len(some) + more
        if count:
            rig.transact(bytes(acks), count)


def test_what_holds_is_done_and_told_once_a_turn() -> None:
    rig = Rig()
    assert rig.transact(one(1, FIRST) + ack_frame(2, (FIRST + 6, 2), (FIRST + 9, 1)), 2)
    assert (rig.consumers[1].done, rig.told(1), rig.told(2)) == (4, 1, 1)
    assert rig.transact(one(1, FIRST + 1), 1)
    assert (rig.consumers[1].done, rig.told(1)) == (5, 1)
    rig.consumers[1].native.noted = False
    assert rig.transact(one(1, FIRST + 2), 1)
    assert rig.told(1) == 2
    rig.members[1].waits = False
    assert rig.transact(one(1, FIRST + 3), 1)
    assert rig.told(1) == 3


def test_a_lease_that_is_named_twice_is_settled_once() -> None:
    rig = Rig()
    assert rig.transact(ack_frame(1, (FIRST, 1), (FIRST, 1)) + one(1, FIRST), 2)
    assert rig.consumers[1].done == 1
    assert not rig.transact(one(1, FIRST), 1)


def test_of_what_does_not_hold_nothing_is_taken() -> None:
    rig = Rig()
    for wrong, count in (
        (one(1, FIRST) + one(1, FIRST + 6), 2),
        (one(1, FIRST), 2),
        (one(1, FIRST) + one(1, FIRST + 1), 1),
        (one(1, FIRST) + one(4, FIRST), 2),
        (one(1, FIRST) + ack_frame(1, (FIRST + 1, 1), number=1), 2),
        (one(1, FIRST) + ack_frame(1, (FIRST + 1, 1), verb=NACK), 2),
        (one(1, FIRST) + ack_frame(1, (FIRST + 1, 1), kind=18), 2),
        (one(1, FIRST)[:-1], 1),
    ):
        assert not rig.transact(wrong, count)
        assert (rig.consumers[1].done, rig.number) == (0, 1)
    rig.members[1].jobs = None
    rig.twins[1] = None, 1
    assert not rig.transact(one(1, FIRST), 1)
    rig.members[1].jobs = rig.consumers[1].native
    rig.members[1].number = rig.twins[1][1] + 9
    assert not rig.transact(one(1, FIRST), 1)
