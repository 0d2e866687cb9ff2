"""A mergeable histogram of latencies with a bounded relative error, after HdrHistogram (Gil Tene).

Buckets are log-linear (drawn in `histogram.pxd`): recording is a shift, an addition and a store, whatever the value,
and two histograms merge by adding their counts, so each thread or process keeps its own and someone adds them up.

Invariants: `count` is the sum of `counts`; `min`, `max` and `sum` are exact and never rounded to buckets; while
`count` is 0, no bucket, minimum or maximum is reported, for a latency of 0 would be a lie.

It must not know a unit (the caller's values have one), read a clock, or allocate after it was created. It is not
atomic: one thread records, or merges, at a time.
"""

import struct

cimport cython
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from *:
    """
    /* Bits that are needed to write the value; value > 0. */
    #define histogram_bit_length(value) (64 - __builtin_clzll(value))
    """
    int histogram_bit_length(uint64_t value) noexcept nogil

cdef extern from "<assert.h>" nogil:
    # Compiled in by BROKER_DEBUG only.
    void debug_assert "assert"(bint holds)

RELATIVE_ERROR_MAX = 1.0 / SUB_BUCKETS
"""How much a percentile of values below VALUE_LIMIT may be above the value that it stands for, relative to it."""

VALUE_LIMIT = <uint64_t>1 << RANGE_BITS
"""Values from here on are counted in the last bucket; minimum, maximum and mean still see them as they are."""

# magic, format, bits of a power of two, bits of the range, count, sum (low, high), min, max, pairs that follow
_HEADER = struct.Struct("<4sHBBQQQQQI")
_PAIR = struct.Struct("<IQ")  # bucket, count > 0
_MAGIC = b"BHST"
_FORMAT = 1
_PERCENT_STEPS = 1_000_000  # a percentage is taken to six decimals, so that a rank is exact


cdef inline Py_ssize_t bucket_of(uint64_t value) noexcept nogil:
    if value >= <uint64_t>1 << RANGE_BITS:
        return BUCKETS - 1
    # The value's top SUB_BITS + 1 bits say its place in its power of two; what is shifted out is the error.
    cdef int shift = histogram_bit_length(value | SUB_BUCKETS) - SUB_BITS - 1
    return (<Py_ssize_t>shift << SUB_BITS) + <Py_ssize_t>(value >> shift)


cdef inline uint64_t bucket_low(Py_ssize_t bucket) noexcept nogil:
    if bucket < 2 * SUB_BUCKETS:
        return <uint64_t>bucket
    cdef int shift = <int>(bucket >> SUB_BITS) - 1
    return <uint64_t>(SUB_BUCKETS | (bucket & (SUB_BUCKETS - 1))) << shift


cdef inline uint64_t bucket_high(Py_ssize_t bucket) noexcept nogil:
    # The last bucket has no upper end of its own; who asks for it cuts it at the maximum.
    if bucket == BUCKETS - 1:
        return UINT64_MAX
    return bucket_low(bucket + 1) - 1


cdef inline void state_add(HistogramState* state, uint64_t value, int64_t count) noexcept nogil:
    # bucket_of is in range for every value: its shift is at most RANGE_BITS - SUB_BITS - 1.
    cdef Py_ssize_t bucket = bucket_of(value)
    debug_assert(0 <= bucket < BUCKETS)
    state.counts[bucket] += count
    state.count += count
    state.sum += <histogram_sum>value * <histogram_sum>count
    if value < state.min:
        state.min = value
    if value > state.max:
        state.max = value


cdef void state_merge(HistogramState* state, const HistogramState* other) noexcept nogil:
    cdef Py_ssize_t bucket
    for bucket in range(BUCKETS):
        state.counts[bucket] += other.counts[bucket]
    state.count += other.count
    state.sum += other.sum
    state.min = min(state.min, other.min)
    state.max = max(state.max, other.max)


cdef Py_ssize_t state_bucket_at_rank(const HistogramState* state, int64_t rank) noexcept nogil:
    # 1 <= rank <= count, the sum of all buckets, so a bucket in range ends the loop.
    debug_assert(1 <= rank <= state.count)
    cdef Py_ssize_t bucket = 0
    cdef int64_t passed = state.counts[0]
    while passed < rank:
        bucket += 1
        passed += state.counts[bucket]
    return bucket


