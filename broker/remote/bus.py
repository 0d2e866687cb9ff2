"""What a bus keeps from one connection to the next, and what each answer of the server means for it.

What belongs to a connection dies with it; what belongs to the bus is here: the publishes that are not answered, the
subscriptions with their places, the requests that wait, the producer's identity. A new connection therefore needs one
round trip: HELLO is answered with the highest number of the producer's line, and then everything is asked for and sent
again at once.

All of it belongs to whoever has the bus at the moment: one loop, or the thread that holds its lock. How callers wait,
and who makes connections, is left to the classes that are made of it.
"""

from __future__ import annotations

import random
import secrets
import ssl
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from broker._version import __version__
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.model.positions import BusPosition, Position
from broker.remote import forked
from broker.remote.asking import Asking
from broker.remote.consumer import RemoteConsumer
from broker.remote.conversation import Conversation
from broker.remote.reconnect import Backoff, BackoffPolicy, LineKnowledge, is_final
from broker.remote.tls import tls_failed
from broker.wire import control
from broker.wire.kinds import PRODUCER_BYTES
from broker_native.messages import set_types
from broker_native.posting import PublishBuffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    Token: TypeAlias = str | Callable[[], str | Awaitable[str]] | None

    from broker.remote.consumer import Told
    from broker.remote.subscription import Kept

MIB: Final = 1024 * 1024

UNANSWERED_BYTES_MAX: Final = 64 * MIB
"""Past this `post` raises BUSY."""
DRAIN_BYTES_HIGH: Final = 8 * MIB
"""`drain` waits when more is unanswered…"""
DRAIN_BYTES_LOW: Final = 4 * MIB
"""…until no more than this is."""
DRAIN_BYTES_SEND: Final = 64 * 1024
"""`drain` sends at once when so much has gathered."""
BLOCK_BYTES: Final = 256 * 1024
AHEAD_BYTES_MAX: Final = 16 * 1024
"""What is sent behind HELLO without waiting for WELCOME: no more than a HELLO may be, since a server that has to wait
for something keeps it for a peer of which it knows nothing yet. Every server takes a frame of that size."""
CONNECT_TIMEOUT_S: Final = 10.0
TASK_POLL_S_MIN: Final = 0.01
TASK_POLL_S_MAX: Final = 0.5
RENEW_S: Final = 60.0
"""A token is renewed so long before it ends, or when a fifth of its time is left, whichever is later."""
RENEW_RETRY_S: Final = 1.0
"""When that came to nothing it is tried again after so long."""
CLIENT_NAME: Final = f"broker-py {__version__}"

# What becomes of a publish that is refused, see PublishBuffer.refuse.
FOR_GOOD, FOR_ITS_NUMBER, FOR_ONE_RECORD = 0, 1, 2
VERDICTS: Final = {
    "NUMBER_GAP": FOR_ITS_NUMBER,
    "PAYLOAD_TOO_LARGE": FOR_ONE_RECORD,
    "HEADERS_TOO_LARGE": FOR_ONE_RECORD,
    "INVALID_RECORD": FOR_ONE_RECORD,
    "INVALID_ID": FOR_ONE_RECORD,
    "NOT_STORED": FOR_ONE_RECORD,
}

set_types(position=Position, bus_position=BusPosition, level=Level)


def renew_after_s(expires_s: float) -> float:
    """Return after how many seconds to renew a token that is good for so many."""
    return expires_s - min(RENEW_S, expires_s / 5)


def token_failed(failure: BaseException) -> BrokerError:
    """Return the error for a token that its callable does not give. What that said may have the secret in it."""
    if isinstance(failure, BrokerError):
        return failure
    return error(
        "UNAVAILABLE",
        f"token: what should give one failed with {type(failure).__name__}",
        "See why it fails; it is called again.",
    )


class Answer(Protocol):
    """What a request's asker waits for: a future, of a loop or of a thread."""

    def done(self) -> bool:
        """Whether there is an answer already, or nobody waits any more."""

    def set_result(self, fields: Any, /) -> None:
        """This is the answer."""

    def set_exception(self, failure: BrokerError, /) -> None:
        """There is none, and this is why."""


ConversationT = TypeVar("ConversationT", bound=Conversation)


