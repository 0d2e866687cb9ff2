"""Crowds of greenlets and of threads, with and without a server that is killed in between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.homes import Server

ROOT = Path(__file__).parents[2]
PATIENCE_S = 100
LATE_S_MAX = 2.0
"""By the clock, with other jobs on the machine; a call that was not replaced waits for longer than that."""
TAKEN_S_MAX = 0.25
"""Of processor, between two turns of the hub."""


@contextmanager
def crowd(server: Server, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a crowd; entered when everybody is ready."""
    command = [sys.executable, "-W", "error", "-m", "tests.blocking.crowd", server.tcp_url, *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=server.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        try:
            if running.stdout.readline() != "READY\n":
                pytest.fail(running.stderr.read())
            yield running
        finally:
            running.kill()


def verdict(running: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for its end."""
    said, complaints = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, complaints
    # Nothing is logged by itself at the level of reconnects, and whatever else is said is a mistake.
    assert not complaints
    found: dict[str, Any] = json.loads(said)
    return found


def test_a_hundred_greenlets_hold_nobody_up(own_server: Server) -> None:
    with crowd(own_server, "--greenlets") as running:
        found = verdict(running)
    print(f"hub: {found['late_s'] * 1e3:.1f} ms late at most, {found['taken_s'] * 1e3:.1f} ms of processor")
    assert found["wrong"] == found["others"] == found["threads"] == []
    assert found["late_s"] < LATE_S_MAX
    assert found["taken_s"] < TAKEN_S_MAX


def test_a_call_that_holds_the_hub_up_is_noticed(own_server: Server) -> None:
    with crowd(own_server, "--greenlets", "--size", "4", "--rounds", "1", "--plant") as running:
        found = verdict(running)
    assert found["wrong"] == []
    assert found["late_s"] > LATE_S_MAX


@pytest.mark.parametrize("kind", ["greenlets", "threads"])
def test_a_server_that_is_killed_costs_nobody_a_message(own_server: Server, kind: str) -> None:
    options = ["--size", "20", "--rounds", "25", "--pause", "0.02"]
    with crowd(own_server, *options, *(["--greenlets"] if kind == "greenlets" else [])) as running:
        for _ in range(2):
            time.sleep(0.15)
            own_server.kill()
            own_server.start()
        found = verdict(running)
    assert found["wrong"] == found["others"] == found["threads"] == []
    assert found["resumed"] >= 10, "the server was killed too early or too late"
