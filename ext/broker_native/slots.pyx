"""Slots: a hash table of pointers that grows and shrinks a segment at a time.

A table that doubles at once would hold up the loop for tens of milliseconds at a million keys; here an insertion moves
768 slots at most, and copies the directory, of eight bytes a segment, when that doubles. Removing leaves no marks: the
slots behind a hole move up.

Invariants: a segment has at most SEGMENT_FULL keys and therefore a free slot, which ends each probe; the directory's
entries that begin with a segment's bits all point to it. A table belongs to one thread and does not own the items.
The directory itself does not shrink.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from broker_native.slabs cimport map_aligned, unmap


cdef int table_open(SlotTable* table) noexcept nogil:
    """Make an empty table."""
    table.depth = 0
    table.count = 0
    table.segments = 0
    table.directory = <Segment**>malloc(sizeof(Segment*))
    if table.directory == NULL:
        return -1
    table.directory[0] = <Segment*>map_aligned(SEGMENT_BYTES)
    if table.directory[0] == NULL:
        free(table.directory)
        table.directory = NULL
        return -1
    table.segments = 1
    return 0


cdef void table_close(SlotTable* table) noexcept nogil:
    """Give everything back. A table that was never opened, or is closed, has no directory."""
    cdef uint64_t key = 0
    cdef uint64_t after
    cdef Segment* segment
    if table.directory == NULL:
        return
    while True:
        segment = table_segment(table, key)
        after = table_after(table, key)
        unmap(segment, SEGMENT_BYTES)
        key = after
        if not key:
            break
    free(table.directory)
    table.directory = NULL


cdef uint64_t table_after(const SlotTable* table, uint64_t key) noexcept nogil:
    """The first key behind the key's segment."""
    cdef uint32_t depth = table_segment(table, key).depth
    if not depth:
        return 0
    # Past the last segment the sum wraps to 0.
    return ((key >> (64 - depth)) + 1) << (64 - depth)


cdef void segment_put(Segment* segment, uint64_t key, void* item) noexcept nogil:
    """Put an item into a segment that has room."""
    cdef uint32_t slot = slot_home(key)
    while segment.slots[slot].item != NULL:
        slot = slot_after(slot)
    segment.slots[slot].key = key
    segment.slots[slot].item = item
    segment.count += 1


cdef void segment_take_all(Segment* segment, const Segment* other) noexcept nogil:
    """Put everything that another segment has into one that has room for it."""
    cdef uint32_t slot
    for slot in range(<uint32_t>SEGMENT_SLOTS):
        if other.slots[slot].item != NULL:
            segment_put(segment, other.slots[slot].key, other.slots[slot].item)


cdef int directory_double(SlotTable* table) noexcept nogil:
    cdef uint64_t entries = <uint64_t>1 << table.depth
    cdef uint64_t entry
    cdef Segment** directory = <Segment**>malloc(2 * entries * sizeof(Segment*))
    if directory == NULL:
        return -1
    for entry in range(entries):
        directory[2 * entry] = directory[2 * entry + 1] = table.directory[entry]
    free(table.directory)
    table.directory = directory
    table.depth += 1
    return 0


cdef void directory_point(SlotTable* table, uint64_t key, uint32_t depth, Segment* segment) noexcept nogil:
    """Let every entry that begins with the key's first `depth` (1 or more) bits point to the segment."""
    cdef uint64_t first = (key >> (64 - depth)) << (table.depth - depth)
    cdef uint64_t entry
    for entry in range(<uint64_t>1 << (table.depth - depth)):
        table.directory[first + entry] = segment


cdef int segment_split(SlotTable* table, uint64_t key) noexcept nogil:
    """Make two of the key's segment, by the first bit that its keys need not have in common."""
    cdef Segment* segment = table_segment(table, key)
    cdef Segment* high
    cdef Segment old
    cdef uint64_t bit = <uint64_t>1 << (63 - segment.depth)
    cdef uint32_t slot
    if segment.depth == table.depth:
        # Far more entries than segments: the keys are not mixed, and no split would tell them apart.
        if <uint64_t>1 << table.depth > DIRECTORY_SHARE_MAX * <uint64_t>table.segments or directory_double(table):
            return -1
    high = <Segment*>map_aligned(SEGMENT_BYTES)
    if high == NULL:
        return -1
    memcpy(&old, segment, SEGMENT_BYTES)
    memset(segment, 0, SEGMENT_BYTES)
    segment.depth = high.depth = <uint32_t>(old.depth + 1)
    for slot in range(<uint32_t>SEGMENT_SLOTS):
        if old.slots[slot].item != NULL:
            segment_put(high if old.slots[slot].key & bit else segment, old.slots[slot].key, old.slots[slot].item)
    directory_point(table, key | bit, high.depth, high)
    table.segments += 1
    return 0


