from typing import Any

from broker_native.index import Buffer

NAMES: int
CHANNELS: int
LINES: int
REST: int
CHANGED: int

def find_in_table(
    kind: int,
    low: bytes,
    page: Buffer,
    keys: list[bytes],
    picked: list[int],
    at: int,
    into: list[tuple[int, Any]],
) -> int: ...
def table_items(kind: int, low: bytes, page: Buffer) -> tuple[list[tuple[bytes, Any]], bytes]: ...

class TableFilter:
    def __init__(self, value: bytes) -> None: ...
    def pick(self, kind: int, keys: list[bytes], skip: bytearray | None = None) -> list[int]: ...
    def has_channel(self, channel: int) -> bool: ...
