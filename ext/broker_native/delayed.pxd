# Messages that wait for their time: an index of all by (channel, id), and the next of them in the order of their times.
#
# What is stored of a waiting message is a record in a slot of the wheel (broker/core/delayed.py), whose payload is an
# envelope:
#
#  0        8        16     17             18        19         20       24
#  | due_us | ticket | kind | channel size | id size | attempts | 0      | channel, id, then the record as published
#    u64      u64      u8     u8             u8        u8         u32
#
# A ticket is a number that no other message ever had. A cancellation is an envelope with the ticket of what it cancels
# and no record; it may come before or behind that in a slot.
#
# In memory a waiting message is one entry of 32 bytes, whose place follows from a keyed hash of 128 bits:
#
#  segments[first bits of the hash] ──▶ [capacity] entries, open addressing, linear probing, at most 7/8 of them taken
#
# A segment grows by a quarter, by itself: with a million entries that moves about a thousand.
#
# What is due next is a binary heap over copies of envelopes, ordered by (due_us, sequence in the slot), and bounded:
# past its bytes it gives up its latest half, and `horizon` says from which key on it knows nothing.
#
# One thread, the loop's.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    ENVELOPE_BYTES = 24
    ENVELOPE_SCHEDULED = 1
    ENVELOPE_CANCELLED = 2

    SEGMENT_BITS = 10

    LEVELS = 4                      # of the wheel: slots of 1, 64, 4,096 and 262,144 seconds
    LEVEL_BITS = 6
    SLOTS = 128                     # of each level: those of this turn of the next coarser slot, and of the next turn
    SLOTS_ALL = LEVELS * SLOTS

    ID_BYTES_MAX = 64

cdef struct Pending:                # ticket 0: the entry is free
    uint64_t high
    uint64_t low
    uint64_t due_us
    uint64_t ticket                 # with CANCELLED_BIT while what is stored is read: of a message that was cancelled

cdef struct Segment:
    Pending* entries
    uint32_t capacity
    uint32_t count

cdef struct Change:                 # of the index, so that it can be taken back
    Pending entry
    bint added                      # else removed

cdef struct Due:
    uint64_t due_us
    uint64_t sequence
    uint8_t* envelope               # a copy of its own
    uint32_t size
    uint32_t group                  # which of those that `send` has put together

cdef struct DueList:
    Due* items
    size_t count
    size_t capacity

cdef class Waiting:
    cdef uint64_t seed_0
    cdef uint64_t seed_1
    cdef Segment segments[1024]
    cdef readonly uint64_t count        # messages that wait
    cdef uint64_t cancelled             # entries with CANCELLED_BIT
    cdef readonly uint64_t index_bytes
    cdef readonly bint complete         # everything that is stored was noted
    cdef Change* changes                # since `changes_begin` were settled
    cdef size_t changes_count
    cdef size_t changes_capacity
    cdef uint64_t changes_begin
    cdef DueList heap
    cdef readonly size_t due_bytes      # of the heap
    cdef size_t due_bytes_max
    cdef readonly uint64_t horizon_us   # from this time on the order may lack what it was given; 2^64 - 1: nothing
    cdef uint64_t horizon_sequence
    cdef DueList hand                   # taken and not sent
    cdef DueList sent                   # by the last `send`

    cdef int hash_of(self, const uint8_t* channel, uint32_t channel_size, const uint8_t* id, uint32_t id_size,
                     Pending* entry) noexcept nogil
    cdef int hash_envelope(self, const uint8_t* envelope, Pending* entry) noexcept nogil
    cdef Pending* find(self, const Pending* entry, bint any_ticket) noexcept nogil
    cdef int insert(self, const Pending* entry) except -1
    cdef int reserve_insert(self, const Pending* entry) except -1
    cdef void remove(self, Segment* segment, Pending* at) noexcept nogil
    cdef int resize(self, Segment* segment, uint32_t capacity) except -1
    cdef int shrink(self, Segment* segment) except -1
    cdef int check_names(self, bytes channel, bytes id) except -1
    cdef int reserve_changes(self, size_t count) except -1
    cdef void note_change(self, const Pending* entry, bint added) noexcept nogil
    cdef int undo_to(self, size_t count) except -1
    cdef int push(self, uint64_t due_us, uint64_t sequence, const uint8_t* envelope, uint32_t size) except -1
    cdef void shed(self) noexcept nogil
    cdef bint is_live(self, const uint8_t* envelope, Pending* entry) noexcept nogil

cdef class Answers:
    cdef bytearray entries
    cdef uint32_t slot
    cdef uint64_t number
    cdef uint8_t level
    cdef uint64_t last_us
    cdef uint8_t last_flags
    cdef uint32_t last_count

    cdef int add(self, uint64_t due_us, uint8_t flags) except -1

# The id of a record that was checked, NULL when it has none.
cdef const uint8_t* record_id(const uint8_t* record, uint32_t* size) noexcept nogil
# Writes a slot's record, as a PUBLISH would have it, around an envelope; answers what is behind it.
cdef uint8_t* put_envelope(uint8_t* at, const Pending* entry, uint8_t kind, const uint8_t* channel,
                           uint32_t channel_size, const uint8_t* id, uint32_t id_size, const uint8_t* record,
                           uint32_t record_size) noexcept nogil


cdef inline int level_for(uint64_t due_s, uint64_t cursor_s) noexcept nogil:
    """The finest level whose slots reach so far: those of this turn of the next coarser slot and of the next one."""
    cdef int level = 0
    while level < LEVELS - 1 and (
        due_s >> (LEVEL_BITS * (level + 1)) > (cursor_s >> (LEVEL_BITS * (level + 1))) + 1
    ):
        level += 1
    return level


cdef inline uint32_t slot_at(uint64_t due_s, int level) noexcept nogil:
    return <uint32_t>(due_s >> (LEVEL_BITS * level)) & (SLOTS - 1)
