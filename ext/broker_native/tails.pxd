# The sequencer's state: channels and their open chunks, producers' lines and the open group.
#
# One `Tails` belongs to one shard and to one thread. Nothing here does I/O or reads a clock: `now_us` is set by the
# caller.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.channel cimport Channel, ChannelList, GroupChunks
from broker_native.channels cimport Channels
from broker_native.growing cimport Bytes
from broker_native.open_chunks cimport ChunkMark, ClosedChunks

cdef class Tails(Channels):
    cdef ChannelList dirty[4]           # channels with an open chunk, by class
    cdef size_t open_bytes[4]           # of open chunks, by class
    cdef ClosedChunks closed[4]         # chunks closed before their class's close, by class
    cdef ChannelList touched            # channels with records in the open group
    cdef ChannelList touched_commit     # … in the group in commit
    cdef GroupChunks commit             # the chunks of the group in commit that were open when it was closed
    cdef Bytes checksums                # of the chunks of the group that is being closed
    cdef Bytes entries                  # of the open group
    cdef uint32_t entries_count
    cdef list early                     # values of early chunks that the open group will carry
    cdef uint32_t early_count
    cdef list lines_open
    cdef list lines_commit
    cdef list lines_unsettled           # lines of a failed group that may be on the disk all the same
    cdef list publishers_turn           # publishers with answers for the end of the turn
    cdef list publishers_group
    cdef public uint64_t group_number   # the open group's
    cdef uint32_t epoch_counter         # ephemeral epochs drawn in this run
    cdef public uint32_t transaction_bytes_max  # of one TRANSACTION body
    cdef public uint64_t early_until_us  # broker time after which accepted records wait for their commit
    cdef public bint accepted_waits     # it was over when the last read began
    cdef public int refuse_code         # storage does not take records now: the code that says why, else 0
    cdef readonly uint64_t turn_bytes   # decided since the last turn's close
    cdef readonly uint64_t group_bytes  # decided for the open group
    cdef readonly uint64_t records
    cdef readonly uint64_t record_bytes

    cpdef void begin_read(self, uint64_t now_us) noexcept
    cdef int prepare(self, Channel* channel) except -1
    cdef int prepare_ephemeral(self, Channel* channel) except -1
    cdef int prepare_stored(self, Channel* channel) except -1
    cdef int touch(self, Channel* channel) except -1
    cdef int announce(self, Channel* channel) except -1
    cdef int begin_epoch(self, Channel* channel) except -1
    cdef int append(self, Channel* channel, const uint8_t* record, uint32_t size, uint32_t count,
                  uint64_t expiry_s) except -1
    cdef int close_chunk(self, Channel* channel) except -1
    cdef void take_back(self, Channel* channel, const ChunkMark* mark) noexcept
    cdef size_t class_bytes(self, int chunk_class) noexcept
    cdef uint8_t* take_closed(self, int chunk_class, uint8_t* to) noexcept
    cdef uint32_t take_turn(self, int chunk_class, uint8_t* to) noexcept
    cdef uint32_t take_group(self, uint8_t* to) noexcept
    cdef void note_checksums(self, const uint8_t* at, const uint8_t* end) noexcept
    cdef int close_lines(self) except -1
    cdef uint32_t group_chain(self, const uint8_t* start) noexcept
    cdef void group_closed(self) noexcept
    cdef void apply_own(self) noexcept
    cdef int apply_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t number) except -1
    cdef int undo_lines(self, bint handed_over) except -1
    cdef list take_stored_turn_answers(self)
    cdef void drop_class(self, int chunk_class) noexcept
    cdef void undo_channel(self, Channel* channel) noexcept
