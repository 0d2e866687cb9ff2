"""The simulation must be able to fail: some seed finds each mistake that is planted here, or the seeds prove nothing.

Every one is a mistake that this pipeline could have, most of them one that it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.core.lines import Lines
from broker.core.recent import Recent
from broker.core.sequencer import Sequencer
from broker.node.catchup import CatchUp, Following
from tests.simulation.core.test_simulation import STEPS
from tests.simulation.core.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 1_000
"""A mistake that so many seeds do not find is not found; most are within the first few."""

Patch = pytest.MonkeyPatch


def answer_at_close(patch: Patch) -> None:
    """Synced records are acknowledged before their commit."""
    close = Sequencer._close

    def impatient(self: Sequencer, *args: Any) -> Any:
        group = close(self, *args)
        for publisher, answers in group.answers:
            publisher.owner.outbox.published(answers)
        group.answers = []
        return group

    patch.setattr(Sequencer, "_close", impatient)


def answer_duplicates_at_once(patch: Patch) -> None:
    """A retry of a record that is pending is acknowledged as if it were stored."""
    patch.setattr(Sequencer, "answer_duplicate", Sequencer._answer_applied)


def deliver_early_chunks_again(patch: Patch) -> None:
    deliver = Sequencer.deliver

    def twice(self: Sequencer, group: Any) -> None:
        group.early = 0
        deliver(self, group)

    patch.setattr(Sequencer, "deliver", twice)


def forget_crashes_after_a_good_run(patch: Patch) -> None:
    patch.setattr(Sequencer, "_note_runs", lambda self, entries: None)


def end_in_good_order_after_a_failed_commit(patch: Patch) -> None:
    close = Sequencer.close

    def clean(self: Sequencer, time_us: int) -> Any:
        self._failed = False
        return close(self, time_us)

    patch.setattr(Sequencer, "close", clean)


def go_on_in_an_epoch_that_a_crash_cut(patch: Patch) -> None:
    patch.setattr(Sequencer, "_may_have_lost", lambda self, epoch: False)


def call_an_unknown_outcome_refused(patch: Patch) -> None:
    failed = Sequencer.failed

    def sure(self: Sequencer, failure: Any, *, handed_over: bool) -> None:
        failed(self, failure, handed_over=False)

    patch.setattr(Sequencer, "failed", sure)


def free_numbers_that_may_be_stored(patch: Patch) -> None:
    """WELCOME says the number that the line went back to while the failed group may still come back."""

    def highest(self: Lines, producer: bytes) -> int:
        line = self.known(producer)
        return line.next - 1 if line is not None else 0

    patch.setattr(Lines, "highest", highest)


def join_without_early_chunks(patch: Patch) -> None:
    patch.setattr(CatchUp, "_early_values", lambda self: [])


def join_one_chunk_late(patch: Patch) -> None:
    after = Recent.after

    def late(self: Recent, number: int, index: int, wanted: Any) -> Any:
        found = after(self, number, index, wanted)
        return found[1:] if found else found

    patch.setattr(Recent, "after", late)


def read_groups_that_are_not_applied(patch: Patch) -> None:
    """What the commit thread has stored and the loop has not delivered is read, and then delivered."""
    have = CatchUp._have

    class Ahead:
        def __init__(self, core: Sequencer) -> None:
            self.core = core

        def __getattr__(self, name: str) -> Any:
            return 2**64 if name == "applied_number" else getattr(self.core, name)

    def greedy(self: CatchUp, following: Following, *read: Any) -> None:
        core, step = self._core, self.step
        self._core, self.step = Ahead(core), lambda following: None  # type: ignore[method-assign, assignment]
        have(self, following, *read)
        self._core, self.step = core, step  # type: ignore[method-assign]
        self.step(following)

    patch.setattr(CatchUp, "_have", greedy)


BUGS: list[Callable[[Patch], None]] = [
    answer_at_close,
    answer_duplicates_at_once,
    deliver_early_chunks_again,
    forget_crashes_after_a_good_run,
    end_in_good_order_after_a_failed_commit,
    go_on_in_an_epoch_that_a_crash_cut,
    call_an_unknown_outcome_refused,
    free_numbers_that_may_be_stored,
    join_without_early_chunks,
    join_one_chunk_late,
    read_groups_that_are_not_applied,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_seed_finds_it(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in range(SEEDS):
        try:
            World(seed).run(STEPS)
        except AssertionError:
            return
    pytest.fail(f"{plant.__name__}: {SEEDS} seeds do not see it")
