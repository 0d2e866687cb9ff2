/* Unaligned little-endian loads and stores. memcpy of a constant size is one move on every compiler we build with. */
#ifndef BROKER_LAYOUT_H
#define BROKER_LAYOUT_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the broker's formats are little-endian, and so must the machine be"
#endif

/* Channel ids from here on are of one run only and never journaled. */
#define EPHEMERAL_ID ((uint64_t)1 << 62)

static inline uint16_t load_u16(const uint8_t *at) { uint16_t v; memcpy(&v, at, sizeof v); return v; }
static inline uint32_t load_u32(const uint8_t *at) { uint32_t v; memcpy(&v, at, sizeof v); return v; }
static inline uint64_t load_u64(const uint8_t *at) { uint64_t v; memcpy(&v, at, sizeof v); return v; }
static inline void store_u16(uint8_t *at, uint16_t value) { memcpy(at, &value, sizeof value); }
static inline void store_u32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }
static inline void store_u64(uint8_t *at, uint64_t value) { memcpy(at, &value, sizeof value); }

#endif
