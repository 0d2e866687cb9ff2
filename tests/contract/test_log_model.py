"""The whole log against a model of it: channels as lists of messages, whatever happens to the files underneath.

Hypothesis chooses what is published, kept by what policy, sealed, archived, trimmed, removed, rebuilt, backed up and
opened again, after an orderly end or as a crash left the files; the archiver may be held between two transactions of a
slice for as long as that takes. After each step the channels are compared, and read back in one of the ways there are.

What policies remove when they like (an age, a bound, what a key or an expiry makes superfluous) may be there or not,
and once it was not there it must never be again. A position names one message for ever, over removals and restores.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker import Broker, Last, Position, Since
from broker.client.client import Client
from broker.log import archiving
from broker.log.archive_task import Stopped
from broker.log.archiving import Archiving
from broker.log.backup import restore
from broker.log.care import judge
from broker.log.log import Log
from broker.model.levels import Level
from broker.model.profiles import KEEP_LATEST_PER_KEY, Profile
from broker.node.node import Node
from broker.node.retention import Retention
from broker.node.time import BrokerTime
from tests.contract.evicting import USED_BEFORE_S
from tests.sizes import size

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import TypeVar

    from broker import BusPosition, Message

    Result = TypeVar("Result")

PROGRAMS = size("BROKER_LOG_PROGRAMS", 16, 2_000)
STEPS = 30
SEGMENT_BYTES = 32 * 1024
TRANSACTION_BYTES = 12 * 1024
PATIENCE_S = 30.0
MESSAGES_KEPT = 5
BYTES_KEPT = 64 * 1024
AGE_S = 3600
OVERHEAD_BYTES = 200
"""More than a record and its share of a chunk take beside the payload."""
EXPIRED_AFTER_S = 2.5
"""An expiry of one second is over by then, however seconds are cut."""
PRODUCERS = (b"log-model-line-1", b"log-model-line-2")
PROFILES = (
    Profile(b"few.>", retention_messages=MESSAGES_KEPT),
    Profile(b"small.>", retention_bytes=BYTES_KEPT),
    Profile(b"old.>", retention_s=AGE_S),
    Profile(b"keys.>", keep=KEEP_LATEST_PER_KEY),
    Profile(b"quick.>", durability=Level.ACCEPTED),
    Profile(b">"),
)
CHANNELS = ("s.a", "s.a.b", "s.b.c.d", "few.a", "small.a", "old.a", "keys.a", "quick.a")

channels = st.sampled_from(CHANNELS)
limits = st.sampled_from((None, 1, 7, 20))
shares = st.sampled_from((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))
"""Of what a channel holds when the step is taken, which takes time and so is not for hypothesis to know."""
sizes = st.sampled_from((0, 1, 100, 1500, 2500, 9000, 20_000))
publishes = st.lists(
    st.tuples(channels, st.integers(1, 8), sizes, st.sampled_from((None, b"1", b"2")), st.sampled_from((False, True))),
    min_size=1,
    max_size=4,
)
"""Channel, how many messages, of what size, their key, whether they expire."""


@dataclass(repr=False)
class Sent:
    """A message that was acknowledged."""

    payload: bytes
    key: bytes | None
    epoch: int
    sent_s: float
    expires: bool
    superseded: bool = False
    gone: bool = False


@dataclass(repr=False)
class Kept:
    """A channel as it must be: messages from `first` on, and where the next one goes."""

    name: str
    first: int = 1
    next: int = 1
    messages: dict[int, Sent] = field(default_factory=dict)

    def add(self, sent: Sent) -> None:
        if self.name.startswith("keys.") and sent.key is not None:
            for other in self.messages.values():
                other.superseded |= other.key == sent.key
        self.messages[self.next] = sent
        self.next += 1

    def trim(self, first: int) -> None:
        for sequence in range(self.first, first):
            del self.messages[sequence]
        self.first = max(self.first, first)

    @property
    def definite(self) -> bool:
        """Whether everything in it must be there."""
        return not any(sent.superseded or sent.expires for sent in self.messages.values())

    def check_first(self, first: int, *, aged: bool) -> None:
        """Judge what a policy took, and take it too."""
        if self.name.startswith("few."):
            assert first <= max(self.first, self.next - MESSAGES_KEPT)
        elif self.name.startswith("small.") and first > self.first:
            assert sum(len(sent.payload) + OVERHEAD_BYTES for sent in self.messages.values()) > BYTES_KEPT
            assert first < self.next
        elif not (self.name.startswith("old.") and aged):
            assert first == self.first, f"{self.name}: begins with {first}, not with {self.first}"
        assert self.first <= first <= self.next
        self.trim(first)

    def compare(self, found: list[Message], sequences: Sequence[int], limit: int | None, asked_s: float) -> None:
        """Compare what was read with what must be there.

        Args:
            found: what was read.
            sequences: what the read was to tell, in its order.
            limit: at most so many messages were asked for.
            asked_s: when.
        """
        wanted = iter(sequences)
        for message in found:
            for sequence in wanted:
                if sequence == message.sequence:
                    break
                self._miss(sequence)
            else:
                raise AssertionError(f"{self.name}: {message.sequence} was not to be read")
            sent = self.messages[message.sequence]
            assert (message.payload, message.key, message.epoch) == (sent.payload, sent.key, sent.epoch)
            assert not sent.gone, f"{self.name}: {message.sequence} is back"
            assert not sent.expires or asked_s < sent.sent_s + EXPIRED_AFTER_S
        if limit is None or len(found) < limit:
            for sequence in wanted:
                self._miss(sequence)

    def _miss(self, sequence: int) -> None:
        sent = self.messages[sequence]
        assert sent.superseded or sent.expires, f"{self.name}: {sequence} is lost"
        sent.gone = True


@dataclass(repr=False)
class Model:
    """Everything that must be there."""

    kept: dict[str, Kept] = field(default_factory=dict)
    lines: dict[bytes, int] = field(default_factory=lambda: dict.fromkeys(PRODUCERS, 0))
    former: set[tuple[str, int]] = field(default_factory=set)
    """The epochs that there were of each name before the last restore: none of them goes on."""


class Held:
    """Holds the archiver between two transactions, on request."""

    def __init__(self) -> None:
        self.wanted = False
        self.waits = threading.Event()
        self._between = Archiving._between

    def between(self, archiver: Archiving) -> None:
        """Stand in for `Archiving._between`."""
        self._between(archiver)
        while self.wanted:
            self.waits.set()
            if archiver._closing:
                raise Stopped
            time.sleep(0.001)
        self.waits.clear()


class WholeLog(RuleBasedStateMachine):
    """One embedded broker over one folder, opened again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.backups: list[tuple[Path, Model]] = []
        self.named: dict[tuple[str, int, int], bytes] = {}
        self.marked: tuple[BusPosition, dict[str, tuple[Kept, int]]] | None = None
        self.count = 0
        self.folder = Path(tempfile.mkdtemp(prefix="broker-model-", dir=memory_folder()))
        self.folders = 0
        self.runner = asyncio.Runner()
        self.bus: Any = None
        self.seals = self.evicts = False
        self.aged = self.retains = False
        self.held = Held()
        self.patches = ExitStack()
        self.patch_all()

    def patch_all(self) -> None:
        """Have files be small, seals and evictions be early, the archiver wait for nothing, and time be ours."""
        append, committed, ages, tick = Log.append, Node._committed, BrokerTime.ages_us, Retention.tick

        def append_and_seal(log: Log, number: int, value: Any) -> None:
            append(log, number, value)
            if self.seals:
                log.rotate()

        def committed_and_evicted(node: Node, group: Any) -> None:
            committed(node, group)
            if self.evicts:
                self.evict_from(node)

        def ages_us(broker_time: BrokerTime) -> int:
            return ages(broker_time) + (2 * AGE_S * 1_000_000 if self.aged else 0)

        def tick_when_asked(retention: Retention) -> None:
            if self.retains:
                tick(retention)

        defaults = Archiving.__init__.__kwdefaults__
        assert defaults is not None
        for one in (
            patch.object(Log, "append", append_and_seal),
            patch.object(Node, "_committed", committed_and_evicted),
            patch.object(BrokerTime, "ages_us", ages_us),
            patch.object(Retention, "tick", tick_when_asked),
            patch.object(Archiving, "_between", lambda archiver: self.held.between(archiver)),
            patch.object(archiving, "EMBEDDED_TRANSACTION_BYTES", TRANSACTION_BYTES),
            patch.dict(defaults, wait_s=0.0),
        ):
            self.patches.enter_context(one)

    # -- the broker ----------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(asyncio.wait_for(work, PATIENCE_S))

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():  # noqa: ASYNC110  (what happens on threads sets no event)
            await asyncio.sleep(0.001)

    @property
    def node(self) -> Node:
        found: Node = self.bus._node
        return found

    @property
    def log(self) -> Log:
        return self.node._log

    def new_folder(self) -> Path:
        self.folders += 1
        return self.folder / str(self.folders)

    @initialize(seals=st.booleans(), evicts=st.booleans())
    def begin(self, seals: bool, evicts: bool) -> None:
        self.open(self.new_folder(), seals, evicts)

    def open(self, data: Path, seals: bool, evicts: bool) -> None:
        self.data, self.seals, self.evicts = data, seals, evicts

        async def opened() -> Any:
            return await Broker.open(data, profiles=PROFILES, segment_bytes=SEGMENT_BYTES, reserve_bytes=0)

        self.bus = self.run(opened())

    def close(self) -> None:
        if self.bus is not None:
            bus, self.bus = self.bus, None
            self.run(bus.close())

    def teardown(self) -> None:
        """End, and have the files judged."""
        try:
            opened = self.bus is not None
            self.close()
            if opened:
                faults = judge(self.data, lambda done, total: None).faults
                assert not faults, faults[0]
        finally:
            self.patches.close()
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def settled(self) -> None:
        """Wait until no file is being written: everything is committed, and nothing works but maybe a held archiver."""
        await self.until(lambda: self.node.core.idle)
        await asyncio.to_thread(self.log.wait_sealed, PATIENCE_S)
        await self.until(lambda: self.held.waits.is_set() or not self.log.stats()["archive_backlog"])

    def copy_at_rest(self, data: Path) -> None:
        """Copy the files at a moment at which nobody writes to them: one of a copy that takes time would be none."""
        while True:
            self.run(self.settled())
            before = self.files()
            with suppress(shutil.Error):
                shutil.copytree(self.data, data, ignore=shutil.ignore_patterns("lock*", "*-lock"))
                if self.files() == before:
                    return
            shutil.rmtree(data)

    def files(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for path in self.data.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found

    # -- what happens --------------------------------------------------------------------------------------------------

    @rule(producer=st.sampled_from(PRODUCERS), what=publishes)
    def publish(self, producer: bytes, what: list[tuple[str, int, int, bytes | None, bool]]) -> None:
        """Publish as one that comes and goes: its line goes on, and nobody holds the channels when it is gone."""
        sending: list[tuple[str, Sent]] = []
        for channel, count, payload_bytes, key, expires in what:
            for _ in range(count):
                self.count += 1
                payload = b"%d." % self.count + bytes(payload_bytes) if payload_bytes or key is None else b""
                sending.append((channel, Sent(payload, key, 0, 0.0, expires)))

        async def publish() -> list[tuple[int, int]]:
            client = await Client(self.bus._open_pipe, producer=producer).start()
            assert client.highest == self.model.lines[producer]
            receipts = await asyncio.gather(
                *(
                    client.publish(channel, sent.payload, key=sent.key, expiry_s=1 if sent.expires else None)
                    for channel, sent in sending
                )
            )
            await client.close()
            return [(receipt.epoch, receipt.sequence) for receipt in receipts]

        begun_s = time.monotonic()
        receipts = self.run(publish())
        self.model.lines[producer] += len(sending)
        for (channel, sent), (epoch, sequence) in zip(sending, receipts, strict=True):
            kept = self.model.kept.setdefault(channel, Kept(channel))
            sent.epoch, sent.sent_s = epoch, begun_s if sent.expires else 0.0
            assert sequence == kept.next
            before = kept.messages.get(sequence - 1)
            assert before is None or epoch >= before.epoch
            assert (channel, epoch) not in self.model.former
            assert self.named.setdefault((channel, epoch, sequence), sent.payload) is sent.payload
            kept.add(sent)

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data(), share=shares)
    def trim(self, data: st.DataObject, share: float) -> None:
        kept = self.draw_channel(data)
        first = kept.first + round(share * (kept.next - kept.first))
        found = self.run(self.bus.trim(kept.name, first))
        assert found >= first
        kept.trim(first)
        kept.check_first(found, aged=False)

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        kept = self.draw_channel(data)
        self.run(self.bus.remove(kept.name))
        del self.model.kept[kept.name]

    @precondition(lambda self: not self.held.wanted)
    @rule(aged=st.booleans())
    def retain(self, aged: bool) -> None:
        """Have retention run to its end; `aged`: two hours from now."""
        self.aged, self.retains = aged, True
        self.run(self.retained())
        self.aged = self.retains = False
        self.take_firsts(aged=aged)
        for kept in self.model.kept.values():
            if kept.name.startswith("few."):
                assert len(kept.messages) <= MESSAGES_KEPT
            elif kept.name.startswith("old.") and aged:
                assert not kept.messages

    async def retained(self) -> None:
        retention = self.node._retention
        while True:
            before = retention.trims
            last = self.log.last_group
            await asyncio.to_thread(self.log.rotate)
            await self.until(lambda last=last: self.log.archived_group >= last)  # type: ignore[misc]
            for _ in range(2):
                await self.until(lambda: not retention._busy)
                steps, retention._due_us = retention.steps, 0
                retention.tick()
                await self.until(lambda steps=steps: retention.steps > steps and not retention._busy)  # type: ignore[misc]
            if retention.trims == before:
                return

    @precondition(lambda self: not self.held.wanted)
    @rule()
    def compact(self) -> None:
        self.run(self.bus.compact())

    @rule()
    def hold_or_release_the_archiver(self) -> None:
        self.held.wanted = not self.held.wanted

    @rule()
    def archive(self) -> None:
        """Have everything sealed and, unless it is held, archived, and its segments removed."""

        async def archived() -> None:
            await asyncio.to_thread(self.log.rotate)
            await self.settled()

        self.run(archived())

    def evict_from(self, node: Node) -> None:
        node.core.evict(node._log.settled_group, USED_BEFORE_S, node.tails.slots)

    @rule()
    def evict(self) -> None:
        async def evict() -> None:
            self.evict_from(self.node)

        self.run(evict())

    @rule(seals=st.booleans(), evicts=st.booleans())
    def restart(self, seals: bool, evicts: bool) -> None:
        self.close()
        self.open(self.data, seals, evicts)

    @rule(seals=st.booleans(), evicts=st.booleans())
    def crash(self, seals: bool, evicts: bool) -> None:
        """Go on with a copy of the files as they are while the broker runs, as a crash leaves them."""
        former, data = self.data, self.new_folder()
        self.copy_at_rest(data)
        self.close()
        shutil.rmtree(former)
        self.open(data, seals, evicts)

    @precondition(lambda self: len(self.backups) < 2)
    @rule()
    def back_up(self) -> None:
        folder = self.new_folder()
        self.run(self.bus.backup(str(folder)))
        self.backups.append((folder, copy.deepcopy(self.model)))

    @precondition(lambda self: self.backups)
    @rule(newest=st.booleans(), seals=st.booleans(), evicts=st.booleans())
    def go_back(self, newest: bool, seals: bool, evicts: bool) -> None:
        """Go on with a restored backup: an older state, whose positions name nothing that came after it."""
        folder, model = self.backups[-1 if newest else 0]
        self.close()
        former, restored = self.data, self.new_folder()
        restore(folder, restored, lambda done, total: None)
        shutil.rmtree(former)
        self.model = copy.deepcopy(model)
        self.model.former = {(channel, epoch) for channel, epoch, _ in self.named}
        self.marked = None
        self.open(restored, seals, evicts)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def draw_channel(self, data: st.DataObject) -> Kept:
        return self.model.kept[data.draw(st.sampled_from(sorted(self.model.kept)), label="channel")]

    def read(self, channel: str, **bounds: Any) -> list[Message]:
        return self.run(self.bus.history(channel, **bounds).messages())

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data(), count=st.integers(1, 20))
    def read_last(self, data: st.DataObject, count: int) -> None:
        kept = self.draw_channel(data)
        if kept.definite:
            kept.compare(self.read(kept.name, since=Last(count)), sorted(kept.messages)[-count:], None, 0.0)

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data(), begin=shares, end=st.none() | shares, limit=limits, reverse=st.booleans())
    def read_some(self, data: st.DataObject, begin: float, end: float | None, limit: int | None, reverse: bool) -> None:
        kept = self.draw_channel(data)
        after = kept.first - 1 + round(begin * (kept.next - kept.first))
        until = None if end is None else after + round(end * (kept.next - 1 - after))
        if limit is not None and not kept.definite:
            limit = None
        asked_s = time.monotonic()
        last = None if until is None else Position(0, until)
        found = self.read(kept.name, since=Position(0, after), until=last, limit=limit, reverse=reverse)
        sequences = list(range(after + 1, kept.next if until is None else until + 1))
        kept.compare(found, sequences[::-1] if reverse else sequences, limit, asked_s)

    @precondition(lambda self: self.model.kept)
    @rule(data=st.data(), share=shares)
    def read_by_time(self, data: st.DataObject, share: float) -> None:
        """What is not older than some message is that one's time, and all that is later."""
        kept = self.draw_channel(data)
        asked_s = time.monotonic()
        whole = self.read(kept.name)
        kept.compare(whole, sorted(kept.messages), None, asked_s)
        if whole:
            time_us = whole[round(share * (len(whole) - 1))].time
            expected = [message.sequence for message in whole if message.time >= time_us]
            found = [message.sequence for message in self.read(kept.name, since=Since(time_us))]
            assert found == expected or (not kept.definite and set(found) <= set(expected))

    @rule()
    def read_the_bus(self) -> None:
        """Everything in the order of the bus, from the beginning; and what came since the last time."""
        asked_s = time.monotonic()

        async def read(since: BusPosition | None) -> tuple[dict[str, list[Message]], BusPosition | None]:
            found: dict[str, list[Message]] = {}
            history = self.bus.history(">", since=since)
            for message in await history.messages():
                found.setdefault(message.channel, []).append(message)
            return found, history.bus_position

        found, place = self.run(read(None))
        assert not found.keys() - self.model.kept.keys()
        for name, kept in self.model.kept.items():
            kept.compare(found.get(name, []), sorted(kept.messages), None, asked_s)
        if self.marked is not None:
            since, known = self.marked
            found, _ = self.run(read(since))
            assert not found.keys() - self.model.kept.keys()
            for name, kept in self.model.kept.items():
                before, following = known.get(name, (None, 1))
                sequences = [each for each in sorted(kept.messages) if kept is not before or each >= following]
                kept.compare(found.get(name, []), sequences, None, asked_s)
        if place is not None:
            self.marked = (place, {name: (kept, kept.next) for name, kept in self.model.kept.items()})

    @invariant()
    def the_same_channels(self) -> None:
        if self.bus is not None:
            self.take_firsts(aged=False)

    def take_firsts(self, *, aged: bool) -> None:
        async def listed() -> dict[str, Any]:
            # What is accepted is listed once it is committed.
            await self.until(lambda: self.node.core.idle)
            return {each.name: each.info async for each in self.bus.channels(details=True)}

        infos = self.run(listed())
        assert infos.keys() == self.model.kept.keys()
        for name, kept in self.model.kept.items():
            assert infos[name].head == kept.next - 1
            kept.check_first(infos[name].first, aged=aged)


def memory_folder() -> Path | None:
    """Return a folder in memory, if there is one: what a disk does with it is proved elsewhere."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None


TestWholeLog = WholeLog.TestCase
TestWholeLog.settings = settings(
    max_examples=PROGRAMS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
