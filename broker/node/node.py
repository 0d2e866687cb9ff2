"""One running broker on one event loop: turns, commits, catching up, budgets, drain.

A turn begins with the first bytes that a connection takes in and ends at the end of the loop's iteration: what does not
wait for the disk is delivered, the open group goes to the commit thread if that is idle, and every connection with
something to send gets one `writelines`. A commit that returns puts the next group on its way before anything else.

Everything here runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from broker.access.gate import Gate
from broker.access.rates import Rates
from broker.core.sequencer import Sequencer
from broker.events import emit
from broker.log.log import ArchiveBy, Log
from broker.log.retention import Policies
from broker.model.errors import BrokerError, error
from broker.node.behind import describe_behind
from broker.node.budget import Budget
from broker.node.catchup import CatchUp, Following
from broker.node.commit import CommitThread, handed_over
from broker.node.consumers import Consumers
from broker.node.delayed import DelayedMessages
from broker.node.eviction import Eviction
from broker.node.floors import Floors
from broker.node.history import HistoryReader
from broker.node.housekeeping import Housekeeping
from broker.node.ids import IdsLoader
from broker.node.listing import Listing
from broker.node.loader import Loader
from broker.node.pace import Pace
from broker.node.passages import Passages
from broker.node.replies import Replies
from broker.node.retained import RetainedBroker
from broker.node.retention import Retention
from broker.node.seconds import Second, Seconds
from broker.node.states import StateStore
from broker.node.time import BrokerTime
from broker.node.traces import Traces
from broker_native.intake import ReadBuffer
from broker_native.unsent import Unsent

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.access.authority import Authority
    from broker.core.group import Duplicate, Group
    from broker.model.limits import Limits
    from broker.model.profiles import Profiles
    from broker.node.passages import Passage
    from broker_native.fanout import Outbox, Subscription
    from broker_native.histogram import Histogram

__all__ = ["Connection", "Node"]

READ_BUFFER_BYTES = 256 << 10
TURN_BYTES_MAX = 512 << 10
"""A turn that has decided this much ends at once, so that fan-out starts while its bytes are in the cache."""
TURN_QUIET_US = 50
"""After so long without a turn the first bytes end one at once: a lone message then pays for no further iteration of
the loop, while under load, when one iteration reads many connections, all but the first share the turn at its end."""
ANSWERS_BYTES_MAX = 64 << 10
"""A connection whose peer leaves this much of its answers unread, beyond what the transport and the kernel hold, is
not read until it takes them: what it asks costs more to answer than to send."""
DUPLICATES_MAX = 65_536
"""Repeated publishes that wait for the commit of what they repeat."""
CROWDED_SHARE = 16
"""The part of what ends a connection that its live groups may fill while its transport takes nothing."""
STORAGE_FAILURES_PER_MIN_MAX = 3
COUNTED_AT_ONCE = 4_096
RECONSIDERED_AT_ONCE = 64
"""Connections that are held against new grants in one turn: about a millisecond."""
WATCH_TURNS = 8
"""While every connection takes what it is sent, memory is looked at once in so many turns."""


class Connection(Protocol):
    """What a node needs of a connection's session."""

    heard_us: int

    @property
    def subscriptions(self) -> dict[int, Subscription] | None:
        """Those that are open, by their numbers."""

    @property
    def outbox(self) -> Outbox:
        """What leaves on it."""

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        """Answer publishes that were not stored."""

    def end(self, failure: BrokerError) -> None:
        """Tell the peer why, and close."""

    def leave(self, seconds: float) -> None:
        """Tell the peer that the broker drains."""

    def on_exhausted(self) -> None:
        """End for want of memory, without asking for any."""

    def pause_reading(self) -> None:
        """Take nothing more in."""

    def resume_reading(self) -> None:
        """Take more in again."""

    def await_answers_taken(self) -> None:
        """Take nothing more in until the peer reads."""

    @property
    def publishes(self) -> bool:
        """Whether it has named a channel to publish to."""

    def hold_for_memory(self) -> None:
        """Take nothing more in while queues hold too much memory."""

    def go_on_after_memory(self) -> None:
        """Take more in again."""

    def describe(self) -> dict[str, object]:
        """Say who it is: `connection`, `peer` and `name`."""

    def fall_behind(self) -> None:
        """Have its subscriptions read on from the log."""

    def check_alive(self, now_us: int) -> None:
        """Ping a quiet peer, close a silent one."""

    def reconsider(self) -> None:
        """What its user may do may have changed."""


