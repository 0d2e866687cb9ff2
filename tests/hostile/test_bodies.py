"""Frames that are whole, and say what may not be said: records, names, control maps.

What concerns one request is refused by its code, and the connection goes on; what concerns the connection ends it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from tests.hostile import attackers
from tests.hostile.attackers import (
    CHANNEL,
    ERROR,
    PING,
    PONG,
    PUBLISH,
    PUBLISH_BODY,
    PUBLISHED,
    REPLY,
    REQUEST,
    SUBSCRIBE,
    SUBSCRIBED,
    U32_MAX,
    U64_MAX,
    UNSUBSCRIBE,
    channel,
    frame,
    packed,
    ping,
    publish,
    record,
    subscribe,
)

if TYPE_CHECKING:
    from tests.hostile.service import Service

PAYLOAD_BYTES_MAX = 1 << 20
HEADERS_BYTES_MAX = 16 << 10
PUBLISHER, NUMBER, PRIORITY, EXPIRY, KEY, HEADERS, ID, GONE = 1, 2, 4, 8, 16, 32, 64, 0x8000


def headers(packed_bytes: bytes) -> bytes:
    """Return the field of packed headers."""
    return struct.pack("<H", len(packed_bytes)) + packed_bytes


# --- Records -------------------------------------------------------------------------------------------------------

BAD_RECORDS: dict[str, bytes] = {
    "zero records": publish(0, 1),
    "more than there are": publish(0, 1, record(b"x"), count=2),
    "fewer than there are": publish(0, 1, record(b"x"), record(b"y"), count=1),
    "65,536 records": publish(0, 1, *[record()] * 65_536),
    "2^32 - 1 records": publish(0, 1, record(b"x"), count=U32_MAX),
    "2^31 records": publish(0, 1, record(b"x"), count=1 << 31),
    "size 0": publish(0, 1, record(b"x", size=0)),
    "size 11": publish(0, 1, record(b"x", size=11)),
    "size one too large": publish(0, 1, record(b"x", size=14)),
    "size 2^31": publish(0, 1, record(b"x", size=1 << 31)),
    "size 2^32 - 1": publish(0, 1, record(b"x", size=U32_MAX)),
    "size that wraps the next": publish(0, 1, record(b"x", size=U32_MAX - 12), record(b"y")),
    "second one overruns": publish(0, 1, record(b"x"), record(b"y", size=100)),
    "half a header": publish(0, 1, record(b"x"), record()[:7], count=2),
    "bytes after the last": publish(0, 1, record(b"x"), b"rest", count=1),
    "reserved": publish(0, 1, record(b"x", reserved=1)),
    "reserved, high bit": publish(0, 1, record(b"x", reserved=0x8000)),
    "a publisher": publish(0, 1, record(b"\3bob", PUBLISHER)),
    "a number": publish(0, 1, record(bytes(8), NUMBER)),
    "gone": publish(0, 1, record(struct.pack("<B3xI", 1, 1), GONE)),
    "gone for 2^32 - 1": publish(0, 1, record(struct.pack("<B3xI", 5, U32_MAX), GONE)),
    "no priority": publish(0, 1, record(b"", PRIORITY)),
    "priority 4": publish(0, 1, record(b"\4x", PRIORITY)),
    "priority 255": publish(0, 1, record(b"\xffx", PRIORITY)),
    "half an expiry": publish(0, 1, record(b"\1\0\0", EXPIRY)),
    "expiry 0": publish(0, 1, record(struct.pack("<I", 0), EXPIRY)),
    "empty key": publish(0, 1, record(struct.pack("<H", 0), KEY)),
    "key of 256": publish(0, 1, record(struct.pack("<H", 256) + bytes(256), KEY)),
    "key that overruns": publish(0, 1, record(struct.pack("<H", 9) + b"k", KEY)),
    "key of 65,535": publish(0, 1, record(struct.pack("<H", 65_535) + b"k", KEY)),
    "headers that overrun": publish(0, 1, record(struct.pack("<H", 9) + b"\x80", HEADERS)),
    "all fields in one byte": publish(0, 1, record(b"\1", PRIORITY | EXPIRY | KEY | HEADERS)),
    "id that overruns": publish(0, 1, record(b"\x09i", ID)),
} | {f"flag {1 << bit:#x}": publish(0, 1, record(bytes(16), 1 << bit)) for bit in range(7, 15)}


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_bad_record_is_refused_and_takes_no_number(service: Service, what: str) -> None:
    with service.publisher() as peer:
        peer.send(BAD_RECORDS[what] + publish(0, 1, record(b"good")))
        refusal = peer.until(ERROR).fields()
        assert (refusal["name"], refusal["number"]) == ("INVALID_RECORD", 1), refusal
        assert attackers.ENTRY.unpack(peer.until(PUBLISHED).body)[0] == 1
        assert peer.alive()


def test_records_at_the_edge_are_taken(service: Service) -> None:
    """What the refused ones are beside: 65,535 records, an expiry and a key at their largest, every priority."""
    with service.publisher() as peer:
        edge = [
            record(struct.pack("<I", U32_MAX), EXPIRY),
            record(struct.pack("<H", 255) + bytes(255), KEY),
            *[record(bytes([priority]), PRIORITY) for priority in range(4)],
        ]
        peer.send(publish(0, 1, *[record()] * 65_535) + publish(0, 65_536, *edge))
        first = attackers.ENTRY.unpack(peer.until(PUBLISHED).body[:40])
        assert (first[0], first[3]) in ((1, 65_535), (1, 65_541))
        assert peer.alive()
        assert peer.errors == []


@pytest.mark.parametrize("more", [1, 1000])
def test_payload_over_its_limit(service: Service, more: int) -> None:
    with service.publisher() as peer:
        peer.send(publish(0, 1, record(bytes(PAYLOAD_BYTES_MAX + more))))
        peer.send(publish(0, 1, record(bytes(PAYLOAD_BYTES_MAX))))
        assert peer.until(ERROR).fields()["name"] == "PAYLOAD_TOO_LARGE"
        assert peer.until(PUBLISHED)


def test_headers_over_their_limit(service: Service) -> None:
    with service.publisher() as peer:
        largest = bytes(msgpack.packb({"k": bytes(HEADERS_BYTES_MAX - 6)}))
        assert len(largest) == HEADERS_BYTES_MAX
        over = bytes(msgpack.packb({"k": bytes(HEADERS_BYTES_MAX - 5)}))
        peer.send(publish(0, 1, record(headers(over), HEADERS)) + publish(0, 1, record(headers(largest), HEADERS)))
        assert peer.until(ERROR).fields()["name"] == "HEADERS_TOO_LARGE"
        assert peer.until(PUBLISHED)


@pytest.mark.parametrize("size", [0, 1, 4, 8, 15])
def test_publish_without_its_fields_ends_the_connection(service: Service, size: int) -> None:
    with service.publisher() as peer:
        peer.send(frame(PUBLISH, PUBLISH_BODY.pack(0, 1, 1)[:size]))
        assert peer.ended() == "MALFORMED_FRAME"


# --- Names ---------------------------------------------------------------------------------------------------------

NO_NAMES: dict[bytes, str] = {
    b"": "INVALID_CHANNEL",
    b".": "INVALID_CHANNEL",
    b"a..b": "INVALID_CHANNEL",
    b".a": "INVALID_CHANNEL",
    b"a.": "INVALID_CHANNEL",
    b"a b": "INVALID_CHANNEL",
    b"a\r\nb": "INVALID_CHANNEL",
    b"a\0b": "INVALID_CHANNEL",
    b"a\x7fb": "INVALID_CHANNEL",
    b"a\xff": "INVALID_CHANNEL",
    "ä.ö".encode(): "INVALID_CHANNEL",
    "a\uff0eb".encode(): "INVALID_CHANNEL",
    b"*": "INVALID_CHANNEL",
    b"a.*": "INVALID_CHANNEL",
    b">": "INVALID_CHANNEL",
    b"a.>": "INVALID_CHANNEL",
    b"a*>b": "INVALID_CHANNEL",
    b'a"b': "INVALID_CHANNEL",
    b"a\\b": "INVALID_CHANNEL",
    b"a.$b": "INVALID_CHANNEL",
    b"$": "DENIED",
    b"$SYS.a": "DENIED",
    b"x" * 129: "INVALID_CHANNEL",
    b"x." * 128: "INVALID_CHANNEL",
    b"x." * 127 + b"yy": "INVALID_CHANNEL",
    b"x" * 60_000: "INVALID_CHANNEL",
}
"""What no channel can be called, and how CHANNEL refuses it."""

NO_FILTERS = [name for name in NO_NAMES if name not in (b"*", b"a.*", b">", b"a.>")] + [
    b"*>",
    b"a.*b",
    b"a.b*",
    b">.a",
    b"a.>.b",
    b"**",
    b">>",
    b"$.>",
]


def text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name[:12]))
def test_name_that_is_none(service: Service, name: bytes) -> None:
    with service.opened() as peer:
        peer.send(channel(0, name) + publish(0, 1, record(b"x")))
        refused = peer.until(ERROR).fields()
        assert (refused["name"], refused["channel"]) == (NO_NAMES[name], 0)
        refused = peer.until(ERROR).fields()
        assert (refused["name"], refused["number"]) == ("INVALID_CHANNEL", 1)
        if name.isascii():
            peer.send(packed(REQUEST, request=9, op="channel", name=text(name)))
            refused = peer.until(ERROR).fields()
            assert (refused["name"], refused["request"]) == (NO_NAMES[name], 9)
        assert peer.alive()


@pytest.mark.parametrize("name", NO_FILTERS, ids=lambda name: repr(name[:12]))
def test_filter_that_is_none(service: Service, name: bytes) -> None:
    """Alone, or behind a good one: then the good one is not subscribed either."""
    if b"\xff" in name:
        raw = b"\x83\xacsubscription\x03\xa6credit\x00\xa7filters\x91" + bytes(msgpack.packb("zz")).replace(b"zz", name)
        with service.opened() as peer:
            peer.send(frame(SUBSCRIBE, raw))
            assert peer.ended() == "MALFORMED_FRAME"
        return
    with service.opened() as peer:
        peer.send(subscribe(3, text(name)) + subscribe(4, "a.good", text(name)))
        for number in (3, 4):
            refused = peer.until(ERROR).fields()
            assert refused["name"] == ("DENIED" if name.startswith(b"$") else "INVALID_PATTERN")
            assert refused["subscription"] == number
        peer.send(subscribe(4, "a.good"))
        assert peer.until(SUBSCRIBED).fields()["subscription"] == 4


def test_names_at_the_edge_are_taken(service: Service) -> None:
    with service.opened() as peer:
        for slot, name in enumerate([b"x" * 128, b"x" * 128 + b"." + b"y" * 126, b"x." * 127 + b"y", b"!#%&'()+,-/~"]):
            peer.send(channel(slot, name) + publish(slot, slot + 1, record(b"x")))
            peer.until(PUBLISHED)
        assert peer.errors == []


# --- Control maps --------------------------------------------------------------------------------------------------

SUBSCRIBE_GOOD: dict[str, Any] = {"subscription": 1, "filters": ["a.b"], "credit": 1}
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, "1", b"1", [], {}, [1])
"""Values of every type, none of which fits an unsigned number."""


def bombs() -> dict[str, bytes]:
    """Return bodies that are small and ask for much, or are no map at all."""
    deep = b"\x91" * 5_000 + b"\xc0"
    return {
        "nothing": b"",
        "nil": b"\xc0",
        "an array": b"\x93\1\2\3",
        "a number": b"\1",
        "5,000 deep": b"\x81\xa1k" + deep,
        "17 deep": b"\x81\xa1k" + b"\x91" * 16 + b"\xc0",
        "maps 5,000 deep": b"\x81\xa1k" * 5_000 + b"\xc0",
        "array of 2^32 - 1": b"\x81\xa1k\xdd\xff\xff\xff\xff",
        "map of 2^32 - 1": b"\xdf\xff\xff\xff\xff",
        "array of 65,535": b"\x81\xa1k\xdc\xff\xff" + b"\xc0" * 65_535,
        "1,025 items": b"\x81\xa1k\xdc\x04\x01" + b"\xc0" * 1_025,
        "string of 2^32 - 1": b"\x81\xa1k\xdb\xff\xff\xff\xffabc",
        "bytes of 2^31": b"\x81\xa1k\xc6\x80\0\0\0abc",
        "an extension": b"\x81\xa1k\xd4\1\0",
        "an extension of 2^32 - 1": b"\x81\xa1k\xc9\xff\xff\xff\xff\1",
        "a timestamp": b"\x81\xa1k\xd6\xff\0\0\0\0",
        "the byte that is none": b"\x81\xa1k\xc1",
        "bytes after the map": b"\x80\xc0",
        "another map after the map": b"\x80\x80",
        "cut in a key": b"\x81\xa5ke",
        "cut before a value": b"\x81\xa1k",
        "a number as a key": b"\x81\1\1",
        "bytes as a key": b"\x81\xc4\1k\1",
        "an array as a key": b"\x81\x90\1",
        "text that is none": b"\x81\xa1k\xa2\xff\xfe",
        "text that is half a pair": b"\x81\xa1k\xa3\xed\xa0\x80",
        "20,000 values": b"\xde\x00\x14"
        + b"".join(b"\xa2" + b"%02d" % n + b"\xdc\x03\xe8" + b"\xc0" * 1_000 for n in range(20)),
        "1 MiB of empty arrays": b"\x81\xa1k\xdd\x00\x0f\xff\xf0" + b"\x90" * ((1 << 20) - 16),
        "1,024 x 1,024 empty arrays": b"\x81\xa1k\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x90" * 1_024) * 1_000,
    }


@pytest.mark.parametrize("kind", [SUBSCRIBE, UNSUBSCRIBE, REQUEST])
@pytest.mark.parametrize("what", bombs())
def test_bomb(service: Service, kind: int, what: str) -> None:
    with service.opened() as peer:
        peer.send(frame(kind, bombs()[what]))
        assert peer.ended() == "MALFORMED_FRAME"


@pytest.mark.parametrize("what", bombs())
def test_bomb_in_hello(service: Service, what: str) -> None:
    body = attackers.MAGIC + bombs()[what]
    with service.peer() as peer:
        peer.send(frame(attackers.HELLO, body))
        assert peer.ended() == ("MALFORMED_FRAME" if len(body) <= 16 << 10 else "FRAME_TOO_LARGE")


WRONG_FIELDS: list[tuple[int, dict[str, Any]]] = [
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "subscription": value}) for value in (*WRONG, 0, U32_MAX + 1)],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "credit": value}) for value in WRONG],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "filters": value}) for value in (*WRONG, ["a", 1], [b"a"], [["a"]], [None])],
    *[(SUBSCRIBE, {key: value for key, value in SUBSCRIBE_GOOD.items() if key != gone}) for gone in SUBSCRIBE_GOOD],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": value}) for value in (*WRONG, "new", {"from": "new", "last": 1})],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"from": value}}) for value in (*WRONG, "end", "New")],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"last": value}}) for value in WRONG],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"time_us": value}}) for value in WRONG],
    *[
        (SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"bus": value}})
        for value in (*WRONG, [bytes(16), 1], [bytes(15), 1, 1])
    ],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"bus": [bytes(16), value, 1]}}) for value in WRONG],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"bus": [bytes(16), 1, value]}}) for value in WRONG],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"positions": value}}) for value in WRONG[:-3]],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"positions": [value]}}) for value in (*WRONG, ["a", 1], ["a", 1, 1, 1])],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"positions": [["a.b", value, 1]]}}) for value in WRONG],
    *[(SUBSCRIBE, {**SUBSCRIBE_GOOD, "start": {"positions": [[value, 1, 1]]}}) for value in WRONG if value != "1"],
    *[(UNSUBSCRIBE, {"subscription": value}) for value in (*WRONG, U32_MAX + 1)],
    (UNSUBSCRIBE, {}),
    *[(REQUEST, {"request": value, "op": "stats"}) for value in (*WRONG, U32_MAX + 1)],
    *[(REQUEST, {"request": 1, "op": value}) for value in WRONG if value != "1"],
    (REQUEST, {"op": "stats"}),
    (REQUEST, {"request": 1}),
]


@pytest.mark.parametrize(("kind", "body"), WRONG_FIELDS)
def test_field_of_a_wrong_type(service: Service, kind: int, body: dict[str, Any]) -> None:
    with service.opened() as peer:
        peer.send(packed(kind, **body))
        assert peer.ended() == "MALFORMED_FRAME"


def test_duplicate_and_unknown_keys(service: Service) -> None:
    """The last of two equal keys counts, as in any map; a key that nobody knows is passed over."""
    body = b"\x84\xa7request\1\xa7request\2\xa2op\xa7channel\xa4name\xa3a.b"
    more = {"request": 3, "op": "channel", "name": "a.b", "extra": [{"deep": [1, 2, [3]]}], "": None, "x" * 999: 1}
    with service.opened() as peer:
        peer.send(frame(REQUEST, body) + packed(REQUEST, **more))
        assert peer.until(REPLY).fields()["request"] == 2
        assert peer.until(REPLY).fields()["request"] == 3


@pytest.mark.parametrize("op", ["", "Stats", "stats ", "channel\0", "__class__", "x" * 60_000])
def test_unknown_operation(service: Service, op: str) -> None:
    with service.opened() as peer:
        peer.send(packed(REQUEST, request=1, op=op))
        assert peer.until(ERROR).fields()["name"] == "UNKNOWN_OPERATION"
        assert peer.alive()


@pytest.mark.parametrize("name", [*[value for value in WRONG if value != "1"], ""])
def test_operation_with_a_wrong_name(service: Service, name: object) -> None:
    with service.opened() as peer:
        peer.send(packed(REQUEST, request=1, op="channel", name=name))
        assert peer.until(ERROR).fields()["name"] == "INVALID_CHANNEL"
        assert peer.alive()


@pytest.mark.parametrize("size", [0, 1, 7, 9, 100_000])
@pytest.mark.parametrize("kind", [PING, PONG])
def test_token_of_a_wrong_size(service: Service, kind: int, size: int) -> None:
    with service.opened() as peer:
        peer.send(frame(kind, bytes(size)))
        assert peer.ended() == "MALFORMED_FRAME"


def test_every_byte_of_a_token_comes_back(service: Service) -> None:
    with service.opened() as peer:
        for token in (0, 1, U32_MAX, 1 << 63, U64_MAX):
            peer.send(ping(token))
            assert peer.until(PONG).body == struct.pack("<Q", token)


def test_channel_frame_without_a_number(service: Service) -> None:
    for size in range(4):
        with service.opened() as peer:
            peer.send(frame(CHANNEL, bytes(size)))
            assert peer.ended() == "MALFORMED_FRAME"


def test_hello_of_many_values(service: Service) -> None:
    """A stranger's map is looked at no further than the longest list of versions needs."""
    with service.peer() as peer:
        peer.send(attackers.hello(versions=list(range(1_024)), more=[[0] * 1_020]))
        assert peer.ended() == "MALFORMED_FRAME"
        assert "more than 2048 values" in peer.errors[0]["detail"]
    with service.peer() as peer:
        peer.open(versions=list(range(1_024)))
