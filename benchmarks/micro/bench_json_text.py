"""JSON out of what records hold, and the walk over what strangers send."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgpack as packer

from benchmarks.works import Works, measure
from broker_native.json_text import base64, msgpack, string, walk

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("json_text")

TEXTS = 1000
TEXT_BYTES = 128
VALUES_MAX, ITEMS_MAX, DEPTH_MAX = 16_384, 1_024, 16


@WORKS.work(TEXTS, TEXTS * (TEXT_BYTES + 2), bytes_per_operation=TEXT_BYTES)
def strings() -> Run:
    text = b"x" * TEXT_BYTES
    return lambda: sum(len(string(text)) for _ in range(TEXTS))


@WORKS.work(TEXTS, TEXTS * (TEXT_BYTES // 3 * 4 + 4 + 2), bytes_per_operation=TEXT_BYTES)
def binaries() -> Run:
    data = b"\xff" * TEXT_BYTES
    return lambda: sum(len(base64(data)) for _ in range(TEXTS))


@WORKS.work(TEXTS, TEXTS)
def headers() -> Run:
    packed = packer.packb({"trace": "0" * 32, "attempt": 3, "tags": ["a", "b"]})
    return lambda: sum(msgpack(packed) is not None for _ in range(TEXTS))


@WORKS.work(TEXTS, TEXTS)
def walks() -> Run:
    message = {"op": "publish", "id": 7, "channel": "room.1", "text": "x" * TEXT_BYTES, "headers": {"a": 1}}
    text = json.dumps(message).encode()
    return lambda: sum(walk(text, VALUES_MAX, ITEMS_MAX, DEPTH_MAX) is None for _ in range(TEXTS))


def test_json_text(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
