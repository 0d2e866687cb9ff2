"""What is wrong with a running broker, in words: the first thing that an operator looks at.

Each trouble is judged from what is in memory, at the moment of asking; nothing is remembered and nothing is asked of
the disk. What makes a broker unable to serve is told apart from what only wants to be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.model.errors import BY_CODE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from broker.node.node import Node

__all__ = ["Trouble", "find_hindrances", "find_troubles"]

COMMIT_SLOW_US: Final = 500_000
"""A disk whose slowest commits take this long makes publishers wait that others would call timed out."""
LOOP_SLOW_US: Final = 100_000
CONSUMERS_LOOKED_AT: Final = 100
SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong.

    Attributes:
        name: Stable, lower_snake.
        serious: The broker does not serve as it should: it is not ready.
        detail: What, with figures.
        advice: What to do about it.
    """

    name: str
    serious: bool
    detail: str
    advice: str


def find_troubles(node: Node) -> list[Trouble]:
    """Say what is wrong, what is serious first; on the loop, some 200 µs."""
    stats = node.stats()
    found = [*_archive(stats), *_memory(node), *_readers(node), *_consumers(node, stats), *_pace(stats)]
    return [*find_hindrances(node), *found]


def find_hindrances(node: Node) -> list[Trouble]:
    """Say what of it keeps the broker from serving as it should: it costs nothing, so anybody may ask."""
    return [*_serving(node), *_journal(node)]


def _serving(node: Node) -> list[Trouble]:
    if node.broken:
        detail = "memory ran out in a step that all connections share, and the broker is ending"
        return [Trouble("broken", True, detail, "Give the process more memory; the next start goes on from the disk.")]
    if node.draining:
        detail = f"the broker is stopping and has {len(node.connections)} connections left"
        return [Trouble("draining", True, detail, "Nothing; clients come back to the next server.")]
    return []


def _journal(node: Node) -> list[Trouble]:
    refusal = BY_CODE.get(node.tails.refuse_code)
    if refusal is not None and refusal.name == "STORAGE_FULL":
        detail = "the disk has no room, so publishes are refused; reads go on"
        return [Trouble("storage_full", True, detail, "Free space; publishing then goes on by itself.")]
    if refusal is not None and refusal.name != "BUSY":
        detail = f"a commit failed ({refusal.name}), so publishes are refused until one succeeds"
        return [Trouble("commit_failed", True, detail, "Look for commit_failed in the log, and at the disk.")]
    return []


def _archive(stats: Mapping[str, Any]) -> list[Trouble]:
    found = []
    if stats.get("archive_blocked"):
        detail = "the archive is damaged, so nothing is moved into it and the journal grows"
        found.append(Trouble("archive_blocked", False, detail, "Run `broker verify` over the data directory."))
    if stats["commit_refusals"]:
        detail = f"groups that waited for the archive in vain: {stats['commit_refusals']} in this run"
        advice = "The disk is slower than what is published; publish less, or raise storage.backlog_bytes_max."
        found.append(Trouble("archive_behind", False, detail, advice))
    return found


def _memory(node: Node) -> list[Trouble]:
    if not node.budget.holds:
        return []
    detail = f"queues hold {node.budget.used_bytes} bytes, limit {node.budget.limit_bytes} bytes: publishers wait"
    return [Trouble("memory_short", False, detail, "See who reads slowly; raise limits.memory_bytes_max if all do.")]


def _readers(node: Node) -> list[Trouble]:
    count = len(node.catchup.lagging)
    if not count:
        return []
    worst, _ = node.readers_behind(1)
    first = worst[0]
    who = f"connection {first['connection']} ({first['name'] or first['peer']!s:.64})"
    detail = f"{count} subscriptions have fallen behind, the furthest {first['behind_s']:.1f} s: {who}"
    return [Trouble("readers_behind", False, detail, "`broker top` shows them; a slow client needs help.")]


def _consumers(node: Node, stats: Mapping[str, Any]) -> list[Trouble]:
    found = []
    infos, _ = node.consumers.in_memory(CONSUMERS_LOOKED_AT)
    idle = [info for info in infos if not info.members and not info.settings.paused and info.ready + max(info.lag, 0)]
    if idle:
        shown = ", ".join(f"{info.settings.name} ({info.ready + max(info.lag, 0)})" for info in idle[:SHOWN_MAX])
        more = f" and {len(idle) - SHOWN_MAX} more" if len(idle) > SHOWN_MAX else ""
        detail = f"jobs wait and nobody takes them: {shown}{more}"
        found.append(Trouble("consumers_without_members", False, detail, "Start their workers, or pause them."))
    if stats["channels_full"]:
        detail = f"channels that take no more until their consumers have done some: {stats['channels_full']}"
        advice = "`broker consumer ls` shows who holds them; have it acknowledge, or remove it."
        found.append(Trouble("channels_full", False, detail, advice))
    return found


def _pace(figures: Mapping[str, Any]) -> list[Trouble]:
    found = []
    if figures["commit_p99_us"] >= COMMIT_SLOW_US:
        detail = f"the slowest hundredth of commits took {figures['commit_p99_us'] / 1e6:.2f} s or more this minute"
        found.append(Trouble("disk_slow", False, detail, "See what else writes to this disk."))
    if figures["loop_lag_p99_us"] >= LOOP_SLOW_US:
        detail = f"the loop came {figures['loop_lag_p99_us'] / 1e6:.2f} s late or more in a hundredth of its turns"
        found.append(Trouble("loop_late", False, detail, "The processor is taken; see what else runs there."))
    return found
