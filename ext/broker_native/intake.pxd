# The server's side of one byte stream: frames in, publishes and credits decided in place.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.fanout cimport Fanout, Outbox, Subscription
from broker_native.growing cimport Bytes
from broker_native.ids_ahead cimport IdsAhead
from broker_native.publisher cimport Publisher
from broker_native.rates cimport Rate
from broker_native.tails cimport Tails

cdef extern from "clock.h" nogil:
    uint64_t monotonic_us()

cdef class Clock:
    cdef public uint64_t offset_us      # broker time less the monotonic clock
    cdef public uint64_t floor_us       # broker time never goes below this
    cdef public bint manual             # the next field stands for the monotonic clock
    cdef public uint64_t manual_us

    cdef uint64_t read(self) noexcept
    cdef uint64_t steady(self) noexcept

cdef class SpillPool:
    cdef readonly str name
    cdef public size_t bytes_max
    cdef readonly size_t bytes          # capacity of the spills in it
    cdef readonly size_t count          # of intakes
    cdef Intake oldest                  # a doubly linked list through `older` and `newer`
    cdef Intake newest

    cdef int add(self, Intake intake) except -1
    cdef int remove(self, Intake intake) except -1
    cdef int move_last(self, Intake intake) except -1
    cdef int trim(self, uint64_t now_us) except -1

cdef class ReadBuffer:
    cdef readonly object view           # a writable memoryview, what the loop reads into
    cdef object crowded_view            # the first bytes of it
    cdef uint8_t* data
    cdef size_t size
    cdef object storage
    cdef readonly SpillPool early       # half frames of connections of which nobody knows what they are
    cdef readonly SpillPool partial     # half frames, and what was put off of a connection that is held
    cdef readonly SpillPool backlog     # what was put off: served from the oldest on
    cdef public object schedule         # has `go_on` called in the loop's next turn; None: nothing is put off
    cdef list resting                   # intakes that are read again in the next turn
    cdef bint scheduled
    cdef uint32_t frames                # that Python has handled in this turn
    cdef uint64_t turn_us               # when the first of them was
    cdef uint64_t frame_us              # when the last of them was
    cdef uint64_t spent_us              # what all of them took
    cdef IdsAhead ids_ahead             # of the frames that are being taken

    cdef int ask_for_turn(self) except -1

cdef class Intake:
    cdef readonly Fanout fanout
    cdef readonly Tails tails
    cdef readonly Outbox outbox
    cdef readonly ReadBuffer buffer
    cdef Clock clock
    cdef public Publisher publisher
    cdef public dict subscriptions      # number: Subscription; None before the first
    cdef public uint32_t frame_bytes_max
    cdef public uint64_t heard_us       # when the last bytes came, by the clock's steady time
    cdef public bint early              # its half frame counts among those of strangers
    cdef public Rate rate               # what it may publish; None: as much as it likes
    cdef public dict members            # subscription: Membership; None before it has taken jobs
    cdef public bint closed
    cdef readonly bint held             # what was put off waits for `let_go`
    cdef readonly bint suspended        # nothing is handled until `resume`, not even the rest of a read
    cdef readonly bint put_off          # the spill holds whole frames from `spill_at` on, for a later turn
    cdef bint feeding
    cdef uint8_t full_reads             # in a row
    cdef uint32_t frames                # that Python has handled since bytes came or its turn did
    cdef uint64_t frames_us             # when the first of them was
    cdef Bytes spill
    cdef size_t spill_at
    cdef size_t told_at                 # up to where in it `names_ahead` has been
    cdef SpillPool pool                 # where the spill counts; None while there is none
    cdef size_t spilled_bytes           # as how much
    cdef uint64_t spilled_us            # since when
    cdef Intake older
    cdef Intake newer

    cdef int take(self, const uint8_t* data, size_t size) except -1
    cdef int rest(self) except -1
    cdef int go_on(self) except -1
    cdef size_t take_acks(self, const uint8_t* data, size_t size) except? 0
    cdef bint take_ack(self, const uint8_t* frame) except -1
    cdef size_t take_spilled(self, const uint8_t* data, size_t size) except? 0
    cdef size_t take_frames(self, const uint8_t* data, size_t size) except? 0
    cdef size_t take_delayed(self, const uint8_t* data, size_t size, int* became) except? 0
    cdef size_t take_channels(self, const uint8_t* data, size_t size, int* became) except? 0
    cdef int count_frames(self, uint32_t count) except -1
    cdef int keep(self, const uint8_t* data, size_t size) except -1
    cdef int keep_rest(self) except -1
    cdef int forget_spill(self) except -1
    cdef int settle(self) except -1
    cdef int put_off_now(self) except -1
    cdef bint may_handle(self, uint32_t turns) noexcept
    cdef uint32_t turns_allowed(self) noexcept
    cdef bint check_header(self, const uint8_t* header) except -1
    cdef int take_frame(self, const uint8_t* frame) except -1
    cdef bint is_over_rate(self, const uint8_t* frame) except -1
    cdef bint take_whole(self, const uint8_t* frame) except -1
    cdef int answer_publish(self, int code, const uint8_t* body, uint32_t size) except -1
    cdef bint take_credit(self, const uint8_t* body) except -1
