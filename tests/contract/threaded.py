"""The blocking client as one more home: a `Bus` whose every call that waits waits in a thread.

Nothing is made good here that the client should do. Where a task that waits may be cancelled, the thread that waits for
it cannot be; so what a cancelled read was just about to return is kept for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, cast

from broker import blocking
from broker.bus import Bus, Consumer, History, Pipeline, Subscription, Transaction
from broker.client.workers import ClientWorkers, check_coroutine
from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT
from broker.model.errors import BrokerError
from broker.remote.workers import WorkerSettings, worker_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
    from typing import Self

    from broker import (
        BusPosition,
        ChannelInfo,
        DelayedMessage,
        ListedChannel,
        Message,
        Position,
        SubscriptionEvent,
    )

THREADS = 64
"""What waits at once in one test is less."""
AT_ONCE_MAX = 64
"""What one visit of a thread brings: a test that takes thousands would spend its time on waking threads."""
POLL_S = 0.02
"""How soon a read hears that nobody waits for it any more."""


class connect:  # called, awaited and entered like the asyncio client's
    """Connect with the blocking client."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self._options = options
        self._bus: ThreadedBus | None = None

    def __await__(self) -> Generator[Any, Any, ThreadedBus]:
        return self._open().__await__()

    async def _open(self) -> ThreadedBus:
        client = await asyncio.to_thread(blocking.connect, self._url, timeout_s=30, **self._options)
        return ThreadedBus(client)

    async def __aenter__(self) -> ThreadedBus:
        self._bus = await self._open()
        return self._bus

    async def __aexit__(self, *raised: object) -> None:
        assert self._bus is not None
        await self._bus.close()


