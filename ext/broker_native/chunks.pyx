"""Makes chunks out of the records of other chunks.

An archive merges the chunks that many groups left of a channel; a reader wants some sequences of a chunk, or a chunk
without what has expired. Records are copied as they are but for their times, which count from their chunk's: merged,
they count from the first one's. A record that is so much later that its time does not fit 32 bits of microseconds, or
is of another epoch, begins another chunk.

Bounds of records are looked at on the way. A CRC-32C proves that bytes are what a writer wrote, not that the writer
knew what it did.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_CRC,
    CHUNK_EPOCH,
    CHUNK_EXPIRY,
    CHUNK_FIRST,
    CHUNK_FLAGS,
    CHUNK_HEADER_BYTES,
    CHUNK_TIME,
    GONE_COMPACTED,
    GONE_EXPIRED,
    GONE_RECORD_BYTES,
    RECORD_EXPIRY,
    RECORD_GONE,
    RECORD_HEADER_BYTES,
    RECORD_HEADERS,
    RECORD_ID,
    RECORD_KEY,
    RECORD_NUMBER,
    RECORD_PRIORITY,
    RECORD_PUBLISHER,
    load_u16,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
    store_u64,
)

cdef extern from "<stdint.h>" nogil:
    const uint64_t U32_MAX "UINT32_MAX"

cdef enum:
    RECORD_TIME = 8               # offset of a record's time
    GONE_REASON = 12              # offsets in a GONE record
    GONE_RUN = 16


# -- records -----------------------------------------------------------------------------------------------------------


cdef uint32_t record_run(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """How many sequences the record at `at` covers; 0 when no record stands there."""
    cdef uint32_t size
    if end - at < RECORD_HEADER_BYTES:
        return 0
    size = load_u32(at)
    if size < RECORD_HEADER_BYTES or size > end - at:
        return 0
    if not load_u16(at + 4) & RECORD_GONE:
        return 1
    return load_u32(at + GONE_RUN) if size >= GONE_RECORD_BYTES else 0


cdef uint32_t record_field(const uint8_t* at, uint16_t wanted) noexcept nogil:
    """Where a field of a record begins, EXPIRY or one after it; 0 without it, or when its fields overrun it.

    RECORD_HEADERS asks for the end of all before it whether there are any or not.
    """
    cdef uint16_t flags = load_u16(at + 4)
    cdef uint32_t size = load_u32(at)
    cdef uint32_t offset = RECORD_HEADER_BYTES
    if flags & RECORD_GONE or not (flags | RECORD_HEADERS) & wanted:
        return 0
    if flags & RECORD_PUBLISHER:
        if size < offset + 1:
            return 0
        offset += 1 + at[offset]
    if flags & RECORD_NUMBER:
        offset += 8
    if flags & RECORD_PRIORITY:
        offset += 1
    if wanted != RECORD_EXPIRY:
        if flags & RECORD_EXPIRY:
            offset += 4
        if wanted != RECORD_KEY and flags & RECORD_KEY:
            if size < offset + 2:
                return 0
            offset += 2 + load_u16(at + offset)
    return offset if offset <= size else 0


cdef uint32_t record_expiry(const uint8_t* at) noexcept nogil:
    """The seconds after its time at which a record expires, 0 for never or when its fields overrun it."""
    cdef uint32_t offset = record_field(at, RECORD_EXPIRY)
    return load_u32(at + offset) if offset and offset + 4 <= load_u32(at) else 0


cdef bint record_expired(const uint8_t* chunk, const uint8_t* at, uint64_t now_s) noexcept nogil:
    """Whether a record is past its expiry: exactly, where a chunk's header rounds the second of its record down."""
    cdef uint64_t expiry_s = record_expiry(at)
    cdef uint64_t time_us
    if expiry_s == 0:
        return False
    time_us = load_u64(chunk + CHUNK_TIME) + load_u32(at + RECORD_TIME)
    return time_us // 1000000 + expiry_s + (1 if time_us % 1000000 else 0) <= now_s


cdef object record_key(const uint8_t* at):
    """A record's key, None when it has none or its fields overrun it."""
    cdef uint32_t offset = record_field(at, RECORD_KEY)
    cdef uint32_t size = load_u32(at)
    if offset == 0 or offset + 2 > size or load_u16(at + offset) > size - offset - 2:
        return None
    return PyBytes_FromStringAndSize(<const char*>at + offset + 2, load_u16(at + offset))


