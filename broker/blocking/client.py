"""The client of threads: all that `Client` does for a program, over `broker.blocking.bus`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from broker.blocking.consumer import Consumer
from broker.blocking.pipeline import Pipeline, check_plain
from broker.blocking.publishing import Publishing
from broker.blocking.questions import Questions
from broker.blocking.subscription import Subscription
from broker.blocking.waiting import Answer, Deadline
from broker.blocking.workers import Workers
from broker.bus import CREDIT_BYTES_DEFAULT, GRACE_S, PIPELINE_BYTES, PIPELINE_JOBS, REQUEST_TIMEOUT_S
from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT
from broker.model.errors import BrokerError, error, located
from broker.remote.address import parse_url
from broker.remote.asking import late
from broker.remote.pipeline import pipeline_of
from broker.remote.workers import worker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.bus import FunctionT, Payload, Start, SubscriptionEvent
    from broker_native.messages import Batch, Message
    from broker_native.work import Job


class Client(Publishing, Questions):
    """A bus over a connection that it keeps, repairs and resumes. Use `connect`.

    All methods may be called from any thread, any number at once. What one thread publishes to one channel is stored
    and delivered in the order of its calls.

    Args:
        address: Where the server is.
        timeout_s: How long a call waits that is not told; None: for ever.
        tls: With a `TlsAddress`: a context, or a PEM file of those who sign the server's certificate.
        options: `backoff`, `connect_timeout_s`, `unanswered_bytes_max`, `token`, `name` and `producer`, as for
            `RemoteBus`.
    """

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


def connect(url: str, **options: Any) -> Client:
    """Connect to a broker: `bus = connect(url)`, or `with connect(url) as bus`.

    Args:
        url: `broker://host:port`, `broker+tls://host:port` or `broker+unix:///path`.
        options: As for `Client`.

    Raises:
        ConfigError: ADDRESS; the URL is none. INVALID_CONFIG; a certificate cannot be used.
        BrokerError: There is no server, or it refuses us.
    """
    address = parse_url(url)
    try:
        return Client(address, **options).start()
    except BrokerError as failure:
        raise located(failure, str(address)) from failure.__cause__
