"""Thousands of clients in one process, that lose their connections together and come back together.

Each client is a socket, the sequences that it has reached, and nothing else: one loop over epoll reads them all, parses
what comes without decoding what need not be, and checks that each channel goes on where it was, once. A client of the
Python API for each would take the machine from the server that is to be looked at.

They behave as the specification asks: HELLO and SUBSCRIBE leave together, a client that is told `retry_after_ms` waits
for half of it to one and a half, one that is not told when waits a little, and twice as long each time.
One more connection publishes to all channels at a steady rate, so that there is something to miss.

A child process of `storm` (broker/bench/storm.py) runs `main`: a line of JSON on standard input tells what is wanted,
`drop` and `finish` follow, and each is answered with a line of JSON.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import secrets
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack

from broker.bench.conversation import Conversation, channel_frames, plain_address
from broker.model.errors import BrokerError, error, from_wire
from broker.remote.address import TcpAddress
from broker.wire import control
from broker.wire.kinds import PRODUCER_BYTES, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CREDIT_BYTES: Final = 64 << 20
"""More than a client is delivered in a run: none of them grants again."""
CONNECTING_MAX: Final = 256
"""Clients under way at once before the storm; in it all of them are."""
PATIENCE_S: Final = 60.0
TICK_S: Final = 0.005
BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 5.0
NICE: Final = 5
"""The crowd is on other machines, so it must not take the processor from those who are to notice nothing."""

HEADER: Final = struct.Struct("<IBBH")
DELIVER: Final = struct.Struct("<IIQ")
CHUNK: Final = struct.Struct("<IIQQQI")
ENTRY: Final = struct.Struct("<QQQI")
ENTRY_BYTES: Final = 40
PUBLISH: Final = struct.Struct("<IIQ")
RECORD: Final = struct.Struct("<IHHI")
DELIVER_NAME: Final = 1
RESET: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Plan:
    """What a crowd is to do: `clients` with `channels` each out of `names`, messages at `rate` a second."""

    url: str
    names: list[str]
    clients: int
    channels: int
    rate: int
    payload: int


@dataclass(slots=True)
class Count:
    """What a crowd has met.

    Attributes:
        delivered: records.
        lost, duplicated: sequences that were passed over, that came again.
        refused: connections that the server refused, and was to be asked again.
        cut: connections that ended without a word.
        restarted: channels that could not be resumed.
        published: messages that were answered.
    """

    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    refused: int = 0
    cut: int = 0
    restarted: int = 0
    published: int = 0


class Client:
    """One of the crowd: where it stands in each of its channels, and its socket of the moment."""

    __slots__ = ("attempts", "channels", "due", "epochs", "hello", "ids", "lasts", "live", "rest", "socket", "told")

    def __init__(self, channels: list[int]) -> None:
        self.channels = channels
        self.epochs = [0] * len(channels)
        self.lasts = [-1] * len(channels)
        self.hello = control.encode_hello("storm", secrets.token_bytes(PRODUCER_BYTES))
        self.ids: dict[int, int] = {}
        self.due: dict[int, int] = {}
        self.rest = b""
        self.attempts = 0
        self.live = False
        self.told = False
        self.socket: socket.socket | None = None


class Crowd:
    """All of them.

    Args:
        plan: What they do.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.count = Count()
        self._names = plan.names
        self._number = {name.encode(): number for number, name in enumerate(plan.names)}
        total = len(plan.names)
        stride = total // plan.channels
        self._clients = [
            Client([(client * 7 + each * stride) % total for each in range(plan.channels)])
            for client in range(plan.clients)
        ]
        address = plain_address(plan.url)
        self._family = socket.AF_INET if isinstance(address, TcpAddress) else socket.AF_UNIX
        self._address: Any = tuple(address) if isinstance(address, TcpAddress) else address.path
        self._selector = selectors.DefaultSelector()
        self._waiting: list[tuple[float, int, Client]] = []
        self._order = 0
        self._alive = 0
        self._heads = [0] * total
        self._publisher: socket.socket | None = None
        self._published_rest = b""
        self._unsent = b""
        self._sent = 0
        self._first = 0
        self._began_s = 0.0
        self._pausing = True

    # -- what is wanted ------------------------------------------------------------------------------------------------

    def gather(self) -> float:
        """Have all of them connected and live; returns how long that took, seconds."""
        self._open_publisher()
        began = time.monotonic()
        coming = iter(self._clients)
        under_way = 0
        gone = False
        while self._alive < len(self._clients):
            while not gone and under_way - self._alive < CONNECTING_MAX:
                client = next(coming, None)
                gone = client is None
                if client is not None:
                    self._connect(client)
                    under_way += 1
            self._step(began + PATIENCE_S)
        self._began_s, self._pausing, self._first = time.monotonic(), False, self._sent
        return self._began_s - began

    def drop(self) -> float:
        """Cut all connections at once and come back; returns how long it took until all were live again, seconds."""
        began = time.monotonic()
        self._alive = 0
        for client in self._clients:
            assert client.socket is not None
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._forget(client)
        for number, client in enumerate(self._clients):
            self._connect(client)
            if number % CONNECTING_MAX == 0:
                # Whoever was fast is served while others still come: the crowd is one process, and many machines.
                self._turn(0.0)
        while self._alive < len(self._clients):
            self._step(began + PATIENCE_S)
        return time.monotonic() - began

    def serve(self, until: selectors.BaseSelector) -> None:
        """Read and publish until there is something to read at another selector."""
        while not until.select(0):
            self._turn(TICK_S)

    def finish(self) -> None:
        """Publish no more, and wait until everybody has everything."""
        self._pausing = True
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not (self._answered() and all(map(self._complete, self._clients))):
            self._turn(TICK_S)
        for client in self._clients:
            for at, channel in enumerate(client.channels):
                self.count.lost += max(0, self._heads[channel] - client.lasts[at])

    def _answered(self) -> bool:
        return self.count.published >= self._sent and not self._unsent

    def _complete(self, client: Client) -> bool:
        heads = self._heads
        return all(heads[channel] == last for channel, last in zip(client.channels, client.lasts, strict=True))

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _step(self, until_s: float) -> None:
        if time.monotonic() > until_s:
            missing = len(self._clients) - self._alive
            raise error("TIMEOUT", f"clients that are not live within {PATIENCE_S:g} s: got {missing}, limit 0")
        self._turn(TICK_S)

    def _turn(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            if key.data is None:
                self._read_answers()
            else:
                self._ready(key.data, events)
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._connect(heapq.heappop(self._waiting)[2])
        if not self._pausing:
            self._publish(now)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _connect(self, client: Client) -> None:
        client.attempts += 1
        client.told = False
        made = client.socket = socket.socket(self._family)
        made.setblocking(False)
        if self._family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            made.connect(self._address)
        self._selector.register(made, selectors.EVENT_WRITE, client)

    def _forget(self, client: Client) -> None:
        assert client.socket is not None
        self._selector.unregister(client.socket)
        client.socket.close()
        client.socket = None
        client.rest = b""
        client.live = False
        client.ids.clear()

    def _come_back(self, client: Client, retry_after_ms: int | None) -> None:
        """A connection has ended that should not have: come back when the server said, or later each time."""
        self._alive -= client.live
        self._forget(client)
        if retry_after_ms is None:
            delay_s = min(BACKOFF_S_MAX, BACKOFF_S * 2 ** min(client.attempts, 10)) * random.uniform(0.5, 1.0)
        else:
            delay_s = retry_after_ms / 1000 * random.uniform(0.5, 1.5)
        self._order += 1
        heapq.heappush(self._waiting, (time.monotonic() + delay_s, self._order, client))

    def _ready(self, client: Client, events: int) -> None:
        made = client.socket
        if made is None:
            return
        try:
            if events & selectors.EVENT_WRITE:
                # A whole conversation's beginning fits into a new socket's buffer.
                made.send(client.hello + self._subscribe(client))
                self._selector.modify(made, selectors.EVENT_READ, client)
                return
            data = made.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.count.cut += not client.told
            self._come_back(client, None)
            return
        self._take(client, client.rest + data if client.rest else data)

    def _subscribe(self, client: Client) -> bytes:
        names = [self._names[channel] for channel in client.channels]
        body: dict[str, object] = {"subscription": 1, "filters": names, "credit": CREDIT_BYTES}
        if client.lasts[0] >= 0:
            body["start"] = {"positions": list(zip(names, client.epochs, client.lasts, strict=True))}
        # Not by control.encode_subscribe, which looks at all of it again.
        return control.frame(Kind.SUBSCRIBE, msgpack.packb(body, use_bin_type=True))

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _take(self, client: Client, data: bytes) -> None:
        at = 0
        for kind, flags, body, at in frames_in(data):
            if kind == Kind.DELIVER:
                self._delivered(client, data, body, flags)
            elif kind == Kind.SUBSCRIBED:
                self._subscribed(client, data[body:at])
            elif kind == Kind.ERROR:
                failure = from_wire(control.decode(data[body:at]))
                self.count.refused += 1
                client.told = True
                self._come_back(client, failure.retry_after_ms)
                return
            elif kind == Kind.PING and client.socket is not None:
                client.socket.send(control.encode_pong(control.decode_token(data[body:at])))
        client.rest = data[at:]

    def _subscribed(self, client: Client, body: bytes) -> None:
        """It is live when it has reached what was answered to the publisher by now."""
        resuming = client.lasts[0] >= 0
        client.due.clear()
        for name, outcome, epoch, sequence in msgpack.unpackb(body)["outcomes"]:
            channel = self._number[name.encode()]
            at = client.channels.index(channel)
            if not resuming:
                client.epochs[at], client.lasts[at] = epoch, sequence
            elif outcome != "resumed":
                self.count.restarted += 1
            if client.lasts[at] < self._heads[channel]:
                client.due[at] = self._heads[channel]
        self._settle(client)

    def _settle(self, client: Client) -> None:
        if not client.due and not client.live:
            client.live = True
            client.attempts = 0
            self._alive += 1

    def _delivered(self, client: Client, data: bytes, at: int, flags: int) -> None:
        at += DELIVER.size
        name = b""
        if flags & DELIVER_NAME:
            name = data[at + 1 : at + 1 + data[at]]
            at += 1 + len(name)
        _, _, channel, epoch, first, count = CHUNK.unpack_from(data, at)
        if name:
            client.ids[channel] = client.channels.index(self._number[name])
        which = client.ids[channel]
        last = client.lasts[which]
        if first != last + 1:
            self.count.lost += max(0, first - last - 1)
            self.count.duplicated += min(count, max(0, last + 1 - first))
        client.epochs[which] = epoch
        client.lasts[which] = max(last, first + count - 1)
        self.count.delivered += count
        if client.due and client.lasts[which] >= client.due.get(which, 1 << 64):
            del client.due[which]
            self._settle(client)

    # -- the publisher -------------------------------------------------------------------------------------------------

    def _open_publisher(self) -> None:
        """Connect who publishes, and have one message in each channel, so that each has a position."""
        with Conversation(self.plan.url) as conversation:
            conversation.name_channels(channel_frames([name.encode() for name in self._names]))
            conversation.ping_ns()
            self._publisher = conversation.detach()
        self._selector.register(self._publisher, selectors.EVENT_READ, None)
        self._send(len(self._names))
        until = time.monotonic() + PATIENCE_S
        while not self._answered():
            if time.monotonic() > until:
                raise error("TIMEOUT", f"answers to the first messages: got {self.count.published}, limit {self._sent}")
            self._send(0)
            self._turn(TICK_S)

    def _publish(self, now_s: float) -> None:
        due = self._first + int((now_s - self._began_s) * self.plan.rate)
        self._send(max(0, due - self._sent))

    def _send(self, count: int) -> None:
        """Publish so many messages, to the channels in turn."""
        frames = [self._unsent]
        size = RECORD.size + self.plan.payload
        record = RECORD.pack(size, 0, 0, 0) + bytes(self.plan.payload)
        for number in range(self._sent + 1, self._sent + count + 1):
            body = PUBLISH.pack((number - 1) % len(self._names), 1, number) + record
            frames.append(HEADER.pack(len(body), Kind.PUBLISH, 0, 0) + body)
        self._sent += count
        self._unsent = b"".join(frames)
        if self._unsent and self._publisher is not None:
            with suppress(BlockingIOError):
                self._unsent = self._unsent[self._publisher.send(self._unsent) :]

    def _read_answers(self) -> None:
        assert self._publisher is not None
        data = self._publisher.recv(1 << 18)
        if not data:
            raise error("CONNECTION_LOST", "the publisher's connection: closed by the server")
        data = self._published_rest + data
        at = 0
        for kind, _, body, at in frames_in(data):
            if kind == Kind.PUBLISHED:
                for entry in range(body, at, ENTRY_BYTES):
                    number, _, first, count = ENTRY.unpack_from(data, entry)
                    self._heads[(number - 1) % len(self._names)] = first + count - 1
                    self.count.published += 1
            elif kind == Kind.PING:
                self._publisher.send(control.encode_pong(control.decode_token(data[body:at])))
            elif kind == Kind.ERROR:
                raise from_wire(control.decode(data[body:at]))
        self._published_rest = data[at:]


def frames_in(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the kind and the flags of each whole frame, and where its body begins and ends."""
    at, end = 0, len(data)
    while end - at >= HEADER.size:
        size, kind, flags, _ = HEADER.unpack_from(data, at)
        body = at + HEADER.size
        at = body + size
        if at > end:
            return
        yield kind, flags, body, at


def say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] = ()) -> None:
    """Do what standard input says, line by line, and tell on standard output what came of it."""
    os.nice(NICE)
    lines = sys.stdin
    crowd = Crowd(Plan(**json.loads(lines.readline())))
    commands = selectors.DefaultSelector()
    commands.register(lines, selectors.EVENT_READ)
    try:
        say(seconds=crowd.gather())
        while True:
            crowd.serve(commands)
            command = lines.readline().strip()
            if command == "drop":
                say(seconds=crowd.drop(), **asdict(crowd.count))
                continue
            if command == "finish":
                crowd.finish()
                say(**asdict(crowd.count), cpu_s=time.process_time())
            return
    except BrokerError as failure:
        say(failure=str(failure))


if __name__ == "__main__":
    main(sys.argv[1:])
