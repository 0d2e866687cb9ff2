"""A member of a durable consumer: the jobs that came, what is said of them, and how it goes on after a connection.

What the application says of a job gathers and leaves as one ACK a turn. When the connection is lost all leases are
void: what was not handed out yet is dropped, since it comes again; what was said and not answered is said again by
positions (`consumer_done`) before the next SUBSCRIBE, and so is what the application says afterwards of jobs of before.
An exclusive consumer that somebody else took over is not taken back.

How somebody waits is left to the classes that are made of it: by a loop, or by a thread.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.bus import SubscriptionEvent
from broker.model.consumers import JOBS_PAGE_MAX, Consume, DoneRun, Verdict, check_consumer
from broker.model.errors import BrokerError, Remedy, error
from broker.remote.reconnect import hinted_s
from broker.remote.subscription import EVENTS_KEPT, RETRY_SECONDS, Kept
from broker.wire import consuming, control
from broker_native.work import JobCursor, Settling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.remote.conversation import Conversation
    from broker_native.work import Job, Run, Settled, Settlement

WINDOW_MIN: Final = 1
BEATS_A_LEASE: Final = 3
"""Jobs that wait to be taken are extended so often before their lease would end."""


class Keeper(Protocol):
    """The bus of a consumer, as far as the consumer knows it."""

    def add_subscription(self, subscription: Kept) -> None:
        """Keep it on this and every later connection."""

    def remove_subscription(self, subscription: Kept, number: int) -> None:
        """Forget one that has ended."""

    def next_number(self, subscription: Kept) -> int:
        """Return a number that this connection has not used for a subscription."""

    def forget_number(self, number: int) -> None:
        """Pass over what the server still says of this number."""

    def settle_soon(self, consumer: RemoteConsumer) -> None:
        """Have `send` called with what else leaves in this turn."""

    def settled_all(self) -> None:
        """Nothing that a consumer has said is unanswered any more."""

    def tell(self, operation: str, arguments: Mapping[str, object], answer: Told) -> bool:
        """Send a request now; answers whether there is a connection for it."""


class Told:
    """What waits for the answer of a `consumer_done`.

    Args:
        on_answer: Called with the fields of the answer, or with why there is none.
    """

    def __init__(self, on_answer: Callable[[dict[str, Any] | BrokerError], object]) -> None:
        self._on_answer = on_answer
        self._done = False

    def done(self) -> bool:
        """Whether there is an answer already."""
        return self._done

    def set_result(self, fields: dict[str, Any], /) -> None:
        """This is the answer."""
        self._done = True
        self._on_answer(fields)

    def set_exception(self, failure: BrokerError, /) -> None:
        """There is none, and this is why."""
        self._done = True
        self._on_answer(failure)


class RemoteConsumer(Kept, ABC):
    """A member of a consumer, of a bus, which owns it.

    Args:
        keeper: The bus.
        name: The consumer's name.
        window: Jobs that may be under way to this member, from 1.
        window_bytes: And of how many bytes.
        on_event: Called with each event, when and where `_call` says.
        loop: Of those who wait; None when they are threads.

    Raises:
        RequestError: INVALID_CONSUMER; the name is none.
    """

    def __init__(
        self,
        keeper: Keeper,
        name: str,
        window: int,
        window_bytes: int,
        on_event: Callable[[SubscriptionEvent], object] | None,
        loop: Any = None,
    ) -> None:
        check_consumer(name)
        if window < WINDOW_MIN or window_bytes < WINDOW_MIN:
            raise error(
                "LIMIT",
                f"window: got {window} jobs and {window_bytes} bytes, expected at least 1 of each",
                "Give the consumer a window of what it works on at once.",
            )
        self.name = name
        self.events: deque[SubscriptionEvent] = deque(maxlen=EVENTS_KEPT)
        self._keeper = keeper
        self._wanted = Consume(name, window, window_bytes)
        self._on_event = on_event
        self._cursor = JobCursor(loop)
        self._settling = Settling(loop, self._kick, error, window)
        self._settle: Callable[..., Any] = self._settling.say
        self._names: list[str] = []  # of the subscription's channels, by number
        self._connection: Conversation | None = None
        self._number = 0  # of the SUBSCRIBE that the server has; 0 when it has none
        self._started = False
        self._late: list[Settlement] = []  # to be said again by positions
        self._told: list[Settlement] = []  # they were, and this is not answered
        self._left = 0  # requests of which the answer of `_told` consists
        self._beating = False
        self._life = 0  # how often the application had taken a job, or said something, at the last beat
        self._idle_beats = 0
        self._failure: BrokerError | None = None
        self._closed = False
        self._settled = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "waiting" if not self._number else "live"
        return f"<Consumer {self.name} {state}, {self._cursor.queued} jobs queued>"

    # .. how its callers wait ..

    @abstractmethod
    def _wake(self) -> None:
        """It is settled whether the server accepts it: wake who waits for that."""

    @abstractmethod
    def _wake_flushers(self) -> None:
        """Everything that was said is answered: wake who waits for that."""

    @abstractmethod
    def _call(self, function: Callable[..., object], *args: object) -> None:
        """Have the application's function called soon, from outside of everything here."""

    @abstractmethod
    def _later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Have a function of this object called after a time."""

    # .. what the application does ..

    @property
    def unanswered(self) -> bool:
        """Whether anything that was said of jobs is not answered."""
        return bool(self._settling.unanswered or self._late or self._told)

    @property
    def queued(self) -> int:
        """Jobs that have come and were not handed out."""
        return self._cursor.queued

    @property
    def in_flight(self) -> bool:
        """Whether the server owes an answer to what was said."""
        return bool(self._settling.awaited or self._told)

    def through(self, job: Job) -> Settled:
        """Say that a job is done, and everything that this member was given before it."""
        return self._settling.through(job)

    def frame_of(self, jobs: list[Job]) -> tuple[bytes, Settlement]:
        """Return an ACK of some jobs, for whoever sends it with something else, at once; see `Settling.frame_of`."""
        if self._connection is not None:
            self.send(self._connection)
        return self._settling.frame_of(jobs)

    def stop(self) -> None:
        """Hand out nothing any more, and give the rest back, of which nothing was begun. The others can be settled."""
        for batch, index, count in self._cursor.waiting():
            self._settling.say(batch, index, count, Verdict.RELEASE, 0)
        self._cursor.end(self._failure)

    def end(self) -> None:
        """Stop at the application's wish: the server is told, and gives to others what is not settled."""
        if self._closed:
            return
        if self._number and self._connection is not None:
            self.send(self._connection)
            self._connection.send(control.encode_unsubscribe(self._number))
        self.finish(None)

    # .. what the bus does ..

    def begin(self) -> None:
        """Ask the server for it, once."""
        if not self._started:
            self._started = True
            self._keeper.add_subscription(self)

    def attach_ahead(self, connection: Conversation, bytes_max: int) -> int:
        """Nothing is asked ahead: what was done has to be told before."""
        return 0

    def attach(self, connection: Conversation) -> None:
        """There is a connection: tell what was done, and subscribe."""
        self._connection = connection
        self._retell()
        self._subscribe()

    def detach(self) -> None:
        """The connection is gone, and all leases with it."""
        self._connection = None
        self._void()

    def finish(self, failure: BrokerError | None) -> None:
        """End it for good: readers get `failure` or the end, and who waits for an answer is told that none comes."""
        if self._closed:
            return
        self._closed = True
        self._failure = failure
        self._keeper.remove_subscription(self, self._number)
        self.detach()
        self._cursor.end(failure)
        why = failure or "the consumer was closed"
        unknown = error("COMMIT_UNKNOWN", f"consumer {self.name}: what was said of jobs was not answered: {why}")
        for settlement in [*self._take_late(), *self._told]:
            refuse_all(settlement, unknown)
        self._told = []
        self._settle_opened()
        self._answered()

    def send(self, connection: Conversation) -> None:
        """Send what was said since the last time."""
        frames = self._settling.take()
        if frames is not None:
            connection.send(frames)
        self._retell()
        if not self.unanswered:
            self._answered()

    def on_jobs(self, body: bytes) -> None:
        """Take jobs."""
        batch = self._settling.receive(body, self._names, self._settle)
        if self._cursor.ended:
            self._settling.say(batch, 0, len(batch), Verdict.RELEASE, 0)
            return
        self._cursor.push(batch)
        if batch.lease_ms and not self._beating:
            self._beating = True
            self._later(batch.lease_ms / 1000 / BEATS_A_LEASE, lambda: self._beat(batch.lease_ms))

    def on_acked(self, body: bytes) -> None:
        """The server has settled what was said, up to a number."""
        self._settling.on_acked(body)
        if not self.unanswered:
            self._answered()

    def on_ack_refused(self, refusal: control.Refusal) -> None:
        """The server refuses what was said of some jobs."""
        failure = refusal.failure
        places = self._settling.refuse(refusal.ack or 0, refusal.lease or 0, refusal.leases or 0, failure)
        for channel, epoch, first, count in places:
            self._tell(SubscriptionEvent("refused", channel, epoch, first, count, failure.code))

    def on_subscribed(self, answer: control.Subscribed) -> None:
        """The server has accepted it."""
        self._settle_opened()

    def on_refused(self, failure: BrokerError) -> None:
        """The server refuses it, or has ended it."""
        self._keeper.forget_number(self._number)
        self._void()
        if failure.name == "CONSUMER_TAKEN":
            self._tell(SubscriptionEvent("taken", "", 0, 0))
            self.finish(failure)
        elif failure.remedy is Remedy.RESUME:
            self._retell()
            self._subscribe()
        elif failure.remedy is Remedy.RETRY and self._settled:
            # It was accepted before: the server is short of something at the moment.
            after_ms = failure.retry_after_ms
            self._later(RETRY_SECONDS if after_ms is None else hinted_s(after_ms, random.random()), self._subscribe)
        else:
            self.finish(failure)

    def on_event(self, event: control.Event) -> None:
        """The server tells of something that is no job."""
        at = event.more.get("first", event.more.get("at", 0))
        run, reason = event.more.get("count", 0), event.more.get("reason", 0)
        self._tell(SubscriptionEvent(event.event, event.channel, event.more.get("epoch", 0), at, run, reason))

    # .. inside ..

    def _kick(self) -> None:
        self._keeper.settle_soon(self)

    def _tell(self, event: SubscriptionEvent) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._call(self._on_event, event)

    def _settle_opened(self) -> None:
        if not self._settled:
            self._settled = True
            self._wake()

    def _answered(self) -> None:
        self._wake_flushers()
        self._keeper.settled_all()

    def _void(self) -> None:
        """The leases are void: what was said is said again otherwise, and what is queued comes again."""
        self._number = 0
        self._names = []
        self._late += self._settling.begin(0)
        self._cursor.clear()

    def _subscribe(self) -> None:
        if self._closed or self._number or self._connection is None:
            return
        number = self._number = self._keeper.next_number(self)
        self._settling.begin(number)
        self._connection.send(control.encode_subscribe(control.Subscribe(number, (), 0, consumer=self._wanted)))

    def _beat(self, lease_ms: int) -> None:
        """Extend what waits to be taken, as long as the application shows signs of life.

        If it shows none for a lease, the jobs are left to others, and dropped when their leases have ended.
        """
        self._beating = False
        if not self._number or not self._cursor.queued:
            return
        self._idle_beats = self._idle_beats + 1 if self._life == self._cursor.taken + self._settling.said else 0
        if self._idle_beats <= BEATS_A_LEASE:
            for batch, index, count in self._cursor.waiting():
                self._settling.say(batch, index, count, Verdict.EXTEND, 0)
        elif self._idle_beats > 2 * BEATS_A_LEASE:
            self._cursor.clear()
            return
        self._life = self._cursor.taken + self._settling.said
        self._beating = True
        self._later(lease_ms / 1000 / BEATS_A_LEASE, lambda: self._beat(lease_ms))

    # .. what is said again ..

    def _take_late(self) -> list[Settlement]:
        late, self._late = self._late, []
        more = self._settling.take_late()
        return late if more is None else [*late, more]

    def _retell(self) -> None:
        """Say by positions what was said of leases that are void; one such question at a time."""
        if self._told or self._connection is None:
            return
        late = self._take_late()
        if not late:
            return
        done = [DoneRun(*place) for settlement in late for run in settlement.runs for place in self._done_by(run)]
        void = error(
            "LEASE_EXPIRED",
            f"consumer {self.name}: the connection was lost, and what it had under way is given out again",
            "Nothing is to be done: the job comes again.",
        )
        for settlement in late:
            for run in settlement.runs:
                if run.verb in (Verdict.REJECT, Verdict.EXTEND):
                    settlement.refuse(run.batch, run.index, run.count, void)
        if not done:
            for settlement in late:
                settlement.answer()
            return
        self._told = late
        parts = [done[at : at + JOBS_PAGE_MAX] for at in range(0, len(done), JOBS_PAGE_MAX)]
        self._left = len(parts)
        for part in parts:
            self._keeper.tell("consumer_done", consuming.pack_done(self.name, part), Told(self._on_told))

    def _done_by(self, run: Run) -> list[tuple[str, int, int, int]]:
        return run.places() if run.verb in (Verdict.ACK, Verdict.ACK_THROUGH) else []

    def _on_told(self, answer: dict[str, Any] | BrokerError) -> None:
        told = self._told
        if not told:
            return  # it has ended, or another part of the answer was a failure
        if isinstance(answer, BrokerError):
            self._told = []
            if answer.remedy is Remedy.RESUME and not self._closed:
                self._late = [*told, *self._late]
                return
            for settlement in told:
                refuse_all(settlement, answer)
        else:
            given = f"consumer {self.name}: the connection was lost, and the job was given to others"
            lost = error("LEASE_EXPIRED", given)
            for refused in consuming.decode_done(answer, "left"):
                for settlement in told:
                    refuse_places(settlement, refused, lost)
                self._tell(SubscriptionEvent("refused", *refused, lost.code))
            self._left -= 1
            if self._left:
                return
            self._told = []
            for settlement in told:
                settlement.answer()
        self._retell()
        if not self.unanswered:
            self._answered()


def refuse_all(settlement: Settlement, failure: BrokerError) -> None:
    """Answer a settlement with a failure of all of it."""
    for run in settlement.runs:
        settlement.refuse(run.batch, run.index, run.count, failure)
    settlement.answer()


def refuse_places(settlement: Settlement, refused: DoneRun, failure: BrokerError) -> None:
    """Refuse what a settlement says of some messages."""
    for run in settlement.runs:
        for index in range(run.index, run.index + run.count):
            ((channel, epoch, sequence, _),) = run.batch.places(index, 1)
            within = refused.first <= sequence < refused.first + refused.count
            if within and (channel, epoch) == (refused.channel, refused.epoch):
                settlement.refuse(run.batch, index, 1, failure)