cdef void state_clear(HistogramState* state) noexcept nogil:
    memset(state, 0, sizeof(HistogramState))
    state.min = UINT64_MAX


cdef object state_sum(const HistogramState* state):
    cdef object high = <uint64_t>(state.sum >> 64)
    return high << 64 | <uint64_t>state.sum


cdef list state_pairs(const HistogramState* state):
    cdef Py_ssize_t bucket
    cdef list pairs = []
    for bucket in range(BUCKETS):
        if state.counts[bucket] > 0:
            pairs.append((bucket, state.counts[bucket]))
    return pairs


cdef int state_require_values(const HistogramState* state) except -1:
    if state.count == 0:
        raise ValueError("histogram: it is empty, so it has no minimum, maximum, mean or percentile")
    return 0


cdef int state_take_pairs(HistogramState* state, object pairs) except -1:
    """Fill the buckets of an empty state with pairs of bytes that nobody has checked yet."""
    previous = -1
    for bucket, count in pairs:
        if not previous < bucket < BUCKETS:
            raise ValueError(f"histogram: got bucket {bucket} after {previous}, limit {BUCKETS - 1}")
        if not 0 < count <= INT64_MAX - state.count:
            raise ValueError(f"histogram: got a count of {count} in bucket {bucket}")
        state.counts[<Py_ssize_t>bucket] = count
        state.count += <int64_t>count
        previous = bucket
    return 0


cdef int state_take_header(
    HistogramState* state, object count, object total, object low, object high
) except -1:
    """Take what the buckets do not say, when it is possible beside what they say."""
    if state.count == 0:
        fits = (count, total, low, high) == (0, 0, UINT64_MAX, 0)
    else:
        # The first and the last bucket that hold something are those of the minimum and the maximum.
        fits = (
            count == state.count
            and low <= high
            and bucket_of(low) == state_bucket_at_rank(state, 1)
            and bucket_of(high) == state_bucket_at_rank(state, state.count)
            and low * count <= total <= high * count
        )
    if not fits:
        raise ValueError(
            f"histogram: count {count}, sum {total}, minimum {low} or maximum {high} contradicts the buckets"
        )
    state.sum = <histogram_sum><uint64_t>(total >> 64) << 64 | <uint64_t>(total & UINT64_MAX)
    state.min = low
    state.max = high
    return 0


