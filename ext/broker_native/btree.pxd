# The structure of an LMDB file as the walk of `btree.pyx` sees it (data format 1, 64 bit, as LMDB lays it out):
#
#     page      0      8     10      12      14      16
#               | pgno | pad | flags | lower | upper | …        an overflow page has a u32 count of pages at 12
#                 u64    u16   u16     u16     u16
#     then u16 offsets of nodes up to `lower`, and the nodes from `upper` on:
#     node      | u16 low | u16 high | u16 flags | u16 key size | key | data |
#               leaf: low, high are the data's size, and with BIGDATA the data is the u64 number of an overflow page;
#               branch: low, high, flags are the child's number, and its key is the least in the child
#     tree      | u32 pad | u16 flags | u16 depth | u64 branches | u64 leaves | u64 overflow | u64 entries | u64 root |
#     meta      page header, u32 magic, u32 version, u64 address, u64 map size, tree of free pages, main tree,
#               u64 last page, u64 transaction

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    PAGE_NUMBER = 0
    PAGE_FLAGS = 10
    PAGE_LOWER = 12
    PAGE_UPPER = 14
    PAGE_NODES = 16
    PAGE_BRANCH = 1
    PAGE_LEAF = 2
    NODE_FLAGS = 4
    NODE_KEY_SIZE = 6
    NODE_HEADER_BYTES = 8
    NODE_BIGDATA = 1
    TREE_FLAGS = 4
    TREE_DEPTH = 6
    TREE_ENTRIES = 32
    TREE_ROOT = 40
    TREE_INTEGER_KEY = 8          # a flag of the tree of free pages
    TREE_NO_FOLDER = 0x4000       # that tree also carries how the file was first opened; nothing depends on it
    META_PAGE_BYTES = 40
    META_FREE_TREE = 40
    META_MAIN_TREE = 88
    META_LAST_PAGE = 136
    META_BYTES = 152
    DEPTH_MAX = 16
    PAGES_FIRST = 2               # before it are the metas
    PAGES_UNWRITTEN_MAX = 1024    # free pages at the end that a file may lack

cdef struct Span:                 # bytes within the file
    const uint8_t* at
    uint64_t size

cdef struct TreeWalk:
    const uint8_t* file
    uint64_t pages                # pages from 0 to this, exclusive, may be referred to
    uint64_t declared             # the meta's count of them: what is not in the file must be free
    uint32_t page_bytes
    uint8_t* seen                 # a bit for each page: whether something refers to it already
    uint64_t entries
    Span last_key                 # of the leaf entry before; size 0 at the beginning
    Span bound                    # the next leaf key is not below it; size 0: none
    bint free_list                # the tree of free pages: keys are numbers, values lists of pages
    uint64_t damage               # where the first damage is, bytes from the beginning of the file

cdef const uint8_t* page_at(TreeWalk* walk, uint64_t number, bint leaf) noexcept nogil
cdef uint32_t page_count(const uint8_t* page) noexcept nogil
cdef const uint8_t* node_at(TreeWalk* walk, const uint8_t* page, uint32_t index, Span* key) noexcept nogil
cdef uint64_t node_child(const uint8_t* node) noexcept nogil
cdef bint node_value(TreeWalk* walk, const uint8_t* page, const uint8_t* node, Span* key, Span* value) noexcept nogil
cdef int span_compare(const Span* left, const Span* right) noexcept nogil
cdef bint walk_begin_at(TreeWalk* walk, const uint8_t* file, uint64_t size, uint64_t meta_at) noexcept nogil
