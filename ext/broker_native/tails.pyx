"""The sequencer's native state: channels and their open chunks, producers' lines, the open group.

Records get their sequences here (`Publisher` has checked them) and are copied once into their channel's open chunk. Two
closes take chunks out: `close_turn` (ephemeral chunks, and early ones of accepted channels) and `close_group`
(everything that is journaled, as one value). `apply_group` is the only way in which committed state changes, at start
and while running alike; `undo` drops the pending view when a commit failed.

The channels themselves, and which of them are in memory, are its base (`channels`). A Tails belongs to one thread. It
reads no clock and does no I/O.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from broker_native.channel cimport (
    AHEAD,
    CLASS_EARLY,
    CLASS_EPHEMERAL,
    CLASS_GROUP,
    CLASS_NONE,
    IDS_HERE,
    IDS_NONE,
    IDS_UNKNOWN,
    RUN_SHIFT,
    STALE_LOST,
    STALE_NOT,
    STATE_FULL,
    STATE_HERE,
    STATE_LEAVING,
    Channel,
    ChannelList,
    GroupChunks,
    channel_name,
    channels_push,
    epochs_push,
    id_key,
    name_hash,
)
from broker_native.channels cimport BATCH, Channels
from broker_native.crc32c cimport crc32c
from broker_native.growing cimport bytes_reserve, bytes_take
from broker_native.layout cimport *
from broker_native.lines cimport Line
from broker_native.open_chunks cimport (
    ChunkMark,
    ClosedChunk,
    ClosedChunks,
    buffer_give,
    channels_look_ahead,
    chunk_drop,
    chunk_finish,
    chunk_grow,
    chunk_open,
    chunk_take,
    closed_clear,
    closed_push,
)
from broker_native.published cimport PublishedEntries
from broker_native.slabs cimport memory_prefetch
from broker_native.slots cimport table_prefetch, table_remove


cdef class Tails(Channels):
    """All channels of one shard and the open group.

    Args:
        run: The number of this run (>= 1); epochs that begin in it carry it.
        hash_seed: A random 64-bit number that keys the name table.
    """

    def __cinit__(self, uint64_t run, uint64_t hash_seed):
        self.group_number = 1
        self.transaction_bytes_max = 0xFFFFFFFF
        self.early_until_us = UINT64_MAX
        self.early = []
        self.lines_open = []
        self.lines_commit = []
        self.lines_unsettled = []
        self.publishers_turn = []
        self.publishers_group = []

    def __dealloc__(self):
        cdef uint32_t index
        for index in range(4):
            free(self.dirty[index].items)
            closed_clear(&self.pool, &self.closed[index])
            free(self.closed[index].items)
        free(self.touched.items)
        free(self.touched_commit.items)
        free(self.commit.channels.items)
        free(self.checksums.data)
        free(self.entries.data)
        free(self.decided.data)

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

    # .. decide ..

    cpdef void begin_read(self, uint64_t now_us) noexcept:
        """Set the time before what was read is decided, and judge by it whether accepted records wait."""
        self.now_us = now_us
        if now_us > self.early_until_us:
            self.accepted_waits = True

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
            if channel.ids == IDS_UNKNOWN:
                channel.ids = IDS_NONE
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

    def hold_early(self):
        """Have the open early chunks, and the answers to what is in them, wait for the open group's commit after all.

        What is in the group of a channel already was seen: else its next chunk would be none of the early ones.
        """
        cdef ChannelList* dirty = &self.dirty[CLASS_EARLY]
        cdef ClosedChunks* closed = &self.closed[CLASS_EARLY]
        cdef ClosedChunks* held = &self.closed[CLASS_GROUP]
        cdef uint32_t held_count = held.count
        cdef size_t held_bytes = held.bytes
        cdef uint32_t index
        cdef PublishedEntries publisher
        if not dirty.count:
            return
        try:
            for index in range(closed.count):
                closed_push(held, closed.items[index].bytes, closed.items[index].size, closed.items[index].capacity)
        except MemoryError:
            # A chunk has one owner, also when the turn is cut short.
            held.count = held_count
            held.bytes = held_bytes
            raise
        closed.count = 0
        closed.bytes = 0
        for index in range(dirty.count):
            channels_push(&self.dirty[CLASS_GROUP], dirty.items[index])
            dirty.items[index].chunk_class = CLASS_GROUP
        dirty.count = 0
        self.open_bytes[CLASS_GROUP] += self.open_bytes[CLASS_EARLY]
        self.open_bytes[CLASS_EARLY] = 0
        for publisher in self.publishers_turn:
            publisher.hold_answers(self.publishers_group)

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
        cdef PublishedEntries publisher
        cdef list taken = []
        for publisher in self.publishers_group:
            publisher.in_group = False
            if publisher.group_answers.used:
                taken.append((publisher, bytes_take(&publisher.group_answers)))
        self.publishers_group.clear()
        return taken

    def take_turn_answers(self):
        """The PUBLISHED entries that leave at the end of the turn: a list of (publisher, bytes)."""
        cdef PublishedEntries publisher
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
        cdef PublishedEntries publisher
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
        if channel.state != STATE_FULL:
            channel.state = STATE_HERE
        if channel.level == LEVEL_EPHEMERAL:
            # A trim or a drop of what was stored of it; its records never were pending.
            return
        channel.announced = channel.level == channel.applied_level
        if channel.ids == IDS_HERE:
            # What is undone left it, and what that had pushed out belongs to it again: it is read back.
            self.forget_ids(channel)
        # An epoch that was pending is lost with its entry, and what it was to replace stays stale.
        if channel.seen_next > channel.applied_next or channel.epochs_count > channel.epochs_applied:
            channel.epoch_stale = STALE_LOST
        channel.next = channel.closed_next = channel.seen_next = channel.applied_next
        channel.epochs_count = channel.epochs_applied
        channel.epoch = channel.epochs[channel.epochs_count - 1].epoch if channel.epochs_count else 0

    # .. what is no more ..

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
        if not channel.applied_level and channel.group:
            # The name was another channel's, and of that one's drop a look-up need not know yet.
            self.vanish(channel)
            return False
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


cdef void entry_header(uint8_t* at, uint32_t size, uint16_t kind, uint16_t flags) noexcept nogil:
    store_u32(at, size)
    store_u16(at + 4, kind)
    store_u16(at + 6, flags)
