"""The buses that HTTP requests use: one for each who asks, kept for a moment, so that a request costs no handshake.

A bus belongs to one identity, and its session passes everything through the gate as that identity: two who ask never
share one. They are bounded: the one that was idle for longest is closed for a new one, and when all are in use the
request is told to come back.

Runs on the node's loop only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from broker.model.errors import BrokerError, Remedy, error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from broker.access.gate import Identity
    from broker.bus import Bus

__all__ = ["Buses"]

BUSES_MAX: Final = 256
IDLE_S: Final = 30.0
ENDED: Final = frozenset({"CLOSED", "UNAUTHENTICATED", "TOKEN_EXPIRED"})
"""Errors that say that a bus is of no use any more."""
RETRY_AFTER_MS: Final = 1_000


class Lent:
    """A bus and those who use it.

    Attributes:
        opening: The bus, when it is there.
        users: Requests that use it.
        idle_s: Since when nobody does, by the loop's clock.
    """

    __slots__ = ("idle_s", "opening", "users")

    def __init__(self, opening: asyncio.Task[Bus]) -> None:
        self.opening = opening
        self.users = 0
        self.idle_s = 0.0


class Buses:
    """Keeps buses by who asks.

    Args:
        open_bus: Opens one as somebody.
        buses_max: How many there are at most.
    """

    def __init__(self, open_bus: Callable[[Identity], Awaitable[Bus]], buses_max: int = BUSES_MAX) -> None:
        self._open_bus = open_bus
        self._buses_max = buses_max
        self._lent: OrderedDict[Hashable, Lent] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @asynccontextmanager
    async def lend(self, who: Hashable, identity: Identity) -> AsyncIterator[Bus]:
        """Lend a bus for one request.

        Args:
            who: What nobody else has, and the same one has again.
            identity: As whom it is opened, if there is none.

        Raises:
            Unavailable: BUSY; all are in use. GOING_AWAY; the broker stops.
            BrokerError: The broker refuses this identity.
        """
        lent = self._take(who, identity)
        lent.users += 1
        try:
            bus = await asyncio.shield(lent.opening)
            yield bus
        except BrokerError as failure:
            if failure.name in ENDED or failure.remedy is Remedy.RESUME or not is_open(lent.opening):
                # It has ended, for its identity's token has expired for one: the next request opens another.
                self._drop(who, lent)
            raise
        finally:
            lent.users -= 1
            lent.idle_s = asyncio.get_running_loop().time()
            self._look_soon()

    def _take(self, who: Hashable, identity: Identity) -> Lent:
        if self._closed:
            raise error("GOING_AWAY", "the broker is stopping")
        lent = self._lent.get(who)
        if lent is None:
            self._make_room()
            opening = asyncio.ensure_future(self._open_bus(identity))
            lent = self._lent[who] = Lent(opening)
        self._lent.move_to_end(who)
        return lent

    def _make_room(self) -> None:
        if len(self._lent) < self._buses_max:
            return
        for who, lent in self._lent.items():
            if not lent.users:
                self._drop(who, lent)
                return
        raise error(
            "BUSY",
            f"requests at once by different users: got {len(self._lent) + 1}, limit {self._buses_max}",
            retry_after_ms=RETRY_AFTER_MS,
        )

    def _drop(self, who: Hashable, lent: Lent) -> None:
        """Forget a bus, and close it when it is there."""
        if self._lent.get(who) is lent:
            del self._lent[who]
            task = asyncio.ensure_future(close_opened(lent.opening))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _look_soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._look)

    def _look(self) -> None:
        """Close what nobody has used for a while."""
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for who, lent in list(self._lent.items()):
            if not lent.users and now_s - lent.idle_s >= IDLE_S:
                self._drop(who, lent)
        if self._lent:
            self._look_soon()

    async def close(self) -> None:
        """Close all of them."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for who, lent in list(self._lent.items()):
            self._drop(who, lent)
        if self._closing:
            await asyncio.wait(list(self._closing))


def is_open(opening: asyncio.Task[Bus]) -> bool:
    """Whether a bus is on its way or has been opened."""
    return not opening.done() or (not opening.cancelled() and opening.exception() is None)


async def close_opened(opening: asyncio.Task[Bus]) -> None:
    """Close a bus once it is open; one that never opened is none."""
    try:
        bus = await opening
        await bus.close()
    except BrokerError:
        pass  # whoever used it has been told
