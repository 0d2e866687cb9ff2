"""Bytes that are no frames, frames that are not whole, and frames at the wrong time.

The offender gets a code, and a close where the specification says that the error concerns the connection; where it
concerns one request, the connection goes on. Either way the server and the honest pair beside it do.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from tests.hostile import attackers
from tests.hostile.attackers import (
    ACK,
    CHANNEL,
    CREDIT,
    ERROR,
    FROM_CLIENTS,
    HELLO,
    PING,
    PONG,
    PUBLISH,
    PUBLISHED,
    REPLY,
    REQUEST,
    SUBSCRIBE,
    SUBSCRIBED,
    TRANSACTION,
    U32_MAX,
    UNSUBSCRIBE,
    UNSUBSCRIBED,
    channel,
    credit,
    frame,
    hello,
    packed,
    ping,
    publish,
    record,
    subscribe,
)

if TYPE_CHECKING:
    from tests.hostile.attackers import Peer
    from tests.hostile.service import Service

FRAME_BYTES_MAX = (1 << 20) + (16 << 10) + (64 << 10)
HELLO_BYTES_MAX = 16 << 10
SEED = 4770

GOOD = {
    HELLO: hello(),
    PING: ping(7),
    PONG: frame(PONG, bytes(8)),
    CHANNEL: channel(0, b"ephemeral.cut"),
    SUBSCRIBE: subscribe(5, "ephemeral.cut", "ephemeral.*.cut"),
    UNSUBSCRIBE: packed(UNSUBSCRIBE, subscription=5),
    REQUEST: packed(REQUEST, request=1, op="channel", name="ephemeral.cut"),
    PUBLISH: publish(0, 1, record(b"first"), record(b"second")),
    ACK: frame(ACK, struct.pack("<IIQ", 5, 1, 1) + struct.pack("<QIB3xQ", 1, 1, 1, 0)),
    CREDIT: credit(5, 100),
    TRANSACTION: frame(TRANSACTION, struct.pack("<II", 1, 0) + publish(0, 1, record(b"first"))),
}
"""A frame of each kind that a client sends."""

ORDER = (HELLO, PING, PONG, CHANNEL, REQUEST, SUBSCRIBE, CREDIT, UNSUBSCRIBE, PUBLISH)
"""An order in which they are a conversation."""


def all_of(peers: list[Peer]) -> list[str]:
    """Wait for all connections to end, and return what they were told last."""
    said = [peer.ended() for peer in peers]
    for peer in peers:
        peer.socket.close()
    return said


# --- Bytes ---------------------------------------------------------------------------------------------------------


def test_random_bytes_before_hello(service: Service) -> None:
    rng = random.Random(SEED)
    peers = []
    for _ in range(150):
        peer = service.peer()
        peer.send(rng.randbytes(rng.choice([8, 9, 100, 5_000])))
        peer.end_sending()
        peers.append(peer)
    said = set(all_of(peers))
    assert {"FRAME_TOO_LARGE"} <= said <= {"FRAME_TOO_LARGE", "BAD_STATE", "MALFORMED_FRAME", ""}


def test_random_bytes_after_hello(service: Service) -> None:
    rng = random.Random(SEED)
    peers = []
    for _ in range(100):
        peer = service.peer()
        peer.send(hello() + rng.randbytes(rng.choice([8, 9, 100, 5_000])))
        peer.end_sending()
        peers.append(peer)
    said = set(all_of(peers))
    assert {"FRAME_TOO_LARGE"} <= said <= {"FRAME_TOO_LARGE", "MALFORMED_FRAME", ""}


@pytest.mark.parametrize("kind", FROM_CLIENTS)
def test_random_bodies(service: Service, kind: int) -> None:
    """Frames whose header is right and whose body is anything. Requests may be refused, the rest ends."""
    rng = random.Random(SEED + kind)
    peers = []
    for _ in range(40):
        peer = service.peer()
        body = rng.randbytes(rng.randrange(60))
        peer.send((b"" if kind == HELLO else hello() + GOOD[CHANNEL]) + frame(kind, body))
        peer.end_sending()
        peers.append(peer)
    legal = {"", "MALFORMED_FRAME", "INVALID_CHANNEL", "INVALID_RECORD", "TOO_MANY_CHANNELS", "NUMBER_GAP"}
    assert set(all_of(peers)) <= legal


# --- Cut frames ----------------------------------------------------------------------------------------------------


def test_each_frame_cut_at_each_byte_then_the_end(service: Service) -> None:
    """Nothing is answered to what has not come, and the connection ends without a word."""
    for kind, whole in GOOD.items():
        peers = []
        for cut in range(len(whole)):
            peer = service.peer()
            peer.send((b"" if kind == HELLO else hello()) + whole[:cut])
            peer.end_sending()
            peers.append(peer)
        assert all_of(peers) == [""] * len(peers), kind
        for peer in peers:
            assert peer.closed


def test_conversation_cut_at_each_byte(service: Service) -> None:
    """Two reads or one: the answers are the same."""
    stream = b"".join(GOOD[kind] for kind in ORDER) + ping(8)
    size = len(stream)
    expected = [attackers.WELCOME, PONG, REPLY, SUBSCRIBED, UNSUBSCRIBED, PUBLISHED, PONG]
    watcher = service.opened()
    peers = [service.peer() for _ in range(1, size)]
    # Each has a channel of its own, or they would hear each other.
    streams = [stream.replace(b"ral.cut", b"ral.%03d" % cut) for cut in range(size)]
    for cut, peer in enumerate(peers, 1):
        peer.send(streams[cut][:cut])
    # What was sent before has been read when these are answered.
    assert watcher.alive(1)
    assert watcher.alive(2)
    for cut, peer in enumerate(peers, 1):
        peer.send(streams[cut][cut:])
    for cut, peer in enumerate(peers, 1):
        answers = [peer.answer() for _ in expected]
        kinds = [answer.kind for answer in answers if answer is not None]
        assert sorted(kinds) == sorted(expected), (cut, peer.errors)
        peer.socket.close()
    watcher.socket.close()


# --- Headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [HELLO_BYTES_MAX + 1, 65_536, 1 << 31, U32_MAX])
@pytest.mark.parametrize("kind", [HELLO, PUBLISH, 0, 255])
def test_declared_size_before_hello(service: Service, kind: int, size: int) -> None:
    """Its header alone ends the connection: nothing waits for the body."""
    with service.peer() as peer:
        peer.send(frame(kind, size=size))
        assert peer.ended() == "FRAME_TOO_LARGE"
        assert f"got {size} bytes, limit {HELLO_BYTES_MAX}" in peer.errors[-1]["detail"]


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, 1 << 31, U32_MAX])
@pytest.mark.parametrize("kind", FROM_CLIENTS)
def test_declared_size_after_hello(service: Service, kind: int, size: int) -> None:
    with service.opened() as peer:
        peer.send(frame(kind, size=size))
        assert peer.ended() == "FRAME_TOO_LARGE"


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("kind", FROM_CLIENTS)
def test_small_body(service: Service, kind: int, size: int) -> None:
    with service.peer() as peer:
        peer.send((b"" if kind == HELLO else hello()) + frame(kind, bytes(size)))
        assert peer.ended() == "MALFORMED_FRAME"


def test_largest_frame_is_taken_whole(service: Service) -> None:
    """A frame of exactly the limit is no offence, whatever stands in it."""
    with service.opened() as peer:
        peer.send(frame(PUBLISH, bytes(FRAME_BYTES_MAX)))
        assert peer.until(ERROR).fields()["name"] == "INVALID_CHANNEL"
        assert peer.alive()


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(FROM_CLIENTS)))
def test_unknown_kind(service: Service, kind: int) -> None:
    with service.peer() as peer:
        peer.send(hello() + frame(kind, b"12345678"))
        assert peer.ended() == "MALFORMED_FRAME"
        assert f"kind {kind}" in peer.errors[-1]["detail"]


@pytest.mark.parametrize("flags", [0x10, 0x20, 0x80, 0xFF])
@pytest.mark.parametrize("kind", FROM_CLIENTS)
def test_unknown_flags(service: Service, kind: int, flags: int) -> None:
    whole = GOOD[kind]
    flagged = whole[:5] + bytes([flags]) + whole[6:]
    with service.peer() as peer:
        peer.send((b"" if kind == HELLO else hello() + GOOD[CHANNEL] + GOOD[SUBSCRIBE]) + flagged)
        assert peer.ended() == "MALFORMED_FRAME"


@pytest.mark.parametrize("reserved", [1 << bit for bit in range(16)])
def test_reserved_bits(service: Service, reserved: int) -> None:
    for kind in FROM_CLIENTS:
        whole = GOOD[kind]
        with service.peer() as peer:
            peer.send((b"" if kind == HELLO else hello()) + whole[:6] + struct.pack("<H", reserved) + whole[8:])
            assert peer.ended() == "MALFORMED_FRAME", kind


# --- States --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {HELLO}))
def test_anything_before_hello(service: Service, kind: int) -> None:
    with service.peer() as peer:
        peer.send(GOOD.get(kind, frame(kind, bytes(16))) + hello())
        assert peer.ended() == "BAD_STATE"
        assert len(peer.errors) == 1


def test_second_hello(service: Service) -> None:
    with service.opened() as peer:
        peer.send(hello())
        assert peer.ended() == "BAD_STATE"


def test_no_hello_at_all(service: Service) -> None:
    with service.peer() as peer:
        assert peer.ended() == "TIMEOUT"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"BROKER\0\2" + b"\x80", "MALFORMED_FRAME"),
        (b"GET / HTTP/1.1\r\n\r\n", "MALFORMED_FRAME"),
        (attackers.MAGIC[:-1], "MALFORMED_FRAME"),
        (attackers.MAGIC, "MALFORMED_FRAME"),
    ],
)
def test_hello_that_is_none(service: Service, body: bytes, name: str) -> None:
    with service.peer() as peer:
        peer.send(frame(HELLO, body))
        assert peer.ended() == name


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"versions": []}, "VERSION"),
        ({"versions": [0]}, "VERSION"),
        ({"versions": [2, 3, 1 << 63]}, "VERSION"),
        ({"versions": list(range(2, 1024))}, "VERSION"),
        ({"versions": ["1"]}, "MALFORMED_FRAME"),
        ({"versions": 1}, "MALFORMED_FRAME"),
        ({"versions": None}, "MALFORMED_FRAME"),
        ({"client": 5}, "MALFORMED_FRAME"),
        ({"client": b"bytes"}, "MALFORMED_FRAME"),
        ({"producer": b""}, "MALFORMED_FRAME"),
        ({"producer": bytes(15)}, "MALFORMED_FRAME"),
        ({"producer": bytes(17)}, "MALFORMED_FRAME"),
        ({"producer": "0123456789abcdef"}, "MALFORMED_FRAME"),
        ({"producer": None}, "MALFORMED_FRAME"),
        ({"token": 5}, "MALFORMED_FRAME"),
    ],
)
def test_hello_with_wrong_fields(service: Service, said: dict[str, object], name: str) -> None:
    with service.peer() as peer:
        peer.send(hello(**said))
        assert peer.ended() == name
