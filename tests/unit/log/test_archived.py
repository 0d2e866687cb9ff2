"""A log with its archive: whatever lies where, reading and looking up tell the same, also while it moves."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from broker.core.lines import Lines
from broker.log import AppendFull, ArchiveBy, Log
from broker.log.archiver import ArchiveWriter, archive_path
from broker.log.segment import open_segment
from broker.model.errors import StorageError
from broker.node.stretch import Known
from broker_native.groups import chunk_cut
from broker_native.tails import Tails
from tests.formats.make import unpack
from tests.reference.chains import Chain
from tests.reference.groups import (
    Entry,
    Tables,
    build_entry,
    channel_entry,
    close_entry,
    drop_entry,
    epoch_entry,
    head_entry,
    line_entry,
    run_entry,
    trim_entry,
)
from tests.unit.log.support import KIB, Opened, last_sequence, opened, segment_files

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(__file__).parent / "golden"
WAIT_S = 60
PRODUCER = b"archived-line-01"


class Story:
    """A chain whose channels are named and begin as the broker's do.

    Attributes:
        chain: the chain.
        ids: the channel of each name that there is.
        line: the last number of the producer's line.
    """

    def __init__(self) -> None:
        self.chain = Chain(run=3)
        self.ids: dict[str, int] = {}
        self.line = 0
        self._id = 0

    def groups(self, one: Opened, count: int, payload_bytes: int = 500) -> None:
        """Append groups of three chunks each, and of what creating channels takes."""
        for _ in range(count):
            number = self.chain.number + 1
            self.group(one, [f"story.{number * step % 11}" for step in (1, 2, 5)], payload_bytes)

    def group(self, one: Opened, names: list[str], payload_bytes: int = 500) -> None:
        """Append a group with a chunk for each name."""
        entries: list[Entry] = []
        for name in names:
            if name not in self.ids:
                self._id += 1
                self.ids[name] = self._id
                entries += [channel_entry(self._id, name), epoch_entry(self._id, self.chain.number + 1, 1)]
        channels = list(dict.fromkeys(self.ids[name] for name in names))
        self.line += 1
        entries.append(line_entry(PRODUCER, self.line, 1, [(channels[0], 1, 1)]))
        number = self.chain.number + 1
        one.append(
            self.chain, [(channel, [bytes([number % 251]) * payload_bytes, b""]) for channel in channels], entries
        )

    def drop(self, one: Opened, name: str) -> None:
        """Append the removal of a channel."""
        one.append(self.chain, [], [drop_entry(self.ids.pop(name))])

    def check(self, one: Opened) -> None:
        """Compare everything that can be asked with what was appended, once no group is in memory alone."""
        if one.log.settled_group < self.chain.last:
            one.log.rotate()
            assert one.log.wait_sealed(WAIT_S)
        assert one.log.settled_group == self.chain.last
        tables = self.chain.tables()
        loaded = Tables()
        one.log.load_all(loaded)
        tables.runs = loaded.runs = []
        assert loaded == tables
        names = sorted(name.encode() for name in self.ids)
        assert one.log.names(b"", b"", 5) == names[:5]
        assert one.log.names(b"story.1", b"", 100) == [name for name in names if name.startswith(b"story.1")]
        found = Tables()
        for name, entries in zip(names, one.log.resolve(names), strict=True):
            assert entries, name
            found.apply_entries(entries)
        assert (found.channels, found.epochs, found.heads) == (tables.channels, tables.epochs, tables.heads)
        assert one.log.resolve([b"nobody", b"story.999"]) == [b"", b""]
        assert one.log.names_of([*self.ids.values(), 10**6]) == [*[name.encode() for name in self.ids], None]
        for entry in one.log.resolve_lines([PRODUCER, bytes(16)]):
            found.apply_entries(entry)
        assert found.lines == tables.lines
        for channel in self.ids.values():
            self.check_channel(one, channel)
        live = set(self.ids.values())
        assert [chunk for chunk in one.all_groups() if channel_of(chunk[2]) in live] == [
            chunk for chunk in self.chain.bus() if channel_of(chunk[2]) in live
        ]

    def check_channel(self, one: Opened, channel: int) -> None:
        """Compare a channel's records, read forwards and backwards."""
        whole = records_of([chunk for _, _, chunk in self.chain.channel(channel)])
        assert read_whole(one, channel) == whole
        last = max(whole)
        back = records_of([chunk for _, _, chunk in one.log.read_channel_back(channel, last + 1, 7, 100 * KIB)])
        assert {sequence: back[sequence] for sequence in back if sequence > last - 7} == {
            sequence: whole[sequence] for sequence in whole if sequence > last - 7
        }
        assert list(back) == list(range(min(back), last + 1))


