"""Everything of the journal that is done per chunk: checking groups, indexing segments, cutting chunks out.

Three things over the layouts of `layout.pxd`:

- `check_group` and `read_header` tell what a stored group says of itself, with and without proof;
- `SegmentIndex` knows where each channel's chunks stand in a segment, and emits that as sorted pages, which
  `find_in_page` looks up in again;
- `cut_chunk` and `scan_group` copy chunks out of a group, and never hand out one whose checksum is wrong.

What the groups of a segment change in the tables is `tables.pyx`'s business.

Buffers are borrowed for the length of one call; nothing returned points into them. Nothing here knows of LMDB, files
or the broker's errors: damage is `GroupDamaged`, which says what and where, and the caller adds the file's name.
Loops over chunks run without the interpreter lock once they are long enough to be worth the hand-over.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.pythread cimport (
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_CRC,
    CHUNK_FIRST,
    CHUNK_HEADER_BYTES,
    ENTRY_CHANNEL,
    ENTRY_CLOSE,
    ENTRY_DROP,
    ENTRY_FLAG_IGNORABLE,
    ENTRY_HEADER_BYTES,
    GROUP_CHAIN,
    GROUP_CHUNKS_COUNT,
    GROUP_ENTRIES_BYTES,
    GROUP_ENTRIES_COUNT,
    GROUP_FLAGS,
    GROUP_FORMAT,
    GROUP_FORMAT_AT,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_NUMBER,
    GROUP_PREDECESSOR,
    GROUP_PREVIOUS_CHAIN,
    GROUP_RESERVED,
    GROUP_RUN,
    GROUP_SIZE,
    GROUP_TERM,
    GROUP_TIME,
    GROUP_WRITER,
    load_u16,
    load_u32,
    load_u64,
    store_u32,
    store_u64,
)
from broker_native.slabs cimport memory_prefetch
from broker_native.sorting cimport Keyed, keyed_sort

cdef enum:
    # Up to here a walk takes less than giving the interpreter lock away and getting it back beside a busy thread.
    CHUNKS_HELD_MAX = 512
    GROUP_CHAIN_HEADER_BYTES = 80

PAGE_BYTES_MAX = PAGE_HEADER_BYTES + PAGE_ENTRIES_MAX * PAGE_ENTRY_BYTES

_REASONS = {
    DAMAGE_HEADER: "header",
    DAMAGE_FORMAT: "format",
    DAMAGE_SIZE: "size",
    DAMAGE_ENTRIES: "entries",
    DAMAGE_CHUNK: "chunk bounds",
    DAMAGE_CRC: "chunk checksum",
    DAMAGE_CHAIN: "chain checksum",
    DAMAGE_ORDER: "sequence order",
    DAMAGE_UNKNOWN_ENTRY: "unknown entry",
    DAMAGE_PLACE: "chunk place",
    DAMAGE_PAGE: "index page",
    DAMAGE_TABLE: "table page",
}


class GroupDamaged(ValueError):
    """Stored bytes are not what was written.

    Attributes:
        reason: "format" and "unknown entry" mean that a newer version wrote it; all others that it is damaged:
            "header", "size", "entries", "chunk bounds", "chunk checksum", "chain checksum", "sequence order",
            "chunk place", "index page", "table page".
        offset: where, in bytes from the beginning of the group or page.
        channel: the id of the channel concerned, 0 when none is.
    """

    def __init__(self, reason, offset, channel):
        super().__init__(reason, offset, channel)
        self.reason = reason
        self.offset = offset
        self.channel = channel


cdef object damage_error(const Damage* damage):
    if damage.reason == DAMAGE_MEMORY:
        return MemoryError()
    return GroupDamaged(_REASONS[damage.reason], damage.offset, damage.channel)


cdef int damaged(Damage* damage, int reason, uint64_t offset, uint64_t channel) noexcept nogil:
    damage.reason = reason
    damage.offset = offset
    damage.channel = channel
    return reason


# --- Growing arrays and the hash table ---------------------------------------------------------------------------

cdef void* array_grow(void* items, uint32_t* capacity, uint32_t initial, size_t item_bytes) noexcept nogil:
    """Double an array; NULL when there is no memory, and then the old one is still good."""
    cdef uint32_t grown = capacity[0] * 2
    cdef void* moved
    if capacity[0] == 0:
        grown = initial
    if grown <= capacity[0]:
        return NULL
    moved = PyMem_RawRealloc(items, grown * item_bytes)
    if moved != NULL:
        capacity[0] = grown
    return moved


cdef uint64_t key_mix(uint64_t key) noexcept nogil:
    # The finalizer of MurmurHash3: channel ids count up, and neighbours must not share places.
    key ^= key >> 33
    key *= <uint64_t>0xff51afd7ed558ccd
    key ^= key >> 33
    key *= <uint64_t>0xc4ceb9fe1a85ec53
    return key ^ (key >> 33)


cdef uint32_t table_find(const IndexTable* table, uint64_t key) noexcept nogil:
    """Return the index of a key's item plus one, 0 when it has none."""
    cdef uint32_t mask, at
    if table.capacity == 0:
        return 0
    mask = table.capacity - 1
    at = <uint32_t>key_mix(key) & mask
    while table.slots[at].row != 0 and table.slots[at].key != key:
        at = (at + 1) & mask
    return table.slots[at].row


