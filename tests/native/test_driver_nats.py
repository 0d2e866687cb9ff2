"""The dialects of NATS: what is sent is what the protocol says, and what comes is taken however it was cut."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import driver_nats
from tests.native.peer_rig import (
    NAME,
    PAYLOAD_BYTES,
    PAYLOAD_FAULTS,
    counted,
    good,
    payload,
    peer_rig,
    play,
    received,
    said_at_last,
)
from tests.reference import nats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker_native.driver import Outcome
    from tests.native.peer_rig import PeerRig

NAMES = (b"room.0", b"room.1", b"room.2")
ACK = b"$JS.ACK.S.C.1.%d.%d.1700000000000000000.0"
"""What a consumer of JetStream puts behind a message."""


def inbox_of(rig: PeerRig) -> bytes:
    """Return the inbox that a publisher of JetStream has subscribed to, with the point behind it."""
    (line,) = nats.lines(received(rig.publisher))
    assert isinstance(line, bytes)
    verb, subject, number = line.split(b" ")
    assert (verb, subject[:7], subject[-2:], number) == (b"SUB", b"_INBOX.", b".*", b"1")
    return subject[:-1]


def stream(answers: Iterable[bytes], deliveries: bytes, messages: int, **options: object) -> tuple[Outcome, bytes]:
    """Run a driver in the dialect of JetStream whose answers go to its inbox; `answers` have %b for it."""
    with peer_rig("jetstream", bounded=False, **options) as rig:
        inbox = inbox_of(rig)
        rig.publisher.send(b"".join(answer.replace(b"<inbox>", inbox) for answer in answers))
        rig.subscriber.send(deliveries)
        outcome = rig.run(messages)
        return outcome, received(rig.publisher).replace(inbox, b"<inbox>")


def answered(count: int) -> list[bytes]:
    """Return JetStream's answers to the first messages; the inbox is put in when it is known."""
    return [told(b"%d" % number, b'{"stream":"S","seq":%d}' % number) for number in range(1, count + 1)]


def told(number: bytes, body: bytes) -> bytes:
    """Return a message to the inbox."""
    return nats.message(b"<inbox>" + number, body)


# --- What is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_publishes_are_lines_and_payloads(batch: int) -> None:
    deliveries = b"".join(nats.message(NAME, payload(at)) for at in range(7))
    outcome, sent, said = play("nats", 7, b"", deliveries, batch=batch)
    assert good(outcome)
    assert (outcome.sent, outcome.acked, outcome.deliveries) == (7, 7, 7)
    published = [line for line in nats.lines(sent) if isinstance(line, nats.Published)]
    assert [line[:2] for line in published] == [(NAME, b"")] * 7
    assert [line.payload[:8] for line in published] == [payload(at)[:8] for at in range(7)]
    assert said == b""


def test_publishes_to_a_stream_name_an_inbox_and_their_number() -> None:
    deliveries = b"".join(nats.message(NAME, payload(at), reply=ACK % (at + 1, at + 1)) for at in range(12))
    outcome, sent = stream(answered(12), deliveries, 12)
    assert good(outcome)
    assert (outcome.sent, outcome.acked, outcome.deliveries) == (12, 12, 12)
    published = [line for line in nats.lines(sent) if isinstance(line, nats.Published)]
    assert [line[:2] for line in published] == [(NAME, b"<inbox>%d" % number) for number in range(1, 13)]
    assert all(len(line.payload) == PAYLOAD_BYTES for line in published)


def test_messages_are_stamped_with_the_time_at_which_they_were_due() -> None:
    with peer_rig("nats", bounded=False) as rig:
        rig.subscriber.send(b"".join(nats.message(NAME, payload(at)) for at in range(50)))
        assert good(rig.run(50, rate=5_000, patience_s=2))
        published = [line for line in nats.lines(received(rig.publisher)) if isinstance(line, nats.Published)]
    stamps = [int.from_bytes(line.payload[8:16], "little") for line in published]
    assert {later - earlier for earlier, later in pairwise(stamps)} == {200_000}


