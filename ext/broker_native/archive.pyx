"""Reads an archive's rows: channels by name and id, chunks of a channel, chunks in the order of the bus.

A row is handed out only after its checksum was proved, and "there is none" only after the two rows between which it
would stand were: a key that a flip changed is then one of the two. Chunks of a channel are dense, so one that is not
found where another ends is an error as well. What a trim took out, and channels that are gone, are left out silently.

Everything that touches pages of the file runs without the interpreter's lock, in batches: a page may have to come from
the disk. Nothing here writes, opens or locks anything.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from broker_native.btree cimport Span, span_compare
from broker_native.chunks cimport (
    TAKE_DONE,
    TAKE_NO_MEMORY,
    ChunkBuilder,
    builder_finish,
    builder_free,
    builder_take,
    record_run,
)
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_FIRST,
    CHUNK_HEADER_BYTES,
    CHUNK_TIME,
    ENTRY_HEAD,
    ENTRY_HEADER_BYTES,
    GROUP_CHUNKS_COUNT,
    GROUP_ENTRIES_BYTES,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_NUMBER,
    GROUP_TIME,
    load_u16,
    load_u32,
    load_u64,
    store_u32,
)
from broker_native.rows cimport (
    CHANNEL_KEY_BYTES,
    CHANNEL_ROW_BYTES,
    CHANNEL_ROW_FORMAT,
    CHUNK_KEY_BYTES,
    GROUPS_KEY_BYTES,
    GROUPS_ROW_BYTES,
    ROW_BYTES_WHOLE_PAGES,
    ROW_CHANNEL,
    ROW_CHUNK,
    ROW_CRC_BYTES,
    ROW_GROUPS,
    ROW_NAME,
    chunk_sound,
    load_key_u64,
    row_crc,
    row_sound,
    store_key_u64,
    varint_load,
    varint_store,
)
from broker_native.tree cimport (
    CURSOR_DAMAGED,
    CURSOR_END,
    CURSOR_ROW,
    TreeCursor,
    TreeReader,
    cursor_next,
    cursor_prev,
    cursor_seek,
)

from broker_native.btree import TreeDamaged
from broker_native.rows import RowDamaged

cdef extern from "<stdint.h>" nogil:
    const uint64_t U64_MAX "UINT64_MAX"

cdef enum:
    RECORD_TIME = 8               # offset of a record's time
    HEAD_NEXT = 24                # offsets in a HEAD entry
    HEAD_FIRST = 32
    HEAD_BYTES = 40
    VARINT_BYTES_MAX = 10
    NAME_ROW_BYTES = 12           # u32 crc, u64 id
    NUMBER_BYTES = 8              # of a number in a key


class ChunkMissing(ValueError):
    """A chunk that must be there is not.

    Attributes:
        channel: Its channel.
        sequence: A sequence that no chunk covers.
    """

    def __init__(self, channel, sequence):
        super().__init__(f"channel {channel}: sequence {sequence} is missing")
        self.channel = channel
        self.sequence = sequence


cdef object fault(const TreeCursor* cursor, int state, const Place* missing):
    """The error of a state below CURSOR_END."""
    if state == NO_MEMORY:
        return MemoryError()
    if state == CHUNK_MISSING:
        return ChunkMissing(missing.channel, missing.sequence)
    if state == ROW_DAMAGED:
        return RowDamaged(PyBytes_FromStringAndSize(<const char*>cursor.key.at, <Py_ssize_t>cursor.key.size))
    return TreeDamaged(cursor.walk.damage)


# -- rows by key -------------------------------------------------------------------------------------------------------


cdef inline void seek_anew(TreeCursor* cursor) noexcept nogil:
    """Forget where a search that proved no pages has led: nothing on its way may stand for what is proved."""
    cursor.key.at = NULL
    cursor.walk.damage = 0


cdef bint row_found(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Go to a row by a search that proves no pages: the row does that if it is there."""
    cdef int state
    cursor.unproved = True
    state = cursor_seek(cursor, wanted)
    cursor.unproved = False
    if state == CURSOR_ROW and span_compare(&cursor.key, wanted) == 0 and row_sound(&cursor.key, &cursor.value):
        return True
    seek_anew(cursor)
    return False


