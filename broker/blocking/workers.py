"""Functions that do the jobs of work queues, in threads or greenlets: started together, stopped in good order.

A worker is a member of its queue with as many threads as it may run at once. A function that returns has done its job;
one that raises has failed, and the job comes again after the queue's back-off. While a function runs, its job's lease
is extended. A thread cannot be cancelled: a function that goes on when the workers are stopped loses its lease, and
what it says of the job afterwards is refused.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker.blocking.waiting import Deadline
from broker.bus import Reject, Retry
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.remote.workers import BEATS_A_LEASE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from broker.blocking.client import Client
    from broker.blocking.consumer import Consumer
    from broker.remote.workers import WorkerSettings
    from broker_native.work import Job

__all__ = ["Workers"]


class Workers:
    """What `Client.run_workers` returns: `wait` for their end, or enter it to work meanwhile.

    Args:
        client: The bus.
        settings: Of each worker.
        grace_s: How long functions may go on when the workers are stopped, seconds.
    """

    def __init__(self, client: Client, settings: Sequence[WorkerSettings], grace_s: float) -> None:
        self._client = client
        self._settings = tuple(settings)
        self._grace_s = grace_s
        self._running: list[Worker] = []
        self._stop = threading.Event()
        self._failure: BrokerError | None = None

    def __enter__(self) -> Self:
        if not self._settings:
            raise error("INVALID_CONSUMER", "workers: there are none", "Decorate a function with `bus.worker`.")
        try:
            for settings in self._settings:
                self._running.append(Worker(self._client, settings, self._on_failure).start())
        except BaseException:
            self.stop(0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(self._grace_s)

    def run(self) -> None:
        """Work until somebody calls `end`, or this thread is interrupted.

        Raises:
            BrokerError: A worker cannot start, or cannot go on.
        """
        with self:
            self._stop.wait()
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Have `run` come back. Any thread, and a handler of signals."""
        self._stop.set()

    def stop(self, grace_s: float) -> None:
        """Take no more jobs, let functions end, and give the rest back.

        Args:
            grace_s: How long they may take, seconds.
        """
        running, self._running = self._running, []
        deadline = Deadline(grace_s)
        for worker in running:
            worker.stop()
        for worker in running:
            worker.join(deadline)

    def _on_failure(self, failure: BrokerError) -> None:
        self._failure = self._failure or failure
        self._stop.set()


class Worker:
    """One function, the member of its queue, and the threads in which it runs.

    Args:
        client: The bus.
        settings: What it works off, and how.
        on_failure: Called when it cannot go on, by its threads.
    """

    def __init__(self, client: Client, settings: WorkerSettings, on_failure: Callable[[BrokerError], object]) -> None:
        self._client = client
        self._settings = settings
        self._on_failure = on_failure
        self._busy: dict[Job, None] = {}
        self._stopped = threading.Event()
        self._consumer: Consumer | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> Worker:
        """Make the queue if there are channels for it, become a member, and begin.

        Raises:
            BrokerError: As for `Client.create_queue` and `Client.consume`.
        """
        settings, client = self._settings, self._client
        if settings.filters:
            info = client.create_queue(settings.queue, *settings.filters, **settings.queue_settings)
        else:
            info = client.consumer_info(settings.queue)
        self._consumer = client.consume(settings.queue, window=settings.concurrency + settings.prefetch)
        named = f"worker {settings.queue}"
        self._threads = [
            threading.Thread(target=self._work, args=(self._consumer,), name=named, daemon=True)
            for _ in range(settings.concurrency)
        ]
        lease_ms = info.settings.lease_ms
        beat = threading.Thread(target=self._extend, args=(lease_ms / 1000,), name=named, daemon=True)
        for thread in [*self._threads, *([beat] if lease_ms else [])]:
            thread.start()
        return self

    def stop(self) -> None:
        """Take no more jobs."""
        assert self._consumer is not None
        self._consumer.stop()

    def join(self, deadline: Deadline) -> None:
        """Wait for functions that run, and give back what is left."""
        assert self._consumer is not None
        for thread in self._threads:
            thread.join(deadline.left_s())
        self._stopped.set()
        self._consumer.close()

    def _work(self, consumer: Consumer) -> None:
        try:
            for job in consumer:
                self._busy[job] = None
                try:
                    self._do(job)
                finally:
                    del self._busy[job]
        except BrokerError as failure:
            self._on_failure(failure)

    def _do(self, job: Job) -> None:
        """Have the function do a job, and say what became of it, unless the function has."""
        try:
            self._settings.function(job)
        except Reject:
            if not job.settled:
                job.reject()
        except Retry as failure:
            if not job.settled:
                job.nack(failure.delay_s)
        except Exception as failure:
            emit(
                "job_failed",
                failure=failure,
                queue=self._settings.queue,
                channel=job.channel,
                sequence=job.sequence,
                attempt=job.attempt,
            )
            if not job.settled:
                job.nack()
        else:
            if not job.settled:
                job.ack()

    def _extend(self, lease_s: float) -> None:
        """Extend the leases of the jobs that are being done."""
        while not self._stopped.wait(lease_s / BEATS_A_LEASE):
            for job in list(self._busy):
                if not job.settled:
                    # It may be settled by its own thread in between, which is no mistake.
                    extend(job)


def extend(job: Job) -> None:
    """Extend a job's lease, unless it was settled a moment ago."""
    try:
        job.extend()
    except BrokerError as failure:
        if failure.name != "LEASE_UNKNOWN":
            raise
