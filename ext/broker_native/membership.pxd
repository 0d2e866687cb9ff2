# A member of a consumer, as far as its connection's intake has to know it; and the acks of transactions.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.jobs cimport Jobs

cdef class Membership:
    cdef public uint64_t number     # the consumer's number of it; 0 before it has joined
    cdef public bint waits          # it is among those who are given jobs in turn
    cdef public Jobs jobs           # whose leases it may have; None while its consumer has none for it

# Whether the ACK frames from `at` on are as many as announced and nothing else, acknowledge and do nothing else, and
# are of leases that these members have. There is room then for what they change.
cdef bint acks_hold(dict members, const uint8_t* at, const uint8_t* end, uint32_t count) except -1
# Takes ACK frames that hold.
cdef int acks_take(dict members, const uint8_t* at, const uint8_t* end) except -1
