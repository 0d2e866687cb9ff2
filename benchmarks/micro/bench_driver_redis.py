"""The load driver on what Redis says: messages of a channel, and entries of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loads import DELIVERED, NAME, Load
from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("driver_redis")


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def messages(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """Return the replies to PUBLISH, and the messages of a subscription."""
    head = b"*3\r\n" + bulk(b"message") + bulk(NAME)
    return b":1\r\n" * DELIVERED, b"".join(head + bulk(payload) for payload in payloads)


def entries(payloads: list[bytes]) -> tuple[bytes, bytes]:
    """Return the replies to XADD, and the one to XREAD."""
    ids = [bulk(b"1700000000000-%d" % at) for at in range(DELIVERED)]
    found = [b"*2\r\n" + at + b"*2\r\n" + bulk(b"d") + bulk(each) for at, each in zip(ids, payloads, strict=True)]
    head = b"*1\r\n*2\r\n" + bulk(NAME) + b"*%d\r\n" % DELIVERED
    return b"".join(ids), head + b"".join(found)


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_messages() -> Run:
    return Load("redis", messages).read


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def verify_entries() -> Run:
    return Load("redis-stream", entries).read


def test_driver_redis(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
