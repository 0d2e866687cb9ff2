# The channels that a client publishes to: a slot for each, with the frame that is open for it.

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t

from broker_native.posted cimport Frame
from broker_native.writing cimport RecordWriter

cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(object mapping, object key) except? NULL


cdef struct Slot:
    PyObject* name                      # owned str, or NULL
    Frame open
    uint32_t number                     # on the wire; meaningful while `generation` is that of the channels
    uint32_t generation
    uint32_t frames                     # closed frames of the channel that are kept
    bint is_told                        # the server was told which channel the number means
    bint dirty


cdef class PublishChannels(RecordWriter):
    cdef object check_channel
    cdef public uint32_t channels_max

    cdef dict slot_of                   # channel name -> index of its slot
    cdef dict channel_failures          # slot -> why the server refused its name
    cdef Slot* slots
    cdef uint32_t slots_count
    cdef uint32_t slots_capacity
    cdef uint32_t last_slot             # of the last record
    cdef uint32_t slots_hand            # where the search for a slot to use again goes on
    cdef uint32_t generation            # of the connection: numbers of older ones mean nothing
    cdef uint32_t numbers_used          # channel numbers given on this connection

    cdef uint32_t* dirty                # slots with an open frame, in the order of their first records
    cdef uint32_t dirty_count
    cdef uint32_t dirty_capacity

    cdef uint32_t add_slot(self, str channel) except? 0xFFFFFFFF
    cdef uint32_t new_slot(self) except? 0xFFFFFFFF
    cdef uint32_t free_slot(self) except? 0xFFFFFFFF
    cdef bint name_now(self, uint32_t slot) except -1
    cdef size_t name_size(self, uint32_t slot) except 0
    cdef uint8_t* send_name(self, uint32_t slot, uint8_t* at) except NULL
    cdef int forget_numbers(self) except -1
    cdef int mark_dirty(self, uint32_t slot) except -1
    cdef void let_go_slots(self, const Frame* frame) noexcept


cdef inline uint32_t find_slot(PublishChannels self, str channel) except? 0xFFFFFFFF:
    """The channel's slot, which it is given if it has none."""
    cdef uint32_t slot = self.last_slot
    cdef PyObject* found
    # A loop over one channel mostly passes the very same name.
    if slot < self.slots_count and self.slots[slot].name == <PyObject*>channel:
        return slot
    found = PyDict_GetItemWithError(self.slot_of, channel)
    self.last_slot = <uint32_t><object>found if found != NULL else self.add_slot(channel)
    return self.last_slot


cdef inline bint must_name(PublishChannels self, uint32_t slot) except -1:
    """Whether a CHANNEL frame goes before what is sent now; the slot has its number then, and was told."""
    cdef Slot* owner = &self.slots[slot]
    return False if owner.is_told and owner.generation == self.generation else self.name_now(slot)
