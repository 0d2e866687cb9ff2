from typing import Any

from broker_native.index import Buffer
from broker_native.tree import TreeReader

NAMES: int
CHANNELS: int
LINES: int
REST: int
CHANGED: int
OPEN: int
HEADED: int
CLOSED: int

def find_in_pages(
    reader: TreeReader, kind: int, prefix: bytes, keys: list[bytes], picked: list[int]
) -> tuple[list[int], list[Any]]: ...
def table_items(kind: int, low: bytes, page: Buffer) -> tuple[list[tuple[bytes, Any]], bytes]: ...
def adds_up(entries: bytes) -> bool: ...
def join_older(
    indexes: list[int], found: list[bytes], state: bytearray, parts: list[bytes | list[bytes] | None]
) -> None: ...

class TableFilter:
    def __init__(self, value: bytes) -> None: ...
    def pick(self, kind: int, keys: list[bytes], skip: bytearray | None = None) -> list[int]: ...
    def has_channel(self, channel: int) -> bool: ...
