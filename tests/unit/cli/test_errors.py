"""`broker errors`: the same registry for a terminal, a pipe and a program."""

from __future__ import annotations

import json
import sys

import pytest

from broker.cli.main import main
from broker.model.errors import ERROR_CODES


def test_pipe_gets_one_line_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [[str(row.code), row.name, row.remedy] for row in ERROR_CODES]


def test_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["errors"]) == 0
    out = capsys.readouterr().out
    assert "what has happened" in out
    for row in ERROR_CODES:
        assert row.name in out
        assert row.summary in out


@pytest.mark.parametrize("which", ["3008", "DENIED", "denied"])
def test_one_by_code_or_name(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", which]) == 0
    out = capsys.readouterr().out
    assert out.startswith("DENIED (3008), stop: ")
    assert len(out.splitlines()) == 2


def test_json_of_all_and_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert [each["code"] for each in every] == [row.code for row in ERROR_CODES]
    assert main(["errors", "--json", "1001"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one == every[0]
    assert set(one) == {"code", "name", "remedy", "summary", "advice"}


@pytest.mark.parametrize(("which", "hint"), [("DENID", "did you mean DENIED?"), ("9", "lists them all"), ("", "lists")])
def test_unknown_is_a_usage_error(which: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", which]) == 2
    assert hint in capsys.readouterr().err
