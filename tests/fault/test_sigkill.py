"""SIGKILL at random instants, under load: nothing acknowledged is lost, nothing comes twice or out of order.

What a killed process wrote survives in the page cache, so this proves recovery, retries and resumes, and says nothing
of power loss; that is for the enumeration of power-loss states.

BROKER_KILLS chooses how often (300), BROKER_SEED which instants and which load.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.checker.check import check
from tests.checker.history import ACCEPTED, SYNCED
from tests.fault.harness import Crowd, Server, Start, kill_at_random
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

KILLS = size("BROKER_KILLS", 40, 300)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))

READY_S_MAX = 1.0

LEVELS = {
    "kill.synced.one": SYNCED,
    "kill.synced.two": SYNCED,
    "kill.synced.three": SYNCED,
    "kill.accepted.one": ACCEPTED,
    "kill.accepted.two": ACCEPTED,
}

FILTERS = {
    "literal": ["kill.synced.one"],
    "literals": ["kill.synced.two", "kill.synced.three", "kill.accepted.one"],
    "pattern": ["kill.>"],
    "synced pattern": ["kill.synced.*"],
    "accepted pattern": ["kill.accepted.*"],
    "slow literals": ["kill.synced.one", "kill.accepted.two"],
    "slow pattern": ["kill.>"],
}
SLOW = {"slow literals", "slow pattern"}


@pytest.mark.slow
@pytest.mark.timeout(60 + KILLS * 2)
async def test_killed_at_random_instants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print(f"BROKER_KILLS={KILLS} BROKER_SEED={SEED}")
    server = Server(tmp_path)
    begun_s = time.monotonic()
    try:
        first = await server.start()
        async with Crowd(server.url, LEVELS, FILTERS, slow=SLOW, publishers=3, seed=SEED) as crowd:
            starts = await kill_at_random(server, crowd, KILLS, SEED)
            killed_s = time.monotonic() - begun_s
            history = await crowd.finish()
        assert await server.stop() == 0, server.said()
    finally:
        server.kill()
    verdict = check(history)
    report = [
        f"{KILLS} kills in {killed_s:.0f} s, seed {SEED}: {verdict}",
        f"publishes not acknowledged: {len(crowd.failures)}; told to subscribers: {dict(crowd.events)}",
        *(f"{name}: {line}" for name, line in figures([first, *starts]).items()),
    ]
    with capsys.disabled():
        print("", *report, sep="\n")
    assert verdict.passed, report[0]
    assert verdict.acknowledged > 20 * KILLS, "the load is too light to prove anything"
    assert verdict.delivered > 2 * verdict.acknowledged
    assert not crowd.failures, "a publish that is repeated under its number has an outcome"
    assert percentile([start.ready_s for start in starts], 99) < READY_S_MAX


def percentile(values: list[float], percent: float) -> float:
    """Return the value that so many percent are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def figures(starts: list[Start]) -> dict[str, str]:
    """Return p50, p99 and the largest of what the starts took, in milliseconds."""
    parts = {
        "ready": [start.ready_s for start in starts],
        "start of Python and imports": [start.total_s - start.ready_s for start in starts],
    }
    return {
        name: " / ".join(f"{percentile(values, percent) * 1e3:.0f}" for percent in (50, 99, 100)) + " ms"
        for name, values in parts.items()
    }
