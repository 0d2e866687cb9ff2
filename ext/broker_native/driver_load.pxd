# What a load is made of: connections, publishers, subscribers, their windows; and what each protocol must give it.
#
# A subscriber belongs to one audience and so do its channels: channel c and subscriber s meet when c % audiences ==
# s % audiences. With one audience everybody reads everything; with as many as subscribers each has channels of its own.
# Each audience has a window: what was published to it and not yet read by its slowest subscriber is bounded, so that a
# load never outruns the credit which its readers have granted.
#
# Four ideas, a module each: what all share (here), the loop and its windows (driver), and a dialect for each protocol
# (driver_broker, driver_redis, driver_nats, driver_mqtt). A dialect writes what a publisher sends and takes what a
# socket gave; it knows neither clock nor poller, and no dialect knows another one.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from broker_native.histogram cimport Histogram
from broker_native.layout cimport load_u64

cdef extern from "driver_ledger.h" nogil:
    enum:
        STAMP_BYTES
        STAMP_TIME
        STAMP_CHANNEL
        STAMP_PUBLISHERS_MAX

    ctypedef struct Ledger:
        uint64_t flows
        uint64_t* next
        uint64_t passed
        uint64_t taken
        uint64_t duplicated
        uint64_t reordered
        uint64_t corrupt
        uint32_t payload_bytes
        uint32_t publishers

    void stamp_write(uint8_t* payload, uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel)
    void pattern_fill(uint8_t* pattern, uint32_t payload_bytes)
    int ledger_open(Ledger* ledger, const uint8_t* pattern, uint32_t payload_bytes, uint32_t channels,
                    uint32_t publishers)
    void ledger_close(Ledger* ledger)
    void ledger_take(Ledger* ledger, uint64_t first_flow, uint32_t channel, const uint8_t* payload)
    uint64_t ledger_lost(const Ledger* ledger)

cdef extern from "driver_poll.h" nogil:
    enum:
        POLLER_EVENTS_MAX
    const uint64_t POLLER_NEVER

    ctypedef struct Poller:
        pass

    ctypedef struct PollerEvent:
        uint32_t index
        uint8_t readable
        uint8_t writable

    uint64_t clock_ns()
    uint64_t clock_cpu_ns()
    int poller_open(Poller* poller)
    void poller_close(Poller* poller)
    int poller_add(Poller* poller, int fd)
    int poller_interest(Poller* poller, int fd, uint32_t index, bint reading, bint writing)
    int poller_wait(Poller* poller, uint64_t deadline_ns, PollerEvent* events)

cdef enum:
    KEY_BYTES = 8                  # of a record's key: the digits of its number
    KEY_FIELD_BYTES = 2 + KEY_BYTES
    KEYS_MAX = 100_000_000

    UNBOUND = 0xFFFFFFFF           # a lane's channel before it is known
    INBOX_BYTES_MAX = 32
    LINE_END_BYTES = 2             # CR LF
    RECEIVE_BYTES = 256 * 1024     # one recv: stays in the second-level cache until it has been checked
    LINE_BYTES_MAX = 64 * 1024     # of a text protocol; the longest is the greeting of NATS

    FAILURE_NONE = 0
    FAILURE_ERROR = 1              # the broker sent ERROR
    FAILURE_GOING_AWAY = 2
    FAILURE_CLOSED = 3             # the server closed the connection
    FAILURE_SOCKET = 4
    FAILURE_PROTOCOL = 5           # the server broke its protocol
    FAILURE_MEMORY = 6
    FAILURE_REFUSED = 7            # a server of another kind said in its own words that it will not

cdef struct Lane:               # one channel as one subscription sees it
    uint64_t channel_id         # the broker's; 0 while the lane is free
    uint64_t epoch              # of a stream of Redis: the milliseconds of the newest entry's id,
    uint64_t last               # sequence of the newest record, 0 before the first; and the number behind them
    uint64_t first_flow         # of the channel in the subscriber's ledger
    uint32_t channel            # ours; UNBOUND until a name or a payload has told it

