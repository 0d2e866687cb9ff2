"""The background thread: fresh segments in time, seals, and what it does when the disk refuses."""

from __future__ import annotations

import errno
import logging
import threading
from typing import TYPE_CHECKING

import lmdb
import pytest

from broker.log import AppendError, AppendFull, sealer
from broker.log.environment import OpenFiles, create_file
from broker.log.sealer import Sealer, seal_segment, segment_path
from broker.log.segment import Segment
from broker.model.errors import BrokerError
from broker_native.index import check_group
from tests.reference.chains import Chain
from tests.reference.groups import Tables, line_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAP_BYTES = 64 * 1024 * 1024
WAIT_S = 10.0


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[Sealer]:
    """A sealer that is not started; closed at the end."""
    one = Sealer(tmp_path, MAP_BYTES, OpenFiles(4))
    yield one
    ready = one.close()
    if ready is not None:
        ready.file.close()


def full_segment(folder: Path, chain: Chain, ordinal: int = 1000, groups: int = 5) -> Segment:
    """Create a segment with some groups."""
    segment = Segment(ordinal, segment_path(folder, ordinal), MAP_BYTES, OpenFiles(4))
    create_file(segment.path, MAP_BYTES)
    for number in range(groups):
        entry = line_entry(b"p" * 16, number + 1, 1, [(1, number + 1, 1)])
        value = chain.build([(1, [b"x"]), (number + 2, [b"y"])], [entry])
        segment.append(chain.number, value)
        segment.extend(segment.last, check_group(value), value)
        chain.commit(value)
    return segment


def failing(times: int, cause: Exception, function: Callable[..., object]) -> Callable[..., object]:
    """Return a function that raises at its first calls and does its work from then on."""
    left = [times]

    def call(*args: object, **kwargs: object) -> object:
        if left[0] > 0:
            left[0] -= 1
            raise cause
        return function(*args, **kwargs)

    return call


def test_segments_are_made_ready_one_after_the_other(tmp_path: Path, thread: Sealer) -> None:
    thread.start(None, 7, [])
    taken = [thread.take_next() for _ in range(3)]
    assert [segment.ordinal for segment in taken] == [7, 8, 9]
    assert [segment.path.name for segment in taken] == [f"{number:016x}.seg" for number in (7, 8, 9)]
    for segment in taken:
        assert segment.empty
        segment.append(1, Chain().build())
        segment.file.close()
    assert thread.stats()["syncs"] >= 6


def test_a_ready_one_is_used_first(tmp_path: Path, thread: Sealer) -> None:
    ready = Segment(3, segment_path(tmp_path, 3), MAP_BYTES, OpenFiles(4))
    create_file(ready.path, MAP_BYTES)
    thread.start(ready, 4, [])
    assert thread.take_next() is ready
    taken = thread.take_next()
    assert taken.ordinal == 4
    taken.file.close()


def test_a_seal_holds_the_tables(tmp_path: Path, thread: Sealer) -> None:
    chain = Chain()
    segment = full_segment(tmp_path, chain)
    thread.start(None, 1, [segment])
    assert thread.wait_sealed(WAIT_S)
    assert segment.sealed
    tables = Tables()
    for _, entries in (*segment.table_entries(), *segment.line_entries()):
        tables.apply_entries(entries)
    for entry in segment.rest_entries():
        tables.apply_entries(entry)
    assert tables == chain.tables()
    stats = thread.stats()
    assert (stats["seals"], stats["seal_backlog"]) == (1, 0)
    assert stats["seal_s"] > 0
    segment.file.close()


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), AppendFull),
        (lmdb.DiskError("mdb_env_open"), AppendFull),
        (OSError(errno.EIO, "io"), AppendError),
    ],
)
def test_who_waits_is_told_why_none_could_be_made(
    thread: Sealer, monkeypatch: pytest.MonkeyPatch, cause: Exception, kind: type[AppendError]
) -> None:
    create = create_file
    monkeypatch.setattr(sealer, "create_file", failing(10**9, cause, create))
    thread.start(None, 1, [])
    for _ in range(3):
        with pytest.raises(AppendError) as caught:
            thread.take_next()
        assert type(caught.value) is kind
        assert not caught.value.handed_over
    monkeypatch.setattr(sealer, "create_file", create)
    taken = thread.take_next()
    assert taken.ordinal == 1
    taken.file.close()


