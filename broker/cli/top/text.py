"""`broker top` in characters: numbers with units, rows for scripts and logs, and the facts of the live view.

Pure. What is unknown is `-`. Names that clients chose are escaped before a terminal sees them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.cli.main import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.cli.top.rates import Change, Consumer, Reader

UNKNOWN: Final = "-"

# -- numbers -----------------------------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    """Return a number of things: `0.4`, `1,234`, `12.3 M`."""
    if value is None:
        return UNKNOWN
    if value >= 1e6:
        scaled, prefix = (value / 1e9, "G") if value >= 1e9 else (value / 1e6, "M")
        return f"{scaled:.{_decimals(scaled)}f} {prefix}"
    return f"{value:.1f}" if 0 < value < 9.95 and value != int(value) else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Return bytes: `512 B`, `1.50 KiB`, `31.4 MiB`."""
    if value is None:
        return UNKNOWN
    units = ["TiB", "GiB", "MiB", "KiB", "B"]
    while value >= 1_000 and len(units) > 1:
        value /= 1_024
        units.pop()
    return f"{value:.{0 if units[-1] == 'B' else _decimals(value)}f} {units[-1]}"


def seconds(value: float | None) -> str:
    """Return a time: `85 µs`, `1.20 ms`, `31.4 s`, `12 min`, `3.5 h`, `2.0 d`."""
    if value is None:
        return UNKNOWN
    for below, factor, unit in ((0.001, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if value < below:
            return f"{value * factor:.{0 if unit == 'µs' else _decimals(value * factor)}f} {unit}"
    for below, divisor, unit in ((7_200.0, 60.0, "min"), (172_800.0, 3_600.0, "h")):
        if value < below:
            return f"{value / divisor:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{value / 86_400:.1f} d"


def percent(part: float | None, whole: float | None) -> str:
    """Return a share: `31 %`."""
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.0f} %"


def clock(time_s: float) -> str:
    """Return a time of day here."""
    return datetime.fromtimestamp(time_s).astimezone().strftime("%H:%M:%S")


def _decimals(value: float) -> int:
    return 0 if value == 0 or value >= 99.95 else 1 if value >= 9.995 else 2


# -- readers -----------------------------------------------------------------------------------------------------------


def who(reader: Reader) -> str:
    """Return who reads: what the client calls itself, and where it is."""
    return printable(" ".join(filter(None, (reader.name, reader.peer)))) or UNKNOWN


def what(reader: Reader) -> str:
    """Return what it reads."""
    return printable(" ".join(reader.filters)) or UNKNOWN


def behind(reader: Reader) -> str:
    """Return how far it is behind, in messages where they can be counted without reading, else in groups and bytes."""
    if reader.behind_messages is not None:
        return f"{count(reader.behind_messages)} messages"
    groups = f"{count(reader.behind_groups)} groups"
    return groups if reader.behind_bytes is None else f"{groups}, {size(reader.behind_bytes)}"


def since(change: Change, reader: Reader) -> str:
    """Return when it fell behind: a time of day, or a date when that is longer ago."""
    begun_s = change.now.time_s - reader.since_s
    if reader.since_s < 86_400:
        return clock(begun_s)
    return datetime.fromtimestamp(begun_s).astimezone().strftime("%m-%d %H:%M")


# -- facts -------------------------------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """A few words that stay on one line; `style` is how a terminal shows them."""

    text: str
    style: str = ""


def sections(change: Change) -> list[tuple[str, list[Fact]]]:
    """Return what there is to say, by subject, readers left aside."""
    return [
        ("messages", _messages(change)),
        ("latency", _latency(change)),
        ("commits", _commits(change)),
        ("memory", _memory(change)),
        ("clients", _clients(change)),
        *([("jobs", _jobs(change))] if change.now.figure("consumers") else []),
    ]


def _messages(change: Change) -> list[Fact]:
    rate = change.rate
    return [
        Fact(f"in {count(rate('records_in'))}/s", "bold"),
        Fact(f"{size(rate('record_bytes_in'))}/s"),
        Fact(f"out {count(rate('records_out'))}/s", "bold"),
        Fact(f"{size(rate('bytes_out'))}/s"),
        Fact(f"in {count(rate('chunks_out'))} chunks/s"),
        Fact(f"processor {percent(rate('cpu_s'), 1)}"),
        Fact(f"archiver {percent(rate('archive_cpu_s'), 1)}"),
    ]


def _latency(change: Change) -> list[Fact]:
    return [
        Fact(f"commit p50 {microseconds(change, 'commit_p50_us')}"),
        Fact(f"p99 {microseconds(change, 'commit_p99_us')}", "bold"),
        Fact(f"loop lag p99 {microseconds(change, 'loop_lag_p99_us')}"),
        Fact(f"this answer {seconds(change.now.answer_s)}"),
    ]


def microseconds(change: Change, name: str) -> str:
    """Return a figure that is told in microseconds; 0 says that the last minute had none."""
    value = change.now.figure(name)
    return seconds(value / 1e6) if value else UNKNOWN


def _commits(change: Change) -> list[Fact]:
    rate, figure = change.rate, change.now.figure
    groups, records = rate("groups"), rate("records_in")
    facts = [
        Fact(f"{count(groups)} groups/s", "bold"),
        Fact(f"{count(records / groups if records is not None and groups else None)} messages each"),
        Fact(f"{count(rate('fsyncs'))} fsyncs/s"),
        Fact(f"archive backlog {size(figure('archive_backlog_bytes'))}"),
        Fact(f"written {size(rate('archive_written_bytes'))}/s"),
    ]
    if figure("archive_blocked"):
        facts.append(Fact("archive blocked", "bold red"))
    return facts


_MEMORY_KINDS: Final = (("queued", "queued_bytes"), ("arriving", "arriving_bytes"), ("pending", "pending_bytes"),
                        ("kept", "kept_bytes"))  # fmt: skip


def memory_style(change: Change) -> str:
    """Return how loud memory is: from 80 % on publishers are not read, from 95 % on they are refused."""
    used, budget = change.now.figure("memory_used_bytes"), change.now.figure("memory_budget_bytes")
    if used is None or not budget or used < 0.8 * budget:
        return "bold"
    return "bold red" if used >= 0.95 * budget else "bold yellow"


def _memory(change: Change) -> list[Fact]:
    figure = change.now.figure
    used, budget = figure("memory_used_bytes"), figure("memory_budget_bytes")
    kinds = [Fact(f"{word} {size(figure(key))}") for word, key in _MEMORY_KINDS if figure(key) is not None]
    return [
        Fact(f"{percent(used, budget)} of {size(budget)}", memory_style(change)),
        Fact(f"used {size(used)}"),
        *kinds,
        Fact(f"process {size(figure('rss_anon_bytes'))}"),
    ]


def _clients(change: Change) -> list[Fact]:
    rate, figure = change.rate, change.now.figure
    facts = [
        Fact(f"{count(figure('connections'))} connections", "bold"),
        Fact(f"{count(figure('subscriptions'))} subscriptions"),
        Fact(f"{count(figure('channels_in_memory'))} channels in memory"),
    ]
    if figure("publishers_held"):
        facts.append(Fact(f"{count(figure('publishers_held'))} publishers held", "bold yellow"))
    if figure("channels_full"):
        facts.append(Fact(f"{count(figure('channels_full'))} channels full, held by consumers", "bold red"))
    if rate("publishes_refused_memory"):
        facts.append(Fact(f"{count(rate('publishes_refused_memory'))} publishes refused/s", "bold red"))
    return facts


def _jobs(change: Change) -> list[Fact]:
    rate, figure = change.rate, change.now.figure
    return [
        Fact(f"{count(figure('consumers'))} consumers", "bold"),
        Fact(f"{count(figure('jobs_leased'))} jobs under way"),
        Fact(f"given out again {count(rate('jobs_redelivered'))}/s"),
        Fact(f"given up {count(rate('jobs_dead'))}/s", "bold yellow" if rate("jobs_dead") else ""),
        *([Fact(f"expired {count(rate('jobs_expired'))}/s")] if rate("jobs_expired") else []),
        *(_consumer(change, each) for each in change.consumers),
    ]


def _consumer(change: Change, consumer: Consumer) -> Fact:
    """Return how a consumer gets on; loud when nobody does what waits, or it is paused."""
    members = f"{count(consumer.members)} {'member' if consumer.members == 1 else 'members'}"
    words = [
        f"{printable(consumer.name)}: {count(change.done.get(consumer.name))}/s",
        f"{count(consumer.waiting)} wait",
        f"{count(consumer.leased)} under way at {members}",
        *([f"{count(consumer.dead)} given up"] if consumer.dead else []),
        *(["paused"] if consumer.paused else []),
    ]
    is_left = consumer.paused or (consumer.waiting and not consumer.members)
    return Fact(", ".join(words), "bold yellow" if is_left else "")


def lagging(change: Change) -> list[Fact]:
    """Return what there is to say of all readers that lag."""
    rate, figure = change.rate, change.now.figure
    total = figure("subscriptions_lagging")
    return [
        Fact(f"{count(total)} of {count(figure('subscriptions'))} subscriptions", "bold yellow" if total else ""),
        Fact(f"fell behind {count(rate('demotions'))}/s"),
        Fact(f"caught up {count(rate('promotions'))}/s"),
        Fact(f"slices read {count(rate('slices_read'))}/s"),
        Fact(f"shared {count(rate('slices_shared'))}/s"),
    ]


def fill_lines(facts: Sequence[Fact], width: int) -> list[list[Fact]]:
    """Spread facts over lines of at most so many characters, two spaces between them; a fact is never broken."""
    lines: list[list[Fact]] = []
    room = -1
    for fact in facts:
        if len(fact.text) + 2 > room:
            lines.append([])
            room = width + 2
        lines[-1].append(fact)
        room -= len(fact.text) + 2
    return lines


# -- rows --------------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A column of the plain form: heading, width, and what stands in it, without spaces."""

    heading: str
    width: int
    value: Callable[[Change], str]


_CELLS: Final = (
    Cell("time", 8, lambda change: clock(change.now.time_s)),
    Cell("in/s", 8, lambda change: count(change.rate("records_in"))),
    Cell("out/s", 8, lambda change: count(change.rate("records_out"))),
    Cell("in-bytes/s", 10, lambda change: size(change.rate("record_bytes_in"))),
    Cell("out-bytes/s", 11, lambda change: size(change.rate("bytes_out"))),
    Cell("groups/s", 8, lambda change: count(change.rate("groups"))),
    Cell("fsyncs/s", 8, lambda change: count(change.rate("fsyncs"))),
    Cell("commit-p50", 10, lambda change: microseconds(change, "commit_p50_us")),
    Cell("commit-p99", 10, lambda change: microseconds(change, "commit_p99_us")),
    Cell("answer", 8, lambda change: seconds(change.now.answer_s)),
    Cell("backlog", 8, lambda change: size(change.now.figure("archive_backlog_bytes"))),
    Cell("memory", 8, lambda change: size(change.now.figure("memory_used_bytes"))),
    Cell("connections", 11, lambda change: count(change.now.figure("connections"))),
    Cell("lagging", 7, lambda change: count(change.now.figure("subscriptions_lagging"))),
)


def plain_heading() -> str:
    """Return the line above the rows."""
    return "  ".join([*(f"{cell.heading:>{cell.width}}" for cell in _CELLS), "most-behind"])


def plain_row(change: Change) -> str:
    """Return one row: as many words as the heading, and then who is most behind."""
    cells = (f"{cell.value(change).replace(' ', ''):>{cell.width}}" for cell in _CELLS)
    return "  ".join([*cells, most_behind(change)])


def most_behind(change: Change) -> str:
    """Return the reader that is most behind, by how much, and since when."""
    if not change.readers:
        return UNKNOWN
    reader = change.readers[0]
    place = f"connection {reader.connection} subscription {reader.subscription}"
    lag = f"{behind(reader)}, {seconds(reader.behind_s)}, since {since(change, reader)}"
    return f"{what(reader)} ({who(reader)}, {place}): {lag}"


def json_row(change: Change) -> str:
    """Return the whole of it as one object: the server's own keys, and what was computed of them."""
    now = change.now
    return json.dumps(
        {
            "time": _iso(now.time_s),
            "elapsed_s": change.elapsed_s,
            "restarted": change.restarted,
            "answer_s": now.answer_s,
            "rates": {f"{name}_per_s": rate for name, rate in change.rates.items()},
            "stats": now.stats,
            "readers": [_reader_fields(now.time_s, reader) for reader in change.readers],
            "more": now.more,
            "consumers": [_consumer_fields(change, consumer) for consumer in change.consumers],
        },
        default=str,
    )


def _reader_fields(time_s: float, reader: Reader) -> dict[str, object]:
    return {
        "connection": reader.connection,
        "subscription": reader.subscription,
        "peer": reader.peer,
        "name": reader.name,
        "filters": reader.filters,
        "behind_groups": reader.behind_groups,
        "behind_messages": reader.behind_messages,
        "behind_bytes": reader.behind_bytes,
        "behind_s": reader.behind_s,
        "since": _iso(time_s - reader.since_s),
        "since_s": reader.since_s,
        "queued_bytes": reader.queued_bytes,
        "credit": reader.credit,
        "policy": reader.policy or None,
    }


def _consumer_fields(change: Change, consumer: Consumer) -> dict[str, object]:
    return {
        "name": consumer.name,
        "paused": consumer.paused,
        "members": consumer.members,
        "waiting": consumer.waiting,
        "leased": consumer.leased,
        "acked": consumer.acked,
        "acked_per_s": change.done.get(consumer.name),
        "dead": consumer.dead,
    }


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
