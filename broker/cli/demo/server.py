"""The broker of the demo: a real `broker serve`, a process of its own that can be killed and started again.

The first start takes a free port and later ones the same, so that clients find it where they lost it. Whoever made a
`Server` ends it with `stop`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from typing import TYPE_CHECKING

from broker.model.errors import error

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.errors import BrokerError

READY_S_MAX = 30.0
STOP_S_MAX = 15.0
POLL_S = 0.002
LOG_TAIL_BYTES = 2_000


class Server:
    """One data directory, and the process that serves it at the moment.

    Args:
        data: the data directory.
        folder: an existing folder for the ready file and the log.

    Attributes:
        address: HOST:PORT, from the first start on.
        run: which run of the data directory this is.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self.address = "127.0.0.1:0"
        self.run = 0
        self._data = data
        self._ready = folder / "ready"
        self._log = folder / "log"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"broker://{self.address}"

    @property
    def pid(self) -> int:
        """The process that serves, or served last."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> float:
        """Start the process, and wait until it takes connections.

        Returns:
            Seconds from the start of the process until then, the interpreter's own start included.

        Raises:
            BrokerError: UNAVAILABLE; it did not start, and the detail ends with what it said.
        """
        self._ready.unlink(missing_ok=True)
        command = ["-m", "broker", "serve", "--data", str(self._data), "--tcp", self.address, "--unix", ""]
        command += ["--ready-file", str(self._ready), "--log-level", "warning"]
        begun = time.monotonic()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdin=DEVNULL, stdout=log, stderr=log
            )
        while not self._ready.exists():
            if self._process.returncode is not None or time.monotonic() - begun > READY_S_MAX:
                raise self._failure()
            await asyncio.sleep(POLL_S)
        ready_s = time.monotonic() - begun
        # The file was renamed into its place, so it is whole.
        told = json.loads(self._ready.read_text())
        self.address, self.run = told["tcp"], told["run"]
        return ready_s

    async def kill(self) -> None:
        """Kill the process as no process can survive, and see it dead."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End the process in good order, if it runs. It is killed when it does not end in time."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def _failure(self) -> BrokerError:
        assert self._process is not None
        status = self._process.returncode
        state = f"not ready after {READY_S_MAX:g} s" if status is None else f"ended with status {status}"
        tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return error("UNAVAILABLE", f"broker serve: {state}: {tail or 'it said nothing'}")
