"""The acts of the demo: publish, kill, restart, resume, judge. The users do not know the plot."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker import BackoffPolicy, connect
from broker.cli.demo.crowd import CALM_MESSAGES_PER_S, SLICE, Board, Publisher, Subscriber, filters_of
from broker.cli.demo.judge import Tally
from broker.model.errors import Unavailable, error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus import Bus
    from broker.cli.demo.corpus import Source
    from broker.cli.demo.screen import Screen
    from broker.cli.demo.server import Server
    from broker_native.histogram import Histogram

PUBLISHERS = 4
KILL_JITTER_S = 0.01
TICK_S = 0.1
POLL_S = 0.001
BACKOFF = BackoffPolicy(first_s=0.02, longest_s=0.1)
"""The clients know that their broker comes back soon, and try more often than they would in a network."""
QUIET_S_MAX = 30.0
"""How long nothing may move before the demo gives up and judges what there is."""


@dataclass(frozen=True, slots=True)
class Outage:
    """What the kill cost.

    Attributes:
        ready_s: from the kill until the broker took connections again.
        resumed_s: from the kill until the last publisher and the last subscriber had gone on.
        under_way: messages that were not acknowledged when the broker was killed.
    """

    ready_s: float
    resumed_s: float
    under_way: int


@dataclass(frozen=True, slots=True)
class Account:
    """What the verdict is made of.

    Attributes:
        tallies: each subscriber's, by name.
        published: messages.
        per_s: messages and deliveries in a second, while it went as fast as it could and without the outage.
        outage: what the kill cost.
        fsyncs: of both runs of the broker; of the killed one as it last said.
        latency_us: from the client's post to the subscriber's hands, of what was published in calm.
    """

    tallies: Mapping[str, Tally]
    published: int
    per_s: tuple[float, float]
    outage: Outage
    fsyncs: int
    latency_us: Histogram

    @property
    def total(self) -> Tally:
        """The subscribers' tallies, added up."""
        return sum(self.tallies.values(), Tally())


