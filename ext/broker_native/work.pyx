"""What a member of a consumer reads and says: jobs, and what becomes of them.

A JOBS frame is one `JobBatch`, which owns its bytes; all of it is checked before the batch exists, so everything behind
trusts it. A `Job` is a pointer into those bytes, made when it is asked for, and its payload becomes an object on first
use. What is said of jobs gathers in a `Settlement`: neighbours of one verb become one run, and everything that was said
in a turn leaves as one ACK. `Settled` is what the application may wait for.

Settlements keep the batches of what they say until they are answered. So when a connection is lost, what was said on it
can be said again by positions, though its leases are void.

All of it belongs to one loop's thread, or to whichever thread has the lock of its bus. Errors are built by the `error`
that `Settling` is given, since nothing here imports the package above.
"""

cimport cython
from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from broker_native.layout cimport *
from broker_native.messages cimport (
    BatchStream,
    MessageStream,
    Source,
    make_position,
    record_expiry,
    record_headers,
    record_id,
    record_is_valid,
    record_key,
    record_payload,
    record_priority,
    record_publisher,
)

cdef extern from *:
    """
    #define DEFAULT_MS 0xFFFFFFFFFFFFFFFFULL
    """
    const uint64_t DEFAULT_MS           # of a nack: by the consumer's back-off

cdef enum:
    ACK = 1
    NACK = 2
    REJECT = 3
    EXTEND = 4
    ACK_THROUGH = 5

    JOB_CHANNEL = 4                     # offsets within a job
    JOB_EPOCH = 8
    JOB_SEQUENCE = 16
    JOB_TIME = 24
    JOB_ATTEMPT = 32
    JOB_FLAGS = 34
    JOB_NAME_LENGTH = 35
    JOB_RESERVED = 36
    JOB_FLAGS_KNOWN = 3

    RUNS_MAX = 2048                     # entries of one ACK: 48 KiB, which every server takes


cdef uint64_t delay_ms(delay_s, uint64_t default) except? 0:
    """A delay of the application in milliseconds, rounded up: what is not 0 must not become it."""
    cdef double value
    if delay_s is None:
        return default
    value = delay_s
    # Written so that it fails for what is no number as well.
    if not 0 <= value <= 1e12:
        raise ValueError(f"delay: got {delay_s} s, expected 0 to 10^12 s")
    return <uint64_t>(value * 1000 + 0.999999)


# -- batches and jobs --------------------------------------------------------------------------------------------------


