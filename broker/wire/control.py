"""Control bodies: the msgpack maps of specification.md §6, built and taken apart.

Both ends use these functions, so a field has one name, one type and one range. A body is walked before anything is
built from it: depth, items of a container and items in all are bounded, so a few bytes cannot make megabytes of
objects, and whatever is wrong with it is a `MalformedFrame`. Unknown keys are passed over: a newer peer may say more.
No I/O, no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgpack

from broker.model.consumers import WINDOW_BYTES_DEFAULT, WINDOW_DEFAULT, WINDOW_MAX, Consume
from broker.model.errors import BrokerError, Conflict, error, from_wire, to_wire
from broker.model.positions import Position
from broker.wire.kinds import HELLO_MAGIC, JOURNAL_BYTES, PRODUCER_BYTES, VERSION, Kind
from broker_native import bodies

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEPTH_MAX",
    "HELLO_MAGIC",
    "ITEMS_MAX",
    "ITEMS_TOTAL_MAX",
    "Event",
    "FromBus",
    "FromLast",
    "FromNew",
    "FromPositions",
    "FromStart",
    "FromTime",
    "GoingAway",
    "Hello",
    "Limits",
    "Outcome",
    "Refusal",
    "Request",
    "Start",
    "Subscribe",
    "Subscribed",
    "Welcome",
    "decode",
    "decode_channel",
    "decode_consume",
    "decode_credit",
    "decode_error",
    "decode_event",
    "decode_going_away",
    "decode_hello",
    "decode_reply",
    "decode_request",
    "decode_subscribe",
    "decode_subscribed",
    "decode_token",
    "decode_unsubscribe",
    "decode_welcome",
    "encode",
    "encode_channel",
    "encode_credit",
    "encode_error",
    "encode_event",
    "encode_going_away",
    "encode_hello",
    "encode_ping",
    "encode_pong",
    "encode_reply",
    "encode_request",
    "encode_subscribe",
    "encode_subscribed",
    "encode_unsubscribe",
    "encode_unsubscribed",
    "encode_welcome",
    "frame",
    "pack_consume",
    "pack_headers",
]

DEPTH_MAX: Final = 16
ITEMS_MAX: Final = 1024
"""Items of one array, or pairs of one map."""
ITEMS_TOTAL_MAX: Final = 16 * ITEMS_MAX
"""Values in a whole body: bounds the objects built from it to about 2 MiB."""
FLAT_BYTES_MAX: Final = 512
"""Bytes of a body that may be built before it is looked at: fewer values than any bound, and none inside another."""
HELLO_ITEMS_TOTAL_MAX: Final = 2 * ITEMS_MAX
"""Values in a HELLO, a stranger's: it may cost no more than the longest list of versions."""

GROUP_NAME_BYTES_MAX: Final = 255
"""Of a live group."""

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1

FRAME_HEADER: Final = Struct("<IBBH")
TOKEN: Final = Struct("<Q")
CHANNEL_NUMBER: Final = Struct("<I")
CREDIT: Final = Struct("<IIQ")
NAMED: Final = Struct("<IIQB")


# --- The walk -----------------------------------------------------------------------------------------------------

FLAT_TYPES: Final = frozenset([int, str, bytes, bool, float, type(None)])
KEY_TYPES: Final = frozenset([str])


def malformed(what: str) -> BrokerError:
    return error("MALFORMED_FRAME", f"control body: {what}")


def walk(body: bytes, values_max: int = ITEMS_TOTAL_MAX) -> None:
    """Check shape, depth and counts of a msgpack map without building anything. O(values)."""
    wrong = bodies.walk(body, values_max, ITEMS_MAX, DEPTH_MAX)
    if wrong is not None:
        raise malformed(wrong)


