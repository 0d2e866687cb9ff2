"""Messages for later, as connections ask for them: scheduled, cancelled, listed.

Whoever asks before all that waits is known (at a start) waits with its connection until it is.

Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from broker.access.gate import Verb
from broker.edge.seen import Seen
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import check_channel
from broker.wire import requests

if TYPE_CHECKING:
    from broker.edge.session import Session
    from broker.wire import control

__all__ = ["cancel", "list_delayed", "schedule", "schedule_together"]

HEADER = struct.Struct("<IIQQ")
FROM_NOW = 1 << 63
DUPLICATE = 1
S = 1_000_000


def schedule(session: Session, body: bytes) -> None:
    """Handle a PUBLISH with AT."""
    if len(body) < HEADER.size:
        raise error("MALFORMED_FRAME", f"PUBLISH with AT: got {len(body)} bytes, at least {HEADER.size} needed")
    slot, count, number, when = HEADER.unpack_from(body)
    publisher = session.publisher
    if publisher is None:
        failure = error("INVALID_CHANNEL", f"publish {number}: channel number {slot} has no channel")
        session.refuse(failure, number, count)
        return
    code = publisher.judge(body, HEADER.size)
    if code == DUPLICATE:
        session.on_duplicate(slot, number, count)
    elif code:
        session.on_refused(code, slot, number, count)
    else:
        try:
            due_us = due_at(session, number, when)
            if publisher.level_of(slot) == Level.EPHEMERAL:
                name = publisher.name_of(slot) or b""
                raise error("NOT_STORED", f"publish {number}: channel {name.decode()} is ephemeral, and cannot wait")
            session.need_delayed()
            body = publisher.stamp_all(slot, body, HEADER.size)
            session.node.delayed.schedule(publisher, body, HEADER.size, due_us)
        except BrokerError as failure:
            session.refuse(failure, number, count)


def schedule_together(session: Session, frames: bytes) -> int:
    """Handle PUBLISH frames with AT as far as there is nothing to be said about them; returns how many.

    Raises:
        BrokerError: The journal has not taken them.
    """
    delayed = session.node.delayed
    # What gets a stamp is rewritten, one frame at a time.
    if session.publisher is None or session.publisher.stamps or not session.opened or not delayed.ready:
        return 0
    due_us_max = session.tails.now_us + session.node.limits.delay_s_max * S
    return delayed.schedule_frames(session.publisher, frames, due_us_max)


def due_at(session: Session, number: int, when: int) -> int:
    """Return when a PUBLISH is due.

    Raises:
        RequestError: INVALID_TIME; it is too far away.
    """
    now_us, limit_s = session.tails.now_us, session.node.limits.delay_s_max
    due_us = now_us + (when - FROM_NOW) if when >= FROM_NOW else when
    if due_us > now_us + limit_s * S:
        raise error(
            "INVALID_TIME",
            f"publish {number}: got a time {(due_us - now_us) // S} seconds from now, limit {limit_s} seconds",
            "Choose a time within limits.delay_s_max from now.",
        )
    return due_us


def cancel(session: Session, request: control.Request) -> None:
    """Have a message wait no more; answered when that is committed."""
    asked, id = requests.decode_delayed_cancel(request.more)
    session.node.gate.check(session.identity, Verb.PUBLISH, asked.encode())
    name = check_channel(asked)
    session.need_delayed()
    session.node.delayed.cancel(name, id, lambda failure: session.changed(request.request, failure, dict))
    session.node.kick()


def list_delayed(session: Session, request: control.Request) -> None:
    """List what waits."""
    query = requests.decode_delayed_query(request.more)
    seen = Seen(session, (Verb.PUBLISH, Verb.MANAGE), query.prefix.encode())
    session.need_delayed()
    session.node.delayed.ask(session, request.request, query, seen.shows)
