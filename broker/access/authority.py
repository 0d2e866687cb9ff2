"""Who signs in: the rules of an access file as they are at this moment, and the slow part of checking beside the loop.

A signed token is judged at once. The secret of a static one is compared on threads of its own, behind a queue with a
bound; what was right lately is remembered under a keyed hash. The files are looked at twice a second on a thread; new
rules are handed to the loop as a whole, and rules that cannot be read leave the old ones in force.

All methods are called on the loop, and all callbacks come there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from secrets import token_bytes
from typing import TYPE_CHECKING

from broker.access.access_file import read_access_file, stamp_of
from broker.access.identity import Identity, StaticToken
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
RIGHT_MAX = 4096
"""Static tokens that are remembered as right."""
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
        self._key = token_bytes(32)
        self._right: OrderedDict[bytes, StaticToken] = OrderedDict()
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
        if token.count(".") == 2:
            done(self._judged(lambda: self._of_signed(token, peer)))
            return
        parts = split(token) if len(token) <= TOKEN_BYTES_MAX else None
        if parts is None:
            done(error("UNAUTHENTICATED", "token: it is neither a signed token nor one of the access file"))
            return
        mark = blake2b(token.encode(), digest_size=32, key=self._key).digest()
        known = self._right.get(mark)
        if known is not None:
            row = self._rules.statics.get(known.id)
            if row is not None and row.hash == known.hash:
                self._right.move_to_end(mark)
                done(self._judged(lambda: self._rules.of_static(known, peer, self._now_s())))
                return
            del self._right[mark]  # the id has another secret by now, which this may be
        self._check(mark, parts, peer, done)

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

    def _of_signed(self, token: str, peer: str) -> Identity:
        if self._rules.keys is None:
            raise error("UNAUTHENTICATED", "token: it is a signed one, and this server takes none")
        return self._rules.of_signed(self._rules.keys.verify(token), peer, self._now_s())

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

    def _check(self, mark: bytes, parts: tuple[str, str], peer: str, done: Done) -> None:
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
        vault, identifier = self._rules.vault, parts[0]

        def compare() -> None:
            found = vault.check(*parts)
            self._hand_over(lambda: self._checked(mark, identifier, found))

        self._checkers.submit(compare)

    def _checked(self, mark: bytes, identifier: str, found: str | None) -> None:
        waiting = self._waiting.pop(mark, [])
        if found is None:
            for _, done in waiting:
                done(error("UNAUTHENTICATED", "token: there is no such id, or its secret is another one"))
            return
        token = StaticToken(identifier, found)
        self._right[mark] = token
        while len(self._right) > RIGHT_MAX:
            self._right.popitem(last=False)
        for peer, done in waiting:
            done(self._judged(lambda peer=peer: self._rules.of_static(token, peer, self._now_s())))  # type: ignore[misc]

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
            self._hand_over(lambda rules=fresh.rules: self._adopt(rules))  # type: ignore[misc]
