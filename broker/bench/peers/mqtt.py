"""MQTT 3.1.1: CONNECT and SUBSCRIBE. PUBLISH and PUBACK are the driver's.

Sessions are clean, so that a broker forgets them, and without a keep-alive, so that nobody has to say that he lives.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from broker.bench.peers.blocking import Blocking

if TYPE_CHECKING:
    import socket

    from broker.bench.peers.work import Address, PeerWork

CONNECT: Final = 0x10
CONNACK: Final = 0x20
SUBSCRIBE: Final = 0x82
SUBACK: Final = 0x90
DISCONNECT: Final = 0xE0
CLEAN_SESSION: Final = 0x02
LEVEL: Final = 4
"""What 3.1.1 calls itself."""
IDENTIFIER: Final = 1
"""Of the only SUBSCRIBE."""
FILTER_REFUSED: Final = 0x80
PACKET_BYTES_MAX: Final = 64 * 1024

REFUSALS: Final = {
    1: "it does not speak MQTT 3.1.1",
    2: "it does not take the client's name",
    3: "it is not available",
    4: "it demands a user and a password",
    5: "it does not take strangers",
}
"""What a CONNACK may say."""


def size_of(size: int) -> bytes:
    """Return a packet's size as its header has it."""
    data = bytearray()
    while size >= 0x80:
        data.append(size & 0x7F | 0x80)
        size >>= 7
    data.append(size)
    return bytes(data)


def packet(kind: int, body: bytes) -> bytes:
    """Return a control packet."""
    return bytes([kind]) + size_of(len(body)) + body


def string(text: bytes) -> bytes:
    """Return a string as MQTT has it."""
    return len(text).to_bytes(2, "big") + text


class Conversation(Blocking):
    """A connection to an MQTT broker that has been taken."""

    def __init__(self, address: Address) -> None:
        """Connect.

        Raises:
            BrokerError: nobody listens there, it is another kind of server, or it refuses.
        """
        super().__init__("mqtt", address)
        try:
            client = string(b"bench-" + secrets.token_hex(8).encode())
            self.send(packet(CONNECT, string(b"MQTT") + bytes([LEVEL, CLEAN_SESSION, 0, 0]) + client))
            answer = self.expect(CONNACK)
            if len(answer) != 2:
                self.misunderstood(answer)
            if answer[1]:
                self.refused(REFUSALS.get(answer[1], f"it refuses with {answer[1]}"))
        except BaseException:
            self._socket.close()
            raise

    def expect(self, kind: int) -> bytes:
        """Read a packet of a kind and return its body.

        Raises:
            BrokerError: it is another one.
        """
        head = self.read(2)
        # A server of another kind is not waited for: its bytes are no header of what is due.
        if head[0] != kind:
            self.misunderstood(head)
        size, shift = head[1] & 0x7F, 7
        while head[-1] & 0x80:
            head += self.read(1)
            size |= (head[-1] & 0x7F) << shift
            shift += 7
            if size > PACKET_BYTES_MAX:
                self.misunderstood(head)
        return self.read(size)


def prepare(address: Address, work: PeerWork) -> None:
    """See that there is a broker of MQTT.

    Raises:
        BrokerError: there is none, or it refuses.
    """
    with Conversation(address) as conversation:
        conversation.send(packet(DISCONNECT, b""))


def open_publisher(address: Address, work: PeerWork) -> socket.socket:
    """Connect a publisher.

    Raises:
        BrokerError: there is no broker of MQTT, or it refuses.
    """
    with Conversation(address) as conversation:
        return conversation.detach()


def open_subscriber(address: Address, work: PeerWork, audience: int = 0) -> socket.socket:
    """Connect a reader, and wait until its subscriptions hold with the QoS of the dialect.

    Raises:
        BrokerError: there is no broker of MQTT, or it refuses.
    """
    qos = bytes([work.dialect == "mqtt-1"])
    filters = work.filters(audience)
    with Conversation(address) as conversation:
        body = IDENTIFIER.to_bytes(2, "big") + b"".join(string(each) + qos for each in filters)
        conversation.send(packet(SUBSCRIBE, body))
        granted = conversation.expect(SUBACK)[2:]
        if granted != qos * len(filters):
            levels = ", ".join("refused" if each == FILTER_REFUSED else str(each) for each in sorted(set(granted)))
            conversation.refused(f"QoS {qos[0]} of {len(filters)} filters: granted {levels or 'nothing'}")
        return conversation.detach()


def clean_up(address: Address, work: PeerWork) -> None:
    """Do nothing: sessions are clean, and no message is retained."""
