# A growable buffer, for what a turn or a group gathers.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef struct Bytes:
    uint8_t* data
    size_t used
    size_t capacity


cdef inline int bytes_reserve(Bytes* buffer, size_t more) except -1:
    """Make room for `more` bytes after `used`."""
    cdef size_t capacity = buffer.capacity
    if buffer.used + more <= capacity:
        return 0
    if capacity == 0:
        capacity = 64
    while capacity < buffer.used + more:
        capacity *= 2
    cdef uint8_t* data = <uint8_t*>realloc(buffer.data, capacity)
    if data == NULL:
        raise MemoryError
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef inline int bytes_append(Bytes* buffer, const uint8_t* data, size_t size) except -1:
    if size:
        bytes_reserve(buffer, size)
        memcpy(buffer.data + buffer.used, data, size)
        buffer.used += size
    return 0


cdef inline void bytes_release(Bytes* buffer) noexcept:
    free(buffer.data)
    buffer.data = NULL
    buffer.used = 0
    buffer.capacity = 0


cdef inline bytes bytes_take(Bytes* buffer):
    """The content as an object; the buffer is empty after, and keeps its memory unless it is large."""
    cdef bytes taken = PyBytes_FromStringAndSize(<char*>buffer.data, buffer.used)
    buffer.used = 0
    if buffer.capacity > 4096:
        bytes_release(buffer)
    return taken
