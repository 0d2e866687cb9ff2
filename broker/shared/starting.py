"""Starting a shared directory's server: one opener at a time, a process that is nobody's, and what becomes of it.

The right to start is flock(2) on `<path>/starting`. The server inherits the open file and keeps it until it takes
connections, so the right is taken as long as anybody is starting, whichever of the two is killed meanwhile. A failed
start writes down why before it lets go: those who waited for it are told the same, instead of trying one after another.

The server is a grandchild in a session of its own: no terminal, no SIGCHLD, and no zombie for the program that happened
to start it. It says through a pipe when it is ready or why it is not; the end of the pipe means that it died. What it
writes to stderr goes to `server.log`, whose last lines say why in that case.

Blocking; the bus calls it on a thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import site
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from broker.edge.shared import bound_log
from broker.log import durable
from broker.log.directory import SHARED_OWNER, check_ours, is_held, read_owner
from broker.log.errors import failed
from broker.model.errors import BrokerError, error, from_wire, to_wire
from broker.model.settings import KIB
from broker.shared.settings import BY_HAND, KEPT, SERVER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.shared.place import Place
    from broker.shared.settings import Asked

__all__ = ["StartLock", "Started", "described", "start_server"]

PROGRAM = "broker"
"""The module that is run."""
LOG_NAME = "server.log"
LOG_SAID_BYTES_MAX = 4 * KIB
LOG_SAID_LINES_MAX = 8
TOLD_BYTES_MAX = 16 * KIB
DRAIN_S = 2.0
"""What a server that is told to end gives its connections: they are this machine's, and come back by themselves."""
ENDING_POLL_S = 0.02
NEEDED = ("broker", "broker_native", "click", "lmdb", "msgpack", "rich", "uvloop")
"""What a server imports that is not Python's own."""


class Started(NamedTuple):
    """A server that takes connections.

    Attributes:
        pid: its process.
        run: its number.
        after_s: how long it took.
    """

    pid: int
    run: int
    after_s: float


class StartLock:
    """The right to start a directory's server, held by this object and by the server that is handed it.

    Args:
        descriptor: an open file whose lock is held.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _held.add(self)

    @classmethod
    def take(cls, path: Path) -> StartLock | None:
        """Take the right, or return None while somebody else has it.

        Args:
            path: the directory; created if it is not there.

        Raises:
            StorageError: STORAGE_FORMAT, it is something else's; STORAGE_FAILED, the system refuses.
        """
        try:
            _make_directory(path)
            check_ours(path)
            descriptor = open_private(path / "starting")
        except OSError as cause:
            raise failed(path, cause) from cause
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def fileno(self) -> int:
        """Return the descriptor, for the server to inherit."""
        assert self._descriptor is not None
        return self._descriptor

    def tell(self, failure: BrokerError) -> None:
        """Write down how the start failed, for those who wait."""
        text = json.dumps({"at_ns": time.monotonic_ns(), "error": to_wire(failure)}).encode()
        with suppress(OSError):  # a full disk, say: then each finds out by itself
            os.ftruncate(self.fileno(), 0)
            os.pwrite(self.fileno(), text, 0)

    def told_since(self, at_ns: int) -> BrokerError | None:
        """Return how a start failed that ended after this instant of the monotonic clock, which all processes share."""
        with suppress(OSError, ValueError, KeyError, TypeError, BrokerError):
            told = json.loads(os.pread(self.fileno(), TOLD_BYTES_MAX, 0))
            if at_ns <= told["at_ns"] <= time.monotonic_ns():
                return from_wire(told["error"])
        return None

    def close(self) -> None:
        """Let go of it; a server that was handed it keeps it. Calling it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held: WeakSet[StartLock] = WeakSet()


def _close_in_child() -> None:
    """A forked child must not keep others from starting, should its parent die."""
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _make_directory(path: Path) -> None:
    """Create the directory, closed to others whatever the umask."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        durable.make_folder(path)
        path.chmod(durable.FOLDER_MODE)


def open_private(path: Path) -> int:
    """Open a file to read and append, creating it for us alone whatever the umask; a link is refused.

    Raises:
        OSError: the system refuses.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, durable.FILE_MODE)
    os.fchmod(descriptor, durable.FILE_MODE)
    return descriptor


def start_server(place: Place, lock: StartLock, asked: Asked, idle_s: float, deadline_s: float) -> Started | None:
    """Start the server and wait until it takes connections; None when there was one that only could not be found.

    Args:
        place: the directory.
        lock: the right to start; it is let go of here, and what went wrong is written down in it before.
        asked: settings for the server.
        idle_s: when it ends by itself.
        deadline_s: by the monotonic clock, how long to wait.

    Raises:
        BrokerError: the server's own reason; SERVER_FAILED when it died without a word or cannot be run; TIMEOUT.
    """
    try:
        return _start(place, lock, asked, idle_s, deadline_s)
    except OSError as cause:
        failure = failed(place.path, cause)
        lock.tell(failure)
        raise failure from cause
    except BrokerError as failure:
        lock.tell(failure)
        raise
    finally:
        lock.close()


def _start(place: Place, lock: StartLock, asked: Asked, idle_s: float, deadline_s: float) -> Started | None:
    begun_s = time.monotonic()
    command = [*interpreter(), "serve", "--data", str(place.path), "--tcp", "", "--unix", place.prepare()]
    command += ["--exit-when-idle", repr(float(idle_s)), "--drain-s", str(DRAIN_S)]
    command += ["--ready-file", str(place.path / SERVER), *_config(place.path, asked)]
    again = False
    while True:
        try:
            return _run(place, lock, command, begun_s, deadline_s)
        except BrokerError as failure:
            if failure.name == "SERVER_FAILED" and not again and time.monotonic() < deadline_s:
                # Something has killed it, perhaps; what is wrong with it is wrong the second time as well.
                again = True
                continue
            if failure.name != "STORAGE_IN_USE" or not read_owner(place.path).endswith(SHARED_OWNER):
                raise
            # It ends, and has not given the data back yet; or somebody has removed its socket, and it makes another.
            while is_held(place.path):
                if _is_served(place):
                    return None
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(ENDING_POLL_S)


