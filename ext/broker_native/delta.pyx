"""What the groups of one segment change in the tables, gathered and looked up.

`TableDelta` takes groups in their order and keeps the last value of each row: of a channel its newest CHANNEL entry,
its epochs, its head and what was trimmed, or that it was dropped; of a producer its line; of a name its channel. It
answers by key while it is in memory, and emits itself as the sorted pages of `pages.pxd` when its segment is sealed.

It is filled by one thread. After that it does not change, and any thread may ask it.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset

from broker_native.index cimport (
    AHEAD,
    BYTES_HELD_MAX,
    DAMAGE_ENTRIES,
    DAMAGE_MEMORY,
    DAMAGE_NONE,
    DAMAGE_UNKNOWN_ENTRY,
    Damage,
    GroupHeader,
    array_grow,
    damage_error,
    damaged,
    header_of,
    key_mix,
    table_add,
    table_find,
    table_free,
    table_look_ahead,
    view_check,
)
from broker_native.layout cimport (
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_EPOCH,
    CHUNK_FIRST,
    ENTRY_CHANNEL,
    ENTRY_DROP,
    ENTRY_DROP_BYTES,
    ENTRY_EPOCH,
    ENTRY_FLAG_IGNORABLE,
    ENTRY_FLAG_SNAPSHOT,
    ENTRY_HEAD,
    ENTRY_HEADER_BYTES,
    ENTRY_LINE,
    ENTRY_RUN,
    ENTRY_TRIM,
    ENTRY_TRIM_BYTES,
    GROUP_ENTRIES_BYTES,
    GROUP_HEADER_BYTES,
    LINE_HEADER_BYTES,
    LINE_RUN_BYTES,
    LINE_WINDOW,
    load_u16,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
    store_u64,
)
from broker_native.pages cimport (
    FILTER_BLOCK_BYTES,
    FILTER_HEADER_BYTES,
    TABLE_CHANGED,
    TABLE_CHANNELS,
    TABLE_LINES,
    TABLE_NAMES,
    TABLE_REST,
    TablePage,
    buffer_append,
    buffer_reserve,
    filter_add,
    filter_blocks,
    filter_hash,
    filter_seal,
    number_key,
    page_begin,
    page_finish,
    page_has_room,
)
from broker_native.rows cimport load_key_u64
from broker_native.slabs cimport memory_prefetch
from broker_native.sorting cimport Keyed, keyed_sort

import os

cdef enum:
    CHANNEL_ENTRY_BYTES = 20      # before the name
    CHANNEL_NAME_SIZE = 18
    EPOCH_ENTRY_BYTES = 32
    HEAD_BYTES = 40
    LINK_BYTES = 8                # before an entry of `epochs`
    RUN_ENTRY_BYTES = 17          # as far as `clean`


# -- taking entries in -------------------------------------------------------------------------------------------------


cdef ChannelDelta* delta_channel(TableDelta self, uint64_t channel) noexcept nogil:
    """Return the row of a channel, a new one if need be; NULL when there is no memory."""
    cdef uint32_t found = table_find(&self.channels, channel)
    cdef ChannelDelta* row
    if found != 0:
        return &(<ChannelDelta*>self.channels.items)[found - 1]
    row = <ChannelDelta*>table_add(&self.channels, channel, 64, sizeof(ChannelDelta))
    if row != NULL:
        row.channel = channel
        row.next = 1
        row.first = 1
    return row


cdef uint64_t name_key(TableDelta self, const uint8_t* name, size_t size) noexcept nogil:
    return filter_hash(TABLE_NAMES, name, size) ^ self.seed


cdef NameDelta* delta_name(TableDelta self, const uint8_t* name, size_t size, uint64_t* key) noexcept nogil:
    """Return the row of a name, NULL when it has none; then `key` is the one that it will have."""
    cdef NameDelta* row
    cdef uint32_t found
    cdef const uint8_t* entry
    key[0] = name_key(self, name, size)
    found = table_find(&self.names, key[0])
    # Two names may hash to one key; the later one then goes by the next key that is free.
    while found != 0:
        row = &(<NameDelta*>self.names.items)[found - 1]
        entry = self.announced.data + row.entry
        if entry[CHANNEL_NAME_SIZE] == size and memcmp(entry + CHANNEL_ENTRY_BYTES, name, size) == 0:
            return row
        key[0] += 1
        found = table_find(&self.names, key[0])
    return NULL


cdef int delta_add_channel(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    cdef const uint8_t* entry = at + offset
    cdef uint64_t begin = self.announced.size
    cdef uint64_t key
    cdef ChannelDelta* row
    cdef NameDelta* name
    if size < CHANNEL_ENTRY_BYTES or size < <uint32_t>CHANNEL_ENTRY_BYTES + entry[CHANNEL_NAME_SIZE]:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    row = delta_channel(self, load_u64(entry + 8))
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    name = delta_name(self, entry + CHANNEL_ENTRY_BYTES, entry[CHANNEL_NAME_SIZE], &key)
    if not buffer_append(&self.announced, entry, size):
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    if name == NULL:
        name = <NameDelta*>table_add(&self.names, key, 64, sizeof(NameDelta))
        if name == NULL:
            return damaged(damage, DAMAGE_MEMORY, 0, 0)
    name.entry = begin
    name.channel = row.channel
    row.announced = begin + 1
    if row.channel > self.channel_max:
        self.channel_max = row.channel
    return DAMAGE_NONE


cdef int delta_add_epoch(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    cdef const uint8_t* entry = at + offset
    cdef uint8_t* to
    cdef ChannelDelta* row
    if size < EPOCH_ENTRY_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    row = delta_channel(self, load_u64(entry + 8))
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    to = buffer_reserve(&self.epochs, LINK_BYTES + size)
    if to == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    store_u64(to, row.newest)
    memcpy(to + LINK_BYTES, entry, size)
    row.newest = <uint64_t>(to - self.epochs.data) + 1
    row.epochs_bytes += size
    # A channel's own first epoch begins with its first record.
    if load_u64(entry + 24) == 1 and row.announced and not row.is_born:
        row.is_born = True
        self.born += 1
    return DAMAGE_NONE


cdef int delta_add_head(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    cdef const uint8_t* entry = at + offset
    cdef ChannelDelta* row
    if size < HEAD_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    row = delta_channel(self, load_u64(entry + 8))
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    row.epoch = load_u64(entry + 16)
    row.next = load_u64(entry + 24)
    if row.first < load_u64(entry + 32):
        row.first = load_u64(entry + 32)
    row.has_head = True
    return DAMAGE_NONE


cdef int delta_add_trim(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    cdef const uint8_t* entry = at + offset
    cdef ChannelDelta* row
    if size < ENTRY_TRIM_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    row = delta_channel(self, load_u64(entry + 8))
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    if row.first < load_u64(entry + 16):
        row.first = load_u64(entry + 16)
        row.reason = entry[24]
        row.is_trimmed = True
    return DAMAGE_NONE


cdef int delta_add_drop(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    """The channel's rows of this segment are no more, and those of earlier ones are hidden."""
    cdef ChannelDelta* row
    cdef NameDelta* name
    cdef const uint8_t* entry
    cdef uint64_t key
    if size < ENTRY_DROP_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    row = delta_channel(self, load_u64(at + offset + 8))
    if row == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    if row.announced:
        entry = self.announced.data + row.announced - 1
        name = delta_name(self, entry + CHANNEL_ENTRY_BYTES, entry[CHANNEL_NAME_SIZE], &key)
        if name != NULL and name.channel == row.channel:
            name.channel = 0
    if not row.is_dropped:
        self.dropped += 1
    row.is_dropped = True
    return DAMAGE_NONE


