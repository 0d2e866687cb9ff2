"""A storm of connections on a server with few open files, and what its clients and the stormers see of it.

Processes of their own open connections from many source addresses as fast as they can, far more than the server takes,
and keep them. Clients who were there before go on publishing and reading meanwhile. Afterwards the storm stands still,
then ends. What is demanded:

- every connection beyond the bound is told TOO_MANY_CONNECTIONS before it ends, none is reset or closed in silence;
- the clients who were there lose nothing, and hardly notice;
- a server with a standing storm in front of it has nothing to do;
- when the storm has gone, there is room again.

`python -m tests.fault.storm` storms with 20,000 connections, on each loop, and prints the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import psutil

from broker import connect
from broker.model.errors import BY_NAME
from broker.wire import control
from broker.wire.kinds import Kind
from tests.fault.harness import ROOT, Server

if TYPE_CHECKING:
    from broker.bus import Bus

CONNECTIONS = 20_000
PROCESSES = 2
OPEN_FILES = 1_000
"""The server's limit: about 870 connections."""
PACE_S = 0.002
STANDING_S = 2.0
STORM_S_MAX = 60.0
FRAME = struct.Struct("<IBBH")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a storm came to.

    Attributes:
        loop: the server's event loop.
        connections: how many were opened.
        welcomed, refused: how many of them were told WELCOME, TOO_MANY_CONNECTIONS.
        silent: how many were told neither: reset, closed without a word, or never answered.
        storm_s: how long it took until all were answered.
        before_us, during_us: round trips of an older client, (p50, p99), microseconds.
        standing_cpu: the share of a core that the server takes while the storm stands.
        log_bytes: what the server wrote about it.
        room_s: how long after the end of the storm a new client was welcomed.
        lost: what the older client published, was acknowledged, and did not get back.
    """

    loop: str
    connections: int
    welcomed: int
    refused: int
    silent: int
    storm_s: float
    before_us: tuple[int, int]
    during_us: tuple[int, int]
    standing_cpu: float
    log_bytes: int
    room_s: float
    lost: int

    def __str__(self) -> str:
        return (
            f"{self.loop:8} {self.connections} connections in {self.storm_s:.1f} s: {self.welcomed} welcomed, "
            f"{self.refused} told TOO_MANY_CONNECTIONS, {self.silent} told nothing; older client's round trip "
            f"p50/p99 {self.before_us[0]}/{self.before_us[1]} us before, {self.during_us[0]}/{self.during_us[1]} us "
            f"during, {self.lost} lost; standing storm {self.standing_cpu:.1%} of a core, {self.log_bytes} bytes "
            f"logged; room again after {self.room_s * 1e3:.0f} ms"
        )


# --- The stormers -------------------------------------------------------------------------------------------------


class Stormer:
    """Opens connections as fast as they are answered, and keeps them.

    Args:
        port: the server's.
        part: numbers this process, so that each has source addresses of its own.
    """

    def __init__(self, port: int, part: int) -> None:
        self._port = port
        self._part = part
        self._hello = control.encode_hello("storm", None, None)
        self._selector = selectors.DefaultSelector()
        self._kept: list[socket.socket] = []
        self._waiting = 0
        self.answers = {"welcomed": 0, "refused": 0, "silent": 0}

    def storm(self, connections: int) -> None:
        """Open so many, a few hundred unanswered at a time, and wait until each is answered."""
        until_s = time.monotonic() + STORM_S_MAX
        opened = 0
        while (opened < connections or self._waiting) and time.monotonic() < until_s:
            if opened < connections and self._waiting < 500:
                self._open(opened)
                opened += 1
                timeout_s = 0.0
            else:
                timeout_s = 0.05
            for key, events in self._selector.select(timeout_s):
                self._step(key.fileobj, key.data, events)  # type: ignore[arg-type]
        self.answers["silent"] += self._waiting

    def _open(self, number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        # A port is free for each of the addresses again.
        sock.bind((f"127.0.{10 + self._part}.{1 + number % 200}", 0))
        with suppress(BlockingIOError):
            sock.connect(("127.0.0.1", self._port))
        self._selector.register(sock, selectors.EVENT_WRITE, bytearray())
        self._waiting += 1

    def _step(self, sock: socket.socket, got: bytearray, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._selector.modify(sock, selectors.EVENT_READ, got)
                sock.send(self._hello)
                return
            part = sock.recv(4096)
        except OSError:
            self._judge(sock, got, "silent")
            return
        got += part
        whole = len(got) >= FRAME.size and len(got) >= FRAME.size + FRAME.unpack_from(got)[0]
        if whole or not part:
            self._judge(sock, got, kind_of(got) if whole else "silent")

    def _judge(self, sock: socket.socket, got: bytearray, answer: str) -> None:
        self.answers[answer] += 1
        self._waiting -= 1
        self._selector.unregister(sock)
        if answer == "welcomed":
            self._kept.append(sock)
        else:
            sock.close()


def kind_of(frame: bytearray) -> str:
    """Return what a first frame says."""
    _, kind, _, _ = FRAME.unpack_from(frame)
    if kind == Kind.WELCOME:
        return "welcomed"
    body = msgpack.unpackb(bytes(frame[FRAME.size :]), strict_map_key=False)
    return "refused" if kind == Kind.ERROR and BY_NAME["TOO_MANY_CONNECTIONS"].code in body.values() else "silent"


def storm_process(port: int, part: int, connections: int) -> None:
    """Be one of the storm's processes: storm, say how it went, and stand until the input ends."""
    # What is measured is the server, and not the want of a core for everybody.
    os.nice(19)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stormer = Stormer(port, part)
    stormer.storm(connections)
    print(json.dumps(stormer.answers), flush=True)
    sys.stdin.read()


