"""`broker_native.bodies` against the walk in Python."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.model.errors import BrokerError
from broker_native import bodies
from tests.reference import bodies as reference

VALUES_MAX = 40


def native(body: bytes) -> str | None:
    return bodies.walk(body, VALUES_MAX, reference.ITEMS_MAX, reference.DEPTH_MAX)


def twin(body: bytes) -> str | None:
    try:
        reference.walk(body, VALUES_MAX)
    except BrokerError as wrong:
        return wrong.detail
    return None


FIRST = st.integers(0, 255).map(lambda first: bytes([first]))
SHORT = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(SHORT, st.integers(0, 60), st.integers(0, 255))
def test_a_body_with_a_byte_that_is_another(value: object, at: int, byte: int) -> None:
    packed = bytearray(msgpack.packb(value))
    assert native(bytes(packed)) == twin(bytes(packed))
    packed[at % len(packed)] = byte
    changed = native(bytes(packed))
    assert (changed is None) == (twin(bytes(packed)) is None)
    for end in range(min(len(packed), 20)):
        assert (native(bytes(packed[:end])) is None) == (twin(bytes(packed[:end])) is None)


@given(FIRST, st.binary(max_size=12))
@example(b"\xc1", b"")
@example(b"\xc7", b"\x01\x01\x01")
@example(b"\xdf", b"\x00\x00\x00\x01\xa1a\x01")
@example(b"\xdd", b"\xff\xff\xff\xff")
@example(b"\xdb", b"\xff\xff\xff\xff")
@example(b"\xc6", b"\xff\xff\xff\xff\x00")
def test_any_first_byte(first: bytes, rest: bytes) -> None:
    assert (native(first + rest) is None) == (twin(first + rest) is None)


@pytest.mark.parametrize(
    "pack", [[], {}, [[]], {"a": {}}, "x" * 31, "x" * 32, "x" * 256, b"x" * 65_536, 1.5, -1, 2**64 - 1]
)
@pytest.mark.parametrize("behind", [b"", b"\x00"])
def test_each_form(pack: object, behind: bytes) -> None:
    body = msgpack.packb(pack) + behind
    assert native(body) == twin(body)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b"", "cut short"),
        (b"\x82\xa1a\x01", "cut short"),
        (b"\x81\x01\x01", "a key is no string"),
        (b"\x81\xc4\x01a\x01", "a key is no string"),
        (b"\x80\x00\x00", "2 bytes after the map"),
        (b"\xdc\x04\x01" + b"\x00" * 1025, "got a container of 1025 items, limit 1024"),
        (b"\xdc\x00\x29" + b"\x00" * 41, "more than 40 values"),
        (b"\x91" * 17, "deeper than 16"),
        (b"\xd4\x01\x01", "got a value that begins with 0xd4"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, wrong: str) -> None:
    assert native(body) == twin(body) == wrong


def test_bounds_are_met_and_not_passed() -> None:
    assert native(b"\xdc\x00\x27" + b"\x00" * 39) is None
    assert native(b"\x91" * 15 + b"\x90") is None
    assert bodies.walk(b"\x90", 1, 0, 64) is None
    with pytest.raises(ValueError, match="depth: got 65, limit 64"):
        bodies.walk(b"\x90", 1, 0, 65)
