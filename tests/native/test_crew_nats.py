"""A member of a pull consumer of JetStream: what it asks, what it takes, and what it acknowledges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import crew_nats
from tests.native.crew_rig import crew_rig, good
from tests.native.peer_rig import NAME, cut, flipped, payload
from tests.reference import nats
from tests.reference.nats import Published

INBOX = b"_INBOX.0123456789abcdef"
NEXT = b"$JS.API.CONSUMER.MSG.NEXT.S.q"
REQUEST = b'{"batch":2,"expires":600000000000}'
SEAT = {"ask": crew_nats.ask_words(b"S", b"q", INBOX, 2), "inbox": INBOX}
ASKED = Published(NEXT, INBOX, REQUEST)
ANSWER = nats.message(INBOX, b"")


def reply(counter: int) -> bytes:
    """Return where a message is acknowledged."""
    return b"$JS.ACK.S.q.1.%d.%d.1700000000000000000.0" % (counter + 1, counter + 1)


def job(counter: int) -> bytes:
    return nats.message(NAME, payload(counter), reply=reply(counter))


def play(messages: int, told: Any, *, batch: int = 2) -> tuple[Any, list[Any]]:
    with crew_rig("jetstream", messages, seats=[SEAT], batch=batch) as rig:
        done = rig.run(told)
        return done, nats.lines(rig.said())


STREAM = b"".join(map(job, (0, 2, 1))) + b"PING\r\n" + b"+OK\r\n" + job(3)


@given(places=st.lists(st.integers(0, len(STREAM)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_all_is_taken_however_it_was_cut(places: list[int]) -> None:
    """Of each read the last ack is answered; there are as many answers as reads that had a whole message."""
    done, said = play(4, [*cut(STREAM, places), *[ANSWER] * 1])
    acks = [each for each in said if isinstance(each, Published) and each.payload == b"+ACK"]
    answered = [each for each in acks if each.reply]
    assert done.failure is None
    assert (done.taken, done.lost, done.corrupt) == (4, 0, 0)
    assert [each.subject for each in acks] == [reply(at) for at in (0, 2, 1, 3)]
    assert {each.reply for each in answered} == {INBOX}
    assert done.finished == (len(answered) == 1)
    assert b"PONG" in said


def test_two_requests_are_under_way() -> None:
    done, said = play(5, [job(0), ANSWER, job(1), ANSWER, job(2) + job(3), ANSWER, job(4), ANSWER])
    assert good(done), done
    words = [each.payload[:4] if isinstance(each, Published) else each for each in said]
    asked, ack = REQUEST[:4], b"+ACK"
    assert words == [asked, asked, ack, ack, asked, ack, ack, asked, ack]
    assert [each for each in said if isinstance(each, Published) and each.payload == REQUEST] == [ASKED] * 4


def test_one_at_a_time_has_one() -> None:
    done, said = play(2, [job(0), ANSWER, job(1), ANSWER], batch=1)
    assert good(done), done
    assert [each.payload[:4] for each in said if isinstance(each, Published)] == [
        REQUEST[:4], b"+ACK", REQUEST[:4], b"+ACK", REQUEST[:4]
    ]  # fmt: skip


def test_what_comes_twice_or_is_changed_is_seen() -> None:
    changed = nats.message(NAME, flipped(payload(1), 30), reply=reply(1))
    done, _ = play(2, [job(0) + job(0) + changed, ANSWER])
    assert (done.finished, done.lost, done.duplicated, done.corrupt) == (False, 1, 1, 1)


FAULTS = {
    "a message that was not asked for": (b"".join(job(at) for at in range(5)), "protocol"),
    "a message that has nowhere to be acknowledged": (nats.message(NAME, payload(0)), "protocol"),
    "an answer to nothing": (ANSWER, "protocol"),
    "an answer to somebody else": (job(0) + nats.message(INBOX[:-1] + b"x", b""), "protocol"),
    "a request that has expired": (nats.status(INBOX, b"408 Request Timeout"), "refused"),
    "an error": (b"-ERR 'no'\r\n", "refused"),
    "a line of somebody else": (b"HTTP/1.1 200 OK\r\n", "protocol"),
    "a message that does not end": (job(0)[:-2] + b"xx", "protocol"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_breaks_the_protocol_ends_the_run(fault: str) -> None:
    said, reason = FAULTS[fault]
    with crew_rig("jetstream", 9, seats=[SEAT], batch=2) as rig:
        done = rig.run(said)
    assert done.failure is not None
    assert done.failure.reason == reason


def test_a_server_that_reads_nothing_for_a_while_is_waited_for() -> None:
    count = 4_000
    with crew_rig("jetstream", count, seats=[SEAT], batch=count, bounded=False) as rig:
        frames = b"".join(map(job, range(count)))
        sent, said = 0, b""

        def feed() -> None:
            nonlocal sent, said
            if sent == len(frames):
                said += rig.said()
            while sent < len(frames):
                try:
                    sent += rig.theirs[0].send(frames[sent : sent + 100_000])
                except BlockingIOError:
                    return

        feed()
        rig.members.run(patience_s=0.5, on_slice=feed)
        said += rig.said()
    assert said.count(b"+ACK") == count


def test_a_heartbeat_is_no_message() -> None:
    done, _ = play(1, [nats.status(INBOX, b"100 Idle Heartbeat"), job(0), ANSWER])
    assert good(done), done
