"""The server's side of one byte stream.

Frames are found in the loop's shared read buffer without copying; only a frame that is cut by the end of what has
arrived goes to a spill of its connection, which grows with what arrives and never by what was declared. PUBLISH and
CREDIT are decided here, in C; every other frame goes to `on_frame` of the subclass, in order.

A subclass gives `on_frame(kind, flags, body)`, `on_refused(code, slot, number, count)`, `on_duplicate(slot, number,
count)`, `on_malformed(code, size)`, `on_credit(subscription)`, `on_exhausted()` (there is no memory for what came, or
for what should be sent: end the connection) and `on_read()` (bytes were taken in: end the turn).
All of it belongs to the loop's thread.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from broker_native.fanout cimport Fanout, Outbox, Subscription
from broker_native.layout cimport *
from broker_native.tails cimport bytes_append, bytes_release

cdef enum:
    CODE_MALFORMED_FRAME = 3001
    CODE_FRAME_TOO_LARGE = 3002
    DUPLICATE = 1                       # as in tails.pyx


cdef class Clock:
    """Broker time: microseconds since 1970, never backwards.

    Args:
        offset_us: Broker time less the monotonic clock.
        manual: The time is `floor_us`, and only its owner moves it.
    """

    def __cinit__(self, uint64_t offset_us=0, bint manual=False):
        self.offset_us = offset_us
        self.manual = manual

    cdef uint64_t read(self) noexcept:
        cdef uint64_t now_us
        if self.manual:
            return self.floor_us
        now_us = monotonic_us() + self.offset_us
        if now_us < self.floor_us:
            return self.floor_us
        self.floor_us = now_us
        return now_us

    cdef uint64_t steady(self) noexcept:
        """Time for intervals: it does not wait for a floor, and no wall clock moves it."""
        return self.floor_us if self.manual else monotonic_us()

    def now_us(self):
        """Broker time."""
        return self.read()

    def steady_us(self):
        """Time for measuring intervals, microseconds: the monotonic clock, or a manual clock's own time."""
        return self.steady()

    @staticmethod
    def monotonic_us():
        """The monotonic clock, microseconds."""
        return monotonic_us()


cdef class ReadBuffer:
    """The one buffer that a loop reads every connection into.

    Args:
        size: Bytes, 4 KiB to 16 MiB.
    """

    def __cinit__(self, size_t size):
        cdef Py_buffer view
        if not 4096 <= size <= 16 << 20:
            raise ValueError(f"read buffer: got {size} bytes, range 4096 to {16 << 20}")
        self.storage = bytearray(size)
        self.view = memoryview(self.storage)
        self.size = size
        # The memoryview above keeps the bytearray from being resized, so the pointer stays good as long as this object.
        PyObject_GetBuffer(self.storage, &view, PyBUF_SIMPLE)
        self.data = <uint8_t*>view.buf
        PyBuffer_Release(&view)


