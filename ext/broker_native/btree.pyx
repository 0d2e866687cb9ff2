"""Proves that an LMDB file may be handed to LMDB, which trusts every byte of it.

LMDB follows page numbers, offsets and sizes without looking at them twice: one flipped bit there can end the process
by a signal or an assertion, or lead a search past what it looks for, and no checksum of a value can prevent that.
`check_tree` walks all branch and leaf pages once and checks everything that LMDB takes on trust: page numbers and
kinds, bounds of nodes, keys in order and within the bounds of their branches, values within the file, no page referred
to twice, the number of entries; for a file that will be written to also the list of free pages, which must be free.
`find_row` looks one key up with the same distrust, for those who only want that.

Pages of large values are not touched; what they hold has checksums of its own. The caller has checked the metas (magic,
version, page size). Nothing here knows what the rows mean.

A file may be shorter than its meta says: LMDB does not write a page that a transaction takes at the end and gives back
before it commits. Such pages are in the list of free ones; whoever meets a short file has that list checked as well.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from broker_native.layout cimport load_u16, load_u32, load_u64

cdef enum:
    PAGE_NONE = -1


class TreeDamaged(ValueError):
    """A file's structure cannot be what LMDB wrote.

    Attributes:
        offset: where, in bytes from the beginning of the file; the page or node that is wrong begins there or before.
    """

    def __init__(self, offset):
        super().__init__(f"its structure is damaged at offset {offset}")
        self.offset = offset


cdef inline bint wrong(TreeWalk* walk, const uint8_t* at) noexcept nogil:
    walk.damage = <uint64_t>(at - walk.file)
    return False


cdef int span_compare(const Span* left, const Span* right) noexcept nogil:
    """Compare as LMDB compares keys: byte by byte, and a prefix is less."""
    cdef uint64_t shorter = left.size if left.size < right.size else right.size
    cdef int order = memcmp(left.at, right.at, shorter)
    if order != 0:
        return order
    return (left.size > right.size) - (left.size < right.size)


cdef inline int key_compare(const TreeWalk* walk, const Span* left, const Span* right) noexcept nogil:
    if not walk.free_list:
        return span_compare(left, right)
    return (load_u64(left.at) > load_u64(right.at)) - (load_u64(left.at) < load_u64(right.at))


cdef bint pages_claim(TreeWalk* walk, uint64_t first, uint64_t count, uint64_t end, const uint8_t* by) noexcept nogil:
    """Note that pages are referred to; wrong when the first is not before `end`, or one is referred to already.

    A count above 1 is that of a large value, whose pages `node_value` has found to be in the file.
    """
    cdef uint64_t page
    if first < PAGES_FIRST or first >= end:
        return wrong(walk, by)
    for page in range(first, first + count):
        if walk.seen[page >> 3] >> (page & 7) & 1:
            return wrong(walk, by)
        walk.seen[page >> 3] |= <uint8_t>(1 << (page & 7))
    return True


cdef const uint8_t* page_at(TreeWalk* walk, uint64_t number, bint leaf) noexcept nogil:
    """Return a branch or leaf page whose header is checked; NULL when it is wrong."""
    cdef const uint8_t* page
    cdef uint32_t lower, upper
    if number < PAGES_FIRST or number >= walk.pages:
        return NULL
    page = walk.file + number * walk.page_bytes
    lower = load_u16(page + PAGE_LOWER)
    upper = load_u16(page + PAGE_UPPER)
    if (
        load_u64(page + PAGE_NUMBER) != number
        or load_u16(page + PAGE_FLAGS) != (PAGE_LEAF if leaf else PAGE_BRANCH)
        or lower < PAGE_NODES + (2 if leaf else 4)
        or lower % 2 != 0
        or upper < lower
        or upper > walk.page_bytes
    ):
        wrong(walk, page)
        return NULL
    return page


cdef uint32_t page_count(const uint8_t* page) noexcept nogil:
    return (load_u16(page + PAGE_LOWER) - PAGE_NODES) // 2


cdef const uint8_t* node_at(TreeWalk* walk, const uint8_t* page, uint32_t index, Span* key) noexcept nogil:
    """Return a node whose header and key lie within its page, and its key; NULL when they do not."""
    cdef uint32_t offset = load_u16(page + PAGE_NODES + 2 * index)
    cdef uint32_t key_size
    if offset < load_u16(page + PAGE_UPPER) or offset > walk.page_bytes - NODE_HEADER_BYTES:
        wrong(walk, page + PAGE_NODES + 2 * index)
        return NULL
    key_size = load_u16(page + offset + NODE_KEY_SIZE)
    if key_size > walk.page_bytes - NODE_HEADER_BYTES - offset:
        wrong(walk, page + offset)
        return NULL
    key.at = page + offset + NODE_HEADER_BYTES
    key.size = key_size
    return page + offset


cdef uint64_t node_child(const uint8_t* node) noexcept nogil:
    return load_u32(node) | <uint64_t>load_u16(node + NODE_FLAGS) << 32


cdef bint node_value(TreeWalk* walk, const uint8_t* page, const uint8_t* node, Span* key, Span* value) noexcept nogil:
    """Find a leaf node's value, within its page or in pages of its own, which are within the file."""
    cdef uint64_t room = walk.page_bytes - <uint64_t>(key.at + key.size - page)
    cdef uint64_t first, count
    value.size = load_u32(node)
    value.at = key.at + key.size
    if load_u16(node + NODE_FLAGS) == 0:
        if value.size > room:
            return wrong(walk, node)
        return True
    if load_u16(node + NODE_FLAGS) != NODE_BIGDATA or room < 8:
        return wrong(walk, node)
    first = load_u64(value.at)
    count = (PAGE_NODES - 1 + value.size) // walk.page_bytes + 1
    if first < PAGES_FIRST or first >= walk.pages or count > walk.pages - first:
        return wrong(walk, node)
    value.at = walk.file + first * walk.page_bytes + PAGE_NODES
    return True


