"""The newest messages of many random channels: `python -m benchmarks.macro.history --channels 1000000`.

A server of its own process is filled by the native driver, at random, so that a channel's messages lie in as many
groups, and all of it is archived; then the last 50 messages of 10,000 random channels are asked for. What is told, each
of the best of three rounds:

- channels a second through a socket with 512 requests under way, where each answer is taken apart and its messages are
  counted and their channel checked, and nothing else is done;
- channels a second through the Python client, 512 reads at once, each to a list of messages;
- how much of a core each side used, since the fuller one is what was measured.

The first round of each warms the page cache. `--as-it-is` does not wait for the archive: what is newest is read from
segments.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgpack

from broker import Last, connect
from broker.bench.archived import archive_all
from broker.bench.load import Load, complaints
from broker.bench.options import Options, Work
from broker.bench.server import ROOMS, Probe, running_server
from broker.model.errors import error
from broker.model.levels import Level
from broker.model.settings import GIB
from broker.wire import control
from broker.wire.kinds import FRAME_BYTES_MAX, Kind
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from broker import Bus
    from broker.bench.server import Target

PUBLISHERS = 16
PATIENCE_S = 300.0
"""All channels are named before the first message."""
BACKLOG_BYTES_MAX = 64 * GIB
ROUNDS = 3
WINDOW = 512
SEND_FRAMES = 128


def name_of(number: int) -> str:
    return f"{ROOMS[Level.SYNCED]}.chat.{number % 9_973:08}.{number:010}"


def fill(target: Target, channels: int, messages: int, payload: int, *, archive: bool) -> float:
    """Publish to channels at random; return seconds.

    Args:
        target: the server.
        channels: how many.
        messages: for each of them, on the average.
        payload: bytes.
        archive: have all of it archived before it returns.
    """
    total = channels * messages
    options = Options(
        Work.CHANNELS,
        publishers=PUBLISHERS,
        channels=channels,
        messages=total,
        seconds=0,
        payload=payload,
        url=target.url,
        patience_s=PATIENCE_S,
    )
    begun = time.perf_counter()
    with ExitStack() as stack:
        load = Load(options, target, stack, names=[name_of(number).encode() for number in range(channels)])
        load.add_publishers()
        faults = complaints(load.run(Probe(target)), options)
        assert not faults, faults
        seconds = time.perf_counter() - begun
        if archive:
            archive_all(load)
    return seconds


class Busy:
    """How much of a core this process and the server use while the block lasts."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __enter__(self) -> Busy:
        self._server_s = Probe(self._target).figures().cpu_s
        self._own_s, self._begun = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._begun
        self.own = (time.process_time() - self._own_s) / seconds
        self.server = (Probe(self._target).figures().cpu_s - self._server_s) / seconds

    def __str__(self) -> str:
        return f"server {self.server:.0%} of a core, asking {self.own:.0%}"


class Driver:
    """Asks over one socket and checks what comes, a window of requests at a time."""

    def __init__(self, url: str, last: int) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = FrameReader(error, FRAME_BYTES_MAX)
        self._last = last
        self._socket.sendall(control.encode_hello("history benchmark"))
        while Kind.WELCOME not in [item[0] for item in self._receive()]:
            pass

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server has closed the connection")
        return self._reader.feed(data)

    def run(self, names: list[str]) -> float:
        """Ask for the last messages of each channel; return channels a second."""
        frames = [
            control.encode_request(number, "history", {"channel": name, "last": self._last})
            for number, name in enumerate(names)
        ]
        begun = time.perf_counter()
        sent = answered = 0
        while answered < len(names):
            if sent < len(frames) and sent - answered <= WINDOW - SEND_FRAMES:
                self._socket.sendall(b"".join(frames[sent : sent + SEND_FRAMES]))
                sent = min(sent + SEND_FRAMES, len(frames))
                continue
            for kind, _, body in self._receive():
                reply = msgpack.unpackb(body)
                assert kind == Kind.REPLY, reply
                batches = self._reader.chunks(reply["chunks"], names[reply["request"]])
                assert sum(map(len, batches)) == min(reply["head"], self._last)
                assert not reply["more"]
                answered += 1
        return len(names) / (time.perf_counter() - begun)


async def read_all(bus: Bus, names: list[str], last: int) -> float:
    """Read the last messages of each channel with the client; return channels a second."""
    left = iter(names)

    async def reader() -> None:
        for name in left:
            history = bus.history(name, since=Last(last))
            found = await history.messages()
            assert history.info is not None
            assert len(found) == min(history.info.head, last)
            assert all(message.channel == name for message in found[-1:])

    begun = time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(WINDOW)))
    return len(names) / (time.perf_counter() - begun)


async def with_client(url: str, names: list[str], last: int) -> list[float]:
    async with connect(url) as bus:
        return [await read_all(bus, names, last) for _ in range(ROUNDS)]


def told(rates: list[float]) -> str:
    """Return rates, the best first."""
    return f"{max(rates):,.0f} channels/s (rounds: {', '.join(f'{rate:,.0f}' for rate in rates)})"


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="a running server that is empty; one is started without it")
    parser.add_argument("--channels", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=64, help="in each channel, on the average")
    parser.add_argument("--payload", type=int, default=128, help="bytes")
    parser.add_argument("--last", type=int, default=50)
    parser.add_argument("--asked", type=int, default=10_000, help="random channels that are read")
    parser.add_argument("--as-it-is", action="store_true", help="do not wait until all is archived")
    options = parser.parse_args()
    # It is filled faster than the archive takes it in; what waits is no part of the figure.
    storage = {"backlog_bytes_max": BACKLOG_BYTES_MAX}
    with running_server(options.url, channels=options.channels, storage=storage) as target:
        seconds = fill(target, options.channels, options.messages, options.payload, archive=not options.as_it_is)
        print(f"filled {options.channels:,} channels × {options.messages} in {seconds:.1f} s")
        names = [name_of(random.randrange(options.channels)) for _ in range(options.asked)]
        driver = Driver(target.url, options.last)
        with Busy(target) as busy:
            rates = [driver.run(names) for _ in range(ROUNDS)]
        print(f"socket: {told(rates)}; {busy}")
        with Busy(target) as busy:
            rates = asyncio.run(with_client(target.url, names, options.last))
        print(f"client: {told(rates)}; {busy}")


if __name__ == "__main__":
    main()
