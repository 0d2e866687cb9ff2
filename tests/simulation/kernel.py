"""Virtual time: everything that happens in a simulated life happens here, one thing after the other.

The kernel keeps one queue of things to come. Some are iterations of a process's event loop, the others are what a
machine does beside it: bytes that arrive, a disk that is done, a fault. When things are due at the same microsecond
the seed says which comes first. Nothing else decides an order, so a seed is one life for ever.
"""

from __future__ import annotations

import hashlib
import heapq
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker_native.intake import Clock
    from tests.simulation.loop import SimulatedLoop

START_US = 1_000_000_000
"""The monotonic clock at the beginning of every life."""
WALL_US = 1_800_000_000_000_000
"""The wall clock then."""

Event = tuple[int, float, int, "Callable[..., object]", tuple[Any, ...]]


class LifeFailed(AssertionError):
    """Something happened that must not happen in any life."""


class Kernel:
    """One life's time, chance and record.

    Args:
        seed: Of everything that is drawn.

    Attributes:
        random: Draws for everything.
        now_us: The monotonic clock.
        wall_offset_us: What somebody has turned the wall clock by.
        running: The loop whose iteration is under way.
        clock: The clock of the broker that is alive.
        trace: Everything that happened, as (time, where, what, details…).
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_us = START_US
        self.wall_offset_us = 0
        self.running: SimulatedLoop | None = None
        self.clock: Clock | None = None
        self.trace: list[tuple[Any, ...]] = []
        self._events: list[Event] = []
        self._order = 0
        self._failure: LifeFailed | None = None

    @property
    def now_s(self) -> float:
        """The monotonic clock in seconds."""
        return self.now_us / 1e6

    def wall_us(self) -> int:
        """Return the wall clock."""
        return WALL_US + self.now_us - START_US + self.wall_offset_us

    # -- what is to come --

    def after(self, delay_us: int, callback: Callable[..., object], *args: Any) -> None:
        """Have something happen after so many microseconds."""
        self.at(self.now_us + delay_us, callback, *args)

    def at(self, at_us: int, callback: Callable[..., object], *args: Any) -> None:
        """Have something happen at a time that is not past."""
        assert at_us >= self.now_us
        self._order += 1
        heapq.heappush(self._events, (at_us, self.random.random(), self._order, callback, args))

    def run(self, until: Callable[[], bool], deadline_us: int) -> bool:
        """Let things happen until something is so, or a time has come; tells whether it is so.

        Raises:
            LifeFailed: Something went wrong meanwhile.
        """
        events = self._events
        while not until():
            if not events or events[0][0] > deadline_us:
                self.now_us = max(self.now_us, deadline_us)
                return False
            self.now_us, _, _, callback, args = heapq.heappop(events)
            if self.clock is not None:
                self.clock.manual_us = self.now_us
            callback(*args)
            if self._failure is not None:
                raise self._failure
        return True

    def fail(self, what: str, cause: BaseException | None = None) -> None:
        """End this life: `run` raises. May be called where an exception would be swallowed."""
        self.note("failed", what)
        if self._failure is None:
            self._failure = LifeFailed(what)
            self._failure.__cause__ = cause

    # -- the record --

    def note(self, what: str, *details: Any) -> None:
        """Write down what happens."""
        self.trace.append((self.now_us, self.running.name if self.running is not None else "-", what, *details))

    def digest(self) -> str:
        """Return a hash of all that was written down: two lives are the same when theirs are."""
        whole = hashlib.sha256()
        for entry in self.trace:
            whole.update(repr(entry).encode())
        return whole.hexdigest()

    def lines(self, last: int = 0) -> Iterator[str]:
        """Yield the record, or the last so many entries, as lines for a person."""
        for at_us, where, what, *details in self.trace[-last:]:
            text = " ".join(f"{detail:.6g}" if isinstance(detail, float) else str(detail) for detail in details)
            yield f"{(at_us - START_US) / 1e6:11.6f} {where:<11} {what:<10} {text}"
