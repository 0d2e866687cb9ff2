# The publishing side of one connection.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.channel cimport Channel
from broker_native.growing cimport Bytes
from broker_native.ids cimport IdHash, IdTable
from broker_native.ids_ahead cimport IdsAhead
from broker_native.lines cimport Line
from broker_native.published cimport PublishedEntries
from broker_native.tails cimport Tails

cdef class Publisher(PublishedEntries):
    cdef readonly Tails tails
    cdef readonly Line line
    cdef readonly object owner
    cdef Channel** slots
    cdef uint32_t slots_count
    cdef uint32_t headers_bytes_max
    cdef public bint is_own              # the broker's own: what it stores was decided before, and no id refuses it
    cdef bytes stamp                    # the field that says who it is (RECORD_PUBLISHER); None where nobody signs in
    cdef Bytes stamped                  # the record that is being stamped
    cdef uint16_t flags                 # of the records of the frame that is being decided, together
    cdef IdsAhead* ids_ahead            # NULL unless frames with ids are taken one after the other from a buffer

    cpdef void leave(self) noexcept
    cdef void let_go(self, uint32_t number) noexcept
    cdef int publish(self, const uint8_t* body, uint32_t size) except -1
    cdef int out_of_line(self, uint64_t number, uint32_t count) except -1
    cdef int check_records(self, Channel* channel, const uint8_t* at, uint32_t size, uint32_t count) except -1
    cdef int check_fields(self, const uint8_t* at, uint32_t size, uint16_t flags, uint32_t* fields) except -1
    cdef int take_records(self, Channel* channel, const uint8_t* at, uint32_t count, uint32_t slot,
                  uint64_t number) except -1
    cdef int append_records(self, Channel* channel, const uint8_t* at, uint32_t count) except -1
    cdef int append_stamped(self, Channel* channel, const uint8_t* at) except -1
    cdef int reserve_answer(self, Channel* channel) except -1
    cdef int reserve_answers(self, bint in_group, uint32_t entries) except -1
    cdef int open_line(self, Channel* channel, uint64_t number, uint32_t runs) except -1
    cdef int publish_with_ids(self, Channel* channel, const uint8_t* at, uint32_t size, uint32_t count, uint32_t slot,
                  uint64_t number) except -1
    cdef void hash_ids(self, const IdTable* table, const uint8_t* at, uint32_t count, IdHash* hashes) noexcept
    cdef uint32_t look_up(self, Channel* channel, IdTable* table, const uint8_t* at, uint32_t count) except? 0
    # Hashes the first ids of whole frames from `at` on, IDS_AHEAD_STEP at most, and has what they are looked up in on
    # its way into the cache; nothing of the frames has been checked. Answers up to where. `ids_ahead` has room.
    cdef size_t fetch_ids(self, const uint8_t* data, size_t size, size_t at) noexcept
    cdef const IdTable* fetch_id(self, const uint8_t* frame, size_t size, IdsAhead* ahead) noexcept
    cdef uint32_t count_runs(self, uint32_t count) noexcept
    cdef int take_decided(self, Channel* channel, const uint8_t* at, uint32_t count, uint32_t slot, uint64_t number,
                  uint32_t fresh) except -1
    cdef int append_decided(self, Channel* channel, const uint8_t* at, uint32_t count) except -1
    cdef int answer_decided(self, Channel* channel, uint32_t count, uint32_t slot, uint64_t number) except -1


cdef inline Channel* publisher_channel(Publisher publisher, uint32_t slot) noexcept:
    """The channel under a number of the connection, or NULL."""
    return publisher.slots[slot] if slot < publisher.slots_count else NULL
