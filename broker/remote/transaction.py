"""What a transaction acknowledges: jobs of this bus, as the ACK frames that go with its publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.model.consumers import Settle, Verdict
from broker.wire import consuming

if TYPE_CHECKING:
    from broker_native.work import Job

__all__ = ["Acks"]


class Acks:
    """Jobs that a transaction acknowledges."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def add(self, job: Job) -> None:
        """Add a job."""
        self.jobs.append(job)

    def frames(self) -> list[bytes]:
        """Return an ACK for each membership. Their number is 0: the transaction's answer is theirs."""
        leases: dict[int, list[int]] = {}
        for job in self.jobs:
            leases.setdefault(job.batch.subscription, []).append(job.lease)
        return [
            consuming.encode_ack(subscription, 0, tuple(Settle(lease, 1, Verdict.ACK) for lease in sorted(set(some))))
            for subscription, some in leases.items()
        ]