# --- Frames -------------------------------------------------------------------------------------------------------


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Put the frame header before a body.

    Args:
        kind: One of `Kind`.
        body: The whole body, less than 4 GiB; the peer's frame_bytes_max is the caller's concern.
        flags: The kind's own flags, 0 to 255.
    """
    return FRAME_HEADER.pack(len(body), kind, flags, 0) + body


def encode(kind: int, body: Mapping[str, object]) -> bytes:
    """Encode a control frame, header included. Keys whose value is None are left out.

    Raises:
        MalformedFrame: The body is deeper or larger than a peer would accept.
    """
    return frame(kind, pack(body))


def pack(body: Mapping[str, object]) -> bytes:
    packed: bytes = msgpack.packb({key: value for key, value in body.items() if value is not None}, use_bin_type=True)
    walk(packed)
    return packed


def pack_headers(headers: Mapping[str, object]) -> bytes:
    """Pack a record's headers.

    Raises:
        RequestError: INVALID_RECORD; msgpack has no form for a value.
    """
    try:
        packed: bytes = msgpack.packb(headers, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as failure:
        raise error("INVALID_RECORD", f"headers: {failure}") from None
    return packed


def decode(body: bytes | memoryview, values_max: int = ITEMS_TOTAL_MAX) -> dict[str, Any]:
    """Decode a control body.

    Args:
        body: The frame's body, without its header. It is not kept.
        values_max: Values in all of it: what it may cost to look at.

    Raises:
        MalformedFrame: It is no map with string keys, or breaks a limit, or holds text that is not UTF-8.
    """
    data = bytes(body)
    if len(data) <= min(FLAT_BYTES_MAX, values_max) and (flat := decode_flat(data)) is not None:
        return flat
    walk(data, values_max)
    try:
        # The walk has bounded everything; the unpacker's own limits only repeat it.
        value = msgpack.unpackb(data, raw=False, max_array_len=ITEMS_MAX, max_map_len=ITEMS_MAX, max_ext_len=0)
    except ValueError as failure:  # msgpack's own errors and UnicodeDecodeError are both of it
        raise malformed(str(failure)) from None
    if not isinstance(value, dict):
        raise malformed("is no map")
    return value


def decode_flat(data: bytes) -> dict[str, Any] | None:
    """Decode a short body that is a map of strings to scalars, as most are; None for any other, right or wrong.

    It is a short cut past the walk and accepts nothing that the walk refuses.
    """
    try:
        # Lists are made as long as they say before their items are looked at: there are none here.
        value = msgpack.unpackb(data, raw=False, max_array_len=0, max_map_len=ITEMS_MAX, max_ext_len=0)
    except ValueError:
        return None
    if type(value) is not dict or not FLAT_TYPES.issuperset(map(type, value.values())):
        return None
    return value if KEY_TYPES.issuperset(map(type, value)) else None


# --- Fields -------------------------------------------------------------------------------------------------------


def wrong(key: str, expected: str) -> BrokerError:
    """Return the error for a field that is not what it must be."""
    return malformed(f"`{key}` must be {expected}")


def take_int(body: Mapping[str, Any], key: str, largest: int = U64_MAX, smallest: int = 0) -> int:
    """Take an integer of a body; raises MalformedFrame, as all of these do, when it is missing or wrong."""
    value = body.get(key)
    if type(value) is not int or not smallest <= value <= largest:
        raise wrong(key, f"an integer from {smallest} to {largest}")
    return value


def take_optional_int(body: Mapping[str, Any], key: str, largest: int = U64_MAX) -> int | None:
    """Take an integer that may be left out."""
    return None if key not in body else take_int(body, key, largest)


def take_str(body: Mapping[str, Any], key: str) -> str:
    """Take a text of a body."""
    value = body.get(key)
    if not isinstance(value, str):
        raise wrong(key, "a string")
    return value


def take_optional_str(body: Mapping[str, Any], key: str) -> str | None:
    """Take a text that may be left out."""
    return None if key not in body else take_str(body, key)


def take_bytes(body: Mapping[str, Any], key: str, size: int) -> bytes:
    value = body.get(key)
    if not isinstance(value, bytes) or len(value) != size:
        raise wrong(key, f"{size} bytes")
    return value


def take_list(body: Mapping[str, Any], key: str) -> list[Any]:
    """Take an array of a body."""
    value = body.get(key)
    if not isinstance(value, list):
        raise wrong(key, "an array")
    return value


def take_number(body: Mapping[str, Any], key: str) -> float:
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= U32_MAX:
        raise wrong(key, f"a number from 0 to {U32_MAX}")
    return float(value)


def is_u64(value: object) -> bool:
    """Return whether a value is an integer that 64 bits hold."""
    return type(value) is int and 0 <= value <= U64_MAX


# --- HELLO and WELCOME --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says first."""

    client: str
    producer: bytes | None
    token: str | None


