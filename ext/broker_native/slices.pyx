"""Makes the archive's rows out of a slice: consecutive sealed segments, merged by channel in one ascending pass.

A segment has its chunks sorted by (channel, first sequence) in its index, and what it changes in the tables by channel.
The merger walks all segments of a slice side by side, and the archive beside them. For each channel it takes what the
archive does not have yet: it extends the channel's last row where that is cheap, cuts the rest into new rows, deletes
what a trim or drop says is gone, and writes the channel's row. Nothing is held but one channel and the rows of one
transaction.

What a slice says once, it may say again: sequences below the channel row's `next` are passed over, so a pass that was
cut short after any transaction may be repeated from its beginning, with as many segments or more. All rows of a channel
change in one transaction, but for more deletions than one takes; those go from the oldest row on, and the row's `first`
with them.

A chunk's checksum is proved before its records go into another row, and so is the archive's row that they go into. The
caller sees to it that neither the segments nor the snapshot of the archive are written over meanwhile. Nothing here
writes, and nothing knows of LMDB.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from broker_native.btree cimport Span, span_compare
from broker_native.chunks cimport (
    TAKE_DAMAGED,
    TAKE_DONE,
    TAKE_NO_MEMORY,
    builder_finish,
    builder_free,
    builder_take,
)
from broker_native.crc32c cimport crc32c
from broker_native.index cimport PAGE_ENTRY_BYTES, PAGE_HEADER_BYTES
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_CRC,
    CHUNK_EPOCH,
    CHUNK_FIRST,
    CHUNK_HEADER_BYTES,
    ENTRY_CHANNEL,
    ENTRY_DROP,
    ENTRY_EPOCH,
    ENTRY_HEAD,
    ENTRY_HEADER_BYTES,
    ENTRY_TRIM,
    GROUP_ENTRIES_BYTES,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_NUMBER,
    load_u16,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
    store_u64,
)
from broker_native.rows cimport (
    CHANNEL_KEY_BYTES,
    CHANNEL_ROW_BYTES,
    CHANNEL_ROW_FORMAT,
    CHUNK_KEY_BYTES,
    ROW_CHANNEL,
    ROW_CHUNK,
    ROW_CRC_BYTES,
    ROW_NAME,
    chunk_sound,
    load_key_u64,
    row_crc,
    row_sound,
    store_key_u64,
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

cdef extern from "<stdint.h>" nogil:
    const uint64_t U64_MAX "UINT64_MAX"
    const uint32_t U32_MAX "UINT32_MAX"

cdef enum:
    SLICE_GOOD = 0
    SLICE_MEMORY = 1
    SLICE_TREE = 2                # a page of the file is not what LMDB writes, or a row's checksum is wrong
    SLICE_PAGE = 3                # an index page or table page
    SLICE_COUNT = 4               # groups or pages are missing
    SLICE_PLACE = 5               # no such chunk where the index says
    SLICE_CHUNK = 6               # a chunk's checksum, or its records
    SLICE_ENTRY = 7               # entries that cannot be
    SLICE_GAP = 8                 # sequences are missing
    SLICE_ROW = 9                 # rows of the archive contradict each other

    PAGE_BYTES = 4096             # what a page costs that is written anew
    OVERFLOW_HEADER_BYTES = 16
    NAME_AT = 20                  # in a CHANNEL entry
    CHANNEL_ENTRY_BYTES = 21
    EPOCH_BYTES = 32
    HEAD_BYTES = 40
    TRIM_BYTES = 32
    DROP_BYTES = 16

_REASONS = {
    SLICE_TREE: "structure",
    SLICE_PAGE: "page checksum",
    SLICE_COUNT: "count of rows",
    SLICE_PLACE: "chunk place",
    SLICE_CHUNK: "chunk checksum",
    SLICE_ENTRY: "table entry",
    SLICE_GAP: "sequence order",
    SLICE_ROW: "channel row",
}


class SliceDamaged(ValueError):
    """What a slice reads is not what was written.

    Attributes:
        reason: What is wrong, in words that `corrupt` can put before "is wrong".
        source: The index of the segment in the slice; None for the archive.
        group: The group concerned, 0 when none is.
        offset: Where, in bytes from the beginning of the group, or of the file when there is no group.
        channel: The id of the channel that was being merged, 0 when none was.
    """

    def __init__(self, reason, source, group, offset, channel):
        super().__init__(reason, source, group, offset, channel)
        self.reason = reason
        self.source = source
        self.group = group
        self.offset = offset
        self.channel = channel


class SliceRows:
    """What one transaction writes. Deletions come first, since a name that is freed may be given again.

    Attributes:
        deletes: Keys.
        names, channels, chunks: (key, value), channels and chunks ascending.
        channels_added, records_added, bytes_added: How the archive's totals change.
        dirty_bytes: About what it writes.
        done: Whether the slice has no channel left.
    """

    __slots__ = (
        "bytes_added", "channels", "channels_added", "chunks", "deletes", "dirty_bytes", "done", "names",
        "records_added",
    )


# -- buffers -----------------------------------------------------------------------------------------------------------


cdef uint8_t* buffer_room(RowBuffer* buffer, size_t size) noexcept nogil:
    """Where the next bytes may be written, `size` of them at most; NULL when there is no memory."""
    cdef size_t capacity = buffer.capacity if buffer.capacity else 4096
    cdef void* moved
    while capacity - buffer.size < size:
        capacity *= 2
    if capacity != buffer.capacity:
        moved = PyMem_RawRealloc(buffer.data, capacity)
        if moved == NULL:
            return NULL
        buffer.data = <uint8_t*>moved
        buffer.capacity = capacity
    return buffer.data + buffer.size


cdef bint buffer_append(RowBuffer* buffer, const uint8_t* data, size_t size) noexcept nogil:
    cdef uint8_t* at = buffer_room(buffer, size)
    if at == NULL:
        return False
    memcpy(at, data, size)
    buffer.size += size
    return True


cdef uint8_t* buffer_row(RowBuffer* buffer, uint32_t key_size, uint32_t value_size) noexcept nogil:
    """Add a row; answers where its key goes, and its value behind that. NULL when there is no memory."""
    cdef uint8_t* at = buffer_room(buffer, 8 + <size_t>key_size + value_size)
    if at == NULL:
        return NULL
    store_u32(at, key_size)
    store_u32(at + 4, value_size)
    buffer.size += 8 + <size_t>key_size + value_size
    return at + 8


cdef list buffer_take(RowBuffer* buffer, bint keys_only):
    """The rows as Python objects; the buffer is empty then."""
    cdef list rows = []
    cdef size_t at = 0
    cdef uint32_t key_size, value_size
    cdef const char* key
    while at < buffer.size:
        key_size = load_u32(buffer.data + at)
        value_size = load_u32(buffer.data + at + 4)
        key = <const char*>buffer.data + at + 8
        if keys_only:
            rows.append(PyBytes_FromStringAndSize(key, key_size))
        else:
            rows.append((PyBytes_FromStringAndSize(key, key_size),
                         PyBytes_FromStringAndSize(key + key_size, value_size)))
        at += 8 + <size_t>key_size + value_size
    buffer.size = 0
    return rows


# -- heaps of sources --------------------------------------------------------------------------------------------------


cdef inline bint waiting_before(const Waiting* left, const Waiting* right) noexcept nogil:
    """By channel, and among those of one channel the older segment first."""
    return left.channel < right.channel or (left.channel == right.channel and left.source < right.source)


cdef void heap_sink(Waiting* heap, uint32_t count, uint32_t at) noexcept nogil:
    """Let what stands at a place sink to where it belongs."""
    cdef Waiting moving = heap[at]
    cdef uint32_t child
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and waiting_before(&heap[child + 1], &heap[child]):
            child += 1
        if not waiting_before(&heap[child], &moving):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moving


cdef void heap_begin(Waiting* heap, uint32_t count) noexcept nogil:
    cdef uint32_t at = count // 2
    while at:
        at -= 1
        heap_sink(heap, count, at)


# -- one segment -------------------------------------------------------------------------------------------------------


cdef int source_groups(Source* source, TreeCursor* cursor, uint64_t last_group, uint64_t expected) noexcept nogil:
    """Note where the good groups stand. A segment that was given up may hold one more, which is void."""
    cdef uint8_t first[1]
    cdef Span wanted
    cdef int state
    cdef GroupPlace* place
    first[0] = 0
    wanted.at = first
    wanted.size = 1
    state = cursor_seek(cursor, &wanted)
    while state == CURSOR_ROW and cursor.key.size == 8 and cursor.key.at[0] == 0:
        if load_key_u64(cursor.key.at) > last_group:
            break
        if source.groups_count == expected:
            return SLICE_COUNT
        place = &source.groups[source.groups_count]
        place.number = load_key_u64(cursor.key.at)
        place.at = cursor.value.at
        place.size = cursor.value.size
        if (place.size < GROUP_HEADER_BYTES or load_u32(place.at) != GROUP_MAGIC
                or load_u64(place.at + GROUP_NUMBER) != place.number
                or load_u32(place.at + GROUP_ENTRIES_BYTES) > place.size - GROUP_HEADER_BYTES):
            return SLICE_PLACE
        source.groups_count += 1
        state = cursor_next(cursor)
    if state == CURSOR_DAMAGED:
        return SLICE_TREE
    return SLICE_GOOD if source.groups_count == expected else SLICE_COUNT


cdef const GroupPlace* source_group(const Source* source, uint64_t number) noexcept nogil:
    """A group by its number; NULL when there is none."""
    cdef uint64_t low = 0, high = source.groups_count, middle
    # Numbers go up by one unless a commit failed, so the first guess is nearly always right.
    if high and number >= source.groups[0].number:
        middle = number - source.groups[0].number
        if middle < high and source.groups[middle].number == number:
            return &source.groups[middle]
    while low < high:
        middle = low + (high - low) // 2
        if source.groups[middle].number < number:
            low = middle + 1
        else:
            high = middle
    if low < source.groups_count and source.groups[low].number == number:
        return &source.groups[low]
    return NULL


cdef bint page_sound(const Span* page) noexcept nogil:
    return (page.size >= PAGE_HEADER_BYTES and load_u32(page.at) == page.size
            and load_u32(page.at + 4) == crc32c(0, page.at + 8, page.size - 8))


cdef int page_enter(TreeCursor* cursor, const char* kind, uint32_t kind_size, int state) noexcept nogil:
    """Look at the row that a cursor came to: CURSOR_ROW when it is a good page of the kind."""
    if state != CURSOR_ROW:
        return state
    if cursor.key.size < kind_size or memcmp(cursor.key.at, kind, kind_size) != 0:
        return CURSOR_END
    return CURSOR_ROW if page_sound(&cursor.value) else CURSOR_DAMAGED


cdef int source_index_page(Source* source, int state) noexcept nogil:
    """Stand on the first entry of the index page that the cursor came to, or at the end."""
    state = page_enter(&source.index, b"index", 5, state)
    if state == CURSOR_DAMAGED:
        return SLICE_PAGE
    if state == CURSOR_END:
        source.entry = NULL
        return SLICE_GOOD if source.pages == source.pages_expected else SLICE_COUNT
    source.pages += 1
    source.entry = source.index.value.at + PAGE_HEADER_BYTES
    source.page_end = source.index.value.at + source.index.value.size
    if (source.page_end == source.entry
            or load_u32(source.index.value.at + 12) * <uint64_t>PAGE_ENTRY_BYTES
            != <uint64_t>(source.page_end - source.entry)):
        return SLICE_PAGE
    return SLICE_GOOD


cdef int source_next_entry(Source* source) noexcept nogil:
    source.entry += PAGE_ENTRY_BYTES
    if source.entry < source.page_end:
        return SLICE_GOOD
    return source_index_page(source, cursor_next(&source.index))


cdef int source_check_table(Source* source) noexcept nogil:
    """Check that the next channel's entries lie within what there is."""
    if source.table_at == source.table_end:
        source.table_at = NULL
        return SLICE_GOOD
    if (source.table_end - source.table_at < TABLE_HEAD_BYTES
            or load_u32(source.table_at + 8) > source.table_end - source.table_at - TABLE_HEAD_BYTES):
        return SLICE_ENTRY
    return SLICE_GOOD


