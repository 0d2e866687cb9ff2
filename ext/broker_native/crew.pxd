# The members of a work queue, and the roll of what they have done: see the module's docstring.
#
# What is here is shared by the protocols (crew_broker, crew_redis, crew_nats), whose `take` is handed the load that
# a Crew begins with.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from broker_native.driver_load cimport (
    Connection, FAILURE_PROTOCOL, INBOX_BYTES_MAX, Load, STAMP_BYTES, STAMP_CHANNEL, STAMP_TIME, load_fail)
from broker_native.histogram cimport Histogram
from broker_native.layout cimport load_u64

cdef extern from "driver_ledger.h" nogil:
    enum:
        STAMP_COUNTER_BITS
    const uint64_t STAMP_COUNTER_MASK
    uint32_t stamp_check(uint64_t stamp, uint64_t time_ns, uint32_t channel)

cdef enum:
    UNANSWERED_MAX = 16384         # of a member's acks, a power of two
    ASK_BYTES_MAX = 512

cdef struct Roll:                  # of the messages of one channel: which were done
    const uint8_t* pattern
    uint32_t payload_bytes
    uint32_t publishers
    uint64_t each                  # counters of a publisher are below it
    uint64_t expected              # messages that were published
    uint8_t* done                  # a bit for each counter of each publisher
    uint64_t distinct              # bits that are set
    uint64_t taken                 # payloads looked at, right or wrong
    uint64_t duplicated
    uint64_t corrupt
    uint64_t overtaken             # that came while their key was with a member, or not in the order of their key
    uint32_t keys                  # 0: they have none
    uint64_t* key_next             # [publishers * keys]: the counter that the key's next message has
    uint8_t* key_held              # [keys]: a member has a message of it that it has not acknowledged

cdef struct Unanswered:            # an ack
    uint64_t time_ns
    uint64_t jobs                  # that it and those before it were about

cdef struct Member:
    uint64_t number                # of the newest ack, counted from 1
    uint64_t answered              # all up to this one are
    uint64_t jobs                  # that all acks were about,
    uint64_t jobs_answered         # … and those that are answered
    Unanswered* acks               # [UNANSWERED_MAX], by number
    uint8_t[ASK_BYTES_MAX] ask     # what it says to be given jobs; where the broker pushes them: nothing
    uint32_t ask_bytes
    uint8_t[INBOX_BYTES_MAX] inbox      # `jetstream`: where answers to its acks come,
    uint32_t inbox_bytes
    uint64_t due                   # `jetstream`: messages that it has asked for and not got
    uint64_t entries_left          # `redis-stream`: of the reply under way
    # with transactions
    uint64_t published             # all of its publishes up to this number are answered
    uint64_t* held                 # [UNANSWERED_MAX], [held_begin, held_end): leases that no transaction has yet
    uint64_t held_begin
    uint64_t held_end

cdef struct Crew:
    Load load                      # first: a dialect is handed a pointer to it
    Member* members                # by connection
    Roll roll
    uint32_t batch                 # jobs that a member asks for at once
    uint32_t publishes             # of the transaction with which each job is answered; 0: there are none
    uint32_t transactions_max      # of a member that wait for their answers
    const uint8_t* words           # what a protocol says with each ack
    uint32_t words_bytes
    uint64_t jobs                  # that acks of all members were about,
    uint64_t answered              # … and those that are answered
    uint64_t unacked               # jobs of answered acks that the server does not know


cdef inline Crew* crew_of(Load* load) noexcept nogil:
    return <Crew*>load


cdef inline Member* member_of(Load* load, const Connection* connection) noexcept nogil:
    return &crew_of(load).members[connection - load.connections]


cdef inline void roll_take(Roll* roll, const uint8_t* payload, size_t size) noexcept nogil:
    """Check a payload and tick it off."""
    cdef uint64_t stamp, publisher, counter, at, key
    cdef uint64_t tail
    roll.taken += 1
    if size != roll.payload_bytes:
        roll.corrupt += 1
        return
    stamp = load_u64(payload)
    tail = load_u64(payload + STAMP_CHANNEL)
    publisher = stamp >> STAMP_COUNTER_BITS
    counter = stamp & STAMP_COUNTER_MASK
    if (tail != <uint64_t>stamp_check(stamp, load_u64(payload + STAMP_TIME), 0) << 32
            or publisher >= roll.publishers or counter >= roll.each
            or memcmp(payload + STAMP_BYTES, roll.pattern + STAMP_BYTES, roll.payload_bytes - STAMP_BYTES) != 0):
        roll.corrupt += 1
        return
    at = publisher * roll.each + counter
    if roll.done[at >> 3] & (1 << (at & 7)):
        roll.duplicated += 1
    else:
        roll.done[at >> 3] |= <uint8_t>(1 << (at & 7))
        roll.distinct += 1
    if roll.keys:
        key = counter % roll.keys
        at = publisher * roll.keys + key
        if roll.key_held[key] or roll.key_next[at] != counter:
            roll.overtaken += 1
        roll.key_held[key] = True
        roll.key_next[at] = counter + roll.keys


cdef inline void roll_let_go(Roll* roll, const uint8_t* payload) noexcept nogil:
    """The message is acknowledged: the next one of its key may come. With keys only."""
    roll.key_held[(load_u64(payload) & STAMP_COUNTER_MASK) % roll.keys] = False


cdef inline void member_acks(Load* load, Connection* connection, uint64_t jobs, uint64_t now_ns) noexcept nogil:
    """Count an ack that is on its way, of so many jobs."""
    cdef Member* member = member_of(load, connection)
    if member.number - member.answered == UNANSWERED_MAX:
        load_fail(load, connection, FAILURE_PROTOCOL, b"16384 acks of one member are not answered")
        return
    member.number += 1
    member.jobs += jobs
    member.acks[member.number & (UNANSWERED_MAX - 1)] = Unanswered(now_ns, member.jobs)
    crew_of(load).jobs += jobs


cdef inline void member_answered(Load* load, Connection* connection, uint64_t number, uint64_t now_ns,
                                 Histogram latency) noexcept nogil:
    """All acks up to a number are answered."""
    cdef Member* member = member_of(load, connection)
    cdef Unanswered* ack
    if number <= member.answered or number > member.number:
        load_fail(load, connection, FAILURE_PROTOCOL, b"an answer to no ack that waits for one")
        return
    while member.answered < number:
        member.answered += 1
        ack = &member.acks[member.answered & (UNANSWERED_MAX - 1)]
        latency.record(now_ns - ack.time_ns if now_ns > ack.time_ns else 0)
    crew_of(load).answered += ack.jobs - member.jobs_answered
    member.jobs_answered = ack.jobs
