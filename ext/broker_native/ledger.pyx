"""The stamps and the ledger of one reader for Python: for works that publish and read through a Python client.

What a stamp and a ledger are stands in driver_ledger.h. It must not know where messages come from.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from broker_native.driver_load cimport (
    STAMP_BYTES, STAMP_CHANNEL, STAMP_PUBLISHERS_MAX, STAMP_TIME, clock_ns, ledger_close, ledger_lost, ledger_open,
    ledger_take, pattern_fill, stamp_write)
from broker_native.histogram cimport Histogram
from broker_native.layout cimport load_u32, load_u64


@cython.final
cdef class Verifier:
    """One reader's ledger, and the payloads that it will be asked to check."""

    def __cinit__(self, *, uint32_t publishers=1, uint32_t channels=1, uint32_t payload_bytes=128):
        """Prepare flows of publishers (to 65,536) and channels with payloads of `payload_bytes` (from 24).

        Raises:
            ValueError: an argument is out of its range.
        """
        if payload_bytes < STAMP_BYTES or not 1 <= publishers <= STAMP_PUBLISHERS_MAX or channels < 1:
            raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES}; publishers: got "
                             f"{publishers}, from 1 to {STAMP_PUBLISHERS_MAX}; channels: got {channels}, at least 1")
        self.channels = channels
        self.pattern = <uint8_t*>malloc(payload_bytes)
        if self.pattern == NULL:
            raise MemoryError
        pattern_fill(self.pattern, payload_bytes)
        if ledger_open(&self.ledger, self.pattern, payload_bytes, channels, publishers):
            raise MemoryError
        self.counters = <uint64_t*>calloc(self.ledger.flows, sizeof(uint64_t))
        if self.counters == NULL:
            raise MemoryError

    def __dealloc__(self):
        ledger_close(&self.ledger)
        free(self.pattern)
        free(self.counters)

    def payloads(self, Py_ssize_t count, *, uint32_t publisher=0, uint32_t channel=0):
        """Make the next `count` payloads of a flow, stamped with the time of this call.

        Raises:
            ValueError: there is no such flow.
        """
        cdef uint32_t payload_bytes = self.ledger.payload_bytes
        cdef uint64_t now_ns = clock_ns()
        cdef uint64_t* counter = self.counter(publisher, channel)
        cdef uint8_t* data
        cdef Py_ssize_t _made
        cdef bytes payload
        cdef list made = []
        for _made in range(count):
            payload = PyBytes_FromStringAndSize(<const char*>self.pattern, payload_bytes)
            data = <uint8_t*>PyBytes_AS_STRING(payload)      # nobody else has it yet
            stamp_write(data, publisher, counter[0], now_ns, channel)
            counter[0] += 1
            made.append(payload)
        self.sent += count
        return made

    def expect(self, uint64_t count, *, uint32_t publisher=0, uint32_t channel=0):
        """Count `count` messages of a flow as sent, though another one made them.

        Raises:
            ValueError: there is no such flow.
        """
        self.counter(publisher, channel)[0] += count
        self.sent += count

    cdef uint64_t* counter(self, uint32_t publisher, uint32_t channel) except NULL:
        if publisher >= self.ledger.publishers or channel >= self.channels:
            raise ValueError(f"flow: got publisher {publisher}, channel {channel}")
        return &self.counters[<uint64_t>channel * self.ledger.publishers + publisher]

    def check(self, payload, Histogram latency=None):
        """Check one payload that has come.

        Args:
            payload: any contiguous buffer; borrowed for the call.
            latency: takes the nanoseconds since the payload was made.
        """
        self.check_buffer(payload, latency, clock_ns() if latency is not None else 0)

    def check_all(self, payloads, Histogram latency=None):
        """Check payloads that have come together, in their order; the arguments are those of `check`."""
        cdef uint64_t now_ns = clock_ns()
        for payload in payloads:
            self.check_buffer(payload, latency, now_ns)

    cdef int check_buffer(self, object payload, Histogram latency, uint64_t now_ns) except -1:
        cdef Py_buffer view
        cdef uint64_t time_ns
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        self.check_bytes(<const uint8_t*>view.buf, view.len)
        if latency is not None and view.len >= STAMP_BYTES:
            time_ns = load_u64(<const uint8_t*>view.buf + STAMP_TIME)
            latency.record(now_ns - time_ns if now_ns > time_ns else 0)
        PyBuffer_Release(&view)
        return 0

    cdef void check_bytes(self, const uint8_t* payload, Py_ssize_t size) noexcept:
        cdef uint32_t channel
        if size != self.ledger.payload_bytes or load_u32(payload + STAMP_CHANNEL) >= self.channels:
            self.ledger.taken += 1
            self.ledger.corrupt += 1
            return
        channel = load_u32(payload + STAMP_CHANNEL)
        ledger_take(&self.ledger, <uint64_t>channel * self.ledger.publishers, channel, payload)

    @property
    def taken(self):
        """Payloads that have been checked."""
        return self.ledger.taken

    @property
    def lost(self):
        """Payloads that were made and have not come."""
        return ledger_lost(&self.ledger) + self.sent - self.ledger.passed

    @property
    def duplicated(self):
        return self.ledger.duplicated

    @property
    def reordered(self):
        return self.ledger.reordered

    @property
    def corrupt(self):
        return self.ledger.corrupt


def payload_of(uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel, uint32_t payload_bytes):
    """Return one payload as a driver would send it, so that tests can compare it with their own.

    Raises:
        ValueError: `payload_bytes` is under STAMP_BYTES.
    """
    if payload_bytes < STAMP_BYTES:
        raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES} hold the stamp")
    cdef bytearray payload = bytearray(payload_bytes)
    cdef uint8_t* data = <uint8_t*>payload
    pattern_fill(data, payload_bytes)
    stamp_write(data, publisher, counter, time_ns, channel)
    return bytes(payload)
