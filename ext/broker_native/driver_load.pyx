"""What all dialects of the load driver do alike: failing, sending, reading, finding a channel, how a message began.

driver_load.pxd says what each part is. Nothing here knows a protocol, a clock or a poller's events.
"""

from collections import namedtuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strerror

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* data, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)

cdef enum:
    SAID_BYTES_MAX = 1024          # of what a server said when it refused

Failure = namedtuple("Failure", ("reason", "connection", "detail", "body"))

FAILURES = ("", "error", "going_away", "closed", "socket", "protocol", "memory", "refused")
"""What FAILURE_* are called in an Outcome."""


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


cdef void load_refused(Load* load, Connection* connection, const char* detail, const uint8_t* said,
                       size_t size) noexcept nogil:
    """Fail with what a server said; of much only the beginning is kept. Nothing is taken after a failure."""
    load_fail_body(load, connection, FAILURE_REFUSED, said,
                   <uint32_t>(size if size < SAID_BYTES_MAX else SAID_BYTES_MAX))
    load.failure_detail = detail


cdef object load_failure(const Load* load):
    """Return the failure that ended a run, for Python; None when it came to its end."""
    cdef bytes detail, body = b""
    if load.failure == FAILURE_NONE:
        return None
    detail = load.failure_detail if load.failure_detail != NULL else b""
    if load.failure_errno:
        detail += b": " + strerror(load.failure_errno)
    if load.failure_body != NULL:
        body = PyBytes_FromStringAndSize(<const char*>load.failure_body, load.failure_bytes)
    if load.failure == FAILURE_REFUSED:
        detail += b": " + body
    return Failure(FAILURES[load.failure], load.failure_connection, detail.decode(errors="replace"), body)


# --- Connecting -----------------------------------------------------------------------------------------------------


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


cdef uint8_t* connection_reserve(Load* load, Connection* connection, size_t size) noexcept nogil:
    """Return where `size` more bytes go that must be sent, sooner or later."""
    cdef uint8_t* grown
    cdef size_t capacity = 2 * (connection.out_end + size)
    if connection.out_capacity - connection.out_end < size:
        grown = <uint8_t*>realloc(connection.out, capacity)
        if grown == NULL:
            load_fail(load, connection, FAILURE_MEMORY, b"send")
            return NULL
        connection.out = grown
        connection.out_capacity = capacity
    return connection_append(connection, size)


cdef uint8_t* write_lines(Load* load, Publisher* publisher, uint8_t* at, uint32_t channel, uint32_t count,
                          uint64_t time_ns) noexcept nogil:
    """Write messages that are their channel's head, a payload and the end of a line: most text protocols' form."""
    cdef Text head = load.heads[channel]
    cdef uint32_t i
    for i in range(count):
        memcpy(at, head.bytes, head.size)
        at += head.size
        payload_write(load, at, publisher.index, publisher.counters[channel] + i, time_ns, channel)
        at += load.payload_bytes
        at[0], at[1] = 13, 10
        at += LINE_END_BYTES
    publisher_wrote(publisher, channel, count)
    return at


# --- Reading ------------------------------------------------------------------------------------------------------


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
    taken = load.dialect.take(load, connection, load.buffer, size, now_ns, latency)
    connection_spill(load, connection, load.buffer + taken, size - taken)
    load.active_ns = now_ns
    if taken:
        load.arrived_ns = now_ns


# --- Channels -----------------------------------------------------------------------------------------------------


cdef bint lane_bind(Load* load, Subscriber* subscriber, Lane* lane, uint32_t channel) noexcept nogil:
    """Say which of our channels a lane is. False when the subscriber has no such channel."""
    if channel >= load.channels or channel % load.audiences_count != subscriber.audience:
        return False
    lane.channel = channel
    lane.first_flow = <uint64_t>(channel // load.audiences_count) * load.flow_publishers
    return True


cdef uint32_t channel_named(const Load* load, uint32_t audience, const uint8_t* name, size_t size) noexcept nogil:
    """Return which channel of an audience has a name.

    A name that ends in its index, as the works name them, is found at once, any other in O(channels of the audience).
    """
    cdef uint32_t channel = 0
    cdef uint64_t digit = 1
    cdef size_t at = size
    while at and 48 <= name[at - 1] <= 57 and digit <= load.channels:      # ASCII digits
        channel += <uint32_t>digit * (name[at - 1] - 48)
        digit *= 10
        at -= 1
    if (channel < load.channels and load.name_sizes[channel] == size
            and memcmp(load.names[channel], name, size) == 0):
        return channel
    channel = audience
    while channel < load.channels:
        if load.name_sizes[channel] == size and memcmp(load.names[channel], name, size) == 0:
            return channel
        channel += load.audiences_count
    return UNBOUND


cdef Lane* subscriber_lane_named(Load* load, Subscriber* subscriber, const uint8_t* name, size_t size) noexcept nogil:
    """Find a lane by the name that comes with each message. All of them were bound when the subscriber was taken in."""
    cdef uint32_t channel = channel_named(load, subscriber.audience, name, size)
    if channel >= load.channels or channel % load.audiences_count != subscriber.audience:
        return NULL
    return &subscriber.lanes[channel // load.audiences_count]


cdef void subscriber_remember(Load* load, Connection* connection, const uint8_t* head, size_t size) noexcept nogil:
    """Keep how a message began."""
    cdef Subscriber* subscriber = connection.subscriber
    cdef uint8_t* grown
    if size > subscriber.usual_capacity:
        grown = <uint8_t*>realloc(subscriber.usual, 2 * size)
        if grown == NULL:
            load_fail(load, connection, FAILURE_MEMORY, b"head")
            return
        subscriber.usual = grown
        subscriber.usual_capacity = <uint32_t>(2 * size)
    memcpy(subscriber.usual, head, size)
    subscriber.usual_bytes = <uint32_t>size


# --- Lines and numbers --------------------------------------------------------------------------------------------


cdef size_t line_find(Load* load, Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Return the size of the line that begins here, with its end; 0 while it is not whole."""
    cdef const uint8_t* end = <const uint8_t*>memchr(data, 10, size)
    if end == NULL:
        if size > LINE_BYTES_MAX:
            load_fail(load, connection, FAILURE_PROTOCOL, b"a line that does not end")
        return 0
    if end == data or (end - 1)[0] != 13:
        load_fail(load, connection, FAILURE_PROTOCOL, b"a line that does not end with CR LF")
        return 0
    return <size_t>(end - data) + 1


cdef bint number_parse(const uint8_t* at, size_t size, uint64_t* value) noexcept nogil:
    """Read a decimal number that takes all of its bytes; False when it is none, or has more than 18 digits."""
    cdef size_t i
    cdef uint64_t found = 0
    if not 1 <= size <= 18:
        return False
    for i in range(size):
        if not 48 <= at[i] <= 57:                # ASCII digits
            return False
        found = 10 * found + at[i] - 48
    value[0] = found
    return True


cdef uint8_t* number_write(uint8_t* at, uint64_t value) noexcept nogil:
    """Write a decimal number, up to 20 bytes; returns its end."""
    cdef uint8_t[20] digits
    cdef size_t first = 20
    while True:
        first -= 1
        digits[first] = <uint8_t>(48 + value % 10)
        value = value // 10
        if value == 0:
            break
    memcpy(at, &digits[first], 20 - first)
    return at + 20 - first
