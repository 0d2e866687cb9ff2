"""The shared server and random workers are killed under load: nothing is lost or doubled, and nothing stays behind.

Eight processes publish to one shared directory and read it. In each round the server is killed, now and then again
while the next one starts, and some of the workers with it; others take their places. Who is left goes on by itself.

BROKER_SHARED_KILLS chooses the rounds (200), BROKER_SEED which instants and which load.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from broker import Broker
from broker.shared.settings import read_server
from tests.checker import history as events
from tests.checker.check import check
from tests.checker.history import Acked, Delivered, Event, History, Invoked, Run
from tests.checker.verdict import Kind
from tests.fault.harness import head_of, read_log
from tests.shared.conftest import environment, stub
from tests.shared.processes import kill, serving, wait_until_nobody_serves
from tests.shared.workers import CHANNELS, FILTERS, IDLE_S
from tests.sizes import size

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = size("BROKER_SHARED_KILLS", 3, 200)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))
WORKERS = 8
ROUND_S_MAX = 0.4
AGAIN_SHARE = 0.3
"""Of the kills, so many are followed by another one while the next server starts, or soon after."""
AGAIN_S_MAX = 0.1
VALUES_OF_A_LIFE = 1 << 24
FIRST_ANSWER_S_MAX = 10.0
"""Generous: what is asked for is a second on a quiet machine, and printed."""
PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]


class Workers:
    """Eight workers, whichever lives they are in.

    Args:
        data: the shared directory.
        folder: for their notes.
        servers: the command that stands for `python -m broker`, or empty for that.
        seed: of what they do.
    """

    def __init__(self, data: Path, folder: Path, servers: list[str], seed: int) -> None:
        self.folder = folder
        self.alive: dict[str, psutil.Process] = {}
        self._servers = servers
        self._seed = seed
        self._lives = 0
        command = [sys.executable, "-m", "tests.shared.workers", str(data), str(folder)]
        self._parent = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: dict[str, Any]) -> dict[str, int]:
        """Have the workers' parent do something."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        answer: dict[str, int] = json.loads(self._parent.stdout.readline())
        return answer

    def begin(self) -> None:
        """Begin a worker's life."""
        name = f"worker{self._lives}"
        request = {"worker": name, "values": self._lives * VALUES_OF_A_LIFE, "seed": self._seed + self._lives}
        self.alive[name] = psutil.Process(self.ask({**request, "stub": self._servers})["pid"])
        self._lives += 1

    def kill(self, name: str) -> None:
        """End one with SIGKILL."""
        process = self.alive.pop(name)
        process.kill()
        assert self.ask({"wait": process.pid}) == {"status": -9}

    def stop(self) -> None:
        """Have all publish nothing more, and wait until everything is answered."""
        for process in self.alive.values():
            process.send_signal(signal.SIGUSR1)
        self._wait(lambda: all((self.folder / f"{name}.stopped").exists() for name in self.alive), "publishing")

    def end(self, heads: dict[str, tuple[int, int]]) -> None:
        """Have all catch up, and see them end well."""
        (self.folder / "heads.new").write_text(json.dumps(heads))
        (self.folder / "heads.new").rename(self.folder / "heads")
        for process in self.alive.values():
            process.terminate()
        for name, process in self.alive.items():
            assert self.ask({"wait": process.pid}) == {"status": 0}, name

    def _wait(self, is_over: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_over():
            assert time.monotonic() < deadline, f"still {what}: {self.alive}"
            assert not [each for each in self.alive.values() if each.status() == psutil.STATUS_ZOMBIE], self.alive
            time.sleep(0.01)

    def close(self) -> None:
        """Kill whoever is left."""
        for process in self.alive.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(10)
        assert self._parent.stdout is not None
        self._parent.stdout.close()


def noted(folder: Path) -> Iterator[Event]:
    """Yield what all lives wrote down; the last line of one that was killed may be half."""
    for path in folder.glob("worker*"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                kind, *fields = json.loads(line)
                yield getattr(events, kind)(*fields)


def kill_server(data: Path) -> float | None:
    """Kill whatever server there is; returns when, or None if there was none."""
    servers = [each for each in serving(data) if "broker.log.archiver" not in command_of(each)]
    for server in servers:
        kill(server)
    return time.monotonic() if servers else None


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def first_answer_s(history: History, killed_s: float) -> float:
    """Return after how long a record was acknowledged that was published after a kill."""
    invoked = {(event.producer, event.number): event.at_s for event in history.events if isinstance(event, Invoked)}
    answers = (
        event.at_s - killed_s
        for event in history.events
        if isinstance(event, Acked) and invoked.get((event.producer, event.number), 0) > killed_s
    )
    return min(answers, default=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.timeout(90 + 4 * ROUNDS)
async def test_nothing_is_lost_doubled_or_left_behind(
    data: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    print(f"BROKER_SHARED_KILLS={ROUNDS} BROKER_SEED={SEED}")
    chance = random.Random(SEED)
    # The whole proof starts servers by the product's own command.
    servers = [] if ROUNDS > 10 else stub(request.getfixturevalue("nursery"))
    workers = Workers(data, tmp_path, servers, SEED)
    killed: list[float] = []
    lives_taken = 0
    try:
        for _ in range(WORKERS):
            workers.begin()
        run = await_server(data, 0)
        for _ in range(ROUNDS):
            await asyncio.sleep(chance.uniform(0, ROUND_S_MAX))
            for name in chance.sample(sorted(workers.alive), chance.choice((0, 1, 1, 2))):
                workers.kill(name)
                workers.begin()
                lives_taken += 1
            killed += filter(None, [kill_server(data)])
            if chance.random() < AGAIN_SHARE:
                await asyncio.sleep(chance.uniform(0, AGAIN_S_MAX))
                run = read_server(data).get("run", run)
                killed += filter(None, [kill_server(data)])
            run = await_server(data, run)
        await asyncio.sleep(ROUND_S_MAX)
        workers.stop()
        history = History(events=sorted(noted(tmp_path), key=lambda event: event.at_s))
        async with Broker.open(data, shared=True, idle_s=IDLE_S) as bus:
            heads = {name: await head_of(bus, name) for name in CHANNELS}
            history.log = await read_log(bus, heads)
        workers.end(heads)
        history.events = sorted(noted(tmp_path), key=lambda event: event.at_s)
    finally:
        workers.close()
    # Nobody is left but the server, and that leaves by itself; what it leaves is in nobody's way.
    await asyncio.to_thread(wait_until_nobody_serves, data)
    async with Broker.open(data) as embedded:
        assert {name: await head_of(embedded, name) for name in CHANNELS} == heads
    verdict = check(history)
    again = sorted(first_answer_s(history, at_s) for at_s in killed)
    with capsys.disabled():
        print(
            f"\n{len(killed)} kills of the server and {lives_taken} of workers, seed {SEED}: {verdict}; "
            f"first answer to a publish after a kill: median {again[len(again) // 2]:.3f} s, at most {again[-1]:.3f} s"
        )
    assert verdict.passed, f"seed {SEED}: {verdict}"
    assert len(killed) >= ROUNDS
    assert verdict.acknowledged > 20 * ROUNDS, "the load is too light to prove anything"
    assert again[-1] < FIRST_ANSWER_S_MAX
    assert not [event for event in history.events if isinstance(event, events.Refused | events.Unknown)]
    judge_sees(history)


def await_server(data: Path, run: int) -> int:
    """Wait until a server of a later run takes connections, and return its run: whoever needs it starts it."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := read_server(data).get("run", 0)) <= run:
        assert time.monotonic() < deadline, "nobody starts a server"
        time.sleep(0.005)
    return int(found)


def judge_sees(history: History) -> None:
    """Plant what this test is to find into the history that it has found good, and see it found."""
    name, runs = next((name, runs) for name, runs in history.log.items() if len(runs[-1].values) > 1)
    last = runs[-1]
    short = {**history.log, name: [*runs[:-1], Run(last.epoch, last.first, last.values[:-1])]}
    assert Kind.LOST in {anomaly.kind for anomaly in check(replace(history, log=short)).anomalies}
    index = next(index for index, event in enumerate(history.events) if isinstance(event, Delivered))
    twice = [*history.events[: index + 1], *history.events[index:]]
    assert Kind.DUPLICATE in {anomaly.kind for anomaly in check(replace(history, events=twice)).anomalies}


def test_every_filter_has_a_reader() -> None:
    assert {(SEED + life) % len(FILTERS) for life in range(WORKERS)} == set(range(len(FILTERS)))
