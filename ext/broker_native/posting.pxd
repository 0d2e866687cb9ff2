# What a client publishes: records gathered into frames by channel, kept until they are answered.

cimport cython

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum FrameState:
    UNSENT                              # by this connection; a number says that an older one may have sent it
    SENT
    POSTPONED                           # refused for the number alone: it goes out again
    SPLIT                               # refused for one of its records: it goes out again record by record
    DONE


cdef struct Frame:
    uint8_t* records                    # owned
    PyObject* waiters                   # owned list of Publication, or NULL
    uint64_t number                     # of its first record, once it was sent under it; else 0
    uint32_t size
    uint32_t capacity
    uint32_t count
    uint32_t answered                   # records whose outcome is known
    uint32_t slot
    bint names                          # a CHANNEL frame goes before it
    uint32_t acks                       # of a transaction: ACK frames behind its publishes
    bint is_transaction                 # `records` is whole PUBLISH frames, with slots for channels and no numbers
    bint expects                        # its one record goes with the head that its publisher knows
    bint is_delayed                     # its one record waits for a time, which is `epoch`
    uint64_t epoch
    uint64_t sequence
    FrameState state


cdef struct Slot:
    PyObject* name                      # owned str, or NULL
    Frame open
    uint32_t number                     # on the wire; meaningful while `generation` is the buffer's
    uint32_t generation
    uint32_t frames                     # closed frames of the channel that are kept
    bint is_told                        # the server was told which channel the number means
    bint dirty


@cython.final
cdef class Draft:
    cdef readonly PublishBuffer buffer
    cdef Frame frame                    # a transaction's; nothing of it is sent before it is the buffer's
    cdef bint expects                   # … of the publish that is being written
    cdef uint64_t epoch
    cdef uint64_t sequence
    cdef bint is_over

    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL
    cdef int check_size(self, size_t more) except -1


@cython.final
cdef class PublishBuffer:
    cdef object loop
    cdef object error
    cdef object check_channel
    cdef object pack_headers
    cdef object kick
    cdef bint kicked

    cdef dict slot_of                   # channel name -> index of its slot
    cdef dict channel_failures          # slot -> why the server refused its name
    cdef Slot* slots
    cdef uint32_t slots_count
    cdef uint32_t slots_capacity
    cdef uint32_t last_slot             # of the last record
    cdef uint32_t slots_hand            # where the search for a slot to use again goes on
    cdef uint32_t generation            # of the connection: numbers of older ones mean nothing
    cdef uint32_t numbers_used          # channel numbers given on this connection

    cdef uint32_t* dirty                # slots with an open frame, in the order of their first records
    cdef uint32_t dirty_count
    cdef uint32_t dirty_capacity

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
    cdef public size_t payload_bytes_max
    cdef public size_t headers_bytes_max
    cdef public size_t transaction_bytes_max
    cdef public uint32_t channels_max
    cdef readonly object first_failure  # of a record that nobody waited for, since `take_failure`
    cdef list woken

    cdef uint32_t put(self, str channel, object payload, object headers, object key, int priority,
                      object expiry_s, object id, Draft draft=*) except? 0xFFFFFFFF
    cdef int put_record(self, uint32_t slot, const uint8_t* payload, size_t payload_size, object headers,
                        object key, int priority, object expiry_s, object id, Draft draft) except -1
    cdef bytes packed_id(self, object id)
    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL
    cdef int count_record(self, uint32_t slot, size_t size) except -1
    cdef int take_expected(self, object expect, uint64_t* epoch, uint64_t* sequence) except -1
    cdef int check_room(self, size_t size) except -1
    cdef int kick_once(self) except -1
    cdef void let_go_slots(self, const Frame* frame) noexcept
    cdef int mark_dirty(self, uint32_t slot) except -1
    cdef uint32_t find_slot(self, str channel) except? 0xFFFFFFFF
    cdef uint32_t add_slot(self, str channel) except? 0xFFFFFFFF
    cdef uint32_t new_slot(self) except? 0xFFFFFFFF
    cdef uint32_t free_slot(self) except? 0xFFFFFFFF
    cdef int grow_ring(self, size_t capacity) except -1
    cdef int append_frame(self, Frame* frame) except -1
    cdef int close_frame(self, uint32_t slot) except -1
    cdef int close_frames(self) except -1
    cdef int finish_frame(self, Frame* frame) except -1
    cdef int fail_frame(self, Frame* frame, object failure) except -1
    cdef bint must_name(self, uint32_t slot) except -1
    cdef size_t name_size(self, uint32_t slot) except 0
    cdef size_t sent_size(self, Frame* frame) except 0
    cdef size_t sent_size_whole(self, Frame* frame) except 0
    cdef bytes send_frames(self, size_t end, size_t size)
    cdef uint8_t* send_name(self, uint32_t slot, uint8_t* at) except NULL
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
    cdef int wake(self, object publication) except -1
