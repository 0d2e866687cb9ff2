"""What a client publishes: records gathered into PUBLISH frames by channel, kept until they are answered.

A record is written once, into its channel's open frame. When the connection takes bytes, open frames close in the
order of their first records and go out behind one another in few big objects; their records stay here, in bounded
bytes, until PUBLISHED or ERROR answers them, so that another connection can send them again.

Numbers are given when a frame is sent, never before: a producer's line is dense, so the order of the frames is the
order of the line. A frame that is refused takes no numbers, and the server refuses every later one that is in flight
with NUMBER_GAP. The buffer then waits until everything in flight is answered, which makes every answer unambiguous,
and goes on from the first refused number. After a reconnect `resume` is told the highest number that the server has:
frames up to it are sent again as they were and answered as duplicates, the rest follows under new numbers.

A `Publication` is a future of its own kind, one for each waiting call and made without the loop: cancelling one
concerns nobody else, and all that one answer resolves are woken by one callback of the loop.

All of it belongs to one loop's thread, or to whichever thread has the lock of its bus.
"""

cimport cython
from contextvars import copy_context

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.messages cimport make_level, make_position

cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(object mapping, object key) except? NULL
    void PyErr_SetObject(object kind, object value) noexcept
    ctypedef PyObject* (*iternextfunc)(PyObject* self) noexcept
    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    void Py_XDECREF(PyObject* object)

cdef enum:
    FRAME_BYTES_CLOSE = 60 * 1024       # it still is one chunk with what the server adds, and far below 65,535 records
    FRAME_BYTES_FIRST = 512             # first capacity of an open frame
    FRAME_OVERHEAD_BYTES = 128          # what a kept frame costs besides its records
    NORMAL_PRIORITY = 2
    LOW_PRIORITY = 3
    KEY_BYTES_MAX = 255


# -- outcomes ----------------------------------------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Receipt:
    """Where consecutive records of one publish were stored, and how safely.

    `epoch` is 0 for a duplicate whose position the server no longer knows.
    """

    cdef readonly uint64_t epoch
    cdef readonly uint64_t first        # sequence of the first of them
    cdef readonly uint32_t count
    cdef readonly bint duplicate
    cdef uint32_t level_byte

    @property
    def sequence(self):
        """Sequence of the last record."""
        return self.first + self.count - 1

    @property
    def position(self):
        """Position of the last record."""
        return make_position(self.epoch, self.sequence)

    @property
    def level(self):
        """The durability that was reached."""
        return make_level(self.level_byte)

    def __repr__(self):
        return (f"<Receipt {self.first}..{self.sequence} of epoch {self.epoch}, level {self.level_byte}"
                f"{', duplicate' if self.duplicate else ''}>")


cdef Receipt make_receipt(uint64_t epoch, uint64_t first, uint32_t count, uint32_t level, bint duplicate):
    cdef Receipt receipt = Receipt.__new__(Receipt)
    receipt.epoch, receipt.first, receipt.count = epoch, first, count
    receipt.level_byte, receipt.duplicate = level, duplicate
    return receipt


@cython.final
@cython.no_gc
cdef class Scheduled:
    """A message that waits for its time: its `id`, and when it is due in microseconds since 1970.

    `duplicate` says that a message with this id waited already: `due_us` is then that one's time, or 0 when the server
    has taken this very call before and does not know any more.
    """

    cdef readonly object id
    cdef readonly uint64_t due_us
    cdef readonly bint duplicate

    def __repr__(self):
        return f"<Scheduled {self.id!r} for {self.due_us}{', duplicate' if self.duplicate else ''}>"


cdef Scheduled make_scheduled(object id, Receipt receipt):
    cdef Scheduled scheduled = Scheduled.__new__(Scheduled)
    scheduled.id, scheduled.due_us, scheduled.duplicate = id, receipt.first, receipt.duplicate
    return scheduled


cdef class Waiter:
    """Who waits for consecutive records of one frame: `count` of them from the frame's record `index` on."""

    cdef uint32_t index
    cdef uint32_t count

    cdef int answer(self, uint32_t at, uint32_t count, Receipt receipt) except -1:
        """Take the outcome of the frame's records `at … at + count - 1`, all of them its own."""
        return 0

    cdef bint is_answered(self) except -1:
        """Whether each of its records has had its outcome, none of them twice."""
        return True

    cdef int frame_done(self) except -1:
        """Each record of its frame has had its outcome."""
        return 0

    cdef int fail(self, object failure) except -1:
        """Its frame was refused or is lost."""
        return 0

    cdef int forget(self) except -1:
        """Its frame is sent again as a whole: every record is answered again."""
        return 0

    cdef Waiter cut(self, uint32_t at):
        """Split off the records from the frame's record `at` on, which become the first of another frame."""
        raise AssertionError("one record cannot be split")


