"""The sequencer: a PUBLISH frame decided, turns and groups closed, groups applied; nanoseconds a record."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from broker_native.tails import Line, Publisher, Tails

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

EPHEMERAL, SYNCED = 1, 3
RECORDS = 4096
PAYLOAD_BYTES = 128
RECORD = struct.pack("<IHHI", 12 + PAYLOAD_BYTES, 0, 0, 0) + random.Random(4770).randbytes(PAYLOAD_BYTES)


class House:
    """One producer and some channels, chosen by a fixed seed."""

    def __init__(self, level: int, channels: int) -> None:
        self.tails = Tails(1, 4770)
        self.publisher = Publisher(self.tails, Line(b"p" * 16), None, 0)
        for slot in range(channels):
            name = b"room.%d" % slot
            self.tails.load(name, level, 2, 1 << 20)
            self.publisher.bind(slot, name)
        self.slots = random.Random(4770).choices(range(channels), k=RECORDS)

    def bodies(self, batch: int, number: int = 0) -> list[bytes]:
        """Return PUBLISH bodies of RECORDS records from a number on, `batch` in each."""
        number = number or self.publisher.line.next
        records = RECORD * batch
        return [struct.pack("<IIQ", self.slots[at], batch, number + at) + records for at in range(0, RECORDS, batch)]

    def publish(self, bodies: list[bytes]) -> int:
        publish = self.publisher.publish_frame
        return sum(publish(body) for body in bodies)


def measure(benchmark: BenchmarkFixture, setup: Callable[[], tuple[object, ...]], run: Callable[..., int]) -> None:
    checksum = benchmark.pedantic(run, setup=lambda: (setup(), {}), rounds=20)  # type: ignore[no-untyped-call]
    benchmark.extra_info.update(checksum=checksum, records=RECORDS)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_record"] = benchmark.stats.stats.median / RECORDS * 1e9


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("channels", [1, 1000])
@pytest.mark.parametrize("level", [EPHEMERAL, SYNCED])
def test_publish(benchmark: BenchmarkFixture, level: int, channels: int, batch: int) -> None:
    house = House(level, channels)

    def setup() -> tuple[object, ...]:
        drain(house)
        return (house.bodies(batch),)

    measure(benchmark, setup, house.publish)


@pytest.mark.parametrize("channels", [1, 1000])
def test_close_turn(benchmark: BenchmarkFixture, channels: int) -> None:
    house = House(EPHEMERAL, channels)

    def setup() -> tuple[object, ...]:
        house.publish(house.bodies(1))
        return ()

    def run() -> int:
        value, _ = house.tails.close_turn()
        assert value is not None
        return len(value)

    measure(benchmark, setup, run)


@pytest.mark.parametrize("channels", [1, 1000])
def test_close_and_apply_group(benchmark: BenchmarkFixture, channels: int) -> None:
    house = House(SYNCED, channels)

    def setup() -> tuple[object, ...]:
        house.publish(house.bodies(1))
        return ()

    def run() -> int:
        value, _ = house.tails.close_group(0, 0, 0, 0, 0)
        house.tails.take_answers()
        house.tails.apply_group(value, lambda _: house.publisher.line)
        return len(value)

    measure(benchmark, setup, run)


def drain(house: House) -> None:
    """Let go of what was published, so that each round begins with empty chunks."""
    house.tails.close_turn()
    house.tails.take_turn_answers()
    value, _ = house.tails.close_group(0, 0, 0, 0, 0)
    house.tails.take_answers()
    house.tails.apply_group(value, lambda _: house.publisher.line)
