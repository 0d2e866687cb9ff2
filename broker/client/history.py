"""Reading back what is stored, for a task of the loop. What is asked for: `broker.remote.pages`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from broker.bus import ChannelInfo, History
from broker.model.errors import BrokerError, Remedy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from broker.model.positions import BusPosition
    from broker.remote.pages import Pages
    from broker_native.messages import Batch, Message

__all__ = ["ClientHistory"]


class Requester(Protocol):
    """What a read needs of its client."""

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer."""

    @property
    def journal(self) -> bytes:
        """Identity of the journal of the server that answered last."""


class ClientHistory(History):
    """A read of a channel, or of what a pattern selects.

    Args:
        client: Who asks.
        pages: What for.
    """

    def __init__(self, client: Requester, pages: Pages) -> None:
        self.events = pages.events
        self._client = client
        self._pages = pages
        self._batches = self._read()

    @property
    def info(self) -> ChannelInfo | None:  # type: ignore[override]  # nobody sets it from outside
        return self._pages.info

    @property
    def bus_position(self) -> BusPosition | None:
        return self._pages.bus_position

    async def _read(self) -> AsyncIterator[Batch]:
        while (arguments := self._pages.next()) is not None:
            fields = await self._ask(arguments)
            for batch in self._pages.take(fields, self._client.journal):
                yield batch

    def batches(self) -> AsyncIterator[Batch]:
        return self._batches

    async def _messages(self) -> AsyncIterator[Message]:
        async for batch in self._batches:
            for message in reversed(list(batch)) if self._pages.reverse else batch:
                yield message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._messages()

    async def messages(self) -> list[Message]:
        return [message async for message in self]

    async def _ask(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Ask for a page; again on the next connection if this one is lost."""
        while True:
            try:
                return await self._client.ask("history", arguments)
            except BrokerError as failure:
                if failure.remedy is not Remedy.RESUME:
                    raise
