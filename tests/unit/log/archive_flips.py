"""Flips bits of an archive, one at a time, and demands that every answer is right or an error.

python -m tests.unit.log.archive_flips --flips 10000 --seed 1
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from broker.log.archive import Archive, Snapshot
from broker.model.errors import StorageError
from broker_native.tree import TreeReader
from tests.reference.archive import ArchiveModel, Channel
from tests.reference.chunks import Item, items_of
from tests.reference.groups import Group, chunk_of

if TYPE_CHECKING:
    from collections.abc import Callable

TIME_US = 1_767_225_600_000_000
ALL = 1 << 40
ROW_BYTES, INDEX_BYTES = 700, 600


def build_model(seed: int, channels: int = 40, groups: int = 120) -> ArchiveModel:
    """Return an archive of several pages a table, with small rows and large ones."""
    pick = random.Random(seed)
    model = ArchiveModel()
    for channel in range(1, channels + 1):
        model.create(channel, f"room.{channel % 7}.{channel}")
    for number in range(1, groups + 1):
        time_us = TIME_US + number * 1000
        picked = sorted({1, pick.randrange(1, channels + 1), pick.randrange(1, channels + 1)})
        chunks = []
        for channel in picked:
            payloads = [pick.randbytes(pick.choice((5, 40, 200))) for _ in range(pick.randrange(1, 4))]
            if pick.random() < 0.03:
                payloads.append(pick.randbytes(6000))
            chunks.append(chunk_of(channel, 3, model.channels[channel].next, payloads, time_us))
        model.commit(Group(number, number - 1, chunks=tuple(chunks), time_us=time_us))
    model.trim(2, model.channels[2].next // 2 + 1)
    for _ in range(1 + channels // 20):
        model.line(pick.randbytes(16), 7, [(1, 1, 2)] * pick.choice((2, 300)))
    return model


@dataclass(frozen=True)
class Reading:
    """All that a snapshot answers to the questions of a model."""

    names: list[tuple[bytes, int]]
    ids: list[int]
    channels: list[bytes]
    lines: list[bytes]
    chunks: list[list[Item]]
    back: list[list[Item]]
    bus: list[tuple[int, int, list[Item]]]
    times: list[int | None]

    @classmethod
    def questions(cls, model: ArchiveModel) -> list[Callable[[Snapshot], object]]:
        """Return each question as a function of a snapshot, in the order of the fields."""
        ids = sorted([*model.channels, 1 << 40])
        names = sorted([*(state.name.encode() for state in model.channels.values()), b"room.1.none"])
        producers = sorted([*model.lines, b"\x80" * 16])
        moments = [group.time_us + 1 for group in model.groups]
        return [
            lambda s: s.names(b"", b"", 10**6),
            lambda s: s.ids(names),
            lambda s: s.channels(ids),
            lambda s: s.lines(producers),
            lambda s: [plain(s.chunks(channel, 0, ALL)) for channel in ids],
            lambda s: [plain(s.chunks_back(channel, 0, 10**6, ALL)) for channel in ids],
            lambda s: [(group, index, plain([chunk])) for group, index, chunk in s.groups(0, 0, ALL, None)[0]],
            lambda s: (
                [s.group_at(moment) for moment in moments] + [s.sequence_at(1, moment) for moment in moments[::10]]
            ),
        ]

    @classmethod
    def of(cls, snapshot: Snapshot, model: ArchiveModel) -> Reading:
        """Ask a snapshot everything."""
        return cls(*(ask(snapshot) for ask in cls.questions(model)))  # type: ignore[arg-type]

    @classmethod
    def expected(cls, model: ArchiveModel) -> Reading:
        """Return what a snapshot must answer."""
        ids = sorted([*model.channels, 1 << 40])
        of_channels = [bare(model.channels[channel].items()) if channel in model.channels else [] for channel in ids]
        moments = [group.time_us + 1 for group in model.groups]
        by_name = {state.name.encode(): channel for channel, state in model.channels.items()}
        return cls(
            model.names(b"", b""),
            [by_name.get(name, 0) for name in sorted([*by_name, b"room.1.none"])],
            [model.channels.get(channel, Channel("")).entries(channel) if channel in model.channels else b""
             for channel in ids],
            [model.lines.get(producer, b"") for producer in sorted([*model.lines, b"\x80" * 16])],
            of_channels,
            of_channels,
            [(group, index, bare(items)) for group, index, _, items in model.bus(None)],
            [model.group_at(moment) for moment in moments]
            + [model.sequence_at(1, moment) for moment in moments[::10]],
        )  # fmt: skip


def raw_questions(model: ArchiveModel) -> list[Callable[[Snapshot], object]]:
    """Return the questions of a `Reading` for answers in bytes, which are quicker to compare."""
    ids = sorted([*model.channels, 1 << 40])
    return [
        *Reading.questions(model)[:4],
        lambda s: [s.chunks(channel, 0, ALL) for channel in ids],
        lambda s: [s.chunks_back(channel, 0, 10**6, ALL) for channel in ids],
        lambda s: s.groups(0, 0, ALL, None),
        Reading.questions(model)[7],
    ]


def plain(chunks: list[bytes]) -> list[Item]:
    """Return the records of chunks, by what they say."""
    return bare([item for chunk in chunks for item in items_of(chunk)])


def bare(items: list[Item]) -> list[Item]:
    """Return records without the times that count from their chunks'."""
    return [replace(item, record=replace(item.record, time_us=0)) for item in items]


