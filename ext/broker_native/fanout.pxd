# Delivery: who reads a channel, and what leaves on each connection at the end of a turn.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.channel cimport Channel
from broker_native.growing cimport Bytes
from broker_native.tails cimport Tails
from broker_native.trie cimport PatternTrie
from broker_native.unsent cimport Sender


@cython.final
cdef class Pin:
    cdef Fanout fanout
    cdef size_t size                    # bytes that stay in memory while anybody has some of them queued
    cdef size_t holders

    cdef void hold(self) noexcept
    cdef void release(self) noexcept

cdef class Outbox:
    cdef readonly Fanout fanout
    cdef public object transport        # has `writelines`; None when the connection is gone
    cdef public object owner            # the connection, opaque here
    cdef Bytes urgent                   # answers and control frames: they leave ahead of deliveries
    cdef Bytes small                    # prefixes and small chunks, copied
    cdef list pieces                    # shared slices and what stood before them
    cdef Pin pin                        # what the shared slices in it hold in memory
    cdef list pins                      # and what others do, if they are of several values
    cdef size_t copied                  # of `queued` what is copied here
    cdef readonly size_t queued         # bytes in `urgent`, `small` and `pieces`
    cdef size_t ordered                 # of them what was queued as whole frames behind deliveries
    cdef readonly bint paused
    cdef bint dirty
    cdef bint lost                      # there was no memory for what it should be sent: it gets nothing more

    cdef int mark(self) except -1
    cdef int queue(self, Bytes* to, const uint8_t* header, const uint8_t* body, size_t body_bytes) except -1
    cdef int answer(self, const uint8_t* frame, size_t size) except -1
    cdef int order(self, bytes frame) except -1
    cdef int share(self, bytes frames) except -1
    cdef int lose(self) except -1
    cdef void drop(self) noexcept
    cdef void settle(self) noexcept
    cdef void go_on(self) noexcept
    cdef int hold(self, Pin pin) except -1
    cdef int seal_small(self) except -1
    cdef int flush(self) except -1
    cdef int send(self) except -1
    cdef bint send_straight(self, Sender sender) except -1

cdef struct Told:                       # 64 neighbouring channel ids
    uint64_t key                        # 1 + the id's upper bits; 0 while the slot is free
    uint64_t bits                       # those whose names were told

cdef class Subscription:
    cdef readonly Outbox outbox
    cdef readonly uint32_t number
    cdef public int64_t credit          # bytes it may still be sent; below zero within `overdraft`
    cdef public int64_t overdraft
    cdef public bint tells_names        # more than one literal: its reader must be told channels' names
    cdef public object state            # what the node keeps of it
    cdef public bint slow               # it was refused a chunk, and gets nothing more
    cdef uint64_t refused_group         # that chunk's group, 0 for an ephemeral one
    cdef uint32_t refused_index         # and its index in it
    cdef bint refused_early
    cdef uint64_t refused_delivered     # as in Fanout when that happened
    cdef uint64_t refused_early_group
    cdef uint32_t refused_early_index
    cdef uint64_t refused_turn
    cdef readonly uint64_t refused_channel
    cdef public bint behind             # it catches up: whoever drives it wants to hear of credit
    cdef public object group            # the name of the live group that it is a member of, or None
    cdef bint deals                     # it is a Dealer, which stands for a group among a channel's readers
    cdef uint64_t missed                # records that nobody of its group had room for, and that it was not told of
    cdef Told* told                     # hash set of channel ids whose names were told; told_mask + 1 slots
    cdef uint32_t told_mask
    cdef uint32_t told_count

    cdef void refuse(self, uint64_t channel, uint64_t group, uint32_t index, uint8_t flags) noexcept
    cdef bint tell(self, uint64_t id) except -1
    cdef Told* told_slot(self, uint64_t key) noexcept
    cdef int grow_told(self) except -1
    cdef int push_frames(self, bytes frames, size_t size, Pin pin) except -1
    cdef int push(self, uint64_t id, const char* name, uint8_t name_bytes, const uint8_t* chunk, uint32_t size,
                  object shared, Pin pin, uint64_t group, uint32_t index, uint8_t flags) except -1


@cython.final
cdef class Dealer(Subscription):        # always `slow`, so that nobody takes it for a reader of its own
    cdef list members                   # the subscriptions of one live group that read the same channels
    cdef Py_ssize_t next                # whose turn it is

    cdef Py_ssize_t room(self, Subscription member, bint crowded) noexcept

cdef enum:
    RUN_CHUNKS_MAX = 1024
    RUN_WORDS = 16                      # as many bits
    READERS_TOLD = 1                    # in `Channel.readers_version`: all of its readers have been told its name

cdef struct RunChunk:
    Channel* channel                    # NULL in a replay
    const uint8_t* chunk
    const char* name                    # the channel's
    uint64_t group
    uint32_t index                      # in the group
    uint32_t size
    uint8_t name_size


