"""The walk over a msgpack body: shape, depth and counts are judged before an object is built from it.

A few bytes may ask for megabytes of objects, so a stranger's body is walked first; and a client that comes back names
all that it follows in one body, of which thousands may come at once. No object is made here, but the text of what is
wrong. (https://github.com/msgpack/msgpack/blob/master/spec.md)

No state, any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    DEPTH_MAX = 64              # of any caller


cdef inline uint64_t big_endian(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint32_t i
    for i in range(size):
        value = value << 8 | at[i]
    return value


cdef inline bint is_string(uint8_t first) noexcept nogil:
    return 0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB


cdef uint32_t fixed_bytes(uint8_t first) noexcept nogil:
    """Bytes of a number, a bool or nil, its first one included; 0 for any other value."""
    if first < 0x80 or first >= 0xE0 or first == 0xC0 or first == 0xC2 or first == 0xC3:
        return 1
    if first == 0xCC or first == 0xD0:
        return 2
    if first == 0xCD or first == 0xD1:
        return 3
    if first == 0xCA or first == 0xCE or first == 0xD2:
        return 5
    if first == 0xCB or first == 0xCF or first == 0xD3:
        return 9
    return 0


cdef uint32_t length_bytes(uint8_t first) noexcept nogil:
    """Bytes of the length of a string or of bytes, when it stands behind the first one; else 0."""
    if first == 0xC4 or first == 0xD9:
        return 1
    if first == 0xC5 or first == 0xDA:
        return 2
    if first == 0xC6 or first == 0xDB:
        return 4
    return 0


cdef uint32_t count_bytes(uint8_t first) noexcept nogil:
    """Bytes of the count of an array or a map, when it stands behind the first one; else 0."""
    if first == 0xDC or first == 0xDE:
        return 2
    if first == 0xDD or first == 0xDF:
        return 4
    return 0


def walk(bytes body not None, uint64_t values_max, uint64_t items_max, uint32_t depth_max):
    """Say what is wrong with a body, or None: one whole value whose containers are within bounds.

    Args:
        body: What is walked; O(values).
        values_max: Values in all of it: each key, each value and each container is one.
        items_max: Items of an array, pairs of a map.
        depth_max: Containers inside one another, to 64.

    Raises:
        ValueError: `depth_max` is over 64.
    """
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(body)
    cdef uint64_t at = 0, total = 0, left = 1, count, more
    cdef uint64_t lefts[DEPTH_MAX]
    cdef bint maps[DEPTH_MAX]
    cdef bint is_map = False
    cdef uint32_t depth = 0
    cdef uint8_t first
    if depth_max > DEPTH_MAX:
        raise ValueError(f"depth: got {depth_max}, limit {DEPTH_MAX}")
    while True:
        while not left:
            if not depth:
                return None if at == size else f"{size - at} bytes after the map"
            depth -= 1
            left, is_map = lefts[depth], maps[depth]
        if at >= size:
            return "cut short"
        first = data[at]
        if is_map and not left & 1 and not is_string(first):
            return "a key is no string"
        total += 1
        if total > values_max:
            return f"more than {values_max} values"
        left -= 1
        more = count_bytes(first)
        if more or 0x80 <= first <= 0x9F:
            if more > size - at - 1:
                return "cut short"
            count = big_endian(data + at + 1, <uint32_t>more) if more else first & 0x0F
            if count > items_max:
                return f"got a container of {count} items, limit {items_max}"
            if depth == depth_max:
                return f"deeper than {depth_max}"
            lefts[depth], maps[depth] = left, is_map
            depth += 1
            is_map = first >= 0xDE or first < 0x90
            left = 2 * count if is_map else count
            at += 1 + more
            continue
        count = fixed_bytes(first)
        if not count:
            more = length_bytes(first)
            if more:
                if more > size - at - 1:
                    return "cut short"
                count = 1 + more + big_endian(data + at + 1, <uint32_t>more)
            elif 0xA0 <= first <= 0xBF:
                count = 1 + (first & 0x1F)
            else:
                return f"got a value that begins with 0x{first:02x}"
        if count > size - at:
            return "cut short"
        at += count
