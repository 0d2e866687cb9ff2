"""Streams of server-sent events: many of one channel, a steady rate, and how late messages come.

    python -m benchmarks.macro.sse --streams 1000 --rate 1000 --seconds 10

The server is a process of its own, and so is the publisher. Of some streams each read of a socket is looked at: every
message that it brought counts as late as its oldest. Messages carry the time at which they were published, by the clock
that all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from broker import connect

ROOT = Path(__file__).parents[2]
CHANNEL = "bench.sse"
PAYLOAD_BYTES = 128
MARK = b'"text":"'
WATCHED = 50
A_TURN_MS = 10
"""A tenth of this passes between two looks at the watched streams; the others are read about once in 0.1 s."""
PATIENCE_S = 30.0


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a server; returns it and where it listens."""
    ready = folder / "ready"
    (folder / "broker.toml").write_text('[[profiles]]\npattern = ">"\ndurability = "accepted"\n')
    command = [sys.executable, "-m", "broker", "serve", "--data", str(folder / "data"), "--tcp", "127.0.0.1:0"]
    command += ["--web", "127.0.0.1:0", "--config", str(folder / "broker.toml"), "--ready-file", str(ready)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + PATIENCE_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit("the server did not start")
        time.sleep(0.01)
    return process, json.loads(ready.read_text())


class Stream:
    """One stream, and how much of it has come."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE_S)
        self.socket.sendall(f"GET /v1/subscribe?channel={CHANNEL} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        while b"event: subscribed" not in self.socket.recv(65536):
            pass
        self.socket.setblocking(False)
        self.messages = 0
        self._rest = b""

    def take(self) -> tuple[bytes, int]:
        """Return what has come, behind what of a mark came before, and how many messages began in it."""
        try:
            text = self._rest + self.socket.recv(1 << 18)
        except BlockingIOError:
            return b"", 0
        # A mark may be cut by the end of a read.
        self._rest = text[-len(MARK) + 1 :]
        count = text.count(MARK)
        self.messages += count
        return text, count


class Readers:
    """Streams, some of which are watched closely; the others are read now and then.

    One process of Python cannot look at a hundred thousand reads a second, and would measure itself. All streams are
    treated alike by the server, so those that are watched speak for all.

    Args:
        address: The web listener's.
        count: How many.
    """

    def __init__(self, address: str, count: int) -> None:
        self._streams = [Stream(address) for _ in range(count)]
        self._watched = self._streams[:: max(1, count // WATCHED)]
        watched = set(map(id, self._watched))
        self._others = [stream for stream in self._streams if id(stream) not in watched]
        self._selector = selectors.DefaultSelector()
        for stream in self._watched:
            self._selector.register(stream.socket, selectors.EVENT_READ, stream)
        self.reads: list[tuple[float, int]] = []

    @property
    def messages(self) -> int:
        """All that has come."""
        return sum(stream.messages for stream in self._streams)

    def read(self, until_s: float, messages_max: int) -> None:
        """Read until a time, or until there were so many messages."""
        others, at = self._others, 0
        a_pass = max(1, len(others) // (1000 // A_TURN_MS))
        while time.monotonic() < until_s:
            for key, _ in self._selector.select(0 if others else 0.01):
                self._watch(key.data)
            for stream in others[at : at + a_pass]:
                stream.take()
            at += a_pass
            if at >= len(others):
                at = 0
                if self.messages >= messages_max:
                    return
            time.sleep(A_TURN_MS / 1000 / 10)

    def _watch(self, stream: Stream) -> None:
        text, count = stream.take()
        first = text.find(MARK) + len(MARK)
        if count and len(text) >= first + 17:
            self.reads.append((time.monotonic() - float(text[first : first + 17]), count))

    def late_s(self, part: float) -> float:
        """Return how late a part of all watched messages came at most."""
        ordered = sorted(self.reads)
        left = part * sum(count for _, count in ordered)
        for late_s, count in ordered:
            left -= count
            if left <= 0:
                return late_s
        return ordered[-1][0]


async def publish(url: str, rate: int, seconds: float) -> None:
    """Publish at a steady rate, each message by itself."""
    async with connect(url) as bus:
        begun_s = time.monotonic()
        total = int(rate * seconds)
        for number in range(total):
            wait_s = begun_s + number / rate - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            bus.post(CHANNEL, f"{time.monotonic():017.6f}".encode().ljust(PAYLOAD_BYTES, b"."))
        await bus.flush()


def measure(streams: int, rate: int, seconds: float) -> dict[str, float]:
    """Run it once; returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        server, addresses = serve(Path(folder))
        try:
            readers = Readers(addresses["web"], streams)
            url = f"broker://{addresses['tcp']}"
            program = [sys.executable, "-m", "benchmarks.macro.sse", "--publish", url, "--rate", str(rate)]
            publishing = subprocess.Popen([*program, "--seconds", str(seconds)], cwd=ROOT)
            process = psutil.Process(server.pid)
            before = process.cpu_times()
            begun_s = time.monotonic()
            total = int(rate * seconds) * streams
            readers.read(begun_s + seconds + PATIENCE_S, total)
            took_s = time.monotonic() - begun_s
            after = process.cpu_times()
            messages = readers.messages
            publishing.wait(PATIENCE_S)
            return {
                "streams": streams,
                "messages": messages,
                "missing": total - messages,
                "deliveries_per_s": round(messages / took_s),
                "late_p50_ms": round(readers.late_s(0.5) * 1000, 1),
                "late_p99_ms": round(readers.late_s(0.99) * 1000, 1),
                "late_max_ms": round(readers.late_s(1.0) * 1000, 1),
                "readers_cpu": round(time.process_time() / took_s, 2),
                "server_cpu": round((after.user + after.system - before.user - before.system) / took_s, 2),
                "server_mb": round(process.memory_info().rss / 1e6),
                "load": round(os.getloadavg()[0], 1),
            }
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=1000, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--publish", metavar="URL", help="be the publisher of a run")
    options = parser.parse_args()
    if options.publish:
        asyncio.run(publish(options.publish, options.rate, options.seconds))
        return
    for name, value in measure(options.streams, options.rate, options.seconds).items():
        print(f"{name:20} {value:,}")


if __name__ == "__main__":
    main()