@cython.final
cdef class Run:
    cdef Fanout fanout
    cdef list readers                   # who read all of the chunks
    cdef RunChunk chunks[RUN_CHUNKS_MAX]
    cdef uint32_t count
    cdef size_t size                    # bytes of them
    cdef uint64_t records
    cdef bint told                      # all readers have been told all names
    cdef bytes frames                   # as they were made last, for a subscription of
    cdef uint32_t number                # this number
    cdef uint64_t names[RUN_WORDS]   # that is told the names of these
    cdef Pin pin                        # of `frames`
    cdef Py_ssize_t begin               # in a replay: its chunks from this
    cdef Py_ssize_t end                 # to before this one,
    cdef dict firsts                    # as these are wanted

    cdef void clear(self) noexcept
    cdef RunChunk* add(self, const uint8_t* chunk, uint32_t size, uint64_t group, uint32_t index, const char* name,
                       uint8_t name_size) noexcept
    cdef int push(self, Subscription subscription, uint8_t flags) except -1
    cdef int frame_for(self, Subscription subscription, uint8_t flags) except -1
    cdef int make_frames(self, uint8_t flags) except -1


@cython.final
cdef class Replay:
    cdef Fanout fanout
    cdef list chunks
    cdef dict names
    cdef Pin pin                        # of all chunks
    cdef list begins                    # the chunks at which runs begin
    cdef list runs                      # those, or None while nobody has asked
    cdef Run between                    # one that begins elsewhere

    cdef Run run_at(self, Py_ssize_t at, dict firsts)
    cdef int fill(self, Run run, Py_ssize_t end) except -1
    cdef bytes learn(self, uint64_t id)


cdef class Fanout:
    cdef readonly Tails tails
    cdef PatternTrie trie
    cdef uint64_t version               # counts changes of who reads by pattern
    cdef uint64_t grown                 # the last that somebody was added with
    cdef list latest                    # the readers that were last found of a channel
    cdef list dirty
    cdef public list slow               # subscriptions that went past their credit and budget
    cdef public uint64_t delivered      # the last group that was delivered as a whole
    cdef public uint64_t early_group    # the last group of which chunks were delivered early
    cdef public uint32_t early_index    # and the index of the first that was not
    cdef public uint64_t turn           # counts the turns that had ephemeral chunks
    cdef public bint kicked             # a turn's end is scheduled
    cdef readonly size_t copied_bytes   # what all outboxes hold of their own
    cdef readonly size_t shared_bytes   # what they hold together, each value once
    cdef readonly size_t paused_count   # connections whose transport has asked for a pause
    cdef Pin pin                        # of the value that is being delivered
    cdef uint64_t group                 # its group
    cdef uint8_t flags                  # and what its chunks are delivered with
    cdef Run run                        # of the chunks that wait to be queued together
    cdef readonly uint64_t chunks_out
    cdef readonly uint64_t records_out
    cdef readonly uint64_t bytes_out
    cdef int64_t grouped                # how often a member of a live group is attached
    cdef dict dealers                   # by a group's name and members
    cdef public size_t crowded_bytes_max    # what a connection whose transport takes nothing may have from its groups
    cdef readonly uint64_t records_missed   # that nobody of a group had room for

    cdef Channel* channel(self, bytes name) except NULL
    cdef void forget_readers(self, Channel* channel) noexcept
    cdef int count_member(self, int more) except -1
    cdef list readers(self, Channel* channel)
    cdef list same_readers(self, list found)
    cdef list with_dealers(self, list found)
    cdef Dealer dealer_of(self, list members)
    cdef int deliver_next(self, Channel* channel, bytes value, const uint8_t* chunk, uint32_t index) except -1
    cdef int deliver_chunk(self, list readers, Channel* channel, bytes value, const uint8_t* chunk, uint32_t size,
                           uint32_t index) except -1
    cdef bint push_from(self, Py_ssize_t* reader, list readers, Channel* channel, const uint8_t* chunk, uint32_t size,
                        object shared, uint32_t index) except -1
    cdef bint offer(self, Subscription subscription, Channel* channel, const uint8_t* chunk, uint32_t size,
                    object shared, uint32_t index) except -1
    cdef int deal(self, Dealer dealer, Channel* channel, const uint8_t* chunk, uint32_t size, object shared,
                  uint32_t index) except -1
    cdef Py_ssize_t deal_run(self, Subscription member, Channel* channel, const uint8_t* chunk, uint32_t size,
                             object shared, uint32_t index, const uint8_t* at, uint32_t before, uint32_t share,
                             Py_ssize_t room, uint32_t* taken) except -1
    cdef int end_run(self) except -1
    cdef bint push_run_from(self, Py_ssize_t* reader, list readers) except -1
    cdef int push_run_singly(self, Subscription subscription) except -1
    cdef Run new_run(self)
    cdef Pin new_pin(self, size_t size)

cdef void frame_header(uint8_t* at, uint32_t size, uint8_t kind, uint8_t flags) noexcept nogil
cdef void deliver_prefix(uint8_t* at, uint32_t size, uint32_t number, uint64_t group, uint32_t index,
                         uint8_t flags) noexcept nogil
