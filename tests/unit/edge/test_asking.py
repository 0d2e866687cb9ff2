"""Requests and replies at the edge: what no conversation of a good client reaches."""

from __future__ import annotations

import msgpack
import pytest

from broker.edge import asking
from broker.model.limits import Limits
from broker.wire import control
from broker.wire.kinds import Kind, PublishFlag
from tests.golden.conversations import named
from tests.golden.stage import Stage
from tests.reference.frames import Frame, delivery_of, frames_of, records_of
from tests.reference.journal import Fate

NARROW = Limits(payload_bytes_max=20_000, headers_bytes_max=100, connection_bytes_max=131_072)
ASK, REPLY = PublishFlag.ASK, PublishFlag.REPLY


def opened(stage: Stage, name: str) -> str:
    """Connect and say HELLO; returns the connection's name for replies."""
    stage.connect(name)
    stage.feed(name, control.encode_hello(name))
    stage.settle()
    (welcome,) = frames_of(stage.clients[name].take())
    return control.decode_welcome(welcome.body).reply


def say(stage: Stage, name: str, *frames: bytes) -> list[Frame]:
    stage.feed(name, b"".join(frames))
    stage.settle()
    return frames_of(stage.clients[name].take())


def refusal(frame: Frame) -> tuple[str, int | None, int | None, int | None]:
    assert frame.kind == Kind.ERROR
    told = control.decode_error(frame.body)
    return told.failure.name, told.asked, told.replied, told.count


def payloads(frames: list[Frame]) -> list[bytes]:
    return [record.payload for frame in frames for record in records_of(delivery_of(frame).chunk)]


def test_each_connection_has_a_name_of_its_own() -> None:
    stage = Stage()
    names = [opened(stage, name) for name in "abc"]
    assert len(set(names)) == 3
    assert all(name.startswith("$reply.") and len(name) == 7 + 32 for name in names)
    for name in "abc":
        stage.disconnect(name)
    assert all(stage.node.replies.find(name.encode()) is None for name in names)


def test_many_channels_are_asked_and_the_newest_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SLOTS_MAX", 3)
    stage = Stage()
    opened(stage, "reader")
    say(stage, "reader", control.encode_subscribe(control.Subscribe(1, ("e.>",), 1 << 20)))
    opened(stage, "asks")
    channels = [b"e.%d" % number for number in range(5)] * 3
    for number, channel in enumerate(channels, 1):
        assert say(stage, "asks", named(ASK, channel, number, b"%d" % number)) == []
    assert payloads(frames_of(stage.clients["reader"].take())) == [b"%d" % number for number in range(1, 16)]
    held = [stage.node.tails.held(b"e.%d" % number) for number in range(5)]
    assert held == [False, False, True, True, True]
    stage.disconnect("asks")
    assert not any(stage.node.tails.held(b"e.%d" % number) for number in range(5))


def test_numbers_of_requests_may_be_any() -> None:
    stage = Stage()
    mine = opened(stage, "a")
    say(stage, "a", control.encode_subscribe(control.Subscribe(1, ("e.x",), 1 << 20)))
    for number in (7, 7, 1, 2**64 - 3, 2**32):
        frames = say(stage, "a", named(ASK, b"e.x", number, b"asked", b"too"))
        assert payloads(frames) == [b"asked", b"too"]
        (reply,) = say(stage, "a", named(REPLY, mine.encode(), number, b"replied", b"too"))
        delivery = delivery_of(reply)
        assert (delivery.subscription, delivery.chunk.first, delivery.chunk.count) == (0, number, 2)


def test_a_request_takes_no_number_of_the_producers_line() -> None:
    stage = Stage()
    opened(stage, "a")
    say(stage, "a", control.encode_channel(0, b"s.x"))
    for number in range(1, 4):
        assert say(stage, "a", named(ASK, b"s.x", number + 10, b"asked")) == []
        published = stage.clients["a"].session.publisher
        assert published is not None
        assert published.line.next == 1


