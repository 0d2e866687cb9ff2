from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from broker_native.outcomes import Publication, Receipt, Scheduled
from broker_native.publishing import PublishChannels

Buffer: TypeAlias = bytes | bytearray | memoryview

class PublishBuffer(PublishChannels):
    bytes_max: int
    transaction_bytes_max: int
    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        error: Callable[[str, str], Exception],
        check_channel: Callable[[str], bytes],
        pack_headers: Callable[[Mapping[str, object]], bytes],
        kick: Callable[[], object],
        bytes_max: int,
    ) -> None: ...
    @property
    def unanswered_bytes(self) -> int: ...
    @property
    def open_bytes(self) -> int: ...
    @property
    def kept_bytes(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def is_adrift(self) -> bool: ...
    @property
    def open_for_sending(self) -> bool: ...
    @property
    def records_posted(self) -> int: ...
    @property
    def records_answered(self) -> int: ...
    @property
    def records_unanswered(self) -> int: ...
    @property
    def records_failed(self) -> int: ...
    @property
    def answered_highest(self) -> int: ...
    @property
    def synced_highest(self) -> int: ...
    @property
    def first_failure(self) -> Any: ...
    def post(
        self,
        channel: str,
        payload: Buffer,
        headers: Mapping[str, object] | bytes | None = None,
        key: Buffer | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | Buffer | None = None,
    ) -> None: ...
    def publish(
        self,
        channel: str,
        payload: Buffer,
        headers: Mapping[str, object] | bytes | None = None,
        key: Buffer | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | Buffer | None = None,
        expect: tuple[int, int] | None = None,
    ) -> Publication[Receipt]: ...
    def schedule(
        self,
        channel: str,
        payload: Buffer,
        when: int,
        id: str | bytes,
        headers: Mapping[str, object] | bytes | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Publication[Scheduled]: ...
    def publish_many(
        self,
        channel: str,
        payloads: Iterable[Buffer],
        headers: Mapping[str, object] | bytes | None = None,
        key: Buffer | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | Buffer | None] | None = None,
    ) -> Publication[list[Receipt]]: ...
    def take(self, bytes_max: int = 262144) -> Any: ...
    def answer(self, body: Any) -> None: ...
    def refuse(self, number: int, count: int, failure: BaseException, verdict: int) -> None: ...
    def suspend(self) -> None: ...
    def resume(self, highest: int, unknown: BaseException | None = None) -> None: ...
    def close(self, unsent: BaseException, unknown: BaseException) -> None: ...
    def take_failure(self) -> tuple[Any, int] | None: ...
