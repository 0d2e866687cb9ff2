"""States in a real broker: read back from a real log, and out of users' reach."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from broker import Broker, BrokerError
from broker.core.own import record_of
from broker.log.log import Log
from broker.node.consumer import CHANNEL_PREFIX, HEAD

if TYPE_CHECKING:
    from pathlib import Path

    from broker.node.node import Node

NAME = b"$tally.one"
SETTINGS = b'{"name": "q", "filters": ["s.x"], "backoff_ms": [1, 2]}'


class Tally:
    """A list of words, of which each that comes is stored."""

    channel = NAME

    def __init__(self, node: Node) -> None:
        self.node = node
        self.words: list[bytes] = []
        self._new: list[bytes] = []
        self.undoings = 0

    async def load(self) -> None:
        done: asyncio.Future[BrokerError | None] = asyncio.get_running_loop().create_future()
        self.node.states.load(self, self._restore, done.set_result)
        failure = await done
        if failure is not None:
            raise failure

    def _restore(self, snapshot: bytes, changes: list[bytes]) -> None:
        self.words = [word for part in (snapshot, *changes) for word in part.split()]

    async def add(self, word: bytes) -> None:
        """Add a word, and wait until that is committed."""
        self.words.append(word)
        self._new.append(word)
        done: asyncio.Future[BrokerError | None] = asyncio.get_running_loop().create_future()
        self.node.core.requests.append(done.set_result)
        self.node.states.touch(self)
        failure = await done
        if failure is not None:
            raise failure

    def changes(self) -> bytes:
        new, self._new = self._new, []
        return b" ".join(new)

    def snapshot(self) -> bytes:
        return b" ".join(self.words)

    def undone(self) -> None:
        self.undoings += 1


def opened(folder: Path, **options: Any) -> Any:
    return Broker.open(folder / "data", segment_bytes=256 << 10, reserve_bytes=0, **options)


async def test_a_state_survives_its_broker(tmp_path: Path) -> None:
    words = [f"word{number}".encode() for number in range(50)]
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        assert not tally.words
        for word in words:
            await tally.add(word)
    async with opened(tmp_path) as bus:
        assert await bus._node.states.names(b"$tally.") == [NAME]
        tally = Tally(bus._node)
        await tally.load()
        assert tally.words == words
        await tally.add(b"more")
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        assert tally.words == [*words, b"more"]


async def test_a_state_is_read_back_in_slices_and_from_its_last_snapshot(tmp_path: Path) -> None:
    word = b"w" * 1_000
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        for _ in range(2_500):
            tally.words.append(word)
            tally._new.append(word)
            if len(tally.words) % 50 == 0:
                await tally.add(b"mark")
        words = tally.words
        info = bus._node.tails.info(NAME)
        assert info[3] > 1, "there was a snapshot"
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        assert tally.words == words


async def test_a_state_that_is_unloaded_can_be_loaded_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        await tally.add(b"one")
        assert not bus._node.core.states.pending(tally)
        bus._node.states.unload(tally)
        again = Tally(bus._node)
        await again.load()
        assert again.words == [b"one"]


async def test_a_state_that_cannot_be_read_back_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as bus:
        tally = Tally(bus._node)
        await tally.load()
        await tally.add(b"one")
        bus._node.states.unload(tally)

        def broken(*_: object) -> None:
            raise OSError("the disk")

        with monkeypatch.context() as patch:
            patch.setattr(Log, "read_channel", broken)
            with pytest.raises(BrokerError, match="STORAGE_FAILED"):
                await Tally(bus._node).load()
        again = Tally(bus._node)
        await again.load()
        assert again.words == [b"one"]


@pytest.mark.parametrize(
    "stored",
    [b"", b"x", HEAD.pack(2, *[0] * 5) + b"{}", HEAD.pack(len(SETTINGS), *[0] * 5) + SETTINGS + b"no jobs"],
    ids=["nothing", "cut", "no settings", "no jobs"],
)
async def test_a_state_that_makes_no_sense_refuses_who_asks(tmp_path: Path, stored: bytes) -> None:
    """Its checksum is right all the same; another version may have written it."""
    async with opened(tmp_path) as bus:
        node = bus._node
        await bus.create_queue("other", "s.x")
        node.core.load(CHANNEL_PREFIX + b"q")
        node.core.own.store(CHANNEL_PREFIX + b"q", record_of(b"\0" + stored))
        await bus.publish("s.x", b"behind it")
    async with opened(tmp_path) as bus:
        for _ in range(2):
            with pytest.raises(BrokerError) as caught:
                await asyncio.wait_for(bus.consumer_info("q"), 10)
            assert caught.value.name == ("STORAGE_CORRUPT" if stored else "UNKNOWN_CONSUMER")
        assert (await bus.consumer_info("other")).settings.name == "other"


async def test_users_do_not_reach_states(tmp_path: Path) -> None:
    async with opened(tmp_path) as bus:
        seen = await bus.subscribe(">", start="start")
        tally = Tally(bus._node)
        await tally.load()
        await tally.add(b"secret")
        await bus.publish("s.x", b"hello")
        async for message in seen:
            assert message.channel == "s.x"
            break
        assert [row.name async for row in bus.channels()] == ["s.x"]
        assert [message.channel for message in await bus.history(">").messages()] == ["s.x"]
        for attempt in (bus.channel, bus.history, bus.remove, bus.subscribe, lambda name: bus.publish(name, b"mine")):
            with pytest.raises(BrokerError, match="INVALID"):
                await attempt("$tally.one")
    async with opened(tmp_path) as bus:
        assert [row.name async for row in bus.channels()] == ["s.x"], "nor from the log"
