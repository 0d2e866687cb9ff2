"""No loss of power, at any moment, loses an acknowledged group, invents one, or leaves a journal that does not open.

A workload is recorded once, and thousands of the states that a disk may hold after a cut are reopened and judged. So
that the judge is known to see: it must find losses in builds that leave out one sync.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.powerloss.disk import Disk, Kind, Node, Operation, read_trace
from tests.powerloss.workload import APPENDS, MUTANTS
from tests.sizes import size

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the recorder interposes the system calls of Linux"
)

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORKERS = 2
STATES = size("BROKER_STATES", 2_000, 20_000)
STRETCHES = 5


@dataclass(frozen=True)
class Recording:
    """A recorded run: its trace, what it appended, and room for states."""

    folder: Path

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    @property
    def history(self) -> Path:
        return self.folder / "history"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorder, built by the compiler that builds the extensions."""
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, HERE / "recorder.c", "-ldl", "-lpthread"], check=True)
    return library


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory if there is one: thousands of states are written to it."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="broker-powerloss-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")]), **extra}


def record(recorder: Path, folder: Path, mutant: str) -> Recording:
    """Run the workload under the recorder."""
    root = folder / "recorded"
    root.mkdir()
    recording = Recording(folder)
    command = [sys.executable, "-m", "tests.powerloss.workload"]
    subprocess.run(
        [*command, root / "data", recording.history, mutant],
        env=environment(LD_PRELOAD=str(recorder), POWERLOSS_ROOT=str(root), POWERLOSS_TRACE=str(recording.trace)),
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return recording


def judge_in_parts(words: list[object], folder: Path, states: int) -> dict[str, Any]:
    """Judge states in processes of their own: one may die of a signal, which is a verdict, too.

    Args:
        words: The module that judges, and what it judges; folder, states, part and number of parts follow.
        folder: Room for states.
        states: How many.
    """
    workers = []
    for part in range(WORKERS):
        states_folder = folder / f"states-{part}"
        states_folder.mkdir()
        command = [sys.executable, "-m", *map(str, [*words, states_folder, states, part, WORKERS])]
        workers.append(subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE))
    total: dict[str, Any] = {
        "states": 0,
        "lost": 0,
        "unopenable": 0,
        "unreadable": 0,
        "wrong": 0,
        "died": 0,
        "failures": [],
    }
    for output, code in [(worker.communicate()[0], worker.returncode) for worker in workers]:
        # A signal is what LMDB ends with on pages that it never wrote; any other code is a mistake in the test.
        assert code <= 0
        part_verdict = json.loads(output) if code == 0 else {"died": 1}
        for name, value in part_verdict.items():
            total[name] += value
    return total


def judge(recording: Recording, states: int) -> dict[str, Any]:
    """Judge states of a recording."""
    return judge_in_parts(["tests.powerloss.enumerate", recording.trace, recording.history], recording.folder, states)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_states_of_the_disk(recorder: Path, scratch: Path) -> None:
    verdict = judge(record(recorder, scratch, "none"), STATES)
    states = verdict.pop("states")
    assert verdict == {"lost": 0, "unopenable": 0, "unreadable": 0, "wrong": 0, "died": 0, "failures": []}
    assert states >= STATES


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant != "none"])
def test_builds_that_leave_a_sync_out_are_caught(recorder: Path, scratch: Path, mutant: str) -> None:
    verdict = judge(record(recorder, scratch, mutant), 600)
    found = verdict["lost"], verdict["unopenable"], verdict["unreadable"], verdict["died"]
    assert any(found), verdict


def test_the_workload_reaches_every_part(recorder: Path, scratch: Path) -> None:
    """A recording in which nothing is sealed, created, given up or reopened would prove nothing about it."""
    operations = read_trace(record(recorder, scratch, "none").trace)
    created = [operation.path for operation in operations if operation.kind is Kind.CREATE]
    renamed = [operation for operation in operations if operation.kind is Kind.RENAME]
    failed = [operation for operation in operations if operation.kind is Kind.SYNC and operation.flags]
    marks = [operation.flags for operation in operations if operation.kind is Kind.MARK]
    assert len([path for path in created if path.endswith(".seg.new")]) >= 6
    assert len(renamed) >= 7  # the format, and the segments
    assert len(failed) == 1
    assert marks.count(1) - marks.count(2) == 3  # groups that were attempted and failed
    assert marks.count(2) == STRETCHES * APPENDS
    writes = [operation for operation in operations if operation.kind is Kind.WRITE]
    assert sum(operation.durable for operation in writes) >= STRETCHES * APPENDS + 3


