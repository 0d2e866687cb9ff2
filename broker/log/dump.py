"""Reads every message of a data directory or a backup, in the order in which they were committed.

It reads files as `verify` does, so it needs no broker, writes nothing, and passes over what is damaged: what can be
read of a damaged journal can be dumped and loaded into a new one. One group is in memory at a time; of a channel, its
name and its bounds.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

from broker.log.backup import MANIFEST
from broker.log.directory import hold
from broker.log.parts import CHUNK_HEADER, Record, chunks_of, records_of
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
    backup = (path / MANIFEST).exists()
    with ExitStack() as stack:
        if not backup:
            stack.enter_context(hold(path))
        # First what the channels come to in the end, then their messages: a channel may be trimmed or removed later.
        first = stack.enter_context(closing(Verifier(path, lambda done, all_: progress(done, 2 * all_), backup=backup)))
        report = first.run()

        archived = True

        def take(channel: int, chunk: bytes) -> None:
            state = first.channels.get(channel)
            if state is None or not state.name or not wanted(state.name):
                return
            # A slice that was cut short: the archive has some of what the segments have.
            since = state.first if archived else max(state.first, state.archived)
            _, _, _, epoch, begin, sequences, _, _, _ = CHUNK_HEADER.unpack_from(chunk)
            if begin + sequences > since:
                for record in records_of(chunk):
                    if record.sequence >= since:
                        give(Message(state.name, epoch, record))

        def take_group(header: GroupHeader, value: bytes) -> None:
            nonlocal archived
            archived = False
            for chunk in chunks_of(value):
                take(chunk.channel, value[chunk.offset : chunk.offset + chunk.size])

        again = Verifier(
            path, lambda done, all_: progress(all_ + done, 2 * all_), take_group, on_chunk=take, backup=backup
        )
        stack.enter_context(closing(again)).run()
    return report