cdef int source_table_page(Source* source, int state) noexcept nogil:
    """Stand on the first item of the table page that the cursor came to, or at the end.

    Each page says from where on and up to where it holds all there is, so that no page is passed over unseen.
    """
    cdef const uint8_t* page = source.tables.value.at
    cdef Span low
    state = page_enter(&source.tables, b"table", 5, state)
    if state == CURSOR_DAMAGED:
        return SLICE_PAGE
    if state == CURSOR_END:
        source.table_at = NULL
        return SLICE_GOOD if source.bound.at != NULL and source.bound.size == 0 else SLICE_COUNT
    page = source.tables.value.at
    if (source.tables.value.size < TABLE_PAGE_HEADER_BYTES
            or load_u32(page + 20) < TABLE_PAGE_HEADER_BYTES or load_u32(page + 20) > source.tables.value.size
            or load_u32(page + 24) + <uint64_t>load_u32(page + 28) != source.tables.value.size - load_u32(page + 20)):
        return SLICE_PAGE
    source.table_at = page + TABLE_PAGE_HEADER_BYTES
    source.table_end = page + load_u32(page + 20)
    low.at = source.table_end
    low.size = load_u32(page + 24)
    if (low.size != 0) if source.bound.at == NULL else (span_compare(&low, &source.bound) != 0):
        return SLICE_COUNT
    source.bound.at = low.at + low.size
    source.bound.size = load_u32(page + 28)
    if source.table_at == source.table_end:
        return source_table_page(source, cursor_next(&source.tables))
    return source_check_table(source)


