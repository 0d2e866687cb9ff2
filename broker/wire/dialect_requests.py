"""What `request` of the JSON dialect asks for and `reply` answers (json.md §9), turned into REQUEST's keys and back.

What a client sends is taken by the very functions that the server takes a REQUEST with, before it gets there, so that a
wrong argument refuses one operation and names itself. No I/O, no state.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from broker.model.errors import BrokerError, error
from broker.wire import consuming, control, requests
from broker.wire.control import FromNew, FromStart, encode_start
from broker.wire.dialect import Members, bus_text, is_digits, plain, position_text, write
from broker_native.json_chunks import chunk_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["arguments", "chunks_of", "encode_reply", "pack_members"]

INTEGERS: Final[Mapping[str, tuple[str, ...]]] = {
    "history": ("after", "after_epoch", "before", "from_us", "until_us", "last", "limit", "bytes"),
    "trim": ("first",),
    "task": ("id",),
}
INTEGERS_OF_ALL: Final = ("limit", "lease_ms", "attempts_max")
CHUNK_SIZE_BYTES: Final = 4


# --- Questions ----------------------------------------------------------------------------------------------------


def arguments(members: Members) -> tuple[str, dict[str, Any]]:
    """Take what is asked for, and the arguments that REQUEST has for it; all members are taken.

    Raises:
        BrokerError: MALFORMED_FRAME, naming the one that is wrong; INVALID_ID.
    """
    what = members.text("what")
    more = _taken(what, members)
    for name in (*INTEGERS.get(what, ()), *INTEGERS_OF_ALL):
        if is_digits(more.get(name)):
            more[name] = int(more[name])
    check = _CHECKS.get(what)
    try:
        if check is not None:
            check(more)
        # What is not checked above has bounds all the same.
        control.pack(more)
    except (TypeError, ValueError, OverflowError) as failure:
        raise error("MALFORMED_FRAME", f"request {what:.80}: {failure!s:.200}") from None
    except BrokerError as failure:
        if failure.name == "MALFORMED_FRAME":
            raise error("MALFORMED_FRAME", f"request {what:.80}: {failure.detail}") from None
        raise
    return what, more


def _taken(what: str, members: Members) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if "bus" in members:
        more["bus"] = list(members.bus("bus"))
    if "start" in members:
        start = Members(members.what, {"from": members.take("start")}).start()
        # A consumer begins with the oldest message unless it is said otherwise.
        packed = {"from": "new"} if isinstance(start, FromNew) else encode_start(start)
        if packed is not None and not isinstance(start, FromStart):
            more["start"] = packed
    if what == "delayed" and "after" in members:
        more["after"] = members.binary("after")
    if what == "delayed_cancel":
        more["id"] = members.text_or_binary("message_id")
    if what == "task":
        more["id"] = members.take("task")
    if what == "consumer_done":
        more["done"] = [_run(each) for each in members.objects("done")]
    more.update(members.left)
    members.left.clear()
    for name in ("request", "op"):
        if name in more:
            raise members.wrong(name, "left out")
    return more


def _run(members: Members) -> list[object]:
    run: list[object] = [members.text("channel"), *(members.integer(name) for name in ("epoch", "first", "count"))]
    members.done()
    return run


def _history(more: Mapping[str, Any]) -> object:
    return requests.decode_bus_query(more) if "pattern" in more else requests.decode_history_query(more)


def _name(more: Mapping[str, Any]) -> object:
    return control.take_str(more, "name")


def _paused(more: Mapping[str, Any]) -> object:
    return _name(more), consuming.take_bool(more, "paused", default=True)


def _page(more: Mapping[str, Any]) -> object:
    return _name(more), consuming.take_page(more)


def _limited(more: Mapping[str, Any]) -> object:
    return _name(more), control.take_optional_int(more, "limit")


def _done(more: Mapping[str, Any]) -> object:
    return _name(more), consuming.decode_done(more)


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any]], object]]] = {
    "channels": requests.decode_names_query,
    "consumer": _name,
    "consumer_done": _done,
    "consumer_pause": _paused,
    "consumer_peek": _page,
    "consumer_purge": _name,
    "consumer_redrive": _limited,
    "consumer_remove": _name,
    "consumer_reset": consuming.decode_reset,
    "consumer_set": consuming.decode_consumer_set,
    "consumers": consuming.decode_consumers_query,
    "delayed": requests.decode_delayed_query,
    "delayed_cancel": requests.decode_delayed_cancel,
    "history": _history,
    "lagging": requests.decode_lagging_query,
    "remove": _name,
    "trim": requests.decode_trim,
}


# --- Answers ------------------------------------------------------------------------------------------------------


def encode_reply(head: Mapping[str, object], what: str, channel: str, fields: dict[str, Any]) -> bytes:
    """Return the text of a reply.

    Args:
        head: Its first members: what it answers.
        what: What was asked for.
        channel: The channel that was asked about, for `history`.
        fields: REPLY's keys.
    """
    if what == "history":
        chunks = list(_history_chunks(channel, fields.pop("chunks", b""), fields.get("bus")))
        members = {**head, **_told(what, fields)}
        return write(members)[:-1] + b',"chunks":[' + b",".join(chunks) + b"]}"
    return write({**head, **_told(what, fields)})


def _told(what: str, fields: dict[str, Any]) -> dict[str, object]:
    """Return REPLY's keys as members."""
    convert = _ANSWERS.get(what)
    return pack_members(convert(fields) if convert is not None else fields)


