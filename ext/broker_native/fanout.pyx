"""Fan-out: chunks to subscriptions, and each connection's bytes of one loop turn.

A chunk is framed by a small prefix of its own for each subscription; its bytes are shared by all of them. Small
chunks are copied behind their prefixes instead, since a piece costs the kernel and the loop more than such a copy.
Chunks in a row that the same subscriptions read are a run: its frames are made once for all who call the subscription
by the same number and know the same names, as most do, and each of them gets the run as one piece.
Everything of a turn leaves in one `writelines` a connection, answers first. A connection whose transport asked for a
pause keeps its bytes here, where they are counted.

The members of a live group are one reader to everybody else: a dealer, which gives each message to one of them. It is
marked slow, as one that gets nothing, and only who looks at a slow reader sees that it is one.

All of it belongs to the loop's thread.
"""

from bisect import bisect_right

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from broker_native.channel cimport Channel, channel_name, channel_prefetch_rare
from broker_native.channels cimport BATCH
from broker_native.growing cimport bytes_append, bytes_release, bytes_reserve, bytes_take
from broker_native.groups cimport chunk_part
from broker_native.layout cimport *
from broker_native.slots cimport SEGMENT_SLOTS, Segment, table_after, table_segment
from broker_native.tails cimport Tails
from broker_native.unsent cimport Sender

cdef extern from "Python.h":
    void Py_XDECREF(PyObject* object)

cdef enum:
    COPY_BYTES_MAX = 4096               # chunks up to this are copied behind their prefix
    STRAIGHT_BYTES_MAX = 4096           # of copied bytes that are not made an object before they are sent
    TOLD_SLOTS_MIN = 16
    RUN_READERS_MIN = 4                 # for fewer, making a run's frames costs more than it saves
    RUN_BYTES_MAX = 256 * 1024          # of a run's chunks: who lacks credit for all of it gets them one by one
    READER_BYTES = 1024                 # a copy of so many costs what a reader's two pieces cost more than one
    CROWDED_BYTES_MAX = 1 << 20


# -- one connection's way out ------------------------------------------------------------------------------------------


@cython.final
cdef class Pin:
    """A value in memory for as long as an outbox has some of it queued; counted once, however many have."""

    cdef void hold(self) noexcept:
        if not self.holders:
            self.fanout.shared_bytes += self.size
        self.holders += 1

    cdef void release(self) noexcept:
        self.holders -= 1
        if not self.holders:
            self.fanout.shared_bytes -= self.size


