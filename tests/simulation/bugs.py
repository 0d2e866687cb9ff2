"""Mistakes that the product could make, to plant: a simulation that finds none of them proves nothing.

Each takes a `MonkeyPatch` and makes one mistake; most are ones that it had, or that a neighbour of its code invites.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker.client.client import Client
from broker.client.connection import Connection
from broker.client.subscription import ClientSubscription
from broker.core.delayed import Delayed
from broker.core.lines import Lines
from broker.core.recent import INDEX_END, Recent
from broker.core.sequencer import Sequencer
from broker.edge.native import NativeConnection
from broker.edge.session import Session
from broker.node.catchup import CatchUp, Following
from broker.node.commit import CommitThread, Work
from broker.node.delayed import DelayedMessages
from broker.node.demotion import Undelivered
from broker.node.ids import Part
from broker.node.node import Node
from broker.node.time import BrokerTime
from broker.remote.bus import FOR_GOOD
from broker.remote.places import BusPlace, LiteralPlaces
from broker.wire import control
from broker_native.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.core.group import Group
    from broker.model.errors import BrokerError

Patch = pytest.MonkeyPatch


# -- bytes and connections ---------------------------------------------------------------------------------------------


def lose_a_byte_where_a_header_is_cut(patch: Patch) -> None:
    """A read that ends inside a frame's header loses its last byte."""

    def updated(self: NativeConnection, nbytes: int) -> None:
        Intake.buffer_updated(self, nbytes - 1 if 1 < nbytes < 8 else nbytes)

    patch.setattr(NativeConnection, "buffer_updated", updated)


def lose_answers_at_a_pause(patch: Patch) -> None:
    """PUBLISHED is dropped while the transport takes nothing."""
    deliver = Sequencer.deliver

    def forgetful(self: Sequencer, group: Group) -> None:
        group.answers = [one for one in group.answers if not one[0].owner.outbox.paused]
        deliver(self, group)

    patch.setattr(Sequencer, "deliver", forgetful)


def never_resume_a_paused_outbox(patch: Patch) -> None:
    patch.setattr(NativeConnection, "resume_writing", lambda self: None)


def never_resume_a_paused_client(patch: Patch) -> None:
    """The client stops sending when its transport is full, and does not begin again."""
    patch.setattr(Client, "on_writable", lambda self: None)


def never_read_again_from_those_held(patch: Patch) -> None:
    """A connection that was held while the open group was full stays so."""
    patch.setattr(Node, "_release", lambda self: None)


def ignore_going_away(patch: Patch) -> None:
    patch.setattr(Client, "on_going_away", lambda self, notice: None)


def accept_the_end_of_a_connection_in_silence(patch: Patch) -> None:
    """The client does not notice a server that has gone without a word."""
    patch.setattr(Connection, "_check_alive", lambda self: None)


def let_two_connections_have_a_line(patch: Patch) -> None:
    """The older connection of a producer is not told that a newer one has taken its line."""
    patch.setattr(Session, "_take_line", lambda self, line: None)


# -- publishing --------------------------------------------------------------------------------------------------------


def say_a_highest_that_is_one_too_low(patch: Patch) -> None:
    highest = Lines.highest
    patch.setattr(Lines, "highest", lambda self, producer: max(0, highest(self, producer) - 1))


def say_a_highest_that_is_one_too_high(patch: Patch) -> None:
    highest = Lines.highest

    def high(self: Lines, producer: bytes) -> int:
        known = highest(self, producer)
        return known + 1 if known else 0

    patch.setattr(Lines, "highest", high)


def take_an_unknown_outcome_for_a_refusal(patch: Patch) -> None:
    """The client gives the numbers of COMMIT_UNKNOWN to other records at once."""

    def sure(self: Client, number: int, count: int, failure: BrokerError) -> None:
        self._buffer.refuse(number, count, failure, FOR_GOOD)
        self._answered()

    patch.setattr(Client, "_on_publish_refused", sure)


def answer_at_close(patch: Patch) -> None:
    """Synced records are acknowledged when their group closes, before it is stored."""
    close = Sequencer._close

    def impatient(self: Sequencer, *args: Any) -> Any:
        group = close(self, *args)
        for publisher, answers in group.answers:
            publisher.owner.outbox.published(answers)
        group.answers = []
        return group

    patch.setattr(Sequencer, "_close", impatient)


