"""One durable consumer in memory: what it reads, who takes its jobs, and what of it is stored.

Its source comes from a `Reader`, its jobs are kept by `broker_native.jobs`, and what has changed of them is stored once
a group as a state of the core (`broker.core.states`), in the very group of whatever else happens then. A dead job's
copy is put into the group that says that the job is done.

In a turn a consumer only notes what happens; `turn` then buries the dead, gives out what is ready, to each member in
turn, and has the rest stored. Nothing waits for the disk but the answer that an ACK is committed. After a failed commit
the consumer is made anew from what is stored: all leases are void, and jobs come again.

Everything here runs on the loop's thread.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from broker.core.recent import INDEX_END
from broker.events import emit
from broker.model.consumers import ConsumerInfo, ConsumerSettings
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import is_pattern
from broker.model.positions import BusPosition
from broker.node.letters import letter_record
from broker.node.reading import Reader
from broker_native.jobs import Jobs
from broker_native.members import Rotation, RotationMember

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.node.catchup import Place
    from broker.node.consumers import Consumers
    from broker_native.fanout import Outbox

    Done = Callable[[BrokerError | None], None]

__all__ = ["CHANNEL_PREFIX", "Consumer", "Floor", "Member", "MemberOwner"]

CHANNEL_PREFIX = b"$consumer."
HEAD = Struct("<I4xQQQQQ")
"""What stands before each stored change of jobs: bytes of the settings behind it, 0 when they are as before; how many
jobs were done, given out again and given up since the consumer was made; and up to which position dead letters were
published again."""
TIMER_S_MAX = 3_600.0


class MemberOwner(Protocol):
    """A member's connection."""

    def member_unknown(self, member: Member, number: int) -> None:
        """What its ACKs up to a number that were not answered yet changed is void; their jobs come again."""

    def member_told(self, member: Member, event: str, channel: bytes, more: dict[str, object]) -> None:
        """Something happens that is no job."""

    def member_lost(self, member: Member, failure: BrokerError) -> None:
        """It is no member any more."""


class Member(RotationMember):
    """Who takes jobs: a subscription of a connection.

    Attributes:
        owner: The connection's part in consumers.
        consumer: Whose jobs; None before it has joined.
    """

    __slots__ = ("consumer", "owner")

    def __init__(self, owner: MemberOwner, outbox: Outbox, subscription: int, window: int, bytes_max: int) -> None:
        super().__init__(outbox, subscription, window, bytes_max)
        self.owner = owner
        self.consumer: Consumer | None = None

    def on_settled(self) -> None:
        """A transaction has settled jobs of it (`Membership`)."""
        assert self.consumer is not None
        self.consumer.note_settled(self)


class Floor(NamedTuple):
    """What a consumer has done: all up to here.

    Attributes:
        consumer: Its name.
        sequences: Of each channel that it reads by its name; empty when it reads by the bus.
        patterns: What it reads by the bus: all its filters, if one of them is a pattern.
        place: Of the bus.
    """

    consumer: str
    sequences: dict[bytes, int]
    patterns: tuple[bytes, ...]
    place: Place


