"""Asking for a step of retention: the writer itself, a child process, and the thread that has either."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker.log.archive_rows import CHECKPOINT_KEY, Checkpoint
from broker.log.archiver import ArchiveWriter, archive_path, serve
from broker.log.archiving import Archiving
from broker.log.environment import open_lmdb
from broker.log.retention import NOTHING_HELD, SECOND_US, Planner, Policies, Policy, Step
from broker.log.slice import SLICE_KEY, Begun
from broker.model.errors import BrokerError, StorageCorrupt
from tests.reference.archive import ArchiveModel, replace_rows_in
from tests.reference.chunks import Item, chunk_from
from tests.reference.frames import Record
from tests.reference.groups import Group, parse_chunk

if TYPE_CHECKING:
    from pathlib import Path

TIME_US = 1_700_000_000 * SECOND_US
POLICIES = Policies([(b"few", Policy(messages=2)), (b"state", Policy(latest_per_key=True))])
CURSORS = {name: 9 for name in Planner(POLICIES).cursor_names}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory whose archive has a channel to trim and one to compact."""
    model = ArchiveModel()
    model.create(1, "few")
    model.create(2, "state")
    few = chunk_from(1, [Item(at, 5, TIME_US, Record(b"x")) for at in range(1, 6)])
    state = chunk_from(2, [Item(at, 5, TIME_US, Record(b"a long payload", key=b"k")) for at in range(1, 6)])
    model.commit(Group(9, 0, time_us=TIME_US, chunks=(parse_chunk(few), parse_chunk(state))))
    model.checkpoint = replace(model.checkpoint, bytes=len(few) + len(state), records=10)
    path = archive_path(tmp_path)
    path.parent.mkdir()
    model.write(path)
    return tmp_path


def change(data: Path, **rows: bytes | None) -> None:
    """Put rows into the archive behind everybody's back."""
    environment = open_lmdb(archive_path(data), 1 << 40)
    with environment.begin() as transaction:
        found = {bytes(key): bytes(value) for key, value in transaction.cursor()}
    found |= {key.encode("latin-1"): value for key, value in rows.items() if value is not None}
    replace_rows_in(environment, found)
    environment.close()


def test_a_step_is_durable_with_its_totals(data: Path) -> None:
    writer = ArchiveWriter(archive_path(data))
    before = writer.checkpoint
    step = writer.retain(POLICIES, {}, TIME_US)
    assert step == Step({b"few": 4}, CURSORS, more=True)
    assert writer.checkpoint.bytes < before.bytes
    assert writer.retain(POLICIES, step.cursors, TIME_US) == Step({}, CURSORS, more=False)
    writer.close()
    again = ArchiveWriter(archive_path(data))
    assert again.checkpoint == writer.checkpoint
    assert again.retain(POLICIES, {}, TIME_US) == Step({}, CURSORS, more=False)
    again.close()


def test_no_step_is_taken_in_the_midst_of_a_slice(data: Path) -> None:
    change(data, **{SLICE_KEY.decode(): Begun(3).pack()})
    writer = ArchiveWriter(archive_path(data))
    with pytest.raises(BrokerError, match="UNAVAILABLE"):
        writer.retain(POLICIES, {}, TIME_US)
    writer.close()


def test_damage_is_told_and_the_writer_goes_on(data: Path) -> None:
    change(data, **{"\x02\0\0\0\0\0\0\0\1": b"damaged, all of it"})
    writer = ArchiveWriter(archive_path(data))
    for _ in range(2):
        with pytest.raises(StorageCorrupt, match=r"archive\.mdb: row 020000000000000001"):
            writer.retain(POLICIES, {}, TIME_US)
    writer.close()


def test_totals_that_cannot_be_are_told(data: Path) -> None:
    change(data, **{CHECKPOINT_KEY.decode(): Checkpoint.empty().pack()})
    writer = ArchiveWriter(archive_path(data))
    with pytest.raises(StorageCorrupt, match="counts fewer bytes"):
        writer.retain(POLICIES, {}, TIME_US)
    writer.close()


def test_a_child_obeys(data: Path) -> None:
    command = {
        "do": "retain",
        "policies": POLICIES.pack(),
        "cursors": {},
        "now_us": TIME_US,
        "held": NOTHING_HELD.pack(),
    }
    answers = io.StringIO()
    writer = ArchiveWriter(archive_path(data))
    serve(writer, io.StringIO(json.dumps(command) + "\n"), answers)
    writer.close()
    _, answer = map(json.loads, answers.getvalue().splitlines())
    assert answer["state"] == "retained"
    assert Step.unpack(answer) == Step({b"few": 4}, CURSORS, more=True)


@pytest.mark.parametrize("in_process", [True, False])
def test_the_thread_takes_a_step_between_two_slices(data: Path, in_process: bool) -> None:
    archiving = Archiving(data, in_process=in_process, on_archived=lambda checkpoint: None)
    try:
        step = archiving.retain(POLICIES, {}, TIME_US).result(60)
        assert step == Step({b"few": 4}, CURSORS, more=True)
        assert archiving.retain(POLICIES, step.cursors, TIME_US).result(60).proposals == {}
    finally:
        archiving.close()
    with pytest.raises(BrokerError, match="CLOSED"):
        archiving.retain(POLICIES, {}, TIME_US)


def test_whoever_asked_hears_of_a_failure_and_may_ask_again(data: Path) -> None:
    change(data, **{"\x02\0\0\0\0\0\0\0\1": b"damaged"})
    archiving = Archiving(data, in_process=True, on_archived=lambda checkpoint: None)
    try:
        with pytest.raises(StorageCorrupt):
            archiving.retain(POLICIES, {}, TIME_US).result(60)
        with pytest.raises(StorageCorrupt):
            archiving.retain(POLICIES, {}, TIME_US).result(60)
    finally:
        archiving.close()
