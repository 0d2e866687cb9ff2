"""No loss of power takes what was acknowledged, or brings back what is gone, while a log does all that a log does.

BROKER_WHOLE_STATES chooses how many states are reopened (40). The judge must find losses in builds without syncs.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.powerloss.disk import Kind, read_trace
from tests.powerloss.test_powerloss import ROOT, environment, judge_in_parts, recorder, scratch
from tests.powerloss.workload import MARK_ACKNOWLEDGED
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["recorder", "scratch"]  # fixtures

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the recorder interposes the system calls of Linux"
)

STATES = size("BROKER_WHOLE_STATES", 40, 20_000)
MODULE = "tests.powerloss.whole"


def record(library: Path, folder: Path, mutant: str) -> Path:
    """Record the work; returns the trace."""
    root = folder / "recorded"
    root.mkdir()
    trace = folder / "trace"
    subprocess.run(
        [sys.executable, "-m", MODULE, "record", root / "data", mutant],
        env=environment(LD_PRELOAD=str(library), POWERLOSS_ROOT=str(root), POWERLOSS_TRACE=str(trace)),
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return trace


def judge(trace: Path, folder: Path, states: int) -> dict[str, Any]:
    """Judge states of a log."""
    return judge_in_parts([MODULE, "judge", trace], folder, states)


@pytest.mark.timeout(120 + STATES)
def test_states_of_a_whole_log(recorder: Path, scratch: Path) -> None:
    trace = record(recorder, scratch, "none")
    operations = read_trace(trace)
    unlinked = [operation.path for operation in operations if operation.kind is Kind.UNLINK]
    renamed = [operation.data.decode() for operation in operations if operation.kind is Kind.RENAME]
    acknowledged = [
        operation for operation in operations if operation.kind is Kind.MARK and operation.flags == MARK_ACKNOWLEDGED
    ]
    # A recording in which nothing is sealed, archived, unlinked or rebuilt would prove nothing about it.
    assert len([path for path in unlinked if path.endswith(".seg")]) >= 10
    assert len([path for path in renamed if path.endswith("archive.mdb")]) == 3
    assert len(acknowledged) >= 100
    verdict = judge(trace, scratch, STATES)
    states = verdict.pop("states")
    assert verdict == {"lost": 0, "unopenable": 0, "unreadable": 0, "wrong": 0, "died": 0, "failures": []}
    assert states >= STATES * 9 // 10


@pytest.mark.parametrize("mutant", ["metasync=False", "without folder sync"])
def test_builds_that_leave_a_sync_out_are_caught(recorder: Path, scratch: Path, mutant: str) -> None:
    verdict = judge(record(recorder, scratch, mutant), scratch, 24)
    assert any(verdict[kind] for kind in ("lost", "unopenable", "unreadable", "wrong", "died")), verdict
