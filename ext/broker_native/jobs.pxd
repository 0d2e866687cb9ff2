# What one durable consumer has to do. The contract stands in the module, the layout of what is stored as well.
#
# One job is one item of a slab, its record behind it (a large one in memory of its own), and is linked into all that it
# belongs to: its channel's sequences, its lane or the dead, its key, and the member that has or had it.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.growing cimport Bytes
from broker_native.slabs cimport ITEM_CLASSES, SlabHeap
from broker_native.slots cimport SlotTable

cdef enum:
    LANES = 4
    PAGE_LEASES = 512             # leases of a page

cdef struct Place:                # of the bus
    uint64_t group
    uint32_t index

cdef struct Timer:
    uint64_t due_us
    uint32_t slot                 # its place in the heap, counted from 1; 0: not in it
    uint32_t kind                 # TIMER_*

cdef struct Grant:                # jobs whose leases end together
    Timer timer
    uint64_t first                # they are among these leases
    uint32_t count
    uint32_t left                 # how many are under lease still

cdef struct Lot:                  # a chunk of which some jobs are not done
    Lot* next                     # by place, those of one place as they came
    Lot* previous
    Job* first                    # the others follow in their track
    Place place
    uint32_t left

cdef struct Chain:                # the jobs of one key, in order; all but the first wait for the one before them
    Job* first
    Job* last
    uint64_t hash

cdef struct Job:
    Timer timer                   # its due time while it is delayed, or until it is the first of its key
    Job* next                     # in its lane, or among the dead
    Job* previous
    Job* track_next               # ascending sequences
    Job* track_previous
    Job* held_next                # ascending leases
    Job* held_previous
    Job* chain_next
    Job* chain_previous
    Track* track
    Lot* lot
    Chain* chain                  # NULL: no key
    Member* holder                # who has its lease, or had it last and may still ack by it
    Grant* grant                  # NULL: not under lease, or for ever
    uint64_t lease
    uint64_t order                # in which it was taken
    uint64_t sequence
    uint64_t time_us
    uint64_t expires_us           # 0: never
    uint8_t* record
    uint32_t record_bytes
    uint32_t attempts
    uint8_t lane
    uint8_t state                 # JOB_*
    uint8_t flags                 # FLAG_*
    uint8_t reason
    uint32_t item_class           # of its memory

cdef struct JobList:
    Job* first
    Job* last

cdef struct Lane:
    JobList again
    JobList fresh
    uint32_t credit

cdef struct Run:
    uint64_t first
    uint64_t last

cdef struct Note:
    uint64_t sequence
    uint64_t due_us
    uint32_t attempts

cdef struct Restored:             # what a track had above `known` before a restart; ascending
    Run* runs
    Note* notes
    uint32_t runs_at              # what is before it is known meanwhile
    uint32_t runs_count
    uint32_t runs_capacity
    uint32_t notes_at
    uint32_t notes_count
    uint32_t notes_capacity

cdef struct Track:                # one epoch of a channel
    Track* next                   # a later epoch
    Channel* channel
    uint64_t epoch
    uint64_t known                # every sequence up to it has come: it is done, or among the jobs
    Place last                    # of its newest chunk; NOWHERE when none has come yet
    Job* first
    Job* end
    Restored* restored
    Track* acks_next              # in the order of their first change since the last were asked for
    Track* notes_next
    uint32_t acks_first           # in the log, counted from 1; 0: none
    uint32_t acks_last
    uint32_t notes_first
    uint32_t notes_last

cdef struct Channel:
    uint64_t id
    Track* tracks                 # epochs ascending
    uint32_t slot                 # among the channels
    uint32_t name_bytes
    uint8_t* name

cdef struct Member:
    uint64_t number
    uint64_t bytes_max
    uint64_t record_bytes         # under lease
    Job* held_first
    Job* held_last
    uint32_t* told                # by the channel's slot: its number on this subscription, counted from 1
    uint32_t told_count
    uint32_t names
    uint32_t subscription
    uint32_t window
    uint32_t jobs                 # under lease
    bint leaving                  # it has given back what it has not begun, and is granted nothing more

cdef struct LeasePage:
    uint64_t number               # of its first lease, divided by PAGE_LEASES
    uint32_t used
    Job* jobs[PAGE_LEASES]

cdef struct AckEntry:
    uint64_t first
    uint64_t last
    uint32_t next                 # of its track, counted from 1

cdef struct NoteEntry:
    uint64_t sequence
    uint64_t due_us
    uint32_t attempts
    uint32_t next


