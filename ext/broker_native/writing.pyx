"""Records as a client writes them: what their fields may be, and their bytes.

A record that is only a payload costs one look at its arguments. The fields of any other are put together in memory of
the writer and copied from there: everything that may run a program's own code is done before the first of their bytes
is written, or what that code posts would come between them.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from broker_native.growing cimport Bytes, bytes_append, bytes_release
from broker_native.layout cimport *

cdef enum:
    LOW_PRIORITY = 3
    KEY_BYTES_MAX = 255


cdef class RecordWriter:
    """Takes the fields of records. A base of `PublishChannels`."""

    def __dealloc__(self):
        bytes_release(&self.fields)

    cdef int refuse_payload(self, size_t size) except -1:
        raise self.error("PAYLOAD_TOO_LARGE", f"payload: got {size} bytes, limit {self.payload_bytes_max} bytes")

    cdef uint16_t take_fields(self, object headers, object key, int priority, object expiry_s,
                              object id) except? 0xFFFF:
        """Check a record's fields and write them into `fields`; answers their flags.

        Raises:
            RequestError: HEADERS_TOO_LARGE, INVALID_ID or INVALID_RECORD.
        """
        cdef uint16_t flags = 0
        cdef uint32_t expiry = 0
        cdef bytes packed_key = None
        cdef bytes packed_headers = None
        cdef bytes packed_id = None
        if priority != NORMAL_PRIORITY:
            if not 0 <= priority <= LOW_PRIORITY:
                raise self.error("INVALID_RECORD", f"priority: got {priority}, expected 0 to {LOW_PRIORITY}")
            flags |= RECORD_PRIORITY
        if expiry_s is not None:
            if not 1 <= expiry_s <= 0xFFFFFFFF:
                raise self.error("INVALID_RECORD", f"expiry: got {expiry_s} seconds, expected 1 to {0xFFFFFFFF}")
            expiry = expiry_s
            flags |= RECORD_EXPIRY
        if key is not None:
            if not 1 <= len(key) <= KEY_BYTES_MAX:
                raise self.error("INVALID_RECORD", f"key: got {len(key)} bytes, expected 1 to {KEY_BYTES_MAX}")
            packed_key = bytes(key)
            flags |= RECORD_KEY
        if headers:
            packed_headers = self.packed_headers(headers)
            flags |= RECORD_HEADERS
        if id is not None:
            packed_id = self.packed_id(id)
            flags |= RECORD_ID
        self.fields.used = 0
        if flags & RECORD_PRIORITY:
            bytes_append(&self.fields, <const uint8_t*>&priority, 1)
        if flags & RECORD_EXPIRY:
            bytes_append(&self.fields, <const uint8_t*>&expiry, 4)
        if flags & RECORD_KEY:
            append_sized(&self.fields, packed_key, 2)
        if flags & RECORD_HEADERS:
            append_sized(&self.fields, packed_headers, 2)
        if flags & RECORD_ID:
            append_sized(&self.fields, packed_id, 1)
        return flags

    cdef bytes packed_headers(self, object headers):
        """The bytes of headers."""
        cdef bytes packed = headers if isinstance(headers, bytes) else self.pack_headers(headers)
        if <size_t>PyBytes_GET_SIZE(packed) > min(self.headers_bytes_max, <size_t>0xFFFF):
            raise self.error("HEADERS_TOO_LARGE",
                             f"headers: got {len(packed)} bytes, limit {self.headers_bytes_max} bytes")
        return packed

    cdef bytes packed_id(self, object id):
        """The bytes of a message id."""
        cdef bytes packed = (<str>id).encode("utf-8", "surrogatepass") if isinstance(id, str) else bytes(memoryview(id))
        if not 1 <= PyBytes_GET_SIZE(packed) <= RECORD_ID_BYTES_MAX:
            raise self.error("INVALID_ID", f"message id: got {len(packed)} bytes, expected 1 to {RECORD_ID_BYTES_MAX}")
        return packed


cdef int append_sized(Bytes* fields, bytes value, size_t size_bytes) except -1:
    """Write a field that begins with its size, in so many bytes."""
    cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(value)
    bytes_append(fields, <const uint8_t*>&size, size_bytes)
    return bytes_append(fields, <const uint8_t*>PyBytes_AS_STRING(value), size)
