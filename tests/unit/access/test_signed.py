"""Signed tokens: every known way to get one taken that is none, and what makes a key set that is none."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access.minting import make_key, public_half
from broker.access.signed import TOKEN_BYTES_MAX, Demands, Keys, judge
from broker.model.errors import BrokerError, ConfigError, Denied
from tests.unit.access.people import AUDIENCE, ISSUER, claims, key_of, token

if TYPE_CHECKING:
    from collections.abc import Callable

ALGORITHMS = ("EdDSA", "RS256", "HS256")
DEMANDS = Demands(ALGORITHMS, ISSUER, AUDIENCE, leeway_s=5.0)
NOW_S = 1_800_000_000.0


def set_of(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": [public_half(key) for key in keys]})


KEYS = Keys(set_of(*(key_of(algorithm) for algorithm in ALGORITHMS)), "keys.json")
GOOD = {algorithm: token(algorithm) for algorithm in ALGORITHMS}


def part(value: object) -> str:
    """Return a part of a token; text as it is, everything else as JSON."""
    raw = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def header_of(good: str) -> dict[str, Any]:
    """Return the header of a good token."""
    text = good.partition(".")[0]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))


def with_header(header: object, algorithm: str = "EdDSA") -> str:
    """Return a token whose header was exchanged, the rest as it was."""
    return ".".join((part(header), *token(algorithm).split(".")[1:]))


def resigned(header: dict[str, object], body: object, secret: bytes) -> str:
    """Return a token that is signed with HMAC and a secret of the attacker's choice."""
    signed = f"{part(header)}.{part(body)}"
    return f"{signed}.{part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_good(algorithm: str) -> None:
    found = KEYS.verify(token(algorithm, jti="7", iat=NOW_S))
    assert found.key_id == algorithm
    assert KEYS.holds(found)
    said = judge(claims(exp=NOW_S + 9, jti="7", iat=NOW_S - 1), DEMANDS, NOW_S)
    assert (said.user, said.roles, said.expires_s, said.issued_s, said.token_id) == (
        "ada", ("chat",), NOW_S + 14, NOW_S - 1, "7",
    )  # fmt: skip


def pem_of_rsa() -> bytes:
    """Return the public key as everybody has it: what a confused server would take for a shared secret."""
    from joserfc.jwk import RSAKey

    return RSAKey.import_key(public_half(key_of("RS256"))).as_pem(private=False)


