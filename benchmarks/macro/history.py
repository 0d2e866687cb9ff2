"""The newest messages of many random channels: `python -m benchmarks.macro.history --channels 1000000`.

A server of its own process is filled, round by round, so that each channel's messages lie in as many groups; then the
last 50 messages of 10,000 random channels are asked for. What is told, each of the best of three rounds:

- channels a second through a socket with 512 requests under way, where each answer is taken apart and its messages are
  counted and their channel checked, and nothing else is done;
- channels a second through the Python client, 512 reads at once, each to a list of messages.

The first round of each warms the page cache. `--wait SECONDS` gives the archive time to take in what was stored.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgpack

from broker import Last, connect
from broker.bench.server import ROOMS, running_server
from broker.model.errors import error
from broker.model.levels import Level
from broker.wire import control
from broker.wire.kinds import FRAME_BYTES_MAX, Kind
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from broker import Bus

CONNECTION_CHANNELS = 50_000
ROUNDS = 3
WINDOW = 512
SEND_FRAMES = 128


def name_of(number: int) -> str:
    return f"{ROOMS[Level.SYNCED]}.chat.{number % 9_973:08}.{number:010}"


async def fill(url: str, channels: int, messages: int, payload: bytes) -> None:
    """Publish to every channel once a round, so that no two messages of one share a group."""
    for begin in range(0, channels, CONNECTION_CHANNELS):
        names = [name_of(number) for number in range(begin, min(begin + CONNECTION_CHANNELS, channels))]
        async with connect(url) as bus:
            for _ in range(messages):
                random.shuffle(names)
                for at, name in enumerate(names):
                    bus.post(name, payload)
                    if at % 256 == 0:
                        await bus.drain()
                await bus.flush()


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

    def run(self, names: list[str], messages: int) -> float:
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
                assert sum(map(len, batches)) == min(messages, self._last)
                assert not reply["more"]
                answered += 1
        return len(names) / (time.perf_counter() - begun)


async def read_all(bus: Bus, names: list[str], last: int, messages: int) -> float:
    """Read the last messages of each channel with the client; return channels a second."""
    left = iter(names)

    async def reader() -> None:
        for name in left:
            found = await bus.history(name, since=Last(last)).messages()
            assert len(found) == min(messages, last)
            assert found[-1].channel == name

    begun = time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(WINDOW)))
    return len(names) / (time.perf_counter() - begun)


async def with_client(url: str, names: list[str], last: int, messages: int) -> list[float]:
    async with connect(url) as bus:
        return [await read_all(bus, names, last, messages) for _ in range(ROUNDS)]


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="a running server that is empty; one is started without it")
    parser.add_argument("--channels", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=50, help="in each channel")
    parser.add_argument("--payload", type=int, default=128, help="bytes")
    parser.add_argument("--last", type=int, default=50)
    parser.add_argument("--asked", type=int, default=10_000, help="random channels that are read")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds between filling and reading")
    options = parser.parse_args()
    with running_server(options.url) as target:
        begun = time.perf_counter()
        asyncio.run(fill(target.url, options.channels, options.messages, bytes(options.payload)))
        print(f"filled {options.channels:,} channels × {options.messages} in {time.perf_counter() - begun:.1f} s")
        time.sleep(options.wait)
        names = [name_of(random.randrange(options.channels)) for _ in range(options.asked)]
        driver = Driver(target.url, options.last)
        rates = [driver.run(names, options.messages) for _ in range(ROUNDS)]
        print(f"socket: {max(rates):,.0f} channels/s (rounds: {', '.join(f'{rate:,.0f}' for rate in rates)})")
        rates = asyncio.run(with_client(target.url, names, options.last, options.messages))
        print(f"client: {max(rates):,.0f} channels/s (rounds: {', '.join(f'{rate:,.0f}' for rate in rates)})")


if __name__ == "__main__":
    main()
