"""Slow requests harm nobody: delivery goes on beside bodies that dribble, streams that nobody reads and large pages."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from broker import connect
from tests.http_api.client import Events

if TYPE_CHECKING:
    from broker import Bus
    from tests.contract.homes import Server
    from tests.http_api.client import Http

STREAMS = 20
DRIBBLERS = 40
MESSAGES = 300
DELAY_S_MAX = 0.25
TIMES_MAX = 8
"""What a message may take beside slow requests: so long, or so many times as long as without them, on a machine that
does other things as well. A dribbled body takes minutes."""
STAMP = struct.Struct("<d")


async def delays(bus: Bus, channel: str) -> list[float]:
    """Publish a message each few milliseconds, and return how long each was on its way, sorted."""
    found: list[float] = []
    async with bus.subscribe(channel) as subscription:

        async def publish() -> None:
            for _ in range(MESSAGES):
                bus.post(channel, STAMP.pack(time.monotonic()))
                await asyncio.sleep(0.002)

        publishing = asyncio.create_task(publish())
        async for message in subscription:
            found.append(time.monotonic() - STAMP.unpack(message.payload)[0])
            if len(found) == MESSAGES:
                break
        await publishing
    return sorted(found)


class Dribbler:
    """A request whose body comes a byte at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), 10)
        head = f"POST /v1/publish HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f'{head}Content-Length: 60000\r\n\r\n{{"channel":"s.dribbled","text":"'.encode())

    def dribble(self) -> None:
        """Send one more byte."""
        self.socket.sendall(b"x")


def read_pages(address: str, stop: threading.Event) -> None:
    """Read the largest pages that there are, one after the other."""
    connection = HTTPConnection(address, timeout=20)
    while not stop.is_set():
        connection.request("GET", "/v1/history?channel=s.large&limit=1000")
        assert len(connection.getresponse().read()) > 250_000
    connection.close()


async def test_delivery_goes_on_beside_slow_requests(served: Server, http: Http) -> None:
    for _ in range(4):
        http.publish("s.large", *["x" * 250] * 250)
    unread = [Events(http.address, receive_bytes=4096, channel="s.flood") for _ in range(STREAMS)]
    dribblers = [Dribbler(http.address) for _ in range(DRIBBLERS)]
    stop = threading.Event()
    reading = threading.Thread(target=read_pages, args=(http.address, stop))
    try:
        async with connect(served.tcp_url) as bus, connect(served.tcp_url) as flooding:
            alone = await delays(bus, "s.alone")
            reading.start()

            async def flood() -> None:
                while not stop.is_set():
                    for _ in range(16):
                        flooding.post("s.flood", b"x" * 4096)
                    for each in dribblers:
                        each.dribble()
                    await flooding.drain()
                    await asyncio.sleep(0.01)

            flooding_task = asyncio.create_task(flood())
            found = await delays(bus, "s.beside")
            stop.set()
            await flooding_task
            head = (await bus.channel("s.flood")).head
    finally:
        stop.set()
        reading.join()
        for sock in [each.socket for each in unread] + [each.socket for each in dribblers]:
            sock.close()
    assert head > 500
    late = int(MESSAGES * 0.99)
    assert found[late] < max(DELAY_S_MAX, TIMES_MAX * alone[late]), (alone[-5:], found[-5:])


async def test_stream_that_was_not_read_gets_everything_in_the_end(served: Server, http: Http) -> None:
    with Events(http.address, receive_bytes=4096, channel="s.behind") as events:
        async with connect(served.tcp_url) as bus:
            count = 0
            for _ in range(60):
                for _ in range(100):
                    bus.post("s.behind", b"%d %s" % (count, b"x" * 1000))
                    count += 1
                await bus.flush()
            last = (await bus.stats())["subscriptions_lagging"]
        assert last
        found = await asyncio.to_thread(events.messages, count)
    assert [seq for _, seq, _ in found] == list(range(1, count + 1))
    assert [int(text.partition(" ")[0]) for _, _, text in found] == list(range(count))


async def test_stream_that_lags_is_told(served: Server, http: Http) -> None:
    with Events(http.address, receive_bytes=4096, channel="s.lagging") as events:
        async with connect(served.tcp_url) as bus:
            await bus.publish_many("s.lagging", [b"x" * 60_000] * 100)

        def names() -> list[str]:
            found: list[str] = []
            while "live" not in found:
                found.append(next(events).name)
            return found

        heard = await asyncio.to_thread(names)
    assert heard.index("lagging") < heard.index("live")
