"""A broker that stands still: a node on a loop, a clock and a journal that move only when they are told to.

The sessions, the sequencer and the codec are the real ones, without sockets and threads, so the same bytes in give the
same bytes out. The journal is `tests.reference.journal`'s, in memory.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from broker.access.gate import Identity
from broker.core.sequencer import Sequencer
from broker.edge import session as session_module
from broker.edge.session import Session
from broker.model.errors import error
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.node.commit import handed_over
from broker.node.node import Node
from broker.node.time import BrokerTime
from broker_native.intake import Clock
from tests.reference.journal import Fate, MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.core.group import Group
    from broker.model.errors import BrokerError

JOURNAL = bytes.fromhex("6a6f75726e616c2d6f662d676f6c6421")
TIME_US = 1_767_225_600_000_000
"""2026-01-01 00:00:00 UTC."""
VERSION_SHOWN = "1.0"
PROFILES = Profiles(
    [
        Profile(b"e.>", Level.EPHEMERAL),
        Profile(b"a.>", Level.ACCEPTED),
        Profile(b"s.>"),
        Profile(b"d.>", slow="disconnect"),
    ]
)
LIMITS = Limits(payload_bytes_max=100, headers_bytes_max=20, channels_per_connection_max=8)


class Timer:
    """A callback at a time; what `call_later` returns."""

    def __init__(self, at_s: float, order: int, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.at_s, self.order, self.callback, self.args = at_s, order, callback, args

    def __lt__(self, other: Timer) -> bool:
        return (self.at_s, self.order) < (other.at_s, other.order)

    def cancel(self) -> None:
        self.callback = lambda *_: None


class Loop:
    """As much of an event loop as a node needs; time is given, not read."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[Timer] = []
        self._order = 0

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self._ready.append((callback, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> Timer:
        self._order += 1
        timer = Timer(self.now_s + delay_s, self._order, callback, args)
        heapq.heappush(self._timers, timer)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def run_ready(self) -> bool:
        """Run what is due; answers whether anything was."""
        ran = False
        while self._timers and self._timers[0].at_s <= self.now_s:
            timer = heapq.heappop(self._timers)
            self._ready.append((timer.callback, timer.args))
        while self._ready:
            callback, args = self._ready.popleft()
            callback(*args)
            ran = True
        return ran


class Commits:
    """The commit thread without its thread: a group waits until the stage says what becomes of it."""

    outcomes = ()  # none waits to be heard of: they are told at once

    def __init__(self, journal: MemoryJournal, done: Callable[[Group, BrokerError | None], None]) -> None:
        self._journal = journal
        self._done = done
        self.waiting: deque[tuple[Group, bool]] = deque()

    def commit(self, group: Group) -> None:
        self.waiting.append((group, False))

    def recover(self, group: Group, *, abandon: bool) -> None:
        self.waiting.append((group, abandon))

    def step(self, fate: Fate = Fate.STORED) -> None:
        group, abandon = self.waiting.popleft()
        failure: BrokerError | None = None
        if abandon:
            self._journal.abandon()
        self._journal.fate = fate
        try:
            self._journal.append(group.number, group.value)
        except Exception as raised:
            failure = raised  # type: ignore[assignment]
            assert handed_over(failure) or fate is Fate.REFUSED  # type: ignore[arg-type]
        self._done(group, failure)


class Pool:
    """The reader thread without its thread: slices are read at once."""

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        pass


class Client:
    """The other end of a connection: what it is sent, and whether it was closed.

    Attributes:
        shares: Whether it keeps the pieces that it is handed.
    """

    shares = False

    def __init__(self, node: Node) -> None:
        self.session = Session(node, Identity(peer="golden"))
        self.received = b""
        self.closed = False
        self.session.start(self, shares=self.shares)

    # .. the transport's calls ..

    def writelines(self, pieces: list[Any]) -> None:
        self.received += b"".join(bytes(piece) for piece in pieces)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.session.stopped()

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    # .. the stage's ..

    def take(self) -> bytes:
        received, self.received = self.received, b""
        return received


class Stage:
    """One broker and its clients. Everything happens inside the calls below."""

    def __init__(self, *, profiles: Profiles = PROFILES, limits: Limits = LIMITS) -> None:
        self.profiles, self.limits = profiles, limits
        self.journal = MemoryJournal()
        self.now_us = TIME_US
        self.loop = Loop()
        self.clients: dict[str, Client] = {}
        self.run = 0
        self.tokens = 0
        self.holding = False
        self.start()

    def start(self) -> None:
        """Begin a run on top of what the journal has, after a crash or for the first time."""
        self.run += 1
        broker_time = BrokerTime(wall_us=lambda: self.now_us)
        broker_time.clock = Clock(manual=True)
        self.clock = broker_time.clock
        self.set_clock()
        broker_time.steer = lambda seconds=1: None  # type: ignore[method-assign]
        core = Sequencer(self.profiles, self.limits, 4770, JOURNAL)
        for value in self.journal.replay():
            core.apply_group(value)
        # Nothing leaves memory, so no thread ever looks anything up: what comes first would be chance.
        self.journal.settled_group = 0
        last = self.journal.last
        fence = core.begin(
            self.run,
            clean=self.run == 1,
            number=last.number if last else 0,
            chain=last.chain if last else 0,
            term=self.run,
            time_us=self.now_us,
        )
        self.journal.append(fence.number, fence.value)
        core.committed(self.now_us)
        self.node = Node(core, self.journal, broker_time, self.loop)  # type: ignore[arg-type]
        self.node._commit.stop()
        self.commits = Commits(self.journal, self.node._done)
        self.node._commit = self.commits  # type: ignore[assignment]
        self.node.catchup._pool = Pool()  # type: ignore[assignment]
        self.node.replies.draw = self.draw_token
        self.node._every_second()
        self.node.delayed.start()

    def set_clock(self) -> None:
        """Make the stage's time the broker's, and the one by which it measures silence."""
        self.clock.floor_us = self.now_us
        self.clock.manual_us = self.now_us

    def draw_token(self) -> bytes:
        """Draw what nobody else could guess: by counting."""
        self.tokens += 1
        return b"token %010d" % self.tokens

    def connect(self, name: str) -> None:
        self.clients[name] = Client(self.node)

    def feed(self, name: str, data: bytes) -> None:
        """Give bytes to the broker; nothing else happens before `settle`.

        All that is fed in between is as if it had been read in one iteration of the loop: the turn ends with that.
        """
        self.node._turned_us = self.clock.steady_us()
        # WELCOME names the release, which is no part of the protocol.
        with patch.object(session_module, "__version__", VERSION_SHOWN):
            self.clients[name].session.feed(data)

    def settle(self) -> None:
        """Let the loop and the commits run until nothing is left to do."""
        while self.loop.run_ready() or (self.commits.waiting and not self.holding):
            if self.commits.waiting and not self.holding:
                self.commits.step()

    def hold(self) -> None:
        """Keep commits waiting."""
        self.holding = True

    def release(self, fate: Fate = Fate.STORED) -> None:
        """Decide the commit that waits, and let the others go on."""
        self.holding = False
        self.commits.step(fate)
        self.settle()

    def fail(self, fate: Fate) -> None:
        """Decide the commit that waits; others keep waiting."""
        self.commits.step(fate)

    def wait(self, us: int) -> None:
        """Let time pass, in steps of a tenth of a second at most, so that timers come in their order."""
        end_us = self.now_us + us
        while self.now_us < end_us:
            self.now_us = min(end_us, self.now_us + 100_000)
            self.set_clock()
            self.loop.now_s = (self.now_us - TIME_US) / 1e6
            self.settle()

    def disconnect(self, name: str) -> None:
        """The client goes away."""
        self.clients[name].close()
        self.settle()

    def crash(self) -> None:
        """The process dies, and a new one starts on its journal."""
        for client in self.clients.values():
            client.closed = True
        self.loop = Loop()
        self.loop.now_s = (self.now_us - TIME_US) / 1e6
        self.holding = False
        self.start()

    def drain(self, seconds: float) -> None:
        """Begin to stop."""
        self.node.draining = True
        for connection in list(self.node.connections):
            connection.leave(seconds)
        self.node._flush()
        self.settle()

    def end(self) -> None:
        """Stop for good, as after a drain."""
        for connection in list(self.node.connections):
            connection.end(error("GOING_AWAY", "the broker is stopping", "reconnect and resume"))
        self.settle()