cdef int source_next_table(Source* source) noexcept nogil:
    source.table_at += TABLE_HEAD_BYTES + load_u32(source.table_at + 8)
    if source.paged and source.table_at == source.table_end:
        return source_table_page(source, cursor_next(&source.tables))
    return source_check_table(source)


cdef int source_begin(Source* source) noexcept nogil:
    """Go to the first index entry and the first channel's table entries."""
    cdef Span wanted
    cdef int reason
    wanted.at = <const uint8_t*>b"index"
    wanted.size = 5
    reason = source_index_page(source, cursor_seek(&source.index, &wanted))
    if reason != SLICE_GOOD or not source.paged:
        return reason if reason != SLICE_GOOD else source_check_table(source)
    wanted.at = <const uint8_t*>b"table"
    return source_table_page(source, cursor_seek(&source.tables, &wanted))


cdef class SliceSource:
    """One sealed segment of a slice.

    Args:
        reader: Its tree. The file must not be unmapped before this is gone.
        last_group: The number of its last good group.
        groups: How many good groups it holds.
        pages: How many index pages.
        tables: The table entries sorted by channel, when they do not stand in pages; see slices.pxd.

    Raises:
        SliceDamaged: The segment is not what was written; its `source` is 0.
    """

    def __init__(self, TreeReader reader not None, uint64_t last_group, uint64_t groups, uint64_t pages, bytes tables):
        cdef TreeCursor cursor
        cdef int reason
        cdef Source* source = &self.source
        if source.groups != NULL:
            raise ValueError("the source is set up already")
        self.reader = reader
        self.tables = tables
        source.groups = <GroupPlace*>PyMem_RawCalloc(groups + 1, sizeof(GroupPlace))
        if source.groups == NULL:
            raise MemoryError
        source.pages_expected = pages
        source.paged = tables is None
        if tables is not None:
            source.table_at = <const uint8_t*>PyBytes_AS_STRING(tables)
            source.table_end = source.table_at + PyBytes_GET_SIZE(tables)
        reader.begin(&cursor)
        reader.begin(&source.index)
        reader.begin(&source.tables)
        with nogil:
            reason = source_groups(source, &cursor, last_group, groups)
            if reason == SLICE_GOOD:
                reason = source_begin(source)
        if reason != SLICE_GOOD:
            raise SliceDamaged(_REASONS[reason], 0, 0, cursor.walk.damage or source.index.walk.damage, 0)

    def __dealloc__(self):
        PyMem_RawFree(self.source.groups)

    def __len__(self):
        return self.source.groups_count

    def group(self, uint64_t index):
        """A group by its place in the segment: (its number, the value); borrowed from the map.

        Its chunks are proved by the time that a merger has merged them all.
        """
        cdef const GroupPlace* place
        if index >= self.source.groups_count:
            raise IndexError(f"group {index} of {self.source.groups_count}")
        place = &self.source.groups[index]
        return place.number, PyMemoryView_FromMemory(<char*>place.at, <Py_ssize_t>place.size, PyBUF_READ)


# -- a channel's entries -----------------------------------------------------------------------------------------------


cdef uint32_t entry_bytes_min(uint16_t kind) noexcept nogil:
    if kind == ENTRY_CHANNEL:
        return CHANNEL_ENTRY_BYTES
    if kind == ENTRY_EPOCH:
        return EPOCH_BYTES
    if kind == ENTRY_HEAD:
        return HEAD_BYTES
    if kind == ENTRY_TRIM:
        return TRIM_BYTES
    if kind == ENTRY_DROP:
        return DROP_BYTES
    return ENTRY_HEADER_BYTES


cdef bint epochs_have(const RowBuffer* epochs, uint64_t epoch) noexcept nogil:
    cdef size_t at = epochs.size
    while at:
        at -= EPOCH_BYTES
        if load_u64(epochs.data + at + 16) == epoch:
            return True
    return False


cdef int take_entry(SliceMerger self, const uint8_t* at, uint16_t kind, bint stored) noexcept nogil:
    """Take one checked entry of the channel in, of its row in the archive (`stored`) or of the slice."""
    cdef Stored* channel = &self.stored
    if kind == ENTRY_CHANNEL:
        if load_u32(at) < <uint32_t>NAME_AT + at[18]:
            return SLICE_ENTRY
        channel.created = at
        channel.announced = channel.announced or not stored
    elif kind == ENTRY_EPOCH:
        if not epochs_have(&self.epochs, load_u64(at + 16)):
            channel.changed = channel.changed or not stored
            if not buffer_append(&self.epochs, at, EPOCH_BYTES):
                return SLICE_MEMORY
    elif kind == ENTRY_HEAD:
        if stored:
            channel.epoch = load_u64(at + 16)
            channel.next = load_u64(at + 24)
            channel.first = load_u64(at + 32)
        else:
            channel.head = load_u64(at + 24)
            if load_u64(at + 32) > channel.trim:
                channel.trim = load_u64(at + 32)
    elif kind == ENTRY_TRIM:
        if load_u64(at + 16) > channel.trim:
            channel.trim = load_u64(at + 16)
    else:
        channel.dropped = True  # the last of the kinds that `entry_bytes_min` knows
    return SLICE_GOOD


