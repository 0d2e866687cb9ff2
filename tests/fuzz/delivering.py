"""Targets of delivery: what members say of jobs and are sent, transactions, and what states are made of.

A refusal is a `ValueError` or a `BrokerError`; anything else is a find, and so is a native class that says something
else than its plain-Python twin, or a state that is another one after it was stored and restored.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from broker.core.states import latest
from broker.model.consumers import BACK_OFF, Settle, Verdict
from broker.model.errors import BrokerError, error
from broker.wire import consuming
from broker.wire.kinds import Kind
from broker_native import index
from broker_native.ids import Ids
from broker_native.jobs import Jobs
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails
from broker_native.transactions import decide_expecting, decide_transaction, judge_transaction
from broker_native.work import Settling
from tests.fuzz import seeds
from tests.native.plain_jobs import PlainJobs
from tests.reference import groups
from tests.reference.frames import FRAME_HEADER, PUBLISH, Record, build_frame
from tests.reference.jobs import Told, build_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_native.work import JobBatch
    from tests.fuzz.decoders import Seen

    Execute = Callable[[memoryview], None]

PLAN_BYTES = 8
S = 1_000_000
NOW_US = 1_700_000_000 * S
PAYLOAD_BYTES_MAX = 1_000

# -- what a member says ------------------------------------------------------------------------------------------------

JOBS = 12
LEASES_MAX = 500


def delivery() -> bytes:
    """Return the DELIVER that gives jobs: of several keys and priorities, and one of no message."""
    records = [Record(b"%d" % at, key=b"k%d" % (at % 5), priority=at % 4) for at in range(JOBS)]
    return seeds.deliver(1, seeds.chunk_of(1, *records[:6], Record(gone=(1, 2)), *records[6:]), name=b"s.jobs")


DELIVERY = delivery()


def is_exclusive(state: int) -> bool:
    """Whether the plan says that one member has them all."""
    return state & 7 == 4


def new_jobs(kind: Callable[..., Any], state: int, first_lease: int = 1) -> Any:
    """Return jobs of which the plan says how they are handed out."""
    return kind(
        lanes=bool(state & 1),
        by_key=bool(state & 2),
        exclusive=is_exclusive(state),
        by_position=bool(state & 8),
        attempts_max=2 if state & 16 else 0,
        lease_ms=1_000,
        backoff_first_ms=100,
        backoff_longest_ms=1_000,
        first_lease=first_lease,
        seed=7,
    )


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call answers, or the words of its refusal."""
    try:
        return function(*arguments)
    except ValueError as refused:
        return str(refused)


def settle(seen: Seen) -> Execute:
    """An ACK, of one of two members, while leases are new or over; the twin is told the same."""

    def execute(data: memoryview) -> None:
        state, body = data[5], bytes(data[PLAN_BYTES:])
        told = []
        leases = sum(struct.unpack_from("<I", body, at)[0] for at in range(24, len(body) - 3, 24))
        # The twin takes them one by one.
        for kind in (Jobs, PlainJobs) if leases <= LEASES_MAX else (Jobs, Jobs):
            jobs = new_jobs(kind, state)
            jobs.take(DELIVERY)
            members = (1,) if is_exclusive(state) else (1, 2)
            for member in members:
                jobs.join(member, 5, 4, 1 << 20)
            granted = [jobs.grant(member, NOW_US) for member in members]
            now_us = NOW_US + (2 * S if state & 32 else 0)
            said = [outcome(jobs.refusal, 1, body), outcome(jobs.settle, 1, body, now_us), jobs.expire(now_us)]
            again = [jobs.grant(member, now_us + S) for member in reversed(members)]
            counts = (jobs.ready, jobs.leased, jobs.delayed, jobs.doomed, jobs.floor, jobs.next_us())
            told.append((granted, said, again, counts, jobs.dead(), jobs.changes(), jobs.snapshot()))
        for got, expected in zip(*told, strict=True):
            if got != expected:
                raise AssertionError(f"told {got!r}, expected {expected!r}")
        said = told[0][1]
        seen.text("settle", said[1] if isinstance(said[1], str) else [code for code, _, _ in said[1]], said[0] is None)

    return execute


