"""Broker time under a wall clock that the test turns: gently towards it, never back, and after no jump at once."""

from __future__ import annotations

import logging

import pytest

from broker.events import Said
from broker.node.time import JUMP_LASTS_S, JUMP_US, SLEW_US_PER_S, BrokerTime
from broker_native.intake import Clock

NOW_US = 1_800_000_000_000_000
DAY_US = 24 * 3600 * 1_000_000
SLACK_US = 500_000
"""What the machine may take between two lines of a test."""


class Wall:
    """A wall clock that runs with the monotonic one until it is turned."""

    def __init__(self) -> None:
        self.offset_us = NOW_US - Clock.monotonic_us()

    def __call__(self) -> int:
        return Clock.monotonic_us() + self.offset_us


def behind_us(broker_time: BrokerTime, wall: Wall) -> int:
    """How far broker time is behind the wall, exactly."""
    return wall.offset_us - broker_time.clock.offset_us


def test_begins_at_the_wall() -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    assert abs(broker_time.clock.now_us() - wall()) < SLACK_US


def test_begins_above_the_last_group() -> None:
    wall = Wall()
    floor_us = wall() + 3 * DAY_US
    broker_time = BrokerTime(floor_us, wall)
    assert 0 <= broker_time.clock.now_us() - floor_us < SLACK_US


@pytest.mark.parametrize("behind_us", [1_500, JUMP_US + 1, 3 * DAY_US, 30 * 365 * DAY_US])
def test_goes_on_from_the_last_group_under_a_wall_that_is_behind(behind_us: int) -> None:
    """What waits for its time waits no longer for that; meanwhile it comes nearer to the wall, at a thousandth."""
    clock = Clock(manual=True)
    clock.manual_us = 1_000_000
    broker_time = BrokerTime(NOW_US + behind_us, lambda: NOW_US + clock.manual_us - 1_000_000, clock)
    last = broker_time.clock.now_us()
    assert last == NOW_US + behind_us
    for _ in range(100):
        clock.manual_us += 1_000_000
        broker_time.steer()
        gone = broker_time.clock.now_us() - last
        assert 1_000_000 - SLEW_US_PER_S <= gone <= 1_000_000
        last += gone
    assert last - (NOW_US + 100_000_000) == max(0, behind_us - 100 * SLEW_US_PER_S)
    assert broker_time.ages_us() <= NOW_US + 100_000_000


@pytest.mark.parametrize("by_us", [-JUMP_US + 100_000, -1_500, -300, 300, 1_500, JUMP_US - 100_000])
def test_a_small_difference_is_made_up_at_a_thousandth(by_us: int) -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    wall.offset_us += by_us
    left = behind_us(broker_time, wall)
    for _ in range(5):
        before = behind_us(broker_time, wall)
        broker_time.steer()
        moved = before - behind_us(broker_time, wall)
        # The two clocks are read one after the other, so a moment of the machine's counts as a difference too.
        assert abs(moved) <= SLEW_US_PER_S
        left -= moved
    assert abs(left) < max(abs(by_us) - 4 * SLEW_US_PER_S, SLEW_US_PER_S)


def test_time_between_steers_allows_more() -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    wall.offset_us += 1_000_000
    before = broker_time.clock.offset_us
    broker_time.steer(7)
    assert broker_time.clock.offset_us - before == 7 * SLEW_US_PER_S


@pytest.mark.parametrize("days", [-5, 5])
def test_a_jump_raises_an_alarm_and_is_not_followed(days: int, caplog: pytest.LogCaptureFixture) -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    before = broker_time.clock.now_us()
    offset = broker_time.clock.offset_us
    wall.offset_us += days * DAY_US
    with caplog.at_level(logging.WARNING, "broker.node"):
        for _ in range(JUMP_LASTS_S - 1):
            broker_time.steer()
    assert broker_time.clock.offset_us == offset
    assert 0 <= broker_time.clock.now_us() - before < SLACK_US
    (said,) = (record.msg for record in caplog.records)  # once
    assert isinstance(said, Said)
    assert said.event.name == "clock_jump"
    assert said.fields == {"behind_s": pytest.approx(days * 86_400, abs=1), "lasts_s": JUMP_LASTS_S}


