"""What all dialects of the driver share: how a failure is called, and how messages find their channels."""

from __future__ import annotations

import pytest

from broker_native.driver_load import FAILURES
from tests.native.peer_rig import good, payload, play
from tests.reference import nats, resp


def test_each_failure_has_a_name_of_its_own() -> None:
    assert len(set(FAILURES)) == len(FAILURES)
    assert FAILURES[0] == ""


NAMES = {
    "that end with their index": [b"room.%d" % at for at in range(12)],
    "that end with another number": [b"room.%d" % (at * 7 % 12) for at in range(12)],
    "without a number": [b"room." + bytes([97 + at]) for at in range(12)],
    "that end with a higher number than there are channels": [b"room.%d" % (50 + at) for at in range(12)],
    "that are a number": [b"%d" % at for at in range(12)],
    "with more digits than there are channels": [b"room.%d" % (10**9 + at) for at in range(12)],
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("dialect", ["redis", "nats"])
def test_messages_find_their_channels_by_name(dialect: str, names: str) -> None:
    channels = NAMES[names]
    made = resp.message if dialect == "redis" else nats.message
    deliveries = b"".join(made(name, payload(0, channel=at)) for at, name in enumerate(channels))
    outcome, _, _ = play(dialect, 12, b":1\r\n" * 12 if dialect == "redis" else b"", deliveries, names=channels)
    assert good(outcome), outcome


def test_a_message_of_another_audience_ends_the_run() -> None:
    outcome, _, _ = play("nats", 2, b"", nats.message(b"room.1", payload(0, channel=1)), names=[b"room.0", b"room.1"],
                         audiences=2)  # fmt: skip
    assert outcome.failure is not None
    assert outcome.failure.detail == "nats: a message of a subject that was not asked for"


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1])
def test_a_line_must_end_at_last(size: int) -> None:
    """A greeting may be long; bytes without any line are another protocol's."""
    outcome, _, _ = play("nats", 1, b"", b"INFO " + b"x" * (size - 5))
    assert (outcome.failure is not None) == (size > 64 * 1024)


@pytest.mark.parametrize("size", [60, 61, 200])
def test_a_head_of_any_size_is_remembered(size: int) -> None:
    """At first there is room for one of 64 bytes."""
    name = b"n" * size
    outcome, _, _ = play("nats", 3, b"", b"".join(nats.message(name, payload(at)) for at in range(3)), names=[name])
    assert good(outcome)
