"""Whole load tests, in processes of their own: Locust replaces the sockets of the process that imports it.

Short and small: what they prove is the way from users to verdict and exit status, that a fault on that way fails the
test, and that nobody is left behind. The figures of such a run mean nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from broker.bench.server import OwnServer, own_server
from broker.wire.kinds import FRAME_HEADER_BYTES, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
# Generous, for a machine that does other things as well.
LOOSE = ["--min-rate", "1", "--max-p99-ms", "5000"]
PREFIXES = ["--stored-prefix", "bench.s", "--ephemeral-prefix", "bench.e"]
WAIT_S = 60.0


def command(*arguments: str) -> list[str]:
    """Return the front's command line."""
    return [sys.executable, "-m", "loadtest", *LOOSE, *arguments]


def locust(*arguments: str) -> list[str]:
    """Return Locust's own."""
    return [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *LOOSE, *PREFIXES, *arguments]


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run in a process group of its own, which is empty in the end, or the test fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "ext")])
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    left: list[int] = []
    try:
        yield process
        process.wait(WAIT_S)
        left = left_behind(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        process.wait()
    assert left == []


def is_alive(process: int) -> bool:
    """Whether it is there and has not ended; nobody may be there to bury it."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def left_behind(group: int) -> list[int]:
    """Return the processes of a group or a session that are still there a moment after its leader ended."""
    deadline = time.monotonic() + 5
    while True:
        left = []
        for each in psutil.pids():
            with suppress(ProcessLookupError):
                if group in (os.getpgid(each), os.getsid(each)) and is_alive(each):
                    left.append(each)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def said(process: subprocess.Popen[str]) -> str:
    """Wait for the end, and return all that was printed."""
    output, _ = process.communicate(timeout=WAIT_S)
    return output


def said_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return what was printed up to a line that matches."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            break
    return "".join(lines)


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with own_server() as found:
        yield found


def test_all_scenarios_in_several_processes_with_a_server_of_their_own(tmp_path: Path) -> None:
    page, figures, theirs = tmp_path / "page.html", tmp_path / "figures.json", tmp_path / "locust.html"
    reports = ["--report", str(page), "--report-json", str(figures), "--locust-report", str(theirs)]
    sizes = ["--users", "60", "--seconds", "3", "--processes", "2", "--pace", "4"]
    with running(command(*sizes, *reports)) as process:
        output = said(process)
    assert process.returncode == 0, output
    assert output.endswith("PASSED\n")
    found = json.loads(figures.read_text())
    assert found["passed"]
    assert len(found["workers_cores"]) == 2
    assert found["faults"] == dict.fromkeys(found["faults"], 0) | {"taken": found["delivered"]}
    assert found["delivered"] > found["published"] > 1000
    assert found["latency_curve"]
    assert any(found["server"]["records_out"])
    assert "<svg" in page.read_text()
    for kind in ("chat", "fanout", "celebrity", "backlog", "reconnect"):
        assert kind in theirs.read_text()


def test_a_message_that_is_lost_fails_the_test(server: OwnServer) -> None:
    """Planted between the two: one delivery is left out. With Locust's own command, asked to end before its time."""
    with relay(server.start().url, drop_one_delivery()) as url:
        options = ["--host", url, "--headless", "--scenario", "fanout", "-u", "20", "-r", "50", "-t", "60s"]
        options += ["--shape", "ramp", "--patience", "1", "--only-summary"]
        with running(locust(*options)) as process:
            said_until(process, "load test of")
            time.sleep(2)
            process.terminate()
            time.sleep(0.2)
            process.terminate()  # somebody is impatient
            output = said(process)
    assert process.returncode == 1, output
    assert re.search(r"FAIL +lost +64 ", output)
    assert re.search(r"ok +duplicated +0 ", output)


def test_a_server_that_dies_ends_the_test(server: OwnServer) -> None:
    options = ["--url", server.start().url, "--scenario", "fanout", "--users", "4", "--seconds", "60"]
    with running(command(*options, *PREFIXES, "--patience", "1", "--processes", "1")) as process:
        said_until(process, "load test of")
        time.sleep(1.5)
        server.end(signal.SIGKILL)
        output = said(process)
    assert process.returncode == 1, output
    assert re.search(r"the server at broker://127.0.0.1:\d+ has not answered for 1 s: (TIMEOUT|CONNECTION)", output)


def test_a_worker_that_dies_ends_the_test(server: OwnServer) -> None:
    options = ["--url", server.start().url, "--scenario", "fanout", "--users", "4", "--seconds", "60"]
    with running(command(*options, *PREFIXES, "--patience", "2", "--processes", "2")) as process:
        said_until(process, "load test of")
        time.sleep(1.5)
        [master] = psutil.Process(process.pid).children()
        master.children()[0].kill()
        output = said(process)
    assert process.returncode == 1, output
    assert "1 of 2 workers are gone" in output


def test_a_worker_without_its_master_ends_itself(server: OwnServer) -> None:
    """Master and worker are two commands, as on two machines."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    both = ["--host", server.start().url, "--headless", "--scenario", "fanout", "--patience", "2", "--skip-log-setup"]
    master = ["--master", "--expect-workers", "1", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    master += ["-u", "4", "-r", "50", "-t", "60s", "--only-summary"]
    with (
        running(locust(*both, "--worker", "--master-host", "127.0.0.1", "--master-port", port)) as worker,
        running(locust(*both, *master)) as process,
    ):
        said_until(process, "load test of")
        time.sleep(1)
        process.kill()
        output = said(worker)
    assert worker.returncode == 1
    assert f"the master at 127.0.0.1:{port} has not been heard of for 2 s: ending" in output


# -- a relay that meddles ----------------------------------------------------------------------------------------------


def drop_one_delivery() -> Callable[[bytes], bool]:
    """Return who leaves out the twentieth DELIVER of all."""
    seen = 0

    def drop(frame: bytes) -> bool:
        nonlocal seen
        seen += frame[4] == Kind.DELIVER
        return frame[4] == Kind.DELIVER and seen == 20

    return drop


@contextmanager
def relay(url: str, drop: Callable[[bytes], bool]) -> Iterator[str]:
    """Stand between clients and a server, and leave out those of its frames that `drop` says."""
    host, _, port = url.removeprefix("broker://").rpartition(":")
    sockets: list[socket.socket] = []
    listening = socket.create_server(("127.0.0.1", 0))
    sockets.append(listening)

    def up(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def down(server: socket.socket, client: socket.socket) -> None:
        waiting = bytearray()
        with suppress(OSError):
            while data := server.recv(65536):
                waiting += data
                while len(waiting) >= FRAME_HEADER_BYTES:
                    size = FRAME_HEADER_BYTES + int.from_bytes(waiting[:4], "little")
                    if len(waiting) < size:
                        break
                    frame = bytes(waiting[:size])
                    del waiting[:size]
                    if not drop(frame):
                        client.sendall(frame)
            client.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection((host, int(port)))
                sockets.extend((client, server))
                start(up, client, server)
                start(down, server, client)

    threads: list[threading.Thread] = []

    def start(work: Callable[..., None], *arguments: Any) -> None:
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()

    start(accept)
    try:
        yield f"broker://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in threads:
            thread.join()
