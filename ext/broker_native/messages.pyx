"""What a client reads: frames out of arbitrary pieces, chunks as batches, records as messages.

A chunk is copied once, out of the shared read buffer into bytes that its batch owns; its checksum and every record in
it are checked before the batch exists, so everything behind trusts them. A message is a pointer into those bytes:
making one costs no parsing, and its payload becomes an object on first use. A message therefore keeps its whole chunk
(64 KiB, or one larger record) alive.

`async for` over a cursor makes no coroutine and no future while there is something at hand: the stream is its own
awaitable and ends at once with the value. Every MESSAGES_PER_TURN messages it lets the loop take a turn, so that a long
backlog starves nobody.

All of it belongs to one loop's thread, or to whichever thread has the lock of its bus. Errors are built by the `error`
that the reader is given, since nothing here imports the package above.
"""

cimport cython
from collections import deque

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport *

cdef extern from "Python.h":
    void PyErr_SetObject(object kind, object value) noexcept
    ctypedef PyObject* (*iternextfunc)(PyObject* self) noexcept
    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext

cdef enum:
    SPILL_BYTES_KEPT = 4096             # an idle connection keeps no more than this
    MESSAGES_PER_TURN = 1024
    WAITERS_PRUNED = 8
    NORMAL_PRIORITY = 2
    DELIVER_FLAGS_KNOWN = 3             # NAME and EARLY
    GONE_RUN_AT = 16                    # u32 run in a GONE record
    GONE_REASON_AT = 12
    INDEX_MAX = 0xFFFFFFFF              # as a bus position: the whole group

cdef object position_type = lambda epoch, sequence: (epoch, sequence)
cdef object bus_position_type = lambda journal, group, index: (journal, group, index)
cdef object level_type = int


def set_types(*, position, bus_position, level):
    """Name the types in which positions and levels are handed out; plain tuples and ints before that."""
    global position_type, bus_position_type, level_type
    position_type, bus_position_type, level_type = position, bus_position, level


cdef object make_position(uint64_t epoch, uint64_t sequence):
    return position_type(epoch, sequence)


cdef object make_level(uint32_t level):
    return level_type(level)


# -- records -----------------------------------------------------------------------------------------------------------


cdef const uint8_t* record_field(const uint8_t* record, uint16_t wanted) noexcept nogil:
    """Where the field of a flag begins; for flag 0 where the payload begins. The record has been checked."""
    cdef uint16_t flags = load_u16(record + 4)
    cdef const uint8_t* at = record + RECORD_HEADER_BYTES
    if not flags:
        return at
    if flags & RECORD_PUBLISHER:
        if wanted == RECORD_PUBLISHER:
            return at
        at += 1 + at[0]
    if flags & RECORD_NUMBER:
        at += 8                         # of the publisher's line: nothing that a reader is told
    if flags & RECORD_PRIORITY:
        if wanted == RECORD_PRIORITY:
            return at
        at += 1
    if flags & RECORD_EXPIRY:
        if wanted == RECORD_EXPIRY:
            return at
        at += 4
    if flags & RECORD_KEY:
        if wanted == RECORD_KEY:
            return at
        at += 2 + load_u16(at)
    if flags & RECORD_HEADERS:
        if wanted == RECORD_HEADERS:
            return at
        at += 2 + load_u16(at)
    if flags & RECORD_ID:
        if wanted == RECORD_ID:
            return at
        at += 1 + at[0]
    return at


