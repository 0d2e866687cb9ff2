"""What a member reads and says, against plain Python: frames with damage, runs, answers, and what is said again."""

from __future__ import annotations

import asyncio
import gc
import struct
import weakref
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import BrokerError, MalformedFrame, error
from broker_native.work import Job, JobBatch, JobCursor, Settled, Settling
from tests.reference import frames
from tests.reference import jobs as twin
from tests.reference.frames import Record
from tests.reference.jobs import Told

ACK, NACK, REJECT, EXTEND, ACK_THROUGH = range(1, 6)
BY_BACK_OFF = 2**64 - 1

records = st.builds(
    Record,
    payload=st.binary(max_size=40),
    publisher=st.none() | st.just(b"someone"),
    priority=st.none() | st.sampled_from([0, 1, 3]),
    expiry_s=st.none() | st.integers(1, 2**32 - 1),
    key=st.none() | st.binary(min_size=1, max_size=20),
    headers=st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 99), min_size=1).map(msgpack.packb),
)


@st.composite
def told_jobs(draw: st.DrawFn) -> list[Told]:
    """Draw the jobs of one frame, over a few channels, each named when it comes first."""
    told: list[Told] = []
    known: list[bytes] = []
    for _ in range(draw(st.integers(1, 12))):
        channel = draw(st.integers(0, min(len(known), 3)))
        name = None
        if channel == len(known):
            name = b"room.%d" % channel
            known.append(name)
        told.append(
            Told(
                name,
                channel,
                draw(st.integers(1, 3)),
                draw(st.integers(1, 2**64 - 2)),
                draw(records),
                draw(st.integers(0, 2**63)),
                draw(st.integers(1, 2**16 - 1)),
                draw(st.booleans()),
            )
        )
    return told


class Member:
    """A settling side, and what it was asked to send."""

    def __init__(self, window: int = 100) -> None:
        self.kicks = 0
        self.names: list[str] = []
        self.settling = Settling(None, self.kick, error, window)
        self.settling.begin(7)
        self.lease = 100

    def kick(self) -> None:
        self.kicks += 1

    def receive(self, told: list[Told]) -> JobBatch:
        body = twin.build_jobs(7, self.lease, 5000, told)
        self.lease += len(told)
        return self.settling.receive(body, self.names, self.settling.say)

    def plain(self, count: int, first: int = 1) -> JobBatch:
        """Receive plain jobs of one channel."""
        name = b"c" if not self.names else None
        return self.receive(
            [Told(name if at == 0 else None, 0, 1, first + at, Record(b"%d" % at)) for at in range(count)]
        )

    def taken(self) -> list[tuple[int, list[tuple[int, int, int, int]]]]:
        """Return the number and the entries of each ACK that is to be sent."""
        said, found = self.settling.take() or b"", []
        while said:
            size, kind, flags, reserved = frames.FRAME_HEADER.unpack_from(said)
            assert (kind, flags, reserved) == (19, 0, 0)
            subscription, number, entries = twin.parse_ack(said[8 : 8 + size])
            assert subscription == 7
            found.append((number, entries))
            said = said[8 + size :]
        return found

    def acked(self, number: int) -> None:
        self.settling.on_acked(struct.pack("<IIQ", 7, 0, number))


class Alarm:
    """What waits for an answer."""

    def __init__(self) -> None:
        self.rung = False

    def done(self) -> bool:
        return self.rung

    def set_result(self, _: object) -> None:
        self.rung = True


# -- what is read ------------------------------------------------------------------------------------------------------


@given(told_jobs())
def test_a_batch_says_what_its_frame_says(told: list[Told]) -> None:
    member = Member()
    batch = member.receive(told)
    names = {job.channel: job.name.decode() for job in told if job.name is not None}
    assert (len(batch), batch.subscription, batch.first_lease, batch.lease_ms) == (len(told), 7, 100, 5000)
    assert batch.payloads() == [job.record.payload for job in told]
    for index, (job, wanted) in enumerate(zip(batch, told, strict=True)):
        record = wanted.record
        assert (job.channel, job.epoch, job.sequence) == (names[wanted.channel], wanted.epoch, wanted.sequence)
        assert (job.time, job.attempt, job.redelivered) == (wanted.time_us, wanted.attempt, wanted.redelivered)
        assert (job.payload, job.key, job.expiry_s) == (record.payload, record.key, record.expiry_s)
        assert job.priority == (2 if record.priority is None else record.priority)
        assert job.publisher == (None if record.publisher is None else "someone")
        assert job.headers == ({} if record.headers is None else msgpack.unpackb(record.headers))
        assert (job.lease, job.index, job.settled, job.batch) == (100 + index, index, False, batch)
    places = [(names[job.channel], job.epoch, job.sequence + at) for job in told for at in range(1)]
    runs = batch.places(0, len(told))
    assert [(channel, epoch, first + at) for channel, epoch, first, count in runs for at in range(count)] == places
    cut = len(told) // 2
    assert sum(run[3] for run in batch.places(cut, len(told) - cut)) == len(told) - cut


