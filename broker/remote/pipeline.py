"""What pipelines share, however they wait: a batch of jobs, what was made of each, and what becomes of them.

The outputs of a batch are published in one transaction with the acknowledgements of its jobs, so that a crash anywhere
leaves both or neither. What a transaction is refused for says how to go on: leases that are over have the whole batch
dropped, since its jobs are given out again; what one job's outputs are at fault for is found by halving the batch, so
that the others are done; and what may succeed later is left to the back-off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.bus import Output, Reject, Retry
from broker.events import emit
from broker.model.errors import BrokerError, Remedy, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker.bus import Payload
    from broker_native.work import Job

__all__ = ["AHEAD", "JOBS_MAX", "Made", "PipelineSettings", "Round", "fill", "outputs_of", "pipeline_of"]

JOBS_MAX: Final = 2048
"""Jobs of one batch: so many leases fit into one ACK."""
AHEAD: Final = 2
"""Batches that may be under way to a pipeline: the one that is transformed, and the one that waits for it."""
LEASES_LOST: Final = frozenset(("LEASE_UNKNOWN", "LEASE_EXPIRED"))
BUS_ENDED: Final = frozenset(("CLOSED", "FORKED"))

Made = tuple["Job", tuple[Output, ...]]
"""A job, and what is to be published for it."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What a pipeline works off, and how.

    Attributes:
        source: Name of the consumer or queue.
        transform: Called with each job.
        batch: Jobs of one transaction, at most.
        batch_bytes: Payload bytes of those, at most; one job in any case.
        grace_s: How long a batch may go on when the pipeline is stopped, seconds.
    """

    source: str
    transform: Callable[[Job], Any]
    batch: int
    batch_bytes: int
    grace_s: float


def pipeline_of(
    source: str, transform: Callable[[Job], Any], batch: int, batch_bytes: int, grace_s: float
) -> PipelineSettings:
    """Return the settings of a pipeline; see `Bus.pipeline`.

    Raises:
        RequestError: LIMIT; no batch can be so large.
    """
    if not 1 <= batch <= JOBS_MAX or batch_bytes < 1:
        raise error(
            "LIMIT",
            f"pipeline: got batches of {batch} jobs and {batch_bytes} bytes, expected 1 to {JOBS_MAX} and 1 or more",
            "Give it a batch of what one transaction takes.",
        )
    return PipelineSettings(source, transform, batch, batch_bytes, grace_s)


def outputs_of(made: Any) -> tuple[Output, ...]:
    """Return what a transform has made, as outputs: of None, of one output, or of an iterable of them.

    Raises:
        TypeError: It is none of these.
    """
    if made is None:
        return ()
    if isinstance(made, tuple) and made and isinstance(made[0], str):
        return (Output(*made),)
    return tuple(one if isinstance(one, Output) else Output(*one) for one in made)


class Drafting(Protocol):
    """A transaction, as far as it is filled."""

    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> int:
        """Add a publish."""

    def ack(self, job: Job) -> None:
        """Add an acknowledgement."""


def fill(transaction: Drafting, part: Iterable[Made]) -> None:
    """Put the outputs of jobs into a transaction, and that the jobs are done."""
    for job, outputs in part:
        for channel, payload, headers, key, priority, expiry_s in outputs:
            transaction.publish(channel, payload, headers=headers, key=key, priority=priority, expiry_s=expiry_s)
        transaction.ack(job)


class Round:
    """One batch, from when its first job was taken until something was said of each.

    Args:
        settings: The pipeline's.

    Attributes:
        jobs: Of which nothing was said yet, and which no transaction has acknowledged.
        made: Those that were transformed, in order.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._bytes = 0
        self._after: list[tuple[Job, Exception]] = []
        self.jobs: dict[Job, None] = {}
        self.made: list[Made] = []

    def add(self, job: Job) -> None:
        """Take a job."""
        self.jobs[job] = None
        self._bytes += len(job.payload)

    @property
    def full(self) -> bool:
        """Whether it takes no more jobs."""
        return len(self.jobs) >= self._settings.batch or self._bytes >= self._settings.batch_bytes

    def keep(self, job: Job, outputs: tuple[Output, ...]) -> None:
        """A job was transformed. One that the transform has settled itself is none of the batch any more."""
        if job.settled:
            del self.jobs[job]
        else:
            self.made.append((job, outputs))

    def fail(self, job: Job, failure: Exception) -> None:
        """A job was not transformed. What becomes of it is said behind the transaction, by `end`."""
        self._after.append((job, failure))

    def committed(self, part: list[Made]) -> None:
        """These jobs are done."""
        for job, _ in part:
            del self.jobs[job]

    def refused(self, part: list[Made], failure: Exception) -> list[list[Made]]:
        """A transaction of these jobs was not committed, or nobody knows.

        Returns:
            The parts in which it is to be tried again, the last one first; none when the jobs come again.

        Raises:
            BrokerError: The bus is closed.
        """
        if isinstance(failure, BrokerError):
            if failure.name in BUS_ENDED:
                raise failure
            if failure.name in LEASES_LOST or failure.remedy is not Remedy.STOP:
                queue = self._settings.source
                emit("batch_dropped", queue=queue, jobs=len(part), code=failure.name, detail=failure.detail)
                # Those whose leases are over are given out already; the others need not wait for their leases' end.
                delay_s = None if failure.temporary else 0
                for job, _ in part:
                    self._leave(job, delay_s)
                return []
        if len(part) > 1:
            half = len(part) // 2
            return [part[half:], part[:half]]
        self.fail(part[0][0], failure)
        return []

    def end(self) -> None:
        """Say what becomes of the jobs that failed."""
        after, self._after = self._after, []
        for job, failure in after:
            if isinstance(failure, Reject):
                del self.jobs[job]
                if not job.settled:
                    job.reject()
            elif isinstance(failure, Retry):
                self._leave(job, failure.delay_s)
            else:
                emit(
                    "job_failed",
                    failure=failure,
                    queue=self._settings.source,
                    channel=job.channel,
                    sequence=job.sequence,
                    attempt=job.attempt,
                )
                self._leave(job, None)

    def drop(self) -> None:
        """Give back what is left: the pipeline does not go on."""
        for job in list(self.jobs):
            self._leave(job, 0)

    def _leave(self, job: Job, delay_s: float | None) -> None:
        """Have a job come again."""
        del self.jobs[job]
        if not job.settled:
            job.nack(delay_s)
