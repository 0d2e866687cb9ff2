"""The sequencer: a PUBLISH frame decided, turns and groups closed, groups applied; nanoseconds a record."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from benchmarks.works import SEED, Works
from benchmarks.works import measure as measure_work
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

EPHEMERAL, SYNCED = 1, 3
RECORDS = 4096
PAYLOAD_BYTES = 128
RECORD = struct.pack("<IHHI", 12 + PAYLOAD_BYTES, 0, 0, 0) + random.Random(SEED).randbytes(PAYLOAD_BYTES)
CHANNELS = 1000
WORKS = Works("tails")
COVERS = ("channels", "lines", "published", "publisher")


class House:
    """One producer and some channels, chosen by a fixed seed."""

    def __init__(self, level: int, channels: int) -> None:
        self.tails = Tails(1, 4770)
        self.publisher = Publisher(self.tails, Line(b"p" * 16), None, 0)
        for slot in range(channels):
            name = b"room.%d" % slot
            self.tails.load(name, level, 2, 1 << 20)
            self.publisher.bind(slot, name)
        self.slots = random.Random(SEED).choices(range(channels), k=RECORDS)

    def bodies(self, batch: int, number: int = 0) -> list[bytes]:
        """Return PUBLISH bodies of RECORDS records from a number on, `batch` in each."""
        number = number or self.publisher.line.next
        records = RECORD * batch
        return [struct.pack("<IIQ", self.slots[at], batch, number + at) + records for at in range(0, RECORDS, batch)]

    def publish(self, bodies: list[bytes]) -> int:
        publish = self.publisher.publish_frame
        return sum(publish(body) for body in bodies)


def published(level: int, channels: int, batch: int) -> Run:
    house = House(level, channels)
    bodies = house.bodies(batch)

    def run() -> int:
        refused = house.publish(bodies)
        return house.tails.records - refused

    return run


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def publish() -> Run:
    return published(EPHEMERAL, 1, 1)


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def publish_to_many_channels() -> Run:
    return published(SYNCED, CHANNELS, 1)


@WORKS.work(RECORDS, RECORDS, bytes_per_operation=PAYLOAD_BYTES, once=True)
def publish_batches() -> Run:
    return published(EPHEMERAL, 1, 64)


@WORKS.work(RECORDS, 1, once=True)
def close_turn() -> Run:
    house = House(EPHEMERAL, CHANNELS)
    house.publish(house.bodies(1))

    def run() -> int:
        value, _ = house.tails.close_turn()
        house.tails.take_turn_answers()
        return int(value is not None and len(value) > RECORDS * PAYLOAD_BYTES)

    return run


@WORKS.work(RECORDS, 1, once=True)
def close_and_apply_group() -> Run:
    house = House(SYNCED, CHANNELS)
    house.publish(house.bodies(1))

    def run() -> int:
        value, _ = house.tails.close_group(0, 0, 0, 0, 0)
        house.tails.take_answers()
        house.tails.apply_group(value, lambda _: house.publisher.line)
        return int(len(value) > RECORDS * PAYLOAD_BYTES)

    return run


@WORKS.work(RECORDS, RECORDS)
def load_and_evict() -> Run:
    names = [b"room.%d" % slot for slot in range(RECORDS)]

    def run() -> int:
        tails = Tails(1, SEED)
        for name in names:
            tails.load(name, SYNCED, 2, 1 << 20)
        loaded = len(tails)
        while tails.evict(1 << 62, 1, RECORDS):
            pass
        return loaded - len(tails)

    return run


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


def test_tails_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure_work(benchmark, kernel_work)
