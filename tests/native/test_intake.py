"""A connection's way in against its twin: the same calls however the bytes are cut, and a spill that stays small."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.model.errors import BY_NAME
from broker_native.fanout import Fanout, Subscription
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails
from tests.reference import intake as twin
from tests.reference import tails as twin_tails
from tests.reference.frames import (
    ACK,
    CHANNEL,
    CREDIT,
    CREDIT_BODY,
    HELLO,
    PING,
    PUBLISH,
    SUBSCRIBE,
    Record,
    build_frame,
    build_record,
    publish_body,
    published_of,
)

FRAME_BYTES_MAX = 100_000
CREDIT_MAX = 1 << 40
NAMES = [b"e.x", b"s.x"]
NOW_US = 1_700_000_000_000_000
SUBSCRIPTIONS = [1, 7]


class Watched(Intake):
    """Writes down what is called."""

    def __init__(self, fanout: Fanout, buffer: ReadBuffer, clock: Clock) -> None:
        super().__init__(fanout, buffer, clock, FRAME_BYTES_MAX)
        self.calls: list[twin.Call] = []
        self.reads = 0
        self.pauses: list[bool] = []
        self.stops_at: twin.Call | None = None

    def note(self, *call: Any) -> None:
        self.calls.append(call)
        if call == self.stops_at:
            self.stop()

    def on_read(self) -> None:
        self.reads += 1

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        self.note("frame", kind, flags, body)

    def on_refused(self, code: int, slot: int, number: int, count: int) -> None:
        self.note("refused", code, slot, number, count)

    def on_duplicate(self, slot: int, number: int, count: int) -> None:
        self.note("duplicate", slot, number, count)

    def on_malformed(self, code: int, size: int) -> None:
        self.note("malformed", code, size)
        self.stop()

    def on_credit(self, subscription: Subscription) -> None:
        self.note("credit", subscription.number)

    def on_ack(self, body: bytes) -> None:
        self.note("ack", body)

    def on_put_off(self) -> None:
        self.pauses.append(True)

    def on_caught_up(self) -> None:
        self.pauses.append(False)

    def on_crowded(self, name: str, bytes_kept: int, limit: int, held_us: int) -> None:
        self.note("crowded", name, bytes_kept, limit, held_us)

    def on_failed(self, failure: Exception) -> None:
        self.note("failed", str(failure))


class Connection:
    """An intake with a publisher and two subscriptions."""

    def __init__(self, *, publishes: bool = True, subscribes: bool = True) -> None:
        self.tails = Tails(1, 4770)
        fanout = Fanout(self.tails)
        self.clock = Clock(manual=True)
        self.clock.manual_us = NOW_US
        self.intake = Watched(fanout, ReadBuffer(4096), self.clock)
        if publishes:
            self.intake.publisher = publisher = Publisher(self.tails, Line(b"p" * 16), self.intake, 100)
            for slot, name in enumerate(NAMES):
                self.tails.load(name, (1, 3)[slot], 2, 1_000)
                publisher.bind(slot, name)
        self.subscriptions = [Subscription(self.intake.outbox, number, 0, 0, False) for number in SUBSCRIPTIONS]
        if subscribes:
            self.intake.subscriptions = {subscription.number: subscription for subscription in self.subscriptions}
            for subscription in self.subscriptions:
                subscription.behind = True

    def state(self) -> tuple[Any, ...]:
        """Everything that the bytes have brought about."""
        self.tails.close_turn()
        return (
            self.intake.calls,
            self.intake.closed,
            [subscription.credit for subscription in self.subscriptions],
            [self.tails.info(name) for name in NAMES],
            [answers for _, answers in self.tails.take_turn_answers()],
            self.tails.close_group(0, 0, 0, 0, 0),
            [answers for _, answers in self.tails.take_answers()],
        )


def twin_state(stream: bytes, *, publishes: bool = True, subscribes: bool = True) -> tuple[Any, ...]:
    """Return what the twin makes of a stream."""
    tails = twin_tails.Tails(1)
    tails.now_us = NOW_US
    publisher = twin_tails.Publisher(tails, twin_tails.Line(b"p" * 16), 100) if publishes else None
    if publisher is not None:
        for slot, name in enumerate(NAMES):
            tails.load(name, (1, 3)[slot], 2, 1_000)
            publisher.bind(slot, name)
    credits = dict.fromkeys(SUBSCRIPTIONS, 0)
    intake = twin.Intake(publisher, credits if subscribes else None, FRAME_BYTES_MAX)
    intake.feed(stream)
    tails.close_turn()
    return (
        intake.calls,
        intake.closed,
        list(credits.values()),
        [tails.info(name) for name in NAMES],
        list(tails.take_turn_answers().values()),
        tails.close_group(0, 0, 0, 0, 0),
        list(tails.take_answers().values()),
    )


def publish(slot: int, number: int, *payloads: bytes) -> bytes:
    return build_frame(PUBLISH, publish_body(slot, number, [build_record(Record(payload)) for payload in payloads]))


def credit(number: int, more: int) -> bytes:
    return build_frame(CREDIT, CREDIT_BODY.pack(number, 0, more))


CONVERSATION = b"".join(
    [
        build_frame(HELLO, b"BROKER\0\1" + b"\x81\xa8versions\x91\1"),
        build_frame(CHANNEL, b"\0\0\0\0e.x"),
        build_frame(SUBSCRIBE, b"\x80"),
        publish(0, 1, b"ephemeral", b""),
        publish(1, 3, b"synced"),
        credit(1, 500),
        build_frame(PING, b"12345678"),
        publish(1, 4, b"", b"x" * 300),
        publish(1, 3, b"synced"),
        publish(1, 9, b"a gap"),
        publish(1, 5, b"overlap", b"overlap"),
        publish(9, 6, b"no channel"),
        publish(0, 6, b"too large" * 200),
        build_frame(PUBLISH, publish_body(1, 6, [b"no record"])),
        build_frame(PUBLISH, publish_body(1, 6, [build_record(Record(b"flags"))]), flags=1),
        credit(7, CREDIT_MAX),
        credit(8, 3),
        build_frame(CREDIT, b"no credit"),
        build_frame(CREDIT, CREDIT_BODY.pack(1, 0, 5), flags=2),
        build_frame(99, b""),
        build_frame(PING, b""),
        publish(0, 6, b"the last one"),
    ]
)
"""A bit of everything. Where it can be cut is at every byte."""


def test_conversation_is_what_it_seems() -> None:
    connection = Connection()
    connection.intake.feed(CONVERSATION)
    state = connection.state()
    assert state == twin_state(CONVERSATION)
    assert [call[:2] for call in state[0]] == [
        ("frame", HELLO),
        ("frame", CHANNEL),
        ("frame", SUBSCRIBE),
        ("credit", 1),
        ("frame", PING),
        ("duplicate", 1),
        ("refused", BY_NAME["NUMBER_GAP"].code),
        ("refused", BY_NAME["NUMBER_OVERLAP"].code),
        ("refused", BY_NAME["INVALID_CHANNEL"].code),
        ("refused", BY_NAME["PAYLOAD_TOO_LARGE"].code),
        ("refused", BY_NAME["INVALID_RECORD"].code),
        ("frame", PUBLISH),
        ("credit", 7),
        ("frame", CREDIT),
        ("frame", CREDIT),
        ("frame", 99),
        ("frame", PING),
    ]
    assert not state[1]


def test_cut_at_every_place() -> None:
    expected = twin_state(CONVERSATION)
    for at in range(len(CONVERSATION) + 1):
        connection = Connection()
        connection.intake.feed(CONVERSATION[:at])
        connection.intake.feed(CONVERSATION[at:])
        assert connection.state() == expected, f"cut at {at}"


def test_byte_by_byte() -> None:
    connection = Connection()
    for at in range(len(CONVERSATION)):
        connection.intake.feed(CONVERSATION[at : at + 1])
    assert connection.intake.reads == len(CONVERSATION)
    assert connection.state() == twin_state(CONVERSATION)


@settings(max_examples=200, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CONVERSATION)), max_size=30), through_buffer=st.booleans())
def test_cut_anywhere(cuts: list[int], through_buffer: bool) -> None:
    """In pieces of any size, through `feed` or through the loop's shared buffer."""
    connection = Connection()
    places = [0, *sorted(cuts), len(CONVERSATION)]
    for begin, end in itertools.pairwise(places):
        piece = CONVERSATION[begin:end]
        if through_buffer:
            for at in range(0, len(piece), 4096):
                part = piece[at : at + 4096]
                buffer = connection.intake.get_buffer(-1)
                buffer[: len(part)] = part
                connection.intake.buffer_updated(len(part))
                buffer[:] = b"\xff" * len(buffer)  # the next connection's bytes: nothing may be left in it
        else:
            connection.intake.feed(piece)
    assert connection.state() == twin_state(CONVERSATION)


