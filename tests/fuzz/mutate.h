/* Inputs made from inputs: what is changed, and how its framing is kept whole often enough to get past the framing.
 *
 * An input begins with a plan of PLAN_BYTES, which says how it is fed, and never grows past its capacity:
 *
 *     | u32 seed of the cuts | u8 style of the cuts | u8 state | u16 more state | bytes |
 *
 * Every function draws from one stream of random numbers, so a seed makes the same inputs again.
 */
#ifndef BROKER_MUTATE_H
#define BROKER_MUTATE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PLAN_BYTES 8
#define INPUT_BYTES_MAX 65536
#define FRAMES_MAX 256
#define FRAME_HEADER 8

struct random { uint64_t state; };

struct input {
    uint8_t *data;
    size_t size;
    size_t capacity;
};

struct span { size_t at, size; };

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016. */
static inline uint64_t random_next(struct random *random) {
    uint64_t x = random->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    random->state = x;
    return x * 2685821657736338717u;
}

static inline size_t random_below(struct random *random, size_t bound) {
    return bound > 1 ? (size_t)(random_next(random) >> 16) % bound : 0;
}

/* Where comparisons change their minds: sizes of headers, limits, and the ends of integers. */
static const uint64_t EXTREMES[] = {
    0, 1, 2, 3, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 31, 32, 39, 40, 41, 55, 56, 57, 63, 64, 95, 96, 97, 127, 128, 129,
    254, 255, 256, 257, 1000, 1001, 1023, 1024, 1025, 4095, 4096, 4097, 32767, 32768, 65534, 65535, 65536, 65537,
    1048576, 2097152, 2097153, 0x7fffffff, 0x80000000, 0xfffffff7, 0xfffffff8, 0xfffffffe, 0xffffffff, 0x100000000,
    (uint64_t)1 << 40, ((uint64_t)1 << 40) + 1, ((uint64_t)1 << 62) - 1, (uint64_t)1 << 62, ((uint64_t)1 << 63) - 1,
    (uint64_t)1 << 63, UINT64_MAX - 1, UINT64_MAX,
};

static inline uint64_t random_extreme(struct random *random, size_t size) {
    uint64_t value = EXTREMES[random_below(random, sizeof EXTREMES / sizeof *EXTREMES)];
    switch (random_below(random, 8)) {
    case 0: return size + random_below(random, 3) - 1;
    case 1: return value + random_below(random, 3) - 1;
    default: return value;
    }
}

static inline void put_integer(uint8_t *at, uint64_t value, size_t bytes) {
    memcpy(at, &value, bytes);
}

static inline uint32_t get_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* -- splicing: the only way in which an input changes its size -- */

/* Put `more` bytes in the place of `size` bytes at `at`; answers whether there was room. `from` is not within the input. */
static inline int input_splice(struct input *input, size_t at, size_t size, const uint8_t *from, size_t more) {
    if (input->size - size + more > input->capacity) return 0;
    memmove(input->data + at + more, input->data + at + size, input->size - at - size);
    memcpy(input->data + at, from, more);
    input->size += more - size;
    return 1;
}

/* -- bytes -- */

/* Change one thing within `span`; answers by how much it grew. `other` is another input to borrow from. */
static inline ptrdiff_t mutate_span(struct input *input, struct span span, const uint8_t *other, size_t other_size,
                                    struct random *random) {
    static const size_t WIDTHS[] = {1, 2, 4, 8};
    uint8_t piece[512];
    uint8_t *bytes = input->data + span.at;
    size_t at = random_below(random, span.size), width, size, from;
    uint64_t value = 0;
    switch (span.size ? random_below(random, 12) : 9 + random_below(random, 2)) {
    case 0:
        bytes[at] = (uint8_t)(bytes[at] ^ (1u << random_below(random, 8)));
        return 0;
    case 1:
        bytes[at] = (uint8_t)random_next(random);
        return 0;
    case 2: case 3: case 4:
        width = WIDTHS[random_below(random, 4)];
        if (width > span.size) return 0;
        /* Fields are aligned to their width more often than not. */
        at = random_below(random, span.size - width + 1);
        if (random_below(random, 4)) at -= at % width;
        put_integer(bytes + at, random_extreme(random, span.size), width);
        return 0;
    case 5: case 6:
        width = WIDTHS[random_below(random, 4)];
        if (width > span.size) return 0;
        at = random_below(random, span.size - width + 1);
        if (random_below(random, 4)) at -= at % width;
        memcpy(&value, bytes + at, width);
        put_integer(bytes + at, value + random_below(random, 9) - 4, width);
        return 0;
    case 7:
        size = 1 + random_below(random, span.size - at);
        return input_splice(input, span.at + at, size, input->data, 0) ? -(ptrdiff_t)size : 0;
    case 8:
        size = 1 + random_below(random, span.size - at);
        if (size > sizeof piece) size = sizeof piece;
        memcpy(piece, bytes + at, size);
        return input_splice(input, span.at + random_below(random, span.size), 0, piece, size) ? (ptrdiff_t)size : 0;
    case 9:
        size = 1 + random_below(random, 16);
        for (from = 0; from < size; from++) piece[from] = (uint8_t)random_next(random);
        return input_splice(input, span.at + at, 0, piece, size) ? (ptrdiff_t)size : 0;
    case 10:
        if (other_size <= PLAN_BYTES) return 0;
        from = PLAN_BYTES + random_below(random, other_size - PLAN_BYTES);
        size = 1 + random_below(random, other_size - from);
        return input_splice(input, span.at + at, 0, other + from, size) ? (ptrdiff_t)size : 0;
    default:
        if (other_size <= PLAN_BYTES) return 0;
        from = PLAN_BYTES + random_below(random, other_size - PLAN_BYTES);
        size = 1 + random_below(random, other_size - from);
        if (size > span.size - at) size = span.size - at;
        memcpy(bytes + at, other + from, size);
        return 0;
    }
}

