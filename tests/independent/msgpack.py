"""msgpack, as far as the native protocol needs it: no extension types, and the limits of control bodies.

Written from the msgpack specification alone, for the independent client. `pack` chooses the shortest form; `unpack`
takes every form. Text and bytes stay apart: str is the str family, bytes the bin family.
"""

from __future__ import annotations

import struct

_ITEMS_MAX = 1024
_DEPTH_MAX = 16
_VALUES_MAX = 16384

# First byte of a value whose length or number stands in the bytes behind it: how those are laid out.
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}


def pack(value: object) -> bytes:
    """Encode one value.

    Args:
        value: None, bool, int (−2⁶³ to 2⁶⁴ − 1), float, str, bytes, list, tuple or dict of these.

    Raises:
        TypeError: of another type.
        struct.error: an int out of range.
    """
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return _length(len(text), (0xA0, 32), 0xD9, 0xDA, 0xDB) + text
    if isinstance(value, bytes):
        return _length(len(value), None, 0xC4, 0xC5, 0xC6) + value
    if isinstance(value, list | tuple):
        return _length(len(value), (0x90, 16), None, 0xDC, 0xDD) + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _length(len(value), (0x80, 16), None, 0xDE, 0xDF) + pairs
    raise TypeError(f"msgpack has no form for a {type(value).__name__}")


def _pack_int(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack(">b", value)
    forms = (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3)
    for form, bits in zip(forms[:3], (8, 16, 32), strict=True):
        if (value < 1 << bits) if value >= 0 else (value >= -(1 << bits - 1)):
            return bytes([form]) + struct.pack(_NUMBERS[form], value)
    return bytes([forms[3]]) + struct.pack(_NUMBERS[forms[3]], value)


def _length(length: int, short: tuple[int, int] | None, *forms: int | None) -> bytes:
    if short is not None and length < short[1]:
        return bytes([short[0] | length])
    for form, layout, bits in zip(forms, (">B", ">H", ">I"), (8, 16, 32), strict=True):
        if form is not None and length < 1 << bits:
            return bytes([form]) + struct.pack(layout, length)
    raise ValueError(f"{length} is too long for msgpack")


def unpack(data: bytes) -> object:
    """Decode one value that fills `data` exactly.

    Raises:
        ValueError: no msgpack, something behind it, an extension type, or over the limits of a control body.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes behind the value")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.values = 0

    def value(self, depth: int) -> object:
        self.values += 1
        if self.values > _VALUES_MAX:
            raise ValueError(f"more than {_VALUES_MAX} values")
        first = self._take(1)[0]
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 256
        if first < 0xC0:
            return self._short(first, depth)
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in _BYTES:
            return self._take(self._count(_BYTES[first]))
        if first in _TEXTS:
            return self._take(self._count(_TEXTS[first])).decode()
        if first in _ARRAYS:
            return self._array(self._count(_ARRAYS[first]), depth)
        if first in _MAPS:
            return self._map(self._count(_MAPS[first]), depth)
        raise ValueError(f"an extension type or an unused byte 0x{first:02x}")

    def _short(self, first: int, depth: int) -> object:
        if first >= 0xA0:
            return self._take(first & 0x1F).decode()
        if first >= 0x90:
            return self._array(first & 0x0F, depth)
        return self._map(first & 0x0F, depth)

    def _array(self, length: int, depth: int) -> list[object]:
        self._enter(length, depth)
        return [self.value(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, object]:
        self._enter(length, depth)
        pairs: dict[str, object] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in pairs:
                raise ValueError(f"the key {key!r} of a map is no text, or stands twice")
            pairs[key] = self.value(depth + 1)
        return pairs

    @staticmethod
    def _enter(length: int, depth: int) -> None:
        if length > _ITEMS_MAX or depth >= _DEPTH_MAX:
            raise ValueError(f"{length} items, {depth + 1} containers inside one another")

    def _number(self, layout: str) -> object:
        number: object = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _count(self, layout: str) -> int:
        count = self._number(layout)
        assert isinstance(count, int)
        return count

    def _take(self, length: int) -> bytes:
        taken = self.data[self.at : self.at + length]
        if len(taken) != length:
            raise ValueError("the value is cut short")
        self.at += length
        return taken