junk = st.builds(
    lambda size, kind, flags, reserved, body: struct.pack("<IBBH", size, kind, flags, reserved) + body,
    st.one_of(st.integers(0, 30), st.sampled_from([FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 2**32 - 1])),
    st.sampled_from([0, PING, PUBLISH, CREDIT, 255]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 0, 1, 0x8000]),
    st.binary(max_size=40),
)
good_frames = st.sampled_from([publish(0, 1, b"x"), publish(1, 2, b"y"), credit(1, 5), build_frame(PING, b"12345678")])


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(junk | good_frames | st.binary(max_size=20), max_size=10), size=st.integers(1, 50))
@example(pieces=[build_frame(CREDIT, CREDIT_BODY.pack(SUBSCRIPTIONS[0], 16, 1))], size=1)
def test_any_bytes_are_taken_as_the_twin_does(pieces: list[bytes], size: int) -> None:
    stream = b"".join(pieces)
    connection = Connection()
    for at in range(0, len(stream), size):
        connection.intake.feed(stream[at : at + size])
    assert connection.state() == twin_state(stream)


def test_hot_frames_go_on_to_the_session_when_there_is_nobody_for_them() -> None:
    frames = publish(0, 1, b"x") + credit(1, 5)
    connection = Connection(publishes=False, subscribes=False)
    connection.intake.feed(frames)
    assert [call[:3] for call in connection.intake.calls] == [("frame", PUBLISH, 0), ("frame", CREDIT, 0)]
    assert connection.intake.calls == twin_state(frames, publishes=False, subscribes=False)[0]


