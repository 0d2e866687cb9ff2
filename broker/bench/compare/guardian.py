"""Starts a server and ends it when whoever wanted it says so or is gone; a program of its own, standard library alone.

    python -I -S guardian.py GRACE_SECONDS FOLDER COMMAND [ARGUMENT ...]

Standard input is a pipe that only the one who wants the server holds open. A byte on it means: end the server. Its end
without a byte means that nobody is left: then FOLDER, which holds the server's files, is removed as well. Either way
the server's process group gets SIGTERM, and SIGKILL when GRACE_SECONDS are over or the server itself has ended. On
Linux the server is killed by the kernel should the guardian be killed. The first line of standard output is the
server's process id, which is its group's. The exit status is the server's, 128 and the signal's number when one ended
it, and 127 when the command could not be run.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
NOT_RUN = 127


def follow_parent() -> None:
    """Die with the parent (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    """Send a signal to what is left of a group."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # Nobody is left of it; on macOS a group of zombies answers the second way.
        return


def main(arguments: list[str]) -> int:
    """Run until the server has ended; returns the exit status."""
    grace_s, folder, command = float(arguments[0]), arguments[1], arguments[2:]
    ended, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=2, process_group=0, preexec_fn=follow_parent
        )
    except OSError as failure:
        print(f"{command[0]}: {failure.strerror}", file=sys.stderr)
        return NOT_RUN
    os.write(1, b"%d\n" % server.pid)
    asked = None
    while server.poll() is None and asked is None:
        readable, _, _ = select.select([0, ended], [], [])
        if ended in readable:
            os.read(ended, 4096)
        if 0 in readable:
            asked = os.read(0, 1)
    signal_group(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while server.poll() is None and time.monotonic() < deadline:
        select.select([ended], [], [], deadline - time.monotonic())
        os.set_blocking(ended, False)
        try:
            os.read(ended, 4096)
        except BlockingIOError:
            continue
    signal_group(server.pid, signal.SIGKILL)
    status = server.wait()
    if asked == b"":
        shutil.rmtree(folder, ignore_errors=True)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
