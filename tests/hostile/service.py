"""A server process to be attacked, and a pair of honest users beside the attackers.

The honest pair lives in a process of its own, so that neither the attackers' interpreter nor the server's holds it up:
a publisher who sends at a fixed rate and a subscriber who checks that everything comes once and in order, and how long
it took. Two channels take turns: an ephemeral one, whose way is the server's loop and nothing else, and a synced one,
whose way is the disk as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.hostile import attackers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

ROOT = Path(__file__).parents[2]
READY_S_MAX = 30.0
CONFIG = """\
[storage]
reserve_bytes = 0

[limits]
{limits}

[[profiles]]
pattern = "ephemeral.>"
durability = "ephemeral"

[[profiles]]
pattern = ">"
durability = "synced"
"""


def environment() -> dict[str, str]:
    """Return the environment of a child that finds this project, and no setting of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}


class Service:
    """One `broker serve`.

    Args:
        folder: an empty folder.
        limits: of the configuration; None for the defaults.
        loop: kind of event loop: auto, uvloop, asyncio.
        without: a defence that it lacks (`tests.hostile.planted`); None for none.
    """

    def __init__(
        self,
        folder: Path,
        limits: Mapping[str, float] | None = None,
        *,
        loop: str = "auto",
        without: str | None = None,
    ) -> None:
        config, ready = folder / "broker.toml", folder / "ready"
        config.write_text(
            CONFIG.format(limits="\n".join(f"{name} = {value}" for name, value in (limits or {}).items()))
        )
        self.log = folder / "log"
        self._peers: list[attackers.Peer] = []
        program = ["broker"] if without is None else ["tests.hostile.planted", without]
        command = [sys.executable, "-m", *program, "serve", "--config", str(config), "--data", str(folder / "data")]
        command += ["--tcp", "127.0.0.1:0", "--ready-file", str(ready), "--drain-s", "0", "--loop", loop]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )
        end = time.monotonic() + READY_S_MAX
        while not ready.exists():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)
        host, _, port = json.loads(ready.read_text())["tcp"].rpartition(":")
        self.address = (str(host), int(port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def peer(self, source: str | None = None) -> attackers.Peer:
        """Return a new connection; `hang_up` closes it if nobody else has."""
        peer = attackers.Peer(self.address, source)
        self._peers.append(peer)
        return peer

    def hang_up(self) -> None:
        """Close all connections that this object has made."""
        for peer in self._peers:
            peer.socket.close()
        self._peers.clear()

    def opened(self, **body: object) -> attackers.Peer:
        """Return a new connection that has said HELLO."""
        peer = self.peer()
        peer.open(**body)
        return peer

    def publisher(self, name: bytes = b"ephemeral.attacked", **body: object) -> attackers.Peer:
        """Return a new connection whose channel 0 has this name."""
        peer = self.opened(**body)
        peer.send(attackers.channel(0, name))
        return peer

    def stats(self) -> dict[str, Any]:
        """Return the server's counters."""
        return attackers.stats(self.address)

    def anonymous_bytes(self) -> int:
        """Return the server's anonymous memory, bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-5_000:].decode(errors="replace")

    def stop(self) -> None:
        """End the process, and see that it had not ended by itself, nor complained of anything unforeseen."""
        self.hang_up()
        assert self.process.poll() is None, f"the server died: {self.said()}"
        self.process.terminate()
        status = self.process.wait(READY_S_MAX)
        assert status == 0, self.said()
        said = self.log.read_text(errors="replace")
        assert "Traceback" not in said, said[-5_000:]


@dataclass(frozen=True, slots=True)
class Window:
    """What the honest pair saw in one stretch of time; latencies from before the send until after the parse.

    Attributes:
        sent, delivered: messages.
        wrong: everything that was lost, doubled, out of order or refused, in words.
        p50_us, p99_us, max_us: of the ephemeral channel.
        stored_p50_us, stored_p99_us: of the synced one.
    """

    sent: int
    delivered: int
    wrong: list[str]
    p50_us: float
    p99_us: float
    max_us: float
    stored_p50_us: float
    stored_p99_us: float


class Pair:
    """The honest pair's process (`tests.hostile.honest`).

    Args:
        address: the server's.
        rate: messages a second.
    """

    def __init__(self, address: tuple[str, int], rate: int = 1_000) -> None:
        command = [sys.executable, "-m", "tests.hostile.honest", address[0], str(address[1]), str(rate)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout
        assert self._out.readline() == "ready\n"

    def window(self) -> Window:
        """End a window and begin the next; waits until all that was sent in it has been delivered."""
        print("window", file=self._in, flush=True)
        return Window(**json.loads(self._out.readline()))

    def stop(self) -> None:
        """End the process."""
        self._in.close()
        self._process.wait(READY_S_MAX)
        self._out.close()