cdef void table_prefetch(const IndexTable* table, uint64_t key) noexcept nogil:
    """Have a key's slot on its way into the cache."""
    if table.capacity != 0:
        memory_prefetch(&table.slots[<uint32_t>key_mix(key) & (table.capacity - 1)])


cdef void table_place(IndexTable* table, uint64_t key, uint32_t row_plus_one) noexcept nogil:
    cdef uint32_t mask = table.capacity - 1
    cdef uint32_t at = <uint32_t>key_mix(key) & mask
    while table.slots[at].row != 0:
        at = (at + 1) & mask
    table.slots[at] = IndexSlot(key, row_plus_one)


cdef bint table_grow(IndexTable* table) noexcept nogil:
    cdef IndexTable grown = table[0]
    cdef uint32_t at
    grown.capacity = table.capacity * 2
    if grown.capacity == 0:
        grown.capacity = 64
    grown.slots = <IndexSlot*>PyMem_RawCalloc(grown.capacity, sizeof(IndexSlot))
    if grown.slots == NULL:
        return False
    for at in range(table.capacity):
        if table.slots[at].row != 0:
            table_place(&grown, table.slots[at].key, table.slots[at].row)
    PyMem_RawFree(table.slots)
    table[0] = grown
    return True


cdef void table_free(IndexTable* table) noexcept nogil:
    PyMem_RawFree(table.slots)
    PyMem_RawFree(table.items)


cdef void* table_add(IndexTable* table, uint64_t key, uint32_t initial, size_t item_bytes) noexcept nogil:
    """Return a new item, all zero, for a key that has none; NULL when there is no memory, and then nothing changes."""
    cdef void* moved
    cdef uint8_t* item
    if table.count == table.items_capacity:
        moved = array_grow(table.items, &table.items_capacity, initial, item_bytes)
        if moved == NULL:
            return NULL
        table.items = moved
    if table.count * 2 >= table.capacity and not table_grow(table):
        return NULL
    item = <uint8_t*>table.items + table.count * item_bytes
    memset(item, 0, item_bytes)
    table.count += 1
    table_place(table, key, table.count)
    return item


cdef uint64_t table_look_ahead(
    const IndexTable* table, const uint8_t* at, size_t size, uint64_t offset, int chunks
) noexcept nogil:
    """Have the slots of some chunks' channels on their way into the cache; answers where the next chunk begins.

    Sizes are not checked yet: it stops at one that cannot be.
    """
    cdef uint32_t chunk_size
    while chunks > 0 and offset < size and size - offset >= CHUNK_HEADER_BYTES:
        table_prefetch(table, load_u64(at + offset + CHUNK_CHANNEL))
        chunk_size = load_u32(at + offset)
        if chunk_size < CHUNK_HEADER_BYTES:
            return size
        offset += chunk_size
        chunks -= 1
    return offset


# --- What a group says of itself ----------------------------------------------------------------------------------

cdef int group_check_header(const uint8_t* at, size_t size, Damage* damage) noexcept nogil:
    """Check what must hold before any other byte of a group may be looked at."""
    if size < GROUP_HEADER_BYTES or load_u32(at) != GROUP_MAGIC:
        return damaged(damage, DAMAGE_HEADER, 0, 0)
    if load_u16(at + GROUP_FORMAT_AT) != GROUP_FORMAT or load_u16(at + GROUP_FORMAT_AT + 2) != GROUP_HEADER_BYTES:
        return damaged(damage, DAMAGE_FORMAT, GROUP_FORMAT_AT, 0)
    if load_u64(at + GROUP_SIZE) != size:
        return damaged(damage, DAMAGE_SIZE, GROUP_SIZE, 0)
    if load_u64(at + GROUP_RESERVED) != 0:
        return damaged(damage, DAMAGE_HEADER, GROUP_RESERVED, 0)
    if load_u32(at + GROUP_ENTRIES_BYTES) > size - GROUP_HEADER_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, GROUP_ENTRIES_BYTES, 0)
    return DAMAGE_NONE


