from collections.abc import Callable
from typing import NamedTuple, final

from broker_native.driver_load import Failure
from broker_native.histogram import Histogram

PROTOCOLS: tuple[str, ...]

class Done(NamedTuple):
    finished: bool
    seconds: float
    cpu_s: float
    taken: int
    acked: int
    lost: int
    duplicated: int
    corrupt: int
    overtaken: int
    unacked: int
    events: int
    failure: Failure | None

@final
class Members:
    latency: Histogram
    def __init__(
        self,
        *,
        messages: int,
        publishers: int = 1,
        payload_bytes: int = 128,
        keys: int = 0,
        batch: int = 256,
        words: bytes = b"",
        frame_bytes_max: int = 2097152,
        protocol: str = "broker",
        publishes: int = 0,
        transactions_max: int = 1,
    ) -> None: ...
    def add_member(self, fd: int, *, ask: bytes = b"", inbox: bytes = b"") -> None: ...
    def acked_by(self, member: int) -> int: ...
    def run(self, *, patience_s: float = 10, on_slice: Callable[[], object] | None = None) -> Done: ...
