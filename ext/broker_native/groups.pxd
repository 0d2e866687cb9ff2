# Walks over values: chunks one after the other, of a turn or of a group.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
