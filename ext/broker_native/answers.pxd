# Answers to `history` of channels, made of an archive's rows: REPLY frames (specification.md §13).
#
# A StretchReader is used by one thread. Its frames are in memory of its own until the next call that reads.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from broker_native.archive cimport Arena, ChunkRun, Place
from broker_native.chunks cimport ChunkBuilder
from broker_native.tree cimport TreeCursor, TreeReader

cdef enum:
    ELSEWHERE = 2                 # besides the states of reads: the archive does not have all of it
    MISMADE = -5                  # a chunk's records are not what its checksum vouches for

    OUTCOME_NONE = 0              # no position was asked for
    OUTCOME_RESUMED = 1
    OUTCOME_TRIMMED = 2
    OUTCOME_DIVERGED = 3

    ANSWER_CHUNK_BYTES_MAX = 65536  # how large a chunk gets by joining
    SEQUENCES_MAX = 65536         # sequences that one answer covers
    ARENA_BYTES_KEPT = 4194304    # what is kept from one job to the next

cdef struct Stretch:              # one question, and where its answer stands
    uint64_t channel
    uint64_t epoch
    uint64_t first                # what the channel holds: from the one, before the other
    uint64_t next
    uint64_t low                  # what is asked for
    uint64_t high
    uint64_t count_max
    uint64_t bytes_max
    uint64_t at                   # what the outcome tells
    uint64_t offset               # of the answer's frame
    uint64_t size
    uint32_t number
    uint8_t level
    uint8_t outcome
    bint reverse
    bint elsewhere                # it takes more than the archive to answer it

cdef struct Reading:              # one call's walk
    TreeCursor channels
    ChunkRun run
    ChunkBuilder joined
    ChunkBuilder unexpired
    uint64_t now_s
    uint64_t covered_low          # the sequences of the chunks that were made; 0 for none
    uint64_t covered_next

cdef class StretchReader:
    cdef Stretch* stretches
    cdef uint32_t capacity
    cdef readonly uint32_t count
    cdef uint32_t read_begin      # what the last read has answered
    cdef uint32_t read_end
    cdef Arena frames

    cdef Stretch* append(self) except NULL
    cdef int run(self, Reading* reading, uint32_t begin, uint64_t bytes_max, uint32_t* answered) noexcept nogil
