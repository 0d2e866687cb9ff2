"""A frame that waits suspends its connection: what follows it keeps its order, and says which channels it will name."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.test_intake import FRAME_BYTES_MAX, PINGS, Loop, Watched, tokens
from tests.reference.frames import CHANNEL, PING, SUBSCRIBE, build_frame


class Waiting(Watched):
    """Suspends itself at some frames."""

    waits_at: frozenset[int] = frozenset()

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        assert not self.suspended
        super().on_frame(kind, flags, body)
        if len(self.calls) - 1 in self.waits_at:
            self.suspend()


def channel(name: bytes, number: int = 0) -> bytes:
    return build_frame(CHANNEL, struct.pack("<I", number) + name)


def waiting(loop: Loop, *waits_at: int) -> Waiting:
    intake = loop.intake(Waiting)
    assert isinstance(intake, Waiting)
    intake.waits_at = frozenset(waits_at)
    return intake


@settings(deadline=None)
@given(
    waits_at=st.frozensets(st.integers(0, 99), max_size=20),
    cuts=st.lists(st.integers(1, 1_600), max_size=12),
    late=st.booleans(),
)
def test_order_is_kept_wherever_it_waits_and_however_bytes_come(
    waits_at: frozenset[int], cuts: list[int], late: bool
) -> None:
    """`late`: all bytes are there before the first frame goes on; else each wait ends before the next bytes."""
    loop = Loop()
    intake = waiting(loop, *waits_at)
    stream = b"".join(PINGS[:100])

    def go_on() -> None:
        loop.drain()
        while intake.suspended:
            seen = len(intake.calls)
            loop.drain()
            assert len(intake.calls) == seen
            intake.resume()
            loop.drain()

    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        intake.feed(stream[begin:end])
        if not late:
            go_on()
    go_on()
    assert tokens(intake) == list(range(100))
    assert [pool.bytes for pool in (loop.buffer.early, loop.buffer.partial, loop.buffer.backlog)] == [0, 0, 0]


def test_nothing_is_handled_while_it_waits_whatever_comes() -> None:
    loop = Loop()
    intake = waiting(loop, 0, 2)
    intake.feed(PINGS[0])
    intake.feed(PINGS[1][:9])
    intake.feed(PINGS[1][9:] + PINGS[2] + PINGS[3])
    loop.drain()
    assert tokens(intake) == [0]
    intake.resume()
    assert tokens(intake) == [0]
    loop.drain()
    assert tokens(intake) == [0, 1, 2]
    intake.resume()
    loop.drain()
    assert tokens(intake) == [0, 1, 2, 3]


def test_others_go_on() -> None:
    loop = Loop()
    one, other = waiting(loop, 0), waiting(loop)
    one.feed(PINGS[0] + PINGS[1])
    other.feed(b"".join(PINGS))
    loop.drain()
    assert tokens(one) == [0]
    assert tokens(other) == list(range(1_000))


def test_a_hold_and_a_wait_end_each_by_itself() -> None:
    for first, second in (("let_go", "resume"), ("resume", "let_go")):
        loop = Loop()
        intake = waiting(loop, 0)
        intake.feed(PINGS[0] + PINGS[1])
        intake.hold()
        loop.drain()
        getattr(intake, first)()
        loop.drain()
        assert tokens(intake) == [0]
        getattr(intake, second)()
        loop.drain()
        assert tokens(intake) == [0, 1]


def test_one_that_was_put_off_may_be_suspended_from_outside() -> None:
    loop = Loop()
    intake = waiting(loop)
    intake.feed(b"".join(PINGS[:100]))
    seen = len(intake.calls)
    intake.suspend()
    loop.drain()
    assert len(intake.calls) == seen
    assert loop.buffer.backlog.count == 0
    intake.resume()
    loop.drain()
    assert tokens(intake) == list(range(100))


def test_stopping_while_it_waits_leaves_nothing() -> None:
    loop = Loop()
    intake = waiting(loop, 0)
    intake.feed(b"".join(PINGS[:100]))
    assert loop.buffer.partial.bytes > 0
    intake.stop()
    assert (loop.buffer.partial.bytes, loop.buffer.partial.count) == (0, 0)
    intake.resume()
    loop.drain()
    assert tokens(intake) == [0]


LONGEST = b"x" * 126 + b"." + b"y" * 128


def test_names_ahead_are_those_of_whole_channel_frames_in_order() -> None:
    loop = Loop()
    intake = waiting(loop, 0)
    stream = [
        channel(b"s.0"),
        channel(b"s.1", 1),
        build_frame(PING, bytes(8)),
        channel(b"s.2", 2),
        channel(b"", 3),
        channel(LONGEST, 4),
        channel(LONGEST + b"x", 5),
        channel(b"s.*", 5),
        build_frame(SUBSCRIBE, b"\0\0\0\0s.no"),
        channel(b"s.1", 6),
        build_frame(CHANNEL, b"\0"),
    ]
    assert intake.names_ahead(10) == []
    intake.feed(b"".join(stream) + channel(b"s.half", 7)[:-1])
    assert intake.names_ahead(0) == []
    assert intake.names_ahead(1) == [b"s.1"]
    assert intake.names_ahead(2) == [b"s.2", LONGEST]
    assert intake.names_ahead(100) == [b"s.1"]
    assert intake.names_ahead(100) == [], "each is told once"
    intake.feed(channel(b"s.half", 7)[-1:])
    assert intake.names_ahead(100) == [b"s.half"]
    intake.resume()
    loop.drain()
    assert intake.names_ahead(100) == []
    assert len(intake.calls) == len(stream) + 1


def test_names_ahead_begin_behind_what_was_handled() -> None:
    loop = Loop()
    intake = waiting(loop, 40)
    names = [b"s.%d" % number for number in range(100)]
    intake.feed(b"".join(map(channel, names)))
    loop.drain()
    assert len(intake.calls) == 41
    assert intake.names_ahead(1_000) == names[41:]


def test_a_frame_that_says_it_is_huge_ends_the_names() -> None:
    loop = Loop()
    intake = waiting(loop, 0)
    intake.feed(channel(b"a") + channel(b"b") + struct.pack("<IBBH", 0xFFFFFFFF, CHANNEL, 0, 0) + bytes(100))
    assert intake.names_ahead(100) == [b"b"]


def test_much_that_waits_makes_reads_small() -> None:
    """A connection that is not read has at most one read under way; it should not be a large one for everybody."""
    loop = Loop(partial_bytes_max=8 + FRAME_BYTES_MAX)
    intake, other = waiting(loop, 0), waiting(loop)
    assert len(other.get_buffer(-1)) == 8192
    ping = PINGS[0]
    intake.feed(ping * (FRAME_BYTES_MAX // 2 // len(ping) + 10))
    assert len(other.get_buffer(-1)) == 4096
    intake.resume()
    loop.drain()
    assert len(other.get_buffer(-1)) == 8192