ATTACKS: dict[str, Callable[[], str]] = {
    "no algorithm": lambda: f"{part({'alg': 'none', 'kid': 'EdDSA'})}.{part(claims())}.",
    "no algorithm, with the signature": lambda: with_header({"alg": "none", "kid": "EdDSA"}),
    "no algorithm in capitals": lambda: with_header({"alg": "NONE", "kid": "EdDSA"}),
    "algorithm is a list": lambda: with_header({"alg": ["EdDSA"], "kid": "EdDSA"}),
    "algorithm is missing": lambda: with_header({"kid": "EdDSA"}),
    "public key as a secret": lambda: resigned({"alg": "HS256", "kid": "RS256"}, claims(), pem_of_rsa()),
    "public key as a secret, its modulus": lambda: resigned(
        {"alg": "HS256", "kid": "RS256"}, claims(), base64.urlsafe_b64decode(public_half(key_of("RS256"))["n"] + "==")
    ),
    "public Ed25519 key as a secret": lambda: resigned(
        {"alg": "HS256", "kid": "EdDSA"}, claims(), base64.urlsafe_b64decode(key_of("EdDSA")["x"] + "==")
    ),
    "key of another algorithm": lambda: with_header({"alg": "RS256", "kid": "EdDSA"}),
    "another hash for the same key": lambda: with_header({"alg": "RS512", "kid": "RS256"}, "RS256"),
    "padding of another kind": lambda: with_header({"alg": "PS256", "kid": "RS256"}, "RS256"),
    "no secret": lambda: resigned({"alg": "HS256", "kid": "HS256"}, claims(), b""),
    "secret of zeros": lambda: resigned({"alg": "HS256", "kid": "HS256"}, claims(), bytes(32)),
    "no kid": lambda: with_header({"alg": "EdDSA"}),
    "unknown kid": lambda: with_header({"alg": "EdDSA", "kid": "other"}),
    "kid is a path": lambda: with_header({"alg": "EdDSA", "kid": "../../dev/null"}),
    "kid is a number": lambda: with_header({"alg": "EdDSA", "kid": 0}),
    "kid is a list": lambda: with_header({"alg": "EdDSA", "kid": ["EdDSA"]}),
    "kid of another key": lambda: with_header({"alg": "HS256", "kid": "HS256"}),
    "brings its own key": lambda: token("EdDSA", "mine").replace(
        token("EdDSA", "mine").partition(".")[0],
        part({"alg": "EdDSA", "kid": "EdDSA", "jwk": public_half(key_of("EdDSA", "mine"))}),
    ),
    "names an address for its key": lambda: with_header(
        {"alg": "EdDSA", "kid": "mine", "jku": "https://evil.example/keys.json", "x5u": "https://evil.example/"}
    ),
    "must be understood": lambda: with_header({"alg": "EdDSA", "kid": "EdDSA", "crit": ["exp"], "exp": 1}),
    "not encoded": lambda: with_header({"alg": "EdDSA", "kid": "EdDSA", "b64": False, "crit": ["b64"]}),
    "not encoded, unsaid": lambda: with_header({"alg": "EdDSA", "kid": "EdDSA", "b64": False}),
    "header is a list": lambda: with_header(["alg", "kid"]),
    "header is text": lambda: with_header('"alg"'),
    "header is a number": lambda: with_header("7"),
    "header is deep": lambda: with_header("[" * 4000),
    "header is no JSON": lambda: with_header("{alg"),
    "header is no UTF-8": lambda: with_header(b"\xff\xfe"),
    "claims exchanged": lambda: ".".join((token().split(".")[0], part(claims(sub="root")), token().split(".")[2])),
    "claims are deep": lambda: f"{token().split('.')[0]}.{part('[' * 4000)}.{token().split('.')[2]}",
    "signature of nothing": lambda: ".".join((*token().split(".")[:2], "")),
    "signature of one byte": lambda: ".".join((*token().split(".")[:2], "AA")),
    "signature of zeros": lambda: ".".join((*token().split(".")[:2], part(bytes(64)))),
    "signature cut": lambda: token()[:-4],
    "signature longer": lambda: token() + "AAAA",
    "signature of another token": lambda: ".".join((*token().split(".")[:2], token(sub="eve").split(".")[2])),
    "signature is no base64": lambda: ".".join((*token().split(".")[:2], "!!!!")),
    "signature cut, RSA": lambda: token("RS256")[:-4],
    "signature cut, HMAC": lambda: token("HS256")[:-4],
    "signature of nothing, HMAC": lambda: ".".join((*token("HS256").split(".")[:2], "")),
    "two parts": lambda: ".".join(token().split(".")[:2]),
    "four parts": lambda: token() + ".",
    "five parts": lambda: token() + ".a.b",
    "nothing": lambda: "",
    "two dots": lambda: "..",
    "a space before": lambda: " " + token(),
    "a line behind": lambda: token() + "\n",
    "a zero byte": lambda: token() + "\0",
    "no ASCII": lambda: token() + "\u00e9",
    "half a character": lambda: token() + "\ud800",
    "too long": lambda: token(pad="x" * TOKEN_BYTES_MAX),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str) -> None:
    with pytest.raises(Denied) as caught:
        KEYS.verify(ATTACKS[name]())
    assert caught.value.name == "UNAUTHENTICATED"
    assert caught.value.detail.startswith("token: ")
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 200


def test_a_second_name_of_the_same_algorithm() -> None:
    """RFC 9864 calls it Ed25519; the signature is over the header, so it is made anew."""
    from joserfc.jwk import OKPKey
    from joserfc.jws import JWSRegistry

    signed = f"{part({'alg': 'Ed25519', 'kid': 'EdDSA'})}.{part(claims())}"
    signature = JWSRegistry.algorithms["EdDSA"].sign(signed.encode(), OKPKey.import_key(key_of("EdDSA")))
    assert KEYS.verify(f"{signed}.{part(signature)}").claims["sub"] == "ada"


