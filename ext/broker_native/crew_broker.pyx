"""The broker's own protocol as a member of a consumer speaks it: broker/wire/specification.md, section 18.

JOBS frames are taken whole. All leases of one are acknowledged by one ACK with one entry as soon as each of its jobs
has been checked; the window opens again when the server has taken that, and ACKED follows when it is committed. With
transactions each job is acknowledged by one of its own.

It must not decode control bodies: what the broker says in an ERROR is handed back whole.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.crew cimport Roll, crew_of, member_acks, member_answered, member_of, roll_let_go, roll_take
from broker_native.crew_transactions cimport transactions_answered, transactions_begin
from broker_native.driver_broker cimport connection_pong, frame_header_write, record_fields_bytes
from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_ERROR, FAILURE_GOING_AWAY, FAILURE_NONE, FAILURE_PROTOCOL, Load, connection_flush,
    connection_reserve, load_fail, load_fail_body)
from broker_native.histogram cimport Histogram
from broker_native.layout cimport (
    ACKED_BYTES, ACK_ENTRY_BYTES, ACK_HEADER_BYTES, FRAME_HEADER_BYTES, JOBS_HEADER_BYTES, JOB_FLAG_NAME,
    JOB_HEADER_BYTES, KIND_ACK, KIND_ACKED, KIND_ERROR, KIND_EVENT, KIND_GOING_AWAY, KIND_JOBS, KIND_PING, KIND_PONG,
    KIND_PUBLISHED, RECORD_FLAGS_KNOWN, RECORD_GONE, RECORD_HEADER_BYTES, load_u16, load_u32, load_u64, store_u32,
    store_u64)

cdef enum:
    SUBSCRIPTION = 1               # the number of a member's only subscription
    VERB_ACK = 1
    JOB_FLAGS_AT = 34
    JOB_NAME_BYTES_AT = 35


cdef void acknowledge(Load* load, Connection* connection, uint64_t lease, uint32_t leases,
                      uint64_t now_ns) noexcept nogil:
    """Send an ACK of consecutive leases."""
    cdef uint8_t* frame = connection_reserve(load, connection,
                                             FRAME_HEADER_BYTES + ACK_HEADER_BYTES + ACK_ENTRY_BYTES)
    if frame == NULL:
        return
    member_acks(load, connection, leases, now_ns)
    frame_header_write(frame, ACK_HEADER_BYTES + ACK_ENTRY_BYTES, KIND_ACK)
    store_u32(frame + 8, SUBSCRIPTION)
    store_u32(frame + 12, 1)
    store_u64(frame + 16, member_of(load, connection).number)
    store_u64(frame + 24, lease)
    store_u32(frame + 32, leases)
    store_u32(frame + 36, VERB_ACK)
    store_u64(frame + 40, 0)


cdef bint job_take(Roll* roll, const uint8_t* job, uint32_t size) noexcept nogil:
    """Check a job whose size is whole. False when its parts are not legal."""
    cdef uint32_t at = JOB_HEADER_BYTES, flags, record_bytes, begin
    if job[JOB_FLAGS_AT] & JOB_FLAG_NAME:
        at += job[JOB_NAME_BYTES_AT]
    if size < at + RECORD_HEADER_BYTES:
        return False
    record_bytes = load_u32(job + at)
    flags = load_u16(job + at + 4)
    if record_bytes != size - at or flags & ~<uint32_t>RECORD_FLAGS_KNOWN or flags & RECORD_GONE:
        return False
    begin = record_fields_bytes(job + at, record_bytes)
    if begin > record_bytes:
        return False
    roll_take(roll, job + at + begin, record_bytes - begin)
    return True


cdef void jobs_let_go(Roll* roll, const uint8_t* body, uint32_t size) noexcept nogil:
    """The jobs of a frame that has been checked are acknowledged: their keys may go on."""
    cdef uint32_t at = JOBS_HEADER_BYTES, job_bytes
    while at < size:
        job_bytes = load_u32(body + at)
        at += job_bytes
        if job_bytes > roll.payload_bytes:
            roll_let_go(roll, body + at - roll.payload_bytes)      # a payload stands at the end of its job


cdef void take_jobs(Load* load, Connection* connection, const uint8_t* body, uint32_t size,
                    uint64_t now_ns) noexcept nogil:
    """Check the jobs of a frame, and acknowledge all of them."""
    cdef Roll* roll = &crew_of(load).roll
    cdef uint32_t at = JOBS_HEADER_BYTES, count = 0, job_bytes
    if size < JOBS_HEADER_BYTES or load_u32(body) != SUBSCRIPTION or load_u64(body + 24) != 0:
        load_fail(load, connection, FAILURE_PROTOCOL, b"JOBS: its fields are not legal")
        return
    while size - at >= JOB_HEADER_BYTES:
        job_bytes = load_u32(body + at)
        if job_bytes < JOB_HEADER_BYTES or job_bytes > size - at or not job_take(roll, body + at, job_bytes):
            break
        at += job_bytes
        count += 1
    if at != size or count != load_u32(body + 4) or count == 0:
        load_fail(load, connection, FAILURE_PROTOCOL, b"JOBS: a job is not legal, or there are not as many as it says")
        return
    if roll.keys:
        jobs_let_go(roll, body, size)
    if crew_of(load).publishes:
        transactions_begin(load, connection, load_u64(body + 8), count, now_ns)
    else:
        acknowledge(load, connection, load_u64(body + 8), count, now_ns)


cdef size_t take_frame(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                       Histogram latency) noexcept nogil:
    """Take one frame. Returns the bytes taken, 0 while more must come."""
    cdef uint32_t body_bytes
    cdef uint8_t kind
    cdef const uint8_t* body = data + FRAME_HEADER_BYTES
    if size < FRAME_HEADER_BYTES:
        return 0
    body_bytes = load_u32(data)
    kind = data[4]
    if body_bytes > load.frame_bytes_max:
        load_fail(load, connection, FAILURE_PROTOCOL, b"a frame is larger than WELCOME allows")
        return 0
    if size < FRAME_HEADER_BYTES + <size_t>body_bytes:
        return 0
    if kind == KIND_JOBS:
        take_jobs(load, connection, body, body_bytes, now_ns)
    elif kind == KIND_ACKED and body_bytes == ACKED_BYTES and load_u32(body) == SUBSCRIPTION:
        member_answered(load, connection, load_u64(body + 8), now_ns, latency)
    elif kind == KIND_PUBLISHED and crew_of(load).publishes:
        transactions_answered(load, connection, body, body_bytes, now_ns, latency)
    elif kind == KIND_PING and body_bytes == 8:
        connection_pong(load, connection, body)
    elif kind == KIND_ERROR:
        load_fail_body(load, connection, FAILURE_ERROR, body, body_bytes)
    elif kind == KIND_GOING_AWAY:
        load_fail_body(load, connection, FAILURE_GOING_AWAY, body, body_bytes)
    elif kind == KIND_EVENT:
        load.events += 1
    elif kind != KIND_PONG:
        load_fail(load, connection, FAILURE_PROTOCOL, b"a frame that does not belong here")
    return FRAME_HEADER_BYTES + <size_t>body_bytes


cdef size_t take_frames(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                        Histogram latency) noexcept nogil:
    cdef size_t at = 0, taken
    while load.failure == FAILURE_NONE:
        taken = take_frame(load, connection, data + at, size - at, now_ns, latency)
        if taken == 0:
            break
        at += taken
    if connection.out_end and load.failure == FAILURE_NONE:
        connection_flush(load, connection)
    return at


cdef Dialect dialect
dialect.write = NULL
dialect.take = take_frames
dialect.assure = NULL
dialect.answered = True


cdef const Dialect* broker_crew() noexcept nogil:
    return &dialect


VERB = VERB_ACK
"""What a member says of each job."""