cdef int group_check_entries(const uint8_t* at, uint64_t* closed_run, Damage* damage) noexcept nogil:
    """Check that the entries add up; the header is checked. Reports the run of a CLOSE entry."""
    cdef uint64_t offset = GROUP_HEADER_BYTES
    cdef uint64_t end = offset + load_u32(at + GROUP_ENTRIES_BYTES)
    cdef uint32_t count = 0
    cdef uint32_t size, kind
    while offset < end:
        if end - offset < ENTRY_HEADER_BYTES:
            return damaged(damage, DAMAGE_ENTRIES, offset, 0)
        size = load_u32(at + offset)
        if size < ENTRY_HEADER_BYTES or size > end - offset:
            return damaged(damage, DAMAGE_ENTRIES, offset, 0)
        kind = load_u16(at + offset + 4)
        if kind - ENTRY_CHANNEL > ENTRY_DROP - ENTRY_CHANNEL and not load_u16(at + offset + 6) & ENTRY_FLAG_IGNORABLE:
            return damaged(damage, DAMAGE_UNKNOWN_ENTRY, offset, 0)
        if kind == ENTRY_CLOSE and size >= ENTRY_HEADER_BYTES + 8:
            closed_run[0] = load_u64(at + offset + ENTRY_HEADER_BYTES)
        offset += size
        count += 1
    if count != load_u32(at + GROUP_ENTRIES_COUNT):
        return damaged(damage, DAMAGE_ENTRIES, GROUP_ENTRIES_COUNT, 0)
    return DAMAGE_NONE


cdef int chunk_check_bounds(const uint8_t* at, uint64_t offset, uint64_t end, Damage* damage) noexcept nogil:
    """Check that a chunk's header and size lie within its group, and that it covers sequences that can be."""
    cdef uint32_t size
    if end - offset < CHUNK_HEADER_BYTES:
        return damaged(damage, DAMAGE_CHUNK, offset, 0)
    size = load_u32(at + offset)
    if size < CHUNK_HEADER_BYTES or size > end - offset:
        return damaged(damage, DAMAGE_CHUNK, offset, load_u64(at + offset + CHUNK_CHANNEL))
    if load_u32(at + offset + CHUNK_COUNT) == 0 or load_u64(at + offset + CHUNK_FIRST) == 0:
        return damaged(damage, DAMAGE_CHUNK, offset, load_u64(at + offset + CHUNK_CHANNEL))
    return DAMAGE_NONE


cdef int group_check_chunks(const uint8_t* at, uint64_t size, uint32_t* chain, Damage* damage) noexcept nogil:
    """Check every chunk, and carry their checksums into the chain. The header is checked."""
    cdef uint64_t offset = GROUP_HEADER_BYTES + <uint64_t>load_u32(at + GROUP_ENTRIES_BYTES)
    cdef uint32_t count = 0
    cdef uint32_t chunk_size
    while offset < size:
        if chunk_check_bounds(at, offset, size, damage) != DAMAGE_NONE:
            return damage.reason
        chunk_size = load_u32(at + offset)
        if crc32c(0, at + offset + CHUNK_CHANNEL, chunk_size - CHUNK_CHANNEL) != load_u32(at + offset + CHUNK_CRC):
            return damaged(damage, DAMAGE_CRC, offset, load_u64(at + offset + CHUNK_CHANNEL))
        chain[0] = crc32c(chain[0], at + offset + CHUNK_CRC, 4)
        offset += chunk_size
        count += 1
    if count != load_u32(at + GROUP_CHUNKS_COUNT):
        return damaged(damage, DAMAGE_CHUNK, GROUP_CHUNKS_COUNT, 0)
    return DAMAGE_NONE


cdef int group_check(const uint8_t* at, size_t size, uint64_t* closed_run, Damage* damage) noexcept nogil:
    """Check everything that a group can prove alone: header, entries, chunks and chain."""
    cdef uint32_t chain
    if group_check_header(at, size, damage) != DAMAGE_NONE:
        return damage.reason
    if group_check_entries(at, closed_run, damage) != DAMAGE_NONE:
        return damage.reason
    chain = crc32c(0, at, GROUP_CHAIN_HEADER_BYTES)
    chain = crc32c(chain, at + GROUP_PREVIOUS_CHAIN, 4)
    chain = crc32c(chain, at + GROUP_HEADER_BYTES, load_u32(at + GROUP_ENTRIES_BYTES))
    if group_check_chunks(at, size, &chain, damage) != DAMAGE_NONE:
        return damage.reason
    if chain != load_u32(at + GROUP_CHAIN):
        return damaged(damage, DAMAGE_CHAIN, GROUP_CHAIN, 0)
    return DAMAGE_NONE


