"""The whole log against a model of it: channels as lists of payloads, whatever happens to the files underneath.

Hypothesis chooses what is published, sealed, archived, trimmed, removed, rebuilt and opened again, after an orderly end
or as a crash left the files; after each step some of it is read back, in one of the ways there are, and compared whole.
Segments are tiny and everything that may be evicted is, so that a handful of messages crosses every border.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker import Broker, Last, Position
from broker.log.archiving import Archiving
from broker.model.levels import Level
from broker.model.profiles import Profile
from tests.contract.evicting import evicting

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    Result = TypeVar("Result")

PROGRAMS = int(os.environ.get("BROKER_TEST_LOG_PROGRAMS", "8"))
STEPS = 30
SEGMENT_BYTES = 32 * 1024
CHANNELS = ("s.a", "s.a.b", "s.b.c.d", "s.z")
PATIENCE_S = 20.0

channels = st.sampled_from(CHANNELS)
sizes = st.sampled_from((0, 1, 100, 1500, 2500, 9000, 20_000))
PROFILES = (Profile(b"s.>", durability=Level.SYNCED),)


@dataclass
class Kept:
    """A channel as it must be: payloads by sequence from `first` on, and where the next one goes."""

    first: int = 1
    payloads: list[bytes] = field(default_factory=list)

    @property
    def next(self) -> int:
        return self.first + len(self.payloads)

    def stretch(self, after: int) -> list[tuple[int, bytes]]:
        return [(sequence, payload) for sequence, payload in enumerate(self.payloads, self.first) if sequence > after]


class WholeLog(RuleBasedStateMachine):
    """One embedded broker over one folder, opened again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Kept] = {}
        self.count = 0
        self.folders: list[Path] = []
        self.runner = asyncio.Runner()
        self.patches = ExitStack()
        self.patches.enter_context(evicting())
        # Nothing waits for more segments, or the model would wait for it.
        assert Archiving.__init__.__kwdefaults__ is not None
        self.patches.enter_context(patch.dict(Archiving.__init__.__kwdefaults__, segments_min=1))
        self.bus: Any = None

    # -- the broker ----------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(asyncio.wait_for(work, PATIENCE_S))

    @initialize()
    def begin(self) -> None:
        self.folders.append(Path(tempfile.mkdtemp(prefix="broker-model-")))
        self.open(self.folders[0] / "data")

    def open(self, data: Path) -> None:
        self.data = data

        async def opened() -> Any:
            return await Broker.open(data, profiles=PROFILES, segment_bytes=SEGMENT_BYTES, reserve_bytes=0)

        self.bus = self.run(opened())

    def close(self) -> None:
        if self.bus is not None:
            self.run(self.bus.close())
            self.bus = None

    def teardown(self) -> None:
        try:
            self.close()
        finally:
            self.patches.close()
            self.runner.close()
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)

    # -- what happens --------------------------------------------------------------------------------------------------

    @rule(channel=channels, count=st.integers(1, 12), size=sizes)
    def publish(self, channel: str, count: int, size: int) -> None:
        payloads = [b"%d." % (self.count + at) + bytes(size) for at in range(count)]
        self.count += count
        kept = self.kept.setdefault(channel, Kept())

        async def publish() -> list[int]:
            return [(await self.bus.publish(channel, payload)).sequence for payload in payloads]

        assert self.run(publish()) == list(range(kept.next, kept.next + count))
        kept.payloads += payloads

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(sorted(self.kept)))
        kept = self.kept[channel]
        first = data.draw(st.integers(kept.first, kept.next))
        assert self.run(self.bus.trim(channel, first)) == first
        del kept.payloads[: first - kept.first]
        kept.first = first

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(sorted(self.kept)))
        self.run(self.bus.remove(channel))
        del self.kept[channel]

    @rule()
    def compact(self) -> None:
        self.run(self.bus.compact())

    @rule()
    def restart(self) -> None:
        self.close()
        self.open(self.data)

    @rule()
    def crash(self) -> None:
        """Go on with a copy of the files as they are while the broker runs, as a crash leaves them."""
        self.run(self.archived())
        folder = Path(tempfile.mkdtemp(prefix="broker-model-"))
        self.folders.append(folder)
        shutil.copytree(self.data, folder / "data", ignore=shutil.ignore_patterns("lock*", "*-lock"))
        self.close()
        self.open(folder / "data")

    async def archived(self) -> None:
        """Wait until no file is being written: a copy of one that is would be of no moment at all."""
        while True:
            stats = await self.bus.stats()
            if not stats["archive_backlog_bytes"] and not stats["seal_backlog"]:
                return
            await asyncio.sleep(0.005)

    # -- what must be true ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), count=st.integers(1, 20))
    def read_last(self, data: st.DataObject, count: int) -> None:
        channel = data.draw(st.sampled_from(sorted(self.kept)))
        assert self.read(channel, since=Last(count)) == self.kept[channel].stretch(0)[-count:]

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), limit=st.integers(1, 20), reverse=st.booleans())
    def read_some(self, data: st.DataObject, limit: int, reverse: bool) -> None:
        channel = data.draw(st.sampled_from(sorted(self.kept)))
        kept = self.kept[channel]
        after = data.draw(st.integers(kept.first - 1, kept.next - 1))
        expected = kept.stretch(after)
        expected = expected[::-1][:limit] if reverse else expected[:limit]
        since = Position(0, after)
        assert self.read(channel, since=since, limit=limit, reverse=reverse) == expected

    @precondition(lambda self: self.kept)
    @rule()
    def read_the_bus(self) -> None:
        async def read() -> dict[str, list[tuple[int, bytes]]]:
            found: dict[str, list[tuple[int, bytes]]] = {}
            for message in await self.bus.history("s.>").messages():
                found.setdefault(message.channel, []).append((message.sequence, message.payload))
            return found

        expected = {channel: kept.stretch(0) for channel, kept in self.kept.items() if kept.payloads}
        assert self.run(read()) == expected

    @invariant()
    def the_same_channels(self) -> None:
        if self.bus is None:
            return

        async def heads() -> dict[str, tuple[int, int]]:
            return {each.name: (each.first, each.head) async for each in self.bus.channels()}

        assert self.run(heads()) == {name: (kept.first, kept.next - 1) for name, kept in self.kept.items()}

    def read(self, channel: str, **bounds: Any) -> list[tuple[int, bytes]]:
        async def read() -> list[tuple[int, bytes]]:
            return [(m.sequence, m.payload) for m in await self.bus.history(channel, **bounds).messages()]

        return self.run(read())


TestWholeLog = WholeLog.TestCase
TestWholeLog.settings = settings(
    max_examples=PROGRAMS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
