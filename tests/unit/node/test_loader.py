"""The loader against a core and a log that do what the test says, on a real loop and its real thread."""

from __future__ import annotations

import asyncio
import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest

from broker.model.errors import BrokerError, error
from broker.node import loader as loader_module
from broker.node.loader import (
    ABSENT_MAX,
    GATHER_NAMES,
    JOB_NAMES_BEGIN,
    JOB_NAMES_MAX,
    JOB_NAMES_MIN,
    SHARE,
    Loader,
)
from broker_native.intake import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DAMAGE = error("STORAGE_CORRUPT", "a page")


class Tables:
    """What is stored, and what was asked of it; the gate, when shut, keeps the thread in its job."""

    settled_group = 0

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.damaged: set[bytes] = set()
        self.failure: BaseException | None = None
        self.asked: list[list[bytes]] = []
        self.gate = threading.Event()
        self.gate.set()

    def resolve(self, names: list[bytes]) -> list[bytes]:
        self.asked.append(names)
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if self.damaged.intersection(names):
            raise DAMAGE
        return [self.stored.get(name, b"") for name in names]

    resolve_lines = resolve


class Lines:
    """Lines in memory."""

    evicted = 0

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}


def stored(*names: bytes) -> dict[bytes, bytes]:
    """Return what the log has of these channels."""
    return {name: b"entries of " + name for name in names}


class Core:
    """What is in memory, and who holds it."""

    def __init__(self) -> None:
        self.tails = self
        self.there: dict[bytes, bytes] = {}
        self.lines = Lines()
        self.evicted = 0
        self.holders: dict[bytes, int] = {}

    def grow_ahead(self) -> None:
        """Nothing grows here."""

    def missing(self, names: list[bytes]) -> list[bytes]:
        return [name for name in names if name not in self.there]

    absent = missing

    def knows_producer(self, producer: bytes) -> bool:
        return producer in self.lines.known

    def install_each(self, found: list[bytes]) -> dict[int, Exception]:
        failures: dict[int, Exception] = {}
        for at, entries in enumerate(found):
            if entries.startswith(b"entries of "):
                self.there[entries.removeprefix(b"entries of ")] = entries
            else:
                failures[at] = ValueError("entry of kind 99")
        return failures

    def install_line(self, entries: bytes) -> None:
        self.lines.known[entries.removeprefix(b"entries of ")] = entries

    def hold(self, name: bytes) -> None:
        if name not in self.there:
            raise KeyError(name)
        self.holders[name] = self.holders.get(name, 0) + 1

    def release(self, name: bytes) -> None:
        self.holders[name] -= 1
        if not self.holders[name]:
            del self.holders[name]


class Station:
    """A loader, what it works on, and who was told what."""

    def __init__(self) -> None:
        self.core = Core()
        self.log = Tables()
        core: Any = self.core
        self.loader = Loader(core, self.log, Clock(), asyncio.get_running_loop())
        self.told: list[tuple[str, BrokerError | None]] = []
        self.news = asyncio.Event()

    def tell(self, who: str, failure: BrokerError | None) -> None:
        self.told.append((who, failure))
        self.news.set()

    def told_as(self, who: str) -> Callable[[BrokerError | None], None]:
        return lambda failure: self.tell(who, failure)

    async def until(self, count: int) -> list[str]:
        """Wait until so many were told; who they are, in order."""
        async with asyncio.timeout(10):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()
        return [who for who, _ in self.told]

    def shut(self) -> None:
        """Keep the thread in a job of one name that nobody else asks for."""
        self.log.gate.clear()
        self.loader.need([b"shut"], self.told_as("shut"))

    def nothing_is_left(self) -> bool:
        loader: Any = self.loader
        left = (loader._askers, loader._waiting, loader._asked, loader._gathered, loader._found, self.core.holders)
        return not any(left) and loader.waiting_bytes == 0


@pytest.fixture
async def station() -> AsyncIterator[Station]:
    built = Station()
    yield built
    built.log.gate.set()
    built.loader.stop()
    built.loader.close()


async def test_what_is_stored_is_there_when_its_waiter_is_told(station: Station) -> None:
    station.log.stored = stored(b"a", b"b")
    seen: list[object] = []

    def done(failure: BrokerError | None) -> None:
        seen.append((failure, dict(station.core.there), dict(station.core.holders)))
        station.tell("a", failure)

    station.loader.need([b"a", b"none"], done)
    await station.until(1)
    assert seen == [(None, stored(b"a"), {})]
    assert station.loader.missing([b"a", b"none", b"other"]) == [b"other"]
    assert station.log.asked == [[b"a", b"none"]]
    assert station.nothing_is_left()


