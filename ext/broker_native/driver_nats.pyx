"""The protocol of NATS as the load driver speaks it: core PUB and MSG, and JetStream on top of them.

    PUB subject [reply] 128⏎payload⏎                      a publisher; with JetStream it names an inbox of its own
    MSG subject sid [reply] 128⏎payload⏎                  a delivery, or JetStream's answer in the inbox
    HMSG subject sid [reply] 25 153⏎headers payload⏎      what the server says of itself: 100, 404, 409, 503
    PING⏎ PONG⏎ +OK⏎ INFO {…}⏎ -ERR 'why'⏎               PING is answered, -ERR ends the run with what it says

Core NATS answers no publish, so a message counts as answered when it is written; the window of its readers alone holds
a publisher back. JetStream answers each message with {"stream":"S","seq":1} in the inbox that it names, whose last word
is the message's number; publishers do not wait for one answer before the next message (what clients call asynchronous
publishing). An answer with an error ends the run.

A consumer is pushed to: the server sends without being asked and now and then, instead of credit, a request for a word
(status 100 with a subject to answer to), which is how ordered consumers of the clients work. The word follows all that
came before it, so a reader that falls behind holds its consumer back.

It must not know how a stream or a consumer is made; that is done before a socket comes here.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_NONE, FAILURE_PROTOCOL, LINE_END_BYTES, Load, Publisher, Run, Subscriber, Text,
    connection_flush, connection_reserve, line_find, load_fail, load_refused, number_parse, number_write, payload_take,
    payload_write, publisher_acked, publisher_wrote, run_end, subscriber_lane_named, subscriber_remember,
    subscriber_usual, write_lines)
from broker_native.histogram cimport Histogram

cdef enum:
    WORDS_MAX = 6                  # of a line with a message: HMSG subject sid reply headers-size size
    SPACE = 32


# --- Sending ------------------------------------------------------------------------------------------------------

cdef uint8_t* write_stream(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                           uint64_t time_ns) noexcept nogil:
    """Write messages that name an inbox with their number."""
    cdef Text head = load.heads[channel]
    cdef uint32_t i
    for i in range(count):
        memcpy(at, head.bytes, head.size)
        at += head.size
        memcpy(at, publisher.inbox, publisher.inbox_bytes)
        at = number_write(at + publisher.inbox_bytes, publisher.records + 1 + i)
        memcpy(at, load.size.bytes, load.size.size)
        at += load.size.size
        payload_write(load, at, publisher.index, publisher.counters[channel] + i, time_ns, channel)
        at += load.payload_bytes
        at[0], at[1] = 13, 10
        at += LINE_END_BYTES
    publisher_wrote(publisher, channel, count)
    return at


cdef uint8_t* write_core(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                         uint64_t time_ns) noexcept nogil:
    """Write messages, and take them for answered."""
    at = write_lines(load, publisher, at, channel, count, time_ns)
    publisher_acked(publisher, publisher.acked + 1, count)
    return at


cdef void say(Load* load, Connection* connection, const char* words, size_t size) noexcept nogil:
    cdef uint8_t* at = connection_reserve(load, connection, size)
    if at != NULL:
        memcpy(at, words, size)
        connection_flush(load, connection)


cdef void say_nothing_to(Load* load, Connection* connection, const uint8_t* subject, size_t size) noexcept nogil:
    """Publish an empty message: the word that a consumer waits for."""
    cdef uint8_t* at = connection_reserve(load, connection, 4 + size + 6)
    if at != NULL:
        memcpy(at, b"PUB ", 4)
        memcpy(at + 4, subject, size)
        memcpy(at + 4 + size, b" 0\r\n\r\n", 6)
        connection_flush(load, connection)


cdef void assure(Load* load, Connection* connection) noexcept nogil:
    """A PONG that nobody asked for is taken, and says that a client lives which sees no PING."""
    say(load, connection, b"PONG\r\n", 6)


# --- Lines --------------------------------------------------------------------------------------------------------

cdef uint32_t words_of(const uint8_t* line, size_t size, Text* words) noexcept nogil:
    """Take a line without its end apart at its blanks; more words than WORDS_MAX are counted as one more."""
    cdef uint32_t count = 0
    cdef size_t at = 0, begin
    while at < size:
        while at < size and line[at] == SPACE:
            at += 1
        begin = at
        while at < size and line[at] != SPACE:
            at += 1
        if at == begin:
            break
        if count == WORDS_MAX:
            return WORDS_MAX + 1
        words[count] = Text(line + begin, <uint32_t>(at - begin))
        count += 1
    return count


cdef bint starts(const uint8_t* data, size_t size, const char* word, size_t word_bytes) noexcept nogil:
    return size >= word_bytes and memcmp(data, word, word_bytes) == 0


cdef const uint8_t* find(const uint8_t* data, size_t size, const char* text, size_t text_bytes) noexcept nogil:
    """Return where a text stands in some bytes, NULL when nowhere."""
    cdef size_t at = 0
    while at + text_bytes <= size:
        if memcmp(data + at, text, text_bytes) == 0:
            return data + at
        at += 1
    return NULL


cdef Message message_of(Load* load, Connection* connection, const uint8_t* data, size_t size,
                        size_t line) noexcept nogil:
    """Take a MSG or HMSG apart whose line has come."""
    cdef Message message
    cdef Text[WORDS_MAX] words
    cdef uint64_t bytes = 0, headers_bytes = 0
    cdef uint32_t sizes = 2 if data[0] == 72 else 1                # H of HMSG
    cdef uint32_t count = words_of(data, line - LINE_END_BYTES, words)
    memset(&message, 0, sizeof(Message))
    if not 3 + sizes <= count <= 4 + sizes or not number_parse(words[count - 1].bytes, words[count - 1].size, &bytes):
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message's line that cannot be read")
        return message
    if sizes == 2 and not number_parse(words[count - 2].bytes, words[count - 2].size, &headers_bytes):
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message's line that cannot be read")
        return message
    if bytes > load.frame_bytes_max or headers_bytes > bytes:
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message larger than any that was sent")
        return message
    if size - line < bytes + LINE_END_BYTES:
        return message
    message.subject = words[1]
    message.reply = words[3] if count == 4 + sizes else Text(data, 0)
    message.body = data + line
    message.headers_bytes = headers_bytes
    message.bytes = bytes
    message.begin_bytes = <size_t>(words[3].bytes - data)
    if message.body[bytes] != 13 or message.body[bytes + 1] != 10:
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message that does not end where its size says")
        return message
    message.taken = line + bytes + LINE_END_BYTES
    return message


cdef bint take_status(Load* load, Connection* connection, const Message* message) noexcept nogil:
    """Take what the server says with headers: a flow control request or a heartbeat; anything else ends the run."""
    cdef const uint8_t* headers = message.body
    cdef size_t size = message.headers_bytes
    cdef const uint8_t* stalled
    cdef const uint8_t* end
    if not starts(headers, size, b"NATS/1.0 100", 12):
        end = <const uint8_t*>memchr(headers, 13, size)
        load_refused(load, connection, b"nats", headers, <size_t>(end - headers) if end != NULL else size)
        return False
    if message.reply.size:
        say_nothing_to(load, connection, message.reply.bytes, message.reply.size)
        return True
    stalled = find(headers, size, b"Nats-Consumer-Stalled: ", 23)
    if stalled != NULL:
        stalled += 23
        end = <const uint8_t*>memchr(stalled, 13, size - <size_t>(stalled - headers))
        if end != NULL:
            say_nothing_to(load, connection, stalled, <size_t>(end - stalled))
    return True


cdef bint take_answer(Load* load, Connection* connection, const Message* message) noexcept nogil:
    """Take JetStream's answer to one message."""
    cdef Publisher* publisher = connection.publisher
    cdef uint64_t number = 0
    cdef uint32_t inbox_bytes = publisher.inbox_bytes
    if (not starts(message.subject.bytes, message.subject.size, <const char*>publisher.inbox, inbox_bytes)
            or not number_parse(message.subject.bytes + inbox_bytes, message.subject.size - inbox_bytes, &number)
            or number == 0 or number > publisher.records):
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: an answer to nothing that was sent")
        return False
    if not (starts(message.body, message.bytes, b'{"stream":', 10) and message.body[message.bytes - 1] == 125):    # }
        load_refused(load, connection, b"jetstream", message.body, message.bytes)
        return False
    # Nearly all answers end with a sequence, and nothing needs to be looked for.
    if (not 48 <= message.body[message.bytes - 2] <= 57                                              # ASCII digits
            and find(message.body, message.bytes, b'"duplicate"', 11) != NULL):
        load.acked_twice += 1
    publisher_acked(publisher, number, 1)
    return True


