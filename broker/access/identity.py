"""Who asks, and what somebody may be granted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.access.grants import Grants


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
        grants: what it may do; None where nobody is asked who he is, and everybody may do everything.
        expires_s: when what it signed in with ends, seconds since 1970; None for never.
        token_id: of the token that it signed in with, to be revoked by; empty when there is none.
        issued_s: when that was issued, seconds since 1970; 0 when it does not say.
    """

    user: str = ""
    peer: str = ""
    grants: Grants | None = None
    expires_s: float | None = None
    token_id: str = ""
    issued_s: float = 0.0
