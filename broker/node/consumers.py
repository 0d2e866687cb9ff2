"""All consumers of a node: their names, those that are in memory, and what may be asked of them.

At the start only the names are read; a consumer is read back when somebody asks for it, and leaves memory when nobody
has for a while. Every answer comes through `done`, at once or later, on the loop's thread, where everything here runs.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from typing import TYPE_CHECKING

from broker.core.recent import INDEX_END
from broker.model.consumers import (
    JOBS_PAGE_MAX,
    ConsumersPart,
    ConsumerStart,
    DoneRun,
    WaitingJob,
    check_consumer,
    check_settings,
)
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import check_channel, display, is_pattern
from broker.node.consumer import CHANNEL_PREFIX, Consumer
from broker.node.placing import Placing
from broker.node.redrive import Redrive
from broker_native.members import tell_all

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from broker.core.ports import Reader
    from broker.core.sequencer import Sequencer
    from broker.model.consumers import ConsumerInfo, ConsumerSettings
    from broker.node.catchup import CatchUp
    from broker.node.consumer import Floor, Member
    from broker.node.loader import Loader
    from broker.node.states import StateStore
    from broker_native.intake import Clock
    from broker_native.jobs import Jobs
    from broker_native.members import RotationMember

    Done = Callable[[BrokerError | None], None]
    Told = Callable[[ConsumerInfo | BrokerError], None]
    Counted = Callable[[int | BrokerError], None]

__all__ = ["Consumers"]

IDLE_US = 10_000_000
"""How long one stays in memory that nobody uses."""
LOOK_AGAIN_S = 0.005
TELL_S = 0.002
"""How long a member waits to hear that what it said is committed, if the next jobs are likely to bring that: it has
jobs under way, and there are more."""
WINDOW_BYTES = 8 << 20
"""What one keeps of its source at most, about;"""
LANES_WINDOW_BYTES = 128 << 20
"""and if it has lanes: a critical job passes what is kept, and comes no sooner than it is read;"""
WINDOW_BYTES_MIN = 64 << 10
"""and at least, when others have taken"""
MEMORY_SHARE = 8
"""this part of what all queues may hold, which they share."""
SEGMENTS_AT_ONCE = 4_096
SEED_STEP = 0x9E3779B97F4A7C15


class Consumers:
    """The consumers of one node.

    Args:
        core: The sequencer.
        log: What is stored.
        catchup: Drives what they read.
        loader: Brings channels into memory.
        states: Brings what is stored of them into memory.
        clock: Broker time.
        loop: The loop that it belongs to.
        kick: Has the turn end.

    Attributes:
        touched: Those that have something to do at the end of the turn.
        flagged: Jobs up to this place of the bus may have been seen by somebody in a run before.
        next_lease: No lease of this run is as high as this, but of consumers in memory.
        dead: Jobs that were given up in this run.
        crowded: The last turn has given jobs to several members of one consumer: the next ACK is not the only one.
        held: Tells of how many channels retention waits for each consumer, and for how many bytes of them.
    """

    def __init__(
        self,
        core: Sequencer,
        log: Reader,
        catchup: CatchUp,
        loader: Loader,
        states: StateStore,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
    ) -> None:
        self.core = core
        self.log = log
        self.catchup = catchup
        self.loader = loader
        self.states = states
        self.clock = clock
        self.loop = loop
        self.kick = kick
        self.touched: list[Consumer] = []
        self.flagged = (0, 0) if core.ended_well else (core.applied_number, INDEX_END)
        self.next_lease = (core.tails.run << 40) + 1
        self.dead = 0
        self.held: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._redelivered = 0
        self._expired = 0
        self.crowded = False
        self._short_of_memory = False
        self._owed: list[RotationMember] = []
        self._placing = Placing(core, log, catchup)
        self._consumers: dict[bytes, Consumer | None] = {}
        self._loaded: dict[Consumer, None] = {}
        # Of those that are not in memory, as far as anybody has asked for it.
        self._floors: dict[bytes, Floor] = {}
        self._busy: set[bytes] = set()
        self._listed = False
        self._listeners: list[Done] = []
        self._seed = core.tails.run
        self._stopped = False

    def __len__(self) -> int:
        return len(self._consumers)

    # -- names ---------------------------------------------------------------------------------------------------------

    def list_names(self, done: Done) -> None:
        """Have the names of stored consumers known; at once when they are."""
        if self._listed:
            done(None)
            return
        self._listeners.append(done)
        if len(self._listeners) == 1:
            self.states.names(CHANNEL_PREFIX).add_done_callback(self._have_names)

    def _have_names(self, job: asyncio.Future[list[bytes]]) -> None:
        if job.cancelled():
            return
        failure = job.exception()
        if failure is None:
            self._listed = True
            for channel in (*job.result(), *self._names_in_memory()):
                self._consumers.setdefault(channel.removeprefix(CHANNEL_PREFIX), None)
        refusal = None
        if failure is not None:
            refusal = failure if isinstance(failure, BrokerError) else error("STORAGE_FAILED", f"consumers: {failure}")
        listeners, self._listeners = self._listeners, []
        for done in listeners:
            done(refusal)

    def _names_in_memory(self) -> list[bytes]:
        """The channels of consumers that memory knows, which what is stored may not tell yet."""
        names: list[bytes] = []
        key, more = 0, True
        while more:
            found, key = self.core.tails.names_between(key, SEGMENTS_AT_ONCE, CHANNEL_PREFIX, b"", None)
            names += found
            more = bool(key)
        return names

    def unknown(self, name: bytes) -> BrokerError:
        """Return the error for a consumer that there is not."""
        return error("UNKNOWN_CONSUMER", f"consumer {display(name)}: there is none of that name")

    # -- what consumers ask of their home ------------------------------------------------------------------------------

    def need(self, names: list[bytes], done: Done) -> None:
        """Have channels in memory, or known not to be stored, within `done`; it may be called at once."""
        if not self.core.missing(names):
            done(None)
            return
        try:
            self.loader.need(names, done, self)
        except BrokerError as failure:
            done(failure)

    def draw(self) -> int:
        """Return a seed for a consumer's chances."""
        self._seed = (self._seed + SEED_STEP) & ((1 << 64) - 1)
        return self._seed

    def look_again(self, consumer: Consumer) -> None:
        """Let a consumer look in a moment whether it has read what there is."""

        def look() -> None:
            consumer.touch()
            self.kick()

        self.loop.call_later(LOOK_AGAIN_S, look)

    def tell_later(self, members: list[RotationMember]) -> None:
        """Tell members what they are owed in a moment, unless they hear of it before."""
        if not self._owed:
            self.loop.call_later(TELL_S, self._tell_owed)
        self._owed += members

    def _tell_owed(self) -> None:
        owed, self._owed = self._owed, []
        if tell_all(owed):
            self.kick()

    def left(self, consumer: Consumer) -> None:
        """A consumer has left memory."""
        self._loaded.pop(consumer, None)
        if self._consumers.get(consumer.name) is consumer:
            self._consumers[consumer.name] = None

    def taken(self, consumer: Consumer) -> None:
        """A consumer comes into memory, or stays there to be made anew."""
        self._consumers[consumer.name] = consumer
        self._loaded[consumer] = None
        self._floors.pop(consumer.name, None)

    # -- the node's calls ----------------------------------------------------------------------------------------------

    def turn(self, now_us: int) -> None:
        """The end of a turn, before its group may be closed, or behind a flush that has brought something to read."""
        touched, self.touched = self.touched, []
        self.crowded = False
        for consumer in touched:
            consumer.turn(now_us)
            self.crowded |= consumer.served > 1

    def failed(self) -> None:
        """A commit has failed: what was read of the groups that are undone is void."""
        for consumer in list(self._loaded):
            if consumer.ready and not self.core.states.pending(consumer):
                consumer.undone()

    def window_bytes(self, lanes: bool) -> int:
        """What each of them may keep of what it reads, with lanes or without."""
        most_bytes = LANES_WINDOW_BYTES if lanes else WINDOW_BYTES
        share_bytes = self.core.limits.memory_bytes_max // MEMORY_SHARE // max(len(self._loaded), 1)
        return WINDOW_BYTES_MIN if self._short_of_memory else max(min(most_bytes, share_bytes), WINDOW_BYTES_MIN)

    def tick(self) -> None:
        """Once a second."""
        if not self._listed and not self._listeners:
            self.list_names(_ignore)
        self._short_of_memory = self.kept_bytes > self.core.limits.memory_bytes_max // MEMORY_SHARE
        now_us = self.clock.steady_us()
        for consumer in list(self._loaded):
            if consumer.ready:
                consumer.advance()
                if not consumer.members and now_us - consumer.used_us > IDLE_US:
                    consumer.unload()

    def stop(self) -> None:
        """Have stored how far all are, with the last groups, and take nothing more."""
        self._stopped = True
        for consumer in list(self._loaded):
            consumer.save()

    def close(self) -> None:
        """End; nothing is committed any more."""
        for consumer in list(self._loaded):
            consumer.close()

    @property
    def kept_bytes(self) -> int:
        """What all of them keep of what they read."""
        return sum(consumer.jobs.bytes_held for consumer in self._loaded if consumer.jobs is not None)

    def stats(self) -> dict[str, object]:
        """Counters and gauges."""
        jobs = [consumer.jobs for consumer in self._loaded if consumer.jobs is not None]
        return {
            "consumers": len(self._consumers),
            "consumers_in_memory": len(jobs),
            "jobs_leased": sum(each.leased for each in jobs),
            "jobs_redelivered": self._redelivered + sum(each.redelivered for each in jobs),
            "jobs_dead": self.dead,
            "jobs_expired": self._expired + sum(each.expired for each in jobs),
        }

    def in_memory(self, count_max: int) -> tuple[list[ConsumerInfo], bool]:
        """Tell of those that are in memory and ready, the first ones by name, and whether there are more."""
        ready = [consumer for consumer in self._loaded if consumer.ready and consumer.jobs is not None]
        first = nsmallest(count_max, ready, key=lambda consumer: consumer.name)
        return [consumer.info() for consumer in first], len(ready) > count_max

    def note_left(self, jobs: Jobs) -> None:
        """Keep what is needed of jobs that leave memory: no lease is given twice in a run, and counters go on."""
        self.next_lease = max(self.next_lease, jobs.next_lease)
        self._redelivered += jobs.redelivered
        self._expired += jobs.expired

    # -- what they have done -------------------------------------------------------------------------------------------

    def note_floor(self, consumer: Consumer) -> None:
        """A consumer is about to leave memory, and changes no more until it is back."""
        floor = consumer.floor()
        if floor.patterns or len(floor.sequences) == len(consumer.literals):
            self._floors[consumer.name] = floor

    def floors(self, told: Callable[[list[Floor] | BrokerError], None]) -> None:
        """Tell what each consumer has done; perhaps within this call. One that is being made or removed has no say."""
        floors: list[Floor] = []
        names: list[bytes] = []

        def listed(failure: BrokerError | None) -> None:
            if failure is not None:
                told(failure)
                return
            names.extend(self._consumers)
            step(None)

        def step(found: Consumer | BrokerError | None) -> None:
            if isinstance(found, BrokerError) and found.name != "UNKNOWN_CONSUMER":
                told(found)
                return
            if isinstance(found, Consumer):
                floors.append(found.floor())
            while names:
                name = names.pop()
                if name in self._busy or name not in self._consumers:
                    continue
                consumer = self._consumers[name]
                if consumer is not None and consumer.ready:
                    floors.append(consumer.floor())
                elif consumer is None and name in self._floors:
                    floors.append(self._floors[name])
                else:
                    self.use(name.decode(), step)
                    return
            told(floors)

        self.list_names(listed)

    # -- one consumer --------------------------------------------------------------------------------------------------

    def use(self, asked: str, found: Callable[[Consumer | BrokerError], None]) -> None:
        """Find a consumer and have it ready; `found` gets it, or why it cannot be had."""
        if self._stopped:
            found(error("GOING_AWAY", "the broker is stopping"))
            return

        def listed(failure: BrokerError | None) -> None:
            name = asked.encode("utf-8", "surrogatepass")
            if failure is not None:
                found(failure)
            elif name not in self._consumers:
                found(self.unknown(name))
            elif name in self._busy:
                found(self._in_use(name))
            else:
                consumer = self._consumers[name]
                if consumer is None:
                    consumer = Consumer(self, name)
                    self.taken(consumer)
                one = consumer
                one.load(lambda failure: found(one if failure is None else failure))

        self.list_names(listed)

    def _in_use(self, name: bytes) -> BrokerError:
        return error("BUSY", f"consumer {display(name)}: it is being made or removed", "Try again in a moment.")

    def _with(self, asked: str, then: Callable[[Consumer], None], refused: Callable[[BrokerError], None]) -> None:
        def found(consumer: Consumer | BrokerError) -> None:
            if isinstance(consumer, BrokerError):
                refused(consumer)
                return
            try:
                then(consumer)
            except BrokerError as failure:
                refused(failure)

        self.use(asked, found)

    def _tell(self, name: str, told: Told) -> None:
        self._with(name, lambda consumer: told(consumer.info()), told)

    def join(self, asked: str, member: Member, done: Done, check: Callable[[Iterable[str]], None]) -> None:
        """Make somebody a member of a consumer, unless it is gone meanwhile; `check` is told what it reads before."""

        def enter(consumer: Consumer) -> None:
            if member.gone:
                return
            limit = self.core.limits.members_per_consumer_max
            if len(consumer.members) >= limit and not consumer.settings.exclusive:
                raise error("LIMIT", f"members of consumer {asked}: got {limit + 1}, limit {limit}")
            check((consumer.settings.name, *consumer.settings.filters))
            done(None)
            consumer.join(member)

        self._with(asked, enter, done)

    def describe(self, asked: str, told: Told) -> None:
        """Tell of a consumer; what it has in memory counts."""
        self._tell(asked, told)

    def page(
        self,
        prefix: str,
        after: str,
        limit: int,
        told: Callable[[ConsumersPart | BrokerError], None],
        shows: Callable[[bytes], bool],
    ) -> None:
        """Tell of consumers in the order of their names, of those that `shows` says yes to."""

        def listed(failure: BrokerError | None) -> None:
            if failure is not None:
                told(failure)
                return
            begin, past = prefix.encode(), after.encode()
            names = sorted(name for name in self._consumers if name.startswith(begin) and name > past and shows(name))
            infos: list[ConsumerInfo] = []
            left = names[:limit]

            def step(info: ConsumerInfo | BrokerError | None) -> None:
                if isinstance(info, BrokerError):
                    if info.name not in ("UNKNOWN_CONSUMER", "BUSY"):
                        told(info)
                        return
                elif info is not None:
                    infos.append(info)
                while left:
                    name = left.pop(0)
                    consumer = self._consumers.get(name)
                    if consumer is None or not consumer.ready:
                        self._tell(name.decode(), step)
                        return
                    infos.append(consumer.info())
                told(ConsumersPart(tuple(infos), len(names) > limit))

            step(None)

        self.list_names(listed)

    # -- making and changing -------------------------------------------------------------------------------------------

    def set(self, settings: ConsumerSettings, start: ConsumerStart, *, update: bool, told: Told) -> None:
        """Make a consumer, or see to it that the one that is there is so."""
        try:
            check_settings(settings)
        except BrokerError as failure:
            told(failure)
            return
        name = check_consumer(settings.name)

        def listed(failure: BrokerError | None) -> None:
            if failure is not None:
                told(failure)
            elif name in self._busy:
                told(self._in_use(name))
            elif name in self._consumers:
                self._with(settings.name, lambda consumer: self._change(consumer, settings, told, update=update), told)
            else:
                self._make(name, settings, start, told)

        if self._stopped:
            told(error("GOING_AWAY", "the broker is stopping"))
        else:
            self.list_names(listed)

    def _change(self, consumer: Consumer, settings: ConsumerSettings, told: Told, *, update: bool) -> None:
        was = consumer.settings
        settings = replace(settings, paused=was.paused)
        if settings == was:
            told(consumer.info())
            return
        fixed = (was.filters, was.mode) != (settings.filters, settings.mode)
        if fixed or not update:
            raise error(
                "CONSUMER_EXISTS",
                f"consumer {settings.name}: it is there with other {'filters or mode' if fixed else 'settings'}",
            )

        def checked(failure: BrokerError | None) -> None:
            if failure is not None:
                told(failure)
            else:
                consumer.set(settings, changed)

        def changed(failure: BrokerError | None) -> None:
            if failure is not None:
                told(failure)
            else:
                self._tell(settings.name, told)

        self._check_channels(settings, checked)

    def _check_channels(self, settings: ConsumerSettings, done: Done) -> None:
        """Have in memory what settings name, and see that it is stored."""
        names = [name.encode() for name in settings.filters if not is_pattern(name.encode())]
        if settings.dead_letter is not None:
            names.append(settings.dead_letter.encode())

        def have(failure: BrokerError | None) -> None:
            try:
                for name in names if failure is None else ():
                    self.core.load(name)
                    info = self.core.tails.info(name)
                    if info is not None and info[1] == Level.EPHEMERAL:
                        raise error("NOT_STORED", f"channel {display(name)}: its messages are not stored")
            except BrokerError as refusal:
                failure = refusal
            done(failure)

        self.need(names, have)

    def _make(self, name: bytes, settings: ConsumerSettings, start: ConsumerStart, told: Told) -> None:
        limit = self.core.limits.consumers_max
        if len(self._consumers) >= limit:
            told(error("LIMIT", f"consumers: got {len(self._consumers) + 1}, limit {limit}"))
            return
        consumer = Consumer(self, name, settings)
        self.taken(consumer)
        self._busy.add(name)

        def fail(failure: BrokerError) -> None:
            self._busy.discard(name)
            consumer.discard()
            self._consumers.pop(name, None)
            told(failure)

        def stored(failure: BrokerError | None) -> None:
            if failure is not None:
                fail(failure)
                return
            self._busy.discard(name)
            told(consumer.info())

        def ready(failure: BrokerError | None) -> None:
            if failure is not None:
                fail(failure)
            else:
                self._placing.find(
                    start,
                    consumer.literals,
                    consumer.patterns,
                    lambda floors, place: consumer.place(floors, place, stored),
                    fail,
                )

        def checked(failure: BrokerError | None) -> None:
            if failure is not None:
                fail(failure)
            else:
                consumer.load(ready)

        self._check_channels(settings, checked)

    def remove(self, asked: str, done: Done) -> None:
        """Remove a consumer with all that is remembered of it; messages stay."""

        def go(consumer: Consumer) -> None:
            self._busy.add(consumer.name)

            def removed(failure: BrokerError | None) -> None:
                self._busy.discard(consumer.name)
                if failure is None:
                    self._consumers.pop(consumer.name, None)
                    self._floors.pop(consumer.name, None)
                done(failure)

            consumer.remove(removed)

        self._with(asked, go, done)

    def pause(self, asked: str, *, paused: bool, told: Told) -> None:
        """Let a consumer give nothing out, or go on."""

        def go(consumer: Consumer) -> None:
            consumer.pause(paused=paused, done=lambda failure: told(consumer.info() if failure is None else failure))

        self._with(asked, go, told)

    def reset(self, asked: str, start: ConsumerStart, told: Told) -> None:
        """Set a consumer back, or forward; all that it remembers of jobs is forgotten."""

        def go(consumer: Consumer) -> None:
            self._place(consumer, start, lambda failure: told(consumer.info() if failure is None else failure), told)

        self._with(asked, go, told)

    def _place(
        self, consumer: Consumer, start: ConsumerStart, done: Done, refused: Callable[[BrokerError], None]
    ) -> None:
        self._placing.find(
            start,
            consumer.literals,
            consumer.patterns,
            lambda floors, place: consumer.place(floors, place, done) if consumer.ready else refused(_restoring()),
            refused,
        )

    def purge(self, asked: str, counted: Counted) -> None:
        """Everything up to now is done, whoever has it; answers how many jobs were known of."""

        def go(consumer: Consumer) -> None:
            info = consumer.info()
            count = info.ready + info.leased + info.delayed + max(info.lag, 0)

            def done(failure: BrokerError | None) -> None:
                counted(count if failure is None else failure)

            self._place(consumer, ConsumerStart(new=True), done, counted)

        self._with(asked, go, counted)

    def peek(self, asked: str, limit: int, told: Callable[[list[WaitingJob] | BrokerError], None]) -> None:
        """Tell of the oldest jobs that are not done, at most so many."""

        def go(consumer: Consumer) -> None:
            def look() -> None:
                assert consumer.jobs is not None
                found = consumer.jobs.waiting(min(limit, JOBS_PAGE_MAX))
                told([WaitingJob(name.decode(), *rest) for name, *rest in found])

            consumer.when_settled(look)

        self._with(asked, go, told)

    def done(self, asked: str, runs: Sequence[DoneRun], told: Callable[[list[DoneRun] | BrokerError], None]) -> None:
        """Take what was worked off by a member whose connection, or broker, is gone; answers what others have now."""

        def go(consumer: Consumer) -> None:
            names = list(dict.fromkeys(check_channel(run.channel) for run in runs))
            consumer.holding += 1

            def have(failure: BrokerError | None) -> None:
                consumer.holding -= 1
                consumer.touch()
                self.kick()
                if failure is None and (not consumer.ready or consumer.jobs is None):
                    failure = _restoring()
                if failure is not None:
                    told(failure)
                    return
                left = self._mark_done(consumer, runs)
                consumer.store(lambda refusal: told(left if refusal is None else refusal))

            self.need(names, have)

        self._with(asked, go, told)

    def _mark_done(self, consumer: Consumer, runs: Sequence[DoneRun]) -> list[DoneRun]:
        """Mark runs as done, as far as there are such messages; returns what is somebody else's."""
        left = []
        assert consumer.jobs is not None
        for run in runs:
            name = run.channel.encode()
            info = self.core.tails.info(name)
            end = info[6] if info is not None else 1
            count = min(run.count, end - run.first)
            if count <= 0:
                continue
            channel = self.core.tails.stored_id(name)
            refused = consumer.jobs.done_at(channel, run.epoch, run.first, count)
            left += [DoneRun(run.channel, run.epoch, first, size) for first, size in refused]
        return left

    def redrive(self, asked: str, limit: int, counted: Counted, check: Callable[[bytes], None]) -> None:
        """Publish dead letters of a consumer to where they came from, at most so many; answers how many.

        `check` is told of each channel before, and raises if nothing may be published there.
        """

        def go(consumer: Consumer) -> None:
            if consumer.settings.dead_letter is None:
                raise error("INVALID_CONSUMER", f"consumer {asked}: it has no dead-letter channel")
            Redrive(self, consumer, limit, counted, check).start()

        self._with(asked, go, counted)


def _ignore(failure: BrokerError | None) -> None:
    """Nobody asked: whoever does next tries again."""


def _restoring() -> BrokerError:
    return error("BUSY", "the consumer is being restored", "Try again in a moment.")
