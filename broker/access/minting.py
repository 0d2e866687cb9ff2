"""The other side of signed tokens: keys, and tokens signed with them, for those who have nobody else to do it.

A server never needs this, nor a private key.
"""

from __future__ import annotations

import json
import os
import stat
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from broker.access.signed import ALGORITHMS, SECRET_BYTES_MIN, algorithm_of
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Signer", "add_public_key", "make_key", "public_half", "read_signing_key", "write_new"]

RSA_BITS = 3072


def make_key(key_id: str, algorithm: str) -> dict[str, Any]:
    """Return a new private key, or for HS256 a new shared secret, as a JWK.

    Args:
        key_id: Its `kid`.
        algorithm: One of ALGORITHMS.
    """
    from joserfc.jwk import OctKey, OKPKey, RSAKey

    parameters: Any = {"kid": key_id, "alg": algorithm, "use": "sig"}
    assert algorithm in ALGORITHMS
    if algorithm == "HS256":
        return dict(OctKey.generate_key(8 * SECRET_BYTES_MIN, parameters).as_dict(private=True))
    if algorithm == "RS256":
        return dict(RSAKey.generate_key(RSA_BITS, parameters).as_dict(private=True))
    return dict(OKPKey.generate_key("Ed25519", parameters).as_dict(private=True))


def public_half(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a server needs of a key: the public half, or the shared secret itself."""
    from joserfc.jwk import import_key

    if algorithm_of(key) == "HS256":
        return dict(key)
    return dict(import_key(dict(key)).as_dict(private=False))


class Signer:
    """Signs tokens with one key.

    Args:
        key: A private key or a shared secret, with its `kid`.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        from joserfc.jwk import import_key
        from joserfc.jws import JWSRegistry

        algorithm = algorithm_of(key)
        assert algorithm is not None
        self._header = {"alg": algorithm, "kid": key["kid"], "typ": "JWT"}
        self._key = import_key(dict(key))
        self._model = JWSRegistry.algorithms[algorithm]

    def mint(self, claims: Mapping[str, object]) -> str:
        """Return a token that says this, as JSON has it."""
        from joserfc.util import urlsafe_b64encode

        parts = [json.dumps(part, separators=(",", ":")).encode() for part in (self._header, claims)]
        signed = b".".join(urlsafe_b64encode(part) for part in parts)
        return b".".join((signed, urlsafe_b64encode(self._model.sign(signed, self._key)))).decode()


def read_signing_key(path: str) -> dict[str, Any]:
    """Return the private key or the shared secret of a file: a JWK, or a set of one.

    Raises:
        ConfigError: INVALID_CONFIG; it cannot be read, others may read it, or it holds no such key. Nothing of it is in
            the message.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = json.load(file)
    except OSError as failure:
        raise error("INVALID_CONFIG", f"{path}: cannot be read: {failure.strerror}") from None
    except (ValueError, RecursionError):
        raise error("INVALID_CONFIG", f"{path}: not a key, expected JSON") from None
    if mode & 0o007:
        raise error(
            "INVALID_CONFIG",
            f"{path}: got mode {mode:04o} with a private key in it, expected others to have no access",
            f"chmod o= {path}",
        )
    keys = data.get("keys", [data]) if isinstance(data, dict) else []
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], dict):
        raise error("INVALID_CONFIG", f"{path}: not a key, expected one JWK or a set of one")
    key = keys[0]
    if algorithm_of(key) is None or not isinstance(key.get("kid"), str) or not ({"d", "k"} & key.keys()):
        raise error(
            "INVALID_CONFIG", f"{path}: got no key to sign with, expected a private key or a secret, with a kid"
        )
    return dict(key)


def write_new(path: str, text: str) -> None:
    """Write a file that nobody else may read, and that must not be there yet.

    Raises:
        ConfigError: INVALID_CONFIG; it is there, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise error("INVALID_CONFIG", f"{path}: cannot be written: {failure.strerror}", "Name another file.") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def add_public_key(path: str, key: Mapping[str, Any]) -> None:
    """Add what a server needs of a key to a key set, which is made if it is not there; a server takes it as a whole.

    Raises:
        ConfigError: INVALID_CONFIG; the file is no key set, has a key of this id, or cannot be written.
    """
    keys: list[Any] = []
    mode = 0o600 if algorithm_of(key) == "HS256" else 0o644
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            keys = json.load(file)["keys"]
            known = [each["kid"] for each in keys]
    except FileNotFoundError:
        known = []
    except OSError as failure:
        raise error("INVALID_CONFIG", f"{path}: cannot be read: {failure.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise error(
            "INVALID_CONFIG", f'{path}: not a key set, expected JSON, {{"keys": […]}}, each with a kid'
        ) from None
    if key["kid"] in known:
        raise error("INVALID_CONFIG", f"{path}: got kid {key['kid']!a} a second time, expected each once")
    if algorithm_of(key) == "HS256":
        mode &= 0o770
    fresh = f"{path}.{token_hex(4)}"
    write_new(fresh, json.dumps({"keys": [*keys, public_half(key)]}, indent=2) + "\n")
    os.chmod(fresh, mode)
    os.replace(fresh, path)
