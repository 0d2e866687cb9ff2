"""Messages as JSON, both ways, in the form of the JSON dialect (broker/wire/json.md §3)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from broker.edge.web.arguments import wrong
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker_native.messages import Batch, Message

__all__ = ["Draft", "batch_json", "read_draft", "read_object", "write_integer"]

PRIORITY_NORMAL: Final = 2
DEPTH_MAX: Final = 16
VALUES_MAX: Final = 16_384
INTEGER_MAX: Final = (1 << 53) - 1
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
GONE: Final = {1: "expired", 2: "compacted", 3: "revoked", 4: "erased", 5: "dropped", 6: "lost", 7: "conflated"}
PAYLOADS: Final = ("text", "base64", "json")
MEMBERS: Final = frozenset(
    {*PAYLOADS, "key", "key_base64", "headers", "headers_base64", "message_id", "message_id_base64", "priority"}
    | {"expires_s"}
)


class Draft(NamedTuple):
    """A message that is to be published."""

    payload: bytes
    headers: dict[str, object] | None
    key: bytes | None
    id: bytes | None
    priority: int
    expiry_s: int | None


# --- Into JSON ------------------------------------------------------------------------------------------------------


def write_integer(value: int) -> int | str:
    """Return an integer as JavaScript can hold it: a larger one as its digits."""
    return value if value <= INTEGER_MAX else str(value)


def batch_json(batch: Batch, bus: str | None = None, messages: Iterable[Message] | None = None) -> bytes:
    """Return a batch as the JSON object that `deliver` is.

    Args:
        batch: Consecutive messages of one channel.
        bus: The place up to which everything was sent, where that is known.
        messages: Those of it that are wanted, if not all; what is gone is left out then.
    """
    rows: list[dict[str, object]]
    if messages is None:
        rows = [message_fields(message) for message in batch]
        if batch.has_gone:
            rows += [
                {"seq": write_integer(first), "gone": GONE.get(reason, "unknown"), "count": count}
                for first, count, reason in batch.gone
            ]
            rows.sort(key=lambda row: int(str(row["seq"])))
        position = batch.position
    else:
        picked = list(messages)
        rows = [message_fields(message) for message in picked]
        position = picked[-1].position
    fields: dict[str, object] = {"channel": batch.channel, "epoch": str(batch.epoch), "position": str(position)}
    if bus is not None:
        fields["bus"] = bus
    if batch.early:
        fields["early"] = True
    fields["messages"] = rows
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def message_fields(message: Message) -> dict[str, object]:
    """Return the members of one message."""
    fields: dict[str, object] = {"seq": write_integer(message.sequence), "time": message.time}
    write_bytes(fields, "text", "base64", message.payload)
    if message.key is not None:
        write_bytes(fields, "key", "key_base64", message.key)
    if message.id is not None:
        write_bytes(fields, "message_id", "message_id_base64", message.id)
    write_headers(fields, message)
    if message.priority != PRIORITY_NORMAL:
        fields["priority"] = message.priority
    if message.expiry_s is not None:
        fields["expires_s"] = message.expiry_s
    if message.publisher is not None:
        fields["publisher"] = message.publisher
    return fields


def write_bytes(fields: dict[str, object], text: str, coded: str, value: bytes) -> None:
    """Add bytes, as text where they are UTF-8."""
    try:
        fields[text] = value.decode()
    except UnicodeDecodeError:
        fields[coded] = base64.b64encode(value).decode()


def write_headers(fields: dict[str, object], message: Message) -> None:
    """Add the headers, as msgpack where JSON cannot say them."""
    try:
        headers = message.headers
    except ValueError:
        return  # they are no map that anybody could read
    if not headers:
        return
    try:
        fields["headers"] = plain_of(headers)
    except ValueError:
        fields["headers_base64"] = base64.b64encode(msgpack.packb(headers)).decode()


def plain_of(value: Any) -> Any:
    """Return what msgpack held as what JSON can hold, bytes as `{"base64": …}`.

    Raises:
        ValueError: JSON has no form for it.
    """
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("a key is no text")
        return {name: plain_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_of(each) for each in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise ValueError("no number")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__}")


# --- Out of JSON ----------------------------------------------------------------------------------------------------


def read_object(data: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        RequestError: MALFORMED_FRAME; it is none, has a member twice, is nested too deeply or has too many values.
    """
    check_values(data)
    reader = ObjectReader()
    try:
        value = json.loads(data.decode(), object_pairs_hook=reader.take, parse_constant=refuse_constant)
    except UnicodeDecodeError:
        raise error("MALFORMED_FRAME", "body: it is no UTF-8") from None
    except RecursionError:
        raise error("MALFORMED_FRAME", f"body: containers inside one another: limit {DEPTH_MAX}") from None
    except ValueError as failure:
        raise error("MALFORMED_FRAME", f"body: {str(failure)[:120]}") from None
    if not isinstance(value, dict):
        raise wrong("body", type(value).__name__, "an object")
    check_depth(value, DEPTH_MAX)
    return value