class ThreadedBus(Bus):
    """A bus over a blocking client."""

    def __init__(self, client: blocking.Client) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(THREADS, "caller")
        self._workers: list[WorkerSettings] = []

    def in_thread(self, function: Callable[..., Any], *args: Any, **options: Any) -> asyncio.Future[Any]:
        """Call a function that waits, in a thread."""
        return self.loop.run_in_executor(self._pool, partial(function, *args, **options))

    # .. publishing ..

    def post(self, channel: str, payload: Any, **options: Any) -> None:
        self.client.post(channel, payload, **options)

    def drain(self) -> Awaitable[None]:
        return self.in_thread(self.client.drain)

    def flush(self) -> Awaitable[None]:
        return self.in_thread(self.client.flush)

    def publish(self, channel: str, payload: Any, **options: Any) -> Any:
        return self.in_thread(self.client.submit(channel, payload, **options).result)

    def publish_many(self, channel: str, payloads: Any, **options: Any) -> Any:
        return self.in_thread(self.client.submit_many(channel, payloads, **options).result)

    def transaction(self) -> ThreadedTransaction:
        return ThreadedTransaction(self)

    # .. reading ..

    def subscribe(self, *filters: str, **options: Any) -> ThreadedSubscription:
        return ThreadedSubscription(self, filters, **options)

    def history(self, channel: str, **options: Any) -> ThreadedHistory:
        return ThreadedHistory(self, self.client.history(channel, **options))

    async def channels(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, details: bool = False
    ) -> AsyncIterator[ListedChannel]:
        listed = self.client.channels(prefix, after=after, limit=limit, details=details)
        while (channel := await self.in_thread(next, listed, None)) is not None:
            yield channel

    # .. requests and replies ..

    async def request(self, channel: str, payload: Any, **options: Any) -> Message:
        return cast("Message", await self.in_thread(self.client.request, channel, payload, **options))

    def respond(self, message: Message, payload: Any, **options: Any) -> None:
        self.client.respond(message, payload, **options)

    # .. consumers and work queues ..

    async def create_consumer(self, name: str, *filters: str, **options: Any) -> Any:
        return await self.in_thread(self.client.create_consumer, name, *filters, **options)

    async def create_queue(self, name: str, *filters: str, **options: Any) -> Any:
        return await self.in_thread(self.client.create_queue, name, *filters, **options)

    def consume(self, name: str, **options: Any) -> ThreadedConsumer:
        return ThreadedConsumer(self, name, **options)

    def worker(
        self,
        *filters: str,
        queue: str | None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        **queue_settings: Any,
    ) -> Any:
        return worker_of(self._workers, filters, queue, concurrency, prefetch, queue_settings, check_coroutine)

    def run_workers(self, grace_s: float = 30.0) -> ClientWorkers:
        return ClientWorkers(self, self._workers, grace_s)

    def pipeline(self, source: str, transform: Any, **options: Any) -> ThreadedPipeline:
        return ThreadedPipeline(self, source, transform, options)

    async def consumer_info(self, name: str) -> Any:
        return await self.in_thread(self.client.consumer_info, name)

    async def consumers(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[Any]:
        listed = self.client.consumers(prefix, after=after, limit=limit)
        while (info := await self.in_thread(next, listed, None)) is not None:
            yield info

    async def remove_consumer(self, name: str) -> None:
        await self.in_thread(self.client.remove_consumer, name)

    async def pause_consumer(self, name: str) -> Any:
        return await self.in_thread(self.client.pause_consumer, name)

    async def resume_consumer(self, name: str) -> Any:
        return await self.in_thread(self.client.resume_consumer, name)

    async def reset_consumer(self, name: str, start: Any) -> Any:
        return await self.in_thread(self.client.reset_consumer, name, start)

    async def peek(self, name: str, limit: int = 100) -> Any:
        return await self.in_thread(self.client.peek, name, limit)

    async def purge(self, name: str) -> int:
        return cast("int", await self.in_thread(self.client.purge, name))

    async def redrive(self, name: str, limit: int | None = None) -> int:
        return cast("int", await self.in_thread(self.client.redrive, name, limit))

    def schedule(self, channel: str, payload: Any, **options: Any) -> Any:
        return self.in_thread(self.client.submit_scheduled(channel, payload, **options).result)

    async def cancel(self, channel: str, id: str | bytes) -> None:
        await self.in_thread(self.client.cancel, channel, id)

    async def delayed(self, prefix: str = "", *, limit: int | None = None) -> AsyncIterator[DelayedMessage]:
        listed = self.client.delayed(prefix, limit=limit)
        while (message := await self.in_thread(next, listed, None)) is not None:
            yield message

    # .. asking ..

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        return cast("dict[str, Any]", await self.in_thread(self.client.ask, operation, arguments))

    async def stats(self) -> dict[str, Any]:
        return cast("dict[str, Any]", await self.in_thread(self.client.stats))

    async def channel(self, name: str) -> ChannelInfo:
        return cast("ChannelInfo", await self.in_thread(self.client.channel, name))

    async def trim(self, name: str, first: int) -> int:
        return cast("int", await self.in_thread(self.client.trim, name, first))

    async def remove(self, name: str) -> None:
        await self.in_thread(self.client.remove, name)

    async def backup(self, path: str, on_progress: Callable[[int, int], object] | None = None) -> str:
        return cast("str", await self.in_thread(self.client.backup, path, self._called(on_progress)))

    async def compact(self, on_progress: Callable[[int, int], object] | None = None) -> str:
        return cast("str", await self.in_thread(self.client.compact, self._called(on_progress)))

    def _called(self, function: Callable[..., object] | None) -> Callable[..., object] | None:
        return None if function is None else partial(self.loop.call_soon_threadsafe, function)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self.in_thread(self.client.close, timeout_s)


class ThreadedTransaction(Transaction):
    """A transaction that a thread puts together and leaves."""

    def __init__(self, bus: ThreadedBus) -> None:
        self._bus = bus
        self._transaction = bus.client.transaction()
        self.receipts = self._transaction.receipts

    def publish(self, channel: str, payload: Any, **options: Any) -> int:
        return self._transaction.publish(channel, payload, **options)

    def ack(self, job: Any) -> None:
        self._transaction.ack(job)

    async def __aenter__(self) -> Self:
        self._transaction.__enter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._bus.in_thread(self._transaction.__exit__, *raised)
        self.receipts = self._transaction.receipts


class ThreadedSubscription(Subscription):
    """A subscription that threads read."""

    at_once_max = AT_ONCE_MAX

    def __init__(
        self,
        bus: ThreadedBus,
        filters: tuple[str, ...],
        start: Any = "new",
        credit_bytes: int = 4 * 1024 * 1024,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
        group: str | None = None,
    ) -> None:
        self._bus = bus
        self._inner = blocking.Subscription(
            bus.client, filters, start, credit_bytes, bus._called(on_event), group=group
        )
        self._opening: asyncio.Future[Any] | None = None
        self._kept: deque[Any] = deque()
        self.events = self._inner.events

    def __await__(self) -> Generator[Any, Any, ThreadedSubscription]:
        return self._open().__await__()

    async def _open(self) -> ThreadedSubscription:
        if self._opening is None:
            self._opening = self._bus.in_thread(self._inner.open)
        await asyncio.shield(self._opening)
        return self

    @property
    def bus_position(self) -> BusPosition | None:
        return self._inner.bus_position

    @property
    def positions(self) -> Mapping[str, Position]:
        return self._inner.positions

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._stream(self._inner.next)

    def batches(self) -> AsyncIterator[Any]:
        return self._stream(self._inner.next_batch)

    async def _stream(self, read: Callable[[float], Any]) -> AsyncIterator[Any]:
        await self._open()
        while True:
            if self._kept:
                yield self._kept.popleft()
                continue
            gone: list[bool] = []
            reading = self._bus.in_thread(self._read, read, gone, self.at_once_max)
            try:
                found = await asyncio.shield(reading)
            except asyncio.CancelledError:
                gone.append(True)
                self._kept += await reading
                raise
            if not found:
                return
            self._kept += found

    @staticmethod
    def _read(read: Callable[[float], Any], gone: list[bool], at_once_max: int) -> list[Any]:
        """Read in short waits until there is something; nothing at the end, or when nobody waits any more."""
        found: list[Any] = []
        try:
            while not gone and not found:
                wait_s = POLL_S
                while len(found) < at_once_max and (one := read(wait_s)) is not None:
                    found.append(one)
                    wait_s = 0
        except BrokerError as failure:
            if failure.name != "CLOSED":
                raise
        return found

    async def close(self) -> None:
        await self._bus.in_thread(self._inner.close)


class ThreadedSettled:
    """What was said of jobs, waited for in a thread if anybody waits."""

    def __init__(self, bus: ThreadedBus, inner: blocking.Settled) -> None:
        self._bus = bus
        self._inner = inner

    def done(self) -> bool:
        return self._inner.done()

    def result(self, timeout_s: float | None = None) -> None:
        """Wait in this thread: a transaction is left in one."""
        self._inner.result(timeout_s)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._bus.in_thread(self._inner.result).__await__()


class ThreadedConsumer(ThreadedSubscription, Consumer):  # type: ignore[misc]  # both await themselves
    """A member of a consumer whose jobs threads read. Nothing is taken that nobody asked for."""

    at_once_max = 1

    def __init__(self, bus: ThreadedBus, name: str, *, on_event: Any = None, **options: Any) -> None:
        options = {"window": WINDOW_DEFAULT, "window_bytes": WINDOW_BYTES_DEFAULT, **options}
        self._bus = bus
        self._inner: Any = blocking.Consumer(bus.client, name, on_event=bus._called(on_event), **options)
        say = self._inner._settle
        self._inner._settle = lambda *said: ThreadedSettled(bus, say(*said))
        self._opening = None
        self._kept = deque()
        self.name = name
        self.events = self._inner.events

    @property
    def queued(self) -> int:
        return len(self._kept) + int(self._inner.queued)

    def stop(self) -> None:
        self._inner.stop()

    def ack_through(self, job: Any) -> Any:
        return ThreadedSettled(self._bus, self._inner.ack_through(job))

    def flush(self) -> Awaitable[None]:
        return self._bus.in_thread(self._inner.flush)

    async def close(self, timeout_s: float = 5.0) -> None:
        await self._bus.in_thread(self._inner.close, timeout_s)


class ThreadedPipeline(Pipeline):
    """A pipeline in a thread. Transforms that are coroutines run on the loop, and the thread waits for them."""

    def __init__(self, bus: ThreadedBus, source: str, transform: Any, options: Any) -> None:
        self._bus = bus
        self._transform = transform
        self._inner = bus.client.pipeline(source, self._call, **options)

    def _call(self, job: Any) -> Any:
        made = self._transform(job)
        if hasattr(made, "__aiter__"):
            made = collected(made)
        return asyncio.run_coroutine_threadsafe(made, self._bus.loop).result() if iscoroutine(made) else made

    def __await__(self) -> Generator[Any, Any, None]:
        return self._run().__await__()

    async def _run(self) -> None:
        running = self._bus.in_thread(self._inner.run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self._inner.end()
            await running
            raise

    async def __aenter__(self) -> Self:
        await self._bus.in_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._bus.in_thread(self._inner.__exit__, *raised)


async def collected(stream: Any) -> list[Any]:
    """Return all that an asynchronous iterator has."""
    return [one async for one in stream]


class ThreadedHistory(History):
    """A read that threads make, one after the other."""

    def __init__(self, bus: ThreadedBus, inner: blocking.History) -> None:
        self._bus = bus
        self._inner = inner
        self.events = inner.events

    @property
    def info(self) -> ChannelInfo | None:  # type: ignore[override]
        return self._inner.info

    @property
    def bus_position(self) -> BusPosition | None:
        return self._inner.bus_position

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._stream(iter(self._inner))

    def batches(self) -> AsyncIterator[Any]:
        return self._stream(self._inner.batches())

    async def _stream(self, found: Iterator[Any]) -> AsyncIterator[Any]:
        while (one := await self._bus.in_thread(next, found, None)) is not None:
            yield one

    async def messages(self) -> list[Any]:
        return cast("list[Any]", await self._bus.in_thread(self._inner.messages))
