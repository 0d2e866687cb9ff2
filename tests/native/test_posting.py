"""The publishing half of the client's codec against the server's half in plain Python: the line, retries, outcomes."""

from __future__ import annotations

import asyncio
import gc
import struct
import weakref
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model.errors import BrokerError, error
from broker.model.names import check_channel
from broker_native.draft import Draft
from broker_native.posted import FRAME_BYTES
from broker_native.posting import PublishBuffer
from tests.reference import frames as twin
from tests.reference.posting import EPOCH, LineServer, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_native.outcomes import Publication

FOR_GOOD, FOR_ITS_NUMBER, FOR_ONE_RECORD = 0, 1, 2
VERDICTS = {
    "NUMBER_GAP": FOR_ITS_NUMBER,
    "PAYLOAD_TOO_LARGE": FOR_ONE_RECORD,
    "NO_PROFILE": FOR_GOOD,
    "CONFLICT": FOR_GOOD,
}
UNKNOWN = error("COMMIT_UNKNOWN", "publishes that were not answered")
CLOSED = error("CLOSED", "the bus is closed")


def buffer_of(
    loop: asyncio.AbstractEventLoop, bytes_max: int = 1 << 30, kick: Callable[[], object] = lambda: None
) -> PublishBuffer:
    return PublishBuffer(
        loop, error=error, check_channel=check_channel, pack_headers=msgpack.packb, kick=kick, bytes_max=bytes_max
    )


