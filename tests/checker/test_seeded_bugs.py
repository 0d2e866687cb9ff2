"""The checker is itself checked: it passes a broker that keeps its promise, and catches every bug on its list."""

from __future__ import annotations

import pytest

from tests.checker.check import check
from tests.checker.simulated import Bug, Simulation
from tests.checker.verdict import Kind

SEEDS = range(20)
RECORDS = 600

SYMPTOMS = {
    Bug.ACK_EARLY: {Kind.EARLY},
    Bug.DROP_TAIL: {Kind.LOST},
    Bug.SWAP_TWO: {Kind.REORDERED},
    Bug.DUPLICATE_ON_RETRY: {Kind.DUPLICATE},
    Bug.REUSE_SEQUENCE: {Kind.INCONSISTENT},
    Bug.SKIP_AT_BATCH_EDGE: {Kind.SKIPPED},
    Bug.RESUME_OFF_BY_ONE: {Kind.SKIPPED, Kind.DUPLICATE},
    Bug.DEDUP_NOT_IN_TRANSACTION: {Kind.INCONSISTENT, Kind.DUPLICATE},
    Bug.STALE_EPOCH: {Kind.STALE_EPOCH},
    Bug.LOST_GROUP: {Kind.LOST},
    Bug.WRONG_CHANNEL: {Kind.WRONG_CHANNEL},
    Bug.UNFLUSHED_TRIM: {Kind.RESURRECTED},
}
"""What must be found by name. Where two stand, the bug has two faces, and both show over the seeds."""


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_history_passes(seed: int) -> None:
    verdict = check(Simulation(seed).run(RECORDS))
    assert verdict.passed, f"seed {seed}: {verdict}"
    assert verdict.acknowledged > 0.8 * RECORDS
    assert verdict.delivered > RECORDS


@pytest.mark.parametrize("bug", Bug)
def test_bug_is_caught(bug: Bug) -> None:
    found: set[Kind] = set()
    struck = 0
    for seed in SEEDS:
        simulation = Simulation(seed, bug)
        verdict = check(simulation.run(RECORDS))
        struck += simulation.injected > 0
        assert verdict.passed == (simulation.injected == 0), (
            f"seed {seed}, struck {simulation.injected} times: {verdict}"
        )
        found |= {anomaly.kind for anomaly in verdict.anomalies}
    assert struck >= 3
    assert found >= SYMPTOMS[bug]


def test_early_acknowledgement_is_caught_from_outside() -> None:
    """Nobody reports commits of a real server: what an early acknowledgement costs shows after a crash."""
    found = {
        anomaly.kind
        for seed in SEEDS
        for anomaly in check(Simulation(seed, Bug.ACK_EARLY, commits_seen=False).run(RECORDS)).anomalies
    }
    assert found & {Kind.LOST, Kind.INCONSISTENT}
    assert Kind.EARLY not in found
