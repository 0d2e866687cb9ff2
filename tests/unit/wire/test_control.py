"""Control bodies: what goes in comes out, and what is no control body costs little and is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.errors import BrokerError, Conflict, MalformedFrame, error
from broker.model.positions import Position
from broker.wire import control
from broker.wire.kinds import HELLO_MAGIC, VERSION, Kind

JOURNAL = bytes(range(16))
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NUMBER = st.integers(1, 2**32 - 1)
TEXT = st.text(max_size=20)


def body_of(frame: bytes, kind: Kind) -> bytes:
    """Take the header off a frame, which is of this kind."""
    assert int.from_bytes(frame[:4], "little") == len(frame) - 8
    assert frame[4:8] == bytes([kind, 0, 0, 0])
    return frame[8:]


starts = st.one_of(
    st.just(control.FromNew()),
    st.just(control.FromStart()),
    st.lists(st.tuples(TEXT, U64, U64), max_size=5).map(lambda items: control.FromPositions(tuple(items))),
    st.builds(control.FromBus, st.just(JOURNAL), U64, U32),
    st.builds(control.FromTime, U64),
    st.builds(control.FromLast, U64),
)


@given(TEXT, st.none() | st.binary(min_size=16, max_size=16), st.none() | TEXT)
def test_hello(client: str, producer: bytes | None, token: str | None) -> None:
    frame = control.encode_hello(client, producer, token)
    assert control.decode_hello(body_of(frame, Kind.HELLO)) == control.Hello(client, producer, token)


@given(TEXT, U64, U64, st.lists(U64, min_size=5, max_size=5), st.integers(0, 1000))
def test_welcome(server: str, run: int, highest: int, limits: list[int], ping_s: float) -> None:
    welcome = control.Welcome(server, run, JOURNAL, highest, control.Limits(*limits), ping_s)
    assert control.decode_welcome(body_of(control.encode_welcome(welcome), Kind.WELCOME)) == welcome


@given(NUMBER, st.lists(TEXT, min_size=1, max_size=4), U64, starts)
def test_subscribe(number: int, filters: list[str], credit: int, start: control.Start) -> None:
    wanted = control.Subscribe(number, tuple(filters), credit, start)
    assert control.decode_subscribe(body_of(control.encode_subscribe(wanted), Kind.SUBSCRIBE)) == wanted


@given(NUMBER, st.lists(st.builds(control.Outcome, TEXT, TEXT, U64, U64), max_size=4), U64, U32)
def test_subscribed(number: int, outcomes: list[control.Outcome], group: int, index: int) -> None:
    answer = control.Subscribed(number, tuple(outcomes), control.FromBus(JOURNAL, group, index))
    assert control.decode_subscribed(body_of(control.encode_subscribed(answer), Kind.SUBSCRIBED)) == answer


@given(
    st.sampled_from(["BUSY", "CLOSED", "COMMIT_UNKNOWN"]),
    TEXT,
    st.none() | TEXT,
    st.sampled_from([{}, {"subscription": 3}, {"request": 0}, {"channel": 0}, {"number": 2**64 - 1, "count": 1}]),
)
def test_error(name: str, detail: str, hint: str | None, concerns: dict[str, int]) -> None:
    failure = error(name, detail, hint)
    refusal = control.decode_error(body_of(control.encode_error(failure, **cast("Any", concerns)), Kind.ERROR))
    assert (refusal.failure.args, type(refusal.failure)) == (failure.args, type(failure))
    everything = ("subscription", "request", "channel", "number", "count")
    assert {key: getattr(refusal, key) for key in everything if getattr(refusal, key) is not None} == concerns


@given(U64, U64, st.none() | st.integers(1, 2**32 - 1))
def test_a_conflict_tells_the_head(epoch: int, sequence: int, index: int | None) -> None:
    frame = control.encode_error(error("CONFLICT", "it is"), number=1, count=2, head=(epoch, sequence), index=index)
    failure = control.decode_error(body_of(frame, Kind.ERROR)).failure
    assert isinstance(failure, Conflict)
    assert (failure.head, failure.index) == (Position(epoch, sequence), index or 0)


def test_a_conflict_of_a_server_that_tells_no_head() -> None:
    failure = control.decode_error(
        body_of(control.encode_error(error("CONFLICT", ""), number=1, count=1), Kind.ERROR)
    ).failure
    assert isinstance(failure, Conflict)
    assert (failure.head, failure.index) == (None, 0)


@given(NUMBER, TEXT, TEXT, st.dictionaries(TEXT, U64, max_size=3))
def test_event(number: int, name: str, channel: str, more: dict[str, int]) -> None:
    event = control.decode_event(body_of(control.encode_event(number, name, channel, more), Kind.EVENT))
    assert (event.subscription, event.event, event.channel) == (number, name, channel)
    assert event.more == {key: value for key, value in more.items() if key not in ("subscription", "event", "channel")}


def test_the_other_frames() -> None:
    request = control.decode_request(body_of(control.encode_request(7, "channel", {"name": "a"}), Kind.REQUEST))
    assert request == control.Request(7, "channel", {"name": "a"})
    assert control.decode_reply(body_of(control.encode_reply(7, {"head": 3}), Kind.REPLY)) == (7, {"head": 3})
    assert control.decode_unsubscribe(body_of(control.encode_unsubscribe(9), Kind.UNSUBSCRIBE)) == 9
    assert control.decode_unsubscribe(body_of(control.encode_unsubscribed(9), Kind.UNSUBSCRIBED)) == 9
    for notice in (control.GoingAway(1.5), control.GoingAway(0.0, 2500)):
        assert control.decode_going_away(body_of(control.encode_going_away(*notice), Kind.GOING_AWAY)) == notice
    assert control.decode_token(body_of(control.encode_ping(2**64 - 1), Kind.PING)) == 2**64 - 1
    assert control.decode_token(body_of(control.encode_pong(0), Kind.PONG)) == 0
    assert control.decode_channel(body_of(control.encode_channel(5, b"a.b"), Kind.CHANNEL)) == (5, b"a.b")
    assert control.decode_credit(body_of(control.encode_credit(5, 2**64 - 1), Kind.CREDIT)) == (5, 2**64 - 1)
    assert control.frame(Kind.PONG, b"x", flags=3) == b"\1\0\0\0\5\3\0\0x"


def test_what_a_newer_peer_adds_is_passed_over() -> None:
    packed = msgpack.packb({"subscription": 1, "news": [1, {"a": b"b"}]})
    assert control.decode_unsubscribe(packed) == 1
    hello = HELLO_MAGIC + msgpack.packb({"versions": [VERSION + 1, VERSION], "client": "c", "colour": "red"})
    assert control.decode_hello(hello) == control.Hello("c", None, None)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"subscription": 0, "filters": ["a"], "credit": 1},
        {"subscription": 2**32, "filters": ["a"], "credit": 1},
        {"subscription": True, "filters": ["a"], "credit": 1},
        {"subscription": 1.0, "filters": ["a"], "credit": 1},
        {"subscription": 1, "filters": [], "credit": 1},
        {"subscription": 1, "filters": "a", "credit": 1},
        {"subscription": 1, "filters": [b"a"], "credit": 1},
        {"subscription": 1, "filters": ["a"], "credit": -1},
        {"subscription": 1, "filters": ["a"]},
        *(
            {"subscription": 1, "filters": ["a"], "credit": 1, "start": start}
            for start in (
                None,
                "new",
                {},
                {"from": "end"},
                {"from": "new", "last": 1},
                {"positions": [["a", 1]]},
                {"positions": [["a", 1, -1]]},
                {"positions": {"a": 1}},
                {"bus": [b"short", 1, 1]},
                {"bus": [JOURNAL, 1]},
                {"bus": [JOURNAL, 1, 1 << 32]},
                {"last": -1},
                {"time_us": 1.5},
            )
        ),
    ],
)
def test_a_subscribe_with_a_wrong_field_is_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame):
        control.decode_subscribe(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "MALFORMED_FRAME"),
        (b"GET / HTTP/1.1\r\n\r\n", "MALFORMED_FRAME"),
        (HELLO_MAGIC, "MALFORMED_FRAME"),
        (HELLO_MAGIC + msgpack.packb({"client": "c"}), "MALFORMED_FRAME"),
        (HELLO_MAGIC + msgpack.packb({"versions": [VERSION]}), "MALFORMED_FRAME"),
        (HELLO_MAGIC + msgpack.packb({"versions": [VERSION], "client": "c", "producer": b"short"}), "MALFORMED_FRAME"),
        (HELLO_MAGIC + msgpack.packb({"versions": [], "client": "c"}), "VERSION"),
        (HELLO_MAGIC + msgpack.packb({"versions": [2, 3], "client": "c"}), "VERSION"),
        (HELLO_MAGIC + msgpack.packb({"versions": [True], "client": "c"}), "MALFORMED_FRAME"),
        (HELLO_MAGIC + msgpack.packb({"versions": [1.0], "client": "c"}), "MALFORMED_FRAME"),
    ],
)
def test_a_hello_that_is_none(body: bytes, name: str) -> None:
    with pytest.raises(BrokerError) as raised:
        control.decode_hello(body)
    assert raised.value.name == name


@pytest.mark.parametrize("decode", [control.decode_token, control.decode_credit, control.decode_channel])
def test_bodies_that_are_no_maps_have_a_size(decode: Any) -> None:
    with pytest.raises(MalformedFrame):
        decode(b"abc")


def test_reserved_bits_of_credit_are_zero() -> None:
    with pytest.raises(MalformedFrame):
        control.decode_credit(bytes(4) + b"\1\0\0\0" + bytes(8))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * (depth - 1) + b"\x80"


def test_depth_and_items_have_bounds_and_reach_them() -> None:
    assert control.decode(nested(control.DEPTH_MAX))
    with pytest.raises(MalformedFrame, match="deeper"):
        control.decode(nested(control.DEPTH_MAX + 1))
    full = {"a": list(range(control.ITEMS_MAX))}
    assert control.decode(msgpack.packb(full)) == full
    with pytest.raises(MalformedFrame, match="items"):
        control.decode(msgpack.packb({"a": list(range(control.ITEMS_MAX + 1))}))
    with pytest.raises(MalformedFrame, match="items"):
        control.decode(msgpack.packb({str(number): 1 for number in range(control.ITEMS_MAX + 1)}))
    with pytest.raises(MalformedFrame, match="values"):
        control.decode(msgpack.packb({str(number): [0] * 1000 for number in range(17)}))
    with pytest.raises(MalformedFrame, match="items"):
        control.encode(Kind.REPLY, {"a": list(range(control.ITEMS_MAX + 1))})


BOMBS = {
    "arrays in arrays": b"\x91" * 60_000,
    "maps in maps": b"\x81\xa0" * 30_000,
    "an array of 4 G": b"\x81\xa0\xdd\xff\xff\xff\xff",
    "a map of 4 G": b"\xdf\xff\xff\xff\xff",
    "many empty maps": b"\x81\xa0" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 60,
    "a string of 4 G": b"\x81\xa0\xdb\xff\xff\xff\xff",
    "bytes of 4 G": b"\x81\xa0\xc6\xff\xff\xff\xff",
    "wide and deep": b"\x81\xa0" + (b"\xdc\x04\x00" * 14) + b"\x80" * 60_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_next_to_nothing(name: str) -> None:
    bomb = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame):
            control.decode(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024 + 2 * len(bomb)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, values, max_size=5))
def test_every_map_comes_back(fields: dict[str, Any]) -> None:
    assert control.decode(msgpack.packb(fields)) == fields
    whole = {key: value for key, value in fields.items() if value is not None}
    assert control.decode(body_of(control.encode(Kind.REPLY, fields), Kind.REPLY)) == whole


@given(st.dictionaries(TEXT, values, min_size=1, max_size=5), st.data())
def test_every_cut_and_every_addition_is_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    packed = msgpack.packb(fields)
    cut = data.draw(st.integers(0, len(packed) - 1))
    for damaged in (packed[:cut], packed + b"\0"):
        with pytest.raises(MalformedFrame):
            control.decode(damaged)


@given(st.binary(max_size=120))
def test_noise_is_a_map_or_malformed(noise: bytes) -> None:
    try:
        found = control.decode(noise)
    except MalformedFrame:
        return
    assert isinstance(found, dict)
    assert all(isinstance(key, str) for key in found)


@pytest.mark.parametrize("packed", [b"\x81\xa1\xff\x01", b"\x81\xa0\xa2\xc3\x28", b"\x81\xa0\xc7\x01\x05\x00"])
def test_text_that_is_none_and_extensions_are_malformed(packed: bytes) -> None:
    with pytest.raises(MalformedFrame):
        control.decode(packed)


@given(
    st.binary(max_size=40)
    | st.dictionaries(
        TEXT | st.binary(max_size=2) | U64, U64 | TEXT | st.binary(max_size=4) | st.none() | st.lists(U64, max_size=2)
    ).map(msgpack.packb),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_the_short_cut_accepts_nothing_that_the_walk_refuses(packed: bytes, at: int, byte: int) -> None:
    for body in (packed, packed[:at] + bytes([byte]) + packed[at + 1 :]):
        flat = control.decode_flat(body)
        if flat is not None:
            control.walk(body)
            assert control.decode(body) == flat


@pytest.mark.parametrize(
    "value", [{}, {"a": 1, "b": "x", "c": b"y", "d": None, "e": True, "f": -1.5}, {"long": "x" * 400}], ids=str
)
def test_the_short_cut_takes_what_it_is_for(value: dict[str, Any]) -> None:
    assert control.decode_flat(msgpack.packb(value)) == value


@pytest.mark.parametrize("value", [{"a": []}, {"a": {}}, {"a": [1]}, {b"a": 1}, {1: 1}, [], 1, "x"], ids=str)
def test_the_short_cut_leaves_the_rest_to_the_walk(value: object) -> None:
    assert control.decode_flat(msgpack.packb(value)) is None


def test_headers_that_msgpack_cannot_hold_are_an_error_of_the_caller() -> None:
    assert msgpack.unpackb(control.pack_headers({"a": b"b"})) == {"a": b"b"}
    for value in (object(), 2**64, {1, 2}):
        with pytest.raises(BrokerError, match="INVALID_RECORD"):
            control.pack_headers({"a": value})
