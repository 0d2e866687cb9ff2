# What a client reads: frames, batches of one chunk each, messages over their bytes, and the cursor that hands them on.
# What reads from a cursor reads from any `Source`.

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


@cython.final
cdef class Batch:
    cdef readonly str channel
    cdef readonly uint64_t channel_id
    cdef readonly uint64_t epoch
    cdef readonly uint64_t first        # sequence of the first record that is not clipped away
    cdef readonly uint64_t last
    cdef readonly uint64_t time_us
    cdef readonly uint64_t group        # 0: ephemeral
    cdef readonly uint32_t index
    cdef readonly uint32_t subscription
    cdef readonly bint early
    cdef bytes journal
    cdef bytes data                     # the whole chunk; never changes, so the pointers below stay good
    cdef const uint8_t* at              # the first record that is not clipped away
    cdef const uint8_t* end
    cdef uint32_t messages              # records from `at` that are no GONE runs
    cdef readonly bint has_gone

    cdef Batch clipped(self, uint64_t sequence)


@cython.final
cdef class Message:
    cdef readonly Batch batch           # keeps the chunk's bytes alive
    cdef readonly uint64_t sequence
    cdef const uint8_t* record
    cdef bytes payload_bytes            # built on first use


cdef class Source:
    cdef object loop
    cdef uint32_t turn_left             # messages until the loop gets a turn
    cdef list waiters
    cdef readonly bint ended
    cdef object failure

    cdef object take(self, bint whole)
    cdef bint is_ready(self)
    cdef object sleep(self)
    cdef object raise_end(self)


@cython.final
cdef class Cursor(Source):
    cdef object on_consumed
    cdef object queue                   # a deque of batches
    cdef Batch current                  # being handed out message by message
    cdef uint32_t left                  # its messages that were not
    cdef const uint8_t* at              # the next record of it
    cdef uint64_t sequence
    cdef readonly size_t queued_bytes   # chunk bytes that the application has not consumed
    cdef size_t lent_bytes              # of the batch that the application works on
    cdef size_t consumed_bytes          # not yet reported
    cdef size_t report_bytes

    cdef Batch next_batch(self)
    cdef Message take_message(self)
    cdef Batch take_batch(self)
    cdef int settle(self) except -1
    cdef int consume(self, size_t size) except -1


cdef class MessageStream:
    cdef Source source
    cdef bint whole

    cdef object wait(self)
    cdef object take(self)


@cython.final
cdef class BatchStream(MessageStream):
    pass


# Where the field of a flag begins, for flag 0 the payload; of a record that has been checked.
cdef const uint8_t* record_field(const uint8_t* record, uint16_t wanted) noexcept nogil
# Whether the fields that the flags announce fit into a record of `size` bytes, header included.
cdef bint record_is_valid(const uint8_t* record, uint32_t size) noexcept nogil

# What a record's fields hold, as objects; of a record that has been checked.
cdef bytes record_payload(const uint8_t* record)
cdef object record_headers(const uint8_t* record)
cdef object record_key(const uint8_t* record)
cdef object record_id(const uint8_t* record)
cdef object record_publisher(const uint8_t* record)
cdef object record_priority(const uint8_t* record)
cdef object record_expiry(const uint8_t* record)

cdef object make_position(uint64_t epoch, uint64_t sequence)
cdef object make_level(uint32_t level)
