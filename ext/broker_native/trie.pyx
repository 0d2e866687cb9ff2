"""Which subscriptions does a channel's name reach: a trie of patterns, in C, with Python objects at its leaves only.

A pattern is tokens between dots; the token `*` stands for any one token, a final `>` for one or more. A name that
begins with `$` is reserved: no pattern that begins with a wildcard reaches it.

Invariants:
- Matching is a walk with a stack of its own, never a recursion, so no name or pattern can exhaust the C stack. It
  visits a node at most once, and there are less than two nodes for a pattern: it takes at worst a few nanoseconds for
  each token of those patterns that begin as the name does.
- A node exists only while it has a value or parts two patterns; the tables shrink. What insert() took, remove()
  gives back.
- Hashes are polynomials modulo 2^61 - 1 at a secret random point: two tokens collide with a chance of at most 20 in
  2^61, whoever chose them, so clients that name channels cannot degrade the table. Nothing that a caller sees
  depends on that secret.
- Ownership: the list `held` has one reference to each distinct value, and C structs borrow from it. So the garbage
  collector sees every reference by traversing an ordinary list, and breaks a cycle by clearing that list; the class
  itself is never cleared (`no_gc_clear`), and a trie whose list was cleared under it refuses to work.

It must not interpret values, call them, or compare them by anything but identity, and runs no Python code while its
structs are between two states.
"""

import os
from types import GenericAlias

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove, memset

from broker_native.layout cimport load_u64

cdef extern from *:
    """
    #define TRIE_PRIME ((UINT64_C(1) << 61) - 1)

    /* The product modulo the Mersenne prime; both factors are below it. */
    static inline uint64_t trie_multiply(uint64_t left, uint64_t right)
    {
        unsigned __int128 product = (unsigned __int128)left * right;
        uint64_t sum = (uint64_t)(product & TRIE_PRIME) + (uint64_t)(product >> 61);
        return sum >= TRIE_PRIME ? sum - TRIE_PRIME : sum;
    }

    static inline uint64_t trie_sum(uint64_t left, uint64_t right)
    {
        uint64_t sum = left + right;
        return sum >= TRIE_PRIME ? sum - TRIE_PRIME : sum;
    }
    """
    const uint64_t TRIE_PRIME
    uint64_t trie_multiply(uint64_t left, uint64_t right) noexcept nogil
    uint64_t trie_sum(uint64_t left, uint64_t right) noexcept nogil

cdef extern from "<assert.h>" nogil:
    # Compiled in by BROKER_DEBUG only.
    void debug_assert "assert"(bint holds)

cdef enum:
    TABLE_CAPACITY_MIN = 8

    TOKEN_LITERAL = 0
    TOKEN_STAR = 1               # `*`
    TOKEN_REST = 2               # `>`
    TOKEN_MIXED = 3              # a wildcard beside other bytes: legal nowhere

cdef struct Token:
    uint64_t hash                # < TRIE_PRIME
    uint16_t offset
    uint8_t size
    uint8_t kind

cdef struct Path:
    const char* text             # borrowed
    size_t count                 # 0: the text is malformed
    Token tokens[TOKENS_MAX]

cdef struct Step:
    const Node* node
    size_t depth                 # tokens of the name that lead to the node


# ---- Hash table ----------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    # A bijection (the finaliser of SplitMix64): adds no collisions, and takes the pattern out of arithmetic
    # progressions and aligned pointers, which linear probing would turn into clusters.
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef inline Slot* table_first(const Table* table, uint64_t hash) noexcept nogil:
    """Return the first slot that may hold an item of that hash, or NULL."""
    if table.capacity == 0:
        return NULL
    return table_next(table, hash, &table.slots[(hash - 1) & (table.capacity - 1)])


cdef inline Slot* table_next(const Table* table, uint64_t hash, const Slot* after) noexcept nogil:
    """Return the next slot with that hash, or NULL. A third of the slots is free, so the loop ends."""
    cdef size_t mask = table.capacity - 1
    cdef size_t index = <size_t>(after - table.slots)
    while True:
        index = (index + 1) & mask
        if table.slots[index].item == NULL:
            return NULL
        if table.slots[index].hash == hash:
            return &table.slots[index]