def answer_duplicates_at_once(patch: Patch) -> None:
    """A retry of a record that is pending is acknowledged as if it were stored."""
    patch.setattr(Sequencer, "answer_duplicate", Sequencer._answer_applied)


def call_an_unknown_outcome_refused(patch: Patch) -> None:
    failed = Sequencer.failed

    def sure(self: Sequencer, failure: Any, *, handed_over: bool) -> None:
        failed(self, failure, handed_over=False)

    patch.setattr(Sequencer, "failed", sure)


def free_numbers_that_may_be_stored(patch: Patch) -> None:
    """WELCOME says the number that the line went back to while the failed group may still come back."""

    def highest(self: Lines, producer: bytes) -> int:
        line = self.known(producer)
        return line.next - 1 if line is not None else 0

    patch.setattr(Lines, "highest", highest)


# -- commits -----------------------------------------------------------------------------------------------------------


def stay_in_a_failed_segment(patch: Patch) -> None:
    recover = CommitThread.recover
    patch.setattr(CommitThread, "recover", lambda self, group, abandon: recover(self, group, abandon=False))


def swallow_a_failed_commit(patch: Patch) -> None:
    attempt = CommitThread._attempt

    def blind(self: CommitThread, work: Work) -> bool:
        settled = attempt(self, work)
        work.failure = None
        return settled

    patch.setattr(CommitThread, "_attempt", blind)


def end_in_good_order_after_a_failed_commit(patch: Patch) -> None:
    close = Sequencer.close

    def clean(self: Sequencer, time_us: int) -> Any:
        self._failed = False
        return close(self, time_us)

    patch.setattr(Sequencer, "close", clean)


def forget_crashes_after_a_good_run(patch: Patch) -> None:
    patch.setattr(Sequencer, "_note_runs", lambda self, entries: None)


def forget_crashes_before_the_last_run(patch: Patch) -> None:
    """A run that begins with nothing in memory does not hear that an older one ended badly."""
    begin = Sequencer.begin

    def forgetful(self: Sequencer, run: int, **how: Any) -> Group:
        return begin(self, run, **{**how, "unclean_run": 0})

    patch.setattr(Sequencer, "begin", forgetful)


def go_on_in_an_epoch_that_a_crash_cut(patch: Patch) -> None:
    patch.setattr(Sequencer, "_may_have_lost", lambda self, epoch, accepted: False)


# -- reading -----------------------------------------------------------------------------------------------------------


def count_credit_twice(patch: Patch) -> None:
    consumed = ClientSubscription._on_consumed
    patch.setattr(ClientSubscription, "_on_consumed", lambda self, size: consumed(self, 2 * size))


def grant_again_what_was_granted(patch: Patch) -> None:
    """A subscription that begins again grants what is free, and later once more what was consumed before."""
    subscribe = ClientSubscription._subscribe

    def generous(self: ClientSubscription) -> None:
        before = self._cursor.unreported()
        subscribe(self)
        if before and self._number and self._connection is not None:
            self._connection.send(control.encode_credit(self._number, before))

    patch.setattr(ClientSubscription, "_subscribe", generous)


def forget_to_grant(patch: Patch) -> None:
    """What was consumed is not granted anew."""
    patch.setattr(ClientSubscription, "_on_consumed", lambda self, size: None)


def resume_one_too_late(patch: Patch) -> None:
    """The client asks for what comes after the record that it has not got yet."""
    start = LiteralPlaces.start

    def late(self: LiteralPlaces) -> control.Start:
        wanted = start(self)
        if isinstance(wanted, control.FromPositions):
            return control.FromPositions(tuple((name, epoch, at + 1) for name, epoch, at in wanted.positions if at))
        return wanted

    patch.setattr(LiteralPlaces, "start", late)


def resume_a_place_one_group_too_late(patch: Patch) -> None:
    """A chunk that came early is taken to vouch for the group before its own."""
    reach = BusPlace._reach

    def far(self: BusPlace, group: int, index: int) -> None:
        reach(self, group + 1 if index == INDEX_END else group, index)

    patch.setattr(BusPlace, "_reach", far)


def forget_what_came_early(patch: Patch) -> None:
    accept = BusPlace.accept

    def forgetful(self: BusPlace, batch: Any) -> Any:
        self._early = {}
        return accept(self, batch)

    patch.setattr(BusPlace, "accept", forgetful)


def deliver_after_unsubscribed(patch: Patch) -> None:
    def leave(self: CatchUp, following: Following) -> None:
        following.subscription.state = None

    patch.setattr(CatchUp, "leave", leave)


