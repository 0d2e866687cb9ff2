"""The load driver in the broker's own dialect: its parser at every split, and each fault that it must not miss.

The peer is a thread with the other ends of the driver's sockets, or the reference server with real ones.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from broker.cli.main import main
from broker.wire.control import encode_event
from broker_native.crc32c import crc32c_of
from broker_native.driver import Driver, Outcome, payload_of
from tests.reference.server import (
    CHUNK_TAIL,
    ERROR,
    HEADER,
    PING,
    PONG,
    Faults,
    Server,
    chunk,
    deliver,
    frame,
    published,
    split_records,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 1.0
PAYLOAD_BYTES = 40
CHANNEL_ID = 99
EPOCH = 7


# --- A driver on socket pairs -------------------------------------------------------------------------------------


class Rig:
    """A driver with one publisher and one subscriber, and the ends of the sockets that a server would have."""

    def __init__(self, **options: Any) -> None:
        named = options.pop("named", False)
        credit_bytes = options.pop("credit_bytes", 1 << 20)
        names = options.pop("names", [b"a.b"])
        steady = options.pop("steady", True)
        web = options.pop("web", False)
        self.publisher, ours = socket.socketpair()
        self.subscriber, theirs = socket.socketpair()
        self.ours = [ours, theirs]
        for each in self.ours:
            each.setblocking(False)
        self.driver = Driver(names, publishers=1, payload_bytes=PAYLOAD_BYTES, **options)
        self.driver.add_publisher(ours.fileno())
        self.driver.add_subscriber(theirs.fileno(), credit_bytes=credit_bytes, named=named, steady=steady, web=web)

    def close(self) -> None:
        for each in (*self.ours, self.publisher, self.subscriber):
            each.close()

    def read_records(self, count: int) -> list[bytes]:
        """Read PUBLISH frames until there are `count` records."""
        records: list[bytes] = []
        while len(records) < count:
            size, kind, _, _ = HEADER.unpack(read_exactly(self.publisher, 8))
            assert kind == 16
            body = read_exactly(self.publisher, size)
            records += split_records(body[16:])
            assert struct.unpack_from("<I", body, 4)[0] == len(split_records(body[16:]))
        return records

    def play(self, count: int, answer: Callable[[Rig, list[bytes]], None], **run: Any) -> Outcome:
        """Run the driver while `answer` does in a thread what a server does with the records that it publishes."""
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                answer(self, self.read_records(count))
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=serve)
        thread.start()
        outcome = self.driver.run(**{"messages": count, "patience_s": PATIENCE_S, **run})
        thread.join()
        if failures:
            raise failures[0]
        return outcome


def read_exactly(reader: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = reader.recv(size - len(data))
        assert piece
        data += piece
    return data


@contextmanager
def rig(**options: Any) -> Iterator[Rig]:
    made = Rig(**options)
    try:
        yield made
    finally:
        made.close()


def good(outcome: Outcome) -> bool:
    wrong = outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt, outcome.misplaced
    return outcome.finished and outcome.failure is None and wrong == (0, 0, 0, 0, 0)


def with_fields(record: bytes) -> bytes:
    """Put into a record what a server may add or keep: publisher, number, priority, expiry, key and headers."""
    fields = b"\x03ann" + struct.pack("<QBI", 5, 1, 60) + b"\x02\x00kk" + b"\x01\x00\x80"
    return struct.pack("<IHHI", len(record) + len(fields), 0x3F, 0, 3) + fields + record[12:]


def conversation(records: list[bytes]) -> tuple[bytes, bytes]:
    """Return what a server answers to six records: to the publisher, and to the subscriber."""
    answers = published(1, 4, level=3) + frame(PING, b"pubtoken") + published(5, 2, first=5, level=3)
    deliveries = deliver(chunk(CHANNEL_ID, EPOCH, 1, records[:2]), group=3, name=b"a.b") + frame(PING, b"subtoken")
    deliveries += deliver(chunk(CHANNEL_ID, EPOCH, 3, [with_fields(records[2]), records[3]]), group=4)
    deliveries += frame(12, b"\x80") + deliver(chunk(CHANNEL_ID, EPOCH, 5, records[4:]), group=4, index=1)
    return answers, deliveries


CONVERSATION_BYTES = tuple(len(side) for side in conversation([bytes(12 + PAYLOAD_BYTES)] * 6))


@pytest.mark.parametrize("begin", range(0, max(CONVERSATION_BYTES), 50))
def test_parses_at_every_split(begin: int) -> None:
    """Whatever arrives in two pieces is taken as if it had come in one."""
    for split in range(begin, begin + 50):

        def answer(peer: Rig, records: list[bytes], split: int = split) -> None:
            answers, deliveries = conversation(records)
            peer.publisher.send(answers[:split])
            peer.subscriber.send(deliveries[:split])
            time.sleep(0.0003)
            peer.publisher.send(answers[split:])
            peer.subscriber.send(deliveries[split:])
            assert read_exactly(peer.publisher, 16) == frame(5, b"pubtoken")
            assert read_exactly(peer.subscriber, 16) == frame(5, b"subtoken")

        with rig(named=True, crc=True, batch=3) as made:
            outcome = made.play(6, answer)
        assert good(outcome), (split, outcome)
        assert (outcome.sent, outcome.acked, outcome.deliveries, outcome.events) == (6, 6, 6, 1)
        assert (outcome.level_min, outcome.level_max) == (3, 3)


def test_parses_byte_by_byte() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        for side, data in zip((peer.publisher, peer.subscriber), conversation(records), strict=True):
            for byte in data:
                side.send(bytes([byte]))

    with rig(named=True, crc=True) as made:
        assert good(made.play(6, answer))


def message(data: bytes) -> bytes:
    """A binary message as a server sends it on a WebSocket."""
    if len(data) < 126:
        return bytes([0x82, len(data)]) + data
    width, mark = (2, 126) if len(data) < 1 << 16 else (8, 127)
    return bytes([0x82, mark]) + len(data).to_bytes(width, "big") + data


def frames_of(data: bytes) -> Iterator[bytes]:
    while data:
        size = 8 + HEADER.unpack_from(data)[0]
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("together", [1, 2, 100])
def test_frames_of_a_websocket_are_taken_at_every_split(together: int) -> None:
    size = len(conversation([bytes(12 + PAYLOAD_BYTES)] * 6)[1]) + 40
    for split in range(1, size, 3):

        def answer(peer: Rig, records: list[bytes], split: int = split) -> None:
            answers, deliveries = conversation(records)
            frames = list(frames_of(deliveries))
            messages = b"".join(message(b"".join(frames[at : at + together])) for at in range(0, len(frames), together))
            peer.publisher.send(answers)
            peer.subscriber.send(messages[:split])
            time.sleep(0.0002)
            peer.subscriber.send(messages[split:])
            assert read_exactly(peer.publisher, 16) == frame(5, b"pubtoken")
            assert read_exactly(peer.subscriber, 22) == b"\x82\x90" + bytes(4) + frame(5, b"subtoken")

        with rig(named=True, crc=True, batch=3, web=True) as made:
            outcome = made.play(6, answer)
        assert good(outcome), (split, outcome)
        assert (outcome.deliveries, outcome.events) == (6, 1)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (b"\x81\x02{}", "no whole binary message"),
        (b"\x02\x01x", "no whole binary message"),
        (b"\x82\x81xxxxx", "no whole binary message"),
        (message(frame(PING, b"the ping")[:-1]), "ends within a frame"),
    ],
)
def test_what_is_no_message_of_whole_frames_ends_the_run(wrong: bytes, why: str) -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.subscriber.send(wrong)

    with rig(web=True) as made:
        outcome = made.play(1, answer)
    assert outcome.failure is not None
    assert outcome.failure.reason == "protocol"
    assert why in outcome.failure.detail


def test_chunks_larger_than_one_read_are_checked_as_they_come() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, len(records)))
        peer.subscriber.sendall(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))

    with rig(crc=True, window=40000, batch=1000) as made:
        outcome = made.play(20000, answer)
    assert good(outcome)
    assert outcome.deliveries == 20000


# --- Faults -------------------------------------------------------------------------------------------------------


def flipped(record: bytes, at: int) -> bytes:
    return record[:at] + bytes([record[at] ^ 0x10]) + record[at + 1 :]


def play_records(change: Callable[[list[bytes]], list[bytes]]) -> Outcome:
    """Deliver ten records with a change, as chunks that are good in themselves."""

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 10))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, change(records))))

    with rig(crc=True) as made:
        return made.play(10, answer)


RECORD_FAULTS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], tuple[int, int, int, int]]] = {
    "lost in the middle": (lambda r: r[:4] + r[5:], (1, 0, 0, 0)),
    "lost at the end": (lambda r: r[:8], (2, 0, 0, 0)),
    "lost at the start": (lambda r: r[3:], (3, 0, 0, 0)),
    "duplicated": (lambda r: [*r[:5], r[4], *r[5:]], (0, 1, 0, 0)),
    "duplicated later": (lambda r: [*r, r[0]], (0, 1, 0, 0)),
    "swapped": (lambda r: [*r[:4], r[5], r[4], *r[6:]], (0, 0, 1, 0)),
    "one overtaken by three": (lambda r: [*r[:2], *r[3:6], r[2], *r[6:]], (0, 0, 1, 0)),
    "three in reverse": (lambda r: [*r[:2], r[4], r[3], r[2], *r[5:]], (0, 0, 2, 0)),
    "stamp changed": (lambda r: [*r[:4], flipped(r[4], 12), *r[5:]], (1, 0, 0, 1)),
    "time changed": (lambda r: [*r[:4], flipped(r[4], 21), *r[5:]], (1, 0, 0, 1)),
    "channel changed": (lambda r: [*r[:4], flipped(r[4], 28), *r[5:]], (1, 0, 0, 1)),
    "check changed": (lambda r: [*r[:4], flipped(r[4], 34), *r[5:]], (1, 0, 0, 1)),
    "first byte of the pattern": (lambda r: [*r[:4], flipped(r[4], 36), *r[5:]], (0, 0, 0, 1)),
    "last byte": (lambda r: [*r[:4], flipped(r[4], 12 + PAYLOAD_BYTES - 1), *r[5:]], (0, 0, 0, 1)),
    "header of one, stamp of another": (lambda r: [*r[:4], r[4][:20] + r[5][20:36] + r[4][36:], *r[5:]], (0, 0, 0, 0)),
    "shorter": (lambda r: [*r[:4], struct.pack("<I", len(r[4]) - 1) + r[4][4:-1], *r[5:]], (1, 0, 0, 1)),
    "with a flag that nobody knows": (lambda r: [*r[:4], r[4][:5] + b"\x40" + r[4][6:], *r[5:]], (1, 0, 0, 1)),
    "with a publisher past its end": (lambda r: [*r[:4], struct.pack("<IHHI", 12, 1, 0, 0), *r[5:]], (1, 0, 0, 1)),
    "with a key past its end": (lambda r: [*r[:4], struct.pack("<IHHIB", 13, 16, 0, 0, 0), *r[5:]], (1, 0, 0, 1)),
    "with headers past its end": (lambda r: [*r[:4], struct.pack("<IHHIB", 13, 32, 0, 0, 0), *r[5:]], (1, 0, 0, 1)),
    "with a key longer than it": (lambda r: [*r[:4], struct.pack("<IHHIH", 14, 16, 0, 0, 9), *r[5:]], (1, 0, 0, 1)),
    "taken out, in a form that nobody knows": (lambda r: [*r[:4], gone(7, 24), *r[5:]], (1, 0, 0, 1)),
    "taken out by the server": (
        lambda r: [*r[:4], struct.pack("<IHHIBBHI", 20, 0x8000, 0, 0, 5, 0, 0, 1), *r[5:]],
        (1, 0, 0, 1),
    ),
}


@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_finds_faults_of_records(fault: str) -> None:
    change, expected = RECORD_FAULTS[fault]
    outcome = play_records(change)
    found = outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt
    if fault == "header of one, stamp of another":
        # Both were sent at the same time or not; only then does the check see that they are two.
        assert found in ((0, 0, 0, 0), (1, 0, 0, 1))
    else:
        assert found == expected
    assert outcome.finished == (fault != "lost at the end")


def record_of(channel: int, counter: int, *, publisher: int = 0, time_ns: int = 1) -> bytes:
    """Return a record as the driver would publish it."""
    payload = payload_of(publisher, counter, time_ns, channel, PAYLOAD_BYTES)
    return struct.pack("<IHHI", 12 + len(payload), 0, 0, 0) + payload


@pytest.mark.parametrize(("channel", "publisher"), [(1, 0), (2, 0), (2**32 - 1, 0), (0, 1), (0, 65535)])
def test_a_payload_of_another_audience_or_publisher_is_corrupt(channel: int, publisher: int) -> None:
    """Its stamp is whole, but the subscriber has no such channel, or nobody such a number."""

    def answer(peer: Rig, _: list[bytes]) -> None:
        peer.publisher.send(published(1, 1))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, [record_of(channel, 0, publisher=publisher)])))

    with rig(names=[b"a.b", b"a.c"], audiences=2) as made:
        outcome = made.play(1, answer)
    assert (outcome.corrupt, outcome.lost, outcome.misplaced) == (1, 1, 0)


@pytest.mark.parametrize("times_ns", [(2**63, 2**63 + 1, 1), (2**63, 1, 2**63 + 1)])
def test_a_message_from_the_future_has_no_latency(times_ns: tuple[int, int, int]) -> None:
    def answer(peer: Rig, _: list[bytes]) -> None:
        records = [record_of(0, at, time_ns=time_ns) for at, time_ns in enumerate(times_ns)]
        peer.publisher.send(published(1, 3))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))

    with rig() as made:
        assert good(made.play(3, answer, patience_s=2))
        assert made.driver.latency.count == 1


def test_early_chunks_have_no_place_on_the_bus() -> None:
    """They come before their group's number is known to follow the one before it."""

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 3))
        for number, (group, flags) in enumerate(((9, 0), (3, 2), (10, 0))):
            chunk_bytes = chunk(CHANNEL_ID, EPOCH, 1 + number, [records[number]])
            peer.subscriber.send(deliver(chunk_bytes, group=group, flags=flags))

    with rig() as made:
        assert good(made.play(3, answer, patience_s=2))


