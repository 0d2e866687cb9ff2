"""Messages that a request's body describes, in the form of the JSON dialect (broker/wire/json.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from broker.model.errors import error
from broker.wire.dialect import PRIORITY_LOW, PRIORITY_NORMAL, Members, take_headers, take_payload

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Draft", "take_draft"]

U32_MAX = (1 << 32) - 1


class Draft(NamedTuple):
    """A message that is to be published; its members are those of `Bus.publish`."""

    payload: bytes
    headers: Mapping[str, object] | None
    key: bytes | None
    id: bytes | None
    priority: int
    expiry_s: int | None


def take_draft(members: Members, payload: bytes | None = None) -> Draft:
    """Take the members of one message; any that are left nobody knows.

    Args:
        members: As they came.
        payload: The payload, if it stands elsewhere.

    Raises:
        BrokerError: MALFORMED_FRAME, INVALID_RECORD or HEADERS_TOO_LARGE.
    """
    draft = Draft(
        payload=take_payload(members) if payload is None else payload,
        headers=unpacked(take_headers(members, None)),
        key=members.text_or_binary("key"),
        id=members.text_or_binary("message_id"),
        priority=members.integer("priority", PRIORITY_LOW, default=PRIORITY_NORMAL),
        expiry_s=members.optional_integer("expires_s", U32_MAX, 1),
    )
    members.done()
    return draft


def unpacked(packed: bytes) -> Mapping[str, object] | None:
    """Return headers as a bus takes them.

    Raises:
        RequestError: INVALID_RECORD; they are no map.
    """
    if not packed:
        return None
    try:
        headers: Any = msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        headers = None
    if not isinstance(headers, dict):
        raise error("INVALID_RECORD", "headers_base64: got no msgpack map")
    return headers
