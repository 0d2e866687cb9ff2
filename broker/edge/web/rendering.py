"""Native frames as server-sent events: what a stream's session was handed, as the text that its client gets.

Streams that read the same get the same bytes of the broker; a `Rendering` is made once for all of them, and lives as
long as a beat of the pulse. It depends on the frames and on what kind of subscription they belong to, on nothing else.

    event: subscribed            what the broker says to the subscription, once, and again after each reconnect
    id: 1099511627777:41
    data: {"bus": "…", "channels": [{"channel": "chat.acme.42", "outcome": "new", "position": "1099511627777:41"}]}

    id: 1099511627777:42         a delivery has no `event`, so it is what `onmessage` gets
    data: {"channel": "chat.acme.42", "epoch": "1099511627777", "position": "…", "messages": […]}

`id` is a position for a subscription of one channel, else a place of the bus: what `Last-Event-ID` resumes behind.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.model.errors import BrokerError, error
from broker.model.positions import BusPosition, Position
from broker.wire import control, dialect
from broker.wire.kinds import Kind
from broker_native.json_chunks import chunk_members
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus import ChannelInfo
    from broker_native.messages import Batch

__all__ = ["SUBSCRIPTION", "Reader", "Rendering", "channel_fields", "delivery", "dump", "problem_event"]

SUBSCRIPTION: Final = 1
"""The number by which every stream calls its only subscription, so that frames are the same for all."""
FRAME_BYTES_MAX: Final = 67_239_935
"""The largest that a server sends (specification §2)."""


class Rendering(NamedTuple):
    """What frames are to a stream.

    Attributes:
        text: The events, ready to be sent.
        deliveries: Each delivery's object alone.
        credit: What they took of the subscription's credit, bytes.
        place: The newest `id`, None if there is none in them.
        began: Whether the subscription has been accepted in them.
        failure: Why the subscription has ended in them.
    """

    text: bytes
    deliveries: tuple[bytes, ...]
    credit: int
    place: str | None
    began: bool
    failure: BrokerError | None


class Reader:
    """Reads the frames of one stream.

    Args:
        literal: The one channel that it reads; None for patterns, or several.
        by_bus: It stands by places of the bus.
        asked: The place that it was asked to go on from.
    """

    __slots__ = ("_asked", "_by_bus", "_frames", "_handlers", "knows_names")

    def __init__(self, literal: str | None, by_bus: bool, asked: str | None) -> None:
        self._frames = FrameReader(error, FRAME_BYTES_MAX)
        self._frames.add_route(SUBSCRIPTION, self, literal)
        self._by_bus = by_bus
        self._asked = asked
        self.knows_names = literal is not None

    def learn(self, frames: bytes) -> None:
        """Take the names of channels out of frames that somebody else has rendered."""
        self._frames.feed(frames)

    def render(self, frames: bytes) -> Rendering:
        """Render whole frames.

        Raises:
            BrokerError: They are not what a server sends.
        """
        parts: list[bytes] = []
        deliveries: list[bytes] = []
        credit = 0
        place: str | None = None
        began = False
        failure: BrokerError | None = None
        for item in self._frames.feed(frames):
            if len(item) == 2:
                batch: Batch = item[1]
                credit += batch.size_bytes
                here = self._place_of(batch)
                body = delivery(batch)
                deliveries.append(body)
                parts.append(event(None, here, body))
                place = here or place
            elif item[0] == Kind.SUBSCRIBED:
                began = True
                text, place = self._begin(control.decode_subscribed(item[2]))
                parts.append(text)
            elif item[0] == Kind.ERROR:
                failure = control.decode_error(item[2]).failure
                parts.append(problem_event(failure))
            else:
                parts.append(self._other(item[0], item[2]))
        if self._frames.failure is not None:
            raise self._frames.failure
        return Rendering(b"".join(parts), tuple(deliveries), credit, place, began, failure)

    def _place_of(self, batch: Batch) -> str | None:
        if not self._by_bus:
            return str(batch.position)
        bus = batch.bus_position
        return None if bus is None else str(bus)

    def _begin(self, answer: control.Subscribed) -> tuple[bytes, str]:
        """Render SUBSCRIBED; answers its place too."""
        bus = str(BusPosition(answer.bus.journal, answer.bus.group, answer.bus.index))
        rows: list[dict[str, object]] = []
        place = bus
        for outcome in answer.outcomes:
            row: dict[str, object] = {"channel": outcome.channel, "outcome": outcome.outcome}
            if outcome.channel:
                at = outcome.at - 1 if outcome.outcome == "trimmed" else outcome.at
                position = str(Position(outcome.epoch, at))
                if outcome.outcome == "resumed" and self._asked is not None and not self._by_bus:
                    position = self._asked
                row["position"] = position
                if not self._by_bus:
                    place = position
            else:
                row["group"] = outcome.at
            rows.append(row)
        return event("subscribed", place, dump({"bus": bus, "channels": rows})), place

    @staticmethod
    def _other(kind: int, body: bytes) -> bytes:
        """Render what is neither a delivery nor an answer."""
        if kind == Kind.EVENT:
            told = control.decode_event(body)
            return event(told.event, None, dump({**told.more, "event": told.event, "channel": told.channel}))
        # WELCOME says nothing that a stream's client has a use for.
        if kind in (Kind.WELCOME, Kind.PING, Kind.UNSUBSCRIBED):
            return b""
        raise error("MALFORMED_FRAME", f"frame of kind {kind}: not expected by a stream")

    def set_journal(self, journal: bytes) -> None:
        """Name the journal that places of the bus are of."""
        self._frames.journal = journal


def event(name: str | None, place: str | None, data: bytes) -> bytes:
    """Return one event; `data` is JSON, which has no line breaks."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    if place is not None:
        head += b"id: %b\n" % place.encode()
    return b"%bdata: %b\n\n" % (head, data)


def problem_event(failure: BrokerError) -> bytes:
    """Return the event that says why a stream ends."""
    fields: dict[str, object] = {
        "code": failure.code,
        "name": failure.name,
        "detail": failure.detail,
        "hint": failure.hint,
    }
    if failure.retry_after_ms is not None:
        fields["retry_after_ms"] = failure.retry_after_ms
    return event("problem", None, dump(fields))


def delivery(batch: Batch) -> bytes:
    """Return a batch as the object that `deliver` of the JSON dialect is; it has no line breaks."""
    bus = batch.bus_position
    members = chunk_members(batch.chunk, batch.channel.encode(), None if bus is None else str(bus).encode())
    return b"{%b%b}" % (members, b',"early":true' if batch.early else b"")


def channel_fields(info: ChannelInfo) -> dict[str, object]:
    """Return what a channel holds, as JSON has it."""
    return {"epoch": str(info.epoch), "first": info.first, "head": info.head, "level": int(info.level)}


def dump(fields: Mapping[str, object]) -> bytes:
    """Return an object as JSON, integers past what JavaScript holds as text. What is None stands there as null."""
    return json.dumps(dialect.plain(fields), separators=(",", ":")).encode()
