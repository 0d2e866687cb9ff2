"""Fan-out: a turn's chunks to few and many subscriptions, copied and shared; nanoseconds a delivered chunk."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from broker_native.fanout import Fanout, Outbox, Subscription
from broker_native.tails import Line, Publisher, Tails

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

EPHEMERAL = 1
PLENTY = 1 << 60
TURNS = 20


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


@pytest.mark.parametrize("payload_bytes", [128, 16_384])
@pytest.mark.parametrize(("channels", "subscribers"), [(1, 1), (1, 1000), (1000, 1), (100, 50)])
@pytest.mark.parametrize("by_pattern", [False, True])
def test_deliver(
    benchmark: BenchmarkFixture, channels: int, subscribers: int, payload_bytes: int, by_pattern: bool
) -> None:
    tails = Tails(1, 4770)
    fanout = Fanout(tails)
    value = value_of(tails, channels, payload_bytes)
    sinks = [Sink() for _ in range(subscribers)]
    for sink in sinks:
        outbox = Outbox(fanout, None)
        outbox.transport = sink
        subscription = Subscription(outbox, 1, PLENTY, 0, by_pattern)
        if by_pattern:
            fanout.attach_pattern(subscription, b"room.*")
        else:
            for slot in range(channels):
                fanout.attach(subscription, b"room.%d" % slot)

    def run() -> int:
        for _ in range(TURNS):
            fanout.deliver(value, 0, 0, 0, 0)
            fanout.flush()
        return sum(sink.pieces for sink in sinks)

    benchmark.pedantic(run, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]
    deliveries = TURNS * channels * subscribers
    benchmark.extra_info.update(deliveries=deliveries, chunks_out=fanout.chunks_out)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_delivery"] = benchmark.stats.stats.median / deliveries * 1e9
    fanout.close()
