"""What the README and the guide tell a reader to type is typed here: programs are run, commands have their options."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
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
from tests.contract.homes import end_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROGRAMS: list[str] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
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
    # Of all works of `bench`, `compare` alone has a command line of its own.
    verb = "compare" if words[1:3] == ["bench", "compare"] else words[1]
    command = import_module(f"broker.cli.{verb}").command
    unknown = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - options(command)
    assert unknown == set()


def test_readme_shows_commands_and_programs() -> None:
    assert {words[1] for words in commands(README)} >= {"serve", "pub", "sub", "bench", "errors"}
    assert len(PROGRAMS) == 12


def run(program: list[str], folder: Path) -> str:
    """Run a program, `-c` and its text or a file's name, in a folder of its own and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *program],
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
        path, ready = Path(folder) / "socket", Path(folder) / "ready"
        command = ["serve", "--data", f"{folder}/data", "--tcp", "", "--unix", str(path), "--ready-file", str(ready)]
        with subprocess.Popen([sys.executable, "-m", "broker", *command], env=environment()) as server:
            try:
                deadline = time.monotonic() + PATIENCE_S
                while not ready.exists():
                    assert server.poll() is None, "the server has ended"
                    assert time.monotonic() < deadline, "the server is not ready"
                    time.sleep(0.01)
                yield f"broker+unix://{path}"
            finally:
                server.terminate()
            assert server.wait(PATIENCE_S) == 0


def program(words: str) -> str:
    """Return the program with these words in it."""
    (found,) = [text for text in PROGRAMS if words in text]
    return found


def test_asking_program_runs(tmp_path: Path) -> None:
    assert run(["-c", program("bus.request(")], tmp_path) == "['1', '2', '3', '4']\nNO_RESPONDERS\n"


def test_application_and_its_tests_run(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(program("app:make"), encoding="utf-8")
    (tmp_path / "test_app.py").write_text(program("import app"), encoding="utf-8")
    scope = "asyncio_default_fixture_loop_scope=function"
    assert "2 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", scope, "test_app.py"], tmp_path)


def test_embedded_program_runs(tmp_path: Path) -> None:
    assert run(["-c", PROGRAMS[0]], tmp_path) == "chat.acme.42 1 b'hello'\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name; the server of `bus-data` in it ends with the test."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        try:
            yield Path(name)
        finally:
            end_server(Path(name, "bus-data").resolve())


def test_web_application_runs_with_four_workers(folder: Path) -> None:
    """Whichever worker takes a request, all have one bus."""
    (folder / "app.py").write_text(PROGRAMS[1], encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "uvicorn", "--workers", "4", "--uds", "http", "app:app"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as application:
        assert application.stderr is not None
        said: list[str] = []
        try:
            while sum("Application startup complete" in line for line in said) < 4:
                said.append(application.stderr.readline())
                assert said[-1], "".join(said)
            await_listening(folder / "http")
            answers = [ask(folder / "http", "POST", f"line {number}".encode()) for number in range(40)]
            lines, _ = ask(folder / "http", "GET", b"")
        finally:
            application.terminate()
        rest = application.stderr.read()
    assert application.returncode == 0, rest
    assert [int(answer) for answer, _ in answers] == list(range(1, 41))
    assert lines.decode().splitlines() == [f"line {number}" for number in range(20, 40)]
    assert len({worker for _, worker in answers}) > 1, "one worker took all"


def await_listening(path: Path) -> None:
    """Wait until a socket listens: uvicorn says that an application is ready before it does."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
            return
        except ConnectionRefusedError:
            assert time.monotonic() < until_s, "nobody listens"
            time.sleep(0.01)


def ask(path: Path, method: str, body: bytes) -> tuple[bytes, str | None]:
    """Ask over HTTP on a Unix socket; returns the answer, and which worker gave it."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(PATIENCE_S)
        connection.sock.connect(str(path))
        connection.request(method, "/lobby", body)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response.read(), response.getheader("x-worker")
    finally:
        connection.close()


def test_program_of_many_processes_runs(folder: Path) -> None:
    # In a file: a spawned process reads it anew.
    (folder / "main.py").write_text(PROGRAMS[2], encoding="utf-8")
    assert run(["main.py"], folder) == "['worker 0', 'worker 1', 'worker 2', 'worker 3']\n"


def test_client_program_runs(tmp_path: Path, server_url: str) -> None:
    assert SERVER_URL in PROGRAMS[3]
    assert run(["-c", PROGRAMS[3].replace(SERVER_URL, server_url)], tmp_path) == "1 synced\n"


def test_reading_program_runs(tmp_path: Path, server_url: str) -> None:
    assert SERVER_URL in PROGRAMS[4]
    printed = run(["-c", PROGRAMS[4].replace(SERVER_URL, server_url)], tmp_path)
    assert printed == "['two', 'three', 'four']\n2 two\n1 one\n['chat.acme.44']\n"


@pytest.mark.parametrize("before", ["", "from gevent import monkey\n\nmonkey.patch_all()\n"], ids=["threads", "gevent"])
def test_blocking_program_runs(tmp_path: Path, server_url: str, before: str) -> None:
    assert SERVER_URL in PROGRAMS[5]
    printed = run(["-c", before + PROGRAMS[5].replace(SERVER_URL, server_url)], tmp_path)
    assert printed == "['thread 0', 'thread 1', 'thread 2', 'thread 3']\n1000 1000\n"


def test_program_with_a_transaction_runs(tmp_path: Path) -> None:
    (program,) = (program for program in PROGRAMS if "transaction" in program)
    assert run(["-c", program], tmp_path) == "[3, 1, 1]\n"


def test_worker_program_runs(tmp_path: Path, server_url: str) -> None:
    text = program("@bus.worker(")
    assert SERVER_URL in text
    assert run(["-c", text.replace(SERVER_URL, server_url)], tmp_path) == "resized cat.png\n"


def test_pipeline_program_runs(tmp_path: Path, server_url: str) -> None:
    text = program("bus.pipeline(")
    assert SERVER_URL in text
    assert run(["-c", text.replace(SERVER_URL, server_url)], tmp_path) == "book: 400\n"
