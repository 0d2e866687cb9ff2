"""The pages in which a sealed segment keeps what it changed in the tables, and the filter that spares looking there.

A page proves of each key that it covers whether the segment has it: by its checksum, its bounds, and the name of the
row that it is found under. Which page covers a key is the caller's business; a wrong one is told from a right one.

Nothing here knows of LMDB, files or groups. Buffers are borrowed for the length of one call. Damage is `GroupDamaged`
with the reason "table page".
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from broker_native.btree cimport Span
from broker_native.crc32c cimport crc32c
from broker_native.index cimport DAMAGE_TABLE, Damage, damage_error, damaged, key_mix
from broker_native.layout cimport (
    ENTRY_DROP,
    ENTRY_EPOCH,
    ENTRY_HEAD,
    ENTRY_HEADER_BYTES,
    ENTRY_TRIM,
    load_u16,
    load_u32,
    load_u64,
    store_u32,
    store_u64,
)
from broker_native.tree cimport CURSOR_DAMAGED, CURSOR_ROW, TreeCursor, TreeReader, cursor_prev, cursor_seek

from broker_native.btree import TreeDamaged

cdef extern from *:
    """
    static inline uint64_t swap_u64(uint64_t number) { return __builtin_bswap64(number); }
    """
    uint64_t swap_u64(uint64_t number) noexcept nogil  # keys are big-endian, so that they sort as numbers do

NAMES = TABLE_NAMES
CHANNELS = TABLE_CHANNELS
LINES = TABLE_LINES
REST = TABLE_REST
CHANGED = TABLE_CHANGED


# -- growing -----------------------------------------------------------------------------------------------------------


cdef uint8_t* buffer_reserve(ByteBuffer* buffer, size_t size) noexcept nogil:
    """Make room for more bytes and count them in; answers where they go, NULL when there is no memory."""
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
    buffer.size += size
    return buffer.data + buffer.size - size


cdef bint buffer_append(ByteBuffer* buffer, const uint8_t* data, size_t size) noexcept nogil:
    cdef uint8_t* at = buffer_reserve(buffer, size)
    if at == NULL:
        return False
    memcpy(at, data, size)
    return True


# -- writing pages -----------------------------------------------------------------------------------------------------


cdef bint page_begin(TablePage* page) noexcept nogil:
    page.count = 0
    page.bytes.size = 0
    return buffer_reserve(&page.bytes, TABLE_PAGE_HEADER_BYTES) != NULL


cdef bint page_has_room(const TablePage* page, size_t size) noexcept nogil:
    """Whether an item goes into the page beside its bounds. An item that is larger than a page has one for itself."""
    return page.count == 0 or page.bytes.size + size + 2 * 256 <= TABLE_PAGE_BYTES_MAX


cdef bytes page_finish(TablePage* page, int kind, bytes low, bytes bound):
    """Emit the page and make it empty."""
    cdef uint32_t low_size = <uint32_t>PyBytes_GET_SIZE(low), bound_size = <uint32_t>PyBytes_GET_SIZE(bound)
    cdef uint32_t items_end = <uint32_t>page.bytes.size
    cdef uint8_t* at
    cdef bytes made
    if (not buffer_append(&page.bytes, <const uint8_t*>PyBytes_AS_STRING(low), low_size)
            or not buffer_append(&page.bytes, <const uint8_t*>PyBytes_AS_STRING(bound), bound_size)):
        raise MemoryError
    at = page.bytes.data
    store_u32(at, <uint32_t>page.bytes.size)
    store_u32(at + 8, TABLE_PAGE_MAGIC)
    store_u32(at + 12, page.count)
    store_u32(at + 16, <uint32_t>kind)
    store_u32(at + 20, items_end)
    store_u32(at + 24, low_size)
    store_u32(at + 28, bound_size)
    store_u32(at + 4, crc32c(0, at + 8, page.bytes.size - 8))
    made = PyBytes_FromStringAndSize(<const char*>at, <Py_ssize_t>page.bytes.size)
    page_begin(page)
    return made


# -- reading pages -----------------------------------------------------------------------------------------------------


cdef struct PageItem:
    const uint8_t* key
    uint32_t key_size
    const uint8_t* value          # what is returned: the entries, or for a name its u64 channel
    uint32_t value_size
    uint8_t number[8]             # the key of a channel or of the rest, which is made


cdef void number_key(uint8_t* at, uint64_t number, int size) noexcept nogil:
    cdef int index
    for index in range(size):
        at[index] = <uint8_t>(number >> (8 * (size - 1 - index)) & 0xFF)


cdef inline int key_compare(const uint8_t* left, size_t left_size, const uint8_t* right,
                            size_t right_size) noexcept nogil:
    cdef size_t size = left_size if left_size < right_size else right_size
    cdef uint64_t one, other
    cdef int order
    if size >= 8:
        one = swap_u64(load_u64(left))
        other = swap_u64(load_u64(right))
        if one != other:
            return 1 if one > other else -1
    order = memcmp(left, right, size)
    if order != 0:
        return order
    return (left_size > right_size) - (left_size < right_size)


cdef bint table_page_check(const uint8_t* at, size_t size, int kind, const uint8_t* low,
                           size_t low_bytes) noexcept nogil:
    """Whether a page is what was written, of this kind, and under its own key."""
    cdef uint32_t items_end, low_size
    if size < TABLE_PAGE_HEADER_BYTES or load_u32(at) != size or load_u32(at + 8) != TABLE_PAGE_MAGIC:
        return False
    if crc32c(0, at + 8, size - 8) != load_u32(at + 4) or load_u32(at + 16) != <uint32_t>kind:
        return False
    items_end = load_u32(at + 20)
    low_size = load_u32(at + 24)
    if items_end < TABLE_PAGE_HEADER_BYTES or <uint64_t>items_end + low_size + load_u32(at + 28) != size:
        return False
    return key_compare(at + items_end, low_size, low, low_bytes) == 0


cdef uint32_t page_item(const uint8_t* at, uint32_t offset, uint32_t end, int kind, uint32_t number,
                        PageItem* item) noexcept nogil:
    """Read the item at an offset; answers where the next one is, 0 when it overruns the page."""
    cdef uint64_t head, size
    head = 1 if kind == TABLE_NAMES else 12 if kind == TABLE_CHANNELS else 4
    if end - offset < head:
        return 0
    at += offset
    if kind == TABLE_NAMES:
        item.key_size = at[0]
        item.key = at + 1
        item.value = at + 1 + item.key_size
        item.value_size = 8
        size = 1 + <uint64_t>item.key_size + 8
    elif kind == TABLE_CHANNELS:
        store_u64(item.number, swap_u64(load_u64(at)))
        item.key = item.number
        item.key_size = 8
        item.value = at + 12
        item.value_size = load_u32(at + 8)
        size = 12 + <uint64_t>item.value_size
    else:
        item.value = at + 4
        item.value_size = load_u32(at)
        size = 4 + <uint64_t>item.value_size
        number_key(item.number, number, 4)
        item.key = item.number
        item.key_size = 4
        if kind == TABLE_LINES:
            if item.value_size < ENTRY_HEADER_BYTES + 16:
                return 0
            item.key = item.value + ENTRY_HEADER_BYTES
            item.key_size = 16
    if size > end - offset:
        return 0
    return offset + <uint32_t>size


cdef object page_damage():
    cdef Damage damage
    damaged(&damage, DAMAGE_TABLE, 0, 0)
    return damage_error(&damage)


cdef object item_value(int kind, const PageItem* item):
    if kind == TABLE_NAMES:
        return load_u64(item.value)
    return PyBytes_FromStringAndSize(<const char*>item.value, <Py_ssize_t>item.value_size)


cdef enum:
    FIND_PAGE_DAMAGED = -2            # CURSOR_DAMAGED is -1
    FIND_DONE = 0
    PAGE_KEY_BYTES_MAX = 16 + 255     # the kind's prefix, a key, and a zero byte behind it


cdef struct Sought:                   # a key that is looked for
    Span key
    Span found                        # what the segment has of it; `at` is NULL for nothing


cdef int page_find(int kind, const Span* page, const Span* low, Sought* sought, size_t count,
                   size_t* at) noexcept nogil:
    """Look up, from `at` on, the keys that a page covers, the first of them at least; sets `at` past them."""
    cdef const uint8_t* data = page.at
    cdef const uint8_t* bound
    cdef PageItem item
    cdef uint32_t offset = TABLE_PAGE_HEADER_BYTES, following = TABLE_PAGE_HEADER_BYTES
    cdef uint32_t end, bound_size, items, number = 0
    cdef size_t begun = at[0]
    cdef Span* key
    cdef int order = -1
    if not table_page_check(data, page.size, kind, low.at, low.size):
        return FIND_PAGE_DAMAGED
    end = load_u32(data + 20)
    bound_size = load_u32(data + 28)
    bound = data + page.size - bound_size
    items = load_u32(data + 12)
    while at[0] < count:
        key = &sought[at[0]].key
        if bound_size and key_compare(key.at, key.size, bound, bound_size) >= 0:
            break
        # The item that the last key stopped at is looked at again: it may be this one's.
        while True:
            if following == offset:
                if number == items:
                    break
                following = page_item(data, offset, end, kind, number, &item)
                if following == 0:
                    return FIND_PAGE_DAMAGED
            order = key_compare(item.key, item.key_size, key.at, key.size)
            if order >= 0:
                break
            offset = following
            number += 1
        if number < items and order == 0:
            sought[at[0]].found.at = item.value
            sought[at[0]].found.size = item.value_size
        at[0] += 1
    return FIND_DONE if at[0] > begun else FIND_PAGE_DAMAGED


cdef int pages_find(TreeCursor* cursor, int kind, const Span* prefix, Sought* sought, size_t count) noexcept nogil:
    """Look ascending keys up in a kind's pages, each page once."""
    cdef uint8_t key[PAGE_KEY_BYTES_MAX]
    cdef Span wanted, low
    cdef size_t at = 0
    cdef int state
    memcpy(key, prefix.at, prefix.size)
    while at < count:
        # The page that covers a key is the last one that begins at it or before.
        memcpy(key + prefix.size, sought[at].key.at, sought[at].key.size)
        wanted.at = key
        wanted.size = prefix.size + sought[at].key.size
        key[wanted.size] = 0
        wanted.size += 1
        state = cursor_seek(cursor, &wanted)
        if state != CURSOR_DAMAGED:
            state = cursor_prev(cursor)
        if state == CURSOR_DAMAGED:
            return state
        if (state != CURSOR_ROW or cursor.key.size < prefix.size
                or memcmp(cursor.key.at, prefix.at, prefix.size) != 0):
            # Every kind has a page that covers from the very beginning.
            return FIND_PAGE_DAMAGED
        low.at = cursor.key.at + prefix.size
        low.size = cursor.key.size - prefix.size
        state = page_find(kind, &cursor.value, &low, sought, count, &at)
        if state != FIND_DONE:
            return state
    return FIND_DONE