cdef class Outbox:
    """What leaves on one connection at the end of the turn.

    Args:
        fanout: Whose `flush` sends it.
        owner: The connection; opaque here.
    """

    def __cinit__(self, Fanout fanout not None, object owner):
        self.fanout = fanout
        self.owner = owner
        self.pieces = None

    def __dealloc__(self):
        free(self.urgent.data)
        free(self.small.data)

    cdef int mark(self) except -1:
        if not self.dirty:
            self.fanout.dirty.append(self)
            self.dirty = True
        return 0

    @property
    def answers_queued(self):
        """Bytes of answers and control frames in the queue, without deliveries."""
        return self.urgent.used + self.ordered

    cdef int queue(self, Bytes* to, const uint8_t* header, const uint8_t* body, size_t body_bytes) except -1:
        """Queue a frame's bytes: a header or none, and the rest."""
        cdef size_t size = body_bytes
        if self.lost:
            return 0
        try:
            self.mark()
            bytes_reserve(to, FRAME_HEADER_BYTES + size)
        except MemoryError:
            self.lose()
            return 0
        if header != NULL:
            bytes_append(to, header, FRAME_HEADER_BYTES)
            size += FRAME_HEADER_BYTES
        bytes_append(to, body, body_bytes)
        self.queued += size
        self.copied += size
        self.fanout.copied_bytes += size
        return 0

    cdef int lose(self) except -1:
        """There is no memory for what the connection should be sent. It gets nothing more, and ends.

        One message less would be a gap that its reader could not explain; a connection that ends is resumed.
        """
        self.lost = True
        self.drop()
        self.owner.on_exhausted()
        return 0

    def frame(self, bytes frame not None):
        """Queue a whole frame ahead of this turn's deliveries."""
        self.answer(<const uint8_t*>PyBytes_AS_STRING(frame), <size_t>PyBytes_GET_SIZE(frame))

    cdef int answer(self, const uint8_t* frame, size_t size) except -1:
        return self.queue(&self.urgent, NULL, frame, size)

    def ordered_frame(self, bytes frame not None):
        """Queue a whole frame behind the deliveries that are queued already."""
        self.order(frame)

    cdef int order(self, bytes frame) except -1:
        cdef size_t before = self.queued
        self.queue(&self.small, NULL, <const uint8_t*>PyBytes_AS_STRING(frame), <size_t>PyBytes_GET_SIZE(frame))
        if self.queued > before:
            self.ordered += self.queued - before
        return 0

    def shared_frames(self, bytes frames not None):
        """Queue many whole frames behind what is queued already, without copying them."""
        self.share(frames)

    cdef int share(self, bytes frames) except -1:
        if self.lost:
            return 0
        try:
            self.mark()
            self.seal_small()
            if self.pieces is None:
                self.pieces = []
            self.pieces.append(frames)
            self.queued += <size_t>PyBytes_GET_SIZE(frames)
        except MemoryError:
            self.lose()
        return 0

    def published(self, bytes answers not None):
        """Queue a PUBLISHED frame of these entries."""
        cdef uint8_t header[FRAME_HEADER_BYTES]
        frame_header(header, <uint32_t>PyBytes_GET_SIZE(answers), KIND_PUBLISHED, 0)
        self.queue(&self.urgent, header, <const uint8_t*>PyBytes_AS_STRING(answers),
                   <size_t>PyBytes_GET_SIZE(answers))

    def pause(self):
        """The transport's buffer is full: keep the bytes here. Safe inside `writelines`."""
        if not self.paused:
            self.paused = True
            self.fanout.paused_count += 1

    def resume(self):
        """The transport takes bytes again."""
        self.go_on()
        if self.queued:
            self.mark()

    def close(self):
        """Drop what is queued; the connection is gone."""
        self.transport = None
        self.drop()
        self.go_on()

    cdef void go_on(self) noexcept:
        if self.paused:
            self.paused = False
            self.fanout.paused_count -= 1

    cdef void drop(self) noexcept:
        self.pieces = None
        bytes_release(&self.urgent)
        bytes_release(&self.small)
        self.settle()

    cdef void settle(self) noexcept:
        """Nothing is queued any more."""
        cdef Py_ssize_t at
        self.fanout.copied_bytes -= self.copied
        self.queued = self.copied = self.ordered = 0
        if self.pin is not None:
            self.pin.release()
            self.pin = None
        if self.pins is not None:
            for at in range(PyList_GET_SIZE(self.pins)):
                (<Pin>PyList_GET_ITEM(self.pins, at)).release()
            self.pins = None

    cdef int hold(self, Pin pin) except -1:
        """Keep a value in memory."""
        if self.pin is pin:
            return 0
        if self.pin is not None:
            # The one before is the last of these: a value comes in one run.
            if self.pins is None:
                self.pins = []
            self.pins.append(self.pin)
        self.pin = pin
        pin.hold()
        return 0

    cdef int seal_small(self) except -1:
        """Make the copied bytes a piece, so that a shared one can follow them."""
        if self.small.used:
            if self.pieces is None:
                self.pieces = []
            self.pieces.append(bytes_take(&self.small))
        return 0

    cdef int flush(self) except -1:
        if self.transport is None or self.paused or self.lost:
            return 0
        try:
            self.send()
        except MemoryError:
            self.lose()
        return 0

    cdef bint send_straight(self, Sender sender) except -1:
        """Send copied bytes by the socket itself; answers whether all of them went. Else the rest is queued still."""
        cdef Bytes* first = &self.urgent
        cdef size_t sent = sender.send(self.urgent.data, self.urgent.used, self.small.data, self.small.used)
        cdef size_t part
        while sent:
            part = min(sent, first.used)
            first.used -= part
            if first.used:
                memmove(first.data, first.data + part, first.used)
            elif first.capacity > STRAIGHT_BYTES_MAX:
                bytes_release(first)
            sent -= part
            first = &self.small
        if self.urgent.used or self.small.used:
            return False
        self.settle()
        return True

    cdef int send(self) except -1:
        cdef list pieces
        if (self.pieces is None and type(self.transport) is Sender
                and 0 < self.urgent.used + self.small.used <= STRAIGHT_BYTES_MAX
                and self.send_straight(<Sender>self.transport)):
            return 0
        self.seal_small()
        pieces = self.pieces
        self.pieces = None
        if self.urgent.used:
            if pieces is None:
                pieces = [bytes_take(&self.urgent)]
            else:
                pieces.insert(0, bytes_take(&self.urgent))
        self.settle()
        if pieces is not None:
            self.transport.writelines(pieces)
        return 0


cdef void frame_header(uint8_t* at, uint32_t size, uint8_t kind, uint8_t flags) noexcept nogil:
    store_u32(at, size)
    at[4] = kind
    at[5] = flags
    store_u16(at + 6, 0)


cdef void deliver_prefix(uint8_t* at, uint32_t size, uint32_t number, uint64_t group, uint32_t index,
                         uint8_t flags) noexcept nogil:
    """Write what stands before the `size` bytes of a chunk and, with its flag, of its channel's name."""
    frame_header(at, DELIVER_HEADER_BYTES + size, KIND_DELIVER, flags)
    store_u32(at + 8, number)
    store_u32(at + 12, index)
    store_u64(at + 16, group)


# -- one reader --------------------------------------------------------------------------------------------------------