cdef Line* line_find(TableDelta self, const uint8_t* producer) noexcept nogil:
    """Return the line of a producer, NULL when nothing of it is here."""
    cdef uint64_t key
    return line_at(self, producer, &key)


cdef Line* line_at(TableDelta self, const uint8_t* producer, uint64_t* key) noexcept nogil:
    """Return the line of a producer, NULL when it has none; then `key` is the one that it will have."""
    cdef Line* line
    cdef uint32_t found
    key[0] = load_u64(producer) ^ key_mix(load_u64(producer + 8))
    found = table_find(&self.lines, key[0])
    # Two producers may mix to one key; the later one then goes by the next key that is free.
    while found != 0:
        line = &(<Line*>self.lines.items)[found - 1]
        if memcmp(line.producer, producer, 16) == 0:
            return line
        key[0] += 1
        found = table_find(&self.lines, key[0])
    return NULL


cdef Line* delta_line(TableDelta self, const uint8_t* producer) noexcept nogil:
    """Return the line of a producer; a new one has `number` 0. NULL when there is no memory."""
    cdef uint64_t key
    cdef Line* line = line_at(self, producer, &key)
    if line == NULL:
        line = <Line*>table_add(&self.lines, key, 16, sizeof(Line))
        if line != NULL:
            memcpy(line.producer, producer, 16)
    return line


