"""The golden conversations: what is said in each, and why."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgpack

from broker.model.consumers import BACK_OFF, Consume, ConsumerSettings, ConsumerStart, DoneRun, Settle, Verdict
from broker.wire import consuming, control
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
from broker.wire.kinds import Kind, PublishFlag
from tests.golden.annotate import frames
from tests.golden.publishing import BufferClient
from tests.golden.script import Script
from tests.golden.stage import JOURNAL, TIME_US
from tests.reference.frames import Record, build_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.golden.script import Trace

PRODUCER = bytes(range(16))
ASK, REPLY = PublishFlag.ASK, PublishFlag.REPLY
INDEX_END = (1 << 32) - 1
EPOCH = 1 << 40 | 2
"""Of the first channel that is published to in the first run: its first group has the number 2."""


def publish(channel: int, number: int, *records: bytes | Record, count: int | None = None) -> bytes:
    """Build a PUBLISH frame; `count` says something else than the truth."""
    packed = b"".join(build_record(item if isinstance(item, Record) else Record(item)) for item in records)
    header = struct.pack("<IIQ", channel, len(records) if count is None else count, number)
    return control.frame(Kind.PUBLISH, header + packed)


def named(flag: PublishFlag, name: bytes, number: int, *records: bytes | Record, count: int | None = None) -> bytes:
    """Build a PUBLISH frame of requests or replies."""
    packed = b"".join(build_record(item if isinstance(item, Record) else Record(item)) for item in records)
    header = struct.pack("<IIQB", 0, len(records) if count is None else count, number, len(name))
    return control.frame(Kind.PUBLISH, header + name + packed, flag)


def delayed(channel: int, number: int, when: int, *records: Record) -> bytes:
    """Build a PUBLISH frame with AT."""
    plain = publish(channel, number, *records)[8:]
    return control.frame(Kind.PUBLISH, plain[:16] + struct.pack("<Q", when) + plain[16:], PublishFlag.AT)


def expecting(channel: int, number: int, head: tuple[int, int], *records: bytes | Record) -> bytes:
    """Build a PUBLISH frame with EXPECT."""
    plain = publish(channel, number, *records)[8:]
    return control.frame(Kind.PUBLISH, plain[:16] + struct.pack("<QQ", *head) + plain[16:], PublishFlag.EXPECT)


def transaction(*publishes: bytes, count: int | None = None, acks: int = 0) -> bytes:
    """Build a TRANSACTION frame; `count` and `acks` say something else than the truth."""
    counts = struct.pack("<II", len(publishes) if count is None else count, acks)
    return control.frame(Kind.TRANSACTION, counts + b"".join(publishes))


def acked(subscription: int, *leases: int, number: int = 0) -> bytes:
    """Build the ACK of some leases that goes into a transaction."""
    return consuming.encode_ack(subscription, number, tuple(Settle(lease, 1, Verdict.ACK) for lease in leases))


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


def opened(script: Script, name: str = "client", producer: bytes | None = None) -> None:
    """Connect a client and shake hands."""
    script.act(f"connect {name}")
    script.send(name, encode_hello(name, producer))


def map_frame(kind: Kind, **fields: object) -> bytes:
    """Build a control frame whose map is not checked."""
    return control.frame(kind, msgpack.packb(fields, use_bin_type=True))


def handshake() -> Trace:
    """HELLO accepted and refused."""
    script = Script("HELLO, accepted and refused")
    note, act, send = script.note, script.act, script.send

    def refused(why: str, *frames: bytes) -> None:
        act("connect client")
        note(why)
        send("client", *frames)

    note("No producer: the line begins with 1 and ends with the connection.")
    opened(script)
    note("A second HELLO.")
    send("client", encode_hello("client"))
    act("connect client")
    note("Later versions and keys that nobody knows are passed over; a token is not looked at.")
    hello = {"versions": [3, 1, 2], "client": "later", "token": "t", "colour": {"red": [1, None]}}
    send("client", control.frame(Kind.HELLO, control.HELLO_MAGIC + msgpack.packb(hello)))
    act("disconnect client")
    refused(
        "No version that is known.", control.frame(Kind.HELLO, control.HELLO_MAGIC + control.pack({"versions": [2]}))
    )
    refused("A key is missing.", control.frame(Kind.HELLO, control.HELLO_MAGIC + control.pack({"versions": [1]})))
    refused("Another protocol.", control.frame(Kind.HELLO, b"BROKER\0\2" + control.pack({"versions": [1]})))
    refused("Another frame first.", encode_ping(1))
    refused("Flags are not zero.", control.frame(Kind.HELLO, control.HELLO_MAGIC, flags=1))
    refused(
        "The reserved field is not zero. Nothing but the header is needed to see that.",
        bytes.fromhex("0900000001000100"),
    )
    refused("A HELLO that would be 16,385 bytes.", bytes.fromhex("0140000001000000"))
    act("connect client")
    note("Silence: the HELLO is due within two seconds.")
    act("wait 1900000")
    act("wait 200000")
    return script.trace


def durability() -> Trace:
    """PUBLISH at each level, seen by its publisher and by a reader."""
    script = Script("Ephemeral, accepted and synced, published and delivered")
    note, act, send = script.note, script.act, script.send
    opened(script, "reader")
    send("reader", encode_subscribe(Subscribe(1, ("e.x", "a.x", "s.x"), 65_536)))
    opened(script)
    names = (encode_channel(0, b"e.x"), encode_channel(1, b"a.x"), encode_channel(2, b"s.x"))
    note("Three channels are named; there is no answer to that.")
    send("client", *names)
    note("From here on commits wait.")
    act("hold")
    note("Ephemeral: delivered and answered at the end of the turn, no group.")
    send("client", publish(0, 1, b"gone with the wind"))
    note("Accepted: delivered EARLY and answered at the end of the turn, ahead of its commit.")
    send("client", publish(1, 2, b"probably kept"))
    note("Synced: nothing before its commit, and that waits for the one before it.")
    send("client", publish(2, 3, b"kept"))
    note("The disk has the first group; the second follows at once.")
    act("release STORED")
    note("An ephemeral and a synced record in one turn: the second is answered later.")
    act("hold")
    send("client", publish(2, 4, b"kept, too"), publish(0, 5, b"overtakes"))
    act("release STORED")
    return script.trace


def line() -> Trace:
    """The producer's line: duplicates, gap, overlap."""
    script = Script("The producer's line: duplicates, gap, overlap")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"e.x"))
    note("Numbers 1 to 3.")
    send("client", publish(0, 1, b"a", b"b", b"c"))
    note("Number 4 goes to an ephemeral channel.")
    send("client", publish(1, 4, b"d"))
    note("A duplicate of part of a frame: the position of the part.")
    send("client", publish(0, 2, b"b"))
    note("Nobody looks at a duplicate's records, and nobody compares them.")
    send("client", publish(0, 1, b"other", count=2))
    note("Across channels: one entry for each run, in the order of the line. Of the ephemeral one no position is kept.")
    send("client", publish(0, 1, b"a", b"b", b"c", b"d"))
    note("Overlap: begins at stored numbers and ends at a new one.")
    send("client", publish(0, 3, b"c", b"d", b"e"))
    note("Gap: 5 is due.")
    send("client", publish(0, 6, b"f"))
    note("Numbers begin with 1.")
    send("client", publish(0, 0, b"zero"))
    note("A line's end: the highest number that there can be is a gap like any other.")
    send("client", publish(0, (1 << 64) - 1, b"last", b"past it"))
    note("A duplicate of a record that is not committed waits for its commit.")
    act("hold")
    send("client", publish(0, 5, b"e"))
    send("client", publish(0, 5, b"e"))
    act("release STORED")
    note("The same producer on another connection: the older one is told, and the line goes on.")
    opened(script, "other", PRODUCER)
    send("other", encode_channel(0, b"s.x"), publish(0, 6, b"f"))
    return script.trace


