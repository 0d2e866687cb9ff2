"""The frames of records that a client publishes, each kept until all of its records are answered.

A frame is open while records are added to it; how it lies in the ring of its buffer and what is sent is the buffer's.
Those who wait for its records are kept with it, and go with their records when it is split.
"""

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.outcomes cimport Waiter, make_receipt

cdef extern from "Python.h":
    void Py_XDECREF(PyObject* object)

cdef enum:
    FRAME_BYTES_FIRST = 512             # first capacity of an open frame

# For the tests: sizes that frames go by, in bytes.
FRAME_BYTES = {"close": FRAME_BYTES_CLOSE, "overhead": FRAME_OVERHEAD_BYTES}


cdef void frame_release(Frame* frame) noexcept:
    free(frame.records)
    Py_XDECREF(frame.waiters)
    frame.records = NULL
    frame.waiters = NULL


cdef int frame_grow(Frame* frame, uint32_t size) except -1:
    """What `frame_reserve` does when the room is not there."""
    cdef uint32_t capacity = max(frame.capacity, <uint32_t>FRAME_BYTES_FIRST)
    cdef uint8_t* grown
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
                epoch, first + (low - begin) if epoch else first if frame.form == DELAYED else 0, high - low, level,
                duplicate))
    return 0


cdef bint frame_is_answered(Frame* frame) except -1:
    """Whether as many outcomes as there are records are one for each, as far as somebody waits; tells who does."""
    cdef Waiter waiter
    cdef Py_ssize_t at
    if frame.waiters == NULL:
        return True
    for at in range(PyList_GET_SIZE(<list>frame.waiters)):
        waiter = <Waiter>PyList_GET_ITEM(<list>frame.waiters, at)
        if not waiter.is_answered():
            return False
    for at in range(PyList_GET_SIZE(<list>frame.waiters)):
        waiter = <Waiter>PyList_GET_ITEM(<list>frame.waiters, at)
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