@given(told_jobs(), st.data())
@settings(max_examples=300)
def test_a_damaged_frame_is_refused_or_read(told: list[Told], data: st.DataObject) -> None:
    """Whatever a byte is changed to: an error, or a batch all of which can be read."""
    body = bytearray(twin.build_jobs(7, 1, 0, told))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    settling = Settling(None, int, error, 10)
    settling.begin(7)
    try:
        batch = settling.receive(bytes(body[:cut]), [], settling.say)
    except MalformedFrame:
        return
    for job in batch:
        assert job.channel is not None
        assert job.payload is not None
        assert (job.key, job.priority, job.publisher, job.expiry_s) is not None


def test_what_is_no_frame_of_jobs_is_refused() -> None:
    good = Told(b"c", 0, 1, 1, Record(b"x"))
    header = twin.JOBS_HEADER
    for body in (
        b"",
        header.pack(7, 0, 1, 0, 0),
        header.pack(7, 1, 1, 0, 0),
        header.pack(7, 1, 1, 0, 1) + twin.build_job(good),
        header.pack(7, 2**32 - 1, 1, 0, 0) + twin.build_job(good),
        header.pack(7, 1, 1, 0, 0) + twin.build_job(good) + b"\0",
        twin.build_jobs(7, 1, 0, [good._replace(name=None)]),
        twin.build_jobs(7, 1, 0, [good._replace(channel=1)]),
        twin.build_jobs(7, 1, 0, [good._replace(name=b"\xff")]),
        twin.build_jobs(7, 1, 0, [good._replace(name=b"")]),
        twin.build_jobs(7, 1, 0, [good._replace(attempt=0)]),
        twin.build_jobs(7, 1, 0, [good._replace(record=Record(gone=(1, 5)))]),
        twin.build_jobs(7, 1, 0, [good, good]),
    ):
        with pytest.raises(MalformedFrame):
            Settling(None, int, error, 10).receive(body, [], print)


def test_jobs_keep_their_frame_and_nothing_else() -> None:
    member = Member()
    job = list(member.plain(3))[2]
    gone = weakref.ref(member)
    del member
    gc.collect()
    assert job.payload is job.payload
    assert job.payload == b"2"
    assert gone() is not None  # the batch settles through it
    job.ack()
    del job
    gc.collect()
    assert gone() is None


def test_the_cursor_hands_each_job_out_once() -> None:
    member, cursor = Member(), JobCursor(None)
    for first, count in ((1, 3), (4, 1), (5, 4)):
        cursor.push(member.plain(count, first))
    assert cursor.queued == 8
    assert cursor.take_now(False).sequence == 1
    assert [(index, count) for _, index, count in cursor.waiting()] == [(1, 2), (0, 1), (0, 4)]
    rest = cursor.take_now(True)
    assert [job.sequence for job in rest] == [2, 3]
    assert [job.lease for job in rest] == [101, 102]
    assert (rest.begin, cursor.queued, cursor.taken) == (1, 5, 3)
    assert [job.sequence for job in cursor.take_now(True)] == [4]
    assert cursor.take_now(False).sequence == 5
    cursor.clear()
    assert cursor.take_now(False) is cursor.take_now(True) is None
    alarm = Alarm()
    cursor.add_waiter(alarm)
    cursor.push(member.plain(1))
    assert alarm.rung
    cursor.end(ValueError("over"))
    cursor.end()
    assert cursor.ended
    assert cursor.take_now(False) is None


async def test_streams_wait_and_end() -> None:
    member, cursor = Member(), JobCursor(asyncio.get_running_loop())
    jobs, batches = cursor.jobs(), cursor.batches()
    waiting = asyncio.ensure_future(anext(jobs))
    await asyncio.sleep(0)
    cursor.push(member.plain(2500))
    assert (await waiting).sequence == 1
    seen = 1
    while seen < 2000:
        assert (await anext(jobs)).sequence == seen + 1
        seen += 1
    assert len(await anext(batches)) == 500
    cursor.end(error("CONSUMER_TAKEN", "x"))
    with pytest.raises(BrokerError, match="CONSUMER_TAKEN"):
        await anext(jobs)
    other = JobCursor(asyncio.get_running_loop())
    other.end()
    assert [job async for job in other.jobs()] == []