class Pair:
    """A buffer and a server, with the answers that are on their way between them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: LineServer | None = None) -> None:
        self.server = server or LineServer()
        self.buffer = buffer_of(loop)
        self.answers: list[bytes | Refused] = []
        self.buffer.resume(self.server.connect())

    def send(self, bytes_max: int = 1 << 20) -> bool:
        """Send one block; answers whether there was one."""
        block = self.buffer.take(bytes_max)
        if block is not None:
            self.answers += self.server.receive(block)
        return block is not None

    def lose(self, bytes_max: int, arrived: int) -> None:
        """Send a block of which only the first frames arrive, and lose the connection with all answers."""
        block = self.buffer.take(bytes_max)
        if block is not None:
            frames = twin.frames_of(block)[:arrived]
            self.server.receive(b"".join(twin.build_frame(*frame_parts(frame)) for frame in frames))
        self.answers.clear()
        self.buffer.suspend()
        self.buffer.resume(self.server.connect())

    def hear(self, index: int = 0) -> None:
        """Take one of the answers."""
        answer = self.answers.pop(index % len(self.answers))
        if isinstance(answer, Refused):
            failure = error(answer.name, f"publish {answer.number}")
            self.buffer.refuse(answer.number, answer.count, failure, VERDICTS[answer.name])
        else:
            self.buffer.answer(answer)

    def settle(self) -> None:
        """Go on until everything is answered."""
        for _ in range(10_000):
            while self.send():
                pass
            if not self.answers:
                break
            self.hear()
        assert self.buffer.records_unanswered == 0
        assert self.buffer.unanswered_bytes == 0
        assert self.buffer.in_flight == 0


def frame_parts(frame: twin.Frame) -> tuple[int, bytes, int]:
    return frame.kind, frame.body, frame.flags


@pytest.fixture
async def pair() -> Pair:
    return Pair(asyncio.get_running_loop())


# -- frames ------------------------------------------------------------------------------------------------------------


async def test_a_record_is_as_the_specification_draws_it(pair: Pair) -> None:
    headers = {"a": 1}
    pair.buffer.post("x.y", b"payload", headers, b"key", 3, 60)
    pair.buffer.post("x.y", bytearray(b"plain"))
    pair.buffer.post("x.y", memoryview(b"view"), priority=2)
    full = twin.Record(b"payload", priority=3, expiry_s=60, key=b"key", headers=msgpack.packb(headers))
    records = [twin.build_record(record) for record in (full, twin.Record(b"plain"), twin.Record(b"view"))]
    assert pair.buffer.take() == twin.build_frame(twin.CHANNEL, b"\0\0\0\0x.y") + twin.build_frame(
        twin.PUBLISH, twin.publish_body(0, 1, records)
    )
    assert pair.buffer.take() is None


@pytest.mark.parametrize("priority", [2, 0])
@pytest.mark.parametrize("expiry_s", [None, 2**32 - 1])
@pytest.mark.parametrize("key", [None, b"k", bytearray(b"key")])
@pytest.mark.parametrize("headers", [None, {}, {"a": 1}, msgpack.packb({"b": 2})])
async def test_fields_are_written_when_they_are_given(
    pair: Pair, priority: int, expiry_s: int | None, key: Any, headers: Any
) -> None:
    pair.buffer.post("a", b"payload", headers, key, priority, expiry_s)
    packed = msgpack.packb(headers) if isinstance(headers, dict) and headers else headers or None
    record = twin.Record(
        b"payload",
        priority=None if priority == 2 else priority,
        expiry_s=expiry_s,
        key=None if key is None else bytes(key),
        headers=packed,
    )
    (body,) = publish_bodies(pair.buffer)
    assert body == twin.publish_body(0, 1, [twin.build_record(record)])


async def test_channels_gather_into_frames_of_their_own(pair: Pair) -> None:
    for number in range(9):
        pair.buffer.post(f"c.{number % 3}", b"%d" % number)
    block = pair.buffer.take()
    publishes = [frame.body for frame in twin.frames_of(block) if frame.kind == twin.PUBLISH]
    assert [twin.PUBLISH_HEADER.unpack_from(body) for body in publishes] == [(0, 3, 1), (1, 3, 4), (2, 3, 7)]
    pair.answers = pair.server.receive(block)
    pair.settle()
    assert pair.server.stored == {f"c.{n}": [b"%d" % m for m in range(n, 9, 3)] for n in range(3)}


async def test_a_frame_closes_at_its_bytes(pair: Pair) -> None:
    for _ in range(10_000):
        pair.buffer.post("small", b"")
    for _ in range(100):
        pair.buffer.post("large", bytes(1000))
    pair.buffer.post("large", bytes(500_000))
    pair.buffer.post("large", b"behind")
    sizes: dict[int, list[int]] = {0: [], 1: []}
    while (block := pair.buffer.take(1 << 30)) is not None:
        for frame in twin.frames_of(block):
            if frame.kind == twin.PUBLISH:
                slot, count, _ = twin.PUBLISH_HEADER.unpack_from(frame.body)
                sizes[slot].append(count)
                assert len(frame.body) <= FRAME_BYTES["close"] + 16 or count == 1
    assert sizes[0] == [5120, 4880]
    assert sizes[1][-2:] == [1, 1]
    assert sum(sizes[1]) == 102


async def test_blocks_are_of_about_the_size_that_is_asked_for(pair: Pair) -> None:
    for number in range(200):
        pair.buffer.post(f"c.{number}", bytes(1000))
    blocks = []
    while (block := pair.buffer.take(20_000)) is not None:
        blocks.append(block)
    assert all(len(block) < 22_000 for block in blocks)
    assert len(blocks) < 12


async def test_the_kick_comes_once_until_everything_is_taken() -> None:
    kicks: list[int] = []
    buffer = buffer_of(asyncio.get_running_loop(), kick=lambda: kicks.append(1))
    buffer.post("a", b"")
    buffer.post("b", b"")
    assert len(kicks) == 1
    assert buffer.take() is None  # there is no connection
    buffer.resume(0)
    kicks.clear()
    assert buffer.take() is not None
    buffer.post("a", b"")
    assert kicks == []
    assert buffer.take() is not None
    assert buffer.take() is None
    buffer.post("a", b"")
    assert len(kicks) == 1


async def test_slots_are_used_again_when_a_connection_has_no_more_of_them() -> None:
    pair = Pair(asyncio.get_running_loop())
    pair.buffer.channels_max = 4
    for number in range(100):
        pair.buffer.post(f"c.{number}", b"%d" % number)
        pair.settle()
    assert max(pair.server.names) == 3
    assert pair.server.stored == {f"c.{number}": [b"%d" % number] for number in range(100)}
    for number in range(4):
        pair.buffer.post(f"d.{number}", b"")
    with pytest.raises(BrokerError, match="TOO_MANY_CHANNELS"):
        pair.buffer.post("d.4", b"")
    pair.settle()
    pair.buffer.post("d.4", b"")
    pair.settle()


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("a b", b""), "INVALID_CHANNEL"),
        (("", b""), "INVALID_CHANNEL"),
        (("a", bytes(101)), "PAYLOAD_TOO_LARGE"),
        (("a", b"", {"k": bytes(60)}), "HEADERS_TOO_LARGE"),
        (("a", b"", None, b""), "INVALID_RECORD"),
        (("a", b"", None, bytes(256)), "INVALID_RECORD"),
        (("a", b"", None, None, -1), "INVALID_RECORD"),
        (("a", b"", None, None, 4), "INVALID_RECORD"),
        (("a", b"", None, None, 2, 0), "INVALID_RECORD"),
        (("a", b"", None, None, 2, 2**32), "INVALID_RECORD"),
    ],
)
async def test_what_cannot_be_posted_is_refused_and_leaves_nothing(arguments: Any, name: str) -> None:
    buffer = buffer_of(asyncio.get_running_loop())
    buffer.payload_bytes_max, buffer.headers_bytes_max = 100, 50
    for call in (buffer.post, buffer.publish):
        with pytest.raises(BrokerError, match=name):
            call(*arguments)
    assert (buffer.records_posted, buffer.unanswered_bytes) == (0, 0)
    buffer.resume(0)
    assert buffer.take() is None


@pytest.mark.parametrize("arguments", [("a", "text"), ("a", None), (b"a", b""), (None, b"")])
async def test_wrong_types_are_type_errors(arguments: Any) -> None:
    buffer = buffer_of(asyncio.get_running_loop())
    with pytest.raises(TypeError):
        buffer.post(*arguments)
    assert buffer.records_posted == 0


async def test_the_bound_counts_what_is_not_answered() -> None:
    pair = Pair(asyncio.get_running_loop())
    pair.buffer.bytes_max = 10_000
    for _ in range(9):
        pair.buffer.post("a", bytes(1000))
    with pytest.raises(BrokerError, match="BUSY"):
        pair.buffer.post("a", bytes(1000))
    pair.send()
    with pytest.raises(BrokerError, match="BUSY"):
        pair.buffer.post("a", bytes(1000))
    pair.settle()
    pair.buffer.post("a", bytes(1000))


# -- the line ----------------------------------------------------------------------------------------------------------


class Ledger:
    """What was posted, and what must have become of it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.posted: dict[str, list[bytes]] = {}
        self.publications: list[tuple[str, list[bytes], Publication[Any]]] = []
        self.conditional: list[tuple[str, bytes, int, Publication[Any]]] = []
        self.transactions: list[tuple[list[tuple[str, bytes, int | None]], Publication[Any]]] = []
        self.count = 0

    def post(self, channel: str, bad: bool, how: str, many: int) -> None:
        payloads = self.payloads(many, bad)
        self.posted.setdefault(channel, []).extend(payloads)
        if how == "post":
            for payload in payloads:
                self.pair.buffer.post(channel, payload)
        elif how == "publish":
            for payload in payloads:
                self.publications.append((channel, [payload], self.pair.buffer.publish(channel, payload)))
        else:
            self.publications.append((channel, payloads, self.pair.buffer.publish_many(channel, payloads)))

    def expect(self, channel: str, sequence: int) -> None:
        """Publish one record if the channel has so many."""
        (payload,) = self.payloads(1)
        self.posted.setdefault(channel, []).append(payload)
        head = (EPOCH, sequence) if sequence else (0, 0)
        publication = self.pair.buffer.publish(channel, payload, expect=head)
        self.conditional.append((channel, payload, sequence, publication))

    def transact(self, publishes: list[tuple[str, bool, int | None]]) -> None:
        """Publish records together: (channel, whether it is bad, how many records are expected in it)."""
        draft = Draft(self.pair.buffer)
        posted: list[tuple[str, bytes, int | None]] = []
        for channel, bad, sequence in publishes:
            (payload,) = self.payloads(1, bad)
            head = None if sequence is None else (EPOCH, sequence) if sequence else (0, 0)
            assert draft.publish(channel, payload, expect=head) == len(posted)
            self.posted.setdefault(channel, []).append(payload)
            posted.append((channel, payload, sequence))
        self.transactions.append((posted, draft.send()))

    def payloads(self, many: int, bad: bool = False) -> list[bytes]:
        self.count += many
        return [b"%s %d" % (b"bad" if bad else b"ok", self.count - many + index) for index in range(many)]

    def judge_conditions(self) -> set[bytes]:
        """Judge what is stored under a condition or together; returns what of it is not stored."""
        missing = set()
        for channel, payload, sequence, publication in self.conditional:
            failure = publication.exception()
            if failure is None:
                assert publication.result().first in (sequence + 1, 0)
                assert self.pair.server.stored[channel][sequence] == payload
            else:
                assert failure.name == ("NO_PROFILE" if channel.startswith("no") else "CONFLICT")  # type: ignore[attr-defined]
                missing.add(payload)
        for posted, outcome in self.transactions:
            failure = outcome.exception()
            if failure is not None:
                missing |= {payload for _, payload, _ in posted}
                continue
            assert len(outcome.result()) == len(posted)
            for (channel, payload, _), receipt in zip(posted, outcome.result(), strict=True):
                self.judge_receipts(channel, [payload], receipt)
            for channel in {channel for channel, _, _ in posted}:
                stored = self.pair.server.stored[channel]
                ours = [payload for name, payload, _ in posted if name == channel]
                at = stored.index(ours[0])
                assert stored[at : at + len(ours)] == ours
                assert all(sequence in (None, at) for name, _, sequence in posted if name == channel)
        return missing

    def judge(self) -> None:
        """Everything good is stored once and in order, and every call was answered with the truth."""
        missing = self.judge_conditions()
        good = {
            channel: [payload for payload in payloads if not payload.startswith(b"bad") and payload not in missing]
            for channel, payloads in self.posted.items()
            if not channel.startswith("no")
        }
        assert self.pair.server.stored == {channel: payloads for channel, payloads in good.items() if payloads}
        for channel, payloads, publication in self.publications:
            assert publication.done()
            if channel.startswith("no"):
                assert publication.exception().name == "NO_PROFILE"  # type: ignore[union-attr]
            elif any(payload.startswith(b"bad") for payload in payloads):
                assert publication.exception().name == "PAYLOAD_TOO_LARGE"  # type: ignore[union-attr]
            else:
                self.judge_receipts(channel, payloads, publication.result())

    def judge_receipts(self, channel: str, payloads: list[bytes], outcome: Any) -> None:
        receipts = outcome if isinstance(outcome, list) else [outcome]
        assert sum(receipt.count for receipt in receipts) == len(payloads)
        at = 0
        for receipt in receipts:
            if receipt.epoch:
                stored = self.pair.server.stored[channel]
                assert receipt.epoch == EPOCH
                assert stored[receipt.first - 1 : receipt.sequence] == payloads[at : at + receipt.count]
            else:
                assert receipt.duplicate
            at += receipt.count


