"""The load driver behind `broker bench`: publishes, reads and checks millions of records a second on one thread.

A driver gets sockets whose handshakes are over; from then on it speaks the hot part of their protocol in C, without the
interpreter lock: the broker's own, or that of a server that it is compared with (a dialect). As fast as it can, each
window opens when its slowest reader has read; or by a rate, in ticks of 100 us, with every record stamped with the time
at which it was due, so that a server that falls behind is seen as latency and not as a lower rate.

A window is what was published and not yet delivered to the slowest reader, and for each publisher what was sent and not
yet answered where the protocol has answers. It is the same whatever the dialect, and so is the check of every record:
its header, its stamp, each of its other bytes, and its place in its flow (driver_ledger.h).

Subscribers may be told to read nothing for a while, like a client that hangs: their sockets fill, and all that is heard
of them is that they are there.

It must not become the bottleneck, so it sleeps whenever there is nothing to do and never spins; its processor time is
part of what a run returns. It must not know how a protocol spells anything.

One thread at a time. Sockets are borrowed: their owner keeps them open for as long as the driver lives.
"""

import time
from collections import namedtuple
from secrets import token_hex

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, strerror

from broker_native import driver_broker, driver_mqtt, driver_nats, driver_redis, ledger
from broker_native.driver_broker cimport (
    DRIVER_ID_BYTES, broker_delayed_dialect, broker_dialect, broker_keyed_dialect, broker_write)
from broker_native.driver_load cimport (
    Audience, Connection, Dialect, FAILURE_NONE, FAILURE_PROTOCOL, FAILURE_SOCKET, INBOX_BYTES_MAX, KEYS_MAX,
    KEY_FIELD_BYTES, LINE_BYTES_MAX, LINE_END_BYTES, Lane, Load, POLLER_EVENTS_MAX, POLLER_NEVER, Publisher,
    PollerEvent, RECEIVE_BYTES, STAMP_BYTES, STAMP_PUBLISHERS_MAX, Sent, Subscriber, Text, clock_cpu_ns, clock_ns,
    connection_append, connection_flush, connection_interest, connection_receive, lane_bind, ledger_close, ledger_lost,
    ledger_open, load_connect, load_failure, numbers_sum, pattern_fill, poller_close, poller_open, poller_wait)
from broker_native.driver_mqtt cimport mqtt_dialect
from broker_native.driver_nats cimport jetstream_dialect, nats_dialect
from broker_native.driver_redis cimport redis_dialect, redis_stream_dialect, redis_stream_read_on
from broker_native.histogram cimport Histogram
from broker_native.layout cimport PUBLISH_COUNT_MAX, RECORD_ID

cdef enum:
    CREDIT_PORTIONS = 8
    TICK_NS = 100_000
    TICKS_PER_SECOND = 10_000
    SLICE_NS = 100_000_000         # how long the loop runs before signals and stalls are looked at
    SEND_BYTES = 256 * 1024        # one send of a publisher
    ANSWER_BYTES = 512             # a subscriber's: CREDIT and PONG
    SPILL_LINES_MAX = 6            # of LINE_BYTES_MAX each, before a payload: a message of Redis has the most
    USUAL_BYTES = 64               # of how a message begins, at first
    NUMBER_BYTES_MAX = 20          # of a decimal u64

    DIALECT_BROKER = 0
    DIALECT_REDIS = 1
    DIALECT_REDIS_STREAM = 2
    DIALECT_NATS = 3
    DIALECT_JETSTREAM = 4
    DIALECT_MQTT_0 = 5
    DIALECT_MQTT_1 = 6

cdef uint64_t ASSURE_NS = 5_000_000_000     # a client says so often that it is there: a third of what servers wait

DIALECTS = ("broker", "redis", "redis-stream", "nats", "jetstream", "mqtt-0", "mqtt-1")

Verifier, payload_of = ledger.Verifier, ledger.payload_of     # what a driver sends and checks, for Python

Outcome = namedtuple("Outcome", (
    "finished", "seconds", "cpu_s", "sent", "acked", "acked_twice", "deliveries", "lost", "duplicated", "reordered",
    "corrupt", "misplaced", "unordered", "events", "lagging", "live", "level_min", "level_max", "failure"))


# --- Windows and the schedule -------------------------------------------------------------------------------------


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


cdef uint32_t publisher_next(Load* load, Publisher* publisher) noexcept nogil:
    """Choose the number that the next frame is for: the next one, or any of those that are the publisher's own."""
    if not load.random:
        return (publisher.turn + 1) % publisher.channels
    # xorshift64* (Vigna, 2016): any state but 0; the upper half is the better one.
    publisher.random ^= publisher.random >> 12
    publisher.random ^= publisher.random << 25
    publisher.random ^= publisher.random >> 27
    return <uint32_t>(((publisher.random * <uint64_t>0x2545F4914F6CDD1D >> 32) * publisher.channels) >> 32)


