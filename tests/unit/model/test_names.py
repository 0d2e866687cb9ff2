"""Names and patterns: what is one, why another is not, and which channels a pattern selects."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.model.errors import InvalidChannel, InvalidPattern
from broker.model.names import (
    TOKENS_MAX,
    check_channel,
    check_pattern,
    covers,
    display,
    is_pattern,
    is_reserved,
    matches,
    overlap,
    shard_key,
)

FORBIDDEN = set(b' .*>$"\\')
TOKEN_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte not in FORBIDDEN)

# Names of 254, 255 and 256 bytes whose tokens are within their own bound.
LONG = {size: b"x" * 127 + b"." + b"y" * (size - 128) for size in (254, 255, 256)}


def naive_is_token(token: bytes) -> bool:
    return 1 <= len(token) <= 128 and all(0x20 < byte < 0x7F and byte not in FORBIDDEN for byte in token)


def naive_is_channel(name: bytes) -> bool:
    return len(name) <= 255 and all(naive_is_token(token) for token in name.split(b"."))


def naive_is_filter(pattern: bytes) -> bool:
    tokens = pattern.split(b".")
    if tokens[-1] == b">":
        tokens.pop()
    return len(pattern) <= 255 and all(token == b"*" or naive_is_token(token) for token in tokens)


def naive_matches(wanted: list[bytes], tokens: list[bytes]) -> bool:
    """Match as the definition reads: token by token, from the left."""
    if not wanted or not tokens:
        return not wanted and not tokens
    if wanted == [b">"]:
        return True
    return wanted[0] in (b"*", tokens[0]) and naive_matches(wanted[1:], tokens[1:])


# Few letters and few tokens, so that patterns and names often agree.
short_names = st.lists(st.sampled_from([b"a", b"b", b"ab"]), min_size=1, max_size=5).map(b".".join)
short_patterns = st.tuples(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"*"]), max_size=5), st.sampled_from([[], [b">"]])
).flatmap(lambda parts: st.just(b".".join(parts[0] + parts[1])) if parts[0] + parts[1] else st.just(b">"))
near_names = st.lists(
    st.sampled_from([b"a", b".", b"*", b">", b"$", b" ", b"\n", b"\x7f", b"~", b"!", b"\xff", b"x" * 127, b"x" * 128]),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize(
    "name",
    [
        b"a",
        b"a.b",
        b"chat.acme.42",
        b"x" * 127,
        b"x" * 128,
        LONG[254],
        LONG[255],
        b".".join([b"x"] * TOKENS_MAX),
        TOKEN_BYTES,
        b"semi;colon.and,comma",
    ],
)
def test_channel_is_accepted_as_itself(name: bytes) -> None:
    assert check_channel(name) is name
    assert check_channel(name.decode()) == name
    assert check_pattern(name) is name
    assert not is_pattern(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "got 0 bytes, expected 1 to 255"),
        (b".", "token 1 is empty"),
        (b"a.", "token 2 is empty"),
        (b".a", "token 1 is empty"),
        (b"a..b", "token 2 is empty"),
        (b"x" * 129, "token 1 has 129 bytes, limit 128"),
        (b"a." + b"x" * 129, "token 2 has 129 bytes, limit 128"),
        (LONG[256], "got 256 bytes, limit 255"),
        (b"a\n", "byte 0x0a at byte 1"),
        (b"ok.b d", "byte 0x20 at byte 4"),
        (b"a.b\x00", "byte 0x00 at byte 3"),
        (b"a\x7f", "byte 0x7f at byte 1"),
        (b"\x80", "byte 0x80 at byte 0"),
        (b"a.*", "byte 0x2a at byte 2"),
        (b"a.>", "byte 0x3e at byte 2"),
        (b'a"', "byte 0x22 at byte 1"),
        (b"a\\", "byte 0x5c at byte 1"),
        (b"a$", "byte 0x24 at byte 1"),
        (b"$reply.1.2", "reserved"),
        (b"$", "reserved"),
    ],
)
def test_channel_is_refused_with_its_reason(name: bytes, reason: str) -> None:
    with pytest.raises(InvalidChannel) as caught:
        check_channel(name)
    assert reason in caught.value.detail
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_alone_is_a_token_or_is_not(byte: int) -> None:
    name = bytes([byte])
    if byte in TOKEN_BYTES:
        assert check_channel(name) == name
    else:
        with pytest.raises(InvalidChannel):
            check_channel(name)


@pytest.mark.parametrize("name", ["é", "a.\u2028", "\ud800", "a" * 254 + "é"])
def test_text_beyond_ascii_is_refused(name: str) -> None:
    with pytest.raises(InvalidChannel):
        check_channel(name)
    with pytest.raises(InvalidPattern):
        check_pattern(name)


@pytest.mark.parametrize("pattern", [b">", b"*", b"*.*", b"a.>", b"*.>", b"a.*.b", b"x" * 128 + b".>", b"*.a.*.>"])
def test_pattern_is_accepted_as_itself(pattern: bytes) -> None:
    assert check_pattern(pattern) is pattern
    assert check_pattern(pattern.decode()) == pattern
    assert is_pattern(pattern)
    with pytest.raises(InvalidChannel):
        check_channel(pattern)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (b"", "got 0 bytes"),
        (b"a*", "has * at byte 1"),
        (b"a.**", "has * at byte 2"),
        (b">.a", "has > at byte 0"),
        (b"a.>.b", "has > at byte 2"),
        (b"a.b>", "has > at byte 3"),
        (b">>", "has > at byte 0"),
        (b"a.>.", "has > at byte 2"),
        (b"$reply.*", "reserved"),
        (b"a.$b.>", "byte 0x24 at byte 2"),
        (b"a. .>", "byte 0x20 at byte 2"),
        (b"x" * 129 + b".>", "token 1 has 129 bytes"),
        (LONG[254] + b".>", "got 256 bytes"),
    ],
)
def test_pattern_is_refused_with_its_reason(pattern: bytes, reason: str) -> None:
    with pytest.raises(InvalidPattern) as caught:
        check_pattern(pattern)
    assert reason in caught.value.detail


def accepts(candidate: bytes, check: object) -> bool:
    assert check in (check_channel, check_pattern)
    try:
        return (check_channel if check is check_channel else check_pattern)(candidate) is candidate
    except (InvalidChannel, InvalidPattern):
        return False


@settings(deadline=None, max_examples=400)
@given(near_names | short_names | short_patterns)
@example(b"\n")
@example(b"a\n")
def test_checks_agree_with_the_definition(candidate: bytes) -> None:
    assert accepts(candidate, check_channel) is naive_is_channel(candidate)
    assert accepts(candidate, check_pattern) is naive_is_filter(candidate)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (b"a", b"a", True),
        (b"a", b"a.b", False),
        (b">", b"a", True),
        (b">", b"a.b.c", True),
        (b"a.>", b"a", False),
        (b"a.>", b"a.b", True),
        (b"a.>", b"a.b.c", True),
        (b"a.>", b"ab.c", False),
        (b"*", b"a", True),
        (b"*", b"a.b", False),
        (b"*.b", b"a.b", True),
        (b"*.b", b"a.c", False),
        (b"a.*", b"a", False),
        (b"*.>", b"a", False),
        (b"*.>", b"a.b", True),
        (b"a.*.c", b"a.b.c", True),
        (b"a.*.c", b"a.b.c.d", False),
        (b">", b"$reply.1", False),
        (b"*.1", b"$reply.1", False),
        (b"*.>", b"$reply.1", False),
        (b"$reply.1", b"$reply.1", True),
    ],
)
def test_matches(pattern: bytes, name: bytes, expected: bool) -> None:
    assert matches(pattern, name) is expected


@settings(deadline=None, max_examples=1_000)
@given(short_patterns, short_names)
def test_matches_agrees_with_the_definition(pattern: bytes, name: bytes) -> None:
    assert matches(pattern, name) is naive_matches(pattern.split(b"."), name.split(b"."))


def all_names() -> list[bytes]:
    """Every name of up to four tokens over two letters: enough to tell apart patterns of up to three tokens."""
    names = [[token] for token in (b"a", b"b")]
    for name in names:
        if len(name) < 4:
            names += [[*name, b"a"], [*name, b"b"]]
    return [b".".join(name) for name in names]


@settings(deadline=None, max_examples=500)
@given(*[st.lists(st.sampled_from([b"a", b"*", b">"]), min_size=1, max_size=3).map(b".".join)] * 2)
def test_covers_means_that_no_name_escapes(wide: bytes, narrow: bytes) -> None:
    if not (naive_is_filter(wide) and naive_is_filter(narrow)):
        return
    escapes = [name for name in all_names() if matches(narrow, name) and not matches(wide, name)]
    assert covers(wide, narrow) is (not escapes)


@settings(deadline=None, max_examples=500)
@given(*[st.lists(st.sampled_from([b"a", b"b", b"*", b">"]), min_size=1, max_size=3).map(b".".join)] * 2)
def test_filters_overlap_when_a_name_is_in_both(one: bytes, other: bytes) -> None:
    if not (naive_is_filter(one) and naive_is_filter(other)):
        return
    assert overlap(one, other) is any(matches(one, name) and matches(other, name) for name in all_names())


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, b"chat"), (2, b"chat.acme"), (3, b"chat.acme.42"), (4, b"chat.acme.42"), (128, None)]
)
def test_shard_key_is_the_first_tokens(tokens: int, expected: bytes | None) -> None:
    assert shard_key(b"chat.acme.42", tokens) == (expected or b"chat.acme.42")


@given(short_names, st.integers(1, TOKENS_MAX))
def test_shard_key_agrees_with_the_definition(name: bytes, tokens: int) -> None:
    assert shard_key(name, tokens) == b".".join(name.split(b".")[:tokens])


@pytest.mark.parametrize(("name", "expected"), [(b"", False), (b"$", True), (b"$a", True), (b"a$", False)])
def test_is_reserved(name: bytes, expected: bool) -> None:
    assert is_reserved(name) is expected


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 256])
def test_display_is_printable_and_short(size: int) -> None:
    shown = display(b"\x1b" * size)
    assert shown.isprintable()
    assert shown.endswith("…") is (size > 64)
    assert len(shown) <= 4 * 64 + 3
