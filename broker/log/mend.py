"""Makes a damaged journal open again: what is sound is written anew, the files as they were are kept aside.

    <data>/quarantine/<time>/journal     the journal as it was found, every file of it
    <data>/journal                       the sound groups, in their order

No position may name two messages, so what is lost is said in the log itself. Where a later chunk shows a gap, a run of
`gone` records (reason: lost) stands in its place; an epoch whose beginning is lost begins with that run. Groups behind
a hole name the one before it as their predecessor and are chained anew. What was lost without a trace, at the end of a
channel, cannot be told from what never was: so whenever anything is lost the directory counts as restored, and every
channel begins a new epoch with its next message (`Directory.restored_run`), and bus positions end with the journal's
identity. If only what is made from the groups was wrong (seals, indexes, pages), nothing of that happens.

The files in quarantine are never removed here.
"""

from __future__ import annotations

import secrets
import shutil
import struct
import time
from typing import TYPE_CHECKING

from broker.log import durable
from broker.log.archive_task import ARCHIVE_FOLDER
from broker.log.directory import FORMAT, write_identity, write_restored
from broker.log.environment import create_file, open_lmdb
from broker.log.log import map_bytes_for
from broker.log.parts import (
    CHAIN_AT,
    CHUNK_HEADER,
    ENTRY_EPOCH,
    FLAG_GONE,
    GONE_LOST,
    GROUP_HEADER,
    PREVIOUS_CHAIN_AT,
    chunks_of,
    entries_in,
    entries_of,
)
from broker.log.sealer import segment_path
from broker.log.segment import Link, group_key
from broker.log.verify import Channels, Report, Verifier
from broker.model.errors import error
from broker_native.crc32c import crc32c_of
from broker_native.index import check_group

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker_native.index import GroupHeader

BATCH_BYTES = 4 * 1024 * 1024
RUNS_SKIPPED = 1 << 10
_GONE = struct.Struct("<IHHIB3xI")
_EPOCH = struct.Struct("<IHHQQQ")
_U32 = struct.Struct("<I")


def loses(report: Report) -> bool:
    """Tell whether mending what a report names loses anything that was stored."""
    return any(not fault.mendable for fault in report.faults)


def mend(path: Path, report: Report, progress: Callable[[int, int], None]) -> Path:
    """Write a journal anew from what is sound of it, and keep the old one aside. The directory's lock is held.

    Args:
        path: the data directory.
        report: what is wrong with it.
        progress: called with (bytes looked at, bytes in all).

    Returns:
        The folder in quarantine.

    Raises:
        StorageError: STORAGE_CORRUPT when the archive is damaged, which cannot be mended; STORAGE_FULL, STORAGE_FAILED.
            The directory is as it was.
    """
    if any(fault.file.startswith(ARCHIVE_FOLDER) for fault in report.faults):
        hint = "Restore a backup, or dump what can be read of it and load that into a new directory."
        raise error("STORAGE_CORRUPT", f"{path / ARCHIVE_FOLDER}: a damaged archive cannot be mended", hint)
    fresh = path / ("journal" + durable.ASIDE_SUFFIX)
    shutil.rmtree(fresh, ignore_errors=True)
    durable.make_folder(fresh)
    verifier = Verifier(path, progress)
    rebuild = Rebuild(fresh, verifier)
    verifier.on_group = rebuild.take
    try:
        verifier.run()
        rebuild.close()
    except BaseException:
        rebuild.abandon()
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        verifier.close()
    durable.sync_path(fresh)
    if loses(report):
        # Before anything changes its place: new epochs harm nobody, and without them a position could.
        write_restored(path, rebuild.last.run + RUNS_SKIPPED)
        write_identity(path, data_format_of(path), secrets.token_bytes(16))
    return _swap(path, fresh)


def _swap(path: Path, fresh: Path) -> Path:
    """Put the journal into quarantine and the fresh one into its place; between the two nothing opens."""
    quarantine = path / "quarantine"
    if not quarantine.exists():
        durable.make_folder(quarantine)
    aside = quarantine / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    durable.make_folder(aside)
    (path / "journal").rename(aside / "journal")
    durable.sync_path(aside)
    fresh.rename(path / "journal")
    durable.sync_path(path)
    return aside


def data_format_of(path: Path) -> int:
    """Return the format that a directory says it has, this version's when it cannot be read."""
    words = (path / "format").read_bytes()[:64].split() if (path / "format").exists() else []
    return int(words[2]) if len(words) > 2 and words[2].isdigit() and int(words[2]) <= FORMAT else FORMAT


