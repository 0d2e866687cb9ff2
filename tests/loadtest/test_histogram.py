"""Throughput and latency by the second: what several processes counted adds up to what one would have counted."""

from __future__ import annotations

from typing import Any

import pytest

from broker_native.histogram import Histogram
from loadtest.histogram import SETTLED_AFTER_S, Counter, Timeline, curve, now_ns, percentiles


def second(at_s: int, delivered: int, *latencies_ms: float) -> list[Any]:
    """Return a second as a process hands it over."""
    latency = Histogram()
    for each in latencies_ms:
        latency.record(int(each * 1e6))
    return [at_s, delivered // 10, delivered, {"chat": latency.to_bytes()}]


def test_the_clock_never_goes_back_and_is_the_time() -> None:
    times = [now_ns() for _ in range(1000)]
    assert times == sorted(times)


def test_equal_seconds_of_two_processes_are_one() -> None:
    timeline = Timeline()
    timeline.add([second(100, 30, 1, 2), second(101, 10, 5)])
    timeline.add([second(100, 70, 3)])
    timeline.settle(all_of_them=True)
    assert [(line.at_s, line.delivered, line.published) for line in timeline.lines] == [(100, 100, 10), (101, 10, 1)]
    assert timeline.latency.count == timeline.latencies["chat"].count == 4
    assert timeline.lines[0].max_ms == pytest.approx(3, rel=0.01)


def test_seconds_become_lines_when_nobody_adds_to_them() -> None:
    timeline = Timeline()
    timeline.add([second(at_s, 10) for at_s in range(100, 100 + SETTLED_AFTER_S + 3)])
    assert [line.at_s for line in timeline.lines] == [100, 101, 102]
    # What comes too late for its own second is in no line twice, and in no sum missing.
    timeline.add([second(100, 5, 1.0)])
    timeline.settle(all_of_them=True)
    assert sum(line.delivered for line in timeline.lines) == timeline.delivered == 10 * (SETTLED_AFTER_S + 3) + 5
    assert timeline.latency.count == 1


def test_only_what_is_judged_is_in_rate_and_latency() -> None:
    timeline = Timeline()
    timeline.since_s, timeline.until_s = 101, 104
    timeline.add([second(100, 1000, 99), second(101, 30, 1), second(103, 60, 2), second(104, 1000, 99)])
    timeline.settle(all_of_them=True)
    # The second in which nothing came counts as one.
    assert timeline.rate() == 30
    assert timeline.latency.max == 2_000_000
    assert timeline.best_rate(2) == 530
    assert timeline.best_rate(100) == pytest.approx(2090 / 5)


def test_of_nothing_there_is_no_rate() -> None:
    assert Timeline().rate() == Timeline().best_rate(5) == 0.0
    assert curve(Histogram()) == []
    assert percentiles(Histogram()) == {}
    assert Timeline().latest(1) is None


def test_what_is_shown_is_a_second_that_all_have_reported() -> None:
    timeline = Timeline()
    timeline.add([second(at_s, at_s) for at_s in (100, 101, 102, 104)])
    assert [getattr(timeline.latest(lag_s), "at_s", None) for lag_s in (0, 1, 2, 4, 5)] == [104, 102, 102, 100, None]


def test_a_counter_gives_each_second_away_once() -> None:
    counter = Counter()
    counter.publish(7)
    assert counter.hand_over() == []
    [[_, published, delivered, _]] = counter.hand_over(all_of_it=True)
    assert (published, delivered) == (7, 0)
    counter.publish(1)
    [[_, published, _, _]] = counter.hand_over(all_of_it=True)
    assert published == 1
    assert counter.published == 8


def test_a_curve_ends_where_the_figures_do() -> None:
    latency = Histogram()
    for value in range(1, 1001):
        latency.record(value * 1_000_000)
    points = curve(latency)
    assert points[0][0] == 0
    assert points[-1] == (100.0, 1000.0)
    # Of 1,000 messages nobody knows the 99.99th percentile.
    assert max(percent for percent, _ in points[:-1]) == 99.9
    assert [ms for _, ms in points] == sorted(ms for _, ms in points)