def retold(made: bytes, **fields: int) -> bytes:
    """Change fields of a chunk's header and give it the CRC that goes with them."""
    names = ("channel", "epoch", "first", "count", "flags", "time", "expiry")
    values = dict(zip(names, CHUNK_TAIL.unpack_from(made, 8), strict=True)) | fields
    head = CHUNK_TAIL.pack(*values.values())
    return made[:4] + struct.pack("<I", crc32c_of(head + made[56:])) + head + made[56:]


CHUNK_FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "sequence skips": lambda made: deliver(retold(made, first=8)),
    "sequence repeats": lambda made: deliver(retold(made, first=5)),
    "epoch changes": lambda made: deliver(retold(made, epoch=EPOCH + 1)),
    "epoch is 0": lambda made: deliver(retold(made, epoch=0)),
    "bus position goes back": lambda made: deliver(made, group=1),
    "bus position repeats": lambda made: deliver(made, group=2),
    "a name that was not asked for": lambda made: deliver(made, name=b"a.b"),
}


@pytest.mark.parametrize("fault", CHUNK_FAULTS)
def test_finds_chunks_that_do_not_follow(fault: str) -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 10))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records[:5]), group=2))
        peer.subscriber.send(CHUNK_FAULTS[fault](chunk(CHANNEL_ID, EPOCH, 6, records[5:])))

    with rig(crc=True) as made:
        outcome = made.play(10, answer)
    assert outcome.misplaced == 1
    assert (outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", [None, b"a.c"])
def test_what_is_to_be_named_must_be(name: bytes | None) -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 2))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records), name=name))

    with rig(named=True) as made:
        assert made.play(2, answer).misplaced == 1