cdef bint record_deletes(const uint8_t* at) noexcept nogil:
    """Whether a record that has a key deletes it: it has no payload."""
    cdef uint32_t offset = record_field(at, RECORD_HEADERS)
    cdef uint32_t size = load_u32(at)
    if load_u16(at + 4) & RECORD_HEADERS and offset:
        if offset + 2 > size:
            return False
        offset += 2 + <uint32_t>load_u16(at + offset)
    if load_u16(at + 4) & RECORD_ID and offset:
        if offset + 1 > size:
            return False
        offset += 1 + <uint32_t>at[offset]
    return offset == size


# -- the builder -------------------------------------------------------------------------------------------------------


cdef bint builder_reserve(ChunkBuilder* builder, uint32_t more) noexcept nogil:
    cdef uint64_t need = <uint64_t>builder.used + more
    cdef uint64_t capacity = builder.capacity if builder.capacity else 1024
    cdef void* moved
    if need <= builder.capacity:
        return True
    while capacity < need:
        capacity *= 2
    if capacity > U32_MAX:
        return False
    moved = PyMem_RawRealloc(builder.data, <size_t>capacity)
    if moved == NULL:
        return False
    builder.data = <uint8_t*>moved
    builder.capacity = <uint32_t>capacity
    return True


cdef int builder_put(ChunkBuilder* builder, const uint8_t* chunk, const uint8_t* record, uint32_t size,
                     uint64_t sequence, uint32_t run) noexcept nogil:
    """Copy one record behind the others; a GONE run of `run` sequences from `sequence` on."""
    cdef uint64_t time_us = load_u64(chunk + CHUNK_TIME) + load_u32(record + RECORD_TIME)
    cdef uint64_t expiry_s
    cdef uint8_t* at
    if builder.used == 0:
        if not builder_reserve(builder, CHUNK_HEADER_BYTES + size):
            return TAKE_NO_MEMORY
        builder.used = CHUNK_HEADER_BYTES
        builder.channel = load_u64(chunk + CHUNK_CHANNEL)
        builder.epoch = load_u64(chunk + CHUNK_EPOCH)
        builder.first = builder.next = sequence
        builder.time_us = time_us
        builder.expiry_s = 0
    elif (builder.used + <uint64_t>size > builder.bytes_max or builder.next != sequence
            or builder.epoch != load_u64(chunk + CHUNK_EPOCH) or time_us < builder.time_us
            or time_us - builder.time_us > U32_MAX or sequence - builder.first > U32_MAX - run):
        return TAKE_FULL
    elif not builder_reserve(builder, size):
        return TAKE_NO_MEMORY
    at = builder.data + builder.used
    memcpy(at, record, size)
    store_u32(at + RECORD_TIME, <uint32_t>(time_us - builder.time_us))
    if load_u16(record + 4) & RECORD_GONE:
        store_u32(at + GONE_RUN, run)
    elif load_u16(record + 4) & RECORD_EXPIRY:
        expiry_s = record_expiry(record)
        if expiry_s:
            expiry_s += time_us // 1000000
            if builder.expiry_s == 0 or expiry_s < builder.expiry_s:
                builder.expiry_s = expiry_s
    builder.last = builder.used
    builder.used += size
    builder.next = sequence + run
    return TAKE_DONE


cdef int builder_take(ChunkBuilder* builder, const uint8_t* chunk, uint64_t after, uint64_t until) noexcept nogil:
    """Take the records of a chunk whose sequences are past `after` and not past `until`.

    What is already in stays in when the rest does not fit (TAKE_FULL): `builder.next - 1` is where to go on, after
    `builder_finish`.
    """
    cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = chunk + load_u32(chunk)
    cdef uint64_t sequence = load_u64(chunk + CHUNK_FIRST)
    cdef uint64_t next_first = sequence + load_u32(chunk + CHUNK_COUNT)
    cdef uint64_t low, high
    cdef uint32_t run
    cdef int state
    while sequence < next_first and sequence <= until:
        run = record_run(at, end)
        if run == 0 or run > next_first - sequence:
            return TAKE_DAMAGED
        if sequence + run > after + 1 and after < until:
            low = sequence if sequence > after else after + 1
            high = sequence + run if sequence + run <= until else until + 1
            state = builder_put(builder, chunk, at, load_u32(at), low, <uint32_t>(high - low))
            if state != TAKE_DONE:
                return state
        sequence += run
        at += load_u32(at)
    if sequence == next_first and at != end:
        return TAKE_DAMAGED
    return TAKE_DONE


