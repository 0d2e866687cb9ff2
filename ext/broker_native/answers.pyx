"""Answers questions about the history of channels out of an archive, many of them in one pass without Python.

A question is a stretch of one channel: from a sequence, before another, at most so many, from the one end or the other.
Its answer is a whole REPLY frame (specification.md §13): the chunks of the stretch, without what has expired and joined
to as few as may be, between the numbers that tell what is left. Frames stand one behind the other, so those of one
connection leave as one piece.

The archive answers alone only where it has all of a stretch. What goes past its end, or begins or ends at a time, is
left to whoever can look at more (`broker/node/stretch.py`), and its answers are the same.

No row is trusted: what `archive.pyx` proves is proved here as well. The interpreter's lock is not held while pages are
read.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM
from cpython.unicode cimport PyUnicode_DecodeASCII
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen

from broker_native.archive cimport NO_MEMORY, Arena, ChunkRun, channel_ends, fault, run_back, run_forward
from broker_native.btree cimport Span
from broker_native.chunks cimport (
    TAKE_DAMAGED,
    TAKE_DONE,
    TAKE_NO_MEMORY,
    ChunkBuilder,
    builder_expire,
    builder_finish,
    builder_free,
    builder_take,
)
from broker_native.layout cimport (
    CHUNK_COUNT,
    CHUNK_EXPIRY,
    CHUNK_FIRST,
    ENTRY_CHANNEL,
    ENTRY_EPOCH,
    ENTRY_HEAD,
    ENTRY_HEADER_BYTES,
    ENTRY_TRIM,
    FRAME_HEADER_BYTES,
    KIND_REPLY,
    load_u16,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
)
from broker_native.names cimport name_is_channel
from broker_native.rows cimport store_key_u64
from broker_native.tree cimport CURSOR_END, CURSOR_ROW, TreeReader

cdef extern from "<stdint.h>" nogil:
    const uint64_t U32_MAX "UINT32_MAX"
    const uint64_t U64_MAX "UINT64_MAX"

cdef enum:                        # fields of a question, in the order of FIELD_NAMES
    FIELD_REQUEST
    FIELD_OP
    FIELD_CHANNEL
    FIELD_AFTER
    FIELD_AFTER_EPOCH
    FIELD_BEFORE
    FIELD_FROM
    FIELD_UNTIL
    FIELD_LAST
    FIELD_LIMIT
    FIELD_REVERSE
    FIELD_BYTES
    QUESTION_FIELDS
    FIELDS_NEEDED = 7             # request, op and channel
    QUERY_FIELDS = 10             # of a `HistoryQuery`

cdef const char** FIELD_NAMES = [
    b"request", b"op", b"channel", b"after", b"after_epoch", b"before", b"from_us", b"until_us", b"last", b"limit",
    b"reverse", b"bytes",
]

cdef struct Question:             # a body that is being read
    uint32_t present              # a bit for each field
    uint64_t numbers[12]
    Span channel

cdef enum:
    CHUNKS_AT = FRAME_HEADER_BYTES + 13   # a map's header, "chunks" and the header of its bytes
    TAIL_BYTES_MAX = 160                  # the other fields, and `outcome` and `at`


# -- what is stored of a channel ---------------------------------------------------------------------------------------


cdef int entries_read(const uint8_t* at, const uint8_t* end, Stretch* stretch, list epochs) except -1:
    """Take what the whole entries of a stored channel say; its epochs into a list, if one is given."""
    cdef uint64_t lower
    cdef uint32_t size
    cdef uint16_t kind
    stretch.first = stretch.next = 1
    while at < end:
        size = load_u32(at) if end - at >= ENTRY_HEADER_BYTES else 0
        if size < ENTRY_HEADER_BYTES or size > end - at:
            raise ValueError(f"entries: none stands {end - at} bytes before the end")
        kind = load_u16(at + 4)
        if kind == ENTRY_CHANNEL and size > 16:
            stretch.channel = load_u64(at + 8)
            stretch.level = at[16]
        elif kind == ENTRY_EPOCH and size >= 32:
            stretch.epoch = load_u64(at + 16)
            if epochs is not None:
                epochs.append((stretch.epoch, load_u64(at + 24)))
        elif kind == ENTRY_HEAD and size >= 40:
            # Of the first sequence a segment knows a lower bound only.
            stretch.next = load_u64(at + 24)
            lower = load_u64(at + 32)
            stretch.first = lower if lower > stretch.first else stretch.first
        elif kind == ENTRY_TRIM and size >= 24:
            lower = load_u64(at + 16)
            stretch.first = lower if lower > stretch.first else stretch.first
        at += size
    return 0


def stored_channel(bytes entries not None):
    """What the whole entries of a stored channel say.

    Returns:
        (id, level, first, next, [(epoch, first sequence) …] oldest first); (0, 0, 1, 1, []) for no entries.

    Raises:
        ValueError: They are no entries.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(entries)
    cdef Stretch stretch
    cdef list epochs = []
    memset(&stretch, 0, sizeof(Stretch))
    entries_read(at, at + PyBytes_GET_SIZE(entries), &stretch, epochs)
    return stretch.channel, stretch.level, stretch.first, stretch.next, epochs


