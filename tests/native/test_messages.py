"""The reading half of the client's codec against the plain-Python twin: frames at every split, damage, cursors."""

from __future__ import annotations

import asyncio
import random
import struct
import weakref
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import BrokerError, MalformedFrame, error
from broker_native.messages import Batch, Cursor, FrameReader
from tests.reference import frames as twin
from tests.reference.groups import Chunk, build_chunk

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1024
LIMIT = 256 * KIB
JOURNAL = bytes(range(16))


class Target:
    """What deliveries are handed to; only its identity counts."""


def chunk_bytes(records: list[twin.Record], *, first: int = 1, time_us: int = 1000, count: int | None = None) -> bytes:
    covered = sum(record.run for record in records) if count is None else count
    return build_chunk(Chunk(7, 9, first, covered, b"".join(map(twin.build_record, records)), time_us))


def deliver(chunk: bytes, *, subscription: int = 1, index: int = 0, group: int = 5, name: bytes | None = None) -> bytes:
    told = b"" if name is None else bytes([len(name)]) + name
    body = twin.DELIVER_HEADER.pack(subscription, index, group) + told + chunk
    return twin.build_frame(twin.DELIVER, body, 0 if name is None else twin.DELIVER_NAME)


def reader_of(target: object, literal: str | None = "a.b") -> FrameReader:
    reader = FrameReader(error, LIMIT)
    reader.journal = JOURNAL
    reader.add_route(1, target, literal)
    return reader


def batch_of(records: list[twin.Record], **fields: Any) -> Batch:
    """Return the batch that a chunk of these records becomes."""
    reader = reader_of(Target())
    ((_, batch),) = reader.feed(deliver(chunk_bytes(records, **fields)))
    assert isinstance(batch, Batch)
    return batch


def described(batch: Batch) -> list[tuple[int, twin.Record]]:
    """Return the messages of a batch in the twin's words."""
    return [
        (
            message.sequence,
            twin.Record(
                payload=message.payload,
                time_us=message.time - batch.time_us,
                publisher=None if message.publisher is None else message.publisher.encode(),
                priority=None if message.priority == 2 else message.priority,
                expiry_s=message.expiry_s,
                key=message.key,
                headers=msgpack.packb(message.headers) if message.headers else None,
            ),
        )
        for message in batch
    ]


records = st.builds(
    twin.Record,
    payload=st.binary(max_size=40),
    time_us=st.integers(0, 2**32 - 1),
    publisher=st.none() | st.text("abc", max_size=20).map(str.encode),
    priority=st.none() | st.sampled_from([0, 1, 3]),
    expiry_s=st.none() | st.integers(1, 2**32 - 1),
    key=st.none() | st.binary(min_size=1, max_size=255),
    headers=st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 99), min_size=1).map(msgpack.packb),
)
gone = st.builds(twin.Record, gone=st.tuples(st.integers(1, 5), st.integers(1, 1000)))


# -- batches -----------------------------------------------------------------------------------------------------------


@given(st.lists(records | gone, min_size=1, max_size=8), st.integers(1, 2**63), st.integers(0, 2**60))
def test_a_batch_says_what_its_chunk_says(content: list[twin.Record], first: int, time_us: int) -> None:
    batch = batch_of(content, first=first, time_us=time_us)
    expected, runs, sequence = [], [], first
    for record in content:
        if record.gone is None:
            expected.append((sequence, record))
        else:
            runs.append((sequence, record.gone[1], record.gone[0]))
        sequence += record.run
    assert described(batch) == expected
    assert batch.gone == runs
    assert batch.has_gone == bool(runs)
    assert batch.payloads() == [record.payload for _, record in expected]
    assert (len(batch), batch.first, batch.last) == (len(expected), first, sequence - 1)
    assert (batch.channel, batch.channel_id, batch.epoch, batch.time_us) == ("a.b", 7, 9, time_us)


@given(st.lists(records | gone, min_size=1, max_size=6), st.data())
def test_what_is_clipped_is_the_beginning(content: list[twin.Record], data: st.DataObject) -> None:
    batch = batch_of(content, first=100)
    at = data.draw(st.integers(90, batch.last + 2) | st.just(batch.last))
    rest = batch.after(at)
    if at < 100:
        assert rest is batch
    elif at >= batch.last:
        assert rest is None
    else:
        assert rest is not None
        assert described(rest) == [item for item in described(batch) if item[0] > at]
        assert len(rest) == len(described(rest))
        assert rest.last == batch.last
        # A run that reaches past the cut stays whole.
        assert rest.gone == [run for run in batch.gone if run[0] + run[1] - 1 > at]


