"""What one durable consumer has to do: what waits, who has what under which lease, and what is done.

A pure state machine: no clock, no I/O. Times are broker time in microseconds since 1970; members and channels are
numbers. It belongs to one thread.

**Jobs.** Chunks come in as DELIVER frames (`take`) of one subscription that tells names. A record is a job until it is
done; a GONE run is done at once, and so are sequences that the stream leaves out (retention took them). Records of
ephemeral channels are passed over: a durable consumer reads what is stored. What has come once is known: when the
stream is read again from an earlier place, jobs that wait, are leased or are done are passed over, and whatever stands
at the floor of the bus or before it. A job whose record is past its EXPIRY is dropped when it would be granted; it
counts as done.

**Order.** Jobs are granted in the order in which they came, with `lanes` by the PRIORITY of their records: of 15 grants
8 go to lane 0, then 4, 2 and 1, as far as these have any. What comes again goes before what is new in its lane, in the
order in which it comes back. With `by_key` at most one job of a key is under way, and the next of the key waits until
it is done or dead, however long it is delayed; a key means the same in every channel. With `exclusive` there is one
member and one order: a job that comes back takes all that were granted after it along, and a delayed one holds up all
behind it. Exclusive has neither lanes nor keys.

**Leases.** A grant is one JOBS frame of consecutive leases, counted from `first_lease` on and never given twice. A
lease ends at its deadline (`lease_ms` after the grant, 0: never), by nack, or with its member; the job comes again. By
release a member that is about to leave gives back what it has not begun, and is granted nothing more. As
long as nobody was granted it anew the old lease still serves for ack and reject by its member, while that is there.

**Attempts** are grants, but for those that were released. When a job comes back after `attempts_max` of them (0: no
limit) it is dead (DEAD_ATTEMPTS); so is a rejected one at once (DEAD_REJECTED). A dead job releases its key. It is done
when `dead()` has handed it out, and the next `changes()` says so: the copy and that go into the same group. In exclusive mode the jobs that come along with
another one do not have their attempt counted.

**What is stored.** `changes()` says what has been done since it was asked last, and attempts and delays: a first grant
is in memory only. `snapshot()` is the whole. Both begin with the floor of the bus: everything up to that place is done
(meaningful when the frames came from a subscription that stands by the bus). By `by_position` the floor of each channel
is kept for good, so that reading may begin by positions; without it a channel is left out once the bus's floor has
passed all that came of it. After a failed commit another `Jobs` with `first_lease=old.next_lease` is restored, with
`old.seen`.

    header, 48 bytes: u8 kind (1 snapshot, 2 changes) | u8 format 1 | u16 0 | u32 sections | u64 floor's group |
      u32 floor's index | u32 0 | u64 seen's group | u32 seen's index | u32 0 | u64 0
    section, 48 bytes: u64 channel | u64 epoch | u64 floor | u64 last group | u32 last index | u32 runs | u32 notes |
      u32 0, then runs x (u64 first | u64 last), then notes x (u64 sequence | u64 due_us | u32 attempts)

`last` is the place of the newest chunk that came of the channel's epoch, 2^64 - 1 and 2^32 - 1 when none has come yet.
Runs are done and above the floor. Of several notes on one sequence the last one counts.

Invariants: a track's jobs are what is not done up to its `known`, so what is done needs no list of its own: it is the
gaps. A lease's place points to a job exactly as long as that job's `lease` is this one. What a call costs depends on
what it touches, never on how much waits. A MemoryError leaves a state that is sound but may lack what was asked for:
make another one.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from broker_native.growing cimport bytes_append, bytes_release, bytes_take
from broker_native.layout cimport (
    ACK_ENTRY_BYTES,
    ACK_HEADER_BYTES,
    CHUNK_CHANNEL,
    CHUNK_COUNT,
    CHUNK_EPOCH,
    CHUNK_FIRST,
    CHUNK_HEADER_BYTES,
    CHUNK_TIME,
    DELIVER_FLAG_EARLY,
    DELIVER_FLAG_NAME,
    DELIVER_HEADER_BYTES,
    EPHEMERAL_ID,
    FRAME_HEADER_BYTES,
    GONE_RECORD_BYTES,
    JOB_FLAG_NAME,
    JOB_FLAG_REDELIVERED,
    JOB_HEADER_BYTES,
    JOBS_BODY_BYTES_MAX,
    JOBS_HEADER_BYTES,
    KIND_DELIVER,
    KIND_JOBS,
    RECORD_EXPIRY,
    RECORD_GONE,
    RECORD_HEADER_BYTES,
    RECORD_KEY,
    RECORD_NUMBER,
    RECORD_PRIORITY,
    RECORD_PUBLISHER,
    load_u16,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
    store_u64,
)
from broker_native.slabs cimport (
    ITEM_BYTES_MAX,
    ITEM_CLASSES,
    ITEM_STEP,
    memory_prefetch,
    slabs_close,
    slabs_give,
    slabs_take,
)
from broker_native.slots cimport table_close, table_find, table_insert, table_open, table_remove

cdef extern from "<stdint.h>" nogil:
    const uint64_t U64_MAX "UINT64_MAX"
    const uint32_t U32_MAX "UINT32_MAX"

cdef extern from *:
    """
    #define JOB_DELAY_MS_MAX UINT64_C(31622400000)  /* 366 days */
    #define JOB_SEQUENCE_MAX UINT64_C(0x7FFFFFFFFFFFFFFF)
    """
    const uint64_t JOB_DELAY_MS_MAX
    const uint64_t JOB_SEQUENCE_MAX

cdef enum:
    JOB_WAITING = 0
    JOB_LEASED = 1
    JOB_DELAYED = 2
    JOB_DEAD = 3

    FLAG_LISTED = 1               # in its lane
    FLAG_AGAIN = 2                # it has come back
    FLAG_SEEN = 4                 # somebody may have seen it, whatever its attempts say
    FLAG_NOTED = 8                # its attempts are stored

    TIMER_JOB = 0
    TIMER_GRANT = 1

    VERB_ACK = 1
    VERB_NACK = 2
    VERB_REJECT = 3
    VERB_EXTEND = 4
    VERB_ACK_THROUGH = 5
    VERB_RELEASE = 6

    REASON_REJECTED = 1
    REASON_ATTEMPTS = 2

    CODE_LEASE_UNKNOWN = 3029
    CODE_LEASE_EXPIRED = 3030
    CODE_INVALID_TIME = 3031

    JOB_OVERHEAD_BYTES = 192
    LEASES_PER_ACK_MAX = 1 << 20
    IDLE_BYTES_MAX = 256 << 10    # of jobs that are done, kept for the next ones
    IDLE_MAPPED_MAX = 1 << 20     # of the system, with which nothing is kept once no job is left
    ATTEMPTS_MAX = 65535
    PRIORITY_NORMAL = 2
    RECORD_TIME = 8               # offset of a record's time
    GONE_RUN = 16

    STATE_HEADER_BYTES = 48
    STATE_SNAPSHOT = 1
    STATE_CHANGES = 2
    STATE_FORMAT = 1
    SECTION_BYTES = 48
    RUN_BYTES = 16
    NOTE_BYTES = 20

JOB_BYTES = JOB_OVERHEAD_BYTES
DELAY_MS_MAX = JOB_DELAY_MS_MAX
ACK_LEASES_MAX = LEASES_PER_ACK_MAX


# -- places and arrays -------------------------------------------------------------------------------------------------


cdef inline Place place_at(uint64_t group, uint32_t index) noexcept nogil:
    cdef Place place
    place.group = group
    place.index = index
    return place


cdef inline bint place_after(Place left, Place right) noexcept nogil:
    """Whether the left one is further."""
    return left.group > right.group or (left.group == right.group and left.index > right.index)


cdef inline Place place_max(Place left, Place right) noexcept nogil:
    return left if place_after(left, right) else right


cdef inline bint place_nowhere(Place place) noexcept nogil:
    return place.group == U64_MAX and place.index == U32_MAX


cdef int grow(void** items, uint32_t* capacity, uint32_t count, size_t item_bytes) except -1:
    """Make room for more than so many items."""
    cdef uint32_t room
    cdef void* moved
    if count < capacity[0]:
        return 0
    room = <uint32_t>(2 * capacity[0] if capacity[0] else 8)
    while room <= count:
        room *= 2
    moved = realloc(items[0], room * item_bytes)
    if moved == NULL:
        raise MemoryError
    items[0] = moved
    capacity[0] = room
    return 0


cdef inline uint64_t mixed(uint64_t seed, uint64_t id) noexcept nogil:
    """Where an id is in a table; one to one."""
    cdef uint64_t value = (id ^ (seed >> 9)) * <uint64_t>0x9E3779B97F4A7C15
    value = (value ^ (value >> 32) ^ seed) * <uint64_t>0xD6E8FEB86659FD93
    return value ^ (value >> 32)


cdef inline uint64_t key_hash(uint64_t seed, const uint8_t* at, size_t size) noexcept nogil:
    """A keyed hash; the seed is random, so keys cannot be chosen to collide."""
    cdef uint64_t value = seed ^ (size * <uint64_t>0x9E3779B97F4A7C15)
    cdef uint64_t word = 0
    while size >= 8:
        value = (value ^ load_u64(at)) * <uint64_t>0xFF51AFD7ED558CCD
        value ^= value >> 32
        at += 8
        size -= 8
    while size > 0:
        size -= 1
        word = (word << 8) | at[size]
    value = (value ^ word ^ (seed >> 7)) * <uint64_t>0xC4CEB9FE1A85EC53
    return value ^ (value >> 29)


cdef int job_earlier(const void* left, const void* right) noexcept nogil:
    """Compare two `Job*` by when they were taken."""
    cdef uint64_t first = (<Job* const*>left)[0].order
    cdef uint64_t second = (<Job* const*>right)[0].order
    return (first > second) - (first < second)


cdef int channel_before(const void* left, const void* right) noexcept nogil:
    """Compare two `Channel*` by id."""
    cdef uint64_t first = (<Channel* const*>left)[0].id
    cdef uint64_t second = (<Channel* const*>right)[0].id
    return (first > second) - (first < second)


# -- lists -------------------------------------------------------------------------------------------------------------


cdef inline void list_append(JobList* jobs, Job* job) noexcept nogil:
    job.next = NULL
    job.previous = jobs.last
    if jobs.last != NULL:
        jobs.last.next = job
    else:
        jobs.first = job
    jobs.last = job


cdef inline void list_prepend(JobList* jobs, Job* job) noexcept nogil:
    job.previous = NULL
    job.next = jobs.first
    if jobs.first != NULL:
        jobs.first.previous = job
    else:
        jobs.last = job
    jobs.first = job


cdef inline void list_remove(JobList* jobs, Job* job) noexcept nogil:
    if job.previous != NULL:
        job.previous.next = job.next
    else:
        jobs.first = job.next
    if job.next != NULL:
        job.next.previous = job.previous
    else:
        jobs.last = job.previous


cdef inline void held_append(Member* member, Job* job) noexcept nogil:
    job.held_next = NULL
    job.held_previous = member.held_last
    if member.held_last != NULL:
        member.held_last.held_next = job
    else:
        member.held_first = job
    member.held_last = job


cdef inline void held_remove(Member* member, Job* job) noexcept nogil:
    if job.held_previous != NULL:
        job.held_previous.held_next = job.held_next
    else:
        member.held_first = job.held_next
    if job.held_next != NULL:
        job.held_next.held_previous = job.held_previous
    else:
        member.held_last = job.held_previous


cdef inline void track_append(Track* track, Job* job) noexcept nogil:
    job.track_next = NULL
    job.track_previous = track.end
    if track.end != NULL:
        track.end.track_next = job
    else:
        track.first = job
    track.end = job


cdef inline void track_remove(Track* track, Job* job) noexcept nogil:
    if job.track_previous != NULL:
        job.track_previous.track_next = job.track_next
    else:
        track.first = job.track_next
    if job.track_next != NULL:
        job.track_next.track_previous = job.track_previous
    else:
        track.end = job.track_previous


cdef inline void chain_append(Chain* chain, Job* job) noexcept nogil:
    job.chain_next = NULL
    job.chain_previous = chain.last
    if chain.last != NULL:
        chain.last.chain_next = job
    else:
        chain.first = job
    chain.last = job


cdef inline void chain_remove(Chain* chain, Job* job) noexcept nogil:
    if job.chain_previous != NULL:
        job.chain_previous.chain_next = job.chain_next
    else:
        chain.first = job.chain_next
    if job.chain_next != NULL:
        job.chain_next.chain_previous = job.chain_previous
    else:
        chain.last = job.chain_previous


# -- what a track remembers of before a restart ------------------------------------------------------------------------


cdef Restored* restored_of(Track* track) except NULL:
    if track.restored == NULL:
        track.restored = <Restored*>malloc(sizeof(Restored))
        if track.restored == NULL:
            raise MemoryError
        memset(track.restored, 0, sizeof(Restored))
    return track.restored


cdef void restored_free(Track* track) noexcept nogil:
    if track.restored != NULL:
        free(track.restored.runs)
        free(track.restored.notes)
        free(track.restored)
        track.restored = NULL


cdef int restored_run(Restored* restored, uint64_t first, uint64_t last) except -1:
    """Add a run, joined with those that it touches. `last` is below 2^63."""
    cdef Run* runs
    cdef uint32_t low = restored.runs_at, high = restored.runs_count, middle
    grow(<void**>&restored.runs, &restored.runs_capacity, restored.runs_count, sizeof(Run))
    runs = restored.runs
    while low < high:
        middle = low + (high - low) // 2
        if runs[middle].last + 1 < first:
            low = middle + 1
        else:
            high = middle
    # From `low` on they end no earlier than right before it; those below `high` touch it.
    while high < restored.runs_count and runs[high].first <= last + 1:
        high += 1
    if low < high:
        first = min(first, runs[low].first)
        last = max(last, runs[high - 1].last)
        memmove(&runs[low + 1], &runs[high], (restored.runs_count - high) * sizeof(Run))
        restored.runs_count -= high - low - 1
    else:
        memmove(&runs[low + 1], &runs[low], (restored.runs_count - low) * sizeof(Run))
        restored.runs_count += 1
    runs[low].first = first
    runs[low].last = last
    return 0


cdef int restored_note(Restored* restored, uint64_t sequence, uint64_t due_us, uint32_t attempts) except -1:
    """Add a note, in the place of an older one."""
    cdef Note* notes
    cdef uint32_t low = restored.notes_at, high = restored.notes_count, middle
    grow(<void**>&restored.notes, &restored.notes_capacity, restored.notes_count, sizeof(Note))
    notes = restored.notes
    while low < high:
        middle = low + (high - low) // 2
        if notes[middle].sequence < sequence:
            low = middle + 1
        else:
            high = middle
    if low == restored.notes_count or notes[low].sequence != sequence:
        memmove(&notes[low + 1], &notes[low], (restored.notes_count - low) * sizeof(Note))
        restored.notes_count += 1
    notes[low].sequence = sequence
    notes[low].due_us = due_us
    notes[low].attempts = attempts
    return 0


cdef void restored_pass(Track* track) noexcept nogil:
    """Forget what is not above `known`, and know what is done right above it."""
    cdef Restored* restored = track.restored
    cdef Run* run
    while restored.runs_at < restored.runs_count:
        run = &restored.runs[restored.runs_at]
        if run.first > track.known + 1:
            break
        track.known = max(track.known, run.last)
        restored.runs_at += 1
    while restored.notes_at < restored.notes_count and restored.notes[restored.notes_at].sequence <= track.known:
        restored.notes_at += 1
    if restored.runs_at == restored.runs_count and restored.notes_at == restored.notes_count:
        restored_free(track)


cdef bint restored_done(const Restored* restored, uint64_t sequence) noexcept nogil:
    """Whether a sequence above `known` is done."""
    cdef uint32_t at
    for at in range(restored.runs_at, restored.runs_count):
        if restored.runs[at].last >= sequence:
            return restored.runs[at].first <= sequence
    return False


cdef void restored_settle(Track* track) noexcept nogil:
    """Once all of it has been read: leave out notes on what is done."""
    cdef Restored* restored = track.restored
    cdef uint32_t at, kept = 0
    if restored == NULL:
        return
    restored_pass(track)
    restored = track.restored
    if restored == NULL:
        return
    for at in range(restored.notes_at, restored.notes_count):
        if not restored_done(restored, restored.notes[at].sequence):
            restored.notes[kept] = restored.notes[at]
            kept += 1
    restored.notes_at = 0
    restored.notes_count = kept
    restored_pass(track)


cdef inline uint64_t track_floor(const Track* track) noexcept nogil:
    return track.first.sequence - 1 if track.first != NULL else track.known


# -- records -----------------------------------------------------------------------------------------------------------


cdef struct Fields:
    uint32_t priority
    uint32_t expiry_s             # 0: none
    uint32_t key_bytes
    const uint8_t* key            # NULL: none


cdef bint fields_read(Fields* fields, const uint8_t* record, uint32_t size) noexcept nogil:
    """Read what the order of jobs depends on; whether the fields fit into the record."""
    cdef uint16_t flags = load_u16(record + 4)
    cdef uint64_t at = RECORD_HEADER_BYTES
    fields.priority = PRIORITY_NORMAL
    fields.expiry_s = 0
    fields.key = NULL
    if flags & RECORD_PUBLISHER:
        if size < at + 1:
            return False
        at += 1 + <uint64_t>record[at]
    if flags & RECORD_NUMBER:
        at += 8
    if flags & RECORD_PRIORITY:
        if size < at + 1:
            return False
        fields.priority = min(record[at], <uint32_t>(LANES - 1))
        at += 1
    if flags & RECORD_EXPIRY:
        if size < at + 4:
            return False
        fields.expiry_s = load_u32(record + at)
        at += 4
    if flags & RECORD_KEY:
        if size < at + 2 or size < at + 2 + load_u16(record + at):
            return False
        fields.key_bytes = load_u16(record + at)
        fields.key = record + at + 2
        at += 2 + <uint64_t>fields.key_bytes
    return at <= size


# -- the consumer ------------------------------------------------------------------------------------------------------


@cython.final
cdef class Jobs:
    """The jobs of one consumer.

    Args:
        lanes: Whether jobs are granted by priority.
        by_key: Whether at most one job of a key is under way.
        exclusive: Whether there is one member at a time, and everything goes in order.
        by_position: Whether the floors of channels are kept for good.
        lease_ms: How long a lease lasts, to DELAY_MS_MAX; 0 for ever.
        attempts_max: After how many attempts a job that comes back is dead, to 65,535; 0 for never.
        backoff_first_ms, backoff_longest_ms: Before the second attempt, and before any, to DELAY_MS_MAX; each times a
            chance of 0.5 to 1.5.
        first_lease: The number of the first lease, from 1.
        seed: Of the chance in back-offs, and of the hashes of keys.

    Raises:
        ValueError: A number is out of its range, or exclusive comes with lanes or keys.
    """

    def __cinit__(self, *, bint lanes=False, bint by_key=False, bint exclusive=False, bint by_position=False,
                  uint64_t lease_ms=30_000, uint32_t attempts_max=0, uint64_t backoff_first_ms=1_000,
                  uint64_t backoff_longest_ms=60_000, uint64_t first_lease, uint64_t seed):
        if exclusive and (lanes or by_key):
            raise ValueError("exclusive: has neither lanes nor keys")
        if first_lease < 1:
            raise ValueError(f"lease: got {first_lease}, at least 1")
        self.by_lanes = lanes
        self.by_key = by_key
        self.exclusive = exclusive
        self.by_position = by_position
        self.first_lease = self.next_lease = first_lease
        self.random = seed
        self.hash_seed = mixed(seed, 0x6A6F6273)
        self.configure(lease_ms=lease_ms, attempts_max=attempts_max, backoff_first_ms=backoff_first_ms,
                       backoff_longest_ms=backoff_longest_ms)
        if table_open(&self.by_id) or (by_key and table_open(&self.chains)):
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t at
        self.clear()
        self.idle_clear()
        for at in range(self.members_count):
            free(self.members[at].told)
            free(self.members[at])
        for at in range(self.channels_count):
            free(self.channels[at].name)
            free(self.channels[at])
        free(self.members)
        free(self.channels)
        free(self.pages)
        free(self.timers)
        free(self.acks)
        free(self.notes)
        table_close(&self.by_id)
        table_close(&self.chains)
        slabs_close(&self.heap)

    def configure(self, *, uint64_t lease_ms, uint32_t attempts_max, uint64_t backoff_first_ms,
                  uint64_t backoff_longest_ms):
        """Change settings, from the next grant and the next back-off on; the arguments are those of the class."""
        if lease_ms > JOB_DELAY_MS_MAX:
            raise ValueError(f"lease: got {lease_ms} ms, range 0 to {DELAY_MS_MAX}")
        if backoff_first_ms > backoff_longest_ms or backoff_longest_ms > JOB_DELAY_MS_MAX:
            raise ValueError(f"back-off: got {backoff_first_ms} and {backoff_longest_ms} ms, ascending in 0 to "
                             f"{DELAY_MS_MAX}")
        if attempts_max > ATTEMPTS_MAX:
            raise ValueError(f"attempts: got {attempts_max}, range 0 to {ATTEMPTS_MAX}")
        self.lease_ms = lease_ms
        self.attempts_max = attempts_max
        self.backoff_first_ms = backoff_first_ms
        self.backoff_longest_ms = backoff_longest_ms

    cdef void clear(self) noexcept:
        """Give back all jobs and what is known of channels, but for their names."""
        cdef uint32_t at
        cdef Job* job
        cdef Track* track
        cdef Member* member
        for at in range(self.members_count):
            member = self.members[at]
            member.held_first = member.held_last = NULL
            member.jobs = 0
            member.record_bytes = 0
        while self.lots_first != NULL:
            job = self.lots_first.first
            if job.grant != NULL:
                job.grant.left -= 1
                if not job.grant.left:
                    slabs_give(&self.heap, job.grant)
            if job.chain != NULL:
                chain_remove(job.chain, job)
                if job.chain.first == NULL:
                    table_remove(&self.chains, job.chain.hash, job.chain)
                    slabs_give(&self.heap, job.chain)
            self.job_free(job)
        for at in range(self.pages_count):
            free(self.pages[at])
        self.told()
        for at in range(self.channels_count):
            while self.channels[at].tracks != NULL:
                track = self.channels[at].tracks
                self.channels[at].tracks = track.next
                restored_free(track)
                slabs_give(&self.heap, track)
        self.pages_count = 0
        self.page = NULL
        self.timers_count = 0
        memset(self.lanes, 0, sizeof(self.lanes))
        self.dying.first = self.dying.last = NULL
        self.order = 0
        self.last_floor = self.vouched = self.seen_place = self.flagged = place_at(0, 0)
        self.anew = False

    # -- channels ------------------------------------------------------------------------------------------------------

    cdef Channel* channel_of(self, uint64_t id) except NULL:
        """A channel by its id, made when it is new."""
        cdef Channel* channel = self.recent
        cdef uint64_t key
        if channel != NULL and channel.id == id:
            return channel
        key = mixed(self.hash_seed, id)
        channel = <Channel*>table_find(&self.by_id, key)
        if channel == NULL:
            grow(<void**>&self.channels, &self.channels_capacity, self.channels_count, sizeof(Channel*))
            channel = <Channel*>malloc(sizeof(Channel))
            if channel == NULL:
                raise MemoryError
            memset(channel, 0, sizeof(Channel))
            channel.id = id
            channel.slot = self.channels_count
            if table_insert(&self.by_id, key, channel):
                free(channel)
                raise MemoryError
            self.channels[self.channels_count] = channel
            self.channels_count += 1
        self.recent = channel
        return channel

    cdef Track* track_of(self, Channel* channel, uint64_t epoch) except NULL:
        """What is known of an epoch of a channel, made when it is new."""
        cdef Track** link = &channel.tracks
        cdef Track* track
        while link[0] != NULL and link[0].epoch < epoch:
            link = &link[0].next
        if link[0] != NULL and link[0].epoch == epoch:
            return link[0]
        track = <Track*>slabs_take(&self.heap, sizeof(Track))
        if track == NULL:
            raise MemoryError
        track.channel = channel
        track.epoch = epoch
        track.last = place_at(U64_MAX, U32_MAX)
        track.next = link[0]
        link[0] = track
        return track

    # -- reading -------------------------------------------------------------------------------------------------------

    def take(self, bytes frames not None):
        """Take what the stream says.

        Args:
            frames: Whole frames of one subscription that tells names; copied. Checksums are not looked at.

        Returns:
            The other frames than DELIVER: (kind, body).

        Raises:
            ValueError: They are not well formed; what stands before the damage is taken.
        """
        cdef const uint8_t* begin = <const uint8_t*>PyBytes_AS_STRING(frames)
        cdef const uint8_t* end = begin + PyBytes_GET_SIZE(frames)
        cdef const uint8_t* at = begin
        cdef uint32_t size
        cdef list others = []
        while at < end:
            if end - at < FRAME_HEADER_BYTES or load_u32(at) > <size_t>(end - at) - FRAME_HEADER_BYTES:
                raise ValueError(f"frames: got {end - begin} bytes that end within a frame")
            size = load_u32(at)
            if at[4] == KIND_DELIVER:
                if self.take_delivery(at, at + FRAME_HEADER_BYTES + size):
                    raise ValueError(f"frames: the delivery at byte {at - begin} is damaged")
            else:
                others.append((at[4], PyBytes_FromStringAndSize(<const char*>at + FRAME_HEADER_BYTES, size)))
            at += FRAME_HEADER_BYTES + size
        return others

    cdef int take_delivery(self, const uint8_t* frame, const uint8_t* end) except -1:
        """Take a DELIVER frame; 1 when it is damaged."""
        cdef const uint8_t* at = frame + FRAME_HEADER_BYTES
        cdef const uint8_t* name = NULL
        cdef uint8_t flags = frame[5]
        cdef Channel* channel
        cdef uint8_t* copy
        cdef Place place
        cdef bint passed
        if end - at < DELIVER_HEADER_BYTES:
            return 1
        place = place_at(load_u64(at + 8), load_u32(at + 4))
        at += DELIVER_HEADER_BYTES
        if flags & DELIVER_FLAG_NAME:
            if end - at < 1 or end - at < 1 + at[0]:
                return 1
            name = at
            at += 1 + at[0]
        if end - at < CHUNK_HEADER_BYTES or load_u32(at) != <size_t>(end - at):
            return 1
        channel = self.channel_of(load_u64(at + CHUNK_CHANNEL))
        if name != NULL and not (channel.name != NULL and channel.name_bytes == name[0]
                                 and memcmp(channel.name, name + 1, name[0]) == 0):
            copy = <uint8_t*>realloc(channel.name, <size_t>name[0] + 1)
            if copy == NULL:
                raise MemoryError
            memcpy(copy, name + 1, name[0])
            channel.name = copy
            channel.name_bytes = name[0]
        if channel.id >= EPHEMERAL_ID:
            return 0
        self.find_floor()
        passed = not self.by_position and place.group and not place_after(place, self.last_floor)
        if not place.group:
            # A run of GONE that stands for several groups has no place of its own.
            place = self.vouched
        if not flags & DELIVER_FLAG_EARLY:
            self.vouched = place_max(self.vouched, place)
        elif place.group > 2:
            # It came before the groups that are on their way to the disk.
            self.vouched = place_max(self.vouched, place_at(place.group - 2, U32_MAX))
        return self.take_chunk(channel, at, end, place, passed)

    cdef int take_chunk(self, Channel* channel, const uint8_t* chunk, const uint8_t* end, Place place,
                        bint passed) except -1:
        """Take a chunk of which the header fits; 1 when it is damaged. All of it is done if the floor has passed it."""
        cdef uint64_t sequence = load_u64(chunk + CHUNK_FIRST)
        cdef uint64_t stop = sequence + load_u32(chunk + CHUNK_COUNT)
        cdef uint64_t chunk_us = load_u64(chunk + CHUNK_TIME)
        cdef const uint8_t* at = chunk + CHUNK_HEADER_BYTES
        cdef Track* track
        cdef Lot* lot = NULL
        cdef uint32_t size, run
        if sequence < 1 or stop > JOB_SEQUENCE_MAX or stop == sequence:
            return 1
        track = self.track_of(channel, load_u64(chunk + CHUNK_EPOCH))
        if place_nowhere(track.last) or place_after(place, track.last):
            track.last = place
        if sequence > track.known + 1:
            track.known = sequence - 1
        if track.restored != NULL:
            restored_pass(track)
        while at < end:
            if end - at < RECORD_HEADER_BYTES:
                return 1
            size = load_u32(at)
            if size < RECORD_HEADER_BYTES or size > <size_t>(end - at):
                return 1
            run = 1
            if load_u16(at + 4) & RECORD_GONE:
                if size != GONE_RECORD_BYTES or load_u32(at + GONE_RUN) < 1:
                    return 1
                run = load_u32(at + GONE_RUN)
            if run > stop - sequence:
                return 1
            if sequence + run - 1 > track.known:
                # Then it is the next one, and nothing from before a restart says that it is done.
                if passed or load_u16(at + 4) & RECORD_GONE:
                    track.known = sequence + run - 1
                elif self.add(track, sequence, &lot, place, chunk_us, at, size):
                    return 1
                if track.restored != NULL:
                    restored_pass(track)
            sequence += run
            at += size
        return 0 if sequence == stop else 1

    cdef int add(self, Track* track, uint64_t sequence, Lot** lot, Place place, uint64_t chunk_us,
                 const uint8_t* record, uint32_t size) except -1:
        """Add a record as a job; 1 when its fields overrun it."""
        cdef Fields fields
        cdef Job* job
        cdef Restored* restored = track.restored
        cdef bint inside = sizeof(Job) + size <= ITEM_BYTES_MAX
        if not fields_read(&fields, record, size):
            return 1
        if lot[0] == NULL:
            lot[0] = self.lot_new(place)
        job = self.job_new(sizeof(Job) + size if inside else sizeof(Job))
        job.record = <uint8_t*>job + sizeof(Job) if inside else <uint8_t*>malloc(size)
        if job.record == NULL:
            self.idle_add(job)
            raise MemoryError
        memcpy(job.record, record, size)
        store_u32(job.record + RECORD_TIME, 0)
        job.record_bytes = size
        job.track = track
        job.lot = lot[0]
        job.sequence = sequence
        job.order = self.order
        job.time_us = chunk_us + load_u32(record + RECORD_TIME)
        if fields.expiry_s:
            job.expires_us = job.time_us + fields.expiry_s * <uint64_t>1000000
        if self.by_lanes:
            job.lane = <uint8_t>fields.priority
        if restored != NULL and restored.notes_at < restored.notes_count:
            if restored.notes[restored.notes_at].sequence == sequence:
                job.attempts = restored.notes[restored.notes_at].attempts
                job.timer.due_us = restored.notes[restored.notes_at].due_us
                job.flags = FLAG_NOTED | FLAG_SEEN
        if not place_after(place, self.flagged):
            job.flags |= FLAG_SEEN
        track.known = sequence
        track_append(track, job)
        if not lot[0].left:
            lot[0].first = job
        lot[0].left += 1
        self.order += 1
        self.states[JOB_WAITING] += 1
        self.bytes_held += JOB_OVERHEAD_BYTES + size
        if self.by_key and fields.key != NULL:
            self.chain_add(job, key_hash(self.hash_seed, fields.key, fields.key_bytes))
            if job.chain.first != job:
                return 0
        return self.enter(job)

    cdef Job* job_new(self, size_t size) except NULL:
        """A job, zeroed, of so many bytes with its record."""
        cdef uint32_t item_class = <uint32_t>((size - 1) // ITEM_STEP)
        cdef Job* job = self.idle[item_class]
        if job != NULL:
            self.idle[item_class] = job.next
            self.idle_bytes -= (item_class + 1) * <size_t>ITEM_STEP
            memset(job, 0, sizeof(Job))
        else:
            job = <Job*>slabs_take(&self.heap, size)
            if job == NULL:
                raise MemoryError
        job.item_class = item_class
        return job

    cdef void idle_add(self, Job* job) noexcept:
        """Keep a job's memory for another one, or give it back."""
        cdef size_t size = (job.item_class + 1) * <size_t>ITEM_STEP
        if self.idle_bytes + size > IDLE_BYTES_MAX:
            slabs_give(&self.heap, job)
            return
        self.idle_bytes += size
        job.next = self.idle[job.item_class]
        self.idle[job.item_class] = job

    cdef void idle_clear(self) noexcept:
        cdef uint32_t at
        cdef Job* job
        for at in range(<uint32_t>ITEM_CLASSES):
            while self.idle[at] != NULL:
                job = self.idle[at]
                self.idle[at] = job.next
                slabs_give(&self.heap, job)
        self.idle_bytes = 0

    cdef Lot* lot_new(self, Place place) except NULL:
        """A lot in its place, which is nearly always the last."""
        cdef Lot* before = self.lots_last
        cdef Lot* lot = <Lot*>slabs_take(&self.heap, sizeof(Lot))
        if lot == NULL:
            raise MemoryError
        lot.place = place
        while before != NULL and place_after(before.place, place):
            before = before.previous
        lot.previous = before
        lot.next = before.next if before != NULL else self.lots_first
        if before != NULL:
            before.next = lot
        else:
            self.lots_first = lot
        if lot.next != NULL:
            lot.next.previous = lot
        else:
            self.lots_last = lot
        return lot

    cdef int chain_add(self, Job* job, uint64_t hash) except -1:
        """Put a job behind those of its key. Two keys of one hash are one: they keep more order than they need."""
        cdef Chain* chain = <Chain*>table_find(&self.chains, hash)
        if chain == NULL:
            chain = <Chain*>slabs_take(&self.heap, sizeof(Chain))
            if chain == NULL:
                raise MemoryError
            chain.hash = hash
            if table_insert(&self.chains, hash, chain):
                slabs_give(&self.heap, chain)
                raise MemoryError
        chain_append(chain, job)
        job.chain = chain
        return 0

    def reached(self, uint64_t group, uint32_t index):
        """Say that everything of the filters up to a place of the bus has been taken, though nothing came of it."""
        self.vouched = place_max(self.vouched, place_at(group, index))

    # -- what waits ----------------------------------------------------------------------------------------------------

    cdef inline void set_state(self, Job* job, uint8_t state) noexcept:
        self.states[job.state] -= 1
        self.states[state] += 1
        job.state = state

    cdef int enter(self, Job* job) except -1:
        """Let a job wait for its grant, or for its time."""
        cdef Lane* lane = &self.lanes[job.lane]
        if job.timer.due_us:
            self.set_state(job, JOB_DELAYED)
            self.timer_add(&job.timer)
            if not self.exclusive:
                return 0
        else:
            self.set_state(job, JOB_WAITING)
        job.flags |= FLAG_LISTED
        list_append(&lane.again if job.flags & FLAG_AGAIN and not self.exclusive else &lane.fresh, job)
        return 0

    cdef void withdraw(self, Job* job) noexcept:
        """Take a job out of where it waits."""
        cdef Lane* lane = &self.lanes[job.lane]
        if job.flags & FLAG_LISTED:
            list_remove(&lane.again if job.flags & FLAG_AGAIN and not self.exclusive else &lane.fresh, job)
            job.flags &= <uint8_t>~FLAG_LISTED
        if job.timer.slot:
            self.timer_remove(&job.timer)

    cdef int release_key(self, Job* job) except -1:
        """Let the next of a job's key come."""
        cdef Chain* chain = job.chain
        cdef bint first
        if chain == NULL:
            return 0
        first = chain.first == job
        chain_remove(chain, job)
        job.chain = NULL
        if chain.first == NULL:
            table_remove(&self.chains, chain.hash, chain)
            slabs_give(&self.heap, chain)
        elif first:
            self.enter(chain.first)
        return 0

    cdef void end_lease(self, Job* job) noexcept:
        """Free what a leased job takes of its member's window."""
        cdef Grant* grant = job.grant
        if job.state != JOB_LEASED:
            return
        job.holder.jobs -= 1
        job.holder.record_bytes -= job.record_bytes
        if grant == NULL:
            return
        job.grant = NULL
        grant.left -= 1
        if not grant.left:
            if grant.timer.slot:
                self.timer_remove(&grant.timer)
            slabs_give(&self.heap, grant)

    cdef void forget_lease(self, Job* job) noexcept:
        """Nobody has or had the job."""
        if job.holder == NULL:
            return
        self.end_lease(job)
        self.lease_clear(job.lease)
        held_remove(job.holder, job)
        job.lease = 0
        job.holder = NULL

    cdef void job_free(self, Job* job) noexcept:
        """Give back a job that is in no list but those of its track and lot, and the lot when it was its last."""
        cdef Lot* lot = job.lot
        lot.left -= 1
        if lot.first == job:
            lot.first = job.track_next
        track_remove(job.track, job)
        if not lot.left:
            if lot.previous != NULL:
                lot.previous.next = lot.next
            else:
                self.lots_first = lot.next
            if lot.next != NULL:
                lot.next.previous = lot.previous
            else:
                self.lots_last = lot.previous
            slabs_give(&self.heap, lot)
        self.states[job.state] -= 1
        self.bytes_held -= JOB_OVERHEAD_BYTES + job.record_bytes
        if job.record != <uint8_t*>job + sizeof(Job):
            free(job.record)
        self.idle_add(job)
        if self.lots_first == NULL and self.heap.mapped > IDLE_MAPPED_MAX:
            # After a backlog: what is kept may lie anywhere, and each of it holds a whole slab.
            self.idle_clear()

    cdef int finish(self, Job* job) except -1:
        """A job is done. A dead one has left the dead before."""
        self.log_ack(job.track, job.sequence, job.sequence)
        self.forget_lease(job)
        if job.state != JOB_DEAD:
            self.withdraw(job)
            self.release_key(job)
        self.job_free(job)
        self.done += 1
        return 0

    cdef int die(self, Job* job, uint8_t reason) except -1:
        """A job is dead, and done once that has been told."""
        self.forget_lease(job)
        self.withdraw(job)
        self.set_state(job, JOB_DEAD)
        job.reason = reason
        list_append(&self.dying, job)
        return self.release_key(job)

    cdef int log_ack(self, Track* track, uint64_t first, uint64_t last) except -1:
        cdef AckEntry* entry
        if track.acks_last:
            entry = &self.acks[track.acks_last - 1]
            if entry.last + 1 == first:
                entry.last = last
                return 0
        grow(<void**>&self.acks, &self.acks_capacity, self.acks_count, sizeof(AckEntry))
        entry = &self.acks[self.acks_count]
        entry.first = first
        entry.last = last
        entry.next = 0
        self.acks_count += 1
        if track.acks_last:
            self.acks[track.acks_last - 1].next = self.acks_count
        else:
            track.acks_first = self.acks_count
            track.acks_next = NULL
            if self.acks_last != NULL:
                self.acks_last.acks_next = track
            else:
                self.acks_first = track
            self.acks_last = track
        track.acks_last = self.acks_count
        return 0

    cdef int note(self, Job* job) except -1:
        """Have a job's attempts and due time stored."""
        cdef Track* track = job.track
        cdef NoteEntry* entry
        grow(<void**>&self.notes, &self.notes_capacity, self.notes_count, sizeof(NoteEntry))
        entry = &self.notes[self.notes_count]
        entry.sequence = job.sequence
        entry.due_us = job.timer.due_us
        entry.attempts = job.attempts
        entry.next = 0
        self.notes_count += 1
        if track.notes_last:
            self.notes[track.notes_last - 1].next = self.notes_count
        else:
            track.notes_first = self.notes_count
            track.notes_next = NULL
            if self.notes_last != NULL:
                self.notes_last.notes_next = track
            else:
                self.notes_first = track
            self.notes_last = track
        track.notes_last = self.notes_count
        job.flags |= FLAG_NOTED
        return 0

    cdef int come_again(self, Job* job, uint64_t due_us) except -1:
        """A leased job comes back: it waits again, for its grant or for its time, or is dead."""
        self.end_lease(job)
        self.set_state(job, JOB_WAITING)
        job.flags |= FLAG_AGAIN | FLAG_SEEN
        if self.attempts_max and job.attempts >= self.attempts_max:
            return self.die(job, REASON_ATTEMPTS)
        job.timer.due_us = due_us
        if due_us:
            self.note(job)
        if not self.exclusive:
            return self.enter(job)
        list_prepend(&self.lanes[0].fresh, job)
        job.flags |= FLAG_LISTED
        if due_us:
            self.set_state(job, JOB_DELAYED)
            self.timer_add(&job.timer)
        return 0

    cdef int give_back(self, Job* job) except -1:
        """A leased job comes back that nobody has begun: as if it had not been granted, but ahead of what is new."""
        self.end_lease(job)
        self.set_state(job, JOB_WAITING)
        job.attempts -= 1
        job.timer.due_us = 0
        if job.flags & FLAG_NOTED:
            self.note(job)
        job.flags |= FLAG_AGAIN
        if not self.exclusive:
            return self.enter(job)
        list_prepend(&self.lanes[0].fresh, job)
        job.flags |= FLAG_LISTED
        return 0

    cdef int come_along(self, Job* job) except -1:
        """Everything that was granted after a job comes back before it does itself (exclusive mode)."""
        cdef Job** later
        cdef Job* other = job.holder.held_first
        cdef uint32_t count = 0
        # Never of no bytes, which may be answered with NULL.
        later = <Job**>malloc((<size_t>job.holder.jobs + 1) * sizeof(Job*))
        if later == NULL:
            raise MemoryError
        while other != NULL:
            if other.state == JOB_LEASED and other.order > job.order:
                later[count] = other
                count += 1
            other = other.held_next
        qsort(later, count, sizeof(Job*), job_earlier)
        while count:
            count -= 1
            other = later[count]
            self.end_lease(other)
            self.set_state(other, JOB_WAITING)
            other.flags |= FLAG_SEEN | FLAG_LISTED
            other.attempts -= 1
            list_prepend(&self.lanes[0].fresh, other)
        free(later)
        return 0

    cdef int come_back(self, Job** jobs, size_t count) except -1:
        """Leased jobs come back at once, and delayed ones are due, in the order in which they were taken."""
        cdef size_t at
        if not count:
            return 0
        qsort(jobs, count, sizeof(Job*), job_earlier)
        if self.exclusive:
            self.come_along(jobs[0])
            count = 1
        for at in range(count):
            if jobs[at].state == JOB_LEASED:
                self.come_again(jobs[at], 0)
            else:
                jobs[at].timer.due_us = 0
                jobs[at].flags |= FLAG_AGAIN
                self.enter(jobs[at])
        return 0

    cdef uint64_t backoff_us(self, uint32_t attempts) noexcept:
        """How long a job waits after so many attempts, from 1."""
        cdef uint32_t shift = <uint32_t>min(attempts - 1, 63)
        cdef uint64_t base_us = self.backoff_longest_ms
        cdef uint64_t value
        if self.backoff_first_ms <= self.backoff_longest_ms >> shift:
            base_us = self.backoff_first_ms << shift
        base_us *= 1000
        # splitmix64
        self.random += <uint64_t>0x9E3779B97F4A7C15
        value = self.random
        value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
        value ^= value >> 31
        # 45 bits of time and 16 of chance: the product fits.
        return base_us // 2 + (base_us * (value >> 48) >> 16)

    # -- members -------------------------------------------------------------------------------------------------------

    cdef uint32_t member_at(self, uint64_t number) noexcept:
        """The index of the first member with this number or a greater one."""
        cdef uint32_t low = 0, high = self.members_count, middle
        while low < high:
            middle = low + (high - low) // 2
            if self.members[middle].number < number:
                low = middle + 1
            else:
                high = middle
        return low

    cdef Member* member(self, uint64_t number) except NULL:
        cdef uint32_t at = self.member_at(number)
        if at == self.members_count or self.members[at].number != number:
            raise KeyError(number)
        return self.members[at]

    def join(self, uint64_t member, uint32_t subscription, uint32_t window, uint64_t bytes_max, channels=()):
        """Take a member in.

        Args:
            member: A number from 1 that no member has or ever had.
            subscription: What its connection calls it: stands in its JOBS frames.
            window: Jobs under way at most, from 1.
            bytes_max: Bytes of their records at most; a first job is granted whatever its size.
            channels: Ids of the channels that its subscription knows already, by number: what `channels_of` of other
                `Jobs` returned that it was a member of.

        Raises:
            ValueError: The number is taken, or exclusive has a member already, or a number is out of range.
        """
        cdef uint32_t at = self.member_at(member)
        cdef Member* new
        if (at < self.members_count and self.members[at].number == member) or (self.exclusive and self.members_count):
            raise ValueError(f"member: {member} cannot join")
        if member < 1 or window < 1:
            raise ValueError(f"member: got {member} with a window of {window}, both from 1")
        grow(<void**>&self.members, &self.members_capacity, self.members_count, sizeof(Member*))
        new = <Member*>malloc(sizeof(Member))
        if new == NULL:
            raise MemoryError
        memset(new, 0, sizeof(Member))
        new.number = member
        new.subscription = subscription
        new.window = window
        new.bytes_max = bytes_max
        memmove(&self.members[at + 1], &self.members[at], (self.members_count - at) * sizeof(Member*))
        self.members[at] = new
        self.members_count += 1
        for channel in channels:
            self.tell(new, self.channel_of(channel))

    def leave(self, uint64_t member):
        """Let a member go; what it has comes again at once.

        Returns:
            How many leases ended.

        Raises:
            KeyError: There is no such member.
        """
        cdef Member* who = self.member(member)
        cdef Job* job = who.held_first
        cdef Job** leased
        cdef uint32_t count = 0, at
        leased = <Job**>malloc((<size_t>who.jobs + 1) * sizeof(Job*))
        if leased == NULL:
            raise MemoryError
        while job != NULL:
            if job.state == JOB_LEASED:
                leased[count] = job
                count += 1
            job = job.held_next
        try:
            self.come_back(leased, count)
        finally:
            free(leased)
        while who.held_first != NULL:
            self.forget_lease(who.held_first)
        at = self.member_at(member)
        self.members_count -= 1
        memmove(&self.members[at], &self.members[at + 1], (self.members_count - at) * sizeof(Member*))
        free(who.told)
        free(who)
        return count

    def is_leaving(self, uint64_t member):
        """Whether a member has given back what it has not begun: it is granted nothing more."""
        return bool(self.member(member).leaving)

    def under_way(self, uint64_t member):
        """Return how many jobs a member has under lease, and the bytes of their records; KeyError without it."""
        cdef Member* who = self.member(member)
        return who.jobs, who.record_bytes

    cdef uint32_t jobs_under_way(self, uint64_t member) except? 0:
        """How many jobs a member has under lease."""
        return self.member(member).jobs

    cdef bint has_room(self, uint64_t member) except -1:
        """Whether a member may be given another job."""
        cdef Member* who = self.member(member)
        return who.jobs < who.window and who.record_bytes < who.bytes_max and not who.leaving

    cdef uint64_t ready_count(self) noexcept:
        """As `ready`."""
        return self.states[JOB_WAITING]

    def channels_of(self, uint64_t member):
        """Return the ids of the channels that a member's subscription knows, by number; KeyError without it."""
        cdef Member* who = self.member(member)
        cdef list known = [0] * who.names
        cdef uint32_t at
        for at in range(min(who.told_count, self.channels_count)):
            if who.told[at]:
                known[who.told[at] - 1] = self.channels[at].id
        return known

    cdef int tell(self, Member* member, Channel* channel) except -1:
        """Number a channel on a member's subscription."""
        cdef uint32_t count
        cdef uint32_t* told
        if channel.slot >= member.told_count:
            count = <uint32_t>max(16, 2 * (channel.slot + 1))
            told = <uint32_t*>realloc(member.told, count * sizeof(uint32_t))
            if told == NULL:
                raise MemoryError
            memset(told + member.told_count, 0, (count - member.told_count) * sizeof(uint32_t))
            member.told = told
            member.told_count = count
        member.names += 1
        member.told[channel.slot] = member.names
        return 0

    cdef Job* next_job(self) noexcept:
        """The job whose turn it is; NULL when none can be granted."""
        cdef Lane* lane
        cdef Job* job = NULL
        cdef uint32_t at
        cdef bint filled = False
        while True:
            for at in range(<uint32_t>LANES):
                lane = &self.lanes[at]
                job = lane.again.first if lane.again.first != NULL else lane.fresh.first
                if job != NULL and lane.credit:
                    return NULL if job.state == JOB_DELAYED else job
                filled |= job != NULL
            if not filled:
                return NULL
            for at in range(<uint32_t>LANES):
                self.lanes[at].credit = <uint32_t>8 >> at

    def grant(self, uint64_t member, uint64_t now_us, uint32_t jobs_max=U32_MAX):
        """Grant a member what it has room for.

        Args:
            member: The member.
            now_us: Broker time.
            jobs_max: No more jobs than this, from 1.

        Returns:
            One JOBS frame, header included; b"" when nothing can be granted. Not all that can be need be in it.

        Raises:
            KeyError: There is no such member.
        """
        return self.grant_to(member, now_us, jobs_max)

    cdef bytes grant_to(self, uint64_t member, uint64_t now_us, uint32_t jobs_max):
        """As `grant`."""
        cdef Member* who = self.member(member)
        cdef uint64_t first = self.next_lease
        cdef uint32_t names = who.names
        cdef size_t size = JOBS_HEADER_BYTES
        cdef size_t more
        cdef Channel* channel
        cdef Grant* grant = NULL
        cdef Job* job
        while self.next_lease - first < jobs_max and who.jobs < who.window and not who.leaving:
            job = self.next_job()
            if job == NULL:
                break
            if job.next != NULL:
                memory_prefetch(job.next)
            if job.expires_us and job.expires_us <= now_us:
                self.expired += 1
                self.finish(job)
                continue
            channel = job.track.channel
            more = JOB_HEADER_BYTES + job.record_bytes
            if channel.slot >= who.told_count or not who.told[channel.slot]:
                more += channel.name_bytes
            if self.next_lease > first and size + more > JOBS_BODY_BYTES_MAX:
                break
            if who.jobs and who.record_bytes + job.record_bytes > who.bytes_max:
                break
            if channel.slot >= who.told_count or not who.told[channel.slot]:
                self.tell(who, channel)
            if grant == NULL and self.lease_ms:
                grant = self.grant_new(first, now_us + self.lease_ms * 1000)
            self.grant_job(job, who, grant)
            size += more
        if self.next_lease == first:
            return b""
        return self.jobs_frame(who, first, names, size)

    cdef Grant* grant_new(self, uint64_t first, uint64_t due_us) except NULL:
        cdef Grant* grant = <Grant*>slabs_take(&self.heap, sizeof(Grant))
        if grant == NULL:
            raise MemoryError
        grant.timer.kind = TIMER_GRANT
        grant.timer.due_us = due_us
        grant.first = first
        try:
            self.timer_add(&grant.timer)
        except MemoryError:
            slabs_give(&self.heap, grant)
            raise
        return grant

    cdef int grant_job(self, Job* job, Member* member, Grant* grant) except -1:
        """Put a job under the next lease."""
        self.lease_put(self.next_lease, job)
        self.lanes[job.lane].credit -= 1
        self.withdraw(job)
        self.forget_lease(job)
        self.set_state(job, JOB_LEASED)
        job.lease = self.next_lease
        job.holder = member
        job.grant = grant
        job.attempts += 1
        held_append(member, job)
        member.jobs += 1
        member.record_bytes += job.record_bytes
        self.next_lease += 1
        if grant != NULL:
            grant.count = <uint32_t>(self.next_lease - grant.first)
            grant.left += 1
        self.seen_place = place_max(self.seen_place, job.lot.place)
        if job.attempts > 1:
            self.note(job)
        if job.attempts > 1 or job.flags & FLAG_SEEN:
            self.redelivered += 1
        return 0

    cdef bytes jobs_frame(self, Member* member, uint64_t first, uint32_t names, size_t size):
        """The frame of the newest leases; names from the given count on are told in it."""
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(FRAME_HEADER_BYTES + size))
        cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(frame)
        cdef uint64_t _lease
        cdef uint32_t number, name_bytes
        cdef uint8_t flags
        cdef Job* job = self.leased_job(first)
        cdef Channel* channel
        memset(to, 0, FRAME_HEADER_BYTES + JOBS_HEADER_BYTES)
        store_u32(to, <uint32_t>size)
        to[4] = KIND_JOBS
        to += FRAME_HEADER_BYTES
        store_u32(to, member.subscription)
        store_u32(to + 4, <uint32_t>(self.next_lease - first))
        store_u64(to + 8, first)
        store_u64(to + 16, self.lease_ms)
        to += JOBS_HEADER_BYTES
        for _lease in range(first, self.next_lease):
            # They are the last that the member was given, one after the other.
            if job.held_next != NULL:
                memory_prefetch(job.held_next)
            channel = job.track.channel
            number = member.told[channel.slot] - 1
            flags = JOB_FLAG_REDELIVERED if job.attempts > 1 or job.flags & FLAG_SEEN else 0
            name_bytes = 0
            if number == names:
                flags |= JOB_FLAG_NAME
                name_bytes = channel.name_bytes
                names += 1
            store_u32(to, JOB_HEADER_BYTES + name_bytes + job.record_bytes)
            store_u32(to + 4, number)
            store_u64(to + 8, job.track.epoch)
            store_u64(to + 16, job.sequence)
            store_u64(to + 24, job.time_us)
            store_u16(to + 32, <uint16_t>min(job.attempts, <uint32_t>ATTEMPTS_MAX))
            to[34] = flags
            to[35] = <uint8_t>name_bytes
            store_u32(to + 36, 0)
            to += JOB_HEADER_BYTES
            if name_bytes:
                memcpy(to, channel.name, name_bytes)
                to += name_bytes
            memcpy(to, job.record, job.record_bytes)
            to += job.record_bytes
            job = job.held_next
        return frame

    # -- leases --------------------------------------------------------------------------------------------------------

    cdef LeasePage* page_of(self, uint64_t number) noexcept:
        """The page of a number, NULL when nothing of it is in use."""
        cdef uint32_t low = 0, high = self.pages_count, middle
        if self.page != NULL and self.page.number == number:
            return self.page
        while low < high:
            middle = low + (high - low) // 2
            if self.pages[middle].number < number:
                low = middle + 1
            else:
                high = middle
        if low == self.pages_count or self.pages[low].number != number:
            return NULL
        self.page = self.pages[low]
        return self.page

    cdef inline Job* leased_job(self, uint64_t lease) noexcept:
        """Whose lease it is, NULL when it is over or never was."""
        cdef LeasePage* page = self.page_of(lease // PAGE_LEASES)
        return page.jobs[lease % PAGE_LEASES] if page != NULL else NULL

    cdef int lease_put(self, uint64_t lease, Job* job) except -1:
        """Note whose the next lease is."""
        cdef LeasePage* page = self.page_of(lease // PAGE_LEASES)
        if page == NULL and self.pages_count and not self.pages[self.pages_count - 1].used:
            # The one that was kept for the next lease.
            page = self.page = self.pages[self.pages_count - 1]
            page.number = lease // PAGE_LEASES
        elif page == NULL:
            grow(<void**>&self.pages, &self.pages_capacity, self.pages_count, sizeof(LeasePage*))
            page = <LeasePage*>malloc(sizeof(LeasePage))
            if page == NULL:
                raise MemoryError
            memset(page, 0, sizeof(LeasePage))
            page.number = lease // PAGE_LEASES
            # Leases only go up, so the new page is the last.
            self.pages[self.pages_count] = page
            self.pages_count += 1
            self.page = page
        page.jobs[lease % PAGE_LEASES] = job
        page.used += 1
        return 0

    cdef void lease_clear(self, uint64_t lease) noexcept:
        """A lease is over for good."""
        cdef LeasePage* page = self.page_of(lease // PAGE_LEASES)
        cdef uint32_t at = self.pages_count
        page.jobs[lease % PAGE_LEASES] = NULL
        page.used -= 1
        # The page of the next lease stays: one lease at a time would make and free it each time.
        if page.used or page.number == self.next_lease // PAGE_LEASES:
            return
        while self.pages[at - 1] != page:
            at -= 1
        memmove(&self.pages[at - 1], &self.pages[at], (self.pages_count - at) * sizeof(LeasePage*))
        self.pages_count -= 1
        self.page = NULL
        free(page)

    # -- settling ------------------------------------------------------------------------------------------------------

    def settle(self, uint64_t member, bytes body not None, uint64_t now_us):
        """Take what a member says of its jobs.

        Args:
            member: The member.
            body: An ACK frame's body. Its subscription and number are not looked at.
            now_us: Broker time.

        Returns:
            What is refused: (code, first lease, leases), leases that follow one another together.
            LEASE_UNKNOWN: never granted, or another member has it. LEASE_EXPIRED: it is over, since its job was
            granted again or is settled; for nack and extend also when it has ended and the job waits (but a nack in
            exclusive mode, which takes all behind it along). INVALID_TIME: nack or extend by more than DELAY_MS_MAX;
            the whole entry.

        Raises:
            ValueError: The body is not well formed; nothing of it is taken.
            KeyError: There is no such member.
        """
        cdef Member* who = self.member(member)
        cdef const uint8_t* end = <const uint8_t*>PyBytes_AS_STRING(body) + PyBytes_GET_SIZE(body)
        cdef const uint8_t* at = ack_entries(body)
        cdef list refused = []
        while at < end:
            self.settle_entry(who, at, now_us, refused)
            at += ACK_ENTRY_BYTES
        return refused

    def refusal(self, uint64_t member, bytes body not None):
        """The first refusal of an ACK frame's body that acknowledges and nothing else, were it taken now; or None.

        Nothing changes. As `settle`; ValueError for another verb too.
        """
        cdef Member* who = self.member(member)
        cdef const uint8_t* end = <const uint8_t*>PyBytes_AS_STRING(body) + PyBytes_GET_SIZE(body)
        cdef const uint8_t* at = ack_entries(body)
        cdef uint64_t lease
        cdef uint32_t index
        cdef Job* job
        while at < end:
            if at[12] != VERB_ACK:
                raise ValueError(f"ack: got verb {at[12]}, expected {VERB_ACK}: it acknowledges")
            # The last one may be the highest number that there is.
            for index in range(load_u32(at + 8)):
                lease = load_u64(at) + index
                job = self.leased_job(lease)
                if job == NULL:
                    return (CODE_LEASE_EXPIRED if self.first_lease <= lease < self.next_lease else CODE_LEASE_UNKNOWN,
                            lease, 1)
                if job.holder != who:
                    return CODE_LEASE_UNKNOWN, lease, 1
            at += ACK_ENTRY_BYTES
        return None

    cdef bint ack_under_way(self, uint64_t member, const uint8_t* at, const uint8_t* end) except -1:
        """Take entries of an ACK if all that they say is that jobs are done which the member has under lease.

        They need not be well formed. Answers whether they were taken; nothing has changed when they were not.
        """
        cdef Member* who = self.member(member)
        cdef const uint8_t* entry = at
        cdef uint64_t first, lease, past = 0
        cdef uint32_t count, left = who.jobs
        cdef Job* job
        while entry < end:
            first = load_u64(entry)
            count = load_u32(entry + 8)
            # Ascending, or one could be there twice. Its verb stands alone in its word.
            if (count < 1 or count > left or first < past or first >= self.next_lease
                    or load_u32(entry + 12) != VERB_ACK or load_u64(entry + 16)):
                return False
            left -= count
            past = first + count
            for lease in range(first, past):
                job = self.leased_job(lease)
                if job == NULL or job.holder != who or job.state != JOB_LEASED:
                    return False
            entry += ACK_ENTRY_BYTES
        self.acknowledge(at, end)
        return True

    cdef bint holds(self, uint64_t member, const uint8_t* at, const uint8_t* end) except -1:
        """Whether whole ACK entries acknowledge, and nothing else, what a member has; if so, there is room for it.

        What `settle` would refuse, or say is not well formed, does not hold.
        """
        cdef uint32_t found = self.member_at(member)
        cdef uint64_t lease, leases = 0
        cdef uint32_t left
        cdef Job* job
        if found == self.members_count or self.members[found].number != member:
            return False
        while at < end:
            lease, left = load_u64(at), load_u32(at + 8)
            leases += left
            if load_u32(at + 12) != VERB_ACK or load_u64(at + 16) or not left or leases > LEASES_PER_ACK_MAX:
                return False
            while left:
                job = self.leased_job(lease)
                if job == NULL or job.holder != self.members[found]:
                    return False
                lease += 1
                left -= 1
            at += ACK_ENTRY_BYTES
        # Each ends at most one lease, and lets at most one job of its key come, which may have to wait for its time.
        grow(<void**>&self.acks, &self.acks_capacity, self.acks_count + <uint32_t>leases, sizeof(AckEntry))
        grow(<void**>&self.timers, &self.timers_capacity, self.timers_count + <uint32_t>leases, sizeof(Timer*))
        return True

    cdef int acknowledge(self, const uint8_t* at, const uint8_t* end) except -1:
        """Take entries that hold. A lease that is named twice is settled once."""
        cdef uint64_t lease
        cdef uint32_t left
        cdef Job* job
        while at < end:
            lease, left = load_u64(at), load_u32(at + 8)
            while left:
                job = self.leased_job(lease)
                if job != NULL:
                    self.finish(job)
                lease += 1
                left -= 1
            at += ACK_ENTRY_BYTES
        return 0

    cdef int settle_entry(self, Member* member, const uint8_t* entry, uint64_t now_us, list refused) except -1:
        cdef uint64_t lease = load_u64(entry)
        cdef uint32_t left = load_u32(entry + 8)
        cdef uint8_t verb = entry[12]
        cdef uint64_t ms = load_u64(entry + 16)
        cdef uint64_t refused_first = lease
        cdef Grant* extended = NULL
        cdef Job* job
        cdef int code, refused_code = 0
        if verb == VERB_RELEASE:
            member.leaving = True
        if verb == VERB_ACK_THROUGH:
            if not self.first_lease <= lease < self.next_lease:
                refused.append((CODE_LEASE_UNKNOWN, lease, 1))
                return 0
            return self.ack_through(member, lease)
        if ms > JOB_DELAY_MS_MAX and not (verb == VERB_NACK and ms == U64_MAX):
            refused.append((CODE_INVALID_TIME, lease, left))
            return 0
        while left:
            job = self.leased_job(lease)
            code = self.settle_lease(member, job, lease, verb, ms, now_us, &extended)
            if code != refused_code:
                if refused_code:
                    refused.append((refused_code, refused_first, lease - refused_first))
                refused_code = code
                refused_first = lease
            lease += 1
            left -= 1
        if refused_code:
            refused.append((refused_code, refused_first, lease - refused_first))
        return 0

    cdef int settle_lease(self, Member* member, Job* job, uint64_t lease, uint8_t verb, uint64_t ms, uint64_t now_us,
                          Grant** extended) except -1:
        """Settle one lease; the code when it is refused, else 0."""
        cdef uint64_t delay_us
        if job == NULL:
            return CODE_LEASE_EXPIRED if self.first_lease <= lease < self.next_lease else CODE_LEASE_UNKNOWN
        if job.holder != member:
            return CODE_LEASE_UNKNOWN
        if job.held_next != NULL:
            memory_prefetch(job.held_next)
        if verb == VERB_ACK:
            self.finish(job)
        elif verb == VERB_REJECT:
            self.die(job, REASON_REJECTED)
        elif job.state != JOB_LEASED:
            # In exclusive mode it has come along with the one before it.
            return 0 if verb != VERB_EXTEND and self.exclusive else CODE_LEASE_EXPIRED
        elif verb == VERB_EXTEND:
            if not ms:
                ms = self.lease_ms
            self.extend(job, now_us + ms * 1000 if ms else 0, extended)
        elif verb == VERB_RELEASE:
            if self.exclusive:
                self.come_along(job)
            self.give_back(job)
        else:
            delay_us = self.backoff_us(job.attempts) if ms == U64_MAX else ms * 1000
            if self.exclusive:
                self.come_along(job)
            self.come_again(job, now_us + delay_us if delay_us else 0)
        return 0

    cdef int extend(self, Job* job, uint64_t deadline_us, Grant** extended) except -1:
        """Give a lease another deadline, together with the others of its entry; 0 for none."""
        cdef Grant* old = job.grant
        cdef Grant* new = NULL
        if deadline_us:
            if extended[0] == NULL:
                extended[0] = self.grant_new(job.lease, deadline_us)
            new = extended[0]
            new.left += 1
            new.count = <uint32_t>(job.lease - new.first + 1)
        job.grant = new
        if old != NULL:
            old.left -= 1
            if not old.left:
                self.timer_remove(&old.timer)
                slabs_give(&self.heap, old)
        return 0

    cdef int ack_through(self, Member* member, uint64_t lease) except -1:
        """All that a member has up to a lease is done."""
        while member.held_first != NULL and member.held_first.lease <= lease:
            self.finish(member.held_first)
        return 0

    def done_at(self, uint64_t channel, uint64_t epoch, uint64_t first, uint64_t count):
        """Take an ack by positions, as from a member that was connected before.

        Args:
            channel: Its id.
            epoch, first, count: Sequences of one epoch, `first` and `count` from 1, the last below 2^63 - 1. The
                caller sees to it that they have been given out.

        Returns:
            What does not count, since somebody has it under lease now: runs (first, count).

        Raises:
            ValueError: The sequences are out of range.
        """
        cdef uint64_t last = first + count - 1
        cdef Track* track
        cdef Job* job
        cdef Job* after
        cdef list refused = []
        cdef uint64_t above, run = 0, run_first = 0
        if first < 1 or count < 1 or first >= JOB_SEQUENCE_MAX or count >= JOB_SEQUENCE_MAX - first:
            raise ValueError(f"done: got {count} sequences from {first}")
        track = self.track_of(self.channel_of(channel), epoch)
        job = track.first
        while job != NULL and job.sequence <= last:
            after = job.track_next
            if job.sequence >= first:
                if job.state == JOB_LEASED:
                    if run and run_first + run != job.sequence:
                        refused.append((run_first, run))
                        run = 0
                    if not run:
                        run_first = job.sequence
                    run += 1
                elif job.state != JOB_DEAD:
                    self.finish(job)
            job = after
        if run:
            refused.append((run_first, run))
        above = max(first, track.known + 1)
        if above <= last:
            restored_run(restored_of(track), above, last)
            self.log_ack(track, above, last)
            restored_pass(track)
        return refused

    # -- time ----------------------------------------------------------------------------------------------------------

    def expire(self, uint64_t now_us):
        """Let leases end whose deadline has come, and delays that are over.

        Returns:
            How many jobs that concerns. All of them come again in the order in which they were taken.
        """
        cdef Job** jobs = NULL
        cdef uint32_t count = 0, capacity = 0, waited = 0
        cdef Timer* timer
        cdef Grant* grant
        cdef Job* job
        cdef uint64_t lease
        try:
            while self.timers_count and self.timers[0].due_us <= now_us:
                timer = self.timers[0]
                self.timer_remove(timer)
                if timer.kind == TIMER_JOB:
                    job = <Job*>timer
                    if self.exclusive:
                        # It waits in its place already.
                        job.timer.due_us = 0
                        self.set_state(job, JOB_WAITING)
                        waited += 1
                    else:
                        grow(<void**>&jobs, &capacity, count, sizeof(Job*))
                        jobs[count] = job
                        count += 1
                    continue
                grant = <Grant*>timer
                for lease in range(grant.first, grant.first + grant.count):
                    job = self.leased_job(lease)
                    if job != NULL and job.grant == grant:
                        grow(<void**>&jobs, &capacity, count, sizeof(Job*))
                        jobs[count] = job
                        count += 1
            self.come_back(jobs, count)
        finally:
            free(jobs)
        return count + waited

    def next_us(self):
        """Return when the next lease ends or delay is over; 0 when none does."""
        return self.timers[0].due_us if self.timers_count else 0

    cdef int timer_add(self, Timer* timer) except -1:
        grow(<void**>&self.timers, &self.timers_capacity, self.timers_count, sizeof(Timer*))
        self.timers_count += 1
        self.timer_sift(timer, self.timers_count)
        return 0

    cdef void timer_remove(self, Timer* timer) noexcept:
        cdef Timer* moved = self.timers[self.timers_count - 1]
        cdef uint32_t slot = timer.slot
        timer.slot = 0
        self.timers_count -= 1
        if moved != timer:
            self.timer_sift(moved, slot)

    cdef void timer_sift(self, Timer* timer, uint32_t slot) noexcept:
        """Put a timer where it belongs, from a slot that is free."""
        cdef Timer** heap = self.timers - 1     # slots are counted from 1
        cdef uint32_t child
        while slot > 1 and heap[slot // 2].due_us > timer.due_us:
            heap[slot] = heap[slot // 2]
            heap[slot].slot = slot
            slot //= 2
        while 2 * slot <= self.timers_count:
            child = 2 * slot
            if child < self.timers_count and heap[child + 1].due_us < heap[child].due_us:
                child += 1
            if heap[child].due_us >= timer.due_us:
                break
            heap[slot] = heap[child]
            heap[slot].slot = slot
            slot = child
        heap[slot] = timer
        timer.slot = slot

    # -- the dead ------------------------------------------------------------------------------------------------------

    def dead(self):
        """Hand out what has died, in the order in which it did; it is done from here on.

        Returns:
            (the channel's name, epoch, sequence, attempts, reason, record) of each. The record's time is 0.
        """
        cdef list told = []
        cdef Job* job
        while self.dying.first != NULL:
            job = self.dying.first
            told.append((channel_name(job.track.channel), job.track.epoch, job.sequence, job.attempts, job.reason,
                         PyBytes_FromStringAndSize(<const char*>job.record, job.record_bytes)))
            list_remove(&self.dying, job)
            self.finish(job)
        return told

    # -- floors --------------------------------------------------------------------------------------------------------

    def purge(self):
        """Everything that has been taken is done, whoever has it; answers how many jobs that were."""
        cdef uint64_t count = 0
        self.dying.first = self.dying.last = NULL
        while self.lots_first != NULL:
            self.finish(self.lots_first.first)
            count += 1
        return count

    def reset(self, uint64_t group, uint32_t index):
        """Forget everything and begin behind a place of the bus: all leases are over, and nothing is done.

        Members stay, with nothing under way. The next `changes()` is a snapshot.
        """
        self.clear()
        self.last_floor = self.vouched = place_at(group, index)
        self.anew = True

    def set_floor(self, uint64_t channel, uint64_t epoch, uint64_t sequence):
        """Begin behind a position: everything of the channel up to it is done.

        To be called before anything of it came, and followed by a snapshot: no `changes()` tells it, but those after
        `reset`.
        """
        cdef Track* track = self.track_of(self.channel_of(channel), epoch)
        if track.first == NULL and sequence > track.known:
            track.known = sequence
            if track.restored != NULL:
                restored_pass(track)

    cdef void find_floor(self) noexcept:
        cdef Place floor = self.vouched, bound
        if self.lots_first != NULL:
            bound = self.lots_first.place
            if bound.index:
                bound.index -= 1
            else:
                bound = place_at(max(bound.group, <uint64_t>1) - 1, U32_MAX)
            if place_after(floor, bound):
                floor = bound
        self.last_floor = place_max(self.last_floor, floor)

    @property
    def floor(self):
        """The place of the bus up to which everything is done. It never goes back but by `reset`."""
        self.find_floor()
        return self.last_floor.group, self.last_floor.index

    @property
    def seen(self):
        """The newest place of which a job has been granted."""
        return self.seen_place.group, self.seen_place.index

    def floor_of(self, uint64_t channel):
        """Return the position up to which everything of a channel is done: (epoch, sequence), (0, 0) when unknown."""
        cdef Channel* found = <Channel*>table_find(&self.by_id, mixed(self.hash_seed, channel))
        cdef const Track* track = found.tracks if found != NULL else NULL
        cdef const Track* newest = NULL
        while track != NULL:
            if track.first != NULL:
                return track.epoch, track_floor(track)
            if track.known:
                newest = track
            track = track.next
        if newest == NULL:
            return 0, 0
        return newest.epoch, newest.known

    # -- what is stored ------------------------------------------------------------------------------------------------

    @property
    def changed(self):
        """Whether `changes()` has something to say."""
        return self.acks_first != NULL or self.notes_first != NULL or self.anew

    def changes(self, bint always=False):
        """Return what has changed since the last call.

        Args:
            always: Also when it is no more than the floor and `seen`, as before a stop in good order.

        Returns:
            The changes, for `restore`; b"" when there are none.
        """
        cdef Bytes buffer
        cdef Track* track
        if self.anew:
            whole = self.snapshot()
            self.told()
            self.anew = False
            return whole
        if self.acks_first == NULL and self.notes_first == NULL and not always:
            return b""
        memset(&buffer, 0, sizeof(Bytes))
        try:
            self.put_header(&buffer, STATE_CHANGES)
            track = self.acks_first
            while track != NULL:
                self.put_changes(&buffer, track)
                track = track.acks_next
            track = self.notes_first
            while track != NULL:
                if not track.acks_first:
                    self.put_changes(&buffer, track)
                track = track.notes_next
            self.told()
            return bytes_take(&buffer)
        finally:
            bytes_release(&buffer)

    cdef void told(self) noexcept:
        """Forget what has changed: it has been told."""
        cdef Track* track
        while self.acks_first != NULL:
            track = self.acks_first
            self.acks_first = track.acks_next
            track.acks_first = track.acks_last = 0
        while self.notes_first != NULL:
            track = self.notes_first
            self.notes_first = track.notes_next
            track.notes_first = track.notes_last = 0
        self.acks_last = self.notes_last = NULL
        self.acks_count = self.notes_count = 0

    cdef int put_header(self, Bytes* to, uint8_t kind) except -1:
        """Begin a state; its count of sections is counted up by each."""
        cdef uint8_t header[STATE_HEADER_BYTES]
        self.find_floor()
        memset(header, 0, STATE_HEADER_BYTES)
        header[0] = kind
        header[1] = STATE_FORMAT
        store_u64(header + 8, self.last_floor.group)
        store_u32(header + 16, self.last_floor.index)
        store_u64(header + 24, self.seen_place.group)
        store_u32(header + 32, self.seen_place.index)
        bytes_append(to, header, STATE_HEADER_BYTES)
        return 0

    cdef int put_section(self, Bytes* to, Track* track, uint32_t runs, uint32_t notes) except -1:
        cdef uint8_t section[SECTION_BYTES]
        memset(section, 0, SECTION_BYTES)
        store_u64(section, track.channel.id)
        store_u64(section + 8, track.epoch)
        store_u64(section + 16, track_floor(track))
        store_u64(section + 24, track.last.group)
        store_u32(section + 32, track.last.index)
        store_u32(section + 36, runs)
        store_u32(section + 40, notes)
        bytes_append(to, section, SECTION_BYTES)
        store_u32(to.data + 4, load_u32(to.data + 4) + 1)
        return 0

    cdef int put_changes(self, Bytes* to, Track* track) except -1:
        """Put what has changed of a track."""
        cdef uint64_t floor = track_floor(track)
        cdef size_t section
        cdef uint32_t at, runs = 0, notes = 0
        cdef Track* earlier
        if self.by_position:
            # Or nobody would read what is not done of earlier epochs, once something of this one is stored.
            earlier = track.channel.tracks
            while earlier != track:
                if earlier.first != NULL and not earlier.acks_first and not earlier.notes_first:
                    self.put_section(to, earlier, 0, 0)
                earlier = earlier.next
        elif not place_after(track.last, self.last_floor):
            return 0
        section = to.used
        self.put_section(to, track, 0, 0)
        at = track.acks_first
        while at:
            if self.acks[at - 1].first > floor:
                put_run(to, self.acks[at - 1].first, self.acks[at - 1].last)
                runs += 1
            at = self.acks[at - 1].next
        at = track.notes_first
        while at:
            put_note(to, self.notes[at - 1].sequence, self.notes[at - 1].due_us, self.notes[at - 1].attempts)
            notes += 1
            at = self.notes[at - 1].next
        store_u32(to.data + section + 36, runs)
        store_u32(to.data + section + 40, notes)
        return 0

    def snapshot(self):
        """Return the whole state, what `changes()` would say included; channels by id, epochs ascending."""
        cdef Channel** channels
        cdef Bytes buffer
        cdef Track* track
        cdef Track* newest
        cdef uint32_t at
        memset(&buffer, 0, sizeof(Bytes))
        channels = <Channel**>malloc((<size_t>self.channels_count + 1) * sizeof(Channel*))
        if channels == NULL:
            raise MemoryError
        if self.channels_count:
            memcpy(channels, self.channels, self.channels_count * sizeof(Channel*))
        qsort(channels, self.channels_count, sizeof(Channel*), channel_before)
        try:
            self.put_header(&buffer, STATE_SNAPSHOT)
            for at in range(self.channels_count):
                newest = track_newest(channels[at])
                track = channels[at].tracks
                while track != NULL:
                    if (track.first != NULL
                            or (not self.by_position and place_after(track.last, self.last_floor))
                            or (self.by_position and (track == newest or track.restored != NULL))):
                        self.put_whole(&buffer, track)
                    track = track.next
            return bytes_take(&buffer)
        finally:
            bytes_release(&buffer)
            free(channels)

    cdef int put_whole(self, Bytes* to, Track* track) except -1:
        """Put all that is known of a track: what is done are the gaps between its jobs, and what is ahead."""
        cdef size_t section = to.used
        cdef Restored* restored = track.restored
        cdef uint32_t at, runs = 0, notes = 0
        cdef uint64_t next = track_floor(track) + 1
        cdef Job* job = track.first
        self.put_section(to, track, 0, 0)
        while job != NULL:
            if job.sequence > next:
                put_run(to, next, job.sequence - 1)
                runs += 1
            next = job.sequence + 1
            job = job.track_next
        if track.known >= next:
            put_run(to, next, track.known)
            runs += 1
        if restored != NULL:
            for at in range(restored.runs_at, restored.runs_count):
                put_run(to, restored.runs[at].first, restored.runs[at].last)
                runs += 1
        job = track.first
        while job != NULL:
            if job.flags & FLAG_NOTED:
                put_note(to, job.sequence, job.timer.due_us, job.attempts)
                notes += 1
            job = job.track_next
        if restored != NULL:
            for at in range(restored.notes_at, restored.notes_count):
                put_note(to, restored.notes[at].sequence, restored.notes[at].due_us, restored.notes[at].attempts)
                notes += 1
        store_u32(to.data + section + 36, runs)
        store_u32(to.data + section + 40, notes)
        return 0

    def restore(self, list payloads not None, uint64_t group=0, uint32_t index=0):
        """Make the state what it was; on one that has taken nothing yet.

        Args:
            payloads: What `snapshot` and `changes` returned, in order; empty ones are passed over. A snapshot stands
                for all before it.
            group, index: Jobs up to this place of the bus may have been seen by somebody: they come flagged. After a
                stop in good order leave it out, else it is where the log ends, or the `seen` of the other Jobs.

        Raises:
            ValueError: A payload is not what was stored, or something has been taken already.
        """
        cdef bytes payload
        cdef uint32_t at
        cdef Track** link
        cdef Track* track
        if self.lots_first != NULL or self.acks_first != NULL:
            raise ValueError("restore: jobs have been taken already")
        for payload in payloads:
            if payload:
                self.apply(<const uint8_t*>PyBytes_AS_STRING(payload),
                           <const uint8_t*>PyBytes_AS_STRING(payload) + PyBytes_GET_SIZE(payload))
        for at in range(self.channels_count):
            link = &self.channels[at].tracks
            while link[0] != NULL:
                track = link[0]
                restored_settle(track)
                if self.by_position or place_after(track.last, self.last_floor):
                    link = &track.next
                    continue
                # The bus's floor has passed all of it.
                link[0] = track.next
                restored_free(track)
                slabs_give(&self.heap, track)
        self.vouched = place_max(self.vouched, self.last_floor)
        self.flagged = self.seen_place = place_max(self.seen_place, place_at(group, index))

    cdef int apply(self, const uint8_t* at, const uint8_t* end) except -1:
        """Read one state."""
        cdef const uint8_t* begin = at
        cdef uint32_t sections, runs, notes
        cdef Track* track
        cdef Place last
        if (end - at < STATE_HEADER_BYTES or at[0] not in (STATE_SNAPSHOT, STATE_CHANGES) or at[1] != STATE_FORMAT):
            raise ValueError(f"jobs: got {end - at} bytes that are no state of format {STATE_FORMAT}")
        if at[0] == STATE_SNAPSHOT:
            self.clear()
        self.last_floor = place_max(self.last_floor, place_at(load_u64(at + 8), load_u32(at + 16)))
        self.seen_place = place_max(self.seen_place, place_at(load_u64(at + 24), load_u32(at + 32)))
        sections = load_u32(at + 4)
        at += STATE_HEADER_BYTES
        while sections and end - at >= SECTION_BYTES:
            runs = load_u32(at + 36)
            notes = load_u32(at + 40)
            if <size_t>(end - at) - SECTION_BYTES < <size_t>runs * RUN_BYTES + <size_t>notes * NOTE_BYTES:
                break
            track = self.track_of(self.channel_of(load_u64(at)), load_u64(at + 8))
            track.known = max(track.known, load_u64(at + 16))
            last = place_at(load_u64(at + 24), load_u32(at + 32))
            if place_nowhere(track.last) or (not place_nowhere(last) and place_after(last, track.last)):
                track.last = last
            at += SECTION_BYTES
            while runs:
                if not 1 <= load_u64(at) <= load_u64(at + 8) < JOB_SEQUENCE_MAX:
                    raise ValueError(f"jobs: got a run of {load_u64(at)} to {load_u64(at + 8)}")
                restored_run(restored_of(track), load_u64(at), load_u64(at + 8))
                at += RUN_BYTES
                runs -= 1
            while notes:
                restored_note(restored_of(track), load_u64(at), load_u64(at + 8), load_u32(at + 16))
                at += NOTE_BYTES
                notes -= 1
            sections -= 1
        if sections or at != end:
            raise ValueError(f"jobs: got a state of {end - begin} bytes that is not what its counts say")
        return 0

    # -- counts --------------------------------------------------------------------------------------------------------

    @property
    def ready(self):
        """Jobs that are neither leased, delayed nor dead; with keys also those behind another one of their key."""
        return self.states[JOB_WAITING]

    @property
    def leased(self):
        """Jobs under lease."""
        return self.states[JOB_LEASED]

    @property
    def delayed(self):
        """Jobs that wait for their time."""
        return self.states[JOB_DELAYED]

    @property
    def doomed(self):
        """Jobs that have died and were not handed out yet."""
        return self.states[JOB_DEAD]

    def waiting(self, uint32_t limit):
        """Return the oldest jobs that are not done: (channel's name, epoch, sequence, attempts, due_us, member).

        Args:
            limit: How many at most.

        Returns:
            By their places on the bus, dead ones left out; `due_us` is 0 unless the job is delayed, `member` unless it
            is leased.
        """
        cdef list found = []
        cdef Lot* lot = self.lots_first
        cdef Job* job
        cdef uint32_t left
        while lot != NULL:
            job = lot.first
            left = lot.left
            while left:
                if <uint32_t>len(found) == limit:
                    return found
                if job.state != JOB_DEAD:
                    found.append((channel_name(job.track.channel), job.track.epoch, job.sequence, job.attempts,
                                  job.timer.due_us if job.state == JOB_DELAYED else 0,
                                  job.holder.number if job.state == JOB_LEASED else 0))
                job = job.track_next
                left -= 1
            lot = lot.next
        return found


# -- bodies ------------------------------------------------------------------------------------------------------------


cdef const uint8_t* ack_entries(bytes body) except NULL:
    """The entries of an ACK frame's body, which end with it, all of them checked."""
    cdef const uint8_t* begin = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef size_t size = <size_t>PyBytes_GET_SIZE(body)
    cdef uint32_t count
    if size < ACK_HEADER_BYTES:
        raise ValueError(f"ack: got {size} bytes, at least {ACK_HEADER_BYTES}")
    count = load_u32(begin + 4)
    if size != ACK_HEADER_BYTES + <size_t>count * ACK_ENTRY_BYTES:
        raise ValueError(f"ack: got {size} bytes for {count} entries")
    check_entries(begin + ACK_HEADER_BYTES, begin + size)
    return begin + ACK_HEADER_BYTES


cdef int check_entries(const uint8_t* at, const uint8_t* end) except -1:
    """Check the entries of an ACK, each as such and their leases together."""
    cdef uint64_t leases = 0
    cdef uint32_t count
    cdef uint8_t verb
    while at < end:
        count = load_u32(at + 8)
        verb = at[12]
        leases += count
        if (not VERB_ACK <= verb <= VERB_RELEASE or at[13] or load_u16(at + 14) or count < 1
                or load_u64(at) > U64_MAX - count + 1):
            raise ValueError(f"ack: got verb {verb} of {count} leases from {load_u64(at)}")
        if ((load_u64(at + 16) and verb != VERB_NACK and verb != VERB_EXTEND)
                or (count > 1 and verb == VERB_ACK_THROUGH)):
            raise ValueError(f"ack: got verb {verb} of {count} leases with {load_u64(at + 16)} ms")
        if leases > LEASES_PER_ACK_MAX:
            raise ValueError(f"ack: got {leases} leases, limit {ACK_LEASES_MAX}")
        at += ACK_ENTRY_BYTES
    return 0


cdef int put_run(Bytes* to, uint64_t first, uint64_t last) except -1:
    cdef uint8_t run[RUN_BYTES]
    store_u64(run, first)
    store_u64(run + 8, last)
    bytes_append(to, run, RUN_BYTES)
    return 0


cdef int put_note(Bytes* to, uint64_t sequence, uint64_t due_us, uint32_t attempts) except -1:
    cdef uint8_t note[NOTE_BYTES]
    store_u64(note, sequence)
    store_u64(note + 8, due_us)
    store_u32(note + 16, attempts)
    bytes_append(to, note, NOTE_BYTES)
    return 0


cdef bytes channel_name(const Channel* channel):
    return PyBytes_FromStringAndSize(<const char*>channel.name, channel.name_bytes)


cdef Track* track_newest(const Channel* channel) noexcept nogil:
    """The newest epoch of which anything is known."""
    cdef Track* track = channel.tracks
    cdef Track* newest = NULL
    while track != NULL:
        if track.known:
            newest = track
        track = track.next
    return newest
