"""What the operations of REQUEST ask for and what a REPLY answers (specification.md §13), packed and taken apart.

Both ends use these functions. Arguments of a wrong type or out of their range are a `MalformedFrame`, as in any control
body; what they name is judged by whoever carries the operation out. No I/O, no state.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgpack

from broker.model.delayed import DELAYED_MAX, DelayedPart, DelayedQuery, DelayedRow
from broker.model.history import (
    HISTORY_BYTES_DEFAULT,
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
from broker.model.names import ID_BYTES_MAX
from broker.model.positions import BusPosition
from broker.wire.control import (
    U32_MAX,
    decode_bus,
    frame,
    is_u64,
    take_int,
    take_list,
    take_optional_int,
    take_optional_str,
    take_str,
    wrong,
)
from broker.wire.kinds import Kind
from broker_native.answers import channel_question

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "decode_bus_part",
    "decode_bus_query",
    "decode_delayed_cancel",
    "decode_delayed_part",
    "decode_delayed_query",
    "decode_history_part",
    "decode_history_query",
    "decode_lagging_query",
    "decode_names_part",
    "decode_names_query",
    "decode_question",
    "decode_trim",
    "encode_part",
    "pack_part",
    "pack_query",
]


LAGGING_MAX = 500
"""A control body holds 16,384 values, and each reader is some 30 of them."""


def decode_lagging_query(body: Mapping[str, Any]) -> int:
    """Decode the arguments of `lagging`: how many readers are wanted, as far as one answer can tell of them.

    Raises:
        MalformedFrame: It is no such number.
    """
    count = take_optional_int(body, "limit")
    if count == 0:
        raise wrong("limit", "an integer from 1 on")
    return min(count or LAGGING_MAX, LAGGING_MAX)


def take_optional_bool(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise wrong(key, "a boolean")
    return value


def take_bytes_max(more: Mapping[str, Any]) -> int:
    """Take `bytes`; more than there may be counts as that."""
    return min(take_int(more, "bytes", smallest=1), HISTORY_BYTES_MAX) if "bytes" in more else HISTORY_BYTES_DEFAULT


def take_bus(value: object) -> BusPosition:
    bus = decode_bus(value)
    return BusPosition(bus.journal, bus.group, bus.index)


# --- Questions ----------------------------------------------------------------------------------------------------


def pack_query(query: HistoryQuery | BusQuery | NamesQuery | Trim | DelayedQuery) -> dict[str, object]:
    """Return the arguments of the REQUEST that asks it."""
    match query:
        case HistoryQuery():
            arguments: dict[str, object] = {
                "channel": query.channel,
                "after": query.after,
                "after_epoch": query.after_epoch or None,
                "before": query.before,
                "from_us": query.from_us,
                "until_us": query.until_us,
                "last": query.last,
                "limit": query.limit,
                "reverse": query.reverse or None,
                "bytes": None if query.bytes_max == HISTORY_BYTES_DEFAULT else query.bytes_max,
            }
            return {key: value for key, value in arguments.items() if value is not None}
        case BusQuery(pattern, bus, from_us, bytes_max):
            arguments = {"pattern": pattern, "bytes": bytes_max}
            if bus is not None:
                arguments["bus"] = list(bus)
            if from_us is not None:
                arguments["from_us"] = from_us
            return arguments
        case NamesQuery(prefix, after, limit, details):
            return {"prefix": prefix, "after": after, "limit": limit, "details": details}
        case DelayedQuery(prefix, place, limit):
            return {"prefix": prefix, "after": place, "limit": limit}
        case Trim(name, first):
            return {"name": name, "first": first}


def decode_history_query(more: Mapping[str, Any]) -> HistoryQuery:
    """Take the arguments of `history` with a channel.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    return HistoryQuery(
        take_str(more, "channel"),
        take_optional_int(more, "after"),
        take_optional_int(more, "after_epoch") or 0,
        take_optional_int(more, "before"),
        take_optional_int(more, "from_us"),
        take_optional_int(more, "until_us"),
        take_optional_int(more, "last"),
        take_int(more, "limit", smallest=1) if "limit" in more else None,
        take_optional_bool(more, "reverse"),
        take_bytes_max(more),
    )


def decode_question(body: bytes) -> tuple[int, HistoryQuery, bytes] | None:
    """Take a whole REQUEST `history` with a channel, if it is one that clients usually send.

    Returns:
        Its number, the question, and the channel's name, checked; None for any other, which `control.decode_request`
        takes or refuses.
    """
    taken = channel_question(body, HISTORY_BYTES_DEFAULT, HISTORY_BYTES_MAX)
    return None if taken is None else (taken[0], HistoryQuery._make(taken[1]), taken[2])


def decode_bus_query(more: Mapping[str, Any]) -> BusQuery:
    """Take the arguments of `history` with a pattern.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    bus = take_bus(more["bus"]) if "bus" in more else None
    return BusQuery(take_str(more, "pattern"), bus, take_optional_int(more, "from_us"), take_bytes_max(more))


def decode_names_query(more: Mapping[str, Any]) -> NamesQuery:
    """Take the arguments of `channels`.

    Raises:
        MalformedFrame: One is wrong.
    """
    return NamesQuery(
        take_optional_str(more, "prefix") or "",
        take_optional_str(more, "after") or "",
        take_int(more, "limit", NAMES_MAX, smallest=1) if "limit" in more else NAMES_MAX,
        take_optional_bool(more, "details"),
    )


def decode_trim(more: Mapping[str, Any]) -> Trim:
    """Take the arguments of `trim`.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    return Trim(take_str(more, "name"), take_int(more, "first", smallest=1))


