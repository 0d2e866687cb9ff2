# The server's side of one byte stream: frames in, publishes and credits decided in place.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.fanout cimport Fanout, Outbox, Subscription
from broker_native.tails cimport Bytes, Publisher, Tails

cdef extern from "clock.h" nogil:
    uint64_t monotonic_us()

cdef class Clock:
    cdef public uint64_t offset_us      # broker time less the monotonic clock
    cdef public uint64_t floor_us       # broker time never goes below this
    cdef public bint manual             # the next field stands for the monotonic clock
    cdef public uint64_t manual_us

    cdef uint64_t read(self) noexcept
    cdef uint64_t steady(self) noexcept

cdef class ReadBuffer:
    cdef readonly object view           # a writable memoryview, what the loop reads into
    cdef uint8_t* data
    cdef size_t size
    cdef object storage

cdef class Intake:
    cdef readonly Fanout fanout
    cdef readonly Tails tails
    cdef readonly Outbox outbox
    cdef readonly ReadBuffer buffer
    cdef Clock clock
    cdef public Publisher publisher
    cdef public dict subscriptions      # number: Subscription; None before the first
    cdef public uint32_t frame_bytes_max
    cdef public uint64_t heard_us       # when the last bytes came, by the clock's steady time
    cdef public bint closed
    cdef bint feeding
    cdef Bytes spill

    cdef int take(self, const uint8_t* data, size_t size) except -1
    cdef size_t take_spilled(self, const uint8_t* data, size_t size) except? 0
    cdef size_t take_frames(self, const uint8_t* data, size_t size) except? 0
    cdef bint check_header(self, const uint8_t* header) except -1
    cdef int take_frame(self, const uint8_t* frame) except -1
    cdef int answer_publish(self, int code, const uint8_t* body, uint32_t size) except -1
    cdef int take_credit(self, const uint8_t* body) except -1
