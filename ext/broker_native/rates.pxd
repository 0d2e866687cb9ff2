# How much somebody may send: token buckets in records and in bytes.

from libc.stdint cimport uint32_t, uint64_t

cdef struct Bucket:
    uint64_t cost_ns            # of one token; 0: there is no bound
    uint64_t full_ns            # when it is full again: what it lacks, as time

cdef class Rate:
    cdef Bucket records
    cdef Bucket bytes

    # 0 when they are taken, else milliseconds until they may be; then nothing is taken.
    cdef uint32_t take(self, uint64_t records, uint64_t size, uint64_t now_us) noexcept nogil
