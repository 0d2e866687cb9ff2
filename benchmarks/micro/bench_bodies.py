"""The walk over a control body before it is unpacked: a REQUEST, and long lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack

from benchmarks.samples import name_of
from benchmarks.works import Works, measure
from broker_native.bodies import walk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("bodies")

VALUES_MAX, ITEMS_MAX, DEPTH_MAX = 1_000_000, 1_000_000, 16
REQUESTS = 1000
NAMES = 5000


def good(body: bytes) -> bool:
    return walk(body, VALUES_MAX, ITEMS_MAX, DEPTH_MAX) is None


@WORKS.work(REQUESTS, REQUESTS)
def requests() -> Run:
    asked = {"request": 7, "operation": "history", "channel": name_of(7).decode(), "last": 50, "reverse": False}
    bodies = [msgpack.packb(asked)] * REQUESTS
    return lambda: sum(map(good, bodies))


@WORKS.work(NAMES, 1)
def names() -> Run:
    body = msgpack.packb({"names": [[name_of(number).decode(), number] for number in range(NAMES)]})
    return lambda: int(good(body))


def test_bodies(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
