"""The pipeline under random failures: commits that fail in every way, crashes at any instant, readers and retries.

A seed that fails is in the test's name; `World(seed).run(STEPS)` is the same life again.
"""

from __future__ import annotations

import pytest

from tests.simulation.core.world import World

SEEDS = 600
SEEDS_A_TEST = 20
STEPS = 600


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_lives(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        try:
            World(seed).run(STEPS)
        except BaseException as failure:
            failure.add_note(f"seed {seed}: World({seed}).run({STEPS})")
            raise
