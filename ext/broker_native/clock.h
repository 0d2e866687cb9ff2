/* The monotonic clock in microseconds; the same clock as Python's time.monotonic(). */
#ifndef BROKER_CLOCK_H
#define BROKER_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t monotonic_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

#endif
