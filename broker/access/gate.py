"""The one gate: may this identity do this to that name?

Every operation of every home passes `Gate.check` before anything else looks at it. Names that the broker keeps for
itself are refused here for everybody. Apart from those it answers yes: the listeners take loopback and Unix sockets
only, so whoever reaches them is already on the machine. It must not do I/O, block, or read a clock: it is called on
the loop for every channel that a connection names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from broker.model.errors import error
from broker.model.names import display, is_reserved


class Verb(StrEnum):
    """What an operation does to a name."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    HISTORY = "history"
    """Reading what was stored before the subscription: any start but new."""
    CONSUME = "consume"
    """Holding a durable cursor or a place in a work queue."""
    MANAGE = "manage"
    """Asking about a channel or changing it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
        user: the authenticated name; empty for nobody in particular.
        peer: where the connection comes from, for logs and messages only, never for a decision.
    """

    user: str = ""
    peer: str = ""


class Gate:
    """Answers every question about access; stateless, shared between threads freely."""

    __slots__ = ()

    def check(self, identity: Identity, verb: Verb, name: bytes) -> None:
        """Return if the identity may do it.

        Args:
            identity: who asks.
            verb: what for.
            name: a channel's name or a pattern; it need not be validated yet.

        Raises:
            Denied: it may not.
        """
        if is_reserved(name):
            who = identity.user or identity.peer or "anyone"
            raise error("DENIED", f"{verb} {display(name)}: names that begin with $ are reserved, asked by {who}")

    def count_allowed(self, identity: Identity, verb: Verb, names: list[bytes]) -> int:
        """Return how many of the names, from the first on, pass `check`; it says why the next one does not."""
        for count, name in enumerate(names):
            if is_reserved(name):
                return count
        return len(names)
