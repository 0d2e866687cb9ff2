# A transaction that a client puts together before any of it is sent.

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from broker_native.posted cimport Frame, FrameForm
from broker_native.posting cimport PublishBuffer


@cython.final
cdef class Draft:
    cdef readonly PublishBuffer buffer
    cdef Frame frame                    # nothing of it is sent before it is the buffer's
    cdef bint is_over

    cdef int check_size(self, size_t more) except -1
    cdef int add_record(self, uint32_t slot, const uint8_t* payload, size_t payload_size, uint16_t flags,
                        FrameForm form, uint64_t epoch, uint64_t sequence) except -1
