"""The rows of an archive: packing them, and proving that one is what was written.

Every row carries a CRC-32C: a chunk its own, which covers its channel and first sequence and so its key, every other
row one over its key and what follows. A row that stands under another key than its own is therefore found out like one
with a changed value. The groups' rows are packed in varints (LEB128, as in Protocol Buffers): about six bytes a chunk.

Nothing here knows of LMDB, pages or files.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_CRC,
    CHUNK_FIRST,
    CHUNK_HEADER_BYTES,
    load_u32,
    load_u64,
    store_u32,
)


class RowDamaged(ValueError):
    """A row is not what was written.

    Attributes:
        key: The row's key.
    """

    def __init__(self, key):
        super().__init__(f"row {key.hex()}")
        self.key = key


# -- numbers -----------------------------------------------------------------------------------------------------------


cdef uint64_t load_key_u64(const uint8_t* at) noexcept nogil:
    """A number of a key: big-endian, so that keys sort as numbers do."""
    cdef uint64_t number = 0
    cdef int index
    for index in range(8):
        number = number << 8 | at[index]
    return number


cdef void store_key_u64(uint8_t* at, uint64_t number) noexcept nogil:
    cdef int index
    for index in range(8):
        at[index] = <uint8_t>(number >> (56 - 8 * index) & 0xFF)


cdef uint32_t varint_store(uint8_t* at, uint64_t number) noexcept nogil:
    """Write a varint, at most ten bytes; answers how many."""
    cdef uint32_t size = 0
    while number >= 0x80:
        at[size] = <uint8_t>(number & 0x7F | 0x80)
        number >>= 7
        size += 1
    at[size] = <uint8_t>number
    return size + 1


cdef const uint8_t* varint_load(const uint8_t* at, const uint8_t* end, uint64_t* number) noexcept nogil:
    """Read a varint; answers what follows it, NULL when it is cut or too long."""
    cdef uint64_t value = 0
    cdef int shift = 0
    while at < end and shift < 64:
        value |= <uint64_t>(at[0] & 0x7F) << shift
        if at[0] < 0x80:
            number[0] = value
            return at + 1
        at += 1
        shift += 7
    return NULL


# -- proofs ------------------------------------------------------------------------------------------------------------


cdef uint32_t row_crc(const uint8_t* key, uint64_t key_size, const uint8_t* body, uint64_t body_size) noexcept nogil:
    """The checksum of a row that is no chunk: over its key and what follows the checksum."""
    return crc32c(crc32c(0, key, key_size), body, body_size)


cdef bint chunk_sound(const Span* key, const uint8_t* value, uint64_t size) noexcept nogil:
    """Whether a chunk is what was written, and stands under its own key."""
    if key.size != CHUNK_KEY_BYTES or size < CHUNK_HEADER_BYTES or load_u32(value) != size:
        return False
    if load_u64(value + CHUNK_CHANNEL) != load_key_u64(key.at + 1) or load_u32(value + CHUNK_COUNT) == 0:
        return False
    if load_u64(value + CHUNK_FIRST) != load_key_u64(key.at + 9):
        return False
    return load_u32(value + CHUNK_CRC) == crc32c(0, value + CHUNK_CHANNEL, size - CHUNK_CHANNEL)


cdef bint row_sound(const Span* key, const Span* value) noexcept nogil:
    """Whether a row is what was written; any kind."""
    if key.at[0] == ROW_CHUNK:
        return chunk_sound(key, value.at, value.size)
    if value.size < ROW_CRC_BYTES:
        return False
    return load_u32(value.at) == row_crc(key.at, key.size, value.at + ROW_CRC_BYTES, value.size - ROW_CRC_BYTES)


# -- for Python --------------------------------------------------------------------------------------------------------


def pack_row(bytes key not None, bytes body not None):
    """The value of a row that is no chunk: its checksum, and the body."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef bytes value = PyBytes_FromStringAndSize(NULL, ROW_CRC_BYTES + size)
    cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(value)
    memcpy(at + ROW_CRC_BYTES, PyBytes_AS_STRING(body), <size_t>size)
    store_u32(at, row_crc(<const uint8_t*>PyBytes_AS_STRING(key), <uint64_t>PyBytes_GET_SIZE(key),
                          at + ROW_CRC_BYTES, <uint64_t>size))
    return value


def row_body(bytes key not None, bytes value not None):
    """What a row says: the value without its checksum, or the whole chunk.

    Raises:
        RowDamaged: It is not what was written.
    """
    cdef Span keyed, valued
    if PyBytes_GET_SIZE(key) == 0:
        raise ValueError("key: got 0 bytes, at least 1 needed")
    keyed.at = <const uint8_t*>PyBytes_AS_STRING(key)
    keyed.size = <uint64_t>PyBytes_GET_SIZE(key)
    valued.at = <const uint8_t*>PyBytes_AS_STRING(value)
    valued.size = <uint64_t>PyBytes_GET_SIZE(value)
    if not row_sound(&keyed, &valued):
        raise RowDamaged(key)
    return value if keyed.at[0] == ROW_CHUNK else value[ROW_CRC_BYTES:]
