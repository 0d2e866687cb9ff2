"""What transports hold in memory of what they were handed: each value once, however many of them hold it.

A transport that asks for a pause keeps what it could not send at once, and whatever it was handed together with that.
Hundreds that have stopped keep pieces of the same values: summed up transport by transport that would be ten times what
there is in memory. As long as a transport takes everything, nothing is looked at but whether it does.

What is small goes straight to the transport's socket while the transport holds nothing: it would make objects of it,
keep them, and send them in the loop's next step all the same. Its descriptor is the socket's as long as the outbox has
it: transports say that a connection is lost before they close it.

All of it belongs to the loop's thread.
"""

cimport cython
from cpython.memoryview cimport PyMemoryView_Check
from libc.stdint cimport uint8_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/uio.h>
    #ifndef MSG_NOSIGNAL            /* Python ignores SIGPIPE wherever this is missing */
    #define MSG_NOSIGNAL 0
    #endif
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    Py_ssize_t sendmsg(int fd, const msghdr* message, int flags) nogil


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
        fd: The transport's socket, when the bytes go there as they are; it has `get_write_buffer_size` and
            `is_closing` then. -1: they do not, or nobody knows.
    """

    def __cinit__(self, Unsent unsent not None, object transport, object outbox, bint shares, int fd=-1):
        self.unsent = unsent
        self.transport = transport
        self.outbox = outbox
        self.write = transport.writelines
        self.shares = shares
        self.fd = fd
        if fd >= 0:
            self.holds = transport.get_write_buffer_size
            self.closes = transport.is_closing

    cdef size_t send(self, const uint8_t* first, size_t first_bytes, const uint8_t* second,
                     size_t second_bytes) except? 0:
        """Hand two pieces to the socket itself, as far as it takes them now; answers how many bytes that were.

        0 when it may not be, or fails: the transport is to be handed them, and finds out what is wrong.
        """
        cdef iovec pieces[2]
        cdef msghdr message
        cdef Py_ssize_t sent
        if self.fd < 0 or self.holds() or self.closes():
            return 0
        memset(&message, 0, sizeof(msghdr))
        pieces[0].iov_base = <void*>first
        pieces[0].iov_len = first_bytes
        pieces[1].iov_base = <void*>second
        pieces[1].iov_len = second_bytes
        message.msg_iov = &pieces[0] if first_bytes else &pieces[1]
        message.msg_iovlen = 2 if first_bytes and second_bytes else 1
        sent = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        return <size_t>sent if sent > 0 else 0

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
