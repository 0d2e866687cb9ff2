"""A real server that can be killed at any instant, users who keep on working, and a record of all that they saw.

`Server` is one data directory and the process that serves it. `Crowd` is a set of publishers and subscribers over the
public client API, in one loop, who write down every call, every answer and every delivery as a history for the
checker. They are told nothing of kills: that they go on afterwards is the client library's work.

A record's payload begins with its value, and the rest follows from the value, so that a payload that was damaged or
mixed up is a value from nowhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker import BackoffPolicy, connect
from broker.bus import CREDIT_BYTES_DEFAULT
from broker.model.errors import BrokerError, Remedy
from broker.model.names import matches
from tests.checker.history import (
    Acked,
    Crashed,
    Delivered,
    Event,
    Finished,
    History,
    Invoked,
    Refused,
    Run,
    Stalled,
    Started,
    Subscribed,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Mapping, Sequence
    from typing import Self

    from broker.bus import Bus, Subscription, SubscriptionEvent
    from broker_native.messages import Batch
    from broker_native.outcomes import Receipt

ROOT = Path(__file__).parents[2]
READY_S_MAX = 20.0
POLL_S = 0.001
BATCH_MAX = 12
UNANSWERED_MAX = 6
"""Publishes that a publisher has under way at once."""
PAUSE_S_MAX = 0.012
CATCH_UP_S_MAX = 20.0
LAST_WORDS_S = 0.03
SLOW_CREDIT_BYTES = 64 * 1024
STALL_SHARE = 0.02
STALL_S = 0.4
"""A stall is longer than the credit lasts."""
BEAT_S = 0.005
STALL_NOTED_S = 0.02
"""A loop that is late by less is within what the crowd's window has to spare."""
BACKOFF = BackoffPolicy(first_s=0.01, longest_s=0.04)
"""A client that waited for seconds would see little of so short a life."""
SERVE_S_MAX = 0.25
STARTING_SHARE = 0.15
"""Of the servers, so many are killed again before they are ready, or soon after."""

FILLER = bytes(range(256)) * 8
"""Payloads take a stretch of it, of a length and from a place that follow from the value."""

PROFILES = """
[[profiles]]
pattern = "ephemeral.>"
durability = "ephemeral"

[[profiles]]
pattern = "*.accepted.>"
durability = "accepted"

[[profiles]]
pattern = ">"
durability = "synced"
"""
"""Three levels, by name."""

CONFIG = (
    """\
[storage]
segment_bytes = "1 MiB"
reserve_bytes = 0

[limits]
payload_bytes_max = "64 KiB"
group_bytes_max = "256 KiB"
subscription_bytes_max = "16 KiB"
"""
    + PROFILES
)
"""Small groups allow small segments, so that kills fall into sealing and into the creation of segments too."""


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Start:
    """How long one start took.

    Attributes:
        total_s: from the start of the process until it took connections.
        ready_s: the broker's share of it, as the broker says: opening, replaying, listening. The rest is Python's
            own start and the import of the modules.
    """

    total_s: float
    ready_s: float


