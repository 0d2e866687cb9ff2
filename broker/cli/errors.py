"""`broker errors`: the registry of errors for people and scripts."""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from broker.cli import exit_code_of
from broker.model.errors import BY_NAME, ERROR_CODES, REMEDY_MEANINGS, ErrorCode, Remedy, Scope, error, remedy_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCOPES: Mapping[Scope, str] = MappingProxyType(
    {
        Scope.CONNECTION: "closes",
        Scope.REQUEST: "goes on",
        Scope.EITHER: "goes on if the error names a request or subscription, closes if it names none",
        Scope.LOCAL: "has no part in it: raised on the spot, never sent",
    }
)
"""What the connection does, by an error's scope."""


def _complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in BY_NAME if name.startswith(incomplete.upper())]


@click.command("errors")
@click.argument("which", metavar="[CODE|NAME|REMEDY]", required=False, shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="An array, or the object of one code.")
def command(which: str | None, as_json: bool) -> None:
    """Explain the error codes: all of them, those of a remedy, or one.

    The thousand of a code says what to do: 1 retry, 2 resume, 3 stop, 4 storage. Codes and names never change their
    meaning; of a code that this version does not know, the thousand still holds.

    \b
    broker errors
    broker errors SLOW_CONSUMER
    broker errors 4001 --json
    broker errors retry
    """
    rows = list(ERROR_CODES) if which is None else _of_remedy(which)
    one = None if rows or which is None else _find(which)
    if as_json:
        import json

        click.echo(json.dumps(_fields(one) if one else [_fields(row) for row in rows], indent=2))
    elif one is not None:
        _print_one(one)
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            click.echo(f"{row.code}\t{row.name}\t{row.remedy}\t{row.summary}")


def _of_remedy(which: str) -> list[ErrorCode]:
    """Return the rows of a remedy by its name, or nothing if it is none."""
    return [row for row in ERROR_CODES if row.remedy == which.lower()]


def _find(which: str) -> ErrorCode:
    """Return the row of a code or of a name in any case.

    Raises:
        click.UsageError: there is none; it says what the code's thousand asks for, or which names are near.
    """
    for row in ERROR_CODES:
        if which in (str(row.code), row.name) or which.upper() == row.name:
            return row
    if which.isascii() and which.isdecimal() and 1_000 <= int(which[:6]) < 5_000:
        remedy = remedy_of(int(which[:6]))
        raise click.UsageError(
            f"this version knows no error {which}; codes {which[0]}xxx mean {remedy}: {REMEDY_MEANINGS[remedy]}"
        )
    from difflib import get_close_matches

    near = get_close_matches(which.upper(), [*BY_NAME, *(remedy.upper() for remedy in Remedy)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "broker errors lists them all"
    raise click.UsageError(f"no error is called {which!a}: {hint}")


def _fields(row: ErrorCode) -> dict[str, object]:
    return {
        "code": row.code,
        "name": row.name,
        "remedy": row.remedy,
        "temporary": row.remedy is Remedy.RETRY,
        "scope": row.scope,
        "summary": row.summary,
        "advice": row.advice,
        "class": row.kind.__name__,
        "exit_status": int(exit_code_of(error(row.code, ""))),
    }


def _print_one(row: ErrorCode) -> None:
    """Print all that is known of one code."""
    click.echo(f"{row.name} ({row.code}), {row.remedy}: {row.summary}\n{row.advice}\n")
    facts = {
        "remedy": f"{row.remedy}: {REMEDY_MEANINGS[row.remedy]}",
        "temporary": "yes" if row.remedy is Remedy.RETRY else "no",
        "connection": _SCOPES[row.scope],
        "raised as": row.kind.__name__,
        "exit status": str(int(exit_code_of(error(row.code, "")))),
    }
    for name, fact in facts.items():
        click.echo(f"  {name:12} {fact}")


def _print_table(rows: list[ErrorCode]) -> None:
    """Print rows as a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("code", "name", "remedy"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what has happened")
    for row in rows:
        table.add_row(str(row.code), row.name, str(row.remedy), row.summary)
    Console(file=sys.stdout).print(table)
