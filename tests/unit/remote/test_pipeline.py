"""What pipelines share: what a transform may make, and what becomes of a batch whose transaction is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from broker.bus import Output, Reject, Retry
from broker.model.errors import BrokerError, error
from broker.remote.pipeline import Round, fill, outputs_of, pipeline_of

if TYPE_CHECKING:
    from broker.remote.pipeline import Made
    from broker_native.work import Job


class Given:
    """A job, and what was said of it."""

    channel, sequence, attempt = "in", 1, 1

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.said: list[object] = []

    @property
    def settled(self) -> bool:
        return bool(self.said)

    def ack(self) -> None:
        self.said.append("ack")

    def reject(self) -> None:
        self.said.append("reject")

    def nack(self, delay_s: float | None = None) -> None:
        self.said.append(delay_s)


def batch_of(count: int, *, batch: int = 100, batch_bytes: int = 1_000) -> tuple[Round, list[Any], list[Made]]:
    """Return a batch whose jobs were all transformed, its jobs, and what was made of them."""
    made = Round(pipeline_of("queue", print, batch, batch_bytes, 1.0))
    jobs = [cast("Job", Given(b"%d" % number)) for number in range(count)]
    for job in jobs:
        made.add(job)
        made.keep(job, (Output("out", job.payload),))
    return made, jobs, made.made


def test_outputs() -> None:
    one = Output("a", b"1", headers={"h": 1})
    assert outputs_of(None) == outputs_of([]) == ()
    assert outputs_of(("a", b"1")) == (Output("a", b"1"),)
    assert outputs_of(one) == (one,)
    assert outputs_of([one, ("b", b"2")]) == outputs_of(iter((one, ("b", b"2")))) == (one, Output("b", b"2"))
    for wrong in (5, [5], ("a",)):
        with pytest.raises(TypeError):
            outputs_of(wrong)


def test_a_batch_is_full_of_jobs_or_of_bytes() -> None:
    assert not batch_of(2, batch=3)[0].full
    assert batch_of(3, batch=3)[0].full
    assert not batch_of(2, batch_bytes=3)[0].full
    assert batch_of(3, batch_bytes=3)[0].full
    for batch, batch_bytes in ((0, 1), (2049, 1), (1, 0)):
        with pytest.raises(BrokerError, match="LIMIT"):
            pipeline_of("queue", print, batch, batch_bytes, 1.0)


def test_what_is_filled_in() -> None:
    _, jobs, made = batch_of(2)

    class Drafted:
        said: list[object]

        def __init__(self) -> None:
            self.said = []

        def publish(self, channel: str, payload: Any, **options: Any) -> int:
            self.said.append((channel, payload, options["priority"]))
            return 0

        def ack(self, job: Job) -> None:
            self.said.append(job)

    drafted = Drafted()
    fill(drafted, made)
    assert drafted.said == [("out", b"0", 2), jobs[0], ("out", b"1", 2), jobs[1]]


def test_what_a_job_settled_itself_is_left_out() -> None:
    batch, _, _ = batch_of(1)
    job: Any = Given(b"x")
    batch.add(job)
    job.ack()
    batch.keep(job, (Output("out", b"x"),))
    assert len(batch.made) == 1
    batch.drop()
    assert job.said == ["ack"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("LEASE_EXPIRED", 0), ("LEASE_UNKNOWN", 0), ("COMMIT_UNKNOWN", 0), ("BUSY", None), ("STORAGE_FULL", None)],
)
def test_a_batch_that_is_dropped_comes_again(name: str, said: object) -> None:
    batch, jobs, made = batch_of(3)
    assert batch.refused(made, error(name, "as planned")) == []
    assert [job.said for job in jobs] == [[said]] * 3
    batch.end()
    batch.drop()
    assert [job.said for job in jobs] == [[said]] * 3


def test_outputs_at_fault_are_found_by_halves() -> None:
    batch, jobs, made = batch_of(7)
    parts, committed = [made], []
    while parts:
        part = parts.pop()
        if any(job is jobs[4] for job, _ in part):
            parts += batch.refused(part, error("NOT_STORED", "as planned"))
        else:
            batch.committed(part)
            committed += [jobs.index(job) for job, _ in part]
    assert committed == [0, 1, 2, 3, 5, 6]
    batch.end()
    batch.drop()
    assert [job.said for job in jobs] == [[], [], [], [], [None], [], []]


@pytest.mark.parametrize("name", ["CLOSED", "FORKED"])
def test_a_bus_that_is_closed_ends_it(name: str) -> None:
    batch, jobs, made = batch_of(2)
    with pytest.raises(BrokerError, match=name):
        batch.refused(made, error(name, "as planned"))
    batch.drop()
    assert [job.said for job in jobs] == [[0], [0]]


def test_what_a_transform_raises_is_said_at_the_end() -> None:
    batch = Round(pipeline_of("queue", print, 10, 1_000, 1.0))
    jobs: list[Any] = [Given(b"x") for _ in range(4)]
    for job, failure in zip(jobs, (Reject("no"), Retry(2.0), Retry(), ValueError("mistake")), strict=True):
        batch.add(job)
        batch.fail(job, failure)
    assert not any(job.said for job in jobs)
    batch.end()
    batch.drop()
    assert [job.said for job in jobs] == [["reject"], [2.0], [None], [None]]