steps = st.one_of(
    st.tuples(
        st.just("post"),
        st.sampled_from(["a", "b", "c.d", "no.e"]),
        st.integers(0, 9).map(lambda n: n == 0),
        st.sampled_from(["post", "publish", "many"]),
        st.integers(1, 6),
    ),
    st.tuples(st.just("expect"), st.sampled_from(["a", "b", "no.e"]), st.integers(0, 4)),
    st.tuples(
        st.just("transact"),
        st.lists(
            st.tuples(
                st.sampled_from(["a", "a", "b", "b", "c.d", "c.d", "no.e"]),
                st.integers(0, 9).map(lambda n: n == 0),
                st.none() | st.none() | st.integers(0, 4),
            ),
            max_size=4,
        ),
    ),
    st.tuples(st.just("send"), st.sampled_from([1, 100, 1 << 20])),
    st.tuples(st.just("hear"), st.integers(0, 10)),
    st.tuples(st.just("lose"), st.sampled_from([1, 1 << 20]), st.integers(0, 8)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(steps, max_size=60),
    st.sampled_from([1024, 3]),
    st.sampled_from([1 << 16, 2]),
)
def test_everything_is_stored_once_whatever_happens(script: list[Any], window: int, entry_records_max: int) -> None:
    """Refusals, lost connections, frames that arrive without their answers, answers in any order."""
    loop = asyncio.new_event_loop()
    try:
        pair = Pair(loop, LineServer(window=window, entry_records_max=entry_records_max))
        ledger = Ledger(pair)
        for step in script:
            if step[0] == "post":
                ledger.post(*step[1:])
            elif step[0] == "expect":
                ledger.expect(*step[1:])
            elif step[0] == "transact":
                ledger.transact(step[1])
            elif step[0] == "send":
                pair.send(step[1])
            elif step[0] == "hear" and pair.answers:
                pair.hear(step[1])
            elif step[0] == "lose":
                pair.lose(*step[1:])
        pair.settle()
        ledger.judge()
    finally:
        loop.close()


async def test_one_bad_record_is_found_among_many(pair: Pair) -> None:
    good = [pair.buffer.publish("a", b"ok %d" % number) for number in range(500)]
    bad = pair.buffer.publish("a", b"bad")
    good += [pair.buffer.publish("a", b"ok %d" % number) for number in range(500, 1000)]
    behind = pair.buffer.publish("b", b"behind")
    pair.settle()
    assert bad.exception() is not None
    assert [publication.result().sequence for publication in good] == list(range(1, 1001))
    assert behind.result().sequence == 1


async def test_a_line_that_the_server_lost_is_told(pair: Pair) -> None:
    """What was sent is unknown; what was not sent yet goes on."""
    stored = pair.buffer.publish("a", b"1")
    pair.settle()
    assert stored.result().sequence == 1
    lost = pair.buffer.publish("a", b"2")
    pair.send()
    waiting = pair.buffer.publish("a", b"3")
    pair.buffer.suspend()
    pair.server, pair.answers = LineServer(), []
    pair.buffer.resume(pair.server.connect(), UNKNOWN)
    assert lost.exception() is UNKNOWN
    assert not waiting.done()
    pair.settle()
    assert waiting.result().sequence == 1


async def test_a_line_that_only_gaps_come_from_is_adrift(pair: Pair) -> None:
    first = pair.buffer.publish("a", b"1")
    assert pair.buffer.take() is not None  # it never arrives
    assert not pair.buffer.is_adrift
    pair.buffer.refuse(1, 1, error("NUMBER_GAP", ""), FOR_ITS_NUMBER)
    assert pair.buffer.is_adrift
    assert pair.buffer.take() is None
    pair.buffer.suspend()
    pair.buffer.resume(pair.server.connect())
    pair.settle()
    assert first.result().sequence == 1


@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        twin.PUBLISHED_ENTRY.pack(1, 9, 1, 1, 0, 3, 0, bytes(6)),
        twin.PUBLISHED_ENTRY.pack(2, 9, 1, 2, 0, 3, 0, bytes(6)),
        twin.PUBLISHED_ENTRY.pack(3, 9, 1, 2, 0, 3, 0, bytes(6)),
        twin.PUBLISHED_ENTRY.pack(2**64 - 1, 9, 1, 1, 0, 3, 0, bytes(6)),
    ],
)
async def test_answers_to_what_was_not_asked_are_refused(pair: Pair, body: bytes) -> None:
    pair.buffer.post("a", b"1")
    pair.settle()
    pair.buffer.post("a", b"2")
    pair.buffer.post("a", b"3")
    pair.send()
    if len(body) == 40 and body[0] == 2:
        pair.buffer.answer(body)  # the first time it is right
    with pytest.raises(BrokerError, match="MALFORMED_FRAME"):
        pair.buffer.answer(body)
    with pytest.raises(BrokerError, match="MALFORMED_FRAME"):
        pair.buffer.refuse(2, 7, UNKNOWN, FOR_GOOD)


