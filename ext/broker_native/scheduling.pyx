"""PUBLISH frames with AT that came together, decided together: what nothing is to be said about but when it is due.

A run is taken up to the first frame that is anything else: malformed, out of its line, refused for its channel, its
records or its time. That one is decided by itself, elsewhere, and has its answer there. What was taken is in the index;
its records are handed out by the slots of the wheel that they belong to, each of them once, however many there are.

It knows no log and no clock. Whoever stores the records takes the index back when that fails (`Waiting.take_back`).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from broker_native.channel cimport STATE_FULL, Channel, channel_name
from broker_native.delayed cimport (
    ENVELOPE_BYTES, ENVELOPE_SCHEDULED, ID_BYTES_MAX, Pending, SLOTS, SLOTS_ALL, Waiting, level_for, put_envelope,
    record_id, slot_at)
from broker_native.growing cimport bytes_release, bytes_reserve, bytes_take
from broker_native.layout cimport (
    FRAME_HEADER_BYTES, KIND_PUBLISH, LEVEL_EPHEMERAL, PUBLISHED_ENTRY_BYTES, PUBLISHED_FLAG_DELAYED,
    PUBLISHED_FLAG_DUPLICATE, PUBLISH_AT_BYTES, PUBLISH_COUNT_MAX, PUBLISH_FLAG_AT, PUBLISH_HEADER_BYTES,
    RECORD_HEADER_BYTES, load_u16, load_u32, load_u64, store_u32, store_u64)
from broker_native.publisher cimport Publisher, publisher_channel

cdef extern from *:
    """
    #define WHEN_FROM_NOW (1ULL << 63)
    """
    const uint64_t WHEN_FROM_NOW       # a time from here on is one from now

cdef enum:
    AT_HEADER_BYTES = PUBLISH_HEADER_BYTES + PUBLISH_AT_BYTES


cdef int put_entry(Scheduled* run, uint32_t slot, uint8_t level, uint64_t due_us, uint8_t flags) except -1:
    """Answer the next number; one that follows on from the number before it has the same entry."""
    cdef uint8_t* at = NULL
    if run.entries.used:
        at = run.entries.data + (run.entries.used - PUBLISHED_ENTRY_BYTES)
    if at != NULL and load_u32(at + 28) == slot and load_u64(at + 16) == due_us and at[33] == flags:
        store_u32(at + 24, load_u32(at + 24) + 1)
    else:
        bytes_reserve(&run.entries, PUBLISHED_ENTRY_BYTES)
        at = run.entries.data + run.entries.used
        run.entries.used += PUBLISHED_ENTRY_BYTES
        store_u64(at, run.number)
        store_u64(at + 8, 0)
        store_u64(at + 16, due_us)
        store_u32(at + 24, 1)
        store_u32(at + 28, slot)
        store_u64(at + 32, 0)
        at[32] = level
        at[33] = flags
    run.number += 1
    return 0


cdef bint ids_are_there(const uint8_t* at, uint32_t count) noexcept nogil:
    """Whether each of the checked records has an id."""
    cdef uint32_t size = 0
    while count:
        if record_id(at, &size) == NULL or not 1 <= size <= ID_BYTES_MAX:
            return False
        at += load_u32(at)
        count -= 1
    return True


cdef int take_record(Waiting waiting, Scheduled* run, const Channel* channel, uint32_t slot, const uint8_t* record,
                     uint64_t due_us, uint64_t cursor_s) except -1:
    """Have a record wait, unless a message with its id does already."""
    cdef uint32_t id_size = 0, name_size = channel.name_size
    cdef const uint8_t* name = <const uint8_t*>channel_name(channel)
    cdef const uint8_t* id = record_id(record, &id_size)
    cdef int level = level_for(due_us // 1000000, cursor_s)
    cdef Slot* into = &run.slots[<uint32_t>level * SLOTS + slot_at(due_us // 1000000, level)]
    cdef Pending entry
    cdef Pending* found
    waiting.hash_of(name, name_size, id, id_size, &entry)
    found = waiting.find(&entry, True)
    if found != NULL:
        put_entry(run, slot, channel.level, found.due_us, PUBLISHED_FLAG_DELAYED | PUBLISHED_FLAG_DUPLICATE)
        return 0
    bytes_reserve(&into.records, RECORD_HEADER_BYTES + ENVELOPE_BYTES + name_size + id_size + load_u32(record))
    put_entry(run, slot, channel.level, due_us, PUBLISHED_FLAG_DELAYED)
    entry.due_us = due_us
    entry.ticket = run.ticket
    waiting.insert(&entry)
    waiting.note_change(&entry, True)
    into.records.used = <size_t>(put_envelope(
        into.records.data + into.records.used, &entry, ENVELOPE_SCHEDULED, name, name_size, id, id_size, record,
        load_u32(record)) - into.records.data)
    if not into.count or due_us < into.first_us:
        into.first_us = due_us
    into.count += 1
    run.ticket += 1
    run.messages += 1
    return 0


cdef bint take_frame(Waiting waiting, Publisher publisher, Scheduled* run, const uint8_t* frame,
                     const Moment* moment) except -1:
    """Take a whole frame; answers whether it was one that may be taken so."""
    cdef const uint8_t* at = frame + FRAME_HEADER_BYTES
    cdef uint32_t size = load_u32(frame)
    cdef uint32_t slot, count
    cdef uint64_t due_us
    cdef Channel* channel
    if size < AT_HEADER_BYTES:
        return False
    slot, count, due_us = load_u32(at), load_u32(at + 4), load_u64(at + 16)
    channel = publisher_channel(publisher, slot)
    if channel == NULL or not 1 <= count <= PUBLISH_COUNT_MAX or load_u64(at + 8) != run.number:
        return False
    if due_us >= WHEN_FROM_NOW:
        due_us += moment.now_us - WHEN_FROM_NOW
    if due_us > moment.due_us_max or channel.level == LEVEL_EPHEMERAL or channel.state == STATE_FULL:
        return False
    if publisher.check_records(channel, at + AT_HEADER_BYTES, size - AT_HEADER_BYTES, count):
        return False
    at += AT_HEADER_BYTES
    if not ids_are_there(at, count):
        return False
    due_us = max(due_us, moment.due_us_min)
    waiting.reserve_changes(count)
    while count:
        take_record(waiting, run, channel, slot, at, due_us, moment.cursor_s)
        at += load_u32(at)
        count -= 1
    return True


cdef bint is_at(const uint8_t* frame, size_t size) noexcept nogil:
    """Whether a whole PUBLISH with AT begins here."""
    return (size >= FRAME_HEADER_BYTES and load_u32(frame) <= size - FRAME_HEADER_BYTES and frame[4] == KIND_PUBLISH
            and frame[5] == PUBLISH_FLAG_AT and not load_u16(frame + 6))


cdef list slots_taken(Scheduled* run):
    """(level, slot, records, how many, when the first is due) of each slot that something goes into."""
    cdef list found = []
    cdef int at
    for at in range(SLOTS_ALL):
        if run.slots[at].count:
            found.append((at // SLOTS, at % SLOTS, bytes_take(&run.slots[at].records), run.slots[at].count,
                          run.slots[at].first_us))
    return found


def schedule_frames(Waiting waiting not None, Publisher publisher not None, bytes frames not None, uint64_t now_us,
                    uint64_t due_us_min, uint64_t due_us_max, uint64_t cursor_s, uint64_t ticket):
    """Have the records of PUBLISH frames with AT wait, from the first frame on as long as nothing else is to be said.

    Args:
        waiting: The index.
        publisher: Whose frames they are; the caller sees to it that its journal takes records, and answers.
        frames: Whole frames, headers included.
        now_us: The time.
        due_us_min: What is due before is due then.
        due_us_max: What is due later is not taken.
        cursor_s: The second at which the wheel stands.
        ticket: The first of so many tickets as there are records.

    Returns:
        How many frames were taken, and how many of their messages did not wait before; records for slots: (level,
        slot, records as in a PUBLISH, how many, when the first is due); and PUBLISHED entries, as `Waiting.schedule`
        has them.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(frames)
    cdef const uint8_t* end = at + PyBytes_GET_SIZE(frames)
    cdef size_t before = waiting.changes_count
    cdef Moment moment = Moment(now_us, due_us_min, due_us_max, cursor_s)
    cdef Scheduled* run = <Scheduled*>calloc(1, sizeof(Scheduled))
    cdef int slot
    if run == NULL:
        raise MemoryError
    run.number, run.ticket = publisher.line.next, ticket
    try:
        while is_at(at, <size_t>(end - at)) and take_frame(waiting, publisher, run, at, &moment):
            run.frames += 1
            at += FRAME_HEADER_BYTES + load_u32(at)
        return run.frames, run.messages, slots_taken(run), bytes_take(&run.entries)
    except BaseException:
        waiting.undo_to(before)
        raise
    finally:
        for slot in range(SLOTS_ALL):
            bytes_release(&run.slots[slot].records)
        bytes_release(&run.entries)
        free(run)
