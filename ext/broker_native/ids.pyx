"""The message ids of a channel's newest records, and the sequence of each.

An id is kept as a keyed hash of 128 bits, SipHash-1-3 (Aumasson and Bernstein, 2012): nobody who does not know the key
can choose two ids that are taken for one. The rounds that 2-4 has more are for hashes that are seen; these never are.

Entries stand in the order of their sequences, so both bounds of the window, time and count, are a place in that order,
and a record that is undone is the newest one.

They are found through buckets of seven slots, each a line of the cache with bits of each hash, so that an id which is
not there costs one look into memory. Who finds no free slot is chained to those who found none before, and a filter of
bits in the bucket says who cannot be among them: nearly nobody has to walk along the chain, which is a look into memory
for each in it. Buckets become more one at a time (linear hashing), so that no id of a million waits for a table that is
made anew. A million ids take 57 bytes each. Nothing here reads a clock.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.slabs cimport REGION_BYTES, map_aligned, memory_huge, memory_prefetch, unmap

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    BLOCK_BYTES = IDS_BLOCK * sizeof(IdEntry) + 16  # and what the C library keeps beside it
    BLOCKS_MIN = 4
    BUCKET_SLOTS = 7
    BUCKET_FILL = 3                     # so many ids of a bucket's seven are there on the average
    BUCKET_BYTES = 64
    SPLITS_AHEAD = 4                    # so much earlier what a split looks at is fetched
    FILTER_BITS_MAX = 8                 # set ones of 32, past which those that left the chain are taken out
    SEGMENT_BUCKETS = 1024
    SEGMENTS_MIN = 4
    SEGMENTS_SMALL = 32                 # that have memory of their own; more are cut out of regions
    REGION_SEGMENTS = REGION_BYTES // (SEGMENT_BUCKETS * BUCKET_BYTES)

# -- the hash ----------------------------------------------------------------------------------------------------------


cdef struct SipState:
    uint64_t a
    uint64_t b
    uint64_t c
    uint64_t d


cdef inline uint64_t rotated(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline void sip_round(SipState* state) noexcept nogil:
    state.a += state.b
    state.b = rotated(state.b, 13) ^ state.a
    state.a = rotated(state.a, 32)
    state.c += state.d
    state.d = rotated(state.d, 16) ^ state.c
    state.a += state.d
    state.d = rotated(state.d, 21) ^ state.a
    state.c += state.b
    state.b = rotated(state.b, 17) ^ state.c
    state.c = rotated(state.c, 32)


cdef inline void sip_word(SipState* state, uint64_t word) noexcept nogil:
    state.d ^= word
    sip_round(state)
    state.a ^= word


cdef inline uint64_t sip_end(SipState* state) noexcept nogil:
    sip_round(state)
    sip_round(state)
    sip_round(state)
    return state.a ^ state.b ^ state.c ^ state.d


cdef IdHash id_hash(const IdKey* key, const uint8_t* data, size_t size) noexcept nogil:
    cdef SipState state
    cdef IdHash hash
    cdef uint64_t last = <uint64_t>size << 56
    cdef int shift = 0
    state.a = <uint64_t>0x736F6D6570736575 ^ key.first
    state.b = <uint64_t>0x646F72616E646F6D ^ key.second ^ 0xEE
    state.c = <uint64_t>0x6C7967656E657261 ^ key.first
    state.d = <uint64_t>0x7465646279746573 ^ key.second
    while size >= 8:
        sip_word(&state, load_u64(data))
        data += 8
        size -= 8
    while size:
        last |= <uint64_t>data[0] << shift
        shift += 8
        data += 1
        size -= 1
    sip_word(&state, last)
    state.c ^= 0xEE
    hash.low = sip_end(&state)
    state.b ^= 0xDD
    hash.high = sip_end(&state)
    return hash


cdef IdKey ids_key(uint64_t seed) noexcept nogil:
    """The key that follows from a random seed."""
    cdef IdKey key
    key.first = seed
    key.second = (seed ^ (seed >> 31)) * <uint64_t>0xD6E8FEB86659FD93
    return key


# -- the table ---------------------------------------------------------------------------------------------------------


cdef void ids_open(IdTable* table) noexcept nogil:
    memset(table, 0, sizeof(IdTable))
    table.bytes = sizeof(IdTable)


cdef void ids_close(IdTable* table) noexcept nogil:
    cdef uint32_t index, at
    for index in range(table.blocks_count):
        at = (table.blocks_first + index) & (table.blocks_capacity - 1)
        free(table.blocks[at])
    free(table.blocks)
    for index in range(table.segments_count):
        if index < SEGMENTS_SMALL:
            free(table.segments[index])
        elif index % REGION_SEGMENTS == 0:
            unmap(table.segments[index], REGION_BYTES)
    free(table.segments)
    free(table.spare)
    ids_open(table)


cdef inline IdEntry* entry_at(const IdTable* table, uint32_t place) noexcept nogil:
    """The entry at a place, which is one of the table's."""
    cdef uint32_t block = (place - (table.head & ~<uint32_t>(IDS_BLOCK - 1))) // IDS_BLOCK
    return &table.blocks[(table.blocks_first + block) & (table.blocks_capacity - 1)][place & (IDS_BLOCK - 1)]


