# The sequencer's state: channels, their open chunks, producers' lines and the open group.
#
# One `Tails` belongs to one shard and to one thread. Nothing here does I/O or reads a clock: `now_us` is set by the
# caller.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.slabs cimport SlabHeap, memory_prefetch
from broker_native.slots cimport SlotTable

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
    uint32_t holders            # publishers' numbers that are bound to it, and `Tails.hold`
    uint16_t profile            # index of its profile's counts
    uint8_t state               # STATE_*
    uint8_t reserved

cdef enum:
    STATE_HERE = 0
    STATE_LEAVING = 1           # a pending group carries its DROP entry
    STATE_GONE = 2              # dropped, and kept until a look at what is stored says so too; as good as not here

    STALE_NOT = 0
    STALE_UNCLEAN = 1           # a crash may have taken records that readers saw; loading it again finds that out again
    STALE_LOST = 2              # this run took them, and only the channel itself knows

cdef enum:
    CLASS_NONE = 0
    CLASS_EPHEMERAL = 1         # delivered at the end of the turn, never journaled
    CLASS_EARLY = 2             # delivered at the end of the turn and journaled with the open group
    CLASS_GROUP = 3             # delivered when its group is committed

cdef enum:
    BATCH = 16                  # chunks whose channels are looked up together

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

cdef struct ProfileCounts:
    uint64_t stored
    uint64_t unborn

cdef struct ChannelList:
    Channel** items
    uint32_t count
    uint32_t capacity

cdef struct GroupChunks:        # whose chunks a group ends with, so that nobody has to look them up again
    ChannelList channels        # in the order of their chunks
    uint64_t number             # of the group, 0 for none
    uint32_t index              # of the first of the chunks in the group

cdef struct Bytes:              # a growable buffer
    uint8_t* data
    size_t used
    size_t capacity

cdef class Line:
    cdef readonly bytes producer        # 16 bytes, or None for a line that ends with its connection
    cdef public uint64_t next           # pending view: the number it accepts
    cdef public uint64_t closed_next    # after the last number of the group in commit, or of one whose fate is unknown
    cdef public uint64_t applied_next
    cdef public object runs             # bytes of the applied runs that cover the newest numbers, newest last
    cdef public object holder           # the connection that publishes on it
    cdef uint64_t group_first           # first number of the open group
    cdef uint64_t group_count
    cdef Bytes group_runs               # LINE_RUN_BYTES each, of the open group
    cdef public uint64_t open_first     # first stored number in the open group, else 0
    cdef public uint64_t commit_first   # … in the group in commit
    cdef public uint64_t group          # number of the last group that was applied to it, 0 when it was loaded
    cdef public uint32_t used_s         # broker time of that, or of its last use, seconds
    cdef public uint32_t holders        # who needs it to stay in memory

    cdef int note(self, uint64_t channel, uint64_t number, uint64_t first, uint32_t count) except -1
    cdef size_t window_bytes(self) noexcept
    cdef void forget_group(self) noexcept
    cdef int apply(self, const uint8_t* body, uint32_t size, bint snapshot) except -1

