import mmap
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

class TreeDamaged(ValueError):
    offset: int
    def __init__(self, offset: int) -> None: ...

def check_tree(file: Buffer, meta_at: int, writable: bool) -> None: ...
def find_row(file: Buffer, meta_at: int, key: bytes) -> tuple[int, int] | None: ...
