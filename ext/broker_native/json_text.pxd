# JSON text out of bytes: strings, numbers, base64, and msgpack as JSON.
#
# Whatever is appended is whole and valid JSON (RFC 8259), or the function says that it cannot be and the caller takes
# back what was begun. All of them raise MemoryError and nothing else.

from libc.stdint cimport uint8_t, uint64_t

from broker_native.growing cimport Bytes

cdef bint text_is_utf8(const uint8_t* data, size_t size) noexcept nogil
cdef int text_string(Bytes* to, const uint8_t* data, size_t size) except -1
cdef int text_base64(Bytes* to, const uint8_t* data, size_t size) except -1
cdef int text_decimal(Bytes* to, uint64_t value) except -1
cdef int text_integer(Bytes* to, uint64_t value) except -1
cdef int text_member(Bytes* to, const char* name) except -1
cdef bint text_msgpack(Bytes* to, const uint8_t* data, size_t size) except? 1