cdef bint record_is_valid(const uint8_t* record, uint32_t size) noexcept nogil:
    """Whether the fields that the flags announce fit into a record of `size` bytes, header included."""
    cdef uint16_t flags = load_u16(record + 4)
    cdef const uint8_t* at = record + RECORD_HEADER_BYTES
    cdef uint64_t left = size - RECORD_HEADER_BYTES
    cdef uint64_t need
    if flags == 0:
        return True
    if flags == RECORD_GONE:
        return size == GONE_RECORD_BYTES and load_u32(record + GONE_RUN_AT) > 0
    if flags & ~(<uint32_t>RECORD_FLAGS_KNOWN & ~<uint32_t>RECORD_GONE):
        return False
    if flags & RECORD_PUBLISHER:
        if left < 1 or left < <uint64_t>1 + at[0]:
            return False
        need = <uint64_t>1 + at[0]
        at += need
        left -= need
    need = (8 if flags & RECORD_NUMBER else 0) + (1 if flags & RECORD_PRIORITY else 0)
    need += 4 if flags & RECORD_EXPIRY else 0
    if left < need:
        return False
    at += need
    left -= need
    if flags & RECORD_KEY:
        if left < 2 or left < <uint64_t>2 + load_u16(at):
            return False
        need = <uint64_t>2 + load_u16(at)
        at += need
        left -= need
    if flags & RECORD_HEADERS:
        if left < 2 or left < <uint64_t>2 + load_u16(at):
            return False
        need = <uint64_t>2 + load_u16(at)
        at += need
        left -= need
    return not flags & RECORD_ID or (left >= 1 and left >= <uint64_t>1 + at[0])


cdef bytes record_payload(const uint8_t* record):
    cdef const uint8_t* at = record_field(record, 0)
    return PyBytes_FromStringAndSize(<const char*>at, record + load_u32(record) - at)


cdef object record_headers(const uint8_t* record):
    cdef const uint8_t* at
    if not load_u16(record + 4) & RECORD_HEADERS:
        return {}
    at = record_field(record, RECORD_HEADERS)
    return decode_headers(PyBytes_FromStringAndSize(<const char*>at + 2, load_u16(at)))


cdef object record_key(const uint8_t* record):
    cdef const uint8_t* at
    if not load_u16(record + 4) & RECORD_KEY:
        return None
    at = record_field(record, RECORD_KEY)
    return PyBytes_FromStringAndSize(<const char*>at + 2, load_u16(at))


cdef object record_id(const uint8_t* record):
    cdef const uint8_t* at
    if not load_u16(record + 4) & RECORD_ID:
        return None
    at = record_field(record, RECORD_ID)
    return PyBytes_FromStringAndSize(<const char*>at + 1, at[0])


cdef object record_publisher(const uint8_t* record):
    cdef const uint8_t* at
    if not load_u16(record + 4) & RECORD_PUBLISHER:
        return None
    at = record_field(record, RECORD_PUBLISHER)
    return PyBytes_FromStringAndSize(<const char*>at + 1, at[0]).decode("utf-8", "backslashreplace")


cdef object record_priority(const uint8_t* record):
    if not load_u16(record + 4) & RECORD_PRIORITY:
        return NORMAL_PRIORITY
    return record_field(record, RECORD_PRIORITY)[0]


cdef object record_expiry(const uint8_t* record):
    if not load_u16(record + 4) & RECORD_EXPIRY:
        return None
    return load_u32(record_field(record, RECORD_EXPIRY))


# -- batches and messages ----------------------------------------------------------------------------------------------


