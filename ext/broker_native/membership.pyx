"""The acks of a transaction: whether all of them hold, and taking them.

A connection's memberships are found by the numbers of their subscriptions. What is odd about an ACK, be it malformed
or of a lease that is over, is no concern here: it does not hold, and whoever asks has it refused elsewhere, for a
reason.

A subclass gives `on_settled()`: jobs of the member are done, and its consumer does not know of it yet. It is called
once for all that a member settles until `waits` or `Jobs.noted` is unset again: a consumer is told once a turn, and
once a group, rather than once an ack. All of it belongs to the loop's thread.
"""

from libc.stdint cimport uint8_t, uint32_t

from broker_native.layout cimport (
    ACK_ENTRY_BYTES, ACK_HEADER_BYTES, FRAME_HEADER_BYTES, KIND_ACK, load_u16, load_u32, load_u64)


cdef class Membership:
    """What a connection may acknowledge of one consumer.

    Attributes:
        number: The consumer's number of the member; 0 before it has joined.
        waits: It is among those who are given jobs in turn.
        jobs: The consumer's; None while nothing of it can be acknowledged.
    """


cdef bint acks_hold(dict members, const uint8_t* at, const uint8_t* end, uint32_t count) except -1:
    cdef Membership member
    cdef const uint8_t* body
    cdef size_t size
    while count:
        if end - at < FRAME_HEADER_BYTES + ACK_HEADER_BYTES:
            return False
        size = load_u32(at)
        body = at + FRAME_HEADER_BYTES
        if (size > <size_t>(end - body) or size < ACK_HEADER_BYTES or at[4] != KIND_ACK or at[5] or load_u16(at + 6)
                or load_u64(body + 8)
                or size != ACK_HEADER_BYTES + load_u32(body + 4) * <size_t>ACK_ENTRY_BYTES):
            return False
        member = members.get(load_u32(body))
        if member is None or member.jobs is None:
            return False
        if not member.jobs.holds(member.number, body + ACK_HEADER_BYTES, body + size):
            return False
        at = body + size
        count -= 1
    return at == end


cdef int acks_take(dict members, const uint8_t* at, const uint8_t* end) except -1:
    cdef Membership member
    cdef size_t size
    while at < end:
        size = load_u32(at)
        at += FRAME_HEADER_BYTES
        member = members[load_u32(at)]
        member.jobs.acknowledge(at + ACK_HEADER_BYTES, at + size)
        if not member.waits or not member.jobs.noted:
            member.on_settled()
        at += size
    return 0
