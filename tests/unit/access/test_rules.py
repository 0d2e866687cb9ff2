"""Rules: who somebody is by one access file, and who that still is by the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.access.access_file import read_access_file
from broker.access.identity import Identity, Verb
from broker.access.static import hash_of
from broker.model.errors import Denied
from tests.unit.access.people import JWT, ROLES, Folder, key_of, token

if TYPE_CHECKING:
    from pathlib import Path

    from broker.access.rules import Rules

SECRET = "correct-horse"
HASH = hash_of(SECRET)
OTHERS = f"""
[tokens.nightly]
hash = "{HASH}"
user = "backup"
roles = ["reader"]
expires = 2027-01-15T08:00:10Z

[[peers]]
uid = 7
gid = 8
user = "both"
roles = ["reader"]

[[peers]]
gid = 8
user = "group"
roles = ["chat"]

[[certificates]]
name = "one.example.com"
user = "one"
roles = ["reader"]

[anonymous]
roles = ["reader"]
"""
NOW_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z
ALL = JWT + ROLES + OTHERS


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rules_of(folder: Folder, text: str = ALL) -> Rules:
    return read_access_file(folder.write(text)).rules


def test_a_signed_token(folder: Folder) -> None:
    rules = rules_of(folder)
    ada = rules.of_text(token(exp=NOW_S + 60, iat=NOW_S - 5, jti="7"), "here", NOW_S)
    assert (ada.user, ada.peer, ada.roles, ada.token_id, ada.issued_s) == ("ada", "here", ("chat",), "7", NOW_S - 5)
    assert ada.expires_s == NOW_S + 65
    assert ada.grants is not None
    assert ada.grants.allows(Verb.SUBSCRIBE, b"user.ada.>")
    assert not ada.grants.allows(Verb.SUBSCRIBE, b"user.*.>")
    assert not ada.grants.allows(Verb.PUBLISH, b"news.x")


def test_roles_of_everybody_and_roles_that_there_are_not(folder: Folder) -> None:
    rules = rules_of(folder, JWT + 'roles = ["reader"]' + ROLES)
    ada = rules.of_text(token(exp=NOW_S + 60, roles=["admin", "chat", "reader"]), "", NOW_S)
    assert ada.roles == ("reader", "chat")
    assert rules.of_text(token(exp=NOW_S + 60, roles=None), "", NOW_S).roles == ("reader",)


def test_a_claim_is_not_the_user(folder: Folder) -> None:
    """The claim `user` of a token is whatever its issuer lets people write there; the user is `sub`."""
    rules = rules_of(folder, JWT + '[roles.chat]\npublish = ["user.{user}.x"]')
    ada = rules.of_text(token(exp=NOW_S + 60, user="root"), "", NOW_S)
    assert ada.grants is not None
    assert ada.grants.filters(Verb.PUBLISH) == (b"user.ada.x",)


def test_another_claim_for_the_user(folder: Folder) -> None:
    text = JWT + 'user_claim = "email"\nroles_claim = "scope"\n[roles.chat]\npublish = ["{sub}.x"]'
    ada = rules_of(folder, text).of_text(token(exp=NOW_S + 60, email="ada@example.com", scope="chat x"), "", NOW_S)
    assert (ada.user, ada.roles) == ("ada@example.com", ("chat",))
    assert ada.grants is not None
    assert ada.grants.filters(Verb.PUBLISH) == (b"ada.x",)


def test_a_name_that_is_no_token_of_a_name(folder: Folder) -> None:
    rules = rules_of(folder)
    with pytest.raises(Denied, match="needs the claim 'sub'"):
        rules.of_text(token(exp=NOW_S + 60, sub="ada.*"), "", NOW_S)
    # Where no filter asks for it, it may be anything that can be printed.
    assert rules.of_text(token(exp=NOW_S + 60, sub="ada.*", roles=["reader"]), "", NOW_S).user == "ada.*"


def test_the_same_roles_share_their_grants(folder: Folder) -> None:
    rules = rules_of(folder)
    one, other = (rules.of_text(token(exp=NOW_S + 60, sub=sub, roles=["reader"]), "", NOW_S) for sub in ("a", "b"))
    assert one.grants is other.grants


def test_a_static_token(folder: Folder) -> None:
    rules = rules_of(folder)
    backup = rules.of_text(f"nightly.{SECRET}", "", NOW_S)
    assert (backup.user, backup.token_id, backup.expires_s) == ("backup", "nightly", NOW_S + 10)
    for wrong in (f"nightly.{SECRET}x", f"other.{SECRET}", f"Nightly.{SECRET}"):
        with pytest.raises(Denied) as caught:
            rules.of_text(wrong, "", NOW_S)
        assert str(caught.value).endswith("there is no such id, or its secret is another one")
    with pytest.raises(Denied) as caught:
        rules.of_text(f"nightly.{SECRET}", "", NOW_S + 10)
    assert caught.value.name == "TOKEN_EXPIRED"


def test_peers(folder: Folder) -> None:
    rules = rules_of(folder)
    found = [rules.of_peer(uid, gid, "") for uid, gid in ((7, 8), (6, 8), (7, 9), (0, 0))]
    assert [each and each.user for each in found] == ["both", "group", None, None]


def test_nobody(folder: Folder) -> None:
    nobody = rules_of(folder).of_nobody("there")
    assert nobody is not None
    assert (nobody.user, nobody.peer, nobody.roles) == ("", "there", ("reader",))
    assert rules_of(folder, ROLES).of_nobody("") is None


def test_no_signed_tokens_without_jwt(folder: Folder) -> None:
    with pytest.raises(Denied, match="this server takes none"):
        rules_of(folder, ROLES).of_text(token(), "", NOW_S)


@pytest.mark.parametrize("text", ["", "x", "a.b.c.d", "a b.c", "\0", "x" * 9_000, "." * 8_000, "\ud800.\ud800"])
def test_what_is_no_token(text: str, folder: Folder) -> None:
    with pytest.raises(Denied) as caught:
        rules_of(folder).of_text(text, "", NOW_S)
    assert caught.value.name == "UNAUTHENTICATED"
    assert not text or text not in caught.value.detail


# -- by the next file --------------------------------------------------------------------------------------------------


def everybody(rules: Rules) -> dict[str, Identity]:
    """Return somebody for each way to sign in."""
    found = {
        "signed": rules.of_text(token(exp=NOW_S + 60, iat=NOW_S - 5, jti="7"), "", NOW_S),
        "static": rules.of_text(f"nightly.{SECRET}", "", NOW_S),
        "peer": rules.of_peer(6, 8, ""),
        "certificate": rules.of_certificate(["one.example.com"], ""),
        "nobody": rules.of_nobody(""),
    }
    assert all(found.values())
    return {name: each for name, each in found.items() if each is not None}


def left(folder: Folder, text: str, now_s: float = NOW_S) -> set[str]:
    """Return who of everybody is still somebody by another file."""
    people = everybody(rules_of(folder))
    rules = rules_of(folder, text)
    still = set()
    for name, identity in people.items():
        try:
            same = rules.again(identity, now_s).user == identity.user
        except Denied as failure:
            same = failure.name != "TOKEN_EXPIRED"  # another refusal would be a mistake, and is one more who is left
        if same:
            still.add(name)
    return still


EVERYBODY = {"signed", "static", "peer", "certificate", "nobody"}


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (ALL, set()),
        (ALL + '[revoked]\nusers = ["ada"]', {"signed"}),
        (ALL + '[revoked]\nusers = ["backup", "group", "one"]', {"static", "peer", "certificate"}),
        (ALL + '[revoked]\ntokens = ["7"]', {"signed"}),
        (ALL + '[revoked]\ntokens = ["nightly"]', {"static"}),
        (ALL + "[revoked]\nissued_before = 2027-01-15T07:59:56Z", {"signed"}),
        (ALL + "[revoked]\nissued_before = 2027-01-15T07:59:55Z", set()),
        (JWT + ROLES, EVERYBODY - {"signed"}),
        (ROLES + OTHERS, {"signed"}),
        (ALL.replace(HASH, hash_of(SECRET)), {"static"}),
        (ALL.replace("one.example.com", "two.example.com"), {"certificate"}),
        (ALL.replace("gid = 8", "gid = 9"), {"peer"}),
        (ALL.replace("[anonymous]\nroles", "# "), {"nobody"}),
        (ALL.replace("2027-01-15T08:00:10Z", "2027-01-15T08:00:00Z"), {"static"}),
    ],
)
def test_who_is_left(text: str, gone: set[str], folder: Folder) -> None:
    assert left(folder, text) == EVERYBODY - gone


@pytest.mark.parametrize(
    ("after_s", "gone"), [(0, set()), (10, {"static"}), (64.9, {"static"}), (65, {"static", "signed"})]
)
def test_time_takes_tokens(after_s: float, gone: set[str], folder: Folder) -> None:
    assert left(folder, ALL, NOW_S + after_s) == EVERYBODY - gone


@pytest.mark.parametrize(
    "change", [('issuer = "https://login', 'issuer = "https://new'), ('audience = "broker"', 'audience = "other"')]
)
def test_another_issuer_or_audience(change: tuple[str, str], folder: Folder) -> None:
    ada = everybody(rules_of(folder))["signed"]
    with pytest.raises(Denied):
        rules_of(folder, ALL.replace(*change)).again(ada, NOW_S)


def test_a_key_that_was_taken_out(folder: Folder) -> None:
    ada = everybody(rules_of(folder))["signed"]
    folder.keys = [key_of("HS256")]
    folder.write_keys()
    with pytest.raises(Denied, match="no key of this server any more"):
        rules_of(folder).again(ada, NOW_S)


def test_grants_follow_the_file(folder: Folder) -> None:
    ada = everybody(rules_of(folder))["signed"]
    again = rules_of(folder, ALL.replace('"news.>"', '"news.public"')).again(ada, NOW_S)
    assert again.grants is not None
    assert again.grants.filters(Verb.SUBSCRIBE) == (b"user.ada.>", b"news.public")
    assert again.grants != ada.grants
    assert rules_of(folder).again(ada, NOW_S).grants == ada.grants


def test_an_identity_shows_no_credential(folder: Folder) -> None:
    for identity in everybody(rules_of(folder)).values():
        assert "argon2" not in repr(identity)
        assert "claims" not in repr(identity)
