# Table pages: what a sealed segment changed in the tables, sorted, a few thousand bytes at a time.
#
# A table page (the value of one row of a sealed segment):
#
#     0      4     8       12      16     20          24     28           32
#     | size | crc | magic | count | kind | items end | low  | bound      | count items, sorted by key | low | bound
#       u32    u32   u32     u32     u32    u32         u32 size u32 size
#
# `crc` is the CRC-32C of bytes 8 to `size`. A page holds every item of its kind from `low` on and below `bound`; the
# row's key is the kind's name and `low`. The first page's `low` is empty, and so is the last one's `bound`, and each
# page's bound is the next one's low: "no such key" is proved by the one page that would hold it, whichever bit of
# which key on the way to it was flipped. Every kind has at least one page.
#
#     kind              key                        item
#     TABLE_NAMES       a channel's name           u8 size, name, u64 channel
#     TABLE_CHANNELS    the id, big-endian         u64 id, u32 bytes, entries
#     TABLE_LINES       the producer               u32 bytes, LINE entry
#     TABLE_REST        its number, u32 big-endian u32 bytes, entry
#
# A filter (the value of one row of a sealed segment) tells from one cache line that the segment has nothing of a key:
#
#     0      4     8       12   16            20               24
#     | size | crc | magic | 0  | rare blocks | touched blocks | blocks of 64 bytes: rare, then touched
#
# Names, lines and channels of which there is more than a head are "rare", all channels are "touched".

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    TABLE_NAMES = 1
    TABLE_CHANNELS = 2
    TABLE_LINES = 3
    TABLE_REST = 4
    TABLE_CHANGED = 5             # a filter's kind only: channels of which there is more than a head

    TABLE_PAGE_HEADER_BYTES = 32
    TABLE_PAGE_MAGIC = 0x42415442  # "BTAB"
    # Eight pages of LMDB's minus its own header, so that a page wastes nothing.
    TABLE_PAGE_BYTES_MAX = 32752

    FILTER_HEADER_BYTES = 24
    FILTER_MAGIC = 0x544C4642     # "BFLT"
    FILTER_BLOCK_BYTES = 64
    FILTER_KEYS_PER_BLOCK = 48    # 10.7 bits a key: one of a hundred keys that are not there is looked for in vain

cdef struct ByteBuffer:           # grows, owned by whoever declares it
    uint8_t* data
    size_t size
    size_t capacity

cdef struct TablePage:            # the one that is being filled: header and items
    ByteBuffer bytes
    uint32_t count

cdef class TableFilter:
    cdef bytes value
    cdef uint32_t rare            # blocks
    cdef uint32_t touched

    cdef bint has(self, int kind, const uint8_t* key, size_t size) noexcept

cdef bint buffer_append(ByteBuffer* buffer, const uint8_t* data, size_t size) noexcept nogil
cdef uint8_t* buffer_reserve(ByteBuffer* buffer, size_t size) noexcept nogil

cdef bint page_begin(TablePage* page) noexcept nogil
cdef bint page_has_room(const TablePage* page, size_t size) noexcept nogil
cdef bytes page_finish(TablePage* page, int kind, bytes low, bytes bound)

cdef uint64_t filter_hash(int kind, const uint8_t* key, size_t size) noexcept nogil
cdef uint32_t filter_blocks(uint64_t keys) noexcept nogil
cdef void filter_add(uint8_t* blocks, uint32_t count, uint64_t hashed) noexcept nogil
cdef void filter_seal(uint8_t* at, uint32_t rare, uint32_t touched) noexcept nogil

cdef void number_key(uint8_t* at, uint64_t number, int size) noexcept nogil
