"""RESP, the protocol of Redis, as the load driver speaks it: PUBLISH and SUBSCRIBE, XADD and XREAD.

    PUBLISH    *3 $7 PUBLISH $n channel $128 payload        :1                              one reply each, in order
    XADD       *5 $4 XADD $n stream $1 * $1 d $128 payload  $15 1700000000000-0             one reply each, in order
    message    *3 $7 message $n channel $128 payload        RESP3 says > for *
    pmessage   *4 $8 pmessage $m pattern $n channel $128 payload
    XREAD      *n $5 XREAD $5 COUNT $4 4096 $5 BLOCK $1 0 $7 STREAMS $n stream … $3 0-0 …
               *1 *2 $n stream *k k times (*2 $15 id *2 $1 d $128 payload)                  RESP3 says %1 for *1 *2

(A blank is CR LF.) Commands are pipelined, which is how one sends many messages to Redis at once. A reader of streams
has one XREAD under way, since the next one begins where the reply to it ends; it blocks until there is something, and
takes up to COUNT entries of each stream. Ids of a stream must increase.

What begins with - is an error: it ends the run with what it says.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_NONE, FAILURE_PROTOCOL, LINE_BYTES_MAX, LINE_END_BYTES, Lane, Load, Publisher, Run,
    Subscriber, connection_flush, connection_reserve, line_find, load_fail, load_refused, number_parse, number_write,
    payload_take, publisher_acked, run_end, subscriber_lane_named, subscriber_remember, subscriber_usual, write_lines)
from broker_native.histogram cimport Histogram

cdef enum:
    ID_BYTES_MAX = 20 + 1 + 20     # milliseconds, -, a number
    BULK_HEAD_BYTES_MAX = 16       # $, a size, the end of the line

    PUSH = 62                      # >
    MAP = 37                       # %
    ERROR = 45                     # -
    DASH = 45                      # -

    ENTRIES_MAX = 1 << 20          # of a stream in one reply: far more than anybody asks for
    ENTRY_BEGIN_BYTES = 4
    ENTRY_FIELD_BYTES = 11

cdef const char* ENTRY_BEGIN = b"*2\r\n"                 # an id, and the fields
cdef const char* ENTRY_FIELD = b"*2\r\n$1\r\nd\r\n"     # a name, and the payload


# --- Parts --------------------------------------------------------------------------------------------------------

cdef size_t take_head(Load* load, Connection* connection, const uint8_t* data, size_t size, uint8_t kind,
                      uint64_t* value) noexcept nogil:
    """Take a line of a kind and the number in it. Returns its size, 0 while it is not whole or when the run fails."""
    cdef size_t line
    if size == 0:
        return 0
    if data[0] == ERROR:
        line = line_find(load, connection, data, size)
        if line:
            load_refused(load, connection, b"redis", data, line - LINE_END_BYTES)
        return 0
    if data[0] != kind:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a reply of another kind than was due")
        return 0
    line = line_find(load, connection, data, size)
    if line == 0:
        return 0
    if not number_parse(data + 1, line - 1 - LINE_END_BYTES, value):
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a line without the number that is due")
        return 0
    return line


cdef Bulk take_bulk(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take a short string that is whole."""
    cdef Bulk bulk = Bulk(data, 0, 0)
    cdef uint64_t bulk_bytes = 0
    cdef size_t head = take_head(load, connection, data, size, BULK, &bulk_bytes)
    if head == 0:
        return bulk
    if bulk_bytes > LINE_BYTES_MAX:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a name of more than 65536 bytes")
        return bulk
    if size - head < bulk_bytes + LINE_END_BYTES:
        return bulk
    bulk.bytes = data + head
    bulk.size = bulk_bytes
    bulk.taken = head + bulk_bytes + LINE_END_BYTES
    return bulk


