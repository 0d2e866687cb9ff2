# A hash table from 64-bit keys to pointers that grows and shrinks by pieces, so that no insertion waits for all of it.
#
# Extendible hashing: the first bits of a key choose a segment through the directory, its last bits a place in it. A
# segment that is full is split in two, which moves at most its own slots; only when it was the one entry of its
# directory's depth is the directory, eight bytes for about 600 keys, copied to twice its size.
#
#   directory, depth 2        segments, 16 KiB each
#   00.. ──────────────────▶  depth 2: keys that begin with 00
#   01.. ──────────────────▶  depth 2: keys that begin with 01
#   10.. ─┬────────────────▶  depth 1: keys that begin with 1
#   11.. ─┘
#
# Within a segment: open addressing, linear probing from `slot_home`, round about. Keys must be mixed well, all 64 bits
# of them; a table may hold one key several times.

from libc.stdint cimport uint32_t, uint64_t

from broker_native.slabs cimport memory_prefetch

cdef enum:
    SEGMENT_BYTES = 16384
    SEGMENT_SLOTS = 1023
    SEGMENT_FULL = 768              # keys at which it is split
    SEGMENT_SPARSE = 256            # keys of two halves at or below which they become one
    DIRECTORY_SHARE_MAX = 64        # entries of the directory for each segment; mixed keys need less than 8

cdef struct Slot:
    uint64_t key
    void* item                      # NULL: the slot is free

cdef struct Segment:
    uint32_t depth                  # bits that its keys have in common
    uint32_t count
    uint64_t reserved               # fills the header to a slot's size
    Slot slots[SEGMENT_SLOTS]

cdef struct SlotTable:
    Segment** directory             # 1 << depth entries
    uint32_t depth
    uint32_t segments
    uint64_t count

cdef inline uint32_t slot_home(uint64_t key) noexcept nogil:
    # A key's last 32 bits, scaled to 0 … SEGMENT_SLOTS - 1.
    return <uint32_t>((<uint64_t><uint32_t>key * SEGMENT_SLOTS) >> 32)

cdef inline uint32_t slot_after(uint32_t slot) noexcept nogil:
    return <uint32_t>(slot + 1) if slot + 1 < SEGMENT_SLOTS else 0

cdef inline Segment* table_segment(const SlotTable* table, uint64_t key) noexcept nogil:
    # In two steps: a shift by 64 is undefined.
    return table.directory[(key >> 1) >> (63 - table.depth)]

cdef inline void* table_find(const SlotTable* table, uint64_t key) noexcept nogil:
    """The first item under a key, or NULL."""
    cdef const Segment* segment = table_segment(table, key)
    cdef uint32_t slot = slot_home(key)
    while segment.slots[slot].item != NULL:
        if segment.slots[slot].key == key:
            return segment.slots[slot].item
        slot = slot_after(slot)
    return NULL

cdef inline void table_prefetch(const SlotTable* table, uint64_t key) noexcept nogil:
    memory_prefetch(&table_segment(table, key).slots[slot_home(key)])

# -1: no memory, or one key too often; nothing that was in the table is lost.
cdef int table_open(SlotTable* table) noexcept nogil
cdef int table_insert(SlotTable* table, uint64_t key, void* item) noexcept nogil
# Whether the item was there under the key; it is not any more.
cdef bint table_remove(SlotTable* table, uint64_t key, const void* item) noexcept nogil
cdef void segment_remove(SlotTable* table, Segment* segment, uint32_t slot) noexcept nogil
# Make one segment of the key's and its other half where both are sparse; needs no memory.
cdef void table_merge(SlotTable* table, uint64_t key) noexcept nogil
# The first key after the key's segment, 0 past the last one: how all segments are walked, while the table changes.
cdef uint64_t table_after(const SlotTable* table, uint64_t key) noexcept nogil
cdef void table_close(SlotTable* table) noexcept nogil


cdef class Slots:
    cdef SlotTable table
