"""Profiles: the first match wins, no match is an error, and a profile that cannot be reached is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import ConfigError, InvalidPattern, RequestError
from broker.model.levels import Level
from broker.model.names import covers, matches
from broker.model.profiles import OWN, Profile, Profiles
from broker.model.settings import settings_of

TYPING = Profile(b"typing.>", Level.EPHEMERAL)
CHAT = Profile(b"chat.*.live", Level.ACCEPTED, shard_tokens=1)
REST = Profile(b">")


def test_shipped_default_is_one_synced_profile_for_everything() -> None:
    profiles = Profiles()
    (only,) = profiles
    assert (only.pattern, only.durability, only.shard_tokens) == (b">", Level.SYNCED, 2)
    assert profiles.resolve(b"anything.at.all") is only


def test_first_match_wins() -> None:
    profiles = Profiles([TYPING, CHAT, REST])
    assert profiles.resolve(b"typing.42") is TYPING
    assert profiles.resolve(b"chat.acme.live") is CHAT
    assert profiles.resolve(b"chat.acme.dead") is REST
    assert profiles.resolve(b"typing") is REST


TOKENS = st.sampled_from(["a", "b", "a+", "[b]", "c^d", "x|y"])
NAMES = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(TOKENS | st.just("*"), max_size=3).flatmap(
    lambda tokens: st.sampled_from([".".join([*tokens, ">"]), ".".join(tokens or ["*"])])
)


@given(st.lists(PATTERNS.map(str.encode), min_size=1, max_size=5), NAMES.map(str.encode))
@settings(max_examples=300, deadline=None)
def test_the_first_that_matches_is_the_profile(patterns: list[bytes], name: bytes) -> None:
    reached = [
        pattern for at, pattern in enumerate(patterns) if not any(covers(earlier, pattern) for earlier in patterns[:at])
    ]
    profiles = Profiles(map(Profile, reached))
    expected = next((pattern for pattern in reached if matches(pattern, name)), None)
    if expected is not None:
        assert profiles.resolve(name).pattern == expected
    else:
        with pytest.raises(RequestError, match="NO_PROFILE"):
            profiles.resolve(name)


def test_no_match_is_an_error_that_names_the_channel() -> None:
    with pytest.raises(RequestError) as caught:
        Profiles([TYPING, CHAT]).resolve(b"mail.1")
    assert caught.value.name == "NO_PROFILE"
    assert "'mail.1'" in caught.value.detail


def test_reserved_names_are_the_brokers_own_whatever_the_patterns() -> None:
    for profiles in (Profiles(), Profiles([Profile(b"a.>", durability=Level.EPHEMERAL)])):
        assert profiles.resolve(b"$tally.x") is OWN
    assert OWN.durability is Level.SYNCED
    assert not OWN.retention_s


@pytest.mark.parametrize(
    ("wide", "narrow"), [(b">", b"a"), (b">", b">"), (b"a.>", b"a.*"), (b"a.*", b"a.b"), (b"a.b", b"a.b")]
)
def test_unreachable_profile_is_refused(wide: bytes, narrow: bytes) -> None:
    with pytest.raises(ConfigError, match=r"profiles\[1\]\.pattern: .* is never reached: profiles\[0\]"):
        Profiles([Profile(wide), Profile(narrow)])


def test_overlapping_profiles_are_legal() -> None:
    assert len(Profiles([Profile(b"a.*"), Profile(b"*.b"), Profile(b"a.>"), Profile(b">")])) == 4


@pytest.mark.parametrize(
    "values",
    [
        {"shard_tokens": 0},
        {"shard_tokens": 129},
        {"payload_bytes_max": -1},
        {"payload_bytes_max": 64 * 1024 * 1024 + 1},
        {"channels_max": -1},
        {"channels_max": 1 << 32},
        {"new_channels_per_s": -1},
        {"durability": Level.REPLICATED},
        {"retention_s": -1},
        {"retention_s": 36_525 * 86_400 + 1},
        {"retention_bytes": (1 << 50) + 1},
        {"retention_bytes": 1},
        {"retention_bytes": 64 * 1024 - 1},
        {"retention_messages": -1},
        {"keep": "newest"},
        {"tombstone_s": -1},
        {"slow": "never"},
        {"slow": "drop_oldest"},
        {"hold": "nobody"},
    ],
)
def test_value_beyond_its_range_is_refused_by_name(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=rf"profile\.{name}: got "):
        Profile(b">", **values)


@pytest.mark.parametrize(
    "values",
    [
        {"shard_tokens": 1},
        {"shard_tokens": 128},
        {"channels_max": (1 << 32) - 1},
        {"retention_s": 36_525 * 86_400},
        {"retention_bytes": 64 * 1024},
        {"retention_messages": 1},
        {"keep": "latest_per_key"},
        {"tombstone_s": 0},
        {"slow": "catchup"},
        {"slow": "latest"},
        {"slow": "disconnect"},
        {"hold": "none"},
    ],
)
def test_value_at_its_bound_is_taken(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    assert getattr(Profile(b">", **values), name) == value


@pytest.mark.parametrize(
    "values",
    [
        {"retention_s": 1},
        {"retention_bytes": 1 << 20},
        {"retention_messages": 1},
        {"keep": "latest_per_key"},
        {"hold": "consumers"},
    ],
)
def test_nothing_is_retained_of_what_is_never_stored(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=rf"profile\.{name}: got .*, expected .*: an ephemeral profile"):
        Profile(b">", Level.EPHEMERAL, **values)
    Profile(b">", Level.ACCEPTED, **values)


def test_nothing_waits_for_consumers_where_a_key_has_one_message() -> None:
    with pytest.raises(ConfigError, match=r"profile\.hold: got 'consumers', expected 'none': with keep"):
        Profile(b">", hold="consumers", keep="latest_per_key")
    with pytest.raises(ConfigError, match=r"profile\.hold_bytes_max: got 65535"):
        Profile(b">", hold="consumers", hold_bytes_max=65_535)
    assert Profile(b">", hold="consumers").hold_bytes_max == 1 << 30


@pytest.mark.parametrize("pattern", [b"", b"a..b", b"$x", b">.a"])
def test_pattern_is_validated(pattern: bytes) -> None:
    with pytest.raises(InvalidPattern):
        Profile(pattern)


def test_every_field_documents_itself() -> None:
    for name, described in settings_of(Profile).items():
        assert described.doc.endswith("."), name


def test_profiles_are_values() -> None:
    assert Profiles([TYPING, REST]) == Profiles([TYPING, REST])
    assert hash(Profiles([TYPING, REST])) == hash(Profiles([TYPING, REST]))
    assert Profiles([TYPING, CHAT]) != Profiles([CHAT, TYPING])
    assert Profiles() != [REST]
    assert Profiles([TYPING, REST])[1] is REST
    assert "typing" in repr(Profiles([TYPING]))


def test_what_there_is_among_profiles() -> None:
    profiles = Profiles(
        [Profile(b"e.>", Level.EPHEMERAL, slow="drop_oldest"), Profile(b"s.>", slow="latest"), Profile(b">")]
    )
    assert profiles.ephemeral == (b"e.>",)
    assert profiles.slow == {"drop_oldest", "latest", "catchup"}