def entry(number: int, count: int, first: int = 1, *, level: int = 3, epoch: int = EPOCH, duplicate: int = 0) -> bytes:
    """One entry of a PUBLISHED."""
    return twin.PUBLISHED_ENTRY.pack(number, epoch, first, count, 0, level, duplicate, bytes(6))


async def test_a_number_is_answered_once(pair: Pair) -> None:
    """Neither within a frame that is half answered, nor of a frame that is wholly answered behind one that is not."""
    for channel in ("a", "a", "a", "b"):
        pair.buffer.post(channel, b"")
    pair.send()
    pair.buffer.answer(entry(1, 2))
    pair.buffer.answer(entry(4, 1))
    for wrong in (entry(1, 2), entry(2, 2), entry(4, 1), entry(0, 1), entry(5, 1)):
        with pytest.raises(BrokerError, match="MALFORMED_FRAME"):
            pair.buffer.answer(wrong)
    with pytest.raises(BrokerError, match="MALFORMED_FRAME"):
        pair.buffer.refuse(4, 1, UNKNOWN, FOR_GOOD)
    pair.buffer.answer(entry(3, 1))
    assert pair.buffer.records_unanswered == 0


async def test_a_refusal_names_whole_frames(pair: Pair) -> None:
    for _ in range(3):
        pair.buffer.post("a", b"")
    pair.send()
    for number, count in ((2, 2), (1, 2), (1, 1), (4, 3), (0, 3)):
        with pytest.raises(BrokerError, match="MALFORMED_FRAME"):
            pair.buffer.refuse(number, count, UNKNOWN, FOR_GOOD)
    assert pair.buffer.in_flight == 1
    pair.buffer.refuse(1, 3, UNKNOWN, FOR_GOOD)
    assert pair.buffer.records_unanswered == 0


