"""A server with a web listener, and ways to it that can be cut."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

ROOT = Path(__file__).parents[2]
READY_S_MAX = 30.0
CONFIG = """\
[storage]
reserve_bytes = 0

[[profiles]]
pattern = "live.>"
durability = "ephemeral"

[[profiles]]
pattern = ">"
durability = "synced"
"""


class Server:
    """One `broker serve` with a web listener.

    Args:
        folder: An empty folder.
        access: What the access file says; empty where nobody is asked who they are.

    Attributes:
        address: Of the web listener, `host:port`.
        native: Of the native listener, `host:port`.
    """

    def __init__(self, folder: Path, access: str = "") -> None:
        config, ready = folder / "broker.toml", folder / "ready"
        config.write_text(CONFIG)
        if access:
            (folder / "access.toml").write_text(access)
            (folder / "access.toml").chmod(0o600)
            config.write_text(f'{CONFIG}\n[access]\nfile = "{folder / "access.toml"}"\n')
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "ext")])
        command = [sys.executable, "-m", "broker", "serve", "--config", str(config), "--data", str(folder / "data")]
        command += ["--tcp", "127.0.0.1:0", "--web", "127.0.0.1:0", "--ready-file", str(ready), "--drain-s", "0"]
        log = folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**kept, "PYTHONPATH": paths}
            )
        end = time.monotonic() + READY_S_MAX
        while not ready.exists():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        told = json.loads(ready.read_text())
        self.address: str = told["web"]
        self.native: str = told["tcp"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()


class Way:
    """A way to a server that can be cut, and joined again.

    Attributes:
        address: Where it begins, `host:port`.
    """

    def __init__(self, address: str) -> None:
        self.address = ""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._whole = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str) -> AsyncIterator[Self]:
        """Open a way to an address for as long as the block lasts."""
        way = cls(address)
        server = await asyncio.start_server(way._take, "127.0.0.1", 0)
        way.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield way
        finally:
            server.close()
            way.cut()
            await asyncio.gather(*way._tasks, return_exceptions=True)
            await server.wait_closed()

    def cut(self) -> None:
        """Cut all that are on it off, without a farewell, and let nobody through."""
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()

    def join(self) -> None:
        """Let them through again."""
        self._whole = True

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self._whole:
                return
            there, back = await asyncio.open_connection(self._host, self._port)
            self._writers.add(back)
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await asyncio.gather(_carry(reader, back), _carry(there, writer))
            finally:
                self._tasks.discard(task)
                self._writers.discard(back)
                back.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until there are no more, or the way is cut."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        # It was cut; the other direction ends with it.
        pass
    writer.transport.abort()