@cython.final
cdef class Publication(Waiter):
    """The outcome of one publish call, to be awaited: a `Receipt`, or a list of them for many records.

    It is a future of the buffer's loop in all that asyncio asks of one, and a coroutine in as much as `create_task`
    asks of one. Cancelling it only stops the waiting: what was posted is sent.
    """

    cdef public bint _asyncio_future_blocking
    cdef PublishBuffer buffer
    cdef bint is_done
    cdef bint is_cancelled
    cdef object failure
    cdef object outcome                 # a Receipt; while parts are missing, [(offset, Receipt, Part), …]
    cdef object id                      # of a message for later, whose outcome is a Scheduled
    cdef uint32_t left                  # records of parts whose frames are not answered
    cdef object callback                # the first one, which nearly always is the only one
    cdef object context
    cdef list callbacks                 # further ones, as (callback, context)

    # .. as an awaitable and a coroutine ..

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        # Replaced by `publication_next` below, for one outcome that is no error.
        if not self.is_done:
            self._asyncio_future_blocking = True
            return self
        raise StopIteration(self.result())

    def send(self, value):
        """Go on, as a coroutine does."""
        return self.__next__()

    def throw(self, kind, value=None, traceback=None):
        """Raise in place of the outcome, as a coroutine does."""
        raise kind if value is None else value

    def close(self):
        """End, as a coroutine does: there is nothing to clean up."""

    # .. as a future ..

    def get_loop(self):
        """The loop that its waiters run on."""
        return self.buffer.loop

    def done(self):
        """Whether the outcome is known, or the waiting was cancelled."""
        return self.is_done

    def cancelled(self):
        """Whether the waiting was cancelled."""
        return self.is_cancelled

    def result(self):
        """The outcome.

        Raises:
            InvalidStateError: It is not known yet.
            CancelledError: The waiting was cancelled.
            BrokerError: The publish was refused, or its outcome is unknown.
        """
        failure = self.exception()
        if failure is not None:
            raise failure
        return self.outcome

    def exception(self):
        """The error of the outcome, or None.

        Raises:
            InvalidStateError: The outcome is not known yet.
            CancelledError: The waiting was cancelled.
        """
        if not self.is_done or self.is_cancelled:
            raise self.no_outcome()
        return self.failure

    cdef object no_outcome(self):
        """Why there is none: an error of asyncio's, which who waits in other ways need not have imported."""
        import asyncio

        if self.is_done:
            return asyncio.CancelledError()
        return asyncio.InvalidStateError("the publish is not answered yet")

    def cancel(self, msg=None):
        """Stop waiting. The record is not taken back; answers whether there was a wait to stop."""
        if self.is_done:
            return False
        self.is_cancelled = True
        self.finish()
        return True

    def add_done_callback(self, callback, *, context=None):
        """Have the loop call `callback(self)` once it is done."""
        if context is None:
            context = copy_context()
        if self.is_done:
            self.buffer.loop.call_soon(callback, self, context=context)
        elif self.callback is None:
            self.callback, self.context = callback, context
        elif self.callbacks is None:
            self.callbacks = [(callback, context)]
        else:
            self.callbacks.append((callback, context))

    def remove_done_callback(self, callback):
        """Forget a callback; answers how many there were."""
        cdef list pairs = [(self.callback, self.context)] if self.callback is not None else []
        pairs += self.callbacks or []
        kept = [pair for pair in pairs if pair[0] != callback]
        self.callback, self.context = kept[0] if kept else (None, None)
        self.callbacks = kept[1:] or None
        return len(pairs) - len(kept)

    # .. as the buffer fills it in ..

    cdef int finish(self) except -1:
        self.is_done = True
        if self.callback is not None:
            self.buffer.wake(self)
        return 0

    cdef int answer(self, uint32_t at, uint32_t count, Receipt receipt) except -1:
        if not self.is_done:
            self.outcome = receipt if self.id is None else make_scheduled(self.id, receipt)
            self.finish()
        return 0

    cdef bint is_answered(self) except -1:
        return self.is_done

    cdef int finish_part(self, uint32_t count) except -1:
        """A part of so many records has all its outcomes."""
        if not self.is_done:
            self.left -= count
            if not self.left:
                self.outcome = merged_receipts(self.outcome)
                self.finish()
        return 0

    cdef int fail(self, object failure) except -1:
        if not self.is_done:
            self.failure = failure
            self.finish()
        return 0

    cdef int call_back(self) except -1:
        """Run the callbacks, each in its context, now."""
        cdef object callback = self.callback
        cdef object context = self.context
        cdef list others = self.callbacks
        self.callback = self.context = self.callbacks = None
        if callback is not None:
            self.run(callback, context)
        if others is not None:
            for callback, context in others:
                self.run(callback, context)
        return 0

    cdef int run(self, object callback, object context) except -1:
        PyContext_Enter(context)
        try:
            callback(self)
        except Exception as failure:
            self.buffer.loop.call_exception_handler(
                {"message": "a callback of a publication failed", "exception": failure, "future": self})
        finally:
            PyContext_Exit(context)
        return 0


cdef iternextfunc publication_next_checked = (<PyTypeObject*>Publication).tp_iternext


cdef PyObject* publication_next(PyObject* awaited) noexcept:
    """`Publication.__next__` without an entry in a traceback for the StopIteration that carries the outcome."""
    cdef Publication publication = <Publication>awaited
    if not publication.is_done or publication.is_cancelled or publication.failure is not None:
        return publication_next_checked(awaited)
    PyErr_SetObject(StopIteration, publication.outcome)
    return NULL


(<PyTypeObject*>Publication).tp_iternext = publication_next


@cython.final
cdef class Part(Waiter):
    """The records of a publication of many that stand in one frame."""

    cdef Publication whole
    cdef uint32_t offset                # of its first record in the publication
    cdef uint32_t answered

    cdef int answer(self, uint32_t at, uint32_t count, Receipt receipt) except -1:
        self.answered += count
        if not self.whole.is_done:
            self.whole.outcome.append((self.offset + at - self.index, receipt, self))
        return 0

    cdef bint is_answered(self) except -1:
        cdef uint32_t expected = self.offset
        cdef Receipt receipt
        if self.whole.is_done:
            return True
        if self.answered != self.count:
            return False
        for offset, receipt, _ in sorted([item for item in self.whole.outcome if item[2] is self], key=first_item):
            if <uint32_t>offset != expected:
                return False
            expected += receipt.count
        return True

    cdef int frame_done(self) except -1:
        return self.whole.finish_part(self.count)

    cdef int fail(self, object failure) except -1:
        return self.whole.fail(failure)

    cdef int forget(self) except -1:
        cdef Publication whole = self.whole
        if self.answered and not whole.is_done:
            whole.outcome = [item for item in whole.outcome if item[2] is not self]
        self.answered = 0
        return 0

    cdef Waiter cut(self, uint32_t at):
        cdef Part rest = make_part(self.whole, 0, self.offset + at - self.index)
        rest.count = self.index + self.count - at
        self.count = at - self.index
        return rest


cdef Part make_part(Publication whole, uint32_t index, uint32_t offset):
    cdef Part part = Part.__new__(Part)
    part.whole, part.index, part.offset = whole, index, offset
    return part


cdef list merged_receipts(list parts):
    """The receipts of all parts in the order of their records; adjoining ones become one."""
    cdef list merged = []
    cdef Receipt last = None
    cdef Receipt receipt
    for _, receipt, _ in sorted(parts, key=first_item):
        if (last is not None and receipt.epoch == last.epoch and receipt.epoch and receipt.level_byte == last.level_byte
                and receipt.duplicate == last.duplicate and receipt.first == last.first + last.count):
            last = make_receipt(last.epoch, last.first, last.count + receipt.count, last.level_byte, last.duplicate)
            merged.pop()
        else:
            last = receipt
        merged.append(last)
    return merged


def first_item(pair):
    return pair[0]


@cython.final
cdef class Whole(Waiter):
    """All records of a transaction: their receipts, each its own, in one list."""

    cdef Publication publication
    cdef list receipts                  # None for what is not answered
    cdef uint32_t left

    cdef int answer(self, uint32_t at, uint32_t count, Receipt receipt) except -1:
        cdef uint32_t offset
        for offset in range(count):
            if self.receipts[at + offset] is None:
                self.left -= 1
            self.receipts[at + offset] = make_receipt(
                receipt.epoch, receipt.first + offset if receipt.epoch else 0, 1, receipt.level_byte, receipt.duplicate)
        return 0

    cdef bint is_answered(self) except -1:
        return not self.left

    cdef int frame_done(self) except -1:
        if not self.publication.is_done:
            self.publication.outcome = self.receipts
            self.publication.finish()
        return 0

    cdef int fail(self, object failure) except -1:
        return self.publication.fail(failure)

    cdef int forget(self) except -1:
        self.receipts = [None] * self.count
        self.left = self.count
        return 0


# -- frames ------------------------------------------------------------------------------------------------------------


cdef void frame_release(Frame* frame) noexcept:
    free(frame.records)
    Py_XDECREF(frame.waiters)
    frame.records = NULL
    frame.waiters = NULL


