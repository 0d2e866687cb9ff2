"""The server under load: memory as the kernel sees it, and a server that does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from broker.bench import server
from broker.bench.conversation import Conversation
from broker.bench.server import Probe, Target, rss_anon_bytes, running_server
from broker.model.errors import BrokerError
from tests.reference.server import Server

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_anonymous_memory(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nRssAnon:\t    2048 kB\nRssFile:\t  10 kB\n")
    assert rss_anon_bytes(status) == 2048 * 1024
    assert rss_anon_bytes(tmp_path / "gone") == 0


def test_a_probe_keeps_the_largest_memory() -> None:
    with Server() as reference:
        probe = Probe(Target(reference.url, None))
        assert probe.figures().memory_bytes == 1 << 20
        probe.sample_memory()
        assert probe.memory_bytes_max == 1 << 20


def test_a_running_server_is_taken_as_it_is() -> None:
    with Server() as reference, running_server(reference.url) as target:
        assert target == Target(reference.url, None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "broker://", "broker+unix://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BrokerError, match="ADDRESS"):
        Conversation(url)


def test_nobody_there_is_said() -> None:
    with Server() as reference:
        url = reference.url
    with pytest.raises(BrokerError, match="CONNECTION_LOST"):
        Conversation(url)


@pytest.mark.parametrize("said", ["no journal to be had", "x\\nerror no journal to be had\\nhint: get one"])
def test_a_server_that_does_not_start_is_quoted(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"import sys; sys.exit('{said}')"
    real = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda _, **options: real([sys.executable, "-c", script], **options))
    with pytest.raises(BrokerError, match=r"ended with status 1: (error )?no journal to be had$"), running_server(None):
        pass


def test_a_server_that_is_not_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import time; time.sleep(60)"
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(_: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(real([sys.executable, "-c", script], **options))  # type: ignore[call-overload]
        return started[0]

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr(server, "START_SECONDS_MAX", 0.1)
    with pytest.raises(BrokerError, match="not ready"), running_server(None):
        pass
    assert started[0].returncode is not None


@pytest.mark.parametrize("cores", [None, {3}])
def test_cores_are_given_back(monkeypatch: pytest.MonkeyPatch, cores: set[int] | None) -> None:
    kept = [{1, 2}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: kept[-1], raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores), raising=False)
    with server.kept_to(cores):
        assert kept[-1] == (cores or {1, 2})
    assert kept[-1] == {1, 2}
