"""The crew of a work queue on what servers hand out: jobs of ours, entries of Redis, messages of JetStream."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from benchmarks.loads import DELIVERED, NAME
from benchmarks.samples import PAYLOAD_BYTES
from benchmarks.works import Works, measure
from broker_native import crew_nats, crew_redis
from broker_native.crew import Members
from broker_native.ledger import payload_of

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("crew")
COVERS = ("crew_broker", "crew_nats", "crew_redis", "crew_transactions")

INBOX = b"_INBOX.0123456789abcdef"
PAYLOADS = [payload_of(0, counter, 1, 0, PAYLOAD_BYTES) for counter in range(DELIVERED)]


def ready(
    protocol: str, *said: bytes, ask: bytes = b"", inbox: bytes = b"", words: bytes = b"", publishes: int = 0
) -> Run:
    """Return what has one member take all that a server has said, in so many reads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    members = Members(
        messages=DELIVERED,
        payload_bytes=PAYLOAD_BYTES,
        batch=DELIVERED,
        words=words,
        protocol=protocol,
        publishes=publishes,
        transactions_max=DELIVERED,
    )
    members.add_member(ours.fileno(), ask=ask, inbox=inbox)
    for each in said:
        theirs.send(each)

    def run() -> int:
        done = members.run(patience_s=5)
        ours.close()
        theirs.close()
        assert (done.finished, done.failure, done.lost) == (True, None, 0), done
        return done.acked

    return run


def jobs_frame() -> bytes:
    records = [struct.pack("<IHHI", 12 + len(each), 0, 0, 0) + each for each in PAYLOADS]
    jobs = [
        struct.pack("<IIQQQHBBI", 40 + len(record), 0, 1, at + 1, 7, 1, 0, 0, 0) + record
        for at, record in enumerate(records)
    ]
    body = struct.pack("<IIQQQ", 1, DELIVERED, 1, 30_000, 0) + b"".join(jobs)
    return struct.pack("<II", len(body), 21) + body


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_jobs() -> Run:
    return ready("broker", jobs_frame() + struct.pack("<IIIIQ", 16, 22, 1, 0, 1))


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def answer_jobs_with_transactions() -> Run:
    published = struct.pack("<II", 40, 17) + struct.pack("<QQQIIBB6x", 1, 1, 1, 2 * DELIVERED, 0, 3, 0)
    return ready("broker", jobs_frame() + published, publishes=2)


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_entries() -> Run:
    ask = crew_redis.ask_words(NAME, b"g", b"m", DELIVERED)
    entries = b"".join(
        b"*2\r\n$6\r\n17-%03d\r\n*2\r\n$1\r\nd\r\n$%d\r\n%b\r\n" % (at, PAYLOAD_BYTES, each)
        for at, each in enumerate(PAYLOADS)
    )
    head = b"*1\r\n*2\r\n$%d\r\n%b\r\n*%d\r\n" % (len(NAME), NAME, DELIVERED)
    said = head + entries + b":%d\r\n" % DELIVERED
    return ready("redis-stream", said, ask=ask, words=crew_redis.ack_words(NAME, b"g"))


@WORKS.work(DELIVERED, DELIVERED, bytes_per_operation=PAYLOAD_BYTES, once=True)
def take_messages() -> Run:
    messages = b"".join(
        b"MSG %b 1 $JS.ACK.S.q.1.%d.%d.1700000000000000000.0 %d\r\n%b\r\n" % (NAME, at, at, PAYLOAD_BYTES, each)
        for at, each in enumerate(PAYLOADS)
    )
    answer = b"MSG %b 1 0\r\n\r\n" % INBOX
    return ready("jetstream", messages, answer, ask=crew_nats.ask_words(b"S", b"q", INBOX, DELIVERED), inbox=INBOX)


def test_crew(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
