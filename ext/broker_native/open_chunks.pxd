# The chunks that are open: how one grows record by record, where its buffer comes from, and what waits for its close.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from broker_native.channel cimport AHEAD, CLASS_NONE, Channel, ChannelList, channel_prefetch
from broker_native.crc32c cimport crc32c
from broker_native.layout cimport *
from broker_native.slabs cimport memory_prefetch

cdef enum:
    CHUNK_CAPACITY_MIN = 256    # of a class of buffers; each next one is twice as large
    CHUNK_CLASSES = 7           # up to 16 KiB; larger ones are few, and the C library keeps them as well
    POOL_IDLE_BYTES_MAX = 8 << 20   # two full groups need less, and a process at rest keeps it

cdef struct ClosedChunk:
    uint8_t* bytes
    uint32_t size
    uint32_t capacity

cdef struct ClosedChunks:
    ClosedChunk* items
    uint32_t count
    uint32_t capacity
    uint64_t bytes

cdef struct ChunkMark:          # a channel's open chunk before a frame's records: what to go back to
    uint64_t next
    uint64_t time_us
    uint64_t expiry_s
    uint32_t used
    uint32_t count
    uint32_t closed             # how many chunks of its class were closed

cdef struct ChunkPool:          # buffers of chunks that are not open, by size class, the last used first
    uint8_t* idle[7]
    size_t idle_bytes


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


cdef inline uint8_t* buffer_take(ChunkPool* pool, uint32_t need, uint32_t* capacity) noexcept nogil:
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


cdef inline void buffer_give(ChunkPool* pool, uint8_t* data, uint32_t capacity) noexcept nogil:
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


cdef inline void pool_release(ChunkPool* pool) noexcept nogil:
    cdef int size_class
    cdef uint8_t* data
    for size_class in range(CHUNK_CLASSES):
        while pool.idle[size_class] != NULL:
            data = pool.idle[size_class]
            pool.idle[size_class] = (<uint8_t**>data)[0]
            free(data)
    pool.idle_bytes = 0


cdef inline int closed_push(ClosedChunks* closed, uint8_t* data, uint32_t size, uint32_t capacity) except -1:
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


cdef inline void closed_clear(ChunkPool* pool, ClosedChunks* closed) noexcept:
    cdef uint32_t index
    for index in range(closed.count):
        buffer_give(pool, closed.items[index].bytes, closed.items[index].capacity)
    closed.count = 0
    closed.bytes = 0


cdef inline void chunk_drop(ChunkPool* pool, Channel* channel) noexcept nogil:
    """The channel has no open chunk any more."""
    buffer_give(pool, channel.chunk, channel.chunk_capacity)
    channel.chunk = NULL
    channel.chunk_capacity = 0
    channel.chunk_count = 0


cdef inline int chunk_open(ChunkPool* pool, Channel* channel, uint64_t now_us, uint32_t need) except -1:
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


cdef inline int chunk_grow(ChunkPool* pool, Channel* channel, uint32_t need) except -1:
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


cdef inline void chunk_finish(Channel* channel) noexcept nogil:
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