cdef int row_find(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Go to a row, and prove it; when there is none (CURSOR_END), what stands around its place is proved."""
    cdef int state
    if row_found(cursor, wanted):
        return CURSOR_ROW
    state = cursor_seek(cursor, wanted)
    if state == CURSOR_ROW:
        if not row_sound(&cursor.key, &cursor.value):
            return ROW_DAMAGED
        if span_compare(&cursor.key, wanted) == 0:
            return CURSOR_ROW
    if state != CURSOR_DAMAGED:
        state = cursor_prev(cursor)
    if state == CURSOR_ROW:
        return CURSOR_END if row_sound(&cursor.key, &cursor.value) else ROW_DAMAGED
    return state


cdef int number_find(TreeCursor* cursor, uint8_t kind, uint64_t number) noexcept nogil:
    """Go to the row of a kind whose key is a number; as `row_find`."""
    cdef uint8_t key[CHANNEL_KEY_BYTES]
    cdef Span wanted
    key[0] = kind
    store_key_u64(key + 1, number)
    wanted.at = key
    wanted.size = CHANNEL_KEY_BYTES
    return row_find(cursor, &wanted)


cdef bint channel_row_known(const Span* value) noexcept nogil:
    return value.size >= CHANNEL_ROW_BYTES and load_u16(value.at + ROW_CRC_BYTES) == CHANNEL_ROW_FORMAT


cdef int channel_ends(TreeCursor* cursor, uint64_t channel, ChannelEnds* ends) noexcept nogil:
    """Read from a channel's row which sequences its chunks cover."""
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef uint32_t size
    cdef int state = number_find(cursor, ROW_CHANNEL, channel)
    if state != CURSOR_ROW:
        return state
    if not channel_row_known(&cursor.value):
        return ROW_DAMAGED
    at = cursor.value.at + CHANNEL_ROW_BYTES
    end = cursor.value.at + cursor.value.size
    ends.channel = channel
    ends.first = ends.next = 0
    while end - at >= ENTRY_HEADER_BYTES:
        size = load_u32(at)
        if size < ENTRY_HEADER_BYTES or size > end - at:
            return ROW_DAMAGED
        if load_u16(at + 4) == ENTRY_HEAD and size >= HEAD_BYTES:
            ends.next = load_u64(at + HEAD_NEXT)
            ends.first = load_u64(at + HEAD_FIRST)
        at += size
    if ends.first == 0 or ends.first > ends.next:
        return ROW_DAMAGED
    return CURSOR_ROW


cdef struct RowBatch:             # rows that are listed without the lock
    TreeCursor cursor
    uint32_t count
    Span keys[BATCH_CHUNKS]
    Span values[BATCH_CHUNKS]


cdef struct Sought:               # a row that is looked for without the lock
    Span key
    Span value                    # `at` is NULL when there is no such row


cdef int rows_find(TreeCursor* cursor, int kind, Sought* rows, size_t count) noexcept nogil:
    """Look for rows whose keys are a kind and a rest, or (a kind below 0) whole."""
    cdef uint8_t key[KEY_BYTES_MAX]
    cdef Span wanted
    cdef size_t index
    cdef int state
    for index in range(count):
        wanted = rows[index].key
        if kind >= 0:
            # No row has such a key.
            if wanted.size >= KEY_BYTES_MAX:
                continue
            key[0] = <uint8_t>kind
            memcpy(key + 1, wanted.at, wanted.size)
            wanted.at = key
            wanted.size += 1
        state = row_find(cursor, &wanted)
        if state < CURSOR_END:
            return state
        if state == CURSOR_ROW:
            rows[index].value = cursor.value
    return CURSOR_ROW


@cython.internal
@cython.final
cdef class RowSearch:
    """Many rows that are looked for at once: another thread that wants the lock gets it once, and for long.

    Args:
        keys: The keys, or what follows the kind in them; ascending ones cost least.
    """

    cdef Sought* rows
    cdef size_t count
    cdef tuple keys                   # keeps what `rows` points into

    def __cinit__(self, keys):
        cdef bytes key
        self.keys = tuple(keys)
        self.count = <size_t>len(self.keys)
        self.rows = <Sought*>PyMem_RawCalloc(self.count + 1, sizeof(Sought))
        if self.rows == NULL:
            raise MemoryError
        for at, key in enumerate(self.keys):
            self.rows[<size_t>at].key.at = <const uint8_t*>PyBytes_AS_STRING(key)
            self.rows[<size_t>at].key.size = <uint64_t>PyBytes_GET_SIZE(key)

    def __dealloc__(self):
        PyMem_RawFree(self.rows)

    cdef int run(self, TreeReader reader, int kind) except -1:
        """Look for all of them; a kind below 0: the keys are whole."""
        cdef TreeCursor cursor
        cdef int state
        reader.begin(&cursor)
        with nogil:
            state = rows_find(&cursor, kind, self.rows, self.count)
        if state < CURSOR_END:
            raise fault(&cursor, state, NULL)
        return 0


cdef int key_check(bytes key) except -1:
    if not 0 < PyBytes_GET_SIZE(key) <= KEY_BYTES_MAX:
        raise ValueError(f"key: got {len(key)} bytes, must be 1 to {KEY_BYTES_MAX}")
    return 0


cdef bytes span_bytes(const uint8_t* at, uint64_t size):
    return PyBytes_FromStringAndSize(<const char*>at, <Py_ssize_t>size)


cdef bytes row_body(const uint8_t* key, const Span* value):
    """The body of a row: all of a chunk, what follows the checksum of another."""
    cdef uint32_t skip = 0 if key[0] == ROW_CHUNK else ROW_CRC_BYTES
    return span_bytes(value.at + skip, value.size - skip)


def find_bodies(TreeReader reader not None, list keys not None):
    """The bodies of rows: their values without the checksum; of a chunk the whole of it.

    Args:
        reader: A snapshot.
        keys: Whole keys; ascending ones cost least.

    Returns:
        For each key the body, copied; None when there is no such row.

    Raises:
        RowDamaged: A row that was looked at is not what was written.
        TreeDamaged: Nor is a page on the way.
    """
    cdef RowSearch search
    cdef list found = []
    cdef size_t index
    for key in keys:
        key_check(key)
    search = RowSearch(keys)
    search.run(reader, -1)
    for index in range(search.count):
        if search.rows[index].value.at == NULL:
            found.append(None)
        else:
            found.append(row_body(search.rows[index].key.at, &search.rows[index].value))
    return found


def channel_keys(list ids not None):
    """The keys of channels: their ids, big-endian."""
    cdef uint8_t key[NUMBER_BYTES]
    cdef list keys = []
    for channel in ids:
        store_key_u64(key, channel)
        keys.append(span_bytes(key, NUMBER_BYTES))
    return keys


def find_names(TreeReader reader not None, list names not None):
    """The ids of channels by their names, 0 for each that is not there; ascending names cost least.

    Raises:
        RowDamaged, TreeDamaged: As `find_bodies`.
    """
    cdef RowSearch search = RowSearch(names)
    cdef const Span* value
    cdef list found = []
    cdef size_t index
    search.run(reader, ROW_NAME)
    for index in range(search.count):
        value = &search.rows[index].value
        if value.at == NULL:
            found.append(0)
        elif value.size == NAME_ROW_BYTES:
            found.append(load_u64(value.at + ROW_CRC_BYTES))
        else:
            raise RowDamaged(bytes([ROW_NAME]) + search.keys[<Py_ssize_t>index])
    return found


def find_channels(TreeReader reader not None, list ids not None):
    """The entries of channels by their ids, b"" for each that is not there; ascending ids cost least.

    Raises:
        RowDamaged, TreeDamaged: As `find_bodies`.
    """
    cdef RowSearch search = RowSearch(channel_keys(ids))
    cdef const Span* value
    cdef list found = []
    cdef size_t index
    search.run(reader, ROW_CHANNEL)
    for index in range(search.count):
        value = &search.rows[index].value
        if value.at == NULL:
            found.append(b"")
        elif channel_row_known(value):
            found.append(span_bytes(value.at + CHANNEL_ROW_BYTES, value.size - CHANNEL_ROW_BYTES))
        else:
            raise RowDamaged(bytes([ROW_CHANNEL]) + search.keys[<Py_ssize_t>index])
    return found


cdef int place_seek(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Go to the first row that is not below `wanted`, and prove the one before it; the caller proves what it takes."""
    cdef TreeCursor before
    cdef int found = cursor_seek(cursor, wanted)
    cdef int state
    if found == CURSOR_DAMAGED:
        return found
    before = cursor[0]
    state = cursor_prev(&before)
    if state == CURSOR_ROW and not row_sound(&before.key, &before.value):
        state = ROW_DAMAGED
    if state < CURSOR_END:
        cursor[0] = before
        return state
    return found


cdef int batch_list(RowBatch* batch, int state, const Span* prefix, const Span* begin,
                    uint64_t count_max) noexcept nogil:
    """Take the row that the cursor is on and those that follow, with a prefix; CURSOR_ROW when more may follow.

    The row `begin`, where it is no prefix, is the one to go on after.
    """
    cdef const Span* key = &batch.cursor.key
    batch.count = 0
    while state == CURSOR_ROW and batch.count < BATCH_CHUNKS and batch.count < count_max:
        if not row_sound(key, &batch.cursor.value):
            return ROW_DAMAGED
        if key.size < prefix.size or memcmp(key.at, prefix.at, prefix.size) != 0:
            return CURSOR_END
        if begin.at == prefix.at or span_compare(key, begin) != 0:
            batch.keys[batch.count] = key[0]
            batch.values[batch.count] = batch.cursor.value
            batch.count += 1
        state = cursor_next(&batch.cursor)
    return state


def list_rows(TreeReader reader not None, bytes prefix not None, bytes after not None, uint64_t count_max):
    """Rows in the order of their keys: (key, body), copied.

    Args:
        reader: A snapshot.
        prefix: Only keys that begin with it, at least one byte.
        after: Only keys past it.
        count_max: At most so many.

    Raises:
        RowDamaged, TreeDamaged: As `find_bodies`.
    """
    cdef RowBatch batch
    cdef Span begin, wanted
    cdef list found = []
    cdef uint32_t index
    cdef int state
    key_check(prefix)
    wanted.at = begin.at = <const uint8_t*>PyBytes_AS_STRING(prefix)
    wanted.size = begin.size = <uint64_t>PyBytes_GET_SIZE(prefix)
    if after >= prefix:
        key_check(after)
        begin.at = <const uint8_t*>PyBytes_AS_STRING(after)
        begin.size = <uint64_t>PyBytes_GET_SIZE(after)
    reader.begin(&batch.cursor)
    with nogil:
        state = place_seek(&batch.cursor, &begin)
    while state == CURSOR_ROW and count_max:
        with nogil:
            state = batch_list(&batch, state, &wanted, &begin, count_max)
        count_max -= batch.count
        for index in range(batch.count):
            found.append((span_bytes(batch.keys[index].at, batch.keys[index].size),
                          row_body(batch.keys[index].at, &batch.values[index])))
    if state < CURSOR_END:
        raise fault(&batch.cursor, state, NULL)
    return found


# -- chunks of a channel -----------------------------------------------------------------------------------------------

cdef inline uint64_t chunk_first(const TreeCursor* cursor) noexcept nogil:
    return load_u64(cursor.value.at + CHUNK_FIRST)


cdef inline uint64_t chunk_next(const TreeCursor* cursor) noexcept nogil:
    return load_u64(cursor.value.at + CHUNK_FIRST) + load_u32(cursor.value.at + CHUNK_COUNT)


cdef int chunk_prove(TreeCursor* cursor, int state, uint64_t channel, uint64_t sequence, Place* missing) noexcept nogil:
    """Prove that the row that a cursor came to is a chunk of a channel with a sequence in it."""
    if state == CURSOR_DAMAGED:
        return state
    missing.channel = channel
    missing.sequence = sequence
    if (state == CURSOR_END or cursor.key.size != CHUNK_KEY_BYTES or cursor.key.at[0] != ROW_CHUNK
            or load_key_u64(cursor.key.at + 1) != channel):
        return CHUNK_MISSING
    if not chunk_sound(&cursor.key, cursor.value.at, cursor.value.size) or chunk_next(cursor) < chunk_first(cursor):
        return ROW_DAMAGED
    if sequence < chunk_first(cursor) or sequence >= chunk_next(cursor):
        return CHUNK_MISSING
    return CURSOR_ROW


cdef int chunk_reach(TreeCursor* cursor, uint64_t channel, uint64_t sequence) noexcept nogil:
    """Go to where the chunk of a channel that has a sequence in it would be."""
    cdef uint8_t key[CHUNK_KEY_BYTES]
    cdef Span wanted
    cdef int state
    key[0] = ROW_CHUNK
    store_key_u64(key + 1, channel)
    store_key_u64(key + 9, sequence)
    wanted.at = key
    wanted.size = CHUNK_KEY_BYTES
    state = cursor_seek(cursor, &wanted)
    if state == CURSOR_END or (state == CURSOR_ROW and span_compare(&cursor.key, &wanted) != 0):
        state = cursor_prev(cursor)
    return state


cdef int chunk_seek(TreeCursor* cursor, uint64_t channel, uint64_t sequence, Place* missing) noexcept nogil:
    """Go to the chunk of a channel that has a sequence in it, and prove it."""
    cdef int state
    cursor.unproved = True
    state = chunk_reach(cursor, channel, sequence)
    cursor.unproved = False
    if chunk_prove(cursor, state, channel, sequence, missing) == CURSOR_ROW:
        return CURSOR_ROW
    seek_anew(cursor)
    return chunk_prove(cursor, chunk_reach(cursor, channel, sequence), channel, sequence, missing)


cdef int run_begin(ChunkRun* run, uint64_t channel) noexcept nogil:
    """Look where a channel begins and ends: CURSOR_END when there is none."""
    run.taken = run.on_row = False
    run.count = 0
    return channel_ends(&run.cursor, channel, &run.ends)


cdef bint run_take(ChunkRun* run) noexcept nogil:
    """Take the chunk that the cursor is on, if there is room."""
    if run.taken and run.cursor.value.size > run.bytes_room:
        return False
    run.bytes_room -= run.cursor.value.size if run.cursor.value.size < run.bytes_room else run.bytes_room
    run.taken = run.on_row = True
    run.spans[run.count] = run.cursor.value
    run.count += 1
    return True


cdef int run_forward(ChunkRun* run) noexcept nogil:
    """Take the next chunks, ascending: CURSOR_ROW when more may follow, CURSOR_END when these were the last."""
    cdef uint64_t bytes_batch = 0
    cdef int state
    run.count = 0
    # Without room the next chunk is not looked at: the one before a damaged one can be read.
    while run.low < run.high and not (run.taken and run.bytes_room == 0):
        if run.count == BATCH_CHUNKS or bytes_batch >= BATCH_BYTES:
            return CURSOR_ROW
        if run.on_row:
            state = chunk_prove(&run.cursor, cursor_next(&run.cursor), run.ends.channel, run.low, &run.missing)
            # Chunks do not overlap.
            if state == CURSOR_ROW and chunk_first(&run.cursor) != run.low:
                state = ROW_DAMAGED
        else:
            state = chunk_seek(&run.cursor, run.ends.channel, run.low, &run.missing)
        if state != CURSOR_ROW:
            return state
        if not run_take(run):
            break
        bytes_batch += run.cursor.value.size
        run.low = chunk_next(&run.cursor)
    return CURSOR_END


cdef int run_back(ChunkRun* run) noexcept nogil:
    """Take the next chunks, descending; as `run_forward`."""
    cdef uint64_t bytes_batch = 0
    cdef int state
    run.count = 0
    # Without room the next chunk is not looked at: the one before a damaged one can be read.
    while run.low < run.high and not (run.taken and run.bytes_room == 0):
        if run.count == BATCH_CHUNKS or bytes_batch >= BATCH_BYTES:
            return CURSOR_ROW
        if run.on_row:
            state = chunk_prove(&run.cursor, cursor_prev(&run.cursor), run.ends.channel, run.high - 1, &run.missing)
        else:
            state = chunk_seek(&run.cursor, run.ends.channel, run.high - 1, &run.missing)
        if state == CURSOR_ROW and run.on_row and chunk_next(&run.cursor) != run.high:
            state = ROW_DAMAGED
        if state != CURSOR_ROW:
            return state
        if not run_take(run):
            break
        bytes_batch += run.cursor.value.size
        run.high = chunk_first(&run.cursor)
    return CURSOR_END


cdef bytes chunk_cut(const Span* chunk, uint64_t first):
    """A chunk without what is below a sequence."""
    cdef ChunkBuilder builder
    cdef uint8_t key[CHUNK_KEY_BYTES]
    cdef uint32_t size
    cdef int state
    memset(&builder, 0, sizeof(ChunkBuilder))
    builder.bytes_max = 0xFFFFFFFF
    try:
        state = builder_take(&builder, chunk.at, first - 1, U64_MAX - 1)
        if state == TAKE_NO_MEMORY:
            raise MemoryError
        if state != TAKE_DONE:
            key[0] = ROW_CHUNK
            store_key_u64(key + 1, load_u64(chunk.at + CHUNK_CHANNEL))
            store_key_u64(key + 9, load_u64(chunk.at + CHUNK_FIRST))
            raise RowDamaged(span_bytes(key, CHUNK_KEY_BYTES))
        size = builder_finish(&builder)
        return span_bytes(builder.data, size)
    finally:
        builder_free(&builder)


cdef int run_copy(const ChunkRun* run, list chunks) except -1:
    """Copy what was taken, each from the channel's first sequence on."""
    cdef uint32_t index
    for index in range(run.count):
        if load_u64(run.spans[index].at + CHUNK_FIRST) < run.ends.first:
            chunks.append(chunk_cut(&run.spans[index], run.ends.first))
        else:
            chunks.append(span_bytes(run.spans[index].at, run.spans[index].size))
    return 0


def read_chunks(TreeReader reader not None, uint64_t channel, uint64_t after_sequence, uint64_t bytes_max,
                uint64_t before_sequence):
    """The chunks of a channel with sequences past one and below another, ascending.

    Args:
        reader: A snapshot.
        channel: Its id.
        after_sequence: 0 for all from the channel's first on.
        bytes_max: At least one chunk if there is any, further ones while their sum of sizes is within it.
        before_sequence: 0 for all up to the channel's last.

    Returns:
        Whole chunks, copied; only what is below the channel's first sequence is cut off.

    Raises:
        ChunkMissing: The channel's chunks are not dense.
        RowDamaged, TreeDamaged: As `find_bodies`.
    """
    cdef ChunkRun run
    cdef list chunks = []
    cdef int state
    reader.begin(&run.cursor)
    run.bytes_room = bytes_max
    with nogil:
        state = run_begin(&run, channel)
        if state == CURSOR_ROW:
            run.high = run.ends.next
            if before_sequence and before_sequence < run.high:
                run.high = before_sequence
            run.low = run.ends.first if after_sequence < run.ends.first else after_sequence
            run.low += after_sequence >= run.ends.first and after_sequence < run.high
            state = run_forward(&run)
    while True:
        if state < CURSOR_END:
            raise fault(&run.cursor, state, &run.missing)
        run_copy(&run, chunks)
        if state == CURSOR_END:
            return chunks
        with nogil:
            state = run_forward(&run)


def read_chunks_back(TreeReader reader not None, uint64_t channel, uint64_t before_sequence, uint64_t count,
                     uint64_t bytes_max):
    """The chunks of a channel that hold the last sequences below one, ascending.

    Args:
        reader: A snapshot.
        channel: Its id.
        before_sequence: 0 for the end of the channel.
        count: How many sequences; the first chunk may have more.
        bytes_max: At least one chunk, the newest, if there is any; further ones while their sum of sizes is within it.

    Returns, Raises:
        As `read_chunks`.
    """
    cdef ChunkRun run
    cdef list chunks = []
    cdef int state
    reader.begin(&run.cursor)
    run.bytes_room = bytes_max
    with nogil:
        state = run_begin(&run, channel)
        if state == CURSOR_ROW:
            run.high = run.ends.next
            if before_sequence and before_sequence < run.high:
                run.high = before_sequence
            run.low = run.ends.first
            if run.high > run.low and run.high - run.low > count:
                run.low = run.high - count
            state = run_back(&run)
    while True:
        if state < CURSOR_END:
            raise fault(&run.cursor, state, &run.missing)
        run_copy(&run, chunks)
        if state == CURSOR_END:
            chunks.reverse()
            return chunks
        with nogil:
            state = run_back(&run)


cdef int chunk_sequence_at(TreeCursor* cursor, uint64_t time_us, uint64_t* sequence) noexcept nogil:
    """Find the first record of a chunk that is of a time or later; `sequence` is past the chunk when none is."""
    cdef const uint8_t* chunk = cursor.value.at
    cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = chunk + cursor.value.size
    cdef uint64_t last = chunk_next(cursor)
    cdef uint32_t run
    sequence[0] = chunk_first(cursor)
    while sequence[0] < last:
        run = record_run(at, end)
        if run == 0 or run > last - sequence[0]:
            return ROW_DAMAGED
        if load_u64(chunk + CHUNK_TIME) + load_u32(at + RECORD_TIME) >= time_us:
            return CURSOR_ROW
        sequence[0] += run
        at += load_u32(at)
    return CURSOR_ROW


cdef int sequence_find(TreeCursor* cursor, const ChannelEnds* ends, uint64_t time_us, uint64_t* sequence,
                       Place* missing) noexcept nogil:
    """Halve a channel's sequences until the first one of a time or later is found; times never go back in it."""
    cdef uint64_t low = ends.first
    cdef uint64_t high = ends.next
    cdef int state
    while low < high:
        state = chunk_seek(cursor, ends.channel, low + (high - low) // 2, missing)
        if state != CURSOR_ROW:
            return state
        if load_u64(cursor.value.at + CHUNK_TIME) >= time_us:
            high = chunk_first(cursor)
            continue
        state = chunk_sequence_at(cursor, time_us, sequence)
        if state != CURSOR_ROW:
            return state
        if sequence[0] < chunk_next(cursor):
            low = sequence[0] if sequence[0] > low else low
            break
        low = sequence[0]
    sequence[0] = low
    return CURSOR_ROW


def sequence_at(TreeReader reader not None, uint64_t channel, uint64_t time_us):
    """The first sequence of a channel whose time is `time_us` or later; its next one when all are earlier.

    Args:
        reader: A snapshot.
        channel: Its id; one that is not there begins with sequence 1.
        time_us: Microseconds since 1970.

    Raises:
        ChunkMissing, RowDamaged, TreeDamaged: As `read_chunks`.
    """
    cdef TreeCursor cursor
    cdef ChannelEnds ends
    cdef Place missing
    cdef uint64_t sequence = 1
    cdef int state
    reader.begin(&cursor)
    with nogil:
        state = channel_ends(&cursor, channel, &ends)
        if state == CURSOR_ROW:
            state = sequence_find(&cursor, &ends, time_us, &sequence, &missing)
    if state < CURSOR_END:
        raise fault(&cursor, state, &missing)
    return sequence


# -- the commit index --------------------------------------------------------------------------------------------------


cdef int walk_row(GroupsWalk* walk, int state) noexcept nogil:
    """Begin with the row of groups that the cursor came to; CURSOR_END when it is none."""
    cdef const Span* key = &walk.cursor.key
    cdef const Span* value = &walk.cursor.value
    if state != CURSOR_ROW:
        return state
    if not row_sound(key, value):
        return ROW_DAMAGED
    if key.at[0] != ROW_GROUPS:
        return CURSOR_END
    if key.size != GROUPS_KEY_BYTES or value.size < GROUPS_ROW_BYTES:
        return ROW_DAMAGED
    walk.groups = load_u32(value.at + ROW_CRC_BYTES)
    walk.at = value.at + GROUPS_ROW_BYTES
    walk.end = value.at + value.size
    walk.group = walk.time_us = walk.chunks = walk.index = 0
    return CURSOR_ROW


cdef bint walk_varint(GroupsWalk* walk, uint64_t* number) noexcept nogil:
    cdef const uint8_t* after = varint_load(walk.at, walk.end, number)
    if after == NULL:
        return False
    walk.at = after
    return True


cdef bint walk_row_done(const GroupsWalk* walk) noexcept nogil:
    """Whether a row that has no groups left says what its key says, and nothing more."""
    return walk.at == walk.end and walk.group == load_key_u64(walk.cursor.key.at + 1)


cdef int walk_group_within(GroupsWalk* walk) noexcept nogil:
    """Go to the next group of the row; there is one."""
    cdef uint64_t groups, time_us
    if (not walk_varint(walk, &groups) or not walk_varint(walk, &time_us) or not walk_varint(walk, &walk.chunks)
            or groups == 0):
        return ROW_DAMAGED
    walk.group += groups
    walk.time_us += time_us
    walk.groups -= 1
    walk.index = 0
    return CURSOR_ROW


cdef int walk_group(GroupsWalk* walk) noexcept nogil:
    """Go to the next group; the chunks of the one before have been walked."""
    cdef int state
    if walk.groups == 0:
        if not walk_row_done(walk):
            return ROW_DAMAGED
        state = walk_row(walk, cursor_next(&walk.cursor))
        if state != CURSOR_ROW:
            return state
        if walk.groups == 0:
            return ROW_DAMAGED
    return walk_group_within(walk)


cdef int walk_chunk(GroupsWalk* walk, uint64_t* channel, uint64_t* first, uint64_t* count) noexcept nogil:
    """Go past the next chunk of the group; there is one."""
    if not walk_varint(walk, channel) or not walk_varint(walk, first) or not walk_varint(walk, count):
        return ROW_DAMAGED
    if first[0] == 0 or count[0] == 0 or first[0] + count[0] < first[0]:
        return ROW_DAMAGED
    walk.chunks -= 1
    walk.index += 1
    return CURSOR_ROW


cdef int walk_seek(GroupsWalk* walk, uint64_t group) noexcept nogil:
    """Go to the beginning of the row that has a group or, when none has, of the one that follows it."""
    cdef uint8_t key[GROUPS_KEY_BYTES]
    cdef Span wanted
    cdef int state
    key[0] = ROW_GROUPS
    store_key_u64(key + 1, group)
    wanted.at = key
    wanted.size = GROUPS_KEY_BYTES
    state = place_seek(&walk.cursor, &wanted)
    state = walk_row(walk, state)
    if state == CURSOR_ROW and walk.groups == 0:
        return ROW_DAMAGED
    return state


def unpack_groups(bytes key not None, bytes value not None):
    """What a row of the commit index says: (group, its time in microseconds, its chunks) in the order of the bus.

    A chunk is (channel, first, count).

    Raises:
        RowDamaged: It is not what was written.
    """
    cdef GroupsWalk walk
    cdef uint64_t channel, first, count
    cdef list groups = []
    cdef list chunks
    cdef int state
    memset(&walk, 0, sizeof(GroupsWalk))
    walk.cursor.key.at = <const uint8_t*>PyBytes_AS_STRING(key)
    walk.cursor.key.size = <uint64_t>PyBytes_GET_SIZE(key)
    walk.cursor.value.at = <const uint8_t*>PyBytes_AS_STRING(value)
    walk.cursor.value.size = <uint64_t>PyBytes_GET_SIZE(value)
    if walk.cursor.key.size == 0 or walk_row(&walk, CURSOR_ROW) != CURSOR_ROW:
        raise RowDamaged(key)
    while walk.groups:
        state = walk_group_within(&walk)
        chunks = []
        while state == CURSOR_ROW and walk.chunks:
            state = walk_chunk(&walk, &channel, &first, &count)
            chunks.append((channel, first, count))
        if state != CURSOR_ROW:
            raise RowDamaged(key)
        groups.append((walk.group, walk.time_us, chunks))
    if not groups or not walk_row_done(&walk):
        raise RowDamaged(key)
    return groups


cdef class GroupsPacker:
    """Packs groups into rows of the commit index.

    Args:
        bytes_max: How large a row may get, bytes; one of a single larger group is larger.

    One thread.
    """

    def __init__(self, uint32_t bytes_max=ROW_BYTES_WHOLE_PAGES):
        self.bytes_max = bytes_max
        self.row = bytearray(GROUPS_ROW_BYTES)

    def add(self, group not None):
        """Add a group.

        Args:
            group: The whole value as the journal has it, proved, past those that were added before; borrowed.

        Returns:
            A full row, (key, value), of the groups before this one; None when this one went in with them.

        Raises:
            ValueError: It is no group, or not past the others.
        """
        cdef Py_buffer view
        cdef const uint8_t* at
        cdef tuple full = None
        PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
        try:
            at = <const uint8_t*>view.buf
            if (view.len < GROUP_HEADER_BYTES or load_u32(at) != GROUP_MAGIC
                    or load_u64(at + GROUP_NUMBER) <= self.group):
                raise ValueError("group: it is none, or not past the one before")
            if not self.put(at, <uint64_t>view.len):
                full = self.finish()
                self.put(at, <uint64_t>view.len)
        finally:
            PyBuffer_Release(&view)
        return full

    cdef bint put(self, const uint8_t* group, uint64_t size) except -1:
        """Write a group behind the others; refused when the row would become too large by it."""
        cdef Py_ssize_t before = PyByteArray_GET_SIZE(self.row)
        cdef uint64_t chunks = load_u32(group + GROUP_CHUNKS_COUNT)
        cdef uint64_t offset = GROUP_HEADER_BYTES + <uint64_t>load_u32(group + GROUP_ENTRIES_BYTES)
        cdef uint8_t* at
        cdef uint64_t used, _
        if chunks > size // CHUNK_HEADER_BYTES:
            raise ValueError(f"group: {chunks} chunks in {size} bytes")
        PyByteArray_Resize(self.row, before + <Py_ssize_t>(3 * VARINT_BYTES_MAX * (chunks + 1)))
        at = <uint8_t*>PyByteArray_AS_STRING(self.row) + before
        used = varint_store(at, load_u64(group + GROUP_NUMBER) - (self.group if self.groups else 0))
        used += varint_store(at + used, load_u64(group + GROUP_TIME) - (self.time_us if self.groups else 0))
        used += varint_store(at + used, chunks)
        for _ in range(chunks):
            if offset > size or size - offset < CHUNK_HEADER_BYTES:
                PyByteArray_Resize(self.row, before)
                raise ValueError(f"group: its chunks leave its {size} bytes")
            used += varint_store(at + used, load_u64(group + offset + CHUNK_CHANNEL))
            used += varint_store(at + used, load_u64(group + offset + CHUNK_FIRST))
            used += varint_store(at + used, load_u32(group + offset + CHUNK_COUNT))
            offset += load_u32(group + offset)
        if self.groups and <uint64_t>before + used > self.bytes_max:
            PyByteArray_Resize(self.row, before)
            return False
        PyByteArray_Resize(self.row, before + <Py_ssize_t>used)
        self.groups += 1
        self.group = load_u64(group + GROUP_NUMBER)
        self.time_us = load_u64(group + GROUP_TIME)
        return True

    def finish(self):
        """Return the row of what was added since the last one, (key, value); None when nothing was."""
        cdef uint8_t key[GROUPS_KEY_BYTES]
        cdef uint8_t* at
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(self.row)
        cdef tuple row
        if self.groups == 0:
            return None
        key[0] = ROW_GROUPS
        store_key_u64(key + 1, self.group)
        at = <uint8_t*>PyByteArray_AS_STRING(self.row)
        store_u32(at + ROW_CRC_BYTES, self.groups)
        store_u32(at, row_crc(key, GROUPS_KEY_BYTES, at + ROW_CRC_BYTES, <uint64_t>size - ROW_CRC_BYTES))
        row = (span_bytes(key, GROUPS_KEY_BYTES), bytes(self.row))
        PyByteArray_Resize(self.row, GROUPS_ROW_BYTES)
        self.groups = 0
        return row


cdef int walk_past(GroupsWalk* walk) noexcept nogil:
    """Go past the chunks of the group that are left."""
    cdef uint64_t channel, first, count
    cdef int state = CURSOR_ROW
    while state == CURSOR_ROW and walk.chunks:
        state = walk_chunk(walk, &channel, &first, &count)
    return state


cdef int group_find(GroupsWalk* walk, uint64_t time_us) noexcept nogil:
    """Halve the numbers of groups until the walk is on the first one of a time or later; times never go back."""
    cdef uint64_t low = 0
    cdef uint64_t high, middle, row
    cdef uint64_t begin = 0
    cdef int state = walk_seek(walk, U64_MAX)
    if state < CURSOR_END:
        return state
    if state == CURSOR_END:
        state = cursor_prev(&walk.cursor)
        if state != CURSOR_ROW or walk.cursor.key.at[0] != ROW_GROUPS:
            return CURSOR_END if state == CURSOR_ROW else state
    high = load_key_u64(walk.cursor.key.at + 1)
    while low < high:
        middle = low + (high - low) // 2
        state = walk_seek(walk, middle)
        if state == CURSOR_ROW:
            row = load_key_u64(walk.cursor.key.at + 1)
            state = walk_group(walk)
        if state != CURSOR_ROW:
            return state
        if walk.time_us >= time_us:
            high = middle
        else:
            begin = row
            low = row + 1 if row < high else high
    # The row that begins last before that time, and what follows it.
    state = walk_seek(walk, begin)
    if state == CURSOR_ROW:
        state = walk_group(walk)
    while state == CURSOR_ROW and walk.time_us < time_us:
        state = walk_past(walk)
        if state == CURSOR_ROW:
            state = walk_group(walk)
    return state


def group_at(TreeReader reader not None, uint64_t time_us):
    """The first group whose time is `time_us` (microseconds since 1970) or later; None when all are earlier.

    Raises:
        RowDamaged, TreeDamaged: As `find_bodies`.
    """
    cdef GroupsWalk walk
    cdef int state
    reader.begin(&walk.cursor)
    with nogil:
        state = group_find(&walk, time_us)
    if state < CURSOR_END:
        raise fault(&walk.cursor, state, NULL)
    return walk.group if state == CURSOR_ROW else None


# -- chunks in the order of the bus ------------------------------------------------------------------------------------

cdef struct GroupsRead:           # one call's walk
    GroupsWalk walk
    TreeCursor rows
    TreeCursor channels
    ChannelEnds ends              # of the channel that was looked at last
    bint stored                   # whether that one is there
    Place missing
    uint64_t after_group          # everything up to here is passed over
    uint64_t after_index
    bint after_any                # after_index says something
    uint64_t group                # everything up to here was looked at
    uint64_t index
    uint64_t looked
    uint64_t bytes_taken
    uint64_t bytes_max
    ChunkBuilder builder
    Arena arena
    uint32_t count
    ChunkWanted batch[BATCH_CHUNKS]


cdef int read_chosen(GroupsRead* read, object choose) except -1:
    """Leave of the chunks that were noted those whose channels are chosen, all of them asked for at once."""
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef list channels = []
    for index in range(read.count):
        channels.append(read.batch[index].channel)
    chosen = choose(channels)
    for index in range(read.count):
        if read.batch[index].channel in chosen:
            read.batch[count] = read.batch[index]
            count += 1
    read.count = count
    return 0


cdef int read_plan(GroupsRead* read, object wanted) except -9:
    """Note which chunks come next: CURSOR_ROW when more may follow, CURSOR_END when these are the last."""
    cdef GroupsWalk* walk = &read.walk
    cdef ChunkWanted* chunk
    cdef uint64_t channel, first, count
    cdef int state
    read.count = 0
    while read.count < BATCH_CHUNKS:
        if read.looked == SCAN_CHUNKS_MAX:
            return CURSOR_END
        if walk.chunks == 0:
            state = walk_group(walk)
            if state != CURSOR_ROW:
                return state
            if walk.chunks == 0 and walk.group > read.group:
                read.group = walk.group
                read.index = 0
            continue
        state = walk_chunk(walk, &channel, &first, &count)
        if state != CURSOR_ROW:
            return state
        if walk.group < read.after_group or (
                walk.group == read.after_group and read.after_any and walk.index - 1 <= read.after_index):
            continue
        read.looked += 1
        if wanted is None or channel in wanted:
            chunk = &read.batch[read.count]
            chunk.group = walk.group
            chunk.index = walk.index - 1
            chunk.channel = channel
            chunk.first = first
            chunk.next = first + count
            chunk.before_group = read.group
            chunk.before_index = read.index
            read.count += 1
        read.group = walk.group
        read.index = walk.index - 1
    return CURSOR_ROW


cdef int arena_put(Arena* arena, ChunkWanted* chunk, const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint64_t capacity = arena.capacity if arena.capacity else 65536
    cdef void* moved
    if arena.used + size > arena.capacity:
        while capacity < arena.used + size:
            capacity *= 2
        moved = PyMem_RawRealloc(arena.data, <size_t>capacity)
        if moved == NULL:
            return NO_MEMORY
        arena.data = <uint8_t*>moved
        arena.capacity = capacity
    memcpy(arena.data + arena.used, at, size)
    chunk.at = arena.used
    chunk.size = size
    arena.used += size
    return CURSOR_ROW


cdef int read_chunk(GroupsRead* read, ChunkWanted* chunk) noexcept nogil:
    """Make one chunk of the rows that its records stand in, and put it into the arena; leave out what is gone."""
    cdef uint64_t low = chunk.first
    cdef uint32_t size
    cdef int state
    chunk.size = 0
    if read.ends.channel != chunk.channel:
        state = channel_ends(&read.channels, chunk.channel, &read.ends)
        if state < CURSOR_END:
            read.rows = read.channels
            return state
        read.ends.channel = chunk.channel
        read.stored = state == CURSOR_ROW
    if low < read.ends.first:
        low = read.ends.first
    if not read.stored or low >= chunk.next:
        return CURSOR_ROW
    state = chunk_seek(&read.rows, chunk.channel, low, &read.missing)
    if state == CURSOR_ROW and chunk_first(&read.rows) == low and chunk_next(&read.rows) == chunk.next:
        return arena_put(&read.arena, chunk, read.rows.value.at, <uint32_t>read.rows.value.size)
    read.builder.used = 0
    while state == CURSOR_ROW:
        state = builder_take(&read.builder, read.rows.value.at, low - 1, chunk.next - 1)
        if state != TAKE_DONE:
            return NO_MEMORY if state == TAKE_NO_MEMORY else ROW_DAMAGED
        if chunk_next(&read.rows) >= chunk.next:
            size = builder_finish(&read.builder)
            return arena_put(&read.arena, chunk, read.builder.data, size)
        low = chunk_next(&read.rows)
        state = chunk_prove(&read.rows, cursor_next(&read.rows), chunk.channel, low, &read.missing)
    return state


cdef int read_batch(GroupsRead* read) noexcept nogil:
    """Make the chunks of a batch: CURSOR_END when one has no room, whose index `count` is then."""
    cdef uint32_t index
    cdef int state
    read.arena.used = 0
    for index in range(read.count):
        state = read_chunk(read, &read.batch[index])
        if state != CURSOR_ROW:
            return state
        if read.bytes_taken and read.bytes_taken + read.batch[index].size > read.bytes_max:
            read.count = index
            return CURSOR_END
        read.bytes_taken += read.batch[index].size
    return CURSOR_ROW


cdef int read_some(GroupsRead* read, object wanted, list chunks) except -9:
    """Read a batch: CURSOR_ROW when more may follow, CURSOR_END when this was the last."""
    cdef ChunkWanted* chunk
    cdef uint32_t index
    cdef int state = CURSOR_ROW
    cdef int planned
    choose = getattr(wanted, "choose", None)
    planned = read_plan(read, None if choose is not None else wanted)
    if planned < CURSOR_END:
        raise fault(&read.walk.cursor, planned, NULL)
    if choose is not None and read.count:
        read_chosen(read, choose)
    with nogil:
        state = read_batch(read)
    if state < CURSOR_END:
        raise fault(&read.rows, state, &read.missing)
    for index in range(read.count):
        chunk = &read.batch[index]
        if chunk.size:
            chunks.append((chunk.group, chunk.index, span_bytes(read.arena.data + chunk.at, chunk.size)))
    if state == CURSOR_END:
        read.group = read.batch[read.count].before_group
        read.index = read.batch[read.count].before_index
        return CURSOR_END
    return planned


def read_groups(TreeReader reader not None, uint64_t after_group, int64_t after_index, uint64_t bytes_max, wanted):
    """Chunks in the order of the bus, after a place.

    Args:
        reader: A snapshot.
        after_group, after_index: The place; (0, 0) for the beginning.
        bytes_max: At least one wanted chunk if the call meets any, further ones while their sum of sizes is within it.
        wanted: A container of channel ids, None for all of them. One with a method `choose` is asked for many at once:
            it gets the ids of chunks to come and returns those that it wants, a set.

    Returns:
        (group, index in it, chunk) each, and the place up to which everything was looked at: when it is the one that
        was passed in, nothing follows. A call looks at SCAN_CHUNKS_MAX chunks at most, wanted or not.

    Raises:
        ChunkMissing, RowDamaged, TreeDamaged: As `read_chunks`.
    """
    cdef GroupsRead read
    cdef list chunks = []
    cdef int state
    memset(&read, 0, sizeof(GroupsRead))
    reader.begin(&read.walk.cursor)
    read.rows = read.channels = read.walk.cursor
    read.ends.channel = U64_MAX
    read.builder.bytes_max = 0xFFFFFFFF
    read.bytes_max = bytes_max
    read.after_group = read.group = after_group
    read.after_any = after_index >= 0
    read.after_index = <uint64_t>after_index if after_index >= 0 else 0
    read.index = read.after_index
    try:
        with nogil:
            state = walk_seek(&read.walk, after_group)
        if state < CURSOR_END:
            raise fault(&read.walk.cursor, state, NULL)
        while state == CURSOR_ROW:
            state = read_some(&read, wanted, chunks)
    finally:
        builder_free(&read.builder)
        PyMem_RawFree(read.arena.data)
    if read.group == after_group and read.index == read.after_index:
        return chunks, (after_group, after_index)
    return chunks, (read.group, read.index)
