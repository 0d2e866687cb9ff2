# Where the newest groups have the chunks of each channel: hash chains over a ring of chunk headers, newest first.
#
#   heads[hash(channel)] ──▶ entry ──previous──▶ entry ──previous──▶ … as long as their numbers are not below `begin`
#
# Entries are numbered upwards and never moved but when the ring grows, so a chain needs no repair when its end leaves:
# whoever walks stops at a number that is gone.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    HEADS = 8192                # chains, a power of two

cdef struct Entry:
    uint64_t channel
    uint64_t first
    uint64_t group              # number of the group in the ring, from 0
    uint64_t previous           # the entry before it in its chain, 0 for none
    uint32_t count
    uint32_t index              # of the chunk in its group
    uint32_t offset             # in the group's value, bytes
    uint32_t size               # of the chunk, bytes

cdef class ChunkRing:
    cdef uint64_t heads[HEADS]  # number of the newest entry of each chain, 0 for none
    cdef Entry* entries         # [capacity], entry n at n & (capacity - 1)
    cdef uint64_t capacity      # a power of two, or 0
    cdef uint64_t begin         # number of the oldest entry
    cdef uint64_t end           # number of the next one; from 1
    cdef uint64_t groups_begin  # the oldest group that is known
    cdef uint64_t groups_end    # the next one
    cdef int grow(self) except -1
