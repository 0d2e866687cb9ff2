"""The injector of failures from outside: building it, arming it, and servers that run under it.

`Control` is the page that the processes under the injector share with whoever watches them; `Forge` is a process that
forks servers under it. Nothing here knows what a workload is, or judges one.
"""

from __future__ import annotations

import asyncio
import errno
import json
import mmap
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("inject.c")
FOREVER = 1 << 62
SHORT = 1000
"""Instead of an errno: write half of it."""

_ARMED = struct.Struct("<QQQQQQ")
_DELAY_AT = 48
_NAME_AT, _NAME_BYTES = 56, 16


class Class(IntEnum):
    """Which calls may fail; the numbers of the injector."""

    NOTHING = 0
    WRITE = 1
    SYNC = 2
    NAME = 3
    MEMORY = 4
    LMDB_MEMORY = 5
    OBJECT = 6
    SOCKET = 7


ERRORS: dict[Class, tuple[int, ...]] = {
    Class.WRITE: (errno.EIO, errno.ENOSPC, SHORT, errno.EINTR),
    Class.SYNC: (errno.EIO,),
    Class.NAME: (errno.EIO, errno.EMFILE, errno.ENOSPC),
    Class.MEMORY: (errno.ENOMEM,),
    Class.LMDB_MEMORY: (errno.ENOMEM,),
    Class.OBJECT: (errno.ENOMEM,),
    Class.SOCKET: (errno.ENOBUFS, errno.ECONNRESET, errno.EMFILE, errno.EINTR),
}
"""What the calls of a class fail with."""


def build(folder: Path) -> Path:
    """Build the injector with the compiler that builds the extensions."""
    library = folder / "inject.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    return library


class Control:
    """The shared page: what fails, and how far it got.

    Args:
        path: its file, created here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def arm(self, klass: Class, how: int = 0, at: int = 0, count: int = 1) -> None:
        """Let calls `at` to `at + count − 1` of a class fail, counted from now; with `at` 0 they are counted only."""
        self._page[:8] = bytes(8)
        self._page[_NAME_AT : _NAME_AT + _NAME_BYTES] = bytes(_NAME_BYTES)
        self._page[8 : _ARMED.size] = _ARMED.pack(0, how, at, count, 0, 0)[8:]
        self._page[:8] = int(klass).to_bytes(8, "little")

    def disarm(self) -> None:
        """Let everything succeed from now on; the counts stay."""
        self._page[:8] = bytes(8)

    def delay(self, seconds: float) -> None:
        """Let every sync of a file take this long at least, also those that wait now."""
        self._page[_DELAY_AT : _DELAY_AT + 8] = round(seconds * 1e6).to_bytes(8, "little")

    @property
    def seen(self) -> int:
        """How many calls of the class were made since it was armed."""
        return self._word(4)

    @property
    def struck(self) -> int:
        """How many of them failed."""
        return self._word(5)

    @property
    def name(self) -> str:
        """The first that failed."""
        return self._page[_NAME_AT : _NAME_AT + _NAME_BYTES].rstrip(b"\0").decode()

    def close(self) -> None:
        """Give the page back."""
        self._page.close()

    def _word(self, index: int) -> int:
        return int.from_bytes(self._page[index * 8 : index * 8 + 8], "little")


@dataclass
class Served:
    """One server under the injector.

    Attributes:
        pid: its process.
        log: what it says.
        ready: the file that it writes when it takes connections.
    """

    pid: int
    log: Path
    ready: Path

    def told(self) -> dict[str, Any] | None:
        """Return what the server wrote when it was ready; None when it is not."""
        return json.loads(self.ready.read_text()) if self.ready.exists() else None

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Forge:
    """Forks servers under the injector.

    Args:
        library: The injector.
        control: Its page.
        root: The directory whose files are meant; every data directory is below it.
    """

    def __init__(self, library: Path, control: Control, root: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")]),
            "LD_PRELOAD": str(library),
            "FAULT_CONTROL": str(control.path),
            "FAULT_ROOT": str(root.resolve()),
        }
        self._root = root
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.served"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def serve(
        self, data: Path, *options: str, segment_bytes: int = 0, lag: Path | None = None, plant: str = ""
    ) -> Served:
        """Start a server on a data directory and a free port; see `tests.fault.served` for the rest."""
        self._count += 1
        log, ready = (self._root.with_name(f"{self._root.name}-{what}-{self._count}") for what in ("log", "ready"))
        ready.unlink(missing_ok=True)
        arguments = ["--data", str(data), "--tcp", "127.0.0.1:0", "--ready-file", str(ready), "--drain-s", "2"]
        request = {
            "serve": [*arguments, *options],
            "log": str(log),
            "segment_bytes": segment_bytes,
            "lag": str(lag) if lag else None,
            "plant": plant,
        }
        return Served(self._ask(request)["pid"], log, ready)

    def wait(self, served: Served, seconds: float) -> int | None:
        """Return how a server ended: its status, or the negated signal; None when it has not in time."""
        status: int | None = self._ask({"wait": served.pid, "s": seconds})["status"]
        return status

    async def until_ready(self, served: Served, seconds: float) -> int | None:
        """Wait until a server takes connections or has ended; returns the status with which it ended, or None.

        Raises:
            TimeoutError: it does neither.
        """
        async with asyncio.timeout(seconds):
            while served.told() is None:
                if (status := self.wait(served, 0)) is not None:
                    return status
                await asyncio.sleep(0.001)
        return None

    def close(self) -> None:
        """End the process that forks; its servers have ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
