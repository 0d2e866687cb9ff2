# Sorting many keys while other threads run: Python's own sort keeps the interpreter lock from the first comparison to
# the last, which with ten thousand names is milliseconds in which no loop turns.

from libc.stdint cimport uint32_t, uint64_t

cdef struct Keyed:
    uint64_t key
    const void* item

# `spare` has room for `count` as well. Returns which of the two holds the result; items of one key keep their order.
cdef Keyed* keyed_sort(Keyed* items, Keyed* spare, uint32_t count) noexcept nogil
