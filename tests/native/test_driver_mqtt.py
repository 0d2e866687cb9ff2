"""The dialects of MQTT 3.1.1: what is sent is what the standard says, and what comes is taken however it was cut."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import driver_mqtt
from broker_native.driver import Driver
from tests.native.peer_rig import (
    PAYLOAD_FAULTS,
    counted,
    good,
    payload,
    peer_rig,
    play,
    received,
    said_at_last,
)
from tests.reference import mqtt

NAME = b"room/0/0"
NAMES = (b"room/0", b"room/1", b"room/2")
DIALECTS = ("mqtt-0", "mqtt-1")


def pubacks(count: int) -> bytes:
    """Return answers to the first messages."""
    return b"".join(mqtt.puback(number + 1) for number in range(count))


# --- What is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_publishes_are_packets(dialect: str, batch: int) -> None:
    qos = int(dialect[-1])
    deliveries = b"".join(mqtt.publish(NAME, payload(at), identifier=(at + 7) * qos) for at in range(7))
    outcome, sent, said = play(dialect, 7, pubacks(7 * qos), deliveries, names=[NAME], batch=batch)
    assert good(outcome)
    assert (outcome.sent, outcome.acked, outcome.deliveries) == (7, 7, 7)
    published = [mqtt.publish_of(each) for each in mqtt.packets(sent)]
    assert [each[:2] for each in published] == [(NAME, (number + 1) * qos) for number in range(7)]
    assert [each.payload[:8] for each in published] == [payload(at)[:8] for at in range(7)]
    assert said == b"".join(mqtt.puback(at + 7) for at in range(7 * qos))


def test_identifiers_begin_anew_and_are_never_0() -> None:
    """The window is as large as it may be, and a publisher alone fills it once and again."""
    count = driver_mqtt.IDENTIFIERS
    with peer_rig("mqtt-1", names=[NAME], subscribers=0, bounded=False, window=count, batch=1000) as rig:
        found: list[int] = []
        data = bytearray()

        def answer() -> None:
            data.extend(received(rig.publisher))
            size = len(mqtt.publish(NAME, payload(0), identifier=1))
            whole = len(data) // size * size
            each = [mqtt.publish_of(got).identifier for got in mqtt.packets(bytes(data[:whole]))]
            del data[:whole]
            found.extend(each)
            rig.publisher.send(b"".join(map(mqtt.puback, each)))

        outcome = rig.run(count + 5, patience_s=5, on_slice=answer)
    assert outcome.finished
    assert outcome.acked == count + 5
    assert found == [*range(1, count + 1), 1, 2, 3, 4, 5]


@given(st.binary(min_size=1, max_size=200), st.integers(24, 300_000), st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_heads_are_those_of_the_twin(topic: bytes, size: int, qos: int) -> None:
    whole = mqtt.publish(topic, bytes(size), identifier=qos)
    assert driver_mqtt.publish_head(topic, size, qos) == whole[: len(whole) - size - 2 * qos]


def test_a_window_of_more_than_there_are_identifiers_is_refused() -> None:
    with pytest.raises(ValueError, match="got 65536, limit 65535"):
        Driver([NAME], publishers=1, window=65536, dialect="mqtt-1")
    Driver([NAME], publishers=1, window=65536, dialect="mqtt-0")


# --- What comes ---------------------------------------------------------------------------------------------------


def deliveries_of(qos: int) -> bytes:
    """Return messages of three topics with other things between them; DUP and RETAIN change nothing."""
    made = [(0, 0, 0), (0, 1, 0), (1, 0, 8), (1, 1, 0), (2, 0, 1), (0, 2, 0)]
    return b"".join(
        mqtt.publish(NAMES[channel], payload(counter, channel=channel), identifier=(300 + at) * qos, flags=flags * qos)
        + mqtt.packet(0xD0, b"") * (at % 2)
        for at, (channel, counter, flags) in enumerate(made)
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_takes_what_comes_cut_anywhere(dialect: str) -> None:
    qos = int(dialect[-1])
    answers = pubacks(6 * qos) + mqtt.packet(0xD0, b"")
    for place in range(len(deliveries_of(qos)) + 1):
        outcome, _, said = play(dialect, 6, answers, deliveries_of(qos), [place], names=NAMES)
        assert good(outcome), (place, outcome)
        assert (outcome.acked, outcome.deliveries) == (6, 6)
        assert said == b"".join(mqtt.puback(300 + at) for at in range(6 * qos))


@pytest.mark.parametrize("dialect", DIALECTS)
@given(places=st.lists(st.integers(0, 2000), max_size=7))
@settings(max_examples=60, deadline=None)
def test_takes_what_comes_in_any_pieces(dialect: str, places: list[int]) -> None:
    qos = int(dialect[-1])
    assert good(play(dialect, 6, pubacks(6 * qos), deliveries_of(qos), places, names=NAMES)[0])


def test_answers_may_come_in_another_order() -> None:
    answers = b"".join(map(mqtt.puback, (3, 1, 2)))
    deliveries = b"".join(mqtt.publish(NAME, payload(at), identifier=1) for at in range(3))
    assert good(play("mqtt-1", 3, answers, deliveries, names=[NAME])[0])


@pytest.mark.parametrize("fault", PAYLOAD_FAULTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_finds_what_was_done_to_messages(dialect: str, fault: str) -> None:
    payloads, expected = PAYLOAD_FAULTS[fault]
    qos = int(dialect[-1])
    deliveries = b"".join(mqtt.publish(NAME, each, identifier=9 * qos) for each in payloads)
    outcome, _, _ = play(dialect, 5, pubacks(5 * qos), deliveries, names=[NAME])
    assert counted(outcome) == expected
    assert outcome.finished == (fault != "lost at the end")
    assert outcome.failure is None


# --- What ends a run ----------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[bytes, bytes]] = {
    "a message to a publisher": (mqtt.publish(NAME, payload(0)), b""),
    "another topic": (b"", mqtt.publish(b"another", payload(0))),
    "QoS 2": (b"", mqtt.publish(NAME, payload(0), identifier=1, flags=2)),
    "QoS 3": (b"", mqtt.publish(NAME, payload(0), identifier=1, flags=4)),
    "a message without a topic": (b"", mqtt.packet(0x30, b"\0")),
    "an empty message": (b"", mqtt.packet(0x30, b"")),
    "a topic past its packet": (b"", mqtt.packet(0x30, b"\0\x05room")),
    "a message without its identifier": (b"", mqtt.packet(0x32, b"\0\x08" + NAME + b"\0")),
    "a size without an end": (b"", b"\x30\x80\x80\x80\x80\x01"),
    "a huge packet": (b"", b"\x30\xff\xff\xff\x7f"),
    "a packet of a client": (b"", mqtt.packet(0x82, b"")),
    "an answer to a subscriber": (b"", mqtt.puback(1)),
    "an answer of another size": (mqtt.packet(0x40, b"\0\x01\0"), b""),
    "an answer to nothing": (mqtt.puback(0), b""),
    "an answer to what was not sent": (mqtt.puback(3), b""),
    "more answers than messages": (b"".join(map(mqtt.puback, (1, 2, 1))), b""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_broker_would_not_say_ends_the_run(fault: str) -> None:
    answers, deliveries = FAULTS[fault]
    outcome, _, _ = play("mqtt-1", 2, answers, deliveries, names=[NAME])
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.connection) == ("protocol", 0 if answers else 1)
    assert outcome.failure.detail.startswith("mqtt: ")


def test_an_answer_that_comes_twice_is_found() -> None:
    deliveries = b"".join(mqtt.publish(NAME, payload(at), identifier=1) for at in range(2))
    outcome, _, _ = play("mqtt-1", 2, mqtt.puback(1) * 2, deliveries, names=[NAME])
    assert outcome.failure is not None
    assert "answered twice" in outcome.failure.detail


def test_answers_wait_until_the_socket_takes_them() -> None:
    """A broker that sends much and reads nothing is answered in full when it reads again."""
    count = 8_000
    with peer_rig("mqtt-1", names=[NAME], bounded=False) as rig:
        rig.ours[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        rig.subscriber.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        rig.publisher.send(mqtt.puback(1))
        packets = [mqtt.publish(NAME, payload(0), identifier=at + 1) for at in range(count)]
        rig.subscriber.send(b"".join(packets[: count // 2]))
        assert rig.run(1).finished
        rig.subscriber.send(b"".join(packets[count // 2 :]))
        assert rig.driver.run(hold_s=0.001).duplicated == count - 1
        assert said_at_last(rig) == pubacks(count)