BAD_CLAIMS: dict[str, tuple[dict[str, object], str]] = {
    "no end": ({"exp": None}, "no exp"),
    "ended": ({"exp": NOW_S - 5}, "ended"),
    "ended long ago": ({"exp": 0}, "ended"),
    "ended before there was time": ({"exp": -1}, "ended"),
    "end is text": ({"exp": str(NOW_S + 9)}, "expected seconds"),
    "end is true": ({"exp": True}, "expected seconds"),
    "end is no number": ({"exp": float("nan")}, "expected seconds"),
    "end is without end": ({"exp": float("inf")}, "expected seconds"),
    "end is a list": ({"exp": [NOW_S + 9]}, "expected seconds"),
    "end has too many digits": ({"exp": 10**400}, "expected seconds"),
    "begins later": ({"nbf": NOW_S + 6}, "begins in 6 s"),
    "begins at no time": ({"nbf": "now"}, "expected seconds"),
    "issued later": ({"iat": NOW_S + 6}, "begins in 6 s"),
    "no issuer": ({"iss": None}, "got iss None"),
    "another issuer": ({"iss": "https://login.example.com"}, "got iss"),
    "a list of issuers": ({"iss": [ISSUER]}, "got iss"),
    "issuer with a tail": ({"iss": ISSUER + ".evil.example"}, "got iss"),
    "no audience": ({"aud": None}, "got aud"),
    "another audience": ({"aud": "brokers"}, "got aud"),
    "another case": ({"aud": "Broker"}, "got aud"),
    "other audiences": ({"aud": ["a", "b"]}, "got aud"),
    "audience is an object": ({"aud": {"broker": 1}}, "got aud"),
    "nobody": ({"sub": None}, "got sub"),
    "an empty name": ({"sub": ""}, "got sub"),
    "a number's name": ({"sub": 7}, "got sub"),
    "a name of two lines": ({"sub": "ada\nroot"}, "got sub"),
    "a long name": ({"sub": "\u00e9" * 65}, "got sub"),
    "half a character": ({"sub": "\ud800"}, "got sub"),
    "roles are an object": ({"roles": {"chat": 1}}, "got roles"),
    "roles are numbers": ({"roles": [1]}, "got roles"),
    "id is a number": ({"jti": 7}, "got jti"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_bad_claims(name: str) -> None:
    changes, complaint = BAD_CLAIMS[name]
    with pytest.raises(Denied) as caught:
        judge(claims(**{"exp": NOW_S + 9, **changes}), DEMANDS, NOW_S)
    assert complaint in caught.value.detail
    assert caught.value.name == ("TOKEN_EXPIRED" if complaint == "ended" else "UNAUTHENTICATED")
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({"exp": NOW_S - 4.9}, ("chat",)),  # within the leeway
        ({"nbf": NOW_S + 4.9, "iat": NOW_S + 4.9}, ("chat",)),
        ({"aud": ["x", AUDIENCE]}, ("chat",)),
        ({"roles": None}, ()),
        ({"roles": "chat reader"}, ("chat", "reader")),
        ({"roles": []}, ()),
    ],
)
def test_what_is_taken(changes: dict[str, object], roles: tuple[str, ...]) -> None:
    assert judge(claims(**{"exp": NOW_S + 9, **changes}), DEMANDS, NOW_S).roles == roles


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    for text in (data.decode("latin-1"), part(data) + "." + part(data) + "." + part(data)):
        with pytest.raises(Denied):
            KEYS.verify(text)


