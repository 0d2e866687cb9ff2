# What becomes of what a client publishes, for those who wait for it.

cimport cython

from libc.stdint cimport uint32_t, uint64_t


@cython.final
cdef class Receipt:
    cdef readonly uint64_t epoch
    cdef readonly uint64_t first        # sequence of the first of them
    cdef readonly uint32_t count
    cdef readonly bint duplicate
    cdef uint32_t level_byte


@cython.final
cdef class Scheduled:
    cdef readonly object id
    cdef readonly uint64_t due_us
    cdef readonly bint duplicate


@cython.final
cdef class Waking:
    cdef object loop
    cdef list woken                     # publications whose callbacks are to be run

    cdef int wake(self, Publication publication) except -1


cdef class Waiter:
    cdef uint32_t index
    cdef uint32_t count

    cdef int answer(self, uint32_t at, uint32_t count, Receipt receipt) except -1
    cdef bint is_answered(self) except -1
    cdef int frame_done(self) except -1
    cdef int fail(self, object failure) except -1
    cdef int forget(self) except -1
    cdef Waiter cut(self, uint32_t at)


@cython.final
cdef class Publication(Waiter):
    cdef public bint _asyncio_future_blocking
    cdef Waking waking
    cdef bint is_done
    cdef bint is_cancelled
    cdef object failure
    cdef object outcome                 # a Receipt; while parts are missing, [(offset, Receipt, Part), …]
    cdef object id                      # of a message for later, whose outcome is a Scheduled
    cdef uint32_t left                  # records of parts whose frames are not answered
    cdef object callback                # the first one, which nearly always is the only one
    cdef object context
    cdef list callbacks                 # further ones, as (callback, context)

    cdef object no_outcome(self)
    cdef int finish(self) except -1
    cdef int finish_part(self, uint32_t count) except -1
    cdef int call_back(self) except -1
    cdef int run(self, object callback, object context) except -1


@cython.final
cdef class Part(Waiter):
    cdef Publication whole
    cdef uint32_t offset                # of its first record in the publication
    cdef uint32_t answered


@cython.final
cdef class Whole(Waiter):
    cdef Publication publication
    cdef list receipts                  # None for what is not answered
    cdef uint32_t left


cdef Receipt make_receipt(uint64_t epoch, uint64_t first, uint32_t count, uint32_t level, bint duplicate)
# One for `count` records of a frame from its record `index` on, which nobody has answered.
cdef Publication make_publication(Waking waking, uint32_t index, uint32_t count)
cdef Part make_part(Publication whole, uint32_t index, uint32_t offset)
cdef Whole make_whole(Publication publication, uint32_t count)