cdef int view_check(const Py_buffer* view, uint64_t* closed_run, Damage* damage) noexcept:
    """Check a whole group, without the interpreter lock if it is large."""
    cdef int reason
    if view.len <= BYTES_HELD_MAX:
        return group_check(<const uint8_t*>view.buf, <size_t>view.len, closed_run, damage)
    with nogil:
        reason = group_check(<const uint8_t*>view.buf, <size_t>view.len, closed_run, damage)
    return reason


cdef class GroupHeader:
    """What the header of one group says.

    Attributes (all read-only):
        number, predecessor: group numbers; the predecessor of the first group is 0.
        term, writer, run: as the sequencer stamped them.
        time_us: broker time, microseconds since 1970.
        chain, previous_chain: the chain checksum after and before this group.
        entries, chunks: how many there are.
        flags: GROUP_FLAG_*.
        size: bytes of the whole group.
        closed_run: the run that a CLOSE entry of the group ends, 0 when it has none; always 0 from `read_header`.
    """

cdef GroupHeader header_of(const uint8_t* at, uint64_t closed_run):
    cdef GroupHeader header = GroupHeader.__new__(GroupHeader)
    header.number = load_u64(at + GROUP_NUMBER)
    header.predecessor = load_u64(at + GROUP_PREDECESSOR)
    header.term = load_u64(at + GROUP_TERM)
    header.writer = load_u64(at + GROUP_WRITER)
    header.run = load_u64(at + GROUP_RUN)
    header.time_us = load_u64(at + GROUP_TIME)
    header.size = load_u64(at + GROUP_SIZE)
    header.chain = load_u32(at + GROUP_CHAIN)
    header.previous_chain = load_u32(at + GROUP_PREVIOUS_CHAIN)
    header.entries = load_u32(at + GROUP_ENTRIES_COUNT)
    header.chunks = load_u32(at + GROUP_CHUNKS_COUNT)
    header.flags = load_u32(at + GROUP_FLAGS)
    header.closed_run = closed_run
    return header


def read_header(group):
    """Return the header of a group after checking its magic, format and sizes, and nothing else.

    Args:
        group: the whole stored value; borrowed for the call.

    Returns:
        A `GroupHeader`.

    Raises:
        GroupDamaged: the header cannot be a group's of that size.

    Any thread. Reads the first 96 bytes only, so it is safe on a value whose other pages may be gone.
    """
    cdef Py_buffer view
    cdef Damage damage
    cdef GroupHeader header
    PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
    try:
        if group_check_header(<const uint8_t*>view.buf, <size_t>view.len, &damage) != DAMAGE_NONE:
            raise damage_error(&damage)
        header = header_of(<const uint8_t*>view.buf, 0)
    finally:
        PyBuffer_Release(&view)
    return header


def check_group(group):
    """Return the header of a group after checking every byte of it against its checksums.

    What is left to the caller: that predecessor and previous chain are those of the group before it.

    Args:
        group: the whole stored value; borrowed for the call, and nobody may write to it meanwhile.

    Returns:
        A `GroupHeader`.

    Raises:
        GroupDamaged: something is not as it was written.

    Any thread; the interpreter lock is free while a large group is checked. About 0.1 ms for 1 MiB.
    """
    cdef Py_buffer view
    cdef Damage damage
    cdef uint64_t closed_run = 0
    cdef int reason
    cdef GroupHeader header
    PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
    try:
        reason = view_check(&view, &closed_run, &damage)
        if reason != DAMAGE_NONE:
            raise damage_error(&damage)
        header = header_of(<const uint8_t*>view.buf, closed_run)
    finally:
        PyBuffer_Release(&view)
    return header


# --- Cutting chunks out -------------------------------------------------------------------------------------------

cdef bytes chunk_copy(const uint8_t* at, uint64_t offset, uint32_t size):
    """Copy a chunk whose bounds are checked; None when its checksum is wrong. What is checked is the copy."""
    cdef bytes chunk = PyBytes_FromStringAndSize(<const char*>(at + offset), size)
    cdef const uint8_t* copy = <const uint8_t*>PyBytes_AS_STRING(chunk)
    if crc32c(0, copy + CHUNK_CHANNEL, size - CHUNK_CHANNEL) != load_u32(copy + CHUNK_CRC):
        return None
    return chunk


