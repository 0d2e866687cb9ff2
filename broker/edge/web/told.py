"""What a session of the JSON dialect tells its client: each native frame as the texts that it becomes (json.md).

Deliveries are not here: the renderer writes them. This keeps what the client's operations have to be known by until
they are answered, and what of a subscription only its client's texts say. Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker.edge.web.awaited import AWAITED_MAX, Id, Publish, Publishes, StoredRun
from broker.model.errors import BrokerError, default_hint, error, to_wire
from broker.wire import consuming, control
from broker.wire.dialect import bus_text, plain, position_text, write
from broker.wire.dialect_requests import encode_reply, pack_members
from broker.wire.kinds import DELIVER_HEADER_BYTES, PUBLISHED_ENTRY_BYTES, Kind
from broker_native import json_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

__all__ = ["Asked", "Told", "Watched"]

ENTRY: Final = struct.Struct("<QQQIIBB6x")
FLAG_DUPLICATE, FLAG_DELAYED = 1, 2
INVALID_CHANNEL: Final = error("INVALID_CHANNEL", "").code
UNKNOWN_SUBSCRIPTION: Final = error("UNKNOWN_SUBSCRIPTION", "").code
REPLIES_KNOWN_MAX: Final = 1_024
DROPPED: Final = frozenset(
    ["subscription", "request", "channel", "number", "count", "asked", "replied", "ack", "lease", "leases", "epoch"]
)


class Asked(NamedTuple):
    """A request that waits for its reply: what was asked for, as the client called it, and of which channel."""

    id: Id
    what: str
    channel: str = ""


@dataclass(slots=True, eq=False)
class Watched:
    """A subscription, as far as its client's texts know more of it than the session.

    Attributes:
        grants: The server grants its credit by itself.
        member: It is one of a consumer.
        asked: The positions that it was asked to begin behind.
        due: Bytes that were sent and not granted anew.
        acks: Acknowledgements that were sent.
        waiting: Those of them whose client has named them, (number, id), in order.
        channels: The names of its jobs' channels, by their numbers.
    """

    grants: bool
    member: bool
    asked: dict[str, tuple[int, int]]
    due: int = 0
    acks: int = 0
    waiting: list[tuple[int, Id]] = field(default_factory=list)
    channels: dict[int, bytes] = field(default_factory=dict)


class Told:
    """What waits to be told, and how it is.

    Args:
        text_bytes_max: What a client's text may have; it is told so by `welcome`.

    Attributes:
        reply_name: What WELCOME called the connection.
        publishes: Those that wait.
        requests: Those that wait, by number.
        asked: Questions that wait for somebody's answer, by number.
        replied: To whom the newest answers went, by number: an error says no more.
        pings: Those that wait, by token.
        watched: The subscriptions, by number.
        slots: The numbers of channels that are published to, by name.
        slots_used: How many numbers were given.
        free: Those of them whose channel was refused.
    """

    def __init__(self, text_bytes_max: int) -> None:
        self._text_bytes_max = text_bytes_max
        self.reply_name = ""
        self.publishes = Publishes()
        self.requests: dict[int, Asked] = {}
        self.asked: dict[int, Id] = {}
        self.replied: dict[int, str] = {}
        self.pings: dict[int, Id] = {}
        self.watched: dict[int, Watched] = {}
        self.slots: dict[str, int] = {}
        self.slots_used = 0
        self.free: list[int] = []
        self._refused: dict[int, dict[str, Any]] = {}

    # -- what is sent --------------------------------------------------------------------------------------------------

    def room(self, table: Sized) -> None:
        """Hold the bound on what waits.

        Raises:
            BrokerError: BUSY.
        """
        if len(table) >= AWAITED_MAX:
            raise error("BUSY", f"operations that wait for their answers: got {len(table) + 1}, limit {AWAITED_MAX}")

    def named(self, slot: int) -> None:
        """A channel's number is given anew."""
        self._refused.pop(slot, None)

    def remember_reply(self, number: int, to: str) -> None:
        """Somebody is answered; if it has gone an error says only the number."""
        if len(self.replied) >= REPLIES_KNOWN_MAX:
            del self.replied[next(iter(self.replied))]
        self.replied[number] = to

    # -- what is told --------------------------------------------------------------------------------------------------

    def texts(self, kind: int, body: bytes) -> list[bytes]:
        """Return what a frame becomes, which is no delivery of a subscription."""
        return _TEXTS[kind](self, body)

    def _welcome(self, body: bytes) -> list[bytes]:
        fields = control.decode(body)
        self.reply_name = fields.get("reply", "")
        fields["journal"] = fields["journal"].hex()
        fields["limits"]["text_bytes_max"] = self._text_bytes_max
        return [write({"op": "welcome", **plain(fields)})]

    def _published(self, body: bytes) -> list[bytes]:
        texts: list[bytes] = []
        for at in range(0, len(body), PUBLISHED_ENTRY_BYTES):
            number, epoch, first, count, _, level, flags = ENTRY.unpack_from(body, at)
            run = StoredRun(0, epoch, first, count, level, bool(flags & FLAG_DUPLICATE), bool(flags & FLAG_DELAYED))
            finished = self.publishes.stored(number, run)
            texts.extend(write(published_members(publish)) for publish in finished if publish.id is not None)
        return texts

    def _subscribed(self, body: bytes) -> list[bytes]:
        told = control.decode_subscribed(body)
        watched = self.watched.get(told.subscription)
        asked = watched.asked if watched is not None else {}
        channels = [outcome_members(outcome, asked) for outcome in told.outcomes]
        if watched is not None:
            watched.asked = {}
        bus = bus_text([told.bus.journal, told.bus.group, told.bus.index])
        return [write({"op": "subscribed", "sub": told.subscription, "bus": bus, "channels": channels})]

    def _unsubscribed(self, body: bytes) -> list[bytes]:
        number = control.decode_unsubscribe(body)
        self.watched.pop(number, None)
        return [write({"op": "unsubscribed", "sub": number})]

    def _event(self, body: bytes) -> list[bytes]:
        event = control.decode_event(body)
        said = {"op": "event", "sub": event.subscription, "event": event.event, "channel": event.channel}
        return [write({**said, **pack_members(event.more)})]

    def _reply(self, body: bytes) -> list[bytes]:
        number, fields = control.decode_reply(body)
        asked = self.requests.pop(number)
        if asked.id is None:
            return []
        op = "token" if asked.what == "sign_in" else "reply"
        return [encode_reply({"op": op, "id": asked.id}, asked.what, asked.channel, fields)]

    def _pong(self, body: bytes) -> list[bytes]:
        id = self.pings.pop(control.decode_token(body), None)
        return [] if id is None else [write({"op": "pong", "id": id})]

    def _going_away(self, body: bytes) -> list[bytes]:
        return [write({"op": "going_away", **plain(control.decode(body))})]

    def _jobs(self, body: bytes) -> list[bytes]:
        watched = self.watched[int.from_bytes(body[:4], "little")]
        return [json_chunks.jobs(body, watched.channels)]

    def _acked(self, body: bytes) -> list[bytes]:
        subscription, number = consuming.decode_acked(body)
        watched = self.watched.get(subscription)
        if watched is None:
            return []
        done = [id for at, id in watched.waiting if at <= number]
        watched.waiting = watched.waiting[len(done) :]
        return [write({"op": "acked", "id": id, "sub": subscription}) for id in done]

    def _answer(self, body: bytes) -> list[bytes]:
        """A DELIVER of no subscription: the answers to questions of this connection."""
        texts = []
        for number, message in json_chunks.messages(body[DELIVER_HEADER_BYTES:]):
            if number in self.asked:
                head = write({"op": "answer", "id": self.asked.pop(number)})
                texts.append(head[:-1] + b"," + message[1:])
        return texts

    # -- errors --------------------------------------------------------------------------------------------------------

    def _error(self, body: bytes) -> list[bytes]:
        fields = control.decode(body)
        if "number" in fields:
            return self._publish_refused(fields)
        if "channel" in fields:
            self._channel_refused(fields)
            return []
        if "asked" in fields:
            return self._questions_refused(fields)
        said = self._refused_one(fields)
        return [] if said is None else [error_text(fields, said)]

    def _refused_one(self, fields: dict[str, Any]) -> dict[str, object] | None:
        """Return what an error concerns, as members; None if nobody is to be told."""
        if "request" in fields:
            asked = self.requests.pop(fields["request"])
            op = "token" if asked.what == "sign_in" else "request"
            return {"refused": op, "id": asked.id}
        if "replied" in fields:
            return {"refused": "answer", "to": self.replied.pop(fields["replied"], None)}
        if "subscription" not in fields:
            return {}
        number = fields["subscription"]
        if "ack" in fields:
            watched = self.watched.get(number)
            waiting = watched.waiting if watched is not None else []
            id = next((id for at, id in waiting if at == fields["ack"]), None)
            lease = None if "lease" not in fields else str(fields["lease"])
            return {"refused": "ack", "id": id, "sub": number, "lease": lease, "count": fields.get("leases")}
        if fields["code"] == UNKNOWN_SUBSCRIPTION:
            return {"refused": "unsubscribe", "sub": number}
        self.watched.pop(number, None)
        return {"refused": "subscribe", "sub": number}

    def _publish_refused(self, fields: dict[str, Any]) -> list[bytes]:
        texts = []
        transaction: int | None = None
        for publish in self.publishes.refused(fields["number"], fields["count"]):
            why = fields
            if fields["code"] == INVALID_CHANNEL:
                why = self._refused.get(publish.slot, fields)
            index = None
            if publish.index is not None:
                # A transaction is refused once, by what it is as a whole.
                if transaction == publish.transaction:
                    continue
                transaction = publish.transaction
                index = fields.get("index", 0)
            texts.append(error_text(why, {"refused": publish.op, "id": publish.id, "index": index}))
        return texts

    def _channel_refused(self, fields: dict[str, Any]) -> None:
        """A channel's name is refused, and with it each publish to its number, which says less."""
        slot = fields["channel"]
        self._refused[slot] = fields
        for name, at in self.slots.items():
            if at == slot:
                del self.slots[name]
                self.free.append(slot)
                break

    def _questions_refused(self, fields: dict[str, Any]) -> list[bytes]:
        numbers = range(fields["asked"], fields["asked"] + fields["count"])
        ids = [self.asked.pop(number) for number in numbers if number in self.asked]
        return [error_text(fields, {"refused": "ask", "id": id}) for id in ids]


