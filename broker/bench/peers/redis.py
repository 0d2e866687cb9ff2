"""Redis: PING, HELLO, SUBSCRIBE, PSUBSCRIBE and XGROUP. PUBLISH, XADD and XREAD are the driver's, XREADGROUP and XACK
the crew's.

Streams need no preparation, since XADD makes them; they are read from their start. A work queue is a consumer group
over a stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from broker.bench.peers.blocking import Blocking
from broker.bench.peers.work import Seat
from broker_native import crew_redis

if TYPE_CHECKING:
    import socket

    from broker.bench.peers.work import Address, PeerWork

GROUP: Final = b"bench"

QUEUE_BATCH: Final = 1_000
"""Entries that a member asks for at once: of 100, 1,000 and 4,000 the fastest."""

Reply: TypeAlias = bytes | int | list["Reply"] | None


def command(*words: bytes) -> bytes:
    """Return a command as RESP has it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Conversation(Blocking):
    """A connection that has been seen to be one to Redis."""

    def __init__(self, address: Address, work: PeerWork) -> None:
        """Connect, and choose the version of the protocol.

        Raises:
            BrokerError: nobody listens there, it is another kind of server, or it refuses.
        """
        super().__init__("redis", address)
        try:
            if work.resp == 3:
                self.ask(b"HELLO", b"3")
            elif self.ask(b"PING") != b"PONG":
                self.misunderstood(b"its answer to PING")
        except BaseException:
            self._socket.close()
            raise

    def ask(self, *words: bytes) -> Reply:
        """Send a command and return its reply.

        Raises:
            BrokerError: it refuses.
        """
        self.send(command(*words))
        return self.read_reply()

    def read_reply(self) -> Reply:
        """Read one value; a map is the list of its keys and values.

        Raises:
            BrokerError: it is an error, or no value.
        """
        line = self.read_line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            self.refused(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        if kind not in (b":", b"$", b"*", b">", b"%", b"_") or (kind != b"_" and not rest.lstrip(b"-").isdigit()):
            self.misunderstood(line)
        if kind == b"_" or rest == b"-1":
            return None
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.read(int(rest) + 2)[:-2]
        return [self.read_reply() for _ in range(int(rest) * (2 if kind == b"%" else 1))]


def prepare(address: Address, work: PeerWork) -> None:
    """See that there is a Redis, and that nothing is in the way.

    Raises:
        BrokerError: there is none, it refuses, or a stream of the work has entries already.
    """
    with Conversation(address, work) as conversation:
        if work.dialect == "redis-stream" and conversation.ask(b"EXISTS", *work.names) != 0:
            conversation.refused(f"streams of the room {work.room} are there already")


def open_publisher(address: Address, work: PeerWork) -> socket.socket:
    """Connect a publisher.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    with Conversation(address, work) as conversation:
        return conversation.detach()


def open_subscriber(address: Address, work: PeerWork, audience: int = 0) -> socket.socket:
    """Connect a reader, and wait until its subscription holds. A reader of streams asks when the driver has it.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    with Conversation(address, work) as conversation:
        if work.dialect == "redis":
            filters = work.filters(audience)
            conversation.send(command(b"PSUBSCRIBE" if work.pattern else b"SUBSCRIBE", *filters))
            for _ in filters:
                conversation.read_reply()
        return conversation.detach()


def make_queue(address: Address, work: PeerWork) -> bytes:
    """Make a group over a work's one stream, from its start, and return what its members' acknowledgements say.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    (stream,) = work.names
    with Conversation(address, work) as conversation:
        conversation.ask(b"XGROUP", b"CREATE", stream, GROUP, b"0")
    return crew_redis.ack_words(stream, GROUP)


def open_member(address: Address, work: PeerWork, number: int, batch: int) -> Seat:
    """Connect a member of the group, who asks for so many entries at once.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    return Seat(open_publisher(address, work), crew_redis.ask_words(work.names[0], GROUP, b"member-%d" % number, batch))


def count_undone(address: Address, work: PeerWork) -> int:
    """Return how many entries the group has not acknowledged, and nobody has asked for.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    with Conversation(address, work) as conversation:
        groups = conversation.ask(b"XINFO", b"GROUPS", work.names[0])
        if not (isinstance(groups, list) and isinstance(groups[0], list)):
            conversation.misunderstood(b"its answer to XINFO GROUPS")
        fields = dict(zip(groups[0][::2], groups[0][1::2], strict=True))
        pending, lag = fields.get(b"pending"), fields.get(b"lag")
        if not (isinstance(pending, int) and isinstance(lag, int)):
            conversation.misunderstood(b"its answer to XINFO GROUPS")
        return pending + lag


def clean_up(address: Address, work: PeerWork) -> None:
    """Remove the streams of a work; messages to subscribers leave nothing.

    Raises:
        BrokerError: there is no Redis, or it refuses.
    """
    if work.dialect == "redis-stream":
        with Conversation(address, work) as conversation:
            conversation.ask(b"UNLINK", *work.names)
