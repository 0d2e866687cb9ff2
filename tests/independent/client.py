"""A client of the native protocol, written from broker/wire/specification.md alone, with the standard library alone.

It is the proof that the document is enough: nothing of `broker` is imported, and nothing of it was read. Blocking and
for one thread: answers, deliveries and PINGs are served inside its calls, and an application that is idle calls
`serve` now and then. What outlives a connection is here (§8 with line.py, §11 with place.py, the classes of §14);
conversation.py is one connection, frames.py the bytes.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from dataclasses import dataclass

from . import frames, msgpack
from .conversation import Address, Conversation, Ended
from .frames import (
    Answer,
    Deliver,
    Error,
    GoingAway,
    Kind,
    Malformed,
    Pong,
    Published,
    Record,
    Reply,
    Subscribed,
    Unsubscribed,
)
from .line import Line, Placed, Receipt
from .place import ByBus, ByPositions, Diverged, Note, Trimmed

__all__ = ["Client", "Diverged", "Gone", "Message", "Placed", "Receipt", "Refused", "Subscription", "Trimmed"]

_LASTED_S = 3.0
_DELAY_S = 0.1


class Refused(Exception):
    """The server's answer is an ERROR."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error
        self.code = error.code


@dataclass(frozen=True, slots=True)
class Message:
    channel: str
    epoch: int
    sequence: int
    time_us: int
    early: bool
    record: Record

    @property
    def payload(self) -> bytes:
        return self.record.payload

    @property
    def headers(self) -> object:
        return None if self.record.headers is None else msgpack.unpack(self.record.headers)


@dataclass(frozen=True, slots=True)
class Gone:
    """`run` sequences from `sequence` on that hold no message any more."""

    channel: str
    sequence: int
    run: int
    reason: int


Item = Message | Gone | Note


class Subscription:
    """What one SUBSCRIBE began, across connections. `next` and `close` are those of its client."""

    def __init__(self, client: Client, number: int, filters: list[str], credit: int, start: object) -> None:
        asked = start if isinstance(start, dict) else None
        self.pattern = any(token in ("*", ">") for name in filters for token in name.split("."))
        by_bus = self.pattern or (asked is not None and ("bus" in asked or "time_us" in asked))
        self._client = client
        self.number = number
        self.filters = filters
        self.credit = credit
        self.place: ByPositions | ByBus = ByBus(asked) if by_bus else ByPositions(filters, asked)
        self.answer: Subscribed | None = None
        self.ended = False
        self.names: dict[int, str] = {}
        self._queue: deque[tuple[Item, int]] = deque()
        self._consumed = 0
        # As many bytes of chunks as were received on this connection, for those who count credit.
        self.received_bytes = 0

    @property
    def single(self) -> str | None:
        return self.filters[0] if len(self.filters) == 1 and not self.pattern else None

    def welcomed(self, journal: bytes) -> None:
        self._queue.extend((note, 0) for note in self.place.welcomed(journal))

    def subscribed(self, answer: Subscribed) -> None:
        self.answer = answer
        self.names = {}
        self.received_bytes = 0
        # SUBSCRIBE has granted all of `credit` anew: what was received before is not granted again.
        self._consumed = 0
        self._queue = deque((item, 0) for item, _ in self._queue)
        self._queue.extend((note, 0) for note in self.place.subscribed(answer))

    def delivered(self, deliver: Deliver) -> None:
        channel = self._name(deliver)
        chunk = deliver.chunk
        self.received_bytes += chunk.size
        notes, new = self.place.delivered(channel, deliver)
        items: list[Item] = list(notes)
        for sequence, record in new:
            if record.run:
                items.append(Gone(channel, sequence, record.run, record.reason))
            else:
                time_us = chunk.time_us + record.time_us
                items.append(Message(channel, chunk.epoch, sequence, time_us, deliver.early, record))
        self._queue.extend((item, 0) for item in items[:-1])
        if items:
            self._queue.append((items[-1], chunk.size))
        else:
            self._grant(chunk.size)

    def _name(self, deliver: Deliver) -> str:
        known = self.names.get(deliver.chunk.channel)
        name = deliver.name or known or self.single
        if name is None or (deliver.name is not None and (known is not None or self.single is not None)):
            raise Malformed(f"a DELIVER named {deliver.name!r} of the channel {known or self.single!r}")
        self.names[deliver.chunk.channel] = name
        return name

    @property
    def ready(self) -> bool:
        """Whether an item has come that was not taken."""
        return bool(self._queue)

    def next(self, timeout_s: float = 10.0) -> Item | None:
        """The next item, None if none comes in time. Taking the last one of a chunk gives its credit back.

        Raises:
            Refused: the server ended the subscription; Ended: and the connection, for good.
        """
        self._client.serve(timeout_s, lambda: bool(self._queue) or self.ended)
        if not self._queue:
            return None
        item, size = self._queue.popleft()
        self._grant(size)
        return item

    def _grant(self, size: int) -> None:
        self._consumed += size
        if self._consumed * 4 >= self.credit and not self.ended:
            self._client.grant(self.number, self._consumed)
            self._consumed = 0

    def close(self) -> None:
        """UNSUBSCRIBE, and take what comes before the answer."""
        self._client.unsubscribe(self)