cdef void table_put(Table* table, uint64_t hash, void* item) noexcept nogil:
    """Add an item for which table_reserve has made room."""
    debug_assert(3 * (table.count + 1) <= 2 * table.capacity)
    cdef size_t mask = table.capacity - 1
    cdef size_t index = hash & mask
    while table.slots[index].item != NULL:
        index = (index + 1) & mask
    table.slots[index].hash = hash
    table.slots[index].item = item
    table.count += 1


cdef bint table_resize(Table* table, size_t capacity) noexcept:
    """Move everything into `capacity` slots, a power of two with room for it. False: no memory, nothing changed."""
    cdef Table resized
    cdef size_t index
    resized.slots = <Slot*>PyMem_Calloc(capacity, sizeof(Slot))
    if resized.slots == NULL:
        return False
    resized.capacity = capacity
    resized.count = 0
    for index in range(table.capacity):
        if table.slots[index].item != NULL:
            table_put(&resized, table.slots[index].hash, table.slots[index].item)
    PyMem_Free(table.slots)
    table[0] = resized
    return True


cdef bint table_reserve(Table* table) noexcept:
    """Make room for one more item. False: no memory, nothing changed."""
    if 3 * (table.count + 1) <= 2 * table.capacity:
        return True
    return table_resize(table, max(<size_t>TABLE_CAPACITY_MIN, 2 * table.capacity))


