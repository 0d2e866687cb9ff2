"""The simulation must be able to fail: some seed finds each mistake that can be planted, or the seeds prove nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.kernel import LifeFailed
from tests.simulation.life import Life
from tests.simulation.test_lives import LIVES

if TYPE_CHECKING:
    from collections.abc import Callable

FOUND_BY: dict[str, int] = {}
"""The first seed that found each one. When the simulation changes these may miss, and then all are searched; run this
file with `-rP` and put down what it prints."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_seed_finds_it(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    known = FOUND_BY.get(plant.__name__, 0)
    for seed in [known, *range(LIVES)]:
        try:
            Life(seed).run()
        except LifeFailed:
            if seed != known:
                print(f'    "{plant.__name__}": {seed},')
            return
    pytest.fail(f"{plant.__name__}: {LIVES} seeds do not see it")
