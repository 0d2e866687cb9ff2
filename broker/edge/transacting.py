"""Publishes under a condition and transactions, as far as they are more than taken: refusals, repetitions, turns.

What can be taken is taken by `Intake` before it comes here. What comes here is decided again, by the same native calls,
and answered: a conflict that rests on a pending group when that group's fate is known, everything else at once.

Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from broker.model.errors import BrokerError, error
from broker.wire import control
from broker.wire.control import FRAME_HEADER
from broker.wire.kinds import FRAME_HEADER_BYTES, TRANSACTION_HEADER_BYTES, Kind
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.transactions import CODES, decide_expecting, decide_transaction, judge_transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.edge.session import Session

__all__ = ["publish_expecting", "transact"]

AWAITED_MAX = 65_536
"""Conflicts that wait for the commit of what they conflict with."""
PUBLISH_HEADER = struct.Struct("<IIQ")
FRAME_SIZE = struct.Struct("<I")
COUNTS = struct.Struct("<II")
RESTS_ON_OPEN = 1

DUPLICATE = CODES["DUPLICATE"]
TURN_OPEN = CODES["TURN_OPEN"]
CONFLICT = CODES["CONFLICT"]
NOT_STORED = CODES["NOT_STORED"]
TOO_LARGE = CODES["TRANSACTION_TOO_LARGE"]
MALFORMED_FRAME = CODES["MALFORMED_FRAME"]


class Verdict(NamedTuple):
    """What `decide_expecting` and `decide_transaction` answer."""

    code: int
    number: int
    numbers: int
    at_fault: int
    rests_on: int
    epoch: int
    sequence: int


def publish_expecting(session: Session, body: bytes) -> None:
    """Handle a PUBLISH with EXPECT."""
    verdict = Verdict(*decide_expecting(_publisher(session), body))
    if verdict.code == MALFORMED_FRAME:
        raise error("MALFORMED_FRAME", f"PUBLISH with EXPECT: got {len(body)} bytes, at least 32 needed")
    if verdict.code == DUPLICATE:
        slot, count, number = PUBLISH_HEADER.unpack_from(body)
        session.on_duplicate(slot, number, count)
    elif verdict.code:
        _refuse(session, verdict, PUBLISH_HEADER.unpack_from(body)[0], len(body))


def transact(session: Session, body: bytes) -> None:
    """Handle a TRANSACTION."""
    publisher = _publisher(session)
    decided, end = judge_transaction(publisher, body)
    verdict = Verdict(*decided)
    if verdict.code == MALFORMED_FRAME:
        raise error("MALFORMED_FRAME", f"TRANSACTION of {len(body)} bytes: it is not whole frames in a row")
    if verdict.code == DUPLICATE:
        # What it acknowledges was settled with it.
        for slot, count, number in _publishes(body):
            session.on_duplicate(slot, number, count)
        return
    if verdict.code not in (0, TURN_OPEN):
        slots = [slot for slot, _, _ in _publishes(body)]
        _refuse(session, verdict, slots[verdict.at_fault], len(body))
        return
    acks = _acks(body, end)
    refusal = session.acks_refusal(acks)
    if refusal is not None:
        _answer(session, verdict, refusal)
        return
    if verdict.code == TURN_OPEN:
        # Records that are delivered with their turn must not take those with them that wait for the commit.
        session.node.core.end_turn(session.node.clock.now_us())
        session.node.kick()
    code, *_ = decide_transaction(publisher, body, True)
    assert not code
    session.settle_acks(acks)


def _acks(body: bytes, at: int) -> list[bytes]:
    """Return the bodies of a transaction's ACK frames, which begin behind its publishes.

    Raises:
        MalformedFrame: They are not whole ACK frames, as many as are announced.
    """
    acks: list[bytes] = []
    while len(body) - at >= FRAME_HEADER_BYTES:
        size, kind, flags, reserved = FRAME_HEADER.unpack_from(body, at)
        if kind != Kind.ACK or flags or reserved:
            raise error(
                "MALFORMED_FRAME", f"TRANSACTION: got a frame of kind {kind} behind its publishes, expected ACK"
            )
        at += FRAME_HEADER_BYTES
        acks.append(body[at : at + size])
        at += size
    _, count = COUNTS.unpack_from(body)
    if at != len(body) or len(acks) != count:
        raise error("MALFORMED_FRAME", f"TRANSACTION: got {len(acks)} ACK frames, expected {count} and nothing else")
    return acks


def _publisher(session: Session) -> Publisher:
    """The connection's publisher; one that has no channels for a connection that has named none."""
    return session.publisher or Publisher(session.node.tails, Line(), session, 0)


