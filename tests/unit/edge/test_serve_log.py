"""A whole server's stderr under JSON: nothing but records of the registry, whatever strangers and signals do."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.model.events import EVENT_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}"}
STRANGERS = 200


class Served:
    """A server with a JSON log, which stands in a file.

    Args:
        folder: of the test; the data lies in it.
        arguments: what else the command line says.
        program: what the interpreter runs.
    """

    def __init__(self, folder: Path, arguments: Sequence[str] = (), program: Sequence[str] = ("-m", "broker")) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--data", "data", "--tcp", "127.0.0.1:0",
                 "--log-format", "json", *arguments],
                cwd=folder, env=ENVIRONMENT, stderr=log,
            )  # fmt: skip

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the first record of an event, as soon as it is there."""
        until_s = time.monotonic() + 60
        while True:
            for line in self.log.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["event"] == event:
                    record: dict[str, Any] = json.loads(line)
                    return record
            assert self.process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.01)


def refused_by(address: tuple[str, int]) -> bytes:
    """Send what is no protocol, and return the answer."""
    with socket.create_connection(address, timeout=30) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\r\nX: \r\n{"event": "ready"}\r\n\r\n')
        return b"".join(iter(lambda: stranger.recv(4096), b""))


def test_a_life_in_events(tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text("[limits]\nchannels_max = 5\n", encoding="utf-8")
    server = Served(tmp_path, ["--config", str(config)])
    process = server.process
    try:
        ready = server.wait_for("ready")
        host, port = ready["tcp"].rsplit(":", 1)
        for _ in range(STRANGERS):
            refused_by((host, int(port)))
        config.write_text("[limits]\nchannels_max = 6\n[server]\ndrain_s = 1\n", encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded")
        config.write_text("[limits]\nchannels_max = 0\n", encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        server.wait_for("reload_refused")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    said = server.log.read_text(encoding="utf-8")
    records = [json.loads(line) for line in said.splitlines()]
    for record in records:
        fields = {field.name for field in EVENT_BY_NAME[record["event"]].fields}
        assert set(record) - {"suppressed"} == {"time", "level", "event"} | fields
    events = [record["event"] for record in records]
    assert [name for name in events if name != "connections_refused"] == [
        "ready", "reloaded", "reload_refused", "stopping", "stopped",
    ]  # fmt: skip
    by_name = {record["event"]: record for record in records}
    assert by_name["ready"]["tcp"] == ready["tcp"]
    assert by_name["reloaded"]["waiting"] == "server.drain_s"
    assert (
        f"limits.channels_max: got 0, expected 1 to 4294967295 channels (file {config}:2)"
        in by_name["reload_refused"]["detail"]
    )
    refused = [record for record in records if record["event"] == "connections_refused"]
    assert sum(record["count"] for record in refused) == STRANGERS
    assert len(refused) < 10, "counted, not logged one by one"


STUMBLES = """
import sys
from broker.cli.main import main
from broker.edge import serve

announce = serve.Server._announce

def announce_and_stumble(server, *arguments):
    announce(server, *arguments)
    server._node.loop.call_soon(lambda: [][0])

serve.Server._announce = announce_and_stumble
sys.exit(main(sys.argv[1:]))
"""


def test_what_a_servers_loop_catches_is_an_event(tmp_path: Path) -> None:
    server = Served(tmp_path, program=("-c", STUMBLES))
    try:
        assert server.wait_for("loop_error")["error"] == "IndexError: list index out of range"
        server.process.terminate()
        assert server.process.wait(60) == 0, "it goes on"
    finally:
        server.process.kill()
        server.process.wait()


def test_a_start_that_fails_is_an_event_and_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory", encoding="utf-8")
    server = Served(tmp_path)
    assert server.process.wait(60) == 6
    first, error, hint = server.log.read_text(encoding="utf-8").splitlines()
    record = json.loads(first)
    assert (record["event"], record["level"], record["code"]) == ("server_failed", "critical", "STORAGE_FORMAT")
    assert error == f"error STORAGE_FORMAT (4003): {record['detail']}"
    assert hint == f"hint: {record['hint']}"