class Consumer(Rotation):
    """Use `Consumers`, which makes and finds them.

    Args:
        home: What all consumers of a node share.
        name: Its name.
        settings: What is set of a new one; None for one that is stored.

    Attributes:
        ready: It is as it is stored, and may be used.
        members: Who takes its jobs, by number.
        used_us: When somebody last asked for it, by a steady clock.
        redriven: The position up to which its dead letters were published again.
        holding: How much must be over before anything is given out.
        removing: It is about to be no more.
        discarded: It never came to be.
    """

    def __init__(self, home: Consumers, name: bytes, settings: ConsumerSettings | None = None) -> None:
        self._home = home
        self._core = home.core
        self.name = name
        self.channel = CHANNEL_PREFIX + name
        self._settings = settings
        self._settings_stored = False
        self.ready = False
        self.members: dict[int, Member] = {}
        self.used_us = home.clock.steady_us()
        self.redriven = (0, 0)
        self.holding = 0
        self.removing = False
        self.discarded = False
        self._acked = self._redelivered = self._dead = self._dead_read = 0
        self._members_made = 0
        self._askers: list[Done] = []
        self._waiters: list[Done] = []
        self._settlers: list[Callable[[], None]] = []
        self._reader: Reader | None = None
        self._kept = False
        self._held: bytes | None = None
        self._always = False
        self._saved: tuple[Place, Place] = ((0, 0), (0, 0))
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0
        self.next_lease = home.next_lease

    # -- from the disk and back ----------------------------------------------------------------------------------------

    @property
    def settings(self) -> ConsumerSettings:
        """What is set; to be asked for when it is ready."""
        assert self._settings is not None
        return self._settings

    @property
    def literals(self) -> list[bytes]:
        """The channels that it reads by their names."""
        return [name.encode() for name in self.settings.filters if not is_pattern(name.encode())]

    @property
    def patterns(self) -> list[bytes]:
        """The patterns that it reads; with one it reads all by the bus."""
        return [name.encode() for name in self.settings.filters if is_pattern(name.encode())]

    def load(self, done: Done) -> None:
        """Have it ready; `done` hears of it, at once when it is."""
        self.used_us = self._home.clock.steady_us()
        if self.ready:
            done(None)
            return
        self._waiters.append(done)
        if len(self._waiters) == 1 and not self._kept:
            self._home.states.load(self, self._restore, self._restored)

    def _restore(self, snapshot: bytes, changes: list[bytes]) -> None:
        """Take what is stored (`StateStore.load`)."""
        payloads = []
        for stored in (snapshot, *changes):
            if stored:
                size, self._acked, self._redelivered, self._dead_read, *redriven = HEAD.unpack_from(stored)
                self.redriven = redriven[0], redriven[1]
                if size:
                    self._settings = _unpack(stored[HEAD.size : HEAD.size + size])
                payloads.append(stored[HEAD.size + size :])
        self._dead = self._dead_read
        self._settings_stored = bool(payloads)
        if self._settings is not None:
            self.jobs = self._new_jobs(payloads)

    def _new_jobs(self, payloads: list[bytes]) -> Jobs:
        """Make jobs of what is stored, with the members that there are."""
        settings, old = self.settings, self.jobs
        self.next_lease = old.next_lease if old is not None else max(self.next_lease, self._home.next_lease)
        jobs = Jobs(
            lanes=settings.lanes,
            by_key=settings.by_key,
            exclusive=settings.exclusive,
            by_position=not self.patterns,
            lease_ms=settings.lease_ms,
            attempts_max=settings.attempts_max,
            backoff_first_ms=settings.backoff_ms[0],
            backoff_longest_ms=settings.backoff_ms[1],
            first_lease=self.next_lease,
            seed=self._home.draw(),
        )
        jobs.restore(payloads, *max(self._home.flagged, old.seen if old is not None else (0, 0)))
        for member in self.members.values():
            jobs.join(member.number, member.subscription, member.window, member.bytes_max)
        return jobs

    def _restored(self, failure: BrokerError | None) -> None:
        """What is stored has been read, or cannot be."""
        self._kept = failure is None
        if failure is None and self._settings is None:
            failure = self._home.unknown(self.name)
        if failure is not None:
            self._give_up(failure)
            return
        dead_letter = self.settings.dead_letter
        names = [*self.literals, *([dead_letter.encode()] if dead_letter is not None else [])]
        self._home.need(names, self._opened)

    def _opened(self, failure: BrokerError | None) -> None:
        """The channels that it names are in memory, or cannot be."""
        if failure is None:
            try:
                for name in self.literals:
                    self._core.load(name)
                self._hold_dead_letter()
            except BrokerError as refusal:
                failure = refusal
        if failure is not None:
            self._give_up(failure)
            return
        self.ready = True
        for member in self.members.values():
            member.jobs = self.jobs
        self._saved = self._place()
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done(None)
        if self.members and not self.removing:
            self._wait_all()
            self.read()
        self.touch()
        self._home.kick()

    def _hold_dead_letter(self) -> None:
        self._release_dead_letter()
        if self.settings.dead_letter is not None:
            name = self.settings.dead_letter.encode()
            self._core.load(name)
            self._core.tails.hold(name)
            self._held = name

    def _release_dead_letter(self) -> None:
        if self._held is not None:
            self._core.tails.release(self._held)
            self._held = None

    def _give_up(self, failure: BrokerError) -> None:
        """It cannot be had."""
        self._leave_memory()
        self._lose(failure)
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done(failure)

    def _leave_memory(self) -> None:
        """Let go of all but the members."""
        self._stop_settling()
        self._stop_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._release_dead_letter()
        if self.jobs is not None:
            self.next_lease = self.jobs.next_lease
            self._home.note_left(self.jobs)
        if self._kept:
            self._kept = False
            self._home.states.unload(self)
        self._home.left(self)

    def discard(self) -> None:
        """It could not be made: nothing of it is stored."""
        self.discarded = True
        self._give_up(self._home.unknown(self.name))

    def unload(self) -> None:
        """Leave memory, if it can: nobody uses it, and everything is stored."""
        if not self.ready or self.members or self._askers or self._home.core.states.pending(self):
            return
        if self._place() != self._saved:
            self.mark()
            self.store(_nobody)
            return
        self._home.note_floor(self)
        self._leave_memory()

    def save(self) -> None:
        """Have stored how far it has come, before the broker ends."""
        if self.ready and self._place() != self._saved:
            self.mark()
            self._core.states.touch(self)

    def mark(self) -> None:
        """What is kept beside its jobs has changed: it is stored even if nothing else has."""
        self._always = True

    def close(self) -> None:
        """End; nothing is stored any more."""
        self._stop_settling()
        self._stop_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_settling(self) -> None:
        """Be ready no more: nothing of it can be acknowledged."""
        self.ready = False
        for member in self.members.values():
            member.jobs = None

    def _place(self) -> tuple[Place, Place]:
        assert self.jobs is not None
        return self.jobs.floor, self.jobs.seen

    def renew(self) -> None:
        """Be made anew from what is stored; nothing of it is pending. All leases are void."""
        self._waiters = [*self._waiters, _nobody]
        self._leave_memory()
        self._home.taken(self)
        self.forget_waiting()
        if self._settings is not None and self.jobs is not None:
            self.jobs = self._new_jobs([])
        self._home.states.load(self, self._restore, self._restored)

    # -- a state of the core -------------------------------------------------------------------------------------------

    def changes(self) -> bytes:
        """Return what has changed (`Stateful`), and have its members told when it is committed."""
        jobs = self.jobs
        assert jobs is not None
        said = self.take_said()
        askers, self._askers = self._askers, []
        jobs.noted = False
        changed = jobs.changes(self._always or not self._settings_stored)
        if not changed and self._settings_stored:
            # Nothing is pending when a group closes: all that they wait for is committed.
            self._confirmed(said, askers, None)
            return b""
        self._saved, self._always = self._place(), False
        head = self._head(with_settings=not self._settings_stored)
        self._settings_stored = True
        self._core.requests.append(lambda failure: self._confirmed(said, askers, failure))
        return head + changed

    def snapshot(self) -> bytes:
        """Return all of it (`Stateful`)."""
        assert self.jobs is not None
        return self._head(with_settings=True) + self.jobs.snapshot()

    def _head(self, *, with_settings: bool) -> bytes:
        settings = _pack(self.settings) if with_settings else b""
        counts = self.acked, self.redelivered, self._dead
        return HEAD.pack(len(settings), *counts, *self.redriven) + settings

    def undone(self) -> None:
        """A commit has failed, and with it what members have said (`Stateful`)."""
        unknown = error("COMMIT_UNKNOWN", f"consumer {self.name.decode()}: the commit failed")
        for member in self.members.values():
            member.tell_owed()
            if member.acks > member.told:
                member.told = member.acks
                member.owner.member_unknown(member, member.acks)
        askers, self._askers = self._askers, []
        self.take_said()
        for asker in askers:
            asker(unknown)
        if not self.discarded:
            self.renew()

    def store(self, done: Done) -> None:
        """Have what has changed stored; `done` hears when it is committed, or that it cannot be."""
        if not self.ready:
            done(error("BUSY", f"consumer {self.name.decode()}: it is being restored", "Try again in a moment."))
            return
        self._askers.append(done)
        self._core.states.touch(self)
        self._home.kick()

    def _confirmed(
        self, said: list[tuple[RotationMember, int]], askers: list[Done], failure: BrokerError | None
    ) -> None:
        if failure is None and said:
            later = self.confirm(said)
            if later:
                self._home.tell_later(later)
        for asker in askers:
            asker(failure)

    # -- members -------------------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """Take a member in; it is ready, and who has held an exclusive one holds it no longer."""
        assert self.jobs is not None
        if self.settings.exclusive:
            taken = error("CONSUMER_TAKEN", f"consumer {self.name.decode()}: somebody else holds it now")
            for other in list(self.members.values()):
                self.leave(other)
                other.owner.member_lost(other, taken)
        self._members_made += 1
        member.number = self._members_made
        member.consumer = self
        self.jobs.join(member.number, member.subscription, member.window, member.bytes_max)
        self.members[member.number] = member
        member.jobs = self.jobs
        self.enter(member)
        self.read()
        self.touch()
        self._home.kick()

    def leave(self, member: Member) -> None:
        """Let a member go; what it has comes again at once."""
        if member.gone:
            return
        assert self.jobs is not None
        member.tell_owed()
        member.gone = True
        member.jobs = None
        del self.members[member.number]
        self.leave_turns(member)
        self.jobs.leave(member.number)
        self.used_us = self._home.clock.steady_us()
        self.touch()
        self._home.kick()

    def _lose(self, failure: BrokerError) -> None:
        """All members are none any more."""
        members, self.members = self.members, {}
        self.forget_waiting()
        self.take_said()
        for member in members.values():
            member.gone = True
            member.jobs = None
            if self.ready and self.jobs is not None:
                self.jobs.leave(member.number)
            member.owner.member_lost(member, failure)

    def settle(self, member: Member, body: bytes, now_us: int) -> list[tuple[int, int, int]]:
        """Take an ACK of a member, whose `acks` counts it already; its room is free at once.

        Returns:
            What is refused: (code, first lease, leases) each.

        Raises:
            ValueError: Its body is not well formed.
        """
        assert self.jobs is not None
        refused = self.jobs.settle(member.number, body, now_us)
        self.note_said(member)
        return refused

    def refusal(self, member: Member, body: bytes) -> tuple[int, int, int] | None:
        """Return the first refusal of an ACK that acknowledges alone, were it taken now: as `settle`. Nothing changes.

        Raises:
            ValueError: Its body is not well formed, or says something else.
        """
        assert self.jobs is not None
        return self.jobs.refusal(member.number, body)

    def settle_together(self, member: Member, body: bytes, now_us: int) -> None:
        """Take an ACK that nothing refuses into the group that is open now, with what else happens in it.

        Its answer is that of what it happens with: no ACKED tells of it.
        """
        assert self.jobs is not None
        self.jobs.settle(member.number, body, now_us)
        self.note_settled(member)

    def note_settled(self, member: Member) -> None:
        """A transaction has settled jobs of a member; as good as told of all that follow in this group and turn."""
        assert self.jobs is not None
        self.jobs.noted = True
        self._core.states.touch(self)
        self.wait(member)
        self.touch()

    def _wait_all(self) -> None:
        for member in self.members.values():
            self.wait(member)

    # -- the end of a turn ---------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Have `turn` called at the end of this turn. See to it that it ends."""
        if not self.touched:
            self.touched = True
            self._home.touched.append(self)

    def turn(self, now_us: int) -> None:
        """Do what there is to do at the end of a turn."""
        self.touched = False
        self.served = 0
        jobs = self.jobs
        if jobs is not None:
            jobs.noted = False
        if not self.ready or jobs is None:
            if self.unanswered and jobs is not None and self._kept:
                self._core.states.touch(self)
            return
        if jobs.doomed:
            self._bury(jobs)
        if self.waits and jobs.ready and not self.holding and not self.settings.paused:
            self.give(now_us)
        if self.unanswered or self._askers or jobs.changed:
            self._core.states.touch(self)
        if self._reader is not None:
            self._reader.leave_room(self._home.window_bytes(self.settings.lanes), jobs.bytes_held)
        due_us = jobs.next_us()
        if due_us and (self._timer is None or due_us < self._timer_us):
            self._set_timer(due_us, now_us)
        if self._settlers:
            self._tell_settled()

    def _bury(self, jobs: Jobs) -> None:
        """Put copies of dead jobs into the group that says that they are done."""
        if self._core.tails.refuse_code:
            return  # nothing is taken now: they stay dead until then
        for channel, epoch, sequence, attempts, reason, record in jobs.dead():
            self._dead += 1
            self._home.dead += 1
            if self._held is None:
                continue
            name = self.name.decode()
            try:
                letter = letter_record(record, name, channel.decode(), epoch, sequence, attempts, reason)
                self._core.own.store(self._held, letter)
            except BrokerError as failure:
                emit(
                    "dead_letter_refused",
                    consumer=name,
                    channel=channel.decode(),
                    sequence=sequence,
                    code=failure.name,
                    detail=failure.detail,
                )

    def _set_timer(self, due_us: int, now_us: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = due_us
        self._timer = self._home.loop.call_later(min(max(due_us - now_us, 0) / 1e6, TIMER_S_MAX), self._due)

    def _due(self) -> None:
        """A lease ends, or a job's time has come."""
        self._timer = None
        if not self.ready or self.jobs is None:
            return
        now_us = self._home.clock.now_us()
        self._core.tails.begin_read(now_us)
        if self.jobs.expire(now_us):
            self._wait_all()
        self.touch()
        self._home.kick()

    # -- what it reads -------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Begin to read, unless it does."""
        if self._reader is not None or not self.ready:
            return
        assert self.jobs is not None
        window_bytes = self._home.window_bytes(self.settings.lanes)
        reader = Reader(self._core, self._home.catchup, self, self.literals, self.patterns, window_bytes)
        self._reader = reader
        if self.patterns:
            reader.start({}, self.jobs.floor)
            return
        after: dict[bytes, int] = {}
        for name in self.literals:
            info = self._core.tails.info(name)
            assert info is not None
            if info[1] == Level.EPHEMERAL:
                continue
            outcome = self._core.resume(name, *self.jobs.floor_of(self._core.tails.stored_id(name)))
            after[name] = outcome.after
            if outcome.name == "trimmed":
                self.trimmed(name, outcome.at)
        reader.start(after, None)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.stop()

    def take(self, frames: bytes) -> None:
        """Take what is read (`Taker`)."""
        assert self.jobs is not None
        try:
            self.jobs.take(frames)
        except ValueError as damage:
            self.lost(error("STORAGE_CORRUPT", f"history of consumer {self.name.decode()}: {damage}"))
        self.touch()

    def trimmed(self, name: bytes, first: int) -> None:
        """Retention took what would have come next of a channel (`Taker`)."""
        for member in self.members.values():
            member.owner.member_told(member, "trimmed", name, {"first": first})

    def lost(self, failure: BrokerError) -> None:
        """It cannot be read on (`Taker`). Whoever joins next tries again."""
        reader = self._reader

        def stop() -> None:
            if self._reader is reader:
                self._stop_reading()
                self._lose(failure)

        self._home.loop.call_soon(stop)

    def describe(self) -> dict[str, object]:
        """Say who reads, where readers are listed (`Taker`)."""
        return {"connection": 0, "peer": "", "name": f"consumer {self.name.decode()}"}

    def when_settled(self, then: Callable[[], None]) -> None:
        """Call something when as much has been read as there is, or is room for."""
        self.read()
        self._settlers.append(then)
        self.touch()
        self._home.kick()

    def _tell_settled(self) -> None:
        if self._reader is None or self._reader.settled:
            settlers, self._settlers = self._settlers, []
            for then in settlers:
                then()
        else:
            self._home.look_again(self)

    def advance(self) -> None:
        """While nothing comes that it reads, its place on the bus moves on. Call it once a second."""
        if self._reader is not None and self._reader.live and self.patterns and self.jobs is not None:
            self.jobs.reached(self._core.fanout.delivered, INDEX_END)

    # -- what is asked of it -------------------------------------------------------------------------------------------

    def set(self, settings: ConsumerSettings, done: Done) -> None:
        """Take other settings: they hold for what is given out, or fails, from when they are committed on.

        Jobs are put into another order by making it anew, and all leases are void then.
        """
        was = self.settings
        reordered = (was.lanes, was.by_key) != (settings.lanes, settings.by_key)
        self._settings = settings
        self._settings_stored = False

        def stored(failure: BrokerError | None) -> None:
            if failure is None and self._core.states.pending(self):
                self.store(stored)
                return
            if failure is None and (reordered or not self._configure()):
                self.renew()
            done(failure)

        self.store(stored)

    def _configure(self) -> bool:
        """Go by the settings from now on; answers whether that could be done."""
        settings, jobs = self.settings, self.jobs
        if not self.ready or jobs is None:
            return False
        try:
            self._hold_dead_letter()
        except BrokerError:
            return False
        jobs.configure(
            lease_ms=settings.lease_ms,
            attempts_max=settings.attempts_max,
            backoff_first_ms=settings.backoff_ms[0],
            backoff_longest_ms=settings.backoff_ms[1],
        )
        self.touch()
        return True

    def pause(self, *, paused: bool, done: Done) -> None:
        """Give nothing out, or go on."""
        if self.settings.paused == paused:
            done(None)
            return
        self._settings = replace(self.settings, paused=paused)
        self._settings_stored = False
        for member in self.members.values():
            member.owner.member_told(member, "paused" if paused else "resumed", b"", {})
        self.touch()
        self.store(done)

    def place(self, floors: dict[bytes, tuple[int, int]], place: Place, done: Done) -> None:
        """Begin behind these positions of its literals, or behind a place of the bus; nothing else is remembered."""
        assert self.jobs is not None
        self._stop_reading()
        self.jobs.reset(*(place if self.patterns else (0, 0)))
        for name, (epoch, sequence) in floors.items():
            if sequence:
                self.jobs.set_floor(self._core.tails.stored_id(name), epoch, sequence)
        if self.members:
            self._wait_all()
            self.read()
        self.touch()
        self.store(done)

    def remove(self, done: Done) -> None:
        """Be no more; its members are told."""
        self.removing = True
        self._lose(error("UNKNOWN_CONSUMER", f"consumer {self.name.decode()}: it was removed"))
        self._stop_reading()

        def stored(failure: BrokerError | None) -> None:
            if failure is None and self._core.states.pending(self):
                self.store(stored)
            elif failure is None and self.ready:
                self._leave_memory()
                self._core.drop(self.channel, done)
                self._home.kick()
            else:
                self.removing = False
                done(failure or error("BUSY", f"consumer {self.name.decode()}: it is being restored"))

        self.store(stored)

    @property
    def acked(self) -> int:
        """Jobs that were done, since it was made."""
        done = self.jobs.done if self.jobs is not None else 0
        return self._acked + max(done - (self._dead - self._dead_read), 0)

    @property
    def redelivered(self) -> int:
        """Jobs that were given out again, since it was made."""
        return self._redelivered + (self.jobs.redelivered if self.jobs is not None else 0)

    def info(self) -> ConsumerInfo:
        """Tell of it; it is ready."""
        jobs, core = self.jobs, self._core
        assert jobs is not None
        held = self._home.held().get(self.settings.name, (0, 0))
        positions = [(name.decode(), *jobs.floor_of(core.tails.stored_id(name))) for name in self.literals]
        return ConsumerInfo(
            settings=self.settings,
            members=len(self.members),
            ready=jobs.ready,
            leased=jobs.leased,
            delayed=jobs.delayed,
            acked=self.acked,
            redelivered=self.redelivered,
            dead=self._dead,
            lag=self._lag(jobs),
            bus=BusPosition(core.journal, *jobs.floor) if self.patterns else None,
            positions=() if self.patterns else tuple(positions),
            held_channels=held[0],
            held_bytes=held[1],
        )

    def floor(self) -> Floor:
        """Say what it has done, of the channels by their names of those in memory; it is ready."""
        jobs, tails = self.jobs, self._core.tails
        assert jobs is not None
        if self.patterns:
            return Floor(self.settings.name, {}, tuple(each.encode() for each in self.settings.filters), jobs.floor)
        known = [name for name in self.literals if tails.info(name) is not None]
        sequences = {name: jobs.floor_of(tails.stored_id(name))[1] for name in known}
        return Floor(self.settings.name, sequences, (), (0, 0))

    def _lag(self, jobs: Jobs) -> int:
        """Count what is stored and was not looked at; -1 when nobody can without looking."""
        if self._reader is not None and self._reader.live:
            return 0
        if self.patterns:
            return -1
        reader, lag = self._reader, 0
        for name in self.literals:
            info = self._core.tails.info(name)
            if info is None or info[1] == Level.EPHEMERAL:
                continue
            if reader is None:
                after = jobs.floor_of(self._core.tails.stored_id(name))[1]
            else:
                after = reader.following.after.get(name, info[6] - 1)
            lag += max(info[6] - 1 - max(after, info[3] - 1), 0)
        return lag


def _nobody(failure: BrokerError | None) -> None:
    """Nobody waits for it."""


def _pack(settings: ConsumerSettings) -> bytes:
    return json.dumps(asdict(settings), separators=(",", ":")).encode()


def _unpack(stored: bytes) -> ConsumerSettings:
    fields = json.loads(stored)
    fields["filters"], fields["backoff_ms"] = tuple(fields["filters"]), tuple(fields["backoff_ms"])
    return ConsumerSettings(**fields)
