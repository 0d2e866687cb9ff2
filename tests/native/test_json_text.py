"""`broker_native.json_text` against Python's own JSON."""

from __future__ import annotations

import base64
import json

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_native import json_text
from tests.reference.json_text import Unsayable, sayable

VALUES_MAX, ITEMS_MAX, DEPTH_MAX = 40, 6, 5


@given(st.text())
@example('"\\/\b\f\n\r\t\0\x1f\x7f\x80\u2028\ud7ff\ue000\U0010ffff')
@example("seven b" + '"' + "eight by")
@example("é" * 9)
def test_a_string_reads_back_as_it_was(text: str) -> None:
    written = json_text.string(text.encode())
    assert json.loads(written) == text
    assert written[:1] == written[-1:] == b'"'


@given(st.binary())
@example(b"\xc0\x80")
@example(b"\xed\xa0\x80")
@example(b"\xf4\x90\x80\x80")
@example(b"\xe0\x9f\xbf")
@example(b"\xf0\x8f\xbf\xbf")
@example(b"\xc3")
@example(b"\xe2\x82")
@example(b"\xf0\x9f\x98")
@example(b"1234567\xff")
def test_what_is_no_utf8_is_no_string(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="UTF-8"):
            json_text.string(data)
    else:
        assert json.loads(json_text.string(data)) == text


@pytest.mark.parametrize("first", range(0xC0, 0x100))
def test_each_first_byte_of_a_character(first: int) -> None:
    """Every second byte behind it, and the continuations that make it whole."""
    for second in range(256):
        for behind in (b"", b"\x80", b"\x80\xbf", b"\x80\xbf\x41"):
            data = bytes([first, second]) + behind
            try:
                data.decode()
                good = True
            except UnicodeDecodeError:
                good = False
            try:
                json_text.string(data)
            except ValueError:
                assert not good, data
            else:
                assert good, data


@given(st.binary())
@example(b"")
@example(b"a")
@example(b"ab")
@example(b"abc")
def test_base64(data: bytes) -> None:
    assert json.loads(json_text.base64(data)) == base64.b64encode(data).decode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=20)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=40), VALUES, max_size=20))
@example({"": 2**53 - 1, "a": 2**53, "b": -(2**53) + 1, "c": -(2**53), "d": -(2**63), "e": 2**64 - 1})
@example({"a": {}, "b": [], "c": [{}], "d": b"", "e": "x" * 300, "f": ["x"] * 20, "g": float("inf")})
def test_msgpack(value: dict[str, object]) -> None:
    packed = msgpack.packb(value)
    try:
        expected = sayable(value)
    except Unsayable:
        assert json_text.msgpack(packed) is None
        return
    written = json_text.msgpack(packed)
    assert written is not None
    assert json.loads(written) == expected
    assert json_text.msgpack(packed + b"\0") is None
    for end in range(min(len(packed), 40)):
        assert json_text.msgpack(packed[:end]) is None


@given(st.binary(max_size=40))
@example(b"\x81\xa1a\xca\x7f\x80\x00\x00")
@example(b"\x81\xa1a\xca\x3f\x80\x00\x00")
@example(b"\x81\xc4\x01a\x01")
@example(b"\x81\xa1a\xd4\x01\x01")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xde\x00\x01\xa1a\xdd\xff\xff\xff\xff")
@example(b"\x81\xa1a" + b"\x91" * 36 + b"\xc0")
@example(b"\x91\x01")
def test_any_bytes_as_msgpack(data: bytes) -> None:
    """It is JSON, or it is none: never something else, and never more than it was."""
    written = json_text.msgpack(data)
    if written is not None:
        assert isinstance(json.loads(written), dict)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=8),
    max_leaves=30,
)


def count(value: object) -> tuple[int, int, int]:
    """Values, the most items of a container, depth."""
    if not isinstance(value, (list, dict)):
        return 1, 0, 0
    inner = [count(item) for item in (value.values() if isinstance(value, dict) else value)]
    values = 1 + sum(each[0] for each in inner) + (len(value) if isinstance(value, dict) else 0)
    return values, max([len(value), *(each[1] for each in inner)]), 1 + max([0, *(each[2] for each in inner)])


@given(TREES, st.sampled_from([None, 1]))
@example([[1, 2, 3, 4, 5, 6]], None)
@example([[1, 2, 3, 4, 5, 6, 7]], None)
@example([[[[[1]]]]], None)
@example([[[[[[]]]]]], None)
@example({"a,b": '[{"', "c": "\\"}, None)
def test_a_walk_counts_as_the_tree_is(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    values, items, depth = count(value)
    wrong = json_text.walk(text, VALUES_MAX, ITEMS_MAX, DEPTH_MAX)
    assert (wrong is None) == (values <= VALUES_MAX and items <= ITEMS_MAX and depth <= DEPTH_MAX)


def test_what_a_walk_says() -> None:
    assert json_text.walk(b"[" * 6, 40, 6, 5) == "deeper than 5"
    assert json_text.walk(b"[1,1,1,1,1,1,1]", 40, 6, 5) == "got a container of more than 6 items"
    assert json_text.walk(b"[[1,1],[1,1]]", 5, 6, 5) == "more than 5 values"
    assert json_text.walk(b"]]]}", 5, 6, 5) is None
    assert json_text.walk(b'"\\', 5, 6, 5) is None
    with pytest.raises(ValueError, match="depth: got 65, limit 64"):
        json_text.walk(b"", 1, 1, 65)
