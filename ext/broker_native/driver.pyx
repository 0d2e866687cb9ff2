"""The load driver behind `broker bench`: publishes, reads and checks millions of records a second on one thread.

A driver gets sockets that have said HELLO, named their channels and subscribed; from then on it speaks the hot part of
the protocol (broker/wire/specification.md §2 to §5) in C, without the interpreter lock. As fast as it can, each window
opens when its slowest reader has read; or by a rate, in ticks of 100 us, with every record stamped with the time at
which it was due, so that a server that falls behind is seen as latency and not as a lower rate.

Every record is checked: its header, its stamp, each of its other bytes, and its place in its flow (driver_ledger.h).
Frames are parsed as they come: records are checked where `recv` put them, and what a connection must keep between two
reads is the half of one record or header, never of a chunk.

Subscribers may be told to read nothing for a while, like a client that hangs: their sockets fill, and all that is heard
of them is that they are there.

It must not become the bottleneck, so it sleeps whenever there is nothing to do and never spins; its processor time is
part of what a run returns. It must not decode control bodies: what the server says in an ERROR is handed back whole.

One thread at a time. Sockets are borrowed: their owner keeps them open for as long as the driver lives.
"""

from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strerror, strlen

from broker_native.crc32c cimport crc32c
from broker_native.histogram cimport Histogram
from broker_native.layout cimport (
    CHUNK_CHANNEL, CHUNK_COUNT, CHUNK_CRC, CHUNK_EPOCH, CHUNK_FIRST, CHUNK_FLAGS, CHUNK_HEADER_BYTES, CREDIT_BYTES,
    DELIVER_FLAG_EARLY, DELIVER_FLAG_NAME, DELIVER_HEADER_BYTES, FRAME_HEADER_BYTES, GONE_RECORD_BYTES, KIND_CREDIT,
    KIND_DELIVER, KIND_ERROR, KIND_EVENT, KIND_GOING_AWAY, KIND_PING, KIND_PONG, KIND_PUBLISH, KIND_PUBLISHED,
    PUBLISHED_ENTRY_BYTES, PUBLISHED_FLAG_DUPLICATE, PUBLISH_COUNT_MAX, PUBLISH_HEADER_BYTES, RECORD_EXPIRY,
    RECORD_FLAGS_KNOWN, RECORD_GONE, RECORD_HEADERS, RECORD_HEADER_BYTES, RECORD_KEY, RECORD_NUMBER, RECORD_PRIORITY,
    RECORD_PUBLISHER, load_u16, load_u32, load_u64, store_u32, store_u64)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)

cdef enum:
    UNBOUND = 0xFFFFFFFF           # a lane's channel before it is known
    CREDIT_PORTIONS = 8
    SUBSCRIPTION = 1               # the number of a subscriber's only subscription
    TICK_NS = 100_000
    TICKS_PER_SECOND = 10_000
    SLICE_NS = 100_000_000         # how long the loop runs before signals and stalls are looked at
    RECEIVE_BYTES = 256 * 1024     # one recv: stays in the second-level cache until it has been checked
    SEND_BYTES = 256 * 1024        # one send of a publisher
    ANSWER_BYTES = 512             # a subscriber's: CREDIT and PONG
    EVENT_NAME_BYTES = 8           # the longest word that is looked for in an EVENT

    FAILURE_NONE = 0
    FAILURE_ERROR = 1              # the server sent ERROR
    FAILURE_GOING_AWAY = 2
    FAILURE_CLOSED = 3             # the server closed the connection
    FAILURE_SOCKET = 4
    FAILURE_PROTOCOL = 5           # the server broke the specification
    FAILURE_MEMORY = 6

cdef uint64_t ASSURE_NS = 5_000_000_000     # a client says so often that it is there: a third of what servers wait

FAILURES = ("", "error", "going_away", "closed", "socket", "protocol", "memory")

Failure = namedtuple("Failure", ("reason", "connection", "detail", "body"))
Outcome = namedtuple("Outcome", (
    "finished", "seconds", "cpu_s", "sent", "acked", "acked_twice", "deliveries", "lost", "duplicated", "reordered",
    "corrupt", "misplaced", "unordered", "events", "lagging", "live", "level_min", "level_max", "failure"))


# --- Failing ------------------------------------------------------------------------------------------------------

cdef void load_fail(Load* load, Connection* connection, int failure, const char* detail) noexcept nogil:
    """Remember the first thing that went wrong; the loop ends with it."""
    if load.failure == FAILURE_NONE:
        load.failure = failure
        load.failure_errno = errno if failure == FAILURE_SOCKET else 0
        load.failure_connection = <uint32_t>(connection - load.connections)
        load.failure_detail = detail


cdef void load_fail_body(Load* load, Connection* connection, int failure, const uint8_t* body,
                         uint32_t size) noexcept nogil:
    """Keep the body of a frame that ends the run, for Python to decode. No frame is taken after a failure."""
    load_fail(load, connection, failure, NULL)
    load.failure_body = <uint8_t*>malloc(size if size else 1)
    if load.failure_body != NULL:
        memcpy(load.failure_body, body, size)
        load.failure_bytes = size


# --- Sending ------------------------------------------------------------------------------------------------------

cdef void connection_flush(Load* load, Connection* connection) noexcept nogil:
    """Send what is waiting, and ask to be told when the socket takes the rest."""
    cdef ssize_t sent
    cdef bint waits = False
    while connection.out_begin < connection.out_end:
        sent = send(connection.fd, connection.out + connection.out_begin,
                    connection.out_end - connection.out_begin, 0)
        if sent >= 0:
            connection.out_begin += <size_t>sent
        elif errno == EAGAIN:
            waits = True
            break
        elif errno != EINTR:
            load_fail(load, connection, FAILURE_SOCKET, b"send")
            return
    if not waits:
        connection.out_begin = connection.out_end = 0
    if waits != connection.waits_to_write:
        connection.waits_to_write = waits
        connection_interest(load, connection)


cdef void connection_interest(Load* load, Connection* connection) noexcept nogil:
    """Tell the poller what a connection waits for."""
    cdef bint reading = connection.subscriber == NULL or not connection.subscriber.halted
    if poller_interest(&load.poller, connection.fd, <uint32_t>(connection - load.connections), reading,
                       connection.waits_to_write):
        load_fail(load, connection, FAILURE_SOCKET, b"epoll_ctl")


cdef uint8_t* connection_append(Connection* connection, size_t size) noexcept nogil:
    """Return where `size` more bytes go, or NULL when they do not fit."""
    if connection.out_capacity - connection.out_end < size:
        return NULL
    connection.out_end += size
    return connection.out + connection.out_end - size


cdef void frame_header_write(uint8_t* frame, uint32_t body_bytes, uint32_t kind) noexcept nogil:
    store_u32(frame, body_bytes)
    store_u32(frame + 4, kind)       # flags and the reserved field are zero


cdef void connection_grant(Load* load, Connection* connection, Subscriber* subscriber) noexcept nogil:
    """Grant again what has been read, once it is a portion of the credit."""
    cdef uint8_t* frame
    if subscriber.credit_used < subscriber.credit_portion:
        return
    frame = connection_append(connection, FRAME_HEADER_BYTES + CREDIT_BYTES)
    if frame == NULL:
        return                       # the server reads nothing: the next chunk tries again
    frame_header_write(frame, CREDIT_BYTES, KIND_CREDIT)
    store_u32(frame + 8, SUBSCRIPTION)
    store_u32(frame + 12, 0)
    store_u64(frame + 16, subscriber.credit_used)
    subscriber.credit_used = 0
    connection_flush(load, connection)


