"""What transports hold that have asked for a pause, against a model that keeps all of it in sight."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Fanout
from broker_native.fanout import Outbox as FanoutOutbox
from broker_native.tails import Tails
from broker_native.unsent import Sender, Unsent, message_header

VALUE = bytes(100_000)


class Outbox:
    paused = False


class Transport:
    """Takes what it is handed, and as long as it is `full` sends nothing and asks for a pause."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.full = False
        self.unsent = 0
        self.taken: list[Any] = []

    def writelines(self, pieces: list[Any]) -> None:
        self.taken += pieces
        if self.full:
            self.unsent += sum(map(len, pieces))
            self.outbox.paused = True

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Reader:
    def __init__(self, unsent: Unsent, *, shares: bool = True) -> None:
        self.outbox = Outbox()
        self.transport = Transport(self.outbox)
        self.sender = Sender(unsent, self.transport, self.outbox, shares)

    def stop(self) -> None:
        self.transport.full = True

    def go_on(self) -> None:
        self.transport.full = self.outbox.paused = False
        self.transport.unsent = 0
        self.sender.release()


def test_a_thousand_readers_of_one_value() -> None:
    unsent = Unsent()
    readers = [Reader(unsent) for _ in range(1_000)]
    for number, reader in enumerate(readers):
        reader.stop()
        reader.sender.writelines([bytes(32), memoryview(VALUE)[number:]])
    assert unsent.bytes == len(VALUE) + 1_000 * 32
    for number, reader in enumerate(readers):
        assert unsent.bytes == len(VALUE) + (1_000 - number) * 32
        reader.go_on()
    assert unsent.bytes == 0


@pytest.mark.parametrize("shared", [VALUE, memoryview(VALUE)[5:]])
def test_who_takes_everything_holds_nothing(shared: Any) -> None:
    unsent = Unsent()
    reader = Reader(unsent)
    pieces = [b"prefix", shared]
    reader.sender.writelines(pieces)
    assert unsent.bytes == 0
    assert reader.transport.taken == pieces
    reader.sender.release()
    assert unsent.bytes == 0


def test_what_it_had_not_sent_before_counts_as_its_own() -> None:
    unsent = Unsent()
    reader = Reader(unsent)
    reader.transport.unsent = 700
    reader.stop()
    reader.sender.writelines([b"x" * 50])
    assert unsent.bytes == 750
    reader.go_on()
    assert unsent.bytes == 0


def test_who_makes_a_copy_of_the_pieces_has_it_alone() -> None:
    unsent = Unsent()
    readers = [Reader(unsent, shares=False) for _ in range(3)]
    for reader in readers:
        reader.stop()
        reader.sender.writelines([b"prefix", VALUE])
    assert unsent.bytes == 3 * (6 + len(VALUE))
    for reader in readers:
        reader.go_on()
    assert unsent.bytes == 0


def test_a_transport_that_has_sent_all_before_it_could_be_asked() -> None:
    unsent = Unsent()
    reader = Reader(unsent)
    reader.outbox.paused = True
    reader.sender.writelines([VALUE])
    assert unsent.bytes == 0


def test_a_transport_that_cannot_say_is_not_asked() -> None:
    class Silent:
        def writelines(self, pieces: list[Any]) -> None:
            """Send."""

    unsent, outbox = Unsent(), Outbox()
    outbox.paused = True
    Sender(unsent, Silent(), outbox, True).writelines([VALUE])
    assert unsent.bytes == 0


def test_values_are_told_apart_by_where_they_are() -> None:
    """Equal bytes in two places are twice in memory."""
    unsent = Unsent()
    reader = Reader(unsent)
    reader.stop()
    reader.sender.writelines([bytes(bytearray(5_000)), bytes(bytearray(5_000))])
    assert unsent.bytes == 10_000


def test_it_keeps_what_it_counts() -> None:
    """Another value at the same place would pass for one that is gone."""
    unsent = Unsent()
    readers = [Reader(unsent) for _ in range(50)]
    for reader, size in zip(readers, range(5_000, 5_050), strict=True):
        reader.stop()
        reader.sender.writelines([bytes(size)])
        reader.transport.taken.clear()
    assert unsent.bytes == sum(range(5_000, 5_050))


STEPS = st.tuples(st.integers(0, 4), st.sampled_from(["stop", "go on", "write"]), st.integers(0, 5))


@given(st.lists(STEPS, max_size=80))
@settings(max_examples=200)
def test_it_is_what_a_model_says(steps: list[tuple[int, str, int]]) -> None:
    unsent = Unsent()
    readers = [Reader(unsent) for _ in range(5)]
    holds: list[Counter[int]] = [Counter() for _ in readers]
    values = [bytes(bytearray(1_000 * (number + 1))) for number in range(6)]
    for at, what, number in steps:
        reader = readers[at]
        if what == "stop":
            reader.stop()
        elif what == "go on":
            reader.go_on()
            holds[at].clear()
        elif not reader.outbox.paused:
            reader.sender.writelines([values[number], memoryview(values[number])[7:]])
            if reader.transport.full:
                holds[at][number] += 2
        assert unsent.bytes == sum(len(values[each]) for each in set().union(*holds))


# --- Straight to the socket -----------------------------------------------------------------------------------------


class Stream(Transport):
    """The transport of a socket, which may be closing."""

    closing = False

    def is_closing(self) -> bool:
        return self.closing


