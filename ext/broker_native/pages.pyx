"""The pages in which a sealed segment keeps what it changed in the tables, and the filter that spares looking there.

A page proves of each key that it covers whether the segment has it: by its checksum, its bounds, and the name of the
row that it is found under. Which page covers a key is the caller's business; a wrong one is told from a right one.

Nothing here knows of LMDB, files or groups. Buffers are borrowed for the length of one call. Damage is `GroupDamaged`
with the reason "table page".
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from broker_native.crc32c cimport crc32c
from broker_native.index cimport DAMAGE_TABLE, Damage, damage_error, damaged, key_mix
from broker_native.layout cimport ENTRY_HEADER_BYTES, load_u32, load_u64, store_u32

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


cdef int key_compare(const uint8_t* left, size_t left_size, const uint8_t* right, size_t right_size) noexcept nogil:
    cdef int order = memcmp(left, right, left_size if left_size < right_size else right_size)
    if order != 0:
        return order
    return (left_size > right_size) - (left_size < right_size)


cdef bint table_page_check(const uint8_t* at, size_t size, int kind, bytes low) noexcept:
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
    return key_compare(at + items_end, low_size, <const uint8_t*>PyBytes_AS_STRING(low),
                       <size_t>PyBytes_GET_SIZE(low)) == 0


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
        number_key(item.number, load_u64(at), 8)
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


def find_in_table(int kind, bytes low not None, page, list keys not None, list picked not None, Py_ssize_t at,
                  list into not None):
    """Look many keys up in one page.

    Args:
        kind: NAMES, CHANNELS or LINES.
        low: what the row's key says that the page begins with.
        page: the stored value; borrowed for the call.
        keys: as bytes, see `pages.pxd`.
        picked: which of the keys are wanted, in the keys' ascending order; from `at` on, the first of them not below
            `low`.
        into: gets (index in `keys`, value) for each that is there: a name's channel, else the entries as bytes.

    Returns:
        The first of `picked` that the page does not cover.

    Raises:
        GroupDamaged: the page is not what was written, or not the one that covers the first key.

    Any thread. A few microseconds, most of them for the checksum.
    """
    cdef Py_buffer view
    cdef const uint8_t* data
    cdef PageItem item
    cdef uint32_t offset = TABLE_PAGE_HEADER_BYTES, following = TABLE_PAGE_HEADER_BYTES
    cdef uint32_t end, bound_size, number = 0, count
    cdef const uint8_t* bound
    cdef bytes key
    cdef Py_ssize_t begun = at
    cdef int order = -1
    PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t*>view.buf
        if not table_page_check(data, <size_t>view.len, kind, low):
            raise page_damage()
        end = load_u32(data + 20)
        bound_size = load_u32(data + 28)
        bound = data + view.len - bound_size
        count = load_u32(data + 12)
        while at < len(picked):
            key = <bytes>keys[<Py_ssize_t>picked[at]]
            if bound_size and key_compare(<const uint8_t*>PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key),
                                          bound, bound_size) >= 0:
                break
            # The item that the last key stopped at is looked at again: it may be this one's.
            while True:
                if following == offset:
                    if number == count:
                        break
                    following = page_item(data, offset, end, kind, number, &item)
                    if following == 0:
                        raise page_damage()
                order = key_compare(item.key, item.key_size, <const uint8_t*>PyBytes_AS_STRING(key),
                                    <size_t>PyBytes_GET_SIZE(key))
                if order >= 0:
                    break
                offset = following
                number += 1
            if number < count and order == 0:
                into.append((picked[at], item_value(kind, &item)))
            at += 1
        if at == begun and at < len(picked):
            raise page_damage()
        return at
    finally:
        PyBuffer_Release(&view)


def table_items(int kind, bytes low not None, page):
    """Return all that a page holds.

    Args:
        kind, low, page: as of `find_in_table`.

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
        if not table_page_check(data, <size_t>view.len, kind, low):
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
