"""Thousands of programs of whole conversations against the model, and the mistakes that they must find.

The programs are spread over the machine's processors. One that fails is in the test's output as code, with its seed,
and stays in `build/conversation`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conversation.programs import MISTAKES, PROGRAMS_A_SEED
from tests.sizes import size

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "conversation"
PROGRAMS = size("BROKER_PROGRAMS", 1_500, 20_000)
SEED = 1
MISTAKEN_SEED = 4
"""From here each mistake is found within some hundred programs; from 1 a resume that skips takes more than 3,000."""
MISTAKEN_PROGRAMS_MAX = 3_000
SECONDS_MAX = 900


def run_programs(*words: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}
    return subprocess.run(
        [sys.executable, "-m", "tests.conversation.programs", *map(str, words)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX)
def test_conversations_are_as_the_model_says() -> None:
    processes = os.cpu_count() or 1
    each = PROGRAMS // processes
    seeds = [SEED + index * (each // PROGRAMS_A_SEED + 1) for index in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(lambda seed: run_programs(each + PROGRAMS % processes, seed), seeds))
    failed = [result.stdout + result.stderr for result in results if result.returncode != 0]
    for index, output in enumerate(failed):
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{index}.txt").write_text(output, encoding="utf-8")
    if failed:
        pytest.fail(failed[0][-6_000:], pytrace=False)


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_planted_mistake_is_found(mistake: str) -> None:
    result = run_programs(MISTAKEN_PROGRAMS_MAX, MISTAKEN_SEED, mistake)
    assert result.returncode != 0, f"{MISTAKEN_PROGRAMS_MAX} programs find nothing"
    assert "state = " in result.stdout + result.stderr, "it is printed as code"
