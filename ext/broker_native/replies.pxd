# Replies to requests on their way through the server.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef uint64_t begin_records(uint8_t* at, uint32_t count, uint64_t time_us) noexcept nogil