@cython.final
cdef class JobBatch:
    """Jobs that came together, in order. Iterating makes a `Job` for each.

    What is said of the batch is said of each of its jobs of which nothing was said yet.
    """

    def __len__(self):
        return self.end - self.begin

    def __iter__(self):
        cdef JobIterator iterator = JobIterator.__new__(JobIterator)
        iterator.batch = self
        iterator.at = self.at
        iterator.index = self.begin
        return iterator

    def __repr__(self):
        return f"<JobBatch of {len(self)} jobs, leases from {self.first_lease + self.begin}>"

    @property
    def size_bytes(self):
        """Bytes of the frame that brought it."""
        return len(self.data)

    def payloads(self):
        """The payloads of all jobs, in order, without making the jobs."""
        cdef list found = []
        cdef const uint8_t* at = self.at
        cdef uint32_t _
        for _ in range(self.begin, self.end):
            found.append(record_payload(at + JOB_HEADER_BYTES + at[JOB_NAME_LENGTH]))
            at += load_u32(at)
        return found

    def places(self, uint32_t index, uint32_t count):
        """Where jobs come from, as runs of (channel, epoch, first sequence, how many).

        Args:
            index: Of the first job, in the frame.
            count: How many; they are in the frame.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(self.data) + JOBS_HEADER_BYTES
        cdef list runs = []
        cdef uint64_t epoch = 0, first = 0, length = 0
        cdef uint32_t channel = 0, _
        for _ in range(index):
            at += load_u32(at)
        for _ in range(count):
            if length and load_u32(at + JOB_CHANNEL) == channel and load_u64(at + JOB_EPOCH) == epoch and (
                    load_u64(at + JOB_SEQUENCE) == first + length):
                length += 1
            else:
                if length:
                    runs.append((self.names[channel], epoch, first, length))
                channel, epoch = load_u32(at + JOB_CHANNEL), load_u64(at + JOB_EPOCH)
                first, length = load_u64(at + JOB_SEQUENCE), 1
            at += load_u32(at)
        if length:
            runs.append((self.names[channel], epoch, first, length))
        return runs

    def ack(self):
        """Say that they are done.

        Returns:
            What can be waited for: that it is committed. Nobody has to.
        """
        return self.say(ACK, 0)

    def nack(self, delay_s=None):
        """Say that they failed, and are to come again, as `Job.nack` does."""
        return self.say(NACK, delay_ms(delay_s, DEFAULT_MS))

    def reject(self):
        """Say that they will never succeed, as `Job.reject` does."""
        return self.say(REJECT, 0)

    def extend(self, seconds=None):
        """Say that they take longer, as `Job.extend` does."""
        return self.say(EXTEND, delay_ms(seconds, 0))

    cdef object say(self, uint8_t verb, uint64_t ms):
        cdef uint32_t count = self.end - self.begin
        if count == 1 and self.marks[self.begin]:
            # Of several, those of which something was said are passed over; so is one, though nothing is left then.
            count = 0
        return self.settle(self, self.begin, count, verb, ms)

    cdef JobBatch rest(self, uint32_t begin, const uint8_t* at):
        cdef JobBatch batch = JobBatch.__new__(JobBatch)
        batch.subscription, batch.first_lease, batch.lease_ms = self.subscription, self.first_lease, self.lease_ms
        batch.settle, batch.names, batch.data, batch.marks = self.settle, self.names, self.data, self.marks
        batch.begin, batch.end, batch.at = begin, self.end, at
        return batch


@cython.final
cdef class JobIterator:
    cdef JobBatch batch
    cdef const uint8_t* at
    cdef uint32_t index

    def __iter__(self):
        return self

    def __next__(self):
        cdef Job job
        if self.index == self.batch.end:
            raise StopIteration
        job = make_job(self.batch, self.index, self.at)
        self.index += 1
        self.at += load_u32(self.at)
        return job


cdef Job make_job(JobBatch batch, uint32_t index, const uint8_t* at):
    cdef Job job = Job.__new__(Job)
    job.batch = batch
    job.index = index
    job.at = at
    return job


@cython.final
@cython.freelist(1024)
cdef class Job:
    """A message on its way to a member: it is to be settled once, with `ack`, `nack` or `reject`.

    What is said leaves with everything that is said in the same turn. It is said when the call returns; what is
    returned can be waited for, which ends when it is committed, and raises what was refused.
    """

    def __repr__(self):
        return (f"<Job {self.channel!r} {self.sequence} of epoch {self.epoch}, attempt {self.attempt}: "
                f"{len(self.payload)} bytes>")

    cdef const uint8_t* record(self) noexcept:
        return self.at + JOB_HEADER_BYTES + self.at[JOB_NAME_LENGTH]

    @property
    def channel(self):
        """The channel's name."""
        return self.batch.names[load_u32(self.at + JOB_CHANNEL)]

    @property
    def epoch(self):
        """The epoch in which the sequence was assigned."""
        return load_u64(self.at + JOB_EPOCH)

    @property
    def sequence(self):
        """The message's sequence in its channel."""
        return load_u64(self.at + JOB_SEQUENCE)

    @property
    def position(self):
        """The message's position."""
        return make_position(self.epoch, self.sequence)

    @property
    def time(self):
        """Broker time at which the message was taken, in microseconds since 1970-01-01 UTC."""
        return load_u64(self.at + JOB_TIME)

    @property
    def attempt(self):
        """How often it was given out, this time included: 1 is the first."""
        return load_u16(self.at + JOB_ATTEMPT)

    @property
    def redelivered(self):
        """Whether somebody may have had it before."""
        return self.at[JOB_FLAGS] & JOB_FLAG_REDELIVERED != 0

    @property
    def lease(self):
        """The number of the lease: what an ACK names."""
        return self.batch.first_lease + self.index

    @property
    def settled(self):
        """Whether it was settled here."""
        return self.batch.marks[self.index] != 0

    @property
    def payload(self):
        """The payload's bytes."""
        if self.payload_bytes is None:
            self.payload_bytes = record_payload(self.record())
        return self.payload_bytes

    @property
    def headers(self):
        """The headers as a new dict, decoded on each use; empty when there are none.

        Raises:
            ValueError: The publisher sent something that is no msgpack map.
        """
        return record_headers(self.record())

    @property
    def key(self):
        """The key's bytes, or None."""
        return record_key(self.record())

    @property
    def publisher(self):
        """The authenticated publisher's name, or None."""
        return record_publisher(self.record())

    @property
    def priority(self):
        """0 critical, 1 high, 2 normal, 3 low."""
        return record_priority(self.record())

    @property
    def id(self):
        """The bytes of the message's id, or None."""
        return record_id(self.record())

    @property
    def expiry_s(self):
        """Seconds after `time` at which it is no longer delivered, or None."""
        return record_expiry(self.record())

    def ack(self):
        """Say that it is done.

        Returns:
            What can be waited for: that it is committed. Nobody has to.

        Raises:
            RequestError: LEASE_UNKNOWN; it was settled before.
        """
        return self.batch.settle(self.batch, self.index, 1, ACK, 0)

    def nack(self, delay_s=None):
        """Say that it failed, and is to come again.

        Args:
            delay_s: When, seconds from now; None leaves it to the consumer's back-off.

        Raises:
            RequestError: As for `ack`.
        """
        return self.batch.settle(self.batch, self.index, 1, NACK, delay_ms(delay_s, DEFAULT_MS))

    def reject(self):
        """Say that it will never succeed: it goes to the consumer's dead letters, if it has any, and is done.

        Raises:
            RequestError: As for `ack`.
        """
        return self.batch.settle(self.batch, self.index, 1, REJECT, 0)

    def extend(self, seconds=None):
        """Say that it takes longer.

        Args:
            seconds: How long from now; None for as long as a lease is.

        Raises:
            RequestError: As for `ack`.
        """
        return self.batch.settle(self.batch, self.index, 1, EXTEND, delay_ms(seconds, 0))


