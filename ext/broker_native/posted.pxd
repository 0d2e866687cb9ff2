# The frames of records that a client publishes, each kept until all of its records are answered.

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.layout cimport *
from broker_native.outcomes cimport Waiter

cdef enum:
    FRAME_BYTES_CLOSE = 60 * 1024       # it still is one chunk with what the server adds, and far below 65,535 records
    FRAME_OVERHEAD_BYTES = 128          # what a kept frame costs besides its records

cdef enum FrameState:
    UNSENT                              # by this connection; a number says that an older one may have sent it
    SENT
    POSTPONED                           # refused for the number alone: it goes out again
    SPLIT                               # refused for one of its records: it goes out again record by record
    DONE

cdef enum FrameForm:
    PLAIN = 0                           # the others are told from it by one look
    EXPECTING                           # its one record goes with the head that its publisher knows
    DELAYED                             # its one record waits for a time, which is `epoch`
    TRANSACTION                         # `records` is whole PUBLISH frames, with slots for channels and no numbers


cdef struct Frame:
    uint8_t* records                    # owned
    PyObject* waiters                   # owned list of Waiter, or NULL
    uint64_t number                     # of its first record, once it was sent under it; else 0
    uint32_t size
    uint32_t capacity
    uint32_t count
    uint32_t answered                   # records whose outcome is known
    uint32_t slot
    bint names                          # a CHANNEL frame goes before it
    FrameState state
    FrameForm form
    uint32_t acks                       # of a transaction: ACK frames behind its publishes
    uint64_t epoch
    uint64_t sequence


cdef void frame_release(Frame* frame) noexcept
cdef int frame_grow(Frame* frame, uint32_t size) except -1
cdef int frame_add_waiter(Frame* frame, Waiter waiter) except -1
cdef int frame_answer(Frame* frame, uint64_t number, uint32_t count, uint64_t epoch, uint64_t first, uint32_t level,
                      bint duplicate) except -1
cdef bint frame_is_answered(Frame* frame) except -1
cdef uint32_t frame_fail(Frame* frame, object failure) except? 0xFFFFFFFF
cdef int frame_split(Frame* frame, uint32_t count, Frame* rest) except -1


cdef inline int frame_reserve(Frame* frame, uint32_t size) except -1:
    """Make room for `size` bytes behind those that are there."""
    return 0 if frame.size + size <= frame.capacity else frame_grow(frame, size)


cdef inline bint may_be_stored(const Frame* frame) noexcept nogil:
    """Whether the server may have it under its number: it was sent, by whatever connection, and not refused."""
    return frame.number != 0 and (frame.state == SENT or frame.state == UNSENT)


# -- bytes on the wire -------------------------------------------------------------------------------------------------


cdef inline size_t put_header(uint8_t* at, uint8_t kind, uint32_t body) noexcept nogil:
    store_u32(at, body)
    store_u32(at + 4, kind)             # flags and reserved bits are zero
    return FRAME_HEADER_BYTES


cdef inline uint8_t* put_publish(uint8_t* at, uint32_t channel, uint32_t count, uint64_t number,
                                 uint32_t rest) noexcept nogil:
    """Write a PUBLISH up to the end of its header, behind which come `rest` bytes; answers where."""
    at += put_header(at, KIND_PUBLISH, PUBLISH_HEADER_BYTES + rest)
    store_u32(at, channel)
    store_u32(at + 4, count)
    store_u64(at + 8, number)
    return at + PUBLISH_HEADER_BYTES


cdef inline uint32_t form_bytes(FrameForm form) noexcept nogil:
    """What stands between the header and the records of a PUBLISH."""
    return PUBLISH_EXPECT_BYTES if form == EXPECTING else PUBLISH_AT_BYTES if form == DELAYED else 0


cdef inline uint8_t* put_form(uint8_t* at, FrameForm form, uint64_t epoch, uint64_t sequence) noexcept nogil:
    """Write the flag of a PUBLISH whose header ends here, and what the flag announces; answers where records begin."""
    cdef uint8_t* flags = at - PUBLISH_HEADER_BYTES - FRAME_HEADER_BYTES + 5
    flags[0] = <uint8_t>(PUBLISH_FLAG_EXPECT if form == EXPECTING else PUBLISH_FLAG_AT)
    store_u64(at, epoch)
    if form == EXPECTING:
        store_u64(at + 8, sequence)
    return at + form_bytes(form)


# A PUBLISH within a transaction that is kept has the slot in the place of the channel's number. Whether a CHANNEL goes
# before it, decided as its bytes are counted, stands in the bits that are reserved on the wire.
cdef inline uint32_t inner_size(const uint8_t* at) noexcept nogil:
    return FRAME_HEADER_BYTES + load_u32(at)


cdef inline uint32_t inner_slot(const uint8_t* at) noexcept nogil:
    return load_u32(at + FRAME_HEADER_BYTES)


cdef inline bint inner_publishes(const uint8_t* at, const Frame* frame) noexcept nogil:
    """Whether a publish begins here in what is kept of a transaction; behind its publishes stand its acks."""
    return at < frame.records + frame.size and at[4] == KIND_PUBLISH


cdef inline bint inner_names(const uint8_t* at) noexcept nogil:
    return load_u16(at + 6) != 0
