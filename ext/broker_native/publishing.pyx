"""The channels that a client publishes to: a slot for each, with the frame that is open for it.

The server is told a channel's name once a connection, under a number, in front of the first frame that is sent to it;
a new connection knows none. A slot is used again for another channel when nothing is kept for its own and all are in
use.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from broker_native.layout cimport *
from broker_native.posted cimport Frame, frame_release, inner_publishes, inner_size, inner_slot, put_header
from broker_native.writing cimport RecordWriter

cdef extern from "Python.h":
    void Py_XDECREF(PyObject* object)


cdef class PublishChannels(RecordWriter):
    """The channels that have slots, what the connection calls them, and open frames. A base of `PublishBuffer`."""

    def __cinit__(self, *_, **__):
        self.slot_of = {}
        self.channel_failures = {}
        self.generation = 1

    def __dealloc__(self):
        cdef uint32_t slot
        for slot in range(self.slots_count):
            frame_release(&self.slots[slot].open)
            Py_XDECREF(self.slots[slot].name)
        free(self.slots)
        free(self.dirty)

    cdef uint32_t add_slot(self, str channel) except? 0xFFFFFFFF:
        """Give a channel a slot: a new one, or at the bound one that nothing is kept for."""
        cdef uint32_t slot
        cdef Slot* owner
        self.check_channel(channel)
        slot = self.free_slot() if self.slots_count >= self.channels_max else self.new_slot()
        owner = &self.slots[slot]
        if owner.name != NULL:
            del self.slot_of[<str>owner.name]
            Py_XDECREF(owner.name)
        Py_INCREF(channel)
        owner.name = <PyObject*>channel
        owner.is_told = False
        self.slot_of[channel] = slot
        return slot

    cdef uint32_t new_slot(self) except? 0xFFFFFFFF:
        cdef uint32_t capacity
        cdef Slot* grown
        if self.slots_count == self.slots_capacity:
            capacity = max(<uint32_t>(2 * self.slots_capacity), <uint32_t>8)
            grown = <Slot*>realloc(self.slots, capacity * sizeof(Slot))
            if grown == NULL:
                raise MemoryError
            self.slots = grown
            self.slots_capacity = capacity
        memset(&self.slots[self.slots_count], 0, sizeof(Slot))
        self.slots_count += 1
        return self.slots_count - 1

    cdef uint32_t free_slot(self) except? 0xFFFFFFFF:
        cdef uint32_t _
        for _ in range(self.slots_count):
            self.slots_hand = (self.slots_hand + 1) % self.slots_count
            if not self.slots[self.slots_hand].frames and not self.slots[self.slots_hand].open.count:
                return self.slots_hand
        raise self.error("TOO_MANY_CHANNELS", f"channels with unanswered publishes: limit {self.channels_max} channels")

    def refuse_channel(self, uint32_t number, failure):
        """The server refused the name of this number: that is why publishes to it will be refused.

        The name is said again before the next publish to it, since it may be allowed later.
        """
        cdef uint32_t slot
        for slot in range(self.slots_count):
            if self.slots[slot].generation == self.generation and self.slots[slot].number == number:
                self.slots[slot].is_told = False
                self.channel_failures[slot] = failure

    cdef bint name_now(self, uint32_t slot) except -1:
        """What `must_name` does for a channel that may have to be named."""
        cdef Slot* owner = &self.slots[slot]
        if owner.generation != self.generation:
            owner.generation = self.generation
            owner.number = self.numbers_used
            owner.is_told = False
            self.numbers_used += 1
        if owner.is_told:
            return False
        owner.is_told = True
        self.channel_failures.pop(slot, None)
        return True

    cdef size_t name_size(self, uint32_t slot) except 0:
        """Bytes of a slot's CHANNEL frame."""
        return FRAME_HEADER_BYTES + 4 + <size_t>len(<str>self.slots[slot].name)

    cdef uint8_t* send_name(self, uint32_t slot, uint8_t* at) except NULL:
        """Write a slot's CHANNEL frame; answers where it ends."""
        cdef bytes name = (<str>self.slots[slot].name).encode("ascii")
        at += put_header(at, KIND_CHANNEL, <uint32_t>(4 + PyBytes_GET_SIZE(name)))
        store_u32(at, self.slots[slot].number)
        memcpy(at + 4, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        return at + 4 + PyBytes_GET_SIZE(name)

    cdef int forget_numbers(self) except -1:
        """The connection is gone: the next one is told of no channel yet."""
        self.generation += 1
        self.numbers_used = 0
        self.channel_failures.clear()
        return 0

    cdef int mark_dirty(self, uint32_t slot) except -1:
        cdef uint32_t capacity
        cdef uint32_t* grown
        if self.dirty_count == self.dirty_capacity:
            capacity = max(<uint32_t>(2 * self.dirty_capacity), <uint32_t>16)
            grown = <uint32_t*>realloc(self.dirty, capacity * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            self.dirty = grown
            self.dirty_capacity = capacity
        self.dirty[self.dirty_count] = slot
        self.dirty_count += 1
        self.slots[slot].dirty = True
        return 0

    cdef void let_go_slots(self, const Frame* frame) noexcept:
        """A transaction needs its channels' slots no more."""
        cdef const uint8_t* at = frame.records
        while inner_publishes(at, frame):
            self.slots[inner_slot(at)].frames -= 1
            at += inner_size(at)
