"""Every work of `broker bench`, tiny, against a real server of its own: it runs, finds every message, and reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from broker.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

TINY = {
    "pubsub": ("--messages", "3000", "--publishers", "2", "--subscribers", "2", "--channels", "3"),
    "fanout": ("--messages", "200", "--subscribers", "20"),
    "many": ("--messages", "3000", "--publishers", "5", "--channels", "40", "--subscribers", "8"),
    "latency": ("--messages", "500", "--rate", "5000"),
    "replay": ("--messages", "3000", "--batch", "10"),
    "channels": ("--messages", "3000", "--channels", "200", "--publishers", "4"),
    "cold": ("--channels", "300", "--publishers", "7"),
    "restart": ("--stored-bytes", "12000000", "--channels", "50"),
    "storm": ("--clients", "60", "--channels", "5", "--seconds", "0.3", "--rate", "200", "--subscribers", "2"),
    "slow": ("--subscribers", "20", "--slow", "15", "--rate", "2000", "--seconds", "0.3"),
    "catchup": ("--messages", "3000", "--subscribers", "5", "--rate", "2000", "--seconds", "0.3"),
    "idle": ("--subscribers", "50", "--seconds", "0.1"),
}
OVER_WEB = ("pubsub", "fanout", "many", "latency", "idle")
STORED = ("replay", "channels", "cold", "restart", "storm", "slow", "catchup")

OWN_FSYNCS_MAX = 8
"""What a broker syncs on its own account about when it starts: its first groups and the next segment."""


def run(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a work that must be right, and return its results."""
    file = path / "result.jsonl"
    status = main(["bench", *arguments, "--json", str(file)])
    results = [json.loads(line) for line in file.read_text().splitlines()]
    assert status == 0, [result["extra"]["errors"] for result in results]
    return results


@pytest.mark.parametrize("work", OVER_WEB)
def test_works_whose_subscribers_read_over_websockets(tmp_path: Path, work: str) -> None:
    (result,) = run(tmp_path, work, *TINY[work], "--durability", "accepted", "--crc", "--web")
    assert result["extra"]["errors"] == []


@pytest.mark.parametrize("durability", ["ephemeral", "accepted", "synced"])
@pytest.mark.parametrize("work", TINY)
def test_native_works(tmp_path: Path, work: str, durability: str) -> None:
    if (work in STORED and durability == "ephemeral") or (work == "restart" and durability != "synced"):
        assert main(["bench", work, "--durability", durability]) == 2
        return
    (result,) = run(tmp_path, work, *TINY[work], "--durability", durability, "--crc")
    counted = ("--messages" in TINY[work] and work != "catchup") or work == "cold"
    messages = int(TINY[work][1]) if counted else result["messages"]
    assert (result["work"], result["durability"], result["messages"]) == (work, durability, messages)
    if work == "channels":
        assert result["extra"]["read_back"] == messages
    elif work == "slow":
        assert result["extra"]["deliveries"] == messages * 5 == 3000
    elif work == "catchup":
        assert result["extra"]["caught_up"] == 5 * 3000 < result["extra"]["deliveries"]
    elif messages and work not in ("cold", "restart"):
        # In `many` a message has one reader; else everybody reads everything.
        readers = 1 if work == "many" else result["subscribers"]
        assert result["extra"]["deliveries"] == messages * readers
    if durability == "synced" and work not in ("replay", "cold", "restart") and messages:
        assert result["fsyncs"] > 0
    if durability == "ephemeral":
        assert result["fsyncs"] <= OWN_FSYNCS_MAX
    assert result["server_memory_bytes"] > 0
    assert result["commit_us_p50"] > 0


QUEUES = {
    "batches": ("--publishers", "2"),
    "one at a time": ("--one-at-a-time", "--members", "9"),
    "by key": ("--keys", "50", "--members", "5"),
    "a small window": ("--window", "7", "--publishers", "3", "--keys", "10"),
}