# -- the cursor --------------------------------------------------------------------------------------------------------


@cython.final
cdef class JobCursor(Source):
    """The jobs that a member has received and its application has not taken, in order.

    In as many tasks as one likes: each job is handed out once.

    Args:
        loop: As for `Source`.
    """

    def __cinit__(self, loop):
        self.queue = deque()

    def push(self, JobBatch batch not None):
        """Take a batch that arrived; it is not empty."""
        self.queued += len(batch)
        self.queue.append(batch)
        if self.waiters:
            self.wake()

    def clear(self):
        """Drop what was not handed out: nobody here has it any more."""
        self.queue.clear()
        self.current = None
        self.left = 0
        self.queued = 0

    def waiting(self):
        """What was not handed out, as (batch, first index, how many)."""
        cdef JobBatch batch
        cdef list found = []
        if self.left:
            found.append((self.current, self.next_index, self.left))
        for each in self.queue:
            batch = each
            found.append((batch, batch.begin, batch.end - batch.begin))
        return found

    def end(self, failure=None):
        """No job follows, and what is queued is nobody's: readers get the end of the iteration, or `failure`."""
        if self.ended:
            return
        self.ended = True
        self.failure = failure
        self.clear()
        self.wake()

    def jobs(self):
        """An asynchronous iterator over jobs."""
        return MessageStream.__new__(MessageStream, self)

    def batches(self):
        """An asynchronous iterator over batches."""
        return BatchStream.__new__(BatchStream, self)

    cdef object take_job(self):
        cdef Job job
        if not self.left:
            if not self.queue:
                self.current = None
                return None
            self.current = self.queue.popleft()
            self.left = self.current.end - self.current.begin
            self.next_index = self.current.begin
            self.at = self.current.at
        job = make_job(self.current, self.next_index, self.at)
        self.next_index += 1
        self.left -= 1
        self.queued -= 1
        self.at += load_u32(self.at)
        return job

    cdef object take_batch(self):
        cdef JobBatch batch
        if self.left:
            # Job by job until now: hand out the rest of it.
            batch = self.current.rest(self.next_index, self.at)
            self.left = 0
        elif self.queue:
            batch = self.queue.popleft()
        else:
            return None
        self.queued -= batch.end - batch.begin
        return batch

    cdef object take(self, bint whole):
        cdef object found = self.take_batch() if whole else self.take_job()
        cdef uint32_t taken
        if found is not None:
            taken = (<JobBatch>found).end - (<JobBatch>found).begin if whole else 1
            self.taken += taken
            self.turn_left -= min(self.turn_left, taken)
        return found

    cdef bint is_ready(self):
        return self.turn_left and self.queued