cdef size_t take_payload_size(Load* load, Connection* connection, const uint8_t* data, size_t size,
                              size_t* payload_bytes) noexcept nogil:
    """Take the line that says how large a payload is."""
    cdef uint64_t value = 0
    cdef size_t head = take_head(load, connection, data, size, BULK, &value)
    if head and value > load.frame_bytes_max:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a payload larger than any that was sent")
        return 0
    payload_bytes[0] = value
    return head


cdef bint line_ends(Load* load, Connection* connection, const uint8_t* at) noexcept nogil:
    if at[0] == 13 and at[1] == 10:
        return True
    load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a payload that does not end where its size says")
    return False


# --- Replies to publishers ----------------------------------------------------------------------------------------

cdef bint answer_next(Load* load, Connection* connection) noexcept nogil:
    """Count an answer: they come in the order of what they answer."""
    cdef Publisher* publisher = connection.publisher
    if publisher.acked == publisher.records:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: more replies than commands")
        return False
    publisher_acked(publisher, publisher.acked + 1, 1)
    return True


cdef size_t take_integers(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take replies to PUBLISH: how many it was delivered to."""
    cdef size_t at = 0, taken
    cdef uint64_t value = 0
    while True:
        taken = take_head(load, connection, data + at, size - at, INTEGER, &value)
        if taken == 0 or not answer_next(load, connection):
            break
        at += taken
    return at


cdef size_t take_ids(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take replies to XADD: the new entry's id."""
    cdef size_t at = 0
    cdef Bulk id
    while True:
        id = take_bulk(load, connection, data + at, size - at)
        if id.taken == 0 or not answer_next(load, connection):
            break
        at += id.taken
    return at


# --- Messages -----------------------------------------------------------------------------------------------------

cdef bint bulk_is(const Bulk* bulk, const char* word, size_t size) noexcept nogil:
    return bulk.size == size and memcmp(bulk.bytes, word, size) == 0


cdef size_t message_begin(Load* load, Connection* connection, const uint8_t* data, size_t size,
                          size_t* payload_bytes) noexcept nogil:
    """Take all of a message before its payload, and find its channel. 0 while it is not whole or when the run fails."""
    cdef uint64_t parts = 0
    cdef uint8_t kind = <uint8_t>(PUSH if size and data[0] == PUSH else ARRAY)
    cdef size_t at = take_head(load, connection, data, size, kind, &parts), head
    cdef Bulk word, name
    if at == 0:
        return 0
    word = take_bulk(load, connection, data + at, size - at)
    if word.taken == 0:
        return 0
    at += word.taken
    if not (parts == 3 and bulk_is(&word, b"message", 7) or parts == 4 and bulk_is(&word, b"pmessage", 8)):
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: neither message nor pmessage")
        return 0
    if parts == 4:
        name = take_bulk(load, connection, data + at, size - at)
        if name.taken == 0:
            return 0
        at += name.taken
    name = take_bulk(load, connection, data + at, size - at)
    if name.taken == 0:
        return 0
    at += name.taken
    head = take_payload_size(load, connection, data + at, size - at, payload_bytes)
    if head == 0:
        return 0
    connection.subscriber.lane = subscriber_lane_named(load, connection.subscriber, name.bytes, name.size)
    if connection.subscriber.lane == NULL:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: a message of a channel that was not asked for")
        return 0
    return at + head


cdef size_t take_messages(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                          Histogram latency) noexcept nogil:
    """Take the messages that have come whole."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef Run run = Run(now_ns, 0, 0)
    cdef size_t at = 0, head, payload_bytes
    while True:
        payload_bytes = load.payload_bytes
        head = subscriber_usual(subscriber, data + at, size - at)
        if head == 0:
            head = message_begin(load, connection, data + at, size - at, &payload_bytes)
            if head == 0:
                break
            if payload_bytes == load.payload_bytes:
                subscriber_remember(load, connection, data + at, head)
        if size - at < head + payload_bytes + LINE_END_BYTES:
            break
        at += head
        if not line_ends(load, connection, data + at + payload_bytes):
            break
        payload_take(subscriber, data + at, payload_bytes, &run, latency)
        at += payload_bytes + LINE_END_BYTES
    run_end(&run, latency)
    return at


cdef size_t take_pubsub(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                        Histogram latency) noexcept nogil:
    if connection.publisher != NULL:
        return take_integers(load, connection, data, size)
    return take_messages(load, connection, data, size, now_ns, latency)


# --- Streams ------------------------------------------------------------------------------------------------------

cdef void redis_stream_read_on(Load* load, Connection* connection) noexcept nogil:
    """Ask for what comes behind the newest entry of each stream."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef uint32_t channels = (load.channels - subscriber.audience + load.audiences_count - 1) // load.audiences_count
    cdef size_t bytes_max = subscriber.request_bytes + <size_t>channels * (BULK_HEAD_BYTES_MAX + ID_BYTES_MAX + 2)
    cdef uint8_t[ID_BYTES_MAX] id
    cdef uint8_t* at = connection_reserve(load, connection, bytes_max)
    cdef uint8_t* end
    cdef uint32_t i
    if at == NULL:
        return
    memcpy(at, subscriber.request, subscriber.request_bytes)
    at += subscriber.request_bytes
    for i in range(channels):
        end = number_write(id, subscriber.lanes[i].epoch)
        end[0] = DASH
        end = number_write(end + 1, subscriber.lanes[i].last)
        at[0] = BULK
        at = number_write(at + 1, <uint64_t>(end - id))
        at[0], at[1] = 13, 10
        memcpy(at + 2, id, <size_t>(end - id))
        at += 2 + (end - id)
        at[0], at[1] = 13, 10
        at += 2
    connection.out_end = <size_t>(at - connection.out)
    connection_flush(load, connection)


cdef size_t take_stream_begin(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take what stands before the entries of a reply's stream. 0 while it is not whole or when the run fails."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef uint64_t count = 0
    cdef uint32_t streams_left = subscriber.streams_left
    cdef size_t at = 0, head
    cdef Bulk name
    if streams_left == 0:
        head = take_head(load, connection, data, size, <uint8_t>(MAP if size and data[0] == MAP else ARRAY), &count)
        if head == 0:
            return 0
        if not 1 <= count <= load.channels:
            load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREAD: more streams than were asked for, or none")
            return 0
        subscriber.pairs = data[0] == ARRAY
        streams_left = <uint32_t>count
        at = head
    if subscriber.pairs:
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
    subscriber.lane = subscriber_lane_named(load, subscriber, name.bytes, name.size)
    if subscriber.lane == NULL or not 1 <= count <= ENTRIES_MAX:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREAD: another stream or more entries than asked for")
        return 0
    subscriber.streams_left = streams_left - 1
    subscriber.entries_left = <uint32_t>count
    return at + head


cdef bint lane_follow(Load* load, Lane* lane, const Bulk* id) noexcept nogil:
    """Check that an entry's id is above the one before it in its stream. False when it is none."""
    cdef uint64_t milliseconds = 0, number = 0
    cdef const uint8_t* dash = <const uint8_t*>memchr(id.bytes, DASH, id.size)
    if dash == NULL:
        return False
    if (not number_parse(id.bytes, <size_t>(dash - id.bytes), &milliseconds)
            or not number_parse(dash + 1, id.size - <size_t>(dash - id.bytes) - 1, &number)):
        return False
    if milliseconds < lane.epoch or (milliseconds == lane.epoch and number <= lane.last):
        load.misplaced += 1
    lane.epoch = milliseconds
    lane.last = number
    return True


cdef Entry entry_of(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Take an entry with its one field apart."""
    cdef Entry entry
    cdef size_t at = ENTRY_BEGIN_BYTES, head
    memset(&entry, 0, sizeof(Entry))
    if size < ENTRY_BEGIN_BYTES:
        return entry
    if memcmp(data, ENTRY_BEGIN, ENTRY_BEGIN_BYTES) != 0:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREAD: an entry that is no pair")
        return entry
    entry.id = take_bulk(load, connection, data + at, size - at)
    if entry.id.taken == 0:
        return entry
    at += entry.id.taken
    if size - at < ENTRY_FIELD_BYTES:
        return entry
    if memcmp(data + at, ENTRY_FIELD, ENTRY_FIELD_BYTES) != 0:
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREAD: an entry with other fields than were added")
        return entry
    at += ENTRY_FIELD_BYTES
    head = take_payload_size(load, connection, data + at, size - at, &entry.payload_bytes)
    if head == 0 or size - at - head < entry.payload_bytes + LINE_END_BYTES:
        return entry
    at += head
    if not line_ends(load, connection, data + at + entry.payload_bytes):
        return entry
    entry.payload = data + at
    entry.taken = at + entry.payload_bytes + LINE_END_BYTES
    return entry


cdef size_t take_entry(Load* load, Connection* connection, const uint8_t* data, size_t size, Run* run,
                       Histogram latency) noexcept nogil:
    """Take one entry. 0 while it is not whole or when the run fails."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef Entry entry = entry_of(load, connection, data, size)
    if entry.taken == 0:
        return 0
    if not lane_follow(load, subscriber.lane, &entry.id):
        load_fail(load, connection, FAILURE_PROTOCOL, b"redis: XREAD: an id that is none")
        return 0
    payload_take(subscriber, entry.payload, entry.payload_bytes, run, latency)
    return entry.taken


cdef size_t take_entries(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                         Histogram latency) noexcept nogil:
    """Take as much of a reply to XREAD as has come, and ask for more behind its end."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef Run run = Run(now_ns, 0, 0)
    cdef size_t at = 0, taken
    while load.failure == FAILURE_NONE:
        if subscriber.entries_left == 0:
            taken = take_stream_begin(load, connection, data + at, size - at)
        else:
            taken = take_entry(load, connection, data + at, size - at, &run, latency)
            if taken:
                subscriber.entries_left -= 1
                if subscriber.entries_left == 0 and subscriber.streams_left == 0:
                    redis_stream_read_on(load, connection)
        if taken == 0:
            break
        at += taken
    run_end(&run, latency)
    return at


cdef size_t take_stream(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                        Histogram latency) noexcept nogil:
    if connection.publisher != NULL:
        return take_ids(load, connection, data, size)
    return take_entries(load, connection, data, size, now_ns, latency)


# --- For the driver -----------------------------------------------------------------------------------------------

cdef Dialect pubsub, stream
pubsub.write = write_lines
pubsub.take = take_pubsub
pubsub.assure = NULL
pubsub.answered = True
stream.write = write_lines
stream.take = take_stream
stream.assure = NULL
stream.answered = True


cdef const Dialect* redis_dialect() noexcept nogil:
    return &pubsub


cdef const Dialect* redis_stream_dialect() noexcept nogil:
    return &stream


cdef bytes bulk_of(bytes string):
    """Return a string as RESP has it."""
    return b"$%d\r\n%b\r\n" % (len(string), string)


def publish_head(bytes channel, uint32_t payload_bytes):
    """Return a PUBLISH up to its payload."""
    return b"*3\r\n%b%b$%d\r\n" % (bulk_of(b"PUBLISH"), bulk_of(channel), payload_bytes)


def add_head(bytes stream, uint32_t payload_bytes):
    """Return an XADD, with an id that the server chooses and one field, up to its payload."""
    return b"*5\r\n%b%b%b%b$%d\r\n" % (bulk_of(b"XADD"), bulk_of(stream), bulk_of(b"*"), bulk_of(b"d"), payload_bytes)


def read_head(streams, uint32_t count):
    """Return an XREAD of streams up to the ids behind which it reads: for ever blocking, `count` entries of each."""
    options = b"".join(bulk_of(word) for word in (b"XREAD", b"COUNT", b"%d" % count, b"BLOCK", b"0", b"STREAMS"))
    return b"*%d\r\n%b%b" % (6 + 2 * len(streams), options, b"".join(bulk_of(each) for each in streams))
