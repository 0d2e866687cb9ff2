# What one reader has received of one channel: order, gaps, duplicates and damage of every message.
#
# Flows are those of driver_ledger.h: a counter, dense from 0, for each publisher of the channel. Which publishers there
# are is not known beforehand, so a flow gets its index when its first message comes, and begins with that message's
# counter: what came before the reader was none of its own. Whether the first messages after that have come, and the
# last, the counters of a flow cannot say; sums can (`received` against what was published since `after`).

cimport cython

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.histogram cimport Histogram
from broker_native.messages cimport Batch

cdef extern from "driver_ledger.h" nogil:
    enum:
        STAMP_BYTES
        STAMP_TIME
        STAMP_CHANNEL
        STAMP_COUNTER_BITS
        STAMP_PUBLISHERS_MAX
    const uint64_t STAMP_COUNTER_MASK
    ctypedef struct Ledger:
        uint64_t flows
        uint64_t* next
        uint64_t passed
        uint64_t taken
        uint64_t duplicated
        uint64_t reordered
        uint64_t corrupt
    uint32_t stamp_check(uint64_t stamp, uint64_t time_ns, uint32_t channel)
    void stamp_write(uint8_t* payload, uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel)
    void pattern_fill(uint8_t* pattern, uint32_t payload_bytes)
    int ledger_open(Ledger* ledger, const uint8_t* pattern, uint32_t payload_bytes, uint32_t channels,
                    uint32_t publishers)
    void ledger_close(Ledger* ledger)
    void ledger_disorder(Ledger* ledger, uint64_t flow, uint64_t counter)
    uint64_t ledger_lost(const Ledger* ledger)


@cython.final
cdef class Reading:
    cdef Ledger ledger              # its `next` has room for `room` flows, of which `ledger.flows` are known
    cdef uint64_t* places           # [room * 2], a power of two: publisher << 32 | index of its flow + 1; 0 is free
    cdef uint32_t room
    cdef uint32_t publisher         # of the message before, and its flow: most come in runs of one publisher
    cdef uint64_t flow
    cdef readonly uint32_t channel
    cdef readonly uint32_t payload_bytes
    cdef readonly uint64_t epoch     # of the newest batch; 0 before the first
    cdef readonly uint64_t after     # the sequence after which everything is due
    cdef readonly uint64_t sequence  # of the newest message
    cdef readonly uint64_t misplaced
    cdef readonly uint64_t ahead    # messages that came before they were due, by the clocks of the two sides
    cdef uint64_t nameless          # corrupt ones of which nobody can say what they should have been

    cdef int take_payload(self, const uint8_t* payload, uint64_t size) except -1
    cdef int find_flow(self, uint32_t publisher, uint64_t counter) except -1
    cdef int grow(self) except -1
    cdef uint64_t place_of(self, uint32_t publisher) noexcept
