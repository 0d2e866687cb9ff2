"""A server that does not read for a while: nobody waits in a send, and what was cut arrives whole, once, in order."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError
from broker.blocking import connect
from broker.model.errors import error
from broker.wire import control
from broker.wire.kinds import Kind
from tests.unit.client.scripted import AT_ONCE, JOURNAL, LIMITS, published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.blocking import Client

HEADER = struct.Struct("<IBBH")
PUBLISH = struct.Struct("<IIQ")
CHANNELS = 5
EACH = 700
PAYLOAD_BYTES = 1000
"""5 × 700 of them are 3.5 MB: far more than two sockets hold."""


class Peer:
    """One connection of a server that reads when it is told to, a few bytes at a time."""

    def __init__(self, sock: socket.socket, chance: random.Random, highest: int = 0) -> None:
        self.sock = sock
        self._chance = chance
        self._data = bytearray()
        kind, _ = self.frame()
        assert kind == Kind.HELLO
        welcome = control.Welcome("peer", 1, JOURNAL, highest, LIMITS, 15.0)
        sock.sendall(control.encode_welcome(welcome))

    def frame(self) -> tuple[int, bytes]:
        """Read a frame."""
        size, kind, flags, reserved = HEADER.unpack(self._take(HEADER.size))
        assert (flags, reserved) == (0, 0)
        return kind, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            received = self.sock.recv(self._chance.choice((1, 3, 700, 5_000, 60_000)))
            assert received, "the client has ended the connection"
            self._data += received
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def publishes(self, count: int) -> dict[str, list[bytes]]:
        """Read so many records, whose numbers must be 1, 2, 3, …; answer them, and pings."""
        names: dict[int, str] = {}
        found: dict[str, list[bytes]] = {}
        number = 1
        while number <= count:
            kind, body = self.frame()
            if kind == Kind.CHANNEL:
                told, name = control.decode_channel(body)
                names[told] = name.decode()
            elif kind == Kind.PING:
                self.sock.sendall(control.encode_pong(control.decode_token(body)))
            else:
                assert kind == Kind.PUBLISH
                channel, records, first = PUBLISH.unpack_from(body)
                assert first == number
                payloads = found.setdefault(names[channel], [])
                at = PUBLISH.size
                while at < len(body):
                    size = int.from_bytes(body[at : at + 4], "little")
                    payloads.append(body[at + 12 : at + size])
                    at += size
                self.sock.sendall(published(first, len(payloads) - records + 1, records))
                number += records
        return found


@contextmanager
def server(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a script with a listening socket in a thread; what it raises is raised at the end."""
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)

        def run() -> None:
            try:
                script(listener)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"broker://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def payloads(channel: int) -> list[bytes]:
    return [(b"%d/%d " % (channel, number)).ljust(PAYLOAD_BYTES, b".") for number in range(EACH)]


def expected() -> dict[str, list[bytes]]:
    return {f"s.{channel}": payloads(channel) for channel in range(CHANNELS)}


def publish_all(bus: Client) -> list[threading.Thread]:
    """Publish from a thread for each channel, in windows and singly; they wait for their answers."""

    def publish(channel: int) -> None:
        name, all_of_them = f"s.{channel}", payloads(channel)
        windows = [
            bus.post_window([(name, payload) for payload in all_of_them[at : at + 100]]) for at in range(0, 600, 100)
        ]
        for payload in all_of_them[600:-1]:
            bus.post(name, payload)
        bus.publish(name, all_of_them[-1])
        for window in windows:
            window.wait()

    crowd = [threading.Thread(target=publish, args=(channel,)) for channel in range(CHANNELS)]
    for one in crowd:
        one.start()
    return crowd


def test_what_a_slow_server_takes_in_pieces_arrives_whole() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    posted, found = threading.Event(), {}

    def script(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            peer = Peer(sock, random.Random(seed))
            assert posted.wait(20)
            found.update(peer.publishes(CHANNELS * EACH))
            with suppress(ConnectionError):
                sock.recv(1)

    with server(script) as url, connect(url, timeout_s=20) as bus:
        crowd = publish_all(bus)
        while bus._buffer.records_posted < CHANNELS * EACH:
            threading.Event().wait(0.01)
        # Nobody is held up meanwhile: posting comes back, and so does who waits no longer than that.
        with pytest.raises(BrokerError, match="TIMEOUT"):
            bus.ping(timeout_s=0.05)
        assert bus._connection is not None
        assert not bus._connection.writable, "the server took it all; nothing was tested"
        posted.set()
        # What others send meanwhile goes behind it, or it would be in the middle of somebody's frame.
        while any(one.is_alive() for one in crowd):
            with suppress(BrokerError):
                bus.ping(timeout_s=0.002)
        bus.flush()
    assert found == expected()


def test_a_backlog_whose_connection_is_lost_goes_out_on_the_next() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    posted, found = threading.Event(), {}

    def script(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            Peer(sock, random.Random(seed))
            assert posted.wait(20)
            sock.recv(10_000)
        sock, _ = listener.accept()
        with sock:
            found.update(Peer(sock, random.Random(seed)).publishes(CHANNELS * EACH))
            with suppress(ConnectionError):
                sock.recv(1)

    with server(script) as url, connect(url, timeout_s=20, backoff=AT_ONCE) as bus:
        crowd = publish_all(bus)
        while bus._buffer.records_posted < CHANNELS * EACH:
            threading.Event().wait(0.01)
        posted.set()
        for one in crowd:
            one.join(20)
    assert found == expected()


def test_why_a_connection_ended_is_heard_although_writing_fails() -> None:
    descriptors = len(os.listdir("/dev/fd"))
    posted = threading.Event()

    def script(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            Peer(sock, random.Random(1))
            assert posted.wait(20)
            sock.sendall(control.encode_error(error("DENIED", "enough of you")))
            sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass

    with server(script) as url:
        bus = connect(url, timeout_s=20)
        window = bus.post_window([("s.x", bytes(PAYLOAD_BYTES))] * 4000)
        posted.set()
        with pytest.raises(BrokerError, match=r"COMMIT_UNKNOWN.*enough of you"):
            window.wait()
        with pytest.raises(BrokerError, match=r"DENIED.*enough of you"):
            bus.publish("s.x", b"")
        bus.close()
    assert len(os.listdir("/dev/fd")) == descriptors