cdef void table_trim(Table* table) noexcept:
    """Give back memory that the items have not needed for a while."""
    if table.count == 0:
        table_free(table)
    elif table.capacity > TABLE_CAPACITY_MIN and 8 * table.count <= table.capacity:
        # To a quarter full, so that neither the next items nor the next removals resize it again. Without memory for
        # the smaller one it stays as it is, which is only larger than it need be.
        table_resize(table, table.capacity // 2)


cdef void table_free(Table* table) noexcept:
    PyMem_Free(table.slots)
    memset(table, 0, sizeof(Table))


cdef void table_drop(Table* table, uint64_t hash, const void* item) noexcept nogil:
    """Take out an item that is in the table, and close the gap so that no probe ends too early. Keeps its memory."""
    cdef size_t mask = table.capacity - 1
    cdef size_t gap = hash & mask, index
    while table.slots[gap].item != item:
        debug_assert(table.slots[gap].item != NULL)
        gap = (gap + 1) & mask
    index = gap
    while True:
        index = (index + 1) & mask
        if table.slots[index].item == NULL:
            break
        # It may move back into the gap only if that is not before the slot where its probe begins.
        if ((index - table.slots[index].hash) & mask) >= ((index - gap) & mask):
            table.slots[gap] = table.slots[index]
            gap = index
    table.slots[gap].item = NULL
    table.count -= 1


# ---- Tokens --------------------------------------------------------------------------------------------------------

cdef uint64_t token_hash(uint64_t key, const char* token, size_t size) noexcept nogil:
    """Evaluate the polynomial whose coefficients are the size and the token's groups of 7 bytes, all < TRIE_PRIME."""
    cdef uint64_t hash = size, word
    while size > 7:
        word = load_u64(<const uint8_t*>token) & ((<uint64_t>1 << 56) - 1)
        hash = trie_multiply(trie_sum(hash, word), key)
        token += 7
        size -= 7
    word = 0
    while size > 0:
        size -= 1
        word = word << 8 | <uint8_t>token[size]
    return trie_multiply(trie_sum(hash, word), key)


cdef inline uint8_t token_kind(const char* token, size_t size, bint wild) noexcept nogil:
    if not wild:
        return TOKEN_LITERAL
    if size > 1:
        return TOKEN_MIXED
    if token[0] == c"*":
        return TOKEN_STAR
    return TOKEN_REST


cdef void path_split(Path* path, uint64_t key, const char* text, size_t size) noexcept nogil:
    """Cut a text into its tokens; none when it is empty, too long, or has an empty token."""
    cdef size_t start = 0, end
    cdef bint wild = False
    cdef Token* token
    path.text = text
    path.count = 0
    if size == 0 or size > NAME_BYTES_MAX:
        return
    for end in range(size + 1):
        if end < size and text[end] != c".":
            wild |= text[end] == c"*" or text[end] == c">"
            continue
        if end == start:
            path.count = 0
            return
        # Each token but the last has a dot after it, so NAME_BYTES_MAX bytes never make more than TOKENS_MAX.
        debug_assert(path.count < TOKENS_MAX)
        token = &path.tokens[path.count]
        token.offset = <uint16_t>start
        token.size = <uint8_t>(end - start)
        token.kind = token_kind(text + start, end - start, wild)
        token.hash = token_hash(key, text + start, end - start)
        path.count += 1
        start = end + 1
        wild = False


cdef bint path_is_name(const Path* path) noexcept nogil:
    """Say whether it is what a channel may be called: some tokens, and no wildcard in them."""
    cdef size_t index
    for index in range(path.count):
        if path.tokens[index].kind != TOKEN_LITERAL:
            return False
    return path.count > 0


cdef bint path_is_pattern(const Path* path) noexcept nogil:
    cdef size_t index
    for index in range(path.count):
        if path.tokens[index].kind == TOKEN_MIXED:
            return False
        if path.tokens[index].kind == TOKEN_REST and index + 1 < path.count:
            return False
    return path.count > 0


cdef inline bint path_has_rest(const Path* path) noexcept nogil:
    return path.tokens[path.count - 1].kind == TOKEN_REST


# ---- Labels --------------------------------------------------------------------------------------------------------

cdef inline bint label_is_star(const uint8_t* at) noexcept nogil:
    """Say whether the token that begins there is `*`; no literal token is."""
    return (at[0] == 1) & (at[1] == c"*")


cdef inline bint label_is_token(const uint8_t* at, const Path* path, size_t depth) noexcept nogil:
    """Say whether the token that begins there is the path's token `depth`, byte for byte."""
    cdef const Token* token = &path.tokens[depth]
    cdef const uint8_t* text = <const uint8_t*>path.text + token.offset
    cdef uint8_t difference = 0
    cdef size_t index
    if at[0] != token.size:
        return False
    # Tokens are a few bytes: no call of memcmp, and no branch on what they are, which nothing could predict.
    for index in range(token.size):
        difference |= at[1 + index] ^ text[index]
    return difference == 0


cdef size_t label_common(const Node* node, const Path* path, size_t depth, size_t end) noexcept nogil:
    """Return how many of the label's tokens are those of a pattern from `depth` to `end`."""
    cdef const uint8_t* at = node.label
    cdef size_t common = 0
    while common < node.tokens and depth + common < end and label_is_token(at, path, depth + common):
        at += 1 + at[0]
        common += 1
    return common


cdef bint label_matches(const Node* node, const Path* path, size_t depth) noexcept nogil:
    """Say whether a name has the label at `depth`."""
    cdef const uint8_t* at = node.label
    cdef size_t end = depth + node.tokens
    if end > path.count:
        return False
    while depth < end:
        if not (label_is_token(at, path, depth) | label_is_star(at)):
            return False
        at += 1 + at[0]
        depth += 1
    return True


# ---- Nodes ---------------------------------------------------------------------------------------------------------

cdef inline uint64_t edge_hash(const Node* parent, uint64_t hash) noexcept nogil:
    """Return the hash of an edge by a token of that hash."""
    return mix(trie_sum(parent.salt, hash))


cdef inline Node* node_child(const Trie* trie, const Node* parent, const Path* path, size_t depth) noexcept nogil:
    """Return the child whose label begins with the path's token `depth`, or NULL."""
    cdef uint64_t hash = edge_hash(parent, path.tokens[depth].hash)
    cdef Slot* slot = table_first(&trie.edges, hash)
    cdef Node* node
    while slot != NULL:
        node = <Node*>slot.item
        if node.parent == parent and label_is_token(node.label, path, depth):
            return node
        slot = table_next(&trie.edges, hash, slot)
    return NULL


cdef Node* node_create(Trie* trie, size_t label_size) noexcept:
    """Make a node that stands nowhere yet, and room for it among the edges. NULL: no memory, nothing changed."""
    cdef Node* node
    if not table_reserve(&trie.edges):
        return NULL
    node = <Node*>PyMem_Calloc(1, sizeof(Node))
    if node != NULL:
        node.label = <uint8_t*>PyMem_Malloc(label_size)
    if node == NULL or node.label == NULL:
        PyMem_Free(node)
        table_trim(&trie.edges)
        return NULL
    trie.serial += 1
    node.label_size = <uint16_t>label_size
    node.salt = trie_multiply(trie.serial, trie.node_key)
    return node


cdef void node_free(Node* node) noexcept:
    PyMem_Free(node.label)
    PyMem_Free(node)


cdef void node_attach(Trie* trie, Node* parent, Node* node) noexcept nogil:
    """Make a node with a label a child; there is room among the edges."""
    node.parent = parent
    node.hash = edge_hash(parent, token_hash(trie.token_key, <const char*>node.label + 1, node.label[0]))
    table_put(&trie.edges, node.hash, node)
    parent.children += 1
    parent.children_xor ^= <uintptr_t>node
    if label_is_star(node.label):
        parent.star = node


cdef void node_detach(Trie* trie, Node* node) noexcept nogil:
    """Undo node_attach; the edges keep the room."""
    cdef Node* parent = node.parent
    table_drop(&trie.edges, node.hash, node)
    parent.children -= 1
    parent.children_xor ^= <uintptr_t>node
    if parent.star == node:
        parent.star = NULL


cdef Node* node_append(Trie* trie, Node* parent, const Path* path, size_t depth, size_t end) noexcept:
    """Make a child for a pattern's tokens from `depth` to `end`. NULL: no memory, nothing changed."""
    cdef const Token* last = &path.tokens[end - 1]
    cdef const Token* token = &path.tokens[depth]
    # Each token takes a byte for its size where the text has a dot, and the last one takes one more.
    cdef Node* node = node_create(trie, <size_t>last.offset + last.size + 1 - token.offset)
    cdef uint8_t* at
    if node == NULL:
        return NULL
    at = node.label
    node.tokens = <uint16_t>(end - depth)
    for depth in range(depth, end):
        token = &path.tokens[depth]
        at[0] = token.size
        memcpy(at + 1, path.text + token.offset, token.size)
        at += 1 + token.size
    debug_assert(at == node.label + node.label_size)
    node_attach(trie, parent, node)
    return node


cdef Node* node_split(Trie* trie, Node* node, size_t tokens) noexcept:
    """Put a new node above one, which takes its first tokens: 1 to all but one. NULL: no memory, nothing changed."""
    cdef Node* parent = node.parent
    cdef Node* upper
    cdef uint8_t* at = node.label
    cdef uint8_t* shrunk
    cdef size_t size
    for _ in range(tokens):
        at += 1 + at[0]
    size = <size_t>(at - node.label)
    upper = node_create(trie, size)
    if upper == NULL:
        return NULL
    memcpy(upper.label, node.label, size)
    upper.tokens = <uint16_t>tokens
    # The lower node stays where it is: its members and its children know it by its address.
    node_detach(trie, node)
    node.label_size -= <uint16_t>size
    node.tokens -= <uint16_t>tokens
    memmove(node.label, at, node.label_size)
    shrunk = <uint8_t*>PyMem_Realloc(node.label, node.label_size)
    if shrunk != NULL:
        node.label = shrunk
    node_attach(trie, parent, upper)
    node_attach(trie, upper, node)
    return upper


cdef void node_merge(Trie* trie, Node* node) noexcept:
    """Give a node's label to its only child, and free it. Without memory for that both stay, which costs a step."""
    cdef Node* parent = node.parent
    cdef Node* child = <Node*>node.children_xor
    cdef uint8_t* label = <uint8_t*>PyMem_Malloc(<size_t>node.label_size + child.label_size)
    if label == NULL:
        return
    memcpy(label, node.label, node.label_size)
    memcpy(label + node.label_size, child.label, child.label_size)
    node_detach(trie, child)
    node_detach(trie, node)
    PyMem_Free(child.label)
    child.label = label
    child.label_size += node.label_size
    child.tokens += node.tokens
    node_attach(trie, parent, child)
    node_free(node)


cdef void trie_prune(Trie* trie, Node* node) noexcept:
    """Take out a node that has no value and less than two children, and what becomes such a one by that."""
    cdef Node* parent
    while node.parent != NULL and node.exact.count == 0 and node.rest.count == 0 and node.children < 2:
        if node.children == 1:
            node_merge(trie, node)
            break
        parent = node.parent
        node_detach(trie, node)
        node_free(node)
        node = parent
    table_trim(&trie.edges)


cdef Node* trie_find(Trie* trie, const Path* path) noexcept nogil:
    """Return the node at which a pattern ends (before its `>`), or NULL."""
    cdef Node* node = &trie.root
    cdef size_t depth = 0, end = path.count - path_has_rest(path)
    while depth < end:
        node = node_child(trie, node, path, depth)
        if node == NULL or label_common(node, path, depth, end) < node.tokens:
            return NULL
        depth += node.tokens
    return node


cdef Node* trie_grow(Trie* trie, const Path* path) noexcept:
    """Return the node at which a pattern ends, made if need be. NULL: no memory, nothing changed."""
    cdef Node* node = &trie.root
    cdef Node* child
    cdef size_t depth = 0, end = path.count - path_has_rest(path), common
    while depth < end:
        child = node_child(trie, node, path, depth)
        if child == NULL:
            child = node_append(trie, node, path, depth, end)
            common = end - depth
        else:
            common = label_common(child, path, depth, end)
            if common < child.tokens:
                child = node_split(trie, child, common)
        if child == NULL:
            trie_prune(trie, node)
            return NULL
        node = child
        depth += common
    return node


# ---- Values at leaves ----------------------------------------------------------------------------------------------

cdef inline uint64_t holder_hash(const void* value) noexcept nogil:
    return mix(<uintptr_t>value)


cdef inline uint64_t member_hash(const Leaf* leaf, const Holder* holder) noexcept nogil:
    return mix(mix(<uintptr_t>leaf) + <uintptr_t>holder)


cdef Holder* holder_find(const Trie* trie, const void* value) noexcept nogil:
    cdef uint64_t hash = holder_hash(value)
    cdef Slot* slot = table_first(&trie.holders, hash)
    while slot != NULL:
        if (<Holder*>slot.item).value == value:
            return <Holder*>slot.item
        slot = table_next(&trie.holders, hash, slot)
    return NULL


cdef Holder* holder_create(Trie* trie, list held, object value) except NULL:
    """Take a reference to a value that holder_find has not found. MemoryError: nothing changed."""
    cdef Holder* holder
    if not table_reserve(&trie.holders):
        raise MemoryError
    holder = <Holder*>PyMem_Malloc(sizeof(Holder))
    if holder == NULL:
        table_trim(&trie.holders)
        raise MemoryError
    holder.value = <PyObject*>value
    holder.index = <size_t>PyList_GET_SIZE(held)
    holder.members = 0
    holder.mark = 0
    try:
        held.append(value)
    except MemoryError:
        PyMem_Free(holder)
        table_trim(&trie.holders)
        raise
    table_put(&trie.holders, holder_hash(holder.value), holder)
    return holder


cdef int holder_settle(Trie* trie, list held, Holder* holder) except -1:
    """Let go of a value that is under no pattern any more. The caller has a reference, so that no destructor runs."""
    cdef Holder* moved
    if holder.members > 0:
        return 0
    last = held[PyList_GET_SIZE(held) - 1]
    moved = holder_find(trie, <void*>last)
    moved.index = holder.index
    held[<Py_ssize_t>holder.index] = last
    held.pop()
    table_drop(&trie.holders, holder_hash(holder.value), holder)
    table_trim(&trie.holders)
    PyMem_Free(holder)
    return 0


cdef Member* member_find(const Trie* trie, const Leaf* leaf, const Holder* holder) noexcept nogil:
    cdef uint64_t hash = member_hash(leaf, holder)
    cdef Slot* slot = table_first(&trie.members, hash)
    cdef Member* member
    while slot != NULL:
        member = <Member*>slot.item
        if member.leaf == leaf and member.holder == holder:
            return member
        slot = table_next(&trie.members, hash, slot)
    return NULL


cdef bint leaf_resize(Leaf* leaf, uint32_t capacity) noexcept:
    """Give the leaf room for `capacity` members, 0 to free it. False: no memory, nothing changed."""
    cdef Member** members = NULL
    if capacity == 0:
        PyMem_Free(leaf.members)
    else:
        members = <Member**>PyMem_Realloc(leaf.members, capacity * sizeof(Member*))
        if members == NULL:
            return False
    leaf.members = members
    leaf.capacity = capacity
    return True


cdef void leaf_trim(Leaf* leaf) noexcept:
    if leaf.count == 0:
        leaf_resize(leaf, 0)
    elif 4 * <uint64_t>leaf.count <= leaf.capacity:
        leaf_resize(leaf, leaf.capacity // 2)


cdef bint leaf_add(Trie* trie, Leaf* leaf, Holder* holder) noexcept:
    """Put a value that is not yet under the pattern there, once. False: no memory, nothing changed."""
    cdef Member* member = <Member*>PyMem_Malloc(sizeof(Member))
    if member == NULL:
        return False
    if leaf.count == leaf.capacity and not leaf_resize(leaf, <uint32_t>(2 * leaf.capacity + 1)):
        PyMem_Free(member)
        return False
    if not table_reserve(&trie.members):
        PyMem_Free(member)
        leaf_trim(leaf)
        return False
    member.holder = holder
    member.leaf = leaf
    member.index = leaf.count
    member.copies = 1
    leaf.members[leaf.count] = member
    leaf.count += 1
    holder.members += 1
    table_put(&trie.members, member_hash(leaf, holder), member)
    return True


cdef void leaf_drop(Trie* trie, Leaf* leaf, Member* member) noexcept:
    """Take a value out of a pattern; the last one takes its place, so that the cost does not grow with the others."""
    cdef Member* last = leaf.members[leaf.count - 1]
    leaf.members[member.index] = last
    last.index = member.index
    leaf.count -= 1
    leaf_trim(leaf)
    member.holder.members -= 1
    table_drop(&trie.members, member_hash(leaf, member.holder), member)
    table_trim(&trie.members)
    PyMem_Free(member)


cdef int leaf_collect(const Leaf* leaf, uint64_t walk, list found) except -1:
    """Append the values that this walk has not met yet. A list's append runs no Python code, so nothing changes."""
    cdef uint32_t index
    cdef Holder* holder
    for index in range(leaf.count):
        holder = leaf.members[index].holder
        if holder.mark != walk:
            holder.mark = walk
            found.append(<object>holder.value)
    return 0


# ---- The whole -----------------------------------------------------------------------------------------------------

cdef int trie_collect(Trie* trie, const Path* path, list found) except -1:
    """Walk every node whose prefix the name has, depth first, literals before `*`."""
    # A step taken off puts at most two back, so one more waits than it took steps down, of at least a token each.
    cdef Step steps[TOKENS_MAX + 1]
    cdef size_t waiting = 1, depth
    cdef const Node* node
    cdef Node* child
    trie.walk += 1
    steps[0].node = &trie.root
    steps[0].depth = 0
    while waiting > 0:
        waiting -= 1
        node = steps[waiting].node
        depth = steps[waiting].depth
        if depth == path.count:
            leaf_collect(&node.exact, trie.walk, found)
            continue
        if depth > 0 or path.text[0] != c"$":
            leaf_collect(&node.rest, trie.walk, found)
            if node.star != NULL and label_matches(node.star, path, depth):
                steps[waiting].node = node.star
                steps[waiting].depth = depth + node.star.tokens
                waiting += 1
        if node.children > <uint32_t>(node.star != NULL):
            child = node_child(trie, node, path, depth)
            if child != NULL and label_matches(child, path, depth):
                debug_assert(waiting <= TOKENS_MAX)
                steps[waiting].node = child
                steps[waiting].depth = depth + child.tokens
                waiting += 1
    return 0


cdef void trie_free(Trie* trie) noexcept:
    """Free every struct. Touches no value: the list may have let go of them already."""
    cdef size_t index
    cdef Node* node
    for index in range(trie.edges.capacity):
        node = <Node*>trie.edges.slots[index].item
        if node != NULL:
            PyMem_Free(node.exact.members)
            PyMem_Free(node.rest.members)
            node_free(node)
    PyMem_Free(trie.root.rest.members)  # of the pattern `>`; no pattern ends at the root
    for index in range(trie.members.capacity):
        PyMem_Free(trie.members.slots[index].item)
    for index in range(trie.holders.capacity):
        PyMem_Free(trie.holders.slots[index].item)
    table_free(&trie.edges)
    table_free(&trie.members)
    table_free(&trie.holders)


cdef inline Leaf* path_leaf(const Path* path, Node* node) noexcept nogil:
    return &node.rest if path_has_rest(path) else &node.exact


cdef int path_of_pattern(Path* path, const Trie* trie, bytes pattern) except -1:
    path_split(path, trie.token_key, PyBytes_AS_STRING(pattern), <size_t>PyBytes_GET_SIZE(pattern))
    if not path_is_pattern(path):
        raise ValueError(
            f"trie: got pattern {pattern!r}, expected 1 to {NAME_BYTES_MAX} bytes in tokens between dots, "
            "`*` and a final `>` as whole tokens"
        )
    return 0


cdef object secret():
    """Return a random number from 1 to TRIE_PRIME - 1."""
    return int.from_bytes(os.urandom(8), "little") % (TRIE_PRIME - 1) + 1


@cython.final
@cython.no_gc_clear
cdef class PatternTrie:
    """A multiset of (pattern, value) that answers which values a channel's name reaches.

    Values are any objects, told apart by identity; the trie keeps a reference to each while it is in. Only the thread
    that holds the interpreter lock may call, and no call gives it up.

    Attributes:
        version: u64, counted up by every change; equal versions mean equal answers.
    """

    def __cinit__(self):
        # The object's memory is zeroed, which is the empty state of every struct.
        self.held = []
        self.trie.token_key = secret()
        self.trie.node_key = secret()

    def __dealloc__(self):
        trie_free(&self.trie)

    def insert(self, bytes pattern not None, value):
        """Put a value under a pattern; as often as it is put there it must be removed.

        Args:
            pattern: 1 to 255 bytes; tokens are not empty; `*` and, last, `>` only as whole tokens.
            value: any object.

        Raises:
            ValueError: it is no pattern.
            MemoryError: nothing was changed.
            OverflowError: the value is under the pattern 2^32 - 1 times already.

        Complexity: the pattern's tokens, whatever the trie holds; amortised, as its tables double.
        """
        cdef Path path
        path_of_pattern(&path, &self.trie, pattern)
        require_whole(self)
        cdef Node* node = trie_grow(&self.trie, &path)
        if node == NULL:
            raise MemoryError
        try:
            insert_at(self, path_leaf(&path, node), value)
        finally:
            # Keeps a node that has a value now, and takes back what was grown for one that found no room.
            trie_prune(&self.trie, node)
        self.entries += 1
        self.version += 1

    def remove(self, bytes pattern not None, value):
        """Undo one insert of the same object under the same pattern.

        Returns:
            False when it is not there, and nothing was changed.

        Raises:
            ValueError: it is no pattern.

        Complexity: as insert, however many values the pattern has.
        """
        cdef Path path
        cdef Leaf* leaf
        cdef Member* member
        cdef Holder* holder = holder_find(&self.trie, <void*>value)
        path_of_pattern(&path, &self.trie, pattern)
        require_whole(self)
        cdef Node* node = trie_find(&self.trie, &path)
        if node == NULL or holder == NULL:
            return False
        leaf = path_leaf(&path, node)
        member = member_find(&self.trie, leaf, holder)
        if member == NULL:
            return False
        member.copies -= 1
        if member.copies == 0:
            leaf_drop(&self.trie, leaf, member)
            trie_prune(&self.trie, node)
            holder_settle(&self.trie, self.held, holder)
        self.entries -= 1
        self.version += 1
        return True

    def match(self, bytes name not None):
        """Return the values whose patterns the name matches.

        Args:
            name: a channel's name. What is no name (empty, over 255 bytes, an empty token, a wildcard) has no match.

        Returns:
            A new list, each object once, in an order that depends only on the inserts and removals before.
        """
        return self.match_into(PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))

    cdef list match_into(self, const char* name, size_t size):
        # Made before the walk: making a list may start the garbage collector, and with it anybody's destructors.
        cdef list found = []
        cdef Path path
        require_whole(self)
        path_split(&path, self.trie.token_key, name, size)
        if path_is_name(&path):
            trie_collect(&self.trie, &path, found)
        return found

    @classmethod
    def __class_getitem__(cls, item):
        return GenericAlias(cls, item)

    def __len__(self):
        """How many inserts have not been removed."""
        return self.entries

    @property
    def nodes(self):
        """How many nodes there are, less than two for each distinct pattern."""
        return self.trie.edges.count


cdef inline int require_whole(PatternTrie trie) except -1:
    """Refuse to work on borrowed references whose list the garbage collector has cleared."""
    if <size_t>PyList_GET_SIZE(trie.held) != trie.trie.holders.count:
        raise RuntimeError("trie: it is being destroyed")
    return 0


cdef int insert_at(PatternTrie trie, Leaf* leaf, object value) except -1:
    """Put a value at a leaf once more. An exception: nothing changed."""
    cdef Holder* holder = holder_find(&trie.trie, <void*>value)
    cdef Member* member = NULL
    if holder == NULL:
        holder = holder_create(&trie.trie, trie.held, value)
    else:
        member = member_find(&trie.trie, leaf, holder)
    if member != NULL:
        if member.copies == UINT32_MAX:
            raise OverflowError(f"trie: got one value under one pattern more than {UINT32_MAX} times")
        member.copies += 1
    elif not leaf_add(&trie.trie, leaf, holder):
        holder_settle(&trie.trie, trie.held, holder)
        raise MemoryError
    return 0
