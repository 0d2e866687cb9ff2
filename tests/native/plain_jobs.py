"""What one durable consumer has to do, in plain Python: the twin of `broker_native.jobs`.

It says what waits, who has what under which lease, how often each job was tried, and what is done. It is a pure state
machine: no clock, no I/O. Times are broker time in microseconds since 1970, members and channels are numbers.

**Jobs.** Chunks come in as DELIVER frames (`take`) of one subscription that tells names. A record is a job until it is
done; a GONE run is done at once, and so are sequences that the stream leaves out (retention took them). Records of
ephemeral channels (ids from 2^62 on) are passed over: a durable consumer reads what is stored. What has come once is
known: when the stream is read again from an earlier place, jobs that wait, are leased or are done are passed over, and
whatever stands at the floor of the bus or before it. A job whose record is past its EXPIRY is dropped when it would be
granted; it counts as done.

**Order.** Jobs are granted in the order in which they came, with `lanes` by the PRIORITY of their records: of 15 grants
8 go to lane 0, then 4, 2 and 1, as far as these have any. What comes again goes before what is new in its lane, in the
order in which it comes back. With `by_key` at most one job of a key is under way, and the next of the key waits until
it is done or dead, however long it is delayed; a key means the same in every channel. With `exclusive` there is one
member and one order: a job that comes back takes all that were granted after it along, and a delayed one holds up all
behind it. Exclusive has neither lanes nor keys.

**Leases.** A grant is one JOBS frame of consecutive leases, counted from `first_lease` on and never given twice. A
lease ends at its deadline (`lease_ms` after the grant, 0: never), by nack, or with its member; the job comes again. As
long as nobody was granted it anew the old lease still serves for ack and reject by its member, while that is there.

**Attempts** are grants. When a job comes back after `attempts_max` of them (0: no limit) it is dead (DEAD_ATTEMPTS); so
is a rejected one at once (DEAD_REJECTED). A dead job releases its key. It is done when `dead()` has handed it out, and
the next `changes()` says so: the copy and that go into the same group. In exclusive mode the jobs that come along with
another one do not have their attempt counted.

**What is stored.** `changes()` says what has been done since it was asked last, and attempts and delays: a first grant
is in memory only. `snapshot()` is the whole. Both begin with the floor of the bus: everything up to that place is done
(meaningful when the frames came from a subscription that stands by the bus). By `by_position` the floor of each channel
is kept for good, so that reading may begin by positions; without it a channel is left out once the bus's floor has
passed all that came of it. After a failed commit the runtime makes another `Jobs` with `first_lease=old.next_lease`
and restores that, with `old.seen`.

    header, 48 bytes: u8 kind (1 snapshot, 2 changes) | u8 format 1 | u16 0 | u32 sections | u64 floor's group |
      u32 floor's index | u32 0 | u64 seen's group | u32 seen's index | u32 0 | u64 0
    section, 48 bytes: u64 channel | u64 epoch | u64 floor | u64 last group | u32 last index | u32 runs | u32 notes |
      u32 0, then runs x (u64 first | u64 last), then notes x (u64 sequence | u64 due_us | u32 attempts)

`last` is the place of the newest chunk that came of the channel's epoch, 2^64 - 1 and 2^32 - 1 when none has come yet.
Runs are done and above the floor. Of several notes on one sequence the last one counts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.reference.frames import (
    DELIVER,
    DELIVER_EARLY,
    build_frame,
    delivery_of,
    frames_of,
    records_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

JOBS = 21
JOBS_HEADER = struct.Struct("<IIQQQ")
JOB = struct.Struct("<IIQQQHBBI")
JOB_REDELIVERED, JOB_NAME = 1, 2
JOBS_BODY_BYTES_MAX = 256 * 1024
ACK_HEADER = struct.Struct("<IIQ")
ACK_ENTRY = struct.Struct("<QIB3sQ")
ACK, NACK, REJECT, EXTEND, ACK_THROUGH, RELEASE = range(1, 7)
STATE_HEADER = struct.Struct("<BBHIQIIQIIQ")
SECTION = struct.Struct("<QQQQIIII")
RUN = struct.Struct("<QQ")
NOTE = struct.Struct("<QQI")
SNAPSHOT, CHANGES, FORMAT = 1, 2, 1

LEASE_UNKNOWN, LEASE_EXPIRED, INVALID_TIME = 3029, 3030, 3031
DEAD_REJECTED, DEAD_ATTEMPTS = 1, 2
WAITING, LEASED, DELAYED, DEAD = "waiting", "leased", "delayed", "dead"

JOB_BYTES = 192
"""What a job takes of memory besides its record, about."""
DELAY_MS_MAX = 366 * 24 * 60 * 60 * 1000
ACK_LEASES_MAX = 1 << 20
"""Leases that the entries of one ACK may name, together."""
BY_BACKOFF = 2**64 - 1
EPHEMERAL_ID = 1 << 62
INDEX_MAX = 2**32 - 1
SEQUENCE_MAX = 2**63 - 1
NOWHERE = (2**64 - 1, INDEX_MAX)
LANE_SHARES = (8, 4, 2, 1)
NORMAL_PRIORITY = 2
ATTEMPTS_WIRE_MAX = 65535

Place = tuple[int, int]


@dataclass(eq=False)
class Lot:
    """A chunk of which some jobs are not done."""

    place: Place
    left: int = 0


@dataclass(eq=False)
class Track:
    """What is known of one epoch of a channel.

    Attributes:
        known: Every sequence up to it has come: it is done, or among `undone`.
        last: The place of the newest chunk that has come; NOWHERE when none has yet.
        undone: Jobs by sequence, ascending.
        ahead: Sequences above `known` that are done, from before a restart.
        notes: (attempts, due_us) of sequences above `known`.
    """

    channel: int
    epoch: int
    known: int = 0
    last: Place = NOWHERE
    undone: dict[int, Job] = field(default_factory=dict)
    ahead: set[int] = field(default_factory=set)
    notes: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        return next(iter(self.undone)) - 1 if self.undone else self.known

    def absorb(self) -> None:
        """What is done right above `known` is known."""
        while self.known + 1 in self.ahead:
            self.known += 1
            self.ahead.discard(self.known)
            self.notes.pop(self.known, None)

    def runs(self) -> list[tuple[int, int]]:
        """Return the runs of what is done above the floor."""
        done = [sequence for sequence in range(self.floor + 1, self.known + 1) if sequence not in self.undone]
        return runs_of(done + sorted(self.ahead))


@dataclass(eq=False)
class Job:
    order: int
    track: Track
    sequence: int
    time_us: int
    record: bytes
    lane: int
    key: bytes | None
    expires_us: int
    lot: Lot
    attempts: int = 0
    again: bool = False
    noted: bool = False
    seen: bool = False
    due_us: int = 0
    state: str = WAITING
    lease: int = 0
    member: int = 0
    deadline_us: int = 0
    reason: int = 0


@dataclass(eq=False)
class Member:
    subscription: int
    window: int
    bytes_max: int
    jobs: int = 0
    record_bytes: int = 0
    leaving: bool = False
    names: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Lane:
    again: list[Job] = field(default_factory=list)
    fresh: list[Job] = field(default_factory=list)
    credit: int = 0

    @property
    def first(self) -> Job | None:
        jobs = self.again or self.fresh
        return jobs[0] if jobs else None


def runs_of(sequences: list[int]) -> list[tuple[int, int]]:
    """Join ascending sequences into runs (first, last)."""
    runs: list[tuple[int, int]] = []
    for sequence in sequences:
        if runs and runs[-1][1] + 1 == sequence:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs


def join_refusals(refused: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Join (code, lease) that follow one another into (code, first lease, leases)."""
    joined: list[tuple[int, int, int]] = []
    for code, lease in refused:
        if joined and joined[-1][0] == code and joined[-1][1] + joined[-1][2] == lease:
            joined[-1] = (code, joined[-1][1], joined[-1][2] + 1)
        else:
            joined.append((code, lease, 1))
    return joined


