"""The first publish to each of very many stored channels after a cold start: `python -m benchmarks.macro.cold_start`.

The directory is filled through a server, one record a channel, and left by a server that ended in good order. Its files
are dropped from the page cache, a server of its own process starts over it, and a driver names all channels in another
order than they were created in and publishes one record to each. What is told:

- channels a second, from the first byte sent to the last answer;
- how late the server's loop was while it did that, sampled each millisecond;
- CPU time of the server, all its threads, for a channel;
- RssAnon of the server when it was ready, and at the end.

Each answer is checked: the record is the second of its channel.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from broker.config import Config
from broker.edge.native import NativeListener
from broker.model.limits import Limits
from broker.model.profiles import Profiles
from broker.node.node import Node, anonymous_bytes
from broker.wire import control
from broker.wire.kinds import Kind

CONNECTION_CHANNELS = 50_000
SEND_BYTES = 256 << 10
SAMPLE_S = 0.001
READY_S_MAX = 300.0
HEADER = struct.Struct("<IBBH")
PUBLISH = struct.Struct("<IIQ")
RECORD = struct.pack("<IHHI", 12 + 128, 0, 0, 0) + bytes(128)
PUBLISHED = struct.Struct("<QQQIIBB6x")


def frame(kind: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind, 0, 0) + body


def name_of(number: int) -> bytes:
    return b"chat.%08d.%010d" % (number % 9_973, number)


# -- the driver --------------------------------------------------------------------------------------------------------


class Connection:
    """One publisher: names its channels and publishes one record to each; counts the answers."""

    def __init__(self, path: Path, numbers: list[int], sequence: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        pieces = [control.encode_hello("cold start")]
        for slot, number in enumerate(numbers):
            pieces.append(frame(Kind.CHANNEL, struct.pack("<I", slot) + name_of(number)))
            pieces.append(frame(Kind.PUBLISH, PUBLISH.pack(slot, 1, slot + 1) + RECORD))
        self.out = memoryview(b"".join(pieces))
        self.left = len(numbers)
        self._sequence = sequence
        self._in = b""

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.out = self.out[self.socket.send(self.out[:SEND_BYTES]) :]

    def receive(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise SystemExit("the server has closed a connection")
        self._in += data
        at = 0
        while len(self._in) - at >= HEADER.size:
            size, kind, _, _ = HEADER.unpack_from(self._in, at)
            if len(self._in) - at < HEADER.size + size:
                break
            self._take(kind, self._in[at + HEADER.size : at + HEADER.size + size])
            at += HEADER.size + size
        self._in = self._in[at:]

    def _take(self, kind: int, body: bytes) -> None:
        if kind == Kind.PUBLISHED:
            for _, _, first, count, _, _, _ in PUBLISHED.iter_unpack(body):
                if (first, count) != (self._sequence, 1):
                    raise SystemExit(f"a record has sequence {first}, expected {self._sequence}")
                self.left -= 1
        elif kind == Kind.ERROR:
            raise SystemExit(f"the server says: {control.decode_error(body).failure}")


def drive(path: Path, numbers: list[int], sequence: int) -> float:
    """Publish one record to each channel; answers the seconds that it took."""
    step = CONNECTION_CHANNELS
    connections = [Connection(path, numbers[at : at + step], sequence) for at in range(0, len(numbers), step)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
    begun = time.monotonic()
    while any(connection.left for connection in connections):
        for key, events in selector.select():
            connection = key.data
            if events & selectors.EVENT_READ:
                connection.receive()
            if events & selectors.EVENT_WRITE:
                connection.send()
                if not connection.out:
                    selector.modify(connection.socket, selectors.EVENT_READ, connection)
    took_s = time.monotonic() - begun
    for connection in connections:
        connection.socket.close()
    return took_s


# -- the server --------------------------------------------------------------------------------------------------------


async def sample_lag(late_ms: list[float]) -> None:
    """Write down how late the loop is, each millisecond."""
    while True:
        due = time.monotonic() + SAMPLE_S
        await asyncio.sleep(SAMPLE_S)
        late_ms.append((time.monotonic() - due) * 1e3)


async def serve(folder: Path, channels: int) -> None:
    """Serve until SIGTERM, and write the figures."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    begun = time.monotonic()
    storage = Config().storage
    node = await Node.open(
        folder / "data",
        profiles=Profiles(()),
        limits=Limits(channels_max=max(2 * channels, 1_000_000)),
        segment_bytes=storage.segment_bytes,
        reserve_bytes=0,
    )
    ready_s = time.monotonic() - begun
    listener = NativeListener(node)
    await listener.listen_unix(str(folder / "socket"))
    late_ms: list[float] = []
    anonymous_ready = anonymous_bytes()
    cpu_ready_s = time.process_time()
    sampling = asyncio.create_task(sample_lag(late_ms))
    (folder / "ready").write_text("")
    await stop.wait()
    sampling.cancel()
    late_ms.sort()
    figures = {
        "ready_s": ready_s,
        "lag_p50_ms": late_ms[len(late_ms) // 2],
        "lag_p99_ms": late_ms[len(late_ms) * 99 // 100],
        "lag_max_ms": late_ms[-1],
        "cpu_s": time.process_time() - cpu_ready_s,
        "rss_anon_ready": anonymous_ready,
        "rss_anon_end": anonymous_bytes(),
        "stats": node.stats(),
    }
    listener.stop_accepting()
    await node.drain(1)
    await node.close()
    (folder / "figures").write_text(json.dumps(figures))


@contextlib.contextmanager
def running(folder: Path, channels: int):  # type: ignore[no-untyped-def]
    """A server in a process of its own; ends it in good order."""
    for stale in ("ready", "socket"):
        (folder / stale).unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--serve", str(folder)]
    process = subprocess.Popen([*command, "--channels", str(channels)])
    deadline = time.monotonic() + READY_S_MAX
    while not (folder / "ready").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not start")
        time.sleep(0.01)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def drop_cache(folder: Path) -> None:
    """Have nothing of the directory in the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_socket():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=4770)
    parser.add_argument("--folder", type=Path, help="a filled directory is used again, and left")
    parser.add_argument("--warm", action="store_true", help="leave the page cache alone")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        import uvloop

        sys.setswitchinterval(0.0005)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.serve, options.channels))
        return
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cold-")))
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "sequence"
        sequence = int(written.read_text()) if written.exists() else 0
        numbers = list(range(options.channels))
        if not sequence:
            with running(folder, options.channels):
                took_s = drive(folder / "socket", numbers, 1)
            print(f"filled: {options.channels / took_s:,.0f} new channels/s")
            sequence = 1
        random.Random(options.seed).shuffle(numbers)
        if not options.warm:
            drop_cache(folder)
        with running(folder, options.channels):
            took_s = drive(folder / "socket", numbers, sequence + 1)
        written.write_text(str(sequence + 1))
        figures = json.loads((folder / "figures").read_text())
    print(f"channels      {options.channels:,} in {took_s:.2f} s: {options.channels / took_s:,.0f} channels/s")
    print(f"server CPU    {figures['cpu_s'] / options.channels * 1e6:.1f} µs a channel")
    print(f"ready after   {figures['ready_s']:.3f} s")
    print(
        "loop late     p50 {lag_p50_ms:.2f} ms, p99 {lag_p99_ms:.2f} ms, at most {lag_max_ms:.2f} ms".format(**figures)
    )
    for when in ("ready", "end"):
        print(f"RssAnon {when:6}{figures['rss_anon_' + when] / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
