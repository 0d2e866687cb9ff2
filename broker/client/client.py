"""The bus over one connection: it publishes, subscribes, repairs the connection and goes on where it was.

What it keeps from one connection to the next is in `broker.remote.bus`; here is how its callers wait on a loop, and the
task that makes connections.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from broker.bus import (
    CREDIT_BYTES_DEFAULT,
    GRACE_S,
    PIPELINE_BYTES,
    PIPELINE_JOBS,
    REQUEST_TIMEOUT_S,
    Bus,
    ChannelInfo,
)
from broker.client.connection import Connection
from broker.client.consumer import ClientConsumer
from broker.client.history import ClientHistory
from broker.client.pipeline import ClientPipeline
from broker.client.subscription import ClientSubscription
from broker.client.transaction import ClientTransaction
from broker.client.transport import tcp_connector, tls_connector, unix_connector
from broker.client.workers import ClientWorkers, check_coroutine
from broker.events import emit
from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT
from broker.model.errors import BrokerError, error, located
from broker.model.history import Trim
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.remote.address import TlsAddress, UnixAddress, WebAddress, parse_url, parse_web_url
from broker.remote.asking import late
from broker.remote.bus import (
    DRAIN_BYTES_HIGH,
    DRAIN_BYTES_LOW,
    DRAIN_BYTES_SEND,
    RENEW_RETRY_S,
    TASK_POLL_S_MAX,
    TASK_POLL_S_MIN,
    RemoteBus,
    renew_after_s,
    token_failed,
)
from broker.remote.consumers import ConsumersPages, consumer_of, named, queue_of, start_of
from broker.remote.pages import NamesPages, make_pages
from broker.remote.pipeline import pipeline_of
from broker.remote.scheduling import DelayedPages, draw_id, pack_cancel, when_of
from broker.remote.tls import context_for
from broker.remote.workers import WorkerSettings, worker_of
from broker.wire import consuming, control, requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
    from datetime import datetime
    from typing import Self

    from broker.bus import (
        DelayedMessage,
        FunctionT,
        History,
        HistorySince,
        HistoryUntil,
        ListedChannel,
        Payload,
        Start,
        SubscriptionEvent,
    )
    from broker.client.transport import Connector
    from broker.model.consumers import ConsumerInfo, WaitingJob
    from broker.model.positions import Position
    from broker.remote.address import Address
    from broker.remote.tls import Trust
    from broker_native.messages import Message
    from broker_native.outcomes import Publication, Receipt, Scheduled
    from broker_native.work import Job


class _Ready:
    """An awaitable that is done."""

    def __await__(self) -> Generator[Any, Any, None]:
        return iter(())  # type: ignore[return-value]  # a generator would cost three times as much


READY: Final = _Ready()


class Client(RemoteBus[Connection], Bus):
    """A bus over a connection that a connector makes.

    Args:
        connector: Opens a transport; called again for each reconnect.
        backoff: How long to wait between attempts.
        connect_timeout_s: How long connecting and the handshake may take.
        unanswered_bytes_max: Bytes of publishes that may be unanswered; past it `post` raises BUSY.
        token: What the server is to know us by; or a function, also an async one, that gives it: it is called for each
            connection, and again before the token ends, so that the connection goes on.
        name: What the server's log calls us.
        producer: 16 bytes, whose line the publishes are numbered on; None draws one. A program that comes back with the
            same one goes on after `highest`, and one connection at a time has it.
    """

    def __init__(self, connector: Connector, **options: Any) -> None:
        self.loop = asyncio.get_running_loop()
        super().__init__(self.loop, **options)
        self._connector = connector
        # A bound method of the buffer saves a call on the way: the methods below are what it looks like from outside.
        self.__dict__.update(post=self._buffer.post, publish=self._buffer.publish)
        self._supervisor: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[BrokerError] = self.loop.create_future()
        self._drainers: list[asyncio.Future[None]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._workers: list[WorkerSettings] = []

    async def start(self) -> Self:
        """Connect. A first connection that fails is not tried again.

        Raises:
            BrokerError: The server refuses us; CONNECTION_LOST when there is none; TIMEOUT.
        """
        await self._connect()
        self._supervisor = asyncio.create_task(self._supervise(), name="broker client")
        return self

    # .. publishing ..

    def post(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
    ) -> None:
        self._buffer.post(channel, payload, headers, key, priority, expiry_s, id)

    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
        expect: Position | None = None,
    ) -> Publication[Receipt]:
        return self._buffer.publish(channel, payload, headers, key, priority, expiry_s, id, expect)

    def publish_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | bytes | None] | None = None,
    ) -> Publication[list[Receipt]]:
        return self._buffer.publish_many(channel, payloads, headers, key, priority, expiry_s, ids)

    def schedule(
        self,
        channel: str,
        payload: Payload,
        *,
        delay_s: float | None = None,
        deliver_at: datetime | float | None = None,
        id: str | bytes | None = None,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Publication[Scheduled]:
        when = when_of(delay_s, deliver_at)
        id = draw_id() if id is None else id
        return self._buffer.schedule(channel, payload, when, id, headers, key, priority, expiry_s)

    async def cancel(self, channel: str, id: str | bytes) -> None:
        check_channel(channel)
        await self.ask("delayed_cancel", pack_cancel(channel, id))

    async def delayed(self, prefix: str = "", *, limit: int | None = None) -> AsyncIterator[DelayedMessage]:
        pages = DelayedPages(prefix, limit)
        while (arguments := pages.next()) is not None:
            for message in pages.take(await self.ask("delayed", arguments)):
                yield message

    def transaction(self) -> ClientTransaction:
        return ClientTransaction(self._buffer)

    def drain(self) -> Awaitable[None]:
        buffer = self._buffer
        if buffer.open_bytes >= DRAIN_BYTES_SEND:
            self._pump()
        if buffer.unanswered_bytes <= DRAIN_BYTES_HIGH and buffer.first_failure is None:
            return READY
        return self._wait_answered(lambda: buffer.unanswered_bytes <= DRAIN_BYTES_LOW)

    def flush(self) -> Awaitable[None]:
        self._pump()
        return self._wait_answered(lambda: not self._buffer.records_unanswered)

    async def _wait_answered(self, is_enough: Callable[[], bool]) -> None:
        """Wait for answers until there are enough, or one of them must be raised."""
        while not is_enough() and self._buffer.first_failure is None:
            waiter = self.loop.create_future()
            self._drainers.append(waiter)
            await waiter
        self._raise_failure()

    def _schedule_pump(self) -> None:
        self.loop.call_soon(self._pump)

    def _wake_drainers(self) -> None:
        if self._drainers:
            wake(self._drainers)

    def _wake_connected(self) -> None:
        wake(self._waiting)

    # .. subscribing ..

    def subscribe(
        self,
        *filters: str,
        start: Start = "new",
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
        group: str | None = None,
    ) -> ClientSubscription:
        return ClientSubscription(self, filters, start, credit_bytes, on_event, group)

    # .. requests and replies ..

    async def request(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        answer: asyncio.Future[Message] = self.loop.create_future()
        timer = self.loop.call_later(timeout_s, give_up, answer, channel, timeout_s)
        number = 0
        try:
            while self._connection is None:
                await self._wait_connected_until(answer)
            number = self._asking.ask(channel, payload, headers, answer)
            return await answer
        finally:
            timer.cancel()
            self._asking.forget(number)

    async def _wait_connected_until(self, answer: asyncio.Future[Any]) -> None:
        """Wait for a connection, until somebody has given the answer up."""
        if self._closed is not None:
            raise self._closed
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        await asyncio.wait((waiter, answer), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            waiter.cancel()
            answer.result()

    def respond(self, message: Message, payload: Payload, *, headers: Mapping[str, object] | None = None) -> None:
        if self._closed is not None:
            raise self._closed
        self._asking.reply(message, payload, headers)

    # .. asking ..

    async def stats(self) -> dict[str, Any]:
        fields = await self.ask("stats", {})
        figures = fields.get("stats")
        return figures if isinstance(figures, dict) else {}

    async def channel(self, name: str) -> ChannelInfo:
        check_channel(name)
        fields = await self.ask("channel", {"name": name})
        return ChannelInfo(fields["epoch"], fields["first"], fields["head"], Level(fields["level"]))

    async def backup(self, path: str, on_progress: Callable[[int, int], object] | None = None) -> str:
        return await self._finish("backup", {"path": path}, on_progress)

    async def compact(self, on_progress: Callable[[int, int], object] | None = None) -> str:
        return await self._finish("compact", {}, on_progress)

    async def _finish(
        self, operation: str, arguments: Mapping[str, object], on_progress: Callable[[int, int], object] | None
    ) -> str:
        """Begin long work and ask how far it is until it has ended."""
        begun = await self.ask(operation, arguments)
        pause_s = TASK_POLL_S_MIN
        while True:
            task = await self.ask("task", {"id": begun["id"]})
            if on_progress is not None:
                on_progress(task["done"], task["total"])
            if task["state"] == "done":
                return str(task["detail"])
            if task["state"] != "running":
                raise error("STORAGE_FAILED", f"{operation}: {task['detail']}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, TASK_POLL_S_MAX)

    def history(
        self,
        channel: str,
        *,
        since: HistorySince = None,
        until: HistoryUntil = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        return ClientHistory(self, make_pages(channel, since, until, limit, reverse))

    async def channels(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, details: bool = False
    ) -> AsyncIterator[ListedChannel]:
        pages = NamesPages(prefix, after, limit, details=details)
        while (arguments := pages.next()) is not None:
            for listed in pages.take(await self.ask("channels", arguments)):
                yield listed

    async def trim(self, name: str, first: int) -> int:
        check_channel(name)
        return control.take_int(await self.ask("trim", requests.pack_query(Trim(name, first))), "first")

    async def remove(self, name: str) -> None:
        check_channel(name)
        await self.ask("remove", {"name": name})

    # .. consumers and work queues ..

    async def create_consumer(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float | None = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        paused: bool = False,
        update: bool = False,
    ) -> ConsumerInfo:
        settings = consumer_of(
            name,
            filters,
            lease_s=lease_s,
            attempts_max=attempts_max,
            backoff_s=backoff_s,
            dead_letter=dead_letter,
            paused=paused,
        )
        arguments = consuming.pack_consumer_set(settings, start_of(filters, start), update=update)
        return consuming.decode_info(await self.ask("consumer_set", arguments))

    async def create_queue(
        self,
        name: str,
        *filters: str,
        start: Start = "start",
        lease_s: float = 30.0,
        attempts_max: int = 0,
        backoff_s: tuple[float, float] = (1.0, 60.0),
        dead_letter: str | None = None,
        lanes: bool = False,
        by_key: bool = False,
        paused: bool = False,
        update: bool = False,
    ) -> ConsumerInfo:
        settings = queue_of(
            name,
            filters,
            lease_s=lease_s,
            attempts_max=attempts_max,
            backoff_s=backoff_s,
            dead_letter=dead_letter,
            lanes=lanes,
            by_key=by_key,
            paused=paused,
        )
        arguments = consuming.pack_consumer_set(settings, start_of(filters, start), update=update)
        return consuming.decode_info(await self.ask("consumer_set", arguments))

    def consume(
        self,
        name: str,
        *,
        window: int = WINDOW_DEFAULT,
        window_bytes: int = WINDOW_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
    ) -> ClientConsumer:
        return ClientConsumer(self, name, window, window_bytes, on_event)

    def worker(
        self,
        *filters: str,
        queue: str | None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        **queue_settings: Any,
    ) -> Callable[[FunctionT], FunctionT]:
        return worker_of(self._workers, filters, queue, concurrency, prefetch, queue_settings, check_coroutine)

    def run_workers(self, grace_s: float = GRACE_S) -> ClientWorkers:
        return ClientWorkers(self, self._workers, grace_s)

    def pipeline(
        self,
        source: str,
        transform: Callable[[Job], Any],
        *,
        batch: int = PIPELINE_JOBS,
        batch_bytes: int = PIPELINE_BYTES,
        grace_s: float = GRACE_S,
    ) -> ClientPipeline:
        return ClientPipeline(self, pipeline_of(source, transform, batch, batch_bytes, grace_s))

    async def consumer_info(self, name: str) -> ConsumerInfo:
        return consuming.decode_info(await self.ask("consumer", named(name)))

    async def consumers(
        self, prefix: str = "", *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ConsumerInfo]:
        pages = ConsumersPages(prefix, after, limit)
        while (arguments := pages.next()) is not None:
            for info in pages.take(await self.ask("consumers", arguments)):
                yield info

    async def remove_consumer(self, name: str) -> None:
        await self.ask("consumer_remove", named(name))

    async def pause_consumer(self, name: str) -> ConsumerInfo:
        return consuming.decode_info(await self.ask("consumer_pause", {**named(name), "paused": True}))

    async def resume_consumer(self, name: str) -> ConsumerInfo:
        return consuming.decode_info(await self.ask("consumer_pause", {**named(name), "paused": False}))

    async def reset_consumer(self, name: str, start: Start) -> ConsumerInfo:
        filters = (await self.consumer_info(name)).settings.filters
        return consuming.decode_info(
            await self.ask("consumer_reset", consuming.pack_reset(name, start_of(filters, start)))
        )

    async def peek(self, name: str, limit: int = 100) -> list[WaitingJob]:
        return list(consuming.decode_waiting(await self.ask("consumer_peek", {**named(name), "limit": limit})))

    async def purge(self, name: str) -> int:
        return control.take_int(await self.ask("consumer_purge", named(name)), "count")

    async def redrive(self, name: str, limit: int | None = None) -> int:
        return control.take_int(await self.ask("consumer_redrive", {**named(name), "limit": limit}), "count")

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer; waits for a connection first."""
        connection = await self._wait_connected()
        answer: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        number = self._send_request(connection, operation, arguments, answer)
        try:
            return await answer
        finally:
            self._requests.pop(number, None)

    async def _wait_connected(self) -> Connection:
        while self._connection is None:
            if self._closed is not None:
                raise self._closed
            waiter = self.loop.create_future()
            self._waiting.append(waiter)
            await waiter
        return self._connection

    # .. the connection ..

    async def _connect(self) -> None:
        """Make a connection and give it everything that waits for one."""
        connection = Connection(self.loop, self)
        try:
            hello = self._hello(await self._fresh_token())
            ask_ahead, journal = self._ahead(connection)
            welcome = await connection.open(self._connector, hello, self._connect_timeout_s, ask_ahead, journal)
        except BaseException as failure:
            told = self._failed_to_connect(connection, failure)
            if told is failure:
                raise
            raise told from failure
        if self._closed is not None:
            connection.abort()
            raise self._closed
        self._lost = self.loop.create_future()
        self._connected(connection, welcome, self.loop.time())
        self._renew_later(welcome.expires_s)

    async def _fresh_token(self) -> str | None:
        """Return the token to sign in with.

        Raises:
            Unavailable: UNAVAILABLE; what should give it failed.
        """
        if not callable(self._token):
            return self._token
        try:
            given = self._token()
            return given if isinstance(given, str) else await given
        except Exception as failure:
            raise token_failed(failure) from None

    def _renew_later(self, expires_s: float | None) -> None:
        """Renew the token of this connection before it ends, if there is a way to get a fresh one."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if expires_s is not None and callable(self._token):
            self._renewal = asyncio.create_task(self._renew(self._connection, expires_s), name="broker token")

    async def _renew(self, connection: Connection | None, expires_s: float) -> None:
        """Sign in anew, again and again, for as long as this connection lives."""
        wait_s = renew_after_s(expires_s)
        while True:
            await asyncio.sleep(wait_s)
            if self._connection is not connection:
                return
            try:
                fields = await self.ask("sign_in", {"token": await self._fresh_token()})
            except BrokerError as failure:
                if self._connection is not connection:
                    return
                # The server ends the connection when its time is over; then the next one gets a fresh token.
                emit("renewal_failed", code=failure.name, detail=failure.detail)
                wait_s = RENEW_RETRY_S
            else:
                if "expires_s" not in fields:
                    return
                wait_s = renew_after_s(control.take_number(fields, "expires_s"))

    async def _supervise(self) -> None:
        """Keep the bus connected, and leave nobody waiting if that itself fails."""
        try:
            await self._reconnect_until_refused()
        except Exception as bug:
            emit("client_failed", failure=bug)
            self._fail(error("CLOSED", f"the client failed: {bug!r}"))

    async def _reconnect_until_refused(self) -> None:
        """Replace the connection whenever it is lost, until the bus is closed or refused."""
        while True:
            # Shielded: whoever closes the bus cancels this task, and then waits for the end that the future tells of.
            failure = await asyncio.shield(self._lost)
            while True:
                if self._is_final(failure):
                    self._fail(failure)
                    return
                delay_s = self._backoff.delay_s(self.loop.time(), failure.retry_after_ms)
                emit("reconnecting", after_s=round(delay_s, 3), code=failure.name, detail=failure.detail)
                await asyncio.sleep(delay_s)
                try:
                    await self._connect()
                    break
                except BrokerError as again:
                    failure = again

    def _fail(self, failure: BrokerError) -> None:
        """End for good: everybody who waits, and who will, is told why."""
        connection = self._connection
        if connection is not None:
            connection.close(failure)
        self._give_up(failure)

    async def close(self, timeout_s: float = 5.0) -> None:
        if self._closed is not None:
            self._raise_failure()
            return
        # Replies are not answered, so nothing below would wait until they have left.
        self._pump()
        try:
            async with asyncio.timeout(timeout_s):
                while self._is_unanswered() and self._closed is None:
                    self._pump()
                    waiter = self.loop.create_future()
                    self._drainers.append(waiter)
                    await waiter
        except TimeoutError:
            emit("closed_unanswered", messages=self._buffer.records_unanswered)
        finally:
            await self._end()
        self._raise_failure()

    async def _end(self) -> None:
        self._renew_later(None)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        connection = self._connection
        if self._closed is None:
            self._fail(error("CLOSED", "the bus is closed", "Open or connect a new one."))
        if connection is not None and not self._lost.done():
            # The transport ends in a turn of its own; a loop that is closed before leaves it open.
            await asyncio.wait({self._lost}, timeout=1.0)

    def on_forked(self) -> list[int]:
        """This is a child process, and the bus is its parent's.

        Nothing is called back: who waits here waits on the parent's loop, which nobody runs any more.

        Returns:
            The descriptor of the socket, if there is one.
        """
        failure = error("FORKED", "the bus was opened in the parent of this process", "open it again in this process")
        connection, self._connection = self._connection, None
        if self._closed is None:
            self._closed = failure
            self._buffer.close(failure, failure)
        return [] if connection is None else connection.descriptors()

    # .. what the connection hears ..

    def on_writable(self) -> None:
        """The connection takes bytes again."""
        self._pump()

    def on_closed(self, failure: BrokerError) -> None:
        """The connection has ended."""
        self._disconnected(failure)
        if not self._lost.done():
            self._lost.set_result(failure)


def give_up(answer: asyncio.Future[Message], channel: str, timeout_s: float) -> None:
    """The time of a request is over."""
    if not answer.done():
        answer.set_exception(late(channel, timeout_s))


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Wake everybody in the list, and empty it."""
    woken = waiters[:]
    waiters.clear()
    for waiter in woken:
        if not waiter.done():
            waiter.set_result(None)


