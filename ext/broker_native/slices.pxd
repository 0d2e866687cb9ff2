# What native code must know of a slice: sealed segments whose content goes into the archive in one ascending pass.
#
# SliceSource   one sealed segment: where its groups stand, and walks of its index and of its table entries.
# SliceMerger   merges them by channel and makes the archive's rows. One thread; it owns all its memory but the maps.
#
# Table entries without pages, as a segment of seal format 1 has them sorted in memory: for each channel, ascending,
#
#     u64 channel | u32 bytes | whole entries of the channel in the order in which they came
#
# A table page of a segment of seal format 2 holds the same between its header and its bounds.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from broker_native.btree cimport Span
from broker_native.chunks cimport ChunkBuilder
from broker_native.tree cimport TreeCursor, TreeReader

cdef enum:
    TABLE_HEAD_BYTES = 12         # u64 channel, u32 bytes
    TABLE_PAGE_HEADER_BYTES = 32  # u32 size, crc, magic, count, kind, end of the items, size of low, size of bound
    LEAF_CHUNK_BYTES = 1900       # two rows of this size share a leaf page; extending one rewrites no more than that
    WHOLE_CHUNK_BYTES = 16368     # four pages without the header of the first
    LAST_PAGE_BYTES_MIN = 2700    # less of a row's last page costs no more in leaf pages, which are seven tenths full
    REBUILT_CHUNK_BYTES = 65520   # sixteen pages
    REBUILT_LAST_PAGE_BYTES_MIN = 3500  # in a rebuilt file leaf pages are nearly full
    ROWS_DELETED_MAX = 4096       # of one channel in one transaction

cdef struct RowBuffer:            # grows; rows as u32 key size, u32 value size, key, value
    uint8_t* data
    size_t size
    size_t capacity

cdef struct GroupPlace:
    uint64_t number
    const uint8_t* at
    uint64_t size

cdef struct Source:
    TreeCursor index              # on the row of `page`
    TreeCursor tables             # on the row that `table_at` is in, when `paged`
    bint paged                    # whether the table entries stand in pages
    const uint8_t* entry          # of the index: the next one, NULL at the end
    const uint8_t* page_end
    const uint8_t* table_at       # the next channel's table entries, NULL at the end
    const uint8_t* table_end
    Span bound                    # up to where the table pages seen hold all there is
    uint64_t pages                # index pages seen
    uint64_t pages_expected
    GroupPlace* groups            # ascending by number
    uint64_t groups_count

cdef struct Waiting:              # a source and the channel that it is at
    uint64_t channel
    uint32_t source

cdef struct Incoming:             # a chunk of the channel that is being merged
    const uint8_t* at
    uint64_t first
    uint64_t next
    uint32_t source
    uint32_t offset
    uint64_t group

cdef struct Stored:               # a channel: what the archive has of it, and what becomes of that
    uint64_t channel
    bint found                    # it has a row
    bint changed
    bint announced                # a CHANNEL entry came
    bint dropped
    const uint8_t* created        # its CHANNEL entry, NULL when there is none
    uint64_t epoch
    uint64_t next
    uint64_t first
    uint64_t bytes                # of its chunks
    uint64_t chunks
    uint64_t trim                 # what a TRIM or HEAD entry wants to be the first sequence
    uint64_t head                 # what the newest HEAD entry says to be the next sequence

cdef class SliceSource:
    cdef Source source
    cdef readonly TreeReader reader
    cdef bytes tables

cdef class SliceMerger:
    cdef list held                # the sources, whose memory `sources` refers to
    cdef Source** sources
    cdef uint32_t sources_count
    cdef Waiting* chunks_waiting  # a heap of the sources that have index entries left, by channel and source
    cdef uint32_t chunks_count
    cdef Waiting* tables_waiting
    cdef uint32_t tables_count
    cdef Stored stored
    cdef bint unfinished          # the channel in `stored` has more rows to delete than one transaction takes
    cdef Incoming* incoming
    cdef uint32_t incoming_count
    cdef uint32_t incoming_capacity
    cdef RowBuffer entries        # of the channel, from all sources
    cdef RowBuffer epochs        # EPOCH entries of the channel
    cdef ChunkBuilder builder
    cdef RowBuffer put_names
    cdef RowBuffer put_channels
    cdef RowBuffer put_chunks
    cdef RowBuffer deletes
    cdef TreeReader archive       # the snapshot that `channels` and `chunks` are in
    cdef TreeCursor names
    cdef TreeCursor channels
    cdef TreeCursor chunks
    cdef const uint8_t* leaf      # the leaf that was counted as dirty last
    cdef const uint8_t* proved_after   # values of rows beside a place where no row is
    cdef const uint8_t* proved_before
    cdef uint64_t dirty_bytes
    cdef int64_t channels_added
    cdef int64_t records_added
    cdef int64_t bytes_added
    cdef int reason               # SLICE_*: why the pass stopped
    cdef int damaged_source       # -1: the archive
    cdef uint64_t damaged_group
    cdef uint64_t damaged_offset

    cdef object damage(self, int reason)
