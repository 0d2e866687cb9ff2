"""A transaction in a thread: put together in memory, sent as it is left, and waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.remote.transaction import Acks
from broker.wire import control
from broker_native.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from broker.blocking.publishing import Publishing
    from broker.bus import Payload
    from broker.model.positions import Position
    from broker_native.outcomes import Receipt
    from broker_native.posting import PublishBuffer
    from broker_native.work import Job

__all__ = ["Transaction"]


class Transaction:
    """Publishes that happen together or not at all: `with bus.transaction() as tx`. For one thread.

    Leaving the block sends them and waits until they are committed; an exception in it abandons them, and nothing was
    sent.

    Args:
        bus: The bus.
        buffer: What it publishes with, under its lock.
        timeout_s: How long leaving the block waits; None for the bus' own timeout.

    Attributes:
        receipts: Once the block was left in good order, where each publish was stored, in their order.
    """

    def __init__(self, bus: Publishing, buffer: PublishBuffer, timeout_s: float | None) -> None:
        self._bus = bus
        self._draft = Draft(buffer)
        self._acks = Acks()
        self._timeout_s = timeout_s
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
        """Add a publish; returns which of the receipts will be its own.

        Args:
            channel: As for `post`, and so on.
            expect: The channel's newest position before the transaction, as for `publish`.

        Raises:
            BrokerError: At once as `post` does; TRANSACTION_TOO_LARGE; CLOSED, the block was left.
        """
        packed = control.pack_headers(headers) if headers else None
        with self._bus.lock:
            return self._draft.publish(channel, payload, packed, key, priority, expiry_s, expect)

    def ack(self, job: Job) -> None:
        """Acknowledge a job of this bus with the publishes: neither happens without the other."""
        self._acks.add(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with self._bus.lock:
                self._draft.abandon()
            return
        if not len(self._draft):
            for settled in [job.ack() for job in self._acks.jobs]:
                settled.result(self._timeout_s)
            return
        with self._bus.lock:
            for frame in self._acks.frames():
                self._draft.ack(frame)
        self.receipts = self._bus.submit_draft(self._draft).result(self._timeout_s)
