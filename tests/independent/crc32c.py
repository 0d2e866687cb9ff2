"""CRC-32C (Castagnoli), a byte at a time: slow, and short enough to be checked by eye."""

from __future__ import annotations


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of `data`, 0 to 2³² − 1."""
    register = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        register = register >> 8 ^ table[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF
