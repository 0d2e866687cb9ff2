# Publishes that are taken under a condition, and transactions: decided whole or not at all.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.channel cimport Channel
from broker_native.open_chunks cimport ChunkMark
from broker_native.publisher cimport Publisher

cdef struct Publish:                # one PUBLISH that has been read, and what to go back to when it was appended
    Channel* channel
    const uint8_t* records
    uint32_t size                   # of the records, bytes
    uint32_t slot
    uint32_t count
    uint32_t expects                # whether a head is expected
    uint64_t number
    uint64_t epoch                  # the head that is expected
    uint64_t sequence
    ChunkMark mark

cdef enum:
    RESTS_ON_APPLIED = 0
    RESTS_ON_OPEN = 1               # the verdict is as good as the open group
    RESTS_ON_COMMIT = 2             # … as the group in commit

cdef struct Verdict:
    uint64_t number                 # the first one
    uint64_t count                  # of all the records
    uint32_t index                  # of the publish that is at fault
    uint32_t rests_on
    uint32_t end                    # where the publishes end in the body
    uint64_t epoch                  # with CONFLICT: of the head that was found
    uint64_t sequence

cdef int expecting_decide(Publisher publisher, const uint8_t* body, uint32_t size, Verdict* verdict) except -1
cdef int transaction_decide(Publisher publisher, const uint8_t* body, uint32_t size, Verdict* verdict,
                            bint taking=*, bint acks=*, dict members=*) except -1