cdef bint line_add_run(Line* line, uint64_t channel, uint64_t first, uint32_t count) noexcept nogil:
    """Remember the positions of the numbers that follow those remembered, and forget what is past the window."""
    cdef LineRun* last
    cdef void* moved
    cdef uint64_t surplus
    last = &line.runs[line.runs_end - 1] if line.runs_end > line.runs_begin else NULL
    if last != NULL and last.channel == channel and last.first + last.count == first and last.count + count >= count:
        last.count += count
    else:
        if line.runs_begin > 64 and line.runs_begin * 2 > line.runs_end:
            line.runs_end -= line.runs_begin
            memcpy(line.runs, line.runs + line.runs_begin, line.runs_end * sizeof(LineRun))
            line.runs_begin = 0
        if line.runs_end == line.runs_capacity:
            moved = array_grow(line.runs, &line.runs_capacity, 4, sizeof(LineRun))
            if moved == NULL:
                return False
            line.runs = <LineRun*>moved
        line.runs[line.runs_end].channel = channel
        line.runs[line.runs_end].first = first
        line.runs[line.runs_end].count = count
        line.runs_end += 1
    line.covered += count
    while line.covered > LINE_WINDOW:
        surplus = line.covered - LINE_WINDOW
        if line.runs[line.runs_begin].count > surplus:
            line.runs[line.runs_begin].first += surplus
            line.runs[line.runs_begin].count -= <uint32_t>surplus
            line.covered -= surplus
        else:
            line.covered -= line.runs[line.runs_begin].count
            line.runs_begin += 1
    return True


cdef int delta_add_line(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, Damage* damage
) noexcept nogil:
    cdef const uint8_t* body = at + offset + ENTRY_HEADER_BYTES
    cdef uint64_t number, count, covered = 0
    cdef uint32_t runs, run
    cdef const uint8_t* item
    cdef Line* line
    if size < ENTRY_HEADER_BYTES + LINE_HEADER_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    number = load_u64(body + 16)
    count = load_u64(body + 24)
    runs = load_u32(body + 32)
    if <uint64_t>runs * LINE_RUN_BYTES != size - ENTRY_HEADER_BYTES - LINE_HEADER_BYTES:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    for run in range(runs):
        covered += load_u32(body + LINE_HEADER_BYTES + run * LINE_RUN_BYTES + 16)
    if count == 0 or number == 0 or covered > count:
        return damaged(damage, DAMAGE_ENTRIES, offset, 0)
    line = delta_line(self, body)
    if line == NULL:
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    line_begin(line, number, count, covered, load_u16(at + offset + 6))
    for run in range(runs):
        item = body + LINE_HEADER_BYTES + run * LINE_RUN_BYTES
        if not line_add_run(line, load_u64(item), load_u64(item + 8), load_u32(item + 16)):
            return damaged(damage, DAMAGE_MEMORY, 0, 0)
    line.highest = number + count - 1
    return DAMAGE_NONE


cdef void line_begin(Line* line, uint64_t number, uint64_t count, uint64_t covered, uint16_t flags) noexcept nogil:
    """Decide whether an entry goes on from what is remembered, or makes it worthless."""
    cdef bint first_seen = line.number == 0
    cdef bint replaces = (flags & ENTRY_FLAG_SNAPSHOT) != 0 or (not first_seen and number != line.highest + 1)
    if first_seen or replaces:
        line.number = number
    if replaces:
        line.whole = True
    # Runs cover the last numbers without a hole, so what an entry does not cover separates it from all before it.
    if replaces or covered < count:
        line.runs_begin = line.runs_end = 0
        line.covered = 0


cdef int delta_add_rest(
    TableDelta self, const uint8_t* at, uint64_t offset, uint32_t size, uint16_t kind, Damage* damage
) noexcept nogil:
    cdef const uint8_t* entry = at + offset
    cdef uint64_t run
    if kind == ENTRY_RUN and size >= RUN_ENTRY_BYTES and not entry[16]:
        run = load_u64(entry + 8)
        if run > self.unclean + 1:
            self.unclean = run - 1
    if not buffer_append(&self.rest, entry, size):
        return damaged(damage, DAMAGE_MEMORY, 0, 0)
    self.rest_count += 1
    return DAMAGE_NONE


cdef int delta_add_entry(TableDelta self, const uint8_t* at, uint64_t offset, Damage* damage) noexcept nogil:
    cdef uint32_t size = load_u32(at + offset)
    cdef uint16_t kind = load_u16(at + offset + 4)
    if kind == ENTRY_CHANNEL:
        return delta_add_channel(self, at, offset, size, damage)
    if kind == ENTRY_EPOCH:
        return delta_add_epoch(self, at, offset, size, damage)
    if kind == ENTRY_LINE:
        return delta_add_line(self, at, offset, size, damage)
    if kind == ENTRY_HEAD:
        return delta_add_head(self, at, offset, size, damage)
    if kind == ENTRY_TRIM:
        return delta_add_trim(self, at, offset, size, damage)
    if kind == ENTRY_DROP:
        return delta_add_drop(self, at, offset, size, damage)
    # RUN, CLOSE, or an unknown kind that may be passed over: all others were refused before.
    return delta_add_rest(self, at, offset, size, kind, damage)


