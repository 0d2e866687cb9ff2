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
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from broker.log.archive import Archive, Checkpoint
from broker.log.archive_rows import CHECKPOINT_KEY
from broker.log.environment import open_lmdb
from broker_native.archive import GroupsPacker
from broker_native.crc32c import crc32c_of
from broker_native.rows import pack_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from pytest_benchmark.fixture import BenchmarkFixture

    Work: TypeAlias = Callable[[], int]

MAP_BYTES = 1 << 42
PAYLOAD_BYTES = 128
CHANNEL_MESSAGES = 60
LEAF_RECORDS, ROW_RECORDS = 13, 116
"""Records in a row of at most 1,900 bytes, and of at most 16,368: an archiver makes both."""
LAST, ASKED, NAMES_BATCH = 50, 10_000, 4096
BUS_MESSAGES = 300_000
SLICE_BYTES = 1 << 20
EPOCH, TIME_US = 1 << 32, 1_767_225_600_000_000
RECORD = struct.pack("<IHHI", 12 + PAYLOAD_BYTES, 0, 0, 0) + random.Random(4770).randbytes(PAYLOAD_BYTES)
CHUNK = struct.Struct("<QQQIIQQ")
ENTRY_HEAD, ENTRY_CHANNEL, ENTRY_EPOCH = 4, 1, 2


def chunk(channel: int, first: int, count: int) -> bytes:
    """Return a chunk of records."""
    body = CHUNK.pack(channel, EPOCH, first, count, 0, TIME_US, 0) + RECORD * count
    return struct.pack("<II", 8 + len(body), crc32c_of(body)) + body


def name_of(channel: int) -> bytes:
    """Return a channel's name, 24 bytes."""
    return b"room.%05d.%013d" % (channel % 1000, channel)


def entries(channel: int, messages: int) -> bytes:
    """Return the entries of a channel's row."""
    name = name_of(channel)
    return (
        struct.pack("<IHHQBBBB", 20 + len(name), ENTRY_CHANNEL, 0, channel, 3, 2, len(name), 0)
        + name
        + struct.pack("<IHHQQQ", 32, ENTRY_EPOCH, 0, channel, EPOCH, 1)
        + struct.pack("<IHHQQQQ", 40, ENTRY_HEAD, 0, channel, EPOCH, messages + 1, 1)
    )


@dataclass
class Store:
    """An archive of many small channels and, with the greatest id, a large one."""

    path: Path
    channels: int
    messages: int

    @property
    def large(self) -> int:
        return self.channels + 1

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all rows in the order of their keys."""
        ids = range(1, self.large + 1)
        yield CHECKPOINT_KEY, Checkpoint.empty().pack()
        for name, channel in sorted((name_of(channel), channel) for channel in ids):
            yield b"\x01" + name, pack_row(b"\x01" + name, channel.to_bytes(8, "little"))
        for channel in ids:
            key = b"\x02" + channel.to_bytes(8, "big")
            count = self.messages if channel == self.large else CHANNEL_MESSAGES
            yield key, pack_row(key, b"\x01\x00\x00\x00" + bytes(16) + entries(channel, count))
        for channel in ids:
            count, row = (self.messages, ROW_RECORDS) if channel == self.large else (CHANNEL_MESSAGES, LEAF_RECORDS)
            for first in range(1, count + 1, row):
                key = b"\x10" + channel.to_bytes(8, "big") + first.to_bytes(8, "big")
                yield key, chunk(channel, first, min(row, count + 1 - first))
        yield from self.index()

    def index(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the commit index: every message of a small channel a chunk of its own, in a random order."""
        order = [channel for channel in range(1, self.channels + 1) for _ in range(CHANNEL_MESSAGES)]
        random.Random(4770).shuffle(order)
        heads = [1] * (self.large + 1)
        packer = GroupsPacker()
        for number, at in enumerate(range(0, len(order), 500), 1):
            picked = order[at : at + 500]
            chunks = []
            for channel, same in groupby(sorted(picked)):
                count = len(list(same))
                body = CHUNK.pack(channel, EPOCH, heads[channel], count, 0, TIME_US + number, 0)
                chunks.append(struct.pack("<II", 8 + len(body), 0) + body)
                heads[channel] += count
            header = struct.pack("<IHHQQQQQQIIIIQIIQ", 0x50524742, 1, 96, number, number - 1, 1, 1, 1, TIME_US + number,
                                 0, 0, len(chunks), 0, 0, 0, 0, 0)  # fmt: skip
            row = packer.add(header + b"".join(chunks))
            if row is not None:
                yield row
        row = packer.finish()
        if row is not None:
            yield row

    def write(self) -> None:
        """Write the file."""
        environment = open_lmdb(self.path, MAP_BYTES, locks=False)
        rows = self.rows()
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


def names(archive: Archive, store: Store) -> Work:
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


def last(archive: Archive, store: Store) -> Work:
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


def replay(archive: Archive, store: Store) -> Work:
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


def bus(archive: Archive, store: Store) -> Work:
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


def snapshots(archive: Archive, _: Store) -> Work:
    """Begin and end snapshots."""

    def run() -> int:
        for _ in range(1000):
            with archive.snapshot():
                pass
        return 1000

    return run


WORKS: dict[str, tuple[Callable[[Archive, Store], Work], str]] = {
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


@pytest.mark.parametrize("work", WORKS)
def test_read(benchmark: BenchmarkFixture, store: Store, work: str) -> None:
    archive = Archive(store.path)
    try:
        run = WORKS[work][0](archive, store)
        count = benchmark.pedantic(run, rounds=5)  # type: ignore[no-untyped-call]
    finally:
        archive.close()
    benchmark.extra_info.update(count=count)


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
        for work, (prepare, unit) in WORKS.items():
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
