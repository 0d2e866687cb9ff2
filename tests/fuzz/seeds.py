"""Inputs to begin with: valid conversations, files and bodies, by our own encoders, small and of every kind.

Each begins with its plan (how it is cut, and in which state the target is), as `mutate.h` draws it.
"""

from __future__ import annotations

import struct

from broker.model.consumers import Consume, ConsumerSettings, ConsumerStart, DoneRun, Settle, Verdict
from broker.wire import consuming, control
from broker.wire.kinds import PublishFlag
from broker_native.index import SegmentIndex
from tests.reference import groups
from tests.reference.frames import (
    CREDIT,
    CREDIT_BODY,
    DELIVER,
    DELIVER_HEADER,
    FRAME_HEADER,
    PUBLISH,
    PUBLISHED,
    PUBLISHED_ENTRY,
    TRANSACTION,
    Record,
    build_frame,
    build_record,
    publish_body,
)

PRODUCER = b"p" * 16
JOURNAL = b"j" * 16
HEADERS = b"\x81\xa1a\x01"


def plan(*, seed: int = 1, style: int = 0, state: int = 0, more: int = 0) -> bytes:
    """Return the beginning of an input."""
    return struct.pack("<IBBH", seed, style, state, more)


# -- a client's frames -------------------------------------------------------------------------------------------------


def publish(slot: int, number: int, *records: Record) -> bytes:
    """Return a PUBLISH frame."""
    return build_frame(PUBLISH, publish_body(slot, number, [build_record(record) for record in records]))


PUBLISHES = [
    publish(0, 1, Record(b"one")),
    publish(1, 2, Record(b"two", priority=1), Record(b"three", expiry_s=7)),
    publish(2, 4, Record(b"four", key=b"k", headers=HEADERS, priority=0, expiry_s=1)),
    publish(0, 5, *[Record(bytes([index])) for index in range(12)]),
]


def named(flag: int, name: bytes, number: int, *records: Record) -> bytes:
    """Return a PUBLISH frame of requests or replies."""
    return control.encode_named(flag, name, number, len(records), b"".join(map(build_record, records)))


OWN_NAME = b"$reply." + b"0" * 32
"""The first connection's for replies, of a node that draws by counting."""
ASKS = [
    named(PublishFlag.ASK, b"s.x", 1, Record(b"one"), Record(b"two", key=b"k", headers=HEADERS, expiry_s=9)),
    named(PublishFlag.ASK, b"e.x", 3, Record(b"three")),
    named(PublishFlag.REPLY, OWN_NAME, 1, Record(b"one"), Record(b"two", priority=3, expiry_s=9)),
    named(PublishFlag.REPLY, b"$reply.x", 1, Record(b"nobody")),
]


def later(slot: int, number: int, when: int, *records: Record) -> bytes:
    """Return a PUBLISH frame with AT."""
    body = publish_body(slot, number, [build_record(record) for record in records])
    return build_frame(PUBLISH, body[:16] + struct.pack("<Q", when) + body[16:], PublishFlag.AT)


def expecting(slot: int, number: int, head: tuple[int, int], *records: Record) -> bytes:
    """Return a PUBLISH frame with EXPECT."""
    body = publish_body(slot, number, [build_record(record) for record in records])
    return build_frame(PUBLISH, body[:16] + struct.pack("<QQ", *head) + body[16:], PublishFlag.EXPECT)


def transaction(acks: int, *frames: bytes) -> bytes:
    """Return a TRANSACTION frame, of which the last frames are ACKs."""
    return build_frame(TRANSACTION, struct.pack("<II", len(frames) - acks, acks) + b"".join(frames))


def ask(request: int, op: str, **arguments: object) -> bytes:
    """Return a REQUEST."""
    return control.encode_request(request, op, arguments)


