"""A message's cost as channels grow in number: decide, close, apply and deliver, in nanoseconds; and bytes a channel.

`python benchmarks/micro/bench_channels.py --channels 1000 1000000` prints the table; what the suite runs is tiny.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import time
from typing import NamedTuple

import pytest

from broker_native.fanout import Fanout
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails

SYNCED = 3
PAYLOAD_BYTES = 128
RECORD = struct.pack("<IHHI", 12 + PAYLOAD_BYTES, 0, 0, 0) + bytes(PAYLOAD_BYTES)
GROUP_RECORDS = 8_192
SLOTS_MAX = 1 << 16
"""Channels that one connection may name; more channels are spread over more connections."""


class Cost(NamedTuple):
    """What was measured with so many channels."""

    channels: int
    load_ns: float
    decide_ns: float
    close_ns: float
    apply_ns: float
    deliver_ns: float
    evict_ns: float
    load_worst_us: float
    bytes_a_channel: float
    bytes_after: int

    @property
    def message_ns(self) -> float:
        return self.decide_ns + self.close_ns + self.apply_ns + self.deliver_ns


def measure(channels: int, groups: int) -> Cost:
    """Load so many channels, publish groups of records to random ones, evict them all."""
    tails = Tails(1, 4770)
    fanout = Fanout(tails)
    tails.now_us = 1
    names = [b"chat.room.%014d" % index for index in range(channels)]
    worst = 0.0
    begun = time.perf_counter()
    before = begun
    for name in names:
        tails.load(name, SYNCED, 2, 1 << 20)
        now = time.perf_counter()
        worst, before = max(worst, now - before), now
    load_s = time.perf_counter() - begun
    publishers = []
    for first in range(0, channels, SLOTS_MAX):
        publisher = Publisher(tails, Line(), None, 0)
        for slot, name in enumerate(names[first : first + SLOTS_MAX]):
            publisher.bind(slot, name)
        publishers.append(publisher)
    # Once round, so that each channel has been stored: that is not what is measured.
    chance, number, chain = random.Random(4770), 0, 0
    spent = [0.0] * 4
    order = [range(first, min(first + GROUP_RECORDS, channels)) for first in range(0, channels, GROUP_RECORDS)]
    for turn in range(len(order) + groups):
        picks = order[turn] if turn < len(order) else chance.choices(range(channels), k=GROUP_RECORDS)
        bodies = []
        for pick in picks:
            publisher = publishers[pick // SLOTS_MAX]
            bodies.append((publisher, pick % SLOTS_MAX))
        times = [time.perf_counter()]
        for publisher, slot in bodies:
            assert publisher.publish_frame(struct.pack("<IIQ", slot, 1, publisher.line.next) + RECORD) == 0
        times.append(time.perf_counter())
        value, _ = tails.close_group(number, chain, 1, 1, 1)
        tails.take_answers()
        times.append(time.perf_counter())
        tails.apply_group(value, lambda _: Line())
        times.append(time.perf_counter())
        fanout.deliver(value, 96 + struct.unpack_from("<I", value, 56)[0], 1, 0, 0)
        times.append(time.perf_counter())
        number = struct.unpack_from("<Q", value, 8)[0]
        if turn >= len(order):
            spent = [total + end - start for total, start, end in zip(spent, times, times[1:], strict=False)]
    taken = tails.memory_bytes
    del publishers, publisher, bodies
    begun = time.perf_counter()
    freed = 0
    while len(tails):
        freed += tails.evict(1 << 62, 1, 1_024)
    evict_s = time.perf_counter() - begun
    assert freed == channels
    per = [total / (groups * GROUP_RECORDS) * 1e9 for total in spent]
    return Cost(
        channels,
        load_s / channels * 1e9,
        per[0],
        per[1],
        per[2],
        per[3],
        evict_s / channels * 1e9,
        worst * 1e6,
        taken / channels,
        tails.memory_bytes,
    )


@pytest.mark.parametrize("channels", [100, 10_000])
def test_channels(channels: int) -> None:
    """Everything that was loaded is evicted, and its memory given back."""
    cost = measure(channels, 1)
    assert cost.bytes_after < 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--groups", type=int, default=40)
    options = parser.parse_args()
    print("channels    load  decide  close  apply  deliver  message   evict ns   worst load µs   B/channel   B after")
    for channels in options.channels:
        cost = measure(channels, options.groups)
        print(
            f"{channels:8} {cost.load_ns:7.0f} {cost.decide_ns:7.0f} {cost.close_ns:6.0f} {cost.apply_ns:6.0f} "
            f"{cost.deliver_ns:8.0f} {cost.message_ns:8.0f} {cost.evict_ns:7.0f} {cost.load_worst_us:15.0f} "
            f"{cost.bytes_a_channel:11.0f} {cost.bytes_after:9}"
        )
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
