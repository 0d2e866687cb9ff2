"""`broker_native.names` against the grammar that the whole broker goes by."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.model.errors import BrokerError
from broker.model.names import NAME_BYTES_MAX, TOKEN_BYTES_MAX, check_channel
from broker_native.names import is_channel


def is_one(name: bytes) -> bool:
    try:
        return check_channel(name) == name
    except BrokerError:
        return False


NEARLY = st.lists(st.binary(max_size=3) | st.sampled_from([b"a", b"x9", b"", b"*", b">", b"$"]), max_size=6)


@given(st.binary(max_size=12) | st.text('ab.$*> "\\~!\x7f', max_size=12).map(str.encode) | NEARLY.map(b".".join))
@example(b"")
@settings(max_examples=500, deadline=None)
def test_a_name_is_one_where_the_model_says_so(name: bytes) -> None:
    assert is_channel(name) == is_one(name)


@pytest.mark.parametrize("byte", range(256))
def test_each_byte_alone_and_within(byte: int) -> None:
    for name in (bytes([byte]), b"a" + bytes([byte]), b"a" + bytes([byte]) + b"b", b"a." + bytes([byte])):
        assert is_channel(name) == is_one(name)


@pytest.mark.parametrize("size", [TOKEN_BYTES_MAX - 1, TOKEN_BYTES_MAX, TOKEN_BYTES_MAX + 1])
def test_tokens_have_a_bound(size: int) -> None:
    for name in (b"x" * size, b"a." + b"x" * size, b"x" * size + b".a"):
        assert is_channel(name) == is_one(name) == (size <= TOKEN_BYTES_MAX)


@pytest.mark.parametrize("size", [NAME_BYTES_MAX - 1, NAME_BYTES_MAX, NAME_BYTES_MAX + 1])
def test_names_have_a_bound(size: int) -> None:
    for name in (b"a." * (size // 2) + b"a" * (size % 2), b"a." * (size // 2 - 1) + b"ab" + b"c" * (size % 2)):
        assert is_channel(name) == is_one(name)
