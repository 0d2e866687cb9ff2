"""The channels in memory: found by name and by id, changed by the journal's entries, freed when nobody uses them.

A channel is in memory while somebody uses it. `evict` frees those that nobody holds or reads, that have nothing
pending and whose last group is among those that can be looked up elsewhere; applying the entries of such a look-up
(CHANNEL, EPOCH, HEAD) makes the channel again what it was. A dropped channel stays, as good as not here, until that
look-up knows of the drop.

Invariants, per channel: applied_next <= closed_next <= next; seen_next <= next; first <= applied_next. Sequences are
dense per epoch. An id is never given twice. A channel with an open chunk, in the open group or in the one in commit is
not freed, nor is one that `holders` counts. What is decided of channels, and the groups, are `Tails`, which this is the
base of. It belongs to one thread, reads no clock and does no I/O.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from broker_native.channel cimport (
    AHEAD,
    CLASS_NONE,
    IDS_HERE,
    IDS_NONE,
    IDS_UNKNOWN,
    RUN_SHIFT,
    STALE_LOST,
    STALE_NOT,
    STALE_UNCLEAN,
    STATE_FULL,
    STATE_GONE,
    STATE_HERE,
    STATE_LEAVING,
    Channel,
    EpochMark,
    ProfileCounts,
    channel_name,
    channel_prefetch,
    channel_prefetch_rare,
    epochs_push,
    epochs_release,
    id_key,
    name_compare,
    name_hash,
)
from broker_native.ids cimport IdTable, Ids, ids_close, ids_expire, ids_key, ids_open
from broker_native.layout cimport *
from broker_native.lines cimport Line
from broker_native.open_chunks cimport chunk_drop, pool_release
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


cdef class Channels:
    """All channels of one shard that are in memory.

    Args:
        run: The number of this run (>= 1); epochs that begin in it carry it.
        hash_seed: A random 64-bit number that keys the name table.
    """

    def __cinit__(self, uint64_t run, uint64_t hash_seed):
        if not 1 <= run < 1 << 24:
            raise ValueError(f"run: got {run}, range 1 to {(1 << 24) - 1}")
        self.run = run
        self.hash_seed = hash_seed
        if table_open(&self.by_name) or table_open(&self.by_id) or table_open(&self.ids):
            raise MemoryError
        self.ids_key = ids_key(hash_seed)
        self.ids_bytes_max = <size_t>-1
        self.id_next = 1
        self.ephemeral_next = EPHEMERAL_ID

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
        table_close(&self.ids)
        free(self.applied.channels.items)
        free(self.counts)
        pool_release(&self.pool)
        slabs_close(&self.channels)

    # .. the tables ..

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
        self.forget_ids(channel)
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

    # .. what entries make of them ..

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
        if channel.applied_level and (self.applying or not self.begun):
            self.stored -= 1
            if self.counts[channel.profile].stored:
                self.counts[channel.profile].stored -= 1
        self.vanish(channel)
        return 0

    cdef void vanish(self, Channel* channel) noexcept:
        """Be nobody's name, which nobody looks up, until `evict` finds that a look-up knows as much."""
        self.remove(channel)
        epochs_release(channel)
        self.forget_ids(channel)
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

    def refuse(self, bytes name not None, bint refused):
        """Refuse what is published to the channel with LIMIT, or take it again; what the broker stores itself is taken.

        What was begun in the open group goes on until that is closed. A channel that is not here is left alone, and
        one that is refused stays here.
        """
        cdef Channel* channel = self.find_here(name)
        if channel != NULL and channel.state == (STATE_HERE if refused else STATE_FULL):
            channel.state = <uint8_t>STATE_FULL if refused else <uint8_t>STATE_HERE

    def refused(self, bytes name not None):
        """Whether `refuse` says so of the channel."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and channel.state == STATE_FULL

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
        if (channel.holders or channel.exact != NULL or channel.touched or channel.chunk_class != CLASS_NONE
                or channel.state == STATE_FULL):
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
        """What channels, their tables, ids and chunk buffers that wait for the next chunk take, bytes."""
        return (
            self.channels.mapped + (<size_t>self.by_name.segments + self.by_id.segments) * sizeof(Segment)
            + ((<size_t>1 << self.by_name.depth) + (<size_t>1 << self.by_id.depth)) * sizeof(Segment*)
            + self.pool.idle_bytes + self.ids_bytes
        )

    # .. the ids of their newest records ..

    cdef IdTable* ids_of(self, Channel* channel) except? NULL:
        cdef IdTable* table
        if channel.ids == IDS_HERE:
            return <IdTable*>table_find(&self.ids, ids_slot_key(channel))
        if channel.ids == IDS_UNKNOWN and channel.next != 1:
            return NULL
        table = <IdTable*>malloc(sizeof(IdTable))
        if table == NULL:
            raise MemoryError
        ids_open(table)
        self.keep_ids(channel, table)
        return table

    cdef int keep_ids(self, Channel* channel, IdTable* table) except -1:
        """Have a table, which belongs to the channel from now on; there is none, or it is freed."""
        if table_insert(&self.ids, ids_slot_key(channel), table):
            ids_close(table)
            free(table)
            raise MemoryError
        table.owner = channel
        channel.ids = IDS_HERE
        self.ids_bytes += table.bytes
        return 0

    cdef void forget_ids(self, Channel* channel) noexcept:
        """Memory knows nothing of the channel's ids any more."""
        cdef IdTable* table
        cdef uint64_t key = ids_slot_key(channel)
        if channel.ids == IDS_HERE:
            table = <IdTable*>table_find(&self.ids, key)
            table_remove(&self.ids, key, table)
            table_merge(&self.ids, key)
            self.ids_bytes -= table.bytes
            ids_close(table)
            free(table)
        channel.ids = IDS_UNKNOWN

    cdef void expire_ids(self, Channel* channel, IdTable* table) noexcept:
        """Forget those that have left the channel's window."""
        cdef const ProfileCounts* policy = &self.counts[channel.profile]
        cdef uint32_t now_s = self.now_s()
        cdef uint64_t first = channel.next - policy.ids_max if channel.next > policy.ids_max else 0
        self.ids_bytes -= table.bytes
        ids_expire(table, now_s - policy.ids_window_s if now_s > policy.ids_window_s else 0, first)
        self.ids_bytes += table.bytes

    cdef bint make_room_for_ids(self, const Channel* user) noexcept:
        """Give up ids that can be read back until what is kept is within its bound; answers whether it is.

        Args:
            user: The channel that is published to, whose ids stay.
        """
        cdef uint64_t key = self.ids_sweep_key
        cdef uint32_t segments = self.ids.segments + 1
        cdef uint32_t slot
        cdef Segment* segment
        cdef Channel* channel
        while self.ids_bytes > self.ids_bytes_max and segments:
            segments -= 1
            segment = table_segment(&self.ids, key)
            slot = 0
            while slot < SEGMENT_SLOTS and self.ids_bytes > self.ids_bytes_max:
                channel = <Channel*>(<IdTable*>segment.slots[slot].item).owner if segment.slots[slot].item else NULL
                if channel == NULL or channel == user or channel.group > self.applied_group or channel.touched:
                    slot += 1
                    continue
                # The slot may hold another one now; it is looked at next.
                ids_release(self, segment, slot, channel)
            key = table_after(&self.ids, key)
        self.ids_sweep_key = key
        return self.ids_bytes <= self.ids_bytes_max

    def sweep_ids(self, uint32_t segments_max):
        """Forget ids that have left their windows, of channels that nobody publishes to: a part of them a call.

        Args:
            segments_max: Of how many segments of the table, each of about 600 channels.
        """
        cdef uint32_t slot
        cdef Segment* segment
        cdef IdTable* table
        cdef Channel* channel
        while segments_max and self.ids.count:
            segments_max -= 1
            segment = table_segment(&self.ids, self.ids_sweep_key)
            slot = 0
            while slot < SEGMENT_SLOTS:
                table = <IdTable*>segment.slots[slot].item
                channel = <Channel*>table.owner if table != NULL else NULL
                # What is pending may be undone, and what it has pushed out belong to the window again.
                if channel == NULL or channel.touched or channel.group > self.applied_group:
                    slot += 1
                    continue
                self.expire_ids(channel, table)
                if table.count:
                    slot += 1
                    continue
                ids_release(self, segment, slot, channel)
                # Nothing in the window has an id.
                channel.ids = IDS_NONE
            self.ids_sweep_key = table_after(&self.ids, self.ids_sweep_key)

    def set_ids(self, uint16_t profile, uint32_t window_s, uint32_t count_max):
        """Say how long ids are found again in the channels of a profile.

        Args:
            profile: As of `load`.
            window_s: Seconds; 0: not at all.
            count_max: Among how many of a channel's newest records.
        """
        cdef ProfileCounts* policy = self.counts_of(profile)
        policy.ids_window_s = window_s
        policy.ids_max = count_max

    def set_stamps(self, uint16_t profile, bint stamps):
        """Say whether records in the channels of a profile are to say who has published them."""
        self.counts_of(profile).stamps = stamps

    def knows_ids(self, bytes name not None):
        """Whether memory knows the ids of the channel's newest records, so that none have to be read back."""
        cdef Channel* channel = self.find_here(name)
        return channel != NULL and (channel.ids != IDS_UNKNOWN or channel.next == 1)

    def ids_window(self, bytes name not None):
        """(how many seconds, among how many records) ids of a channel in memory are found again."""
        cdef Channel* channel = self.find_here(name)
        if channel == NULL:
            raise KeyError(name)
        return self.counts_of(channel.profile).ids_window_s, self.counts_of(channel.profile).ids_max

    def ids_for(self):
        """An empty `Ids` with the key of these tails."""
        return Ids(self.hash_seed)

    def install_ids(self, bytes name not None, uint64_t stored_id, Ids ids not None):
        """Have the ids of a channel that were read back; answers whether they are what memory lacked.

        Args:
            name: The channel.
            stored_id: What it was when they were read.
            ids: Those of its window, all that is applied; they are the channel's after this.
        """
        cdef Channel* channel = self.find_here(name)
        if channel == NULL or channel.stored_id != stored_id or channel.ids != IDS_UNKNOWN:
            return False
        self.keep_ids(channel, ids.give())
        return True

    # .. what Python asks about channels ..

    def __len__(self):
        return self.by_name.count - self.gone

    def ready(self, bytes name):
        """Whether the channel is in memory and has its policy (`load`)."""
        cdef Channel* channel = self.find_here(name)
        return (channel != NULL and channel.payload_bytes_max != 0
                and (channel.state == STATE_HERE or channel.state == STATE_FULL))

    def unready(self, list names not None):
        """The indexes of the names that are not `ready`."""
        cdef Channel* channel
        cdef Py_ssize_t at
        cdef bytes name
        cdef list found = []
        for at in range(len(names)):
            name = names[at]
            channel = self.find_here(name)
            if (channel == NULL or channel.payload_bytes_max == 0
                    or (channel.state != STATE_HERE and channel.state != STATE_FULL)):
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
        # Under another policy it may have remembered less, or nothing.
        self.forget_ids(channel)
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


cdef inline uint64_t ids_slot_key(const Channel* channel) noexcept nogil:
    """Where a channel's ids are: by its address, of which nobody outside chooses anything."""
    cdef uint64_t mixed = (<uint64_t>channel >> 6) * <uint64_t>0x9E3779B97F4A7C15
    return mixed ^ (mixed >> 32)


cdef void ids_release(Channels channels, Segment* segment, uint32_t slot, Channel* channel) noexcept:
    """Free the table in a slot: what `Channels.forget_ids` does, for who walks over the slots."""
    cdef IdTable* table = <IdTable*>segment.slots[slot].item
    segment_remove(&channels.ids, segment, slot)
    channels.ids_bytes -= table.bytes
    ids_close(table)
    free(table)
    channel.ids = IDS_UNKNOWN


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
