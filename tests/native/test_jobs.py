"""What a consumer has to do: the native class against its plain-Python twin, and both against what was done.

A machine publishes chunks, delivers them (again), joins, grants, settles, lets time pass, asks for changes, and goes on
from any prefix of them. After each step everything that can be seen of the two is the same.
"""

from __future__ import annotations

import random
import struct
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_native import jobs as native
from broker_native.jobs import Jobs
from tests.native.plain_jobs import (
    ACK,
    ACK_ENTRY,
    ACK_HEADER,
    ACK_LEASES_MAX,
    ACK_THROUGH,
    BY_BACKOFF,
    DELAY_MS_MAX,
    EPHEMERAL_ID,
    EXTEND,
    INDEX_MAX,
    INVALID_TIME,
    JOB,
    JOB_BYTES,
    JOB_NAME,
    JOB_REDELIVERED,
    JOBS,
    JOBS_HEADER,
    LEASE_EXPIRED,
    LEASE_UNKNOWN,
    NACK,
    REJECT,
    RELEASE,
    PlainJobs,
)
from tests.reference.frames import (
    DELIVER,
    DELIVER_EARLY,
    DELIVER_NAME,
    PING,
    Record,
    build_frame,
    build_record,
    frames_of,
)
from tests.reference.groups import CHUNK_HEADER, RECORD_HEADER, Chunk, build_chunk

SECOND = 1_000_000
EARLY_CHANNEL = 2
CHANNELS = {1: b"jobs.a", 2: b"jobs.b", 7: b"jobs.c", EPHEMERAL_ID + 1: b"live"}
Settings: TypeAlias = dict[str, Any]
Entry: TypeAlias = tuple[int, int, int, int]
"""(first lease, leases, verb, ms)."""
Position: TypeAlias = tuple[int, int, int]
"""(channel, epoch, sequence)."""


def deliver(chunk: Chunk, group: int, index: int = 0, flags: int = 0, name: bytes | None = None) -> bytes:
    """Return a DELIVER frame; with its channel's name unless another one is given."""
    told = CHANNELS[chunk.channel] if name is None else name
    body = struct.pack("<IIQ", 1, index, group)
    if told:
        flags |= DELIVER_NAME
        body += bytes([len(told)]) + told
    return build_frame(DELIVER, body + build_chunk(chunk), flags)


def chunk_of(records: list[Record], first: int, channel: int = 1, epoch: int = 1, time_us: int = 0) -> Chunk:
    """Return a chunk of records."""
    count = sum(record.run for record in records)
    return Chunk(channel, epoch, first, count, b"".join(map(build_record, records)), time_us)


def ack_of(*entries: Entry) -> bytes:
    """Return an ACK's body."""
    packed = [ACK_ENTRY.pack(first, leases, verb, bytes(3), ms) for first, leases, verb, ms in entries]
    return ACK_HEADER.pack(5, len(entries), 1) + b"".join(packed)


class Granted:
    """A JOBS frame, read: (lease, channel number, epoch, sequence, attempt, flags, name, record) of each job."""

    def __init__(self, frame: bytes) -> None:
        (only,) = frames_of(frame)
        assert only.kind == JOBS
        self.subscription, count, self.first, self.lease_ms, zero = JOBS_HEADER.unpack_from(only.body)
        assert zero == 0
        self.jobs: list[tuple[int, int, int, int, int, int, bytes, bytes]] = []
        at = JOBS_HEADER.size
        for lease in range(self.first, self.first + count):
            size, number, epoch, sequence, _, attempt, flags, name_size, zero = JOB.unpack_from(only.body, at)
            name = only.body[at + JOB.size : at + JOB.size + name_size]
            record = only.body[at + JOB.size + name_size : at + size]
            assert zero == 0
            assert RECORD_HEADER.unpack_from(record)[0] == len(record)
            self.jobs.append((lease, number, epoch, sequence, attempt, flags, name, record))
            at += size
        assert at == len(only.body)

    @property
    def sequences(self) -> list[int]:
        return [job[3] for job in self.jobs]

    @property
    def attempts(self) -> list[int]:
        return [job[4] for job in self.jobs]

    @property
    def flags(self) -> list[int]:
        return [job[5] for job in self.jobs]


class Both:
    """The native jobs and their twin: what is called is called on both, and must answer the same."""

    def __init__(self, **options: Any) -> None:
        self.native, self.twin = Jobs(**options), PlainJobs(**options)

    def __getattr__(self, name: str) -> Any:
        native_value, twin_value = getattr(self.native, name), getattr(self.twin, name)
        if not callable(native_value):
            assert native_value == twin_value, name
            return native_value

        def call(*arguments: Any, **options: Any) -> Any:
            outcomes = []
            for function in (native_value, twin_value):
                try:
                    outcomes.append(function(*arguments, **options))
                except (ValueError, KeyError) as failure:
                    outcomes.append((type(failure), str(failure)))
            assert outcomes[0] == outcomes[1], name
            if isinstance(outcomes[0], tuple) and outcomes[0] and outcomes[0][0] in (ValueError, KeyError):
                raise outcomes[0][0](outcomes[0][1])
            return outcomes[0]

        return call

    def granted(self, member: int, now_us: int = 0, jobs_max: int = INDEX_MAX) -> Granted:
        """Grant something, and read it."""
        frame = self.grant(member, now_us, jobs_max)
        assert frame
        return Granted(frame)

    def check(self) -> None:
        """Compare all that can be seen without changing anything."""
        for name in (
            "ready", "leased", "delayed", "doomed", "bytes_held", "next_lease", "done", "redelivered", "expired",
            "changed", "seen", "floor",
        ):  # fmt: skip
            getattr(self, name)
        self.next_us()
        self.waiting(1000)
        for channel in CHANNELS:
            self.floor_of(channel)


