"""Who may what, as one access file says it: a value that answers for each way to sign in, and judges anew.

It knows no clock, no file and no thread. Checking the secret of a static token takes long; `Rules.vault` does that,
on a thread that the caller has for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from broker.access.grants import Role, fill
from broker.access.identity import (
    CertificateNames,
    Identity,
    Nothing,
    SignedToken,
    StaticToken,
    UnixPeer,
)
from broker.access.signed import TOKEN_BYTES_MAX, judge
from broker.access.static import Vault, split
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from broker.access.grants import Grants
    from broker.access.identity import Credential
    from broker.access.signed import Demands, Keys

SHARED_GRANTS_MAX = 1024
"""Sets of roles whose grants are kept; a token may name any of them, and beyond that they are made anew."""


class Person(NamedTuple):
    """Who somebody is, by the access file: a user and the names of roles."""

    user: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Static:
    """A static token's row: whose it is, its hash, and when it ends, seconds since 1970, or None."""

    person: Person
    hash: str = field(repr=False)
    expires_s: float | None


class Peer(NamedTuple):
    """A row of Unix peers: the ids that it is for, None for any, and who that is."""

    uid: int | None
    gid: int | None
    person: Person


class Revoked(NamedTuple):
    """What was taken back: ids of tokens, users, and what was signed before a time, seconds since 1970."""

    tokens: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    issued_before_s: float = 0.0


def parts_of(text: str) -> tuple[str, str] | None:
    """Return id and secret of a static token, or None of one that may be signed.

    Raises:
        Denied: UNAUTHENTICATED; it has the form of neither.
    """
    if len(text) > TOKEN_BYTES_MAX:
        raise error("UNAUTHENTICATED", f"token: got {len(text)} bytes, limit {TOKEN_BYTES_MAX} bytes")
    if text.count(".") == 2:
        return None
    parts = split(text)
    if parts is None:
        raise error("UNAUTHENTICATED", "token: it is neither a signed token nor one of the access file")
    return parts


def static_token(identifier: str, hash_text: str | None) -> StaticToken:
    """Return what `Vault.check` has found.

    Raises:
        Denied: UNAUTHENTICATED; it has found nothing. Why, nobody is told.
    """
    if hash_text is None:
        raise error("UNAUTHENTICATED", "token: there is no such id, or its secret is another one")
    return StaticToken(identifier, hash_text)


