"""A message as one line of JSON, both ways: what `broker dump` writes and `broker load` reads.

    {"channel": "chat.acme.42", "sequence": 7, "epoch": 1099511627777, "time_us": 1767225600000000, "payload": "hello"}

Bytes that are UTF-8 stand as text; others in base64 under the same name with `_base64` behind it, so that the bytes
come back as they were. `headers` are an object where JSON can say exactly what msgpack said, else `headers_base64` is
the msgpack. `key`, `id`, `publisher`, `priority` (when it is not 2, normal) and `expiry_s` are there when the message
has them. A load passes over other fields, and over `id`: within its window the channel would leave out what the lines
have twice.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.log.dump import Message

PRIORITY_DEFAULT = 2


class Loaded(NamedTuple):
    """A message to publish, and the time at which it was published first."""

    channel: str
    payload: bytes
    headers: Mapping[str, object] | None
    key: bytes | None
    priority: int
    expiry_s: int | None
    time_us: int | None


def encode_line(message: Message) -> str:
    """Return a message as a line, without its end."""
    record = message.record
    line: dict[str, object] = {
        "channel": message.channel.decode("ascii"),
        "sequence": record.sequence,
        "epoch": message.epoch,
        "time_us": record.time_us,
    }
    if record.publisher is not None:
        line["publisher"] = record.publisher
    if record.priority != PRIORITY_DEFAULT:
        line["priority"] = record.priority
    if record.expiry_s is not None:
        line["expiry_s"] = record.expiry_s
    if record.key is not None:
        line.update(_bytes_field("key", record.key))
    if record.headers is not None:
        line.update(_headers_field(record.headers))
    if record.id is not None:
        line.update(_bytes_field("id", record.id))
    line.update(_bytes_field("payload", record.payload))
    return json.dumps(line, ensure_ascii=False)


def _bytes_field(name: str, value: bytes) -> dict[str, str]:
    try:
        return {name: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode("ascii")}


def _headers_field(packed: bytes) -> dict[str, object]:
    """Return headers as an object, or as what they are when JSON cannot say exactly that."""
    try:
        headers = msgpack.unpackb(packed)
        if isinstance(headers, dict) and msgpack.packb(json.loads(json.dumps(headers, allow_nan=False))) == packed:
            return {"headers": headers}
    except (ValueError, TypeError, msgpack.UnpackException):
        pass  # said below, in base64
    return {"headers_base64": base64.b64encode(packed).decode("ascii")}


def decode_line(line: str, number: int) -> Loaded:
    """Return the message that a line describes.

    Args:
        line: one object.
        number: of the line, from 1, for the error.

    Raises:
        RequestError: INVALID_RECORD, naming the line and what is wrong with it.
    """
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError(f"got {type(fields).__name__}, expected an object")
        return Loaded(
            channel=_take(fields, "channel", str),
            payload=_take_bytes(fields, "payload") or b"",
            headers=_take_headers(fields),
            key=_take_bytes(fields, "key"),
            priority=_take(fields, "priority", int, PRIORITY_DEFAULT),
            expiry_s=_take(fields, "expiry_s", int, None),
            time_us=_take(fields, "time_us", int, None),
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as failure:
        raise error("INVALID_RECORD", f"line {number}: {failure}") from None


_NEEDED = object()


def _take(fields: dict[str, Any], name: str, kind: type, default: object = _NEEDED) -> Any:
    value = fields.get(name, default)
    if value is _NEEDED:
        raise ValueError(f"{name} is missing")
    if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _take_bytes(fields: dict[str, Any], name: str) -> bytes | None:
    text = _take(fields, name, str, None)
    coded = _take(fields, f"{name}_base64", str, None)
    if text is not None and coded is not None:
        raise ValueError(f"{name} and {name}_base64 are both there")
    if coded is None:
        return None if text is None else text.encode()
    try:
        return base64.b64decode(coded, validate=True)
    except binascii.Error as failure:
        raise ValueError(f"{name}_base64: {failure}") from None


def _take_headers(fields: dict[str, Any]) -> dict[str, object] | None:
    packed = _take(fields, "headers_base64", str, None)
    if packed is None:
        headers: dict[str, object] | None = _take(fields, "headers", dict, None)
        return headers
    unpacked = msgpack.unpackb(_take_bytes(fields, "headers"), strict_map_key=False)
    if not isinstance(unpacked, dict):
        raise ValueError("headers_base64 is no msgpack map")
    return unpacked
