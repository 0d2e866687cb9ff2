"""What threads publish: posted or waited for, later, under conditions, and together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from broker.blocking.bus import BlockingBus
from broker.blocking.transaction import Transaction
from broker.blocking.waiting import Pending, Waiter, Window, add_waiter
from broker.model.names import check_channel
from broker.remote.bus import DRAIN_BYTES_HIGH, DRAIN_BYTES_LOW, DRAIN_BYTES_SEND
from broker.remote.scheduling import DelayedPages, draw_id, pack_cancel, when_of
from broker.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from broker.bus import DelayedMessage, Payload
    from broker.model.positions import Position
    from broker_native.draft import Draft
    from broker_native.outcomes import Receipt, Scheduled


class Publishing(BlockingBus):
    """The part of a `Client` that publishes."""

    def post(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
    ) -> None:
        """Publish without waiting: the message leaves with all others that are posted until the writer has its turn.

        It is repeated until it is answered, across reconnects and never twice. A refusal is raised by the next `drain`
        or `flush`. Call `drain()` now and then: that is what makes a fast publisher wait for a slower broker.

        Args:
            channel: The channel's name.
            payload: The bytes, which are never looked into; copied.
            headers: What msgpack can hold; about 16 KiB packed.
            key: 1 to 255 bytes, what the message is about.
            priority: 0 critical, 1 high, 2 normal, 3 low.
            expiry_s: Seconds after which it is no longer delivered, at least 1.
            id: 1 to 64 bytes, or text of as many in UTF-8, that names the message. While the channel remembers it
                (`ids_window_s` and `ids_max` of its profile) another message with this id is not stored: it is answered
                with the position of the first, whoever published that. Only for channels that are stored.

        Raises:
            InvalidChannel: The name can be no channel's.
            RequestError: PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE, INVALID_ID, INVALID_RECORD, or CLOSED.
            Unavailable: BUSY; more is unanswered than the bus may hold.
        """
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            self._buffer.post(channel, payload, packed, key, priority, expiry_s, id)
            self.send_soon()

    def drain(self, *, timeout_s: float | None = None) -> None:
        """Wait until little enough is unanswered to go on posting. Costs next to nothing when that is so already.

        Raises:
            BrokerError: A message that was posted earlier was refused, or its outcome is unknown; raised once.
            Unavailable: TIMEOUT; what was posted is still under way.
        """
        buffer = self._buffer
        if buffer.open_bytes >= DRAIN_BYTES_SEND:
            with self.lock:
                self._pump()
            time.sleep(0)
        if buffer.unanswered_bytes > DRAIN_BYTES_HIGH or buffer.first_failure is not None:
            self._wait_answered(lambda: buffer.unanswered_bytes <= DRAIN_BYTES_LOW, timeout_s)

    def flush(self, *, timeout_s: float | None = None) -> None:
        """Wait until everything that was posted is answered.

        Raises:
            BrokerError: As for `drain`.
        """
        self._wait_answered(lambda: not self._buffer.records_unanswered, timeout_s)

    def publish(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
        expect: Position | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Publish, and answer where the message was stored and how safely.

        Args:
            channel: As for `post`, and so on.
            expect: The position of the channel's newest message: it is stored only if that still is the newest, so of
                several who publish with the same one wins. `Position(0, 0)`: only if the channel never had a message.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: As `post` does; it is refused; or COMMIT_UNKNOWN, as when the time is over (`Pending.result`).
                With `expect` CONFLICT, whose `head` is the newest position, or NOT_STORED: the channel is ephemeral.
        """
        pending = self.submit(
            channel, payload, headers=headers, key=key, priority=priority, expiry_s=expiry_s, id=id, expect=expect
        )
        return pending.result(timeout_s)

    def publish_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | bytes | None] | None = None,
        timeout_s: float | None = None,
    ) -> list[Receipt]:
        """Publish many messages to one channel, and answer where they were stored.

        Args:
            channel, payloads: As for `post`, and so on.
            ids: One for each payload, None for one without.

        Returns:
            Receipts in the order of the payloads; messages with consecutive sequences share one.

        Raises:
            BrokerError: As for `publish`. When one is refused, others of them may be stored.
            ValueError: There are more payloads than ids, or fewer.
        """
        pending = self.submit_many(
            channel, payloads, headers=headers, key=key, priority=priority, expiry_s=expiry_s, ids=ids
        )
        return pending.result(timeout_s)

    def submit(
        self,
        channel: str,
        payload: Payload,
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        id: str | bytes | None = None,
        expect: Position | None = None,
    ) -> Pending[Receipt]:
        """Send a message now, and wait for its receipt later: `submit(…).result()` is `publish`.

        Raises:
            BrokerError: At once as `post` does.
        """
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.publish(channel, payload, packed, key, priority, expiry_s, id, expect)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

    def submit_many(
        self,
        channel: str,
        payloads: Iterable[Payload],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        ids: Iterable[str | bytes | None] | None = None,
    ) -> Pending[list[Receipt]]:
        """Send many messages now, and wait for their receipts later: `submit_many(…).result()` is `publish_many`.

        Raises:
            BrokerError: At once as `post` does; those before the one that is refused are sent.
        """
        # An iterator is the caller's code: it runs before the lock is taken.
        all_of_them = payloads if isinstance(payloads, list | tuple) else list(payloads)
        all_ids = ids if ids is None or isinstance(ids, list | tuple) else list(ids)
        packed = control.pack_headers(headers) if headers else None
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.publish_many(channel, all_of_them, packed, key, priority, expiry_s, all_ids)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

    def schedule(
        self,
        channel: str,
        payload: Payload,
        *,
        delay_s: float | None = None,
        deliver_at: datetime | float | None = None,
        id: str | bytes | None = None,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
        timeout_s: float | None = None,
    ) -> Scheduled:
        """Have a message published later, once, whatever restarts in between (`broker.bus.Bus.schedule`).

        Args:
            channel: As for `publish`, and so on. Its profile stores its messages.
            delay_s: Seconds from now on, by the broker's clock.
            deliver_at: A datetime with a time zone, or seconds since 1970, instead; what is past is due now.
            id: 1 to 64 bytes, a string or bytes; None draws one.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: As `publish`; INVALID_TIME, INVALID_ID, NOT_STORED.
        """
        pending = self.submit_scheduled(
            channel,
            payload,
            delay_s=delay_s,
            deliver_at=deliver_at,
            id=id,
            headers=headers,
            key=key,
            priority=priority,
            expiry_s=expiry_s,
        )
        return pending.result(timeout_s)

    def submit_scheduled(
        self,
        channel: str,
        payload: Payload,
        *,
        delay_s: float | None = None,
        deliver_at: datetime | float | None = None,
        id: str | bytes | None = None,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Pending[Scheduled]:
        """Send a message for later now, and wait for the answer later: `submit_scheduled(…).result()` is `schedule`.

        Raises:
            BrokerError: At once as `schedule` does.
        """
        packed = control.pack_headers(headers) if headers else None
        when = when_of(delay_s, deliver_at)
        id = draw_id() if id is None else id
        with self.lock:
            self._check_open()
            try:
                publication = self._buffer.schedule(channel, payload, when, id, packed, key, priority, expiry_s)
                return Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()

    def cancel(self, channel: str, id: str | bytes, *, timeout_s: float | None = None) -> None:
        """Have a message wait no more; it is committed on return, and the message is never published.

        Args:
            channel: Its channel.
            id: Its id.
            timeout_s: How long to wait; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: UNKNOWN_MESSAGE; it does not wait (any more). DENIED, INVALID_CHANNEL, a storage error.
        """
        check_channel(channel)
        self.ask("delayed_cancel", pack_cancel(channel, id), timeout_s)

    def delayed(
        self, prefix: str = "", *, limit: int | None = None, timeout_s: float | None = None
    ) -> Iterator[DelayedMessage]:
        """Iterate over the messages that wait, the earliest first, but for a second here or there; pages by itself.

        Args:
            prefix: What their channels' names begin with; any text.
            limit: At most so many, from 1.
            timeout_s: How long to wait for each page; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: From the iteration: DENIED, TIMEOUT, a storage error.
        """
        pages = DelayedPages(prefix, limit)
        while (arguments := pages.next()) is not None:
            yield from pages.take(self.ask("delayed", arguments, timeout_s))

    def transaction(self, *, timeout_s: float | None = None) -> Transaction:
        """Begin to put publishes together that happen together or not at all: `with bus.transaction() as tx`.

        Args:
            timeout_s: How long leaving the block waits; None for the bus' own timeout, `math.inf` for ever.

        Raises:
            BrokerError: From leaving the block: CONFLICT, and all other errors of `publish`, for one of them and so for
                all; NOT_STORED; TRANSACTION_TOO_LARGE.
        """
        return Transaction(self, self._buffer, timeout_s)

    def submit_draft(self, draft: Draft) -> Pending[list[Receipt]]:
        """Send what a transaction has put together."""
        with self.lock:
            self._check_open()
            try:
                return Pending(draft.send(), self._context, self.timeout_s)
            finally:
                self.send_now()

    def post_window(
        self,
        messages: Iterable[tuple[str, Payload]],
        *,
        headers: Mapping[str, object] | None = None,
        key: bytes | None = None,
        priority: int = 2,
        expiry_s: int | None = None,
    ) -> Window:
        """Send many messages to many channels at once, to be waited for together: what a load generator does.

        Each channel's messages keep their order. They go to the system in one call, as far as it takes them.

        Args:
            messages: Pairs of a channel's name and a payload.
            headers: As for `post`, of all of them, and so on.

        Returns:
            What becomes of them, and when.

        Raises:
            BrokerError: At once as `post` does; those before the one that is refused are sent.
        """
        grouped: dict[str, list[Payload]] = {}
        for channel, payload in messages:
            grouped.setdefault(channel, []).append(payload)
        packed = control.pack_headers(headers) if headers else None
        parts: dict[str, tuple[int, Pending[list[Receipt]]]] = {}
        posted_s = time.perf_counter()
        with self.lock:
            self._check_open()
            try:
                for channel, payloads in grouped.items():
                    publication = self._buffer.publish_many(channel, payloads, packed, key, priority, expiry_s)
                    parts[channel] = len(payloads), Pending(publication, self._context, self.timeout_s)
            finally:
                self.send_now()
        return Window(parts, self.timeout_s, posted_s)

    def _wait_answered(self, is_enough: Callable[[], bool], timeout_s: float | None) -> None:
        """Send what there is, and wait for answers until there are enough, or one of them must be raised."""
        deadline = self._deadline(timeout_s)
        with self.lock:
            if not self._is_forked:
                self._pump()
            waiter = self._add_drainer(is_enough)
        while waiter is not None:
            if not waiter.wait(deadline.left_s()):
                count = self._buffer.records_unanswered
                raise deadline.passed(
                    "publishes",
                    f"{count} messages are not answered",
                    "They are still under way: wait again, or look at what keeps the broker.",
                )
            with self.lock:
                waiter = self._add_drainer(is_enough)

    def _add_drainer(self, is_enough: Callable[[], bool]) -> Waiter | None:
        """Return who is woken by the next answers; None when there are enough, unless one must be raised."""
        if self._is_forked:
            self._check_open()
        if is_enough() or self._buffer.first_failure is not None:
            self._raise_failure()
            return None
        return add_waiter(self._drainers)
