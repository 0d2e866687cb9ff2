"""Retention's part in the archiver: one step is one transaction, between two slices.

It stores the cursors of steps whose trims are in the journal, keeps the latest of each key in compacted channels, and
plans what to trim next. It removes no sequence itself: trims come back as entries of archived groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.log.archive_rows import CURSOR_KEY
from broker.log.archive_view import ArchiveView, cursor_row
from broker.log.errors import corrupt
from broker.log.latest import LatestStep, cursor_names
from broker.log.retention import NOTHING_HELD, Planner, Step
from broker_native.btree import TreeDamaged
from broker_native.rows import RowDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import lmdb

    from broker.log.retention import Held, Policies
    from broker_native.tree import TreeReader

__all__ = ["retain"]


def retain(
    path: Path,
    transaction: lmdb.Transaction,
    reader: TreeReader,
    policies: Policies,
    cursors: Mapping[bytes, int],
    now_us: int,
    held: Held = NOTHING_HELD,
) -> Step:
    """Take one step of retention.

    Args:
        path: The archive, for errors.
        transaction: A write transaction in which nothing has been done, and no slice is on its way; the caller commits
            it.
        reader: The archive as the last commit left it.
        policies: Of the channels.
        cursors: Of the last step, if all its proposals are trims in the journal; else empty.
        now_us: The time by which ages are judged, microseconds since 1970; never ahead of what is true.
        held: What of earlier steps consumers hold.

    Returns:
        What to trim, and the cursors to pass on when that is done.

    Raises:
        StorageError: STORAGE_CORRUPT naming the row. LMDB's errors pass through.
    """
    try:
        view = ArchiveView(reader)
        stored = view.cursors()
        planner = Planner(policies)
        used = {*planner.cursor_names, *cursor_names(policies)}
        known = {name: group for name, group in {**stored, **cursors}.items() if name in used}
        latest = LatestStep(path, view, policies, known)
        latest.run(now_us)
        walked = {**known, **{name: group for name, group in held.walked.items() if name in used}}
        step = planner.step(view, walked, now_us, channels=held.channels)
    except RowDamaged as damage:
        raise corrupt(path, f"row {damage.key.hex()}: it is not what was written") from damage
    except (TreeDamaged, ValueError) as damage:
        raise corrupt(path, f"retention: {damage}") from damage
    for name in stored.keys() - used:
        transaction.delete(CURSOR_KEY + name)
    for name, group in known.items():
        if stored.get(name) != group:
            transaction.put(*cursor_row(name, group))
    for key in sorted(latest.deletes):
        transaction.delete(key)
    for key in sorted(latest.puts):
        transaction.put(key, latest.puts[key])
    step.more |= latest.more
    return step