def refusals() -> Trace:
    """CHANNEL and PUBLISH refused; the connection goes on."""
    script = Script("Channels and records that are refused")
    note, send = script.note, script.send
    opened(script)
    note("Before any CHANNEL no number means a channel.")
    send("client", publish(0, 1, b"x"))
    note("Names that no channel can have.")
    send("client", encode_channel(0, b"two..dots"))
    send("client", encode_channel(0, b""))
    send("client", encode_channel(0, "s.\u00e9".encode()))
    note("A name of the broker's own.")
    send("client", encode_channel(0, b"$internal"))
    note("No profile matches it.")
    send("client", encode_channel(0, b"other.x"))
    note("A PUBLISH to a number whose name was refused.")
    send("client", publish(0, 1, b"x"))
    send("client", encode_channel(0, b"s.x"))
    note("Number 1 is refused for its record, and what was in flight behind it for its numbers.")
    send("client", publish(0, 1, b"x" * 101), publish(0, 2, b"y"), publish(0, 3, b"z"))
    note("A payload of 101 bytes is one too many; so are headers of 21.")
    send("client", publish(0, 1, Record(b"x", headers=msgpack.packb({"k": "v" * 17}))))
    note("A priority of 4; an expiry of 0; an empty key; empty headers; a flag that only the server sets.")
    for record in (
        Record(priority=4), Record(expiry_s=0), Record(key=b""), Record(headers=b""), Record(number=1),
    ):  # fmt: skip
        send("client", publish(0, 1, record))
    note("A key of 256 bytes.")
    send("client", publish(0, 1, Record(key=b"k" * 256)))
    note("No record at all: refused with a count of 0.")
    send("client", publish(0, 1))
    note("Fewer records than announced, more than announced, one that ends behind the frame.")
    send("client", publish(0, 1, b"x", count=2))
    send("client", publish(0, 1, b"x", b"y", count=1))
    broken = build_record(Record(b"x"), size=14)
    send("client", control.frame(Kind.PUBLISH, struct.pack("<IIQ", 0, 1, 1) + broken))
    note("A record's reserved field; a record smaller than its header.")
    for broken in (build_record(Record(b"x"), reserved=1), build_record(Record(b"x"), size=11)):
        send("client", control.frame(Kind.PUBLISH, struct.pack("<IIQ", 0, 1, 1) + broken))
    note("All fields at once, and right.")
    headers = msgpack.packb({"a": 1})
    send("client", publish(0, 1, Record(b"x", priority=0, expiry_s=60, key=b"k", headers=headers)))
    note("Number 0 means another channel from here on.")
    send("client", encode_channel(0, b"e.x"), publish(0, 2, b"y"))
    note("This server lets a connection name eight channels.")
    send("client", *(encode_channel(number, b"s.%d" % number) for number in range(1, 9)))
    send("client", publish(8, 3, b"z"))
    return script.trace


def ids() -> Trace:
    """Messages that are published again under their ids."""
    script = Script("Message ids")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"e.x"))
    note("Two messages with ids, and a third one with the first one's: it is answered with that one's position.")
    send("client", publish(0, 1, Record(b"paid", id=b"order-1"), Record(b"paid", id=b"order-2")))
    send("client", publish(0, 3, Record(b"paid again", id=b"order-1")))
    note("What has been there before and what has not, in one frame; of two with one id the second is the duplicate.")
    send(
        "client",
        publish(0, 4, Record(b"x", id=b"order-2"), Record(b"y", id=b"order-3"), b"z", Record(b"y", id=b"order-3")),
    )
    note("An empty id; one of 65 bytes; one whose bytes end behind the record; an ephemeral channel.")
    send("client", publish(0, 8, Record(b"x", id=b"")))
    send("client", publish(0, 8, Record(b"x", id=b"i" * 65)))
    broken = bytearray(build_record(Record(b"x", id=b"i")))
    broken[12] = 3
    send("client", control.frame(Kind.PUBLISH, struct.pack("<IIQ", 0, 1, 8) + broken))
    send("client", publish(1, 8, Record(b"x", id=b"order-4")))
    note("The broker dies. The ids are read back from the channel's records.")
    act("crash")
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.x"), publish(0, 8, Record(b"paid", id=b"order-1")))
    return script.trace


def conditions() -> Trace:
    """PUBLISH with EXPECT: taken, in conflict, while commits wait and when one fails."""
    script = Script("Publishes that expect a head")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    note("Before any CHANNEL no number means a channel.")
    send("client", expecting(0, 1, (0, 0), b"x"))
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"a.x"), encode_channel(2, b"e.x"))
    note("The channel never had a record.")
    send("client", expecting(0, 1, (0, 0), b"1"))
    note("Now it has: the answer tells its head. A refusal takes no number.")
    send("client", expecting(0, 2, (0, 0), b"not"))
    note("The head, and two records behind it.")
    send("client", expecting(0, 2, (EPOCH, 1), b"2", b"3"))
    note("An older head, one that is not there yet, one of another epoch.")
    for head in ((EPOCH, 2), (EPOCH, 4), (EPOCH + 1, 3)):
        send("client", expecting(0, 4, head, b"not"))
    note("A repetition is a duplicate, though the head has moved on since.")
    send("client", expecting(0, 1, (0, 0), b"1"))
    note("An ephemeral channel has no head. A record that is not well formed is refused for that, not for the head.")
    send("client", expecting(2, 4, (0, 0), b"x"))
    send("client", expecting(0, 4, (0, 0), Record(b"x", priority=9)))
    note("16 bytes are not enough, and flags that nobody knows are no matter of one publish.")
    opened(script, "short")
    send("short", encode_channel(0, b"s.x"), control.frame(Kind.PUBLISH, struct.pack("<IIQ", 0, 1, 1), flags=1))
    opened(script, "strange")
    send("strange", encode_channel(0, b"s.x"), control.frame(Kind.PUBLISH, publish(0, 1, b"x")[8:], flags=128))
    note("While a commit waits: the first wins, the other is told when the winner is stored.")
    opened(script, "rival")
    send("rival", encode_channel(0, b"s.x"), encode_channel(1, b"a.x"))
    act("hold")
    send("client", expecting(0, 4, (EPOCH, 3), b"4"))
    send("rival", expecting(0, 1, (EPOCH, 3), b"not"))
    note("What comes next rests on the group that is still open.")
    send("client", expecting(0, 5, (EPOCH, 4), b"5"))
    send("rival", expecting(0, 1, (EPOCH, 4), b"not"))
    act("release STORED")
    note("An accepted channel: the winner is answered at once, the other with the commit.")
    act("hold")
    send("client", expecting(1, 6, (0, 0), b"a"))
    send("rival", expecting(1, 1, (0, 0), b"not"))
    act("release STORED")
    note("The commit of the winner fails before the disk has it: nothing has happened, to either of them.")
    act("hold")
    send("client", expecting(0, 7, (EPOCH, 5), b"6"))
    send("rival", expecting(0, 1, (EPOCH, 5), b"not"))
    act("fail REFUSED")
    act("release STORED")
    note("The head is where it was, and the other one may win.")
    send("rival", expecting(0, 1, (EPOCH, 5), b"6"))
    return script.trace


