"""The load driver on what NATS says: deliveries of a subject, and of a JetStream consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import DELIVERED, NAME, Load
from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("driver_nats")


def messages(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """Return nothing for the publisher, and the messages of a subscription."""
    head = b"MSG %b 1 %d\r\n" % (NAME, PAYLOAD_BYTES)
    return b"", b"".join(head + payload + b"\r\n" for payload in payloads)


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_messages() -> Run:
    return Load("nats", messages).read


def test_driver_nats(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
