"""A real node on a loop, a commit thread and a clock that do one thing when they are told to.

Everything but the threads, the disk and the wall clock is the product's: `Node`, `Session`, `CatchUp`, `Sequencer`. The
loop runs callbacks in their order and timers when the manual clock reaches them; the reader thread's work is done at
once, and a commit when the caller says what becomes of it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from unittest import mock

from broker.access.gate import Identity
from broker.core.sequencer import Sequencer
from broker.edge.session import Session
from broker.model.errors import BrokerError
from broker.model.limits import Limits
from broker.node import catchup, node
from broker.node.time import BrokerTime
from broker_native.intake import Clock
from tests.reference import groups
from tests.reference.journal import Fate, MemoryJournal
from tests.reference.pipeline import JOURNAL, PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.core.group import Group
    from broker.model.profiles import Profiles

BEGIN_US = 1_000_000_000
TURNS_MAX = 10_000
READ_BUFFER_BYTES = 4096


class Timer:
    """What `call_later` returns."""

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.over = False

    def cancel(self) -> None:
        self.over = True

    def cancelled(self) -> bool:
        return self.over


class Loop:
    """As much of an event loop as a node and its sessions need. Exceptions of callbacks reach who runs it."""

    def __init__(self) -> None:
        self.now_us = BEGIN_US
        self.ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self.ready.append((callback, args))

    call_soon_threadsafe = call_soon

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Timer:
        timer = Timer(callback, args)
        heapq.heappush(self.timers, (self.now_us + int(seconds * 1e6), next(self._order), timer))
        return timer

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Timer:
        return self.call_later(when - self.time(), callback, *args)

    def time(self) -> float:
        return self.now_us / 1e6

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise AssertionError(context["message"]) from context.get("exception")

    def settle(self) -> None:
        """Run everything that is ready, and what that makes ready."""
        for _ in range(TURNS_MAX):
            if not self.ready:
                return
            callback, args = self.ready.popleft()
            callback(*args)
        raise AssertionError(f"the loop does not come to rest within {TURNS_MAX} callbacks")


class Pool:
    """An executor whose thread is the caller."""

    def __init__(self, **options: Any) -> None:
        """There is nothing to name and nothing to count."""

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as failure:  # what a thread would hand on
            future.set_exception(failure)
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Nothing runs."""


class Commits:
    """The commit thread, without the thread: a group waits until somebody says what becomes of it."""

    outcomes = ()  # none waits to be heard of: they are told at once

    def __init__(self, journal: MemoryJournal, loop: Loop, done: Callable[[Group, BrokerError | None], None]) -> None:
        self.journal = journal
        self.loop = loop
        self.done = done
        self.waiting: Group | None = None
        self.fence = False

    def commit(self, group: Group) -> None:
        self.waiting = group

    def recover(self, group: Group, *, abandon: bool) -> None:
        self.waiting = group
        self.fence = True

    def stop(self) -> None:
        """There is no thread."""

    def step(self, fate: Fate = Fate.STORED) -> bool:
        """Do what waits; tells whether anything did. A fence is tried until it is stored."""
        group, self.waiting = self.waiting, None
        if group is None:
            return False
        failure: BrokerError | None = None
        if self.fence:
            self.journal.abandon()
            fate = Fate.STORED
        self.fence = False
        self.journal.fate = fate
        try:
            self.journal.append(group.number, group.value)
        except BrokerError as refused:
            failure = refused
        self.loop.call_soon(self.done, group, failure)
        return True


class Peer:
    """A session's transport, and what has arrived at its other end."""

    def __init__(self) -> None:
        self.arrived = bytearray()
        self.closed = False
        self.reading = True

    def writelines(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self.write(piece)

    def write(self, data: Any) -> None:
        # A transport that is closed takes nothing more.
        if not self.closed:
            self.arrived += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def take(self) -> bytes:
        """Return what has arrived since the last time."""
        arrived = bytes(self.arrived)
        self.arrived.clear()
        return arrived


class SteppedNode:
    """A node whose every step is the caller's.

    Args:
        profiles: Policies of channels.
        limits: Bounds.
        journal: What it starts on; a new one by default.
    """

    def __init__(
        self, profiles: Profiles = PROFILES, limits: Limits | None = None, journal: MemoryJournal | None = None
    ) -> None:
        self.loop = Loop()
        self.journal = journal or MemoryJournal()
        core = Sequencer(profiles, limits or Limits(), 4770, JOURNAL)
        run = closed = 0
        for value in self.journal.replay():
            core.apply_group(value)
            group = groups.parse_group(value)
            run = group.run
            closed = run if groups.close_entry(run) in group.entries else closed
        last = self.journal.last
        number, chain = (last.number, last.chain) if last else (0, 0)
        fence = core.begin(run + 1, clean=closed == run, number=number, chain=chain, term=run + 1, time_us=BEGIN_US)
        self.journal.append(fence.number, fence.value)
        core.committed(BEGIN_US)
        with (
            mock.patch.object(node, "CommitThread", Commits),
            mock.patch.object(node, "READ_BUFFER_BYTES", READ_BUFFER_BYTES),
            mock.patch.object(catchup, "ThreadPoolExecutor", Pool),
        ):
            clock = Clock(manual=True)
            clock.manual_us = self.loop.now_us
            time = BrokerTime(BEGIN_US, lambda: self.loop.now_us, clock)
            self.node = node.Node(core, self.journal, time, self.loop)  # type: ignore[arg-type]
        # Names that nobody could guess are told by counting, so that an input can hold them.
        tokens = itertools.count()
        self.node.replies.draw = lambda: next(tokens).to_bytes(16, "big")
        self.commits: Commits = self.node._commit  # type: ignore[assignment]
        self.core = core

    def connect(self) -> tuple[Session, Peer]:
        """Return a new session, and its peer."""
        session, peer = Session(self.node, Identity(peer="test")), Peer()
        session.start(peer)
        return session, peer

    def settle(self) -> None:
        """Run what is ready; commits wait."""
        self.loop.settle()

    def commit(self, fate: Fate = Fate.STORED) -> bool:
        """Let the commit that waits come about or fail; tells whether one waited."""
        found = self.commits.step(fate)
        self.loop.settle()
        return found

    def commit_all(self) -> None:
        """Commit until nothing is pending."""
        self.loop.settle()
        while self.commit():
            """One group makes way for the next."""

    def wait(self, us: int) -> None:
        """Let time pass, and the timers that it reaches ring."""
        until = self.loop.now_us + us
        while self.loop.timers and self.loop.timers[0][0] <= until:
            at, _, timer = heapq.heappop(self.loop.timers)
            self.set_time(max(at, self.loop.now_us))
            if not timer.over:
                timer.callback(*timer.args)
            self.loop.settle()
        self.set_time(until)

    def set_time(self, now_us: int) -> None:
        self.loop.now_us = self.node.clock.manual_us = now_us
