"""A disk that fills up and has room again; `python -m tests.fault.full` does it twenty times and has the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fault.full import DISKS, RESUMED_S_MAX, may_have, run

if TYPE_CHECKING:
    from pathlib import Path

CYCLES = 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "disk",
    [
        pytest.param(disk, marks=pytest.mark.skipif(not may_have(disk), reason=f"needs to mount a {disk} of its own"))
        for disk in DISKS
    ],
)
async def test_full_and_free_again_and_again(tmp_path: Path, disk: str) -> None:
    with DISKS[disk](tmp_path / "disk") as possible:
        assert possible
        figures = await run(tmp_path, disk, tmp_path / "disk", CYCLES)
    print(figures)
    assert figures.deaths == 0
    assert figures.lost == 0
    assert figures.acknowledged > 5 * CYCLES
    assert figures.resumed_s < RESUMED_S_MAX
