"""A disk that takes its time: syncs of 50 ms and of 5 s, and what the server's loop and its clients notice.

One server for each speed. A client publishes at each level as fast as it is answered while others read, live and from
the start. What is demanded:

- the server's loop is never held up: how late its timers come, measured inside it, does not depend on the disk;
- ephemeral messages and reads go on as before; a synced message is acknowledged when it is synced;
- `accepted` keeps its promise: what a crash in the midst of a sync takes was acknowledged within 50 ms, and while the
  oldest record that is not on the disk is older than that, none is acknowledged ahead of the disk;
- when the disk is quick again, everything flows again.

`python -m tests.fault.slow` prints the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from broker import BackoffPolicy, connect
from broker.model.errors import BrokerError
from tests.fault.inject import Control, Forge, Served, build
from tests.fault.nth import CONFIG, READY_S_MAX, STOP_S_MAX, memory_folder, url_of

if TYPE_CHECKING:
    from broker.bus import Bus

WARM_S = 0.3
PACE_S = 0.001
STOOD_US = 20_000
PROMISE_S = 0.05


@dataclass(slots=True)
class Seen:
    """What the clients saw.

    Attributes:
        accepted: (number, when it was acknowledged).
        synced_s: how long each synced message took.
        ephemeral_s: how long each ephemeral round trip took.
        replays: how often the whole of a channel was read again.
    """

    accepted: list[tuple[int, float]] = field(default_factory=list)
    synced_s: list[float] = field(default_factory=list)
    ephemeral_s: list[float] = field(default_factory=list)
    replays: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one speed of the disk came to; seconds, where nothing else is said.

    Attributes:
        sync_s: how long a sync took.
        lag_us: p50, p99 and the largest of how late the loop's timers came, microseconds.
        stood_s: how long the loop stood still in all, counting stretches of STOOD_US and more.
        ephemeral_p99_s: of the round trips.
        synced_p50_s: of the synced messages that were acknowledged meanwhile; one that was not took all the time.
        replays: how often a channel was read from its start meanwhile.
        ahead_s: the longest stretch of acknowledgements of accepted records within one sync, from the first on.
        lost_s: of the accepted records that the kill took, how far apart first and last were acknowledged.
        resumed_s: after the disk became quick again, how long until accepted records flowed.
        lost: synced records that were acknowledged and are gone.
    """

    sync_s: float
    lag_us: tuple[int, int, int]
    stood_s: float
    ephemeral_p99_s: float
    synced_p50_s: float
    replays: int
    ahead_s: float
    lost_s: float
    resumed_s: float
    lost: int

    def __str__(self) -> str:
        return (
            f"sync {self.sync_s * 1e3:6.0f} ms: loop lag p50/p99/max {'/'.join(map(str, self.lag_us))} us, "
            f"it stood for {self.stood_s:.2f} s; ephemeral p99 {self.ephemeral_p99_s * 1e3:.1f} ms, "
            f"synced p50 {self.synced_p50_s * 1e3:.0f} ms, "
            f"{self.replays} replays; accepted: {self.ahead_s * 1e3:.0f} ms ahead of the disk, a kill took "
            f"{self.lost_s * 1e3:.0f} ms of it, flows again {self.resumed_s * 1e3:.0f} ms after the disk; "
            f"{self.lost} synced lost"
        )


async def publish_accepted(bus: Bus, seen: Seen) -> None:
    number = 0
    while True:
        await bus.publish("slow.accepted.one", number.to_bytes(8, "big"))
        seen.accepted.append((number, time.monotonic()))
        number += 1
        await asyncio.sleep(PACE_S)


async def publish_synced(bus: Bus, seen: Seen) -> None:
    while True:
        begun_s = time.monotonic()
        await bus.publish("slow.synced.one", len(seen.synced_s).to_bytes(8, "big"))
        seen.synced_s.append(time.monotonic() - begun_s)


async def talk(bus: Bus, seen: Seen) -> None:
    async with bus.subscribe("ephemeral.slow") as subscription:
        messages = aiter(subscription)
        while True:
            begun_s = time.monotonic()
            bus.post("ephemeral.slow", b"...")
            await anext(messages)
            seen.ephemeral_s.append(time.monotonic() - begun_s)
            await asyncio.sleep(PACE_S)


async def replay(bus: Bus, seen: Seen) -> None:
    """Read what is stored from the start, again and again."""
    while True:
        info = await bus.channel("slow.synced.before")
        async with bus.subscribe("slow.synced.before", start="start") as subscription:
            async for batch in subscription.batches():
                if batch.last >= info.head:
                    break
        seen.replays += 1
        await asyncio.sleep(0.01)