class ObjectReader:
    """Takes the members of a body's objects, each once, and as many as a body may have."""

    def __init__(self) -> None:
        self._values = 0

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object's members.

        Raises:
            ValueError: One is there twice, or there are too many.
        """
        self._values += 2 * len(pairs)
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("a member is there twice")
        if self._values > VALUES_MAX:
            raise ValueError(f"values: got more than {VALUES_MAX}")
        return members


def check_values(data: bytes) -> None:
    """Hold the bound on values before any of them is made: what costs time are objects, not bytes.

    Raises:
        RequestError: MALFORMED_FRAME.
    """
    if count_marks(data) > VALUES_MAX:
        values = count_marks(_STRING.sub(b"", data))
        if values > VALUES_MAX:
            raise error("MALFORMED_FRAME", f"body: values: got {values}, limit {VALUES_MAX}")


def count_marks(data: bytes) -> int:
    """Return about how many values a JSON text has."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def refuse_constant(name: str) -> None:
    """Refuse what JSON has no word for."""
    raise ValueError(f"{name} is no value of JSON")


def check_depth(value: Any, left: int) -> None:
    """Hold the bound on containers inside one another.

    Raises:
        RequestError: MALFORMED_FRAME.
    """
    if isinstance(value, dict | list):
        if not left:
            raise error("MALFORMED_FRAME", f"body: containers inside one another: limit {DEPTH_MAX}")
        for each in value.values() if isinstance(value, dict) else value:
            check_depth(each, left - 1)


def read_draft(fields: dict[str, Any], where: str) -> Draft:
    """Return the message that members describe.

    Args:
        fields: They, and no others.
        where: What to call them in a refusal: `messages[3].`, or nothing.

    Raises:
        RequestError: MALFORMED_FRAME; a member is unknown, not of its type, or two contradict each other.
    """
    for name in fields:
        if name not in MEMBERS:
            raise wrong(f"{where}{name}", fields[name], "no member of this name")
    priority = read_integer(fields, "priority", where, 0, 3)
    return Draft(
        payload=read_payload(fields, where),
        headers=read_headers(fields, where),
        key=read_bytes(fields, "key", where),
        id=read_bytes(fields, "message_id", where),
        priority=PRIORITY_NORMAL if priority is None else priority,
        expiry_s=read_integer(fields, "expires_s", where, 1, (1 << 32) - 1),
    )


def read_integer(fields: dict[str, Any], name: str, where: str, low: int, high: int) -> int | None:
    """Return an integer member, None when it is not there."""
    if name not in fields:
        return None
    value = fields[name]
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(f"{where}{name}", fields[name], f"an integer from {low} to {high}")
    return value


def read_text(fields: dict[str, Any], name: str, where: str) -> str | None:
    """Return a text member, None when it is not there."""
    if name not in fields:
        return None
    value = fields[name]
    if not isinstance(value, str):
        raise wrong(f"{where}{name}", value, "a text")
    return value


def read_bytes(fields: dict[str, Any], name: str, where: str) -> bytes | None:
    """Return a member that is bytes: a text, or base64 under its other name."""
    if name in fields and f"{name}_base64" in fields:
        raise wrong(f"{where}{name}", fields[name], f"either it or {name}_base64")
    text = read_text(fields, name, where)
    if text is not None:
        return encode_text(text, f"{where}{name}")
    coded = read_text(fields, f"{name}_base64", where)
    return None if coded is None else decode_base64(coded, f"{where}{name}_base64")


def read_payload(fields: dict[str, Any], where: str) -> bytes:
    """Return the payload, in whichever form it stands there."""
    forms = [name for name in PAYLOADS if name in fields]
    if len(forms) > 1:
        raise wrong(f"{where}{forms[1]}", fields[forms[1]], f"one of {', '.join(PAYLOADS)}")
    if "json" in fields:
        text = json.dumps(fields["json"], ensure_ascii=False, separators=(",", ":"))
        return encode_text(text, f"{where}json")
    if "base64" in fields:
        return decode_base64(read_text(fields, "base64", where) or "", f"{where}base64")
    return encode_text(read_text(fields, "text", where) or "", f"{where}text")


def read_headers(fields: dict[str, Any], where: str) -> dict[str, object] | None:
    """Return the headers, None without any."""
    if "headers" in fields and "headers_base64" in fields:
        raise wrong(f"{where}headers", "both", "either it or headers_base64")
    if "headers" in fields:
        if not isinstance(fields["headers"], dict):
            raise wrong(f"{where}headers", fields["headers"], "an object")
        headers: dict[str, object] = {
            name: packed_of(value, f"{where}headers.{name[:40]}") for name, value in fields["headers"].items()
        }
        return headers
    coded = read_text(fields, "headers_base64", where)
    if coded is None:
        return None
    try:
        unpacked = msgpack.unpackb(
            decode_base64(coded, f"{where}headers_base64"), strict_map_key=False, max_map_len=1024, max_array_len=1024
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        unpacked = None
    if not isinstance(unpacked, dict):
        raise wrong(f"{where}headers_base64", coded, "a msgpack map")
    return unpacked


def packed_of(value: Any, where: str) -> Any:
    """Return a header's value as it is packed: an object whose only member is `base64` is bytes."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(value.get("base64"), str):
            return decode_base64(value["base64"], where)
        return {name: packed_of(each, where) for name, each in value.items()}
    if isinstance(value, list):
        return [packed_of(each, where) for each in value]
    if isinstance(value, str):
        encode_text(value, where)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise wrong(where, value, "an integer of 64 bits")
    return value


def encode_text(text: str, where: str) -> bytes:
    """Return a text as UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise wrong(where, text, "a text without half of a surrogate pair") from None


def decode_base64(text: str, where: str) -> bytes:
    """Return the bytes of base64, with its padding."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise wrong(where, text, "base64") from None
