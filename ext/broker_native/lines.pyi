from typing import Any

class Line:
    next: int
    closed_next: int
    applied_next: int
    open_first: int
    commit_first: int
    runs: list[tuple[int, int, bytes]]
    holder: Any
    group: int
    used_s: int
    holders: int
    def __init__(self, producer: bytes | None = None) -> None: ...
    @property
    def producer(self) -> bytes | None: ...
    def lookup(self, number: int, count: int) -> list[tuple[int, int, int, int]]: ...
