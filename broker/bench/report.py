"""Results for people: a table on a terminal, plain lines anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bench.result import DRIVER_BUSY_SHARE, Result
from broker.model.settings import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO


def count(value: float) -> str:
    """Return a count with separators; three digits after the point when it is small."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"


def plural(number: int, word: str) -> str:
    """Return a number with what it is of."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def title(result: Result) -> str:
    """Return what was done, in one line."""
    options = result.options
    who = [plural(options.publishers, "publisher"), plural(options.subscribers, "subscriber")]
    if options.members:
        who[1] = plural(options.members, "member") + (", one message at a time" if options.one_at_a_time else "")
    if options.keys:
        who.append(plural(options.keys, "key"))
    who += [plural(options.channels, "channel"), f"{options.payload:,}-byte payloads", f"batch {options.batch:,}"]
    if options.ids:
        who.append("message ids")
    if options.rate:
        who.append(f"{options.rate:,} messages/s offered")
    return f"{result.work} {options.durability.label}: {', '.join(who)}"


def rows(result: Result) -> list[tuple[str, str]]:
    """Return the figures of a result as labels and values; what a work has not is left out."""
    found = []
    if result.messages:
        found.append(("messages", f"{count(result.messages)} in {result.seconds:.3f} s"))
        found.append(("rate", f"{count(result.a_second(result.messages))} messages/s"))
    if result.deliveries:
        found.append(
            ("deliveries", f"{count(result.a_second(result.deliveries))} /s, {count(result.deliveries)} in all")
        )
    found.append(("verdict", verdict(result)))
    if result.latency_us.get("max"):
        latency = result.latency_us
        values = ", ".join(f"{name} {count(latency[key])}" for name, key in PERCENTILE_NAMES.items())
        found.append(("latency", f"{values} us"))
    found += [(label, text.format(result.extra[key])) for key, label, text in EXTRA_ROWS if key in result.extra]
    if "publish_per_s" in result.extra:
        found.append(("published at", f"{count(result.extra['publish_per_s'])} messages/s before"))
    if "memory_bytes_per_connection" in result.extra:
        found.append(("a connection", f"{count(result.extra['memory_bytes_per_connection'] / KIB)} KiB of the server"))
    found += cost_rows(result)
    return found


EXTRA_ROWS = (
    ("named_s", "names told", "in {:,.1f} s before"),
    ("start_per_s", "at the start", "{:,.0f} messages/s"),
    ("sustained_per_s", "second half", "{:,.0f} messages/s"),
    ("read_back_per_s", "read back at", "{:,.0f} messages/s"),
    ("backlog_bytes_max", "not archived", "{:,} bytes of journal at most"),
    ("transactions_per_s", "that is", "{:,.0f} transactions/s"),
    ("server_us_per_transaction", "a transaction", "{:.2f} us of the server's processor"),
    ("server_us_per_message", "a message", "{:.2f} us of the server's processor"),
    ("stored_bytes", "stored", "{:,} bytes, all files together"),
    ("unarchived_bytes", "not archived", "{:,} bytes of them, in segments"),
    ("ready_ms", "ready after", "{:,.0f} ms"),
    ("ready_cpu_ms", "of these", "{:,.0f} ms of the server's processor"),
    ("first_read_ms", "first read", "{:,.0f} ms after the start, of a channel's newest messages"),
    ("share_of_server", "of the server's", "{:.0%}"),
    ("first_answer_ms", "after a SIGKILL", "first answer after {:,.0f} ms"),
    ("loop_lag_p99_us", "loop lag", "p99 {:,.0f} us"),
    ("gathered_s", "the crowd", "gathered in {:,.1f} s before"),
    ("live_s", "live again", "all of it after {:,.2f} s"),
    ("refused", "refused", "{:,} connections, and told when to come back"),
    ("cut", "cut", "{:,} connections without a word"),
    ("crowd_delivered", "delivered", "{:,} messages to the crowd"),
    ("p99_before_us", "others' p99", "{:,.0f} us before"),
    ("p99_during_us", "during", "p99 {:,.0f} us"),
    ("p99_ratio", "that is", "{:.2f} times as much"),
    ("lagging", "fell behind", "{:,} events said so"),
    ("live", "live again", "{:,} events said so"),
    ("complete_s", "complete", "everybody {:,.1f} s after they read again"),
    ("complete_per_s", "meanwhile", "{:,.0f} deliveries/s to those who were behind"),
    ("complete_driver_share", "its driver", "{:.0%} of a core"),
    ("memory_budget_bytes", "budget", "{:,} bytes of queues"),
    ("memory_used_bytes_max", "of it used", "{:,} bytes at most, by the server's count"),
    ("memory_of_budget", "memory", "{:.2f} times the budget at most"),
    ("caught_up", "caught up", "{:,} deliveries of what was stored"),
    ("live_driver_share", "live driver", "{:.0%} of a core"),
    ("cpu_us_per_client", "a client", "{:,.0f} us of the server's processor to be live again"),
    ("pending", "waiting", "{:,} messages for their time"),
    ("memory_bytes_per_pending", "each", "{:,.1f} bytes of the server's memory"),
    ("index_bytes_per_pending", "of these", "{:,.1f} bytes in the index"),
    ("due_per_s", "lateness", "is the latency above, of {:,} messages due each second"),
    ("due_cpu_us", "each of them", "{:.2f} us of the server's processor"),
    ("memory_bytes_idle_above_empty", "idle memory", "{:,} bytes above an empty broker"),
    ("memory_bytes_per_channel", "a channel", "{:,.0f} bytes of the server's memory"),
)
"""What some works have besides: field, label and how the value is told."""

PERCENTILE_NAMES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p999", "max": "max"}


def cost_rows(result: Result) -> list[tuple[str, str]]:
    """Return what it cost: processor, memory, disk."""
    driver = f"{result.driver_cpu_s:.2f} s of processor, {result.driver_share:.0%} of a core"
    if result.driver_share >= DRIVER_BUSY_SHARE:
        driver += ": it may be what limited this"
    found = [("driver", driver)]
    if result.server_cpu_s:
        share = result.server_cpu_s / result.seconds if result.seconds else 0.0
        found.append(("server", f"{result.server_cpu_s:.2f} s of processor, {share:.0%} of a core"))
    if result.server_memory_bytes:
        found.append(("memory", f"{result.server_memory_bytes / MIB:,.1f} MiB at most"))
    found.append(("disk", f"{plural(result.fsyncs, 'fsync')}; one LMDB commit here {count(result.commit_us_p50)} us"))
    return found


def verdict(result: Result) -> str:
    """Return whether all is right, and all that is wrong."""
    faults = {"lost": result.lost, "duplicated": result.duplicated, "reordered": result.reordered}
    wrong = [f"{value:,} {name}" for name, value in (faults | {"corrupt": result.corrupt}).items() if value]
    return "; ".join(["WRONG", *wrong, *result.errors]) if not result.right else "all there, once, in order and whole"


def print_results(results: Iterable[Result], out: TextIO) -> None:
    """Print results to a terminal as tables, to anything else as lines of label and value."""
    for result in results:
        if out.isatty():
            print_table(result, out)
        else:
            out.write(f"{title(result)}\n")
            out.writelines(f"  {label:<12}  {value}\n" for label, value in rows(result))
    out.flush()


def print_table(result: Result, out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=True, title=Text(title(result)), title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in rows(result):
        style = ("green" if result.right else "bold red") if label == "verdict" else ""
        table.add_row(label, Text(value, style=style))
    Console(file=out).print(table)
