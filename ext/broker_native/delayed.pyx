"""Messages that wait for their time, in memory: an index of all of them, and the next ones in order.

The index answers whether a message (a channel and an id) waits, and until when: that decides what is scheduled twice,
what can be cancelled, and what is sent when its time has come. A message in a slot that the index does not know of was
cancelled. The order holds whole envelopes, of the next seconds only.

Changes are taken back together when a commit fails (`undo`), and forgotten when it is known to have succeeded
(`settle`); a mark says up to where.

It knows no log and no clock. Envelopes that it is given were written here, so their structure is trusted; records of a
PUBLISH were checked by whoever took the frame. The hash is SipHash-2-4 with 128 bits (Aumasson and Bernstein 2012):
who may choose channels and ids can then make neither chains nor collisions.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from broker_native.layout cimport *

cdef extern from *:
    """
    #define CANCELLED_BIT (1ULL << 63)
    #define NEVER UINT64_MAX
    """
    const uint64_t CANCELLED_BIT
    const uint64_t NEVER

cdef enum:
    NAMES_BYTES_MAX = 255 + 1 + 255
    SEGMENT_CAPACITY_MIN = 8
    CHANGES_MIN = 64
    DUE_MIN = 64
    ATTEMPTS_AT = 19

    # Of an envelope.
    TICKET_AT = 8
    KIND_AT = 16
    CHANNEL_SIZE_AT = 17
    ID_SIZE_AT = 18


# -- the hash ----------------------------------------------------------------------------------------------------------


cdef inline uint64_t rotated(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotated(v[1], 13) ^ v[0]
    v[0] = rotated(v[0], 32)
    v[2] += v[3]
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotated(v[1], 17) ^ v[2]
    v[2] = rotated(v[2], 32)


cdef void sip_hash(uint64_t seed_0, uint64_t seed_1, const uint8_t* data, size_t size, Pending* entry) noexcept nogil:
    """Put the 128 bits of some bytes into `high` and `low` of an entry."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef size_t at = 0
    cdef int rest, _
    v[0] = seed_0 ^ <uint64_t>0x736F6D6570736575
    v[1] = seed_1 ^ <uint64_t>0x646F72616E646F6D ^ 0xEE
    v[2] = seed_0 ^ <uint64_t>0x6C7967656E657261
    v[3] = seed_1 ^ <uint64_t>0x7465646279746573
    while size - at >= 8:
        word = load_u64(data + at)
        v[3] ^= word
        sip_round(v)
        sip_round(v)
        v[0] ^= word
        at += 8
    word = <uint64_t>size << 56
    for rest in range(<int>(size - at)):
        word |= <uint64_t>data[at + <size_t>rest] << (8 * rest)
    v[3] ^= word
    sip_round(v)
    sip_round(v)
    v[0] ^= word
    v[2] ^= 0xEE
    for _ in range(4):
        sip_round(v)
    entry.low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    for _ in range(4):
        sip_round(v)
    entry.high = v[0] ^ v[1] ^ v[2] ^ v[3]


# -- envelopes and records ---------------------------------------------------------------------------------------------


cdef inline const uint8_t* envelope_channel(const uint8_t* envelope) noexcept nogil:
    return envelope + ENVELOPE_BYTES


cdef inline const uint8_t* envelope_id(const uint8_t* envelope) noexcept nogil:
    return envelope + ENVELOPE_BYTES + envelope[CHANNEL_SIZE_AT]


cdef inline const uint8_t* envelope_record(const uint8_t* envelope) noexcept nogil:
    return envelope_id(envelope) + envelope[ID_SIZE_AT]


cdef const uint8_t* record_id(const uint8_t* record, uint32_t* size) noexcept nogil:
    """The id of a record that was checked, NULL when it has none."""
    cdef uint16_t flags = load_u16(record + 4)
    cdef const uint8_t* at = record + RECORD_HEADER_BYTES
    if not flags & RECORD_ID:
        return NULL
    if flags & RECORD_PUBLISHER:
        at += 1 + at[0]
    if flags & RECORD_PRIORITY:
        at += 1
    if flags & RECORD_EXPIRY:
        at += 4
    if flags & RECORD_KEY:
        at += 2 + load_u16(at)
    if flags & RECORD_HEADERS:
        at += 2 + load_u16(at)
    size[0] = at[0]
    return at + 1