cdef size_t take_word(Load* load, Connection* connection, const uint8_t* data, size_t line) noexcept nogil:
    """Take a line that is no message. Returns its size, 0 when it ends the run."""
    if starts(data, line, b"PING", 4):
        say(load, connection, b"PONG\r\n", 6)
    elif starts(data, line, b"-ERR", 4):
        load_refused(load, connection, b"nats", data, line - LINE_END_BYTES)
        return 0
    elif not (starts(data, line, b"PONG", 4) or starts(data, line, b"+OK", 3) or starts(data, line, b"INFO ", 5)):
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a line that a server does not send")
        return 0
    return line


cdef size_t take_line(Load* load, Connection* connection, const uint8_t* data, size_t size, size_t line, Run* run,
                      Histogram latency) noexcept nogil:
    """Take what begins with a line: a message, or a word. 0 while it is not whole or when the run fails."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef Message message
    if not (starts(data, line, b"MSG ", 4) or starts(data, line, b"HMSG ", 5)):
        return take_word(load, connection, data, line)
    message = message_of(load, connection, data, size, line)
    if message.taken == 0:
        return 0
    if message.headers_bytes:
        return message.taken if take_status(load, connection, &message) else 0
    if subscriber == NULL:
        return message.taken if take_answer(load, connection, &message) else 0
    subscriber.lane = subscriber_lane_named(load, subscriber, message.subject.bytes, message.subject.size)
    if subscriber.lane == NULL:
        load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message of a subject that was not asked for")
        return 0
    subscriber_remember(load, connection, data, message.begin_bytes)
    payload_take(subscriber, message.body, message.bytes, run, latency)
    return message.taken


cdef size_t take_lines(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                       Histogram latency) noexcept nogil:
    """Take all that has come whole.

    A message that begins as the one before it, up to its sid, and ends its line with the size that all have is taken at
    once; only a reply's subject may differ. So does nearly every message of a channel.
    """
    cdef Subscriber* subscriber = connection.subscriber
    cdef Run run = Run(now_ns, 0, 0)
    cdef size_t at = 0, begin, line, taken
    cdef const uint8_t* payload
    while load.failure == FAILURE_NONE and at < size:
        line = line_find(load, connection, data + at, size - at)
        if line == 0:
            break
        begin = subscriber_usual(subscriber, data + at, line) if subscriber != NULL else 0
        # The size's text begins with the blank that ends the usual beginning when there is no reply.
        if (begin and line + 1 >= begin + load.size.size
                and memcmp(data + at + line - load.size.size, load.size.bytes, load.size.size) == 0):
            taken = line + load.payload_bytes + LINE_END_BYTES
            if size - at < taken:
                break
            payload = data + at + line
            if payload[load.payload_bytes] != 13 or payload[load.payload_bytes + 1] != 10:
                load_fail(load, connection, FAILURE_PROTOCOL, b"nats: a message that does not end where its size says")
                break
            payload_take(subscriber, payload, load.payload_bytes, &run, latency)
        else:
            taken = take_line(load, connection, data + at, size - at, line, &run, latency)
            if taken == 0:
                break
        at += taken
    run_end(&run, latency)
    return at


# --- For the driver -----------------------------------------------------------------------------------------------

cdef Dialect core, stream
core.write = write_core
core.take = take_lines
core.assure = assure
core.answered = False
stream.write = write_stream
stream.take = take_lines
stream.assure = assure
stream.answered = True


cdef const Dialect* nats_dialect() noexcept nogil:
    return &core


cdef const Dialect* jetstream_dialect() noexcept nogil:
    return &stream


def publish_head(bytes subject, uint32_t payload_bytes):
    """Return a PUB up to its payload."""
    return b"PUB %b %d\r\n" % (subject, payload_bytes)


def stream_head(bytes subject):
    """Return a PUB up to the inbox that it names."""
    return b"PUB %b " % subject


def size_text(uint32_t payload_bytes):
    """Return how a line ends that announces a payload."""
    return b" %d\r\n" % payload_bytes
