"""The recorded counts: read, compared, and written with the reason for each change.

`recorded.toml` has one line for a work and a kind of machine: its counts, when they were recorded and why. Counts are
those of one compiler and one Python; a machine of another kind has a table of its own, or none.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from benchmarks.instructions.count import compiler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.instructions.count import Count

LIMIT: Final = 0.03
"""By what share a count may differ from what was recorded, up or down."""
ROUNDING: Final = 1e-9
KEPT: Final = 0.001
"""What differs by less keeps its line when counts are recorded anew."""

HEAD = """\
# Instructions of the kernels under callgrind, as `make instructions` compares them: within 3 % of what stands here.
# Written by `make instructions ARGS='--record --reason "what made them differ"'`, and by nothing else.
#
# own    of our native modules themselves
# calls  out of them: of the interpreter, its allocator, the C library
"""


@dataclass(frozen=True)
class Recorded:
    """One line: what was counted once, and why it is that."""

    own: int
    calls: int
    date: str
    reason: str


Table: TypeAlias = "dict[str, Recorded]"
"""What one kind of machine has recorded, by the works' names."""


@dataclass(frozen=True)
class Finding:
    """A count beside what was recorded of it: None for a work that is new, or for one that is gone."""

    name: str
    count: Count | None
    recorded: Recorded | None

    @property
    def ratios(self) -> tuple[float, ...]:
        """The counts by what was recorded of them. Without any call recorded, one call more doubles them."""
        if self.count is None or self.recorded is None:
            return ()
        own, calls = self.recorded.own, self.recorded.calls
        return self.count.own / max(1, own), (self.count.calls + (calls == 0)) / max(1, calls)

    @property
    def good(self) -> bool:
        """Whether it may be as it is."""
        return bool(self.ratios) and all(abs(ratio - 1) <= LIMIT + ROUNDING for ratio in self.ratios)


def machine_key() -> str:
    """Return what counts depend on: the processor's instructions, the compiler, Python's version, and how it was built.

    Extensions are compiled with the flags of the Python that they are for. A distribution's own harden them, which
    costs instructions.
    """
    said = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=False).stdout.lower()
    version = subprocess.run([*compiler(), "-dumpversion"], capture_output=True, text=True, check=False).stdout
    name = "clang" if "clang" in said else "gcc"
    python = f"{sys.implementation.name}{sys.version_info.major}.{sys.version_info.minor}"
    key = f"{platform.machine()}-{name}{version.strip().partition('.')[0]}-{python}"
    return "-".join([key, *hardening(f"{sysconfig.get_config_var('CFLAGS')} {os.environ.get('CFLAGS', '')}")])


def hardening(flags: str) -> list[str]:
    """Return the flags that change what is generated, without those that every build has or that ours come after."""
    told = {flag for flag in shlex.split(flags) if flag.startswith(("-f", "-m", "-D")) and "-prefix-map" not in flag}
    return sorted(flag.removeprefix("-").removeprefix("f") for flag in told - {"-fwrapv", "-DNDEBUG", "-fPIC"})


def read_tables(text: str) -> dict[str, Table]:
    """Return the tables of all kinds of machines.

    Raises:
        ValueError: It is no such file, or a line has no reason.
    """
    tables: dict[str, Table] = {}
    for key, lines in tomllib.loads(text).items():
        tables[key] = {
            name: Recorded(line["own"], line["calls"], line["date"], line["reason"].strip())
            for name, line in lines.items()
        }
        for name, recorded in tables[key].items():
            if not recorded.reason:
                raise ValueError(f"{key}: {name} was recorded without a reason")
    return tables


def format_tables(tables: Mapping[str, Table]) -> str:
    """Return the file."""
    text = HEAD
    for key, table in sorted(tables.items()):
        text += f'\n["{key}"]\n'
        for name, line in sorted(table.items()):
            why = f'date = "{line.date}", reason = {json.dumps(line.reason, ensure_ascii=False)}'
            text += f'"{name}" = {{ own = {line.own}, calls = {line.calls}, {why} }}\n'
    return text


def compare(table: Table, counts: Mapping[str, Count], only: str = "") -> list[Finding]:
    """Put counts beside what was recorded, in the order of their names; `only` is what the names have in them."""
    names = sorted(name for name in table.keys() | counts.keys() if only in name)
    return [Finding(name, counts.get(name), table.get(name)) for name in names]


def renew(table: Table, counts: Mapping[str, Count], date: str, reason: str, only: str = "") -> Table:
    """Return a table with these counts. Lines of what has not changed are kept, and works that are gone are not."""
    made = {name: line for name, line in table.items() if only not in name}
    for name, count in counts.items():
        line = table.get(name)
        if line is None or not same(line, count):
            line = Recorded(count.own, count.calls, date, reason)
        made[name] = line
    return made


def same(line: Recorded, count: Count) -> bool:
    """Whether a count is what was recorded, but for a handful: where blocks lie is not always the same."""
    pairs = ((count.own, line.own), (count.calls, line.calls))
    return all(abs(new - old) <= KEPT * max(1, old) for new, old in pairs)


def unexplained(before: Mapping[str, Table], after: Mapping[str, Table]) -> list[str]:
    """Return the lines whose counts differ from those of an earlier file while date and reason are still the same."""
    return [
        f"{key}: {name}"
        for key, table in after.items()
        for name, line in table.items()
        if key in before
        and (old := before[key].get(name)) is not None
        and (old.own, old.calls) != (line.own, line.calls)
        and (old.date, old.reason) == (line.date, line.reason)
    ]


def earlier(path: Path, revision: str) -> dict[str, Table]:
    """Return the tables of a file as a revision of its repository has it; nothing where there is none, or no git."""
    command = ["git", "show", f"{revision}:./{path.name}"]
    try:
        told = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    except OSError:
        return {}
    return read_tables(told.stdout) if told.returncode == 0 else {}
