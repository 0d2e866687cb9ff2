# Parts of chunks, for those who have the whole chunk at hand.

from libc.stdint cimport uint8_t, uint32_t

# Some consecutive records of a chunk, `size` bytes from `at` on, as a chunk of their own; `before` sequences precede
# them in it and they cover `count`.
cdef bytes chunk_part(const uint8_t* chunk, const uint8_t* at, uint32_t size, uint32_t before, uint32_t count)
