"""NATS: CONNECT and SUB, and for JetStream the stream and its consumers. PUB and MSG are the driver's and the crew's.

A reader of JetStream has a push consumer as the clients' ordered consumers have it: no acknowledgements, in memory,
with flow control. The server sends as it likes and asks now and then whether its reader has come so far, so a reader
that is slow is waited for and not cut off. A work queue is a durable pull consumer.

A consumer begins to send as soon as it is made; it is made over another connection, so that what it sends stays in the
reader's socket for the driver.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from broker.bench.peers.blocking import Blocking
from broker.bench.peers.work import Seat
from broker.model.errors import error
from broker_native import crew_nats

if TYPE_CHECKING:
    import socket

    from broker.bench.peers.work import Address, PeerWork

QUEUE: Final = "bench"
"""The durable consumer that is a work queue."""

QUEUE_BATCH: Final = 256
"""Messages that a member asks for at once: of 256, 1,000 and 5,000 the fastest."""

ACK_WAIT_NS: Final = 60_000_000_000

HEARTBEAT_NS: Final = 5_000_000_000
"""How often a consumer without messages says that it is there; flow control demands that it does."""


class Conversation(Blocking):
    """A connection to NATS that has said CONNECT."""

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            BrokerError: nobody listens there, it is another kind of server, or it refuses.
        """
        super().__init__("nats", address)
        try:
            greeting = self.read_line()
            if not greeting.startswith(b"INFO {"):
                self.misunderstood(greeting)
            self.info: dict[str, Any] = json.loads(greeting[5:])
            options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "c"}
            options |= {"version": "1", "protocol": 1, "name": "broker bench"}
            self.tell(b"CONNECT %b\r\n" % json.dumps(options).encode())
        except BaseException:
            self._socket.close()
            raise

    def tell(self, lines: bytes) -> None:
        """Say something that has no answer, and wait until the server has done it.

        Raises:
            BrokerError: it refuses.
        """
        self.send(lines + b"PING\r\n")
        if (line := self.read_word()) != b"PONG":
            self.misunderstood(line)

    def read_word(self) -> bytes:
        """Read a line that is neither +OK nor INFO; PINGs are answered.

        Raises:
            BrokerError: it is an error.
        """
        while True:
            line = self.read_line()
            if line.startswith(b"-ERR"):
                self.refused(line.decode(errors="replace"))
            if line == b"PING":
                self.send(b"PONG\r\n")
            elif line != b"+OK" and not line.startswith(b"INFO "):
                return line

    def ask(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream for something and return its answer.

        Raises:
            BrokerError: there is no JetStream, or it refuses.
        """
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        data = json.dumps(body).encode() if body is not None else b""
        self.send(f"SUB {inbox} 9\r\nUNSUB 9 1\r\nPUB {subject} {inbox} {len(data)}\r\n".encode() + data + b"\r\n")
        words = self.read_word().split(b" ")
        if words[0] == b"HMSG":
            self.read(int(words[-1]) + 2)
            self.refused(f"nobody answers to {subject}: it runs without JetStream")
        if words[0] != b"MSG":
            self.misunderstood(b" ".join(words))
        answer: dict[str, Any] = json.loads(self.read(int(words[-1]) + 2))
        if "error" in answer:
            self.refused(f"{subject}: {answer['error'].get('description', answer['error'])}")
        return answer


def stream_of(work: PeerWork) -> str:
    """Return the name of a work's stream, which may have no points."""
    return work.room.replace(".", "_")


def stream_configuration(work: PeerWork) -> dict[str, Any]:
    """Return what a work's stream is: all of its channels, one copy, nothing thrown away."""
    return {
        "name": stream_of(work),
        "subjects": [f"{work.room}.>"],
        "retention": "limits",
        "storage": work.storage,
        "num_replicas": 1,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "discard": "new",
    }


def consumer_configuration(work: PeerWork, audience: int, inbox: str) -> dict[str, Any]:
    """Return what a reader's consumer is: everything from the start, in order, pushed with flow control."""
    configuration: dict[str, Any] = {
        "deliver_subject": inbox,
        "deliver_policy": "all",
        "ack_policy": "none",
        "max_deliver": 1,
        "flow_control": True,
        "idle_heartbeat": HEARTBEAT_NS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    if work.audiences > 1:
        configuration["filter_subject"] = f"{work.room}.{audience}.*"
    return configuration


def prepare(address: Address, work: PeerWork) -> None:
    """See that there is a NATS server, and make the stream of a work of JetStream.

    Raises:
        BrokerError: there is none, or it refuses.
    """
    with Conversation(address) as conversation:
        if work.dialect == "jetstream":
            conversation.ask(f"$JS.API.STREAM.CREATE.{stream_of(work)}", stream_configuration(work))


def open_publisher(address: Address, work: PeerWork) -> socket.socket:
    """Connect a publisher. Of JetStream, the driver gives it an inbox.

    Raises:
        BrokerError: there is no NATS server, it refuses, or it has no JetStream.
    """
    with Conversation(address) as conversation:
        if work.dialect == "jetstream" and not conversation.info.get("jetstream"):
            raise error("UNAVAILABLE", f"{conversation.who}: it runs without JetStream")
        return conversation.detach()


def open_subscriber(address: Address, work: PeerWork, audience: int = 0) -> socket.socket:
    """Connect a reader, and wait until its subscription holds; of JetStream, with a consumer that begins at the start.

    Raises:
        BrokerError: there is no NATS server, or it refuses.
    """
    with Conversation(address) as conversation:
        if work.dialect == "nats":
            filters = enumerate(work.filters(audience), 1)
            conversation.tell(b"".join(b"SUB %b %d\r\n" % (each, number) for number, each in filters))
            return conversation.detach()
        inbox = f"_INBOX.{secrets.token_hex(8)}"
        conversation.tell(f"SUB {inbox} 1\r\n".encode())
        with Conversation(address) as control:
            request = {"stream_name": stream_of(work), "config": consumer_configuration(work, audience, inbox)}
            control.ask(f"$JS.API.CONSUMER.CREATE.{stream_of(work)}", request)
        return conversation.detach()


def queue_configuration() -> dict[str, Any]:
    """Return what a work queue is: a durable pull consumer that each message is acknowledged to."""
    return {
        "durable_name": QUEUE,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT_NS,
        # By default no more than a thousand messages may be with members, which is less than these ask for.
        "max_ack_pending": 1_000_000,
        "max_waiting": 65_536,
        "num_replicas": 1,
    }


def make_queue(address: Address, work: PeerWork) -> bytes:
    """Make a consumer of a work's stream; members' acknowledgements are addressed by each message.

    Raises:
        BrokerError: there is no NATS server, or it refuses.
    """
    with Conversation(address) as conversation:
        request = {"stream_name": stream_of(work), "config": queue_configuration()}
        conversation.ask(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream_of(work)}.{QUEUE}", request)
    return b""


def open_member(address: Address, work: PeerWork, number: int, batch: int) -> Seat:
    """Connect a member, who asks for so many messages at once, and wait until its inbox is there.

    Raises:
        BrokerError: there is no NATS server, or it refuses.
    """
    inbox = f"_INBOX.{secrets.token_hex(8)}".encode()
    with Conversation(address) as conversation:
        conversation.tell(b"SUB %b %d\r\n" % (inbox, number + 1))
        ask = crew_nats.ask_words(stream_of(work).encode(), QUEUE.encode(), inbox, batch)
        return Seat(conversation.detach(), ask, inbox)


def count_undone(address: Address, work: PeerWork) -> int:
    """Return how many messages the consumer has not had acknowledged, and not delivered.

    Raises:
        BrokerError: there is no NATS server, or it refuses.
    """
    with Conversation(address) as conversation:
        info = conversation.ask(f"$JS.API.CONSUMER.INFO.{stream_of(work)}.{QUEUE}")
        return int(info["num_ack_pending"]) + int(info["num_pending"])


def clean_up(address: Address, work: PeerWork) -> None:
    """Remove the stream of a work of JetStream, and its consumers with it.

    Raises:
        BrokerError: there is no NATS server, or it refuses.
    """
    if work.dialect == "jetstream":
        with Conversation(address) as conversation:
            conversation.ask(f"$JS.API.STREAM.DELETE.{stream_of(work)}")