def cut_chunk(group, uint64_t channel, tuple place):
    """Copy one chunk out of a group and prove that it is the one that the index means.

    Args:
        group: the whole stored value; borrowed for the call.
        channel: the channel's id.
        place: (group, index, offset, size, first, count), as lookups return it.

    Returns:
        The chunk's bytes.

    Raises:
        GroupDamaged: there is no such chunk there, or its checksum is wrong.

    Any thread; holds the interpreter lock for the copy and the check (a few microseconds for 64 KiB).
    """
    cdef uint64_t number, first
    cdef uint32_t offset, size, count
    number, _, offset, size, first, count = place
    cdef Py_buffer view
    cdef Damage damage
    cdef const uint8_t* at
    cdef bytes chunk
    PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
    try:
        at = <const uint8_t*>view.buf
        if (
            group_check_header(at, <size_t>view.len, &damage) != DAMAGE_NONE
            or load_u64(at + GROUP_NUMBER) != number
            or offset > <uint64_t>view.len
            or chunk_check_bounds(at, offset, <uint64_t>view.len, &damage) != DAMAGE_NONE
            or load_u32(at + offset) != size
            or load_u64(at + offset + CHUNK_CHANNEL) != channel
            or load_u64(at + offset + CHUNK_FIRST) != first
            or load_u32(at + offset + CHUNK_COUNT) != count
        ):
            raise GroupDamaged(_REASONS[DAMAGE_PLACE], offset, channel)
        chunk = chunk_copy(at, offset, size)
        if chunk is None:
            raise GroupDamaged(_REASONS[DAMAGE_CRC], offset, channel)
    finally:
        PyBuffer_Release(&view)
    return chunk


def scan_group(group, uint64_t number, int64_t after_index, int64_t bytes_max, wanted, list into):
    """Collect the chunks of wanted channels that stand after a place of a group.

    The whole group is checked first, since a flipped bit in an unwanted chunk's header could hide a wanted one.

    Args:
        group: the whole stored value; borrowed for the call.
        number: the number that it must have.
        after_index: chunks up to this one are passed over; -1 to begin with the first.
        bytes_max: stop before a chunk that would carry what is collected past this, unless nothing is collected yet.
        wanted: a container of channel ids, or None for all of them.
        into: gets (group number, chunk index, chunk) for each; "nothing yet" means that this list is empty.

    Returns:
        (index of the last chunk looked at, at least `after_index`; bytes collected; whether the group is at its end).

    Raises:
        GroupDamaged: something in the group is not as it was written, or it is another one.

    Any thread; as `check_group`.
    """
    cdef Py_buffer view
    cdef Damage damage
    cdef uint64_t closed_run = 0
    cdef int reason
    PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
    try:
        reason = view_check(&view, &closed_run, &damage)
        if reason != DAMAGE_NONE:
            raise damage_error(&damage)
        if load_u64(<const uint8_t*>view.buf + GROUP_NUMBER) != number:
            raise GroupDamaged(_REASONS[DAMAGE_HEADER], GROUP_NUMBER, 0)
        return scan_checked(<const uint8_t*>view.buf, after_index, bytes_max, wanted, into)
    finally:
        PyBuffer_Release(&view)


cdef tuple scan_checked(const uint8_t* at, int64_t after_index, int64_t bytes_max, object wanted, list into):
    cdef uint64_t number = load_u64(at + GROUP_NUMBER)
    cdef uint64_t offset = GROUP_HEADER_BYTES + <uint64_t>load_u32(at + GROUP_ENTRIES_BYTES)
    cdef int64_t index = 0, taken = 0
    cdef int64_t chunks = load_u32(at + GROUP_CHUNKS_COUNT)
    cdef uint64_t channel
    cdef uint32_t size
    cdef bytes chunk
    while index < chunks:
        size = load_u32(at + offset)
        if index > after_index:
            channel = load_u64(at + offset + CHUNK_CHANNEL)
            if wanted is None or channel in wanted:
                if into and taken + size > bytes_max:
                    return index - 1, taken, False
                chunk = chunk_copy(at, offset, size)
                if chunk is None:
                    raise GroupDamaged(_REASONS[DAMAGE_CRC], offset, channel)
                into.append((number, index, chunk))
                taken += size
        offset += size
        index += 1
    return max(after_index, chunks - 1), taken, True


# --- The index of a segment ---------------------------------------------------------------------------------------

cdef ChannelRow* index_row(SegmentIndex self, uint64_t channel) noexcept nogil:
    """Return a channel's row, a new one if need be; NULL when there is no memory."""
    cdef uint32_t found = table_find(&self.table, channel)
    cdef ChannelRow* row
    if found != 0:
        return &(<ChannelRow*>self.table.items)[found - 1]
    row = <ChannelRow*>table_add(&self.table, channel, 64, sizeof(ChannelRow))
    if row != NULL:
        row.channel = channel
    return row


cdef const ChunkPlace* row_places(const ChannelRow* row) noexcept nogil:
    return &row.only if row.places == NULL else row.places


