"""Reopens every state that a loss of power may leave, and judges what is found.

Run as `python -m tests.powerloss.enumerate TRACE HISTORY SCRATCH STATES PART PARTS`; prints one JSON object. A state is
a moment of the trace, and one tree that the disk may hold then; all are drawn from a fixed seed and counted once. Of
each is asked: the log opens; the groups found are a chain that ends nowhere before the last acknowledged one, and each
is byte for byte what was handed over; nothing else is found; the tables agree. Now and then the log is used further.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from broker.log import Log
from broker.model.errors import StorageError
from tests.powerloss.disk import Disk, Kind, Operation, read_trace
from tests.powerloss.workload import GROUP_BYTES_MAX, MARK_ACKNOWLEDGED, SEGMENT_BYTES
from tests.reference.groups import (
    CHUNK_HEADER,
    GROUP_HEADER,
    HEAD,
    Group,
    build_chunk,
    build_group,
    chunk_of,
    parse_entries,
    parse_group,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = 41
GO_ON_EVERY = 20
FAILURES_KEPT = 20
# A moment counts as exhausted after so many draws that gave nothing new.
REPEATS_MAX = 15
_BYTES_MAX = 1 << 40


@dataclass(slots=True)
class Known:
    """A group that was handed to the log: what reading it must give, and its effect on the heads."""

    number: int
    predecessor: int
    chain: int
    chunks: list[tuple[int, int, bytes]]
    heads: dict[int, int]


class Oracle:
    """All groups that were ever handed over.

    Args:
        history: their values by number.
    """

    def __init__(self, history: dict[int, bytes]) -> None:
        self._known: dict[int, Known] = {}
        for number, value in history.items():
            group = parse_group(value)
            self._known[number] = Known(
                number,
                group.predecessor,
                group.chain,
                [(number, index, build_chunk(chunk)) for index, chunk in enumerate(group.chunks)],
                {chunk.channel: chunk.last + 1 for chunk in group.chunks},
            )

    def chain_to(self, last: int) -> list[Known]:
        """Return the groups from the first to `last`, by their predecessors."""
        chain = []
        while last:
            chain.append(self._known[last])
            last = chain[-1].predecessor
        chain.reverse()
        return chain


class Heads:
    """An applier that keeps the next sequence of every channel."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}

    def apply_group(self, value: bytes) -> None:
        """Apply a group, which the log has checked."""
        at = GROUP_HEADER.size + int.from_bytes(value[56:60], "little")
        while at < len(value):
            size, _, channel, _, first, count, *_ = CHUNK_HEADER.unpack_from(value, at)
            self.next[channel] = first + count
            at += size

    def apply_entries(self, entries: bytes | bytearray | memoryview) -> None:
        """Apply a table delta."""
        for entry in parse_entries(bytes(entries)):
            if entry.kind == HEAD:
                channel, _, following, _ = (int.from_bytes(entry.body[at : at + 8], "little") for at in (0, 8, 16, 24))
                self.next[channel] = following


@dataclass
class Verdict:
    """What the states came to."""

    states: int = 0
    lost: int = 0
    unopenable: int = 0
    unreadable: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, kind: str, moment: int, what: str) -> None:
        """Count a failure, and keep the first ones for the report."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(f"moment {moment}: {kind}: {what}")


class Wrong(Exception):
    """A state is not as it must be; `kind` is the verdict's counter."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def open_log(path: Path) -> tuple[Log, Heads, int]:
    """Open and recover a state; returns the log, the heads and the last group.

    Raises:
        Wrong: it does not open.
    """
    heads = Heads()
    log = None
    try:
        log = Log.open(path, segment_bytes=SEGMENT_BYTES, reserve_bytes=0, group_bytes_max=GROUP_BYTES_MAX)
        last = log.recover().group
        log.load_all(heads)
        return log, heads, last
    except Exception as cause:
        if log is not None:
            log.close()
        raise Wrong("unopenable", repr(cause)) from cause


def read_all(log: Log) -> list[tuple[int, int, bytes]]:
    """Return every chunk, in bus order."""
    place, found = (0, 0), []
    while True:
        chunks, after = log.read_groups(*place, _BYTES_MAX, None)
        found += chunks
        if after == place:
            return found
        place = after


def check(log: Log, heads: Heads, expected: list[Known]) -> None:
    """Compare what a log holds with what it must hold."""
    try:
        found = read_all(log)
    except StorageError as damage:
        raise Wrong("unreadable", str(damage)) from damage
    if found != [chunk for known in expected for chunk in known.chunks]:
        raise Wrong("wrong", f"read {len(found)} chunks that are not those of the {len(expected)} groups")
    following: dict[int, int] = {}
    for known in expected:
        following.update(known.heads)
    if heads.next != following:
        raise Wrong("wrong", "the heads are not those of the groups")


def judge(path: Path, oracle: Oracle, acknowledged: set[int], *, go_on: bool) -> None:
    """Judge one state.

    Raises:
        Wrong: something is lost, invented, out of order, or the log does not open.
    """
    log, heads, last = open_log(path)
    try:
        expected = oracle.chain_to(last)
        missing = acknowledged - {known.number for known in expected}
        if missing:
            raise Wrong("lost", f"ends with group {last}, without {min(missing)} to {max(missing)}")
        check(log, heads, expected)
        if not go_on:
            return
        added = next_group(expected, heads)
        parsed = parse_group(added)
        log.append(parsed.number, added)
    finally:
        log.close()
    log, heads, _ = open_log(path)
    try:
        chunks = [(parsed.number, 0, build_chunk(parsed.chunks[0]))]
        one = Known(parsed.number, last, parsed.chain, chunks, {1: parsed.chunks[0].last + 1})
        check(log, heads, [*expected, one])
    finally:
        log.close()


