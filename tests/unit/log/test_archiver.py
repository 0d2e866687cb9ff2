"""The archive's writer: slices, however they are cut short, and rebuilding."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from broker.log import durable
from broker.log.archive import Archive
from broker.log.archive_rows import CHUNK
from broker.log.archive_task import TIME_MAX_US
from broker.log.archiver import ArchiveWriter, Stopped, archive_path, aside_path
from broker.log.slice import SLICE_KEY
from broker.model.errors import BrokerError
from broker_native.chunks import chunk_expire
from tests.reference.chunks import items_of
from tests.reference.frames import Record, build_record
from tests.reference.groups import (
    Chunk,
    Group,
    build_chunk,
    build_group,
    channel_entry,
    epoch_entry,
    parse_group,
    trim_entry,
)
from tests.sizes import size
from tests.unit.log.archives import CHUNK_BYTES_REBUILT, Journal, check_archive, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.reference.slices import Model

SMALL_BYTES = 20_000
CANARY_CHANNEL = 1_000_000
LIFE_S_MAX = 0.2
KILLS = size("BROKER_ARCHIVER_KILLS", 4, 1_000)
SEED = int(os.environ.get("BROKER_SEED", random.SystemRandom().randrange(1 << 32)))


def nothing() -> None:
    """Go on between transactions."""


def stop_after(steps: int) -> Callable[[], None]:
    """Return a function that ends a slice between two transactions."""
    left = [steps]

    def between() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    return between


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of six sealed segments."""
    return Journal.make(tmp_path, 11)


@pytest.fixture
def writer(journal: Journal) -> Iterator[ArchiveWriter]:
    """The writer of that journal's archive, in small transactions."""
    one = ArchiveWriter(archive_path(journal.data), transaction_bytes=SMALL_BYTES)
    yield one
    one.close()


def test_slices_come_to_the_model(journal: Journal, writer: ArchiveWriter) -> None:
    for begin, end in ((0, 1), (1, 4), (4, 6)):
        checkpoint = writer.archive(journal.paths[begin:end], nothing)
        assert (checkpoint.ordinal, checkpoint.group) == (end, journal.segments[end - 1].last.number)
        assert check_archive(writer.path, journal.model(end)) == checkpoint == writer.checkpoint


def test_a_slice_that_was_cut_short_is_repeated_as_far(journal: Journal, writer: ArchiveWriter) -> None:
    with pytest.raises(Stopped):
        writer.archive(journal.paths[:4], stop_after(2))
    writer.close()
    again = ArchiveWriter(writer.path, transaction_bytes=SMALL_BYTES)
    try:
        assert (again.checkpoint.ordinal, again.begun_ordinal) == (0, 4)
        with pytest.raises(ValueError, match="up to segment 4 was begun"):
            again.archive(journal.paths[:3], nothing)
        again.archive(journal.paths[:5], nothing)
        assert again.begun_ordinal == 0
        assert SLICE_KEY not in rows_of(again.path)
        check_archive(again.path, journal.model(5))
    finally:
        again.close()


def test_a_missing_segment_is_named(journal: Journal, writer: ArchiveWriter) -> None:
    writer.archive(journal.paths[:1], nothing)
    with pytest.raises(BrokerError, match="a segment is missing") as refusal:
        writer.archive(journal.paths[2:], nothing)
    assert refusal.value.name == "STORAGE_CORRUPT"
    check_archive(writer.path, journal.model(1))


def test_readers_find_what_was_archived(journal: Journal, writer: ArchiveWriter) -> None:
    writer.archive(journal.paths, nothing)
    archive = Archive(writer.path)
    try:
        groups = [group for segment in journal.groups for group in segment]
        with archive.snapshot() as snapshot:
            assert snapshot.checkpoint == writer.checkpoint
            for number, channel in journal.model().channels.items():
                assert snapshot.ids([channel.created[20:]]) == [number]
                chunks = snapshot.chunks(number, 0, 1 << 30)
                assert sum(map(len, chunks)) > 0 or channel.first == channel.next
            assert snapshot.group_at(groups[3].time_us) == groups[3].number
            found, place = snapshot.groups(0, 0, 1 << 30, None)
            assert place[0] == groups[-1].number
            assert [number for number, _, _ in found] == sorted(number for number, _, _ in found)
    finally:
        archive.close()


def test_one_writer_only(journal: Journal, writer: ArchiveWriter) -> None:
    with pytest.raises(BrokerError, match=f"process {os.getpid()} on") as refusal:
        ArchiveWriter(archive_path(journal.data))
    assert refusal.value.name == "STORAGE_IN_USE"


def test_a_full_map_grows(journal: Journal) -> None:
    small = ArchiveWriter(archive_path(journal.data), map_bytes=128 * 1024)
    try:
        failures = 0
        while small.checkpoint.ordinal < 6:
            try:
                small.archive(journal.paths, nothing)
            except BrokerError:
                failures += 1
        assert 0 < failures < 8
        check_archive(small.path, journal.model())
    finally:
        small.close()


