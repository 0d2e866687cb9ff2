# RESP, the protocol of Redis: PUBLISH and SUBSCRIBE, XADD and XREAD. See the module's docstring.

from broker_native.driver_load cimport Connection, Dialect, Load

cdef const Dialect* redis_dialect() noexcept nogil
cdef const Dialect* redis_stream_dialect() noexcept nogil
# Sends a reader's next XREAD, from the places that its lanes have.
cdef void redis_stream_read_on(Load* load, Connection* connection) noexcept nogil
