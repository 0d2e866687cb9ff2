"""SIGKILL of broker and pipelines while they work: every input has its outputs exactly once, in the order of its key.

BROKER_PIPELINE_KILLS chooses how often (20), BROKER_SEED which instants.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError, connect
from tests.fault.harness import ROOT, Server
from tests.fault.piping import BACKOFF, QUEUE, SOURCE, TARGETS
from tests.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

    from broker import Bus

KILLS = size("BROKER_PIPELINE_KILLS", 20, 200)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))
KINDS = ("asyncio", "blocking", "asyncio")
KEYS = 60
AT_ONCE = 60
PAUSE_S = 0.02
SERVE_S = (0.05, 0.5)
DONE_S_MAX = 120


class Pipelines:
    """Processes that run pipelines on one queue; each is replaced when it is killed."""

    def __init__(self, url: str, log: Path) -> None:
        self._url = url
        self._log = log
        self._seed = SEED
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, kind: str) -> None:
        """Start one."""
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")]), "PATH": os.environ["PATH"]}
        command = [sys.executable, "-m", "tests.fault.piping", self._url, kind, str(self._seed)]
        self._seed += 1
        with self._log.open("ab") as log:
            self._running.append((kind, subprocess.Popen(command, stdout=log, stderr=log, env=environment)))

    def kill_one(self, chance: random.Random) -> None:
        """Kill one of them, and start another in its place."""
        kind, process = self._running.pop(chance.randrange(len(self._running)))
        assert process.poll() is None, f"a pipeline ended by itself: {self._log.read_text()[-3000:]}"
        process.kill()
        process.wait()
        self.start(kind)

    def kill(self) -> None:
        """Kill all of them."""
        for _, process in self._running:
            process.kill()
            process.wait()


class Publisher:
    """Publishes numbers, each key's ascending, until it is told to stop."""

    def __init__(self) -> None:
        self.over = False
        self.numbers = 0

    async def run(self, bus: Bus) -> None:
        """Publish one batch after the other, each to a key of its own."""
        while not self.over:
            numbers = range(self.numbers, self.numbers + AT_ONCE)
            self.numbers += AT_ONCE
            await asyncio.gather(*(bus.publish(SOURCE, b"%d" % number, key=key_of(number)) for number in numbers))
            await asyncio.sleep(PAUSE_S)


def key_of(number: int) -> bytes:
    return b"k%d" % (number % KEYS)


async def until_done(bus: Bus, jobs: int) -> None:
    """Wait until the queue has nothing left."""
    end_s = time.monotonic() + DONE_S_MAX
    while True:
        info = await bus.consumer_info(QUEUE)
        left = (info.ready, info.leased, info.delayed, info.lag)
        if left == (0, 0, 0, 0):
            return
        assert time.monotonic() < end_s, f"{left} of {jobs} jobs are left"
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(240 + KILLS * 4)
async def test_each_input_has_its_outputs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print(f"BROKER_PIPELINE_KILLS={KILLS} BROKER_SEED={SEED}")
    chance, server, publisher = random.Random(SEED), Server(tmp_path), Publisher()
    pipelines = Pipelines(server.url, tmp_path / "pipelines.log")
    killed: Counter[str] = Counter()
    try:
        await server.start()
        async with connect(server.url, backoff=BACKOFF) as bus:
            await bus.create_queue(QUEUE, SOURCE, by_key=True, lease_s=2, backoff_s=(0.01, 0.05))
            for kind in KINDS:
                pipelines.start(kind)
            publishing = asyncio.create_task(publisher.run(bus))
            for _ in range(KILLS):
                await asyncio.sleep(chance.uniform(*SERVE_S))
                what = chance.choice(["broker", "pipeline", "both"])
                killed[what] += 1
                if what != "broker":
                    pipelines.kill_one(chance)
                if what != "pipeline":
                    server.kill()
                    await server.start()
            publisher.over = True
            await publishing
            await until_done(bus, publisher.numbers)
            info = await bus.consumer_info(QUEUE)
            outputs = {target: await bus.history(target).messages() for target in TARGETS}
            inputs = [message.payload for message in await bus.history(SOURCE).messages()]
        pipelines.kill()
        assert await server.stop() == 0, server.said()
    except BrokerError as failure:
        raise AssertionError(server.said()) from failure
    finally:
        pipelines.kill()
        server.kill()
    assert sorted(map(int, inputs)) == list(range(publisher.numbers))
    for target, made in outputs.items():
        doubled = Counter(message.payload for message in made) - Counter(inputs)
        lost = Counter(inputs) - Counter(message.payload for message in made)
        assert not doubled, f"{target}: {doubled.most_common(5)} are doubled, seed {SEED}"
        assert not lost, f"{target}: {lost.most_common(5)} are lost, seed {SEED}"
        newest: dict[bytes | None, int] = {}
        for message in made:
            number = int(message.payload)
            assert newest.get(message.key, -1) < number, f"{target}: {number} is out of its key's order, seed {SEED}"
            newest[message.key] = number
    with capsys.disabled():
        print(
            f"\n{KILLS} kills, {dict(killed)}, seed {SEED}: {publisher.numbers} inputs, "
            f"{sum(map(len, outputs.values()))} outputs, {info.redelivered} jobs given out again"
        )
    assert info.redelivered
    assert publisher.numbers > 100 * KILLS, "the load is too light to prove anything"
