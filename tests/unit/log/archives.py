"""What the tests of archiving share: sealed segments of a journal from a seed, and an archive judged by a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.log.archive_rows import CHECKPOINT_KEY, Checkpoint
from broker.log.environment import OpenFiles, create_file, reading_tree
from broker.log.sealer import seal_segment, segment_path
from broker.log.segment import Segment
from broker_native.index import check_group
from tests.reference.groups import Group, build_group
from tests.reference.slices import Maker, Model, judge

if TYPE_CHECKING:
    from pathlib import Path

MAP_BYTES = 1 << 30
CHUNK_BYTES_REBUILT = 65_520


@dataclass
class Journal:
    """Sealed segments in a data directory, and what their groups come to."""

    data: Path
    segments: list[Segment] = field(default_factory=list)
    groups: list[list[Group]] = field(default_factory=list)

    @classmethod
    def make(cls, data: Path, seed: int, segments: int = 6, *, names: int = 8, payload_bytes: int = 2_000) -> Journal:
        """Make segments of a few groups each."""
        maker = Maker(seed, names, payload_bytes)
        journal = cls(data)
        (data / "journal").mkdir(parents=True, exist_ok=True)
        for _ in range(segments):
            journal.add([maker.group() for _ in range(maker.pick.randint(1, 8))])
        return journal

    def add(self, groups: list[Group]) -> None:
        """Seal one more segment."""
        ordinal = len(self.segments) + 1
        segment = Segment(ordinal, segment_path(self.data / "journal", ordinal), MAP_BYTES, OpenFiles(4))
        create_file(segment.path, MAP_BYTES)
        if self.segments:
            segment.last = self.segments[-1].last
        for group in groups:
            value = build_group(group)
            segment.append(group.number, value)
            segment.extend(segment.last, check_group(value), value)
        seal_segment(segment, lambda: None)
        segment.file.close()
        self.segments.append(segment)
        self.groups.append(groups)

    @property
    def paths(self) -> list[Path]:
        """The segments' files, oldest first."""
        return [segment.path for segment in self.segments]

    def model(self, segments: int | None = None) -> Model:
        """Return what the first segments come to."""
        model = Model()
        for groups in self.groups[:segments]:
            for group in groups:
                model.apply(group)
        return model


def rows_of(path: Path) -> dict[bytes, bytes]:
    """Return all rows of an archive that nobody writes to."""
    with reading_tree(path) as tree:
        return dict(tree.range(b"", b"", 1 << 40, 1 << 40))


def check_archive(path: Path, model: Model, chunk_bytes_max: int = 16_368) -> Checkpoint:
    """Compare an archive that no slice is on its way into with what it must be; returns its checkpoint."""
    rows = rows_of(path)
    checkpoint = Checkpoint.unpack(rows[CHECKPOINT_KEY], path)
    totals = checkpoint.channels, checkpoint.records, checkpoint.bytes
    assert judge(rows, model, chunk_bytes_max) == totals
    return checkpoint
