"""JSON text (RFC 8259): writing it out of what records hold, and the walk over what strangers send.

A stranger's text is walked before an object is built from it: how deep it is, how many items a container has and how
many values there are in all. The walk proves nothing else; whatever parses the text afterwards does.

No state, any thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from broker_native.growing cimport Bytes, bytes_append, bytes_release, bytes_reserve

cdef extern from "Python.h":
    double PyFloat_Unpack4(const char* at, int little_endian) except? -1.0
    double PyFloat_Unpack8(const char* at, int little_endian) except? -1.0

cdef extern from "math.h" nogil:
    bint isfinite(double value)

cdef extern from *:
    """
    #define JSON_SAFE_MAX 9007199254740991ULL   /* 2^53 - 1: what JavaScript holds exactly */
    #define JSON_ONES 0x0101010101010101ULL
    #define JSON_HIGHS 0x8080808080808080ULL
    """
    const uint64_t JSON_SAFE_MAX
    const uint64_t JSON_ONES
    const uint64_t JSON_HIGHS

cdef enum:
    DEPTH_MAX = 64                      # of any caller of `walk`
    MSGPACK_DEPTH_MAX = 32              # of headers, which nobody has looked into
    ESCAPE_BYTES = 6                    # \u00XX
    DECIMAL_BYTES = 20                  # of the largest u64

cdef const char* HEX = "0123456789abcdef"
cdef const char* BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


# -- UTF-8 -------------------------------------------------------------------------------------------------------------


cdef inline uint32_t sequence_bytes(const uint8_t* at, size_t left) noexcept nogil:
    """Bytes of the character that begins here, from 0x80 on, by RFC 3629; 0 when it is none."""
    cdef uint8_t first = at[0]
    if first < 0xC2 or first > 0xF4:
        return 0
    if first < 0xE0:
        return 2 if left >= 2 and at[1] & 0xC0 == 0x80 else 0
    if left < 3 or at[1] & 0xC0 != 0x80 or at[2] & 0xC0 != 0x80:
        return 0
    if first < 0xF0:
        # Not what fits into fewer bytes, and no surrogate.
        if (first == 0xE0 and at[1] < 0xA0) or (first == 0xED and at[1] >= 0xA0):
            return 0
        return 3
    if left < 4 or at[3] & 0xC0 != 0x80 or (first == 0xF0 and at[1] < 0x90) or (first == 0xF4 and at[1] >= 0x90):
        return 0
    return 4


cdef bint text_is_utf8(const uint8_t* data, size_t size) noexcept nogil:
    """Whether bytes are text."""
    cdef size_t at = 0
    cdef uint32_t more
    cdef uint64_t word
    while at < size:
        if size - at >= 8:
            memcpy(&word, data + at, 8)
            if not word & JSON_HIGHS:
                at += 8
                continue
        if data[at] < 0x80:
            at += 1
            continue
        more = sequence_bytes(data + at, size - at)
        if not more:
            return False
        at += more
    return True


# -- writing -----------------------------------------------------------------------------------------------------------


cdef inline bint is_plain_word(uint64_t word) noexcept nogil:
    """Whether none of eight bytes has to be escaped: no control character, `"` or `\\`. It may say no too often."""
    cdef uint64_t quote = word ^ (JSON_ONES * 0x22)
    cdef uint64_t slash = word ^ (JSON_ONES * 0x5C)
    # A byte below n makes the top bit of (byte - n) & ~byte; bytes from 0x80 on have to be masked out of it.
    return not (((word - JSON_ONES * 0x20) & ~word | (quote - JSON_ONES) & ~quote | (slash - JSON_ONES) & ~slash)
                & JSON_HIGHS)


cdef int text_string(Bytes* to, const uint8_t* data, size_t size) except -1:
    """Append a string. The bytes are UTF-8, which the caller has seen to."""
    cdef size_t at = 0, begin = 0
    cdef uint64_t word
    cdef uint8_t byte
    cdef uint8_t escape[ESCAPE_BYTES]
    bytes_reserve(to, size + 2)
    bytes_append(to, <const uint8_t*>b'"', 1)
    while at < size:
        if size - at >= 8:
            memcpy(&word, data + at, 8)
            if is_plain_word(word):
                at += 8
                continue
        byte = data[at]
        if byte >= 0x20 and byte != c'"' and byte != c'\\':
            at += 1
            continue
        bytes_append(to, data + begin, at - begin)
        escape[0] = c'\\'
        if byte == c'"' or byte == c'\\':
            escape[1] = byte
            bytes_append(to, escape, 2)
        elif byte == c'\n':
            escape[1] = c'n'
            bytes_append(to, escape, 2)
        else:
            escape[1] = c'u'
            escape[2] = escape[3] = c'0'
            escape[4] = <uint8_t>HEX[byte >> 4]
            escape[5] = <uint8_t>HEX[byte & 15]
            bytes_append(to, escape, ESCAPE_BYTES)
        at += 1
        begin = at
    bytes_append(to, data + begin, size - begin)
    return bytes_append(to, <const uint8_t*>b'"', 1)


cdef int text_base64(Bytes* to, const uint8_t* data, size_t size) except -1:
    """Append bytes as a string in base64 (RFC 4648 §4)."""
    cdef size_t at = 0
    cdef uint32_t three
    cdef uint8_t* write
    bytes_reserve(to, size // 3 * 4 + 6)
    write = to.data + to.used
    write[0] = c'"'
    write += 1
    while size - at >= 3:
        three = <uint32_t>data[at] << 16 | <uint32_t>data[at + 1] << 8 | data[at + 2]
        write[0] = <uint8_t>BASE64[three >> 18]
        write[1] = <uint8_t>BASE64[three >> 12 & 63]
        write[2] = <uint8_t>BASE64[three >> 6 & 63]
        write[3] = <uint8_t>BASE64[three & 63]
        write += 4
        at += 3
    if at < size:
        three = <uint32_t>data[at] << 16
        if size - at == 2:
            three |= <uint32_t>data[at + 1] << 8
        write[0] = <uint8_t>BASE64[three >> 18]
        write[1] = <uint8_t>BASE64[three >> 12 & 63]
        write[2] = <uint8_t>(BASE64[three >> 6 & 63] if size - at == 2 else c'=')
        write[3] = c'='
        write += 4
    write[0] = c'"'
    to.used = <size_t>(write + 1 - to.data)
    return 0


cdef int text_decimal(Bytes* to, uint64_t value) except -1:
    """Append the decimal digits of a number."""
    cdef uint8_t digits[DECIMAL_BYTES]
    cdef uint32_t at = DECIMAL_BYTES
    while True:
        at -= 1
        digits[at] = <uint8_t>(c'0' + value % 10)
        value //= 10
        if not value:
            break
    return bytes_append(to, digits + at, DECIMAL_BYTES - at)


cdef int text_integer(Bytes* to, uint64_t value) except -1:
    """Append an integer: as a number if JavaScript holds it, else as a string of its digits."""
    if value <= JSON_SAFE_MAX:
        return text_decimal(to, value)
    bytes_append(to, <const uint8_t*>b'"', 1)
    text_decimal(to, value)
    return bytes_append(to, <const uint8_t*>b'"', 1)


cdef int text_member(Bytes* to, const char* name) except -1:
    """Append the name of a member, behind a comma unless it is the first of its object. It needs no escape."""
    if to.used and to.data[to.used - 1] != c'{':
        bytes_append(to, <const uint8_t*>b',', 1)
    bytes_append(to, <const uint8_t*>b'"', 1)
    bytes_append(to, <const uint8_t*>name, strlen(name))
    return bytes_append(to, <const uint8_t*>b'":', 2)


# -- msgpack as JSON ---------------------------------------------------------------------------------------------------


cdef inline uint64_t big_endian(const uint8_t* at, uint32_t size) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint32_t i
    for i in range(size):
        value = value << 8 | at[i]
    return value


cdef inline int64_t signed_big_endian(const uint8_t* at, uint32_t size) noexcept nogil:
    """The same of a number in two's complement."""
    cdef uint32_t shift = 64 - 8 * size
    return <int64_t>(big_endian(at, size) << shift) >> shift