def encode_hello(client: str, producer: bytes | None = None, token: str | None = None) -> bytes:
    """Encode HELLO.

    Args:
        client: A name and version for the server's log.
        producer: The 16 bytes that name the producer's line; None for a line that ends with the connection.
        token: What the gate wants to know the client by.
    """
    body = {"versions": [VERSION], "client": client, "producer": producer, "token": token}
    return frame(Kind.HELLO, HELLO_MAGIC + pack(body))


def decode_hello(body: bytes | memoryview) -> Hello:
    """Decode HELLO.

    Raises:
        MalformedFrame: It does not begin as a HELLO does, or a field is wrong.
        ProtocolError: VERSION; The client speaks no version that this side does.
    """
    data = bytes(body)
    if not data.startswith(HELLO_MAGIC):
        raise error("MALFORMED_FRAME", "HELLO: does not begin with the protocol's magic", "is this another protocol?")
    fields = decode(data[len(HELLO_MAGIC) :], HELLO_ITEMS_TOTAL_MAX)
    versions = take_list(fields, "versions")
    if not all(map(is_u64, versions)):
        raise wrong("versions", "an array of integers")
    if VERSION not in versions:
        raise error("VERSION", f"HELLO: got versions {repr(versions[:8])[:64]}, supported {[VERSION]}")
    return Hello(
        client=take_str(fields, "client"),
        producer=take_bytes(fields, "producer", PRODUCER_BYTES) if "producer" in fields else None,
        token=take_optional_str(fields, "token"),
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that the server holds this connection to."""

    frame_bytes_max: int
    payload_bytes_max: int
    headers_bytes_max: int
    channels_max: int
    subscriptions_max: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server answers: who it is, and how far it knows the producer's line."""

    server: str
    run: int
    journal: bytes
    highest: int
    limits: Limits
    ping_s: float
    reply: str = ""
    user: str = ""
    expires_s: float | None = None


def encode_welcome(welcome: Welcome) -> bytes:
    """Encode WELCOME."""
    limits = {name: getattr(welcome.limits, name) for name in Limits.__dataclass_fields__}
    return encode(
        Kind.WELCOME,
        {
            "version": VERSION,
            "server": welcome.server,
            "run": welcome.run,
            "journal": welcome.journal,
            "highest": welcome.highest,
            "limits": limits,
            "ping_s": welcome.ping_s,
            "reply": welcome.reply or None,
            "user": welcome.user or None,
            "expires_s": welcome.expires_s,
        },
    )


def decode_welcome(body: bytes | memoryview) -> Welcome:
    """Decode WELCOME.

    Raises:
        MalformedFrame: A field is missing or wrong.
        ProtocolError: VERSION; The server chose a version that this side does not speak.
    """
    fields = decode(body)
    if take_int(fields, "version") != VERSION:
        raise error("VERSION", f"WELCOME: got version {fields['version']}, supported {VERSION}")
    limits = fields.get("limits")
    if not isinstance(limits, dict):
        raise wrong("limits", "a map")
    return Welcome(
        server=take_str(fields, "server"),
        run=take_int(fields, "run"),
        journal=take_bytes(fields, "journal", JOURNAL_BYTES),
        highest=take_int(fields, "highest"),
        limits=Limits(**{name: take_int(limits, name) for name in Limits.__dataclass_fields__}),
        ping_s=take_number(fields, "ping_s"),
        reply=take_optional_str(fields, "reply") or "",
        user=take_optional_str(fields, "user") or "",
        expires_s=take_number(fields, "expires_s") if "expires_s" in fields else None,
    )


# --- SUBSCRIBE ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FromNew:
    """Start with what is published from now on."""


@dataclass(frozen=True, slots=True)
class FromStart:
    """Start with the oldest message there is."""


@dataclass(frozen=True, slots=True)
class FromPositions:
    """Start after (channel, epoch, sequence) of each literal; a channel that is not listed starts new."""

    positions: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class FromBus:
    """Start after a bus position: everything committed later than (group, index) of this journal."""

    journal: bytes
    group: int
    index: int


@dataclass(frozen=True, slots=True)
class FromTime:
    """Start with the first message that is not older than a time, in microseconds since 1970 UTC."""

    time_us: int


@dataclass(frozen=True, slots=True)
class FromLast:
    """Start so that the last `count` messages of each literal come first."""

    count: int


Start: TypeAlias = FromNew | FromStart | FromPositions | FromBus | FromTime | FromLast


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A subscription that a client asks for; the server checks the filters' grammar.

    With `consumer` it is a member of that, and has no filters, credit or start of its own.
    """

    subscription: int
    filters: tuple[str, ...]
    credit: int
    start: Start = FromNew()
    group: str | None = None
    consumer: Consume | None = None


def encode_start(start: Start) -> dict[str, object] | None:
    """Return the value of `start`; None where a subscription begins unless it is said."""
    match start:
        case FromNew():
            return None
        case FromStart():
            return {"from": "start"}
        case FromPositions(positions):
            return {"positions": [list(position) for position in positions]}
        case FromBus(journal, group, index):
            return {"bus": [journal, group, index]}
        case FromTime(time_us):
            return {"time_us": time_us}
        case FromLast(count):
            return {"last": count}


def encode_subscribe(subscribe: Subscribe) -> bytes:
    """Encode SUBSCRIBE.

    Raises:
        MalformedFrame: More filters or positions than a control body may hold.
    """
    return encode(
        Kind.SUBSCRIBE,
        {
            "subscription": subscribe.subscription,
            "filters": list(subscribe.filters) if subscribe.consumer is None else None,
            "credit": subscribe.credit if subscribe.consumer is None else None,
            "start": encode_start(subscribe.start),
            "group": subscribe.group,
            "consumer": pack_consume(subscribe.consumer) if subscribe.consumer is not None else None,
        },
    )


def decode_positions(items: list[Any]) -> FromPositions:
    for item in items:
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and all(map(is_u64, item[1:]))):
            raise wrong("positions", "an array of [channel, epoch, sequence]")
    return FromPositions(tuple((name, epoch, sequence) for name, epoch, sequence in items))


def decode_bus(value: object) -> FromBus:
    """Take a bus position apart; raises MalformedFrame when it is none."""
    if isinstance(value, list) and len(value) == 3:
        journal, group, index = value
        is_journal = isinstance(journal, bytes) and len(journal) == JOURNAL_BYTES
        if is_journal and is_u64(group) and is_u64(index) and index <= U32_MAX:
            return FromBus(journal, group, index)
    raise wrong("bus", f"[journal of {JOURNAL_BYTES} bytes, group, index]")


def decode_start(start: object) -> Start:
    """Take the value of `start` apart; raises MalformedFrame when it is none."""
    if not isinstance(start, dict) or len(start) != 1:
        raise wrong("start", "a map of one way to start")
    match next(iter(start)):
        case "from" if start["from"] in ("new", "start"):
            return FromNew() if start["from"] == "new" else FromStart()
        case "positions":
            return decode_positions(take_list(start, "positions"))
        case "bus":
            return decode_bus(start["bus"])
        case "time_us":
            return FromTime(take_int(start, "time_us"))
        case "last":
            return FromLast(take_int(start, "last"))
        case _:
            raise wrong("start", "one of from, positions, bus, time_us, last")


def decode_subscribe(body: bytes | memoryview) -> Subscribe:
    """Decode SUBSCRIBE. The filters' grammar is not checked here.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    if "consumer" in fields:
        return decode_member(fields)
    filters = take_list(fields, "filters")
    if not filters or not all(isinstance(item, str) for item in filters):
        raise wrong("filters", "an array of strings, at least one")
    return Subscribe(
        subscription=take_int(fields, "subscription", U32_MAX, smallest=1),
        filters=tuple(filters),
        credit=take_int(fields, "credit"),
        start=decode_start(fields["start"]) if "start" in fields else FromNew(),
        group=take_group(fields) if "group" in fields else None,
    )


def take_group(body: Mapping[str, Any]) -> str:
    """Take the name of a live group."""
    name = take_str(body, "group")
    if not 0 < len(name.encode()) <= GROUP_NAME_BYTES_MAX:
        raise wrong("group", f"1 to {GROUP_NAME_BYTES_MAX} bytes")
    return name


def pack_consume(consume: Consume) -> dict[str, object]:
    """Return the value of SUBSCRIBE's `consumer`."""
    return {"name": consume.name, "window": consume.window, "bytes": consume.bytes_max}


def decode_consume(value: object) -> Consume:
    """Take SUBSCRIBE's `consumer` apart.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    if not isinstance(value, dict):
        raise wrong("consumer", "a map")
    return Consume(
        take_str(value, "name"),
        min(take_int(value, "window", U32_MAX, smallest=1), WINDOW_MAX) if "window" in value else WINDOW_DEFAULT,
        take_int(value, "bytes", smallest=1) if "bytes" in value else WINDOW_BYTES_DEFAULT,
    )


def decode_member(fields: Mapping[str, Any]) -> Subscribe:
    """Take a SUBSCRIBE with `consumer`."""
    consumer = decode_consume(fields["consumer"])
    if fields.get("filters") or "start" in fields or "group" in fields:
        raise wrong("filters, start, group", "left out beside `consumer`")
    return Subscribe(take_int(fields, "subscription", U32_MAX, smallest=1), (), 0, consumer=consumer)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one place that a subscription asked for was found.

    `outcome` is `new`, `resumed`, `trimmed` (`at` = the first sequence there is) or `diverged` (`at` = the last common
    one). The channel is empty for a bus position.
    """

    channel: str
    outcome: str
    epoch: int
    at: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server's answer to SUBSCRIBE; `bus` is the place from which live delivery goes on."""

    subscription: int
    outcomes: tuple[Outcome, ...]
    bus: FromBus


def encode_subscribed(subscribed: Subscribed) -> bytes:
    """Encode SUBSCRIBED."""
    bus = subscribed.bus
    body: bytes = msgpack.packb(
        {
            "subscription": subscribed.subscription,
            "outcomes": [[o.channel, o.outcome, o.epoch, o.at] for o in subscribed.outcomes],
            "bus": [bus.journal, bus.group, bus.index],
        },
        use_bin_type=True,
    )
    # Not walked: it is no larger than the SUBSCRIBE that it answers allows, and a walk over the outcomes of 1,000
    # filters would keep the server's loop for as long as all the rest of the subscription.
    return frame(Kind.SUBSCRIBED, body)


def decode_outcome(item: object) -> Outcome:
    if isinstance(item, list) and len(item) == 4:
        channel, outcome, epoch, at = item
        if isinstance(channel, str) and isinstance(outcome, str) and is_u64(epoch) and is_u64(at):
            return Outcome(channel, outcome, epoch, at)
    raise wrong("outcomes", "an array of [channel, outcome, epoch, at]")


def decode_subscribed(body: bytes | memoryview) -> Subscribed:
    """Decode SUBSCRIBED.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    return Subscribed(
        subscription=take_int(fields, "subscription", U32_MAX, smallest=1),
        outcomes=tuple(decode_outcome(item) for item in take_list(fields, "outcomes")),
        bus=decode_bus(fields.get("bus")),
    )


def encode_unsubscribe(subscription: int) -> bytes:
    """Encode UNSUBSCRIBE."""
    return encode(Kind.UNSUBSCRIBE, {"subscription": subscription})


def encode_unsubscribed(subscription: int) -> bytes:
    """Encode UNSUBSCRIBED: nothing of the subscription follows this frame."""
    return encode(Kind.UNSUBSCRIBED, {"subscription": subscription})


def decode_unsubscribe(body: bytes | memoryview) -> int:
    """Decode UNSUBSCRIBE or UNSUBSCRIBED into the subscription's number.

    Raises:
        MalformedFrame: The number is missing or wrong.
    """
    return take_int(decode(body), "subscription", U32_MAX, smallest=1)


# --- ERROR, EVENT, REQUEST, REPLY, GOING_AWAY ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """An ERROR frame. What it refuses is the field behind the first that is not None; none: the connection.

    With `ack` it is of a subscription's ACK with that number alone: of what that says of the leases from `lease` on.
    """

    failure: BrokerError
    subscription: int | None = None
    request: int | None = None
    channel: int | None = None
    number: int | None = None
    count: int | None = None
    asked: int | None = None
    replied: int | None = None
    ack: int | None = None
    lease: int | None = None
    leases: int | None = None

    @property
    def ends_connection(self) -> bool:
        """Whether it refuses nothing less than the connection."""
        concerns = (self.subscription, self.request, self.channel, self.number, self.asked, self.replied)
        return all(one is None for one in concerns)


def encode_error(
    failure: BrokerError,
    *,
    subscription: int | None = None,
    request: int | None = None,
    channel: int | None = None,
    number: int | None = None,
    count: int | None = None,
    asked: int | None = None,
    replied: int | None = None,
    ack: int | None = None,
    lease: int | None = None,
    leases: int | None = None,
    head: tuple[int, int] | None = None,
    index: int | None = None,
) -> bytes:
    """Encode ERROR.

    Args:
        failure: What is wrong.
        subscription: The subscription that it concerns; this and the others are exclusive, but for `count`.
        request: The request that it answers.
        channel: The connection's number of the channel whose name is refused.
        number: The first producer's number of the PUBLISH that is refused.
        count: How many numbers, with `number`, `asked` or `replied`.
        asked: The number of the first request of those that are refused.
        replied: The number of the first request whose reply is refused.
        ack: The number of the ACK of `subscription` that it refuses, or some of it.
        lease, leases: The leases that this concerns, with `ack`; left out for all of it.
        head: Of a CONFLICT, epoch and sequence of the channel's newest record.
        index: Which publish of a transaction is at fault; left out for the first.
    """
    concerns = {"subscription": subscription, "request": request, "channel": channel, "number": number, "count": count}
    asking = {"asked": asked, "replied": replied}
    settled = {"ack": ack, "lease": lease, "leases": leases}
    if head is not None:
        concerns["epoch"], concerns["sequence"] = head
    if index is not None:
        concerns["index"] = index
    return encode(Kind.ERROR, {**to_wire(failure), **concerns, **asking, **settled})


def decode_error(body: bytes | memoryview) -> Refusal:
    """Decode ERROR.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    take_optional_str(fields, "hint")
    take_optional_int(fields, "retry_after_ms", U32_MAX)
    epoch, sequence = take_optional_int(fields, "epoch"), take_optional_int(fields, "sequence")
    index = take_optional_int(fields, "index", U32_MAX)
    failure = from_wire(fields)
    if isinstance(failure, Conflict):
        failure.head = Position(epoch, sequence) if epoch is not None and sequence is not None else None
        failure.index = index or 0
    return Refusal(
        failure=failure,
        subscription=take_optional_int(fields, "subscription", U32_MAX),
        request=take_optional_int(fields, "request", U32_MAX),
        channel=take_optional_int(fields, "channel", U32_MAX),
        number=take_optional_int(fields, "number"),
        count=take_optional_int(fields, "count", U32_MAX),
        asked=take_optional_int(fields, "asked"),
        replied=take_optional_int(fields, "replied"),
        ack=take_optional_int(fields, "ack"),
        lease=take_optional_int(fields, "lease"),
        leases=take_optional_int(fields, "leases", U32_MAX),
    )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a subscription and is no delivery; `more` holds the fields of its kind."""

    subscription: int
    event: str
    channel: str
    more: Mapping[str, Any]


def encode_event(subscription: int, event: str, channel: str, more: Mapping[str, object] | None = None) -> bytes:
    """Encode EVENT."""
    return encode(Kind.EVENT, {**(more or {}), "subscription": subscription, "event": event, "channel": channel})


def decode_event(body: bytes | memoryview) -> Event:
    """Decode EVENT.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    return Event(
        subscription=take_int(fields, "subscription", U32_MAX, smallest=1),
        event=take_str(fields, "event"),
        channel=take_str(fields, "channel"),
        more={key: value for key, value in fields.items() if key not in ("subscription", "event", "channel")},
    )


class Request(NamedTuple):
    """An operation that is no publish and no subscription, with its own arguments in `more`."""

    request: int
    op: str
    more: Mapping[str, Any]


def encode_request(request: int, op: str, more: Mapping[str, object] | None = None) -> bytes:
    """Encode REQUEST."""
    return encode(Kind.REQUEST, {**(more or {}), "request": request, "op": op})


def decode_request(body: bytes | memoryview) -> Request:
    """Decode REQUEST.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    request, op = take_int(fields, "request", U32_MAX), take_str(fields, "op")
    del fields["request"], fields["op"]
    return Request(request, op, fields)


def encode_reply(request: int, more: Mapping[str, object]) -> bytes:
    """Encode REPLY."""
    return encode(Kind.REPLY, {**more, "request": request})


def decode_reply(body: bytes | memoryview) -> tuple[int, dict[str, Any]]:
    """Decode REPLY into the request's number and the other fields.

    Raises:
        MalformedFrame: The number is missing or wrong.
    """
    fields = decode(body)
    request = take_int(fields, "request", U32_MAX)
    del fields["request"]
    return request, fields


class GoingAway(NamedTuple):
    """The connection will be closed in `seconds`; `retry_after_ms`: when to connect again, None for at once."""

    seconds: float
    retry_after_ms: int | None = None


def encode_going_away(seconds: float, retry_after_ms: int | None = None) -> bytes:
    """Encode GOING_AWAY."""
    return encode(Kind.GOING_AWAY, {"seconds": seconds, "retry_after_ms": retry_after_ms})


def decode_going_away(body: bytes | memoryview) -> GoingAway:
    """Decode GOING_AWAY.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    fields = decode(body)
    return GoingAway(take_number(fields, "seconds"), take_optional_int(fields, "retry_after_ms", U32_MAX))


# --- Bodies that are no maps --------------------------------------------------------------------------------------


def encode_ping(token: int) -> bytes:
    """Encode PING."""
    return frame(Kind.PING, TOKEN.pack(token))


def encode_pong(token: int) -> bytes:
    """Encode PONG with the token of the PING that it answers."""
    return frame(Kind.PONG, TOKEN.pack(token))


def decode_token(body: bytes | memoryview) -> int:
    """Decode the token of PING or PONG.

    Raises:
        MalformedFrame: The body is not 8 bytes.
    """
    if len(body) != TOKEN.size:
        raise error("MALFORMED_FRAME", f"PING: got {len(body)} bytes, expected {TOKEN.size}")
    token: int = TOKEN.unpack(body)[0]
    return token


def encode_channel(number: int, name: bytes) -> bytes:
    """Encode CHANNEL: from here on `number` means the channel `name` on this connection."""
    return frame(Kind.CHANNEL, CHANNEL_NUMBER.pack(number) + name)


def decode_channel(body: bytes | memoryview) -> tuple[int, bytes]:
    """Decode CHANNEL into (number, name's bytes). The name's grammar is not checked here.

    Raises:
        MalformedFrame: The body has no number.
    """
    if len(body) < CHANNEL_NUMBER.size:
        raise error("MALFORMED_FRAME", f"CHANNEL: got {len(body)} bytes, at least {CHANNEL_NUMBER.size} needed")
    data = bytes(body)
    return CHANNEL_NUMBER.unpack_from(data)[0], data[CHANNEL_NUMBER.size :]


def encode_named(flag: int, name: bytes, number: int, count: int, records: bytes) -> bytes:
    """Encode a PUBLISH that names where it goes: requests of a channel (ASK), or replies to a connection (REPLY).

    Args:
        flag: Of `PublishFlag`.
        name: The channel's name, or a connection's name for replies; at most 255 bytes.
        number: Of the first request that is asked or answered, from 1.
        count: How many there are.
        records: So many records, one after the other.
    """
    return frame(Kind.PUBLISH, NAMED.pack(0, count, number, len(name)) + name + records, flag)


@dataclass(frozen=True, slots=True)
class Named:
    """A PUBLISH that names where it goes; `at` is where its records begin in the body."""

    name: bytes
    number: int
    count: int
    at: int


def decode_named(body: bytes) -> Named:
    """Decode the head of such a frame's body. Neither the name nor the records are checked here.

    Raises:
        MalformedFrame: It is too short, its reserved field is not zero, or its numbers are no u64 from 1.
    """
    if len(body) < NAMED.size:
        raise error("MALFORMED_FRAME", f"PUBLISH: got {len(body)} bytes, at least {NAMED.size} needed")
    reserved, count, number, size = NAMED.unpack_from(body)
    at = NAMED.size + size
    if reserved or len(body) < at or not 0 < number <= U64_MAX - count:
        raise error("MALFORMED_FRAME", f"PUBLISH: number {number}, a name of {size} bytes in a body of {len(body)}")
    return Named(body[NAMED.size : at], number, count, at)


def encode_credit(subscription: int, credit_bytes: int) -> bytes:
    """Encode CREDIT: the subscription may deliver `credit_bytes` more bytes of chunks."""
    return frame(Kind.CREDIT, CREDIT.pack(subscription, 0, credit_bytes))


def decode_credit(body: bytes | memoryview) -> tuple[int, int]:
    """Decode CREDIT into (subscription, bytes).

    Raises:
        MalformedFrame: The body is not 16 bytes, or its reserved field is not zero.
    """
    if len(body) != CREDIT.size:
        raise error("MALFORMED_FRAME", f"CREDIT: got {len(body)} bytes, expected {CREDIT.size}")
    subscription, reserved, credit_bytes = CREDIT.unpack(body)
    if reserved:
        raise error("MALFORMED_FRAME", "CREDIT: its reserved field is not zero")
    return subscription, credit_bytes