cdef int delta_add(TableDelta self, const uint8_t* at, size_t size, Damage* damage) noexcept nogil:
    """Take in one group: its entries, then the heads of its chunks. The whole group is checked."""
    cdef uint64_t offset = GROUP_HEADER_BYTES
    cdef uint64_t end = offset + load_u32(at + GROUP_ENTRIES_BYTES)
    cdef uint64_t ahead = end
    cdef ChannelDelta* row
    while offset < end:
        if delta_add_entry(self, at, offset, damage) != DAMAGE_NONE:
            return damage.reason
        offset += load_u32(at + offset)
    while offset < size:
        ahead = table_look_ahead(&self.channels, at, size, ahead, AHEAD if offset == end else 1)
        row = delta_channel(self, load_u64(at + offset + CHUNK_CHANNEL))
        if row == NULL:
            return damaged(damage, DAMAGE_MEMORY, 0, 0)
        row.has_head = True
        row.epoch = load_u64(at + offset + CHUNK_EPOCH)
        row.next = load_u64(at + offset + CHUNK_FIRST) + load_u32(at + offset + CHUNK_COUNT)
        offset += load_u32(at + offset)
    return DAMAGE_NONE


cdef int delta_add_entries(TableDelta self, const uint8_t* at, uint64_t size, Damage* damage) noexcept nogil:
    """Take in a run of entries that nobody has checked."""
    cdef uint64_t offset = 0
    cdef uint32_t entry, kind
    while offset < size:
        entry = load_u32(at + offset) if size - offset >= ENTRY_HEADER_BYTES else 0
        if entry < ENTRY_HEADER_BYTES or entry > size - offset:
            return damaged(damage, DAMAGE_ENTRIES, offset, 0)
        kind = load_u16(at + offset + 4)
        if kind - ENTRY_CHANNEL > ENTRY_DROP - ENTRY_CHANNEL and not load_u16(at + offset + 6) & ENTRY_FLAG_IGNORABLE:
            return damaged(damage, DAMAGE_UNKNOWN_ENTRY, offset, 0)
        if delta_add_entry(self, at, offset, damage) != DAMAGE_NONE:
            return damage.reason
        offset += entry
    return DAMAGE_NONE


# -- rows as bytes -----------------------------------------------------------------------------------------------------


cdef size_t channel_bytes(TableDelta self, const ChannelDelta* row) noexcept nogil:
    cdef size_t size = row.epochs_bytes
    if row.is_dropped:
        return ENTRY_DROP_BYTES
    if row.announced:
        size += load_u32(self.announced.data + row.announced - 1)
    if row.has_head:
        return size + HEAD_BYTES
    return size + (ENTRY_TRIM_BYTES if row.is_trimmed else 0)


cdef void entry_begin(uint8_t* at, uint32_t size, uint16_t kind, uint64_t channel) noexcept nogil:
    store_u32(at, size)
    store_u16(at + 4, kind)
    store_u16(at + 6, 0)
    store_u64(at + 8, channel)


cdef void channel_write(TableDelta self, const ChannelDelta* row, uint8_t* at) noexcept nogil:
    """Write a channel's entries: CHANNEL, EPOCH…, and HEAD or TRIM; or DROP alone."""
    cdef uint64_t link = row.newest
    cdef const uint8_t* entry
    cdef uint32_t size
    if row.is_dropped:
        entry_begin(at, ENTRY_DROP_BYTES, ENTRY_DROP, row.channel)
        return
    if row.announced:
        entry = self.announced.data + row.announced - 1
        memcpy(at, entry, load_u32(entry))
        at += load_u32(entry)
    at += row.epochs_bytes
    # The links lead from the newest to the oldest, so they are written from the end.
    while link != 0:
        entry = self.epochs.data + link - 1
        size = load_u32(entry + LINK_BYTES)
        at -= size
        memcpy(at, entry + LINK_BYTES, size)
        link = load_u64(entry)
    at += row.epochs_bytes
    if row.has_head:
        entry_begin(at, HEAD_BYTES, ENTRY_HEAD, row.channel)
        store_u64(at + 16, row.epoch)
        store_u64(at + 24, row.next)
        store_u64(at + 32, row.first)
    elif row.is_trimmed:
        entry_begin(at, ENTRY_TRIM_BYTES, ENTRY_TRIM, row.channel)
        store_u64(at + 16, row.first)
        store_u64(at + 24, row.reason)


cdef size_t line_entry_bytes(const Line* line) noexcept nogil:
    return ENTRY_HEADER_BYTES + LINE_HEADER_BYTES + <size_t>(line.runs_end - line.runs_begin) * LINE_RUN_BYTES