async def test_names_in_memory_are_held_with_those_that_are_waited_for(station: Station) -> None:
    station.core.there = stored(b"here")
    station.log.stored = stored(b"cold")
    station.loader.need([b"here", b"cold"], station.told_as("x"))
    assert station.core.holders == {b"here": 1}
    await station.until(1)
    assert station.nothing_is_left()


async def test_a_name_is_in_one_job_whoever_waits_for_it(station: Station) -> None:
    station.shut()
    names = [b"n%03d" % number for number in range(100)]
    station.log.stored = stored(*names)
    for waiter in range(3_000):
        station.loader.need([names[waiter % 100]], station.told_as(str(waiter)), waiter)
    station.log.gate.set()
    assert len(await station.until(3_001)) == 3_001
    assert all(failure is None for _, failure in station.told)
    assert station.log.asked == [[b"shut"], names]
    assert station.nothing_is_left()


async def test_jobs_are_sorted_and_bounded(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "JOB_NAMES_MAX", 1_000)
    station.loader._job_names = 1_000
    station.shut()
    names = [b"n%05d" % number for number in range(2_000)]
    station.loader.need(names[::-1], station.told_as("all"))
    station.log.gate.set()
    await station.until(2)
    assert [len(job) for job in station.log.asked] == [1, 1_000, 1_000]
    assert all(job == sorted(job) for job in station.log.asked)


async def test_one_who_names_very_many_delays_others_by_a_job(station: Station) -> None:
    station.shut()
    for begin in range(0, 100_000, 20_000):
        names = [b"z%06d" % number for number in range(begin, begin + 20_000)]
        station.loader.need(names, station.told_as("stranger"), "stranger")
    for guest in range(50):
        station.loader.need([b"guest%d" % guest], station.told_as("guest"), guest)
    station.log.gate.set()
    order = await station.until(51)
    assert order[:51] == ["shut"] + ["guest"] * 50
    assert {name for name in station.log.asked[1] if name.startswith(b"guest")} == {b"guest%d" % i for i in range(50)}
    assert len(station.log.asked[1]) == JOB_NAMES_BEGIN
    await station.until(56)
    assert station.nothing_is_left()


async def test_a_job_takes_a_share_of_each_in_turn(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "JOB_NAMES_MAX", 4 * SHARE)
    station.loader._job_names = 4 * SHARE
    station.shut()
    for owner in range(8):
        names = [b"%d.%05d" % (owner, number) for number in range(4 * SHARE)]
        station.loader.need(names, station.told_as(str(owner)), owner)
    station.log.gate.set()
    await station.until(9)
    owners = [sorted({name[:1] for name in job}) for job in station.log.asked[1:]]
    assert owners[:4] == [[b"0", b"1", b"2", b"3"], [b"4", b"5", b"6", b"7"]] * 2


async def test_most_of_a_job_is_gathered_before_its_turn_and_a_late_comer_is_in_it(station: Station) -> None:
    """In steps, so that no callback takes the whole of a job at once, and the last of it is left for who comes."""
    steps: list[int] = []
    ready = asyncio.Event()
    gather = station.loader._gather

    def counted(count: int) -> None:
        before = len(station.loader._gathered)
        gather(count)
        steps.append(len(station.loader._gathered) - before)
        if len(station.loader._gathered) >= JOB_NAMES_BEGIN * 3 // 4:
            ready.set()

    station.loader._gather = counted  # type: ignore[method-assign]
    station.shut()
    station.loader.need([b"n%05d" % number for number in range(8_000)], station.told_as("many"), "many")
    async with asyncio.timeout(10):
        await ready.wait()
    assert max(steps) <= GATHER_NAMES
    station.loader.need([b"late"], station.told_as("late"), "late")
    station.log.gate.set()
    assert await station.until(3) == ["shut", "late", "many"]
    assert b"late" in station.log.asked[1]
    assert len(station.log.asked[1]) == JOB_NAMES_BEGIN
    # Of the job behind it more may be left, when the thread comes back soon.
    first_two = [step for step, total in zip(steps, accumulate(steps), strict=True) if total <= 1 + JOB_NAMES_BEGIN]
    assert sum(first_two) == 1 + JOB_NAMES_BEGIN
    assert max(first_two) <= JOB_NAMES_BEGIN // 4
    assert station.nothing_is_left()


async def test_slow_jobs_make_the_next_ones_smaller(station: Station) -> None:
    loader = station.loader
    for _ in range(20):
        loader._pace(loader._job_names, 1_000_000)
    assert loader._job_names == JOB_NAMES_MIN
    loader._pace(1, 10)
    assert loader._job_names == JOB_NAMES_MIN
    for _ in range(20):
        loader._pace(loader._job_names, 10)
    assert loader._job_names == JOB_NAMES_MAX


