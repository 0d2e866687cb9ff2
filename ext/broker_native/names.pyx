"""Whether bytes are the name of a channel: what `broker.model.names.check_channel` lets pass, and nothing else."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t


cdef inline bint is_token_byte(uint8_t byte) noexcept nogil:
    """Printable ASCII other than space . * > $ " and \\; the dot is for whoever splits."""
    return (0x21 <= byte <= 0x7E and byte != 0x22 and byte != 0x24 and byte != 0x2A and byte != 0x2E and byte != 0x3E
            and byte != 0x5C)


cdef bint name_is_channel(const uint8_t* name, size_t size) noexcept nogil:
    """Whether it is tokens of 1 to TOKEN_BYTES_MAX bytes with single dots between them, NAME_BYTES_MAX in all."""
    cdef size_t at
    cdef size_t token = 0               # bytes of the token so far
    if not 1 <= size <= NAME_BYTES_MAX:
        return False
    for at in range(size):
        if name[at] == 0x2E:
            if token == 0:
                return False
            token = 0
        else:
            token += 1
            if token > TOKEN_BYTES_MAX or not is_token_byte(name[at]):
                return False
    return token > 0


def is_channel(bytes name not None):
    """Whether it is the name of a channel. Any thread."""
    return name_is_channel(<const uint8_t*>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))