cdef size_t line_write(const Line* line, uint8_t* at) noexcept nogil:
    cdef size_t size = line_entry_bytes(line)
    cdef uint32_t run
    cdef uint8_t* body = at + ENTRY_HEADER_BYTES
    cdef uint8_t* item = body + LINE_HEADER_BYTES
    cdef bint whole = line.whole or line.number == 1 or line.covered == LINE_WINDOW
    store_u32(at, <uint32_t>size)
    store_u16(at + 4, ENTRY_LINE)
    store_u16(at + 6, ENTRY_FLAG_SNAPSHOT if whole else 0)
    memcpy(body, line.producer, 16)
    store_u64(body + 16, line.number)
    store_u64(body + 24, line.highest - line.number + 1)
    store_u32(body + 32, line.runs_end - line.runs_begin)
    store_u32(body + 36, 0)
    for run in range(line.runs_begin, line.runs_end):
        store_u64(item, line.runs[run].channel)
        store_u64(item + 8, line.runs[run].first)
        store_u32(item + 16, line.runs[run].count)
        item += LINE_RUN_BYTES
    return size


# -- rows in their order -----------------------------------------------------------------------------------------------


cdef int line_compare(const void* left, const void* right) noexcept nogil:
    return memcmp((<const Line**>left)[0].producer, (<const Line**>right)[0].producer, 16)


cdef int name_compare(const void* left, const void* right) noexcept nogil:
    # Pointers to the names' CHANNEL entries.
    cdef const uint8_t* left_entry = (<const uint8_t**>left)[0]
    cdef const uint8_t* right_entry = (<const uint8_t**>right)[0]
    cdef uint8_t left_size = left_entry[CHANNEL_NAME_SIZE], right_size = right_entry[CHANNEL_NAME_SIZE]
    cdef int order = memcmp(left_entry + CHANNEL_ENTRY_BYTES, right_entry + CHANNEL_ENTRY_BYTES,
                            left_size if left_size < right_size else right_size)
    if order != 0:
        return order
    return (left_size > right_size) - (left_size < right_size)


cdef class Order:
    """The rows of one kind in the order of their keys: pointers into a delta, which it keeps alive and unchanged."""

    cdef TableDelta delta
    cdef int kind
    cdef const void** rows
    cdef uint32_t count

    def __dealloc__(self):
        PyMem_RawFree(<void*>self.rows)

    cdef int collect(self) except -1:
        cdef size_t room = self.delta.rows_of(self.kind)
        cdef size_t to_sort = 2 * room if self.kind == TABLE_CHANNELS else 0
        cdef Keyed* keyed = <Keyed*>PyMem_RawMalloc((to_sort + 1) * sizeof(Keyed))
        self.rows = <const void**>PyMem_RawMalloc((room + 1) * sizeof(void*))
        try:
            if keyed == NULL or self.rows == NULL:
                raise MemoryError
            with nogil:
                order_fill(self, self.delta, keyed)
        finally:
            PyMem_RawFree(keyed)
        return 0


cdef void order_fill(Order self, TableDelta delta, Keyed* keyed) noexcept nogil:
    """Point to the rows in their order; `keyed` has room for twice as many channels."""
    cdef const ChannelDelta* channels = <const ChannelDelta*>delta.channels.items
    cdef const NameDelta* names = <const NameDelta*>delta.names.items
    cdef const uint8_t* entry = delta.rest.data
    cdef uint32_t row
    if self.kind == TABLE_CHANNELS:
        for row in range(delta.channels.count):
            keyed[row] = Keyed(channels[row].channel, &channels[row])
        self.count = delta.channels.count
        keyed = keyed_sort(keyed, keyed + self.count, self.count)
        for row in range(self.count):
            self.rows[row] = keyed[row].item
    elif self.kind == TABLE_LINES:
        for row in range(delta.lines.count):
            self.rows[row] = <const void*>&(<const Line*>delta.lines.items)[row]
        self.count = delta.lines.count
        qsort(<void*>self.rows, self.count, sizeof(void*), line_compare)
    elif self.kind == TABLE_NAMES:
        for row in range(delta.names.count):
            if names[row].channel:
                self.rows[self.count] = <const void*>(delta.announced.data + names[row].entry)
                self.count += 1
        qsort(<void*>self.rows, self.count, sizeof(void*), name_compare)
    else:
        for row in range(delta.rest_count):
            self.rows[row] = <const void*>entry
            entry += load_u32(entry)
        self.count = delta.rest_count


cdef size_t row_bytes(Order self, uint32_t at) noexcept nogil:
    """The size of a row's value: entries, or of a name its channel."""
    if self.kind == TABLE_CHANNELS:
        return channel_bytes(self.delta, <const ChannelDelta*>self.rows[at])
    if self.kind == TABLE_LINES:
        return line_entry_bytes(<const Line*>self.rows[at])
    if self.kind == TABLE_NAMES:
        return 8
    return load_u32(<const uint8_t*>self.rows[at])


cdef void row_write(Order self, uint32_t at, uint8_t* to) noexcept nogil:
    if self.kind == TABLE_CHANNELS:
        channel_write(self.delta, <const ChannelDelta*>self.rows[at], to)
    elif self.kind == TABLE_LINES:
        line_write(<const Line*>self.rows[at], to)
    elif self.kind == TABLE_NAMES:
        store_u64(to, load_u64(<const uint8_t*>self.rows[at] + 8))
    else:
        memcpy(to, self.rows[at], load_u32(<const uint8_t*>self.rows[at]))