cdef inline uint64_t publisher_fill(Load* load, Connection* connection, uint64_t now_ns, bint ours) noexcept nogil:
    """Write the frames that are due and admitted into an empty buffer.

    `ours` is a constant where this is called, so that there are two loops: one that has become one piece with what it
    writes, and one for all other dialects.

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
        frame = connection_append(connection, load.frame_extra_bytes + count * load.record_bytes)
        if frame == NULL:
            break
        if ours:
            broker_write(load, publisher, frame, channel, count, due_ns if load.rate else now_ns)
        else:
            frame = load.dialect.write(load, publisher, frame, channel, count, due_ns if load.rate else now_ns)
            connection.out_end = <size_t>(frame - connection.out)
        load.audiences[audience].published += count
        publisher.turn = publisher_next(load, publisher)
    return POLLER_NEVER


cdef uint64_t publisher_fill_ours(Load* load, Connection* connection, uint64_t now_ns) noexcept nogil:
    return publisher_fill(load, connection, now_ns, True)


cdef uint64_t publisher_fill_other(Load* load, Connection* connection, uint64_t now_ns) noexcept nogil:
    return publisher_fill(load, connection, now_ns, False)


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
        if load.dialect.write == NULL:
            due_ns = publisher_fill_ours(load, connection, now_ns)
        else:
            due_ns = publisher_fill_other(load, connection, now_ns)
        if due_ns < wake_ns:
            wake_ns = due_ns
        if connection.out_end:
            load.active_ns = now_ns
            connection_flush(load, connection)
    if load.publishers_count:
        load.publisher_first = (load.publisher_first + 1) % load.publishers_count
    return wake_ns


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
    """Let those who read nothing say that they are there, where that is needed."""
    cdef uint32_t i
    if load.dialect.assure == NULL or now_ns - load.assured_ns < ASSURE_NS:
        return
    load.assured_ns = now_ns
    for i in range(load.publishers_count, load.connections_count):
        if load.connections[i].subscriber.halted:
            load.dialect.assure(load, &load.connections[i])


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
    free(subscriber.usual)
    free(subscriber.request)
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
    subscriber.usual_capacity = USUAL_BYTES
    subscriber.usual = <uint8_t*>malloc(USUAL_BYTES)
    if (subscriber.lanes == NULL or subscriber.usual == NULL
            or ledger_open(&subscriber.ledger, load.pattern, load.payload_bytes, channels, load.flow_publishers)):
        subscriber_free(subscriber)
        raise MemoryError
    return subscriber


@cython.final
cdef class Driver:
    cdef Load load
    cdef bint opened
    cdef bint delayed
    cdef int dialect                 # DIALECT_*
    cdef object names                # bytes of the channels' names, which load.names borrows
    cdef object heads                # the same of load.heads
    cdef bytes size_text             # and of load.size
    cdef readonly Histogram latency
    cdef readonly Histogram answers
    cdef Histogram untimed           # of subscribers whose latency says nothing

    def __init__(self, names, *, uint32_t publishers, uint32_t audiences=1, uint32_t payload_bytes=128,
                 uint32_t batch=1, uint64_t window=16384, uint32_t frame_bytes_max=1 << 21, bint crc=False,
                 bint owned=False, bint random=False, bint ids=False, uint32_t keys=0, bint delayed=False,
                 dialect="broker"):
        """Prepare a load over channels.

        Args:
            names: the channels' names as bytes; a name's index is the number that every publisher has given it. Other
                dialects call them channels, streams, subjects or topics.
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
            ids: each record has an id of its own; not with keys.
            keys: each record has a key, of which there are so many: its flow's counter modulo their number, in
                KEY_BYTES (8) digits. 0 for records without; with keys there are no subscribers.
            delayed: records are published for later, at the times of `delay`; with ids.
            dialect: the protocol of all sockets: one of DIALECTS. What only the broker's has (`owned`, `crc`, `ids`,
                `delayed`, `head`, `keys`, credit, and chunks, answers and events in an Outcome) means nothing in
                others.

        Raises:
            ValueError: an argument is out of its range.
            MemoryError, OSError: no memory, or no descriptor for the poller.
        """
        cdef uint64_t record_bytes
        names = tuple(names)
        if dialect not in DIALECTS:
            raise ValueError(f"dialect: got {dialect}, one of {', '.join(DIALECTS)}")
        if not 1 <= audiences <= len(names):
            raise ValueError(f"audiences: got {audiences}, from 1 to the {len(names)} channels")
        if payload_bytes < STAMP_BYTES:
            raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES} hold the stamp")
        if publishers > STAMP_PUBLISHERS_MAX:
            raise ValueError(f"publishers: got {publishers}, limit {STAMP_PUBLISHERS_MAX}")
        if not 1 <= batch <= PUBLISH_COUNT_MAX or window < 4 * <uint64_t>batch:
            raise ValueError(f"batch: got {batch}, from 1 to {PUBLISH_COUNT_MAX} and a quarter of the window {window}")
        if self.load.channels:
            raise ValueError("a driver is prepared once")
        self.dialect = DIALECTS.index(dialect)
        if self.dialect != DIALECT_BROKER and (owned or random or crc or ids or keys):
            raise ValueError(f"{dialect}: got owned, random, crc, ids or keys, which mean nothing in it")
        if delayed and (owned or not ids):
            raise ValueError("delayed: got no ids, or channels that are owned")
        self.delayed = delayed
        if ids and keys:
            raise ValueError("got ids and keys, of which a record has one here")
        if keys > KEYS_MAX:
            raise ValueError(f"keys: got {keys}, limit {KEYS_MAX}")
        self.load.keys = keys
        if self.dialect == DIALECT_MQTT_1 and window > driver_mqtt.IDENTIFIERS:
            raise ValueError(f"window: got {window}, limit {driver_mqtt.IDENTIFIERS}: QoS 1 tells no more apart")
        record_bytes = self.prepare_dialect(names, payload_bytes, ids)
        if self.load.frame_extra_bytes + batch * record_bytes > frame_bytes_max:
            raise ValueError(f"batch: {batch} records of {record_bytes} bytes pass the frame limit {frame_bytes_max}")
        self.load.payload_bytes = payload_bytes
        self.load.record_bytes = <uint32_t>record_bytes
        # Of the broker's records; the reserved field is zero.
        self.load.record_head = record_bytes | (<uint64_t>RECORD_ID << 32 if ids else 0)
        self.load.fields_bytes = DRIVER_ID_BYTES if ids else 0
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

    cdef uint64_t prepare_dialect(self, tuple names, uint32_t payload_bytes, bint ids) except 0:
        """Set what a dialect needs to know of channels and payloads. Returns what a record takes at most."""
        cdef Load* load = &self.load
        cdef list heads = []
        cdef bytes head
        cdef uint64_t head_bytes_max = 0
        load.dialect = self.dialect_of()
        if self.dialect == DIALECT_BROKER:
            load.frame_extra_bytes = driver_broker.extra_bytes(self.delayed)
            return driver_broker.record_bytes_max(payload_bytes, ids) + (KEY_FIELD_BYTES if load.keys else 0)
        for name in names:
            head = self.head_of(name, payload_bytes)
            heads.append(head)
            if <uint64_t>len(head) > head_bytes_max:
                head_bytes_max = len(head)
        self.size_text = driver_nats.size_text(payload_bytes)
        load.size = Text(<const uint8_t*>PyBytes_AS_STRING(self.size_text), <uint32_t>PyBytes_GET_SIZE(self.size_text))
        self.prepare_heads(tuple(heads))
        return head_bytes_max + INBOX_BYTES_MAX + NUMBER_BYTES_MAX + load.size.size + payload_bytes + LINE_END_BYTES

    cdef const Dialect* dialect_of(self) noexcept:
        if self.dialect == DIALECT_BROKER:
            if self.delayed:
                return broker_delayed_dialect()
            return broker_keyed_dialect() if self.load.keys else broker_dialect()
        if self.dialect == DIALECT_REDIS:
            return redis_dialect()
        if self.dialect == DIALECT_REDIS_STREAM:
            return redis_stream_dialect()
        if self.dialect == DIALECT_NATS:
            return nats_dialect()
        if self.dialect == DIALECT_JETSTREAM:
            return jetstream_dialect()
        return mqtt_dialect(self.dialect == DIALECT_MQTT_1)

    cdef bytes head_of(self, bytes name, uint32_t payload_bytes):
        """Return what a publisher writes before the payload of a channel, as far as it is always the same."""
        if self.dialect == DIALECT_REDIS:
            return driver_redis.publish_head(name, payload_bytes)
        if self.dialect == DIALECT_REDIS_STREAM:
            return driver_redis.add_head(name, payload_bytes)
        if self.dialect == DIALECT_NATS:
            return driver_nats.publish_head(name, payload_bytes)
        if self.dialect == DIALECT_JETSTREAM:
            return driver_nats.stream_head(name)
        return driver_mqtt.publish_head(name, payload_bytes, self.dialect == DIALECT_MQTT_1)

    cdef int prepare_heads(self, tuple heads) except -1:
        cdef Py_ssize_t i
        self.heads = heads
        self.load.heads = <Text*>calloc(len(heads), sizeof(Text))
        if self.load.heads == NULL:
            raise MemoryError
        for i in range(len(heads)):
            self.load.heads[i] = Text(<const uint8_t*>PyBytes_AS_STRING(heads[i]), <uint32_t>PyBytes_GET_SIZE(heads[i]))
        return 0

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
        # A spill is shorter than a frame with its header, or than the largest head of a DELIVER; in other dialects than
        # a few lines and the largest payload.
        self.load.buffer_bytes = RECEIVE_BYTES + SPILL_LINES_MAX * LINE_BYTES_MAX + <size_t>self.load.frame_bytes_max
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
        free(self.load.heads)
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
        if self.dialect == DIALECT_JETSTREAM:
            self.open_inbox(publisher, &load.connections[load.connections_count - 1])
        load.connections[load.connections_count - 1].publisher = publisher
        load.publishers_count += 1

    cdef int open_inbox(self, Publisher* publisher, Connection* connection) except -1:
        """Give a publisher an inbox that nobody else has; what it subscribes with goes before its first message."""
        cdef bytes inbox = b"_INBOX.%b." % token_hex(8).encode()
        cdef bytes words = b"SUB %b* 1\r\n" % inbox
        publisher.inbox_bytes = <uint32_t>len(inbox)
        memcpy(publisher.inbox, PyBytes_AS_STRING(inbox), publisher.inbox_bytes)
        memcpy(connection_append(connection, len(words)), PyBytes_AS_STRING(words), len(words))
        connection_flush(&self.load, connection)
        return 0

    cdef size_t frame_bytes(self):
        return self.load.frame_extra_bytes + <size_t>self.load.batch * self.load.record_bytes

    def add_subscriber(self, int fd, *, uint64_t credit_bytes=0, bint named=False, bint steady=True,
                       uint32_t count=4096, bint web=False):
        """Take in a non-blocking socket that is subscribed to every channel of its audience, as number 1.

        Subscribers fall into audiences in the order in which they are added. Their channels are followed from their
        first sequence on, so the subscription began at the start, or before anything was published.

        Args:
            fd: the socket; borrowed.
            credit_bytes: what SUBSCRIBE granted. It is granted again by eighths. At least four times what the window
                lets be under way: a CREDIT may be overtaken by all that was published because of it.
            named: whether DELIVER must tell the channels' names: it is of anything but exactly one literal.
            steady: whether its deliveries are timed and publishers wait for it. One that is not reads at its own pace.
            count: of `redis-stream`, how many entries of each stream it asks for at once; it begins at their start.
            web: of the broker, whether the socket is a WebSocket.

        Raises:
            ValueError: records have keys.
            MemoryError, OSError: no memory, or the poller cannot take the socket.
        """
        cdef Load* load = &self.load
        if load.keys:
            raise ValueError(f"keys: got {load.keys} and a subscriber, who takes records without")
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
        load.connections[load.connections_count - 1].web = web
        load.subscribers[load.subscribers_count] = subscriber
        load.subscribers_count += 1
        if self.dialect != DIALECT_BROKER:
            self.open_lanes(subscriber)
        if self.dialect == DIALECT_REDIS_STREAM:
            self.open_streams(&load.connections[load.connections_count - 1], count)

    cdef void open_lanes(self, Subscriber* subscriber) noexcept:
        """Bind the lanes of all channels of an audience: each message says its channel's name."""
        cdef uint32_t channel = subscriber.audience, lane = 0
        while channel < self.load.channels:
            lane_bind(&self.load, subscriber, &subscriber.lanes[lane], channel)
            channel += self.load.audiences_count
            lane += 1

    cdef int open_streams(self, Connection* connection, uint32_t count) except -1:
        """Ask for the entries of all streams of an audience, from their start."""
        cdef Subscriber* subscriber = connection.subscriber
        cdef bytes request = driver_redis.read_head(self.names[subscriber.audience::self.load.audiences_count], count)
        subscriber.request = <uint8_t*>malloc(len(request))
        if subscriber.request == NULL:
            raise MemoryError
        memcpy(subscriber.request, PyBytes_AS_STRING(request), len(request))
        subscriber.request_bytes = len(request)
        redis_stream_read_on(&self.load, connection)
        return 0

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

    def delay(self, *, double lead_s, double step_s):
        """Say when what is published from now on is due, with `delayed`: record after record, of all publishers.

        What it says of the broker's time is right on the machine of the broker.

        Args:
            lead_s: how long from now the first of them is due.
            step_s: how far apart they are. Records of one frame are due together.
        """
        cdef uint64_t now_ns = clock_ns()
        self.load.due_ns = now_ns + <uint64_t>(lead_s * 1e9)
        self.load.due_step_ns = <uint64_t>(step_s * 1e9)
        self.load.wall_us = time.time_ns() // 1000 - now_ns // 1000

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
            level_min=load.level_min if load.level_max else 0, level_max=load.level_max, failure=load_failure(load))