# -- what is said ------------------------------------------------------------------------------------------------------


@cython.final
cdef class Run:
    """What was said of consecutive jobs of one frame."""

    def places(self):
        """The places of what an acknowledgement says is done, as `JobBatch.places` has them."""
        cdef list found = []
        cdef JobBatch batch
        if self.covered is not None:
            for each in self.covered:
                batch = each
                found += batch.places(batch.begin, batch.end - batch.begin)
        return found + self.batch.places(self.index, self.count)


@cython.final
cdef class Settlement:
    """What was said together: one ACK, or what is said again by positions when its connection was lost."""

    def __cinit__(self):
        self.runs = []
        self.waiters = []

    cdef Run say(self, JobBatch batch, uint32_t index, uint32_t count, uint8_t verb, uint64_t ms):
        cdef Run run
        if self.runs:
            run = self.runs[len(self.runs) - 1]
            # Each ACK_THROUGH covers what was before it, and stays a run of its own.
            if run.batch.marks is batch.marks and run.verb == verb and run.ms == ms and verb != ACK_THROUGH and (
                    run.index + run.count == index):
                run.count += count
                return run
        run = Run.__new__(Run)
        run.batch, run.index, run.count, run.verb, run.ms = batch, index, count, verb, ms
        self.runs.append(run)
        return run

    def refuse(self, JobBatch batch not None, uint32_t index, uint32_t count, failure):
        """Say why a part of it does not hold; before `answer`."""
        if self.failures is None:
            self.failures = []
        self.failures.append((batch, index, count, failure))

    def answer(self):
        """It is settled and committed: wake who waits for it."""
        cdef list waiters = self.waiters
        self.answered = True
        self.waiters = []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


@cython.final
cdef class Settled:
    """What became of something that was said of jobs; `await` it to know that it is committed.

    It raises what was refused: LEASE_UNKNOWN, LEASE_EXPIRED, COMMIT_UNKNOWN. One may wait at any time, give up waiting,
    or never wait.
    """

    def done(self):
        """Whether it is answered."""
        return self.settlement.answered

    def exception(self):
        """Why it, or a part of it, does not hold; None when it does, or is not answered yet."""
        if not self.settlement.answered or self.settlement.failures is None:
            return None
        for batch, index, count, failure in self.settlement.failures:
            # The same frame, and a part of it that both name.
            if (<JobBatch>batch).marks is self.batch.marks and index < self.index + self.count and (
                    self.index < index + count):
                return failure
        return None

    def add_waiter(self, waiter not None):
        """Keep a waiter, with `done` and `set_result` like a future, that is woken by the answer."""
        if self.settlement.answered:
            waiter.set_result(None)
        else:
            self.settlement.waiters.append(waiter)

    def __await__(self):
        if not self.settlement.answered:
            waiter = self.loop.create_future()
            self.settlement.waiters.append(waiter)
            yield from waiter
        failure = self.exception()
        if failure is not None:
            raise failure


