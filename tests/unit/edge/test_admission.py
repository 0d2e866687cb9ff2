"""The pace at which a crowd is let in, by a clock of the test's own."""

from __future__ import annotations

import pytest

from broker.edge import admission
from broker.edge.admission import FLOOR_PER_S, LATE_S_HIGH, TURN_S, WIDTH_BEGIN, WIDTH_MAX, Admission, hint_ms, leave_ms


def turns(pace: Admission, now_s: float, late_s: float, count: int) -> tuple[float, int]:
    """Have so many turns, each as late as said, that let in all that they may; answers the time and how many came."""
    admitted = pace.admitted
    for _ in range(count):
        due_s = now_s + TURN_S
        now_s = due_s + late_s
        pace.admitted += pace.turn(now_s, due_s)
    return now_s, pace.admitted - admitted


def test_turns_that_come_in_time_grow_to_a_bound() -> None:
    pace = Admission(0.0)
    assert pace.begin(0.0) == WIDTH_BEGIN
    turns(pace, 0.0, 0.0, 100)
    assert pace.width == WIDTH_MAX


def test_turns_that_are_late_shrink_to_one_at_a_time() -> None:
    pace = Admission(0.0)
    now_s, _ = turns(pace, 0.0, 0.0, 100)
    widths = []
    for _ in range(6):
        now_s, _ = turns(pace, now_s, LATE_S_HIGH * 1.01, 1)
        widths.append(pace.width)
    assert widths == [8, 4, 2, 1, 1, 1]
    turns(pace, now_s, 0.0, 3)
    assert pace.width == 4


def test_a_little_late_changes_nothing() -> None:
    pace = Admission(0.0)
    turns(pace, 0.0, (admission.LATE_S_LOW + LATE_S_HIGH) / 2, 50)
    assert pace.width == WIDTH_BEGIN


@pytest.mark.parametrize("late_s", [0.003, 0.01, 0.02])
def test_a_loop_that_is_always_late_still_lets_some_in(late_s: float) -> None:
    pace = Admission(0.0)
    now_s, _ = turns(pace, 0.0, late_s, 10)
    end_s, admitted = turns(pace, now_s, late_s, 200)
    assert admitted / (end_s - now_s) == pytest.approx(FLOOR_PER_S, rel=0.5)


def test_who_would_wait_too_long_is_one_too_many() -> None:
    pace = Admission(0.0)
    assert pace.waiting_max() == 8_000
    turns(pace, 0.0, 0.0, 1_000)
    assert pace.waiting_max() > 80_000, "it has seen that it is fast"
    slow = Admission(0.0)
    turns(slow, 0.0, 0.05, 50)
    assert slow.waiting_max() == 4_000, "never less than the floor lets in"
    assert slow.wait_ms(4_500) == 4_500


def test_the_more_are_refused_the_later_each_is_to_come() -> None:
    pace = Admission(0.0)
    assert pace.room_ms(0.0) == admission.HINT_MS_MIN
    hints = [pace.room_ms(0.5) for _ in range(3_000)]
    assert hints == sorted(hints)
    assert hints[-1] == 6_000
    quiet = [pace.room_ms(float(second)) for second in range(2, 14)]
    assert quiet[-1] == admission.HINT_MS_MIN


def test_hints_are_few_and_bounded() -> None:
    assert {hint_ms(wait) for wait in range(100_000)} == set(range(1_000, 30_001, 500))
    assert [leave_ms(count) for count in (0, 1, 499, 500, 5_000, 10**6)] == [None, None, None, 1_000, 5_000, 30_000]
