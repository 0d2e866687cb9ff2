# The load driver: one thread that publishes over many connections, reads over many others, and checks every record.
#
# A subscriber belongs to one audience and so do its channels: channel c and subscriber s meet when c % audiences ==
# s % audiences. With one audience everybody reads everything; with as many as subscribers each has channels of its own.
# Each audience has a window: what was published to it and not yet read by its slowest subscriber is bounded, so that a
# load never outruns the credit which its readers have granted.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "driver_ledger.h" nogil:
    enum:
        STAMP_BYTES
        STAMP_TIME
        STAMP_CHANNEL
        STAMP_PUBLISHERS_MAX

    ctypedef struct Ledger:
        uint64_t flows
        uint64_t* next
        uint64_t passed
        uint64_t taken
        uint64_t duplicated
        uint64_t reordered
        uint64_t corrupt
        uint32_t payload_bytes
        uint32_t publishers

    void stamp_write(uint8_t* payload, uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel)
    void pattern_fill(uint8_t* pattern, uint32_t payload_bytes)
    int ledger_open(Ledger* ledger, const uint8_t* pattern, uint32_t payload_bytes, uint32_t channels,
                    uint32_t publishers)
    void ledger_close(Ledger* ledger)
    void ledger_take(Ledger* ledger, uint64_t first_flow, uint32_t channel, const uint8_t* payload)
    uint64_t ledger_lost(const Ledger* ledger)

cdef extern from "driver_poll.h" nogil:
    enum:
        POLLER_EVENTS_MAX
    const uint64_t POLLER_NEVER

    ctypedef struct Poller:
        pass

    ctypedef struct PollerEvent:
        uint32_t index
        uint8_t readable
        uint8_t writable

    uint64_t clock_ns()
    uint64_t clock_cpu_ns()
    int poller_open(Poller* poller)
    void poller_close(Poller* poller)
    int poller_add(Poller* poller, int fd)
    int poller_interest(Poller* poller, int fd, uint32_t index, bint reading, bint writing)
    int poller_wait(Poller* poller, uint64_t deadline_ns, PollerEvent* events)

cdef struct Lane:               # one channel as one subscription sees it
    uint64_t channel_id         # the server's; 0 while the lane is free
    uint64_t epoch
    uint64_t last               # sequence of the newest record, 0 before the first
    uint64_t first_flow         # of the channel in the subscriber's ledger
    uint32_t channel            # ours; UNBOUND until a name or a payload has told it

cdef struct Subscriber:
    Ledger ledger
    Lane* lanes                 # open addressing, lanes_mask + 1 of them, at most half of them in use
    uint32_t lanes_mask
    uint32_t lanes_used
    uint32_t audience
    uint8_t named               # the first chunk of each channel must tell its name
    uint8_t steady              # reads all the time: it is timed, and publishers wait for it
    uint8_t halted              # reads nothing at present
    uint64_t credit_portion     # bytes; what has been read is granted again in portions of this size
    uint64_t credit_used        # bytes read and not yet granted again
    uint64_t group              # bus position of the newest chunk that was committed when it came
    uint64_t index
    # the chunk under way
    Lane* lane
    uint32_t chunk_left         # bytes of records still to come; 0 between chunks
    uint32_t chunk_sequences    # sequences that they must cover
    uint32_t chunk_bytes
    uint32_t chunk_crc          # as its header says
    uint32_t crc                # of what has come

cdef struct Sent:               # a PUBLISH that waits for its answer
    uint64_t number             # of its first record
    uint64_t time_ns
    uint32_t channel

cdef struct Publisher:
    uint32_t index
    uint32_t channels           # that it has named, with numbers from 0
    uint32_t turn               # which of its numbers is next
    uint64_t random             # the state of its choice, when channels are chosen at random
    Sent* sent                  # [load.sent_mask + 1], by number; NULL unless answers are measured
    uint64_t frames             # sent
    uint64_t records            # sent; the line's next number is one higher
    uint64_t acked
    uint64_t acked_sum          # of the numbers that were answered, modulo 2^64: each must be answered once
    uint64_t left               # records still to send
    bint shut                   # its window of unanswered records is full
    uint64_t* counters          # [channels]: the next counter of each of its flows
    uint64_t* heads             # [channels]: the last sequence that was answered, 0 before; NULL unless it owns them

cdef struct Audience:
    uint64_t published
    uint64_t passed             # by its slowest subscriber, as of `turn`
    uint64_t turn
    bint shut                   # its window is full

cdef struct Connection:
    int fd
    bint waits_to_write
    Publisher* publisher        # one of the two
    Subscriber* subscriber
    uint8_t* out
    size_t out_capacity
    size_t out_begin            # out[out_begin, out_end) is still to be sent
    size_t out_end
    uint8_t* spill              # the bytes of a frame or record that has not come whole
    size_t spill_bytes
    size_t spill_capacity

cdef struct Load:
    Poller poller
    Connection* connections
    Publisher* publishers
    Subscriber** subscribers
    Audience* audiences
    uint32_t connections_count
    uint32_t publishers_count
    uint32_t publishers_max
    uint32_t subscribers_count
    uint32_t capacity           # of connections and subscribers
    uint32_t channels
    uint32_t audiences_count
    bint owned                  # each publisher has channels of its own
    bint random                 # and takes them at random
    uint32_t flow_publishers    # publishers that a channel has
    uint64_t sent_mask
    # a record
    uint8_t* pattern            # a payload
    uint32_t payload_bytes
    uint32_t record_bytes
    uint64_t record_head        # the first 8 bytes of a record without any field
    uint32_t batch
    bint crc
    uint32_t frame_bytes_max
    uint64_t window             # records
    # names, for subscriptions with wildcards
    const uint8_t** names
    uint8_t* name_sizes
    # one run
    uint64_t rate               # records a second of all publishers, 0 = as fast as the windows allow
    uint64_t start_ns
    uint64_t stop_ns            # nothing is due from here on
    uint64_t hold_ns            # the run does not end before
    uint64_t turn
    uint64_t active_ns          # when something was last sent or received
    uint64_t arrived_ns         # when a record or an answer last came
    uint64_t assured_ns         # when those who read nothing last said that they are there
    uint32_t publisher_first    # who is asked first in the next turn
    # what came
    uint8_t* buffer             # where every connection reads to
    size_t buffer_bytes
    uint64_t acked_twice        # records whose answer says duplicate
    uint64_t misplaced          # chunks that do not follow the one before
    uint64_t unordered          # answers that do not follow the one before in their channel
    uint64_t crc_wrong
    uint64_t events
    uint64_t lagging            # of these, how many say that a subscriber has fallen behind,
    uint64_t live               # and that it has all again
    uint8_t level_min
    uint8_t level_max
    # what ended it
    int failure                 # FAILURE_*
    int failure_errno
    uint32_t failure_connection
    const char* failure_detail
    uint8_t* failure_body
    uint32_t failure_bytes
