"""A consumer of a group of Redis: what it asks, what it takes, and what it acknowledges."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import crew_redis
from tests.native.crew_rig import CrewRig, crew_rig, good
from tests.native.peer_rig import NAME, cut, flipped, payload
from tests.reference import resp

GROUP = b"bench"
ASK = crew_redis.ask_words(NAME, GROUP, b"m0", 3)
WORDS = crew_redis.ack_words(NAME, GROUP)
NOTHING = b"*-1\r\n"


def read(*counters: int, name: bytes = NAME) -> bytes:
    """Return a reply to XREADGROUP."""
    return resp.streams((name, [resp.entry(b"17-%d" % (at + 1), payload(at)) for at in counters]))


def rig_of(messages: int, seats: int = 1, **options: object) -> CrewRig:
    asks = [{"ask": crew_redis.ask_words(NAME, GROUP, b"m%d" % at, 3)} for at in range(seats)]
    return CrewRig("redis-stream", messages, seats=asks, batch=3, words=WORDS, **options)  # type: ignore[arg-type]


def test_what_is_asked_is_what_redis_takes() -> None:
    asked = [b"XREADGROUP", b"GROUP", GROUP, b"m0", b"COUNT", b"3", b"STREAMS", NAME, b">"]
    assert resp.commands(ASK) == [asked]
    assert b"".join(map(resp.bulk, (b"XACK", NAME, GROUP))) == WORDS


STREAM = read(0, 1, 2) + b":3\r\n" + read(4) + b":1\r\n" + read(3, 5) + b":2\r\n" + NOTHING


@given(places=st.lists(st.integers(0, len(STREAM)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_all_is_taken_however_it_was_cut(places: list[int]) -> None:
    rig = rig_of(6)
    done = rig.run(cut(STREAM, places))
    assert good(done), done
    assert (done.taken, done.acked) == (6, 6)
    commands = resp.commands(rig.said())
    (asked,) = resp.commands(ASK)
    head = [b"XACK", NAME, GROUP]
    expected = [[b"17-1", b"17-2", b"17-3"], [b"17-5"], [b"17-4", b"17-6"]]
    assert commands == [asked, *(each for ids in expected for each in ([*head, *ids], asked))]
    for each in (*rig.ours, *rig.theirs):
        each.close()


def test_members_ask_for_themselves() -> None:
    rig = rig_of(2, seats=2)
    done = rig.run(read(1) + b":1\r\n", read(0) + b":1\r\n" + NOTHING)
    assert good(done), done
    assert [resp.commands(rig.said(at))[0][3] for at in range(2)] == [b"m0", b"m1"]
    for each in (*rig.ours, *rig.theirs):
        each.close()


def test_an_answer_that_knows_fewer_is_seen() -> None:
    with crew_rig("redis-stream", 2, seats=[{"ask": ASK}], batch=3, words=WORDS) as rig:
        done = rig.run(read(0, 1) + b":1\r\n")
    assert (done.finished, done.acked, done.unacked) == (True, 2, 1)


FAULTS = {
    "a refusal": (b"-NOGROUP No such key\r\n", "refused"),
    "more than was asked for": (read(0, 1, 2, 3), "protocol"),
    "no entries": (resp.streams((NAME, [])), "protocol"),
    "a number first": (b":1\r\n:1\r\n", "protocol"),
    "entries in the place of a number": (read(0) + read(1), "protocol"),
    "an entry that is no pair": (read(0)[:-3].replace(b"*2\r\n$4\r\n17", b"*3\r\n$4\r\n17"), "protocol"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_breaks_the_protocol_ends_the_run(fault: str) -> None:
    said, reason = FAULTS[fault]
    with crew_rig("redis-stream", 3, seats=[{"ask": ASK}], batch=3, words=WORDS) as rig:
        done = rig.run(said)
    assert done.failure is not None
    assert done.failure.reason == reason


def test_a_payload_that_was_changed_is_seen() -> None:
    entry = resp.entry(b"17-1", flipped(payload(0), 30))
    with crew_rig("redis-stream", 1, seats=[{"ask": ASK}], batch=3, words=WORDS) as rig:
        done = rig.run(resp.streams((NAME, [entry])) + b":1\r\n")
    assert (done.finished, done.corrupt, done.lost) == (False, 1, 1)
