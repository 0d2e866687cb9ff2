"""The policy of reconnecting, by a clock and a chance of the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.errors import ConfigError, error
from broker.remote.reconnect import Backoff, BackoffPolicy, LineKnowledge, hinted_s, is_final
from broker.wire.control import Limits, Welcome

POLICY = BackoffPolicy(first_s=0.1, factor=2.0, longest_s=1.0, settled_s=5.0)


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(POLICY, lambda: 1.0)
    assert [backoff.delay_s(0) for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@given(st.integers(0, 2**32), st.integers(1, 3000))
def test_each_wait_is_drawn_from_the_upper_half_of_its_step(seed: int, attempts: int) -> None:
    backoff = Backoff(POLICY, random.Random(seed).random)
    for attempt in range(attempts):
        step = min(1.0, 0.1 * 2.0 ** min(attempt, 64))
        assert step / 2 <= backoff.delay_s(0) <= step


def test_a_connection_that_settled_is_replaced_at_once_and_one_that_did_not_is_not() -> None:
    backoff = Backoff(POLICY, lambda: 1.0)
    for _ in range(4):
        backoff.delay_s(0)
    backoff.connected(100.0)
    assert backoff.delay_s(104.9) == pytest.approx(1.0)
    backoff.connected(200.0)
    assert backoff.delay_s(205.0) == 0.0
    assert backoff.delay_s(205.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("chance", "waits_s"), [(0.0, 1.0), (0.5, 2.0), (0.999, 2.998)])
def test_a_server_that_says_when_is_obeyed_and_takes_no_step(chance: float, waits_s: float) -> None:
    backoff = Backoff(POLICY, lambda: chance)
    backoff.connected(0.0)
    assert backoff.delay_s(100.0, 2_000) == pytest.approx(waits_s), "though it had settled"
    assert [backoff.delay_s(100.0, 2_000) for _ in range(9)] == pytest.approx([waits_s] * 9)
    assert backoff.delay_s(100.0) == pytest.approx(0.1 * (1 + chance) / 2), "the first step, since none was taken"


def test_nobody_has_to_believe_in_more_than_a_minute() -> None:
    assert hinted_s(2**32 - 1, 0.999) == pytest.approx(60 * 1.499)


@pytest.mark.parametrize(
    "wrong", [{"first_s": 0}, {"first_s": 2.0, "longest_s": 1.0}, {"factor": 0.5}, {"settled_s": -1}]
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        BackoffPolicy(**wrong)


def test_what_the_server_will_never_take_is_final() -> None:
    assert is_final(error("DENIED", ""))
    assert is_final(error("VERSION", ""))
    assert not any(is_final(error(name, "")) for name in ("BUSY", "GOING_AWAY", "CONNECTION_LOST", "STORAGE_FULL"))
    assert not is_final(OSError())


def welcome(run: int, highest: int, journal: bytes = b"j") -> Welcome:
    return Welcome("", run, journal, highest, Limits(1, 1, 1, 1, 1), 15.0)


@pytest.mark.parametrize(
    ("run", "highest", "known"), [(1, 6, False), (1, 7, True), (1, 11, True), (2, 6, False), (2, 7, True)]
)
def test_a_line_is_known_if_nothing_is_missing_that_cannot_be_lost(run: int, highest: int, known: bool) -> None:
    """A crash and a failed commit take what was only accepted; nothing takes what was synced."""
    before = LineKnowledge(journal=b"j", synced=7)
    failure = before.unknown(welcome(run, highest))
    assert (failure is None) == known
    if failure is not None:
        assert failure.name == "COMMIT_UNKNOWN"
    assert before.unknown(welcome(run, highest, b"k")) is not None