def test_finds_a_wrong_crc_only_when_asked() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        made = chunk(CHANNEL_ID, EPOCH, 1, records)
        peer.publisher.send(published(1, 3))
        peer.subscriber.send(deliver(made[:4] + bytes([made[4] ^ 1]) + made[5:]))

    for crc in (True, False):
        with rig(crc=crc) as made:
            assert made.play(3, answer).corrupt == crc


def huge_deliver(records: list[bytes]) -> bytes:
    """The head of a DELIVER whose sizes agree with each other, and not with WELCOME."""
    made = deliver(chunk(CHANNEL_ID, EPOCH, 1, records))
    size = 1 << 22
    return struct.pack("<I", size) + made[4:24] + struct.pack("<I", size - 16) + made[28:]


def gone(run: int, size: int = 20) -> bytes:
    """A record that stands for `run` sequences which the server took out."""
    return struct.pack("<IHHIBBHI", size, 0x8000, 0, 0, 5, 0, 0, run) + bytes(size - 20)


ILLEGAL: dict[str, Callable[[list[bytes]], bytes]] = {
    "fewer records than counted": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, r, count=5)),
    "more records than counted": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, r, count=3)),
    "no records": lambda _: deliver(chunk(CHANNEL_ID, EPOCH, 1, [], count=1)),
    "count 0": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, r, count=0)),
    "channel 0": lambda r: deliver(chunk(0, EPOCH, 1, r)),
    "chunk flags": lambda r: deliver(retold(chunk(CHANNEL_ID, EPOCH, 1, r), flags=1)),
    "another subscription": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, r)).replace(
        struct.pack("<II", 1, 0), struct.pack("<II", 2, 0), 1
    ),
    "chunk longer than its frame": lambda r: deliver(b"\xff\xff\0\0" + chunk(CHANNEL_ID, EPOCH, 1, r)[4:]),
    "record of 11 bytes": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, [struct.pack("<IHHI", 11, 0, 0, 0), *r])),
    "record past its chunk": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, [*r, struct.pack("<IHHI", 50, 0, 0, 0)])),
    "tail too short for a record": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, [*r, b"\0" * 11])),
    "frame larger than agreed": lambda _: HEADER.pack(1 << 22, 12, 0, 0),
    "DELIVER larger than agreed": huge_deliver,
    "record larger than a frame": lambda r: deliver(
        chunk(CHANNEL_ID, EPOCH, 1, [struct.pack("<IHHI", 1 << 22, 0, 0, 0), *r])
    ),
    "gone record of no sequence": lambda r: deliver(chunk(CHANNEL_ID, EPOCH, 1, [*r[:2], gone(0), *r[2:]])),
    "PING without its token": lambda _: frame(PING, b"short"),
    "frame that a client sends": lambda _: frame(16, b""),
    "PUBLISHED to a subscriber": lambda _: published(1, 1),
}


