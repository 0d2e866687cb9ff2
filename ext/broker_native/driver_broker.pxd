# The broker's own protocol: see the module's docstring.
#
# What it writes stands here, to become part of the loop that calls it: with a record a frame, a call through a pointer
# would cost each record 28 instructions, of 340 that it takes in all.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.driver_load cimport Connection, Dialect, Load, Publisher, Sent, payload_write, publisher_wrote
from broker_native.layout cimport (
    FRAME_HEADER_BYTES, KIND_PUBLISH, PUBLISH_HEADER_BYTES, RECORD_HEADER_BYTES, store_u32, store_u64)

cdef enum:
    DRIVER_ID_BYTES = 17             # u8 16, then u32 publisher, u32 channel, u64 counter

cdef const Dialect* broker_dialect() noexcept nogil
# The same, with a key in each record.
cdef const Dialect* broker_keyed_dialect() noexcept nogil
cdef const Dialect* broker_delayed_dialect() noexcept nogil
# Where a record's payload begins; above `size` when its fields do not fit.
cdef uint32_t record_fields_bytes(const uint8_t* record, uint32_t size) noexcept nogil
cdef void connection_pong(Load* load, Connection* connection, const uint8_t* token) noexcept nogil


cdef inline void frame_header_write(uint8_t* frame, uint32_t body_bytes, uint32_t kind) noexcept nogil:
    store_u32(frame, body_bytes)
    store_u32(frame + 4, kind)       # flags and the reserved field are zero


cdef inline void id_write(uint8_t* at, uint32_t publisher, uint32_t channel, uint64_t counter) noexcept nogil:
    """Write the field of a record's id: one that no other record of the run has."""
    at[0] = DRIVER_ID_BYTES - 1
    store_u32(at + 1, publisher)
    store_u32(at + 5, channel)
    store_u64(at + 9, counter)


cdef inline uint8_t* broker_write(Load* load, Publisher* publisher, uint8_t* frame, uint32_t channel, uint32_t count,
                                  uint64_t time_ns) noexcept nogil:
    """Write one PUBLISH frame of `count` records; as the `write` of a Dialect."""
    cdef uint8_t* record = frame + FRAME_HEADER_BYTES + PUBLISH_HEADER_BYTES
    cdef uint32_t i, number = publisher.turn
    cdef uint32_t stamped = 0 if load.owned else publisher.index
    frame_header_write(frame, PUBLISH_HEADER_BYTES + count * load.record_bytes, KIND_PUBLISH)
    store_u32(frame + 8, number)
    store_u32(frame + 12, count)
    store_u64(frame + 16, publisher.records + 1)
    for i in range(count):
        store_u64(record, load.record_head)
        store_u32(record + 8, 0)
        if load.fields_bytes:
            id_write(record + RECORD_HEADER_BYTES, stamped, channel, publisher.counters[number] + i)
        payload_write(load, record + RECORD_HEADER_BYTES + load.fields_bytes, stamped, publisher.counters[number] + i,
                      time_ns, channel)
        record += load.record_bytes
    if publisher.sent != NULL:
        publisher.sent[(publisher.records + 1) & load.sent_mask] = Sent(publisher.records + 1, time_ns, number)
    publisher_wrote(publisher, number, count)
    return record