def later() -> Trace:
    """PUBLISH with AT: taken, known already, refused, cancelled, listed, and published when it is due."""
    script = Script("Messages for later")
    note, act, send = script.note, script.act, script.send
    from_now = 1 << 63
    opened(script, producer=PRODUCER)
    note("Before any CHANNEL no number means a channel.")
    send("client", delayed(0, 1, from_now, Record(b"x", id=b"1")))
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"e.x"))
    send("client", control.encode_subscribe(control.Subscribe(1, ("s.x",), 65_536)))
    note("A second from now, at a time, and one with the id of the first, which waits already.")
    send("client", delayed(0, 1, from_now | 1_000_000, Record(b"first", id=b"1")))
    send("client", delayed(0, 2, TIME_US + 2_500_000, Record(b"second", id=b"2", expiry_s=60)))
    send("client", delayed(0, 3, from_now | 9_000_000, Record(b"not", id=b"1")))
    note("Known numbers are duplicates. The line goes on.")
    send("client", delayed(0, 1, from_now | 1_000_000, Record(b"first", id=b"1")), publish(0, 4, b"now"))
    note("No id, an ephemeral channel, and a time that is too far away.")
    send("client", delayed(0, 5, from_now, Record(b"x")))
    send("client", delayed(1, 5, from_now, Record(b"x", id=b"1")))
    send("client", delayed(0, 5, from_now | 100 * 366 * 86_400 * 1_000_000, Record(b"x", id=b"3")))
    note("What waits, and what does not any more.")
    send("client", control.encode_request(1, "delayed", {"prefix": "s."}))
    send("client", control.encode_request(2, "delayed_cancel", {"channel": "s.x", "id": b"2"}))
    send("client", control.encode_request(3, "delayed_cancel", {"channel": "s.x", "id": b"2"}))
    note("The first is due.")
    act("wait 1200000")
    act("wait 50000")
    send("client", control.encode_request(4, "delayed", {}))
    note("16 bytes are not enough.")
    send("client", control.frame(Kind.PUBLISH, publish(0, 5)[8:24], PublishFlag.AT))
    return script.trace


def transactions() -> Trace:
    """TRANSACTION: taken, repeated, refused, seen by a reader, while commits wait and when one fails."""
    script = Script("Transactions")
    note, act, send = script.note, script.act, script.send
    opened(script, "reader")
    send("reader", encode_subscribe(Subscribe(1, ("s.x", "s.y", "a.x"), 65_536)))
    opened(script, producer=PRODUCER)
    note("Before any CHANNEL no number means a channel.")
    send("client", transaction(publish(0, 1, b"x")))
    send(
        "client",
        *(encode_channel(number, name) for number, name in enumerate((b"s.x", b"s.y", b"a.x", b"e.x"))),
    )
    note("Two channels, one group.")
    send("client", transaction(publish(0, 1, b"x1"), publish(1, 2, b"y1", b"y2"), publish(0, 4, b"x2")))
    note("Again, as after an answer that was lost: the positions are those of before.")
    send("client", transaction(publish(0, 1, b"x1"), publish(1, 2, b"y1", b"y2"), publish(0, 4, b"x2")))
    note("An accepted channel: its records wait for the commit, though what came before them does not.")
    act("hold")
    send("client", publish(2, 5, b"at once"), transaction(publish(2, 6, b"later"), expecting(1, 7, (EPOCH, 2), b"y3")))
    note("And so does what comes behind them in that channel.")
    send("client", publish(2, 8, b"behind"))
    act("release STORED")
    note("One publish is wrong, and none is taken: `index` says which.")
    send("client", transaction(publish(0, 9, b"x"), publish(1, 10, Record(b"x", priority=9))))
    send("client", transaction(publish(0, 9, b"x"), publish(1, 10, b"x"), publish(3, 11, b"x")))
    send("client", transaction(publish(0, 9, b"x"), publish(7, 10, b"x")))
    note("A head that is another one. What is expected are the heads before the transaction.")
    send("client", transaction(publish(0, 9, b"x"), expecting(1, 10, (EPOCH, 4), b"y4")))
    send("client", transaction(expecting(0, 9, (EPOCH, 2), b"x3"), expecting(0, 10, (EPOCH, 2), b"x4")))
    note("Gap and overlap.")
    send("client", transaction(publish(0, 12, b"x"), publish(1, 13, b"y")))
    send("client", transaction(publish(0, 10, b"x4"), publish(1, 11, b"y")))
    note("The commit is not even handed over: one refusal for both, since their numbers follow one another.")
    act("hold")
    send("client", transaction(publish(0, 11, b"x"), publish(1, 12, b"y")), transaction(publish(1, 13, b"y")))
    act("fail REFUSED")
    act("release STORED")
    send("client", transaction(publish(0, 11, b"x5"), publish(1, 12, b"y4")))
    note("The broker dies after the disk has a commit and before anybody heard of it: repeated, it is a duplicate.")
    act("hold")
    send("client", transaction(publish(0, 13, b"x6"), publish(1, 14, b"y5")))
    act("fail SURVIVES")
    act("crash")
    opened(script, "again", PRODUCER)
    send("again", encode_channel(0, b"s.x"), encode_channel(1, b"s.y"))
    send("again", transaction(publish(0, 13, b"x6"), publish(1, 14, b"y5")))
    note("What is no TRANSACTION ends the connection: no publish, fewer than there are, more, a gap inside, acks.")
    for frame in (
        transaction(),
        transaction(publish(0, 1, b"x"), count=2),
        transaction(publish(0, 1, b"x"), publish(0, 2, b"x"), count=1),
        transaction(publish(0, 1, b"x"), publish(0, 3, b"x")),
        transaction(encode_ping(1)),
        transaction(control.frame(Kind.PUBLISH, publish(0, 1, b"x")[8:], flags=2)),
        transaction(publish(0, 1, b"x"), acks=1),
        transaction(publish(0, 1, b"x"), encode_ping(1), count=1, acks=1),
        transaction(publish(0, 1, b"x"), acked(1, 1, number=1), count=1, acks=1),
        transaction(publish(0, 1, b"x"), acked(1, 1)[:-1], count=1, acks=1),
        control.frame(Kind.TRANSACTION, b"short"),
    ):
        opened(script, "wrong")
        send("wrong", encode_channel(0, b"s.x"), frame)
    return script.trace