class RemoteBus(ABC, Generic[ConversationT]):
    """A bus over connections that somebody makes.

    Args:
        loop: What runs the callbacks of publications: it has `call_soon`.
        backoff: How long to wait between attempts.
        connect_timeout_s: How long connecting and the handshake may take.
        unanswered_bytes_max: Bytes of publishes that may be unanswered; past it `post` raises BUSY.
        token: What the server is to know us by, or what gives one: it is called for each connection, and again before
            what it gave ends.
        name: What the server's log calls us.
        producer: 16 bytes, whose line the publishes are numbered on; None draws one, and no bytes are for a line that
            ends with the connection, of which the broker remembers nothing.
    """

    def __init__(
        self,
        loop: Any,
        *,
        backoff: BackoffPolicy | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        unanswered_bytes_max: int = UNANSWERED_BYTES_MAX,
        token: Token = None,
        name: str = CLIENT_NAME,
        producer: bytes | None = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._backoff = Backoff(backoff or BackoffPolicy(), random.random)
        self._token = token
        self._name = name
        self._producer = secrets.token_bytes(PRODUCER_BYTES) if producer is None else producer
        self._buffer = PublishBuffer(
            loop,
            error=error,
            check_channel=check_channel,
            pack_headers=control.pack_headers,
            kick=self._schedule_pump,
            bytes_max=unanswered_bytes_max,
        )
        self._connection: ConversationT | None = None
        self._welcome: control.Welcome | None = None
        self._leaving: control.GoingAway | None = None  # the server drains: send nothing new on this connection
        self._asks_ahead = True
        self._closed: BrokerError | None = None
        self._subscriptions: dict[Kept, None] = {}
        self._numbers: dict[int, Kept] = {}
        self._settling: dict[RemoteConsumer, None] = {}  # they have said something that was not sent
        self._last_number = 0
        self._asking = Asking(self._schedule_pump)
        self._requests: dict[int, Answer] = {}
        self._last_request = 0
        forked.watch(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connection else "reconnecting"
        return f"<{type(self).__name__} {state}, {self._buffer.records_unanswered} messages unanswered>"

    @property
    def highest(self) -> int:
        """The highest number of the producer's line that the broker had when the bus was last connected."""
        return self._welcome.highest if self._welcome is not None else 0

    @property
    def journal(self) -> bytes:
        """Identity of the journal of the server that we were connected to last."""
        return self._welcome.journal if self._welcome is not None else b""

    @abstractmethod
    def on_forked(self) -> list[int]:
        """This is a child process, and the bus is its parent's: return the descriptors of its socket."""

    # .. how its callers wait ..

    @abstractmethod
    def _schedule_pump(self) -> None:
        """There is something to send, and `_pump` is to be called soon."""

    @abstractmethod
    def _wake_drainers(self) -> None:
        """Some publishes were answered or have failed: wake who waits for that."""

    @abstractmethod
    def _wake_connected(self) -> None:
        """There is a connection, or there will be none: wake who waits for one."""

    # .. publishing ..

    def _pump(self) -> None:
        """Send what has gathered, as much as the connection takes."""
        connection = self._connection
        if connection is None or self._leaving is not None:
            return
        self._asking.pump(connection)
        while connection.writable:
            block = self._buffer.take(BLOCK_BYTES)
            if block is None:
                break
            connection.send(block)
        if self._settling and connection.writable:
            settling, self._settling = self._settling, {}
            for consumer in settling:
                consumer.send(connection)

    def _raise_failure(self) -> None:
        failed = self._buffer.take_failure()
        if failed is not None:
            failure, count = failed
            hint = failure.hint
            if count > 1:
                hint += f" It is the first of {count} posted messages that failed since the last drain."
            raise type(failure)(failure.code, failure.detail, hint, failure.name) from failure

    # .. subscribing ..

    def add_subscription(self, subscription: Kept) -> None:
        """Keep a subscription on this and every later connection."""
        if self._closed is not None:
            subscription.finish(self._closed)
            return
        self._subscriptions[subscription] = None
        if self._connection is not None:
            subscription.attach(self._connection)

    def remove_subscription(self, subscription: Kept, number: int) -> None:
        """Forget a subscription that has ended."""
        self._subscriptions.pop(subscription, None)
        self.forget_number(number)

    def next_number(self, subscription: Kept) -> int:
        """Return a number that this connection has not used for a subscription."""
        self._last_number += 1
        self._numbers[self._last_number] = subscription
        return self._last_number

    def forget_number(self, number: int) -> None:
        """Pass over what the server still says of this number."""
        self._numbers.pop(number, None)

    # .. consuming ..

    def settle_soon(self, consumer: RemoteConsumer) -> None:
        """Have a consumer send what it has said, behind the publishes of this turn."""
        self._settling[consumer] = None
        self._schedule_pump()

    def settled_all(self) -> None:
        """Nothing that a consumer has said is unanswered any more."""
        self._wake_drainers()
        self._leave_if_answered()

    def tell(self, operation: str, arguments: Mapping[str, object], answer: Told) -> bool:
        """Send a request whose answer nobody waits for in a call; answers whether there is a connection for it."""
        if self._connection is None:
            return False
        self._send_request(self._connection, operation, arguments, answer)
        return True

    @property
    def _is_settling(self) -> bool:
        """Whether a connection owes an answer to what a consumer has said."""
        return any(isinstance(each, RemoteConsumer) and each.in_flight for each in self._subscriptions)

    def _is_unanswered(self) -> bool:
        """Whether anything that was published, or said of jobs, is not answered."""
        return bool(self._buffer.records_unanswered) or any(
            isinstance(each, RemoteConsumer) and each.unanswered for each in self._subscriptions
        )

    # .. asking ..

    def _send_request(
        self, connection: ConversationT, operation: str, arguments: Mapping[str, object], answer: Answer
    ) -> int:
        """Send a request; returns its number, under which `_requests` has the answer until the asker takes it out."""
        self._last_request = self._last_request % 0xFFFFFFFF + 1
        number = self._last_request
        self._requests[number] = answer
        connection.send(control.encode_request(number, operation, arguments))
        return number

    # .. the connection ..

    def _hello(self, token: str | None) -> bytes:
        """Return the frame that begins a conversation."""
        return control.encode_hello(self._name, self._producer or None, token)

    def _is_final(self, failure: BaseException) -> bool:
        """Whether connecting again is of no use. Whoever can get a fresh token does so when one has ended."""
        fresh = callable(self._token) and isinstance(failure, BrokerError) and failure.name == "TOKEN_EXPIRED"
        return is_final(failure) and not fresh

    def _ahead(self, connection: ConversationT) -> tuple[Callable[[], bool] | None, bytes]:
        """What to do behind HELLO, and for which journal: see `Conversation.begin`.

        Subscriptions that were there before are asked for in the same breath, as far as there is room. So a bus that
        comes back to the journal that it knows is live after one round trip.
        """
        if self._welcome is None or not self._asks_ahead:
            return None, b""
        return lambda: self._ask_ahead(connection), self._welcome.journal

    def _ask_ahead(self, connection: ConversationT) -> bool:
        left = AHEAD_BYTES_MAX
        for subscription in list(self._subscriptions):
            left -= subscription.attach_ahead(connection, left)
        return left < AHEAD_BYTES_MAX

    def _failed_to_connect(self, connection: ConversationT, failure: BaseException) -> BaseException:
        """The connection came to nothing; returns the error to raise. What was asked for ahead has no answer."""
        self._detach()
        self._leaving = None
        self._asks_ahead = not connection.journal_changed
        if isinstance(failure, ssl.SSLError):
            return tls_failed(failure)
        if isinstance(failure, OSError):
            return error("CONNECTION_LOST", f"connecting: {failure}", "is the broker running?")
        return failure

    def _connected(self, connection: ConversationT, welcome: control.Welcome, now_s: float) -> None:
        """There is a connection: give it everything that waits for one."""
        self._asks_ahead = True
        self._backoff.connected(now_s)
        self._connection = connection
        self._resume(connection, welcome)
        self._wake_connected()
        # The server may have begun to drain in the same breath in which it took us in.
        self._leave_if_answered()

    def _detach(self) -> None:
        self._numbers.clear()
        for subscription in self._subscriptions:
            subscription.detach()

    def _resume(self, connection: ConversationT, welcome: control.Welcome) -> None:
        """Go on where the last connection ended: all subscriptions and unanswered publishes, in one go."""
        buffer, previous = self._buffer, self._welcome
        buffer.payload_bytes_max = welcome.limits.payload_bytes_max
        buffer.headers_bytes_max = welcome.limits.headers_bytes_max
        buffer.transaction_bytes_max = welcome.limits.frame_bytes_max
        buffer.channels_max = welcome.limits.channels_max
        unknown = None
        if previous is not None:
            known = LineKnowledge(previous.journal, buffer.synced_highest)
            unknown = known.unknown(welcome)
        self._welcome = welcome
        self._asking.connected(connection, welcome)
        for subscription in list(self._subscriptions):
            subscription.attach(connection)
        buffer.resume(welcome.highest, unknown)
        self._pump()
        self._wake_drainers()

    def _disconnected(self, failure: BrokerError) -> None:
        """The connection has ended; `failure` is told when to come back, if the server has said that before."""
        self._connection = None
        self._buffer.suspend()
        self._detach()
        if failure.retry_after_ms is None and self._leaving is not None:
            failure.retry_after_ms = self._leaving.retry_after_ms
        self._leaving = None
        lost = error("CONNECTION_LOST", f"request: {failure}")
        for request in self._open_requests():
            request.set_exception(lost)
        self._asking.lost(lost)

    def _open_requests(self) -> list[Answer]:
        """Return those that wait for an answer; none is kept, since none will come."""
        requests, self._requests = self._requests, {}
        return [request for request in requests.values() if not request.done()]

    def _give_up(self, failure: BrokerError) -> None:
        """End for good: everybody who waits, and who will, is told why."""
        self._closed = failure
        self._connection = None
        unknown = error("COMMIT_UNKNOWN", f"publishes that were not answered: {failure}")
        self._buffer.close(failure, unknown)
        for subscription in list(self._subscriptions):
            subscription.finish(failure if failure.name != "CLOSED" else None)
        for request in self._open_requests():
            request.set_exception(failure)
        self._asking.lost(failure)
        self._wake_drainers()
        self._wake_connected()

    # .. what a connection hears ..

    def on_published(self, body: bytes) -> None:
        """Publishes were answered."""
        self._buffer.answer(body)
        self._answered()

    def _answered(self) -> None:
        if self._buffer.is_adrift:
            # Every frame in flight was refused for its number: only a new handshake tells which one is due.
            self._break(error("NUMBER_GAP", "publishing: the line's next number is not known any more"))
        else:
            self._wake_drainers()
        self._leave_if_answered()

    def _leave_if_answered(self) -> None:
        """Leave a server that drains, once it owes nothing."""
        if self._leaving is not None and not self._buffer.in_flight and not self._is_settling:
            self._break(error("GOING_AWAY", "the server drains", retry_after_ms=self._leaving.retry_after_ms))

    def on_refusal(self, refusal: control.Refusal) -> None:
        """Something was refused."""
        failure = refusal.failure
        if refusal.number is not None:
            self._on_publish_refused(refusal.number, refusal.count or 1, failure)
        elif refusal.asked is not None:
            self._asking.on_refused(refusal.asked, refusal.count or 1, failure)
        elif refusal.replied is not None:
            self._asking.on_reply_refused(refusal.count or 1)
        elif refusal.channel is not None:
            self._buffer.refuse_channel(refusal.channel, failure)
        elif refusal.subscription is not None:
            subscription = self._numbers.get(refusal.subscription)
            if refusal.ack is not None:
                if isinstance(subscription, RemoteConsumer):
                    subscription.on_ack_refused(refusal)
            elif subscription is not None:
                subscription.on_refused(failure)
        else:
            request = self._requests.pop(refusal.request or 0, None)
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

    def on_jobs(self, body: bytes) -> None:
        """Jobs of a consumer have come."""
        consumer = self._consumer_of(body)
        if consumer is not None:
            consumer.on_jobs(body)

    def on_acked(self, body: bytes) -> None:
        """What a consumer has said is settled."""
        consumer = self._consumer_of(body)
        if consumer is not None:
            consumer.on_acked(body)

    def _consumer_of(self, body: bytes) -> RemoteConsumer | None:
        """Return whose a frame is that begins with a subscription's number; None of one that was given up."""
        kept = self._numbers.get(int.from_bytes(body[:4], "little"))
        return kept if isinstance(kept, RemoteConsumer) else None

    def on_reply(self, request: int, fields: dict[str, Any]) -> None:
        """A request was answered."""
        answer = self._requests.pop(request, None)
        if answer is not None and not answer.done():
            answer.set_result(fields)

    def on_pong(self, token: int) -> None:
        """A ping was answered: any byte shows that the server lives, so nobody need know which."""

    def on_going_away(self, notice: control.GoingAway) -> None:
        """The server drains: send nothing new, take the answers that are due, and connect again."""
        self._leaving = notice
        self._answered()
