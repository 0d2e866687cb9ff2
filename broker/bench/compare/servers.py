"""A server for one measurement: started with a configuration of its own, watched from outside, and ended.

It runs under a guardian (`guardian.py`) in a process group of its own, so that nothing of it is left whatever happens
to us, and its processor time and memory are those of the whole group. It is ready when it answers in its own protocol;
whoever else answers at its port is named.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.bench.compare import guardian
from broker.bench.server import START_SECONDS_MAX, STOP_SECONDS_MAX, kept_to, rss_anon_bytes
from broker.model.errors import BrokerError, error
from broker.wire import control
from broker.wire.kinds import FRAME_HEADER_BYTES, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO, Self

    from broker.bench.peers.work import Address

HOST: Final = "127.0.0.1"
PORTS_TRIED: Final = 3
"""How many ports a server is started on before somebody is told that they are all taken."""

POLL_S: Final = 0.01
ANSWER_S: Final = 2.0
"""How long whoever listens may take for the first byte of an answer."""

TAKEN: Final = ("address already in use", "address in use", "eaddrinuse")
"""What servers say of a port that somebody else has."""

ENDED_S: Final = 1.0
"""How long it may take until a server whose connections are lost is seen to have ended."""

MQTT_CONNECT: Final = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05probe"

OPENINGS: Final[dict[str, tuple[bytes, tuple[bytes, ...]]]] = {
    "nats": (b"", (b"INFO {",)),
    "redis": (b"PING\r\n", (b"+PONG", b"-NOAUTH", b"-DENIED", b"-LOADING")),
    "mqtt": (MQTT_CONNECT, (b"\x20\x02",)),
    "broker": (control.encode_hello("broker bench"), ()),
}
"""Of each protocol, what to say first, and how an answer to it begins. Ours is recognised by its header."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server.

    Attributes:
        command: what is run; it stays in the foreground.
        configuration: what it is told besides, for people.
        environment: variables over ours.
    """

    command: tuple[str, ...]
    configuration: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server has used since it was started; zeros when nobody can see that.

    Attributes:
        cpu_s: processor time of all of its processes, seconds.
        memory_bytes: memory of their own, without mapped files.
        resident_bytes_max: the most that was resident, mapped files and all.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    resident_bytes_max: int = 0


def free_port() -> int:
    """Return a port of the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def first_answer(address: Address, opening: bytes) -> bytes:
    """Say something and return what comes first; nothing if nothing comes in time or the connection is closed.

    Raises:
        OSError: nobody listens there.
    """
    with socket.create_connection(address, ANSWER_S) as connection:
        try:
            connection.sendall(opening)
            return connection.recv(4096)
        except OSError:
            return b""


def answers_as(protocol: str, answer: bytes) -> bool:
    """Return whether an answer to a protocol's opening is one of that protocol."""
    if protocol == "broker":
        if len(answer) < FRAME_HEADER_BYTES:
            return False
        size, kind, _, _ = control.FRAME_HEADER.unpack_from(answer)
        return kind in (Kind.WELCOME, Kind.ERROR) and size < 1 << 16
    return answer.startswith(OPENINGS[protocol][1])


def recognise(address: Address, protocol: str) -> None:
    """See that a server speaks a protocol.

    Raises:
        OSError: nobody listens there.
        BrokerError: INVALID_CONFIG; it speaks another one, which is named if it is known.
    """
    answer = first_answer(address, OPENINGS[protocol][0])
    if answers_as(protocol, answer):
        return
    others = (other for other in OPENINGS if other != protocol)
    known = next((other for other in others if answers_as(other, first_answer(address, OPENINGS[other][0]))), None)
    got = f"a server of {known}" if known else f"{answer[:40]!r}" if answer else "no answer that it knows"
    raise error(
        "INVALID_CONFIG",
        f"{address[0]}:{address[1]}: got {got}, expected one that speaks {protocol}",
        "give the address of such a server, or none, and one is started for the occasion",
    )