cdef bint walk_leaf_key(TreeWalk* walk, const uint8_t* node, const Span* key) noexcept nogil:
    """Check that a leaf's key goes on from the one before, and is not below the branch that led to it."""
    if key.size == 0 or (walk.free_list and key.size != 8):
        return wrong(walk, node)
    if walk.last_key.size != 0 and key_compare(walk, &walk.last_key, key) >= 0:
        return wrong(walk, node)
    if walk.bound.size != 0 and key_compare(walk, key, &walk.bound) < 0:
        return wrong(walk, node)
    walk.bound.size = 0
    walk.last_key = key[0]
    walk.entries += 1
    return True


cdef bint walk_free_pages(TreeWalk* walk, const uint8_t* node, const Span* value) noexcept nogil:
    """Check a list of free pages: its count, then numbers from the greatest down, none of them in use."""
    cdef uint64_t count, item
    if value.size < 8 or value.size % 8 != 0:
        return wrong(walk, node)
    count = load_u64(value.at)
    if count > value.size // 8 - 1:
        return wrong(walk, node)
    for item in range(1, count + 1):
        if item > 1 and load_u64(value.at + 8 * item) >= load_u64(value.at + 8 * item - 8):
            return wrong(walk, node)
        if not pages_claim(walk, load_u64(value.at + 8 * item), 1, walk.declared, node):
            return False
    return True


cdef bint walk_leaf(TreeWalk* walk, const uint8_t* page) noexcept nogil:
    cdef Span key, value
    cdef uint32_t index
    cdef const uint8_t* node
    for index in range(page_count(page)):
        node = node_at(walk, page, index, &key)
        if node == NULL or not walk_leaf_key(walk, node, &key) or not node_value(walk, page, node, &key, &value):
            return False
        if load_u16(node + NODE_FLAGS) == NODE_BIGDATA and not pages_claim(
            walk, load_u64(key.at + key.size), (PAGE_NODES - 1 + value.size) // walk.page_bytes + 1, walk.pages, node
        ):
            return False
        if walk.free_list and not walk_free_pages(walk, node, &value):
            return False
    return True


