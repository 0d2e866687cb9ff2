"""RESP as a consumer of a group speaks it: XREADGROUP and XACK over a stream of Redis.

    XREADGROUP  *9 $10 XREADGROUP $5 GROUP $n group $n consumer $5 COUNT $4 1000 $7 STREAMS $n stream $1 >
                *1 *2 $n stream *k k times (*2 $15 id *2 $1 d $128 payload)        or *-1: nothing is left
    XACK        *k+3 $4 XACK $n stream $n group k times $15 id                     :k

(A blank is CR LF.) When a reply has been taken and checked, its entries are acknowledged by one XACK, and the next
XREADGROUP goes with it in the same write: no consumer waits for the answer to its XACK before it asks for more. The ids
of an XACK are written as they come, in the server's own bytes.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from broker_native.crew cimport Crew, Member, crew_of, member_acks, member_answered, member_of, roll_take
from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_NONE, FAILURE_PROTOCOL, Load, connection_flush, connection_reserve, load_fail,
    number_write)
from broker_native.driver_redis cimport ARRAY, Bulk, Entry, INTEGER, bulk_of, entry_of, take_bulk, take_head
from broker_native.histogram cimport Histogram

cdef enum:
    ACK_WORDS = 3                  # XACK, the stream and the group, before the ids
    HEAD_BYTES_MAX = 24            # *, a number, the end of the line
    NOTHING_BYTES = 5

cdef const char* NOTHING = b"*-1\r\n"


cdef void append(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    cdef uint8_t* at = connection_reserve(load, connection, size)
    if at != NULL:
        memcpy(at, data, size)


cdef void redis_crew_begin(Load* load, Connection* connection) noexcept nogil:
    cdef Member* member = member_of(load, connection)
    append(load, connection, member.ask, member.ask_bytes)
    connection_flush(load, connection)


cdef void ack_begin(Load* load, Connection* connection, uint64_t count) noexcept nogil:
    """Write an XACK up to its ids."""
    cdef Crew* crew = crew_of(load)
    cdef uint8_t* at = connection_reserve(load, connection, HEAD_BYTES_MAX + crew.words_bytes)
    if at == NULL:
        return
    at[0] = ARRAY
    at = number_write(at + 1, count + ACK_WORDS)
    at[0], at[1] = 13, 10
    memcpy(at + 2, crew.words, crew.words_bytes)
    connection.out_end = <size_t>(at + 2 + crew.words_bytes - connection.out)


cdef size_t take_answer(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                        Histogram latency) noexcept nogil:
    """Take the reply to the oldest XACK: how many entries it has acknowledged."""
    cdef Member* member = member_of(load, connection)
    cdef uint64_t count = 0, jobs = member.jobs_answered
    cdef size_t taken = take_head(load, connection, data, size, INTEGER, &count)
    if taken:
        member_answered(load, connection, member.answered + 1, now_ns, latency)
        jobs = member.jobs_answered - jobs
        crew_of(load).unacked += jobs - count if jobs > count else 0
    return taken


cdef size_t take_begin(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take what stands before the entries of a reply. 0 while it is not whole or when the run fails."""
    cdef size_t at = 0, head
    cdef uint64_t count = 0
    cdef uint32_t _depth
    cdef Bulk name
    if size >= NOTHING_BYTES and memcmp(data, NOTHING, NOTHING_BYTES) == 0:
        return NOTHING_BYTES       # all are with members: nobody asks any more
    if size < NOTHING_BYTES:
        return 0
    for _depth in range(2):
        head = take_head(load, connection, data + at, size - at, ARRAY, &count)
        if head == 0:
            return 0
        at += head
    name = take_bulk(load, connection, data + at, size - at)
    if name.taken == 0:
        return 0
    at += name.taken
    head = take_head(load, connection, data + at, size - at, ARRAY, &count)
    if head == 0:
        return 0
    if not 1 <= count <= crew_of(load).batch:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREADGROUP: more entries than asked for, or none")
        return 0
    member_of(load, connection).entries_left = count
    ack_begin(load, connection, count)
    return at + head


cdef size_t take_entry(Load* load, Connection* connection, const uint8_t* data, size_t size,
                       uint64_t now_ns) noexcept nogil:
    """Take an entry; with the last one of a reply the XACK is whole, and more is asked for."""
    cdef Member* member = member_of(load, connection)
    cdef Entry entry = entry_of(load, connection, data, size)
    if entry.taken == 0:
        return 0
    roll_take(&crew_of(load).roll, entry.payload, entry.payload_bytes)
    append(load, connection, entry.id.bytes - (entry.id.taken - entry.id.size - 2), entry.id.taken)
    member.entries_left -= 1
    if member.entries_left == 0:
        append(load, connection, member.ask, member.ask_bytes)
        connection_flush(load, connection)
    return entry.taken


cdef size_t take_replies(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                         Histogram latency) noexcept nogil:
    """Take all that has come whole: replies to XACK and to XREADGROUP in turn."""
    cdef Member* member = member_of(load, connection)
    cdef size_t at = 0, taken
    while load.failure == FAILURE_NONE and at < size:
        if member.entries_left:
            taken = take_entry(load, connection, data + at, size - at, now_ns)
        elif member.number != member.answered:
            taken = take_answer(load, connection, data + at, size - at, now_ns, latency)
        else:
            taken = take_begin(load, connection, data + at, size - at)
            if member.entries_left:
                member_acks(load, connection, member.entries_left, now_ns)
        if taken == 0:
            break
        at += taken
    return at


cdef Dialect dialect
dialect.write = NULL
dialect.take = take_replies
dialect.assure = NULL
dialect.answered = True


cdef const Dialect* redis_crew() noexcept nogil:
    return &dialect


def ask_words(bytes stream, bytes group, bytes consumer, uint32_t count):
    """Return an XREADGROUP of entries that nobody has got yet."""
    words = (b"XREADGROUP", b"GROUP", group, consumer, b"COUNT", b"%d" % count, b"STREAMS", stream, b">")
    return b"*%d\r\n%b" % (len(words), b"".join(bulk_of(word) for word in words))


def ack_words(bytes stream, bytes group):
    """Return what stands in an XACK before its ids, but for their number."""
    return bulk_of(b"XACK") + bulk_of(stream) + bulk_of(group)
