"""`broker config`: everything wrong in one go, the same form as any error, and what a server would run with."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from broker.cli.main import main
from broker.config import Config
from broker.model.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

BAD = "[server]\ntcp = '0.0.0.0:1'\n[limits]\nchannels_max = 0\n[storage]\nreserve_bytes = 'x'\n"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BROKER_CONFIG", "BROKER_SERVER_TCP", "BROKER_LIMITS_CHANNELS_MAX"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.toml"
    path.write_text(BAD, encoding="utf-8")
    return str(path)


def test_check_takes_what_a_server_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--set", "limits.channels_max=5"]) == 0
    assert capsys.readouterr() == ("ok: 1 value set, 1 profile, 0 warnings\n", "")


def test_check_tells_everything(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", bad, "--set", "server.nope=1"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[-1] == "4 problems"
    errors = [line for line in lines if line.startswith("error ")]
    assert len(errors) == 4
    assert [line.startswith("hint: ") for line in lines[1:-1:2]] == [True] * 4
    assert errors[0] == (
        f"error INVALID_CONFIG (3018): limits.channels_max: got 0, expected 1 to 4294967295 channels (file {bad}:4)"
    )
    assert errors[-1].startswith("error ADDRESS (3022): server.tcp: ")


def test_check_for_machines(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", bad, "--json"]) == 5
    body = json.loads(capsys.readouterr().out)
    assert (body["ok"], body["warnings"]) == (False, [])
    first = body["problems"][0]
    assert (first["key"], first["code"], first["name"]) == ("limits.channels_max", 3018, "INVALID_CONFIG")
    assert (first["got"], first["expected"]) == ("0", "1 to 4294967295 channels")
    assert first["source"] == {"kind": "file", "name": bad, "line": 4}
    assert first["hint"]
    assert main(["config", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": [], "warnings": []}


def test_a_warning_is_told_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["config", "check", "--set", "storage.reserve_bytes=0"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == "ok: 1 value set, 1 profile, 1 warning\n"
    warning, hint = err.splitlines()
    assert re.match(r"warning storage\.reserve_bytes: got 0 bytes.* \(command line\)", warning)
    assert hint.startswith("hint: ")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][0]["key"] == "storage.reserve_bytes"


def test_the_limit_of_open_files_is_this_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (300, 300))
    assert main(["config", "check", "--set", "limits.connections_max=173"]) == 0
    assert "got 173 connections, limit 172 connections" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_hostile_file_cannot_write_to_the_terminal(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[server]\nloop = "\\u001b[2J"\n"a\\nerror OK" = 1\n', encoding="utf-8")
    assert main(["config", verb, "--config", str(path)]) == 5
    err = capsys.readouterr().err
    assert re.fullmatch(r"[ -~\n]*", err)
    assert len(err.splitlines()) == 5


def test_show_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("[limits]\nchannels_max = 7\n", encoding="utf-8")
    monkeypatch.setenv("BROKER_SERVER_TCP", "127.0.0.1:1")
    assert main(["config", "show", "--config", str(path), "--set", "server.unix=\x1b"]) == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["limits.channels_max"] == ["7", "channels", f"file {path}:2", "1 to 4294967295", "SIGHUP"]
    assert rows["server.tcp"] == ["127.0.0.1:1", "", "environment BROKER_SERVER_TCP", "text", "restart"]
    assert rows["server.unix"] == ["\\x1b", "", "command line", "text", "restart"]
    assert rows["server.loop"] == ["auto", "", "default", "auto, uvloop, asyncio", "restart"]
    assert rows["profiles[0].pattern"][:3] == [">", "", "default"]


def test_show_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["config", "show"]) == 0
    out = capsys.readouterr().out
    assert "accepted" in out
    assert "limits.connection_bytes_max" in out
    assert "[" in out, "profiles[0] is no markup"


def test_show_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "--set", "limits.hello_timeout_s=3"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["limits.hello_timeout_s"] == {
        "key": "limits.hello_timeout_s",
        "section": "limits",
        "value": 3.0,
        "default": 2.0,
        "origin": {"kind": "flag", "name": None, "line": None},
        "unit": "seconds",
        "low": 0.05,
        "high": 60,
        "choices": None,
        "reloadable": True,
        "secret": False,
        "meaning": "How long a new connection may take to send HELLO before it is closed.",
    }


def test_toml_is_what_serve_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--toml", "--set", "limits.channels_max=9"]) == 0
    path = tmp_path / "broker.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert Config.load(path, {}) == Config(limits=Limits(channels_max=9))
    assert main(["config", "check", "--config", str(path)]) == 0


def test_defaults_pass_over_everything(
    bad: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_LIMITS_CHANNELS_MAX", "0")
    assert main(["config", "show", "--defaults", "--toml", "--config", bad]) == 0
    assert "channels_max = 1000000\n" in capsys.readouterr().out


def test_show_of_what_cannot_be_served(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", bad]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 problems" in err


def test_a_pair_without_a_value_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--set", "nope"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err