# --- Refused bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "name", "detail"),
    [
        (struct.pack("<IBBH", FRAME_BYTES_MAX + 1, PING, 0, 0), "FRAME_TOO_LARGE", FRAME_BYTES_MAX + 1),
        (struct.pack("<IBBH", 2**32 - 1, PUBLISH, 0, 0), "FRAME_TOO_LARGE", 2**32 - 1),
        (build_frame(PING, b"12345678", reserved=1), "MALFORMED_FRAME", 1),
        (build_frame(PUBLISH, b"", reserved=0xFFFF), "MALFORMED_FRAME", 0xFFFF),
        (build_frame(PUBLISH, b"123456789012345"), "MALFORMED_FRAME", 15),
        (credit(1, CREDIT_MAX + 1), "MALFORMED_FRAME", 1 << 32),
        (credit(1, 2**64 - 1), "MALFORMED_FRAME", 1 << 32),
        (credit(1, CREDIT_MAX) + credit(1, 1) + credit(1, 1), "MALFORMED_FRAME", 1 << 32),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_malformed_ends_the_connection(frame: bytes, name: str, detail: int, whole: bool) -> None:
    connection = Connection()
    stream = build_frame(PING, b"before  ") + frame + build_frame(PING, b"behind  ")
    pieces = [stream] if whole else [stream[at : at + 1] for at in range(len(stream))]
    for piece in pieces:
        connection.intake.feed(piece)
    calls = connection.intake.calls
    assert calls[0] == ("frame", PING, 0, b"before  ")
    assert calls[-1] == ("malformed", BY_NAME[name].code, detail)
    assert ("frame", PING, 0, b"behind  ") not in calls
    assert connection.intake.closed


def test_largest_frame_is_taken() -> None:
    connection = Connection()
    connection.intake.feed(build_frame(PING, bytes(FRAME_BYTES_MAX)))
    assert connection.intake.calls == [("frame", PING, 0, bytes(FRAME_BYTES_MAX))]


def test_limit_may_change_in_the_middle_of_what_arrived() -> None:
    """HELLO is small, what follows it need not be, and both may come in one read."""

    class Growing(Watched):
        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            self.frame_bytes_max = 50_000

    connection = Connection()
    intake = Growing(connection.intake.fanout, ReadBuffer(4096), Clock(manual=True))
    intake.frame_bytes_max = 10
    stream = build_frame(HELLO, b"hello") + build_frame(PING, bytes(40_000))
    intake.feed(stream[:9])
    intake.feed(stream[9:])
    assert [call[0] for call in intake.calls] == ["frame", "frame"]


@pytest.mark.parametrize("cut", [0, 3, 8, 12, 16])
def test_nothing_is_taken_after_a_stop(cut: int) -> None:
    connection = Connection()
    connection.intake.stops_at = ("frame", PING, 0, b"the last")
    stream = build_frame(PING, b"the last") + publish(1, 1, b"x") + b"half a"
    connection.intake.feed(stream[:cut])
    connection.intake.feed(stream[cut:])
    reads = connection.intake.reads
    connection.intake.feed(build_frame(PING, b"12345678"))
    assert connection.intake.calls == [connection.intake.stops_at]
    assert connection.tails.group_empty
    assert connection.intake.reads == reads


# --- Memory --------------------------------------------------------------------------------------------------------


def test_spill_grows_with_what_arrives_and_not_with_what_was_declared() -> None:
    """1,000 peers that announce 100,000 bytes each and send nine cost next to nothing."""
    fanout = Fanout(Tails(1, 1))
    buffer, clock = ReadBuffer(4096), Clock(manual=True)
    intakes = [Watched(fanout, buffer, clock) for _ in range(1_000)]
    tracemalloc.start()
    try:
        before_bytes = resident_bytes()
        for intake in intakes:
            intake.feed(struct.pack("<IBBH", FRAME_BYTES_MAX, PING, 0, 0) + b"x")
        assert resident_bytes() - before_bytes < 4 << 20, "100 MB were declared"
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def test_bytes_that_are_fed_are_not_kept() -> None:
    connection = Connection()
    frame = bytearray(build_frame(PING, b"12345678"))
    with memoryview(frame)[:12] as half:
        connection.intake.feed(half)
    frame[:] = b"\xff" * len(frame)
    frame.clear()  # nobody holds its buffer
    connection.intake.feed(b"5678")
    assert connection.intake.calls == [("frame", PING, 0, b"12345678")]


def test_read_buffer_has_a_range() -> None:
    for size in (0, 4095, (16 << 20) + 1):
        with pytest.raises(ValueError, match="read buffer"):
            ReadBuffer(size)
    connection = Connection()
    assert len(connection.intake.get_buffer(10)) == 4096
    with pytest.raises(ValueError, match="read: got 4097"):
        connection.intake.buffer_updated(4097)


def test_an_ack_is_any_frame_until_the_connection_has_members() -> None:
    connection = Connection()
    ack = build_frame(ACK, b"settled")
    connection.intake.feed(ack)
    connection.intake.members = {}
    connection.intake.feed(ack + build_frame(ACK, b"flags", flags=1) + build_frame(PING, bytes(8)))
    assert connection.intake.calls == [
        ("frame", ACK, 0, b"settled"), ("ack", b"settled"), ("frame", ACK, 1, b"flags"), ("frame", PING, 0, bytes(8))
    ]  # fmt: skip


def test_an_ack_is_taken_when_the_turn_has_no_room_and_what_follows_it_is_not() -> None:
    loop = Loop()
    intakes = [loop.intake() for _ in range(200)]
    for intake in intakes:
        intake.members = {}
        intake.feed(build_frame(ACK, b"one"))
    assert [intake.calls for intake in intakes] == [[("ack", b"one")]] * 200
    assert not any(intake.put_off for intake in intakes)
    last = intakes[-1]
    last.feed(build_frame(ACK, b"two") + build_frame(ACK, b"three"))
    assert last.calls == [("ack", b"one"), ("ack", b"two")]
    assert (last.put_off, last.pauses) == (True, [True])
    loop.drain()
    assert last.calls[-1] == ("ack", b"three")
    assert last.pauses == [True, False]


def test_an_ack_that_ends_its_connection_is_the_last_frame() -> None:
    connection = Connection()
    connection.intake.members = {}
    connection.intake.stops_at = ("ack", b"wrong")
    connection.intake.feed(build_frame(ACK, b"wrong") + build_frame(PING, bytes(8)))
    assert connection.intake.calls == [("ack", b"wrong")]
    assert connection.intake.closed


# --- Half frames of many --------------------------------------------------------------------------------------------


class Loop:
    """Intakes that share one read buffer, and what `schedule` has asked for."""

    def __init__(self, *, early_bytes_max: int = 1 << 20, partial_bytes_max: int = 1 << 20) -> None:
        self.tails = Tails(1, 4770)
        self.fanout = Fanout(self.tails)
        self.clock = Clock(manual=True)
        self.buffer = ReadBuffer(8192, early_bytes_max, partial_bytes_max)
        self.asked = 0
        self.buffer.schedule = self.ask

    def ask(self) -> None:
        self.asked += 1

    def intake(self, kind: type[Watched] = Watched) -> Any:
        return kind(self.fanout, self.buffer, self.clock)

    def drain(self) -> int:
        """Give turns until nothing is put off; answers how many it took."""
        turns = 0
        while self.asked:
            turns += 1
            self.asked = int(self.buffer.go_on())
        return turns


def half_frame(size: int, arrived: int) -> bytes:
    """Return the first bytes of a frame whose body has `size`."""
    return (struct.pack("<IBBH", size, PING, 0, 0) + bytes(arrived))[:arrived]


def test_spill_never_takes_more_than_its_frame() -> None:
    """Or a bound of one largest frame would not let one largest frame through."""
    loop = Loop(partial_bytes_max=8 + FRAME_BYTES_MAX)
    intake = loop.intake()
    frame = build_frame(PING, bytes(FRAME_BYTES_MAX))
    for at in range(0, len(frame), 4096):
        intake.feed(frame[at : at + 4096])
        assert loop.buffer.partial.bytes <= 8 + FRAME_BYTES_MAX
    assert intake.calls == [("frame", PING, 0, bytes(FRAME_BYTES_MAX))]
    assert (loop.buffer.partial.bytes, loop.buffer.partial.count) == (0, 0)


def test_oldest_half_frame_pays() -> None:
    loop = Loop(partial_bytes_max=10_000)
    dribbler, publisher, late = (loop.intake() for _ in range(3))
    loop.clock.manual_us = 1_000_000
    dribbler.feed(half_frame(9_000, 3_000))
    for turn in range(20):  # whole frames of it come and go
        loop.clock.manual_us += 100_000
        frame = build_frame(PING, bytes(5_000))
        publisher.feed(frame[:3_000])
        publisher.feed(frame[3_000:])
        dribbler.feed(b"x")
        loop.drain()
        assert len(publisher.calls) == turn + 1
    publisher.feed(half_frame(5_000, 4_000))
    late.feed(half_frame(5_000, 4_000))
    assert [call[0] for call in dribbler.calls] == ["crowded"]
    _, name, got, limit, held_us = dribbler.calls[0]
    assert (name, limit, held_us) == ("half frames", 10_000, 2_000_000)
    assert got > limit
    assert dribbler.closed
    assert not publisher.closed
    assert not late.closed
    assert (loop.buffer.partial.count, loop.buffer.partial.bytes) == (2, 8_000)


def test_one_that_takes_all_ends_itself() -> None:
    loop = Loop(partial_bytes_max=5_000)
    intake = loop.intake()
    intake.feed(half_frame(9_000, 6_000))
    assert [call[0] for call in intake.calls] == ["crowded"]
    assert (loop.buffer.partial.count, loop.buffer.partial.bytes) == (0, 0)


def test_strangers_have_a_pool_of_their_own() -> None:
    loop = Loop(early_bytes_max=2_000, partial_bytes_max=8_000)
    known = loop.intake()
    known.feed(half_frame(9_000, 7_000))
    strangers = [loop.intake() for _ in range(100)]
    for stranger in strangers:
        stranger.early = True
        stranger.feed(half_frame(9_000, 100))
    assert [stranger.closed for stranger in strangers] == [True] * 80 + [False] * 20
    assert (loop.buffer.early.count, loop.buffer.early.bytes) == (20, 2_000)
    strangers[-1].early = False  # it has said HELLO
    strangers[-1].feed(b"x")
    assert loop.buffer.early.count == 19
    assert not known.closed


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 400), st.sampled_from(["feed", "stop"])), max_size=60),
    bytes_max=st.integers(600, 3_000),
)
def test_pool_counts_what_is_there(steps: list[tuple[int, int, str]], bytes_max: int) -> None:
    loop = Loop(partial_bytes_max=bytes_max)
    intakes = [loop.intake() for _ in range(5)]
    stream = build_frame(PING, bytes(500)) * 100
    fed = [0] * 5
    for number, size, what in steps:
        if what == "stop":
            intakes[number].stop()
            intakes[number], fed[number] = loop.intake(), 0
        else:
            intakes[number].feed(stream[fed[number] :][:size])
            fed[number] += size
        halves = [at % 508 for at, intake in zip(fed, intakes, strict=True) if not intake.closed and at % 508]
        assert loop.buffer.partial.count == len(halves)
        assert sum(halves) <= loop.buffer.partial.bytes <= bytes_max
    for intake in intakes:
        intake.stop()
    assert (loop.buffer.partial.count, loop.buffer.partial.bytes) == (0, 0)