def settled_together() -> Trace:
    """Acks in transactions: taken, refused, with a commit that fails, repeated on another connection."""
    script = Script("Acks in transactions", "default")
    note, act, send = script.note, script.act, script.send
    lease = 1 << 40
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.jobs"), encode_channel(1, b"s.done"))
    send("client", publish(0, 1, b"one", b"two", b"three"))
    note("A connection that is no member of anything has no leases.")
    send("client", transaction(publish(1, 4, b"x"), acked(1, lease + 1), count=1, acks=1))
    settings = ConsumerSettings("work", ("s.jobs",), backoff_ms=(0, 0))
    send("client", control.encode_request(1, "consumer_set", consuming.pack_consumer_set(settings, ConsumerStart())))
    send("client", encode_subscribe(Subscribe(1, (), 0, consumer=Consume("work", 2, 65_536))))
    note("One publish and one ack: the answer of the publish is that of both, and a third job comes with it.")
    send("client", transaction(publish(1, 4, b"did one"), acked(1, lease + 1), count=1, acks=1))
    note("The lease is over, so nothing is published; nor for a lease that nobody was given.")
    send("client", transaction(publish(1, 5, b"x"), acked(1, lease + 2, lease + 1), count=1, acks=1))
    send("client", transaction(publish(1, 5, b"x"), acked(1, lease + 99), count=1, acks=1))
    note("A head that is another one, so the job is not done.")
    send("client", transaction(expecting(1, 5, (0, 0), b"x"), acked(1, lease + 2), count=1, acks=1))
    note("Again what was answered: a duplicate, whatever its lease is by now.")
    send("client", transaction(publish(1, 4, b"did one"), acked(1, lease + 1), count=1, acks=1))
    note("The commit is not even handed over: neither has happened, and the job comes again.")
    act("hold")
    send("client", transaction(publish(1, 5, b"did two"), acked(1, lease + 2), count=1, acks=1))
    act("fail REFUSED")
    act("release STORED")
    send("client", control.encode_request(2, "consumer", {"name": "work"}))
    return script.trace


def starts() -> Trace:
    """Every way to start a subscription of literals."""
    script = Script("Subscriptions of literals, started in every way")
    note, act, send = script.note, script.act, script.send
    opened(script)
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"s.y"), encode_channel(2, b"e.x"))
    send("client", publish(0, 1, b"x1", b"x2"))
    act("wait 1000000")
    send("client", publish(1, 3, b"y1"))
    send("client", publish(0, 4, b"x3"))
    send("client", publish(2, 5, b"e1"))
    opened(script, "reader")

    def subscribe(number: int, *filters: str, start: control.Start, why: str) -> None:
        note(why)
        send("reader", encode_subscribe(Subscribe(number, filters, 65_536, start)))

    positions = FromPositions
    subscribe(1, "s.x", start=control.FromNew(), why="New: nothing of what there is.")
    subscribe(2, "s.x", start=FromStart(), why="Everything.")
    subscribe(3, "s.x", "s.y", start=FromStart(), why="Two channels, which are named when they come first.")
    subscribe(4, "s.x", start=control.FromLast(1), why="The last one.")
    subscribe(5, "s.x", start=control.FromLast(9), why="More than there are.")
    subscribe(
        6, "s.x", "s.y", start=positions((("s.x", EPOCH, 1),)),
        why="Behind the first of two that came in one chunk: a chunk of the rest, its own checksum. s.y is new.",
    )  # fmt: skip
    subscribe(7, "s.x", start=positions((("s.x", EPOCH, 3),)), why="At the head: nothing is missing.")
    subscribe(8, "s.x", start=positions((("s.x", EPOCH, 9),)), why="Past the head: the head is what is common.")
    subscribe(9, "s.x", start=positions((("s.x", 7, 2),)), why="An epoch of another life: nothing is common.")
    subscribe(10, "s.x", start=positions((("s.x", 0, 0),)), why="The very beginning.")
    subscribe(11, "s.x", start=control.FromBus(JOURNAL, 2, INDEX_END), why="By the bus, behind the first group.")
    subscribe(12, "s.x", start=control.FromBus(JOURNAL, 9, 0), why="A group that there is not.")
    subscribe(13, "s.x", start=control.FromBus(bytes(16), 2, 0), why="A place of another journal.")
    subscribe(14, "s.x", start=control.FromTime(TIME_US + 1), why="By time: what was published behind the pause.")
    subscribe(15, "e.x", start=FromStart(), why="Of an ephemeral channel nothing is read back.")
    subscribe(16, "e.x", start=control.FromLast(1), why="Nor this.")
    ephemeral = 1 << 40 | 1 << 39 | 1
    subscribe(17, "e.x", start=positions((("e.x", ephemeral, 1),)), why="Its head is a place.")
    subscribe(18, "e.x", start=positions((("e.x", ephemeral, 0),)), why="An older one has lost what came between.")
    note("All that follow s.x get the next record, once each.")
    send("client", publish(0, 6, b"x4"))
    return script.trace


def patterns() -> Trace:
    """Patterns: names are told once, places are the bus's."""
    script = Script("Patterns: names, start and resume by the bus")
    note, act, send = script.note, script.act, script.send
    opened(script)
    send("client", *(encode_channel(number, name) for number, name in enumerate((b"s.a", b"s.b", b"s.b.c", b"e.x"))))
    opened(script, "reader")
    note("New. `*` is one token, `>` one or more.")
    send("reader", encode_subscribe(Subscribe(1, ("*.a", "s.b.>"), 65_536)))
    note("s.a matches; its name is told with the first chunk.")
    send("client", publish(0, 1, b"1"))
    note("And not with the second.")
    send("client", publish(0, 2, b"2"))
    note("s.b matches neither pattern, s.b.c does.")
    send("client", publish(1, 3, b"3"))
    send("client", publish(2, 4, b"4"))
    note("Two chunks in one group: the index counts them, whether they are delivered or not.")
    send("client", publish(1, 5, b"5"), publish(0, 6, b"6"))
    note("The connection breaks; what is published meanwhile is not lost.")
    act("disconnect reader")
    send("client", publish(2, 7, b"7"))
    opened(script, "reader")
    note("It resumes behind the last chunk that it had, (6, 1). Names are told anew.")
    send("reader", encode_subscribe(Subscribe(1, ("*.a", "s.b.>"), 65_536, control.FromBus(JOURNAL, 6, 1))))
    note("From the start, literals and patterns together; a record that several filters match comes once.")
    send("reader", encode_subscribe(Subscribe(2, ("s.a", "s.*"), 65_536, FromStart())))
    note("`>` reaches every channel, ephemeral ones as well: group 0.")
    send("reader", encode_subscribe(Subscribe(3, (">",), 65_536)))
    send("client", publish(3, 8, b"8"))
    return script.trace


