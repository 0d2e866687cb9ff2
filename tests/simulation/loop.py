"""The event loop of one simulated process: asyncio's own, on a selector that has no files and a clock that is virtual.

What asyncio promises is kept because asyncio does it: callbacks run in the order in which they were scheduled, an
iteration runs what was ready when it began, timers come when they are due. What a real loop leaves to the machine is
drawn from the seed: how long an iteration takes, in which order sockets are found ready, when a thread gets its turn.

A loop may be called from its own iterations only; `call_soon_threadsafe` is for everybody else. It is held to that.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from tests.simulation.kernel import LifeFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from tests.simulation.kernel import Kernel
    from tests.simulation.network import Network

ITERATION_US = 4
"""An iteration that does next to nothing."""
ITERATION_MORE_US = 400
"""Some take up to so much more, few of them nearly all of it."""
THREAD_US_MAX = 2_000
"""A piece of work for a thread begins and is told within so much each."""


class Arrivals:
    """What a loop's selector finds: sockets that became ready since it was asked last, in the seed's order."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.handles: list[asyncio.Handle] = []

    def select(self, timeout: float | None = None) -> list[asyncio.Handle]:
        """Return what is ready; waiting is the kernel's."""
        found, self.handles = self.handles, []
        if len(found) > 1:
            self._kernel.random.shuffle(found)
        return found


class SimulatedLoop(asyncio.BaseEventLoop):
    """One process.

    Args:
        kernel: Where it lives.
        network: What it is connected to.
        name: Says who it is in the trace.

    Attributes:
        dead: It was killed, or the life is over: nothing of it runs any more.
        threads: What stands for its threads; each has `crash`.
    """

    def __init__(self, kernel: Kernel, network: Network, name: str) -> None:
        super().__init__()
        self.kernel = kernel
        self.network = network
        self.name = name
        self.dead = False
        self._selector = self._arrivals = Arrivals(kernel)
        self._clock_resolution = 1e-6
        self._busy_until_us = 0
        self._wake_us: int | None = None
        self.threads: list[Any] = []
        self._unborn: list[Coroutine[Any, Any, object]] = []

    # -- what the kernel does with it --

    def wake(self) -> None:
        """Something is ready: iterate as soon as the last iteration has ended."""
        self._wake_at(self.kernel.now_us)

    def _wake_at(self, at_us: int) -> None:
        if self.kernel.running is self:
            return  # the end of the iteration sees to it
        at_us = max(at_us, self._busy_until_us, self.kernel.now_us)
        if self._wake_us is None or at_us < self._wake_us:
            self._wake_us = at_us
            self.kernel.at(at_us, self._iterate, at_us)

    def _iterate(self, at_us: int) -> None:
        if self.dead or at_us != self._wake_us:
            return
        self._wake_us = None
        asyncio._set_running_loop(self)
        self.kernel.running = self
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            self.kernel.running = None
            asyncio._set_running_loop(None)
        if self.dead:
            return
        took_us = ITERATION_US + int(ITERATION_MORE_US * self.kernel.random.random() ** 8)
        self._busy_until_us = max(self._busy_until_us, self.kernel.now_us + took_us)
        if self._ready or self._arrivals.handles:  # type: ignore[attr-defined]
            self._wake_at(self._busy_until_us)
        elif self._scheduled:  # type: ignore[attr-defined]
            self._wake_at(int(self._scheduled[0].when() * 1e6 + 0.5))  # type: ignore[attr-defined]

    @property
    def is_idle(self) -> bool:
        """Whether it has done all that it could do by now."""
        return not self._ready and not self._arrivals.handles  # type: ignore[attr-defined]

    def stall(self, stall_us: int) -> None:
        """Let the process stand still: it is swapped out, or computes."""
        self._busy_until_us = max(self._busy_until_us, self.kernel.now_us) + stall_us
        if self._wake_us is not None:
            self._wake_us = None
            self.wake()

    def interrupt(self, callback: Callable[..., object], *args: Any) -> None:
        """A socket of the process is ready: have its callback run in the next iteration."""
        if not self.dead:
            self._arrivals.handles.append(asyncio.Handle(callback, args, self))
            self.wake()

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Begin a coroutine as a task of the process."""
        self._unborn.append(work)
        self.interrupt(self._spawn, work)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        self._unborn.remove(work)
        self.create_task(work).add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[object]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            self.kernel.fail(f"{self.name}: {failure!r}", failure)

    def kill(self) -> None:
        """Nothing of the process runs from now on."""
        self.dead = True
        for thread in self.threads:
            thread.crash()
        for work in self._unborn:
            work.close()
        # Its tasks are never heard of again, not even when they are freed.
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            unstarted = task.get_coro()
            if inspect.iscoroutine(unstarted) and inspect.getcoroutinestate(unstarted) == inspect.CORO_CREATED:
                unstarted.close()
        self.close()

    # -- what a loop is asked for --

    def time(self) -> float:
        return self.kernel.now_us / 1e6

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if self.dead:
            # A coroutine of a killed process is being freed, and its `finally` speaks to nobody.
            return asyncio.Handle(callback, args, self)
        if self.kernel.running is not self:
            self.kernel.fail(f"{self.name}: its loop is called from outside: {callback!r}")
            raise LifeFailed("call_soon from another thread or process")
        return super().call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None:
        """Call_soon_threadsafe has added something."""
        self.wake()

    def _process_events(self, event_list: list[asyncio.Handle]) -> None:
        self._ready.extend(event_list)  # type: ignore[attr-defined]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:
            cause = context.get("exception")
            self.kernel.fail(f"{self.name}: {context['message']}: {cause!r}", cause)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        self.kernel.after(self._thread_us(), self._execute, func, args, future)
        return future

    def _execute(self, func: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        """A thread does its work at one instant, and the loop hears of it at another one."""
        if self.dead:
            return
        try:
            result, failure = func(*args), None
        except BaseException as raised:
            result, failure = None, raised
        self.kernel.after(self._thread_us(), self._executed, future, result, failure)

    def _executed(self, future: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
        if self.dead:
            return

        def tell() -> None:
            if future.cancelled():
                return
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self.call_soon_threadsafe(tell)

    def _thread_us(self) -> int:
        return int(THREAD_US_MAX * self.kernel.random.random() ** 3)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return self.network.listen(self, protocol_factory, (host, port))

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        return await self.network.connect(self, protocol_factory, (host, port))
