"""A producer as the specification demands it: it keeps what is not answered and repeats it under its numbers.

Whatever it is told goes into the model. What it was not told, it finds out by repeating; after COMMIT_UNKNOWN, or when
its numbers are no longer the server's, by a new handshake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.model.errors import error
from broker.wire import control
from broker_native.publisher import CODES
from tests.reference.frames import ERROR, PUBLISHED, Published, frames_of, published_of
from tests.reference.pipeline import Connection

if TYPE_CHECKING:
    from random import Random

    from broker.core.sequencer import Sequencer
    from broker.model.errors import BrokerError
    from tests.simulation.core.model import Model

IN_FLIGHT_MAX = 6


class SessionEnd(Connection):
    """A connection on which refusals come in one stream with the answers, as a session sends them."""

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        self.outbox.frame(control.encode_error(failure, number=number, count=count))


@dataclass
class Kept:
    """One publish that is not answered."""

    name: bytes
    payloads: list[bytes]
    number: int = 0
    answered: int = 0
    sent: bool = False
    ever_sent: bool = False


class Producer:
    """One producer, over as many connections as it takes."""

    def __init__(self, identity: int, random: Random, model: Model, names: list[bytes]) -> None:
        self.identity = bytes([identity]) * 16
        self.random = random
        self.model = model
        self.names = names
        self.kept: list[Kept] = []
        self.connection: SessionEnd | None = None
        self.next_number = 1
        self.refused_number = 0
        self._freed = False
        self._made = 0
        self._arrived = b""

    # -- connections --

    def connect(self, core: Sequencer) -> None:
        """WELCOME says the highest number: up to it everything goes again as it was, the rest under new numbers."""
        self.connection = SessionEnd(core, self.identity)
        highest = core.lines.highest(self.identity)
        number = highest + 1
        for kept in self.kept:
            kept.sent, kept.answered = False, 0
            if not kept.ever_sent or kept.number > highest:
                kept.number, number = number, number + len(kept.payloads)
        self.kept.sort(key=lambda kept: kept.number)
        self.next_number = number
        self.refused_number = 0
        self._freed = False

    def disconnect(self) -> None:
        """What was under way to it is lost."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self._arrived = b""

    # -- publishing --

    def post(self) -> None:
        """Have something to publish."""
        count = self.random.choice([1, 1, 1, 2, 3])
        payloads = [b"%d.%d" % (self.identity[0], self._made + index) for index in range(count)]
        self._made += count
        self.kept.append(Kept(self.random.choice(self.names), payloads, self.next_number))
        self.next_number += count

    def send(self) -> None:
        """Send the first publish that is not under way, in the order of the line."""
        assert self.connection is not None
        if self.refused_number or sum(kept.sent for kept in self.kept) >= IN_FLIGHT_MAX:
            return
        kept = next((kept for kept in self.kept if not kept.sent), None)
        if kept is None:
            return
        kept.sent = kept.ever_sent = True
        code = self.connection.publish(kept.name, *kept.payloads, number=kept.number)
        if code not in (0, CODES["DUPLICATE"]):
            self.connection.refuse(error(code, ""), kept.number, len(kept.payloads))

    def take(self, core: Sequencer, *, some: bool) -> None:
        """Read what has arrived, all of it or some frames."""
        assert self.connection is not None
        self._arrived += self.connection.take()
        frames = frames_of(self._arrived)
        if some:
            frames = frames[: self.random.randint(0, len(frames))]
        for frame in frames:
            self._arrived = self._arrived[8 + len(frame.body) :]
            if frame.kind == PUBLISHED:
                for entry in published_of(frame.body):
                    self.acknowledged(entry)
            elif frame.kind == ERROR:
                self.refused(control.decode_error(frame.body))
                if self.connection is None:
                    return
        self.settle()

    # -- answers --

    def acknowledged(self, entry: Published) -> None:
        """Some numbers were taken."""
        assert self.connection is not None
        slots = {slot: name for name, slot in self.connection.slots.items()}
        for step in range(entry.count):
            number = entry.number + step
            kept = next(kept for kept in self.kept if kept.number <= number < kept.number + len(kept.payloads))
            assert kept.sent, "an answer to nothing"
            assert slots[entry.slot] == kept.name
            position = (kept.name, entry.epoch, entry.first + step) if entry.epoch else None
            self.model.acknowledge(kept.payloads[number - kept.number], entry.level, position)
            kept.answered += 1
            if kept.answered == len(kept.payloads):
                self.kept.remove(kept)

    def refused(self, refusal: control.Refusal) -> None:
        """One publish, or several that follow one another, were refused, for one of three reasons."""
        assert refusal.number is not None
        assert refusal.count is not None
        end = refusal.number + refusal.count
        concerned = [kept for kept in self.kept if refusal.number <= kept.number < end]
        assert all(kept.sent and kept.answered == 0 for kept in concerned)
        assert sum(len(kept.payloads) for kept in concerned) == refusal.count
        if refusal.failure.name == "COMMIT_UNKNOWN":
            self.disconnect()
            return
        for kept in concerned:
            self.refused_number = min(self.refused_number or kept.number, kept.number)
            if refusal.failure.name == "NUMBER_GAP":
                kept.sent = False
                continue
            # Nothing of it has happened, and its numbers are free.
            assert refusal.failure.name in ("COMMIT_REFUSED", "UNAVAILABLE", "STORAGE_FAILED")
            for payload in kept.payloads:
                self.model.refuse(payload)
            self.kept.remove(kept)
            self._freed = True

    def settle(self) -> None:
        """After refusals, once nothing is under way: go on from the first refused number."""
        if not self.refused_number or any(kept.sent for kept in self.kept):
            return
        if not self._freed:
            # Everything was refused for its number alone: only a new handshake tells the right one.
            self.disconnect()
            return
        number = self.refused_number
        for kept in self.kept:
            kept.number, number = number, number + len(kept.payloads)
        self.next_number = number
        self.refused_number = 0
        self._freed = False
