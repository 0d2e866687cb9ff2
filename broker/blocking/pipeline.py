"""A pipeline in a thread or a greenlet, which takes what jobs are there, transforms them, and commits what was made.

A thread cannot be cancelled: a transform that goes on when its pipeline is stopped loses its leases, and what was made
of the batch is refused.
"""

from __future__ import annotations

import math
import threading
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING

from broker.blocking.workers import extend
from broker.model.errors import BrokerError, error
from broker.remote.pipeline import AHEAD, Round, fill, outputs_of
from broker.remote.workers import BEATS_A_LEASE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from broker.blocking.client import Client
    from broker.blocking.consumer import Consumer
    from broker.remote.pipeline import PipelineSettings
    from broker_native.work import Job

__all__ = ["Pipeline", "check_plain"]


def check_plain(transform: object) -> None:
    """Return if a thread can call a transform.

    Raises:
        RequestError: INVALID_CONSUMER; it is a coroutine function, or an asynchronous generator's.
    """
    if iscoroutinefunction(transform) or isasyncgenfunction(transform):
        raise error(
            "INVALID_CONSUMER",
            f"pipeline: got {transform!r}, expected a plain function or a generator's",
            "The asyncio client has pipelines with `async def`.",
        )


class Pipeline:
    """What `Client.pipeline` returns: `run` it until `end` is called, or enter it to work meanwhile.

    Args:
        client: The bus.
        settings: What it works off, and how.
    """

    def __init__(self, client: Client, settings: PipelineSettings) -> None:
        self._client = client
        self._settings = settings
        self._consumer: Consumer | None = None
        self._threads: list[threading.Thread] = []
        self._extended: dict[Job, None] = {}
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._failure: BrokerError | None = None

    def __enter__(self) -> Self:
        settings = self._settings
        lease_ms = self._client.consumer_info(settings.source).settings.lease_ms
        window, window_bytes = AHEAD * settings.batch, AHEAD * settings.batch_bytes
        consumer = self._client.consume(settings.source, window=window, window_bytes=window_bytes)
        self._consumer = consumer.open()
        named = f"pipeline {settings.source}"
        self._threads = [threading.Thread(target=self._work, args=(consumer,), name=named, daemon=True)]
        if lease_ms:
            beat = threading.Thread(target=self._extend, args=(lease_ms / 1000,), name=named, daemon=True)
            self._threads.append(beat)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._consumer is not None
        self._consumer.stop()
        self._threads[0].join(self._settings.grace_s)
        self._stopped.set()
        self._consumer.close()
        if kind is None and self._failure is not None:
            raise self._failure

    def run(self) -> None:
        """Work until somebody calls `end`, or this thread is interrupted.

        Raises:
            BrokerError: The pipeline cannot start, or cannot go on.
        """
        with self:
            self._ended.wait()

    def end(self) -> None:
        """Have `run` come back. Any thread, and a handler of signals."""
        self._ended.set()

    def _work(self, consumer: Consumer) -> None:
        try:
            self._go_on(consumer)
        except BrokerError as failure:
            self._failure = failure
        finally:
            self._ended.set()

    def _go_on(self, consumer: Consumer) -> None:
        jobs = iter(consumer)
        while True:
            batch = Round(self._settings)
            try:
                if not self._take(consumer, jobs, batch):
                    return
                self._transform(batch)
                self._commit(batch)
                batch.end()
            finally:
                batch.drop()

    def _take(self, consumer: Consumer, jobs: Iterator[Job], batch: Round) -> bool:
        """Wait for a job, and take with it what is there; answers whether there was any."""
        for job in jobs:
            batch.add(job)
            if batch.full or not consumer.queued:
                return True
        return bool(batch.jobs)

    def _transform(self, batch: Round) -> None:
        self._extended = batch.jobs
        try:
            for job in list(batch.jobs):
                try:
                    batch.keep(job, outputs_of(self._settings.transform(job)))
                except Exception as failure:
                    batch.fail(job, failure)
        finally:
            self._extended = {}

    def _commit(self, batch: Round) -> None:
        parts = [batch.made]
        while parts:
            part = parts.pop()
            try:
                # However long it takes: given up, it would be under way still.
                with self._client.transaction(timeout_s=math.inf) as transaction:
                    fill(transaction, part)
            except Exception as failure:
                parts += batch.refused(part, failure)
            else:
                batch.committed(part)

    def _extend(self, lease_s: float) -> None:
        """Extend the leases of the jobs that are transformed."""
        while not self._stopped.wait(lease_s / BEATS_A_LEASE):
            for job in list(self._extended):
                if not job.settled:
                    # It may be settled by its own thread in between, which is no mistake.
                    extend(job)
