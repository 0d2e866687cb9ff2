"""The same seed is the same life, as often as it is lived, and another seed is another one."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import planted
from tests.simulation.kernel import LifeFailed
from tests.simulation.life import Life

TIMES = 10


@pytest.mark.parametrize("seed", [1, 9, 22, 58])
def test_ten_times_the_same(seed: int) -> None:
    digests = set()
    for _ in range(TIMES):
        life = Life(seed)
        life.run()
        digests.add(life.kernel.digest())
    assert len(digests) == 1
    other = Life(seed + 1)
    other.run()
    assert other.kernel.digest() not in digests


def test_a_failing_life_fails_the_same_way() -> None:
    said = set()
    with planted("count_credit_twice"):
        for _ in range(TIMES):
            life = Life(0)
            with pytest.raises(LifeFailed) as failure:
                life.run()
            said.add((str(failure.value), life.kernel.digest()))
    assert len(said) == 1
