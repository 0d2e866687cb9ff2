"""What a bus asks with `request`, what it answers with `respond`, and both on their way.

A request is numbered by the bus and names, in its header `reply-to`, the connection and the number that its reply
carries; the reply comes as a delivery of subscription 0, whose sequence is the number. A request belongs to its
connection: when that ends, whoever waits is told so, since a reply would find nobody. Replies that wait to be sent
outlive a connection: who has asked may live on.

What is asked of one channel, or replied to one connection, in the same turn and with consecutive numbers leaves as one
frame. All of it belongs to whoever has the bus at the moment.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgpack

from broker.model.errors import BrokerError, error
from broker.model.names import check_channel
from broker.wire import control
from broker.wire.kinds import CHUNK_BYTES_CLOSE, PUBLISH_COUNT_MAX, RECORD_HEADER_BYTES, PublishFlag, RecordFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.remote.bus import Answer
    from broker.remote.conversation import Conversation
    from broker_native.messages import Batch, Message

REPLY_TO: Final = "reply-to"
REPLY_ROUTE: Final = 0
"""The subscription as whose deliveries replies come."""
UNSENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of requests and replies each; past it another one raises BUSY."""
CHANNELS_KNOWN_MAX: Final = 1_024

RECORD: Final = struct.Struct("<IHHI")
LENGTH: Final = struct.Struct("<H")


def encode_record(payload: bytes | bytearray | memoryview, headers: bytes) -> bytes:
    """Encode a record with packed headers, or none."""
    if not headers:
        return RECORD.pack(RECORD_HEADER_BYTES + len(payload), 0, 0, 0) + payload
    size = RECORD_HEADER_BYTES + LENGTH.size + len(headers) + len(payload)
    return b"".join(
        (RECORD.pack(size, RecordFlag.HEADERS, 0, 0), LENGTH.pack(len(headers)), headers, payload),
    )


class Run:
    """Records of one frame that may still grow.

    Args:
        flag: Of `PublishFlag`.
        name: Where they go.
        first: The number of the first.
    """

    __slots__ = ("first", "flag", "name", "records", "size_bytes")

    def __init__(self, flag: PublishFlag, name: bytes, first: int) -> None:
        self.flag = flag
        self.name = name
        self.first = first
        self.records: list[bytes] = []
        self.size_bytes = 0

    def takes(self, name: bytes, number: int, size: int) -> bool:
        """Whether a record of so many bytes goes on where this ends."""
        count = len(self.records)
        return (
            self.first + count == number
            and self.name == name
            and count < PUBLISH_COUNT_MAX
            and self.size_bytes + size <= CHUNK_BYTES_CLOSE
        )

    def frame(self) -> bytes:
        """Return the frame."""
        return control.encode_named(self.flag, self.name, self.first, len(self.records), b"".join(self.records))


class Unsent:
    """Runs that wait to be sent, in order.

    Args:
        flag: Of `PublishFlag`, what they are.
    """

    def __init__(self, flag: PublishFlag) -> None:
        self._flag = flag
        self._runs: list[Run] = []
        self._bytes = 0

    def add(self, name: bytes, number: int, record: bytes) -> None:
        """Let a record wait.

        Raises:
            Unavailable: BUSY; too much waits already.
        """
        size = len(record)
        if self._bytes + size > UNSENT_BYTES_MAX:
            raise error(
                "BUSY", f"requests and replies not sent: got {self._bytes + size} bytes, limit {UNSENT_BYTES_MAX}"
            )
        if not self._runs or not self._runs[-1].takes(name, number, size):
            self._runs.append(Run(self._flag, name, number))
        run = self._runs[-1]
        run.records.append(record)
        run.size_bytes += size
        self._bytes += size

    def take(self) -> list[bytes]:
        """Take their frames."""
        runs, self._runs = self._runs, []
        self._bytes = 0
        return [run.frame() for run in runs]


