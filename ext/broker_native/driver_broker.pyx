"""The broker's own protocol as the load driver speaks it: broker/wire/specification.md, sections 2 to 5.

Frames are parsed as they come: records are checked where `recv` put them, and what a connection must keep between two
reads is the half of one record or header, never of a chunk. Besides each record it checks each chunk: that it goes on
where the one before it in its channel ended, that bus positions increase, and if asked to its CRC.

On a WebSocket messages are opened as they come, whole frames in each, and what is sent goes in messages whose mask is
zero: that is allowed, and costs nothing.

It must not decode control bodies: what the broker says in an ERROR is handed back whole.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen

from broker_native.crc32c cimport crc32c
from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_ERROR, FAILURE_GOING_AWAY, FAILURE_NONE, FAILURE_PROTOCOL, KEY_BYTES, KEY_FIELD_BYTES,
    Lane, Load, Publisher, Run, STAMP_CHANNEL, STAMP_TIME, Sent, Subscriber, UNBOUND, channel_named, connection_append,
    connection_flush, lane_bind, ledger_take, load_fail, load_fail_body, payload_write, publisher_acked,
    publisher_wrote, run_end, run_take)
from broker_native.histogram cimport Histogram
from broker_native.layout cimport (
    CHUNK_CHANNEL, CHUNK_COUNT, CHUNK_CRC, CHUNK_EPOCH, CHUNK_FIRST, CHUNK_FLAGS, CHUNK_HEADER_BYTES, CREDIT_BYTES,
    DELIVER_FLAG_EARLY, DELIVER_FLAG_NAME, DELIVER_HEADER_BYTES, FRAME_HEADER_BYTES, GONE_RECORD_BYTES, KIND_CREDIT,
    KIND_DELIVER, KIND_ERROR, KIND_EVENT, KIND_GOING_AWAY, KIND_PING, KIND_PONG, KIND_PUBLISHED,
    PUBLISHED_ENTRY_BYTES, PUBLISHED_FLAG_DUPLICATE, PUBLISH_AT_BYTES, PUBLISH_FLAG_AT, PUBLISH_HEADER_BYTES,
    RECORD_EXPIRY, RECORD_FLAGS_KNOWN, RECORD_GONE, RECORD_HEADERS, RECORD_HEADER_BYTES, RECORD_ID, RECORD_KEY,
    RECORD_NUMBER, RECORD_PRIORITY, RECORD_PUBLISHER, load_u16, load_u32, load_u64, store_u16, store_u32, store_u64)

cdef enum:
    SUBSCRIPTION = 1               # the number of a subscriber's only subscription
    EVENT_NAME_BYTES = 8           # the longest word that is looked for in an EVENT
    WEB_BINARY = 0x82              # a whole binary message in one frame (RFC 6455, 5.2),
    WEB_MASKED = 0x80              # in the second byte; servers mask nothing
    WEB_HEADER_BYTES = 6           # of a short message with its mask


# --- Sending ------------------------------------------------------------------------------------------------------


cdef uint8_t* connection_frame(Connection* connection, size_t size) noexcept nogil:
    """Return where a short frame of so many bytes goes; NULL when it does not fit."""
    cdef uint8_t* header
    if not connection.web:
        return connection_append(connection, size)
    header = connection_append(connection, WEB_HEADER_BYTES + size)
    if header == NULL:
        return NULL
    header[0] = WEB_BINARY
    header[1] = <uint8_t>(WEB_MASKED | size)
    memset(header + 2, 0, 4)
    return header + WEB_HEADER_BYTES


cdef void connection_grant(Load* load, Connection* connection, Subscriber* subscriber) noexcept nogil:
    """Grant again what has been read, once it is a portion of the credit."""
    cdef uint8_t* frame
    if subscriber.credit_used < subscriber.credit_portion:
        return
    frame = connection_frame(connection, FRAME_HEADER_BYTES + CREDIT_BYTES)
    if frame == NULL:
        return                       # the server reads nothing: the next chunk tries again
    frame_header_write(frame, CREDIT_BYTES, KIND_CREDIT)
    store_u32(frame + 8, SUBSCRIPTION)
    store_u32(frame + 12, 0)
    store_u64(frame + 16, subscriber.credit_used)
    subscriber.credit_used = 0
    connection_flush(load, connection)


cdef void connection_pong(Load* load, Connection* connection, const uint8_t* token) noexcept nogil:
    cdef uint8_t* frame = connection_frame(connection, FRAME_HEADER_BYTES + 8)
    if frame == NULL:
        return                       # what is queued says as well that we live
    frame_header_write(frame, 8, KIND_PONG)
    memcpy(frame + FRAME_HEADER_BYTES, token, 8)
    connection_flush(load, connection)


cdef void assure(Load* load, Connection* connection) noexcept nogil:
    """Let one who reads nothing say that it is there: it sees no PING, and a PONG says it as well."""
    cdef uint8_t[8] token
    memset(token, 0, sizeof(token))
    connection_pong(load, connection, token)


cdef uint8_t* write_keyed(Load* load, Publisher* publisher, uint8_t* frame, uint32_t channel, uint32_t count,
                          uint64_t time_ns) noexcept nogil:
    """Write one PUBLISH frame of records with keys."""
    cdef uint8_t* record = frame + FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
    cdef uint8_t* digit
    cdef uint32_t i, number = publisher.turn
    cdef uint64_t counter, key
    frame_header_write(frame, PUBLISH_HEADER_BYTES + count * load.record_bytes, KIND_PUBLISH)
    store_u32(frame + 8, number)
    store_u32(frame + 12, count)
    store_u64(frame + 16, publisher.records + 1)
    for i in range(count):
        counter = publisher.counters[number] + i
        store_u64(record, load.record_head | <uint64_t>RECORD_KEY << 32)
        store_u32(record + 8, 0)
        store_u16(record + RECORD_HEADER_BYTES, KEY_BYTES)
        key = counter % load.keys
        digit = record + RECORD_HEADER_BYTES + KEY_FIELD_BYTES
        while digit > record + RECORD_HEADER_BYTES + 2:
            digit -= 1
            digit[0] = <uint8_t>(48 + key % 10)
            key = key // 10
        payload_write(load, record + RECORD_HEADER_BYTES + KEY_FIELD_BYTES, publisher.index, counter, time_ns, channel)
        record += load.record_bytes
    publisher_wrote(publisher, number, count)
    return record


cdef uint8_t* write_delayed(Load* load, Publisher* publisher, uint8_t* frame, uint32_t channel, uint32_t count,
                            uint64_t time_ns) noexcept nogil:
    """Write one PUBLISH frame with AT; the stamps of its records say when they are due."""
    cdef uint8_t* record = frame + FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + PUBLISH_AT_BYTES
    cdef uint32_t i, number = publisher.turn
    cdef uint64_t turn = publisher.records * load.publishers_count + publisher.index
    cdef uint64_t counter, due_ns = load.due_ns + load.due_step_ns * turn
    frame_header_write(frame, PUBLISH_HEADER_BYTES + PUBLISH_AT_BYTES + count * load.record_bytes, KIND_PUBLISH)
    frame[5] = PUBLISH_FLAG_AT
    store_u32(frame + 8, number)
    store_u32(frame + 12, count)
    store_u64(frame + 16, publisher.records + 1)
    store_u64(frame + 24, load.wall_us + due_ns // 1000)
    for i in range(count):
        counter = publisher.counters[number] + i
        store_u64(record, load.record_head)
        store_u32(record + 8, 0)
        id_write(record + RECORD_HEADER_BYTES, publisher.index, channel, counter)
        payload_write(load, record + RECORD_HEADER_BYTES + load.fields_bytes, publisher.index, counter, due_ns, channel)
        record += load.record_bytes
    publisher_wrote(publisher, number, count)
    return record


# --- Answers ------------------------------------------------------------------------------------------------------


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
        publisher_acked(publisher, number, count)
        if body[at + 33] & PUBLISHED_FLAG_DUPLICATE:
            load.acked_twice += count
        if level < load.level_min:
            load.level_min = level
        if level > load.level_max:
            load.level_max = level
        at += PUBLISHED_ENTRY_BYTES
    return size


# --- Deliveries ---------------------------------------------------------------------------------------------------


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


cdef bint lane_bind_name(Load* load, Subscriber* subscriber, Lane* lane, const uint8_t* name,
                         uint8_t size) noexcept nogil:
    """Bind a lane by the name that came with its first chunk, once for each."""
    return lane_bind(load, subscriber, lane, channel_named(load, subscriber.audience, name, size))


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
    if flags & RECORD_ID:
        at += 1
        at += record[at - 1] if at <= size else <uint8_t>0
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
    cdef Run run = Run(now_ns, 0, 0)
    cdef const uint8_t* payload
    while limit - at >= RECORD_HEADER_BYTES:
        if load_u64(data + at) == load.record_head:
            record_bytes = load.record_bytes
            payload = data + at + RECORD_HEADER_BYTES + load.fields_bytes
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
        run_take(&run, load_u64(payload + STAMP_TIME), latency)
    run_end(&run, latency)
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


# --- Frames -------------------------------------------------------------------------------------------------------


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
    if connection.web:
        return take_messages(load, connection, data, size, now_ns, latency)
    return take_frames(load, connection, data, size, now_ns, latency)


cdef size_t take_messages(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                          Histogram latency) noexcept nogil:
    """The same of a WebSocket."""
    cdef size_t at = 0, part, taken, width, index
    while load.failure == FAILURE_NONE:
        if connection.message_left == 0:
            if size - at < 2:
                break
            if data[at] != WEB_BINARY or data[at + 1] & WEB_MASKED:
                load_fail(load, connection, FAILURE_PROTOCOL, b"no whole binary message")
                break
            width = 0
            if data[at + 1] >= 126:
                width = 2 if data[at + 1] == 126 else 8
            if size - at < 2 + width:
                break
            if width == 0:
                connection.message_left = data[at + 1]
            for index in range(width):
                connection.message_left = connection.message_left << 8 | data[at + 2 + index]
            at += 2 + width
        part = size - at
        if part > connection.message_left:
            part = <size_t>connection.message_left
        taken = take_frames(load, connection, data + at, part, now_ns, latency)
        if taken == 0 and part:
            if part == connection.message_left:
                load_fail(load, connection, FAILURE_PROTOCOL, b"a message that ends within a frame")
            break
        if part == 0 and connection.message_left:
            break
        at += taken
        connection.message_left -= taken
    return at


cdef size_t take_frames(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                        Histogram latency) noexcept nogil:
    """Take frames as far as they have come. Returns the bytes taken."""
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


cdef Dialect dialect, keyed, delayed
dialect.write = NULL                # broker_write, which its caller takes in
dialect.take = take_bytes
dialect.assure = assure
dialect.answered = True


keyed.write = write_keyed
keyed.take = take_bytes
keyed.assure = assure
keyed.answered = True


delayed.write = write_delayed
delayed.take = take_bytes
delayed.assure = assure
delayed.answered = True


cdef const Dialect* broker_dialect() noexcept nogil:
    return &dialect


cdef const Dialect* broker_keyed_dialect() noexcept nogil:
    return &keyed


cdef const Dialect* broker_delayed_dialect() noexcept nogil:
    return &delayed


def extra_bytes(bint delayed=False):
    """Return what a PUBLISH frame takes besides its records."""
    return FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + (PUBLISH_AT_BYTES if delayed else 0)


def record_bytes_max(uint64_t payload_bytes, bint ids=False):
    """Return what a record takes: all of them take the same."""
    return RECORD_HEADER_BYTES + (DRIVER_ID_BYTES if ids else 0) + payload_bytes
