"""What a bus asks and replies, without a connection: frames, numbers, and who is told what."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from broker.model.errors import BrokerError, error
from broker.remote import asking
from broker.remote.asking import Asking, read_reply_to
from broker.wire import control
from broker.wire.kinds import Kind, PublishFlag
from broker_native.messages import FrameReader
from tests.reference.frames import DELIVER, DELIVER_HEADER, Record, build_frame, build_record, frames_of
from tests.reference.groups import Chunk, build_chunk

NAME = "$reply." + "5" * 32
LIMITS = control.Limits(1 << 20, 1000, 200, 10, 10)
WELCOME = control.Welcome("server", 1, bytes(16), 0, LIMITS, 15.0, NAME)


class Carrier:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.writable = True
        self.sent = b""
        self.reader = FrameReader(error, 1 << 20)

    def send(self, frame: Any) -> None:
        self.sent += frame

    def add_route(self, number: int, target: object, literal: str | None) -> None:
        self.reader.add_route(number, target, literal)

    def take(self) -> list[tuple[int, control.Named, list[Record]]]:
        """Return the frames that were sent: flags, head and records."""
        frames, self.sent = frames_of(self.sent), b""
        found = []
        for frame in frames:
            assert frame.kind == Kind.PUBLISH
            head = control.decode_named(frame.body)
            chunk = build_chunk(Chunk(1, 1, 1, head.count, frame.body[head.at :]))
            [batch] = self.reader.chunks(chunk, "x")
            found.append((frame.flags, head, [(message.payload, message.headers) for message in batch]))
        return found  # type: ignore[return-value]

    def hear(self, first: int, *payloads: bytes) -> None:
        """Have replies come."""
        body = b"".join(build_record(Record(payload)) for payload in payloads)
        chunk = build_chunk(Chunk(0, 0, first, len(payloads), body))
        for target, batch in self.reader.feed(build_frame(DELIVER, DELIVER_HEADER.pack(0, 0, 0) + chunk)):
            target.on_batch(batch)


class Answer:
    """Keeps what becomes of a request."""

    def __init__(self) -> None:
        self.result: Any = None
        self.failure: BrokerError | None = None

    def done(self) -> bool:
        return self.result is not None or self.failure is not None

    def set_result(self, fields: Any) -> None:
        self.result = fields

    def set_exception(self, failure: BrokerError) -> None:
        self.failure = failure


class Bus:
    """What is asked, over one carrier."""

    def __init__(self, *, welcome: control.Welcome = WELCOME) -> None:
        self.kicks = 0
        self.asking = Asking(self.kick)
        self.carrier = Carrier()
        self.asking.connected(self.carrier, welcome)  # type: ignore[arg-type]

    def kick(self) -> None:
        self.kicks += 1

    def ask(self, channel: str = "e.x", payload: bytes = b"", **headers: object) -> Answer:
        answer = Answer()
        self.asking.ask(channel, payload, headers, answer)
        return answer

    def pump(self) -> list[Any]:
        self.asking.pump(self.carrier)  # type: ignore[arg-type]
        return self.carrier.take()


def message(reply_to: object) -> Any:
    headers = msgpack.packb({} if reply_to is None else {"reply-to": reply_to})
    body = build_record(Record(b"asked", headers=headers))
    [batch] = FrameReader(error, 1 << 20).chunks(build_chunk(Chunk(1, 1, 9, 1, body)), "e.x")
    return next(iter(batch))


def test_what_is_asked_of_one_channel_leaves_as_one_frame_and_with_one_kick() -> None:
    bus = Bus()
    for payload in (b"1", b"2"):
        bus.ask("e.x", payload)
    bus.ask("e.y", b"3", who="me")
    assert bus.kicks == 1
    first, second = bus.pump()
    assert first[:2] == (PublishFlag.ASK, control.Named(b"e.x", 1, 2, 17 + 3))
    assert first[2] == [(b"1", {"reply-to": f"{NAME}.1"}), (b"2", {"reply-to": f"{NAME}.2"})]
    assert second[:2] == (PublishFlag.ASK, control.Named(b"e.y", 3, 1, 17 + 3))
    assert second[2] == [(b"3", {"who": "me", "reply-to": f"{NAME}.3"})]
    assert bus.pump() == []
    bus.ask()
    assert bus.kicks == 2


def test_a_frame_closes_when_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus()
    for _ in range(200):
        bus.ask("e.x", bytes(1000))
    assert sum(head.count for _, head, _ in bus.pump()) == 200
    monkeypatch.setattr(asking, "PUBLISH_COUNT_MAX", 3)
    for _ in range(7):
        bus.ask()
    assert [head.count for _, head, _ in bus.pump()] == [3, 3, 1]


def test_replies_find_their_requests_in_any_order() -> None:
    bus = Bus()
    answers = [bus.ask() for _ in range(4)]
    bus.carrier.hear(3, b"three", b"four")
    bus.carrier.hear(1, b"one")
    assert [answer.result and answer.result.payload for answer in answers] == [b"one", None, b"three", b"four"]
    bus.carrier.hear(1, b"again", b"two", b"late", b"late")
    assert (answers[1].result.payload, bus.asking.late) == (b"two", 3)
    bus.carrier.hear(77, b"of nothing")
    assert bus.asking.late == 4


def test_nobody_waits_any_more() -> None:
    bus = Bus()
    forgotten, given_up = bus.ask(), bus.ask()
    bus.asking.forget(1)
    given_up.failure = error("TIMEOUT", "x")
    bus.carrier.hear(1, b"", b"")
    assert (forgotten.done(), bus.asking.late) == (False, 2)
    bus.asking.on_refused(1, 2, error("NO_RESPONDERS", "x"))
    assert not forgotten.done()


def test_a_refusal_is_each_requests_own() -> None:
    bus = Bus()
    answers = [bus.ask() for _ in range(3)]
    bus.asking.on_refused(1, 2, error("NO_RESPONDERS", "nobody"))
    failures = [answer.failure for answer in answers]
    assert [failure and failure.name for failure in failures] == ["NO_RESPONDERS", "NO_RESPONDERS", None]
    assert failures[0] is not failures[1]
    bus.asking.on_refused(2**63, 2**32 - 1, error("NO_RESPONDERS", "a server without measure"))


def test_a_request_ends_with_its_connection_and_a_reply_does_not() -> None:
    bus = Bus()
    answer = bus.ask()
    bus.asking.reply(message(f"{NAME}.7"), b"seven", None)
    bus.asking.lost(error("CONNECTION_LOST", "gone"))
    assert answer.failure is not None
    assert answer.failure.name == "CONNECTION_LOST"
    other = control.Welcome("server", 1, bytes(16), 0, LIMITS, 15.0, "$reply.other")
    bus.asking.connected(bus.carrier, other)  # type: ignore[arg-type]
    bus.ask()
    asked, replied = bus.pump()
    assert asked[2] == [(b"", {"reply-to": "$reply.other.2"})]
    assert replied[:2] == (PublishFlag.REPLY, control.Named(NAME.encode(), 7, 1, 17 + len(NAME)))
    assert replied[2] == [(b"seven", {})]


def test_replies_to_consecutive_numbers_share_a_frame() -> None:
    bus = Bus()
    for number in (1, 2, 3, 5, 6, 4):
        bus.asking.reply(message(f"{NAME}.{number}"), b"%d" % number, {"n": number})
    assert [(head.number, head.count) for _, head, _ in bus.pump()] == [(1, 3), (5, 2), (4, 1)]


def test_a_carrier_that_takes_nothing_keeps_it_waiting() -> None:
    bus = Bus()
    bus.carrier.writable = False
    bus.ask()
    assert bus.pump() == []
    bus.carrier.writable = True
    assert len(bus.pump()) == 1


def test_what_is_too_much_is_refused_and_leaves_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "UNSENT_BYTES_MAX", 1500)
    bus = Bus()
    bus.ask(payload=bytes(1000))
    for payload, headers, name in (
        (bytes(1000), {}, "BUSY"),
        (bytes(1001), {}, "PAYLOAD_TOO_LARGE"),
        (b"", {"x": "y" * 200}, "HEADERS_TOO_LARGE"),
        (b"", {"x": object()}, "INVALID_RECORD"),
    ):
        with pytest.raises(BrokerError) as caught:
            bus.ask("e.x", payload, **headers)
        assert caught.value.name == name
    with pytest.raises(BrokerError) as caught:
        bus.ask("no..name")
    assert caught.value.name == "INVALID_CHANNEL"
    bus.ask()
    assert [(head.number, head.count) for _, head, _ in bus.pump()] == [(1, 2)]


def test_a_server_without_names_for_replies() -> None:
    bus = Bus(welcome=control.Welcome("old", 1, bytes(16), 0, LIMITS, 15.0))
    with pytest.raises(BrokerError) as caught:
        bus.ask()
    assert caught.value.name == "VERSION"


def test_many_channels_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CHANNELS_KNOWN_MAX", 2)
    bus = Bus()
    for number in range(5):
        bus.ask(f"e.{number}")
    assert [head.name for _, head, _ in bus.pump()] == [b"e.%d" % number for number in range(5)]


@pytest.mark.parametrize("number", [1, 2**32, 10**18 - 1])
def test_where_a_reply_goes(number: int) -> None:
    assert read_reply_to(message(f"{NAME}.{number}")) == (NAME.encode(), number)


@pytest.mark.parametrize(
    "reply_to",
    [None, 7, "", "e.x.1", "$reply", "$reply.", "$reply.x", "$reply.x.", "$reply.x.0", "$reply.x.-1", "$reply.x.٣",
     "$reply.x.1e3", f"$reply.x.{10**18}", "$reply." + "x" * 255 + ".1", "$reply.é.1"],
)  # fmt: skip
def test_where_no_reply_goes(reply_to: object) -> None:
    with pytest.raises(BrokerError) as caught:
        read_reply_to(message(reply_to))
    assert caught.value.name == "INVALID_CHANNEL"