def read_whole(one: Opened, channel: int, bytes_max: int = 3 * KIB) -> dict[int, bytes]:
    """Read a channel slice by slice, as a reader does: what a slice brings once more is cut off."""
    chunks: list[bytes] = []
    last = 0
    while found := one.log.read_channel(channel, last, bytes_max):
        for _, _, chunk in found:
            chunks.append(chunk if int.from_bytes(chunk[24:32], "little") > last else chunk_cut(chunk, last))
            last = last_sequence([(0, 0, chunk)])
    return records_of(chunks)


def channel_of(chunk: bytes) -> int:
    return int.from_bytes(chunk[8:16], "little")


def records_of(chunks: list[bytes]) -> dict[int, bytes]:
    """Return the payloads by their sequences; a sequence that comes twice fails."""
    found: dict[int, bytes] = {}
    for chunk in chunks:
        sequence, at = int.from_bytes(chunk[24:32], "little"), 56
        while at < len(chunk):
            size = int.from_bytes(chunk[at : at + 4], "little")
            assert sequence not in found
            found[sequence] = chunk[at + 12 : at + size]
            sequence, at = sequence + 1, at + size
    return found


@contextmanager
def archiving(path: Path, **options: Any) -> Iterator[Opened]:
    """Open a log of small segments that are archived at once, by a thread."""
    log = Log.open(
        path,
        segment_bytes=64 * KIB,
        reserve_bytes=0,
        group_bytes_max=64 * KIB,
        archive_by=ArchiveBy.THREAD,
        **options,
    )
    try:
        one = Opened(log)
        assert log._archiving is not None
        log._archiving._segments_min, log._archiving._wait_s = 1, 0.0
        yield one
    finally:
        log.close()


def wait_archived(one: Opened) -> None:
    """Wait until every sealed segment is in the archive and gone."""
    assert one.log.wait_sealed(WAIT_S)
    until_s = time.monotonic() + WAIT_S
    folder = one.log._directory.path
    # The active segment, and the one that is ready.
    while one.log.stats()["sealed"] or len(segment_files(folder)) > 2:
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_what_is_stored_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    """Cut into archive, sealed segments, an unsealed one of the run before, and the active one."""
    story = Story()
    with archiving(tmp_path) as one:
        story.groups(one, 60)
        story.group(one, ["story.0", "gone.1"])
        one.log.rotate()
        wait_archived(one)
        assert one.log.archived_group > 0
        assert one.log.stats()["archived_bytes"] > 0
    with opened(tmp_path) as one:
        story.drop(one, "gone.1")
        story.groups(one, 120)
        story.group(one, ["gone.1", "late.1"])
        assert one.log.wait_sealed(WAIT_S)
        assert one.log.stats()["sealed"] >= 2
    with opened(tmp_path) as one:
        story.check(one)
        recovery = one.recovery
        assert (recovery.group, recovery.chain) == (story.chain.last, story.chain.last_chain)
        assert (recovery.channels, recovery.producers) == (len(story.ids), 1)
        assert recovery.id_next == max(story.ids.values()) + 1
        assert recovery.groups < 120
        assert one.log.settled_group == story.chain.last
        assert not recovery.empty
        for step in range(0, 200, 7):
            time_us = 1_000_000 + step * 1_000
            expected = next(
                (group for group, value in story.chain.values.items() if group * 1_000 >= step * 1_000), None
            )
            assert one.log.time_to_group(time_us) == max(expected or story.chain.last + 1, 1)
    with archiving(tmp_path) as one:
        wait_archived(one)
        story.check(one)
        story.groups(one, 200)
        wait_archived(one)
        one.log.rotate()
        wait_archived(one)
        assert one.log.archived_group == one.log.settled_group == story.chain.last
        assert len(segment_files(tmp_path)) <= 2
        story.check(one)
    with opened(tmp_path) as one:
        story.check(one)
        assert one.recovery.groups == 0


def test_trims_and_the_ends_of_runs_are_known(tmp_path: Path) -> None:
    story = Story()
    with opened(tmp_path) as one:
        one.append(story.chain, [], [run_entry(3, False)])
        story.groups(one, 5)
        story.groups(one, 100)
        one.append(story.chain, [], [trim_entry(story.ids["story.2"], 9)])
        one.append(story.chain, [], [close_entry(3)])
        one.log.rotate()
        assert one.log.wait_sealed(WAIT_S)
    with opened(tmp_path) as one:
        assert (one.recovery.unclean_run, one.recovery.run, one.recovery.clean) == (2, 3, True)
        assert one.tables.heads[story.ids["story.2"]][2] == 9
        assert one.log.settled_group == story.chain.last
        story.groups(one, 1)
        assert one.log.settled_group == story.chain.last - 1


