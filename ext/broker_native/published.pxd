# The PUBLISHED entries of one connection that wait: for the end of the turn, or for the open group.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.channel cimport Channel
from broker_native.growing cimport Bytes

cdef class PublishedEntries:
    cdef Bytes turn_answers             # PUBLISHED entries
    cdef Bytes group_answers
    cdef bint in_turn
    cdef bint in_group

    cdef void answer(self, Channel* channel, uint64_t number, uint32_t slot, uint64_t first, uint32_t count) noexcept
    cdef int hold_answers(self, list waiting) except -1
    cdef bytes split_turn_answers(self)