# -- a question --------------------------------------------------------------------------------------------------------


cdef const uint8_t* take_number(const uint8_t* at, const uint8_t* end, uint64_t* number) noexcept nogil:
    """Read a number that is not below 0; what follows it, NULL when another value stands there."""
    cdef uint32_t size
    if at >= end:
        return NULL
    if at[0] < 0x80:
        number[0] = at[0]
        return at + 1
    if at[0] < 0xCC or at[0] > 0xCF:
        return NULL
    size = <uint32_t>1 << (at[0] - 0xCC)
    if end - at < <int>(1 + size):
        return NULL
    number[0] = 0
    at += 1
    for _ in range(size):
        number[0] = number[0] << 8 | at[0]
        at += 1
    return at


cdef const uint8_t* take_text(const uint8_t* at, const uint8_t* end, Span* text) noexcept nogil:
    """Read a text of up to 255 bytes, all of them ASCII; what follows it, NULL when another value stands there."""
    cdef uint64_t index
    if at >= end:
        return NULL
    if at[0] & 0xE0 == 0xA0:
        text.size = at[0] & 0x1F
        text.at = at + 1
    elif at[0] == 0xD9 and end - at >= 2:
        text.size = at[1]
        text.at = at + 2
    else:
        return NULL
    if <uint64_t>(end - text.at) < text.size:
        return NULL
    for index in range(text.size):
        if text.at[index] >= 0x80:
            return NULL
    return text.at + text.size


cdef int field_of(const Span* name) noexcept nogil:
    """Which field of a question has a name; -1 for none."""
    cdef int index
    for index in range(QUESTION_FIELDS):
        if name.size == strlen(FIELD_NAMES[index]) and memcmp(name.at, FIELD_NAMES[index], name.size) == 0:
            return index
    return -1


cdef bint question_field(const uint8_t** at, const uint8_t* end, Question* question) noexcept nogil:
    """Read a field and its value; False for anything that is not known."""
    cdef Span name
    cdef int field
    at[0] = take_text(at[0], end, &name)
    if at[0] == NULL:
        return False
    field = field_of(&name)
    if field < 0 or question.present >> field & 1:
        return False
    question.present |= <uint32_t>1 << field
    if field == FIELD_OP:
        at[0] = take_text(at[0], end, &name)
        return at[0] != NULL and name.size == 7 and memcmp(name.at, b"history", 7) == 0
    if field == FIELD_CHANNEL:
        at[0] = take_text(at[0], end, &question.channel)
        return at[0] != NULL
    if field == FIELD_REVERSE:
        if at[0] >= end or at[0][0] & 0xFE != 0xC2:
            return False
        question.numbers[field] = at[0][0] & 1
        at[0] += 1
        return True
    at[0] = take_number(at[0], end, &question.numbers[field])
    return at[0] != NULL


