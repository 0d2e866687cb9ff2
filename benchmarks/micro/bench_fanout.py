"""Fan-out: a turn's chunks to few and many subscriptions, copied and shared; nanoseconds a delivered chunk."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.works import Works, measure
from broker_native.fanout import Fanout, Outbox, Subscription
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

EPHEMERAL = 1
PLENTY = 1 << 60
TURNS = 20
WORKS = Works("fanout")


class Sink:
    """Takes pieces, and counts them."""

    def __init__(self) -> None:
        self.pieces = 0

    def writelines(self, pieces: list[Any]) -> None:
        self.pieces += len(pieces)


def value_of(tails: Tails, channels: int, payload_bytes: int) -> bytes:
    """Return the chunks of one turn: one record in each channel."""
    publisher = Publisher(tails, Line(), None, 0)
    record = struct.pack("<IHHI", 12 + payload_bytes, 0, 0, 0) + bytes(payload_bytes)
    for slot in range(channels):
        name = b"room.%d" % slot
        tails.load(name, EPHEMERAL, 2, 1 << 20)
        publisher.bind(slot, name)
        assert publisher.publish_frame(struct.pack("<IIQ", slot, 1, slot + 1) + record) == 0
    value, _ = tails.close_turn()
    assert value is not None
    return value


class Hall:
    """Subscribers of some channels, and the chunks of one turn for them."""

    def __init__(self, channels: int, subscribers: int, payload_bytes: int, by_pattern: bool) -> None:
        tails = Tails(1, 4770)
        self.fanout = Fanout(tails)
        self.value = value_of(tails, channels, payload_bytes)
        self.sinks = [Sink() for _ in range(subscribers)]
        for sink in self.sinks:
            outbox = Outbox(self.fanout, None)
            outbox.transport = sink
            subscription = Subscription(outbox, 1, PLENTY, 0, by_pattern)
            if by_pattern:
                self.fanout.attach_pattern(subscription, b"room.*")
            else:
                for slot in range(channels):
                    self.fanout.attach(subscription, b"room.%d" % slot)

    def deliver(self) -> int:
        for _ in range(TURNS):
            self.fanout.deliver(self.value, 0, 0, 0, 0)
            self.fanout.flush()
        return sum(sink.pieces for sink in self.sinks)


def counted(channels: int, subscribers: int, payload_bytes: int, by_pattern: bool) -> Run:
    hall = Hall(channels, subscribers, payload_bytes, by_pattern)

    def run() -> int:
        before = hall.fanout.chunks_out
        assert hall.deliver() > 0
        return hall.fanout.chunks_out - before

    return run


@WORKS.work(TURNS * 200, TURNS * 200, bytes_per_operation=128)
def one_channel_to_many() -> Run:
    return counted(1, 200, 128, False)


@WORKS.work(TURNS * 200, TURNS * 200, bytes_per_operation=128)
def many_channels_to_one() -> Run:
    return counted(200, 1, 128, False)


@WORKS.work(TURNS * 200, TURNS * 200, bytes_per_operation=128)
def patterns() -> Run:
    return counted(20, 10, 128, True)


@WORKS.work(TURNS * 100, TURNS * 100, bytes_per_operation=16_384)
def large_payloads() -> Run:
    return counted(1, 100, 16_384, False)


@pytest.mark.parametrize("payload_bytes", [128, 16_384])
@pytest.mark.parametrize(("channels", "subscribers"), [(1, 1), (1, 1000), (1000, 1), (100, 50)])
@pytest.mark.parametrize("by_pattern", [False, True])
def test_deliver(
    benchmark: BenchmarkFixture, channels: int, subscribers: int, payload_bytes: int, by_pattern: bool
) -> None:
    hall = Hall(channels, subscribers, payload_bytes, by_pattern)
    benchmark.pedantic(hall.deliver, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]
    fanout = hall.fanout
    deliveries = TURNS * channels * subscribers
    benchmark.extra_info.update(deliveries=deliveries, chunks_out=fanout.chunks_out)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_delivery"] = benchmark.stats.stats.median / deliveries * 1e9
    fanout.close()


def test_fanout_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
