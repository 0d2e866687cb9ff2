/* Which branches an input has walked: a map of edges that instrumented code fills and the engine reads.
 *
 * The native modules of a checked build are compiled with -fsanitize-coverage=trace-pc, which calls one function at each
 * basic block. An edge is a pair of blocks; its place in the map depends on where they stand in their module and not on
 * where the module was loaded, so that a seed finds the same things again.
 */
#ifndef BROKER_COVERAGE_H
#define BROKER_COVERAGE_H

#include <stdint.h>

#define COVERAGE_PLACES 65536

struct coverage {
    uint8_t hits[COVERAGE_PLACES];
    uint16_t touched[COVERAGE_PLACES];  /* the places whose hits are not 0 */
    uint32_t touched_count;
    uint32_t previous;
    uint32_t enabled;                   /* only while an input is executed */
};

/* Lives in the engine. Without it, as when the native tests run over the same build, nothing is counted. */
extern struct coverage broker_coverage __attribute__((weak));

static inline void coverage_note(uint32_t place) {
    place &= COVERAGE_PLACES - 1;
    if (broker_coverage.hits[place] == 0) {
        broker_coverage.hits[place] = 1;
        broker_coverage.touched[broker_coverage.touched_count++] = (uint16_t)place;
    } else if (broker_coverage.hits[place] < 255) {
        broker_coverage.hits[place]++;
    }
}

#endif
