/* CRC-32C (Castagnoli, RFC 3720 section 12.1) of bytes, by the fastest way that this machine has.
 *
 * The polynomial is P = 0x1EDC6F41, reflected 0x82F63B78, initial value and final xor 0xFFFFFFFF. Both are applied by
 * every call, so a checksum continues: crc32c(crc32c(0, a), b) == crc32c(0, a followed by b).
 *
 * Two ways:
 *   - hardware: the processor's own CRC instruction. It takes a word each cycle but answers three cycles later, so
 *     three lanes of equal length run side by side and are joined with a carry-less multiplication. A lane has any
 *     number of words up to LANE_WORDS_MAX, which is what makes a few hundred bytes as fast a stream as megabytes.
 *   - portable: eight tables of 256 (slicing by 8), for machines without those instructions.
 *
 * Every translation unit that includes this header has tables of its own (9 KiB), filled by a constructor when its
 * module is loaded, before any of its functions can be called; from then on nothing here is written, so any thread
 * may call without a lock. Nothing here allocates, fails, or reads outside data[0, size).
 */
#ifndef BROKER_CRC32C_H
#define BROKER_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#if defined(__x86_64__)
#define CRC32C_HARDWARE "sse4.2"
#include <nmmintrin.h>
#include <wmmintrin.h>
#elif defined(__aarch64__)
#define CRC32C_HARDWARE "armv8"
#include <arm_acle.h>
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

#define CRC32C_POLYNOMIAL UINT32_C(0x82F63B78)
#define CRC32C_LANES 3
/* 3 KiB in flight: joining costs about 15 cycles in 400, and the powers below stay in a quarter of the L1 cache. */
#define CRC32C_LANE_WORDS_MAX 128
/* Below this, joining lanes costs more than running one lane to the end. */
#define CRC32C_LANE_WORDS_MIN 4

typedef uint32_t (*crc32c_function)(uint32_t seed_crc, const uint8_t *data, size_t size);

/* crc32c_slices[k][b]: the remainder of byte b followed by k zero bytes. */
static uint32_t crc32c_slices[8][256];

static uint32_t crc32c_portable(uint32_t seed_crc, const uint8_t *data, size_t size)
{
    uint32_t crc = ~seed_crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word = load_u64(data) ^ crc;
        crc = crc32c_slices[7][word & 0xFF] ^ crc32c_slices[6][word >> 8 & 0xFF]
            ^ crc32c_slices[5][word >> 16 & 0xFF] ^ crc32c_slices[4][word >> 24 & 0xFF]
            ^ crc32c_slices[3][word >> 32 & 0xFF] ^ crc32c_slices[2][word >> 40 & 0xFF]
            ^ crc32c_slices[1][word >> 48 & 0xFF] ^ crc32c_slices[0][word >> 56];
    }
    for (; size > 0; data++, size--)
        crc = crc >> 8 ^ crc32c_slices[0][(crc ^ *data) & 0xFF];
    return ~crc;
}

#if defined(CRC32C_HARDWARE)

/* crc32c_powers[w] = x^(64 w - 33) mod P: what moves a remainder w words further. The 33 are the 32 that the CRC
 * instruction multiplies by when it reduces the product, and the one by which a reflected product is off. */
static uint32_t crc32c_powers[(CRC32C_LANES - 1) * CRC32C_LANE_WORDS_MAX + 1];

#if defined(__x86_64__)

#if defined(__clang__) && __clang_major__ >= 14
/* There the CRC instructions are a feature of their own, which a command line may have taken out of SSE 4.2. */
#define CRC32C_TARGET __attribute__((target("sse4.2,crc32,pclmul")))
#else
#define CRC32C_TARGET __attribute__((target("sse4.2,pclmul")))
#endif
#define crc32c_take_u64(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define crc32c_take_u32(crc, word) _mm_crc32_u32((crc), (word))
#define crc32c_take_u8(crc, byte) _mm_crc32_u8((crc), (byte))

CRC32C_TARGET static inline uint64_t crc32c_multiply(uint32_t left, uint32_t right)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(left), _mm_cvtsi64_si128(right), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

