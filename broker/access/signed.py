"""Tokens that somebody else has signed: JSON Web Tokens (RFC 7519, RFC 8725), and the keys that they are checked with.

What is trusted is said by the operator and never by the token: the algorithms are a fixed list, the key is the one whose
id the token names in the operator's key set, and a key is good for the one algorithm that its kind has. So `none`, a
public key taken for a shared secret, or a key that the token brings along come to nothing. Checking is done by joserfc.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.model.errors import BrokerError

__all__ = ["ALGORITHMS", "Claims", "Keys", "Rules"]

TOKEN_BYTES_MAX = 8 << 10
"""A HELLO has 16 KiB; a token that lists more than this has room for is not about who somebody is."""
ALGORITHMS = ("HS256", "RS256", "EdDSA")
ALGORITHM_OF_KIND = {("oct", None): "HS256", ("RSA", None): "RS256", ("OKP", "Ed25519"): "EdDSA"}
SECRET_BYTES_MIN = 32
"""A shorter secret than the hash can be found by trying (RFC 7518 section 3.2)."""
RSA_BITS_MIN = 2048
EXPIRY_S_MAX = 1 << 43
"""Times beyond are no times: some two hundred thousand years."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token has to say.

    Attributes:
        algorithms: those that are accepted.
        issuer: what `iss` has to be; empty for anything.
        audience: what `aud` has to be, or to contain.
        leeway_s: how far the clocks of two machines may be apart, at most 60.
        user_claim: the claim that is the user's name.
        roles_claim: the claim that lists roles.
    """

    algorithms: tuple[str, ...]
    issuer: str
    audience: str
    leeway_s: float = 30.0
    user_claim: str = "sub"
    roles_claim: str = "roles"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says.

    Attributes:
        user: the authenticated name.
        roles: names of roles.
        expires_s, issued_s: seconds since 1970; issued_s is 0 when it does not say.
        token_id: its `jti`, or empty.
        others: every claim, for the placeholders of grants.
    """

    user: str
    roles: tuple[str, ...]
    expires_s: float
    issued_s: float
    token_id: str
    others: Mapping[str, object]


class Keys:
    """A set of keys, by id; a value that is never changed. Thread-safe.

    Args:
        text: A JWK Set (RFC 7517 section 5) as JSON. Every key has a `kid`, each its own.
        where: What to call it in a message: the file's name.

    Raises:
        ConfigError: INVALID_CONFIG; it is no such set, or a key is weak, or of a kind that is not accepted. Nothing of a
            key's secret is in the message.
    """

    __slots__ = ("_algorithms", "_keys")

    def __init__(self, text: str, where: str) -> None:
        from joserfc.errors import JoseError
        from joserfc.jwk import import_key

        self._keys: dict[str, Any] = {}
        self._algorithms: dict[str, str] = {}
        for number, data in enumerate(_keys_of(text, where), 1):
            this = f"{where}: key {number}"
            kid, kind = data.get("kid"), (data.get("kty"), data.get("crv"))
            if not isinstance(kid, str) or not kid:
                raise error("INVALID_CONFIG", f"{this}: got no kid, expected text that names the key")
            algorithm = ALGORITHM_OF_KIND.get(kind)  # type: ignore[arg-type]  # what is no text is no kind either
            if algorithm is None:
                raise error("INVALID_CONFIG", f"{this}: got kty {kind[0]!a}, crv {kind[1]!a}, expected oct, RSA or Ed25519")
            if data.get("alg", algorithm) not in _names_of(algorithm):
                raise error("INVALID_CONFIG", f"{this}: got alg {data['alg']!a}, expected {algorithm}, as its kind is")
            if kid in self._keys:
                raise error("INVALID_CONFIG", f"{this}: got kid {kid!a} a second time, expected each once")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    key = import_key(data)
                _check_strength(key, algorithm, this)
            except (JoseError, ValueError, TypeError, KeyError) as failure:
                raise error("INVALID_CONFIG", f"{this}: not a key: {type(failure).__name__}") from None
            self._keys[kid], self._algorithms[kid] = key, algorithm

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, token: str, rules: Rules, now_s: float) -> Claims:
        """Return what a token says, if it is good.

        Args:
            token: Three parts of base64url, as a stranger sent it.
            rules: What it has to say.
            now_s: The time, seconds since 1970.

        Raises:
            Denied: UNAUTHENTICATED; it is not. TOKEN_EXPIRED; it was. The message says what is wrong with it.
        """
        from joserfc import jws
        from joserfc.errors import JoseError

        if len(token) > TOKEN_BYTES_MAX:
            raise _refusal(f"got {len(token)} bytes, limit {TOKEN_BYTES_MAX} bytes")
        try:
            header = jws.extract_compact(token.encode("ascii")).protected
            kid, algorithm = header.get("kid"), header.get("alg")
        except (JoseError, ValueError):
            raise _refusal("it is not three parts of base64url that are JSON") from None
        if not isinstance(kid, str) or kid not in self._keys:
            raise _refusal(f"got kid {_short(kid)}, expected the id of one of {len(self._keys)} keys")
        expected = self._algorithms[kid]
        if expected not in rules.algorithms or algorithm not in _names_of(expected):
            raise _refusal(f"got alg {_short(algorithm)}, expected {expected} by its key, of {', '.join(rules.algorithms)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = jws.deserialize_compact(token.encode("ascii"), self._keys[kid], algorithms=[algorithm])
        except (JoseError, ValueError, TypeError):
            raise _refusal("its signature is not that of the key that it names") from None
        return _judge(found.payload, rules, now_s)


def _refusal(reason: str, code: str = "UNAUTHENTICATED") -> BrokerError:
    return error(code, f"token: {reason}")


def _names_of(algorithm: str) -> tuple[str, ...]:
    """Return what an algorithm is called; RFC 9864 has a second name for one."""
    return (algorithm, "Ed25519") if algorithm == "EdDSA" else (algorithm,)


def _keys_of(text: str, where: str) -> list[dict[str, Any]]:
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError):
        raise error("INVALID_CONFIG", f'{where}: not a key set, expected JSON, {{"keys": […]}}') from None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
        raise error("INVALID_CONFIG", f"{where}: got no list of keys, expected one or more")
    return keys