SETTINGS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["plain", "lanes", "by_key", "lanes and by_key", "exclusive"]),
        "by_position": st.booleans(),
        "lease_ms": st.sampled_from([0, 3, 1000]),
        "attempts_max": st.sampled_from([0, 0, 1, 3]),
        "backoff_first_ms": st.sampled_from([0, 1, 100]),
        "backoff_longest_ms": st.sampled_from([100, 1000]),
        "seed": st.integers(0, 2**64 - 1),
    }
)
RECORDS = st.lists(
    st.builds(
        Record,
        payload=st.binary(max_size=3) | st.just(b"x" * 1200),
        time_us=st.integers(0, 50),
        publisher=st.none() | st.just(b"me"),
        number=st.none() | st.just(9),
        priority=st.none() | st.integers(0, 5),
        expiry_s=st.sampled_from([None, None, None, 1, 1000]),
        key=st.none() | st.sampled_from([b"a", b"b", b"a much longer key"]),
        headers=st.none() | st.just(b"\x80"),
    )
    | st.builds(lambda run: Record(gone=(2, run)), st.integers(1, 3)),
    min_size=1,
    max_size=6,
)
MS = st.sampled_from([0, 0, 1, 5, 2000, BY_BACKOFF, BY_BACKOFF, DELAY_MS_MAX, DELAY_MS_MAX + 1])


class Chunked(NamedTuple):
    """A chunk of the stream."""

    place: tuple[int, int]
    channel: int
    epoch: int
    frame: bytes
    jobs: list[int]
    """Sequences of its records that are jobs."""