def early() -> Trace:
    """EARLY chunks, a crash that takes one, and what resuming answers."""
    script = Script("EARLY chunks, and a crash that takes some")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"a.x"), encode_channel(1, b"s.x"))
    opened(script, "literal")
    send("literal", encode_subscribe(Subscribe(1, ("a.x",), 65_536)))
    opened(script, "bus")
    send("bus", encode_subscribe(Subscribe(1, ("a.*", "s.*"), 65_536)))
    note("The first record of the channel: delivered ahead of its commit.")
    send("client", publish(0, 1, b"1"))
    act("hold")
    note("Two more, and their commits do not come about. They are answered all the same: that is `accepted`.")
    send("client", publish(0, 2, b"2"))
    send("client", publish(0, 3, b"3"))
    note("A reader that joins now gets both from memory, EARLY as well.")
    opened(script, "late")
    send("late", encode_subscribe(Subscribe(1, ("a.x",), 65_536, FromStart())))
    note("The broker dies.")
    act("crash")
    note("A new run. The line ends with 1: 2 and 3 were taken back with their records.")
    opened(script, producer=PRODUCER)
    opened(script, "literal")
    note("It had seen up to 3: the last that it has in common with the channel is 1.")
    send("literal", encode_subscribe(Subscribe(1, ("a.x",), 65_536, FromPositions((("a.x", EPOCH, 3),)))))
    opened(script, "bus")
    note("By the bus: the EARLY chunk of group 4 vouched for group 2.")
    send("bus", encode_subscribe(Subscribe(1, ("a.*", "s.*"), 65_536, control.FromBus(JOURNAL, 2, INDEX_END))))
    note("Sequence 2 is given anew, under a new epoch.")
    send("client", encode_channel(0, b"a.x"), publish(0, 2, b"2, again"))
    return script.trace


def failures() -> Trace:
    """A commit that fails, and what publishers hear until all is well again."""
    script = Script("Commits that fail: refused, unknown, recovered")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.x"), publish(0, 1, b"good"))
    act("hold")
    note("Two groups are pending: 2 in commit, 3 in the open group.")
    send("client", publish(0, 2, b"in commit"))
    send("client", publish(0, 3, b"in the open group"))
    note("The commit fails after it was handed over: 2 is unknown, 3 was not stored.")
    act("fail LOST")
    note("Until the journal has recovered: 2 may be stored, so it is no refusal; 3 is one.")
    send("client", publish(0, 2, b"in commit"))
    send("client", publish(0, 3, b"in the open group"))
    note("On a new connection `highest` counts what may be stored.")
    opened(script, producer=PRODUCER)
    note("The journal has recovered, and what had failed is void.")
    act("release STORED")
    note("Now `highest` says so.")
    opened(script, producer=PRODUCER)
    send("client", encode_channel(0, b"s.x"), publish(0, 2, b"in commit"), publish(0, 3, b"in the open group"))
    note("A commit that is not even handed over: refused, and the next one goes on.")
    act("hold")
    send("client", publish(0, 4, b"refused"))
    act("fail REFUSED")
    act("release STORED")
    send("client", publish(0, 4, b"taken"))
    return script.trace


def taken_back() -> Trace:
    """A failed commit takes numbers back that were answered, at the levels that do not promise more."""
    script = Script("Answered numbers that a failed commit takes back")
    note, act, send = script.note, script.act, script.send
    opened(script, producer=PRODUCER)
    names = (encode_channel(0, b"s.x"), encode_channel(1, b"a.x"), encode_channel(2, b"e.x"))
    send("client", *names)
    opened(script, "reader")
    send("reader", encode_subscribe(Subscribe(1, ("a.x",), 65_536)))
    act("hold")
    send("client", publish(0, 1, b"synced"))
    note("In the open group, answered and delivered at once.")
    send("client", publish(1, 2, b"accepted"))
    send("client", publish(2, 3, b"ephemeral"))
    note("The group before it fails, and the open one with it. Of 2 and 3 nothing more is said.")
    act("fail LOST")
    note("What the client sends next skips numbers, as the server sees it. It connects anew.")
    send("client", publish(2, 4, b"next"))
    note("In the same run `highest` is below what was answered.")
    opened(script, producer=PRODUCER)
    act("release STORED")
    note("Number 1 was settled: it is not stored, and is sent again. What follows are new numbers.")
    opened(script, producer=PRODUCER)
    send("client", *names, publish(0, 1, b"synced"))
    note("The sequence that was taken back is given anew: under another epoch, to a reader that stands behind it.")
    send("client", publish(1, 2, b"another"))
    return script.trace


def credit() -> Trace:
    """Credit: catching up is paced by it, a live subscription is cut beyond it."""
    script = Script("Credit, used up and granted")
    note, send = script.note, script.send
    opened(script)
    send("client", encode_channel(0, b"s.x"))
    for number in range(1, 4):
        send("client", publish(0, number, b"%d" % number * 32))
    opened(script, "reader")
    note("No credit: nothing comes.")
    send("reader", encode_subscribe(Subscribe(1, ("s.x",), 0, FromStart())))
    note("Credit for a number without subscription is passed over.")
    send("reader", encode_credit(9, 5))
    note("One byte of credit: a chunk of 100 bytes, and 99 are owed.")
    send("reader", encode_credit(1, 1))
    note("Still nothing to spend.")
    send("reader", encode_credit(1, 99))
    note("Enough for the rest, and the subscription is live.")
    send("reader", encode_credit(1, 250))
    send("client", publish(0, 4, b"4"))
    note("Credit that counts as 2^40 when it is more.")
    send("reader", encode_subscribe(Subscribe(2, ("s.x",), (1 << 64) - 1)))
    note("One byte fits; nothing fits beyond it.")
    send("reader", encode_credit(2, 1))
    send("reader", encode_credit(2, 1))
    opened(script, "other")
    send("other", encode_subscribe(Subscribe(1, ("s.x",), 100)))
    note("The reserved field is not zero.")
    send("other", control.frame(Kind.CREDIT, struct.pack("<IIQ", 1, 1, 1)))
    return script.trace


def slow() -> Trace:
    """A live subscription whose credit and overdraft are used up, and one whose profile wants it ended for that."""
    script = Script("Falling behind", "narrow")
    note, send = script.note, script.send
    opened(script)
    send("client", encode_channel(0, b"e.x"), encode_channel(1, b"s.x"))
    opened(script, "reader")
    note("Credit for 100 bytes; the overdraft of this server is 100.")
    send("reader", encode_subscribe(Subscribe(1, ("s.x", "e.x"), 100)))
    note("69 bytes: 31 are left.")
    send("client", publish(1, 1, b"1"))
    note("Now 38 below nothing.")
    send("client", publish(1, 2, b"2"))
    note("This would be 107 below: it is not sent, and the subscription lags.")
    send("client", publish(1, 3, b"3"))
    note("What is ephemeral waits in memory for a while, what is stored in the log.")
    send("client", publish(0, 4, b"e1"), publish(1, 5, b"4"))
    note("Who is behind, and by how much.")
    send("client", control.encode_request(1, "lagging", {"limit": 10}))
    note("Enough for one chunk; the other two follow with the next credit, and the subscription is live again.")
    send("reader", encode_credit(1, 40))
    send("reader", encode_credit(1, 1000))
    send("client", publish(1, 6, b"5"))
    opened(script, "cut")
    note("A profile that says `disconnect`.")
    send("client", encode_channel(2, b"d.x"))
    send("cut", encode_subscribe(Subscribe(1, ("d.x",), 0)))
    send("client", publish(2, 7, b"1"))
    send("client", publish(2, 8, b"2"))
    return script.trace