def _is_served(place: Place) -> bool:
    sock = place.dial()
    if sock is not None:
        sock.close()
    return sock is not None


def _config(path: Path, asked: Asked) -> Sequence[str]:
    """Return the options that name the server's configuration, and keep what was asked for."""
    if (path / BY_HAND).exists():
        return ["--config", str(path / BY_HAND)]
    kept = path / KEPT
    if asked:
        text = asked.toml().encode()
        if not kept.exists() or kept.read_bytes() != text:
            durable.write_file(kept, text)
            kept.chmod(durable.FILE_MODE)
    return ["--config", str(kept)] if kept.exists() else []


def _run(place: Place, lock: StartLock, command: list[str], begun_s: float, deadline_s: float) -> Started:
    reading, writing = os.pipe()
    log = open_private(place.path / LOG_NAME)
    try:
        # The server does so too, if it comes to that: one that fails to start may be started very often.
        bound_log(log)
        said_from = os.fstat(log).st_size
        handed = f"{writing},{lock.fileno()}"
        try:
            child = subprocess.Popen(
                [*command, "--starter", handed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=place.path,
                env=_environment(),
                pass_fds=(writing, lock.fileno()),
                start_new_session=True,
            )
        except OSError as cause:
            detail = f"{place}: its server cannot be run: {command[0]}: {cause.strerror or cause}"
            raise error("SERVER_FAILED", detail, "See that this Python may be run by this process.") from cause
        finally:
            os.close(writing)
            writing = -1
        told = _hear(reading, deadline_s)
        _reap(child, deadline_s)
        return _judge(place, told, _said(log, said_from), time.monotonic() - begun_s)
    finally:
        for descriptor in (reading, writing, log):
            if descriptor >= 0:
                os.close(descriptor)


def _hear(reading: int, deadline_s: float) -> bytes | None:
    """Return all that the server says through the pipe; None when the time is up before."""
    told = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            return None
        piece = os.read(reading, TOLD_BYTES_MAX)
        told += piece
        if not piece or told.endswith(b"\n"):
            return told


def _reap(child: subprocess.Popen[bytes], deadline_s: float) -> None:
    """See the child dead, which forks the server and ends; one that has not come so far in time never will."""
    try:
        child.wait(max(0.1, deadline_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _judge(place: Place, told: bytes | None, said: str, after_s: float) -> Started:
    """Return what a server said that is ready; raise why there is none."""
    if told is None:
        raise error(
            "TIMEOUT",
            f"{place}: its server was started and is not ready after {after_s:.1f} s",
            "It goes on starting: open again in a moment; server.log in the directory says how far it is.",
        )
    try:
        message: dict[str, Any] = json.loads(told)
        if "ready" in message:
            return Started(message["ready"]["pid"], message["ready"]["run"], after_s)
        failure = from_wire(message["error"])
    except (ValueError, KeyError, TypeError):
        last = f"; the last that it said: {said}" if said else ", and said nothing"
        failure = error("SERVER_FAILED", f"{place}: its server ended while it was starting{last}")
    raise failure


def _said(log: int, begin: int) -> str:
    """Return the last lines that were written to the log since it had so many bytes, as one line."""
    size = os.fstat(log).st_size
    begin = max(begin if begin <= size else 0, size - LOG_SAID_BYTES_MAX)
    lines = os.pread(log, LOG_SAID_BYTES_MAX, begin).decode(errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-LOG_SAID_LINES_MAX:] if line.strip())


def interpreter() -> list[str]:
    """Return the command that runs the server's module: by this Python, whatever PATH says.

    A program that embeds Python may be its own `sys.executable`; then the interpreter of the same installation is
    taken. `-P` keeps the working directory, which is the data's, out of the places that modules are imported from.

    Raises:
        BrokerError: SERVER_FAILED; there is none.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable or "", *(f"{sys.exec_prefix}/bin/{name}" for name in (version, "python3"))]
    for candidate in candidates:
        if os.path.basename(candidate).startswith("python") and os.access(candidate, os.X_OK):
            return [candidate, "-P", "-m", PROGRAM]
    raise error(
        "SERVER_FAILED",
        f"its server cannot be run: got {sys.executable!a} as sys.executable, expected a Python",
        "Set sys.executable to the interpreter that this program embeds, or run `broker serve` by hand.",
    )


def _environment() -> dict[str, str]:
    """Return the server's environment: ours, in which the same code is found, without settings for other servers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    paths = [*_import_paths(), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths))
    return environment


def _import_paths() -> list[str]:
    """Return where what the server needs was imported from, as far as Python does not look there by itself."""
    usual = {os.path.realpath(path) for path in [*site.getsitepackages(), site.getusersitepackages()]}
    found = []
    for name in NEEDED:
        spec = find_spec(name)
        # Of a package it is the folder that the package is in.
        origin = None if spec is None or spec.origin is None else Path(spec.origin)
        if origin is not None:
            folder = origin.parent.parent if spec is not None and spec.submodule_search_locations else origin.parent
            if os.path.realpath(folder) not in usual:
                found.append(str(folder))
    return list(dict.fromkeys(found))


def described(told: Mapping[str, Any]) -> str:
    """Return a server's version and Python for people, from what it wrote of itself."""
    version, python = told.get("version", "unknown"), told.get("python", "an unknown Python")
    return f"broker {version} on {python}"
