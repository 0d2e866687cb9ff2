"""Programs of conditional publishes, transactions and restarts against a model: a dict of lists, and nothing else.

What a program is answered, step by step, and what is stored in the end must be what the model says. Many programs run
on the embedded home, a few on each of the others.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import Broker, BrokerError, Conflict, Position
from tests.contract.homes import PROFILES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from broker import Bus
    from tests.contract.homes import Home

CHANNELS = ("s.one", "s.two", "a.one", "e.one")
OFFSETS = st.sampled_from([None, None, 0, 0, 0, -1, 1])
"""What a publish expects: nothing, the head, or a place that is off by one."""
ONE = st.tuples(st.sampled_from(CHANNELS), OFFSETS)
PROGRAMS = st.lists(
    st.tuples(st.just("publish"), ONE)
    | st.tuples(st.just("transact"), st.lists(ONE, min_size=1, max_size=5))
    | st.tuples(st.just("abandon"), st.lists(ONE, min_size=1, max_size=3))
    | st.just(("restart", None)),
    max_size=12,
)


class Model:
    """What is stored, and where the newest of it is.

    Args:
        room: What the channels of one program have in their names.
    """

    def __init__(self, room: str) -> None:
        self.names = {channel: channel[:2] + room + channel[2:] for channel in CHANNELS}
        self.stored: dict[str, list[bytes]] = {name: [] for name in self.names.values()}
        self.heads: dict[str, Position] = dict.fromkeys(self.names.values(), Position(0, 0))
        self.count = 0

    def payload(self) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def expected(self, channel: str, offset: int | None) -> Position | None:
        """The position that a publish expects."""
        if offset is None:
            return None
        epoch, sequence = self.heads[channel]
        return Position(epoch, max(sequence + offset, 0))

    def refusal(self, publishes: list[tuple[str, bytes, Position | None]], *, together: bool) -> str | None:
        """Why publishes are refused, if they are."""
        if any(channel.startswith("e.") and (together or expect is not None) for channel, _, expect in publishes):
            return "NOT_STORED"
        wrong = any(expect not in (None, self.heads[channel]) for channel, _, expect in publishes)
        return "CONFLICT" if wrong else None

    def take(self, channel: str, payload: bytes, position: Position) -> None:
        """A publish was stored there."""
        if not channel.startswith("e."):
            assert position.sequence == self.heads[channel].sequence + 1
            self.stored[channel].append(payload)
            self.heads[channel] = position


async def transact(bus: Bus, publishes: list[tuple[str, bytes, Position | None]], *, leave: bool = True) -> list[Any]:
    tx = bus.transaction()
    async with tx:
        for channel, payload, expect in publishes:
            tx.publish(channel, payload, expect=expect)
        if not leave:
            raise RuntimeError("abandoned")
    return tx.receipts


async def do(bus: Bus, model: Model, step: str, what: Any) -> None:
    """Take one step, and compare its outcome."""
    ones = [what] if step == "publish" else what
    named = [(model.names[channel], offset) for channel, offset in ones]
    publishes = [(channel, model.payload(), model.expected(channel, offset)) for channel, offset in named]
    if step == "abandon":
        with pytest.raises(RuntimeError, match="abandoned"):
            await transact(bus, publishes, leave=False)
        return
    refusal = model.refusal(publishes, together=step == "transact")
    try:
        if step == "publish":
            ((channel, payload, expect),) = publishes
            receipts = [await bus.publish(channel, payload, expect=expect)]
        else:
            receipts = await transact(bus, publishes)
    except BrokerError as failure:
        told = failure.name, getattr(failure, "head", None), getattr(failure, "index", 0)
        assert told[0] == refusal
        if isinstance(failure, Conflict):
            channel, _, expect = publishes[told[2]]
            assert told[1] == model.heads[channel] != expect
        return
    assert refusal is None
    for (channel, payload, _), receipt in zip(publishes, receipts, strict=True):
        model.take(channel, payload, receipt.position)


async def run(
    opened: Callable[[], AbstractAsyncContextManager[Bus]], program: list[tuple[str, Any]], room: str = ""
) -> None:
    """Run a program; its restarts end the bus and open it again."""
    model = Model(room)
    parts: list[list[tuple[str, Any]]] = [[]]
    for step, what in program:
        if step == "restart":
            parts.append([])
        else:
            parts[-1].append((step, what))
    for part in parts:
        async with opened() as bus:
            for step, what in part:
                await do(bus, model, step, what)
            for channel, payloads in model.stored.items():
                if payloads:
                    assert [message.payload for message in await bus.history(channel).messages()] == payloads


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROGRAMS)
def test_the_embedded_home_does_what_the_model_does(program: list[tuple[str, Any]]) -> None:
    with TemporaryDirectory(prefix="broker-") as folder:

        @asynccontextmanager
        async def opened() -> AsyncIterator[Bus]:
            async with Broker.open(folder, profiles=PROFILES, segment_bytes=1 << 20, reserve_bytes=0) as bus:
                yield bus

        asyncio.run(run(opened, program))


@pytest.mark.parametrize("seed", range(3))
async def test_every_home_does_what_the_model_does(home: Home, room: str, seed: int) -> None:
    chance = random.Random(seed)

    def one() -> tuple[str, int | None]:
        return chance.choice(CHANNELS), chance.choice([None, None, 0, 0, 0, 0, -1, 1])

    def step() -> tuple[str, Any]:
        match chance.choice(["publish", "publish", "transact", "transact", "abandon", "restart"]):
            case "publish":
                return "publish", one()
            case "restart":
                return "restart", None
            case kind:
                return kind, [one() for _ in range(chance.randint(1, 5))]

    await run(home.bus, [step() for _ in range(40)], f"{room}.")