@pytest.mark.parametrize("archived", [False, True])
def test_a_trim_past_the_heads_before_it_counts_whole(tmp_path: Path, archived: bool) -> None:
    """Records, more records, a trim of both, and a last record, each in a segment: only the last head is looked up."""
    chain = Chain(run=3)
    with opened(tmp_path) as one:
        one.append(chain, [(1, [b"a", b"b", b"c"])], [channel_entry(1, "trimmed"), epoch_entry(1, 7, 1)])
        one.log.rotate()
        if archived:
            assert one.log.wait_sealed(WAIT_S)
            with closing(ArchiveWriter(archive_path(tmp_path))) as writer:
                writer.archive(segment_files(tmp_path)[:1], lambda: None)
        for chunks, entries in (
            ([(1, [b"d", b"e", b"f"])], []),
            ([], [trim_entry(1, 6)]),
            ([(1, [b"g"])], []),
        ):
            one.append(chain, chunks, entries)
            one.log.rotate()
        assert one.log.wait_sealed(WAIT_S)
        (entries_found,) = one.log.resolve([b"trimmed"])
    tails = Tails(1, 1)
    tails.apply_entries(entries_found, Lines().line)
    info = tails.info(b"trimmed")
    assert info is not None
    known = Known.from_entries(entries_found)
    assert (info[3], info[4]) == (known.first, known.next) == (6, 8)


def test_the_newest_head_does_not_undo_a_trim() -> None:
    """The heads of segments begin with 1 when the segment does not know better."""
    entries = [
        channel_entry(1, "trimmed"),
        epoch_entry(1, 7, 1),
        head_entry(1, 7, 7, 1),
        trim_entry(1, 6),
        head_entry(1, 7, 8, 1),
    ]
    known = Known.from_entries(b"".join(map(build_entry, entries)))
    assert (known.first, known.next) == (6, 8)


def test_a_reading_says_that_it_was_overtaken(tmp_path: Path) -> None:
    story = Story()
    with opened(tmp_path) as one:
        story.groups(one, 30)
        one.log.rotate()
        assert one.log.wait_sealed(WAIT_S)
        channel = story.ids["story.2"]
        sealed = one.log._segments()[0]
        whole = one.log.read_channel(channel, 0, 100 * KIB)
        with one.log.reading() as reading:
            assert reading.read_channel(channel, 0, 100 * KIB) == whole
            assert reading.read_channel_back(channel, last_sequence(whole) + 1, 1, 100 * KIB) == whole[-1:]
            assert not reading.overtaken
            # As the archive's owner does when it has taken the segment in.
            sealed.file.close()
            sealed.path.rename(tmp_path / "elsewhere")
            with pytest.raises(StorageError):
                reading.read_channel(channel, 0, 100 * KIB)
            assert not reading.overtaken
            sealed.gone = True
            assert reading.overtaken


def test_readers_beside_the_archiver_see_every_record_once(tmp_path: Path) -> None:
    story = Story()
    failures: list[BaseException] = []
    reads = [0]
    with archiving(tmp_path) as one:
        story.groups(one, 20)
        ended = threading.Event()

        def read() -> None:
            try:
                while not ended.is_set():
                    for name, channel in list(story.ids.items()):
                        found = read_whole(one, channel)
                        assert list(found) == list(range(1, len(found) + 1))
                        tail = one.log.read_channel_back(channel, len(found) + 1, 9, 20 * KIB)
                        assert last_sequence(tail) >= len(found)
                        assert one.log.names_of([channel])[0] in (name.encode(), None)
                        reads[0] += 1
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            story.groups(one, 25)
        wait_archived(one)
        ended.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert reads[0] > 0
        story.check(one)


