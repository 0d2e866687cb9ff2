"""Who signs in: the rules of an access file as they are at this moment, and the slow part of checking beside the loop.

A signed token is judged at once. The secret of a static one is compared on threads of its own, behind a queue with a
bound; what was right lately is remembered under a keyed hash. The files are looked at twice a second on a thread; new
rules are handed to the loop as a whole, and rules that cannot be read leave the old ones in force.

All methods are called on the loop, and all callbacks come there.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from broker.access.access_file import read_access_file, stamp_of
from broker.access.identity import Identity, SignedToken, StaticToken
from broker.access.remembered import Remembered
from broker.access.signed import TOKEN_BYTES_MAX
from broker.access.static import split
from broker.events import emit
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.access.access_file import Loaded
    from broker.access.rules import Rules

    Done = Callable[[Identity | BrokerError], None]
    Post = Callable[[Callable[[], None]], object]

POLL_S = 0.5
CHECKS_MAX = 64
"""Static tokens whose secrets wait to be compared; at some 30 ms each the last one waits for a second."""
CHECK_THREADS = 2
BUSY_RETRY_MS = 1_000


class Authority:
    """Says who somebody is and what that one may do.

    Args:
        path: The access file.
        post: Runs a function on the loop, from any thread: `loop.call_soon_threadsafe`.
        now_s: The time, seconds since 1970.
        poll_s: How often the files are looked at.

    Raises:
        ConfigError: INVALID_CONFIG; the file cannot be used. There is no server without rules that was to have some.
    """

    def __init__(
        self, path: str, post: Post, *, now_s: Callable[[], float] = time.time, poll_s: float = POLL_S
    ) -> None:
        self._path = path
        self._post = post
        self._now_s = now_s
        self._poll_s = poll_s
        loaded = read_access_file(path)
        self._rules = loaded.rules
        self.on_change: list[Callable[[], None]] = []
        """Called when there are new rules, after which `standing` goes by them."""
        self._remembered = Remembered()
        self._waiting: dict[bytes, list[tuple[str, Done]]] = {}
        self._checkers: ThreadPoolExecutor | None = None
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, args=(loaded,), name="broker-access", daemon=True)
        self._poller.start()

    @property
    def rules(self) -> Rules:
        """The rules in force."""
        return self._rules

    def sign_in(self, token: str, peer: str, done: Done) -> None:
        """Find out who has a token.

        Args:
            token: As a stranger sent it. It goes into no message.
            peer: Where the connection comes from.
            done: Called once, with the identity or with the error that the connection ends with: UNAUTHENTICATED,
                TOKEN_EXPIRED, or BUSY when too many wait. Of a signed token before this returns; never after `close`.
        """
        if len(token) > TOKEN_BYTES_MAX:
            done(error("UNAUTHENTICATED", f"token: got {len(token)} bytes, limit {TOKEN_BYTES_MAX} bytes"))
            return
        mark = self._remembered.mark_of(token)
        known = self._remembered.find(mark)
        if known is not None and not self._rules.holds(known):
            self._remembered.forget(mark)  # there is another key or hash of that name by now, which this may fit
            known = None
        if known is not None or token.count(".") == 2:
            done(self._judged(lambda: self._of_token(known or self._verified(mark, token), peer)))
            return
        parts = split(token)
        if parts is None:
            done(error("UNAUTHENTICATED", "token: it is neither a signed token nor one of the access file"))
            return
        self._check(mark, token, parts, peer, done)

    def of_peer(self, uid: int, gid: int, peer: str) -> Identity | BrokerError | None:
        """Return who is at the other end of a Unix socket, by SO_PEERCRED.

        Returns:
            The identity; None where the access file has no row for that; an error where what it gives was taken back.
        """
        return self._found(lambda: self._rules.of_peer(uid, gid, peer))

    def of_certificate(self, names: list[str], peer: str) -> Identity | BrokerError | None:
        """Return who has a certificate, verified by TLS, with these names; results are those of `of_peer`."""
        return self._found(lambda: self._rules.of_certificate(names, peer))

    def anonymous(self, peer: str) -> Identity | BrokerError | None:
        """Return the identity of who has nothing to sign in with; None where such are refused."""
        return self._found(lambda: self._rules.of_nobody(peer))

    def standing(self, identity: Identity) -> Identity | BrokerError:
        """Return the same person by the rules and the time of now, or the error that the connection ends with."""
        return self._judged(lambda: self._rules.again(identity, self._now_s()))

    def close(self) -> None:
        """End the threads; of what is still being checked nobody is told. A check that runs is waited for."""
        self._closed.set()
        self._waiting.clear()
        self.on_change.clear()
        if self._checkers is not None:
            self._checkers.shutdown(cancel_futures=True)
        self._poller.join()

    # -- on the loop

    def _verified(self, mark: bytes, token: str) -> SignedToken:
        if self._rules.keys is None:
            raise error("UNAUTHENTICATED", "token: it is a signed one, and this server takes none")
        found = self._rules.keys.verify(token)
        self._remembered.keep(mark, token, found)
        return found

    def _of_token(self, token: SignedToken | StaticToken, peer: str) -> Identity:
        return self._rules.of_token(token, peer, self._now_s())

    def _judged(self, judge: Callable[[], Identity]) -> Identity | BrokerError:
        try:
            return judge()
        except BrokerError as failure:
            return failure

    def _found(self, find: Callable[[], Identity | None]) -> Identity | BrokerError | None:
        try:
            return find()
        except BrokerError as failure:
            return failure

    def _check(self, mark: bytes, token: str, parts: tuple[str, str], peer: str, done: Done) -> None:
        """Have a secret compared; those who come with the same token meanwhile wait for the same answer."""
        waiting = self._waiting.get(mark)
        if waiting is not None:
            waiting.append((peer, done))
            return
        if len(self._waiting) >= CHECKS_MAX:
            refusal = f"sign-ins: got {CHECKS_MAX + 1} static tokens at once, limit {CHECKS_MAX}"
            done(error("BUSY", refusal, retry_after_ms=BUSY_RETRY_MS))
            return
        self._waiting[mark] = [(peer, done)]
        if self._checkers is None:
            self._checkers = ThreadPoolExecutor(CHECK_THREADS, thread_name_prefix="broker-access-check")
        vault = self._rules.vault

        def compare() -> None:
            found = vault.check(*parts)
            right = None if found is None else StaticToken(parts[0], found)
            self._hand_over(partial(self._checked, mark, token, right))

        self._checkers.submit(compare)

    def _checked(self, mark: bytes, token: str, found: StaticToken | None) -> None:
        if found is not None:
            self._remembered.keep(mark, token, found)
        for peer, done in self._waiting.pop(mark, []):
            if found is None:
                done(error("UNAUTHENTICATED", "token: there is no such id, or its secret is another one"))
            else:
                done(self._judged(partial(self._of_token, found, peer)))

    def _adopt(self, rules: Rules) -> None:
        self._rules = rules
        emit(
            "access_changed",
            path=self._path,
            roles=len(rules.roles),
            keys=0 if rules.keys is None else len(rules.keys),
            tokens=len(rules.statics),
        )
        for called in list(self.on_change):
            called()

    # -- on other threads

    def _hand_over(self, function: Callable[[], None]) -> None:
        """Run a function on the loop, unless all is over."""

        def unless_closed() -> None:
            if not self._closed.is_set():
                function()

        if not self._closed.is_set():
            try:
                self._post(unless_closed)
            except RuntimeError:  # the loop was closed before us
                self._closed.set()

    def _poll(self, loaded: Loaded) -> None:
        """Look at the files until all is over."""
        stamps = dict(loaded.stamps)
        while not self._closed.wait(self._poll_s):
            now = {path: stamp_of(path) for path in stamps}
            if now == stamps:
                continue
            try:
                fresh = read_access_file(self._path)
            except BrokerError as failure:
                emit("access_refused", path=self._path, code=failure.name, detail=failure.detail, hint=failure.hint)
                stamps = now  # it is told once for each change
                continue
            stamps = dict(fresh.stamps)
            self._hand_over(partial(self._adopt, fresh.rules))
