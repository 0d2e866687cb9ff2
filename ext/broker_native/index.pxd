# What native code must know of a segment's index: the structs, and which lock protects what.
#
# SegmentIndex   channel id -> its chunks, of one segment that is not sealed. The commit thread adds, any thread looks
#                up; `lock` protects rows and table. Whoever holds `lock` never needs the interpreter lock before it
#                lets go, so a thread may wait for `lock` while it holds the interpreter lock.
# TableDelta     what the groups of one segment change in the tables; used by one thread.
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

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PAGE_HEADER_BYTES = 16
    PAGE_ENTRY_BYTES = 40
    PAGE_MAGIC = 0x58444942       # "BIDX"
    # Eight pages of LMDB's minus its own header, so that a page wastes nothing: (8 * 4096 - 16 - 16) / 40.
    PAGE_ENTRIES_MAX = 818

cdef struct IndexTable:           # u64 key -> an item of an array; open addressing, at most half full
    uint64_t* keys
    uint32_t* rows                # the item's index + 1; 0 is a free place
    uint32_t capacity             # power of two, 0 before the first insertion
    uint32_t count                # of keys and of items
    void* items                   # in the order in which their keys came
    uint32_t items_capacity

cdef struct ByteBuffer:           # grows, owned by whoever declares it
    uint8_t* data
    size_t size
    size_t capacity

cdef struct ChunkPlace:           # where one chunk stands
    uint64_t first                # its first sequence
    uint64_t group
    uint32_t count                # sequences
    uint32_t index                # of the chunk within its group
    uint32_t offset               # bytes from the beginning of the group
    uint32_t size                 # bytes

cdef struct ChannelRow:
    uint64_t channel
    ChunkPlace* places            # ascending by `first`
    uint32_t count
    uint32_t capacity

cdef struct Head:
    uint64_t channel
    uint64_t epoch
    uint64_t next
    uint64_t first

cdef struct LineRun:              # `count` consecutive numbers and the positions they got
    uint64_t channel
    uint64_t first
    uint32_t count

cdef struct Line:
    uint8_t producer[16]
    uint64_t number               # the first number that this segment has of it
    uint64_t highest
    uint64_t covered              # numbers that `runs` covers; they end at `highest`
    LineRun* runs
    uint32_t runs_begin           # runs before it are forgotten
    uint32_t runs_end
    uint32_t runs_capacity
    bint whole                    # what stands here replaces the line's state instead of going on from it

cdef struct Damage:               # what a walk found wrong
    int reason                    # DAMAGE_*
    uint64_t offset               # bytes from the beginning of the group
    uint64_t channel              # 0 when no chunk is concerned

cdef class SegmentIndex:
    cdef PyThread_type_lock lock
    cdef IndexTable table         # channel id -> ChannelRow
    cdef uint64_t places_count

cdef class TableDelta:
    cdef IndexTable heads         # channel id -> Head
    cdef IndexTable lines         # the producer, mixed -> Line
    cdef ByteBuffer early         # CHANNEL, EPOCH and what is unknown but ignorable, as they were
    cdef ByteBuffer late          # RUN and CLOSE, as they were
    cdef uint64_t entries_count
