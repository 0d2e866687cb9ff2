"""When an opener of a shared directory tries again; the rest of the bus is proved with servers in `tests.shared`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker.client.client import Client
from broker.model.errors import Unavailable, error
from broker.shared.bus import SharedBus
from broker.shared.place import Place
from broker.shared.settings import Asked

if TYPE_CHECKING:
    from pathlib import Path


class Refusing:
    """Stands for a server that is ending.

    Args:
        refusals: how often it refuses.
        retry_after_ms: when it says to come back.
    """

    def __init__(self, refusals: int, retry_after_ms: int) -> None:
        self.asked_s: list[float] = []
        self._refusals = refusals
        self._retry_after_ms = retry_after_ms

    async def start(self, bus: Client) -> Client:
        """Be what `Client.start` is to a bus."""
        self.asked_s.append(bus.loop.time())
        if len(self.asked_s) <= self._refusals:
            raise error("GOING_AWAY", "draining", retry_after_ms=self._retry_after_ms)
        return bus


async def open_bus(path: Path, server: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(bus: Client) -> Client:
        return await server.start(bus)

    monkeypatch.setattr(Client, "start", start)
    await SharedBus(Place(path), Asked.of((), None, {}), 1.0, connect_timeout_s=5.0).start()


async def test_who_is_told_when_to_come_back_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Refusing(1, 100)
    await open_bus(tmp_path, server, monkeypatch)
    first, second = server.asked_s
    assert second - first >= 0.05, "half of it, at least"


async def test_who_would_have_to_wait_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Refusing(1, 20_000)
    with pytest.raises(Unavailable, match="draining"):
        await open_bus(tmp_path, server, monkeypatch)
    assert len(server.asked_s) == 1
