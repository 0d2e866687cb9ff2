"""JetStream as a member of a pull consumer speaks it: requests for messages, and an acknowledgement of each.

    PUB $JS.API.CONSUMER.MSG.NEXT.stream.consumer inbox 37⏎{"batch":256,"expires":600000000000}⏎
    MSG subject sid $JS.ACK.stream.consumer.1.17.17.1700000000000000000.5 128⏎payload⏎
    PUB $JS.ACK.stream.consumer.1.17.17.1700000000000000000.5 4⏎+ACK⏎               nobody answers
    PUB $JS.ACK.stream.consumer.1.17.17.1700000000000000000.5 inbox 4⏎+ACK⏎         MSG inbox sid 0⏎⏎

A member has two requests under way, so that it never waits for messages that are there: when the messages of one have
come it asks again. (One at a time has one.) Of the messages that came with one read all are acknowledged at once, and
the last one names an inbox: a consumer takes acknowledgements in their order, so the answer to that says that all of
them are taken.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from broker_native.crew cimport Crew, Member, crew_of, member_acks, member_answered, member_of, roll_take
from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_NONE, FAILURE_PROTOCOL, Load, Text, connection_flush, connection_reserve, line_find,
    load_fail)
from broker_native.driver_nats cimport Message, message_of, starts, take_status, take_word
from broker_native.histogram cimport Histogram

cdef enum:
    SPACE = 32
    PUB_BYTES = 4                  # with its blank
    ACK_BYTES = 10                 # with the blank before it

cdef const char* ACK = b" 4\r\n+ACK\r\n"


cdef void ask(Load* load, Connection* connection) noexcept nogil:
    """Ask for a batch of messages."""
    cdef Member* member = member_of(load, connection)
    cdef uint8_t* at = connection_reserve(load, connection, member.ask_bytes)
    if at != NULL:
        memcpy(at, member.ask, member.ask_bytes)
    member.due += crew_of(load).batch


cdef void nats_crew_begin(Load* load, Connection* connection) noexcept nogil:
    ask(load, connection)
    if crew_of(load).batch > 1:
        ask(load, connection)
    connection_flush(load, connection)


cdef void acknowledge(Load* load, Connection* connection, const Text* subject, bint answered) noexcept nogil:
    """Acknowledge a message; `answered` asks for an answer in the inbox."""
    cdef Member* member = member_of(load, connection)
    cdef size_t inbox_bytes = 1 + member.inbox_bytes if answered else 0
    cdef uint8_t* at = connection_reserve(load, connection, PUB_BYTES + subject.size + inbox_bytes + ACK_BYTES)
    if at == NULL:
        return
    memcpy(at, b"PUB ", PUB_BYTES)
    at += PUB_BYTES
    memcpy(at, subject.bytes, subject.size)
    at += subject.size
    if answered:
        at[0] = SPACE
        memcpy(at + 1, member.inbox, member.inbox_bytes)
        at += inbox_bytes
    memcpy(at, ACK, ACK_BYTES)


cdef bint is_answer(const Member* member, const Message* message) noexcept nogil:
    return (message.subject.size == member.inbox_bytes and message.bytes == 0
            and starts(message.subject.bytes, message.subject.size, <const char*>member.inbox, member.inbox_bytes))


cdef bint take_job(Load* load, Connection* connection, const Message* message) noexcept nogil:
    """Check a message, and ask for more when those of a request have come."""
    cdef Crew* crew = crew_of(load)
    cdef Member* member = member_of(load, connection)
    if message.reply.size == 0 or member.due == 0:
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message that was not asked for")
        return False
    roll_take(&crew.roll, message.body, message.bytes)
    member.due -= 1
    return True


cdef size_t take_line(Load* load, Connection* connection, const uint8_t* data, size_t size, size_t line, Text* job,
                      uint64_t now_ns, Histogram latency) noexcept nogil:
    """Take what begins with a line; a job's subject for its ack is put into `job`. 0: not whole, or the run fails."""
    cdef Message message
    job.size = 0
    if not (starts(data, line, b"MSG ", 4) or starts(data, line, b"HMSG ", 5)):
        return take_word(load, connection, data, line)
    message = message_of(load, connection, data, size, line)
    if message.taken == 0:
        return 0
    if is_answer(member_of(load, connection), &message):
        member_answered(load, connection, member_of(load, connection).answered + 1, now_ns, latency)
    elif message.headers_bytes:
        return message.taken if take_status(load, connection, &message) else 0
    elif take_job(load, connection, &message):
        job[0] = message.reply
    return message.taken


cdef size_t take_lines(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                       Histogram latency) noexcept nogil:
    """Take all that has come whole, acknowledge the messages, and ask for more."""
    cdef Crew* crew = crew_of(load)
    cdef Member* member = member_of(load, connection)
    cdef Text job = Text(data, 0), last = Text(data, 0)
    cdef size_t at = 0, line, taken
    cdef uint64_t jobs = 0
    while load.failure == FAILURE_NONE and at < size:
        line = line_find(load, connection, data + at, size - at)
        if line == 0:
            break
        taken = take_line(load, connection, data + at, size - at, line, &job, now_ns, latency)
        if taken == 0:
            break
        at += taken
        if job.size:
            if last.size:
                acknowledge(load, connection, &last, False)
            last = job
            jobs += 1
    if last.size and load.failure == FAILURE_NONE:
        acknowledge(load, connection, &last, True)
        member_acks(load, connection, jobs, now_ns)
        while member.due <= (crew.batch if crew.batch > 1 else 0):
            ask(load, connection)
    if connection.out_end and load.failure == FAILURE_NONE:
        connection_flush(load, connection)
    return at


cdef Dialect dialect
dialect.write = NULL
dialect.take = take_lines
dialect.assure = NULL
dialect.answered = True


cdef const Dialect* nats_crew() noexcept nogil:
    return &dialect


def ask_words(bytes stream, bytes consumer, bytes inbox, uint32_t count):
    """Return a request for messages: it waits for them, for ten minutes."""
    request = b'{"batch":%d,"expires":600000000000}' % count
    subject = b"$JS.API.CONSUMER.MSG.NEXT.%b.%b" % (stream, consumer)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, inbox, len(request), request)
