# A member that answers each job with a transaction: see the module's docstring.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.driver_load cimport Connection, Load
from broker_native.histogram cimport Histogram

# Jobs that have been checked, by consecutive leases: each is acknowledged by a transaction, as soon as there is room.
cdef void transactions_begin(Load* load, Connection* connection, uint64_t lease, uint32_t leases,
                             uint64_t now_ns) noexcept nogil
# Takes a PUBLISHED.
cdef void transactions_answered(Load* load, Connection* connection, const uint8_t* body, uint32_t size, uint64_t now_ns,
                                Histogram latency) noexcept nogil
