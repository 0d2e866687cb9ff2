"""The server's side of one native conversation, whatever carries its bytes.

The session is a state machine over frames (specification §6): hello → open → closed. PUBLISH and CREDIT never get here:
`Intake` decides them in C. A transport gives it `writelines(pieces)`, `close()`, `abort()`, `pause_reading()` and
`resume_reading()`.

Runs on the node's loop only.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from broker._version import __version__
from broker.access.gate import Identity, Verb
from broker.access.rates import address_of, too_fast
from broker.core.group import Duplicate
from broker.edge.admission import leave_ms
from broker.edge.asking import Asking
from broker.edge.beginning import check_filters, place, place_member, take_filters
from broker.edge.consuming import Consuming
from broker.edge.delaying import schedule, schedule_together
from broker.edge.questions import answer
from broker.edge.standing import Standing, line_of
from broker.edge.transacting import publish_expecting, spans_of, transact
from broker.events import emit, tally
from broker.model.errors import BrokerError, StorageError, error
from broker.model.names import ID_BYTES_MAX, check_channel, check_pattern, is_pattern
from broker.node.catchup import INDEX_END, Following
from broker.wire import consuming, control, requests
from broker.wire.kinds import Kind, PublishFlag
from broker_native.fanout import Subscription
from broker_native.intake import Intake
from broker_native.lines import Line
from broker_native.publisher import CODES, Publisher
from broker_native.unsent import Sender

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.model.delayed import DelayedPart
    from broker.model.history import BusPart, HistoryPart, NamesPart
    from broker.node.node import Node

__all__ = ["Session"]

HELLO_BYTES_MAX = 16 << 10
CODE_PAST_CREDIT = 1 << 32
LINGER_S = 5.0
"""How long a peer may take to read the farewell of a connection that is over."""

# Why a connection is not read; each is taken back by itself.
HELD_BY_GROUP = 1
HELD_BY_ANSWERS = 2
HELD_BY_TURN = 4
HELD_BY_LOAD = 8
HELD_BY_ASKING = 16
HELD_BY_MEMORY = 32
HELD_BY_RATE = 64
RATE_HOLD_MS_MIN, RATE_HOLD_MS_MAX = 20, 1_000
"""How long a connection is not heard whose publish was more than may come now."""
NAMES_AHEAD_MAX = 1_024
"""Channels that a connection is about to name, and that are loaded with the one that it waits for."""
U64 = struct.Struct("<Q")


class _NotLoaded(Exception):
    """A frame needs what is not in memory; it is handled anew when that is there.

    Attributes:
        names: The channels that it needs.
        producer: The line that it needs.
        ids: The channel whose ids it needs.
        delayed: It needs to know what waits for its time.
        signs_in: It needs to know who is at the other end.
        token: What that one says to be known by.
    """

    def __init__(
        self,
        names: list[bytes],
        producer: bytes | None = None,
        *,
        ids: bytes | None = None,
        delayed: bool = False,
        signs_in: bool = False,
        token: str | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        self.producer = producer
        self.ids = ids
        self.delayed = delayed
        self.signs_in = signs_in
        self.token = token


class _Naming:
    """CHANNEL frames that are handled together: what is left of them.

    Attributes:
        first: The number of the first of them; they are consecutive.
        names: Their names, well formed and allowed.
        alone: One of them cannot be loaded, so the first waits for itself alone.
    """

    __slots__ = ("alone", "first", "names")

    def __init__(self, first: int, names: list[bytes]) -> None:
        self.first = first
        self.names = names
        self.alone = False

    def take(self, count: int) -> tuple[int, list[bytes]]:
        """Take the first ones out."""
        first, names = self.first, self.names[:count]
        self.first += count
        self.names = self.names[count:]
        return first, names


class Session(Intake):
    """One conversation.

    Args:
        node: The broker.
        identity: Who is at the other end, as far as the transport knows.
    """

    __slots__ = (
        "_asking",
        "_channels_named",
        "_consuming",
        "_ended_us",
        "_filters_count",
        "_held_by",
        "_hello_timer",
        "_load_asked",
        "_load_failure",
        "_locating",
        "_name",
        "_number",
        "_pinged_us",
        "_producer",
        "_reply_name",
        "_sender",
        "_standing",
        "_waiting",
        "identity",
        "node",
        "opened",
        "transport",
    )

    ASKS: ClassVar[bool] = True
    """Whether somebody who has not signed in has to, where there is an authority: not if it is the broker itself."""

    def __init__(self, node: Node, identity: Identity) -> None:
        super().__init__(node.fanout, node.buffer, node.clock, HELLO_BYTES_MAX)
        self.node = node
        self.identity = identity
        self.opened = False
        self.early = True
        self.transport: Any = None
        self._channels_named = 0
        self._consuming: Consuming | None = None
        self._ended_us = 0
        self._filters_count = 0
        self._held_by = 0
        self._locating: set[int] | None = None
        self._name = ""
        self._number = 0
        self._producer: bytes | None = None
        self._reply_name = b""
        self._asking: Asking | None = None
        self._pinged_us = 0
        self._sender: Sender | None = None
        self._standing: Standing | None = None
        if node.authority is not None and (self.ASKS or identity.grants is not None):
            self._standing = Standing(self, node.authority)
        self._waiting: tuple[Callable[[], None], _NotLoaded] | None = None
        self._load_asked = False
        self._load_failure: BrokerError | None = None
        self._hello_timer: asyncio.TimerHandle | None = None

    # -- the transport's calls -----------------------------------------------------------------------------------------

    def start(self, transport: Any, *, shares: bool = False, fd: int = -1, messages: bool = False) -> None:
        """The transport is there: the peer has `hello_timeout_s` to say HELLO.

        Args:
            transport: It carries this session's bytes.
            shares: It keeps the pieces that it is handed, until they are sent, instead of a copy.
            fd: The socket that it sends these pieces to as they are; -1 when there is none.
            messages: What it is handed at once is to be one binary WebSocket message.
        """
        self.transport = transport
        self.outbox.transport = self._sender = Sender(self.node.unsent, transport, self.outbox, shares, fd, messages)
        self._number = self.node.add(self)
        self._hello_timer = self.node.loop.call_later(self.node.limits.hello_timeout_s, self._no_hello)

    def greeted(self) -> None:
        """HELLO was taken: whoever let the connection in may count it no longer among those that say nothing."""

    def stopped(self) -> None:
        """The transport is gone."""
        self.stop()
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
        self._waiting = None
        if self._standing is not None:
            self._standing.leave()
        self.node.loader.leave(self)
        self.node.ids.leave(self)
        self.node.remove(self)
        self.node.history.leave(self)
        self.outbox.close()
        if self._sender is not None:
            self._sender.release()
            self._sender = None
        for subscription in (self.subscriptions or {}).values():
            if subscription.state is not None:
                self.node.catchup.leave(subscription.state)
        self.subscriptions = None
        self.node.replies.remove(self._reply_name)
        if self._asking is not None:
            self._asking.leave()
        if self._consuming is not None:
            self._consuming.leave()
        if self.publisher is not None:
            self.publisher.leave()
        if self.publisher is not None and self.publisher.line.holder is self:
            self.publisher.line.holder = None
            if self._producer is not None:
                self.node.core.lines.forget_unused(self._producer)

    def writing_resumed(self) -> None:
        """The transport takes bytes again."""
        if self._sender is not None:
            self._sender.release()
        self.outbox.resume()
        self._read_on(HELD_BY_ANSWERS)
        for subscription in (self.subscriptions or {}).values():
            if subscription.state is not None and not subscription.state.live:
                self.node.catchup.step(subscription.state)
        self.node.kick()

    # -- Intake's calls ------------------------------------------------------------------------------------------------

    def on_read(self) -> None:
        if self._waiting is not None and not self.closed:
            try:
                self._ask(self._waiting[1])
            except MemoryError:
                self.on_exhausted()
        self.node.has_read(self)

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        try:
            if flags and not (kind == Kind.PUBLISH and flags in _PUBLISHES):
                raise error("MALFORMED_FRAME", f"frame of kind {kind}: got flags {flags:#x}, expected 0")
            if not self.opened:
                if kind != Kind.HELLO:
                    raise error("BAD_STATE", f"the first frame: got kind {kind}, expected HELLO ({int(Kind.HELLO)})")
            elif kind == Kind.HELLO:
                raise error("BAD_STATE", "HELLO: got a second one, expected one at the beginning")
            handler = _PUBLISHES[flags] if flags else _HANDLERS.get(kind)
            if handler is None:
                raise error("MALFORMED_FRAME", f"frame: got kind {kind}, which no client sends")
        except BrokerError as failure:
            self.end(failure)
        else:
            self._handle(partial(handler, self, body))

    def on_ack(self, body: bytes) -> None:
        assert self._consuming is not None
        try:
            self._consuming.ack(body)
        except BrokerError as failure:
            self.end(failure)

    def on_channels(self, first: int, names: list[bytes]) -> int:
        limit = self.node.limits.channels_per_connection_max
        # Whatever is special about a frame is for the handler of single ones.
        if not self.opened or self.publisher is None or first > self._channels_named or first >= limit:
            return 0
        count = self.node.gate.count_allowed(self.identity, Verb.PUBLISH, names[: limit - first])
        if count:
            self._handle(partial(self._name_channels, _Naming(first, names[:count])))
        return count

    def on_delayed(self, frames: bytes) -> int:
        try:
            return schedule_together(self, frames)
        except BrokerError as failure:
            # Nothing of it is answered: the client comes back, and asks for it again.
            self.end(failure)
            return 1

    def _handle(self, handler: Callable[[], None]) -> None:
        """Handle what came, or keep it until what it needs is there; `handler` is then called anew."""
        try:
            handler()
        except _NotLoaded as needed:
            self._wait(handler, needed)
        except BrokerError as failure:
            self.end(failure)

    def on_refused(self, code: int, slot: int, number: int, count: int) -> None:
        self.refuse(self.publish_error(code, slot, number), number, count)

    def on_over_rate(self, kind: int, flags: int, body: bytes, wait_ms: int) -> None:
        failure = too_fast("publishing", self.identity, wait_ms)
        try:
            if kind == Kind.TRANSACTION:
                spans = list(spans_of(body))
                number, count = spans[0][0], sum(count for _, count in spans)
                self.outbox.frame(control.encode_error(failure, number=number, count=count))
            elif flags in (PublishFlag.ASK, PublishFlag.REPLY):
                named = control.decode_named(body)
                asked = named.number if flags == PublishFlag.ASK else None
                replied = named.number if flags == PublishFlag.REPLY else None
                self.outbox.frame(control.encode_error(failure, count=named.count, asked=asked, replied=replied))
            else:
                _, count, number = struct.unpack_from("<IIQ", body)
                self.refuse(failure, number, count)
        except BrokerError as malformed:
            self.end(malformed)
            return
        self._read_no_more(HELD_BY_RATE)
        hold_ms = min(RATE_HOLD_MS_MAX, max(RATE_HOLD_MS_MIN, wait_ms))
        self.node.loop.call_later(hold_ms / 1000, self._read_on, HELD_BY_RATE)

    def on_duplicate(self, slot: int, number: int, count: int) -> None:
        assert self.publisher is not None
        try:
            self.node.duplicate(Duplicate(self.publisher, slot, number, count))
        except BrokerError as failure:
            # A refusal would leave numbers behind that are taken. The client comes back and goes by `highest`.
            self.end(failure)

    def on_ids_absent(self, body: bytes) -> None:
        self._handle(partial(self._publish_with_ids, body))

    def on_malformed(self, code: int, size: int) -> None:
        if code == _FRAME_TOO_LARGE:
            detail = f"frame: got {size} bytes, limit {self.frame_bytes_max}"
        elif size == CODE_PAST_CREDIT:
            detail = "credit: got more than 2^40 bytes outstanding"
        else:
            detail = f"frame: its header or body is not well formed ({size})"
        self.end(error(code, detail))

    def on_exhausted(self) -> None:
        """There is no memory for what came in or should go out: end without asking for any."""
        self.stop()
        try:
            if self.transport is not None:
                self.transport.write(_EXHAUSTED_FRAME)
                self.transport.close()
            emit("connection_exhausted", code=_EXHAUSTED.name, detail=_EXHAUSTED.detail)
        except MemoryError:
            if self.transport is not None:
                self.transport.abort()

    def on_credit(self, subscription: Subscription) -> None:
        self.node.catchup.step(subscription.state)

    def on_trimmed(self, subscription: Subscription, name: bytes, first: int) -> None:
        """Retention took what the subscription would have got next; behind what is queued, before what follows."""
        self.outbox.ordered_frame(control.encode_event(subscription.number, "trimmed", name.decode(), {"first": first}))

    def tell(self, subscription: Subscription, event: str, more: dict[str, object]) -> None:
        """Tell what happens to a subscription as a whole; behind what is queued, before what follows."""
        self.outbox.ordered_frame(control.encode_event(subscription.number, event, "", more))

    def on_put_off(self) -> None:
        self._read_no_more(HELD_BY_TURN)

    def on_caught_up(self) -> None:
        self._read_on(HELD_BY_TURN)

    def on_crowded(self, name: str, bytes_kept: int, limit: int, held_us: int) -> None:
        self.end(
            error(
                "LIMIT",
                f"{name}, of all connections: got {bytes_kept} bytes, limit {limit} bytes; this connection's began "
                f"{held_us / 1e6:.3f} s ago",
                "send a frame without a pause in it, or raise the limit (limits.partial_bytes_max)",
            )
        )

    def on_failed(self, failure: Exception) -> None:
        emit("session_failed", peer=self.identity.peer, failure=failure)
        if self.transport is not None:
            self.transport.abort()

    # -- what is not in memory -----------------------------------------------------------------------------------------

    def need(self, names: list[bytes]) -> None:
        """Go on if memory knows of these channels, be it that they are not stored; else the frame waits for them.

        To be called before the frame has changed anything: its handler is called anew when they are there.

        Raises:
            StorageError: One of them cannot be read.
            Unavailable: BUSY, too much waits to be loaded.
        """
        failure, self._load_failure = self._load_failure, None
        if failure is not None:
            raise failure
        if self.node.loader.missing(names):
            raise _NotLoaded(names)

    def _need_line(self, producer: bytes) -> None:
        """The same for a producer's line."""
        failure, self._load_failure = self._load_failure, None
        if failure is not None:
            raise failure
        if not self.node.loader.knows_line(producer):
            raise _NotLoaded([], producer)

    def need_delayed(self) -> None:
        """The same for what waits for its time."""
        failure, self._load_failure = self._load_failure, None
        if failure is not None:
            raise failure
        if not self.node.delayed.ready:
            raise _NotLoaded([], delayed=True)

    def _wait(self, handler: Callable[[], None], needed: _NotLoaded) -> None:
        """Keep a frame until what it needs is in memory; what follows it waits behind it."""
        self._waiting = handler, needed
        self._read_no_more(HELD_BY_LOAD)
        self.suspend()

    def _ask(self, needed: _NotLoaded) -> None:
        """Ask for what the frame that waits needs, now that what waits behind it can be seen."""
        if self._load_asked:
            return
        refusal = self._ask_loader(needed)
        if refusal is not None:
            self._loaded(refusal)

    def _ask_loader(self, needed: _NotLoaded) -> BrokerError | None:
        """Have the loader bring it; returns why it does not."""
        self._load_asked = True
        loader = self.node.loader
        try:
            if needed.signs_in:
                assert self._standing is not None
                self._standing.sign_in(needed.token, self._loaded)
            elif needed.delayed:
                self.node.delayed.need(self._loaded)
            elif needed.producer is not None:
                loader.need_line(needed.producer, self._loaded, self)
            elif needed.ids is not None:
                self.node.ids.need(needed.ids, self._loaded, self)
            else:
                loader.need(needed.names, self._loaded, self, self.names_ahead(NAMES_AHEAD_MAX))
        except BrokerError as refusal:
            return refusal
        return None

    def _loaded(self, failure: BrokerError | None) -> None:
        """What the frame that waits needs is in memory, or cannot be had: handle it."""
        try:
            while self._waiting is not None and not self.closed:
                if failure is not None and failure.name == "LIMIT":
                    # There was no memory to load it. It is as if there were none to take the frame: the client comes
                    # back.
                    self._waiting = None
                    self.on_exhausted()
                    return
                if not self._handle_waiting(failure):
                    return
                assert self._waiting is not None
                failure = self._ask_loader(self._waiting[1])
                if failure is None:
                    return
        except MemoryError:
            self.on_exhausted()
        except Exception as mistake:
            self.stop()
            self.on_failed(mistake)

    def _handle_waiting(self, failure: BrokerError | None) -> bool:
        """Handle the frame that waits; answers whether it has to wait again."""
        assert self._waiting is not None
        handler, _ = self._waiting
        self._waiting = None
        self._load_asked = False
        self._load_failure = failure
        self.tails.begin_read(self.node.clock.now_us())
        self._handle(handler)
        self._load_failure = None
        if self._waiting is None:
            self.resume()
            self._read_on(HELD_BY_LOAD)
        self.node.kick()
        return self._waiting is not None

    # -- the node's calls ----------------------------------------------------------------------------------------------

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        """Answer publishes that were not stored."""
        self.outbox.frame(control.encode_error(failure, number=number, count=count))
        self.node.kick()

    def end(self, failure: BrokerError) -> None:
        """Tell the peer why, and close."""
        if self.closed:
            return
        self.stop()
        tally(failure.name)
        self._ended_us = self.node.clock.steady_us()
        transport = self.transport
        if transport is None:
            return
        if self.outbox.paused:
            # The peer does not read: what is queued would never leave, nor would a farewell.
            transport.abort()
            return
        self.outbox.ordered_frame(control.encode_error(failure))
        self.node.kick()
        self.node.loop.call_soon(self._close_flushed)

    def _close_flushed(self) -> None:
        """Close once the turn has sent what was queued."""
        if self.transport is not None:
            if self.node.fanout.kicked:
                self.node.loop.call_soon(self._close_flushed)
            else:
                self.transport.close()

    def leave(self, seconds: float) -> None:
        """Tell the peer that the broker drains."""
        if self.opened:
            self.outbox.frame(control.encode_going_away(seconds, leave_ms(len(self.node.connections))))
        else:
            self.end(error("GOING_AWAY", "the broker is stopping"))

    def pause_reading(self) -> None:
        self._read_no_more(HELD_BY_GROUP)

    def resume_reading(self) -> None:
        self._read_on(HELD_BY_GROUP)

    def await_answers_taken(self) -> None:
        self._read_no_more(HELD_BY_ANSWERS)

    def _read_no_more(self, why: int) -> None:
        if self.transport is None or self.closed:
            return
        if not self._held_by:
            self.transport.pause_reading()
        self._held_by |= why
        if why != HELD_BY_TURN:
            self.hold()

    def _read_on(self, why: int) -> None:
        if self.transport is None or self.closed or not self._held_by & why:
            return
        self._held_by &= ~why
        if why != HELD_BY_TURN and self._held_by in (0, HELD_BY_TURN):
            self.let_go()
        if not self._held_by:
            self.transport.resume_reading()

    @property
    def publishes(self) -> bool:
        return self.publisher is not None or self._asking is not None

    def hold_for_memory(self) -> None:
        self._read_no_more(HELD_BY_MEMORY)

    def go_on_after_memory(self) -> None:
        self._read_on(HELD_BY_MEMORY)

    def describe(self) -> dict[str, object]:
        return {"connection": self._number, "peer": self.identity.peer, "name": self._name}

    def fall_behind(self) -> None:
        self.node.catchup.demote_all(list((self.subscriptions or {}).values()))

    def check_alive(self, now_us: int) -> None:
        """Ping a quiet peer, close a silent one."""
        limits = self.node.limits
        if self.closed:
            if self.transport is not None and now_us - self._ended_us >= LINGER_S * 1e6:
                self.transport.abort()
            return
        if self._held_by & (
            HELD_BY_GROUP | HELD_BY_TURN | HELD_BY_LOAD | HELD_BY_ASKING | HELD_BY_MEMORY | HELD_BY_RATE
        ):
            # We do not listen: that the peer is not heard says nothing of it.
            self.heard_us = now_us
        quiet_s = (now_us - self.heard_us) / 1e6
        if quiet_s >= limits.ping_timeout_s:
            self.end(error("PING_TIMEOUT", f"the peer: silent for {quiet_s:.0f} s, limit {limits.ping_timeout_s:g} s"))
        elif (
            quiet_s >= limits.ping_interval_s
            and self.opened
            and now_us - self._pinged_us >= (limits.ping_interval_s * 1e6)
        ):
            self._pinged_us = now_us
            self.outbox.frame(control.encode_ping(now_us))
            self.node.kick()

    # -- hello ---------------------------------------------------------------------------------------------------------

    def _no_hello(self) -> None:
        self._hello_timer = None
        if self.put_off or self.suspended:
            # It may be the HELLO that waits, for us.
            self._hello_timer = self.node.loop.call_later(self.node.limits.hello_timeout_s, self._no_hello)
        elif not self.opened:
            self.end(error("TIMEOUT", f"HELLO: none within {self.node.limits.hello_timeout_s:g} s"))

    def _hello(self, body: bytes) -> None:
        hello = control.decode_hello(body)
        if self.node.draining:
            raise error("GOING_AWAY", "the broker is stopping")
        self._need_identity(hello.token)
        producer = line_of(self.identity, hello.producer)
        if producer is not None:
            self._need_line(producer)
        limits = self.node.limits
        self._producer = producer
        self._name = hello.client
        self.rate = self.node.rates.publishing(self.rate_key)
        self.opened = True
        self.early = False
        self.greeted()
        self.frame_bytes_max = limits.frame_bytes_max
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
        if producer is not None:
            self._take_line(self.node.core.lines.known(producer))
        highest = self.node.core.lines.highest(producer) if producer is not None else 0
        self._reply_name = self.node.replies.add(self)
        self.outbox.frame(
            control.encode_welcome(
                control.Welcome(
                    server=f"broker {__version__}",
                    run=self.node.run,
                    journal=self.node.core.journal,
                    highest=highest,
                    limits=control.Limits(
                        frame_bytes_max=limits.frame_bytes_max,
                        payload_bytes_max=limits.payload_bytes_max,
                        headers_bytes_max=limits.headers_bytes_max,
                        channels_max=limits.channels_per_connection_max,
                        subscriptions_max=limits.subscriptions_per_connection_max,
                    ),
                    ping_s=limits.ping_interval_s,
                    reply=self._reply_name.decode(),
                    user=self.identity.user,
                    expires_s=self._standing.begin() if self._standing is not None else None,
                )
            )
        )

    def _need_identity(self, token: str | None) -> None:
        """Go on if it is known who is at the other end; else HELLO waits for that."""
        failure, self._load_failure = self._load_failure, None
        if failure is not None:
            raise failure
        if self._standing is not None and not self._standing.known:
            raise _NotLoaded([], signs_in=True, token=token)

    def renew(self, request: control.Request) -> None:
        """Take a fresh token; answered when it is judged."""
        token = control.take_str(request.more, "token")
        if self._standing is None:
            self.outbox.frame(control.encode_reply(request.request, {}))
        else:
            self._standing.renew(request.request, token)

    def reconsider(self) -> None:
        """What somebody may do, or how much of it in a second, has changed: see what of it this one is doing."""
        if self.opened and not self.closed:
            self.rate = self.node.rates.publishing(self.rate_key)
        if self._standing is not None and not self.closed:
            self._standing.reconsider()

    def take_back(self) -> None:
        """End what the identity may not do (any more): each subscription and channel number by itself."""
        for number, subscription in list((self.subscriptions or {}).items()):
            following = subscription.state
            assert following is not None
            failure = self._refusal(Verb.SUBSCRIBE, [*following.literals, *following.patterns])
            if failure is not None:
                self._drop_subscription(number)
                self.outbox.ordered_frame(control.encode_error(failure, subscription=number))
        if self._consuming is not None:
            self._consuming.take_back()
        if self._asking is not None:
            self._asking.take_back(lambda name: self.node.gate.allows(self.identity, Verb.PUBLISH, name))
        if self.publisher is not None:
            for number in range(self._channels_named):
                name = self.publisher.name_of(number)
                failure = self._refusal(Verb.PUBLISH, [name]) if name is not None else None
                if failure is not None:
                    self.publisher.bind(number, None)
                    self.outbox.frame(control.encode_error(failure, channel=number))
        self.node.kick()

    def _refusal(self, verb: Verb, names: list[bytes]) -> BrokerError | None:
        """Say why one of the names is denied; None when none is."""
        try:
            for name in names:
                self.node.gate.check(self.identity, verb, name)
        except BrokerError as failure:
            return failure
        return None

    def _take_line(self, line: Line | None) -> None:
        """A line has one connection: the newer takes it, the older is told."""
        if line is not None and line.holder is not None and line.holder is not self:
            line.holder.end(error("PRODUCER_TAKEN", "the producer has connected anew", "use one producer a connection"))

    # -- channels ------------------------------------------------------------------------------------------------------

    def _channel(self, body: bytes) -> None:
        number, raw = control.decode_channel(body)
        limit = self.node.limits.channels_per_connection_max
        if number > self._channels_named:
            # What is kept of channels is an array: a first number far beyond the others would be paid by us alone.
            raise error(
                "MALFORMED_FRAME", f"channel number: got {number}, expected 0 to {self._channels_named}: they are dense"
            )
        if number >= limit:
            # Nothing is bound to it, so each PUBLISH to it is refused as well.
            failure = error("TOO_MANY_CHANNELS", f"channel number: got {number}, limit {limit - 1}")
            self.outbox.frame(control.encode_error(failure, channel=number))
            return
        try:
            publisher = self._publisher()
        except BrokerError as failure:
            self.outbox.frame(control.encode_error(failure, channel=number))
            return
        bound: bytes | None = None
        try:
            self.node.gate.check(self.identity, Verb.PUBLISH, raw)
            name = check_channel(raw)
            self.need([name])
            self.node.core.load(name)
            bound = name
        except BrokerError as failure:
            self.outbox.frame(control.encode_error(failure, channel=number))
        self._channels_named = max(self._channels_named, number + 1)
        publisher.bind(number, bound)

    def _name_channels(self, naming: _Naming) -> None:
        """Do what `_channel` does for frames of which nothing is known but that they are sound, one after the other."""
        failure, self._load_failure = self._load_failure, None
        while naming.names:
            missing = self.node.loader.missing(naming.names)
            self._bind(*naming.take(naming.names.index(missing[0]) if missing else len(naming.names)))
            if not naming.names:
                return
            if failure is None:
                naming.alone = False
                raise _NotLoaded(naming.names)
            if not isinstance(failure, StorageError):
                self._refuse(failure, *naming.take(1))  # and each that is missing: nobody is loaded now
            elif naming.alone:
                self._refuse(failure, *naming.take(1))
                failure = None
            else:
                naming.alone = True
                raise _NotLoaded(naming.names[:1])

    def _bind(self, first: int, names: list[bytes]) -> None:
        """Give consecutive numbers to channels of which memory knows."""
        refused = self.node.core.load_each(names)
        bound: list[bytes | None] = list(names)
        for at, failure in sorted(refused.items()):
            self.outbox.frame(control.encode_error(failure, channel=first + at))
            bound[at] = None
        self._give(first, bound)

    def _refuse(self, failure: BrokerError, number: int, names: list[bytes]) -> None:
        """Answer a CHANNEL frame whose channel cannot be loaded."""
        self.outbox.frame(control.encode_error(failure, channel=number))
        self._give(number, [None] * len(names))

    def _give(self, first: int, bound: list[bytes | None]) -> None:
        assert self.publisher is not None
        self._channels_named = max(self._channels_named, first + len(bound))
        self.publisher.bind_all(first, bound)

    def _publisher(self) -> Publisher:
        if self.publisher is None:
            if self._producer is not None:
                # It may have been evicted since HELLO.
                self._need_line(self._producer)
            lines, producers_max = self.node.core.lines, self.node.limits.producers_max
            if self._producer is not None and lines.known(self._producer) is None and len(lines) >= producers_max:
                raise error(
                    "LIMIT",
                    f"producers: got {len(lines) + 1}, limit {producers_max}",
                    "publish as a producer that is known, or without one, or raise limits.producers_max",
                )
            line = self.node.core.lines.line(self._producer) if self._producer is not None else Line()
            self._take_line(line)
            line.holder = self
            self.publisher = Publisher(self.node.tails, line, self, self.node.limits.headers_bytes_max)
            if self.identity.user:
                self.publisher.sign(self.identity.user.encode())
        return self.publisher

    def _publish_with_ids(self, body: bytes) -> None:
        """Decide a PUBLISH whose records' ids could not be looked up: now, or when the channel's ids are there.

        Raises:
            StorageError: They cannot be read.
            Unavailable: BUSY, too many wait.
        """
        failure, self._load_failure = self._load_failure, None
        if failure is not None:
            raise failure
        assert self.publisher is not None
        slot, count, number = struct.unpack_from("<IIQ", body)
        code = self.publisher.publish_frame(body)
        if code == _IDS_ABSENT:
            raise _NotLoaded([], ids=self.publisher.name_of(slot))
        if code == _DUPLICATE:
            self.on_duplicate(slot, number, count)
        elif code:
            self.on_refused(code, slot, number, count)

    def publish_error(self, code: int, slot: int, number: int) -> BrokerError:
        """Say why a publish is refused with one of the native codes."""
        limits = self.node.limits
        expected = self.publisher.line.next if self.publisher is not None else 1
        if code == _BUSY:
            return self.node.refuse_for_memory(number)
        if code == _LIMIT and self.publisher is not None and self.tails.refused(self.publisher.name_of(slot) or b""):
            name = self.publisher.name_of(slot) or b""
            return error(
                code,
                f"publish {number}: consumers hold more of channel {name.decode()} than hold_bytes_max of its profile",
                "Have its consumers acknowledge, or remove the one that `broker consumer ls` shows to hold it.",
            )
        details = {
            1002: "journal: the disk has no room; reads go on, publishing recovers by itself",
            1003: f"publish {number}: the line's next number is {expected}",
            1006: f"publish {number}: memory for message ids: got {self.tails.ids_bytes} bytes, "
            f"limit {self.tails.ids_bytes_max} bytes",
            1008: "journal: recovering from a failed commit",
            3005: f"publish {number}: channel number {slot} has no channel",
            3009: f"publish {number}: a payload is over the channel's limit (server limit "
            f"{limits.payload_bytes_max} bytes)",
            3010: f"publish {number}: headers are over the limit, {limits.headers_bytes_max} bytes",
            3011: f"publish {number}: a record is not well formed",
            3025: f"publish {number}: it has message ids, and the channel is ephemeral",
            3034: f"publish {number}: a message id has no byte, or more than {ID_BYTES_MAX}",
            4001: f"publish {number}: a commit failed and whether it is stored is not known yet",
            3019: f"publish {number}: its numbers begin below and end above the line's next, {expected}",
        }
        return error(code, details[code])

    # -- requests and replies ------------------------------------------------------------------------------------------

    def _take_requests(self, body: bytes) -> None:
        """Publish requests to a channel; what comes of them is told by their replies."""
        asked = control.decode_named(body)
        asking = self._begin_asking()
        try:
            slot = asking.slot_of(asked.name)
            if slot is None:
                self.node.gate.check(self.identity, Verb.PUBLISH, asked.name)
                name = check_channel(asked.name)
                self.need([name])
                self.node.core.load(name)
                slot = asking.bind(name)
            asking.ask(asked, slot, body)
        except BrokerError as failure:
            asking.refuse(failure, asked.number, asked.count)

    def _take_replies(self, body: bytes) -> None:
        """Hand replies to the connection that has asked. Who knows its name may: nobody else is told it."""
        replied = control.decode_named(body)
        asking = self._begin_asking()
        try:
            asking.reply(replied, body)
        except BrokerError as failure:
            self.outbox.frame(control.encode_error(failure, replied=replied.number, count=replied.count))

    def _begin_asking(self) -> Asking:
        if self._asking is None:
            self._asking = Asking(self, self.node)
        return self._asking

    # -- acks in transactions ------------------------------------------------------------------------------------------

    def acks_refusal(self, acks: list[bytes]) -> BrokerError | None:
        """Say why the ACKs of a transaction do not hold; None when they do. Nothing changes."""
        if not acks:
            return None
        if self._consuming is None:
            return error("LEASE_UNKNOWN", "ACK in a transaction: the connection is no member of a consumer")
        return next((failure for failure in map(self._consuming.refusal, acks) if failure is not None), None)

    def settle_acks(self, acks: list[bytes]) -> None:
        """Take the ACKs of a transaction, of which `acks_refusal` had nothing to say."""
        for body in acks:
            assert self._consuming is not None
            self._consuming.settle_together(body)

    # -- subscriptions -------------------------------------------------------------------------------------------------

    def _subscribe(self, body: bytes) -> None:
        request = control.decode_subscribe(body)
        wait_ms = self.node.rates.subscribing_ms(self.rate_key)
        if wait_ms:
            failure = too_fast("subscribing", self.identity, wait_ms)
            self.outbox.frame(control.encode_error(failure, subscription=request.subscription))
        elif request.consumer is not None:
            self.consumes().subscribe(request)
        elif isinstance(request.start, control.FromTime):
            self._locate(request, request.start.time_us)
        else:
            self._open_subscription(request)

    def _locate(self, request: control.Subscribe, time_us: int) -> None:
        """Find where a SUBSCRIBE by time begins; until then it counts as a subscription of the connection."""
        try:
            self.check_room(request)
            check_filters(self, request)
        except BrokerError as failure:
            self.outbox.frame(control.encode_error(failure, subscription=request.subscription))
            return
        if self._locating is None:
            self._locating = set()
        self._locating.add(request.subscription)
        self.node.locate_time(time_us, lambda group: self._located(request, group))

    def _located(self, request: control.Subscribe, group: int | BrokerError) -> None:
        """The group at which a SUBSCRIBE by time begins has been found."""
        if isinstance(group, BrokerError):
            self._open_located(request, group)
        else:
            core = self.node.core
            before = min(max(group - 1, 0), core.applied_number)
            self._open_located(replace(request, start=control.FromBus(core.journal, before, INDEX_END)), None)

    def _open_located(self, request: control.Subscribe, failure: BrokerError | None) -> None:
        """Open it if its literals are in memory. Frames behind its SUBSCRIBE have gone on: they wait for none of it."""
        if self.closed:
            return
        assert self._locating is not None
        if failure is None:
            try:
                literals = [name for name in map(check_pattern, request.filters) if not is_pattern(name)]
                if self.node.loader.missing(literals):
                    self.node.loader.need(literals, lambda reason: self._open_located(request, reason), self)
                    return
            except BrokerError as refusal:
                failure = refusal
        self._locating.remove(request.subscription)
        if failure is not None:
            self.outbox.frame(control.encode_error(failure, subscription=request.subscription))
        else:
            self._open_subscription(request)
        self.node.kick()

    def _open_subscription(self, request: control.Subscribe) -> None:
        try:
            following, outcomes, place = self._admit(request)
        except BrokerError as failure:
            self.outbox.frame(control.encode_error(failure, subscription=request.subscription))
            return
        self.outbox.frame(
            control.encode_subscribed(
                control.Subscribed(
                    request.subscription, tuple(outcomes), control.FromBus(self.node.core.journal, *place)
                )
            )
        )
        self.node.follow(following)

    def _admit(self, request: control.Subscribe) -> tuple[Following, list[control.Outcome], tuple[int, int]]:
        """Check a SUBSCRIBE and prepare what it follows."""
        limits = self.node.limits
        self.check_room(request)
        check_filters(self, request)
        if self.subscriptions is None:
            self.subscriptions = {}
        literals, patterns = take_filters(self, request.filters)
        subscription = Subscription(
            self.outbox,
            request.subscription,
            min(request.credit, 1 << 40),
            limits.subscription_bytes_max,
            bool(patterns) or len(literals) > 1,
        )
        following = Following(subscription, literals, patterns)
        if request.group is None:
            outcomes = place(self, following, request.start)
        else:
            outcomes = place_member(self, following, request)
        self.subscriptions[request.subscription] = subscription
        self._filters_count += len(literals) + len(patterns)
        return following, outcomes, following.place or (self.node.core.applied_number, INDEX_END)

    def consumes(self) -> Consuming:
        """Its part in consumers, from now on."""
        if self._consuming is None:
            self._consuming = Consuming(self)
            self.members = self._consuming.members
        return self._consuming

    @property
    def rate_key(self) -> str:
        """Who is counted together: all connections of a user, or of an address whose users have not signed in."""
        return self.identity.user or f"\0{self.address}"  # which is no user's name

    @property
    def address(self) -> str:
        """Where the connection comes from, without what tells it from others from there."""
        return address_of(self.identity.peer)

    def check_room(self, request: control.Subscribe) -> None:
        """Hold the bounds on what one connection subscribes to, before anything is made for it."""
        limits = self.node.limits
        there, locating = self.subscriptions or {}, self._locating or ()
        members = self._consuming.members if self._consuming is not None else {}
        filters = len(request.filters)
        if request.subscription in there or request.subscription in locating or request.subscription in members:
            raise error("SUBSCRIPTION_IN_USE", f"subscription {request.subscription} is there already")
        count = len(there) + len(locating) + len(members) + 1
        if count > limits.subscriptions_per_connection_max:
            raise error(
                "TOO_MANY_SUBSCRIPTIONS",
                f"subscriptions: got {count}, limit {limits.subscriptions_per_connection_max}",
            )
        if filters > limits.filters_per_subscription_max:
            raise error(
                "TOO_MANY_SUBSCRIPTIONS",
                f"filters of this subscription: got {filters}, limit {limits.filters_per_subscription_max}",
            )
        if self._filters_count + filters > limits.filters_per_connection_max:
            raise error(
                "TOO_MANY_SUBSCRIPTIONS",
                f"filters of this connection: got {self._filters_count + filters}, "
                f"limit {limits.filters_per_connection_max}",
            )

    def _unsubscribe(self, body: bytes) -> None:
        number = control.decode_unsubscribe(body)
        if self.subscriptions and number in self.subscriptions:
            self._drop_subscription(number)
            # Behind what is queued, so that nothing of the subscription follows it.
            self.outbox.ordered_frame(control.encode_unsubscribed(number))
        elif self._consuming is None or not self._consuming.unsubscribe(number):
            failure = error("UNKNOWN_SUBSCRIPTION", f"subscription {number}: there is none on this connection")
            self.outbox.frame(control.encode_error(failure, subscription=number))

    def _drop_subscription(self, number: int) -> None:
        """Deliver nothing more to a subscription."""
        assert self.subscriptions is not None
        subscription = self.subscriptions.pop(number)
        if subscription.state is not None:
            self._filters_count -= len(subscription.state.literals) + len(subscription.state.patterns)
            self.node.catchup.leave(subscription.state)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def changed(self, number: int, failure: BrokerError | None, reply: Callable[[], dict[str, object]]) -> None:
        """Answer a request that changed something, or did not."""
        if self.closed:
            return
        if failure is not None:
            self.outbox.frame(control.encode_error(failure, request=number))
        else:
            self.outbox.frame(control.encode_reply(number, reply()))

    def encode_part(self, number: int, part: HistoryPart | BusPart | NamesPart | DelayedPart) -> bytes:
        return requests.encode_part(number, part)

    def encode_refusal(self, number: int, failure: BrokerError) -> bytes:
        return control.encode_error(failure, request=number)

    def hold_for_asking(self) -> None:
        """Read nothing more until what was asked is answered."""
        self._read_no_more(HELD_BY_ASKING)

    def read_on_asking(self) -> None:
        self._read_on(HELD_BY_ASKING)

    def _ping(self, body: bytes) -> None:
        self.outbox.frame(control.encode_pong(control.decode_token(body)))

    def _pong(self, body: bytes) -> None:
        control.decode_token(body)

    def _late_publish(self, body: bytes) -> None:
        """A PUBLISH of a connection that has named no channel."""
        if len(body) < 16:
            raise error("MALFORMED_FRAME", f"PUBLISH: got {len(body)} bytes, at least 16 needed")
        slot, count, number = struct.unpack_from("<IIQ", body)
        failure = error("INVALID_CHANNEL", f"publish {number}: channel number {slot} has no channel")
        self.refuse(failure, number, count)

    def _late_ack(self, body: bytes) -> None:
        """An ACK of a connection that is no member of a consumer."""
        consuming.decode_ack(body)

    def _late_credit(self, body: bytes) -> None:
        """A CREDIT of a connection that has no subscription (any more), or one that is not well formed."""
        control.decode_credit(body)