cdef class Subscription:
    """One stream of deliveries on a connection.

    Args:
        outbox: The connection's.
        number: The client's number of it.
        credit: Bytes that the client has granted.
        overdraft: Bytes that it may be behind past its credit.
        tells_names: Whether deliveries must name a channel the first time.
    """

    def __cinit__(self, Outbox outbox not None, uint32_t number, int64_t credit, int64_t overdraft, bint tells_names):
        self.outbox = outbox
        self.number = number
        self.credit = credit
        self.overdraft = overdraft
        self.tells_names = tells_names

    def __dealloc__(self):
        free(self.told)

    @property
    def refused(self):
        """Where it was refused a chunk: (group, index, early, delivered, early group, early index, turn).

        The last four are as of `Fanout` at that moment.
        """
        return (self.refused_group, self.refused_index, bool(self.refused_early), self.refused_delivered,
                self.refused_early_group, self.refused_early_index, self.refused_turn)

    cdef void refuse(self, uint64_t channel, uint64_t group, uint32_t index, uint8_t flags) noexcept:
        """Note the first chunk that it does not get: everything before it, in the order of delivery, it has."""
        cdef Fanout fanout = self.outbox.fanout
        self.slow = True
        self.refused_group = group
        self.refused_index = index
        self.refused_early = flags & DELIVER_FLAG_EARLY != 0
        self.refused_delivered = fanout.delivered
        self.refused_early_group = fanout.early_group
        self.refused_early_index = fanout.early_index
        self.refused_turn = fanout.turn
        self.refused_channel = channel

    cdef bint tell(self, uint64_t id) except -1:
        """Whether the channel's name has not been told yet; from now on it has.

        The ids of 64 neighbours share a slot, as bits: whoever follows a pattern over many channels is told most of
        them, and thousands of readers look here with every chunk.
        """
        cdef uint64_t key = (id >> 6) + 1, bit = <uint64_t>1 << (id & 63)
        cdef Told* slot = NULL
        if self.told != NULL:
            slot = self.told_slot(key)
        if slot == NULL or slot.key == 0:
            if self.told == NULL or self.told_count * 2 > self.told_mask:
                self.grow_told()
                slot = self.told_slot(key)
            slot.key = key
            self.told_count += 1
        if slot.bits & bit:
            return False
        slot.bits |= bit
        return True

    cdef Told* told_slot(self, uint64_t key) noexcept:
        """Return the slot of 64 ids, or the free one where it belongs."""
        cdef uint32_t slot = <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15) >> 32) & self.told_mask
        while self.told[slot].key and self.told[slot].key != key:
            slot = (slot + 1) & self.told_mask
        return &self.told[slot]

    cdef int grow_told(self) except -1:
        """Make twice as many slots, or the first."""
        cdef Told* old = self.told
        cdef uint32_t old_mask = self.told_mask, mask, at
        mask = <uint32_t>(old_mask * 2 + 1 if old != NULL else TOLD_SLOTS_MIN - 1)
        cdef Told* grown = <Told*>calloc(<size_t>mask + 1, sizeof(Told))
        if grown == NULL:
            raise MemoryError
        self.told = grown
        self.told_mask = mask
        if old != NULL:
            for at in range(old_mask + 1):
                if old[at].key:
                    self.told_slot(old[at].key)[0] = old[at]
            free(old)
        return 0

    cdef int push_frames(self, bytes frames, size_t size, Pin pin) except -1:
        """Queue the frames of chunks of so many bytes; `pin` counts the frames' memory.

        After a MemoryError, lose its outbox.
        """
        cdef Outbox outbox = self.outbox
        cdef size_t frames_bytes = <size_t>PyBytes_GET_SIZE(frames)
        if outbox.lost:
            return 0
        if frames_bytes <= COPY_BYTES_MAX:
            bytes_append(&outbox.small, <const uint8_t*>PyBytes_AS_STRING(frames), frames_bytes)
            outbox.copied += frames_bytes
            outbox.fanout.copied_bytes += frames_bytes
        else:
            outbox.seal_small()
            if outbox.pieces is None:
                outbox.pieces = []
            outbox.pieces.append(frames)
            outbox.hold(pin)
        outbox.queued += frames_bytes
        self.credit -= size
        outbox.mark()
        return 0

    cdef int push(self, uint64_t id, const char* name, uint8_t name_bytes, const uint8_t* chunk, uint32_t size,
                  object shared, Pin pin, uint64_t group, uint32_t index, uint8_t flags) except -1:
        """Queue one chunk of the channel with this id and name: copied when `shared` is None, else by reference.

        `pin` counts the memory that `shared` is part of.

        After a MemoryError, lose its outbox.
        """
        cdef Outbox outbox = self.outbox
        cdef uint32_t name_size = 0
        cdef uint32_t prefix = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES
        cdef uint8_t* at
        if outbox.lost:
            return 0
        if self.tells_names and self.tell(id):
            flags |= DELIVER_FLAG_NAME
            name_size = 1 + <uint32_t>name_bytes
        bytes_reserve(&outbox.small, prefix + name_size + (size if shared is None else 0))
        at = outbox.small.data + outbox.small.used
        deliver_prefix(at, name_size + size, self.number, group, index, flags)
        at += prefix
        if name_size:
            at[0] = name_bytes
            memcpy(at + 1, name, name_bytes)
            at += name_size
        outbox.small.used += prefix + name_size
        outbox.queued += prefix + name_size + size
        if shared is None:
            memcpy(at, chunk, size)
            outbox.small.used += size
            name_size += size
        else:
            outbox.seal_small()
            outbox.pieces.append(shared)
            outbox.hold(pin)
        outbox.copied += prefix + name_size
        outbox.fanout.copied_bytes += prefix + name_size
        self.credit -= size
        outbox.mark()
        return 0


@cython.final
cdef class Dealer(Subscription):
    """The members of a live group that read the same channels, in the place of one reader."""

    cdef Py_ssize_t room(self, Subscription member, bint crowded) noexcept:
        """How large a chunk a member may be given now; nothing while its transport takes no bytes, unless `crowded`."""
        cdef Outbox outbox = member.outbox
        cdef int64_t room = member.credit + member.overdraft
        if member.slow or outbox.lost or (outbox.paused and not crowded):
            return 0
        if outbox.paused:
            room = min(room, <int64_t>outbox.fanout.crowded_bytes_max - <int64_t>outbox.queued)
        return room


