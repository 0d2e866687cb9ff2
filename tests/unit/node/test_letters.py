"""Dead letters: what a copy keeps of its source, what it says of it, and that it can be undone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from broker.model.errors import BrokerError
from broker.node.letters import HEADERS_BYTES_MAX, TIMES_MAX, Letter, fields_of, letter_of, letter_record, source_record
from broker.node.redrive import find_letters
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, build_chunk

HEADERS = msgpack.packb({"a": [1, 2], "broker-other": "mine"})


def letter(record: bytes, **more: Any) -> bytes:
    given = {"consumer": "c", "channel": "s.x", "epoch": 7, "sequence": 9, "attempts": 3, "reason": 2, **more}
    return letter_record(record, **given)


@pytest.mark.parametrize(
    "record",
    [
        Record(b"payload"),
        Record(b""),
        Record(b"payload", key=b"k", headers=HEADERS, priority=0),
        Record(b"payload", publisher=b"somebody", number=5, priority=3, expiry_s=60, key=b"k" * 255, headers=HEADERS),
    ],
)
def test_a_letter_keeps_what_matters_and_says_where_it_is_from(record: Record) -> None:
    whole = build_record(record)
    made = letter(whole)
    fields, before = fields_of(made), fields_of(whole)
    assert fields._replace(headers=b"") == before._replace(headers=b"")
    headers = msgpack.unpackb(fields.headers)
    assert headers == {
        **(msgpack.unpackb(record.headers) if record.headers else {}),
        "broker-source": "s.x", "broker-epoch": 7, "broker-sequence": 9,
        "broker-consumer": "c", "broker-attempts": 3, "broker-reason": "attempts",
    }  # fmt: skip
    assert letter_of(made) == Letter("c", "s.x")
    plain = replace(record, number=None, expiry_s=None)
    assert source_record(made) == build_record(plain)


def test_a_letter_of_a_letter_keeps_its_first_source() -> None:
    made = letter(letter(build_record(Record(b"x"))), consumer="d", channel="s.dead", epoch=1, sequence=1, reason=1)
    headers = msgpack.unpackb(fields_of(made).headers)
    assert (headers["broker-source"], headers["broker-epoch"], headers["broker-sequence"]) == ("s.x", 7, 9)
    assert (headers["broker-consumer"], headers["broker-reason"]) == ("d", "rejected")


def test_there_is_an_end_to_letters_of_letters() -> None:
    made = letter(build_record(Record(b"x")))
    for times in range(2, TIMES_MAX + 1):
        made = letter(made, consumer="d")
        assert msgpack.unpackb(fields_of(made).headers)["broker-times"] == times
    with pytest.raises(BrokerError, match=r"INVALID_CONSUMER.*got 16 times that it was given up, limit 16"):
        letter(made)
    assert source_record(made) == build_record(Record(b"x"))


@pytest.mark.parametrize("headers", [b"\xc1", b"\x91\1", b"\x81", msgpack.packb({"a": bytes(HEADERS_BYTES_MAX - 20)})])
def test_headers_that_nobody_can_add_to_are_left_with_the_source(headers: bytes) -> None:
    made = letter(build_record(Record(b"x", headers=headers[:HEADERS_BYTES_MAX])))
    assert set(msgpack.unpackb(fields_of(made).headers)) == {
        "broker-source", "broker-epoch", "broker-sequence", "broker-consumer", "broker-attempts", "broker-reason"
    }  # fmt: skip


@pytest.mark.parametrize(
    "headers", [None, HEADERS, b"\xc1", msgpack.packb({"broker-source": 1, "broker-consumer": "c"})]
)
def test_other_records_are_no_letters(headers: bytes | None) -> None:
    assert letter_of(build_record(Record(b"x", headers=headers))) is None


def test_letters_of_one_consumer_are_found_behind_a_place_and_up_to_a_bound() -> None:
    records = [Record(b"%d" % at) for at in range(4)]
    letters = [letter(build_record(record), consumer="c" if at % 2 else "d") for at, record in enumerate(records)]
    body = letters[0] + letters[1] + build_record(Record(gone=(2, 5))) + letters[2] + letters[3]
    chunk = build_chunk(Chunk(1, 3, 11, 9, body))
    found = find_letters([(1, 0, chunk)], "c", (3, 10), 10)
    assert [(at, record[-1:]) for at, _, record in found.letters] == [(12, b"1"), (19, b"3")]
    assert (found.position, found.more, found.others) == ((3, 19), True, 11)
    assert find_letters([(1, 0, chunk)], "c", (3, 10), 1).position == (3, 12)
    assert [at for at, _, _ in find_letters([(1, 0, chunk)], "c", (3, 12), 9).letters] == [19]
    assert find_letters([], "c", (3, 12), 9) == ([], (3, 12), False, 0)