def test_nobody_is_forgotten_when_the_bound_is_lifted() -> None:
    """The same crowd with a bound that is none: what the tests above see comes from the bound."""
    loop = Loop(early_bytes_max=1 << 40, partial_bytes_max=1 << 40)
    intakes = [loop.intake() for _ in range(100)]
    for intake in intakes:
        intake.feed(half_frame(90_000, 4_000))
    assert not any(intake.closed for intake in intakes)
    assert loop.buffer.partial.bytes == 400_000


# --- Turns ---------------------------------------------------------------------------------------------------------

SLOW_FRAMES_MAX = 32
TURN_FRAMES_MAX = 64
FULL_READS_MAX = 4
PINGS = [build_frame(PING, struct.pack("<Q", number)) for number in range(1_000)]


def tokens(intake: Watched) -> list[int]:
    return [struct.unpack("<Q", call[3])[0] for call in intake.calls]


def test_so_many_frames_a_turn_and_all_in_order() -> None:
    loop = Loop()
    intake = loop.intake()
    intake.feed(b"".join(PINGS))
    assert tokens(intake) == list(range(SLOW_FRAMES_MAX))
    assert intake.pauses == [True]
    for turn in range(2, 1 + 1_000 // SLOW_FRAMES_MAX):
        assert loop.buffer.go_on()
        assert len(intake.calls) == turn * SLOW_FRAMES_MAX
    assert loop.drain() == 2, "the rest, and a turn that finds nothing to do"
    assert tokens(intake) == list(range(1_000))
    assert intake.pauses == [True, False]
    assert loop.buffer.backlog.bytes == 0
    intake.feed(PINGS[0])
    assert len(intake.calls) == 1_001, "the budget is a turn's"


def test_whoever_floods_does_not_hold_up_another() -> None:
    loop = Loop()
    flooders = [loop.intake() for _ in range(100)]
    for intake in flooders:
        intake.feed(b"".join(PINGS[:200]))
    assert sum(len(intake.calls) for intake in flooders) == 2 * TURN_FRAMES_MAX
    late = loop.intake()
    late.feed(PINGS[0] + publish(1, 1, b"x"))
    assert late.calls == []
    turns = 0
    while not late.calls:
        turns += 1
        loop.buffer.go_on()
        assert max(len(intake.calls) for intake in flooders) <= SLOW_FRAMES_MAX * (turns + 1)
    assert turns <= 1 + 100 * SLOW_FRAMES_MAX // TURN_FRAMES_MAX, "a round"
    loop.drain()
    assert all(tokens(intake) == list(range(200)) for intake in flooders)


def test_who_sends_a_frame_now_and_then_waits_for_nobody_who_floods() -> None:
    loop = Loop()
    flooders = [loop.intake() for _ in range(20)]
    for intake in flooders:
        intake.feed(b"".join(PINGS))
    quiet = loop.intake()
    for turn in range(50):
        quiet.feed(PINGS[turn])
        assert tokens(quiet) == list(range(turn + 1))
        loop.buffer.go_on()
    assert sum(len(intake.calls) for intake in flooders) >= 50 * TURN_FRAMES_MAX, "and takes nothing away from them"


def test_without_a_schedule_there_is_no_bound() -> None:
    loop = Loop()
    loop.buffer.schedule = None
    intake = loop.intake()
    intake.feed(b"".join(PINGS))
    assert len(intake.calls) == 1_000


def test_dear_frames_end_a_turn_by_its_time() -> None:
    loop = Loop()

    class Dear(Watched):
        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            loop.clock.manual_us += 40

    intake, other = loop.intake(Dear), loop.intake(Dear)
    intake.feed(b"".join(PINGS))
    assert len(intake.calls) == 3, "100 us"
    other.feed(b"".join(PINGS))
    assert len(other.calls) == 2, "200 us of both"
    loop.drain()
    assert tokens(intake) == tokens(other) == list(range(1_000))


def test_each_read_and_each_turn_of_what_was_put_off_judges_anew_whether_accepted_records_wait() -> None:
    """The loop may have been held up before either: no timer would have had its turn."""
    connection = Connection()
    connection.tails.load(b"a.x", 2, 2, 1_000)
    assert connection.intake.publisher is not None
    connection.intake.publisher.bind(0, b"a.x")
    connection.tails.early_until_us = NOW_US + 50_000
    connection.intake.feed(publish(0, 1, b"early"))
    connection.clock.manual_us = NOW_US + 50_001
    connection.intake.feed(publish(0, 2, b"waits"))
    assert connection.tails.close_turn()[1] is not None
    (early,) = [answers for _, answers in connection.tails.take_turn_answers()]
    assert [(entry.number, entry.count) for entry in published_of(early)] == [(1, 2)], "one chunk, one class"
    connection.intake.feed(publish(0, 3, b"waits"))
    assert connection.tails.close_turn() == (None, None)

    loop = Loop()
    intake = loop.intake()
    intake.tails.early_until_us = NOW_US + 50_000
    intake.feed(b"".join(PINGS))
    assert not intake.tails.accepted_waits
    loop.clock.manual_us = NOW_US + 50_001
    loop.buffer.go_on()
    assert intake.tails.accepted_waits


def test_refused_publishes_have_a_budget_too() -> None:
    connection = Connection()
    asked: list[int] = []
    connection.intake.buffer.schedule = lambda: asked.append(1)
    connection.intake.feed(publish(1, 7, b"a gap") * 100 + publish(1, 1, b"good"))
    assert len(connection.intake.calls) == SLOW_FRAMES_MAX + 1
    assert connection.tails.records == 0
    while connection.intake.buffer.go_on():
        pass
    assert len(connection.intake.calls) == 100
    assert connection.tails.records == 1


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(CONVERSATION) * 4), max_size=12), turns=st.lists(st.integers(0, 2), max_size=12)
)
def test_put_off_or_not_the_calls_are_the_same(cuts: list[int], turns: list[int]) -> None:
    stream = CONVERSATION + b"".join(PINGS[:60]) + publish(0, 9, b"gap") * 50 + build_frame(PING, b"12345678")
    connection = Connection()
    buffer = connection.intake.buffer
    asked: list[int] = []
    buffer.schedule = lambda: asked.append(1)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pauses = itertools.chain(turns, itertools.repeat(0))
    for begin, end in itertools.pairwise(places):
        connection.intake.feed(stream[begin:end])  # also while it is paused: nothing of it may be lost
        for _ in range(next(pauses)):
            buffer.go_on()
    while buffer.go_on():
        pass
    assert connection.state() == twin_state(stream)
    assert connection.intake.pauses == [True, False] * (len(connection.intake.pauses) // 2)
    assert (buffer.backlog.bytes, buffer.backlog.count, buffer.partial.bytes) == (0, 0, 0)


def test_half_a_frame_behind_what_was_put_off_is_completed() -> None:
    loop = Loop()
    intake = loop.intake()
    intake.feed(b"".join(PINGS[:100]) + PINGS[100][:5])
    loop.drain()
    assert (loop.buffer.backlog.count, loop.buffer.partial.count, loop.buffer.partial.bytes) == (0, 1, 64)
    intake.feed(PINGS[100][5:])
    assert tokens(intake) == list(range(101))


def test_who_is_held_does_not_go_on() -> None:
    loop = Loop()
    intake = loop.intake()
    intake.feed(b"".join(PINGS))
    intake.hold()
    assert (loop.buffer.backlog.count, loop.buffer.partial.count) == (0, 1)
    loop.drain()
    assert len(intake.calls) == SLOW_FRAMES_MAX
    intake.let_go()
    assert loop.asked == 1, "nobody else would wake it"
    loop.drain()
    assert tokens(intake) == list(range(1_000))


def test_stop_in_the_middle_of_what_was_put_off() -> None:
    loop = Loop()
    intake, other = loop.intake(), loop.intake()
    intake.feed(b"".join(PINGS))
    other.feed(b"".join(PINGS))
    intake.stops_at = ("frame", PING, 0, struct.pack("<Q", 40))
    loop.drain()
    assert tokens(intake) == list(range(41))
    assert tokens(other) == list(range(1_000))
    assert loop.buffer.backlog.count == 0


def test_handler_that_raises_ends_its_own_connection_only() -> None:
    loop = Loop()

    class Broken(Watched):
        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            if len(self.calls) == 40:
                raise RuntimeError("planted")

    intake, other = loop.intake(Broken), loop.intake()
    intake.feed(b"".join(PINGS))
    other.feed(b"".join(PINGS))
    loop.drain()
    assert intake.calls[40:] == [("failed", "planted")]
    assert intake.closed
    assert tokens(other) == list(range(1_000))


def test_whoever_fills_the_buffer_again_and_again_lets_others_be_read() -> None:
    loop = Loop()
    intake = loop.intake()
    size = len(intake.get_buffer(-1))
    intake.subscriptions = {}
    assert size % 24 == 8
    intake.get_buffer(-1)[:] = credit(9, 0) * (size // 24) + build_frame(99, b"")  # whole frames: nothing is put off
    for read in range(1, 3 * FULL_READS_MAX + 1):
        intake.buffer_updated(size)
        if read % FULL_READS_MAX == 0:
            assert intake.pauses == [True]
            loop.drain()
            assert intake.pauses == [True, False]
            intake.pauses.clear()
        else:
            assert intake.pauses == []


def test_credit_is_told_to_who_is_behind_only_and_costs_of_the_budget() -> None:
    connection = Connection()
    connection.intake.buffer.schedule = lambda: None
    connection.subscriptions[0].behind = False
    connection.intake.feed(credit(1, 1) * 1_000)
    assert connection.intake.calls == []
    assert connection.subscriptions[0].credit == 1_000
    connection.intake.feed(credit(7, 1) * 1_000)
    assert connection.intake.calls == [("credit", 7)] * (SLOW_FRAMES_MAX + 1)
    while connection.intake.buffer.go_on():
        pass
    assert connection.intake.calls == [("credit", 7)] * 1_000


def test_what_is_put_off_has_a_bound_and_small_reads_before_it() -> None:
    loop = Loop(partial_bytes_max=20_000)
    first, second, third = (loop.intake() for _ in range(3))
    assert len(first.get_buffer(-1)) == 8192
    first.feed(b"".join(PINGS))
    assert not first.closed, "alone it may have more"
    assert len(first.get_buffer(-1)) == 4096
    second.feed(b"".join(PINGS[:600]))
    assert second.calls[SLOW_FRAMES_MAX:] == [("crowded", "frames put off", 24_576, 20_000, 0)]
    assert second.closed
    third.feed(PINGS[0])
    loop.drain()
    assert len(third.calls) == 1


# --- Time ----------------------------------------------------------------------------------------------------------


def test_time_of_records_is_read_once_for_all_that_arrived() -> None:
    connection = Connection()
    clock = Clock(manual=True)
    intake = Watched(connection.intake.fanout, ReadBuffer(4096), clock)
    clock.manual_us = 5
    intake.feed(b"")
    assert connection.tails.now_us == 5
    clock.manual_us = 9
    intake.feed(b"x")
    assert connection.tails.now_us == 9


def test_clock_never_goes_back() -> None:
    clock = Clock(offset_us=1 << 50)
    first = clock.now_us()
    assert 0 <= first - Clock.monotonic_us() - (1 << 50) + 1_000_000 <= 1_000_000
    clock.offset_us = 0
    assert clock.now_us() == first == clock.floor_us
    clock.offset_us = 1 << 51
    assert clock.now_us() > first


def test_steady_time_does_not_wait_for_a_floor() -> None:
    clock = Clock(offset_us=0)
    clock.floor_us = 1 << 60
    assert clock.now_us() == 1 << 60
    assert -1_000_000 < Clock.monotonic_us() - clock.steady_us() <= 0


def test_manual_clock_moves_when_its_owner_moves_it() -> None:
    clock = Clock(7, manual=True)
    assert (clock.steady_us(), clock.now_us()) == (0, 7)
    clock.manual_us = 100
    clock.floor_us = 1_000
    assert (clock.steady_us(), clock.now_us()) == (100, 1_000)
    clock.manual_us = 2_000
    assert (clock.steady_us(), clock.now_us(), clock.floor_us) == (2_000, 2_007, 2_007)


def test_intake_is_heard_when_bytes_come() -> None:
    connection = Connection()
    assert connection.intake.heard_us == NOW_US
    connection.clock.manual_us += 9
    connection.intake.feed(b"")
    assert connection.intake.heard_us == NOW_US + 9
