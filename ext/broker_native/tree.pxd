# Reading an LMDB file by our own walk, one snapshot at a time.
#
# MappedFile   a file in memory, read-only, mapped once with room to grow.
# TreeReader   the main tree of one snapshot. Whoever uses one holds an LMDB read transaction with the same id for as
#              long, so that no page of it is written over.
# TreeCursor   a place in that tree; plain memory, no lock, no Python. Keys and values are borrowed from the map.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.btree cimport DEPTH_MAX, Span, TreeWalk

ctypedef bint (*RowCheck)(const Span* key, const Span* value) noexcept nogil

cdef enum:
    CURSOR_DAMAGED = -1           # `walk.damage` says where
    CURSOR_END = 0                # no such row
    CURSOR_ROW = 1                # on a row: `key` and `value` are set

cdef struct TreeCursor:
    TreeWalk walk
    const uint8_t* tree           # the root's description in the meta page
    RowCheck check                # proves each row of a leaf that is entered whose value stands in the leaf; NULL: none
    uint32_t depth                # levels; 0 for an empty tree
    const uint8_t* pages[DEPTH_MAX]
    uint32_t indexes[DEPTH_MAX]   # which node of the page, from the root (0) down
    Span key
    Span value

cdef int cursor_seek(TreeCursor* cursor, const Span* wanted) noexcept nogil
cdef int cursor_last(TreeCursor* cursor) noexcept nogil
cdef int cursor_next(TreeCursor* cursor) noexcept nogil
cdef int cursor_prev(TreeCursor* cursor) noexcept nogil

cdef class MappedFile:
    cdef readonly str path
    cdef const uint8_t* data
    cdef uint64_t reserved
    cdef int descriptor

    cdef uint64_t file_bytes(self) except? 0

cdef class TreeReader:
    cdef MappedFile mapped
    cdef uint64_t meta_at
    cdef uint64_t file_bytes

    cdef int begin(self, TreeCursor* cursor, RowCheck check) except -1
    cdef object damage(self, const TreeCursor* cursor)
    cdef list collect(self, TreeCursor* cursor, int state, bytes end, uint64_t count_max, uint64_t bytes_max, int step)
