"""Checks what readers receive through a Python client, a whole batch at a time and without an object per message.

`stamped` makes the payloads of one window, and a `Reading` checks those of one channel at one reader: the stamp, every
other byte, and the place in the order of its publisher (driver_ledger.h). A batch must moreover follow the one before
in the channel's sequence, whoever published it.

It must not read a clock: the caller's is the one that all its workers agree on. Nothing of a batch is kept.

One thread at a time owns a reading.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp

from broker_native.histogram cimport Histogram
from broker_native.layout cimport RECORD_GONE, load_u16, load_u32, load_u64
from broker_native.messages cimport Batch, record_field

cdef enum:
    ROOM_FIRST = 4                  # flows; most channels have few publishers
    PATTERN_BYTES = 65536           # the largest payload; all of them begin alike

PAYLOAD_BYTES_MIN = STAMP_BYTES
PAYLOAD_BYTES_MAX = PATTERN_BYTES
PUBLISHERS_MAX = STAMP_PUBLISHERS_MAX

cdef uint8_t[PATTERN_BYTES] pattern
pattern_fill(pattern, PATTERN_BYTES)


cdef int require_payload_bytes(uint32_t payload_bytes) except -1:
    if not STAMP_BYTES <= payload_bytes <= PATTERN_BYTES:
        raise ValueError(f"payload: got {payload_bytes} bytes, from {STAMP_BYTES} to {PATTERN_BYTES}")
    return 0


def stamped(Py_ssize_t count, *, uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel,
            uint32_t payload_bytes):
    """Make the payloads of one window.

    Args:
        count: how many.
        publisher: whose flow it is, below PUBLISHERS_MAX.
        counter: of the first of them; the others follow.
        time_ns: when they were due to be sent, by any clock that readers share.
        channel: the channel's number in this load.
        payload_bytes: of each, PAYLOAD_BYTES_MIN to PAYLOAD_BYTES_MAX.

    Returns:
        A list of bytes.

    Raises:
        ValueError: an argument is out of its range.
    """
    require_payload_bytes(payload_bytes)
    if publisher >= STAMP_PUBLISHERS_MAX:
        raise ValueError(f"publisher: got {publisher}, limit {STAMP_PUBLISHERS_MAX - 1}")
    cdef Py_ssize_t i
    cdef bytes payload
    cdef list made = []
    for i in range(count):
        payload = PyBytes_FromStringAndSize(<const char*>pattern, payload_bytes)
        # Nobody else has it yet.
        stamp_write(<uint8_t*>PyBytes_AS_STRING(payload), publisher, counter + <uint64_t>i, time_ns, channel)
        made.append(payload)
    return made


@cython.final
cdef class Reading:
    """What one reader has received of one channel.

    `sequence` is where it stands, `misplaced` counts batches that did not follow in sequence or brought runs that are
    gone, and `ahead` messages whose due time had not come: the clocks of the two sides differ.
    """

    def __cinit__(self, *, uint32_t channel, uint32_t payload_bytes, uint64_t after=0):
        """Begin to read.

        Args:
            channel: the number that its messages must be stamped with.
            payload_bytes: the size that they must have.
            after: the sequence after which everything is due.

        Raises:
            ValueError: `payload_bytes` is out of its range.
        """
        require_payload_bytes(payload_bytes)
        self.channel = channel
        self.payload_bytes = payload_bytes
        self.after = self.sequence = after
        self.publisher = STAMP_PUBLISHERS_MAX
        if ledger_open(&self.ledger, pattern, payload_bytes, 0, 0):
            raise MemoryError

    def __dealloc__(self):
        ledger_close(&self.ledger)
        free(self.places)

    def take(self, Batch batch not None, uint64_t now_ns, Histogram latency=None, uint64_t since_ns=0):
        """Check a batch of the channel.

        Args:
            batch: what has come; borrowed for the call.
            now_ns: when, by the clock that the stamps are of.
            latency: takes the nanoseconds from when each message was due until now.
            since_ns: messages that were due before are in no latency: who reads late would measure itself.

        Returns:
            How many messages it held.
        """
        cdef const uint8_t* at = batch.at
        cdef const uint8_t* payload
        cdef uint64_t due_ns, size
        if batch.first != self.sequence + 1 or batch.has_gone or (self.epoch and batch.epoch != self.epoch):
            self.misplaced += 1
        self.epoch = batch.epoch
        self.sequence = batch.last
        while at < batch.end:
            if not load_u16(at + 4) & RECORD_GONE:
                payload = record_field(at, 0)
                size = <uint64_t>(at + load_u32(at) - payload)
                self.take_payload(payload, size)
                if size >= STAMP_BYTES:
                    due_ns = load_u64(payload + STAMP_TIME)
                    self.ahead += due_ns > now_ns
                    if latency is not None and due_ns >= since_ns:
                        latency.record(now_ns - due_ns if now_ns > due_ns else 0)
            at += load_u32(at)
        return batch.messages

    cdef int take_payload(self, const uint8_t* payload, uint64_t size) except -1:
        cdef uint64_t stamp, counter
        cdef uint32_t publisher
        self.ledger.taken += 1
        if size != self.payload_bytes:
            self.ledger.corrupt += 1
            self.nameless += 1
            return 0
        stamp = load_u64(payload)
        publisher = <uint32_t>(stamp >> STAMP_COUNTER_BITS)
        counter = stamp & STAMP_COUNTER_MASK
        if load_u64(payload + STAMP_CHANNEL) != (
                <uint64_t>stamp_check(stamp, load_u64(payload + STAMP_TIME), self.channel) << 32 | self.channel):
            self.ledger.corrupt += 1
            self.nameless += 1
            return 0
        if memcmp(payload + STAMP_BYTES, pattern + STAMP_BYTES, size - STAMP_BYTES) != 0:
            self.ledger.corrupt += 1
        if publisher != self.publisher:
            self.find_flow(publisher, counter)
        if counter == self.ledger.next[self.flow]:
            self.ledger.next[self.flow] += 1
        else:
            ledger_disorder(&self.ledger, self.flow, counter)
        return 0

    cdef int find_flow(self, uint32_t publisher, uint64_t counter) except -1:
        """Make a publisher's flow the current one; a new one begins with `counter`."""
        cdef uint64_t place
        if self.ledger.flows == self.room:
            self.grow()
        place = self.place_of(publisher)
        if not self.places[place]:
            self.places[place] = <uint64_t>publisher << 32 | (self.ledger.flows + 1)
            self.ledger.next[self.ledger.flows] = counter
            self.ledger.flows += 1
        self.publisher = publisher
        self.flow = (self.places[place] & <uint64_t>0xFFFFFFFF) - 1
        return 0

    cdef uint64_t place_of(self, uint32_t publisher) noexcept:
        """Where a publisher is or would be: half of the places at least are free."""
        cdef uint64_t mask = 2 * <uint64_t>self.room - 1
        # An odd multiplier: publishers of one worker are a fixed stride apart.
        cdef uint64_t place = (<uint64_t>publisher * <uint64_t>0x9E3779B1 >> 8) & mask
        while self.places[place] and self.places[place] >> 32 != publisher:
            place = (place + 1) & mask
        return place

    cdef int grow(self) except -1:
        cdef uint32_t room = ROOM_FIRST
        cdef uint32_t i
        cdef uint64_t* counters
        cdef uint64_t* places
        cdef uint64_t* before = self.places
        cdef uint32_t before_count = 2 * self.room
        if self.room:
            room = 2 * self.room
        counters = <uint64_t*>realloc(self.ledger.next, room * sizeof(uint64_t))
        if counters == NULL:
            raise MemoryError
        self.ledger.next = counters
        places = <uint64_t*>calloc(2 * <size_t>room, sizeof(uint64_t))
        if places == NULL:
            raise MemoryError
        self.places, self.room = places, room
        for i in range(before_count):
            if before[i]:
                self.places[self.place_of(<uint32_t>(before[i] >> 32))] = before[i]
        free(before)
        return 0

    @property
    def taken(self):
        """Messages that have come, right or wrong."""
        return self.ledger.taken

    @property
    def received(self):
        """Messages of a flow that have come, each counted once."""
        return self.ledger.taken - self.ledger.duplicated - self.nameless

    @property
    def missing(self):
        """Messages between others of their flow that have not come."""
        return ledger_lost(&self.ledger)

    @property
    def duplicated(self):
        return self.ledger.duplicated

    @property
    def reordered(self):
        return self.ledger.reordered

    @property
    def corrupt(self):
        return self.ledger.corrupt

    @property
    def publishers(self):
        """How many publishers it has heard."""
        return self.ledger.flows