class Client:
    """A connection that is made anew when it is lost.

    Args:
        address: (host, port) or the path of a Unix socket.
        lasting: whether to publish under a producer, a line that outlives a connection.
        producer: its 16 bytes, drawn at random if left out.
        timeout_s: how long any call may take, reconnecting included.
        delay_s_max: how long it waits at most before it tries to connect again.

    Raises:
        Ended: no server, or one that refuses.
    """

    def __init__(
        self,
        address: Address,
        *,
        lasting: bool = True,
        producer: bytes | None = None,
        timeout_s: float = 10.0,
        delay_s_max: float = 3.0,
    ) -> None:
        self.address = address
        self.producer = (producer or os.urandom(16)) if lasting else None
        self.timeout_s = timeout_s
        self.line = Line(lasting)
        self.subscriptions: dict[int, Subscription] = {}
        self.connections = 0
        self._channels: dict[str, int] = {}
        self._channel_errors: dict[str, Error] = {}
        self._replies: dict[int, Reply | Error | None] = {}
        self._refused: dict[int, Error] = {}
        self._numbers = 0
        self._pongs: set[int] = set()
        self._going_away = False
        self._retry_after_ms: int | None = None
        self._try_at = 0.0
        self._delay_s = min(_DELAY_S, delay_s_max)
        self._delay_s_max = delay_s_max
        self._conversation: Conversation | None = None
        self._connect()

    # --- the connection ---

    @property
    def conversation(self) -> Conversation:
        """The present connection; waits for a new one if there is none.

        Raises:
            Ended: there is none in time.
        """
        self.serve(self.timeout_s, lambda: self._conversation is not None)
        if self._conversation is None:
            raise Ended(None, f"no connection for {self.timeout_s} s")
        return self._conversation

    def _reconnect(self, timeout_s: float) -> None:
        """Try to connect, or wait for the time to try again."""
        wait_s = self._try_at - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
            return
        try:
            self._connect()
        except Ended as ended:
            self._lost(ended)

    def _connect(self) -> None:
        conversation = Conversation(self.address, producer=self.producer, timeout_s=self.timeout_s)
        self._conversation = conversation
        self.connections += 1
        self._channels = {}
        self._channel_errors = {}
        self._going_away = False
        self._retry_after_ms = None
        welcome = conversation.welcome
        self.line.welcomed(welcome.journal, welcome.highest)
        for subscription in self.subscriptions.values():
            subscription.welcomed(welcome.journal)
            self._subscribe(subscription)
        self._send_frames()

    def cut(self) -> None:
        """Lose the connection, as a network would. The next call makes another."""
        if self._conversation is not None:
            self._lost(Ended(None, "cut"))

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None

    def _lost(self, ended: Ended) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.close()
        told = ended.error.retry_after_ms if ended.error is not None else None
        if told is None:
            told, self._retry_after_ms = self._retry_after_ms, None
        if told is not None:
            self._try_at = time.monotonic() + random.uniform(0.5, 1.5) * min(told, 60_000) / 1000
        elif conversation is not None and time.monotonic() - conversation.begun > _LASTED_S:
            self._delay_s = min(_DELAY_S, self._delay_s_max)
        else:
            self._try_at = time.monotonic() + random.uniform(0.5, 1.0) * self._delay_s
            self._delay_s = min(2 * self._delay_s, self._delay_s_max)
        self.line.lost()
        self._replies = {number: reply for number, reply in self._replies.items() if reply is not None}
        error = ended.error
        if error is not None and not (error.retry or error.resume):
            raise ended

    def serve(self, timeout_s: float, until: object = None) -> bool:
        """Serve the connection until `until()` is true, or for `timeout_s`; in 0 s, take what has come.

        Returns:
            Whether `until()` is true.
        """
        end = time.monotonic() + timeout_s
        while not (callable(until) and until()):
            left = end - time.monotonic()
            if not self._step(max(0.0, left)) and left <= 0:
                return False
        return True

    def _step(self, timeout_s: float) -> bool:
        """Take one frame of the server's, and do what follows from it; whether there was one."""
        if self._conversation is None:
            self._reconnect(timeout_s)
            return False
        answer = None
        try:
            answer = self._conversation.receive(timeout_s)
            if answer is not None:
                self._dispatch(answer)
            if self._going_away and not self.line.in_flight:
                self.cut()
        except Ended as ended:
            self._lost(ended)
        except Malformed as error:
            self._lost(Ended(None, str(error)))
            raise
        return answer is not None

    def _dispatch(self, answer: Answer) -> None:
        if isinstance(answer, Deliver):
            subscription = self.subscriptions.get(answer.subscription)
            if subscription is None or subscription.answer is None:
                raise Malformed(f"a DELIVER of subscription {answer.subscription}")
            subscription.delivered(answer)
        elif isinstance(answer, Published):
            self._published(answer)
        elif isinstance(answer, Error):
            self._error(answer)
        elif isinstance(answer, Subscribed):
            self.subscriptions[answer.subscription].subscribed(answer)
        elif isinstance(answer, Unsubscribed):
            self.subscriptions.pop(answer.subscription).ended = True
        elif isinstance(answer, Reply):
            self._answered(answer.request, answer)
        elif isinstance(answer, Pong):
            self._pongs.add(answer.token)
        elif isinstance(answer, GoingAway):
            self._going_away = True
            self._retry_after_ms = answer.retry_after_ms

    def _error(self, error: Error) -> None:
        if error.concerns == "number":
            self.line.refused(error)
            self._clear_up()
        elif error.concerns == "request":
            self._answered(error.number, error)
        elif error.concerns == "channel":
            name = next(name for name, number in self._channels.items() if number == error.number)
            self._channel_errors[name] = error
        else:
            self._subscription_ended(error)

    # --- publishing ---

    def publish(self, channel: str, *payloads: bytes, **fields: object) -> Receipt:
        """Send records as one PUBLISH, without waiting; `fields` are those of frames.record, for all of them."""
        return self.publish_records(channel, [frames.record(payload, **fields) for payload in payloads])  # type: ignore[arg-type]

    def publish_records(self, channel: str, records: list[bytes]) -> Receipt:
        receipt = self.line.add(channel, records)
        self._send_frames()
        return receipt

    def wait(self, *receipts: Receipt) -> None:
        """Until everything in these receipts is known.

        Raises:
            TimeoutError: it is not, within the time allowed.
        """
        if not self.serve(self.timeout_s, lambda: all(receipt.done for receipt in receipts)):
            raise TimeoutError(f"no answer to a PUBLISH for {self.timeout_s} s")

    def _send_frames(self) -> None:
        if self._going_away or self._conversation is None:
            return
        while (frame := self.line.take()) is not None:
            known = frame.channel in self._channels
            if not known or self._channel_errors.pop(frame.channel, None) is not None:
                number = self._channels.setdefault(frame.channel, len(self._channels))
                self._conversation.send(frames.channel(number, frame.channel))
            number = self._channels[frame.channel]
            self._conversation.send(frames.publish(number, frame.number, frame.records))

    def _published(self, answer: Published) -> None:
        for entry in answer.entries:
            channel = self.line.published(entry)
            if self._channels.get(channel) != entry.channel:
                raise Malformed(f"{entry} for {channel}, number {self._channels.get(channel)}")
        self._clear_up()

    def _clear_up(self) -> None:
        if not self.line.held or self.line.in_flight:
            return
        delay_s = self.line.clear_up(self._channel_errors)
        if delay_s is None:
            self.cut()
            return
        if delay_s:
            time.sleep(delay_s)
        self._send_frames()

    # --- subscribing ---

    def subscribe(self, *filters: str, start: dict[str, object] | None = None, credit: int = 65_536) -> Subscription:
        """SUBSCRIBE, and wait for the answer.

        Raises:
            Refused: by the server.
        """
        self._numbers += 1
        subscription = Subscription(self, self._numbers, list(filters), credit, start)
        subscription.welcomed(self.conversation.welcome.journal)
        self.subscriptions[subscription.number] = subscription
        self._subscribe(subscription)
        self._await(lambda: subscription.answer is not None or subscription.number in self._refused, "SUBSCRIBE")
        if subscription.number in self._refused:
            raise Refused(self._refused.pop(subscription.number))
        return subscription

    def _subscribe(self, subscription: Subscription) -> None:
        assert self._conversation is not None
        subscription.answer = None
        self._conversation.send(
            frames.control(
                Kind.SUBSCRIBE,
                subscription=subscription.number,
                filters=subscription.filters,
                credit=subscription.credit,
                start=subscription.place.start(),
            )
        )

    def _subscription_ended(self, error: Error) -> None:
        subscription = self.subscriptions.get(error.number)
        if subscription is None:
            self._refused[error.number] = error
        elif error.resume and self._conversation is not None:
            self._subscribe(subscription)
        else:
            self.subscriptions.pop(error.number).ended = True
            self._refused[error.number] = error

    def grant(self, subscription: int, size: int) -> None:
        if self._conversation is not None:
            self._conversation.send(frames.credit(subscription, size))

    def unsubscribe(self, subscription: Subscription) -> None:
        """UNSUBSCRIBE, and wait for the answer.

        Raises:
            Refused: by the server.
        """
        self.conversation.send(frames.control(Kind.UNSUBSCRIBE, subscription=subscription.number))
        self._await(lambda: subscription.ended or subscription.number in self._refused, "UNSUBSCRIBE")
        if subscription.number in self._refused:
            raise Refused(self._refused.pop(subscription.number))

    # --- the rest ---

    def request(self, op: str, **fields: object) -> dict[str, object]:
        """REQUEST, and wait for the answer.

        Raises:
            Refused: by the server.
        """
        conversation = self.conversation
        self._numbers += 1
        number = self._numbers
        self._replies[number] = None
        conversation.send(frames.control(Kind.REQUEST, request=number, op=op, **fields))
        self._await(lambda: self._replies.get(number, conversation) is not None, "REQUEST")
        reply = self._replies.pop(number, None)
        if isinstance(reply, Error):
            raise Refused(reply)
        if reply is None:
            raise Ended(None, "the connection was lost with the answer")
        return reply.fields

    def history(self, channel: str, **bounds: object) -> list[frames.Chunk]:
        """Read a channel back, answer by answer (§13); backwards the newest chunk comes first.

        Raises:
            Refused: by the server.
        """
        chunks: list[frames.Chunk] = []
        going_on: dict[str, object] = {key: bounds[key] for key in ("reverse", "bytes", "limit") if key in bounds}
        while True:
            fields = self.request("history", channel=channel, **bounds)
            page = frames.chunks(fields["chunks"])
            chunks += reversed(page) if bounds.get("reverse") else page
            if not fields["more"]:
                return chunks
            bounds = {**going_on, "after": fields["after"], "before": fields["before"]}

    def _answered(self, number: int, answer: Reply | Error) -> None:
        if number not in self._replies:
            raise Malformed(f"an answer to request {number}, which was not made")
        self._replies[number] = answer

    def ping(self) -> None:
        """PING, and wait for the PONG; on a new connection again, if the one that it was sent on is lost."""
        until = time.monotonic() + self.timeout_s
        token = self._numbers = self._numbers + 1
        while token not in self._pongs and time.monotonic() < until:
            conversation = self.conversation
            conversation.send(frames.token(Kind.PING, token))
            self._await(lambda on=conversation: token in self._pongs or self._conversation is not on, "PING")

    def _await(self, done: object, what: str) -> None:
        if not self.serve(self.timeout_s, done):
            raise TimeoutError(f"no answer to {what} for {self.timeout_s} s")