def decode_delayed_query(more: Mapping[str, Any]) -> DelayedQuery:
    """Take the arguments of `delayed`.

    Raises:
        MalformedFrame: One is wrong.
    """
    after = more.get("after", b"")
    if not isinstance(after, bytes):
        raise wrong("after", "bytes")
    limit = take_optional_int(more, "limit")
    if limit is not None and not 1 <= limit <= DELAYED_MAX:
        raise wrong("limit", f"an integer from 1 to {DELAYED_MAX}")
    return DelayedQuery(take_optional_str(more, "prefix") or "", after, limit or DELAYED_MAX)


def decode_delayed_cancel(more: Mapping[str, Any]) -> tuple[str, bytes]:
    """Take the arguments of `delayed_cancel`: channel and id.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    id = more.get("id")
    if not isinstance(id, bytes) or not 1 <= len(id) <= ID_BYTES_MAX:
        raise wrong("id", f"1 to {ID_BYTES_MAX} bytes")
    return take_str(more, "channel"), id


# --- Answers ------------------------------------------------------------------------------------------------------


def pack_part(part: HistoryPart | BusPart | NamesPart | DelayedPart) -> dict[str, object]:
    """Return the fields of the REPLY that answers it."""
    match part:
        case HistoryPart():
            fields: dict[str, object] = {
                "epoch": part.epoch,
                "first": part.first,
                "head": part.head,
                "level": part.level,
                "after": part.after,
                "before": part.before,
                "more": part.more,
                "chunks": part.chunks,
            }
            if part.outcome is not None:
                fields["outcome"], fields["at"] = part.outcome, part.at
            return fields
        case BusPart(outcome, chunks, bus, more):
            return {"outcome": outcome, "chunks": list(map(list, chunks)), "bus": list(bus), "more": more}
        case NamesPart(channels, more):
            # A row without a level is a name alone.
            return {"channels": [list(row) if row.level else [row.name] for row in channels], "more": more}
        case DelayedPart(messages, after, more):
            return {"delayed": list(map(list, messages)), "after": after, "more": more}


class _Packers(threading.local):
    """A packer for each thread that answers: a new one for each answer would take a buffer of 256 KiB and clear it."""

    packer: msgpack.Packer

    def make(self) -> msgpack.Packer:
        self.packer = msgpack.Packer(use_bin_type=True)
        return self.packer


_packers = _Packers()


def encode_part(request: int, part: HistoryPart | BusPart | NamesPart | DelayedPart) -> bytes:
    """Encode REPLY. Its counts are bounded by ours, so it is not walked as other control bodies are."""
    packers = _packers
    packer = packers.packer if hasattr(packers, "packer") else packers.make()
    return frame(Kind.REPLY, packer.pack({"request": request, **pack_part(part)}))


def decode_history_part(fields: Mapping[str, Any]) -> HistoryPart:
    """Take the answer to `history` with a channel.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    chunks = fields.get("chunks")
    if not isinstance(chunks, bytes):
        raise wrong("chunks", "bytes")
    outcome = take_optional_str(fields, "outcome")
    return HistoryPart(
        take_int(fields, "epoch"),
        take_int(fields, "first"),
        take_int(fields, "head"),
        take_int(fields, "level", 4, smallest=1),
        outcome,
        take_int(fields, "at") if outcome is not None else 0,
        take_int(fields, "after"),
        take_int(fields, "before"),
        take_optional_bool(fields, "more"),
        chunks,
    )


def decode_bus_part(fields: Mapping[str, Any]) -> BusPart:
    """Take the answer to `history` with a pattern.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    return BusPart(
        take_str(fields, "outcome"),
        tuple(decode_named_chunk(item) for item in take_list(fields, "chunks")),
        take_bus(fields.get("bus")),
        take_optional_bool(fields, "more"),
    )


def decode_named_chunk(item: object) -> NamedChunk:
    if isinstance(item, list) and len(item) == 4:
        channel, group, index, chunk = item
        is_placed = is_u64(group) and is_u64(index) and index <= U32_MAX
        if isinstance(channel, str) and is_placed and isinstance(chunk, bytes):
            return NamedChunk(channel, group, index, chunk)
    raise wrong("chunks", "an array of [channel, group, index, chunk]")


def decode_names_part(fields: Mapping[str, Any]) -> NamesPart:
    """Take the answer to `channels`.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    rows = tuple(decode_channel_row(item) for item in take_list(fields, "channels"))
    return NamesPart(rows, take_optional_bool(fields, "more"))


def decode_channel_row(item: object) -> ChannelRow:
    is_row = isinstance(item, list) and len(item) in (1, 5)
    if isinstance(item, list) and is_row and isinstance(item[0], str) and all(map(is_u64, item[1:])):
        return ChannelRow(*item)
    raise wrong("channels", "an array of [name] or [name, epoch, first, head, level]")


def decode_delayed_part(fields: Mapping[str, Any]) -> DelayedPart:
    """Take the answer to `delayed`.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    after = fields.get("after")
    if not isinstance(after, bytes):
        raise wrong("after", "bytes")
    rows = tuple(decode_delayed_row(item) for item in take_list(fields, "delayed"))
    return DelayedPart(rows, after, take_optional_bool(fields, "more"))


def decode_delayed_row(item: object) -> DelayedRow:
    if isinstance(item, list) and len(item) == 5:
        channel, id, *figures = item
        if isinstance(channel, str) and isinstance(id, bytes) and all(map(is_u64, figures)):
            return DelayedRow(channel, id, *figures)
    raise wrong("delayed", "an array of [channel, id, due_us, record_bytes, refusals]")
