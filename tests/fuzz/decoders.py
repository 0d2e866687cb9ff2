"""Targets in Python: the conversation's whole state machine, control bodies, names, settings.

A refusal is a `BrokerError`; anything else that comes out of them is a find, and so is a value that does not survive
being encoded and decoded again.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Any

from broker.config import Config
from broker.model import names
from broker.model.consumers import Settle, Verdict
from broker.model.errors import BrokerError, error
from broker.model.history import (
    BusPart,
    BusQuery,
    ChannelRow,
    HistoryPart,
    HistoryQuery,
    NamedChunk,
    NamesPart,
    NamesQuery,
    Trim,
)
from broker.model.positions import BusPosition
from broker.wire import consuming, control, requests
from broker_native.work import Settling
from tests.fuzz import seeds
from tests.fuzz.stepped import SteppedNode
from tests.reference.frames import ERROR, FRAME_HEADER, Record, frames_of
from tests.reference.jobs import JOB_HEADER, JOBS_HEADER, NAME, REDELIVERED, Told, build_jobs
from tests.reference.journal import Fate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PLAN_BYTES = 8
OF_THE_INPUT = re.compile(r"(['\"]).*\1|[0-9]+", re.DOTALL)


class Seen:
    """What an execution has shown, told to the engine as if it were code that was walked."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self.note = note

    def text(self, *words: object) -> None:
        """Note some words, without what an input may have put into them."""
        self.note(zlib.crc32("".join(OF_THE_INPUT.sub("", str(word))[:60] for word in words).encode()))


# -- conversations -----------------------------------------------------------------------------------------------------


def session(seen: Seen, pieces_of: Callable[[memoryview], list[bytes]]) -> Callable[[memoryview], None]:
    """A whole conversation, from the first byte on. The plan's state says what becomes of commits, and of time."""

    def execute(data: memoryview) -> None:
        state = data[5]
        broker = SteppedNode()
        conversation, peer = broker.connect()
        if state & 1:
            conversation.feed(seeds.OPENING)
        for index, piece in enumerate(pieces_of(data)):
            conversation.feed(bytes(piece))
            if state & 2 and index % 4 == 0:
                broker.settle()
        broker.settle()
        broker.commit(Fate.LOST if state & 4 else Fate.REFUSED if state & 8 else Fate.STORED)
        if state & 16:
            broker.wait(60_000_000)
        broker.commit_all()
        judge(seen, peer.take(), conversation.closed)
        if conversation.closed and not peer.closed:
            raise AssertionError("the conversation is over, and its transport stays open")
        conversation.stopped()
        broker.commit_all()
        if broker.node.connections:
            raise AssertionError("a connection is left behind")
        broker.node.fanout.close()

    return execute


def judge(seen: Seen, answers: bytes, closed: bool) -> None:
    """What a server sends is legal, whatever it was sent; it ends a conversation with one word why, and never else."""
    farewells = 0
    for frame in frames_of(answers):
        seen.text(chr(ord("a") + frame.kind))
        if frame.kind == ERROR:
            refusal = control.decode_error(frame.body)
            farewells += refusal.ends_connection
            seen.text(refusal.failure.name, refusal.failure.detail)
    if farewells != closed:
        raise AssertionError(f"the conversation is {'' if closed else 'not '}over, and {farewells} errors say so")


# -- bodies ------------------------------------------------------------------------------------------------------------

Decoder = tuple["Callable[[bytes], Any]", "Callable[[Any], bytes]"]


def question(decode: Callable[[Mapping[str, Any]], Any]) -> Decoder:
    """A REQUEST whose arguments are decoded, and the one that asks the same."""

    def ask(query: Any) -> bytes:
        return control.encode_request(1, "ask", requests.pack_query(query))

    return lambda body: decode(control.decode_request(body).more), ask


def answer(decode: Callable[[Mapping[str, Any]], Any]) -> Decoder:
    """A REPLY whose fields are decoded, and the one that answers the same."""

    def reply(part: Any) -> bytes:
        return requests.encode_part(1, part)

    return lambda body: decode(control.decode_reply(body)[1]), reply


def decode_jobs(body: bytes) -> consuming.Jobs:
    """JOBS as a member takes it; what is read of each job must be what the plain decoder reads."""
    settling = Settling(None, int, error, 1)
    batch = settling.receive(body, [], settling.say)
    jobs = consuming.decode_jobs(body)
    for job, plain in zip(batch, jobs.jobs, strict=True):
        read = (job.lease, job.epoch, job.sequence, job.time, job.attempt, job.redelivered)
        if read != (plain.lease, plain.epoch, plain.sequence, plain.time_us, plain.attempt, plain.redelivered):
            raise AssertionError(f"{job!r} is {plain!r}")
        fields = (job.channel, job.payload, job.key, job.priority, job.publisher, job.expiry_s)
        if sum(len(field) for field in fields if isinstance(field, (str, bytes))) > 2 * len(body):
            raise AssertionError(f"{fields!r} are more than came")
    return jobs