cdef bint question_read(const uint8_t* at, const uint8_t* end, Question* question) noexcept nogil:
    """Read a whole body; False when it is not a usual question about a channel."""
    cdef uint32_t fields
    if at >= end or at[0] & 0xF0 != 0x80:
        return False
    fields = at[0] & 0x0F
    at += 1
    for _ in range(fields):
        if not question_field(&at, end, question):
            return False
    return (at == end and question.present & FIELDS_NEEDED == FIELDS_NEEDED
            and name_is_channel(question.channel.at, question.channel.size)
            and question.numbers[FIELD_REQUEST] <= U32_MAX
            and (question.numbers[FIELD_LIMIT] > 0 or not question.present >> FIELD_LIMIT & 1)
            and (question.numbers[FIELD_BYTES] > 0 or not question.present >> FIELD_BYTES & 1))


cdef object question_number(const Question* question, int field):
    """The number in a field, None when it was left out."""
    return question.numbers[field] if question.present >> field & 1 else None


def channel_question(bytes body not None, uint64_t bytes_default, uint64_t bytes_max):
    """Read the body of a REQUEST `history` of one channel, if it is what clients usually send.

    Args:
        body: The whole body.
        bytes_default: What `bytes` is when it is left out.
        bytes_max: And at most.

    Returns:
        (the request's number, the fields of a `HistoryQuery`, the channel's name, which is one); None for any other
        body, well formed or not.
    """
    cdef Question question
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef uint64_t size = bytes_default
    memset(&question, 0, sizeof(Question))
    if not question_read(at, at + PyBytes_GET_SIZE(body), &question):
        return None
    if question.present >> FIELD_BYTES & 1:
        size = question.numbers[FIELD_BYTES] if question.numbers[FIELD_BYTES] < bytes_max else bytes_max
    return question.numbers[FIELD_REQUEST], (
        PyUnicode_DecodeASCII(<const char*>question.channel.at, <Py_ssize_t>question.channel.size, NULL),
        question_number(&question, FIELD_AFTER),
        question.numbers[FIELD_AFTER_EPOCH],
        question_number(&question, FIELD_BEFORE),
        question_number(&question, FIELD_FROM),
        question_number(&question, FIELD_UNTIL),
        question_number(&question, FIELD_LAST),
        question_number(&question, FIELD_LIMIT),
        question.numbers[FIELD_REVERSE] != 0,
        size,
    ), PyBytes_FromStringAndSize(<const char*>question.channel.at, <Py_ssize_t>question.channel.size)


# -- a frame -----------------------------------------------------------------------------------------------------------


cdef uint8_t* put_name(uint8_t* at, const char* name, uint8_t size) noexcept nogil:
    """Write a short string."""
    at[0] = 0xA0 | size
    memcpy(at + 1, name, size)
    return at + 1 + size


cdef uint8_t* put_number(uint8_t* at, uint64_t number) noexcept nogil:
    """Write a number as MessagePack has it, most significant byte first, in as few bytes as may be."""
    cdef uint8_t whole[8]
    cdef uint32_t size
    if number < 0x80:
        at[0] = <uint8_t>number
        return at + 1
    store_key_u64(whole, number)
    if number <= 0xFF:
        at[0] = 0xCC
        size = 1
    elif number <= 0xFFFF:
        at[0] = 0xCD
        size = 2
    elif number <= U32_MAX:
        at[0] = 0xCE
        size = 4
    else:
        at[0] = 0xCF
        size = 8
    memcpy(at + 1, whole + 8 - size, size)
    return at + 1 + size


cdef uint8_t* put_outcome(uint8_t* at, const Stretch* stretch) noexcept nogil:
    """Write how the position that was asked for was found, if one was."""
    if stretch.outcome == OUTCOME_NONE:
        return at
    at = put_name(at, b"outcome", 7)
    if stretch.outcome == OUTCOME_RESUMED:
        at = put_name(at, b"resumed", 7)
    elif stretch.outcome == OUTCOME_TRIMMED:
        at = put_name(at, b"trimmed", 7)
    else:
        at = put_name(at, b"diverged", 8)
    return put_number(put_name(at, b"at", 2), stretch.at)


