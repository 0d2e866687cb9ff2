"""The simulation must be able to fail: some seed finds each mistake that can be planted, or the seeds prove nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.kernel import LifeFailed
from tests.simulation.life import Life
from tests.simulation.test_lives import LIVES

if TYPE_CHECKING:
    from collections.abc import Callable

FOUND_BY = {
    "lose_answers_at_a_pause": 73,
    "never_resume_a_paused_outbox": 11,
    "never_resume_a_paused_client": 33,
    "never_read_again_from_those_held": 22,
    "ignore_going_away": 45,
    "accept_the_end_of_a_connection_in_silence": 0,
    "let_two_connections_have_a_line": 4,
    "say_a_highest_that_is_one_too_low": 0,
    "say_a_highest_that_is_one_too_high": 0,
    "take_an_unknown_outcome_for_a_refusal": 135,
    "answer_at_close": 1,
    "answer_duplicates_at_once": 6,
    "call_an_unknown_outcome_refused": 20,
    "free_numbers_that_may_be_stored": 467,
    "stay_in_a_failed_segment": 0,
    "swallow_a_failed_commit": 1,
    "end_in_good_order_after_a_failed_commit": 14,
    "forget_crashes_before_the_last_run": 94,
    "go_on_in_an_epoch_that_a_crash_cut": 0,
    "count_credit_twice": 0,
    "grant_again_what_was_granted": 0,
    "forget_to_grant": 3,
    "resume_one_too_late": 0,
    "resume_a_place_one_group_too_late": 135,
    "forget_what_came_early": 0,
    "deliver_after_unsubscribed": 2,
    "deliver_early_chunks_again": 0,
    "join_without_early_chunks": 0,
    "join_one_chunk_late": 2,
    "join_behind_half_a_group": 2,
    "read_groups_that_are_not_applied": 41,
    "wait_for_a_pause_that_never_came": 1,
    "demote_behind_the_refused_chunk": 13,
    "demote_one_chunk_before_the_refused_one": 143,
    "forget_the_ids_of_a_run_before": 3,
    "forget_cancellations": 19,
    "publish_what_is_due_without_its_place": 19,
    "stand_still_below_the_last_group": 227,
    "give_a_group_to_everybody": 7,
}
"""The first seed that found each one. When the simulation changes these may miss, and then all are searched; run this
file with `-rP` and put down what it prints."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_seed_finds_it(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    known = FOUND_BY.get(plant.__name__, 0)
    for seed in [known, *range(LIVES)]:
        try:
            Life(seed).run()
        except LifeFailed:
            if seed != known:
                print(f'    "{plant.__name__}": {seed},')
            return
    pytest.fail(f"{plant.__name__}: {LIVES} seeds do not see it")
