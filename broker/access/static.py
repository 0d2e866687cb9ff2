"""Tokens that the access file lists: `ID.SECRET`, the secret kept as its argon2id hash (RFC 9106).

The time that a check takes says nothing of whether there is such an id: one that is not there is compared with a decoy
whose hash costs what those of the file cost. Checking takes tens of milliseconds by intention and belongs on a thread;
argon2 gives the interpreter away meanwhile.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from secrets import token_bytes, token_urlsafe
from typing import TYPE_CHECKING

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Vault", "check_hash", "hash_of", "is_id", "make", "split"]

_TOKEN = re.compile(r"([A-Za-z0-9_-]{1,64})\.([!-\-/-~]{1,256})")
"""The dot is in neither part, so that two dots are a signed token and one is ours."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SECRET_BYTES = 32
# What OWASP recommends of argon2id where memory is dear: a secret of 32 random bytes needs no more.
TIME_COST, MEMORY_KIB, LANES = 2, 19 * 1024, 1
TIME_COST_MAX, MEMORY_KIB_MAX, LANES_MAX = 10, 256 * 1024, 8
"""A hash that costs more is refused with the file: each sign-in would cost as much."""


def split(token: str) -> tuple[str, str] | None:
    """Return id and secret of a static token, or None if something has not its form."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else (found[1], found[2])


def is_id(text: str) -> bool:
    """Return whether something can be the id of a static token."""
    return _ID.fullmatch(text) is not None


def make(identifier: str) -> str:
    """Return a new token with a random secret."""
    return f"{identifier}.{token_urlsafe(SECRET_BYTES)}"


def hash_of(secret: str) -> str:
    """Return the hash of a secret as the access file holds it."""
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=LANES).hash(secret)


def check_hash(text: str) -> None:
    """Check that something is an argon2id hash that does not cost too much.

    Raises:
        ConfigError: INVALID_CONFIG; it is none. The hash is not in the message.
    """
    from argon2 import extract_parameters
    from argon2.exceptions import InvalidHashError
    from argon2.low_level import Type

    try:
        found = extract_parameters(text)
    except (InvalidHashError, ValueError):
        found = None
    if found is None or found.type is not Type.ID or found.salt_len < 8 or found.hash_len < 16:
        raise error(
            "INVALID_CONFIG", "hash: got text that is no argon2id hash, expected what `broker token make` prints"
        )
    for what, got, limit in (
        ("time cost, passes", found.time_cost, TIME_COST_MAX),
        ("memory cost, KiB", found.memory_cost, MEMORY_KIB_MAX),
        ("parallelism, lanes", found.parallelism, LANES_MAX),
    ):
        if got > limit:
            raise error("INVALID_CONFIG", f"hash: got {got} as argon2id's {what}, limit {limit}")


class Vault:
    """The hashes of an access file by the id of their token, and decoys for ids that are not there. Thread-safe.

    Args:
        hashes: By id; each one checked.
    """

    __slots__ = ("_decoys", "_hashes", "_key")

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._decoys = _decoys(hashes.values())
        self._key = token_bytes(32)

    def __len__(self) -> int:
        return len(self._hashes)

    def check(self, identifier: str, secret: str) -> str | None:
        """Return the hash of a token if the secret is its own, or None; takes as long for an id that is not there.

        Args:
            identifier: As a stranger sent it.
            secret: Likewise.
        """
        if not self._decoys:
            return None  # nobody has a token, and so there is no id to be found
        known = self._hashes.get(identifier)
        # Which decoy depends on the id alone: with hashes of two costs, an id that is not there always takes the same.
        mark = blake2b(identifier.encode(), digest_size=8, key=self._key).digest()
        decoy = self._decoys[int.from_bytes(mark) % len(self._decoys)]
        right = _verify(decoy if known is None else known, secret)
        return known if right and known is not None else None


def _decoys(hashes: Iterable[str]) -> tuple[str, ...]:
    """Return a hash of nobody's secret for each hash, of the same cost; those of one cost are one."""
    from argon2 import extract_parameters
    from argon2.low_level import Type, hash_secret

    by_cost: dict[tuple[int, ...], str] = {}
    decoys = []
    for each in hashes:
        found = extract_parameters(each)
        cost = (found.time_cost, found.memory_cost, found.parallelism, found.salt_len, found.hash_len, found.version)
        if cost not in by_cost:
            by_cost[cost] = hash_secret(
                token_bytes(32), token_bytes(found.salt_len), found.time_cost, found.memory_cost, found.parallelism,
                found.hash_len, Type.ID, found.version,
            ).decode()  # fmt: skip
        decoys.append(by_cost[cost])
    return tuple(decoys)


def _verify(hash_text: str, secret: str) -> bool:
    from argon2.exceptions import VerificationError
    from argon2.low_level import Type, verify_secret

    try:
        return verify_secret(hash_text.encode(), secret.encode(), Type.ID)
    except VerificationError:
        return False
