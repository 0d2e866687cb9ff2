# The protocol of NATS: PUB and MSG, and JetStream on top of it. See the module's docstring.

from libc.stdint cimport uint8_t

from broker_native.driver_load cimport Connection, Dialect, Load, Text

cdef struct Message:               # a MSG or HMSG that has come whole
    Text subject
    Text reply                     # of size 0 when there is none
    const uint8_t* body            # headers and payload
    size_t headers_bytes
    size_t bytes                   # of both
    size_t begin_bytes             # of the line up to the word behind the sid
    size_t taken                   # with its line; 0: it is not whole, or the run has failed

cdef const Dialect* nats_dialect() noexcept nogil
cdef const Dialect* jetstream_dialect() noexcept nogil
cdef bint starts(const uint8_t* data, size_t size, const char* word, size_t word_bytes) noexcept nogil
# Takes a MSG or HMSG apart whose line has come.
cdef Message message_of(Load* load, Connection* connection, const uint8_t* data, size_t size,
                        size_t line) noexcept nogil
# Takes what the server says with headers. False when it ends the run.
cdef bint take_status(Load* load, Connection* connection, const Message* message) noexcept nogil
# Takes a line that is no message. Returns its size, 0 when it ends the run.
cdef size_t take_word(Load* load, Connection* connection, const uint8_t* data, size_t line) noexcept nogil
