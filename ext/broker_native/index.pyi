from collections.abc import Container
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# (group, index of the chunk in it, offset in bytes, size in bytes, first sequence, count of sequences)
Place: TypeAlias = tuple[int, int, int, int, int, int]

PAGE_BYTES_MAX: int

class GroupDamaged(ValueError):
    reason: str
    offset: int
    channel: int
    def __init__(self, reason: str, offset: int, channel: int) -> None: ...

class GroupHeader:
    number: int
    predecessor: int
    term: int
    writer: int
    run: int
    time_us: int
    size: int
    chain: int
    previous_chain: int
    entries: int
    chunks: int
    flags: int
    closed_run: int

def read_header(group: Buffer) -> GroupHeader: ...
def check_group(group: Buffer) -> GroupHeader: ...
def cut_chunk(group: Buffer, channel: int, place: Place) -> bytes: ...
def scan_group(
    group: Buffer,
    number: int,
    after_index: int,
    bytes_max: int,
    wanted: Container[int] | None,
    into: list[tuple[int, int, bytes]],
) -> tuple[int, int, bool]: ...
def page_key(channel: int, first: int) -> bytes: ...
def find_in_page(
    page: Buffer, channel: int, after_sequence: int, bytes_max: int, before_sequence: int = 0xFFFFFFFFFFFFFFFF
) -> tuple[list[Place], bool]: ...

class SegmentIndex:
    @property
    def channels(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    def reserve(self, channels: int) -> None: ...
    def add(self, group: Buffer) -> None: ...
    def find(
        self, channel: int, after_sequence: int, bytes_max: int, before_sequence: int = 0xFFFFFFFFFFFFFFFF
    ) -> list[Place]: ...
    def pages(self) -> list[tuple[bytes, bytes]]: ...
