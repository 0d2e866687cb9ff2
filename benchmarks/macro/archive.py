"""What archiving costs: records a second, bytes written, and how full the file's pages are.

Run as `python -m benchmarks.macro.archive --channels 100000 --records 10000000`: segments are made of single-record
publishes to random channels, archived slice by slice and removed, and the archive is rebuilt at the end. Only the time
in the writer counts. Of each slice and at the end one line is printed, and with `--json` written; payload is that of
the records, 128 bytes each unless `--payload-bytes` says otherwise. Run it on the file system that is to be measured.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import lmdb

from broker.log.archiver import ArchiveWriter, archive_path
from broker.log.environment import OpenFiles, create_file, open_lmdb, reading_tree, remove_file
from broker.log.sealer import seal_segment, segment_path
from broker.log.segment import Segment
from broker_native.crc32c import crc32c_of
from broker_native.index import check_group
from tests.reference.groups import GROUP_HEADER, GROUP_MAGIC, build_entry, channel_entry, epoch_entry

MIB = 1024 * 1024
MAP_BYTES = 1 << 34
EPOCH = (1 << 40) | 1
PAGE_BYTES = 4096
_CHUNK = struct.Struct("<QQQIIQQ")
_RECORD = struct.Struct("<IHHI")


@dataclass
class Journal:
    """Makes sealed segments of random publishes."""

    folder: Path
    channels: int
    payload_bytes: int
    batch: int
    segment_bytes: int
    seed: int
    number: int = 0
    chain: int = 0
    records: int = 0
    last: Segment | None = None
    ordinal: int = 0
    next: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pick = random.Random(self.seed)
        size = _RECORD.size + self.payload_bytes
        self._record = _RECORD.pack(size, 0, 0, 0) + self._pick.randbytes(self.payload_bytes)

    def _group(self) -> bytes:
        """Return a group of so many publishes, those of one channel in one chunk, as the broker has them."""
        counts: dict[int, int] = {}
        for _ in range(self.batch):
            channel = self._pick.randrange(1, self.channels + 1)
            counts[channel] = counts.get(channel, 0) + 1
        self.number += 1
        time_us = 1_767_225_600_000_000 + self.number * 1_000
        entries: list[bytes] = []
        chunks: list[bytes] = []
        for channel, count in counts.items():
            first = self.next.get(channel, 0)
            if not first:
                first = 1
                entries.append(build_entry(channel_entry(channel, f"bench.archive.{channel:09}")))
                entries.append(build_entry(epoch_entry(channel, EPOCH, 1)))
            self.next[channel] = first + count
            checked = _CHUNK.pack(channel, EPOCH, first, count, 0, time_us, 0) + self._record * count
            chunks.append(struct.pack("<II", 8 + len(checked), crc32c_of(checked)) + checked)
        self.records += self.batch
        return self._seal(b"".join(entries), len(entries), chunks, time_us)

    def _seal(self, entries: bytes, count: int, chunks: list[bytes], time_us: int) -> bytes:
        body = b"".join(chunks)
        header = GROUP_HEADER.pack(
            GROUP_MAGIC, 1, 96, self.number, self.number - 1, 1, 1, 1, time_us, len(entries), count, len(chunks), 0,
            96 + len(entries) + len(body), 0, self.chain, 0,
        )  # fmt: skip
        chain = crc32c_of(header[:80] + struct.pack("<I", self.chain) + entries)
        for chunk in chunks:
            chain = crc32c_of(chunk[4:8], chain)
        self.chain = chain
        return header[:80] + struct.pack("<I", chain) + header[84:] + entries + body

    def segment(self) -> Path:
        """Make one more sealed segment."""
        self.ordinal += 1
        segment = Segment(self.ordinal, segment_path(self.folder, self.ordinal), MAP_BYTES, OpenFiles(4))
        create_file(segment.path, MAP_BYTES)
        if self.last is not None:
            segment.last = self.last.last
        while segment.bytes < self.segment_bytes:
            value = self._group()
            segment.append(self.number, value)
            segment.extend(segment.last, check_group(value), value)
        seal_segment(segment, lambda: None)
        segment.file.close()
        self.last = segment
        return segment.path


def written_bytes() -> int:
    """Return what this process has handed to the disk so far; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def live_bytes(path: Path) -> int:
    """Return the bytes of the pages that the newest tree of a file refers to."""
    environment = open_lmdb(path, 1 << 42, locks=False, readonly=True)
    try:
        stat = environment.stat()
    finally:
        environment.close()
    return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * PAGE_BYTES


