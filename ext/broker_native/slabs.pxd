# Memory for many small items of few sizes, given back to the system as soon as a slab of them is free.
#
#   a slab: 64 KiB from mmap, at a multiple of 64 KiB
#   | header, 128 bytes | item | item | item | …
#
# An item's slab is found by its address alone. Slabs of a class that have room are in a ring of their own; full ones
# are in none. A heap that has grown cuts its slabs out of regions of 2 MiB, which the system may back with one page.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "slabs.h" nogil:
    void memory_poison(void* at, size_t size)
    void memory_unpoison(void* at, size_t size)
    void memory_prefetch(const void* at)
    void memory_huge(void* at, size_t size)
    void memory_touch(void* at, size_t size)
    void* memory_left(void** at)
    void* memory_exchange(void** at, void* replacement)
    bint memory_replace(void** at, void* expected, void* replacement)

cdef enum:
    SLAB_BYTES = 65536
    SLAB_HEADER_BYTES = 128         # two cache lines: caches fetch them in pairs, and so an item's first two together
    REGION_BYTES = 2 << 20          # one huge page where the system has such
    REGION_WANTED = 1               # in the place of one
    REGIONS_FROM_BYTES = 4 << 20    # a heap that has so much of the system grows by regions
    ITEM_STEP = 64                  # sizes are rounded up to it, so that an item begins a cache line
    ITEM_CLASSES = 16
    ITEM_BYTES_MAX = ITEM_STEP * ITEM_CLASSES

cdef struct Slab:
    Slab* next                      # of its class, with room; NULL at the end, and for a full one
    Slab* previous
    void* free                      # items that were given back, each pointing to the next
    uint32_t item_bytes
    uint32_t items                  # how many it has room for
    uint32_t used
    uint32_t fresh                  # items from here on were never taken

cdef struct SlabHeap:               # zeroed, it is ready
    Slab* open[ITEM_CLASSES]
    Slab* spare                     # one free slab, kept so that a single item does not cost a mapping each time
    uint8_t* region                 # what is left of the last region: from here
    uint8_t* region_end             # … to here
    void* ahead                     # a region that is ready, REGION_WANTED, or NULL while it does not grow by regions
    size_t mapped                   # bytes that it has of the system
    size_t items                    # in use

# Zeroed memory of `size` bytes (1 to ITEM_BYTES_MAX), at a multiple of ITEM_STEP; NULL when there is none.
cdef void* slabs_take(SlabHeap* heap, size_t size) noexcept nogil
cdef void slabs_give(SlabHeap* heap, void* item) noexcept nogil
# Make the next region ready, if the heap grows by regions and has none: any thread. The system takes milliseconds to
# clear a huge page, and whoever takes an item then waits for it.
cdef void slabs_ahead(SlabHeap* heap) noexcept nogil
# Give back the spare slab and what is left of the last region. With every item given back nothing is mapped after it.
cdef void slabs_close(SlabHeap* heap) noexcept nogil
# Anonymous zeroed memory at a multiple of its size (a power of two, whole pages); NULL when there is none.
cdef void* map_aligned(size_t size) noexcept nogil
cdef void unmap(void* at, size_t size) noexcept nogil


cdef class Slabs:
    cdef SlabHeap heap
