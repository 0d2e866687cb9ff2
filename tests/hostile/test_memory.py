"""What a crowd can make the server keep: half frames, answers that nobody takes, deliveries that nobody reads.

The bound is 64 MiB of anonymous memory for whole crowds. Each check is made once more against a server that lacks the
defence, and must then find it broken.
"""

from __future__ import annotations

import struct
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from tests.hostile import attackers
from tests.hostile.attackers import (
    HELLO,
    PUBLISH,
    SUBSCRIBE,
    SUBSCRIBED,
    U32_MAX,
    Peer,
    channel,
    frame,
    hello,
    packed,
    ping,
    publish,
    record,
    subscribe,
)
from tests.hostile.attacks import SOURCES, flood, repeated
from tests.hostile.service import Pair, Service

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
GROWTH_BYTES_MAX = 64 * MIB
ANSWERS_GROWTH_BYTES_MAX = 8 * MIB
"""Of eight connections: 64 KiB each, what transports and reads under way hold, and what an allocator keeps."""
SETTLED_BYTES = 1 * MIB
"""What a server's memory moves by between two looks while it takes nothing in."""
CROWD = 10_000
HELLO_BYTES_MAX = 16 << 10
PATIENT = {"hello_timeout_s": 60, "ping_timeout_s": 120}
"""Strangers have a minute instead of two seconds, so that all of them are there at once: the worst case of all."""


def crowd(
    stack: ExitStack, service: Service, count: int, first: bytes, rest: bytes = b"", *, receive_bytes: int = 0
) -> list[Peer]:
    """Return so many connections that have sent something, and something more when all of them were there."""
    peers = []
    for number in range(count):
        source = SOURCES[number % len(SOURCES)]
        peers.append(stack.enter_context(Peer(service.address, source, receive_bytes=receive_bytes)))
        peers[-1].send(first)
    for peer in peers if rest else ():
        peer.send(rest)
    return peers


def settled(service: Service) -> int:
    """Return the server's memory once it has taken in what was sent to it: strangers are answered and nothing grows."""
    before = -SETTLED_BYTES
    while True:
        with service.opened() as peer:
            assert peer.alive()
        now = service.anonymous_bytes()
        if abs(now - before) < SETTLED_BYTES:
            return now
        before = now


# --- Half frames ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_strangers_that_declare_and_dribble(tmp_path: Path) -> None:
    """4 GiB is refused by its header; 16 KiB are kept as far as they come, of all of them together."""
    with Service(tmp_path, PATIENT) as service, ExitStack() as stack:
        pair = Pair(service.address, 100)
        before = settled(service)
        liars = crowd(stack, service, 500, frame(HELLO, size=U32_MAX))
        peers = crowd(stack, service, CROWD - 500, frame(HELLO, bytes(10_000), size=HELLO_BYTES_MAX), bytes(1_000))
        grown = settled(service) - before
        assert grown < GROWTH_BYTES_MAX
        # Who is not let in at all, since so many wait, is told that they are too many as well.
        assert {liars[0].ended(), liars[-1].ended()} <= {"FRAME_TOO_LARGE", "TOO_MANY_CONNECTIONS"}
        assert peers[0].ended() == "LIMIT", "the first to begin is the first to go"
        assert "half frames before HELLO" in peers[0].errors[0]["detail"]
        window = pair.window()
        pair.stop()
        assert (window.wrong, window.delivered) == ([], window.sent)


def parked_bytes(service: Service, count: int) -> tuple[int, Peer]:
    """Return by how much the server grows when so many open connections park 1 MiB each, and the first of them."""
    before = settled(service)
    stack = ExitStack()
    peers = crowd(stack, service, count, hello() + frame(PUBLISH, bytes(MIB - 100), size=MIB))
    grown = settled(service) - before
    with suppress(TimeoutError):
        while peers[0].answer(0.3) is not None:
            pass
    stack.close()
    return grown, peers[0]


