"""Slabs: memory for many small items of few sizes, given back to the system as soon as a slab of them is free.

A C library's heap gives back little of what a million items took, since the last of them may be anywhere; and an arena
of fixed places never does. Here the items of one size share slabs of 64 KiB, each given back by itself, and the slab
that had an item given back last is the next to give one: the others drain.

A heap of a few slabs maps each by itself. One that grows takes 2 MiB at a time and asks for a huge page behind them,
which halves what a look at a random one of very many items costs; the slabs are cut out of that one after the other, so
all but the last region are full, and a slab that is given back leaves a hole in its region and nothing to remember. The
next region may be made ready by another thread.

Invariants: a slab is in its class's ring exactly when it has room; `used` counts its items. A heap belongs to one
thread, all but `ahead`. It knows nothing of what the items are.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.string cimport memset
from posix.mman cimport MAP_ANON, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap


cdef void* map_aligned(size_t size) noexcept nogil:
    """Map `size` bytes at a multiple of `size`."""
    cdef uint8_t* at = <uint8_t*>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
    cdef size_t before
    if at == <uint8_t*>MAP_FAILED:
        return NULL
    if not <uintptr_t>at & (size - 1):
        # The usual case: the system places a mapping beside the one before it.
        return at
    munmap(at, size)
    at = <uint8_t*>mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)
    if at == <uint8_t*>MAP_FAILED:
        return NULL
    before = (size - (<uintptr_t>at & (size - 1))) & (size - 1)
    if before:
        munmap(at, before)
    munmap(at + before + size, size - before)
    return at + before


cdef void unmap(void* at, size_t size) noexcept nogil:
    munmap(at, size)


cdef void* region_map() noexcept nogil:
    cdef void* region = map_aligned(REGION_BYTES)
    if region != NULL:
        memory_huge(region, REGION_BYTES)
    return region


cdef void* region_take(SlabHeap* heap) noexcept nogil:
    """The region that was made ready, or another one; NULL when there is no memory."""
    cdef void* region = memory_exchange(&heap.ahead, <void*>REGION_WANTED)
    return region_map() if <uintptr_t>region <= REGION_WANTED else region


cdef void slabs_ahead(SlabHeap* heap) noexcept nogil:
    cdef void* region
    if <uintptr_t>memory_left(&heap.ahead) != REGION_WANTED:
        return
    region = region_map()
    if region == NULL:
        return
    memory_touch(region, REGION_BYTES)
    if not memory_replace(&heap.ahead, <void*>REGION_WANTED, region):
        # The heap has become empty meanwhile.
        munmap(region, REGION_BYTES)


cdef Slab* slab_map(SlabHeap* heap) noexcept nogil:
    """A slab of the system's memory; NULL when there is none."""
    cdef Slab* slab
    if heap.region == heap.region_end and heap.mapped >= REGIONS_FROM_BYTES:
        heap.region = <uint8_t*>region_take(heap)
        if heap.region != NULL:
            heap.region_end = heap.region + REGION_BYTES
            heap.mapped += REGION_BYTES
        else:
            heap.region_end = NULL
    if heap.region != heap.region_end:
        slab = <Slab*>heap.region
        heap.region += SLAB_BYTES
        return slab
    slab = <Slab*>map_aligned(SLAB_BYTES)
    if slab != NULL:
        heap.mapped += SLAB_BYTES
    return slab