def find_in_pages(TreeReader reader not None, int kind, bytes prefix not None, list keys not None,
                  list picked not None):
    """Look many keys up in the pages of a kind, each page once.

    Args:
        reader: The sealed segment.
        kind: NAMES, CHANNELS or LINES.
        prefix: What the rows of its pages begin with, 16 bytes at most.
        keys: As bytes, see above, 255 at most.
        picked: Which of the keys are wanted, in the keys' ascending order.

    Returns:
        Indexes in `keys` of those that are there, and the value of each: a name's channel, else the entries as bytes.

    Raises:
        GroupDamaged: A page is not what was written, or not the one that covers a key.
        TreeDamaged: A page on the way to it is not.

    Any thread. The interpreter lock is free while pages are read.
    """
    cdef TreeCursor cursor
    cdef Span span
    cdef Sought* sought
    # Whoever has the list may change it while the lock is free.
    cdef tuple held = tuple(keys)
    cdef size_t count = <size_t>len(picked), index = 0
    cdef bytes key
    # Two lists, and no pair for each: pairs would be the collector's work, which holds up all threads.
    cdef list indexes = [], values = []
    cdef PageItem item
    cdef int state
    if len(prefix) > 16:
        raise ValueError(f"prefix: got {len(prefix)} bytes, limit 16")
    span.at = <const uint8_t*>PyBytes_AS_STRING(prefix)
    span.size = <uint64_t>PyBytes_GET_SIZE(prefix)
    reader.begin(&cursor)
    sought = <Sought*>PyMem_RawCalloc(count + 1, sizeof(Sought))
    if sought == NULL:
        raise MemoryError
    try:
        for at in picked:
            key = held[at]
            if len(key) > 255:
                raise ValueError(f"key: got {len(key)} bytes, limit 255")
            sought[index].key.at = <const uint8_t*>PyBytes_AS_STRING(key)
            sought[index].key.size = <uint64_t>PyBytes_GET_SIZE(key)
            index += 1
        with nogil:
            state = pages_find(&cursor, kind, &span, sought, count)
        if state == CURSOR_DAMAGED:
            raise TreeDamaged(cursor.walk.damage)
        if state != FIND_DONE:
            raise page_damage()
        for index in range(count):
            if sought[index].found.at != NULL:
                item.value = sought[index].found.at
                item.value_size = <uint32_t>sought[index].found.size
                indexes.append(picked[<Py_ssize_t>index])
                values.append(item_value(kind, &item))
        return indexes, values
    finally:
        PyMem_RawFree(sought)


