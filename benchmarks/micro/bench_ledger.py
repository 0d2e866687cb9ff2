"""The stamps and the ledger for Python: payloads made, and each of them checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure
from broker_native.ledger import Verifier

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("ledger")
RECORDS = 2000


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def make_payloads() -> Run:
    verifier = Verifier(payload_bytes=PAYLOAD_BYTES)
    return lambda: len(verifier.payloads(RECORDS))


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def check_payloads() -> Run:
    verifier = Verifier(payload_bytes=PAYLOAD_BYTES)
    payloads = verifier.payloads(RECORDS)

    def run() -> int:
        verifier.check_all(payloads)
        return verifier.taken - verifier.lost - verifier.duplicated - verifier.reordered - verifier.corrupt

    return run


def test_ledger(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
