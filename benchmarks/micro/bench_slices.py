"""Merging a slice of segments into the archive's rows."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.samples import EPOCH, PAYLOAD, TIME_US, name_of, reader_of, tree_of
from benchmarks.works import Works, measure
from broker_native.rows import pack_row
from broker_native.slices import SliceMerger, SliceSource
from tests.reference.groups import Entry, Group, channel_entry, chunk_of, epoch_entry
from tests.reference.slices import tables_of, write_segment

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("slices")

SEGMENTS, GROUPS, CHANNELS = 2, 5, 100
RECORDS = SEGMENTS * GROUPS * CHANNELS


def segment(number: int) -> list[Group]:
    """Return the groups of a segment: a record of every channel in each of them."""
    made = []
    for at in range(number * GROUPS + 1, (number + 1) * GROUPS + 1):
        entries: list[Entry] = []
        for channel in range(1, CHANNELS + 1) if at == 1 else ():
            entries += [channel_entry(channel, name_of(channel).decode()), epoch_entry(channel, EPOCH, 1)]
        chunks = [chunk_of(channel, EPOCH, at, [PAYLOAD], TIME_US + at) for channel in range(1, CHANNELS + 1)]
        made.append(Group(at, at - 1, 0, tuple(entries), tuple(chunks), time_us=TIME_US + at))
    return made


@WORKS.work(RECORDS, RECORDS, once=True)
def merge() -> Run:
    archive = tree_of([(b"\0", pack_row(b"\0", b"something"))])
    sources = []
    with TemporaryDirectory() as folder:
        for number in range(SEGMENTS):
            path, groups = Path(folder) / f"{number}.seg", segment(number)
            pages = write_segment(path, groups)
            reader = reader_of(path)
            sources.append(SliceSource(reader, groups[-1].number, len(groups), pages, tables_of(groups)))
    merger = SliceMerger(sources)

    def run() -> int:
        added, done = 0, False
        while not done:
            rows = merger.merge(archive, 1 << 30)
            added, done = added + rows.records_added, rows.done
        return added

    return run


def test_slices(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