/* -- frames: u32 size of the body, 4 bytes more, body -- */

static inline size_t find_frames(const uint8_t *data, size_t size, struct span *frames) {
    size_t at = PLAN_BYTES, count = 0;
    while (count < FRAMES_MAX && size >= at && size - at >= FRAME_HEADER) {
        size_t body = get_u32(data + at);
        if (body > size - at - FRAME_HEADER) break;
        frames[count].at = at;
        frames[count].size = FRAME_HEADER + body;
        at += FRAME_HEADER + body;
        count++;
    }
    return count;
}

/* Change a frame's body, and nearly always its size with it. */
static inline void mutate_body(struct input *input, struct span frame, const uint8_t *other, size_t other_size,
                               struct random *random) {
    struct span body = {frame.at + FRAME_HEADER, frame.size - FRAME_HEADER};
    ptrdiff_t grown = mutate_span(input, body, other, other_size, random);
    if (grown && random_below(random, 16))
        put_integer(input->data + frame.at, (uint64_t)((ptrdiff_t)body.size + grown), 4);
}

static inline void mutate_frames(struct input *input, const uint8_t *other, size_t other_size, struct random *random) {
    struct span frames[FRAMES_MAX], borrowed[FRAMES_MAX];
    uint8_t piece[2048];
    size_t count = find_frames(input->data, input->size, frames), others, to;
    struct span frame, rest = {PLAN_BYTES, input->size - PLAN_BYTES};
    if (!count) {
        mutate_span(input, rest, other, other_size, random);
        return;
    }
    frame = frames[random_below(random, count)];
    to = frames[random_below(random, count)].at;
    switch (random_below(random, 16)) {
    case 0:
        input_splice(input, frame.at, frame.size, input->data, 0);
        return;
    case 1: case 2:
        if (frame.size > sizeof piece) return;
        memcpy(piece, input->data + frame.at, frame.size);
        input_splice(input, to, 0, piece, frame.size);
        return;
    case 3: case 4:
        others = find_frames(other, other_size, borrowed);
        if (!others) return;
        frame = borrowed[random_below(random, others)];
        input_splice(input, random_below(random, 2) ? to : input->size, 0, other + frame.at, frame.size);
        return;
    case 5:
        input->data[frame.at + 4] = (uint8_t)random_below(random, random_below(random, 8) ? 24 : 256);
        return;
    case 6:
        input->data[frame.at + 5 + random_below(random, 3)] = (uint8_t)random_extreme(random, 0);
        return;
    case 7:
        put_integer(input->data + frame.at, random_extreme(random, frame.size - FRAME_HEADER), 4);
        return;
    case 8:
        input->size -= random_below(random, rest.size);
        return;
    default:
        mutate_body(input, frame, other, other_size, random);
    }
}

/* Change an input in place. `framed` says that it is a stream of frames. */
static inline void mutate(struct input *input, const uint8_t *other, size_t other_size, int framed,
                          struct random *random) {
    size_t steps = 1 + random_below(random, random_below(random, 4) ? 3 : 12);
    if (!random_below(random, 4)) put_integer(input->data, random_next(random), 4);
    if (!random_below(random, 8)) input->data[4 + random_below(random, 4)] = (uint8_t)random_next(random);
    while (steps--) {
        struct span rest = {PLAN_BYTES, input->size - PLAN_BYTES};
        if (framed && random_below(random, 8)) mutate_frames(input, other, other_size, random);
        else mutate_span(input, rest, other, other_size, random);
    }
}

#endif
