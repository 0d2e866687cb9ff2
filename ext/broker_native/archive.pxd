# Reading an archive: rows by key, chunks of a channel, chunks in the order of the bus.
#
# All of it works on cursors of one TreeReader, with the lock of the interpreter given away once a batch. The table of
# keys and values stands in broker/log/archive.py.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.btree cimport Span
from broker_native.tree cimport TreeCursor

cdef enum:
    ROW_DAMAGED = -2              # besides the states of cursors: the row that the cursor is on is not what was written
    CHUNK_MISSING = -3            # a chunk that must be there is not; `missing` says which
    NO_MEMORY = -4

    KEY_BYTES_MAX = 511           # LMDB's bound
    BATCH_CHUNKS = 256            # of a batch without the lock
    BATCH_BYTES = 1048576
    SCAN_CHUNKS_MAX = 65536       # chunks in bus order that one call looks at, wanted or not

cdef struct ChannelEnds:          # what a channel's row says: its chunks cover [first, next)
    uint64_t channel
    uint64_t first
    uint64_t next

cdef struct Place:                # what cannot be read, for an error
    uint64_t channel
    uint64_t sequence

cdef struct ChunkRun:             # a walk over the chunks of a channel
    TreeCursor cursor
    ChannelEnds ends
    Place missing
    uint64_t low                  # sequences from `low` on and below `high` are still wanted
    uint64_t high
    uint64_t bytes_room
    bint taken                    # something was taken, so bytes_room counts
    bint on_row                   # the cursor is on the row that was taken last
    uint32_t count
    Span spans[BATCH_CHUNKS]      # what was taken by the last call, borrowed from the map

cdef struct GroupsWalk:           # a place in the commit index
    TreeCursor cursor
    const uint8_t* at             # within the row: what follows, and its end
    const uint8_t* end
    uint64_t groups               # of the row, that follow
    uint64_t chunks               # of the group, that follow
    uint64_t group                # the group that the walk is in
    uint64_t time_us
    uint64_t index                # of the chunk that follows

cdef struct ChunkWanted:          # a chunk of a group, to be made of the rows that its records stand in
    uint64_t group
    uint64_t index
    uint64_t channel
    uint64_t first
    uint64_t next
    uint64_t before_group         # the place before it
    uint64_t before_index
    uint64_t at                   # where in the arena it was put
    uint32_t size                 # 0: nothing of it is left

cdef struct Arena:                # chunks that were made, one behind the other
    uint8_t* data
    uint64_t used
    uint64_t capacity

cdef class GroupsPacker:
    cdef bytearray row
    cdef uint32_t groups
    cdef uint64_t group
    cdef uint64_t time_us
    cdef readonly uint32_t bytes_max

    cdef bint put(self, const uint8_t* group, uint64_t size) except -1

cdef int channel_ends(TreeCursor* cursor, uint64_t channel, ChannelEnds* ends) noexcept nogil
cdef int run_forward(ChunkRun* run) noexcept nogil
cdef int run_back(ChunkRun* run) noexcept nogil
cdef object fault(const TreeCursor* cursor, int state, const Place* missing)
