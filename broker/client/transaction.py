"""A transaction on a loop: put together in memory, sent as it is left, and waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bus import Transaction
from broker.remote.transaction import Acks
from broker_native.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from broker.bus import Payload
    from broker.model.positions import Position
    from broker_native.outcomes import Receipt
    from broker_native.posting import PublishBuffer
    from broker_native.work import Job

__all__ = ["ClientTransaction"]


class ClientTransaction(Transaction):
    """One transaction.

    Args:
        buffer: What the bus publishes with.
    """

    def __init__(self, buffer: PublishBuffer) -> None:
        self._draft = Draft(buffer)
        self._acks = Acks()
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

    def ack(self, job: Job) -> None:
        self._acks.add(job)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._draft.abandon()
            return
        if not len(self._draft):
            for settled in [job.ack() for job in self._acks.jobs]:
                await settled
            return
        for frame in self._acks.frames():
            self._draft.ack(frame)
        self.receipts = await self._draft.send()
