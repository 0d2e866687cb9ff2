"""The processes that serve below a folder, seen from outside: a server and its archiver work in their directory."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 20.0
POLL_S = 0.01


def serving(folder: Path) -> list[psutil.Process]:
    """Return the servers of a directory and their archivers, or those of all directories below a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            place = process.cwd()
            ours = place == str(folder) or place.startswith(f"{folder}{os.sep}")
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def server_of(folder: Path) -> psutil.Process:
    """Return the one server of a directory."""
    servers = [process for process in serving(folder) if "broker.log.archiver" not in process.cmdline()]
    assert len(servers) == 1, servers
    return servers[0]


def kill(process: psutil.Process) -> None:
    """SIGKILL, and see it dead."""
    with suppress(psutil.NoSuchProcess):
        process.kill()
        wait_until_dead(process)


def wait_until_dead(process: psutil.Process) -> None:
    """Wait for the end of a process that is no child of ours; a zombie is dead, whenever its parent looks."""
    deadline = time.monotonic() + PATIENCE_S
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"still there: {process}"
            time.sleep(POLL_S)


def wait_until_nobody_serves(folder: Path, seconds: float = PATIENCE_S) -> None:
    """Wait until a directory has no server and no archiver any more."""
    deadline = time.monotonic() + seconds
    while left := serving(folder):
        assert time.monotonic() < deadline, f"still there: {[process.cmdline() for process in left]}"
        time.sleep(POLL_S)


def end_all(folder: Path) -> None:
    """End what is left; a stopped one goes on first, or a signal would wait in it."""
    for process in serving(folder):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
            kill(process)