@pytest.mark.parametrize("what", ILLEGAL)
def test_illegal_frames_end_the_run(what: str) -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 4))
        peer.subscriber.send(ILLEGAL[what](records))

    with rig() as made:
        outcome = made.play(4, answer)
    assert outcome.failure is not None
    assert outcome.failure.reason == "protocol"
    assert outcome.failure.connection == 1
    assert not outcome.finished


def test_channels_with_numbers_that_meet_are_told_apart() -> None:
    """Two channels have four lanes, and their numbers lead to the same one."""

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 2))
        for number, record in enumerate(records):
            peer.subscriber.send(deliver(chunk(1 + 4 * number, EPOCH, 1, [record])))

    with rig(names=[b"a.0", b"a.1"]) as made:
        assert good(made.play(2, answer, patience_s=2))


def test_more_channels_than_asked_for_end_the_run() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 3))
        for number, record in enumerate(records):
            peer.subscriber.send(deliver(chunk(CHANNEL_ID + number, EPOCH, 1, [record])))

    with rig() as made:
        outcome = made.play(3, answer)
    assert outcome.failure is not None
    assert "more channels" in outcome.failure.detail


ANSWER_FAULTS = {
    "answers nothing": (b"", None),
    "answers too many": (published(1, 5), "protocol"),
    "answers number 0": (published(0, 1), "protocol"),
    "answers what was not sent": (published(5, 1), "protocol"),
    "answers one twice": (published(1, 3) + published(3, 1), "protocol"),
    "a piece of an entry": (frame(17, bytes(39)), "protocol"),
    "refuses": (frame(ERROR, b"some body"), "error"),
    "refuses without a word": (frame(ERROR, b""), "error"),
    "hands a message to a publisher": (deliver(chunk(CHANNEL_ID, EPOCH, 1, [bytes(12 + PAYLOAD_BYTES)])), "protocol"),
    "goes away": (frame(6, b"\x81\xa7seconds\x01"), "going_away"),
}


@pytest.mark.parametrize("fault", ANSWER_FAULTS)
def test_finds_faults_of_answers(fault: str) -> None:
    sent, reason = ANSWER_FAULTS[fault]

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))
        peer.publisher.send(sent)

    with rig() as made:
        outcome = made.play(4, answer)
    assert not outcome.finished
    assert (outcome.failure.reason if outcome.failure else None) == reason
    if outcome.failure and reason == "error":
        assert frame(ERROR, outcome.failure.body) == sent


class Owners:
    """A driver whose publishers own their channels, and the server's ends of their sockets."""

    def __init__(self, publishers: int, channels: int, head: int = 0, **options: Any) -> None:
        self.pairs = [socket.socketpair() for _ in range(publishers)]
        names = [b"a.%d" % number for number in range(channels)]
        self.driver = Driver(names, publishers=publishers, payload_bytes=PAYLOAD_BYTES, owned=True, **options)
        for _, theirs in self.pairs:
            theirs.setblocking(False)
            self.driver.add_publisher(theirs.fileno(), head=head)

    def close(self) -> None:
        for pair in self.pairs:
            for each in pair:
                each.close()

    def frames(self, publisher: int, count: int) -> list[tuple[int, int]]:
        """Read so many PUBLISH frames of a publisher: the channel's number and the channel in the stamp of each."""
        found = []
        for _ in range(count):
            size, _, _, _ = HEADER.unpack(read_exactly(self.pairs[publisher][0], 8))
            body = read_exactly(self.pairs[publisher][0], size)
            found.append((struct.unpack_from("<I", body)[0], struct.unpack_from("<I", body, 16 + 12 + 16)[0]))
        return found


