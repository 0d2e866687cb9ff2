"""`trace`: what is told of a message, by what became of it and of those who read its channel."""

from __future__ import annotations

from typing import Any

import pytest

from broker.edge import tracing
from broker.model.errors import BrokerError
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import TIME_US, Stage
from tests.reference.frames import Record, build_frame, build_record, frames_of, publish_body


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    connect(stage, "writer")
    return stage


def connect(stage: Stage, name: str) -> None:
    stage.connect(name)
    stage.feed(name, control.encode_hello(name, name.encode().ljust(16, b" ")))
    stage.settle()


def publish(stage: Stage, channel: bytes, count: int, number: int = 1, slot: int = 0) -> None:
    records = [build_record(Record(b"payload", key=b"k"))] * count
    naming = build_frame(Kind.CHANNEL, slot.to_bytes(4, "little") + channel) if number == 1 or slot else b""
    stage.feed("writer", naming + build_frame(Kind.PUBLISH, publish_body(slot, number, records)))
    stage.settle()


def subscribe(stage: Stage, name: str, *filters: str, start: Any = None, credit: int = 1 << 20, **more: Any) -> None:
    start = start or control.FromNew()
    stage.feed(name, control.encode_subscribe(control.Subscribe(1, filters, credit, start, **more)))
    stage.settle()


def trace(stage: Stage, channel: str, sequence: int) -> dict[str, Any]:
    stage.clients["writer"].take()
    stage.feed("writer", control.encode_request(9, "trace", {"channel": channel, "sequence": sequence}))
    stage.settle()
    frame = frames_of(stage.clients["writer"].take())[-1]
    if frame.kind == Kind.ERROR:
        raise control.decode_error(frame.body).failure
    _, fields = control.decode_reply(frame.body)
    return dict(fields)


def states(found: dict[str, Any]) -> dict[str, str]:
    return {reader["name"]: reader["state"] for reader in found["readers"]}


def test_a_message_has_passed_those_who_read_it_live(stage: Stage) -> None:
    for name, filters in (("literal", ["s.x"]), ("pattern", ["s.>"]), ("other", ["s.y"])):
        connect(stage, name)
        subscribe(stage, name, *filters)
    publish(stage, b"s.x", 2)
    connect(stage, "late")
    subscribe(stage, "late", "s.*")
    found = trace(stage, "s.x", 2)
    assert (found["state"], found["bytes"], found["key"], found["archived"]) == ("stored", 7, b"k", False)
    assert found["time_us"] == TIME_US
    assert found["group"] == stage.node.core.applied_number
    assert found["opened_us"] == found["closed_us"] == found["committed_us"] == found["delivered_us"] == TIME_US
    assert states(found) == {"literal": "passed", "pattern": "passed", "late": "before"}
    assert found["counts"] == {"passed": 2, "before": 1}
    assert (found["consumers"], found["more"]) == ([], False)


def test_who_resumed_has_passed_it_and_who_has_no_credit_is_behind(stage: Stage) -> None:
    publish(stage, b"s.x", 2)
    publish(stage, b"s.x", 1, number=3)
    for name, credit in (("eager", 1 << 20), ("idle", 1)):
        connect(stage, name)
        subscribe(stage, name, "s.x", start=control.FromStart(), credit=credit)
    connect(stage, "bus")
    subscribe(stage, "bus", "s.>", start=control.FromStart())
    assert states(trace(stage, "s.x", 1))["eager"] == "passed"
    assert states(trace(stage, "s.x", 3)) == {"eager": "passed", "idle": "behind", "bus": "passed"}


def test_a_member_of_a_live_group_shares(stage: Stage) -> None:
    connect(stage, "member")
    subscribe(stage, "member", "s.x", group="g")
    publish(stage, b"s.x", 1)
    assert states(trace(stage, "s.x", 1)) == {"member": "shared"}


def test_what_is_not_committed_is_pending(stage: Stage) -> None:
    connect(stage, "reader")
    subscribe(stage, "reader", "s.x")
    stage.hold()
    publish(stage, b"s.x", 1)
    found = trace(stage, "s.x", 1)
    assert (found["state"], states(found)) == ("pending", {"reader": "behind"})
    stage.release()
    assert states(trace(stage, "s.x", 1)) == {"reader": "passed"}


def test_what_was_trimmed_is_said_to_be(stage: Stage) -> None:
    publish(stage, b"s.x", 3)
    stage.feed("writer", control.encode_request(1, "trim", {"name": "s.x", "first": 3}))
    stage.settle()
    assert trace(stage, "s.x", 2)["state"] == "trimmed"
    assert trace(stage, "s.x", 3)["state"] == "stored"


def test_many_connections_are_looked_at_in_parts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CONNECTIONS_A_TURN", 2)
    monkeypatch.setattr(tracing, "READERS_MAX", 3)
    for number in range(5):
        connect(stage, f"r{number}")
        subscribe(stage, f"r{number}", "s.x")
    publish(stage, b"s.x", 1)
    found = trace(stage, "s.x", 1)
    assert (len(found["readers"]), found["counts"], found["more"]) == (3, {"passed": 5}, True)


@pytest.mark.parametrize(
    ("channel", "sequence", "code"),
    [("s.none", 1, "INVALID_POSITION"), ("s.x", 2, "INVALID_POSITION"), ("e.x", 1, "NOT_STORED"), ("$x", 1, "DENIED")],
)
def test_what_is_not_there_is_refused(stage: Stage, channel: str, sequence: int, code: str) -> None:
    publish(stage, b"s.x", 1)
    publish(stage, b"e.x", 1, number=2, slot=1)
    with pytest.raises(BrokerError) as caught:
        trace(stage, channel, sequence)
    assert caught.value.name == code


def test_a_sequence_of_another_type_ends_the_connection(stage: Stage) -> None:
    stage.feed("writer", control.encode_request(9, "trace", {"channel": "s.x", "sequence": 0}))
    stage.settle()
    assert stage.clients["writer"].closed