# --- Rebuilding -----------------------------------------------------------------------------------------------------


def test_a_rebuilt_archive_says_the_same(journal: Journal, writer: ArchiveWriter) -> None:
    for at in range(5):
        writer.archive(journal.paths[at : at + 1], nothing)
    result = writer.compact(nothing)
    assert (result.bytes_after, result.bytes_before > result.bytes_after) == (writer.path.stat().st_size, True)
    assert check_archive(writer.path, journal.model(5), CHUNK_BYTES_REBUILT) == writer.checkpoint
    assert not aside_path(writer.path).exists()
    writer.archive(journal.paths[5:], nothing)
    check_archive(writer.path, journal.model(), CHUNK_BYTES_REBUILT)


def test_a_rebuild_that_is_ended_leaves_the_archive(journal: Journal, writer: ArchiveWriter) -> None:
    writer.archive(journal.paths[:5], nothing)
    with pytest.raises(Stopped):
        writer.compact(stop_after(1))
    assert not aside_path(writer.path).exists()
    check_archive(writer.path, journal.model(5))
    writer.archive(journal.paths[5:], nothing)
    check_archive(writer.path, journal.model())


def test_a_slice_on_its_way_comes_first(journal: Journal, writer: ArchiveWriter) -> None:
    with pytest.raises(Stopped):
        writer.archive(journal.paths, stop_after(3))
    with pytest.raises(BrokerError, match="up to segment 6 is on its way"):
        writer.compact(nothing)
    writer.archive(journal.paths, nothing)
    writer.compact(nothing)
    check_archive(writer.path, journal.model(), CHUNK_BYTES_REBUILT)


def test_leftovers_of_a_rebuild_are_removed(journal: Journal, writer: ArchiveWriter) -> None:
    writer.close()
    aside_path(writer.path).write_bytes(b"half of it")
    ArchiveWriter(writer.path).close()
    assert not aside_path(writer.path).exists()


def test_a_reader_goes_over_to_the_rebuilt_file(journal: Journal, writer: ArchiveWriter) -> None:
    writer.archive(journal.paths, nothing)
    archive = Archive(writer.path)
    try:
        before = {}
        numbers = sorted(journal.model().channels)
        with archive.snapshot() as snapshot:
            before = {number: snapshot.sequence_at(number, 1 << 60) for number in numbers}
        writer.compact(nothing)
        archive.reopen()
        with archive.snapshot() as snapshot:
            assert snapshot.checkpoint == writer.checkpoint
            assert {number: snapshot.sequence_at(number, 1 << 60) for number in numbers} == before
    finally:
        archive.close()


def test_a_full_disk_leaves_the_archive(
    journal: Journal, writer: ArchiveWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.archive(journal.paths[:5], nothing)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "adopt_file", full)
        with pytest.raises(BrokerError) as refusal:
            writer.compact(nothing)
    assert refusal.value.name == "STORAGE_FULL"
    assert not aside_path(writer.path).exists()
    check_archive(writer.path, journal.model(5))


CANARY = b"canary in the coal mine"