class Node:
    """Use `Node.open`.

    Attributes:
        core: The sequencer.
        gate: Who may do what.
        authority: Who signs in; None where nobody is asked who he is.
        rates: How much a user, or an address, may do in a second.
        limits: Bounds.
        loader: What is stored and not in memory.
        ids: The ids of channels' newest records.
        states: What the broker remembers beside messages.
        consumers: Durable consumers and work queues.
        delayed: What waits for its time.
        clock: Broker time.
        buffer: The loop's read buffer.
        unsent: What transports hold that have asked for a pause.
        replies: Who is sent the replies to what it has asked.
        passages: When the newest groups were committed and delivered.
        seconds: Figures of the last minutes.
        traces: Finds out where a message is.
        run: Number of this run.
        on_delivered: Called with each group that is on its way to its readers, and its times; None for nobody.
        fatal: Called with the error when the broker cannot go on.
        left_s: When the last connection that has gone went, by the loop's clock; else when the node began.
    """

    def __init__(
        self,
        core: Sequencer,
        log: Log,
        broker_time: BrokerTime,
        loop: asyncio.AbstractEventLoop,
        authority: Authority | None = None,
    ) -> None:
        self.core = core
        self.fanout = core.fanout
        self.tails = core.tails
        self.limits: Limits = core.limits
        self._bound_groups()
        self.gate = Gate()
        self.authority = authority
        self.rates = Rates(self.limits, broker_time.clock.steady_us)
        self._to_reconsider: list[Connection] = []
        if authority is not None:
            authority.on_change.append(self._reconsider_all)
        self.loop = loop
        self.clock = broker_time.clock
        self.buffer = ReadBuffer(READ_BUFFER_BYTES, self.limits.early_partial_bytes_max, self.limits.partial_bytes_max)
        self.buffer.schedule = self._schedule_put_off
        # In the order in which they came: what concerns all of them happens in an order that can be repeated.
        self.connections: dict[Connection, None] = {}
        self.fatal: Callable[[BrokerError], None] = lambda failure: None
        self.on_delivered: Callable[[Group, Passage], None] | None = None
        self.draining = False
        self.left_s = loop.time()
        self._time = broker_time
        self._log = log
        self.housekeeping = Housekeeping()
        self._held: list[Connection] = []
        self._commit = CommitThread(log, loop, self._done)
        self.catchup = CatchUp(core, log, loop, self.kick, self._send, self.clock.steady_us, self._lost)
        self.loader = Loader(core, log, self.clock, loop)
        self.ids = IdsLoader(core, log, self.catchup.submit, loop)
        self.unsent = Unsent()
        self._short_of_memory: dict[Connection, None] = {}
        self._refused_memory = 0
        self._turns_unwatched = 0
        self._cut = 0
        self._connections_made = 0
        self.replies = Replies()
        self._pace = Pace(self.clock)
        self.passages = Passages()
        self.seconds = Seconds()
        self._eviction = Eviction(core, log, self.clock, loop)
        self.history = HistoryReader(core, log, self.catchup.submit, self.kick)
        self.traces = Traces(core, log, self.catchup.submit, self.passages)
        self.listing = Listing(core, log, loop, self.catchup.submit, self.kick)
        self.states = StateStore(core, log, self.loader, self.catchup.submit, self.kick)
        self.consumers = Consumers(core, log, self.catchup, self.loader, self.states, self.clock, loop, self.kick)
        self.budget = Budget(core, self.buffer, self.catchup, self.unsent, self.consumers)
        self.delayed = DelayedMessages(
            core, log, self.loader, self.states, self.catchup.submit, self.clock, loop, self.kick
        )
        floors = Floors(core, log, self.consumers, self.catchup.submit)
        self._retained = RetainedBroker(core, log, self.loader, floors, broker_time, loop, self.kick)
        self._retention = Retention(self._retained, Policies.of(core.profiles))
        self.consumers.held = lambda: self._retention.holds.by_consumer
        self._idle: asyncio.Future[None] | None = None
        self._left: asyncio.Future[None] | None = None
        self._reload: Profiles | None = None
        self._failures: list[int] = []
        self._turned_us = 0
        self._second_timer: asyncio.TimerHandle | None = None
        self._seconds = 0
        self._closed = False
        self._broken = False

    # -- start ---------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        profiles: Profiles,
        limits: Limits,
        segment_bytes: int,
        reserve_bytes: int,
        backlog_bytes_max: int = 4 << 30,
        archive_by: ArchiveBy = ArchiveBy.THREAD,
        authority: Authority | None = None,
    ) -> Node:
        """Open a data directory and bring it to where it can serve.

        Args:
            path: The directory; created if it is not there.
            profiles: Policies of channels.
            limits: Bounds.
            segment_bytes: Size of a journal segment, bytes.
            reserve_bytes: Free space below which publishes are refused, bytes.
            backlog_bytes_max: What may wait for the archive before publishes are refused, bytes.
            archive_by: Who moves what is stored into the archive.
            authority: Who signs in; None if nobody is asked who he is. Whoever made it closes it, after the node.

        Raises:
            StorageError: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_CORRUPT, STORAGE_FULL.
            Unavailable: LIMIT, there is no memory for what is stored.
        """
        loop = asyncio.get_running_loop()

        def recover() -> tuple[Sequencer, Log, Group, BrokerTime]:
            log = Log.open(
                path,
                segment_bytes=segment_bytes,
                reserve_bytes=reserve_bytes,
                group_bytes_max=limits.group_bytes_max,
                backlog_bytes_max=backlog_bytes_max,
                archive_by=archive_by,
            )
            try:
                core = Sequencer(profiles, limits, int.from_bytes(os.urandom(8), "little"), log.journal_id)
                recovered = log.recover()
                broker_time = BrokerTime(recovered.time_us)
                fence = core.begin(
                    max(recovered.run, log.restored_run) + 1,
                    clean=recovered.clean,
                    unclean_run=recovered.unclean_run,
                    number=recovered.group,
                    chain=recovered.chain,
                    term=recovered.term + 1,
                    time_us=broker_time.clock.now_us(),
                    restored_run=log.restored_run,
                    id_next=recovered.id_next,
                    channels=recovered.channels,
                    producers=recovered.producers,
                    complete=recovered.empty,
                )
                if any(profile.channels_max for profile in profiles):
                    count_channels(core, log)
                log.append(fence.number, fence.value)
            except BaseException as cause:
                log.close()
                if isinstance(cause, MemoryError):
                    raise no_memory(f"opening {path}") from cause
                raise
            return core, log, fence, broker_time

        core, log, _, broker_time = await loop.run_in_executor(None, recover)
        try:
            core.committed(broker_time.clock.now_us())
            node = cls(core, log, broker_time, loop, authority)
        except MemoryError as cause:
            log.close()
            raise no_memory(f"opening {path}") from cause
        node._every_second()
        node.delayed.start()
        return node

    @property
    def run(self) -> int:
        return self.tails.run

    # -- what was put off ----------------------------------------------------------------------------------------------

    def _schedule_put_off(self) -> None:
        self.loop.call_soon(self._take_put_off)

    def _take_put_off(self) -> None:
        """Go on with the frames that the last turn left; others get their turn in between."""
        if not self._closed and self.buffer.go_on():
            self._schedule_put_off()

    # -- the turn ------------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Have the turn end with this iteration of the loop."""
        if not self.fanout.kicked:
            self.fanout.kicked = True
            self._pace.kicked()
            self.loop.call_soon(self.end_turn)

    def has_read(self, connection: Connection) -> None:
        """A connection took bytes in."""
        if self._closed or self._broken:
            return
        try:
            self._has_read(connection)
        except MemoryError:
            self._break("a turn")

    def _has_read(self, connection: Connection) -> None:
        if self._commit.outcomes:
            # Sixteen connections with a full buffer each would keep the disk idle for milliseconds.
            self._commit.hear()
            if self._broken:
                return
        if self.tails.group_bytes >= self.limits.group_bytes_max:
            connection.pause_reading()
            self._held.append(connection)
        if self.budget.holds and connection.publishes:
            connection.hold_for_memory()
            self._short_of_memory[connection] = None
        quiet = connection.heard_us - self._turned_us > TURN_QUIET_US and not self.consumers.crowded
        if quiet or self.tails.turn_bytes >= TURN_BYTES_MAX:
            self._turn()
        elif not self.fanout.kicked:
            self.kick()

    def end_turn(self) -> None:
        """The end of a loop iteration in which something happened."""
        self.fanout.kicked = False
        self._pace.turned()
        if not self._closed and not self._broken:
            self._turn()

    def _turn(self) -> None:
        try:
            now_us = self.clock.now_us()
            if self.consumers.touched:
                self.consumers.turn(now_us)
            elif self.consumers.crowded:
                self.consumers.crowded = False
            self.core.end_turn(now_us)
            if self.core.in_commit is None:
                self._start_commit()
            self._flush()
            self._turned_us = self.clock.steady_us()
        except MemoryError:
            self._break("a turn")

    def _send(self) -> None:
        """Send what is queued, and see to those who leave too much of it."""
        for outbox in self.fanout.flush():
            if outbox.answers_queued > self.limits.connection_bytes_max:
                self._cut += 1
                outbox.owner.end(
                    error(
                        "SLOW_CONSUMER",
                        f"answers that wait to be sent on this connection: got {outbox.answers_queued} bytes, "
                        f"limit {self.limits.connection_bytes_max}",
                        "read what the broker sends; reconnect and resume from the last position",
                    )
                )
                continue
            if outbox.queued > min(self.limits.connection_bytes_max, self.budget.share_bytes):
                outbox.owner.fall_behind()
            if outbox.answers_queued > ANSWERS_BYTES_MAX:
                outbox.owner.await_answers_taken()

    def _flush(self) -> None:
        self._send()
        if self.consumers.touched:
            self._give_out()
        if self.fanout.slow:
            slow, self.fanout.slow = self.fanout.slow, []
            self.catchup.demote(slow)
        self.catchup.flushed()
        self.history.flushed()
        self._watch_memory()

    def _give_out(self) -> None:
        """Consumers have read something: what they give out leaves with this turn."""
        self.consumers.turn(self.clock.now_us())
        self._send()
        if self.consumers.touched or not self.core.states.settled:
            self.kick()

    def _watch_memory(self) -> None:
        """Hold publishers while queues hold too much memory, and refuse what comes all the same when it gets more."""
        budget, held = self.budget, self.budget.holds
        self._turns_unwatched += 1
        if not self.fanout.paused_count and not held and self._turns_unwatched < WATCH_TURNS:
            return
        self._turns_unwatched = 0
        budget.look()
        if budget.holds != held:
            if budget.holds:
                emit("memory_short", used_bytes=budget.used_bytes, limit_bytes=budget.limit_bytes)
            else:
                emit("memory_enough", used_bytes=budget.used_bytes, limit_bytes=budget.limit_bytes)
        if budget.refuses and not self.tails.refuse_code:
            self.tails.refuse_code = _BUSY
        elif not budget.refuses and self.tails.refuse_code == _BUSY:
            self.tails.refuse_code = 0
        if self._short_of_memory and not budget.holds:
            waiting, self._short_of_memory = self._short_of_memory, {}
            for connection in waiting:
                connection.go_on_after_memory()

    # -- commits -------------------------------------------------------------------------------------------------------

    def _start_commit(self) -> None:
        if self._reload is not None and self.core.idle:
            self._take_profiles()
        now_us = self.clock.now_us()
        group = self.core.close_group(now_us)
        if group is not None:
            self._pace.commits()
            self.passages.closed(group.number, group.opened_us, now_us)
            self._commit.commit(group)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _done(self, group: Group, failure: BrokerError | None) -> None:
        """The commit thread is through with a group."""
        if self._closed or self._broken:
            return
        try:
            if failure is None:
                self._committed(group)
            else:
                self._failed(failure)
        except MemoryError:
            self._break(f"applying group {group.number}")

    def _committed(self, group: Group) -> None:
        self._pace.committed()
        if self.tails.refuse_code and self.tails.refuse_code != _BUSY:
            emit("storage_recovered", group=group.number)
            self.tails.refuse_code = 0
        now_us = self.clock.now_us()
        self.core.committed(now_us)
        # Early chunks of this turn are closed first: a group takes closed ones only.
        self.core.end_turn(now_us)
        self._start_commit()
        self.core.deliver(group)
        self.history.settled()
        self._flush()
        self._delivered(group, now_us)
        self._release()

    def _delivered(self, group: Group, committed_us: int) -> None:
        """What a group has held back until its commit was sent, as far as sockets take it."""
        now_us = self.clock.now_us()
        self.passages.delivered(group.number, committed_us, now_us)
        if self.on_delivered is not None:
            passage = self.passages.find(group.number)
            if passage is not None:
                self.on_delivered(group, passage)
        if group.answers:
            # What nobody waited for was delivered before, or is the broker's own.
            self._pace.delivered(now_us - group.opened_us)

    def _release(self) -> None:
        if self._held and self.tails.group_bytes < self.limits.group_bytes_max:
            held, self._held = self._held, []
            for connection in held:
                connection.resume_reading()

    def _failed(self, failure: BrokerError) -> None:
        lost = handed_over(failure)
        emit("commit_failed", code=failure.name, detail=failure.detail, handed_over=lost)
        self.core.end_turn(self.clock.now_us())
        self.core.failed(failure, handed_over=lost)
        self.catchup.undone()
        self.consumers.failed()
        self.tails.refuse_code = failure.code if failure.name == "STORAGE_FULL" else _UNAVAILABLE
        if failure.name != "STORAGE_FULL":
            now_us = self.clock.steady_us()
            self._failures = [at_us for at_us in self._failures if now_us - at_us < 60_000_000] + [now_us]
            if len(self._failures) >= STORAGE_FAILURES_PER_MIN_MAX:
                self.fatal(failure)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._commit.recover(self.core.fence(self.clock.now_us()), abandon=lost)
        self.history.settled()
        self._flush()
        self._release()

    def _break(self, what: str) -> None:
        """A step that all connections share was cut short for want of memory: nobody may go on from what it left.

        What is acknowledged is in the journal, as after a crash, and the next run begins with it.
        """
        self._broken = True
        failure = no_memory(what)
        for connection in list(self.connections):
            connection.on_exhausted()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self.fatal(failure)

    # -- connections ---------------------------------------------------------------------------------------------------

    def add(self, connection: Connection) -> int:
        """A connection has come; returns its number."""
        self.connections[connection] = None
        self._connections_made += 1
        return self._connections_made

    def remove(self, connection: Connection) -> None:
        """A connection has gone."""
        self.connections.pop(connection, None)
        self._short_of_memory.pop(connection, None)
        self.left_s = self.loop.time()
        if not self.connections and self._left is not None and not self._left.done():
            self._left.set_result(None)

    def _reconsider_all(self) -> None:
        """What somebody may do has changed: every connection goes by it, a few a turn, within a second."""
        begun = bool(self._to_reconsider)
        self._to_reconsider = list(self.connections)
        if not begun and self._to_reconsider:
            self.loop.call_soon(self._reconsider_some)

    def _reconsider_some(self) -> None:
        if self._closed or self._broken:
            return
        some = self._to_reconsider[:RECONSIDERED_AT_ONCE]
        del self._to_reconsider[:RECONSIDERED_AT_ONCE]
        for connection in some:
            if connection in self.connections:
                connection.reconsider()
        if self._to_reconsider:
            self.loop.call_soon(self._reconsider_some)

    # -- what sessions ask ---------------------------------------------------------------------------------------------

    def duplicate(self, duplicate: Duplicate) -> None:
        """Answer a publish whose numbers were taken before.

        Raises:
            Unavailable: BUSY; too many wait for the same commit.
        """
        if self.core.duplicates_waiting >= DUPLICATES_MAX:
            raise error(
                "BUSY", f"repeated publishes that wait for a commit: got {DUPLICATES_MAX + 1}, limit {DUPLICATES_MAX}"
            )
        self.core.answer_duplicate(duplicate)

    def follow(self, following: Following) -> None:
        """Begin to deliver to a subscription."""
        self.catchup.follow(following)
        self.kick()

    def refuse_for_memory(self, number: int) -> BrokerError:
        """Return why a PUBLISH is refused while queues hold too much memory, and count it."""
        self._refused_memory += 1
        return error(
            "BUSY",
            f"publish {number}: memory: got {self.budget.used_bytes} bytes, limit {self.budget.limit_bytes} bytes",
            "Publish again in a moment; readers that lag keep nothing in memory for long.",
        )

    def readers_behind(self, count_max: int) -> tuple[list[dict[str, object]], bool]:
        """Say which subscriptions lag, those that are most behind first, and whether there are more of them."""
        now_us = self.clock.now_us()
        lagging = self.catchup.lagging
        most = nsmallest(count_max, lagging, key=lambda following: following.reached)
        found = [
            {**each.subscription.outbox.owner.describe(), **describe_behind(each, self.core, now_us)} for each in most
        ]
        return found, len(lagging) > len(found)

    def locate_time(self, time_us: int, found: Callable[[int | BrokerError], None]) -> None:
        """Find the first group whose time is not below `time_us`, on the reader thread; `found` hears of it here."""
        self.catchup.locate_time(time_us, found)

    def name_of(self, channel: int) -> bytes:
        """Return the name of a stored channel that need not be in memory, by its id.

        Raises:
            StorageError: The log has none of that id, or cannot be read.
        """
        (name,) = self._log.names_of([channel])
        if name is None:
            raise error("STORAGE_CORRUPT", f"channel {channel}: the log has no name for it")
        return name

    def backup(self, target: Path) -> int:
        """Begin to copy everything that is stored at this moment into an empty folder; returns the task's id.

        Raises:
            Unavailable: BUSY; another task is running.
        """

        def work(between: Callable[[int, int], None]) -> str:
            manifest = self._log.backup(target, between)
            return f"{target}: backed up to group {manifest.group}"

        return self.housekeeping.start("backup", work)

    def compact(self) -> int:
        """Begin to rebuild the archive without what was taken out of it; returns the task's id.

        Raises:
            Unavailable: BUSY; another task is running.
        """

        now_us = self._time.ages_us()

        def work(between: Callable[[int, int], None]) -> str:
            result = self._log.compact(between, now_us)
            return f"the archive had {result.bytes_before} bytes and has {result.bytes_after}"

        return self.housekeeping.start("compact", work)

    def _lost(self, subscription: Subscription, failure: BaseException) -> None:
        if isinstance(failure, MemoryError):
            subscription.outbox.owner.on_exhausted()
            return
        if not isinstance(failure, BrokerError):
            failure = error("STORAGE_FAILED", f"subscription {subscription.number}: its history cannot be read")
        subscription.outbox.owner.end(failure)

    def reload(self, profiles: Profiles, limits: Limits) -> None:
        """Take new profiles and limits; channels in memory change between two groups."""
        self.limits = limits
        self.core.take_limits(limits)
        self.rates.take_limits(limits)
        self._reconsider_all()
        self._bound_groups()
        self.buffer.early.bytes_max = limits.early_partial_bytes_max
        self.buffer.partial.bytes_max = self.buffer.backlog.bytes_max = limits.partial_bytes_max
        self._reload = profiles
        if self.core.idle:
            self._take_profiles()

    def _bound_groups(self) -> None:
        """Say how much of a live group's messages a connection may hold whose transport takes nothing."""
        self.fanout.crowded_bytes_max = self.limits.connection_bytes_max // CROWDED_SHARE

    def _take_profiles(self) -> None:
        assert self._reload is not None
        self.core.end_turn(self.clock.now_us())
        if self.core.idle:
            self.core.reload(self._reload)
            self._retention.reload(Policies.of(self._reload))
            self._reload = None

    # -- once a second -------------------------------------------------------------------------------------------------

    def _every_second(self) -> None:
        if self._closed:
            return
        try:
            self._look_around()
        except MemoryError:
            emit("second_skipped")
        self._second_timer = self.loop.call_later(min(1.0, self.limits.ping_interval_s / 3), self._every_second)

    def _look_around(self) -> None:
        self._seconds += 1
        self._time.steer()
        self._eviction.sweep()
        self.ids.sweep()
        self._retention.tick()
        self.catchup.tick(self.clock.now_us())
        self.consumers.tick()
        self._note_second()
        now_us = self.clock.steady_us()
        if self._seconds % max(1, round(self.limits.ping_interval_s / 3)) == 0:
            for connection in list(self.connections):
                connection.check_alive(now_us)

    def _note_second(self) -> None:
        """Keep what a console plots."""
        self.seconds.note(
            Second(
                time_us=self.clock.now_us(),
                records_in=self.tails.records,
                record_bytes_in=self.tails.record_bytes,
                records_out=self.fanout.records_out,
                bytes_out=self.fanout.bytes_out,
                groups=self.core.applied_number,
                connections=len(self.connections),
                lagging=len(self.catchup.lagging),
                memory_bytes=self.budget.used_bytes,
                **self._pace.percentiles(),
            )
        )

    # -- end -----------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Tell every connection, wait until they have left or the time is over, and end the rest.

        Args:
            seconds: How long they have.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.leave(seconds)
        self._flush()
        if self.connections:
            self._left = self.loop.create_future()
            await asyncio.wait([self._left], timeout=seconds)
        for connection in list(self.connections):
            connection.end(error("GOING_AWAY", "the broker is stopping", "reconnect and resume"))

    async def close(self) -> None:
        """Commit what is pending, end the run in good order and give the directory back."""
        if self._closed:
            return
        self._retention.stop()
        self.delayed.stop()
        if self.tails.refuse_code == _BUSY:
            self.tails.refuse_code = 0
        await self._retained.settle()
        self.consumers.stop()
        if not self._broken:
            self._turn()
        while not self.core.idle and not self.tails.refuse_code and not self._broken:
            self._idle = self.loop.create_future()
            await self._idle
        self._closed = True
        self.consumers.close()
        self.loader.stop()
        self.ids.stop()
        self._eviction.stop()
        self.catchup.stop()
        if self._second_timer is not None:
            self._second_timer.cancel()
        try:
            await self.loop.run_in_executor(None, self._close_log)
        finally:
            self.fanout.close()

    def _close_log(self) -> None:
        self._commit.stop()
        self.housekeeping.close()
        self.catchup.close()
        self.loader.close()
        try:
            if not self.tails.refuse_code and not self._broken:
                group = self.core.close(self.clock.now_us())
                self._log.append(group.number, group.value)
        finally:
            self._log.close()

    # -- figures -------------------------------------------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """Whether a step was cut short for want of memory, so that nobody may go on."""
        return self._broken

    def histograms(self) -> dict[str, Histogram]:
        """Return how long what each group goes through has taken in this run, microseconds; the names are stable."""
        return self._pace.histograms()

    def stats(self) -> dict[str, object]:
        """Counters and gauges of this broker; the names are stable."""
        return {
            "pid": os.getpid(),
            "run": self.run,
            "cpu_s": time.process_time(),
            "rss_anon_bytes": anonymous_bytes(),
            "connections": len(self.connections),
            "channels": self.core.channels,
            "channels_in_memory": len(self.tails),
            "channels_evicted": self.tails.evicted,
            "channels_loaded": self.loader.loaded,
            "load_backlog_bytes": self.loader.waiting_bytes,
            "producers": len(self.core.lines),
            "records_in": self.tails.records,
            "record_bytes_in": self.tails.record_bytes,
            "records_repeated": self.tails.repeated,
            "ids_bytes": self.tails.ids_bytes,
            "ids_loaded": self.ids.loaded,
            "records_out": self.fanout.records_out,
            "chunks_out": self.fanout.chunks_out,
            "bytes_out": self.fanout.bytes_out,
            "group_records_missed": self.fanout.records_missed,
            **self.replies.stats(),
            "groups": self.core.applied_number,
            "subscriptions": self.catchup.count,
            "subscriptions_lagging": len(self.catchup.lagging),
            "demotions": self.catchup.demotions,
            "promotions": self.catchup.promotions,
            "disconnected_slow": self.catchup.cut + self._cut,
            "slices_read": self.catchup.slices_read,
            "slices_shared": self.catchup.slices_shared,
            **self.consumers.stats(),
            "memory_budget_bytes": self.budget.limit_bytes,
            "memory_used_bytes": self.budget.used_bytes,
            "queued_bytes": self.budget.queued_bytes,
            "arriving_bytes": self.budget.arriving_bytes,
            "pending_bytes": self.budget.pending_bytes,
            "kept_bytes": self.budget.kept_bytes,
            "publishers_held": len(self._short_of_memory),
            "publishes_refused_memory": self._refused_memory,
            **self.delayed.stats(),
            **self._pace.percentiles(),
            "time_us": self.clock.now_us(),
            "retention_trims": self._retention.trims,
            "retention_steps": self._retention.steps,
            "retention_held_channels": len(self._retention.holds),
            "retention_held_bytes": self._retention.holds.held_bytes,
            "channels_full": self._retention.holds.full,
            **self._log.stats(),
        }


def count_channels(core: Sequencer, log: Log) -> None:
    """Tell the core of all stored channels, for profiles that bound how many they have."""
    names = log.names(b"", b"", COUNTED_AT_ONCE)
    while names:
        core.count_stored(names)
        names = log.names(b"", names[-1], COUNTED_AT_ONCE)


def no_memory(what: str) -> BrokerError:
    """Return the error for a step that there was no memory for."""
    return error("LIMIT", f"memory: none is left for {what}", "give the process more memory, or lower its limits")


def anonymous_bytes() -> int:
    """Return this process's anonymous memory (Linux RssAnon; elsewhere the peak of all resident memory), bytes."""
    try:
        with Path("/proc/self/status").open() as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_UNAVAILABLE = error("UNAVAILABLE", "").code
_BUSY = error("BUSY", "").code
