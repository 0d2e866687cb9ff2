"""Long work beside the serving: one task at a time, on a thread of its own, asked about by number.

A task gives way: after each small step it waits as long as the step took, so that it has at most half of the disk and
of the interpreter. Closing ends it between two steps, and it cleans up behind itself. Tasks are forgotten when the
broker ends.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from broker.events import emit
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Callable

    Between = Callable[[int, int], None]

PAUSE_S_MAX = 0.25
"""A single step that took longer than this was held up by somebody else."""
TASKS_KEPT = 64


class Cancelled(Exception):
    """The broker is closing."""


@dataclass(slots=True)
class Task:
    """One piece of work and how far it is.

    Attributes:
        id: from 1.
        op: what it does.
        state: `failed` and `done` are the end of it.
        done, total: bytes, as far as they are known.
        detail: of `done` what came of it, of `failed` why.
    """

    id: int
    op: str
    state: Literal["running", "done", "failed"] = "running"
    done: int = 0
    total: int = 0
    detail: str = ""


class Housekeeping:
    """Runs tasks; `start`, `task` and `close` are called by one thread."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._last = 0
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self, op: str, work: Callable[[Between], str]) -> int:
        """Begin a task.

        Args:
            op: what it does, for people.
            work: runs on the thread; calls what it is given between small steps with (bytes done, bytes in all), and
                returns what came of it. What that call raises must end it.

        Returns:
            The task's id.

        Raises:
            Unavailable: BUSY; another one is running.
        """
        running = self._tasks.get(self._last)
        if running is not None and running.state == "running":
            raise error("BUSY", f"task {running.id} ({running.op}) is running: got 2 tasks, limit 1")
        self._last += 1
        task = self._tasks[self._last] = Task(self._last, op)
        self._tasks.pop(self._last - TASKS_KEPT, None)
        self._thread = threading.Thread(target=self._run, args=(task, work), name="broker-housekeeping", daemon=True)
        self._thread.start()
        return task.id

    def task(self, task_id: object) -> Task:
        """Return a task as it is now.

        Raises:
            RequestError: UNKNOWN_OPERATION; there is none of this id, or no more.
        """
        task = self._tasks.get(task_id) if isinstance(task_id, int) else None
        if task is None:
            raise error("UNKNOWN_OPERATION", f"task {task_id!r:.100}: this run of the broker has none of that number")
        return task

    def close(self) -> None:
        """End what is running between two of its steps, and wait for that."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, task: Task, work: Callable[[Between], str]) -> None:
        begun_s = time.monotonic()

        def between(done: int, total: int) -> None:
            nonlocal begun_s
            task.done, task.total = done, total
            if self._closing.wait(min(time.monotonic() - begun_s, PAUSE_S_MAX)):
                raise Cancelled
            begun_s = time.monotonic()

        try:
            task.detail = work(between)
            task.done, task.state = task.total, "done"
        except Cancelled:
            task.detail, task.state = "the broker was closed", "failed"
        except BrokerError as failure:
            task.detail, task.state = str(failure), "failed"
        except Exception as bug:
            emit("task_failed", op=task.op, failure=bug)
            task.detail, task.state = f"it failed: {bug!r}", "failed"
