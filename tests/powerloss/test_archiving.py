"""No loss of power while the archive is written loses what was reported archived, or brings back what is gone.

BROKER_ARCHIVE_STATES chooses how many states are reopened (120). The judge must find losses in builds without syncs.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.powerloss.archiving import make_segments
from tests.powerloss.disk import Kind, read_trace
from tests.powerloss.test_powerloss import ROOT, environment, judge_in_parts, recorder, scratch
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["recorder", "scratch"]  # fixtures

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the recorder interposes the system calls of Linux"
)

STATES = size("BROKER_ARCHIVE_STATES", 120, 20_000)
DIFFERENT = 11_700
MODULE = "tests.powerloss.archiving"


@pytest.fixture
def segments(scratch: Path) -> Path:
    """The sealed segments that are archived."""
    make_segments(scratch / "made")
    return scratch / "made" / "journal"


def record(library: Path, folder: Path, segments: Path, mutant: str) -> Path:
    """Record the archiving; returns the trace."""
    root = folder / "recorded"
    root.mkdir()
    trace = folder / "trace"
    subprocess.run(
        [sys.executable, "-m", MODULE, "record", root, segments, mutant],
        env=environment(LD_PRELOAD=str(library), POWERLOSS_ROOT=str(root), POWERLOSS_TRACE=str(trace)),
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return trace


def judge(trace: Path, segments: Path, folder: Path, states: int) -> dict[str, Any]:
    """Judge states of an archive."""
    return judge_in_parts([MODULE, "judge", trace, segments], folder, states)


@pytest.mark.timeout(60 + STATES)
def test_states_of_archiving(recorder: Path, scratch: Path, segments: Path) -> None:
    trace = record(recorder, scratch, segments, "none")
    operations = read_trace(trace)
    renamed = [operation for operation in operations if operation.kind is Kind.RENAME]
    marks = [operation for operation in operations if operation.kind is Kind.MARK]
    # Creation and two rebuilds; five slices reported.
    assert (len(renamed), len(marks)) == (3, 5)
    verdict = judge(trace, segments, scratch, STATES)
    states = verdict.pop("states")
    assert verdict == {"lost": 0, "unopenable": 0, "unreadable": 0, "wrong": 0, "died": 0, "failures": []}
    # There are some 11,700 different ones, and none is judged twice.
    assert states >= min(STATES, DIFFERENT) * 9 // 10


@pytest.mark.parametrize("mutant", ["metasync=False", "without folder sync"])
def test_builds_that_leave_a_sync_out_are_caught(
    recorder: Path,
    scratch: Path,
    segments: Path,
    mutant: str,
) -> None:
    verdict = judge(record(recorder, scratch, segments, mutant), segments, scratch, 60)
    assert any(verdict[kind] for kind in ("lost", "unopenable", "unreadable", "wrong", "died")), verdict