static int crc32c_hardware_present(void)
{
    __builtin_cpu_init(); /* a constructor may run before the compiler's own */
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

#else

#if defined(__clang__)
#define CRC32C_TARGET __attribute__((target("crc,aes")))
#else
#define CRC32C_TARGET __attribute__((target("+crc+crypto")))
#endif
#define crc32c_take_u64(crc, word) __crc32cd((crc), (word))
#define crc32c_take_u32(crc, word) __crc32cw((crc), (word))
#define crc32c_take_u8(crc, byte) __crc32cb((crc), (byte))

CRC32C_TARGET static inline uint64_t crc32c_multiply(uint32_t left, uint32_t right)
{
    return (uint64_t)vmull_p64((poly64_t)left, (poly64_t)right);
}

static int crc32c_hardware_present(void)
{
#if defined(__linux__)
    unsigned long wanted = HWCAP_CRC32 | HWCAP_PMULL;
    return (getauxval(AT_HWCAP) & wanted) == wanted;
#elif defined(__APPLE__)
    return 1; /* every 64-bit Mac with an ARM processor has both */
#else
    return 0;
#endif
}

#endif

/* Three lanes of `words` words each: CRC32C_LANE_WORDS_MIN <= words <= CRC32C_LANE_WORDS_MAX. */
CRC32C_TARGET static inline uint32_t crc32c_take_lanes(uint32_t crc, const uint8_t *data, size_t words)
{
    const uint8_t *second_data = data + 8 * words, *third_data = second_data + 8 * words;
    uint32_t first = crc, second = 0, third = 0;
    for (size_t i = 0; i < words; i++) {
        first = crc32c_take_u64(first, load_u64(data + 8 * i));
        second = crc32c_take_u64(second, load_u64(second_data + 8 * i));
        third = crc32c_take_u64(third, load_u64(third_data + 8 * i));
    }
    uint64_t moved = crc32c_multiply(first, crc32c_powers[2 * words]) ^ crc32c_multiply(second, crc32c_powers[words]);
    return crc32c_take_u64(0, moved) ^ third;
}

CRC32C_TARGET static uint32_t crc32c_hardware(uint32_t seed_crc, const uint8_t *data, size_t size)
{
    uint32_t crc = ~seed_crc;
    while (size >= 8 * CRC32C_LANES * CRC32C_LANE_WORDS_MIN) {
        size_t words = size / (8 * CRC32C_LANES);
        if (words > CRC32C_LANE_WORDS_MAX)
            words = CRC32C_LANE_WORDS_MAX;
        crc = crc32c_take_lanes(crc, data, words);
        data += 8 * CRC32C_LANES * words;
        size -= 8 * CRC32C_LANES * words;
    }
    for (; size >= 8; data += 8, size -= 8)
        crc = crc32c_take_u64(crc, load_u64(data));
    if (size >= 4) {
        crc = crc32c_take_u32(crc, load_u32(data));
        data += 4;
        size -= 4;
    }
    for (; size > 0; data++, size--)
        crc = crc32c_take_u8(crc, *data);
    return ~crc;
}

#endif /* CRC32C_HARDWARE */

static crc32c_function crc32c_selected = crc32c_portable;
static const char *crc32c_selected_name = "portable";

static void crc32c_fill_slices(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (CRC32C_POLYNOMIAL & (0u - (crc & 1)));
        crc32c_slices[0][byte] = crc;
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = crc32c_slices[zeros - 1][byte];
            crc32c_slices[zeros][byte] = crc >> 8 ^ crc32c_slices[0][crc & 0xFF];
        }
}

#if defined(CRC32C_HARDWARE)
static void crc32c_fill_powers(void)
{
    /* Reflected, bit 31 is x^0, so bit 0 is x^31 = x^(64 - 33); a word more is 64 more multiplications by x. */
    uint32_t power = 1;
    for (size_t words = 1; words < sizeof crc32c_powers / sizeof crc32c_powers[0]; words++) {
        crc32c_powers[words] = power;
        for (int bit = 0; bit < 64; bit++)
            power = power >> 1 ^ (CRC32C_POLYNOMIAL & (0u - (power & 1)));
    }
}
#endif

__attribute__((constructor)) static void crc32c_prepare(void)
{
    crc32c_fill_slices();
#if defined(CRC32C_HARDWARE)
    if (crc32c_hardware_present()) {
        crc32c_fill_powers();
        crc32c_selected = crc32c_hardware;
        crc32c_selected_name = CRC32C_HARDWARE;
    }
#endif
}

/* Continue seed_crc (0 to begin) over data[0, size); data may be NULL when size is 0. */
static uint32_t crc32c(uint32_t seed_crc, const uint8_t *data, size_t size)
{
    return crc32c_selected(seed_crc, data, size);
}

#endif