def test_a_failed_seal_is_tried_again(
    tmp_path: Path, thread: Sealer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sealer, "RETRY_S", 0.01)
    segment = full_segment(tmp_path, Chain())
    monkeypatch.setattr(segment, "write_seal", failing(2, lmdb.DiskError("mdb_txn_commit"), segment.write_seal))
    with caplog.at_level(logging.WARNING):
        thread.start(None, 1, [segment])
        assert thread.wait_sealed(WAIT_S)
    assert segment.sealed
    assert len([record for record in caplog.records if record.message.startswith("segment_seal_delayed ")]) == 2
    segment.file.close()


def test_a_damaged_segment_is_left_as_it_is(tmp_path: Path, thread: Sealer, caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain()
    damaged = full_segment(tmp_path, chain, 1)
    with damaged.file.writing() as environment, environment.begin(write=True) as transaction:
        key = (3).to_bytes(8, "big")
        transaction.put(key, chain.values[3].replace(b"x", b"X"))
    sound = full_segment(tmp_path, Chain(), 2)
    with caplog.at_level(logging.ERROR):
        thread.start(None, 3, [damaged, sound])
        assert thread.wait_sealed(WAIT_S)
    assert (damaged.sealed, sound.sealed) == (False, True)
    assert "group 3" in caplog.text
    for segment in (damaged, sound):
        segment.file.close()


def test_a_fresh_segment_is_made_between_two_steps_of_a_seal(
    tmp_path: Path, thread: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that waits for it must not wait for the seal."""
    segment = full_segment(tmp_path, Chain(), 1000, groups=200)
    in_seal, taken_two = threading.Event(), threading.Event()

    def slow_seal(one: Segment, turn: Callable[[], None]) -> int:
        def wait_and_turn() -> None:
            in_seal.set()
            while not taken_two.wait(0.005):
                turn()

        return seal_segment(one, wait_and_turn)

    monkeypatch.setattr(sealer, "seal_segment", slow_seal)
    thread.start(None, 1, [segment])
    assert in_seal.wait(WAIT_S)
    for _ in range(3):
        thread.take_next().file.close()
    assert not segment.sealed
    taken_two.set()
    assert thread.wait_sealed(WAIT_S)
    segment.file.close()


def test_a_mistake_in_the_thread_is_told_to_who_waits(
    thread: Sealer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sealer, "create_file", failing(1, ZeroDivisionError("oops"), create_file))
    with caplog.at_level(logging.ERROR):
        thread.start(None, 1, [])
        for _ in range(2):
            with pytest.raises(AppendError, match="oops"):
                thread.take_next()
    assert "sealer_stopped error=" in caplog.text


def test_close_frees_who_waits(tmp_path: Path, thread: Sealer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def stuck(*_: object) -> int:
        begun.set()
        assert go.wait(WAIT_S)
        raise OSError(errno.EIO, "io")

    monkeypatch.setattr(sealer, "create_file", stuck)
    thread.start(None, 1, [])
    assert begun.wait(WAIT_S)
    failures: list[BrokerError] = []

    def take() -> None:
        try:
            thread.take_next()
        except BrokerError as error:
            failures.append(error)

    waiting = threading.Thread(target=take)
    waiting.start()
    closing = threading.Thread(target=thread.close)
    closing.start()
    waiting.join(WAIT_S)
    go.set()
    closing.join(WAIT_S)
    assert [error.name for error in failures] == ["CLOSED"]
