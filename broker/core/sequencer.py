"""The sequencer: decide, close groups, apply them, and say what is delivered and answered when.

The pending view is the applied state and at most two groups: one in commit, one open. If a commit fails, both are
undone together: what was handed to the journal is answered `COMMIT_UNKNOWN`, what was still open is refused. A
producer's retry of either finds the line where it was before.

Records themselves are decided in `broker_native.tails`; this module works per turn and per group.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.core.epochs import RUN_SHIFT, Outcome, resume
from broker.core.group import Duplicate, Group
from broker.core.lines import Lines
from broker.core.recent import Recent
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker_native.chunks import chunks_expire
from broker_native.fanout import Fanout
from broker_native.groups import chain_of
from broker_native.tails import Tails

if TYPE_CHECKING:
    from broker.model.limits import Limits
    from broker.model.profiles import Profile, Profiles
    from broker_native.tails import Publisher

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
RECENT_BYTES = 8 << 20
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
        self.limits = limits
        self.journal = journal
        self.tails = Tails(1, hash_seed)
        self.fanout = Fanout(self.tails)
        self.lines = Lines()
        self.recent = Recent(RECENT_BYTES)
        self.term = 0
        self.writer = 0
        self.applied_number = 0
        self.applied_chain = 0
        self.in_commit: Group | None = None
        self.duplicates: list[Duplicate] = []
        self._unclean_run = 0
        self._failed = False
        self._opened_us = 0
        self._births: dict[bytes, tuple[int, int]] = {}
        self._channels: dict[bytes, int] = {}

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

    def begin(self, run: int, *, clean: bool, number: int, chain: int, term: int, time_us: int) -> Group:
        """Begin a run on top of what was applied.

        Args:
            run: Number of the run, one above the journal's last.
            clean: The run before ended in good order; else accepted channels get a new epoch with their first record.
            number, chain: The last good group's, 0 and 0 for an empty journal.
            term: The new term.
            time_us: Broker time.

        Returns:
            The fence group. Nothing is served before it is committed.
        """
        self.tails.begin_run(run, number + 1)
        self.applied_number, self.applied_chain = number, chain
        self.term = term
        if not clean:
            self._unclean_run = run - 1
        return self._fence(time_us, ENTRY_RUN.pack(ENTRY_RUN.size, ENTRY_RUN_KIND, 0, run, clean))

    def fence(self, time_us: int) -> Group:
        """Close a fence group after `undo`: it names the last good group, so what failed after that is void."""
        return self._fence(time_us, b"")

    def _fence(self, time_us: int, extra: bytes) -> Group:
        group = self._close(time_us, GROUP_FLAG_FENCE, extra)
        self.in_commit = group
        return group

    def close(self, time_us: int) -> Group:
        """Close the last group of the run, which says that it ended in good order.

        A run in which a commit failed did not: readers may hold positions in channels that have had no record, and so
        no new epoch, since.
        """
        entry = b"" if self._failed else ENTRY_CLOSE.pack(ENTRY_CLOSE.size, ENTRY_CLOSE_KIND, 0, self.tails.run)
        group = self._close(time_us, 0, entry)
        self.in_commit = group
        return group

    # -- channels ------------------------------------------------------------------------------------------------------

    def load(self, name: bytes) -> None:
        """Have a channel in memory under its profile.

        Raises:
            RequestError: NO_PROFILE; TOO_MANY_CHANNELS.
            Unavailable: LIMIT, too many new channels a second.
        """
        if self.tails.ready(name):
            return
        profile = self.profiles.resolve(name)
        info = self.tails.info(name)
        if info is None:
            self._count_birth(profile)
        self.tails.load(name, profile.durability, profile.shard_tokens, self._payload_bytes_max(profile))
        if info is not None and Level.ACCEPTED in (info[1], profile.durability) and self._may_have_lost(info[2]):
            self.tails.mark_unclean(name)

    def _may_have_lost(self, epoch: int) -> bool:
        """Whether a crash may have taken records of the epoch that readers saw: nothing newer has begun since."""
        return epoch >> RUN_SHIFT <= self._unclean_run

    def _payload_bytes_max(self, profile: Profile) -> int:
        return min(profile.payload_bytes_max or self.limits.payload_bytes_max, self.limits.payload_bytes_max)

    def _count_birth(self, profile: Profile) -> None:
        """Hold the bounds on new channels."""
        if len(self.tails) >= self.limits.channels_max:
            raise error("TOO_MANY_CHANNELS", f"channels: got {len(self.tails) + 1}, limit {self.limits.channels_max}")
        count = self._channels.get(profile.pattern, 0) + 1
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
        self._channels[profile.pattern] = count

    def reload(self, profiles: Profiles) -> None:
        """Take new profiles; channels in memory change with the next group. Call it while nothing is pending."""
        self.profiles = profiles
        for name in self.tails.names():
            if self.tails.ready(name):
                profile = profiles.resolve(name)
                self.tails.load(name, profile.durability, profile.shard_tokens, self._payload_bytes_max(profile))

    @property
    def idle(self) -> bool:
        """Whether nothing is pending: no group in commit, none open."""
        return self.in_commit is None and self.tails.group_empty

    # -- the turn and the group ----------------------------------------------------------------------------------------

    def end_turn(self, now_us: int) -> None:
        """Deliver what does not wait for the disk, and answer it.

        Connections are served in the order in which they get something: readers first, since they wait longest. On a
        connection that does both, answers leave ahead of deliveries.
        """
        number, index = self.tails.group_number, self.tails.early_chunks
        ephemeral, early = self.tails.close_turn()
        if ephemeral is not None:
            self.fanout.deliver(ephemeral, 0, 0, 0, 0)
        if early is not None:
            self.fanout.deliver(early, 0, number, index, DELIVER_FLAG_EARLY)
        for publisher, answers in self.tails.take_turn_answers():
            publisher.owner.outbox.published(answers)
        if not self._opened_us and not self.tails.group_empty:
            self._opened_us = now_us

    def judge_wait(self, now_us: int) -> int:
        """Let accepted records wait for their commit while the oldest uncommitted one is too old.

        Returns:
            How long until that one is too old, microseconds; 0 when it is, or when nothing is uncommitted.
        """
        oldest = self.in_commit.opened_us if self.in_commit is not None else self._opened_us
        left_us = max(oldest + ACCEPTED_WAIT_US + 1 - now_us, 0) if oldest else 0
        self.tails.accepted_waits = bool(oldest) and not left_us
        return left_us

    def close_group(self, now_us: int) -> Group | None:
        """Close the open group for the journal; None when it is empty or another one is in commit."""
        if self.in_commit is not None or self.tails.group_empty:
            return None
        self.in_commit = self._close(now_us, 0, b"")
        return self.in_commit

    def _close(self, now_us: int, flags: int, extra: bytes) -> Group:
        number, early_values = self.tails.group_number, self.tails.early_values
        value, early = self.tails.close_group(
            self.applied_number, self.applied_chain, self.term, self.writer, now_us, flags, extra, 1 if extra else 0
        )
        group = Group(
            number=number,
            predecessor=self.applied_number,
            value=value,
            chain=chain_of(value),
            early=early,
            early_values=early_values,
            opened_us=self._opened_us or now_us,
            answers=self.tails.take_answers(),
            duplicates=self.duplicates,
        )
        self.duplicates = []
        self._opened_us = 0
        return group

    def committed(self, now_us: int) -> Group:
        """Apply the group in commit. Deliver it with `deliver` after the next one is on its way."""
        group = self.in_commit
        assert group is not None
        self.in_commit = None
        self.tails.apply_group(group.value, self.lines.line)
        self.applied_number, self.applied_chain = group.number, group.chain
        self.recent.add(group)
        if self.tails.accepted_waits:
            self.judge_wait(now_us)
        if now_us - group.opened_us >= LATE_US:
            group.late_s = now_us // 1_000_000
        return group

    def deliver(self, group: Group) -> None:
        """Hand a committed group's chunks to readers and answer its publishers."""
        value, offset = group.value, group.offset(group.early)
        if group.late_s:
            value, offset = chunks_expire(value, offset, group.late_s), 0
        self.fanout.deliver(value, offset, group.number, group.early, 0)
        for publisher, answers in group.answers:
            publisher.owner.outbox.published(answers)
        for duplicate in group.duplicates:
            self._answer_applied(duplicate)

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
        open_answers = self.tails.undo(handed_over)
        for answers, why in ((group.answers, unknown), (open_answers, refused)):
            for publisher, entries in answers:
                for number, _, _, count, _, _, _ in PUBLISHED.iter_unpack(entries):
                    publisher.owner.refuse(why, number, count)
        for duplicates, why in ((group.duplicates, unknown), (open_duplicates, refused)):
            for duplicate in duplicates:
                duplicate.publisher.owner.refuse(why, duplicate.number, duplicate.count)
        self._opened_us = 0
        self._failed = True
        self.tails.accepted_waits = False

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