async def test_the_line_goes_on_from_the_lowest_refused_number(pair: Pair) -> None:
    """Refusals come in any order, and it waits for all that is in flight."""
    publications = [pair.buffer.publish(channel, channel.encode()) for channel in ("a", "b", "c")]
    block = pair.buffer.take()
    assert [frame.kind for frame in twin.frames_of(block)].count(twin.PUBLISH) == 3
    failure = error("NO_PROFILE", "")
    pair.buffer.refuse(2, 1, failure, FOR_GOOD)
    assert pair.buffer.take() is None
    assert not pair.buffer.is_adrift
    pair.buffer.refuse(3, 1, error("NUMBER_GAP", ""), FOR_ITS_NUMBER)
    assert not pair.buffer.is_adrift
    pair.buffer.refuse(1, 1, failure, FOR_GOOD)
    assert not pair.buffer.is_adrift
    assert [publication.exception() for publication in publications[:2]] == [failure, failure]
    (publish,) = [frame for frame in twin.frames_of(pair.buffer.take()) if frame.kind == twin.PUBLISH]
    assert twin.PUBLISH_HEADER.unpack_from(publish.body) == (2, 1, 1)
    pair.buffer.answer(entry(1, 1))
    assert publications[2].result().first == 1


async def test_a_gap_behind_what_is_in_flight_waits_for_it(pair: Pair) -> None:
    for channel in ("a", "b"):
        pair.buffer.post(channel, b"")
    pair.send()
    pair.buffer.refuse(2, 1, error("NUMBER_GAP", ""), FOR_ITS_NUMBER)
    assert not pair.buffer.is_adrift
    pair.buffer.answer(entry(1, 1))
    assert pair.buffer.is_adrift


async def test_what_the_server_has_of_a_frame_is_sent_as_a_frame(pair: Pair) -> None:
    """A server that stored the first records of a frame answers them as duplicates; the others are new."""
    publication = pair.buffer.publish_many("a", [b"%d" % number for number in range(5)])
    pair.buffer.take()
    pair.buffer.suspend()
    pair.buffer.resume(2)
    assert publishes_of(pair.buffer) == [(2, 1), (3, 3)]
    pair.buffer.answer(entry(1, 2, 1, duplicate=1) + entry(3, 3, 3))
    assert [(receipt.first, receipt.count, receipt.duplicate) for receipt in publication.result()] == [
        (1, 2, True),
        (3, 3, False),
    ]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_answers_before_a_lost_connection_are_given_again(pair: Pair, cancelled: bool) -> None:
    """A publication over two frames, each of them half answered when the connection goes."""
    publication = pair.buffer.publish_many("a", [b"x" * 20_000] * 6)
    alone = pair.buffer.publish("b", b"")
    assert publishes_of(pair.buffer) == [(3, 1), (3, 4), (1, 7)]
    pair.buffer.answer(entry(1, 2, 1))
    pair.buffer.answer(entry(4, 1, 4))
    assert publication.cancel() if cancelled else not publication.done()
    pair.buffer.suspend()
    pair.buffer.resume(0)
    assert publishes_of(pair.buffer) == [(3, 1), (3, 4), (1, 7)]
    pair.buffer.answer(entry(1, 3, 11))
    assert publication.done() == cancelled
    pair.buffer.answer(entry(4, 3, 14))
    pair.buffer.answer(entry(7, 1, 1))
    assert alone.result().first == 1
    if cancelled:
        assert publication.cancelled()
    else:
        assert [(receipt.first, receipt.count) for receipt in publication.result()] == [(11, 6)]
    assert pair.buffer.records_unanswered == 0


async def test_a_frame_that_was_answered_in_part_is_answered_anew(pair: Pair) -> None:
    """Three publications in one frame, of which the connection answered the first and a part of the last."""
    first, second = (pair.buffer.publish_many("a", [b"x", b"y"]) for _ in range(2))
    third = pair.buffer.publish_many("a", [b"z"] * 3)
    assert publishes_of(pair.buffer) == [(7, 1)]
    pair.buffer.answer(entry(1, 2, 1) + entry(5, 1, 5))
    assert not any(publication.done() for publication in (first, second, third))
    pair.buffer.suspend()
    pair.buffer.resume(0)
    assert publishes_of(pair.buffer) == [(7, 1)]
    pair.buffer.answer(entry(1, 7, 21))
    assert [(receipt.first, receipt.count) for receipt in first.result()] == [(21, 2)]
    assert [(receipt.first, receipt.count) for receipt in second.result()] == [(23, 2)]
    assert [(receipt.first, receipt.count) for receipt in third.result()] == [(25, 3)]


def publishes_of(buffer: PublishBuffer) -> list[tuple[int, int]]:
    """Take all that there is to send; return the count and the first number of each PUBLISH."""
    return [twin.PUBLISH_HEADER.unpack_from(body)[1:] for body in publish_bodies(buffer)]


def publish_bodies(buffer: PublishBuffer) -> list[bytes]:
    """Take all that there is to send; return the bodies of its PUBLISH frames."""
    bodies = []
    while (block := buffer.take(1 << 30)) is not None:
        bodies += [frame.body for frame in twin.frames_of(block) if frame.kind == twin.PUBLISH]
    return bodies


@pytest.mark.parametrize(
    ("second", "merged"),
    [
        (entry(3, 2, 3), 1),
        (entry(3, 2, 4), 2),
        (entry(3, 2, 3, level=2), 2),
        (entry(3, 2, 3, epoch=EPOCH + 1), 2),
        (entry(3, 2, 3, duplicate=1), 2),
    ],
)
async def test_receipts_are_merged_when_they_say_the_same(pair: Pair, second: bytes, merged: int) -> None:
    publication = pair.buffer.publish_many("a", [b""] * 4)
    pair.send()
    pair.buffer.answer(second)
    pair.buffer.answer(entry(1, 2, 1))
    receipts = publication.result()
    assert [receipt.first for receipt in receipts] == [1, twin.PUBLISHED_ENTRY.unpack(second)[2]][:merged]
    assert sum(receipt.count for receipt in receipts) == 4


