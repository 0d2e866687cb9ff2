"""A subscription whose reader is a task of the loop. What it is and how it goes on: `broker.remote.subscription`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from broker.bus import Subscription
from broker.remote.subscription import RemoteSubscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from broker.bus import Start, SubscriptionEvent
    from broker.client.client import Client
    from broker_native.messages import BatchStream, Message


class ClientSubscription(RemoteSubscription, Subscription):
    """A subscription of a `Client`, which owns it.

    Args:
        client: The bus.
        filters: Channels and patterns.
        start: Where to begin.
        credit_bytes: What may wait to be read.
        on_event: Called with each event in a loop turn of its own.
        group: The live group that it is a member of.
    """

    def __init__(
        self,
        client: Client,
        filters: tuple[str, ...],
        start: Start,
        credit_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
        group: str | None = None,
    ) -> None:
        super().__init__(client, filters, start, credit_bytes, on_event, client.loop, group)
        self._loop = client.loop
        self._messages = self._cursor.messages()
        self._opened: asyncio.Future[None] = self._loop.create_future()

    def __await__(self) -> Generator[Any, Any, ClientSubscription]:
        return self._open().__await__()

    async def _open(self) -> ClientSubscription:
        self.begin()
        # Shielded: others may wait for it too.
        await asyncio.shield(self._opened)
        if self._failure is not None:
            raise self._failure
        return self

    def __aiter__(self) -> AsyncIterator[Message]:
        self.begin()
        return self._messages

    def batches(self) -> BatchStream:
        self.begin()
        return self._cursor.batches()

    async def close(self) -> None:
        self.end()

    # .. how its callers wait ..

    def _wake(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        self._loop.call_soon(function, *args)

    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        self._loop.call_later(delay_s, function)