# -- what is said ------------------------------------------------------------------------------------------------------


def test_neighbours_leave_as_one_entry() -> None:
    member = Member()
    first, second = member.plain(3), member.plain(2, 4)
    for job in first:
        job.ack()
    one, two = second
    one.ack()
    two.nack(0.001)
    assert member.kicks == 1
    assert member.taken() == [(1, [(100, 4, ACK, 0), (104, 1, NACK, 1)])]
    assert member.taken() == []
    assert member.settling.unanswered
    assert member.settling.awaited
    member.acked(1)
    assert not member.settling.unanswered


@given(
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from([ACK, NACK, REJECT, EXTEND]), st.booleans()), max_size=40)
)
def test_what_is_said_is_what_is_sent(said: list[tuple[int, int, bool]]) -> None:
    """Each lease is settled once, and extended as often as one likes, whatever the order and the turns."""
    member = Member()
    jobs: list[Job] = [job for count, first in ((8, 1), (12, 9)) for job in member.plain(count, first)]
    verbs: dict[int, Any] = {ACK: Job.ack, NACK: Job.nack, REJECT: Job.reject, EXTEND: Job.extend}
    expected: list[tuple[int, int]] = []
    sent: list[tuple[int, int]] = []
    done: set[int] = set()
    numbers = []

    def turn() -> None:
        for number, entries in member.taken():
            numbers.append(number)
            for first, count, verb, ms in entries:
                assert ms == (BY_BACK_OFF if verb == NACK else 0)
                sent.extend((lease, verb) for lease in range(first, first + count))

    for index, verb, ends in said:
        if index in done:
            with pytest.raises(BrokerError, match="LEASE_UNKNOWN"):
                verbs[verb](jobs[index])
            continue
        verbs[verb](jobs[index])
        expected.append((100 + index, verb))
        if verb != EXTEND:
            done.add(index)
        assert jobs[index].settled == (verb != EXTEND)
        if ends:
            turn()
    turn()
    assert sent == expected
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_batch_passes_over_what_was_said_before() -> None:
    member = Member()
    batch = member.plain(6)
    jobs = list(batch)
    jobs[0].reject()
    jobs[3].nack(0)
    batch.ack()
    assert batch.extend(2.5) is not None  # nothing is left of it
    assert member.taken() == [(1, [(100, 1, REJECT, 0), (103, 1, NACK, 0), (101, 2, ACK, 0), (104, 2, ACK, 0)])]
    nothing = batch.ack()
    assert member.taken() == []
    assert nothing.done()


@pytest.mark.parametrize(("seconds", "ms"), [(0, 0), (0.0001, 1), (1, 1000), (2.0005, 2001), (86400, 86_400_000)])
def test_delays_are_rounded_up(seconds: float, ms: int) -> None:
    member = Member()
    (job,) = member.plain(1)
    job.nack(seconds)
    assert member.taken() == [(1, [(100, 1, NACK, ms)])]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e13])
def test_what_is_no_delay_is_refused(seconds: float) -> None:
    (job,) = Member().plain(1)
    with pytest.raises(ValueError, match="delay"):
        job.nack(seconds)
    assert not job.settled


def test_many_runs_are_several_frames() -> None:
    member = Member()
    jobs = list(member.plain(10_000))
    for job in jobs[::2]:
        job.ack()
    taken = member.taken()
    assert [number for number, _ in taken] == [1, 2, 3]
    assert sum(len(entries) for _, entries in taken) == 5000


def test_answers_wake_and_refusals_name_their_part() -> None:
    member = Member()
    batch = member.plain(6)
    jobs = list(batch)
    said: list[Settled] = [job.ack() for job in jobs[:4]]
    whole: Settled = batch.reject()
    alarms = [Alarm() for _ in said]
    for one, alarm in zip(said, alarms, strict=True):
        one.add_waiter(alarm)
    member.taken()
    failure = error("LEASE_EXPIRED", "late")
    assert member.settling.refuse(1, 101, 2, failure) == [("c", 1, 2, 2)]
    assert not any(alarm.rung for alarm in alarms)
    member.acked(1)
    assert all(alarm.rung for alarm in alarms)
    assert [one.exception() for one in said] == [None, failure, failure, None]
    assert (whole.done(), whole.exception()) == (True, failure)
    later = Alarm()
    said[0].add_waiter(later)
    assert later.rung
    assert member.settling.refuse(1, 0, 0, failure) == []  # it is answered
    assert member.settling.refuse(9, 0, 0, failure) == []
    for body in (b"", struct.pack("<IIQ", 7, 1, 1), struct.pack("<IIQ", 7, 0, 2)):
        with pytest.raises(MalformedFrame):
            member.settling.on_acked(body)
    member.acked(0)