class Server:
    """`python -m broker serve` on one directory and one port, started as often as it takes.

    Args:
        folder: an existing folder, for the data, the configuration, the ready file and the log.
        port: of the TCP listener; None takes a free one and keeps it.
        data: the data directory; None makes one of its own.
        program: the module that serves.
        config: the configuration file.
        environment: what the process gets besides.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        data: Path | None = None,
        program: str = "broker",
        config: str = CONFIG,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self.data = data or folder / "data"
        self.log = folder / "log"
        self.unix = folder / "socket"
        self._config = folder / "broker.toml"
        self._ready = folder / "ready"
        self._config.write_text(config)
        self._program = program
        self._environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect over TCP."""
        return f"broker://127.0.0.1:{self.port}"

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the process, and do not wait for it."""
        self._ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            self._program,
            "serve",
            "--config",
            str(self._config),
            "--data",
            str(self.data),
        ]
        command += ["--tcp", f"127.0.0.1:{self.port}", "--ready-file", str(self._ready), "--drain-s", "5", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "ext")])
        environment.update(self._environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self._config.parent
            )
        return self.process

    async def until_ready(self, spawned_s: float) -> Start:
        """Wait until the process takes connections.

        Raises:
            AssertionError: it ended, or took too long; with what it said.
        """
        assert self.process is not None
        while not self._ready.exists():
            assert self.process.poll() is None, f"ended with status {self.process.returncode}: {self.said()}"
            assert time.monotonic() - spawned_s < READY_S_MAX, f"not ready: {self.said()}"
            await asyncio.sleep(POLL_S)
        told: dict[str, Any] = json.loads(self._ready.read_text())
        assert told["pid"] == self.process.pid
        return Start(time.monotonic() - spawned_s, told["ready_s"])

    async def start(self, *options: str) -> Start:
        """Start the process, and wait until it takes connections."""
        spawned_s = time.monotonic()
        self.spawn(*options)
        return await self.until_ready(spawned_s)

    def kill(self) -> None:
        """SIGKILL, and see it dead: nothing that it does comes after this."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and return the exit status once it has ended."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, READY_S_MAX)

    def said(self) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-3_000:].decode(errors="replace") if self.log.exists() else ""


def payload_of(value: int) -> bytes:
    """Return the payload of a value: eight bytes of it and 0 to 1,023 that follow from it."""
    start = value * 7 % 1_024
    return value.to_bytes(8, "big") + FILLER[start : start + value * 31 % 1_024]


def value_of(payload: bytes) -> int:
    """Return the value of a payload, or a negative number that no one published when it is damaged."""
    value = int.from_bytes(payload[:8], "big")
    return value if payload == payload_of(value) else -1 - value


