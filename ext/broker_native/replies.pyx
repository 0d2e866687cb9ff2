"""Replies to requests on their way through the server: a PUBLISH frame's records become one DELIVER frame.

It is of subscription 0 and its chunk of no channel, epoch 0: the sequences of its records are the numbers of the
requests that they answer. Nothing is kept of them. No state; the loop's thread, as the publisher's.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from broker_native.channel cimport Channel
from broker_native.crc32c cimport crc32c
from broker_native.fanout cimport deliver_prefix
from broker_native.layout cimport *
from broker_native.publisher cimport Publisher

cdef enum:
    PREFIX_BYTES = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES


def reply_frame(Publisher publisher not None, bytes body not None, Py_ssize_t at, uint64_t number, uint32_t count,
                uint64_t time_us, uint32_t payload_bytes_max):
    """Frame the replies of a PUBLISH for the connection that has asked.

    Args:
        publisher: Of the connection that replies: its limit of headers holds.
        body: The body of its frame.
        at: Where the records begin in it.
        number, count: Of the requests that they answer, both from 1.
        time_us: Broker time.
        payload_bytes_max: Limit of a payload, bytes.

    Returns:
        The frame, header included; or the code of the refusal, when a record is not well formed or over a limit.

    Raises:
        ValueError: `at` is not in the body.
    """
    cdef const uint8_t* records = <const uint8_t*>PyBytes_AS_STRING(body) + at
    cdef uint32_t size = <uint32_t>(PyBytes_GET_SIZE(body) - at)
    cdef Channel limits
    cdef bytes frame
    cdef uint8_t* chunk
    cdef int code
    if at < 0 or at > PyBytes_GET_SIZE(body):
        raise ValueError(f"replies: got offset {at}, the body has {len(body)} bytes")
    memset(&limits, 0, sizeof(Channel))
    limits.payload_bytes_max = payload_bytes_max
    code = publisher.check_records(&limits, records, size, count)
    if code:
        return code
    frame = PyBytes_FromStringAndSize(NULL, PREFIX_BYTES + CHUNK_HEADER_BYTES + size)
    chunk = <uint8_t*>PyBytes_AS_STRING(frame) + PREFIX_BYTES
    deliver_prefix(chunk - PREFIX_BYTES, CHUNK_HEADER_BYTES + size, 0, 0, 0, 0)
    memcpy(chunk + CHUNK_HEADER_BYTES, records, size)
    memset(chunk, 0, CHUNK_HEADER_BYTES)
    store_u32(chunk, CHUNK_HEADER_BYTES + size)
    store_u64(chunk + CHUNK_FIRST, number)
    store_u32(chunk + CHUNK_COUNT, count)
    store_u64(chunk + CHUNK_TIME, time_us)
    store_u64(chunk + CHUNK_EXPIRY, begin_records(chunk + CHUNK_HEADER_BYTES, count, time_us))
    store_u32(chunk + CHUNK_CRC, crc32c(0, chunk + CHUNK_CHANNEL, CHUNK_HEADER_BYTES + size - CHUNK_CHANNEL))
    return frame


cdef uint64_t begin_records(uint8_t* at, uint32_t count, uint64_t time_us) noexcept nogil:
    """Let all records be of the chunk's time; answers the earliest expiry, seconds, 0 when none has one.

    They have been checked.
    """
    cdef uint64_t expiry_s, earliest_s = 0
    cdef uint16_t flags
    while count:
        flags = load_u16(at + 4)
        store_u32(at + 8, 0)
        if flags & RECORD_EXPIRY:
            expiry_s = time_us // 1000000 + load_u32(at + RECORD_HEADER_BYTES + (1 if flags & RECORD_PRIORITY else 0))
            if not earliest_s or expiry_s < earliest_s:
                earliest_s = expiry_s
        at += load_u32(at)
        count -= 1
    return earliest_s
