"""Readers as the specification demands them: they know where they stand, resume from there, and check all they get.

A reader's belief is what it would show to its user: for each channel the records from the first on. A crash or a failed
commit may take the newest of it away, and only when the server says so, by an outcome or by an epoch that begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.node.catchup import INDEX_END, CatchUp, Following, Wanted
from broker.wire import control
from broker.wire.kinds import Kind
from broker_native.fanout import Subscription
from tests.reference.frames import DELIVER_EARLY, Delivery, delivery_of, frames_of
from tests.simulation.core.producers import SessionEnd

if TYPE_CHECKING:
    from random import Random

    from broker.core.epochs import Outcome
    from tests.reference.pipeline import Resolving
    from tests.simulation.core.model import Model

Belief = list[tuple[int, bytes]]
"""(epoch, payload) of each record, from sequence 1."""


class WantedByName(Wanted):
    """What filters reach, also of channels that memory does not have: the journal knows every name at once."""

    def __contains__(self, channel: object) -> bool:
        wanted = super().__contains__(channel)
        if self.unknown:
            self.learn(self._core.resolver)
            wanted = super().__contains__(channel)
        return wanted

    def __init__(self, core: Resolving, literals: list[bytes], patterns: list[bytes]) -> None:
        super().__init__(core, literals, patterns)
        self._core = core


class Reader:
    """One subscription, over as many connections as it takes."""

    def __init__(self, random: Random, model: Model, filters: list[bytes]) -> None:
        self.random = random
        self.model = model
        self.literals = [wanted for wanted in filters if b"*" not in wanted and b">" not in wanted]
        self.patterns = [wanted for wanted in filters if wanted not in self.literals]
        self.beliefs: dict[bytes, Belief] = {}
        self.connection: SessionEnd | None = None
        self.subscription: Subscription | None = None
        self._names: dict[int, bytes] = {}
        self._ephemeral: dict[bytes, tuple[int, int]] = {}
        self._arrived = b""
        self.lagging = False

    # -- connections --

    def connect(self, core: Resolving, catchup: CatchUp, credit: int) -> None:
        """Subscribe: the first time from the very beginning, then from where it stands."""
        self.connection = SessionEnd(core, None)
        for name in self.literals:
            core.load(name)
            core.tails.hold(name)
        self._core = core
        self.subscription = Subscription(self.connection.outbox, 1, credit, 0, True)
        following = Following(self.subscription, self.literals, self.patterns)
        self._names = {}
        self._ephemeral = {}
        self.lagging = False
        self.place(core, following)
        catchup.follow(following)

    def disconnect(self, catchup: CatchUp) -> None:
        """What was under way to it is lost."""
        if self.subscription is not None and self.subscription.state is not None:
            catchup.leave(self.subscription.state)
        self.forget()

    def forget(self) -> None:
        """The connection is gone."""
        if self.connection is not None:
            self.connection.close()
            for name in self.literals:
                self._core.tails.release(name)
        self.connection = self.subscription = None
        self._arrived = b""

    def place(self, core: Resolving, following: Following) -> None:
        raise AssertionError("each kind of reader has its own way to stand")

    # -- deliveries --

    def take(self, *, some: bool) -> None:
        """Read what has arrived, all of it or some deliveries."""
        assert self.connection is not None
        assert self.subscription is not None
        self._arrived += self.connection.take()
        frames = frames_of(self._arrived)
        kept = self.random.randint(0, len(frames)) if some else len(frames)
        at = 0
        for frame in frames[:kept]:
            at += 8 + len(frame.body)
            if frame.kind == Kind.EVENT:
                self.on_event(control.decode_event(frame.body))
                continue
            delivery = delivery_of(frame)
            if delivery.name is not None:
                self._names[delivery.chunk.channel] = delivery.name
            self.deliver(self._names[delivery.chunk.channel], delivery)
        self._arrived = self._arrived[at:]

    def on_event(self, event: control.Event) -> None:
        """It falls behind and comes back, in turn; only if it is told may anything be missing."""
        if event.event == "dropped":
            self._ephemeral = {}
        else:
            assert event.event == ("live" if self.lagging else "lagging")
            self.lagging = not self.lagging

    def deliver(self, name: bytes, delivery: Delivery) -> None:
        """Take one chunk."""
        raise AssertionError("each kind of reader has its own way to take a chunk")

    def append(self, name: bytes, delivery: Delivery) -> None:
        """Believe what a chunk says: it goes on, or begins an epoch anew where records were lost."""
        if not delivery.group:
            assert not self.lagging, "what is ephemeral is live"
            self.append_ephemeral(name, delivery)
            return
        belief = self.beliefs.setdefault(name, [])
        chunk = delivery.chunk
        if chunk.first <= len(belief):
            assert chunk.epoch != belief[chunk.first - 1][0], f"{name!r}: sequence {chunk.first} comes twice"
            self.drop(name, chunk.first - 1)
        assert chunk.first == len(belief) + 1, f"{name!r}: sequence {chunk.first} after {len(belief)}"
        belief += [
            (chunk.epoch, payload)
            for _, payload in self.model.see_chunk(name, chunk, early=bool(delivery.flags & DELIVER_EARLY))
        ]

    def append_ephemeral(self, name: bytes, delivery: Delivery) -> None:
        """Ephemeral records are never read back; once a connection gets them it gets them all.

        Unless the channel is read by its name it may leave memory, and begins a new epoch when it comes back.
        """
        chunk = delivery.chunk
        epoch, last = self._ephemeral.get(name, (chunk.epoch, chunk.first - 1))
        if chunk.epoch > epoch and name not in self.literals:
            epoch, last = chunk.epoch, 0
        assert chunk.epoch == epoch
        assert chunk.first == last + 1, f"{name!r}: ephemeral sequence {chunk.first} after {last}"
        self.model.see_chunk(name, chunk, early=True)
        self._ephemeral[name] = (epoch, chunk.first + chunk.count - 1)

    def drop(self, name: bytes, after: int) -> None:
        """The server says that what was seen after a sequence was lost; so it must be."""
        belief = self.beliefs[name]
        stored = self.model.heads.get(name, [])
        for sequence in range(after, len(belief)):
            lost = sequence >= len(stored) or stored[sequence] != belief[sequence]
            assert lost, f"{name!r}: sequence {sequence + 1} is stored and said to be lost"
            epoch, payload = belief[sequence]
            position = (name, epoch, sequence + 1)
            assert self.model.synced.get(payload) != position, f"{payload!r} was synced and is said to be lost"
        del belief[after:]


class LiteralReader(Reader):
    """Stands in each channel by its position."""

    def place(self, core: Resolving, following: Following) -> None:
        for name in self.literals:
            belief = self.beliefs.get(name, [])
            epoch = belief[-1][0] if belief else 0
            outcome = core.resume(name, epoch, len(belief))
            self.check_outcome(name, outcome)
            following.after[name] = outcome.after

    def check_outcome(self, name: bytes, outcome: Outcome) -> None:
        """Resumed means that all of the belief holds, diverged that it holds up to there and no further."""
        belief = self.beliefs.get(name, [])
        if outcome.name == "diverged":
            assert outcome.at <= len(belief)
            self.drop(name, outcome.at)
        else:
            assert outcome.name == "resumed"
        assert outcome.after == outcome.at == len(self.beliefs.get(name, []))
        stored = self.model.heads.get(name, [])
        common = min(len(stored), outcome.at)
        assert stored[:common] == belief[:common], f"{name!r}: resumed on what was lost"

    def deliver(self, name: bytes, delivery: Delivery) -> None:
        self.append(name, delivery)


class BusReader(Reader):
    """Stands at a place of the bus, and remembers what it has seen ahead of it."""

    stands: tuple[int, int] = (0, 0)

    def connect(self, core: Resolving, catchup: CatchUp, credit: int) -> None:
        self._last = (0, -1)
        self._fresh: set[bytes] = set()
        super().connect(core, catchup, credit)

    def place(self, core: Resolving, following: Following) -> None:
        assert self.stands[0] <= core.applied_number, "it stands only where everything was committed"
        following.place = self.stands
        following.wanted = WantedByName(core, self.literals, self.patterns)

    def deliver(self, name: bytes, delivery: Delivery) -> None:
        if delivery.flags & DELIVER_EARLY:
            self.stands = max(self.stands, (delivery.group - 2, INDEX_END))
        elif delivery.group:
            place = (delivery.group, delivery.index)
            assert place > self._last, f"{place} after {self._last}"
            self._last = place
            self.stands = max(self.stands, place)
        belief = self.beliefs.get(name, [])
        chunk = delivery.chunk
        if chunk.first <= len(belief) and belief[chunk.first - 1][0] == chunk.epoch and name not in self._fresh:
            # It was seen early, ahead of the place. That can be so only before the channel has brought something new.
            for sequence, payload in self.model.see_chunk(name, chunk, early=bool(delivery.flags & DELIVER_EARLY)):
                if sequence > len(belief):
                    belief.append((chunk.epoch, payload))
                    self._fresh.add(name)
            return
        self._fresh.add(name)
        self.append(name, delivery)
