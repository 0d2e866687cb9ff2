"""Tokens that somebody else has signed: JSON Web Tokens (RFC 7519, RFC 8725), and the keys that they are checked with.

What is trusted is said by the operator and never by the token: the algorithms are a fixed list, the key is the one
whose id the token names in the operator's key set, and a key is good for the one algorithm that its kind has. So
`none`, a public key taken for a shared secret, or a key that the token brings along come to nothing. joserfc does the
computing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.access.identity import USER_BYTES_MAX, SignedToken, is_user
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker.model.errors import BrokerError

__all__ = ["ALGORITHMS", "Claims", "Demands", "Keys", "algorithm_of", "judge", "names_of"]

TOKEN_BYTES_MAX = 8 << 10
"""A HELLO has 16 KiB; a token that lists more than this has room for is not about who somebody is."""
ALGORITHMS = ("HS256", "RS256", "EdDSA")
ALGORITHM_OF_KIND = {("oct", None): "HS256", ("RSA", None): "RS256", ("OKP", "Ed25519"): "EdDSA"}
SECRET_BYTES_MIN = 32
"""A shorter secret than the hash can be found by trying (RFC 7518 section 3.2)."""
RSA_BITS_MIN = 2048
_MALFORMED = (ValueError, TypeError, AttributeError, RecursionError)
"""What joserfc raises of bytes that are no token, beside errors of its own."""
EXPIRY_S_MAX = 1 << 43
"""Times beyond are no times: some two hundred thousand years."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a token has to say.

    Attributes:
        algorithms: those that are accepted.
        issuer: what `iss` has to be.
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
        expires_s: when it ends, leeway included, seconds since 1970.
        issued_s: when it was issued, seconds since 1970; 0 when it does not say.
        token_id: its `jti`, or empty.
    """

    user: str
    roles: tuple[str, ...]
    expires_s: float
    issued_s: float
    token_id: str


class Keys:
    """A set of keys, by id; a value that is never changed. Thread-safe.

    Keys of other kinds, and those that are not for signatures, are passed over (RFC 7517 section 5): whoever publishes
    a set may add some at any time.

    Args:
        text: A JWK Set (RFC 7517 section 5) as JSON. Every key that counts has a `kid`, each its own.
        where: What to call it in a message: the file's name.
        algorithms: Those that are accepted; keys for others are passed over.

    Raises:
        ConfigError: INVALID_CONFIG; it is no such set, has no key that counts, or one that is weak or private. Nothing
            of a key is in the message.
    """

    __slots__ = ("_keys", "has_secret")

    def __init__(self, text: str, where: str, algorithms: Iterable[str] = ALGORITHMS) -> None:
        self._keys: dict[str, _Key] = {}
        self.has_secret = False
        """Whether the text must be kept from others: one of its keys is a shared secret."""
        accepted = tuple(algorithms)
        for number, data in enumerate(_keys_of(text, where), 1):
            algorithm = algorithm_of(data)
            if algorithm is None or algorithm not in accepted:
                continue
            this = f"{where}: key {number}"
            kid = data.get("kid")
            if not isinstance(kid, str) or not kid:
                raise error("INVALID_CONFIG", f"{this}: got no kid, expected text that names the key")
            if kid in self._keys:
                raise error("INVALID_CONFIG", f"{this}: got kid {_short(kid)} a second time, expected each once")
            if data.get("alg", algorithm) not in names_of(algorithm):
                raise error(
                    "INVALID_CONFIG", f"{this}: got alg {_short(data['alg'])}, expected {algorithm} by its kind"
                )
            if algorithm != "HS256" and "d" in data:
                raise error(
                    "INVALID_CONFIG",
                    f"{this}: got a private key, expected its public half",
                    "Keep private keys with whoever signs; `broker token key` writes both halves.",
                )
            self._keys[kid] = _imported(data, algorithm, this)
            self.has_secret |= algorithm == "HS256"
        if not self._keys:
            raise error("INVALID_CONFIG", f"{where}: got no key for {', '.join(accepted)}, expected one or more")

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, token: SignedToken) -> bool:
        """Return whether the key that a token was signed with is still one of these."""
        key = self._keys.get(token.key_id)
        return key is not None and key.fingerprint == token.fingerprint

    def verify(self, token: str) -> SignedToken:
        """Return what a token says, if its signature is good; `judge` tells whether it holds.

        Args:
            token: Three parts of base64url, as a stranger sent it.

        Raises:
            Denied: UNAUTHENTICATED; it is not. The message says what is wrong with it.
        """
        from joserfc import jws
        from joserfc.errors import JoseError
        from joserfc.util import urlsafe_b64decode

        if len(token) > TOKEN_BYTES_MAX:
            raise _refusal(f"got {len(token)} bytes, limit {TOKEN_BYTES_MAX} bytes")
        try:
            found = jws.extract_compact(token.encode("ascii"), registry=_registry())
            signature = urlsafe_b64decode(found.segments["signature"])
            header = found.protected
        except (JoseError, *_MALFORMED):
            raise _refusal("it is not three parts of base64url, the first of them JSON") from None
        if not isinstance(header, dict) or "crit" in header or "b64" in header:
            raise _refusal("its header has extensions that must be understood, expected none")
        kid, algorithm = header.get("kid"), header.get("alg")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise _refusal(f"got kid {_short(kid)}, which names no key of this server")
        if algorithm not in names_of(key.algorithm):
            raise _refusal(f"got alg {_short(algorithm)}, expected {key.algorithm} for the key that it names")
        signed = found.segments["header"] + b"." + found.segments["payload"]
        if not key.model.verify(signed, signature, key.key):
            raise _refusal("its signature is not that of the key that it names")
        return SignedToken(str(kid), key.fingerprint, _claims(found.payload))


class _Key(NamedTuple):
    """A key as joserfc has it, the one algorithm that it is good for, and what tells it from others of its id."""

    key: Any
    algorithm: str
    model: Any
    fingerprint: str


def _refusal(reason: str, code: str = "UNAUTHENTICATED") -> BrokerError:
    return error(code, f"token: {reason}")


def names_of(algorithm: str) -> tuple[str, ...]:
    """Return what an algorithm is called; RFC 9864 has a second name for one."""
    return (algorithm, "Ed25519") if algorithm == "EdDSA" else (algorithm,)


def algorithm_of(data: Mapping[str, object]) -> str | None:
    """Return the one algorithm that a JWK is good for by its kind, or None if that is none of ours."""
    kind, curve, use = data.get("kty"), data.get("crv"), data.get("use", "sig")
    if not isinstance(kind, str) or not (curve is None or isinstance(curve, str)) or use != "sig":
        return None
    return ALGORITHM_OF_KIND.get((kind, curve))


@cache
def _registry() -> Any:
    """Return joserfc's bounds on the parts of a token; ours is the one on all of it."""
    from joserfc.jws import JWSRegistry

    registry = JWSRegistry()
    registry.max_header_length = registry.max_payload_length = TOKEN_BYTES_MAX
    return registry


