"""The bus of threads: what `broker.remote.bus` keeps, behind one lock, with a thread that reads and one that writes.

Whoever calls has the lock for as long as it takes to put records into frames and hand them to the system, which never
waits; then it waits, without the lock, for whoever the answer wakes. The reader takes bytes without the lock and tells
what they mean with it. A call that is interrupted while it sends gives the connection up, so that no half of a frame is
taken for a whole one; what was not answered is sent again on the next one, and stored once.

Not for signal handlers: one that runs while its thread has the lock would wait for itself.
"""

from __future__ import annotations

import contextvars
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

from broker.blocking.connection import QUIET_S_MAX, Connection, dial
from broker.blocking.consumer import Consumer
from broker.blocking.history import History
from broker.blocking.pipeline import Pipeline, check_plain
from broker.blocking.subscription import Subscription
from broker.blocking.transaction import Transaction
from broker.blocking.waiting import Answer, Deadline, Pending, Waiter, Window, add_waiter, wake
from broker.blocking.workers import Workers
from broker.bus import (
    CREDIT_BYTES_DEFAULT,
    GRACE_S,
    PIPELINE_BYTES,
    PIPELINE_JOBS,
    REQUEST_TIMEOUT_S,
    ChannelInfo,
)
from broker.events import emit
from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT
from broker.model.errors import BrokerError, error
from broker.model.history import Trim
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.remote.address import parse_url
from broker.remote.asking import late
from broker.remote.bus import (
    DRAIN_BYTES_HIGH,
    DRAIN_BYTES_LOW,
    DRAIN_BYTES_SEND,
    TASK_POLL_S_MAX,
    TASK_POLL_S_MIN,
    RemoteBus,
)
from broker.remote.consumers import ConsumersPages, consumer_of, named, queue_of, start_of
from broker.remote.pages import NamesPages, make_pages
from broker.remote.pipeline import pipeline_of
from broker.remote.reconnect import is_final
from broker.remote.scheduling import DelayedPages, draw_id, pack_cancel, when_of
from broker.remote.workers import WorkerSettings, worker_of
from broker.wire import consuming, control, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from broker.bus import (
        DelayedMessage,
        FunctionT,
        HistorySince,
        HistoryUntil,
        ListedChannel,
        Payload,
        Start,
        SubscriptionEvent,
    )
    from broker.model.consumers import ConsumerInfo, WaitingJob
    from broker.model.positions import Position
    from broker.remote.address import TcpAddress, UnixAddress
    from broker_native.draft import Draft
    from broker_native.messages import Batch, Message
    from broker_native.outcomes import Receipt, Scheduled
    from broker_native.work import Job

TIMEOUT_S: Final = 10.0
TURN_BYTES: Final = 256 * 1024
"""Received bytes after which others get a turn: a greenlet that always finds something to read would let nobody."""
JOIN_S: Final = 1.0
PING_FIRST: Final = 1 << 63
"""Tokens from here on are of `ping`; those of the keep-alive are below."""