@pytest.fixture
def owners() -> Iterator[Callable[..., Owners]]:
    made: list[Owners] = []

    def make(*arguments: int, **options: Any) -> Owners:
        made.append(Owners(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("random", [False, True])
def test_owners_publish_to_their_own_channels(owners: Callable[..., Owners], random: bool) -> None:
    made = owners(2, 7, random=random)
    made.driver.run(messages=400, patience_s=0)
    for publisher, channels in ((0, {0, 2, 4, 6}), (1, {1, 3, 5})):
        frames = made.frames(publisher, 200)
        assert {channel for _, channel in frames} == channels
        assert all(channel == number * 2 + publisher for number, channel in frames)
        turns = [number for number, _ in frames]
        assert (turns == [at % len(channels) for at in range(200)]) is not random


@pytest.mark.parametrize(
    ("head", "firsts", "unordered"),
    [(0, (1, 1, 2, 2), 0), (0, (8, 1, 9, 2), 0), (0, (1, 1, 1, 2), 1), (4, (5, 5, 6, 6), 0), (4, (4, 5, 6, 7), 3)],
)
def test_answers_of_an_owned_channel_follow_one_another(
    owners: Callable[..., Owners], head: int, firsts: tuple[int, ...], unordered: int
) -> None:
    made = owners(1, 2, head=head)
    outcome = made.driver.run(messages=4, patience_s=0)
    assert not outcome.finished
    for number, first in enumerate(firsts, 1):
        made.pairs[0][0].send(published(number, 1, first=first, level=3))
    outcome = made.driver.run()
    assert outcome.finished
    assert (outcome.unordered, made.driver.answers.count, made.driver.acked) == (unordered, 4, 4)


def test_an_answer_that_says_duplicate_is_counted() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))
        peer.publisher.send(published(1, 1, level=2) + published(2, 2, level=3, flags=1))

    with rig() as made:
        outcome = made.play(3, answer)
    assert (outcome.acked_twice, outcome.level_min, outcome.level_max) == (2, 2, 3)


def test_a_closed_connection_ends_the_run() -> None:
    def answer(peer: Rig, _: list[bytes]) -> None:
        peer.subscriber.close()

    with rig() as made:
        outcome = made.play(1, answer)
    assert outcome.failure is not None
    assert outcome.failure.reason == "closed"


def test_only_the_first_thing_that_goes_wrong_is_told() -> None:
    """A chunk that lies about its records is granted for all the same, to a server that has gone."""
    with rig(credit_bytes=8) as made:
        made.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, [record_of(0, 0)], count=2)))
        made.subscriber.close()
        outcome = made.driver.run(messages=1, patience_s=2)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.connection) == ("protocol", 1)


def test_a_server_that_has_gone_is_a_failure_of_the_socket() -> None:
    with publisher_alone() as (driver, theirs):
        theirs.close()
        outcome = driver.run(messages=1, patience_s=2)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.detail) == ("socket", "send: Broken pipe")


def test_a_server_that_throws_away_what_it_got_is_a_failure_of_the_socket() -> None:
    """It closes with bytes unread, which the other end is told as a reset."""

    def leave(theirs: socket.socket) -> None:
        select.select([theirs], [], [])
        theirs.close()

    with publisher_alone() as (driver, theirs):
        thread = threading.Thread(target=leave, args=(theirs,))
        thread.start()
        outcome = driver.run(messages=1, patience_s=2)
        thread.join()
    assert outcome.failure is not None
    assert outcome.failure.reason == "socket"
    assert outcome.failure.detail.startswith("recv: Connection reset")


def test_a_server_that_reads_nothing_is_not_answered_for_ever() -> None:
    """PINGs and portions of credit past what socket and buffer hold: the run goes on, and what was sent is whole."""
    count, chunk_bytes = 6_000, 56 + 12 + PAYLOAD_BYTES

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 1))
        peer.subscriber.sendall(frame(PING, b"the ping") * count)
        peer.subscriber.sendall(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))
        assert len(records) == 1

    with rig(credit_bytes=8 * chunk_bytes) as made:
        outcome = made.play(1, answer, patience_s=2)
        made.subscriber.setblocking(False)
        answers = b"".join(iter(lambda: received(made.subscriber), b""))
    assert good(outcome)
    pong = frame(5, b"the ping")
    assert answers == (pong * count)[: len(answers)]
    assert 0 < len(answers) < count * len(pong)


def received(reader: socket.socket) -> bytes:
    """Return what can be read now."""
    try:
        return reader.recv(1 << 20)
    except BlockingIOError:
        return b""


# --- Flow ---------------------------------------------------------------------------------------------------------


def test_never_publishes_past_its_window() -> None:
    """A reader that is not handed anything holds the publisher back, however well it is answered."""

    def answer(peer: Rig, records: list[bytes]) -> None:
        assert len(records) == 64
        peer.publisher.send(published(1, 64))
        peer.publisher.setblocking(False)
        time.sleep(0.02)
        with pytest.raises(BlockingIOError):
            peer.publisher.recv(1)
        peer.publisher.setblocking(True)
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))
        records = peer.read_records(36)
        peer.publisher.send(published(65, 36, first=65))
        peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 65, records)))

    with rig(window=64) as made:
        assert good(made.play(64, answer, messages=100, patience_s=2))