class Consumer(RuleBasedStateMachine):
    """One consumer on one bus. Without `by_position` its stream stands by the bus, with it by positions."""

    @initialize(options=SETTINGS)
    def begin(self, options: Settings) -> None:
        mode = options.pop("mode")
        self.options = options | {
            "lanes": "lanes" in mode,
            "by_key": "by_key" in mode,
            "exclusive": mode == "exclusive",
        }
        self.by_position = options["by_position"]
        self.both = Both(first_lease=(1 << 40) - 2, **self.options)
        self.stream: list[Chunked] = []
        self.behind: list[Chunked] = []
        """What is to be read again before anything new comes."""
        self.heads = {channel: (1, 0) for channel in CHANNELS}
        self.group, self.index = 1, 0
        self.now_us = 10
        self.member = 0
        self.here: list[int] = []
        self.stored: list[bytes] = []
        self.done_stored: list[set[Position]] = []
        """What was done with each prefix of `stored`."""

    # -- the stream ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.behind)
    @rule(
        channel=st.sampled_from(list(CHANNELS)),
        records=RECORDS,
        gap=st.sampled_from([0, 0, 0, 2]),
        new_epoch=st.sampled_from([False, False, False, False, True]),
    )
    def publish(self, channel: int, records: list[Record], gap: int, new_epoch: bool) -> None:
        epoch, head = self.heads[channel]
        epoch += new_epoch
        chunk = chunk_of(records, head + 1 + gap, channel, epoch, self.now_us)
        self.heads[channel] = (epoch, chunk.last)
        self.index += 1
        if early := channel == EARLY_CHANNEL:
            # Its group is open, and the one before it is on its way to the disk.
            place = (self.group + 1, self.index)
        else:
            place = (self.group, 0)
            self.group += 1
        jobs, sequence = [], chunk.first
        for record in records:
            if record.gone is None and channel < EPHEMERAL_ID:
                jobs.append(sequence)
            sequence += record.run
        frame = deliver(chunk, *place, DELIVER_EARLY if early else 0)
        self.stream.append(Chunked(place, channel, epoch, frame, jobs))
        self.both.take(frame)

    @precondition(lambda self: self.stream and not self.behind)
    @rule(back=st.integers(1, 4))
    def read_again(self, back: int) -> None:
        """What has come comes once more."""
        self.both.take(b"".join(chunk.frame for chunk in self.stream[-back:]))

    @precondition(lambda self: not self.behind)
    @rule()
    def reach(self) -> None:
        self.both.reached(self.group - 1, INDEX_MAX)

    @precondition(lambda self: self.behind)
    @rule(count=st.integers(1, 3))
    def read_on(self, count: int) -> None:
        self.both.take(b"".join(chunk.frame for chunk in self.behind[:count]))
        del self.behind[:count]

    def read_from_floor(self, at_once: int) -> None:
        """Read again what the state does not say is done, some of it at once."""
        floor = self.both.floor
        epochs = {channel: self.both.floor_of(channel)[0] for channel in CHANNELS}
        self.behind = [
            chunk
            for chunk in sorted(self.stream, key=lambda chunk: chunk.place)
            if (chunk.epoch >= epochs[chunk.channel] if self.by_position else chunk.place > floor)
        ]
        if self.behind:
            self.read_on(at_once)

    # -- members -------------------------------------------------------------------------------------------------------

    @rule(window=st.sampled_from([1, 2, 100]), bytes_max=st.sampled_from([0, 40, 1 << 20]))
    def join(self, window: int, bytes_max: int) -> None:
        if self.options["exclusive"] and self.here:
            with pytest.raises(ValueError, match="cannot join"):
                self.both.join(self.member + 1, 5, window, bytes_max)
            return
        self.member += 1
        self.both.join(self.member, 5, window, bytes_max)
        self.here.append(self.member)

    @precondition(lambda self: self.here)
    @rule(choice=st.integers(0, 100))
    def leave(self, choice: int) -> None:
        self.both.leave(self.here.pop(choice % len(self.here)))

    @precondition(lambda self: self.here)
    @rule(choice=st.integers(0, 100), jobs_max=st.sampled_from([1, 3, INDEX_MAX]))
    def grant(self, choice: int, jobs_max: int) -> None:
        member = self.here[choice % len(self.here)]
        frame = self.both.grant(member, self.now_us, jobs_max)
        if frame:
            assert len(Granted(frame).jobs) <= jobs_max
        self.both.under_way(member)

    @precondition(lambda self: self.here)
    @rule(
        choice=st.integers(0, 100),
        entries=st.lists(
            st.tuples(
                st.integers(-1, 30),
                st.integers(1, 4),
                st.sampled_from([ACK, ACK, ACK, NACK, NACK, REJECT, EXTEND, ACK_THROUGH] * 3 + [RELEASE]),
                MS,
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def settle(self, choice: int, entries: list[Entry]) -> None:
        """Settle leases counted back from the newest; some are others', over or never were."""
        newest = self.both.next_lease - 1
        body = ack_of(
            *(
                (newest - back, 1 if verb == ACK_THROUGH else leases, verb, ms if verb in (NACK, EXTEND) else 0)
                for back, leases, verb, ms in entries
            )
        )
        self.both.settle(self.here[choice % len(self.here)], body, self.now_us)

    @precondition(lambda self: self.stream)
    @rule(choice=st.integers(0, 100), count=st.integers(1, 5))
    def done_at(self, choice: int, count: int) -> None:
        chunk = self.stream[choice % len(self.stream)]
        if chunk.jobs:
            count = min(count, self.heads[chunk.channel][1] - chunk.jobs[0] + 1)
            self.both.done_at(chunk.channel, chunk.epoch, chunk.jobs[0], count)

    @rule(us=st.sampled_from([1, 1000, 5000, SECOND, 2000 * SECOND]))
    def wait(self, us: int) -> None:
        self.now_us += us
        self.both.expire(self.now_us)

    @rule()
    def wait_for_the_next(self) -> None:
        due_us = self.both.next_us()
        if due_us:
            self.now_us = max(self.now_us, due_us)
            assert self.both.expire(self.now_us) > 0

    @rule()
    def bury(self) -> None:
        self.both.dead()
        assert self.both.doomed == 0

    @rule(lease_ms=st.sampled_from([0, 7]), attempts_max=st.sampled_from([0, 2]))
    def configure(self, lease_ms: int, attempts_max: int) -> None:
        self.options |= {"lease_ms": lease_ms, "attempts_max": attempts_max}
        self.both.configure(
            lease_ms=lease_ms,
            attempts_max=attempts_max,
            backoff_first_ms=self.options["backoff_first_ms"],
            backoff_longest_ms=self.options["backoff_longest_ms"],
        )

    # -- what is stored ------------------------------------------------------------------------------------------------

    def done(self) -> set[Position]:
        """Return what is done, as far as anything was published."""
        twin = self.both.twin
        done = set()
        for chunk in self.stream:
            track = twin.tracks.get((chunk.channel, chunk.epoch))
            for sequence in chunk.jobs:
                if not self.by_position and chunk.place <= twin.floor:
                    is_done = True
                elif track is None:
                    is_done = self.by_position and chunk.epoch < twin.floor_of(chunk.channel)[0]
                elif sequence <= track.known:
                    is_done = sequence not in track.undone
                else:
                    is_done = sequence in track.ahead
                if is_done:
                    done.add((chunk.channel, chunk.epoch, sequence))
        return done

    def store(self, payload: bytes) -> None:
        self.stored.append(payload)
        self.done_stored.append(self.done())

    @rule(always=st.booleans())
    def store_changes(self, always: bool) -> None:
        changed = self.both.changed
        payload = self.both.changes(always)
        assert bool(payload) == (changed or always)
        assert not self.both.changed
        if payload:
            self.store(payload)

    @rule()
    def store_snapshot(self) -> None:
        self.both.changes()
        self.store(self.both.snapshot())

    @rule()
    def purge(self) -> None:
        self.both.purge()
        assert self.both.ready + self.both.leased + self.both.delayed + self.both.doomed == 0

    @rule()
    def reset(self) -> None:
        """Begin anew with the beginning of the stream."""
        self.both.reset(0, 0)
        self.both.check()
        assert not self.done()
        self.store_changes(always=False)
        self.read_from_floor(1)

    @precondition(lambda self: self.stored)
    @rule(choice=st.integers(0, 100), clean=st.booleans(), at_once=st.sampled_from([1, 2, 1000, 1000]))
    def restart(self, choice: int, clean: bool, at_once: int) -> None:
        """Go on from a prefix of what was stored: nothing that it says is done comes again, and all the rest does."""
        count = choice % len(self.stored) + 1
        self.stored, self.done_stored = self.stored[:count], self.done_stored[:count]
        place = (0, 0) if clean else (self.group, INDEX_MAX)
        self.both = Both(first_lease=self.both.next_lease, **self.options)
        self.both.restore(self.stored, *place)
        self.here = []
        self.both.check()
        self.read_from_floor(at_once)
        assert self.done() == self.done_stored[-1]

    @invariant()
    def are_alike(self) -> None:
        self.both.check()
        assert self.both.snapshot()


Consumer.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_machine = Consumer.TestCase


# -- one thing at a time -----------------------------------------------------------------------------------------------


def records(count: int, **fields: Any) -> list[Record]:
    """Return records whose payloads are their places."""
    return [Record(payload=b"%d" % at, **fields) for at in range(count)]


def consumer(count: int = 0, **options: Any) -> Both:
    """Return a consumer with a member 1, and so many jobs of one chunk."""
    both = Both(**({"first_lease": 100, "seed": 1} | options))
    both.join(1, 5, 100, 1 << 20)
    if count:
        both.take(deliver(chunk_of(records(count), 1), 1))
    return both


def test_jobs_are_granted_in_order_and_done_when_acked() -> None:
    both = consumer(5)
    granted = both.granted(1, jobs_max=3)
    assert (granted.subscription, granted.first, granted.lease_ms) == (5, 100, 30_000)
    assert [job[:7] for job in granted.jobs] == [
        (100, 0, 1, 1, 1, JOB_NAME, b"jobs.a"),
        (101, 0, 1, 2, 1, 0, b""),
        (102, 0, 1, 3, 1, 0, b""),
    ]
    assert granted.jobs[2][7] == build_record(Record(payload=b"2"))
    assert (both.ready, both.leased, both.floor_of(1), both.floor) == (2, 3, (1, 0), (0, INDEX_MAX))
    assert both.settle(1, ack_of((100, 1, ACK, 0), (102, 1, ACK, 0)), 0) == []
    assert (both.leased, both.floor_of(1), both.done) == (1, (1, 1), 2)
    assert both.granted(1).sequences == [4, 5]
    assert both.settle(1, ack_of((101, 1, ACK_THROUGH, 0), (103, 2, ACK, 0)), 0) == []
    assert (both.floor_of(1), both.floor, both.bytes_held) == ((1, 5), (1, 0), 0)
    assert both.grant(1, 0) == b""


def test_other_frames_are_handed_back() -> None:
    both = consumer()
    stream = build_frame(PING, b"12345678") + deliver(chunk_of(records(1), 1), 1) + build_frame(0, b"")
    assert both.take(stream) == [(PING, b"12345678"), (0, b"")]
    assert (both.ready, both.bytes_held) == (1, JOB_BYTES + 13)


def test_records_of_any_size_come_back_as_they_were() -> None:
    """Small ones lie behind their job, large ones do not; a JOBS frame takes 256 KiB or one job."""
    sizes = [0, 1, 700, 820, 840, 860, 1100, 70_000, 200_000, 300_000]
    both = consumer()
    both.join(2, 5, 100, 10 << 20)
    sent = [Record(payload=bytes([at]) * size) for at, size in enumerate(sizes)]
    both.take(deliver(chunk_of(sent, 1), 1))
    frames = [both.granted(2) for _ in range(3)]
    assert [len(frame.jobs) for frame in frames] == [8, 1, 1]
    assert [job[7] for frame in frames for job in frame.jobs] == list(map(build_record, sent))
    assert both.under_way(2) == (len(sizes), sum(sizes) + 12 * len(sizes))
    both.leave(2)
    both.purge()
    assert both.bytes_held == 0


def test_a_window_bounds_jobs_and_bytes() -> None:
    both = consumer(10)
    both.join(2, 6, 3, 1 << 20)
    both.join(3, 6, 100, 30)
    assert both.granted(2).sequences == [1, 2, 3]
    assert both.grant(2, 0) == b""
    assert both.granted(3).sequences == [4, 5]
    assert both.settle(2, ack_of((100, 1, ACK, 0)), 0) == []
    assert both.granted(2).sequences == [6]
    both.join(4, 6, 100, 0)
    assert both.granted(4).sequences == [7]
    assert both.grant(4, 0) == b""


def test_each_subscription_is_told_each_name_once() -> None:
    both = consumer(1)
    both.take(deliver(chunk_of(records(2), 1, channel=2), 2) + deliver(chunk_of(records(1), 2), 3))
    both.join(2, 6, 100, 1 << 20)
    told = [[(job[1], job[6]) for job in both.granted(member, jobs_max=2).jobs] for member in (1, 2)]
    assert told == [[(0, b"jobs.a"), (1, b"jobs.b")], [(0, b"jobs.b"), (1, b"jobs.a")]]
    both.take(deliver(chunk_of(records(1), 3), 4, name=b"") + deliver(chunk_of(records(1), 3, channel=2), 5))
    assert [(job[1], job[6]) for job in both.granted(1).jobs] == [(0, b""), (1, b"")]


def test_a_subscription_that_goes_on_is_not_told_names_again() -> None:
    both = consumer(1)
    both.take(deliver(chunk_of(records(1), 1, channel=7), 2))
    both.granted(1)
    assert both.channels_of(1) == [1, 7]
    later = Both(first_lease=both.next_lease, seed=1)
    later.join(1, 5, 100, 1 << 20, both.channels_of(1))
    later.take(deliver(chunk_of(records(1), 1, channel=2), 1) + deliver(chunk_of(records(1), 1, channel=7), 2))
    assert [(job[1], job[6]) for job in later.granted(1).jobs] == [(2, b"jobs.b"), (1, b"")]
    assert later.channels_of(1) == [1, 7, 2]
    with pytest.raises(KeyError):
        later.channels_of(2)


def test_more_channels_than_there_was_room_for() -> None:
    both = consumer()
    for channel in range(1, 60):
        both.take(deliver(chunk_of(records(1), 1, channel=channel), channel, name=b"jobs.%d" % channel))
    assert [(job[1], job[6]) for job in both.granted(1).jobs] == [(at, b"jobs.%d" % (at + 1)) for at in range(59)]


def test_a_lease_ends_at_its_deadline_and_the_job_comes_again_flagged() -> None:
    both = consumer(3, lease_ms=10)
    both.granted(1, now_us=5, jobs_max=2)
    assert both.next_us() == 10_005
    assert both.expire(10_004) == 0
    assert both.settle(1, ack_of((100, 1, EXTEND, 20)), 10_004) == []
    assert both.expire(10_005) == 1
    assert both.next_us() == 30_004
    both.join(2, 6, 100, 1 << 20)
    again = both.granted(2, now_us=10_006)
    assert (again.sequences, again.attempts, again.flags) == ([2, 3], [2, 1], [JOB_REDELIVERED | JOB_NAME, 0])
    assert both.settle(1, ack_of((100, 1, EXTEND, 0)), 10_006) == []
    assert both.next_us() == 20_006
    assert both.expire(20_006) == 3


def test_an_extended_lease_may_last_for_ever() -> None:
    both = consumer(2, lease_ms=10)
    both.granted(1)
    both.configure(lease_ms=0, attempts_max=0, backoff_first_ms=0, backoff_longest_ms=0)
    assert both.settle(1, ack_of((100, 2, EXTEND, 0)), 0) == []
    assert both.next_us() == 0
    assert both.settle(1, ack_of((100, 1, EXTEND, 7)), 1000) == []
    assert both.next_us() == 8000


def test_what_was_not_begun_is_no_attempt_and_its_member_is_granted_nothing_more() -> None:
    both = consumer(4, attempts_max=1)
    assert both.granted(1).attempts == [1] * 4
    assert both.settle(1, ack_of((101, 3, RELEASE, 0)), 0) == []
    assert both.grant(1, 0) == b""
    assert both.is_leaving(1)
    assert (both.ready, both.leased, both.doomed, both.redelivered) == (3, 1, 0, 0)
    both.join(2, 6, 9, 1 << 20)
    assert not both.is_leaving(2)
    again = both.granted(2)
    assert (again.sequences, again.attempts, again.flags) == ([2, 3, 4], [1] * 3, [JOB_NAME, 0, 0])
    assert both.settle(1, ack_of((101, 1, RELEASE, 0)), 0) == [(LEASE_EXPIRED, 101, 1)]


def test_a_second_attempt_that_was_not_begun_is_none_after_a_restart_either() -> None:
    both = consumer(1)
    both.granted(1)
    both.settle(1, ack_of((100, 1, NACK, 0)), 0)
    assert both.granted(1).attempts == [2]
    both.changes()
    both.settle(1, ack_of((101, 1, RELEASE, 0)), 0)
    later = Both(first_lease=200, seed=1)
    later.restore([both.snapshot()])
    later.take(deliver(chunk_of(records(1), 1), 1))
    assert [job[3] for job in later.waiting(9)] == [1]


def test_one_holder_gives_all_back_that_it_has_not_begun() -> None:
    both = consumer(4, exclusive=True)
    both.granted(1)
    assert both.settle(1, ack_of((100, 1, ACK, 0), (102, 1, RELEASE, 0), (103, 1, RELEASE, 0)), 0) == []
    assert (both.ready, both.leased) == (2, 1)
    both.leave(1)
    both.join(2, 6, 9, 1 << 20)
    again = both.granted(2)
    assert (again.sequences, again.attempts) == ([2, 3, 4], [2, 1, 1])


def test_what_an_ack_is_refused_for() -> None:
    both = consumer(4, lease_ms=10)
    both.join(2, 6, 1, 1 << 20)
    both.granted(1, jobs_max=3)
    both.granted(2)
    assert both.settle(1, ack_of((98, 9, ACK, 0)), 0) == [
        (LEASE_UNKNOWN, 98, 2),
        (LEASE_UNKNOWN, 103, 4),
    ]
    assert both.settle(1, ack_of((100, 3, ACK, 0)), 0) == [(LEASE_EXPIRED, 100, 3)]
    assert both.settle(1, ack_of((103, 1, ACK_THROUGH, 0), (104, 1, ACK_THROUGH, 0)), 0) == [(LEASE_UNKNOWN, 104, 1)]
    assert both.settle(2, ack_of((103, 1, NACK, DELAY_MS_MAX + 1)), 0) == [(INVALID_TIME, 103, 1)]
    assert both.settle(2, ack_of((103, 1, EXTEND, BY_BACKOFF)), 0) == [(INVALID_TIME, 103, 1)]
    both.expire(10_000)
    # It has ended, and nobody was granted the job anew.
    assert both.settle(2, ack_of((103, 1, NACK, 0), (103, 1, EXTEND, 0)), 0) == [(LEASE_EXPIRED, 103, 1)] * 2
    assert both.settle(1, ack_of((103, 1, ACK, 0)), 0) == [(LEASE_UNKNOWN, 103, 1)]
    assert both.settle(2, ack_of((103, 1, ACK, 0)), 0) == []
    assert both.done == 4


def test_an_old_lease_is_void_once_its_job_is_granted_anew() -> None:
    both = consumer(1, lease_ms=10)
    both.join(2, 6, 1, 1 << 20)
    both.granted(1)
    both.expire(10_000)
    both.granted(2, now_us=10_000)
    assert both.settle(1, ack_of((100, 1, ACK, 0)), 0) == [(LEASE_EXPIRED, 100, 1)]
    both.leave(2)
    assert both.settle(1, ack_of((101, 1, ACK, 0)), 0) == [(LEASE_EXPIRED, 101, 1)]
    assert (both.ready, both.leased) == (1, 0)
    assert both.granted(1).attempts == [3]


@pytest.mark.parametrize(("first", "leases"), [(2**64 - 1, 1), (2**64 - 3, 3), (0, 2)])
def test_a_lease_that_nobody_was_given_is_refused_beforehand_however_high(first: int, leases: int) -> None:
    both = consumer(1)
    both.granted(1)
    assert both.refusal(1, ack_of((100, 1, ACK, 0), (first, leases, ACK, 0))) == (LEASE_UNKNOWN, first, 1)
    assert both.leased == 1


def test_a_nack_waits_by_the_back_off() -> None:
    """Twice as long each time, to the longest, and half to one and a half times that."""
    both = consumer(1, backoff_first_ms=100, backoff_longest_ms=300)
    waits = []
    now_us = 0
    for _ in range(70):
        lease = both.granted(1, now_us=now_us).first
        assert both.settle(1, ack_of((lease, 1, NACK, BY_BACKOFF)), now_us) == []
        assert (both.delayed, both.grant(1, now_us)) == (1, b"")
        waits.append(both.next_us() - now_us)
        now_us = both.next_us()
        assert both.expire(now_us) == 1
    for wait_us, base_ms in zip(waits, [100, 200, *[300] * 68], strict=True):
        assert base_ms * 500 <= wait_us < base_ms * 1500
    assert len(set(waits)) > 60


def test_jobs_die_of_attempts_and_of_rejection() -> None:
    both = consumer(3, attempts_max=2)
    both.granted(1)
    assert both.settle(1, ack_of((100, 1, NACK, 0), (101, 1, REJECT, 0)), 0) == []
    assert (both.doomed, both.ready, both.leased) == (1, 1, 1)
    lease = both.granted(1).first
    assert both.settle(1, ack_of((lease, 1, NACK, 5)), 0) == []
    assert (both.doomed, both.leased, both.delayed, both.floor_of(1)) == (2, 1, 0, (1, 0))
    name, record = b"jobs.a", [build_record(Record(payload=b"%d" % at)) for at in range(2)]
    assert both.dead() == [(name, 1, 2, 1, 1, record[1]), (name, 1, 1, 2, 2, record[0])]
    assert both.dead() == []
    assert (both.doomed, both.floor_of(1)) == (0, (1, 2))


def test_a_member_that_leaves_gives_its_leases_back_at_once() -> None:
    both = consumer(4, lease_ms=10, attempts_max=3)
    both.join(2, 6, 100, 1 << 20)
    both.granted(1, jobs_max=3)
    both.settle(1, ack_of((101, 1, ACK, 0)), 0)
    assert both.leave(1) == 2
    with pytest.raises(KeyError):
        both.grant(1, 0)
    with pytest.raises(KeyError):
        both.settle(1, ack_of(), 0)
    with pytest.raises(KeyError):
        both.leave(1)
    again = both.granted(2)
    assert (again.sequences, again.attempts) == ([1, 3, 4], [2, 2, 1])
    assert both.next_us() == 10_000


def test_keys_keep_their_order_whatever_comes_again() -> None:
    both = consumer(by_key=True)
    keyed = [Record(payload=b"%d" % at, key=key) for at, key in enumerate([b"a", b"b", b"a", None, b"b", b"a"])]
    both.take(deliver(chunk_of(keyed, 1), 1))
    granted = both.granted(1)
    assert granted.sequences == [1, 2, 4]
    assert both.ready == 3
    assert both.settle(1, ack_of((100, 1, NACK, 5), (101, 1, ACK, 0)), 0) == []
    assert both.granted(1).sequences == [5]
    assert both.grant(1, 4_999) == b""
    both.expire(5_000)
    assert both.granted(1, now_us=5_000).sequences == [1]
    assert both.done_at(1, 1, 3, 1) == []
    assert both.settle(1, ack_of((104, 1, REJECT, 0)), 5_000) == []
    assert both.granted(1).sequences == [6]


def test_low_lanes_get_their_share() -> None:
    """Of 15 grants lanes get 8, 4, 2 and 1; what one does not use the others get."""
    both = consumer(lanes=True)
    both.take(deliver(chunk_of([record for lane in (3, 2, 1, 0) for record in records(30, priority=lane)], 1), 1))
    lanes = [3 - (sequence - 1) // 30 for sequence in both.granted(1, jobs_max=15).sequences]
    assert [lanes.count(lane) for lane in range(4)] == [8, 4, 2, 1]
    for lane in (1, 2):
        both.done_at(1, 1, 1 + (3 - lane) * 30, 30)
    lanes = [3 - (sequence - 1) // 30 for sequence in both.granted(1, jobs_max=18).sequences]
    assert [lanes.count(lane) for lane in (0, 3)] == [16, 2]


def test_an_exclusive_holder_gets_everything_again_from_what_failed_on() -> None:
    both = consumer(5, exclusive=True, attempts_max=2)
    both.granted(1)
    assert both.settle(1, ack_of((100, 1, ACK, 0), (102, 2, NACK, 3)), 0) == []
    assert (both.leased, both.ready, both.delayed) == (1, 2, 1)
    assert both.grant(1, 0) == b""
    assert both.expire(3_000) == 1
    again = both.granted(1)
    assert (again.sequences, again.attempts, again.flags) == ([3, 4, 5], [2, 1, 1], [JOB_REDELIVERED] * 3)
    both.leave(1)
    both.join(2, 6, 100, 1 << 20)
    again = both.granted(2)
    assert (again.sequences, again.attempts) == ([2, 3, 4, 5], [2, 2, 1, 1])
    assert both.expire(30_000_000) == 4
    assert (both.doomed, both.ready) == (1, 3)
    assert both.granted(2).sequences == [3, 4, 5]


def test_expired_records_are_dropped_when_they_would_be_granted() -> None:
    both = consumer()
    mixed = [Record(payload=b"a", expiry_s=1), Record(payload=b"b"), Record(payload=b"c", expiry_s=1, time_us=1)]
    both.take(deliver(chunk_of(mixed, 1, time_us=SECOND), 1))
    assert both.granted(1, now_us=2 * SECOND).sequences == [2, 3]
    assert (both.expired, both.done, both.changed, both.floor_of(1)) == (1, 1, True, (1, 1))


def test_acks_by_position_count_unless_somebody_has_the_job() -> None:
    both = consumer(8)
    both.join(2, 6, 100, 1 << 20)
    both.granted(1, jobs_max=1)
    both.granted(2, jobs_max=5)
    both.settle(2, ack_of((102, 1, REJECT, 0), (103, 1, NACK, 0)), 0)
    assert both.done_at(1, 1, 1, 20) == [(1, 2), (5, 2)]
    assert (both.ready, both.leased, both.doomed) == (0, 4, 1)
    both.take(deliver(chunk_of(records(15), 9), 2))
    assert both.granted(2).sequences == [21, 22, 23]
    assert both.done_at(2, 4, 1, 2) == []
    for first, count in ((0, 1), (1, 0), (1, 2**63 - 1), (2**63 - 1, 1), (2**64 - 1, 2**64 - 1)):
        with pytest.raises(ValueError, match="done: got"):
            both.done_at(1, 1, first, count)


def test_places_and_what_was_seen_of_them() -> None:
    """An early chunk vouches for the groups up to two before its own; jobs up to what was seen come flagged."""
    both = consumer()
    both.take(deliver(chunk_of(records(1), 1, channel=2), 9, 1, DELIVER_EARLY))
    assert (both.floor, both.seen) == ((7, INDEX_MAX), (0, 0))
    both.take(deliver(chunk_of(records(1), 1), 8, 3) + deliver(chunk_of(records(1), 2), 9, 0))
    assert both.floor == (8, 2)
    assert both.granted(1, jobs_max=2).sequences == [1, 1]
    assert both.seen == (9, 1)
    assert both.settle(1, ack_of((100, 2, ACK, 0)), 0) == []
    assert both.floor == (8, INDEX_MAX)
    both.reached(20, 1)
    assert both.floor == (8, INDEX_MAX)
    stored = both.changes()
    assert both.changes() == b""
    later = Both(first_lease=1000, seed=1)
    later.restore([b"", stored])
    assert later.floor == (8, INDEX_MAX)
    later.join(1, 5, 100, 1 << 20)
    later.take(deliver(chunk_of(records(2), 2), 9, 0) + deliver(chunk_of(records(1), 1, channel=2), 9, 1))
    later.take(deliver(chunk_of(records(1), 4), 10))
    assert later.granted(1).flags == [JOB_REDELIVERED | JOB_NAME, JOB_REDELIVERED, 0]
    both.granted(1)
    both.settle(1, ack_of((102, 1, ACK, 0)), 0)
    assert both.floor == (20, 1)
    assert len(both.changes()) == len(both.changes(always=True)) == 48


def test_floors_of_channels_are_kept_by_position() -> None:
    both = consumer(3, by_position=True)
    both.take(deliver(chunk_of(records(2), 4, epoch=2), 2))
    both.set_floor(2, 7, 50)
    both.granted(1)
    both.settle(1, ack_of((103, 2, ACK, 0)), 0)
    stored = both.changes()
    later = Both(by_position=True, first_lease=1000, seed=1)
    later.restore([stored], *both.seen)
    later.check()
    assert (later.floor_of(1), later.floor_of(2), later.floor_of(3)) == ((2, 5), (0, 0), (0, 0))
    # The earlier epoch is known to have jobs as soon as it is read again.
    assert both.floor_of(1) == (1, 0)
    assert both.floor_of(2) == (7, 50)


def test_a_reset_forgets_everything_but_members() -> None:
    both = consumer(3, by_position=True, by_key=True)
    both.take(deliver(chunk_of([Record(key=b"k"), Record(key=b"k")], 4), 2))
    both.granted(1)
    both.settle(1, ack_of((100, 1, NACK, 5), (101, 1, REJECT, 0)), 0)
    both.reset(9, 4)
    both.set_floor(1, 3, 17)
    both.check()
    assert (both.floor, both.floor_of(1), both.under_way(1), both.bytes_held) == ((9, 4), (3, 17), (0, 0), 0)
    assert both.settle(1, ack_of((100, 1, ACK, 0)), 0) == [(LEASE_EXPIRED, 100, 1)]
    stored = both.changes()
    assert not both.changed
    later = Both(by_position=True, first_lease=1000, seed=1)
    later.restore([consumer(2).snapshot(), stored])
    assert (later.floor, later.floor_of(1)) == ((9, 4), (3, 17))


def test_many_leases_at_a_time_and_one_that_stays() -> None:
    """Pages of leases come and go while the oldest lease is held."""
    both = Both(first_lease=1, seed=1)
    both.join(1, 5, 1, 1 << 20)
    both.join(2, 6, 10_000, 1 << 20)
    both.take(deliver(chunk_of(records(3000), 1), 1))
    both.granted(1)
    for _ in range(3):
        granted = both.granted(2, jobs_max=900)
        assert both.settle(2, ack_of((granted.first, 900, ACK, 0)), 0) == []
    assert both.settle(1, ack_of((1, 1, ACK, 0)), 0) == []
    assert both.granted(1).first == 2702
    both.check()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(15),
        ACK_HEADER.pack(1, 1, 1),
        ack_of((1, 1, ACK, 0)) + b"x",
        ack_of((1, 1, 0, 0)),
        ack_of((1, 1, 7, 0)),
        ack_of((1, 0, ACK, 0)),
        ack_of((1, 1, ACK, 1)),
        ack_of((1, 1, REJECT, 1)),
        ack_of((1, 1, ACK_THROUGH, 1)),
        ack_of((1, 2, ACK_THROUGH, 0)),
        ack_of((2**64 - 1, 2, ACK, 0)),
        ack_of((1, ACK_LEASES_MAX, ACK, 0), (1, 1, ACK, 0)),
        ACK_HEADER.pack(1, 1, 1) + ACK_ENTRY.pack(1, 1, ACK, b"\1\0\0", 0),
        ACK_HEADER.pack(1, 1, 1) + ACK_ENTRY.pack(1, 1, ACK, b"\0\0\1", 0),
    ],
)
def test_a_damaged_ack_is_refused_as_a_whole(body: bytes) -> None:
    both = consumer(1)
    lease = both.granted(1).first
    with pytest.raises(ValueError, match="ack: got"):
        both.settle(1, body, 0)
    assert both.settle(1, ack_of((lease, 1, ACK, 0)), 0) == []
    assert both.settle(1, ack_of((2**64 - 1, 1, ACK, 0)), 0) == [(LEASE_UNKNOWN, 2**64 - 1, 1)]


def damaged(at: int, value: int, size: int = 1, record: Record | None = None) -> bytes:
    """Return a delivery of one record in which some bytes say something else; `at` counts from its chunk."""
    frame = bytearray(deliver(chunk_of([record or Record(payload=b"payload")], 1), 1))
    offset = len(frame) - len(build_chunk(chunk_of([record or Record(payload=b"payload")], 1)))
    frame[offset + at : offset + at + size] = value.to_bytes(size, "little")
    return bytes(frame)


RECORD_AT = CHUNK_HEADER.size


@pytest.mark.parametrize(
    "frames",
    [
        b"x",
        deliver(chunk_of(records(1), 1), 1)[:-1],
        build_frame(DELIVER, bytes(15)),
        build_frame(DELIVER, bytes(16), DELIVER_NAME),
        build_frame(DELIVER, bytes(16) + b"\5abcd", DELIVER_NAME),
        build_frame(DELIVER, bytes(70)),
        damaged(0, 1000, 4),
        damaged(24, 0, 8),
        damaged(24, 2**63, 8),
        damaged(32, 0, 4),
        damaged(32, 2, 4),
        damaged(RECORD_AT, 11, 4),
        damaged(RECORD_AT, 20, 4),
        damaged(RECORD_AT, 18, 4),
        damaged(RECORD_AT + 4, 0x8000, 2),
        damaged(RECORD_AT + 16, 0, 4, Record(gone=(2, 1))),
        damaged(RECORD_AT + 16, 2, 4, Record(gone=(2, 1))),
        damaged(RECORD_AT + 4, 0x0001, 2),
        damaged(RECORD_AT + 4, 0x0001, 2, Record()),
        damaged(RECORD_AT + 4, 0x0002, 2),
        damaged(RECORD_AT + 4, 0x0006, 2, Record(payload=b"12345678")),
        damaged(RECORD_AT + 4, 0x0008, 2, Record(payload=b"123")),
        damaged(RECORD_AT + 4, 0x0010, 2, Record(payload=b"1")),
        damaged(RECORD_AT + 4, 0x0010, 2),
    ],
)
def test_a_damaged_stream_is_refused(frames: bytes) -> None:
    jobs = Jobs(first_lease=1, seed=1, by_key=True, lanes=True)
    with pytest.raises(ValueError, match="frames: "):
        jobs.take(frames)
    assert jobs.take(deliver(chunk_of(records(3), 2), 2)) == []
    assert jobs.ready >= 2


@pytest.mark.parametrize(
    "payload",
    [
        b"x",
        bytes(48),
        b"\1\2" + bytes(46),
        b"\3\1" + bytes(46),
        b"\1\1" + bytes(47),
        b"\1\1\0\0\1" + bytes(43),
        b"\1\1\0\0\1" + bytes(43) + bytes(36) + b"\1" + bytes(11),
        b"\1\1\0\0\1" + bytes(43) + bytes(36) + b"\1" + bytes(11) + bytes(16),
        b"\1\1\0\0\1" + bytes(43) + bytes(36) + b"\1" + bytes(11) + struct.pack("<QQ", 5, 4),
        b"\1\1\0\0\1" + bytes(43) + bytes(36) + b"\1" + bytes(11) + struct.pack("<QQ", 5, 2**63),
    ],
)
def test_a_damaged_state_is_refused(payload: bytes) -> None:
    jobs = Jobs(first_lease=1, seed=1)
    with pytest.raises(ValueError, match="jobs: got"):
        jobs.restore([payload])


def test_a_state_is_restored_before_anything_else() -> None:
    both = consumer(1)
    with pytest.raises(ValueError, match="restore: "):
        both.restore([])


@pytest.mark.parametrize(
    "options",
    [
        {"first_lease": 0},
        {"exclusive": True, "lanes": True},
        {"exclusive": True, "by_key": True},
        {"lease_ms": DELAY_MS_MAX + 1},
        {"attempts_max": 65536},
        {"backoff_first_ms": 2, "backoff_longest_ms": 1},
        {"backoff_longest_ms": DELAY_MS_MAX + 1},
    ],
)
def test_settings_out_of_range_are_refused(options: Settings) -> None:
    arguments: Settings = {"first_lease": 1, "seed": 1} | options
    for make in (Jobs, PlainJobs):
        with pytest.raises(ValueError, match=r"got|exclusive"):
            make(**arguments)


@pytest.mark.parametrize(("member", "window"), [(0, 1), (2, 0), (1, 1)])
def test_members_out_of_range_are_refused(member: int, window: int) -> None:
    with pytest.raises(ValueError, match="member: "):
        consumer().join(member, 1, window, 1)


def test_constants_are_those_of_the_twin() -> None:
    assert (native.JOB_BYTES, native.DELAY_MS_MAX, native.ACK_LEASES_MAX) == (JOB_BYTES, DELAY_MS_MAX, ACK_LEASES_MAX)


def test_a_backlog_that_is_done_leaves_nothing_behind() -> None:
    """More than is kept for the next jobs, done in no order."""
    jobs = Jobs(first_lease=1, seed=1)
    jobs.join(1, 5, 100_000, 1 << 30)
    for at in range(100):
        jobs.take(deliver(chunk_of([Record(payload=bytes(200))] * 100, 1 + 100 * at), at + 1))
    leases = []
    while frame := jobs.grant(1, 0):
        leases += [job[0] for job in Granted(frame).jobs]
    random.Random(4770).shuffle(leases)
    assert jobs.settle(1, ack_of(*((lease, 1, ACK, 0) for lease in leases)), 0) == []
    assert (jobs.done, jobs.leased, jobs.bytes_held, jobs.floor_of(1)) == (10_000, 0, 0, (1, 10_000))
    assert len(jobs.changes()) == 48
