"""Looking on, whatever becomes of the server: it is lost, hangs, restarts, or refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from broker.cli.top import watch
from broker.cli.top.watch import Watch
from broker.model.errors import BrokerError, error
from tests.unit.cli.top.looks import stats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.cli.top.rates import Change


class Server:
    """Answers as it is told: with its stats, an error, or not before it may."""

    def __init__(self, *answers: dict[str, object] | BrokerError | asyncio.Event) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, Mapping[str, object]]] = []

    async def ask(self, operation: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        if operation == "lagging":
            return {"readers": [{"name": "phone", "behind_groups": 4}, "what is this?"], "more": True}
        if operation == "consumers":
            return {"consumers": [{"name": "resize", "ready": 3, "acked": 1}, "what is this?"], "more": False}
        answer = self._answers.pop(0) if self._answers else stats()
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return {"stats": stats()}
        if isinstance(answer, BrokerError):
            raise answer
        return {"stats": answer}


class Notes:
    """Notes what is shown."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.changes: list[Change] = []
        self.why = ""
        self.on_first = asyncio.Event()
        self.on_away = asyncio.Event()

    def first(self, change: Change) -> None:
        self.told.append("first")
        self.on_first.set()
        self.changes.append(change)

    def show(self, change: Change) -> None:
        self.told.append("restarted" if change.restarted else "show")
        self.changes.append(change)

    def away(self, silent_s: float, why: str) -> None:
        assert silent_s >= 0
        self.why = why
        if self.told[-1:] != ["away"]:
            self.told.append("away")
        self.on_away.set()

    def redraw(self) -> None:
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_S", 0.001)
    monkeypatch.setattr(watch, "AGAIN_S", 0.0)


async def looked(server: Server, looks: int = 1, readers_max: int = 5) -> Notes:
    notes = Notes()
    async with asyncio.timeout(10):
        await Watch(server, notes, 0.001, readers_max).run(looks)
    return notes


async def test_looks_are_counted_behind_the_first() -> None:
    server = Server(stats(), stats(records_in=1_001))
    notes = await looked(server, 3)
    assert [each for each in notes.told if each != "away"] == ["first", "show", "show", "show"]
    rate = notes.changes[1].rate("records_in")
    assert rate is not None
    assert rate > 0
    (one,) = notes.changes[0].readers
    assert (one.name, one.behind_groups) == ("phone", 4)
    assert notes.changes[0].now.more
    assert server.asked[:2] == [("stats", {}), ("lagging", {"limit": 5})]


async def test_readers_are_asked_for_when_they_are_wanted() -> None:
    server = Server()
    notes = await looked(server, readers_max=0)
    assert {operation for operation, _ in server.asked} == {"stats"}
    assert notes.changes[0].readers == ()


async def test_consumers_are_asked_for_when_there_are_any() -> None:
    server = Server(stats(), stats(consumers=2))
    notes = Notes()
    async with asyncio.timeout(10):
        await Watch(server, notes, 0.001, 0, consumers_max=7).run(1)
    assert [arguments for operation, arguments in server.asked if operation == "consumers"] == [{"limit": 7}]
    assert notes.changes[0].consumers == ()
    (one,) = notes.changes[1].consumers
    assert (one.name, one.waiting, one.acked) == ("resize", 3, 1)


@pytest.mark.parametrize("name", ["CONNECTION_LOST", "GOING_AWAY", "BUSY", "TIMEOUT"])
async def test_a_server_that_is_lost_is_waited_for(name: str) -> None:
    failures = [error(name, "it is gone")] * 3
    notes = await looked(Server(stats(), *failures, stats(run=4), stats(run=4)), 2)
    assert notes.told == ["first", "away", "restarted", "show"]
    assert notes.why == f"{name}: it is gone"


async def test_a_server_that_hangs_is_told_of_and_its_answer_is_taken() -> None:
    answer = asyncio.Event()
    server = Server(stats(), answer)
    notes = Notes()
    looking = asyncio.create_task(Watch(server, notes, 0.001, 0).run(1))
    async with asyncio.timeout(10):
        await notes.on_first.wait()
        notes.on_away.clear()
        await notes.on_away.wait()
        asked = len(server.asked)
        notes.on_away.clear()
        await notes.on_away.wait()
        assert len(server.asked) == asked, "it is asked once, or a slow server would never be heard"
        assert "does not answer" in notes.why
        answer.set()
        await looking
    assert notes.told[-2:] == ["away", "show"]


async def test_an_end_leaves_no_question_behind() -> None:
    """`tests/conftest.py` looks for tasks that are left."""
    looking = asyncio.create_task(Watch(Server(asyncio.Event()), Notes(), 1.0, 0).run(None))
    await asyncio.sleep(0.01)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking


async def test_a_refusal_ends_it_and_says_what_is_missing() -> None:
    with pytest.raises(BrokerError, match="DENIED") as caught:
        await looked(Server(error("DENIED", "manage >: asked by eve")))
    assert "manage `>`" in caught.value.hint
    assert "manage >: asked by eve" in caught.value.detail


@pytest.mark.parametrize("name", ["UNKNOWN_OPERATION", "CLOSED", "STORAGE_FAILED"])
async def test_what_does_not_pass_ends_it(name: str) -> None:
    with pytest.raises(BrokerError, match=name):
        await looked(Server(stats(), error(name, "no")))