def _imported(data: dict[str, Any], algorithm: str, this: str) -> _Key:
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key
    from joserfc.jws import JWSRegistry

    _check_strength(data, algorithm, this)
    try:
        key = import_key(data)
        model = JWSRegistry.algorithms[algorithm]
        model.check_key(key)
        return _Key(key, algorithm, model, key.thumbprint())
    except (JoseError, ValueError, TypeError, KeyError) as failure:
        raise error("INVALID_CONFIG", f"{this}: not a key: {type(failure).__name__}") from None


def _keys_of(text: str, where: str) -> list[dict[str, Any]]:
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise error("INVALID_CONFIG", f'{where}: not a key set, expected JSON, {{"keys": […]}}') from None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise error("INVALID_CONFIG", f"{where}: got no list of keys, expected one")
    return keys


def _check_strength(data: Mapping[str, object], algorithm: str, this: str) -> None:
    """Refuse a key that can be found by trying; before joserfc has it, which only warns."""
    from joserfc.util import urlsafe_b64decode

    member = {"HS256": "k", "RS256": "n"}.get(algorithm)
    if member is None:
        return
    try:
        value = urlsafe_b64decode(str(data.get(member, "")).encode("ascii"))
    except ValueError:
        raise error(
            "INVALID_CONFIG", f"{this}: got no base64url in {member}, expected a number or a secret in it"
        ) from None
    if algorithm == "HS256" and len(value) < SECRET_BYTES_MIN:
        raise error(
            "INVALID_CONFIG", f"{this}: got a secret of {len(value)} bytes, expected {SECRET_BYTES_MIN} or more"
        )
    if algorithm == "RS256" and (bits := int.from_bytes(value).bit_length()) < RSA_BITS_MIN:
        raise error("INVALID_CONFIG", f"{this}: got {bits} bits, expected {RSA_BITS_MIN} or more")


def _claims(payload: bytes) -> dict[str, object]:
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise _refusal("its claims are no JSON object")
    return claims


def judge(claims: Mapping[str, object], demands: Demands, now_s: float) -> Claims:
    """Return what the claims of a token come to whose signature is good.

    Args:
        claims: As they stand in it.
        demands: What they have to be.
        now_s: The time, seconds since 1970.

    Raises:
        Denied: UNAUTHENTICATED; they are not as they have to be. TOKEN_EXPIRED; they were.
    """
    expires_s, begins_s, issued_s = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_s is None:
        raise _refusal("it has no exp, expected a token that ends")
    if now_s >= expires_s + demands.leeway_s:
        raise _refusal(f"it ended {now_s - expires_s:.0f} s ago", "TOKEN_EXPIRED")
    for name, time_s in (("nbf", begins_s), ("iat", issued_s)):
        if time_s is not None and now_s < time_s - demands.leeway_s:
            raise _refusal(f"by its {name} it begins in {time_s - now_s:.0f} s")
    if claims.get("iss") != demands.issuer:
        raise _refusal(f"got iss {_short(claims.get('iss'))}, expected {demands.issuer!a}")
    audience = claims.get("aud")
    if demands.audience not in (audience if isinstance(audience, list) else [audience]):
        raise _refusal(f"got aud {_short(audience)}, expected {demands.audience!a}")
    user, token_id = claims.get(demands.user_claim), claims.get("jti", "")
    if not isinstance(user, str) or not is_user(user):
        raise _refusal(f"got {demands.user_claim} {_short(user)}, expected 1 to {USER_BYTES_MAX} printable bytes")
    if not isinstance(token_id, str):
        raise _refusal(f"got jti {_short(token_id)}, expected text")
    roles = claims.get(demands.roles_claim, [])
    listed = roles.split() if isinstance(roles, str) else roles  # as `scope` is, RFC 8693 section 4.2
    if not isinstance(listed, list) or not all(isinstance(role, str) for role in listed):
        raise _refusal(f"got {demands.roles_claim} {_short(roles)}, expected a list of names")
    return Claims(user, tuple(listed), expires_s + demands.leeway_s, issued_s or 0.0, token_id)


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
