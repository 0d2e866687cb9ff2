"""The sequencer: decide, close groups, apply them, and say what is delivered and answered when.

The pending view is the applied state and at most two groups: one in commit, one open. If a commit fails, both are
undone together: what was handed to the journal is answered `COMMIT_UNKNOWN`, what was still open is refused. A
producer's retry of either finds the line where it was before.

Records themselves are decided in `broker_native.publisher`; this module works per turn and per group.

Not all that is stored is in memory. Whoever names a channel asks `missing` first and, for what it answers, has the
stored entries looked up and gives them to `install_each`; the same holds for a producer's line with `knows_producer`
and `install_line`. A name that is stored nowhere is created by `load` without more ado: between that look-up and the
load nothing may come.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.core.course import Course
from broker.core.epochs import RUN_SHIFT, Outcome, resume
from broker.core.group import Duplicate, Group
from broker.core.lines import Lines
from broker.core.own import OwnPublisher
from broker.core.passing import Passing
from broker.core.recent import Recent
from broker.core.states import States
from broker.model.errors import BrokerError, RequestError, error
from broker.model.levels import Level
from broker.model.positions import U32_MAX
from broker.model.profiles import OWN, PUBLISHER_USER
from broker_native.chunks import chunks_expire
from broker_native.fanout import Fanout
from broker_native.groups import chain_of
from broker_native.tails import Tails

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.model.limits import Limits
    from broker.model.profiles import Profile, Profiles
    from broker_native.publisher import Publisher

__all__ = ["Sequencer"]

GROUP_FLAG_FENCE = 1
DELIVER_FLAG_EARLY = 2
ENTRY_RUN = Struct("<IHHQB7x")
ENTRY_RUN_BODY = Struct("<QB7x")
ENTRY_RUN_KIND = 5
ENTRY_CLOSE = Struct("<IHHQ")
ENTRY_CLOSE_KIND = 6
PUBLISHED = Struct("<QQQIIBB6x")
PUBLISHED_DUPLICATE = 1

ACCEPTED_WAIT_US = 50_000
"""An accepted record is at most this far ahead of the disk; beyond it new ones wait for their commit."""
EARLY_FOREVER_US = (1 << 64) - 1
OWN_HEADERS_BYTES_MAX = (1 << 16) - 1
"""Of a copy that the broker makes of a user's record: its headers and what the broker adds."""
OWN_PAYLOAD_BYTES_MAX = 65 << 20
"""Of a record in the broker's own channels, whatever the limits of others are: a largest message, with its names."""
RECENT_BYTES = 8 << 20
PASSING_BYTES = 1 << 20
MEMORY_SHARE = 8
"""Nor more than this part of what all queues may hold."""
IDS_MEMORY_SHARE = 4
"""The same for message ids."""
TRANSACTION_SHARE = 2
"""A transaction is at most this part of what a group is meant to hold, since it is never split."""
LATE_US = 500_000
"""A group that took this long to commit may hold records that have expired meanwhile: they last a second at least."""