@dataclass(frozen=True, slots=True)
class Rules:
    """One access file.

    Attributes:
        roles: by name.
        keys, demands: what signed tokens are checked with; None where none are taken.
        signed_roles: roles of everybody who signs in with a signed token, beside those that it names.
        listed: static tokens by id.
        peers: rows for Unix peers; the first that is for one counts.
        certificates: who has a certificate with a name.
        anonymous: roles of who has nothing to sign in with; None where such are refused.
        revoked: what was taken back.
        vault: the hashes of `listed`.
    """

    roles: Mapping[str, Role]
    keys: Keys | None = field(default=None, repr=False)
    demands: Demands | None = None
    signed_roles: tuple[str, ...] = ()
    listed: Mapping[str, Static] = field(default_factory=dict, repr=False)
    peers: Sequence[Peer] = ()
    certificates: Mapping[str, Person] = field(default_factory=dict)
    anonymous: tuple[str, ...] | None = None
    revoked: Revoked = field(default_factory=Revoked)
    vault: Vault = field(default_factory=lambda: Vault({}), repr=False)
    _shared: dict[tuple[str, ...], Grants] = field(default_factory=dict, repr=False, compare=False)

    def holds(self, token: SignedToken | StaticToken) -> bool:
        """Return whether the key, or the hash, that a token was compared with is still one of these rules."""
        if isinstance(token, SignedToken):
            return self.keys is not None and self.keys.holds(token)
        row = self.listed.get(token.id)
        return row is not None and row.hash == token.hash

    def of_text(self, text: str, peer: str, now_s: float) -> Identity:
        """Return who has a token, all at once: of a static one this takes tens of milliseconds.

        Raises:
            Denied: as of `of_token`.
        """
        parts = parts_of(text)
        token = self.verified(text) if parts is None else static_token(parts[0], self.vault.check(*parts))
        return self.of_token(token, peer, now_s)

    def verified(self, text: str) -> SignedToken:
        """Return what a signed token says.

        Raises:
            Denied: UNAUTHENTICATED; its signature is not good.
        """
        if self.keys is None:
            raise error("UNAUTHENTICATED", "token: it is a signed one, and this server takes none")
        return self.keys.verify(text)

    def of_token(self, token: SignedToken | StaticToken, peer: str, now_s: float) -> Identity:
        """Return who has a token whose signature or secret is good.

        Raises:
            Denied: UNAUTHENTICATED, TOKEN_EXPIRED; it has ended, was taken back, or was never good here.
        """
        if isinstance(token, SignedToken):
            return self.of_signed(token, peer, now_s)
        return self.of_static(token, peer, now_s)

    def of_signed(self, token: SignedToken, peer: str, now_s: float) -> Identity:
        """Return who has a signed token whose signature is good.

        Raises:
            Denied: UNAUTHENTICATED, TOKEN_EXPIRED; it is not good any more, or was never good here.
        """
        if self.demands is None or not self.holds(token):
            raise error("TOKEN_EXPIRED", "token: the key that it was signed with is no key of this server any more")
        found = judge(token.claims, self.demands, now_s)
        if found.issued_s < self.revoked.issued_before_s:
            raise error("TOKEN_EXPIRED", "token: all that were issued when it was have been taken back")
        person = Person(found.user, tuple(dict.fromkeys((*self.signed_roles, *found.roles))))
        # A claim that is called `user` must not stand in for the user.
        claims = {**token.claims, "user": found.user}
        return self._identity(person, peer, token, claims, found.expires_s, found.token_id, found.issued_s)

    def of_static(self, token: StaticToken, peer: str, now_s: float) -> Identity:
        """Return who has a static token whose secret was compared with a hash.

        Raises:
            Denied: TOKEN_EXPIRED; it is not in the file any more, or not with this hash, or has ended.
        """
        if not self.holds(token):
            raise error("TOKEN_EXPIRED", "token: it was taken out of the access file")
        row = self.listed[token.id]
        if row.expires_s is not None and now_s >= row.expires_s:
            raise error("TOKEN_EXPIRED", f"token: it ended {now_s - row.expires_s:.0f} s ago")
        return self._identity(row.person, peer, token, {}, row.expires_s, token.id)

    def of_peer(self, uid: int, gid: int, peer: str) -> Identity | None:
        """Return who is at the other end of a Unix socket, or None if no row is for that.

        Raises:
            Denied: UNAUTHENTICATED, TOKEN_EXPIRED; the row is no good for somebody.
        """
        for row in self.peers:
            if row.uid in (None, uid) and row.gid in (None, gid):
                return self._identity(row.person, peer, UnixPeer(uid, gid), {"uid": uid, "gid": gid})
        return None

    def of_certificate(self, names: Iterable[str], peer: str) -> Identity | None:
        """Return who has a certificate with these names, the first that is listed, or None.

        Raises:
            Denied: as of `of_peer`.
        """
        given = tuple(names)
        for name in given:
            person = self.certificates.get(name)
            if person is not None:
                return self._identity(person, peer, CertificateNames(given), {"name": name})
        return None

    def of_nobody(self, peer: str) -> Identity | None:
        """Return the identity of who has nothing to sign in with, or None if such are refused."""
        return None if self.anonymous is None else self._identity(Person("", self.anonymous), peer, Nothing(), {})

    def again(self, identity: Identity, now_s: float) -> Identity:
        """Return the same person by these rules.

        Raises:
            Denied: UNAUTHENTICATED, TOKEN_EXPIRED; what it signed in with is no good any more.
        """
        found: Identity | None
        match identity.credential:
            case SignedToken() | StaticToken() as token:
                return self.of_token(token, identity.peer, now_s)
            case UnixPeer(uid, gid):
                found = self.of_peer(uid, gid, identity.peer)
            case CertificateNames(names):
                found = self.of_certificate(names, identity.peer)
            case _:
                found = self.of_nobody(identity.peer)
        if found is None:
            raise error("TOKEN_EXPIRED", "sign-in: what this connection had for it was taken out of the access file")
        return found

    def _identity(
        self,
        person: Person,
        peer: str,
        credential: Credential,
        claims: Mapping[str, object],
        expires_s: float | None = None,
        token_id: str = "",
        issued_s: float = 0.0,
    ) -> Identity:
        if person.user in self.revoked.users or (token_id and token_id in self.revoked.tokens):
            raise error("TOKEN_EXPIRED", "sign-in: its user or token was taken back")
        roles = tuple(name for name in person.roles if name in self.roles)
        everything = {"user": person.user, "sub": person.user, **claims}
        grants = self._grants(tuple(self.roles[name] for name in roles), everything)
        return Identity(person.user, peer, grants, expires_s, token_id, issued_s, roles, credential)

    def _grants(self, roles: tuple[Role, ...], claims: Mapping[str, object]) -> Grants:
        """Return what roles come to; those who have the same share one value, unless claims are part of it."""
        if any(role.is_personal for role in roles):
            return fill(roles, claims)
        key = tuple(role.name for role in roles)
        grants = self._shared.get(key)
        if grants is None:
            grants = fill(roles, claims)
            if len(self._shared) < SHARED_GRANTS_MAX:
                self._shared[key] = grants
        return grants
