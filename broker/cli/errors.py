"""`broker errors`: the registry of errors for people and scripts."""

from __future__ import annotations

import sys

import click

from broker.model.errors import BY_NAME, ERROR_CODES, ErrorCode


@click.command("errors")
@click.argument("which", metavar="[CODE|NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="An array of all, or the object of one.")
def command(which: str | None, as_json: bool) -> None:
    """Explain the error codes, all of them or one.

    The thousand of a code says what to do: 1 retry, 2 resume, 3 stop, 4 storage.
    """
    if as_json:
        import json

        found = [_fields(row) for row in ERROR_CODES] if which is None else _fields(_find(which))
        click.echo(json.dumps(found, indent=2))
    elif which is not None:
        row = _find(which)
        click.echo(f"{row.name} ({row.code}), {row.remedy}: {row.summary}\n{row.advice}")
    elif sys.stdout.isatty():
        _print_table()
    else:
        for row in ERROR_CODES:
            click.echo(f"{row.code}\t{row.name}\t{row.remedy}\t{row.summary}")


def _find(which: str) -> ErrorCode:
    """Return the row of a code or of a name in any case."""
    for row in ERROR_CODES:
        if which in (str(row.code), row.name) or which.upper() == row.name:
            return row
    from difflib import get_close_matches

    near = get_close_matches(which.upper(), BY_NAME, n=1)
    hint = f"did you mean {near[0]}?" if near else "broker errors lists them all"
    raise click.UsageError(f"no error is called {which!a}: {hint}")


def _fields(row: ErrorCode) -> dict[str, object]:
    return {
        "code": row.code,
        "name": row.name,
        "remedy": row.remedy,
        "summary": row.summary,
        "advice": row.advice,
    }


def _print_table() -> None:
    """Print the registry as a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("code", "name", "remedy"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what has happened")
    for row in ERROR_CODES:
        table.add_row(str(row.code), row.name, str(row.remedy), row.summary)
    Console(file=sys.stdout).print(table)
