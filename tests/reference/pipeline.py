"""The pipeline without its threads: a sequencer, a journal in memory, and connections whose bytes a test reads.

The caller says when a turn ends and what becomes of a commit; nothing happens by itself.
"""

from __future__ import annotations

from typing import Any

from broker.core.group import Duplicate, Group
from broker.core.sequencer import Sequencer
from broker.log.errors import AppendError
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.wire import control
from broker_native.fanout import Outbox, Subscription
from broker_native.lines import Line
from broker_native.publisher import CODES, Publisher
from tests.reference import groups as reference
from tests.reference.frames import (
    PUBLISHED,
    Delivery,
    Published,
    Record,
    build_record,
    deliveries_of,
    frames_of,
    publish_body,
    published_of,
    records_of,
)
from tests.reference.journal import Fate, MemoryJournal

PRODUCER = b"p" * 16
JOURNAL = b"j" * 16
PROFILES = Profiles([Profile(b"e.>", Level.EPHEMERAL), Profile(b"a.>", Level.ACCEPTED), Profile(b"s.>")])
PLENTY = 1 << 30
UNAVAILABLE = error("UNAVAILABLE", "").code


class Resolving(Sequencer):
    """A sequencer that looks up at once what it does not have in memory: a loader without its thread."""

    resolver: MemoryJournal

    def load(self, name: bytes) -> None:
        assert not self.install_each(self.resolver.resolve(self.missing([name])))
        super().load(name)

    def load_line(self, producer: bytes) -> None:
        """Have the producer's line in memory, if there is one."""
        if not self.knows_producer(producer):
            self.install_line(*self.resolver.resolve_lines([producer]))


class Connection:
    """What the sequencer sees of a session, and what arrives at the other end."""

    def __init__(self, core: Sequencer, producer: bytes | None = PRODUCER) -> None:
        self.core = core
        self.outbox = Outbox(core.fanout, self)
        self.outbox.transport = self
        self.sent = b""
        self.refused: list[tuple[str, int, int]] = []
        if producer is not None and isinstance(core, Resolving):
            core.load_line(producer)
        line = core.lines.line(producer) if producer is not None else Line()
        line.holders += 1
        self.publisher = Publisher(core.tails, line, self, 1_000)
        self.slots: dict[bytes, int] = {}

    # .. what the broker calls ..

    def writelines(self, pieces: list[Any]) -> None:
        self.sent += b"".join(bytes(piece) for piece in pieces)

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        self.refused.append((failure.name, number, count))

    def tell(self, subscription: Subscription, event: str, more: dict[str, object]) -> None:
        self.outbox.ordered_frame(control.encode_event(subscription.number, event, "", more))

    # .. what a client does ..

    def close(self) -> None:
        """The connection is over."""
        self.outbox.close()
        self.publisher.leave()
        self.publisher.line.holders -= 1

    def slot(self, name: bytes) -> int:
        """Return the number of a channel, which is named first if it has none."""
        if name not in self.slots:
            self.core.load(name)
            self.slots[name] = len(self.slots)
            self.publisher.bind(self.slots[name], name)
        return self.slots[name]

    def publish(self, name: bytes, *payloads: bytes, number: int | None = None, expiry_s: int | None = None) -> int:
        """Publish under the next number, or another one; a duplicate goes to the sequencer as from a session."""
        number = self.publisher.line.next if number is None else number
        slot = self.slot(name)
        records = [build_record(Record(payload, expiry_s=expiry_s)) for payload in payloads]
        code = self.publisher.publish_frame(publish_body(slot, number, records))
        if code == CODES["DUPLICATE"]:
            self.core.answer_duplicate(Duplicate(self.publisher, slot, number, len(records)))
        return code

    def subscribe(self, *filters: bytes, number: int = 1, credit: int = PLENTY) -> Subscription:
        """Read literals and patterns from now on."""
        subscription = Subscription(self.outbox, number, credit, 0, True)
        for wanted in filters:
            if b"*" in wanted or b">" in wanted:
                self.core.fanout.attach_pattern(subscription, wanted)
            else:
                self.core.load(wanted)
                self.core.fanout.attach(subscription, wanted)
        return subscription

    def take(self) -> bytes:
        """Return what has arrived since the last time."""
        self.core.fanout.flush()
        sent, self.sent = self.sent, b""
        return sent

    def answers(self) -> list[Published]:
        """Return the PUBLISHED entries that have arrived; everything else is forgotten."""
        frames = [frame for frame in frames_of(self.take()) if frame.kind == PUBLISHED]
        return [entry for frame in frames for entry in published_of(frame.body)]

    def deliveries(self) -> list[Delivery]:
        """Return the deliveries that have arrived; everything else is forgotten."""
        return deliveries_of(self.take())


