"""What a session does when its broker is over a bound that no conversation of a good client reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.node import node as node_module
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import LIMITS, Stage
from tests.reference.frames import Record, build_frame, build_record, frames_of, publish_body

if TYPE_CHECKING:
    import pytest

WAITING_MAX = 3


def test_too_many_repeats_of_what_is_not_committed_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal would leave numbers behind that are taken, and the client's next record would get one of them."""
    monkeypatch.setattr(node_module, "DUPLICATES_MAX", WAITING_MAX)
    stage = Stage()
    stage.hold()
    stage.connect("a")
    client = stage.clients["a"]
    publish = build_frame(Kind.PUBLISH, publish_body(0, 1, [build_record(Record(b"x"))]))
    hello = control.encode_hello("a", bytes(16))
    stage.feed("a", hello + build_frame(Kind.CHANNEL, bytes(4) + b"s.x") + publish)
    stage.settle()
    stage.feed("a", publish * WAITING_MAX)
    stage.settle()
    assert not client.closed
    client.take()
    stage.feed("a", publish)
    stage.settle()
    (frame,) = frames_of(client.take())
    refusal = control.decode_error(frame.body)
    assert (refusal.failure.name, refusal.number, client.closed) == ("BUSY", None, True)


def test_a_connection_that_the_broker_does_not_read_is_not_called_silent() -> None:
    """What its peer says meanwhile waits in the kernel."""
    stage = Stage()
    stage.connect("a")
    client = stage.clients["a"]
    stage.feed("a", control.encode_hello("a", bytes(16)))
    stage.settle()
    client.session.pause_reading()
    stage.wait(int(2 * LIMITS.ping_timeout_s * 1e6))
    assert not client.closed
    client.session.resume_reading()
    stage.wait(int(2 * LIMITS.ping_timeout_s * 1e6))
    assert client.closed
    assert control.decode_error(frames_of(client.take())[-1].body).failure.name == "PING_TIMEOUT"
