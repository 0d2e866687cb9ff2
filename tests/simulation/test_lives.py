"""Whole lives of server, clients, network and disk, each from its seed; the seeds of two processes at once.

A life that fails prints its seed and the command that replays it, bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sizes import size

ROOT = Path(__file__).parents[2]
LIVES = size("BROKER_LIVES", 400, 2_000)
PROCESSES = 2


def command(*options: str) -> list[str]:
    """Return the command that lives lives."""
    return [sys.executable, "-m", "tests.simulation", *options]


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which it finds its modules."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'ext'}", **more}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lives() -> None:
    each = LIVES // PROCESSES
    running = [
        subprocess.Popen(
            command("--seeds", f"{first}:{first + each}"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for first in range(0, LIVES, each)
    ]
    said = [process.communicate()[0] for process in running]
    for process, text in zip(running, said, strict=True):
        print(text)
        assert process.returncode == 0, text[-4_000:]
        assert f"{each} lives, 0 failed" in text


def test_a_life_is_the_same_in_every_process() -> None:
    """Ten times the same in this process would prove less than twice in others, with other hashes; so both."""
    digests = [
        subprocess.run(
            command("--seeds", "0:8", "--digest"),
            cwd=ROOT,
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[:-1]
        for seed in ("1", "4770")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 8


def test_a_failure_says_how_to_replay_it() -> None:
    found = subprocess.run(
        command("--seed", "0", "--trace", "--plant", "lose_a_byte_where_a_header_is_cut"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "replay it: python -m tests.simulation --seed 0 --trace" in found.stdout
    assert "the server says of its client" in found.stdout
    assert " read " in found.stdout, "the trace"
