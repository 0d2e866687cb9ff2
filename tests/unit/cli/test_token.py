"""`broker token`: what it makes a server takes, and what is wrong with a token it says."""

from __future__ import annotations

import io
import json
import re
import shlex
import stat
import sys
import time
from pathlib import Path

import pytest

from broker.access.access_file import read_access_file
from broker.cli.main import main

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
ACCESS = """
[jwt]
issuer = "me"
audience = "broker"
algorithms = ["EdDSA", "HS256"]
keys = "keys.json"
[roles.chat]
subscribe = ["user.{sub}.>"]
publish = ["team.{team}.*"]
[roles.reader]
subscribe = ["news.>"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with an access file and a key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "access.toml").write_text(ACCESS)
    (tmp_path / "access.toml").chmod(0o644)
    assert main(["token", "key", "main", "--private", "signing.json", "--public", "keys.json"]) == 0
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    """Run `broker token` and return what it printed."""
    assert main(["token", *arguments]) == status
    out, err = capsys.readouterr()
    return out, err


def made(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    """Make ada's token in a file and return the file's path."""
    given = (
        "--access",
        "access.toml",
        "--key",
        "signing.json",
        "--user",
        "ada",
        "--role",
        "chat",
        "--claim",
        "team=red",
    )
    out, err = run(capsys, "make", *given, *more)
    assert err == ""
    (folder / "ada.token").write_text(out)
    return str(folder / "ada.token")


def test_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stat.S_IMODE((folder / "signing.json").stat().st_mode) == 0o600
    (public,) = json.loads((folder / "keys.json").read_text())["keys"]
    assert (public["kid"], public["kty"], "d" in public) == ("main", "OKP", False)
    run(capsys, "key", "next", "--algorithm", "RS256", "--private", "next.json", "--public", "keys.json")
    assert [key["kid"] for key in json.loads((folder / "keys.json").read_text())["keys"]] == ["main", "next"]
    assert stat.S_IMODE((folder / "keys.json").stat().st_mode) == 0o644
    run(capsys, "key", "secret", "--algorithm", "HS256", "--private", "secret.json", "--public", "keys.json")
    assert stat.S_IMODE((folder / "keys.json").stat().st_mode) == 0o640
    _, err = run(capsys, "key", "main", "--private", "again.json", "--public", "keys.json", status=5)
    assert "got kid 'main' a second time" in err
    _, err = run(capsys, "key", "new", "--private", "signing.json", "--public", "keys.json", status=5)
    assert "signing.json: cannot be written: File exists" in err
    assert sorted(path.name for path in folder.iterdir()) == [
        "access.toml", "keys.json", "next.json", "secret.json", "signing.json",
    ]  # fmt: skip


def test_what_is_made_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(capsys, folder, "--ttl", "90s", "--id", "7")
    out, _ = run(capsys, "check", "--access", "access.toml", path)
    assert out.startswith("ada\tchat\t20")
    out, _ = run(capsys, "check", "--access", "access.toml", "--json", path)
    said = json.loads(out)
    assert (said["user"], said["token_id"]) == ("ada", "7")
    assert 0 < said["expires_s"] - time.time() <= 90 + 30
    assert said["grants"]["publish"] == ["team.red.*"]


def test_from_stdin(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made(capsys, folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO((folder / "ada.token").read_text()))
    assert run(capsys, "check", "--access", "access.toml")[0].startswith("ada\t")


def test_a_static_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, lines = run(capsys, "make", "--static", "nightly", "--user", 'back"up', "--role", "reader")
    with (folder / "access.toml").open("a") as file:
        file.write(lines)
    assert token.strip() not in lines
    assert read_access_file("access.toml").rules.listed["nightly"].person.user == 'back"up'
    (folder / "nightly.token").write_text(token)
    assert run(capsys, "check", "--access", "access.toml", "nightly.token")[0] == 'back"up\treader\tno end\n'
    (folder / "nightly.token").write_text(token.strip() + "x")
    _, err = run(capsys, "check", "--access", "access.toml", "nightly.token", status=5)
    assert "error UNAUTHENTICATED (3035): token: there is no such id, or its secret is another one" in err


def test_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(capsys, folder)
    given = ("explain", "--access", "access.toml", path, "--may", "publish:team.red.x")
    out, _ = run(capsys, *given)
    assert 'claim    team "red"' in out
    assert "good     user ada, until 20" in out
    assert "grant    subscribe user.ada.>" in out
    assert "may      publish team.red.x, by team.red.*" in out
    out, _ = run(capsys, *given, "--may", "subscribe:user.>", status=1)
    assert "may not  subscribe user.>" in out
    out, _ = run(capsys, *given, "--json")
    said = json.loads(out)
    assert said["header"]["kid"] == "main"
    assert said["may"] == [{"verb": "publish", "name": "team.red.x", "by": "team.red.*"}]
    assert "error" not in said


def test_what_is_wrong_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(capsys, folder)
    (folder / "access.toml").write_text(ACCESS.replace('"broker"', '"other"'))
    out, _ = run(capsys, "explain", "--access", "access.toml", path, "--may", "publish:team.red.x", status=5)
    assert "refused  UNAUTHENTICATED (3035): token: got aud 'broker', expected 'other'" in out
    assert 'claim    aud "broker"' in out
    assert "may not  publish team.red.x" in out
    out, _ = run(capsys, "explain", "--access", "access.toml", path, "--json", status=5)
    assert json.loads(out)["error"]["code"] == 3035
    (folder / "bent").write_bytes(b"\xff.\x1b[31m.x")
    out, _ = run(capsys, "explain", "--access", "access.toml", "bent", status=5)
    assert "\x1b" not in out
    assert "refused" in out


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("make", "--user", "ada"), 2, "either signed, --key FILE, or listed, --static ID"),
        (("make", "--user", "ada", "--key", "signing.json"), 2, "--access FILE"),
        (("make", "--user", "a\nb", "--static", "x"), 2, "printable"),
        (("make", "--user", "ada", "--static", "a.b", "--role", "reader"), 2, "1 to 64 of"),
        (("make", "--user", "ada", "--static", "a"), 2, "one role or more"),
        (("make", "--user", "ada", "--static", "a", "--ttl", "1y"), 2, "90s, 15m, 12h or 30d"),
        (("make", "--user", "ada", "--static", "a", "--ttl", "9999d"), 2, "at most 3650d"),
        (("make", "--user", "ada", "--access", "access.toml", "--key", "keys.json"), 5, "got no key to sign with"),
        (("make", "--user", "ada", "--access", "access.toml", "--key", "none.json"), 5, "cannot be read"),
        (
            ("make", "--user", "ada", "--access", "access.toml", "--key", "signing.json", "--claim", "x"),
            2,
            "NAME=VALUE",
        ),
        (("make", "--user", "ada", "--access", "access.toml", "--key", "signing.json", "--role", "chat"), 5, "'team'"),
        (("check", "--access", "none.toml"), 5, "none.toml: cannot be read"),
        (("check", "--access", "access.toml", "none.token"), 5, "none.token: cannot be read"),
        (("explain", "--access", "access.toml", "--may", "read:x"), 2, "expected VERB:NAME"),
        (("explain", "--access", "access.toml", "--may", "publish:a..b"), 2, "expected VERB:NAME"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], status: int, complaint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "keys.json").chmod(0o600)
    _, err = run(capsys, *arguments, status=status)
    assert complaint in err


def test_what_the_readme_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's access file and its commands, one after the other, with their redirections."""
    section = README.partition("## Who may what")[2].partition("\n## ")[0]
    (access,) = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "access.toml").write_text(access)
    (tmp_path / "access.toml").chmod(0o644)
    printed = ""
    for line in commands.splitlines():
        command, _, target = line.removeprefix("broker ").partition(" > ")
        assert main(shlex.split(command)) == 0
        printed, _ = capsys.readouterr()
        if target:
            (tmp_path / target).write_text(printed)
    assert "may      publish user.ada.typing, by user.ada.*" in printed


def test_config_check_reads_the_access_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["config", "check", "--set", "access.file=access.toml"]
    assert main(given) == 0
    (folder / "access.toml").write_text(ACCESS + "[deny]\n")
    assert main(given) == 5
    assert "access.file: access.toml: deny: unknown key" in capsys.readouterr().err


def test_a_key_that_others_may_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "signing.json").chmod(0o644)
    given = ("make", "--access", "access.toml", "--key", "signing.json", "--user", "ada", "--role", "reader")
    assert "got mode 0644 with a private key" in run(capsys, *given, status=5)[1]


def test_a_key_that_the_server_has_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "key", "other", "--private", "other.json", "--public", "others.json")
    given = ("make", "--access", "access.toml", "--key", "other.json", "--user", "ada", "--role", "reader")
    assert "got kid 'other', which names no key of this server" in run(capsys, *given, status=5)[1]