cdef ChunkPlace* row_next(ChannelRow* row) noexcept nogil:
    """Return where a row's next place goes; NULL when there is no memory, and then nothing changes."""
    cdef void* moved
    if row.places == NULL and row.count == 0:
        return &row.only
    if row.count >= row.capacity:
        moved = array_grow(row.places, &row.capacity, 4, sizeof(ChunkPlace))
        if moved == NULL:
            return NULL
        if row.places == NULL:
            (<ChunkPlace*>moved)[0] = row.only
        row.places = <ChunkPlace*>moved
    return &row.places[row.count]


cdef int index_add_chunk(
    SegmentIndex self, const uint8_t* at, uint32_t offset, uint32_t index, Damage* damage
) noexcept nogil:
    cdef uint64_t channel = load_u64(at + offset + CHUNK_CHANNEL)
    cdef ChannelRow* row = index_row(self, channel)
    cdef ChunkPlace* place
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    place = row_next(row)
    if place == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    place.first = load_u64(at + offset + CHUNK_FIRST)
    place.group = load_u64(at + GROUP_NUMBER)
    place.count = load_u32(at + offset + CHUNK_COUNT)
    place.index = index
    place.offset = offset
    place.size = load_u32(at + offset)
    if row.count > 0 and place.first < (place - 1).first + (place - 1).count:
        return damaged(damage, DAMAGE_ORDER, offset, channel)
    row.count += 1
    self.places_count += 1
    return DAMAGE_NONE


cdef void index_forget(SegmentIndex self, const uint8_t* at, uint64_t end) noexcept nogil:
    """Take the chunks of a group before the offset `end` out again; they are the last of their channels."""
    cdef uint64_t offset = GROUP_HEADER_BYTES + <uint64_t>load_u32(at + GROUP_ENTRIES_BYTES)
    cdef ChannelRow* row
    while offset < end:
        row = index_row(self, load_u64(at + offset + CHUNK_CHANNEL))  # it is there: the chunk was added
        row.count -= 1
        self.places_count -= 1
        offset += load_u32(at + offset)


cdef int index_add(SegmentIndex self, const uint8_t* at, size_t size, Damage* damage) noexcept nogil:
    """Walk a group's chunks; bounds are checked, checksums are not. All of them are taken in, or none."""
    cdef uint64_t offset, ahead
    cdef uint32_t index = 0
    if group_check_header(at, size, damage) != DAMAGE_NONE:
        return damage.reason
    if size > <size_t>0xffffffff:
        return damaged(damage, DAMAGE_SIZE, GROUP_SIZE, 0)
    offset = ahead = GROUP_HEADER_BYTES + <uint64_t>load_u32(at + GROUP_ENTRIES_BYTES)
    while offset < size:
        ahead = table_look_ahead(&self.table, at, size, ahead, AHEAD if index == 0 else 1)
        if (chunk_check_bounds(at, offset, size, damage) != DAMAGE_NONE
                or index_add_chunk(self, at, <uint32_t>offset, index, damage) != DAMAGE_NONE):
            index_forget(self, at, offset)
            return damage.reason
        offset += load_u32(at + offset)
        index += 1
    return DAMAGE_NONE


cdef uint32_t row_find(const ChannelRow* row, uint64_t after_sequence) noexcept nogil:
    """Return the first place whose last sequence is past `after_sequence`; `count` when there is none."""
    cdef uint32_t low = 0, high = row.count, middle
    cdef const ChunkPlace* places = row_places(row)
    while low < high:
        middle = low + (high - low) // 2
        if places[middle].first + places[middle].count - 1 > after_sequence:
            high = middle
        else:
            low = middle + 1
    return low


cdef tuple place_tuple(const ChunkPlace* place):
    return (place.group, place.index, place.offset, place.size, place.first, place.count)


