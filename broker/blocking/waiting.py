"""How a thread waits: for a moment, for an answer, for what became of its publishes.

Everything is a lock that somebody else releases: taking one with a timeout is what threads and greenlets alike wait
with, a signal's exception ends the wait, and making one costs next to nothing.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from contextvars import Context

    from broker_native.outcomes import Publication, Receipt

WAITERS_PRUNED = 8
LONGEST_WAIT_S = 1e6
"""Longer timeouts are none: a lock's own limit is finite."""

T = TypeVar("T")


class Waiter:
    """One thread's wait, which another one ends."""

    __slots__ = ("_alarm", "_done")

    def __init__(self) -> None:
        self._alarm = threading.Lock()
        self._alarm.acquire()
        self._done = False

    def done(self) -> bool:
        """Whether it was ended, or given up."""
        return self._done

    def set_result(self, _: object = None) -> None:
        """End the wait. Of several calls the first counts; the bus' lock keeps them apart."""
        if not self._done:
            self._done = True
            self._alarm.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait; answers whether the wait was ended, and not the time over. For one thread, once."""
        try:
            return self._alarm.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        finally:
            self._done = True


def add_waiter(waiters: list[Waiter]) -> Waiter:
    """Add one to a list, and forget those who wait no longer."""
    if len(waiters) >= WAITERS_PRUNED:
        waiters[:] = [one for one in waiters if not one.done()]
    waiter = Waiter()
    waiters.append(waiter)
    return waiter


def wake(waiters: list[Waiter]) -> None:
    """Wake everybody in the list, and empty it."""
    woken = waiters[:]
    waiters.clear()
    for waiter in woken:
        waiter.set_result()


class Deadline:
    """When a call must have come back.

    Args:
        timeout_s: From now on, seconds; None or more than LONGEST_WAIT_S: never.
    """

    __slots__ = ("_due_s", "timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._due_s = None if timeout_s is None or timeout_s > LONGEST_WAIT_S else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Return the seconds that are left, not below 0; None when there is no end."""
        return None if self._due_s is None else max(0.0, self._due_s - time.monotonic())

    def passed(self, about: str, what: str, hint: str = "") -> BrokerError:
        """Return the error of a wait whose time is over: `about: what within 5 s`."""
        return error("TIMEOUT", f"{about}: {what} within {self.timeout_s:g} s", hint)


class Answer(Waiter):
    """What became of a request."""

    __slots__ = ("_failure", "_fields")

    def __init__(self) -> None:
        super().__init__()
        self._fields: Any = {}
        self._failure: BrokerError | None = None

    def set_result(self, fields: Any = None) -> None:
        """This is the answer."""
        if not self._done:
            self._fields = fields
            super().set_result()

    def set_exception(self, failure: BrokerError) -> None:
        """There is none, and this is why."""
        if not self._done:
            self._failure = failure
            super().set_result()

    def fields(self) -> Any:
        """Return the answer that was waited for.

        Raises:
            BrokerError: There is none.
        """
        if self._failure is not None:
            raise self._failure
        return self._fields


class Pending(Generic[T]):
    """What will become of what was published: asked for with `result`, by any thread, as often as one likes.

    Args:
        publication: What the buffer fills in.
        context: Of the bus; the callback runs in it.
        timeout_s: How long `result` waits unless it is told.
    """

    __slots__ = ("_alarm", "_publication", "_timeout_s", "answered_s")

    def __init__(self, publication: Publication[T], context: Context, timeout_s: float | None) -> None:
        self._publication = publication
        self._timeout_s = timeout_s
        self._alarm = threading.Lock()
        self._alarm.acquire()
        self.answered_s = 0.0
        """When its answer came, by `time.perf_counter`; 0 before that."""
        publication.add_done_callback(self._on_done, context=context)

    def _on_done(self, _: object) -> None:
        self.answered_s = time.perf_counter()
        self._alarm.release()

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._publication.done()

    def failure(self) -> BaseException | None:
        """Return why it failed; None when it did not, or is not answered yet."""
        return self._publication.exception() if self._publication.done() else None

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the outcome.

        Args:
            timeout_s: How long; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: It was refused, or its outcome is unknown.
            CommitUnknown: The time is over. It is under way until it is answered, unless the bus is closed before that;
                asking again, or `flush`, goes on waiting.
        """
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        self.wait(deadline)
        return self._publication.result()

    def wait(self, deadline: Deadline) -> None:
        """Wait until the outcome is known.

        Raises:
            CommitUnknown: The time is over.
        """
        left_s = deadline.left_s()
        if not self._alarm.acquire(timeout=-1 if left_s is None else left_s):
            raise unknown(deadline)
        # Others may wait for it too.
        self._alarm.release()


def unknown(deadline: Deadline) -> BrokerError:
    """Return the error of a publish that was not answered in time."""
    return error(
        "COMMIT_UNKNOWN",
        f"publish: no answer within {deadline.timeout_s:g} s; it may or may not be stored",
        "It is still under way: flush() waits for it. To publish it again may store it twice.",
    )


class Answered(NamedTuple):
    """When the messages of one channel of a window were answered.

    Attributes:
        channel: The channel.
        messages: How many.
        latency_s: From posting the window to the last of their answers.
    """

    channel: str
    messages: int
    latency_s: float


class Window:
    """Many messages that left together, and what became of them.

    Args:
        parts: For each channel how many messages, and their outcome.
        timeout_s: How long `wait` waits unless it is told.
    """

    __slots__ = ("_parts", "_timeout_s", "posted_s")

    def __init__(
        self, parts: dict[str, tuple[int, Pending[list[Receipt]]]], timeout_s: float | None, posted_s: float
    ) -> None:
        self._parts = parts
        self._timeout_s = timeout_s
        self.posted_s = posted_s
        """When it was posted, by `time.perf_counter`."""

    def __len__(self) -> int:
        return sum(count for count, _ in self._parts.values())

    def done(self) -> bool:
        """Whether all outcomes are known."""
        return all(pending.done() for _, pending in self._parts.values())

    def wait(self, timeout_s: float | None = None) -> Window:
        """Wait until all of it is answered.

        Args:
            timeout_s: How long; None for the bus' own timeout, `math.inf` for ever.

        Returns:
            The window itself.

        Raises:
            BrokerError: The first failure of a channel, in the order of the window; others may be stored.
            CommitUnknown: The time is over; see `Pending.result`.
        """
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        for _, pending in self._parts.values():
            pending.wait(deadline)
        for _, pending in self._parts.values():
            pending.result()
        return self

    def receipts(self) -> dict[str, list[Receipt]]:
        """Return where the messages of each channel went, of what was answered and not refused."""
        return {
            channel: pending.result(0)
            for channel, (_, pending) in self._parts.items()
            if pending.done() and pending.failure() is None
        }

    def latencies(self) -> list[Answered]:
        """Return when each channel's messages were answered, of what was."""
        return [
            Answered(channel, count, pending.answered_s - self.posted_s)
            for channel, (count, pending) in self._parts.items()
            if pending.answered_s
        ]
