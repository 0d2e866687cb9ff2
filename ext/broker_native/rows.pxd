# The archive's rows: what each says, and its proof. The table of keys and values stands in broker/log/archive.py.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.btree cimport Span

cdef enum:
    ROW_META = 0x00               # what the archive says of itself
    ROW_NAME = 0x01               # a channel's name -> its id
    ROW_CHANNEL = 0x02            # a channel's id -> its entries
    ROW_LINE = 0x03               # a producer -> its line
    ROW_CHUNK = 0x10              # (channel, first sequence) -> a chunk
    ROW_LATEST = 0x20             # (channel, key) -> the sequence of the newest record with that key
    ROW_GROUPS = 0xF0             # last group of several -> what they hold, in the order of the bus

    ROW_CRC_BYTES = 4             # every row but a chunk's begins with its checksum
    CHUNK_KEY_BYTES = 17
    CHANNEL_KEY_BYTES = 9
    GROUPS_KEY_BYTES = 9
    CHANNEL_ROW_BYTES = 24        # u32 crc, u16 format, u16 zero, u64 bytes, u64 chunks; then entries
    CHANNEL_ROW_FORMAT = 1
    GROUPS_ROW_BYTES = 8          # u32 crc, u32 groups
    ROW_BYTES_WHOLE_PAGES = 16368  # four pages of 4 KiB with the header of the first

cdef bint row_sound(const Span* key, const Span* value) noexcept nogil
cdef bint chunk_sound(const Span* key, const uint8_t* value, uint64_t size) noexcept nogil
cdef uint32_t row_crc(const uint8_t* key, uint64_t key_size, const uint8_t* body, uint64_t body_size) noexcept nogil

cdef uint64_t load_key_u64(const uint8_t* at) noexcept nogil
cdef void store_key_u64(uint8_t* at, uint64_t number) noexcept nogil

cdef uint32_t varint_store(uint8_t* at, uint64_t number) noexcept nogil
cdef const uint8_t* varint_load(const uint8_t* at, const uint8_t* end, uint64_t* number) noexcept nogil