async def test_nothing_to_publish_is_published_at_once(pair: Pair) -> None:
    publication = pair.buffer.publish_many("a", [])
    assert publication.done()
    assert await publication == []
    assert pair.buffer.take() is None


async def test_a_lower_level_is_not_counted_as_synced(pair: Pair) -> None:
    for _ in range(2):
        pair.buffer.post("a", b"")
    pair.send()
    pair.buffer.answer(entry(1, 1, 1) + entry(2, 1, 2, level=2))
    assert (pair.buffer.answered_highest, pair.buffer.synced_highest) == (2, 1)


async def test_a_line_that_the_server_lost_concerns_what_was_sent(pair: Pair) -> None:
    """Of two closed frames one was sent: it is unknown, the other one goes on."""
    sent, unsent = pair.buffer.publish("a", bytes(10_000)), pair.buffer.publish("b", b"")
    assert pair.buffer.take(1) is not None
    pair.buffer.suspend()
    pair.buffer.resume(0, UNKNOWN)
    assert sent.exception() is UNKNOWN
    assert not unsent.done()
    (body,) = publish_bodies(pair.buffer)
    assert twin.PUBLISH_HEADER.unpack_from(body)[1:] == (1, 1)


async def test_closing_passes_over_what_was_answered(pair: Pair) -> None:
    first, second = pair.buffer.publish("a", b""), pair.buffer.publish("b", b"")
    pair.send()
    pair.buffer.answer(entry(2, 1))
    pair.buffer.close(CLOSED, UNKNOWN)
    assert (first.exception(), second.exception()) == (UNKNOWN, None)


async def test_a_channel_whose_name_was_refused_says_so_and_is_named_again(pair: Pair) -> None:
    others, refused = pair.buffer.publish("a", b""), pair.buffer.publish("b", b"")
    pair.send()
    failure = error("NO_PROFILE", "b")
    pair.buffer.refuse_channel(1, failure)
    pair.buffer.refuse_channel(7, failure)  # it has no such number
    pair.buffer.refuse(2, 1, error("TOO_MANY_CHANNELS", ""), FOR_GOOD)
    pair.buffer.answer(entry(1, 1))
    assert refused.exception() is failure
    assert others.exception() is None
    again = pair.buffer.publish("b", b"")
    pair.buffer.post("a", b"")
    block = pair.buffer.take()
    assert [frame.body[4:] for frame in twin.frames_of(block) if frame.kind == twin.CHANNEL] == [b"b"]
    pair.buffer.refuse(2, 1, error("TOO_MANY_CHANNELS", ""), FOR_GOOD)
    assert again.exception().name == "TOO_MANY_CHANNELS"  # type: ignore[union-attr]


async def test_a_channel_of_an_earlier_connection_has_no_number(pair: Pair) -> None:
    pair.buffer.post("a", b"")
    pair.lose(1 << 20, 0)
    pair.buffer.refuse_channel(0, UNKNOWN)  # nothing was named to this connection yet
    publication = pair.buffer.publish("a", b"")
    pair.settle()
    assert publication.exception() is None


async def test_a_slot_is_not_taken_from_what_is_in_flight(pair: Pair) -> None:
    pair.buffer.channels_max = 2
    for channel in ("a", "b"):
        pair.buffer.post(channel, b"")
    assert len(publish_bodies(pair.buffer)) == 2
    with pytest.raises(BrokerError, match="TOO_MANY_CHANNELS"):
        pair.buffer.post("c", b"")
    pair.buffer.answer(entry(2, 1))
    pair.buffer.post("c", b"")
    assert pair.buffer.records_unanswered == 2


# -- transactions ------------------------------------------------------------------------------------------------------


async def test_a_transaction_names_its_channels_before_itself(pair: Pair) -> None:
    pair.buffer.post("a", b"0")
    draft = Draft(pair.buffer)
    draft.publish("b", b"1", expect=(5, 6))
    draft.publish("a", b"2", key=b"k")
    draft.publish("b", b"3")
    assert len(draft) == 3
    draft.send()
    pair.buffer.post("c", b"4")
    frames = twin.frames_of(pair.buffer.take())
    one, two, three = (
        twin.build_record(twin.Record(payload, key=key)) for payload, key in ((b"1", None), (b"2", b"k"), (b"3", None))
    )
    plain = twin.publish_body(1, 2, [one])
    inner = [
        twin.build_frame(twin.PUBLISH, plain[:16] + struct.pack("<QQ", 5, 6) + plain[16:], flags=1),
        twin.build_frame(twin.PUBLISH, twin.publish_body(0, 3, [two])),
        twin.build_frame(twin.PUBLISH, twin.publish_body(1, 4, [three])),
    ]
    assert [frame.kind for frame in frames] == [twin.CHANNEL, twin.PUBLISH, twin.CHANNEL, twin.TRANSACTION]
    assert frames[2].body == b"\1\0\0\0b"
    assert frames[3].body == struct.pack("<II", 3, 0) + b"".join(inner)
    (behind,) = publish_bodies(pair.buffer)
    assert twin.PUBLISH_HEADER.unpack_from(behind) == (2, 1, 5)