def test_places_follow_the_early_rule() -> None:
    chunk = chunk_bytes([twin.Record(b"x")])
    reader = reader_of(Target())
    for flags, group, place in (
        (0, 5, (JOURNAL, 5, 3)),
        (twin.DELIVER_EARLY, 5, (JOURNAL, 3, 2**32 - 1)),
        (twin.DELIVER_EARLY, 3, (JOURNAL, 1, 2**32 - 1)),
        (twin.DELIVER_EARLY, 2, None),
        (0, 0, None),
    ):
        body = twin.DELIVER_HEADER.pack(1, 3, group) + chunk
        ((_, batch),) = reader.feed(twin.build_frame(twin.DELIVER, body, flags))
        assert batch.bus_position == place
        assert batch.early == bool(flags)


def test_headers_that_are_no_map_are_an_error_of_who_reads_them() -> None:
    for packed in (msgpack.packb([1]), b"\xc1", b"\x81\xa1", b"\x81\x91\xa1a\x01"):
        (message,) = batch_of([twin.Record(b"x", headers=packed)])
        assert message.payload == b"x"
        with pytest.raises(ValueError, match=r".*"):
            _ = message.headers


def test_messages_keep_their_batch_and_nothing_else() -> None:
    target = Target()
    reader = reader_of(target)
    ((_, batch),) = reader.feed(deliver(chunk_bytes([twin.Record(b"first"), twin.Record(b"second")])))
    gone_target = weakref.ref(target)
    message = list(batch)[1]
    del batch, reader, target, _
    assert gone_target() is None
    assert message.payload is message.payload
    assert message.payload == b"second"


# -- frames ------------------------------------------------------------------------------------------------------------


def conversation() -> tuple[bytes, int]:
    """Return a stream of deliveries and other frames, and how many frames it has."""
    big = [twin.Record(bytes([index]) * 3000) for index in range(4)]
    frames = [
        twin.build_frame(2, b"welcome"),
        deliver(chunk_bytes([twin.Record(b"")])),
        twin.build_frame(5, b""),
        deliver(chunk_bytes(big, first=2)),
        twin.build_frame(17, bytes(40)),
        deliver(chunk_bytes([twin.Record(b"last")], first=6), subscription=2, name=b"x.y"),
        deliver(chunk_bytes([twin.Record(b"again")], first=7), subscription=2),
    ]
    return b"".join(frames), len(frames)


def heard(pieces: list[bytes]) -> list[Any]:
    """Feed a stream in pieces; return what comes out, in comparable form."""
    one, two = Target(), Target()
    reader = reader_of(one)
    reader.add_route(2, two)
    found: list[Any] = []
    for piece in pieces:
        for item in reader.feed(piece):
            if len(item) == 2:
                target, batch = item
                found.append((target is one, batch.channel, batch.first, batch.payloads()))
            else:
                found.append(item)
    assert reader.failure is None
    return found


def test_frames_come_out_whole_at_every_split() -> None:
    stream, count = conversation()
    whole = heard([stream])
    assert len(whole) == count
    assert heard([stream[at : at + 1] for at in range(len(stream))]) == whole
    splits = set(range(300)) | set(range(len(stream) - 300, len(stream))) | set(range(0, len(stream), 97))
    for at in sorted(splits):
        assert heard([stream[:at], stream[at:]]) == whole


def test_frames_come_out_whole_in_random_pieces() -> None:
    stream, _ = conversation()
    whole = heard([stream])
    chance = random.Random(7)
    for _ in range(200):
        cuts = sorted(chance.sample(range(len(stream)), chance.randint(0, 30)))
        assert heard([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]) == whole


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 30))
def test_the_twin_reads_the_same_frames(bodies: list[bytes], cut: int) -> None:
    stream = b"".join(twin.build_frame(5, body, flags=len(body)) for body in bodies)
    reader = FrameReader(error, LIMIT)
    found = reader.feed(stream[:cut]) + reader.feed(stream[cut:])
    assert [twin.Frame(*item) for item in found] == twin.frames_of(stream)


