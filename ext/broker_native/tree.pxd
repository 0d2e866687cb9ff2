# Reading an LMDB file by our own walk, one snapshot at a time.
#
# MappedFile   a file in memory, read-only, mapped once with room to grow.
# TreeReader   the main tree of one snapshot. Whoever uses one holds an LMDB read transaction with the same id for as
#              long, so that no page of it is written over. Its meta page is written over by the second commit after
#              it, whoever reads: what is needed of it is taken once.
# TreeCursor   a place in that tree; plain memory, no lock, no Python. Keys and values are borrowed from the map.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.btree cimport DEPTH_MAX, Span, TreeWalk

cdef enum:
    CURSOR_DAMAGED = -1           # `walk.damage` says where
    CURSOR_END = 0                # no such row
    CURSOR_ROW = 1                # on a row: `key` and `value` are set

cdef struct TreeCursor:
    TreeWalk walk
    uint64_t meta_at              # where the snapshot's meta page is
    uint64_t root                 # the number of the root's page
    uint32_t depth                # levels; 0 for an empty tree
    bint unproved                 # who seeks proves what it finds by itself, and nothing from its absence
    const uint8_t* pages[DEPTH_MAX]
    const uint8_t* filled[DEPTH_MAX]  # the branch of each level that was proved last
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

cdef class MappedValue:
    cdef MappedFile mapped
    cdef const uint8_t* at
    cdef uint64_t size

cdef class TreeReader:
    cdef MappedFile mapped
    cdef TreeWalk walk
    cdef uint64_t meta_at
    cdef uint64_t root
    cdef uint32_t depth
    cdef readonly bint overtaken

    cdef int take_meta(self, uint64_t transaction) except -1
    cdef int prove_meta_untouched(self, uint64_t transaction) except -1
    cdef int begin(self, TreeCursor* cursor) except -1
    cdef object damage(self, const TreeCursor* cursor)
    cdef list collect(self, TreeCursor* cursor, int state, bytes end, uint64_t count_max, uint64_t bytes_max, int step)
