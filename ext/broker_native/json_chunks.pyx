"""What leaves on a connection as messages of the JSON dialect (broker/wire/json.md), each a text of a WebSocket.

Deliveries are rendered here, and once for all who get the same: what an outbox hands over is cut into units, whole
frames in one piece or in two (a shared chunk stands in a piece of its own), and the messages that a unit became are
kept for the rest of the turn. Connections that read the same channel under the same number have the same units, in the
same memory or byte for byte. Every other frame goes to `on_answer(kind, flags, body)` of its connection, which answers
the texts that it becomes; what a delivery took from a subscription's credit is told to `on_spent(subscription, bytes)`.

All of it belongs to the loop's thread. The plain functions have no state and run anywhere.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from broker_native.channel cimport Channel, channel_name
from broker_native.fanout cimport Fanout
from broker_native.growing cimport Bytes, bytes_append, bytes_release
from broker_native.json_text cimport (
    text_base64,
    text_decimal,
    text_integer,
    text_is_utf8,
    text_member,
    text_msgpack,
    text_string,
)
from broker_native.layout cimport *

cdef enum:
    FRAME_TEXT = 0x81                   # of a WebSocket (RFC 6455 §5.2): FIN and the opcode of text
    FRAME_HEADER_MAX = 10
    NAMES_KEPT = 65536
    KEPT_TEXT_BYTES = 256 * 1024        # of the memory that messages are written into
    KEPT_BYTES_MAX = 16 << 20           # of what units keep in memory, before the oldest go
    INDEX_END = 0xFFFFFFFF              # as a place of the bus: the whole group
    GONE_REASON_AT = 12
    GONE_RUN_AT = 16
    REASON_CONFLATED = 7

cdef const char** REASONS = [
    "unknown", "expired", "compacted", "revoked", "erased", "dropped", "lost", "conflated",
]


cdef object damaged():
    return ValueError("chunk: it is not well formed")


# -- small things ------------------------------------------------------------------------------------------------------


cdef inline int literal(Bytes* to, const char* text, size_t size) except -1:
    return bytes_append(to, <const uint8_t*>text, size)


cdef int quoted(Bytes* to, uint64_t value) except -1:
    """Append an integer that is always a string."""
    literal(to, b'"', 1)
    text_decimal(to, value)
    return literal(to, b'"', 1)


cdef int position(Bytes* to, uint64_t epoch, uint64_t sequence) except -1:
    literal(to, b'"', 1)
    text_decimal(to, epoch)
    literal(to, b':', 1)
    text_decimal(to, sequence)
    return literal(to, b'"', 1)


cdef int named_bytes(Bytes* to, const char* name, const char* name_base64, const uint8_t* data, size_t size) except -1:
    """Append a member as text, or under its other name as base64 when it is none."""
    if text_is_utf8(data, size):
        text_member(to, name)
        return text_string(to, data, size)
    text_member(to, name_base64)
    return text_base64(to, data, size)


cdef int websocket_header(Bytes* to, size_t size) except -1:
    """Append the header of a server's text message of so many bytes."""
    cdef uint8_t header[FRAME_HEADER_MAX]
    cdef uint32_t used = 2, i
    header[0] = FRAME_TEXT
    if size < 126:
        header[1] = <uint8_t>size
    elif size < 1 << 16:
        header[1] = 126
        header[2] = <uint8_t>(size >> 8)
        header[3] = <uint8_t>size
        used = 4
    else:
        header[1] = 127
        for i in range(8):
            header[2 + i] = <uint8_t>(<uint64_t>size >> (56 - 8 * i))
        used = 10
    return bytes_append(to, header, used)


# -- records -----------------------------------------------------------------------------------------------------------


cdef const uint8_t* field(const uint8_t** at, const uint8_t* end, size_t size) except NULL:
    """Take a field of so many bytes."""
    cdef const uint8_t* begin = at[0]
    if <size_t>(end - begin) < size:
        raise damaged()
    at[0] = begin + size
    return begin