class PlainJobs:
    """The jobs of one consumer.

    Args:
        lanes: Whether jobs are granted by priority.
        by_key: Whether at most one job of a key is under way.
        exclusive: Whether there is one member at a time, and everything goes in order.
        by_position: Whether the floors of channels are kept for good.
        lease_ms: How long a lease lasts, to DELAY_MS_MAX; 0 for ever.
        attempts_max: After how many attempts a job that comes back is dead; 0 for never.
        backoff_first_ms, backoff_longest_ms: Before the second attempt, and before any, to DELAY_MS_MAX; each times a
            chance of 0.5 to 1.5.
        first_lease: The number of the first lease, from 1.
        seed: Of the chance in back-offs.

    Raises:
        ValueError: A number is out of its range, or exclusive comes with lanes or keys.
    """

    def __init__(
        self,
        *,
        lanes: bool = False,
        by_key: bool = False,
        exclusive: bool = False,
        by_position: bool = False,
        lease_ms: int = 30_000,
        attempts_max: int = 0,
        backoff_first_ms: int = 1_000,
        backoff_longest_ms: int = 60_000,
        first_lease: int,
        seed: int,
    ) -> None:
        if exclusive and (lanes or by_key):
            raise ValueError("exclusive: has neither lanes nor keys")
        if first_lease < 1:
            raise ValueError(f"lease: got {first_lease}, at least 1")
        self.configure(
            lease_ms=lease_ms,
            attempts_max=attempts_max,
            backoff_first_ms=backoff_first_ms,
            backoff_longest_ms=backoff_longest_ms,
        )
        self.by_lanes, self.by_key, self.exclusive, self.by_position = lanes, by_key, exclusive, by_position
        self.first_lease = self.next_lease = first_lease
        self.random = seed
        self.members: dict[int, Member] = {}
        self.names: dict[int, bytes] = {}
        self.done = self.redelivered = self.expired = 0
        self._clear()

    def configure(self, *, lease_ms: int, attempts_max: int, backoff_first_ms: int, backoff_longest_ms: int) -> None:
        """Change settings, from the next grant and the next back-off on; the arguments are those of the constructor."""
        if not 0 <= lease_ms <= DELAY_MS_MAX:
            raise ValueError(f"lease: got {lease_ms} ms, range 0 to {DELAY_MS_MAX}")
        if not 0 <= backoff_first_ms <= backoff_longest_ms <= DELAY_MS_MAX:
            raise ValueError(
                f"back-off: got {backoff_first_ms} and {backoff_longest_ms} ms, ascending in 0 to {DELAY_MS_MAX}"
            )
        if not 0 <= attempts_max <= ATTEMPTS_WIRE_MAX:
            raise ValueError(f"attempts: got {attempts_max}, range 0 to {ATTEMPTS_WIRE_MAX}")
        self.lease_ms, self.attempts_max = lease_ms, attempts_max
        self.backoff_first_ms, self.backoff_longest_ms = backoff_first_ms, backoff_longest_ms

    def _clear(self) -> None:
        self.tracks: dict[tuple[int, int], Track] = {}
        self.jobs: dict[int, Job] = {}
        self.keys: dict[bytes, list[Job]] = {}
        self.lanes = [Lane() for _ in LANE_SHARES]
        self.leases: dict[int, Job] = {}
        self.lots: list[Lot] = []
        self.dying: list[Job] = []
        self.order = 0
        self.last_floor: Place = (0, 0)
        self.vouched: Place = (0, 0)
        self.seen: Place = (0, 0)
        self.flagged: Place = (0, 0)
        self.acked_log: dict[Track, list[tuple[int, int]]] = {}
        self.notes_log: dict[Track, list[tuple[int, int, int]]] = {}
        self.anew = False
        for member in self.members.values():
            member.jobs = member.record_bytes = 0

    # -- reading -------------------------------------------------------------------------------------------------------

    def take(self, frames: bytes) -> list[tuple[int, bytes]]:
        """Take what the stream says.

        Args:
            frames: Whole frames of one subscription that tells names; copied.

        Returns:
            The other frames than DELIVER: (kind, body).

        Raises:
            ValueError: They are not well formed; what stands before the damage is taken.
        """
        others = []
        for frame in frames_of(frames):
            if frame.kind != DELIVER:
                others.append((frame.kind, frame.body))
                continue
            delivery = delivery_of(frame)
            chunk = delivery.chunk
            if delivery.name is not None:
                self.names[chunk.channel] = delivery.name
            if chunk.channel >= EPHEMERAL_ID:
                continue
            early = bool(delivery.flags & DELIVER_EARLY)
            passed = not self.by_position and delivery.group > 0 and (delivery.group, delivery.index) <= self.floor
            place = (delivery.group, delivery.index) if delivery.group else self.vouched
            if not early:
                self.vouched = max(self.vouched, place)
            elif delivery.group > 2:
                self.vouched = max(self.vouched, (delivery.group - 2, INDEX_MAX))
            track = self._track(chunk.channel, chunk.epoch)
            track.last = place if track.last == NOWHERE else max(track.last, place)
            lot = Lot(place)
            if chunk.first > track.known + 1:
                self._know(track, chunk.first - 1)
            sequence, at = chunk.first, 0
            for record in records_of(chunk):
                size = struct.unpack_from("<I", chunk.records, at)[0]
                raw = chunk.records[at : at + size]
                at += size
                if record.gone is not None:
                    sequence += record.run
                    if sequence - 1 > track.known:
                        self._know(track, sequence - 1)
                    continue
                if sequence > track.known:
                    if sequence in track.ahead or passed:
                        self._know(track, sequence)
                    else:
                        time_us = chunk.time_us + record.time_us
                        job = Job(
                            self.order,
                            track,
                            sequence,
                            time_us,
                            raw[:8] + bytes(4) + raw[12:],
                            self._lane_of(record.priority),
                            record.key if self.by_key else None,
                            time_us + record.expiry_s * 1_000_000 if record.expiry_s else 0,
                            lot,
                        )
                        self._add(job)
                sequence += 1
            track.absorb()
            if lot.left:
                self.lots.append(lot)
        return others

    def _lane_of(self, priority: int | None) -> int:
        if not self.by_lanes:
            return 0
        return min(priority, 3) if priority is not None else NORMAL_PRIORITY

    def _track(self, channel: int, epoch: int) -> Track:
        if (channel, epoch) not in self.tracks:
            self.tracks[channel, epoch] = Track(channel, epoch)
        return self.tracks[channel, epoch]

    def _know(self, track: Track, sequence: int) -> None:
        """Everything up to a sequence has come."""
        track.known = sequence
        track.ahead = {done for done in track.ahead if done > sequence}
        track.notes = {noted: note for noted, note in track.notes.items() if noted > sequence}

    def _add(self, job: Job) -> None:
        track = job.track
        if job.sequence in track.notes:
            job.attempts, job.due_us = track.notes[job.sequence]
            job.noted = job.seen = True
        self._know(track, job.sequence)
        job.seen = job.seen or job.lot.place <= self.flagged
        self.order += 1
        job.lot.left += 1
        track.undone[job.sequence] = job
        self.jobs[job.order] = job
        if job.key is not None:
            self.keys.setdefault(job.key, []).append(job)
            if self.keys[job.key][0] is not job:
                return
        self._enter(job)

    def reached(self, group: int, index: int) -> None:
        """Say that everything of the filters up to a place of the bus has been taken, though nothing came of it."""
        self.vouched = max(self.vouched, (group, index))

    # -- what waits ----------------------------------------------------------------------------------------------------

    def _enter(self, job: Job) -> None:
        """Let a job wait for its grant, or for its time."""
        job.state = DELAYED if job.due_us else WAITING
        if not job.due_us or self.exclusive:
            lane = self.lanes[job.lane]
            (lane.again if job.again else lane.fresh).append(job)

    def _withdraw(self, job: Job) -> None:
        """Take a job out of where it waits."""
        lane = self.lanes[job.lane]
        for jobs in (lane.again, lane.fresh):
            if job in jobs:
                jobs.remove(job)

    def _release_key(self, job: Job) -> None:
        """Let the next of a job's key come."""
        if job.key is None:
            return
        chain = self.keys[job.key]
        first = chain[0] is job
        chain.remove(job)
        if not chain:
            del self.keys[job.key]
        elif first:
            self._enter(chain[0])

    def _end_lease(self, job: Job) -> None:
        """Free what a leased job takes of its member's window."""
        if job.state == LEASED:
            member = self.members[job.member]
            member.jobs -= 1
            member.record_bytes -= len(job.record)
            job.deadline_us = 0

    def _forget_lease(self, job: Job) -> None:
        self._end_lease(job)
        self.leases.pop(job.lease, None)
        job.lease = job.member = 0

    def _finish(self, job: Job) -> None:
        """A job is done."""
        self._forget_lease(job)
        if job.state != DEAD:
            self._withdraw(job)
            self._release_key(job)
        track = job.track
        del track.undone[job.sequence], self.jobs[job.order]
        job.lot.left -= 1
        if not job.lot.left and job.lot in self.lots:
            self.lots.remove(job.lot)
        self._log(track, job.sequence, job.sequence)
        self.done += 1

    def _log(self, track: Track, first: int, last: int) -> None:
        log = self.acked_log.setdefault(track, [])
        if log and log[-1][1] + 1 == first:
            log[-1] = (log[-1][0], last)
        else:
            log.append((first, last))

    def _die(self, job: Job, reason: int) -> None:
        """A job is dead, and done once that has been told."""
        self._forget_lease(job)
        self._withdraw(job)
        job.state, job.reason = DEAD, reason
        self.dying.append(job)
        self._release_key(job)

    def _note(self, job: Job) -> None:
        job.noted = True
        self.notes_log.setdefault(job.track, []).append((job.sequence, job.due_us, job.attempts))

    def _come_again(self, job: Job, due_us: int) -> None:
        """A leased job comes back: it waits again, for its grant or for its time, or is dead."""
        self._end_lease(job)
        job.state, job.again, job.seen = WAITING, True, True
        if self.attempts_max and job.attempts >= self.attempts_max:
            self._die(job, DEAD_ATTEMPTS)
            return
        job.due_us = due_us
        if due_us:
            self._note(job)
        if self.exclusive:
            job.state = DELAYED if due_us else WAITING
            self.lanes[0].fresh.insert(0, job)
        else:
            self._enter(job)

    def _give_back(self, job: Job) -> None:
        """A leased job comes back that nobody has begun."""
        self._end_lease(job)
        job.state, job.again, job.due_us = WAITING, True, 0
        job.attempts -= 1
        if job.noted:
            self._note(job)
        if self.exclusive:
            self.lanes[0].fresh.insert(0, job)
        else:
            self._enter(job)

    def _come_along(self, job: Job) -> None:
        """Everything that was granted after a job comes back before it does itself (exclusive mode)."""
        later = [other for other in self.jobs.values() if other.state == LEASED and other.order > job.order]
        for other in sorted(later, key=lambda other: other.order, reverse=True):
            self._end_lease(other)
            other.state, other.seen = WAITING, True
            other.attempts -= 1
            self.lanes[0].fresh.insert(0, other)

    def _come_back(self, jobs: list[Job]) -> None:
        """Leased jobs come back at once; in the order in which they were taken."""
        jobs = sorted(jobs, key=lambda job: job.order)
        if self.exclusive and jobs:
            self._come_along(jobs[0])
            jobs = jobs[:1]
        for job in jobs:
            self._come_again(job, 0)

    def _backoff_us(self, attempts: int) -> int:
        base_us = min(self.backoff_longest_ms, self.backoff_first_ms << (attempts - 1)) * 1000
        return base_us // 2 + (base_us * (self._chance() >> 48) >> 16)

    def _chance(self) -> int:
        """Draw 64 bits (splitmix64)."""
        mask = 2**64 - 1
        self.random = (self.random + 0x9E3779B97F4A7C15) & mask
        value = self.random
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    # -- members -------------------------------------------------------------------------------------------------------

    def join(self, member: int, subscription: int, window: int, bytes_max: int, channels: Sequence[int] = ()) -> None:
        """Take a member in.

        Args:
            member: A number from 1 that no member has or ever had.
            subscription: What its connection calls it: stands in its JOBS frames.
            window: Jobs under way at most, from 1.
            bytes_max: Bytes of their records at most; a first job is granted whatever its size.
            channels: Ids of the channels that its subscription knows already, by number: what `channels_of` of other
                `Jobs` returned that it was a member of.

        Raises:
            ValueError: The number is taken, or exclusive has a member already, or a number is out of range.
        """
        if member in self.members or (self.exclusive and self.members):
            raise ValueError(f"member: {member} cannot join")
        if member < 1 or window < 1:
            raise ValueError(f"member: got {member} with a window of {window}, both from 1")
        names = {channel: number for number, channel in enumerate(channels)}
        self.members[member] = Member(subscription, window, bytes_max, names=names)

    def leave(self, member: int) -> int:
        """Let a member go; what it has comes again at once.

        Returns:
            How many leases ended.

        Raises:
            KeyError: There is no such member.
        """
        if member not in self.members:
            raise KeyError(member)
        held = [job for job in self.leases.values() if job.member == member]
        leased = [job for job in held if job.state == LEASED]
        self._come_back(leased)
        for job in held:
            self._forget_lease(job)
        del self.members[member]
        return len(leased)

    def channels_of(self, member: int) -> list[int]:
        """Return the ids of the channels that a member's subscription knows, by number; KeyError without it."""
        return list(self.members[member].names)

    def is_leaving(self, member: int) -> bool:
        """Return whether a member has released jobs, and is granted nothing more; KeyError without it."""
        return self.members[member].leaving

    def under_way(self, member: int) -> tuple[int, int]:
        """Return how many jobs a member has under lease, and the bytes of their records; KeyError without it."""
        return self.members[member].jobs, self.members[member].record_bytes

    def grant(self, member: int, now_us: int, jobs_max: int = INDEX_MAX) -> bytes:
        """Grant a member what it has room for.

        Args:
            member: The member.
            now_us: Broker time.
            jobs_max: No more jobs than this, from 1.

        Returns:
            One JOBS frame, header included; b"" when nothing can be granted. Not all that can be need be in it.

        Raises:
            KeyError: There is no such member.
        """
        who = self.members[member]
        first = self.next_lease
        jobs: list[bytes] = []
        size = JOBS_HEADER.size
        while len(jobs) < jobs_max and who.jobs < who.window and not who.leaving:
            job = self._next_job()
            if job is None:
                break
            if job.expires_us and job.expires_us <= now_us:
                self.expired += 1
                self._finish(job)
                continue
            named = job.track.channel not in who.names
            name = self.names.get(job.track.channel, b"") if named else b""
            more = JOB.size + len(name) + len(job.record)
            if jobs and size + more > JOBS_BODY_BYTES_MAX:
                break
            if who.jobs and who.record_bytes + len(job.record) > who.bytes_max:
                break
            size += more
            jobs.append(self._grant_job(job, member, now_us, name, named=named))
        if not jobs:
            return b""
        header = JOBS_HEADER.pack(who.subscription, len(jobs), first, self.lease_ms, 0)
        return build_frame(JOBS, header + b"".join(jobs))

    def _next_job(self) -> Job | None:
        """Return the job whose turn it is."""
        filled = [lane for lane in self.lanes if lane.first is not None]
        if filled and not any(lane.credit for lane in filled):
            for lane, share in zip(self.lanes, LANE_SHARES, strict=True):
                lane.credit = share
        job = next((lane.first for lane in filled if lane.credit), None)
        return None if job is not None and job.state == DELAYED else job

    def _grant_job(self, job: Job, member: int, now_us: int, name: bytes, *, named: bool) -> bytes:
        who = self.members[member]
        if named:
            who.names[job.track.channel] = len(who.names)
        self.lanes[job.lane].credit -= 1
        self._withdraw(job)
        self._forget_lease(job)
        job.state, job.lease, job.member = LEASED, self.next_lease, member
        job.deadline_us = now_us + self.lease_ms * 1000 if self.lease_ms else 0
        job.attempts += 1
        self.leases[job.lease] = job
        self.next_lease += 1
        who.jobs += 1
        who.record_bytes += len(job.record)
        self.seen = max(self.seen, job.lot.place)
        flags = JOB_NAME if named else 0
        if job.attempts > 1:
            self._note(job)
        if job.attempts > 1 or job.seen:
            flags |= JOB_REDELIVERED
            self.redelivered += 1
        size = JOB.size + len(name) + len(job.record)
        header = JOB.pack(
            size,
            who.names[job.track.channel],
            job.track.epoch,
            job.sequence,
            job.time_us,
            min(job.attempts, ATTEMPTS_WIRE_MAX),
            flags,
            len(name),
            0,
        )
        return header + name + job.record

    # -- settling ------------------------------------------------------------------------------------------------------

    def settle(self, member: int, body: bytes, now_us: int) -> list[tuple[int, int, int]]:
        """Take what a member says of its jobs.

        Args:
            member: The member.
            body: An ACK frame's body. Its subscription and number are not looked at.
            now_us: Broker time.

        Returns:
            What is refused: (code, first lease, leases), leases that follow one another together.
            LEASE_UNKNOWN: never granted, or another member has it. LEASE_EXPIRED: it is over, since its job was
            granted again or is settled; for nack and extend also when it has ended and the job waits (but a nack in
            exclusive mode, which takes all behind it along).
            INVALID_TIME: nack or extend by more than DELAY_MS_MAX; the whole entry.

        Raises:
            ValueError: The body is not well formed; nothing of it is taken.
            KeyError: There is no such member.
        """
        if member not in self.members:
            raise KeyError(member)
        refused: list[tuple[int, int, int]] = []
        for first, leases, verb, ms in entries_of(body):
            if verb == RELEASE:
                self.members[member].leaving = True
            if verb in (NACK, EXTEND) and ms > DELAY_MS_MAX and not (verb == NACK and ms == BY_BACKOFF):
                refused.append((INVALID_TIME, first, leases))
            elif verb == ACK_THROUGH:
                if not self.first_lease <= first < self.next_lease:
                    refused.append((LEASE_UNKNOWN, first, 1))
                    continue
                for job in sorted(self.leases.values(), key=lambda job: job.lease):
                    if job.member == member and job.lease <= first:
                        self._finish(job)
            else:
                refused += join_refusals(self._settle_leases(member, first, leases, verb, ms, now_us))
        return refused

    def refusal(self, member: int, body: bytes) -> tuple[int, int, int] | None:
        """The first refusal of an ACK that acknowledges and nothing else, were it taken now; or None.

        Nothing changes. As `settle`; ValueError for another verb too.
        """
        if member not in self.members:
            raise KeyError(member)
        for first, leases, verb, _ in entries_of(body):
            if verb != ACK:
                raise ValueError(f"ack: got verb {verb}, expected {ACK}: it acknowledges")
            for lease in range(first, first + leases):
                job = self.leases.get(lease)
                if job is None:
                    known = self.first_lease <= lease < self.next_lease
                    return LEASE_EXPIRED if known else LEASE_UNKNOWN, lease, 1
                if job.member != member:
                    return LEASE_UNKNOWN, lease, 1
        return None

    def _settle_leases(
        self, member: int, first: int, leases: int, verb: int, ms: int, now_us: int
    ) -> list[tuple[int, int]]:
        refused: list[tuple[int, int]] = []
        for lease in range(first, first + leases):
            job = self.leases.get(lease)
            if job is None:
                granted = self.first_lease <= lease < self.next_lease
                refused.append((LEASE_EXPIRED if granted else LEASE_UNKNOWN, lease))
            elif job.member != member:
                refused.append((LEASE_UNKNOWN, lease))
            elif verb in (NACK, RELEASE) and job.state != LEASED and self.exclusive:
                continue  # it came along with the one before it
            elif verb in (NACK, EXTEND, RELEASE) and job.state != LEASED:
                refused.append((LEASE_EXPIRED, lease))
            elif verb == ACK:
                self._finish(job)
            elif verb == REJECT:
                self._die(job, DEAD_REJECTED)
            elif verb == EXTEND:
                lease_ms = ms or self.lease_ms
                job.deadline_us = now_us + lease_ms * 1000 if lease_ms else 0
            elif verb == RELEASE:
                if self.exclusive:
                    self._come_along(job)
                self._give_back(job)
            else:
                delay_us = self._backoff_us(job.attempts) if ms == BY_BACKOFF else ms * 1000
                if self.exclusive:
                    self._come_along(job)
                self._come_again(job, now_us + delay_us if delay_us else 0)
        return refused

    def done_at(self, channel: int, epoch: int, first: int, count: int) -> list[tuple[int, int]]:
        """Take an ack by positions, as from a member that was connected before.

        Args:
            channel: Its id.
            epoch, first, count: Sequences of one epoch, `first` and `count` from 1, the last below 2^63 - 1. The
                caller sees to it that they have been given out.

        Returns:
            What does not count, since somebody has it under lease now: runs (first, count).

        Raises:
            ValueError: The sequences are out of range.
        """
        if first < 1 or count < 1 or first + count >= SEQUENCE_MAX:
            raise ValueError(f"done: got {count} sequences from {first}")
        track = self._track(channel, epoch)
        last = first + count - 1
        refused = []
        for sequence in [sequence for sequence in track.undone if first <= sequence <= last]:
            job = track.undone[sequence]
            if job.state == LEASED:
                refused.append(sequence)
            elif job.state != DEAD:
                self._finish(job)
        above = max(first, track.known + 1)
        if above <= last:
            track.ahead.update(range(above, last + 1))
            self._log(track, above, last)
            track.absorb()
        return [(run_first, run_last - run_first + 1) for run_first, run_last in runs_of(refused)]

    def expire(self, now_us: int) -> int:
        """Let leases end whose deadline has come, and delays that are over.

        Returns:
            How many jobs that concerns. All of them come again in the order in which they were taken.
        """
        ended = [job for job in self.jobs.values() if job.state == LEASED and 0 < job.deadline_us <= now_us]
        due = [job for job in self.jobs.values() if job.state == DELAYED and job.due_us <= now_us]
        count = len(ended) + len(due)
        if self.exclusive:
            for job in due:
                job.state, job.due_us = WAITING, 0
            self._come_back(ended)
            return count
        for job in sorted(ended + due, key=lambda job: job.order):
            if job.state == LEASED:
                self._come_again(job, 0)
            else:
                job.due_us, job.again = 0, True
                self._enter(job)
        return count

    def next_us(self) -> int:
        """Return when the next lease ends or delay is over; 0 when none does."""
        times = [job.deadline_us for job in self.jobs.values() if job.state == LEASED and job.deadline_us]
        times += [job.due_us for job in self.jobs.values() if job.state == DELAYED]
        return min(times, default=0)

    def dead(self) -> list[tuple[bytes, int, int, int, int, bytes]]:
        """Hand out what has died, in the order in which it did; it is done from here on.

        Returns:
            (the channel's name, epoch, sequence, attempts, reason, record) of each. The record's time is 0.
        """
        dying, self.dying = self.dying, []
        for job in dying:
            self._finish(job)
        return [
            (
                self.names.get(job.track.channel, b""),
                job.track.epoch,
                job.sequence,
                job.attempts,
                job.reason,
                job.record,
            )
            for job in dying
        ]

    # -- floors --------------------------------------------------------------------------------------------------------

    def purge(self) -> int:
        """Everything that has been taken is done, whoever has it; answers how many jobs that were."""
        count = len(self.jobs)
        self.dying.clear()
        for job in self._by_place():
            self._finish(job)
        return count

    def reset(self, group: int, index: int) -> None:
        """Forget everything and begin behind a place of the bus: all leases are over, and nothing is done.

        Members stay, with nothing under way. The next `changes()` is a snapshot.
        """
        self._clear()
        self.last_floor = self.vouched = (group, index)
        self.anew = True

    def set_floor(self, channel: int, epoch: int, sequence: int) -> None:
        """Begin behind a position: everything of the channel up to it is done. To be called before anything of it came,
        and followed by a snapshot: no `changes()` tells it, but those after `reset`.
        """
        track = self._track(channel, epoch)
        if not track.undone and sequence > track.known:
            self._know(track, sequence)
            track.absorb()

    @property
    def floor(self) -> Place:
        """The place of the bus up to which everything is done. It never goes back but by `reset`."""
        floor = self.vouched
        if self.lots:
            group, index = min(lot.place for lot in self.lots)
            floor = min(floor, (group, index - 1) if index else (max(group, 1) - 1, INDEX_MAX))
        self.last_floor = max(self.last_floor, floor)
        return self.last_floor

    def floor_of(self, channel: int) -> tuple[int, int]:
        """Return the position up to which everything of a channel is done: (epoch, sequence), (0, 0) when unknown."""
        undone = [track for track in self.tracks.values() if track.channel == channel and track.undone]
        track = min(undone, key=lambda track: track.epoch, default=None) or self._newest(channel)
        return (track.epoch, track.floor) if track is not None else (0, 0)

    # -- what is stored ------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether `changes()` has something to say."""
        return bool(self.acked_log or self.notes_log) or self.anew

    def changes(self, always: bool = False) -> bytes:
        """Return what has changed since the last call.

        Args:
            always: Also when it is no more than the floor and `seen`, as before a stop in good order.

        Returns:
            The changes, for `restore`; b"" when there are none.
        """
        if self.anew:
            whole = self.snapshot()
            self._told()
            return whole
        if not self.changed and not always:
            return b""
        sections = []
        floor = self.floor
        for track in {**self.acked_log, **self.notes_log}:
            if self.by_position:
                # Or nobody would read what is not done of earlier epochs, once something of this one is stored.
                sections += [self._section(other, [], []) for other in self._left_behind(track)]
            if self.by_position or track.last > floor:
                runs = [run for run in self.acked_log.get(track, []) if run[0] > track.floor]
                sections.append(self._section(track, runs, self.notes_log.get(track, [])))
        self._told()
        return self._state(CHANGES, sections)

    def _told(self) -> None:
        self.acked_log, self.notes_log, self.anew = {}, {}, False

    def snapshot(self) -> bytes:
        """Return the whole state, what `changes()` would say included; channels by id, epochs ascending."""
        floor = self.floor
        sections = []
        for _, track in sorted(self.tracks.items()):
            if self.by_position:
                kept = track is self._newest(track.channel) or bool(track.ahead or track.notes)
            else:
                kept = track.last > floor
            if kept or track.undone:
                notes = [(job.sequence, job.due_us, job.attempts) for job in track.undone.values() if job.noted]
                notes += [(sequence, due_us, attempts) for sequence, (attempts, due_us) in sorted(track.notes.items())]
                sections.append(self._section(track, track.runs(), notes))
        return self._state(SNAPSHOT, sections)

    def _left_behind(self, track: Track) -> list[Track]:
        earlier = [other for (channel, _), other in sorted(self.tracks.items()) if channel == track.channel]
        return [
            other
            for other in earlier
            if other.epoch < track.epoch
            and other.undone
            and other not in self.acked_log
            and other not in self.notes_log
        ]

    def _newest(self, channel: int) -> Track | None:
        known = [track for track in self.tracks.values() if track.channel == channel and track.known]
        return max(known, key=lambda track: track.epoch, default=None)

    def _state(self, kind: int, sections: list[bytes]) -> bytes:
        header = STATE_HEADER.pack(kind, FORMAT, 0, len(sections), *self.floor, 0, *self.seen, 0, 0)
        return header + b"".join(sections)

    def _section(self, track: Track, runs: list[tuple[int, int]], notes: list[tuple[int, int, int]]) -> bytes:
        header = SECTION.pack(track.channel, track.epoch, track.floor, *track.last, len(runs), len(notes), 0)
        return header + b"".join(RUN.pack(*run) for run in runs) + b"".join(NOTE.pack(*note) for note in notes)

    def restore(self, payloads: list[bytes], group: int = 0, index: int = 0) -> None:
        """Make the state what it was; on one that has taken nothing yet.

        Args:
            payloads: What `snapshot` and `changes` returned, in order; empty ones are passed over. A snapshot stands
                for all before it.
            group, index: Jobs up to this place of the bus may have been seen by somebody: they come flagged. After a
                stop in good order leave it out, else it is where the log ends, or the `seen` of the other Jobs.

        Raises:
            ValueError: A payload is not what was stored, or something has been taken already.
        """
        if self.jobs or self.acked_log:
            raise ValueError("restore: jobs have been taken already")
        for payload in payloads:
            if payload:
                self._apply(payload)
        floor = self.last_floor
        for place, track in list(self.tracks.items()):
            track.ahead = {sequence for sequence in track.ahead if sequence > track.known}
            track.absorb()
            done = track.ahead
            track.notes = {
                sequence: note
                for sequence, note in track.notes.items()
                if sequence > track.known and sequence not in done
            }
            if not self.by_position and track.last <= floor:
                del self.tracks[place]
        self.vouched = max(self.vouched, floor)
        self.flagged = max(self.seen, (group, index))
        self.seen = self.flagged

    def _apply(self, payload: bytes) -> None:
        kind, form, _, sections, group, index, _, seen_group, seen_index, _, _ = STATE_HEADER.unpack_from(payload)
        if kind not in (SNAPSHOT, CHANGES) or form != FORMAT:
            raise ValueError(f"jobs: got a state of kind {kind}, format {form}")
        if kind == SNAPSHOT:
            self._clear()
        self.last_floor = max(self.last_floor, (group, index))
        self.seen = max(self.seen, (seen_group, seen_index))
        at = STATE_HEADER.size
        for _ in range(sections):
            channel, epoch, floor, last_group, last_index, runs, notes, _ = SECTION.unpack_from(payload, at)
            at += SECTION.size
            track = self._track(channel, epoch)
            track.known = max(track.known, floor)
            last = (last_group, last_index)
            track.last = last if track.last == NOWHERE else track.last if last == NOWHERE else max(track.last, last)
            for _ in range(runs):
                first, run_last = RUN.unpack_from(payload, at)
                track.ahead.update(range(first, run_last + 1))
                at += RUN.size
            for _ in range(notes):
                sequence, due_us, attempts = NOTE.unpack_from(payload, at)
                track.notes[sequence] = (attempts, due_us)
                at += NOTE.size
        if at != len(payload):
            raise ValueError(f"jobs: got a state of {len(payload)} bytes, expected {at}")

    # -- counts --------------------------------------------------------------------------------------------------------

    def _by_place(self) -> list[Job]:
        return sorted(self.jobs.values(), key=lambda job: (job.lot.place, job.order))

    def _count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs.values())

    @property
    def ready(self) -> int:
        """Jobs that are neither leased, delayed nor dead; with keys also those behind another one of their key."""
        return self._count(WAITING)

    @property
    def leased(self) -> int:
        """Jobs under lease."""
        return self._count(LEASED)

    @property
    def delayed(self) -> int:
        """Jobs that wait for their time."""
        return self._count(DELAYED)

    @property
    def doomed(self) -> int:
        """Jobs that have died and were not handed out yet."""
        return len(self.dying)

    @property
    def bytes_held(self) -> int:
        """Bytes in memory, about: those of the records, and JOB_BYTES a job."""
        return sum(JOB_BYTES + len(job.record) for job in self.jobs.values())

    def waiting(self, limit: int) -> list[tuple[bytes, int, int, int, int, int]]:
        """Return the oldest jobs that are not done: (channel's name, epoch, sequence, attempts, due_us, member).

        Args:
            limit: How many at most.

        Returns:
            By their places on the bus, dead ones left out; `due_us` is 0 unless the job is delayed, `member` unless it
            is leased.
        """
        found: list[tuple[bytes, int, int, int, int, int]] = []
        for job in self._by_place():
            if job.state != DEAD and len(found) < limit:
                due_us = job.due_us if job.state == DELAYED else 0
                member = job.member if job.state == LEASED else 0
                name = self.names.get(job.track.channel, b"")
                found.append((name, job.track.epoch, job.sequence, job.attempts, due_us, member))
        return found


