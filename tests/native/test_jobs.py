"""What a consumer has to do: the native class against its plain-Python twin, and both against what was done.

A machine publishes chunks, delivers them (again), joins, grants, settles, lets time pass, asks for changes, and goes on
from any prefix of them. After each step everything that can be seen of the two is the same.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_native.jobs import Jobs
from tests.native.plain_jobs import (
    ACK,
    ACK_ENTRY,
    ACK_HEADER,
    ACK_THROUGH,
    BY_BACKOFF,
    DELAY_MS_MAX,
    EPHEMERAL_ID,
    EXTEND,
    INDEX_MAX,
    JOB,
    JOBS,
    JOBS_HEADER,
    NACK,
    REJECT,
    PlainJobs,
)
from tests.reference.frames import (
    DELIVER,
    DELIVER_EARLY,
    DELIVER_NAME,
    Record,
    build_frame,
    build_record,
    frames_of,
)
from tests.reference.groups import RECORD_HEADER, Chunk, build_chunk

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
                st.sampled_from([ACK, ACK, ACK, NACK, NACK, REJECT, EXTEND, ACK_THROUGH]),
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
                if track is None:
                    passed = chunk.epoch < twin.floor_of(chunk.channel)[0]
                    is_done = passed if self.by_position else chunk.place <= twin.floor
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


Consumer.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_machine = Consumer.TestCase