def encode_jobs(jobs: consuming.Jobs) -> bytes:
    """JOBS of what was decoded."""
    first = jobs.jobs[0].lease
    body = JOBS_HEADER.pack(jobs.subscription, len(jobs.jobs), first, jobs.lease_ms, 0)
    for job in jobs.jobs:
        name = job.name or b""
        flags = (REDELIVERED if job.redelivered else 0) | (NAME if job.name is not None else 0)
        size = JOB_HEADER.size + len(name) + len(job.record)
        place = (size, job.channel, job.epoch, job.sequence, job.time_us)
        body += JOB_HEADER.pack(*place, job.attempt, flags, len(name), 0) + name + job.record
    return bytes(FRAME_HEADER.size) + body


QUESTIONS: list[Callable[[Mapping[str, Any]], Any]] = [
    requests.decode_history_query,
    requests.decode_bus_query,
    requests.decode_names_query,
    requests.decode_trim,
]
ANSWERS: list[Callable[[Mapping[str, Any]], Any]] = [
    requests.decode_history_part,
    requests.decode_bus_part,
    requests.decode_names_part,
]

DECODERS: list[Decoder] = [
    (control.decode_hello, lambda value: control.encode_hello(value.client, value.producer, value.token)),
    (control.decode_welcome, control.encode_welcome),
    (control.decode_subscribe, control.encode_subscribe),
    (control.decode_subscribed, control.encode_subscribed),
    (control.decode_unsubscribe, control.encode_unsubscribe),
    (
        control.decode_error,
        lambda value: control.encode_error(
            value.failure,
            subscription=value.subscription,
            request=value.request,
            channel=value.channel,
            number=value.number,
            count=value.count,
            asked=value.asked,
            replied=value.replied,
        ),
    ),
    (
        control.decode_event,
        lambda value: control.encode_event(value.subscription, value.event, value.channel, value.more),
    ),
    (control.decode_request, lambda value: control.encode_request(value.request, value.op, value.more)),
    (control.decode_reply, lambda value: control.encode_reply(*value)),
    (control.decode_going_away, lambda notice: control.encode_going_away(*notice)),
    (control.decode_token, control.encode_ping),
    (control.decode_channel, lambda value: control.encode_channel(*value)),
    (control.decode_credit, lambda value: control.encode_credit(*value)),
    *(question(decode) for decode in QUESTIONS),
    *(answer(decode) for decode in ANSWERS),
    (
        lambda body: (control.decode_named(body), body[control.decode_named(body).at :]),
        lambda value: control.encode_named(4, value[0].name, value[0].number, value[0].count, value[1]),
    ),
    (consuming.decode_ack, lambda value: consuming.encode_ack(*value)),
    (consuming.decode_acked, lambda value: consuming.encode_acked(*value)),
    (decode_jobs, encode_jobs),
]


def bodies(seen: Seen) -> Callable[[memoryview], None]:
    """A control body for the decoder that the plan's state names."""

    def execute(data: memoryview) -> None:
        decode, encode = DECODERS[data[5] % len(DECODERS)]
        try:
            value = decode(bytes(data[PLAN_BYTES:]))
        except BrokerError as refused:
            seen.text(refused.detail)
            return
        try:
            # Keys without a value, and keys that nobody knows, are gone after one journey, and nothing after two.
            first = encode(value)
        except BrokerError:
            # With the keys that a body was not obliged to have, it may be larger than a body may be.
            return
        second = encode(decode(first[FRAME_HEADER.size :]))
        if first != second:
            raise AssertionError(f"{value!r} is {second!r} after another journey")

    return execute


