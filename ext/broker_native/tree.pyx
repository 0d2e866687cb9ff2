"""Reads the rows of an LMDB file without LMDB, trusting nothing that a flipped bit could have changed.

LMDB trusts every byte of its pages and ends the process when one is wrong; proving a file of many gigabytes before
LMDB may see it takes minutes. So an archive is read by this walk instead. It checks each page on the way: its number,
kind and bounds, that its nodes fill what it says is filled, that a leaf's keys ascend and lie between the keys of the
branches that led to it, that values lie within the file. So no row can be hidden but by a change of its own key, within
its neighbours' keys: who finds no row proves the two rows between which it would stand, by what it knows of rows.

A snapshot is the tree under one of the two meta pages, by its transaction's number. The caller holds an LMDB read
transaction of that number for as long as it reads, and no page of the tree is written over meanwhile; the meta page may
be, by the second commit after it, so it is taken once. The map is longer than the file: what the meta page does not
account for is never touched.

A row that proves itself, by a checksum over its key, needs none of that: a cursor may be told so (`unproved`), and then
looks at the few nodes of each page that a search meets, and at their bounds. What is not found so is sought again.

What this cannot find out: a page's number that a flip turns into that of an older copy of the same page.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.fcntl cimport open as posix_open
from posix.mman cimport MADV_RANDOM, MAP_FAILED, MAP_SHARED, PROT_READ, madvise, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as posix_close

from broker_native.btree cimport (
    META_BYTES,
    META_MAIN_TREE,
    META_PAGE_BYTES,
    NODE_FLAGS,
    NODE_HEADER_BYTES,
    PAGE_UPPER,
    TREE_DEPTH,
    TREE_ROOT,
    node_at,
    node_child,
    node_value,
    page_at,
    page_count,
    span_compare,
    walk_begin_at,
)
from broker_native.layout cimport load_u16, load_u32, load_u64

from broker_native.btree import TreeDamaged

cdef enum:
    PAGE_NONE = -1
    META_MAGIC_AT = 16
    META_VERSION_AT = 20
    META_TRANSACTION = 144
    META_VERSION = 1

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdint.h>
    static const uint32_t META_MAGIC = 0xBEEFC0DEu;
    #define OPEN_FLAGS (O_RDONLY | O_CLOEXEC)
    static inline void acquire_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    """
    const uint32_t META_MAGIC
    const int OPEN_FLAGS
    void acquire_fence() noexcept nogil


# -- the file ----------------------------------------------------------------------------------------------------------


cdef class MappedFile:
    """A file in memory, read-only.

    Args:
        path: The file.
        reserve_bytes: Address space to map; the file may grow up to it. It costs nothing before it is used.
        scattered: A few pages of it are wanted, and the system is to read no others ahead.

    Raises:
        OSError: The system refuses.

    Any thread. Close it only when no `TreeReader` of it is used any more.
    """

    def __cinit__(self, str path not None, uint64_t reserve_bytes, *, bint scattered=False):
        cdef bytes encoded = path.encode("utf-8", "surrogateescape")
        cdef int descriptor = posix_open(PyBytes_AS_STRING(encoded), OPEN_FLAGS)
        cdef int failure
        cdef void* data
        if descriptor < 0:
            raise OSError(errno, f"{path}: cannot be opened")
        data = mmap(NULL, reserve_bytes, PROT_READ, MAP_SHARED, descriptor, 0)
        if data == MAP_FAILED:
            failure = errno
            posix_close(descriptor)
            raise OSError(failure, f"{path}: {reserve_bytes} bytes cannot be mapped")
        if scattered:
            # Advice that is not taken costs time and nothing else.
            madvise(data, reserve_bytes, MADV_RANDOM)
        self.path = path
        self.descriptor = descriptor
        self.data = <const uint8_t*>data
        self.reserved = reserve_bytes

    def __dealloc__(self):
        self.close()

    def close(self):
        """Unmap and close the file. Idempotent."""
        # An object whose construction failed has no file, and its descriptor of 0 is standard input.
        cdef const uint8_t* data = self.data
        if data != NULL:
            self.data = NULL
            # What was touched is given back a page at a time.
            with nogil:
                munmap(<void*>data, self.reserved)
            posix_close(self.descriptor)

    @property
    def size(self):
        """How long the file is now, bytes."""
        return self.file_bytes()

    cdef uint64_t file_bytes(self) except? 0:
        cdef struct_stat found
        if self.data == NULL:
            raise ValueError(f"{self.path}: is closed")
        if fstat(self.descriptor, &found) != 0:
            raise OSError(errno, f"{self.path}: cannot be looked at")
        return <uint64_t>found.st_size if <uint64_t>found.st_size < self.reserved else self.reserved


