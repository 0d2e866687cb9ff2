# The pattern trie for native code: `PatternTrie.match_into` takes a channel's name as it stands in a buffer.
#
# A radix tree over tokens: a node stands for one or more tokens, its label, and there is none that has neither a value
# nor two children. All edges of all nodes are in one hash table, keyed by (parent, first token of the label); a node
# keeps a pointer only to its `*` child, which every walk asks for.
#
#   chat.*.typing, chat.>, chat.acme.42 and chat.acme.7:
#
#   root --chat--> (1) --*.typing--> (2) exact: members
#                  (1) --acme--> (3) --42--> (4) exact: members
#                                (3) --7--> (5) exact: members
#                  (1) rest: members
#
#   Leaf -> Member -> Holder -> value: a member is one value at one pattern, a holder one value in the trie.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

cdef enum:
    NAME_BYTES_MAX = 255
    TOKENS_MAX = 128             # 255 bytes are at most 128 tokens of one byte and the dots between them

cdef struct Slot:
    uint64_t hash
    void* item                   # NULL: the slot is free

cdef struct Table:               # open addressing, linear probing; at most two thirds full
    Slot* slots                  # owned; NULL while capacity is 0
    size_t capacity              # a power of two, or 0
    size_t count

cdef struct Holder:              # one distinct object, however many patterns it is under
    PyObject* value              # borrowed from `held`
    size_t index                 # where in `held`
    size_t members
    uint64_t mark                # the last walk that has found it

cdef struct Member:              # one object under one pattern
    Holder* holder
    Leaf* leaf
    uint32_t index               # where in the leaf
    uint32_t copies              # how often it was inserted there

cdef struct Leaf:                # the values of one pattern
    Member** members             # owned; NULL while capacity is 0
    uint32_t count
    uint32_t capacity

cdef struct Node:
    Node* parent                 # NULL: the root
    Node* star                   # the child whose label begins with `*`, or NULL
    uintptr_t children_xor       # of the addresses of all children: the only child's, when there is one
    uint8_t* label               # owned; tokens, each a byte that says its size and then its bytes
    uint64_t hash                # of (parent, first token): its place among the edges
    uint64_t salt                # its part in its children's hashes
    Leaf exact                   # patterns that end here
    Leaf rest                    # patterns that go on with `>`
    uint32_t children
    uint16_t label_size          # <= NAME_BYTES_MAX + 1
    uint16_t tokens              # in the label

cdef struct Trie:
    Node root
    Table edges                  # every node but the root; owns them
    Table members                # owns them
    Table holders                # owns them
    uint64_t token_key           # secret, so that nobody can choose tokens that collide
    uint64_t node_key
    uint64_t serial              # nodes made so far
    uint64_t walk                # matches made so far


@cython.final
@cython.no_gc_clear
cdef class PatternTrie:
    cdef Trie trie
    cdef list held               # owns one reference to each distinct value
    cdef size_t entries
    cdef readonly uint64_t version

    # The values whose patterns match name[0, size), each once, in a new list. The name is borrowed for the call and
    # need not be valid: one that is no channel's name matches nothing. Interpreter lock held. Raises MemoryError.
    cdef list match_into(self, const char* name, size_t size)
