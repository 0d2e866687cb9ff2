"""CHANNEL frames that are handled together answer and bind what each by itself would, whatever is found of them."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.edge.session import Session
from broker.model.errors import error
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import LIMITS, Stage
from tests.reference.frames import Record, build_frame, build_record, frames_of, publish_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.model.errors import BrokerError

DAMAGE = error("STORAGE_CORRUPT", "a page is not what was written")
STORED = [b"s.%d" % number for number in range(40)]
DAMAGED = frozenset({b"s.7", b"s.8", b"s.30"})


class Shelf:
    """A loader whose log has everything, some of it damaged, and which answers in the loop's next iteration."""

    def __init__(self, stage: Stage, refusal: BrokerError | None) -> None:
        self.stage = stage
        self.refusal = refusal
        self.cold = set(STORED)
        self.asked: list[list[bytes]] = []

    def missing(self, names: list[bytes]) -> list[bytes]:
        return [name for name in dict.fromkeys(names) if name in self.cold]

    def knows_line(self, producer: bytes) -> bool:
        return True

    def need(
        self, names: list[bytes], done: Callable[[BrokerError | None], None], owner: object, ahead: list[bytes]
    ) -> None:
        assert self.missing(names), "nothing to load"
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(names)
        self.stage.loop.call_soon(self.answer, names, done)

    def answer(self, names: list[bytes], done: Callable[[BrokerError | None], None]) -> None:
        self.cold.difference_update(set(names) - DAMAGED)
        done(DAMAGE if DAMAGED.intersection(names) else None)

    def leave(self, owner: object) -> None:
        pass

    def stop(self) -> None:
        pass


def named(frames: list[tuple[int, bytes]], *, together: bool, refusal: BrokerError | None = None) -> tuple[Any, ...]:
    """Name channels and publish to each number; returns what was answered, and what the loader was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if not together:
            patch.setattr(Session, "on_channels", lambda self, first, names: 0)
        stage = Stage(limits=replace(LIMITS, channels_per_connection_max=60))
        shelf = Shelf(stage, refusal)
        stage.node.loader = shelf  # type: ignore[assignment]
        stage.connect("a")
        stage.feed("a", control.encode_hello("a", bytes(16)))
        stage.settle()
        stage.feed(
            "a", b"".join(build_frame(Kind.CHANNEL, struct.pack("<I", number) + name) for number, name in frames)
        )
        for _ in range(200):
            stage.settle()
        record = [build_record(Record(b"x"))]
        publishes = (build_frame(Kind.PUBLISH, publish_body(slot, 1 + slot, record)) for slot in range(65))
        client = stage.clients["a"]
        for publish in publishes:
            if not client.closed:
                stage.feed("a", publish)
                stage.settle()
        return [(frame.kind, frame.body) for frame in frames_of(client.take())], client.closed, shelf.asked


NAMES = st.sampled_from([*STORED, b"e.new", b"s.new", b"a.new", b"nobodys", b"$own", b"bad..name", b""])
RUNS = st.tuples(st.integers(0, 3), st.lists(NAMES, min_size=1, max_size=12))


@given(st.lists(RUNS, max_size=6))
@settings(max_examples=120, deadline=None)
def test_many_frames_do_what_each_of_them_would(runs: list[tuple[int, list[bytes]]]) -> None:
    frames: list[tuple[int, bytes]] = []
    for back, names in runs:
        first = max(len({number for number, _ in frames}) - back, 0)
        frames += [(first + at, name) for at, name in enumerate(names)]
    one, other = named(frames, together=True), named(frames, together=False)
    assert one[:2] == other[:2]


def test_numbers_past_the_limit_and_past_the_dense_ones() -> None:
    for begin in (0, 58, 70):
        frames = [(at, b"e.%d" % at) for at in range(min(begin, 60))] + [(begin + at, b"e.x") for at in range(5)]
        assert named(frames, together=True) == named(frames, together=False)


@pytest.mark.parametrize("name", ["BUSY", "STORAGE_FAILED"])
def test_when_nothing_can_be_loaded_each_is_told_so(name: str) -> None:
    frames = [(0, b"e.x"), *((1 + at, stored) for at, stored in enumerate(STORED)), (41, b"e.y")]
    refusal = error(name, "not now")
    one, other = (named(frames, together=together, refusal=refusal) for together in (True, False))
    assert one == other
    refusals = [control.decode_error(body).failure.name for kind, body in one[0] if kind == Kind.ERROR]
    assert refusals.count(name) == len(STORED)


def test_one_answer_of_the_loader_is_enough_for_many() -> None:
    sound = [name for name in STORED if name not in DAMAGED]
    _, _, asked = named([(0, b"e.x"), *((1 + at, name) for at, name in enumerate(sound))], together=True)
    assert asked == [sound]


def test_one_that_cannot_be_read_is_refused_alone() -> None:
    answers, closed, asked = named([(0, b"e.x"), *((1 + at, name) for at, name in enumerate(STORED))], together=True)
    refused = [control.decode_error(body) for kind, body in answers if kind == Kind.ERROR]
    by_load = [failure.channel for failure in refused if failure.failure.name == "STORAGE_CORRUPT"]
    assert by_load == [1 + STORED.index(name) for name in (b"s.7", b"s.8", b"s.30")]
    assert not closed
    assert len(asked) <= 1 + 2 * len(DAMAGED)