def pack_members(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a body as members: places as text, what JavaScript does not hold as text."""
    members = dict(fields)
    if "bus" in members:
        members["bus"] = bus_text(members["bus"])
    if "positions" in members:
        members["positions"] = {name: position_text(epoch, at) for name, epoch, at in members["positions"]}
    return {name: plain(value) for name, value in members.items()}


def _history_chunks(channel: str, chunks: bytes | list[list[Any]], end: list[Any] | None) -> Iterator[bytes]:
    """Give each chunk of an answer as an object; `end` is the place of the bus where a pattern's answer goes on."""
    if isinstance(chunks, bytes):
        for chunk in chunks_of(chunks):
            yield b"{" + chunk_members(chunk, channel.encode()) + b"}"
    elif end is not None:
        for name, group, index, chunk in chunks:
            yield b"{" + chunk_members(chunk, name.encode(), bus_text([end[0], group, index]).encode()) + b"}"


def chunks_of(chunks: bytes) -> Iterator[bytes]:
    """Give each of the chunks that stand one behind the other."""
    at = 0
    while at < len(chunks):
        size = int.from_bytes(chunks[at : at + CHUNK_SIZE_BYTES], "little")
        yield chunks[at : at + size]
        at += size


def _epoch_as_text(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "epoch": str(fields["epoch"])} if "epoch" in fields else fields


def _channels(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "epoch", "first", "head", "level")
    rows = [_epoch_as_text(dict(zip(names, row, strict=False))) for row in fields["channels"]]
    return {**fields, "channels": rows}


def _delayed(fields: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"channel": channel, **_message_id(id), "due": due, "bytes": size, "refusals": refusals}
        for channel, id, due, size, refusals in fields["delayed"]
    ]
    return {**fields, "delayed": rows, "after": base64.b64encode(fields["after"]).decode()}


def _message_id(id: bytes) -> dict[str, str]:
    try:
        return {"message_id": id.decode()}
    except UnicodeDecodeError:
        return {"message_id_base64": base64.b64encode(id).decode()}


def _task(fields: dict[str, Any]) -> dict[str, Any]:
    return {"task" if name == "id" else name: value for name, value in fields.items()}


def _consumers(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "consumers": [pack_members(each) for each in fields["consumers"]]}


def _peeked(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("channel", "epoch", "seq", "attempt", "due", "member")
    return {**fields, "jobs": [_epoch_as_text(dict(zip(names, job, strict=True))) for job in fields["jobs"]]}


def _left(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("channel", "epoch", "first", "count")
    return {**fields, "left": [_epoch_as_text(dict(zip(names, run, strict=True))) for run in fields["left"]]}


_ANSWERS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "backup": _task,
    "channel": _epoch_as_text,
    "channels": _channels,
    "compact": _task,
    "consumer_done": _left,
    "consumer_peek": _peeked,
    "consumers": _consumers,
    "delayed": _delayed,
    "history": _epoch_as_text,
    "task": _task,
}
