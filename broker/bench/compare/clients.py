"""A work by the Python clients: ours, redis-py with hiredis, and nats-py.

The same program for each: one process, one uvloop, a task that publishes and one that reads and checks every payload,
the first no further ahead than LIVE_MESSAGES_MAX. What differs is how the makers of each client say that it is used
when there is much to do: pipelines of a thousand commands, `publish()` into the client's own buffer, `publish_async()`.
None of them waits for each message by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.bench.client import LIVE_MESSAGES_MAX, SLICE_MESSAGES, new_loop
from broker.bench.compare.native import curve_of
from broker.bench.compare.outcome import Measurement
from broker.bench.compare.servers import ENDED_S
from broker.bench.server import ROOMS
from broker.model.errors import BrokerError, error
from broker_native.driver import Verifier
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bench.client import Opener
    from broker.bench.compare.native import Server
    from broker.bench.compare.works import Work

PATIENCE_S: Final = 10.0
"""How long nothing may come before the rest counts as lost."""

FETCHED: Final = 1000
"""Entries that a reader asks for at a time."""

MODULES: Final = {"redis": ("redis", "hiredis"), "nats": ("nats",)}
"""What must be importable for the client of each peer."""


class Course:
    """The messages of one measurement: made, sent and checked.

    Args:
        payload_bytes: of each message.
    """

    def __init__(self, payload_bytes: int) -> None:
        self.name = f"{secrets.token_hex(4)}.0"
        self.sent = 0
        self.over = False
        self.latency = Histogram()
        self.verifier = Verifier(payload_bytes=payload_bytes)
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        """Let publishing end so many seconds from now."""
        self._until = time.perf_counter() + seconds

    async def next_slice(self) -> list[bytes]:
        """Return what is to be sent next, when the reader has come near enough; nothing when that was the last."""
        # The reader is another task of this loop: yielding lets it get on, and an event would cost it time.
        while self.sent - self.verifier.taken >= LIVE_MESSAGES_MAX:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if self.over:
            return []
        # Said with the last slice and not after it, when its reader might wait already for another message.
        self.over = time.perf_counter() >= self._until
        self.sent += SLICE_MESSAGES
        return self.verifier.payloads(SLICE_MESSAGES)

    @property
    def complete(self) -> bool:
        """Whether everything that was sent has come."""
        return self.over and self.verifier.taken >= self.sent


class Side(Protocol):
    """One client: what it does to publish and to read until the course is complete."""

    async def open(self) -> None:
        """Connect and subscribe."""

    async def publish(self) -> None:
        """Send slices until there is none."""

    async def read(self) -> None:
        """Check all that comes, until it is complete."""

    async def close(self) -> None:
        """Disconnect."""


class OurSide:
    """Ours: `post()` into the open batch, `drain()` for back-pressure, and batches as they come."""

    def __init__(self, work: Work, course: Course, opener: Opener, place: str) -> None:
        self._course = course
        self._opened = opener(place)
        self._channel = f"{ROOMS[work.durability]}.{course.name}"

    async def open(self) -> None:
        self._bus = await self._opened.__aenter__()
        self._subscribed = self._bus.subscribe(self._channel)
        self._subscription = await self._subscribed.__aenter__()

    async def publish(self) -> None:
        post, channel = self._bus.post, self._channel
        while payloads := await self._course.next_slice():
            for payload in payloads:
                post(channel, payload)
            await self._bus.drain()
        await self._bus.flush()

    async def read(self) -> None:
        course = self._course
        async for batch in self._subscription.batches():
            course.verifier.check_all(batch.payloads(), course.latency)
            if course.complete:
                return

    async def close(self) -> None:
        await self._subscribed.__aexit__(None, None, None)
        await self._opened.__aexit__(None, None, None)


class RedisSide:
    """redis-py on asyncio: pipelines without a transaction; SUBSCRIBE and `listen()`, or streams and XREAD."""

    def __init__(self, work: Work, server: Server, course: Course) -> None:
        from redis.asyncio import Redis

        self._course = course
        self._stored = work.stored
        self._publisher: Any = Redis(host=server.address[0], port=server.address[1])
        self._reader: Any = Redis(host=server.address[0], port=server.address[1])
        self._pubsub: Any = self._reader.pubsub(ignore_subscribe_messages=True)

    async def open(self) -> None:
        await self._publisher.ping()
        if not self._stored:
            await self._pubsub.subscribe(self._course.name)
            # Its answer is the first thing that comes; until then nothing is delivered.
            await self._pubsub.get_message(timeout=PATIENCE_S)

    async def publish(self) -> None:
        name = self._course.name
        while payloads := await self._course.next_slice():
            pipeline = self._publisher.pipeline(transaction=False)
            for payload in payloads:
                if self._stored:
                    pipeline.xadd(name, {b"p": payload})
                else:
                    pipeline.publish(name, payload)
            await pipeline.execute()

    async def read(self) -> None:
        await (self._read_stream() if self._stored else self._listen())

    async def _listen(self) -> None:
        course = self._course
        check = course.verifier.check
        async for message in self._pubsub.listen():
            check(message["data"], course.latency)
            if course.complete:
                return

    async def _read_stream(self) -> None:
        course, last = self._course, b"0"
        while not course.complete:
            found = await self._reader.xread({course.name: last}, count=FETCHED, block=1000)
            for _, entries in found:
                course.verifier.check_all([fields[b"p"] for _, fields in entries], course.latency)
                last = entries[-1][0]

    async def close(self) -> None:
        await self._pubsub.aclose()
        await self._publisher.aclose()
        await self._reader.aclose()


class NatsSide:
    """nats-py: `publish()` into its buffer and a callback, or JetStream's `publish_async()` and `fetch()`."""

    def __init__(self, work: Work, server: Server, course: Course) -> None:
        self._course = course
        self._stored = work.stored
        self._url = f"nats://{server.address[0]}:{server.address[1]}"

    async def open(self) -> None:
        import nats
        from nats.js.api import AckPolicy, ConsumerConfig

        course = self._course
        self._publisher: Any = await nats.connect(self._url)
        self._reader: Any = await nats.connect(self._url)
        if self._stored:
            # Its own bound of what is not answered: with more, the server would let its reader wait for seconds.
            self._stream = self._publisher.jetstream()
            await self._stream.add_stream(name="bench", subjects=[course.name])
            self._pulled: Any = await self._reader.jetstream().pull_subscribe(
                course.name, stream="bench", config=ConsumerConfig(ack_policy=AckPolicy.NONE)
            )
            return
        check, latency = course.verifier.check, course.latency

        async def on_message(message: Any) -> None:
            check(message.data, latency)

        await self._reader.subscribe(course.name, cb=on_message)
        await self._reader.flush()

    async def publish(self) -> None:
        name, answers = self._course.name, []
        while payloads := await self._course.next_slice():
            if self._stored:
                answers += [await self._stream.publish_async(name, payload) for payload in payloads]
            else:
                for payload in payloads:
                    await self._publisher.publish(name, payload)
        await asyncio.gather(*answers)
        await self._publisher.flush()

    async def read(self) -> None:
        course = self._course
        if not self._stored:
            # The callback reads; nobody has to be woken for each message.
            while not course.complete:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            return
        while not course.complete:
            try:
                messages = await self._pulled.fetch(FETCHED, timeout=1.0)
            except TimeoutError:
                continue
            course.verifier.check_all([message.data for message in messages], course.latency)

    async def close(self) -> None:
        await self._publisher.close()
        await self._reader.close()