@cython.final
cdef class Batch:
    """The messages of one chunk, in order: consecutive sequences of one channel under one epoch.

    Iterating makes a `Message` for each; runs that were taken out of the channel are no messages and stand in `gone`.
    A batch never changes and owns its bytes.
    """

    def __len__(self):
        return self.messages

    def __iter__(self):
        cdef MessageIterator iterator = MessageIterator.__new__(MessageIterator)
        iterator.batch = self
        iterator.at = self.at
        iterator.sequence = self.first
        return iterator

    def __repr__(self):
        return (f"<Batch {self.channel!r} {self.first}..{self.last} of epoch {self.epoch}: "
                f"{self.messages} messages, {self.size_bytes} bytes>")

    @property
    def size_bytes(self):
        """Bytes of the whole chunk: what it takes from its subscription's credit."""
        return len(self.data)

    @property
    def chunk(self):
        """The whole chunk as it came, also what `after` has left out of the batch."""
        return self.data

    @property
    def position(self):
        """The position after the batch: resuming from it goes on with the next message."""
        return make_position(self.epoch, self.last)

    @property
    def bus_position(self):
        """The place up to which everything has been handed over with this batch; None when it is not stored.

        A batch that came before its commit only vouches for the groups up to two before its own.
        """
        if self.group == 0 or (self.early and self.group <= 2):
            return None
        if self.early:
            return bus_position_type(self.journal, self.group - 2, <uint32_t>INDEX_MAX)
        return bus_position_type(self.journal, self.group, self.index)

    @property
    def gone(self):
        """Runs that were taken out, as (first sequence, how many, reason), in order."""
        cdef list runs = []
        cdef const uint8_t* at = self.at
        cdef uint64_t sequence = self.first
        if self.has_gone:
            while at < self.end:
                if load_u16(at + 4) & RECORD_GONE:
                    runs.append((sequence, load_u32(at + GONE_RUN_AT), at[GONE_REASON_AT]))
                    sequence += load_u32(at + GONE_RUN_AT)
                else:
                    sequence += 1
                at += load_u32(at)
        return runs

    def payloads(self):
        """The payloads of all messages, in order, without making the messages."""
        cdef list found = []
        cdef const uint8_t* at = self.at
        cdef const uint8_t* payload
        while at < self.end:
            if not load_u16(at + 4) & RECORD_GONE:
                payload = record_field(at, 0)
                found.append(PyBytes_FromStringAndSize(<const char*>payload, at + load_u32(at) - payload))
            at += load_u32(at)
        return found

    def after(self, uint64_t sequence):
        """The part of the batch past a sequence: the batch itself, a clipped one, or None when nothing is left."""
        if sequence < self.first:
            return self
        if sequence >= self.last:
            return None
        return self.clipped(sequence)

    cdef Batch clipped(self, uint64_t sequence):
        """A view of the records past `sequence`, which lies in first..last-1. Splits no GONE run: it is kept whole."""
        cdef Batch rest = Batch.__new__(Batch)
        cdef uint64_t run
        rest.channel, rest.channel_id, rest.epoch = self.channel, self.channel_id, self.epoch
        rest.last, rest.time_us = self.last, self.time_us
        rest.group, rest.index, rest.subscription = self.group, self.index, self.subscription
        rest.early, rest.journal, rest.data = self.early, self.journal, self.data
        rest.has_gone, rest.messages = self.has_gone, self.messages
        rest.at, rest.end, rest.first = self.at, self.end, self.first
        while rest.first <= sequence:
            run = load_u32(rest.at + GONE_RUN_AT) if load_u16(rest.at + 4) & RECORD_GONE else 1
            if rest.first + run - 1 > sequence:
                break
            if not load_u16(rest.at + 4) & RECORD_GONE:
                rest.messages -= 1
            rest.first += run
            rest.at += load_u32(rest.at)
        return rest


@cython.final
cdef class MessageIterator:
    cdef Batch batch
    cdef const uint8_t* at
    cdef uint64_t sequence

    def __iter__(self):
        return self

    def __next__(self):
        cdef Message message
        while self.at < self.batch.end:
            if load_u16(self.at + 4) & RECORD_GONE:
                self.sequence += load_u32(self.at + GONE_RUN_AT)
                self.at += load_u32(self.at)
                continue
            message = Message.__new__(Message)
            message.batch = self.batch
            message.record = self.at
            message.sequence = self.sequence
            self.sequence += 1
            self.at += load_u32(self.at)
            return message
        raise StopIteration