cdef int table_insert(SlotTable* table, uint64_t key, void* item) noexcept nogil:
    """Put an item, which is not NULL, under a key."""
    while table_segment(table, key).count >= SEGMENT_FULL:
        if segment_split(table, key):
            return -1
    segment_put(table_segment(table, key), key, item)
    table.count += 1
    return 0


cdef void segment_remove(SlotTable* table, Segment* segment, uint32_t slot) noexcept nogil:
    """Free a slot; what stands behind it moves up, so the same slot may hold another item now."""
    cdef uint32_t hole = slot
    cdef uint32_t home
    while True:
        slot = slot_after(slot)
        if segment.slots[slot].item == NULL:
            break
        home = slot_home(segment.slots[slot].key)
        # It may move to the hole unless its home lies behind that: compare how far each is back from the slot.
        if (slot + SEGMENT_SLOTS - home) % SEGMENT_SLOTS >= (slot + SEGMENT_SLOTS - hole) % SEGMENT_SLOTS:
            segment.slots[hole] = segment.slots[slot]
            hole = slot
    segment.slots[hole].item = NULL
    segment.count -= 1
    table.count -= 1


cdef bint table_remove(SlotTable* table, uint64_t key, const void* item) noexcept nogil:
    """Remove one item from under a key."""
    cdef Segment* segment = table_segment(table, key)
    cdef uint32_t slot = slot_home(key)
    while segment.slots[slot].item != NULL:
        if segment.slots[slot].key == key and segment.slots[slot].item == item:
            segment_remove(table, segment, slot)
            return True
        slot = slot_after(slot)
    return False


cdef void table_merge(SlotTable* table, uint64_t key) noexcept nogil:
    """Make one of the key's segment and its other half, and of that and its own, while both are sparse."""
    cdef Segment* segment = table_segment(table, key)
    cdef Segment* other
    cdef uint64_t bit
    while segment.depth and segment.count <= SEGMENT_SPARSE:
        bit = <uint64_t>1 << (64 - segment.depth)
        other = table_segment(table, key ^ bit)
        if other.depth != segment.depth or segment.count + other.count > SEGMENT_SPARSE:
            return
        segment_take_all(segment, other)
        directory_point(table, key ^ bit, segment.depth, segment)
        segment.depth -= 1
        table.segments -= 1
        unmap(other, SEGMENT_BYTES)


cdef class Slots:
    """A table of its own, of integers in place of pointers: for tests. Native code has a `SlotTable`."""

    def __cinit__(self):
        if table_open(&self.table):
            raise MemoryError

    def __dealloc__(self):
        table_close(&self.table)

    def __len__(self):
        return self.table.count

    @property
    def segments(self):
        """How many segments there are."""
        return self.table.segments

    @property
    def depth(self):
        """How many bits of a key the directory knows."""
        return self.table.depth

    def insert(self, uint64_t key, uintptr_t item):
        """Put an item, which is not 0, under a key."""
        if not item:
            raise ValueError("item: got 0")
        if table_insert(&self.table, key, <void*>item):
            raise MemoryError

    def find(self, uint64_t key):
        """An item under the key, 0 for none."""
        return <uintptr_t>table_find(&self.table, key)

    def remove(self, uint64_t key, uintptr_t item):
        """Remove one item from under a key; answers whether it was there."""
        return table_remove(&self.table, key, <void*>item)

    def merge(self, uint64_t key):
        """Make one segment of the key's and its other half where both are sparse."""
        table_merge(&self.table, key)

    def walk(self):
        """The (key, item) of every segment, in the order of their keys' first bits."""
        cdef uint64_t key = 0
        cdef uint32_t slot
        cdef Segment* segment
        cdef list found = []
        cdef list items
        while True:
            segment = table_segment(&self.table, key)
            items = []
            for slot in range(<uint32_t>SEGMENT_SLOTS):
                if segment.slots[slot].item != NULL:
                    items.append((segment.slots[slot].key, <uintptr_t>segment.slots[slot].item))
            found.append(items)
            key = table_after(&self.table, key)
            if not key:
                return found
