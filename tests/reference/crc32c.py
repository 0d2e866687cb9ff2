"""CRC-32C bit by bit, as RFC 3720 section 12.1 defines it: the twin of `broker_native.crc32c`.

It has no table and no shortcut, so there is nothing in it that could be wrong in the same way. It must not be used
outside tests: it takes microseconds for each byte.
"""

POLYNOMIAL_REFLECTED = 0x82F63B78


def crc32c(data: bytes, crc: int = 0) -> int:
    """Return the checksum of what had the checksum `crc` (0 for nothing) followed by `data`."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL_REFLECTED if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
