# The load driver: the loop that owns a Load, and its windows. What a load is made of stands in driver_load.pxd.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from broker_native.driver_load cimport Connection, Load, Publisher, Subscriber
from broker_native.histogram cimport Histogram
