from typing import NamedTuple

FAILURES: tuple[str, ...]

class Failure(NamedTuple):
    reason: str
    connection: int
    detail: str
    body: bytes