def table_items(int kind, bytes low not None, page):
    """Return all that a page holds.

    Args:
        kind: NAMES, CHANNELS, LINES or REST.
        low: what the row's key says that the page begins with.
        page: the stored value; borrowed for the call.

    Returns:
        (a list of (key, value), the bound: the low of the next page, empty for the last one).

    Raises:
        GroupDamaged: the page is not what was written.
    """
    cdef Py_buffer view
    cdef const uint8_t* data
    cdef PageItem item
    cdef uint32_t offset = TABLE_PAGE_HEADER_BYTES
    cdef uint32_t end, number, bound_size
    cdef list items = []
    PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t*>view.buf
        if not table_page_check(data, <size_t>view.len, kind, <const uint8_t*>PyBytes_AS_STRING(low),
                                <size_t>PyBytes_GET_SIZE(low)):
            raise page_damage()
        end = load_u32(data + 20)
        bound_size = load_u32(data + 28)
        for number in range(load_u32(data + 12)):
            offset = page_item(data, offset, end, kind, number, &item)
            if offset == 0:
                raise page_damage()
            items.append((
                PyBytes_FromStringAndSize(<const char*>item.key, <Py_ssize_t>item.key_size), item_value(kind, &item),
            ))
        return items, PyBytes_FromStringAndSize(<const char*>data + view.len - bound_size, <Py_ssize_t>bound_size)
    finally:
        PyBuffer_Release(&view)


