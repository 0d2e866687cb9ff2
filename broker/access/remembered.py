"""Tokens that were found good lately, so that who connects again costs a hash and no signature.

They are kept under a keyed hash, which is of no use to whoever reads this memory. Only that a signature or a secret was
right is remembered: whether a token has ended or was taken back is judged each time.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from secrets import token_bytes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.access.identity import SignedToken, StaticToken

REMEMBERED_MAX = 4096
TOKEN_BYTES_MAX = 2 << 10
"""A longer one is checked each time; so all that is remembered has some 32 MiB at most, and 4 MiB with usual tokens."""


class Remembered:
    """The last tokens that were good; used on one thread."""

    __slots__ = ("_by_mark", "_key")

    def __init__(self) -> None:
        self._key = token_bytes(32)
        self._by_mark: OrderedDict[bytes, SignedToken | StaticToken] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_mark)

    def mark_of(self, token: str) -> bytes:
        """Return what a token is kept under."""
        return blake2b(token.encode("utf-8", "surrogatepass"), digest_size=32, key=self._key).digest()

    def find(self, mark: bytes) -> SignedToken | StaticToken | None:
        """Return what a token that was good said, or None."""
        found = self._by_mark.get(mark)
        if found is not None:
            self._by_mark.move_to_end(mark)
        return found

    def keep(self, mark: bytes, token: str, found: SignedToken | StaticToken) -> None:
        """Remember a token that is good; the one that was not asked for the longest gives way."""
        if len(token) <= TOKEN_BYTES_MAX:
            self._by_mark[mark] = found
            if len(self._by_mark) > REMEMBERED_MAX:
                self._by_mark.popitem(last=False)

    def forget(self, mark: bytes) -> None:
        """Remember a token no more."""
        self._by_mark.pop(mark, None)
