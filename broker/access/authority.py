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
from broker.access.remembered import Remembered
from broker.access.rules import parts_of, static_token
from broker.events import emit
from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.access.access_file import Loaded
    from broker.access.identity import Identity
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
        try:
            parts = parts_of(token)
            mark = self._remembered.mark_of(token)
            known = self._remembered.find(mark)
            if known is not None and not self._rules.holds(known):
                self._remembered.forget(mark)  # there is another key or hash of that name by now, which this may fit
                known = None
            if known is None and parts is None:
                known = self._rules.verified(token)
                self._remembered.keep(mark, token, known)
            if known is not None:
                identity = self._rules.of_token(known, peer, self._now_s())
        except BrokerError as failure:
            done(failure)
            return
        if known is not None:
            done(identity)
        elif parts is not None:
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
        try:
            return self._rules.again(identity, self._now_s())
        except BrokerError as failure:
            return failure

    def close(self) -> None:
        """End the threads; of what is still being checked nobody is told. A check that runs is waited for."""
        self._closed.set()
        self._waiting.clear()
        self.on_change.clear()
        if self._checkers is not None:
            self._checkers.shutdown(cancel_futures=True)
        self._poller.join()

    # -- on the loop

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
            try:
                hash_text = vault.check(*parts)
            except MemoryError:
                hash_text = None  # refused rather than never answered
            self._hand_over(partial(self._compared, mark, token, parts[0], hash_text))

        self._checkers.submit(compare)

    def _compared(self, mark: bytes, token: str, identifier: str, hash_text: str | None) -> None:
        for peer, done in self._waiting.pop(mark, []):
            try:
                found = static_token(identifier, hash_text)
                self._remembered.keep(mark, token, found)
                identity = self._rules.of_static(found, peer, self._now_s())
            except BrokerError as failure:
                done(failure)
            else:
                done(identity)

    def _adopt(self, rules: Rules) -> None:
        self._rules = rules
        emit(
            "access_changed",
            path=self._path,
            roles=len(rules.roles),
            keys=0 if rules.keys is None else len(rules.keys),
            tokens=len(rules.listed),
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
        stamps, told = loaded.stamps, ""
        while not self._closed.wait(self._poll_s):
            # What could not be read is tried again each time: a key set that it names may come later.
            if not told and all(stamp_of(path) == stamp for path, stamp in stamps.items()):
                continue
            try:
                fresh = read_access_file(self._path)
            except BrokerError as failure:
                if failure.detail != told:
                    emit("access_refused", path=self._path, code=failure.name, detail=failure.detail, hint=failure.hint)
                told = failure.detail
            except MemoryError:
                continue
            else:
                stamps, told = fresh.stamps, ""
                self._hand_over(partial(self._adopt, fresh.rules))