@dataclass
class Found:
    """What became of the flips."""

    refused: int = 0
    unchanged: int = 0
    wrong: list[str] = field(default_factory=list)


class TrustingSnapshot(Snapshot):
    """A reader that proves no row: the mistake that the flips must find."""

    def ids(self, names: list[bytes]) -> list[int]:
        """Look names up without a look at checksums."""
        values = self._read(TreeReader.get_sorted, [b"\x01" + name for name in names])
        return [int.from_bytes(value[4:], "little") if value else 0 for value in values]

    def channels(self, ids: list[int]) -> list[bytes]:
        """Look channels up in the same way."""
        values = self._read(TreeReader.get_sorted, [b"\x02" + channel.to_bytes(8, "big") for channel in ids])
        return [value[24:] if value else b"" for value in values]


def flips(folder: Path, seed: int, count: int, *, trusting: bool = False) -> Found:
    """Flip bits of an archive.

    Args:
        folder: to work in; what is in it is removed.
        seed: which bits.
        count: how many, one after the other.
        trusting: read with a reader that proves no rows, until it is found out.
    """
    pick = random.Random(seed)
    model = build_model(seed)
    path = folder / "archive.mdb"
    for file in folder.iterdir():
        file.unlink()
    # Rows that were written over leave older pages behind, as in an archive that grows.
    grown = ArchiveModel(dict(model.channels), dict(model.lines), model.groups[:60], model.checkpoint)
    grown.write(path, ROW_BYTES + 100, INDEX_BYTES)
    model.write(path, ROW_BYTES, INDEX_BYTES)
    content = path.read_bytes()
    archive = Archive(path)
    with archive.snapshot() as snapshot:
        assert Reading.of(snapshot, model) == Reading.expected(model)
        questions = raw_questions(model)
        answers = [ask(snapshot) for ask in questions]
    archive.close()
    found = Found()
    for _ in range(count):
        at, bit = pick.randrange(len(content)), pick.randrange(8)
        poke(path, at, content[at] ^ 1 << bit)
        judge(found, f"bit {bit} of byte {at}", path, questions, answers, trusting=trusting)
        poke(path, at, content[at])
        if trusting and found.wrong:
            break
    return found


def poke(path: Path, at: int, value: int) -> None:
    """Write one byte of a file over."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


def judge(
    found: Found,
    flip: str,
    path: Path,
    questions: list[Callable[[Snapshot], object]],
    answers: list[object],
    *,
    trusting: bool,
) -> None:
    """Ask everything of a file with a flipped bit."""
    refused = False
    try:
        archive = Archive(path)
    except StorageError:
        found.refused += 1
        return
    try:
        for ask, answer in zip(questions, answers, strict=True):
            try:
                with archive.snapshot() as snapshot:
                    if trusting:
                        snapshot = TrustingSnapshot(path, snapshot._reader)
                    if ask(snapshot) != answer:
                        found.wrong.append(flip)
            except StorageError:
                refused = True
    finally:
        archive.close()
    found.refused += refused
    found.unchanged += not refused


def main() -> None:
    """Flip as many as asked for, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = flips(Path(folder), arguments.seed, arguments.flips)
    print(f"{found.refused} refused, {found.unchanged} without effect, {len(found.wrong)} wrong: {found.wrong[:10]}")
    raise SystemExit(bool(found.wrong))


if __name__ == "__main__":
    main()