cdef struct Subscriber:
    Ledger ledger
    Lane* lanes                 # lanes_mask + 1 of them, at most half of them in use: the broker's by open addressing,
    uint32_t lanes_mask         # those of others by their place in the audience
    uint32_t lanes_used
    uint32_t audience
    uint8_t named               # the first chunk of each channel must tell its name
    uint8_t steady              # reads all the time: it is timed, and publishers wait for it
    uint8_t halted              # reads nothing at present
    uint64_t credit_portion     # bytes; what has been read is granted again in portions of this size
    uint64_t credit_used        # bytes read and not yet granted again
    uint64_t group              # bus position of the newest chunk that was committed when it came
    uint64_t index
    # the chunk under way
    Lane* lane                  # also of the newest message of another dialect
    uint32_t chunk_left         # bytes of records still to come; 0 between chunks
    uint32_t chunk_sequences    # sequences that they must cover
    uint32_t chunk_bytes
    uint32_t chunk_crc          # as its header says
    uint32_t crc                # of what has come
    # what other dialects keep
    uint8_t* usual              # how the newest message began; the next one probably begins like it
    uint32_t usual_bytes
    uint32_t usual_capacity
    uint32_t streams_left       # of a reply to XREAD: streams to come behind this one,
    uint32_t entries_left       # and entries of this one
    uint8_t pairs               # whether a stream's name and its entries are an array of their own (RESP2)
    uint8_t* request            # the next XREAD but for the places from which it reads
    size_t request_bytes

cdef struct Sent:               # a PUBLISH that waits for its answer
    uint64_t number             # of its first record
    uint64_t time_ns
    uint32_t channel

cdef struct Publisher:
    uint32_t index
    uint32_t channels           # that it has named, with numbers from 0
    uint32_t turn               # which of its numbers is next
    uint64_t random             # the state of its choice, when channels are chosen at random
    Sent* sent                  # [load.sent_mask + 1], by number; NULL unless answers are measured
    uint64_t frames             # sent
    uint64_t records            # sent; the line's next number is one higher
    uint64_t acked
    uint64_t acked_sum          # of the numbers that were answered, modulo 2^64: each must be answered once
    uint64_t left               # records still to send
    bint shut                   # its window of unanswered records is full
    uint64_t* counters          # [channels]: the next counter of each of its flows
    uint64_t* heads             # [channels]: the last sequence that was answered, 0 before; NULL unless it owns them
    uint8_t[INBOX_BYTES_MAX] inbox      # where answers to it go, and a point behind it
    uint32_t inbox_bytes

cdef struct Audience:
    uint64_t published
    uint64_t passed             # by its slowest subscriber, as of `turn`
    uint64_t turn
    bint shut                   # its window is full

cdef struct Connection:
    int fd
    bint waits_to_write
    Publisher* publisher        # one of the two
    Subscriber* subscriber
    uint8_t* out
    size_t out_capacity
    size_t out_begin            # out[out_begin, out_end) is still to be sent
    size_t out_end
    uint8_t* spill              # the bytes of a frame or record that has not come whole
    size_t spill_bytes
    size_t spill_capacity
    bint web                    # a WebSocket: frames come and go in binary messages
    uint64_t message_left       # bytes of its message under way that are still to come

cdef struct Text:               # bytes that somebody else owns
    const uint8_t* bytes
    uint32_t size

cdef struct Dialect             # below