class Rebuild:
    """Writes sound groups into fresh segments, with runs of lost sequences where they were.

    A group stays in the segment that it was in: the archive knows by ordinals how far it has come, and how far the
    slice goes that it may be in the middle of.

    Args:
        folder: of the fresh segments.
        verifier: whose walk calls `take`; it knows where the archive ends, and in which segment the walk is.

    Attributes:
        last: the last group that was written.
    """

    def __init__(self, folder: Path, verifier: Verifier) -> None:
        self.last: Link = Link()
        self._folder = folder
        self._ordinal = 0
        self._verifier = verifier
        self._channels = Channels()
        self._begun = False
        self._batch: list[tuple[int, bytes]] = []
        self._batch_bytes = self._segment_bytes = 0

    def take(self, header: GroupHeader, value: bytes) -> None:
        """Write one group that is sound by itself."""
        if not self._begun:
            self._begun = True
            self.last = self._verifier.reached
            self._channels.archive = self._verifier.channels.archive
        if header.number <= self.last.number:
            return
        if self._ordinal != self._verifier.ordinal:
            self._flush()
            self._ordinal, self._segment_bytes = self._verifier.ordinal, 0
        entries, chunks = self._judge(value)
        same = chunks is None and (header.predecessor, header.previous_chain) == (self.last.number, self.last.chain)
        if not same:
            whole = chunks if chunks is not None else [value[GROUP_HEADER.size + len(entries_of(value)) :]]
            count = header.chunks if chunks is None else len(chunks)
            value = self._build(value, entries, b"".join(whole), count)
        self.last = Link.after(check_group(value))
        self._put(header.number, value)

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def abandon(self) -> None:
        """Forget what is left."""
        self._batch.clear()

    def _judge(self, value: bytes) -> tuple[bytes, list[bytes] | None]:
        """Return a group's entries, and its chunks with what is missing in them; None when they are as they were."""
        entries = entries_of(value)
        for entry in entries_in(entries):
            self._channels.take_entry(entry)
        chunks: list[bytes] = []
        changed = False
        for part in chunks_of(value):
            state = self._channels.put(part.channel)
            after = part.first + part.sequences
            if after <= state.archived:
                chunks.append(value[part.offset : part.offset + part.size])
                continue
            if not state.name or part.first < state.next:
                # Nobody can ask for it, or its sequences are there already.
                changed = True
                continue
            if state.epoch != part.epoch:
                entries += _EPOCH.pack(_EPOCH.size, ENTRY_EPOCH, 0, part.channel, part.epoch, state.next)
                state.epoch, changed = part.epoch, True
            if part.first > state.next:
                lost = part.first - state.next
                chunks.append(lost_chunk(part.channel, part.epoch, state.next, lost, part.time_us))
                changed = True
            chunks.append(value[part.offset : part.offset + part.size])
            state.next = after
        return entries, chunks if changed else None

    def _build(self, value: bytes, entries: bytes, chunks: bytes, chunks_count: int) -> bytes:
        """Return a group with other entries and chunks, chained to the last one."""
        fields = list(GROUP_HEADER.unpack_from(value))
        fields[4] = self.last.number
        fields[9:12] = len(entries), sum(1 for _ in entries_in(entries)), chunks_count
        fields[13:16] = GROUP_HEADER.size + len(entries) + len(chunks), 0, self.last.chain
        header = GROUP_HEADER.pack(*fields)
        chain = crc32c_of(header[:CHAIN_AT] + header[PREVIOUS_CHAIN_AT : PREVIOUS_CHAIN_AT + 4] + entries)
        at = 0
        while at < len(chunks):
            chain = crc32c_of(chunks[at + 4 : at + 8], chain)
            at += _U32.unpack_from(chunks, at)[0]
        return header[:CHAIN_AT] + _U32.pack(chain) + header[PREVIOUS_CHAIN_AT:] + entries + chunks

    def _put(self, number: int, value: bytes) -> None:
        self._batch.append((number, value))
        self._batch_bytes += len(value)
        if self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the groups that wait into the segment."""
        if not self._batch:
            return
        path = segment_path(self._folder, self._ordinal)
        map_bytes = map_bytes_for(self._segment_bytes + self._batch_bytes, self._batch_bytes)
        if self._segment_bytes == 0:
            create_file(path, map_bytes)
        environment = open_lmdb(path, map_bytes, locks=False)
        try:
            with environment.begin(write=True) as transaction:
                for number, value in self._batch:
                    transaction.put(group_key(number), value, append=True)
        finally:
            environment.close()
        self._segment_bytes += self._batch_bytes
        self._batch.clear()
        self._batch_bytes = 0


def lost_chunk(channel: int, epoch: int, first: int, count: int, time_us: int) -> bytes:
    """Return a chunk that says that sequences are lost."""
    record = _GONE.pack(_GONE.size, FLAG_GONE, 0, 0, GONE_LOST, count)
    size = CHUNK_HEADER.size + len(record)
    checked = CHUNK_HEADER.pack(size, 0, channel, epoch, first, count, 0, time_us, 0)[8:] + record
    return struct.pack("<II", size, crc32c_of(checked)) + checked