cdef int record_members(Bytes* to, const uint8_t* record, uint32_t size) except -1:
    """Append the members of a message that its record says, but for where and when it is.

    `size` is the record's, at least that of its header.
    """
    cdef uint16_t flags = load_u16(record + 4)
    cdef const uint8_t* at = record + RECORD_HEADER_BYTES
    cdef const uint8_t* end = record + size
    cdef size_t length
    if flags & RECORD_PUBLISHER:
        length = field(&at, end, 1)[0]
        named_bytes(to, b"publisher", b"publisher_base64", field(&at, end, length), length)
    if flags & RECORD_NUMBER:
        text_member(to, b"number")
        text_integer(to, load_u64(field(&at, end, 8)))
    if flags & RECORD_PRIORITY:
        text_member(to, b"priority")
        text_decimal(to, field(&at, end, 1)[0])
    if flags & RECORD_EXPIRY:
        text_member(to, b"expires_s")
        text_decimal(to, load_u32(field(&at, end, 4)))
    if flags & RECORD_KEY:
        length = load_u16(field(&at, end, 2))
        named_bytes(to, b"key", b"key_base64", field(&at, end, length), length)
    if flags & RECORD_HEADERS:
        length = load_u16(field(&at, end, 2))
        headers_member(to, field(&at, end, length), length)
    if flags & RECORD_ID:
        length = field(&at, end, 1)[0]
        named_bytes(to, b"message_id", b"message_id_base64", field(&at, end, length), length)
    return named_bytes(to, b"text", b"base64", at, <size_t>(end - at))


cdef int headers_member(Bytes* to, const uint8_t* data, size_t size) except -1:
    cdef size_t before = to.used
    text_member(to, b"headers")
    if not text_msgpack(to, data, size):
        to.used = before
        text_member(to, b"headers_base64")
        text_base64(to, data, size)
    return 0


cdef int gone_members(Bytes* to, const uint8_t* record) except -1:
    cdef uint8_t reason = record[GONE_REASON_AT]
    cdef bytes name = REASONS[reason if reason <= REASON_CONFLATED else 0]
    text_member(to, b"gone")
    text_string(to, <const uint8_t*>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))
    text_member(to, b"count")
    return text_decimal(to, load_u32(record + GONE_RUN_AT))


cdef uint32_t record_at(const uint8_t* at, const uint8_t* end) except 0:
    """The size of the record here, which is whole."""
    cdef uint32_t size
    if <size_t>(end - at) < RECORD_HEADER_BYTES:
        raise damaged()
    size = load_u32(at)
    if size < RECORD_HEADER_BYTES or size > <size_t>(end - at):
        raise damaged()
    if load_u16(at + 4) & RECORD_GONE and size != GONE_RECORD_BYTES:
        raise damaged()
    return size


cdef int chunk_messages(Bytes* to, const uint8_t* chunk, size_t size) except -1:
    """Append the messages of a chunk as an array."""
    cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = chunk + size
    cdef uint64_t sequence = load_u64(chunk + CHUNK_FIRST), time_us = load_u64(chunk + CHUNK_TIME)
    cdef uint32_t record
    literal(to, b"[", 1)
    while at < end:
        record = record_at(at, end)
        if at != chunk + CHUNK_HEADER_BYTES:
            literal(to, b",", 1)
        literal(to, b"{", 1)
        text_member(to, b"seq")
        text_integer(to, sequence)
        if load_u16(at + 4) & RECORD_GONE:
            gone_members(to, at)
            sequence += load_u32(at + GONE_RUN_AT)
        else:
            text_member(to, b"time")
            text_integer(to, time_us + load_u32(at + 8))
            record_members(to, at, record)
            sequence += 1
        literal(to, b"}", 1)
        at += record
    return literal(to, b"]", 1)


cdef int chunk_begin(Bytes* to, const uint8_t* chunk, bytes channel) except -1:
    """Append the members of a chunk that say where it is."""
    cdef uint64_t epoch = load_u64(chunk + CHUNK_EPOCH)
    text_member(to, b"channel")
    text_string(to, <const uint8_t*>PyBytes_AS_STRING(channel), <size_t>PyBytes_GET_SIZE(channel))
    text_member(to, b"epoch")
    quoted(to, epoch)
    text_member(to, b"position")
    return position(to, epoch, load_u64(chunk + CHUNK_FIRST) + load_u32(chunk + CHUNK_COUNT) - 1)


