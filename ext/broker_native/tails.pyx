"""The sequencer's native state: channels and their open chunks, producers' lines, the open group.

Records come in as the bytes of a PUBLISH frame, get their sequences here and are copied once into their channel's open
chunk. Two closes take chunks out: `close_turn` (ephemeral chunks, and early ones of accepted channels) and
`close_group` (everything that is journaled, as one value). `apply_group` is the only way in which committed state
changes, at start and while running alike; `undo` drops the pending view when a commit failed.

A channel is in memory while somebody uses it. `evict` frees those that nobody holds or reads, that have nothing
pending and whose last group is among those that can be looked up elsewhere; applying the entries of such a look-up
(CHANNEL, EPOCH, HEAD) makes the channel again what it was. A dropped channel stays, as good as not here, until that
look-up knows of the drop.

Invariants, per channel: applied_next <= closed_next <= next; seen_next <= next; first <= applied_next. Sequences are
dense per epoch. An id is never given twice. A channel with an open chunk, in the open group or in the one in commit is
not freed, nor is one that `holders` counts. A Tails belongs to one thread. It reads no clock and does no I/O.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport *
from broker_native.slabs cimport memory_prefetch, slabs_ahead, slabs_close, slabs_give, slabs_take
from broker_native.slots cimport (
    SEGMENT_SLOTS,
    Segment,
    segment_remove,
    slot_after,
    slot_home,
    table_after,
    table_close,
    table_find,
    table_insert,
    table_merge,
    table_open,
    table_prefetch,
    table_remove,
    table_segment,
)

cdef extern from "Python.h":
    void Py_XDECREF(PyObject* object)

cdef enum:
    RUN_SHIFT = 40                      # an epoch's run is above it
    SLOT_MAX = (1 << 24) - 1            # the largest number that a connection may give to a channel
    CHUNK_CAPACITY_MIN = 256            # of a class of buffers; each next one is twice as large
    CHUNK_CLASSES = 7                   # up to 16 KiB; larger ones are few, and the C library keeps them as well
    POOL_IDLE_BYTES_MAX = 8 << 20       # two full groups need less, and a process at rest keeps it
    AHEAD = 8                           # how many channels a loop over them fetches ahead
    LINE_RUNS_KEPT = 4096               # when a group's runs of one line grow past this, the oldest are dropped

# Codes of broker.model.errors that the hot path answers with; a test compares them with the registry.
cdef enum:
    CODE_NUMBER_GAP = 1003
    CODE_INVALID_CHANNEL = 3005
    CODE_PAYLOAD_TOO_LARGE = 3009
    CODE_HEADERS_TOO_LARGE = 3010
    CODE_INVALID_RECORD = 3011
    CODE_NUMBER_OVERLAP = 3019
    CODE_COMMIT_UNKNOWN = 4001
    DUPLICATE = 1                       # no refusal: every number of the frame was taken before

CODES = {
    "DUPLICATE": DUPLICATE,
    "NUMBER_GAP": CODE_NUMBER_GAP,
    "INVALID_CHANNEL": CODE_INVALID_CHANNEL,
    "PAYLOAD_TOO_LARGE": CODE_PAYLOAD_TOO_LARGE,
    "HEADERS_TOO_LARGE": CODE_HEADERS_TOO_LARGE,
    "INVALID_RECORD": CODE_INVALID_RECORD,
    "NUMBER_OVERLAP": CODE_NUMBER_OVERLAP,
    "COMMIT_UNKNOWN": CODE_COMMIT_UNKNOWN,
}


# -- growable arrays ---------------------------------------------------------------------------------------------------


cdef int bytes_reserve(Bytes* buffer, size_t more) except -1:
    """Make room for `more` bytes after `used`."""
    cdef size_t capacity = buffer.capacity
    if buffer.used + more <= capacity:
        return 0
    if capacity == 0:
        capacity = 64
    while capacity < buffer.used + more:
        capacity *= 2
    cdef uint8_t* data = <uint8_t*>realloc(buffer.data, capacity)
    if data == NULL:
        raise MemoryError
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef void bytes_release(Bytes* buffer) noexcept:
    free(buffer.data)
    buffer.data = NULL
    buffer.used = 0
    buffer.capacity = 0


cdef bytes bytes_take(Bytes* buffer):
    """The content as an object; the buffer is empty after, and keeps its memory unless it is large."""
    cdef bytes taken = PyBytes_FromStringAndSize(<char*>buffer.data, buffer.used)
    buffer.used = 0
    if buffer.capacity > 4096:
        bytes_release(buffer)
    return taken


cdef int channels_push(ChannelList* channels, Channel* channel) except -1:
    cdef uint32_t capacity
    cdef Channel** items
    if channels.count == channels.capacity:
        capacity = <uint32_t>(channels.capacity * 2 if channels.capacity else 16)
        items = <Channel**>realloc(channels.items, capacity * sizeof(Channel*))
        if items == NULL:
            raise MemoryError
        channels.items = items
        channels.capacity = capacity
    channels.items[channels.count] = channel
    channels.count += 1
    return 0


cdef int closed_push(ClosedChunks* closed, uint8_t* data, uint32_t size, uint32_t capacity) except -1:
    cdef uint32_t room
    cdef ClosedChunk* items
    if closed.count == closed.capacity:
        room = <uint32_t>(closed.capacity * 2 if closed.capacity else 16)
        items = <ClosedChunk*>realloc(closed.items, room * sizeof(ClosedChunk))
        if items == NULL:
            raise MemoryError
        closed.items = items
        closed.capacity = room
    closed.items[closed.count].bytes = data
    closed.items[closed.count].size = size
    closed.items[closed.count].capacity = capacity
    closed.count += 1
    closed.bytes += size
    return 0


cdef inline uint64_t name_hash(uint64_t seed, const char* name, size_t size) noexcept nogil:
    """A keyed 64-bit hash; the seed is random, so names cannot be chosen to collide."""
    cdef uint64_t mixed = seed ^ (size * <uint64_t>0x9E3779B97F4A7C15)
    cdef uint64_t word
    cdef const uint8_t* at = <const uint8_t*>name
    while size >= 8:
        mixed = (mixed ^ load_u64(at)) * <uint64_t>0xFF51AFD7ED558CCD
        mixed ^= mixed >> 32
        at += 8
        size -= 8
    word = 0
    while size > 0:
        size -= 1
        word = (word << 8) | at[size]
    mixed = (mixed ^ word ^ (seed >> 7)) * <uint64_t>0xC4CEB9FE1A85EC53
    return mixed ^ (mixed >> 29)


cdef inline uint64_t id_key(uint64_t seed, uint64_t id) noexcept nogil:
    """Where an id is in its table. One to one, so the key stands for the id; keyed, so ids cannot be chosen to meet."""
    cdef uint64_t mixed = (id ^ (seed >> 9)) * <uint64_t>0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 32) ^ seed) * <uint64_t>0xD6E8FEB86659FD93
    return mixed ^ (mixed >> 32)


# -- chunks ------------------------------------------------------------------------------------------------------------


cdef inline int chunk_class_of(uint32_t need) noexcept nogil:
    """The smallest class of buffers that holds `need` bytes; CHUNK_CLASSES when none does."""
    cdef int size_class = 0
    while size_class < CHUNK_CLASSES and (<uint32_t>CHUNK_CAPACITY_MIN << size_class) < need:
        size_class += 1
    return size_class


cdef inline void buffer_prefetch(const uint8_t* data) noexcept nogil:
    """Have the first lines of a buffer, all of a small one, on their way into the cache."""
    memory_prefetch(data)
    memory_prefetch(data + 64)
    memory_prefetch(data + 128)
    memory_prefetch(data + 192)


cdef uint8_t* buffer_take(ChunkPool* pool, uint32_t need, uint32_t* capacity) noexcept nogil:
    """A buffer of at least `need` bytes; what it holds comes out in `capacity`. NULL when there is no memory."""
    cdef int size_class = chunk_class_of(need)
    cdef uint8_t* data
    if size_class == CHUNK_CLASSES:
        # All at once what a full chunk takes: it would be copied as often as it grows.
        capacity[0] = max(need, <uint32_t>CHUNK_BYTES_CLOSE)
        return <uint8_t*>malloc(capacity[0])
    capacity[0] = <uint32_t>CHUNK_CAPACITY_MIN << size_class
    data = pool.idle[size_class]
    if data == NULL:
        return <uint8_t*>malloc(capacity[0])
    pool.idle[size_class] = (<uint8_t**>data)[0]
    pool.idle_bytes -= capacity[0]
    if pool.idle[size_class] != NULL:
        buffer_prefetch(pool.idle[size_class])
    return data


cdef void buffer_give(ChunkPool* pool, uint8_t* data, uint32_t capacity) noexcept nogil:
    """Give back what `buffer_take` answered, or NULL.

    The last one given is the first taken: however many channels take turns, their open chunks share a few buffers
    that the caches know.
    """
    cdef int size_class = chunk_class_of(capacity)
    if data == NULL:
        return
    if size_class == CHUNK_CLASSES or pool.idle_bytes + capacity > POOL_IDLE_BYTES_MAX:
        free(data)
        return
    (<uint8_t**>data)[0] = pool.idle[size_class]
    pool.idle[size_class] = data
    pool.idle_bytes += capacity


cdef void pool_release(ChunkPool* pool) noexcept nogil:
    cdef int size_class
    cdef uint8_t* data
    for size_class in range(CHUNK_CLASSES):
        while pool.idle[size_class] != NULL:
            data = pool.idle[size_class]
            pool.idle[size_class] = (<uint8_t**>data)[0]
            free(data)
    pool.idle_bytes = 0


cdef void chunk_drop(ChunkPool* pool, Channel* channel) noexcept nogil:
    """The channel has no open chunk any more."""
    buffer_give(pool, channel.chunk, channel.chunk_capacity)
    channel.chunk = NULL
    channel.chunk_capacity = 0
    channel.chunk_count = 0


cdef int chunk_open(ChunkPool* pool, Channel* channel, uint64_t now_us, uint32_t need) except -1:
    """Begin a chunk with room for its header and `need` bytes."""
    cdef uint32_t capacity = channel.chunk_hint
    if capacity < CHUNK_HEADER_BYTES + need:
        capacity = CHUNK_HEADER_BYTES + need
    if channel.chunk == NULL or channel.chunk_capacity < capacity:
        chunk_drop(pool, channel)
        channel.chunk = buffer_take(pool, capacity, &channel.chunk_capacity)
        if channel.chunk == NULL:
            channel.chunk_capacity = 0
            raise MemoryError
    channel.chunk_used = CHUNK_HEADER_BYTES
    channel.chunk_count = 0
    channel.chunk_time_us = now_us
    channel.chunk_expiry_s = 0
    return 0


cdef int chunk_grow(ChunkPool* pool, Channel* channel, uint32_t need) except -1:
    # need <= the frame limit and used <= CHUNK_BYTES_CLOSE, so 32 bits hold the sum.
    cdef uint32_t capacity
    cdef uint8_t* data = buffer_take(pool, channel.chunk_used + need, &capacity)
    if data == NULL:
        raise MemoryError
    memcpy(data, channel.chunk, channel.chunk_used)
    buffer_give(pool, channel.chunk, channel.chunk_capacity)
    channel.chunk = data
    channel.chunk_capacity = capacity
    return 0


cdef void chunk_finish(Channel* channel) noexcept nogil:
    """Write the header of the open chunk. Its bytes are complete after this."""
    cdef uint8_t* at = channel.chunk
    cdef uint32_t size = channel.chunk_used
    store_u32(at, size)
    store_u64(at + CHUNK_CHANNEL, channel.id)
    store_u64(at + CHUNK_EPOCH, channel.epoch)
    store_u64(at + CHUNK_FIRST, channel.next - channel.chunk_count)
    store_u32(at + CHUNK_COUNT, channel.chunk_count)
    store_u32(at + CHUNK_FLAGS, 0)
    store_u64(at + CHUNK_TIME, channel.chunk_time_us)
    store_u64(at + CHUNK_EXPIRY, channel.chunk_expiry_s)
    store_u32(at + CHUNK_CRC, crc32c(0, at + CHUNK_CHANNEL, size - CHUNK_CHANNEL))
    channel.chunk_hint = size + (size >> 2)
    if channel.chunk_hint > CHUNK_BYTES_CLOSE:
        channel.chunk_hint = CHUNK_BYTES_CLOSE


cdef inline uint8_t* chunk_take(ChunkPool* pool, Channel* channel, uint8_t* to) noexcept nogil:
    """Complete the open chunk, if there is one, and move it to `to`; answers its end."""
    if channel.chunk_count:
        chunk_finish(channel)
        memcpy(to, channel.chunk, channel.chunk_used)
        to += channel.chunk_used
    chunk_drop(pool, channel)
    channel.chunk_class = CLASS_NONE
    return to


cdef inline void channels_look_ahead(const ChannelList* channels, uint32_t index) noexcept nogil:
    """Have a channel that comes up soon on its way into the cache, and the chunk of one that comes up sooner."""
    if index + AHEAD < channels.count:
        channel_prefetch(channels.items[index + AHEAD])
    if index + AHEAD // 2 < channels.count and channels.items[index + AHEAD // 2].chunk != NULL:
        buffer_prefetch(channels.items[index + AHEAD // 2].chunk)


# -- a producer's line -------------------------------------------------------------------------------------------------


cdef class Line:
    """One producer's dense number line: what it has published, and where the newest of it went.

    Args:
        producer: 16 bytes, or None for a line that ends with its connection and is never journaled.
    """

    def __cinit__(self, producer=None):
        self.producer = producer
        self.next = 1
        self.closed_next = 1
        self.applied_next = 1
        self.runs = []

    def __dealloc__(self):
        free(self.group_runs.data)

    cdef int note(self, uint64_t channel, uint64_t number, uint64_t first, uint32_t count) except -1:
        """Remember for the open group where `count` numbers from `number` went."""
        cdef uint8_t* last
        if not self.group_count:
            self.group_first = number
        self.group_count += count
        if self.group_runs.used:
            last = self.group_runs.data + self.group_runs.used - LINE_RUN_BYTES
            if load_u64(last) == channel and (
                not channel or load_u64(last + 8) + load_u32(last + 16) == first
            ) and <uint64_t>load_u32(last + 16) + count <= 0xFFFFFFFF:
                store_u32(last + 16, load_u32(last + 16) + count)
                return 0
        if self.group_runs.used >= LINE_RUNS_KEPT * LINE_RUN_BYTES:
            memmove(self.group_runs.data, last - (LINE_WINDOW - 1) * LINE_RUN_BYTES, LINE_WINDOW * LINE_RUN_BYTES)
            self.group_runs.used = LINE_WINDOW * LINE_RUN_BYTES
        bytes_reserve(&self.group_runs, LINE_RUN_BYTES)
        last = self.group_runs.data + self.group_runs.used
        store_u64(last, channel)
        store_u64(last + 8, first)
        store_u32(last + 16, count)
        self.group_runs.used += LINE_RUN_BYTES
        return 0

    cdef size_t window_bytes(self) noexcept:
        """How many bytes at the end of the group's runs cover the newest LINE_WINDOW numbers."""
        cdef size_t at = self.group_runs.used
        cdef uint64_t covered = 0
        while at > 0 and covered < LINE_WINDOW:
            at -= LINE_RUN_BYTES
            covered += load_u32(self.group_runs.data + at + 16)
        return self.group_runs.used - at

    cdef void forget_group(self) noexcept:
        self.group_count = 0
        self.group_runs.used = 0

    cdef int apply(self, const uint8_t* body, uint32_t size, bint snapshot) except -1:
        """Take over a committed LINE entry (validated by the caller)."""
        cdef uint64_t number = load_u64(body + 16)
        cdef uint64_t count = load_u64(body + 24)
        cdef uint32_t runs = load_u32(body + 32)
        cdef uint64_t covered = 0
        cdef uint32_t index
        cdef list kept = [] if snapshot else <list>self.runs
        for index in range(runs):
            covered += load_u32(body + LINE_HEADER_BYTES + index * LINE_RUN_BYTES + 16)
        kept.append((number + count - covered, covered,
                     PyBytes_FromStringAndSize(<const char*>body + LINE_HEADER_BYTES, runs * LINE_RUN_BYTES)))
        while len(kept) > 1 and kept[1][0] + LINE_WINDOW <= number + count:
            del kept[0]
        self.runs = kept
        self.applied_next = number + count
        if self.closed_next < self.applied_next:
            self.closed_next = self.applied_next
        if self.next < self.applied_next:
            self.next = self.applied_next
        return 0

    def lookup(self, uint64_t number, uint32_t count):
        """Where committed numbers went: a list of (channel id or 0, number, first sequence, count), in order.

        Numbers that left the window come with channel id 0, as do those of ephemeral channels.
        """
        cdef list found = []
        cdef uint64_t end = number + count
        cdef uint64_t at, first, low, high
        cdef uint32_t size
        cdef const uint8_t* run
        for start, _covered, packed in self.runs:
            at = start
            run = <const uint8_t*>PyBytes_AS_STRING(packed)
            for _ in range(PyBytes_GET_SIZE(packed) // LINE_RUN_BYTES):
                size = load_u32(run + 16)
                low = number if number > at else at
                high = end if end < at + size else at + size
                if low < high:
                    if low > number:
                        found.append((0, number, 0, low - number))
                    first = load_u64(run + 8) + (low - at) if load_u64(run) else 0
                    found.append((load_u64(run), low, first, high - low))
                    number = high
                at += size
                run += LINE_RUN_BYTES
        if number < end:
            found.append((0, number, 0, end - number))
        return found


# -- the tails ---------------------------------------------------------------------------------------------------------


cdef class Tails:
    """All channels of one shard and the open group.

    Args:
        run: The number of this run (>= 1); epochs that begin in it carry it.
        hash_seed: A random 64-bit number that keys the name table.
    """

    def __cinit__(self, uint64_t run, uint64_t hash_seed):
        if not 1 <= run < 1 << 24:
            raise ValueError(f"run: got {run}, range 1 to {(1 << 24) - 1}")
        self.run = run
        self.hash_seed = hash_seed
        if table_open(&self.by_name) or table_open(&self.by_id):
            raise MemoryError
        self.transaction_bytes_max = 0xFFFFFFFF
        self.id_next = 1
        self.ephemeral_next = EPHEMERAL_ID
        self.group_number = 1
        self.early = []
        self.lines_open = []
        self.lines_commit = []
        self.lines_unsettled = []
        self.publishers_turn = []
        self.publishers_group = []

    def __dealloc__(self):
        cdef uint64_t key = 0
        cdef uint32_t index
        cdef Segment* segment
        if self.by_name.directory != NULL:
            while True:
                segment = table_segment(&self.by_name, key)
                for index in range(<uint32_t>SEGMENT_SLOTS):
                    if segment.slots[index].item != NULL:
                        self.destroy(<Channel*>segment.slots[index].item)
                key = table_after(&self.by_name, key)
                if not key:
                    break
        table_close(&self.by_name)
        table_close(&self.by_id)
        for index in range(4):
            free(self.dirty[index].items)
            closed_clear(&self.pool, &self.closed[index])
            free(self.closed[index].items)
        free(self.touched.items)
        free(self.touched_commit.items)
        free(self.commit.channels.items)
        free(self.applied.channels.items)
        free(self.checksums.data)
        free(self.entries.data)
        free(self.counts)
        pool_release(&self.pool)
        slabs_close(&self.channels)

    def begin_run(self, uint64_t run, uint64_t group_number, uint64_t id_next=0, stored=None):
        """Begin a run after everything that was committed has been applied, or can be looked up.

        Args:
            run: Its number (>= 1).
            group_number: Number of the group that opens.
            id_next: The next stored channel's id, at least; 0 when what was applied says it.
            stored: How many channels the journal has; None when all of them were applied.
        """
        if not 1 <= run < 1 << 24:
            raise ValueError(f"run: got {run}, range 1 to {(1 << 24) - 1}")
        if id_next > EPHEMERAL_ID:
            raise ValueError(f"next channel id: got {id_next}, limit {EPHEMERAL_ID}")
        self.run = run
        self.group_number = group_number
        self.applied_group = group_number - 1
        self.begun = True
        self.id_next = max(self.id_next, id_next)
        if stored is not None:
            self.stored = stored

    # .. channels ..

    cdef Channel* find(self, const char* name, size_t size) noexcept:
        cdef uint64_t key = name_hash(self.hash_seed, name, size)
        cdef const Segment* segment = table_segment(&self.by_name, key)
        cdef uint32_t slot = slot_home(key)
        cdef Channel* channel
        while segment.slots[slot].item != NULL:
            if segment.slots[slot].key == key:
                channel = <Channel*>segment.slots[slot].item
                if channel.name_size == size and memcmp(channel_name(channel), name, size) == 0:
                    return channel
            slot = slot_after(slot)
        return NULL

    cdef Channel* find_here(self, bytes name) noexcept:
        """The channel, NULL when it is not in memory or was dropped."""
        cdef Channel* channel = self.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        return channel if channel == NULL or channel.state != STATE_GONE else NULL

    cdef Channel* by_channel_id(self, uint64_t id) noexcept:
        return <Channel*>table_find(&self.by_id, id_key(self.hash_seed, id))

    cdef const uint8_t* find_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t group, uint32_t chunk,
                                    Channel** found, uint32_t* count) noexcept:
        """Find the channels of the next chunks, BATCH at most; answers where the chunks after them begin.

        Those of the group that was applied last are known. Others are looked up: one after the other each look-up would
        wait twice for memory, for the table and for the channel; together they wait once for all.
        """
        cdef uint64_t keys[BATCH]
        cdef uint32_t index = 0
        if group and group == self.applied.number and chunk >= self.applied.index:
            chunk -= self.applied.index
            while at < end and index < BATCH and chunk + index < self.applied.channels.count:
                found[index] = self.applied.channels.items[chunk + index]
                memory_prefetch(&found[index].closed_next)
                at += load_u32(at)
                index += 1
            count[0] = index
            return at
        while at < end and index < BATCH:
            keys[index] = id_key(self.hash_seed, load_u64(at + CHUNK_CHANNEL))
            table_prefetch(&self.by_id, keys[index])
            at += load_u32(at)
            index += 1
        count[0] = index
        for index in range(count[0]):
            found[index] = <Channel*>table_find(&self.by_id, keys[index])
            if found[index] != NULL:
                channel_prefetch(found[index])
        return at

    cdef uint32_t now_s(self) noexcept:
        return <uint32_t>(self.now_us // 1000000)

    cdef Channel* create(self, const char* name, size_t size, uint8_t level, uint8_t shard_tokens,
                         uint32_t payload_bytes_max) except NULL:
        cdef Channel* channel
        if not 1 <= size <= 255:
            raise ValueError(f"channel name: got {size} bytes, range 1 to 255")
        channel = <Channel*>slabs_take(&self.channels, sizeof(Channel) + size)
        if channel == NULL:
            raise MemoryError
        memcpy(channel_name(channel), name, size)
        channel.name_size = <uint8_t>size
        channel.next = channel.closed_next = channel.applied_next = channel.seen_next = channel.first = 1
        channel.level = level
        channel.shard_tokens = shard_tokens
        channel.payload_bytes_max = payload_bytes_max
        channel.used_s = self.now_s()
        if table_insert(&self.by_name, name_hash(self.hash_seed, name, size), channel):
            slabs_give(&self.channels, channel)
            raise MemoryError
        return channel

    cdef void remove(self, Channel* channel) noexcept:
        """Forget the channel's ids, and that it was counted; its name stays."""
        if channel.id:
            table_remove(&self.by_id, id_key(self.hash_seed, channel.id), channel)
        if channel.stored_id and channel.stored_id != channel.id:
            table_remove(&self.by_id, id_key(self.hash_seed, channel.stored_id), channel)
        if channel.state == STATE_GONE:
            self.gone -= 1
        elif not channel.applied_level:
            self.unborn -= 1
            self.counts[channel.profile].unborn -= 1

    cdef void destroy(self, Channel* channel) noexcept:
        """Free the channel; no table has it any more."""
        # One of a group in commit never is: but readers may still have to get what was applied.
        self.applied.number = 0
        self.applied.channels.count = 0
        chunk_drop(&self.pool, channel)
        epochs_release(channel)
        Py_XDECREF(<PyObject*>channel.exact)
        Py_XDECREF(<PyObject*>channel.readers)
        slabs_give(&self.channels, channel)

    cdef int register_id(self, Channel* channel, uint64_t id) except -1:
        """Make a stored channel known by its journaled id."""
        cdef Channel* other
        if id >= EPHEMERAL_ID or id == 0:
            raise ValueError(f"channel id: got {id}, range 1 to {EPHEMERAL_ID - 1}")
        other = self.by_channel_id(id)
        if other != NULL:
            raise ValueError(f"channel id: {id} is another channel's")
        if table_insert(&self.by_id, id_key(self.hash_seed, id), channel):
            raise MemoryError
        if channel.id:
            table_remove(&self.by_id, id_key(self.hash_seed, channel.id), channel)
        if channel.stored_id and channel.stored_id != channel.id:
            table_remove(&self.by_id, id_key(self.hash_seed, channel.stored_id), channel)
        channel.id = channel.stored_id = id
        if id >= self.id_next:
            self.id_next = id + 1
        return 0

    cdef int register_ephemeral(self, Channel* channel) except -1:
        if table_insert(&self.by_id, id_key(self.hash_seed, self.ephemeral_next), channel):
            raise MemoryError
        channel.id = self.ephemeral_next
        self.ephemeral_next += 1
        return 0

    cdef ProfileCounts* counts_of(self, uint32_t profile) except NULL:
        cdef ProfileCounts* counts
        if profile >= self.counts_size:
            counts = <ProfileCounts*>realloc(self.counts, (profile + 1) * sizeof(ProfileCounts))
            if counts == NULL:
                raise MemoryError
            memset(counts + self.counts_size, 0, (profile + 1 - self.counts_size) * sizeof(ProfileCounts))
            self.counts = counts
            self.counts_size = profile + 1
        return &self.counts[profile]

    # .. decide ..

    cdef int prepare(self, Channel* channel) except -1:
        """Fix the class of the channel's next chunk; draw its id and epoch when it has none.

        Whatever part of it there is no memory for, what was done before is as good as not done, and is not done again.
        """
        cdef int chunk_class
        if channel.level == LEVEL_EPHEMERAL:
            chunk_class = self.prepare_ephemeral(channel)
        else:
            chunk_class = self.prepare_stored(channel)
        channels_push(&self.dirty[chunk_class], channel)
        channel.chunk_class = <uint8_t>chunk_class
        return 0

    cdef int prepare_ephemeral(self, Channel* channel) except -1:
        if channel.id < EPHEMERAL_ID:
            self.register_ephemeral(channel)
        if channel.epoch == 0 or channel.epoch_stale:
            self.epoch_counter += 1
            channel.epoch = (self.run << RUN_SHIFT) | (<uint64_t>1 << 39) | self.epoch_counter
            channel.epoch_stale = STALE_NOT
        channel.used_s = self.now_s()
        return CLASS_EPHEMERAL

    cdef int prepare_stored(self, Channel* channel) except -1:
        if not channel.announced:
            self.announce(channel)
        if channel.epoch == 0 or channel.epoch_stale:
            self.begin_epoch(channel)
        self.touch(channel)
        if (channel.level == LEVEL_ACCEPTED and not self.accepted_waits and channel.seen_next == channel.next
                and channel.applied_level in (0, LEVEL_ACCEPTED)):
            # Once the journal knows that readers may be ahead of it: a start after a crash must begin a new epoch.
            return CLASS_EARLY
        return CLASS_GROUP

    cdef int touch(self, Channel* channel) except -1:
        """The open group concerns the channel."""
        if not channel.touched:
            channels_push(&self.touched, channel)
            channel.touched = True
            channel.group = self.group_number
        channel.used_s = self.now_s()
        return 0

    cdef int announce(self, Channel* channel) except -1:
        """Put the channel's CHANNEL entry into the open group."""
        cdef uint8_t* at
        cdef uint32_t size = ENTRY_HEADER_BYTES + 12 + channel.name_size
        # An ephemeral id is gone already: `change_home` took it away with the ephemeral level.
        if channel.id == 0:
            self.register_id(channel, self.id_next)
            table_prefetch(&self.by_id, id_key(self.hash_seed, self.id_next + AHEAD))
        bytes_reserve(&self.entries, size)
        at = self.entries.data + self.entries.used
        entry_header(at, size, ENTRY_CHANNEL, 0)
        store_u64(at + 8, channel.id)
        at[16] = channel.level
        at[17] = channel.shard_tokens
        at[18] = channel.name_size
        at[19] = 0
        memcpy(at + 20, channel_name(channel), channel.name_size)
        self.entries.used += size
        self.entries_count += 1
        channel.announced = True
        return 0

    cdef int begin_epoch(self, Channel* channel) except -1:
        """Draw a new epoch and put its EPOCH entry into the open group; neither without the other."""
        cdef uint8_t* at
        cdef uint32_t size = ENTRY_HEADER_BYTES + 24
        cdef uint64_t epoch = (self.run << RUN_SHIFT) | (self.group_number & ((<uint64_t>1 << 39) - 1))
        bytes_reserve(&self.entries, size)
        epochs_push(channel, epoch, channel.next)
        channel.epoch = epoch
        channel.epoch_stale = STALE_NOT
        at = self.entries.data + self.entries.used
        entry_header(at, size, ENTRY_EPOCH, 0)
        store_u64(at + 8, channel.id)
        store_u64(at + 16, channel.epoch)
        store_u64(at + 24, channel.next)
        self.entries.used += size
        self.entries_count += 1
        return 0

    cdef int append(self, Channel* channel, const uint8_t* record, uint32_t size, uint32_t count,
                    uint64_t expiry_s) except -1:
        """Give one validated record (or a GONE run of `count` sequences) its place in the open chunk."""
        cdef uint8_t* at
        if channel.chunk_count and channel.chunk_used + size > CHUNK_BYTES_CLOSE:
            self.close_chunk(channel)
        if not channel.chunk_count:
            chunk_open(&self.pool, channel, self.now_us, size)
            self.open_bytes[channel.chunk_class] += CHUNK_HEADER_BYTES
        elif channel.chunk_used + size > channel.chunk_capacity:
            chunk_grow(&self.pool, channel, size)
        at = channel.chunk + channel.chunk_used
        memcpy(at, record, size)
        store_u32(at + 8, <uint32_t>(self.now_us - channel.chunk_time_us))
        if expiry_s and (channel.chunk_expiry_s == 0 or expiry_s < channel.chunk_expiry_s):
            channel.chunk_expiry_s = expiry_s
        self.open_bytes[channel.chunk_class] += size
        channel.chunk_used += size
        channel.chunk_count += count
        channel.next += count
        return 0

    cdef int close_chunk(self, Channel* channel) except -1:
        """The open chunk is full: it waits, complete, for the close of its class."""
        chunk_finish(channel)
        closed_push(&self.closed[channel.chunk_class], channel.chunk, channel.chunk_used, channel.chunk_capacity)
        self.open_bytes[channel.chunk_class] -= channel.chunk_used
        channel.chunk = NULL
        channel.chunk_capacity = 0
        channel.chunk_count = 0
        channel.chunk_used = 0
        return 0

    cdef void take_back(self, Channel* channel, const ChunkMark* mark) noexcept:
        """Forget what was appended since the mark: there was no memory for the rest of its frame."""
        cdef ClosedChunks* closed = &self.closed[channel.chunk_class]
        cdef ClosedChunk* first
        if channel.chunk_count:
            self.open_bytes[channel.chunk_class] -= channel.chunk_used
        if mark.count:
            self.open_bytes[channel.chunk_class] += mark.used
        if closed.count > mark.closed:
            buffer_give(&self.pool, channel.chunk, channel.chunk_capacity)
            while closed.count > mark.closed + 1:
                closed.count -= 1
                closed.bytes -= closed.items[closed.count].size
                buffer_give(&self.pool, closed.items[closed.count].bytes, closed.items[closed.count].capacity)
            # The chunk that was open at the mark, closed since.
            first = &closed.items[mark.closed]
            closed.count = mark.closed
            closed.bytes -= first.size
            channel.chunk = first.bytes
            channel.chunk_capacity = first.capacity
        channel.chunk_used = mark.used
        channel.chunk_count = mark.count
        channel.chunk_time_us = mark.time_us
        channel.chunk_expiry_s = mark.expiry_s
        channel.next = mark.next

    # .. closes ..

    cdef size_t class_bytes(self, int chunk_class) noexcept:
        """What the class's chunks take together, closed and open ones."""
        return self.closed[chunk_class].bytes + self.open_bytes[chunk_class]

    cdef uint8_t* take_closed(self, int chunk_class, uint8_t* to) noexcept:
        """Copy the class's closed chunks to `to` and forget them; answers the end."""
        cdef ClosedChunks* closed = &self.closed[chunk_class]
        cdef uint32_t index
        for index in range(closed.count):
            memcpy(to, closed.items[index].bytes, closed.items[index].size)
            to += closed.items[index].size
        closed_clear(&self.pool, closed)
        return to

    cdef uint32_t take_turn(self, int chunk_class, uint8_t* to) noexcept:
        """Copy the chunks of a class that is delivered with its turn to `to` and empty it; answers how many."""
        cdef ChannelList* dirty = &self.dirty[chunk_class]
        cdef uint32_t chunks = self.closed[chunk_class].count
        cdef uint32_t index
        to = self.take_closed(chunk_class, to)
        for index in range(dirty.count):
            channels_look_ahead(dirty, index)
            chunks += dirty.items[index].chunk_count != 0
            to = chunk_take(&self.pool, dirty.items[index], to)
            dirty.items[index].seen_next = dirty.items[index].next
        dirty.count = 0
        self.open_bytes[chunk_class] = 0
        return chunks

    cdef uint32_t take_group(self, uint8_t* to) noexcept:
        """Copy the open group's own chunks to `to` and empty it; answers how many.

        It is one walk over their channels, and the last but one: they remain in `commit`, in the order of their chunks.
        """
        cdef ChannelList dirty = self.dirty[CLASS_GROUP]
        cdef Channel* channel
        cdef uint32_t closed = self.closed[CLASS_GROUP].count
        cdef uint32_t index
        cdef uint32_t kept = 0
        cdef uint8_t* at = to
        to = self.take_closed(CLASS_GROUP, to)
        self.note_checksums(at, to)
        for index in range(dirty.count):
            channels_look_ahead(&dirty, index)
            channel = dirty.items[index]
            if channel.chunk_count:
                dirty.items[kept] = channel
                kept += 1
            at = to
            to = chunk_take(&self.pool, channel, to)
            self.note_checksums(at, to)
            channel.closed_next = channel.next
            channel.touched = False
        self.dirty[CLASS_GROUP] = self.commit.channels
        self.dirty[CLASS_GROUP].count = 0
        self.open_bytes[CLASS_GROUP] = 0
        dirty.count = kept
        self.commit.channels = dirty
        self.commit.number = self.group_number
        self.commit.index = self.early_count + closed
        return closed + kept

    cdef void note_checksums(self, const uint8_t* at, const uint8_t* end) noexcept:
        """Note the checksums of chunks that are complete; there is room for them."""
        while at < end:
            memcpy(self.checksums.data + self.checksums.used, at + CHUNK_CRC, 4)
            self.checksums.used += 4
            at += load_u32(at)

    def close_turn(self):
        """Take what is delivered at the end of a loop turn: (ephemeral value, early value), each bytes or None.

        A value is whole chunks, one after the other. The early one also goes with the open group.
        """
        cdef bytes ephemeral = None
        cdef bytes early = None
        self.turn_bytes = 0
        if self.dirty[CLASS_EPHEMERAL].count:
            ephemeral = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.class_bytes(CLASS_EPHEMERAL))
            self.take_turn(CLASS_EPHEMERAL, <uint8_t*>PyBytes_AS_STRING(ephemeral))
        if self.dirty[CLASS_EARLY].count:
            early = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.class_bytes(CLASS_EARLY))
            self.early_count += self.take_turn(CLASS_EARLY, <uint8_t*>PyBytes_AS_STRING(early))
            self.early.append(early)
        return ephemeral, early

    @property
    def early_chunks(self):
        """How many early chunks the open group carries: the index of the next one."""
        return self.early_count

    @property
    def early_values(self):
        """The values of the open group's early chunks, in order."""
        return list(self.early)

    @property
    def group_empty(self):
        """Whether the open group holds nothing to journal."""
        return not (self.touched.count or self.entries_count)

    def close_group(self, uint64_t predecessor, uint32_t previous_chain, uint64_t term, uint64_t writer,
                    uint64_t time_us, uint32_t flags=0, bytes extra=b"", uint32_t extra_count=0):
        """Close the open group into the value that is journaled, and open the next one.

        Early chunks must have been closed by `close_turn`. At most one group is in commit: `apply_group` or `undo`
        comes before the next close.

        Args:
            predecessor: Number of the last good group, 0 for the first.
            previous_chain: Its chain checksum.
            term, writer: Who sequences; carried for a fleet.
            time_us: Broker time.
            flags: GROUP_FLAG_*.
            extra, extra_count: Further whole entries (RUN, CLOSE).

        Returns:
            (value, index of its first chunk that was not delivered early).
        """
        cdef size_t early_bytes = 0
        cdef bytes part, value
        cdef uint8_t* at
        cdef uint8_t* start
        cdef uint32_t chunks
        cdef size_t size, entries_bytes
        cdef uint32_t early_chunks = self.early_count
        # A line is among those in commit because of a channel that it published to.
        if self.touched_commit.count:
            raise RuntimeError("a group is in commit: apply or undo comes first")
        if self.dirty[CLASS_EARLY].count:
            raise RuntimeError("early chunks are open: close_turn comes first")
        chunks = early_chunks + self.closed[CLASS_GROUP].count + self.dirty[CLASS_GROUP].count
        self.checksums.used = 0
        bytes_reserve(&self.checksums, 4 * <size_t>chunks)
        self.close_lines()
        for part in self.early:
            early_bytes += PyBytes_GET_SIZE(part)
        entries_bytes = self.entries.used + <size_t>PyBytes_GET_SIZE(extra)
        size = GROUP_HEADER_BYTES + entries_bytes + early_bytes + self.class_bytes(CLASS_GROUP)
        value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        start = <uint8_t*>PyBytes_AS_STRING(value)
        at = start + GROUP_HEADER_BYTES
        # memcpy from NULL is undefined even for no bytes.
        if self.entries.used:
            memcpy(at, self.entries.data, self.entries.used)
            at += self.entries.used
        memcpy(at, PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
        at += PyBytes_GET_SIZE(extra)
        for part in self.early:
            memcpy(at, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
            self.note_checksums(at, at + PyBytes_GET_SIZE(part))
            at += PyBytes_GET_SIZE(part)
        chunks = early_chunks + self.take_group(at)
        memset(start, 0, GROUP_HEADER_BYTES)
        store_u32(start, GROUP_MAGIC)
        store_u16(start + GROUP_FORMAT_AT, GROUP_FORMAT)
        store_u16(start + GROUP_FORMAT_AT + 2, GROUP_HEADER_BYTES)
        store_u64(start + GROUP_NUMBER, self.group_number)
        store_u64(start + GROUP_PREDECESSOR, predecessor)
        store_u64(start + GROUP_TERM, term)
        store_u64(start + GROUP_WRITER, writer)
        store_u64(start + GROUP_RUN, self.run)
        store_u64(start + GROUP_TIME, time_us)
        store_u32(start + GROUP_ENTRIES_BYTES, <uint32_t>entries_bytes)
        store_u32(start + GROUP_ENTRIES_COUNT, self.entries_count + extra_count)
        store_u32(start + GROUP_CHUNKS_COUNT, chunks)
        store_u32(start + GROUP_FLAGS, flags)
        store_u64(start + GROUP_SIZE, size)
        store_u32(start + GROUP_PREVIOUS_CHAIN, previous_chain)
        store_u32(start + GROUP_CHAIN, self.group_chain(start))
        self.group_closed()
        return value, early_chunks

    cdef int close_lines(self) except -1:
        """Put a LINE entry for every producer of the open group into it."""
        cdef Line line
        cdef uint8_t* at
        cdef size_t window
        cdef uint32_t size
        for line in self.lines_open:
            line.closed_next = line.next
            line.commit_first = line.open_first
            line.open_first = 0
            # Only a line with a producer counts what it notes.
            if line.group_count:
                window = line.window_bytes()
                size = <uint32_t>(ENTRY_HEADER_BYTES + LINE_HEADER_BYTES + window)
                bytes_reserve(&self.entries, size)
                at = self.entries.data + self.entries.used
                entry_header(at, size, ENTRY_LINE, 0)
                memcpy(at + 8, PyBytes_AS_STRING(line.producer), 16)
                store_u64(at + 24, line.group_first)
                store_u64(at + 32, line.group_count)
                store_u32(at + 40, <uint32_t>(window // LINE_RUN_BYTES))
                store_u32(at + 44, 0)
                memcpy(at + 48, line.group_runs.data + line.group_runs.used - window, window)
                self.entries.used += size
                self.entries_count += 1
            line.forget_group()
        self.lines_commit = self.lines_open
        self.lines_open = []
        return 0

    cdef uint32_t group_chain(self, const uint8_t* start) noexcept:
        """The chain checksum of a group whose header (but the chain) and entries are in place."""
        cdef uint32_t chain = crc32c(0, start, GROUP_CHAIN)
        chain = crc32c(chain, start + GROUP_PREVIOUS_CHAIN, 4)
        chain = crc32c(chain, start + GROUP_HEADER_BYTES, load_u32(start + GROUP_ENTRIES_BYTES))
        return crc32c(chain, self.checksums.data, self.checksums.used) if self.checksums.used else chain

    cdef void group_closed(self) noexcept:
        cdef ChannelList empty = self.touched_commit
        cdef uint32_t index
        cdef Channel* channel
        # Those with chunks of the group's own have been through `take_group`. Usually that is all of them.
        for index in range(self.touched.count if self.touched.count != self.commit.channels.count else 0):
            if index + AHEAD < self.touched.count:
                memory_prefetch(&self.touched.items[index + AHEAD].closed_next)
            channel = self.touched.items[index]
            if channel.level != LEVEL_EPHEMERAL:
                channel.closed_next = channel.next
            channel.touched = False
        self.touched_commit = self.touched
        empty.count = 0
        self.touched = empty
        self.entries.used = 0
        self.entries_count = 0
        self.early = []
        self.early_count = 0
        self.group_bytes = 0
        self.group_number += 1

    def take_answers(self):
        """The PUBLISHED entries that wait for the group just closed: a list of (publisher, bytes)."""
        cdef Publisher publisher
        cdef list taken = []
        for publisher in self.publishers_group:
            publisher.in_group = False
            if publisher.group_answers.used:
                taken.append((publisher, bytes_take(&publisher.group_answers)))
        self.publishers_group.clear()
        return taken

    def take_turn_answers(self):
        """The PUBLISHED entries that leave at the end of the turn: a list of (publisher, bytes)."""
        cdef Publisher publisher
        cdef list taken = []
        for publisher in self.publishers_turn:
            publisher.in_turn = False
            if publisher.turn_answers.used:
                taken.append((publisher, bytes_take(&publisher.turn_answers)))
        self.publishers_turn.clear()
        return taken

    # .. apply and undo ..

    def apply_group(self, bytes value, lines):
        """Make a committed group part of the applied state.

        Args:
            value: The group, as journaled; its chain and checksums have been verified.
            lines: Called with a producer (16 bytes), answers its Line.

        Returns:
            The entries that are not the tails' own: a list of (kind, flags, body).
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(value)
        cdef const uint8_t* at = start + GROUP_HEADER_BYTES
        cdef const uint8_t* end = start + PyBytes_GET_SIZE(value)
        cdef uint32_t entries_bytes = load_u32(start + GROUP_ENTRIES_BYTES)
        cdef uint64_t number = load_u64(start + GROUP_NUMBER)
        cdef list rest
        cdef Line line
        self.applying = number
        try:
            rest = self.apply_entries_at(at, at + entries_bytes, lines)
        finally:
            self.applying = 0
        if number and number == self.commit.number:
            self.apply_own()
        else:
            self.apply_chunks(at + entries_bytes, end, number)
        self.applied_group = number
        self.touched_commit.count = 0
        for line in self.lines_commit:
            line.commit_first = 0
        self.lines_commit = []
        # What failed before this group is void now.
        for line in self.lines_unsettled:
            line.closed_next = line.applied_next
        self.lines_unsettled = []
        return rest

    cdef void apply_own(self) noexcept:
        """Apply the records of the group in commit: which channels have any is known, and how far they got."""
        cdef GroupChunks chunks = self.commit
        cdef Channel* channel
        cdef uint32_t index
        for index in range(self.touched_commit.count):
            if index + AHEAD < self.touched_commit.count:
                memory_prefetch(&self.touched_commit.items[index + AHEAD].closed_next)
            channel = self.touched_commit.items[index]
            channel.applied_next = channel.closed_next
            if channel.seen_next < channel.closed_next:
                channel.seen_next = channel.closed_next
        self.commit = self.applied
        self.commit.number = 0
        self.applied = chunks

    cdef int apply_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t number) except -1:
        cdef Channel* found[BATCH]
        cdef Channel* channel
        cdef const uint8_t* next_at
        cdef uint32_t count, index
        cdef uint64_t after
        while at < end:
            next_at = self.find_chunks(at, end, 0, 0, found, &count)
            for index in range(count):
                channel = found[index]
                if channel == NULL:
                    raise ValueError(f"group {number} has a chunk of unknown channel {load_u64(at + CHUNK_CHANNEL)}")
                after = load_u64(at + CHUNK_FIRST) + load_u32(at + CHUNK_COUNT)
                channel.applied_next = after
                channel.group = max(channel.group, number)
                if channel.closed_next < after:
                    channel.closed_next = after
                if channel.seen_next < after:
                    channel.seen_next = after
                if channel.next < after:
                    channel.next = after
                at += load_u32(at)
            at = next_at
        return 0

    def apply_entries(self, entries, lines):
        """Apply a run of entries alone, from any buffer: a table delta, or what a look-up of channels has found.

        As `apply_group`. A channel that is in memory and has something pending must not be among them.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(entries, &view, PyBUF_SIMPLE)
        try:
            return self.apply_entries_at(<const uint8_t*>view.buf, <const uint8_t*>view.buf + view.len, lines)
        finally:
            PyBuffer_Release(&view)

    def apply_each(self, list found not None, lines):
        """Apply runs of entries, each by itself; answers by index what it raised for those that cannot be applied."""
        cdef bytes entries
        cdef Py_ssize_t at
        cdef const uint8_t* data
        cdef dict failures = {}
        for at in range(len(found)):
            entries = found[at]
            data = <const uint8_t*>PyBytes_AS_STRING(entries)
            try:
                self.apply_entries_at(data, data + PyBytes_GET_SIZE(entries), lines)
            except (ValueError, MemoryError) as failure:
                failures[at] = failure
        return failures

    cdef const uint8_t* entry_ahead(self, const uint8_t* at, const uint8_t* end, uint64_t* id) noexcept:
        """The channel that an entry names, 0 when it names none; answers where the next entry begins, or `end`.

        Nothing of the entry has been checked yet.
        """
        cdef uint32_t size = load_u32(at) if end - at >= ENTRY_HEADER_BYTES + 8 else 0
        id[0] = 0
        if size < ENTRY_HEADER_BYTES + 8 or size > end - at:
            return end
        if load_u16(at + 4) in (ENTRY_CHANNEL, ENTRY_EPOCH, ENTRY_HEAD, ENTRY_TRIM, ENTRY_DROP):
            id[0] = load_u64(at + 8)
        return at + size

    cdef void entries_look_ahead(self, const uint8_t** far, const uint8_t** near, const uint8_t* end) noexcept:
        """Have the place of one channel and, nearer, another channel itself on their way into the cache."""
        cdef Channel* channel
        cdef uint64_t id
        if far[0] < end:
            far[0] = self.entry_ahead(far[0], end, &id)
            if id:
                table_prefetch(&self.by_id, id_key(self.hash_seed, id))
        if near[0] < end:
            near[0] = self.entry_ahead(near[0], end, &id)
            channel = self.by_channel_id(id) if id else NULL
            if channel != NULL:
                channel_prefetch(channel)
                channel_prefetch_rare(channel)

    cdef list apply_entries_at(self, const uint8_t* at, const uint8_t* end, lines):
        cdef list rest = []
        cdef uint32_t size
        cdef uint16_t kind, flags
        cdef Line line
        cdef const uint8_t* far = at
        cdef const uint8_t* near = end
        cdef int ahead
        for ahead in range(2 * AHEAD):
            if ahead == AHEAD:
                near = at
            self.entries_look_ahead(&far, &near, end)
        while at < end:
            if near < end:
                self.entries_look_ahead(&far, &near, end)
            if end - at < ENTRY_HEADER_BYTES:
                raise ValueError("an entry is cut")
            size = load_u32(at)
            kind = load_u16(at + 4)
            flags = load_u16(at + 6)
            if size < ENTRY_HEADER_BYTES or size > end - at or size < entry_size_min(kind):
                raise ValueError(f"entry of kind {kind}: got {size} bytes of {end - at}")
            if kind == ENTRY_CHANNEL:
                self.apply_channel(at)
            elif kind == ENTRY_EPOCH:
                self.apply_epoch(at)
            elif kind == ENTRY_HEAD:
                self.apply_head(at)
            elif kind == ENTRY_TRIM:
                self.apply_trim(at)
            elif kind == ENTRY_DROP:
                self.apply_drop(at)
            elif kind == ENTRY_LINE:
                if load_u32(at + 40) * <uint64_t>LINE_RUN_BYTES + ENTRY_HEADER_BYTES + LINE_HEADER_BYTES > size:
                    raise ValueError("a line entry's runs overrun it")
                line = lines(PyBytes_FromStringAndSize(<const char*>at + 8, 16))
                line.apply(at + 8, size - 8, flags & ENTRY_FLAG_SNAPSHOT)
                line.group = max(line.group, self.applying)
                line.used_s = self.now_s()
            else:
                rest.append((kind, flags, PyBytes_FromStringAndSize(<const char*>at + 8, size - 8)))
            at += size
        return rest

    cdef int apply_channel(self, const uint8_t* at) except -1:
        cdef uint64_t id = load_u64(at + 8)
        cdef const char* name = <const char*>at + 20
        cdef uint8_t size = at[18]
        cdef Channel* channel
        if load_u32(at) < <uint32_t>20 + size:
            raise ValueError("a channel entry's name overruns it")
        channel = self.by_channel_id(id)
        if channel == NULL or channel.name_size != size or memcmp(channel_name(channel), name, size) != 0:
            channel = self.find(name, size)
        if channel == NULL:
            channel = self.create(name, size, at[16], at[17], 0)
            self.unborn += 1
            self.counts_of(0).unborn += 1
        elif channel.state == STATE_GONE:
            self.come_back(channel, at[16], at[17], 0, 0)
        if id == 0 or channel.stored_id != id:
            self.register_id(channel, id)
        if not channel.applied_level:
            self.unborn -= 1
            self.counts[channel.profile].unborn -= 1
            if self.applying or not self.begun:
                # Else it was looked up, and is counted since it was stored.
                self.stored += 1
                self.counts[channel.profile].stored += 1
        channel.applied_level = at[16]
        if not channel.payload_bytes_max:
            channel.level = at[16]
        channel.announced = channel.level == channel.applied_level
        channel.group = max(channel.group, self.applying)
        return 0

    cdef int apply_epoch(self, const uint8_t* at) except -1:
        cdef Channel* channel = self.known(load_u64(at + 8))
        cdef uint64_t epoch = load_u64(at + 16)
        cdef uint64_t first = load_u64(at + 24)
        cdef EpochMark* mark
        if channel.epochs_applied < channel.epochs_count:
            mark = &channel.epochs[channel.epochs_applied]
            if mark.epoch == epoch and mark.first == first:
                channel.epochs_applied += 1
                return 0
            raise ValueError(f"channel {channel.id}: applied epoch {epoch}, pending {mark.epoch}")
        if channel.epochs_count and channel.epochs[channel.epochs_count - 1].epoch == epoch:
            return 0
        epochs_push(channel, epoch, first)
        channel.epochs_applied = channel.epochs_count
        channel.epoch = epoch
        return 0

    cdef int apply_head(self, const uint8_t* at) except -1:
        cdef Channel* channel = self.known(load_u64(at + 8))
        if channel.next != channel.applied_next:
            raise ValueError(f"a head of channel {channel.id}, which has records pending")
        channel.epoch = load_u64(at + 16)
        channel.applied_next = load_u64(at + 24)
        # A segment's own delta knows a lower bound only.
        if channel.first < load_u64(at + 32):
            channel.first = load_u64(at + 32)
        channel.next = channel.closed_next = channel.seen_next = channel.applied_next
        return 0

    cdef int apply_trim(self, const uint8_t* at) except -1:
        cdef Channel* channel = self.known(load_u64(at + 8))
        channel.first = max(channel.first, min(load_u64(at + 16), channel.applied_next))
        return 0

    cdef int apply_drop(self, const uint8_t* at) except -1:
        """The channel is no more. Its memory stays until `evict`: a look-up might not know of the drop yet."""
        cdef Channel* channel = self.known(load_u64(at + 8))
        if channel.holders or channel.exact != NULL or channel.chunk_class != CLASS_NONE:
            raise ValueError(f"channel {channel.id} is dropped and in use")
        self.remove(channel)
        if channel.applied_level and (self.applying or not self.begun):
            self.stored -= 1
            if self.counts[channel.profile].stored:
                self.counts[channel.profile].stored -= 1
        epochs_release(channel)
        Py_XDECREF(<PyObject*>channel.readers)
        channel.readers = NULL
        channel.readers_version = 0
        channel.id = channel.stored_id = channel.epoch = 0
        channel.next = channel.closed_next = channel.applied_next = channel.seen_next = channel.first = 1
        channel.payload_bytes_max = 0
        channel.announced = False
        channel.applied_level = 0
        channel.epoch_stale = STALE_NOT
        channel.state = STATE_GONE
        self.gone += 1
        return 0

    cdef void come_back(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                        uint16_t profile) noexcept:
        """A dropped channel's name is used again, for a channel that has nothing in common with it."""
        channel.state = STATE_HERE
        channel.level = level
        channel.shard_tokens = shard_tokens
        channel.payload_bytes_max = payload_bytes_max
        channel.profile = profile
        channel.used_s = self.now_s()
        self.gone -= 1
        self.unborn += 1
        self.counts[profile].unborn += 1

    cdef Channel* known(self, uint64_t id) except NULL:
        cdef Channel* channel = self.by_channel_id(id)
        if channel == NULL:
            raise ValueError(f"an entry names channel {id}, which no group created")
        channel.group = max(channel.group, self.applying)
        return channel

    def undo(self, bint handed_over):
        """Drop the pending view: the commit of the group in commit failed, and with it what is open.

        Readers may have seen early records: such a channel gets a new epoch with its next record.

        Args:
            handed_over: The group may be on the disk all the same, until the next one is.

        Returns:
            The answers that waited for the open group: a list of (publisher, bytes).
        """
        cdef uint32_t index
        self.drop_class(CLASS_EARLY)
        self.drop_class(CLASS_GROUP)
        for index in range(self.touched_commit.count):
            self.undo_channel(self.touched_commit.items[index])
        for index in range(self.touched.count):
            self.undo_channel(self.touched.items[index])
        self.touched.count = 0
        self.touched_commit.count = 0
        self.commit.number = 0
        self.undo_lines(handed_over)
        self.entries.used = 0
        self.entries_count = 0
        self.early = []
        self.early_count = 0
        self.group_bytes = 0
        self.group_number += 1
        return self.take_answers() + self.take_stored_turn_answers()

    cdef int undo_lines(self, bint handed_over) except -1:
        cdef Line line
        # A line in both lists goes back to its first number in the older group.
        for line in self.lines_commit + self.lines_open:
            line.next = line.commit_first if line.commit_first else line.open_first if line.open_first else line.next
            line.open_first = line.commit_first = 0
            line.forget_group()
        if handed_over:
            self.lines_unsettled = self.lines_commit
        else:
            for line in self.lines_commit:
                line.closed_next = line.applied_next
        self.lines_commit = []
        self.lines_open = []
        return 0

    cdef list take_stored_turn_answers(self):
        """Answers of early records that were decided in this turn and not delivered: they fail with their group."""
        cdef Publisher publisher
        cdef list taken = []
        cdef list kept = []
        for publisher in self.publishers_turn:
            answers = publisher.split_turn_answers()
            if answers:
                taken.append((publisher, answers))
            if publisher.turn_answers.used:
                kept.append(publisher)
            else:
                publisher.in_turn = False
        self.publishers_turn = kept
        return taken

    cdef void drop_class(self, int chunk_class) noexcept:
        cdef uint32_t index
        for index in range(self.dirty[chunk_class].count):
            chunk_drop(&self.pool, self.dirty[chunk_class].items[index])
            self.dirty[chunk_class].items[index].chunk_class = CLASS_NONE
        self.dirty[chunk_class].count = 0
        self.open_bytes[chunk_class] = 0
        closed_clear(&self.pool, &self.closed[chunk_class])

    cdef void undo_channel(self, Channel* channel) noexcept:
        channel.touched = False
        channel.state = STATE_HERE
        if channel.level == LEVEL_EPHEMERAL:
            # A trim or a drop of what was stored of it; its records never were pending.
            return
        channel.announced = channel.level == channel.applied_level
        # An epoch that was pending is lost with its entry, and what it was to replace stays stale.
        if channel.seen_next > channel.applied_next or channel.epochs_count > channel.epochs_applied:
            channel.epoch_stale = STALE_LOST
        channel.next = channel.closed_next = channel.seen_next = channel.applied_next
        channel.epochs_count = channel.epochs_applied
        channel.epoch = channel.epochs[channel.epochs_count - 1].epoch if channel.epochs_count else 0

    # .. who uses a channel, and what nobody does ..

    def hold(self, bytes name not None):
        """Keep the channel, which is in memory, from being evicted or dropped until `release`."""
        cdef Channel* channel = self.find_here(name)
        if channel == NULL or channel.state == STATE_LEAVING:
            raise KeyError(name)
        channel.holders += 1
        channel.used_s = self.now_s()

    def release(self, bytes name not None):
        """The reverse of `hold`."""
        cdef Channel* channel = self.find_here(name)
        if channel == NULL or not channel.holders:
            raise KeyError(name)
        channel.holders -= 1
        channel.used_s = self.now_s()

    def held(self, bytes name not None):
        """Whether anybody publishes to the channel, reads it by its name or holds it."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and (channel.holders != 0 or channel.exact != NULL)

    def uses(self, bytes name not None):
        """(How often publishers name the channel or it is held, how many subscriptions read it live by its name)."""
        cdef Channel* channel = self.find_here(name)
        if channel == NULL:
            return 0, 0
        return channel.holders, len(<list>channel.exact) if channel.exact != NULL else 0

    def pending(self, bytes name not None):
        """Whether the open group or the one in commit concerns the channel, or its turn has an open chunk of it."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and (
            channel.touched or channel.chunk_class != CLASS_NONE or channel.group > self.applied_group
        )

    def trim(self, bytes name not None, uint64_t first, uint8_t reason=0):
        """Let the open group say that what is below `first` is gone. The channel's first moves when it is applied.

        Args:
            name: A channel in memory.
            first: The oldest sequence that stays; beyond what is on its way to the disk it stands for all of that.
            reason: GONE_*.

        Returns:
            Whether there is anything to trim.
        """
        cdef Channel* channel = self.find_here(name)
        cdef uint8_t* at
        if channel == NULL or channel.state == STATE_LEAVING or not channel.applied_level:
            return False
        # The entry is applied before the records of its own group, at each replay alike.
        first = min(first, channel.closed_next if channel.level != LEVEL_EPHEMERAL else channel.applied_next)
        if first <= channel.first:
            return False
        bytes_reserve(&self.entries, ENTRY_TRIM_BYTES)
        self.touch(channel)
        at = self.entries.data + self.entries.used
        memset(at, 0, ENTRY_TRIM_BYTES)
        entry_header(at, ENTRY_TRIM_BYTES, ENTRY_TRIM, 0)
        store_u64(at + 8, channel.stored_id)
        store_u64(at + 16, first)
        at[24] = reason
        self.entries.used += ENTRY_TRIM_BYTES
        self.entries_count += 1
        return True

    def drop(self, bytes name not None):
        """Let the open group say that the channel is no more; until that is applied nobody can use it.

        Args:
            name: A channel in memory that is not `held` and has nothing `pending`.

        Returns:
            Whether the journal has the channel. If not there is nothing to be said: it is gone at once.
        """
        cdef Channel* channel = self.find_here(name)
        cdef uint8_t* at
        if channel == NULL or channel.state == STATE_LEAVING:
            raise KeyError(name)
        if self.held(name) or self.pending(name):
            raise RuntimeError("a channel is dropped when nobody uses it and nothing of it is pending")
        if not channel.applied_level:
            table_remove(&self.by_name, name_hash(self.hash_seed, channel_name(channel), channel.name_size), channel)
            self.remove(channel)
            self.destroy(channel)
            return False
        bytes_reserve(&self.entries, ENTRY_DROP_BYTES)
        self.touch(channel)
        at = self.entries.data + self.entries.used
        entry_header(at, ENTRY_DROP_BYTES, ENTRY_DROP, 0)
        store_u64(at + 8, channel.stored_id)
        self.entries.used += ENTRY_DROP_BYTES
        self.entries_count += 1
        channel.state = STATE_LEAVING
        return True

    def leaving(self, bytes name not None):
        """Whether the channel's drop is on its way to the disk: until then its name is nobody's."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and channel.state == STATE_LEAVING

    def absent(self, list names not None):
        """Those of the names of which nothing is known here: they may be stored. Each once, in order."""
        cdef bytes name
        cdef dict found = {}
        for name in names:
            if self.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)) == NULL:
                found[name] = None
        return list(found)

    cdef bint may_go(self, const Channel* channel, uint64_t settled, uint32_t used_before_s) noexcept:
        """Whether nobody would notice that the channel is not in memory."""
        if channel.used_s >= used_before_s or channel.group > settled:
            return False
        if channel.holders or channel.exact != NULL or channel.touched or channel.chunk_class != CLASS_NONE:
            return False
        if not channel.applied_level:
            # Nothing of it is stored. Whatever readers have seen of it was of an epoch that is not drawn again.
            return True
        if channel.epoch_stale == STALE_LOST:
            return False
        if channel.level == LEVEL_EPHEMERAL:
            # Once it had records, only the channel knows that the journal's epoch must not go on.
            return channel.epoch == 0
        return channel.next == channel.applied_next

    def grow_ahead(self):
        """Make memory ready for some thousand channels more, if there have come so many already. Any thread."""
        with nogil:
            slabs_ahead(&self.channels)

    def evict(self, uint64_t settled_group, uint32_t used_before_s, uint64_t slots_max):
        """Free channels that nobody uses, going on where the last call stopped.

        Args:
            settled_group: What groups up to this one have stored can be looked up elsewhere.
            used_before_s: Channels used at this broker time or later stay, seconds.
            slots_max: How many slots of the table to look at; all of them are `slots`.

        Returns:
            How many channels were freed. O(slots_max).
        """
        # What is being committed is never settled, whatever the caller says: the groups' lists point to channels.
        cdef uint64_t settled = min(settled_group, self.applied_group)
        cdef uint64_t freed = 0
        cdef Segment* segment
        cdef Channel* channel
        cdef uint64_t key
        while slots_max:
            slots_max -= 1
            segment = table_segment(&self.by_name, self.sweep_key)
            if self.sweep_slot >= SEGMENT_SLOTS:
                key = self.sweep_key
                self.sweep_key = table_after(&self.by_name, key)
                self.sweep_slot = 0
                table_merge(&self.by_name, key)
                continue
            if self.sweep_slot + AHEAD < SEGMENT_SLOTS:
                channel = <Channel*>segment.slots[self.sweep_slot + AHEAD].item
                if channel != NULL:
                    memory_prefetch(&channel.closed_next)
            channel = <Channel*>segment.slots[self.sweep_slot].item
            if channel == NULL or not self.may_go(channel, settled, used_before_s):
                self.sweep_slot += 1
                continue
            # The slot may hold another one now; it is looked at next.
            segment_remove(&self.by_name, segment, self.sweep_slot)
            if channel.applied_level:
                self.evicted += 1
            key = id_key(self.hash_seed, channel.id)
            self.remove(channel)
            table_merge(&self.by_id, key)
            self.destroy(channel)
            freed += 1
        return freed

    @property
    def slots(self):
        """How many slots the table of names has: an `evict` of so many looks at each."""
        return <uint64_t>self.by_name.segments * (SEGMENT_SLOTS + 1)

    @property
    def memory_bytes(self):
        """What channels, their tables and chunk buffers that wait for the next chunk take, bytes."""
        return (
            self.channels.mapped + (<size_t>self.by_name.segments + self.by_id.segments) * sizeof(Segment)
            + ((<size_t>1 << self.by_name.depth) + (<size_t>1 << self.by_id.depth)) * sizeof(Segment*)
            + self.pool.idle_bytes
        )

    # .. what Python asks about channels ..

    def __len__(self):
        return self.by_name.count - self.gone

    def ready(self, bytes name):
        """Whether the channel is in memory and has its policy (`load`)."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and channel.payload_bytes_max != 0 and channel.state == STATE_HERE

    def unready(self, list names not None):
        """The indexes of the names that are not `ready`."""
        cdef Channel* channel
        cdef Py_ssize_t at
        cdef bytes name
        cdef list found = []
        for at in range(len(names)):
            name = names[at]
            channel = self.find_here(name)
            if channel == NULL or channel.payload_bytes_max == 0 or channel.state != STATE_HERE:
                found.append(at)
        return found

    def load(self, bytes name, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max, uint16_t profile=0):
        """Have the channel in memory under this policy; answers whether it is new.

        A change from or to ephemeral begins a new epoch. The journal hears of a new level with the next record.

        Args:
            name: Its name; what is stored of it has been applied.
            level: LEVEL_*.
            shard_tokens: How many of its first tokens choose its shard.
            payload_bytes_max: Limit of a payload, bytes, above 0.
            profile: Where it is counted, see `count`.
        """
        cdef Channel* channel = self.find(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        self.counts_of(profile)
        if channel == NULL:
            channel = self.create(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), level, shard_tokens,
                                  payload_bytes_max)
            channel.profile = profile
            self.unborn += 1
            self.counts[profile].unborn += 1
            return True
        if channel.state == STATE_GONE:
            self.come_back(channel, level, shard_tokens, payload_bytes_max, profile)
            return True
        if (channel.state == STATE_LEAVING or channel.chunk_class != CLASS_NONE or channel.touched
                or channel.closed_next != channel.applied_next):
            raise RuntimeError("a channel changes its policy between groups only")
        self.adopt(channel, level, shard_tokens, payload_bytes_max, profile)
        return False

    cdef void adopt(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                    uint16_t profile) noexcept:
        """Give a channel that is here and has nothing pending its policy."""
        if (channel.level == LEVEL_EPHEMERAL) != (level == LEVEL_EPHEMERAL):
            self.change_home(channel)
        channel.level = level
        channel.shard_tokens = shard_tokens
        if not channel.applied_level:
            self.counts[channel.profile].unborn -= 1
            self.counts[profile].unborn += 1
        elif channel.payload_bytes_max and self.counts[channel.profile].stored:
            self.counts[channel.profile].stored -= 1
            self.counts[profile].stored += 1
        channel.profile = profile
        channel.payload_bytes_max = payload_bytes_max
        channel.announced = level == channel.applied_level
        channel.used_s = self.now_s()

    def load_stored(self, list names not None, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                    uint16_t profile, uint64_t lost_run, uint64_t lost_accepted_run):
        """Do what `load` and `mark_unclean` do for each of the names that has come into memory with what is stored.

        Args:
            names: Channels; those that are ready, not here or not stored are passed over.
            level, shard_tokens, payload_bytes_max, profile: As of `load`, for all of them.
            lost_run: Channels whose newest epoch is of a run up to this one may have lost records.
            lost_accepted_run: And those up to this one that are accepted, or were.
        """
        cdef Channel* channel
        cdef bytes name
        cdef uint64_t run
        self.counts_of(profile)
        for name in names:
            channel = self.find_here(name)
            if (channel == NULL or channel.payload_bytes_max or not channel.applied_level or channel.touched
                    or channel.state != STATE_HERE or channel.chunk_class != CLASS_NONE
                    or channel.closed_next != channel.applied_next):
                continue
            run = channel.epoch >> RUN_SHIFT
            if run <= lost_run or (run <= lost_accepted_run
                                   and (level == LEVEL_ACCEPTED or channel.level == LEVEL_ACCEPTED)):
                if channel.epoch_stale == STALE_NOT:
                    channel.epoch_stale = STALE_UNCLEAN
            self.adopt(channel, level, shard_tokens, payload_bytes_max, profile)

    def count(self, uint16_t profile):
        """How many channels of a profile there are that this run knows of, as far as it has counted them.

        Counted are: channels in memory that are not stored; those whose first record was committed in this run, in
        memory or not, less those dropped; and what `count_stored` was told.
        """
        cdef ProfileCounts* counts = self.counts_of(profile)
        return counts.stored + counts.unborn

    def count_stored(self, uint16_t profile, uint64_t channels):
        """Count channels that were stored before this run, each at most once."""
        self.counts_of(profile).stored += channels

    cdef void change_home(self, Channel* channel) noexcept:
        """From or to ephemeral. What the journal has of it stays, under its own epochs."""
        channel.epoch = 0
        if channel.level == LEVEL_EPHEMERAL:
            # Back among the stored, readers may know sequences of the ephemeral time that are given again.
            channel.epoch_stale = STALE_LOST
        elif channel.epoch_stale == STALE_NOT:
            channel.epoch_stale = STALE_UNCLEAN
        if channel.id >= EPHEMERAL_ID:
            table_remove(&self.by_id, id_key(self.hash_seed, channel.id), channel)
            channel.id = channel.stored_id
            channel.next = channel.closed_next = channel.seen_next = channel.applied_next

    def mark_unclean(self, bytes name):
        """The run before ended without a close: records of the channel may be missing that readers saw."""
        cdef Channel* channel = self.find_here(name)
        if channel != NULL and channel.applied_level and channel.epoch_stale == STALE_NOT:
            channel.epoch_stale = STALE_UNCLEAN

    def info(self, bytes name):
        """(id, level, epoch, first, applied next, next, seen next, [(epoch, first) ...] applied) or None."""
        cdef Channel* channel = self.find_here(name)
        cdef uint32_t index
        cdef list epochs = []
        if channel == NULL:
            return None
        for index in range(channel.epochs_applied):
            epochs.append((channel.epochs[index].epoch, channel.epochs[index].first))
        return (
            channel.id, channel.level, channel.epoch, channel.first, channel.applied_next, channel.next,
            channel.seen_next, epochs,
        )

    def stored_id(self, bytes name):
        """The id under which the journal has the channel, also while it is ephemeral; 0 for none."""
        cdef Channel* channel = self.find_here(name)
        return channel.stored_id if channel != NULL else 0

    def name_of(self, uint64_t id):
        """The name of the channel with this id, or None."""
        cdef Channel* channel = self.by_channel_id(id)
        if channel == NULL:
            return None
        return PyBytes_FromStringAndSize(channel_name(channel), channel.name_size)

    def names(self):
        """All names in memory, in no order."""
        cdef uint64_t key = 0
        cdef uint32_t slot
        cdef Segment* segment
        cdef Channel* channel
        cdef list found = []
        while True:
            segment = table_segment(&self.by_name, key)
            for slot in range(<uint32_t>SEGMENT_SLOTS):
                channel = <Channel*>segment.slots[slot].item
                if channel != NULL and channel.state != STATE_GONE:
                    found.append(PyBytes_FromStringAndSize(channel_name(channel), channel.name_size))
            key = table_after(&self.by_name, key)
            if not key:
                return found

    def names_between(self, uint64_t key, uint32_t segments_max, bytes prefix not None, bytes after not None,
                      bytes before):
        """Names of stored channels in a stretch of the table of names, in no order.

        Args:
            key: Where to begin: 0, then what the last call returned.
            segments_max: How many segments of the table to look at, each of about 600 names.
            prefix: What the names begin with.
            after: They are greater than this.
            before: They are smaller than this, if it is not None.

        Returns:
            (names, where to go on), the latter 0 at the end of the table. A name is met once or, when the table shrinks
            on the way, twice.

        A walk over all names in steps makes an object only of those that are wanted.
        """
        cdef Segment* segment
        cdef Channel* channel
        cdef uint32_t slot
        cdef list found = []
        while segments_max:
            segments_max -= 1
            segment = table_segment(&self.by_name, key)
            for slot in range(<uint32_t>SEGMENT_SLOTS):
                channel = <Channel*>segment.slots[slot].item
                if (channel != NULL and channel.state != STATE_GONE and channel.stored_id and channel.applied_level
                        and channel.name_size >= PyBytes_GET_SIZE(prefix)
                        and memcmp(channel_name(channel), PyBytes_AS_STRING(prefix),
                                   <size_t>PyBytes_GET_SIZE(prefix)) == 0
                        and name_compare(channel, after) > 0
                        and (before is None or name_compare(channel, before) < 0)):
                    found.append(PyBytes_FromStringAndSize(channel_name(channel), channel.name_size))
            key = table_after(&self.by_name, key)
            if not key:
                break
        return found, key


cdef int name_compare(const Channel* channel, bytes other) noexcept:
    """Order a channel's name and another, as bytes: below 0, 0 or above 0."""
    cdef size_t size = <size_t>PyBytes_GET_SIZE(other)
    cdef int order = memcmp(channel_name(channel), PyBytes_AS_STRING(other), min(<size_t>channel.name_size, size))
    return order if order else (channel.name_size > size) - (channel.name_size < size)


cdef void closed_clear(ChunkPool* pool, ClosedChunks* closed) noexcept:
    cdef uint32_t index
    for index in range(closed.count):
        buffer_give(pool, closed.items[index].bytes, closed.items[index].capacity)
    closed.count = 0
    closed.bytes = 0


cdef int epochs_push(Channel* channel, uint64_t epoch, uint64_t first) except -1:
    # Nearly every channel has one epoch for ever; more are rare (crashes, failed commits), so the array grows by one.
    cdef EpochMark* marks = &channel.epoch_only
    if channel.epochs_count:
        marks = channel.epochs if channel.epochs != &channel.epoch_only else NULL
        marks = <EpochMark*>realloc(marks, (channel.epochs_count + 1) * sizeof(EpochMark))
        if marks == NULL:
            raise MemoryError
        if channel.epochs == &channel.epoch_only:
            memcpy(marks, channel.epochs, channel.epochs_count * sizeof(EpochMark))
    elif channel.epochs != NULL:
        # They were undone, all of them; whatever room there is for them holds one.
        marks = channel.epochs
    channel.epochs = marks
    marks[channel.epochs_count].epoch = epoch
    marks[channel.epochs_count].first = first
    channel.epochs_count += 1
    return 0


cdef void epochs_release(Channel* channel) noexcept:
    if channel.epochs != &channel.epoch_only:
        free(channel.epochs)
    channel.epochs = NULL
    channel.epochs_count = channel.epochs_applied = 0


cdef void entry_header(uint8_t* at, uint32_t size, uint16_t kind, uint16_t flags) noexcept nogil:
    store_u32(at, size)
    store_u16(at + 4, kind)
    store_u16(at + 6, flags)


cdef uint32_t entry_size_min(uint16_t kind) noexcept nogil:
    if kind == ENTRY_CHANNEL:
        return 21
    if kind == ENTRY_EPOCH:
        return 32
    if kind == ENTRY_HEAD:
        return 40
    if kind == ENTRY_TRIM:
        return ENTRY_TRIM_BYTES
    if kind == ENTRY_DROP:
        return ENTRY_DROP_BYTES
    if kind == ENTRY_LINE:
        return ENTRY_HEADER_BYTES + LINE_HEADER_BYTES
    return ENTRY_HEADER_BYTES


# -- a connection that publishes ---------------------------------------------------------------------------------------


# Its channels are told when it goes, so its tails must be there until then: no collector may clear it beforehand.
@cython.no_gc_clear
cdef class Publisher:
    """The publishing side of one connection: its channel numbers, its line, its answers.

    Args:
        tails: Where records go.
        line: The producer's line.
        owner: What answers are sent through; opaque here.
        headers_bytes_max: Limit of a record's headers, bytes.
    """

    def __cinit__(self, Tails tails not None, Line line not None, object owner, uint32_t headers_bytes_max):
        self.tails = tails
        self.line = line
        self.owner = owner
        self.headers_bytes_max = headers_bytes_max

    def __dealloc__(self):
        self.leave()
        free(self.slots)
        free(self.turn_answers.data)
        free(self.group_answers.data)

    def bind(self, uint32_t number, bytes name):
        """Give the number to a channel that is in memory, or to none (`name` None): publishes to it are refused."""
        cdef Channel* channel = NULL
        cdef Channel** slots
        cdef uint32_t count
        if number > SLOT_MAX:
            raise ValueError(f"channel number: got {number}, range 0 to {SLOT_MAX}")
        if name is not None:
            channel = self.tails.find_here(name)
            if channel == NULL or channel.state == STATE_LEAVING:
                raise KeyError(name)
        if number >= self.slots_count:
            count = self.slots_count if self.slots_count else 4
            while count <= number:
                count *= 2
            slots = <Channel**>realloc(self.slots, count * sizeof(Channel*))
            if slots == NULL:
                raise MemoryError
            memset(slots + self.slots_count, 0, (count - self.slots_count) * sizeof(Channel*))
            self.slots = slots
            self.slots_count = count
        if channel != NULL:
            channel.holders += 1
        self.let_go(number)
        self.slots[number] = channel

    def bind_all(self, uint32_t first, list names not None):
        """Give consecutive numbers, from `first` on, to channels as `bind` does."""
        cdef uint32_t number = first
        for name in names:
            self.bind(number, name)
            number += 1

    cpdef void leave(self) noexcept:
        """The connection is gone: hold no channel any more. Answers that are under way may keep the publisher."""
        cdef uint32_t number
        for number in range(self.slots_count):
            self.let_go(number)
            self.slots[number] = NULL

    cdef void let_go(self, uint32_t number) noexcept:
        """The number's channel is not held by it any more."""
        if self.slots[number] != NULL:
            self.slots[number].holders -= 1
            self.slots[number].used_s = self.tails.now_s()

    cdef int publish(self, const uint8_t* body, uint32_t size) except -1:
        """Decide one PUBLISH frame, whole or not at all.

        Returns:
            0 when its records have their sequences, DUPLICATE when all its numbers are known already, else the code of
            the refusal.
        """
        cdef uint32_t slot, count
        cdef uint64_t number
        cdef Channel* channel
        cdef int code
        if size < PUBLISH_HEADER_BYTES:
            return CODE_INVALID_RECORD
        slot = load_u32(body)
        count = load_u32(body + 4)
        number = load_u64(body + 8)
        if slot >= self.slots_count or self.slots[slot] == NULL:
            return CODE_INVALID_CHANNEL
        if count == 0 or count > PUBLISH_COUNT_MAX:
            return CODE_INVALID_RECORD
        channel = self.slots[slot]
        if number >= self.line.next and self.tails.refuse_code and channel.level != LEVEL_EPHEMERAL:
            # A number of a failed group may be stored. Until that is known it is no refusal: it would set it free.
            return CODE_COMMIT_UNKNOWN if number < self.line.closed_next else self.tails.refuse_code
        if number != self.line.next:
            return self.out_of_line(number, count)
        code = self.check_records(channel, body + PUBLISH_HEADER_BYTES, size - PUBLISH_HEADER_BYTES, count)
        if code:
            return code
        self.take_records(channel, body + PUBLISH_HEADER_BYTES, count, slot, number)
        self.tails.records += count
        self.tails.record_bytes += size - PUBLISH_HEADER_BYTES
        self.tails.turn_bytes += size
        if channel.chunk_class != CLASS_EPHEMERAL:
            self.tails.group_bytes += size
        return 0

    cdef int out_of_line(self, uint64_t number, uint32_t count) except -1:
        if number == 0 or number > self.line.next:
            return CODE_NUMBER_GAP
        if number + count > self.line.next:
            return CODE_NUMBER_OVERLAP
        return DUPLICATE

    cdef int check_records(self, Channel* channel, const uint8_t* at, uint32_t size, uint32_t count) except -1:
        """Walk the frame's records; 0 when each is well formed and within limits."""
        cdef uint32_t left = size
        cdef uint32_t record, fields
        cdef uint16_t flags
        while count:
            if left < RECORD_HEADER_BYTES:
                return CODE_INVALID_RECORD
            record = load_u32(at)
            flags = load_u16(at + 4)
            if record < RECORD_HEADER_BYTES or record > left or load_u16(at + 6):
                return CODE_INVALID_RECORD
            fields = 0
            if flags:
                if flags & ~<uint16_t>RECORD_FLAGS_CLIENT:
                    return CODE_INVALID_RECORD
                code = self.check_fields(at + RECORD_HEADER_BYTES, record - RECORD_HEADER_BYTES, flags, &fields)
                if code:
                    return code
            if record - RECORD_HEADER_BYTES - fields > channel.payload_bytes_max:
                return CODE_PAYLOAD_TOO_LARGE
            at += record
            left -= record
            count -= 1
        return CODE_INVALID_RECORD if left else 0

    cdef int check_fields(self, const uint8_t* at, uint32_t size, uint16_t flags, uint32_t* fields) except -1:
        """Check a record's optional fields; their bytes come out in `fields`."""
        cdef uint32_t used = 0
        cdef uint32_t length
        if flags & RECORD_PRIORITY:
            if size < 1 or at[0] > 3:
                return CODE_INVALID_RECORD
            used = 1
        if flags & RECORD_EXPIRY:
            if size < used + 4 or load_u32(at + used) == 0:
                return CODE_INVALID_RECORD
            used += 4
        if flags & RECORD_KEY:
            if size < used + 2:
                return CODE_INVALID_RECORD
            length = load_u16(at + used)
            if length == 0 or length > 255 or size < used + 2 + length:
                return CODE_INVALID_RECORD
            used += 2 + length
        if flags & RECORD_HEADERS:
            if size < used + 2:
                return CODE_INVALID_RECORD
            length = load_u16(at + used)
            if length > self.headers_bytes_max:
                return CODE_HEADERS_TOO_LARGE
            if length == 0 or size < used + 2 + length:
                return CODE_INVALID_RECORD
            used += 2 + length
        fields[0] = used
        return 0

    cdef int take_records(self, Channel* channel, const uint8_t* at, uint32_t count, uint32_t slot,
                          uint64_t number) except -1:
        """Append validated records and note their answer, or do neither when there is no memory for all of it."""
        cdef uint64_t first
        if channel.chunk_class == CLASS_NONE:
            self.tails.prepare(channel)
        # All that may be short of memory stands before the line moves on. What of it is done in vain does no harm.
        self.reserve_answer(channel)
        if self.line.producer is not None:
            bytes_reserve(&self.line.group_runs, LINE_RUN_BYTES)
        if not self.line.open_first and channel.level != LEVEL_EPHEMERAL:
            self.tails.lines_open.append(self.line)
            self.line.open_first = number
        first = channel.next
        self.append_records(channel, at, count)
        self.line.next = number + count
        if self.line.producer is not None:
            self.line.note(channel.id if channel.level != LEVEL_EPHEMERAL else 0, number, first, count)
        self.answer(channel, number, slot, first, count)
        return 0

    cdef int append_records(self, Channel* channel, const uint8_t* at, uint32_t count) except -1:
        """Append validated records, all of them or none."""
        cdef uint64_t expiry_s
        cdef uint32_t size
        cdef uint16_t flags
        cdef ChunkMark mark
        mark.next = channel.next
        mark.time_us = channel.chunk_time_us
        mark.expiry_s = channel.chunk_expiry_s
        mark.used = channel.chunk_used
        mark.count = channel.chunk_count
        mark.closed = self.tails.closed[channel.chunk_class].count
        try:
            while count:
                size = load_u32(at)
                flags = load_u16(at + 4)
                expiry_s = 0
                if flags & RECORD_EXPIRY:
                    expiry_s = self.tails.now_us // 1000000 + load_u32(
                        at + RECORD_HEADER_BYTES + (1 if flags & RECORD_PRIORITY else 0))
                self.tails.append(channel, at, size, 1, expiry_s)
                at += size
                count -= 1
        except MemoryError:
            self.tails.take_back(channel, &mark)
            raise
        return 0

    cdef int reserve_answer(self, Channel* channel) except -1:
        """Make room for one more PUBLISHED entry where `answer` will put it."""
        if channel.chunk_class == CLASS_GROUP:
            if not self.in_group:
                self.tails.publishers_group.append(self)
                self.in_group = True
            bytes_reserve(&self.group_answers, PUBLISHED_ENTRY_BYTES)
        else:
            if not self.in_turn:
                self.tails.publishers_turn.append(self)
                self.in_turn = True
            bytes_reserve(&self.turn_answers, PUBLISHED_ENTRY_BYTES)
        return 0

    cdef void answer(self, Channel* channel, uint64_t number, uint32_t slot, uint64_t first, uint32_t count) noexcept:
        """Note the PUBLISHED entry of a frame, in one with the entry before it where it goes on.

        `reserve_answer` has made room for it.
        """
        cdef Bytes* answers = &self.group_answers if channel.chunk_class == CLASS_GROUP else &self.turn_answers
        cdef uint8_t* at
        if answers.used:
            at = answers.data + answers.used - PUBLISHED_ENTRY_BYTES
            if (load_u32(at + 28) == slot and load_u64(at + 8) == channel.epoch
                    and load_u64(at) + load_u32(at + 24) == number
                    and load_u64(at + 16) + load_u32(at + 24) == first
                    and <uint64_t>load_u32(at + 24) + count <= 0xFFFFFFFF):
                store_u32(at + 24, load_u32(at + 24) + count)
                return
        at = answers.data + answers.used
        store_u64(at, number)
        store_u64(at + 8, channel.epoch)
        store_u64(at + 16, first)
        store_u32(at + 24, count)
        store_u32(at + 28, slot)
        store_u64(at + 32, 0)
        at[32] = channel.level
        answers.used += PUBLISHED_ENTRY_BYTES

    cdef bytes split_turn_answers(self):
        """Take the entries of stored channels out of the turn's answers."""
        cdef Bytes kept
        cdef Bytes taken
        cdef size_t at = 0
        memset(&kept, 0, sizeof(Bytes))
        memset(&taken, 0, sizeof(Bytes))
        while at < self.turn_answers.used:
            if self.turn_answers.data[at + 32] == LEVEL_EPHEMERAL:
                bytes_append(&kept, self.turn_answers.data + at, PUBLISHED_ENTRY_BYTES)
            else:
                bytes_append(&taken, self.turn_answers.data + at, PUBLISHED_ENTRY_BYTES)
            at += PUBLISHED_ENTRY_BYTES
        bytes_release(&self.turn_answers)
        self.turn_answers = kept
        stored = bytes_take(&taken)
        bytes_release(&taken)
        return stored

    def publish_frame(self, bytes body):
        """Decide the body of one PUBLISH frame: `publish` for Python."""
        return self.publish(<const uint8_t*>PyBytes_AS_STRING(body), <uint32_t>PyBytes_GET_SIZE(body))

    def level_of(self, uint32_t number):
        """The level of the channel under a number, 0 when it has none."""
        if number >= self.slots_count or self.slots[number] == NULL:
            return 0
        return self.slots[number].level


cdef int bytes_append(Bytes* buffer, const uint8_t* data, size_t size) except -1:
    if size:
        bytes_reserve(buffer, size)
        memcpy(buffer.data + buffer.used, data, size)
        buffer.used += size
    return 0
