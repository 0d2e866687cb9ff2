# The message ids of one channel's newest records: which sequence each of them was given.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.layout cimport *

cdef enum:
    IDS_BLOCK = 16              # entries of a block, a power of two
    # Of the fields that stand before an id.
    RECORD_FLAGS_BEFORE_ID = (RECORD_PUBLISHER | RECORD_NUMBER | RECORD_PRIORITY | RECORD_EXPIRY | RECORD_KEY
                              | RECORD_HEADERS)

cdef struct IdKey:              # what ids are hashed with
    uint64_t first
    uint64_t second

cdef struct IdHash:             # what stands for an id
    uint64_t low
    uint64_t high

# An entry's place is its number since the table began, modulo 2^32. A place that is not among the `count` from `head`
# on is nobody's: what has left the table needs to be taken out of nowhere.
cdef struct IdEntry:
    IdHash hash
    uint64_t sequence
    uint32_t time_s             # broker time of the record
    uint32_t next               # of one in a bucket's chain: the place of the one before it there

cdef struct IdBucket:           # one line of the cache
    uint32_t tags[7]            # of each place, the last bits of the hash, which say its bucket as well
    uint32_t filter             # a bit for the tag of each one in the chain, and perhaps for some that were
    uint32_t places[7]
    uint32_t chain              # the place of the newest one that found no other in its bucket

cdef struct IdTable:
    IdEntry** blocks            # a ring of the blocks from that of `head` on
    uint32_t blocks_capacity    # a power of two
    uint32_t blocks_first
    uint32_t blocks_count
    uint32_t head               # the place of the oldest entry
    uint32_t count
    uint32_t buckets_count
    uint32_t segments_count
    uint32_t segments_capacity
    IdBucket** segments         # of buckets; the only one is smaller than the others
    IdEntry* spare              # a block that was used up
    void* owner                 # whose ids they are
    size_t bytes                # of memory

cdef void ids_open(IdTable* table) noexcept nogil
cdef void ids_close(IdTable* table) noexcept nogil
# The newest entry of an id, NULL when there is none.
cdef const IdEntry* ids_find(const IdTable* table, const IdHash* hash) noexcept nogil
# Adds the newest entry; answers -1 when there is no memory. Sequences rise.
cdef int ids_add(IdTable* table, const IdHash* hash, uint64_t sequence, uint32_t time_s) noexcept nogil
# Takes the newest entries out again, so many.
cdef void ids_take_back(IdTable* table, uint32_t count) noexcept nogil
# Forgets the oldest entries: those taken before `since_s`, and those below a sequence.
cdef void ids_expire(IdTable* table, uint32_t since_s, uint64_t first) noexcept nogil
# Has what `ids_find` looks at on its way into the cache.
cdef void ids_prefetch(const IdTable* table, const IdHash* hash) noexcept nogil
cdef IdHash id_hash(const IdKey* key, const uint8_t* data, size_t size) noexcept nogil
cdef IdKey ids_key(uint64_t seed) noexcept nogil


cdef inline const uint8_t* record_id(const uint8_t* record, uint32_t* size) noexcept nogil:
    """Where the id of a record stands, NULL when it has none that is whole; its bytes come out in `size`.

    The record's own size has been checked, and the flag that it has one.
    """
    cdef uint16_t flags = load_u16(record + 4)
    cdef uint64_t left = load_u32(record) - RECORD_HEADER_BYTES
    cdef uint64_t used = 0
    record += RECORD_HEADER_BYTES
    if flags & RECORD_FLAGS_BEFORE_ID:
        if flags & RECORD_PUBLISHER and used < left:
            used += 1 + record[used]
        if flags & RECORD_NUMBER:
            used += 8
        if flags & RECORD_PRIORITY:
            used += 1
        if flags & RECORD_EXPIRY:
            used += 4
        if flags & RECORD_KEY and used + 2 <= left:
            used += 2 + load_u16(record + used)
        if flags & RECORD_HEADERS and used + 2 <= left:
            used += 2 + load_u16(record + used)
    if used >= left or used + 1 + record[used] > left:
        return NULL
    size[0] = record[used]
    return record + used + 1


@cython.final
cdef class Ids:
    cdef IdTable* table                 # NULL once it was given to a channel
    cdef IdKey key

    cdef IdTable* give(self) except NULL
    cdef IdHash hash_of(self, bytes id) except *
