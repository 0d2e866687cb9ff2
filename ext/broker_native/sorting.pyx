"""Sorts keys and numbers, and lets other threads run meanwhile.

Numbers, and whatever goes by a number of eight bytes, are sorted by digits from the last one on: a segment has a few
hundred thousand channels, whose ids differ in two or three digits of eleven bits, and so many walks in order take a
tenth of what comparisons of scattered rows take. (Knuth, The Art of Computer Programming, vol. 3, 5.2.5.)

Any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memset


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


cdef struct SortKey:
    const char* at
    size_t size
    size_t index                  # in the list


cdef int compare_keys(const void* left, const void* right) noexcept nogil:
    cdef const SortKey* one = <const SortKey*>left
    cdef const SortKey* other = <const SortKey*>right
    cdef int order = memcmp(one.at, other.at, one.size if one.size < other.size else other.size)
    if order != 0:
        return order
    return (one.size > other.size) - (one.size < other.size)


def sort_keys(list keys not None):
    """Return the keys in ascending order, each once."""
    cdef tuple held = tuple(keys)
    cdef size_t count = <size_t>len(held), index
    cdef SortKey* sorting = <SortKey*>PyMem_RawMalloc((count + 1) * sizeof(SortKey))
    cdef list found = []
    cdef bytes key
    if sorting == NULL:
        raise MemoryError
    try:
        for index in range(count):
            key = <bytes?>held[<Py_ssize_t>index]
            sorting[index] = SortKey(PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key), index)
        with nogil:
            qsort(sorting, count, sizeof(SortKey), compare_keys)
        for index in range(count):
            if index == 0 or compare_keys(&sorting[index - 1], &sorting[index]) != 0:
                found.append(held[<Py_ssize_t>sorting[index].index])
        return found
    finally:
        PyMem_RawFree(sorting)


def sort_numbers(list numbers not None):
    """Return numbers below 2^64 in ascending order, each once."""
    cdef uint32_t count = <uint32_t>len(numbers), index
    cdef Keyed* sorting = <Keyed*>PyMem_RawMalloc((2 * <size_t>count + 1) * sizeof(Keyed))
    cdef Keyed* ordered
    cdef list found = []
    if sorting == NULL:
        raise MemoryError
    try:
        for index in range(count):
            sorting[index] = Keyed(<uint64_t>numbers[<Py_ssize_t>index], NULL)
        with nogil:
            ordered = keyed_sort(sorting, sorting + count, count)
        for index in range(count):
            if index == 0 or ordered[index - 1].key != ordered[index].key:
                found.append(ordered[index].key)
        return found
    finally:
        PyMem_RawFree(sorting)
