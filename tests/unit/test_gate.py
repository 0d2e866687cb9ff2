"""The gate: reserved names are refused to everybody, and until there are rights the rest is allowed."""

from __future__ import annotations

import pytest

from broker.access.gate import Gate, Identity, Verb
from broker.model.errors import Denied


def test_verbs() -> None:
    assert [str(verb) for verb in Verb] == ["subscribe", "publish", "history", "consume", "manage"]


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("name", [b"a", b"chat.acme.42", b">", b"*.>", b"a$", b""])
def test_ordinary_names_pass(verb: Verb, name: bytes) -> None:
    Gate().check(Identity(), verb, name)


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("name", [b"$", b"$reply.1.2", b"$reply.>", b"$\xff"])
@pytest.mark.parametrize("identity", [Identity(), Identity(user="root", peer="127.0.0.1:5")])
def test_reserved_names_are_refused_to_everybody(verb: Verb, name: bytes, identity: Identity) -> None:
    with pytest.raises(Denied) as caught:
        Gate().check(identity, verb, name)
    assert caught.value.name == "DENIED"
    assert caught.value.detail.startswith(f"{verb} ")
    assert caught.value.detail.endswith(f"asked by {identity.user or 'anyone'}")


def test_identity_is_a_value() -> None:
    assert Identity("ada", "x") == Identity("ada", "x")
    assert len({Identity("ada"), Identity("ada"), Identity("bob")}) == 2


def test_of_many_names_those_before_the_first_refused_pass() -> None:
    gate, names = Gate(), [b"a", b"b.c", b"$own", b"d"]
    assert gate.count_allowed(Identity(), Verb.PUBLISH, names) == 2
    assert gate.count_allowed(Identity(), Verb.PUBLISH, names[2:]) == 0
    assert gate.count_allowed(Identity(), Verb.PUBLISH, names[:2]) == 2
    with pytest.raises(Denied):
        gate.check(Identity(), Verb.PUBLISH, names[2])
