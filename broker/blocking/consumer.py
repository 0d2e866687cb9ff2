"""A member of a consumer whose readers are threads. What it is and how it goes on: `broker.remote.consumer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from broker.blocking.reading import Reader, Stream
from broker.blocking.waiting import Deadline, Waiter, add_waiter, wake
from broker.remote.consumer import RemoteConsumer
from broker_native.work import JobCursor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.blocking.client import Client
    from broker.bus import SubscriptionEvent
    from broker.model.errors import BrokerError
    from broker_native.work import Job, JobBatch
    from broker_native.work import Settled as Outcome

__all__ = ["Consumer", "Settled"]


class Settled:
    """What will become of something that was said of jobs: asked for with `result`, by any thread, if one likes.

    Args:
        consumer: Who has said it.
        outcome: What the answer fills in.
    """

    __slots__ = ("_consumer", "_outcome")

    def __init__(self, consumer: Consumer, outcome: Outcome) -> None:
        self._consumer = consumer
        self._outcome = outcome

    def done(self) -> bool:
        """Whether it is answered."""
        return self._outcome.done()

    def result(self, timeout_s: float | None = None) -> None:
        """Wait until it is committed.

        Args:
            timeout_s: How long; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: It was refused: LEASE_UNKNOWN, LEASE_EXPIRED, COMMIT_UNKNOWN; TIMEOUT, and it is under way.
        """
        self._consumer.wait(self._outcome, timeout_s)


class Consumer(Reader, RemoteConsumer):
    """A member of a durable consumer or a work queue: jobs come, and each is to be settled. Use `Client.consume`.

    Any number of threads may read it and settle its jobs at once: each job goes to one of them. `job.ack()` returns at
    once, and what was said leaves soon; `job.ack().result()` waits until it is committed. What was acknowledged is told
    again on the next connection if this one is lost; what was under way may come again, marked as redelivered.

    Leaving its `with` block waits for what was said, and gives the rest back.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        window: int,
        window_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
    ) -> None:
        super().__init__(client, name, window, window_bytes, on_event)
        self._set_up(client, f"consumer {name}")
        self._settle = self._say
        self._flushers: list[Waiter] = []

    # .. reading ..

    def __iter__(self) -> Iterator[Job]:
        """Iterate over jobs. Ends when the member or the bus is closed.

        Raises:
            BrokerError: From the iteration: CONSUMER_TAKEN; the consumer was removed; the bus has failed for good.
        """
        return self.jobs()

    def jobs(self, timeout_s: float | None = None) -> Iterator[Job]:
        """The same, and it ends as well when no job has come for so long; None: never."""
        return Stream(self._read_job, timeout_s)

    def batches(self, timeout_s: float | None = None) -> Iterator[JobBatch]:
        """Iterate over batches of jobs as they came, the fastest way: `ack` of one acknowledges all of it.

        Args:
            timeout_s: It ends as well when none has come for so long; None: never.
        """
        return Stream(self._read_batch, timeout_s)

    def next(self, timeout_s: float | None = None) -> Job | None:
        """Return the next job; None when none comes in time.

        Args:
            timeout_s: How long to wait, 0 for what is at hand; None for the bus' own timeout.

        Raises:
            BrokerError: CLOSED; the member or the bus is closed, or has failed for good.
        """
        return self._next(self._read_job, timeout_s)

    def next_batch(self, timeout_s: float | None = None) -> JobBatch | None:
        """Return the next batch; None when none comes in time. As `next` otherwise."""
        return self._next(self._read_batch, timeout_s)

    def _read_job(self, timeout_s: float | None) -> Job | None:
        return cast("Job | None", self._take(False, timeout_s))

    def _read_batch(self, timeout_s: float | None) -> JobBatch | None:
        return cast("JobBatch | None", self._take(True, timeout_s))

    # .. settling ..

    def _say(self, batch: JobBatch, index: int, count: int, verb: int, ms: int) -> Settled:
        """What jobs and batches call when something is said of them."""
        with self._client.lock:
            outcome = self._settling.say(batch, index, count, verb, ms)
            self._client.send_soon()
        return Settled(self, outcome)

    def ack_through(self, job: Job) -> Settled:
        """Say that a job is done, and everything that this member was given before it."""
        with self._client.lock:
            outcome = self.through(job)
            self._client.send_soon()
        return Settled(self, outcome)

    def stop(self) -> None:
        """Hand out nothing any more: iterations end. What was handed out can be settled until it is closed."""
        with self._client.lock:
            super().stop()

    def wait(self, outcome: Outcome, timeout_s: float | None) -> None:
        """Send what was said, and wait until it is committed; see `Settled.result`."""
        deadline = Deadline(self._client.timeout_s if timeout_s is None else timeout_s)
        waiter = Waiter()
        with self._client.lock:
            self._client.send_now()
            outcome.add_waiter(waiter)
        if not waiter.wait(deadline.left_s()):
            raise deadline.passed(self._title, "no answer to what was said of a job", "It is still under way.")
        failure = outcome.exception()
        if failure is not None:
            raise failure

    def flush(self, *, timeout_s: float | None = None) -> None:
        """Wait until everything that was said is answered. What was refused is told by events.

        Raises:
            Unavailable: TIMEOUT; it is still under way.
        """
        deadline = Deadline(self._client.timeout_s if timeout_s is None else timeout_s)
        while (waiter := self._flusher()) is not None:
            if not waiter.wait(deadline.left_s()):
                raise deadline.passed(self._title, "no answer to what was said of jobs", "It is still under way.")

    def _flusher(self) -> Waiter | None:
        """Return who is woken when everything is answered; None when it is."""
        with self._client.lock:
            if self._closed or not self.unanswered:
                return None
            self._client.send_now()
            return add_waiter(self._flushers)

    def _wake_flushers(self) -> None:
        wake(self._flushers)

    # .. the end ..

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait until what was said is answered, and stop; what is not settled is given to others.

        Args:
            timeout_s: How long to wait.
        """
        deadline = Deadline(timeout_s)
        self.stop()
        while (waiter := self._flusher()) is not None and waiter.wait(deadline.left_s()):
            pass
        with self._client.lock:
            self.end()

    def on_forked(self, failure: BrokerError) -> None:
        """This is a child process, and the member is its parent's, with all that it has received."""
        self._cursor: Any = JobCursor(None)
        self._closed = True
        self._failure = failure
        self._connection = None
