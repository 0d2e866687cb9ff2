"""`broker errors`: the same registry for a terminal, a pipe and a program."""

from __future__ import annotations

import json
import re
import sys

import pytest

from broker.cli.main import main
from broker.model.errors import ERROR_CODES, ErrorCode, Remedy


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
    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in out.splitlines()[3:])
    assert facts["remedy"].startswith("stop: ")
    assert facts["temporary"] == "no"
    assert facts["connection"] == "goes on"
    assert facts["raised as"] == "Denied"
    assert facts["exit status"] == "5"


@pytest.mark.parametrize("row", ERROR_CODES, ids=lambda row: row.name)
def test_every_code_is_explained(row: ErrorCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", str(row.code)]) == 0
    out = capsys.readouterr().out
    assert row.summary in out
    assert row.advice in out


@pytest.mark.parametrize("remedy", Remedy)
def test_those_of_a_remedy(remedy: Remedy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", remedy.upper()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == [row.name for row in ERROR_CODES if row.remedy is remedy]


def test_json_of_all_and_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert [each["code"] for each in every] == [row.code for row in ERROR_CODES]
    assert main(["errors", "--json", "1001"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one == every[0]
    assert one["scope"] == "either"
    assert (one["temporary"], one["class"], one["exit_status"]) == (True, "Unavailable", 3)
    assert set(one) == {
        "code", "name", "remedy", "temporary", "scope", "summary", "advice", "class", "exit_status",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("DENID", "did you mean DENIED?"),
        ("retri", "did you mean RETRY"),
        ("STORAGE_FUL", "STORAGE_FULL"),
        ("9", "lists them all"),
        ("", "lists"),
        ("2999", "codes 2xxx mean resume"),
        ("4999", "codes 4xxx mean storage"),
        ("5000", "lists them all"),
        ("9" * 5_000, "lists them all"),
        ("\u0663", "lists them all"),
    ],
)
def test_unknown_is_a_usage_error(which: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", which]) == 2
    assert hint in capsys.readouterr().err
