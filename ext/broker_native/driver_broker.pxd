# The broker's own protocol: see the module's docstring.

from broker_native.driver_load cimport Dialect

cdef const Dialect* broker_dialect() noexcept nogil