def published_members(publish: Publish) -> dict[str, object]:
    """Return what is told of a publish that is stored."""
    runs = sorted(publish.runs)
    last = runs[-1]
    said: dict[str, object] = {"op": "published", "id": publish.id, "index": publish.index, "channel": publish.channel}
    if last.delayed:
        return {**said, "count": publish.count, "level": last.level, "due": plain(last.first)}
    joined = [runs[0]]
    for run in runs[1:]:
        before = joined[-1]
        if (run.epoch, run.duplicate) == (before.epoch, before.duplicate) and run.first == before.first + before.count:
            joined[-1] = before._replace(count=before.count + run.count)
        else:
            joined.append(run)
    last = joined[-1]
    said |= {"epoch": str(last.epoch), "first": plain(last.first), "count": publish.count}
    said |= {"position": position_text(last.epoch, last.first + last.count - 1), "level": last.level}
    said["duplicate"] = True if all(run.duplicate for run in joined) else None
    if len(joined) > 1:
        said["runs"] = [
            {"epoch": str(run.epoch), "first": plain(run.first), "count": run.count}
            | ({"duplicate": True} if run.duplicate else {})
            for run in joined
        ]
    return said


def outcome_members(outcome: control.Outcome, asked: dict[str, tuple[int, int]]) -> dict[str, object]:
    """Return what is told of a place where a subscription begins."""
    said: dict[str, object] = {"channel": outcome.channel, "outcome": outcome.outcome}
    if not outcome.channel:
        return {**said, "group": plain(outcome.at)}
    epoch, at = outcome.epoch, outcome.at
    if outcome.outcome == "trimmed":
        at -= 1
    elif outcome.outcome == "resumed" and outcome.channel in asked:
        epoch, at = asked[outcome.channel]
    return {**said, "position": position_text(epoch, at)}