cdef inline uint32_t low_mask(uint32_t value) noexcept nogil:
    """All bits up to the highest of a value."""
    value |= value >> 1
    value |= value >> 2
    value |= value >> 4
    value |= value >> 8
    return value | value >> 16


cdef inline uint32_t bucket_of(const IdTable* table, uint32_t tag) noexcept nogil:
    """The number of a tag's bucket: by as many bits as tell all of them apart, one less where it is not split."""
    cdef uint32_t mask = low_mask(table.buckets_count - 1)
    cdef uint32_t bucket = tag & mask
    return bucket if bucket < table.buckets_count else <uint32_t>(bucket & (mask >> 1))


cdef inline IdBucket* bucket_at(const IdTable* table, uint32_t number) noexcept nogil:
    return &table.segments[number // SEGMENT_BUCKETS][number % SEGMENT_BUCKETS]


cdef inline bint is_here(const IdTable* table, uint32_t place) noexcept nogil:
    return place - table.head < table.count


cdef void ids_prefetch(const IdTable* table, const IdHash* hash) noexcept nogil:
    if table.count:
        memory_prefetch(bucket_at(table, bucket_of(table, <uint32_t>hash.low)))


cdef const IdEntry* ids_find(const IdTable* table, const IdHash* hash) noexcept nogil:
    cdef const IdBucket* bucket
    cdef const IdEntry* entry
    cdef const IdEntry* found = NULL
    cdef uint32_t index, place
    cdef uint32_t tag = <uint32_t>hash.low
    if not table.count:
        return NULL
    bucket = bucket_at(table, bucket_of(table, tag))
    for index in range(<uint32_t>BUCKET_SLOTS):
        if bucket.tags[index] == tag and is_here(table, bucket.places[index]):
            entry = entry_at(table, bucket.places[index])
            if is_same(entry, hash) and (found == NULL or entry.sequence > found.sequence):
                found = entry
    if not bucket.filter & filter_bit(tag):
        return found
    place = bucket.chain
    while is_here(table, place):
        entry = entry_at(table, place)
        if is_same(entry, hash):
            return entry if found == NULL or entry.sequence > found.sequence else found
        place = entry.next
    return found


cdef inline bint is_same(const IdEntry* entry, const IdHash* hash) noexcept nogil:
    return entry.hash.low == hash.low and entry.hash.high == hash.high


cdef inline uint32_t filter_bit(uint32_t tag) noexcept nogil:
    """Where a bucket's filter has a tag: by its first bits, since the last ones are those of the whole bucket."""
    return <uint32_t>1 << (tag >> 27)


cdef inline void slot_put(IdTable* table, uint32_t place, uint32_t tag) noexcept nogil:
    """Have an entry found: in a free slot of its bucket, else in the chain, before who is there."""
    cdef IdBucket* bucket = bucket_at(table, bucket_of(table, tag))
    cdef uint32_t index
    for index in range(<uint32_t>BUCKET_SLOTS):
        if not is_here(table, bucket.places[index]):
            bucket.tags[index] = tag
            bucket.places[index] = place
            return
    chain_put(table, bucket, place, tag)


cdef void chain_put(IdTable* table, IdBucket* bucket, uint32_t place, uint32_t tag) noexcept nogil:
    cdef IdEntry* entry = entry_at(table, place)
    entry.next = bucket.chain
    if not is_here(table, bucket.chain):
        # All in it have left. Their places are nobody's now, and somebody else's when they come round.
        entry.next = table.head - 1
        bucket.filter = 0
    elif bits_set(bucket.filter) > FILTER_BITS_MAX:
        bucket.filter = filter_of(table, bucket.chain)
    bucket.filter |= filter_bit(tag)
    bucket.chain = place


cdef uint32_t filter_of(const IdTable* table, uint32_t place) noexcept nogil:
    """The filter of a chain from a place on."""
    cdef uint32_t bits = 0
    cdef const IdEntry* entry
    while is_here(table, place):
        entry = entry_at(table, place)
        bits |= filter_bit(<uint32_t>entry.hash.low)
        place = entry.next
    return bits


cdef inline uint32_t bits_set(uint32_t value) noexcept nogil:
    cdef uint32_t count = 0
    while value:
        value &= value - 1
        count += 1
    return count


cdef int ids_add(IdTable* table, const IdHash* hash, uint64_t sequence, uint32_t time_s) noexcept nogil:
    cdef uint32_t place = table.head + table.count
    cdef IdEntry* entry
    if table.count >= table.buckets_count * <uint64_t>BUCKET_FILL and add_bucket(table):
        return -1
    if not place & (IDS_BLOCK - 1) and add_block(table):
        return -1
    # Not before: until now the slots of those that were here 2^32 entries ago were nobody's.
    entry = entry_at(table, place)
    entry.hash = hash[0]
    entry.sequence = sequence
    entry.time_s = time_s
    entry.next = table.head - 1
    slot_put(table, place, <uint32_t>hash.low)
    table.count += 1
    return 0


cdef int add_block(IdTable* table) noexcept nogil:
    """Make room for the entries from the next place on."""
    cdef IdEntry** blocks
    cdef uint32_t capacity, index
    cdef IdEntry* block = table.spare
    if table.blocks_count == table.blocks_capacity:
        capacity = <uint32_t>(2 * table.blocks_capacity if table.blocks_capacity else BLOCKS_MIN)
        blocks = <IdEntry**>malloc(capacity * sizeof(IdEntry*))
        if blocks == NULL:
            return -1
        for index in range(table.blocks_count):
            blocks[index] = table.blocks[(table.blocks_first + index) & (table.blocks_capacity - 1)]
        free(table.blocks)
        table.bytes += (capacity - table.blocks_capacity) * sizeof(IdEntry*)
        table.blocks = blocks
        table.blocks_capacity = capacity
        table.blocks_first = 0
    if block == NULL:
        block = <IdEntry*>malloc(IDS_BLOCK * sizeof(IdEntry))
        if block == NULL:
            return -1
        table.bytes += BLOCK_BYTES
    table.spare = NULL
    table.blocks[(table.blocks_first + table.blocks_count) & (table.blocks_capacity - 1)] = block
    table.blocks_count += 1
    return 0


cdef void give_block(IdTable* table, IdEntry* block) noexcept nogil:
    """A block holds nothing any more: the next one that is needed, or none."""
    table.blocks_count -= 1
    if table.spare == NULL:
        table.spare = block
        return
    free(block)
    table.bytes -= BLOCK_BYTES


cdef IdBucket* segment_take(IdTable* table, uint32_t buckets) noexcept nogil:
    """Memory for the next segment, of so many buckets; NULL when there is none.

    Of a large table it is a part of a huge page: buckets are looked at in no order, and with small pages each look, and
    each prefetch, would wait for the page tables.
    """
    cdef IdBucket* segment
    cdef uint32_t cut = table.segments_count % REGION_SEGMENTS
    if table.segments_count < SEGMENTS_SMALL:
        segment = <IdBucket*>aligned_alloc(BUCKET_BYTES, buckets * BUCKET_BYTES)
        if segment != NULL:
            table.bytes += buckets * BUCKET_BYTES
        return segment
    if cut:
        return table.segments[table.segments_count - cut] + cut * SEGMENT_BUCKETS
    segment = <IdBucket*>map_aligned(REGION_BYTES)
    if segment != NULL:
        memory_huge(segment, REGION_BYTES)
        table.bytes += REGION_BYTES
    return segment


cdef int add_segment(IdTable* table) noexcept nogil:
    """Make room for the bucket after the last: twice as much in the first segment, or another one."""
    cdef IdBucket** segments
    cdef IdBucket* segment
    cdef uint32_t capacity
    cdef uint32_t buckets = SEGMENT_BUCKETS
    if table.buckets_count < SEGMENT_BUCKETS:
        buckets = <uint32_t>(2 * table.buckets_count if table.buckets_count else 1)
    if table.segments_count == table.segments_capacity and table.buckets_count % SEGMENT_BUCKETS == 0:
        capacity = <uint32_t>(2 * table.segments_capacity if table.segments_capacity else SEGMENTS_MIN)
        segments = <IdBucket**>realloc(table.segments, capacity * sizeof(IdBucket*))
        if segments == NULL:
            return -1
        table.bytes += (capacity - table.segments_capacity) * sizeof(IdBucket*)
        table.segments = segments
        table.segments_capacity = capacity
    segment = segment_take(table, buckets)
    if segment == NULL:
        return -1
    if table.buckets_count % SEGMENT_BUCKETS:
        memcpy(segment, table.segments[0], table.buckets_count * BUCKET_BYTES)
        free(table.segments[0])
        table.bytes -= table.buckets_count * BUCKET_BYTES
        table.segments[0] = segment
    else:
        table.segments[table.segments_count] = segment
        table.segments_count += 1
    return 0


cdef inline uint32_t split_into(uint32_t added) noexcept nogil:
    """The bucket that is split to fill an added one."""
    return added & (low_mask(added) >> 1)


cdef int add_bucket(IdTable* table) noexcept nogil:
    """Split the bucket whose turn it is: its number is the new one's without the highest bit."""
    cdef uint32_t added = table.buckets_count
    cdef uint32_t index
    cdef IdBucket old
    cdef IdBucket* bucket
    # Rooms are 1, 2, 4, … in the first segment, and a segment each from there on.
    if (not added & (added - 1) if added < SEGMENT_BUCKETS else not added % SEGMENT_BUCKETS) and add_segment(table):
        return -1
    table.buckets_count = added + 1
    bucket_clear(table, bucket_at(table, added))
    if not added:
        return 0
    bucket = bucket_at(table, split_into(added))
    old = bucket[0]
    bucket_clear(table, bucket)
    for index in range(<uint32_t>BUCKET_SLOTS):
        # The tag says all, and the entry need not come into the cache.
        if is_here(table, old.places[index]):
            slot_put(table, old.places[index], old.tags[index])
    if is_here(table, old.chain):
        chain_move(table, old.chain)
    bucket = bucket_at(table, split_into(added + SPLITS_AHEAD))
    if is_here(table, bucket.chain):
        memory_prefetch(entry_at(table, bucket.chain))
    return 0


cdef void chain_move(IdTable* table, uint32_t place) noexcept nogil:
    """Put those in the chain of a bucket that was split where they belong, from the oldest on."""
    cdef const IdEntry* entry = entry_at(table, place)
    if is_here(table, entry.next):
        chain_move(table, entry.next)
    slot_put(table, place, <uint32_t>entry.hash.low)


cdef inline void bucket_clear(IdTable* table, IdBucket* bucket) noexcept nogil:
    cdef uint32_t index
    memset(bucket, 0, sizeof(IdBucket))
    for index in range(<uint32_t>BUCKET_SLOTS):
        bucket.places[index] = table.head - 1
    bucket.chain = table.head - 1


cdef void ids_take_back(IdTable* table, uint32_t count) noexcept nogil:
    cdef uint32_t place, last, index
    cdef IdEntry* entry
    cdef IdBucket* bucket
    while count:
        count -= 1
        place = table.head + table.count - 1
        entry = entry_at(table, place)
        bucket = bucket_at(table, bucket_of(table, <uint32_t>entry.hash.low))
        # It is the newest of all, so if it is in the chain it is the first there.
        if bucket.chain == place:
            bucket.chain = entry.next
        for index in range(<uint32_t>BUCKET_SLOTS):
            if bucket.places[index] == place:
                bucket.places[index] = table.head - 1
        table.count -= 1
        if not place & (IDS_BLOCK - 1):
            last = (table.blocks_first + table.blocks_count - 1) & (table.blocks_capacity - 1)
            give_block(table, table.blocks[last])


cdef void ids_expire(IdTable* table, uint32_t since_s, uint64_t first) noexcept nogil:
    cdef const IdEntry* entry
    cdef IdEntry* block
    while table.count:
        entry = entry_at(table, table.head)
        if entry.time_s >= since_s and entry.sequence >= first:
            return
        table.head += 1
        table.count -= 1
        if not table.head & (IDS_BLOCK - 1):
            block = table.blocks[table.blocks_first]
            table.blocks_first = (table.blocks_first + 1) & (table.blocks_capacity - 1)
            give_block(table, block)
        if table.count > IDS_BLOCK:
            # What was added so long ago is in no cache.
            memory_prefetch(entry_at(table, table.head + IDS_BLOCK))


# -- for Python --------------------------------------------------------------------------------------------------------


@cython.final
cdef class Ids:
    """The ids of one channel, as the reader thread gathers them and tests look at them.

    Args:
        seed: A random 64-bit number that keys the hash: that of the tails which get the ids.
    """

    def __cinit__(self, uint64_t seed):
        self.key = ids_key(seed)
        self.table = <IdTable*>calloc(1, sizeof(IdTable))
        if self.table == NULL:
            raise MemoryError
        ids_open(self.table)

    def __dealloc__(self):
        if self.table != NULL:
            ids_close(self.table)
            free(self.table)

    cdef IdTable* give(self) except NULL:
        """The table, which is the caller's from now on."""
        cdef IdTable* table = self.table
        if table == NULL:
            raise RuntimeError("the ids were given to a channel")
        self.table = NULL
        return table

    cdef IdHash hash_of(self, bytes id) except *:
        if self.table == NULL:
            raise RuntimeError("the ids were given to a channel")
        return id_hash(&self.key, <const uint8_t*>PyBytes_AS_STRING(id), PyBytes_GET_SIZE(id))

    def __len__(self):
        return self.table.count if self.table != NULL else 0

    @property
    def memory_bytes(self):
        """What they take, bytes."""
        return self.table.bytes if self.table != NULL else 0

    def find(self, bytes id not None):
        """The sequence of the newest record with this id, 0 for none."""
        cdef IdHash hash = self.hash_of(id)
        cdef const IdEntry* entry = ids_find(self.table, &hash)
        return entry.sequence if entry != NULL else 0

    def add(self, bytes id not None, uint64_t sequence, uint32_t time_s):
        """Add the newest record's id. Sequences and times rise."""
        cdef IdHash hash = self.hash_of(id)
        if ids_add(self.table, &hash, sequence, time_s):
            raise MemoryError

    def take_back(self, uint32_t count):
        """Take the newest ones out again, so many."""
        if count > len(self):
            raise ValueError(f"ids: got {count} to take back, there are {len(self)}")
        ids_take_back(self.table, count)

    def expire(self, uint32_t since_s, uint64_t first):
        """Forget those of records that were taken before a second of broker time, or below a sequence."""
        if self.table != NULL:
            ids_expire(self.table, since_s, first)

    def take(self, bytes chunk not None, uint64_t begin, uint64_t end):
        """Add the ids of a chunk's records.

        Args:
            chunk: A whole chunk whose checksum has been verified.
            begin, end: Sequences from the one on, before the other; others are passed over.

        Raises:
            ValueError: Its records are not what its checksum vouches for.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(chunk)
        cdef int outcome
        if self.table == NULL:
            raise RuntimeError("the ids were given to a channel")
        if size < CHUNK_HEADER_BYTES or load_u32(at) != size:
            raise ValueError(f"chunk: got {size} bytes")
        with nogil:
            outcome = take_chunk(self.table, &self.key, at, size, begin, end)
        if outcome == TAKE_MEMORY:
            raise MemoryError
        if outcome == TAKE_DAMAGED:
            raise ValueError("chunk: a record is not well formed")


cdef enum:
    TAKE_MEMORY = 1
    TAKE_DAMAGED = 2


cdef int take_chunk(IdTable* table, const IdKey* key, const uint8_t* at, size_t size, uint64_t begin,
                    uint64_t end) noexcept nogil:
    cdef const uint8_t* end_at = at + size
    cdef uint64_t sequence = load_u64(at + CHUNK_FIRST)
    cdef uint64_t time_us = load_u64(at + CHUNK_TIME)
    cdef const uint8_t* id
    cdef uint32_t id_size = 0
    cdef uint32_t record
    cdef IdHash hash
    at += CHUNK_HEADER_BYTES
    while at < end_at:
        if end_at - at < RECORD_HEADER_BYTES:
            return TAKE_DAMAGED
        record = load_u32(at)
        if record < RECORD_HEADER_BYTES or record > end_at - at:
            return TAKE_DAMAGED
        if load_u16(at + 4) & RECORD_GONE:
            if record < GONE_RECORD_BYTES:
                return TAKE_DAMAGED
            sequence += load_u32(at + GONE_RECORD_BYTES - 4)
        else:
            if load_u16(at + 4) & RECORD_ID and sequence >= begin and sequence < end:
                id = record_id(at, &id_size)
                if id == NULL:
                    return TAKE_DAMAGED
                hash = id_hash(key, id, id_size)
                if ids_add(table, &hash, sequence, <uint32_t>((time_us + load_u32(at + 8)) // 1000000)):
                    return TAKE_MEMORY
            sequence += 1
        at += record
    return 0