def test_publishers_share_the_window_of_an_audience() -> None:
    """Two publishers to one channel, of which nobody reads: together they stop at the window."""
    with ExitStack() as stack:
        pairs = [tuple(stack.enter_context(each) for each in socket.socketpair()) for _ in range(3)]
        driver = Driver([b"a.b"], publishers=3, payload_bytes=PAYLOAD_BYTES, window=8, batch=2)
        for _, ours in pairs:
            ours.setblocking(False)
        driver.add_publisher(pairs[0][1].fileno())
        driver.add_publisher(pairs[1][1].fileno())
        driver.add_subscriber(pairs[2][1].fileno(), credit_bytes=1 << 20)
        with pytest.raises(ValueError, match="before subscribers"):
            driver.add_publisher(pairs[2][1].fileno())
        for theirs, _ in pairs[:2]:
            theirs.send(published(1, 4))
        outcome = driver.run(messages=100, patience_s=PATIENCE_S)
    assert not outcome.finished
    assert (outcome.sent, outcome.lost) == (8, 8)


def test_grants_credit_by_eighths() -> None:
    granted: list[int] = []

    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(published(1, 40))
        for number, record in enumerate(records):
            peer.subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, number + 1, [record])))
        for _ in range(4):
            size, kind, _, _ = HEADER.unpack(read_exactly(peer.subscriber, 8))
            subscription, reserved, credit = struct.unpack("<IIQ", read_exactly(peer.subscriber, size))
            assert (kind, subscription, reserved) == (20, 1, 0)
            granted.append(credit)

    chunk_bytes = 56 + 12 + PAYLOAD_BYTES
    with rig(credit_bytes=80 * chunk_bytes) as made:
        assert good(made.play(40, answer))
    assert granted == [10 * chunk_bytes] * 4


def test_open_loop_keeps_its_schedule() -> None:
    """Messages are stamped with the tick in which they were due, a tick's share at a time, and the driver sleeps."""
    stamps: list[int] = []

    def answer(peer: Rig, records: list[bytes]) -> None:
        stamps.extend(struct.unpack_from("<Q", record, 20)[0] for record in records)
        peer.publisher.send(published(1, len(records)))
        peer.subscriber.sendall(deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))

    with rig(window=100000) as made:
        outcome = made.play(5000, answer, rate=25_000)
    assert good(outcome)
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    assert set(gaps) == {0, 100_000}
    assert stamps[-1] - stamps[0] == 5000 * 1_000_000_000 // 25_000 - 100_000
    assert made.driver.latency.count == 5000
    assert outcome.cpu_s < 0.8 * outcome.seconds


def test_a_slow_schedule_is_not_taken_for_a_server_that_owes() -> None:
    """Nothing is owed before a message is due, which is later than patience would last."""
    with rig() as made:
        thread = threading.Thread(target=echo, args=(made,))
        thread.start()
        outcome = made.driver.run(messages=1, rate=1, patience_s=0.4)
        made.ours[0].shutdown(socket.SHUT_WR)
        thread.join()
    assert good(outcome)
    assert outcome.sent == 1


def test_seconds_end_a_schedule() -> None:
    with rig() as made:
        thread = threading.Thread(target=echo, args=(made,))
        thread.start()
        outcome = made.driver.run(seconds=0.2, rate=100, patience_s=2)
        made.ours[0].shutdown(socket.SHUT_WR)
        thread.join()
    assert good(outcome)
    assert 0 < outcome.sent <= 20


def test_seconds_end_the_run() -> None:
    with rig() as made:
        thread = threading.Thread(target=echo, args=(made,))
        thread.start()
        outcome = made.driver.run(seconds=0.3, patience_s=2)
        made.ours[0].shutdown(socket.SHUT_WR)
        thread.join()
    assert good(outcome)
    assert 0.3 <= outcome.seconds < 1.5
    assert outcome.deliveries == outcome.sent > 0


def echo(peer: Rig) -> None:
    """Answer and deliver whatever is published until the publisher closes."""
    data, sequence = b"", 1
    while piece := peer.publisher.recv(1 << 16):
        data += piece
        records: list[bytes] = []
        while len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[:4], "little"):
            size = int.from_bytes(data[:4], "little")
            records += split_records(data[24 : 8 + size])
            data = data[8 + size :]
        if records:
            peer.publisher.sendall(published(sequence, len(records), first=sequence))
            peer.subscriber.sendall(deliver(chunk(CHANNEL_ID, EPOCH, sequence, records)))
            sequence += len(records)