cdef const uint8_t* whole_chunk(bytes chunk) except NULL:
    if PyBytes_GET_SIZE(chunk) < CHUNK_HEADER_BYTES:
        raise damaged()
    return <const uint8_t*>PyBytes_AS_STRING(chunk)


def chunk_members(bytes chunk not None, bytes channel not None, bytes bus=None):
    """Return what a delivery tells of a chunk, as the members of an object, without its braces.

    Args:
        chunk: A whole one.
        channel: Its channel's name.
        bus: The place of the bus to tell with it, as text; None for none.

    Raises:
        ValueError: It is not well formed.
    """
    cdef Bytes text = Bytes(NULL, 0, 0)
    cdef const uint8_t* data = whole_chunk(chunk)
    try:
        literal(&text, b"{", 1)
        chunk_begin(&text, data, channel)
        if bus is not None:
            text_member(&text, b"bus")
            text_string(&text, <const uint8_t*>PyBytes_AS_STRING(bus), <size_t>PyBytes_GET_SIZE(bus))
        text_member(&text, b"messages")
        chunk_messages(&text, data, <size_t>PyBytes_GET_SIZE(chunk))
        return PyBytes_FromStringAndSize(<const char*>text.data + 1, <Py_ssize_t>text.used - 1)
    finally:
        bytes_release(&text)


def messages(bytes chunk not None):
    """Return the messages of a chunk that are there, each as its sequence and an object that does not say it.

    Raises:
        ValueError: It is not well formed.
    """
    cdef Bytes text = Bytes(NULL, 0, 0)
    cdef const uint8_t* data = whole_chunk(chunk)
    cdef const uint8_t* at = data + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = data + PyBytes_GET_SIZE(chunk)
    cdef uint64_t sequence = load_u64(data + CHUNK_FIRST)
    cdef uint32_t record
    cdef list found = []
    try:
        while at < end:
            record = record_at(at, end)
            if load_u16(at + 4) & RECORD_GONE:
                sequence += load_u32(at + GONE_RUN_AT)
            else:
                text.used = 0
                literal(&text, b"{", 1)
                text_member(&text, b"time")
                text_integer(&text, load_u64(data + CHUNK_TIME) + load_u32(at + 8))
                record_members(&text, at, record)
                literal(&text, b"}", 1)
                found.append((sequence, PyBytes_FromStringAndSize(<const char*>text.data, <Py_ssize_t>text.used)))
                sequence += 1
            at += record
        return found
    finally:
        bytes_release(&text)


# -- jobs --------------------------------------------------------------------------------------------------------------


def jobs(bytes body not None, dict names not None):
    """Return the text of a JOBS.

    Args:
        body: The frame's.
        names: Of the channels, by the numbers that the subscription has been told; what this one tells is added.

    Raises:
        ValueError: It is not well formed.
    """
    cdef Bytes text = Bytes(NULL, 0, 0)
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef const uint8_t* at = data + JOBS_HEADER_BYTES
    cdef const uint8_t* end = data + PyBytes_GET_SIZE(body)
    cdef uint64_t lease
    if PyBytes_GET_SIZE(body) < JOBS_HEADER_BYTES:
        raise damaged()
    lease = load_u64(data + 8)
    try:
        literal(&text, b'{"op":"jobs","sub":', 19)
        text_decimal(&text, load_u32(data))
        text_member(&text, b"lease_ms")
        text_integer(&text, load_u64(data + 16))
        text_member(&text, b"jobs")
        literal(&text, b"[", 1)
        while at < end:
            if at != data + JOBS_HEADER_BYTES:
                literal(&text, b",", 1)
            at += job(&text, at, end, lease, names)
            lease += 1
        literal(&text, b"]}", 2)
        return PyBytes_FromStringAndSize(<const char*>text.data, <Py_ssize_t>text.used)
    finally:
        bytes_release(&text)


