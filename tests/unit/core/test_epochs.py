"""What a reader's position is still good for, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.epochs import EPHEMERAL_BIT, RUN_SHIFT, Outcome, resume


def epoch(run: int, group: int) -> int:
    return run << RUN_SHIFT | group


E1, E2, E3 = epoch(1, 2), epoch(2, 9), epoch(2, 30)
THREE = [(E1, 1), (E2, 6), (E3, 11)]
"""E1 has sequences 1 to 5, E2 has 6 to 10, E3 what follows."""


@pytest.mark.parametrize(
    ("position", "outcome"),
    [
        ((E1, 0), Outcome("resumed", 0, 0)),
        ((0, 0), Outcome("resumed", 0, 0)),
        ((E1, 1), Outcome("resumed", 1, 1)),
        ((E1, 5), Outcome("resumed", 5, 5)),
        ((E1, 6), Outcome("diverged", 5, 5)),
        ((E1, 9), Outcome("diverged", 5, 5)),
        ((E2, 6), Outcome("resumed", 6, 6)),
        ((E2, 10), Outcome("resumed", 10, 10)),
        ((E2, 11), Outcome("diverged", 10, 10)),
        ((E3, 11), Outcome("resumed", 11, 11)),
        ((E3, 14), Outcome("resumed", 14, 14)),
        ((E3, 15), Outcome("diverged", 14, 14)),
        ((E3, 2**64 - 1), Outcome("diverged", 14, 14)),
        # A reader that had seen nothing under its epoch stands at the end of the one before.
        ((E2, 5), Outcome("resumed", 5, 5)),
    ],
)
def test_positions_in_epochs_that_are_kept(position: tuple[int, int], outcome: Outcome) -> None:
    assert resume(THREE, 1, 15, *position) == outcome


@pytest.mark.parametrize(
    ("position", "outcome"),
    [
        # Lost between E1 and E2: it began where E1 ended, or later.
        ((epoch(1, 50), 7), Outcome("diverged", 5, 5)),
        ((epoch(1, 50), 3), Outcome("diverged", 3, 3)),
        ((epoch(2, 20), 12), Outcome("diverged", 10, 10)),
        ((epoch(2, 31), 99), Outcome("diverged", 14, 14)),
        ((epoch(9, 1), 12), Outcome("diverged", 12, 12)),
        ((epoch(1, 1), 1), Outcome("diverged", 0, 0)),
        ((1, 1), Outcome("diverged", 0, 0)),
    ],
)
def test_positions_in_epochs_that_a_crash_took(position: tuple[int, int], outcome: Outcome) -> None:
    assert resume(THREE, 1, 15, *position) == outcome


@pytest.mark.parametrize(
    ("position", "outcome"),
    [
        ((E1, 0), Outcome("trimmed", 8, 7)),
        ((E1, 5), Outcome("trimmed", 8, 7)),
        ((E2, 6), Outcome("trimmed", 8, 7)),
        ((E2, 7), Outcome("resumed", 7, 7)),
        ((E1, 6), Outcome("diverged", 5, 7)),
        ((epoch(1, 50), 7), Outcome("diverged", 5, 7)),
    ],
)
def test_positions_before_the_first_there_is(position: tuple[int, int], outcome: Outcome) -> None:
    """The answer names the last common sequence; delivery begins where there is something."""
    assert resume(THREE, 8, 15, *position) == outcome


def test_ephemeral_epoch_has_nothing_in_common_with_what_was_stored_in_its_run_or_after() -> None:
    """Ephemeral epochs count by themselves: their numbers say nothing about the groups of their run."""
    ephemeral = 2 << RUN_SHIFT | EPHEMERAL_BIT | 1
    assert ephemeral > E3
    assert resume(THREE, 1, 15, ephemeral, 12) == Outcome("diverged", 5, 5)
    assert resume([(E2, 1)], 1, 15, ephemeral, 7) == Outcome("diverged", 0, 0)
    assert resume(THREE, 1, 15, 3 << RUN_SHIFT | EPHEMERAL_BIT | 1, 12) == Outcome("diverged", 12, 12)


def test_channel_without_records() -> None:
    assert resume([], 1, 1, 0, 0) == Outcome("resumed", 0, 0)
    assert resume([], 1, 1, E1, 4) == Outcome("diverged", 0, 0)


def test_epoch_whose_records_were_all_lost() -> None:
    """Its successor began where it did."""
    assert resume([(E1, 1), (E2, 1)], 1, 4, E1, 2) == Outcome("diverged", 0, 0)
    assert resume([(E1, 1), (E2, 1)], 1, 4, E2, 2) == Outcome("resumed", 2, 2)


@given(
    firsts=st.lists(st.integers(1, 30), min_size=1, max_size=5).map(sorted),
    first=st.integers(1, 20),
    more=st.integers(0, 10),
    asked=st.integers(0, 50),
    sequence=st.integers(0, 60),
)
def test_no_outcome_promises_too_much(firsts: list[int], first: int, more: int, asked: int, sequence: int) -> None:
    """What is called common was stored under the asked epoch or before it; delivery goes on behind it without a gap."""
    epochs = [(epoch(1, 10 * index), begin) for index, begin in enumerate(firsts, 1)]
    after_last = max(firsts[-1], first) + more
    outcome = resume(epochs, first, after_last, epoch(1, asked), sequence)
    common = min(
        [begin - 1 for known, begin in epochs if known > epoch(1, asked)] + [after_last - 1, sequence],
    )
    assert first - 1 <= outcome.after < after_last
    if outcome.name == "diverged":
        assert outcome.at <= common
        assert outcome.after == max(outcome.at, first - 1)
    elif outcome.name == "resumed":
        assert outcome.at == outcome.after == sequence <= common
    else:
        assert outcome == ("trimmed", first, first - 1)
        assert sequence + 1 < first