cdef bint walk_page(TreeWalk* walk, uint64_t number, uint32_t depth, const uint8_t* by) noexcept nogil:
    """Walk a page and everything below it, in the order of keys. `depth` is 1 at the leaves."""
    cdef const uint8_t* page
    cdef const uint8_t* node
    cdef Span key
    cdef uint32_t index
    if not pages_claim(walk, number, 1, walk.pages, by):
        return False
    page = page_at(walk, number, depth == 1)
    if page == NULL:
        return False
    if depth == 1:
        return walk_leaf(walk, page)
    for index in range(page_count(page)):
        node = node_at(walk, page, index, &key)
        if node == NULL:
            return False
        # LMDB never looks at the first key of a branch.
        if index > 0:
            if key.size == 0 or (walk.free_list and key.size != 8) or key_compare(walk, &walk.last_key, &key) >= 0:
                return wrong(walk, node)
            walk.bound = key
        if not walk_page(walk, node_child(node), depth - 1, node):
            return False
    return True


cdef bint walk_tree(TreeWalk* walk, const uint8_t* tree, uint32_t flags) noexcept nogil:
    """Walk one of a meta's two trees."""
    cdef uint32_t depth = load_u16(tree + TREE_DEPTH)
    cdef uint64_t root = load_u64(tree + TREE_ROOT)
    walk.free_list = flags == TREE_INTEGER_KEY
    walk.entries = 0
    walk.last_key.size = 0
    walk.bound.size = 0
    if (load_u16(tree + TREE_FLAGS) & ~TREE_NO_FOLDER) != flags or depth > DEPTH_MAX:
        return wrong(walk, tree)
    if root == <uint64_t><int64_t>PAGE_NONE:
        # A tree without pages has no rows either.
        if depth != 0:
            return wrong(walk, tree)
    elif depth == 0:
        return wrong(walk, tree)
    elif not walk_page(walk, root, depth, tree):
        return False
    if walk.entries != load_u64(tree + TREE_ENTRIES):
        return wrong(walk, tree)
    return True


cdef bint walk_begin(TreeWalk* walk, const Py_buffer* view, uint64_t meta_at) noexcept nogil:
    return walk_begin_at(walk, <const uint8_t*>view.buf, <uint64_t>view.len, meta_at)


cdef bint walk_begin_at(TreeWalk* walk, const uint8_t* file, uint64_t size, uint64_t meta_at) noexcept nogil:
    """Set a walk up from a meta page; wrong when the file is much shorter than the meta says."""
    cdef const uint8_t* meta
    cdef uint64_t there
    memset(walk, 0, sizeof(TreeWalk))
    walk.file = file
    if meta_at > size or size - meta_at < META_BYTES:
        return False
    meta = walk.file + meta_at
    walk.damage = meta_at
    walk.page_bytes = load_u32(meta + META_PAGE_BYTES)
    walk.declared = load_u64(meta + META_LAST_PAGE) + 1
    if walk.page_bytes < 512 or walk.page_bytes > 65536:
        return False
    there = size // walk.page_bytes
    if walk.declared > there + PAGES_UNWRITTEN_MAX:
        return False
    walk.pages = walk.declared if walk.declared < there else there
    walk.damage = 0
    return True


cdef bint check_trees(TreeWalk* walk, uint64_t meta_at, bint writable) noexcept nogil:
    cdef uint64_t page
    if not walk_tree(walk, walk.file + meta_at + META_MAIN_TREE, 0):
        return False
    if not writable and walk.pages == walk.declared:
        return True
    if not walk_tree(walk, walk.file + meta_at + META_FREE_TREE, TREE_INTEGER_KEY):
        return False
    for page in range(walk.pages, walk.declared):
        if not walk.seen[page >> 3] >> (page & 7) & 1:
            return wrong(walk, walk.file + meta_at)
    return True


