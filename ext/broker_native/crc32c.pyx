"""CRC-32C of Python buffers: the door to `crc32c.h` for Python code, and for the tests of its implementations.

The checksum is that of RFC 3720 section 12.1 (Castagnoli). Native code does not pass through here: it cimports
`crc32c` from this module's declarations and calls the header directly.

Invariant: every implementation gives the same answer for the same bytes. This module must not choose between them by
anything but what the processor has; a machine without the instructions gets the portable one, and `implementation`
says so.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    const char* crc32c_selected_name
    uint32_t crc32c_portable(uint32_t crc, const uint8_t* data, size_t size)


def crc32c_of(data, uint32_t crc=0):
    """Continue a checksum over a buffer.

    Args:
        data: any C-contiguous buffer; borrowed for the call. Nobody may write to it meanwhile.
        crc: the checksum of what stands before it, 0 to 2^32 - 1; 0 to begin.

    Returns:
        The checksum of what stood before followed by `data`.

    Raises:
        TypeError: `data` is no buffer.
        BufferError: `data` is not contiguous.
        OverflowError: `crc` is out of its range.

    Any thread. The interpreter lock stays held: 64 KiB take a few microseconds, less than handing it over costs.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    crc = crc32c(crc, <const uint8_t*>view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return crc


def crc32c_by(str name, data, uint32_t crc=0):
    """Do what `crc32c_of` does by a named implementation, so that a test can compare them.

    Args:
        name: one of `implementations()`.
        data: as in `crc32c_of`.
        crc: as in `crc32c_of`.

    Raises:
        ValueError: this machine has no implementation of that name.
        TypeError, BufferError, OverflowError: as in `crc32c_of`.
    """
    if name == implementation():
        return crc32c_of(data, crc)
    if name != "portable":
        raise ValueError(f"crc32c: got implementation {name!r}, this machine has {implementations()!r}")
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    crc = crc32c_portable(crc, <const uint8_t*>view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return crc


def implementation():
    """Return the name of the implementation in use: "sse4.2", "armv8" or "portable"."""
    return crc32c_selected_name.decode("ascii")


def implementations():
    """Return the names of all implementations that this machine can run, the one in use first."""
    return tuple(dict.fromkeys((implementation(), "portable")))