# -- a run -------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Run:
    """Chunks in a row that the same subscriptions read, and their frames as the last of those got them.

    Whoever calls the subscription by the same number and is to be told the names of the same channels gets the same
    bytes: the same object.
    """

    cdef void clear(self) noexcept:
        self.readers = None
        self.frames = None
        self.pin = None
        self.told = True
        self.count = 0
        self.size = 0
        self.records = 0

    cdef RunChunk* add(self, const uint8_t* chunk, uint32_t size, uint64_t group, uint32_t index, const char* name,
                       uint8_t name_size) noexcept:
        """Add a chunk; whoever calls sees to it that there is room."""
        cdef RunChunk* item = &self.chunks[self.count]
        item.chunk = chunk
        item.size = size
        item.group = group
        item.index = index
        item.name = name
        item.name_size = name_size
        self.count += 1
        self.size += size
        self.records += load_u32(chunk + CHUNK_COUNT)
        return item

    cdef int push(self, Subscription subscription, uint8_t flags) except -1:
        """Queue all of it to a subscription; after a MemoryError, lose its outbox."""
        cdef Fanout fanout = self.fanout
        self.frame_for(subscription, flags)
        subscription.push_frames(self.frames, self.size, self.pin)
        fanout.chunks_out += self.count
        fanout.bytes_out += self.size
        fanout.records_out += self.records
        return 0

    cdef int frame_for(self, Subscription subscription, uint8_t flags) except -1:
        """Have in `frames` what the subscription is to get."""
        cdef uint64_t names[RUN_WORDS]
        cdef uint32_t words = (self.count + 63) >> 6
        cdef uint32_t at
        memset(names, 0, words * sizeof(uint64_t))
        if subscription.tells_names and not self.told:
            for at in range(self.count):
                if subscription.tell(load_u64(self.chunks[at].chunk + CHUNK_CHANNEL)):
                    names[at >> 6] |= <uint64_t>1 << (at & 63)
        if (self.frames is not None and self.number == subscription.number
                and not memcmp(names, self.names, words * sizeof(uint64_t))):
            return 0
        self.frames = None
        self.number = subscription.number
        memcpy(self.names, names, words * sizeof(uint64_t))
        self.make_frames(flags)
        return 0

    cdef int make_frames(self, uint8_t flags) except -1:
        """Make the frames for subscriptions of `number` that are told the names that `names` says."""
        cdef uint32_t prefix = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES
        cdef size_t size = self.size + <size_t>self.count * prefix
        cdef bytes frames
        cdef uint8_t* to
        cdef RunChunk* item
        cdef uint32_t at, name_size
        for at in range(self.count):
            if self.names[at >> 6] >> (at & 63) & 1:
                size += 1 + <uint32_t>self.chunks[at].name_size
        frames = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        to = <uint8_t*>PyBytes_AS_STRING(frames)
        for at in range(self.count):
            item = &self.chunks[at]
            if self.names[at >> 6] >> (at & 63) & 1:
                name_size = 1 + <uint32_t>item.name_size
                deliver_prefix(to, name_size + item.size, self.number, item.group, item.index,
                               flags | DELIVER_FLAG_NAME)
                to[prefix] = item.name_size
                memcpy(to + prefix + 1, item.name, item.name_size)
                to += prefix + name_size
            else:
                deliver_prefix(to, item.size, self.number, item.group, item.index, flags)
                to += prefix
            memcpy(to, item.chunk, item.size)
            to += item.size
        self.pin = self.fanout.new_pin(size)
        self.frames = frames
        return 0


@cython.final
cdef class Replay:
    """Committed chunks for subscriptions that catch up at the same place, in runs whose frames they share.

    Runs begin at the same chunks for all, so that readers who came to the place with different credit meet again.

    Args:
        fanout: Whose subscriptions get them.
        chunks: (group, index, chunk) each, in order; not changed any more.
        names: Channels' names by id, of those that may not be in memory; others are added.
    """

    def __cinit__(self, Fanout fanout not None, list chunks not None, dict names not None):
        cdef size_t size = 0, run_size = 0, chunk_size
        cdef Py_ssize_t at
        self.chunks = chunks
        self.names = names
        self.fanout = fanout
        self.begins = []
        for at in range(PyList_GET_SIZE(chunks)):
            chunk_size = <size_t>PyBytes_GET_SIZE(<bytes?>(<tuple?>chunks[at])[2])
            if not at or run_size + chunk_size > RUN_BYTES_MAX:
                self.begins.append(at)
                run_size = 0
            run_size += chunk_size
            size += chunk_size
        self.runs = [None] * len(self.begins)
        self.pin = fanout.new_pin(size)

    cdef Run run_at(self, Py_ssize_t at, dict firsts):
        """Return what can be queued together from a chunk on; it goes until `end`, which is `at` when nothing can."""
        cdef Py_ssize_t part = bisect_right(self.begins, at) - 1
        cdef Py_ssize_t next_part = PyList_GET_SIZE(self.chunks)
        cdef Run run
        if part + 1 < PyList_GET_SIZE(self.begins):
            next_part = self.begins[part + 1]
        if at == self.begins[part]:
            run = self.runs[part]
            if run is None:
                run = self.runs[part] = self.fanout.new_run()
        else:
            # Where a run ended before its time, or somebody has come from another piece of the log.
            run = self.between
            if run is None:
                run = self.between = self.fanout.new_run()
        if run.end <= run.begin or run.begin != at or run.firsts is not firsts:
            run.clear()
            run.begin = run.end = at
            run.firsts = firsts
            self.fill(run, next_part)
        return run

    cdef int fill(self, Run run, Py_ssize_t end) except -1:
        """Add what there is of the run from its begin on, until the chunk at `end`."""
        cdef tuple item
        cdef bytes chunk, name
        cdef const uint8_t* base
        cdef object first, channel
        run.told = False
        while run.end < end and run.count < RUN_CHUNKS_MAX:
            item = <tuple>self.chunks[run.end]
            chunk = <bytes>item[2]
            base = <const uint8_t*>PyBytes_AS_STRING(chunk)
            channel = load_u64(base + CHUNK_CHANNEL)
            if run.firsts is not None:
                first = run.firsts.get(channel)
                if first is None:
                    run.end += 1
                    continue
                if load_u64(base + CHUNK_FIRST) < <uint64_t>first:
                    break
            name = self.names.get(channel)
            if name is None:
                name = self.learn(load_u64(base + CHUNK_CHANNEL))
            if name is None or PyBytes_GET_SIZE(name) > 255 or PyBytes_GET_SIZE(chunk) > COPY_BYTES_MAX:
                break
            run.add(base, <uint32_t>PyBytes_GET_SIZE(chunk), item[0], item[1], PyBytes_AS_STRING(name),
                    <uint8_t>PyBytes_GET_SIZE(name))
            run.end += 1
        return 0

    cdef bytes learn(self, uint64_t id):
        """Remember a channel's name if memory has it: the channel may leave while the run is kept."""
        cdef Channel* channel = self.fanout.tails.by_channel_id(id)
        cdef bytes name
        if channel == NULL:
            return None
        name = PyBytes_FromStringAndSize(channel_name(channel), channel.name_size)
        self.names[id] = name
        return name