@pytest.mark.parametrize("fate", [Fate.REFUSED, Fate.LOST])
def test_requests_whose_commit_fails_are_refused(fate: Fate) -> None:
    stage = Stage()
    opened(stage, "a")
    stage.hold()
    assert say(stage, "a", named(ASK, b"s.x", 1, b"in commit")) == []
    assert say(stage, "a", named(ASK, b"s.x", 2, b"behind", b"it")) == []
    stage.fail(fate)
    stage.settle()
    refused = sorted(refusal(frame) for frame in frames_of(stage.clients["a"].take()))
    first = "COMMIT_REFUSED" if fate is Fate.REFUSED else "COMMIT_UNKNOWN"
    assert refused == sorted([(first, 1, None, 1), ("COMMIT_REFUSED", 2, None, 2)])
    # Until the journal has recovered it takes nothing.
    ((name, *_),) = [refusal(frame) for frame in say(stage, "a", named(ASK, b"s.x", 3, b"too early"))]
    assert name in ("UNAVAILABLE", "COMMIT_UNKNOWN")
    stage.release()
    assert say(stage, "a", named(ASK, b"s.x", 4, b"taken")) == []


def test_a_reply_that_the_asker_leaves_unread_ends_the_asker_and_nobody_else() -> None:
    stage = Stage(limits=NARROW)
    mine = opened(stage, "asks").encode()
    opened(stage, "replies")
    stage.clients["asks"].session.outbox.pause()
    for number in range(1, 20):
        assert say(stage, "replies", named(REPLY, mine, number, bytes(10_000))) == [] or stage.clients["asks"].closed
    assert stage.clients["asks"].closed
    (frame,) = say(stage, "replies", named(REPLY, mine, 20, b"?"))
    assert refusal(frame) == ("NO_RESPONDERS", None, 20, 1)
    assert not stage.clients["replies"].closed


def test_what_was_counted() -> None:
    stage = Stage()
    mine = opened(stage, "a").encode()
    say(
        stage,
        "a",
        named(ASK, b"e.x", 1, b"", b""),
        named(REPLY, mine, 1, b"", b"", b""),
        named(REPLY, b"$reply.x", 1, b""),
    )
    stats = stage.node.replies.stats()
    assert [stats[name] for name in ("requests_unheard", "replies_out", "replies_unheard")] == [2, 3, 1]


def test_members_of_a_connection_that_takes_nothing_are_passed_over_and_not_cut_off() -> None:
    stage = Stage(limits=NARROW)
    for name in ("paused", "other"):
        opened(stage, name)
        say(stage, name, control.encode_subscribe(control.Subscribe(1, ("e.x",), 1 << 20, group="g")))
    opened(stage, "asks")
    stage.clients["paused"].session.outbox.pause()
    say(stage, "paused", control.encode_subscribe(control.Subscribe(2, ("e.y",), 1 << 20, group="g")))
    for number in range(1, 100):
        say(stage, "asks", named(ASK, b"e.y", number, bytes(2_000)))
    say(stage, "asks", named(ASK, b"e.x", 100, *[b"x"] * 10))
    outbox = stage.clients["paused"].session.outbox
    assert outbox.queued <= NARROW.connection_bytes_max // 16 + 1_000
    assert not stage.clients["paused"].closed
    assert len(payloads(frames_of(stage.clients["other"].take()))) == 10
    assert stage.node.fanout.records_missed > 90


@pytest.mark.parametrize("body", [{"group": 7}, {"group": ""}, {"group": "x" * 256}, {"group": None}])
def test_a_group_whose_name_is_none_is_no_frame(body: dict[str, object]) -> None:
    wanted = {"subscription": 1, "filters": ["e.x"], "credit": 1, **body}
    stage = Stage()
    opened(stage, "a")
    (frame,) = say(stage, "a", control.frame(Kind.SUBSCRIBE, msgpack.packb(wanted)))
    assert control.decode_error(frame.body).failure.name == "MALFORMED_FRAME"
    assert stage.clients["a"].closed
