"""The members of a work queue: each is handed messages, acknowledges every one, and is handed more.

The queue is filled before; the driver of `broker_native.driver` publishes, and every message carries its stamp. A roll
has a bit for each message that was published: what comes a second time is duplicated, what never comes is lost. Where
messages have keys, the roll knows for each key which message comes next and whether a member has one that it has not
acknowledged: what comes before its turn is overtaken.

A message is done when its acknowledgement is answered. Acknowledgements are not waited for before more is asked, or
taken, in any of the protocols. A run ends when each message has come and every acknowledgement is answered. With
transactions, each acknowledgement is part of one.

One thread at a time. Sockets are borrowed: their owner keeps them open for as long as the crew lives. It must not know
how a protocol spells anything.
"""

from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strerror

from broker_native.crew_broker cimport broker_crew
from broker_native.crew_nats cimport nats_crew, nats_crew_begin
from broker_native.crew_redis cimport redis_crew, redis_crew_begin
from broker_native.driver_load cimport (
    Connection, Dialect, FAILURE_NONE, FAILURE_SOCKET, INBOX_BYTES_MAX, KEYS_MAX, LINE_BYTES_MAX, Load,
    POLLER_EVENTS_MAX, PollerEvent, RECEIVE_BYTES, STAMP_BYTES, STAMP_PUBLISHERS_MAX, clock_cpu_ns, clock_ns,
    connection_flush, connection_receive, load_connect, load_failure, pattern_fill, poller_close, poller_open,
    poller_wait)
from broker_native.histogram cimport Histogram

cdef enum:
    SLICE_NS = 100_000_000         # how long the loop runs before signals and stalls are looked at
    SEND_BYTES = 64 * 1024         # of a member at first
    PUBLISHES_MAX = 1024           # of a transaction
    SPILL_LINES_MAX = 6            # of LINE_BYTES_MAX each, before a payload

    PROTOCOL_BROKER = 0
    PROTOCOL_REDIS = 1
    PROTOCOL_JETSTREAM = 2

PROTOCOLS = ("broker", "redis-stream", "jetstream")

Done = namedtuple("Done", (
    "finished", "seconds", "cpu_s", "taken", "acked", "lost", "duplicated", "corrupt", "overtaken", "unacked", "events",
    "failure"))


cdef bint crew_turns(Crew* crew, Histogram latency) noexcept nogil:
    """Run for a slice of time. Returns whether the run has ended."""
    cdef PollerEvent[POLLER_EVENTS_MAX] events
    cdef Load* load = &crew.load
    cdef Connection* connection
    cdef uint64_t now_ns = clock_ns(), slice_ns = now_ns + SLICE_NS
    cdef int count, i
    while now_ns < slice_ns:
        if load.failure != FAILURE_NONE or crew_done(crew):
            return True
        count = poller_wait(&load.poller, slice_ns, events)
        if count < 0:
            load.failure = FAILURE_SOCKET
            load.failure_errno = -count
            load.failure_detail = b"epoll_wait"
            return True
        for i in range(count):
            connection = &load.connections[events[i].index]
            if events[i].writable:
                connection_flush(load, connection)
            if events[i].readable and load.failure == FAILURE_NONE:
                connection_receive(load, connection, latency)
        now_ns = clock_ns()
    return False


cdef inline bint crew_done(const Crew* crew) noexcept nogil:
    return crew.roll.distinct == crew.roll.expected and crew.answered == crew.jobs