# --- The clients who were there before, and the server ------------------------------------------------------------


class Elder:
    """A client who publishes one message at a time and reads it back."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.lost = 0

    async def measure(self, ended: asyncio.Event, rounds_min: int) -> tuple[int, int]:
        """Return p50 and p99 of the round trips until something has ended, microseconds."""
        took_us: list[int] = []
        async with self._bus.subscribe("ephemeral.elder") as subscription:
            messages = aiter(subscription)
            while not ended.is_set() or len(took_us) < rounds_min:
                payload = len(took_us).to_bytes(8, "big")
                begun_s = time.perf_counter()
                self._bus.post("ephemeral.elder", payload)
                self.lost += bytes((await anext(messages)).payload) != payload
                took_us.append(round((time.perf_counter() - begun_s) * 1e6))
                await asyncio.sleep(PACE_S)
        took_us.sort()
        return took_us[len(took_us) // 2], took_us[len(took_us) * 99 // 100]


def spawn_limited(server: Server, open_files: int, *options: str) -> None:
    """Start a server with few open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    try:
        server.spawn(*options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def storm(folder: Path, loop: str, connections: int, open_files: int = OPEN_FILES) -> Figures:
    """Let a storm come and go."""
    server = Server(folder)
    spawned_s = time.monotonic()
    spawn_limited(server, open_files, "--loop", loop)
    await server.until_ready(spawned_s)
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    command = [sys.executable, "-m", "tests.fault.storm", "--port", str(server.port)]
    command += ["--connections", str(connections // PROCESSES)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}
    stormers: list[asyncio.subprocess.Process] = []
    try:
        async with connect(server.url) as bus:
            elder = Elder(bus)
            over = asyncio.Event()
            over.set()
            before_us = await elder.measure(over, 500)
            over.clear()
            measuring = asyncio.create_task(elder.measure(over, 1))
            begun_s = time.monotonic()
            pipe = subprocess.PIPE
            for part in range(PROCESSES):
                arguments = [*command, "--part", str(part)]
                stormers += [await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, env=environment)]
            told = [json.loads(await stormer.stdout.readline()) for stormer in stormers if stormer.stdout]
            storm_s = time.monotonic() - begun_s
            over.set()
            during_us = await measuring
            cpu_s = sum(process.cpu_times()[:2])
            await asyncio.sleep(STANDING_S)
            standing_cpu = (sum(process.cpu_times()[:2]) - cpu_s) / STANDING_S
            for stormer in stormers:
                stormer.kill()
                await stormer.wait()
            ended_s = time.monotonic()
            async with connect(server.url) as late:
                room_s = time.monotonic() - ended_s
                await late.publish("after.storm", b"!")
    finally:
        for stormer in stormers:
            with suppress(ProcessLookupError):
                stormer.kill()
        await server.stop()
    sums = {name: sum(each[name] for each in told) for name in ("welcomed", "refused", "silent")}
    return Figures(
        loop=loop,
        connections=connections,
        storm_s=storm_s,
        before_us=before_us,
        during_us=during_us,
        standing_cpu=standing_cpu,
        log_bytes=server.log.stat().st_size,
        room_s=room_s,
        lost=elder.lost,
        **sums,
    )


def main() -> None:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description="Storm a server with connections.")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port:
        storm_process(options.port, options.part, options.connections)
        return
    for loop in ("asyncio", "uvloop"):
        with tempfile.TemporaryDirectory() as folder:
            print(asyncio.run(storm(Path(folder), loop, options.connections)), flush=True)


if __name__ == "__main__":
    main()