cdef uint32_t job(Bytes* to, const uint8_t* at, const uint8_t* end, uint64_t lease, dict names) except 0:
    """Append a job; answers its size."""
    cdef uint32_t size, name_size
    cdef const uint8_t* record
    cdef bytes channel
    if <size_t>(end - at) < JOB_HEADER_BYTES:
        raise damaged()
    size = load_u32(at)
    name_size = at[35]
    if size > <size_t>(end - at) or size < JOB_HEADER_BYTES + name_size + RECORD_HEADER_BYTES:
        raise damaged()
    if at[34] & JOB_FLAG_NAME:
        names[load_u32(at + 4)] = PyBytes_FromStringAndSize(<const char*>at + JOB_HEADER_BYTES, name_size)
    channel = names.get(load_u32(at + 4))
    if channel is None:
        raise damaged()
    record = at + JOB_HEADER_BYTES + name_size
    if record_at(record, at + size) != size - JOB_HEADER_BYTES - name_size or load_u16(record + 4) & RECORD_GONE:
        raise damaged()
    literal(to, b"{", 1)
    text_member(to, b"lease")
    quoted(to, lease)
    text_member(to, b"channel")
    text_string(to, <const uint8_t*>PyBytes_AS_STRING(channel), <size_t>PyBytes_GET_SIZE(channel))
    text_member(to, b"epoch")
    quoted(to, load_u64(at + 8))
    text_member(to, b"seq")
    text_integer(to, load_u64(at + 16))
    text_member(to, b"time")
    text_integer(to, load_u64(at + 24))
    text_member(to, b"attempt")
    text_decimal(to, load_u16(at + 32))
    if at[34] & JOB_FLAG_REDELIVERED:
        text_member(to, b"redelivered")
        literal(to, b"true", 4)
    record_members(to, record, load_u32(record))
    literal(to, b"}", 1)
    return size