def next_group(expected: list[Known], heads: Heads) -> bytes:
    """Return a group that goes on after what was found. Its number is past all that were ever tried."""
    last, chain = (expected[-1].number, expected[-1].chain) if expected else (0, 0)
    chunk = chunk_of(1, 1, heads.next.get(1, 1), [b"after"])
    return build_group(Group(1 << 32, last, chain, chunks=(chunk,), run=2))


def build(tree: dict[str, bytes | None], path: Path) -> None:
    """Write a tree below a folder that does not exist yet."""
    path.mkdir()
    for name, content in tree.items():
        if content is None:
            os.mkdir(path / name)
            continue
        descriptor = os.open(path / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, content)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in the trace to lose power at: after `at` operations, the next one begun or not."""

    at: int
    in_flight: bool
    pending: int


def moments(operations: list[Operation]) -> list[Moment]:
    """Return every moment at which the possible states differ from those of the moment before."""
    disk, found = Disk(), []
    for operation in operations:
        if operation.durable:
            sectors = len(operation.data) // 512 + 1
            found.append(Moment(disk.moment, True, disk.pending() + sectors))
        disk.apply(operation)
        if operation.kind is not Kind.MARK or operation.flags == MARK_ACKNOWLEDGED:
            found.append(Moment(disk.moment, False, disk.pending()))
    return found


def quotas(found: list[Moment], states: int) -> list[int]:
    """Return how many states to draw at each moment.

    As many everywhere, but where little is unsettled, which has no more than two states for each sector, size or name.
    What such moments leave over goes to the others.
    """
    limits = [1 << min(moment.pending, 20) for moment in found]
    level = next(level for level in range(1, states + 1) if sum(min(limit, level) for limit in limits) >= states)
    return [min(limit, level) for limit in limits]


def trees(
    operations: list[Operation], found: list[Moment], wanted: list[int]
) -> Iterator[tuple[Moment, set[int], dict[str, bytes | None]]]:
    """Yield (moment, groups acknowledged by then, tree) for distinct trees of each moment, in the order of time.

    What a moment has not got, because most of its sectors were written with what they held, is asked of later ones.
    """
    disk = Disk()
    missing = 0
    for moment, quota in zip(found, wanted, strict=True):
        while disk.moment < moment.at:
            disk.apply(operations[disk.moment])
        if moment.in_flight:
            disk.begin(operations[disk.moment])
        acknowledged = {value for kind, value in disk.marks if kind == MARK_ACKNOWLEDGED}
        pick = random.Random(f"{SEED} {moment.at} {moment.in_flight}")
        seen: set[int] = set()
        repeats = 0
        while len(seen) < quota + missing and repeats < REPEATS_MAX:
            tree = disk.draw(pick)
            # LMDB's lock files make no new state: whatever they hold is thrown away when the file is opened.
            identity = hash(frozenset(item for item in tree.items() if not item[0].endswith("-lock")))
            repeats = repeats + 1 if identity in seen else 0
            if identity not in seen:
                seen.add(identity)
                yield moment, acknowledged, tree
        missing += quota - len(seen)


def judge_each(
    states: Iterator[tuple[Moment, set[int], dict[str, bytes | None]]],
    scratch: Path,
    judge_root: Callable[[Path, set[int], bool], None],
    go_on_every: int,
) -> Verdict:
    """Build state after state and have each judged.

    Args:
        states: as `trees` yields them.
        scratch: where they are built.
        judge_root: takes the folder that a state was built in, what was acknowledged by then, and whether to see that
            work goes on in it as well; raises Wrong.
        go_on_every: of so many states work goes on in one.
    """
    verdict = Verdict()
    for moment, acknowledged, tree in states:
        root = scratch / "root"
        build(tree, root)
        verdict.states += 1
        try:
            judge_root(root, acknowledged, verdict.states % go_on_every == 0)
        except Wrong as wrong:
            verdict.fail(wrong.kind, moment.at, str(wrong))
        shutil.rmtree(root)
    return verdict


def run(trace: Path, history: Path, scratch: Path, states: int, part: int, parts: int) -> Verdict:
    """Judge one part of the states of a trace: every `parts`-th moment, beginning with `part`."""
    operations = read_trace(trace)
    oracle = Oracle({int(number): bytes.fromhex(value) for number, value in json.loads(history.read_text()).items()})
    found = moments(operations)
    wanted = quotas(found, states)

    def judge_root(root: Path, acknowledged: set[int], go_on: bool) -> None:
        judge(root / "data", oracle, acknowledged, go_on=go_on)

    return judge_each(trees(operations, found[part::parts], wanted[part::parts]), scratch, judge_root, GO_ON_EVERY)


def main() -> None:
    """Run as the module's docstring says."""
    trace, history, scratch = (Path(argument) for argument in sys.argv[1:4])
    states, part, parts = (int(argument) for argument in sys.argv[4:7])
    # What a state's damage makes the log say is counted here, not printed.
    logging.disable(logging.CRITICAL)
    print(json.dumps(dataclasses.asdict(run(trace, history, scratch, states, part, parts))))


if __name__ == "__main__":
    main()