def settle_seeds() -> list[bytes]:
    """ACKs of leases 1 to 8, of which the first four are the member's."""
    acks = [
        [Settle(1, 1, Verdict.ACK)],
        [Settle(1, 4, Verdict.ACK)],
        [Settle(2, 1, Verdict.NACK, 50), Settle(1, 1, Verdict.NACK, BACK_OFF), Settle(3, 1, Verdict.REJECT)],
        [Settle(1, 2, Verdict.EXTEND, 5_000), Settle(3, 1, Verdict.EXTEND), Settle(4, 1, Verdict.NACK, 1 << 60)],
        [Settle(3, 1, Verdict.ACK_THROUGH)],
        [Settle(1, 8, Verdict.ACK), Settle(1, 1, Verdict.ACK)],
        [Settle((1 << 64) - 1, 1, Verdict.ACK), Settle(0, 1, Verdict.REJECT)],
    ]
    return [
        seeds.plan(seed=at, state=state) + consuming.encode_ack(5, 1, ack)[FRAME_HEADER.size :]
        for at, ack in enumerate(acks)
        for state in (0, 1, 2, 4, 8, 18, 32, 51)
    ]


# -- what is stored of it ----------------------------------------------------------------------------------------------


def payloads_of(data: bytes) -> list[bytes]:
    """Return the records of a state channel: each behind its size."""
    found, at = [], 0
    while len(data) - at >= 2:
        end = at + 2 + int.from_bytes(data[at : at + 2], "little")
        found.append(data[at + 2 : end])
        at = end
    return found