@pytest.mark.parametrize("days", [-5, 5])
def test_a_jump_that_comes_back_was_none(days: int) -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    offset = broker_time.clock.offset_us
    for _ in range(3):
        wall.offset_us += days * DAY_US
        for _ in range(JUMP_LASTS_S - 1):
            broker_time.steer()
        wall.offset_us -= days * DAY_US
        broker_time.steer()
    assert abs(broker_time.clock.offset_us - offset) <= 3 * SLEW_US_PER_S


@pytest.mark.parametrize("days", [-5, 5])
def test_a_jump_that_lasts_is_followed_gently_and_never_back(days: int) -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    wall.offset_us += days * DAY_US
    offset = broker_time.clock.offset_us
    last = broker_time.clock.now_us()
    for _ in range(JUMP_LASTS_S + 9):
        broker_time.steer()
        now = broker_time.clock.now_us()
        assert now >= last
        last = now
    step = SLEW_US_PER_S if days > 0 else -SLEW_US_PER_S
    assert broker_time.clock.offset_us - offset == 10 * step


# -- the time by which ages are judged ---------------------------------------------------------------------------------


def steered(broker_time: BrokerTime, seconds: int) -> BrokerTime:
    for _ in range(seconds):
        broker_time.steer()
    return broker_time


def test_ages_go_by_broker_time() -> None:
    wall = Wall()
    broker_time = BrokerTime(wall_us=wall)
    assert abs(broker_time.ages_us() - wall()) < SLACK_US


@pytest.mark.parametrize("days", [5, -5])
def test_a_jump_of_the_wall_makes_nothing_older(days: int) -> None:
    wall = Wall()
    broker_time = steered(BrokerTime(wall() - 1_000_000, wall), JUMP_LASTS_S)
    before = wall()
    wall.offset_us += days * DAY_US
    for _ in range(4 * JUMP_LASTS_S):
        broker_time.steer()
        # Whatever the wall says: not a day, nor more than the slew.
        assert broker_time.ages_us() <= before + 4 * JUMP_LASTS_S * SLEW_US_PER_S + SLACK_US
    wall.offset_us -= days * DAY_US
    assert abs(broker_time.ages_us() - before) < SLACK_US + 4 * JUMP_LASTS_S * SLEW_US_PER_S


@pytest.mark.parametrize("corrected_after_s", [0, 1, JUMP_LASTS_S - 1])
def test_a_start_under_a_wrong_wall_makes_nothing_older(corrected_after_s: int) -> None:
    """It is five days ahead at the start and set right within the minute: broker time stays where it was, ages go by
    what is true."""
    wall = Wall()
    last_us = wall() - 1_000_000
    wall.offset_us += 5 * DAY_US
    broker_time = steered(BrokerTime(last_us, wall), corrected_after_s)
    assert broker_time.clock.now_us() > last_us + 4 * DAY_US
    assert broker_time.ages_us() < last_us + SLACK_US
    wall.offset_us -= 5 * DAY_US
    for _ in range(3 * JUMP_LASTS_S):
        broker_time.steer()
        assert broker_time.ages_us() < last_us + 1_000_000 + SLACK_US
    assert broker_time.clock.now_us() > last_us + 4 * DAY_US


def test_groups_of_a_wrong_time_do_not_vouch_for_a_jump_to_it() -> None:
    """They were written under a clock five days ahead, it is right since the start, and jumps there again."""
    wall = Wall()
    broker_time = steered(BrokerTime(wall() + 5 * DAY_US, wall), 2 * JUMP_LASTS_S)
    before = wall()
    wall.offset_us += 5 * DAY_US
    assert broker_time.clock.now_us() >= before + 5 * DAY_US - SLACK_US
    assert steered(broker_time, 2).ages_us() < before + SLACK_US


def test_a_pause_counts_once_the_wall_has_kept_pace_for_a_minute() -> None:
    wall = Wall()
    last_us = wall() - 5 * DAY_US
    broker_time = steered(BrokerTime(last_us, wall), JUMP_LASTS_S - 1)
    assert broker_time.ages_us() < last_us + SLACK_US
    broker_time.steer()
    assert abs(broker_time.ages_us() - wall()) < SLACK_US


def test_a_jump_soon_after_the_start_begins_the_minute_anew() -> None:
    wall = Wall()
    last_us = wall() - 5 * DAY_US
    broker_time = steered(BrokerTime(last_us, wall), JUMP_LASTS_S - 1)
    wall.offset_us += DAY_US
    broker_time.steer()
    wall.offset_us -= DAY_US
    assert steered(broker_time, JUMP_LASTS_S - 1).ages_us() < last_us + SLACK_US