def test_inboxes_differ() -> None:
    with peer_rig("jetstream", bounded=False) as one, peer_rig("jetstream", bounded=False) as other:
        assert inbox_of(one) != inbox_of(other)


@given(st.text("abc.", min_size=1, max_size=200), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_heads_are_those_of_the_protocol(name: str, size: int) -> None:
    subject = name.encode()
    assert driver_nats.publish_head(subject, size) == f"PUB {name} {size}\r\n".encode()
    assert driver_nats.stream_head(subject) + b"_INBOX.1" + driver_nats.size_text(size) == (
        f"PUB {name} _INBOX.1 {size}\r\n".encode()
    )


# --- What comes ---------------------------------------------------------------------------------------------------

CORE = b"".join(
    (
        nats.message(NAMES[0], payload(0)),
        b"PING\r\n",
        nats.message(NAMES[0], payload(1)),
        nats.message(NAMES[1], payload(0, channel=1), reply=b"somebody.else"),
        b"+OK\r\nPONG\r\n",
        nats.message(NAMES[1], payload(1, channel=1)),
        b'INFO {"server_id":"x"}\r\n',
        nats.message(NAMES[2], payload(0, channel=2)),
        b"MSG  room.0   1 40\r\n" + payload(2) + b"\r\n",
    )
)
PUSHED = b"".join(
    (
        nats.message(NAMES[0], payload(0), reply=ACK % (1, 1)),
        nats.message(NAMES[0], payload(1), reply=ACK % (9, 2)),
        nats.status(b"_INBOX.reader", b"100 FlowControl Request", reply=b"$JS.FC.S.C.abcd"),
        nats.message(NAMES[0], payload(2), reply=ACK % (10, 3)),
        nats.status(b"_INBOX.reader", b"100 Idle Heartbeat", headers=b"Nats-Last-Consumer: 3\r\n"),
        nats.message(NAMES[1], payload(0, channel=1), reply=ACK % (100, 4)),
        nats.status(
            b"_INBOX.reader",
            b"100 Idle Heartbeat",
            headers=b"Nats-Last-Consumer: 4\r\nNats-Consumer-Stalled: $JS.FC.S.C.efgh\r\n",
        ),
        nats.message(NAMES[2], payload(0, channel=2), reply=ACK % (101, 5)),
        nats.message(NAMES[2], payload(1, channel=2), reply=ACK % (101, 5)),
    )
)


def test_takes_what_comes_cut_anywhere() -> None:
    for place in range(len(CORE) + 1):
        outcome, _, said = play("nats", 6, b"PING\r\n", CORE, [place], names=NAMES)
        assert good(outcome), (place, outcome)
        assert (outcome.deliveries, said) == (6, b"PONG\r\n")


@given(places=st.lists(st.integers(0, 2000), max_size=7))
@settings(max_examples=60, deadline=None)
def test_takes_what_comes_in_any_pieces(places: list[int]) -> None:
    assert good(play("nats", 6, b"PING\r\nPONG\r\n", CORE, places, names=NAMES)[0])


def test_takes_what_is_pushed_cut_anywhere_and_says_how_far_it_is() -> None:
    """Publishers are core ones here, since deliveries are the same for those who read."""
    words = b"PUB $JS.FC.S.C.abcd 0\r\n\r\nPUB $JS.FC.S.C.efgh 0\r\n\r\n"
    for place in range(len(PUSHED) + 1):
        outcome, _, said = play("nats", 6, b"", PUSHED, [place], names=NAMES)
        assert (outcome.finished, counted(outcome), said) == (True, (0, 0, 0, 0), words), place


def test_takes_answers_cut_anywhere() -> None:
    answers = [*answered(2)[::-1], b"PING\r\n", told(b"3", b'{"stream":"S","seq":3,"duplicate": true}')]
    deliveries = b"".join(nats.message(NAME, payload(at)) for at in range(3))
    whole = len(b"".join(answers).replace(b"<inbox>", b"_INBOX.0123456789abcdef."))
    for place in range(whole + 1):
        with peer_rig("jetstream") as rig:
            data = b"".join(answers).replace(b"<inbox>", inbox_of(rig))
            for piece in (data[:place], data[place:]):
                if piece:
                    rig.publisher.send(piece)
            rig.subscriber.send(deliveries)
            outcome = rig.run(3)
            sent = received(rig.publisher)
        assert good(outcome), (place, outcome)
        assert (outcome.acked, outcome.acked_twice, sent.count(b"PONG\r\n")) == (3, 1, 1)


@pytest.mark.parametrize("fault", PAYLOAD_FAULTS)
@pytest.mark.parametrize("reply", [b"", ACK % (1, 1)])
def test_finds_what_was_done_to_messages(reply: bytes, fault: str) -> None:
    payloads, expected = PAYLOAD_FAULTS[fault]
    deliveries = b"".join(nats.message(NAME, each, reply=reply) for each in payloads)
    outcome, _, _ = play("nats", 5, b"", deliveries)
    assert counted(outcome) == expected
    assert outcome.finished == (fault != "lost at the end")
    assert outcome.failure is None


# --- What ends a run ----------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[bytes, bytes, str]] = {
    "an error": (b"", b"-ERR 'Slow Consumer'\r\n", "refused"),
    "an error to a publisher": (b"-ERR 'Maximum Payload Violation'\r\n", b"", "refused"),
    "a status": (b"", nats.status(b"_INBOX.x", b"409 Consumer Deleted"), "refused"),
    "a status without an end": (b"", b"HMSG x 1 8 8\r\nNATS/1.0\r\n", "refused"),
    "another word": (b"", b"HTTP/1.1 400 Bad Request\r\n", "protocol"),
    "a message to a publisher": (nats.message(NAME, payload(0)), b"", "protocol"),
    "another subject": (b"", nats.message(b"another", payload(0)), "protocol"),
    "a line without words": (b"", b"MSG \r\n", "protocol"),
    "a line with too few words": (b"", b"MSG room 40\r\n", "protocol"),
    "a line with too many words": (b"", b"MSG room 1 reply more 40\r\n", "protocol"),
    "a line with far too many words": (b"", b"HMSG room 1 reply more 40 40 40 40\r\n", "protocol"),
    "headers with too few words": (b"", b"HMSG room 1 40\r\n", "protocol"),
    "no size": (b"", b"MSG room 1 x\r\n", "protocol"),
    "no size of headers": (b"", b"HMSG room 1 x 40\r\n", "protocol"),
    "headers larger than all": (b"", b"HMSG room 1 41 40\r\n", "protocol"),
    "a huge message": (b"", b"MSG room 1 4000000\r\n", "protocol"),
    "a message past its size": (b"", nats.message(NAME, payload(0))[:-2] + b"xx", "protocol"),
    "a message past its size, half": (b"", nats.message(NAME, payload(0))[:-1] + b"x", "protocol"),
    "a usual message past its size": (
        b"",
        nats.message(NAME, payload(0)) + nats.message(NAME, payload(1))[:-2] + b"xx",
        "protocol",
    ),
    "a usual message past its size, half": (
        b"",
        nats.message(NAME, payload(0)) + nats.message(NAME, payload(1))[:-1] + b"x",
        "protocol",
    ),
    "a line that ends otherwise": (b"", b"PING\n", "protocol"),
    "an empty line": (b"", b"\n", "protocol"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_nats_would_not_say_ends_the_run(fault: str) -> None:
    answers, deliveries, reason = FAULTS[fault]
    outcome, _, _ = play("nats", 2, answers, deliveries)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.connection) == (reason, 0 if answers else 1)
    assert not outcome.finished


def test_a_status_is_told_in_its_words() -> None:
    outcome, _, _ = play("nats", 1, b"", nats.status(b"_INBOX.x", b"409 Consumer Deleted"))
    assert outcome.failure is not None
    assert outcome.failure.detail == "nats: NATS/1.0 409 Consumer Deleted"


NO_STREAM = nats.status(b"<inbox>1", b"503")
REFUSED = b'{"error":{"code":503,"description":"maximum bytes exceeded"},"stream":"S","seq":0}'
ANSWER_FAULTS: dict[str, tuple[bytes, str]] = {
    "an error": (told(b"1", REFUSED), f"jetstream: {REFUSED.decode()}"),
    "something else": (told(b"1", b'{"stream":"S","seq":1'), 'jetstream: {"stream":"S","seq":1'),
    "nobody answers": (NO_STREAM, "nats: NATS/1.0 503"),
    "number 0": (told(b"0", b'{"stream":"S","seq":1}'), "nats: an answer to nothing that was sent"),
    "a number that was not sent": (told(b"3", b'{"stream":"S","seq":1}'), "nats: an answer to nothing that was sent"),
    "no number": (told(b"x", b'{"stream":"S","seq":1}'), "nats: an answer to nothing that was sent"),
    "another inbox": (nats.answer(b"_INBOX.another.1", 1), "nats: an answer to nothing that was sent"),
}


@pytest.mark.parametrize("fault", ANSWER_FAULTS)
def test_answers_that_are_none_end_the_run(fault: str) -> None:
    answer, detail = ANSWER_FAULTS[fault]
    outcome, _ = stream([answer], b"", 2)
    assert outcome.failure is not None
    assert outcome.failure.detail == detail


def test_an_answer_that_comes_twice_is_found() -> None:
    deliveries = b"".join(nats.message(NAME, payload(at)) for at in range(2))
    outcome, _ = stream([answered(1)[0]] * 2, deliveries, 2)
    assert outcome.failure is not None
    assert "answered twice" in outcome.failure.detail


def test_an_answer_that_is_no_duplicate_may_say_more() -> None:
    outcome, _ = stream([told(b"1", b'{"stream":"S","seq":1,"domain":"d"}')], nats.message(NAME, payload(0)), 1)
    assert good(outcome)
    assert outcome.acked_twice == 0


def test_a_header_without_an_end_is_passed_over() -> None:
    block = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Consumer-Stalled: $JS.FC"
    heartbeat = b"HMSG x 1 %d %d\r\n%b\r\n" % (len(block), len(block), block)
    outcome, _, said = play("nats", 1, b"", heartbeat + nats.message(NAME, payload(0)))
    assert good(outcome)
    assert said == b""


def test_who_cannot_be_answered_ends_the_run() -> None:
    with peer_rig("nats", bounded=False) as rig:
        rig.subscriber.send(b"PING\r\n" + nats.message(NAME, payload(0)))
        rig.subscriber.close()
        outcome = rig.run(3)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.deliveries) == ("socket", 0)


def test_who_reads_nothing_says_that_he_lives() -> None:
    with peer_rig("nats") as rig:
        rig.driver.halt(0)
        assert rig.run(1).finished
        assert received(rig.subscriber) == b"PONG\r\n"


def test_a_reader_that_is_slow_holds_the_publisher_back() -> None:
    with peer_rig("nats", window=8, bounded=False) as rig:
        outcome = rig.run(100)
        assert (outcome.sent, outcome.acked, outcome.finished) == (8, 8, False)


def test_a_server_that_reads_nothing_is_answered_all_the_same() -> None:
    """A word that a consumer waits for is kept until the socket takes it."""
    count = 1_000
    with peer_rig("nats", bounded=False) as rig:
        rig.subscriber.send(nats.status(b"_INBOX.r", b"100 FlowControl Request", reply=b"$JS.FC.0123") * count)
        rig.subscriber.send(nats.message(NAME, payload(0)))
        assert good(rig.run(1))
        assert said_at_last(rig) == b"PUB $JS.FC.0123 0\r\n\r\n" * count
