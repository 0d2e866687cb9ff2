"""The JSON dialect (json.md): its texts taken apart into checked values, and values made its texts.

What a client sent is walked before anything is built from it, so depth, items and values are bounded as those of
control bodies are. Whatever is wrong with a text as a whole is a `MalformedFrame` that ends the connection; what is
wrong with a member names it, and refuses one operation. No I/O, no state.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgpack

from broker.model.errors import BrokerError, error
from broker.model.names import ID_BYTES_MAX
from broker.model.positions import BusPosition, Position
from broker.wire.control import (
    DEPTH_MAX,
    ITEMS_MAX,
    ITEMS_TOTAL_MAX,
    U32_MAX,
    U64_MAX,
    FromBus,
    FromLast,
    FromNew,
    FromPositions,
    FromStart,
    FromTime,
    Start,
)
from broker.wire.kinds import RecordFlag
from broker_native import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "SAFE_MAX",
    "TEXT_BYTES_BEFORE_WELCOME_MAX",
    "Members",
    "bus_text",
    "has_id",
    "is_digits",
    "parse",
    "plain",
    "position_text",
    "take_message",
    "take_messages",
    "write",
]

SAFE_MAX: Final = 2**53 - 1
"""The largest integer that is written as a number."""
TEXT_BYTES_BEFORE_WELCOME_MAX: Final = 16 * 1024
ID_TEXT_BYTES_MAX: Final = 64
"""Of the client's name for an operation."""
KEY_BYTES_MAX: Final = 255
FIELD_BYTES_MAX: Final = 65_535
NEVER: Final = Position(0, 0)
PRIORITY_LOW: Final = 3
PRIORITY_NORMAL: Final = 2

RECORD_HEADER: Final = Struct("<IHHI")
U32: Final = Struct("<I")
U16: Final = Struct("<H")


# --- Whole texts --------------------------------------------------------------------------------------------------


