"""The users of the demo: publishers that share the channels among themselves, and subscribers whose filters overlap.

Each has a connection of its own and is an ordinary client. None of them knows that the broker will die; that they go on
afterwards is the client library's work. What they do together is noted on one `Board`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from broker.cli.demo.judge import Ledger, Reader
from broker.model.names import matches
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker.bus import Bus
    from broker.cli.demo.corpus import Source
    from broker.cli.demo.judge import Published

SLICE = 16
"""Lines of one channel that are posted in a row before the next channel has its turn."""
WINDOW_MAX = 2_048
"""Lines that a publisher has under way before it waits for their acknowledgements."""
CALM_SHARE = 0.25
CALM_MESSAGES_PER_S = 40_000
"""The first part is published at this rate, so that latencies are the broker's and not those of our own queues; the
rest as fast as this one process can publish, receive and check it."""
LITERALS = 10
"""Channels of the subscriber that names several."""


@dataclass(slots=True)
class Board:
    """What everybody sees and writes on, in one loop.

    Attributes:
        messages: lines that are to be published.
        left: lines that no publisher has taken yet.
        acknowledged: lines whose acknowledgement has arrived.
        half_acknowledged: set when that is half of them.
        ledger: what was published.
        publishing: names of the publishers that are not done.
        waited_for: names of those of whom no sign has been seen since the broker is back.
        calm_left: lines that are still published in calm.
        calm_until_s: when that ended; infinite before.
        delivered_fast: deliveries of what was published after that.
        latency_us: of what was posted in calm, from the post to the subscriber's hands.
    """

    messages: int
    left: int
    acknowledged: int = 0
    half_acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    ledger: Ledger = field(default_factory=Ledger)
    publishing: set[str] = field(default_factory=set)
    waited_for: set[str] = field(default_factory=set)
    calm_left: int = 0
    calm_until_s: float = inf
    delivered_fast: int = 0
    latency_us: Histogram = field(default_factory=Histogram)

    @classmethod
    def of(cls, messages: int) -> Board:
        """Return the board of a corpus of so many lines."""
        return cls(messages, messages, calm_left=max(1, int(messages * CALM_SHARE)))

    def take(self, lines: Iterator[bytes], count: int) -> list[bytes]:
        """Take the next lines of a channel, as far as the corpus is to be published."""
        payloads = list(islice(lines, min(count, self.left)))
        self.left -= len(payloads)
        self.calm_left -= len(payloads)
        if self.calm_left <= 0 and self.calm_until_s == inf:
            self.calm_until_s = time.monotonic()
        return payloads

    def acknowledge(self, count: int) -> None:
        """Note that so many more lines are acknowledged."""
        self.acknowledged += count
        if self.acknowledged >= self.messages / 2:
            self.half_acknowledged.set()


class Publisher:
    """Publishes its channels, a slice of each in turn, with a bounded number of lines under way.

    Args:
        name: who it is.
        bus: its own.
        sources: its share of the corpus; nobody else publishes to these channels.
        board: everybody's.
        slice_s: how long a slice takes in calm.
    """

    def __init__(self, name: str, bus: Bus, sources: Sequence[Source], board: Board, slice_s: float) -> None:
        self.name = name
        self._bus = bus
        self._sources = sources
        self._board = board
        self._slice_s = slice_s
        self._due_s = 0.0
        self._window = max(1, min(WINDOW_MAX, board.messages // 64))
        self._under_way = 0

    async def run(self) -> None:
        """Publish everything, and return when all of it is acknowledged.

        Raises:
            BrokerError: a line was refused, or what became of it cannot be known.
        """
        self._board.publishing.add(self.name)
        opened = await asyncio.gather(*(self._open(source) for source in self._sources))
        active = [channel for channel in opened if channel is not None]
        self._due_s = time.monotonic()
        while active and self._board.left:
            for channel in list(active):
                await self._keep_calm()
                if not await self._publish_slice(*channel):
                    active.remove(channel)
        await self._drain()
        self._board.publishing.discard(self.name)

    async def _open(self, source: Source) -> tuple[Published, Iterator[bytes]] | None:
        """Publish a channel's first line, and learn from its acknowledgement where the channel stands."""
        lines = source.lines()
        payloads = self._board.take(lines, 1)
        if not payloads:
            return None
        posted_s = time.monotonic()
        position = await self._bus.publish(source.channel, payloads[0])
        published = self._board.ledger.open(source.channel, position.sequence - 1)
        published.post(payloads, posted_s)
        self._board.acknowledge(1)
        return published, lines

    async def _publish_slice(self, published: Published, lines: Iterator[bytes]) -> bool:
        """Publish some lines of one channel; False when there are no more."""
        payloads = self._board.take(lines, SLICE)
        published.post(payloads, time.monotonic())
        for payload in payloads:
            self._bus.post(published.channel, payload)
        self._under_way += len(payloads)
        if self._under_way >= self._window:
            await self._drain()
        return len(payloads) == SLICE

    async def _keep_calm(self) -> None:
        """Wait for the time of the next slice, if there is one; time that a slow answer took is made up for."""
        if self._board.calm_left > 0:
            self._due_s += self._slice_s
            await asyncio.sleep(self._due_s - time.monotonic())

    async def _drain(self) -> None:
        await self._bus.flush()
        self._board.acknowledge(self._under_way)
        self._under_way = 0
        self._board.waited_for.discard(self.name)


class Subscriber:
    """Reads its filters until it is cancelled, and keeps the account of what it got."""

    def __init__(self, name: str, filters: Sequence[str], bus: Bus, board: Board) -> None:
        self.name = name
        self.filters = filters
        patterns = [each.encode() for each in filters]
        self.reader = Reader(lambda channel: any(matches(pattern, channel.encode()) for pattern in patterns))
        self._board = board
        self._subscription = bus.subscribe(*filters)

    async def __aenter__(self) -> Subscriber:
        await self._subscription.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._subscription.close()

    async def run(self) -> None:
        """Take what arrives, for ever.

        Raises:
            BrokerError: the subscription ended and cannot be resumed.
        """
        async for batch in self._subscription.batches():
            self.reader.take(batch.channel, batch.first, batch.payloads())
            self._measure(batch.channel, batch.first, len(batch))
            self._board.waited_for.discard(self.name)

    def is_complete(self) -> bool:
        """Say whether the last message of every channel that it wants has arrived."""
        return self.reader.is_complete(self._board.ledger)

    def _measure(self, channel: str, first: int, count: int) -> None:
        """Count a batch's messages at the latency of its oldest."""
        published = self._board.ledger.channels.get(channel)
        # The very first line of a channel may arrive before its acknowledgement.
        if published is None:
            return
        posted_s = published.posted_s[first - published.before - 1]
        if posted_s < self._board.calm_until_s:
            self._board.latency_us.record_n(int((time.monotonic() - posted_s) * 1e6), count)
        else:
            self._board.delivered_fast += count


def filters_of(lines: Mapping[str, int]) -> dict[str, list[str]]:
    """Choose what the subscribers subscribe.

    Args:
        lines: how many lines each channel gets. All channels begin with the same two tokens.

    Returns:
        The filters by the subscriber's name: the longest channel alone, the next ones by name, a pattern over all of
        them and a wider one.
    """
    longest = sorted(lines, key=lambda channel: lines[channel], reverse=True)
    room = ".".join(longest[0].split(".")[:2])
    chosen = {longest[0]: longest[:1], f"{room}.>": [f"{room}.>"], "demo.>": ["demo.>"]}
    several = longest[1 : 1 + LITERALS]
    if several:
        chosen[f"{len(several)} channels by name"] = several
    return chosen
