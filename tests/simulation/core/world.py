"""One broker, its journal, its producers and its readers, driven step by step from a seed.

Every step is one thing that can happen: bytes come, a turn ends, a commit is handed over, is stored or fails in one of
three ways, the loop hears of it, a slice is read or arrives, a connection breaks, the process dies and starts again.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from broker.core.sequencer import ACCEPTED_WAIT_US
from broker.model.levels import Level
from broker.model.profiles import Profile, Profiles
from broker.node.catchup import CatchUp
from broker_native.groups import chunk_head
from tests.reference.journal import Fate
from tests.reference.pipeline import PLENTY, Pipeline
from tests.simulation.core.model import Model
from tests.simulation.core.producers import Producer
from tests.simulation.core.readers import BusReader, LiteralReader, Reader
from tests.simulation.core.stepped import SteppedLoop, SteppedPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_native.fanout import Pin, Subscription
    from tests.reference.pipeline import Resolving

STORED = [b"a.x", b"a.y", b"s.x", b"s.y"]
EPHEMERAL = [b"e.x"]
POLICIES = [
    (3, Profiles([Profile(b"e.>", Level.EPHEMERAL), Profile(b"a.>", Level.ACCEPTED), Profile(b"s.>")])),
    (1, Profiles([Profile(b"e.>", Level.EPHEMERAL), Profile(b">", Level.ACCEPTED)])),
    (1, Profiles([Profile(b"e.>", Level.EPHEMERAL), Profile(b">")])),
]


class NamingFanout:
    """The core's fan-out; a chunk of a channel that memory does not have gets its name from the journal."""

    def __init__(self, core: Resolving) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core.fanout, name)

    def deliver_one(
        self,
        subscription: Subscription,
        chunk: bytes,
        group: int,
        index: int,
        flags: int = 0,
        name: bytes | None = None,
        pin: Pin | None = None,
    ) -> None:
        channel = chunk_head(chunk)[0]
        name = name or self._core.tails.name_of(channel) or self._core.resolver.names_of([channel])[0]
        self._core.fanout.deliver_one(subscription, chunk, group, index, flags, name, pin)


class SteppedCatchUp(CatchUp):
    """Catching up on a loop and a thread that wait to be told."""

    def __init__(self, world: World) -> None:
        self.loop = SteppedLoop()
        self.pool = SteppedPool()
        core = world.pipeline.core
        super().__init__(
            core,
            world.pipeline.journal,
            self.loop,  # type: ignore[arg-type]
            kick=lambda: None,
            send=core.fanout.flush,
            steady_us=lambda: 0,
            lost=world.lost,
        )
        self._pool = self.pool  # type: ignore[assignment]
        self._fanout = NamingFanout(core)  # type: ignore[assignment]


