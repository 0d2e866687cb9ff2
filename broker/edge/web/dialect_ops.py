"""What a client of the JSON dialect can do: each operation as the native frames that it becomes (json.md §4 to §10).

A frame is fed only when the session takes frames, so what it does is done when `feed` returns, and the next number of
the line is known. Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from broker.edge.web.awaited import Publish
from broker.edge.web.told import Asked, Watched
from broker.model.consumers import BACK_OFF, Consume, Settle, Verdict
from broker.model.errors import error
from broker.wire import consuming, control
from broker.wire.control import U32_MAX, U64_MAX, FromPositions
from broker.wire.dialect import Members, has_id, take_message, take_messages
from broker.wire.dialect_requests import arguments
from broker.wire.kinds import FRAME_HEADER_BYTES, HELLO_BYTES_MAX, PRODUCER_BYTES, Kind, PublishFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.edge.web.dialect import Dialect

__all__ = ["GRANT_BYTES", "OPERATIONS", "NotReady", "say_hello"]

PUBLISH_HEADER: Final = struct.Struct("<IIQ")
PLACE: Final = struct.Struct("<QQ")
WHEN: Final = struct.Struct("<Q")
TRANSACTION_HEADER: Final = struct.Struct("<II")
FROM_NOW: Final = 1 << 63
SLOTS_MAX: Final = 4_096
"""Channels whose numbers a connection keeps; one more takes the number of the one that was named first."""
GRANT_BYTES: Final = 1 << 20
"""Credit of a subscription whose client grants none itself."""
CREDIT_MAX: Final = 1 << 40
NAME_BYTES_MAX: Final = 255
LEASES_MAX: Final = 1 << 20
US_PER_MS: Final = 1_000
REPLY_TO: Final = "reply-to"
VERBS: Final = {
    "ack": Verdict.ACK,
    "nack": Verdict.NACK,
    "reject": Verdict.REJECT,
    "extend": Verdict.EXTEND,
    "through": Verdict.ACK_THROUGH,
    "release": Verdict.RELEASE,
}


class NotReady(Exception):
    """The session has something to wait for before it takes the rest of an operation."""


# -- hello -------------------------------------------------------------------------------------------------------------


def say_hello(dialect: Dialect, members: Members) -> None:
    """Greet."""
    token, name = members.optional_text("token"), members.optional_text("name")
    producer = take_producer(members) if "producer" in members else None
    members.done()
    frame = control.encode_hello(name or "", producer, token)
    if len(frame) - FRAME_HEADER_BYTES > HELLO_BYTES_MAX:
        raise members.wrong("token", f"shorter: hello has {len(frame)} bytes, limit {HELLO_BYTES_MAX}")
    dialect.feed(frame)


def take_producer(members: Members) -> bytes:
    text = members.text("producer")
    try:
        producer = bytes.fromhex(text)
    except ValueError:
        producer = b""
    if len(producer) != PRODUCER_BYTES or len(text) != 2 * PRODUCER_BYTES:
        raise members.wrong("producer", f"{2 * PRODUCER_BYTES} hex digits")
    return producer


def renew(dialect: Dialect, members: Members) -> None:
    """Give a fresh token."""
    id, token = members.id(), members.text("token")
    members.done()
    send_request(dialect, Asked(id, "sign_in"), {"token": token})


# -- publishing --------------------------------------------------------------------------------------------------------


def publish(dialect: Dialect, members: Members) -> None:
    """Publish messages to a channel."""
    id, channel = members.id(), members.text("channel")
    records = take_messages(members)
    has_ids = any(map(has_id, records))
    flags, between = take_condition(members)
    number = members.optional_integer("number", smallest=1)
    members.done()
    if flags == PublishFlag.AT and not all(map(has_id, records)):
        raise members.wrong("message_id", "there, since it is to be published later")
    slot = slot_of(dialect, channel)
    first = next_number(dialect) if number is None else number
    waiting = Publish(id, channel, slot, first, len(records))
    body = PUBLISH_HEADER.pack(slot, len(records), first) + between + b"".join(records)
    frame = dialect.frame(Kind.PUBLISH, body, flags)
    await_stored(dialect, [waiting], divided=has_ids or number is not None)
    dialect.feed(frame)


def take_condition(members: Members) -> tuple[int, bytes]:
    """Take `expect`, `at` or `delay_ms`; answers the frame's flag and what stands before the records."""
    given = [name for name in ("expect", "at", "delay_ms") if name in members]
    if len(given) > 1:
        raise members.wrong(given[1], f"left out beside `{given[0]}`")
    if "expect" in members:
        return PublishFlag.EXPECT, PLACE.pack(*members.position("expect"))
    if "at" in members:
        return PublishFlag.AT, WHEN.pack(members.integer("at", FROM_NOW - 1))
    if "delay_ms" in members:
        delay_us = members.integer("delay_ms", (FROM_NOW - 1) // US_PER_MS) * US_PER_MS
        return PublishFlag.AT, WHEN.pack(FROM_NOW | delay_us)
    return 0, b""


def slot_of(dialect: Dialect, channel: str) -> int:
    """Return the number of a channel, naming it first if need be.

    Raises:
        NotReady: The session looks for the channel.
    """
    told = dialect.told
    slot = told.slots.get(channel)
    if slot is None:
        if len(channel.encode()) > NAME_BYTES_MAX:
            raise error("INVALID_CHANNEL", f"channel: got {len(channel.encode())} bytes, limit {NAME_BYTES_MAX}")
        slots_max = min(SLOTS_MAX, dialect.node.limits.channels_per_connection_max)
        # What waits for its answer may be refused for the name that a number had: it is given anew only if it must be.
        if told.free and (not len(told.publishes) or told.slots_used >= slots_max):
            slot = told.free.pop()
        elif told.slots_used < slots_max:
            slot = told.slots_used
            told.slots_used += 1
        else:
            slot = told.slots.pop(next(iter(told.slots)))
        told.slots[channel] = slot
        told.named(slot)
        dialect.feed(control.encode_channel(slot, channel.encode()))
        if dialect.publisher is None and not dialect.suspended:
            # There is no room for another publisher: the number was not given, and is the next one still.
            del told.slots[channel]
            told.slots_used -= 1
    if dialect.suspended or dialect.put_off:
        raise NotReady
    return slot


def next_number(dialect: Dialect) -> int:
    """Return the next number of the line."""
    return dialect.publisher.line.next if dialect.publisher is not None else 1


def await_stored(dialect: Dialect, publishes: list[Publish], *, divided: bool) -> None:
    """Wait for the answers of what is about to be sent."""
    dialect.told.room(dialect.told.publishes)
    for each in publishes:
        dialect.told.publishes.add(each, divided=divided)


def transact(dialect: Dialect, members: Members) -> None:
    """Publish to several channels together or not at all."""
    id, number = members.id(), members.optional_integer("number", smallest=1)
    parts = [take_part(each) for each in members.objects("publishes", 1)]
    acks = [take_ack_of(each) for each in members.objects("acks")] if "acks" in members else []
    members.done()
    slots = [slot_of(dialect, channel) for channel, *_ in parts]
    first = at = next_number(dialect) if number is None else number
    publishes, frames = [], b""
    for index, (slot, (channel, records, flags, between)) in enumerate(zip(slots, parts, strict=True)):
        publishes.append(Publish(id, channel, slot, at, len(records), "transaction", index, first))
        body = PUBLISH_HEADER.pack(slot, len(records), at) + between + b"".join(records)
        frames += control.frame(Kind.PUBLISH, body, flags)
        at += len(records)
    frames += b"".join(acks)
    frame = dialect.frame(Kind.TRANSACTION, TRANSACTION_HEADER.pack(len(parts), len(acks)) + frames)
    await_stored(dialect, publishes, divided=number is not None)
    dialect.feed(frame)


def take_part(members: Members) -> tuple[str, list[bytes], int, bytes]:
    channel = members.text("channel")
    records = take_messages(members)
    flags, between = take_condition(members)
    if flags == PublishFlag.AT:
        raise members.wrong("at", "left out in a transaction")
    members.done()
    return channel, records, flags, between


def take_ack_of(members: Members) -> bytes:
    subscription = members.integer("sub", U32_MAX, 1)
    entry = take_entry(members)
    members.done()
    return consuming.encode_ack(subscription, 0, [entry])


# -- subscribing -------------------------------------------------------------------------------------------------------


def subscribe(dialect: Dialect, members: Members) -> None:
    """Subscribe to channels and patterns, or join a consumer."""
    number = members.integer("sub", U32_MAX, 1)
    if number in dialect.told.watched:
        raise error("SUBSCRIPTION_IN_USE", f"subscription {number} is there already")
    if "consumer" in members:
        request = control.Subscribe(number, (), 0, consumer=take_consumer(members))
        watched = Watched(grants=False, member=True, asked={})
    else:
        filters = members.array("filters", 1)
        if not all(isinstance(each, str) for each in filters):
            raise members.wrong("filters", "an array of texts")
        credit = members.optional_integer("credit", U64_MAX)
        start, group = members.start(), members.optional_text("group")
        given = GRANT_BYTES if credit is None else credit
        request = control.Subscribe(number, tuple(map(members.checked, filters)), given, start, group)
        positions = start.positions if isinstance(start, FromPositions) else ()
        asked = {name: (epoch, at) for name, epoch, at in positions}
        watched = Watched(grants=credit is None, member=False, asked=asked)
    members.done()
    frame = control.encode_subscribe(request)
    # By the server's own eyes, before it sees it: what is of a wrong form refuses this alone.
    control.decode_subscribe(frame[FRAME_HEADER_BYTES:])
    dialect.told.watched[number] = watched
    dialect.feed(frame)


def take_consumer(members: Members) -> Consume:
    inner = Members(f"{members.what}: `consumer`", members.take("consumer"))
    consume = Consume(inner.text("name"))
    if "window" in inner:
        consume = consume._replace(window=inner.integer("window", U32_MAX, 1))
    if "bytes" in inner:
        consume = consume._replace(bytes_max=inner.integer("bytes", smallest=1))
    inner.done()
    return consume


def unsubscribe(dialect: Dialect, members: Members) -> None:
    """End a subscription."""
    number = members.integer("sub", U32_MAX, 1)
    members.done()
    dialect.feed(control.encode_unsubscribe(number))


def grant(dialect: Dialect, members: Members) -> None:
    """Let more be sent."""
    number, size = members.integer("sub", U32_MAX, 1), members.integer("bytes", CREDIT_MAX)
    members.done()
    dialect.feed(control.encode_credit(number, size))


def settle(dialect: Dialect, members: Members) -> None:
    """Say what became of jobs."""
    id, number = members.id(), members.integer("sub", U32_MAX, 1)
    if "entries" in members:
        entries = []
        for each in members.objects("entries", 1):
            entries.append(take_entry(each))
            each.done()
    else:
        entries = [take_entry(members)]
    members.done()
    watched = dialect.told.watched.get(number)
    if watched is None or not watched.member:
        raise error("UNKNOWN_SUBSCRIPTION", f"subscription {number}: there is none of a consumer on this connection")
    if id is not None:
        dialect.told.room(watched.waiting)
        watched.waiting.append((watched.acks + 1, id))
    watched.acks += 1
    dialect.feed(consuming.encode_ack(number, watched.acks, entries))


def take_entry(members: Members) -> Settle:
    lease, leases = members.integer("lease"), members.integer("count", LEASES_MAX, 1, default=1)
    verb = members.optional_text("verb") or "ack"
    if verb not in VERBS:
        raise members.wrong("verb", f"one of {', '.join(VERBS)}")
    if verb == "through" and leases != 1:
        raise members.wrong("count", "left out with `through`")
    given = members.optional_integer("ms")
    if given is not None and verb not in ("nack", "extend"):
        raise members.wrong("ms", f"left out with `{verb}`")
    ms = BACK_OFF if given is None and verb == "nack" else given or 0
    return Settle(lease, leases, VERBS[verb], ms)


# -- requests, asking, answering ---------------------------------------------------------------------------------------


def request(dialect: Dialect, members: Members) -> None:
    """Ask the server something."""
    id = members.id()
    what, more = arguments(members)
    channel = more.get("channel", "")
    send_request(dialect, Asked(id, what, channel if isinstance(channel, str) else ""), more)


def send_request(dialect: Dialect, asked: Asked, more: dict[str, Any]) -> None:
    told = dialect.told
    told.room(told.requests)
    dialect.requests = dialect.requests % U32_MAX + 1
    frame = control.encode_request(dialect.requests, asked.what, more)
    told.requests[dialect.requests] = asked
    dialect.feed(frame)


def ask(dialect: Dialect, members: Members) -> None:
    """Publish a question and wait for its answer."""
    id = members.id()
    if id is None:
        raise members.wrong("id", "there")
    if members.take("cancel") is True:
        members.done()
        for number in [number for number, name in dialect.told.asked.items() if name == id]:
            del dialect.told.asked[number]
        return
    channel = members.text("channel")
    dialect.requests = dialect.requests % U32_MAX + 1
    number = dialect.requests
    record = take_message(members, {REPLY_TO: f"{dialect.told.reply_name}.{number}"})
    members.done()
    name = channel.encode()
    if len(name) > NAME_BYTES_MAX:
        raise error("INVALID_CHANNEL", f"channel: got {len(name)} bytes, limit {NAME_BYTES_MAX}")
    dialect.told.room(dialect.told.asked)
    dialect.told.asked[number] = id
    dialect.feed(control.encode_named(PublishFlag.ASK, name, number, 1, record))


def answer(dialect: Dialect, members: Members) -> None:
    """Answer somebody's question."""
    to = members.text("to")
    record = take_message(members)
    members.done()
    name, _, digits = to.rpartition(".")
    if not name or len(name.encode()) > NAME_BYTES_MAX or not digits.isascii() or not digits.isdigit():
        raise members.wrong("to", "what a message's header `reply-to` says")
    number = int(digits[:20])
    if not 1 <= number < U64_MAX:
        raise members.wrong("to", "what a message's header `reply-to` says")
    dialect.told.remember_reply(number, to)
    dialect.feed(control.encode_named(PublishFlag.REPLY, name.encode(), number, 1, record))


def ping(dialect: Dialect, members: Members) -> None:
    """Ask whether the server is there."""
    id = members.id()
    members.done()
    told = dialect.told
    told.room(told.pings)
    dialect.requests = dialect.requests % U32_MAX + 1
    told.pings[dialect.requests] = id
    dialect.feed(control.encode_ping(dialect.requests))


OPERATIONS: Final[dict[str, Callable[[Dialect, Members], None]]] = {
    "ack": settle,
    "answer": answer,
    "ask": ask,
    "credit": grant,
    "hello": say_hello,
    "ping": ping,
    "publish": publish,
    "request": request,
    "subscribe": subscribe,
    "token": renew,
    "transaction": transact,
    "unsubscribe": unsubscribe,
}
