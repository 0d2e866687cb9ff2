"""The process that is recorded: appends, rotates, seals, gives segments up, closes and opens again.

Run as `python -m tests.powerloss.workload DATA HISTORY MUTANT` under the recorder; DATA lies below the recorded
root, HISTORY outside. Marks go into the trace before a group is handed to the log and after it was acknowledged. A
mutant leaves one thing out that durability rests on, in this process only: the enumeration must then fail.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from broker.log import AppendError, Log, durable, segment
from tests.reference.chains import Chain
from tests.reference.groups import channel_entry, epoch_entry, line_entry

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1024
SEGMENT_BYTES = 36 * KIB
SEAL_BYTES_AT_ONCE = 2 * KIB
GROUP_BYTES_MAX = 16 * KIB
MARK_ATTEMPT, MARK_ACKNOWLEDGED = 1, 2
FAIL_SYNC, FAIL_META = 1, 2
CHANNELS = 9
APPENDS = 18
SEED = 20_261_122


class Recorded:
    """A log whose attempts and acknowledgements are marked in the trace.

    Args:
        data: the data directory.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._recorder = ctypes.CDLL(None)
        self._recorder.powerloss_mark.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._random = random.Random(SEED)
        self._chain = Chain()
        self._line = 0
        self.history: dict[int, bytes] = {}
        self._log = self._open()

    def _open(self) -> Log:
        segment.SEAL_BYTES_AT_ONCE = SEAL_BYTES_AT_ONCE
        log = Log.open(self._data, segment_bytes=SEGMENT_BYTES, reserve_bytes=0, group_bytes_max=GROUP_BYTES_MAX)
        log.recover()
        return log

    def _build(self) -> bytes:
        """Return a group of random chunks, from a few hundred bytes to several pages."""
        pick = self._random
        channels = pick.sample(range(1, CHANNELS + 1), pick.choice((1, 1, 2, 3)))
        chunks = [
            (channel, [pick.randbytes(pick.choice((20, 300, 1500)))] * pick.randint(1, 2)) for channel in channels
        ]
        self._line += 1
        entries = [line_entry(b"workload-line-01", self._line, 1, [(channels[0], self._line, 1)])]
        if pick.random() < 0.2:
            entries += [channel_entry(channels[0], "power.loss"), epoch_entry(channels[0], self._line, 1)]
        return self._chain.build(chunks, entries)

    def append(self) -> None:
        """Store the next group, which must succeed."""
        value = self._build()
        self._attempt(value)
        self._chain.commit(value)
        self._recorder.powerloss_mark(MARK_ACKNOWLEDGED, self._chain.number)

    def append_many(self) -> None:
        """Store so many groups that at least one segment is filled."""
        for _ in range(APPENDS):
            self.append()

    def _attempt(self, value: bytes) -> None:
        self.history[self._chain.number] = value
        self._recorder.powerloss_mark(MARK_ATTEMPT, self._chain.number)
        self._log.append(self._chain.number, value)

    def fail(self, what: int) -> None:
        """Let the disk fail in the middle of the next commit, and give the segment up."""
        value = self._build()
        self._recorder.powerloss_fail(what)
        try:
            self._attempt(value)
        except AppendError as failure:
            if not failure.handed_over:
                raise
        else:
            raise AssertionError("the commit did not fail")
        assert self._recorder.powerloss_fail(0) == 0
        self._log.abandon()

    def settle(self) -> None:
        """Wait for the seals, so that they lie between appends in some places and beside them in others."""
        assert self._log.wait_sealed(30)

    def reopen(self) -> None:
        """Close and open again."""
        self._log.close()
        self._log = self._open()

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def _with_lmdb(**changed: bool) -> None:
    """Open every environment with some options changed, whatever the log asks for."""
    real = lmdb.open

    def careless(path: str, **arguments: Any) -> lmdb.Environment:
        return real(path, **{**arguments, **changed})

    setattr(lmdb, "open", careless)  # noqa: B010 - the type of the module's own says that it is a class


def _without_file_sync() -> None:
    """Give a new file its name before its bytes are on the disk."""
    durable.sync_path = lambda path: None if path.is_file() else _sync_path(path)


def _without_folder_sync() -> None:
    """Use a new file before its name is on the disk."""
    durable.sync_path = lambda path: None if path.is_dir() else _sync_path(path)


_sync_path = durable.sync_path

MUTANTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "sync=False": lambda: _with_lmdb(sync=False, metasync=False),
    "metasync=False": lambda: _with_lmdb(metasync=False),
    "without file sync": _without_file_sync,
    "without folder sync": _without_folder_sync,
}
FAILING_MUTANTS = frozenset({"none", "without file sync", "without folder sync"})
"""Those in which a commit can be made to fail: without syncs there is none that could."""


def run(data: Path, history: Path, mutant: str) -> None:
    """Do the work: five stretches of appends, and after them what a journal goes through."""
    MUTANTS[mutant]()
    recorded = Recorded(data)
    recorded.append_many()
    recorded.append_many()
    recorded.settle()
    if mutant in FAILING_MUTANTS:
        recorded.fail(FAIL_META)
        recorded.fail(FAIL_META)
    recorded.append_many()
    recorded.reopen()
    recorded.append_many()
    if mutant in FAILING_MUTANTS:
        recorded.fail(FAIL_SYNC)
    recorded.append_many()
    recorded.settle()
    recorded.close()
    history.write_text(json.dumps({number: value.hex() for number, value in recorded.history.items()}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
