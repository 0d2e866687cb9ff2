"""A member of a consumer that answers each job with a transaction: so many publishes, and the job's acknowledgement.

Its publishes go to as many channels as there are of them, one to each, with stamps of which the counter is that of the
member's transactions, from 0: whoever reads the channels knows of each transaction whether all of it is there. So many
transactions wait for their answers at once; jobs that come meanwhile wait for room. Nothing tells of a transaction's
acknowledgements but the answers to its publishes.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.crew cimport UNANSWERED_MAX, Member, crew_of, member_acks, member_answered, member_of
from broker_native.driver_broker cimport frame_header_write
from broker_native.driver_load cimport (
    Connection, FAILURE_NONE, FAILURE_PROTOCOL, Load, connection_reserve, load_fail, payload_write)
from broker_native.histogram cimport Histogram
from broker_native.layout cimport (
    ACK_ENTRY_BYTES, ACK_HEADER_BYTES, FRAME_HEADER_BYTES, KIND_ACK, KIND_PUBLISH, KIND_TRANSACTION,
    PUBLISHED_ENTRY_BYTES, PUBLISHED_FLAG_DUPLICATE, PUBLISH_HEADER_BYTES, RECORD_HEADER_BYTES,
    TRANSACTION_HEADER_BYTES, load_u32, load_u64, store_u32, store_u64)

cdef enum:
    SUBSCRIPTION = 1               # the number of a member's only subscription
    VERB_ACK = 1
    ACK_BYTES = FRAME_HEADER_BYTES + ACK_HEADER_BYTES + ACK_ENTRY_BYTES


cdef void write_transaction(Load* load, Connection* connection, uint64_t lease, uint64_t now_ns) noexcept nogil:
    """Write the member's next transaction, which acknowledges one lease."""
    cdef Member* member = member_of(load, connection)
    cdef uint32_t publishes = crew_of(load).publishes
    cdef uint32_t index = <uint32_t>(connection - load.connections)
    cdef uint32_t record_bytes = RECORD_HEADER_BYTES + load.payload_bytes, channel
    cdef uint32_t publish_bytes = FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + record_bytes
    cdef uint32_t size = TRANSACTION_HEADER_BYTES + publishes * publish_bytes + ACK_BYTES
    cdef uint64_t counter = member.number
    cdef uint8_t* at = connection_reserve(load, connection, FRAME_HEADER_BYTES + size)
    if at == NULL:
        return
    member_acks(load, connection, 1, now_ns)
    frame_header_write(at, size, KIND_TRANSACTION)
    store_u32(at + 8, publishes)
    store_u32(at + 12, 1)
    at += FRAME_HEADER_BYTES + TRANSACTION_HEADER_BYTES
    for channel in range(publishes):
        frame_header_write(at, publish_bytes - FRAME_HEADER_BYTES, KIND_PUBLISH)
        store_u32(at + 8, channel)
        store_u32(at + 12, 1)
        store_u64(at + 16, counter * publishes + channel + 1)
        store_u64(at + 24, record_bytes)
        store_u32(at + 32, 0)
        payload_write(load, at + 36, index, counter, now_ns, channel)
        at += publish_bytes
    frame_header_write(at, ACK_HEADER_BYTES + ACK_ENTRY_BYTES, KIND_ACK)
    store_u32(at + 8, SUBSCRIPTION)
    store_u32(at + 12, 1)
    store_u64(at + 16, 0)
    store_u64(at + 24, lease)
    store_u32(at + 32, 1)
    store_u32(at + 36, VERB_ACK)
    store_u64(at + 40, 0)


cdef void go_on(Load* load, Connection* connection, uint64_t now_ns) noexcept nogil:
    """Begin as many transactions as there are jobs and room for."""
    cdef Member* member = member_of(load, connection)
    while (load.failure == FAILURE_NONE and member.held_begin != member.held_end
            and member.number - member.answered < crew_of(load).transactions_max):
        write_transaction(load, connection, member.held[member.held_begin & (UNANSWERED_MAX - 1)], now_ns)
        member.held_begin += 1


cdef void transactions_begin(Load* load, Connection* connection, uint64_t lease, uint32_t leases,
                             uint64_t now_ns) noexcept nogil:
    cdef Member* member = member_of(load, connection)
    if leases > UNANSWERED_MAX - (member.held_end - member.held_begin):
        load_fail(load, connection, FAILURE_PROTOCOL, b"more than 16384 jobs of one member are under way")
        return
    while leases:
        member.held[member.held_end & (UNANSWERED_MAX - 1)] = lease
        member.held_end += 1
        lease += 1
        leases -= 1
    go_on(load, connection, now_ns)


cdef void transactions_answered(Load* load, Connection* connection, const uint8_t* body, uint32_t size, uint64_t now_ns,
                                Histogram latency) noexcept nogil:
    cdef Member* member = member_of(load, connection)
    cdef uint32_t at = 0, publishes = crew_of(load).publishes
    if size % PUBLISHED_ENTRY_BYTES:
        load_fail(load, connection, FAILURE_PROTOCOL, b"PUBLISHED: not a multiple of its entry")
        return
    while at < size:
        # What commits together is answered in order.
        if load_u64(body + at) != member.published + 1 or body[at + 33] & PUBLISHED_FLAG_DUPLICATE:
            load_fail(load, connection, FAILURE_PROTOCOL, b"PUBLISHED: answers another publish than the next one")
            return
        member.published += load_u32(body + at + 24)
        at += PUBLISHED_ENTRY_BYTES
    if member.published > member.number * publishes:
        load_fail(load, connection, FAILURE_PROTOCOL, b"PUBLISHED: answers more than was published")
        return
    if member.published // publishes > member.answered:
        member_answered(load, connection, member.published // publishes, now_ns, latency)
    go_on(load, connection, now_ns)


VERB = VERB_ACK
"""What a transaction says of its job."""
