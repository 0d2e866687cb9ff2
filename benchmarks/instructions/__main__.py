"""The gate: `python -m benchmarks.instructions` counts every kernel's works and compares them with what was recorded.

A count that is more than 3 % off, up or down, fails: a kernel that has become slower is found, and one that has become
faster is recorded, or its gain could be lost again unseen. `--record --reason "…"` writes the counts of this machine.

The status is 0 when all is within the limit or this kind of machine has recorded nothing (which is said, and fails with
`--require`), 1 when something is not, 2 when nothing can be counted.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.instructions.count import Count, Uncountable, count, modules
from benchmarks.instructions.records import (
    LIMIT,
    Finding,
    Table,
    compare,
    earlier,
    format_tables,
    machine_key,
    read_tables,
    renew,
    unexplained,
)

RECORDED = Path(__file__).with_name("recorded.toml")
COMMAND = "make instructions ARGS='--record --reason \"%s\"'"
FUNCTIONS_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--record", action="store_true", help="write what is counted; it takes a reason")
    made.add_argument("--reason", default="", help="why the counts differ from those that stand there")
    made.add_argument("--require", action="store_true", help="fail where this kind of machine has recorded nothing")
    made.add_argument("--only", default="", metavar="TEXT", help="the works whose names have this in them")
    made.add_argument("--file", type=Path, default=RECORDED, help=argparse.SUPPRESS)
    made.add_argument("--modules", nargs="+", default=None, help=argparse.SUPPRESS)
    return made


def report(findings: list[Finding]) -> None:
    """Print a line for each work, and for one that is off the functions in which most of it is spent."""
    print(f"{'work':34}{'whole':>12}{'own':>12}{'calls':>10}{'own':>12}{'calls':>12}")
    for finding in findings:
        told = [f"{ratio - 1:+.2%}" if ratio < 10 else f"{ratio:,.0f} times" for ratio in finding.ratios] or ["-", "-"]
        count = finding.count
        counts = (f"{count.whole:,}", f"{count.own:,}", f"{count.calls:,}") if count is not None else ("", "", "")
        note = "" if finding.good else " < off"
        if finding.recorded is None or count is None:
            note = " < not recorded" if finding.recorded is None else " < gone"
        print(f"{finding.name:34}{counts[0]:>12}{counts[1]:>12}{counts[2]:>10}{told[0]:>12}{told[1]:>12}{note}")
        if not finding.good and count is not None:
            report_functions(count)


def report_functions(counted: Count) -> None:
    """Print in which functions most instructions are."""
    most = sorted(counted.functions.items(), key=lambda item: -item[1])[:FUNCTIONS_SHOWN]
    for function, instructions in most:
        print(f"    {instructions:>12,}  {function}")


def record(options: argparse.Namespace, tables: dict[str, Table], key: str, counts: dict[str, Count]) -> int:
    """Write the counts."""
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    old = tables.get(key, {})
    table = renew(old, counts, date, options.reason.strip(), options.only)
    changed = [name for name, line in table.items() if old.get(name) != line]
    renewed = {**tables, key: table}
    silent = unexplained(earlier(options.file, "HEAD"), renewed)
    if silent:
        print(f"today's other counts have that very reason, say what is new: {', '.join(silent)}")
        return 2
    options.file.write_text(format_tables(renewed), encoding="utf-8")
    print(f"{options.file}: {len(changed)} of {len(table)} works of {key} recorded anew: {options.reason.strip()}")
    return 0


def judge(table: Table, key: str, counts: dict[str, Count], only: str) -> int:
    """Compare the counts with a table, and say what is to be done."""
    findings = compare(table, counts, only)
    report(findings)
    wrong = [finding.name for finding in findings if not finding.good]
    if wrong:
        print(
            f"{len(wrong)} of {len(findings)} works are not within {LIMIT:.0%} of what was recorded for {key}: "
            f"{', '.join(wrong)}\n"
            f"If that is meant: {COMMAND % 'what made them differ'}"
        )
        return 1
    print(f"{len(findings)} works are within {LIMIT:.0%} of what was recorded for {key}")
    return 0


def gate(options: argparse.Namespace) -> int:
    """Count, and record or compare."""
    tables = read_tables(options.file.read_text(encoding="utf-8")) if options.file.exists() else {}
    key = machine_key()
    for revision in ("HEAD", "HEAD^"):
        wrong = unexplained(earlier(options.file, revision), tables)
        if wrong:
            print(f"counts that were changed since {revision} with their date and reason as before: {', '.join(wrong)}")
            return 1
    if not options.record and key not in tables:
        print(
            f"nothing is compared: no instructions are recorded for {key}, "
            f"only for {', '.join(tables) or 'no machine'}\n"
            f"To record them: {COMMAND % f'first counts of {key}'}"
        )
        return 1 if options.require else 0
    counts = count(options.modules or modules(), options.only)
    if options.record:
        return record(options, tables, key, counts)
    return judge(tables[key], key, counts, options.only)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its status."""
    options = parser().parse_args(arguments)
    if options.record != bool(options.reason.strip()):
        print("--record and --reason belong together: counts change for a reason, and it stands beside them")
        return 2
    try:
        return gate(options)
    except (Uncountable, ValueError) as failure:
        print(f"broker: {failure}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
