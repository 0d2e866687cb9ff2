"""What else users ask of a broker: one message however often it is published, one for later, an answer from a group.

Some lives have such users beside the publishers and readers. What they were told is kept here and not in the history,
since a value may be published more than once; at the end it is compared with what the log holds:

- a message with an id is in the log once if anybody was told so, where everybody was told, and never twice;
- a message for later is there once and not before its time, never when its cancellation was confirmed;
- a reply belongs to its request, and no request was handled twice; once nothing befalls the world, one is answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from broker.model.errors import BrokerError
from tests.simulation.crowd import User, until
from tests.simulation.policy import ASKED, LATER, WITH_IDS

if TYPE_CHECKING:
    from broker.client.client import Client
    from tests.simulation.crowd import Recorder
    from tests.simulation.network import Network
    from tests.simulation.policy import Policy

ERRANDS = 12
REQUEST_S = 0.3
GROUP = "members"


class Book:
    """What the errands were told.

    Attributes:
        stored: Of each id, the positions that its publishers were answered.
        due: Of each message for later that was confirmed, when it is due, microseconds of broker time.
        cancelled, doubtful: Of those, which were cancelled, and which perhaps.
        handled: How often each request came to a member.
        found: What the log has of each channel at the end: (payload, epoch, sequence, time).
    """

    def __init__(self) -> None:
        self.stored: dict[bytes, set[tuple[int, int]]] = {}
        self.due: dict[bytes, int] = {}
        self.cancelled: set[bytes] = set()
        self.doubtful: set[bytes] = set()
        self.handled: Counter[bytes] = Counter()
        self.found: dict[str, list[tuple[bytes, int, int, int]]] = {}

    async def read(self, bus: Client) -> None:
        """Wait until nothing waits for its time any more, and read the log."""
        listed = True
        while listed:
            await asyncio.sleep(0.05)
            listed = bool([message async for message in bus.delayed("n.", limit=1)])
        for channel in (WITH_IDS, LATER):
            messages = await bus.history(channel).messages()
            self.found[channel] = [
                (message.payload, message.position.epoch, message.sequence, message.time) for message in messages
            ]

    def judge(self) -> list[str]:
        """Say what is wrong."""
        return [*self._judge_ids(), *self._judge_later(), *self._judge_asked()]

    def _judge_ids(self) -> list[str]:
        places: dict[bytes, list[tuple[int, int]]] = {}
        for payload, epoch, sequence, _ in self.found[WITH_IDS]:
            places.setdefault(payload, []).append((epoch, sequence))
        wrong = [f"id {id!r} is stored at {found}" for id, found in places.items() if len(found) > 1]
        return wrong + [
            f"id {id!r} was said to be at {told}, and is at {places.get(id)}"
            for id, told in self.stored.items()
            # A late repetition of a number is answered without the place.
            if told - {(0, 0)} != set(places.get(id, [])) and not (told == {(0, 0)} and id in places)
        ]

    def _judge_later(self) -> list[str]:
        times: dict[bytes, list[int]] = {}
        for payload, _, _, time_us in self.found[LATER]:
            times.setdefault(payload, []).append(time_us)
        wrong = [f"{id!r} was cancelled, and published" for id in self.cancelled & times.keys()]
        wrong += [f"{id!r} was published {len(found)} times" for id, found in times.items() if len(found) > 1]
        for id, due_us in self.due.items():
            if id not in times and id not in self.cancelled | self.doubtful:
                wrong.append(f"{id!r} was confirmed, and never published")
            elif id in times and times[id][0] < due_us:
                wrong.append(f"{id!r} was due at {due_us}, and published at {times[id][0]}")
        return wrong

    def _judge_asked(self) -> list[str]:
        return [
            f"request {payload!r} was handled {times} times" for payload, times in self.handled.items() if times > 1
        ]


class Errand(User):
    """One process with errands.

    Args:
        book: Where what it is told is kept.
    """

    def __init__(self, recorder: Recorder, network: Network, policy: Policy, name: str, book: Book) -> None:
        self.book = book
        super().__init__(recorder, network, policy, name)

    async def pause(self) -> None:
        """Let some of the time go by that there is for errands."""
        if not self.finishing:
            await asyncio.sleep(2 * self.random.random() * self.policy.active_us / ERRANDS / 1e6)


class Repeater(Errand):
    """Publishes messages under ids, some of them again under new numbers; others publish the same."""

    async def run(self) -> None:
        bus = await self.connect()
        waiting = []
        for number in range(ERRANDS):
            for _ in range(self.random.choice([1, 1, 2, 3])):
                waiting.append(asyncio.ensure_future(self._publish(bus, b"message %d" % number)))
                if self.random.random() < 0.3:
                    await waiting[-1]
            await self.pause()
        await asyncio.gather(*waiting)
        await bus.close()
        self.finished = True

    async def _publish(self, bus: Client, id: bytes) -> None:
        self.kernel.note("with id", self.name, id)
        try:
            receipt = await bus.publish(WITH_IDS, id, id=id)
        except BrokerError as failure:
            self.kernel.note("answer", id, failure)
            return
        self.kernel.note("answer", id, receipt.epoch, receipt.sequence, receipt.duplicate)
        self.book.stored.setdefault(id, set()).add((receipt.epoch, receipt.sequence))


class Scheduler(Errand):
    """Has messages published later, and cancels some of them."""

    async def run(self) -> None:
        bus = await self.connect()
        waiting = []
        for number in range(ERRANDS):
            waiting.append(asyncio.ensure_future(self._schedule(bus, b"%s %d" % (self.name.encode(), number))))
            await self.pause()
        await asyncio.gather(*waiting)
        await bus.close()
        self.finished = True

    async def _schedule(self, bus: Client, id: bytes) -> None:
        delay_s = self.random.choice([0, 0.005, 0.5, 2.5]) * self.random.random()
        self.kernel.note("later", id, delay_s)
        try:
            scheduled = await bus.schedule(LATER, id, delay_s=delay_s, id=id)
        except BrokerError as failure:
            self.kernel.note("answer", id, failure)
            return
        self.kernel.note("answer", id, scheduled.due_us, scheduled.duplicate)
        self.book.due[id] = scheduled.due_us
        if self.random.random() < 0.4:
            await asyncio.sleep(delay_s * self.random.random())
            await self._cancel(bus, id)

    async def _cancel(self, bus: Client, id: bytes) -> None:
        self.book.doubtful.add(id)
        try:
            await bus.cancel(LATER, id)
        except BrokerError as failure:
            self.kernel.note("uncancelled", id, failure)
            return
        self.kernel.note("cancelled", id)
        self.book.cancelled.add(id)


class Member(Errand):
    """Answers what a live group is asked, and leaves it now and then."""

    finished = True

    async def run(self) -> None:
        bus = await self.connect()
        while True:
            async with bus.subscribe(ASKED, group=GROUP, credit_bytes=self.policy.credit_bytes) as subscription:
                async for message in subscription:
                    self.kernel.note("asked", self.name, message.payload)
                    self.book.handled[message.payload] += 1
                    if self.random.random() < 0.9 or self.finishing:
                        bus.respond(message, message.payload + b"!")
                    if self.random.random() < 0.1:
                        break


class Asker(Errand):
    """Asks the group; at the end until it is answered."""

    async def run(self) -> None:
        bus = await self.connect()
        asked = 0
        while asked < ERRANDS and not self.finishing:
            asked += 1
            await self._ask(bus, b"request %d" % asked)
            await self.pause()
        await until(lambda: self.finishing, 0.02)
        asked += 1
        while not await self._ask(bus, b"request %d" % asked):
            asked += 1
            await asyncio.sleep(0.02)
        await bus.close()
        self.finished = True

    async def _ask(self, bus: Client, payload: bytes) -> bool:
        """Ask once; answers whether there was a reply."""
        self.kernel.note("ask", payload)
        try:
            reply = await bus.request(ASKED, payload, timeout_s=REQUEST_S)
        except BrokerError as failure:
            self.kernel.note("unanswered", payload, failure)
            return False
        self.kernel.note("reply", payload)
        if reply.payload != payload + b"!":
            self.kernel.fail(f"request {payload!r} was answered {reply.payload!r}")
        return True
