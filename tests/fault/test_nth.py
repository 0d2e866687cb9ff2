"""The n-th call fails: a sample of the calls of every class; `python -m tests.fault.nth` runs all of them."""

from __future__ import annotations

import sys

import pytest

from tests.fault.nth import Outcome, run_all, table

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the injector interposes the system calls of Linux"
)

SAMPLE = {"write": 3, "sync": 4, "name": 3, "memory": 8, "lmdb_memory": 3, "object": 6, "socket": 2}
"""How many n of each case, one in each of so many stretches of the calls that the workload makes."""


def problems(outcomes: list[Outcome]) -> list[str]:
    return [f"{each.case} n={each.at} {each.call}: {each.problem}" for each in outcomes if each.problem]


@pytest.mark.slow
@pytest.mark.parametrize("klass", SAMPLE)
def test_nth_call_fails(klass: str) -> None:
    outcomes = list(run_all(f"--class={klass}", f"--sample={SAMPLE[klass]}"))
    print(table(outcomes))
    assert not problems(outcomes)
    # Calls are not quite the same ones in every run, so the last stretch may have none.
    assert sum(bool(each.call) for each in outcomes) >= 0.8 * len(outcomes) > 0
    assert any(each.end == "went on" for each in outcomes)


def test_false_acknowledgements_are_noticed() -> None:
    """The mistake that all this is there to find: a commit that fails is acknowledged all the same."""
    outcomes: list[Outcome] = []
    # What was acknowledged falsely is lost only if the server ends before the next commit, which a busy one may not.
    while len(outcomes) < 60 and not any("lost" in problem for problem in problems(outcomes)):
        outcomes += run_all("--case=sync EIO once old", "--sample=12", "--plant=hope")
    assert any("lost" in problem for problem in problems(outcomes)), table(outcomes)