cdef class MappedValue:
    """A value where it stands in a file, without a copy: a buffer, good while the file is mapped and no longer."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.mapped.data == NULL:
            raise ValueError(f"{self.mapped.path}: is closed")
        PyBuffer_FillInfo(buffer, self, <void*>self.at, <Py_ssize_t>self.size, True, flags)


# -- the cursor --------------------------------------------------------------------------------------------------------


cdef inline int damaged(TreeCursor* cursor, const uint8_t* at) noexcept nogil:
    if cursor.walk.damage == 0:
        cursor.walk.damage = <uint64_t>(at - cursor.walk.file)
    return CURSOR_DAMAGED


cdef int page_filled(TreeCursor* cursor, const uint8_t* page, bint leaf) noexcept nogil:
    """Check that a page's nodes are all that is in it: LMDB leaves no holes, so a node that is missing shows."""
    cdef const uint8_t* node
    cdef Span key
    cdef uint64_t filled = 0
    cdef uint64_t size
    cdef uint32_t index
    for index in range(page_count(page)):
        node = node_at(&cursor.walk, page, index, &key)
        if node == NULL:
            return damaged(cursor, page)
        size = NODE_HEADER_BYTES + key.size
        if leaf:
            size += 8 if load_u16(node + NODE_FLAGS) else load_u32(node)
        filled += (size + 1) & ~<uint64_t>1
    if filled != cursor.walk.page_bytes - load_u16(page + PAGE_UPPER):
        return damaged(cursor, page)
    return CURSOR_ROW


cdef int leaf_prove(TreeCursor* cursor, const Span* low, const Span* high) noexcept nogil:
    """Check a leaf that is entered: keys ascend between the branches' keys, and values are within the file."""
    cdef const uint8_t* page = cursor.pages[cursor.depth - 1]
    cdef const uint8_t* node
    cdef Span before, key, value
    cdef uint32_t index
    before = low[0]
    for index in range(page_count(page)):
        node = node_at(&cursor.walk, page, index, &key)
        if node == NULL or not node_value(&cursor.walk, page, node, &key, &value):
            return damaged(cursor, page)
        if key.size == 0 or (before.at != NULL and span_compare(&before, &key) > (0 if index == 0 else -1)):
            return damaged(cursor, node)
        before = key
    if high.at != NULL and span_compare(&before, high) >= 0:
        return damaged(cursor, page)
    return page_filled(cursor, page, True)


cdef int cursor_descend(TreeCursor* cursor, uint32_t level, uint64_t number, const Span* wanted,
                        int side) noexcept nogil:
    """Go down from a page at a level to a leaf: to where `wanted` is, or (NULL) to the first (0) or last (1) row.

    The bounds of the leaf are those of the branches above it, which `indexes` names down to `level`.
    """
    cdef const uint8_t* page
    cdef const uint8_t* node
    cdef Span key, low, high
    cdef uint32_t index, first, last, middle, above
    while True:
        page = page_at(&cursor.walk, number, level == cursor.depth - 1)
        if page == NULL:
            return damaged(cursor, cursor.walk.file + cursor.meta_at)
        cursor.pages[level] = page
        if level == cursor.depth - 1:
            break
        if not cursor.unproved and cursor.filled[level] != page:
            if page_filled(cursor, page, False) != CURSOR_ROW:
                return CURSOR_DAMAGED
            cursor.filled[level] = page
        first = 0
        last = page_count(page) - 1
        if wanted == NULL:
            index = last if side else 0
        else:
            # The last node whose key is not greater; the first node's key is never looked at.
            while first < last:
                middle = first + (last - first + 1) // 2
                if node_at(&cursor.walk, page, middle, &key) == NULL:
                    return damaged(cursor, page)
                if span_compare(&key, wanted) <= 0:
                    first = middle
                else:
                    last = middle - 1
            index = first
        node = node_at(&cursor.walk, page, index, &key)
        if node == NULL:
            return damaged(cursor, page)
        cursor.indexes[level] = index
        number = node_child(node)
        level += 1
    if cursor.unproved:
        return CURSOR_ROW
    low.at = high.at = NULL
    low.size = high.size = 0
    for above in range(level):
        page = cursor.pages[above]
        if cursor.indexes[above] > 0 and node_at(&cursor.walk, page, cursor.indexes[above], &key) != NULL:
            low = key
        if (cursor.indexes[above] + 1 < page_count(page)
                and node_at(&cursor.walk, page, cursor.indexes[above] + 1, &key) != NULL):
            high = key
    return leaf_prove(cursor, &low, &high)