cdef void connection_pong(Load* load, Connection* connection, const uint8_t* token) noexcept nogil:
    cdef uint8_t* frame = connection_append(connection, FRAME_HEADER_BYTES + 8)
    if frame == NULL:
        return                       # what is queued says as well that we live
    frame_header_write(frame, 8, KIND_PONG)
    memcpy(frame + FRAME_HEADER_BYTES, token, 8)
    connection_flush(load, connection)


# --- Publishing ---------------------------------------------------------------------------------------------------

cdef bint window_admits(uint64_t in_flight, uint64_t more, uint64_t window, bint* shut) noexcept nogil:
    """Say whether `more` records fit; a window that was full opens again when a quarter of it is free.

    Otherwise a publisher would send single records as single answers come, and a write costs as much as 30 records.
    """
    cdef uint64_t limit = window - window // 4 if shut[0] else window
    shut[0] = in_flight + more > limit
    return not shut[0]


cdef void audience_refresh(Load* load, uint32_t index) noexcept nogil:
    """Find the slowest steady subscriber of an audience; one without any never holds its publishers back."""
    cdef Audience* audience = &load.audiences[index]
    cdef uint64_t passed = audience.published
    cdef uint32_t i = index
    audience.turn = load.turn
    while i < load.subscribers_count:
        if load.subscribers[i].steady and load.subscribers[i].ledger.passed < passed:
            passed = load.subscribers[i].ledger.passed
        i += load.audiences_count
    audience.passed = passed


cdef bint audience_admits(Load* load, uint32_t index, uint64_t more) noexcept nogil:
    cdef Audience* audience = &load.audiences[index]
    if not load.subscribers_count:
        return True                  # nobody reads yet: what is unanswered is the only bound
    if not audience.shut and audience.published - audience.passed + more <= load.window:
        return True
    if audience.turn != load.turn:
        audience_refresh(load, index)
    return window_admits(audience.published - audience.passed, more, load.window, &audience.shut)


cdef uint64_t publisher_due_ns(Load* load, Publisher* publisher) noexcept nogil:
    """Return when the publisher's next frame is due. Frames take their turns over all publishers.

    Frame i of n a tick is due with the tick k in which the sum of n passes i: all that is due in a tick is due when it
    begins, so the driver's own sleep is no part of a latency.
    """
    cdef uint64_t frame, tick
    if load.rate == 0:
        return load.start_ns
    frame = publisher.frames * load.publishers_count + publisher.index
    tick = ((frame + 1) * load.batch * TICKS_PER_SECOND + load.rate - 1) // load.rate
    return load.start_ns + (tick - 1) * TICK_NS


cdef void publisher_frame(Load* load, Publisher* publisher, uint8_t* frame, uint32_t channel, uint32_t count,
                          uint64_t time_ns) noexcept nogil:
    """Write one PUBLISH frame of `count` records, PUBLISH_HEADER_BYTES + count * record_bytes after its header."""
    cdef uint8_t* record = frame + FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
    cdef uint32_t i, number = publisher.turn
    cdef uint32_t stamped = 0 if load.owned else publisher.index
    frame_header_write(frame, PUBLISH_HEADER_BYTES + count * load.record_bytes, KIND_PUBLISH)
    store_u32(frame + 8, number)
    store_u32(frame + 12, count)
    store_u64(frame + 16, publisher.records + 1)
    for i in range(count):
        store_u64(record, load.record_head)
        store_u32(record + 8, 0)
        memcpy(record + RECORD_HEADER_BYTES + STAMP_BYTES, load.pattern + STAMP_BYTES,
               load.payload_bytes - STAMP_BYTES)
        stamp_write(record + RECORD_HEADER_BYTES, stamped, publisher.counters[number] + i, time_ns, channel)
        record += load.record_bytes
    if publisher.sent != NULL:
        publisher.sent[(publisher.records + 1) & load.sent_mask] = Sent(publisher.records + 1, time_ns, number)
    publisher.counters[number] += count
    publisher.records += count
    publisher.left -= count
    publisher.frames += 1


cdef uint32_t publisher_next(Load* load, Publisher* publisher) noexcept nogil:
    """Choose the number that the next frame is for: the next one, or any of those that are the publisher's own."""
    if not load.random:
        return (publisher.turn + 1) % publisher.channels
    # xorshift64* (Vigna, 2016): any state but 0; the upper half is the better one.
    publisher.random ^= publisher.random >> 12
    publisher.random ^= publisher.random << 25
    publisher.random ^= publisher.random >> 27
    return <uint32_t>(((publisher.random * <uint64_t>0x2545F4914F6CDD1D >> 32) * publisher.channels) >> 32)


cdef uint64_t publisher_fill(Load* load, Connection* connection, uint64_t now_ns) noexcept nogil:
    """Write the frames that are due and admitted into an empty buffer.

    Returns:
        When the next frame is due, POLLER_NEVER when none is or another event must come first.
    """
    cdef Publisher* publisher = connection.publisher
    cdef uint32_t count, channel, audience
    cdef uint64_t due_ns
    cdef uint8_t* frame
    while publisher.left:
        due_ns = publisher_due_ns(load, publisher)
        if due_ns >= load.stop_ns or (load.rate == 0 and now_ns >= load.stop_ns):
            publisher.left = 0
            break
        if due_ns > now_ns:
            return due_ns
        count = <uint32_t>publisher.left if publisher.left < load.batch else load.batch
        if not window_admits(publisher.records - publisher.acked, count, load.window, &publisher.shut):
            break
        channel = publisher.turn * load.publishers_max + publisher.index if load.owned else publisher.turn
        audience = channel % load.audiences_count
        if not audience_admits(load, audience, count):
            break
        frame = connection_append(connection, FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + count * load.record_bytes)
        if frame == NULL:
            break
        publisher_frame(load, publisher, frame, channel, count, due_ns if load.rate else now_ns)
        load.audiences[audience].published += count
        publisher.turn = publisher_next(load, publisher)
    return POLLER_NEVER


cdef uint64_t load_publish(Load* load, uint64_t now_ns) noexcept nogil:
    """Let every publisher send what it may. Returns when the next frame of any is due.

    Publishers stand first among the connections. They take turns at being first, so that none starves at a window that
    they share.
    """
    cdef Connection* connection
    cdef uint64_t due_ns, wake_ns = POLLER_NEVER
    cdef uint32_t _turn, index = load.publisher_first
    for _turn in range(load.publishers_count):
        connection = &load.connections[index]
        index = (index + 1) % load.publishers_count
        if connection.out_end or not connection.publisher.left:
            continue
        due_ns = publisher_fill(load, connection, now_ns)
        if due_ns < wake_ns:
            wake_ns = due_ns
        if connection.out_end:
            load.active_ns = now_ns
            connection_flush(load, connection)
    if load.publishers_count:
        load.publisher_first = (load.publisher_first + 1) % load.publishers_count
    return wake_ns


