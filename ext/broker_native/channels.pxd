# All channels in memory: two tables, what the journal's entries make of them, and who uses them.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.channel cimport Channel, GroupChunks, ProfileCounts
from broker_native.ids cimport IdKey, IdTable
from broker_native.open_chunks cimport ChunkPool
from broker_native.slabs cimport SlabHeap
from broker_native.slots cimport SlotTable

cdef enum:
    BATCH = 16                          # chunks whose channels are looked up together

cdef class Channels:
    cdef SlotTable by_name              # under `name_hash`, which several names may share
    cdef SlotTable by_id                # under `id_key`: stored ids, and those of one run
    cdef SlabHeap channels              # what the channels are made of
    cdef ChunkPool pool
    cdef uint64_t hash_seed
    cdef readonly uint64_t id_next      # the next stored channel's
    cdef uint64_t ephemeral_next
    cdef readonly uint64_t stored       # channels that the journal has, in memory or not
    cdef readonly uint64_t unborn       # channels in memory that the journal does not have
    cdef readonly uint64_t evicted      # stored channels that were evicted so far
    cdef uint64_t gone                  # channels in STATE_GONE
    cdef ProfileCounts* counts
    cdef uint32_t counts_size
    cdef uint64_t sweep_key             # where `evict` goes on: the segment of this key,
    cdef uint32_t sweep_slot            # … and the slot in it
    cdef bint begun                     # `begin_run`: what is applied outside of groups since then was looked up
    cdef uint64_t applying              # number of the group that is being applied, 0 for entries alone
    cdef uint64_t applied_group         # number of the last one that was
    cdef GroupChunks applied            # its chunks that were open when it was closed, until one's channel is freed
    cdef SlotTable ids                  # the ids of channels in IDS_HERE, under `ids_slot_key`
    cdef IdKey ids_key
    cdef readonly size_t ids_bytes      # what they take
    cdef public size_t ids_bytes_max    # past it ids that can be read back are given up
    cdef uint64_t ids_sweep_key         # where the search for them goes on
    cdef readonly uint64_t run
    cdef public uint64_t now_us

    cdef Channel* find(self, const char* name, size_t size) noexcept
    cdef Channel* find_here(self, bytes name) noexcept
    cdef Channel* by_channel_id(self, uint64_t id) noexcept
    # Sets `found` (BATCH items) and `count`; answers where the chunks behind those begin. The first of them is number
    # `chunk` of the group, or of no group (0).
    cdef const uint8_t* find_chunks(self, const uint8_t* at, const uint8_t* end, uint64_t group, uint32_t chunk,
                  Channel** found, uint32_t* count) noexcept
    cdef uint32_t now_s(self) noexcept
    cdef Channel* create(self, const char* name, size_t size, uint8_t level, uint8_t shard_tokens,
                  uint32_t payload_bytes_max) except NULL
    cdef void remove(self, Channel* channel) noexcept
    cdef void destroy(self, Channel* channel) noexcept
    cdef int register_id(self, Channel* channel, uint64_t id) except -1
    cdef int register_ephemeral(self, Channel* channel) except -1
    cdef ProfileCounts* counts_of(self, uint32_t profile) except NULL
    cdef bint may_go(self, const Channel* channel, uint64_t settled, uint32_t used_before_s) noexcept
    cdef const uint8_t* entry_ahead(self, const uint8_t* at, const uint8_t* end, uint64_t* id) noexcept
    cdef void entries_look_ahead(self, const uint8_t** far, const uint8_t** near, const uint8_t* end) noexcept
    cdef list apply_entries_at(self, const uint8_t* at, const uint8_t* end, lines)
    cdef int apply_channel(self, const uint8_t* at) except -1
    cdef int apply_epoch(self, const uint8_t* at) except -1
    cdef int apply_head(self, const uint8_t* at) except -1
    cdef int apply_trim(self, const uint8_t* at) except -1
    cdef int apply_drop(self, const uint8_t* at) except -1
    cdef void vanish(self, Channel* channel) noexcept
    cdef void come_back(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                  uint16_t profile) noexcept
    cdef Channel* known(self, uint64_t id) except NULL
    cdef void adopt(self, Channel* channel, uint8_t level, uint8_t shard_tokens, uint32_t payload_bytes_max,
                  uint16_t profile) noexcept
    cdef void change_home(self, Channel* channel) noexcept
    # The ids of the channel, in a table that is made if there is none; NULL when they have to be read back first.
    cdef IdTable* ids_of(self, Channel* channel) except? NULL
    cdef int keep_ids(self, Channel* channel, IdTable* table) except -1
    cdef void forget_ids(self, Channel* channel) noexcept
    cdef bint make_room_for_ids(self, const Channel* user) noexcept
    cdef void expire_ids(self, Channel* channel, IdTable* table) noexcept