@dataclass(slots=True)
class Recorder:
    """The history as it grows. One loop, so one order."""

    history: History
    values: int = 0
    sent: dict[str, int] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Write an event down."""
        self.history.events.append(event)

    def invoke(self, producer: str, channel: str, count: int) -> tuple[int, list[int]]:
        """Write a publish of `count` new values down; returns its first number and the values."""
        number = self.sent.get(producer, 0) + 1
        self.sent[producer] = number + count - 1
        values = list(range(self.values, self.values + count))
        self.values += count
        self.add(Invoked(time.monotonic(), producer, number, channel, values))
        return number, values

    def answer(self, producer: str, number: int, count: int, outcome: list[Receipt] | BrokerError) -> None:
        """Write the outcome of a publish down."""
        now_s = time.monotonic()
        if isinstance(outcome, BrokerError):
            # Of several records, one that is refused says nothing of the others.
            refused = count == 1 and outcome.remedy in (Remedy.RETRY, Remedy.STOP)
            self.add((Refused if refused else Unknown)(now_s, producer, number, count))
            return
        assert sum(receipt.count for receipt in outcome) == count
        for receipt in outcome:
            self.add(Acked(now_s, producer, number, receipt.count, receipt.epoch, receipt.first, receipt.level))
            number += receipt.count

    def deliver(self, consumer: str, batch: Batch) -> None:
        """Write down what a consumer was handed."""
        assert not batch.gone, f"nothing takes records out, and yet {batch.gone} of {batch.channel} are gone"
        values = [value_of(payload) for payload in batch.payloads()]
        self.add(Delivered(time.monotonic(), consumer, batch.channel, batch.epoch, batch.first, values))


async def note_stalls(recorder: Recorder) -> None:
    """Write down when the loop was held up, for ever.

    An answer is read in one iteration of the loop and written down in the next, so that it may be as old as two.
    """
    earlier_s = last_s = time.monotonic()
    while True:
        await asyncio.sleep(BEAT_S)
        now_s = time.monotonic()
        if now_s - last_s > STALL_NOTED_S:
            recorder.add(Stalled(now_s, now_s - earlier_s))
        earlier_s, last_s = last_s, now_s


class Crowd:
    """Publishers and subscribers at work, until they are told to finish.

    Args:
        url: where the server is, when it is there.
        levels: the channels, each with its level.
        filters: what each subscriber subscribes, by its name. Each begins at the start.
        slow: subscribers with little credit who stop reading now and then, and fall behind.
        publishers: how many; each publishes to every channel.
        seed: of what they do.

    Attributes:
        recorder: what they saw.
        acknowledged: records.
        failures: what publishes were answered with instead.
        events: what subscriptions were told besides messages, by name.
    """

    def __init__(
        self,
        url: str,
        levels: Mapping[str, int],
        filters: Mapping[str, Sequence[str]],
        *,
        slow: Collection[str] = (),
        publishers: int,
        seed: int,
    ) -> None:
        # Answers are on their way for a while: 50 ms more than the server's own window. When this loop is held up for
        # longer than that it says so.
        self.recorder = Recorder(History(levels=levels, accepted_window_s=0.1))
        self.acknowledged = 0
        self.failures: list[BrokerError] = []
        self.events: Counter[str] = Counter()
        self._url = url
        self._channels = list(levels)
        self._filters = filters
        self._slow = slow
        self._producers = [f"publisher{n}" for n in range(publishers)]
        self._random = random.Random(seed)
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stack = AsyncExitStack()
        self._publishing: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []
        self._noting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._noting = asyncio.create_task(note_stalls(self.recorder), name="note stalls")
        for name, filters in self._filters.items():
            bus = await self._stack.enter_async_context(connect(self._url, backoff=BACKOFF))
            for channel in self._selected(filters):
                self.recorder.add(Subscribed(time.monotonic(), name, channel, True))
            credit_bytes = SLOW_CREDIT_BYTES if name in self._slow else CREDIT_BYTES_DEFAULT
            subscription = await bus.subscribe(
                *filters, start="start", credit_bytes=credit_bytes, on_event=self._on_event
            )
            self._reading.append(asyncio.create_task(self._read(name, subscription), name=name))
        for name in self._producers:
            bus = await self._stack.enter_async_context(connect(self._url, backoff=BACKOFF))
            self._publishing.append(asyncio.create_task(self._publish(name, bus), name=name))
        return self

    async def __aexit__(self, *failure: object) -> None:
        assert self._noting is not None
        tasks = [*self._publishing, *self._reading, self._noting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    def raise_failures(self) -> None:
        """Raise what ended a publisher or a subscriber that should be at work."""
        for task in [*self._publishing, *self._reading]:
            if task.done() and not self._stopping.is_set():
                task.result()
                raise AssertionError(f"{task.get_name()} ended by itself")

    async def finish(self) -> History:
        """Let everybody come to an end, read the log, and return the history."""
        self._stopping.set()
        await asyncio.gather(*self._publishing)
        async with connect(self._url) as bus:
            heads = {name: await head_of(bus, name) for name in self._channels}
            for name, filters in self._filters.items():
                for channel in self._selected(filters):
                    await self._until_caught_up(name, channel, heads[channel])
                    self.recorder.add(Finished(time.monotonic(), name, channel))
            self.recorder.history.log = await read_log(bus, heads)
        return self.recorder.history

    def _selected(self, filters: Sequence[str]) -> list[str]:
        return [name for name in self._channels if any(matches(each.encode(), name.encode()) for each in filters)]

    def _on_event(self, event: SubscriptionEvent) -> None:
        self.events[event.name] += 1

    async def _publish(self, name: str, bus: Bus) -> None:
        """Publish small batches, several at once, as long as the crowd is at work."""
        waiting: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            channel, count = self._random.choice(self._channels), self._random.randint(1, BATCH_MAX)
            number, values = self.recorder.invoke(name, channel, count)
            # The call posts at once, so calls and numbers have the same order; only the answer is waited for.
            answer = bus.publish_many(channel, [payload_of(value) for value in values])
            waiting.add(asyncio.create_task(self._await_answer(name, number, count, answer)))
            if len(waiting) >= UNANSWERED_MAX:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(self._random.uniform(0, PAUSE_S_MAX))
        await asyncio.gather(*waiting)

    async def _await_answer(self, name: str, number: int, count: int, answer: Awaitable[list[Receipt]]) -> None:
        try:
            receipts = await answer
        except BrokerError as failure:
            self.failures.append(failure)
            self.recorder.answer(name, number, count, failure)
        else:
            self.acknowledged += count
            self.recorder.answer(name, number, count, receipts)

    async def _read(self, name: str, subscription: Subscription) -> None:
        async for batch in subscription.batches():
            self.recorder.deliver(name, batch)
            if name in self._slow and not self._stopping.is_set() and self._random.random() < STALL_SHARE:
                await asyncio.sleep(STALL_S)
            self._places[name, batch.channel] = batch.epoch, batch.last
            self._moved.set()

    async def _until_caught_up(self, name: str, channel: str, head: tuple[int, int]) -> None:
        """Wait for a consumer's last record; one that does not get it is the checker's to judge."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S_MAX):
                while self._places.get((name, channel), (0, 0)) < head:
                    self._moved.clear()
                    await self._moved.wait()


