"""A whole log under losses of power: sealing, archiving, checkpoints, unlinking, trims, removals, rebuilds in one run.

Run as `python -m tests.powerloss.whole record DATA MUTANT` under the recorder: groups are appended, and their segments
sealed, archived and removed beside them; some slices are cut short by a close; the archive is rebuilt twice while
groups come. Marks go into the trace before a group is handed over and after it was acknowledged. The groups are those
of a seed, so whoever judges makes them once more.

Run as `python -m tests.powerloss.whole judge TRACE SCRATCH STATES PART PARTS` it reopens states. Of each is asked: the
log opens, and ends with an acknowledged group or a later one; channels, names, bounds and epochs are those of the
groups up to there, and what is trimmed or removed is not there; every record is read back, by channel and by the bus.
Now and then all of it is archived and rebuilt, and asked again.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.log import ArchiveBy, Log, archiving, segment
from broker.log.archiving import Archiving
from broker.model.errors import BrokerError
from broker.node.stretch import Known
from tests.powerloss.disk import read_trace
from tests.powerloss.enumerate import Verdict, Wrong, judge_each, moments, quotas, trees
from tests.powerloss.workload import (
    GROUP_BYTES_MAX,
    MARK_ACKNOWLEDGED,
    MARK_ATTEMPT,
    MUTANTS,
    SEAL_BYTES_AT_ONCE,
    SEGMENT_BYTES,
)
from tests.reference.chunks import Item, items_of
from tests.reference.groups import Group, build_group, parse_group
from tests.reference.slices import Maker, Model, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20_261_123
NAMES = 6
PAYLOAD_BYTES = 1_500
GROUPS_MAX = 130
"""More than are recorded; also more than there are names."""
TRANSACTION_BYTES = 12_000
STRETCH = 14
GO_ON_EVERY = 10
PATIENCE_S = 30
READ_BYTES = 20_000


def groups() -> Iterator[Group]:
    """Yield the groups of the seed."""
    maker = Maker(SEED, NAMES, PAYLOAD_BYTES)
    while True:
        yield maker.group()


# -- what is recorded --------------------------------------------------------------------------------------------------


class Recorded:
    """A log whose attempts and acknowledgements are marked in the trace."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._recorder = ctypes.CDLL(None)
        self._recorder.powerloss_mark.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._groups = groups()
        self.log = open_log(data, ArchiveBy.THREAD)

    def append(self, count: int = STRETCH) -> None:
        """Store so many groups."""
        for _ in range(count):
            group = next(self._groups)
            self._recorder.powerloss_mark(MARK_ATTEMPT, group.number)
            self.log.append(group.number, build_group(group))
            self._recorder.powerloss_mark(MARK_ACKNOWLEDGED, group.number)

    def settle(self) -> None:
        """Wait until all that was appended is archived."""
        last = self.log.last_group
        self.log.rotate()
        while self.log.archived_group < last:
            threading.Event().wait(0.001)

    def compact_beside(self) -> None:
        """Have the archive rebuilt while groups come."""
        thread = threading.Thread(target=self.log.compact, args=(lambda done, total: None,))
        thread.start()
        self.append()
        thread.join()

    def reopen(self) -> None:
        """Close and open again, most likely in the midst of a slice."""
        self.log.rotate()
        self.log.close()
        self.log = open_log(self._data, ArchiveBy.THREAD)


def open_log(data: Path, archive_by: ArchiveBy) -> Log:
    """Open and recover a log whose archiver waits for nothing."""
    log = Log.open(
        data, segment_bytes=SEGMENT_BYTES, reserve_bytes=0, group_bytes_max=GROUP_BYTES_MAX * 8, archive_by=archive_by
    )
    try:
        log.recover()
    except BaseException:
        log.close()
        raise
    return log


def hurry() -> None:
    """Have slices begin at once, in small transactions, and write seals in small ones."""
    defaults: dict[str, Any] | None = Archiving.__init__.__kwdefaults__
    assert defaults is not None
    defaults.update(wait_s=0.0)
    segment.SEAL_BYTES_AT_ONCE = SEAL_BYTES_AT_ONCE
    setattr(archiving, "EMBEDDED_TRANSACTION_BYTES", TRANSACTION_BYTES)  # noqa: B010 - a constant to all others


def record(data: Path, mutant: str) -> None:
    """Do the work."""
    MUTANTS[mutant]()
    recorded = Recorded(data)
    recorded.append()
    recorded.reopen()
    recorded.append()
    recorded.settle()
    recorded.append()
    recorded.compact_beside()
    recorded.append()
    recorded.reopen()
    recorded.append()
    recorded.compact_beside()
    recorded.append()
    recorded.settle()
    recorded.log.close()


# -- what is judged ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """A channel as it must be: its name, bounds and epochs, and the records that it still has."""

    name: bytes
    first: int
    next: int
    epochs: list[tuple[int, int]]
    items: list[Item]