cdef uint64_t numbers_sum(uint64_t first, uint64_t count) noexcept nogil:
    """Return first + … + (first + count - 1), modulo 2^64: one of the two factors halved is even."""
    if count % 2:
        return count * (first + count // 2)
    return count // 2 * (2 * first + count - 1)


cdef void publisher_answered(Load* load, Publisher* publisher, const uint8_t* entry, uint64_t now_ns,
                             Histogram latency) noexcept nogil:
    """Measure how long the frames of an entry have waited, and check that their channel went on where it was.

    An entry is of one channel. Whoever owns a channel sees each of its sequences answered, and in their order.
    """
    cdef uint64_t number = load_u64(entry), first = load_u64(entry + 16)
    cdef uint64_t end = number + load_u32(entry + 24)
    cdef Sent* sent = &publisher.sent[number & load.sent_mask]
    if publisher.heads != NULL:
        if publisher.heads[sent.channel] != 0 and first != publisher.heads[sent.channel] + 1:
            load.unordered += 1
        publisher.heads[sent.channel] = first + (end - number) - 1
    while number < end:
        sent = &publisher.sent[number & load.sent_mask]
        if sent.number == number:
            latency.record(now_ns - sent.time_ns if now_ns > sent.time_ns else 0)
        number += 1


cdef size_t take_published(Load* load, Connection* connection, const uint8_t* body, uint32_t size,
                           uint64_t now_ns, Histogram latency) noexcept nogil:
    """Count answers to publishes."""
    cdef Publisher* publisher = connection.publisher
    cdef uint64_t number
    cdef uint32_t at = 0, count
    cdef uint8_t level
    if publisher == NULL or size % PUBLISHED_ENTRY_BYTES:
        load_fail(load, connection, FAILURE_PROTOCOL, b"PUBLISHED: to a subscriber, or not a multiple of its entry")
        return 0
    while at < size:
        number = load_u64(body + at)
        count = load_u32(body + at + 24)
        level = body[at + 32]
        if number == 0 or number > publisher.records or count > publisher.records + 1 - number:
            load_fail(load, connection, FAILURE_PROTOCOL, b"PUBLISHED: answers more than was published")
            return 0
        if publisher.sent != NULL:
            publisher_answered(load, publisher, body + at, now_ns, latency)
        publisher.acked += count
        publisher.acked_sum += numbers_sum(number, count)
        if body[at + 33] & PUBLISHED_FLAG_DUPLICATE:
            load.acked_twice += count
        if level < load.level_min:
            load.level_min = level
        if level > load.level_max:
            load.level_max = level
        at += PUBLISHED_ENTRY_BYTES
    return size


# --- Reading ------------------------------------------------------------------------------------------------------

cdef Lane* subscriber_lane(Load* load, Subscriber* subscriber, uint64_t channel_id) noexcept nogil:
    """Find the lane of one of the server's channels, or open it. NULL when there are more than were subscribed to."""
    # Servers number their channels one after the other, and publishers go through them in turn: neighbours follow each
    # other here as well, or a thousand readers of as many channels would miss the cache with every record.
    cdef uint64_t slot = channel_id
    cdef Lane* lane = subscriber.lane
    if lane != NULL and lane.channel_id == channel_id:
        return lane
    while True:
        lane = &subscriber.lanes[slot & subscriber.lanes_mask]
        if lane.channel_id == channel_id:
            return lane
        if lane.channel_id == 0:
            break
        slot += 1
    if subscriber.lanes_used > subscriber.lanes_mask // 2:
        return NULL
    subscriber.lanes_used += 1
    lane.channel_id = channel_id
    lane.channel = UNBOUND
    return lane


cdef bint lane_bind(Load* load, Subscriber* subscriber, Lane* lane, uint32_t channel) noexcept nogil:
    """Say which of our channels a lane is. False when the subscriber has no such channel."""
    if channel >= load.channels or channel % load.audiences_count != subscriber.audience:
        return False
    lane.channel = channel
    lane.first_flow = <uint64_t>(channel // load.audiences_count) * load.flow_publishers
    return True


cdef bint lane_bind_name(Load* load, Subscriber* subscriber, Lane* lane, const uint8_t* name,
                         uint8_t size) noexcept nogil:
    """Bind a lane by the name that came with its first chunk, once for each.

    A name that ends in its index, as the works name them, is found at once, any other in O(channels of the audience).
    """
    cdef uint32_t channel = 0
    cdef uint64_t digit = 1
    cdef uint8_t at = size
    while at and 48 <= name[at - 1] <= 57 and digit <= load.channels:      # ASCII digits
        channel += <uint32_t>digit * (name[at - 1] - 48)
        digit *= 10
        at -= 1
    if (channel < load.channels and load.name_sizes[channel] == size
            and memcmp(load.names[channel], name, size) == 0):
        return lane_bind(load, subscriber, lane, channel)
    channel = subscriber.audience
    while channel < load.channels:
        if load.name_sizes[channel] == size and memcmp(load.names[channel], name, size) == 0:
            return lane_bind(load, subscriber, lane, channel)
        channel += load.audiences_count
    return False


cdef void lane_follow(Load* load, Lane* lane, const uint8_t* chunk) noexcept nogil:
    """Check that a chunk goes on where the one before it in its channel ended, in the same epoch."""
    cdef uint64_t epoch = load_u64(chunk + CHUNK_EPOCH)
    cdef uint64_t first = load_u64(chunk + CHUNK_FIRST)
    if epoch == 0 or (lane.epoch != 0 and lane.epoch != epoch) or first != lane.last + 1:
        load.misplaced += 1
    lane.epoch = epoch
    lane.last = first + load_u32(chunk + CHUNK_COUNT) - 1


cdef void subscriber_follow(Load* load, Subscriber* subscriber, const uint8_t* frame) noexcept nogil:
    """Check that bus positions of committed chunks increase. Ephemeral and early chunks are outside their order."""
    cdef uint64_t index = load_u32(frame + 12), group = load_u64(frame + 16)
    if group == 0 or frame[5] & DELIVER_FLAG_EARLY:
        return
    if group < subscriber.group or (group == subscriber.group and index <= subscriber.index):
        load.misplaced += 1
    subscriber.group = group
    subscriber.index = index


cdef bint deliver_legal(Load* load, const uint8_t* frame, size_t header_bytes) noexcept nogil:
    """Check the sizes and fixed fields of a DELIVER whose headers have come."""
    cdef const uint8_t* chunk = frame + header_bytes
    cdef uint64_t chunk_bytes = load_u32(chunk)
    return (load_u32(frame) + FRAME_HEADER_BYTES == header_bytes + chunk_bytes
            and load_u32(frame) <= load.frame_bytes_max
            and chunk_bytes >= CHUNK_HEADER_BYTES + RECORD_HEADER_BYTES
            and load_u32(frame + 8) == SUBSCRIPTION
            and load_u32(chunk + CHUNK_COUNT) != 0
            and load_u32(chunk + CHUNK_FLAGS) == 0
            and load_u64(chunk + CHUNK_CHANNEL) != 0)


cdef size_t take_deliver(Load* load, Connection* connection, const uint8_t* frame, size_t size) noexcept nogil:
    """Begin a chunk: take a DELIVER frame up to its first record. Returns 0 while more must come."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef size_t header_bytes = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES
    cdef bint named = frame[5] & DELIVER_FLAG_NAME, name_due
    cdef const uint8_t* chunk
    cdef Lane* lane
    if named:
        if size <= header_bytes:
            return 0
        header_bytes += 1 + frame[header_bytes]
    if size < header_bytes + CHUNK_HEADER_BYTES:
        return 0
    if subscriber == NULL or not deliver_legal(load, frame, header_bytes):
        load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: its sizes or fields are not legal")
        return 0
    chunk = frame + header_bytes
    lane = subscriber_lane(load, subscriber, load_u64(chunk + CHUNK_CHANNEL))
    if lane == NULL:
        load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: from more channels than were subscribed to")
        return 0
    name_due = subscriber.named != 0 and lane.last == 0
    if named != name_due:
        load.misplaced += 1
    elif named and not lane_bind_name(load, subscriber, lane, frame + FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES + 1,
                                      frame[FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES]):
        load.misplaced += 1
    lane_follow(load, lane, chunk)
    subscriber_follow(load, subscriber, frame)
    subscriber.lane = lane
    subscriber.chunk_bytes = load_u32(chunk)
    subscriber.chunk_left = subscriber.chunk_bytes - CHUNK_HEADER_BYTES
    subscriber.chunk_sequences = load_u32(chunk + CHUNK_COUNT)
    subscriber.chunk_crc = load_u32(chunk + CHUNK_CRC)
    if load.crc:
        subscriber.crc = crc32c(0, chunk + CHUNK_CHANNEL, CHUNK_HEADER_BYTES - CHUNK_CHANNEL)
    return header_bytes + CHUNK_HEADER_BYTES


cdef uint32_t record_fields_bytes(const uint8_t* record, uint32_t size) noexcept nogil:
    """Return the size of a record's header and fields: where its payload begins. Above `size` when they do not fit."""
    cdef uint32_t flags = load_u16(record + 4), at = RECORD_HEADER_BYTES
    if flags & RECORD_PUBLISHER:
        at += 1
        at += record[at - 1] if at <= size else <uint8_t>0
    if flags & RECORD_NUMBER:
        at += 8
    if flags & RECORD_PRIORITY:
        at += 1
    if flags & RECORD_EXPIRY:
        at += 4
    if flags & RECORD_KEY:
        at += 2
        at += load_u16(record + at - 2) if at <= size else <uint16_t>0
    if flags & RECORD_HEADERS:
        at += 2
        at += load_u16(record + at - 2) if at <= size else <uint16_t>0
    return at


cdef const uint8_t* record_payload(Subscriber* subscriber, const uint8_t* record, uint32_t size) noexcept nogil:
    """Return the payload of a whole record, NULL when it is none of ours: another size, or taken out by the server."""
    cdef uint32_t flags = load_u16(record + 4), at
    if flags & ~<uint32_t>RECORD_FLAGS_KNOWN or flags & RECORD_GONE:
        return NULL
    at = record_fields_bytes(record, size)
    if at > size or size - at != subscriber.ledger.payload_bytes:
        return NULL
    return record + at


cdef uint32_t record_sequences(const uint8_t* record, uint32_t size) noexcept nogil:
    """Return how many sequences a record covers: its run when it is GONE, else one."""
    if load_u16(record + 4) & RECORD_GONE and size == GONE_RECORD_BYTES:
        return load_u32(record + RECORD_HEADER_BYTES + 4)
    return 1


cdef void take_payload(Load* load, Subscriber* subscriber, const uint8_t* payload) noexcept nogil:
    """Check a payload against its flow. The first one of a lane without a name also says which channel it is."""
    cdef Lane* lane = subscriber.lane
    if lane.channel == UNBOUND and not lane_bind(load, subscriber, lane, load_u32(payload + STAMP_CHANNEL)):
        subscriber.ledger.taken += 1
        subscriber.ledger.corrupt += 1
        return
    ledger_take(&subscriber.ledger, lane.first_flow, lane.channel, payload)


cdef size_t take_records(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                         Histogram latency) noexcept nogil:
    """Check the records of the chunk under way that have come whole. Returns the bytes taken."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef size_t limit = size if size < subscriber.chunk_left else subscriber.chunk_left
    cdef size_t at = 0
    cdef uint32_t record_bytes, sequences
    cdef uint64_t time_ns, run_time_ns = 0
    cdef uint32_t run = 0                # records in a row that were sent at the same time
    cdef const uint8_t* payload
    while limit - at >= RECORD_HEADER_BYTES:
        if load_u64(data + at) == load.record_head:
            record_bytes = load.record_bytes
            payload = data + at + RECORD_HEADER_BYTES
            sequences = 1
            if limit - at < record_bytes:
                break
        else:
            record_bytes = load_u32(data + at)
            if record_bytes < RECORD_HEADER_BYTES or record_bytes > load.frame_bytes_max:
                load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: a record's size is not legal")
                return at
            if limit - at < record_bytes:
                break
            payload = record_payload(subscriber, data + at, record_bytes)
            sequences = record_sequences(data + at, record_bytes)
        if sequences > subscriber.chunk_sequences or sequences == 0:
            load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: more records than its chunk counts")
            return at
        subscriber.chunk_sequences -= sequences
        at += record_bytes
        if payload == NULL:
            subscriber.ledger.corrupt += 1
            continue
        take_payload(load, subscriber, payload)
        time_ns = load_u64(payload + STAMP_TIME)
        if time_ns != run_time_ns:
            if run and now_ns > run_time_ns:
                latency.record_n(now_ns - run_time_ns, run)
            run_time_ns = time_ns
            run = 0
        run += 1
    if run and now_ns > run_time_ns:
        latency.record_n(now_ns - run_time_ns, run)
    if load.crc:
        subscriber.crc = crc32c(subscriber.crc, data, at)
    subscriber.chunk_left -= <uint32_t>at
    if subscriber.chunk_left == 0:
        take_chunk_end(load, connection, subscriber)
    elif limit == subscriber.chunk_left + at:
        # All of the chunk is here, and what is left of it is no whole record.
        load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: a record passes its chunk's end")
    return at


cdef void take_chunk_end(Load* load, Connection* connection, Subscriber* subscriber) noexcept nogil:
    if subscriber.chunk_sequences:
        load_fail(load, connection, FAILURE_PROTOCOL, b"DELIVER: fewer records than its chunk counts")
    if load.crc and subscriber.crc != subscriber.chunk_crc:
        load.crc_wrong += 1
    subscriber.credit_used += subscriber.chunk_bytes
    connection_grant(load, connection, subscriber)


cdef bint body_tells(const uint8_t* body, uint32_t size, const char* event) noexcept nogil:
    """Say whether a control body has the pair (event, a word of up to EVENT_NAME_BYTES), without decoding it."""
    cdef uint8_t[7 + EVENT_NAME_BYTES] pair
    cdef uint32_t at, length = <uint32_t>strlen(event)
    memcpy(pair, b"\xa5event", 6)               # short strings of MessagePack: their length, then they
    pair[6] = 0xA0 | <uint8_t>length
    memcpy(pair + 7, event, length)
    length += 7
    for at in range(size - length + 1 if size >= length else 0):
        if memcmp(body + at, pair, length) == 0:
            return True
    return False


cdef void take_event(Load* load, const uint8_t* body, uint32_t size) noexcept nogil:
    load.events += 1
    if body_tells(body, size, b"lagging"):
        load.lagging += 1
    elif body_tells(body, size, b"live"):
        load.live += 1


cdef size_t take_frame(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                       Histogram latency) noexcept nogil:
    """Take one frame, or the head of a DELIVER. Returns the bytes taken, 0 while more must come."""
    cdef uint32_t body_bytes
    cdef uint8_t kind
    cdef const uint8_t* body = data + FRAME_HEADER_BYTES
    if size < FRAME_HEADER_BYTES:
        return 0
    body_bytes = load_u32(data)
    kind = data[4]
    if kind == KIND_DELIVER:
        return take_deliver(load, connection, data, size)
    if body_bytes > load.frame_bytes_max:
        load_fail(load, connection, FAILURE_PROTOCOL, b"a frame is larger than WELCOME allows")
        return 0
    if size < FRAME_HEADER_BYTES + <size_t>body_bytes:
        return 0
    if kind == KIND_PUBLISHED:
        take_published(load, connection, body, body_bytes, now_ns, latency)
    elif kind == KIND_PING and body_bytes == 8:
        connection_pong(load, connection, body)
    elif kind == KIND_ERROR:
        load_fail_body(load, connection, FAILURE_ERROR, body, body_bytes)
    elif kind == KIND_GOING_AWAY:
        load_fail_body(load, connection, FAILURE_GOING_AWAY, body, body_bytes)
    elif kind == KIND_EVENT:
        take_event(load, body, body_bytes)
    elif kind != KIND_PONG:
        load_fail(load, connection, FAILURE_PROTOCOL, b"a frame that does not belong here")
    return FRAME_HEADER_BYTES + <size_t>body_bytes


cdef size_t take_bytes(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                       Histogram latency) noexcept nogil:
    """Take all that can be taken of what has come. Returns the bytes taken."""
    cdef size_t at = 0, taken
    while load.failure == FAILURE_NONE:
        if connection.subscriber != NULL and connection.subscriber.chunk_left:
            taken = take_records(load, connection, data + at, size - at, now_ns, latency)
        else:
            taken = take_frame(load, connection, data + at, size - at, now_ns, latency)
        if taken == 0:
            break
        at += taken
    return at


cdef void connection_spill(Load* load, Connection* connection, const uint8_t* rest, size_t size) noexcept nogil:
    """Keep the bytes after the last whole piece. They may be in the spill already; then nothing moves."""
    cdef uint8_t* grown
    if size > connection.spill_capacity:
        grown = <uint8_t*>realloc(connection.spill, 2 * size)
        if grown == NULL:
            load_fail(load, connection, FAILURE_MEMORY, b"spill")
            return
        connection.spill = grown
        connection.spill_capacity = 2 * size
    if size:
        memcpy(connection.spill, rest, size)
    connection.spill_bytes = size


cdef void connection_receive(Load* load, Connection* connection, Histogram latency) noexcept nogil:
    """Read once and take what came. The poller is level-triggered: what is left in the socket comes next turn.

    Args:
        load, connection: who reads.
        latency: takes how old deliveries are, or how long a publisher's frames have waited for their answers.
    """
    cdef size_t kept = connection.spill_bytes, size, taken
    cdef ssize_t received
    cdef uint64_t now_ns
    received = recv(connection.fd, load.buffer + kept, RECEIVE_BYTES, 0)
    if received < 0:
        if errno != EAGAIN and errno != EINTR:
            load_fail(load, connection, FAILURE_SOCKET, b"recv")
        return
    if received == 0:
        load_fail(load, connection, FAILURE_CLOSED, b"the server closed the connection")
        return
    now_ns = clock_ns()
    if kept:
        memcpy(load.buffer, connection.spill, kept)
    size = kept + <size_t>received
    taken = take_bytes(load, connection, load.buffer, size, now_ns, latency)
    connection_spill(load, connection, load.buffer + taken, size - taken)
    load.active_ns = now_ns
    if taken:
        load.arrived_ns = now_ns


# --- The loop -----------------------------------------------------------------------------------------------------

cdef bint load_drained(Load* load) noexcept nogil:
    """Say whether everything that is to be published was, was answered, and has been read by everybody."""
    cdef uint32_t i
    cdef Publisher* publisher
    for i in range(load.publishers_count):
        publisher = load.connections[i].publisher
        if publisher.left or load.connections[i].out_end or publisher.acked != publisher.records:
            return False
    return not load_reads(load)


cdef bint load_reads(Load* load) noexcept nogil:
    """Say whether a subscriber that reads has not read everything."""
    cdef uint32_t i
    cdef Subscriber* subscriber
    for i in range(load.subscribers_count):
        subscriber = load.subscribers[i]
        if not subscriber.halted and subscriber.ledger.passed < load.audiences[subscriber.audience].published:
            return True
    return False


cdef bint load_outstanding(Load* load) noexcept nogil:
    """Say whether the server owes an answer or a delivery."""
    cdef uint32_t i
    for i in range(load.publishers_count):
        if load.connections[i].publisher.acked != load.connections[i].publisher.records:
            return True
    return load_reads(load)


cdef void load_assure(Load* load, uint64_t now_ns) noexcept nogil:
    """Let those who read nothing say that they are there: they see no PING, and a PONG says it as well."""
    cdef uint8_t[8] token
    cdef uint32_t i
    if now_ns - load.assured_ns < ASSURE_NS:
        return
    load.assured_ns = now_ns
    memset(token, 0, sizeof(token))
    for i in range(load.publishers_count, load.connections_count):
        if load.connections[i].subscriber.halted:
            connection_pong(load, &load.connections[i], token)


cdef bint load_turns(Load* load, Histogram latency, Histogram answers, Histogram untimed) noexcept nogil:
    """Run for a slice of time. Returns whether the run has ended."""
    cdef PollerEvent[POLLER_EVENTS_MAX] events
    cdef Connection* connection
    cdef uint64_t now_ns = clock_ns(), slice_ns = now_ns + SLICE_NS, wake_ns
    cdef int count, i
    load_assure(load, now_ns)
    while now_ns < slice_ns:
        load.turn += 1
        wake_ns = load_publish(load, now_ns)
        if load.failure != FAILURE_NONE:
            return True
        if now_ns >= load.hold_ns and load_drained(load):
            return True
        count = poller_wait(&load.poller, wake_ns if wake_ns < slice_ns else slice_ns, events)
        if count < 0:
            load.failure = FAILURE_SOCKET
            load.failure_errno = -count
            load.failure_detail = b"epoll_wait"
            return True
        for i in range(count):
            connection = &load.connections[events[i].index]
            if events[i].writable:
                connection_flush(load, connection)
            if not events[i].readable or load.failure != FAILURE_NONE:
                continue
            if connection.publisher != NULL:
                connection_receive(load, connection, answers)
            elif connection.subscriber.steady:
                connection_receive(load, connection, latency)
            else:
                connection_receive(load, connection, untimed)
        now_ns = clock_ns()
    return False


# --- Opening and closing ------------------------------------------------------------------------------------------

cdef int load_connect(Load* load, int fd, size_t out_capacity) except -1:
    """Take a socket in. Returns 0; the connection is the last one."""
    cdef Connection* connections
    cdef uint32_t capacity
    if load.connections_count == load.capacity:
        capacity = 2 * load.capacity + 64
        connections = <Connection*>realloc(load.connections, capacity * sizeof(Connection))
        if connections == NULL:
            raise MemoryError
        load.connections = connections
        load.capacity = capacity
    cdef Connection* connection = &load.connections[load.connections_count]
    memset(connection, 0, sizeof(Connection))
    connection.fd = fd
    connection.out_capacity = out_capacity
    connection.out = <uint8_t*>malloc(out_capacity)
    if connection.out == NULL:
        raise MemoryError
    cdef int reason = poller_add(&load.poller, fd)
    if reason:
        free(connection.out)
        raise OSError(reason, strerror(reason).decode())
    load.connections_count += 1
    return 0


cdef int publisher_open(Load* load, Publisher* publisher, uint64_t head) except -1:
    """Give a publisher its channels. What it has is freed with the driver, if this fails as well. Returns 0."""
    cdef uint32_t i
    publisher.channels = load.channels
    if load.owned:
        publisher.channels = (load.channels - publisher.index + load.publishers_max - 1) // load.publishers_max
        publisher.random = <uint64_t>0x9E3779B97F4A7C15 * (publisher.index + 1)
        publisher.turn = publisher_next(load, publisher) if load.random else 0
        publisher.heads = <uint64_t*>calloc(publisher.channels, sizeof(uint64_t))
        publisher.sent = <Sent*>calloc(load.sent_mask + 1, sizeof(Sent))
        if publisher.heads == NULL or publisher.sent == NULL:
            raise MemoryError
        for i in range(publisher.channels):
            publisher.heads[i] = head
    else:
        # Publishers start at different channels, or all of them would go through the same one at a time.
        publisher.turn = <uint32_t>(<uint64_t>publisher.index * load.channels // load.publishers_max)
    publisher.counters = <uint64_t*>calloc(publisher.channels, sizeof(uint64_t))
    if publisher.counters == NULL:
        raise MemoryError
    return 0


cdef void subscriber_free(Subscriber* subscriber) noexcept:
    ledger_close(&subscriber.ledger)
    free(subscriber.lanes)
    free(subscriber)


cdef Subscriber* subscriber_new(Load* load, uint32_t audience) except NULL:
    """Make a subscriber with room for every channel of its audience."""
    cdef uint32_t channels = (load.channels - audience + load.audiences_count - 1) // load.audiences_count
    cdef uint32_t lanes = 2
    while lanes < 2 * channels:
        lanes *= 2
    cdef Subscriber* subscriber = <Subscriber*>calloc(1, sizeof(Subscriber))
    if subscriber == NULL:
        raise MemoryError
    subscriber.audience = audience
    subscriber.lanes_mask = lanes - 1
    subscriber.lanes = <Lane*>calloc(lanes, sizeof(Lane))
    if subscriber.lanes == NULL or ledger_open(&subscriber.ledger, load.pattern, load.payload_bytes, channels,
                                               load.flow_publishers):
        subscriber_free(subscriber)
        raise MemoryError
    return subscriber


@cython.final
cdef class Driver:
    cdef Load load
    cdef bint opened
    cdef object names                # bytes of the channels' names, which load.names borrows
    cdef readonly Histogram latency
    cdef readonly Histogram answers
    cdef Histogram untimed           # of subscribers whose latency says nothing

    def __init__(self, names, *, uint32_t publishers, uint32_t audiences=1, uint32_t payload_bytes=128,
                 uint32_t batch=1, uint64_t window=16384, uint32_t frame_bytes_max=1 << 21, bint crc=False,
                 bint owned=False, bint random=False):
        """Prepare a load over channels.

        Args:
            names: the channels' names as bytes; a name's index is the number that every publisher has given it.
            publishers: how many connections will publish, 0 to 65,536.
            audiences: into how many groups channels and subscribers fall, by their index; 1 to the number of channels.
            payload_bytes: size of every payload, from STAMP_BYTES (24).
            batch: records in a PUBLISH frame, 1 to 65,535.
            window: records that may be unanswered for each publisher, and unread by the slowest subscriber of each
                audience; at least 4 * batch.
            frame_bytes_max: what WELCOME said; a larger frame ends the run.
            crc: whether each chunk's CRC-32C is checked as well.
            owned: each publisher has channels of its own, from its index on in steps of `publishers`, numbered from 0
                by its connection. How long each frame waits for its answer is measured then, and each channel's
                answers must follow one another.
            random: publishers take their channels at random instead of in turn; only with `owned`.

        Raises:
            ValueError: an argument is out of its range.
            MemoryError, OSError: no memory, or no descriptor for the poller.
        """
        cdef uint64_t record_bytes = <uint64_t>RECORD_HEADER_BYTES + payload_bytes
        names = tuple(names)
        if not 1 <= audiences <= len(names):
            raise ValueError(f"audiences: got {audiences}, from 1 to the {len(names)} channels")
        if payload_bytes < STAMP_BYTES:
            raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES} hold the stamp")
        if publishers > STAMP_PUBLISHERS_MAX:
            raise ValueError(f"publishers: got {publishers}, limit {STAMP_PUBLISHERS_MAX}")
        if not 1 <= batch <= PUBLISH_COUNT_MAX or window < 4 * <uint64_t>batch:
            raise ValueError(f"batch: got {batch}, from 1 to {PUBLISH_COUNT_MAX} and a quarter of the window {window}")
        if PUBLISH_HEADER_BYTES + batch * record_bytes > frame_bytes_max:
            raise ValueError(f"batch: {batch} records of {record_bytes} bytes pass the frame limit {frame_bytes_max}")
        if self.load.channels:
            raise ValueError("a driver is prepared once")
        self.load.payload_bytes = payload_bytes
        self.load.record_bytes = <uint32_t>record_bytes
        self.load.record_head = record_bytes     # flags and the reserved field are zero
        self.load.batch = batch
        self.load.window = window
        self.load.frame_bytes_max = frame_bytes_max
        self.load.crc = crc
        if owned and not 1 <= publishers <= len(names):
            raise ValueError(f"publishers: got {publishers}, from 1 to the {len(names)} channels that they own")
        self.load.publishers_max = publishers
        self.load.owned = owned
        self.load.random = owned and random
        self.load.flow_publishers = 1 if owned else publishers
        self.load.audiences_count = audiences
        self.load.channels = <uint32_t>len(names)
        self.latency = Histogram()
        self.answers = Histogram()
        self.untimed = Histogram()
        self.prepare_names(names)
        self.prepare_memory()
        cdef int reason = poller_open(&self.load.poller)
        if reason:
            raise OSError(reason, strerror(reason).decode())
        self.opened = True

    cdef int prepare_names(self, tuple names) except -1:
        cdef Py_ssize_t i
        self.names = names
        self.load.names = <const uint8_t**>calloc(len(names), sizeof(uint8_t*))
        self.load.name_sizes = <uint8_t*>calloc(len(names), 1)
        if self.load.names == NULL or self.load.name_sizes == NULL:
            raise MemoryError
        for i in range(len(names)):
            self.load.names[i] = <const uint8_t*>PyBytes_AS_STRING(names[i])
            self.load.name_sizes[i] = <uint8_t>len(names[i])
        return 0

    cdef int prepare_memory(self) except -1:
        # A spill is shorter than a frame with its header, or than the largest head of a DELIVER.
        self.load.buffer_bytes = RECEIVE_BYTES + 1024 + <size_t>self.load.frame_bytes_max
        self.load.buffer = <uint8_t*>malloc(self.load.buffer_bytes)
        while self.load.sent_mask < self.load.window:
            self.load.sent_mask = 2 * self.load.sent_mask + 1
        self.load.pattern = <uint8_t*>malloc(self.load.payload_bytes)
        self.load.audiences = <Audience*>calloc(self.load.audiences_count, sizeof(Audience))
        self.load.publishers = <Publisher*>calloc(self.load.publishers_max + 1, sizeof(Publisher))
        if (self.load.buffer == NULL or self.load.pattern == NULL or self.load.audiences == NULL
                or self.load.publishers == NULL):
            raise MemoryError
        pattern_fill(self.load.pattern, self.load.payload_bytes)
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.load.connections_count):
            free(self.load.connections[i].out)
            free(self.load.connections[i].spill)
        for i in range(self.load.subscribers_count):
            subscriber_free(self.load.subscribers[i])
        for i in range(self.load.publishers_max if self.load.publishers != NULL else 0):
            free(self.load.publishers[i].counters)
            free(self.load.publishers[i].heads)
            free(self.load.publishers[i].sent)
        free(self.load.connections)
        free(self.load.publishers)
        free(self.load.subscribers)
        free(self.load.audiences)
        free(self.load.pattern)
        free(self.load.buffer)
        free(self.load.names)
        free(self.load.name_sizes)
        free(self.load.failure_body)
        if self.opened:
            poller_close(&self.load.poller)

    def add_publisher(self, int fd, *, uint64_t head=0):
        """Take in a non-blocking socket that has named all its channels. Before any subscriber. It is borrowed.

        Args:
            fd: the socket.
            head: with `owned`, the sequence that each of its channels has reached; 0 when nobody knows.

        Raises:
            ValueError: there are as many as were announced, or a subscriber has been added.
        """
        cdef Load* load = &self.load
        if load.publishers_count == load.publishers_max or load.subscribers_count:
            raise ValueError(f"publishers: {load.publishers_max} were announced, and they come before subscribers")
        load_connect(load, fd, SEND_BYTES if SEND_BYTES > self.frame_bytes() else self.frame_bytes())
        cdef Publisher* publisher = &load.publishers[load.publishers_count]
        publisher.index = load.publishers_count
        publisher_open(load, publisher, head)
        load.connections[load.connections_count - 1].publisher = publisher
        load.publishers_count += 1

    cdef size_t frame_bytes(self):
        return FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + <size_t>self.load.batch * self.load.record_bytes

    def add_subscriber(self, int fd, *, uint64_t credit_bytes, bint named=False, bint steady=True):
        """Take in a non-blocking socket with subscription 1 over every channel of its audience.

        Subscribers fall into audiences in the order in which they are added. Their channels are followed from their
        first sequence on, so the subscription began at the start, or before anything was published.

        Args:
            fd: the socket; borrowed.
            credit_bytes: what SUBSCRIBE granted. It is granted again by eighths. At least four times what the window
                lets be under way: a CREDIT may be overtaken by all that was published because of it.
            named: whether DELIVER must tell the channels' names: it is of anything but exactly one literal.
            steady: whether its deliveries are timed and publishers wait for it. One that is not reads at its own pace.

        Raises:
            MemoryError, OSError: no memory, or the poller cannot take the socket.
        """
        cdef Load* load = &self.load
        cdef Subscriber** subscribers = <Subscriber**>realloc(
            load.subscribers, (load.subscribers_count + 1) * sizeof(Subscriber*))
        if subscribers == NULL:
            raise MemoryError
        load.subscribers = subscribers
        cdef Subscriber* subscriber = subscriber_new(load, load.subscribers_count % load.audiences_count)
        subscriber.credit_portion = credit_bytes // CREDIT_PORTIONS
        subscriber.named = <uint8_t>named
        subscriber.steady = <uint8_t>steady
        try:
            load_connect(load, fd, ANSWER_BYTES)
        except BaseException:
            subscriber_free(subscriber)
            raise
        load.connections[load.connections_count - 1].subscriber = subscriber
        load.subscribers[load.subscribers_count] = subscriber
        load.subscribers_count += 1

    def halt(self, uint32_t first):
        """Let the subscribers from index `first` on, in the order in which they were added, read nothing any more.

        They are no part of what a run waits for, nor of what is lost. While a run lasts they say that they are there,
        at first and about every five seconds.
        """
        cdef uint32_t i
        self.load.assured_ns = 0
        for i in range(first, self.load.subscribers_count):
            self.load.subscribers[i].halted = True
        self.attend()

    def read_on(self):
        """Let all subscribers read."""
        cdef uint32_t i
        for i in range(self.load.subscribers_count):
            self.load.subscribers[i].halted = False
        self.attend()

    cdef void attend(self) noexcept:
        cdef uint32_t i
        for i in range(self.load.publishers_count, self.load.connections_count):
            connection_interest(&self.load, &self.load.connections[i])

    def run(self, *, uint64_t messages=0, double seconds=0, uint64_t rate=0, double hold_s=0, double patience_s=10,
            on_slice=None):
        """Publish, read until everything has come, and say what came. May be called again, with more subscribers.

        Args:
            messages: how many to publish, by all publishers together; 0 with `seconds` for no bound.
            seconds: when to stop publishing; 0 for no bound.
            rate: records a second by all publishers together; 0 is as fast as the windows allow.
            hold_s: stay at least this long, answering PINGs.
            patience_s: how long the server may owe an answer or a delivery and send nothing, before the rest is lost.
            on_slice: called about ten times a second; the load waits for it.

        Returns:
            An Outcome. `finished` says that nothing is owed; `seconds` reach from the first publish to the last answer
            or delivery; `cpu_s` is this thread's.

        Raises:
            KeyboardInterrupt, or what a signal handler or `on_slice` raises: the load is cut short.
        """
        cdef Load* load = &self.load
        cdef uint64_t cpu_ns = clock_cpu_ns(), taken = self.count_taken(), sent = self.count_sent()
        cdef uint64_t acked = self.count_acked()
        cdef bint ended = False
        self.begin(messages, seconds, rate, hold_s)
        while not ended:
            with nogil:
                ended = load_turns(load, self.latency, self.answers, self.untimed)
            PyErr_CheckSignals()
            if on_slice is not None:
                on_slice()
            if not ended and self.stalled(patience_s):
                break
        cpu_ns = clock_cpu_ns() - cpu_ns
        return self.outcome(ended and load.failure == FAILURE_NONE, <double>cpu_ns * 1e-9, taken, sent, acked)

    cdef void begin(self, uint64_t messages, double seconds, uint64_t rate, double hold_s) noexcept:
        """Set up one run: share the messages out, the first publishers take the rest."""
        cdef Load* load = &self.load
        cdef uint32_t i
        cdef uint64_t now_ns = clock_ns()
        load.rate = rate
        load.start_ns = load.active_ns = load.arrived_ns = now_ns
        load.stop_ns = now_ns + <uint64_t>(seconds * 1e9) if seconds > 0 else UINT64_MAX
        load.hold_ns = now_ns + <uint64_t>(hold_s * 1e9)
        load.level_min, load.level_max = 255, 0
        for i in range(load.publishers_count):
            load.publishers[i].frames = 0
            if messages == 0:
                load.publishers[i].left = UINT64_MAX if seconds > 0 else 0
            else:
                load.publishers[i].left = messages // load.publishers_count + (i < messages % load.publishers_count)

    @property
    def acked(self):
        """Records that have been answered since the driver was made; also while it runs, from `on_slice`."""
        return self.count_acked()

    @property
    def lagging(self):
        """Events that said that a subscriber has fallen behind; also while it runs."""
        return self.load.lagging

    @property
    def live(self):
        """Events that said that one is live again."""
        return self.load.live

    @property
    def owed(self):
        """Deliveries that are still to come, to those as well who read nothing at present."""
        cdef uint64_t owed = 0, published, passed
        cdef uint32_t i
        for i in range(self.load.subscribers_count):
            published = self.load.audiences[self.load.subscribers[i].audience].published
            passed = self.load.subscribers[i].ledger.passed
            owed += published - passed if published > passed else 0
        return owed

    cdef bint stalled(self, double patience_s):
        cdef uint64_t now_ns = clock_ns()
        return (now_ns > self.load.active_ns and <double>(now_ns - self.load.active_ns) * 1e-9 > patience_s
                and load_outstanding(&self.load))

    cdef uint64_t count_taken(self) noexcept:
        cdef uint64_t taken = 0
        cdef uint32_t i
        for i in range(self.load.subscribers_count):
            taken += self.load.subscribers[i].ledger.taken
        return taken

    cdef uint64_t count_sent(self) noexcept:
        cdef uint64_t sent = 0
        cdef uint32_t i
        for i in range(self.load.publishers_count):
            sent += self.load.publishers[i].records
        return sent

    cdef uint64_t count_acked(self) noexcept:
        cdef uint64_t acked = 0
        cdef uint32_t i
        for i in range(self.load.publishers_count):
            acked += self.load.publishers[i].acked
        return acked

    cdef uint64_t count_lost(self) noexcept:
        """Sum what was passed over and never came, and what was sent after the last that came."""
        cdef Load* load = &self.load
        cdef uint64_t lost = 0, published, passed
        cdef uint32_t i
        for i in range(load.subscribers_count):
            lost += ledger_lost(&load.subscribers[i].ledger)
            if load.subscribers[i].halted:
                continue
            published = load.audiences[load.subscribers[i].audience].published
            passed = load.subscribers[i].ledger.passed
            # A reader is only ahead of all publishers when it was handed somebody else's messages.
            lost += published - passed if published > passed else 0
        return lost

    cdef object outcome(self, bint finished, double cpu_s, uint64_t taken, uint64_t sent, uint64_t acked):
        cdef Load* load = &self.load
        cdef uint64_t duplicated = 0, reordered = 0, corrupt = 0
        cdef uint32_t i
        cdef bint misanswered = False
        for i in range(load.publishers_count):
            misanswered |= finished and load.publishers[i].acked_sum != numbers_sum(1, load.publishers[i].records)
        for i in range(load.subscribers_count):
            duplicated += load.subscribers[i].ledger.duplicated
            reordered += load.subscribers[i].ledger.reordered
            corrupt += load.subscribers[i].ledger.corrupt
        if misanswered:
            finished = False
            load.failure = FAILURE_PROTOCOL
            load.failure_detail = b"PUBLISHED: some numbers were answered twice and others never"
        return Outcome(
            finished=finished, seconds=<double>(load.arrived_ns - load.start_ns) * 1e-9, cpu_s=cpu_s,
            sent=self.count_sent() - sent, acked=self.count_acked() - acked, acked_twice=load.acked_twice,
            deliveries=self.count_taken() - taken, lost=self.count_lost(), duplicated=duplicated,
            reordered=reordered, corrupt=corrupt + load.crc_wrong, misplaced=load.misplaced,
            unordered=load.unordered, events=load.events, lagging=load.lagging, live=load.live,
            level_min=load.level_min if load.level_max else 0, level_max=load.level_max, failure=self.failure())

    cdef object failure(self):
        cdef Load* load = &self.load
        cdef bytes detail, body = b""
        if load.failure == FAILURE_NONE:
            return None
        detail = load.failure_detail if load.failure_detail != NULL else b""
        if load.failure_errno:
            detail += b": " + strerror(load.failure_errno)
        if load.failure_body != NULL:
            body = PyBytes_FromStringAndSize(<const char*>load.failure_body, load.failure_bytes)
        return Failure(FAILURES[load.failure], load.failure_connection, detail.decode(), body)


# --- The ledger for Python ----------------------------------------------------------------------------------------

@cython.final
cdef class Verifier:
    """The stamps and the ledger of one reader, for works that publish and read through the Python client."""

    cdef Ledger ledger
    cdef uint8_t* pattern
    cdef uint64_t* counters          # [flows]: of the next payload
    cdef uint32_t channels
    cdef uint64_t sent

    def __cinit__(self, *, uint32_t publishers=1, uint32_t channels=1, uint32_t payload_bytes=128):
        """Prepare flows of publishers (to 65,536) and channels with payloads of `payload_bytes` (from 24).

        Raises:
            ValueError: an argument is out of its range.
        """
        if payload_bytes < STAMP_BYTES or not 1 <= publishers <= STAMP_PUBLISHERS_MAX or channels < 1:
            raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES}; publishers: got "
                             f"{publishers}, from 1 to {STAMP_PUBLISHERS_MAX}; channels: got {channels}, at least 1")
        self.channels = channels
        self.pattern = <uint8_t*>malloc(payload_bytes)
        if self.pattern == NULL:
            raise MemoryError
        pattern_fill(self.pattern, payload_bytes)
        if ledger_open(&self.ledger, self.pattern, payload_bytes, channels, publishers):
            raise MemoryError
        self.counters = <uint64_t*>calloc(self.ledger.flows, sizeof(uint64_t))
        if self.counters == NULL:
            raise MemoryError

    def __dealloc__(self):
        ledger_close(&self.ledger)
        free(self.pattern)
        free(self.counters)

    def payloads(self, Py_ssize_t count, *, uint32_t publisher=0, uint32_t channel=0):
        """Make the next `count` payloads of a flow, stamped with the time of this call.

        Raises:
            ValueError: there is no such flow.
        """
        cdef uint32_t payload_bytes = self.ledger.payload_bytes
        cdef uint64_t now_ns = clock_ns()
        cdef uint64_t* counter = self.counter(publisher, channel)
        cdef uint8_t* data
        cdef Py_ssize_t _made
        cdef bytes payload
        cdef list made = []
        for _made in range(count):
            payload = PyBytes_FromStringAndSize(<const char*>self.pattern, payload_bytes)
            data = <uint8_t*>PyBytes_AS_STRING(payload)      # nobody else has it yet
            stamp_write(data, publisher, counter[0], now_ns, channel)
            counter[0] += 1
            made.append(payload)
        self.sent += count
        return made

    def expect(self, uint64_t count, *, uint32_t publisher=0, uint32_t channel=0):
        """Count `count` messages of a flow as sent, though another one made them.

        Raises:
            ValueError: there is no such flow.
        """
        self.counter(publisher, channel)[0] += count
        self.sent += count

    cdef uint64_t* counter(self, uint32_t publisher, uint32_t channel) except NULL:
        if publisher >= self.ledger.publishers or channel >= self.channels:
            raise ValueError(f"flow: got publisher {publisher}, channel {channel}")
        return &self.counters[<uint64_t>channel * self.ledger.publishers + publisher]

    def check(self, payload, Histogram latency=None):
        """Check one payload that has come.

        Args:
            payload: any contiguous buffer; borrowed for the call.
            latency: takes the nanoseconds since the payload was made.
        """
        self.check_buffer(payload, latency, clock_ns() if latency is not None else 0)

    def check_all(self, payloads, Histogram latency=None):
        """Check payloads that have come together, in their order; the arguments are those of `check`."""
        cdef uint64_t now_ns = clock_ns()
        for payload in payloads:
            self.check_buffer(payload, latency, now_ns)

    cdef int check_buffer(self, object payload, Histogram latency, uint64_t now_ns) except -1:
        cdef Py_buffer view
        cdef uint64_t time_ns
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        self.check_bytes(<const uint8_t*>view.buf, view.len)
        if latency is not None and view.len >= STAMP_BYTES:
            time_ns = load_u64(<const uint8_t*>view.buf + STAMP_TIME)
            latency.record(now_ns - time_ns if now_ns > time_ns else 0)
        PyBuffer_Release(&view)
        return 0

    cdef void check_bytes(self, const uint8_t* payload, Py_ssize_t size) noexcept:
        cdef uint32_t channel
        if size != self.ledger.payload_bytes or load_u32(payload + STAMP_CHANNEL) >= self.channels:
            self.ledger.taken += 1
            self.ledger.corrupt += 1
            return
        channel = load_u32(payload + STAMP_CHANNEL)
        ledger_take(&self.ledger, <uint64_t>channel * self.ledger.publishers, channel, payload)

    @property
    def taken(self):
        """Payloads that have been checked."""
        return self.ledger.taken

    @property
    def lost(self):
        """Payloads that were made and have not come."""
        return ledger_lost(&self.ledger) + self.sent - self.ledger.passed

    @property
    def duplicated(self):
        return self.ledger.duplicated

    @property
    def reordered(self):
        return self.ledger.reordered

    @property
    def corrupt(self):
        return self.ledger.corrupt


def payload_of(uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel, uint32_t payload_bytes):
    """Return one payload as a driver would send it, so that tests can compare it with their own.

    Raises:
        ValueError: `payload_bytes` is under STAMP_BYTES.
    """
    if payload_bytes < STAMP_BYTES:
        raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES} hold the stamp")
    cdef bytearray payload = bytearray(payload_bytes)
    cdef uint8_t* data = <uint8_t*>payload
    pattern_fill(data, payload_bytes)
    stamp_write(data, publisher, counter, time_ns, channel)
    return bytes(payload)
