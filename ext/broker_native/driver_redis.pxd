# RESP, the protocol of Redis: PUBLISH and SUBSCRIBE, XADD and XREAD. See the module's docstring.

from libc.stdint cimport uint8_t, uint64_t

from broker_native.driver_load cimport Connection, Dialect, Load

cdef enum:
    ARRAY = 42                     # *
    BULK = 36                      # $
    INTEGER = 58                   # :

cdef struct Bulk:
    const uint8_t* bytes
    size_t size
    size_t taken                   # with its head and its end; 0: it is not whole, or the run has failed

cdef struct Entry:                 # of a stream, with its one field
    Bulk id
    const uint8_t* payload
    size_t payload_bytes
    size_t taken                   # 0: it is not whole, or the run has failed

cdef const Dialect* redis_dialect() noexcept nogil
cdef const Dialect* redis_stream_dialect() noexcept nogil
# Takes a line of a kind and the number in it. 0 while it is not whole or when the run fails.
cdef size_t take_head(Load* load, Connection* connection, const uint8_t* data, size_t size, uint8_t kind,
                      uint64_t* value) noexcept nogil
cdef Bulk take_bulk(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil
cdef Entry entry_of(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil
cdef bytes bulk_of(bytes string)
# Sends a reader's next XREAD, from the places that its lanes have.
cdef void redis_stream_read_on(Load* load, Connection* connection) noexcept nogil