FROM_NOW = 1 << 63
LEASE = (1 << 40) + 1
"""The first that a node gives in its first run."""
IDS = [Record(b"one", id=b"1"), Record(b"two", id=b"2"), Record(b"again", id=b"1")]
LATER = later(0, 1, FROM_NOW + 5_000_000, Record(b"soon", id=b"s"), Record(b"gone", id=b"g"))
QUEUE = consuming.pack_consumer_set(
    ConsumerSettings("q", ("s.x",), dead_letter="a.x", attempts_max=2, backoff_ms=(0, 0)), ConsumerStart()
)


def delivering() -> list[bytes]:
    """Ids, conditions, transactions, messages for later, and what a member of a queue says of its jobs."""
    numbered = b"".join(PUBLISHES[:1]) + publish(0, 2, Record(b"two", key=b"k"), Record(b"three"))
    member = ask(1, "consumer_set", **QUEUE) + control.encode_subscribe(
        control.Subscribe(1, (), 0, consumer=Consume("q", 8))
    )

    def settle(number: int, *entries: Settle) -> bytes:
        return consuming.encode_ack(1, number, entries)

    ack = settle(1, Settle(LEASE, 1, Verdict.ACK), Settle(LEASE + 1, 1, Verdict.NACK, 1_000))
    failed = settle(1, Settle(LEASE, 2, Verdict.NACK)) + settle(2, Settle(LEASE + 3, 1, Verdict.REJECT))
    return [
        publish(0, 1, *IDS) + publish(0, 4, *IDS),
        publish(2, 1, IDS[0]) + publish(1, 2, IDS[0]) + publish(0, 2, Record(b"", id=b"x" * 64)),
        expecting(0, 1, (0, 0), Record(b"new")) + expecting(0, 2, (0, 0), Record(b"old")),
        expecting(1, 1, (0, 0), Record(b"ephemeral")) + expecting(2, 1, (1, 5), Record(b"no")),
        transaction(0, publish(0, 1, Record(b"a")), publish(2, 2, Record(b"b")), expecting(0, 3, (0, 0), Record())),
        transaction(0, publish(0, 1, *IDS), publish(2, 4, IDS[0])),
        transaction(0, publish(0, 1, Record(b"a")), publish(1, 2, Record(b"ephemeral"))),
        LATER + ask(1, "delayed_cancel", channel="s.x", id=b"g") + ask(2, "delayed", prefix="s.", limit=5),
        LATER + later(0, 3, 5, Record(b"at once", id=b"o")) + later(2, 4, 1 << 60, Record(b"never", id=b"n")) + LATER,
        numbered + member + ack + settle(2, Settle(LEASE + 2, 1, Verdict.ACK_THROUGH)),
        member + numbered + settle(1, Settle(LEASE, 3, Verdict.EXTEND, 60_000), Settle(99, 1, Verdict.ACK)),
        numbered + member + failed + ask(2, "consumer_redrive", name="q") + ask(3, "consumer_peek", name="q"),
        numbered + member + transaction(1, publish(2, 4, Record(b"done")), settle(0, Settle(LEASE, 1, Verdict.ACK))),
        numbered
        + member
        + ask(2, "consumer_pause", name="q", paused=True)
        + ask(3, "consumer_reset", **consuming.pack_reset("q", ConsumerStart()))
        + ask(4, "consumer_done", **consuming.pack_done("q", [DoneRun("s.x", (1 << 40) + 1, 1, 2)]))
        + ask(5, "consumer_purge", name="q")
        + ask(6, "consumers", limit=2)
        + ask(7, "consumer_remove", name="q"),
    ]


def intake() -> list[bytes]:
    """What a client sends once it is open, in every state of the target."""
    credit = build_frame(CREDIT, CREDIT_BODY.pack(1, 0, 5000)) + build_frame(CREDIT, CREDIT_BODY.pack(2, 0, 1 << 40))
    duplicate = PUBLISHES[0] + PUBLISHES[1] + PUBLISHES[0] + publish(1, 2, Record(b"two"), Record(b"three"))
    large = publish(0, 1, Record(b"x" * 1000)) + publish(1, 2, Record(b"x" * 900)) + publish(0, 9, Record(b"gap"))
    conversations = [b"".join(PUBLISHES), credit + PUBLISHES[0], duplicate, large, control.encode_ping(7)]
    return [
        plan(seed=index, style=style, state=state) + conversation
        for index, conversation in enumerate(conversations)
        for style, state in ((0, 0), (2, 0xC0), (1, 0x50), (3, 0x04), (0, 0x08), (1, 0x03))
    ]