@cython.final
cdef class Histogram:
    """Counts of values from 0 to 2^64 - 1 in buckets; relative error at most 1/128 below 2^40.

    Owned by one thread at a time; native code records through `record` and `record_n` without the interpreter lock.
    An instance takes 34 KiB and never grows.
    """

    def __cinit__(self):
        state_clear(&self.state)

    cpdef void record(self, uint64_t value) noexcept nogil:
        """Count one value, 0 to 2^64 - 1 (OverflowError from Python otherwise)."""
        state_add(&self.state, value, 1)

    cpdef void record_n(self, uint64_t value, uint32_t count) noexcept nogil:
        """Count one value `count` times, 0 to 2^32 - 1 (OverflowError from Python otherwise)."""
        # Nothing was seen when count is 0, so neither may minimum and maximum.
        if count > 0:
            state_add(&self.state, value, count)

    def merge(self, Histogram other not None):
        """Add what another histogram has counted; that one stays as it is.

        Raises:
            OverflowError: together they would hold 2^63 values or more; this one is unchanged.
        """
        if other.state.count > INT64_MAX - self.state.count:
            raise OverflowError(
                f"histogram: got {self.state.count} and {other.state.count} values, limit {INT64_MAX} together"
            )
        state_merge(&self.state, &other.state)

    def clear(self):
        """Forget everything."""
        state_clear(&self.state)

    @property
    def count(self):
        """How many values were recorded."""
        return self.state.count

    @property
    def min(self):
        """The smallest value, exactly. Raises ValueError when empty."""
        state_require_values(&self.state)
        return self.state.min

    @property
    def max(self):
        """The largest value, exactly. Raises ValueError when empty."""
        state_require_values(&self.state)
        return self.state.max

    @property
    def mean(self):
        """The mean of the values themselves, not of their buckets. Raises ValueError when empty."""
        state_require_values(&self.state)
        return state_sum(&self.state) / self.state.count

    def percentile(self, double percent):
        """Return a value that at least `percent` percent of the values do not exceed.

        Args:
            percent: 0 to 100, taken to six decimals; 0 means the first value, 100 the maximum exactly.

        Returns:
            The upper end of the bucket in which the value of that rank lies, never more than the maximum. It is never
            below the true value, and above it by less than RELATIVE_ERROR_MAX of it where that is below VALUE_LIMIT;
            values below 256 are exact.

        Raises:
            ValueError: the histogram is empty, or `percent` is not in its range.

        Complexity: one pass over the buckets, a few microseconds.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"histogram: got percentile {percent!r}, range 0 to 100")
        state_require_values(&self.state)
        # Whole numbers from here on: 99.9 / 100 * 1000 in floating point rounds up to the wrong rank.
        cdef object steps = round(percent * _PERCENT_STEPS)
        cdef int64_t rank = max(1, -(-steps * self.state.count // (100 * _PERCENT_STEPS)))
        return min(bucket_high(state_bucket_at_rank(&self.state, rank)), self.state.max)

    def buckets(self):
        """Iterate over the buckets that hold something, as (low, high, count), ascending, for plots.

        `low` and `high` are the smallest and the largest value that the bucket may stand for, both included; the high
        of the last one is at most the maximum.
        """
        cdef Py_ssize_t bucket
        for bucket in range(BUCKETS):
            if self.state.counts[bucket] > 0:
                yield bucket_low(bucket), min(bucket_high(bucket), self.state.max), self.state.counts[bucket]

    def to_bytes(self):
        """Return the whole state in a portable form that `from_bytes` of any machine reads.

        Little-endian: "BHST", u16 format 1, u8 bits of a power of two's buckets, u8 bits of the range, u64 count,
        u128 sum, u64 min, u64 max, u32 number of pairs; then the pairs, u32 bucket and u64 count, of the buckets that
        hold something. Equal contents give equal bytes.
        """
        pairs = state_pairs(&self.state)
        packed = bytearray()
        for bucket, count in pairs:
            packed += _PAIR.pack(bucket, count)
        total = state_sum(&self.state)
        header = _HEADER.pack(
            _MAGIC, _FORMAT, SUB_BITS, RANGE_BITS, self.state.count, total & UINT64_MAX, total >> 64,
            self.state.min, self.state.max, len(pairs),
        )
        return header + bytes(packed)

    @staticmethod
    def from_bytes(data):
        """Read what `to_bytes` has written.

        Args:
            data: any contiguous buffer of bytes, borrowed for the call.

        Raises:
            ValueError: it is no histogram, of another format, cut short or long, or contradicts itself.
        """
        cdef memoryview view = memoryview(data).cast("B")
        if view.nbytes < _HEADER.size:
            raise ValueError(f"histogram: got {view.nbytes} bytes, at least {_HEADER.size} expected")
        magic, version, sub_bits, range_bits, count, sum_low, sum_high, low, high, pairs = _HEADER.unpack_from(view)
        if (magic, version, sub_bits, range_bits) != (_MAGIC, _FORMAT, SUB_BITS, RANGE_BITS):
            raise ValueError(
                f"histogram: got {magic!r} format {version} ({sub_bits}, {range_bits} bits), "
                f"expected {_MAGIC!r} format {_FORMAT} ({SUB_BITS}, {RANGE_BITS} bits)"
            )
        size = _HEADER.size + pairs * _PAIR.size
        if view.nbytes != size:
            raise ValueError(f"histogram: got {view.nbytes} bytes, expected {size} for {pairs} buckets")
        cdef Histogram histogram = Histogram()
        state_take_pairs(&histogram.state, _PAIR.iter_unpack(view[_HEADER.size:]))
        state_take_header(&histogram.state, count, sum_high << 64 | sum_low, low, high)
        return histogram

    def __reduce__(self):
        return Histogram.from_bytes, (self.to_bytes(),)

    def __repr__(self):
        if self.state.count == 0:
            return "<Histogram empty>"
        return (
            f"<Histogram count={self.count} min={self.min} p50={self.percentile(50)} p99={self.percentile(99)} "
            f"max={self.max}>"
        )
