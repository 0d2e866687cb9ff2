"""What the README and the guide tell a reader to type is typed here: programs are run, commands have their options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from broker.cli.main import VERBS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SERVER_URL = "broker://127.0.0.1:4770"
PATIENCE_S = 30


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `broker` command in code spans and shell blocks, without its redirections."""
    blocks = re.findall(r"^```(?:sh|toml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("# ") for block in blocks for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", text)]:
        words = shlex.split(line, comments=True) if line.startswith("broker ") else []
        if len(words) > 1 and words[1] in VERBS:
            yield words


def options(command: click.Command) -> set[str]:
    """Return the names of a command's options, and of its own commands' when it is a group."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        found = found.union(*(options(each) for each in command.commands.values()))
    return found


@pytest.mark.parametrize("words", [*commands(README), *commands(GUIDE)], ids=" ".join)
def test_command_has_the_options_it_is_shown_with(words: list[str]) -> None:
    command = import_module(f"broker.cli.{words[1]}").command
    unknown = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - options(command)
    assert unknown == set()


def test_readme_shows_commands_and_programs() -> None:
    assert {words[1] for words in commands(README)} >= {"serve", "pub", "sub", "bench", "errors"}
    assert len(PROGRAMS) == 3


def run(program: str, folder: Path) -> str:
    """Run a program in a folder of its own and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def environment() -> dict[str, str]:
    """Return an environment in which a child imports the same broker as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture
def server_url() -> Iterator[str]:
    """The URL of a server on a Unix socket; it must end well when it is asked to."""
    # Not in tmp_path, whose names are longer than the path of a Unix socket may be.
    with tempfile.TemporaryDirectory(prefix="broker-") as folder:
        socket, ready = Path(folder) / "socket", Path(folder) / "ready"
        command = ["serve", "--data", f"{folder}/data", "--tcp", "", "--unix", str(socket), "--ready-file", str(ready)]
        with subprocess.Popen([sys.executable, "-m", "broker", *command], env=environment()) as server:
            try:
                deadline = time.monotonic() + PATIENCE_S
                while not ready.exists():
                    assert server.poll() is None, "the server has ended"
                    assert time.monotonic() < deadline, "the server is not ready"
                    time.sleep(0.01)
                yield f"broker+unix://{socket}"
            finally:
                server.terminate()
            assert server.wait(PATIENCE_S) == 0


def test_embedded_program_runs(tmp_path: Path) -> None:
    assert run(PROGRAMS[0], tmp_path) == "chat.acme.42 1 b'hello'\n"


def test_client_program_runs(tmp_path: Path, server_url: str) -> None:
    assert SERVER_URL in PROGRAMS[1]
    assert run(PROGRAMS[1].replace(SERVER_URL, server_url), tmp_path) == "1 synced\n"


def test_reading_program_runs(tmp_path: Path, server_url: str) -> None:
    assert SERVER_URL in PROGRAMS[2]
    printed = run(PROGRAMS[2].replace(SERVER_URL, server_url), tmp_path)
    assert printed == "['two', 'three', 'four']\n2 two\n1 one\n['chat.acme.44']\n"