def test_half_frames_of_open_connections(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        grown, first = parked_bytes(service, 150)
        assert grown < GROWTH_BYTES_MAX
        assert [told["name"] for told in first.errors] == ["LIMIT"]
        assert "limits.partial_bytes_max" in first.errors[0]["hint"]


def test_half_frames_without_their_bound(tmp_path: Path) -> None:
    with Service(tmp_path, {"partial_bytes_max": 1 << 30}) as service:
        grown, first = parked_bytes(service, 150)
        assert grown > 2 * GROWTH_BYTES_MAX
        assert first.errors == []


def test_publisher_in_the_middle_of_a_frame_does_not_pay(few: Service) -> None:
    """Its frames come in halves like the dribblers', but they are whole before long."""
    with few.publisher() as publisher, ExitStack() as stack:
        large = publish(0, 1, record(bytes(16_000)))
        ended = 0
        for number in range(1, 101):
            publisher.send(publish(0, number, record(bytes(16_000)))[: len(large) // 2])
            dribbler = stack.enter_context(Peer(few.address))
            dribbler.send(hello() + frame(PUBLISH, bytes(15_000), size=16_384))
            publisher.send(publish(0, number, record(bytes(16_000)))[len(large) // 2 :])
            assert publisher.until(attackers.PUBLISHED)
            ended = number
        assert ended == 100
        assert publisher.errors == []


# --- Answers that nobody takes -------------------------------------------------------------------------------------


def outbox_growth(service: Service, first: bytes, block: bytes, seconds: float) -> int:
    """Return the server's growth while 8 connections send a frame again and again, and read nothing.

    Args:
        service: whose.
        first, block: what they send once, and then again and again.
        seconds: for how long at most; it ends when the growth is beyond its bound.
    """
    before = settled(service)
    with ExitStack() as stack:
        peers = crowd(stack, service, 8, hello() + first, receive_bytes=4096)

        def grown() -> int:
            return service.anonymous_bytes() - before

        blocks = [repeated(block)] * len(peers)
        flood(peers, blocks, seconds, reads=False, until=lambda: grown() > ANSWERS_GROWTH_BYTES_MAX)
        return grown()


UNREAD = {
    "ping": (b"", ping(1)),
    "a bad subscription": (b"", subscribe(1, "a b")),
    "a question": (b"", packed(attackers.REQUEST, request=1, op="stats")),
    "a bad operation": (b"", packed(attackers.REQUEST, request=1, op="x" * 1_000)),
    "a publish beyond the line": (channel(0, b"ephemeral.unread"), publish(0, 99, record())),
    "a publish to no channel": (b"", publish(0, 1, record())),
    "an end of no subscription": (b"", packed(attackers.UNSUBSCRIBE, subscription=9)),
    "a bad channel": (b"", channel(0, b"a b")),
}


@pytest.mark.parametrize("what", UNREAD)
def test_answers_that_nobody_reads(service: Service, what: str) -> None:
    """The kernel and the transport take some; then the server reads no more until they are read."""
    first, block = UNREAD[what]
    assert outbox_growth(service, first, block, 0.4) < ANSWERS_GROWTH_BYTES_MAX


def test_reading_goes_on_when_the_answers_are_taken(service: Service) -> None:
    """Nothing is lost by the pause: each frame has its answer, in order."""
    count = 60_000
    with service.opened() as peer:
        peer.socket.setblocking(False)
        stream = b"".join(ping(token) for token in range(count))
        sent, idle = 0, 0
        while sent < len(stream) and idle < 20:  # until the server takes no more
            try:
                sent += peer.socket.send(stream[sent : sent + (64 << 10)])
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.01)
        peer.socket.setblocking(True)
        expected = 0
        while expected < count:
            if sent < len(stream):
                sent += peer.socket.send(stream[sent : sent + 1024])
            while expected < sent // 16:
                answer = peer.answer()
                assert answer is not None, peer.errors
                assert answer.body == struct.pack("<Q", expected)
                expected += 1


def test_answers_without_their_bound(tmp_path: Path) -> None:
    with Service(tmp_path, {"connection_bytes_max": 1 << 30}, without="answers") as service:
        assert outbox_growth(service, *UNREAD["ping"], 30.0) > ANSWERS_GROWTH_BYTES_MAX


# --- Deliveries that nobody reads ----------------------------------------------------------------------------------


def test_deliveries_that_nobody_reads(few: Service) -> None:
    """With all the credit of the world a subscription is bounded by what its connection may have queued."""
    before = settled(few)
    readers = [few.opened() for _ in range(10)]
    for reader in readers:
        reader.send(subscribe(1, "ephemeral.>", credit=1 << 40))
        reader.until(SUBSCRIBED)
    with few.publisher() as publisher:
        payload = record(bytes(15_000))
        number = 1
        end = time.monotonic() + 10
        while few.stats()["subscriptions_lagging"] < 10 and time.monotonic() < end:
            for _ in range(50):
                publisher.send(publish(0, number, payload))
                number += 1
            while publisher.readable(0):
                publisher.answer()
        assert few.stats()["subscriptions_lagging"] == 10, "they get nothing more"
        assert few.stats()["queued_bytes"] < 32 * MIB
        assert publisher.alive()
    assert settled(few) - before < 32 * MIB


# --- Farewells that nobody reads -----------------------------------------------------------------------------------


def test_farewell_that_nobody_reads_keeps_no_connection(few: Service) -> None:
    """A connection that is over is gone after some seconds, whatever its peer leaves unread."""
    before = few.stats()["connections"]
    peers = [few.opened() for _ in range(20)]
    for peer in peers:
        flood([peer], [repeated(packed(SUBSCRIBE, subscription=1, filters=["a b"], credit=1))], 0.05, reads=False)
        peer.socket.setblocking(True)
        peer.socket.settimeout(0.05)
        try:
            peer.socket.send(frame(255) * 100)
        except TimeoutError:
            continue
    peers.clear()
    few.hang_up()
    attackers.wait_until(lambda: few.stats()["connections"] <= before)