cdef inline uint32_t width(uint8_t first, uint8_t smallest) noexcept nogil:
    """Bytes of what follows in a family whose members have 1, 2, 4 and 8 of them."""
    return <uint32_t>1 << (first - smallest)


cdef int negative(Bytes* to, int64_t value) except -1:
    cdef uint64_t size = <uint64_t>0 - <uint64_t>value
    cdef bint safe = size <= JSON_SAFE_MAX
    if not safe:
        bytes_append(to, <const uint8_t*>b'"', 1)
    bytes_append(to, <const uint8_t*>b'-', 1)
    text_decimal(to, size)
    return 0 if safe else bytes_append(to, <const uint8_t*>b'"', 1)


cdef bint floating(Bytes* to, double value) except? 1:
    """Append a float as Python writes it, which is the shortest that reads back as the same; not what is no number."""
    cdef bytes text
    if not isfinite(value):
        return False
    text = repr(value).encode()
    bytes_append(to, <const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return True


cdef bint value_at(Bytes* to, const uint8_t* data, size_t size, size_t* at, uint32_t depth) except? 1:
    """Append the value at `at` and go on behind it; False when JSON cannot say it, or it is cut short."""
    cdef uint8_t first
    cdef size_t left, head = 1
    cdef uint64_t count
    if at[0] >= size or depth > MSGPACK_DEPTH_MAX:
        return False
    first = data[at[0]]
    left = size - at[0] - 1
    if first < 0x80:
        text_decimal(to, first)
    elif first >= 0xE0:
        negative(to, <int64_t>first - 256)
    elif first == 0xC0:
        bytes_append(to, <const uint8_t*>b'null', 4)
    elif first == 0xC2:
        bytes_append(to, <const uint8_t*>b'false', 5)
    elif first == 0xC3:
        bytes_append(to, <const uint8_t*>b'true', 4)
    elif 0xCC <= first <= 0xCF or 0xD0 <= first <= 0xD3:
        head += width(first, 0xCC if first < 0xD0 else 0xD0)
        if left < head - 1:
            return False
        if first < 0xD0:
            text_integer(to, big_endian(data + at[0] + 1, <uint32_t>head - 1))
        elif signed_big_endian(data + at[0] + 1, <uint32_t>head - 1) < 0:
            negative(to, signed_big_endian(data + at[0] + 1, <uint32_t>head - 1))
        else:
            text_integer(to, big_endian(data + at[0] + 1, <uint32_t>head - 1))
    elif first == 0xCA or first == 0xCB:
        head = 5 if first == 0xCA else 9
        if left < head - 1:
            return False
        if not floating(to, PyFloat_Unpack4(<const char*>data + at[0] + 1, 0) if first == 0xCA
                        else PyFloat_Unpack8(<const char*>data + at[0] + 1, 0)):
            return False
    elif 0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB or 0xC4 <= first <= 0xC6:
        return string_at(to, data, size, at, True)
    elif first < 0xA0 or 0xDC <= first <= 0xDF:
        if first >= 0xDC:
            head += 2 if not first & 1 else 4
            if left < head - 1:
                return False
            count = big_endian(data + at[0] + 1, <uint32_t>head - 1)
        else:
            count = first & 15
        at[0] += head
        return container_at(to, data, size, at, depth, count, first < 0x90 or first >= 0xDE)
    else:
        return False
    at[0] += head
    return True


cdef bint string_at(Bytes* to, const uint8_t* data, size_t size, size_t* at, bint bytes_too) except? 1:
    """Append a string; bytes as an object that says that they are."""
    cdef uint8_t first = data[at[0]]
    cdef size_t left = size - at[0] - 1
    cdef size_t more = 0
    cdef uint64_t count
    cdef bint is_text = True
    if first <= 0xBF:
        count = first & 31
    else:
        is_text = first >= 0xD9
        if not is_text and not bytes_too:
            return False
        more = width(first, 0xD9 if is_text else 0xC4)
        if left < more:
            return False
        count = big_endian(data + at[0] + 1, <uint32_t>more)
    if left - more < count:
        return False
    at[0] += 1 + more
    if is_text:
        if not text_is_utf8(data + at[0], count):
            return False
        text_string(to, data + at[0], count)
    else:
        bytes_append(to, <const uint8_t*>b'{"base64":', 10)
        text_base64(to, data + at[0], count)
        bytes_append(to, <const uint8_t*>b'}', 1)
    at[0] += count
    return True


cdef inline bint is_string(uint8_t first) noexcept nogil:
    return 0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB


cdef bint container_at(Bytes* to, const uint8_t* data, size_t size, size_t* at, uint32_t depth, uint64_t count,
                       bint is_map) except? 1:
    """Append the items of an array, or the pairs of a map whose keys are strings."""
    cdef uint64_t item
    bytes_append(to, <const uint8_t*>(b'{' if is_map else b'['), 1)
    # What is declared costs nothing: each item takes a byte that is there, or ends it.
    for item in range(count):
        if item:
            bytes_append(to, <const uint8_t*>b',', 1)
        if is_map:
            if at[0] >= size or not is_string(data[at[0]]) or not string_at(to, data, size, at, False):
                return False
            bytes_append(to, <const uint8_t*>b':', 1)
        if not value_at(to, data, size, at, depth + 1):
            return False
    bytes_append(to, <const uint8_t*>(b'}' if is_map else b']'), 1)
    return True


cdef bint text_msgpack(Bytes* to, const uint8_t* data, size_t size) except? 1:
    """Append one msgpack map, which nobody has looked into, as an object.

    Answers whether JSON can say it; else nothing is appended. Integers past 2^53 - 1 are strings of their digits, bytes
    an object whose only member is `base64`.
    """
    cdef size_t at = 0, before = to.used
    if size and (data[0] & 0xF0 == 0x80 or data[0] >= 0xDE and data[0] <= 0xDF):
        if value_at(to, data, size, &at, 1) and at == size:
            return True
    to.used = before
    return False


# -- for Python --------------------------------------------------------------------------------------------------------


cdef bytes taken(Bytes* text):
    """The text as an object, and the memory given back."""
    try:
        return PyBytes_FromStringAndSize(<const char*>text.data, <Py_ssize_t>text.used)
    finally:
        bytes_release(text)


def string(bytes data not None):
    """Return text as a JSON string.

    Args:
        data: UTF-8.

    Raises:
        ValueError: It is none.
    """
    cdef Bytes text = Bytes(NULL, 0, 0)
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
    if not text_is_utf8(at, <size_t>PyBytes_GET_SIZE(data)):
        raise ValueError("text: it is no UTF-8")
    text_string(&text, at, <size_t>PyBytes_GET_SIZE(data))
    return taken(&text)


def base64(bytes data not None):
    """Return bytes as a JSON string in base64."""
    cdef Bytes text = Bytes(NULL, 0, 0)
    text_base64(&text, <const uint8_t*>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))
    return taken(&text)