async def test_a_draft_keeps_its_channels_and_gives_them_back(pair: Pair) -> None:
    pair.buffer.channels_max = 2
    draft = Draft(pair.buffer)
    draft.publish("a", b"1")
    draft.publish("b", b"2")
    with pytest.raises(BrokerError, match="TOO_MANY_CHANNELS"):
        pair.buffer.post("c", b"")
    draft.abandon()
    draft.abandon()
    pair.buffer.post("c", b"")
    pair.settle()
    assert list(pair.server.stored) == ["c"]
    for use in (lambda: draft.publish("a", b""), lambda: draft.send()):
        with pytest.raises(BrokerError, match="CLOSED"):
            use()


async def test_a_draft_that_nobody_has_any_more_gives_its_channels_back(pair: Pair) -> None:
    pair.buffer.channels_max = 1
    draft = Draft(pair.buffer)
    draft.publish("a", b"1")
    del draft
    gc.collect()
    pair.buffer.post("b", b"")


async def test_a_draft_is_bounded(pair: Pair) -> None:
    pair.buffer.transaction_bytes_max = 8 + 2 * (24 + 12 + 100)
    draft = Draft(pair.buffer)
    draft.publish("a", bytes(100))
    with pytest.raises(BrokerError, match="TRANSACTION_TOO_LARGE"):
        draft.publish("a", bytes(101))
    with pytest.raises(BrokerError, match="TRANSACTION_TOO_LARGE"):
        draft.publish("a", bytes(100), expect=(1, 1))
    draft.publish("a", bytes(100))
    draft.send()
    pair.settle()
    assert len(pair.server.stored["a"]) == 2


async def test_a_transaction_counts_for_the_bound(pair: Pair) -> None:
    pair.buffer.bytes_max = 1000
    draft = Draft(pair.buffer)
    draft.publish("a", bytes(900))
    pair.buffer.post("a", bytes(500))
    with pytest.raises(BrokerError, match="BUSY"):
        draft.send()
    pair.settle()
    publication = draft.send()
    assert pair.buffer.records_unanswered == 1
    pair.settle()
    assert [receipt.first for receipt in publication.result()] == [2]


async def test_closing_fails_a_transaction_as_a_whole(pair: Pair) -> None:
    sent, unsent = Draft(pair.buffer), Draft(pair.buffer)
    sent.publish("a", b"1")
    unsent.publish("a", b"2")
    first = sent.send()
    pair.buffer.take()
    second = unsent.send()
    left = Draft(pair.buffer)
    left.publish("a", b"3")
    pair.buffer.close(CLOSED, UNKNOWN)
    assert (first.exception(), second.exception()) == (UNKNOWN, CLOSED)
    for use in (lambda: left.publish("a", b""), lambda: left.send()):
        with pytest.raises(BrokerError, match="CLOSED"):
            use()


async def test_a_refused_name_is_why_a_transaction_is_refused(pair: Pair) -> None:
    draft = Draft(pair.buffer)
    for channel in ("a", "b"):
        draft.publish(channel, b"")
    publication = draft.send()
    pair.send()
    failure = error("NO_PROFILE", "b")
    pair.buffer.refuse_channel(1, failure)
    pair.buffer.refuse(1, 2, error("INVALID_CHANNEL", ""), FOR_GOOD)
    assert publication.exception() is failure


async def test_a_transaction_that_a_server_has_in_part_is_not_cut(pair: Pair) -> None:
    draft = Draft(pair.buffer)
    for payload in (b"1", b"2"):
        draft.publish("a", payload)
    draft.send()
    first = pair.buffer.take()
    pair.buffer.suspend()
    pair.buffer.resume(1)
    assert pair.buffer.take() == first


# -- outcomes ----------------------------------------------------------------------------------------------------------


async def test_failures_that_nobody_waits_for_are_counted(pair: Pair) -> None:
    for _ in range(3):
        pair.buffer.post("no.a", b"")
    awaited = pair.buffer.publish("no.a", b"")
    pair.settle()
    assert awaited.exception() is not None
    failure, count = pair.buffer.take_failure() or (None, 0)
    assert (failure.name, count) == ("NO_PROFILE", 3)  # type: ignore[union-attr]
    assert pair.buffer.take_failure() is None


async def test_a_publication_is_a_future_to_asyncio(loop_kind: str) -> None:
    pair = Pair(asyncio.get_running_loop())

    def publish() -> Publication[Any]:
        return pair.buffer.publish("a", b"")

    publications = [publish() for _ in range(4)]
    awaited = asyncio.create_task(publications[0])
    shielded = asyncio.shield(publications[1])
    gathered = asyncio.gather(publications[2], publications[3])
    await asyncio.sleep(0)
    assert not awaited.done()
    pair.settle()
    assert (await awaited).sequence == 1
    assert (await shielded).sequence == 2
    assert [receipt.sequence for receipt in await gathered] == [3, 4]
    assert (await publications[0]).sequence == 1
    late: list[Any] = []
    publications[0].add_done_callback(late.append)
    await asyncio.sleep(0)
    assert late == [publications[0]]


async def test_a_publication_is_a_coroutine_to_those_who_drive_one(pair: Pair) -> None:
    """What `create_task` asks of one, by hand."""
    publication = pair.buffer.publish("a", b"")
    assert publication.send(None) is publication
    assert publication.cancel()
    assert not publication.cancel()
    with pytest.raises(asyncio.CancelledError):
        publication.send(None)
    with pytest.raises(ValueError, match="thrown"):
        publication.throw(ValueError("thrown"))
    with pytest.raises(KeyError, match="'thrown'"):
        publication.throw(KeyError, KeyError("thrown"))
    publication.close()
    pair.settle()
    assert publication.cancelled()