cdef int builder_gone(ChunkBuilder* builder, const uint8_t* chunk, uint32_t time_us, uint64_t first, uint32_t run,
                      uint8_t reason) noexcept nogil:
    """Put a GONE run in the place of records of a chunk; runs with the same reason become one.

    `time_us` is the time of the first of them, as the record says it. The builder has what was before them in the
    chunk, and nothing else.
    """
    cdef uint8_t record[GONE_RECORD_BYTES]
    cdef uint8_t* last
    memset(record, 0, GONE_RECORD_BYTES)
    store_u32(record, GONE_RECORD_BYTES)
    store_u16(record + 4, RECORD_GONE)
    store_u32(record + RECORD_TIME, time_us)
    record[GONE_REASON] = reason
    store_u32(record + GONE_RUN, run)
    if builder.used:
        last = builder.data + builder.last
        if load_u16(last + 4) & RECORD_GONE and last[GONE_REASON] == reason:
            store_u32(last + GONE_RUN, load_u32(last + GONE_RUN) + run)
            builder.next += run
            return TAKE_DONE
    return builder_put(builder, chunk, record, GONE_RECORD_BYTES, first, run)


cdef int builder_expire(ChunkBuilder* builder, const uint8_t* chunk, uint64_t now_s, bint* changed) noexcept nogil:
    """Take a whole chunk with GONE runs in the place of what has expired; `changed` says whether anything has.

    TAKE_DONE, or why it cannot be. Nothing else may have been taken since the last finish.
    """
    cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = chunk + load_u32(chunk)
    cdef uint64_t sequence = load_u64(chunk + CHUNK_FIRST)
    cdef uint64_t next_first = sequence + load_u32(chunk + CHUNK_COUNT)
    cdef uint32_t run
    cdef int state
    # A GONE record may be larger than the one that it stands for.
    builder.bytes_max = 0xFFFFFFFF
    while sequence < next_first:
        run = record_run(at, end)
        if run == 0 or run > next_first - sequence:
            return TAKE_DAMAGED
        if record_expired(chunk, at, now_s):
            changed[0] = True
            state = builder_gone(builder, chunk, load_u32(at + RECORD_TIME), sequence, 1, GONE_EXPIRED)
        else:
            state = builder_put(builder, chunk, at, load_u32(at), sequence, run)
        if state != TAKE_DONE:
            return TAKE_DAMAGED if state == TAKE_FULL else state
        sequence += run
        at += load_u32(at)
    return TAKE_DONE if at == end else TAKE_DAMAGED


cdef uint32_t builder_finish(ChunkBuilder* builder) noexcept nogil:
    """Write the header of what was taken; answers its size. `data` is the chunk, until something else is taken."""
    cdef uint8_t* at = builder.data
    cdef uint32_t size = builder.used
    store_u32(at, size)
    store_u64(at + CHUNK_CHANNEL, builder.channel)
    store_u64(at + CHUNK_EPOCH, builder.epoch)
    store_u64(at + CHUNK_FIRST, builder.first)
    store_u32(at + CHUNK_COUNT, <uint32_t>(builder.next - builder.first))
    store_u32(at + CHUNK_FLAGS, 0)
    store_u64(at + CHUNK_TIME, builder.time_us)
    store_u64(at + CHUNK_EXPIRY, builder.expiry_s)
    store_u32(at + CHUNK_CRC, crc32c(0, at + CHUNK_CHANNEL, size - CHUNK_CHANNEL))
    builder.used = 0
    return size


cdef void builder_free(ChunkBuilder* builder) noexcept nogil:
    PyMem_RawFree(builder.data)
    memset(builder, 0, sizeof(ChunkBuilder))


# -- for Python --------------------------------------------------------------------------------------------------------


cdef const uint8_t* chunk_bytes(bytes chunk) except NULL:
    """The bytes of a chunk whose size is right."""
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(chunk)
    if PyBytes_GET_SIZE(chunk) < CHUNK_HEADER_BYTES or load_u32(at) != PyBytes_GET_SIZE(chunk):
        raise ValueError(f"chunk: got {len(chunk)} bytes, and it says otherwise")
    return at


