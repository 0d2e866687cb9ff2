"""Reading an archive: names, the newest messages of channels, one channel wholly, everything in bus order.

Sizes are small enough for CI. The sharp figures, from a quiet machine with room for the file:

    python -m benchmarks.micro.bench_archive --channels 1000000 --messages 2000000
"""

from __future__ import annotations

import argparse
import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from benchmarks.samples import (
    CHANNEL_MESSAGES,
    PAYLOAD_BYTES,
    RECORD,
    archive_rows,
    index_groups,
    name_of,
    tree_of,
)
from benchmarks.works import Works, measure
from broker.log.archive import Archive
from broker.log.environment import open_lmdb
from broker_native.archive import GroupsPacker, find_names, read_chunks, read_chunks_back, read_groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

    Measured: TypeAlias = Callable[[], int]

LAST, ASKED, NAMES_BATCH = 50, 10_000, 4096
BUS_MESSAGES = 300_000
MAP_BYTES = 1 << 42
SLICE_BYTES = 1 << 20
COUNTED_CHANNELS, COUNTED_MESSAGES = 200, 2000
WORKS = Works("archive")


@dataclass
class Store:
    """An archive of many small channels and, with the greatest id, a large one."""

    path: Path
    channels: int
    messages: int

    @property
    def large(self) -> int:
        return self.channels + 1

    def write(self) -> None:
        """Write the file."""
        environment = open_lmdb(self.path, MAP_BYTES, locks=False)
        rows = archive_rows(self.channels, self.messages)
        more = True
        while more:
            with environment.begin(write=True) as transaction:
                for count, (key, value) in enumerate(rows, 1):
                    transaction.put(key, value, append=True)
                    if count == 200_000:
                        break
                else:
                    more = False
        environment.close()


def names(archive: Archive, store: Store) -> Measured:
    """Look a sorted batch of random names up."""
    pick = random.Random(7)
    ids = sorted((pick.randrange(1, store.channels + 1) for _ in range(NAMES_BATCH)), key=name_of)
    asked = [name_of(channel) for channel in ids]

    def run() -> int:
        with archive.snapshot() as snapshot:
            found = snapshot.ids(asked)
        assert found == ids
        return len(found)

    return run


def last(archive: Archive, store: Store) -> Measured:
    """Read the newest messages of random channels, each in a snapshot of its own."""
    pick = random.Random(7)
    asked = [pick.randrange(1, store.channels + 1) for _ in range(min(ASKED, 10 * store.channels))]

    def run() -> int:
        for channel in asked:
            with archive.snapshot() as snapshot:
                chunks = snapshot.chunks_back(channel, 0, LAST, SLICE_BYTES)
            assert sum(map(len, chunks)) >= LAST * len(RECORD)
        return len(asked)

    return run


def replay(archive: Archive, store: Store) -> Measured:
    """Read the large channel in slices."""

    def run() -> int:
        after = 0
        while True:
            with archive.snapshot() as snapshot:
                chunks = snapshot.chunks(store.large, after, SLICE_BYTES)
            if not chunks:
                break
            first, count = struct.unpack_from("<QI", chunks[-1], 24)
            after = first + count - 1
        assert after == store.messages
        return after

    return run


def bus(archive: Archive, store: Store) -> Measured:
    """Read in bus order, from the beginning."""
    wanted = min(BUS_MESSAGES, store.channels * CHANNEL_MESSAGES)

    def run() -> int:
        place, messages = (0, 0), 0
        while messages < wanted:
            with archive.snapshot() as snapshot:
                chunks, place = snapshot.groups(*place, SLICE_BYTES, None)
            assert chunks
            messages += sum(int.from_bytes(chunk[32:36], "little") for _, _, chunk in chunks)
        return messages

    return run


def snapshots(archive: Archive, _: Store) -> Measured:
    """Begin and end snapshots."""

    def run() -> int:
        for _ in range(1000):
            with archive.snapshot():
                pass
        return 1000

    return run