def entries_of(body: bytes) -> list[tuple[int, int, int, int]]:
    """Return the entries of an ACK's body: (first lease, leases, verb, ms).

    Raises:
        ValueError: It is not well formed.
    """
    if len(body) < ACK_HEADER.size:
        raise ValueError(f"ack: got {len(body)} bytes, at least {ACK_HEADER.size}")
    _, count, _ = ACK_HEADER.unpack_from(body)
    if len(body) != ACK_HEADER.size + count * ACK_ENTRY.size:
        raise ValueError(f"ack: got {len(body)} bytes for {count} entries")
    found = []
    total = 0
    for first, leases, verb, zero, ms in ACK_ENTRY.iter_unpack(body[ACK_HEADER.size :]):
        total += leases
        if not 1 <= verb <= 6 or zero != bytes(3) or leases < 1 or first + leases > 2**64:
            raise ValueError(f"ack: got verb {verb} of {leases} leases from {first}")
        if (ms and verb not in (NACK, EXTEND)) or (leases > 1 and verb == ACK_THROUGH):
            raise ValueError(f"ack: got verb {verb} of {leases} leases with {ms} ms")
        if total > ACK_LEASES_MAX:
            raise ValueError(f"ack: got {total} leases, limit {ACK_LEASES_MAX}")
        found.append((first, leases, verb, ms))
    return found
