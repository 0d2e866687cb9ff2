"""Where a turn's budget ends: in the middle of a frame, of a round, of a handler."""

from __future__ import annotations

from typing import Any

from broker_native.fanout import Subscription
from tests.native.test_intake import PINGS, Loop, Watched, tokens
from tests.reference.frames import CREDIT, CREDIT_BODY, build_frame

STRANGE = build_frame(CREDIT, CREDIT_BODY.pack(99, 0, 1))
"""A CREDIT that nobody hears of: it costs a turn nothing."""


def spent() -> Loop:
    """Return a loop whose turn has no frame left for anybody."""
    loop = Loop()
    for _ in range(100):
        loop.intake().feed(b"".join(PINGS[:200]))
    return loop


def read_full(loop: Loop, intake: Any, times: int) -> None:
    """Give whole buffers of what costs nothing."""
    size = len(loop.buffer.view)
    stream = STRANGE * (times * size // len(STRANGE) + 1)
    for at in range(0, times * size, size):
        loop.buffer.view[:] = stream[at : at + size]
        intake.buffer_updated(size)


def test_frame_that_is_completed_too_late_is_put_off_with_what_follows() -> None:
    loop = spent()
    late = loop.intake()
    late.feed(PINGS[0][:9])
    late.feed(PINGS[0][9:] + PINGS[1])
    assert late.calls == []
    loop.drain()
    assert tokens(late) == [0, 1]


def test_credit_that_ends_the_budget_puts_off_only_what_follows() -> None:
    loop = spent()
    late = loop.intake()
    late.subscriptions = {1: Subscription(late.outbox, 1, 0, 0, False)}
    late.subscriptions[1].behind = True
    credit = build_frame(CREDIT, CREDIT_BODY.pack(1, 0, 5))
    late.feed(credit[:9])
    late.feed(credit[9:])
    assert late.pauses == []
    late.feed(credit[:9])
    late.feed(credit[9:] + PINGS[0])
    assert late.subscriptions[1].credit == 10
    assert late.pauses == [True]
    loop.drain()
    assert late.calls[-1][0] == "frame"
    assert late.pauses == [True, False]


def test_four_full_reads_let_others_be_read() -> None:
    loop = Loop()
    intake, gone, busy = (loop.intake() for _ in range(3))
    for each in (intake, gone, busy):
        each.subscriptions = {}
        read_full(loop, each, 4)
        assert each.pauses == [True]
    gone.stop()
    busy.feed(PINGS[0] * 1_000)
    loop.buffer.go_on()
    assert intake.pauses == [True, False]
    assert gone.pauses == [True]
    assert busy.pauses == [True, True]


def test_full_reads_of_one_that_waits_or_has_gone_change_nothing() -> None:
    loop = Loop()
    gone, alone = loop.intake(), loop.intake()
    gone.stop()
    read_full(loop, gone, 4)
    loop.buffer.schedule = None
    alone.subscriptions = {}
    read_full(loop, alone, 4)
    assert gone.pauses == alone.pauses == []
    loop.buffer.schedule = loop.ask
    waiting = loop.intake()
    waiting.feed(PINGS[0] * 1_000)
    read_full(loop, waiting, 4)
    assert waiting.pauses == [True]


def test_handler_may_end_another_that_was_put_off() -> None:
    class Murderer(Watched):
        victim: Any = None

        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            if self.victim is not None:
                self.victim.stop()

    loop = Loop()
    murderer, victim = loop.intake(Murderer), loop.intake()
    murderer.feed(b"".join(PINGS[:33]))
    victim.feed(b"".join(PINGS[:40]))
    murderer.victim = victim
    loop.drain()
    assert (len(murderer.calls), len(victim.calls)) == (33, 32)


def test_round_ends_when_its_time_is_over() -> None:
    loop = Loop()

    class Dear(Watched):
        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            loop.clock.manual_us += 120

    intakes = [loop.intake(Dear) for _ in range(4)]
    for intake in intakes:
        intake.feed(b"".join(PINGS[:3]))
    before = sum(len(intake.calls) for intake in intakes)
    loop.buffer.go_on()
    assert sum(len(intake.calls) for intake in intakes) == before + 2
    loop.drain()
    assert all(tokens(intake) == [0, 1, 2] for intake in intakes)


def test_handler_may_hold_its_own_connection_and_let_it_go() -> None:
    class Moody(Watched):
        def on_frame(self, kind: int, flags: int, body: bytes) -> None:
            super().on_frame(kind, flags, body)
            self.hold()
            self.let_go()

    loop = Loop()
    intake = loop.intake(Moody)
    intake.feed(b"".join(PINGS))
    loop.drain()
    assert tokens(intake) == list(range(1_000))


def test_one_alone_may_put_off_more_than_the_bound() -> None:
    loop = Loop(partial_bytes_max=10_000)
    intake = loop.intake()
    intake.feed(b"".join(PINGS))
    assert loop.buffer.backlog.bytes > 10_000
    loop.drain()
    assert tokens(intake) == list(range(1_000))
