"""`broker bench`: what its options mean, and the exit statuses of a wrong command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from broker.cli import ExitCode
from broker.cli.bench import WORKS, options_of
from broker.cli.main import main
from broker.model.levels import Level
from tests.reference.server import Faults, Server

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = {"durability": "synced", "payload": 128, "batch": 1}


def test_help_names_every_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {work} " in text for work in WORKS)


def test_fanout_runs_once_for_each_count() -> None:
    assert [options.subscribers for options in options_of("fanout", None, None, GIVEN)] == [10, 100, 1000]
    assert [options.subscribers for options in options_of("fanout", (3, 7), None, GIVEN)] == [3, 7]


def test_channels_run_once_for_each_count() -> None:
    assert [options.channels for options in options_of("channels", None, (20, 100), GIVEN)] == [20, 100]
    assert [options.messages for options in options_of("cold", None, (20, 30), GIVEN)] == [20, 30]


def test_messages_take_the_place_of_seconds() -> None:
    (timed,) = options_of("pubsub", None, None, GIVEN)
    assert (timed.seconds, timed.messages) == (5.0, 0)
    (counted,) = options_of("pubsub", None, None, {**GIVEN, "messages": 10})
    assert (counted.seconds, counted.messages) == (0.0, 10)
    (both,) = options_of("pubsub", None, None, {**GIVEN, "messages": 10, "seconds": 1.0})
    assert (both.seconds, both.messages) == (1.0, 10)


def test_durability_is_a_level() -> None:
    (options,) = options_of("pubsub", None, None, {**GIVEN, "durability": "accepted"})
    assert options.durability is Level.ACCEPTED


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["pubsub", "--subscribers", "many"],
        ["pubsub", "--payload", "8"],
        ["pubsub", "--durability", "replicated"],
        ["latency", "--rate", "0"],
        ["replay", "--durability", "ephemeral"],
        ["pubsub", "--embedded"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    assert main(["bench", *arguments]) == ExitCode.USAGE


def test_nobody_at_the_url_is_to_be_resumed() -> None:
    with Server() as server:
        url = server.url
    assert main(["bench", "pubsub", "--messages", "1", "--url", url]) == ExitCode.RESUME


def test_json_is_a_line_for_each_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.jsonl"
    arguments = ["bench", "fanout", "--messages", "10", "--subscribers", "2,3"]
    with Server(Faults(level=3)) as server:
        assert main([*arguments, "--url", server.url, "--json", str(file)]) == 0
        assert "fanout synced: 1 publisher, 2 subscribers" in capsys.readouterr().out
        assert main([*arguments, "--url", server.url, "--json", "-"]) == 0
    assert [json.loads(line)["subscribers"] for line in file.read_text().splitlines()] == [2, 3]
    assert [json.loads(line)["subscribers"] for line in capsys.readouterr().out.splitlines()] == [2, 3]
