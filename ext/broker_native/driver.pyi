from collections.abc import Callable, Sequence
from typing import NamedTuple, final

from broker_native.driver_load import Failure
from broker_native.histogram import Histogram
from broker_native.ledger import Verifier as Verifier
from broker_native.ledger import payload_of as payload_of

DIALECTS: tuple[str, ...]

class Outcome(NamedTuple):
    finished: bool
    seconds: float
    cpu_s: float
    sent: int
    acked: int
    acked_twice: int
    deliveries: int
    lost: int
    duplicated: int
    reordered: int
    corrupt: int
    misplaced: int
    unordered: int
    events: int
    lagging: int
    live: int
    level_min: int
    level_max: int
    failure: Failure | None

@final
class Driver:
    latency: Histogram
    answers: Histogram
    def __init__(
        self,
        names: Sequence[bytes],
        *,
        publishers: int,
        audiences: int = 1,
        payload_bytes: int = 128,
        batch: int = 1,
        window: int = 16384,
        frame_bytes_max: int = 2097152,
        crc: bool = False,
        owned: bool = False,
        random: bool = False,
        ids: bool = False,
        keys: int = 0,
        delayed: bool = False,
        dialect: str = "broker",
    ) -> None: ...
    @property
    def acked(self) -> int: ...
    def add_publisher(self, fd: int, *, head: int = 0) -> None: ...
    @property
    def lagging(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def owed(self) -> int: ...
    def add_subscriber(
        self,
        fd: int,
        *,
        credit_bytes: int = 0,
        named: bool = False,
        steady: bool = True,
        count: int = 4096,
        web: bool = False,
    ) -> None: ...
    def halt(self, first: int) -> None: ...
    def read_on(self) -> None: ...
    def delay(self, *, lead_s: float, step_s: float) -> None: ...
    def run(
        self,
        *,
        messages: int = 0,
        seconds: float = 0,
        rate: int = 0,
        hold_s: float = 0,
        patience_s: float = 10,
        on_slice: Callable[[], object] | None = None,
    ) -> Outcome: ...
