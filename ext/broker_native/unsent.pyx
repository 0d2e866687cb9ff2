"""What transports hold in memory of what they were handed: each value once, however many of them hold it.

A transport that asks for a pause keeps what it could not send at once, and whatever it was handed together with that.
Hundreds that have stopped keep pieces of the same values: summed up transport by transport that would be ten times what
there is in memory. As long as a transport takes everything, nothing is looked at but whether it does.

What is small goes straight to the transport's socket while the transport holds nothing: it would make objects of it,
keep them, and send them in the loop's next step all the same. Its descriptor is the socket's as long as the outbox has
it: transports say that a connection is lost before they close it.

On a WebSocket all that leaves at once is one binary message (RFC 6455 §5.2): a header of at most ten bytes is put in
front here, and the pieces behind it are those that every other connection is handed.

All of it belongs to the loop's thread.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_Check
from libc.stdint cimport uint8_t, uint64_t
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


cdef enum:
    MESSAGE_HEADER_BYTES_MAX = 10
    BINARY_FINAL = 0x82             # a whole message in one frame, of bytes
    SIZE_IN_16_BITS = 126
    SIZE_IN_64_BITS = 127


cdef size_t message_begin(uint8_t* at, uint64_t size) noexcept nogil:
    """Write the header of a message that a server sends; answers its bytes.

    Args:
        at: Room for MESSAGE_HEADER_BYTES_MAX.
        size: Of the message, bytes.
    """
    cdef size_t width, index
    at[0] = BINARY_FINAL
    if size < SIZE_IN_16_BITS:
        at[1] = <uint8_t>size
        return 2
    if size < 1 << 16:
        width = 2
        at[1] = SIZE_IN_16_BITS
    else:
        width = 8
        at[1] = SIZE_IN_64_BITS
    for index in range(width):
        at[2 + index] = <uint8_t>(size >> (8 * (width - 1 - index)))
    return 2 + width


def message_header(uint64_t size):
    """Return the header of a binary message of so many bytes, as a server sends it."""
    cdef uint8_t header[MESSAGE_HEADER_BYTES_MAX]
    cdef size_t width = message_begin(header, size)
    return PyBytes_FromStringAndSize(<char*>header, <Py_ssize_t>width)


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
        messages: What is handed over at once is one binary WebSocket message, with its header in front.
    """

    def __cinit__(self, Unsent unsent not None, object transport, object outbox, bint shares, int fd=-1,
                  bint messages=False):
        self.unsent = unsent
        self.transport = transport
        self.outbox = outbox
        self.write = transport.writelines
        self.shares = shares
        self.fd = fd
        self.messages = messages
        if fd >= 0:
            self.holds = transport.get_write_buffer_size
            self.closes = transport.is_closing

    cdef size_t send(self, const uint8_t* first, size_t first_bytes, const uint8_t* second,
                     size_t second_bytes) except? 0:
        """Hand two pieces to the socket itself, as far as it takes them now; answers how many bytes that were.

        0 when it may not be, or fails: the transport is to be handed them, and finds out what is wrong. A message is
        never divided: of one that has begun the transport gets the rest here.
        """
        cdef uint8_t header[MESSAGE_HEADER_BYTES_MAX]
        cdef size_t header_bytes = 0
        cdef iovec pieces[3]
        cdef size_t count = 0
        cdef msghdr message
        cdef Py_ssize_t sent
        if self.fd < 0 or self.holds() or self.closes():
            return 0
        memset(&message, 0, sizeof(msghdr))
        if self.messages:
            header_bytes = message_begin(header, first_bytes + second_bytes)
            pieces[0].iov_base = <void*>header
            pieces[0].iov_len = header_bytes
            count = 1
        if first_bytes:
            pieces[count].iov_base = <void*>first
            pieces[count].iov_len = first_bytes
            count += 1
        if second_bytes:
            pieces[count].iov_base = <void*>second
            pieces[count].iov_len = second_bytes
            count += 1
        message.msg_iov = pieces
        message.msg_iovlen = count
        sent = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent <= 0:
            return 0
        if not self.messages:
            return <size_t>sent
        if <size_t>sent < header_bytes + first_bytes + second_bytes:
            self.keep(header, header_bytes, first, first_bytes, second, second_bytes, <size_t>sent)
        return first_bytes + second_bytes

    cdef int keep(self, const uint8_t* header, size_t header_bytes, const uint8_t* first, size_t first_bytes,
                  const uint8_t* second, size_t second_bytes, size_t sent) except -1:
        """Hand the rest of a message that the socket took a part of to the transport."""
        cdef bytes whole = (PyBytes_FromStringAndSize(<const char*>header, <Py_ssize_t>header_bytes)
                            + PyBytes_FromStringAndSize(<const char*>first, <Py_ssize_t>first_bytes)
                            + PyBytes_FromStringAndSize(<const char*>second, <Py_ssize_t>second_bytes))
        cdef list rest = [whole[<Py_ssize_t>sent:]]
        self.write(rest)
        if self.outbox.paused:
            self.note(rest)
        return 0

    def writelines(self, list pieces not None):
        """Hand pieces to the transport: bytes, or memoryviews of bytes."""
        cdef object piece
        cdef uint64_t size = 0
        if self.messages:
            for piece in pieces:
                size += <size_t>len(piece)
            pieces.insert(0, message_header(size))
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
