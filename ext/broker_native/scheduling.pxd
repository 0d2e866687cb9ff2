# Runs of PUBLISH frames with AT, decided together: see the module's docstring.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from broker_native.delayed cimport SLOTS_ALL, Waiting
from broker_native.growing cimport Bytes
from broker_native.publisher cimport Publisher

cdef struct Slot:                   # of the wheel, and what is put into it
    Bytes records                   # as in a PUBLISH
    uint32_t count
    uint64_t first_us               # when the first of them to come is due

cdef struct Scheduled:
    uint64_t number                 # the next one of the line
    uint64_t ticket                 # the next one
    uint32_t frames                 # that were taken,
    uint32_t messages               # and how many of their messages did not wait before
    Bytes entries                   # PUBLISHED
    Slot[SLOTS_ALL] slots

cdef struct Moment:                 # what a time is judged by
    uint64_t now_us
    uint64_t due_us_min             # nothing is due before
    uint64_t due_us_max             # what is due later is refused
    uint64_t cursor_s               # the second at which the wheel stands
