/* What instrumented code calls at each basic block. Every module has a copy of its own: no lookup, and its address is
 * what places are measured from. Compiled without instrumentation, or it would call itself. */
#include "coverage.h"

__attribute__((visibility("hidden"))) void __sanitizer_cov_trace_pc(void);

void __sanitizer_cov_trace_pc(void) {
    uint32_t block;
    if (&broker_coverage == 0 || !broker_coverage.enabled) return;
    block = (uint32_t)((uintptr_t)__builtin_return_address(0) - (uintptr_t)&__sanitizer_cov_trace_pc) * 2654435761u >> 16;
    coverage_note(block ^ broker_coverage.previous);
    broker_coverage.previous = block >> 1;
}
