# Making chunks out of the records of other chunks: cutting, merging, taking out.
#
# A ChunkBuilder is plain memory, used by one thread. Chunks that go in have a proved checksum; the sizes of their
# records, which no checksum proves to be sizes, are looked at on the way.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    TAKE_NO_MEMORY = -2
    TAKE_DAMAGED = -1             # the records do not cover the sequences that the chunk says it has
    TAKE_DONE = 0                 # all that was asked for went in
    TAKE_FULL = 1                 # the next record belongs to another chunk: finish this one and take the rest again

cdef struct ChunkBuilder:
    uint8_t* data
    uint32_t capacity
    uint32_t used                 # bytes, 0 when nothing has been taken since the last finish
    uint32_t last                 # offset of the last record
    uint32_t bytes_max            # a chunk of one record may be larger
    uint64_t channel
    uint64_t epoch
    uint64_t first
    uint64_t next                 # the sequence after the last one taken
    uint64_t time_us
    uint64_t expiry_s             # the earliest, 0 for none

cdef int builder_take(ChunkBuilder* builder, const uint8_t* chunk, uint64_t after, uint64_t until) noexcept nogil
cdef int builder_gone(ChunkBuilder* builder, const uint8_t* chunk, uint32_t time_us, uint64_t first, uint32_t run,
                      uint8_t reason) noexcept nogil
cdef int builder_expire(ChunkBuilder* builder, const uint8_t* chunk, uint64_t now_s, bint* changed) noexcept nogil
cdef uint32_t builder_finish(ChunkBuilder* builder) noexcept nogil
cdef void builder_free(ChunkBuilder* builder) noexcept nogil

cdef uint32_t record_run(const uint8_t* at, const uint8_t* end) noexcept nogil
