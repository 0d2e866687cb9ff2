"""Sorts keys and numbers, each once, and lets other threads run meanwhile. Any thread."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp


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


cdef int compare_numbers(const void* left, const void* right) noexcept nogil:
    cdef uint64_t one = (<const uint64_t*>left)[0]
    cdef uint64_t other = (<const uint64_t*>right)[0]
    return (one > other) - (one < other)


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
    cdef size_t count = <size_t>len(numbers), index
    cdef uint64_t* sorting = <uint64_t*>PyMem_RawMalloc((count + 1) * sizeof(uint64_t))
    cdef list found = []
    if sorting == NULL:
        raise MemoryError
    try:
        for index in range(count):
            sorting[index] = numbers[<Py_ssize_t>index]
        with nogil:
            qsort(sorting, count, sizeof(uint64_t), compare_numbers)
        for index in range(count):
            if index == 0 or sorting[index - 1] != sorting[index]:
                found.append(sorting[index])
        return found
    finally:
        PyMem_RawFree(sorting)
