# MQTT 3.1.1 with QoS 0 and 1. See the module's docstring.

from libc.stdint cimport uint32_t

from broker_native.driver_load cimport Dialect

cdef const Dialect* mqtt_dialect(uint32_t qos) noexcept nogil