def test_a_refusal_without_leases_is_of_all_of_it() -> None:
    member = Member()
    batch = member.plain(3)
    said = batch.ack()
    member.taken()
    failure = error("COMMIT_UNKNOWN", "x")
    assert member.settling.refuse(1, 0, 0, failure) == [("c", 1, 1, 3)]
    member.acked(1)
    assert said.exception() is failure


async def test_settled_can_be_awaited() -> None:
    member = Member()
    settling = Settling(asyncio.get_running_loop(), int, error, 10)
    settling.begin(7)
    names: list[str] = []
    told = [Told(b"c" if at == 0 else None, 0, 1, at + 1, Record()) for at in range(3)]
    batch = settling.receive(twin.build_jobs(7, 1, 0, told), names, settling.say)
    one, two, three = (job.ack() for job in batch)
    settling.take()
    waiting = asyncio.ensure_future(asyncio.wait_for(one, 5))
    given_up = asyncio.ensure_future(asyncio.wait_for(two, 0.001))
    with pytest.raises(TimeoutError):
        await given_up
    settling.refuse(1, 2, 1, error("LEASE_EXPIRED", "late"))
    settling.on_acked(struct.pack("<IIQ", 7, 0, 1))
    await waiting
    await three
    with pytest.raises(BrokerError, match="late"):
        await two
    assert member.kicks == 0


# -- what is said again ------------------------------------------------------------------------------------------------


def test_what_was_not_answered_is_given_back_with_the_connection() -> None:
    member = Member()
    batch = member.plain(6)
    jobs = list(batch)
    jobs[0].ack()
    member.taken()
    member.acked(1)
    jobs[1].ack()
    member.taken()
    jobs[2].ack()
    unanswered = member.settling.begin(0)
    assert [[run.places() for run in settlement.runs] for settlement in unanswered] == [
        [[("c", 1, 2, 1)]],
        [[("c", 1, 3, 1)]],
    ]
    assert not member.settling.unanswered
    # What is said of them later has a settlement of its own, however many subscriptions there were since.
    late = jobs[3].ack()
    member.settling.begin(8)
    jobs[4].ack()
    assert member.taken() == []
    settlement = member.settling.take_late()
    assert settlement is not None
    assert member.settling.take_late() is None
    assert [run.places() for run in settlement.runs] == [[("c", 1, 4, 2)]]
    settlement.answer()
    assert late.done()


def test_through_covers_what_came_before() -> None:
    member = Member()
    first, second, third = member.plain(3), member.plain(3, 4), member.plain(2, 7)
    list(first)[1].reject()
    said = member.settling.through(list(second)[1])
    assert [job.settled for batch in (first, second, third) for job in batch] == [True] * 5 + [False] * 3
    assert member.taken() == [(1, [(101, 1, REJECT, 0), (104, 1, ACK_THROUGH, 0)])]
    (settlement,) = member.settling.begin(0)
    assert settlement.runs[1].places() == [("c", 1, 1, 3), ("c", 1, 4, 1), ("c", 1, 5, 1)]
    settlement.refuse(second, 1, 1, error("LEASE_EXPIRED", "x"))
    settlement.answer()
    assert said.exception() is not None


def test_only_a_window_of_what_came_is_kept() -> None:
    member = Member(window=10)
    batches = [member.plain(4, 1 + 4 * at) for at in range(6)]
    member.settling.through(list(batches[-1])[3])
    assert [batch.places(0, 4)[0][2] for batch in batches if next(iter(batch)).settled] == [13, 17, 21]


def test_an_ack_for_somebody_else_to_send() -> None:
    member = Member()
    jobs = list(member.plain(4))
    frame, settlement = member.settling.frame_of([jobs[0], jobs[1], jobs[3]])
    assert twin.parse_ack(frame[8:]) == (7, 1, [(100, 2, ACK, 0), (103, 1, ACK, 0)])
    assert jobs[0].settled
    with pytest.raises(BrokerError, match="LEASE_UNKNOWN"):
        member.settling.frame_of([jobs[2], jobs[0]])
    assert not jobs[2].settled
    member.acked(1)
    assert settlement.answered
    member.settling.begin(8)
    with pytest.raises(BrokerError, match="LEASE_EXPIRED"):
        member.settling.frame_of([jobs[2]])


# -- corners -----------------------------------------------------------------------------------------------------------