def error_text(fields: dict[str, Any], said: dict[str, object]) -> bytes:
    """Return the text of an error, of ERROR's keys and what it concerns."""
    members = {name: value for name, value in fields.items() if name not in DROPPED}
    sequence = members.pop("sequence", None)
    if sequence is not None:
        members["head"] = position_text(fields["epoch"], sequence)
    members.pop("index", None)
    # A client has no registry of hints.
    members.setdefault("hint", default_hint(fields["code"]))
    return write({"op": "error", **plain(members), **said})


def refusal_text(failure: BrokerError, said: dict[str, object]) -> bytes:
    """Return the text of an error that no frame has told."""
    return error_text(to_wire(failure), said)


_TEXTS: Final[dict[int, Callable[[Told, bytes], list[bytes]]]] = {
    Kind.WELCOME: Told._welcome,
    Kind.ERROR: Told._error,
    Kind.PONG: Told._pong,
    Kind.GOING_AWAY: Told._going_away,
    Kind.SUBSCRIBED: Told._subscribed,
    Kind.UNSUBSCRIBED: Told._unsubscribed,
    Kind.EVENT: Told._event,
    Kind.REPLY: Told._reply,
    Kind.PUBLISHED: Told._published,
    Kind.DELIVER: Told._answer,
    Kind.JOBS: Told._jobs,
    Kind.ACKED: Told._acked,
}
