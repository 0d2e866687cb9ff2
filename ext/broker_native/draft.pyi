from collections.abc import Mapping

from broker_native.outcomes import Publication, Receipt
from broker_native.posting import Buffer, PublishBuffer

class Draft:
    def __init__(self, buffer: PublishBuffer) -> None: ...
    def __len__(self) -> int: ...
    def publish(
        self,
        channel: str,
        payload: Buffer,
        headers: Mapping[str, object] | bytes | None = None,
        key: Buffer | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        expect: tuple[int, int] | None = None,
    ) -> int: ...
    def ack(self, frame: bytes) -> None: ...
    def send(self) -> Publication[list[Receipt]]: ...
    def abandon(self) -> None: ...