cdef int take_entries(SliceMerger self, const uint8_t* at, size_t size, bint stored) noexcept nogil:
    cdef const uint8_t* end = at + size
    cdef uint32_t entry_size
    cdef uint16_t kind
    cdef int reason
    while at < end:
        if end - at < ENTRY_HEADER_BYTES:
            return SLICE_ENTRY
        entry_size = load_u32(at)
        kind = load_u16(at + 4)
        if entry_size < entry_bytes_min(kind) or entry_size > end - at:
            return SLICE_ENTRY
        if entry_bytes_min(kind) > ENTRY_HEADER_BYTES:
            if load_u64(at + ENTRY_HEADER_BYTES) != self.stored.channel:
                return SLICE_ENTRY
            reason = take_entry(self, at, kind, stored)
            if reason != SLICE_GOOD:
                return reason
        at += entry_size
    return SLICE_GOOD


# -- what the archive has ----------------------------------------------------------------------------------------------


cdef int at_archive(SliceMerger self, int reason, const TreeCursor* cursor) noexcept nogil:
    self.damaged_source = -1
    self.damaged_group = 0
    self.damaged_offset = cursor.walk.damage
    return reason


cdef void mark_dirty(SliceMerger self, const TreeCursor* cursor) noexcept nogil:
    """Count the leaf that a cursor is in, on a row, as one to be written anew."""
    if cursor.pages[cursor.depth - 1] != self.leaf:
        self.leaf = cursor.pages[cursor.depth - 1]
        self.dirty_bytes += PAGE_BYTES


cdef int seek(TreeCursor* cursor, const uint8_t* key, uint32_t size) noexcept nogil:
    cdef Span wanted
    wanted.at = key
    wanted.size = size
    return cursor_seek(cursor, &wanted)


cdef inline bint is_key(const Span* found, const uint8_t* key, uint32_t size) noexcept nogil:
    return found.size == size and memcmp(found.at, key, size) == 0


cdef inline bint in_channel(const TreeCursor* cursor, uint64_t channel) noexcept nogil:
    """Whether a cursor that is on a row is on a chunk of the channel."""
    return (cursor.key.size == CHUNK_KEY_BYTES and cursor.key.at[0] == ROW_CHUNK
            and load_key_u64(cursor.key.at + 1) == channel)


cdef int prove_absence(SliceMerger self, int state) noexcept nogil:
    """Prove what stands around the place of a row that is not there: a changed key could be that row's.

    New channels come one after the other to the same place, so what was proved last is not proved again.
    """
    cdef TreeCursor* cursor = &self.channels
    if state == CURSOR_ROW and cursor.value.at != self.proved_after:
        if not row_sound(&cursor.key, &cursor.value):
            return at_archive(self, SLICE_ROW, cursor)
        self.proved_after = cursor.value.at
    state = cursor_prev(cursor)
    if state == CURSOR_ROW and cursor.value.at != self.proved_before:
        if not row_sound(&cursor.key, &cursor.value):
            return at_archive(self, SLICE_ROW, cursor)
        self.proved_before = cursor.value.at
    return at_archive(self, SLICE_TREE, cursor) if state == CURSOR_DAMAGED else SLICE_GOOD


cdef int load_channel(SliceMerger self) noexcept nogil:
    """Read the channel's row."""
    cdef uint8_t key[CHANNEL_KEY_BYTES]
    cdef Stored* channel = &self.stored
    cdef const Span* value = &self.channels.value
    cdef int state, reason
    key[0] = ROW_CHANNEL
    store_key_u64(key + 1, channel.channel)
    state = seek(&self.channels, key, CHANNEL_KEY_BYTES)
    if state == CURSOR_DAMAGED:
        return at_archive(self, SLICE_TREE, &self.channels)
    if state == CURSOR_END or not is_key(&self.channels.key, key, CHANNEL_KEY_BYTES):
        return prove_absence(self, state)
    if (not row_sound(&self.channels.key, value) or value.size < CHANNEL_ROW_BYTES
            or load_u16(value.at + 4) != CHANNEL_ROW_FORMAT):
        return at_archive(self, SLICE_ROW, &self.channels)
    channel.found = True
    channel.bytes = load_u64(value.at + 8)
    channel.chunks = load_u64(value.at + 16)
    reason = take_entries(self, value.at + CHANNEL_ROW_BYTES, value.size - CHANNEL_ROW_BYTES, True)
    return at_archive(self, reason, &self.channels) if reason != SLICE_GOOD else SLICE_GOOD


cdef int seek_chunk(SliceMerger self, uint64_t sequence) noexcept nogil:
    cdef uint8_t key[CHUNK_KEY_BYTES]
    key[0] = ROW_CHUNK
    store_key_u64(key + 1, self.stored.channel)
    store_key_u64(key + 9, sequence)
    return seek(&self.chunks, key, CHUNK_KEY_BYTES)


cdef int delete_row(SliceMerger self, const Span* key) noexcept nogil:
    cdef uint8_t* at = buffer_row(&self.deletes, <uint32_t>key.size, 0)
    if at == NULL:
        return SLICE_MEMORY
    memcpy(at, key.at, key.size)
    return SLICE_GOOD


