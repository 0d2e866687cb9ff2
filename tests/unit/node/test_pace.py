"""How long commits take and how late the loop is, of the last minute."""

from __future__ import annotations

from broker.node.pace import WINDOW_US, Pace
from broker_native.intake import Clock


def told(pace: Pace) -> tuple[object, ...]:
    stats = pace.percentiles()
    return stats["commit_p50_us"], stats["commit_p99_us"], stats["loop_lag_p99_us"]


def test_times_are_those_of_the_last_minute() -> None:
    clock = Clock(manual=True)
    clock.manual_us = 1_000_000
    pace = Pace(clock)
    assert told(pace) == (0, 0, 0)
    for took_us in (1, 2, 30):
        pace.commits()
        pace.kicked()
        clock.manual_us += took_us
        pace.turned()
        pace.committed()
    assert told(pace) == (2, 30, 30)
    pace.committed()
    pace.turned()
    assert told(pace) == (2, 30, 30), "nothing was begun"
    clock.manual_us += WINDOW_US
    pace.commits()
    clock.manual_us += 5
    pace.committed()
    assert told(pace)[1] == 30, "the window before is told as well"
    clock.manual_us += WINDOW_US
    assert told(pace) == (5, 5, 0)
    clock.manual_us += 2 * WINDOW_US
    assert told(pace) == (0, 0, 0)