async def test_what_cannot_be_read_fails_those_who_wait_for_it_alone(station: Station) -> None:
    station.shut()
    names = [b"n%04d" % number for number in range(1_000)]
    station.log.damaged = {names[7], names[500]}
    station.log.stored = stored(*names)
    for name in names:
        station.loader.need([name], station.told_as(name.decode()), name)
    station.loader.need([names[8], names[500]], station.told_as("both"))
    station.log.gate.set()
    await station.until(1_002)
    assert {who for who, failure in station.told if failure is not None} == {"n0007", "n0500", "both"}
    assert len(station.core.there) == 998
    assert station.nothing_is_left()


@pytest.mark.parametrize(
    ("failure", "code"),
    [(OSError("a bug"), "STORAGE_FAILED"), (MemoryError(), "LIMIT"), (DAMAGE, "STORAGE_CORRUPT")],
)
async def test_a_job_that_fails_is_told_and_the_next_one_goes_on(
    station: Station, failure: BaseException, code: str
) -> None:
    station.log.failure = failure
    station.loader.need([b"a", b"b"], station.told_as("a"))
    await station.until(1)
    assert station.told[0][1] is not None
    assert station.told[0][1].name == code
    station.log.failure = None
    station.loader.need([b"c", b"d"], station.told_as("b"))
    await station.until(2)
    assert station.told[1] == ("b", None)
    assert station.nothing_is_left()