cdef class SegmentIndex:
    """Where each channel's chunks stand in one segment.

    `add` belongs to the thread that commits; everything else may be called from any thread at the same time.
    Memory: about 110 bytes a channel, and 32 a chunk of those that have several.
    """

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef ChannelRow* rows = <ChannelRow*>self.table.items
        cdef uint32_t row
        for row in range(self.table.count):
            PyMem_RawFree(rows[row].places)
        table_free(&self.table)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    @property
    def channels(self):
        """How many channels have chunks in the segment."""
        return self.table.count

    @property
    def chunks(self):
        """How many chunks the segment holds."""
        return self.places_count

    def add(self, group):
        """Take in the chunks of a group that was just stored.

        Args:
            group: the whole value; borrowed for the call.

        Raises:
            GroupDamaged: its bounds are wrong, or a channel's sequences go backwards.
            MemoryError: there is no room. Either way none of its chunks is in.
        """
        cdef Py_buffer view
        cdef Damage damage
        cdef int reason
        cdef const uint8_t* at
        PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
        try:
            at = <const uint8_t*>view.buf
            if view.len >= GROUP_HEADER_BYTES and load_u32(at + GROUP_CHUNKS_COUNT) <= CHUNKS_HELD_MAX:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
                reason = index_add(self, at, <size_t>view.len, &damage)
                PyThread_release_lock(self.lock)
            else:
                with nogil:
                    PyThread_acquire_lock(self.lock, WAIT_LOCK)
                    reason = index_add(self, at, <size_t>view.len, &damage)
                    PyThread_release_lock(self.lock)
        finally:
            PyBuffer_Release(&view)
        if reason != DAMAGE_NONE:
            raise damage_error(&damage)

    def find(self, uint64_t channel, uint64_t after_sequence, uint64_t bytes_max,
             uint64_t before_sequence=UINT64_MAX):
        """Return where the chunks of a channel stand whose last sequence is past `after_sequence`.

        Args:
            channel: its id.
            after_sequence: 0 for all of them.
            bytes_max: stop before the chunk that would carry the sum of sizes past this; at least one is returned.
            before_sequence: only chunks that begin before it.

        Returns:
            A list of (group, index, offset, size, first, count) in the order of sequences; empty when there is none.
        """
        cdef ChunkPlace* places = NULL
        cdef uint32_t count, at
        cdef list found = []
        PyThread_acquire_lock(self.lock, WAIT_LOCK)
        count = index_copy(self, channel, after_sequence, bytes_max, before_sequence, &places)
        PyThread_release_lock(self.lock)
        if count > 0 and places == NULL:
            raise MemoryError
        # Python objects are made after the lock is let go: making them may hand the interpreter lock to another
        # thread, which may then wait for ours.
        try:
            for at in range(count):
                found.append(place_tuple(&places[at]))
        finally:
            PyMem_RawFree(places)
        return found

    def pages(self):
        """Emit the index as sorted pages, for a segment that gets no more groups.

        Returns:
            A list of (key, page) in the order of keys: the key is the first entry's (channel, first), big-endian,
            16 bytes; a page is at most `PAGE_BYTES_MAX` bytes. Together as large as 40 bytes a chunk.
        """
        cdef uint32_t count = self.table.count
        cdef Keyed* order = <Keyed*>PyMem_RawMalloc((2 * <size_t>count + 1) * sizeof(Keyed))
        cdef Keyed* rows
        cdef list pages = []
        cdef PageWriter writer = PageWriter()
        if order == NULL:
            raise MemoryError
        try:
            with nogil:
                rows = index_sort(self, order)
            while True:
                with nogil:
                    writer.fill(rows, count)
                if writer.count == 0:
                    return pages
                pages.append(writer.emit())
        finally:
            PyMem_RawFree(order)


cdef Keyed* index_sort(SegmentIndex self, Keyed* order) noexcept nogil:
    """Sort the channels' rows into an array with room for twice as many; answers where in it they are."""
    cdef const ChannelRow* rows = <const ChannelRow*>self.table.items
    cdef uint32_t row
    for row in range(self.table.count):
        order[row] = Keyed(rows[row].channel, &rows[row])
    return keyed_sort(order, order + self.table.count, self.table.count)


cdef uint32_t index_copy(
    SegmentIndex self, uint64_t channel, uint64_t after_sequence, uint64_t bytes_max, uint64_t before_sequence,
    ChunkPlace** places
) noexcept nogil:
    """Copy the places that `find` returns; a count without places means that there is no memory."""
    cdef uint32_t found = table_find(&self.table, channel)
    cdef const ChannelRow* row
    cdef const ChunkPlace* held
    cdef uint32_t begin, end
    cdef uint64_t taken = 0
    if found == 0:
        return 0
    row = &(<const ChannelRow*>self.table.items)[found - 1]
    begin = end = row_find(row, after_sequence)
    held = row_places(row)
    while (end < row.count and held[end].first < before_sequence
           and (end == begin or taken + held[end].size <= bytes_max)):
        taken += held[end].size
        end += 1
    if end > begin:
        places[0] = <ChunkPlace*>PyMem_RawMalloc((end - begin) * sizeof(ChunkPlace))
        if places[0] != NULL:
            memcpy(places[0], held + begin, (end - begin) * sizeof(ChunkPlace))
    return end - begin


# --- Index pages --------------------------------------------------------------------------------------------------