cdef class Intake:
    """Frames of one connection.

    Args:
        fanout: The shard's fan-out (and through it its tails).
        buffer: The loop's read buffer.
        clock: Broker time.
        frame_bytes_max: Largest body, bytes.
    """

    def __init__(self, Fanout fanout not None, ReadBuffer buffer not None, Clock clock not None,
                 uint32_t frame_bytes_max):
        self.fanout = fanout
        self.tails = fanout.tails
        self.buffer = buffer
        self.clock = clock
        self.frame_bytes_max = frame_bytes_max
        self.outbox = Outbox(fanout, self)
        self.heard_us = clock.steady()

    def __dealloc__(self):
        free(self.spill.data)

    def get_buffer(self, sizehint):
        """The loop's shared read buffer (asyncio.BufferedProtocol)."""
        return self.buffer.view

    def buffer_updated(self, size_t nbytes):
        """`nbytes` have been read into the shared buffer (asyncio.BufferedProtocol)."""
        if nbytes > self.buffer.size:
            raise ValueError(f"read: got {nbytes} bytes, buffer {self.buffer.size}")
        self.take(self.buffer.data, nbytes)

    def feed(self, data):
        """Take bytes in from anywhere else: any object with a contiguous buffer. They are not kept."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.take(<const uint8_t*>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def stop(self):
        """Take nothing more in: the connection is over."""
        self.closed = True
        if not self.feeding:
            bytes_release(&self.spill)

    cdef int take(self, const uint8_t* data, size_t size) except -1:
        cdef size_t used
        if self.closed:
            return 0
        self.heard_us = self.clock.steady()
        self.tails.now_us = self.clock.read()
        self.feeding = True
        try:
            if self.spill.used:
                used = self.take_spilled(data, size)
                data += used
                size -= used
            if size and not self.closed:
                used = self.take_frames(data, size)
                if used < size and not self.closed:
                    bytes_append(&self.spill, data + used, size - used)
        except MemoryError:
            # What was decided before is decided; of the frame that there was no memory for nothing has happened.
            self.on_exhausted()
        finally:
            self.feeding = False
            if self.closed:
                bytes_release(&self.spill)
        self.on_read()
        return 0

    cdef size_t take_spilled(self, const uint8_t* data, size_t size) except? 0:
        """Complete the frame in the spill with the first bytes of `data`; answers how many it took."""
        cdef size_t used = 0
        cdef size_t need
        if self.spill.used < FRAME_HEADER_BYTES:
            need = FRAME_HEADER_BYTES - self.spill.used
            used = need if need < size else size
            bytes_append(&self.spill, data, used)
            if self.spill.used < FRAME_HEADER_BYTES:
                return used
        if not self.check_header(self.spill.data):
            return size
        need = FRAME_HEADER_BYTES + <size_t>load_u32(self.spill.data) - self.spill.used
        if need > size - used:
            bytes_append(&self.spill, data + used, size - used)
            return size
        bytes_append(&self.spill, data + used, need)
        used += need
        self.take_frame(self.spill.data)
        self.spill.used = 0
        if self.spill.capacity > 1024:
            bytes_release(&self.spill)
        return used

    cdef size_t take_frames(self, const uint8_t* data, size_t size) except? 0:
        """Take the whole frames of `data`; answers how many bytes they were."""
        cdef size_t at = 0
        cdef size_t frame
        while size - at >= FRAME_HEADER_BYTES:
            if not self.check_header(data + at):
                return size
            frame = FRAME_HEADER_BYTES + <size_t>load_u32(data + at)
            if frame > size - at:
                break
            self.take_frame(data + at)
            if self.closed:
                return size
            at += frame
        return at

    cdef bint check_header(self, const uint8_t* header) except -1:
        if load_u32(header) > self.frame_bytes_max:
            self.on_malformed(CODE_FRAME_TOO_LARGE, load_u32(header))
            return False
        if load_u16(header + 6):
            self.on_malformed(CODE_MALFORMED_FRAME, load_u16(header + 6))
            return False
        return True

    cdef int take_frame(self, const uint8_t* frame) except -1:
        cdef uint32_t size = load_u32(frame)
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        cdef int code
        if frame[4] == KIND_PUBLISH and self.publisher is not None and not frame[5]:
            code = self.publisher.publish(body, size)
            if code:
                self.answer_publish(code, body, size)
        elif frame[4] == KIND_CREDIT and self.subscriptions is not None and not frame[5] and size == CREDIT_BYTES:
            self.take_credit(body)
        else:
            self.on_frame(frame[4], frame[5], PyBytes_FromStringAndSize(<const char*>body, size))
        return 0

    cdef int answer_publish(self, int code, const uint8_t* body, uint32_t size) except -1:
        if size < PUBLISH_HEADER_BYTES:
            self.on_malformed(CODE_MALFORMED_FRAME, size)
        elif code == DUPLICATE:
            self.on_duplicate(load_u32(body), load_u64(body + 8), load_u32(body + 4))
        else:
            self.on_refused(code, load_u32(body), load_u64(body + 8), load_u32(body + 4))
        return 0

    cdef int take_credit(self, const uint8_t* body) except -1:
        cdef Subscription subscription = self.subscriptions.get(load_u32(body))
        cdef uint64_t more = load_u64(body + 8)
        # A credit may cross its UNSUBSCRIBED on the way: an unknown number is no error.
        if subscription is not None:
            if more > <uint64_t>1 << 40 or subscription.credit > <int64_t>1 << 40:
                self.on_malformed(CODE_MALFORMED_FRAME, 1 << 32)
                return 0
            subscription.credit += <int64_t>more
            if subscription.state is not None:
                self.on_credit(subscription)
        return 0