# No cycle can pass through a message: its batch and payload refer to nothing but bytes and text.
@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Message:
    """One message. It is a view of its batch: cheap to make, and it keeps the batch's bytes alive."""

    def __repr__(self):
        return (f"<Message {self.batch.channel!r} {self.sequence} of epoch {self.batch.epoch}: "
                f"{len(self.payload)} bytes>")

    @property
    def channel(self):
        """The channel's name."""
        return self.batch.channel

    @property
    def epoch(self):
        """The epoch in which the sequence was assigned."""
        return self.batch.epoch

    @property
    def position(self):
        """The message's position: resuming from it goes on with the next one."""
        return make_position(self.batch.epoch, self.sequence)

    @property
    def time(self):
        """Broker time at which the message was taken, in microseconds since 1970-01-01 UTC."""
        return self.batch.time_us + load_u32(self.record + 8)

    @property
    def payload(self):
        """The payload's bytes."""
        if self.payload_bytes is None:
            self.payload_bytes = record_payload(self.record)
        return self.payload_bytes

    @property
    def headers(self):
        """The headers as a new dict, decoded on each use; empty when there are none.

        Raises:
            ValueError: The publisher sent something that is no msgpack map.
        """
        return record_headers(self.record)

    @property
    def key(self):
        """The key's bytes, or None."""
        return record_key(self.record)

    @property
    def id(self):
        """The bytes of the message's id, or None."""
        return record_id(self.record)

    @property
    def publisher(self):
        """The authenticated publisher's name, or None."""
        return record_publisher(self.record)

    @property
    def priority(self):
        """0 critical, 1 high, 2 normal, 3 low."""
        return record_priority(self.record)

    @property
    def expiry_s(self):
        """Seconds after `time` at which it is no longer delivered, or None."""
        return record_expiry(self.record)


cdef object decode_headers(bytes packed):
    import msgpack  # only who reads headers pays for it

    try:
        headers = msgpack.unpackb(packed, raw=False, strict_map_key=False)
    except TypeError as cause:  # a map's key is an array or a map
        raise ValueError(f"headers: {cause}") from cause
    if not isinstance(headers, dict):
        raise ValueError(f"headers: got {type(headers).__name__}, expected a map")
    return headers


# -- frames ------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Route:
    """Where deliveries of one subscription number go, and the names of the channels that it was told."""

    cdef readonly object target
    cdef str literal
    cdef dict names

    def __cinit__(self, target, str literal):
        self.target = target
        self.literal = literal
        self.names = {}