@cython.final
cdef class Jobs:
    cdef bint by_lanes
    cdef bint by_key
    cdef bint exclusive
    cdef bint by_position
    cdef uint64_t lease_ms
    cdef uint64_t backoff_first_ms
    cdef uint64_t backoff_longest_ms
    cdef uint32_t attempts_max
    cdef uint64_t random
    cdef uint64_t hash_seed
    cdef uint64_t first_lease
    cdef readonly uint64_t next_lease
    cdef readonly uint64_t done
    cdef readonly uint64_t redelivered
    cdef readonly uint64_t expired
    cdef readonly uint64_t bytes_held
    cdef public bint noted              # its consumer knows that transactions settle jobs of this group and turn
    cdef uint64_t states[4]             # jobs in each
    cdef uint64_t order
    cdef SlabHeap heap                  # jobs, lots, chains, grants and tracks
    cdef Job* idle[ITEM_CLASSES]        # memory of jobs that are done, linked by `next`
    cdef size_t idle_bytes
    cdef SlotTable by_id                # channels
    cdef SlotTable chains               # by their keys' hash
    cdef Channel** channels
    cdef uint32_t channels_count
    cdef uint32_t channels_capacity
    cdef Channel* recent
    cdef Member** members               # ascending numbers
    cdef uint32_t members_count
    cdef uint32_t members_capacity
    cdef Lane lanes[LANES]
    cdef JobList dying
    cdef LeasePage** pages              # ascending numbers
    cdef uint32_t pages_count
    cdef uint32_t pages_capacity
    cdef LeasePage* page                # the one that was used last
    cdef Timer** timers                 # a heap, the next on top
    cdef uint32_t timers_count
    cdef uint32_t timers_capacity
    cdef Lot* lots_first
    cdef Lot* lots_last
    cdef Place last_floor
    cdef Place vouched                  # everything up to it has been taken
    cdef Place seen_place
    cdef Place flagged                  # up to it jobs may have been seen before this began
    cdef AckEntry* acks
    cdef uint32_t acks_count
    cdef uint32_t acks_capacity
    cdef NoteEntry* notes
    cdef uint32_t notes_count
    cdef uint32_t notes_capacity
    cdef Track* acks_first
    cdef Track* acks_last
    cdef Track* notes_first
    cdef Track* notes_last
    cdef bint anew

    cdef Channel* channel_of(self, uint64_t id) except NULL
    cdef Track* track_of(self, Channel* channel, uint64_t epoch) except NULL
    cdef int take_delivery(self, const uint8_t* frame, const uint8_t* end) except -1
    cdef int take_chunk(self, Channel* channel, const uint8_t* chunk, const uint8_t* end, Place place,
                        bint passed) except -1
    cdef int add(self, Track* track, uint64_t sequence, Lot** lot, Place place, uint64_t chunk_us,
                 const uint8_t* record, uint32_t size) except -1
    cdef Job* job_new(self, size_t size) except NULL
    cdef void idle_add(self, Job* job) noexcept
    cdef void idle_clear(self) noexcept
    cdef Lot* lot_new(self, Place place) except NULL
    cdef int chain_add(self, Job* job, uint64_t hash) except -1
    cdef void set_state(self, Job* job, uint8_t state) noexcept
    cdef int enter(self, Job* job) except -1
    cdef void withdraw(self, Job* job) noexcept
    cdef int release_key(self, Job* job) except -1
    cdef void end_lease(self, Job* job) noexcept
    cdef void forget_lease(self, Job* job) noexcept
    cdef void job_free(self, Job* job) noexcept
    cdef int finish(self, Job* job) except -1
    cdef int die(self, Job* job, uint8_t reason) except -1
    cdef int note(self, Job* job) except -1
    cdef int log_ack(self, Track* track, uint64_t first, uint64_t last) except -1
    cdef int come_again(self, Job* job, uint64_t due_us) except -1
    cdef int give_back(self, Job* job) except -1
    cdef int come_along(self, Job* job) except -1
    cdef int come_back(self, Job** jobs, size_t count) except -1
    cdef uint64_t backoff_us(self, uint32_t attempts) noexcept
    cdef Member* member(self, uint64_t number) except NULL
    cdef uint32_t member_at(self, uint64_t number) noexcept
    cdef int tell(self, Member* member, Channel* channel) except -1
    cdef uint32_t jobs_under_way(self, uint64_t member) except? 0
    cdef bint has_room(self, uint64_t member) except -1
    cdef uint64_t ready_count(self) noexcept
    cdef Job* next_job(self) noexcept
    cdef bytes grant_to(self, uint64_t member, uint64_t now_us, uint32_t jobs_max)
    cdef int grant_job(self, Job* job, Member* member, Grant* grant) except -1
    cdef Grant* grant_new(self, uint64_t first, uint64_t due_us) except NULL
    cdef bytes jobs_frame(self, Member* member, uint64_t first, uint32_t names, size_t size)
    cdef bint ack_under_way(self, uint64_t member, const uint8_t* at, const uint8_t* end) except -1
    cdef bint holds(self, uint64_t member, const uint8_t* at, const uint8_t* end) except -1
    cdef int acknowledge(self, const uint8_t* at, const uint8_t* end) except -1
    cdef int settle_entry(self, Member* member, const uint8_t* entry, uint64_t now_us, list refused) except -1
    cdef int settle_lease(self, Member* member, Job* job, uint64_t lease, uint8_t verb, uint64_t ms, uint64_t now_us,
                          Grant** extended) except -1
    cdef int extend(self, Job* job, uint64_t deadline_us, Grant** extended) except -1
    cdef int ack_through(self, Member* member, uint64_t lease) except -1
    cdef LeasePage* page_of(self, uint64_t number) noexcept
    cdef Job* leased_job(self, uint64_t lease) noexcept
    cdef int lease_put(self, uint64_t lease, Job* job) except -1
    cdef void lease_clear(self, uint64_t lease) noexcept
    cdef int timer_add(self, Timer* timer) except -1
    cdef void timer_remove(self, Timer* timer) noexcept
    cdef void timer_sift(self, Timer* timer, uint32_t slot) noexcept
    cdef void find_floor(self) noexcept
    cdef void told(self) noexcept
    cdef int put_header(self, Bytes* to, uint8_t kind) except -1
    cdef int put_section(self, Bytes* to, Track* track, uint32_t runs, uint32_t notes) except -1
    cdef int put_changes(self, Bytes* to, Track* track) except -1
    cdef int put_whole(self, Bytes* to, Track* track) except -1
    cdef int apply(self, const uint8_t* at, const uint8_t* end) except -1
    cdef void clear(self) noexcept