@cython.final
cdef class Settling:
    """What a member says of its jobs, from when it is said until it is answered.

    Args:
        loop: Of those who wait; None when they are threads.
        kick: Called when there is something to send: `take` is to be called soon.
        error: Builds an error of a registry name and a detail.
        window: Jobs that may be under way to this member.
    """

    def __cinit__(self, loop, kick, error, uint32_t window):
        self.loop = loop
        self.kick = kick
        self.error = error
        self.window = window
        self.open = []
        self.in_flight = deque()
        self.received = deque()

    def begin(self, uint32_t subscription):
        """The member has a new subscription, or none (0): jobs of another one are settled by their positions.

        Returns:
            What was said of them and not answered, to be said again.
        """
        cdef list unanswered = list(self.in_flight) + self.open
        self.subscription = subscription
        self.number = 0
        self.open = []
        self.in_flight.clear()
        self.received.clear()
        self.received_jobs = 0
        self.leases_end = 0
        return unanswered

    def receive(self, bytes body not None, list names not None, settle not None):
        """Check a JOBS frame of the subscription and make a batch of it.

        Args:
            body: Of the frame; kept.
            names: The channels that the subscription was told so far, by number; added to.
            settle: What the batch calls when something is said of its jobs, usually `say`.

        Raises:
            MalformedFrame: It is no such frame.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef const uint8_t* end = at + len(body)
        cdef JobBatch batch = JobBatch.__new__(JobBatch)
        cdef uint32_t _, count
        if len(body) < JOBS_HEADER_BYTES or load_u64(at + 24):
            raise self.error("MALFORMED_FRAME", "JOBS: a bad header")
        batch.subscription, count = load_u32(at), load_u32(at + 4)
        batch.first_lease, batch.lease_ms = load_u64(at + 8), load_u64(at + 16)
        at += JOBS_HEADER_BYTES
        if batch.first_lease < self.leases_end or batch.first_lease + count < count:
            detail = f"JOBS: lease {batch.first_lease}, expected {self.leases_end} or a later"
            raise self.error("MALFORMED_FRAME", detail)
        # No job is smaller than its header, so what is allocated below is bounded by what has come.
        if count == 0 or count > <size_t>(end - at) // (JOB_HEADER_BYTES + RECORD_HEADER_BYTES):
            raise self.error("MALFORMED_FRAME", f"JOBS: {count} jobs in {len(body)} bytes")
        batch.data, batch.names, batch.settle = body, names, settle
        batch.marks = bytearray(count)
        batch.end, batch.at = count, at
        for _ in range(count):
            at = self.check_job(at, end, names)
        if at != end:
            raise self.error("MALFORMED_FRAME", "JOBS: bytes behind the last job")
        self.leases_end = batch.first_lease + count
        self.received.append(batch)
        self.received_jobs += count
        while self.received_jobs - (<JobBatch>self.received[0]).end >= self.window:
            # More than may be under way: the oldest are settled, or their leases are over.
            self.received_jobs -= (<JobBatch>self.received.popleft()).end
        return batch

    cdef const uint8_t* check_job(self, const uint8_t* at, const uint8_t* end, list names) except NULL:
        """Check one job, and keep the name that it tells; returns where it ends."""
        cdef uint32_t size, record_size
        cdef uint8_t flags, length
        cdef const uint8_t* record
        if end - at < JOB_HEADER_BYTES + RECORD_HEADER_BYTES:
            raise self.error("MALFORMED_FRAME", "JOBS: a job is cut short")
        size, flags, length = load_u32(at), at[JOB_FLAGS], at[JOB_NAME_LENGTH]
        if size > end - at or size < <uint32_t>JOB_HEADER_BYTES + RECORD_HEADER_BYTES + length or (
                flags & ~JOB_FLAGS_KNOWN or load_u32(at + JOB_RESERVED) or not load_u16(at + JOB_ATTEMPT)):
            raise self.error("MALFORMED_FRAME", "JOBS: a job's header is not as drawn")
        record = at + JOB_HEADER_BYTES + length
        record_size = load_u32(record)
        if record_size != <uint32_t>(at + size - record) or load_u16(record + 6) or (
                load_u16(record + 4) & RECORD_GONE or not record_is_valid(record, record_size)):
            raise self.error("MALFORMED_FRAME", "JOBS: a job's record does not fit it")
        if flags & JOB_FLAG_NAME:
            if load_u32(at + JOB_CHANNEL) != <size_t>len(names) or not length:
                raise self.error("MALFORMED_FRAME", "JOBS: a channel is named out of turn")
            try:
                names.append(PyBytes_FromStringAndSize(<const char*>at + JOB_HEADER_BYTES, length).decode("ascii"))
            except UnicodeDecodeError:
                raise self.error("MALFORMED_FRAME", "JOBS: a channel's name is not ASCII") from None
        elif length or load_u32(at + JOB_CHANNEL) >= <size_t>len(names):
            raise self.error("MALFORMED_FRAME", f"JOBS: channel {load_u32(at + JOB_CHANNEL)} was never named")
        return at + size

    def say(self, JobBatch batch not None, uint32_t index, uint32_t count, uint8_t verb, uint64_t ms):
        """Say something of consecutive jobs of a batch; what was settled before is passed over if there are several.

        Returns:
            A `Settled`.

        Raises:
            RequestError: LEASE_UNKNOWN; the one job was settled before.
        """
        cdef Settled settled = Settled.__new__(Settled)
        cdef Settlement settlement
        cdef uint32_t at = index, run
        settled.batch, settled.index, settled.count, settled.loop = batch, index, count, self.loop
        if count == 1 and batch.marks[index]:
            raise self.error("LEASE_UNKNOWN", f"job {batch.first_lease + index}: was settled before")
        settlement = settled.settlement = self.place(batch)
        self.said += 1
        while at < index + count:
            if batch.marks[at]:
                at += 1
                continue
            run = at + 1
            while run < index + count and not batch.marks[run]:
                run += 1
            settlement.say(batch, at, run - at, verb, ms)
            if verb != EXTEND:
                memset(<char*>batch.marks + at, 1, run - at)
            at = run
        return settled

    def through(self, Job job not None):
        """Say that a job is done, and everything that this subscription was given before it.

        Returns:
            A `Settled`.
        """
        cdef Settled settled = Settled.__new__(Settled)
        cdef Settlement settlement
        cdef Run run
        settled.batch, settled.index, settled.count, settled.loop = job.batch, job.index, 1, self.loop
        settlement = settled.settlement = self.place(job.batch)
        self.said += 1
        run = settlement.say(job.batch, job.index, 1, ACK_THROUGH, 0)
        run.covered = self.cover(job.batch, job.index)
        return settled

    cdef list cover(self, JobBatch batch, uint32_t index):
        """The batches before a job, and its own up to it; they are settled."""
        cdef list covered = []
        cdef JobBatch before
        # What came on an earlier subscription and was not settled is no longer known, but for the job's own frame.
        while batch.subscription == self.subscription and self.received:
            before = self.received[0]
            if before.first_lease >= batch.first_lease:
                break
            memset(<char*>before.marks, 1, before.end)
            covered.append(before)
            self.received_jobs -= before.end
            self.received.popleft()
        if index:
            before = batch.rest(0, <const uint8_t*>PyBytes_AS_STRING(batch.data) + JOBS_HEADER_BYTES)
            before.end = index
            covered.append(before)
        memset(<char*>batch.marks, 1, index + 1)
        return covered

    cdef Settlement place(self, JobBatch batch):
        """The settlement in which something is said of a batch's jobs."""
        cdef Settlement last
        if batch.subscription != self.subscription:
            if self.late is None:
                self.late = Settlement.__new__(Settlement)
                self.kick()
            return self.late
        if self.open:
            last = self.open[len(self.open) - 1]
            if len(last.runs) < RUNS_MAX:
                return last
        else:
            self.kick()
        last = Settlement.__new__(Settlement)
        self.open.append(last)
        return last

    @property
    def unanswered(self):
        """Whether anything that was said is not answered."""
        return bool(self.open or self.in_flight or self.late is not None)

    @property
    def awaited(self):
        """Whether anything that was sent is not answered."""
        return len(<object>self.in_flight) > 0

    def take(self):
        """Take what was said since the last call, as the frames of its ACKs; None when there is nothing."""
        cdef Settlement settlement
        cdef list frames
        if not self.open:
            return None
        frames = []
        for each in self.open:
            settlement = each
            if settlement.runs:
                self.number += 1
                self.in_flight.append(settlement)
                frames.append(self.frame(settlement.runs))
            else:
                # All of it was settled before.
                settlement.answer()
        self.open = []
        return b"".join(frames) if frames else None

    def take_late(self):
        """Take what was said of jobs of earlier subscriptions; None when there is nothing."""
        cdef Settlement late = self.late
        self.late = None
        return late

    cdef bytes frame(self, list runs):
        """An ACK of these runs, under the newest number; those whose leases follow one another become one entry."""
        cdef bytes made = PyBytes_FromStringAndSize(
            NULL, FRAME_HEADER_BYTES + ACK_HEADER_BYTES + len(runs) * ACK_ENTRY_BYTES)
        cdef uint8_t* base = <uint8_t*>PyBytes_AS_STRING(made)
        cdef uint8_t* at = base + FRAME_HEADER_BYTES + ACK_HEADER_BYTES
        cdef uint64_t lease
        cdef uint32_t entries = 0
        cdef Run run, last = None
        for each in runs:
            run = each
            lease = run.batch.first_lease + run.index
            if last is not None and run.verb == last.verb and run.ms == last.ms and run.verb != ACK_THROUGH and (
                    load_u64(at - ACK_ENTRY_BYTES) + load_u32(at - ACK_ENTRY_BYTES + 8) == lease):
                store_u32(at - ACK_ENTRY_BYTES + 8, load_u32(at - ACK_ENTRY_BYTES + 8) + run.count)
            else:
                store_u64(at, lease)
                store_u32(at + 8, run.count)
                store_u32(at + 12, run.verb)
                store_u64(at + 16, run.ms)
                at += ACK_ENTRY_BYTES
                entries += 1
            last = run
        store_u32(base, <uint32_t>(at - base - FRAME_HEADER_BYTES))
        store_u32(base + 4, KIND_ACK)
        store_u32(base + FRAME_HEADER_BYTES, self.subscription)
        store_u32(base + FRAME_HEADER_BYTES + 4, entries)
        store_u64(base + FRAME_HEADER_BYTES + 8, self.number)
        return made[:at - base]

    def frame_of(self, list jobs not None):
        """An ACK of some jobs of this subscription, to be sent by the caller behind what was taken before.

        Returns:
            The frame, and the settlement that its answer settles.

        Raises:
            RequestError: LEASE_UNKNOWN; one was settled before. LEASE_EXPIRED; one is of an earlier subscription.
        """
        cdef Settlement settlement = Settlement.__new__(Settlement)
        cdef Job job
        for each in jobs:
            job = each
            if job.batch.marks[job.index]:
                raise self.error("LEASE_UNKNOWN", f"job {job.lease}: was settled before")
            if job.batch.subscription != self.subscription:
                raise self.error("LEASE_EXPIRED", f"job {job.lease}: the connection was lost since it came")
        for each in jobs:
            job = each
            settlement.say(job.batch, job.index, 1, ACK, 0)
            job.batch.marks[job.index] = 1
        self.number += 1
        self.in_flight.append(settlement)
        return self.frame(settlement.runs), settlement

    def on_acked(self, bytes body not None):
        """Take an ACKED: everything up to its number is settled.

        Raises:
            MalformedFrame: It is none, or of a number that was not sent.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef uint64_t _, first = self.number - <size_t>len(self.in_flight) + 1
        cdef Settlement settlement
        if len(body) != ACKED_BYTES or load_u32(at + 4) or load_u64(at + 8) > self.number:
            raise self.error("MALFORMED_FRAME", f"ACKED: got {len(body)} bytes that are none")
        for _ in range(first, load_u64(at + 8) + 1):
            settlement = self.in_flight.popleft()
            settlement.answer()

    def refuse(self, uint64_t number, uint64_t lease, uint64_t leases, failure):
        """Take an ERROR of an ACK: so many of its leases, from one on, were refused; 0 leases: all of it.

        Returns:
            Where those jobs come from, as `JobBatch.places` has them.
        """
        cdef uint64_t first = self.number - <size_t>len(self.in_flight) + 1
        cdef Settlement settlement
        cdef Run run
        cdef uint64_t begin, low, high
        cdef list places = []
        if not first <= number <= self.number:
            return places
        settlement = self.in_flight[number - first]
        for each in settlement.runs:
            run = each
            begin = run.batch.first_lease + run.index
            low, high = begin, begin + run.count
            if leases:
                low, high = max(low, lease), min(high, lease + leases)
            if low < high:
                settlement.refuse(run.batch, <uint32_t>(low - run.batch.first_lease), <uint32_t>(high - low), failure)
                places += run.batch.places(<uint32_t>(low - run.batch.first_lease), <uint32_t>(high - low))
        return places
