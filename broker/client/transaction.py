"""A transaction on a loop: put together in memory, sent as it is left, and waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bus import Transaction
from broker_native.posting import Draft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from broker.bus import Payload
    from broker.model.positions import Position
    from broker_native.posting import PublishBuffer, Receipt

__all__ = ["ClientTransaction"]


class ClientTransaction(Transaction):
    """One transaction.

    Args:
        buffer: What the bus publishes with.
    """

    def __init__(self, buffer: PublishBuffer) -> None:
        self._buffer = buffer
        self._draft = Draft(buffer)
        self.receipts: list[Receipt] = []

    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        expect: Position | None = None,
    ) -> int:
        return self._draft.publish(channel, payload, headers, key, priority, expiry_s, expect)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._draft.abandon()
            return
        self.receipts = await self._buffer.transact(self._draft)
