"""A connection's way in against its twin: the same calls however the bytes are cut, and a spill that stays small."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import BY_NAME
from broker_native.fanout import Fanout, Subscription
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.tails import Line, Publisher, Tails
from tests.reference import intake as twin
from tests.reference import tails as twin_tails
from tests.reference.frames import (
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
                subscription.state = object()

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