def _check_strength(key: Any, algorithm: str, this: str) -> None:
    if algorithm == "HS256" and len(key.raw_value) < SECRET_BYTES_MIN:
        raise error(
            "INVALID_CONFIG", f"{this}: got a secret of {len(key.raw_value)} bytes, expected {SECRET_BYTES_MIN} or more"
        )
    if algorithm == "RS256" and (bits := key.public_key.key_size) < RSA_BITS_MIN:
        raise error("INVALID_CONFIG", f"{this}: got {bits} bits, expected {RSA_BITS_MIN} or more")


def _judge(payload: bytes, rules: Rules, now_s: float) -> Claims:
    """Return the claims of a token whose signature is good, if they are as they have to be."""
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise _refusal("its claims are no JSON object")
    expires_s, begins_s, issued_s = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_s is None:
        raise _refusal("it has no exp, expected a token that ends")
    if now_s >= expires_s + rules.leeway_s:
        raise _refusal(f"it ended {now_s - expires_s:.0f} s ago", "TOKEN_EXPIRED")
    if begins_s is not None and now_s < begins_s - rules.leeway_s:
        raise _refusal(f"it begins in {begins_s - now_s:.0f} s")
    if rules.issuer and claims.get("iss") != rules.issuer:
        raise _refusal(f"got iss {_short(claims.get('iss'))}, expected {rules.issuer!a}")
    audience = claims.get("aud")
    if rules.audience not in (audience if isinstance(audience, list) else [audience]):
        raise _refusal(f"got aud {_short(audience)}, expected {rules.audience!a}")
    user, roles, token_id = claims.get(rules.user_claim), claims.get(rules.roles_claim, []), claims.get("jti", "")
    if not isinstance(user, str) or not user:
        raise _refusal(f"got {rules.user_claim} {_short(user)}, expected the user's name")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise _refusal(f"got {rules.roles_claim} {_short(roles)}, expected a list of names")
    if not isinstance(token_id, str):
        raise _refusal(f"got jti {_short(token_id)}, expected text")
    return Claims(user, tuple(roles), expires_s, issued_s or 0.0, token_id, claims)


def _time(claims: Mapping[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -EXPIRY_S_MAX < value < EXPIRY_S_MAX:
        raise _refusal(f"got {name} {_short(value)}, expected seconds since 1970")
    return float(value)


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 64 else f"{shown[:64]}…"
