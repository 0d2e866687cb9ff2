"""The server under load: started for the occasion, or one that runs already; and what it says of itself.

A server that is started here has a data directory, a configuration and a ready file of its own in one temporary folder
(TMPDIR chooses the file system), and is ended with SIGTERM before the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker.bench.conversation import Conversation
from broker.model.errors import error
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 30.0

ROOMS: Final = {Level.EPHEMERAL: "bench.e", Level.ACCEPTED: "bench.a", Level.SYNCED: "bench.s"}
"""Where the channels of each durability live."""
IDS_MAX: Final = 1_000_000
"""Among how many of a channel's newest messages its ids are remembered."""


def bench_profiles() -> list[Profile]:
    """Return the profiles that a broker of our own has: a room for each durability."""
    return [Profile(f"{room}.>".encode(), durability=level, ids_max=IDS_MAX) for level, room in ROOMS.items()]


def bench_configuration(channels: int = 0, storage: Mapping[str, int] | None = None) -> str:
    """Return the same profiles as a configuration file.

    Args:
        channels: it has room for so many besides the default.
        storage: settings of its section of that name.
    """
    named = max(Limits().channels_per_connection_max, channels)
    limits = f"[limits]\nchannels_max = {Limits().channels_max + channels}\nchannels_per_connection_max = {named}\n\n"
    section = "".join(f"{name} = {value}\n" for name, value in (storage or {}).items())
    return f"{limits}[storage]\n{section}\n" + "".join(
        f'[[profiles]]\npattern = "{profile.pattern.decode()}"\ndurability = "{profile.durability.label}"\n'
        f"ids_max = {profile.ids_max}\n\n"
        for profile in bench_profiles()
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A server to load.

    Attributes:
        url: where it listens.
        pid: its process, when it is ours or on this machine; else None.
        web: the address of its web listener, `host:port`, when it was started with one.
    """

    url: str
    pid: int | None
    web: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a server has used and done since it began; differences of two are what a work cost.

    Attributes:
        cpu_s: processor time of the server and of its archiver.
        memory_bytes: of the server.
        fsyncs: of its journal.
    """

    cpu_s: float
    memory_bytes: int
    fsyncs: int


def figures(stats: dict[str, Any]) -> Figures:
    """Take the figures of a REPLY to `stats`."""
    cpu_s = float(stats["cpu_s"]) + float(stats.get("archive_cpu_s", 0.0))
    return Figures(cpu_s, int(stats["rss_anon_bytes"]), int(stats["fsyncs"]))


class Probe:
    """Looks at a server: its figures over the wire, or its memory alone in the kernel's books."""

    def __init__(self, target: Target) -> None:
        self._url = target.url
        self._status = Path(f"/proc/{target.pid}/status")
        self._memory_is_seen = target.pid is not None and self._status.exists()
        self.memory_bytes_max = 0

    def figures(self) -> Figures:
        """Ask the server, over a connection for the occasion: an idle one would have to answer PINGs during the load.

        Raises:
            BrokerError: it does not answer.
        """
        with Conversation(self._url) as conversation:
            found = figures(conversation.stats())
        self.memory_bytes_max = max(self.memory_bytes_max, found.memory_bytes)
        return found

    def sample_memory(self) -> None:
        """Look at the memory of a server on this machine, without asking it: that would be a load of its own."""
        if self._memory_is_seen:
            self.memory_bytes_max = max(self.memory_bytes_max, rss_anon_bytes(self._status))


def rss_anon_bytes(status: Path) -> int:
    """Read RssAnon of a process: memory that is its own, without mapped files; 0 when the process is gone."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("RssAnon:")), "RssAnon: 0 kB")
    return int(found.split()[1]) * 1024


class OwnServer:
    """A server for the occasion, in a temporary folder of its own, that may be ended and started again.

    Args:
        folder: where its data, its configuration and its log go.
        cores: processor cores that it keeps to; None for all.
        channels: how many it must have room for besides the default.
        storage: settings of its section of that name.
        web: whether it has a web listener.
    """

    def __init__(
        self,
        folder: Path,
        cores: set[int] | None = None,
        channels: int = 0,
        storage: Mapping[str, int] | None = None,
        *,
        web: bool = False,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._cores = cores
        self._web = web
        self._config = folder / "broker.toml"
        self._config.write_text(bench_configuration(channels, storage))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Target:
        """Start it, and wait until it takes connections.

        Raises:
            BrokerError: UNAVAILABLE; it did not start.
        """
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "broker", "serve", "--data", str(self.data), "--tcp", "127.0.0.1:0"]
        command += ["--config", str(self._config), "--ready-file", str(ready)]
        command += ["--web", "127.0.0.1:0"] if self._web else []
        with (self.folder / "log").open("ab") as log, kept_to(self._cores):
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        told = _await_ready(self._process, self.folder)
        return Target(f"broker://{told['tcp']}", self._process.pid, told.get("web"))

    def end(self, signal_number: int = signal.SIGTERM) -> None:
        """End it and wait for it; does nothing when it does not run."""
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def own_server(
    *,
    cores: set[int] | None = None,
    channels: int = 0,
    storage: Mapping[str, int] | None = None,
    web: bool = False,
) -> Iterator[OwnServer]:
    """Yield a server that is not started yet; it is ended, and its folder removed, with the block.

    Args:
        cores, channels, storage, web: as of `OwnServer`.
    """
    folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
    server = OwnServer(folder, cores, channels, storage, web=web)
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_server(
    url: str | None,
    *,
    cores: set[int] | None = None,
    channels: int = 0,
    storage: Mapping[str, int] | None = None,
    web: bool = False,
) -> Iterator[Target]:
    """Yield the server to load: the one at `url`, or one of our own that lives as long as the block.

    Args:
        url: a running server, or None to start one.
        cores: processor cores that a started server keeps to; None for all.
        channels: how many a started server must have room for besides the default.
        storage: settings of that section for a started server.
        web: whether a started server has a web listener.

    Raises:
        BrokerError: UNAVAILABLE; the server did not start.
    """
    if url is not None:
        with Conversation(url) as conversation:
            pid = conversation.stats().get("pid")
        yield Target(url, pid if isinstance(pid, int) and pid > 0 and _is_local(url) else None)
        return
    with own_server(cores=cores, channels=channels, storage=storage, web=web) as server:
        yield server.start()


def _is_local(url: str) -> bool:
    return url.startswith(("broker+unix:", "broker://127.", "broker://localhost", "broker://[::1]"))


@contextmanager
def kept_to(cores: set[int] | None) -> Iterator[None]:
    """Keep what is started inside to some cores; None does nothing."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _await_ready(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Return what the server tells of itself, its addresses for instance, once it listens."""
    ready = folder / "ready"
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        # The file is renamed into its place, so it is whole when it is there.
        if ready.exists():
            told: dict[str, Any] = json.loads(ready.read_text())
            return told
        time.sleep(0.01)
    state = "not ready" if process.poll() is None else f"ended with status {process.returncode}"
    said = [line for line in (folder / "log").read_text(errors="replace").split("\n") if line.strip()]
    # Behind the error comes what to do about it.
    last = next((line for line in reversed(said) if line.startswith("error ")), said[-1] if said else "it said nothing")
    raise error("UNAVAILABLE", f"broker serve: {state}: {last.strip()}")
