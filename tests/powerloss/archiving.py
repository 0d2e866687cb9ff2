"""The archive's writer under losses of power: what is recorded, and what is asked of every state.

Run as `python -m tests.powerloss.archiving record ROOT SEGMENTS MUTANT` under the recorder: slices are archived, one of
them cut short and repeated, the file is rebuilt, more slices follow. A mark says that a checkpoint was reported, which
lets the owner of the segments remove them. The segments lie outside of ROOT, and are durable.

Run as `python -m tests.powerloss.archiving judge TRACE SEGMENTS SCRATCH STATES PART PARTS` it reopens states. Of each
is asked: the writer opens it; its checkpoint is not before the last one that was reported; without a slice on its way
its rows are those of its checkpoint; and taken on to the end, it comes to what all segments come to.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from broker.log.archiver import ArchiveWriter, Stopped, archive_path
from broker.model.errors import BrokerError
from tests.powerloss.disk import read_trace
from tests.powerloss.enumerate import Verdict, Wrong, judge_each, moments, quotas, trees
from tests.powerloss.workload import MARK_ACKNOWLEDGED, MUTANTS
from tests.unit.log.archives import CHUNK_BYTES_REBUILT, Journal, check_archive

if TYPE_CHECKING:
    from tests.reference.slices import Model

SEED = 20_261_122
SEGMENTS = 8
TRANSACTION_BYTES = 12_000
MAP_BYTES = 1 << 30
GO_ON_EVERY = 4


def make_segments(folder: Path) -> Journal:
    """Make the segments; the same ones each time."""
    return Journal.make(folder, SEED, SEGMENTS, names=5, payload_bytes=1_500)


def record(root: Path, segments: Path, mutant: str) -> None:
    """Archive and rebuild, marking what was reported."""
    MUTANTS[mutant]()
    recorder = ctypes.CDLL(None)
    recorder.powerloss_mark.argtypes = [ctypes.c_int, ctypes.c_uint64]
    paths = sorted(segments.glob("*.seg"))
    writer = ArchiveWriter(archive_path(root), map_bytes=MAP_BYTES, transaction_bytes=TRANSACTION_BYTES)

    def archive(begin: int, end: int) -> None:
        checkpoint = writer.archive(paths[begin:end], lambda: None)
        recorder.powerloss_mark(MARK_ACKNOWLEDGED, checkpoint.ordinal)

    def stop() -> None:
        raise Stopped

    archive(0, 1)
    try:
        writer.archive(paths[1:3], stop)
    except Stopped:
        writer.close()
        writer = ArchiveWriter(archive_path(root), map_bytes=MAP_BYTES, transaction_bytes=TRANSACTION_BYTES)
    archive(1, 4)
    archive(4, 5)
    writer.compact(lambda: None)
    archive(5, 6)
    archive(6, SEGMENTS)
    writer.compact(lambda: None)
    writer.close()


def judge_state(data: Path, paths: list[Path], models: list[Model], acknowledged: int, *, go_on: bool) -> None:
    """Judge one state.

    Raises:
        Wrong: something is lost or invented, or the archive does not open.
    """
    path = archive_path(data)
    try:
        writer = ArchiveWriter(path, map_bytes=MAP_BYTES)
    except BrokerError as cause:
        raise Wrong("unopenable", repr(cause)) from cause
    try:
        found = writer.checkpoint.ordinal
        if found < acknowledged:
            raise Wrong("lost", f"the checkpoint is {found}, reported was {acknowledged}")
        if not writer.begun_ordinal:
            compare(path, models[found])
        elif not go_on:
            return
        if found < len(paths):
            writer.archive(paths[found:], lambda: None)
            compare(path, models[-1])
    except BrokerError as cause:
        raise Wrong("wrong", repr(cause)) from cause
    finally:
        writer.close()


def compare(path: Path, model: Model) -> None:
    """Compare an archive with its model.

    Raises:
        Wrong: they differ.
    """
    try:
        check_archive(path, model, CHUNK_BYTES_REBUILT)
    except (AssertionError, KeyError, ValueError, BrokerError) as cause:
        raise Wrong("wrong", repr(cause)[:500]) from cause


def judge(trace: Path, segments: Path, scratch: Path, states: int, part: int, parts: int) -> Verdict:
    """Judge one part of the states of a trace: every `parts`-th moment, beginning with `part`."""
    journal = make_segments(scratch / "model")
    models = [journal.model(count) for count in range(SEGMENTS + 1)]
    operations = read_trace(trace)
    found = moments(operations)
    wanted = quotas(found, states)
    paths = sorted(segments.glob("*.seg"))

    def judge_root(root: Path, acknowledged: set[int], go_on: bool) -> None:
        judge_state(root, paths, models, max(acknowledged, default=0), go_on=go_on)

    return judge_each(trees(operations, found[part::parts], wanted[part::parts]), scratch, judge_root, GO_ON_EVERY)


def main(arguments: list[str]) -> None:
    """Run as the module's docstring says."""
    logging.disable(logging.CRITICAL)
    if arguments[0] == "record":
        record(Path(arguments[1]), Path(arguments[2]), arguments[3])
        return
    trace, segments, scratch = (Path(argument) for argument in arguments[1:4])
    states, part, parts = (int(argument) for argument in arguments[4:7])
    print(json.dumps(dataclasses.asdict(judge(trace, segments, scratch, states, part, parts))))


if __name__ == "__main__":
    main(sys.argv[1:])