def state(seen: Seen) -> Execute:
    """The records of a consumer's state channel. What can be restored is the same when it is stored again."""

    def execute(data: memoryview) -> None:
        snapshot, changes, size = latest(payloads_of(bytes(data[PLAN_BYTES:])))
        if size != sum(map(len, changes)):
            raise AssertionError(f"{len(changes)} changes are {size} bytes")
        jobs = new_jobs(Jobs, data[5])
        try:
            jobs.restore([snapshot, *changes])
        except ValueError as refused:
            seen.text(refused)
            return
        whole = jobs.snapshot()
        again = new_jobs(Jobs, data[5])
        again.restore([whole])
        if again.snapshot() != whole:
            raise AssertionError(f"{whole!r} is {again.snapshot()!r} when it is restored")
        for one in (jobs, again):
            one.take(DELIVERY)
            one.join(1, 5, 100, 1 << 20)
        shown = [(one.grant(1, NOW_US), one.ready, one.delayed, one.floor, one.changes()) for one in (jobs, again)]
        if shown[0] != shown[1]:
            raise AssertionError(f"{shown[0]} is {shown[1]} when it is restored")
        seen.text("restored", len(whole) // 48)

    return execute


def state_seeds() -> list[bytes]:
    """What is stored of jobs of which some are done, some have failed, and some were never given out."""
    found = []
    for plan in (0, 2, 4, 8, 10):
        jobs = new_jobs(Jobs, plan)
        empty = jobs.snapshot()
        jobs.take(DELIVERY)
        jobs.join(1, 5, 6, 1 << 20)
        jobs.grant(1, NOW_US)
        changes = []
        for entries in ([Settle(2, 2, Verdict.ACK)], [Settle(1, 1, Verdict.NACK, 5_000)], [Settle(6, 1, Verdict.ACK)]):
            jobs.settle(1, consuming.encode_ack(5, 1, entries)[FRAME_HEADER.size :], NOW_US)
            changes.append(b"\0" + jobs.changes())
        whole = jobs.snapshot()
        parts = [b"\1" + whole[:40], b"\2" + whole[40:]]
        for records in ([b"\1" + empty, *changes], changes, [b"\1" + whole], [*changes, *parts]):
            packed = b"".join(len(record).to_bytes(2, "little") + record for record in records)
            found.append(seeds.plan(state=plan) + packed)
    return found


# -- what a member is sent ---------------------------------------------------------------------------------------------

KINDS_SAID = (Verdict.ACK, Verdict.NACK, Verdict.REJECT, Verdict.EXTEND)


def member(seen: Seen) -> Execute:
    """A hostile server's JOBS, ACKED and refusals; frames of other kinds have the application say something."""

    def execute(data: memoryview) -> None:
        settling = Settling(None, int, error, 100)
        settling.begin(7)
        names: list[str] = []
        batches: list[JobBatch] = []
        for kind, flags, body in whole_frames(bytes(data[PLAN_BYTES:])):
            try:
                if kind == Kind.JOBS:
                    batches.append(settling.receive(body, names, settling.say))
                elif kind == Kind.ACKED:
                    settling.on_acked(body)
                elif kind == Kind.ERROR and len(body) >= 24:
                    number, lease, leases = struct.unpack_from("<QQQ", body)
                    settling.refuse(number, lease, leases, BrokerError(3029, "why", ""))
                elif batches:
                    say(settling, batches[flags % len(batches)], kind, flags)
            except BrokerError as refused:
                seen.text(refused.name, refused.detail)
        settling.take()
        waiting = settling.begin(0)
        if settling.awaited or any(settlement.answered for settlement in waiting):
            raise AssertionError("what is to be said again was answered")
        for settlement in waiting:
            for run in settlement.runs:
                seen.text("run", sum(count for _, _, _, count in run.places()) == run.count)

    return execute


def whole_frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return (kind, flags, body) of the whole frames at the beginning of some bytes."""
    found, at = [], 0
    while len(data) - at >= FRAME_HEADER.size:
        size, kind, flags, _ = FRAME_HEADER.unpack_from(data, at)
        end = at + FRAME_HEADER.size + size
        if end > len(data):
            break
        found.append((kind, flags, data[at + FRAME_HEADER.size : end]))
        at = end
    return found


def say(settling: Settling, batch: JobBatch, kind: int, flags: int) -> None:
    """Have the application say something of a batch's jobs, and now and then have it sent."""
    jobs = list(batch)
    job = jobs[flags % len(jobs)]
    match kind % 8:
        case 0:
            settling.through(job)
        case 1:
            settling.frame_of([job])
        case 2:
            batch.ack()
        case 3:
            settling.begin(7)
        case verdict:
            settling.say(batch, job.index, 1 + flags % (len(jobs) - job.index), KINDS_SAID[verdict & 3], flags)
    if flags & 64:
        settling.take()


def member_seeds() -> list[bytes]:
    """Two frames of jobs, what is said of them, and how that is answered."""
    first = build_jobs(7, 1 << 40, 5_000, [Told(b"a.x", 0, 1, at, Record(b"%d" % at)) for at in (1,)])
    more = [Told(None, 0, 1, at, Record(b"%d" % at, key=b"k")) for at in (2, 3, 4)]
    second = build_jobs(7, (1 << 40) + 1, 5_000, more)
    jobs = build_frame(Kind.JOBS, first) + build_frame(Kind.JOBS, second)
    acked = [consuming.encode_acked(7, number) for number in (1, 2)]
    refused = build_frame(Kind.ERROR, struct.pack("<QQQ", 1, 1 << 40, 2))
    said = [build_frame(kind, b"", flags) for kind in (8, 9, 10, 12, 13, 14, 15) for flags in (0, 64, 65)]
    return [
        seeds.plan() + jobs + b"".join(said[at : at + 3]) + answer
        for at in range(0, len(said), 3)
        for answer in (acked[0], refused + acked[0], acked[0] + said[-1] + acked[1], said[3])
    ]


# -- all or nothing ----------------------------------------------------------------------------------------------------


def transaction(seen: Seen) -> Execute:
    """The frames of a transaction; the plan says whether its counts are true. It is taken whole or not at all."""

    def execute(data: memoryview) -> None:
        state, frames = data[5], bytes(data[PLAN_BYTES:])
        tails = Tails(1, 4770)
        tails.now_us = NOW_US
        tails.begin_run(1, 1)
        tails.transaction_bytes_max = 1_500
        tails.set_ids(0, 120, 100)
        line = Line(b"p" * 16)
        publisher = Publisher(tails, line, None, 300)
        for slot, (name, level) in enumerate(((b"s.x", 3), (b"e.x", 1), (b"a.x", 2), (b"s.y", 3))):
            tails.load(name, level, 2, PAYLOAD_BYTES_MAX)
            publisher.bind(slot, name)
        kinds = [kind for kind, _, _ in whole_frames(frames)]
        publishes = next((at for at, kind in enumerate(kinds) if kind != PUBLISH), len(kinds))
        counts = (data[6], data[7]) if state & 1 else (publishes, len(kinds) - publishes)
        body = struct.pack("<II", *counts) + frames
        judged, end = judge_transaction(publisher, body)
        before, number = tails.records, line.next
        decided = decide_transaction(publisher, body, True)
        if decided[0] == 0 and not 8 < end <= len(body):
            raise AssertionError(f"a transaction of {len(body)} bytes is taken, its publishes end at {end}")
        if (judged[0] == 0) != (decided[0] == 0):
            raise AssertionError(f"judged {judged}, decided {decided}")
        if decided[0] and (tails.records != before or line.next != number):
            raise AssertionError(f"{decided} is refused and taken")
        if decided[0] == 0 and line.next != number + decided[2]:
            raise AssertionError(f"{decided} took the line from {number} to {line.next}")
        for _, _, publish in whole_frames(frames)[:1]:
            seen.text("expect", decide_expecting(publisher, publish)[0])
        seen.text("transaction", *decided[:1])
        tails.close_turn()
        value, _ = tails.close_group(0, 0, 1, 1, NOW_US)
        index.check_group(value)

    return execute


def transaction_seeds() -> list[bytes]:
    """Frames of publishes, some with ids, under conditions, and of ACKs behind them."""

    plain = [
        seeds.publish(0, 1, Record(b"one")),
        seeds.publish(3, 2, Record(b"two", id=b"id"), Record(b"three", id=b"other")),
        seeds.publish(2, 4, Record(b"four", key=b"k", headers=seeds.HEADERS)),
    ]
    acks = consuming.encode_ack(1, 0, [Settle(1, 2, Verdict.ACK)])
    frames = [
        plain[:1],
        plain,
        [seeds.expecting(0, 1, (0, 0), Record(b"new")), plain[1], acks],
        [seeds.expecting(0, 1, (1, 1), Record(b"conflict"))],
        [*plain[:2], seeds.publish(0, 4, Record(b"x" * 900)), acks, acks],
        [seeds.publish(1, 1, Record(b"ephemeral")), plain[1]],
        [plain[0], plain[0]],
        [acks],
    ]
    return [
        seeds.plan(state=state, more=more) + b"".join(some)
        for some in frames
        for state, more in ((0, 0), (1, 1), (1, 0x0102))
    ]


# -- ids that are read back --------------------------------------------------------------------------------------------


def ids(seen: Seen) -> Execute:
    """A chunk whose checksum vouches for records that are none: all ids of a part of it are taken, or none is said."""

    def execute(data: memoryview) -> None:
        chunk = bytearray(data[PLAN_BYTES:])
        if len(chunk) >= 4 and data[5] & 1:
            struct.pack_into("<I", chunk, 0, len(chunk))
        found = Ids(7)
        begin = data[6]
        try:
            found.take(bytes(chunk), begin, begin + 1 + data[7])
        except ValueError as refused:
            seen.text(refused)
            return
        if len(found) > 1 + data[7]:
            raise AssertionError(f"{len(found)} ids of {1 + data[7]} sequences")
        for id in (b"id", b"other", b"x" * 64):
            if (at := found.find(id)) and not begin <= at <= begin + data[7]:
                raise AssertionError(f"{id!r} is at {at}, which is none of those from {begin} to {begin + data[7]}")
        seen.text("ids", "x" * len(found))
        found.expire((1 << 32) - 1, 1 << 63)

    return execute


def ids_seeds() -> list[bytes]:
    """Chunks with ids."""
    records = [
        Record(b"one", id=b"id"),
        Record(b"two"),
        Record(gone=(1, 3)),
        Record(b"three", id=b"other", key=b"k", headers=seeds.HEADERS, priority=1, expiry_s=9, time_us=5),
        Record(b"four", publisher=b"me", number=4, id=b"x" * 64),
        Record(b"again", id=b"id"),
    ]
    chunks = [groups.build_chunk(seeds.chunk_of(1, *some)) for some in (records, records[:1], records[2:4])]
    return [
        seeds.plan(state=state, more=more) + chunk for chunk in chunks for state in (0, 1) for more in (0xFF00, 0x0203)
    ]