def subscriptions() -> Trace:
    """Subscriptions refused and ended."""
    script = Script("Subscriptions that are refused, and ended")
    note, send = script.note, script.send
    opened(script)

    def refused(why: str, *filters: str, number: int = 2, start: control.Start | None = None) -> None:
        note(why)
        send("client", encode_subscribe(Subscribe(number, filters, 100, start or control.FromNew())))

    send("client", encode_subscribe(Subscribe(1, ("s.x", "s.y"), 100)))
    refused("The number is in use.", "s.x", number=1)
    refused("`>` is not the last token.", "s.>.x")
    refused("A name of the broker's own.", "$internal")
    refused("No profile.", "other")
    refused("A position of a pattern.", "s.*", start=FromPositions((("s.x", 1, 1),)))
    refused("A position of another channel.", "s.x", start=FromPositions((("s.y", 1, 1),)))
    refused("`last` of a pattern.", "s.*", start=control.FromLast(1))
    note("None of these has taken the number.")
    send("client", encode_subscribe(Subscribe(2, ("s.x",), 100)))
    note("Unsubscribed, and a credit that crosses it.")
    send("client", encode_unsubscribe(1), encode_credit(1, 5))
    send("client", encode_unsubscribe(1))
    note("Nothing of 1 follows.")
    send("client", encode_channel(0, b"s.x"), publish(0, 1, b"x"))
    note("The number is free again.")
    send("client", encode_subscribe(Subscribe(1, ("s.y",), 100)))
    return script.trace


def requests() -> Trace:
    """REQUEST and REPLY, PING and PONG."""
    script = Script("Requests, pings and silence")
    note, act, send = script.note, script.act, script.send
    opened(script)
    send("client", encode_channel(0, b"s.x"), publish(0, 1, b"1", b"2"))
    note("What a channel is.")
    send("client", control.encode_request(7, "channel", {"name": "s.x"}))
    note("One that nobody has published to.")
    send("client", control.encode_request(0, "channel", {"name": "a.new"}))
    send("client", control.encode_request(8, "channel", {"name": "no..name"}))
    send("client", control.encode_request(9, "channel"))
    send("client", control.encode_request((1 << 32) - 1, "dance"))
    note("The token comes back.")
    send("client", encode_ping((1 << 64) - 1))
    note("After 15 s of silence the server asks, as soon as it looks.")
    act("wait 20000000")
    note("Any bytes will do, an answer is the best.")
    send("client", control.encode_pong(TIME_US))
    act("wait 44000000")
    act("wait 7000000")
    return script.trace


def resuming() -> Trace:
    """A client comes back: HELLO and SUBSCRIBE together."""
    script = Script("A client comes back in one round trip")
    note, act, send = script.note, script.act, script.send
    opened(script)
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"s.y"), publish(0, 1, b"x1"), publish(1, 2, b"y1"))
    act("wait 1000")
    send("client", publish(0, 3, b"x2"))
    act("connect back")
    note("HELLO, and all that it asks for right behind it: s.x has gone on meanwhile, s.y has not.")
    send(
        "back",
        encode_hello("back")
        + encode_subscribe(Subscribe(1, ("s.x", "s.y"), 65_536, FromPositions((("s.x", EPOCH, 1), ("s.y", EPOCH, 1))))),
    )
    note("It is live.")
    send("client", publish(1, 4, b"y2"))
    return script.trace


def drain() -> Trace:
    """The server stops."""
    script = Script("The server stops")
    note, act, send = script.note, script.act, script.send
    opened(script)
    act("connect silent")
    note("Ten seconds to leave. Who has not said HELLO is sent away.")
    act("drain 10")
    note("The others are served.")
    send("client", encode_channel(0, b"s.x"), publish(0, 1, b"1"))
    act("connect late")
    note("Nobody is let in.")
    send("late", encode_hello("late"))
    note("The time is over.")
    act("end")
    return script.trace


def history() -> Trace:
    """REQUESTs that read back, each bound once, and names."""
    script = Script("REQUEST history and channels")
    note, act, send = script.note, script.act, script.send

    def ask(request: int, op: str, **arguments: object) -> None:
        send("client", control.encode_request(request, op, arguments))

    opened(script)
    send("client", encode_channel(0, b"s.x"), encode_channel(1, b"a.x"), encode_channel(2, b"e.x"))
    send("client", publish(0, 1, b"one", b"two", b"three"))
    act("wait 1000")
    send("client", publish(0, 4, b"four", Record(b"of use for a second", expiry_s=1)), publish(1, 6, b"x"))
    act("wait 1000")
    note("All of a channel: two chunks, joined to one.")
    ask(1, "history", channel="s.x")
    note("Bounds by sequence, the last two of them, and the newest one of these.")
    ask(2, "history", channel="s.x", after=1, before=5, last=2, limit=1, reverse=True)
    note("What is left, as that answer says.")
    ask(3, "history", channel="s.x", after=2, before=4, reverse=True)
    note("A position that is good, one that nobody has seen, and one past the head.")
    ask(4, "history", channel="s.x", after=4, after_epoch=EPOCH)
    ask(5, "history", channel="s.x", after=9, after_epoch=EPOCH)
    ask(6, "history", channel="s.x", after=9)
    note("By time: up to, and from, the second group on.")
    ask(7, "history", channel="s.x", until_us=TIME_US + 500)
    ask(8, "history", channel="s.x", from_us=TIME_US + 500)
    note("Time is over for the fifth record.")
    act("wait 2000000")
    ask(9, "history", channel="s.x", after=3)
    note("A channel that is not there, one that is ephemeral, one that cannot be, and a key of the wrong type.")
    ask(10, "history", channel="s.none")
    send("client", publish(2, 7, b"gone"))
    ask(11, "history", channel="e.x", last=5)
    ask(12, "history", channel="no..name")
    note("A pattern, in the order of the bus, in one answer and from where it goes on.")
    ask(13, "history", pattern=">")
    ask(14, "history", pattern="s.*", bus=[JOURNAL, 2, 0])
    ask(15, "history", pattern=">", bus=[bytes(16), 2, 0])
    ask(16, "history", pattern="a..b")
    note("Accepted and not committed: the answer waits for the commit.")
    act("hold")
    send("client", publish(1, 8, b"soon"))
    ask(17, "history", channel="a.x", after=1)
    act("release STORED")
    note("Names: all, with details, a page, and those of the broker.")
    ask(18, "channels")
    ask(19, "channels", details=True)
    ask(20, "channels", limit=1, prefix="a")
    ask(21, "channels", after="a.x")
    ask(22, "channels", prefix="$")
    note("Trimmed to the last two, which a reader behind it is told; below that there is nothing left to do.")
    ask(24, "trim", name="s.x", first=4)
    ask(25, "trim", name="s.x", first=2)
    ask(26, "trim", name="s.x", first=7)
    ask(27, "history", channel="s.x", after=1, after_epoch=EPOCH)
    note("A channel that is published to is not removed; one that nobody holds is.")
    ask(28, "remove", name="s.x")
    opened(script, "other")
    send("other", encode_channel(0, b"s.y"), publish(0, 1, b"brief"))
    act("disconnect other")
    ask(29, "remove", name="s.y")
    ask(30, "channels")
    note("A limit of nothing is no limit.")
    ask(23, "history", channel="s.x", limit=0)
    return script.trace