def missing_modules(peer: str) -> list[str]:
    """Return which modules of a peer's client are not installed."""
    from importlib.util import find_spec

    return [name for name in MODULES.get(peer, ()) if find_spec(name) is None]


def side_of(peer: str, work: Work, server: Server, course: Course, connect: Opener) -> Side:
    """Return the client of a contender."""
    if peer == "broker":
        return OurSide(work, course, connect, f"broker://{server.address[0]}:{server.address[1]}")
    return (RedisSide if peer == "redis" else NatsSide)(work, server, course)


def measure(
    peer: str, work: Work, server: Server, *, seconds: float, payload: int, connect: Opener, patience_s: float
) -> Measurement:
    """Do a work once by the client of a contender, on a server that has just been started.

    Returns:
        What it came to; what goes wrong is in its errors.
    """
    measurement = Measurement()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(
                _measure(
                    lambda course: side_of(peer, work, server, course, connect),
                    server, measurement, seconds, payload, patience_s,
                )
            )  # fmt: skip
        except (OSError, BrokerError) as failure:
            measurement.errors.append(str(failure))
        except Exception as failure:
            # Each library has errors of its own, and none of them may go unseen.
            if type(failure).__module__.split(".")[0] not in ("redis", "nats"):
                raise
            measurement.errors.append(f"{type(failure).__name__}: {failure}")
    how = server.ended(ENDED_S if measurement.errors else 0.0)
    if how is not None:
        measurement.errors = [how]
    return measurement


