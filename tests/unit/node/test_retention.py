"""Retention's rounds: a few trims a turn, cursors that follow what is committed, early seals, and every failure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from broker.log.retention import SECOND_US, ChannelState, Held, Policies, Policy, Step
from broker.model.errors import BrokerError, error
from broker.node.holds import HELD_MAX, Holding, Holds
from broker.node.retention import BATCH, ROUND_S, TRIMS_PER_TURN, Retention

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AGES = Policies([(b">", Policy(age_us=8 * SECOND_US))])
CURSOR = b"age"


@dataclass
class Broker:
    """All that retention acts on, in virtual time; what it begins ends when the test says so."""

    now_us: int = 1_000 * SECOND_US
    newest_group: int = 7
    archived_group: int = 0
    room: bool = True
    memory: dict[bytes, int] = field(default_factory=dict)
    stored: dict[bytes, int] = field(default_factory=dict)
    steps: deque[Step | BrokerError] = field(default_factory=deque)
    given: list[dict[bytes, int]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    rotations: list[int] = field(default_factory=list)
    planning: Callable[[Step | BrokerError], None] | None = None
    trims: list[tuple[bytes, int, Callable[[BrokerError | None], None]]] = field(default_factory=list)
    put_off: deque[Callable[[], None]] = field(default_factory=deque)
    unloadable: BrokerError | None = None
    holders: dict[bytes, Holding] = field(default_factory=dict)
    unknown: BrokerError | None = None
    told: list[tuple[dict[bytes, int], list[int]]] = field(default_factory=list)
    full: set[bytes] = field(default_factory=set)

    def plan(
        self,
        policies: Policies,
        cursors: Mapping[bytes, int],
        now_us: int,
        held: Held,
        done: Callable[[Step | BrokerError], None],
    ) -> None:
        assert self.planning is None
        self.given.append(dict(cursors))
        self.told.append((dict(held.walked), list(held.channels)))
        self.planning = done

    def answer(self) -> None:
        assert self.planning is not None
        done, self.planning = self.planning, None
        done(self.steps.popleft())

    def need(self, names: list[bytes], done: Callable[[BrokerError | None], None]) -> None:
        self.asked.append(len(names))
        if self.unloadable is None:
            self.memory.update({name: self.stored[name] for name in names if name in self.stored})
        done(self.unloadable)

    def holding(
        self, proposals: list[tuple[bytes, int]], done: Callable[[dict[bytes, Holding] | BrokerError], None]
    ) -> None:
        if self.unknown is not None:
            done(self.unknown)
            return
        held = {name: self.holders[name] for name, _ in proposals if name in self.holders}
        done({name: found for name, found in held.items() if found.stays < dict(proposals)[name]})

    def channel_id(self, name: bytes) -> int:
        return ord(name[:1]) if name in self.memory else 0

    def refuse(self, name: bytes, refused: bool) -> None:
        (self.full.add if refused else self.full.discard)(name)

    def trim(self, name: bytes, first: int, done: Callable[[BrokerError | None], None]) -> None:
        if self.memory.get(name, first) >= first:
            done(None)
        else:
            self.trims.append((name, first, done))

    def commit(self, failure: BrokerError | None = None) -> int:
        """The open group is committed, or fails; answers how many trims were in it."""
        self.newest_group += 1
        trims, self.trims = self.trims, []
        for name, first, done in trims:
            if failure is None:
                self.memory[name] = self.stored[name] = first
            done(failure)
        return len(trims)

    def turn(self) -> None:
        do, self.put_off = self.put_off, deque()
        for each in do:
            each()

    def rotate(self) -> None:
        self.rotations.append(self.newest_group)

    def ages_us(self) -> int:
        return self.now_us

    def steady_us(self) -> int:
        return self.now_us

    def later(self, do: Callable[[], None]) -> None:
        self.put_off.append(do)


def started(broker: Broker, policies: Policies = AGES) -> Retention:
    retention = Retention(broker, policies)
    retention.tick()
    return retention


def seconds(broker: Broker, retention: Retention, count: int) -> None:
    for _ in range(count):
        broker.now_us += SECOND_US
        retention.tick()


def test_a_round_trims_and_then_tells_how_far_it_is() -> None:
    broker = Broker(stored={b"a": 1, b"b": 5})
    broker.steps += [Step({b"a": 4, b"b": 5, b"gone": 9}, {CURSOR: 12}, more=True), Step({}, {CURSOR: 20}, more=False)]
    retention = started(broker)
    broker.answer()
    assert [(name, first) for name, first, _ in broker.trims] == [(b"a", 4)]
    seconds(broker, retention, 1)
    assert broker.planning is None, "the trims are not committed yet"
    assert broker.commit() == 1
    seconds(broker, retention, 1)
    assert broker.given == [{}, {CURSOR: 12}]
    broker.answer()
    assert (retention.trims, retention.steps) == (3, 2)
    seconds(broker, retention, 1)
    assert broker.planning is None, "there is nothing more to do for now"
    broker.archived_group += 1
    seconds(broker, retention, 1)
    assert broker.given[-1] == {CURSOR: 20}


def test_a_walk_that_has_more_goes_on_at_once() -> None:
    broker = Broker()
    broker.steps += [Step({}, {CURSOR: at}, more=at < 3) for at in range(1, 4)]
    retention = started(broker)
    while broker.planning is not None:
        broker.answer()
        broker.turn()
    assert broker.given == [{}, {CURSOR: 1}, {CURSOR: 2}]
    assert retention.steps == 3


def test_nothing_is_begun_without_a_policy() -> None:
    broker = Broker()
    retention = started(broker, Policies([(b">", Policy())]))
    seconds(broker, retention, 10_000)
    assert broker.planning is None
    assert broker.rotations == []
    retention.reload(AGES)
    retention.reload(AGES)
    seconds(broker, retention, 1)
    assert broker.planning is not None


def test_many_trims_are_spread_over_turns_and_channels_loaded_in_batches() -> None:
    names = [b"%06d" % number for number in range(2 * BATCH + 3)]
    broker = Broker(stored=dict.fromkeys(names, 1))
    broker.steps.append(Step(dict.fromkeys(names, 2), {}, more=False))
    retention = started(broker)
    broker.answer()
    turns, order = [], []
    while broker.trims:
        order += [name for name, _, _ in broker.trims]
        broker.archived_group += 1
        retention.tick()
        assert broker.planning is None, "its step is not through"
        turns.append(broker.commit())
        broker.memory.clear()  # everything is evicted between two turns
        broker.turn()
    assert order == names
    assert max(turns) == TRIMS_PER_TURN
    assert max(broker.asked) == BATCH
    retention.tick()
    assert broker.planning is not None


def test_no_trim_is_decided_while_the_group_is_large() -> None:
    broker = Broker(stored={b"a": 1}, room=False)
    broker.steps.append(Step({b"a": 2}, {}, more=False))
    started(broker)
    broker.answer()
    broker.turn()
    assert broker.trims == []
    broker.room = True
    broker.turn()
    assert broker.commit() == 1


@pytest.mark.parametrize("what", ["plan", "load", "commit"])
def test_what_failed_is_planned_again_from_where_it_was(what: str) -> None:
    failure = error("STORAGE_FAILED", "the disk")
    broker = Broker(stored={b"a": 1})
    step = Step({b"a": 2}, {CURSOR: 12}, more=False)
    broker.steps += [failure if what == "plan" else step, step]
    retention = started(broker)
    broker.unloadable = failure if what == "load" else None
    broker.answer()
    broker.commit(failure if what == "commit" else None)
    broker.unloadable = None
    assert broker.planning is None
    seconds(broker, retention, ROUND_S)
    assert broker.given == [{}, {}]
    broker.answer()
    assert broker.commit() == 1
    broker.archived_group += 1
    seconds(broker, retention, 1)
    assert broker.given[-1] == {CURSOR: 12}


def test_a_segment_is_sealed_when_its_oldest_group_is_old_and_never_without_any() -> None:
    broker = Broker()
    retention = started(broker)
    seconds(broker, retention, 1)
    assert broker.rotations == []
    seconds(broker, retention, 1)
    assert broker.rotations == [7]
    seconds(broker, retention, 100)
    assert broker.rotations == [7]
    broker.newest_group = 8
    seconds(broker, retention, 1)
    assert broker.rotations == [7]
    seconds(broker, retention, 1)
    assert broker.rotations == [7, 8]


def test_after_stop_nothing_is_begun_and_nothing_goes_on() -> None:
    broker = Broker(stored={b"a": 1})
    broker.steps.append(Step({b"a": 2}, {}, more=True))
    retention = started(broker)
    retention.stop()
    broker.answer()
    seconds(broker, retention, 100)
    assert broker.trims == []
    assert broker.rotations == []
    assert broker.planning is None


HOLDS = Policies([(b">", Policy(age_us=8 * SECOND_US, hold_bytes=100))])


def state(name: bytes, first: int, following: int) -> ChannelState:
    """A channel of ten bytes a message."""
    return ChannelState(name, first, following, 10 * (following - first))


def test_a_trim_goes_as_far_as_consumers_have_done_and_the_rest_is_tried_again() -> None:
    broker = Broker(stored={b"a": 1, b"b": 1}, holders={b"a": Holding(4, "slow")})
    broker.steps += [
        Step({b"a": 9, b"b": 9}, {CURSOR: 12}, more=False, states=[state(b"a", 1, 21), state(b"b", 1, 21)]),
        Step({}, {CURSOR: 20}, more=False, states=[state(b"a", 4, 21)]),
        Step({}, {CURSOR: 20}, more=False, states=[state(b"a", 6, 21)]),
    ]
    retention = started(broker, HOLDS)
    broker.answer()
    assert [(name, first) for name, first, _ in broker.trims] == [(b"a", 4), (b"b", 9)]
    broker.commit()
    assert retention.holds.by_consumer == {"slow": (1, 50)}
    broker.holders[b"a"] = Holding(6, "slow")
    seconds(broker, retention, 1)
    # The walk goes on, and what is stored of it stays before what is held.
    assert (broker.given[-1], broker.told[-1]) == ({}, ({CURSOR: 12}, [ord("a")]))
    broker.answer()
    assert [(name, first) for name, first, _ in broker.trims] == [(b"a", 6)]
    broker.commit()
    del broker.holders[b"a"]
    seconds(broker, retention, 1)
    broker.answer()
    assert [(name, first) for name, first, _ in broker.trims] == [(b"a", 9)]
    broker.commit()
    assert (len(retention.holds), retention.holds.by_consumer) == (0, {})
    broker.archived_group += 1
    seconds(broker, retention, 1)
    assert (broker.given[-1], broker.told[-1]) == ({CURSOR: 20}, ({CURSOR: 20}, []))


def test_publishers_are_refused_for_as_long_as_too_much_is_held() -> None:
    broker = Broker(stored={b"a": 1}, holders={b"a": Holding(1, "slow")})
    broker.steps += [
        Step({b"a": 11}, {}, more=False, states=[state(b"a", 1, 21)]),
        Step({b"a": 12}, {}, more=False, states=[state(b"a", 1, 21)]),
        Step({}, {}, more=False, states=[state(b"a", 1, 21)]),
    ]
    retention = started(broker, HOLDS)
    for full, stays in ((False, 1), (True, 1), (False, 9)):
        broker.holders[b"a"] = Holding(stays, "slow")
        broker.answer()
        broker.commit()
        assert (broker.full == {b"a"}) is full
        assert retention.holds.full == full
        seconds(broker, retention, 1)


def test_other_policies_forget_what_is_held() -> None:
    broker = Broker(stored={b"a": 1}, holders={b"a": Holding(1, "slow")})
    broker.steps.append(Step({b"a": 20}, {CURSOR: 7}, more=False, states=[state(b"a", 1, 21)]))
    retention = started(broker, HOLDS)
    broker.answer()
    assert broker.full == {b"a"}
    retention.reload(AGES)
    assert (len(retention.holds), broker.full) == (0, set())
    seconds(broker, retention, 1)
    assert broker.told[-1] == ({}, [])


def test_what_consumers_have_done_and_cannot_be_told_is_not_taken() -> None:
    broker = Broker(stored={b"a": 1}, unknown=error("STORAGE_CORRUPT", "a consumer"))
    broker.steps += [Step({b"a": 20}, {CURSOR: 7}, more=False)] * 2
    retention = started(broker, HOLDS)
    broker.answer()
    assert broker.trims == []
    broker.unknown = None
    seconds(broker, retention, ROUND_S)
    assert broker.told[-1] == ({}, [])
    broker.answer()
    assert broker.commit() == 1


def test_there_is_an_end_to_what_is_kept_in_mind() -> None:
    holds = Holds(lambda name, refused: None)
    for number in range(HELD_MAX):
        assert holds.hold(b"%d" % number, 5, Holding(1, "slow"), 7, {})
    assert not holds.hold(b"one more", 5, Holding(1, "slow"), 7, {})
    assert holds.hold(b"1", 9, Holding(1, "other"), 7, {}), "it is there already"
    assert next(iter(holds.next(1))) == b"0"
    assert next(iter(holds.next(1))) == b"1", "in turn"