@pytest.mark.parametrize("durability", ["accepted", "synced"])
@pytest.mark.parametrize("how", QUEUES)
def test_a_queue_is_worked_off(tmp_path: Path, how: str, durability: str) -> None:
    (result,) = run(tmp_path, "queue", "--messages", "3000", "--durability", durability, *QUEUES[how])
    assert (result["work"], result["messages"], result["extra"]["deliveries"]) == ("queue", 3000, 3000)
    assert result["extra"]["members"] == {"batches": 4, "one at a time": 9, "by key": 5, "a small window": 4}[how]
    assert result["latency_us"]["p50"] > 0
    assert result["fsyncs"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        ("queue", "--durability", "ephemeral"),
        ("queue", "--channels", "2"),
        ("queue", "--subscribers", "2"),
        ("queue", "--messages", "0", "--seconds", "1"),
        ("pubsub", "--members", "2"),
        ("storm", "--web"),
        ("pubsub", "--web", "--url", "broker://127.0.0.1:4770"),
        ("pubsub", "--keys", "2"),
        ("pubsub", "--one-at-a-time"),
    ],
)
def test_what_makes_no_sense_of_a_queue_is_refused(wrong: tuple[str, ...]) -> None:
    assert main(["bench", *wrong]) == 2


def test_who_stops_reading_falls_behind_and_comes_back(tmp_path: Path) -> None:
    arguments = ("--subscribers", "4", "--slow", "2", "--payload", "100000", "--rate", "600", "--seconds", "0.5")
    for pattern in ((), ("--pattern", "--channels", "7")):
        (result,) = run(tmp_path, "slow", *arguments, *pattern)
        assert (result["extra"]["lagging"], result["extra"]["live"]) == (2, 2)
        assert result["extra"]["memory_used_bytes_max"] > 0


@pytest.mark.parametrize("durability", ["ephemeral", "synced"])
def test_wildcards(tmp_path: Path, durability: str) -> None:
    run(tmp_path, "many", *TINY["many"], "--durability", durability, "--pattern", "--crc")


def test_shared_directory(tmp_path: Path) -> None:
    server, shared = run(tmp_path, "shared", "--messages", "3000", "--publishers", "2")
    assert [server["work"], shared["work"]] == ["shared:server", "shared:directory"]
    for result in (server, shared):
        assert result["messages"] == result["extra"]["deliveries"] == 3000
        assert result["fsyncs"] > 0
    assert shared["extra"]["share_of_server"] > 0
    assert shared["extra"]["first_answer_ms"] > 0
    for durability in ("ephemeral", "synced"):
        assert main(["bench", "shared", "--publishers", "1", "--durability", durability]) == 2


@pytest.mark.parametrize("durability", ["ephemeral", "synced"])
def test_requests(tmp_path: Path, durability: str) -> None:
    one, many = run(tmp_path, "requests", "--messages", "400", "--subscribers", "2", "--durability", durability)
    assert [one["work"], many["work"]] == ["requests:one", "requests:many"]
    assert [one["extra"]["deliveries"], many["extra"]["deliveries"]] == [20, 400]
    for result in (one, many):
        assert result["latency_us"]["p50"] > 0
        assert result["server_cpu_s"] > 0


@pytest.mark.parametrize("durability", ["ephemeral", "accepted", "synced"])
def test_python_client(tmp_path: Path, durability: str) -> None:
    results = run(tmp_path, "client", "--messages", "8000", "--durability", durability)
    assert [result["work"] for result in results] == [
        "client:post",
        "client:batches",
        "client:messages",
        "client:publish",
    ]
    assert [result["messages"] for result in results] == [8000, 8000, 8000, 2000]


@pytest.mark.parametrize("durability", ["accepted", "synced"])
def test_transactions(tmp_path: Path, durability: str) -> None:
    arguments = ("--messages", "3000", "--publishers", "20", "--batch", "6", "--durability", durability)
    (result,) = run(tmp_path, "transactions", *arguments)
    assert result["messages"] == result["extra"]["deliveries"] == 3000
    assert result["extra"]["transactions_per_s"] > 0
    assert result["fsyncs"] > 0


