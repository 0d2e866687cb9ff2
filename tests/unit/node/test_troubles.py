"""What is said to be wrong, and what of it keeps a broker from serving."""

from __future__ import annotations

import pytest

from broker.node.troubles import find_hindrances, find_troubles
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import Stage
from tests.reference.frames import Record, build_frame, build_record, publish_body
from tests.reference.journal import Fate


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.connect("writer")
    stage.feed("writer", control.encode_hello("w", bytes(16)) + build_frame(Kind.CHANNEL, bytes(4) + b"s.x"))
    stage.settle()
    return stage


def publish(stage: Stage, number: int, count: int = 1) -> None:
    stage.feed("writer", build_frame(Kind.PUBLISH, publish_body(0, number, [build_record(Record(bytes(100)))] * count)))
    stage.settle()


def names(stage: Stage) -> list[str]:
    return [trouble.name for trouble in find_troubles(stage.node)]


def serious(stage: Stage) -> list[str]:
    found = find_hindrances(stage.node)
    assert all(trouble.serious for trouble in found)
    assert [each.name for each in find_troubles(stage.node) if each.serious] == [each.name for each in found]
    return [trouble.name for trouble in found]


def test_a_broker_without_troubles_has_none(stage: Stage) -> None:
    publish(stage, 1)
    assert names(stage) == []


def test_a_commit_that_failed_is_a_hindrance_until_one_succeeds(stage: Stage) -> None:
    stage.hold()
    publish(stage, 1)
    stage.fail(Fate.REFUSED)
    assert len(serious(stage)) == 1
    assert find_troubles(stage.node)[0].advice
    stage.release()
    assert serious(stage) == []


def test_who_drains_is_not_ready(stage: Stage) -> None:
    stage.drain(1.0)
    assert serious(stage) == ["draining"]


def test_who_has_no_memory_left_is_broken(stage: Stage) -> None:
    stage.disconnect("writer")
    stage.node._break("a turn")
    assert "broken" in serious(stage)


def test_a_reader_that_fell_behind_is_told_with_its_name(stage: Stage) -> None:
    stage.connect("slow")
    stage.feed("slow", control.encode_hello("snail", b"s" * 16))
    stage.feed("slow", control.encode_subscribe(control.Subscribe(1, ("s.x",), 1, control.FromNew())))
    stage.settle()
    for number in range(1, 10_001, 100):
        publish(stage, number, 100)
    (trouble,) = find_troubles(stage.node)
    assert (trouble.name, trouble.serious) == ("readers_behind", False)
    assert "1 subscriptions" in trouble.detail
    assert "snail" in trouble.detail


def test_a_slow_disk_is_told(stage: Stage) -> None:
    stage.hold()
    publish(stage, 1)
    stage.wait(1_000_000)
    stage.release()
    assert names(stage) == ["disk_slow"]
