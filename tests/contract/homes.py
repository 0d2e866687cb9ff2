"""The homes of the broker, as a test opens them: one way to get a bus, whatever is behind it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psutil

from broker import Broker, connect
from broker.access.issuing import Issuer
from broker.model.levels import Level
from broker.model.profiles import Profile
from broker.shared import starting
from tests.contract import threaded
from tests.contract.evicting import evicting
from tests.shared.processes import wait_until_dead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Self

    from broker import Bus

ROOT = Path(__file__).parents[2]
READY_SECONDS_MAX = 20.0
SEGMENT_BYTES = 8 * 1024 * 1024

PROFILES = (
    Profile(b"e.>", durability=Level.EPHEMERAL),
    Profile(b"a.>", durability=Level.ACCEPTED),
    Profile(b"s.>", durability=Level.SYNCED),
    Profile(b"small.>", payload_bytes_max=100),
    Profile(b"latest.>", slow="latest"),
    Profile(b"cut.>", slow="disconnect"),
)

CONFIG = f"""\
[storage]
segment_bytes = {SEGMENT_BYTES}
reserve_bytes = 0

[[profiles]]
pattern = "e.>"
durability = "ephemeral"

[[profiles]]
pattern = "a.>"
durability = "accepted"

[[profiles]]
pattern = "s.>"
durability = "synced"

[[profiles]]
pattern = "small.>"
payload_bytes_max = 100

[[profiles]]
pattern = "latest.>"
slow = "latest"

[[profiles]]
pattern = "cut.>"
slow = "disconnect"
"""


class Server:
    """`broker serve` in a process of its own, on TCP, a Unix socket and for the web, over a folder that goes with it.

    Args:
        evicts: It keeps nothing in memory that it may evict.
        program: The module that is run; it serves as the product does, but for what it is about.
        config: Its settings.
        tls: TLS is spoken at its TCP address, with certificates of its own.
    """

    def __init__(
        self, *, evicts: bool = False, program: str = "broker", config: str = CONFIG, tls: bool = False
    ) -> None:
        self._program = "tests.contract.evicting" if evicts else program
        # Not pytest's folder: the path of a Unix socket is bounded.
        self.folder = Path(tempfile.mkdtemp(prefix="broker-"))
        self._config = self.folder / "broker.toml"
        self._ca = self._make_certificates() if tls else None
        if tls:
            config += f'[tls]\ncertificate = "{self.folder}/server.pem"\nkey = "{self.folder}/server-key.pem"\n'
        self._config.write_text(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._tcp = self._web = "127.0.0.1:0"
        self.unix_url = f"broker+unix://{self.folder}/socket"

    @property
    def tcp_url(self) -> str:
        return f"broker://{self._tcp}" if self._ca is None else f"broker+tls://{self._tcp}?ca={self._ca}"

    def _make_certificates(self) -> Path:
        """Have the server's certificate and key signed; returns the file of who signed."""
        issuer = Issuer()
        issued = issuer.issue_server(["127.0.0.1"])
        files = {"ca.pem": issuer.certificate, "server.pem": issued.certificate, "server-key.pem": issued.key}
        for name, content in files.items():
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        return self.folder / "ca.pem"

    @property
    def web(self) -> str:
        """The web listener's address, `host:port`."""
        return self._web

    @property
    def web_url(self) -> str:
        return f"ws://{self._web}" if self._ca is None else f"wss://{self._web}?ca={self._ca}"

    def start(self) -> Self:
        """Start it, again on the same port if it ran before, and wait until it takes connections."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            self._program,
            "serve",
            "--data",
            str(self.folder / "data"),
            "--tcp",
            self._tcp,
            "--web",
            self._web,
        ]
        command += ["--unix", str(self.folder / "socket"), "--config", str(self._config), "--ready-file", str(ready)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{(self.folder / 'log').read_text()[-4000:]}")
            time.sleep(0.005)
        told = json.loads(ready.read_text())
        self._tcp, self._web = told["tcp"], told["web"]
        return self

    @staticmethod
    def environment() -> dict[str, str]:
        return {"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}", "PATH": "/usr/bin:/bin"}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would end it, but for the page cache."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to end in good order, with SIGTERM."""
        assert self._process is not None
        self._process.terminate()

    def ended(self) -> int:
        """Wait until it has ended; return its exit status."""
        assert self._process is not None
        return self._process.wait(10)

    def drain(self) -> int:
        """End it in good order; return its exit status."""
        self.terminate()
        return self.ended()

    def stop(self) -> None:
        """End it and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class SharedFolder:
    """A directory that tests share, each with buses of its own; the first of them starts its server.

    Args:
        evicts: The server keeps nothing in memory that it may evict.
    """

    def __init__(self, *, evicts: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="broker-"))
        self.home = Home("shared", self.folder, None, evicts=evicts)

    def stop(self) -> None:
        """End its server, if there is one, and remove the folder."""
        end_server(self.folder / "data")
        shutil.rmtree(self.folder, ignore_errors=True)


def end_server(data: Path) -> None:
    """End the server that a shared directory says it has, and see it gone: it is nobody's child."""
    told = data / "server.json"
    if told.exists():
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(json.loads(told.read_text())["pid"])
            if str(data) in server.cmdline():
                server.terminate()
                wait_until_dead(server)


class Home:
    """Where the broker of one test lives.

    Args:
        kind: `embedded`, `thread`, `shared`, `tcp`, `unix`, `web` (a WebSocket), or `blocking`, which is TCP by the
            blocking client.
        folder: For the data of those that have no server here.
        server: For the others.
        evicts: The embedded ones keep nothing in memory that they may evict.
    """

    def __init__(self, kind: str, folder: Path, server: Server | None, *, evicts: bool = False) -> None:
        self.kind = kind
        self._evicts = evicts
        self._folder = folder
        self._server = server

    @property
    def url(self) -> str:
        assert self._server is not None
        if self.kind == "web":
            return self._server.web_url
        return self._server.unix_url if self.kind == "unix" else self._server.tcp_url

    @asynccontextmanager
    async def bus(self, **options: Any) -> AsyncIterator[Bus]:
        """Open the bus; after it is closed it can be opened again over the same data."""
        if self._server is None:
            settings: Any = {"profiles": PROFILES, "segment_bytes": SEGMENT_BYTES, "reserve_bytes": 0, **options}
            data = self._folder / "data"
            if self.kind == "shared":
                with patch.object(starting, "PROGRAM", "tests.contract.evicting" if self._evicts else "broker"):
                    async with Broker.open(data, shared=True, **settings) as shared:
                        yield shared
                return
            with evicting() if self._evicts else nullcontext():
                async with Broker.open(data, thread=self.kind == "thread", **settings) as embedded:
                    yield embedded
        else:
            way = threaded.connect if self.kind == "blocking" else connect
            async with way(self.url, **options) as remote:
                yield remote


async def take(stream: Any, count: int, timeout_s: float = 10.0) -> list[Any]:
    """Return the next `count` messages of a subscription."""
    taken: list[Any] = []
    if count:
        async with asyncio.timeout(timeout_s):
            async for message in stream:
                taken.append(message)
                if len(taken) == count:
                    break
    return taken


async def happens(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> bool:
    """Whether something comes about in time."""
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.005)
    return True


async def nothing_comes(stream: Any, seconds: float = 0.05) -> bool:
    """Whether no message is at hand and none comes for a moment."""
    try:
        await asyncio.wait_for(anext(aiter(stream)), seconds)
    except TimeoutError:
        return True
    return False