@contextmanager
def publisher_alone() -> Iterator[tuple[Driver, socket.socket]]:
    """Yield a driver with one publisher, and the server's end of its socket."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        driver = Driver([b"a.b"], publishers=1, payload_bytes=PAYLOAD_BYTES, crc=True)
        driver.add_publisher(ours.fileno())
        yield driver, theirs


def test_reads_later_what_it_published_before() -> None:
    with publisher_alone() as (driver, publisher), ExitStack() as stack:
        publisher.send(published(1, 8))
        written = driver.run(messages=8, patience_s=2)
        assert (written.finished, written.sent, written.acked) == (True, 8, 8)
        data = read_exactly(publisher, 8 * (8 + 16 + 12 + PAYLOAD_BYTES))
        records = [data[at + 24 : at + 24 + 12 + PAYLOAD_BYTES] for at in range(0, len(data), 36 + PAYLOAD_BYTES)]
        for delivered, lost in ((records, 0), (records[:-1], 1)):
            subscriber, ours = (stack.enter_context(each) for each in socket.socketpair())
            ours.setblocking(False)
            driver.add_subscriber(ours.fileno(), credit_bytes=1 << 20)
            subscriber.send(deliver(chunk(CHANNEL_ID, EPOCH, 1, delivered)))
            outcome = driver.run(patience_s=PATIENCE_S)
            assert (outcome.sent, outcome.deliveries, outcome.lost) == (0, len(delivered), lost)
            assert outcome.finished == (not lost)


def told(event: str) -> bytes:
    """Return an EVENT frame."""
    return encode_event(1, event, "", {"group": 5, "since_us": 7})


def test_who_is_halted_reads_nothing_and_is_owed_everything() -> None:
    with rig() as peer:
        peer.driver.halt(0)

        def answer(_: Rig, records: list[bytes]) -> None:
            deliveries = [chunk(CHANNEL_ID, EPOCH, 1 + at, [record]) for at, record in enumerate(records)]
            peer.publisher.sendall(published(1, 3))
            peer.subscriber.sendall(told("lagging") + b"".join(map(deliver, deliveries)) + told("live"))

        halted = peer.play(3, answer)
        assert (good(halted), halted.deliveries, halted.events, peer.driver.owed) == (True, 0, 0, 3)
        assert received(peer.subscriber)[4] == PONG
        peer.driver.read_on()
        after = peer.driver.run(patience_s=PATIENCE_S)
        assert (good(after), after.deliveries, peer.driver.owed) == (True, 3, 0)
        assert (after.events, after.lagging, after.live) == (2, peer.driver.lagging, peer.driver.live) == (2, 1, 1)
        assert peer.driver.latency.count == 3


def test_what_somebody_misses_who_was_halted_is_lost() -> None:
    with rig() as peer:
        peer.driver.halt(0)

        def answer(_: Rig, records: list[bytes]) -> None:
            peer.publisher.sendall(published(1, 3))
            peer.subscriber.sendall(told("dropped") + deliver(chunk(CHANNEL_ID, EPOCH, 1, records[:2])))

        assert peer.play(3, answer).lost == 0
        peer.driver.read_on()
        after = peer.driver.run(patience_s=0.1)
        assert (after.finished, after.lost, after.lagging, after.live) == (False, 1, 0, 0)


def test_publishers_do_not_wait_for_who_is_not_steady() -> None:
    with rig(window=4, batch=1, steady=False) as peer:

        def answer(_: Rig, records: list[bytes]) -> None:
            peer.publisher.sendall(published(1, 4))
            peer.read_records(4)
            peer.publisher.sendall(published(5, 4, first=5))
            peer.driver.halt(0)

        outcome = peer.play(4, answer, messages=8)
        assert (outcome.finished, outcome.sent, outcome.lost) == (True, 8, 0)
        assert peer.driver.latency.count == 0


def test_an_exception_of_the_caller_cuts_a_run_short() -> None:
    def stop() -> None:
        raise RuntimeError("enough")

    with publisher_alone() as (driver, _), pytest.raises(RuntimeError, match="enough"):
        driver.run(messages=1, on_slice=stop)


def test_a_signal_cuts_a_run_short() -> None:
    def stop(*_: object) -> None:
        raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with publisher_alone() as (driver, _), pytest.raises(InterruptedError, match="enough"):
            driver.run(messages=1)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_refuses_a_publisher_too_many() -> None:
    with publisher_alone() as (driver, other), pytest.raises(ValueError, match="announced"):
        driver.add_publisher(other.fileno())


def test_an_answer_to_a_ping_that_nobody_sent_is_no_fault() -> None:
    def answer(peer: Rig, records: list[bytes]) -> None:
        peer.publisher.send(frame(5, b"a pong  ") + published(1, 1))
        peer.subscriber.send(frame(5, b"a pong  ") + deliver(chunk(CHANNEL_ID, EPOCH, 1, records)))

    with rig() as made:
        assert good(made.play(1, answer, patience_s=2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the poller needs no descriptor")
@pytest.mark.parametrize("left", [0, 1])
def test_without_descriptors_there_is_no_driver(left: int) -> None:
    """Neither without one for the poller nor without one for its timer; and none is kept."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                Driver([b"a"], publishers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    Driver([b"a"], publishers=1)


def test_refuses_what_is_no_socket() -> None:
    driver = Driver([b"a"], publishers=1)
    with pytest.raises(OSError, match=r"[Ff]ile descriptor"):
        driver.add_publisher(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"payload_bytes": 23},
        {"batch": 0},
        {"batch": 65536, "window": 1 << 20},
        {"batch": 100, "window": 399},
        {"audiences": 0},
        {"audiences": 3},
        {"publishers": 65537},
        {"publishers": 3, "owned": True},
        {"publishers": 0, "owned": True},
        {"batch": 1000, "payload_bytes": 1 << 20},
    ],
)
def test_refuses_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"got|records"):
        Driver([b"a", b"b"], **{"publishers": 1, **options})  # type: ignore[arg-type]


def test_a_driver_is_prepared_once() -> None:
    driver = Driver([b"a"], publishers=1)
    with pytest.raises(ValueError, match="once"):
        driver.__init__([b"a"], publishers=1)


# --- The whole command against the reference server ---------------------------------------------------------------