@given(st.sampled_from(ALGORITHMS), st.data())
def test_one_bit_less(algorithm: str, data: st.DataObject) -> None:
    """No bit of what is signed, nor of the signature, can be another one."""
    parts = [base64.urlsafe_b64decode(each + "=" * (-len(each) % 4)) for each in GOOD[algorithm].split(".")]
    which = data.draw(st.integers(0, 2))
    at = data.draw(st.integers(0, 8 * len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[at // 8] ^= 1 << at % 8
    parts[which] = bytes(changed)
    with pytest.raises(Denied):
        KEYS.verify(".".join(part(each) for each in parts))


# -- key sets ----------------------------------------------------------------------------------------------------------


def changed(algorithm: str, **changes: object) -> str:
    """Return a set of one key with changes; None takes a member out."""
    key = public_half(key_of(algorithm)) | changes
    return json.dumps({"keys": [{name: value for name, value in key.items() if value is not None}]})


BAD_SETS: dict[str, tuple[str, str]] = {
    "nothing": ("", "not a key set"),
    "no JSON": ("{", "not a key set"),
    "deep": ("[" * 100_000, "not a key set"),
    "a list": ("[]", "not a key set"),
    "one key": (json.dumps(public_half(key_of("EdDSA"))), "not a key set"),
    "keys is an object": ('{"keys": {}}', "got no list"),
    "keys are numbers": ('{"keys": [1]}', "got no list"),
    "no key": ('{"keys": []}', "got no key for"),
    "other kinds only": ('{"keys": [{"kty": "EC", "crv": "P-256", "kid": "a"}]}', "got no key for"),
    "a kind that is a list": ('{"keys": [{"kty": [], "kid": "a"}]}', "got no key for"),
    "no kid": (changed("EdDSA", kid=None), "got no kid"),
    "an empty kid": (changed("EdDSA", kid=""), "got no kid"),
    "a kid twice": (json.dumps({"keys": [public_half(key_of("EdDSA"))] * 2}), "a second time"),
    "for another algorithm": (changed("RS256", alg="RS512"), "got alg"),
    "HMAC with a public key": (changed("RS256", alg="HS256"), "got alg"),
    "a short secret": (changed("HS256", k=part(bytes(31))), "31 bytes"),
    "no secret": (changed("HS256", k=None), "0 bytes"),
    "a short modulus": (changed("RS256", n=part(b"\xff" * 128)), "1024 bits"),
    "no base64": (changed("HS256", k="!"), "base64"),
    "half a key": (changed("EdDSA", x=None), "not a key"),
    "a bent key": (changed("EdDSA", x="AAAA"), "not a key"),
    "a private key": (json.dumps({"keys": [key_of("EdDSA")]}), "private key"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SETS)
def test_bad_set(name: str) -> None:
    text, complaint = BAD_SETS[name]
    with pytest.raises(ConfigError) as caught:
        Keys(text, "keys.json")
    assert complaint in caught.value.detail
    for secret in (key_of("EdDSA")["d"], key_of("HS256")["k"]):
        assert secret not in str(caught.value)


def test_keys_that_do_not_count_are_passed_over() -> None:
    others = [
        {"kty": "EC", "crv": "P-256", "kid": "ec", "x": "a", "y": "b"},
        public_half(key_of("RS256")) | {"use": "enc", "kid": "enc"},
        {"kty": "OKP", "crv": "X25519", "kid": "x", "x": "a"},
    ]
    keys = Keys(json.dumps({"keys": [*others, public_half(key_of("EdDSA"))]}), "keys.json")
    assert len(keys) == 1
    with pytest.raises(Denied):
        keys.verify(token("RS256"))


def test_an_algorithm_that_is_not_accepted_has_no_keys() -> None:
    keys = Keys(set_of(key_of("EdDSA"), key_of("HS256")), "keys.json", ["EdDSA"])
    assert not keys.has_secret
    assert keys.verify(token("EdDSA")).claims["sub"] == "ada"
    with pytest.raises(Denied):
        keys.verify(token("HS256"))


def test_a_key_of_the_same_id_is_another_key() -> None:
    """A token of the key that was exchanged is not one of the key that has taken its place."""
    found = KEYS.verify(token("EdDSA"))
    other = Keys(set_of(make_key("EdDSA", "EdDSA")), "keys.json")
    assert not other.holds(found)
    with pytest.raises(Denied):
        other.verify(token("EdDSA"))


def test_headers_that_mean_nothing_are_passed_over() -> None:
    from joserfc.jwk import OKPKey
    from joserfc.jws import JWSRegistry

    signed = f"{part({'alg': 'EdDSA', 'kid': 'EdDSA', 'x5t': 'a', 'nonce': 'b' * 900})}.{part(claims())}"
    signature = JWSRegistry.algorithms["EdDSA"].sign(signed.encode(), OKPKey.import_key(key_of("EdDSA")))
    assert KEYS.verify(f"{signed}.{part(signature)}").claims["sub"] == "ada"


def test_every_refusal_has_a_code() -> None:
    with pytest.raises(BrokerError) as caught:
        KEYS.verify("a.b.c")
    assert caught.value.code == 3035