cdef int delete_below(SliceMerger self, uint64_t first) noexcept nogil:
    """Delete the channel's rows that end before `first`, so many as one transaction takes; `first` follows them.

    Where a row ends is where the next one begins: rows are dense, and no value need be read.
    """
    cdef Stored* channel = &self.stored
    cdef uint64_t row_first, row_end, row_bytes
    cdef Span key
    cdef uint32_t deleted = 0
    cdef int state = seek_chunk(self, 0)
    while state == CURSOR_ROW and in_channel(&self.chunks, channel.channel):
        key = self.chunks.key
        row_first = load_key_u64(key.at + 9)
        row_bytes = self.chunks.value.size
        mark_dirty(self, &self.chunks)
        state = cursor_next(&self.chunks)
        if state == CURSOR_DAMAGED:
            break
        row_end = channel.next
        if state == CURSOR_ROW and in_channel(&self.chunks, channel.channel):
            row_end = load_key_u64(self.chunks.key.at + 9)
        if row_end > first:
            return SLICE_GOOD
        if deleted == ROWS_DELETED_MAX:
            self.unfinished = True
            return SLICE_GOOD
        if row_end <= row_first:
            return at_archive(self, SLICE_ROW, &self.chunks)
        if delete_row(self, &key) != SLICE_GOOD:
            return SLICE_MEMORY
        deleted += 1
        # Totals are for statistics and bounds: that they do not add up is no reason to keep what is gone.
        channel.bytes -= row_bytes if row_bytes < channel.bytes else channel.bytes
        channel.chunks -= 1 if channel.chunks else 0
        channel.first = row_end
        channel.changed = True
        self.bytes_added -= <int64_t>row_bytes
        self.records_added -= <int64_t>(row_end - row_first)
    return at_archive(self, SLICE_TREE, &self.chunks) if state == CURSOR_DAMAGED else SLICE_GOOD


cdef int delete_channel(SliceMerger self) noexcept nogil:
    """Delete what the archive has of a dropped channel: its chunks, then its row and its name."""
    cdef Stored* channel = &self.stored
    cdef uint8_t key[256]
    cdef Span wanted
    cdef uint32_t size
    cdef int state, reason
    if not channel.found:
        return SLICE_GOOD
    reason = delete_below(self, U64_MAX)
    if reason != SLICE_GOOD or self.unfinished:
        return reason
    key[0] = ROW_CHANNEL
    store_key_u64(key + 1, channel.channel)
    wanted.at = key
    wanted.size = CHANNEL_KEY_BYTES
    self.channels_added -= 1
    if delete_row(self, &wanted) != SLICE_GOOD:
        return SLICE_MEMORY
    if channel.created == NULL:
        return SLICE_GOOD
    size = channel.created[18]
    key[0] = ROW_NAME
    memcpy(key + 1, channel.created + NAME_AT, size)
    state = seek(&self.names, key, size + 1)
    if state == CURSOR_DAMAGED:
        return at_archive(self, SLICE_TREE, &self.names)
    # The name may be another channel's by now.
    if (state == CURSOR_ROW and is_key(&self.names.key, key, size + 1)
            and self.names.value.size == ROW_CRC_BYTES + 8
            and load_u64(self.names.value.at + ROW_CRC_BYTES) == channel.channel):
        mark_dirty(self, &self.names)
        return delete_row(self, &self.names.key)
    return SLICE_GOOD


# -- rows --------------------------------------------------------------------------------------------------------------


cdef uint32_t chunk_limit(uint64_t size, uint32_t whole, uint32_t last_page_min) noexcept nogil:
    """How large a row to make of records that would take `size` bytes in one: no page of it mostly empty.

    A row up to LEAF_CHUNK_BYTES shares a leaf page. A larger one has pages of its own, up to `whole` bytes; when the
    last of them would get less than `last_page_min`, the rest goes into a row of its own.
    """
    cdef uint64_t pages, last_page
    if size <= LEAF_CHUNK_BYTES:
        return LEAF_CHUNK_BYTES
    if size >= whole:
        return whole
    pages = (size + OVERFLOW_HEADER_BYTES) // PAGE_BYTES
    last_page = size + OVERFLOW_HEADER_BYTES - pages * PAGE_BYTES
    if last_page >= last_page_min:
        pages += 1
    return <uint32_t>(pages * PAGE_BYTES - OVERFLOW_HEADER_BYTES) if pages else LEAF_CHUNK_BYTES


cdef uint32_t extension_limit(uint64_t there, uint64_t coming) noexcept nogil:
    """How large a channel's last row may get: within a leaf page, or as much again as is worth the rewriting."""
    if 2 * coming >= there and there + coming <= WHOLE_CHUNK_BYTES:
        return chunk_limit(there + coming, WHOLE_CHUNK_BYTES, LAST_PAGE_BYTES_MIN)
    return LEAF_CHUNK_BYTES


cdef uint32_t new_limit(uint64_t coming) noexcept nogil:
    """How large a new row may get."""
    return chunk_limit(CHUNK_HEADER_BYTES + coming, WHOLE_CHUNK_BYTES, LAST_PAGE_BYTES_MIN)


cdef int put_chunk(SliceMerger self) noexcept nogil:
    """Make a row of what the builder holds."""
    cdef uint64_t first = self.builder.first
    cdef uint32_t size = builder_finish(&self.builder)
    cdef uint8_t* at = buffer_row(&self.put_chunks, CHUNK_KEY_BYTES, size)
    if at == NULL:
        return SLICE_MEMORY
    at[0] = ROW_CHUNK
    store_key_u64(at + 1, self.stored.channel)
    store_key_u64(at + 9, first)
    memcpy(at + CHUNK_KEY_BYTES, self.builder.data, size)
    self.dirty_bytes += size
    self.stored.bytes += size
    self.stored.chunks += 1
    self.bytes_added += size
    return SLICE_GOOD


cdef int put_channel(SliceMerger self) noexcept nogil:
    """Write the channel's row."""
    cdef Stored* channel = &self.stored
    cdef uint32_t created_size = load_u32(channel.created) if channel.created != NULL else 0
    cdef uint32_t size = CHANNEL_ROW_BYTES + created_size + <uint32_t>self.epochs.size + HEAD_BYTES
    cdef uint8_t* key = buffer_row(&self.put_channels, CHANNEL_KEY_BYTES, size)
    cdef uint8_t* value = key + CHANNEL_KEY_BYTES
    cdef uint8_t* at = value + CHANNEL_ROW_BYTES
    if key == NULL:
        return SLICE_MEMORY
    key[0] = ROW_CHANNEL
    store_key_u64(key + 1, channel.channel)
    store_u16(value + 4, CHANNEL_ROW_FORMAT)
    store_u16(value + 6, 0)
    store_u64(value + 8, channel.bytes)
    store_u64(value + 16, channel.chunks)
    if created_size:
        memcpy(at, channel.created, created_size)
        at += created_size
    if self.epochs.size:
        memcpy(at, self.epochs.data, self.epochs.size)
        at += self.epochs.size
    store_u32(at, HEAD_BYTES)
    store_u16(at + 4, ENTRY_HEAD)
    store_u16(at + 6, 0)
    store_u64(at + 8, channel.channel)
    store_u64(at + 16, channel.epoch)
    store_u64(at + 24, channel.next)
    store_u64(at + 32, channel.first)
    store_u32(value, row_crc(key, CHANNEL_KEY_BYTES, value + ROW_CRC_BYTES, size - ROW_CRC_BYTES))
    self.dirty_bytes += size
    return SLICE_GOOD


