"""A client's side of a conversation, as little as a model needs: what it has sent, and what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.wire import control
from broker.wire.kinds import Kind
from tests.conversation.model import EPHEMERAL, LEVELS
from tests.reference.frames import Frame, deliveries_of, frames_of, published_of, records_of

if TYPE_CHECKING:
    from tests.conversation.model import Answer, Broker, Line
    from tests.reference.frames import Delivery


@dataclass
class Reader:
    """A subscription: the filters, where each channel goes on, and what has arrived of it."""

    names: list[bytes]
    after: dict[bytes, int]
    granted: bool
    """It has credit for everything."""
    late: bool = False
    """It reads by bus position and had no credit: what is never read back may have passed before it joined."""
    told: dict[int, bytes] = field(default_factory=dict)

    def take(self, broker: Broker, delivery: Delivery) -> None:
        """Take one chunk: dense, of the channel's epoch, and with the content that the model has."""
        chunk = delivery.chunk
        if delivery.name is not None:
            self.told[chunk.channel] = delivery.name
        name = self.told.get(chunk.channel, self.names[0])
        assert name in self.names, f"{name!r} was not asked for"
        channel = broker.channels[name]
        channel.check_epoch(chunk.epoch)
        for step, record in enumerate(records_of(chunk)):
            sequence = chunk.first + step
            dense = sequence == self.after[name] + 1 or (self.may_miss(name) and sequence > self.after[name])
            assert dense, f"{name!r}: {sequence} follows {self.after[name]}"
            assert channel.visible[sequence - 1] == record.payload
            self.after[name] = sequence

    def may_miss(self, name: bytes) -> bool:
        return self.late and LEVELS[name] == EPHEMERAL

    def check_complete(self, broker: Broker) -> None:
        """Everything that may be seen has been."""
        for name in self.names:
            if self.granted and not self.may_miss(name):
                assert self.after[name] == broker.channels[name].head, f"{name!r}: {self.after[name]} was the last"


@dataclass
class Client:
    """One connection."""

    number: int
    producer: bytes | None
    line: Line
    opened: bool = False
    closed: bool = False
    publishes: bool = False
    """It has named a channel, so the line is its own."""
    slots: list[bytes] = field(default_factory=list)
    readers: dict[int, Reader] = field(default_factory=dict)
    expected: list[tuple[Kind, object]] = field(default_factory=list)
    """Answers that leave at once, in any order among themselves."""

    def hear(self, broker: Broker, sent: bytes) -> None:
        """Compare what has arrived with what should have."""
        frames = frames_of(sent)
        answers = [answer for frame in frames for answer in self.answers_of(broker, frame)]
        due = broker.due.pop(self.number, [])
        assert sorted(answers) == sorted(due), f"client {self.number}: told {answers}, expected {due}"
        for frame in frames:
            if frame.kind in (Kind.PUBLISHED, Kind.DELIVER):
                continue
            if frame.kind == Kind.ERROR and control.decode_error(frame.body).number is not None:
                continue
            said = (Kind(frame.kind), summary(frame))
            assert said in self.expected, f"client {self.number}: told {said}, expected {self.expected}"
            self.expected.remove(said)
        assert not self.expected, f"client {self.number}: was not told {self.expected}"
        for delivery in deliveries_of(sent):
            assert delivery.subscription in self.readers, "a delivery to nobody"
            self.readers[delivery.subscription].take(broker, delivery)
        for reader in self.readers.values():
            reader.check_complete(broker)

    def answers_of(self, broker: Broker, frame: Frame) -> list[Answer]:
        """Return one answer for each number of a frame."""
        if frame.kind == Kind.PUBLISHED:
            found: list[Answer] = []
            for entry in published_of(frame.body):
                name = self.slots[entry.slot]
                for step in range(entry.count):
                    if entry.epoch and not entry.flags:
                        broker.channels[name].check_epoch(entry.epoch)
                    place = entry.first + step if entry.epoch else 0
                    found.append((entry.number + step, ("published", "duplicate")[entry.flags], entry.level, place))
            return found
        if frame.kind == Kind.ERROR:
            refusal = control.decode_error(frame.body)
            if refusal.number is not None:
                assert refusal.count is not None
                numbers = range(refusal.number, refusal.number + refusal.count)
                return [(number, refusal.failure.name, 0, 0) for number in numbers]
        return []


def summary(frame: Frame) -> object:
    """What a model says of a frame that is neither an answer to a publish nor a delivery."""
    match frame.kind:
        case Kind.WELCOME:
            return control.decode_welcome(frame.body).highest
        case Kind.PONG:
            return control.decode_token(frame.body)
        case Kind.SUBSCRIBED:
            told = control.decode_subscribed(frame.body)
            return told.subscription, tuple((one.channel, one.outcome, one.at) for one in told.outcomes)
        case Kind.UNSUBSCRIBED:
            return control.decode_unsubscribe(frame.body)
        case Kind.REPLY:
            number, more = control.decode_reply(frame.body)
            return number, more["first"], more["head"], more["level"]
        case Kind.ERROR:
            refusal = control.decode_error(frame.body)
            return refusal.failure.name, refusal.subscription, refusal.request, refusal.channel
    raise AssertionError(f"no client is sent a frame of kind {frame.kind}")
