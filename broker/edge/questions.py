"""What connections ask with REQUEST, and how each is answered: at once, when it is committed, or in parts.

Runs on the node's loop only.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from broker.access.gate import Verb
from broker.edge.beginning import check_ways
from broker.edge.consuming import OPERATIONS
from broker.edge.delaying import cancel, list_delayed
from broker.edge.seen import Seen
from broker.edge.tracing import trace
from broker.model.errors import BrokerError, error
from broker.model.history import HistoryQuery
from broker.model.names import check_channel, check_pattern, display
from broker.node.history import ASKS_MAX
from broker.node.listing import NamesScan
from broker.wire import control, requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.edge.session import Session
    from broker.model.history import BusQuery

__all__ = ["answer"]

SEES = (Verb.HISTORY, Verb.MANAGE)
"""Who may do one of these to a channel may know that it is there."""
REPLY_OVERHEAD_BYTES = 4_096
"""What an answer has besides its chunks, at most, but for the names of channels."""


def answer(session: Session, body: bytes) -> None:
    """Handle a REQUEST."""
    # Who reads thousands of channels asks for thousands.
    asked = requests.decode_question(body)
    if asked is not None:
        try:
            read_channel(session, *asked)
        except BrokerError as failure:
            session.outbox.frame(control.encode_error(failure, request=asked[0]))
        return
    request = control.decode_request(body)
    question = _QUESTIONS.get(request.op)
    try:
        if question is not None:
            question(session, request)
            return
        reply = operate(session, request)
    except BrokerError as failure:
        if failure.name == "MALFORMED_FRAME":
            raise
        session.outbox.frame(control.encode_error(failure, request=request.request))
        return
    session.outbox.frame(control.encode_reply(request.request, reply))


def read_history(session: Session, request: control.Request) -> None:
    """Read back what is stored of a channel, or of what a pattern selects."""
    if "pattern" in request.more:
        read_bus(session, request)
        return
    query = requests.decode_history_query(request.more)
    session.node.gate.check(session.identity, Verb.HISTORY, query.channel.encode())
    read_back(session, request.request, query, check_channel(query.channel))


def read_channel(session: Session, number: int, query: HistoryQuery, name: bytes) -> None:
    """Read back what is stored of a channel, whose name was found to be one."""
    session.node.gate.check(session.identity, Verb.HISTORY, name)
    read_back(session, number, query, name)


def read_bus(session: Session, request: control.Request) -> None:
    """Read back what is stored of the channels that a pattern selects, in the order of the bus."""
    query = requests.decode_bus_query(request.more)
    session.node.gate.check(session.identity, Verb.HISTORY, query.pattern.encode())
    pattern = check_pattern(query.pattern)
    check_ways(session, pattern)
    read_back(session, request.request, query, pattern)


def read_back(session: Session, number: int, query: HistoryQuery | BusQuery, name: bytes) -> None:
    """Have a read answered, in pieces that fit a frame; a connection that asks for many waits for its answers."""
    # What is not in memory is looked up by the reader, with many others at once: reading loads nothing.
    bytes_max = min(query.bytes_max, session.frame_bytes_max - REPLY_OVERHEAD_BYTES)
    if bytes_max < query.bytes_max:
        if isinstance(query, HistoryQuery):
            query = query._replace(bytes_max=bytes_max)
        else:
            query = replace(query, bytes_max=bytes_max)
    if session.node.history.ask(session, number, query, name) >= ASKS_MAX:
        session.hold_for_asking()
    session.node.kick()


def list_channels(session: Session, request: control.Request) -> None:
    """List the names of stored channels."""
    query = requests.decode_names_query(request.more)
    seen = Seen(session, SEES, query.prefix.encode())
    names = NamesScan(seen.prefix, query.after.encode(), query.limit, None if seen.everything else seen.shows)
    session.node.listing.ask(session, request.request, names, details=query.details)
    session.node.kick()


def trim(session: Session, request: control.Request) -> None:
    """Take the oldest messages out of a channel; answered when that is committed."""
    asked = requests.decode_trim(request.more)
    session.node.gate.check(session.identity, Verb.MANAGE, asked.name.encode())
    name = check_channel(asked.name)
    session.need([name])
    info = session.node.tails.info(name)
    end = info[6] if info is not None else 1
    if asked.first > end:
        raise error("INVALID_POSITION", f"trim {asked.name}: got first {asked.first}, expected no position above {end}")

    def reply() -> dict[str, object]:
        left = session.node.tails.info(name)
        return {"first": left[3] if left is not None else 1}

    session.node.core.trim(name, asked.first, lambda failure: session.changed(request.request, failure, reply))
    session.node.kick()


def ask_consumers(session: Session, request: control.Request) -> None:
    """Have consumers do something, or tell of them."""
    session.consumes().ask(request)


def remove(session: Session, request: control.Request) -> None:
    """Remove a channel; answered when that is committed."""
    asked = control.take_str(request.more, "name")
    session.node.gate.check(session.identity, Verb.MANAGE, asked.encode())
    name = check_channel(asked)
    session.need([name])
    session.node.core.drop(name, lambda failure: session.changed(request.request, failure, dict))
    session.node.kick()


def sign_in(session: Session, request: control.Request) -> None:
    """Go on with a fresh token."""
    session.renew(request)


def operate(session: Session, request: control.Request) -> dict[str, object]:
    if request.op == "stats":
        session.node.gate.check(session.identity, Verb.MANAGE, b">")
        return {"stats": session.node.stats()}
    if request.op == "lagging":
        session.node.gate.check(session.identity, Verb.MANAGE, b">")
        readers, more = session.node.readers_behind(requests.decode_lagging_query(request.more))
        return {"readers": readers, "more": more}
    if request.op == "channel":
        return describe(session, request.more.get("name"))
    if request.op in ("backup", "compact", "task"):
        return care(session, request)
    known = ", ".join(sorted(["backup", "channel", "compact", "lagging", "stats", "task", *_QUESTIONS]))
    raise error("UNKNOWN_OPERATION", f"operation: got {display(request.op.encode())}, known: {known}")


def care(session: Session, request: control.Request) -> dict[str, object]:
    """Begin long work on the data, or tell how far it is."""
    session.node.gate.check(session.identity, Verb.MANAGE, b">")
    if request.op == "task":
        return asdict(session.node.housekeeping.task(request.more.get("id")))
    if request.op == "compact":
        return {"id": session.node.compact()}
    path = request.more.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise error(
            "UNKNOWN_OPERATION",
            f"operation backup: path is {path!r:.100}, expected an absolute one",
            "Name a folder on the broker's machine, from the root on, that is missing or empty.",
        )
    return {"id": session.node.backup(Path(path))}


def describe(session: Session, asked: object) -> dict[str, object]:
    if not isinstance(asked, str):
        raise error("INVALID_CHANNEL", f"operation channel: `name` is {type(asked).__name__}, expected a string")
    if not session.node.gate.allows(session.identity, Verb.MANAGE, asked.encode()):
        session.node.gate.check(session.identity, Verb.HISTORY, asked.encode())
    name = check_channel(asked)
    session.need([name])
    info = session.node.tails.info(name)
    if info is None:
        # A question makes no channel: asking for many names must not fill the broker with them.
        level = session.node.core.profiles.resolve(name).durability
        return {"epoch": 0, "first": 1, "head": 0, "level": level}
    return {"epoch": info[2], "first": info[3], "head": info[6] - 1, "level": info[1]}


_QUESTIONS: dict[str, Callable[[Session, control.Request], None]] = {
    "channels": list_channels,
    "delayed": list_delayed,
    "delayed_cancel": cancel,
    "history": read_history,
    "remove": remove,
    "sign_in": sign_in,
    "trace": trace,
    "trim": trim,
    **dict.fromkeys(OPERATIONS, ask_consumers),
}
"""Operations that answer by themselves, later."""