def test_a_reader_takes_any_buffer_and_keeps_none() -> None:
    frame = bytearray(deliver(chunk_bytes([twin.Record(b"kept")])))
    reader = reader_of(Target())
    ((_, batch),) = reader.feed(memoryview(frame))
    frame[:] = bytes(len(frame))
    del frame[:]
    assert batch.payloads() == [b"kept"]


def refused(frame: bytes, literal: str | None = "a.b") -> str:
    """Feed one frame that is not legal, behind one that is; return why it is refused."""
    reader = reader_of(Target(), literal)
    assert reader.feed(twin.build_frame(5, b"before") + frame) == [(5, 0, b"before")]
    assert isinstance(reader.failure, BrokerError)
    # Nothing is read from then on, however good.
    assert reader.feed(twin.build_frame(5, b"after")) == []
    return f"{reader.failure.name} {reader.failure.detail}"


def test_every_flipped_bit_of_a_chunk_is_found() -> None:
    chunk = chunk_bytes([twin.Record(b"some payload", key=b"k"), twin.Record(gone=(1, 3))])
    for bit in range(8 * len(chunk)):
        damaged = bytearray(chunk)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(deliver(bytes(damaged))).startswith("MALFORMED_FRAME DELIVER")


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (twin.build_frame(5, bytes(LIMIT + 1)), "FRAME_TOO_LARGE"),
        (struct.pack("<IBBH", 2**32 - 1, 18, 0, 0), "FRAME_TOO_LARGE"),
        (twin.build_frame(5, b"", reserved=1), "MALFORMED_FRAME"),
        (twin.build_frame(twin.DELIVER, bytes(15)), "MALFORMED_FRAME DELIVER: a bad header"),
        (twin.build_frame(twin.DELIVER, bytes(80), flags=4), "MALFORMED_FRAME DELIVER: a bad header"),
        (twin.build_frame(twin.DELIVER, bytes(16), flags=1), "MALFORMED_FRAME DELIVER: a name"),
        (twin.build_frame(twin.DELIVER, bytes(16) + b"\xff", flags=1), "MALFORMED_FRAME DELIVER: a name"),
        (deliver(chunk_bytes([twin.Record(b"")]), subscription=2), "MALFORMED_FRAME DELIVER: unknown subscription 2"),
        (deliver(chunk_bytes([twin.Record(b"")]), name=b"\xff"), "MALFORMED_FRAME DELIVER: a channel's name"),
        (deliver(b""), "MALFORMED_FRAME DELIVER: got 0 bytes"),
        (deliver(chunk_bytes([twin.Record(b"")])[:-1]), "MALFORMED_FRAME DELIVER: got"),
        (deliver(chunk_bytes([twin.Record(b"")]) + b"\0"), "MALFORMED_FRAME DELIVER: got"),
        (deliver(chunk_bytes([])), "MALFORMED_FRAME DELIVER: a chunk's records"),
        (deliver(chunk_bytes([twin.Record(b"")], count=2)), "MALFORMED_FRAME DELIVER: a chunk's records"),
        (deliver(chunk_bytes([twin.Record(b"")], first=0)), "MALFORMED_FRAME DELIVER: a chunk's records"),
        (deliver(chunk_bytes([twin.Record(gone=(1, 2))], first=2**64 - 1)), "MALFORMED_FRAME DELIVER: a chunk's"),
    ],
)
def test_what_is_not_legal_is_refused(frame: bytes, why: str) -> None:
    assert refused(frame).startswith(why)


def test_a_channel_that_was_never_named_is_refused() -> None:
    assert "never named" in refused(deliver(chunk_bytes([twin.Record(b"")])), literal=None)


