"""Every implementation of CRC-32C that this machine has, against the RFC's examples and the bitwise twin."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.crc32c import crc32c_by, crc32c_of, implementation, implementations
from tests.reference.crc32c import crc32c as reference

# RFC 3720, appendix B.4, whose table shows each checksum's bytes as they stand in memory.
RFC_READ_COMMAND = bytes.fromhex(
    "01c00000000000000000000000000000140000000000040000000014000000182800000000000000" + "0200000000000000"
)
RFC_EXAMPLES = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(reversed(range(32))), "5cdb3f11"),
    (RFC_READ_COMMAND, "563a96d9"),
]

# Words are 8 bytes, lanes begin at 96 bytes, and 3 lanes of 128 words, 3,072 bytes, are one round.
SIZES = sorted(
    {size + delta for size in (8, 16, 24, 64, 96, 120, 128, 256, 512, 3072, 6144, 9216) for delta in range(-9, 10)}
    & set(range(10_000))
)

RANDOM_BYTES = random.Random(3720).randbytes(16_384)

every_implementation = pytest.mark.parametrize("name", implementations())


def test_the_fastest_way_is_in_use_and_portable_is_always_there() -> None:
    assert implementations()[0] == implementation()
    assert "portable" in implementations()
    assert len(set(implementations())) == len(implementations())


@every_implementation
@pytest.mark.parametrize(("data", "memory_hex"), RFC_EXAMPLES)
def test_rfc_examples(name: str, data: bytes, memory_hex: str) -> None:
    assert crc32c_by(name, data).to_bytes(4, "little").hex() == memory_hex


@every_implementation
def test_check_value(name: str) -> None:
    assert crc32c_by(name, b"123456789") == 0xE3069283


@every_implementation
def test_nothing_leaves_a_checksum_as_it_is(name: str) -> None:
    for crc in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert crc32c_by(name, b"", crc) == crc


@every_implementation
def test_boundary_sizes_at_every_alignment(name: str) -> None:
    expected = {size: reference(RANDOM_BYTES[:size], 0x12345678) for size in SIZES}
    for shift in range(8):
        shifted = memoryview(bytes(shift) + RANDOM_BYTES)[shift:]
        for size in SIZES:
            assert crc32c_by(name, shifted[:size], 0x12345678) == expected[size], (shift, size)


@every_implementation
@given(data=st.binary(max_size=400), crc=st.integers(0, 2**32 - 1))
def test_same_as_twin(name: str, data: bytes, crc: int) -> None:
    assert crc32c_by(name, data, crc) == reference(data, crc)


@every_implementation
@given(size=st.integers(0, len(RANDOM_BYTES)), cut=st.integers(0, len(RANDOM_BYTES)), crc=st.integers(0, 2**32 - 1))
def test_a_checksum_continues_and_all_agree(name: str, size: int, cut: int, crc: int) -> None:
    data = memoryview(RANDOM_BYTES)[:size]
    whole = crc32c_of(data, crc)
    assert crc32c_by(name, data[cut:], crc32c_by(name, data[:cut], crc)) == whole


@every_implementation
def test_every_single_bit_counts(name: str) -> None:
    for size in (1, 7, 8, 95, 96, 97, 300):
        data = bytearray(RANDOM_BYTES[:size])
        seen = {crc32c_by(name, data)}
        for bit in range(8 * size):
            data[bit // 8] ^= 1 << bit % 8
            seen.add(crc32c_by(name, data))
            data[bit // 8] ^= 1 << bit % 8
        assert len(seen) == 8 * size + 1


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers(kind: type[bytes | bytearray | memoryview]) -> None:
    assert crc32c_of(kind(b"123456789")) == 0xE3069283


def test_a_buffer_is_given_back() -> None:
    data = bytearray(b"123456789")
    crc32c_of(data)
    crc32c_by("portable", data)
    data.append(0)  # BufferError while somebody holds it


def test_refusals() -> None:
    with pytest.raises(TypeError):
        crc32c_of("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        crc32c_of(memoryview(b"123456789")[::2])
    for crc in (-1, 2**32):
        with pytest.raises(OverflowError):
            crc32c_of(b"", crc)
        with pytest.raises(OverflowError):
            crc32c_by("portable", b"", crc)
    with pytest.raises(ValueError, match="got implementation 'abacus'"):
        crc32c_by("abacus", b"")
