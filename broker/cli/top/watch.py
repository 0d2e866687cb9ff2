"""Looking at a server again and again, whatever becomes of it meanwhile.

The first connection must succeed, so that a wrong address is an error and not a wait. From then on a server that ends,
hangs or restarts is a state like any other: it is told, and looking goes on. Only a server that refuses us ends it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from broker.cli.top.rates import Consumer, Reader, Snapshot, compare
from broker.model.errors import BrokerError, Remedy, error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from broker.cli.top.rates import Change

PATIENCE_S: Final = 1.0
"""How long an answer may take before that is told, and how often it is told again."""
AGAIN_S: Final = 0.1
"""What is waited for between two questions of which the first was lost."""


class Asked(Protocol):
    """What is needed of a bus."""

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Send a request and wait for its answer."""


class Show(Protocol):
    """Whoever shows what was found."""

    def first(self, change: Change) -> None:
        """Take the first look, which knows no rates."""

    def show(self, change: Change) -> None:
        """Take a look."""

    def away(self, silent_s: float, why: str) -> None:
        """Hear that there is no answer, again and again until there is one."""

    def redraw(self) -> None:
        """Hear that nothing has happened, about once a second: the terminal may have another size."""


class Watch:
    """Looks at one server.

    Args:
        bus: A connection to it that is made anew when it is lost.
        show: Gets what is found.
        interval_s: Between two looks.
        readers_max: How many of those who lag are asked for; 0 asks for none.
        consumers_max: How many consumers are; the same.
    """

    def __init__(self, bus: Asked, show: Show, interval_s: float, readers_max: int, consumers_max: int = 0) -> None:
        self._bus = bus
        self._show = show
        self._interval_s = interval_s
        self._readers_max = readers_max
        self._consumers_max = consumers_max
        self._answered_s = time.monotonic()

    async def run(self, looks: int | None) -> None:
        """Look until there were so many with a look before them; None for ever.

        Raises:
            BrokerError: The server refuses to answer.
        """
        previous: Snapshot | None = None
        while looks is None or looks > 0:
            now = await self._look_until_answered()
            change = compare(previous, now)
            if previous is None:
                self._show.first(change)
            else:
                self._show.show(change)
                looks = None if looks is None else looks - 1
            previous = now
            if looks != 0:
                await self._rest(now.at_s + self._interval_s)

    async def _rest(self, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, PATIENCE_S))
            self._show.redraw()

    async def _look_until_answered(self) -> Snapshot:
        self._answered_s = time.monotonic()
        why = "the server is there and does not answer"
        while True:
            looking = asyncio.ensure_future(self._look())
            try:
                while not (await asyncio.wait({looking}, timeout=PATIENCE_S))[0]:
                    self._show.away(time.monotonic() - self._answered_s, why)
                return looking.result()
            except BrokerError as failure:
                why = self._bearable(failure)
                self._show.away(time.monotonic() - self._answered_s, why)
                await asyncio.sleep(AGAIN_S)
            finally:
                looking.cancel()

    @staticmethod
    def _bearable(failure: BrokerError) -> str:
        """Return how to tell a failure that passes.

        Raises:
            BrokerError: It does not.
        """
        if failure.name == "DENIED":
            hint = "broker top asks for `stats` and `lagging`, as whoever may manage `>` can; connect as such a one."
            raise error("DENIED", failure.detail, hint)
        if failure.remedy not in (Remedy.RETRY, Remedy.RESUME):
            raise failure
        return f"{failure.name}: {failure.detail}"

    async def _look(self) -> Snapshot:
        begun_s = time.monotonic()
        stats = (await self._bus.ask("stats", {})).get("stats")
        at_s = time.monotonic()
        fields: dict[str, Any] = {}
        if self._readers_max:
            fields = await self._bus.ask("lagging", {"limit": self._readers_max})
        told = stats if isinstance(stats, dict) else {}
        listed: dict[str, Any] = {}
        if self._consumers_max and told.get("consumers"):
            listed = await self._bus.ask("consumers", {"limit": self._consumers_max})
        return Snapshot(
            at_s,
            time.time(),
            at_s - begun_s,
            told,
            tuple(Reader.of(each) for each in fields.get("readers", []) if isinstance(each, dict)),
            fields.get("more") is True,
            tuple(Consumer.of(each) for each in listed.get("consumers", []) if isinstance(each, dict)),
        )
