# The byte layouts of broker/wire/specification.md and of the journal's groups, said once for all native code.
#
# Everything here is unaligned little-endian; the loads and stores below compile to single moves.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "layout.h" nogil:
    uint16_t load_u16(const uint8_t* at)
    uint32_t load_u32(const uint8_t* at)
    uint64_t load_u64(const uint8_t* at)
    void store_u16(uint8_t* at, uint16_t value)
    void store_u32(uint8_t* at, uint32_t value)
    void store_u64(uint8_t* at, uint64_t value)
    const uint64_t EPHEMERAL_ID     # channel ids from here on are of one run only and never journaled

cdef enum:
    FRAME_HEADER_BYTES = 8

    KIND_HELLO = 1
    KIND_WELCOME = 2
    KIND_ERROR = 3
    KIND_PING = 4
    KIND_PONG = 5
    KIND_GOING_AWAY = 6
    KIND_CHANNEL = 7
    KIND_SUBSCRIBE = 8
    KIND_SUBSCRIBED = 9
    KIND_UNSUBSCRIBE = 10
    KIND_UNSUBSCRIBED = 11
    KIND_EVENT = 12
    KIND_REQUEST = 13
    KIND_REPLY = 14
    KIND_PUBLISH = 16
    KIND_PUBLISHED = 17
    KIND_DELIVER = 18
    KIND_ACK = 19
    KIND_CREDIT = 20
    KIND_JOBS = 21
    KIND_ACKED = 22
    KIND_TRANSACTION = 23

    PUBLISH_HEADER_BYTES = 16     # u32 channel, u32 count, u64 number
    PUBLISH_COUNT_MAX = 65535
    PUBLISH_FLAG_EXPECT = 1       # u64 epoch, u64 sequence stand between header and records
    PUBLISH_EXPECT_BYTES = 16
    PUBLISH_FLAG_AT = 2           # u64 when stands there
    PUBLISH_AT_BYTES = 8
    PUBLISH_FLAG_ASK = 4
    PUBLISH_FLAG_REPLY = 8
    TRANSACTION_HEADER_BYTES = 8  # u32 publishes, u32 acks; whole frames follow
    PUBLISHED_ENTRY_BYTES = 40    # u64 number, u64 epoch, u64 first, u32 count, u32 channel, u8 level, u8 flags, 6 zero
    PUBLISHED_FLAG_DUPLICATE = 1
    PUBLISHED_FLAG_DELAYED = 2    # epoch 0, and for first when it is due
    DELIVER_HEADER_BYTES = 16     # u32 subscription, u32 index, u64 group
    DELIVER_FLAG_NAME = 1
    DELIVER_FLAG_EARLY = 2
    CREDIT_BYTES = 16             # u32 subscription, u32 zero, u64 bytes
    ACK_HEADER_BYTES = 16         # u32 subscription, u32 count, u64 number
    ACK_ENTRY_BYTES = 24          # u64 lease, u32 leases, u8 verb, 3 zero, u64 ms
    JOBS_HEADER_BYTES = 32        # u32 subscription, u32 count, u64 lease, u64 lease_ms, u64 zero
    JOBS_BODY_BYTES_MAX = 262144  # or one job
    JOB_HEADER_BYTES = 40         # u32 size, u32 channel, u64 epoch, u64 sequence, u64 time_us, u16 attempt, u8 flags,
    #                               u8 name length, u32 zero
    JOB_FLAG_REDELIVERED = 1
    JOB_FLAG_NAME = 2
    ACKED_BYTES = 16              # u32 subscription, u32 zero, u64 number

    RECORD_HEADER_BYTES = 12      # u32 size, u16 flags, u16 zero, u32 time_us
    RECORD_PUBLISHER = 0x0001
    RECORD_NUMBER = 0x0002
    RECORD_PRIORITY = 0x0004
    RECORD_EXPIRY = 0x0008
    RECORD_KEY = 0x0010
    RECORD_HEADERS = 0x0020
    RECORD_ID = 0x0040
    RECORD_GONE = 0x8000
    RECORD_FLAGS_CLIENT = 0x007C  # what a PUBLISH may carry
    RECORD_FLAGS_KNOWN = 0x807F
    RECORD_ID_BYTES_MAX = 64

    CHUNK_HEADER_BYTES = 56
    CHUNK_CRC = 4                 # offsets of the header's fields
    CHUNK_CHANNEL = 8
    CHUNK_EPOCH = 16
    CHUNK_FIRST = 24
    CHUNK_COUNT = 32
    CHUNK_FLAGS = 36
    CHUNK_TIME = 40
    CHUNK_EXPIRY = 48
    CHUNK_BYTES_CLOSE = 65536     # a chunk closes before a record would carry it past this

    # A group, the journal's one kind of value: header, entries, chunks.
    GROUP_HEADER_BYTES = 96
    GROUP_MAGIC = 0x50524742      # "BGRP"
    GROUP_FORMAT = 1
    GROUP_FORMAT_AT = 4           # u16 format, u16 header bytes
    GROUP_NUMBER = 8
    GROUP_PREDECESSOR = 16
    GROUP_TERM = 24
    GROUP_WRITER = 32
    GROUP_RUN = 40
    GROUP_TIME = 48               # u64 microseconds
    GROUP_ENTRIES_BYTES = 56      # u32
    GROUP_ENTRIES_COUNT = 60      # u32
    GROUP_CHUNKS_COUNT = 64       # u32
    GROUP_FLAGS = 68              # u32
    GROUP_SIZE = 72               # u64, the whole value
    GROUP_CHAIN = 80              # u32
    GROUP_PREVIOUS_CHAIN = 84     # u32, the predecessor's chain
    GROUP_RESERVED = 88           # u64 zero
    GROUP_FLAG_FENCE = 1

    # An entry: u32 size (whole), u16 kind, u16 flags, body.
    ENTRY_HEADER_BYTES = 8
    ENTRY_CHANNEL = 1             # u64 id, u8 level, u8 shard tokens, u8 name length, u8 zero, name
    ENTRY_EPOCH = 2               # u64 channel, u64 epoch, u64 first
    ENTRY_LINE = 3                # 16 producer, u64 number, u64 count, u32 runs, u32 zero, runs (LINE_RUN_BYTES each)
    ENTRY_HEAD = 4                # u64 channel, u64 epoch, u64 next, u64 first
    ENTRY_RUN = 5                 # u64 run, u8 clean (the run before it ended by close), 7 zero
    ENTRY_CLOSE = 6               # u64 run: the run ended in good order
    ENTRY_TRIM = 7                # u64 channel, u64 first: what is below is gone, u8 reason (GONE_*), 7 zero
    ENTRY_DROP = 8                # u64 channel: it is no more, and its name is free for another id
    ENTRY_TRIM_BYTES = 32
    ENTRY_DROP_BYTES = 16
    ENTRY_FLAG_IGNORABLE = 0x0001  # a reader that does not know the kind may pass over it
    ENTRY_FLAG_SNAPSHOT = 0x0002  # the whole state of its row rather than a change to it

    LINE_WINDOW = 1024            # numbers whose positions a line remembers
    LINE_RUN_BYTES = 20           # u64 channel, u64 first, u32 count
    LINE_HEADER_BYTES = 40        # of the body, before the runs

    LEVEL_EPHEMERAL = 1
    LEVEL_ACCEPTED = 2
    LEVEL_SYNCED = 3
    LEVEL_REPLICATED = 4

    GONE_EXPIRED = 1
    GONE_COMPACTED = 2
    GONE_REVOKED = 3
    GONE_ERASED = 4
    GONE_DROPPED = 5
    GONE_LOST = 6
    GONE_CONFLATED = 7
    GONE_RECORD_BYTES = 20        # header, u8 reason, 3 zero, u32 run
