# The stamps and the ledger of one reader, for works that publish and read through a Python client.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.driver_load cimport Ledger
from broker_native.histogram cimport Histogram


cdef class Verifier:
    cdef Ledger ledger
    cdef uint8_t* pattern
    cdef uint64_t* counters          # [flows]: of the next payload
    cdef uint32_t channels
    cdef uint64_t sent

    cdef uint64_t* counter(self, uint32_t publisher, uint32_t channel) except NULL
    cdef int check_buffer(self, object payload, Histogram latency, uint64_t now_ns) except -1
    cdef void check_bytes(self, const uint8_t* payload, Py_ssize_t size) noexcept
