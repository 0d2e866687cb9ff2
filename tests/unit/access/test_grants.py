"""Grants against an oracle that tries every channel; placeholders, and what must not take their place."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access.grants import Grants, Role, check_template, fill
from broker.access.identity import Verb
from broker.model.errors import Denied, InvalidPattern
from broker.model.names import matches
from tests.sizes import size

TRIALS = size("BROKER_GRANTS", 40_000, 1_000_000)
TOKENS = "ab"
STRANGE = "z"
"""A token that no filter names; every other one behaves as it does."""
DEPTH_MAX = 3


def filters_of(depth: int) -> list[str]:
    """Return every filter of so many tokens."""
    whole = [".".join(parts) for parts in itertools.product((*TOKENS, "*"), repeat=depth)]
    open_ended = [".".join((*parts, ">")) for parts in itertools.product((*TOKENS, "*"), repeat=depth - 1)]
    return whole + open_ended


FILTERS = [each for depth in range(1, DEPTH_MAX + 1) for each in filters_of(depth)]
# Two tokens deeper than any filter, so that what an open end lets in shows.
CHANNELS = [
    ".".join(parts)
    for depth in range(1, DEPTH_MAX + 3)
    for parts in itertools.product((*TOKENS, STRANGE), repeat=depth)
]


def selects(pattern: list[str], channel: list[str]) -> bool:
    """Say by the definition, token by token, whether a filter selects a channel."""
    if not pattern or not channel:
        return not pattern and not channel
    if pattern[0] == ">":
        return True
    return pattern[0] in ("*", channel[0]) and selects(pattern[1:], channel[1:])


def reach(pattern: str) -> int:
    """Return the channels that a filter selects, a bit each."""
    return sum(1 << at for at, channel in enumerate(CHANNELS) if selects(pattern.split("."), channel.split(".")))


REACH = {each: reach(each) for each in FILTERS}


def test_a_million_of_grants_subscriptions_and_channels() -> None:
    """What is allowed lies within one grant as a whole, what lies within one is allowed, and no channel gets out."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    leaks = wrong = allowed_count = 0
    for _ in range(TRIALS):
        granted = chance.sample(FILTERS, chance.randint(0, 4))
        asked, at = chance.choice(FILTERS), chance.randrange(len(CHANNELS))
        grants = Grants({Verb.SUBSCRIBE: [each.encode() for each in granted]})
        allowed = grants.allows(Verb.SUBSCRIBE, asked.encode())
        within = any(REACH[asked] & ~REACH[each] == 0 for each in granted)
        wrong += allowed is not within
        wrong += (grants.find(Verb.SUBSCRIBE, asked.encode()) is not None) is not within
        allowed_count += allowed
        if allowed and REACH[asked] >> at & 1:
            leaks += not any(REACH[each] >> at & 1 for each in granted)
        channel = CHANNELS[at].encode()
        wrong += grants.allows(Verb.SUBSCRIBE, channel) is not any(REACH[each] >> at & 1 for each in granted)
    assert (leaks, wrong) == (0, 0), f"seed {seed}"
    assert allowed_count > TRIALS // 50, "hardly anything was allowed: the trials show nothing"


def test_every_pair_of_filters() -> None:
    for granted, asked in itertools.product(FILTERS, FILTERS):
        grants = Grants({Verb.CONSUME: [granted.encode()]})
        within = REACH[asked] & ~REACH[granted] == 0
        assert grants.allows(Verb.CONSUME, asked.encode()) is within, (granted, asked)


@given(st.sampled_from(FILTERS), st.sampled_from(CHANNELS))
def test_the_oracle_agrees_with_matching(pattern: str, channel: str) -> None:
    assert selects(pattern.split("."), channel.split(".")) is matches(pattern.encode(), channel.encode())


def test_a_verb_is_granted_by_itself() -> None:
    grants = Grants({Verb.PUBLISH: [b">"]})
    assert [verb for verb in Verb if grants.allows(verb, b"a")] == [Verb.PUBLISH]
    assert not any(Grants({}).allows(verb, b"a") for verb in Verb)


@pytest.mark.parametrize("name", [b"$", b"$reply.1.2", b"$bus.>", b"$\xff"])
def test_reserved_names_are_granted_to_nobody(name: bytes) -> None:
    grants = Grants({verb: [b">", b"*.>", b"*"] for verb in Verb})
    assert not any(grants.allows(verb, name) for verb in Verb)


def test_grants_are_values() -> None:
    one, same = Grants({Verb.PUBLISH: [b"a", b"a", b"b.>"]}), Grants({Verb.PUBLISH: [b"a", b"b.>"]})
    assert one == same
    assert hash(one) == hash(same)
    assert one != Grants({Verb.SUBSCRIBE: [b"a", b"b.>"]})
    assert one.filters(Verb.PUBLISH) == (b"a", b"b.>")
    assert repr(one) == "Grants(publish=['a', 'b.>'])"


# -- placeholders ------------------------------------------------------------------------------------------------------

ROLE = Role("member", {Verb.PUBLISH: ("user.{sub}.>", "team.{team}-{sub}", "all")})


def test_placeholders_are_filled() -> None:
    grants = fill([ROLE], {"sub": "ada", "team": 7})
    assert grants.filters(Verb.PUBLISH) == (b"user.ada.>", b"team.7-ada", b"all")
    assert ROLE.is_personal
    assert not Role("plain", {Verb.PUBLISH: ("a",)}).is_personal


@pytest.mark.parametrize(
    "value",
    [
        None, "", "a.b", "*", ">", "a.*", ".", "..", "$own", "a b", "a\0", "a\n", "\u0430da", "\ud800", "a>", "*a",
        '"', "\\",
        "x" * 129, True, False, 1.5, float("nan"), [], ["ada"], {"sub": "ada"}, b"ada",
    ],
)  # fmt: skip
def test_what_is_no_token_takes_no_place(value: object) -> None:
    with pytest.raises(Denied) as caught:
        fill([Role("r", {Verb.SUBSCRIBE: ("user.{sub}.>",)})], {"sub": value})
    assert caught.value.name == "UNAUTHENTICATED"
    assert caught.value.detail.isprintable()


@given(
    st.text() | st.integers() | st.none(), st.sampled_from(["{sub}", "{sub}.>", "a.{sub}", "*.{sub}.b", "x{sub}y.>"])
)
def test_a_claim_widens_nothing(value: object, template: str) -> None:
    """Whatever the claim, what comes out has the shape of the template, token by token."""
    check_template(template)
    try:
        (filled,) = fill([Role("r", {Verb.PUBLISH: (template,)})], {"sub": value}).filters(Verb.PUBLISH)
    except Denied:
        return
    wanted, got = template.split("."), filled.decode().split(".")
    assert len(wanted) == len(got)
    for want, each in zip(wanted, got, strict=True):
        assert (each == want) if "{" not in want else (each not in ("*", ">"))


def test_too_long_with_its_claims() -> None:
    role = Role("r", {Verb.PUBLISH: ("a{sub}",)})
    with pytest.raises(Denied, match="128 bytes"):
        fill([role], {"sub": "x" * 128})


@pytest.mark.parametrize("template", ["", "a..b", "$x", "{sub", "sub}", "{}", "{a b}", "{1}", "a.>.b", "{sub}>", "a b"])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(InvalidPattern):
        check_template(template)