def deliver_early_chunks_again(patch: Patch) -> None:
    deliver = Sequencer.deliver

    def twice(self: Sequencer, group: Group) -> None:
        group.early = 0
        deliver(self, group)

    patch.setattr(Sequencer, "deliver", twice)


def join_without_early_chunks(patch: Patch) -> None:
    patch.setattr(CatchUp, "_early_values", lambda self: [])


def join_one_chunk_late(patch: Patch) -> None:
    after = Recent.after

    def late(self: Recent, number: int, index: int, wanted: Any) -> Any:
        found = after(self, number, index, wanted)
        return found[1:] if found else found

    patch.setattr(Recent, "after", late)


def join_behind_half_a_group(patch: Patch) -> None:
    """The rest of a group that has made room is passed over."""
    after = Recent.after
    patch.setattr(Recent, "after", lambda self, number, index, wanted: after(self, number, INDEX_END, wanted))


def read_groups_that_are_not_applied(patch: Patch) -> None:
    """What the commit thread has stored and the loop has not delivered is read, and then delivered."""
    have = CatchUp._have

    class Ahead:
        def __init__(self, core: Sequencer) -> None:
            self.core = core

        def __getattr__(self, name: str) -> Any:
            return 2**64 if name == "applied_number" else getattr(self.core, name)

    def greedy(self: CatchUp, key: Any, read: Any) -> None:
        core, step, waiting = self._core, self.step, self._reading[key]
        self._core, self.step = Ahead(core), lambda following, last=None: None  # type: ignore[method-assign, assignment]
        have(self, key, read)
        self._core, self.step = core, step  # type: ignore[method-assign]
        for following, _ in waiting:
            self.step(following)

    patch.setattr(CatchUp, "_have", greedy)


