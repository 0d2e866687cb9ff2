"""The golden conversations: what is said in each, and why."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgpack

from broker.wire import control
from broker.wire.control import (
    FromPositions,
    FromStart,
    Subscribe,
    encode_channel,
    encode_credit,
    encode_hello,
    encode_ping,
    encode_subscribe,
    encode_unsubscribe,
)
from broker.wire.kinds import Kind
from tests.golden.script import Script
from tests.reference.frames import Record, build_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.golden.script import Trace

PRODUCER = bytes(range(16))
EPOCH = 1 << 40 | 2
"""Of the first channel that is published to in the first run: its first group has the number 2."""


def publish(channel: int, number: int, *records: bytes | Record, count: int | None = None) -> bytes:
    """Build a PUBLISH frame; `count` says something else than the truth."""
    packed = b"".join(build_record(item if isinstance(item, Record) else Record(item)) for item in records)
    header = struct.pack("<IIQ", channel, len(records) if count is None else count, number)
    return control.frame(Kind.PUBLISH, header + packed)


def specification() -> Trace:
    """The conversation of specification.md §17."""
    script = Script("The conversation of the specification", "default")
    note, act, send = script.note, script.act, script.send
    act("connect client")
    note("A client connects and says HELLO under a producer that the server does not know: `highest` is 0.")
    send("client", encode_hello("example 1", PRODUCER))
    note(
        "It gives the number 0 to a channel and publishes its first record, number 1 of its line. CHANNEL has no",
        "answer of its own. The record is answered when it is synced: sequence 1 of the channel.",
    )
    send("client", encode_channel(0, b"s.chat"), publish(0, 1, b"hello"))
    act("wait 1000")
    note("Two records in one frame, numbers 2 and 3; the second has a key and headers. One entry answers both.")
    headers = msgpack.packb({"type": "text"})
    send("client", publish(0, 2, b"how are you?", Record(b"fine", key=b"mood", headers=headers)))
    act("wait 1000")
    note(
        "The first record again, as after an answer that was lost: its old position comes back, and nothing is",
        "stored twice.",
    )
    send("client", publish(0, 1, b"hello"))
    note(
        "Number 4 is not well formed (a priority of 9), and number 5 is on its way behind it. Both are refused: 4 for",
        "what it is, 5 because the line goes on with 4.",
    )
    send("client", publish(0, 4, Record(b"bad", priority=9)), publish(0, 5, b"next"))
    note("All answers are here. The client gives the bad record up and sends the other one under number 4.")
    send("client", publish(0, 4, b"next"))
    act("wait 1000")
    note(
        "It subscribes to the channel from the start, with credit for 65,536 bytes of chunks. What there is comes at",
        "once, 73 + 115 + 72 bytes of it, one chunk for each group.",
    )
    send("client", encode_subscribe(Subscribe(1, ("s.chat",), 65_536, FromStart())))
    note("The application has consumed all three chunks: the client grants their 260 bytes again.")
    send("client", encode_credit(1, 260))
    note(
        "The subscription is live: the next record is delivered as soon as it is committed. Here its answer is ahead",
        "of it.",
    )
    send("client", publish(0, 5, b"live"))
    act("wait 1000")
    note(
        "The connection breaks; let us say that this DELIVER was lost with it. On a new connection the server knows",
        "the line up to 5.",
    )
    act("disconnect client")
    act("connect client")
    send("client", encode_hello("example 1", PRODUCER))
    note(
        "Channel numbers and subscriptions ended with the old connection. The client names the channel again and",
        "publishes number 6; then it subscribes behind the last record that it received, the fourth of the channel,",
        "and gets the fifth and the sixth.",
    )
    send("client", encode_channel(0, b"s.chat"), publish(0, 6, b"back again"))
    send("client", encode_subscribe(Subscribe(2, ("s.chat",), 65_536, FromPositions((("s.chat", EPOCH, 4),)))))
    note("PING may be sent at any time.")
    send("client", encode_ping(7))
    note("It unsubscribes, and closes its socket. Nothing is said to that.")
    send("client", encode_unsubscribe(2))
    act("disconnect client")
    return script.trace


CONVERSATIONS: dict[str, Callable[[], Trace]] = {
    "specification": specification,
}