@pytest.mark.parametrize(
    "record",
    [
        twin.build_record(twin.Record(b""), size=11),
        twin.build_record(twin.Record(b""), size=13),
        twin.build_record(twin.Record(b"x"), reserved=1),
        *(twin.build_record(twin.Record(b""), flags=1 << bit) for bit in range(6)),
        *(twin.build_record(twin.Record(b"x"), flags=1 << bit) for bit in range(6, 16)),
        twin.build_record(twin.Record(b"\5abcd"), flags=twin.PUBLISHER),
        twin.build_record(twin.Record(b"\5\0abcd"), flags=twin.KEY),
        twin.build_record(twin.Record(b"\5\0abcd"), flags=twin.HEADERS),
        twin.build_record(twin.Record(gone=(1, 0))),
        b"",
        twin.build_record(twin.Record(b""))[:11],
        twin.build_record(twin.Record(b"whole")) + bytes(11),
        twin.build_record(twin.Record(b"payload", gone=(1, 1))),
        twin.build_record(twin.Record(bytes(8), gone=None, priority=1), flags=twin.GONE | twin.PRIORITY),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: bytes) -> None:
    chunk = build_chunk(Chunk(7, 9, 1, 1, record))
    assert "a chunk's records" in refused(deliver(chunk))


def test_fields_behind_a_number_are_found() -> None:
    """A record may carry its number in the publisher's line, which a reader passes over."""
    fields: dict[str, Any] = {"publisher": b"ann", "priority": 1, "key": b"key", "headers": b"\x81\xa1a\x01"}
    numbered = batch_of([twin.Record(b"payload", number=2**64 - 1, **fields)])
    assert described(numbered) == described(batch_of([twin.Record(b"payload", **fields)]))
    assert numbered.payloads() == [b"payload"]


@pytest.mark.parametrize("piece", [1, 7, 100, 999])
def test_a_frame_as_large_as_may_be_comes_in_pieces(piece: int) -> None:
    """What is kept of it doubles with what has come, and never passes the limit."""
    reader = FrameReader(error, 1000)
    frame = twin.build_frame(5, bytes(range(250)) * 4)
    found = [item for at in range(0, len(frame), piece) for item in reader.feed(frame[at : at + piece])]
    assert found == [(5, 0, frame[8:])]
    assert reader.failure is None


def test_chunks_of_a_reply() -> None:
    """One behind the other, of a channel that is told, with a place or without."""
    reader = FrameReader(error, 0)
    reader.journal = bytes(16)
    one = chunk_bytes([twin.Record(b"a"), twin.Record(b"b")])
    two = chunk_bytes([twin.Record(b"c", key=b"k")], first=3)
    batches = reader.chunks(one + two, "a.b")
    assert [(batch.channel, batch.first, batch.last, batch.group) for batch in batches] == [
        ("a.b", 1, 2, 0), ("a.b", 3, 3, 0),
    ]  # fmt: skip
    assert [message.payload for batch in batches for message in batch] == [b"a", b"b", b"c"]
    assert batches[0].bus_position is None
    (placed,) = reader.chunks(two, "a.b", 9, 4)
    assert (placed.group, placed.index) == (9, 4)
    assert reader.chunks(b"", "a.b") == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:40],
        lambda data: data[:4] + bytes([data[4] ^ 1]) + data[5:],
        lambda data: (1 << 31).to_bytes(4, "little") + data[4:],
        lambda data: bytes(4) + data[4:],
    ],
)
def test_what_is_no_chunk_of_a_reply_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = chunk_bytes([twin.Record(b"a")])
    with pytest.raises(MalformedFrame):
        FrameReader(error, 0).chunks(spoil(data), "a.b")


def test_a_muted_route_drops_and_a_dropped_one_is_unknown() -> None:
    reader = reader_of(Target())
    frame = deliver(chunk_bytes([twin.Record(b"")]))
    reader.add_route(1, None)
    assert reader.feed(frame) == []
    assert reader.failure is None
    reader.drop_route(1)
    reader.feed(frame)
    assert reader.failure is not None


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_noise_never_harms(noise: bytes, cut: int) -> None:
    reader = reader_of(Target())
    for piece in (noise[:cut], noise[cut:]):
        reader.feed(piece)


# -- the cursor --------------------------------------------------------------------------------------------------------


class Reading:
    """A cursor with the consumed bytes that it has reported."""

    def __init__(self, report_bytes: int = 1) -> None:
        self.reported: list[int] = []
        self.cursor = Cursor(asyncio.get_running_loop(), report_bytes, self.reported.append)
        self.next_sequence = 1

    def push(self, *payloads: bytes) -> Batch:
        batch = batch_of([twin.Record(payload) for payload in payloads], first=self.next_sequence)
        self.next_sequence += len(payloads)
        self.cursor.push(batch)
        return batch


async def test_messages_and_batches_share_one_cursor() -> None:
    reading = Reading()
    reading.push(b"1", b"2", b"3")
    reading.push(b"4")
    reading.push(b"5", b"6")
    messages, batches = reading.cursor.messages(), reading.cursor.batches()
    assert (await anext(messages)).payload == b"1"
    assert (await anext(batches)).payloads() == [b"2", b"3"]
    assert (await anext(batches)).payloads() == [b"4"]
    assert (await anext(messages)).payload == b"5"
    assert (await anext(messages)).payload == b"6"