class Straight:
    """An outbox whose transport has a socket, and the socket's other end."""

    def __init__(self, *, messages: bool = False) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.fanout = Fanout(Tails(1, 4770))
        self.outbox = FanoutOutbox(self.fanout, None)
        self.transport = Stream(Outbox())
        self.outbox.transport = Sender(Unsent(), self.transport, self.outbox, True, self.near.fileno(), messages)

    def __enter__(self) -> Straight:
        return self

    def __exit__(self, *raised: object) -> None:
        self.near.close()
        self.far.close()

    def send(self, *, answer: bytes = b"", ordered: bytes = b"") -> None:
        for queue, frame in ((self.outbox.ordered_frame, ordered), (self.outbox.frame, answer)):
            if frame:
                queue(frame)
        self.fanout.flush()
        assert self.outbox.queued == self.fanout.copied_bytes == 0

    def take(self) -> bytes:
        """What the transport was handed since this was asked last."""
        taken, self.transport.taken = b"".join(map(bytes, self.transport.taken)), []
        return taken


@pytest.mark.parametrize("frames", [{"answer": b"a"}, {"ordered": b"o"}, {"answer": b"a" * 96, "ordered": b"o" * 4000}])
def test_what_is_small_goes_to_the_socket_itself_answers_first(frames: dict[str, bytes]) -> None:
    with Straight() as stream:
        for _ in range(3):
            stream.send(**frames)
            assert stream.far.recv(8192) == frames.get("answer", b"") + frames.get("ordered", b"")
        assert stream.transport.taken == []


def test_what_is_large_goes_to_the_transport() -> None:
    with Straight() as stream:
        stream.send(answer=b"a", ordered=bytes(4096))
        assert stream.take() == b"a" + bytes(4096)
        stream.outbox.shared_frames(b"shared")
        stream.send(answer=b"a")
        assert stream.take() == b"ashared"
        stream.send()
        assert stream.take() == b""


def test_a_transport_that_holds_something_or_closes_is_handed_the_rest() -> None:
    with Straight() as stream:
        stream.transport.unsent = 1
        stream.send(answer=b"behind")
        assert stream.take() == b"behind"
        stream.transport.unsent = 0
        stream.transport.closing = True
        stream.send(answer=b"late")
        assert stream.take() == b"late"
        stream.far.setblocking(False)
        with pytest.raises(BlockingIOError):
            stream.far.recv(1)


@pytest.mark.parametrize("size", [1, 700, 4000])
def test_a_socket_that_is_full_leaves_the_rest_to_the_transport(size: int) -> None:
    with Straight() as stream:
        sent = rest = b""
        for number in range(10_000):
            answer, ordered = bytes([number & 127]) * size, bytes([128 + (number & 127)]) * 50
            sent += answer + ordered
            stream.send(answer=answer, ordered=ordered)
            rest = stream.take()
            if rest:
                break
        assert rest
        stream.far.setblocking(False)
        received = b""
        with contextlib.suppress(BlockingIOError):
            while more := stream.far.recv(1 << 20):
                received += more
        assert received + rest == sent


def test_a_socket_whose_peer_is_gone_is_left_to_the_transport() -> None:
    with Straight() as stream:
        stream.far.close()
        stream.send(answer=b"lost")
        assert stream.take() == b"lost"


# --- Messages of a WebSocket ----------------------------------------------------------------------------------------


def plain_header(size: int) -> bytes:
    """The header of a whole binary message that has no mask, as RFC 6455 §5.2 draws it."""
    if size < 126:
        return bytes([0x82, size])
    return (
        bytes([0x82, 126]) + struct.pack(">H", size) if size < 65_536 else bytes([0x82, 127]) + struct.pack(">Q", size)
    )


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 65_537, (1 << 32) + 1, (1 << 64) - 1])
def test_a_message_has_the_header_that_the_rfc_draws(size: int) -> None:
    assert message_header(size) == plain_header(size)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_what_is_handed_over_at_once_is_one_message(pieces: list[bytes]) -> None:
    transport = Transport(Outbox())
    Sender(Unsent(), transport, transport.outbox, True, messages=True).writelines(list(pieces))
    whole = b"".join(pieces)
    assert b"".join(map(bytes, transport.taken)) == plain_header(len(whole)) + whole
    assert [piece for piece in transport.taken[1:] if piece] == [piece for piece in pieces if piece]


def split_messages(data: bytes) -> list[bytes]:
    """Take a stream of whole messages apart."""
    messages = []
    while data:
        assert data[0] == 0x82
        width = {126: 2, 127: 8}.get(data[1], 0)
        size = int.from_bytes(data[2 : 2 + width], "big") if width else data[1]
        messages.append(data[2 + width : 2 + width + size])
        assert len(messages[-1]) == size
        data = data[2 + width + size :]
    return messages


@pytest.mark.parametrize(("answer", "ordered"), [(b"a", b""), (b"", b"o"), (b"a" * 96, b"o" * 4000)])
def test_a_small_message_goes_to_the_socket_itself(answer: bytes, ordered: bytes) -> None:
    with Straight(messages=True) as stream:
        for _ in range(3):
            stream.send(answer=answer, ordered=ordered)
            assert split_messages(stream.far.recv(8192)) == [answer + ordered]
        assert stream.transport.taken == []


@pytest.mark.parametrize("size", [1, 100, 700, 4000])
def test_a_message_that_the_socket_takes_a_part_of_is_one_still(size: int) -> None:
    with Straight(messages=True) as stream:
        rest = b""
        sent = []
        for number in range(10_000):
            sent.append(bytes([number & 127]) * size + b"behind it")
            stream.send(answer=sent[-1][:size], ordered=sent[-1][size:])
            rest = stream.take()
            if rest:
                break
        assert rest
        stream.far.setblocking(False)
        got = b""
        try:
            while True:
                got += stream.far.recv(1 << 16)
        except BlockingIOError:
            pass
        assert split_messages(got + rest) == sent
