# Consumers of a group over a stream of Redis: see the module's docstring.

from broker_native.driver_load cimport Connection, Dialect, Load

cdef const Dialect* redis_crew() noexcept nogil
# Asks for the first entries.
cdef void redis_crew_begin(Load* load, Connection* connection) noexcept nogil