cdef void frame_finish(Arena* frames, Stretch* stretch, uint64_t low, uint64_t high) noexcept nogil:
    """Write what stands around the chunks, which are in; there is room."""
    cdef uint8_t* frame = frames.data + stretch.offset
    cdef uint8_t* at = frame + FRAME_HEADER_BYTES
    cdef uint8_t size[8]
    at[0] = 0x89 if stretch.outcome == OUTCOME_NONE else 0x8B
    at = put_name(at + 1, b"chunks", 6)
    at[0] = 0xC6
    store_key_u64(size, frames.used - stretch.offset - CHUNKS_AT)
    memcpy(at + 1, size + 4, 4)
    at = frames.data + frames.used
    at = put_number(put_name(at, b"request", 7), stretch.number)
    at = put_number(put_name(at, b"epoch", 5), stretch.epoch)
    at = put_number(put_name(at, b"first", 5), stretch.first)
    at = put_number(put_name(at, b"head", 4), stretch.next - 1)
    at = put_number(put_name(at, b"level", 5), stretch.level)
    at = put_number(put_name(at, b"after", 5), low - 1)
    at = put_number(put_name(at, b"before", 6), high)
    at = put_name(at, b"more", 4)
    at[0] = 0xC3 if low < high else 0xC2
    at = put_outcome(at + 1, stretch)
    frames.used = <uint64_t>(at - frames.data)
    stretch.size = frames.used - stretch.offset
    store_u32(frame, <uint32_t>(stretch.size - FRAME_HEADER_BYTES))
    frame[4] = KIND_REPLY
    frame[5] = 0
    store_u16(frame + 6, 0)


cdef bint frames_reserve(Arena* frames, uint64_t more) noexcept nogil:
    cdef uint64_t capacity = frames.capacity if frames.capacity else 65536
    cdef void* moved
    while capacity < frames.used + more:
        capacity *= 2
    if capacity == frames.capacity:
        return True
    moved = PyMem_RawRealloc(frames.data, <size_t>capacity)
    if moved == NULL:
        return False
    frames.data = <uint8_t*>moved
    frames.capacity = capacity
    return True


# -- a stretch ---------------------------------------------------------------------------------------------------------


cdef int take_joined(Arena* frames, Reading* reading) noexcept nogil:
    """Put the chunk that was joined behind the others."""
    cdef uint32_t size = builder_finish(&reading.joined)
    if not frames_reserve(frames, size + TAIL_BYTES_MAX):
        return NO_MEMORY
    memcpy(frames.data + frames.used, reading.joined.data, size)
    frames.used += size
    if reading.covered_next == 0:
        reading.covered_low = load_u64(reading.joined.data + CHUNK_FIRST)
    reading.covered_next = (load_u64(reading.joined.data + CHUNK_FIRST)
                            + load_u32(reading.joined.data + CHUNK_COUNT))
    return CURSOR_ROW


cdef int join_chunk(Arena* frames, Reading* reading, const uint8_t* chunk, uint64_t begin,
                    uint64_t end) noexcept nogil:
    """Join the sequences of a chunk from `begin` on and before `end`, without what has expired, to those before it."""
    cdef uint64_t expiry_s = load_u64(chunk + CHUNK_EXPIRY)
    cdef uint64_t after = begin - 1
    cdef bint expired = False
    cdef int state
    if 0 < expiry_s <= reading.now_s:
        reading.unexpired.used = 0
        state = builder_expire(&reading.unexpired, chunk, reading.now_s, &expired)
        if state != TAKE_DONE:
            return NO_MEMORY if state == TAKE_NO_MEMORY else MISMADE
        if expired:
            builder_finish(&reading.unexpired)
            chunk = reading.unexpired.data
    while True:
        state = builder_take(&reading.joined, chunk, after, end - 1)
        if state == TAKE_DONE:
            return CURSOR_ROW
        if state == TAKE_NO_MEMORY:
            return NO_MEMORY
        if state == TAKE_DAMAGED:
            return MISMADE
        # What is in of this chunk must not go in again.
        if reading.joined.next - 1 > after and reading.joined.next > load_u64(chunk + CHUNK_FIRST):
            after = reading.joined.next - 1
        state = take_joined(frames, reading)
        if state != CURSOR_ROW:
            return state