cdef size_t item_head_bytes(Order self, uint32_t at) noexcept nogil:
    """The bytes of a page's item before its value."""
    if self.kind == TABLE_CHANNELS:
        return 12
    if self.kind == TABLE_NAMES:
        return 1 + <size_t>(<const uint8_t*>self.rows[at])[CHANNEL_NAME_SIZE]
    return 4


cdef void item_write(Order self, uint32_t at, uint8_t* to) noexcept nogil:
    cdef uint32_t size = <uint32_t>row_bytes(self, at)
    cdef const uint8_t* entry
    if self.kind == TABLE_CHANNELS:
        store_u64(to, (<const ChannelDelta*>self.rows[at]).channel)
        store_u32(to + 8, size)
    elif self.kind == TABLE_NAMES:
        entry = <const uint8_t*>self.rows[at]
        to[0] = entry[CHANNEL_NAME_SIZE]
        memcpy(to + 1, entry + CHANNEL_ENTRY_BYTES, to[0])
    else:
        store_u32(to, size)
    row_write(self, at, to + item_head_bytes(self, at))


cdef bytes row_key(Order self, uint32_t at):
    cdef const uint8_t* entry
    if self.kind == TABLE_CHANNELS:
        return (<const ChannelDelta*>self.rows[at]).channel.to_bytes(8, "big")
    if self.kind == TABLE_LINES:
        return PyBytes_FromStringAndSize(<const char*>(<const Line*>self.rows[at]).producer, 16)
    if self.kind == TABLE_NAMES:
        entry = <const uint8_t*>self.rows[at]
        return PyBytes_FromStringAndSize(<const char*>entry + CHANNEL_ENTRY_BYTES, entry[CHANNEL_NAME_SIZE])
    return at.to_bytes(4, "big")


cdef object row_value(Order self, uint32_t at):
    cdef bytes value
    if self.kind == TABLE_NAMES:
        return load_u64(<const uint8_t*>self.rows[at] + 8)
    value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>row_bytes(self, at))
    row_write(self, at, <uint8_t*>PyBytes_AS_STRING(value))
    return value


cdef uint32_t page_fill(Order self, TablePage* page, uint32_t at) noexcept nogil:
    """Put rows into a page while there is room; answers the first that has none. Too few: there is no memory."""
    cdef size_t size
    cdef uint8_t* to
    while at < self.count:
        if at + AHEAD < self.count:
            memory_prefetch(self.rows[at + AHEAD])
        size = item_head_bytes(self, at) + row_bytes(self, at)
        if not page_has_room(page, size):
            break
        to = buffer_reserve(&page.bytes, size)
        if to == NULL:
            break
        item_write(self, at, to)
        page.count += 1
        at += 1
    return at


# -- the class ---------------------------------------------------------------------------------------------------------


