"""Retention's side of a running broker: what fails on a thread or at the loader is told, and blocks nobody."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker.events import Said
from broker.log.retention import NOTHING_HELD, Policies, Step
from broker.model.errors import BrokerError, error
from broker.node.retained import RetainedBroker

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURE = error("STORAGE_FAILED", "the disk")


class Parts:
    """A core, a log and a loader of which each call ends as the test says."""

    def __init__(self) -> None:
        self.asked: Future[Step] = Future()
        self.refusal: BrokerError | None = None
        self.rotation: Exception | None = None
        self.rotations = 0
        self.absent: list[bytes] = []
        self.trimmed: list[bytes] = []
        self.kicks = 0
        self.tails = SimpleNamespace(info=lambda name: None if name in self.absent else (1,), group_bytes=0)
        self.limits = SimpleNamespace(group_bytes_max=400)
        self.clock = SimpleNamespace(steady_us=lambda: 5)
        self.applied_number = 7
        self.archived_group = 3

    def retain(self, policies: Policies, cursors: object, now_us: int, held: object) -> Future[Step]:
        if self.refusal is not None:
            raise self.refusal
        return self.asked

    def rotate(self) -> None:
        self.rotations += 1
        if self.rotation is not None:
            raise self.rotation

    def missing(self, names: list[bytes]) -> list[bytes]:
        return [name for name in names if name in self.absent]

    def need(self, names: list[bytes], done: Callable[[BrokerError | None], None], owner: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.absent = []
        done(None)

    def trim(self, name: bytes, first: int, done: Callable[[BrokerError | None], None]) -> None:
        self.trimmed.append(name)
        done(None)

    def ages_us(self) -> int:
        return 9

    def kick(self) -> None:
        self.kicks += 1


def broker_of(parts: Parts) -> RetainedBroker:
    each = cast("Any", parts)
    return RetainedBroker(each, each, each, each, each, asyncio.get_running_loop(), parts.kick)


async def planned(parts: Parts) -> Step | BrokerError:
    """Ask for a plan and return what comes of it."""
    heard: asyncio.Future[Step | BrokerError] = asyncio.get_running_loop().create_future()
    broker_of(parts).plan(Policies(), {}, 0, NOTHING_HELD, heard.set_result)
    assert not heard.done(), "later, not in the call"
    return await heard


async def test_a_plan_comes_later_whatever_comes_of_it() -> None:
    parts = Parts()
    step = Step({}, {}, more=False)
    parts.asked.set_result(step)
    assert await planned(parts) is step
    for failure, name in ((FAILURE, "STORAGE_FAILED"), (RuntimeError("it died"), "STORAGE_FAILED")):
        parts = Parts()
        parts.asked.set_exception(failure)
        answer = await planned(parts)
        assert isinstance(answer, BrokerError)
        assert answer.name == name
    parts = Parts()
    parts.asked.cancel()
    answer = await planned(parts)
    assert isinstance(answer, BrokerError)
    assert answer.name == "CLOSED"
    parts.refusal = FAILURE
    assert await planned(parts) is FAILURE


async def test_channels_are_loaded_only_if_they_are_not_there() -> None:
    parts, heard = Parts(), list[BrokerError | None]()
    parts.refusal = FAILURE
    broker_of(parts).need([b"a"], heard.append)
    parts.absent = [b"a"]
    broker_of(parts).need([b"a"], heard.append)
    parts.refusal = None
    broker_of(parts).need([b"a"], heard.append)
    assert heard == [None, FAILURE, None]


async def test_what_is_not_there_is_not_trimmed() -> None:
    parts, heard = Parts(), list[BrokerError | None]()
    parts.absent = [b"a"]
    broker_of(parts).trim(b"a", 5, heard.append)
    broker_of(parts).trim(b"b", 5, heard.append)
    assert (heard, parts.trimmed, parts.kicks) == ([None, None], [b"b"], 1)


@pytest.mark.parametrize(("failure", "told"), [(None, 0), (FAILURE, 1), (error("CLOSED", "it is closed"), 0)])
async def test_a_segment_is_sealed_on_a_thread(
    failure: BrokerError | None, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts()
    parts.rotation = failure
    broker = broker_of(parts)
    await broker.settle()
    with caplog.at_level(logging.WARNING, "broker.node"):
        broker.rotate()
        broker.rotate()
        await broker.settle()
        await asyncio.sleep(0)
    assert parts.rotations == 1, "one at a time"
    events = [record.msg.event.name for record in caplog.records if isinstance(record.msg, Said)]
    assert events == ["retention_failed"] * told


async def test_what_it_says_of_the_broker() -> None:
    parts = Parts()
    broker = broker_of(parts)
    assert (broker.ages_us(), broker.steady_us(), broker.newest_group, broker.archived_group) == (9, 5, 7, 3)
    assert broker.room
    parts.tails.group_bytes = 100
    assert not broker.room
    done = asyncio.Event()
    broker.later(done.set)
    await asyncio.wait_for(done.wait(), 10)