class StandingServer:
    """A server that somebody else runs: it can be measured, not watched."""

    def __init__(self, address: Address, protocol: str) -> None:
        """Look whether it is there.

        Raises:
            BrokerError: nobody is, or somebody else.
        """
        self.address = address
        try:
            recognise(address, protocol)
        except OSError as failure:
            raise error(
                "UNAVAILABLE",
                f"{address[0]}:{address[1]}: got {failure.strerror or failure}, expected one that speaks {protocol}",
                "start it, or give no address for it, and one is started for the occasion",
            ) from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it running."""

    def usage(self) -> Usage:
        """Return zeros: its processes are not ours to see."""
        return Usage()

    def memory_bytes(self) -> int:
        """Return 0."""
        return 0

    def ended(self, patience_s: float = 0.0) -> str | None:
        """Return None: its connections tell when it has ended."""
        return None


class StartedServer:
    """A server of our own, from its start to its end; its files go with it.

    Args:
        name: what it is called in errors.
        protocol: what it answers in.
        launch: gives for a folder and a port how it is started.
        cores: processor cores that it keeps to; None for all.
    """

    def __init__(
        self, name: str, protocol: str, launch: Callable[[Path, int], Launch], cores: set[int] | None = None
    ) -> None:
        self.name = name
        self.address: Address = (HOST, 0)
        self.configuration = ""
        self.pid = 0
        self._protocol = protocol
        self._launch = launch
        self._cores = cores
        self._folder = Path()
        self._guardian: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            BrokerError: UNAVAILABLE; it does not start, or every port that was tried is taken.
        """
        taken = ""
        for _ in range(PORTS_TRIED):
            self.address = (HOST, free_port())
            self._start()
            try:
                taken = self._await_answer()
            except BaseException:
                self._stop()
                raise
            if not taken:
                return self
            self._stop()
        raise error(
            "UNAVAILABLE",
            f"{self.name}: {PORTS_TRIED} ports were taken, the last one {HOST}:{self.address[1]} ({taken})",
            "see who listens there (`ss -ltnp`), and run it again: it asks the system for a free port each time",
        )

    def __exit__(self, *_: object) -> None:
        self._stop()

    def usage(self) -> Usage:
        """Return what its processes have used so far."""
        return usage_of_group(self.pid)

    def memory_bytes(self) -> int:
        """Return the memory that its first process has now: cheap enough to be asked for during a measurement."""
        return rss_anon_bytes(Path(f"/proc/{self.pid}/status"))

    def ended(self, patience_s: float = 0.0) -> str | None:
        """Return how it has ended and what it said last, or None while it runs.

        Args:
            patience_s: how long to wait for it; a connection that is lost may be the first to know.
        """
        assert self._guardian is not None
        try:
            status = self._guardian.wait(patience_s) if patience_s else self._guardian.poll()
        except subprocess.TimeoutExpired:
            status = None
        if status is None:
            return None
        how = f"signal {signal.Signals(status - 128).name}" if 128 < status < 160 else f"status {status}"
        return f"{self.name}: ended with {how}; its last words: {self._last_words()}"

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
        launch = self._launch(self._folder, self.address[1])
        self.configuration = launch.configuration
        command = [sys.executable, "-I", "-S", guardian.__file__, str(STOP_SECONDS_MAX), str(self._folder)]
        with (self._folder / "log").open("ab") as log, kept_to(self._cores):
            self._guardian = subprocess.Popen(
                [*command, *launch.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **launch.environment},
                start_new_session=True,
            )
        # The guardian ends without a word when the command cannot be run.
        self.pid = int(_pipe(self._guardian.stdout).readline() or b"0")

    def _await_answer(self) -> str:
        """Return nothing when it answers, or what says that its port is taken.

        Raises:
            BrokerError: it ended, it does not answer, or somebody else does.
        """
        deadline = time.monotonic() + START_SECONDS_MAX
        stranger: BrokerError | None = None
        while time.monotonic() < deadline:
            how = self.ended()
            if how is not None:
                said = self._log().lower()
                if any(words in said for words in TAKEN):
                    return how
                raise error("UNAVAILABLE", how, "start it by hand with the same configuration, and read its log")
            try:
                recognise(self.address, self._protocol)
            except OSError:
                time.sleep(POLL_S)
            except BrokerError as failure:
                # Somebody else has the port; the server finds that out itself and says so.
                stranger = failure
                time.sleep(POLL_S)
            else:
                return ""
        why = str(stranger) if stranger is not None else self._last_words()
        raise error("UNAVAILABLE", f"{self.name}: not ready after {START_SECONDS_MAX:g} s: {why}")

    def _stop(self) -> None:
        """End it and wait for it."""
        if self._guardian is not None:
            keeper, self._guardian = self._guardian, None
            pipe = _pipe(keeper.stdin)
            try:
                pipe.write(b"x")
                pipe.close()
            except BrokenPipeError:
                # It has ended already, and its guardian with it.
                keeper.wait()
            try:
                keeper.wait(2 * STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
            _pipe(keeper.stdout).close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log().splitlines() if line.strip()]
        # Behind an error of ours comes what to do about it.
        return next((line for line in reversed(lines) if line.startswith("error ")), lines[-1] if lines else "nothing")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def usage_of_group(group: int) -> Usage:
    """Return what the processes of a group have used, and those that they have waited for."""
    return _usage_by_proc(group) if Path("/proc/self/stat").exists() else _usage_by_ps(group)


def _usage_by_proc(group: int) -> Usage:
    ticks, memory, resident = 0, 0, 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name in brackets may hold anything; behind it stand state, parent, group and, from the twelfth on,
            # the processor time of the process and of the children that it waited for.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) != group:
                continue
            status = (folder / "status").read_text()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
        memory += rss_anon_bytes(folder / "status")
        peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        resident += int(peak.split()[1]) * 1024
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), memory, resident)


def _usage_by_ps(group: int) -> Usage:
    listed = subprocess.run(["ps", "-axo", "pgid=,time=,rss="], capture_output=True, text=True, check=False, timeout=10)
    lines = [line.split() for line in listed.stdout.splitlines()]
    mine = [(clock, int(kilobytes)) for pgid, clock, kilobytes in lines if int(pgid) == group]
    resident = sum(kilobytes for _, kilobytes in mine) * 1024
    return Usage(sum(clock_seconds(clock) for clock, _ in mine), resident, resident)


def clock_seconds(clock: str) -> float:
    """Return the seconds of `[[dd-]hh:]mm:ss[.cc]`, as ps prints processor time."""
    days, _, rest = clock.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + (int(days) * 86400 if days else 0)
