"""The hex of specification.md: an example of each frame kind, and the conversation.

`EXAMPLES` says what each example is; `refresh` writes the blocks of both into the document's text. Prose is the
document's own.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import msgpack

from broker.model.consumers import Consume, Settle, Verdict
from broker.model.errors import error
from broker.wire import consuming, control
from broker.wire.kinds import Kind, PublishFlag
from broker_native.crc32c import crc32c_of
from tests.golden.annotate import Bytes, annotate, chunk_fields, frames, render
from tests.golden.conversations import (
    CONVERSATIONS,
    EPOCH,
    PRODUCER,
    delayed,
    expecting,
    named,
    publish,
    transaction,
)
from tests.golden.stage import JOURNAL, TIME_US
from tests.reference.frames import Record, build_record
from tests.reference.server import deliver

if TYPE_CHECKING:
    from tests.golden.script import Trace

BLOCK = re.compile(r"^```(?:chunk|hex(?: client| server)?)\n.*?^```$", re.M | re.S)


def chunk(first: int, time_us: int, *records: Record, expiry_s: int = 0, channel: int = 1, epoch: int = EPOCH) -> bytes:
    """Build a chunk, its CRC included."""
    count = sum(record.run for record in records)
    body = b"".join(build_record(record) for record in records)
    tail = struct.pack("<QQQIIQQ", channel, epoch, first, count, 0, time_us, expiry_s) + body
    return struct.pack("<II", 8 + len(tail), crc32c_of(tail)) + tail


CHUNK = chunk(
    7,
    TIME_US,
    Record(b"plain"),
    Record(b"all", time_us=250, priority=0, expiry_s=60, key=b"k", headers=msgpack.packb({"a": 1})),
    Record(time_us=250, gone=(2, 3)),
    expiry_s=TIME_US // 1_000_000 + 60,
)
"""The test vector of §4."""

WELCOME = control.Welcome(
    server="broker 1.0",
    run=1,
    journal=JOURNAL,
    highest=0,
    limits=control.Limits(1_130_496, 1_048_576, 16_384, 65_536, 4_096),
    ping_s=15.0,
    reply="$reply.746f6b656e2030303030303030303031",
)
REPLY_TO = msgpack.packb({"reply-to": f"{WELCOME.reply}.2"})
PUBLISHED = control.frame(
    Kind.PUBLISHED,
    struct.pack("<QQQIIBB6x", 1, EPOCH, 1, 2, 0, 3, 0) + struct.pack("<QQQIIBB6x", 3, 0, 0, 1, 1, 1, 1),
)
LEASE = (1 << 40) + 1
JOB = consuming.JOB.pack(40 + 6 + 17, 0, EPOCH, 4, TIME_US, 2, 3, 6, 0) + b"s.jobs" + build_record(Record(b"hello"))
OUTCOMES = (control.Outcome("s.chat", "resumed", EPOCH, 4), control.Outcome("s.news", "new", 0, 0))
EXAMPLES: dict[str, bytes] = {
    "HELLO": control.encode_hello("example 1", PRODUCER),
    "WELCOME": control.encode_welcome(WELCOME),
    "ERROR": control.encode_error(error("NUMBER_GAP", "publish 5: the line's next number is 4"), number=5, count=1),
    "ERROR, with the head": control.encode_error(
        error("CONFLICT", f"publish 8: the head of channel number 1 is {EPOCH}:7"),
        number=8,
        count=2,
        head=(EPOCH, 7),
        index=1,
    ),
    "ERROR, when to come back": control.encode_error(
        error("TOO_MANY_CONNECTIONS", "connections: got 101, limit 100", retry_after_ms=2_000)
    ),
    "ERROR, nobody listens": control.encode_error(
        error("NO_RESPONDERS", "request 2: nobody subscribes to e.add"), asked=2, count=1
    ),
    "PING": control.encode_ping(7),
    "PONG": control.encode_pong(7),
    "GOING_AWAY": control.encode_going_away(10.0),
    "CHANNEL": control.encode_channel(0, b"s.chat"),
    "SUBSCRIBE": control.encode_subscribe(
        control.Subscribe(1, ("s.chat", "s.news"), 65_536, control.FromPositions((("s.chat", EPOCH, 4),)))
    ),
    "SUBSCRIBE, by bus position": control.encode_subscribe(
        control.Subscribe(2, ("s.*", "e.>"), 65_536, control.FromBus(JOURNAL, 3, (1 << 32) - 1))
    ),
    "SUBSCRIBE, a member of a live group": control.encode_subscribe(
        control.Subscribe(3, ("e.add",), 65_536, group="adders")
    ),
    "SUBSCRIBED": control.encode_subscribed(
        control.Subscribed(1, OUTCOMES, control.FromBus(JOURNAL, 5, (1 << 32) - 1))
    ),
    "UNSUBSCRIBE": control.encode_unsubscribe(1),
    "UNSUBSCRIBED": control.encode_unsubscribed(1),
    "EVENT": control.encode_event(1, "trimmed", "s.chat", {"first": 501}),
    "REQUEST": control.encode_request(1, "channel", {"name": "s.chat"}),
    "REPLY": control.encode_reply(1, {"epoch": EPOCH, "first": 1, "head": 4, "level": 3}),
    "PUBLISH": publish(0, 1, b"hello", Record(b"fine", priority=1, key=b"mood")),
    "PUBLISH, with EXPECT": expecting(0, 3, (EPOCH, 2), b"next"),
    "PUBLISH, with AT": delayed(0, 4, TIME_US + 3_600_000_000, Record(b"wake up", id=b"alarm-7")),
    "PUBLISH, a request": named(PublishFlag.ASK, b"e.add", 2, Record(b"1 2", headers=REPLY_TO)),
    "PUBLISH, a reply": named(PublishFlag.REPLY, WELCOME.reply.encode(), 2, Record(b"3")),
    "PUBLISHED": PUBLISHED,
    "DELIVER": deliver(chunk(1, TIME_US, Record(b"hello")), group=2, index=0),
    "DELIVER, with NAME and EARLY": deliver(
        chunk(1, TIME_US, Record(b"hello")), group=2, index=0, name=b"a.chat", flags=2
    ),
    "DELIVER, a reply": deliver(chunk(2, TIME_US, Record(b"3"), channel=0, epoch=0), group=0, index=0, subscription=0),
    "CREDIT": control.encode_credit(1, 65_536),
    "SUBSCRIBE, to a consumer": control.encode_subscribe(
        control.Subscribe(3, (), 0, consumer=Consume("mail.send", 16, 65_536))
    ),
    "JOBS": control.frame(Kind.JOBS, consuming.JOBS_HEADER.pack(3, 1, LEASE, 30_000, 0) + JOB),
    "ACK": consuming.encode_ack(3, 1, (Settle(LEASE, 1, Verdict.ACK), Settle(LEASE + 1, 2, Verdict.NACK, 5_000))),
    "ACKED": consuming.encode_acked(3, 1),
    "TRANSACTION": transaction(publish(0, 8, b"debit"), expecting(1, 9, (EPOCH, 6), b"credit")),
}


def block(data: bytes, side: str = "") -> str:
    """Render frames as a block of the document."""
    lines = [line.rstrip() for frame in frames(data) for line in annotate(frame)]
    return "\n".join([f"```hex {side}".rstrip(), *lines, "```"])


def chunk_block() -> str:
    """Render the test vector."""
    return "\n".join(["```chunk", *render(chunk_fields(Bytes(CHUNK))), "```"])


def conversation_blocks(trace: Trace) -> list[str]:
    """Render all that is sent in a conversation."""
    sides = {">": "client", "<": "server"}
    return [block(step.data, sides[step.what]) for step in trace.steps if step.what in sides]


def refresh(text: str) -> str:
    """Return the document with its hex written anew; there must be as many blocks as before."""
    blocks = iter(
        [chunk_block(), *map(block, EXAMPLES.values()), *conversation_blocks(CONVERSATIONS["specification"]())]
    )
    refreshed = BLOCK.sub(lambda _: next(blocks), text)
    if next(blocks, None) is not None:
        raise ValueError("the document has fewer blocks than there are examples and steps")
    return refreshed
