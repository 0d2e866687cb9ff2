"""How much somebody may send: token buckets in records and in bytes.

A bucket holds what comes in a second. What is lacking in it is kept as the time at which it will be full again, so
that nothing has to fill it. A frame that finds a token in it is taken whole and may leave a debt: what is larger than
the bucket would else never be taken. All of it belongs to the loop's thread.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    BURST_NS = 1000000000
    MS_NS = 1000000
    WAIT_MS_MAX = 60000
    PER_S_MAX = 1000000000


cdef inline uint64_t bucket_wait_ns(const Bucket* bucket, uint64_t now_ns) noexcept nogil:
    """How long until there is a whole token in it; 0 when there is."""
    cdef uint64_t lacks_ns
    if not bucket.cost_ns or bucket.full_ns <= now_ns:
        return 0
    lacks_ns = bucket.full_ns - now_ns + bucket.cost_ns
    return lacks_ns - BURST_NS if lacks_ns > BURST_NS else 0


cdef inline void bucket_take(Bucket* bucket, uint64_t tokens, uint64_t now_ns) noexcept nogil:
    # A token costs a second at most, and a frame has less than 2^27 of them.
    bucket.full_ns = max(bucket.full_ns, now_ns) + tokens * bucket.cost_ns


cdef class Rate:
    """What one user, or one address, may send.

    Args:
        records_per_s: Records, or whatever is counted, 0 to 10^9 a second; 0 sets no bound.
        bytes_per_s: The same of bytes.
    """

    def __cinit__(self, uint64_t records_per_s, uint64_t bytes_per_s=0):
        if records_per_s > PER_S_MAX or bytes_per_s > PER_S_MAX:
            raise ValueError(f"rate: got {records_per_s} and {bytes_per_s} a second, limit {PER_S_MAX}")
        self.records.cost_ns = BURST_NS // records_per_s if records_per_s else 0
        self.bytes.cost_ns = BURST_NS // bytes_per_s if bytes_per_s else 0

    cdef uint32_t take(self, uint64_t records, uint64_t size, uint64_t now_us) noexcept nogil:
        cdef uint64_t now_ns = now_us * 1000
        cdef uint64_t wait_ns = max(bucket_wait_ns(&self.records, now_ns), bucket_wait_ns(&self.bytes, now_ns))
        if wait_ns:
            return <uint32_t>min(<uint64_t>WAIT_MS_MAX, (wait_ns + MS_NS - 1) // MS_NS)
        bucket_take(&self.records, records, now_ns)
        bucket_take(&self.bytes, size, now_ns)
        return 0

    def wait_ms(self, uint64_t now_us):
        """How long until anything is taken, milliseconds; 0: at once."""
        return self.take(0, 0, now_us)

    def take_some(self, uint32_t records, uint32_t size, uint64_t now_us):
        """Take so many records and bytes.

        Args:
            records, size: How many.
            now_us: The time, by any clock that only goes forward, microseconds.

        Returns:
            0 when they are taken, else milliseconds until they may be.
        """
        return self.take(records, size, now_us)