def body_seeds() -> list[bytes]:
    """One body for each decoder."""
    refusal = control.decode_error(control.encode_error(BrokerError(3001, "why", "hint"), number=1, count=2)[8:])
    queries: list[HistoryQuery | BusQuery | NamesQuery | Trim] = [
        HistoryQuery("a.x", 5, 1, 9, 1_000, 2_000, 3, 4, reverse=True, bytes_max=100),
        BusQuery("a.>", BusPosition(seeds.JOURNAL, 1, 2), 1_000, 100),
        NamesQuery("a.", "a.b", 7, details=True),
        Trim("a.x", 5),
    ]
    parts: list[HistoryPart | BusPart | NamesPart] = [
        HistoryPart(1, 2, 9, 3, "trimmed", 4, 5, 6, True, b"chunks"),
        BusPart("resumed", (NamedChunk("a.x", 1, 2, b"chunk"),), BusPosition(seeds.JOURNAL, 1, 2), more=True),
        NamesPart((ChannelRow("a.x", 1, 2, 3, 3), ChannelRow("a.y", 0, 0, 0, 0)), more=False),
    ]
    jobs = [
        Told(b"a.x", 0, 1, 7, Record(b"payload", key=b"key"), 1_000, 2, redelivered=True),
        Told(None, 0, 1, 8, Record(b"", priority=0, expiry_s=9)),
        Told(b"a.y", 1, 1, 1, Record(b"x")),
    ]
    frames = [
        control.encode_hello("me", seeds.PRODUCER, "token"),
        control.encode_welcome(
            control.Welcome("us", 1, seeds.JOURNAL, 9, control.Limits(65536, 1000, 1000, 10, 10), 15.0, "$reply.x")
        ),
        control.encode_subscribe(control.Subscribe(1, ("a.>",), 9, control.FromPositions((("a.x", 1, 2),)))),
        control.encode_subscribed(
            control.Subscribed(1, (control.Outcome("a.x", "new", 1, 2),), control.FromBus(seeds.JOURNAL, 1, 2))
        ),
        control.encode_unsubscribe(1),
        control.encode_error(refusal.failure, number=1, count=2),
        control.encode_event(1, "gone", "a.x", {"more": [1, {"deep": None}]}),
        control.encode_request(1, "channel", {"name": "a.x"}),
        control.encode_reply(1, {"head": 5}),
        control.encode_going_away(2.5),
        control.encode_ping(7),
        control.encode_channel(1, b"a.x"),
        control.encode_credit(1, 100),
        *(control.encode_request(1, "ask", requests.pack_query(query)) for query in queries),
        *(requests.encode_part(1, part) for part in parts),
        seeds.ASKS[0],
        consuming.encode_ack(1, 2, [Settle(5, 3, Verdict.ACK), Settle(9, 1, Verdict.NACK, 1000)]),
        consuming.encode_acked(1, 2),
        bytes(FRAME_HEADER.size) + build_jobs(1, 5, 30_000, jobs),
    ]
    return [seeds.plan(state=index) + frame[FRAME_HEADER.size :] for index, frame in enumerate(frames)]


# -- names and settings ------------------------------------------------------------------------------------------------


def words(seen: Seen) -> Callable[[memoryview], None]:
    """A name, a pattern and a name to match, cut at zeros."""

    def execute(data: memoryview) -> None:
        first, _, second = bytes(data[PLAN_BYTES:]).partition(b"\0")
        for check in (names.check_channel, names.check_pattern):
            try:
                pattern = check(first)
            except BrokerError as refused:
                seen.text(refused.detail)
                continue
            check_matches(pattern, second)
        names.display(first)
        try:
            names.check_pattern(first.decode("utf-8", "surrogateescape"))
        except BrokerError as refused:
            seen.text("text", refused.detail)

    return execute


def check_matches(pattern: bytes, other: bytes) -> None:
    """What a pattern covers it matches, and a name matches itself."""
    try:
        name = names.check_channel(other)
    except BrokerError:
        return
    if not names.is_pattern(pattern) and names.matches(pattern, name) != (pattern == name):
        raise AssertionError(f"{pattern!r} is not {name!r}")
    if names.covers(pattern, name) != names.matches(pattern, name):
        raise AssertionError(f"{pattern!r} covers and matches {name!r} otherwise")
    names.shard_key(name, 2)


def word_seeds() -> list[bytes]:
    """Names and patterns, good and bad."""
    pairs = [b"a.b\0a.b", b"a.*\0a.b", b"a.>\0a.b.c", b"$x\0$x", b"a..b\0", b">\0z", b"*.*\0a.b", b"\xff\0", b"x" * 256]
    return [seeds.plan() + pair for pair in pairs]


KEYS = [
    ("server.tcp", b"127.0.0.1:4770"),
    ("server.unix", b"/tmp/socket"),
    ("server.drain_s", b"1.5"),
    ("limits.payload_bytes_max", b"1000"),
    ("limits.hello_timeout_s", b"2"),
    ("storage.segment_bytes", b"67108864"),
]


def settings(seen: Seen) -> Callable[[memoryview], None]:
    """A setting, as a flag and in the environment."""

    def execute(data: memoryview) -> None:
        key = KEYS[data[5] % len(KEYS)][0]
        value = bytes(data[PLAN_BYTES:]).decode("utf-8", "surrogateescape")
        variable = "BROKER_" + key.upper().replace(".", "_")
        for environ, flags in (({variable: value}, {}), ({}, {key: value})):
            try:
                Config.load(None, environ, flags)
                seen.text(key)
            except BrokerError as refused:
                seen.text(key, refused.name)

    return execute


def setting_seeds() -> list[bytes]:
    """A good value for each key."""
    return [seeds.plan(state=index) + value for index, (_, value) in enumerate(KEYS)]