cdef int read_forward(Arena* frames, Reading* reading, uint64_t begin, uint64_t end) noexcept nogil:
    """Take chunks from `begin` on: CURSOR_END when there are no more, or there is no room for more."""
    cdef ChunkRun* run = &reading.run
    cdef uint32_t index
    cdef int state = CURSOR_ROW
    cdef int joined
    while state == CURSOR_ROW:
        state = run_forward(run)
        if state < CURSOR_END:
            return state
        for index in range(run.count):
            joined = join_chunk(frames, reading, run.spans[index].at, begin, end)
            if joined != CURSOR_ROW:
                return joined
    return state


cdef int read_back(Arena* frames, Reading* reading, uint64_t begin, uint64_t end) noexcept nogil:
    """Take chunks that end before `end`, from the newest on; as `read_forward`, and so many only as one batch has."""
    cdef ChunkRun* run = &reading.run
    cdef uint32_t index
    cdef int state = run_back(run)
    cdef int joined
    if state == CURSOR_ROW:
        return ELSEWHERE
    if state < CURSOR_END:
        return state
    for index in range(run.count, 0, -1):
        joined = join_chunk(frames, reading, run.spans[index - 1].at, begin, end)
        if joined != CURSOR_ROW:
            return joined
    return state


cdef int read_between(Arena* frames, Reading* reading, const Stretch* stretch, uint64_t begin,
                      uint64_t end) noexcept nogil:
    """Put the chunks of the sequences from `begin` before `end` into the frame: CURSOR_END when that is done."""
    cdef ChunkRun* run = &reading.run
    cdef int state = channel_ends(&reading.channels, stretch.channel, &run.ends)
    reading.covered_low = reading.covered_next = 0
    reading.joined.used = 0
    reading.joined.bytes_max = ANSWER_CHUNK_BYTES_MAX
    if state == CURSOR_END or (state == CURSOR_ROW and run.ends.next < end):
        return ELSEWHERE
    if state != CURSOR_ROW:
        # What is damaged is told of the cursor that met it.
        run.cursor = reading.channels
        return state
    run.taken = run.on_row = False
    run.count = 0
    run.bytes_room = stretch.bytes_max
    run.high = end
    # What a trim took since is left out.
    run.low = run.ends.first if begin < run.ends.first else begin
    if stretch.reverse:
        state = read_back(frames, reading, run.low, end)
    elif run.low < end:
        state = read_forward(frames, reading, run.low, end)
    else:
        state = CURSOR_END
    if state == CURSOR_END and reading.joined.used and take_joined(frames, reading) != CURSOR_ROW:
        return NO_MEMORY
    return state


cdef int stretch_answer(Arena* frames, Reading* reading, Stretch* stretch) noexcept nogil:
    """Write the frame that answers: CURSOR_ROW when it stands there."""
    cdef uint64_t low = stretch.low
    cdef uint64_t high = stretch.high
    cdef uint64_t count = high - low if low < high else 0
    cdef uint64_t begin, end
    cdef int state
    if stretch.elsewhere:
        return ELSEWHERE
    if count > stretch.count_max:
        count = stretch.count_max
    begin, end = low, low + count
    if stretch.reverse:
        begin, end = high - count, high
    stretch.offset = frames.used
    if not frames_reserve(frames, CHUNKS_AT + TAIL_BYTES_MAX):
        return NO_MEMORY
    frames.used += CHUNKS_AT
    reading.covered_next = 0
    if count:
        state = read_between(frames, reading, stretch, begin, end)
        if state != CURSOR_END:
            frames.used = stretch.offset
            return state
    if stretch.reverse:
        high = reading.covered_low if reading.covered_next else begin
    else:
        low = reading.covered_next if reading.covered_next else end
    frame_finish(frames, stretch, low, high)
    return CURSOR_ROW


