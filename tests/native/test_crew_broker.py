"""A member of a consumer in the broker's own protocol: what it takes of JOBS, and what it says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import crew_broker
from tests.native.crew_rig import crew_rig, good
from tests.native.peer_rig import cut, flipped, payload
from tests.reference.frames import Record, build_frame, build_record, frames_of

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR, PING, PONG, GOING_AWAY, EVENT = 3, 4, 5, 6, 12
ACK, JOBS, ACKED = 19, 21, 22
NAME = b"bench.s.7f.0.0"


def job(counter: int, *, name: bytes = b"", publisher: int = 0, **more: object) -> bytes:
    """Return a job as it stands in a JOBS body."""
    record = build_record(Record(payload(counter, publisher=publisher), **more))  # type: ignore[arg-type]
    flags = 2 if name else 0
    size = 40 + len(name) + len(record)
    return struct.pack("<IIQQQHBBI", size, 0, 1, counter + 1, 7, 1, flags, len(name), 0) + name + record


def jobs(lease: int, each: Iterable[bytes], *, count: int | None = None, subscription: int = 1) -> bytes:
    """Return a JOBS frame."""
    each = list(each)
    header = struct.pack("<IIQQQ", subscription, len(each) if count is None else count, lease, 30_000, 0)
    return build_frame(JOBS, header + b"".join(each))


def acked(number: int) -> bytes:
    return build_frame(ACKED, struct.pack("<IIQ", 1, 0, number))


def acks(said: bytes) -> list[tuple[int, ...]]:
    """Return (number, first lease, leases) of the ACKs of a member, which have one entry each."""
    found: list[tuple[int, ...]] = []
    for frame in frames_of(said):
        assert (frame.kind, frame.flags, len(frame.body)) == (ACK, 0, 40)
        subscription, count, number, lease, leases, verb, ms = struct.unpack("<IIQQIIQ", frame.body)
        assert (subscription, count, verb, ms) == (1, 1, crew_broker.VERB, 0)
        found.append((number, lease, leases))
    return found


STREAM = (
    jobs(1 << 40 | 1, [job(0, name=NAME), job(2, key=b"k"), job(1, priority=2, headers=b"\x80")])
    + build_frame(PING, b"12345678")
    + jobs(1 << 40 | 4, [job(3)])
    + acked(1)
    + build_frame(EVENT, b"\x80")
    + build_frame(PONG, bytes(8))
    + acked(2)
)


@given(places=st.lists(st.integers(0, len(STREAM)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_all_is_taken_however_it_was_cut(places: list[int]) -> None:
    with crew_rig("broker", 4) as rig:
        done = rig.run(cut(STREAM, places))
        assert good(done), done
        assert (done.taken, done.acked, done.events) == (4, 4, 1)
        frames = frames_of(rig.said())
    assert [frame.kind for frame in frames] == [ACK, PONG, ACK]
    assert acks(b"".join(build_frame(ACK, frame.body) for frame in frames if frame.kind == ACK)) == [
        (1, 1 << 40 | 1, 3),
        (2, 1 << 40 | 4, 1),
    ]
    assert frames[1].body == b"12345678"


def test_each_member_has_numbers_of_its_own() -> None:
    with crew_rig("broker", 3, seats=[{}, {}]) as rig:
        done = rig.run([jobs(1, [job(0)]), jobs(3, [job(2)]), acked(2)], [jobs(2, [job(1)]), acked(1)])
        assert good(done), done
        assert acks(rig.said(0)) == [(1, 1, 1), (2, 3, 1)]
        assert acks(rig.said(1)) == [(1, 2, 1)]
        assert rig.members.latency.count == 3


def test_what_waits_for_its_answer_is_not_done() -> None:
    with crew_rig("broker", 2) as rig:
        done = rig.run(jobs(1, [job(0)]) + jobs(2, [job(1)]) + acked(1))
    assert (done.finished, done.taken, done.acked, done.lost) == (False, 2, 1, 0)


def test_what_never_comes_comes_twice_or_is_changed_is_seen() -> None:
    twice = jobs(1, [job(0), job(0), job(2)]) + acked(1)
    with crew_rig("broker", 4) as rig:
        done = rig.run(twice)
    assert (done.finished, done.lost, done.duplicated, done.corrupt) == (False, 2, 1, 0)
    changed = jobs(
        1, [flipped(job(0), len(job(0)) - 1), flipped(job(1), 40 + 12), job(9), job(2, publisher=1)]
    ) + acked(1)
    with crew_rig("broker", 4) as rig:
        done = rig.run(changed)
    assert (done.lost, done.duplicated, done.corrupt) == (4, 0, 4)
    with crew_rig("broker", 2, keys=2, payload_bytes=128) as rig:
        assert rig.run(jobs(1, [job(0), job(1)]) + acked(1)).corrupt == 2, "of another size, and smaller than a payload"


def test_keys_go_on_only_in_order_and_when_theirs_is_acknowledged() -> None:
    """Key 0 has messages 0 and 2, key 1 has 1 and 3."""
    with crew_rig("broker", 4, keys=2) as rig:
        done = rig.run(jobs(1, [job(1), job(0)]) + jobs(3, [job(2)]) + jobs(4, [job(3)]) + acked(3))
        assert good(done), done
    for overtaking in ([[0, 2], [1], [3]], [[2], [0], [1], [3]], [[0], [3], [2], [1]]):
        with crew_rig("broker", 4, keys=2) as rig:
            frames = [jobs(1 + at, map(job, each)) for at, each in enumerate(overtaking)]
            done = rig.run(b"".join(frames) + acked(len(frames)))
        assert done.overtaken >= 1, overtaking
        assert done.finished


def test_publishers_have_counters_of_their_own() -> None:
    with crew_rig("broker", 5, publishers=2, keys=1) as rig:
        frames = [jobs(1 + at, [job(at // 2, publisher=at % 2)]) for at in range(5)]
        assert good(rig.run(b"".join(frames) + acked(5)))


LEGAL = jobs(1, [job(0), job(1)])

FAULTS = {
    "no header": build_frame(JOBS, bytes(31)),
    "another subscription": jobs(1, [job(0)], subscription=2),
    "no jobs": jobs(1, []),
    "more jobs than it says": jobs(1, [job(0), job(1)], count=1),
    "fewer jobs than it says": jobs(1, [job(0)], count=2),
    "a reserved field": LEGAL[:32] + b"\1" + LEGAL[33:],
    "a job past the end": LEGAL[:40] + struct.pack("<I", 1000) + LEGAL[44:],
    "a job smaller than its header": LEGAL[:40] + struct.pack("<I", 39) + LEGAL[44:],
    "a record past its job": LEGAL[:80] + struct.pack("<I", 500) + LEGAL[84:],
    "a name past its job": LEGAL[:74] + b"\2\xff" + LEGAL[76:],
    "flags that nobody knows": LEGAL[:85] + b"\x40" + LEGAL[86:],
    "a record that was taken out": LEGAL[:85] + b"\x80" + LEGAL[86:],
    "an answer of another size": LEGAL + build_frame(ACKED, struct.pack("<IIQQ", 1, 0, 1, 0)),
    "a ping of another size": build_frame(PING, bytes(9)),
    "fields past the record": LEGAL[:84] + b"\x10" + LEGAL[85:92] + b"\xff\xff" + LEGAL[94:],
    "an answer to nothing": acked(1),
    "an answer twice": LEGAL + acked(1) + acked(1),
    "an answer of another subscription": LEGAL + build_frame(ACKED, struct.pack("<IIQ", 2, 0, 1)),
    "a delivery": build_frame(18, bytes(100)),
    "a frame that is too large": struct.pack("<II", 1 << 22, JOBS),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_breaks_the_protocol_ends_the_run(fault: str) -> None:
    with crew_rig("broker", 3) as rig:
        done = rig.run(FAULTS[fault], patience_s=5)
    assert done.failure is not None
    assert done.failure.reason == "protocol"


@pytest.mark.parametrize(("kind", "reason"), [(ERROR, "error"), (GOING_AWAY, "going_away")])
def test_what_the_broker_says_last_is_handed_back(kind: int, reason: str) -> None:
    with crew_rig("broker", 3) as rig:
        done = rig.run(build_frame(kind, b"\x80"))
    assert done.failure is not None
    assert (done.failure.reason, done.failure.body) == (reason, b"\x80")
