"""The work `client`: what a Python program gets, over a socket or from the embedded home.

Four parts, each a result of its own, one after the other on one loop:

    client:post       post() and drain(), nobody reading
    client:batches    the same messages read from the start with batches()
    client:messages   and again with `async for message`, each payload taken
    client:publish    1,000 tasks, each awaiting one publish() at a time

An ephemeral channel stores nothing, so there the two reads follow a poster on the same loop, and their rates are those
of both together. Every payload is checked by the ledger of the native driver, inside the time that is measured.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from broker.bench.result import Result, latency_of
from broker.bench.server import ROOMS, Figures, Target, figures
from broker.model.errors import BrokerError
from broker.model.levels import Level
from broker_native.driver import Verifier
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager

    from broker.bench.options import Options
    from broker.bus import Bus, Start, Subscription

    Opener = Callable[[str], AbstractAsyncContextManager[Bus]]
    """What gives a bus for a URL or a directory. The homes are not this package's to choose: it is handed them."""

    Read = Callable[["Course", Subscription], Coroutine[Any, Any, None]]

PUBLISH_TASKS: Final = 1000
PUBLISH_SHARE: Final = 4
"""`client:publish` sends one message for so many of the other parts: it is that much slower."""

SLICE_MESSAGES: Final = 1024
"""Messages that are made, posted and drained at a time."""

LIVE_MESSAGES_MAX: Final = 16 * SLICE_MESSAGES
"""Messages that a poster may be ahead of a reader on the same loop."""


class Course:
    """One part under way: on which channel, how many messages, and what has been seen of them."""

    def __init__(self, bus: Bus, channel: str, messages: int, payload_bytes: int) -> None:
        self.bus = bus
        self.channel = channel
        self.messages = messages
        self.verifier = Verifier(payload_bytes=payload_bytes)
        self.latency = Histogram()

    def slices(self) -> Iterator[list[bytes]]:
        """Yield all payloads, as many at a time as are posted between two drains."""
        for begin in range(0, self.messages, SLICE_MESSAGES):
            yield self.verifier.payloads(min(SLICE_MESSAGES, self.messages - begin))

    async def post(self) -> None:
        """Post and drain, in slices, until everything is answered."""
        post, channel = self.bus.post, self.channel
        for payloads in self.slices():
            for payload in payloads:
                post(channel, payload)
            await self.bus.drain()
        await self.bus.flush()

    async def post_live(self) -> None:
        """Post no further ahead than a reader on the same loop can follow."""
        sent = 0
        for payloads in self.slices():
            for payload in payloads:
                self.bus.post(self.channel, payload)
            await self.bus.drain()
            sent += len(payloads)
            # The reader is another task of this loop: yielding lets it get on, and an event would cost it time.
            while sent - self.verifier.taken >= LIVE_MESSAGES_MAX:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def read_batches(self, subscription: Subscription) -> None:
        """Read batches until the last message has come."""
        async for batch in subscription.batches():
            self.verifier.check_all(batch.payloads(), self.latency)
            if self.verifier.taken >= self.messages:
                return

    async def read_messages(self, subscription: Subscription) -> None:
        """Read message by message until the last one has come."""
        check, left = self.verifier.check, self.messages
        async for message in subscription:
            check(message.payload)
            left -= 1
            if not left:
                return

    async def publish(self) -> None:
        """Let many tasks publish, each one message at a time, and take the time that each answer takes."""
        payloads = chain.from_iterable(self.slices())
        await asyncio.gather(*(self.publish_some(payloads) for _ in range(PUBLISH_TASKS)))

    async def publish_some(self, payloads: Iterator[bytes]) -> None:
        """Publish what no other task has taken, one message after the other."""
        publish, channel, record, clock_ns = self.bus.publish, self.channel, self.latency.record, time.perf_counter_ns
        for payload in payloads:
            begun_ns = clock_ns()
            await publish(channel, payload)
            record(clock_ns() - begun_ns)


