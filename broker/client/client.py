"""The bus over one connection: it publishes, subscribes, repairs the connection and goes on where it was.

What belongs to a connection dies with it; what belongs to the bus is here: the publishes that are not answered, the
subscriptions with their places, the producer's identity. A new connection therefore needs one round trip: HELLO is
answered with the highest number of the producer's line, and then everything is asked for and sent again at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from broker._version import __version__
from broker.bus import CREDIT_BYTES_DEFAULT, Bus, ChannelInfo, ListedChannel
from broker.client import forked
from broker.client.address import UnixAddress, parse_url
from broker.client.connection import Connection
from broker.client.history import make_history
from broker.client.reconnect import Backoff, BackoffPolicy, LineKnowledge, is_final
from broker.client.subscription import ClientSubscription
from broker.client.transport import tcp_connector, unix_connector
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.model.history import NAMES_MAX, NamesQuery, Trim
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.model.positions import BusPosition, Position
from broker.wire import control, requests
from broker.wire.kinds import PRODUCER_BYTES
from broker_native.messages import set_types
from broker_native.posting import PublishBuffer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
    from typing import Self

    from broker.bus import History, HistorySince, HistoryUntil, Payload, Start, SubscriptionEvent
    from broker.client.transport import Connector
    from broker_native.posting import Publication, Receipt


MIB: Final = 1024 * 1024

UNANSWERED_BYTES_MAX: Final = 64 * MIB
"""Past this `post` raises BUSY."""
DRAIN_BYTES_HIGH: Final = 8 * MIB
"""`drain` waits when more is unanswered…"""
DRAIN_BYTES_LOW: Final = 4 * MIB
"""…until no more than this is."""
DRAIN_BYTES_SEND: Final = 64 * 1024
"""`drain` sends at once when so much has gathered in this turn of the loop."""
BLOCK_BYTES: Final = 256 * 1024
AHEAD_BYTES_MAX: Final = 16 * 1024
"""What is sent behind HELLO without waiting for WELCOME: no more than a HELLO may be, since a server that has to wait
for something keeps it for a peer of which it knows nothing yet. Every server takes a frame of that size."""
CONNECT_TIMEOUT_S: Final = 10.0
TASK_POLL_S_MIN: Final = 0.01
TASK_POLL_S_MAX: Final = 0.5

# What becomes of a publish that is refused, see PublishBuffer.refuse.
FOR_GOOD, FOR_ITS_NUMBER, FOR_ONE_RECORD = 0, 1, 2
VERDICTS: Final = {
    "NUMBER_GAP": FOR_ITS_NUMBER,
    "PAYLOAD_TOO_LARGE": FOR_ONE_RECORD,
    "HEADERS_TOO_LARGE": FOR_ONE_RECORD,
    "INVALID_RECORD": FOR_ONE_RECORD,
}

set_types(position=Position, bus_position=BusPosition, level=Level)


class _Ready:
    """An awaitable that is done."""

    def __await__(self) -> Generator[Any, Any, None]:
        return iter(())  # type: ignore[return-value]  # a generator would cost three times as much


READY: Final = _Ready()


class Client(Bus):
    """A bus over a connection that a connector makes.

    Args:
        connector: Opens a transport; called again for each reconnect.
        backoff: How long to wait between attempts.
        connect_timeout_s: How long connecting and the handshake may take.
        unanswered_bytes_max: Bytes of publishes that may be unanswered; past it `post` raises BUSY.
        token: What the server's gate wants to know us by.
        name: What the server's log calls us.
        producer: 16 bytes, whose line the publishes are numbered on; None draws one. A program that comes back with the
            same one goes on after `highest`, and one connection at a time has it.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        backoff: BackoffPolicy | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        unanswered_bytes_max: int = UNANSWERED_BYTES_MAX,
        token: str | None = None,
        name: str = f"broker-py {__version__}",
        producer: bytes | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._connector = connector
        self._connect_timeout_s = connect_timeout_s
        self._backoff = Backoff(backoff or BackoffPolicy(), random.random)
        self._hello = control.encode_hello(name, producer or secrets.token_bytes(PRODUCER_BYTES), token)
        self._buffer = PublishBuffer(
            self.loop,
            error=error,
            check_channel=check_channel,
            pack_headers=control.pack_headers,
            kick=self._schedule_pump,
            bytes_max=unanswered_bytes_max,
        )
        # A bound method of the buffer saves a call on the way: the methods below are what it looks like from outside.
        self.__dict__.update(post=self._buffer.post, publish=self._buffer.publish)
        self._connection: Connection | None = None
        self._welcome: control.Welcome | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[BrokerError] = self.loop.create_future()
        self._leaving: control.GoingAway | None = None  # the server drains: send nothing new on this connection
        self._asks_ahead = True
        self._closed: BrokerError | None = None
        self._subscriptions: dict[ClientSubscription, None] = {}
        self._numbers: dict[int, ClientSubscription] = {}
        self._last_number = 0
        self._requests: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_request = 0
        self._drainers: list[asyncio.Future[None]] = []
        self._connected: list[asyncio.Future[None]] = []
        forked.watch(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connection else "reconnecting"
        return f"<Client {state}, {self._buffer.records_unanswered} messages unanswered>"

    async def start(self) -> Self:
        """Connect. A first connection that fails is not tried again.

        Raises:
            BrokerError: The server refuses us; CONNECTION_LOST when there is none; TIMEOUT.
        """
        await self._connect()
        self._supervisor = asyncio.create_task(self._supervise(), name="broker client")
        return self

    @property
    def highest(self) -> int:
        """The highest number of the producer's line that the broker had when the bus was last connected."""
        return self._welcome.highest if self._welcome is not None else 0

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
    ) -> None:
        self._buffer.post(channel, payload, headers, key, priority, expiry_s)

    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Publication[Receipt]:
        return self._buffer.publish(channel, payload, headers, key, priority, expiry_s)

    def publish_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Publication[list[Receipt]]:
        return self._buffer.publish_many(channel, payloads, headers, key, priority, expiry_s)

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

    def _raise_failure(self) -> None:
        failed = self._buffer.take_failure()
        if failed is not None:
            failure, count = failed
            hint = failure.hint
            if count > 1:
                hint += f" It is the first of {count} posted messages that failed since the last drain."
            raise type(failure)(failure.code, failure.detail, hint, failure.name) from failure

    def _schedule_pump(self) -> None:
        self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what has gathered, as much as the connection takes."""
        connection = self._connection
        if connection is None or self._leaving is not None:
            return
        while connection.writable:
            block = self._buffer.take(BLOCK_BYTES)
            if block is None:
                return
            connection.send(block)

    # .. subscribing ..

    def subscribe(
        self,
        *filters: str,
        start: Start = "new",
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
    ) -> ClientSubscription:
        return ClientSubscription(self, filters, start, credit_bytes, on_event)

    def add_subscription(self, subscription: ClientSubscription) -> None:
        """Keep a subscription on this and every later connection."""
        if self._closed is not None:
            subscription.finish(self._closed)
            return
        self._subscriptions[subscription] = None
        if self._connection is not None:
            subscription.attach(self._connection)

    def remove_subscription(self, subscription: ClientSubscription, number: int) -> None:
        """Forget a subscription that has ended."""
        self._subscriptions.pop(subscription, None)
        self.forget_number(number)

    def next_number(self, subscription: ClientSubscription) -> int:
        """Return a number that this connection has not used for a subscription."""
        self._last_number += 1
        self._numbers[self._last_number] = subscription
        return self._last_number

    def forget_number(self, number: int) -> None:
        """Pass over what the server still says of this number."""
        self._numbers.pop(number, None)

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
        return make_history(self, channel, since, until, limit, reverse)

    async def channels(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, details: bool = False
    ) -> AsyncIterator[ListedChannel]:
        query = NamesQuery(prefix, after, NAMES_MAX, details)
        left = limit
        while left is None or left > 0:
            query = replace(query, limit=NAMES_MAX if left is None else min(left, NAMES_MAX))
            part = requests.decode_names_part(await self.ask("channels", requests.pack_query(query)))
            for name, epoch, first, head, level in part.channels:
                yield ListedChannel(name, ChannelInfo(epoch, first, head, Level(level)) if level else None)
            if not part.more or not part.channels:
                return
            left = None if left is None else left - len(part.channels)
            query = replace(query, after=part.channels[-1].name)

    async def trim(self, name: str, first: int) -> int:
        check_channel(name)
        return control.take_int(await self.ask("trim", requests.pack_query(Trim(name, first))), "first")

    async def remove(self, name: str) -> None:
        check_channel(name)
        await self.ask("remove", {"name": name})

    @property
    def journal(self) -> bytes:
        """Identity of the journal of the server that we were connected to last."""
        return self._welcome.journal if self._welcome is not None else b""

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer; waits for a connection first."""
        connection = await self._wait_connected()
        self._last_request = self._last_request % 0xFFFFFFFF + 1
        number = self._last_request
        answer: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        self._requests[number] = answer
        connection.send(control.encode_request(number, operation, arguments))
        try:
            return await answer
        finally:
            self._requests.pop(number, None)

    async def _wait_connected(self) -> Connection:
        while self._connection is None:
            if self._closed is not None:
                raise self._closed
            waiter = self.loop.create_future()
            self._connected.append(waiter)
            await waiter
        return self._connection

    # .. the connection ..

    async def _connect(self) -> None:
        """Make a connection and give it everything that waits for one."""
        connection = Connection(self.loop, self)
        try:
            welcome = await self._open(connection)
        except BaseException as failure:
            # What was asked for ahead has no answer.
            self._detach()
            self._asks_ahead = not connection.journal_changed
            if isinstance(failure, OSError):
                raise error("CONNECTION_LOST", f"connecting: {failure}", "is the broker running?") from failure
            raise
        if self._closed is not None:
            connection.abort()
            raise self._closed
        self._asks_ahead = True
        self._backoff.connected(self.loop.time())
        self._lost = self.loop.create_future()
        self._leaving = None
        self._connection = connection
        self._resume(connection, welcome)
        wake(self._connected)

    async def _open(self, connection: Connection) -> control.Welcome:
        """Shake hands; subscriptions that were there before are asked for in the same breath, as far as there is room.

        So a bus that comes back to the journal that it knows is live after one round trip.
        """
        if self._welcome is None or not self._asks_ahead:
            return await connection.open(self._connector, self._hello, self._connect_timeout_s)
        return await connection.open(
            self._connector,
            self._hello,
            self._connect_timeout_s,
            lambda: self._ask_ahead(connection),
            self._welcome.journal,
        )

    def _ask_ahead(self, connection: Connection) -> bool:
        left = AHEAD_BYTES_MAX
        for subscription in list(self._subscriptions):
            left -= subscription.attach_ahead(connection, left)
        return left < AHEAD_BYTES_MAX

    def _detach(self) -> None:
        self._numbers.clear()
        for subscription in self._subscriptions:
            subscription.detach()

    def _resume(self, connection: Connection, welcome: control.Welcome) -> None:
        """Go on where the last connection ended: all subscriptions and unanswered publishes, in one go."""
        buffer, previous = self._buffer, self._welcome
        buffer.payload_bytes_max = welcome.limits.payload_bytes_max
        buffer.headers_bytes_max = welcome.limits.headers_bytes_max
        buffer.channels_max = welcome.limits.channels_max
        unknown = None
        if previous is not None:
            known = LineKnowledge(previous.journal, buffer.synced_highest)
            unknown = known.unknown(welcome)
        self._welcome = welcome
        for subscription in list(self._subscriptions):
            subscription.attach(connection)
        buffer.resume(welcome.highest, unknown)
        self._pump()
        wake(self._drainers)

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
                if is_final(failure):
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
        self._closed = failure
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(failure)
        unknown = error("COMMIT_UNKNOWN", f"publishes that were not answered: {failure}")
        self._buffer.close(failure, unknown)
        for subscription in list(self._subscriptions):
            subscription.finish(failure if failure.name != "CLOSED" else None)
        for request in self._requests.values():
            if not request.done():
                request.set_exception(failure)
        wake(self._drainers)
        wake(self._connected)

    async def close(self, timeout_s: float = 5.0) -> None:
        if self._closed is not None:
            self._raise_failure()
            return
        try:
            async with asyncio.timeout(timeout_s):
                while self._buffer.records_unanswered and self._closed is None:
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

    def on_published(self, body: bytes) -> None:
        """Publishes were answered."""
        self._buffer.answer(body)
        self._answered()

    def _answered(self) -> None:
        if self._buffer.is_adrift:
            # Every frame in flight was refused for its number: only a new handshake tells which one is due.
            self._break(error("NUMBER_GAP", "publishing: the line's next number is not known any more"))
        elif self._drainers:
            wake(self._drainers)
        if self._leaving is not None and not self._buffer.in_flight:
            self._break(error("GOING_AWAY", "the server drains", retry_after_ms=self._leaving.retry_after_ms))

    def on_refusal(self, refusal: control.Refusal) -> None:
        """Something was refused."""
        failure = refusal.failure
        if refusal.number is not None:
            self._on_publish_refused(refusal.number, refusal.count or 1, failure)
        elif refusal.channel is not None:
            self._buffer.refuse_channel(refusal.channel, failure)
        elif refusal.subscription is not None:
            subscription = self._numbers.get(refusal.subscription)
            if subscription is not None:
                subscription.on_refused(failure)
        else:
            request = self._requests.get(refusal.request or 0)
            if request is not None and not request.done():
                request.set_exception(failure)

    def _on_publish_refused(self, number: int, count: int, failure: BrokerError) -> None:
        if failure.name == "COMMIT_UNKNOWN":
            # A new handshake tells by the line's highest number, and the publish is repeated under its own.
            self._break(failure)
            return
        self._buffer.refuse(number, count, failure, VERDICTS.get(failure.name, FOR_GOOD))
        self._answered()

    def _break(self, failure: BrokerError) -> None:
        """Give the connection up, to make another."""
        if self._connection is not None:
            self._connection.abort(failure)

    def on_subscribed(self, answer: control.Subscribed) -> None:
        """A subscription was accepted."""
        subscription = self._numbers.get(answer.subscription)
        if subscription is not None:
            subscription.on_subscribed(answer)

    def on_event(self, event: control.Event) -> None:
        """Something happened to a subscription."""
        subscription = self._numbers.get(event.subscription)
        if subscription is not None:
            subscription.on_event(event)

    def on_reply(self, request: int, fields: dict[str, Any]) -> None:
        """A request was answered."""
        answer = self._requests.get(request)
        if answer is not None and not answer.done():
            answer.set_result(fields)

    def on_going_away(self, notice: control.GoingAway) -> None:
        """The server drains: send nothing new, take the answers that are due, and connect again."""
        self._leaving = notice
        self._answered()

    def on_writable(self) -> None:
        """The connection takes bytes again."""
        self._pump()

    def on_closed(self, failure: BrokerError) -> None:
        """The connection has ended."""
        self._connection = None
        self._buffer.suspend()
        self._detach()
        if failure.retry_after_ms is None and self._leaving is not None:
            # It has said when to come back before it was gone.
            failure.retry_after_ms = self._leaving.retry_after_ms
        for request in self._requests.values():
            if not request.done():
                request.set_exception(error("CONNECTION_LOST", f"request: {failure}"))
        if not self._lost.done():
            self._lost.set_result(failure)


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Wake everybody in the list, and empty it."""
    woken = waiters[:]
    waiters.clear()
    for waiter in woken:
        if not waiter.done():
            waiter.set_result(None)


class connect:  # called like a function, awaited and entered like what it returns
    """Connect to a broker: `bus = await connect(url)`, or `async with connect(url) as bus`.

    Args:
        url: `broker://host:port` or `broker+unix:///path`.
        options: As for `Client`.

    Raises:
        ConfigError: ADDRESS; the URL is none.
        BrokerError: From awaiting or entering: there is no server, or it refuses us.
    """

    def __init__(self, url: str, **options: Any) -> None:
        address = parse_url(url)
        self._address = address
        self._connector = unix_connector(address) if isinstance(address, UnixAddress) else tcp_connector(address)
        self._options = options
        self._bus: Client | None = None

    async def _open(self) -> Client:
        try:
            return await Client(self._connector, **self._options).start()
        except BrokerError as failure:
            raise type(failure)(
                failure.code, f"{self._address}: {failure.detail}", failure.hint, failure.name
            ) from failure.__cause__

    def __await__(self) -> Generator[Any, Any, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._bus = await self._open()
        return self._bus

    async def __aexit__(self, *raised: object) -> None:
        if self._bus is not None:
            await self._bus.close()
