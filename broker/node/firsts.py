"""Where channels begin now: groups that are not archived yet hold what was trimmed or removed since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.node.stretch import Known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.core.ports import Stored
    from broker_native.tails import Tails

__all__ = ["firsts_of"]


def firsts_of(tails: Tails, log: Stored, names: Mapping[int, bytes]) -> dict[int, int]:
    """Ask memory, and the log for what memory does not know; on the reader thread.

    Args:
        tails: The channels in memory.
        log: Knows the others.
        names: The channels' names by their ids.

    Returns:
        The oldest sequence that each still has, by id. A channel that was removed is not among them, whatever has its
        name now.

    Raises:
        StorageError: One of them cannot be read.
    """
    firsts: dict[int, int] = {}
    elsewhere: list[bytes] = []
    for channel, name in names.items():
        info = tails.info(name)
        if info is None:
            elsewhere.append(name)
        elif tails.stored_id(name) == channel:
            firsts[channel] = info[3]
    # Of a channel that was removed the log may not know that yet; as long as that is so, memory does.
    unknown = sorted(tails.absent(elsewhere))
    for entries in log.resolve(unknown) if unknown else ():
        known = Known.from_entries(entries)
        if known.id in names:
            firsts[known.id] = known.first
    return firsts
