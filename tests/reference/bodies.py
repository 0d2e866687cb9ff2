"""The walk over a control body in plain Python: what `broker_native.bodies` must say."""

from __future__ import annotations

from typing import Final

from broker.model.errors import BrokerError, error

DEPTH_MAX: Final = 16
ITEMS_MAX: Final = 1024

# First bytes of msgpack values by what follows them. Extension types have no meaning here and are refused.
SCALAR_BYTES: Final = {
    0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
}  # fmt: skip
LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
COUNT_BYTES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
STRING_FIRST_BYTES: Final = frozenset([*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB])


def malformed(what: str) -> BrokerError:
    return error("MALFORMED_FRAME", what)


def read_container(body: bytes, at: int) -> tuple[int, int, bool] | None:
    """Read the header of an array or map at `at`.

    Returns:
        (where its first item is, values in it, whether it is a map), or None when another value is there.
    """
    first = body[at]
    if first in COUNT_BYTES:
        after = at + 1 + COUNT_BYTES[first]
        count, is_map = int.from_bytes(body[at + 1 : after], "big"), first >= 0xDE
    elif 0x80 <= first <= 0x9F:
        after, count, is_map = at + 1, first & 0x0F, first < 0x90
    else:
        return None
    if count > ITEMS_MAX:
        raise malformed(f"got a container of {count} items, limit {ITEMS_MAX}")
    return after, 2 * count if is_map else count, is_map


def skip_scalar(body: bytes, at: int) -> int:
    """Return where the number, string, bytes, bool or nil at `at` ends; past the end of `body` when it is cut."""
    first = body[at]
    if first < 0x80 or first >= 0xE0:
        return at + 1
    if 0xA0 <= first < 0xC0:
        return at + 1 + (first & 0x1F)
    if first in SCALAR_BYTES:
        return at + SCALAR_BYTES[first]
    if first in LENGTH_BYTES:
        start = at + 1 + LENGTH_BYTES[first]
        return start + int.from_bytes(body[at + 1 : start], "big")
    raise malformed(f"got a value that begins with 0x{first:02x}")


def walk(body: bytes, values_max: int) -> None:
    """Check shape, depth and counts of a msgpack map without building anything. O(values)."""
    open_containers: list[tuple[int, bool]] = []  # values still to come, is a map
    at, total, left, is_map = 0, 0, 1, False
    while True:
        while not left:
            if not open_containers:
                if at != len(body):
                    raise malformed(f"{len(body) - at} bytes after the map")
                return
            left, is_map = open_containers.pop()
        if at >= len(body):
            raise malformed("cut short")
        if is_map and not left & 1 and body[at] not in STRING_FIRST_BYTES:
            raise malformed("a key is no string")
        total += 1
        if total > values_max:
            raise malformed(f"more than {values_max} values")
        left -= 1
        container = read_container(body, at)
        if container is None:
            at = skip_scalar(body, at)
        else:
            open_containers.append((left, is_map))
            if len(open_containers) > DEPTH_MAX:
                raise malformed(f"deeper than {DEPTH_MAX}")
            at, left, is_map = container
        if at > len(body):
            raise malformed("cut short")
