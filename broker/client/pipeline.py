"""A pipeline on a loop: a task that takes what jobs are there, transforms them, and commits what was made of them."""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from broker.bus import Output, Pipeline
from broker.remote.pipeline import AHEAD, Round, fill, outputs_of
from broker.remote.workers import BEATS_A_LEASE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator
    from types import TracebackType
    from typing import Self

    from broker.bus import Bus, Consumer
    from broker.remote.pipeline import PipelineSettings
    from broker_native.work import Job

__all__ = ["ClientPipeline"]


class ClientPipeline(Pipeline):
    """What `Bus.pipeline` returns: `await` it to work until that is cancelled, or enter it to work meanwhile.

    Args:
        bus: Whose.
        settings: What it works off, and how.
    """

    def __init__(self, bus: Bus, settings: PipelineSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._consumer: Consumer | None = None
        self._work: asyncio.Task[None] | None = None
        self._beat: asyncio.Task[None] | None = None
        self._extended: dict[Job, None] = {}

    def __await__(self) -> Generator[Any, Any, None]:
        return self.run().__await__()

    async def __aenter__(self) -> Self:
        settings = self._settings
        info = await self._bus.consumer_info(settings.source)
        consumer = self._bus.consume(
            settings.source, window=AHEAD * settings.batch, window_bytes=AHEAD * settings.batch_bytes
        )
        try:
            self._consumer = await consumer
        except BaseException:
            await consumer.close(0)
            raise
        named = f"pipeline {settings.source}"
        self._work = asyncio.create_task(self._go_on(consumer), name=named)
        if info.settings.lease_ms:
            self._beat = asyncio.create_task(self._extend(info.settings.lease_ms / 1000), name=named)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        work = self._work
        assert work is not None
        assert self._consumer is not None
        tasks = [task for task in (work, self._beat) if task is not None]
        try:
            self._consumer.stop()
            await asyncio.wait([work], timeout=self._settings.grace_s)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)
        await self._consumer.close()
        if kind is None and not work.cancelled():
            work.result()

    async def run(self) -> None:
        """Work until this task is cancelled, or the pipeline cannot go on.

        Raises:
            BrokerError: There is no such consumer, or it is gone or taken; the bus has failed for good.
        """
        async with self:
            assert self._work is not None
            await asyncio.wait([self._work])

    async def _go_on(self, consumer: Consumer) -> None:
        jobs = aiter(consumer)
        while True:
            batch = Round(self._settings)
            try:
                if not await self._take(consumer, jobs, batch):
                    return
                await self._transform(batch)
                await self._commit(batch)
                batch.end()
            finally:
                batch.drop()

    async def _take(self, consumer: Consumer, jobs: AsyncIterator[Job], batch: Round) -> bool:
        """Wait for a job, and take with it what is there; answers whether there was any."""
        async for job in jobs:
            batch.add(job)
            if batch.full or not consumer.queued:
                return True
        return bool(batch.jobs)

    async def _transform(self, batch: Round) -> None:
        self._extended = batch.jobs
        try:
            for job in list(batch.jobs):
                try:
                    batch.keep(job, await self._outputs(job))
                except Exception as failure:
                    batch.fail(job, failure)
        finally:
            self._extended = {}

    async def _outputs(self, job: Job) -> tuple[Output, ...]:
        made = self._settings.transform(job)
        if hasattr(made, "__aiter__"):
            return outputs_of([one async for one in made])
        return outputs_of(await made if isawaitable(made) else made)

    async def _commit(self, batch: Round) -> None:
        parts = [batch.made]
        while parts:
            part = parts.pop()
            try:
                async with self._bus.transaction() as transaction:
                    fill(transaction, part)
            except Exception as failure:
                parts += batch.refused(part, failure)
            else:
                batch.committed(part)

    async def _extend(self, lease_s: float) -> None:
        """Extend the leases of the jobs that are transformed."""
        while True:
            await asyncio.sleep(lease_s / BEATS_A_LEASE)
            for job in self._extended:
                if not job.settled:
                    job.extend()