def channels() -> list[bytes]:
    """What a client sends that comes back: names in a row, with gaps, again, wrong ones, and other frames between."""
    row = [control.encode_channel(number, b"room.%d" % number) for number in range(150)]
    ping, wrong = control.encode_ping(7), control.encode_channel(3, b"room.*")
    last = [control.encode_channel(number, b"last.%d" % number) for number in ((1 << 32) - 2, (1 << 32) - 1, 0, 1)]
    conversations = [row, row[:5] + row[9:20] + row[:3], [*row[:2], ping, *row[2:70], PUBLISHES[0], *row[70:90]]]
    conversations += [[*row[:3], wrong, *row[4:9]], last, [ping] * 70 + row[:2]]
    return [
        plan(seed=index, style=style, state=state) + b"".join(frames)
        for index, frames in enumerate(conversations)
        for style, state in ((0, 0xFF), (1, 0x51), (2, 0x07), (3, 0xF8))
    ]


def publish_bodies() -> list[bytes]:
    """Bodies of PUBLISH alone."""
    return [plan(state=index % 2) + frame[FRAME_HEADER.size :] for index, frame in enumerate(PUBLISHES * 2)]


OPENING = control.encode_hello("fuzz", PRODUCER) + b"".join(
    control.encode_channel(slot, name) for slot, name in enumerate((b"s.x", b"e.x", b"a.x"))
)
"""What an open connection has sent before an input begins."""


def session() -> list[bytes]:
    """Whole conversations, from HELLO on."""
    hello = control.encode_hello("fuzz", PRODUCER)
    names = b"".join(
        control.encode_channel(slot, name) for slot, name in enumerate((b"s.x", b"e.x", b"a.x", b"no name"))
    )
    starts: list[control.Start] = [
        control.FromNew(),
        control.FromStart(),
        control.FromPositions((("s.x", (1 << 40) + 1, 1),)),
        control.FromBus(JOURNAL, 1, 0),
        control.FromTime(0),
        control.FromLast(2),
    ]
    reads = [
        control.encode_subscribe(control.Subscribe(number, filters, 1 << 20, start))
        for number, start in enumerate(starts, 1)
        for filters in (("s.x",), ("s.x", "e.x", "*.x"))
    ]
    asks = [
        control.encode_request(1, "stats"),
        control.encode_request(2, "channel", {"name": "s.x"}),
        control.encode_request(3, "nothing"),
        control.encode_ping(1),
        control.encode_pong(1),
        control.encode_unsubscribe(1),
        control.encode_credit(1, 100),
        *ASKS,
        control.encode_subscribe(control.Subscribe(9, ("e.x", "*.x"), 1 << 20, group="g")) + ASKS[1] + ASKS[0],
    ]
    whole = [
        hello,
        b"".join(PUBLISHES[:1]),
        hello + names + b"".join(PUBLISHES),
        control.encode_hello("fuzz") + reads[0] + names + b"".join(PUBLISHES) + asks[5],
        hello + names + names + b"".join(asks) + b"".join(PUBLISHES) * 2,
    ]
    opened = [b"".join(PUBLISHES) + read for read in reads] + asks + delivering()
    return [
        plan(seed=index, style=index % 3, state=opens | 2 * (index % 16)) + conversation
        for opens, conversations in ((0, whole), (1, opened))
        for index, conversation in enumerate(conversations)
    ]


# -- a server's frames -------------------------------------------------------------------------------------------------