class Session:
    """The parts over one bus, and how each is measured."""

    def __init__(self, bus: Bus, options: Options) -> None:
        self.bus = bus
        self.options = options
        self.stored = options.durability is not Level.EPHEMERAL
        self.room = f"{ROOMS[options.durability]}.{secrets.token_hex(4)}"
        self.results: list[Result] = []

    def course(self, channel: str, messages: int) -> Course:
        return Course(self.bus, f"{self.room}.{channel}", messages, self.options.payload)

    async def run(self) -> list[Result]:
        """Run all parts. What the broker refuses ends them, and is an error of the part in which it happened."""
        messages = self.options.messages
        try:
            await self.post(self.course("post", messages))
            for part, read in (("batches", Course.read_batches), ("messages", Course.read_messages)):
                await (self.read_stored if self.stored else self.read_live)(part, read)
            await self.publish(self.course("publish", max(PUBLISH_TASKS, messages // PUBLISH_SHARE)))
        except BrokerError as failure:
            self.results.append(Result(f"{self.options.work}", self.options, errors=[str(failure)]))
        return self.results

    async def post(self, course: Course) -> None:
        (await self.measure("post", course, course.post())).latency_us = latency_of(Histogram())

    async def read_stored(self, part: str, read: Read) -> None:
        """Read what was posted, from the start. How old it is, is no latency."""
        course = self.course("post", self.options.messages)
        course.verifier.expect(course.messages)
        async with self.bus.subscribe(course.channel, start="start") as subscription:
            result = await self.measure(part, course, read(course, subscription))
        judge(result, course)
        result.latency_us = latency_of(Histogram())

    async def read_live(self, part: str, read: Read) -> None:
        """Read while a task on the same loop posts."""
        course = self.course(part, self.options.messages)

        async def both() -> None:
            await asyncio.gather(read(course, subscription), course.post_live())

        async with self.bus.subscribe(course.channel) as subscription:
            result = await self.measure(part, course, both())
        judge(result, course)

    async def publish(self, course: Course) -> None:
        """Let tasks publish, and read it back: afterwards, or meanwhile when it is not stored."""
        start: Start = "start" if self.stored else "new"

        async def read_back() -> None:
            course.latency = Histogram()  # the result has its own already
            async with self.bus.subscribe(course.channel, start=start) as subscription:
                subscribed.set()
                await course.read_batches(subscription)

        subscribed = asyncio.Event()
        if self.stored:
            result = await self.measure("publish", course, course.publish())
            reading = asyncio.ensure_future(read_back())
        else:
            reading = asyncio.ensure_future(read_back())
            await subscribed.wait()
            result = await self.measure("publish", course, course.publish())
        await self.finish(course, reading, result)
        judge(result, course)

    async def measure(self, part: str, course: Course, work: Coroutine[Any, Any, None]) -> Result:
        """Run a part between two looks at the clock and the figures."""
        result = Result(f"{self.options.work}:{part}", self.options, messages=course.messages)
        self.results.append(result)
        before = await self.figures()
        cpu_s, begun = time.process_time(), time.perf_counter()
        await self.finish(course, asyncio.ensure_future(work), result)
        result.seconds = time.perf_counter() - begun
        result.driver_cpu_s = time.process_time() - cpu_s
        after = await self.figures()
        result.server_cpu_s = after.cpu_s - before.cpu_s
        result.fsyncs = after.fsyncs - before.fsyncs
        result.server_memory_bytes = after.memory_bytes
        result.deliveries = course.verifier.taken
        result.latency_us = latency_of(course.latency)
        return result

    async def finish(self, course: Course, work: asyncio.Future[None], result: Result) -> None:
        """Wait for work as long as it gets on; what waits for a message that is lost would wait for ever."""
        seen = -1
        while not work.done() and seen != (seen := course.verifier.taken + course.latency.count):
            await asyncio.wait({work}, timeout=self.options.patience_s)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            result.errors.append(f"nothing came for {self.options.patience_s:g} s")
        else:
            work.result()

    async def figures(self) -> Figures:
        """Ask the broker. The processor time of one in this process is the driver's already."""
        stats = await self.bus.stats()
        found = figures(stats)
        return found if stats["pid"] != os.getpid() else replace(found, cpu_s=0.0)


def judge(result: Result, course: Course) -> None:
    """Enter what the ledger of a course has seen."""
    verifier = course.verifier
    result.lost, result.duplicated = verifier.lost, verifier.duplicated
    result.reordered, result.corrupt = verifier.reordered, verifier.corrupt


def run_client(options: Options, target: Target, connect: Opener) -> list[Result]:
    """Run the parts over a connection to a server.

    Raises:
        BrokerError: there is no connection to be had.
    """
    return run_on_loop(options, connect, target.url)


def run_embedded(options: Options, open_embedded: Opener) -> list[Result]:
    """Run the parts over a broker in this process, with a directory of its own (TMPDIR chooses the file system).

    Raises:
        BrokerError: the directory cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        return run_on_loop(options, open_embedded, folder)


def run_on_loop(options: Options, opener: Opener, place: str) -> list[Result]:
    """Run on uvloop where it is installed, as an application that cares for speed would."""

    async def run() -> list[Result]:
        async with opener(place) as bus:
            return await Session(bus, options).run()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run())


def new_loop() -> asyncio.AbstractEventLoop:
    """Make the loop: uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
