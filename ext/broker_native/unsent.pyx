"""What transports hold in memory of what they were handed: each value once, however many of them hold it.

A transport that asks for a pause keeps what it could not send at once, and whatever it was handed together with that.
Hundreds that have stopped keep pieces of the same values: summed up transport by transport that would be ten times what
there is in memory. As long as a transport takes everything, nothing is looked at but whether it does.

All of it belongs to the loop's thread.
"""

cimport cython
from cpython.memoryview cimport PyMemoryView_Check


@cython.final
cdef class Unsent:
    """The account of one node.

    Attributes:
        bytes: What all transports hold that have asked for a pause.
    """

    def __cinit__(self):
        self.holders = {}

    cdef int take(self, object value) except -1:
        cdef object key = <size_t><void*>value
        cdef object count = self.holders.get(key)
        if count is None:
            self.holders[key] = 1
            self.bytes += <size_t>len(value)
        else:
            self.holders[key] = count + 1
        return 0

    cdef int give(self, object value) except -1:
        cdef object key = <size_t><void*>value
        cdef object count = self.holders[key]
        if count == 1:
            del self.holders[key]
            self.bytes -= <size_t>len(value)
        else:
            self.holders[key] = count - 1
        return 0


@cython.final
cdef class Sender:
    """A transport as its outbox sees it.

    Args:
        unsent: Where it is counted what it holds.
        transport: Has `writelines`, and perhaps `get_write_buffer_size`.
        outbox: Its `paused` says that the transport has asked for a pause.
        shares: The transport keeps the pieces that it is handed; else it keeps a copy.
    """

    def __cinit__(self, Unsent unsent not None, object transport, object outbox, bint shares):
        self.unsent = unsent
        self.transport = transport
        self.outbox = outbox
        self.write = transport.writelines
        self.shares = shares

    def writelines(self, list pieces not None):
        """Hand pieces to the transport: bytes, or memoryviews of bytes."""
        self.write(pieces)
        if self.outbox.paused:
            self.note(pieces)

    def note(self, list pieces not None):
        """The transport has asked for a pause when it was handed these."""
        cdef object size = getattr(self.transport, "get_write_buffer_size", None)
        cdef object piece
        cdef size_t unsent, handed = 0
        if size is None:
            return
        unsent = size()
        if not unsent:
            return
        if self.shares:
            if self.values is None:
                self.values = []
            for piece in pieces:
                handed += <size_t>len(piece)
                self.values.append(piece.obj if PyMemoryView_Check(piece) else piece)
            while self.taken < <size_t>len(self.values):
                self.unsent.take(self.values[self.taken])
                self.taken += 1
        if unsent > handed:
            self.rest += unsent - handed
            self.unsent.bytes += unsent - handed

    def release(self):
        """The transport takes bytes again, or is gone."""
        self.unsent.bytes -= self.rest
        self.rest = 0
        while self.taken:
            self.taken -= 1
            self.unsent.give(self.values[self.taken])
        self.values = None