class World:
    """Everything that a seed drives."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.model = Model()
        self.pipeline = Pipeline(self.policy())
        self.model.journaled(self.pipeline.journal.good)
        self.stored = False
        self.catchup = SteppedCatchUp(self)
        names = STORED + EPHEMERAL
        self.producers = [Producer(number, self.random, self.model, names) for number in (1, 2)]
        self.readers: list[Reader] = [
            LiteralReader(self.random, self.model, STORED),
            LiteralReader(self.random, self.model, [b"a.x"]),
            BusReader(self.random, self.model, [b"a.*", b"s.x", b"*.x"]),
            BusReader(self.random, self.model, [b">"]),
        ]
        self.steps: list[tuple[float, Callable[[], object]]] = [
            (10, self.post), (14, self.send), (10, self.answer), (10, self.turn),
            (8, self.close), (8, self.store), (8, self.hear), (2, self.recover), (6, self.wait),
            (3, self.subscribe), (1.0, self.drop_producer), (1.0, self.drop_reader), (4, self.connect),
            (8, self.read), (6, self.grant), (14, self.slice), (14, self.callback), (1, self.pause), (2, self.resume),
            (3, self.tick), (1, self.demote),
            (0.7, self.fail), (0.25, self.crash), (1, self.crash_while_failing), (0.12, self.end), (4, self.evict),
        ]  # fmt: skip

    def policy(self) -> Profiles:
        weights = [weight for weight, _ in POLICIES]
        return self.random.choices(POLICIES, weights)[0][1]

    def run(self, steps: int) -> None:
        """Do this many things, then let everything come to rest and compare."""
        weights = [weight for weight, _ in self.steps]
        for _, step in self.random.choices(self.steps, weights, k=steps):
            step()
            self.cut_slow()
        self.rest()

    # -- producers --

    def post(self) -> None:
        self.random.choice(self.producers).post()

    def send(self) -> None:
        producer = self.random.choice(self.producers)
        if producer.connection is not None:
            producer.send()

    def answer(self) -> None:
        producer = self.random.choice(self.producers)
        if producer.connection is not None:
            producer.take(self.pipeline.core, some=True)

    def connect(self) -> None:
        producer = self.random.choice(self.producers)
        if producer.connection is None:
            producer.connect(self.pipeline.core)

    def drop_producer(self) -> None:
        self.random.choice(self.producers).disconnect()

    # -- turns and commits --

    @property
    def failing(self) -> bool:
        """Whether a fence is in commit after a failure."""
        return bool(self.pipeline.core.tails.refuse_code)

    def turn(self) -> None:
        self.pipeline.end_turn()

    def wait(self) -> None:
        self.pipeline.wait(self.random.choice([1, 100, 5_000, ACCEPTED_WAIT_US]))

    def close(self) -> None:
        self.pipeline.end_turn()
        self.pipeline.core.close_group(self.pipeline.now_us)

    def append(self, fate: Fate) -> None:
        self.pipeline.append(fate)
        if self.pipeline.failure is None:
            self.model.appended(self.pipeline.journal.good)
        self.stored = True

    def store(self) -> None:
        if self.pipeline.core.in_commit is not None and not self.stored and not self.failing:
            self.append(Fate.STORED)

    def fail(self) -> None:
        if self.pipeline.core.in_commit is not None and not self.stored and not self.failing:
            self.append(self.random.choice([Fate.REFUSED, Fate.SURVIVES, Fate.LOST]))

    def hear(self) -> None:
        if not self.stored or self.failing:
            return
        self.stored = False
        if self.pipeline.failure is not None:
            self.pipeline.failed()
            self.catchup.undone()
        else:
            self.pipeline.done(close_next=self.random.random() < 0.8)

    def recover(self) -> None:
        if self.failing:
            fate = self.random.choice([Fate.STORED, Fate.STORED, Fate.REFUSED, Fate.SURVIVES, Fate.LOST])
            if self.pipeline.recover(fate):
                self.model.appended(self.pipeline.journal.good)

    # -- readers --

    def subscribe(self) -> None:
        reader = self.random.choice(self.readers)
        if reader.connection is None:
            reader.connect(self.pipeline.core, self.catchup, self.random.choice([0, 100, 300, 700, 2_000, PLENTY]))

    def drop_reader(self) -> None:
        self.random.choice(self.readers).disconnect(self.catchup)

    def read(self) -> None:
        reader = self.random.choice(self.readers)
        if reader.connection is not None:
            reader.take(some=True)

    def grant(self) -> None:
        subscription = self.random.choice(self.readers).subscription
        if subscription is not None and subscription.state is not None:
            subscription.credit += self.random.choice([80, 200, 400, 5_000])
            self.catchup.step(subscription.state)

    def slice(self) -> None:
        if self.catchup.pool.waiting:
            self.catchup.pool.step()

    def callback(self) -> None:
        if self.catchup.loop.ready:
            self.catchup.loop.step()

    def pause(self) -> None:
        connection = self.random.choice(self.readers).connection
        if connection is not None:
            connection.outbox.pause()

    def resume(self) -> None:
        reader = self.random.choice(self.readers)
        if reader.connection is not None and reader.subscription is not None:
            reader.connection.outbox.resume()
            if reader.subscription.state is not None:
                self.catchup.step(reader.subscription.state)

    def tick(self) -> None:
        if self.catchup.loop.timers:
            self.catchup.loop.tick()

    def demote(self) -> None:
        """A connection has too much to send: what is live on it reads on from the log."""
        subscription = self.random.choice(self.readers).subscription
        if subscription is not None:
            self.catchup.demote_all([subscription])

    def cut_slow(self) -> None:
        """A subscription that has used up its credit reads on from the log; now and then it is ended, and resumes."""
        fanout = self.pipeline.core.fanout
        slow, fanout.slow = fanout.slow, []
        for reader in self.readers:
            if reader.subscription in slow and self.random.random() < 0.1:
                reader.disconnect(self.catchup)
        self.catchup.demote(slow)

    def lost(self, subscription: Subscription, failure: BaseException) -> None:
        raise AssertionError("no history is lost here") from failure

    # -- what is in memory --

    def evict(self) -> None:
        """Whatever may leave memory leaves it. What can be looked up is behind what is committed, more or less."""
        journal, core = self.pipeline.journal, self.pipeline.core
        settled = journal.settled_group if journal.settled_group < 2**64 else 0
        journal.settled_group = max(settled, core.applied_number - self.random.choice([0, 0, 1, 3]))
        core.evict(journal.settled_group, 1 << 31, 1 << 16)

    # -- lives and deaths --

    def crash(self) -> None:
        """The process dies at this instant; what was being appended is in the file, or not."""
        core = self.pipeline.core
        if core.in_commit is not None and not self.stored:
            if self.failing:
                self.pipeline.journal.abandon()
            self.pipeline.append(self.random.choice([Fate.SURVIVES, Fate.LOST]))
        self.restart()

    def crash_while_failing(self) -> None:
        """The process dies before it is known what became of a group."""
        if self.failing:
            self.crash()

    def end(self) -> None:
        """The process ends in good order, as far as it can."""
        if self.failing or self.stored:
            return
        self.pipeline.end_turn()
        if self.pipeline.core.in_commit is not None:
            self.append(Fate.STORED)
            self.hear()
            self.stored = False
        while self.pipeline.core.in_commit is not None or not self.pipeline.core.tails.group_empty:
            self.close()
            self.append(Fate.STORED)
            self.pipeline.done()
        self.pipeline.core.close(self.pipeline.now_us)
        self.append(Fate.STORED)
        self.restart()

    def restart(self) -> None:
        for producer in self.producers:
            producer.disconnect()
        for reader in self.readers:
            reader.forget()
        self.stored = False
        self.pipeline.profiles = self.policy()
        self.pipeline.start(cold=self.random.random() < 0.5)
        self.model.journaled(self.pipeline.journal.good)
        self.catchup = SteppedCatchUp(self)

    # -- the end --

    def rest(self) -> None:
        """Let everything that is under way arrive, and then compare what everybody believes with the journal."""
        for last in (False, True):
            for _ in range(200):
                if not self.settle_once():
                    break
            else:
                raise AssertionError("it does not come to rest")
            if not last:
                self.publish_everywhere()
        self.compare()

    def settle_once(self) -> bool:
        """Let everybody do what is left to be done; tells whether anything was."""
        before = self.progress()
        for _ in range(3):
            self.commit_all()
            for producer in self.producers:
                if producer.connection is None:
                    producer.connect(self.pipeline.core)
                for _ in range(20):
                    producer.send()
                self.commit_all()
                producer.take(self.pipeline.core, some=False)
        for reader in self.readers:
            self.let_read(reader)
        self.cut_slow()
        return self.progress() != before

    def commit_all(self) -> None:
        pipeline = self.pipeline
        if self.failing:
            pipeline.recover()
            self.model.appended(pipeline.journal.good)
        if self.stored:
            self.hear()
        if self.failing:
            self.commit_all()
        while pipeline.core.in_commit is not None or not pipeline.core.tails.group_empty:
            self.close()
            self.append(Fate.STORED)
            self.hear()
        pipeline.end_turn()

    def let_read(self, reader: Reader) -> None:
        if reader.connection is None:
            reader.connect(self.pipeline.core, self.catchup, PLENTY)
        assert reader.subscription is not None
        assert reader.connection is not None
        reader.subscription.credit += PLENTY
        reader.connection.outbox.resume()
        if reader.subscription.state is not None:
            self.catchup.step(reader.subscription.state)
        while self.catchup.pool.waiting or self.catchup.loop.ready:
            self.slice()
            self.callback()
        self.tick()
        reader.take(some=False)

    def publish_everywhere(self) -> None:
        """One more record in every channel, so that a reader hears of all that was lost."""
        for producer in self.producers:
            names = producer.names
            for name in names:
                producer.names = [name]
                producer.post()
            producer.names = names

    def progress(self) -> tuple[Any, ...]:
        return (
            [len(producer.kept) for producer in self.producers],
            [producer.connection is None for producer in self.producers],
            [sum(map(len, reader.beliefs.values())) for reader in self.readers],
            [reader.connection is None for reader in self.readers],
            len(self.pipeline.journal.good),
        )

    def compare(self) -> None:
        """Nobody waits any more, and everybody believes what the journal says."""
        assert not any(producer.kept for producer in self.producers)
        self.model.journaled(self.pipeline.journal.good)
        for reader in self.readers:
            assert reader.subscription is not None
            assert reader.subscription.state.live
            for name, belief in reader.beliefs.items():
                if name in STORED:
                    assert belief == self.model.heads[name], f"{name!r} is not what the journal says"
            assert len(reader.beliefs) >= 1