class Pipeline:
    """A sequencer on a journal in memory; a new one is started with `start`, as after a crash."""

    def __init__(self, profiles: Profiles = PROFILES, limits: Limits | None = None) -> None:
        self.profiles = profiles
        self.limits = limits or Limits()
        self.journal = MemoryJournal()
        self.now_us = 0
        self.failure: AppendError | None = None
        self.start()

    def start(self, *, cold: bool = False) -> None:
        """Begin a run on top of what the journal has; whether the last one ended in good order, it says.

        Args:
            cold: Nothing is applied, and everything is looked up when it is first used.
        """
        self.core = core = Resolving(self.profiles, self.limits, 4770, JOURNAL)
        core.resolver = self.journal
        self.failure = None
        run, closed = 0, 0
        for value in self.journal.replay():
            if not cold:
                core.apply_group(value)
            group = reference.parse_group(value)
            run = group.run
            closed = run if reference.close_entry(run) in group.entries else closed
        tables = self.journal.tables
        stored: dict[str, Any] = {
            "id_next": max(self.journal.ids, default=0) + 1,
            "channels": len(tables.channels),
            "producers": len(tables.lines),
            "unclean_run": max((run - 1 for run, clean in self.journal.runs if not clean), default=0),
            "complete": False,
        }
        last = self.journal.last
        fence = self.core.begin(
            run + 1,
            clean=closed == run,
            number=last.number if last else 0,
            chain=last.chain if last else 0,
            term=run + 1,
            time_us=self.now_us,
            **(stored if cold else {}),
        )
        self.journal.append(fence.number, fence.value)
        self.core.committed(self.now_us)
        self.core.tails.now_us = self.now_us

    def wait(self, us: int) -> None:
        """Let time pass."""
        self.now_us += us
        self.core.tails.begin_read(self.now_us)

    def end_turn(self) -> None:
        self.core.end_turn(self.now_us)

    def close_group(self) -> Group:
        """End the turn and put the open group in commit."""
        self.end_turn()
        group = self.core.close_group(self.now_us)
        assert group is not None
        return group

    def append(self, fate: Fate = Fate.STORED) -> None:
        """The commit thread appends the group in commit; the loop does not hear of it yet."""
        assert self.core.in_commit is not None
        self.journal.fate = fate
        try:
            self.journal.append(self.core.in_commit.number, self.core.in_commit.value)
        except AppendError as failure:
            self.failure = failure

    def done(self, *, close_next: bool = False) -> Group:
        """The loop hears that the group in commit is on the disk; the next one may go there before it is delivered."""
        group = self.core.committed(self.now_us)
        self.core.tails.refuse_code = 0
        self.end_turn()
        if close_next:
            self.core.close_group(self.now_us)
        self.core.deliver(group)
        return group

    def failed(self, failure: BrokerError | None = None) -> None:
        """The loop hears that it is not, or may not be: stored records are refused until a fence is on the disk."""
        assert self.failure is not None
        self.end_turn()
        self.core.failed(failure or self.failure, handed_over=self.failure.handed_over)
        self.failure = None
        self.core.tails.refuse_code = UNAVAILABLE
        self.core.fence(self.now_us)

    def commit(self) -> Group:
        """Close, commit and deliver the open group."""
        self.close_group()
        self.append()
        return self.done()

    def fail(self, fate: Fate, failure: BrokerError | None = None) -> None:
        """The commit of the group in commit fails."""
        self.append(fate)
        self.failed(failure)

    def recover(self, fate: Fate = Fate.STORED) -> bool:
        """Try to store the fence behind a failed commit; tells whether that came about."""
        self.journal.abandon()
        self.append(fate)
        if self.failure is not None:
            self.failure = None
            return False
        self.done()
        return True

    def close(self) -> None:
        """End the run in good order."""
        self.end_turn()
        if not self.core.tails.group_empty:
            self.commit()
        self.core.close(self.now_us)
        self.append()
        self.done()


def parse(group: Group) -> reference.Group:
    """Return what a group holds."""
    return reference.parse_group(group.value)


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    """Return the payloads of deliveries."""
    return [record.payload for delivery in deliveries for record in records_of(delivery.chunk)]
