# Members of a pull consumer of JetStream: see the module's docstring.

from broker_native.driver_load cimport Connection, Dialect, Load

cdef const Dialect* nats_crew() noexcept nogil
# Asks for the first messages.
cdef void nats_crew_begin(Load* load, Connection* connection) noexcept nogil
