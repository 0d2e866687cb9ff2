"""A server whose wall clock jumps by five days, running and over restarts: nothing is removed that is young.

The server is a process of its own, and the clock that it asks is shifted underneath it. Everything that it stores is
archived at once and has an age of an hour, so that retention, which runs each second, could take it at any time.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import connect
from tests.fault.harness import CONFIG, Server

if TYPE_CHECKING:
    from broker import Bus

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the clock is shifted by LD_PRELOAD")

DAY_S = 24 * 3600
FIVE_DAYS_S = 5 * DAY_S
EXPIRY_S = 600
FILLER_BYTES = 60_000
FILLERS = 20
"""More than a segment, so that what came before it is sealed."""
PING_S = 0.3
"""Housekeeping is done three times in this."""
ROUNDS_S = 0.5
"""Retention looks several times in this time."""
PATIENCE_S = 20.0
OLD = """
[[profiles]]
pattern = "old.>"
retention_s = 3600
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What shifts the clock, built by the compiler that builds the extensions."""
    path = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", path, source, "-ldl"], check=True)
    return path


class Shifted:
    """A server with a wall clock of its own."""

    def __init__(self, folder: Path, library: Path, plant: str = "") -> None:
        self._control = folder / "shift"
        self._sent: list[bytes] = []
        self.jump(0)
        environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._control), "FAULT_PLANT": plant}
        config = CONFIG.replace("[[profiles]]", f"ping_interval_s = {PING_S}\n{OLD}[[profiles]]", 1)
        self.server = Server(folder, program="tests.fault.early", config=config, environment=environment)

    def jump(self, seconds: int) -> None:
        """Let the wall clock be ahead by so many seconds."""
        with self._control.open("r+b" if self._control.exists() else "wb", buffering=0) as file:
            file.write(struct.pack("<q", seconds))

    async def publish(self, bus: Bus) -> None:
        """Publish a few messages that must stay, and what it takes to have them archived."""
        begun = len(self._sent)
        self._sent += [b"%d" % number for number in range(begun, begun + 5)]
        for payload in self._sent[begun:]:
            await bus.publish("old.kept", payload)
            await bus.publish("old.expiring", payload, expiry_s=EXPIRY_S)
        group = (await bus.stats())["groups"]
        for _ in range(FILLERS):
            bus.post("old.filler", bytes(FILLER_BYTES))
        await bus.flush()
        # A segment that is full is left with the next group.
        await bus.publish("old.filler", b"")
        async with asyncio.timeout(PATIENCE_S):
            while (await bus.stats())["archived_group"] < group:  # noqa: ASYNC110  (another process sets no event)
                await asyncio.sleep(0.02)

    async def check(self, bus: Bus, channel: str) -> None:
        """Everything is there, in an order in which time does not go back."""
        found = await bus.history(channel).messages()
        assert [message.payload for message in found] == self._sent
        times = [message.time for message in found]
        assert times == sorted(times)

    async def lives(self, *shifts: int, channels: tuple[str, ...] = ("old.kept", "old.expiring")) -> None:
        """Jump, publish and read, while it runs."""
        async with connect(self.server.url) as bus:
            for shift in shifts:
                self.jump(shift)
                await self.publish(bus)
                await asyncio.sleep(ROUNDS_S)
                for channel in channels:
                    await self.check(bus, channel)


async def test_jumps_of_a_running_server_and_over_restarts(tmp_path: Path, library: Path) -> None:
    """Over restarts, what expires by a time of its own is not judged: a start has no other time than the wall's."""
    shifted = Shifted(tmp_path, library)
    try:
        await shifted.server.start()
        await shifted.lives(0, FIVE_DAYS_S, -FIVE_DAYS_S, 0)
        assert "clock_jump" in shifted.server.said()
        assert await shifted.server.stop() == 0
        for shift in (FIVE_DAYS_S, -FIVE_DAYS_S):
            shifted.jump(shift)
            await shifted.server.start()
            await shifted.lives(shift, channels=("old.kept",))
            shifted.server.kill()
        shifted.jump(0)
        await shifted.server.start()
        await shifted.lives(0, FIVE_DAYS_S, -FIVE_DAYS_S, 0, channels=("old.kept",))
    finally:
        shifted.server.kill()


async def test_a_server_that_believes_the_wall_clock_is_found_out(tmp_path: Path, library: Path) -> None:
    shifted = Shifted(tmp_path, library, plant="wall")
    await shifted.server.start()
    try:
        with pytest.raises(AssertionError):
            await shifted.lives(0, FIVE_DAYS_S)
    finally:
        shifted.server.kill()
