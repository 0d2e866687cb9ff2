"""The load driver on what an MQTT broker says, with QoS 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import DELIVERED, NAME, Load
from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("driver_mqtt")


def messages(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """Return nothing for the publisher, and the packets of a subscription."""
    size = 2 + len(NAME) + PAYLOAD_BYTES
    head = bytes([0x30, size & 0x7F | 0x80, size >> 7]) + len(NAME).to_bytes(2, "big") + NAME
    return b"", b"".join(head + payload for payload in payloads)


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_packets() -> Run:
    return Load("mqtt-0", messages).read


def test_driver_mqtt(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