async def run(folder: Path, library: Path, sync_s: float, plant: str = "") -> Figures:
    """Run one server on a disk whose syncs take so long, and kill another one in the midst of such a sync.

    Args:
        folder: an empty folder for all of it.
        library: the injector.
        sync_s: how long a sync takes.
        plant: a mistake for the server to make.
    """
    root = folder / "root"
    root.mkdir()
    config = folder / "broker.toml"
    config.write_text(CONFIG)
    control = Control(folder / "control")
    lag = folder / "lag"
    with Forge(library, control, root) as forge:
        served = forge.serve(root / "data", "--config", str(config), lag=lag, plant=plant)
        await forge.until_ready(served, READY_S_MAX)
        try:
            seen, synced_p50_s, ahead_s, resumed_s = await load(served, control, sync_s)
        finally:
            control.delay(0)
            os.kill(served.pid, signal.SIGTERM)
            await asyncio.to_thread(forge.wait, served, STOP_S_MAX)
        lost_s, lost = await kill_within_a_sync(forge, control, root / "killed", config, sync_s)
    control.close()
    late_us = sorted(json.loads(await asyncio.to_thread(lag.read_text)))
    return Figures(
        sync_s=sync_s,
        lag_us=(late_us[len(late_us) // 2], late_us[len(late_us) * 99 // 100], late_us[-1]),
        stood_s=sum(each for each in late_us if each >= STOOD_US) / 1e6,
        ephemeral_p99_s=sorted(seen.ephemeral_s)[len(seen.ephemeral_s) * 99 // 100],
        synced_p50_s=synced_p50_s,
        replays=seen.replays,
        ahead_s=ahead_s,
        lost_s=lost_s,
        resumed_s=resumed_s,
        lost=lost,
    )


async def load(served: Served, control: Control, sync_s: float) -> tuple[Seen, float, float, float]:
    """Work on a slow disk until it is quick again; returns what was seen, and the figures of the same names."""
    url = url_of(served)
    async with connect(url) as bus, connect(url) as talker, connect(url) as reader:
        await bus.publish_many("slow.synced.before", [bytes(500)] * 400)
        control.delay(sync_s)
        seen = Seen()
        workers = [publish_accepted(bus, seen), publish_synced(bus, seen), talk(talker, seen), replay(reader, seen)]
        tasks = [asyncio.create_task(worker) for worker in workers]
        begun_s = time.monotonic()
        await asyncio.sleep(max(2.0, 1.2 * sync_s))
        count, at_s = len(seen.accepted), [at for _, at in seen.accepted]
        synced_s = sorted([*seen.synced_s, 0.0 if seen.synced_s else time.monotonic() - begun_s])
        control.delay(0)
        quick_s = time.monotonic()
        while len(seen.accepted) < count + 20:
            await asyncio.sleep(0.001)
            for task in tasks:
                if task.done():
                    task.result()
        resumed_s = time.monotonic() - quick_s
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen, synced_s[len(synced_s) // 2], longest_run(at_s, begun_s), resumed_s


def longest_run(at_s: list[float], begun_s: float) -> float:
    """Return the longest time without a pause of more than 30 ms among the acknowledgements, from the beginning on."""
    longest, run_began, last = 0.0, begun_s, begun_s
    for at in at_s:
        if at - last > 0.03:
            run_began = at
        longest = max(longest, at - run_began)
        last = at
    return longest


async def kill_within_a_sync(
    forge: Forge, control: Control, data: Path, config: Path, sync_s: float
) -> tuple[float, int]:
    """Kill a server while a sync is under way; returns (stretch of lost accepted records, lost synced ones)."""
    served = forge.serve(data, "--config", str(config))
    await forge.until_ready(served, READY_S_MAX)
    seen = Seen()
    async with connect(url_of(served), backoff=BackoffPolicy(longest_s=0.1)) as bus:
        tasks = [asyncio.create_task(work(bus, seen)) for work in (publish_accepted, publish_synced)]
        await asyncio.sleep(WARM_S)
        control.delay(sync_s)
        await asyncio.sleep(min(0.5, max(0.03, sync_s * 1.7)))
        os.kill(served.pid, signal.SIGKILL)
        await asyncio.to_thread(forge.wait, served, STOP_S_MAX)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(BrokerError):
            await bus.close(0)
    control.delay(0)
    served = forge.serve(data, "--config", str(config))
    await forge.until_ready(served, READY_S_MAX)
    async with connect(url_of(served)) as bus:
        accepted = await read_numbers(bus, "slow.accepted.one")
        synced = await read_numbers(bus, "slow.synced.one")
    os.kill(served.pid, signal.SIGTERM)
    await asyncio.to_thread(forge.wait, served, STOP_S_MAX)
    gone_s = [at for number, at in seen.accepted if number not in accepted]
    return (gone_s[-1] - gone_s[0] if gone_s else 0.0), len(set(range(len(seen.synced_s))) - synced)


async def read_numbers(bus: Bus, channel: str) -> set[int]:
    """Return what a channel holds."""
    info = await bus.channel(channel)
    found: set[int] = set()
    if info.head >= info.first:
        async with bus.subscribe(channel, start="start") as subscription:
            async for batch in subscription.batches():
                found.update(int.from_bytes(payload, "big") for payload in batch.payloads())
                if batch.last >= info.head:
                    break
    return found


def main() -> None:
    """Run as the module's docstring says."""
    with tempfile.TemporaryDirectory() as built:
        library = build(Path(built))
        for sync_s in (0.0, 0.05, 5.0):
            folder = Path(tempfile.mkdtemp(prefix="broker-slow-", dir=memory_folder()))
            try:
                print(asyncio.run(run(folder, library, sync_s)), flush=True)
            finally:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
