"""Streams of server-sent events: many of one channel, a steady rate, and how late messages come.

    python -m benchmarks.macro.sse --streams 1000 --rate 1000 --seconds 10

The server is a process of its own, and the streams are read by another one, which looks at the first and the last
message of what each read of a socket brought: every message of that read counts as late as its oldest. Messages carry
the time at which they were published, by the clock that all processes of a machine share.
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


class Readers:
    """Streams, and what they have got.

    Args:
        address: The web listener's.
        count: How many.
    """

    def __init__(self, address: str, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        host, _, port = address.rpartition(":")
        request = f"GET /v1/subscribe?channel={CHANNEL} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
        for _ in range(count):
            sock = socket.create_connection((host, int(port)), PATIENCE_S)
            sock.sendall(request)
            while b"event: subscribed" not in sock.recv(65536):
                pass
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
            self._sockets.append(sock)
        self.messages = 0
        self.reads: list[tuple[float, int]] = []

    def read(self, until_s: float, messages_max: int) -> None:
        """Read until a time, or until there were so many messages."""
        while self.messages < messages_max and time.monotonic() < until_s:
            for key, _ in self._selector.select(0.1):
                sock: socket.socket = key.fileobj  # type: ignore[assignment]
                text = sock.recv(1 << 18)
                first = text.find(MARK)
                if first < 0:
                    continue
                count = text.count(MARK)
                sent_s = float(text[first + len(MARK) : first + len(MARK) + 17])
                self.reads.append((time.monotonic() - sent_s, count))
                self.messages += count

    def late_s(self, part: float) -> float:
        """Return how late a part of all messages came at most."""
        ordered = sorted(self.reads)
        left = part * self.messages
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
            publishing.wait(PATIENCE_S)
            return {
                "streams": streams,
                "messages": readers.messages,
                "missing": total - readers.messages,
                "deliveries_per_s": round(readers.messages / took_s),
                "late_p50_ms": round(readers.late_s(0.5) * 1000, 1),
                "late_p99_ms": round(readers.late_s(0.99) * 1000, 1),
                "late_max_ms": round(readers.late_s(1.0) * 1000, 1),
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
