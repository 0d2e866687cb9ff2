# The protocol of NATS: PUB and MSG, and JetStream on top of it. See the module's docstring.

from broker_native.driver_load cimport Dialect

cdef const Dialect* nats_dialect() noexcept nogil
cdef const Dialect* jetstream_dialect() noexcept nogil