class Sequencer:
    """One shard's sequencer. It belongs to one thread, the loop's.

    Args:
        profiles: Policies of channels.
        limits: Bounds.
        hash_seed: 64 random bits that key the name table.
        journal: 16 bytes that name the journal.

    Before anything is served: `apply_*` everything that the journal has, then `begin`, then commit the group that it
    returns.
    """

    def __init__(self, profiles: Profiles, limits: Limits, hash_seed: int, journal: bytes) -> None:
        self.profiles = profiles
        self.journal = journal
        self.tails = Tails(1, hash_seed)
        self.take_limits(limits)
        self.fanout = Fanout(self.tails)
        self.lines = Lines()
        self.own = OwnPublisher(self.tails, OWN_HEADERS_BYTES_MAX)
        self.states = States(self)
        self.recent = Recent(min(RECENT_BYTES, limits.memory_bytes_max // MEMORY_SHARE))
        self.course = Course()
        self.passing = Passing(min(PASSING_BYTES, limits.memory_bytes_max // MEMORY_SHARE))
        self.term = 0
        self.writer = 0
        self.applied_number = 0
        self.applied_chain = 0
        self.removals = 0
        self.somebody_lags = False
        self.ended_well = True
        self.in_commit: Group | None = None
        self.duplicates: list[Duplicate] = []
        self.requests: list[Callable[[BrokerError | None], None]] = []
        self._complete = True
        self._unclean_run = 0
        self._restored_run = 0
        self._failed = False
        self._opened_us = 0
        self._births: dict[bytes, tuple[int, int]] = {}
        self._profile_indexes: dict[bytes, int] = {}

    # -- start and end of a run ----------------------------------------------------------------------------------------

    def apply_entries(self, entries: bytes | bytearray | memoryview) -> None:
        """Apply a table delta (replay). The bytes are borrowed for the call."""
        self._note_runs(self.tails.apply_entries(entries, self.lines.line))

    def apply_group(self, value: bytes) -> None:
        """Apply a committed group (replay)."""
        self._note_runs(self.tails.apply_group(value, self.lines.line))

    def _note_runs(self, entries: list[tuple[int, int, bytes]]) -> None:
        """Remember the newest run that did not end in good order: the run after it says so."""
        for kind, _, body in entries:
            if kind == ENTRY_RUN_KIND:
                run, clean = ENTRY_RUN_BODY.unpack(body)
                if not clean:
                    self._unclean_run = run - 1

    def begin(
        self,
        run: int,
        *,
        clean: bool,
        number: int,
        chain: int,
        term: int,
        time_us: int,
        unclean_run: int = 0,
        restored_run: int = 0,
        id_next: int = 0,
        channels: int | None = None,
        producers: int | None = None,
        complete: bool = True,
    ) -> Group:
        """Begin a run on top of what was applied, or can be looked up.

        Args:
            run: Number of the run, one above the journal's last.
            clean: The run before ended in good order; else accepted channels get a new epoch with their first record.
            number, chain: The last good group's, 0 and 0 for an empty journal.
            term: The new term.
            time_us: Broker time.
            unclean_run: The newest run that is known not to have ended in good order, 0 for none; what was applied may
                name a newer one.
            restored_run: Below `run`: channels of all levels whose newest epoch is of a run up to this one get a new
                epoch with their first record, since their log went back to an older state.
            id_next: The next stored channel's id, at least.
            channels, producers: How many the journal has; None when all of them were applied.
            complete: Whether all that the journal has was applied, so that nothing ever needs to be looked up.

        Returns:
            The fence group. Nothing is served before it is committed.
        """
        self.tails.begin_run(run, number + 1, id_next, channels)
        self.tails.now_us = max(self.tails.now_us, time_us)
        if producers is not None:
            self.lines.stored_elsewhere = max(producers - len(self.lines), 0)
        self._complete = complete
        self.ended_well = clean
        self._unclean_run = max(self._unclean_run, unclean_run)
        self._count_profiles()
        self.applied_number, self.applied_chain = number, chain
        self.fanout.delivered = number
        self.term = term
        self._restored_run = restored_run
        if not clean:
            self._unclean_run = run - 1
        return self._fence(time_us, ENTRY_RUN.pack(ENTRY_RUN.size, ENTRY_RUN_KIND, 0, run, clean))

    def fence(self, time_us: int) -> Group:
        """Close a fence group after `undo`: it names the last good group, so what failed after that is void."""
        return self._fence(time_us, b"")

    def _fence(self, time_us: int, extra: bytes) -> Group:
        return self._close(time_us, GROUP_FLAG_FENCE, extra)

    def close(self, time_us: int) -> Group:
        """Close the last group of the run, which says that it ended in good order.

        A run in which a commit failed did not: readers may hold positions in channels that have had no record, and so
        no new epoch, since.
        """
        entry = b"" if self._failed else ENTRY_CLOSE.pack(ENTRY_CLOSE.size, ENTRY_CLOSE_KIND, 0, self.tails.run)
        return self._close(time_us, 0, entry)

    # -- what is in memory ---------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether everything that is stored is in memory: nothing was evicted, and nothing was left where it is."""
        return self._complete and not self.tails.evicted and not self.lines.evicted

    @property
    def channels(self) -> int:
        """How many channels there are: those that the journal has, and those in memory that it does not have."""
        return self.tails.stored + self.tails.unborn

    def missing(self, names: list[bytes]) -> list[bytes]:
        """Return those of the names that are not in memory and may be stored, each once, in order."""
        return [] if self.complete else self.tails.absent(names)

    def install_each(self, found: list[bytes]) -> dict[int, Exception]:
        """Have channels in memory again, of which `missing` told.

        Args:
            found: What is stored of each: CHANNEL, EPOCH and HEAD entries.

        Returns:
            By index why one cannot be had: ValueError, its entries make no sense; MemoryError.
        """
        return self.tails.apply_each(found, self.lines.line)

    def knows_producer(self, producer: bytes) -> bool:
        """Whether the producer's line is in memory, or surely stored nowhere."""
        return self.complete or self.lines.known(producer) is not None

    def install_line(self, entry: bytes) -> None:
        """Have a producer's line in memory again, of which `knows_producer` said no.

        Args:
            entry: What is stored of it, a LINE entry; nothing if there is none.
        """
        before = len(self.lines)
        self.tails.apply_entries(entry, self.lines.line)
        self.lines.stored_elsewhere -= min(len(self.lines) - before, self.lines.stored_elsewhere)

    def evict(self, settled_group: int, used_before_s: int, slots_max: int) -> int:
        """Free channels and lines that nobody uses, going on where the last call stopped.

        Args:
            settled_group: What groups up to this one have stored can be looked up elsewhere.
            used_before_s: What was used at this broker time or later stays, seconds.
            slots_max: How much to look at: slots of the channels' table, and an eighth as many lines.

        Returns:
            How many channels and lines were freed.
        """
        settled_group = min(settled_group, self.applied_number)
        freed = self.tails.evict(settled_group, used_before_s, slots_max)
        return freed + self.lines.evict(settled_group, used_before_s, max(slots_max // 8, 1))

    # -- channels ------------------------------------------------------------------------------------------------------

    def take_limits(self, limits: Limits) -> None:
        """Hold these bounds from now on."""
        self.limits = limits
        self.tails.transaction_bytes_max = limits.group_bytes_max // TRANSACTION_SHARE
        self.tails.ids_bytes_max = min(limits.ids_bytes_max, limits.memory_bytes_max // IDS_MEMORY_SHARE)

    def load(self, name: bytes) -> None:
        """Have a channel in memory under its profile.

        Raises:
            RequestError: NO_PROFILE; TOO_MANY_CHANNELS.
            Unavailable: LIMIT, too many new channels a second; BUSY, the channel is being removed.
        """
        if self.tails.ready(name):
            return
        if self.tails.leaving(name):
            raise error("BUSY", f"channel {name.decode()}: it is being removed", "Try again in a moment.")
        profile = self.profiles.resolve(name)
        info = self.tails.info(name)
        if info is None:
            self._count_birth(profile)
        self._load(name, profile)
        if info is not None and self._may_have_lost(info[2], accepted=Level.ACCEPTED in (info[1], profile.durability)):
            self.tails.mark_unclean(name)

    def load_each(self, names: list[bytes]) -> dict[int, BrokerError]:
        """Do what `load` does for one name after the other.

        Returns:
            By index why a name cannot be had; nothing for those that can.
        """
        refused: dict[int, BrokerError] = {}
        unready = self.tails.unready(names)
        if unready:
            self._load_stored([names[at] for at in unready])
            for at in self.tails.unready(names):
                try:
                    self.load(names[at])
                except BrokerError as failure:
                    refused[at] = failure
        return refused

    def _load_stored(self, names: list[bytes]) -> None:
        """Give channels that have come into memory with what is stored their profiles; others are left to `load`."""
        by_profile: dict[bytes, tuple[Profile, list[bytes]]] = {}
        for name in names:
            try:
                profile = self.profiles.resolve(name)
            except RequestError:
                continue
            by_profile.setdefault(profile.pattern, (profile, []))[1].append(name)
        for profile, some in by_profile.values():
            self.tails.load_stored(
                some,
                profile.durability,
                profile.shard_tokens,
                self._payload_bytes_max(profile),
                self._profile_index(profile),
                self._restored_run,
                self._unclean_run,
            )

    def _load(self, name: bytes, profile: Profile) -> None:
        index = self._profile_index(profile)
        limit = self._payload_bytes_max(profile)
        self.tails.load(name, profile.durability, profile.shard_tokens, limit, index)

    def _profile_index(self, profile: Profile) -> int:
        """Where the profile's channels are counted: 1 and on; past 65,535 patterns in one run nobody counts.

        What is said there of their ids is that of the newest profile with this pattern, or beyond that of the last one.
        """
        index = self._profile_indexes.setdefault(profile.pattern, len(self._profile_indexes) + 1)
        index = index if index < 1 << 16 else 0
        self.tails.set_ids(index, profile.ids_window_s, profile.ids_max)
        self.tails.set_stamps(index, profile.publisher == PUBLISHER_USER)
        return index

    def _count_profiles(self) -> None:
        """Count the channels that were applied at start under their profiles, if any profile asks."""
        if any(profile.channels_max for profile in self.profiles):
            self.count_stored(self.tails.names())

    def count_stored(self, names: list[bytes]) -> None:
        """Count channels that were stored before this run under their profiles, for `channels_max`.

        Those that `begin` finds in memory are counted already. Whoever walks the others tells each of them once; until
        then a profile's bound is held against what this run has created.
        """
        for name in names:
            try:
                profile = self.profiles.resolve(name)
            except RequestError:
                continue  # of a profile that is no more: it is in nobody's way
            self.tails.count_stored(self._profile_index(profile), 1)

    def _may_have_lost(self, epoch: int, *, accepted: bool) -> bool:
        """Whether records of the epoch that readers saw may be missing: nothing newer has begun since.

        A crash takes accepted ones, going back to a backup those of any level.
        """
        run = epoch >> RUN_SHIFT
        return run <= self._restored_run or (accepted and run <= self._unclean_run)

    def _payload_bytes_max(self, profile: Profile) -> int:
        if profile is OWN:
            return OWN_PAYLOAD_BYTES_MAX
        return min(profile.payload_bytes_max or self.limits.payload_bytes_max, self.limits.payload_bytes_max)

    def _count_birth(self, profile: Profile) -> None:
        """Hold the bounds on new channels. What the broker needs for itself it needs for what it has accepted."""
        if profile is OWN:
            return
        if self.channels >= self.limits.channels_max:
            raise error("TOO_MANY_CHANNELS", f"channels: got {self.channels + 1}, limit {self.limits.channels_max}")
        count = self.tails.count(self._profile_index(profile)) + 1
        if profile.channels_max and count > profile.channels_max:
            raise error(
                "TOO_MANY_CHANNELS",
                f"channels of profile {profile.pattern.decode()}: got {count}, limit {profile.channels_max}",
            )
        if profile.new_channels_per_s:
            second = self.tails.now_us // 1_000_000
            begun, born = self._births.get(profile.pattern, (second, 0))
            born = born + 1 if begun == second else 1
            if born > profile.new_channels_per_s:
                raise error(
                    "LIMIT",
                    f"new channels of profile {profile.pattern.decode()}: got {born}, "
                    f"limit {profile.new_channels_per_s} a second",
                )
            self._births[profile.pattern] = (second, born)

    def trim(self, name: bytes, first: int, done: Callable[[BrokerError | None], None], reason: int = 0) -> None:
        """Let a channel that is in memory forget what is below a sequence.

        Args:
            name: The channel.
            first: The oldest sequence that stays; beyond what is committed or in commit it stands for all of that.
            done: Called with None when it is committed and applied or there was nothing to forget, else with why not;
                in this very call when no commit is needed.
            reason: Of GONE_*, why.
        """
        if self.tails.refuse_code:
            done(error(self.tails.refuse_code, "the journal takes nothing now"))
        elif self.tails.trim(name, first, reason):
            self.requests.append(done)
        else:
            done(None)

    def drop(self, name: bytes, done: Callable[[BrokerError | None], None]) -> None:
        """Remove a channel that is in memory: its name is free for another one when it is done.

        Args:
            name: The channel.
            done: As of `trim`. BUSY when somebody publishes to it or reads it by its name, or a record of it is on its
                way to the disk.
        """
        if self.tails.refuse_code:
            done(error(self.tails.refuse_code, "the journal takes nothing now"))
        elif self.tails.info(name) is None:
            done(None)
        elif self.tails.held(name) or self.tails.pending(name):
            done(self._in_use(name))
        elif self.tails.drop(name):
            self.requests.append(done)
        else:
            done(None)

    def _in_use(self, name: bytes) -> BrokerError:
        """Say who keeps a channel from being removed. Each literal of a subscription holds its channel, live or not."""
        holders, live = self.tails.uses(name)
        if holders or live:
            others = max(holders - live, 0)
            return error(
                "BUSY",
                f"channel {name.decode()}: it is in use: got {live} live subscriptions that name it, "
                f"{others} publishers and subscriptions that catch up, limit 0",
                "End its subscriptions and the connections that publish to it, then try again.",
            )
        return error(
            "BUSY", f"channel {name.decode()}: a record of it is on its way to the disk", "Try again in a moment."
        )

    def reload(self, profiles: Profiles) -> None:
        """Take new profiles; channels in memory change with the next group. Call it while nothing is pending."""
        self.profiles = profiles
        for name in self.tails.names():
            if self.tails.ready(name):
                self._load(name, profiles.resolve(name))

    def await_group(self, open_one: bool, done: Callable[[BrokerError | None], None]) -> None:
        """Have something said when a pending group is committed, or why it failed.

        Args:
            open_one: It rests on the open group, else on the one in commit.
            done: Called with None, or with the group's failure.
        """
        if open_one or self.in_commit is None:
            self.requests.append(done)
        else:
            self.in_commit.requests.append(done)

    @property
    def awaited(self) -> int:
        """How much waits for a pending group to say what becomes of it."""
        return len(self.requests) + (len(self.in_commit.requests) if self.in_commit is not None else 0)

    @property
    def idle(self) -> bool:
        """Whether nothing is pending: no group in commit, none open."""
        return self.in_commit is None and self.tails.group_empty and self.states.settled

    # -- the turn and the group ----------------------------------------------------------------------------------------

    def end_turn(self, now_us: int) -> None:
        """Deliver what does not wait for the disk, and answer it.

        Time may have passed since it was decided: accepted records that are too far ahead of the disk by now wait.

        Connections are served in the order in which they get something: readers first, since they wait longest. On a
        connection that does both, answers leave ahead of deliveries.
        """
        if now_us > self.tails.early_until_us:
            self.tails.hold_early()
        number, index = self.tails.group_number, self.tails.early_chunks
        ephemeral, early = self.tails.close_turn()
        if ephemeral is not None:
            self.fanout.turn += 1
            self.fanout.deliver(ephemeral, 0, 0, 0, 0)
            if self.fanout.slow or self.somebody_lags:
                self.passing.add(self.fanout.turn, ephemeral)
            else:
                self.passing.clear()
        if early is not None:
            self.fanout.deliver(early, 0, number, index, DELIVER_FLAG_EARLY)
            self.fanout.early_group, self.fanout.early_index = number, self.tails.early_chunks
        for publisher, answers in self.tails.take_turn_answers():
            publisher.owner.outbox.published(answers)
        if not self._opened_us and not self.tails.group_empty:
            self._opened_us = now_us

    def _judge_wait(self, now_us: int) -> None:
        """Say until when accepted records need not wait for their commit: the oldest uncommitted one is another now.

        Every read compares its own time with it, and so does the end of a turn: a timer would come too late just when
        the loop was held up, and what came meanwhile would be answered all the same.
        """
        oldest_us = self.in_commit.opened_us if self.in_commit is not None else self._opened_us
        self.tails.early_until_us = oldest_us + ACCEPTED_WAIT_US if oldest_us else EARLY_FOREVER_US
        self.tails.accepted_waits = now_us > self.tails.early_until_us

    def close_group(self, now_us: int) -> Group | None:
        """Close the open group for the journal; None when it is empty or another one is in commit."""
        if self.in_commit is not None:
            return None
        self.states.collect()
        if self.tails.group_empty:
            return None
        return self._close(now_us, 0, b"")

    def _close(self, now_us: int, flags: int, extra: bytes) -> Group:
        """Put the open group in commit."""
        number, early_values = self.tails.group_number, self.tails.early_values
        value, early = self.tails.close_group(
            self.applied_number, self.applied_chain, self.term, self.writer, now_us, flags, extra, 1 if extra else 0
        )
        self.in_commit = group = Group(
            number=number,
            predecessor=self.applied_number,
            value=value,
            chain=chain_of(value),
            early=early,
            early_values=early_values,
            opened_us=self._opened_us or now_us,
            answers=self.tails.take_answers(),
            duplicates=self.duplicates,
            requests=self.requests,
        )
        self.duplicates = []
        self.requests = []
        self._opened_us = 0
        self._judge_wait(now_us)
        return group

    def committed(self, now_us: int) -> Group:
        """Apply the group in commit. Deliver it with `deliver` after the next one is on its way."""
        group = self.in_commit
        assert group is not None
        self.in_commit = None
        self.tails.apply_group(group.value, self.lines.line)
        self.applied_number, self.applied_chain = group.number, group.chain
        self.recent.add(group)
        self.course.add(group.number, len(group.value))
        self.states.committed(group.number)
        self._judge_wait(now_us)
        if now_us - group.opened_us >= LATE_US:
            group.late_s = now_us // 1_000_000
        return group

    def deliver(self, group: Group) -> None:
        """Hand a committed group's chunks to readers and answer its publishers."""
        value, offset = group.value, group.offset(group.early)
        if group.late_s:
            value, offset = chunks_expire(value, offset, group.late_s), 0
        self.fanout.deliver(value, offset, group.number, group.early, 0)
        self.fanout.delivered = group.number
        for publisher, answers in group.answers:
            publisher.owner.outbox.published(answers)
        for duplicate in group.duplicates:
            self._answer_applied(duplicate)
        self.removals += len(group.requests)
        for done in group.requests:
            done(None)

    def failed(self, failure: BrokerError, *, handed_over: bool) -> None:
        """Undo the pending groups and answer everybody who waits for them.

        Args:
            failure: Why the commit failed.
            handed_over: Whether the group may be on the disk all the same.
        """
        group = self.in_commit
        assert group is not None
        self.in_commit = None
        refused = failure
        if failure.code // 1000 != 1:
            refused = error("COMMIT_REFUSED", f"the group before it failed: {failure.detail}")
        unknown = refused
        if handed_over:
            unknown = error("COMMIT_UNKNOWN", f"group {group.number}: {failure.detail}")
        open_duplicates, self.duplicates = self.duplicates, []
        open_requests, self.requests = self.requests, []
        open_answers = self.tails.undo(handed_over)
        for answers, why in ((group.answers, unknown), (open_answers, refused)):
            for publisher, entries in answers:
                for number, count in runs_of(entries):
                    publisher.owner.refuse(why, number, count)
        for duplicates, why in ((group.duplicates, unknown), (open_duplicates, refused)):
            for duplicate in duplicates:
                duplicate.publisher.owner.refuse(why, duplicate.number, duplicate.count)
        for requests, why in ((group.requests, unknown), (open_requests, refused)):
            for done in requests:
                done(why)
        self._opened_us = 0
        self._failed = True
        # The fence that follows judges anew.
        self.tails.early_until_us, self.tails.accepted_waits = EARLY_FOREVER_US, False
        self.states.failed()

    # -- readers' positions --------------------------------------------------------------------------------------------

    def resume(self, name: bytes, epoch: int, sequence: int) -> Outcome:
        """Judge a reader's position in a stored channel that is in memory."""
        info = self.tails.info(name)
        assert info is not None
        _, _, current, first, applied_next, _, seen_next, epochs = info
        if current and (not epochs or epochs[-1][0] != current):
            # This epoch's first group is still on its way to the disk, and readers may have its records already.
            epochs = [*epochs, (current, applied_next)]
        return resume(epochs, first, seen_next, epoch, sequence)

    @property
    def duplicates_waiting(self) -> int:
        """How many repeated publishes wait for a pending group."""
        return len(self.duplicates) + (len(self.in_commit.duplicates) if self.in_commit is not None else 0)

    # -- retried publishes ---------------------------------------------------------------------------------------------

    def answer_duplicate(self, duplicate: Duplicate) -> None:
        """Answer a publish whose numbers were taken before, now or with the pending group that holds them."""
        line = duplicate.publisher.line
        last = duplicate.number + duplicate.count - 1
        if line.open_first and last >= line.open_first:
            self.duplicates.append(duplicate)
        elif line.commit_first and last >= line.commit_first and self.in_commit is not None:
            self.in_commit.duplicates.append(duplicate)
        else:
            self._answer_applied(duplicate)

    def _answer_applied(self, duplicate: Duplicate) -> None:
        entries = b"".join(
            self._duplicate_entry(duplicate.publisher, duplicate.slot, channel, number, first, count)
            for channel, number, first, count in duplicate.publisher.line.lookup(duplicate.number, duplicate.count)
        )
        duplicate.publisher.owner.outbox.published(entries)

    def _duplicate_entry(
        self, publisher: Publisher, slot: int, channel: int, number: int, first: int, count: int
    ) -> bytes:
        name = self.tails.name_of(channel) if channel else None
        info = self.tails.info(name) if name is not None else None
        if info is None:
            # The position is not known any more, or it was ephemeral: no more is said than the channel promises.
            level = publisher.level_of(slot) or Level.EPHEMERAL
            return PUBLISHED.pack(number, 0, 0, count, slot, level, PUBLISHED_DUPLICATE)
        epoch = next(epoch for epoch, begin in reversed(info[7]) if begin <= first)
        return PUBLISHED.pack(number, epoch, first, count, slot, info[1], PUBLISHED_DUPLICATE)


def runs_of(entries: bytes) -> list[tuple[int, int]]:
    """Return (first number, count) of each run of consecutive numbers that PUBLISHED entries answer.

    A transaction's numbers are never in two runs: its entries stand behind one another, and it is refused in one.
    """
    runs: list[tuple[int, int]] = []
    for number, _, _, count, _, _, _ in PUBLISHED.iter_unpack(entries):
        if runs and sum(runs[-1]) == number and runs[-1][1] + count <= U32_MAX:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        else:
            runs.append((number, count))
    return runs
