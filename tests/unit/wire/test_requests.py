"""Questions and answers of REQUEST: what goes in comes out, and what is of a wrong type is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.errors import InvalidChannel, MalformedFrame
from broker.model.history import (
    HISTORY_BYTES_MAX,
    NAMES_MAX,
    BusPart,
    BusQuery,
    ChannelRow,
    HistoryPart,
    HistoryQuery,
    NamedChunk,
    NamesPart,
    NamesQuery,
    Trim,
)
from broker.model.names import check_channel
from broker.model.positions import BusPosition
from broker.wire import control, requests
from broker_native.names import is_channel

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=20) | st.sampled_from(["chat", "chat.acme.42", "$reply.1", "a..b", "x" * 129])
BYTES = st.integers(1, HISTORY_BYTES_MAX)
PLACES = st.builds(BusPosition, st.binary(min_size=16, max_size=16), U64, U32)

QUERIES = st.one_of(
    st.builds(
        HistoryQuery,
        TEXT,
        st.none() | U64,
        U64,
        st.none() | U64,
        st.none() | U64,
        st.none() | U64,
        st.none() | U64,
        st.none() | st.integers(1, 2**64 - 1),
        st.booleans(),
        BYTES,
    ),
    st.builds(BusQuery, TEXT, st.none() | PLACES, st.none() | U64, BYTES),
    st.builds(NamesQuery, TEXT, TEXT, st.integers(1, NAMES_MAX), st.booleans()),
    st.builds(Trim, TEXT, st.integers(1, 2**64 - 1)),
)
PARTS = st.one_of(
    st.builds(
        HistoryPart, U64, U64, U64, st.integers(1, 4), st.sampled_from(["resumed", "trimmed"]), U64, U64, U64,
        st.booleans(), st.binary(max_size=40),
    ),
    st.builds(
        HistoryPart, U64, U64, U64, st.integers(1, 4), st.none(), st.just(0), U64, U64, st.booleans(),
        st.binary(max_size=40),
    ),
    st.builds(
        BusPart,
        TEXT,
        st.lists(st.builds(NamedChunk, TEXT, U64, U32, st.binary(max_size=9)), max_size=4).map(tuple),
        PLACES,
        st.booleans(),
    ),
    st.builds(
        NamesPart,
        st.lists(
            TEXT.map(ChannelRow) | st.builds(ChannelRow, TEXT, U64, U64, U64, st.integers(1, 4)), max_size=4
        ).map(tuple),
        st.booleans(),
    ),
)  # fmt: skip
DECODERS: dict[type, Any] = {
    HistoryQuery: requests.decode_history_query,
    BusQuery: requests.decode_bus_query,
    NamesQuery: requests.decode_names_query,
    Trim: requests.decode_trim,
    HistoryPart: requests.decode_history_part,
    BusPart: requests.decode_bus_part,
    NamesPart: requests.decode_names_part,
}


@given(QUERIES)
def test_a_question_goes_through(query: Any) -> None:
    frame = control.encode_request(7, "op", requests.pack_query(query))
    assert DECODERS[type(query)](control.decode_request(frame[8:]).more) == query


@given(PARTS, U32)
def test_an_answer_goes_through(part: Any, number: int) -> None:
    request, fields = control.decode_reply(requests.encode_part(number, part)[8:])
    assert (request, DECODERS[type(part)](fields)) == (number, part)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (HistoryQuery, {}),
        (HistoryQuery, {"channel": b"x"}),
        (HistoryQuery, {"channel": "x", "after": -1}),
        (HistoryQuery, {"channel": "x", "after": 1.0}),
        (HistoryQuery, {"channel": "x", "limit": 0}),
        (HistoryQuery, {"channel": "x", "bytes": 0}),
        (HistoryQuery, {"channel": "x", "reverse": 1}),
        (BusQuery, {}),
        (BusQuery, {"pattern": "x", "bus": [b"short", 1, 2]}),
        (NamesQuery, {"limit": 0}),
        (NamesQuery, {"limit": NAMES_MAX + 1}),
        (NamesQuery, {"prefix": b"x"}),
        (NamesQuery, {"details": "yes"}),
        (Trim, {"name": "x"}),
        (Trim, {"name": "x", "first": 0}),
        (HistoryPart, {"epoch": 1, "first": 1, "head": 1, "level": 3, "after": 0, "before": 1, "chunks": "text"}),
        (HistoryPart, {"epoch": 1, "first": 1, "head": 1, "level": 9, "after": 0, "before": 1, "chunks": b""}),
        (BusPart, {"outcome": "resumed", "chunks": [["x", 1, 2]], "bus": [bytes(16), 1, 2]}),
        (BusPart, {"outcome": "resumed", "chunks": [["x", 1, 1 << 32, b""]], "bus": [bytes(16), 1, 2]}),
        (BusPart, {"outcome": "resumed", "chunks": []}),
        (NamesPart, {"channels": [["x", 1]]}),
        (NamesPart, {"channels": [[1]]}),
        (NamesPart, {"channels": "x"}),
    ],
)
def test_what_is_wrong_is_refused(kind: type, fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame):
        DECODERS[kind](fields)


def test_more_bytes_than_there_may_be_count_as_that() -> None:
    assert requests.decode_history_query({"channel": "x", "bytes": 1 << 40}).bytes_max == HISTORY_BYTES_MAX


@pytest.mark.parametrize(
    ("body", "count"), [({}, 500), ({"limit": 1}, 1), ({"limit": 500}, 500), ({"limit": 501}, 500)]
)
def test_how_many_readers_are_asked_for(body: dict[str, Any], count: int) -> None:
    assert requests.decode_lagging_query(body) == count


@pytest.mark.parametrize("limit", [0, -1, "1", 1.0, None])
def test_a_number_of_readers_that_is_none(limit: Any) -> None:
    with pytest.raises(MalformedFrame):
        requests.decode_lagging_query({"limit": limit})


# --- Questions in one step --------------------------------------------------------------------------------------------


def asked(body: bytes) -> tuple[int, HistoryQuery, bytes] | None:
    """Take a whole body the long way; None when it is refused, or something else is asked for."""
    try:
        request = control.decode_request(body)
        if request.op != "history" or "pattern" in request.more:
            return None
        query = requests.decode_history_query(request.more)
        return request.request, query, check_channel(query.channel)
    except (MalformedFrame, InvalidChannel):
        return None


@given(U32, QUERIES)
def test_a_question_in_one_step_is_the_same(number: int, query: HistoryQuery | BusQuery | NamesQuery | Trim) -> None:
    operation = "history" if isinstance(query, HistoryQuery | BusQuery) else "channels"
    body = control.encode_request(number, operation, requests.pack_query(query))[8:]
    taken = requests.decode_question(body)
    if isinstance(query, HistoryQuery) and is_channel(query.channel.encode()):
        assert taken == (number, query, query.channel.encode())
    else:
        assert taken is None


NAMES = st.sampled_from([
    "request", "op", "channel", "after", "after_epoch", "before", "from_us", "until_us", "last", "limit", "reverse",
    "bytes", "pattern", "a", "é" * 20,
])  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-40, 300), st.sampled_from([2**16, 2**32 - 1, 2**32, 2**64 - 1]),
    st.sampled_from(["history", "channels", "", "x" * 31, "x" * 32, "x" * 300, "é"]), st.binary(max_size=3),
    st.floats(), st.lists(st.integers(0, 9), max_size=2),
)  # fmt: skip


@given(st.dictionaries(NAMES, VALUES), st.booleans(), st.binary(max_size=2), st.integers(0, 40))
def test_whatever_a_question_in_one_step_takes_is_right(
    fields: dict[str, object], plausible: bool, behind: bytes, cut: int
) -> None:
    if plausible:
        fields = {"request": 7, "op": "history", "channel": "room", **fields}
    body = msgpack.packb(fields)
    for each in (body, body + behind, body[: max(len(body) - cut, 0)], body[:-1] + b"\xc3"):
        taken = requests.decode_question(each)
        assert taken is None or taken == asked(each)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80",
        b"\x90",
        b"\xde\x00\x00",
        b"\x84\xa7request\x07\xa2op\xa7history\xa7channel\xa4room\xa4last\xcd\x01",
        b"\x84\xa7request\x07\xa2op\xa7history\xa7channel\xa4room\xa4last",
        b"\x84\xa7request\x07\xa2op\xa7history\xa7channel\xa4room\xa4last\xd0\x05",
        b"\x84\xa7request\x07\xa2op\xa7history\xa7channel\xa4room\xa7reverse",
        b"\x84\xa7request\x07\xa2op\xa7history\xa7channel\xa4room\xa2op\xa7history",
        b"\x83\xa7request\x07\xa2op\xa7history\xa7channel\xd9",
    ],
)
def test_what_a_question_in_one_step_leaves(body: bytes) -> None:
    assert requests.decode_question(body) is None
    assert requests.decode_question(body + bytes(40)) is None
