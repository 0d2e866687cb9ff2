# The latency histogram for native code: record() needs no interpreter lock and no allocation.
#
# Values 0 to 255 have a bucket each. Above, every power of two is cut into 128 buckets of equal width, so a bucket is
# at most 1/128 as wide as the smallest value in it:
#
#   value          width   buckets
#   0 ... 255      1       256
#   256 ... 511    2       128
#   512 ... 1023   4       128
#   ...
#   2^39 ... 2^40  2^32    128     the last one also takes every larger value

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    /* The sum of 2^63 values of 64 bits needs 127. */
    typedef unsigned __int128 histogram_sum;
    """
    ctypedef unsigned long long histogram_sum

cdef enum:
    SUB_BITS = 7                                               # 128 buckets a power of two
    SUB_BUCKETS = 1 << SUB_BITS
    RANGE_BITS = 40                                            # in nanoseconds 18 minutes
    BUCKETS = (RANGE_BITS - SUB_BITS + 1) * SUB_BUCKETS        # 4,352: 34 KiB

cdef struct HistogramState:
    int64_t counts[BUCKETS]
    int64_t count                # of all buckets; < 2^63
    histogram_sum sum            # of the values as they were recorded
    uint64_t min                 # UINT64_MAX while empty
    uint64_t max                 # 0 while empty


@cython.final
cdef class Histogram:
    cdef HistogramState state

    # One thread at a time; holding the interpreter lock or not.
    cpdef void record(self, uint64_t value) noexcept nogil
    cpdef void record_n(self, uint64_t value, uint32_t count) noexcept nogil