class Oracle:
    """What the groups of the seed come to, up to each of them."""

    def __init__(self) -> None:
        self.numbers = [0]
        self.chains = {0: 0}
        self._groups: list[Group] = []
        for group, _ in zip(groups(), range(GROUPS_MAX), strict=False):
            self._groups.append(group)
            self.numbers.append(group.number)
            self.chains[group.number] = parse_group(build_group(group)).chain
        self._expected: dict[int, dict[int, Expected]] = {}

    def channels(self, last: int) -> dict[int, Expected]:
        """Return the channels after a group, by their ids."""
        if last not in self._expected:
            model = Model()
            for group in self._groups[: self.numbers.index(last)]:
                model.apply(group)
            self._expected[last] = {
                number: Expected(each.created[20:], each.first, each.next, each.epochs, plain(each.kept()))
                for number, each in model.channels.items()
            }
        return self._expected[last]


def judge_state(data: Path, oracle: Oracle, acknowledged: int, *, go_on: bool) -> None:
    """Judge one state.

    Raises:
        Wrong: something is lost or has come back, or the log does not open.
    """
    log = opened(data, ArchiveBy.NOBODY)
    try:
        last = log.last_group
        if last < acknowledged or last not in oracle.chains:
            raise Wrong("lost", f"ends with group {last}, acknowledged was {acknowledged}")
        compare(log, oracle.channels(last))
    finally:
        log.close()
    if not go_on:
        return
    log = opened(data, ArchiveBy.THREAD)
    try:
        # Numbers that were ever tried are not used again.
        log.append(1 << 32, build_group(Group(1 << 32, last, oracle.chains[last])))
        log.compact(lambda done, total: None)
        compare(log, oracle.channels(last))
    except BrokerError as cause:
        raise Wrong("wrong", repr(cause)) from cause
    finally:
        log.close()
    log = opened(data, ArchiveBy.NOBODY)
    try:
        compare(log, oracle.channels(last))
    finally:
        log.close()


def opened(data: Path, archive_by: ArchiveBy) -> Log:
    """Open a state.

    Raises:
        Wrong: it does not open.
    """
    try:
        return open_log(data, archive_by)
    except BrokerError as cause:
        raise Wrong("unopenable", repr(cause)) from cause


def compare(log: Log, channels: dict[int, Expected]) -> None:
    """Compare a log with what it must hold.

    Raises:
        Wrong: they differ.
    """
    try:
        numbers = {each.name: number for number, each in channels.items()}
        names = sorted(numbers)
        if log.names(b"", b"", GROUPS_MAX) != names:
            raise Wrong("wrong", "the names are not those of the channels")
        by_bus = read_bus(log)
        for name, entries in zip(names, log.resolve(names), strict=True):
            number = numbers[name]
            known, must = Known.from_entries(entries), channels[number]
            if (known.id, known.first, known.next, known.epochs) != (number, must.first, must.next, must.epochs):
                raise Wrong("wrong", f"channel {number}: is {known}, not from {must.first} before {must.next}")
            if read_channel(log, known) != must.items:
                raise Wrong("wrong", f"channel {number}: its records are not what was written")
            if within(by_bus.get(number, []), known) != must.items:
                raise Wrong("wrong", f"channel {number}: its records on the bus are not what was written")
    except (BrokerError, ValueError) as cause:
        raise Wrong("unreadable", repr(cause)) from cause


def read_channel(log: Log, known: Known) -> list[Item]:
    """Read a channel slice by slice."""
    items: list[Item] = []
    after = known.first - 1
    while found := log.read_channel(known.id, after, READ_BYTES, known.next):
        for _, _, chunk in found:
            items += [item for item in items_of(chunk) if item.next_sequence - 1 > after]
            after = items[-1].next_sequence - 1
    return within(items, known)


def within(items: list[Item], known: Known) -> list[Item]:
    """Return the items that a channel still has, without what depends on the chunk that they stand in."""
    cut = [item.within(known.first - 1, known.next) for item in items]
    return plain([item for item in cut if item is not None])


def read_bus(log: Log) -> dict[int, list[Item]]:
    """Read everything in the order of the bus."""
    found: dict[int, list[Item]] = {}
    place = (0, 0)
    while True:
        chunks, after = log.read_groups(*place, READ_BYTES, None)
        for _, _, chunk in chunks:
            found.setdefault(int.from_bytes(chunk[8:16], "little"), []).extend(items_of(chunk))
        if after == place:
            return found
        place = after


def judge(trace: Path, scratch: Path, states: int, part: int, parts: int) -> Verdict:
    """Judge one part of the states of a trace: every `parts`-th moment, beginning with `part`."""
    oracle = Oracle()
    operations = read_trace(trace)
    found = moments(operations)
    found = found[:: max(1, len(found) // states)]
    wanted = quotas(found, states)

    def judge_root(root: Path, acknowledged: set[int], go_on: bool) -> None:
        judge_state(root / "data", oracle, max(acknowledged, default=0), go_on=go_on)

    return judge_each(trees(operations, found[part::parts], wanted[part::parts]), scratch, judge_root, GO_ON_EVERY)


def main(arguments: list[str]) -> None:
    """Run as the module's docstring says."""
    logging.disable(logging.CRITICAL)
    hurry()
    if arguments[0] == "record":
        record(Path(arguments[1]), arguments[2])
        return
    trace, scratch = Path(arguments[1]), Path(arguments[2])
    states, part, parts = (int(argument) for argument in arguments[3:6])
    print(json.dumps(dataclasses.asdict(judge(trace, scratch, states, part, parts))))


if __name__ == "__main__":
    main(sys.argv[1:])