async def test_what_is_worked_on_is_consumed_when_the_next_is_asked_for() -> None:
    reading = Reading()
    first, second = reading.push(b"1", b"2"), reading.push(b"3")
    queued = first.size_bytes + second.size_bytes
    messages = reading.cursor.messages()
    await anext(messages)
    await anext(messages)
    assert (reading.reported, reading.cursor.queued_bytes) == ([], queued)
    await anext(messages)
    assert (reading.reported, reading.cursor.queued_bytes) == ([first.size_bytes], second.size_bytes)
    reading.cursor.end()
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
    assert sum(reading.reported) == queued
    assert reading.cursor.queued_bytes == 0


async def test_consumption_is_reported_in_portions() -> None:
    reading = Reading(report_bytes=1000)
    sizes = [reading.push(bytes(200)).size_bytes for _ in range(20)]
    reading.cursor.end()
    assert [len(batch) async for batch in reading.cursor.batches()] == [1] * 20
    assert all(portion >= 1000 for portion in reading.reported)
    assert sum(reading.reported) + reading.cursor.unreported() == sum(sizes)
    assert reading.cursor.unreported() == 0


async def test_what_is_passed_over_is_reported_without_a_reader() -> None:
    """Nobody reads, and still the credit of what is dropped comes back: else a resumed subscription would stall."""
    reading = Reading(report_bytes=300)
    batch = batch_of([twin.Record(bytes(50))])
    only_gone = batch_of([twin.Record(gone=(1, 5))])
    for _ in range(4):
        reading.cursor.pass_over(batch)
        reading.cursor.push(only_gone)
    assert sum(reading.reported) + reading.cursor.unreported() == 4 * (batch.size_bytes + only_gone.size_bytes)
    assert len(reading.reported) == 2
    assert reading.cursor.queued_bytes == 0


async def test_gone_runs_are_passed_over_and_consumed() -> None:
    reading = Reading()
    only_gone = batch_of([twin.Record(gone=(1, 5))], first=1)
    mixed = batch_of([twin.Record(gone=(1, 2)), twin.Record(b"x"), twin.Record(gone=(2, 3))], first=6)
    reading.cursor.push(only_gone)
    reading.cursor.push(mixed)
    reading.cursor.push(only_gone)
    reading.cursor.end()
    assert [(message.sequence, message.payload) async for message in reading.cursor.messages()] == [(8, b"x")]
    assert sum(reading.reported) == 2 * only_gone.size_bytes + mixed.size_bytes


async def test_a_reader_sleeps_until_something_comes(loop_kind: str) -> None:
    reading = Reading()
    reader = asyncio.ensure_future(anext(reading.cursor.messages()))
    await asyncio.sleep(0.01)
    assert not reader.done()
    reading.push(b"now")
    assert (await reader).payload == b"now"


async def test_many_readers_get_each_message_once(loop_kind: str) -> None:
    reading = Reading()
    stream = reading.cursor.messages()
    taken: list[bytes] = []

    async def read() -> None:
        async for message in stream:
            taken.append(message.payload)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(5)]
    for number in range(300):
        reading.push(b"%d" % number, b"%d+" % number)
        if number % 7 == 0:
            await asyncio.sleep(0)
    reading.cursor.end()
    await asyncio.gather(*readers)
    assert sorted(taken) == sorted(part for number in range(300) for part in (b"%d" % number, b"%d+" % number))


async def test_reads_that_time_out_take_nothing_and_leave_nothing(loop_kind: str) -> None:
    reading = Reading()
    stream = reading.cursor.messages()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.0001)
    reading.push(b"1")
    with pytest.raises(TimeoutError):
        # It is ready, and still the time is up before it is asked.
        await asyncio.wait_for(anext(stream), 0)
    assert (await asyncio.wait_for(anext(stream), 1)).payload == b"1"


async def test_a_failure_comes_after_what_is_queued() -> None:
    reading = Reading()
    reading.push(b"1")
    reading.cursor.end(ValueError("why"))
    stream = reading.cursor.messages()
    assert (await anext(stream)).payload == b"1"
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            await anext(stream)


async def test_an_end_at_once_drops_what_is_queued() -> None:
    reading = Reading()
    reading.push(b"1", b"2")
    stream = reading.cursor.messages()
    await anext(stream)
    reading.cursor.end(at_once=True)
    assert [message async for message in stream] == []


