"""The edge of the command line: verbs load on use, errors become one line and a status, a closed pipe is quiet."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from broker._version import __version__
from broker.cli import ExitCode, exit_code_of
from broker.cli import main as cli
from broker.model.errors import ERROR_CODES, ErrorCode, Remedy, error, from_wire

if TYPE_CHECKING:
    from collections.abc import Callable

STATUS = {Remedy.RETRY: 3, Remedy.RESUME: 4, Remedy.STOP: 5, Remedy.STORAGE: 6}


def test_statuses_are_what_scripts_rely_on() -> None:
    assert [int(status) for status in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 130, 141]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Run a function as if it were the verb `serve`, and return the exit status."""

    def run(function: Callable[[], object]) -> int:
        monkeypatch.setattr(cli.VerbGroup, "get_command", lambda *_: click.command("serve")(function))
        return cli.main(["serve"])

    return run


def fail_with(failure: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise failure

    return function


def test_help_names_every_verb_and_imports_none() -> None:
    code = (
        "import sys; from broker.cli.main import main; main(['--help']);"
        "sys.exit([m for m in sys.modules if m.startswith('broker.cli.') and m != 'broker.cli.main'] or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    for name, line in cli.VERBS.items():
        assert f"{name} " in ran.stdout
        assert line in ran.stdout
    assert "_BROKER_COMPLETE=bash_source" in ran.stdout


@pytest.mark.parametrize(
    "name",
    [
        "serve",
        "config",
        "config check",
        "config show",
        "backup",
        "restore",
        "compact",
        "dump",
        "load",
        "verify",
        "top",
        "errors",
        "events",
    ],
)
def test_verb_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: broker {name}" in out
    assert f"\n  broker {name}" in out, "an example on a line of its own"


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"broker {__version__}\n"


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], ["errors", "--nope"], ["serve", "--loop", "tokio"]])
def test_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == ExitCode.USAGE
    assert "Error: " in capsys.readouterr().err


@pytest.mark.parametrize("row", ERROR_CODES, ids=lambda row: row.name)
def test_status_follows_the_range_of_the_code(row: ErrorCode) -> None:
    assert exit_code_of(error(row.code, "")) == STATUS[row.remedy]


@pytest.mark.parametrize(("name", "status"), [("BUSY", 3), ("GOING_AWAY", 4), ("DENIED", 5), ("STORAGE_IN_USE", 6)])
def test_error_is_one_line_and_a_hint(
    name: str, status: int, verb: Callable[[Callable[[], object]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    failure = error(name, "what: got 2, limit 1", "do less")
    assert verb(fail_with(failure)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error {name} ({failure.code}): what: got 2, limit 1\nhint: do less\n"


def test_error_of_a_peer_cannot_write_to_the_terminal(
    verb: Callable[[Callable[[], object]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"code": 3999, "name": "X\x1b[2J", "detail": "a\nb\u202e", "hint": "\r"}
    assert verb(fail_with(from_wire(body))) == 5
    assert capsys.readouterr().err == "error X\\x1b[2J (3999): a\\nb\\u202e\nhint: \\r\n"


@pytest.mark.parametrize(("result", "status"), [(None, 0), (ExitCode.OK, 0), (ExitCode.WRONG, 1), ("text", 0)])
def test_result_of_a_verb_is_its_status(
    result: object, status: int, verb: Callable[[Callable[[], object]], int]
) -> None:
    assert verb(lambda: result) == status


def test_interrupt_is_status_130(
    verb: Callable[[Callable[[], object]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(fail_with(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.strip() == ""


def test_bug_keeps_its_traceback(verb: Callable[[Callable[[], object]], int]) -> None:
    with pytest.raises(ZeroDivisionError):
        verb(fail_with(ZeroDivisionError()))


PIPES = {
    "while it writes": "for _ in range(100_000): print('x' * 100)",
    "with output still buffered": "print('x')",
}


@pytest.mark.parametrize("body", PIPES.values(), ids=PIPES.keys())
def test_closed_pipe_is_quiet(body: str) -> None:
    code = f"import sys, click\nfrom broker.cli import main as cli\ndef function():\n    {body}\n"
    code += "cli.VerbGroup.get_command = lambda *_: click.command('serve')(function)\n"
    code += "sys.stdin.read()\nsys.exit(cli.main(['serve']))\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before it may begin
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == ExitCode.BROKEN_PIPE


def test_module_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "broker", "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"broker {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("broker top", ["top"]),
        ("broker top --o", ["--once"]),
        ("broker ver", ["verify", "version"]),
        ("broker e", ["errors", "events"]),
        ("broker con", ["consumer", "config"]),
        ("broker config ch", ["check"]),
        ("broker config show --to", ["--toml"]),
        ("broker errors slow", ["SLOW_CONSUMER"]),
        ("broker events clock", ["clock_jump"]),
        ("broker config check --set limits.ping_i", ["limits.ping_interval_s="]),
    ],
)
def test_shell_completion(
    words: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_BROKER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines() == [f"plain,{word}" for word in completed]
