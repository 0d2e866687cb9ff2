"""Transactions and conditional publishes while the server is killed, and while commits fail.

A transaction is stored whole or not at all, once, and the answer that its client had is what is stored. The heads that
racing writers were told are linearizable, whatever became of the commits that they rested on.

BROKER_TRANSACTION_KILLS chooses how often (60), BROKER_SEED which instants.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from broker import BackoffPolicy, Broker, BrokerError, Conflict, Level, Position, connect
from broker.log.errors import AppendError
from broker.log.segment import Segment
from broker.model.errors import BY_NAME
from broker.model.profiles import Profile
from tests.checker.linear import EMPTY, Asked, Conflicted, Head, Operation, Unknown, Won, linearize
from tests.fault.harness import Server
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

    from broker import Bus

KILLS = size("BROKER_TRANSACTION_KILLS", 15, 60)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))
SERVE_S = (0.02, 0.25)
FAILURES = 12
CHANNELS = ("t.synced.1", "t.accepted.1", "t.synced.2", "t.accepted.2", "t.synced.3")
"""Each transaction publishes to all of them."""
RACED = ("r.synced.1", "r.synced.2")
RACE_MAX = 400
"""Operations on one channel: the search for an order takes longer than the run when there are many more."""
BACKOFF = BackoffPolicy(first_s=0.01, longest_s=0.04)


class Work:
    """Tasks that commit transactions and race for heads, and what they were answered."""

    def __init__(self) -> None:
        self.over = False
        self.committed: list[bytes] = []
        self.refused: list[bytes] = []
        self.unknown: list[bytes] = []
        self.races: dict[str, list[Operation]] = {channel: [] for channel in RACED}

    async def commit(self, bus: Bus, who: int) -> None:
        """Commit one transaction after the other, each with a number of its own."""
        number = 0
        while not self.over:
            number += 1
            name = b"%d %d" % (who, number)
            try:
                async with bus.transaction() as tx:
                    for channel in CHANNELS:
                        tx.publish(channel, name)
            except BrokerError as failure:
                (self.unknown if failure.name == "COMMIT_UNKNOWN" else self.refused).append(name)
                await asyncio.sleep(0.001)
            else:
                self.committed.append(name)
                assert len(tx.receipts) == len(CHANNELS)

    async def race(self, bus: Bus, channel: str, seed: int) -> None:
        """Publish to a channel under the head that was told last, or ask for the head."""
        chance, head, history = random.Random(seed), EMPTY, self.races[channel]
        while not self.over and len(history) < RACE_MAX:
            called = time.monotonic()
            what: Won | Conflicted | Asked | Unknown | None
            if chance.random() < 0.1:
                with suppress(BrokerError):
                    info = await bus.channel(channel)
                    head = Head(info.epoch if info.head else 0, info.head)
                    history.append(Operation(called, time.monotonic(), Asked(head)))
                continue
            what = await self.try_for(bus, channel, head)
            if what is not None:
                history.append(Operation(called, inf if isinstance(what, Unknown) else time.monotonic(), what))
            if isinstance(what, Won):
                head = what.at
            elif isinstance(what, Conflicted):
                head = what.told
            await asyncio.sleep(chance.choice([0, 0.002]))

    async def try_for(self, bus: Bus, channel: str, head: Head) -> Won | Conflicted | Unknown | None:
        """Publish once; None when it was refused and nothing has happened."""
        try:
            receipt = await bus.publish(channel, b"x", expect=Position(*head))
        except Conflict as lost:
            return Conflicted(head, Head(*(lost.head or EMPTY)))
        except BrokerError as failure:
            return None if failure.temporary else Unknown(head)
        # A repetition whose position nobody knows any more was stored, at the place behind what it expected.
        return Won(head, Head(receipt.epoch, receipt.sequence)) if receipt.epoch else Unknown(head)

    async def judge(self, bus: Bus) -> str:
        """Compare what is stored with what was answered; returns what there was of it."""
        stored = [[message.payload for message in await bus.history(channel).messages()] for channel in CHANNELS]
        assert all(order == stored[0] for order in stored), "a transaction is in some of its channels only"
        names = set(stored[0])
        assert len(names) == len(stored[0]), "a transaction is stored twice"
        assert names >= set(self.committed), "a committed transaction is lost"
        assert not names & set(self.refused), "a refused transaction is stored"
        assert names <= {*self.committed, *self.unknown}
        for channel, history in self.races.items():
            info = await bus.channel(channel)
            now = time.monotonic()
            history.append(Operation(now, now, Asked(Head(info.epoch if info.head else 0, info.head))))
            assert linearize(history) is not None, f"{channel}: {history}"
        wins = sum(isinstance(one.what, Won) for history in self.races.values() for one in history)
        lost = sum(isinstance(one.what, Conflicted) for history in self.races.values() for one in history)
        return (
            f"{len(self.committed)} committed, {len(self.refused)} refused, {len(self.unknown)} unknown; "
            f"{wins} heads won, {lost} lost"
        )


@pytest.mark.slow
@pytest.mark.timeout(60 + KILLS * 3)
async def test_killed_at_random_instants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print(f"BROKER_TRANSACTION_KILLS={KILLS} BROKER_SEED={SEED}")
    chance, server, work = random.Random(SEED), Server(tmp_path), Work()
    try:
        await server.start()
        buses = [await connect(server.url, backoff=BACKOFF) for _ in range(4)]
        tasks = [asyncio.create_task(work.commit(bus, at)) for at, bus in enumerate(buses * 3)]
        tasks += [asyncio.create_task(work.race(bus, channel, at)) for at, bus in enumerate(buses) for channel in RACED]
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(*SERVE_S))
            server.kill()
            await server.start()
        work.over = True
        await asyncio.gather(*tasks)
        said = await work.judge(buses[0])
        for bus in buses:
            await bus.close()
        assert await server.stop() == 0, server.said()
    finally:
        server.kill()
    with capsys.disabled():
        print(f"\n{KILLS} kills, seed {SEED}: {said}")
    assert len(work.committed) > 5 * KILLS, "the load is too light to prove anything"
    assert not work.refused
    assert not work.unknown, "what is repeated under its numbers has an outcome"


async def test_commits_that_fail(tmp_path: Path) -> None:
    """Every so many a commit fails, before or after it was handed to the disk."""
    chance, work, append = random.Random(SEED), Work(), Segment.append
    failed = 0

    def fail_some(segment: Segment, number: int, value: bytes) -> None:
        nonlocal failed
        # A broker whose first group fails does not start.
        if number == 1 or failed >= FAILURES or work.over or chance.random() > 0.1:
            append(segment, number, value)
            return
        failed += 1
        failure = AppendError(BY_NAME["STORAGE_FAILED"].code, f"group {number}: as planned, seed {SEED}")
        failure.handed_over = chance.random() < 0.5
        if failure.handed_over and chance.random() < 0.5:
            append(segment, number, value)
        raise failure

    profiles = [Profile(b"*.accepted.>", durability=Level.ACCEPTED), Profile(b">")]
    with patch.object(Segment, "append", fail_some), patch("broker.node.node.STORAGE_FAILURES_PER_MIN_MAX", 1 << 30):
        async with Broker.open(tmp_path / "data", profiles=profiles, reserve_bytes=0, segment_bytes=1 << 20) as bus:
            tasks = [asyncio.create_task(work.commit(bus, at)) for at in range(6)]
            tasks += [asyncio.create_task(work.race(bus, RACED[at % 2], at)) for at in range(6)]
            begun_s = time.monotonic()
            # The commit thread counts them, and has no loop to tell.
            while failed < FAILURES and time.monotonic() - begun_s < 60:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            work.over = True
            await asyncio.gather(*tasks)
            print(f"{failed} failures, seed {SEED}: {await work.judge(bus)}")
    assert failed == FAILURES
    assert len(work.committed) > FAILURES
    assert work.refused
