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
from broker.blocking.waiting import Answer, Deadline, Waiter, add_waiter, wake
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.remote.bus import RENEW_RETRY_S, RemoteBus, renew_after_s, token_failed
from broker.remote.tls import context_for
from broker.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from broker.blocking.consumer import Consumer
    from broker.blocking.subscription import Subscription
    from broker.remote.address import Address
    from broker.remote.tls import Trust
    from broker.remote.workers import WorkerSettings

TIMEOUT_S: Final = 10.0
TURN_BYTES: Final = 256 * 1024
"""Received bytes after which others get a turn: a greenlet that always finds something to read would let nobody."""
JOIN_S: Final = 1.0
PING_FIRST: Final = 1 << 63
"""Tokens from here on are of `ping`; those of the keep-alive are below."""


class _Renewal:
    """Waits for the answer to a fresh token."""

    def __init__(self, bus: BlockingBus, connection: Connection) -> None:
        self._bus = bus
        self._connection = connection

    def done(self) -> bool:
        return False

    def set_result(self, fields: Any, /) -> None:
        self._bus.on_renewed(self._connection, fields)

    def set_exception(self, failure: BrokerError, /) -> None:
        self._bus.on_renewal_failed(self._connection, failure)


class BlockingBus(RemoteBus[Connection]):
    """A connection that is kept, repaired and resumed, and how threads use it. What `Client` does is made of it.

    All methods may be called from any thread, any number at once. What one thread publishes to one channel is stored
    and delivered in the order of its calls.

    Args:
        address: Where the server is.
        timeout_s: How long a call waits that is not told; None: for ever.
        tls: With a `TlsAddress`: a context, or a PEM file of those who sign the server's certificate.
        options: `backoff`, `connect_timeout_s`, `unanswered_bytes_max`, `token`, `name` and `producer`, as for
            `RemoteBus`.
    """

    def __init__(
        self, address: Address, *, timeout_s: float | None = TIMEOUT_S, tls: Trust = None, **options: Any
    ) -> None:
        self.lock = threading.Lock()
        """Guards everything that this object and its subscriptions have."""
        self.timeout_s = timeout_s
        self._address = address
        self._tls = context_for(address, tls)
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

    # .. what those who call it do first ..

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
            if self._is_final(failure):
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
            hello = self._hello(self._fresh_token())
            connection.open(*dial(self._address, self._connect_timeout_s, self._tls))
            with self.lock:
                self._opening = connection
                connection.begin(hello, *self._ahead(connection))
            welcome = self._shake_hands(connection, deadline)
            with self.lock:
                self._opening = None
                self._check_open()
                self._connected(connection, welcome, time.monotonic())
                self._renew_later(connection, welcome.expires_s)
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

    def _fresh_token(self) -> str | None:
        """Return the token to sign in with. Not with the lock: what gives it may take its time.

        Raises:
            Unavailable: UNAVAILABLE; what should give it failed.
        """
        if not callable(self._token):
            return self._token
        try:
            given = self._token()
        except Exception as failure:
            raise token_failed(failure) from None
        if not isinstance(given, str):
            raise error("INVALID_CONFIG", f"token: what gives it returned {type(given).__name__}, expected a string")
        return given

    def _renew_later(self, connection: Connection, expires_s: float | None) -> None:
        """Renew the token of this connection before it ends, if there is a way to get a fresh one. With the lock."""
        if expires_s is not None and callable(self._token):
            self._renew_in(connection, renew_after_s(expires_s))

    def _renew_in(self, connection: Connection, seconds: float) -> None:
        def begin() -> None:
            if self._connection is connection:
                # A thread of its own: the reader must not wait for what gives tokens.
                threading.Thread(target=self._renew, args=(connection,), name="broker token", daemon=True).start()

        self.call_later(seconds, begin)
        connection.wait_at_most(
            min(seconds, connection.welcome.ping_s or QUIET_S_MAX) if connection.welcome else seconds
        )

    def _renew(self, connection: Connection) -> None:
        """Sign in anew on this connection."""
        while self._connection is connection:
            try:
                token = self._fresh_token()
            except BrokerError as failure:
                # The server ends the connection when its time is over; then the next one gets a fresh token.
                emit("renewal_failed", code=failure.name, detail=failure.detail)
                if self._stop.acquire(timeout=RENEW_RETRY_S):
                    self._stop.release()
                    return
                continue
            with self.lock:
                if self._connection is connection:
                    self._send_request(connection, "sign_in", {"token": token}, _Renewal(self, connection))
            return

    def on_renewed(self, connection: Connection, fields: Mapping[str, Any]) -> None:
        """The server has taken the fresh token. With the lock."""
        if "expires_s" in fields:
            self._renew_later(connection, control.take_number(fields, "expires_s"))

    def on_renewal_failed(self, connection: Connection, failure: BrokerError) -> None:
        """There is no fresh token, or the server has not taken it. With the lock."""
        if self._connection is not connection:
            return
        emit("renewal_failed", code=failure.name, detail=failure.detail)
        self._renew_in(connection, RENEW_RETRY_S)

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
