# Members of a consumer in the broker's own protocol: see the module's docstring.

from broker_native.driver_load cimport Dialect

cdef const Dialect* broker_crew() noexcept nogil
