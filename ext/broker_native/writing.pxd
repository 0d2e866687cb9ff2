# Records as a client writes them.

cimport cython

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from broker_native.growing cimport Bytes
from broker_native.layout cimport *

cdef enum:
    NORMAL_PRIORITY = 2


cdef class RecordWriter:
    cdef object error
    cdef object pack_headers
    cdef public size_t payload_bytes_max
    cdef public size_t headers_bytes_max
    cdef Bytes fields                   # of the record that is being written, in the order of their flags

    cdef int refuse_payload(self, size_t size) except -1
    cdef uint16_t take_fields(self, object headers, object key, int priority, object expiry_s,
                              object id) except? 0xFFFF
    cdef bytes packed_headers(self, object headers)
    cdef bytes packed_id(self, object id)


cdef inline bint are_fields(object headers, object key, int priority, object expiry_s, object id) noexcept:
    """Whether a record is more than a payload."""
    return (headers is not None or key is not None or priority != NORMAL_PRIORITY or expiry_s is not None
            or id is not None)


cdef inline void put_record(RecordWriter writer, uint8_t* at, uint32_t size, uint16_t flags,
                            const uint8_t* payload, size_t payload_size) noexcept:
    """Write a record of `size` bytes, whose fields the writer has if there are flags."""
    store_u32(at, size)
    store_u32(at + 4, flags)
    store_u32(at + 8, 0)
    at += RECORD_HEADER_BYTES
    if flags:
        memcpy(at, writer.fields.data, writer.fields.used)
        at += writer.fields.used
    memcpy(at, payload, payload_size)