cdef inline object field(object fields, Py_ssize_t index):
    """A field of a named tuple, which is long enough."""
    return <object>PyTuple_GET_ITEM(fields, index)


cdef uint64_t number_in(object fields, Py_ssize_t index, uint64_t absent) except? 0:
    """A number of a named tuple that may be None."""
    value = field(fields, index)
    return absent if value is None else <uint64_t>value


cdef int stretch_ask(Stretch* stretch, object query, uint64_t after) except -1:
    """Set what is asked for of what the channel holds, by the fields of a `HistoryQuery`: past `after`."""
    cdef uint64_t last = number_in(query, 6, U64_MAX)
    stretch.low = stretch.first
    stretch.high = number_in(query, 3, stretch.next)
    if stretch.high > stretch.next:
        stretch.high = stretch.next
    if after >= stretch.low:
        stretch.low = after + 1 if after < U64_MAX else after
    # Times take a look at the records.
    stretch.elsewhere = (field(query, 4) is not None or field(query, 5) is not None) and stretch.low < stretch.high
    if last < stretch.high and stretch.low < stretch.high - last:
        stretch.low = stretch.high - last
    # Nothing may be left, and what was asked for may lie past the head: then the stretch is empty where it ends.
    if stretch.high == 0:
        stretch.high = 1
    if stretch.low > stretch.high:
        stretch.low = stretch.high
    stretch.count_max = number_in(query, 7, SEQUENCES_MAX)
    if stretch.count_max > SEQUENCES_MAX:
        stretch.count_max = SEQUENCES_MAX
    stretch.reverse = field(query, 8)
    stretch.bytes_max = number_in(query, 9, 0)
    return 0


cdef int query_check(object query) except -1:
    if not isinstance(query, tuple) or len(query) != QUERY_FIELDS:
        raise ValueError(f"query: got {query!r:.100}, expected a tuple of {QUERY_FIELDS}")
    return 0


cdef uint8_t outcome_code(str name) except? 0:
    if name == "resumed":
        return OUTCOME_RESUMED
    if name == "trimmed":
        return OUTCOME_TRIMMED
    if name == "diverged":
        return OUTCOME_DIVERGED
    raise ValueError(f"outcome: got {name}, expected resumed, trimmed or diverged")


