"""So many programs of conversations from a seed, in this process: `python -m tests.conversation.programs COUNT SEED`.

A program that fails is printed as code that runs, by Hypothesis, once it is as short as it gets. A seed makes the same
programs again.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from broker.core.sequencer import Sequencer
from broker.edge import beginning
from broker.edge.session import Session
from broker.node import node
from broker.node.catchup import CatchUp
from tests.conversation.machine import Conversations

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 8
PROGRAMS_A_SEED = 1000
"""Hypothesis remembers what it has tried, so many programs at once become slower."""


def run(count: int, first_seed: int, *, shrink: bool = True) -> None:
    """Run programs.

    Args:
        count: How many.
        first_seed: The first of the seeds, one for each PROGRAMS_A_SEED.
        shrink: Make one that fails as short as it gets.
    """
    logging.disable(logging.ERROR)
    for offset, begin in enumerate(range(0, count, PROGRAMS_A_SEED)):
        machine = seed(first_seed + offset)(type("Conversations", (Conversations,), {}))
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=min(PROGRAMS_A_SEED, count - begin),
                    stateful_step_count=STEPS,
                    phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
                    deadline=None,
                    database=None,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except BaseException as failure:
            failure.add_note(f"seed {first_seed + offset}")
            raise


# -- planted mistakes --------------------------------------------------------------------------------------------------


def skip_one(session: Any, following: Any, name: bytes, epoch: int, sequence: int, *, right: Any) -> Any:
    """A resume that begins one record too late."""
    outcome = right(session, following, name, epoch, sequence)
    if name in following.after and following.after[name] + 1 < session.node.tails.info(name)[6]:
        following.after[name] += 1
    return outcome


def turn_a_read(session: Any, *, right: Any) -> None:
    """A turn that ends with each piece that is read: what a client is sent depends on how its bytes are cut."""
    right(session)
    session.node.end_turn()


def wrapped(owner: Any, name: str, wrong: Callable[..., Any]) -> Any:
    """Return a patch that gives the right function to the wrong one."""
    right = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *words: wrong(*words, right=right))


MISTAKES: dict[str, Callable[[], Any]] = {
    "a resume skips a record": lambda: wrapped(beginning, "place_literal", skip_one),
    "a turn ends with each piece": lambda: wrapped(Session, "on_read", turn_a_read),
    "a retry is not answered": lambda: mock.patch.object(Sequencer, "_answer_applied"),
    "an unknown outcome is called refused": lambda: mock.patch.object(node, "handed_over", return_value=False),
    "a producer has two connections": lambda: mock.patch.object(Session, "_take_line"),
    "a subscription outlives its end": lambda: mock.patch.object(
        CatchUp, "leave", lambda catchup, following: setattr(following.subscription, "state", None)
    ),
}


def main(words: list[str]) -> None:
    """Run so many programs from a seed, with a mistake planted if one is named."""
    count, first_seed = int(words[0]), int(words[1])
    if len(words) > 2:
        with MISTAKES[words[2]]():
            run(count, first_seed, shrink=False)
    else:
        run(count, first_seed)


if __name__ == "__main__":
    main(sys.argv[1:])