cdef int put_name(SliceMerger self) noexcept nogil:
    """Let the channel's name lead to it."""
    cdef uint32_t size = self.stored.created[18]
    cdef uint8_t* key = buffer_row(&self.put_names, 1 + size, ROW_CRC_BYTES + 8)
    cdef uint8_t* value = key + 1 + size
    if key == NULL:
        return SLICE_MEMORY
    key[0] = ROW_NAME
    memcpy(key + 1, self.stored.created + NAME_AT, size)
    store_u64(value + ROW_CRC_BYTES, self.stored.channel)
    store_u32(value, row_crc(key, 1 + size, value + ROW_CRC_BYTES, 8))
    self.dirty_bytes += PAGE_BYTES
    return SLICE_GOOD


# -- merging a channel -------------------------------------------------------------------------------------------------


cdef int chunk_wrong(SliceMerger self, int reason, const Incoming* chunk) noexcept nogil:
    self.damaged_source = <int>chunk.source
    self.damaged_group = chunk.group
    self.damaged_offset = chunk.offset
    return reason


cdef uint64_t incoming_bytes(SliceMerger self) noexcept nogil:
    """How many bytes of records come that the archive does not have, a bit more if a chunk is there in part."""
    cdef uint64_t size = 0
    cdef uint32_t at
    for at in range(self.incoming_count):
        if self.incoming[at].next > self.stored.next and self.incoming[at].next > self.stored.first:
            size += load_u32(self.incoming[at].at) - CHUNK_HEADER_BYTES
    return size


cdef int take_last_row(SliceMerger self, uint64_t coming, uint32_t* limit) noexcept nogil:
    """Put the channel's last row into the builder, if it may be extended; `limit` is then how far."""
    cdef Stored* channel = &self.stored
    cdef const Span* value = &self.chunks.value
    cdef int state = seek_chunk(self, U64_MAX)
    limit[0] = 0
    if state != CURSOR_DAMAGED:
        state = cursor_prev(&self.chunks)
    if state == CURSOR_DAMAGED:
        return at_archive(self, SLICE_TREE, &self.chunks)
    if state == CURSOR_END or not in_channel(&self.chunks, channel.channel):
        return at_archive(self, SLICE_ROW, &self.chunks)
    mark_dirty(self, &self.chunks)
    if extension_limit(value.size, coming) <= value.size:
        return SLICE_GOOD
    if (not chunk_sound(&self.chunks.key, value.at, value.size)
            or load_u64(value.at + CHUNK_FIRST) + load_u32(value.at + CHUNK_COUNT) != channel.next):
        return at_archive(self, SLICE_ROW, &self.chunks)
    self.builder.bytes_max = U32_MAX
    state = builder_take(&self.builder, value.at, channel.first - 1, U64_MAX)
    if state != TAKE_DONE:
        return SLICE_MEMORY if state == TAKE_NO_MEMORY else at_archive(self, SLICE_ROW, &self.chunks)
    limit[0] = extension_limit(self.builder.used, coming)
    return SLICE_GOOD


cdef int replace_last_row(SliceMerger self) noexcept nogil:
    """Account for the last row's being written anew with more behind it; its key changes when its front is gone."""
    cdef const Span* value = &self.chunks.value
    cdef uint64_t row_first = load_u64(value.at + CHUNK_FIRST)
    self.stored.bytes -= value.size
    self.stored.chunks -= 1
    self.bytes_added -= <int64_t>value.size
    if self.builder.first == row_first:
        return SLICE_GOOD
    self.records_added -= <int64_t>(self.builder.first - row_first)
    return delete_row(self, &self.chunks.key)


cdef int check_incoming(SliceMerger self, const Incoming* chunk) noexcept nogil:
    cdef uint32_t size = load_u32(chunk.at)
    if crc32c(0, chunk.at + CHUNK_CHANNEL, size - CHUNK_CHANNEL) != load_u32(chunk.at + CHUNK_CRC):
        return chunk_wrong(self, SLICE_CHUNK, chunk)
    if chunk.first > self.stored.next:
        return chunk_wrong(self, SLICE_GAP, chunk)
    return SLICE_GOOD


cdef int merge_chunks(SliceMerger self, bint extend) noexcept nogil:
    """Make rows of what comes."""
    cdef Stored* channel = &self.stored
    cdef uint64_t coming = incoming_bytes(self)
    cdef uint64_t begin, taken
    cdef uint32_t limit = 0
    cdef uint32_t held = 0            # bytes of the last row in the builder, as long as nothing is behind them
    cdef uint32_t at
    cdef Incoming* chunk
    cdef int state, reason
    if coming and extend:
        reason = take_last_row(self, coming, &limit)
        if reason != SLICE_GOOD:
            return reason
        held = self.builder.used
    self.builder.bytes_max = limit if held else new_limit(coming)
    for at in range(self.incoming_count):
        chunk = &self.incoming[at]
        if chunk.next <= channel.next:
            continue
        reason = check_incoming(self, chunk)
        if reason != SLICE_GOOD:
            return reason
        begin = (channel.next if channel.next > channel.first else channel.first) - 1
        while chunk.next > begin + 1:
            state = builder_take(&self.builder, chunk.at, begin, U64_MAX)
            if state == TAKE_NO_MEMORY:
                return SLICE_MEMORY
            if state == TAKE_DAMAGED:
                return chunk_wrong(self, SLICE_CHUNK, chunk)
            if held and self.builder.used > held:
                reason = replace_last_row(self)
                if reason != SLICE_GOOD:
                    return reason
                coming += held - CHUNK_HEADER_BYTES
                held = 0
            if state == TAKE_DONE:
                break
            begin = self.builder.next - 1
            if held:
                self.builder.used = held = 0
            else:
                taken = self.builder.used - CHUNK_HEADER_BYTES
                coming -= taken if taken < coming else coming
                if put_chunk(self) != SLICE_GOOD:
                    return SLICE_MEMORY
            self.builder.bytes_max = new_limit(coming)
        if chunk.next > channel.first:
            self.records_added += <int64_t>(
                chunk.next - (channel.next if channel.next > channel.first else channel.first))
        channel.next = chunk.next
        channel.epoch = load_u64(chunk.at + CHUNK_EPOCH)
        channel.changed = True
    if self.builder.used:
        return put_chunk(self)
    return SLICE_GOOD