cdef int frame_reserve(Frame* frame, uint32_t size) except -1:
    cdef uint32_t capacity = max(frame.capacity, <uint32_t>FRAME_BYTES_FIRST)
    cdef uint8_t* grown
    if frame.size + size <= frame.capacity:
        return 0
    while capacity < frame.size + size:
        capacity *= 2
    if frame.size == 0 and size > FRAME_BYTES_CLOSE:
        capacity = size                 # a large record is a frame of its own, and exactly its size
    grown = <uint8_t*>realloc(frame.records, capacity)
    if grown == NULL:
        raise MemoryError
    frame.records = grown
    frame.capacity = capacity
    return 0


cdef int frame_add_waiter(Frame* frame, Waiter waiter) except -1:
    cdef list waiters
    if frame.waiters == NULL:
        waiters = [waiter]
        Py_INCREF(waiters)
        frame.waiters = <PyObject*>waiters
    else:
        (<list>frame.waiters).append(waiter)
    return 0


cdef int frame_answer(Frame* frame, uint64_t number, uint32_t count, uint64_t epoch, uint64_t first, uint32_t level,
                      bint duplicate) except -1:
    """Resolve those who wait for the records `number … number + count - 1`, all of which lie in the frame."""
    cdef uint32_t begin = <uint32_t>(number - frame.number)
    cdef uint32_t low, high
    cdef Waiter waiter
    cdef Py_ssize_t at
    if frame.waiters == NULL:
        return 0
    for at in range(PyList_GET_SIZE(<list>frame.waiters)):
        waiter = <Waiter>PyList_GET_ITEM(<list>frame.waiters, at)
        low = max(begin, waiter.index)
        high = min(begin + count, waiter.index + waiter.count)
        if low < high:
            waiter.answer(low, high - low, make_receipt(
                epoch, first + (low - begin) if epoch else first if frame.is_delayed else 0, high - low, level,
                duplicate))
    return 0


cdef bint frame_is_answered(Frame* frame) except -1:
    """Whether as many outcomes as there are records are one for each, as far as somebody waits; tells who does."""
    cdef Waiter waiter
    if frame.waiters == NULL:
        return True
    for waiter in <list>frame.waiters:
        if not waiter.is_answered():
            return False
    for waiter in <list>frame.waiters:
        waiter.frame_done()
    return True


cdef uint32_t frame_fail(Frame* frame, object failure) except? 0xFFFFFFFF:
    """Fail those who wait; answers how many records nobody waits for."""
    cdef uint32_t unwatched = frame.count
    cdef Waiter waiter
    if frame.waiters != NULL:
        for waiter in <list>frame.waiters:
            waiter.fail(failure)
            unwatched -= waiter.count
    return unwatched


cdef int frame_split(Frame* frame, uint32_t count, Frame* rest) except -1:
    """Leave the first `count` records in the frame and move the others into `rest`, whose number stays open."""
    cdef const uint8_t* at = frame.records
    cdef uint32_t _
    cdef Waiter waiter
    cdef list kept = []
    for _ in range(count):
        at += load_u32(at)
    memset(rest, 0, sizeof(Frame))
    rest.slot = frame.slot
    rest.count = frame.count - count
    rest.size = rest.capacity = <uint32_t>(frame.size - (at - frame.records))
    rest.records = <uint8_t*>malloc(rest.size)
    if rest.records == NULL:
        raise MemoryError
    memcpy(rest.records, at, rest.size)
    frame.size -= rest.size
    frame.count = count
    if frame.waiters != NULL:
        for waiter in <list>frame.waiters:
            if waiter.index >= count:
                waiter.index -= count
                frame_add_waiter(rest, waiter)
                continue
            if waiter.index + waiter.count > count:
                frame_add_waiter(rest, waiter.cut(count))
            kept.append(waiter)
        (<list>frame.waiters)[:] = kept
    return 0


cdef bint may_be_stored(Frame* frame) noexcept nogil:
    """Whether the server may have it under its number: it was sent, by whatever connection, and not refused."""
    return frame.number != 0 and (frame.state == SENT or frame.state == UNSENT)


cdef size_t put_header(uint8_t* at, uint8_t kind, uint32_t body, uint8_t flags=0) noexcept nogil:
    store_u32(at, body)
    store_u32(at + 4, kind)             # reserved bits are zero
    at[5] = flags
    return FRAME_HEADER_BYTES


cdef size_t put_publish(uint8_t* at, uint32_t channel, uint32_t count, uint64_t number, uint32_t records, uint8_t flags,
                        uint64_t epoch, uint64_t sequence) noexcept nogil:
    """Write all of a PUBLISH that stands before its records; answers how many bytes that is."""
    cdef uint32_t body = PUBLISH_HEADER_BYTES + records
    if flags & PUBLISH_FLAG_EXPECT:
        body += PUBLISH_EXPECT_BYTES
    elif flags & PUBLISH_FLAG_AT:
        body += PUBLISH_AT_BYTES
    put_header(at, KIND_PUBLISH, body, flags)
    at += FRAME_HEADER_BYTES
    store_u32(at, channel)
    store_u32(at + 4, count)
    store_u64(at + 8, number)
    if flags:
        store_u64(at + PUBLISH_HEADER_BYTES, epoch)
    if flags & PUBLISH_FLAG_EXPECT:
        store_u64(at + PUBLISH_HEADER_BYTES + 8, sequence)
    return FRAME_HEADER_BYTES + body - records


# A PUBLISH within a transaction that is kept has the slot in the place of the channel's number. Whether a CHANNEL goes
# before it, decided as its bytes are counted, stands in the bits that are reserved on the wire.
cdef inline uint32_t inner_size(const uint8_t* at) noexcept nogil:
    return FRAME_HEADER_BYTES + load_u32(at)


cdef inline uint32_t inner_slot(const uint8_t* at) noexcept nogil:
    return load_u32(at + FRAME_HEADER_BYTES)


cdef inline bint inner_publishes(const uint8_t* at, const Frame* frame) noexcept nogil:
    """Whether a publish begins here in what is kept of a transaction; behind its publishes stand its acks."""
    return at < frame.records + frame.size and at[4] == KIND_PUBLISH


cdef inline bint inner_names(const uint8_t* at) noexcept nogil:
    return load_u16(at + 6) != 0


# What becomes of a frame that the server refuses; the caller of `refuse` says which.
cdef enum:
    FOR_GOOD = 0
    FOR_ITS_NUMBER = 1
    FOR_ONE_RECORD = 2


# -- transactions ------------------------------------------------------------------------------------------------------


