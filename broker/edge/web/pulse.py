"""When streams write: together, a few milliseconds after the first of them has something, and at most so often.

A write costs a call to the kernel for each stream, whatever is in it. A thousand streams of a channel that gets a
thousand messages a second would cost a million of them a second; gathered for some milliseconds they are a tenth, and
what is rendered for one is rendered for all. The first message after a silence waits for nothing.

A beat gives the loop back after `TURN_S`: other connections are served between two parts of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

    from broker.edge.web.rendering import Rendering

__all__ = ["Beating", "Pulse"]

BEAT_S: Final = 0.010
"""The least time between the beginnings of two beats."""
TURN_S: Final = 0.002
"""How long a beat has the loop."""
LOOKS: Final = 16
"""Streams between two looks at the clock."""


class Beating(Protocol):
    """What has something to write."""

    def write_out(self, rendered: dict[object, Rendering]) -> None:
        """Write it; what others of this beat have rendered is in `rendered`."""


class Pulse:
    """Beats for the streams of one web listener.

    Args:
        loop: The node's loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Beating] = []
        self._rendered: dict[object, Rendering] = {}
        self._begun_s = 0.0
        self._beats = False

    def add(self, stream: Beating) -> None:
        """Have a stream write with the next beat; once, until it has."""
        self._waiting.append(stream)
        if not self._beats:
            self._beats = True
            wait_s = self._begun_s + BEAT_S - self._loop.time()
            if wait_s > 0:
                self._loop.call_later(wait_s, self._beat)
            else:
                self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        self._begun_s = self._loop.time()
        waiting, self._waiting = self._waiting, []
        self._go_on(waiting, 0)

    def _go_on(self, waiting: list[Beating], at: int) -> None:
        until_s = self._loop.time() + TURN_S
        while at < len(waiting):
            for stream in waiting[at : at + LOOKS]:
                stream.write_out(self._rendered)
            at += LOOKS
            if self._loop.time() >= until_s and at < len(waiting):
                self._loop.call_soon(self._go_on, waiting, at)
                return
        self._rendered = {}
        self._beats = False
        if self._waiting:
            first = self._waiting.pop()
            self.add(first)