@cython.final
cdef class StretchReader:
    """Questions about stretches of channels, and the answers that an archive has for them.

    `count` is how many were added since the last `clear`. One thread at a time.
    """

    def __dealloc__(self):
        PyMem_RawFree(self.stretches)
        PyMem_RawFree(self.frames.data)

    def clear(self):
        """Forget all questions and answers."""
        self.count = self.read_begin = self.read_end = 0
        if self.frames.capacity > ARENA_BYTES_KEPT:
            PyMem_RawFree(self.frames.data)
            memset(&self.frames, 0, sizeof(Arena))

    cdef Stretch* append(self) except NULL:
        cdef uint32_t capacity
        cdef void* moved
        if self.count == self.capacity:
            capacity = self.capacity * 2 + 64
            moved = PyMem_RawRealloc(self.stretches, capacity * sizeof(Stretch))
            if moved == NULL:
                raise MemoryError
            self.stretches = <Stretch*>moved
            self.capacity = capacity
        memset(&self.stretches[self.count], 0, sizeof(Stretch))
        return &self.stretches[self.count]

    def skip(self):
        """Add a question that is answered elsewhere: reading stops before it."""
        self.append().elsewhere = True
        self.count += 1

    def add(self, uint32_t number, known, query, outcome):
        """Add a question.

        Args:
            number: The request's.
            known: What is committed of the channel: (id, level, first, next, epochs).
            query: The fields of a `HistoryQuery`.
            outcome: How the position that it names was found, (name, at, after); None when it names none.
        """
        cdef Stretch* stretch = self.append()
        cdef uint64_t after = 0
        cdef list epochs = <list?>known[4]
        query_check(query)
        stretch.number = number
        stretch.channel = known[0]
        stretch.level = known[1]
        stretch.first = known[2]
        stretch.next = known[3]
        stretch.epoch = epochs[len(epochs) - 1][0] if epochs else 0
        if outcome is not None:
            stretch.outcome = outcome_code(outcome[0])
            stretch.at = outcome[1]
            after = outcome[2]
        stretch_ask(stretch, query, after)
        self.count += 1

    def add_stored(self, uint32_t number, bytes entries not None, query):
        """Add a question that names no position, about a channel of which the log alone knows.

        Args:
            number: The request's.
            entries: The channel's, whole, as the log has them.
            query: The fields of a `HistoryQuery`.

        Raises:
            ValueError: They are no entries.
        """
        cdef Stretch* stretch = self.append()
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(entries)
        query_check(query)
        stretch.number = number
        entries_read(at, at + PyBytes_GET_SIZE(entries), stretch, None)
        stretch_ask(stretch, query, 0)
        self.count += 1

    cdef int run(self, Reading* reading, uint32_t begin, uint64_t bytes_max, uint32_t* answered) noexcept nogil:
        cdef uint32_t index
        cdef int state
        answered[0] = 0
        for index in range(begin, self.count):
            if self.frames.used >= bytes_max:
                return CURSOR_ROW
            state = stretch_answer(&self.frames, reading, &self.stretches[index])
            if state != CURSOR_ROW:
                return state
            answered[0] += 1
        return CURSOR_ROW

    def read(self, TreeReader reader not None, uint32_t begin, uint64_t bytes_max, uint64_t now_s):
        """Answer questions in the order in which they were added, as long as the archive has the answers.

        What was answered before is forgotten.

        Args:
            reader: A snapshot.
            begin: The first question to answer, by its number in that order.
            bytes_max: No further one is begun when answers have come to this; there is room for one at least.
            now_s: Broker time, seconds since 1970: what has expired by then is left out.

        Returns:
            How many were answered. The next one is answered elsewhere, cannot be read, or had no room.

        Raises:
            ChunkMissing, RowDamaged, TreeDamaged: The first of them cannot be read.
            ValueError: Nor has it the records that its checksum vouches for.
            MemoryError: None is left for the first of them.
        """
        cdef Reading reading
        cdef uint32_t answered = 0
        cdef int state
        memset(&reading.joined, 0, sizeof(ChunkBuilder))
        memset(&reading.unexpired, 0, sizeof(ChunkBuilder))
        reader.begin(&reading.channels)
        reading.run.cursor = reading.channels
        reading.now_s = now_s
        self.frames.used = 0
        self.read_begin = self.read_end = 0
        try:
            with nogil:
                state = self.run(&reading, begin, bytes_max, &answered)
        finally:
            builder_free(&reading.joined)
            builder_free(&reading.unexpired)
        self.read_begin = begin
        self.read_end = begin + answered
        if answered == 0 and state == MISMADE:
            raise ValueError("chunk: its records do not cover its sequences")
        if answered == 0 and state < CURSOR_END:
            raise fault(&reading.run.cursor, state, &reading.run.missing)
        return answered

    def frames_of(self, uint32_t begin, uint32_t end):
        """The answers of the questions from `begin` before `end`, which the last read has answered: whole frames."""
        cdef Stretch* last
        cdef uint64_t offset
        cdef size_t size
        cdef bytes frames
        cdef char* to
        if not self.read_begin <= begin < end <= self.read_end:
            raise ValueError(f"answers: got {begin} to {end}, and {self.read_begin} to {self.read_end} were read")
        last = &self.stretches[end - 1]
        offset = self.stretches[begin].offset
        size = <size_t>(last.offset + last.size - offset)
        frames = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        to = PyBytes_AS_STRING(frames)
        # A megabyte takes long enough for others to do something meanwhile.
        with nogil:
            memcpy(to, self.frames.data + offset, size)
        return frames