@cython.final
cdef class Members:
    cdef Crew crew
    cdef int protocol                # its place in PROTOCOLS
    cdef bytes words                 # which crew.words borrows
    cdef bint opened
    cdef bint begun
    cdef readonly Histogram latency

    def __init__(self, *, uint64_t messages, uint32_t publishers=1, uint32_t payload_bytes=128, uint32_t keys=0,
                 uint32_t batch=256, bytes words=b"", uint32_t frame_bytes_max=1 << 21, protocol="broker",
                 uint32_t publishes=0, uint32_t transactions_max=1):
        """Prepare a roll.

        Args:
            messages: how many a driver has published to the queue's one channel.
            publishers: by so many, in equal shares but for the first ones', who had the rest.
            payload_bytes: size of every payload, from STAMP_BYTES (24).
            keys: how many keys they have in turn, 0 for messages without.
            batch: messages that a member asks for at once; where the broker pushes them it is the window of its
                subscription, and means nothing here.
            words: of `redis-stream`, what an acknowledgement says before its ids.
            frame_bytes_max: what WELCOME said; a larger frame ends the run.
            protocol: of all sockets: one of PROTOCOLS.
            publishes: `broker`: each message is answered with a transaction of so many publishes, 0 to
                PUBLISHES_MAX (1,024), and its acknowledgement; 0: with an acknowledgement alone.
            transactions_max: of a member that wait for their answers, from 1.

        Raises:
            ValueError: an argument is out of its range.
            MemoryError, OSError: no memory, or no descriptor for the poller.
        """
        cdef Load* load = &self.crew.load
        cdef int reason
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {protocol}, one of {', '.join(PROTOCOLS)}")
        if payload_bytes < STAMP_BYTES:
            raise ValueError(f"payload: got {payload_bytes} bytes, at least {STAMP_BYTES} hold the stamp")
        if not 1 <= publishers <= STAMP_PUBLISHERS_MAX:
            raise ValueError(f"publishers: got {publishers}, from 1 to {STAMP_PUBLISHERS_MAX}")
        if keys > KEYS_MAX or batch < 1:
            raise ValueError(f"keys: got {keys}, limit {KEYS_MAX}; batch: got {batch}, at least 1")
        if publishes > (PUBLISHES_MAX if protocol == "broker" else 0) or transactions_max < 1:
            raise ValueError(f"publishes: got {publishes}, limit {PUBLISHES_MAX}, of `broker`; transactions_max: got "
                             f"{transactions_max}, at least 1")
        if load.buffer != NULL:
            raise ValueError("a crew is prepared once")
        self.protocol = PROTOCOLS.index(protocol)
        self.words = words
        self.crew.words = <const uint8_t*>PyBytes_AS_STRING(words)
        self.crew.words_bytes = <uint32_t>PyBytes_GET_SIZE(words)
        self.crew.batch = batch
        self.crew.publishes = publishes
        self.crew.transactions_max = transactions_max
        load.dialect = self.dialect_of()
        load.payload_bytes = payload_bytes
        load.frame_bytes_max = frame_bytes_max
        self.latency = Histogram()
        self.prepare_roll(messages, publishers, keys)
        reason = poller_open(&load.poller)
        if reason:
            raise OSError(reason, strerror(reason).decode())
        self.opened = True

    cdef const Dialect* dialect_of(self) noexcept:
        if self.protocol == PROTOCOL_BROKER:
            return broker_crew()
        return redis_crew() if self.protocol == PROTOCOL_REDIS else nats_crew()

    cdef int prepare_roll(self, uint64_t messages, uint32_t publishers, uint32_t keys) except -1:
        cdef Load* load = &self.crew.load
        cdef Roll* roll = &self.crew.roll
        cdef size_t at
        roll.payload_bytes = load.payload_bytes
        roll.publishers = publishers
        roll.expected = messages
        roll.each = (messages + publishers - 1) // publishers
        roll.keys = keys
        load.buffer_bytes = RECEIVE_BYTES + SPILL_LINES_MAX * LINE_BYTES_MAX + <size_t>load.frame_bytes_max
        load.buffer = <uint8_t*>malloc(load.buffer_bytes)
        load.pattern = <uint8_t*>malloc(load.payload_bytes)
        roll.done = <uint8_t*>calloc(roll.each * publishers // 8 + 1, 1)
        roll.key_next = <uint64_t*>calloc(<size_t>publishers * keys + 1, sizeof(uint64_t))
        roll.key_held = <uint8_t*>calloc(<size_t>keys + 1, 1)
        if (load.buffer == NULL or load.pattern == NULL or roll.done == NULL or roll.key_next == NULL
                or roll.key_held == NULL):
            raise MemoryError
        pattern_fill(load.pattern, load.payload_bytes)
        roll.pattern = load.pattern
        for at in range(<size_t>publishers * keys):
            roll.key_next[at] = at % keys
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        cdef Load* load = &self.crew.load
        for i in range(load.connections_count):
            free(load.connections[i].out)
            free(load.connections[i].spill)
            free(self.crew.members[i].acks)
            free(self.crew.members[i].held)
        free(load.connections)
        free(self.crew.members)
        free(self.crew.roll.done)
        free(self.crew.roll.key_next)
        free(self.crew.roll.key_held)
        free(load.pattern)
        free(load.buffer)
        free(load.failure_body)
        if self.opened:
            poller_close(&load.poller)

    def add_member(self, int fd, *, bytes ask=b"", bytes inbox=b""):
        """Take in a non-blocking socket of a member; it is borrowed.

        Args:
            fd: the socket. Of the broker it has subscribed with the consumer's name, as number 1, and with transactions
                has named the channels that they publish to by the numbers from 0.
            ask: what it says to be given messages, to 512 bytes; of the broker nothing.
            inbox: of `jetstream`, where its answers come, to 32 bytes; it is subscribed.

        Raises:
            ValueError: `ask` or `inbox` is too long, or the run has begun.
            MemoryError, OSError: no memory, or the poller cannot take the socket.
        """
        cdef Load* load = &self.crew.load
        cdef Member* members
        cdef Member* member
        if len(ask) > ASK_BYTES_MAX or len(inbox) > INBOX_BYTES_MAX or self.begun:
            raise ValueError(f"ask, inbox: got {len(ask)} and {len(inbox)} bytes, limits {ASK_BYTES_MAX} and "
                             f"{INBOX_BYTES_MAX}, before the run")
        members = <Member*>realloc(self.crew.members, (load.connections_count + 1) * sizeof(Member))
        if members == NULL:
            raise MemoryError
        self.crew.members = members
        member = &members[load.connections_count]
        memset(member, 0, sizeof(Member))
        member.acks = <Unanswered*>calloc(UNANSWERED_MAX, sizeof(Unanswered))
        member.held = <uint64_t*>calloc(UNANSWERED_MAX if self.crew.publishes else 1, sizeof(uint64_t))
        try:
            if member.acks == NULL or member.held == NULL:
                raise MemoryError
            load_connect(load, fd, SEND_BYTES)
        except BaseException:
            free(member.acks)
            free(member.held)
            raise
        member.ask_bytes = <uint32_t>len(ask)
        memcpy(member.ask, PyBytes_AS_STRING(ask), member.ask_bytes)
        member.inbox_bytes = <uint32_t>len(inbox)
        memcpy(member.inbox, PyBytes_AS_STRING(inbox), member.inbox_bytes)

    def run(self, *, double patience_s=10, on_slice=None):
        """Have all messages done, once.

        Args:
            patience_s: how long the server may send nothing before the rest is lost.
            on_slice: called about ten times a second; the crew waits for it.

        Returns:
            Done. `finished` says that every message came and every acknowledgement was answered; `acked` counts the
            messages of those; `unacked` are messages whose acknowledgement the server answered, but did not know;
            `seconds` reach from the first ask to the last answer, `latency` from an acknowledgement to its answer.

        Raises:
            ValueError: it was run before.
            KeyboardInterrupt, or what a signal handler or `on_slice` raises: the run is cut short.
        """
        cdef Load* load = &self.crew.load
        cdef uint64_t cpu_ns = clock_cpu_ns()
        cdef bint ended = False
        if self.begun:
            raise ValueError("a crew runs once")
        self.begun = True
        load.start_ns = load.active_ns = load.arrived_ns = clock_ns()
        self.begin()
        while not ended:
            with nogil:
                ended = crew_turns(&self.crew, self.latency)
            PyErr_CheckSignals()
            if on_slice is not None:
                on_slice()
            # What was heard last was heard before now.
            if <double>(clock_ns() - load.active_ns) * 1e-9 > patience_s:
                break
        cpu_ns = clock_cpu_ns() - cpu_ns
        return self.done(ended and load.failure == FAILURE_NONE, <double>cpu_ns * 1e-9)

    cdef void begin(self) noexcept:
        """Let every member ask for the first time."""
        cdef uint32_t i
        for i in range(self.crew.load.connections_count):
            if self.protocol == PROTOCOL_REDIS:
                redis_crew_begin(&self.crew.load, &self.crew.load.connections[i])
            elif self.protocol == PROTOCOL_JETSTREAM:
                nats_crew_begin(&self.crew.load, &self.crew.load.connections[i])

    def acked_by(self, uint32_t member):
        """Return how many messages of a member, by the order of `add_member`, have had their acknowledgement answered.

        Raises:
            IndexError: there is no such member.
        """
        if member >= self.crew.load.connections_count:
            raise IndexError(f"member: got {member}, there are {self.crew.load.connections_count}")
        return self.crew.members[member].jobs_answered

    cdef object done(self, bint finished, double cpu_s):
        cdef Load* load = &self.crew.load
        cdef Roll* roll = &self.crew.roll
        return Done(
            finished=finished, seconds=<double>(load.arrived_ns - load.start_ns) * 1e-9, cpu_s=cpu_s, taken=roll.taken,
            acked=self.crew.answered, lost=roll.expected - roll.distinct, duplicated=roll.duplicated,
            corrupt=roll.corrupt, overtaken=roll.overtaken, unacked=self.crew.unacked, events=load.events,
            failure=load_failure(load))
