"""The owner's side of archiving: queue, child and thread, failures and what is said of them, rebuilding, ending."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from broker.log import archiving
from broker.log.archive import Archive
from broker.log.archiver import ArchiveWriter, CompactResult, Stopped, archive_path
from broker.log.archiving import Archiving, ChildWriter
from broker.log.begin import BEGIN_SHARE
from broker.model.errors import BrokerError
from tests.unit.log.archives import CHUNK_BYTES_REBUILT, Journal, check_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.log.archive_rows import Checkpoint

WAIT_S = 30.0


class Owner:
    """Starts an archiving and waits for what it reports."""

    def __init__(self, journal: Journal, **options: object) -> None:
        self.journal = journal
        self.reported: list[int] = []
        self.compacted: list[CompactResult] = []
        self._condition = threading.Condition()
        self.archiving = Archiving(
            journal.data,
            on_archived=self._on_archived,
            on_compacted=self.compacted.append,
            **{"wait_s": 0.0, **options},  # type: ignore[arg-type]
        )

    def _on_archived(self, checkpoint: Checkpoint) -> None:
        with self._condition:
            self.reported.append(checkpoint.ordinal)
            self._condition.notify_all()

    def queue(self, begin: int = 0, end: int | None = None) -> None:
        for segment in self.journal.segments[begin:end]:
            self.archiving.queue(segment)

    def wait_for(self, ordinal: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.reported[-1:] == [ordinal], WAIT_S)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of six sealed segments."""
    return Journal.make(tmp_path, 23)


@pytest.fixture(params=[True, False], ids=["thread", "child"])
def in_process(request: pytest.FixtureRequest) -> bool:
    """Whether the archiving does the writing itself."""
    chosen: bool = request.param
    return chosen


@pytest.fixture
def owner(journal: Journal, in_process: bool) -> Iterator[Owner]:
    """An archiving with nothing queued."""
    one = Owner(journal, in_process=in_process)
    yield one
    one.archiving.close()


def test_archives_what_is_queued(journal: Journal, owner: Owner) -> None:
    owner.queue(0, 2)
    owner.wait_for(2)
    owner.queue(2)
    owner.wait_for(6)
    assert owner.archiving.backlog_bytes == 0
    stats = owner.archiving.stats()
    assert (stats["archive_backlog"], stats["archive_failures"]) == (0, 0)
    assert stats["archive_written_bytes"] > 0
    owner.archiving.close()
    check_archive(archive_path(journal.data), journal.model())


def test_slices_are_as_wide_as_the_backlog(journal: Journal) -> None:
    """None begins before there is enough for it; then it takes all that waits, up to the bound."""
    enough = sum(path.stat().st_size for path in journal.paths)
    bound = int(enough / BEGIN_SHARE)
    owner = Owner(journal, in_process=True, quiet_s=60.0, wait_s=60.0, segments_max=5, backlog_bytes_max=bound)
    try:
        owner.queue(0, 5)
        time.sleep(0.05)
        assert owner.reported == []
        owner.queue(5)
        owner.wait_for(5)
        assert owner.reported == [5]
        assert owner.archiving.backlog_bytes == journal.paths[5].stat().st_size
    finally:
        owner.archiving.close()


def test_what_is_archived_already_is_reported_at_once(journal: Journal, in_process: bool) -> None:
    writer = ArchiveWriter(archive_path(journal.data))
    writer.archive(journal.paths[:4], lambda: None)
    writer.close()
    owner = Owner(journal, in_process=in_process)
    try:
        # The process that archived them did not live to remove them.
        owner.queue()
        owner.wait_for(6)
        assert owner.reported[0] == 4
    finally:
        owner.archiving.close()


def test_rebuilds_behind_what_was_queued(journal: Journal, owner: Owner) -> None:
    owner.queue(0, 5)
    result = owner.archiving.compact().result(WAIT_S)
    assert (owner.reported[-1], owner.compacted) == (5, [result])
    owner.queue(5)
    owner.wait_for(6)
    owner.archiving.close()
    assert check_archive(archive_path(journal.data), journal.model(), CHUNK_BYTES_REBUILT).ordinal == 6


def test_a_reader_of_the_same_process_goes_over(journal: Journal) -> None:
    """The thread writes through the environment that readers have open."""
    path = archive_path(journal.data)
    ArchiveWriter(path).close()
    archive = Archive(path)
    owner = Owner(journal, in_process=True)
    owner.archiving._on_compacted = lambda _: archive.reopen()
    try:
        owner.queue(0, 5)
        owner.archiving.compact().result(WAIT_S)
        owner.queue(5)
        owner.wait_for(6)
        with archive.snapshot() as snapshot:
            assert snapshot.checkpoint.ordinal == 6
    finally:
        owner.archiving.close()
        archive.close()


def test_a_killed_child_is_started_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archiving, "RETRY_S", 0.01)
    killed: list[int] = []
    started = ChildWriter.__init__

    def start_and_kill(self: ChildWriter, data: Path) -> None:
        started(self, data)
        if len(killed) < 2:
            killed.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(ChildWriter, "__init__", start_and_kill)
    owner = Owner(journal, in_process=False)
    try:
        owner.queue()
        owner.wait_for(6)
        assert owner.archiving.stats()["archive_failures"] == 2
    finally:
        owner.archiving.close()
    assert len(killed) == 2
    check_archive(archive_path(journal.data), journal.model())


def test_damage_is_told_and_nothing_is_taken_over(journal: Journal, in_process: bool) -> None:
    content = bytearray(journal.paths[3].read_bytes())
    # Every page but the metas' is struck, so whatever is read first is wrong.
    for page in range(2, len(content) // 4096):
        content[page * 4096 + 100] ^= 0xFF
    journal.paths[3].write_bytes(content)
    owner = Owner(journal, in_process=in_process)
    try:
        owner.queue()
        deadline = threading.Event()
        while not owner.archiving.stats()["archive_failures"]:
            assert not deadline.wait(0.01)
        assert owner.reported == []
    finally:
        owner.archiving.close()


def test_ends_between_two_transactions(journal: Journal, owner: Owner) -> None:
    owner.queue()
    owner.archiving.close()
    # As far as it came, an archiving that follows goes on.
    again = Owner(journal, in_process=True)
    try:
        again.queue()
        again.wait_for(6)
    finally:
        again.archiving.close()
    with pytest.raises(BrokerError) as refusal:
        again.archiving.compact()
    assert refusal.value.name == "CLOSED"
    check_archive(archive_path(journal.data), journal.model())
    shutil.rmtree(journal.data)


def test_a_rebuild_waits_for_the_rest_of_a_slice(journal: Journal) -> None:
    """What was cut short is gone through with first, however long its segments take to be queued."""

    def stop() -> None:
        raise Stopped

    writer = ArchiveWriter(archive_path(journal.data), transaction_bytes=1)
    with pytest.raises(Stopped):
        writer.archive(journal.paths, stop)
    writer.close()
    owner = Owner(journal, in_process=True)
    try:
        future = owner.archiving.compact()
        owner.queue(0, 3)
        with pytest.raises(TimeoutError):
            future.result(0.05)
        owner.queue(3)
        future.result(WAIT_S)
        assert owner.reported == [6]
    finally:
        owner.archiving.close()
    check_archive(archive_path(journal.data), journal.model(), CHUNK_BYTES_REBUILT)