cdef bytes builder_bytes(ChunkBuilder* builder):
    cdef uint32_t size = builder_finish(builder)
    return PyBytes_FromStringAndSize(<const char*>builder.data, size)


cdef int raise_unless_taken(int state) except -1:
    if state == TAKE_NO_MEMORY:
        raise MemoryError
    if state == TAKE_DAMAGED:
        raise ValueError("chunk: its records do not cover its sequences")
    return 0


def merge_chunks(list chunks not None, uint32_t bytes_max, uint64_t after=0, uint64_t until=0xFFFFFFFFFFFFFFFF):
    """Make as few chunks as may be of consecutive ones.

    Args:
        chunks: Whole chunks of one channel, ascending; their checksums have been proved.
        bytes_max: How large a chunk may get, bytes; one of a single larger record is larger.
        after, until: Only sequences past `after` and not past `until`.

    Returns:
        The chunks: same records, same sequences, times and epochs.

    Raises:
        ValueError: A chunk's records do not cover its sequences.
    """
    cdef ChunkBuilder builder
    cdef list merged = []
    cdef bytes chunk
    cdef const uint8_t* at
    cdef uint64_t begin
    cdef int state
    memset(&builder, 0, sizeof(ChunkBuilder))
    builder.bytes_max = bytes_max
    try:
        for chunk in chunks:
            at = chunk_bytes(chunk)
            begin = after
            while True:
                state = builder_take(&builder, at, begin, until)
                raise_unless_taken(state)
                if state == TAKE_DONE:
                    break
                # What is in of this chunk must not go in again.
                if builder.next > load_u64(at + CHUNK_FIRST):
                    begin = builder.next - 1
                merged.append(builder_bytes(&builder))
        if builder.used:
            merged.append(builder_bytes(&builder))
    finally:
        builder_free(&builder)
    return merged


def chunks_expire(bytes value not None, size_t offset, uint64_t now_s):
    """The chunks that stand in `value` from `offset` on, one behind the other, each as `chunk_expire` makes it.

    Args:
        value: Whole chunks from `offset` on, of this process's making.
        offset: Where the first begins, bytes.
        now_s: Broker time, seconds since 1970, rounded down.

    Returns:
        As many chunks.

    Raises:
        ValueError: They are no chunks.
    """
    cdef size_t size = <size_t>PyBytes_GET_SIZE(value)
    cdef size_t begin = offset
    cdef uint32_t chunk_size
    cdef const uint8_t* at
    cdef list parts = []
    while offset < size:
        at = <const uint8_t*>PyBytes_AS_STRING(value) + offset
        chunk_size = load_u32(at) if size - offset >= CHUNK_HEADER_BYTES else 0
        if chunk_size < CHUNK_HEADER_BYTES or chunk_size > size - offset:
            raise ValueError(f"chunks: none stands at offset {offset} of {size} bytes")
        if 0 < load_u64(at + CHUNK_EXPIRY) <= now_s:
            parts.append(value[begin:offset])
            parts.append(chunk_expire(value[offset:offset + chunk_size], now_s))
            begin = offset + chunk_size
        offset += chunk_size
    parts.append(value[begin:])
    return b"".join(parts)