async def head_of(bus: Bus, channel: str) -> tuple[int, int]:
    """Return (epoch, sequence) of a channel's newest record, (0, 0) when it has none."""
    found = await bus.channel(channel)
    return (found.epoch, found.head) if found.head >= found.first else (0, 0)


async def read_log(bus: Bus, heads: Mapping[str, tuple[int, int]]) -> dict[str, list[Run]]:
    """Read channels from the start up to their heads.

    Raises:
        TimeoutError: it ends before.
    """
    log: dict[str, list[Run]] = {channel: [] for channel in heads}
    left = {channel for channel, head in heads.items() if head > (0, 0)}
    async with asyncio.timeout(CATCH_UP_S_MAX), bus.subscribe(*heads, start="start") as subscription:
        batches = aiter(subscription.batches())
        while left:
            batch = await anext(batches)
            log[batch.channel].append(Run(batch.epoch, batch.first, [value_of(each) for each in batch.payloads()]))
            if (batch.epoch, batch.last) >= heads[batch.channel]:
                left.discard(batch.channel)
    return log


async def kill_at_random(server: Server, crowd: Crowd, kills: int, seed: int) -> list[Start]:
    """Kill a server at random instants and start it again, so many times; most kills find it serving, some starting.

    Returns:
        How long each start took that was left to become ready.
    """
    chance = random.Random(seed)
    starts: list[Start] = []
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0, SERVE_S_MAX))
        crowd.raise_failures()
        spawned_s = await kill_and_spawn(server, crowd.recorder)
        if chance.random() < STARTING_SHARE:
            await asyncio.sleep(chance.uniform(0, starts[-1].total_s if starts else SERVE_S_MAX))
        else:
            starts.append(await server.until_ready(spawned_s))
    if server.process is None or server.process.poll() is not None:
        raise AssertionError(f"no server is left: {server.said()}")
    return starts


async def kill_and_spawn(server: Server, recorder: Recorder) -> float:
    """Kill a server, start the next one, and write both down.

    What the old one had sent is still in the sockets: it is read before the start is written down, and that is long
    before the new one, which has all of Python to load, can have sent anything.

    Returns:
        When the new process was started.
    """
    server.kill()
    recorder.add(Crashed(time.monotonic()))
    spawned_s = time.monotonic()
    server.spawn()
    await asyncio.sleep(LAST_WORDS_S)
    recorder.add(Started(time.monotonic()))
    return spawned_s