def bench(server: Server, path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `broker bench` against a server, and return its exit status and its JSON."""
    status = main(["bench", *arguments, "--url", server.url, "--json", str(path / "result.json")])
    result: dict[str, Any] = json.loads((path / "result.json").read_text())
    return status, result


@pytest.mark.parametrize(
    "arguments",
    [
        ("pubsub", "--messages", "500"),
        ("pubsub", "--messages", "500", "--publishers", "3", "--subscribers", "2", "--channels", "4", "--batch", "7"),
        ("pubsub", "--messages", "300", "--payload", "24", "--pattern", "--channels", "5"),
        ("pubsub", "--messages", "20", "--payload", "100000", "--batch", "3"),
        ("fanout", "--messages", "100", "--subscribers", "20"),
        ("many", "--messages", "400", "--publishers", "4", "--channels", "12", "--subscribers", "3"),
        ("many", "--messages", "400", "--publishers", "4", "--channels", "12", "--subscribers", "5", "--pattern"),
        ("latency", "--rate", "1000", "--messages", "200"),
        ("replay", "--messages", "500", "--batch", "20"),
        ("idle", "--subscribers", "10", "--seconds", "0.1"),
    ],
    ids=" ".join,
)
def test_works_are_right_with_a_right_server(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Server(Faults(level=3)) as server:
        status, result = bench(server, tmp_path, *arguments, "--crc")
    assert status == 0, result["extra"]
    expected = int(arguments[arguments.index("--messages") + 1]) if "--messages" in arguments else 0
    assert result["messages"] == expected
    assert server.records_in == expected
    assert (result["lost"], result["duplicated"], result["reordered"], result["extra"]["corrupt"]) == (0, 0, 0, 0)


SERVER_FAULTS: dict[str, Callable[[int, list[bytes]], list[bytes]]] = {
    "lost": lambda number, records: [] if number == 5 else records,
    "duplicated": lambda number, records: records * 2 if number == 5 else records,
    "corrupt": lambda number, records: [flipped(record, 60) for record in records] if number == 5 else records,
}


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_faults_of_a_server_are_the_exit_status(tmp_path: Path, fault: str) -> None:
    with Server(Faults(records=SERVER_FAULTS[fault], level=3)) as server:
        status, result = bench(server, tmp_path, "pubsub", "--messages", "50")
    assert status == 1
    counted = {name: result[name] for name in ("lost", "duplicated", "reordered")}
    counted["corrupt"] = result["extra"]["corrupt"]
    assert counted == {**dict.fromkeys(counted, 0), fault: 1}


def test_messages_in_another_order_are_the_exit_status(tmp_path: Path) -> None:
    with Server(Faults(records=lambda _, records: records[::-1], level=3)) as server:
        status, result = bench(server, tmp_path, "pubsub", "--messages", "50", "--batch", "2")
    assert (status, result["reordered"], result["lost"]) == (1, 25, 0)


def test_a_refused_publish_is_the_exit_status(tmp_path: Path) -> None:
    refusal = {"code": 1002, "name": "STORAGE_FULL", "detail": "no room", "hint": "make some"}
    with Server(Faults(publish=lambda number: refusal if number == 5 else None)) as server:
        status, result = bench(server, tmp_path, "pubsub", "--messages", "50")
    assert status == 1
    assert "STORAGE_FULL" in result["extra"]["errors"][0]
    assert "make some" in result["extra"]["errors"][0]


LAGGING_WORKS = {
    "slow": ("--subscribers", "6", "--slow", "4", "--rate", "1000", "--seconds", "0.2"),
    "catchup": ("--subscribers", "6", "--messages", "50", "--rate", "1000", "--seconds", "0.2"),
}


@pytest.mark.parametrize("work", LAGGING_WORKS)
def test_works_for_those_behind_are_right_with_a_right_server(tmp_path: Path, work: str) -> None:
    with Server(Faults(level=3)) as server:
        status, result = bench(server, tmp_path, work, *LAGGING_WORKS[work], "--crc")
    assert (status, result["lost"], result["duplicated"], result["reordered"]) == (0, 0, 0, 0), result["extra"]


@pytest.mark.parametrize("fault", SERVER_FAULTS)
@pytest.mark.parametrize("work", LAGGING_WORKS)
def test_a_fault_is_found_by_each_of_those_behind(tmp_path: Path, work: str, fault: str) -> None:
    # Of `slow` before the 200 that are published first the others are alone, and then everybody reads 20.
    number = {"slow": 300, "catchup": 20}[work]
    change = SERVER_FAULTS[fault]

    def fail(at: int, records: list[bytes]) -> list[bytes]:
        return change(5, records) if at == number else records

    with Server(Faults(records=fail, level=3)) as server:
        status, result = bench(server, tmp_path, work, *LAGGING_WORKS[work])
    counted = {name: result[name] for name in ("lost", "duplicated", "reordered")}
    counted["corrupt"] = result["extra"]["corrupt"]
    assert status == 1
    assert counted == {**dict.fromkeys(counted, 0), fault: 6}


def test_a_fault_while_nobody_is_slow_yet_is_the_exit_status(tmp_path: Path) -> None:
    with Server(Faults(records=SERVER_FAULTS["lost"], level=3)) as server:
        status, result = bench(server, tmp_path, "slow", *LAGGING_WORKS["slow"])
    assert status == 1
    assert any("alone: lost 2" in each for each in result["extra"]["errors"])


def test_another_durability_names_the_profile_that_lacks(tmp_path: Path) -> None:
    with Server(Faults(level=1)) as server:
        status, result = bench(server, tmp_path, "pubsub", "--messages", "50", "--durability", "accepted")
    assert status == 1
    assert 'pattern = "bench.a.>" durability = "accepted"' in result["extra"]["errors"][0]
