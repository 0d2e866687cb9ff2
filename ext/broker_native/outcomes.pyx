"""What becomes of what a client publishes, for those who wait for it.

A `Publication` is a future of its own kind, one for each waiting call and made without the loop: cancelling one
concerns nobody else, and all that one answer resolves are woken by one callback of the loop.

All of it belongs to the thread, or the lock, of the buffer that fills it in.
"""

cimport cython
from contextvars import copy_context

from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from broker_native.messages cimport make_level, make_position

cdef extern from "Python.h":
    void PyErr_SetObject(object kind, object value) noexcept
    ctypedef PyObject* (*iternextfunc)(PyObject* self) noexcept
    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Receipt:
    """Where consecutive records of one publish were stored, and how safely.

    `epoch` is 0 for a duplicate whose position the server no longer knows.
    """

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

    def __repr__(self):
        return f"<Scheduled {self.id!r} for {self.due_us}{', duplicate' if self.duplicate else ''}>"


cdef Scheduled make_scheduled(object id, Receipt receipt):
    cdef Scheduled scheduled = Scheduled.__new__(Scheduled)
    scheduled.id, scheduled.due_us, scheduled.duplicate = id, receipt.first, receipt.duplicate
    return scheduled


@cython.final
cdef class Waking:
    """Calls back for all that one answer resolves, in one callback of the loop.

    Args:
        loop: The event loop of all who wait.
    """

    def __cinit__(self, loop):
        self.loop = loop
        self.woken = []

    cdef int wake(self, Publication publication) except -1:
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


cdef class Waiter:
    """Who waits for consecutive records of one frame: `count` of them from the frame's record `index` on."""

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

    It is a future of its loop in all that asyncio asks of one, and a coroutine in as much as `create_task`
    asks of one. Cancelling it only stops the waiting: what was posted is sent.
    """

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
        return self.waking.loop

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
            self.waking.loop.call_soon(callback, self, context=context)
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

    # .. as it is filled in ..

    cdef int finish(self) except -1:
        self.is_done = True
        if self.callback is not None:
            self.waking.wake(self)
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
            self.waking.loop.call_exception_handler(
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


cdef Publication make_publication(Waking waking, uint32_t index, uint32_t count):
    cdef Publication publication = Publication.__new__(Publication)
    publication.waking, publication.index, publication.count = waking, index, count
    return publication


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


cdef Whole make_whole(Publication publication, uint32_t count):
    cdef Whole whole = Whole.__new__(Whole)
    whole.publication, whole.count = publication, count
    whole.forget()
    return whole