cdef int merge_channel(SliceMerger self) noexcept nogil:
    """Make all rows of the channel whose entries and chunks have been gathered."""
    cdef Stored* channel = &self.stored
    cdef int reason
    cdef uint64_t number = channel.channel
    memset(channel, 0, sizeof(Stored))
    channel.channel = number
    channel.first = channel.next = 1
    self.epochs.size = 0
    self.builder.used = 0
    self.unfinished = False
    reason = load_channel(self)
    if reason != SLICE_GOOD:
        return reason
    if self.entries.size:
        reason = take_entries(self, self.entries.data, self.entries.size, False)
        if reason != SLICE_GOOD:
            return reason
    if channel.found:
        mark_dirty(self, &self.channels)
    if channel.dropped:
        return delete_channel(self)
    if not channel.found and self.incoming_count and channel.created == NULL:
        # Of a journal whose beginning is not known: what is there first is where it begins.
        channel.first = channel.next = self.incoming[0].first
    if channel.trim > channel.first:
        if channel.found and channel.first < channel.next:
            reason = delete_below(self, channel.trim)
            if reason != SLICE_GOOD:
                return reason
            if self.unfinished:
                return put_channel(self)
        channel.first = channel.trim
        channel.changed = True
    reason = merge_chunks(self, channel.chunks > 0)
    if reason != SLICE_GOOD:
        return reason
    if channel.head > channel.next or channel.first > channel.next:
        self.damaged_source = <int>self.sources_count - 1
        return SLICE_GAP
    if not channel.found:
        self.channels_added += 1
    elif not (channel.changed or channel.announced):
        return SLICE_GOOD
    if channel.announced and put_name(self) != SLICE_GOOD:
        return SLICE_MEMORY
    return put_channel(self)


# -- the pass ----------------------------------------------------------------------------------------------------------


cdef int gather_chunks(SliceMerger self) noexcept nogil:
    """Collect the chunks of the channel from all segments, in the order of their sequences."""
    cdef Waiting* top = self.chunks_waiting
    cdef Source* source
    cdef const GroupPlace* group
    cdef Incoming* chunk
    cdef void* moved
    cdef uint32_t offset, size
    cdef int reason
    while self.chunks_count and top.channel == self.stored.channel:
        source = self.sources[top.source]
        if self.incoming_count == self.incoming_capacity:
            moved = PyMem_RawRealloc(self.incoming, (self.incoming_capacity * 2 + 64) * sizeof(Incoming))
            if moved == NULL:
                return SLICE_MEMORY
            self.incoming = <Incoming*>moved
            self.incoming_capacity = self.incoming_capacity * 2 + 64
        chunk = &self.incoming[self.incoming_count]
        chunk.source = top.source
        chunk.first = load_u64(source.entry + 8)
        chunk.group = load_u64(source.entry + 16)
        chunk.next = chunk.first + load_u32(source.entry + 24)
        chunk.offset = offset = load_u32(source.entry + 32)
        size = load_u32(source.entry + 36)
        group = source_group(source, chunk.group)
        if (group == NULL or size < CHUNK_HEADER_BYTES or offset < GROUP_HEADER_BYTES
                or <uint64_t>offset + size > group.size or chunk.next <= chunk.first or chunk.first == 0):
            return chunk_wrong(self, SLICE_PLACE, chunk)
        chunk.at = group.at + offset
        if (load_u32(chunk.at) != size or load_u64(chunk.at + CHUNK_CHANNEL) != self.stored.channel
                or load_u64(chunk.at + CHUNK_FIRST) != chunk.first
                or load_u32(chunk.at + CHUNK_COUNT) != chunk.next - chunk.first):
            return chunk_wrong(self, SLICE_PLACE, chunk)
        self.incoming_count += 1
        reason = source_next_entry(source)
        if reason != SLICE_GOOD:
            return chunk_wrong(self, reason, chunk)
        if source.entry == NULL:
            self.chunks_count -= 1
            top[0] = top[self.chunks_count]
        elif load_u64(source.entry) < top.channel:
            return chunk_wrong(self, SLICE_PAGE, chunk)
        else:
            top.channel = load_u64(source.entry)
        heap_sink(top, self.chunks_count, 0)
    return SLICE_GOOD


cdef int gather_entries(SliceMerger self) noexcept nogil:
    """Collect the table entries of the channel from all segments, oldest first."""
    cdef Waiting* top = self.tables_waiting
    cdef Source* source
    cdef int reason
    while self.tables_count and top.channel == self.stored.channel:
        source = self.sources[top.source]
        self.damaged_source = <int>top.source
        if not buffer_append(&self.entries, source.table_at + TABLE_HEAD_BYTES, load_u32(source.table_at + 8)):
            return SLICE_MEMORY
        reason = source_next_table(source)
        if reason != SLICE_GOOD:
            return reason
        if source.table_at == NULL:
            self.tables_count -= 1
            top[0] = top[self.tables_count]
        elif load_u64(source.table_at) <= top.channel:
            return SLICE_ENTRY
        else:
            top.channel = load_u64(source.table_at)
        heap_sink(top, self.tables_count, 0)
    return SLICE_GOOD


cdef int merge_some(SliceMerger self, uint64_t dirty_max, bint* done) noexcept nogil:
    """Merge channel after channel until so much is to be written."""
    cdef int reason
    done[0] = False
    while self.dirty_bytes < dirty_max:
        if not self.unfinished:
            if not self.chunks_count and not self.tables_count:
                done[0] = True
                break
            self.stored.channel = U64_MAX
            if self.chunks_count:
                self.stored.channel = self.chunks_waiting.channel
            if self.tables_count and self.tables_waiting.channel < self.stored.channel:
                self.stored.channel = self.tables_waiting.channel
            self.incoming_count = 0
            self.entries.size = 0
            self.damaged_group = self.damaged_offset = 0
            reason = gather_chunks(self)
            if reason == SLICE_GOOD:
                reason = gather_entries(self)
            if reason != SLICE_GOOD:
                return reason
        reason = merge_channel(self)
        if reason != SLICE_GOOD:
            return reason
        # The rest of its deletions is looked for in what this transaction leaves.
        if self.unfinished:
            break
    return SLICE_GOOD


