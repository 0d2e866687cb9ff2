"""Functions that do the jobs of work queues, as tasks of the loop: started together, stopped in good order.

A worker is a member of its queue with as many tasks as it may run at once. A function that returns has done its job;
one that raises has failed, and the job comes again after the queue's back-off. While a function runs, its job's lease
is extended. Signals are the application's: whoever runs workers cancels the task in which they run.
"""

from __future__ import annotations

import asyncio
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from broker.bus import Reject, Retry, Workers
from broker.events import emit
from broker.model.errors import error
from broker.remote.workers import BEATS_A_LEASE

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from types import TracebackType
    from typing import Self

    from broker.bus import Bus, Consumer
    from broker.remote.workers import WorkerSettings
    from broker_native.work import Job

__all__ = ["ClientWorkers", "check_coroutine"]


def check_coroutine(function: object) -> None:
    """Return if a function is a coroutine function.

    Raises:
        RequestError: INVALID_CONSUMER; it is none.
    """
    if not iscoroutinefunction(function):
        raise error(
            "INVALID_CONSUMER",
            f"worker: got {function!r}, expected a coroutine function (async def)",
            "Have it call `asyncio.to_thread` for what blocks; `broker.blocking` has workers in threads.",
        )


class ClientWorkers(Workers):
    """What `Bus.run_workers` returns: `await` it to work until that is cancelled, or enter it to work meanwhile.

    Args:
        bus: Whose.
        settings: Of each worker.
        grace_s: How long functions may go on when the workers are stopped, seconds.
    """

    def __init__(self, bus: Bus, settings: Sequence[WorkerSettings], grace_s: float) -> None:
        self._bus = bus
        self._grace_s = grace_s
        self._settings = tuple(settings)
        self._running: list[Worker] = []

    def __await__(self) -> Generator[Any, Any, None]:
        return self.run().__await__()

    async def __aenter__(self) -> Self:
        try:
            for settings in self._settings:
                self._running.append(await Worker(self._bus, settings).start())
        except BaseException:
            await self.stop(0)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(self._grace_s)

    async def run(self) -> None:
        """Work until this task is cancelled, or a worker cannot go on.

        Raises:
            BrokerError: A queue cannot be made, or is gone; the bus has failed for good.
        """
        async with self:
            tasks = [task for worker in self._running for task in worker.tasks]
            if not tasks:
                raise error("INVALID_CONSUMER", "workers: there are none", "Decorate a function with `bus.worker`.")
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    async def stop(self, grace_s: float) -> None:
        """Take no more jobs, let functions end, and give the rest back.

        Args:
            grace_s: How long they may take; then they are cancelled, and their jobs given to others.
        """
        running, self._running = self._running, []
        try:
            await asyncio.gather(*(worker.stop(grace_s) for worker in running))
        finally:
            for worker in running:
                worker.cancel()


class Worker:
    """One function, the member of its queue, and the tasks in which it runs.

    Args:
        bus: Whose.
        settings: What it works off, and how.
    """

    def __init__(self, bus: Bus, settings: WorkerSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._busy: dict[Job, None] = {}
        self._consumer: Consumer | None = None
        self._beat: asyncio.Task[None] | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Worker:
        """Make the queue if there are channels for it, become a member, and begin.

        Raises:
            BrokerError: As for `Bus.create_queue` and `Bus.consume`.
        """
        settings = self._settings
        if settings.filters:
            info = await self._bus.create_queue(settings.queue, *settings.filters, **settings.queue_settings)
        else:
            info = await self._bus.consumer_info(settings.queue)
        window = settings.concurrency + settings.prefetch
        self._consumer = await self._bus.consume(settings.queue, window=window)
        named = f"worker {settings.queue}"
        self.tasks = [asyncio.create_task(self._work(), name=named) for _ in range(settings.concurrency)]
        if info.settings.lease_ms:
            self._beat = asyncio.create_task(self._extend(info.settings.lease_ms / 1000), name=named)
        return self

    async def stop(self, grace_s: float) -> None:
        """Take no more jobs, wait for those under way, and give back what is left."""
        assert self._consumer is not None
        self._consumer.stop()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        self.cancel()
        await asyncio.wait([*self.tasks, *([self._beat] if self._beat else [])])
        await self._consumer.close()

    def cancel(self) -> None:
        """Have no task go on."""
        for task in (*self.tasks, *([self._beat] if self._beat else [])):
            task.cancel()

    async def _work(self) -> None:
        assert self._consumer is not None
        async for job in self._consumer:
            self._busy[job] = None
            try:
                await self._do(job)
            finally:
                del self._busy[job]

    async def _do(self, job: Job) -> None:
        """Have the function do a job, and say what became of it, unless the function has."""
        try:
            await self._settings.function(job)
        except asyncio.CancelledError:
            give(job, 0)
            raise
        except Reject:
            if not job.settled:
                job.reject()
        except Retry as failure:
            give(job, failure.delay_s)
        except Exception as failure:
            emit(
                "job_failed",
                failure=failure,
                queue=self._settings.queue,
                channel=job.channel,
                sequence=job.sequence,
                attempt=job.attempt,
            )
            give(job, None)
        else:
            if not job.settled:
                job.ack()

    async def _extend(self, lease_s: float) -> None:
        """Extend the leases of the jobs that are being done."""
        while True:
            await asyncio.sleep(lease_s / BEATS_A_LEASE)
            for job in self._busy:
                if not job.settled:
                    job.extend()


def give(job: Job, delay_s: float | None) -> None:
    """Have a job come again, unless something was said of it."""
    if not job.settled:
        job.nack(delay_s)