def with_canary(journal: Journal, *, trimmed: bool) -> Model:
    """Add a segment whose canary is trimmed or has expired by the time of the next one; returns what is left."""
    before = journal.groups[-1][-1]
    number, time_us = before.number, before.time_us + 1_000
    records = [Record(payload=CANARY, expiry_s=None if trimmed else 60), Record(payload=b"stays")]
    expiry_s = 0 if trimmed else time_us // 1_000_000 + 60
    content = b"".join(map(build_record, records))
    chunk = Chunk(CANARY_CHANNEL, number, 1, 2, content, time_us, expiry_s)
    entries = (channel_entry(CANARY_CHANNEL, "coal.mine"), epoch_entry(CANARY_CHANNEL, number, 1))
    published = Group(number + 1, number, before.chain, entries, (chunk,), time_us=time_us)
    published = parse_group(build_group(published))
    trim = (trim_entry(CANARY_CHANNEL, 2),) if trimmed else ()
    after = Group(number + 2, number + 1, published.chain, trim, (), time_us=time_us + 61_000_000)
    journal.add([published])
    journal.add([parse_group(build_group(after))])
    model = journal.model()
    if not trimmed:
        model.channels[CANARY_CHANNEL].items = items_of(chunk_expire(build_chunk(chunk), after.time_us // 1_000_000))
    return model


@pytest.mark.parametrize("trimmed", [True, False], ids=["trimmed", "expired"])
def test_what_is_gone_is_in_no_file_after_a_rebuild(journal: Journal, writer: ArchiveWriter, trimmed: bool) -> None:
    model = with_canary(journal, trimmed=trimmed)
    writer.archive(journal.paths[:-1], nothing)
    writer.archive(journal.paths[-1:], nothing)
    assert CANARY in writer.path.read_bytes()
    writer.compact(nothing)
    check_archive(writer.path, model, CHUNK_BYTES_REBUILT)
    assert CANARY not in writer.path.read_bytes()
    assert b"stays" in writer.path.read_bytes()


def test_what_has_expired_by_the_time_of_groups_alone_stays(journal: Journal, writer: ArchiveWriter) -> None:
    """They may have been written under a wrong clock: a rebuild goes by the earlier of two times."""
    with_canary(journal, trimmed=False)
    writer.archive(journal.paths, nothing)
    writer.compact(nothing, journal.groups[-2][0].time_us)
    assert CANARY in writer.path.read_bytes()
    writer.compact(nothing, writer.checkpoint.time_us)
    assert CANARY not in writer.path.read_bytes()


def test_a_rebuild_names_damage(journal: Journal, writer: ArchiveWriter) -> None:
    writer.archive(journal.paths, nothing)
    writer.close()
    chunks = sorted(value for key, value in rows_of(writer.path).items() if key[0] == CHUNK)
    content = bytearray(writer.path.read_bytes())
    content[content.index(chunks[0]) + 80] ^= 1
    writer.path.write_bytes(content)
    again = ArchiveWriter(writer.path)
    try:
        with pytest.raises(BrokerError, match="the chunk of channel") as refusal:
            again.compact(nothing)
        assert refusal.value.name == "STORAGE_CORRUPT"
        assert not aside_path(writer.path).exists()
    finally:
        again.close()


# --- The child process ------------------------------------------------------------------------------------------------


class Child:
    """The child process, spoken to line by line."""

    def __init__(self, data: Path, *options: str) -> None:
        command = [sys.executable, "-m", "broker.log.archiver", "--data", str(data), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, object]:
        assert self.process.stdout is not None
        answer: dict[str, object] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(30)


def test_the_child_obeys_until_its_pipe_is_closed(journal: Journal) -> None:
    child = Child(journal.data)
    assert child.hear()["state"] == "ready"
    child.process.send_signal(signal.SIGINT)
    child.say(do="archive", segments=[str(path) for path in journal.paths])
    while (answer := child.hear())["state"] == "step":
        child.say(do="go")
    assert answer["state"] == "archived"
    child.say(do="archive", segments=[str(journal.paths[0])])
    assert (child.hear()["state"], child.end()) == ("failed", 0)
    check_archive(archive_path(journal.data), journal.model())


def test_the_child_says_nothing_on_a_server_s_standard_error(journal: Journal) -> None:
    command = [sys.executable, "-m", "broker.log.archiver", "--data", str(journal.data)]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=True)
    assert (json.loads(done.stdout)["state"], done.stderr) == ("ready", "")


def test_a_second_child_says_who_owns_the_archive(journal: Journal, writer: ArchiveWriter) -> None:
    child = Child(journal.data)
    answer = child.hear()
    assert (answer["state"], str(os.getpid()) in str(answer["detail"])) == ("failed", True)
    assert child.end() == 1


def drive(child: Child, journal: Journal, said: set[object]) -> None:
    """Have a child archive everything and then rebuild the archive again and again, until it is gone."""
    with suppress(OSError, ValueError):
        child.say(do="archive", segments=[str(path) for path in journal.paths])
        while True:
            state = child.hear()["state"]
            said.add(state)
            child.say(do="go") if state == "step" else child.say(do="compact", now_us=TIME_MAX_US)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """BROKER_ARCHIVER_KILLS chooses how often, BROKER_SEED the journal and the moments."""
    print(f"BROKER_SEED={SEED}")
    pick = random.Random(SEED)
    journal = Journal.make(tmp_path, SEED, 12, names=20, payload_bytes=15_000)
    path = archive_path(tmp_path)
    said: set[object] = set()
    for kill in range(KILLS):
        if kill % 4 == 0:
            path.unlink(missing_ok=True)
        child = Child(tmp_path, "--transaction-bytes", str(SMALL_BYTES))
        assert child.hear()["state"] == "ready"
        driver = threading.Thread(target=drive, args=(child, journal, said))
        driver.start()
        time.sleep(pick.uniform(0, pick.choice((LIFE_S_MAX / 10, LIFE_S_MAX))))
        assert child.process.poll() is None, "it ended by itself"
        child.process.kill()
        driver.join()
        child.end()
    # It fails where the archive has the segments already.
    assert said <= {"step", "archived", "compacted", "failed"}
    last = ArchiveWriter(path)
    try:
        if last.checkpoint.ordinal == 0:
            last.archive(journal.paths, nothing)
    finally:
        last.close()
    check_archive(path, journal.model(), CHUNK_BYTES_REBUILT)
