/* What a load sends and how its reader proves that it came: stamps, and the ledger that checks them.
 *
 * payload
 *  0       8         16        20      24
 *  | stamp | time_ns | channel | check | the pattern's bytes 24 to payload_bytes
 *    u64     u64       u32       u32
 *
 * `stamp` is the publisher in its upper 16 bits and below them a counter, dense from 0 for each (publisher, channel): a
 * flow. `time_ns` is when the record was due to be sent. `check` binds the three other fields together, so that a header
 * put together from two messages is seen. The rest is the same in every message and compared whole.
 *
 * A ledger belongs to one reader and holds the next counter of each flow. A counter above it leaves a missing range
 * behind, and one below it is either of such a range (it was overtaken: reordered) or not (duplicated); what is still
 * missing in the end is lost. A payload whose header does not hold together is of no flow: it is corrupt, and the message
 * that it should have been is lost. One whose other bytes are wrong is corrupt and takes its place.
 *
 * One thread at a time owns a ledger. Payloads and the pattern are borrowed.
 */
#ifndef BROKER_DRIVER_LEDGER_H
#define BROKER_DRIVER_LEDGER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

#define STAMP_BYTES 24
#define STAMP_TIME 8
#define STAMP_CHANNEL 16
#define STAMP_CHECK 20
#define STAMP_COUNTER_BITS 48
#define STAMP_COUNTER_MASK ((UINT64_C(1) << STAMP_COUNTER_BITS) - 1)
#define STAMP_PUBLISHERS_MAX 65536

typedef struct {
    uint64_t flow;
    uint64_t from, to; /* counters from <= c < to are missing */
} MissingRange;

typedef struct {
    const uint8_t *pattern; /* payload_bytes, of which the first STAMP_BYTES are not compared */
    uint32_t payload_bytes;
    uint32_t publishers;
    uint64_t flows;         /* channels * publishers */
    uint64_t *next;         /* [flows]: channel * publishers + publisher */
    uint64_t passed;        /* sum of next: how far the reader is, whatever came in between */
    uint64_t taken;         /* payloads looked at, right or wrong */
    uint64_t duplicated;
    uint64_t reordered;
    uint64_t corrupt;
    uint64_t lost_for_sure; /* missing ones that there was no memory to remember */
    MissingRange *missing;
    uint32_t missing_count;
    uint32_t missing_capacity;
} Ledger;

static inline uint32_t stamp_check(uint64_t stamp, uint64_t time_ns, uint32_t channel)
{
    /* Odd multipliers: a change of any one field always changes the sum; the last two steps spread it over 32 bits. The
     * constant is there so that a payload of zeros is none. */
    uint64_t mixed = UINT64_C(0x27D4EB2F165667C5) + stamp * UINT64_C(0x9E3779B97F4A7C15) + time_ns * UINT64_C(0xC2B2AE3D27D4EB4F)
        + (uint64_t)channel * UINT64_C(0x165667B19E3779F9);
    mixed ^= mixed >> 32;
    return (uint32_t)((mixed * UINT64_C(0xD6E8FEB86659FD93)) >> 32);
}

static inline void stamp_write(uint8_t *payload, uint32_t publisher, uint64_t counter, uint64_t time_ns, uint32_t channel)
{
    uint64_t stamp = (uint64_t)publisher << STAMP_COUNTER_BITS | counter;
    store_u64(payload, stamp);
    store_u64(payload + STAMP_TIME, time_ns);
    store_u64(payload + STAMP_CHANNEL, (uint64_t)stamp_check(stamp, time_ns, channel) << 32 | channel);
}

/* Fills the bytes that all payloads share. No two neighbours of it are alike, so that a shifted payload differs. */
static inline void pattern_fill(uint8_t *pattern, uint32_t payload_bytes)
{
    uint32_t state = 0x2545F491u;
    for (uint32_t i = 0; i < payload_bytes; i++) {
        state = state * 1664525u + 1013904223u;
        pattern[i] = (uint8_t)(state >> 24);
    }
}

