# The members of one consumer: whose turn it is, what they say of their jobs, and what they are told of it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.fanout cimport Outbox
from broker_native.jobs cimport Jobs
from broker_native.membership cimport Membership

cdef class RotationMember(Membership):
    cdef readonly Outbox outbox         # of its connection
    cdef readonly uint32_t subscription
    cdef readonly uint32_t window       # jobs under way at most
    cdef readonly uint64_t bytes_max    # and bytes of their records
    cdef public uint64_t acks           # number of its last ACK
    cdef public uint64_t told           # up to which of them it is known what became of it
    cdef public uint64_t owed           # `told`, as long as it was not told so; else 0
    cdef public bint gone               # it is no member any more
    cdef bint unanswered                # it is in its rotation's `said`
    cdef Rotation rotation              # None before it has joined
    cdef RotationMember previous            # whose turn is before its own
    cdef RotationMember next                # and after it

    cdef bint take_ack(self, const uint8_t* body, uint32_t size) except -1
    cdef int tell(self) except -1

cdef class Rotation:
    cdef public Jobs jobs               # None before it is restored
    cdef public bint touched            # it has something to do at the end of the turn
    cdef public uint32_t served         # how many frames of jobs the last turn has brought
    cdef RotationMember first               # who is given jobs next
    cdef RotationMember last
    cdef uint32_t waiting               # how many that are
    cdef list said                      # who has said something since the last group

    cdef int note(self, RotationMember member) except -1
    cdef int queue(self, RotationMember member) except -1
    cdef int drop(self, RotationMember member) except -1
    cdef bint give_round(self, uint64_t now_us) except -1
