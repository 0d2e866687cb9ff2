"""The operation `trace`: one message's way to the disk and to each of its readers.

All connections are looked at, a bounded number in each turn of the loop, so that who asks costs nobody a wait.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

from broker.access.gate import Verb
from broker.model.errors import BrokerError
from broker.model.names import check_channel
from broker.node.traces import consumer_state, reader_state
from broker.wire import control

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.edge.session import Session
    from broker.node.node import Connection
    from broker.node.traces import Traced

__all__ = ["trace"]

CONNECTIONS_A_TURN: Final = 200
READERS_MAX: Final = 200
"""A control body holds 16,384 values, and each reader is some ten of them."""
CONSUMERS_MAX: Final = 200


def trace(session: Session, request: control.Request) -> None:
    """Handle a REQUEST `trace`: `channel` and `sequence`."""
    channel = control.take_str(request.more, "channel")
    sequence = control.take_int(request.more, "sequence", smallest=1)
    session.node.gate.check(session.identity, Verb.MANAGE, channel.encode())
    name = check_channel(channel)
    session.need([name])

    def told(found: Traced | BrokerError) -> None:
        if session.closed:
            return
        if isinstance(found, BrokerError):
            session.outbox.frame(control.encode_error(found, request=request.request))
            session.node.kick()
        else:
            _Round(session, request.request, found).step()

    session.node.traces.find(name, sequence, told)


class _Round:
    """One look at all connections."""

    def __init__(self, session: Session, number: int, traced: Traced) -> None:
        self._session = session
        self._number = number
        self._traced = traced
        # Who had what is no more is known to nobody.
        trimmed = traced.fields["state"] == "trimmed"
        self._connections: Iterator[Connection] = iter(() if trimmed else list(session.node.connections))
        self._readers: list[dict[str, object]] = []
        self._counts: Counter[str] = Counter()

    def step(self) -> None:
        """Look at some of them; answer when there are no more."""
        session = self._session
        if session.closed:
            return
        some = list(islice(self._connections, CONNECTIONS_A_TURN))
        for connection in some:
            self._look(connection)
        if some:
            session.node.loop.call_soon(self.step)
            return
        session.outbox.frame(control.encode_reply(self._number, self._answer()))
        session.node.kick()

    def _look(self, connection: Connection) -> None:
        for subscription in (connection.subscriptions or {}).values():
            if subscription.state is None:
                continue
            state = reader_state(subscription.state, self._traced)
            if state is None:
                continue
            self._counts[state] += 1
            if len(self._readers) < READERS_MAX:
                self._readers.append(
                    {
                        **connection.describe(),
                        "subscription": subscription.number,
                        "state": state,
                        "queued_bytes": connection.outbox.queued,
                    }
                )

    def _answer(self) -> dict[str, object]:
        traced = self._traced
        consumers = []
        infos, more = self._session.node.consumers.in_memory(CONSUMERS_MAX)
        for info in infos:
            state = consumer_state(info, traced)
            if state is not None:
                consumers.append([info.settings.name, state])
        return {
            "channel": traced.channel.decode(),
            "sequence": traced.sequence,
            **traced.fields,
            "readers": self._readers,
            "counts": dict(self._counts),
            "consumers": consumers,
            "more": more or sum(self._counts.values()) > len(self._readers),
        }