cdef enum:
    # How far a channel is known from newer segments.
    STATE_OPEN = 0                    # not at all
    STATE_HEADED = 1                  # where it ends
    STATE_CLOSED = 2                  # nothing older counts

OPEN, HEADED, CLOSED = STATE_OPEN, STATE_HEADED, STATE_CLOSED


cdef uint64_t kinds_in(bytes entries) noexcept:
    """Which kinds of entries are in a run: bit `1 << kind` for each, bit 0 for those past 63."""
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(entries)
    cdef uint64_t left = <uint64_t>PyBytes_GET_SIZE(entries)
    cdef uint64_t kinds = 0
    cdef uint32_t size
    cdef uint16_t kind
    while left >= ENTRY_HEADER_BYTES:
        kind = load_u16(at + 4)
        kinds |= <uint64_t>1 << (kind if kind < 64 else 0)
        size = load_u32(at)
        if size < ENTRY_HEADER_BYTES or size > left:
            break
        at += size
        left -= size
    return kinds


def adds_up(bytes entries not None):
    """Whether there is an EPOCH or a TRIM in a run: what takes nobody's place in those before it."""
    return kinds_in(entries) & (<uint64_t>1 << ENTRY_EPOCH | <uint64_t>1 << ENTRY_TRIM) != 0


def join_older(list indexes not None, list found not None, bytearray state not None, list parts not None):
    """Put what a segment has of channels behind what newer ones have.

    Args:
        indexes, found: Channels, and their entries; with a DROP among them they are not taken: nothing older counts.
        state: OPEN, HEADED or CLOSED for each channel; it is moved on.
        parts: For each channel None, a run of entries, or a list of several, the newest first; it gets this one too.
    """
    cdef Py_ssize_t at, index
    cdef bytes entries
    cdef uint64_t kinds
    if len(state) != len(parts):
        raise ValueError(f"state: got {len(state)} bytes for {len(parts)} channels")
    for index in range(len(indexes)):
        at = indexes[index]
        entries = found[index]
        kinds = kinds_in(entries)
        if kinds & <uint64_t>1 << ENTRY_DROP:
            state[at] = STATE_CLOSED
            continue
        if parts[at] is None:
            parts[at] = entries
        elif isinstance(parts[at], bytes):
            parts[at] = [parts[at], entries]
        else:
            parts[at].append(entries)
        if kinds & <uint64_t>1 << ENTRY_HEAD:
            state[at] = STATE_HEADED


# -- the filter --------------------------------------------------------------------------------------------------------


cdef uint64_t filter_hash(int kind, const uint8_t* key, size_t size) noexcept nogil:
    cdef uint64_t hashed = key_mix(<uint64_t>kind << 32 | size)
    cdef uint64_t word = 0
    while size >= 8:
        hashed = key_mix(hashed ^ load_u64(key))
        key += 8
        size -= 8
    while size:
        size -= 1
        word = word << 8 | key[size]
    return key_mix(hashed ^ word)


