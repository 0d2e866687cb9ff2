"""A loop and a thread pool that do one thing when they are told to, so that a seed decides every interleaving."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class SteppedLoop:
    """As much of an event loop as futures need."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.timers: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self.ready.append((callback, args))

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self.ready.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        self.timers.append((callback, args))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def step(self) -> None:
        """Run the next callback."""
        callback, args = self.ready.popleft()
        callback(*args)

    def tick(self) -> None:
        """Let a timer run out."""
        callback, args = self.timers.popleft()
        callback(*args)


class SteppedPool:
    """An executor whose thread is the caller."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, work, args))
        return future

    def step(self) -> None:
        """Do the next piece of work."""
        future, work, args = self.waiting.popleft()
        future.set_result(work(*args))

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        self.waiting.clear()