# What it holds of its buffer is given back when it goes, so the buffer must be there until then.
@cython.final
@cython.no_gc_clear
cdef class Draft:
    """A transaction that is put together; `PublishBuffer.transact` sends it, `abandon` forgets it.

    Args:
        buffer: What it is sent with. The draft belongs to the same thread or lock.
    """

    def __cinit__(self, PublishBuffer buffer not None):
        self.buffer = buffer
        self.frame.is_transaction = True

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
        self.expects = expect is not None
        if self.expects:
            self.buffer.take_expected(expect, &self.epoch, &self.sequence)
        self.buffer.put(channel, payload, headers, key, priority, expiry_s, None, self)
        return self.frame.count - 1

    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL:
        """Count a record and make room for it."""
        cdef uint32_t fixed = FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
        cdef uint8_t* at
        if self.expects:
            fixed += PUBLISH_EXPECT_BYTES
        self.check_size(fixed + size)
        frame_reserve(&self.frame, fixed + <uint32_t>size)
        at = self.frame.records + self.frame.size
        put_publish(at, slot, 1, 0, <uint32_t>size, PUBLISH_FLAG_EXPECT if self.expects else 0, self.epoch,
                    self.sequence)
        self.frame.size += fixed + <uint32_t>size
        self.frame.count += 1
        self.buffer.slots[slot].frames += 1
        return at + fixed

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

    def abandon(self):
        """Forget all of it: nothing was sent. What was sent already is not concerned."""
        self.is_over = True
        if self.frame.records != NULL:
            self.buffer.let_go_slots(&self.frame)
            frame_release(&self.frame)


# -- the buffer --------------------------------------------------------------------------------------------------------