cdef class Tails:
    cdef SlotTable by_name              # under `name_hash`, which several names may share
    cdef SlotTable by_id                # under `id_key`: stored ids, and those of one run
    cdef SlabHeap channels              # what the channels are made of
    cdef ChunkPool pool
    cdef uint64_t hash_seed
    cdef readonly uint64_t id_next      # the next stored channel's
    cdef uint64_t ephemeral_next
    cdef readonly uint64_t stored       # channels that the journal has, in memory or not
    cdef readonly uint64_t unborn       # channels in memory that the journal does not have
    cdef readonly uint64_t evicted      # stored channels that were evicted so far
    cdef uint64_t gone                  # channels in STATE_GONE
    cdef ProfileCounts* counts
    cdef uint32_t counts_size
    cdef uint64_t sweep_key             # where `evict` goes on: the segment of this key,
    cdef uint32_t sweep_slot            # … and the slot in it
    cdef bint begun                     # `begin_run`: what is applied outside of groups since then was looked up
    cdef uint64_t applying              # number of the group that is being applied, 0 for entries alone
    cdef uint64_t applied_group         # number of the last one that was
    cdef ChannelList dirty[4]           # channels with an open chunk, by class
    cdef size_t open_bytes[4]           # of open chunks, by class
    cdef ClosedChunks closed[4]         # chunks closed before their class's close, by class
    cdef ChannelList touched            # channels with records in the open group
    cdef ChannelList touched_commit     # … in the group in commit
    cdef GroupChunks commit             # the chunks of the group in commit that were open when it was closed
    cdef GroupChunks applied            # … of the last one that was applied, until one of the channels is freed
    cdef Bytes checksums                # of the chunks of the group that is being closed
    cdef Bytes entries                  # of the open group
    cdef uint32_t entries_count
    cdef list early                     # values of early chunks that the open group will carry
    cdef uint32_t early_count
    cdef list lines_open
    cdef list lines_commit
    cdef list lines_unsettled           # lines of a failed group that may be on the disk all the same
    cdef list publishers_turn           # publishers with answers for the end of the turn
    cdef list publishers_group
    cdef readonly uint64_t run
    cdef public uint64_t group_number   # the open group's
    cdef uint32_t epoch_counter         # ephemeral epochs drawn in this run
    cdef public uint64_t now_us
    cdef public uint64_t early_until_us  # broker time after which accepted records wait for their commit
    cdef public bint accepted_waits     # it was over when the last read began
    cdef public int refuse_code         # storage does not take records now: the code that says why, else 0
    cdef readonly uint64_t turn_bytes   # decided since the last turn's close
    cdef readonly uint64_t group_bytes  # decided for the open group
    cdef readonly uint64_t records
    cdef readonly uint64_t record_bytes

    cpdef void begin_read(self, uint64_t now_us) noexcept
    cdef Channel* find(self, const char* name, size_t size) noexcept
    cdef Channel* find_here(self, bytes name) noexcept
    cdef Channel* by_channel_id(self, uint64_t id) noexcept
    # Sets `found` (BATCH items) and `count`; answers where the chunks behind those begin. The first of them is number
    # `chunk` of the group, or of no group (0).
    cdef const uint8_t* find_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t group, uint32_t chunk,
                  Channel** found, uint32_t* count) noexcept
    cdef uint32_t now_s(self) noexcept
    cdef Channel* create(self, const char* name, size_t size, uint8_t level, uint8_t shard_tokens,
                  uint32_t payload_bytes_max) except NULL
    cdef void remove(self, Channel* channel) noexcept
    cdef void destroy(self, Channel* channel) noexcept
    cdef int register_id(self, Channel* channel, uint64_t id) except -1
    cdef int register_ephemeral(self, Channel* channel) except -1
    cdef ProfileCounts* counts_of(self, uint32_t profile) except NULL
    cdef bint may_go(self, const Channel* channel, uint64_t settled, uint32_t used_before_s) noexcept
    cdef int prepare(self, Channel* channel) except -1
    cdef int prepare_ephemeral(self, Channel* channel) except -1
    cdef int prepare_stored(self, Channel* channel) except -1
    cdef int touch(self, Channel* channel) except -1
    cdef int announce(self, Channel* channel) except -1
    cdef int begin_epoch(self, Channel* channel) except -1
    cdef int append(self, Channel* channel, const uint8_t* record, uint32_t size, uint32_t count,
                  uint64_t expiry_s) except -1
    cdef int close_chunk(self, Channel* channel) except -1
    cdef void take_back(self, Channel* channel, const ChunkMark* mark) noexcept
    cdef size_t class_bytes(self, int chunk_class) noexcept
    cdef uint8_t* take_closed(self, int chunk_class, uint8_t* to) noexcept
    cdef uint32_t take_turn(self, int chunk_class, uint8_t* to) noexcept
    cdef uint32_t take_group(self, uint8_t* to) noexcept
    cdef void note_checksums(self, const uint8_t* at, const uint8_t* end) noexcept
    cdef int close_lines(self) except -1
    cdef uint32_t group_chain(self, const uint8_t* start) noexcept
    cdef void group_closed(self) noexcept
    cdef const uint8_t* entry_ahead(self, const uint8_t* at, const uint8_t* end, uint64_t* id) noexcept
    cdef void entries_look_ahead(self, const uint8_t** far, const uint8_t** near, const uint8_t* end) noexcept
    cdef list apply_entries_at(self, const uint8_t* at, const uint8_t* end, lines)
    cdef int apply_channel(self, const uint8_t* at) except -1
    cdef int apply_epoch(self, const uint8_t* at) except -1
    cdef int apply_head(self, const uint8_t* at) except -1
    cdef void apply_own(self) noexcept
    cdef int apply_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t number) except -1
    cdef void come_back(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                  uint16_t profile) noexcept
    cdef int apply_trim(self, const uint8_t* at) except -1
    cdef int apply_drop(self, const uint8_t* at) except -1
    cdef Channel* known(self, uint64_t id) except NULL
    cdef int undo_lines(self, bint handed_over) except -1
    cdef list take_stored_turn_answers(self)
    cdef void drop_class(self, int chunk_class) noexcept
    cdef void undo_channel(self, Channel* channel) noexcept
    cdef void adopt(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                  uint16_t profile) noexcept
    cdef void change_home(self, Channel* channel) noexcept

cdef class Publisher:
    cdef readonly Tails tails
    cdef readonly Line line
    cdef readonly object owner
    cdef Channel** slots
    cdef uint32_t slots_count
    cdef uint32_t headers_bytes_max
    cdef Bytes turn_answers             # PUBLISHED entries
    cdef Bytes group_answers
    cdef bint in_turn
    cdef bint in_group

    cpdef void leave(self) noexcept
    cdef void let_go(self, uint32_t number) noexcept
    cdef int publish(self, const uint8_t* body, uint32_t size) except -1
    cdef int out_of_line(self, uint64_t number, uint32_t count) except -1
    cdef int check_records(self, Channel* channel, const uint8_t* at, uint32_t size, uint32_t count) except -1
    cdef int check_fields(self, const uint8_t* at, uint32_t size, uint16_t flags, uint32_t* fields) except -1
    cdef int take_records(self, Channel* channel, const uint8_t* at, uint32_t count, uint32_t slot,
                  uint64_t number) except -1
    cdef int append_records(self, Channel* channel, const uint8_t* at, uint32_t count) except -1
    cdef int reserve_answer(self, Channel* channel) except -1
    cdef void answer(self, Channel* channel, uint64_t number, uint32_t slot, uint64_t first, uint32_t count) noexcept
    cdef int hold_answers(self) except -1
    cdef bytes split_turn_answers(self)


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


cdef inline Channel* publisher_channel(Publisher publisher, uint32_t slot) noexcept:
    """The channel under a number of the connection, or NULL."""
    return publisher.slots[slot] if slot < publisher.slots_count else NULL


cdef int bytes_reserve(Bytes* buffer, size_t more) except -1
cdef int bytes_append(Bytes* buffer, const uint8_t* data, size_t size) except -1
cdef bytes bytes_take(Bytes* buffer)
cdef void bytes_release(Bytes* buffer) noexcept