def test_corners_of_what_is_said() -> None:
    member = Member()
    first, second = member.plain(2), member.plain(3, 3)
    assert first.places(1, 0) == []
    one, two = first
    one.nack(1)
    two.nack(2)
    three, four, five = second
    three.nack(3)
    settling = member.settling
    assert settling.unanswered
    assert not settling.awaited
    assert member.taken() == [(1, [(100, 1, NACK, 1000), (101, 1, NACK, 2000), (102, 1, NACK, 3000)])]
    member.acked(1)
    said = settling.through(four)
    again = settling.through(five)
    assert said.exception() is None
    assert member.taken() == [(2, [(103, 1, ACK_THROUGH, 0), (104, 1, ACK_THROUGH, 0)])]
    member.acked(2)
    assert (said.exception(), again.exception(), said.done()) == (None, None, True)


def test_corners_of_what_is_refused() -> None:
    member = Member()
    first, second = member.plain(2), member.plain(2, 3)
    said = [job.ack() for batch in (first, second) for job in batch]
    member.taken()
    early, late = error("LEASE_EXPIRED", "early"), error("LEASE_EXPIRED", "late")
    assert member.settling.refuse(1, 101, 1, early) == [("c", 1, 2, 1)]
    assert member.settling.refuse(1, 103, 50, late) == [("c", 1, 4, 1)]
    assert [one.exception() for one in said] == [None] * 4  # not answered yet
    member.acked(1)
    assert [one.exception() for one in said] == [None, early, None, late]


def test_corners_of_what_is_covered() -> None:
    member = Member(window=4)
    first, second = member.plain(4), member.plain(4, 5)
    member.settling.through(next(iter(first)))  # its frame is older than what is kept
    assert not any(job.settled for job in second)
    member.settling.through(next(iter(second)))
    assert [job.settled for job in second] == [True, False, False, False]
    assert member.taken() == [(1, [(100, 1, ACK_THROUGH, 0), (104, 1, ACK_THROUGH, 0)])]
    (unanswered,) = member.settling.begin(0)
    assert [run.places() for run in unanswered.runs] == [[("c", 1, 1, 1)], [("c", 1, 5, 1)]]
    member.settling.through(list(second)[2])  # only its own frame is known
    assert member.settling.unanswered
    late = member.settling.take_late()
    assert late is not None
    assert [run.places() for run in late.runs] == [[("c", 1, 5, 2), ("c", 1, 7, 1)]]


def test_what_is_said_of_an_earlier_subscription_settles_nothing_of_this_one() -> None:
    member = Member()
    member.lease = 1 << 40
    old = member.plain(3)
    member.settling.begin(7)  # a server may give the same number again
    member.settling.begin(8)
    member.lease = 1  # another server's: lower leases
    new = member.plain(4)
    member.settling.through(list(old)[2])
    assert [job.settled for job in old] == [True] * 3
    assert not any(job.settled for job in new)


@pytest.mark.parametrize("lease", [100, 101, 102, (1 << 64) - 8, (1 << 64) - 1])
def test_leases_of_a_subscription_rise(lease: int) -> None:
    member = Member()
    batch = member.plain(3)
    member.lease = lease
    with pytest.raises(MalformedFrame, match=f"lease {lease}, expected 103 or a later"):
        member.plain(8)
    member.settling.through(list(batch)[2])
    assert member.taken() == [(1, [(102, 1, ACK_THROUGH, 0)])]


def test_a_cursor_between_two_frames_tells_what_waits() -> None:
    member, cursor = Member(), JobCursor(None)
    assert cursor.waiting() == []
    cursor.push(member.plain(1))
    cursor.push(member.plain(2, 2))
    assert cursor.take_now(False).sequence == 1
    assert [(index, count) for _, index, count in cursor.waiting()] == [(0, 2)]


def test_a_name_without_its_flag_is_refused() -> None:
    body = bytearray(twin.build_jobs(7, 1, 0, [Told(b"c", 0, 1, 1, Record(b"x"))]))
    body[twin.JOBS_HEADER.size + 34] = 0
    with pytest.raises(MalformedFrame):
        Settling(None, int, error, 10).receive(bytes(body), ["c"], print)


def test_nothing_that_was_said_holds_when_it_is_answered_at_once() -> None:
    member = Member()
    batch = member.plain(1)
    batch.ack()
    member.taken()
    member.acked(1)
    nothing: Settled = batch.ack()
    assert nothing.exception() is None  # it is in an ACK that is not sent, since nothing is left to say
    assert member.taken() == []
    assert (nothing.done(), nothing.exception()) == (True, None)