async def test_an_outcome_is_asked_for_in_time(pair: Pair) -> None:
    publication = pair.buffer.publish("no.a", b"")
    for ask in (publication.result, publication.exception):
        with pytest.raises(asyncio.InvalidStateError):
            ask()
    pair.settle()
    for _ in range(2):
        with pytest.raises(BrokerError, match="NO_PROFILE"):
            publication.result()
        with pytest.raises(BrokerError, match="NO_PROFILE"):
            await publication
    cancelled = pair.buffer.publish("a", b"")
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(asyncio.CancelledError):
        cancelled.exception()


async def test_a_callback_that_was_removed_in_time_does_not_run(pair: Pair) -> None:
    publication = pair.buffer.publish("a", b"")
    ran: list[object] = []
    publication.add_done_callback(ran.append)
    pair.settle()
    assert publication.done()
    assert publication.remove_done_callback(ran.append) == 1
    await asyncio.sleep(0)
    assert ran == []


async def test_cancelling_one_wait_concerns_nobody_else(loop_kind: str) -> None:
    pair = Pair(asyncio.get_running_loop())

    async def publish() -> int:
        sequence: int = (await pair.buffer.publish("a", b"")).sequence
        return sequence

    tasks = [asyncio.create_task(publish()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pair.buffer.publish("a", b""), 0.001)
    pair.settle()
    assert await tasks[0] == 1
    assert await tasks[2] == 3
    assert tasks[1].cancelled()
    assert len(pair.server.stored["a"]) == 4


async def test_callbacks_run_in_their_context_and_their_errors_reach_the_loop(
    pair: Pair, loop_exceptions: list[dict[str, Any]]
) -> None:
    publication = pair.buffer.publish("a", b"")
    ran: list[int] = []

    def first(_: object) -> None:
        raise ValueError("in a callback")

    def second(_: object) -> None:
        ran.append(2)

    publication.add_done_callback(first)
    publication.add_done_callback(second)
    publication.add_done_callback(ran.append)  # type: ignore[arg-type]
    assert publication.remove_done_callback(ran.append) == 1  # type: ignore[arg-type]
    assert publication.remove_done_callback(ran.append) == 0  # type: ignore[arg-type]
    pair.settle()
    await asyncio.sleep(0)
    assert ran == [2]
    assert [str(context["exception"]) for context in loop_exceptions] == ["in a callback"]
    loop_exceptions.clear()


async def test_closing_tells_what_was_sent_from_what_was_not(pair: Pair) -> None:
    answered = pair.buffer.publish("a", b"1")
    pair.settle()
    sent = pair.buffer.publish("a", b"2")
    pair.send()
    unsent = pair.buffer.publish("a", b"3")
    pair.buffer.close(CLOSED, UNKNOWN)
    assert answered.exception() is None
    assert sent.exception() is UNKNOWN
    assert unsent.exception() is CLOSED
    with pytest.raises(BrokerError, match="CLOSED"):
        pair.buffer.post("a", b"4")
    assert pair.buffer.unanswered_bytes == 0


async def test_nothing_is_kept_alive() -> None:
    class Marker:
        """Something that a callback holds."""

    marker = Marker()
    gone = weakref.ref(marker)
    pair = Pair(asyncio.get_running_loop())
    publication = pair.buffer.publish("a", b"")
    publication.add_done_callback(lambda _, kept=marker: None)  # type: ignore[misc]
    many = pair.buffer.publish_many("a", [b""] * 3)
    del marker
    pair.settle()
    await asyncio.sleep(0)
    assert many.done()
    del publication
    gc.collect()
    assert gone() is None


# -- a server that lies ------------------------------------------------------------------------------------------------


def published(*entries: tuple[int, int]) -> bytes:
    """Return a PUBLISHED body: (number, count) of each entry."""
    return b"".join(twin.PUBLISHED_ENTRY.pack(number, EPOCH, number, count, 0, 3, 0, b"") for number, count in entries)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([(1, 1), (1, 1), (1, 1)], id="one for all"),
        pytest.param([(1, 2), (2, 1)], id="overlapping"),
        pytest.param([(2, 2), (3, 1)], id="the first is missing"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_as_many_answers_as_records_are_not_one_for_each(
    pair: Pair, entries: list[tuple[int, int]], together: bool
) -> None:
    if together:
        waiting: list[Publication[Any]] = [pair.buffer.publish_many("x.y", [b"1", b"2", b"3"])]
    else:
        waiting = [pair.buffer.publish("x.y", payload) for payload in (b"1", b"2", b"3")]
    pair.send()
    with pytest.raises(BrokerError, match="twice"):
        pair.buffer.answer(published(*entries))
    pair.answers.clear()
    pair.buffer.suspend()
    pair.buffer.resume(pair.server.connect())
    pair.settle()
    assert all(publication.done() for publication in waiting)


async def test_answers_in_any_order_are_one_for_each(pair: Pair) -> None:
    publication = pair.buffer.publish_many("x.y", [b"1", b"2", b"3"])
    pair.send()
    pair.buffer.answer(published((3, 1), (1, 1)))
    assert not publication.done()
    pair.buffer.answer(published((2, 1)))
    (receipt,) = publication.result()
    assert (receipt.first, receipt.count) == (1, 3)


@pytest.mark.parametrize("number", [0, 1, 2, 2**64 - 1])
async def test_an_answer_for_no_numbers_is_malformed(pair: Pair, number: int) -> None:
    pair.buffer.post("x.y", b"1")
    pair.send()
    with pytest.raises(BrokerError, match="no numbers"):
        pair.buffer.answer(published((number, 0)))
    assert pair.buffer.answered_highest == 0
