from broker_native.tree import TreeReader

class SliceDamaged(ValueError):
    reason: str
    source: int | None
    group: int
    offset: int
    channel: int
    def __init__(self, reason: str, source: int | None, group: int, offset: int, channel: int) -> None: ...

class SliceRows:
    deletes: list[bytes]
    names: list[tuple[bytes, bytes]]
    channels: list[tuple[bytes, bytes]]
    chunks: list[tuple[bytes, bytes]]
    channels_added: int
    records_added: int
    bytes_added: int
    dirty_bytes: int
    full: bool
    done: bool

class SliceSource:
    def __init__(self, reader: TreeReader, last_group: int, groups: int, pages: int, tables: bytes | None) -> None: ...
    def __len__(self) -> int: ...
    def group(self, index: int) -> tuple[int, memoryview]: ...

class SliceMerger:
    def __init__(self, sources: list[SliceSource]) -> None: ...
    def merge(self, archive: TreeReader, dirty_max: int) -> SliceRows: ...
    def progress(self) -> float: ...

def row_limit(size: int) -> int: ...
def channel_first(row: bytes) -> int: ...
def channel_totals(key: bytes, row: bytes, size: int, chunks: int) -> bytes: ...
