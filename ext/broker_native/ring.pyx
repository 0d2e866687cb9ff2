"""An index of the chunks of recent groups by channel, so that who missed a little gets it without a look at the rest.

Thousands of readers that come back at once have each missed a few messages in a few channels: to walk all groups for
each channel of each of them would take seconds. A group is put in once, when somebody asks for the first time since it
came: publishing pays nothing.

The values are groups of this process, so their structure is trusted. One thread at a time.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.layout cimport *

cdef enum:
    CAPACITY_MIN = 1024


cdef inline uint32_t head_of(uint64_t channel) noexcept nogil:
    """The chain of a channel: ids are dense, so Fibonacci hashing spreads them. (Knuth, vol. 3, 6.4.)"""
    return <uint32_t>(channel * <uint64_t>0x9E3779B97F4A7C15 >> 51)


cdef class ChunkRing:
    """Groups are numbered from 0 in the order in which they are added, those that were skipped included."""

    def __cinit__(self):
        self.begin = self.end = 1

    def __dealloc__(self):
        PyMem_RawFree(self.entries)

    def __len__(self):
        """Chunks that it knows."""
        return self.end - self.begin

    @property
    def groups_end(self):
        """The number that the next group gets."""
        return self.groups_end

    def forget(self, uint64_t group):
        """Forget all groups before this one; the next that is added has this number at least."""
        cdef uint64_t mask = self.capacity - 1
        while self.begin < self.end and self.entries[self.begin & mask].group < group:
            self.begin += 1
        self.groups_begin = max(self.groups_begin, group)
        self.groups_end = max(self.groups_end, group)

    def add(self, bytes value not None):
        """Add the next group.

        Raises:
            MemoryError: there is none; nothing was added.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
        cdef uint32_t at = GROUP_HEADER_BYTES + load_u32(base + GROUP_ENTRIES_BYTES)
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(value)
        cdef uint32_t index = 0
        cdef uint32_t head
        cdef uint32_t begin = at
        cdef uint64_t needed = self.end - self.begin
        cdef Entry* entry
        while at < size:
            needed += 1
            at += load_u32(base + at)
        while needed > self.capacity:
            self.grow()
        at = begin
        while at < size:
            entry = &self.entries[self.end & (self.capacity - 1)]
            entry.channel = load_u64(base + at + CHUNK_CHANNEL)
            entry.first = load_u64(base + at + CHUNK_FIRST)
            entry.count = load_u32(base + at + CHUNK_COUNT)
            entry.group = self.groups_end
            entry.index = index
            entry.offset = at
            entry.size = load_u32(base + at)
            head = head_of(entry.channel)
            entry.previous = self.heads[head]
            self.heads[head] = self.end
            self.end += 1
            index += 1
            at += entry.size
        self.groups_end += 1

    cdef int grow(self) except -1:
        """Make room for twice as many; entries keep their numbers."""
        cdef uint64_t capacity = 2 * self.capacity if self.capacity else CAPACITY_MIN
        cdef Entry* grown = <Entry*>PyMem_RawMalloc(capacity * sizeof(Entry))
        cdef uint64_t number
        if grown == NULL:
            raise MemoryError
        for number in range(self.begin, self.end):
            grown[number & (capacity - 1)] = self.entries[number & (self.capacity - 1)]
        PyMem_RawFree(self.entries)
        self.entries = grown
        self.capacity = capacity
        return 0

    def find(self, uint64_t channel, uint64_t after):
        """Return where the chunks of a channel are that go past sequence `after`.

        Returns:
            (group's number, index of the chunk in it, offset in its value, size) each, in the order in which they were
            added. O(chunks of the channel past `after`, and of channels that share its chain).
        """
        cdef uint64_t number = self.heads[head_of(channel)]
        cdef uint64_t mask = self.capacity - 1
        cdef Entry* entry
        cdef list found = []
        while number >= self.begin and number:
            entry = &self.entries[number & mask]
            if entry.channel == channel:
                if entry.first + entry.count <= after + 1:
                    break
                found.append((entry.group, entry.index, entry.offset, entry.size))
            number = entry.previous
        found.reverse()
        return found
