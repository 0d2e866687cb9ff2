/* What slabs need of the compiler and the system: prefetching, huge pages, and telling AddressSanitizer which items are
   in use. */
#ifndef BROKER_SLABS_H
#define BROKER_SLABS_H

#include <stddef.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define BROKER_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BROKER_POISONS 1
#endif
#endif

#ifdef BROKER_POISONS
#include <sanitizer/asan_interface.h>
static inline void memory_poison(void *at, size_t size) { __asan_poison_memory_region(at, size); }
static inline void memory_unpoison(void *at, size_t size) { __asan_unpoison_memory_region(at, size); }
#else
static inline void memory_poison(void *at, size_t size) { (void)at; (void)size; }
static inline void memory_unpoison(void *at, size_t size) { (void)at; (void)size; }
#endif

/* The line is on its way to the cache when it is written to soon after. */
static inline void memory_prefetch(const void *at) { __builtin_prefetch(at, 1, 3); }

/* Let the system back the memory with huge pages, if it has them: it is going to be full, and used in no order, so that
   with small ones nearly every use would wait for the page tables first. A wish, and no error when it is not granted. */
static inline void memory_huge(void *at, size_t size)
{
#ifdef MADV_HUGEPAGE
    (void)madvise(at, size, MADV_HUGEPAGE);
#else
    (void)at;
    (void)size;
#endif
}

/* Have the system put memory behind every page now. */
static inline void memory_touch(void *at, size_t size)
{
    for (size_t offset = 0; offset < size; offset += 4096)
        ((volatile char *)at)[offset] = 0;
}

/* What one thread leaves for another. */
static inline void *memory_left(void **at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void *memory_exchange(void **at, void *with) { return __atomic_exchange_n(at, with, __ATOMIC_ACQ_REL); }
static inline int memory_replace(void **at, void *was, void *with)
{
    return __atomic_compare_exchange_n(at, &was, with, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

#endif
