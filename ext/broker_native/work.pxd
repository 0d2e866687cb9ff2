# What a member of a consumer reads and says: jobs over the bytes of their frame, the cursor that hands them out, and
# the settlements that leave together. Layouts: broker/wire/specification.md, JOBS, ACK and ACKED.

cimport cython

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.messages cimport Source


@cython.final
cdef class JobBatch:
    cdef readonly uint32_t subscription
    cdef readonly uint64_t first_lease  # of the frame's first job; the others follow
    cdef readonly uint64_t lease_ms     # 0: it does not end
    cdef object settle                  # of the consumer: (batch, index, count, verb, ms)
    cdef list names                     # of the subscription, by number; grows
    cdef bytes data                     # the frame's body; never changes, so the pointers below stay good
    cdef bytearray marks                # a byte a job of the frame: 1 when it was settled
    cdef readonly uint32_t begin        # the first job of the frame that is in this batch
    cdef uint32_t end                   # one past the last
    cdef const uint8_t* at              # the job at `begin`

    cdef JobBatch rest(self, uint32_t begin, const uint8_t* at)
    cdef object say(self, uint8_t verb, uint64_t ms)


@cython.final
cdef class Job:
    cdef readonly JobBatch batch        # keeps the frame's bytes alive
    cdef readonly uint32_t index        # in the frame
    cdef const uint8_t* at
    cdef bytes payload_bytes            # built on first use

    cdef const uint8_t* record(self) noexcept


@cython.final
cdef class JobCursor(Source):
    cdef object queue                   # a deque of batches
    cdef JobBatch current               # being handed out job by job
    cdef uint32_t next_index            # of the next job of it
    cdef uint32_t left                  # its jobs that were not handed out
    cdef const uint8_t* at
    cdef readonly size_t queued         # jobs that were not handed out
    cdef readonly uint64_t taken        # and those that were

    cdef object take_job(self)
    cdef object take_batch(self)


@cython.final
cdef class Run:
    cdef readonly JobBatch batch
    cdef readonly uint32_t index
    cdef readonly uint32_t count
    cdef readonly uint8_t verb
    cdef readonly uint64_t ms
    cdef readonly list covered          # of ACK_THROUGH: the batches that were received before, and end with it


@cython.final
cdef class Settlement:
    cdef readonly list runs
    cdef readonly bint answered
    cdef list failures                  # of (batch, first index, count, failure); None while there are none
    cdef list waiters

    cdef Run say(self, JobBatch batch, uint32_t index, uint32_t count, uint8_t verb, uint64_t ms)


@cython.final
cdef class Settled:
    cdef readonly Settlement settlement
    cdef JobBatch batch
    cdef uint32_t index
    cdef uint32_t count
    cdef object loop


@cython.final
cdef class Settling:
    cdef object loop
    cdef object kick
    cdef object error
    cdef readonly uint32_t subscription
    cdef readonly uint64_t said         # how often something was said
    cdef uint64_t number                # of the newest ACK
    cdef list open                      # settlements that were not sent
    cdef object in_flight               # a deque of those that were sent on this subscription, and not answered
    cdef Settlement late                # of jobs of earlier subscriptions
    cdef object received                # a deque of the newest batches, of `window` jobs at most
    cdef uint64_t received_jobs
    cdef uint64_t leases_end            # one past the newest lease of this subscription: leases rise
    cdef uint32_t window

    cdef const uint8_t* check_job(self, const uint8_t* at, const uint8_t* end, list names) except NULL
    cdef Settlement place(self, JobBatch batch)
    cdef list cover(self, JobBatch batch, uint32_t index)
    cdef bytes frame(self, list runs)
