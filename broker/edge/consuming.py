"""What a connection has to do with consumers: its memberships, their ACKs, and what it asks (specification §18).

Made for a session when it first needs it. Runs on the node's loop only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from broker.access.gate import Verb
from broker.core.recent import INDEX_END
from broker.edge.seen import Seen
from broker.model.errors import BrokerError, error
from broker.node.consumer import Member
from broker.node.history import ASKS_MAX
from broker.wire import consuming, control
from broker.wire.consuming import ACK_HEADER
from broker.wire.kinds import ACK_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker.edge.session import Session
    from broker.model.consumers import ConsumersPart

__all__ = ["OPERATIONS", "Consuming"]

MEMBER_SHARE = 4
"""What is under way to one member is no more than this part of what may wait on its connection."""


class Consuming:
    """One session's part in consumers.

    Args:
        session: Whose.

    Attributes:
        members: Its memberships by their subscriptions' numbers; one that waits for its consumer is among them.
    """

    __slots__ = ("_asked", "_node", "_session", "members")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._node = session.node
        self._asked = 0
        self.members: dict[int, Member] = {}

    # -- memberships ---------------------------------------------------------------------------------------------------

    def subscribe(self, request: control.Subscribe) -> None:
        """Become a member; answered when the consumer is in memory."""
        session, consume = self._session, request.consumer
        assert consume is not None
        try:
            session.check_room(request)
            self._node.gate.check(session.identity, Verb.CONSUME, consume.name.encode())
        except BrokerError as failure:
            session.outbox.frame(control.encode_error(failure, subscription=request.subscription))
            return
        bytes_max = min(consume.bytes_max, self._node.limits.connection_bytes_max // MEMBER_SHARE)
        member = Member(self, session.outbox, request.subscription, consume.window, bytes_max)
        self.members[request.subscription] = member
        self._node.consumers.join(consume.name, member, partial(self._joined, member), self._check_filters)

    def _joined(self, member: Member, failure: BrokerError | None) -> None:
        if member.gone:
            return
        if failure is not None:
            member.gone = True
            self.member_lost(member, failure)
            return
        core = self._node.core
        place = control.FromBus(core.journal, core.applied_number, INDEX_END)
        self._session.outbox.frame(control.encode_subscribed(control.Subscribed(member.subscription, (), place)))
        self._node.kick()

    def _check_filters(self, filters: Iterable[str]) -> None:
        """A consumer is no way around the gate: whoever takes its jobs may consume all that it reads."""
        for each in filters:
            self._check(Verb.CONSUME, each)

    def take_back(self) -> None:
        """End the memberships in consumers that the identity may not consume (any more)."""
        for number, member in list(self.members.items()):
            if member.consumer is None:
                continue
            settings = member.consumer.settings
            try:
                self._check_filters((settings.name, *settings.filters))
            except BrokerError as failure:
                del self.members[number]
                self._end(member)
                self._session.outbox.ordered_frame(control.encode_error(failure, subscription=number))

    def unsubscribe(self, number: int) -> bool:
        """End a membership; answers whether there was one."""
        member = self.members.pop(number, None)
        if member is None:
            return False
        self._end(member)
        self._session.outbox.ordered_frame(control.encode_unsubscribed(number))
        return True

    def leave(self) -> None:
        """The connection is gone, and all memberships with it: what they have comes again at once."""
        for member in self.members.values():
            self._end(member)
        self.members.clear()

    @staticmethod
    def _end(member: Member) -> None:
        if member.consumer is not None:
            member.consumer.leave(member)
        member.gone = True

    def ack(self, body: bytes) -> None:
        """Take an ACK. One of a number without membership is passed over: it has crossed its end.

        Raises:
            MalformedFrame: It is not as drawn, or its number is not the next one.
        """
        if len(body) < ACK_HEADER_BYTES:
            consuming.decode_ack(body)
        subscription, count, number = ACK_HEADER.unpack_from(body)
        member = self.members.get(subscription)
        if member is None or member.consumer is None or not count:
            consuming.decode_ack(body)
            return
        if number != member.acks + 1:
            raise error("MALFORMED_FRAME", f"ACK: got number {number}, expected {member.acks + 1}: they are dense")
        try:
            refused = member.consumer.settle(member, body, self._session.tails.now_us)
        except ValueError as reason:
            raise error("MALFORMED_FRAME", f"ACK {number}: {reason}") from None
        member.acks = number
        for code, lease, leases in refused:
            self._refuse(subscription, number, code, lease, leases)

    def refusal(self, body: bytes) -> BrokerError | None:
        """Say why an ACK in a transaction does not hold; None when all of it does. Nothing changes.

        Raises:
            MalformedFrame: It is not as drawn, or does more than acknowledge.
        """
        if len(body) < ACK_HEADER_BYTES:
            consuming.decode_ack(body)
        subscription, _, number = ACK_HEADER.unpack_from(body)
        if number:
            raise error("MALFORMED_FRAME", f"ACK in a transaction: got number {number}, expected 0")
        member = self.members.get(subscription)
        if member is None or member.consumer is None or not member.consumer.ready:
            consuming.decode_ack(body)
            return error("LEASE_UNKNOWN", f"subscription {subscription}: it has no member now, and no leases")
        try:
            refused = member.consumer.refusal(member, body)
        except ValueError as reason:
            raise error("MALFORMED_FRAME", f"ACK in a transaction: {reason}") from None
        if refused is None:
            return None
        code, lease, _ = refused
        return error(code, f"subscription {subscription}: lease {lease}")

    def settle_together(self, body: bytes) -> None:
        """Take an ACK in a transaction, of which `refusal` had nothing to say."""
        member = self.members[ACK_HEADER.unpack_from(body)[0]]
        assert member.consumer is not None
        member.consumer.settle_together(member, body, self._session.tails.now_us)

    def _refuse(self, subscription: int, number: int, code: int, lease: int, leases: int) -> None:
        said = f"ACK {number}: {leases} leases from {lease} on"
        failure = error(code, f"subscription {subscription}: {said}")
        self._session.outbox.frame(
            control.encode_error(failure, subscription=subscription, ack=number, lease=lease, leases=leases)
        )

    # -- what members are told (`MemberOwner`) -------------------------------------------------------------------------

    def member_unknown(self, member: Member, number: int) -> None:
        failure = error("COMMIT_UNKNOWN", f"subscription {member.subscription}: the commit of its ACKs failed")
        outbox = self._session.outbox
        outbox.frame(control.encode_error(failure, subscription=member.subscription, ack=number))
        outbox.frame(consuming.encode_acked(member.subscription, number))
        self._node.kick()

    def member_told(self, member: Member, event: str, channel: bytes, more: dict[str, object]) -> None:
        frame = control.encode_event(member.subscription, event, channel.decode(), more)
        self._session.outbox.ordered_frame(frame)

    def member_lost(self, member: Member, failure: BrokerError) -> None:
        if self.members.get(member.subscription) is member:
            del self.members[member.subscription]
        if not self._session.closed:
            frame = control.encode_error(failure, subscription=member.subscription)
            self._session.outbox.ordered_frame(frame)
            self._node.kick()

    # -- what it asks --------------------------------------------------------------------------------------------------

    def ask(self, request: control.Request) -> None:
        """Have an operation carried out; it answers by itself.

        Raises:
            MalformedFrame: Its arguments are missing or wrong.
            BrokerError: It is refused.
        """
        if self._asked >= ASKS_MAX:
            raise error("BUSY", f"requests of this connection for consumers: got {self._asked + 1}, limit {ASKS_MAX}")
        OPERATIONS[request.op](self, request.request, request.more)

    def _check(self, verb: Verb, name: str) -> str:
        self._node.gate.check(self._session.identity, verb, name.encode())
        return name

    def _answer(self, number: int, packed: Callable[[Any], Mapping[str, object]]) -> Callable[[Any], None]:
        """Return what takes an outcome and answers the request; `packed` makes the REPLY's fields of it."""
        self._asked += 1

        def answer(outcome: object) -> None:
            self._asked -= 1
            if self._session.closed:
                return
            if isinstance(outcome, BrokerError):
                frame = control.encode_error(outcome, request=number)
            else:
                frame = control.encode_reply(number, packed(outcome))
            self._session.outbox.frame(frame)
            self._node.kick()

        return answer

    def _set(self, number: int, more: Mapping[str, Any]) -> None:
        settings, start, update = consuming.decode_consumer_set(more)
        self._check(Verb.MANAGE, settings.name)
        for each in settings.filters:
            self._check(Verb.CONSUME, each)
        if settings.dead_letter is not None:
            self._check(Verb.PUBLISH, settings.dead_letter)
        self._node.consumers.set(settings, start, update=update, told=self._answer(number, consuming.pack_info))

    def _info(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.CONSUME, control.take_str(more, "name"))
        self._node.consumers.describe(name, self._answer(number, consuming.pack_info))

    def _list(self, number: int, more: Mapping[str, Any]) -> None:
        prefix, after, limit = consuming.decode_consumers_query(more)
        seen = Seen(self._session, (Verb.CONSUME, Verb.MANAGE), prefix.encode())
        self._node.consumers.page(prefix, after, limit, self._answer(number, _pack_page), seen.shows)

    def _remove(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.MANAGE, control.take_str(more, "name"))
        self._node.consumers.remove(name, self._answer(number, lambda _: {}))

    def _pause(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.MANAGE, control.take_str(more, "name"))
        paused = consuming.take_bool(more, "paused", default=True)
        self._node.consumers.pause(name, paused=paused, told=self._answer(number, consuming.pack_info))

    def _reset(self, number: int, more: Mapping[str, Any]) -> None:
        name, start = consuming.decode_reset(more)
        self._node.consumers.reset(self._check(Verb.MANAGE, name), start, self._answer(number, consuming.pack_info))

    def _purge(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.MANAGE, control.take_str(more, "name"))
        self._node.consumers.purge(name, self._answer(number, _pack_count))

    def _peek(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.CONSUME, control.take_str(more, "name"))
        answer = self._answer(number, lambda jobs: {"jobs": consuming.pack_waiting(jobs)})
        self._node.consumers.peek(name, consuming.take_page(more), answer)

    def _redrive(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.MANAGE, control.take_str(more, "name"))
        limit = control.take_optional_int(more, "limit")
        answer = self._answer(number, _pack_count)
        # Where a letter goes is what it says of itself: no way to publish where one may not.
        self._node.consumers.redrive(name, NO_LIMIT if limit is None else limit, answer, self._check_source)

    def _check_source(self, channel: bytes) -> None:
        self._node.gate.check(self._session.identity, Verb.PUBLISH, channel)

    def _done(self, number: int, more: Mapping[str, Any]) -> None:
        name = self._check(Verb.CONSUME, control.take_str(more, "name"))
        runs = consuming.decode_done(more)
        answer = self._answer(number, lambda left: {"left": consuming.pack_runs(left)})
        self._node.consumers.done(name, runs, answer)


NO_LIMIT = 1 << 62


def _pack_count(count: int) -> dict[str, object]:
    return {"count": count}


def _pack_page(page: ConsumersPart) -> dict[str, object]:
    return {"consumers": [consuming.pack_info(info) for info in page.consumers], "more": page.more}


OPERATIONS: dict[str, Callable[[Consuming, int, Mapping[str, Any]], None]] = {
    "consumer": Consuming._info,
    "consumer_done": Consuming._done,
    "consumer_pause": Consuming._pause,
    "consumer_peek": Consuming._peek,
    "consumer_purge": Consuming._purge,
    "consumer_redrive": Consuming._redrive,
    "consumer_remove": Consuming._remove,
    "consumer_reset": Consuming._reset,
    "consumer_set": Consuming._set,
    "consumers": Consuming._list,
}
"""Operations of REQUEST that are about consumers."""