async def test_what_cannot_be_read_is_not_looked_up_at_once_again(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.log.damaged = {b"b"}
    station.log.stored = stored(b"a", b"b", b"c")
    station.loader.need([b"a", b"b"], station.told_as("first"))
    await station.until(1)
    jobs = len(station.log.asked)
    station.loader.need([b"b"], station.told_as("again"))
    station.loader.need([b"c"], station.told_as("other"))
    await station.until(3)
    assert [(who, failure and failure.name) for who, failure in station.told] == [
        ("first", "STORAGE_CORRUPT"),
        ("again", "STORAGE_CORRUPT"),
        ("other", None),
    ]
    assert station.log.asked[jobs:] == [[b"c"]]
    # Later it is: it may have been mended.
    monkeypatch.setattr(loader_module, "DAMAGED_US", 0)
    station.log.damaged = {b"d"}
    station.loader._damaged.clear()
    station.loader.need([b"d"], station.told_as("damaged"))
    await station.until(4)
    station.log.damaged = set()
    station.loader.need([b"d"], station.told_as("mended"))
    await station.until(5)
    assert station.told[4] == ("mended", None)
    assert station.nothing_is_left()


async def test_one_frame_may_not_need_more_than_is_remembered(station: Station) -> None:
    names = [b"n%d" % number for number in range(ABSENT_MAX // 2 + 1)]
    with pytest.raises(BrokerError, match=r"BUSY.*one frame"):
        station.loader.need(names, station.told_as("many"))
    station.loader.need(names[1:], station.told_as("all"))
    await station.until(1)
    assert station.loader.missing(names) == names[:1]
    station.core.evicted += 1
    assert station.loader.missing(names) == names


async def test_entries_that_make_no_sense_are_damage(station: Station) -> None:
    station.log.stored[b"a"] = b"nonsense"
    station.loader.need([b"a"], station.told_as("a"))
    await station.until(1)
    assert station.told[0][1] is not None
    assert station.told[0][1].name == "STORAGE_CORRUPT"


async def test_lines_and_channels_of_the_same_bytes_are_two_things(station: Station) -> None:
    producer = b"chat.acme.000042"
    station.log.stored = stored(producer)
    station.loader.need_line(producer, station.told_as("line"))
    station.loader.need([producer], station.told_as("channel"))
    await station.until(2)
    assert station.core.lines.known == station.core.there == stored(producer)
    assert station.nothing_is_left()


async def test_what_comes_next_is_fetched_ahead_and_fails_nobody(station: Station) -> None:
    station.log.stored = stored(b"a", b"b", b"c")
    station.log.damaged = {b"b"}
    station.loader.need([b"c"], station.told_as("c"), "me", [b"a", b"b", b"c"])
    await station.until(1)
    assert station.told == [("c", None)]
    assert set(station.core.there) == {b"a", b"c"}
    assert station.nothing_is_left()


async def test_one_who_leaves_is_not_told_and_leaves_nothing(station: Station) -> None:
    station.shut()
    station.log.stored = stored(b"a", b"b", b"shared")
    station.loader.need([b"a", b"shared"], station.told_as("gone"), "gone", [b"b"])
    station.loader.need([b"shared"], station.told_as("stays"), "stays")
    station.loader.leave("gone")
    station.loader.leave("nobody")
    station.log.gate.set()
    assert await station.until(2) == ["shut", "stays"]
    assert set(station.core.there) == {b"shared"}
    assert station.log.asked == [[b"shut"], [b"shared"]]
    assert station.nothing_is_left()


async def test_one_who_leaves_in_the_middle_of_a_job_has_nothing_installed(station: Station) -> None:
    station.log.gate.clear()
    station.log.stored = stored(b"a", b"b")
    station.loader.need([b"a"], station.told_as("gone"), "gone")
    station.loader.need([b"b"], station.told_as("stays"), "stays")
    station.loader.leave("gone")
    station.log.gate.set()
    await station.until(1)
    assert set(station.core.there) == {b"b"}
    assert station.nothing_is_left()


async def test_one_waiter_may_send_another_away(station: Station) -> None:
    station.shut()
    station.loader.need([b"a"], lambda _: station.loader.leave("victim"), "murderer")
    station.loader.need([b"a"], station.told_as("victim"), "victim")
    station.loader.need([b"a"], station.told_as("witness"), "witness")
    station.log.gate.set()
    assert await station.until(2) == ["shut", "witness"]
    assert station.nothing_is_left()


async def test_what_waits_is_bounded(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "WAITING_BYTES_MAX", 10_000)
    station.shut()
    with pytest.raises(BrokerError, match=r"BUSY.*limit 10000"):
        station.loader.need([b"n%d" % number for number in range(100)], station.told_as("many"), "many")
    station.loader.need([b"few"], station.told_as("few"), "few", [b"n%d" % number for number in range(100)])
    station.log.gate.set()
    assert await station.until(2) == ["shut", "few"]
    assert station.log.asked == [[b"shut"], [b"few"]]
    assert station.nothing_is_left()


async def test_closing_tells_all_who_wait(station: Station) -> None:
    station.log.gate.clear()
    station.loader.need([b"in the job"], station.told_as("a"), "a")
    station.loader.need([b"behind it"], station.told_as("b"), "b", [b"ahead"])
    station.loader.stop()
    assert [(who, failure and failure.name) for who, failure in station.told] == [
        ("a", "GOING_AWAY"),
        ("b", "GOING_AWAY"),
    ]
    with pytest.raises(BrokerError, match="GOING_AWAY"):
        station.loader.need([b"late"], station.told_as("late"))
    station.log.gate.set()
    await asyncio.to_thread(station.loader.close)
    await asyncio.sleep(0)
    assert len(station.told) == 2
    assert station.core.there == {}
    assert station.nothing_is_left()


async def test_what_was_evicted_while_others_were_awaited_is_looked_up_again(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job says that a channel is not stored; it is created and evicted while the second one runs."""
    monkeypatch.setattr(loader_module, "JOB_NAMES_MAX", 1)
    station.loader._job_names = 1
    install_each = station.core.install_each

    def created_and_evicted(found: list[bytes]) -> dict[int, Exception]:
        if found and not station.core.evicted:
            station.log.stored |= stored(b"a")
            station.core.evicted += 1
        return install_each(found)

    monkeypatch.setattr(station.core, "install_each", created_and_evicted)
    station.log.stored = stored(b"b")
    station.loader.need([b"a", b"b"], station.told_as("x"))
    await station.until(1)
    assert station.log.asked == [[b"a"], [b"b"], [b"a"]]
    assert set(station.core.there) == {b"a", b"b"}
    assert station.nothing_is_left()


async def test_without_memory_to_install_everybody_is_told(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(found: list[bytes]) -> dict[int, Exception]:
        raise MemoryError

    monkeypatch.setattr(station.core, "install_each", starved)
    station.log.stored = stored(b"a", b"b")
    station.loader.need([b"a", b"b"], station.told_as("x"))
    station.loader.need([b"b", b"none"], station.told_as("y"))
    assert sorted(await station.until(2)) == ["x", "y"]
    assert {failure.name for _, failure in station.told if failure is not None} == {"LIMIT"}
    assert station.nothing_is_left()


async def test_steps_end_so_that_the_loop_can_do_something_else(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "STEP_NAMES_MAX", 10)
    station.shut()
    steps: list[int] = []
    install = station.loader._install

    def counted() -> None:
        before = len(station.told)
        install()
        steps.append(len(station.told) - before)

    monkeypatch.setattr(station.loader, "_install", counted)
    for number in range(95):
        station.loader.need([b"n%d" % number], station.told_as("n"), number)
    station.log.gate.set()
    await station.until(96)
    assert max(steps) == 10


async def test_a_waiter_that_raises_does_not_keep_others_waiting(
    station: Station, loop_exceptions: list[dict[str, Any]]
) -> None:
    def broken(failure: BrokerError | None) -> None:
        raise RuntimeError("a bug")

    station.shut()
    station.loader.need([b"a"], broken, 1)
    station.loader.need([b"b"], station.told_as("b"), 2)
    station.log.gate.set()
    await station.until(2)
    assert len(loop_exceptions) == 1
    loop_exceptions.clear()
    assert station.nothing_is_left()
