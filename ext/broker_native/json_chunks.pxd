# Chunks and jobs as JSON text, and what leaves on a connection turned into messages of a WebSocket.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.fanout cimport Fanout
from broker_native.growing cimport Bytes

cdef enum:
    UNITS_KEPT = 16
    UNIT_SPENDERS_MAX = 8

cdef struct Spent:                      # of one subscription's credit
    uint32_t subscription
    uint64_t size


@cython.final
cdef class Unit:                        # whole frames, in one piece or two, and the messages that they became
    cdef bytes first
    cdef object second                  # the chunk that belongs to the last frame of `first`, or None
    cdef const uint8_t* second_data
    cdef size_t second_size
    cdef bytes text
    cdef Spent spent[UNIT_SPENDERS_MAX]
    cdef uint32_t spenders


@cython.final
cdef class Renderer:
    cdef Fanout fanout
    cdef bytes journal                  # as text
    cdef dict names                     # of channels, by id, as far as deliveries told them
    cdef object find_name               # asks the log
    cdef list units                     # of this turn, the newest last
    cdef size_t kept_bytes
    cdef Bytes text
    cdef public bint forgets
    cdef readonly uint64_t rendered     # units that were rendered
    cdef readonly uint64_t shared       # and those that had been already

    cdef Unit find(self, bytes first, object second)
    cdef Unit render(self, bytes first, object second, object connection)
    cdef int control(self, Bytes* out, object connection, uint8_t kind, uint8_t flags, bytes body) except -1
    cdef int deliver(self, const uint8_t* body, uint8_t flags, const uint8_t* chunk, size_t chunk_size) except -1
    cdef bytes name_of(self, uint64_t channel)
    cdef int drop(self) except -1
    cdef int keep(self, Unit unit) except -1
