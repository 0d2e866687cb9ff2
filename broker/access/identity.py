"""Who asks, and how it is known who that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.access.grants import Grants

USER_BYTES_MAX = 128


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


def is_user(name: str) -> bool:
    """Return whether something can be the name of a user: it goes into records and logs."""
    return bool(name) and name.isprintable() and len(name.encode("utf-8", "surrogatepass")) <= USER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
        user: the authenticated name; empty for nobody in particular.
        peer: where the connection comes from, for logs and messages only, never for a decision.
        grants: what it may do; None where nobody is asked who he is, and everybody may do everything.
        expires_s: when what it signed in with ends, leeway included, seconds since 1970; None for never.
        token_id: of the token that it signed in with, to be revoked by; empty when there is none.
        issued_s: when that was issued, seconds since 1970; 0 when it does not say.
        roles: whose grants it has.
        credential: what it signed in with, to be judged again when the rules change; None where nobody is asked.
    """

    user: str = ""
    peer: str = ""
    grants: Grants | None = None
    expires_s: float | None = None
    token_id: str = ""
    issued_s: float = 0.0
    roles: tuple[str, ...] = ()
    credential: Credential | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A token whose signature was good: the key's id, the key's fingerprint, and what the token says."""

    key_id: str
    fingerprint: str = field(repr=False)
    claims: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A token of the access file whose secret was right: its id, and the hash that the secret was compared with."""

    id: str
    hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """Who is at the other end of a Unix socket, as the system says."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """The names in a certificate that was verified."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Nothing:
    """What somebody signs in with who has no token."""


Credential = SignedToken | StaticToken | UnixPeer | CertificateNames | Nothing
"""What somebody signed in with. No secret is in it."""