cdef class PageWriter:
    """Fills one page after the other."""

    cdef uint8_t page[PAGE_HEADER_BYTES + PAGE_ENTRIES_MAX * PAGE_ENTRY_BYTES]
    cdef uint32_t count
    cdef uint32_t row                   # where the next page begins: a row, and a place of it
    cdef uint32_t place

    cdef void fill(self, const Keyed* rows, uint32_t count) noexcept nogil:
        """Put the next places into an empty page: as many as there are, or as have room."""
        cdef const ChannelRow* row
        while self.row < count and self.count < PAGE_ENTRIES_MAX:
            if self.row + AHEAD < count:
                memory_prefetch(rows[self.row + AHEAD].item)
            row = <const ChannelRow*>rows[self.row].item
            while self.place < row.count and self.count < PAGE_ENTRIES_MAX:
                self.add(row.channel, &row_places(row)[self.place])
                self.place += 1
            if self.place == row.count:
                self.row += 1
                self.place = 0

    cdef void add(self, uint64_t channel, const ChunkPlace* place) noexcept nogil:
        cdef uint8_t* entry = self.page + PAGE_HEADER_BYTES + self.count * PAGE_ENTRY_BYTES
        store_u64(entry, channel)
        store_u64(entry + 8, place.first)
        store_u64(entry + 16, place.group)
        store_u32(entry + 24, place.count)
        store_u32(entry + 28, place.index)
        store_u32(entry + 32, place.offset)
        store_u32(entry + 36, place.size)
        self.count += 1

    cdef tuple emit(self):
        cdef uint32_t size = PAGE_HEADER_BYTES + self.count * PAGE_ENTRY_BYTES
        cdef const uint8_t* entry = self.page + PAGE_HEADER_BYTES
        cdef bytes key = page_key(load_u64(entry), load_u64(entry + 8))
        store_u32(self.page, size)
        store_u32(self.page + 8, PAGE_MAGIC)
        store_u32(self.page + 12, self.count)
        store_u32(self.page + 4, crc32c(0, self.page + 8, size - 8))
        self.count = 0
        return key, PyBytes_FromStringAndSize(<const char*>self.page, size)


def page_key(uint64_t channel, uint64_t first):
    """Return the key of an index page that begins with (channel, first): both big-endian, 16 bytes."""
    return channel.to_bytes(8, "big") + first.to_bytes(8, "big")


cdef bint page_check(const uint8_t* at, size_t size) noexcept nogil:
    return (
        size >= PAGE_HEADER_BYTES
        and load_u32(at) == size
        and load_u32(at + 8) == PAGE_MAGIC
        and load_u32(at + 12) == (size - PAGE_HEADER_BYTES) // PAGE_ENTRY_BYTES
        and crc32c(0, at + 8, size - 8) == load_u32(at + 4)
    )


cdef uint32_t page_find(const uint8_t* entries, uint32_t count, uint64_t channel, uint64_t after) noexcept nogil:
    """Return the first entry at or past the channel's first chunk whose last sequence is past `after`."""
    cdef uint32_t low = 0, high = count, middle
    cdef const uint8_t* entry
    cdef uint64_t entry_channel
    while low < high:
        middle = low + (high - low) // 2
        entry = entries + middle * PAGE_ENTRY_BYTES
        entry_channel = load_u64(entry)
        if entry_channel > channel or (
            entry_channel == channel and load_u64(entry + 8) + load_u32(entry + 24) - 1 > after
        ):
            high = middle
        else:
            low = middle + 1
    return low


def find_in_page(page, uint64_t channel, uint64_t after_sequence, uint64_t bytes_max,
                 uint64_t before_sequence=UINT64_MAX):
    """Look a channel up in one page of a sealed segment's index.

    Args:
        page: the stored value; borrowed for the call.
        channel: the channel's id.
        after_sequence: 0 for all of its chunks.
        bytes_max, before_sequence: as in `SegmentIndex.find`.

    Returns:
        (places as `SegmentIndex.find` returns them, whether the next page may hold more of them).

    Raises:
        GroupDamaged: the page's checksum or bounds are wrong.

    Any thread.
    """
    cdef Py_buffer view
    cdef const uint8_t* entries
    cdef const uint8_t* entry
    cdef uint32_t count, at
    cdef uint64_t taken = 0
    cdef list places = []
    PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
    try:
        if not page_check(<const uint8_t*>view.buf, <size_t>view.len):
            raise GroupDamaged(_REASONS[DAMAGE_PAGE], 0, channel)
        entries = <const uint8_t*>view.buf + PAGE_HEADER_BYTES
        count = load_u32(<const uint8_t*>view.buf + 12)
        at = page_find(entries, count, channel, after_sequence)
        while at < count:
            entry = entries + at * PAGE_ENTRY_BYTES
            if (load_u64(entry) != channel or load_u64(entry + 8) >= before_sequence
                    or (places and taken + load_u32(entry + 36) > bytes_max)):
                return places, False
            places.append((
                load_u64(entry + 16), load_u32(entry + 28), load_u32(entry + 32),
                load_u32(entry + 36), load_u64(entry + 8), load_u32(entry + 24),
            ))
            taken += load_u32(entry + 36)
            at += 1
        return places, True
    finally:
        PyBuffer_Release(&view)