def msgpack(bytes data not None):
    """Return a msgpack map as a JSON object, None when JSON cannot say it or it is none."""
    cdef Bytes text = Bytes(NULL, 0, 0)
    try:
        if text_msgpack(&text, <const uint8_t*>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data)):
            return PyBytes_FromStringAndSize(<const char*>text.data, <Py_ssize_t>text.used)
        return None
    finally:
        bytes_release(&text)


# -- the walk ----------------------------------------------------------------------------------------------------------


cdef inline bint is_space(uint8_t byte) noexcept nogil:
    return byte == c' ' or byte == c'\n' or byte == c'\r' or byte == c'\t'


def walk(bytes text not None, uint64_t values_max, uint64_t items_max, uint32_t depth_max):
    """Say which bound a text breaks, or None.

    What is no JSON at all may pass: it only costs no more than JSON that does.

    Args:
        text: What is walked; O(its bytes).
        values_max: Values in all of it: each name of a member, each value and each container is one.
        items_max: Elements of an array, members of an object.
        depth_max: Containers inside one another, to 64.

    Raises:
        ValueError: `depth_max` is over 64.
    """
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(text)
    cdef size_t size = <size_t>PyBytes_GET_SIZE(text), at = 0
    cdef uint64_t counts[DEPTH_MAX + 1]
    cdef uint64_t values = 0
    cdef uint32_t depth = 0
    cdef bint between = True            # no value has begun
    cdef uint8_t byte
    if depth_max > DEPTH_MAX:
        raise ValueError(f"depth: got {depth_max}, limit {DEPTH_MAX}")
    counts[0] = 1
    while at < size:
        byte = data[at]
        at += 1
        if is_space(byte):
            between = True
        elif byte == c',':
            counts[depth] += 1
            if depth and counts[depth] > items_max:
                return f"got a container of more than {items_max} items"
            between = True
        elif byte == c':':
            between = True
        elif byte == c']' or byte == c'}':
            if depth:
                depth -= 1
            between = True
        else:
            if byte == c'"' or byte == c'[' or byte == c'{' or between:
                values += 1
                if values > values_max:
                    return f"more than {values_max} values"
            between = False
            if byte == c'"':
                while at < size and data[at] != c'"':
                    at += 2 if data[at] == c'\\' else 1
                at += 1
            elif byte == c'[' or byte == c'{':
                if depth == depth_max:
                    return f"deeper than {depth_max}"
                depth += 1
                counts[depth] = 1
                between = True
    return None
