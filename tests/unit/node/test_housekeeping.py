"""Long work: one at a time, asked about by number, ended between two steps, and its mistakes are told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from broker.model.errors import BrokerError, error
from broker.node.housekeeping import TASKS_KEPT, Housekeeping

if TYPE_CHECKING:
    from collections.abc import Callable

    Between = Callable[[int, int], None]


def finished(housekeeping: Housekeeping, task_id: int) -> tuple[str, str]:
    """Wait for a task, without closing; return how it ended."""
    assert housekeeping._thread is not None
    housekeeping._thread.join(10)
    task = housekeeping.task(task_id)
    return task.state, task.detail


def test_a_task_tells_how_far_it_is_and_what_came_of_it() -> None:
    housekeeping, reached, go_on = Housekeeping(), threading.Event(), threading.Event()

    def work(between: Between) -> str:
        between(1, 3)
        reached.set()
        assert go_on.wait(10)
        between(2, 3)
        return "copied"

    number = housekeeping.start("backup", work)
    assert reached.wait(10)
    task = housekeeping.task(number)
    assert (task.op, task.state, task.done, task.total) == ("backup", "running", 1, 3)
    with pytest.raises(BrokerError, match="BUSY"):
        housekeeping.start("backup", work)
    go_on.set()
    assert finished(housekeeping, number) == ("done", "copied")
    task = housekeeping.task(number)
    assert (task.done, task.total) == (3, 3)
    assert finished(housekeeping, housekeeping.start("other", lambda between: "again")) == ("done", "again")


@pytest.mark.parametrize("failure", [error("STORAGE_FULL", "disk: no room"), ValueError("a mistake")])
def test_a_task_that_fails_says_why(failure: Exception) -> None:
    housekeeping = Housekeeping()

    def work(between: Between) -> str:
        raise failure

    state, detail = finished(housekeeping, housekeeping.start("backup", work))
    assert state == "failed"
    assert str(failure) in detail


def test_closing_ends_a_task_between_two_steps() -> None:
    housekeeping, begun, cleaned = Housekeeping(), threading.Event(), threading.Event()

    def work(between: Between) -> str:
        try:
            while True:
                begun.set()
                between(0, 1)
        finally:
            cleaned.set()

    number = housekeeping.start("backup", work)
    assert begun.wait(10)
    housekeeping.close()
    assert cleaned.is_set()
    assert housekeeping.task(number).state == "failed"


def test_only_the_newest_tasks_are_known() -> None:
    housekeeping = Housekeeping()
    for _ in range(TASKS_KEPT + 1):
        finished(housekeeping, housekeeping.start("nothing", lambda between: ""))
    for unknown in (1, 0, TASKS_KEPT + 2, None, "1"):
        with pytest.raises(BrokerError, match="UNKNOWN_OPERATION"):
            housekeeping.task(unknown)
    assert housekeeping.task(2).state == "done"
