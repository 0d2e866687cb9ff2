"""The commit thread: one group at a time, every outcome told on the loop in order, and a fence until it is stored."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from broker.core.group import Group
from broker.log.errors import AppendError
from broker.model.errors import BY_NAME, BrokerError
from broker.node import commit
from broker.node.commit import CommitThread, handed_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Journal:
    """Does what the test has planned for each append, and keeps what was called."""

    def __init__(self) -> None:
        self.plan: list[BaseException | None] = []
        self.calls: list[tuple[str, int]] = []
        self.threads: set[int] = set()

    def append(self, number: int, value: bytes) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(("append", number))
        failure = self.plan.pop(0) if self.plan else None
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        self.calls.append(("abandon", 0))


class Desk:
    """A commit thread, and what its loop was told."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.told: list[tuple[int, BrokerError | None]] = []
        self.heard = asyncio.Event()
        self.thread = CommitThread(self.journal, asyncio.get_running_loop(), self.done)

    def done(self, group: Group, failure: BrokerError | None) -> None:
        self.told.append((group.number, failure))
        self.heard.set()

    async def hear(self, count: int) -> list[tuple[int, BrokerError | None]]:
        """Wait until so many groups have an outcome."""
        async with asyncio.timeout(5):
            while len(self.told) < count:
                self.heard.clear()
                await self.heard.wait()
        return self.told


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(commit, "RECOVERY_INTERVAL_S", 0.001)
    desk = Desk()
    yield desk
    desk.thread.stop()


def group(number: int) -> Group:
    return Group(number, number - 1, b"", 0, 0, [], 0)


def failed(*, handed: bool) -> AppendError:
    failure = AppendError(BY_NAME["STORAGE_FAILED"].code, "as planned")
    failure.handed_over = handed
    return failure


async def test_groups_are_stored_in_order_on_one_other_thread(desk: Desk) -> None:
    for number in range(1, 6):
        desk.thread.commit(group(number))
    assert await desk.hear(5) == [(number, None) for number in range(1, 6)]
    assert desk.journal.calls == [("append", number) for number in range(1, 6)]
    assert len(desk.journal.threads) == 1
    assert threading.get_ident() not in desk.journal.threads


@pytest.mark.parametrize("handed", [False, True])
async def test_a_failure_is_told_as_it_is_and_not_repeated(desk: Desk, handed: bool) -> None:
    failure = failed(handed=handed)
    desk.journal.plan = [failure]
    desk.thread.commit(group(1))
    ((_, told),) = await desk.hear(1)
    assert told is failure
    assert handed_over(failure) is handed
    assert desk.journal.calls == [("append", 1)]


async def test_a_mistake_is_an_unknown_outcome(desk: Desk) -> None:
    """Nobody knows how far the append came."""
    mistake = RuntimeError("a mistake")
    desk.journal.plan = [mistake]
    desk.thread.commit(group(1))
    ((_, told),) = await desk.hear(1)
    assert told is not None
    assert told.name == "STORAGE_FAILED"
    assert told.__cause__ is mistake
    assert handed_over(told)


async def test_a_fence_is_repeated_until_it_is_stored_and_never_behind_itself(desk: Desk) -> None:
    desk.journal.plan = [failed(handed=False), failed(handed=True), failed(handed=False), None]
    desk.thread.recover(group(3), abandon=False)
    assert await desk.hear(1) == [(3, None)]
    assert [call for call, _ in desk.journal.calls] == [
        "append",
        "append",
        *["abandon", "append"] * 2,
    ]


async def test_a_fence_behind_a_group_that_was_handed_over_goes_to_a_fresh_segment(desk: Desk) -> None:
    desk.thread.recover(group(3), abandon=True)
    await desk.hear(1)
    assert desk.journal.calls == [("abandon", 0), ("append", 3)]


async def test_stop_ends_a_recovery_that_does_not_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "RECOVERY_INTERVAL_S", 60)
    desk = Desk()
    desk.journal.plan = [failed(handed=True)] * 3
    desk.thread.recover(group(3), abandon=False)
    await asyncio.get_running_loop().run_in_executor(None, desk.thread.stop)
    ((number, told),) = await desk.hear(1)
    assert number == 3
    assert told is not None


async def test_what_is_queued_is_stored_before_the_thread_ends(desk: Desk) -> None:
    for number in range(1, 4):
        desk.thread.commit(group(number))
    desk.thread.stop()
    assert len(desk.journal.calls) == 3
