"""States: stored with what changed them, undone with it, and read back as what they were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import states
from broker.core.own import payloads_of, record_of
from broker.core.states import latest
from broker.model.errors import BrokerError, error
from broker.model.limits import Limits
from broker_native.groups import chunk_head
from tests.reference import groups as reference
from tests.reference.journal import Fate
from tests.reference.pipeline import Connection, Pipeline

NAME = b"$tally"


class Tally:
    """Counts by name, of which each change is stored."""

    channel = NAME

    def __init__(self, pipeline: Pipeline) -> None:
        self.core = pipeline.core
        self.counts: dict[str, int] = {}
        self.changed: dict[str, int] = {}
        self.undoings = 0
        self.core.load(NAME)
        self.core.tails.hold(NAME)

    def count(self, name: str) -> None:
        self.counts[name] = self.changed[name] = self.counts.get(name, 0) + 1
        self.core.states.touch(self)

    def changes(self) -> bytes:
        changed, self.changed = self.changed, {}
        return json.dumps(changed).encode() if changed else b""

    def snapshot(self) -> bytes:
        return json.dumps(self.counts).encode()

    def undone(self) -> None:
        self.undoings += 1

    def restore(self, snapshot: bytes, changes: list[bytes]) -> None:
        self.counts = {}
        for part in [snapshot, *changes]:
            self.counts.update(json.loads(part or b"{}"))


def stored_payloads(pipeline: Pipeline) -> list[bytes]:
    """Return what a reader of the log finds of the state's channel."""
    info = pipeline.core.tails.info(NAME)
    assert info is not None
    payloads: list[bytes] = []
    for _, _, chunk in pipeline.journal.read_channel(info[0], info[3] - 1, 1 << 30):
        payloads += payloads_of(chunk, max(info[3], chunk_head(chunk)[2]) - 1)
    return payloads


def restored(pipeline: Pipeline) -> Tally:
    """Return the state as it is read back."""
    tally = Tally(pipeline)
    snapshot, changes, changed_bytes = latest(stored_payloads(pipeline))
    tally.restore(snapshot, changes)
    pipeline.core.states.add(tally, len(snapshot), changed_bytes)
    return tally


def test_a_change_is_in_the_group_of_what_it_belongs_to() -> None:
    pipeline = Pipeline()
    tally = restored(pipeline)
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"one")
    tally.count("s.x")
    pipeline.commit()
    group = reference.parse_group(pipeline.journal.good[-1])
    assert len(group.chunks) == 2
    pipeline.start()
    assert restored(pipeline).counts == {"s.x": 1}


def test_what_changes_often_is_asked_for_once_a_group() -> None:
    pipeline = Pipeline()
    tally = restored(pipeline)
    for _ in range(100):
        tally.count("x")
    pipeline.commit()
    assert len(stored_payloads(pipeline)) == 1
    assert not pipeline.core.states.pending(tally)
    assert pipeline.core.idle


def test_a_state_that_has_not_changed_after_all_makes_no_group() -> None:
    pipeline = Pipeline()
    tally = restored(pipeline)
    pipeline.core.states.touch(tally)
    assert not pipeline.core.idle
    assert pipeline.core.close_group(0) is None
    assert pipeline.core.idle


def test_changes_are_taken_together_in_a_snapshot_and_what_is_before_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "SNAPSHOT_AFTER_BYTES_MIN", 200)
    monkeypatch.setattr(states, "PART_BYTES_MAX", 64)
    pipeline = Pipeline()
    tally = restored(pipeline)
    most = 0
    for number in range(300):
        tally.count(f"name {number % 40}")
        pipeline.commit()
        snapshot, changes, changed_bytes = latest(stored_payloads(pipeline))
        most = max(most, changed_bytes)
        again = Tally(pipeline)
        again.restore(snapshot, changes)
        assert again.counts == tally.counts
    assert most <= 5 * len(tally.snapshot())
    info = pipeline.core.tails.info(NAME)
    assert info is not None
    assert info[3] > 100, "what is before a snapshot was trimmed"


def test_a_snapshot_may_be_larger_than_a_payload_of_users() -> None:
    pipeline = Pipeline(limits=Limits(payload_bytes_max=1_024))
    tally = restored(pipeline)
    for number in range(60_000):
        tally.count(f"a long name so that there is much of it {number}")
    pipeline.commit()
    assert len(tally.snapshot()) > 8 * states.PART_BYTES_MAX
    pipeline.start()
    assert restored(pipeline).counts == tally.counts


def test_publishers_are_refused_and_the_broker_is_not() -> None:
    """While memory is short a group that has begun is stored whole."""
    pipeline = Pipeline()
    tally = restored(pipeline)
    tally.count("x")
    pipeline.core.tails.refuse_code = error("BUSY", "").code
    pipeline.end_turn()
    assert pipeline.core.close_group(0) is not None
    assert pipeline.core.tails.refuse_code == error("BUSY", "").code


def test_what_is_refused_says_so() -> None:
    pipeline = Pipeline()
    pipeline.core.load(b"s.x")
    pipeline.core.tails.refuse_code = error("STORAGE_FULL", "").code
    with pytest.raises(BrokerError, match="STORAGE_FULL"):
        pipeline.core.own.store(b"s.x", record_of(b"copy"))


def test_own_channels_count_for_no_profile() -> None:
    pipeline = Pipeline()
    restored(pipeline)
    with pytest.raises(BrokerError, match="NO_PROFILE"):
        pipeline.core.load(b"unknown.x")


class Simulated:
    """A pipeline with a tally, and what of it is surely stored."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()
        self.tally = restored(self.pipeline)
        self.committed: dict[str, int] = {}

    def commit(self) -> None:
        if not self.pipeline.core.idle:
            self.pipeline.commit()
        self.committed = dict(self.tally.counts)

    def fail(self, fate: Fate) -> None:
        if self.pipeline.core.idle:
            return
        self.pipeline.close_group()
        self.pipeline.fail(fate)
        assert self.tally.undoings == 1
        while not self.pipeline.recover():
            pass
        self.tally = restored(self.pipeline)
        assert self.tally.counts == self.committed

    def crash(self, fate: Fate) -> None:
        """A crash with a group on its way: it was stored or not, whole either way."""
        before, after = dict(self.committed), dict(self.tally.counts)
        pending = not self.pipeline.core.idle
        if pending:
            self.pipeline.close_group()
            self.pipeline.append(fate)
        self.pipeline.start()
        self.tally = restored(self.pipeline)
        assert self.tally.counts == (after if pending and fate in (Fate.STORED, Fate.SURVIVES) else before)
        self.committed = dict(self.tally.counts)


STEPS = st.one_of(
    st.tuples(st.just("count"), st.sampled_from("abcdefgh")),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("fail"), st.sampled_from([Fate.REFUSED, Fate.SURVIVES, Fate.LOST])),
    st.tuples(st.just("crash"), st.sampled_from(list(Fate))),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from([40, 200, 64 << 10]))
def test_states_are_what_was_committed(steps: list[tuple[str, object]], snapshot_after: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "SNAPSHOT_AFTER_BYTES_MIN", snapshot_after)
        patch.setattr(states, "PART_BYTES_MAX", 32)
        simulated = Simulated()
        for step, argument in steps:
            match step:
                case "count":
                    simulated.tally.count(str(argument))
                case "commit":
                    simulated.commit()
                case "fail":
                    simulated.fail(argument)  # type: ignore[arg-type]
                case "crash":
                    simulated.crash(argument)  # type: ignore[arg-type]
        simulated.commit()
        simulated.pipeline.start()
        assert restored(simulated.pipeline).counts == simulated.committed
