"""The dialects of Redis: what is sent is what RESP says, and what comes is taken however it was cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native import driver_redis
from broker_native.driver import Driver
from tests.native.peer_rig import (
    NAME,
    PAYLOAD_FAULTS,
    counted,
    good,
    payload,
    peer_rig,
    play,
    received,
)
from tests.reference import resp

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = (b"room.0", b"room.1", b"room.2")


def ids(count: int) -> bytes:
    """Replies to as many XADD."""
    return b"".join(resp.bulk(b"1700000000000-%d" % number) for number in range(count))


def read(payloads: Iterable[bytes], *, first: int = 0, name: bytes = NAME, version: int = 2) -> bytes:
    """Return a reply to XREAD with entries of one stream."""
    entries = [resp.entry(b"1700000000000-%d" % (first + at + 1), each) for at, each in enumerate(payloads)]
    return resp.streams((name, entries), resp=version)


# --- What is sent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_publishes_are_pipelined_commands(batch: int) -> None:
    deliveries = b"".join(resp.message(NAME, payload(at)) for at in range(7))
    outcome, sent, said = play("redis", 7, b":1\r\n" * 7, deliveries, batch=batch)
    assert good(outcome)
    assert (outcome.sent, outcome.acked, outcome.deliveries) == (7, 7, 7)
    commands = resp.commands(sent)
    assert [words[:2] for words in commands] == [[b"PUBLISH", NAME]] * 7
    assert [words[2][:8] for words in commands] == [payload(at)[:8] for at in range(7)]
    assert all(words[2][24:] == payload(0)[24:] and len(words) == 3 for words in commands)
    assert said == b""


def test_entries_are_added_with_one_field() -> None:
    outcome, sent, said = play("redis-stream", 5, ids(5), read(map(payload, range(5))))
    assert good(outcome)
    commands = resp.commands(sent)
    assert [words[:4] for words in commands] == [[b"XADD", NAME, b"*", b"d"]] * 5
    assert [words[4][:8] for words in commands] == [payload(at)[:8] for at in range(5)]
    options = [b"XREAD", b"COUNT", b"4096", b"BLOCK", b"0", b"STREAMS", NAME]
    assert resp.commands(said) == [[*options, b"0-0"], [*options, b"1700000000000-5"]]


def test_a_reader_of_streams_asks_behind_what_it_has_of_each() -> None:
    with peer_rig("redis-stream", names=NAMES, count=2, bounded=False) as rig:
        entry = resp.entry(b"18-3", payload(0, channel=1))
        rig.subscriber.send(resp.streams((NAMES[1], [entry])))
        rig.publisher.send(ids(3))
        rig.run(3)
        first, second = resp.commands(received(rig.subscriber))
    assert first == [b"XREAD", b"COUNT", b"2", b"BLOCK", b"0", b"STREAMS", *NAMES, b"0-0", b"0-0", b"0-0"]
    assert second[9:] == [b"0-0", b"18-3", b"0-0"]


def test_readers_of_audiences_ask_for_their_streams() -> None:
    with peer_rig("redis-stream", names=NAMES, audiences=2, subscribers=2, bounded=False) as rig:
        asked = [resp.commands(received(each))[0] for each in rig.subscribers]
    assert [words[6:] for words in asked] == [[NAMES[0], NAMES[2], b"0-0", b"0-0"], [NAMES[1], b"0-0"]]


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_heads_are_those_of_the_twin(name: bytes, size: int) -> None:
    end = b"$%d\r\n" % size
    assert driver_redis.publish_head(name, size) == b"*3\r\n" + resp.bulk(b"PUBLISH") + resp.bulk(name) + end
    parts = b"".join(map(resp.bulk, (b"XADD", name, b"*", b"d")))
    assert driver_redis.add_head(name, size) == b"*5\r\n" + parts + end
    words = [b"XREAD", b"COUNT", b"7", b"BLOCK", b"0", b"STREAMS", name, name]
    assert driver_redis.read_head([name, name], 7) == b"*10\r\n" + b"".join(map(resp.bulk, words))


# --- What comes ---------------------------------------------------------------------------------------------------

MESSAGES = b"".join(
    (
        resp.message(NAMES[0], payload(0)),
        resp.message(NAMES[1], payload(0, channel=1)),
        resp.message(NAMES[1], payload(1, channel=1), resp=3),
        resp.message(NAMES[0], payload(1), pattern=b"room.*"),
        resp.message(NAMES[0], payload(2), pattern=b"room.*", resp=3),
        resp.message(NAMES[2], payload(0, channel=2)),
    )
)
ENTRIES = b"".join(
    (
        resp.streams((NAMES[0], [resp.entry(b"1-1", payload(0)), resp.entry(b"1-2", payload(1))])),
        resp.streams(
            (NAMES[2], [resp.entry(b"1-1", payload(0, channel=2))]),
            (NAMES[1], [resp.entry(b"1-1", payload(0, channel=1)), resp.entry(b"2-0", payload(1, channel=1))]),
        ),
        resp.streams((NAMES[0], [resp.entry(b"9-0", payload(2))]), resp=3),
    )
)
STREAMS_OF = {"redis": (b":1\r\n:10\r\n" * 3, MESSAGES), "redis-stream": (ids(6), ENTRIES)}


@pytest.mark.parametrize("dialect", STREAMS_OF)
def test_takes_what_comes_cut_anywhere(dialect: str) -> None:
    answers, deliveries = STREAMS_OF[dialect]
    for place in range(len(deliveries) + 1):
        outcome, _, said = play(dialect, 6, answers, deliveries, [place], names=NAMES)
        assert good(outcome), (place, outcome)
        assert (outcome.sent, outcome.acked, outcome.deliveries) == (6, 6, 6)
    if dialect == "redis-stream":
        assert len(resp.commands(said)) == 4


@pytest.mark.parametrize("dialect", STREAMS_OF)
@given(places=st.lists(st.integers(0, 2000), max_size=7))
@settings(max_examples=60, deadline=None)
def test_takes_what_comes_in_any_pieces(dialect: str, places: list[int]) -> None:
    assert good(play(dialect, 6, *STREAMS_OF[dialect], places, names=NAMES)[0])


@pytest.mark.parametrize("fault", PAYLOAD_FAULTS)
@pytest.mark.parametrize("dialect", STREAMS_OF)
def test_finds_what_was_done_to_messages(dialect: str, fault: str) -> None:
    payloads, expected = PAYLOAD_FAULTS[fault]
    deliveries = b"".join(resp.message(NAME, each) for each in payloads) if dialect == "redis" else read(payloads)
    outcome, _, _ = play(dialect, 5, b":1\r\n" * 5 if dialect == "redis" else ids(5), deliveries)
    assert counted(outcome) == expected
    assert outcome.finished == (fault != "lost at the end")
    assert outcome.failure is None


@pytest.mark.parametrize("second", [b"1700000000000-1", b"1700000000000-0", b"1699999999999-9"])
def test_ids_must_increase(second: bytes) -> None:
    entries = [resp.entry(b"1700000000000-1", payload(0)), resp.entry(second, payload(1))]
    outcome, _, _ = play("redis-stream", 2, ids(2), resp.streams((NAME, entries)))
    assert outcome.misplaced == 1
    assert counted(outcome) == (0, 0, 0, 0)


# --- What ends a run ----------------------------------------------------------------------------------------------

LINE = b"x" * (64 * 1024 + 1)
PUBSUB_FAULTS: dict[str, tuple[bytes, bytes, str]] = {
    "an error to a publisher": (b"-OOM command not allowed\r\n", b"", "refused"),
    "an error to a subscriber": (b"", b"-ERR no\r\n", "refused"),
    "more replies than commands": (b":0\r\n" * 3, b"", "protocol"),
    "a reply of another kind": (b"+OK\r\n", b"", "protocol"),
    "a reply that is no number": (b":x\r\n", b"", "protocol"),
    "a reply without an end": (b":" + LINE, b"", "protocol"),
    "a reply that ends otherwise": (b":1\n", b"", "protocol"),
    "a string of a negative size": (b"", b"*3\r\n$-1\r\n", "protocol"),
    "a confirmation": (b"", resp.array(resp.bulk(b"subscribe"), resp.bulk(NAME), b":1\r\n"), "protocol"),
    "a word as long": (b"", resp.array(*map(resp.bulk, (b"massage", NAME, b"p"))), "protocol"),
    "message of four parts": (b"", resp.array(*map(resp.bulk, (b"message", b"a", NAME, b"p"))), "protocol"),
    "pmessage of three parts": (b"", resp.array(*map(resp.bulk, (b"pmessage", NAME, b"p"))), "protocol"),
    "another channel": (b"", resp.message(b"another", payload(0)), "protocol"),
    "a channel of another's index": (b"", resp.message(b"x" + NAME[1:], payload(0)), "protocol"),
    "a huge name": (b"", b"*3\r\n$7\r\nmessage\r\n$65537\r\n", "protocol"),
    "a huge payload": (b"", b"*3\r\n$7\r\nmessage\r\n" + resp.bulk(NAME) + b"$4000000\r\n", "protocol"),
    "a payload past its size": (b"", resp.message(NAME, payload(0))[:-2] + b"xx", "protocol"),
    "a payload past its size, half": (b"", resp.message(NAME, payload(0))[:-1] + b"x", "protocol"),
    "no array": (b"", b":1\r\n", "protocol"),
}
STREAM_FAULTS: dict[str, tuple[bytes, bytes, str]] = {
    "an error to a publisher": (b"-WRONGTYPE of key\r\n", b"", "refused"),
    "an error to a reader": (b"", b"-UNBLOCKED the stream is gone\r\n", "refused"),
    "more replies than commands": (ids(3), b"", "protocol"),
    "a reply of another kind": (b":1\r\n", b"", "protocol"),
    "nothing": (b"", b"*-1\r\n", "protocol"),
    "no stream": (b"", b"*0\r\n", "protocol"),
    "more streams than asked for": (b"", b"*2\r\n", "protocol"),
    "another stream": (b"", read([payload(0)], name=b"another"), "protocol"),
    "no entries": (b"", resp.streams((NAME, [])), "protocol"),
    "more entries than anybody asks for": (b"", b"*1\r\n*2\r\n" + resp.bulk(NAME) + b"*1048577\r\n", "protocol"),
    "an entry that is no pair": (b"", resp.streams((NAME, [b"*3\r\n" + bytes(99)])), "protocol"),
    "an entry with two fields": (
        b"",
        resp.streams((NAME, [resp.array(resp.bulk(b"1-1"), resp.array(*map(resp.bulk, (b"d", b"1", b"e", b"2"))))])),
        "protocol",
    ),
    "an entry of another field": (
        b"",
        resp.streams((NAME, [resp.array(resp.bulk(b"1-1"), resp.array(resp.bulk(b"e"), resp.bulk(payload(0))))])),
        "protocol",
    ),
    "an id without a dash": (b"", resp.streams((NAME, [resp.entry(b"11", payload(0))])), "protocol"),
    "an id without a number": (b"", resp.streams((NAME, [resp.entry(b"1-", payload(0))])), "protocol"),
    "an id without a time": (b"", resp.streams((NAME, [resp.entry(b"-1", payload(0))])), "protocol"),
    "an id of letters": (b"", resp.streams((NAME, [resp.entry(b"1-x", payload(0))])), "protocol"),
    "an id that is too long": (b"", resp.streams((NAME, [resp.entry(b"1-" + b"1" * 19, payload(0))])), "protocol"),
    "a payload past its size": (b"", read([payload(0)])[:-2] + b"xx", "protocol"),
    "a huge payload": (b"", read([payload(0)]).replace(b"$40\r\n", b"$4000000\r\n"), "protocol"),
    "a name that is no string": (b"", b"*1\r\n*2\r\n:1\r\n", "protocol"),
    "entries that are no array": (b"", b"*1\r\n*2\r\n" + resp.bulk(NAME) + b":1\r\n", "protocol"),
    "a stream that is no pair": (b"", b"*1\r\n" + resp.bulk(NAME), "protocol"),
    "an entry without an id": (b"", b"*1\r\n*2\r\n" + resp.bulk(NAME) + b"*1\r\n*2\r\n:11\r\n" + bytes(99), "protocol"),
}
FAULTS = [("redis", fault) for fault in PUBSUB_FAULTS] + [("redis-stream", fault) for fault in STREAM_FAULTS]


@pytest.mark.parametrize(("dialect", "fault"), FAULTS, ids=" ".join)
def test_what_redis_would_not_say_ends_the_run(dialect: str, fault: str) -> None:
    answers, deliveries, reason = (PUBSUB_FAULTS if dialect == "redis" else STREAM_FAULTS)[fault]
    outcome, _, _ = play(dialect, 2, answers, deliveries)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.connection) == (reason, 0 if answers else 1)
    assert not outcome.finished
    if reason == "refused":
        said = (answers or deliveries)[:-2]
        assert outcome.failure.body == said
        assert outcome.failure.detail == f"redis: {said.decode()}"


def test_of_a_long_refusal_the_beginning_is_told() -> None:
    outcome, _, _ = play("redis", 1, b"-ERR " + b"x" * 5000 + b"\r\n", b"")
    assert outcome.failure is not None
    assert outcome.failure.body == b"-ERR " + b"x" * 1019


def test_a_refusal_is_told_cut_anywhere() -> None:
    refusal = b"-ERR no\r\n"
    for place in range(len(refusal)):
        outcome, _, _ = play("redis", 1, b"", refusal, [place])
        assert outcome.failure is not None
        assert outcome.failure.body == b"-ERR no"


def test_a_reader_of_streams_that_cannot_ask_for_more_ends_the_run() -> None:
    with peer_rig("redis-stream", bounded=False) as rig:
        rig.publisher.send(ids(3))
        rig.subscriber.send(read([payload(0)]) + read([payload(1)], first=1))
        rig.subscriber.close()
        outcome = rig.run(3)
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.connection) == ("socket", 1)


def test_only_the_first_refusal_is_told() -> None:
    outcome, _, _ = play("redis", 1, b"-ERR one\r\n-ERR two\r\n", b"-ERR three\r\n")
    assert outcome.failure is not None
    assert outcome.failure.body in (b"-ERR one", b"-ERR three")


def test_a_peer_that_closes_ends_the_run() -> None:
    with peer_rig("redis", bounded=False) as rig:
        rig.subscriber.close()
        outcome = rig.run(1)
    assert outcome.failure is not None
    assert outcome.failure.reason == "closed"


@pytest.mark.parametrize("options", [{"owned": True}, {"crc": True}, {"random": True}])
def test_what_only_the_broker_has_is_refused(options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="mean nothing"):
        Driver([NAME], publishers=1, dialect="redis", **options)


def test_a_dialect_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(ValueError, match="got amqp, one of broker, redis, redis-stream, nats"):
        Driver([NAME], publishers=1, dialect="amqp")


def test_a_request_for_many_streams_finds_room() -> None:
    names = [b"room.%d" % number for number in range(300)]
    with peer_rig("redis-stream", names=names, bounded=False) as rig:
        (words,) = resp.commands(received(rig.subscriber))
    assert words[6:] == names + [b"0-0"] * 300


def test_a_reader_that_reads_nothing_says_nothing() -> None:
    """Redis asks nobody whether he lives."""
    with peer_rig("redis") as rig:
        rig.driver.halt(0)
        rig.publisher.send(b":1\r\n")
        assert rig.run(1).finished
        assert received(rig.subscriber) == b""


def test_a_reader_that_is_slow_holds_the_publisher_back() -> None:
    with peer_rig("redis", window=8, bounded=False) as rig:
        rig.publisher.send(b":1\r\n" * 8)
        outcome = rig.run(100)
        assert (outcome.sent, outcome.finished) == (8, False)
        assert len(resp.commands(received(rig.publisher))) == 8
