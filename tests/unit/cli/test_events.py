"""`broker events`: the same registry for a terminal, a pipe and a program."""

from __future__ import annotations

import json
import sys

import pytest

from broker.cli.main import main
from broker.model.events import EVENTS


def test_pipe_gets_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[row.severity, row.name] for row in EVENTS]


def test_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["events"]) == 0
    out = capsys.readouterr().out
    for row in EVENTS:
        assert row.name in out


@pytest.mark.parametrize("which", ["commit_failed", "COMMIT_FAILED"])
def test_one_by_name(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", which]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("commit_failed, error: a group could not be committed")
    assert [line.split()[:2] for line in out[2:]] == [["code", "text"], ["detail", "text"], ["handed_over", "boolean"]]


def test_json_of_all_and_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert [each["event"] for each in every] == [row.name for row in EVENTS]
    assert main(["events", "--json", "stopped"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one in every
    assert (one["level"], one["logger"]) == ("info", "broker.server")
    assert one["fields"][0]["type"] == "integer"


@pytest.mark.parametrize(("which", "hint"), [("comit_failed", "did you mean commit_failed"), ("", "lists them all")])
def test_unknown_is_a_usage_error(which: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", which]) == 2
    assert hint in capsys.readouterr().err
