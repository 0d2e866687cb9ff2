"""Reads every message of a data directory or a backup, in the order in which they were committed.

It reads files as `verify` does, so it needs no broker, writes nothing, and passes over what is damaged: what can be
read of a damaged journal can be dumped and loaded into a new one. One group is in memory at a time; of a channel, its
name and its bounds.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from broker.log.backup import MANIFEST
from broker.log.directory import hold
from broker.log.parts import Record, chunks_of, records_of
from broker.log.verify import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.log.verify import Report
    from broker_native.index import GroupHeader


class Message(NamedTuple):
    """A stored message: its channel, its epoch, and the record."""

    channel: bytes
    epoch: int
    record: Record


def dump(
    path: Path,
    wanted: Callable[[bytes], bool],
    give: Callable[[Message], object],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Hand over the messages of the channels that are wanted.

    Args:
        path: a data directory that nobody serves, or a backup.
        wanted: whether a channel's messages are wanted, by its name.
        give: called with each message, in the order of the journal.
        progress: called with (bytes looked at, bytes in all); the files are read twice.

    Returns:
        What is wrong with the files; damaged messages are not handed over.

    Raises:
        StorageError: STORAGE_IN_USE, STORAGE_FORMAT, STORAGE_FAILED.
    """
    is_backup = (path / MANIFEST).exists()
    with nullcontext() if is_backup else hold(path):
        # First what the channels come to in the end, then their messages: a channel may be trimmed or removed later.
        first = Verifier(path, lambda done, total: progress(done, 2 * total), backup=is_backup)
        report = first.run()
        channels = {
            channel: (state.name, state.first)
            for channel, state in first.channels.by_id.items()
            if state.name and wanted(state.name)
        }

        def take(header: GroupHeader, value: bytes) -> None:
            for chunk in chunks_of(value):
                name, since = channels.get(chunk.channel, (b"", 0))
                if name and chunk.first + chunk.sequences > since:
                    for record in records_of(value[chunk.offset : chunk.offset + chunk.size]):
                        if record.sequence >= since:
                            give(Message(name, chunk.epoch, record))

        Verifier(path, lambda done, total: progress(total + done, 2 * total), take, backup=is_backup).run()
    return report