def _move_refused(patch: Patch, move: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    standing = Undelivered.standing
    patch.setattr(Undelivered, "standing", lambda self, refused: standing(self, refused and move(refused)))


def demote_behind_the_refused_chunk(patch: Patch) -> None:
    """The chunk that was refused is taken for delivered."""
    _move_refused(patch, lambda refused: (refused[0], refused[1] + 1, *refused[2:]))


def demote_one_chunk_before_the_refused_one(patch: Patch) -> None:
    """The last chunk that was delivered comes once more."""
    _move_refused(patch, lambda refused: (refused[0], max(refused[1] - 1, 0), *refused[2:]))


def demote_behind_what_is_applied(patch: Patch) -> None:
    """A group that is applied and was not delivered yet when a chunk was refused is taken for delivered."""
    standing = Undelivered.standing

    def late(self: Undelivered, refused: Any) -> Any:
        if refused is not None:
            refused = (*refused[:3], self._core.applied_number, *refused[4:])
        return standing(self, refused)

    patch.setattr(Undelivered, "standing", late)


def demote_and_forget_what_came_early(patch: Patch) -> None:
    """What a pending group delivered early comes again when it is committed."""
    patch.setattr(Undelivered, "_early_counts", lambda self, after: [])


def demote_and_keep_what_a_failed_commit_took(patch: Patch) -> None:
    patch.setattr(CatchUp, "undone", lambda self: None)


def demote_and_stay_attached(patch: Patch) -> None:
    patch.setattr(CatchUp, "_draw_back", _detach_nothing)


def _detach_nothing(self: CatchUp, following: Following, standing: Any, undelivered: Undelivered) -> None:
    if following.place is not None:
        following.place, following.early_done = standing.place, standing.early_done
    else:
        for name in following.literals:
            following.after.setdefault(name, undelivered.after(name, standing))


def wait_for_a_pause_that_never_came(patch: Patch) -> None:
    """A reader whose connection had much to send goes on only when the transport says that it takes bytes again."""
    patch.setattr(CatchUp, "flushed", lambda self: None)


# -- errands -----------------------------------------------------------------------------------------------------------


def forget_the_ids_of_a_run_before(patch: Patch) -> None:
    """Ids are not read back from what is stored."""

    def read(self: Part, log: object) -> int:
        self.at = self.end
        return 0

    patch.setattr(Part, "read", read)


def forget_cancellations(patch: Patch) -> None:
    """A cancellation is confirmed, and nothing is stored of it."""
    patch.setattr(DelayedMessages, "cancel", lambda self, channel, id, done: done(None))


def publish_what_is_due_without_its_place(patch: Patch) -> None:
    """The place up to which delayed messages were published is in another group than they are."""
    patch.setattr(Delayed, "restore", lambda self, snapshot, changes: None)


def stand_still_below_the_last_group(patch: Patch) -> None:
    """Broker time waits for a wall clock that is behind the last group."""
    steer = BrokerTime.steer

    def steered(self: BrokerTime, seconds: int = 1) -> None:
        self._ahead_us = 0
        steer(self, seconds)

    patch.setattr(BrokerTime, "steer", steered)


def give_a_group_to_everybody(patch: Patch) -> None:
    """Members of a live group get what each of them subscribed to."""
    decode = control.decode_subscribe
    patch.setattr(control, "decode_subscribe", lambda body: replace(decode(body), group=None))


BUGS: list[Callable[[Patch], None]] = [
    lose_a_byte_where_a_header_is_cut,
    lose_answers_at_a_pause,
    never_resume_a_paused_outbox,
    never_resume_a_paused_client,
    never_read_again_from_those_held,
    ignore_going_away,
    accept_the_end_of_a_connection_in_silence,
    let_two_connections_have_a_line,
    say_a_highest_that_is_one_too_low,
    say_a_highest_that_is_one_too_high,
    take_an_unknown_outcome_for_a_refusal,
    answer_at_close,
    answer_duplicates_at_once,
    call_an_unknown_outcome_refused,
    free_numbers_that_may_be_stored,
    stay_in_a_failed_segment,
    swallow_a_failed_commit,
    end_in_good_order_after_a_failed_commit,
    forget_crashes_before_the_last_run,
    go_on_in_an_epoch_that_a_crash_cut,
    count_credit_twice,
    grant_again_what_was_granted,
    forget_to_grant,
    resume_one_too_late,
    resume_a_place_one_group_too_late,
    forget_what_came_early,
    deliver_after_unsubscribed,
    deliver_early_chunks_again,
    join_without_early_chunks,
    join_one_chunk_late,
    join_behind_half_a_group,
    read_groups_that_are_not_applied,
    wait_for_a_pause_that_never_came,
    demote_behind_the_refused_chunk,
    demote_one_chunk_before_the_refused_one,
    forget_the_ids_of_a_run_before,
    forget_cancellations,
    publish_what_is_due_without_its_place,
    stand_still_below_the_last_group,
    give_a_group_to_everybody,
]


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Make a mistake, by its name, or none."""
    with pytest.MonkeyPatch.context() as patch:
        for bug in BUGS:
            if bug.__name__ == name:
                bug(patch)
        yield


# -- what leaves memory and comes back ---------------------------------------------------------------------------------


def evict_what_is_not_settled(patch: Patch) -> None:
    """A channel leaves memory before the groups that it was in can be looked up."""

    def evict(self: Sequencer, settled_group: int, used_before_s: int, slots_max: int) -> int:
        return self.tails.evict(self.applied_number, used_before_s, slots_max)

    patch.setattr(Sequencer, "evict", evict)


def evict_lines_that_are_in_use(patch: Patch) -> None:
    """A producer's line leaves memory although its numbers are pending."""
    patch.setattr(Lines, "_may_go", staticmethod(lambda line, settled_group, used_before_s: True))


def forget_an_epoch_of_what_comes_back(patch: Patch) -> None:
    """The last of a channel's epochs is not taken in again."""
    install_each = Sequencer.install_each

    def with_one_epoch(entries: bytes) -> bytes:
        kept, at = [], 0
        while at < len(entries):
            size, kind = int.from_bytes(entries[at : at + 4], "little"), entries[at + 4]
            kept.append((kind, entries[at : at + size]))
            at += size
        epochs = [entry for kind, entry in kept if kind == 2]
        return b"".join(entry for _, entry in kept if entry not in epochs[1:])

    def forgetful(self: Sequencer, found: list[bytes]) -> dict[int, Exception]:
        return install_each(self, list(map(with_one_epoch, found)))

    patch.setattr(Sequencer, "install_each", forgetful)


def give_an_id_again(patch: Patch) -> None:
    """A run that begins with nothing in memory numbers its channels from 1."""
    begin = Sequencer.begin

    def forgetful(self: Sequencer, run: int, **how: Any) -> Group:
        return begin(self, run, **{**how, "id_next": 0})

    patch.setattr(Sequencer, "begin", forgetful)


def create_what_was_evicted_anew(patch: Patch) -> None:
    """Nothing is ever missing: what was evicted begins anew."""
    patch.setattr(Sequencer, "missing", lambda self, names: [])