async def test_only_the_first_end_counts() -> None:
    reading = Reading()
    reading.cursor.end(ValueError("first"))
    reading.cursor.end(ValueError("second"), at_once=True)
    with pytest.raises(ValueError, match="first"):
        await anext(reading.cursor.messages())


async def test_waiting_readers_are_kept_when_those_who_gave_up_are_dropped(loop_kind: str) -> None:
    reading = Reading()
    stream = reading.cursor.messages()
    waiting = [asyncio.ensure_future(anext(stream)) for _ in range(20)]
    await asyncio.sleep(0)
    for reader in waiting[1::2]:
        reader.cancel()
    await asyncio.gather(*waiting[1::2], return_exceptions=True)
    late = [asyncio.ensure_future(anext(stream)) for _ in range(5)]
    await asyncio.sleep(0)
    reading.push(*[b"%d" % number for number in range(15)])
    payloads = [message.payload for message in await asyncio.gather(*waiting[::2], *late)]
    assert sorted(payloads) == sorted(b"%d" % number for number in range(15))


class Sleeper:
    """One thread that waits, as a cursor sees it."""

    def __init__(self) -> None:
        self.is_done = False
        self.woken = 0

    def done(self) -> bool:
        return self.is_done

    def set_result(self, _: None) -> None:
        self.woken += 1


def test_a_cursor_of_threads_hands_out_what_is_at_hand_and_wakes_who_waits() -> None:
    reported: list[int] = []
    cursor = Cursor(None, 1, reported.append)
    assert cursor.take_now(False) is None
    assert cursor.take_now(True) is None
    gave_up, waiting = [Sleeper() for _ in range(20)], Sleeper()
    for sleeper in gave_up:
        sleeper.is_done = True
        cursor.add_waiter(sleeper)
    cursor.add_waiter(waiting)
    batch = batch_of([twin.Record(b"1"), twin.Record(b"2")])
    cursor.push(batch)
    assert waiting.woken == 1
    assert not any(sleeper.woken for sleeper in gave_up)
    assert cursor.take_now(False).payload == b"1"
    assert cursor.take_now(True).payloads() == [b"2"]
    assert reported == []
    # It is consumed when the next is asked for.
    assert cursor.take_now(True) is None
    assert reported == [batch.size_bytes]
    late = Sleeper()
    cursor.add_waiter(late)
    cursor.end()
    assert late.woken == 1
    with pytest.raises(TypeError):
        cursor.add_waiter(None)


async def test_a_read_that_starts_later_looks_again(loop_kind: str) -> None:
    """Something was at hand when it was asked for, and is gone when its task starts."""
    reading = Reading()
    stream = reading.cursor.messages()
    reading.push(b"1")
    late = asyncio.ensure_future(anext(stream))
    assert (await anext(stream)).payload == b"1"
    await asyncio.sleep(0)
    assert not late.done()
    reading.push(b"2")
    assert (await late).payload == b"2"


async def test_an_awaitable_is_awaited_and_not_iterated() -> None:
    reading = Reading()
    with pytest.raises(RuntimeError, match="must be awaited"):
        next(reading.cursor.messages())  # type: ignore[call-overload]


async def test_a_batch_larger_than_a_turn_ends_it(loop_kind: str) -> None:
    reading = Reading()
    for _ in range(3):
        reading.push(*[b""] * 2000)
    reading.cursor.end()
    turns: list[int] = []
    loop = asyncio.get_running_loop()
    counts = []
    async for batch in reading.cursor.batches():
        counts.append(len(batch))
        loop.call_soon(turns.append, len(counts))
    assert counts == [2000] * 3
    assert turns == [1, 2, 3]


async def test_a_long_backlog_lets_the_loop_have_its_turn(loop_kind: str) -> None:
    reading = Reading()
    for _ in range(50):
        reading.push(*[b"x"] * 200)
    reading.cursor.end()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    loop.call_soon(turn)
    count = 0
    async for _ in reading.cursor.messages():
        count += 1
    assert count == 10_000
    assert turns >= 8


async def test_reading_at_hand_makes_no_future(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading()
    for _ in range(10):
        reading.push(*[b"x"] * 50)
    reading.cursor.end()
    loop = asyncio.get_running_loop()
    made: list[object] = []
    monkeypatch.setattr(loop, "create_future", lambda: made.append(1))
    assert len([message async for message in reading.cursor.messages()]) == 500
    assert made == []
