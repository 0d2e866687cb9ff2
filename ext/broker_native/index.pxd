# What native code must know of groups and of a segment's index: the structs, and which lock protects what.
#
# SegmentIndex   channel id -> its chunks, of one segment that is not sealed. The commit thread adds, any thread looks
#                up; `lock` protects rows and table. Whoever holds `lock` never needs the interpreter lock before it
#                lets go, so a thread may wait for `lock` while it holds the interpreter lock.
#
# An index page (the value of one row of a sealed segment):
#
#     0      4     8       12      16
#     | size | crc | magic | count | count entries of 40 bytes, sorted by (channel, first)
#       u32    u32   u32     u32
#
#     an entry: u64 channel | u64 first | u64 group | u32 count | u32 index | u32 offset | u32 size
#
# `crc` is the CRC-32C of bytes 8 to `size`. The key of a page is its first entry's (channel, first), big-endian.

from cpython.buffer cimport Py_buffer
from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PAGE_HEADER_BYTES = 16
    PAGE_ENTRY_BYTES = 40
    PAGE_MAGIC = 0x58444942       # "BIDX"
    # Eight pages of LMDB's minus its own header, so that a page wastes nothing: (8 * 4096 - 16 - 16) / 40.
    PAGE_ENTRIES_MAX = 818

cdef enum:
    AHEAD = 8                     # so many items are fetched into the cache before they are looked at
    BYTES_HELD_MAX = 262144       # so much is walked before the interpreter lock is given away for it

cdef packed struct IndexSlot:         # without a hole: a segment of very many channels has a million of them
    uint64_t key
    uint32_t row                  # the item's index + 1; 0 is a free place

cdef struct IndexTable:           # u64 key -> an item of an array; open addressing, at most two thirds full
    IndexSlot* slots
    uint32_t capacity             # power of two, 0 before the first insertion
    uint32_t count                # of keys and of items
    void* items                   # in the order in which their keys came
    uint32_t items_capacity

cdef struct ChunkPlace:           # where one chunk stands
    uint64_t first                # its first sequence
    uint64_t group
    uint32_t count                # sequences
    uint32_t index                # of the chunk within its group
    uint32_t offset               # bytes from the beginning of the group
    uint32_t size                 # bytes

cdef struct ChannelRow:           # of very many channels a segment has one chunk each: that needs no array
    uint64_t channel
    ChunkPlace only               # the place of a row that has one
    ChunkPlace* places            # ascending by `first`; NULL as long as `only` is enough
    uint32_t count
    uint32_t capacity             # of `places`

cdef enum:
    DAMAGE_NONE = 0
    DAMAGE_HEADER = 1             # too short for a header, or no magic
    DAMAGE_FORMAT = 2             # a format that this build does not know
    DAMAGE_SIZE = 3               # the header's size is not the value's
    DAMAGE_ENTRIES = 4            # entries do not add up
    DAMAGE_CHUNK = 5              # a chunk's size, count or first cannot be
    DAMAGE_CRC = 6                # a chunk's checksum is wrong
    DAMAGE_CHAIN = 7              # the group's checksum is wrong
    DAMAGE_ORDER = 8              # a channel's chunks are not in the order of their sequences
    DAMAGE_UNKNOWN_ENTRY = 9      # an entry of a newer version that must not be passed over
    DAMAGE_PLACE = 10             # no such chunk where the index says
    DAMAGE_PAGE = 11              # an index page's checksum or bounds are wrong
    DAMAGE_TABLE = 12             # a table page's checksum, bounds or order are wrong
    DAMAGE_MEMORY = 13            # not damage: no memory

cdef struct Damage:               # what a walk found wrong
    int reason                    # DAMAGE_*
    uint64_t offset               # bytes from the beginning of the group
    uint64_t channel              # 0 when no chunk is concerned

cdef class SegmentIndex:
    cdef PyThread_type_lock lock
    cdef IndexTable table         # channel id -> ChannelRow
    cdef uint64_t places_count

cdef class GroupHeader:
    cdef readonly uint64_t number, predecessor, term, writer, run, time_us, size, closed_run
    cdef readonly uint32_t chain, previous_chain, entries, chunks, flags

cdef object damage_error(const Damage* damage)
cdef int damaged(Damage* damage, int reason, uint64_t offset, uint64_t channel) noexcept nogil
cdef int view_check(const Py_buffer* view, uint64_t* closed_run, Damage* damage) noexcept
cdef GroupHeader header_of(const uint8_t* at, uint64_t closed_run)

cdef void* array_grow(void* items, uint32_t* capacity, uint32_t initial, size_t item_bytes) noexcept nogil
cdef uint64_t key_mix(uint64_t key) noexcept nogil
cdef uint32_t table_find(const IndexTable* table, uint64_t key) noexcept nogil
cdef uint64_t table_look_ahead(
    const IndexTable* table, const uint8_t* at, size_t size, uint64_t offset, int chunks
) noexcept nogil
cdef void* table_add(IndexTable* table, uint64_t key, uint32_t initial, size_t item_bytes) noexcept nogil
cdef void table_free(IndexTable* table) noexcept nogil