def framed(bytes text not None):
    """Return a text as a message of a WebSocket, unmasked as a server's are."""
    cdef Bytes to = Bytes(NULL, 0, 0)
    try:
        websocket_header(&to, <size_t>PyBytes_GET_SIZE(text))
        bytes_append(&to, <const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
        return PyBytes_FromStringAndSize(<const char*>to.data, <Py_ssize_t>to.used)
    finally:
        bytes_release(&to)


# -- what leaves -------------------------------------------------------------------------------------------------------


@cython.final
cdef class Unit:
    """Whole frames and the messages that they became, for whoever is handed the same."""


cdef inline bint unit_spend(Unit unit, uint32_t subscription, size_t size) noexcept:
    """Note what a delivery takes from a subscription's credit; answers whether there is room to."""
    cdef uint32_t at
    for at in range(unit.spenders):
        if unit.spent[at].subscription == subscription:
            unit.spent[at].size += size
            return True
    if unit.spenders == UNIT_SPENDERS_MAX:
        return False
    unit.spent[unit.spenders].subscription = subscription
    unit.spent[unit.spenders].size = size
    unit.spenders += 1
    return True


cdef inline int data_of(object piece, const uint8_t** data, size_t* size) except -1:
    """Where the bytes of a piece are: bytes, or a memoryview of bytes, which keep their place while they live."""
    cdef Py_buffer view
    if type(piece) is bytes:
        data[0] = <const uint8_t*>PyBytes_AS_STRING(piece)
        size[0] = <size_t>PyBytes_GET_SIZE(piece)
        return 0
    PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
    data[0] = <const uint8_t*>view.buf
    size[0] = <size_t>view.len
    PyBuffer_Release(&view)
    return 0


cdef class Renderer:
    """Turns what leaves into messages; one for a node.

    Args:
        fanout: Knows the names of channels in memory.
        journal: Its 16 bytes.
        find_name: Answers the name of a stored channel that is not in memory, by its id, or raises.

    Attributes:
        forgets: `forget` is going to be called; whoever finds it unset sees to that.
    """

    def __cinit__(self, Fanout fanout not None, bytes journal not None, find_name):
        self.fanout = fanout
        self.journal = journal.hex().encode()
        self.find_name = find_name
        self.names = {}
        self.units = []

    def __dealloc__(self):
        bytes_release(&self.text)

    def translate(self, list pieces not None, connection):
        """Return what a connection's pieces become: messages, headers included, in the same order.

        Args:
            pieces: What an outbox hands over: whole frames in all, bytes or memoryviews of bytes.
            connection: Has `on_answer` and `on_spent`.

        Raises:
            ValueError: They are no whole frames, or a chunk is not well formed.
        """
        cdef list out = []
        cdef Py_ssize_t at = 0
        cdef object piece, second
        cdef bytes first
        cdef Unit unit
        cdef uint32_t spender
        while at < PyList_GET_SIZE(pieces):
            piece = pieces[at]
            first = <bytes>piece if type(piece) is bytes else bytes(piece)
            second = pieces[at + 1] if at + 1 < PyList_GET_SIZE(pieces) else None
            unit = self.find(first, second)
            if unit is None:
                unit = self.render(first, second, connection)
            else:
                self.shared += 1
            at += 1 if unit.second is None else 2
            if PyBytes_GET_SIZE(unit.text):
                out.append(unit.text)
            for spender in range(unit.spenders):
                connection.on_spent(unit.spent[spender].subscription, unit.spent[spender].size)
        return out

    def forget(self):
        """Keep nothing more of what was rendered: the turn is over."""
        self.forgets = False
        self.drop()

    cdef int drop(self) except -1:
        self.units.clear()
        self.kept_bytes = 0
        return 0

    cdef Unit find(self, bytes first, object second):
        """The unit that begins with these pieces, if this turn has had it."""
        cdef Py_ssize_t at = PyList_GET_SIZE(self.units), size = PyBytes_GET_SIZE(first)
        cdef const uint8_t* second_data
        cdef size_t second_size
        cdef Unit unit
        while at:
            at -= 1
            unit = <Unit>PyList_GET_ITEM(self.units, at)
            if PyBytes_GET_SIZE(unit.first) != size:
                continue
            if unit.second is not None:
                if second is None:
                    continue
                if second is not unit.second:
                    data_of(second, &second_data, &second_size)
                    if second_data != unit.second_data or second_size != unit.second_size:
                        continue
            if unit.first is first or not memcmp(PyBytes_AS_STRING(unit.first), PyBytes_AS_STRING(first), size):
                return unit
        return None

    cdef int keep(self, Unit unit) except -1:
        cdef size_t size = (<size_t>PyBytes_GET_SIZE(unit.first) + unit.second_size
                            + <size_t>PyBytes_GET_SIZE(unit.text))
        if size > KEPT_BYTES_MAX:
            return 0
        if PyList_GET_SIZE(self.units) >= UNITS_KEPT or self.kept_bytes + size > KEPT_BYTES_MAX:
            self.drop()
        self.units.append(unit)
        self.kept_bytes += size
        return 0

    cdef Unit render(self, bytes first, object second, object connection):
        """Turn whole frames into messages, and keep them if they are deliveries alone."""
        cdef Bytes out = Bytes(NULL, 0, 0)
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(first)
        cdef const uint8_t* frame
        cdef size_t size = <size_t>PyBytes_GET_SIZE(first), at = 0, body, there, head, size_taken
        cdef Unit unit = Unit.__new__(Unit)
        cdef bint alone = True
        cdef bytes whole
        unit.first = first
        try:
            while at < size:
                frame = data + at
                if size - at < FRAME_HEADER_BYTES:
                    raise ValueError("pieces: half a frame")
                body = load_u32(frame)
                there = min(body, size - at - FRAME_HEADER_BYTES)
                if there < body:
                    if second is None:
                        raise ValueError("pieces: half a frame")
                    unit.second = second
                    data_of(second, &unit.second_data, &unit.second_size)
                    if there + unit.second_size != body:
                        raise ValueError("pieces: half a frame")
                head = DELIVER_HEADER_BYTES
                if frame[4] == KIND_DELIVER and there >= head and load_u32(frame + FRAME_HEADER_BYTES):
                    if frame[5] & DELIVER_FLAG_NAME:
                        head += 1 + (frame[FRAME_HEADER_BYTES + head] if there > head else 0)
                    self.text.used = 0
                    if there < body:
                        if there != head:
                            raise ValueError("pieces: half a chunk")
                        self.deliver(frame + FRAME_HEADER_BYTES, frame[5], unit.second_data, unit.second_size)
                        size_taken = unit.second_size
                    else:
                        if body < head:
                            raise ValueError("pieces: no chunk")
                        size_taken = body - head
                        self.deliver(frame + FRAME_HEADER_BYTES, frame[5], frame + FRAME_HEADER_BYTES + head,
                                     size_taken)
                    websocket_header(&out, self.text.used)
                    bytes_append(&out, self.text.data, self.text.used)
                    if not unit_spend(unit, load_u32(frame + FRAME_HEADER_BYTES), size_taken):
                        alone = False
                        connection.on_spent(load_u32(frame + FRAME_HEADER_BYTES), size_taken)
                else:
                    alone = False
                    whole = PyBytes_FromStringAndSize(<const char*>frame + FRAME_HEADER_BYTES, <Py_ssize_t>there)
                    if there < body:
                        whole += bytes(second)
                    self.control(&out, connection, frame[4], frame[5], whole)
                at += FRAME_HEADER_BYTES + there
            unit.text = PyBytes_FromStringAndSize(<const char*>out.data, <Py_ssize_t>out.used)
        finally:
            bytes_release(&out)
            if self.text.capacity > KEPT_TEXT_BYTES:
                bytes_release(&self.text)
        self.rendered += 1
        if alone:
            self.keep(unit)
        return unit

    cdef int control(self, Bytes* out, object connection, uint8_t kind, uint8_t flags, bytes body) except -1:
        """Append what a frame becomes that is no delivery of a subscription."""
        cdef bytes text
        for text in connection.on_answer(kind, flags, body):
            websocket_header(out, <size_t>PyBytes_GET_SIZE(text))
            bytes_append(out, <const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
        return 0

    cdef int deliver(self, const uint8_t* body, uint8_t flags, const uint8_t* chunk, size_t chunk_size) except -1:
        """Write the text of a DELIVER, whose chunk stands behind what its body begins with, or elsewhere."""
        cdef Bytes* to = &self.text
        cdef uint32_t index = load_u32(body + 4)
        cdef uint64_t group = load_u64(body + 8)
        cdef bytes name
        if chunk_size < CHUNK_HEADER_BYTES:
            raise damaged()
        if flags & DELIVER_FLAG_NAME:
            name = PyBytes_FromStringAndSize(<const char*>body + DELIVER_HEADER_BYTES + 1, body[DELIVER_HEADER_BYTES])
            if len(self.names) >= NAMES_KEPT:
                self.names.clear()
            self.names[load_u64(chunk + CHUNK_CHANNEL)] = name
        else:
            name = self.name_of(load_u64(chunk + CHUNK_CHANNEL))
        literal(to, b'{"op":"deliver","sub":', 22)
        text_decimal(to, load_u32(body))
        chunk_begin(to, chunk, name)
        if flags & DELIVER_FLAG_EARLY:
            text_member(to, b"early")
            literal(to, b"true", 4)
            # What came early vouches for what is committed by then alone.
            index = <uint32_t>INDEX_END
            group = group - 2 if group > 2 else 0
        if group:
            text_member(to, b"bus")
            literal(to, b'"', 1)
            literal(to, PyBytes_AS_STRING(self.journal), <size_t>PyBytes_GET_SIZE(self.journal))
            literal(to, b":", 1)
            text_decimal(to, group)
            literal(to, b":", 1)
            text_decimal(to, index)
            literal(to, b'"', 1)
        text_member(to, b"bytes")
        text_decimal(to, chunk_size)
        text_member(to, b"messages")
        chunk_messages(to, chunk, chunk_size)
        return literal(to, b"}", 1)

    cdef bytes name_of(self, uint64_t channel):
        cdef Channel* found = self.fanout.tails.by_channel_id(channel)
        cdef object name
        if found != NULL:
            return PyBytes_FromStringAndSize(channel_name(found), found.name_size)
        name = self.names.get(channel)
        if name is None:
            name = self.find_name(channel)
        return <bytes?>name