cdef struct Load:
    Poller poller
    const Dialect* dialect
    Connection* connections
    Publisher* publishers
    Subscriber** subscribers
    Audience* audiences
    uint32_t connections_count
    uint32_t publishers_count
    uint32_t publishers_max
    uint32_t subscribers_count
    uint32_t capacity           # of connections and subscribers
    uint32_t channels
    uint32_t audiences_count
    bint owned                  # each publisher has channels of its own
    bint random                 # and takes them at random
    uint32_t flow_publishers    # publishers that a channel has
    uint64_t sent_mask
    # a record
    uint8_t* pattern            # a payload
    uint32_t payload_bytes
    uint32_t record_bytes       # with all that its dialect puts around it, at most
    uint32_t frame_extra_bytes  # what a frame takes besides its records
    uint64_t record_head        # the first 8 bytes of a record without a key
    uint32_t fields_bytes       # between its header and its payload: DRIVER_ID_BYTES with ids, else 0
    uint32_t keys               # that records have in turn; 0: they have none
    uint64_t due_ns             # when the first record is due, and how far apart all of them are,
    uint64_t due_step_ns        # … with publishers that publish for later; by this clock,
    uint64_t wall_us            # … to which so much is added for that of the broker
    uint32_t batch
    bint crc
    uint32_t frame_bytes_max
    uint64_t window             # records
    # names, for subscriptions with wildcards
    const uint8_t** names
    uint8_t* name_sizes
    # of dialects that say more than a number with each message
    Text* heads                 # [channels]: what a publisher writes before a payload, as far as it is always the same
    Text size                   # what announces a payload's size at the end of such a head
    # one run
    uint64_t rate               # records a second of all publishers, 0 = as fast as the windows allow
    uint64_t start_ns
    uint64_t stop_ns            # nothing is due from here on
    uint64_t hold_ns            # the run does not end before
    uint64_t turn
    uint64_t active_ns          # when something was last sent or received
    uint64_t arrived_ns         # when a record or an answer last came
    uint64_t assured_ns         # when those who read nothing last said that they are there
    uint32_t publisher_first    # who is asked first in the next turn
    # what came
    uint8_t* buffer             # where every connection reads to
    size_t buffer_bytes
    uint64_t acked_twice        # records whose answer says duplicate
    uint64_t misplaced          # chunks that do not follow the one before
    uint64_t unordered          # answers that do not follow the one before in their channel
    uint64_t crc_wrong
    uint64_t events
    uint64_t lagging            # of these, how many say that a subscriber has fallen behind,
    uint64_t live               # and that it has all again
    uint8_t level_min
    uint8_t level_max
    # what ended it
    int failure                 # FAILURE_*
    int failure_errno
    uint32_t failure_connection
    const char* failure_detail
    uint8_t* failure_body
    uint32_t failure_bytes

cdef struct Dialect:
    # Writes `count` records for a channel at `at`, where frame_extra_bytes + count * record_bytes are free. Returns the
    # end of what it wrote. NULL: the broker's own, which is part of the loop (driver_broker.pxd).
    uint8_t* (*write)(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                      uint64_t time_ns) noexcept nogil
    # Takes what came as far as it is whole, and returns how much that was. The rest comes again, with more behind it.
    size_t (*take)(Load* load, Connection* connection, const uint8_t* data, size_t size, uint64_t now_ns,
                   Histogram latency) noexcept nogil
    # Says something so that a server does not take a subscriber that reads nothing for dead. NULL: no need to.
    void (*assure)(Load* load, Connection* connection) noexcept nogil
    bint answered                # each record is answered, sooner or later

cdef struct Run:                # deliveries in a row that were sent at the same time
    uint64_t now_ns
    uint64_t time_ns
    uint32_t count


# --- Failing ------------------------------------------------------------------------------------------------------

cdef void load_fail(Load* load, Connection* connection, int failure, const char* detail) noexcept nogil
cdef void load_fail_body(Load* load, Connection* connection, int failure, const uint8_t* body,
                         uint32_t size) noexcept nogil
# Fails with what a server of another kind said, in its words; `detail` names what it answered.
cdef void load_refused(Load* load, Connection* connection, const char* detail, const uint8_t* said,
                       size_t size) noexcept nogil
# What ended a run as a Failure, None when nothing did.
cdef object load_failure(const Load* load)


# --- Sending ------------------------------------------------------------------------------------------------------

# Sends what is waiting, and asks to be told when the socket takes the rest.
cdef void connection_flush(Load* load, Connection* connection) noexcept nogil
cdef void connection_interest(Load* load, Connection* connection) noexcept nogil
# Takes a socket in as the last connection; it is borrowed.
cdef int load_connect(Load* load, int fd, size_t out_capacity) except -1
# Reads once, and has the dialect take what came.
cdef void connection_receive(Load* load, Connection* connection, Histogram latency) noexcept nogil
# Like connection_append, but makes room; NULL when there is no memory, and then the run has failed.
cdef uint8_t* connection_reserve(Load* load, Connection* connection, size_t size) noexcept nogil


cdef inline uint8_t* connection_append(Connection* connection, size_t size) noexcept nogil:
    """Return where `size` more bytes go, or NULL when they do not fit."""
    if connection.out_capacity - connection.out_end < size:
        return NULL
    connection.out_end += size
    return connection.out + connection.out_end - size


