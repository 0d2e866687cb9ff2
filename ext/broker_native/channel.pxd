# One channel in memory: its struct, its epochs, lists of such channels, and the keys under which it is found.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

from broker_native.layout cimport load_u64
from broker_native.slabs cimport memory_prefetch

cdef enum:
    RUN_SHIFT = 40              # an epoch's run is above it
    AHEAD = 8                   # how many channels a loop over them fetches ahead

cdef struct EpochMark:
    uint64_t epoch
    uint64_t first

# The name's bytes stand right behind the struct. The first cache line is what deciding a record touches, the second
# what applying and delivering a group do besides; the third is for what is rare.
cdef struct Channel:
    uint64_t id                 # 0 until its first record is decided
    uint64_t epoch              # of the next record; pending view
    uint64_t next               # sequence of the next record; pending view
    uint8_t* chunk              # the open chunk, NULL when there is none
    uint64_t chunk_time_us
    uint32_t chunk_used
    uint32_t chunk_capacity
    uint32_t chunk_count
    uint32_t chunk_hint         # size of the last chunk: what the next one is allocated with
    uint32_t payload_bytes_max  # 0: it was loaded from the journal and has no policy yet
    uint8_t level
    uint8_t chunk_class         # which close takes the open chunk: CLASS_*
    uint8_t announced           # the open or a committed group carries its CHANNEL entry with this level
    uint8_t touched             # in the open group's list of channels

    uint64_t closed_next        # after the last record of the group that is in commit
    uint64_t applied_next       # after the last committed record
    uint64_t seen_next          # after the last record that was handed to readers
    uint64_t group              # number of the last group that it was in, committed or not; 0 when it was loaded
    void* readers               # exact + the patterns that match, resolved at `readers_version`
    uint64_t readers_version    # twice the version, and READERS_TOLD
    uint64_t chunk_expiry_s
    uint32_t used_s             # broker time of its last use, seconds
    uint8_t applied_level       # what the newest committed CHANNEL entry says, 0 when there is none
    uint8_t epoch_stale         # STALE_*: draw a new epoch before the next record
    uint8_t shard_tokens
    uint8_t name_size

    uint64_t first              # oldest sequence there is
    uint64_t stored_id          # the journal's id of it, kept while it is ephemeral; 0 until it was stored
    void* exact                 # list of Subscription whose literals name the channel, or NULL
    EpochMark* epochs           # oldest first; &epoch_only while there is but one, else owned
    EpochMark epoch_only
    uint32_t epochs_count
    uint32_t epochs_applied
    uint32_t holders            # publishers' numbers that are bound to it, and `Channels.hold`
    uint16_t profile            # index of its profile's counts
    uint8_t state               # STATE_*
    uint8_t ids                 # IDS_*: what memory knows of the ids of its newest records

cdef enum:
    STATE_HERE = 0
    STATE_LEAVING = 1           # a pending group carries its DROP entry
    STATE_GONE = 2              # dropped, and kept until a look at what is stored says so too; as good as not here
    STATE_FULL = 3              # here, and its publishers are refused: consumers hold too much of it

    STALE_NOT = 0
    STALE_UNCLEAN = 1           # a crash may have taken records that readers saw; loading it again finds that out again
    STALE_LOST = 2              # this run took them, and only the channel itself knows

    IDS_UNKNOWN = 0             # they have to be read back first
    IDS_NONE = 1                # no record has one
    IDS_HERE = 2                # in `Channels.ids`

cdef enum:
    CLASS_NONE = 0
    CLASS_EPHEMERAL = 1         # delivered at the end of the turn, never journaled
    CLASS_EARLY = 2             # delivered at the end of the turn and journaled with the open group
    CLASS_GROUP = 3             # delivered when its group is committed

cdef struct ProfileCounts:
    uint64_t stored
    uint64_t unborn
    uint32_t ids_window_s       # how long an id of a record is found again, seconds; 0: not at all
    uint32_t ids_max            # and among how many of a channel's newest records
    bint stamps                 # records say who has published them

cdef struct ChannelList:
    Channel** items
    uint32_t count
    uint32_t capacity

cdef struct GroupChunks:        # whose chunks a group ends with, so that nobody has to look them up again
    ChannelList channels        # in the order of their chunks
    uint64_t number             # of the group, 0 for none
    uint32_t index              # of the first of the chunks in the group


cdef inline char* channel_name(const Channel* channel) noexcept nogil:
    return <char*>channel + sizeof(Channel)


cdef inline void channel_prefetch(const Channel* channel) noexcept nogil:
    """Have what publishing to a channel, applying and delivering it touches on its way into the cache."""
    memory_prefetch(channel)
    memory_prefetch(&channel.closed_next)


cdef inline void channel_prefetch_rare(const Channel* channel) noexcept nogil:
    """The same for what its first record touches besides."""
    memory_prefetch(&channel.first)
    memory_prefetch(channel_name(channel))


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


cdef inline int name_compare(const Channel* channel, bytes other) noexcept:
    """Order a channel's name and another, as bytes: below 0, 0 or above 0."""
    cdef size_t size = <size_t>PyBytes_GET_SIZE(other)
    cdef int order = memcmp(channel_name(channel), PyBytes_AS_STRING(other), min(<size_t>channel.name_size, size))
    return order if order else (channel.name_size > size) - (channel.name_size < size)


cdef inline int channels_push(ChannelList* channels, Channel* channel) except -1:
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


cdef inline int epochs_push(Channel* channel, uint64_t epoch, uint64_t first) except -1:
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


cdef inline void epochs_release(Channel* channel) noexcept:
    if channel.epochs != &channel.epoch_only:
        free(channel.epochs)
    channel.epochs = NULL
    channel.epochs_count = channel.epochs_applied = 0