def count_records(path: Path) -> int:
    """Return how many records an archive has, from its chunks."""
    found, key = 0, b"\x10"
    with reading_tree(path) as tree:
        while rows := tree.range(key, b"\x11", 4096, 16 * MIB):
            found += sum(int.from_bytes(value[32:36], "little") for _, value in rows)
            key = rows[-1][0] + b"\0"
    return found


@dataclass
class Figures:
    """Prints lines, and keeps them for `--json`."""

    json_path: Path | None

    def say(self, what: str, **figures: float) -> None:
        """Print one line."""
        text = "  ".join(
            f"{name} {value:,.2f}" if value % 1 else f"{name} {value:,.0f}" for name, value in figures.items()
        )
        print(f"{what:<10} {text}", flush=True)
        if self.json_path is not None:
            with self.json_path.open("a") as file:
                file.write(json.dumps({"what": what, **figures}) + "\n")


def run(options: argparse.Namespace, data: Path) -> bool:
    """Measure; tells whether every record is in the archive."""
    figures = Figures(options.json)
    (data / "journal").mkdir(parents=True)
    journal = Journal(
        data / "journal",
        options.channels,
        options.payload_bytes,
        options.batch,
        options.segment_mib * MIB,
        options.seed,
    )
    writer = ArchiveWriter(archive_path(data), transaction_bytes=options.transaction_mib * MIB)
    spent_s = written = 0.0
    while journal.records < options.records:
        paths = [journal.segment() for _ in range(options.slice_segments)]
        before, records = written_bytes(), writer.checkpoint.records
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        writer.archive(paths, lambda: None)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        spent_s += took_s
        written += written_bytes() - before
        records = writer.checkpoint.records - records
        for path in paths:
            remove_file(path)
        figures.say(
            "slice",
            records=records,
            records_per_s=records // took_s,
            records_per_cpu_s=records // cpu_s,
            amplification=round((written_bytes() - before) / (records * options.payload_bytes), 2),
        )
    payload = writer.checkpoint.records * options.payload_bytes
    writer.close()
    path = archive_path(data)
    figures.say(
        "archive",
        channels=options.channels,
        records_per_s=journal.records // spent_s,
        amplification=round(written / payload, 2),
        live=round(live_bytes(path) / payload, 3),
        file=round(path.stat().st_size / payload, 3),
    )
    writer = ArchiveWriter(path)
    began_s = time.perf_counter()
    writer.compact(lambda: None)
    took_s = time.perf_counter() - began_s
    writer.close()
    figures.say(
        "rebuilt",
        records_per_s=journal.records // took_s,
        live=round(live_bytes(path) / payload, 3),
        file=round(path.stat().st_size / payload, 3),
    )
    return count_records(path) == journal.records


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 when a record is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--payload-bytes", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1_000, help="records in a group")
    parser.add_argument("--segment-mib", type=int, default=64)
    parser.add_argument("--slice-segments", type=int, default=8)
    parser.add_argument("--transaction-mib", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; a temporary folder by default")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    data = Path(tempfile.mkdtemp(prefix="broker-archive-", dir=options.folder))
    try:
        return 0 if run(options, data) else 1
    except lmdb.Error as failure:
        print(f"{data}: {failure}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(data)


if __name__ == "__main__":
    sys.exit(main())
