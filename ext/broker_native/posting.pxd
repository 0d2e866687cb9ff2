# What a client publishes: records gathered into frames by channel, kept until they are answered.

cimport cython

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.outcomes cimport Waking
from broker_native.posted cimport Frame
from broker_native.publishing cimport PublishChannels


@cython.final
cdef class PublishBuffer(PublishChannels):
    cdef Waking waking
    cdef object kick
    cdef bint kicked

    cdef Frame* ring                    # closed frames in order; indexes grow and are masked
    cdef size_t ring_mask
    cdef size_t head
    cdef size_t sent                    # frames from `head` to here were sent
    cdef size_t tail

    cdef uint64_t next_number
    cdef readonly size_t in_flight      # frames sent and not answered
    cdef uint64_t refused_number        # lowest number that was refused for good; 0 for none
    cdef bint postponed                 # at least one frame was refused for its number
    cdef readonly bint open_for_sending

    cdef readonly size_t open_bytes     # in frames that are still open
    cdef readonly size_t kept_bytes     # in closed frames that are not answered
    cdef readonly uint64_t records_posted
    cdef readonly uint64_t records_answered
    cdef readonly uint64_t records_failed   # that nobody waited for
    cdef uint64_t records_failed_told
    cdef readonly uint64_t answered_highest     # highest number that was answered with a position
    cdef readonly uint64_t synced_highest       # the same, synced or better
    cdef object closed                  # the error of every later call
    cdef public size_t bytes_max
    cdef public size_t transaction_bytes_max
    cdef readonly object first_failure  # of a record that nobody waited for, since `take_failure`

    cdef uint32_t put(self, str channel, object payload, object headers, object key, int priority, object expiry_s,
                      object id) except? 0xFFFFFFFF
    cdef int put_payload(self, uint32_t slot, const uint8_t* payload, size_t payload_size, object headers, object key,
                         int priority, object expiry_s, object id) except -1
    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL
    cdef int count_record(self, uint32_t slot, size_t size) except -1
    cdef int take_expected(self, object expect, uint64_t* epoch, uint64_t* sequence) except -1
    cdef int check_room(self, size_t size) except -1
    cdef int kick_once(self) except -1
    cdef int grow_ring(self, size_t capacity) except -1
    cdef int append_frame(self, Frame* frame) except -1
    cdef int close_frame(self, uint32_t slot) except -1
    cdef int close_frames(self) except -1
    cdef int finish_frame(self, Frame* frame) except -1
    cdef int fail_frame(self, Frame* frame, object failure) except -1
    cdef size_t sent_size(self, Frame* frame) except 0
    cdef size_t sent_size_whole(self, Frame* frame) except 0
    cdef bytes send_frames(self, size_t end, size_t size)
    cdef uint8_t* send_frame(self, Frame* frame, uint8_t* at) except NULL
    cdef uint8_t* send_whole(self, Frame* frame, uint8_t* at) except NULL
    cdef object failure_of(self, const Frame* frame, object failure)
    cdef size_t find_sent(self, uint64_t number) except? 0
    cdef int answer_entry(self, uint64_t number, uint64_t epoch, uint64_t first, uint32_t count, uint32_t level,
                          bint duplicate) except -1
    cdef int refuse_frame(self, Frame* frame, object failure, int verdict) except -1
    cdef int drop_done(self) except -1
    cdef int settle(self) except -1
    cdef int line_up(self, uint64_t highest, object unknown) except -1
    cdef int line_up_frame(self, Frame* frame, uint64_t highest) except -1