async def _measure(
    side_for: Callable[[Course], Side],
    server: Server,
    measurement: Measurement,
    seconds: float,
    payload: int,
    patience_s: float,
) -> None:
    course = Course(payload)
    side = side_for(course)
    await side.open()
    try:
        before = server.usage()
        await run_course(course, side, measurement, seconds=seconds, patience_s=patience_s, server=server)
        used = server.usage()
    finally:
        await side.close()
    measurement.server_cpu_s = max(0.0, used.cpu_s - before.cpu_s)
    measurement.memory_bytes = max(measurement.memory_bytes, used.memory_bytes)
    measurement.resident_bytes = used.resident_bytes_max


async def run_course(
    course: Course,
    side: Side,
    measurement: Measurement,
    *,
    seconds: float,
    patience_s: float,
    server: Server | None = None,
) -> None:
    """Publish and read, and enter what came of it.

    Args:
        course: the messages.
        side: who does it; it is open.
        measurement: takes the figures, all but those of a server.
        seconds: when publishing ends.
        patience_s: how long nothing may come.
        server: is watched meanwhile; None where there is none.

    Raises:
        BrokerError: TIMEOUT; nothing came any more.
    """
    cpu_s, begun = time.process_time(), time.perf_counter()
    course.begin(seconds)
    await _finish(asyncio.gather(side.publish(), side.read()), course, server, measurement, patience_s)
    measurement.seconds = time.perf_counter() - begun
    measurement.driver_cpu_s = time.process_time() - cpu_s
    measurement.messages, measurement.deliveries = course.sent, course.verifier.taken
    measurement.curve = curve_of(course.latency)
    measurement.errors += faults_of(course.verifier)


def faults_of(verifier: Verifier) -> list[str]:
    """Say which messages did not come as they should."""
    faults = {"lost": verifier.lost, "duplicated": verifier.duplicated}
    faults |= {"reordered": verifier.reordered, "corrupt": verifier.corrupt}
    return [f"{count:,} messages {name}, limit 0" for name, count in faults.items() if count]


async def _finish(
    work: asyncio.Future[Any], course: Course, server: Server | None, measurement: Measurement, patience_s: float
) -> None:
    """Wait as long as it gets on; what waits for a message that is lost, or for a server that is gone, has no end."""
    seen = -1
    try:
        while not work.done() and seen != (seen := course.verifier.taken + course.sent):
            await asyncio.wait({work}, timeout=patience_s)
            if server is not None:
                measurement.memory_bytes = max(measurement.memory_bytes, server.memory_bytes())
                if server.ended() is not None:
                    break
        if work.done():
            work.result()
            return
    finally:
        # Also when we are interrupted: whoever publishes would go on, and nobody would hear how it ended.
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
    read = f"{course.verifier.taken:,} of {course.sent:,}"
    raise error("TIMEOUT", f"reading: nothing came for {patience_s:g} s, with {read} read")
