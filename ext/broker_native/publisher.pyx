"""A connection that publishes: its channel numbers, its line, and each of its PUBLISH frames decided.

A frame is checked whole before anything of it is taken, and it is taken whole or not at all: its records get their
sequences and are appended to their channel's open chunk, its numbers move the line on, and its answer waits for the end
of the turn or of the group.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from broker_native.channel cimport (
    CLASS_EARLY,
    CLASS_EPHEMERAL,
    CLASS_GROUP,
    CLASS_NONE,
    IDS_HERE,
    STATE_FULL,
    STATE_LEAVING,
    Channel,
    channel_name,
)
from broker_native.growing cimport bytes_append, bytes_release, bytes_reserve
from broker_native.ids cimport (
    IdEntry,
    IdHash,
    IdTable,
    id_hash,
    ids_add,
    ids_find,
    ids_prefetch,
    ids_take_back,
    record_id,
)
from broker_native.ids_ahead cimport IDS_AHEAD_STEP, IdsAhead, ahead_add, ahead_at, ahead_take
from broker_native.layout cimport *
from broker_native.lines cimport Line
from broker_native.open_chunks cimport ChunkMark, chunk_mark
from broker_native.published cimport PublishedEntries
from broker_native.tails cimport Tails

cdef enum:
    SLOT_MAX = (1 << 24) - 1            # the largest number that a connection may give to a channel
    IDS_TOGETHER = 16                   # ids of a frame that are hashed before the first of them is looked up

# Codes of broker.model.errors that the hot path answers with; a test compares them with the registry.
cdef enum:
    CODE_NUMBER_GAP = 1003
    CODE_LIMIT = 1006
    CODE_INVALID_CHANNEL = 3005
    CODE_PAYLOAD_TOO_LARGE = 3009
    CODE_HEADERS_TOO_LARGE = 3010
    CODE_INVALID_RECORD = 3011
    CODE_NUMBER_OVERLAP = 3019
    CODE_NOT_STORED = 3025
    CODE_INVALID_ID = 3034
    CODE_COMMIT_UNKNOWN = 4001
    DUPLICATE = 1                       # no refusal: every number of the frame was taken before
    IDS_ABSENT = 2                      # nor this: the ids of the channel's newest records have to be read back first

CODES = {
    "DUPLICATE": DUPLICATE,
    "IDS_ABSENT": IDS_ABSENT,
    "NUMBER_GAP": CODE_NUMBER_GAP,
    "LIMIT": CODE_LIMIT,
    "INVALID_CHANNEL": CODE_INVALID_CHANNEL,
    "PAYLOAD_TOO_LARGE": CODE_PAYLOAD_TOO_LARGE,
    "HEADERS_TOO_LARGE": CODE_HEADERS_TOO_LARGE,
    "INVALID_RECORD": CODE_INVALID_RECORD,
    "NUMBER_OVERLAP": CODE_NUMBER_OVERLAP,
    "NOT_STORED": CODE_NOT_STORED,
    "INVALID_ID": CODE_INVALID_ID,
    "COMMIT_UNKNOWN": CODE_COMMIT_UNKNOWN,
}


# Its channels are told when it goes, so its tails must be there until then: no collector may clear it beforehand.
@cython.no_gc_clear
cdef class Publisher(PublishedEntries):
    """The publishing side of one connection: its channel numbers, its line, its answers.

    Args:
        tails: Where records go.
        line: The producer's line.
        owner: What answers are sent through; opaque here.
        headers_bytes_max: Limit of a record's headers, bytes.

    Attributes:
        is_own: It is the broker's own: what it stores was decided before, and no id of it is taken for a repetition.
    """

    def __cinit__(self, Tails tails not None, Line line not None, object owner, uint32_t headers_bytes_max):
        self.tails = tails
        self.line = line
        self.owner = owner
        self.headers_bytes_max = headers_bytes_max

    def __dealloc__(self):
        self.leave()
        free(self.slots)
        bytes_release(&self.stamped)

    def sign(self, bytes user not None):
        """Have its records say who has published them, in channels whose profile wants that.

        Args:
            user: The name of who has signed in, 1 to 255 bytes.
        """
        self.stamp = bytes((len(user),)) + user

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
            0 when its records have their sequences, DUPLICATE when all its numbers are known already, IDS_ABSENT when
            it is to be decided anew once the channel has its ids (`Channels.install_ids`), else the code of the
            refusal.
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
        # Asked once a group and channel: what is rare of a channel is in no cache.
        if channel.chunk_class == CLASS_NONE and channel.state == STATE_FULL and not self.is_own:
            return CODE_LIMIT
        if self.flags & RECORD_ID:
            return self.publish_with_ids(channel, body + PUBLISH_HEADER_BYTES, size, count, slot, number)
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
        cdef uint16_t refused = <uint16_t>~<uint16_t>(RECORD_FLAGS_CLIENT | (RECORD_PUBLISHER if self.is_own else 0))
        self.flags = 0
        while count:
            if left < RECORD_HEADER_BYTES:
                return CODE_INVALID_RECORD
            record = load_u32(at)
            flags = load_u16(at + 4)
            if record < RECORD_HEADER_BYTES or record > left or load_u16(at + 6):
                return CODE_INVALID_RECORD
            fields = 0
            if flags:
                if flags & refused:
                    return CODE_INVALID_RECORD
                self.flags |= flags
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
        if flags & RECORD_PUBLISHER:
            if size < 1 or not at[0] or size < 1 + <uint32_t>at[0]:
                return CODE_INVALID_RECORD
            used = 1 + <uint32_t>at[0]
        if flags & RECORD_PRIORITY:
            if size < used + 1 or at[used] > 3:
                return CODE_INVALID_RECORD
            used += 1
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
        if flags & RECORD_ID:
            if size < used + 1:
                return CODE_INVALID_RECORD
            length = at[used]
            if length == 0 or length > RECORD_ID_BYTES_MAX:
                return CODE_INVALID_ID
            if size < used + 1 + length:
                return CODE_INVALID_RECORD
            used += 1 + length
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
            self.open_line(channel, number, 0)
        first = channel.next
        self.append_records(channel, at, count)
        self.line.next = number + count
        if self.line.producer is not None:
            self.line.note(channel.id if channel.level != LEVEL_EPHEMERAL else 0, number, first, count)
        self.answer(channel, number, slot, first, count)
        return 0

    cdef int open_line(self, Channel* channel, uint64_t number, uint32_t runs) except -1:
        """Have the line in the open group, with room to note so many runs."""
        if self.line.producer is not None:
            bytes_reserve(&self.line.group_runs, runs * <size_t>LINE_RUN_BYTES)
        if not self.line.open_first and channel.level != LEVEL_EPHEMERAL:
            self.tails.lines_open.append(self.line)
            self.line.open_first = number
        return 0

    cdef int append_records(self, Channel* channel, const uint8_t* at, uint32_t count) except -1:
        """Append validated records, all of them or none."""
        cdef Tails tails = self.tails
        cdef ChunkMark mark = chunk_mark(channel, tails.closed[channel.chunk_class].count)
        cdef bint stamps = self.stamp is not None and tails.counts[channel.profile].stamps
        try:
            while count:
                if stamps:
                    self.append_stamped(channel, at)
                else:
                    append_record(tails, channel, at)
                at += load_u32(at)
                count -= 1
        except MemoryError:
            tails.take_back(channel, &mark)
            raise
        return 0

    cdef int append_stamped(self, Channel* channel, const uint8_t* at) except -1:
        """Append one validated record of a client, with a field that says whose it is."""
        cdef uint32_t size = load_u32(at)
        cdef uint32_t stamp_bytes = <uint32_t>PyBytes_GET_SIZE(self.stamp)
        cdef uint16_t flags = load_u16(at + 4)
        self.stamped.used = 0
        bytes_reserve(&self.stamped, <size_t>size + stamp_bytes)
        bytes_append(&self.stamped, at, RECORD_HEADER_BYTES)
        bytes_append(&self.stamped, <const uint8_t*>PyBytes_AS_STRING(self.stamp), stamp_bytes)
        bytes_append(&self.stamped, at + RECORD_HEADER_BYTES, size - RECORD_HEADER_BYTES)
        store_u32(self.stamped.data, size + stamp_bytes)
        store_u16(self.stamped.data + 4, flags | RECORD_PUBLISHER)
        return append_record(self.tails, channel, self.stamped.data)

    def stamp_all(self, uint32_t slot, bytes body not None, uint32_t begin):
        """Return the records of a frame that was found good, from `begin` on, as its channel is to have them.

        For records that are not put there now; what stands before them stays as it is.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body) + begin
        cdef uint32_t left = <uint32_t>PyBytes_GET_SIZE(body) - begin
        cdef uint32_t size
        cdef list parts
        if self.stamp is None or not self.tails.counts[self.slots[slot].profile].stamps:
            return body
        parts = [body[:begin]]
        while left:
            size = load_u32(at)
            parts.append((size + <uint32_t>PyBytes_GET_SIZE(self.stamp)).to_bytes(4, "little"))
            parts.append((load_u16(at + 4) | RECORD_PUBLISHER).to_bytes(2, "little"))
            parts.append(PyBytes_FromStringAndSize(<const char*>at + 6, RECORD_HEADER_BYTES - 6))
            parts.append(self.stamp)
            parts.append(PyBytes_FromStringAndSize(<const char*>at + RECORD_HEADER_BYTES,
                                                   <Py_ssize_t>(size - RECORD_HEADER_BYTES)))
            at += size
            left -= size
        return b"".join(parts)

    @property
    def stamps(self):
        """Whether its records may get a stamp."""
        return self.stamp is not None

    cdef int reserve_answer(self, Channel* channel) except -1:
        """Make room for one more PUBLISHED entry where `answer` will put it."""
        cdef bint in_group = channel.chunk_class == CLASS_GROUP
        if not (self.in_group if in_group else self.in_turn):
            return self.reserve_answers(in_group, 1)
        return bytes_reserve(&self.group_answers if in_group else &self.turn_answers, PUBLISHED_ENTRY_BYTES)

    cdef int reserve_answers(self, bint in_group, uint32_t entries) except -1:
        if in_group:
            if not self.in_group:
                self.tails.publishers_group.append(self)
                self.in_group = True
            bytes_reserve(&self.group_answers, entries * <size_t>PUBLISHED_ENTRY_BYTES)
        else:
            if not self.in_turn:
                self.tails.publishers_turn.append(self)
                self.in_turn = True
            bytes_reserve(&self.turn_answers, entries * <size_t>PUBLISHED_ENTRY_BYTES)
        return 0

    # .. records with ids ..

    cdef int publish_with_ids(self, Channel* channel, const uint8_t* at, uint32_t size, uint32_t count, uint32_t slot,
                              uint64_t number) except -1:
        """Decide a frame of which records have ids: those that are known are answered and not taken.

        The broker's own records are all taken, and their ids noted where the channel's are in memory.
        """
        cdef IdTable* table
        cdef uint32_t known, fresh
        if channel.level == LEVEL_EPHEMERAL:
            return CODE_NOT_STORED
        table = NULL
        if self.tails.counts[channel.profile].ids_window_s:
            table = self.tails.ids_of(channel)
            if table == NULL and not self.is_own:
                return IDS_ABSENT
            if self.tails.ids_bytes > self.tails.ids_bytes_max and not (
                    self.tails.make_room_for_ids(channel) or self.is_own):
                return CODE_LIMIT
            if table != NULL:
                self.tails.expire_ids(channel, table)
        known = table.count if table != NULL else 0
        try:
            fresh = self.look_up(channel, table, at, count)
            if fresh == count:
                self.take_records(channel, at, count, slot, number)
            else:
                self.take_decided(channel, at, count, slot, number, fresh)
        except MemoryError:
            if table != NULL:
                ids_take_back(table, table.count - known)
            raise
        self.tails.records += fresh
        self.tails.repeated += count - fresh
        self.tails.record_bytes += size - PUBLISH_HEADER_BYTES
        self.tails.turn_bytes += size
        self.tails.group_bytes += size
        return 0

    cdef size_t fetch_ids(self, const uint8_t* data, size_t size, size_t at) noexcept:
        cdef const IdTable* tables[IDS_AHEAD_STEP]
        cdef IdsAhead* ahead = self.ids_ahead
        cdef uint32_t first = ahead.end
        cdef uint32_t index
        cdef size_t frame
        while ahead.end - first < IDS_AHEAD_STEP and size - at >= FRAME_HEADER_BYTES:
            frame = FRAME_HEADER_BYTES + <size_t>load_u32(data + at)
            if frame > size - at:
                break
            index = ahead.end - first
            tables[index] = self.fetch_id(data + at, frame, ahead)
            at += frame
        # All of them at once: each waits for the page tables, and they do not wait for one another.
        for index in range(ahead.end - first):
            ids_prefetch(tables[index], ahead_at(ahead, first + index))
        return at

    cdef const IdTable* fetch_id(self, const uint8_t* frame, size_t size, IdsAhead* ahead) noexcept:
        """Hash the first id of a frame; answers what it is looked up in, NULL when it has none."""
        cdef const uint8_t* record = frame + FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
        cdef const uint8_t* id
        cdef uint32_t slot, id_size
        cdef IdHash hash
        if size < FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES + RECORD_HEADER_BYTES or frame[4] != KIND_PUBLISH:
            return NULL
        size -= FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
        slot = load_u32(frame + FRAME_HEADER_BYTES)
        if slot >= self.slots_count or self.slots[slot] == NULL or self.slots[slot].ids != IDS_HERE:
            return NULL
        if load_u32(record) < RECORD_HEADER_BYTES or load_u32(record) > size or not load_u16(record + 4) & RECORD_ID:
            return NULL
        id = record_id(record, &id_size)
        if id == NULL:
            return NULL
        hash = id_hash(&self.tails.ids_key, id, id_size)
        ahead_add(ahead, id, &hash)
        return self.tails.ids_of(self.slots[slot])

    cdef void hash_ids(self, const IdTable* table, const uint8_t* at, uint32_t count, IdHash* hashes) noexcept:
        """Hash the ids of some records, and have what they are looked up in on its way into the cache."""
        cdef const IdHash* known
        cdef const uint8_t* id
        cdef uint32_t index
        cdef uint32_t id_size = 0
        cdef uint32_t fetched = 0
        for index in range(count):
            if load_u16(at + 4) & RECORD_ID:
                id = record_id(at, &id_size)
                known = ahead_take(self.ids_ahead, id) if self.ids_ahead != NULL else NULL
                if known != NULL:
                    hashes[index] = known[0]
                    fetched = index + 1
                else:
                    hashes[index] = id_hash(&self.tails.ids_key, id, id_size)
            else:
                hashes[index].low = 0
            at += load_u32(at)
        for index in range(fetched, count):
            ids_prefetch(table, &hashes[index])

    cdef uint32_t look_up(self, Channel* channel, IdTable* table, const uint8_t* at, uint32_t count) except? 0:
        """Find the sequence of each record's id, 0 for none, in `Tails.decided`, and note the ids of the others.

        Returns:
            How many are to be taken.
        """
        cdef uint64_t* decided
        cdef const IdEntry* entry = NULL
        cdef IdHash hashes[IDS_TOGETHER]
        cdef const IdHash* hash
        cdef uint32_t index
        cdef uint32_t fresh = 0
        cdef uint32_t now_s
        cdef size_t bytes_before
        cdef bint short = False
        self.tails.decided.used = 0
        bytes_reserve(&self.tails.decided, count * sizeof(uint64_t))
        decided = <uint64_t*>self.tails.decided.data
        memset(decided, 0, count * sizeof(uint64_t))
        if table == NULL:
            return count
        now_s = self.tails.now_s()
        bytes_before = table.bytes
        for index in range(count):
            if index % IDS_TOGETHER == 0:
                self.hash_ids(table, at, min(count - index, <uint32_t>IDS_TOGETHER), hashes)
            if load_u16(at + 4) & RECORD_ID:
                hash = &hashes[index % IDS_TOGETHER]
                if not self.is_own:
                    entry = ids_find(table, hash)
                if entry != NULL:
                    decided[index] = entry.sequence
                elif ids_add(table, hash, channel.next + fresh, now_s):
                    short = True
                    break
            fresh += not decided[index]
            at += load_u32(at)
        self.tails.ids_bytes += table.bytes - bytes_before
        if short:
            raise MemoryError
        return fresh

    cdef uint32_t count_runs(self, uint32_t count) noexcept:
        """How many runs of records one after the other, all to be taken or all there already, were decided."""
        cdef const uint64_t* decided = <const uint64_t*>self.tails.decided.data
        cdef uint32_t runs = 1
        cdef uint32_t index
        for index in range(1, count):
            runs += decided[index] != (decided[index - 1] + 1 if decided[index - 1] else 0)
        return runs

    cdef int take_decided(self, Channel* channel, const uint8_t* at, uint32_t count, uint32_t slot, uint64_t number,
                          uint32_t fresh) except -1:
        """Take the records that are to be taken, and note the answers of all; as `take_records`."""
        cdef uint32_t runs = self.count_runs(count)
        if fresh and channel.chunk_class == CLASS_NONE:
            self.tails.prepare(channel)
        if not fresh:
            # There must be a group to carry the numbers of the line, and what the answers rest on.
            self.tails.touch(channel)
        self.reserve_answers(True, runs)
        self.reserve_answers(False, runs)
        self.open_line(channel, number, runs)
        if fresh:
            self.append_decided(channel, at, count)
        self.line.next = number + count
        return self.answer_decided(channel, count, slot, number)

    cdef int append_decided(self, Channel* channel, const uint8_t* at, uint32_t count) except -1:
        """Append the records that are to be taken, all of them or none."""
        cdef const uint64_t* decided = <const uint64_t*>self.tails.decided.data
        cdef Tails tails = self.tails
        cdef ChunkMark mark = chunk_mark(channel, tails.closed[channel.chunk_class].count)
        cdef bint stamps = self.stamp is not None and tails.counts[channel.profile].stamps
        cdef uint32_t index
        try:
            for index in range(count):
                if not decided[index]:
                    if stamps:
                        self.append_stamped(channel, at)
                    else:
                        append_record(tails, channel, at)
                at += load_u32(at)
        except MemoryError:
            tails.take_back(channel, &mark)
            raise
        return 0

    cdef int answer_decided(self, Channel* channel, uint32_t count, uint32_t slot, uint64_t number) except -1:
        """Note where each run of the frame's numbers is: in the line, and in its answer."""
        cdef const uint64_t* decided = <const uint64_t*>self.tails.decided.data
        cdef uint64_t next_taken = channel.next
        cdef uint64_t first
        cdef uint32_t index, length
        cdef bint in_group
        for index in range(count):
            next_taken -= not decided[index]
        index = 0
        while index < count:
            length = 1
            while index + length < count and decided[index + length] == (
                    decided[index] + length if decided[index] else 0):
                length += 1
            first = decided[index] if decided[index] else next_taken
            if self.line.producer is not None:
                self.line.note(channel.id, number, first, length)
            if decided[index]:
                # What readers have, or get with this turn, was answered then as well.
                in_group = channel.level != LEVEL_ACCEPTED or (
                    channel.chunk_class != CLASS_EARLY and first + length > channel.seen_next)
                self.answer_repeated(channel, number, slot, first, length, in_group)
            else:
                self.answer(channel, number, slot, first, length)
                next_taken += length
            number += length
            index += length
        return 0

    def judge(self, bytes body not None, uint32_t begin):
        """Say what `publish` would of a frame whose records begin at `begin`, and take nothing of it.

        Returns:
            0 for a good one, DUPLICATE, or a code.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(body)
        cdef uint32_t slot, count
        cdef uint64_t number
        if size < begin or begin < PUBLISH_HEADER_BYTES:
            return CODE_INVALID_RECORD
        slot, count, number = load_u32(at), load_u32(at + 4), load_u64(at + 8)
        if slot >= self.slots_count or self.slots[slot] == NULL:
            return CODE_INVALID_CHANNEL
        if count == 0 or count > PUBLISH_COUNT_MAX:
            return CODE_INVALID_RECORD
        if number >= self.line.next and self.tails.refuse_code:
            return CODE_COMMIT_UNKNOWN if number < self.line.closed_next else self.tails.refuse_code
        if number != self.line.next:
            return self.out_of_line(number, count)
        if self.slots[slot].state == STATE_FULL:
            return CODE_LIMIT
        return self.check_records(self.slots[slot], at + begin, size - begin, count)

    def take_elsewhere(self, bytes entries not None):
        """Take the numbers of a frame that was found good and whose records do not go to its channel now.

        Args:
            entries: Its PUBLISHED entries, sent when the open group is committed; whoever has put something into that
                group keeps it from being empty.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(entries)
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(entries)
        cdef uint32_t used
        if not self.in_group:
            self.tails.publishers_group.append(self)
            self.in_group = True
        bytes_reserve(&self.group_answers, size)
        if self.line.producer is not None:
            bytes_reserve(&self.line.group_runs, size // PUBLISHED_ENTRY_BYTES * LINE_RUN_BYTES)
        if not self.line.open_first:
            self.tails.lines_open.append(self.line)
            self.line.open_first = load_u64(at)
        for used in range(0, size, PUBLISHED_ENTRY_BYTES):
            if self.line.producer is not None:
                self.line.note(0, load_u64(at + used), 0, load_u32(at + used + 24))
            self.line.next = load_u64(at + used) + load_u32(at + used + 24)
        bytes_append(&self.group_answers, at, size)

    def publish_frame(self, bytes body):
        """Decide the body of one PUBLISH frame: `publish` for Python."""
        return self.publish(<const uint8_t*>PyBytes_AS_STRING(body), <uint32_t>PyBytes_GET_SIZE(body))

    def name_of(self, uint32_t number):
        """The name of the channel under a number, None when it has none."""
        if number >= self.slots_count or self.slots[number] == NULL:
            return None
        return PyBytes_FromStringAndSize(channel_name(self.slots[number]), self.slots[number].name_size)

    def level_of(self, uint32_t number):
        """The level of the channel under a number, 0 when it has none."""
        if number >= self.slots_count or self.slots[number] == NULL:
            return 0
        return self.slots[number].level


cdef inline int append_record(Tails tails, Channel* channel, const uint8_t* at) except -1:
    """Append one validated record."""
    cdef uint64_t expiry_s = 0
    cdef uint16_t flags = load_u16(at + 4)
    cdef const uint8_t* field = at + RECORD_HEADER_BYTES
    if flags & RECORD_EXPIRY:
        if flags & RECORD_PUBLISHER:
            field += 1 + field[0]
        if flags & RECORD_PRIORITY:
            field += 1
        expiry_s = tails.now_us // 1000000 + load_u32(field)
    return tails.append(channel, at, load_u32(at), 1, expiry_s)
