# What transports have not sent when they ask for a pause, each value once.

cimport cython
from libc.stdint cimport uint8_t


@cython.final
cdef class Unsent:
    cdef dict holders           # id of a value → how many transports have it; each of them keeps it alive
    cdef readonly size_t bytes  # of all these values, and what transports hold of their own

    cdef int take(self, object value) except -1
    cdef int give(self, object value) except -1


@cython.final
cdef class Sender:
    cdef Unsent unsent
    cdef object transport
    cdef object outbox
    cdef object write           # the transport's `writelines`
    cdef int fd                 # of its socket, on which nobody else writes while it holds nothing; -1: unknown
    cdef object holds           # its `get_write_buffer_size`
    cdef object closes          # and `is_closing`, both only with `fd`
    cdef bint messages          # what is handed over at once is one binary WebSocket message
    cdef bint shares            # the transport keeps the pieces themselves
    cdef list values            # what it was handed and has not sent; None while it takes everything
    cdef size_t taken           # of them, how many are counted
    cdef size_t rest            # bytes that are its own

    cdef int keep(self, const uint8_t* header, size_t header_bytes, const uint8_t* first, size_t first_bytes,
                  const uint8_t* second, size_t second_bytes, size_t sent) except -1
    cdef size_t send(self, const uint8_t* first, size_t first_bytes, const uint8_t* second,
                     size_t second_bytes) except? 0
