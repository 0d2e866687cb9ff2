# What the groups of one segment change in the tables, the last value of each row.
#
# Entries are kept in arenas as they came; rows point into them by offset. An entry of `epochs` stands behind the u64
# offset + 1 of the one of its channel before it, 0 for none.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.index cimport IndexTable
from broker_native.pages cimport ByteBuffer

cdef struct ChannelDelta:
    uint64_t channel
    uint64_t epoch                # epoch, next and first are the head's, when there is one
    uint64_t next
    uint64_t first                # raised by trims
    uint64_t announced            # offset + 1 of its last CHANNEL entry in `announced`, 0 for none
    uint64_t newest               # offset + 1 of its newest EPOCH entry in `epochs`, 0 for none
    uint32_t epochs_bytes
    uint8_t reason                # of the trim that raised `first` last
    uint8_t has_head
    uint8_t is_trimmed
    uint8_t is_dropped
    uint8_t is_born               # created in this segment

cdef struct NameDelta:
    uint64_t entry                # offset of the name's last CHANNEL entry in `announced`
    uint64_t channel              # its id, 0 once that was dropped

cdef struct LineRun:              # `count` consecutive numbers and the positions they got
    uint64_t channel
    uint64_t first
    uint32_t count

cdef struct Line:
    uint8_t producer[16]
    uint64_t number               # the first number that this segment has of it
    uint64_t highest
    uint64_t covered              # numbers that `runs` covers; they end at `highest`
    LineRun* runs
    uint32_t runs_begin           # runs before it are forgotten
    uint32_t runs_end
    uint32_t runs_capacity
    bint whole                    # what stands here replaces the line's state instead of going on from it

cdef class TableDelta:
    cdef IndexTable channels      # channel id -> ChannelDelta
    cdef IndexTable names         # a name, hashed -> NameDelta
    cdef IndexTable lines         # the producer, mixed -> Line
    cdef ByteBuffer announced     # CHANNEL entries
    cdef ByteBuffer epochs        # EPOCH entries, each behind its link
    cdef ByteBuffer rest          # RUN, CLOSE and unknown ones that may be passed over
    cdef uint32_t rest_count
    cdef uint64_t seed            # of the names' hash
    cdef uint64_t channel_max     # the greatest id of a CHANNEL entry
    cdef uint64_t born
    cdef uint64_t dropped
    cdef uint64_t unclean

    cdef uint32_t rows_of(self, int kind) noexcept
    cdef object order(self, int kind)