def connector_of(address: Address | WebAddress, tls: Trust) -> Connector:
    """Return what connects to an address.

    Raises:
        ConfigError: ADDRESS; it is a WebSocket's, and the extra `web` is not installed. As `context_for`.
    """
    context = context_for(address, tls)
    if isinstance(address, UnixAddress):
        return unix_connector(address)
    if isinstance(address, TlsAddress):
        assert context is not None
        return tls_connector(address, context)
    if not isinstance(address, WebAddress):
        return tcp_connector(address)
    try:
        from broker.client.web import web_connector
    except ImportError as missing:
        raise error("ADDRESS", f"url {address}: needs {missing.name}", "pip install broker-bus[web]") from None
    return web_connector(address, context)


class connect:  # called like a function, awaited and entered like what it returns
    """Connect to a broker: `bus = await connect(url)`, or `async with connect(url) as bus`.

    Args:
        url: `broker://host:port`, `broker+tls://host:port` or `broker+unix:///path`; `ws://host:port` or
            `wss://host:port` for a WebSocket, which needs the extra `web`.
        tls: With `broker+tls://` and `wss://`: a context, or a PEM file of those who sign the server's certificate.
            None: what the URL says, and whom the system believes.
        options: As for `Client`.

    Raises:
        ConfigError: ADDRESS; the URL is none, or of a WebSocket and the extra `web` is not installed. INVALID_CONFIG; a
            certificate cannot be used.
        BrokerError: From awaiting or entering: there is no server, or it refuses us.
    """

    def __init__(self, url: str, *, tls: Trust = None, **options: Any) -> None:
        self._address = parse_web_url(url) or parse_url(url)
        self._connector = connector_of(self._address, tls)
        self._options = options
        self._bus: Client | None = None

    async def _open(self) -> Client:
        try:
            return await Client(self._connector, **self._options).start()
        except BrokerError as failure:
            raise located(failure, str(self._address)) from failure.__cause__

    def __await__(self) -> Generator[Any, Any, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._bus = await self._open()
        return self._bus

    async def __aexit__(self, *raised: object) -> None:
        if self._bus is not None:
            await self._bus.close()