@cython.final
cdef class PublishBuffer:
    """Records on their way to the server.

    Args:
        loop: The event loop of all its callers.
        error: Builds an error of a registry name and a detail.
        check_channel: Checks a channel's name and answers its bytes, or raises.
        pack_headers: Packs a mapping of headers into bytes.
        kick: Called when there is something to take; not again until `take` has answered None.
        bytes_max: Bytes that may be kept, open or unanswered; past it posting raises BUSY.
    """

    def __cinit__(self, loop, *, error, check_channel, pack_headers, kick, size_t bytes_max):
        self.loop = loop
        self.error = error
        self.check_channel = check_channel
        self.pack_headers = pack_headers
        self.kick = kick
        self.bytes_max = bytes_max
        self.payload_bytes_max = self.headers_bytes_max = self.transaction_bytes_max = 0x7FFFFFFF
        self.channels_max = 0xFFFFFFFF
        self.slot_of = {}
        self.channel_failures = {}
        self.generation = 1
        self.next_number = 1
        self.woken = []
        self.grow_ring(16)

    def __dealloc__(self):
        cdef uint32_t slot
        cdef size_t at
        for slot in range(self.slots_count):
            frame_release(&self.slots[slot].open)
            Py_XDECREF(self.slots[slot].name)
        free(self.slots)
        free(self.dirty)
        if self.ring != NULL:
            for at in range(self.head, self.tail):
                frame_release(&self.ring[at & self.ring_mask])
        free(self.ring)

    @property
    def unanswered_bytes(self):
        """Bytes that are kept: open, or not answered."""
        return self.open_bytes + self.kept_bytes

    @property
    def records_unanswered(self):
        """Records that were posted and have no outcome yet."""
        return self.records_posted - self.records_answered

    # .. posting ..

    def post(self, str channel not None, payload, headers=None, key=None, int priority=NORMAL_PRIORITY, expiry_s=None,
             id=None):
        """Put one record into its channel's open frame.

        Args:
            channel: The channel's name.
            payload: Any bytes-like object; copied.
            headers: A mapping, or its packed bytes.
            key: 1 to 255 bytes.
            priority: 0 critical, 1 high, 2 normal, 3 low.
            expiry_s: Seconds after which it is no longer delivered, at least 1.
            id: 1 to 64 bytes, or text of as many in UTF-8.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_ID or INVALID_RECORD; or CLOSED.
            Unavailable: BUSY; the bound on unanswered bytes is reached.
        """
        self.put(channel, payload, headers, key, priority, expiry_s, id)

    def publish(self, str channel not None, payload, headers=None, key=None, int priority=NORMAL_PRIORITY,
                expiry_s=None, id=None, expect=None):
        """The same as `post`, and answer a `Publication` of the outcome.

        Args:
            expect: (epoch, sequence) of the head that the channel must have; None for any.
        """
        cdef uint32_t slot
        cdef Frame* frame
        cdef uint64_t epoch = 0
        cdef uint64_t sequence = 0
        cdef Publication publication
        if expect is not None:
            if id is not None:
                raise self.error("INVALID_RECORD", "publish: got an id and a position to expect; one of them decides")
            self.take_expected(expect, &epoch, &sequence)
            # It is a frame of its own, and what was posted before goes before it.
            self.close_frames()
        slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
        frame = &self.slots[slot].open
        publication = Publication.__new__(Publication)
        publication.buffer = self
        publication.index = frame.count - 1
        publication.count = 1
        frame_add_waiter(frame, publication)
        if expect is not None:
            frame.expects, frame.epoch, frame.sequence = True, epoch, sequence
            self.close_frame(slot)
        return publication

    def schedule(self, str channel not None, payload, uint64_t when, id, headers=None, key=None,
                 int priority=NORMAL_PRIORITY, expiry_s=None):
        """Have one record published later, and answer a `Publication` of a `Scheduled`.

        Args:
            when: Microseconds since 1970, or from the moment on in which the server takes it if the top bit is set.
            id: What it is called in its channel while it waits: a string or bytes, 1 to 64 bytes of UTF-8.

        Raises:
            RequestError: As `post`.
        """
        cdef uint32_t slot
        cdef Frame* frame
        cdef Publication publication
        if id is None:
            raise self.error("INVALID_ID", "message id: got None; what waits is found by its id")
        # It is a frame of its own, and what was posted before goes before it.
        self.close_frames()
        slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
        frame = &self.slots[slot].open
        publication = Publication.__new__(Publication)
        publication.buffer = self
        publication.count = 1
        publication.id = id
        frame_add_waiter(frame, publication)
        frame.is_delayed, frame.epoch = True, when
        self.close_frame(slot)
        return publication

    def transact(self, Draft draft not None):
        """Send a transaction behind all that was posted before, and answer a `Publication` of its receipts, one each.

        Raises:
            RequestError: CLOSED; the transaction is over, or the buffer.
            Unavailable: BUSY; the bound on unanswered bytes is reached.
        """
        cdef Publication publication = Publication.__new__(Publication)
        cdef Whole whole
        if draft.is_over:
            raise self.error("CLOSED", "transaction: it is over")
        publication.buffer = self
        publication.outcome = []
        if self.closed is not None:
            raise self.closed
        if not draft.frame.count:
            draft.is_over = True
            publication.finish()
            return publication
        self.check_room(draft.frame.size)
        self.close_frames()
        whole = Whole.__new__(Whole)
        whole.publication = publication
        whole.count = draft.frame.count
        whole.forget()
        frame_add_waiter(&draft.frame, whole)
        draft.frame.state = UNSENT
        self.append_frame(&draft.frame)
        self.kept_bytes += draft.frame.size + FRAME_OVERHEAD_BYTES
        self.records_posted += draft.frame.count
        memset(&draft.frame, 0, sizeof(Frame))
        draft.is_over = True
        self.kick_once()
        return publication

    def publish_many(self, str channel not None, payloads, headers=None, key=None, int priority=NORMAL_PRIORITY,
                     expiry_s=None, ids=None):
        """Post every payload and answer one `Publication` of all: a list of receipts in order, adjoining ones merged.

        When one of them cannot be posted, those before it are, and the error is raised.

        Args:
            channel, payloads, headers, key, priority, expiry_s: As of `post`.
            ids: One for each payload, None for one without.

        Raises:
            ValueError: There are more payloads than ids, or fewer.
        """
        cdef Publication whole = Publication.__new__(Publication)
        cdef Part part = None
        cdef Frame* frame
        cdef uint32_t slot
        whole.buffer = self
        whole.outcome = []
        if ids is not None:
            payloads = zip(payloads, ids, strict=True)
        for payload in payloads:
            id = None
            if ids is not None:
                payload, id = payload
            slot = self.put(channel, payload, headers, key, priority, expiry_s, id)
            frame = &self.slots[slot].open
            if part is None or frame.count != part.index + part.count + 1:
                part = make_part(whole, frame.count - 1, whole.left)
                frame_add_waiter(frame, part)
            part.count += 1
            whole.left += 1
        if not whole.left:
            whole.finish()
        return whole

    cdef uint32_t put(self, str channel, object payload, object headers, object key, int priority,
                      object expiry_s, object id, Draft draft=None) except? 0xFFFFFFFF:
        """Write one record; answers the channel's slot, in whose open frame it is the last one, if it is not a draft's.
        """
        cdef uint32_t slot = self.last_slot
        cdef Py_buffer view
        # A loop over one channel mostly passes the very same name.
        if slot >= self.slots_count or self.slots[slot].name != <PyObject*>channel:
            slot = self.last_slot = self.find_slot(channel)
        if PyBytes_CheckExact(payload):
            self.put_record(slot, <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), headers, key,
                            priority, expiry_s, id, draft)
            return slot
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.put_record(slot, <const uint8_t*>view.buf, view.len, headers, key, priority, expiry_s, id, draft)
        finally:
            PyBuffer_Release(&view)
        return slot

    cdef int put_record(self, uint32_t slot, const uint8_t* payload, size_t payload_size, object headers, object key,
                        int priority, object expiry_s, object id, Draft draft) except -1:
        cdef bytes packed_headers = None
        cdef bytes packed_id = None
        cdef size_t size = RECORD_HEADER_BYTES + payload_size
        cdef uint16_t flags = 0
        cdef uint32_t expiry = 0
        cdef uint8_t* at
        if payload_size > self.payload_bytes_max:
            raise self.error("PAYLOAD_TOO_LARGE",
                             f"payload: got {payload_size} bytes, limit {self.payload_bytes_max} bytes")
        if priority != NORMAL_PRIORITY:
            if not 0 <= priority <= LOW_PRIORITY:
                raise self.error("INVALID_RECORD", f"priority: got {priority}, expected 0 to {LOW_PRIORITY}")
            flags |= RECORD_PRIORITY
            size += 1
        if expiry_s is not None:
            if not 1 <= expiry_s <= 0xFFFFFFFF:
                raise self.error("INVALID_RECORD", f"expiry: got {expiry_s} seconds, expected 1 to {0xFFFFFFFF}")
            expiry = expiry_s
            flags |= RECORD_EXPIRY
            size += 4
        if key is not None:
            if not 1 <= len(key) <= KEY_BYTES_MAX:
                raise self.error("INVALID_RECORD", f"key: got {len(key)} bytes, expected 1 to {KEY_BYTES_MAX}")
            key = bytes(key)
            flags |= RECORD_KEY
            size += 2 + PyBytes_GET_SIZE(key)
        if headers:
            packed_headers = headers if isinstance(headers, bytes) else self.pack_headers(headers)
            if <size_t>PyBytes_GET_SIZE(packed_headers) > min(self.headers_bytes_max, <size_t>0xFFFF):
                raise self.error("HEADERS_TOO_LARGE",
                                 f"headers: got {len(packed_headers)} bytes, limit {self.headers_bytes_max} bytes")
            flags |= RECORD_HEADERS
            size += 2 + PyBytes_GET_SIZE(packed_headers)
        if id is not None:
            packed_id = self.packed_id(id)
            flags |= RECORD_ID
            size += 1 + PyBytes_GET_SIZE(packed_id)
        at = self.reserve_record(slot, size) if draft is None else draft.reserve_record(slot, size)
        store_u32(at, <uint32_t>size)
        store_u32(at + 4, flags)
        store_u32(at + 8, 0)
        at += RECORD_HEADER_BYTES
        if flags:
            at = put_fields(at, flags, priority, expiry, key, packed_headers, packed_id)
        memcpy(at, payload, payload_size)
        if draft is None:
            self.count_record(slot, size)
        return 0

    cdef bytes packed_id(self, object id):
        """The bytes of a message id."""
        cdef bytes packed = (<str>id).encode("utf-8", "surrogatepass") if isinstance(id, str) else bytes(memoryview(id))
        if not 1 <= PyBytes_GET_SIZE(packed) <= RECORD_ID_BYTES_MAX:
            raise self.error("INVALID_ID", f"message id: got {len(packed)} bytes, expected 1 to {RECORD_ID_BYTES_MAX}")
        return packed

    cdef uint8_t* reserve_record(self, uint32_t slot, size_t size) except NULL:
        """Room for a record in the slot's open frame; closes the frame first when it is full."""
        cdef Frame* frame = &self.slots[slot].open
        if self.closed is not None:
            raise self.closed
        self.check_room(size)
        if frame.count and frame.size + size > FRAME_BYTES_CLOSE:
            self.close_frame(slot)
        frame_reserve(frame, <uint32_t>size)
        return frame.records + frame.size

    cdef int take_expected(self, object expect, uint64_t* epoch, uint64_t* sequence) except -1:
        try:
            epoch[0], sequence[0] = expect
        except (TypeError, ValueError, OverflowError):
            raise self.error("INVALID_POSITION", f"expect: got {expect!r:.100}, expected (epoch, sequence), u64 each") \
                from None
        return 0

    cdef int check_room(self, size_t size) except -1:
        """Hold the bound on what is kept."""
        cdef size_t kept = self.open_bytes + self.kept_bytes
        # One record is always taken, or a small bound would refuse a large one for ever.
        if kept and kept + size > self.bytes_max:
            raise self.error("BUSY", f"publishes that are not answered: {kept + size} bytes, "
                                     f"limit {self.bytes_max} bytes; drain between posts")
        return 0

    cdef int count_record(self, uint32_t slot, size_t size) except -1:
        cdef Slot* owner = &self.slots[slot]
        owner.open.size += <uint32_t>size
        owner.open.count += 1
        self.open_bytes += size
        self.records_posted += 1
        if not owner.dirty:
            self.mark_dirty(slot)
        return self.kick_once()

    cdef int kick_once(self) except -1:
        if not self.kicked:
            self.kicked = True
            self.kick()
        return 0

    cdef int mark_dirty(self, uint32_t slot) except -1:
        cdef uint32_t capacity
        cdef uint32_t* grown
        if self.dirty_count == self.dirty_capacity:
            capacity = max(<uint32_t>(2 * self.dirty_capacity), <uint32_t>16)
            grown = <uint32_t*>realloc(self.dirty, capacity * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            self.dirty = grown
            self.dirty_capacity = capacity
        self.dirty[self.dirty_count] = slot
        self.dirty_count += 1
        self.slots[slot].dirty = True
        return 0

    # .. channels ..

    cdef uint32_t find_slot(self, str channel) except? 0xFFFFFFFF:
        """The channel's slot, which it is given if it has none."""
        cdef PyObject* found = PyDict_GetItemWithError(self.slot_of, channel)
        return <uint32_t><object>found if found != NULL else self.add_slot(channel)

    cdef uint32_t add_slot(self, str channel) except? 0xFFFFFFFF:
        """Give a channel a slot: a new one, or at the bound one that nothing is kept for."""
        cdef uint32_t slot
        cdef Slot* owner
        self.check_channel(channel)
        slot = self.free_slot() if self.slots_count >= self.channels_max else self.new_slot()
        owner = &self.slots[slot]
        if owner.name != NULL:
            del self.slot_of[<str>owner.name]
            Py_XDECREF(owner.name)
        Py_INCREF(channel)
        owner.name = <PyObject*>channel
        owner.is_told = False
        self.slot_of[channel] = slot
        return slot

    cdef uint32_t new_slot(self) except? 0xFFFFFFFF:
        cdef uint32_t capacity
        cdef Slot* grown
        if self.slots_count == self.slots_capacity:
            capacity = max(<uint32_t>(2 * self.slots_capacity), <uint32_t>8)
            grown = <Slot*>realloc(self.slots, capacity * sizeof(Slot))
            if grown == NULL:
                raise MemoryError
            self.slots = grown
            self.slots_capacity = capacity
        memset(&self.slots[self.slots_count], 0, sizeof(Slot))
        self.slots_count += 1
        return self.slots_count - 1

    cdef uint32_t free_slot(self) except? 0xFFFFFFFF:
        cdef uint32_t _
        for _ in range(self.slots_count):
            self.slots_hand = (self.slots_hand + 1) % self.slots_count
            if not self.slots[self.slots_hand].frames and not self.slots[self.slots_hand].open.count:
                return self.slots_hand
        raise self.error("TOO_MANY_CHANNELS", f"channels with unanswered publishes: limit {self.channels_max} channels")

    def refuse_channel(self, uint32_t number, failure):
        """The server refused the name of this number: that is why publishes to it will be refused.

        The name is said again before the next publish to it, since it may be allowed later.
        """
        cdef uint32_t slot
        for slot in range(self.slots_count):
            if self.slots[slot].generation == self.generation and self.slots[slot].number == number:
                self.slots[slot].is_told = False
                self.channel_failures[slot] = failure

    # .. the ring ..

    cdef int grow_ring(self, size_t capacity) except -1:
        cdef Frame* grown = <Frame*>malloc(capacity * sizeof(Frame))
        cdef size_t at
        if grown == NULL:
            raise MemoryError
        for at in range(self.head, self.tail):
            grown[at & (capacity - 1)] = self.ring[at & self.ring_mask]
        free(self.ring)
        self.ring = grown
        self.ring_mask = capacity - 1
        return 0

    cdef int append_frame(self, Frame* frame) except -1:
        if self.tail - self.head > self.ring_mask:
            self.grow_ring(2 * (self.ring_mask + 1))
        self.ring[self.tail & self.ring_mask] = frame[0]
        self.tail += 1
        return 0

    cdef int close_frame(self, uint32_t slot) except -1:
        """Move the slot's open frame to the end of the ring."""
        cdef Slot* owner = &self.slots[slot]
        cdef uint8_t* fitted
        if owner.open.capacity > 2 * owner.open.size:
            fitted = <uint8_t*>realloc(owner.open.records, owner.open.size)
            if fitted != NULL:
                owner.open.records = fitted
                owner.open.capacity = owner.open.size
        owner.open.slot = slot
        owner.open.state = UNSENT
        self.append_frame(&owner.open)
        self.open_bytes -= owner.open.size
        self.kept_bytes += owner.open.size + FRAME_OVERHEAD_BYTES
        owner.frames += 1
        memset(&owner.open, 0, sizeof(Frame))
        return 0

    cdef int close_frames(self) except -1:
        cdef uint32_t at
        for at in range(self.dirty_count):
            self.slots[self.dirty[at]].dirty = False
            if self.slots[self.dirty[at]].open.count:
                self.close_frame(self.dirty[at])
        self.dirty_count = 0
        return 0

    cdef int finish_frame(self, Frame* frame) except -1:
        """All of its outcomes are known: give its memory back."""
        frame.state = DONE
        self.records_answered += frame.count
        self.kept_bytes -= frame.size + FRAME_OVERHEAD_BYTES
        if frame.is_transaction:
            self.let_go_slots(frame)
        else:
            self.slots[frame.slot].frames -= 1
        frame_release(frame)
        return 0

    cdef void let_go_slots(self, const Frame* frame) noexcept:
        """A transaction needs its channels' slots no more."""
        cdef const uint8_t* at = frame.records
        while inner_publishes(at, frame):
            self.slots[inner_slot(at)].frames -= 1
            at += inner_size(at)

    cdef int fail_frame(self, Frame* frame, object failure) except -1:
        cdef uint32_t unwatched = frame_fail(frame, failure)
        if unwatched:
            self.records_failed += unwatched
            if self.first_failure is None:
                self.first_failure = failure
        return self.finish_frame(frame)

    # .. sending ..

    def take(self, size_t bytes_max=262144):
        """Take frames to be sent now, as one object of about `bytes_max` bytes; None when there are none.

        Channels that this connection has not been told of are named in front of their first frame.
        """
        cdef size_t end, size
        if not self.open_for_sending or self.refused_number or self.postponed:
            return None
        if self.sent == self.tail:
            self.close_frames()
        if self.sent == self.tail:
            self.kicked = False
            return None
        end = self.sent
        size = 0
        while end < self.tail and size < bytes_max:
            size += self.sent_size(&self.ring[end & self.ring_mask])
            end += 1
        return self.send_frames(end, size)

    cdef bint must_name(self, uint32_t slot) except -1:
        """Whether a CHANNEL frame goes before what is sent now; the slot has its number then, and was told."""
        cdef Slot* owner = &self.slots[slot]
        if owner.generation != self.generation:
            owner.generation = self.generation
            owner.number = self.numbers_used
            owner.is_told = False
            self.numbers_used += 1
        if owner.is_told:
            return False
        owner.is_told = True
        self.channel_failures.pop(slot, None)
        return True

    cdef size_t name_size(self, uint32_t slot) except 0:
        """Bytes of a slot's CHANNEL frame."""
        return FRAME_HEADER_BYTES + 4 + <size_t>len(<str>self.slots[slot].name)

    cdef size_t sent_size(self, Frame* frame) except 0:
        """Bytes of the frame, and of a CHANNEL frame before it when there must be one; that is decided here."""
        cdef size_t size = FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + frame.size
        if frame.is_transaction:
            return self.sent_size_whole(frame)
        if frame.expects:
            size += PUBLISH_EXPECT_BYTES
        elif frame.is_delayed:
            size += PUBLISH_AT_BYTES
        frame.names = self.must_name(frame.slot)
        return size + self.name_size(frame.slot) if frame.names else size

    cdef size_t sent_size_whole(self, Frame* frame) except 0:
        """The same for a transaction."""
        cdef size_t size = FRAME_HEADER_BYTES + TRANSACTION_HEADER_BYTES + frame.size
        cdef uint8_t* at = frame.records
        while inner_publishes(at, frame):
            store_u16(at + 6, 1 if self.must_name(inner_slot(at)) else 0)
            if inner_names(at):
                size += self.name_size(inner_slot(at))
            at += inner_size(at)
        return size

    cdef bytes send_frames(self, size_t end, size_t size):
        cdef bytes block = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(block)
        cdef Frame* frame
        while self.sent < end:
            frame = &self.ring[self.sent & self.ring_mask]
            if not frame.number:
                frame.number = self.next_number
                self.next_number += frame.count
            at = self.send_frame(frame, at)
            frame.state = SENT
            self.sent += 1
            self.in_flight += 1
        return block

    cdef uint8_t* send_name(self, uint32_t slot, uint8_t* at) except NULL:
        cdef bytes name = (<str>self.slots[slot].name).encode("ascii")
        at += put_header(at, KIND_CHANNEL, <uint32_t>(4 + PyBytes_GET_SIZE(name)))
        store_u32(at, self.slots[slot].number)
        memcpy(at + 4, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        return at + 4 + PyBytes_GET_SIZE(name)

    cdef uint8_t* send_frame(self, Frame* frame, uint8_t* at) except NULL:
        if frame.is_transaction:
            return self.send_whole(frame, at)
        if frame.names:
            at = self.send_name(frame.slot, at)
        at += put_publish(at, self.slots[frame.slot].number, frame.count, frame.number, frame.size,
                          PUBLISH_FLAG_EXPECT if frame.expects else PUBLISH_FLAG_AT if frame.is_delayed else 0,
                          frame.epoch, frame.sequence)
        memcpy(at, frame.records, frame.size)
        return at + frame.size

    cdef uint8_t* send_whole(self, Frame* frame, uint8_t* at) except NULL:
        """Write a transaction, with the names that it needs before it and its publishes' channels and numbers."""
        cdef const uint8_t* kept = frame.records
        cdef uint64_t number = frame.number
        cdef uint8_t* end
        while inner_publishes(kept, frame):
            if inner_names(kept):
                at = self.send_name(inner_slot(kept), at)
            kept += inner_size(kept)
        at += put_header(at, KIND_TRANSACTION, TRANSACTION_HEADER_BYTES + frame.size)
        store_u32(at, frame.count)
        store_u32(at + 4, frame.acks)
        at += TRANSACTION_HEADER_BYTES
        memcpy(at, frame.records, frame.size)
        end = at + frame.size
        while at < end and at[4] == KIND_PUBLISH:
            store_u16(at + 6, 0)
            store_u32(at + FRAME_HEADER_BYTES, self.slots[inner_slot(at)].number)
            store_u64(at + FRAME_HEADER_BYTES + 8, number)
            number += 1
            at += inner_size(at)
        return end

    # .. answers ..

    cdef size_t find_sent(self, uint64_t number) except? 0:
        """The ring's index of the last sent frame that begins at or below `number`; `sent` when there is none."""
        cdef size_t low = self.head
        cdef size_t high = self.sent
        cdef size_t middle
        while low < high:
            middle = (low + high) // 2
            if self.ring[middle & self.ring_mask].number <= number:
                low = middle + 1
            else:
                high = middle
        return low - 1 if low > self.head else self.sent

    def answer(self, bytes body not None):
        """Take a PUBLISHED body.

        Raises:
            MalformedFrame: It answers what was not asked.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(body)
        if PyBytes_GET_SIZE(body) % PUBLISHED_ENTRY_BYTES:
            raise self.error("MALFORMED_FRAME", f"PUBLISHED: got {len(body)} bytes")
        while at < end:
            self.answer_entry(load_u64(at), load_u64(at + 8), load_u64(at + 16), load_u32(at + 24), at[32],
                              at[33] & PUBLISHED_FLAG_DUPLICATE)
            at += PUBLISHED_ENTRY_BYTES
        self.drop_done()
        self.settle()

    cdef int answer_entry(self, uint64_t number, uint64_t epoch, uint64_t first, uint32_t count, uint32_t level,
                          bint duplicate) except -1:
        cdef size_t at = self.find_sent(number)
        cdef Frame* frame
        cdef uint32_t taken
        if not count:
            raise self.error("MALFORMED_FRAME", f"PUBLISHED: no numbers from {number} on")
        while count:
            frame = &self.ring[at & self.ring_mask]
            # The first number is not below the frame's, and those behind it follow on: no difference is negative.
            if at >= self.sent or frame.state != SENT or number - frame.number >= frame.count:
                raise self.error("MALFORMED_FRAME", f"PUBLISHED: number {number} is not in flight")
            taken = min(count, <uint32_t>(frame.number + frame.count - number))
            if frame.answered + taken > frame.count:
                raise self.error("MALFORMED_FRAME", f"PUBLISHED: number {number} is answered twice")
            frame_answer(frame, number, taken, epoch, first, level, duplicate)
            frame.answered += taken
            if frame.answered == frame.count:
                if not frame_is_answered(frame):
                    raise self.error("MALFORMED_FRAME", f"PUBLISHED: some of {frame.number} to {number} twice")
                self.in_flight -= 1
                self.finish_frame(frame)
            number += taken
            first += taken
            count -= taken
            at += 1
        self.answered_highest = max(self.answered_highest, number - 1)
        if level >= LEVEL_SYNCED:
            self.synced_highest = max(self.synced_highest, number - 1)
        return 0

    def refuse(self, uint64_t number, uint32_t count, failure, int verdict):
        """Take the refusal of a PUBLISH, or of several that follow one another.

        Args:
            number: The first number.
            count: How many.
            failure: Why.
            verdict: FOR_GOOD (0) fails its records; FOR_ITS_NUMBER (1) sends it again; FOR_ONE_RECORD (2) sends its
                halves again, until the bad record is alone.

        Raises:
            MalformedFrame: No such frame is in flight.
        """
        cdef size_t at
        cdef Frame* frame
        while True:
            at = self.find_sent(number)
            frame = &self.ring[at & self.ring_mask]
            if at >= self.sent or frame.state != SENT or frame.number != number or frame.count > count:
                raise self.error("MALFORMED_FRAME", f"ERROR: no publish of {count} numbers from {number} is in flight")
            number += frame.count
            count -= frame.count
            self.refuse_frame(frame, failure, verdict)
            if not count:
                break
        self.drop_done()
        self.settle()

    cdef int refuse_frame(self, Frame* frame, object failure, int verdict) except -1:
        """What `refuse` does for each frame."""
        self.in_flight -= 1
        if verdict == FOR_ITS_NUMBER:
            frame.state = POSTPONED
            self.postponed = True
        else:
            if not self.refused_number or frame.number < self.refused_number:
                self.refused_number = frame.number
            if verdict == FOR_ONE_RECORD and frame.count > 1 and not frame.is_transaction:
                frame.state = SPLIT
            else:
                self.fail_frame(frame, self.failure_of(frame, failure))
        return 0

    cdef object failure_of(self, const Frame* frame, object failure):
        """Why a frame is refused: why its channel's name was, if it was."""
        cdef const uint8_t* at = frame.records
        if not frame.is_transaction:
            return self.channel_failures.get(frame.slot, failure)
        while self.channel_failures and inner_publishes(at, frame):
            if inner_slot(at) in self.channel_failures:
                return self.channel_failures[inner_slot(at)]
            at += inner_size(at)
        return failure

    cdef int drop_done(self) except -1:
        while self.head < self.sent and self.ring[self.head & self.ring_mask].state == DONE:
            self.head += 1
        return 0

    @property
    def is_adrift(self):
        """Whether everything in flight was refused for its number alone: only a new handshake tells the right one."""
        return self.postponed and not self.refused_number and not self.in_flight

    cdef int settle(self) except -1:
        """After a refusal, once nothing is in flight: go on from the first refused number."""
        if self.in_flight or not self.refused_number:
            return 0
        self.next_number = self.refused_number
        self.refused_number = 0
        self.postponed = False
        self.line_up(0, None)
        self.kicked = True
        self.kick()
        return 0

    cdef int line_up(self, uint64_t highest, object unknown) except -1:
        """Make every frame that is not done ready to be sent, in the order of the line.

        Args:
            highest: Frames that were sent and not answered keep their numbers up to this one.
            unknown: If not None, those frames fail with it instead.
        """
        cdef Frame* old = self.ring
        cdef size_t mask = self.ring_mask
        cdef size_t head = self.head
        cdef size_t tail = self.tail
        cdef size_t at
        cdef size_t capacity = mask + 1
        cdef Frame* frame
        cdef Frame* fresh
        # A frame becomes two at most, so that nothing below needs room that is not there.
        while capacity < 2 * (tail - head):
            capacity *= 2
        fresh = <Frame*>malloc(capacity * sizeof(Frame))
        if fresh == NULL:
            raise MemoryError
        self.ring = fresh
        self.ring_mask = capacity - 1
        self.head = self.sent = self.tail = 0
        for at in range(head, tail):
            frame = &old[at & mask]
            if unknown is not None and may_be_stored(frame):
                self.fail_frame(frame, unknown)
            if frame.state != DONE:
                self.line_up_frame(frame, highest)
        free(old)
        return 0

    cdef int line_up_frame(self, Frame* frame, uint64_t highest) except -1:
        cdef Frame rest
        cdef uint32_t first = 0         # records of the part that is split off in front
        cdef Waiter waiter
        cdef bint stored = may_be_stored(frame) and frame.number <= highest
        if frame.waiters != NULL and frame.answered:
            for waiter in <list>frame.waiters:
                waiter.forget()
        frame.answered = 0
        if frame.state == SPLIT:
            first = frame.count // 2
        elif stored and highest - frame.number + 1 < frame.count and not frame.is_transaction:
            first = <uint32_t>(highest - frame.number + 1)
        if not stored:
            frame.number = 0
        frame.state = UNSENT
        if first:
            frame_split(frame, first, &rest)
            self.kept_bytes += FRAME_OVERHEAD_BYTES
            self.slots[frame.slot].frames += 1
        self.append_frame(frame)
        if first:
            self.append_frame(&rest)
        return 0

    # .. connections ..

    def suspend(self):
        """The connection is gone: send nothing until `resume`."""
        self.open_for_sending = False
        self.refused_number = 0
        self.postponed = False
        self.in_flight = 0
        self.generation += 1
        self.numbers_used = 0
        self.channel_failures.clear()

    def resume(self, uint64_t highest, unknown=None):
        """There is a new connection: send what was not answered again, and go on.

        Args:
            highest: The highest number of the line that the server has.
            unknown: The error for everything that was sent and not answered, when the server does not know the line.
        """
        self.line_up(highest, unknown)
        self.next_number = highest + 1
        self.open_for_sending = True
        self.kicked = True
        self.kick()

    def close(self, unsent, unknown):
        """Post nothing any more, and fail what is kept.

        Args:
            unsent: The error for what was never sent, and for every later call.
            unknown: The error for what was sent and not answered.
        """
        cdef Frame* frame
        self.close_frames()
        self.open_for_sending = False
        self.closed = unsent
        while self.head < self.tail:
            frame = &self.ring[self.head & self.ring_mask]
            if frame.state != DONE:
                self.fail_frame(frame, unknown if may_be_stored(frame) else unsent)
            self.head += 1
        self.sent = self.head
        self.in_flight = 0

    # .. outcomes ..

    def take_failure(self):
        """Take the first failure of a record that nobody waited for, with the count of them all; None without one."""
        failure, count = self.first_failure, self.records_failed - self.records_failed_told
        self.first_failure = None
        self.records_failed_told = self.records_failed
        return None if failure is None else (failure, count)

    cdef int wake(self, object publication) except -1:
        if not self.woken:
            self.loop.call_soon(self.call_back)
        self.woken.append(publication)
        return 0

    def call_back(self):
        """Run the callbacks of everything that was resolved; the loop calls this."""
        cdef list woken = self.woken
        cdef Publication publication
        self.woken = []
        for publication in woken:
            publication.call_back()


cdef uint8_t* put_fields(uint8_t* at, uint16_t flags, int priority, uint32_t expiry, object key,
                         object headers, object id) noexcept:
    """Write the fields of a record in the order of their flags; answers where the payload begins."""
    if flags & RECORD_PRIORITY:
        at[0] = <uint8_t>priority
        at += 1
    if flags & RECORD_EXPIRY:
        store_u32(at, expiry)
        at += 4
    if flags & RECORD_KEY:
        at += put_bytes(at, key)
    if flags & RECORD_HEADERS:
        at += put_bytes(at, headers)
    if flags & RECORD_ID:
        at[0] = <uint8_t>PyBytes_GET_SIZE(id)
        memcpy(at + 1, PyBytes_AS_STRING(id), PyBytes_GET_SIZE(id))
        at += 1 + PyBytes_GET_SIZE(id)
    return at


cdef size_t put_bytes(uint8_t* at, object value) noexcept:
    cdef size_t size = PyBytes_GET_SIZE(value)
    store_u16(at, <uint16_t>size)
    memcpy(at + 2, PyBytes_AS_STRING(value), size)
    return 2 + size