READS: dict[str, tuple[Callable[[Archive, Store], Measured], str]] = {
    "snapshots": (snapshots, "snapshots/s"),
    "names": (names, "names/s"),
    "last": (last, "channels/s"),
    "replay": (replay, "messages/s"),
    "bus": (bus, "messages/s"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("archive") / "archive.mdb", 300, 5000)
    made.write()
    return made


@pytest.mark.parametrize("work", READS)
def test_read(benchmark: BenchmarkFixture, store: Store, work: str) -> None:
    archive = Archive(store.path)
    try:
        run = READS[work][0](archive, store)
        count = benchmark.pedantic(run, rounds=5)  # type: ignore[no-untyped-call]
    finally:
        archive.close()
    benchmark.extra_info.update(count=count)


@WORKS.work(COUNTED_CHANNELS, COUNTED_CHANNELS * (COUNTED_CHANNELS + 1) // 2)
def find_sorted_names() -> Run:
    reader = tree_of(archive_rows(COUNTED_CHANNELS, 0))
    asked = sorted(name_of(channel) for channel in range(1, COUNTED_CHANNELS + 1))
    return lambda: sum(find_names(reader, asked))


@WORKS.work(COUNTED_CHANNELS, 1)
def newest_messages() -> Run:
    reader = tree_of(archive_rows(COUNTED_CHANNELS, 0))

    def run() -> int:
        size = 0
        for channel in range(1, COUNTED_CHANNELS + 1):
            size += sum(map(len, read_chunks_back(reader, channel, 1 << 62, LAST, SLICE_BYTES)))
        return int(size > COUNTED_CHANNELS * LAST * len(RECORD))

    return run


@WORKS.work(COUNTED_MESSAGES, 1, bytes_per_operation=PAYLOAD_BYTES)
def one_channel() -> Run:
    reader = tree_of(archive_rows(1, COUNTED_MESSAGES))

    def run() -> int:
        chunks = read_chunks(reader, 2, 0, COUNTED_MESSAGES * SLICE_BYTES, 1 << 62)
        return int(sum(map(len, chunks)) > COUNTED_MESSAGES * len(RECORD))

    return run


@WORKS.work(10 * CHANNEL_MESSAGES, 10 * CHANNEL_MESSAGES)
def bus_order() -> Run:
    reader = tree_of(archive_rows(10, 0))

    def run() -> int:
        place, messages = (0, 0), 0
        while messages < 10 * CHANNEL_MESSAGES:
            chunks, place = read_groups(reader, *place, SLICE_BYTES, None)
            assert chunks
            messages += sum(int.from_bytes(chunk[32:36], "little") for _, _, chunk in chunks)
        return messages

    return run


@WORKS.work(COUNTED_CHANNELS * CHANNEL_MESSAGES, 1)
def pack_index() -> Run:
    groups = list(index_groups(COUNTED_CHANNELS))

    def run() -> int:
        packer = GroupsPacker()
        rows = [packer.add(group) for group in groups]
        rows.append(packer.finish())
        return int(sum(len(row[1]) for row in rows if row is not None) > COUNTED_CHANNELS * CHANNEL_MESSAGES)

    return run


def test_archive_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)


def main() -> None:
    """Measure one archive, warm: the best of some rounds of each work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000, help="small channels, of 60 messages each")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the large channel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the file; default: a temporary folder")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.folder) as folder:
        store = Store(Path(folder) / "archive.mdb", arguments.channels, arguments.messages)
        store.write()
        print(f"{store.channels} channels of {CHANNEL_MESSAGES} messages, one of {store.messages}, "
              f"{PAYLOAD_BYTES} bytes each: {store.path.stat().st_size / 1e9:.2f} GB")  # fmt: skip
        archive = Archive(store.path)
        for work, (prepare, unit) in READS.items():
            run = prepare(archive, store)
            walls, cores = [], []
            for _ in range(arguments.rounds):
                wall_s, core_s = time.perf_counter(), time.process_time()
                count = run()
                walls.append(count / (time.perf_counter() - wall_s))
                cores.append(count / (time.process_time() - core_s))
            print(f"{work:10}{max(walls):>14,.0f} {unit:12}{max(cores):>14,.0f} a second of CPU")
        archive.close()


if __name__ == "__main__":
    main()
