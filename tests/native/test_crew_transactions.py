"""A member that answers each job with a transaction: what it says, when, and what it takes for an answer."""

from __future__ import annotations

import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import crew_transactions
from broker_native.crew import Members
from broker_native.ledger import Verifier
from tests.native.crew_rig import crew_rig, good
from tests.native.peer_rig import PAYLOAD_BYTES, cut
from tests.native.test_crew_broker import job, jobs
from tests.reference.frames import build_frame, frames_of

PUBLISHED, PUBLISH, TRANSACTION, ACK = 17, 16, 23, 19
PUBLISHES = 3
LEASE = 1 << 40 | 1


def published(first: int, count: int, flags: int = 0) -> bytes:
    return build_frame(PUBLISHED, struct.pack("<QQQIIBB6x", first, 1, first, count, 0, 3, flags))


def taken_apart(body: bytes) -> tuple[list[tuple[int, int, bytes]], tuple[int, ...]]:
    """Return a TRANSACTION's publishes, (channel, number, payload), and the lease that it acknowledges."""
    assert struct.unpack_from("<II", body) == (PUBLISHES, 1)
    *publishes, ack = frames_of(body[8:])
    found = []
    for publish in publishes:
        assert (publish.kind, publish.flags) == (PUBLISH, 0)
        channel, count, number, size, flags, more = struct.unpack_from("<IIQIII", publish.body)
        assert (count, size, flags, more) == (1, 12 + PAYLOAD_BYTES, 0, 0)
        found.append((channel, number, publish.body[28:]))
    assert (ack.kind, ack.flags) == (ACK, 0)
    subscription, count, number, lease, leases, verb, ms = struct.unpack("<IIQQIIQ", ack.body)
    assert (subscription, count, number, leases, verb, ms) == (1, 1, 0, 1, crew_transactions.VERB, 0)
    return found, (lease,)


STREAM = jobs(LEASE, [job(0), job(1)]) + published(1, 6) + jobs(LEASE + 2, [job(2)]) + published(7, 2) + published(9, 1)


@given(places=st.lists(st.integers(0, len(STREAM)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_each_job_is_answered_with_a_transaction(places: list[int]) -> None:
    with crew_rig("broker", 3, publishes=PUBLISHES, transactions_max=2) as rig:
        done = rig.run(cut(STREAM, places))
        assert good(done), done
        assert (done.taken, done.acked, rig.members.acked_by(0)) == (3, 3, 3)
        assert rig.members.latency.count == 3
        frames = frames_of(rig.said())
        with pytest.raises(IndexError, match="got 1, there are 1"):
            rig.members.acked_by(1)
    verifier = Verifier(channels=PUBLISHES, payload_bytes=PAYLOAD_BYTES)
    for at, frame in enumerate(frames):
        assert frame.kind == TRANSACTION
        publishes, leases = taken_apart(frame.body)
        assert leases == (LEASE + at,)
        assert [part[:2] for part in publishes] == [(slot, at * PUBLISHES + slot + 1) for slot in range(PUBLISHES)]
        verifier.check_all([part[2] for part in publishes])
    for channel in range(PUBLISHES):
        verifier.expect(3, channel=channel)
    assert (verifier.taken, verifier.lost, verifier.reordered, verifier.corrupt) == (9, 0, 0, 0)


def test_what_there_is_no_room_for_waits_for_an_answer() -> None:
    with crew_rig("broker", 3, publishes=PUBLISHES) as rig:
        assert not rig.run(jobs(LEASE, [job(0), job(1), job(2)]) + published(1, 3)).finished
        assert [frame.kind for frame in frames_of(rig.said())] == [TRANSACTION, TRANSACTION]
        assert rig.members.acked_by(0) == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (published(2, 2), "another publish than the next one"),
        (published(1, 3, 1), "another publish than the next one"),
        (published(1, 4), "more than was published"),
        (published(1, 3)[:4] + published(1, 3)[4:-1], ""),
        (build_frame(PUBLISHED, bytes(39)), "not a multiple"),
    ],
)
def test_what_is_no_answer_ends_the_run(said: bytes, why: str) -> None:
    with crew_rig("broker", 2, publishes=PUBLISHES) as rig:
        done = rig.run(jobs(LEASE, [job(0)]) + said)
        assert not done.finished
        assert why in (done.failure.detail if done.failure else "")


def test_answers_to_publishes_do_not_belong_to_members_without_transactions() -> None:
    with crew_rig("broker", 1) as rig:
        done = rig.run(published(1, 3))
        assert done.failure is not None
        assert "does not belong here" in done.failure.detail


def test_more_jobs_than_a_member_can_keep() -> None:
    with crew_rig("broker", 20_000, publishes=PUBLISHES, bounded=False) as rig:
        rig.theirs[0].setblocking(True)
        frames = [jobs(LEASE + at, [job(at + each) for each in range(500)]) for at in range(0, 17_000, 500)]
        sender = threading.Thread(target=rig.theirs[0].sendall, args=(b"".join(frames),))
        sender.start()
        done = rig.members.run(patience_s=1)
        rig.ours[0].close()
        sender.join(5)
        assert done.failure is not None
        assert "16384 jobs" in done.failure.detail


@pytest.mark.parametrize(
    "options", [{"publishes": 1025}, {"publishes": 1, "protocol": "jetstream"}, {"publishes": 1, "transactions_max": 0}]
)
def test_arguments_out_of_their_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="publishes: got"):
        Members(messages=1, **options)
