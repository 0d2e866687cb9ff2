"""The one gate: may this identity do this to that name?

Every operation of every home passes `Gate.check` before anything else looks at it. Names that the broker keeps for
itself are refused here for everybody. Where nobody signs in, it answers yes to the rest: such listeners take loopback
and Unix sockets only, so whoever reaches them is already on the machine. Otherwise what is not granted is denied. It
must not do I/O, block, or read a clock: it is called on the loop for every channel that a connection names.
"""

from __future__ import annotations

from broker.access.identity import Identity, Verb
from broker.model.errors import error
from broker.model.names import display, is_reserved

__all__ = ["Gate", "Identity", "Verb"]


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
        if identity.grants is not None and not identity.grants.allows(verb, name):
            who = identity.user or identity.peer or "anyone"
            raise error("DENIED", f"{verb} {display(name)}: {who} has no grant that it lies within")

    def allows(self, identity: Identity, verb: Verb, name: bytes) -> bool:
        """Return whether `check` would let it pass."""
        return not is_reserved(name) and (identity.grants is None or identity.grants.allows(verb, name))

    def count_allowed(self, identity: Identity, verb: Verb, names: list[bytes]) -> int:
        """Return how many of the names, from the first on, pass `check`; it says why the next one does not."""
        grants = identity.grants
        for count, name in enumerate(names):
            if is_reserved(name) or (grants is not None and not grants.allows(verb, name)):
                return count
        return len(names)