class Asking:
    """The requests and replies of one bus.

    Args:
        kick: Called when something is to be sent, and nobody has been told since.

    Attributes:
        late: Replies that came when nobody waited any more.
        unheard: Replies that came when whoever had asked was gone.
    """

    def __init__(self, kick: Callable[[], object]) -> None:
        self.late = 0
        self.unheard = 0
        self._kick = kick
        self._kicked = False
        self._limits: control.Limits | None = None
        self._reply_to = ""  # of this connection
        self._headers = b""  # the packed headers of a request without others, but for the number's digits
        self._last = 0
        self._waiting: dict[int, Answer] = {}
        self._requests = Unsent(PublishFlag.ASK)
        self._replies = Unsent(PublishFlag.REPLY)
        self._channels: dict[str, bytes] = {}

    # .. what the application does ..

    def ask(
        self,
        channel: str,
        payload: bytes | bytearray | memoryview,
        headers: Mapping[str, object] | None,
        answer: Answer,
    ) -> int:
        """Ask on the connection that there is; returns the number under which `answer` waits until `forget`.

        Raises:
            BrokerError: INVALID_CHANNEL, INVALID_RECORD, PAYLOAD_TOO_LARGE, HEADERS_TOO_LARGE; BUSY.
        """
        name = self._channels.get(channel) or self._check_channel(channel)
        if not self._reply_to:
            raise error("VERSION", "request: the server tells no name for replies", "Ask a newer server.")
        number = self._last + 1
        reply_to = f"{self._reply_to}.{number}"
        if headers:
            packed = control.pack_headers({**headers, REPLY_TO: reply_to})
        else:
            packed = self._headers + msgpack.packb(reply_to)
        self._requests.add(name, number, self._record(payload, packed))
        self._last = number
        self._waiting[number] = answer
        if not self._kicked:
            self._kicked = True
            self._kick()
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for this reply any more."""
        self._waiting.pop(number, None)

    def reply(
        self, message: Message, payload: bytes | bytearray | memoryview, headers: Mapping[str, object] | None
    ) -> None:
        """Reply to a message.

        Raises:
            BrokerError: INVALID_CHANNEL, nobody waits for a reply to it; and as for `ask`.
        """
        name, number = read_reply_to(message)
        self._replies.add(name, number, self._record(payload, control.pack_headers(headers) if headers else b""))
        if not self._kicked:
            self._kicked = True
            self._kick()

    def _record(self, payload: bytes | bytearray | memoryview, headers: bytes) -> bytes:
        limits = self._limits
        if limits is not None and len(payload) > limits.payload_bytes_max:
            raise error(
                "PAYLOAD_TOO_LARGE", f"payload: got {len(payload)} bytes, limit {limits.payload_bytes_max} bytes"
            )
        if limits is not None and len(headers) > limits.headers_bytes_max:
            raise error(
                "HEADERS_TOO_LARGE", f"headers: got {len(headers)} bytes, limit {limits.headers_bytes_max} bytes"
            )
        return encode_record(payload, headers)

    def _check_channel(self, channel: str) -> bytes:
        name = check_channel(channel)
        if len(self._channels) >= CHANNELS_KNOWN_MAX:
            self._channels.clear()
        self._channels[channel] = name
        return name

    # .. the connection ..

    def connected(self, connection: Conversation, welcome: control.Welcome) -> None:
        """There is a connection."""
        self._limits = welcome.limits
        self._reply_to = welcome.reply
        self._headers = b"\x81" + msgpack.packb(REPLY_TO)
        if welcome.reply:
            connection.add_route(REPLY_ROUTE, self, welcome.reply)

    def pump(self, connection: Conversation) -> None:
        """Send what waits, if the connection takes it."""
        self._kicked = False
        if not connection.writable:
            return
        for frame in self._requests.take():
            connection.send(frame)
        for frame in self._replies.take():
            connection.send(frame)

    def lost(self, failure: BrokerError) -> None:
        """The connection has ended, and with it what was asked on it."""
        self._reply_to = ""
        self._requests.take()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(same(failure))

    # .. what the connection hears ..

    def on_batch(self, batch: Batch) -> None:
        """Take replies."""
        waiting = self._waiting
        for message in batch:
            answer: Any = waiting.pop(message.sequence, None)
            if answer is None or answer.done():
                self.late += 1
            else:
                answer.set_result(message)

    def on_refused(self, first: int, count: int, failure: BrokerError) -> None:
        """Requests were refused."""
        for number in range(first, first + min(count, PUBLISH_COUNT_MAX)):
            answer = self._waiting.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_exception(same(failure))

    def on_reply_refused(self, count: int) -> None:
        """Replies were refused: whoever had asked is gone."""
        self.unheard += count


def same(failure: BrokerError) -> BrokerError:
    """Return an error like this one: each that is raised has a traceback of its own."""
    return type(failure)(failure.code, failure.detail, failure.hint, failure.name)


def late(channel: str, timeout_s: float | None) -> BrokerError:
    """Return the error of a request that has had no reply in time."""
    return error(
        "TIMEOUT",
        f"request {channel}: no reply within {timeout_s:g} s",
        "Whether somebody has handled it is not known; ask again only what may be done twice.",
    )


def read_reply_to(message: Message) -> tuple[bytes, int]:
    """Return where a reply to a message goes: the connection's name and the request's number.

    Raises:
        InvalidChannel: It is no request.
    """
    reply_to = message.headers.get(REPLY_TO)
    if isinstance(reply_to, str):
        name, _, digits = reply_to.rpartition(".")
        if (
            name.startswith("$reply.")
            and name.isascii()
            and digits.isdecimal()
            and digits.isascii()
            and len(digits) < 19
        ):
            encoded = name.encode()
            if len(encoded) <= 255 and int(digits):
                return encoded, int(digits)
    raise error(
        "INVALID_CHANNEL",
        f"respond: message {message.sequence} of {message.channel} names no place for a reply",
        "Respond to what came through bus.request.",
    )