def parse(text: bytes) -> dict[str, Any]:
    """Return the members of a client's text.

    Raises:
        MalformedFrame: It is no JSON object, has a member twice, or is past a bound.
    """
    wrong = json_text.walk(text, ITEMS_TOTAL_MAX, ITEMS_MAX, DEPTH_MAX)
    if wrong is not None:
        raise error("MALFORMED_FRAME", f"message: {wrong}")
    try:
        value = _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as failure:
        raise error("MALFORMED_FRAME", f"message: it is no JSON: {failure!s:.200}") from None
    if not isinstance(value, dict):
        raise error("MALFORMED_FRAME", f"message: got {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"member {twice!a:.80} is there twice")
    return members


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number {digits:.40} is out of range")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_number)
_write: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def write(members: Mapping[str, object]) -> bytes:
    """Return an object as text. Members whose value is None are left out."""
    return _write({name: value for name, value in members.items() if value is not None}).encode()


def plain(value: Any) -> Any:
    """Return a value of a control body as JSON says it: large integers as text, bytes as an object of `base64`."""
    if type(value) is int:
        return value if -SAFE_MAX <= value <= SAFE_MAX else str(value)
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def position_text(epoch: int, sequence: int) -> str:
    """Return a position as text."""
    return f"{epoch}:{sequence}"


def bus_text(place: Iterable[Any]) -> str:
    """Return a place of the bus as text, of what a control body says."""
    return str(BusPosition._make(place))


# --- Members ------------------------------------------------------------------------------------------------------


def is_digits(value: object) -> bool:
    """Return whether a value is a text of the decimal digits of a u64, or of a number that is not much larger."""
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20


class Members:
    """The members of a client's object, taken one by one; what is left in the end nobody knows.

    Args:
        what: What it is, for messages.
        members: They are taken out of it.
    """

    def __init__(self, what: str, members: object) -> None:
        if not isinstance(members, dict):
            raise error("MALFORMED_FRAME", f"{what}: got {type(members).__name__}, expected an object")
        self.what = what
        self.left: dict[str, Any] = members

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def wrong(self, name: str, expected: str) -> BrokerError:
        """Return the error for a member that is not what it must be."""
        return error("MALFORMED_FRAME", f"{self.what}: `{name}` must be {expected}")

    def take(self, name: str) -> Any:
        """Take a member of any type; None when it is not there."""
        return self.left.pop(name, None)

    def integer(self, name: str, largest: int = U64_MAX, smallest: int = 0, default: int | None = None) -> int:
        """Take an integer, a number or its digits; without a default it must be there."""
        value = self.left.pop(name, default)
        if is_digits(value):
            value = int(value)
        if type(value) is not int or not smallest <= value <= largest:
            raise self.wrong(name, f"an integer from {smallest} to {largest}")
        return value

    def optional_integer(self, name: str, largest: int = U64_MAX, smallest: int = 0) -> int | None:
        """Take an integer that may be left out."""
        return self.integer(name, largest, smallest) if name in self.left else None

    def text(self, name: str) -> str:
        """Take a text."""
        value = self.left.pop(name, None)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        self.encoded(name, value)
        return value

    def optional_text(self, name: str) -> str | None:
        """Take a text that may be left out."""
        return self.text(name) if name in self.left else None

    def encoded(self, name: str, value: str) -> bytes:
        """Return a text's UTF-8."""
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise self.wrong(name, "a text without half of a surrogate pair") from None

    def binary(self, name: str) -> bytes:
        """Take bytes, which are base64."""
        value = self.left.pop(name, None)
        try:
            if isinstance(value, str):
                return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
        raise self.wrong(name, "base64 with padding (RFC 4648, section 4)")

    def text_or_binary(self, name: str) -> bytes | None:
        """Take bytes that are a text, or base64 under the other name; None when there is neither."""
        other = f"{name}_base64"
        if name in self.left and other in self.left:
            raise self.wrong(other, f"left out beside `{name}`")
        if other in self.left:
            return self.binary(other)
        return self.text(name).encode() if name in self.left else None

    def array(self, name: str, smallest: int = 0) -> list[Any]:
        """Take an array."""
        value = self.left.pop(name, None)
        if not isinstance(value, list) or len(value) < smallest:
            raise self.wrong(name, f"an array of at least {smallest}" if smallest else "an array")
        return value

    def objects(self, name: str, smallest: int = 0) -> list[Members]:
        """Take an array of objects."""
        return [Members(f"{self.what}: `{name}[{at}]`", each) for at, each in enumerate(self.array(name, smallest))]

    def position(self, name: str) -> Position:
        """Take a position; `0:0` is before the first message."""
        return self.as_position(name, self.left.pop(name, None))

    def as_position(self, name: str, value: object) -> Position:
        """Return the position that a text says."""
        if value == "0:0":
            return NEVER
        try:
            if isinstance(value, str):
                return Position.parse(value)
        except BrokerError:
            pass
        raise self.wrong(name, "a position, epoch:sequence in decimal")

    def bus(self, name: str) -> BusPosition:
        """Take a place of the bus."""
        value = self.left.pop(name, None)
        try:
            if isinstance(value, str):
                return BusPosition.parse(value)
        except BrokerError:
            pass
        raise self.wrong(name, "a place of the bus, journal:group:index, 32 hex digits and two decimals")

    def id(self) -> str | int | None:
        """Take the client's name for the operation."""
        value = self.left.pop("id", None)
        if value is None or (type(value) is int and abs(value) <= U64_MAX):
            return value
        if isinstance(value, str) and len(value.encode(errors="replace")) <= ID_TEXT_BYTES_MAX:
            return value
        raise self.wrong("id", f"an integer or a text of up to {ID_TEXT_BYTES_MAX} bytes")

    def start(self) -> Start:
        """Take `from`."""
        value = self.left.pop("from", "new")
        if value == "new":
            return FromNew()
        if value == "all":
            return FromStart()
        if isinstance(value, dict) and len(value) == 1:
            inner = Members(f"{self.what}: `from`", value)
            if "after" in inner:
                after = inner.take("after")
                if not isinstance(after, dict):
                    raise inner.wrong("after", "an object of position by channel")
                places = ((name, *inner.as_position(f"after.{name}", place)) for name, place in after.items())
                return FromPositions(tuple((inner.checked(name), epoch, at) for name, epoch, at in places))
            if "bus" in inner:
                return FromBus(*inner.bus("bus"))
            if "time" in inner:
                return FromTime(inner.integer("time"))
            if "last" in inner:
                return FromLast(inner.integer("last"))
        raise self.wrong("from", '"new", "all", or an object of one of `after`, `bus`, `time` and `last`')

    def checked(self, name: str) -> str:
        """Return a member's name that is used as a text."""
        self.encoded(f"{name!a:.80}", name)
        return name

    def done(self) -> None:
        """Refuse what is left."""
        for name in self.left:
            raise error("MALFORMED_FRAME", f"{self.what}: `{name!a:.80}` is no member of it")


# --- Messages -----------------------------------------------------------------------------------------------------


def take_messages(members: Members) -> list[bytes]:
    """Take the messages of a publish; answers their records.

    Raises:
        BrokerError: MALFORMED_FRAME, INVALID_RECORD, INVALID_ID or HEADERS_TOO_LARGE.
    """
    if "messages" not in members:
        return [take_message(members)]
    records = []
    for each in members.objects("messages", 1):
        records.append(take_message(each))
        each.done()
    return records


def has_id(record: bytes) -> bool:
    """Return whether a record of `take_message` has the id of a message."""
    return bool(RECORD_HEADER.unpack_from(record)[1] & RecordFlag.ID)


def take_message(members: Members, more_headers: Mapping[str, object] | None = None) -> bytes:
    """Take the members of one message; answers its record.

    Args:
        members: Of which other members may be left.
        more_headers: Headers that it has besides its own.

    Raises:
        BrokerError: as of `take_messages`.
    """
    payload = take_payload(members)
    flags, fields = 0, b""
    priority = members.integer("priority", PRIORITY_LOW, default=PRIORITY_NORMAL)
    if priority != PRIORITY_NORMAL:
        flags |= RecordFlag.PRIORITY
        fields += bytes([priority])
    if "expires_s" in members:
        flags |= RecordFlag.EXPIRY
        fields += U32.pack(members.integer("expires_s", U32_MAX, 1))
    key = members.text_or_binary("key")
    if key is not None:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise error("INVALID_RECORD", f"key: got {len(key)} bytes, expected 1 to {KEY_BYTES_MAX}")
        flags |= RecordFlag.KEY
        fields += U16.pack(len(key)) + key
    headers = take_headers(members, more_headers)
    if headers:
        flags |= RecordFlag.HEADERS
        fields += U16.pack(len(headers)) + headers
    message_id = members.text_or_binary("message_id")
    if message_id is not None:
        if not 1 <= len(message_id) <= ID_BYTES_MAX:
            raise error("INVALID_ID", f"message_id: got {len(message_id)} bytes, expected 1 to {ID_BYTES_MAX}")
        flags |= RecordFlag.ID
        fields += bytes([len(message_id)]) + message_id
    size = RECORD_HEADER.size + len(fields) + len(payload)
    return RECORD_HEADER.pack(size, flags, 0, 0) + fields + payload


def take_payload(members: Members) -> bytes:
    """Take the payload of a message, said in one of three ways; answers its bytes, none of them when it has none."""
    given = [name for name in ("text", "base64", "json") if name in members]
    if len(given) > 1:
        raise members.wrong(given[1], f"left out beside `{given[0]}`")
    if not given:
        return b""
    if given[0] == "text":
        return members.text("text").encode()
    if given[0] == "base64":
        return members.binary("base64")
    text = json.dumps(members.take("json"), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return members.encoded("json", text)


def take_headers(members: Members, more: Mapping[str, object] | None) -> bytes:
    """Take the headers of a message; answers msgpack, nothing for none."""
    if "headers_base64" in members:
        if "headers" in members or more:
            raise members.wrong("headers_base64", "left out beside other headers")
        packed = members.binary("headers_base64")
    else:
        headers = members.take("headers") if "headers" in members else {}
        if not isinstance(headers, dict):
            raise members.wrong("headers", "an object")
        if not headers and not more:
            return b""
        try:
            packed = msgpack.packb({**unplain(members, headers), **(more or {})}, use_bin_type=True)
        except (ValueError, OverflowError) as failure:
            raise error("INVALID_RECORD", f"headers: {failure!s:.200}") from None
    if len(packed) > FIELD_BYTES_MAX:
        raise error("HEADERS_TOO_LARGE", f"headers: got {len(packed)} bytes, limit {FIELD_BYTES_MAX} bytes")
    return packed


def unplain(members: Members, value: Any) -> Any:
    """Return what headers say: an object whose only member is `base64` stands for bytes."""
    if isinstance(value, dict):
        if value.keys() == {"base64"} and isinstance(value["base64"], str):
            return Members(f"{members.what}: `headers`", value).binary("base64")
        return {name: unplain(members, item) for name, item in value.items()}
    return [unplain(members, item) for item in value] if isinstance(value, list) else value
