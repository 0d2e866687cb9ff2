"""Walks over values: chunks one after the other, as `close_turn` and `close_group` make them.

For catching up from memory, not for the hot path. The values come from this process, so their structure is trusted;
what comes from a disk is verified before it gets here, but for the records inside of a chunk, whose sizes no checksum
proves to be sizes: `chunk_cut`, which walks them, looks at each. No state, any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from broker_native.crc32c cimport crc32c
from broker_native.layout cimport *


def chunks_start(bytes value):
    """Where the chunks of a group begin, bytes."""
    return GROUP_HEADER_BYTES + load_u32(<const uint8_t*>PyBytes_AS_STRING(value) + GROUP_ENTRIES_BYTES)


def chunk_offset(bytes value, uint32_t index):
    """Where the chunk with this index begins in a group, bytes; the group's size for the index after the last."""
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
    cdef size_t at = GROUP_HEADER_BYTES + load_u32(base + GROUP_ENTRIES_BYTES)
    cdef size_t end = <size_t>PyBytes_GET_SIZE(value)
    while index and at < end:
        at += load_u32(base + at)
        index -= 1
    if index:
        raise IndexError("the group has fewer chunks")
    return at


def chain_of(bytes value):
    """The chain checksum that a group carries."""
    return load_u32(<const uint8_t*>PyBytes_AS_STRING(value) + GROUP_CHAIN)


def chunks_of(bytes value, size_t start, uint64_t channel, uint64_t after):
    """The chunks of one channel that go past sequence `after`: a list of (index from `start`, chunk)."""
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
    cdef const uint8_t* at = base + start
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(value)
    cdef uint32_t index = 0
    cdef uint64_t next_first
    cdef list found = []
    while at < end:
        next_first = load_u64(at + CHUNK_FIRST) + load_u32(at + CHUNK_COUNT)
        if load_u64(at + CHUNK_CHANNEL) == channel and next_first > after + 1:
            found.append((index, PyBytes_FromStringAndSize(<const char*>at, load_u32(at))))
        index += 1
        at += load_u32(at)
    return found


def chunks_in(bytes value, size_t start, wanted):
    """The chunks whose channel id is in `wanted`: a list of (index from `start`, chunk)."""
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
    cdef const uint8_t* at = base + start
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(value)
    cdef uint32_t index = 0
    cdef list found = []
    while at < end:
        if load_u64(at + CHUNK_CHANNEL) in wanted:
            found.append((index, PyBytes_FromStringAndSize(<const char*>at, load_u32(at))))
        index += 1
        at += load_u32(at)
    return found


def chunk_heads(bytes value, size_t start):
    """Every chunk by its channel: {channel id: [(index from `start`, first sequence, count, offset, size), ...]}."""
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(value)
    cdef size_t at = start
    cdef size_t end = <size_t>PyBytes_GET_SIZE(value)
    cdef uint32_t index = 0
    cdef uint32_t size
    cdef dict found = {}
    cdef list of_channel
    while at < end:
        size = load_u32(base + at)
        of_channel = found.get(load_u64(base + at + CHUNK_CHANNEL))
        if of_channel is None:
            of_channel = found[load_u64(base + at + CHUNK_CHANNEL)] = []
        of_channel.append((index, load_u64(base + at + CHUNK_FIRST), load_u32(base + at + CHUNK_COUNT), at, size))
        index += 1
        at += size
    return found


def chunk_head(bytes chunk):
    """(channel id, epoch, first sequence, count) of a chunk."""
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(chunk)
    return (load_u64(at + CHUNK_CHANNEL), load_u64(at + CHUNK_EPOCH), load_u64(at + CHUNK_FIRST),
            load_u32(at + CHUNK_COUNT))