/* Returns 0, or -1 without memory; `pattern` must outlive the ledger. */
static inline int ledger_open(Ledger *ledger, const uint8_t *pattern, uint32_t payload_bytes, uint32_t channels,
                              uint32_t publishers)
{
    memset(ledger, 0, sizeof *ledger);
    ledger->pattern = pattern;
    ledger->payload_bytes = payload_bytes;
    ledger->publishers = publishers;
    ledger->flows = (uint64_t)channels * publishers;
    ledger->next = calloc(ledger->flows ? ledger->flows : 1, sizeof *ledger->next);
    return ledger->next ? 0 : -1;
}

static inline void ledger_close(Ledger *ledger)
{
    free(ledger->next);
    free(ledger->missing);
    ledger->next = NULL;
    ledger->missing = NULL;
}

static void ledger_miss(Ledger *ledger, uint64_t flow, uint64_t from, uint64_t to)
{
    if (ledger->missing_count == ledger->missing_capacity) {
        uint32_t capacity = ledger->missing_capacity ? 2 * ledger->missing_capacity : 16;
        MissingRange *grown = realloc(ledger->missing, capacity * sizeof *grown);
        if (!grown) {
            ledger->lost_for_sure += to - from;
            return;
        }
        ledger->missing = grown;
        ledger->missing_capacity = capacity;
    }
    ledger->missing[ledger->missing_count++] = (MissingRange){flow, from, to};
}

/* Takes one counter out of the missing ranges; returns whether it was there. O(ranges): a healthy run has none. */
static int ledger_find(Ledger *ledger, uint64_t flow, uint64_t counter)
{
    for (uint32_t i = 0; i < ledger->missing_count; i++) {
        MissingRange *range = &ledger->missing[i];
        if (range->flow != flow || counter < range->from || counter >= range->to)
            continue;
        uint64_t to = range->to;
        range->to = counter;
        if (range->from == range->to)
            *range = ledger->missing[--ledger->missing_count];
        if (counter + 1 < to)
            ledger_miss(ledger, flow, counter + 1, to);
        return 1;
    }
    return 0;
}

/* A counter that is not the next one of its flow. */
static void ledger_disorder(Ledger *ledger, uint64_t flow, uint64_t counter)
{
    uint64_t *next = &ledger->next[flow];
    if (counter > *next) {
        ledger_miss(ledger, flow, *next, counter);
        ledger->passed += counter + 1 - *next;
        *next = counter + 1;
    } else if (ledger_find(ledger, flow, counter)) {
        ledger->reordered++;
    } else {
        ledger->duplicated++;
    }
}

/* Checks one payload of payload_bytes. `channel` is what it must say, `first_flow` that channel's first flow here. */
static inline void ledger_take(Ledger *ledger, uint64_t first_flow, uint32_t channel, const uint8_t *payload)
{
    uint64_t stamp = load_u64(payload);
    uint64_t tail = load_u64(payload + STAMP_CHANNEL);
    ledger->taken++;
    uint64_t publisher = stamp >> STAMP_COUNTER_BITS, counter = stamp & STAMP_COUNTER_MASK;
    uint32_t check = stamp_check(stamp, load_u64(payload + STAMP_TIME), channel);
    if (tail != ((uint64_t)check << 32 | channel) || publisher >= ledger->publishers) {
        ledger->corrupt++;
        return;
    }
    if (memcmp(payload + STAMP_BYTES, ledger->pattern + STAMP_BYTES, ledger->payload_bytes - STAMP_BYTES) != 0)
        ledger->corrupt++;
    uint64_t flow = first_flow + publisher;
    if (counter == ledger->next[flow]) {
        ledger->next[flow]++;
        ledger->passed++;
    } else {
        ledger_disorder(ledger, flow, counter);
    }
}

/* Messages of the ranges that were passed over and never came. What was sent after the last one is the caller's sum. */
static inline uint64_t ledger_lost(const Ledger *ledger)
{
    uint64_t lost = ledger->lost_for_sure;
    for (uint32_t i = 0; i < ledger->missing_count; i++)
        lost += ledger->missing[i].to - ledger->missing[i].from;
    return lost;
}

#endif