cdef void slab_link(SlabHeap* heap, Slab* slab) noexcept nogil:
    """Put the slab first in its class: what is taken next comes from it."""
    cdef Slab** first = &heap.open[slab.item_bytes // ITEM_STEP - 1]
    slab.previous = NULL
    slab.next = first[0]
    if first[0] != NULL:
        first[0].previous = slab
    first[0] = slab


cdef void slab_unlink(SlabHeap* heap, Slab* slab) noexcept nogil:
    if slab.previous != NULL:
        slab.previous.next = slab.next
    else:
        heap.open[slab.item_bytes // ITEM_STEP - 1] = slab.next
    if slab.next != NULL:
        slab.next.previous = slab.previous
    slab.next = slab.previous = NULL


cdef Slab* slab_open(SlabHeap* heap, uint32_t item_bytes) noexcept nogil:
    """A free slab for items of this size, linked; NULL when there is no memory."""
    cdef Slab* slab = heap.spare
    if slab != NULL:
        heap.spare = NULL
    else:
        slab = slab_map(heap)
        if slab == NULL:
            return NULL
    slab.free = NULL
    slab.item_bytes = item_bytes
    slab.items = (<uint32_t>SLAB_BYTES - SLAB_HEADER_BYTES) // item_bytes
    slab.used = slab.fresh = 0
    slab_link(heap, slab)
    return slab


cdef void* slabs_take(SlabHeap* heap, size_t size) noexcept nogil:
    """Take an item of at least `size` bytes, zeroed."""
    cdef uint32_t item_bytes = <uint32_t>((size + ITEM_STEP - 1) // ITEM_STEP * ITEM_STEP)
    cdef Slab* slab = heap.open[item_bytes // ITEM_STEP - 1]
    cdef void* item
    if slab == NULL:
        slab = slab_open(heap, item_bytes)
        if slab == NULL:
            return NULL
    item = slab.free
    if item != NULL:
        memory_unpoison(item, item_bytes)
        slab.free = (<void**>item)[0]
    else:
        item = <uint8_t*>slab + SLAB_HEADER_BYTES + <size_t>slab.fresh * item_bytes
        slab.fresh += 1
        memory_unpoison(item, item_bytes)
    slab.used += 1
    if slab.used == slab.items:
        slab_unlink(heap, slab)
    heap.items += 1
    memset(item, 0, item_bytes)
    return item


cdef void slabs_give(SlabHeap* heap, void* item) noexcept nogil:
    """Give an item back."""
    cdef Slab* slab = <Slab*>(<uintptr_t>item & ~<uintptr_t>(SLAB_BYTES - 1))
    (<void**>item)[0] = slab.free
    slab.free = item
    memory_poison(item, slab.item_bytes)
    if slab.used == slab.items:
        slab_link(heap, slab)
    slab.used -= 1
    heap.items -= 1
    if slab.used:
        return
    slab_unlink(heap, slab)
    if heap.spare == NULL:
        heap.spare = slab
    else:
        slab_unmap(heap, slab)
    if not heap.items:
        region_unmap(heap)


cdef void region_unmap(SlabHeap* heap) noexcept nogil:
    """Give back what is left of the last region, and the next one."""
    cdef void* ahead = memory_exchange(&heap.ahead, NULL)
    if <uintptr_t>ahead > REGION_WANTED:
        munmap(ahead, REGION_BYTES)
    if heap.region != heap.region_end:
        munmap(heap.region, <size_t>(heap.region_end - heap.region))
        heap.mapped -= <size_t>(heap.region_end - heap.region)
    heap.region = heap.region_end = NULL


cdef void slab_unmap(SlabHeap* heap, Slab* slab) noexcept nogil:
    memory_unpoison(slab, SLAB_BYTES)
    munmap(slab, SLAB_BYTES)
    heap.mapped -= SLAB_BYTES


cdef void slabs_close(SlabHeap* heap) noexcept nogil:
    """Give back the spare slab and what is left of the last region."""
    if heap.spare != NULL:
        slab_unmap(heap, heap.spare)
        heap.spare = NULL
    region_unmap(heap)


cdef class Slabs:
    """A heap of its own, by addresses: for tests. Native code has a `SlabHeap` and the functions above."""

    def __dealloc__(self):
        slabs_close(&self.heap)

    @property
    def mapped_bytes(self):
        """What it has of the system, bytes."""
        return self.heap.mapped

    @property
    def items(self):
        """How many items are in use."""
        return self.heap.items

    def ahead(self):
        """Make the next region ready, if one is wanted; any thread. Answers whether one is ready."""
        with nogil:
            slabs_ahead(&self.heap)
        return <uintptr_t>self.heap.ahead > REGION_WANTED

    def take(self, size_t size):
        """The address of a zeroed item of at least `size` bytes."""
        cdef void* item
        if not 1 <= size <= ITEM_BYTES_MAX:
            raise ValueError(f"item: got {size} bytes, range 1 to {ITEM_BYTES_MAX}")
        item = slabs_take(&self.heap, size)
        if item == NULL:
            raise MemoryError
        return <uintptr_t>item

    def give(self, uintptr_t address):
        """Give back an item that `take` answered, once."""
        slabs_give(&self.heap, <void*>address)