@cython.final
cdef class FrameReader:
    """Frames out of a stream that arrives in arbitrary pieces.

    Args:
        error: Builds an error of a registry name and a detail.
        frame_bytes_max: Largest body that the peer may send; `frame_bytes_max` can be raised later.
    """

    cdef object error
    cdef public uint32_t frame_bytes_max
    cdef public bytes journal
    cdef readonly object failure
    cdef dict routes
    cdef uint8_t* spill                 # the beginning of a frame that is not complete
    cdef size_t spill_used
    cdef size_t spill_capacity

    def __cinit__(self, error, uint32_t frame_bytes_max):
        self.error = error
        self.frame_bytes_max = frame_bytes_max
        self.journal = b""
        self.routes = {}

    def __dealloc__(self):
        free(self.spill)

    def add_route(self, uint32_t subscription, target, str literal=None):
        """Accept deliveries of a subscription number.

        Args:
            subscription: The number.
            target: Handed out with each of its batches; None drops them.
            literal: The one channel that the subscription names, if it is one: its name is then never told.
        """
        self.routes[subscription] = Route(target, literal)

    def drop_route(self, uint32_t subscription):
        """Deliveries of this number are an error from now on."""
        self.routes.pop(subscription, None)

    def feed(self, data):
        """Parse what has arrived.

        Args:
            data: Any contiguous buffer, of any size and split anywhere; nothing of it is kept.

        Returns:
            What is complete, in order: (target, Batch) for a delivery, (kind, flags, body) for any other frame. When a
            frame is not legal, what came before it, and `failure` is set: nothing can be read from then on.
        """
        cdef list found = []
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.failure is None:
                self.parse(<const uint8_t*>view.buf, <size_t>view.len, found)
        except Exception as failure:
            # Only `error` raises here. The caller deals with what was whole first.
            self.failure = failure
        finally:
            PyBuffer_Release(&view)
        return found

    cdef int parse(self, const uint8_t* at, size_t left, list found) except -1:
        cdef size_t taken, whole
        while self.spill_used and left:
            taken = self.fill_spill(at, left)
            at += taken
            left -= taken
            if self.spill_used < FRAME_HEADER_BYTES:
                return 0
            whole = <size_t>FRAME_HEADER_BYTES + self.check_header(self.spill)
            if self.spill_used == whole:
                self.spill_used = 0
                self.parse_frame(self.spill, whole, found)
                self.shrink_spill()
        while left >= FRAME_HEADER_BYTES:
            whole = <size_t>FRAME_HEADER_BYTES + self.check_header(at)
            if whole > left:
                break
            self.parse_frame(at, whole, found)
            at += whole
            left -= whole
        if left:
            self.reserve_spill(left)
            memcpy(self.spill, at, left)
            self.spill_used = left
        return 0

    cdef size_t check_header(self, const uint8_t* header) except? 0:
        """The body's size, once the header is known to be legal."""
        cdef uint32_t size = load_u32(header)
        if size > self.frame_bytes_max:
            raise self.error("FRAME_TOO_LARGE", f"frame: got {size} bytes, limit {self.frame_bytes_max} bytes")
        if load_u16(header + 6):
            raise self.error("MALFORMED_FRAME", f"frame of kind {header[4]}: reserved bits are not zero")
        return size

    cdef size_t fill_spill(self, const uint8_t* at, size_t left) except? 0:
        """Add what the frame in the spill still lacks, first of its header, then of its body; answers how much."""
        cdef size_t whole = FRAME_HEADER_BYTES
        cdef size_t taken
        if self.spill_used >= FRAME_HEADER_BYTES:
            whole += self.check_header(self.spill)
        taken = min(whole - self.spill_used, left)
        # It grows with what has arrived, never with what was declared.
        self.reserve_spill(self.spill_used + taken)
        memcpy(self.spill + self.spill_used, at, taken)
        self.spill_used += taken
        return taken

    cdef int reserve_spill(self, size_t needed) except -1:
        cdef size_t capacity = max(needed, min(2 * self.spill_capacity, <size_t>self.frame_bytes_max))
        cdef uint8_t* grown
        if needed > self.spill_capacity:
            grown = <uint8_t*>realloc(self.spill, capacity)
            if grown == NULL:
                raise MemoryError
            self.spill = grown
            self.spill_capacity = capacity
        return 0

    cdef int shrink_spill(self) except -1:
        if self.spill_capacity > SPILL_BYTES_KEPT:
            free(self.spill)
            self.spill = NULL
            self.spill_capacity = 0
        return 0

    cdef int parse_frame(self, const uint8_t* frame, size_t whole, list found) except -1:
        cdef const uint8_t* body = frame + FRAME_HEADER_BYTES
        if frame[4] == KIND_DELIVER:
            self.parse_deliver(body, frame + whole, frame[5], found)
        else:
            found.append((frame[4], frame[5],
                          PyBytes_FromStringAndSize(<const char*>body, whole - FRAME_HEADER_BYTES)))
        return 0

    cdef int parse_deliver(self, const uint8_t* at, const uint8_t* end, uint8_t flags, list found) except -1:
        cdef const uint8_t* header = at
        cdef const uint8_t* name = NULL
        cdef Route route
        cdef Batch batch
        if end - at < DELIVER_HEADER_BYTES or flags & ~DELIVER_FLAGS_KNOWN:
            raise self.malformed("a bad header")
        at += DELIVER_HEADER_BYTES
        if flags & DELIVER_FLAG_NAME:
            if at == end or end - at < 1 + at[0]:
                raise self.malformed("a name that is cut short")
            name = at
            at += 1 + at[0]
        route = self.routes.get(load_u32(header))
        if route is None:
            raise self.malformed(f"unknown subscription {load_u32(header)}")
        if route.target is None:
            return 0
        batch = self.parse_chunk(at, end)
        batch.channel = self.channel_name(route, batch.channel_id, name)
        batch.subscription = load_u32(header)
        batch.index = load_u32(header + 4)
        batch.group = load_u64(header + 8)
        batch.early = flags & DELIVER_FLAG_EARLY != 0
        found.append((route.target, batch))
        return 0

    cdef object malformed(self, str what):
        return self.error("MALFORMED_FRAME", f"DELIVER: {what}")

    cdef str channel_name(self, Route route, uint64_t channel, const uint8_t* told):
        if told != NULL:
            try:
                name = PyBytes_FromStringAndSize(<const char*>told + 1, told[0]).decode("ascii")
            except UnicodeDecodeError:
                raise self.malformed("a channel's name is not ASCII") from None
            route.names[channel] = name
            return name
        if route.literal is not None:
            return route.literal
        name = route.names.get(channel)
        if name is None:
            raise self.malformed(f"channel {channel} was never named")
        return name

    def chunks(self, bytes data not None, str channel not None, uint64_t group=0, uint32_t index=0):
        """Check and parse whole chunks that a reply brought.

        Args:
            data: Chunks of one channel, one behind the other.
            channel: The channel's name, which chunks do not say.
            group, index: Their place on the bus where it is known; 0 and 0 where it is not.

        Returns:
            A list of `Batch`.

        Raises:
            MalformedFrame: They are no such chunks.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef const uint8_t* end = at + len(data)
        cdef uint32_t size
        cdef Batch batch
        cdef list found = []
        while at < end:
            size = load_u32(at) if end - at >= CHUNK_HEADER_BYTES else 0
            if size < CHUNK_HEADER_BYTES or size > end - at:
                raise self.error("MALFORMED_FRAME", "REPLY: a chunk is cut short")
            batch = self.parse_chunk(at, at + size)
            batch.channel = channel
            batch.group = group
            batch.index = index
            found.append(batch)
            at += size
        return found

    cdef Batch parse_chunk(self, const uint8_t* chunk, const uint8_t* end):
        """Check a chunk wholly and copy it."""
        cdef size_t size = end - chunk
        cdef Batch batch = Batch.__new__(Batch)
        cdef const uint8_t* base
        cdef uint64_t covered
        if size < CHUNK_HEADER_BYTES or load_u32(chunk) != size:
            raise self.malformed(f"got {size} bytes for a chunk that says otherwise")
        if crc32c(0, chunk + CHUNK_CHANNEL, size - CHUNK_CHANNEL) != load_u32(chunk + CHUNK_CRC):
            raise self.malformed("a chunk fails its checksum")
        batch.data = PyBytes_FromStringAndSize(<const char*>chunk, size)
        base = <const uint8_t*>PyBytes_AS_STRING(batch.data)
        batch.at = base + CHUNK_HEADER_BYTES
        batch.end = base + size
        batch.channel_id = load_u64(base + CHUNK_CHANNEL)
        batch.epoch = load_u64(base + CHUNK_EPOCH)
        batch.first = load_u64(base + CHUNK_FIRST)
        batch.time_us = load_u64(base + CHUNK_TIME)
        batch.journal = self.journal
        covered = load_u32(base + CHUNK_COUNT)
        if not self.check_records(batch, covered) or batch.first == 0 or batch.first + covered < batch.first:
            raise self.malformed("a chunk's records do not fit it")
        batch.last = batch.first + covered - 1
        return batch

    cdef bint check_records(self, Batch batch, uint64_t covered) noexcept:
        """Whether the records fill the chunk exactly, cover `covered` sequences, and are valid; counts messages."""
        cdef const uint8_t* at = batch.at
        cdef uint64_t seen = 0
        cdef uint32_t size
        cdef uint16_t flags
        while at < batch.end:
            if batch.end - at < RECORD_HEADER_BYTES:
                return False
            size = load_u32(at)
            flags = load_u16(at + 4)
            if size < RECORD_HEADER_BYTES or size > batch.end - at or load_u16(at + 6):
                return False
            # Most have no fields, of which nothing is to be asked.
            if flags and not record_is_valid(at, size):
                return False
            if flags & RECORD_GONE:
                batch.has_gone = True
                seen += load_u32(at + GONE_RUN_AT)
            else:
                batch.messages += 1
                seen += 1
            at += size
        return seen == covered and covered > 0


# -- the cursor --------------------------------------------------------------------------------------------------------


cdef class Source:
    """Where streams read from: what has arrived, who waits for more, and the end.

    Args:
        loop: The event loop of all its readers; None when they are threads, which use `take_now` and `add_waiter`.
    """

    def __cinit__(self, loop, *_):
        self.loop = loop
        self.turn_left = MESSAGES_PER_TURN
        self.waiters = []

    def take_now(self, bint whole):
        """The next message, or batch if `whole`; None when there is none now. For readers that are threads.

        They look after each other themselves: no two are in here at once.
        """
        return self.take(whole)

    def add_waiter(self, waiter not None):
        """Keep a waiter, with `done` and `set_result` like a future, that is woken by the next batch or the end."""
        if len(self.waiters) >= WAITERS_PRUNED:
            # Reads that timed out leave their cancelled waiters here.
            self.waiters = [one for one in self.waiters if not one.done()]
        self.waiters.append(waiter)

    def wake(self):
        """Wake everybody who waits."""
        cdef list waiters = self.waiters
        self.waiters = []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    cdef object take(self, bint whole):
        """The next message or batch, or None when there is none now. A bare source has none."""
        return None

    cdef bint is_ready(self):
        """Whether a read finds something now, and the loop has had its turn."""
        return False

    cdef object sleep(self):
        """The iterator of a future that ends when a batch arrives."""
        future = self.loop.create_future()
        self.add_waiter(future)
        return iter(future)

    cdef object raise_end(self):
        if self.failure is not None:
            raise self.failure
        raise StopAsyncIteration


@cython.final
cdef class Cursor(Source):
    """The batches that a subscription has received and its application has not consumed, in order.

    One application reads it, message by message or batch by batch, in as many tasks as it likes: each message is handed
    out once. What it works on counts as consumed when it asks for the next.

    Args:
        loop: The event loop of all its readers; None when they are threads, which use `take_now` and `add_waiter`.
        report_bytes: Consumed bytes after which `on_consumed` is told.
        on_consumed: Called with the consumed bytes since the last call, inside the reader's `await` or a `push`.
    """

    def __cinit__(self, loop, size_t report_bytes, on_consumed):
        self.report_bytes = report_bytes
        self.on_consumed = on_consumed
        self.queue = deque()

    def push(self, Batch batch not None):
        """Take a batch that arrived. One without messages (GONE runs only) is passed over."""
        if not batch.messages:
            self.pass_over(batch)
            return
        self.queued_bytes += <size_t>len(batch.data)
        self.queue.append(batch)
        if self.waiters:
            self.wake()

    def pass_over(self, Batch batch not None):
        """A batch arrived that the application is not given: its bytes are consumed."""
        self.consume(<size_t>len(batch.data))

    def end(self, failure=None, *, bint at_once=False):
        """No batch follows. Readers get what is queued, then the end of the iteration, or `failure` if there is one.

        Args:
            failure: Raised by every later read.
            at_once: Drop what is queued.
        """
        if self.ended:
            return
        self.ended = True
        self.failure = failure
        if at_once:
            self.queue.clear()
            self.current = None
            self.left = 0
        self.wake()

    def unreported(self):
        """Take the consumed bytes that were not reported: the caller accounts for them in another way."""
        cdef size_t consumed = self.consumed_bytes
        self.consumed_bytes = 0
        return consumed

    def messages(self):
        """An asynchronous iterator over messages."""
        return MessageStream.__new__(MessageStream, self)

    def batches(self):
        """An asynchronous iterator over batches."""
        return BatchStream.__new__(BatchStream, self)

    cdef int settle(self) except -1:
        """The application has come back: what it worked on is consumed."""
        cdef size_t lent = self.lent_bytes
        self.queued_bytes -= lent
        self.lent_bytes = 0
        return self.consume(lent)

    cdef int consume(self, size_t size) except -1:
        self.consumed_bytes += size
        if self.consumed_bytes >= self.report_bytes:
            self.on_consumed(self.unreported())
        return 0

    cdef Batch next_batch(self):
        cdef Batch batch
        if self.lent_bytes:
            self.settle()
        if not self.queue:
            return None
        batch = self.queue.popleft()
        self.lent_bytes = <size_t>len(batch.data)
        return batch

    cdef Message take_message(self):
        cdef Message message
        if not self.left:
            self.current = self.next_batch()
            if self.current is None:
                return None
            self.left = self.current.messages
            self.at = self.current.at
            self.sequence = self.current.first
        # A message is left, so the runs before it end within the chunk.
        while load_u16(self.at + 4) & RECORD_GONE:
            self.sequence += load_u32(self.at + GONE_RUN_AT)
            self.at += load_u32(self.at)
        message = Message.__new__(Message)
        message.batch = self.current
        message.record = self.at
        message.sequence = self.sequence
        self.sequence += 1
        self.left -= 1
        self.at += load_u32(self.at)
        return message

    cdef Batch take_batch(self):
        if self.left:
            # Message by message until now: hand out the rest of it.
            self.left = 0
            return self.current.after(self.sequence - 1)
        return self.next_batch()

    cdef object take(self, bint whole):
        """The next message or batch, or None when there is none now."""
        cdef Batch batch
        if not whole:
            self.turn_left -= self.turn_left > 0
            return self.take_message()
        batch = self.take_batch()
        if batch is not None:
            self.turn_left -= min(self.turn_left, batch.messages)
        return batch

    cdef bint is_ready(self):
        """Whether a read finds something now, and the loop has had its turn."""
        return self.turn_left and (self.left or len(<object>self.queue) > 0)


@cython.final
cdef class Wait:
    """The awaitable of one read that finds nothing at hand, or that lets the loop take a turn first."""

    cdef Source source
    cdef bint whole
    cdef object sleeper                 # the iterator of the future that it sleeps on

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef Source source = self.source
        if self.sleeper is not None:
            try:
                return next(self.sleeper)
            except StopIteration:
                self.sleeper = None
        if not source.turn_left:
            # A bare yield: the task goes on in the loop's next turn.
            source.turn_left = MESSAGES_PER_TURN
            return None
        value = source.take(self.whole)
        if value is not None:
            raise StopIteration(value)
        if source.ended:
            source.raise_end()
        source.turn_left = MESSAGES_PER_TURN
        self.sleeper = source.sleep()
        return next(self.sleeper)


cdef class MessageStream:
    """An asynchronous iterator over messages that is its own awaitable while something is at hand."""

    def __cinit__(self, Source source not None):
        self.source = source

    def __aiter__(self):
        return self

    def __anext__(self):
        return self if self.source.is_ready() else self.wait()

    # Asked again here, since the awaitable may have been wrapped into a task that starts later.
    def __await__(self):
        return self if self.source.is_ready() else self.wait()

    cdef object wait(self):
        cdef Wait wait = Wait.__new__(Wait)
        wait.source = self.source
        wait.whole = self.whole
        return wait

    def __iter__(self):
        return self

    def __next__(self):
        # Replaced by `stream_next` below; it makes the type an iterator.
        raise StopIteration(self.take())

    cdef object take(self):
        # `__await__` has just seen that it is ready.
        value = self.source.take(self.whole)
        if value is None:
            raise RuntimeError("the awaitable of a subscription must be awaited, not iterated")
        return value


@cython.final
cdef class BatchStream(MessageStream):
    """An asynchronous iterator over batches."""

    def __cinit__(self, Source source not None):
        self.whole = True


cdef PyObject* stream_next(PyObject* stream) noexcept:
    """`MessageStream.__next__` without an entry in a traceback.

    Cython adds one to every exception that leaves a method, also to the StopIteration that carries each message to who
    awaits it: a frame made and freed for each, which took longer than all the rest.
    """
    try:
        value = (<MessageStream>stream).take()
    except BaseException as failure:
        PyErr_SetObject(type(failure), failure)
        return NULL
    PyErr_SetObject(StopIteration, value)
    return NULL


(<PyTypeObject*>MessageStream).tp_iternext = stream_next
(<PyTypeObject*>BatchStream).tp_iternext = stream_next
