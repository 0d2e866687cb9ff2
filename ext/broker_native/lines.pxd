# A producer's line: the dense numbers of what it publishes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.growing cimport Bytes

cdef class Line:
    cdef readonly bytes producer        # 16 bytes, or None for a line that ends with its connection
    cdef public uint64_t next           # pending view: the number it accepts
    cdef public uint64_t closed_next    # after the last number of the group in commit, or of one whose fate is unknown
    cdef public uint64_t applied_next
    cdef public object runs             # bytes of the applied runs that cover the newest numbers, newest last
    cdef public object holder           # the connection that publishes on it
    cdef uint64_t group_first           # first number of the open group
    cdef uint64_t group_count
    cdef Bytes group_runs               # LINE_RUN_BYTES each, of the open group
    cdef public uint64_t open_first     # first stored number in the open group, else 0
    cdef public uint64_t commit_first   # … in the group in commit
    cdef public uint64_t group          # number of the last group that was applied to it, 0 when it was loaded
    cdef public uint32_t used_s         # broker time of that, or of its last use, seconds
    cdef public uint32_t holders        # who needs it to stay in memory

    cdef int note(self, uint64_t channel, uint64_t number, uint64_t first, uint32_t count) except -1
    cdef size_t window_bytes(self) noexcept
    cdef void forget_group(self) noexcept
    cdef int apply(self, const uint8_t* body, uint32_t size, bint snapshot) except -1
