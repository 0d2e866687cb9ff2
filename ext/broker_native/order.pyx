"""Sorting many items by a number of eight bytes: a radix sort from the last digit on.

A segment has a few hundred thousand channels, whose ids differ in two or three digits of eleven bits; so many passes,
each a walk in order, take a tenth of what comparisons of scattered rows take. A digit that all keys share costs its
count alone. (Knuth, The Art of Computer Programming, vol. 3, 5.2.5.)
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef enum:
    DIGIT_BITS = 11
    DIGITS = 1 << DIGIT_BITS
    PASSES = 6                        # 6 * 11 >= 64
    INSERTION_MAX = 24                # so few are in order before a count is cleared


cdef void keyed_insert(Keyed* items, uint32_t count) noexcept nogil:
    """Sort few items in their place."""
    cdef uint32_t at, hole
    cdef Keyed moved
    for at in range(1, count):
        moved = items[at]
        hole = at
        while hole > 0 and items[hole - 1].key > moved.key:
            items[hole] = items[hole - 1]
            hole -= 1
        items[hole] = moved


cdef Keyed* keyed_sort(Keyed* items, Keyed* spare, uint32_t count) noexcept nogil:
    """Sort by key; items of one key keep their order.

    Args:
        items: what is sorted; afterwards it may hold anything.
        spare: room for as many.
        count: how many.

    Returns:
        `items` or `spare`, whichever holds them sorted.
    """
    cdef uint32_t counts[DIGITS]
    cdef uint32_t at, digit, begin, size
    cdef uint64_t differs = 0
    cdef Keyed* other
    cdef int place, shift
    if count <= INSERTION_MAX:
        keyed_insert(items, count)
        return items
    for at in range(count):
        differs |= items[at].key ^ items[0].key
    for place in range(PASSES):
        shift = place * DIGIT_BITS
        if not (differs >> shift) & (DIGITS - 1):
            continue
        memset(counts, 0, sizeof(counts))
        for at in range(count):
            counts[(items[at].key >> shift) & (DIGITS - 1)] += 1
        begin = 0
        for digit in range(<uint32_t>DIGITS):
            size = counts[digit]
            counts[digit] = begin
            begin += size
        for at in range(count):
            digit = <uint32_t>((items[at].key >> shift) & (DIGITS - 1))
            spare[counts[digit]] = items[at]
            counts[digit] += 1
        other = items
        items = spare
        spare = other
    return items


def sorted_indexes(list keys not None):
    """Return the indexes of unsigned 64-bit keys in the order of the keys; equal ones in theirs.

    Args:
        keys: numbers from 0 to 2^64 - 1.

    Raises:
        OverflowError: one is outside of that. MemoryError.

    Any thread.
    """
    cdef uint32_t count = <uint32_t>len(keys)
    cdef uint32_t at
    cdef Keyed* sorted_items
    cdef Keyed* items = <Keyed*>PyMem_RawMalloc((2 * <size_t>count + 1) * sizeof(Keyed))
    if items == NULL:
        raise MemoryError
    try:
        for at in range(count):
            items[at].key = <uint64_t>keys[at]
            items[at].item = <const void*><uintptr_t>at
        with nogil:
            sorted_items = keyed_sort(items, items + count, count)
        return [<uintptr_t>sorted_items[at].item for at in range(count)]
    finally:
        PyMem_RawFree(items)