def deliver(subscription: int, chunk: groups.Chunk, flags: int = 0, name: bytes | None = None) -> bytes:
    """Return a DELIVER frame."""
    told = b"" if name is None else bytes([len(name)]) + name
    body = DELIVER_HEADER.pack(subscription, 0, 9) + told + groups.build_chunk(chunk)
    return build_frame(DELIVER, body, flags | (name is not None))


def chunk_of(first: int, *records: Record) -> groups.Chunk:
    """Return a chunk of channel 1."""
    built = b"".join(build_record(record) for record in records)
    return groups.Chunk(1, 1 << 40, first, sum(record.run for record in records), built)


RECORDS = [
    Record(b"plain"),
    Record(b"full", publisher=b"me", number=4, priority=1, expiry_s=9, key=b"key", headers=HEADERS),
    Record(gone=(1, 5)),
    Record(b""),
]


def reader() -> list[bytes]:
    """What a server sends."""
    exact = [deliver(1, chunk_of(1 + 3 * index, record)) for index, record in enumerate(RECORDS)]
    named = deliver(2, chunk_of(1, *RECORDS), name=b"a.x") + deliver(2, chunk_of(9, *RECORDS), 2)
    silent = deliver(3, chunk_of(1, Record(b"nobody"))) + control.encode_pong(1)
    return [
        plan(seed=index, style=style, state=0xC0 * (style == 1), more=index) + frames
        for index, frames in enumerate([*exact, b"".join(exact), named, silent, named + b"".join(exact)])
        for style in (0, 1, 2)
    ]


def chunk() -> list[bytes]:
    """One DELIVER each."""
    return [plan() + deliver(1, chunk_of(1, record)) for record in RECORDS] + [
        plan() + deliver(1, chunk_of(1, *RECORDS)),
        plan() + deliver(2, chunk_of(1, *RECORDS[:2]), 2, name=b"a.x"),
    ]


def posting() -> list[bytes]:
    """Answers to what the target has published: numbers 1 on slot 0, 2 to 5 on slot 1, 6 on slot 0."""

    def answers(*entries: tuple[int, int]) -> bytes:
        body = b"".join(PUBLISHED_ENTRY.pack(number, 7, number, count, 0, 3, 0, b"") for number, count in entries)
        return build_frame(PUBLISHED + 6, body)

    def step(kind: int, body: bytes) -> bytes:
        return build_frame(kind, body.ljust(12, b"\0"))

    refuse = step(1, struct.pack("<QI", 2, 4))
    return [
        plan() + steps
        for steps in (
            answers((1, 1), (2, 4), (6, 1)),
            answers((1, 1)) + refuse + answers((2, 1)),
            answers((2, 2)) + step(3, b"") + step(4, struct.pack("<Q", 3)) + answers((4, 2), (1, 1)),
            step(6, b"") + answers((1, 6)) + step(2, b"") + answers((7, 1)),
            build_frame(1, struct.pack("<QI", 1, 1), flags=1) + refuse + step(5, struct.pack("<Q", 2)),
            build_frame(1, struct.pack("<QI", 2, 4), flags=2) + answers((1, 1), (6, 1)) + answers((2, 4)),
        )
    ]


# -- files -------------------------------------------------------------------------------------------------------------


def journal_groups() -> list[bytes]:
    """Return groups as the journal holds them, of every kind of entry."""
    begun = [groups.channel_entry(1, "s.x"), groups.epoch_entry(1, 1 << 40 | 1, 1), groups.channel_entry(2, "a.x", 2)]
    line = groups.line_entry(PRODUCER, 1, 4, [(1, 1, 4)])
    snapshot = groups.line_entry(PRODUCER, 9, 4, [(1, 1, 4)], groups.SNAPSHOT)
    chunks = (chunk_of(1, *RECORDS), groups.chunk_of(2, 1 << 40 | 1, 1, [b"a", b"b", b"c"]))
    return [
        groups.build_group(group)
        for group in (
            groups.Group(1, 0, entries=(groups.run_entry(1, True),), flags=groups.FLAG_FENCE),
            groups.Group(1, 0, entries=(*begun, groups.epoch_entry(2, 1 << 40 | 1, 1), line), chunks=chunks),
            groups.Group(1, 0, entries=(*begun, groups.head_entry(1, 1 << 40 | 1, 9, 1), snapshot)),
            groups.Group(1, 0, entries=(*begun, groups.close_entry(1)), chunks=chunks[:1]),
            groups.Group(1, 0, chunks=chunks),
        )
    ]