cdef uint32_t filter_blocks(uint64_t keys) noexcept nogil:
    return <uint32_t>(keys // FILTER_KEYS_PER_BLOCK + 1)


cdef inline uint64_t filter_block(uint64_t hashed, uint32_t count) noexcept nogil:
    return ((hashed >> 32) * count >> 32) * FILTER_BLOCK_BYTES


cdef void filter_add(uint8_t* blocks, uint32_t count, uint64_t hashed) noexcept nogil:
    """Set a key's six bits in its block."""
    cdef uint8_t* block = blocks + filter_block(hashed, count)
    cdef uint64_t bits = key_mix(hashed)
    cdef int _
    for _ in range(6):
        block[bits >> 3 & 63] |= <uint8_t>(1 << (bits & 7))
        bits >>= 9


cdef bint filter_has(const uint8_t* blocks, uint32_t count, uint64_t hashed) noexcept nogil:
    cdef const uint8_t* block = blocks + filter_block(hashed, count)
    cdef uint64_t bits = key_mix(hashed)
    cdef int _
    for _ in range(6):
        if not block[bits >> 3 & 63] >> (bits & 7) & 1:
            return False
        bits >>= 9
    return True


cdef void filter_seal(uint8_t* at, uint32_t rare, uint32_t touched) noexcept nogil:
    """Write the header of a filter whose blocks are filled."""
    cdef uint32_t size = FILTER_HEADER_BYTES + (rare + touched) * FILTER_BLOCK_BYTES
    memset(at, 0, FILTER_HEADER_BYTES)
    store_u32(at, size)
    store_u32(at + 8, FILTER_MAGIC)
    store_u32(at + 16, rare)
    store_u32(at + 20, touched)
    store_u32(at + 4, crc32c(0, at + 8, size - 8))


cdef class TableFilter:
    """Says which keys a sealed segment has nothing of; of one in a hundred others it says that there may be something.

    Args:
        value: the stored value.

    Raises:
        GroupDamaged: it is not what was written.

    Any thread.
    """

    def __cinit__(self, bytes value not None):
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(value)
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(value)
        if (size < FILTER_HEADER_BYTES or load_u32(at) != size or load_u32(at + 8) != FILTER_MAGIC
                or crc32c(0, at + 8, <size_t>size - 8) != load_u32(at + 4)):
            raise page_damage()
        self.value = value
        self.rare = load_u32(at + 16)
        self.touched = load_u32(at + 20)
        if (self.rare == 0 or self.touched == 0
                or FILTER_HEADER_BYTES + (<uint64_t>self.rare + self.touched) * FILTER_BLOCK_BYTES != size):
            raise page_damage()

    cdef bint has(self, int kind, const uint8_t* key, size_t size) noexcept:
        cdef const uint8_t* blocks = <const uint8_t*>PyBytes_AS_STRING(self.value) + FILTER_HEADER_BYTES
        if kind == TABLE_CHANNELS:
            return filter_has(blocks + <uint64_t>self.rare * FILTER_BLOCK_BYTES, self.touched,
                              filter_hash(kind, key, size))
        return filter_has(blocks, self.rare, filter_hash(kind, key, size))

    def pick(self, int kind, list keys not None, bytearray skip=None):
        """Return the indexes of the keys that the segment may have something of.

        Args:
            kind: NAMES, LINES, CHANNELS, or CHANGED: channels of which there is more than a head.
            keys: as bytes, see `pages.pxd`; a CHANGED one as a channel's.
            skip: a byte for each key; those with another than 0 are passed over. None: no key is.
        """
        cdef list picked = []
        cdef bytes key
        cdef Py_ssize_t index
        cdef const uint8_t* passed = NULL
        if skip is not None:
            if len(skip) != len(keys):
                raise ValueError(f"skip: got {len(skip)} bytes for {len(keys)} keys")
            passed = <const uint8_t*>PyByteArray_AS_STRING(skip)
        for index in range(len(keys)):
            key = <bytes?>keys[index]
            if passed != NULL and passed[index]:
                continue
            if self.has(kind, <const uint8_t*>PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key)):
                picked.append(index)
        return picked

    def has_channel(self, uint64_t channel):
        """Whether the segment may have something of a channel, chunks included."""
        cdef uint8_t key[8]
        number_key(key, channel, 8)
        return self.has(TABLE_CHANNELS, key, 8)