def test_an_archive_ahead_of_its_checkpoint_is_read_once(tmp_path: Path) -> None:
    """A slice that was cut short: chunks, epochs and lines are in the archive and in the segments as well."""
    story = Story()
    with opened(tmp_path) as one:
        story.groups(one, 100)
        one.append(story.chain, [(1, [b"x"])], [epoch_entry(1, 900, 40)])
        story.groups(one, 100)
        one.append(story.chain, [(1, [b"x"])], [epoch_entry(1, 901, 80)])
        one.log.rotate()
        assert one.log.wait_sealed(WAIT_S)
        sealed = [segment.path for segment in one.log._segments() if segment.sealed]
        for steps in range(3):
            writer = ArchiveWriter(tmp_path / "archive" / "archive.mdb", open_segment, transaction_bytes=8 * KIB)
            left = [steps]

            def stop(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise InterruptedError

            with pytest.raises(InterruptedError):
                writer.archive(sealed, stop)
            writer.close()
            story.check(one)
    with archiving(tmp_path) as one:
        wait_archived(one)
        story.check(one)


def test_commits_slow_down_and_are_refused_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    with archiving(tmp_path, backlog_bytes_max=400 * KIB) as one:
        archive = one.log._archiving
        assert archive is not None
        archive._segments_min, archive._wait_s = 10**6, 1e6
        with pytest.raises(AppendFull, match="wait for it, limit"):
            story.groups(one, 10_000)
        stats = one.log.stats()
        assert stats["commit_refusals"] == 1
        assert stats["commit_delays"] > 1
        assert stats["commit_delay_s"] > 0
        assert 300 * KIB < stats["archive_backlog_bytes"] < 600 * KIB
        # What was refused was never stored, and its number may be used again.
        story.chain.number = story.chain.last
        story.line -= 1
        archive._segments_min, archive._wait_s = 1, 0.0
        with archive._condition:
            archive._condition.notify_all()
        wait_archived(one)
        story.groups(one, 5)
        story.check(one)


def test_a_directory_of_format_1_opens_and_is_archived(tmp_path: Path) -> None:
    unpack(GOLDEN / "format-1.tar.xz", tmp_path)
    said: dict[str, list[list[Any]]] = json.loads((GOLDEN / "format-1.json").read_text())
    data = tmp_path / "data"
    for opening in (opened, opened, archiving, opened):
        with opening(data) as one:
            assert (data / "format").read_text().startswith("broker data 2\n")
            assert one.log.names(b"", b"", 100) == sorted(name.encode() for name in said)
            assert one.recovery.channels == len(said)
            for name, messages in said.items():
                found = Tables()
                found.apply_entries(one.log.resolve([name.encode()])[0])
                (channel,) = found.channels
                payloads = read_whole(one, channel)
                assert [payloads[sequence].decode() for _, sequence, _ in messages] == [text for _, _, text in messages]
                assert found.heads[channel][1] == len(messages) + 1
                epochs = found.epochs[channel]
                assert messages[0][0] == epochs[0][0]
            if opening is archiving:
                one.log.rotate()
                wait_archived(one)
                assert one.log.archived_group == one.recovery.group


def test_an_archive_that_is_missing_is_an_error(tmp_path: Path) -> None:
    story = Story()
    with archiving(tmp_path) as one:
        story.groups(one, 60)
        wait_archived(one)
    (tmp_path / "archive" / "archive.mdb").unlink()
    log = Log.open(tmp_path, reserve_bytes=0)
    with pytest.raises(StorageError):
        log.recover()
    log.close()


def test_segments_that_the_archive_has_are_removed_at_the_start(tmp_path: Path) -> None:
    """Killed between the checkpoint and the removal."""
    story = Story()
    with opened(tmp_path) as one:
        story.groups(one, 100)
        assert one.log.wait_sealed(WAIT_S)
        sealed = [segment.path for segment in one.log._segments() if segment.sealed]
        writer = ArchiveWriter(tmp_path / "archive" / "archive.mdb", open_segment)
        writer.archive(sealed, lambda: None)
        writer.close()
        story.check(one)
    with opened(tmp_path) as one:
        assert not set(sealed) & set(segment_files(tmp_path))
        story.check(one)


def test_a_chunk_is_cut_at_the_seam() -> None:
    """`chunk_cut` is what the seam rests on."""
    chain = Chain()
    chain.commit(chain.build([(1, [b"a", b"b", b"c"])]))
    assert records_of([chunk_cut(chain.bus()[0][2], 2)]) == {3: b"c"}


def test_a_compaction_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the archive counts, and then the archive, as the new file grows."""
    monkeypatch.setattr("broker.log.log.COMPACT_POLL_S", 0.001)
    told: list[tuple[int, int]] = []
    log = Log.open(tmp_path, segment_bytes=16 * KIB, archive_by=ArchiveBy.THREAD, reserve_bytes=0)
    try:
        Story().groups(Opened(log), 30)
        result = log.compact(lambda done, total: told.append((done, total)))
    finally:
        log.close()
    assert result.bytes_after > 0
    assert told[0][0] == 0
    assert told[0][1] >= 16 * KIB
    assert all(0 <= done <= total for done, total in told)
    assert max(done for done, _ in told) > 0