class Client(RemoteBus[Connection]):
    """A bus over a connection that it keeps, repairs and resumes. Use `connect`.

    All methods may be called from any thread, any number at once. What one thread publishes to one channel is stored
    and delivered in the order of its calls.

    Args:
        address: Where the server is.
        timeout_s: How long a call waits that is not told; None: for ever.
        options: `backoff`, `connect_timeout_s`, `unanswered_bytes_max`, `token`, `name` and `producer`, as for
            `RemoteBus`.
    """

    def __init__(
        self, address: TcpAddress | UnixAddress, *, timeout_s: float | None = TIMEOUT_S, **options: Any
    ) -> None:
        self.lock = threading.Lock()
        """Guards everything that this object and its subscriptions have."""
        self.timeout_s = timeout_s
        self._address = address
        self._context = contextvars.Context()
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...], contextvars.Context | None]] = []
        self._outside: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self._is_forked = False  # the parent's: nothing of it may be touched
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._counter = itertools.count(PING_FIRST)
        self._pings: dict[int, Waiter] = {}
        self._drainers: list[Waiter] = []
        self._waiting: list[Waiter] = []
        self._workers: list[WorkerSettings] = []
        self._stop = threading.Lock()  # taken until the bus ends
        self._stop.acquire()
        self._reader: threading.Thread | None = None
        self._writer: threading.Thread | None = None
        self._work = threading.Lock()  # taken while the writer has nothing to do
        self._work.acquire()
        self._is_woken = False  # the writer has been told
        self._is_kicked = False  # there is something to send, and nobody has been told
        self._full: Connection | None = None  # has a backlog
        self._opening: Connection | None = None  # does not belong to the bus yet
        super().__init__(self, **options)

    def start(self) -> Self:
        """Connect. A first connection that fails is not tried again.

        Raises:
            BrokerError: The server refuses us; CONNECTION_LOST when there is none; TIMEOUT.
        """
        connection = self._connect()
        self._reader = threading.Thread(
            target=self._guarded, args=(self._read, connection), name="broker reader", daemon=True
        )
        self._reader.start()
        return self

    def _guarded(self, function: Callable[..., object], *args: object) -> None:
        """Be a thread of the bus, and leave nobody waiting if that itself fails."""
        try:
            function(*args)
        except BaseException as bug:
            emit("client_failed", failure=bug)
            with self.lock:
                self._fail(error("CLOSED", f"the client failed: {bug!r}"))
            if not isinstance(bug, Exception):
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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
        """Publish without waiting: the message leaves with all others that are posted until the writer has its turn.

        It is repeated until it is answered, across reconnects and never twice. A refusal is raised by the next `drain`
        or `flush`. Call `drain()` now and then: that is what makes a fast publisher wait for a slower broker.

        Args:
            channel: The channel's name.
            payload: The bytes, which are never looked into; copied.
            headers: What msgpack can hold; about 16 KiB packed.
            key: 1 to 255 bytes, what the message is about.
            priority: 0 critical, 1 high, 2 normal, 3 low.
            expiry_s: Seconds after which it is no longer delivered, at least 1.
            id: 1 to 64 bytes, or text of as many in UTF-8, that names the message. While the channel remembers it
                (`ids_window_s` and `ids_max` of its profile) another message with this id is not stored: it is answered
                with the position of the first, whoever published that. Only for channels that are stored.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_ID, INVALID_RECORD, or CLOSED.
            Unavailable: BUSY; more is unanswered than the bus may hold.
        """
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            self._buffer.post(channel, payload, packed, key, priority, expiry_s, id)
            self.send_soon()

    def drain(self, *, timeout_s: float | None = None) -> None:
        """Wait until little enough is unanswered to go on posting. Costs next to nothing when that is so already.

        Raises:
            BrokerError: A message that was posted earlier was refused, or its outcome is unknown; raised once.
            Unavailable: TIMEOUT; what was posted is still under way.
        """
        buffer = self._buffer
        if buffer.open_bytes >= DRAIN_BYTES_SEND:
            with self.lock:
                self._pump()
            time.sleep(0)
        if buffer.unanswered_bytes > DRAIN_BYTES_HIGH or buffer.first_failure is not None:
            self._wait_answered(lambda: buffer.unanswered_bytes <= DRAIN_BYTES_LOW, timeout_s)

    def flush(self, *, timeout_s: float | None = None) -> None:
        """Wait until everything that was posted is answered.

        Raises:
            BrokerError: As for `drain`.
        """
        self._wait_answered(lambda: not self._buffer.records_unanswered, timeout_s)

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
        timeout_s: float | None = None,
    ) -> Receipt:
        """Publish, and answer where the message was stored and how safely.

        Args:
            channel: As for `post`, and so on.
            expect: The position of the channel's newest message: it is stored only if that still is the newest, so of
                several who publish with the same one wins. `Position(0, 0)`: only if the channel never had a message.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: As `post` does; it is refused; or COMMIT_UNKNOWN, as when the time is over (`Pending.result`).
                With `expect` CONFLICT, whose `head` is the newest position, or NOT_STORED: the channel is ephemeral.
        """
        pending = self.submit(
            channel, payload, headers=headers, key=key, priority=priority, expiry_s=expiry_s, id=id, expect=expect
        )
        return pending.result(timeout_s)

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
        timeout_s: float | None = None,
    ) -> list[Receipt]:
        """Publish many messages to one channel, and answer where they were stored.

        Args:
            channel, payloads: As for `post`, and so on.
            ids: One for each payload, None for one without.

        Returns:
            Receipts in the order of the payloads; messages with consecutive sequences share one.

        Raises:
            BrokerError: As for `publish`. When one is refused, others of them may be stored.
            ValueError: There are more payloads than ids, or fewer.
        """
        pending = self.submit_many(
            channel, payloads, headers=headers, key=key, priority=priority, expiry_s=expiry_s, ids=ids
        )
        return pending.result(timeout_s)

    def submit(
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
    ) -> Pending[Receipt]:
        """Send a message now, and wait for its receipt later: `submit(…).result()` is `publish`.

        Raises:
            BrokerError: At once as `post` does.
        """
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.publish(channel, payload, packed, key, priority, expiry_s, id, expect)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

    def submit_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | bytes | None] | None = None,
    ) -> Pending[list[Receipt]]:
        """Send many messages now, and wait for their receipts later: `submit_many(…).result()` is `publish_many`.

        Raises:
            BrokerError: At once as `post` does; those before the one that is refused are sent.
        """
        # An iterator is the caller's code: it runs before the lock is taken.
        all_of_them = payloads if isinstance(payloads, list | tuple) else list(payloads)
        all_ids = ids if ids is None or isinstance(ids, list | tuple) else list(ids)
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.publish_many(channel, all_of_them, packed, key, priority, expiry_s, all_ids)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

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
        timeout_s: float | None = None,
    ) -> Scheduled:
        """Have a message published later, once, whatever restarts in between (`broker.bus.Bus.schedule`).

        Args:
            channel: As for `publish`, and so on. Its profile stores its messages.
            delay_s: Seconds from now on, by the broker's clock.
            deliver_at: A datetime with a time zone, or seconds since 1970, instead; what is past is due now.
            id: 1 to 64 bytes, a string or bytes; None draws one.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: As `publish`; INVALID_TIME, INVALID_ID, NOT_STORED.
        """
        pending = self.submit_scheduled(
            channel,
            payload,
            delay_s=delay_s,
            deliver_at=deliver_at,
            id=id,
            headers=headers,
            key=key,
            priority=priority,
            expiry_s=expiry_s,
        )
        return pending.result(timeout_s)

    def submit_scheduled(
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
    ) -> Pending[Scheduled]:
        """Send a message for later now, and wait for the answer later: `submit_scheduled(…).result()` is `schedule`.

        Raises:
            BrokerError: At once as `schedule` does.
        """
        packed = control.pack_headers(headers) if headers else None
        when = when_of(delay_s, deliver_at)
        id = draw_id() if id is None else id
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.schedule(channel, payload, when, id, packed, key, priority, expiry_s)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

    def cancel(self, channel: str, id: str | bytes, *, timeout_s: float | None = None) -> None:
        """Have a message wait no more; it is committed on return, and the message is never published.

        Args:
            channel: Its channel.
            id: Its id.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: UNKNOWN_MESSAGE; it does not wait (any more). DENIED, INVALID_CHANNEL, a storage error.
        """
        check_channel(channel)
        self.ask("delayed_cancel", pack_cancel(channel, id), timeout_s)

    def delayed(
        self, prefix: str = "", *, limit: int | None = None, timeout_s: float | None = None
    ) -> Iterator[DelayedMessage]:
        """Iterate over the messages that wait, the earliest first, but for a second here or there; pages by itself.

        Args:
            prefix: What their channels' names begin with; any text.
            limit: At most so many, from 1.
            timeout_s: How long to wait for each page; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: From the iteration: DENIED, TIMEOUT, a storage error.
        """
        pages = DelayedPages(prefix, limit)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("delayed", arguments, timeout_s))

    def transaction(self, *, timeout_s: float | None = None) -> Transaction:
        """Begin to put publishes together that happen together or not at all: `with bus.transaction() as tx`.

        Args:
            timeout_s: How long leaving the block waits; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: From leaving the block: CONFLICT, and all other errors of `publish`, for one of them and so for
                all; NOT_STORED; TRANSACTION_TOO_LARGE.
        """
        return Transaction(self, self._buffer, timeout_s)

    def submit_draft(self, draft: Draft) -> Pending[list[Receipt]]:
        """Send what a transaction has put together."""
        with self.lock:
            self._check_open()
            try:
                return Pending(draft.send(), self._context, self.timeout_s)
            finally:
                self.send_now()

    def post_window(
        self,
        messages: Iterable[tuple[str, Payload]],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Window:
        """Send many messages to many channels at once, to be waited for together: what a load generator does.

        Each channel's messages keep their order. They go to the system in one call, as far as it takes them.

        Args:
            messages: Pairs of a channel's name and a payload.
            headers: As for `post`, of all of them, and so on.

        Returns:
            What becomes of them, and when.

        Raises:
            BrokerError: At once as `post` does; those before the one that is refused are sent.
        """
        grouped: dict[str, list[Payload]] = {}
        for channel, payload in messages:
            grouped.setdefault(channel, []).append(payload)
        packed = control.pack_headers(headers) if headers else None
        parts: dict[str, tuple[int, Pending[list[Receipt]]]] = {}
        posted_s = time.perf_counter()
        with self.lock:
            self._check_open()
            try:
                for channel, payloads in grouped.items():
                    publication = self._buffer.publish_many(channel, payloads, packed, key, priority, expiry_s)
                    parts[channel] = len(payloads), Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()
        return Window(parts, self.timeout_s, posted_s)

    def send_soon(self) -> None:
        """Have the writer send what was just posted, or said of jobs. With the lock."""
        if self._is_kicked:
            self._is_kicked = False
            self._wake_writer()

    def send_now(self) -> None:
        """Send what was just posted, by this thread: it is about to wait for the answer. With the lock."""
        self._is_kicked = False
        self._pump()
        self._run_soon()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _pump(self) -> None:
        try:
            super()._pump()
        except BaseException:
            # Interrupted between taking frames and sending them: only another connection can send them again.
            self._break(error("CONNECTION_LOST", "connection: sending was interrupted"))
            raise

    def _wait_answered(self, is_enough: Callable[[], bool], timeout_s: float | None) -> None:
        """Send what there is, and wait for answers until there are enough, or one of them must be raised."""
        deadline = self._deadline(timeout_s)
        with self.lock:
            if not self._is_forked:
                self._pump()
            waiter = self._add_drainer(is_enough)
        while waiter is not None:
            if not waiter.wait(deadline.left_s()):
                count = self._buffer.records_unanswered
                raise deadline.passed(
                    "publishes",
                    f"{count} messages are not answered",
                    "They are still under way: wait again, or look at what keeps the broker.",
                )
            with self.lock:
                waiter = self._add_drainer(is_enough)

    def _add_drainer(self, is_enough: Callable[[], bool]) -> Waiter | None:
        """Return who is woken by the next answers; None when there are enough, unless one must be raised."""
        if self._is_forked:
            self._check_open()
        if is_enough() or self._buffer.first_failure is not None:
            self._raise_failure()
            return None
        return add_waiter(self._drainers)

    # .. subscribing ..

    def subscribe(
        self,
        *filters: str,
        start: Start = "new",
        credit_bytes: int = CREDIT_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
        group: str | None = None,
        on_batch: Callable[[Batch], object] | None = None,
        timeout_s: float | None = None,
    ) -> Subscription:
        """Read channels, from when the broker has accepted it. A message is delivered once, however many filters match.

        Args:
            filters: Channels' names and patterns, at least one.
            start: Where to begin.
            credit_bytes: What may wait for the application, at least 64 KiB.
            on_event: Called with each event, on the bus' own thread: it must not wait for anything of this bus.
            group: Be a member of a live group: of the members that read a channel each message goes to one, in turn,
                and a member that lags is passed over. It begins with what is published from now on, each time.
            on_batch: Called with each batch in the same way, and there is nothing to iterate over. Who only looks at
                what comes is saved a thread, and a wake-up for each read of the socket. It is consumed by the call, and
                while that lasts nothing else of the bus is read.
            timeout_s: How long to wait until it is accepted.

        Raises:
            InvalidPattern: A filter is none.
            RequestError: INVALID_POSITION; `start` does not fit the filters.
            BrokerError: It is refused: DENIED, NO_PROFILE, …; TIMEOUT.
        """
        return Subscription(self, filters, start, credit_bytes, on_event, on_batch, group).open(timeout_s)

    # .. requests and replies ..

    def request(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """Publish a message that asks for a reply, and wait for that.

        Everybody who subscribes to the channel gets it, or one member of each live group, and whoever calls `respond`
        with it replies. The first reply counts. It is published once: when the connection or the time ends, nobody
        knows whether it was handled, and nothing repeats it.

        On an ephemeral channel to which nobody subscribes it fails at once. On a stored one it is a stored message as
        well, which somebody may yet read: then only the time ends the wait.

        Args:
            channel: As for `post`, and so on.
            headers: `reply-to` among them is the request's own.
            timeout_s: How long to wait, a connection included.

        Raises:
            Unavailable: NO_RESPONDERS; TIMEOUT; CONNECTION_LOST; BUSY.
            BrokerError: As `post` does, and as the channel's refusal says: DENIED, NO_PROFILE, …
        """
        deadline = Deadline(timeout_s)
        self._wait_connected(deadline)
        answer = Answer()
        number = 0
        try:
            with self.lock:
                self._check_open()
                if self._connection is None:
                    raise error("CONNECTION_LOST", "request: the connection was lost")
                number = self._asking.ask(channel, payload, headers, answer)
                self.send_now()
            if not answer.wait(deadline.left_s()):
                raise late(channel, timeout_s)
            return cast("Message", answer.fields())
        finally:
            with self.lock:
                self._asking.forget(number)

    def respond(self, message: Message, payload: Payload, *, headers: Mapping[str, object] | None = None) -> None:
        """Reply to a request, without waiting. A reply that finds nobody waiting is dropped, and counted.

        Args:
            message: What was received.
            payload: The bytes; copied.
            headers: What msgpack can hold.

        Raises:
            InvalidChannel: It is no request: nobody waits for a reply to it.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_RECORD, or CLOSED.
            Unavailable: BUSY; more is not sent than the bus may hold.
        """
        with self.lock:
            self._check_open()
            self._asking.reply(message, payload, headers)
            self.send_now()

    # .. consumers and work queues ..

    def create_consumer(
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
        timeout_s: float | None = None,
    ) -> ConsumerInfo:
        """Make a durable consumer, a reader with a name whose place the broker keeps, as `Bus.create_consumer` does.

        Raises:
            BrokerError: INVALID_CONSUMER, CONSUMER_EXISTS, NOT_STORED, …; COMMIT_UNKNOWN when no answer came in time.
        """
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
        return consuming.decode_info(self.ask("consumer_set", arguments, timeout_s, changes=True))

    def create_queue(
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
        timeout_s: float | None = None,
    ) -> ConsumerInfo:
        """Make a work queue, a consumer that any number of members share, as `Bus.create_queue` does.

        Raises:
            BrokerError: As for `create_consumer`.
        """
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
        return consuming.decode_info(self.ask("consumer_set", arguments, timeout_s, changes=True))

    def consume(
        self,
        name: str,
        *,
        window: int = WINDOW_DEFAULT,
        window_bytes: int = WINDOW_BYTES_DEFAULT,
        on_event: Callable[[SubscriptionEvent], object] | None = None,
        timeout_s: float | None = None,
    ) -> Consumer:
        """Become a member of a consumer or a work queue, from when the broker has accepted it.

        Args:
            name: Its name.
            window: Jobs that may be under way to this member: given out and not settled.
            window_bytes: And of how many bytes; one job in any case.
            on_event: Called with each event, on the bus' own thread: it must not wait for anything of this bus.
            timeout_s: How long to wait until it is accepted.

        Raises:
            BrokerError: It is refused: INVALID_CONSUMER, UNKNOWN_CONSUMER, DENIED, …; TIMEOUT.
        """
        return Consumer(self, name, window, window_bytes, on_event).open(timeout_s)

    def worker(
        self,
        *filters: str,
        queue: str | None = None,
        concurrency: int = 1,
        prefetch: int | None = None,
        **queue_settings: Any,
    ) -> Callable[[FunctionT], FunctionT]:
        """Have a function work off a queue, when `run_workers` is called: `@bus.worker("jobs.resize")`.

        It is called with each job, by a thread of its own. When it returns, the job is done; when it raises, the job
        comes again after the queue's back-off; `Reject` gives it up, and `Retry` says when it comes again. The job's
        lease is extended while it runs.

        Args:
            filters: What the queue reads; it is made when the workers start. None: it is there already.
            queue: Its name; the function's name without it.
            concurrency: Jobs that are done at once, each by a thread, from 1.
            prefetch: Jobs that wait in the client besides; as many as `concurrency` without it.
            queue_settings: As for `create_queue`: `lease_s`, `attempts_max`, `dead_letter`, …

        Raises:
            RequestError: INVALID_CONSUMER; there is nothing to work off.
        """
        return worker_of(self._workers, filters, queue, concurrency, prefetch, queue_settings)

    def run_workers(self, grace_s: float = GRACE_S) -> Workers:
        """Return the workers: `bus.run_workers().run()` until `end` is called, or `with bus.run_workers():` meanwhile.

        When they stop, no more jobs are taken, functions that run may end, and the rest is given back.

        Args:
            grace_s: How long they may take, seconds.
        """
        return Workers(self, self._workers, grace_s)

    def pipeline(
        self,
        source: str,
        transform: Callable[[Job], Any],
        *,
        batch: int = PIPELINE_JOBS,
        batch_bytes: int = PIPELINE_BYTES,
        grace_s: float = GRACE_S,
    ) -> Pipeline:
        """Transform what a consumer or a queue gives out, and publish what is made of it, each job exactly once:
        `bus.pipeline("orders", price).run()` until `end` is called, or `with bus.pipeline(…):` meanwhile.

        As `Bus.pipeline` describes it, with a function that is called by a thread of its own.

        Raises:
            RequestError: LIMIT; INVALID_CONSUMER, it is an `async def`.
        """
        check_plain(transform)
        return Pipeline(self, pipeline_of(source, transform, batch, batch_bytes, grace_s))

    def consumer_info(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Answer what there is to tell of a consumer or a work queue, as `Bus.consumer_info` does; TIMEOUT besides."""
        return consuming.decode_info(self.ask("consumer", named(name), timeout_s))

    def consumers(
        self, prefix: str = "", *, after: str = "", limit: int | None = None, timeout_s: float | None = None
    ) -> Iterator[ConsumerInfo]:
        """Iterate over consumers and work queues, ascending by name; pages by itself. For one thread."""
        pages = ConsumersPages(prefix, after, limit)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("consumers", arguments, timeout_s))

    def remove_consumer(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a consumer or a work queue, and what it remembers, for good; messages stay."""
        self.ask("consumer_remove", named(name), timeout_s, changes=True)

    def pause_consumer(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Give out nothing until `resume_consumer`, also over restarts. What is under way can be settled."""
        return self._pause_consumer(name, True, timeout_s)

    def resume_consumer(self, name: str, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Give out jobs again."""
        return self._pause_consumer(name, False, timeout_s)

    def _pause_consumer(self, name: str, paused: bool, timeout_s: float | None) -> ConsumerInfo:
        arguments = {**named(name), "paused": paused}
        return consuming.decode_info(self.ask("consumer_pause", arguments, timeout_s, changes=True))

    def reset_consumer(self, name: str, start: Start, *, timeout_s: float | None = None) -> ConsumerInfo:
        """Go on somewhere else: what is behind it is done, what is before it comes (again), and leases are void."""
        filters = self.consumer_info(name, timeout_s=timeout_s).settings.filters
        arguments = consuming.pack_reset(name, start_of(filters, start))
        return consuming.decode_info(self.ask("consumer_reset", arguments, timeout_s, changes=True))

    def peek(self, name: str, limit: int = 100, *, timeout_s: float | None = None) -> list[WaitingJob]:
        """Answer jobs that are not done, the next ones first, without taking them; at most `limit`, 1 to 1,000."""
        arguments = {**named(name), "limit": limit}
        return list(consuming.decode_waiting(self.ask("consumer_peek", arguments, timeout_s)))

    def purge(self, name: str, *, timeout_s: float | None = None) -> int:
        """Have everything done that there is up to now; answer how many jobs waited."""
        return control.take_int(self.ask("consumer_purge", named(name), timeout_s, changes=True), "count")

    def redrive(self, name: str, limit: int | None = None, *, timeout_s: float | None = None) -> int:
        """Publish a queue's dead letters to their channels again, at most `limit`; answer how many."""
        arguments = {**named(name), "limit": limit}
        return control.take_int(self.ask("consumer_redrive", arguments, timeout_s, changes=True), "count")

    # .. asking ..

    def stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Answer the broker's own figures."""
        figures = self.ask("stats", {}, timeout_s).get("stats")
        return figures if isinstance(figures, dict) else {}

    def channel(self, name: str, *, timeout_s: float | None = None) -> ChannelInfo:
        """Answer what a channel holds.

        Raises:
            BrokerError: INVALID_CHANNEL, NO_PROFILE, DENIED; TIMEOUT.
        """
        check_channel(name)
        fields = self.ask("channel", {"name": name}, timeout_s)
        return ChannelInfo(fields["epoch"], fields["first"], fields["head"], Level(fields["level"]))

    def history(
        self,
        channel: str,
        *,
        since: HistorySince = None,
        until: HistoryUntil = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout_s: float | None = None,
    ) -> History:
        """Read what is stored of a channel, or of what a pattern selects, as `broker.bus.Bus.history` does.

        Args:
            channel, since, until, limit, reverse: As there.
            timeout_s: How long to wait for each page.

        Returns:
            The read, to be iterated by one thread; nothing is asked for before.

        Raises:
            InvalidChannel, InvalidPattern: It is no name.
            RequestError: INVALID_POSITION; the bounds do not fit the name.
        """
        return History(self, make_pages(channel, since, until, limit, reverse), timeout_s)

    def channels(
        self,
        prefix: str = "",
        *,
        after: str = "",
        limit: int | None = None,
        details: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[ListedChannel]:
        """Iterate over the names of stored channels, ascending by bytes; pages by itself.

        Args:
            prefix: What the names begin with; any text, whole tokens or not.
            after: Only names greater than this.
            limit: At most so many, from 1.
            details: Say of each what it holds.
            timeout_s: How long to wait for each page.

        Returns:
            The names, for one thread.

        Raises:
            BrokerError: From the iteration: DENIED, a storage error; TIMEOUT.
        """
        pages = NamesPages(prefix, after, limit, details=details)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("channels", arguments, timeout_s))

    def trim(self, name: str, first: int, *, timeout_s: float | None = None) -> int:
        """Take the messages before a sequence out of a channel, for good; return the oldest that it has now.

        Args:
            name: The channel's name.
            first: The oldest sequence to keep, from 1 to one past the newest.

        Raises:
            BrokerError: DENIED, INVALID_POSITION, or a storage error; COMMIT_UNKNOWN when no answer came in time.
        """
        check_channel(name)
        fields = self.ask("trim", requests.pack_query(Trim(name, first)), timeout_s, changes=True)
        return control.take_int(fields, "first")

    def remove(self, name: str, *, timeout_s: float | None = None) -> None:
        """Remove a channel and all that it holds, for good; it is committed on return.

        Raises:
            BrokerError: BUSY while anybody publishes to it or reads it by its name; DENIED, INVALID_CHANNEL, or a
                storage error; COMMIT_UNKNOWN when no answer came in time.
        """
        check_channel(name)
        self.ask("remove", {"name": name}, timeout_s, changes=True)

    def backup(
        self, path: str, on_progress: Callable[[int, int], object] | None = None, *, timeout_s: float | None = None
    ) -> str:
        """Copy everything that is stored at this moment, while the broker serves on; return what came of it.

        Args:
            path: An absolute path on the broker's machine, of a folder that is missing or empty.
            on_progress: Called with (bytes done, bytes in all) now and then, by this thread.
            timeout_s: How long all of it may take; None: as long as it takes.

        Raises:
            BrokerError: BUSY, other long work is under way; DENIED; STORAGE_FAILED, with what went wrong; TIMEOUT, and
                then it goes on.
        """
        return self._finish("backup", {"path": path}, on_progress, timeout_s)

    def compact(
        self, on_progress: Callable[[int, int], object] | None = None, *, timeout_s: float | None = None
    ) -> str:
        """Give the disk back what was trimmed, expired or removed, so that no file holds it any more.

        Args:
            on_progress, timeout_s: As for `backup`.

        Raises:
            BrokerError: As for `backup`.
        """
        return self._finish("compact", {}, on_progress, timeout_s)

    def _finish(
        self,
        operation: str,
        arguments: Mapping[str, object],
        on_progress: Callable[[int, int], object] | None,
        timeout_s: float | None,
    ) -> str:
        """Begin long work and ask how far it is until it has ended."""
        deadline = Deadline(timeout_s)
        begun = self.ask(operation, arguments, changes=True)
        pause_s = TASK_POLL_S_MIN
        while True:
            task = self.ask("task", {"id": begun["id"]})
            if on_progress is not None:
                on_progress(task["done"], task["total"])
            if task["state"] == "done":
                return str(task["detail"])
            if task["state"] != "running":
                raise error("STORAGE_FAILED", f"{operation}: {task['detail']}")
            if deadline.left_s() == 0:
                raise deadline.passed(operation, "not done", "It goes on at the broker, which takes one at a time.")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, TASK_POLL_S_MAX)

    def ask(
        self,
        operation: str,
        arguments: Mapping[str, object],
        timeout_s: float | None = None,
        *,
        changes: bool = False,
    ) -> dict[str, Any]:
        """Send a request and wait for its answer; waits for a connection first.

        Args:
            operation, arguments: What the specification (§13) says.
            timeout_s: How long to wait; None for the bus' own timeout.
            changes: It changes something, so that without an answer its outcome is unknown.
        """
        return self.ask_by(self._deadline(timeout_s), operation, arguments, changes=changes)

    def ask_by(
        self, deadline: Deadline, operation: str, arguments: Mapping[str, object], *, changes: bool = False
    ) -> dict[str, Any]:
        """The same, until a deadline that several requests may share."""
        self._wait_connected(deadline)
        answer = Answer()
        number = 0
        try:
            with self.lock:
                # Lost again: what waits for an answer on the way is told so in the same words.
                if self._connection is None:
                    raise self._closed or error("CONNECTION_LOST", "request: the connection was lost")
                number = self._send_request(self._connection, operation, arguments, answer)
            if not answer.wait(deadline.left_s()):
                raise error(
                    "COMMIT_UNKNOWN" if changes else "TIMEOUT",
                    f"{operation}: no answer within {deadline.timeout_s:g} s",
                    "Look at what became of it before repeating it." if changes else "",
                )
            return cast("dict[str, Any]", answer.fields())
        finally:
            with self.lock:
                self._requests.pop(number, None)

    def ping(self, *, timeout_s: float | None = None) -> float:
        """Ask the server for a sign of life; return how long it took to come, in seconds.

        Raises:
            BrokerError: TIMEOUT; CONNECTION_LOST.
        """
        deadline = self._deadline(timeout_s)
        self._wait_connected(deadline)
        waiter, token = Waiter(), next(self._counter)
        began_s = time.perf_counter()
        try:
            with self.lock:
                connection = self._connection
                if connection is None:
                    raise self._closed or error("CONNECTION_LOST", "ping: the connection was lost")
                self._pings[token] = waiter
                connection.send(control.encode_ping(token))
            if not waiter.wait(deadline.left_s()):
                raise deadline.passed("ping", "no answer")
            if token in self._pings:  # `on_pong` takes it out
                raise error("CONNECTION_LOST", "ping: the connection was lost")
            return time.perf_counter() - began_s
        finally:
            with self.lock:
                self._pings.pop(token, None)

    def on_pong(self, token: int) -> None:
        """A ping was answered."""
        waiter = self._pings.pop(token, None)
        if waiter is not None:
            waiter.set_result()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def _wait_connected(self, deadline: Deadline) -> None:
        while True:
            with self.lock:
                self._check_open()
                if self._connection is not None:
                    return
                waiter = add_waiter(self._waiting)
            if not waiter.wait(deadline.left_s()):
                raise deadline.passed("request", "no connection", "The bus goes on trying: look at the broker.")

    # .. how its callers wait ..

    def _wake_drainers(self) -> None:
        if self._drainers:
            wake(self._drainers)

    def _wake_connected(self) -> None:
        wake(self._waiting)

    def call_soon(
        self, function: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> None:
        """Call a function before the lock is given up: what the publish buffer has of a loop."""
        self._soon.append((function, args, context))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Take what a callback of a publication raised: none of ours does."""
        raise AssertionError(context["message"]) from context["exception"]

    def _run_soon(self) -> None:
        while self._soon:
            function, args, context = self._soon.pop(0)
            if context is None:
                function(*args)
            else:
                context.run(function, *args)

    def call_outside(self, function: Callable[..., object], *args: object) -> None:
        """Have the application's function called by the reader, without the lock."""
        self._outside.append((function, args))

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Have a function called by the reader, with the lock. Only the reader asks for it."""
        self._timers.append((time.monotonic() + delay_s, next(self._counter), function))
        self._timers.sort(reverse=True)

    # .. the reader ..

    def _read(self, connection: Connection) -> None:
        """Keep the bus connected."""
        following: Connection | None = connection
        while following is not None:
            try:
                failure = self._converse(following)
            except BaseException as bug:
                with self.lock:
                    following.finish(bug)
                raise
            following = self._reconnect(failure)

    def _converse(self, connection: Connection) -> BrokerError:
        """Read until the connection ends; returns why."""
        turn = 0
        # Coming back may have told subscriptions something already.
        self._call_application()
        while True:
            failure = None
            try:
                received = connection.receive()
            except OSError as lost:
                received, failure = memoryview(b""), lost
            with self.lock:
                now_s = time.monotonic()
                if received is None:
                    connection.wait_at_most(min(connection.keep_alive(now_s), QUIET_S_MAX))
                elif received:
                    connection.feed(received, now_s)
                if self._timers:
                    self._run_timers(connection, now_s)
                reason = None
                if received is not None and not received:
                    reason = connection.finish(failure)
                    self._disconnected(reason)
                if self._is_kicked:
                    self.send_now()
                self._run_soon()
            if self._outside:
                self._call_application()
            if reason is not None:
                return reason
            turn += len(received) if received else 0
            if turn >= TURN_BYTES:
                turn = 0
                time.sleep(0)

    def _call_application(self) -> None:
        with self.lock:
            outside, self._outside = self._outside, []
        for function, args in outside:
            call_guarded(function, args)

    def _run_timers(self, connection: Connection, now_s: float) -> None:
        while self._timers and self._timers[-1][0] <= now_s:
            self._timers.pop()[2]()
        quiet_s = connection.keep_alive(now_s)
        connection.wait_at_most(min(quiet_s, self._timers[-1][0] - now_s if self._timers else quiet_s))

    def _reconnect(self, failure: BrokerError) -> Connection | None:
        """Connect again, until the bus is closed or refused."""
        while self._closed is None:
            if is_final(failure):
                with self.lock:
                    self._fail(failure)
                break
            delay_s = self._backoff.delay_s(time.monotonic(), failure.retry_after_ms)
            emit("reconnecting", after_s=round(delay_s, 3), code=failure.name, detail=failure.detail)
            if self._stop.acquire(timeout=delay_s):
                break
            try:
                return self._connect()
            except BrokerError as again:
                failure = again
        return None

    def _connect(self) -> Connection:
        """Make a connection and give it everything that waits for one."""
        connection = Connection(self, time.monotonic())
        deadline = Deadline(self._connect_timeout_s)
        try:
            connection.open(dial(self._address, self._connect_timeout_s))
            with self.lock:
                self._opening = connection
                connection.begin(self._hello, *self._ahead(connection))
            welcome = self._shake_hands(connection, deadline)
            with self.lock:
                self._opening = None
                self._check_open()
                self._connected(connection, welcome, time.monotonic())
                self._run_soon()
            return connection
        except BaseException as failure:
            with self.lock:
                self._opening = None
                connection.finish(failure)
                told = self._failed_to_connect(connection, failure)
            if isinstance(failure, TimeoutError):
                told = error("TIMEOUT", f"connecting: no answer within {self._connect_timeout_s:g} s")
            if told is failure:
                raise
            raise told from failure

    def _shake_hands(self, connection: Connection, deadline: Deadline) -> control.Welcome:
        while True:
            left_s = deadline.left_s()
            if left_s == 0:
                raise TimeoutError
            connection.wait_at_most(left_s or QUIET_S_MAX)
            failure = None
            try:
                received = connection.receive()
            except OSError as lost:
                # Why, the server may have said before.
                received, failure = memoryview(b""), lost
            if received is None:
                continue
            with self.lock:
                connection.feed(received, time.monotonic())
                if connection.ended or not received:
                    raise connection.finish(failure)
                if connection.welcome is not None:
                    connection.wait_at_most(connection.welcome.ping_s or QUIET_S_MAX)
                    return connection.welcome

    # .. the writer ..

    def _schedule_pump(self) -> None:
        # Whoever has the lock looks at it before it gives it up.
        self._is_kicked = True

    def on_full(self, connection: Connection) -> None:
        """The connection has a backlog."""
        self._full = connection
        self._wake_writer()

    def on_writable(self) -> None:
        """The connection takes bytes again."""
        self._pump()

    def _wake_writer(self) -> None:
        if self._is_woken:
            return
        self._is_woken = True
        self._work.release()
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._guarded, args=(self._write,), name="broker writer", daemon=True
            )
            self._writer.start()

    def _write(self) -> None:
        """Send what nobody waits for, and what could not be sent at once."""
        while True:
            self._work.acquire()
            with self.lock:
                self._is_woken = False
                if self._closed is not None:
                    return
                self._pump()
                full, self._full = self._full, None
            if full is not None:
                self._send_backlog(full)

    def _send_backlog(self, connection: Connection) -> None:
        while True:
            with self.lock:
                piece = connection.next_piece()
            if piece is None:
                return
            sent, failure = 0, None
            try:
                sent = connection.send_piece(piece)
            except OSError as lost:
                failure = lost
            except BaseException as bug:
                with self.lock:
                    connection.sent_piece(0, bug)
                raise
            with self.lock:
                connection.sent_piece(sent, failure)

    # .. the end ..

    def _disconnected(self, failure: BrokerError) -> None:
        super()._disconnected(failure)
        # They find their token still there.
        wake(list(self._pings.values()))

    def _fail(self, failure: BrokerError) -> None:
        """End for good: everybody who waits, and who will, is told why."""
        if self._closed is not None:
            return
        for connection in (self._connection, self._opening):
            if connection is not None:
                connection.abort(failure)
        self._give_up(failure)
        self._run_soon()
        self._stop.release()
        if self._writer is not None:
            self._wake_writer()

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait until everything posted is answered, then end. Calling it again does nothing.

        Args:
            timeout_s: How long to wait; what is unanswered then fails, with COMMIT_UNKNOWN if it was sent.

        Raises:
            BrokerError: A message that was posted and waited for by nobody was refused, or its outcome is unknown.
        """
        deadline = Deadline(timeout_s)
        try:
            while (waiter := self._unanswered()) is not None:
                if not waiter.wait(deadline.left_s()):
                    emit("closed_unanswered", messages=self._buffer.records_unanswered)
                    break
        finally:
            self._end()
        with self.lock:
            if not self._is_forked:
                self._raise_failure()

    def _unanswered(self) -> Waiter | None:
        """Return who is woken by the next answers; None when there is nothing to wait for."""
        with self.lock:
            if self._closed is not None or not self._is_unanswered():
                return None
            self._pump()
            return add_waiter(self._drainers)

    def _end(self) -> None:
        with self.lock:
            self._fail(error("CLOSED", "the bus is closed", "Open or connect a new one."))
        for thread in (self._reader, self._writer):
            # One that still connects ends by itself.
            if thread is not None and thread is not threading.current_thread():
                thread.join(JOIN_S)

    def on_forked(self) -> list[int]:
        """This is a child process, and the bus is its parent's.

        Its threads are not here, and one of them may have had the lock. Nothing of it is touched any more.

        Returns:
            The descriptor of the socket, if there is one.
        """
        self.lock = threading.Lock()
        self._is_forked = True
        failure = error("FORKED", "the bus was opened in the parent of this process", "open it again in this process")
        connection, self._connection = self._connection or self._opening, None
        self._reader = self._writer = None
        for kept in list(self._subscriptions):
            cast("Subscription | Consumer", kept).on_forked(failure)
        self._closed = self._closed or failure
        return [] if connection is None else connection.descriptors()


def call_guarded(function: Callable[..., object], args: tuple[object, ...]) -> None:
    """Call the application's function: what it raises is its own, and ends no thread of ours."""
    try:
        function(*args)
    except Exception:
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def connect(url: str, **options: Any) -> Client:
    """Connect to a broker: `bus = connect(url)`, or `with connect(url) as bus`.

    Args:
        url: `broker://host:port` or `broker+unix:///path`.
        options: As for `Client`.

    Raises:
        ConfigError: ADDRESS; the URL is none.
        BrokerError: There is no server, or it refuses us.
    """
    address = parse_url(url)
    try:
        return Client(address, **options).start()
    except BrokerError as failure:
        raise type(failure)(failure.code, f"{address}: {failure.detail}", failure.hint, failure.name) from (
            failure.__cause__
        )