def group() -> list[bytes]:
    """Groups, cut at several places."""
    return [
        plan(state=state, more=more) + value
        for value in journal_groups()
        for state, more in ((1, 0), (2, 3), (1, groups.GROUP_HEADER.size))
    ]


def page() -> list[bytes]:
    """Pages of a sealed segment's index."""
    index = SegmentIndex()
    for value in journal_groups()[1:2]:
        index.add(value)
    found = [content for _, content in index.pages()]
    return [plan(state=channel, more=after) + content for content in found for channel in (1, 2) for after in (0, 5)]


PAGE_BYTES = 512


def page_of(number: int, flags: int, nodes: list[bytes]) -> bytes:
    """Return a page of LMDB's with these nodes, as `btree.pxd` draws it."""
    offsets, body, upper = b"", b"", PAGE_BYTES
    for node in nodes:
        upper -= len(node) + len(node) % 2
        offsets += struct.pack("<H", upper)
        body = node.ljust(len(node) + len(node) % 2, b"\0") + body
    header = struct.pack("<QHHHH", number, 0, flags, 16 + len(offsets), upper)
    return (header + offsets).ljust(upper, b"\0") + body


def leaf_node(key: bytes, value: bytes, big: int | None = None) -> bytes:
    """Return a leaf's node; `big` is the page that holds the value."""
    data = value if big is None else struct.pack("<Q", big)
    return struct.pack("<IHH", len(value), big is not None, len(key)) + key + data


def tree_of(flags: int, depth: int, entries: int, root: int) -> bytes:
    """Return a tree's descriptor in a meta page."""
    return struct.pack("<IHHQQQQQ", PAGE_BYTES, flags, depth, 0, 0, 0, entries, root)


def tree() -> list[bytes]:
    """Return LMDB files of small pages: a branch, two leaves, a large value, a list of free pages."""
    leaves = [
        page_of(3, 2, [leaf_node(b"a", b"1"), leaf_node(b"key1", b"v" * 40)]),
        page_of(4, 2, [leaf_node(b"key5", b"2"), leaf_node(b"key7", b"v" * 600, 6), leaf_node(b"zz", b"")]),
    ]
    branch = page_of(2, 1, [struct.pack("<IHH", 3, 0, 0), struct.pack("<IHH", 4, 0, 4) + b"key5"])
    free = page_of(5, 2, [leaf_node(struct.pack("<Q", 7), struct.pack("<QQQ", 2, 9, 8))])
    large = (struct.pack("<QHHI", 6, 0, 4, 2) + b"v" * 600).ljust(2 * PAGE_BYTES, b"\0")
    pages = branch + b"".join(leaves) + free + large + bytes(2 * PAGE_BYTES)
    files = []
    for main in (tree_of(0, 2, 5, 2), tree_of(0, 1, 2, 3), tree_of(0, 0, 0, 2**64 - 1)):
        meta = struct.pack("<QHHHHIIQQ", 0, 0, 8, 0, 0, 0xBEEFC0DE, 1, 0, 1 << 20)
        meta += tree_of(8, 1, 1, 5) + main + struct.pack("<QQ", 9, 1)
        files.append(meta.ljust(2 * PAGE_BYTES, b"\0") + pages)
    return [plan(state=state) + file for file in files for state in (0, 1)]


def toy() -> list[bytes]:
    """Frames for the toys."""
    return [plan() + build_frame(7, b"abc") + build_frame(8, struct.pack("<I", 3)) + build_frame(1, b"")]
