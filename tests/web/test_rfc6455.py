"""RFC 6455 frame by frame: what a server must take, and what it must end a connection for, with which code."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.independent import frames
from tests.web.peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, frame

if TYPE_CHECKING:
    from tests.contract.homes import Server

HELLO = frames.hello([1], "a peer", None, None)
OK, PROTOCOL_ERROR, UNSUPPORTED, BAD_TEXT, TOO_BIG = 1000, 1002, 1003, 1007, 1009


def take_welcome(peer: Peer) -> None:
    """Read the message that answers HELLO."""
    got = peer.read_frame()
    assert got is not None
    assert got.first == 0x80 | BINARY
    assert kinds_of(got.payload) == [frames.Kind.WELCOME]


TAKEN = {
    "whole": [frame(BINARY, HELLO)],
    "without a mask's effect": [frame(BINARY, HELLO, mask=bytes(4))],
    "in two fragments": [frame(BINARY, HELLO[:9], final=False), frame(CONTINUATION, HELLO[9:])],
    "each byte a fragment": [
        frame(BINARY, HELLO[:1], final=False),
        *(frame(CONTINUATION, HELLO[at : at + 1], final=False) for at in range(1, len(HELLO))),
        frame(CONTINUATION),
    ],
    "in two messages": [frame(BINARY, HELLO[:9]), frame(BINARY, HELLO[9:])],
    "behind an empty message": [frame(BINARY), frame(BINARY, HELLO)],
    "behind empty fragments": [
        frame(BINARY, final=False),
        frame(CONTINUATION, final=False),
        frame(CONTINUATION, HELLO),
    ],
    "behind a pong that nobody asked for": [frame(PONG, b"?"), frame(BINARY, HELLO)],
}


@pytest.mark.parametrize("pieces", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("cut", ["together", "frame by frame", "byte by byte"])
def test_what_is_to_be_taken(socket: Peer, pieces: list[bytes], cut: str) -> None:
    whole = b"".join(pieces)
    if cut == "byte by byte":
        pieces = [whole[at : at + 1] for at in range(len(whole))]
    socket.send(*([whole] if cut == "together" else pieces))
    take_welcome(socket)


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(125))])
def test_a_ping_is_answered_with_what_it_carries(socket: Peer, payload: bytes) -> None:
    socket.send(frame(PING, payload))
    assert socket.read_frame() == (0x80 | PONG, payload)


def test_control_frames_come_between_fragments(socket: Peer) -> None:
    socket.send(frame(BINARY, HELLO[:5], final=False), frame(PING, b"between"))
    assert socket.read_frame() == (0x80 | PONG, b"between")
    socket.send(frame(CONTINUATION, HELLO[5:9], final=False) + frame(PONG) + frame(CONTINUATION, HELLO[9:]))
    take_welcome(socket)


def test_of_pings_that_come_together_the_last_is_answered(socket: Peer) -> None:
    socket.send(b"".join(frame(PING, b"%d" % number) for number in range(100)) + frame(BINARY, HELLO))
    answers = []
    while True:
        got = socket.read_frame()
        assert got is not None
        if got.opcode == BINARY:
            break
        answers.append(got.payload)
    # The answer may come behind what else the read has brought.
    if b"99" not in answers:
        assert socket.read_frame() == (0x80 | PONG, b"99")


WRONG = {
    **{f"opcode {opcode}": (frame(opcode, b"?"), PROTOCOL_ERROR) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"reserved bits {bits}": (frame(BINARY, HELLO, reserved=bits), PROTOCOL_ERROR) for bits in (1, 2, 4, 7)},
    "reserved bit of a ping": (frame(PING, reserved=4), PROTOCOL_ERROR),
    "no mask": (frame(BINARY, HELLO, mask=None), PROTOCOL_ERROR),
    "a ping without a mask": (frame(PING, mask=None), PROTOCOL_ERROR),
    "a ping in fragments": (frame(PING, b"x", final=False), PROTOCOL_ERROR),
    "a Close in fragments": (frame(CLOSE, b"\x03\xe8", final=False), PROTOCOL_ERROR),
    "a ping of 126 bytes": (frame(PING, bytes(126)), PROTOCOL_ERROR),
    "a pong of 126 bytes": (frame(PONG, bytes(126)), PROTOCOL_ERROR),
    "a Close of 126 bytes": (frame(CLOSE, b"\x03\xe8" + bytes(124)), PROTOCOL_ERROR),
    "a fragment of no message": (frame(CONTINUATION, HELLO), PROTOCOL_ERROR),
    "a last fragment of no message": (frame(CONTINUATION, HELLO, final=False), PROTOCOL_ERROR),
    "a message within another": (frame(BINARY, HELLO, final=False) + frame(BINARY, HELLO), PROTOCOL_ERROR),
    "a size of 5 in 16 bits": (frame(BINARY, b"12345", width=2), PROTOCOL_ERROR),
    "a size of 125 in 16 bits": (frame(BINARY, bytes(125), width=2), PROTOCOL_ERROR),
    "a size of 5 in 64 bits": (frame(BINARY, b"12345", width=8), PROTOCOL_ERROR),
    "a size of 65535 in 64 bits": (frame(BINARY, width=8, declared=65_535), PROTOCOL_ERROR),
    "a size with the highest bit": (frame(BINARY, width=8, declared=1 << 63), PROTOCOL_ERROR),
    "a size that is too large": (frame(BINARY, declared=1 << 40), TOO_BIG),
    "text": (frame(TEXT, b"{}"), UNSUPPORTED),
    "text that is none": (frame(TEXT, b"\xff"), UNSUPPORTED),
    "half a close code": (frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    "a reason that is no text": (frame(CLOSE, b"\x03\xe8\xc3\x28"), BAD_TEXT),
    **{
        f"close code {code}": (frame(CLOSE, struct.pack(">H", code)), PROTOCOL_ERROR)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
}


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("early", [True, False])
def test_what_breaks_the_rules_ends_the_connection(socket: Peer, data: bytes, code: int, early: bool) -> None:
    if not early:
        socket.send(frame(BINARY, HELLO))
        take_welcome(socket)
    socket.send(data)
    assert socket.read_close().code == code


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_a_close_is_answered_with_its_code(socket: Peer, code: int) -> None:
    socket.send(frame(CLOSE, struct.pack(">H", code) + b"wieder da"))
    got = socket.read_frame()
    assert got is not None
    assert (got.first, got.code) == (0x80 | CLOSE, code)
    assert socket.read_frame() is None


def test_a_close_without_a_code_is_answered_with_1000(socket: Peer) -> None:
    socket.send(frame(CLOSE))
    assert socket.read_close().code == OK


def test_what_follows_a_mistake_or_a_close_is_not_heard(server: Server) -> None:
    for last in (frame(3), frame(CLOSE, b"\x03\xe8")):
        with Peer(server.web) as peer:
            peer.upgrade()
            peer.send(last + frame(BINARY, HELLO))
            got = peer.read_frame()
            assert got is not None
            assert got.opcode == CLOSE
            with suppress(ConnectionError):
                peer.send(frame(CLOSE, got.payload))
                assert peer.read_frame() is None


def test_an_error_is_told_and_closes_with_the_code_that_mirrors_it(socket: Peer) -> None:
    socket.send(frame(BINARY, HELLO))
    take_welcome(socket)
    socket.send(frame(BINARY, HELLO))
    told = socket.read_frame()
    assert told is not None
    assert told.payload[4] == frames.Kind.ERROR
    closing = socket.read_close()
    assert (closing.code, closing.payload[2:]) == (4304, b"BAD_STATE")


def test_any_cut_of_frames_is_taken(server: Server) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(10):
        stream = HELLO + b"".join(frames.token(frames.Kind.PING, number) for number in range(20))
        pieces, wire = [], b""
        while stream:
            size = chance.randint(0, 40)
            pieces.append(stream[:size])
            stream = stream[size:]
        within = False
        for piece in pieces:
            final = chance.random() < 0.5 or piece is pieces[-1]
            wire += frame(CONTINUATION if within else BINARY, piece, final=final, mask=chance.randbytes(4))
            within = not final
            if chance.random() < 0.3:
                wire += frame(PING, b"p")
        with Peer(server.web) as peer:
            peer.upgrade()
            while wire:
                size = chance.randint(1, 60)
                peer.send(wire[:size])
                wire = wire[size:]
            pongs = 0
            while pongs < 20:
                got = peer.read_frame()
                assert got is not None
                if got.opcode == BINARY:
                    pongs += sum(kind == frames.Kind.PONG for kind in kinds_of(got.payload))


def kinds_of(message: bytes) -> list[int]:
    """Return the kinds of a message's frames, which are whole."""
    kinds, at = [], 0
    while at < len(message):
        kinds.append(message[at + 4])
        at += 8 + int.from_bytes(message[at : at + 4], "little")
    assert at == len(message)
    return kinds
