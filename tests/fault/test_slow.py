"""A disk that takes its time holds nobody up but those who wait for it; see `tests.fault.slow` for the figures."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fault.inject import build
from tests.fault.nth import memory_folder
from tests.fault.slow import PROMISE_S, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the injector interposes the system calls of Linux"
)

SLACK_S = 0.1
"""What a machine that others use, too, may add to any time."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory, where only the injected delay makes a sync slow."""
    folder = Path(tempfile.mkdtemp(prefix="broker-slow-", dir=memory_folder()))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("sync_s", [0.05, 5.0])
async def test_slow_syncs_hold_nobody_up(tmp_path: Path, scratch: Path, sync_s: float) -> None:
    figures = await run(scratch, build(tmp_path), sync_s)
    print(figures)
    assert figures.lost == 0
    # The loop is never where the sync is: with commits on it every timer waits for one. What other processes take from
    # it is seldom and short; `tests.fault.slow` prints the sharp figure.
    assert figures.lag_us[0] < 10_000
    assert figures.lag_us[1] < 200_000
    assert figures.stood_s < 0.5
    assert figures.ephemeral_p99_s < SLACK_S
    assert figures.replays > 10
    assert figures.synced_p50_s > 0.9 * sync_s
    # What is acknowledged ahead of the disk is what a crash may take.
    assert figures.ahead_s < PROMISE_S + SLACK_S
    assert figures.lost_s < PROMISE_S + SLACK_S
    assert figures.resumed_s < 1.0


async def test_commits_on_the_loop_are_noticed(tmp_path: Path, scratch: Path) -> None:
    """The mistake that the figures are there to find."""
    figures = await run(scratch, build(tmp_path), 0.05, plant="inline")
    print(figures)
    assert figures.stood_s > 0.7