def check_tree(file, uint64_t meta_at, bint writable):
    """Prove that LMDB can read a file safely, and write to it if asked.

    Args:
        file: the whole file, usually a map of it; borrowed for the call, and nobody may write to it meanwhile.
        meta_at: where the newer meta page begins, bytes.
        writable: check the list of free pages, too; it always is when the file is shorter than the meta says.

    Raises:
        TreeDamaged: the structure is not what LMDB writes.
        MemoryError: there is no room for a bit for each page.

    Any thread; the interpreter lock is free meanwhile. Touches every branch and leaf page once.
    """
    cdef Py_buffer view
    cdef TreeWalk walk
    cdef bint sound
    PyObject_GetBuffer(file, &view, PyBUF_SIMPLE)
    try:
        if not walk_begin(&walk, &view, meta_at):
            raise TreeDamaged(walk.damage)
        walk.seen = <uint8_t*>PyMem_RawMalloc(walk.declared // 8 + 1)
        if walk.seen == NULL:
            raise MemoryError
        with nogil:
            memset(walk.seen, 0, walk.declared // 8 + 1)
            sound = check_trees(&walk, meta_at, writable)
            PyMem_RawFree(walk.seen)
        if not sound:
            raise TreeDamaged(walk.damage)
    finally:
        PyBuffer_Release(&view)


cdef const uint8_t* tree_find(TreeWalk* walk, const uint8_t* tree, const Span* wanted, Span* value) noexcept nogil:
    """Return the leaf node of a key, NULL when there is none or something on the way is wrong (`damage` is set)."""
    cdef uint64_t number = load_u64(tree + TREE_ROOT)
    cdef uint32_t depth = load_u16(tree + TREE_DEPTH)
    cdef const uint8_t* page
    cdef const uint8_t* node
    cdef const uint8_t* below
    cdef Span key
    cdef uint32_t index
    if number == <uint64_t><int64_t>PAGE_NONE:
        return NULL
    if depth > DEPTH_MAX:
        wrong(walk, tree)
        return NULL
    while depth > 0:
        page = page_at(walk, number, depth == 1)
        if page == NULL:
            if walk.damage == 0:
                wrong(walk, tree)
            return NULL
        below = NULL
        for index in range(page_count(page)):
            node = node_at(walk, page, index, &key)
            if node == NULL:
                return NULL
            if depth == 1 and span_compare(&key, wanted) == 0:
                return node if node_value(walk, page, node, &key, value) else NULL
            if depth > 1 and index > 0 and span_compare(&key, wanted) > 0:
                break
            below = node
        number = node_child(below)
        depth -= 1
    return NULL


def find_row(file, uint64_t meta_at, bytes key):
    """Look a key up without LMDB, trusting nothing.

    Args:
        file: as in `check_tree`.
        meta_at: as in `check_tree`.
        key: the key, at least one byte.

    Returns:
        (offset, size) of its value in the file, bytes; None when the main tree has no such key.

    Raises:
        TreeDamaged: a page on the way to it is not what LMDB writes.

    Any thread. Touches one page a level, each wholly.
    """
    cdef Py_buffer view
    cdef TreeWalk walk
    cdef Span wanted, value
    cdef const uint8_t* node
    wanted.at = <const uint8_t*>key
    wanted.size = <uint64_t>len(key)
    PyObject_GetBuffer(file, &view, PyBUF_SIMPLE)
    try:
        if not walk_begin(&walk, &view, meta_at):
            raise TreeDamaged(walk.damage)
        node = tree_find(&walk, walk.file + meta_at + META_MAIN_TREE, &wanted, &value)
        if node == NULL and walk.damage != 0:
            raise TreeDamaged(walk.damage)
        return None if node == NULL else (<uint64_t>(value.at - walk.file), value.size)
    finally:
        PyBuffer_Release(&view)