# Writes messages that are their channel's head, a payload and the end of a line; a Dialect's `write`.
cdef uint8_t* write_lines(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                          uint64_t time_ns) noexcept nogil


cdef inline void payload_write(Load* load, uint8_t* payload, uint32_t publisher, uint64_t counter, uint64_t time_ns,
                               uint32_t channel) noexcept nogil:
    # The stamp first, whose parts would otherwise have to be kept over the call of memcpy.
    stamp_write(payload, publisher, counter, time_ns, channel)
    memcpy(payload + STAMP_BYTES, load.pattern + STAMP_BYTES, load.payload_bytes - STAMP_BYTES)


# --- Lines and numbers of text protocols --------------------------------------------------------------------------

# Returns the size of the line that begins here, with its end; 0 while it is not whole, or when it is none.
cdef size_t line_find(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil
cdef bint number_parse(const uint8_t* at, size_t size, uint64_t* value) noexcept nogil
# Writes up to 20 bytes and returns their end.
cdef uint8_t* number_write(uint8_t* at, uint64_t value) noexcept nogil


# --- Answers ------------------------------------------------------------------------------------------------------

cdef inline uint64_t numbers_sum(uint64_t first, uint64_t count) noexcept nogil:
    """Return first + … + (first + count - 1), modulo 2^64: one of the two factors halved is even."""
    if count % 2:
        return count * (first + count // 2)
    return count // 2 * (2 * first + count - 1)


cdef inline void publisher_wrote(Publisher* publisher, uint32_t number, uint32_t count) noexcept nogil:
    """Count a frame that has been written for the channel that the publisher knows by `number`."""
    publisher.counters[number] += count
    publisher.records += count
    publisher.left -= count
    publisher.frames += 1


cdef inline void publisher_acked(Publisher* publisher, uint64_t number, uint64_t count) noexcept nogil:
    publisher.acked += count
    publisher.acked_sum += numbers_sum(number, count)


# --- Deliveries ---------------------------------------------------------------------------------------------------

cdef bint lane_bind(Load* load, Subscriber* subscriber, Lane* lane, uint32_t channel) noexcept nogil
# Returns which channel of the audience has a name, UNBOUND when none has.
cdef uint32_t channel_named(const Load* load, uint32_t audience, const uint8_t* name, size_t size) noexcept nogil
# The lane of the channel with a name, for the dialects that say it with each message. NULL when there is none.
cdef Lane* subscriber_lane_named(Load* load, Subscriber* subscriber, const uint8_t* name, size_t size) noexcept nogil
# Keeps how a message began, for subscriber_usual. Fails the run without memory.
cdef void subscriber_remember(Load* load, Connection* connection, const uint8_t* head, size_t size) noexcept nogil


cdef inline void run_end(Run* run, Histogram latency) noexcept nogil:
    """Record the deliveries that were sent at the same time. What comes from the future has no latency."""
    if run.count and run.now_ns > run.time_ns:
        latency.record_n(run.now_ns - run.time_ns, run.count)


cdef inline void run_take(Run* run, uint64_t time_ns, Histogram latency) noexcept nogil:
    if time_ns != run.time_ns:
        run_end(run, latency)
        run.time_ns = time_ns
        run.count = 0
    run.count += 1


cdef inline size_t subscriber_usual(const Subscriber* subscriber, const uint8_t* data, size_t size) noexcept nogil:
    """Return how many bytes of what has come are as those before the newest message's payload: all of them, or 0."""
    if size < subscriber.usual_bytes or memcmp(data, subscriber.usual, subscriber.usual_bytes) != 0:
        return 0
    return subscriber.usual_bytes


cdef inline void payload_take(Subscriber* subscriber, const uint8_t* payload, size_t size, Run* run,
                              Histogram latency) noexcept nogil:
    """Check a payload of the channel of `subscriber.lane`."""
    if size != subscriber.ledger.payload_bytes:
        subscriber.ledger.taken += 1
        subscriber.ledger.corrupt += 1
        return
    ledger_take(&subscriber.ledger, subscriber.lane.first_flow, subscriber.lane.channel, payload)
    run_take(run, load_u64(payload + STAMP_TIME), latency)