def test_statistics_count_the_syncs_that_were_made(recorder: Path, scratch: Path) -> None:
    """`Log.stats` reckons its syncs instead of counting them; the recorder counts."""
    script = """
import json, sys
from pathlib import Path
from broker.log import Log
from tests.reference.chains import Chain
from tests.reference.groups import Tables
import ctypes
chain, mark = Chain(), ctypes.CDLL(None).powerloss_mark
log = Log.open(Path(sys.argv[1]), segment_bytes=20_000, reserve_bytes=0)
log.recover()
while log._sealer._ready is None:
    pass
before = log.stats()["fsyncs"]
mark(7, ctypes.c_uint64(0))
for _ in range(60):
    value = chain.build([(1, [bytes(1_000)])])
    log.append(chain.number, value)
    chain.commit(value)
assert log.wait_sealed(30)
while log._sealer._ready is None:
    pass
mark(7, ctypes.c_uint64(0))
print(json.dumps(log.stats()["fsyncs"] - before))
log.close()
"""
    root = scratch / "recorded"
    root.mkdir()
    output = subprocess.run(
        [sys.executable, "-c", script, root / "data"],
        env=environment(LD_PRELOAD=str(recorder), POWERLOSS_ROOT=str(root), POWERLOSS_TRACE=str(scratch / "trace")),
        cwd=ROOT,
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
    ).stdout
    operations = read_trace(scratch / "trace")
    begin, end = (at for at, operation in enumerate(operations) if operation.kind is Kind.MARK)
    counted = [operation for operation in operations[begin:end] if operation.kind is Kind.SYNC or operation.durable]
    assert json.loads(output) == len(counted)
    assert len(counted) >= 2 * 60 + 3 * 2 + 2 * 2


# --- The model of the disk itself ---------------------------------------------------------------------------------


def operation(kind: Kind, **fields: object) -> Operation:
    defaults = {"flags": 0, "inode": 5, "offset": 0, "started": 1 << 30, "path": "", "data": b""}
    return Operation(kind, **{**defaults, **fields})  # type: ignore[arg-type]


def contents(disk: Disk, path: str, draws: int = 400) -> set[bytes | None]:
    """Return the contents that a path may have after a cut; None when it is not there."""
    pick = random.Random(1)
    return {disk.draw(pick).get(path) for _ in range(draws)}


def test_unsynced_sectors_come_in_every_combination() -> None:
    disk = Disk()
    disk.apply(operation(Kind.CREATE, path="a"))
    disk.apply(operation(Kind.SYNC, inode=0))
    disk.apply(operation(Kind.WRITE, data=b"A" * 1024))
    disk.apply(operation(Kind.SYNC))
    assert contents(disk, "a") == {b"A" * 1024}
    disk.apply(operation(Kind.WRITE, data=b"B" * 1024))
    parts = {b"A" * 512, b"B" * 512}
    assert contents(disk, "a") == {left + right for left in parts for right in parts}


def test_a_name_lasts_once_its_folder_is_synced() -> None:
    disk = Disk()
    disk.apply(operation(Kind.CREATE, path="a.new"))
    disk.apply(operation(Kind.WRITE, data=b"x"))
    disk.apply(operation(Kind.SYNC))
    disk.apply(operation(Kind.RENAME, path="a.new", data=b"a"))
    assert contents(disk, "a") == {None, b"x"}
    disk.apply(operation(Kind.SYNC, inode=0))
    assert contents(disk, "a") == {b"x"}
    assert contents(disk, "a.new") == {None}
    disk.apply(operation(Kind.UNLINK, path="a"))
    assert contents(disk, "a") == {None, b"x"}


def test_a_durable_write_lasts_when_it_has_returned_and_carries_nothing_else() -> None:
    disk = Disk()
    disk.apply(operation(Kind.CREATE, path="a"))
    disk.apply(operation(Kind.SYNC, inode=0))
    disk.apply(operation(Kind.WRITE, data=b"A" * 1024))
    durable = operation(Kind.WRITE, flags=1, data=b"D" * 512)
    disk.begin(durable)
    assert b"" in contents(disk, "a")
    disk.apply(durable)
    found = contents(disk, "a")
    assert {content[:512] for content in found if content is not None} == {b"D" * 512}
    assert {content[512:] for content in found if content is not None} == {b"", bytes(512), b"A" * 512}


def test_a_sync_covers_what_was_there_when_it_began() -> None:
    disk = Disk()
    disk.apply(operation(Kind.CREATE, path="a"))
    disk.apply(operation(Kind.SYNC, inode=0))
    disk.apply(operation(Kind.WRITE, data=b"A"))
    disk.apply(operation(Kind.WRITE, data=b"B"))
    disk.apply(operation(Kind.SYNC, started=3))
    assert contents(disk, "a") == {b"A", b"B"}


def test_what_a_failed_sync_left_is_not_tried_again() -> None:
    disk = Disk()
    disk.apply(operation(Kind.CREATE, path="a"))
    disk.apply(operation(Kind.SYNC, inode=0))
    disk.apply(operation(Kind.WRITE, data=b"A"))
    disk.apply(operation(Kind.SYNC, flags=2))
    disk.apply(operation(Kind.SYNC))
    assert {b"", b"A"} <= contents(disk, "a")
    disk.apply(operation(Kind.WRITE, data=b"B"))
    disk.apply(operation(Kind.SYNC))
    assert contents(disk, "a") == {b"B"}


def test_files_in_a_lost_folder_are_lost() -> None:
    disk = Disk()
    disk.apply(operation(Kind.MKDIR, path="d", inode=9))
    disk.apply(operation(Kind.CREATE, path="d/a"))
    disk.apply(operation(Kind.SYNC, inode=9))
    assert contents(disk, "d/a") == {None, b""}
    disk.apply(operation(Kind.SYNC, inode=0))
    assert contents(disk, "d/a") == {b""}


def test_a_cut_and_a_growth() -> None:
    node = Node()
    node.write(0, 0, b"A" * 600)
    node.sync(1)
    node.resize(2, 100)
    node.resize(3, 300)
    assert bytes(node.current) == b"A" * 100 + bytes(200)
    node.sync(4)
    assert len(node.durable) == 300