_LIMIT = error("LIMIT", "").code
_EXHAUSTED = error("LIMIT", "memory: none is left for what this connection sends or is sent", "reconnect and resume")
_EXHAUSTED_FRAME = control.encode_error(_EXHAUSTED)
_BUSY = error("BUSY", "").code
_DUPLICATE, _IDS_ABSENT = CODES["DUPLICATE"], CODES["IDS_ABSENT"]
_FRAME_TOO_LARGE = error("FRAME_TOO_LARGE", "").code
_PUBLISHES: dict[int, Callable[[Session, bytes], None]] = {
    PublishFlag.EXPECT: publish_expecting,
    PublishFlag.AT: schedule,
    PublishFlag.ASK: Session._take_requests,
    PublishFlag.REPLY: Session._take_replies,
}
"""PUBLISH frames by their flags, as far as `Intake` leaves them to Python."""
_HANDLERS: dict[int, Callable[[Session, bytes], None]] = {
    Kind.HELLO: Session._hello,
    Kind.PING: Session._ping,
    Kind.PONG: Session._pong,
    Kind.CHANNEL: Session._channel,
    Kind.SUBSCRIBE: Session._subscribe,
    Kind.UNSUBSCRIBE: Session._unsubscribe,
    Kind.REQUEST: answer,
    Kind.PUBLISH: Session._late_publish,
    Kind.CREDIT: Session._late_credit,
    Kind.ACK: Session._late_ack,
    Kind.TRANSACTION: transact,
}
