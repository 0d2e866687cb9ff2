"""The publishing half of the client's codec against the server's half in plain Python: the line, retries, outcomes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model.errors import BrokerError, error
from broker.model.names import check_channel
from broker_native.posting import Publication, PublishBuffer
from tests.reference import frames as twin
from tests.reference.posting import EPOCH, LineServer, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

FOR_GOOD, FOR_ITS_NUMBER, FOR_ONE_RECORD = 0, 1, 2
VERDICTS = {"NUMBER_GAP": FOR_ITS_NUMBER, "PAYLOAD_TOO_LARGE": FOR_ONE_RECORD, "NO_PROFILE": FOR_GOOD}
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
                assert len(frame.body) <= 60 * 1024 + 16 or count == 1
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
        self.count = 0

    def post(self, channel: str, bad: bool, how: str, many: int) -> None:
        payloads = [b"%s %d" % (b"bad" if bad else b"ok", self.count + index) for index in range(many)]
        self.count += many
        self.posted.setdefault(channel, []).extend(payloads)
        if how == "post":
            for payload in payloads:
                self.pair.buffer.post(channel, payload)
        elif how == "publish":
            for payload in payloads:
                self.publications.append((channel, [payload], self.pair.buffer.publish(channel, payload)))
        else:
            self.publications.append((channel, payloads, self.pair.buffer.publish_many(channel, payloads)))

    def judge(self) -> None:
        """Everything good is stored once and in order, and every call was answered with the truth."""
        good = {
            channel: [payload for payload in payloads if not payload.startswith(b"bad")]
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
