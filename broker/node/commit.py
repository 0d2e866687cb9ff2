"""The commit thread: one group at a time from the loop to the journal and back.

Two hand-overs a group, whatever its size: the loop puts it here, the thread leaves the outcome and wakes the loop. A
busy loop looks for outcomes between two reads as well, since the disk has nothing to do until it has heard. An fsync
never runs on the loop.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

from broker.log.errors import AppendError
from broker.model.errors import BY_NAME, BrokerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.group import Group
    from broker.core.ports import Journal

__all__ = ["CommitThread", "handed_over"]

RECOVERY_INTERVAL_S = 0.1
"""How often a journal that failed is tried again."""


@dataclass(slots=True)
class Work:
    """What the thread is given: one group.

    Attributes:
        group: The group.
        persist: Try again until it is stored.
        abandon: Leave the active segment first: a group that failed may be in it.
        failure: Why the last attempt failed.
    """

    group: Group
    persist: bool = False
    abandon: bool = False
    failure: BrokerError | None = None


class CommitThread:
    """Commits groups in order.

    Args:
        journal: Where they go.
        loop: The loop that is told.
        done: Called on the loop with (group, None or the error) after each group, in order.

    Attributes:
        outcomes: Groups that the thread is through with, and the loop has not heard of.
    """

    def __init__(
        self,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Group, BrokerError | None], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._done = done
        self.outcomes: deque[tuple[Group, BrokerError | None]] = deque()
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="broker-commit", daemon=True)
        self._thread.start()

    def commit(self, group: Group) -> None:
        """Make the group durable; `done` hears of it."""
        self._queue.put(Work(group))

    def recover(self, group: Group, *, abandon: bool) -> None:
        """Make this fence group durable, however often it takes; `done` hears of it when it is.

        Args:
            group: The fence.
            abandon: Leave the active segment first: a group that failed may be in it.
        """
        self._queue.put(Work(group, True, abandon))

    def hear(self) -> None:
        """Tell of the groups that the thread is through with; on the loop."""
        while self.outcomes:
            self._done(*self.outcomes.popleft())

    def stop(self) -> None:
        """End the thread after what is queued; blocks until it has ended."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            while not self._attempt(work) and not self._stopping.wait(RECOVERY_INTERVAL_S):
                pass
            self._tell(work.group, work.failure)

    def _attempt(self, work: Work) -> bool:
        """Append the group once; answers whether that was the last attempt."""
        work.failure = self._append(work.group, work.abandon)
        if work.failure is None or not work.persist:
            return True
        # A fence that may have been handed over must not be appended behind itself.
        work.abandon = work.abandon or handed_over(work.failure)
        return False

    def _append(self, group: Group, abandon: bool) -> BrokerError | None:
        try:
            if abandon:
                self._journal.abandon()
            self._journal.append(group.number, group.value)
        except BrokerError as failure:
            return failure
        except Exception as failure:  # a bug or a library's own error: the outcome is not known
            wrapped = AppendError(BY_NAME["STORAGE_FAILED"].code, f"commit of group {group.number}: {failure!r}")
            wrapped.handed_over = True
            wrapped.__cause__ = failure
            return wrapped
        return None

    def _tell(self, group: Group, failure: BrokerError | None) -> None:
        self.outcomes.append((group, failure))
        try:
            self._loop.call_soon_threadsafe(self.hear)
        except RuntimeError:
            # The loop was closed under us (its owner did not close the broker): there is nobody to tell.
            self._stopping.set()


def handed_over(failure: BrokerError) -> bool:
    """Whether the group of a failed commit may be on the disk all the same."""
    return isinstance(failure, AppendError) and failure.handed_over