def join(subscription: int, name: str, window: int = 256) -> bytes:
    """Build a SUBSCRIBE to a consumer."""
    return encode_subscribe(Subscribe(subscription, (), 0, consumer=Consume(name, window)))


def consumers() -> Trace:
    """Durable consumers and work queues: leases, what is said of them, dead letters, a lost commit and a crash."""
    script = Script("Consumers and work queues", "default")
    note, act, send = script.note, script.act, script.send
    lease = 1 << 40

    def ask(request: int, op: str, **arguments: object) -> bytes:
        return send("client", control.encode_request(request, op, arguments))

    def make(request: int, settings: ConsumerSettings, start: ConsumerStart, *, update: bool = False) -> None:
        ask(request, "consumer_set", **consuming.pack_consumer_set(settings, start, update=update))

    def settle(subscription: int, number: int, *entries: Settle, name: str = "client") -> None:
        send(name, consuming.encode_ack(subscription, number, entries))
        act("wait 5000")

    opened(script)
    send("client", encode_channel(0, b"s.jobs"))
    send("client", publish(0, 1, b"one", Record(b"two", key=b"k"), b"three", b"four"))
    queue = ConsumerSettings("mail.send", ("s.jobs",), dead_letter="s.dead", attempts_max=2, backoff_ms=(0, 0))
    note("A queue; the same again; and other settings, refused and taken.")
    make(1, queue, ConsumerStart())
    make(2, queue, ConsumerStart())
    changed = ConsumerSettings("mail.send", ("s.jobs",), dead_letter="s.dead", attempts_max=2, backoff_ms=(100, 100))
    make(3, changed, ConsumerStart())
    make(4, changed, ConsumerStart(), update=True)
    note("What cannot be: dead letters that come again, an ephemeral channel, a place of the bus for literals.")
    make(5, ConsumerSettings("x", ("s.>",), dead_letter="s.dead"), ConsumerStart())
    make(6, ConsumerSettings("x", ("e.x",)), ConsumerStart())
    ask(7, "consumer_set", name="x", filters=["s.x"], start={"bus": [JOURNAL, 1, 0]})
    note("A member with room for two.")
    send("client", join(1, "mail.send", 2))
    note("The first is done: the third comes at once, and ACKED when that is committed, with the next jobs or soon.")
    settle(1, 1, Settle(lease + 1, 1, Verdict.ACK))
    note("The second fails: it comes again after its back-off, when there is room.")
    settle(1, 2, Settle(lease + 2, 1, Verdict.NACK, BACK_OFF))
    act("wait 200000")
    note(
        "The third takes longer; the fourth is rejected, which makes room; and the second fails once more: it is dead."
    )
    settle(1, 3, Settle(lease + 3, 1, Verdict.EXTEND, 60_000), Settle(lease + 4, 1, Verdict.REJECT))
    settle(1, 4, Settle(lease + 5, 1, Verdict.NACK))
    note("A lease that nobody was given, one that is settled, and a delay that is too long.")
    settle(1, 5, Settle(lease + 99, 1, Verdict.ACK), Settle(lease + 1, 1, Verdict.ACK))
    settle(1, 6, Settle(lease + 3, 1, Verdict.NACK, 1 << 40))
    ask(8, "consumer", name="mail.send")
    ask(9, "consumer_peek", name="mail.send")
    note("Another member has room, and gets what the first gives back when it unsubscribes.")
    opened(script, "other")
    send("other", join(5, "mail.send"))
    send("client", encode_unsubscribe(1))
    settle(5, 1, Settle(lease + 99, 1, Verdict.ACK_THROUGH), name="other")
    note("Its connection ends; a new one is told what becomes of what it had.")
    act("disconnect other")
    note("Dead letters, which are published again, once.")
    ask(10, "history", channel="s.dead")
    ask(11, "consumer_redrive", name="mail.send")
    ask(12, "consumer_redrive", name="mail.send")
    note("Paused and resumed, set back to the second record, and marked as done by positions.")
    send("client", join(2, "mail.send"))
    ask(13, "consumer_pause", name="mail.send", paused=True)
    ask(14, "consumer_reset", **consuming.pack_reset("mail.send", ConsumerStart(positions=(("s.jobs", EPOCH, 1),))))
    ask(15, "consumer_done", **consuming.pack_done("mail.send", [DoneRun("s.jobs", EPOCH, 2, 3)]))
    given = [frame[8:] for frame in frames(ask(16, "consumer_pause", name="mail.send", paused=False)) if frame[4] == 21]
    note("A commit fails: what was said is void, and comes again.")
    act("hold")
    settle(2, 1, Settle(consuming.decode_jobs(given[0]).jobs[0].lease, 1, Verdict.ACK))
    act("release LOST")
    note("An exclusive consumer by a pattern, which has no last record; its second holder takes over.")
    make(17, ConsumerSettings("log", ("s.*",), mode="exclusive", lease_ms=0), ConsumerStart(last=1))
    make(18, ConsumerSettings("log", ("s.*",), mode="exclusive", lease_ms=0), ConsumerStart())
    send("client", join(3, "log", 3))
    send("client", join(4, "log", 2))
    note("The broker dies. What was not done comes again, and may have been seen.")
    act("crash")
    opened(script)
    ask(1, "consumers", limit=1)
    send("client", join(1, "log", 2))
    ask(2, "consumer_purge", name="mail.send")
    note("Removed, and unknown from then on.")
    ask(3, "consumer_remove", name="log")
    ask(4, "consumer", name="log")
    send("client", join(1, "log"))
    note("An ACK of no subscription is passed over; one out of its turn ends the connection.")
    settle(9, 7, Settle(1, 1, Verdict.ACK))
    send("client", join(2, "mail.send"))
    settle(2, 2, Settle(1, 1, Verdict.ACK))
    return script.trace


def closing() -> Trace:
    """Every frame that ends an open connection."""
    script = Script("Frames that end a connection")
    cases: list[tuple[str, bytes]] = [
        ("A kind that only a server sends.", control.frame(Kind.WELCOME, b"\x80")),
        ("An ACK of 15 bytes.", control.frame(Kind.ACK, bytes(15))),
        ("An ACK without entries.", control.frame(Kind.ACK, bytes(16))),
        ("A kind that nobody knows.", control.frame(99, b"")),
        ("Flags.", control.frame(Kind.PING, bytes(8), flags=1)),
        ("The reserved field.", bytes.fromhex("0800000004000100")),
        ("A body that would be too large: the header is enough.", struct.pack("<IBBH", 65_657, Kind.PUBLISH, 0, 0)),
        ("A PING of 7 bytes.", control.frame(Kind.PING, bytes(7))),
        ("A CREDIT of 17 bytes.", control.frame(Kind.CREDIT, bytes(17))),
        ("A PUBLISH without its 16 bytes.", control.frame(Kind.PUBLISH, bytes(15))),
        ("A CHANNEL without its number.", control.frame(Kind.CHANNEL, bytes(3))),
        ("No map.", control.frame(Kind.SUBSCRIBE, b"\x90")),
        ("Bytes behind the map.", control.frame(Kind.UNSUBSCRIBE, control.pack({"subscription": 1}) + b"\0")),
        ("A map that is cut short.", control.frame(Kind.UNSUBSCRIBE, control.pack({"subscription": 1})[:-1])),
        ("A key that is no string.", control.frame(Kind.UNSUBSCRIBE, msgpack.packb({1: 1}))),
        ("Text that is not UTF-8.", control.frame(Kind.REQUEST, b"\x81\xa2op\xa1\xff")),
        ("A missing key.", map_frame(Kind.SUBSCRIBE, subscription=1, credit=1)),
        ("No filter.", map_frame(Kind.SUBSCRIBE, subscription=1, credit=1, filters=[])),
        ("Subscription 0.", map_frame(Kind.SUBSCRIBE, subscription=0, credit=1, filters=["s.x"])),
        (
            "A start that is none.",
            map_frame(Kind.SUBSCRIBE, subscription=1, credit=1, filters=["s.x"], start={"at": 1}),
        ),
        ("An array of 1,025 items, though it is not there.", control.frame(Kind.SUBSCRIBE, b"\x81\xa1a\xdc\x04\x01")),
        ("Arrays seventeen deep.", control.frame(Kind.SUBSCRIBE, b"\x81\xa1a" + b"\x91" * 16 + b"\0")),
    ]
    for why, frame in cases:
        opened(script)
        script.note(why)
        script.send("client", frame)
    return script.trace


