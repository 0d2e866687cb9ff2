# The grammar of channels' names, for frames that are handled by the dozen. `broker/model/names.py` says what it is, and
# why one is refused.

from libc.stdint cimport uint8_t

cdef enum:
    NAME_BYTES_MAX = 255
    TOKEN_BYTES_MAX = 128

cdef bint name_is_channel(const uint8_t* name, size_t size) noexcept nogil
