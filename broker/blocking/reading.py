"""How threads read what a bus keeps for them: a subscription's messages, a consumer's jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from broker.blocking.waiting import Deadline, Waiter
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from broker.blocking.client import Client
    from broker.model.errors import BrokerError

TURN_ITEMS = 1024
"""What one iteration hands out before others get a turn: a greenlet that always finds something would let nobody."""

T = TypeVar("T")


class Reader:
    """What reads for the threads of a bus: one half of what they hold; the other is what clients share."""

    _cursor: Any  # of messages, or of jobs
    _closed: bool
    _settled: bool
    _failure: BrokerError | None

    if TYPE_CHECKING:
        # Of the other half, which comes behind this one in the order in which methods are found.
        def begin(self) -> None: ...
        def close(self) -> None: ...

    def _set_up(self, client: Client, title: str) -> None:
        self._client = client
        self._title = title
        self._openers: list[Waiter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, timeout_s: float | None = None) -> Self:
        """Ask for it, and wait until the broker has accepted it; it is closed if that fails.

        Raises:
            BrokerError: It is refused: INVALID_PATTERN, DENIED, …; TIMEOUT.
        """
        deadline = Deadline(self._client.timeout_s if timeout_s is None else timeout_s)
        waiter = Waiter()
        try:
            with self._client.lock:
                self.begin()
                self._openers.append(waiter)
                if self._settled:
                    waiter.set_result()
            if not waiter.wait(deadline.left_s()):
                raise deadline.passed("subscribe", "no answer", "Subscribe again; it was closed.")
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.close()
            raise
        return self

    # .. reading ..

    def _next(self, read: Callable[[float | None], T | None], timeout_s: float | None) -> T | None:
        try:
            return read(self._client.timeout_s if timeout_s is None else timeout_s)
        except StopIteration:
            raise error("CLOSED", f"{self._title}: closed") from None

    def _take(self, whole: bool, timeout_s: float | None) -> Any:
        """Wait for a message or a batch; None when the time is over.

        Raises:
            StopIteration: There will be none.
            BrokerError: There will be none, and this is why.
        """
        deadline = None
        while True:
            with self._client.lock:
                found = self._cursor.take_now(whole)
                if found is not None:
                    return found
                if self._closed or self._cursor.ended:
                    if self._failure is not None:
                        raise self._failure
                    raise StopIteration
                waiter = Waiter()
                self._cursor.add_waiter(waiter)
            if deadline is None:
                deadline = Deadline(timeout_s)
            if not waiter.wait(deadline.left_s()):
                return None

    # .. how its callers wait ..

    def _wake(self) -> None:
        for waiter in self._openers:
            waiter.set_result()
        self._openers.clear()

    def _call(self, function: Callable[..., object], *args: object) -> None:
        self._client.call_outside(function, *args)

    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        self._client.call_later(delay_s, function)


class Stream(Generic[T]):
    """An iterator over what a subscription hands out."""

    __slots__ = ("_left", "_read", "_timeout_s")

    def __init__(self, read: Callable[[float | None], T | None], timeout_s: float | None) -> None:
        self._read = read
        self._timeout_s = timeout_s
        self._left = TURN_ITEMS

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        self._left -= 1
        if not self._left:
            self._left = TURN_ITEMS
            time.sleep(0)
        found = self._read(self._timeout_s)
        if found is None:
            raise StopIteration
        return found
