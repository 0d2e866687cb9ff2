"""What a consumer reads, in this process, by the very machinery of subscriptions.

A reader is a subscription whose connection is the consumer itself: chunks are delivered live, or read from the log when
it has fallen behind, and what a transport would write to a socket is handed to the consumer. Its credit is the memory
that the consumer has left. Literals are read by positions, patterns by the bus.

Everything here runs on the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.model.errors import error
from broker.node.catchup import Following, Wanted
from broker_native.fanout import Outbox, Subscription

if TYPE_CHECKING:
    from broker.core.sequencer import Sequencer
    from broker.model.errors import BrokerError
    from broker.node.catchup import CatchUp, Place

__all__ = ["Reader", "Taker"]

SUBSCRIPTION = 1
CREDIT_SHARE = 4
"""A reader that is behind is given credit when this part of its window is free again, or it has none."""


class Taker(Protocol):
    """Who reads. Nothing of it may change what is read from within `take`."""

    def take(self, frames: bytes) -> None:
        """Take whole frames."""

    def trimmed(self, name: bytes, first: int) -> None:
        """Retention took what would have come next of a channel."""

    def lost(self, failure: BrokerError) -> None:
        """Its history cannot be read; it gets nothing more."""

    def describe(self) -> dict[str, object]:
        """Say who it is, as a connection does."""


class Reader:
    """One consumer's subscription.

    Args:
        core: The sequencer.
        catchup: Drives it.
        taker: Gets what is read.
        literals, patterns: What it reads; literals are in memory, with their profiles.
        window_bytes: What the taker keeps at most, about.
    """

    def __init__(
        self,
        core: Sequencer,
        catchup: CatchUp,
        taker: Taker,
        literals: list[bytes],
        patterns: list[bytes],
        window_bytes: int,
    ) -> None:
        self._catchup = catchup
        self._taker = taker
        self._window_bytes = window_bytes
        self._outbox = Outbox(core.fanout, self)
        self._outbox.transport = self
        overdraft = core.limits.subscription_bytes_max
        self._subscription = Subscription(self._outbox, SUBSCRIPTION, window_bytes, overdraft, tells_names=True)
        self.following = Following(self._subscription, literals, patterns)
        self.following.keeps_all = True
        if patterns:
            self.following.wanted = Wanted(core, literals, patterns)

    def start(self, after: dict[bytes, int], place: Place | None) -> None:
        """Begin behind a sequence of each literal, or behind a place of the bus."""
        self.following.after.update(after)
        self.following.place = place
        self._catchup.follow(self.following)

    def stop(self) -> None:
        """Read nothing more."""
        if self._subscription.state is not None:
            self._catchup.leave(self.following)
        self._outbox.close()

    def leave_room(self, kept_bytes: int) -> None:
        """Read as much as the window leaves beside what the taker keeps. Not within `take`."""
        subscription = self._subscription
        before = subscription.credit
        free = self._window_bytes - kept_bytes - self._outbox.queued
        if not subscription.behind:
            subscription.credit = free
        elif before <= 0 < free or free - before >= self._window_bytes // CREDIT_SHARE:
            subscription.credit = free
            self._catchup.step(self.following)

    @property
    def settled(self) -> bool:
        """Whether all that there is has come, or as much as there is room for."""
        return (self.following.live or self._subscription.credit <= 0) and not self._outbox.queued

    @property
    def live(self) -> bool:
        """Whether what is published comes at once."""
        return self.following.live and not self._outbox.queued

    # -- the fan-out's and the catching up's calls ---------------------------------------------------------------------

    def writelines(self, pieces: list[bytes | memoryview]) -> None:
        """Take what is queued."""
        self._taker.take(b"".join(pieces))

    def on_trimmed(self, subscription: Subscription, name: bytes, first: int) -> None:
        """Pass it on."""
        self._taker.trimmed(name, first)

    def tell(self, subscription: Subscription, event: str, more: dict[str, object]) -> None:
        """How far it is behind is nobody's concern: what is stored comes all the same."""

    def on_exhausted(self) -> None:
        """There was no memory for what it should get."""
        self._taker.lost(error("LIMIT", "memory: none is left for what a consumer reads"))

    def end(self, failure: BrokerError) -> None:
        """It cannot be read on."""
        self._taker.lost(failure)

    def fall_behind(self) -> None:
        """It takes all that is queued at once, so nobody has reason to ask."""

    def await_answers_taken(self) -> None:
        """It is sent no answers."""

    def describe(self) -> dict[str, object]:
        """Say who reads."""
        return self._taker.describe()
