"""Requests that a connection publishes, and replies that it sends to those who have asked it.

A request is a message of its channel like any other, but it stands outside of the producer's line: what becomes of it
is told by its reply, so it is never repeated and no PUBLISHED answers it. A reply is no channel's: it goes to the
connection that has asked, at once, and nobody keeps it.

Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from broker.events import tally
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.wire import control
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.replies import reply_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.edge.session import Session
    from broker.node.node import Node

PUBLISH_HEADER: Final = struct.Struct("<IIQ")
SLOTS_MAX: Final = 256
"""Channels of which a connection's requests hold the newest; one more takes the place of the oldest."""


class Asking:
    """What one connection asks and replies.

    Args:
        session: The connection.
        node: The broker.
    """

    def __init__(self, session: Session, node: Node) -> None:
        self._session = session
        self._node = node
        self._line = Line()
        self._publisher = Publisher(node.tails, self._line, self, node.limits.headers_bytes_max)
        if session.identity.user:
            self._publisher.sign(session.identity.user.encode())
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []

    def leave(self) -> None:
        """The connection has gone."""
        self._publisher.leave()

    # .. the channels ..

    def slot_of(self, name: bytes) -> int | None:
        """Return the number of a channel to which this connection may publish; None when nobody has looked yet."""
        return self._slots.get(name)

    def bind(self, name: bytes) -> int:
        """Give a number to a channel that is in memory."""
        slot = self._free.pop() if self._free else len(self._slots)
        if slot >= SLOTS_MAX:
            slot = self._slots.pop(next(iter(self._slots)))
        self._publisher.bind(slot, name)
        self._slots[name] = slot
        return slot

    def take_back(self, allows: Callable[[bytes], bool]) -> None:
        """Forget the channels to which nothing more may be published."""
        for name in [name for name in self._slots if not allows(name)]:
            slot = self._slots.pop(name)
            self._publisher.bind(slot, None)
            self._free.append(slot)

    # .. requests ..

    def ask(self, asked: control.Named, slot: int, body: bytes) -> None:
        """Publish the requests of a frame, all or none.

        Raises:
            BrokerError: NO_RESPONDERS, INVALID_RECORD, …
        """
        if self._publisher.level_of(slot) == Level.EPHEMERAL and not self._node.fanout.listens(asked.name):
            self._node.replies.requests_unheard += asked.count
            raise error("NO_RESPONDERS", f"request {asked.number}: nobody subscribes to {asked.name.decode()}")
        # A line of its own, which nobody else numbers and nobody resumes: the client's number is always next.
        self._line.next = asked.number
        code = self._publisher.publish_frame(PUBLISH_HEADER.pack(slot, asked.count, asked.number) + body[asked.at :])
        if code:
            raise self._session.publish_error(code, slot, asked.number)

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        """Answer requests that were not published; the core calls it as well, when a commit fails."""
        self._session.outbox.frame(control.encode_error(failure, asked=number, count=count))
        self._node.kick()

    @property
    def outbox(self) -> Asking:
        """Where answers to publishes go."""
        return self

    def published(self, answers: bytes) -> None:
        """The requests were published: the replies say so."""

    # .. replies ..

    def reply(self, replied: control.Named, body: bytes) -> None:
        """Hand the replies of a frame to the connection that has asked, all or none.

        Raises:
            BrokerError: NO_RESPONDERS, INVALID_RECORD, …
        """
        node = self._node
        frame = reply_frame(
            self._publisher,
            body,
            replied.at,
            replied.number,
            replied.count,
            node.clock.now_us(),
            node.limits.payload_bytes_max,
        )
        if isinstance(frame, int):
            raise self._session.publish_error(frame, 0, replied.number)
        asker = node.replies.find(replied.name)
        if asker is None:
            node.replies.replies_unheard += replied.count
            tally("NO_RESPONDERS")
            raise error("NO_RESPONDERS", f"reply {replied.number}: the connection that has asked is gone")
        node.replies.replied += replied.count
        asker.outbox.frame(frame)