cdef class TableDelta:
    """What the groups of one segment change in the tables, the last value of each row.

    Of a channel: its newest CHANNEL entry, its EPOCH entries in their order, then a HEAD, or a TRIM when the segment
    has nothing of it but that. Or a DROP alone, which hides all that earlier segments have of it.

    A HEAD's `first` is a lower bound: the greatest that the segment itself says, else 1; an applier takes the greater
    of it and its own. A LINE carries ENTRY_FLAG_SNAPSHOT when it is the whole state of its row, that is when it
    remembers a full window, begins at number 1, or does not go on from the line's earlier numbers; otherwise it
    goes on from what earlier segments left, exactly as its groups did.
    """

    def __cinit__(self):
        # Names are chosen by strangers, who must not choose which of them share a place.
        self.seed = int.from_bytes(os.urandom(8), "little")

    def __dealloc__(self):
        cdef Line* lines = <Line*>self.lines.items
        cdef uint32_t line
        for line in range(self.lines.count):
            PyMem_RawFree(lines[line].runs)
        PyMem_RawFree(self.announced.data)
        PyMem_RawFree(self.epochs.data)
        PyMem_RawFree(self.rest.data)
        table_free(&self.channels)
        table_free(&self.names)
        table_free(&self.lines)

    cdef uint32_t rows_of(self, int kind) noexcept:
        if kind == TABLE_CHANNELS:
            return self.channels.count
        if kind == TABLE_LINES:
            return self.lines.count
        return self.names.count if kind == TABLE_NAMES else self.rest_count

    cdef object order(self, int kind):
        cdef Order order = Order.__new__(Order)
        order.delta = self
        order.kind = kind
        order.collect()
        return order

    # .. filling ..

    def add(self, group):
        """Check a group wholly and take in what it changes.

        Args:
            group: the whole stored value; borrowed for the call. Groups come in the order of their numbers.

        Returns:
            The group's `GroupHeader`.

        Raises:
            GroupDamaged: it is not as it was written, or (reason "unknown entry") a newer version wrote it.
            MemoryError: the delta is incomplete and must be thrown away.
        """
        cdef Py_buffer view
        cdef Damage damage
        cdef uint64_t closed_run = 0
        cdef int reason
        cdef GroupHeader header
        PyObject_GetBuffer(group, &view, PyBUF_SIMPLE)
        try:
            reason = view_check(&view, &closed_run, &damage)
            if reason == DAMAGE_NONE and view.len <= BYTES_HELD_MAX:
                reason = delta_add(self, <const uint8_t*>view.buf, <size_t>view.len, &damage)
            elif reason == DAMAGE_NONE:
                with nogil:
                    reason = delta_add(self, <const uint8_t*>view.buf, <size_t>view.len, &damage)
            if reason != DAMAGE_NONE:
                raise damage_error(&damage)
            header = header_of(<const uint8_t*>view.buf, closed_run)
        finally:
            PyBuffer_Release(&view)
        return header

    def add_entries(self, entries):
        """Take in a run of entries, such as the delta that a segment of seal format 1 keeps. As `add`."""
        cdef Py_buffer view
        cdef Damage damage
        cdef int reason
        PyObject_GetBuffer(entries, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                reason = delta_add_entries(self, <const uint8_t*>view.buf, <uint64_t>view.len, &damage)
            if reason != DAMAGE_NONE:
                raise damage_error(&damage)
        finally:
            PyBuffer_Release(&view)

    # .. what it comes to ..

    @property
    def id_next(self):
        """The id after the greatest that a CHANNEL entry names, 0 when there is none."""
        return self.channel_max + 1 if self.channel_max else 0

    @property
    def channels_new(self):
        """How many channels were created here, less those that were dropped; may be below 0."""
        return <int64_t>(self.born - self.dropped)

    @property
    def producers_new(self):
        """How many producers' lines begin here."""
        cdef const Line* lines = <const Line*>self.lines.items
        cdef uint32_t line
        cdef uint64_t count = 0
        for line in range(self.lines.count):
            count += lines[line].number == 1
        return count

    @property
    def unclean_run(self):
        """The newest run that a RUN entry says did not end in good order, 0 for none."""
        return self.unclean

    def finish(self):
        """Return everything as a run of entries: channels, lines, and the rest. The delta stays as it is."""
        cdef list entries = []
        cdef Order order
        cdef uint32_t at
        for kind in (TABLE_CHANNELS, TABLE_LINES, TABLE_REST):
            order = self.order(kind)
            for at in range(order.count):
                entries.append(row_value(order, at))
        return b"".join(entries)

    def items(self, int kind):
        """Return all rows of a kind in the order of their keys: a list of (key, value), see `pages.pxd`."""
        cdef Order order = self.order(kind)
        cdef uint32_t at
        # No comprehension: what Cython makes of one drops an item twice when the list cannot grow.
        cdef list rows = []
        for at in range(order.count):
            rows.append((row_key(order, at), row_value(order, at)))
        return rows

    def pages(self, int kind):
        """Emit the rows of a kind as sorted pages, at least one: yields (low, page), in the order of their keys.

        A page is made when it is asked for, so that not all of them need be in memory. The interpreter lock is free
        while one is filled. Until the last one the delta must not change.
        """
        cdef Order order = self.order(kind)
        cdef TablePage page
        cdef uint32_t at = 0, begun
        cdef bytes low = b"", bound = b"", made
        memset(&page, 0, sizeof(TablePage))
        try:
            if not page_begin(&page):
                raise MemoryError
            while True:
                begun = at
                with nogil:
                    at = page_fill(order, &page, at)
                if at == begun and at < order.count:
                    raise MemoryError
                bound = row_key(order, at) if at < order.count else b""
                made = page_finish(&page, kind, low, bound)
                yield low, made
                if at == order.count:
                    return
                low = bound
        finally:
            PyMem_RawFree(page.bytes.data)

    def filter(self):
        """Emit the filter of the delta's names, lines and channels."""
        cdef uint64_t rare = self.lines.count
        cdef uint32_t row, rare_blocks, touched_blocks
        cdef const ChannelDelta* channels = <const ChannelDelta*>self.channels.items
        cdef bytes value
        cdef uint8_t* at
        rare += self.names.count
        for row in range(self.channels.count):
            rare += channel_is_changed(&channels[row])
        rare_blocks = filter_blocks(rare)
        touched_blocks = filter_blocks(self.channels.count)
        value = PyBytes_FromStringAndSize(
            NULL, FILTER_HEADER_BYTES + <Py_ssize_t>(rare_blocks + touched_blocks) * FILTER_BLOCK_BYTES
        )
        at = <uint8_t*>PyBytes_AS_STRING(value)
        with nogil:
            delta_fill_filter(self, at, rare_blocks, touched_blocks)
        return value

    # .. looking up ..

    def find_channel(self, uint64_t channel):
        """Return the entries of a channel, DROP alone for one that is no more; b"" when nothing of it is here."""
        cdef uint32_t found = table_find(&self.channels, channel)
        cdef const ChannelDelta* row
        cdef bytes entries
        if found == 0:
            return b""
        row = &(<const ChannelDelta*>self.channels.items)[found - 1]
        entries = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>channel_bytes(self, row))
        channel_write(self, row, <uint8_t*>PyBytes_AS_STRING(entries))
        return entries

    def find_name(self, bytes name not None):
        """Return the channel that a name was given last, -1 when that was dropped, None when the name is not here."""
        cdef uint64_t key
        cdef NameDelta* row = delta_name(
            self, <const uint8_t*>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name), &key
        )
        if row == NULL:
            return None
        return row.channel if row.channel else -1

    def find_names(self, list names not None, bytearray skip not None):
        """Return the indexes of the names that are here, and of each what `find_name` says.

        Those with a byte other than 0 in `skip` are passed over.
        """
        cdef uint64_t key
        cdef NameDelta* row
        cdef bytes name
        cdef Py_ssize_t at
        cdef list indexes = [], found = []
        if len(skip) != len(names):
            raise ValueError(f"skip: got {len(skip)} bytes for {len(names)} names")
        if self.rows_of(TABLE_NAMES) == 0:
            return indexes, found
        for at in range(len(names)):
            if not skip[at]:
                name = names[at]
                row = delta_name(self, <const uint8_t*>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name), &key)
                if row != NULL:
                    indexes.append(at)
                    found.append(row.channel if row.channel else -1)
        return indexes, found

    def find_channels(self, list keys not None, bytearray skip not None):
        """Return the indexes of the channels, by their keys, that are here, and of each what `find_channel` says.

        `skip` as of `find_names`.
        """
        cdef bytes key
        cdef Py_ssize_t at
        cdef list indexes = [], found = []
        if len(skip) != len(keys):
            raise ValueError(f"skip: got {len(skip)} bytes for {len(keys)} keys")
        if self.rows_of(TABLE_CHANNELS) == 0:
            return indexes, found
        for at in range(len(keys)):
            if not skip[at]:
                key = keys[at]
                if PyBytes_GET_SIZE(key) != 8:
                    raise ValueError(f"a channel's key: got {len(key)} bytes, expected 8")
                entries = self.find_channel(load_key_u64(<const uint8_t*>PyBytes_AS_STRING(key)))
                if entries:
                    indexes.append(at)
                    found.append(entries)
        return indexes, found

    def find_line(self, bytes producer not None):
        """Return the LINE entry of a producer, b"" when nothing of it is here."""
        cdef Line* line
        cdef bytes entry
        if PyBytes_GET_SIZE(producer) != 16:
            raise ValueError(f"producer: got {len(producer)} bytes, expected 16")
        line = line_find(self, <const uint8_t*>PyBytes_AS_STRING(producer))
        if line == NULL:
            return b""
        entry = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>line_entry_bytes(line))
        line_write(line, <uint8_t*>PyBytes_AS_STRING(entry))
        return entry