def _publishes(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Iterate over (channel number, count, number) of a well-formed transaction's publishes."""
    at = TRANSACTION_HEADER_BYTES
    for _ in range(COUNTS.unpack_from(body)[0]):
        yield PUBLISH_HEADER.unpack_from(body, at + FRAME_HEADER_BYTES)
        at += FRAME_HEADER_BYTES + FRAME_SIZE.unpack_from(body, at)[0]


def spans_of(body: bytes) -> list[tuple[int, int]]:
    """Return (number, count) of each publish of a transaction of which nothing is known but its first one.

    Raises:
        MalformedFrame: It is not whole frames in a row.
    """
    spans: list[tuple[int, int]] = []
    at = TRANSACTION_HEADER_BYTES
    for _ in range(COUNTS.unpack_from(body)[0]):
        if len(body) - at < FRAME_HEADER_BYTES + PUBLISH_HEADER.size:
            raise error("MALFORMED_FRAME", f"TRANSACTION of {len(body)} bytes: it is not whole frames in a row")
        _, count, number = PUBLISH_HEADER.unpack_from(body, at + FRAME_HEADER_BYTES)
        spans.append((number, count))
        at += FRAME_HEADER_BYTES + FRAME_SIZE.unpack_from(body, at)[0]
    return spans or [(0, 0)]


def _refuse(session: Session, verdict: Verdict, slot: int, size: int) -> None:
    """Answer a refusal, when what it rests on is known."""
    failure = _failure(session, verdict, slot, size)
    if verdict.code != CONFLICT or not verdict.rests_on:
        _answer(session, verdict, failure)
        return
    core = session.node.core
    if core.awaited >= AWAITED_MAX:
        busy = error("BUSY", f"answers that wait for a commit: got {AWAITED_MAX + 1}, limit {AWAITED_MAX}")
        _answer(session, verdict, busy)
        return
    core.await_group(verdict.rests_on == RESTS_ON_OPEN, lambda lost: _answer(session, verdict, lost or failure))


def _answer(session: Session, verdict: Verdict, failure: BrokerError) -> None:
    if session.closed:
        return
    head = (verdict.epoch, verdict.sequence) if failure.code == CONFLICT else None
    index = verdict.at_fault or None
    session.outbox.frame(
        control.encode_error(failure, number=verdict.number, count=verdict.numbers, head=head, index=index)
    )
    session.node.kick()


def _failure(session: Session, verdict: Verdict, slot: int, size: int) -> BrokerError:
    """Say why it is refused."""
    about = f"publish {verdict.number}"
    if verdict.code == CONFLICT:
        return error(CONFLICT, f"{about}: the head of channel number {slot} is {verdict.epoch}:{verdict.sequence}")
    if verdict.code == NOT_STORED:
        return error(NOT_STORED, f"{about}: channel number {slot} is ephemeral")
    if verdict.code == TOO_LARGE:
        limit = session.node.tails.transaction_bytes_max
        return error(TOO_LARGE, f"{about}: its transaction: got {size} bytes, limit {limit} bytes")
    return session.publish_error(verdict.code, slot, verdict.number)
