"""`broker_native.rows` against its twin: a row proves itself and its key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.crc32c import crc32c_of
from broker_native.rows import RowDamaged, pack_row, row_body
from tests.native.starve import refusals
from tests.reference.groups import build_chunk, chunk_of

keys = st.binary(min_size=1, max_size=40).filter(lambda key: key[0] != 0x10)
CHUNK = build_chunk(chunk_of(7, 3, 1 << 40, [b"one", b"two"], 5))
CHUNK_KEY = b"\x10" + (7).to_bytes(8, "big") + (1 << 40).to_bytes(8, "big")


@given(keys, st.binary(max_size=100))
def test_a_row_is_its_checksum_and_its_body(key: bytes, body: bytes) -> None:
    value = pack_row(key, body)
    assert value == crc32c_of(key + body).to_bytes(4, "little") + body
    assert row_body(key, value) == body


@given(keys, st.binary(max_size=30), st.data())
def test_a_changed_key_or_value_is_found_out(key: bytes, body: bytes, data: st.DataObject) -> None:
    value = pack_row(key, body)
    at, bit = data.draw(st.integers(0, len(key) + len(value) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(key + value)
    flipped[at] ^= 1 << bit
    other, changed = bytes(flipped[: len(key)]), bytes(flipped[len(key) :])
    with pytest.raises(RowDamaged) as caught:
        row_body(other, changed)
    assert caught.value.key == other


@pytest.mark.parametrize("size", range(4))
def test_a_value_without_room_for_a_checksum(size: int) -> None:
    with pytest.raises(RowDamaged):
        row_body(b"\x01a", bytes(size))


def test_a_key_has_a_kind() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        row_body(b"", bytes(8))


def test_a_chunk_is_its_own_row() -> None:
    assert row_body(CHUNK_KEY, CHUNK) == CHUNK


def test_every_bit_of_a_chunk_and_its_key_counts() -> None:
    for at in range(1, len(CHUNK_KEY)):
        with pytest.raises(RowDamaged):
            row_body(flip(CHUNK_KEY, at, at % 8), CHUNK)
    for at in range(len(CHUNK)):
        with pytest.raises(RowDamaged):
            row_body(CHUNK_KEY, flip(CHUNK, at, at % 8))


def flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def test_chunks_that_cannot_be() -> None:
    """Short keys, short values, and a chunk of nothing, all with right checksums."""
    empty = build_chunk(chunk_of(7, 3, 1 << 40, [], 5))
    for key, value in ((CHUNK_KEY[:-1], CHUNK), (CHUNK_KEY, CHUNK[:55]), (CHUNK_KEY, b""), (CHUNK_KEY, empty)):
        with pytest.raises(RowDamaged):
            row_body(key, value)


def test_want_of_memory_leaves_nothing_behind() -> None:
    assert refusals(lambda: lambda: pack_row(b"\x01key", bytes(3000))) > 0