cdef bint channel_is_changed(const ChannelDelta* row) noexcept nogil:
    """Whether there is more of a channel than a head that only says where it ends."""
    return row.announced or row.newest or row.is_dropped or row.first > 1 or not row.has_head


cdef void delta_fill_filter(TableDelta self, uint8_t* at, uint32_t rare, uint32_t touched) noexcept nogil:
    cdef const ChannelDelta* channels = <const ChannelDelta*>self.channels.items
    cdef const NameDelta* names = <const NameDelta*>self.names.items
    cdef const Line* lines = <const Line*>self.lines.items
    cdef uint8_t* rare_at = at + FILTER_HEADER_BYTES
    cdef uint8_t* touched_at = rare_at + <uint64_t>rare * FILTER_BLOCK_BYTES
    cdef const uint8_t* entry
    cdef uint8_t key[8]
    cdef uint32_t row
    memset(rare_at, 0, (<size_t>rare + touched) * FILTER_BLOCK_BYTES)
    for row in range(self.channels.count):
        number_key(key, channels[row].channel, 8)
        filter_add(touched_at, touched, filter_hash(TABLE_CHANNELS, key, 8))
        if channel_is_changed(&channels[row]):
            filter_add(rare_at, rare, filter_hash(TABLE_CHANGED, key, 8))
    for row in range(self.names.count):
        entry = self.announced.data + names[row].entry
        filter_add(rare_at, rare, filter_hash(TABLE_NAMES, entry + CHANNEL_ENTRY_BYTES, entry[CHANNEL_NAME_SIZE]))
    for row in range(self.lines.count):
        filter_add(rare_at, rare, filter_hash(TABLE_LINES, lines[row].producer, 16))
    filter_seal(at, rare, touched)
