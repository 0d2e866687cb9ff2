"""What of a listing somebody gets to see: the names that are granted, and no hint of others.

Runs on the node's loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.model.errors import error
from broker.model.names import display, is_reserved

if TYPE_CHECKING:
    from broker.access.identity import Verb
    from broker.edge.session import Session

__all__ = ["Seen"]


class Seen:
    """The part of a listing that one connection may see: the names of which it may do one of some things.

    Args:
        session: Whose listing it is; what it may do is asked again for each name.
        verbs: What makes a name visible, at least one.
        prefix: What was asked for.

    Raises:
        Denied: It may do none of these things to any name, or the prefix is reserved.

    Attributes:
        prefix: What the names begin with that are asked for and may be granted; nothing else need be looked at.
        everything: All names with the prefix are visible.
    """

    def __init__(self, session: Session, verbs: tuple[Verb, ...], prefix: bytes) -> None:
        self._gate = session.node.gate
        self._session = session
        self._verbs = verbs
        self.prefix = prefix
        grants = session.identity.grants
        self.everything = grants is None
        if grants is None or is_reserved(prefix):
            self._gate.check(session.identity, verbs[-1], prefix or b">")
            return
        granted = [each for verb in verbs for each in grants.filters(verb)]
        if not granted:
            who = session.identity.user or session.identity.peer or "anyone"
            wanted = " or ".join(verbs)
            raise error("DENIED", f"listing of {display(prefix or b'>')}: {who} has no grant to {wanted} anything")
        self.everything = b">" in granted
        shared = _shared_prefix([_literal_part(each) for each in granted])
        self.prefix = max(prefix, shared, key=len) if prefix.startswith(shared) or shared.startswith(prefix) else prefix

    def shows(self, name: bytes) -> bool:
        """Return whether a name is visible."""
        return any(self._gate.allows(self._session.identity, verb, name) for verb in self._verbs)


def _literal_part(wide: bytes) -> bytes:
    """Return what every name begins with that lies within a filter."""
    wild = [at for at in (wide.find(b"*"), len(wide) - 1 if wide.endswith(b">") else -1) if at >= 0]
    return wide[: min(wild)] if wild else wide


def _shared_prefix(parts: list[bytes]) -> bytes:
    """Return what all of them begin with: what the first and the last in order have in common."""
    first, last = min(parts), max(parts)
    size = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:size]