@pytest.mark.parametrize("durability", ["accepted", "synced"])
def test_transactions_with_acks(tmp_path: Path, durability: str) -> None:
    arguments = ("--acks", "--messages", "3000", "--publishers", "20", "--batch", "6", "--members", "3")
    (result,) = run(tmp_path, "transactions", *arguments, "--durability", durability)
    assert result["work"] == "transactions:acks"
    assert result["messages"] == result["extra"]["deliveries"] == 3000
    assert result["extra"]["transactions_per_s"] > 0
    assert result["fsyncs"] > 0


@pytest.mark.parametrize(
    "arguments",
    [("queue", "--acks"), ("transactions", "--members", "2"), ("transactions", "--acks", "--members", "9999")],
)
def test_acks_are_for_transactions_of_members(arguments: tuple[str, ...]) -> None:
    assert main(["bench", *arguments]) == 2


@pytest.mark.parametrize("durability", ["accepted", "synced"])
def test_delayed(tmp_path: Path, durability: str) -> None:
    arguments = ("--messages", "3000", "--rate", "2000", "--seconds", "1", "--publishers", "2", "--channels", "3")
    (result,) = run(tmp_path, "delayed", *arguments, "--durability", durability)
    extra = result["extra"]
    assert (result["messages"], extra["pending"], extra["deliveries"]) == (3000, 3000, 2000)
    assert extra["index_bytes_per_pending"] >= 32
    assert result["latency_us"]["p50"] > 0


@pytest.mark.parametrize(
    "arguments", [("--durability", "ephemeral"), ("--rate", "0"), ("--seconds", "0"), ("--messages", "0")]
)
def test_delayed_needs_what_it_needs(arguments: tuple[str, ...]) -> None:
    assert main(["bench", "delayed", *arguments]) == 2


def test_transactions_need_stored_channels() -> None:
    assert main(["bench", "transactions", "--durability", "ephemeral"]) == 2


@pytest.mark.parametrize("durability", ["ephemeral", "accepted", "synced"])
def test_embedded_home(tmp_path: Path, durability: str) -> None:
    results = run(tmp_path, "client", "--embedded", "--messages", "8000", "--durability", durability)
    assert len(results) == 4
    fsyncs = sum(result["fsyncs"] for result in results)
    if durability == "ephemeral":
        assert fsyncs <= OWN_FSYNCS_MAX
    elif durability == "synced":
        # Accepted messages are answered ahead of their commit, which so short a run may not see.
        assert fsyncs > 0


def test_a_replay_from_the_archive(tmp_path: Path) -> None:
    (result,) = run(tmp_path, "replay", "--messages", "20000", "--batch", "10", "--archived")
    assert result["extra"]["deliveries"] == 20000


def test_a_restart_says_what_was_stored_and_how_long_it_took(tmp_path: Path) -> None:
    (result,) = run(tmp_path, "restart", "--stored-bytes", "20000000", "--channels", "50")
    extra = result["extra"]
    assert extra["stored_bytes"] >= max(20_000_000, extra["unarchived_bytes"])
    assert extra["unarchived_bytes"] > 0
    assert extra["ready_ms"] > 0
    assert extra["first_read_ms"] > extra["ready_ms"]


def test_a_restart_that_lost_something_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(data: Path) -> None:
        for segment in data.rglob("*.seg"):
            segment.unlink()

    monkeypatch.setattr("broker.bench.restart.forget_cached", lose)
    file = tmp_path / "result.jsonl"
    arguments = ["--stored-bytes", "12000000", "--channels", "50", "--json", str(file)]
    assert main(["bench", "restart", *arguments]) == 1
    result = json.loads(file.read_text())
    assert 0 < result["lost"] <= result["messages"]
    assert "expected" in result["extra"]["errors"][0]
