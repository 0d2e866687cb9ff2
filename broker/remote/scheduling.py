"""What clients share of messages for later: times, ids, and the listing of what waits."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from broker.bus import DelayedMessage
from broker.model.delayed import DELAYED_MAX, DelayedQuery
from broker.model.errors import error
from broker.model.names import ID_BYTES_MAX
from broker.wire import requests

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DelayedPages", "draw_id", "pack_cancel", "when_of"]

FROM_NOW = 1 << 63
"""The top bit of a time on the wire: it counts from the moment in which the server takes the message."""
ID_BYTES = 16


def when_of(delay_s: float | None, deliver_at: datetime | float | None) -> int:
    """Return a time as the wire has it.

    Args:
        delay_s: Seconds from now on.
        deliver_at: A datetime with a zone, or seconds since 1970; one of the two is given.

    Raises:
        RequestError: INVALID_TIME.
    """
    if (delay_s is None) == (deliver_at is None):
        raise error("INVALID_TIME", "schedule: got both or none of `delay_s` and `deliver_at`, expected one of them")
    if isinstance(deliver_at, datetime):
        if deliver_at.tzinfo is None:
            raise error(
                "INVALID_TIME",
                f"deliver_at: got {deliver_at.isoformat()}, which has no time zone",
                "Use an aware datetime, such as datetime.now(timezone.utc), or seconds since 1970.",
            )
        deliver_at = deliver_at.timestamp()
    seconds = deliver_at if delay_s is None else delay_s
    assert seconds is not None
    if not isfinite(seconds) or not 0 <= seconds * 1e6 < FROM_NOW:
        name = "deliver_at" if delay_s is None else "delay_s"
        raise error("INVALID_TIME", f"{name}: got {seconds} seconds, expected 0 or more, and below {FROM_NOW // 10**6}")
    return round(seconds * 1e6) | (0 if delay_s is None else FROM_NOW)


def draw_id() -> str:
    """Return an id that no other message has."""
    return secrets.token_urlsafe(ID_BYTES)


def pack_cancel(channel: str, id: str | bytes) -> dict[str, object]:
    """Return the arguments of `delayed_cancel`.

    Raises:
        RequestError: INVALID_ID.
    """
    packed = id.encode("utf-8", "surrogatepass") if isinstance(id, str) else bytes(memoryview(id))
    if not 1 <= len(packed) <= ID_BYTES_MAX:
        raise error("INVALID_ID", f"message id: got {len(packed)} bytes, expected 1 to {ID_BYTES_MAX}")
    return {"channel": channel, "id": packed}


class DelayedPages:
    """A listing of what waits, as `Bus.delayed` describes it."""

    def __init__(self, prefix: str, limit: int | None) -> None:
        self._query = DelayedQuery(prefix)
        self._left = limit
        self._ended = False

    def next(self) -> Mapping[str, object] | None:
        """Return the arguments of the next request; None when the listing is over."""
        if self._ended or (self._left is not None and self._left <= 0):
            return None
        self._query = replace(self._query, limit=DELAYED_MAX if self._left is None else min(self._left, DELAYED_MAX))
        return requests.pack_query(self._query)

    def take(self, fields: dict[str, Any]) -> list[DelayedMessage]:
        """Take an answer."""
        part = requests.decode_delayed_part(fields)
        self._ended = not part.more
        self._query = replace(self._query, after=part.after)
        if self._left is not None:
            self._left -= len(part.messages)
        return [
            DelayedMessage(channel, _told(id), due_us, record_bytes, refusals)
            for channel, id, due_us, record_bytes, refusals in part.messages
        ]


def _told(id: bytes) -> str | bytes:
    """Return an id as whoever has chosen it wrote it, most likely."""
    try:
        return id.decode()
    except UnicodeDecodeError:
        return id