cdef class SliceMerger:
    """One pass over a slice, in steps of a transaction each.

    Args:
        sources: The slice's segments, oldest first; a source is used by one merger once.

    After an exception it can only be thrown away.
    """

    def __init__(self, list sources not None):
        cdef SliceSource source
        cdef uint32_t at
        if self.sources != NULL:
            raise ValueError("the merger is set up already")
        if not sources:
            raise ValueError("a slice needs a segment")
        self.held = list(sources)
        self.sources_count = <uint32_t>len(sources)
        self.sources = <Source**>PyMem_RawCalloc(self.sources_count, sizeof(Source*))
        self.chunks_waiting = <Waiting*>PyMem_RawCalloc(self.sources_count, sizeof(Waiting))
        self.tables_waiting = <Waiting*>PyMem_RawCalloc(self.sources_count, sizeof(Waiting))
        if self.sources == NULL or self.chunks_waiting == NULL or self.tables_waiting == NULL:
            raise MemoryError
        at = 0
        for source in self.held:
            self.sources[at] = &source.source
            if source.source.entry != NULL:
                self.chunks_waiting[self.chunks_count].channel = load_u64(source.source.entry)
                self.chunks_waiting[self.chunks_count].source = at
                self.chunks_count += 1
            if source.source.table_at != NULL:
                self.tables_waiting[self.tables_count].channel = load_u64(source.source.table_at)
                self.tables_waiting[self.tables_count].source = at
                self.tables_count += 1
            at += 1
        heap_begin(self.chunks_waiting, self.chunks_count)
        heap_begin(self.tables_waiting, self.tables_count)

    def __dealloc__(self):
        PyMem_RawFree(self.sources)
        PyMem_RawFree(self.chunks_waiting)
        PyMem_RawFree(self.tables_waiting)
        PyMem_RawFree(self.incoming)
        PyMem_RawFree(self.entries.data)
        PyMem_RawFree(self.epochs.data)
        PyMem_RawFree(self.put_names.data)
        PyMem_RawFree(self.put_channels.data)
        PyMem_RawFree(self.put_chunks.data)
        PyMem_RawFree(self.deletes.data)
        builder_free(&self.builder)

    def merge(self, TreeReader archive not None, uint64_t dirty_max):
        """Make the rows of the next transaction.

        Args:
            archive: The archive as the transaction before left it.
            dirty_max: About how many bytes of pages the transaction may write; one channel more goes in.

        Returns:
            SliceRows.

        Raises:
            SliceDamaged: A segment or the archive is not what was written.

        The interpreter lock is free while rows are made.
        """
        cdef int reason
        cdef bint done = False
        archive.begin(&self.names)
        archive.begin(&self.channels)
        archive.begin(&self.chunks)
        self.leaf = self.proved_after = self.proved_before = NULL
        self.dirty_bytes = 0
        self.channels_added = self.records_added = self.bytes_added = 0
        with nogil:
            reason = merge_some(self, dirty_max, &done)
        if reason == SLICE_MEMORY:
            raise MemoryError
        if reason != SLICE_GOOD:
            raise self.damage(reason)
        rows = SliceRows()
        rows.deletes = buffer_take(&self.deletes, True)
        rows.names = buffer_take(&self.put_names, False)
        rows.channels = buffer_take(&self.put_channels, False)
        rows.chunks = buffer_take(&self.put_chunks, False)
        rows.channels_added = self.channels_added
        rows.records_added = self.records_added
        rows.bytes_added = self.bytes_added
        rows.dirty_bytes = self.dirty_bytes
        rows.done = done
        return rows

    cdef object damage(self, int reason):
        source = None if self.damaged_source < 0 else self.damaged_source
        return SliceDamaged(_REASONS[reason], source, self.damaged_group, self.damaged_offset, self.stored.channel)


# -- for a rebuild -----------------------------------------------------------------------------------------------------


def row_limit(uint64_t size):
    """How large a row of a rebuilt file may get of chunks that come to `size` bytes."""
    return chunk_limit(size, REBUILT_CHUNK_BYTES, REBUILT_LAST_PAGE_BYTES_MIN)


def channel_first(bytes row not None):
    """The first sequence of a channel, from its row, which has been proved.

    Raises:
        ValueError: The row has no HEAD entry.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(row) + CHANNEL_ROW_BYTES
    cdef const uint8_t* end = <const uint8_t*>PyBytes_AS_STRING(row) + PyBytes_GET_SIZE(row)
    while end - at >= HEAD_BYTES:
        if load_u16(at + 4) == ENTRY_HEAD:
            return load_u64(at + 32)
        if load_u32(at) < ENTRY_HEADER_BYTES or load_u32(at) > end - at:
            break
        at += load_u32(at)
    raise ValueError("its row says nothing of its first sequence")


def channel_totals(bytes key not None, bytes row not None, uint64_t size, uint64_t chunks):
    """The row of a channel with other totals.

    Args:
        key: The row's key.
        row: Its value, which has been proved.
        size: The sum of the sizes of its chunks, bytes.
        chunks: How many there are.
    """
    cdef bytes changed
    cdef uint8_t* at
    if PyBytes_GET_SIZE(row) < CHANNEL_ROW_BYTES:
        raise ValueError("its row is too short")
    changed = PyBytes_FromStringAndSize(PyBytes_AS_STRING(row), PyBytes_GET_SIZE(row))
    at = <uint8_t*>PyBytes_AS_STRING(changed)
    store_u64(at + 8, size)
    store_u64(at + 16, chunks)
    store_u32(at, row_crc(<const uint8_t*>PyBytes_AS_STRING(key), <uint64_t>PyBytes_GET_SIZE(key),
                          at + ROW_CRC_BYTES, <uint64_t>PyBytes_GET_SIZE(row) - ROW_CRC_BYTES))
    return changed