cdef int cursor_take(TreeCursor* cursor) noexcept nogil:
    """Set key and value from the leaf's node that the cursor is on."""
    cdef uint32_t level = cursor.depth - 1
    cdef const uint8_t* node = node_at(&cursor.walk, cursor.pages[level], cursor.indexes[level], &cursor.key)
    if node == NULL or not node_value(&cursor.walk, cursor.pages[level], node, &cursor.key, &cursor.value):
        return damaged(cursor, cursor.pages[level])
    return CURSOR_ROW


cdef int leaf_search(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Put the leaf's index on the first row that is not below `wanted`, maybe past the last one."""
    cdef const uint8_t* page = cursor.pages[cursor.depth - 1]
    cdef Span key
    cdef uint32_t first = 0
    cdef uint32_t last = page_count(page)
    cdef uint32_t middle
    while first < last:
        middle = first + (last - first) // 2
        if node_at(&cursor.walk, page, middle, &key) == NULL:
            return damaged(cursor, page)
        if span_compare(&key, wanted) < 0:
            first = middle + 1
        else:
            last = middle
    cursor.indexes[cursor.depth - 1] = first
    return CURSOR_ROW


cdef bint leaf_holds(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Whether the leaf that the cursor is in has a row below and one not below `wanted`: no descent is needed then."""
    cdef const uint8_t* page = cursor.pages[cursor.depth - 1]
    cdef Span key
    if cursor.key.at == NULL:
        return False
    if node_at(&cursor.walk, page, 0, &key) == NULL or span_compare(&key, wanted) > 0:
        return False
    return (node_at(&cursor.walk, page, page_count(page) - 1, &key) != NULL and span_compare(&key, wanted) >= 0)


cdef int cursor_seek(TreeCursor* cursor, const Span* wanted) noexcept nogil:
    """Go to the first row whose key is not below `wanted`.

    Sought in ascending order, neighbours cost no descent.
    """
    cdef int state
    if cursor.depth == 0:
        return CURSOR_END
    if not leaf_holds(cursor, wanted):
        cursor.key.at = NULL
        state = cursor_descend(cursor, 0, cursor.root, wanted, 0)
        if state != CURSOR_ROW:
            return state
    if leaf_search(cursor, wanted) != CURSOR_ROW:
        return CURSOR_DAMAGED
    if cursor.indexes[cursor.depth - 1] < page_count(cursor.pages[cursor.depth - 1]):
        return cursor_take(cursor)
    # The next leaf begins past `wanted`: its first key is not below the branch that kept the descent out of it.
    cursor.indexes[cursor.depth - 1] -= 1
    return cursor_next(cursor)


cdef int cursor_last(TreeCursor* cursor) noexcept nogil:
    """Go to the last row."""
    cdef int state
    if cursor.depth == 0:
        return CURSOR_END
    cursor.key.at = NULL
    state = cursor_descend(cursor, 0, cursor.root, NULL, 1)
    if state != CURSOR_ROW:
        return state
    cursor.indexes[cursor.depth - 1] = page_count(cursor.pages[cursor.depth - 1]) - 1
    return cursor_take(cursor)


cdef int cursor_turn(TreeCursor* cursor, int step) noexcept nogil:
    """Go to the neighbouring leaf on one side (1 or -1)."""
    cdef uint32_t level = cursor.depth - 1
    cdef const uint8_t* node
    cdef Span key
    cdef int state
    while level > 0:
        level -= 1
        if step > 0 and cursor.indexes[level] + 1 < page_count(cursor.pages[level]):
            cursor.indexes[level] += 1
        elif step < 0 and cursor.indexes[level] > 0:
            cursor.indexes[level] -= 1
        else:
            continue
        node = node_at(&cursor.walk, cursor.pages[level], cursor.indexes[level], &key)
        if node == NULL:
            return damaged(cursor, cursor.pages[level])
        state = cursor_descend(cursor, level + 1, node_child(node), NULL, step < 0)
        if state != CURSOR_ROW:
            return state
        level = cursor.depth - 1
        cursor.indexes[level] = 0
        if step < 0:
            cursor.indexes[level] = page_count(cursor.pages[level]) - 1
        return cursor_take(cursor)
    cursor.key.at = NULL
    return CURSOR_END


cdef int cursor_next(TreeCursor* cursor) noexcept nogil:
    """Go from a row to the next one."""
    cdef uint32_t level = cursor.depth - 1
    if cursor.indexes[level] + 1 < page_count(cursor.pages[level]):
        cursor.indexes[level] += 1
        return cursor_take(cursor)
    return cursor_turn(cursor, 1)


cdef int cursor_prev(TreeCursor* cursor) noexcept nogil:
    """Go from a row, or from the end that a seek or `cursor_last` found, to the one before it."""
    cdef uint32_t level = cursor.depth - 1
    if cursor.depth == 0:
        return CURSOR_END
    if cursor.key.at == NULL:
        return cursor_last(cursor)
    if cursor.indexes[level] > 0:
        cursor.indexes[level] -= 1
        return cursor_take(cursor)
    return cursor_turn(cursor, -1)


# -- a snapshot --------------------------------------------------------------------------------------------------------


cdef class TreeReader:
    """The main tree of one snapshot of a file.

    Args:
        mapped: The file.
        transaction: The number of the transaction that wrote the snapshot.

    Raises:
        LookupError: The meta page is of another transaction by now: begin anew with a newer one.
        TreeDamaged: The meta pages cannot be right.

    Attributes:
        overtaken: The commit after the snapshot's was there, maybe not finished. The one after that writes the meta
            page over, bit by bit; so what was read of it is right only if LMDB, asked after this, still begins read
            transactions with the same number.
    """

    def __cinit__(self, MappedFile mapped not None, uint64_t transaction):
        cdef uint64_t file_bytes = mapped.file_bytes()
        cdef uint32_t page_bytes
        self.mapped = mapped
        if file_bytes < META_BYTES:
            raise TreeDamaged(0)
        page_bytes = load_u32(mapped.data + META_PAGE_BYTES)
        if page_bytes < 512 or page_bytes > 65536 or file_bytes < 2 * <uint64_t>page_bytes:
            raise TreeDamaged(0)
        self.meta_at = page_bytes if transaction % 2 else 0
        self.take_meta(transaction)
        if not walk_begin_at(&self.walk, mapped.data, file_bytes, self.meta_at):
            raise TreeDamaged(self.meta_at)
        if self.walk.page_bytes != page_bytes or self.depth > DEPTH_MAX or (
                (self.depth == 0) != (self.root == <uint64_t><int64_t>PAGE_NONE)):
            raise TreeDamaged(self.meta_at)
        self.prove_meta_untouched(transaction)

    cdef int take_meta(self, uint64_t transaction) except -1:
        """Read the snapshot's meta page, transaction n's being page n mod 2."""
        cdef const uint8_t* meta = self.mapped.data + self.meta_at
        cdef const uint8_t* tree = meta + META_MAIN_TREE
        if load_u32(meta + META_MAGIC_AT) != META_MAGIC or load_u32(meta + META_VERSION_AT) != META_VERSION:
            raise TreeDamaged(self.meta_at)
        if load_u64(meta + META_TRANSACTION) != transaction:
            raise LookupError(f"{self.mapped.path}: the snapshot of transaction {transaction} is gone")
        self.depth = load_u16(tree + TREE_DEPTH)
        self.root = load_u64(tree + TREE_ROOT)
        return 0

    cdef int prove_meta_untouched(self, uint64_t transaction) except -1:
        """Make sure that the meta page was not being written over while it was read.

        Only the second commit after the snapshot's does that, and the first one shows in the other page before.
        """
        cdef const uint8_t* other = self.mapped.data + (0 if self.meta_at else self.walk.page_bytes)
        cdef uint64_t newest
        acquire_fence()
        newest = load_u64(other + META_TRANSACTION)
        if newest > transaction + 1 or load_u64(self.mapped.data + self.meta_at + META_TRANSACTION) != transaction:
            raise LookupError(f"{self.mapped.path}: the snapshot of transaction {transaction} is gone")
        self.overtaken = newest > transaction
        return 0

    cdef int begin(self, TreeCursor* cursor) except -1:
        """Set up a cursor that is on no row. It is good as long as the snapshot."""
        if self.mapped.data == NULL:
            raise ValueError(f"{self.mapped.path}: is closed")
        memset(cursor, 0, sizeof(TreeCursor))
        cursor.walk = self.walk
        cursor.meta_at = self.meta_at
        cursor.root = self.root
        cursor.depth = self.depth
        return 0

    cdef object damage(self, const TreeCursor* cursor):
        return TreeDamaged(cursor.walk.damage)

    def get(self, bytes key not None):
        """The value of a key, copied; None when there is none.

        Raises:
            TreeDamaged: A page on the way is not what LMDB writes.
        """
        return self.get_sorted([key])[0]

    def find(self, bytes key not None):
        """The value of a key where it stands, a borrowed view; None when there is none. Errors as of `get`.

        It is good while the file is mapped, and no longer: whoever reads it later dies of that.
        """
        cdef TreeCursor cursor
        cdef MappedValue value
        cdef Span wanted
        cdef int state
        wanted.at = <const uint8_t*>PyBytes_AS_STRING(key)
        wanted.size = <uint64_t>PyBytes_GET_SIZE(key)
        self.begin(&cursor)
        state = cursor_seek(&cursor, &wanted)
        if state == CURSOR_DAMAGED:
            raise self.damage(&cursor)
        if state != CURSOR_ROW or span_compare(&cursor.key, &wanted) != 0:
            return None
        value = MappedValue.__new__(MappedValue)
        value.mapped = self.mapped
        value.at = cursor.value.at
        value.size = cursor.value.size
        return memoryview(value)

    def get_sorted(self, list keys not None):
        """The values of many keys, copied, None for each that is not there. Ascending keys cost least."""
        cdef TreeCursor cursor
        cdef Span wanted
        cdef bytes key
        cdef list found = []
        cdef int state
        self.begin(&cursor)
        for key in keys:
            wanted.at = <const uint8_t*>PyBytes_AS_STRING(key)
            wanted.size = <uint64_t>PyBytes_GET_SIZE(key)
            state = cursor_seek(&cursor, &wanted)
            if state == CURSOR_DAMAGED:
                raise self.damage(&cursor)
            if state == CURSOR_ROW and span_compare(&cursor.key, &wanted) == 0:
                found.append(PyBytes_FromStringAndSize(<const char*>cursor.value.at, <Py_ssize_t>cursor.value.size))
            else:
                found.append(None)
        return found

    def range(self, bytes start not None, bytes end not None, uint64_t count_max, uint64_t bytes_max):
        """The rows from `start` on and below `end`, ascending: (key, value), copied.

        Args:
            start, end: Keys; an empty `end` is past all of them.
            count_max: At most so many.
            bytes_max: At least one row if there is one, further ones while their sum of sizes is within it.
        """
        cdef TreeCursor cursor
        cdef Span wanted
        cdef int state
        self.begin(&cursor)
        wanted.at = <const uint8_t*>PyBytes_AS_STRING(start)
        wanted.size = <uint64_t>PyBytes_GET_SIZE(start)
        state = cursor_seek(&cursor, &wanted)
        return self.collect(&cursor, state, end, count_max, bytes_max, 1)

    def range_back(self, bytes start not None, bytes end not None, uint64_t count_max, uint64_t bytes_max):
        """The rows below `start` and from `end` on, descending; an empty `start` is past all keys. As `range`."""
        cdef TreeCursor cursor
        cdef Span wanted
        cdef int state
        self.begin(&cursor)
        if PyBytes_GET_SIZE(start) == 0:
            state = cursor_last(&cursor)
        else:
            wanted.at = <const uint8_t*>PyBytes_AS_STRING(start)
            wanted.size = <uint64_t>PyBytes_GET_SIZE(start)
            state = cursor_seek(&cursor, &wanted)
            if state != CURSOR_DAMAGED:
                state = cursor_prev(&cursor)
        return self.collect(&cursor, state, end, count_max, bytes_max, -1)

    cdef list collect(self, TreeCursor* cursor, int state, bytes end, uint64_t count_max, uint64_t bytes_max, int step):
        cdef Span bound
        cdef list rows = []
        cdef uint64_t size
        cdef int order
        bound.at = <const uint8_t*>PyBytes_AS_STRING(end)
        bound.size = <uint64_t>PyBytes_GET_SIZE(end)
        while state == CURSOR_ROW and count_max:
            if bound.size:
                order = span_compare(&cursor.key, &bound)
                if (order >= 0 and step > 0) or (order < 0 and step < 0):
                    break
            size = cursor.key.size + cursor.value.size
            if rows and size > bytes_max:
                break
            rows.append((
                PyBytes_FromStringAndSize(<const char*>cursor.key.at, <Py_ssize_t>cursor.key.size),
                PyBytes_FromStringAndSize(<const char*>cursor.value.at, <Py_ssize_t>cursor.value.size),
            ))
            bytes_max -= size if size < bytes_max else bytes_max
            count_max -= 1
            state = cursor_next(cursor) if step > 0 else cursor_prev(cursor)
        if state == CURSOR_DAMAGED:
            raise self.damage(cursor)
        return rows
