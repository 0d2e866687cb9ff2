"""The PUBLISHED entries of one connection, until they leave.

What is decided at once is answered at the end of the loop's turn; what waits for a commit, with its group. Frames that
follow one another in their line and in their channel share an entry.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from broker_native.channel cimport CLASS_GROUP, Channel
from broker_native.growing cimport Bytes, bytes_append, bytes_release, bytes_take
from broker_native.layout cimport *


cdef class PublishedEntries:
    """What one connection is still to be told of its frames. A base of `Publisher`."""

    def __dealloc__(self):
        free(self.turn_answers.data)
        free(self.group_answers.data)

    cdef void answer(self, Channel* channel, uint64_t number, uint32_t slot, uint64_t first, uint32_t count) noexcept:
        """Note the PUBLISHED entry of a frame, in one with the entry before it where it goes on.

        `reserve_answer` has made room for it.
        """
        cdef Bytes* answers = &self.group_answers if channel.chunk_class == CLASS_GROUP else &self.turn_answers
        cdef uint8_t* at
        if answers.used:
            at = answers.data + answers.used - PUBLISHED_ENTRY_BYTES
            if (load_u32(at + 28) == slot and load_u64(at + 8) == channel.epoch
                    and load_u64(at) + load_u32(at + 24) == number
                    and load_u64(at + 16) + load_u32(at + 24) == first
                    and <uint64_t>load_u32(at + 24) + count <= 0xFFFFFFFF):
                store_u32(at + 24, load_u32(at + 24) + count)
                return
        at = answers.data + answers.used
        store_u64(at, number)
        store_u64(at + 8, channel.epoch)
        store_u64(at + 16, first)
        store_u32(at + 24, count)
        store_u32(at + 28, slot)
        store_u64(at + 32, 0)
        at[32] = channel.level
        answers.used += PUBLISHED_ENTRY_BYTES

    cdef int hold_answers(self, list waiting) except -1:
        """Have the turn's answers of stored channels wait for the open group, among those who wait for it."""
        cdef bytes answers = self.split_turn_answers()
        if answers:
            bytes_append(&self.group_answers, <const uint8_t*>PyBytes_AS_STRING(answers),
                         <size_t>PyBytes_GET_SIZE(answers))
            if not self.in_group:
                waiting.append(self)
                self.in_group = True
        return 0

    cdef bytes split_turn_answers(self):
        """Take the entries of stored channels out of the turn's answers."""
        cdef Bytes kept
        cdef Bytes taken
        cdef size_t at = 0
        memset(&kept, 0, sizeof(Bytes))
        memset(&taken, 0, sizeof(Bytes))
        while at < self.turn_answers.used:
            if self.turn_answers.data[at + 32] == LEVEL_EPHEMERAL:
                bytes_append(&kept, self.turn_answers.data + at, PUBLISHED_ENTRY_BYTES)
            else:
                bytes_append(&taken, self.turn_answers.data + at, PUBLISHED_ENTRY_BYTES)
            at += PUBLISHED_ENTRY_BYTES
        bytes_release(&self.turn_answers)
        self.turn_answers = kept
        stored = bytes_take(&taken)
        bytes_release(&taken)
        return stored