class Play:
    """One performance.

    Args:
        server: started. Channels of the corpus that it has already are gone on with.
        sources: the corpus.
        lines: how many lines there are for each channel.
        messages: how many are published in all.
        screen: where it is told.
    """

    def __init__(
        self, server: Server, sources: Sequence[Source], lines: Mapping[str, int], messages: int, screen: Screen
    ) -> None:
        self._server = server
        self._sources = sources
        self._filters = filters_of(lines)
        self._screen = screen
        self._board = Board.of(messages)
        self._subscribers: list[Subscriber] = []
        self._fsyncs: dict[int, int] = {}

    async def run(self) -> Account:
        """Perform, and return the account.

        Raises:
            BrokerError: a publisher or a subscriber was refused, or the broker did not start again.
        """
        async with AsyncExitStack() as stack:
            probe = await self._connect(stack)
            publishers = [await self._publisher(stack, n) for n in range(PUBLISHERS)]
            for name, filters in self._filters.items():
                subscriber = Subscriber(name, filters, await self._connect(stack), self._board)
                self._subscribers.append(await stack.enter_async_context(subscriber))
            self._tell_the_cast(publishers)
            with self._screen.progress(self._board.messages):
                outage = await self._perform(publishers, probe)
            fast_s = time.monotonic() - self._board.calm_until_s - outage.resumed_s
            await self._sample(probe)
        return Account(
            tallies={each.name: each.reader.judge(self._board.ledger) for each in self._subscribers},
            published=self._board.ledger.messages,
            per_s=(-self._board.calm_left / fast_s, self._board.delivered_fast / fast_s),
            outage=outage,
            fsyncs=sum(self._fsyncs.values()),
            latency_us=self._board.latency_us,
        )

    async def _connect(self, stack: AsyncExitStack) -> Bus:
        return await stack.enter_async_context(connect(self._server.url, backoff=BACKOFF))

    async def _publisher(self, stack: AsyncExitStack, n: int) -> Publisher:
        slice_s = SLICE * PUBLISHERS / CALM_MESSAGES_PER_S
        bus = await self._connect(stack)
        return Publisher(f"publisher {n}", bus, self._sources[n::PUBLISHERS], self._board, slice_s)

    def _tell_the_cast(self, publishers: Sequence[Publisher]) -> None:
        self._screen.step(
            "Subscribe", f"{len(self._subscribers)} subscribers, each with a connection and an account of its own:"
        )
        for subscriber in self._subscribers:
            self._screen.say(subscriber.name)
        self._screen.step(
            "Publish",
            f"{len(publishers)} publishers send {self._board.messages:,} lines, the first quarter at "
            f"{CALM_MESSAGES_PER_S:,} a second, the rest as fast as they can. The broker numbers each line within its "
            "channel and has it on the disk (fsync) before anybody sees it.",
        )

    async def _perform(self, publishers: Sequence[Publisher], probe: Bus) -> Outage:
        """Run everybody at once; the first failure ends all of them."""
        reading = [asyncio.create_task(subscriber.run()) for subscriber in self._subscribers]
        publishing = [asyncio.create_task(publisher.run()) for publisher in publishers]
        ticking = asyncio.create_task(self._tick(probe))
        plot = asyncio.create_task(self._plot(publishing))
        everybody = [plot, ticking, *publishing, *reading]
        try:
            await finished(plot, [ticking, *publishing, *reading])
        finally:
            for task in everybody:
                task.cancel()
            await asyncio.gather(*everybody, return_exceptions=True)
        return plot.result()

    async def _plot(self, publishing: Sequence[asyncio.Task[None]]) -> Outage:
        outage = await self._kill_and_restart()
        await asyncio.gather(*publishing)
        await self._until_all_is_delivered()
        return outage

    async def _kill_and_restart(self) -> Outage:
        """Kill the broker once half of the corpus is acknowledged, start it again, and see everybody go on."""
        board = self._board
        await board.half_acknowledged.wait()
        # At no moment of our own choosing: it may fall into a commit, between two, or beside an answer.
        await asyncio.sleep(random.uniform(0, KILL_JITTER_S))
        killed_s = time.monotonic()
        await self._server.kill()
        under_way = board.ledger.messages - board.acknowledged
        self._screen.step(
            "Kill",
            f"SIGKILL to process {self._server.pid} with {board.acknowledged:,} messages acknowledged and "
            f"{under_way:,} on their way. It had no chance to say or to write anything more.",
        )
        await self._server.start()
        ready_s = time.monotonic() - killed_s
        self._screen.step(
            "Restart",
            f"same data, same port, run {self._server.run}: it found the end of its journal and was ready "
            f"{ready_s * 1e3:.0f} ms after the kill.",
        )
        board.waited_for = board.publishing | {each.name for each in self._subscribers if not each.is_complete()}
        await self._until_all_went_on(killed_s)
        resumed_s = time.monotonic() - killed_s
        self._screen.step(
            "Resume",
            "every client connected again by itself; publishers repeated what had no answer, subscribers went on "
            f"after their last message. All of them were at work {resumed_s * 1e3:.0f} ms after the kill.",
        )
        return Outage(ready_s, resumed_s, under_way)

    async def _until_all_went_on(self, killed_s: float) -> None:
        board = self._board
        while board.waited_for and (board.publishing or not self._all_is_delivered()):
            if time.monotonic() - killed_s > QUIET_S_MAX:
                names = ", ".join(sorted(board.waited_for))
                raise error("TIMEOUT", f"resume: {names}: got no sign within {QUIET_S_MAX:g} s")
            await asyncio.sleep(POLL_S)

    async def _until_all_is_delivered(self) -> None:
        """Wait for the subscribers' last messages, as long as anything moves."""
        received, moved_s = -1, time.monotonic()
        while not self._all_is_delivered():
            if self._received() != received:
                received, moved_s = self._received(), time.monotonic()
            elif time.monotonic() - moved_s > QUIET_S_MAX:
                return
            await asyncio.sleep(POLL_S)

    def _all_is_delivered(self) -> bool:
        return all(subscriber.is_complete() for subscriber in self._subscribers)

    def _received(self) -> int:
        return sum(subscriber.reader.received for subscriber in self._subscribers)

    async def _tick(self, probe: Bus) -> None:
        """Show the progress, and ask the broker now and then: a killed one can no longer be asked."""
        while True:
            self._screen.advance(self._board.acknowledged, self._received())
            await asyncio.sleep(TICK_S)
            # During the outage there is nobody to ask; the sample before it stands.
            with suppress(Unavailable):
                await self._sample(probe)

    async def _sample(self, probe: Bus) -> None:
        stats = await probe.stats()
        self._fsyncs[self._server.run] = stats["fsyncs"]


async def finished(main: asyncio.Task[Outage], others: Sequence[asyncio.Task[None]]) -> None:
    """Wait for `main`, or raise what ended one of the others before."""
    pending: set[asyncio.Task[Outage] | asyncio.Task[None]] = {main, *others}
    while not main.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
