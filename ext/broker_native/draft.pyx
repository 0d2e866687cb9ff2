"""A transaction that a client puts together: publishes and acks that happen together or not at all.

It is one frame of its buffer from the moment in which it is sent. Until then it is nobody's but its maker's, though
the channels that it publishes to keep their slots for it.
"""

cimport cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.outcomes cimport Publication, make_publication, make_whole
from broker_native.posted cimport (
    EXPECTING,
    FRAME_OVERHEAD_BYTES,
    PLAIN,
    TRANSACTION,
    UNSENT,
    Frame,
    FrameForm,
    form_bytes,
    frame_add_waiter,
    frame_release,
    frame_reserve,
    put_form,
    put_publish,
)
from broker_native.posting cimport PublishBuffer
from broker_native.publishing cimport find_slot
from broker_native.writing cimport NORMAL_PRIORITY, are_fields, put_record


# What it holds of its buffer is given back when it goes, so the buffer must be there until then.
@cython.final
@cython.no_gc_clear
cdef class Draft:
    """A transaction that is put together; `send` sends it, `abandon` forgets it.

    Args:
        buffer: What it is sent with. The draft belongs to the same thread or lock.
    """

    def __cinit__(self, PublishBuffer buffer not None):
        self.buffer = buffer
        self.frame.form = TRANSACTION

    def __dealloc__(self):
        if self.frame.records != NULL:
            self.buffer.let_go_slots(&self.frame)
        frame_release(&self.frame)

    def __len__(self):
        return self.frame.count

    def publish(self, str channel not None, payload, headers=None, key=None, int priority=NORMAL_PRIORITY,
                expiry_s=None, expect=None):
        """Add a record; answers which it is, from 0.

        Args:
            channel, payload, headers, key, priority, expiry_s: As for `PublishBuffer.post`.
            expect: (epoch, sequence) of the head that the channel must have before the transaction; None for any.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: As for `PublishBuffer.post`; TRANSACTION_TOO_LARGE; CLOSED.
        """
        cdef uint64_t epoch = 0
        cdef uint64_t sequence = 0
        cdef FrameForm form = PLAIN
        cdef uint16_t flags = 0
        cdef uint32_t slot
        cdef Py_buffer view
        if expect is not None:
            self.buffer.take_expected(expect, &epoch, &sequence)
            form = EXPECTING
        slot = find_slot(self.buffer, channel)
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len > self.buffer.payload_bytes_max:
                self.buffer.refuse_payload(view.len)
            if are_fields(headers, key, priority, expiry_s, None):
                flags = self.buffer.take_fields(headers, key, priority, expiry_s, None)
            self.add_record(slot, <const uint8_t*>view.buf, view.len, flags, form, epoch, sequence)
        finally:
            PyBuffer_Release(&view)
        return self.frame.count - 1

    cdef int add_record(self, uint32_t slot, const uint8_t* payload, size_t payload_size, uint16_t flags,
                        FrameForm form, uint64_t epoch, uint64_t sequence) except -1:
        cdef size_t size = RECORD_HEADER_BYTES + payload_size + (self.buffer.fields.used if flags else 0)
        cdef uint32_t before = FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + form_bytes(form)
        cdef uint8_t* at
        self.check_size(before + size)
        frame_reserve(&self.frame, before + <uint32_t>size)
        at = put_publish(self.frame.records + self.frame.size, slot, 1, 0, form_bytes(form) + <uint32_t>size)
        if form:
            at = put_form(at, form, epoch, sequence)
        put_record(self.buffer, at, <uint32_t>size, flags, payload, payload_size)
        self.frame.size += before + <uint32_t>size
        self.frame.count += 1
        self.buffer.slots[slot].frames += 1
        return 0

    def ack(self, bytes frame not None):
        """Add a whole ACK frame, behind which no publish is added.

        Raises:
            RequestError: TRANSACTION_TOO_LARGE; CLOSED.
        """
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(frame)
        self.check_size(size)
        frame_reserve(&self.frame, size)
        memcpy(self.frame.records + self.frame.size, PyBytes_AS_STRING(frame), size)
        self.frame.size += size
        self.frame.acks += 1

    cdef int check_size(self, size_t more) except -1:
        cdef size_t whole = TRANSACTION_HEADER_BYTES + self.frame.size + more
        if self.is_over:
            raise self.buffer.error("CLOSED", "transaction: it is over")
        if self.buffer.closed is not None:
            raise self.buffer.closed
        if whole > self.buffer.transaction_bytes_max:
            raise self.buffer.error("TRANSACTION_TOO_LARGE", f"transaction: got {whole} bytes, "
                                                             f"limit {self.buffer.transaction_bytes_max} bytes")
        return 0

    def send(self):
        """Send it behind all that was posted before, and answer a `Publication` of its receipts, one each.

        Raises:
            RequestError: CLOSED; it is over, or the buffer is.
            Unavailable: BUSY; the bound on unanswered bytes is reached.
        """
        cdef Publication publication = make_publication(self.buffer.waking, 0, 0)
        if self.is_over:
            raise self.buffer.error("CLOSED", "transaction: it is over")
        publication.outcome = []
        if self.buffer.closed is not None:
            raise self.buffer.closed
        if not self.frame.count:
            self.is_over = True
            publication.finish()
            return publication
        self.buffer.check_room(self.frame.size)
        self.buffer.close_frames()
        frame_add_waiter(&self.frame, make_whole(publication, self.frame.count))
        self.frame.state = UNSENT
        self.buffer.append_frame(&self.frame)
        self.buffer.kept_bytes += self.frame.size + FRAME_OVERHEAD_BYTES
        self.buffer.records_posted += self.frame.count
        memset(&self.frame, 0, sizeof(Frame))
        self.is_over = True
        self.buffer.kick_once()
        return publication

    def abandon(self):
        """Forget all of it: nothing was sent. What was sent already is not concerned."""
        self.is_over = True
        if self.frame.records != NULL:
            self.buffer.let_go_slots(&self.frame)
            frame_release(&self.frame)