cdef uint8_t* put_envelope(uint8_t* at, const Pending* entry, uint8_t kind, const uint8_t* channel,
                           uint32_t channel_size, const uint8_t* id, uint32_t id_size, const uint8_t* record,
                           uint32_t record_size) noexcept nogil:
    """Write a slot's record, as a PUBLISH would have it, around an envelope; answers what is behind it."""
    store_u32(at, RECORD_HEADER_BYTES + ENVELOPE_BYTES + channel_size + id_size + record_size)
    store_u32(at + 4, 0)
    store_u32(at + 8, 0)
    at += RECORD_HEADER_BYTES
    store_u64(at, entry.due_us)
    store_u64(at + TICKET_AT, entry.ticket)
    at[KIND_AT] = kind
    at[CHANNEL_SIZE_AT] = <uint8_t>channel_size
    at[ID_SIZE_AT] = <uint8_t>id_size
    at[ATTEMPTS_AT] = 0
    store_u32(at + 20, 0)
    at += ENVELOPE_BYTES
    memcpy(at, channel, channel_size)
    at += channel_size
    memcpy(at, id, id_size)
    at += id_size
    if record_size:
        memcpy(at, record, record_size)
    return at + record_size


WHEEL = LEVELS, SLOTS


def slot_for(uint64_t due_us, uint64_t cursor_s):
    """The level and the slot in which a message that is due then waits, while the wheel stands at a second."""
    cdef int level = level_for(due_us // 1000000, cursor_s)
    return level, slot_at(due_us // 1000000, level)


def envelopes_of(bytes chunk not None, uint64_t after, uint64_t until):
    """What is in the records of a slot's chunk past sequence `after` and before `until`.

    Returns:
        (sequence, due_us, ticket, channel, id, bytes of the record, whether it is a cancellation, attempts) each.
    """
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* envelope
    cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
    cdef list found = []
    while at < end and sequence < until:
        if sequence > after:
            envelope = at + RECORD_HEADER_BYTES
            found.append((
                sequence,
                load_u64(envelope),
                load_u64(envelope + TICKET_AT),
                PyBytes_FromStringAndSize(<const char*>envelope_channel(envelope), envelope[CHANNEL_SIZE_AT]),
                PyBytes_FromStringAndSize(<const char*>envelope_id(envelope), envelope[ID_SIZE_AT]),
                at + load_u32(at) - envelope_record(envelope),
                envelope[KIND_AT] == ENVELOPE_CANCELLED,
                envelope[ATTEMPTS_AT],
            ))
        at += load_u32(at)
        sequence += 1
    return found


# -- lists of what is due ----------------------------------------------------------------------------------------------


cdef inline bint is_before(const Due* one, const Due* other) noexcept nogil:
    return one.due_us < other.due_us or (one.due_us == other.due_us and one.sequence < other.sequence)


cdef int compare_due(const void* one, const void* other) noexcept nogil:
    if is_before(<const Due*>one, <const Due*>other):
        return -1
    return 1 if is_before(<const Due*>other, <const Due*>one) else 0


cdef int list_reserve(DueList* due, size_t count) except -1:
    """Make room for so many more."""
    cdef size_t capacity = max(due.capacity, <size_t>DUE_MIN)
    cdef Due* items
    if due.count + count <= due.capacity:
        return 0
    while capacity < due.count + count:
        capacity *= 2
    items = <Due*>PyMem_RawRealloc(due.items, capacity * sizeof(Due))
    if items == NULL:
        raise MemoryError
    due.items = items
    due.capacity = capacity
    return 0


cdef void list_free(DueList* due) noexcept nogil:
    cdef size_t at
    for at in range(due.count):
        PyMem_RawFree(due.items[at].envelope)
    PyMem_RawFree(due.items)
    due.items = NULL
    due.count = due.capacity = 0


cdef void heap_push(DueList* heap, Due* item) noexcept nogil:
    """There is room for it."""
    cdef size_t at = heap.count
    cdef size_t above
    heap.count += 1
    while at:
        above = (at - 1) // 2
        if not is_before(item, &heap.items[above]):
            break
        heap.items[at] = heap.items[above]
        at = above
    heap.items[at] = item[0]


cdef Due heap_pop(DueList* heap) noexcept nogil:
    """It is not empty."""
    cdef Due first = heap.items[0]
    cdef Due item
    cdef size_t at = 0
    cdef size_t below
    heap.count -= 1
    item = heap.items[heap.count]
    while 2 * at + 1 < heap.count:
        below = 2 * at + 1
        if below + 1 < heap.count and is_before(&heap.items[below + 1], &heap.items[below]):
            below += 1
        if not is_before(&heap.items[below], &item):
            break
        heap.items[at] = heap.items[below]
        at = below
    heap.items[at] = item
    return first


cdef inline uint32_t entry_home(uint64_t low, uint32_t capacity) noexcept nogil:
    """Where an entry belongs in a segment: its last 32 bits, scaled."""
    return <uint32_t>((<uint64_t><uint32_t>low * capacity) >> 32)


cdef inline uint32_t entry_after(uint32_t at, uint32_t capacity) noexcept nogil:
    return <uint32_t>(at + 1) if at + 1 < capacity else 0


# -- the index and the order -------------------------------------------------------------------------------------------


cdef class Waiting:
    """Messages that wait.

    Args:
        key: 16 random bytes for the hash.
        due_bytes_max: What the order may hold, bytes; one envelope in any case.
    """

    def __cinit__(self, bytes key not None, size_t due_bytes_max):
        if len(key) != 16:
            raise ValueError(f"key: got {len(key)} bytes, expected 16")
        self.seed_0 = load_u64(<const uint8_t*>PyBytes_AS_STRING(key))
        self.seed_1 = load_u64(<const uint8_t*>PyBytes_AS_STRING(key) + 8)
        self.due_bytes_max = due_bytes_max
        self.horizon_us = self.horizon_sequence = NEVER

    def __dealloc__(self):
        cdef int at
        for at in range(1 << SEGMENT_BITS):
            PyMem_RawFree(self.segments[at].entries)
        PyMem_RawFree(self.changes)
        list_free(&self.heap)
        list_free(&self.hand)
        list_free(&self.sent)

    def __len__(self):
        """Messages that wait, of which the index knows."""
        return self.count

    @property
    def due_count(self):
        """Messages in the order."""
        return self.heap.count

    # .. the index ..

    cdef int hash_of(self, const uint8_t* channel, uint32_t channel_size, const uint8_t* id, uint32_t id_size,
                     Pending* entry) noexcept nogil:
        """Hash a channel and an id; no channel has the byte that stands between them."""
        cdef uint8_t both[NAMES_BYTES_MAX]
        memcpy(both, channel, channel_size)
        both[channel_size] = 0
        memcpy(both + channel_size + 1, id, id_size)
        sip_hash(self.seed_0, self.seed_1, both, channel_size + 1 + id_size, entry)
        return 0

    cdef int hash_envelope(self, const uint8_t* envelope, Pending* entry) noexcept nogil:
        """The entry of what an envelope is about."""
        self.hash_of(envelope_channel(envelope), envelope[CHANNEL_SIZE_AT], envelope_id(envelope),
                     envelope[ID_SIZE_AT], entry)
        entry.due_us = load_u64(envelope)
        entry.ticket = load_u64(envelope + TICKET_AT)
        return 0

    cdef Pending* find(self, const Pending* entry, bint any_ticket) noexcept nogil:
        """The entry with that hash: the one that waits, or the one with its ticket, cancelled or not; NULL if none."""
        cdef Segment* segment = &self.segments[entry.high >> (64 - SEGMENT_BITS)]
        cdef Pending* found
        cdef uint32_t at
        if not segment.count:
            return NULL
        at = entry_home(entry.low, segment.capacity)
        while segment.entries[at].ticket:
            found = &segment.entries[at]
            if found.low == entry.low and found.high == entry.high:
                if not found.ticket & CANCELLED_BIT if any_ticket else (
                    (found.ticket | CANCELLED_BIT) == (entry.ticket | CANCELLED_BIT)
                ):
                    return found
            at = entry_after(at, segment.capacity)
        return NULL

    cdef int resize(self, Segment* segment, uint32_t capacity) except -1:
        """Give a segment another size, in which its entries have room."""
        cdef Pending* before = segment.entries
        cdef Pending* entries = <Pending*>PyMem_RawMalloc(capacity * sizeof(Pending))
        cdef uint32_t index, at
        if entries == NULL:
            raise MemoryError
        memset(entries, 0, capacity * sizeof(Pending))
        for index in range(segment.capacity):
            if before[index].ticket:
                at = entry_home(before[index].low, capacity)
                while entries[at].ticket:
                    at = entry_after(at, capacity)
                entries[at] = before[index]
        self.index_bytes += <uint64_t>capacity * sizeof(Pending)
        self.index_bytes -= <uint64_t>segment.capacity * sizeof(Pending)
        PyMem_RawFree(before)
        segment.entries = entries
        segment.capacity = capacity
        return 0

    cdef int reserve_insert(self, const Pending* entry) except -1:
        """Make room for an entry."""
        cdef Segment* segment = &self.segments[entry.high >> (64 - SEGMENT_BITS)]
        if (segment.count + 1) * 8 > segment.capacity * 7:
            self.resize(segment, <uint32_t>max(segment.capacity + segment.capacity // 4,
                                               <uint32_t>SEGMENT_CAPACITY_MIN))
        return 0

    cdef int insert(self, const Pending* entry) except -1:
        cdef Segment* segment = &self.segments[entry.high >> (64 - SEGMENT_BITS)]
        cdef uint32_t at
        self.reserve_insert(entry)
        at = entry_home(entry.low, segment.capacity)
        while segment.entries[at].ticket:
            at = entry_after(at, segment.capacity)
        segment.entries[at] = entry[0]
        segment.count += 1
        if entry.ticket & CANCELLED_BIT:
            self.cancelled += 1
        else:
            self.count += 1
        return 0

    cdef void remove(self, Segment* segment, Pending* found) noexcept nogil:
        """Take an entry out, and move those behind it that would not be found any more. (Knuth, vol. 3, 6.4, R.)"""
        cdef uint32_t hole = <uint32_t>(found - segment.entries)
        cdef uint32_t at = hole
        cdef uint32_t home
        if found.ticket & CANCELLED_BIT:
            self.cancelled -= 1
        else:
            self.count -= 1
        segment.count -= 1
        while True:
            at = entry_after(at, segment.capacity)
            if not segment.entries[at].ticket:
                break
            home = entry_home(segment.entries[at].low, segment.capacity)
            if (hole < home <= at) if hole <= at else (home <= at or home > hole):
                continue
            segment.entries[hole] = segment.entries[at]
            hole = at
        segment.entries[hole].ticket = 0

    cdef int shrink(self, Segment* segment) except -1:
        """Give back what a segment has far too much of."""
        if segment.capacity > SEGMENT_CAPACITY_MIN and segment.count * 4 < segment.capacity:
            self.resize(segment, <uint32_t>max(segment.count * 2, <uint32_t>SEGMENT_CAPACITY_MIN))
        return 0

    def find_waiting(self, bytes channel not None, bytes id not None):
        """When a message is due and its ticket; None when it does not wait."""
        cdef Pending entry
        cdef Pending* found
        self.check_names(channel, id)
        self.hash_of(<const uint8_t*>PyBytes_AS_STRING(channel), <uint32_t>PyBytes_GET_SIZE(channel),
                     <const uint8_t*>PyBytes_AS_STRING(id), <uint32_t>PyBytes_GET_SIZE(id), &entry)
        found = self.find(&entry, True)
        return None if found == NULL else (found.due_us, found.ticket)

    cdef int check_names(self, bytes channel, bytes id) except -1:
        if len(channel) > 255 or len(id) > 255:
            raise ValueError(f"channel and id: got {len(channel)} and {len(id)} bytes, limit 255 bytes")
        return 0

    # .. changes that may be taken back ..

    @property
    def mark(self):
        """Where changes stand now: what `settle` is told of when they are committed."""
        return self.changes_begin + self.changes_count

    cdef int reserve_changes(self, size_t count) except -1:
        cdef size_t capacity = max(self.changes_capacity, <size_t>CHANGES_MIN)
        cdef Change* changes
        if self.changes_count + count <= self.changes_capacity:
            return 0
        while capacity < self.changes_count + count:
            capacity *= 2
        changes = <Change*>PyMem_RawRealloc(self.changes, capacity * sizeof(Change))
        if changes == NULL:
            raise MemoryError
        self.changes = changes
        self.changes_capacity = capacity
        return 0

    cdef void note_change(self, const Pending* entry, bint added) noexcept nogil:
        """There is room for it."""
        self.changes[self.changes_count].entry = entry[0]
        self.changes[self.changes_count].added = added
        self.changes_count += 1

    cdef int undo_to(self, size_t count) except -1:
        """Take changes back, the newest first, until so many are left."""
        cdef Change* change
        cdef Pending* found
        while self.changes_count > count:
            change = &self.changes[self.changes_count - 1]
            if change.added:
                found = self.find(&change.entry, False)
                self.remove(&self.segments[change.entry.high >> (64 - SEGMENT_BITS)], found)
            else:
                self.insert(&change.entry)
            self.changes_count -= 1
        return 0

    def settle(self, uint64_t mark):
        """What was changed before a mark is committed."""
        cdef size_t count = <size_t>(mark - self.changes_begin)
        cdef size_t at
        cdef Change* change
        for at in range(count):
            change = &self.changes[at]
            if not change.added:
                self.shrink(&self.segments[change.entry.high >> (64 - SEGMENT_BITS)])
        self.changes_count -= count
        self.changes_begin += count
        for at in range(self.changes_count):
            self.changes[at] = self.changes[at + count]

    def take_back(self, size_t count):
        """Take the last so many changes back: what they stood for was not stored."""
        self.undo_to(self.changes_count - min(count, self.changes_count))

    def undo(self):
        """Take back all changes that are not settled, and forget the order, which is read anew."""
        self.undo_to(0)
        self.forget_order()

    # .. scheduling and cancelling ..

    def schedule(self, bytes channel not None, bytes body not None, size_t begin, uint8_t level, uint64_t due_us,
                 uint64_t ticket):
        """Have the records of a PUBLISH wait.

        Args:
            channel: Their channel's name.
            body: The body of the PUBLISH; its records were checked, and each has an id.
            begin: Where its records begin in it.
            level: The channel's level, for the answer.
            due_us: When they are due.
            ticket: The first of so many tickets as there are records.

        Returns:
            Records for the slot of that time, and how many; and PUBLISHED entries, which say of each message whether it
            waits already, and until when.

        Raises:
            ValueError: A record has no id; nothing has changed.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef const uint8_t* at = base + begin
        cdef const uint8_t* name = <const uint8_t*>PyBytes_AS_STRING(channel)
        cdef const uint8_t* id
        cdef uint32_t name_size = <uint32_t>PyBytes_GET_SIZE(channel)
        cdef uint32_t count = load_u32(base + 4)
        cdef uint32_t index
        cdef uint32_t taken = 0
        cdef uint32_t id_size = 0
        cdef size_t before = self.changes_count
        cdef Pending entry
        cdef Pending* found
        cdef uint8_t* output
        cdef uint8_t* put
        cdef Answers answers = Answers.__new__(Answers)
        answers.slot, answers.number, answers.level = load_u32(base), load_u64(base + 8), level
        self.reserve_changes(count)
        # An envelope's names are within the record but for the channel.
        output = put = <uint8_t*>PyMem_RawMalloc(
            <size_t>PyBytes_GET_SIZE(body) + count * <size_t>(RECORD_HEADER_BYTES + ENVELOPE_BYTES + name_size + 64))
        if output == NULL:
            raise MemoryError
        try:
            for index in range(count):
                id = record_id(at, &id_size)
                if id == NULL or not 1 <= id_size <= ID_BYTES_MAX:
                    raise ValueError(f"record {index}: it has no id")
                self.hash_of(name, name_size, id, id_size, &entry)
                found = self.find(&entry, True)
                if found != NULL:
                    answers.add(found.due_us, PUBLISHED_FLAG_DELAYED | PUBLISHED_FLAG_DUPLICATE)
                else:
                    entry.due_us = due_us
                    entry.ticket = ticket + taken
                    self.insert(&entry)
                    self.note_change(&entry, True)
                    put = put_envelope(put, &entry, ENVELOPE_SCHEDULED, name, name_size, id, id_size, at, load_u32(at))
                    taken += 1
                    answers.add(due_us, PUBLISHED_FLAG_DELAYED)
                at += load_u32(at)
            return PyBytes_FromStringAndSize(<char*>output, put - output), taken, bytes(answers.entries)
        except BaseException:
            self.undo_to(before)
            raise
        finally:
            PyMem_RawFree(output)

    def cancel(self, bytes channel not None, bytes id not None):
        """Have a message wait no more.

        Returns:
            The record that says so, for the slot of its time, and that time; None when it does not wait.
        """
        cdef Pending entry
        cdef Pending removed
        cdef Pending* found
        cdef const uint8_t* name = <const uint8_t*>PyBytes_AS_STRING(channel)
        cdef uint8_t record[RECORD_HEADER_BYTES + ENVELOPE_BYTES + NAMES_BYTES_MAX]
        cdef uint8_t* end
        self.check_names(channel, id)
        self.hash_of(name, <uint32_t>PyBytes_GET_SIZE(channel), <const uint8_t*>PyBytes_AS_STRING(id),
                     <uint32_t>PyBytes_GET_SIZE(id), &entry)
        found = self.find(&entry, True)
        if found == NULL:
            return None
        removed = found[0]
        end = put_envelope(record, &removed, ENVELOPE_CANCELLED, name, <uint32_t>PyBytes_GET_SIZE(channel),
                           <const uint8_t*>PyBytes_AS_STRING(id), <uint32_t>PyBytes_GET_SIZE(id), NULL, 0)
        packed = PyBytes_FromStringAndSize(<char*>record, end - record)
        self.reserve_changes(1)
        self.remove(&self.segments[entry.high >> (64 - SEGMENT_BITS)], found)
        self.note_change(&removed, False)
        return packed, removed.due_us

    # .. what is stored ..

    def note(self, bytes chunk not None, uint64_t after_us, uint64_t after_sequence, uint64_t until):
        """Take a slot's chunk into the index, at a start; one that was noted before changes nothing.

        Args:
            chunk: A slot's chunk.
            after_us, after_sequence: What is not past this place in the order was sent.
            until: The sequence before which to stop.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
        cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
        cdef const uint8_t* envelope
        cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
        cdef Pending entry
        cdef Pending* found
        while at < end and sequence < until:
            envelope = at + RECORD_HEADER_BYTES
            self.hash_envelope(envelope, &entry)
            if entry.due_us > after_us or (entry.due_us == after_us and sequence > after_sequence):
                found = self.find(&entry, False)
                if envelope[KIND_AT] == ENVELOPE_CANCELLED:
                    if found != NULL and not found.ticket & CANCELLED_BIT:
                        self.count -= 1
                        self.cancelled += 1
                        found.ticket |= CANCELLED_BIT
                    elif found == NULL:
                        entry.ticket |= CANCELLED_BIT
                        self.insert(&entry)
                elif found == NULL:
                    self.insert(&entry)
                elif found.due_us < entry.due_us:
                    # It could not be sent at its time and waits for another.
                    found.due_us = entry.due_us
            at += load_u32(at)
            sequence += 1

    def finish(self):
        """All that is stored was noted: forget what was cancelled."""
        cdef Segment* segment
        cdef uint32_t at
        cdef int index
        for index in range(1 << SEGMENT_BITS if self.cancelled else 0):
            segment = &self.segments[index]
            at = 0
            while at < segment.capacity:
                if segment.entries[at].ticket & CANCELLED_BIT:
                    # What is moved into its place is looked at again.
                    self.remove(segment, &segment.entries[at])
                else:
                    at += 1
            self.shrink(segment)
        self.complete = True

    cdef bint is_live(self, const uint8_t* envelope, Pending* entry) noexcept nogil:
        """Whether the message of an envelope waits until the envelope's time; its entry is filled in."""
        cdef Pending* found
        self.hash_envelope(envelope, entry)
        found = self.find(entry, False)
        return found != NULL and not found.ticket & CANCELLED_BIT and found.due_us == entry.due_us

    # .. the order ..

    @property
    def next_us(self):
        """When the next message in the order is due; 2^64 - 1 when there is none."""
        return self.heap.items[0].due_us if self.heap.count else NEVER

    def forget_horizon(self):
        """The order is given again what it lacks."""
        self.horizon_us = self.horizon_sequence = NEVER

    def forget_order(self):
        """Forget what is due next, and what is in hand."""
        list_free(&self.heap)
        list_free(&self.hand)
        list_free(&self.sent)
        self.due_bytes = 0
        self.forget_horizon()

    def add(self, bytes records not None, uint64_t first):
        """Take a slot's records into the order, now that they are stored from sequence `first` on."""
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(records)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(records)
        while at < end:
            if at[RECORD_HEADER_BYTES + KIND_AT] == ENVELOPE_SCHEDULED:
                self.push(load_u64(at + RECORD_HEADER_BYTES), first, at + RECORD_HEADER_BYTES,
                          load_u32(at) - RECORD_HEADER_BYTES)
            at += load_u32(at)
            first += 1

    def load(self, bytes chunk not None, uint64_t after_us, uint64_t after_sequence, uint64_t until):
        """Take a slot's chunk into the order.

        Args:
            chunk: A slot's chunk.
            after_us, after_sequence: What is not past this place in the order was taken.
            until: The sequence before which to stop.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
        cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
        cdef const uint8_t* envelope
        cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
        cdef uint64_t due_us
        cdef Pending entry
        while at < end and sequence < until:
            envelope = at + RECORD_HEADER_BYTES
            due_us = load_u64(envelope)
            if (
                envelope[KIND_AT] == ENVELOPE_SCHEDULED
                and (due_us > after_us or (due_us == after_us and sequence > after_sequence))
                and (not self.complete or self.is_live(envelope, &entry))
            ):
                self.push(due_us, sequence, envelope, load_u32(at) - RECORD_HEADER_BYTES)
            at += load_u32(at)
            sequence += 1

    cdef int push(self, uint64_t due_us, uint64_t sequence, const uint8_t* envelope, uint32_t size) except -1:
        """Take a copy of an envelope into the order, unless it lies past the horizon."""
        cdef Due item
        if due_us > self.horizon_us or (due_us == self.horizon_us and sequence >= self.horizon_sequence):
            return 0
        list_reserve(&self.heap, 1)
        item.due_us, item.sequence, item.size, item.group = due_us, sequence, size, 0
        item.envelope = <uint8_t*>PyMem_RawMalloc(size)
        if item.envelope == NULL:
            raise MemoryError
        memcpy(item.envelope, envelope, size)
        heap_push(&self.heap, &item)
        self.due_bytes += size
        if self.due_bytes > self.due_bytes_max and self.heap.count > 1:
            self.shed()
        return 0

    cdef void shed(self) noexcept nogil:
        """Give up the latest until half of the bound is left, but for one. What is sorted is a heap as well."""
        cdef Due* last
        qsort(self.heap.items, self.heap.count, sizeof(Due), compare_due)
        while self.heap.count > 1 and self.due_bytes > self.due_bytes_max // 2:
            self.heap.count -= 1
            last = &self.heap.items[self.heap.count]
            self.due_bytes -= last.size
            self.horizon_us, self.horizon_sequence = last.due_us, last.sequence
            PyMem_RawFree(last.envelope)

    def take(self, uint64_t now_us, size_t bytes_max):
        """Take into the hand, which is empty, what is due by now and still waits, in order.

        Args:
            now_us: The time.
            bytes_max: At most so many bytes of envelopes, or one.

        Returns:
            The names of their channels, each once.
        """
        cdef size_t size = 0
        cdef Due item
        cdef Pending entry
        cdef dict names = {}
        assert not self.hand.count, "what was taken before is still in hand"
        while self.heap.count and self.heap.items[0].due_us <= now_us:
            if size and size + self.heap.items[0].size > bytes_max:
                break
            list_reserve(&self.hand, 1)
            item = heap_pop(&self.heap)
            self.due_bytes -= item.size
            # What was cancelled is passed as well: the place up to which all is done lies behind it.
            self.hand.items[self.hand.count] = item
            self.hand.count += 1
            size += item.size
            if self.is_live(item.envelope, &entry):
                names[PyBytes_FromStringAndSize(<const char*>envelope_channel(item.envelope),
                                                item.envelope[CHANNEL_SIZE_AT])] = None
        return list(names)

    @property
    def in_hand(self):
        """How many were taken and not sent."""
        return self.hand.count

    def send(self):
        """Take what is in hand out of the index, as far as it still waits.

        Returns:
            (channel, records as in a PUBLISH, how many) for each channel, in the order of their first ones; and the
            place in the order up to which all is done: (due_us, sequence).
        """
        cdef dict groups = {}
        cdef list sums = []
        cdef list sent = []
        cdef size_t at
        cdef uint32_t left
        cdef Due* item
        cdef Pending entry
        cdef const uint8_t* record
        cdef uint64_t last_us = 0
        cdef uint64_t last_sequence = 0
        self.reserve_changes(self.hand.count)
        list_free(&self.sent)
        self.sent = self.hand
        memset(&self.hand, 0, sizeof(DueList))
        for at in range(self.sent.count):
            item = &self.sent.items[at]
            last_us, last_sequence = item.due_us, item.sequence
            item.group = 0xFFFFFFFF
            if self.is_live(item.envelope, &entry):
                name = PyBytes_FromStringAndSize(<const char*>envelope_channel(item.envelope),
                                                 item.envelope[CHANNEL_SIZE_AT])
                group = groups.get(name)
                if group is None:
                    group = groups[name] = len(sums)
                    sums.append([name, bytearray(), 0])
                item.group = <uint32_t>group
                record = envelope_record(item.envelope)
                left = item.size - <uint32_t>(record - item.envelope)
                whole = sums[item.group]
                whole[1] += PyBytes_FromStringAndSize(<const char*>record, left)
                whole[2] += 1
                self.remove(&self.segments[entry.high >> (64 - SEGMENT_BITS)], self.find(&entry, False))
                self.note_change(&entry, False)
        for name, records, count in sums:
            sent.append((name, bytes(records), count))
        return sent, (last_us, last_sequence)

    def refuse(self, uint32_t group, uint64_t due_us):
        """Have what the last `send` gave for a channel wait again, until another time.

        Args:
            group: The index of the channel in what `send` has answered.
            due_us: The time.

        Returns:
            Records for the slot of that time, and how many.
        """
        cdef size_t at
        cdef Due* item
        cdef Pending entry
        cdef bytearray records = bytearray()
        cdef uint8_t header[RECORD_HEADER_BYTES]
        cdef uint32_t count = 0
        memset(header, 0, RECORD_HEADER_BYTES)
        self.reserve_changes(self.sent.count)
        for at in range(self.sent.count):
            item = &self.sent.items[at]
            if item.group != group:
                continue
            packed = bytearray((<const char*>item.envelope)[:item.size])
            store_u64(<uint8_t*><char*>packed, due_us)
            if packed[ATTEMPTS_AT] < 255:
                packed[ATTEMPTS_AT] += 1
            store_u32(header, RECORD_HEADER_BYTES + item.size)
            records += (<const char*>header)[:RECORD_HEADER_BYTES]
            records += packed
            self.hash_envelope(item.envelope, &entry)
            entry.due_us = due_us
            self.insert(&entry)
            self.note_change(&entry, True)
            count += 1
        return bytes(records), count

    # .. finer slots ..

    def spread(self, bytes chunk not None, uint64_t after, uint64_t until, uint64_t cursor_s):
        """Divide the chunk of a coarse slot among the finer slots of its times.

        What does not wait any more is left out once the index is complete. Cancellations go along: what they cancel may
        be in a finer slot already.

        Args:
            chunk: The chunk.
            after: The sequence behind which to begin.
            until: The sequence before which to stop.
            cursor_s: The second at which the wheel stands.

        Returns:
            (level, slot, records as in a PUBLISH, how many) for each slot.
        """
        cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
        cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
        cdef const uint8_t* envelope
        cdef uint64_t sequence = load_u64(base + CHUNK_FIRST)
        cdef uint64_t due_s
        cdef uint32_t size
        cdef int level
        cdef Pending entry
        cdef dict slots = {}
        cdef list divided = []
        cdef bytearray records
        while at < end and sequence < until:
            envelope = at + RECORD_HEADER_BYTES
            size = load_u32(at)
            if sequence > after and (
                not self.complete or envelope[KIND_AT] == ENVELOPE_CANCELLED or self.is_live(envelope, &entry)
            ):
                due_s = load_u64(envelope) // 1000000
                level = level_for(due_s, cursor_s)
                slot = level * SLOTS + slot_at(due_s, level)
                whole = slots.get(slot)
                if whole is None:
                    whole = slots[slot] = [bytearray(), 0]
                records = whole[0]
                records += (<const char*>at)[:size]
                store_u32(<uint8_t*><char*>records + len(records) - size + 8, 0)
                whole[1] += 1
            at += size
            sequence += 1
        for slot, whole in slots.items():
            divided.append((slot // SLOTS, slot % SLOTS, bytes(whole[0]), whole[1]))
        return divided


cdef class Answers:
    """PUBLISHED entries of one frame, those that follow on from each other in one."""

    cdef int add(self, uint64_t due_us, uint8_t flags) except -1:
        """The next record's message is due then."""
        cdef uint8_t* at
        if self.entries is None:
            self.entries = bytearray()
        if self.last_count and self.last_us == due_us and self.last_flags == flags:
            self.last_count += 1
            at = <uint8_t*><char*>self.entries + len(self.entries) - PUBLISHED_ENTRY_BYTES
            store_u32(at + 24, self.last_count)
        else:
            self.entries += b"\0" * PUBLISHED_ENTRY_BYTES
            at = <uint8_t*><char*>self.entries + len(self.entries) - PUBLISHED_ENTRY_BYTES
            store_u64(at, self.number)
            store_u64(at + 16, due_us)
            store_u32(at + 24, 1)
            store_u32(at + 28, self.slot)
            at[32] = self.level
            at[33] = flags
            self.last_us, self.last_flags, self.last_count = due_us, flags, 1
        self.number += 1
        return 0
