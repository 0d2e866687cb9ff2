"""A member of a consumer whose reader is a task of the loop. What it is, and how it goes on: `broker.remote`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from broker.bus import Consumer
from broker.remote.consumer import RemoteConsumer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from broker.bus import SubscriptionEvent
    from broker.client.client import Client
    from broker_native.work import Job, JobBatch, Settled


class ClientConsumer(RemoteConsumer, Consumer):
    """A member of a consumer, of a `Client`, which owns it.

    Args:
        client: The bus.
        name: The consumer's name.
        window: Jobs that may be under way to this member.
        window_bytes: And of how many bytes.
        on_event: Called with each event in a loop turn of its own.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        window: int,
        window_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
    ) -> None:
        super().__init__(client, name, window, window_bytes, on_event, client.loop)
        self._loop = client.loop
        self._jobs = self._cursor.jobs()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._flushers: list[asyncio.Future[None]] = []

    def __await__(self) -> Generator[Any, Any, ClientConsumer]:
        return self._open().__await__()

    async def _open(self) -> ClientConsumer:
        self.begin()
        # Shielded: others may wait for it too.
        await asyncio.shield(self._opened)
        if self._failure is not None:
            raise self._failure
        return self

    def __aiter__(self) -> AsyncIterator[Job]:
        self.begin()
        return self._jobs

    def batches(self) -> AsyncIterator[JobBatch]:
        self.begin()
        return self._cursor.batches()

    def ack_through(self, job: Job) -> Settled:
        return self.through(job)

    async def flush(self) -> None:
        while self.unanswered and not self._closed:
            waiter = self._loop.create_future()
            self._flushers.append(waiter)
            await waiter

    async def close(self, timeout_s: float = 5.0) -> None:
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.flush()
        self.end()

    # .. how its callers wait ..

    def _wake(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _wake_flushers(self) -> None:
        woken, self._flushers = self._flushers, []
        for waiter in woken:
            if not waiter.done():
                waiter.set_result(None)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        self._loop.call_soon(function, *args)

    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        self._loop.call_later(delay_s, function)
