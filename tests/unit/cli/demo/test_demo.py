"""The demo from the outside: its cast, its screen, and whole performances with a small corpus."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.cli.demo.crowd import LITERALS, filters_of
from broker.cli.demo.screen import Screen

ROOT = Path(__file__).parents[4]
SECONDS_MAX = 60


def perform(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `broker demo`."""
    return run(["-m", "broker", "demo", *arguments], **environment)


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the broker in reach."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "ext")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def assert_passed(result: subprocess.CompletedProcess[str], messages: int) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert result.stdout.endswith("\nPASS\n")
    for line in (rf"messages in +{messages:,}", "lost +0", "duplicated +0", "reordered +0", "channels altered +0"):
        assert re.search(rf"^ *{line}$", result.stdout, re.MULTILINE), f"{line}\n{result.stdout}"
    steps = re.findall(r"^\d\. (\w+)", result.stdout, re.MULTILINE)
    assert steps == ["Corpus", "Start", "Subscribe", "Publish", "Kill", "Restart", "Resume"]


def test_library_survives_the_kill() -> None:
    result = perform("--messages", "30000")
    assert_passed(result, 30_000)
    assert "demo.lib." in result.stdout


def test_file_and_directory_that_is_kept(tmp_path: Path) -> None:
    """The second performance goes on where the first one left the channels."""
    text = tmp_path / "text"
    text.write_bytes(b"".join(b"line %d\n" % n for n in range(5_000)))
    for _ in range(2):
        assert_passed(perform("--data", str(tmp_path / "data"), FILE=str(text)), 5_000)
    assert (tmp_path / "data" / "journal").is_dir()


@pytest.mark.parametrize("lines", [1, 3])
def test_hardly_anything_to_publish(tmp_path: Path, lines: int) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\n" * lines)
    assert_passed(perform("--file", str(text)), lines)


def test_nothing_to_publish_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    result = perform("--file", str(tmp_path / "text"))
    assert result.returncode == 5
    assert "got 0 lines" in result.stderr
    assert perform("--file", str(tmp_path / "none")).returncode == 2


def test_broker_that_does_not_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "something").write_text("not a broker's")
    result = perform("--data", str(tmp_path / "data"), "--messages", "10")
    assert result.returncode != 0
    assert "broker serve: ended with status" in result.stderr
    assert "Traceback" not in result.stderr


def test_verdict_can_be_fail() -> None:
    """A payload that is damaged on the way, here in the reader's own hands, ends in FAIL and status 1."""
    damage = (
        "import sys; from broker.cli.demo.judge import Reader; from broker.cli.main import main; take = Reader.take\n"
        "Reader.take = lambda self, channel, first, payloads: take(self, channel, first, [b'?', *payloads[1:]])\n"
        "sys.exit(main(['demo', '--messages', '2000']))"
    )
    result = run(["-c", damage])
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.endswith("\nFAIL\n")
    assert re.search(r"^ *channels altered +[1-9]", result.stdout, re.MULTILINE)


def test_filters_overlap_and_begin_with_the_longest_channel() -> None:
    lines = {f"demo.lib.m{n}": n for n in range(1, 40)}
    filters = filters_of(lines)
    assert filters["demo.lib.m39"] == ["demo.lib.m39"]
    assert filters["demo.lib.>"] == ["demo.lib.>"]
    assert filters["demo.>"] == ["demo.>"]
    assert filters["10 channels by name"] == [f"demo.lib.m{n}" for n in range(38, 38 - LITERALS, -1)]
    assert list(filters_of({"demo.file.part0": 1})) == ["demo.file.part0", "demo.file.>", "demo.>"]


def test_plain_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.step("Publish", "so many lines.")
    with screen.progress(1_000):
        screen.advance(10, 20)
        screen._next_line_s = 0.0
        screen.advance(500, 900)
    screen.verdict([("lost", "1")], passed=False)
    assert capsys.readouterr().out.splitlines() == [
        "1. Publish",
        "   so many lines.",
        "   … 500 of 1,000 acknowledged, 900 delivered",
        "",
        f"   {'lost':<24} 1",
        "",
        "FAIL",
    ]


def test_progress_on_a_terminal_leaves_the_steps_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = Screen()
    with screen.progress(1_000):
        screen.advance(500, 900)
        screen.step("Kill", "a [bold] word, and a line that is far too long for a terminal: " + "x" * 100)
    shown = capsys.readouterr().out
    assert "Kill" in shown
    assert "a [bold] word, and a line" in shown
