"""Where a connection stands with the authority: who is at the other end, until when, and what has changed since.

Made for a session when somebody is asked who he is. A connection keeps its user as long as it lives: a fresh token
renews what it may do and until when, and never whose it is, since its line and what it has stored are that user's.

Runs on the node's loop only.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from broker.access.rates import too_fast
from broker.model.errors import BrokerError, error
from broker.wire import control
from broker.wire.kinds import PRODUCER_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from broker.access.authority import Authority
    from broker.access.identity import Identity
    from broker.edge.session import Session

    Done = Callable[[BrokerError | None], None]

__all__ = ["Standing", "line_of"]

TIMER_S_MAX = 24 * 3600.0
"""A timer is set for no longer: a loop's clock and the wall clock part in the course of years."""


def line_of(identity: Identity, producer: bytes | None) -> bytes | None:
    """Return the name of a producer's line: of who has signed in, each user has lines of his own.

    A producer's name is drawn by a client and no secret: whoever learns it must not take over somebody else's line.
    """
    if producer is None or identity.grants is None:
        return producer
    key = blake2b(identity.user.encode()).digest()
    return blake2b(producer, digest_size=PRODUCER_BYTES, key=key).digest()


SO_PEERCRED = getattr(socket, "SO_PEERCRED", None) if sys.platform == "linux" else None
CREDENTIALS = struct.Struct("=iII")
"""Who has opened the other end of a Unix socket, as Linux says it: process, user, group."""


def certificate_names(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names in a verified certificate: those that it is for, and else its subject's common names.

    Args:
        certificate: As `ssl.SSLSocket.getpeercert` tells it.
    """
    names = [str(name) for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI", "email")]
    subject = [str(value) for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names or subject


def introduced_by(transport: Any, authority: Authority, peer: str) -> Identity | BrokerError | None:
    """Return who a socket's transport says is at the other end, if it knows."""
    certificate = transport.get_extra_info("peercert")
    if certificate:
        return authority.of_certificate(certificate_names(certificate), peer)
    sock = transport.get_extra_info("socket")
    if SO_PEERCRED is None or sock is None or sock.family != socket.AF_UNIX:
        return None
    _, uid, gid = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
    return authority.of_peer(uid, gid, peer)


class Standing:
    """One session's standing.

    Args:
        session: Whose. If its transport has signed it in already, that holds.
        authority: Knows everybody.

    Attributes:
        known: It is known who is at the other end.
    """

    __slots__ = ("_authority", "_gone", "_renewing", "_session", "_timer", "known")

    def __init__(self, session: Session, authority: Authority) -> None:
        self._session = session
        self._authority = authority
        self._timer: asyncio.TimerHandle | None = None
        self._renewing = False
        self._gone = False
        self.known = session.identity.grants is not None

    def leave(self) -> None:
        """The connection is gone."""
        self._gone = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- signing in ----------------------------------------------------------------------------------------------------

    def sign_in(self, token: str | None, done: Done) -> None:
        """Find out who is at the other end; `done` is called when that is known, or with why it is not, maybe at once.

        Who has no token is who the transport says, or nobody in particular if that is allowed.
        """
        if token is None:
            peer = self._session.identity.peer
            found = introduced_by(self._session.transport, self._authority, peer) or self._authority.anonymous(peer)
            refusal = error("UNAUTHENTICATED", "HELLO: got no token, and nobody is taken in without one")
            self._take(refusal if found is None else found, done)
        else:
            self._judge(token, lambda outcome: self._take(outcome, done))

    def _judge(self, token: str, told: Callable[[Identity | BrokerError], None]) -> None:
        """Have the authority judge a token, unless too many from the same address were no good lately."""
        session, rates = self._session, self._session.node.rates
        wait_ms = rates.failing_ms(session.address)
        if wait_ms:
            told(too_fast("signing in", session.identity, wait_ms))
            return

        def judged(outcome: Identity | BrokerError) -> None:
            if isinstance(outcome, BrokerError) and outcome.name == "UNAUTHENTICATED":
                rates.failed(session.address)
            told(outcome)

        self._authority.sign_in(token, session.identity.peer, judged)

    def _take(self, outcome: Identity | BrokerError, done: Done) -> None:
        if self._gone:
            return
        if isinstance(outcome, BrokerError):
            done(outcome)
            return
        self._session.identity = outcome
        self.known = True
        done(None)

    def begin(self) -> float | None:
        """HELLO is answered: returns how long what it signed in with is good, seconds; None for ever."""
        self._set_timer()
        expires_s = self._session.identity.expires_s
        return None if expires_s is None else max(0.0, expires_s - time.time())

    # -- later ---------------------------------------------------------------------------------------------------------

    def renew(self, request: int, token: str) -> None:
        """Take a fresh token of the same user, and answer when it is judged. One that is not good changes nothing."""
        session = self._session
        if self._renewing:
            busy = error("BUSY", "sign_in: got a second one, limit 1 at a time on a connection")
            session.outbox.frame(control.encode_error(busy, request=request))
            return
        self._renewing = True

        def signed(outcome: Identity | BrokerError) -> None:
            self._renewing = False
            if self._gone or session.closed:
                return
            if not isinstance(outcome, BrokerError) and outcome.user != session.identity.user:
                outcome = error(
                    "DENIED",
                    f"sign_in: got a token of {outcome.user!a}, expected one of {session.identity.user!a}, whose "
                    "connection this is",
                    "Connect anew to be somebody else.",
                )
            if isinstance(outcome, BrokerError):
                session.outbox.frame(control.encode_error(outcome, request=request))
            else:
                self._change(outcome)
                fields: dict[str, object] = {"user": outcome.user}
                if outcome.expires_s is not None:
                    fields["expires_s"] = max(0.0, outcome.expires_s - time.time())
                session.outbox.frame(control.encode_reply(request, fields))
            session.node.kick()

        self._judge(token, signed)

    def reconsider(self) -> None:
        """What is granted has changed: go by what it is now."""
        if not self.known:
            return
        outcome = self._authority.standing(self._session.identity)
        if not isinstance(outcome, BrokerError) and outcome.user != self._session.identity.user:
            # What it signed in with is somebody else's by now, and a connection has one user.
            outcome = error("TOKEN_EXPIRED", f"sign-in: what was good for it is {outcome.user!a}'s by now")
        if isinstance(outcome, BrokerError):
            self._session.end(outcome)
        else:
            self._change(outcome)

    def _change(self, identity: Identity) -> None:
        before, self._session.identity = self._session.identity, replace(identity, peer=self._session.identity.peer)
        if self._session.opened:
            self._set_timer()
            if identity.grants != before.grants:
                self._session.take_back()

    # -- the end of it -------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expires_s = self._session.identity.expires_s
        if expires_s is not None:
            left_s = min(TIMER_S_MAX, max(0.0, expires_s - time.time()))
            self._timer = self._session.node.loop.call_later(left_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        expires_s = self._session.identity.expires_s
        if expires_s is None or expires_s > time.time():
            self._set_timer()
            return
        self._session.end(
            error("TOKEN_EXPIRED", "the token that the connection signed in with: it has ended, and no other one came")
        )
