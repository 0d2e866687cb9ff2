"""A producer's line: how far its dense numbers got, and where the newest of them went.

A line has three views, as a channel has: what is decided (`next`), what is in the group in commit (`closed_next`) and
what is committed (`applied_next`). It belongs to the thread of its tails.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memmove

from broker_native.growing cimport bytes_reserve
from broker_native.layout cimport *

cdef enum:
    LINE_RUNS_KEPT = 4096               # when a group's runs of one line grow past this, the oldest are dropped


cdef class Line:
    """One producer's dense number line: what it has published, and where the newest of it went.

    Args:
        producer: 16 bytes, or None for a line that ends with its connection and is never journaled.
    """

    def __cinit__(self, producer=None):
        self.producer = producer
        self.next = 1
        self.closed_next = 1
        self.applied_next = 1
        self.runs = []

    def __dealloc__(self):
        free(self.group_runs.data)

    cdef int note(self, uint64_t channel, uint64_t number, uint64_t first, uint32_t count) except -1:
        """Remember for the open group where `count` numbers from `number` went."""
        cdef uint8_t* last
        if not self.group_count:
            self.group_first = number
        self.group_count += count
        if self.group_runs.used:
            last = self.group_runs.data + self.group_runs.used - LINE_RUN_BYTES
            if load_u64(last) == channel and (
                not channel or load_u64(last + 8) + load_u32(last + 16) == first
            ) and <uint64_t>load_u32(last + 16) + count <= 0xFFFFFFFF:
                store_u32(last + 16, load_u32(last + 16) + count)
                return 0
        if self.group_runs.used >= LINE_RUNS_KEPT * LINE_RUN_BYTES:
            memmove(self.group_runs.data, last - (LINE_WINDOW - 1) * LINE_RUN_BYTES, LINE_WINDOW * LINE_RUN_BYTES)
            self.group_runs.used = LINE_WINDOW * LINE_RUN_BYTES
        bytes_reserve(&self.group_runs, LINE_RUN_BYTES)
        last = self.group_runs.data + self.group_runs.used
        store_u64(last, channel)
        store_u64(last + 8, first)
        store_u32(last + 16, count)
        self.group_runs.used += LINE_RUN_BYTES
        return 0

    cdef size_t window_bytes(self) noexcept:
        """How many bytes at the end of the group's runs cover the newest LINE_WINDOW numbers."""
        cdef size_t at = self.group_runs.used
        cdef uint64_t covered = 0
        while at > 0 and covered < LINE_WINDOW:
            at -= LINE_RUN_BYTES
            covered += load_u32(self.group_runs.data + at + 16)
        return self.group_runs.used - at

    cdef void forget_group(self) noexcept:
        self.group_count = 0
        self.group_runs.used = 0

    cdef int apply(self, const uint8_t* body, uint32_t size, bint snapshot) except -1:
        """Take over a committed LINE entry (validated by the caller)."""
        cdef uint64_t number = load_u64(body + 16)
        cdef uint64_t count = load_u64(body + 24)
        cdef uint32_t runs = load_u32(body + 32)
        cdef uint64_t covered = 0
        cdef uint32_t index
        cdef list kept = [] if snapshot else <list>self.runs
        for index in range(runs):
            covered += load_u32(body + LINE_HEADER_BYTES + index * LINE_RUN_BYTES + 16)
        kept.append((number + count - covered, covered,
                     PyBytes_FromStringAndSize(<const char*>body + LINE_HEADER_BYTES, runs * LINE_RUN_BYTES)))
        while len(kept) > 1 and kept[1][0] + LINE_WINDOW <= number + count:
            del kept[0]
        self.runs = kept
        self.applied_next = number + count
        if self.closed_next < self.applied_next:
            self.closed_next = self.applied_next
        if self.next < self.applied_next:
            self.next = self.applied_next
        return 0

    def lookup(self, uint64_t number, uint32_t count):
        """Where committed numbers went: a list of (channel id or 0, number, first sequence, count), in order.

        Numbers that left the window come with channel id 0, as do those of ephemeral channels.
        """
        cdef list found = []
        cdef uint64_t end = number + count
        cdef uint64_t at, first, low, high
        cdef uint32_t size
        cdef const uint8_t* run
        for start, _covered, packed in self.runs:
            at = start
            run = <const uint8_t*>PyBytes_AS_STRING(packed)
            for _ in range(PyBytes_GET_SIZE(packed) // LINE_RUN_BYTES):
                size = load_u32(run + 16)
                low = number if number > at else at
                high = end if end < at + size else at + size
                if low < high:
                    if low > number:
                        found.append((0, number, 0, low - number))
                    first = load_u64(run + 8) + (low - at) if load_u64(run) else 0
                    found.append((load_u64(run), low, first, high - low))
                    number = high
                at += size
                run += LINE_RUN_BYTES
        if number < end:
            found.append((0, number, 0, end - number))
        return found