# -- the fan-out -------------------------------------------------------------------------------------------------------


cdef class Fanout:
    """Subscriptions by channel and pattern, and the connections that have something to send.

    Args:
        tails: Whose channels are read.
    """

    def __cinit__(self, Tails tails not None):
        self.tails = tails
        self.trie = PatternTrie()
        self.version = 1
        self.dirty = []
        self.slow = []
        self.dealers = {}
        self.crowded_bytes_max = CROWDED_BYTES_MAX
        self.run = self.new_run()

    # .. who reads what ..

    def attach(self, Subscription subscription not None, bytes name):
        """Let the subscription read a channel that is in memory, from the next delivery on."""
        cdef Channel* channel = self.channel(name)
        cdef list exact
        if channel.exact == NULL:
            exact = []
            Py_INCREF(exact)
            channel.exact = <void*>exact
        (<list>channel.exact).append(subscription)
        channel.readers_version = 0
        if subscription.group is not None:
            self.count_member(1)

    def detach(self, Subscription subscription not None, bytes name):
        """The reverse of `attach`; answers whether it was attached."""
        cdef Channel* channel = self.channel(name)
        self.latest = None
        if channel.exact == NULL or subscription not in <list>channel.exact:
            return False
        (<list>channel.exact).remove(subscription)
        if not <list>channel.exact:
            Py_DECREF(<object>channel.exact)
            channel.exact = NULL
        self.forget_readers(channel)
        if subscription.group is not None:
            self.count_member(-1)
        return True

    cdef int count_member(self, int more) except -1:
        """It is attached once more or less: dealers to other members end with the lists of readers that have them."""
        self.grouped += more
        self.dealers.clear()
        return 0

    def attach_pattern(self, Subscription subscription not None, bytes pattern):
        """Let the subscription read every channel that the pattern matches, from the next delivery on."""
        self.trie.insert(pattern, subscription)
        self.version += 1
        self.grown = self.version
        if subscription.group is not None:
            self.count_member(1)

    def detach_pattern(self, Subscription subscription not None, bytes pattern):
        """The reverse of `attach_pattern`; answers whether it was attached."""
        self.version += 1
        self.latest = None
        if not self.trie.remove(pattern, subscription):
            return False
        if subscription.group is not None:
            self.count_member(-1)
        return True

    def listens(self, bytes name):
        """Whether a message of a channel that is in memory would reach a reader now, or one that only lacks room."""
        cdef list readers = self.readers(self.channel(name))
        cdef Subscription reader, member
        if readers is None:
            return False
        for reader in readers:
            if not reader.slow:
                return True
            if reader.deals:
                for member in (<Dealer>reader).members:
                    if not member.slow:
                        return True
        return False

    def close(self):
        """Forget every reader, at the end: what a channel knows of them no garbage collector sees."""
        cdef Channel* channel
        cdef Segment* segment
        cdef uint64_t key = 0
        cdef uint32_t slot
        self.latest = None
        self.dealers.clear()
        while True:
            segment = table_segment(&self.tails.by_name, key)
            for slot in range(<uint32_t>SEGMENT_SLOTS):
                channel = <Channel*>segment.slots[slot].item
                if channel != NULL:
                    self.forget_readers(channel)
                    Py_XDECREF(<PyObject*>channel.exact)
                    channel.exact = NULL
            key = table_after(&self.tails.by_name, key)
            if not key:
                return

    cdef Channel* channel(self, bytes name) except NULL:
        cdef Channel* channel = self.tails.find_here(name)
        if channel == NULL:
            raise KeyError(name)
        return channel

    cdef void forget_readers(self, Channel* channel) noexcept:
        Py_XDECREF(<PyObject*>channel.readers)
        channel.readers = NULL
        channel.readers_version = 0

    cdef list readers(self, Channel* channel):
        """The subscriptions that read the channel, each once; None for nobody."""
        cdef list found
        cdef uint64_t version = channel.readers_version >> 1
        # Whoever is left of those who were told its name has been told it.
        cdef bint told = channel.readers_version & READERS_TOLD and version >= self.grown
        if version == self.version:
            return <list>channel.readers if channel.readers != NULL else None
        self.forget_readers(channel)
        found = self.trie.match_into(channel_name(channel), channel.name_size)
        if channel.exact != NULL:
            if found:
                found = list(dict.fromkeys(<list>channel.exact + found))
            else:
                found = list(<list>channel.exact)
        channel.readers_version = self.version << 1 | (READERS_TOLD if told else 0)
        if not found:
            return None
        if self.grouped:
            found = self.with_dealers(found)
        found = self.same_readers(found)
        Py_INCREF(found)
        channel.readers = <void*>found
        return found

    cdef list same_readers(self, list found):
        """Return the list that another channel has already, if it is the same: a pattern's channels have most of theirs
        in common, and a thousand readers of a hundred thousand channels are a gigabyte of lists."""
        cdef Py_ssize_t reader, count = PyList_GET_SIZE(found)
        if self.latest is not None and PyList_GET_SIZE(self.latest) == count:
            for reader in range(count):
                if PyList_GET_ITEM(self.latest, reader) != PyList_GET_ITEM(found, reader):
                    break
            else:
                return self.latest
        self.latest = found
        return found

    cdef list with_dealers(self, list found):
        """Return the readers with a dealer in the place of each live group's members."""
        cdef Subscription reader
        cdef list readers = []
        cdef dict groups = {}
        for reader in found:
            if reader.group is None:
                readers.append(reader)
            else:
                groups.setdefault(reader.group, []).append(reader)
        for members in groups.values():
            readers.append(self.dealer_of(members))
        return readers

    cdef Dealer dealer_of(self, list members):
        """Return the one that deals to these, of one group: the same for all channels that they have in common, or the
        first of them would get the first message of each."""
        cdef Subscription first = <Subscription>members[0]
        cdef tuple key = (first.group, *members)
        cdef Dealer dealer = self.dealers.get(key)
        if dealer is None:
            dealer = Dealer(first.outbox, 0, 0, 0, False)
            dealer.slow = dealer.deals = True
            dealer.members = members
            dealer.next = <Py_ssize_t>(self.records_out % <uint64_t>PyList_GET_SIZE(members))
            self.dealers[key] = dealer
        return dealer

    # .. deliver ..

    def deliver(self, bytes value, size_t start, uint64_t group, uint32_t index, uint8_t flags):
        """Queue a value's chunks to everybody who reads their channels.

        Args:
            value: Chunks, one after the other, from byte `start` to its end.
            group: Their group's number, 0 for ephemeral ones.
            index: Index in the group of the first of them.
            flags: DELIVER_FLAG_EARLY or 0.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
        cdef const uint8_t* at = base + start
        cdef const uint8_t* end = base + PyBytes_GET_SIZE(value)
        cdef Channel* found[BATCH]
        cdef const uint8_t* after
        cdef uint32_t count, chunk
        self.pin = None
        self.run.clear()
        self.group = group
        self.flags = flags
        while at < end:
            after = self.tails.find_chunks(at, end, 0 if flags else group, index, found, &count)
            for chunk in range(count):
                if found[chunk] != NULL and found[chunk].readers_version >> 1 != self.version:
                    channel_prefetch_rare(found[chunk])
            for chunk in range(count):
                if found[chunk] != NULL:
                    self.deliver_next(found[chunk], value, at, index)
                index += 1
                at += load_u32(at)
            at = after
        self.end_run()
        self.pin = None

    cdef int deliver_next(self, Channel* channel, bytes value, const uint8_t* chunk, uint32_t index) except -1:
        """Queue one chunk of the value, or let it wait for others that the same subscriptions read."""
        cdef list readers = self.readers(channel)
        cdef uint32_t size = load_u32(chunk)
        cdef Py_ssize_t count
        if readers is None:
            return 0
        count = PyList_GET_SIZE(readers)
        if count < RUN_READERS_MIN or size > max(min(count * READER_BYTES, RUN_BYTES_MAX), COPY_BYTES_MAX):
            self.end_run()
            return self.deliver_chunk(readers, channel, value, chunk, size, index)
        if (readers is not self.run.readers or self.run.count == RUN_CHUNKS_MAX
                or self.run.size + size > RUN_BYTES_MAX):
            self.end_run()
            self.run.readers = readers
        self.run.add(chunk, size, self.group, index, channel_name(channel), channel.name_size).channel = channel
        self.run.told = self.run.told and channel.readers_version & READERS_TOLD
        return 0

    cdef int end_run(self) except -1:
        """Queue the run's chunks to all who read them."""
        cdef Run run = self.run
        cdef list readers = run.readers
        cdef Py_ssize_t reader = 0
        cdef bint told = True
        cdef uint32_t at
        if not run.count:
            return 0
        while reader < PyList_GET_SIZE(readers):
            try:
                if not self.push_run_from(&reader, readers):
                    told = False
            except MemoryError:
                # The others get theirs.
                told = False
                (<Subscription>PyList_GET_ITEM(readers, reader)).outbox.lose()
                reader += 1
        if told and not run.told:
            for at in range(run.count):
                run.chunks[at].channel.readers_version |= READERS_TOLD
        run.clear()
        return 0

    cdef bint push_run_from(self, Py_ssize_t* reader, list readers) except -1:
        """Queue the run to the readers from number `reader` on; after a MemoryError it is the one that failed.

        Answers whether all of them got it.
        """
        cdef Run run = self.run
        cdef Subscription subscription
        cdef bint all_of_them = True
        while reader[0] < PyList_GET_SIZE(readers):
            subscription = <Subscription>PyList_GET_ITEM(readers, reader[0])
            if subscription.slow:
                all_of_them = False
                if subscription.deals:
                    self.push_run_singly(subscription)
            elif subscription.credit - <int64_t>run.size < -subscription.overdraft:
                self.push_run_singly(subscription)
                all_of_them = False
            else:
                run.push(subscription, self.flags)
            reader[0] += 1
        return all_of_them

    cdef int push_run_singly(self, Subscription subscription) except -1:
        """Queue the run's chunks to one that lacks credit for all of them, up to the first that it is refused; or deal
        them all."""
        cdef uint32_t at
        cdef RunChunk* item
        for at in range(self.run.count):
            item = &self.run.chunks[at]
            if (not self.offer(subscription, item.channel, item.chunk, item.size, None, item.index)
                    and not subscription.deals):
                break
        return 0

    cdef int deliver_chunk(self, list readers, Channel* channel, bytes value, const uint8_t* chunk, uint32_t size,
                           uint32_t index) except -1:
        """Queue one chunk to each of them behind a prefix of its own, and tell them the channel's name if need be."""
        cdef object shared = None
        cdef Py_ssize_t reader = 0
        cdef Py_ssize_t offset = chunk - <const uint8_t*>PyBytes_AS_STRING(value)
        cdef bint told = True
        if size > COPY_BYTES_MAX:
            shared = value if size == PyBytes_GET_SIZE(value) else memoryview(value)[offset:offset + size]
            if self.pin is None:
                self.pin = self.new_pin(<size_t>PyBytes_GET_SIZE(value))
        while reader < PyList_GET_SIZE(readers):
            try:
                if not self.push_from(&reader, readers, channel, chunk, size, shared, index):
                    told = False
            except MemoryError:
                # The others get theirs.
                told = False
                (<Subscription>PyList_GET_ITEM(readers, reader)).outbox.lose()
                reader += 1
        if told:
            channel.readers_version |= READERS_TOLD
        return 0

    cdef bint push_from(self, Py_ssize_t* reader, list readers, Channel* channel, const uint8_t* chunk, uint32_t size,
                        object shared, uint32_t index) except -1:
        """Queue one chunk to the readers from number `reader` on; after a MemoryError it is the one that failed.

        Answers whether all of them got it.
        """
        cdef bint all_of_them = True
        while reader[0] < PyList_GET_SIZE(readers):
            if not self.offer(<Subscription>PyList_GET_ITEM(readers, reader[0]), channel, chunk, size, shared, index):
                all_of_them = False
            reader[0] += 1
        return all_of_them

    cdef bint offer(self, Subscription subscription, Channel* channel, const uint8_t* chunk, uint32_t size,
                    object shared, uint32_t index) except -1:
        """Queue one chunk to one reader, unless it is slow or becomes so; answers whether it got it."""
        if subscription.slow:
            if subscription.deals:
                self.deal(<Dealer>subscription, channel, chunk, size, shared, index)
            return False
        if subscription.credit - <int64_t>size < -subscription.overdraft:
            self.slow.append(subscription)
            subscription.refuse(channel.id, self.group, index, self.flags)
            return False
        subscription.push(channel.id, channel_name(channel), channel.name_size, chunk, size, shared, self.pin,
                          self.group, index, self.flags)
        self.chunks_out += 1
        self.bytes_out += size
        self.records_out += load_u32(chunk + CHUNK_COUNT)
        return True

    cdef int deal(self, Dealer dealer, Channel* channel, const uint8_t* chunk, uint32_t size, object shared,
                  uint32_t index) except -1:
        """Queue each record of a chunk to one member of a live group, in runs as even as they can be.

        Who has no room is passed over. What nobody has room for is counted, and each of them is told with the next
        that it gets. What is delivered when it is published has no GONE runs: a record is a sequence.
        """
        cdef list members = dealer.members
        cdef Py_ssize_t count = PyList_GET_SIZE(members), left_of_round = 0, passed = 0, begin = dealer.next, used
        cdef uint32_t records = load_u32(chunk + CHUNK_COUNT), before = 0, taken
        cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
        cdef Subscription member
        # First those whose transport takes bytes, then all.
        while before < records and passed < 2 * count:
            member = <Subscription>PyList_GET_ITEM(members, dealer.next)
            dealer.next += 1
            if dealer.next == count:
                dealer.next = 0
            if not left_of_round:
                left_of_round = count
            used = self.deal_run(member, channel, chunk, size, shared, index, at, before,
                                 <uint32_t>((records - before + left_of_round - 1) // left_of_round),
                                 dealer.room(member, passed >= count), &taken)
            left_of_round -= 1
            if used:
                passed = 0
                at += used
                before += taken
            else:
                passed += 1
        if before < records:
            self.records_missed += records - before
            for member in members:
                member.missed += records - before
        else:
            # Whoever is next is the first who got less than others, if nobody was passed over.
            dealer.next = (begin + <Py_ssize_t>records) % count
        return 0

    cdef Py_ssize_t deal_run(self, Subscription member, Channel* channel, const uint8_t* chunk, uint32_t size,
                             object shared, uint32_t index, const uint8_t* at, uint32_t before, uint32_t share,
                             Py_ssize_t room, uint32_t* taken) except -1:
        """Queue up to `share` records of a chunk to a member, from the one at `at` on, which `before` others precede.

        Answers how many bytes they were; 0 when there is no room for the first of them.
        """
        cdef Py_ssize_t used = 0
        cdef uint64_t group = self.group
        cdef bytes part
        cdef bint whole
        taken[0] = 0
        while taken[0] < share and CHUNK_HEADER_BYTES + used + <Py_ssize_t>load_u32(at + used) <= room:
            used += load_u32(at + used)
            taken[0] += 1
        if not used:
            return 0
        whole = CHUNK_HEADER_BYTES + used == size
        try:
            if member.missed:
                member.outbox.owner.tell(member, "dropped", {"count": member.missed})
                member.missed = 0
            if whole:
                member.push(channel.id, channel_name(channel), channel.name_size, chunk, size, shared, self.pin, group,
                            index, self.flags)
            else:
                part = chunk_part(chunk, at, <uint32_t>used, before, taken[0])
                size = <uint32_t>PyBytes_GET_SIZE(part)
                member.push(channel.id, channel_name(channel), channel.name_size,
                            <const uint8_t*>PyBytes_AS_STRING(part), size, part if size > COPY_BYTES_MAX else None,
                            self.new_pin(size) if size > COPY_BYTES_MAX else None, group, index, self.flags)
        except MemoryError:
            # Somebody else gets them.
            member.outbox.lose()
            return 0
        self.chunks_out += 1
        self.bytes_out += size
        self.records_out += taken[0]
        return used

    cdef Run new_run(self):
        cdef Run run = Run.__new__(Run)
        run.fanout = self
        run.clear()
        return run

    cdef Pin new_pin(self, size_t size):
        cdef Pin pin = Pin.__new__(Pin)
        pin.fanout = self
        pin.size = size
        return pin

    def deliver_one(self, Subscription subscription not None, bytes chunk, uint64_t group, uint32_t index,
                    uint8_t flags=0, bytes name=None, Pin pin=None):
        """Queue one chunk, an object of its own, to one subscription (catching up).

        Args:
            subscription: The subscription.
            chunk: The chunk.
            group, index, flags: As of `deliver`.
            name: Of a channel that is not in memory.
            pin: Of the memory that the chunk is part of; None for its own.

        Raises:
            KeyError: The channel is not in memory, and no name is given.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(chunk)
        cdef uint64_t id = load_u64(at + CHUNK_CHANNEL)
        cdef Channel* channel = self.tails.by_channel_id(id)
        cdef const char* its_name
        cdef uint8_t name_bytes
        if channel != NULL:
            its_name = channel_name(channel)
            name_bytes = channel.name_size
        elif name is not None and PyBytes_GET_SIZE(name) <= 255:
            its_name = PyBytes_AS_STRING(name)
            name_bytes = <uint8_t>PyBytes_GET_SIZE(name)
        else:
            raise KeyError(id)
        try:
            if pin is None and size > COPY_BYTES_MAX:
                pin = self.new_pin(size)
            subscription.push(id, its_name, name_bytes, at, size, chunk if size > COPY_BYTES_MAX else None, pin, group,
                              index, flags)
        except MemoryError:
            subscription.outbox.lose()
            return
        self.chunks_out += 1
        self.bytes_out += size
        self.records_out += load_u32(at + CHUNK_COUNT)

    def deliver_run(self, Subscription subscription not None, Replay replay not None, Py_ssize_t at, int64_t bytes_max,
                    dict firsts):
        """Queue committed chunks to one subscription while it has credit, of those channels whose first is known.

        Args:
            subscription: The subscription.
            replay: The chunks.
            at: The first of them to look at.
            bytes_max: What is queued at most, but for the last run or chunk.
            firsts: The sequence that each channel begins with by id; chunks of others are passed over. None: all chunks
                are wanted, and none begins below what its channel begins with. Another dict whenever one has changed.

        Returns:
            (the next to look at, whether it begins below what its channel begins with)
        """
        cdef int64_t left = bytes_max
        cdef list chunks = replay.chunks
        cdef object first
        cdef tuple item
        cdef bytes chunk
        cdef const uint8_t* base
        cdef Run run
        if at < 0:
            raise IndexError(at)
        while at < PyList_GET_SIZE(chunks) and subscription.credit > 0 and left > 0:
            run = replay.run_at(at, firsts)
            if run.end > at and subscription.credit >= <int64_t>run.size:
                try:
                    if run.count:
                        run.push(subscription, 0)
                except MemoryError:
                    subscription.outbox.lose()
                left -= <int64_t>run.size
                at = run.end
                continue
            item = <tuple?>chunks[at]
            chunk = <bytes?>item[2]
            base = <const uint8_t*>PyBytes_AS_STRING(chunk)
            if firsts is not None:
                first = firsts.get(load_u64(base + CHUNK_CHANNEL))
                if first is None:
                    at += 1
                    continue
                if load_u64(base + CHUNK_FIRST) < <uint64_t>first:
                    return at, True
            left -= PyBytes_GET_SIZE(chunk)
            self.deliver_one(subscription, chunk, item[0], item[1], 0, replay.names.get(load_u64(base + CHUNK_CHANNEL)),
                             replay.pin)
            at += 1
        return at, False

    # .. the end of a turn ..

    @property
    def pending(self):
        """Whether a connection has something to send."""
        return bool(self.dirty)

    def flush(self):
        """Send what is queued, one `writelines` a connection; answers the connections that hold bytes back."""
        cdef list dirty = self.dirty
        cdef list held = []
        cdef Outbox outbox
        self.dirty = []
        for outbox in dirty:
            outbox.dirty = False
            outbox.flush()
            if outbox.paused and outbox.transport is not None:
                held.append(outbox)
        return held