def chunk_keys(bytes chunk not None):
    """The records of a chunk that have a key: a list of (key, sequence, time in microseconds, whether it deletes it).

    Raises:
        ValueError: Its records do not cover its sequences.
    """
    cdef const uint8_t* base = chunk_bytes(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
    cdef uint64_t next_first = sequence + load_u32(base + CHUNK_COUNT)
    cdef uint32_t run
    cdef list found = []
    while sequence < next_first:
        run = record_run(at, end)
        if run == 0 or run > next_first - sequence:
            raise_unless_taken(TAKE_DAMAGED)
        key = record_key(at)
        if key is not None:
            found.append((key, sequence, load_u64(base + CHUNK_TIME) + load_u32(at + RECORD_TIME),
                          record_deletes(at)))
        sequence += run
        at += load_u32(at)
    if at != end:
        raise_unless_taken(TAKE_DAMAGED)
    return found


def chunk_compact(bytes chunk not None, dict latest not None, uint64_t deleted_until_us=0):
    """The chunk with GONE runs in the place of what its channel no longer keeps by key; itself when nothing is.

    Args:
        chunk: A whole chunk with a proved checksum.
        latest: The sequence of the latest record of a key. A record whose key is not in it stays.
        deleted_until_us: Records that delete their key are taken out themselves if their time is not past this.

    Returns:
        A chunk of the same sequences. Runs that were compacted before become one with those beside them.

    Raises:
        ValueError: Its records do not cover its sequences.
    """
    cdef const uint8_t* base = chunk_bytes(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
    cdef uint64_t next_first = sequence + load_u32(base + CHUNK_COUNT)
    cdef bint changed = False
    cdef uint32_t run
    cdef int state
    cdef ChunkBuilder builder
    memset(&builder, 0, sizeof(ChunkBuilder))
    # A GONE record may be larger than the one that it stands for.
    builder.bytes_max = 0xFFFFFFFF
    try:
        while sequence < next_first:
            run = record_run(at, end)
            if run == 0 or run > next_first - sequence:
                raise_unless_taken(TAKE_DAMAGED)
            if record_superseded(base, at, sequence, latest, deleted_until_us):
                changed = True
                state = builder_gone(&builder, base, load_u32(at + RECORD_TIME), sequence, 1, GONE_COMPACTED)
            elif load_u16(at + 4) & RECORD_GONE and at[GONE_REASON] == GONE_COMPACTED:
                state = builder_gone(&builder, base, load_u32(at + RECORD_TIME), sequence, run, GONE_COMPACTED)
            else:
                state = builder_put(&builder, base, at, load_u32(at), sequence, run)
            raise_unless_taken(state)
            if state == TAKE_FULL:
                raise_unless_taken(TAKE_DAMAGED)
            sequence += run
            at += load_u32(at)
        if at != end:
            raise_unless_taken(TAKE_DAMAGED)
        if not changed and builder.used == PyBytes_GET_SIZE(chunk):
            return chunk
        return builder_bytes(&builder)
    finally:
        builder_free(&builder)


cdef bint record_superseded(const uint8_t* chunk, const uint8_t* at, uint64_t sequence, dict latest,
                            uint64_t deleted_until_us) except -1:
    """Whether a record's key has a later one, or is deleted by it and that for long enough."""
    cdef uint64_t newest
    key = record_key(at)
    known = latest.get(key) if key is not None else None
    if known is None:
        return False
    newest = known
    if newest != sequence:
        return newest > sequence
    return record_deletes(at) and load_u64(chunk + CHUNK_TIME) + load_u32(at + RECORD_TIME) <= deleted_until_us


def chunk_expire(bytes chunk not None, uint64_t now_s):
    """The chunk with GONE runs in the place of what has expired; itself when nothing has.

    Args:
        chunk: A whole chunk with a proved checksum.
        now_s: Broker time, seconds since 1970, rounded down: nothing expires before its time.

    Raises:
        ValueError: Its records do not cover its sequences.
    """
    cdef const uint8_t* base = chunk_bytes(chunk)
    cdef bint changed = False
    cdef ChunkBuilder builder
    if load_u64(base + CHUNK_EXPIRY) == 0 or load_u64(base + CHUNK_EXPIRY) > now_s:
        return chunk
    memset(&builder, 0, sizeof(ChunkBuilder))
    try:
        raise_unless_taken(builder_expire(&builder, base, now_s, &changed))
        return builder_bytes(&builder) if changed else chunk
    finally:
        builder_free(&builder)


def chunk_sequence_at(bytes chunk not None, uint64_t time_us):
    """The first sequence of a chunk whose record is of a time or later; the one after its last when none is.

    Args:
        chunk: A whole chunk with a proved checksum. The times of its records do not go back.
        time_us: Broker time.

    Raises:
        ValueError: Its records do not cover its sequences.
    """
    cdef const uint8_t* base = chunk_bytes(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef uint64_t begin_us = load_u64(base + CHUNK_TIME)
    cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
    cdef uint64_t next_first = sequence + load_u32(base + CHUNK_COUNT)
    cdef uint32_t run
    while sequence < next_first:
        run = record_run(at, end)
        if run == 0 or run > next_first - sequence:
            raise_unless_taken(TAKE_DAMAGED)
        if begin_us + load_u32(at + RECORD_TIME) >= time_us:
            break
        sequence += run
        at += load_u32(at)
    return sequence