def publishing() -> Trace:
    """What the client's own publishing buffer says, through refusals, a lost connection and a crash."""
    script = Script("The client's publishing buffer")
    note, act = script.note, script.act
    client = BufferClient()
    act("connect client")
    received = script.send("client", client.connect())
    note(
        "All that was posted. The third record is too large and the channel no.profile cannot be, so everything is",
        "refused; the client halves the frame until the bad record is alone.",
    )
    sent = client.feed(received)
    while sent:
        sent = client.feed(script.send("client", sent))
    client.feed(script.send("client", client.say_more()))
    act("hold")
    note("These are not answered before the connection is lost.")
    script.send("client", client.say_more())
    script.send("client", client.say_more())
    act("disconnect client")
    act("connect client")
    note("The server has both numbers: the client sends the same frames again. Then the broker dies.")
    script.send("client", client.feed(script.send("client", client.connect())))
    act("crash")
    act("connect client")
    note("A new run has neither: they are sent as new.")
    client.feed(script.send("client", client.feed(script.send("client", client.connect()))))
    assert not client.buffer.records_unanswered
    return script.trace


def groups() -> Trace:
    """Live groups: who gets what, who is passed over, and what is lost to all of them."""
    script = Script("Live groups", "narrow")
    note, send = script.note, script.send
    opened(script)
    send("client", encode_channel(0, b"e.x"), encode_channel(1, b"s.x"))
    for name in ("one", "two", "witness"):
        opened(script, name)
    note("Two members on two connections, and one that is in no group.")
    send("one", encode_subscribe(Subscribe(1, ("e.x", "s.x"), 65_536, group="workers")))
    send("two", encode_subscribe(Subscribe(1, ("e.*", "s.*"), 65_536, group="workers")))
    send("witness", encode_subscribe(Subscribe(1, ("e.x",), 65_536)))
    note("A frame of three records: two and one, each a chunk of its own. The witness gets all.")
    send("client", publish(0, 1, b"1", b"2", b"3"))
    note("The next goes to who got less.")
    send("client", publish(0, 4, b"4"))
    note("Of a stored channel it is the same, once the records are stored.")
    send("client", publish(1, 5, b"5", b"6"))
    note("One leaves. The other gets everything.")
    send("one", encode_unsubscribe(1))
    send("client", publish(0, 7, b"7", b"8"))
    note("A group of one, without credit: the overdraft of this server is 100, so one of three records has room.")
    opened(script, "poor")
    send("poor", encode_subscribe(Subscribe(1, ("e.x",), 0, group="poor")))
    send("client", publish(0, 9, bytes(20), bytes(20), bytes(20)))
    note("It is told of the others before the next that it gets.")
    send("poor", encode_credit(1, 1000))
    send("client", publish(0, 12, b"9"))
    note("A member begins with what comes, and its group has a name.")
    send("two", encode_subscribe(Subscribe(2, ("s.x",), 65_536, FromStart(), group="workers")))
    send("two", control.encode(Kind.SUBSCRIBE, {"subscription": 3, "filters": ["s.x"], "credit": 1, "group": ""}))
    return script.trace


def asking() -> Trace:
    """Requests and replies."""
    script = Script("Requests and replies")
    note, act, send = script.note, script.act, script.send
    opened(script)
    opened(script, "responder")
    asks = b"$reply." + b"token 0000000001".hex().encode()
    note("Nobody listens. The number is the request's own: the producer's line is not touched.")
    send("client", named(ASK, b"e.add", 1, b"1 2"))
    send("responder", encode_subscribe(Subscribe(1, ("e.add",), 65_536)))
    note("Now somebody does, and replies to both at once, in one frame.")
    send("client", named(ASK, b"e.add", 2, b"1 2", b"3 4"))
    send("responder", named(REPLY, asks, 2, b"3", Record(b"7", key=b"sum")))
    note("A reply that nobody waits for any more comes all the same; the client passes over it.")
    send("responder", named(REPLY, asks, 2, b"late"))
    note("Replies to nobody: a name that was never told, and one whose connection is gone.")
    send("responder", named(REPLY, b"$reply.00000000000000000000000000000000", 1, b"?"))
    act("disconnect client")
    send("responder", named(REPLY, asks, 3, b"7", b"8"))
    note("Requests of a stored channel are stored, and nobody says that nobody listens.")
    opened(script)
    send("client", named(ASK, b"s.add", 4, b"5 6"))
    send("responder", encode_subscribe(Subscribe(2, ("s.add",), 65_536, FromStart())))
    note("What is refused: a name that is none, one that is reserved, records, payloads and headers.")
    send("client", named(ASK, b"no..name", 5, b"?"), named(ASK, b"$reply.x", 6, b"?"))
    send("client", named(ASK, b"e.add", 7), named(ASK, b"e.add", 8, b"?", count=2))
    send(
        "client",
        named(ASK, b"e.add", 9, bytes(101)),
        named(ASK, b"e.add", 10, Record(b"", headers=msgpack.packb({"x": "y" * 30}))),
    )
    send("responder", named(REPLY, asks, 5, bytes(101)), named(REPLY, asks, 6, b"?", count=2))
    note("A frame that is cut short, and one without a number, are no frames.")
    send("client", control.frame(Kind.PUBLISH, struct.pack("<IIQB", 0, 1, 11, 9) + b"e.add", ASK))
    opened(script)
    send("client", named(ASK, b"e.add", 0, b"?"))
    note("Nor is one with both flags, or before HELLO.")
    send("responder", named(PublishFlag(12), b"e.add", 1, b"?"))
    act("connect early")
    send("early", named(ASK, b"e.add", 1, b"?"))
    return script.trace


CONVERSATIONS: dict[str, Callable[[], Trace]] = {
    build.__name__: build
    for build in (
        specification, handshake, durability, line, refusals, ids, conditions, later, transactions, settled_together,
        starts, patterns, early, failures, taken_back, credit, slow, subscriptions, requests, history, resuming, drain,
        closing, consumers, publishing, groups, asking,
    )
}  # fmt: skip
