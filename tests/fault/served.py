"""Servers that are ready at once: a process that has imported everything, and forks one whenever it is asked.

Run as `python -m tests.fault.served` under the injector (`tests/fault/inject.py` does), so that what is counted and
made to fail is the server's own doing and not Python's start. It reads one JSON object a line, and answers each so:

    {"serve": [arguments of `broker serve`], "log": path, "segment_bytes": n, "lag": path, "plant": name}  →  {"pid": n}
    {"wait": pid, "s": seconds}                                          →  {"status": n}, null while it runs

A status below 0 is the signal that ended it. `lag` is where the server writes, when it ends, how late a timer of its
loop came each time, in microseconds: what anything else in that loop would have had to wait. `plant` is a mistake
that a test must find, one of `PLANTS`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb  # noqa: F401  # here, so that no server's start is spent on it
import uvloop  # noqa: F401

from broker.cli import serve as _verb  # noqa: F401
from broker.cli.main import main as run_cli
from broker.edge import serve as edge
from broker.log.log import Log
from broker.model.errors import BrokerError
from broker.node.commit import CommitThread
from broker.node.node import Node

if TYPE_CHECKING:
    from typing import NoReturn

    from broker.core.group import Group
    from broker_native.crc32c import Buffer

LAG_EVERY_S = 0.002
POLL_S = 0.001
ended: dict[int, int] = {}
"""How servers ended, by process."""


async def probe(late_us: list[int]) -> None:
    """Note how late a timer comes, again and again, until this is cancelled."""
    while True:
        due_s = time.monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        late_us.append(round((time.monotonic() - due_s) * 1e6))


def prepare(segment_bytes: int, lag: str | None, plant: str) -> None:
    """Have the server of this process keep small segments, watch its loop, or make a mistake."""
    opened, served = Node.open.__func__, edge.Server.serve  # type: ignore[attr-defined]

    async def open_small(cls: type[Node], path: Path, /, **options: Any) -> Node:
        node: Node = await opened(cls, path, **{**options, "segment_bytes": segment_bytes})
        return node

    async def serve_watched(self: edge.Server) -> None:
        late_us: list[int] = []
        watching = asyncio.create_task(probe(late_us))
        try:
            await served(self)
        finally:
            watching.cancel()
            await asyncio.to_thread(Path(lag or "").write_text, json.dumps(late_us))

    if segment_bytes:
        Node.open = classmethod(open_small)  # type: ignore[assignment,method-assign]
    if plant:
        PLANTS[plant]()
    if lag:
        edge.Server.serve = serve_watched  # type: ignore[method-assign]


def commit_inline(self: CommitThread, group: Group) -> None:
    """Commit on the loop, as a server must not."""
    self._tell(group, self._append(group, False))


append = Log.append


def append_and_hope(self: Log, number: int, value: Buffer) -> None:
    """Take a group that the disk refused for stored, as a server must not."""
    with suppress(BrokerError, ValueError):
        append(self, number, value)


def plant_inline() -> None:
    """Commits run on the loop."""
    CommitThread.commit = commit_inline  # type: ignore[method-assign]


def plant_hope() -> None:
    """A commit that fails is acknowledged."""
    Log.append = append_and_hope  # type: ignore[method-assign]


PLANTS = {"inline": plant_inline, "hope": plant_hope}


def serve(request: dict[str, Any]) -> NoReturn:
    """Be the server, and end with its status."""
    status = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, descriptor)
        os.close(log)
        os.close(null)
        prepare(request.get("segment_bytes", 0), request.get("lag"), request.get("plant", ""))
        status = run_cli(["serve", *request["serve"]])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """Return how a server ended: its status, or the negated signal; None when it has not in time."""
    until_s = time.monotonic() + seconds
    while pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() >= until_s:
            return None
        time.sleep(POLL_S)
    return ended[pid]


def main() -> None:
    """Answer requests until the input ends."""
    if ctypes.CDLL(None).fault_scan() < 3:
        raise SystemExit("the injector does not know the modules")
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "serve" in request:
            pid = os.fork()
            if pid == 0:
                serve(request)
            answer: dict[str, int | None] = {"pid": pid}
        else:
            answer = {"status": wait(request["wait"], request["s"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
