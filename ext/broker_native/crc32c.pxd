# The checksum of chunks and groups for all native code: `from broker_native.crc32c cimport crc32c`.
#
# The header's tables are filled when the including module is loaded, once for each module; see its first comment.

from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    # Continues `crc` (0 to begin) over data[0, size). Any thread; keeps nothing; cannot fail.
    uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t size)
