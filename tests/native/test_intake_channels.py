"""CHANNEL frames that are handled together: the same names and numbers, in the same order, as one after the other."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.names import is_channel
from tests.native.test_intake import FRAME_BYTES_MAX, PINGS, SLOW_FRAMES_MAX, Loop, Watched, tokens
from tests.reference.frames import CHANNEL, build_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANNELS_MAX = 64
CHANNELS_A_FRAME = 8


class Naming(Watched):
    """Takes as many frames at once as it is told to, and suspends itself at some calls."""

    takes: Iterator[int] = itertools.repeat(CHANNELS_MAX)
    waits_at: frozenset[int] = frozenset()
    stops_before: bytes = b""

    def on_channels(self, first: int, names: list[bytes]) -> int:
        assert 2 <= len(names) <= CHANNELS_MAX
        assert all(map(is_channel, names))
        taken = names[: next(self.takes)]
        if taken:
            self.note("channels", first, taken)
            self.wait()
        if self.stops_before in names:
            self.stop()
        return len(taken)

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        super().on_frame(kind, flags, body)
        self.wait()

    def wait(self) -> None:
        assert not self.suspended
        if len(self.calls) - 1 in self.waits_at:
            self.suspend()

    def told(self) -> list[tuple[int, int, bytes]]:
        """Return the frames that it was given, each by itself."""
        frames = []
        for call in self.calls:
            if call[0] == "channels":
                frames += [(CHANNEL, 0, struct.pack("<I", call[1] + at) + name) for at, name in enumerate(call[2])]
            else:
                frames.append(call[1:])
        return frames


def channels(names: list[bytes], first: int = 0) -> bytes:
    return b"".join(build_frame(CHANNEL, struct.pack("<I", first + at) + name) for at, name in enumerate(names))


def naming(loop: Loop) -> Naming:
    intake = loop.intake(Naming)
    assert isinstance(intake, Naming)
    return intake


def go_on(loop: Loop, intake: Naming) -> None:
    loop.drain()
    while intake.suspended:
        intake.resume()
        loop.drain()


FRAMES = st.one_of(
    st.tuples(
        st.just(CHANNEL), st.just(0), st.integers(0, 3), st.sampled_from([b"a", b"s.x", b"bad..name", b"", b"$"])
    ),
    st.tuples(st.just(CHANNEL), st.just(1), st.integers(0, 3), st.just(b"a")),
    st.tuples(st.just(4), st.just(0), st.just(7), st.just(b"ping")),
)


@settings(deadline=None, max_examples=150)
@given(
    frames=st.lists(FRAMES, max_size=40),
    dense=st.integers(0, 150),
    takes=st.lists(st.sampled_from([0, 1, 2, 5, CHANNELS_MAX]), min_size=1, max_size=4),
    waits_at=st.frozensets(st.integers(0, 30), max_size=8),
    cuts=st.lists(st.integers(0, 3_000), max_size=6),
)
def test_each_frame_is_given_once_in_order_however_they_come(
    frames: list[tuple[int, int, int, bytes]],
    dense: int,
    takes: list[int],
    waits_at: frozenset[int],
    cuts: list[int],
) -> None:
    all_frames = [(kind, flags, struct.pack("<I", number) + rest) for kind, flags, number, rest in frames]
    all_frames += [(CHANNEL, 0, struct.pack("<I", number) + b"d.%d" % number) for number in range(dense)]
    stream = b"".join(build_frame(kind, body, flags) for kind, flags, body in all_frames)
    loop = Loop()
    intake = naming(loop)
    intake.takes = itertools.cycle(takes)
    intake.waits_at = waits_at
    ends = sorted(min(cut, len(stream)) for cut in cuts)
    for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        intake.feed(stream[begin:end])
        go_on(loop, intake)
    assert intake.told() == all_frames
    assert loop.buffer.backlog.count == 0


def test_a_stream_that_is_cut_at_every_byte() -> None:
    names = [b"s.%d" % number for number in range(5)]
    stream = channels(names) + PINGS[0] + channels(names, 9)
    whole = naming(Loop())
    whole.feed(stream)
    assert [call[0] for call in whole.calls] == ["channels", "frame", "channels"]
    for cut in range(len(stream) + 1):
        loop = Loop()
        intake = naming(loop)
        intake.feed(stream[:cut])
        intake.feed(stream[cut:])
        assert intake.told() == whole.told()


def test_one_that_stands_alone_or_is_out_of_line_is_a_frame() -> None:
    intake = naming(Loop())
    intake.feed(channels([b"a"]) + PINGS[0] + channels([b"b"], 1) + channels([b"c"], 3) + channels([b"d"], 4))
    assert [call[0] for call in intake.calls] == ["frame", "frame", "frame", "channels"]
    intake = naming(Loop())
    intake.feed(channels([b"a"], 2**32 - 1) + channels([b"b"], 0))
    assert [call[0] for call in intake.calls] == ["frame", "frame"], "numbers do not begin anew"


def test_many_are_given_some_dozens_at_a_time_and_each_turn_has_a_bound() -> None:
    loop = Loop()
    intake, other = naming(loop), naming(loop)
    names = [b"s.%d" % number for number in range(1_000)]
    intake.feed(channels(names))
    assert [len(call[2]) for call in intake.calls] == [CHANNELS_MAX] * (
        SLOW_FRAMES_MAX * CHANNELS_A_FRAME // CHANNELS_MAX
    )
    other.feed(channels(names) + PINGS[0])
    loop.drain()
    for each in (intake, other):
        assert [body[4:] for kind, _, body in each.told() if kind == CHANNEL] == names
    assert other.calls[-1][0] == "frame"


def test_time_ends_a_turn_between_two_calls() -> None:
    loop = Loop()

    class Dear(Naming):
        def on_channels(self, first: int, names: list[bytes]) -> int:
            loop.clock.manual_us += 60
            return super().on_channels(first, names)

    intake = loop.intake(Dear)
    intake.feed(channels([b"s.%d" % number for number in range(1_000)]))
    assert len(intake.calls) == 2, "100 us"
    loop.drain()
    assert len(intake.told()) == 1_000


def test_it_may_be_over_in_the_middle() -> None:
    loop = Loop()
    intake = naming(loop)
    intake.stops_before = b"s.70"
    intake.feed(channels([b"s.%d" % number for number in range(200)]))
    loop.drain()
    assert len(intake.told()) == 2 * CHANNELS_MAX
    assert loop.buffer.backlog.count == 0


def test_names_wait_behind_a_turn_that_is_used_up() -> None:
    loop = Loop()
    for _ in range(2):
        loop.intake().feed(b"".join(PINGS))
    intake = naming(loop)
    intake.feed(channels([b"a", b"b"]) + PINGS[0])
    assert intake.calls == []
    loop.drain()
    assert [call[0] for call in intake.calls] == ["channels", "frame"]
    quiet = naming(Loop())
    quiet.feed(PINGS[0])
    assert tokens(quiet) == [0]


def test_what_is_no_naming_ends_those_that_come_together() -> None:
    """A frame that is too large, and one whose header says what nobody knows: they are judged by themselves."""
    named = [(CHANNEL, 0, struct.pack("<I", number) + b"n.%d" % number) for number in range(3)]
    good = b"".join(build_frame(kind, body, flags) for kind, flags, body in named)
    reserved = bytearray(build_frame(CHANNEL, struct.pack("<I", 3) + b"n.3"))
    reserved[6] = 1
    for wrong in (build_frame(CHANNEL, struct.pack("<I", 3) + bytes(FRAME_BYTES_MAX)), bytes(reserved)):
        loop = Loop()
        intake = naming(loop)
        intake.feed(good + wrong)
        go_on(loop, intake)
        assert intake.told()[:3] == named


def test_a_connection_that_need_not_wait_after_all_goes_on_at_once() -> None:
    class Hasty(Naming):
        def wait(self) -> None:
            self.suspend()
            self.resume()

    frames = [(CHANNEL, 0, struct.pack("<I", number) + b"n.%d" % number) for number in (1, 2, 3, 9, 4)]
    loop = Loop()
    intake = loop.intake(Hasty)
    intake.feed(b"".join(build_frame(kind, body, flags) for kind, flags, body in frames))
    go_on(loop, intake)
    assert intake.told() == frames