cdef uint32_t record_run(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """How many sequences the record at `at` covers; 0 when no record stands there."""
    cdef uint32_t size
    if end - at < RECORD_HEADER_BYTES:
        return 0
    size = load_u32(at)
    if size < RECORD_HEADER_BYTES or size > end - at:
        return 0
    if not load_u16(at + 4) & RECORD_GONE:
        return 1
    return load_u32(at + 16) if size >= GONE_RECORD_BYTES else 0


def chunk_cut(bytes chunk, uint64_t after):
    """The chunk without its sequences up to `after`: itself when it has none, else a new one with its own checksum.

    A GONE run that `after` falls into is shortened.

    Raises:
        ValueError: `after` is not among its sequences, or it is no chunk.
    """
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef uint64_t sequence, next_first
    cdef uint32_t run, size
    cdef bytes cut
    cdef uint8_t* to
    if PyBytes_GET_SIZE(chunk) < CHUNK_HEADER_BYTES or load_u32(base) != PyBytes_GET_SIZE(chunk):
        raise ValueError(f"chunk: got {len(chunk)} bytes, and it says otherwise")
    sequence = load_u64(base + CHUNK_FIRST)
    next_first = sequence + load_u32(base + CHUNK_COUNT)
    if after < sequence:
        return chunk
    if after + 1 >= next_first:
        raise ValueError(f"chunk: sequences {sequence} to {next_first - 1}, cut after {after}")
    while True:
        run = record_run(at, end)
        if not run:
            raise ValueError("chunk: its records do not cover its sequences")
        if sequence + run > after + 1:
            break
        sequence += run
        at += load_u32(at)
    size = <uint32_t>(CHUNK_HEADER_BYTES + (end - at))
    cut = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t*>PyBytes_AS_STRING(cut)
    memcpy(to, base, CHUNK_HEADER_BYTES)
    memcpy(to + CHUNK_HEADER_BYTES, at, end - at)
    if run > 1 and sequence <= after:
        store_u32(to + CHUNK_HEADER_BYTES + 16, <uint32_t>(sequence + run - (after + 1)))
    store_u32(to, size)
    store_u64(to + CHUNK_FIRST, after + 1)
    store_u32(to + CHUNK_COUNT, <uint32_t>(next_first - (after + 1)))
    store_u32(to + CHUNK_CRC, crc32c(0, to + CHUNK_CHANNEL, size - CHUNK_CHANNEL))
    return cut


cdef bytes chunk_part(const uint8_t* chunk, const uint8_t* at, uint32_t size, uint32_t before, uint32_t count):
    """Copy records of a chunk into one of their own. It expires when the whole does: at the earliest, never late."""
    cdef bytes part = PyBytes_FromStringAndSize(NULL, CHUNK_HEADER_BYTES + size)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(part)
    memcpy(to, chunk, CHUNK_HEADER_BYTES)
    memcpy(to + CHUNK_HEADER_BYTES, at, size)
    store_u64(to + CHUNK_FIRST, load_u64(chunk + CHUNK_FIRST) + before)
    store_u32(to + CHUNK_COUNT, count)
    seal_chunk(to, CHUNK_HEADER_BYTES + size)
    return part


def chunk_gone(uint64_t channel, uint64_t epoch, uint64_t first, uint32_t count, uint64_t time_us, uint8_t reason):
    """A chunk that is one GONE run."""
    cdef bytes made = PyBytes_FromStringAndSize(NULL, CHUNK_HEADER_BYTES + GONE_RECORD_BYTES)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(made)
    memset(to, 0, CHUNK_HEADER_BYTES + GONE_RECORD_BYTES)
    store_u64(to + CHUNK_CHANNEL, channel)
    store_u64(to + CHUNK_EPOCH, epoch)
    store_u64(to + CHUNK_FIRST, first)
    store_u32(to + CHUNK_COUNT, count)
    store_u64(to + CHUNK_TIME, time_us)
    gone_record(to + CHUNK_HEADER_BYTES, count, reason)
    seal_chunk(to, CHUNK_HEADER_BYTES + GONE_RECORD_BYTES)
    return made


cdef void gone_record(uint8_t* to, uint32_t run, uint8_t reason) noexcept nogil:
    memset(to, 0, GONE_RECORD_BYTES)
    store_u32(to, GONE_RECORD_BYTES)
    store_u16(to + 4, RECORD_GONE)
    to[12] = reason
    store_u32(to + 16, run)


cdef void seal_chunk(uint8_t* to, uint32_t size) noexcept nogil:
    store_u32(to, size)
    store_u32(to + CHUNK_CRC, crc32c(0, to + CHUNK_CHANNEL, size - CHUNK_CHANNEL))


def chunk_conflate(bytes chunk, bint keep_last):
    """The chunk as one GONE run (conflated), or as such a run and its last record: itself when it has no more.

    Raises:
        ValueError: It is no chunk.
    """
    cdef const uint8_t* base = <const uint8_t*>PyBytes_AS_STRING(chunk)
    cdef const uint8_t* at = base + CHUNK_HEADER_BYTES
    cdef const uint8_t* end = base + PyBytes_GET_SIZE(chunk)
    cdef uint32_t count, run, before, size, kept
    cdef bytes made
    cdef uint8_t* to
    if PyBytes_GET_SIZE(chunk) < CHUNK_HEADER_BYTES or load_u32(base) != PyBytes_GET_SIZE(chunk):
        raise ValueError(f"chunk: got {len(chunk)} bytes, and it says otherwise")
    count = load_u32(base + CHUNK_COUNT)
    before = 0
    while True:
        run = record_run(at, end)
        if not run or run > count - before:
            raise ValueError("chunk: its records do not cover its sequences")
        if before + run == count:
            break
        before += run
        at += load_u32(at)
    if not keep_last:
        before = count
    elif not before:
        return chunk
    kept = load_u32(at) if keep_last else 0
    size = CHUNK_HEADER_BYTES + GONE_RECORD_BYTES + kept
    made = PyBytes_FromStringAndSize(NULL, size)
    to = <uint8_t*>PyBytes_AS_STRING(made)
    memcpy(to, base, CHUNK_HEADER_BYTES)
    gone_record(to + CHUNK_HEADER_BYTES, before, GONE_CONFLATED)
    memcpy(to + CHUNK_HEADER_BYTES + GONE_RECORD_BYTES, at, kept)
    if not keep_last:
        store_u64(to + CHUNK_EXPIRY, 0)
    seal_chunk(to, size)
    return made
