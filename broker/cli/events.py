"""`broker events`: the registry of what the log says, for people and scripts."""

from __future__ import annotations

import sys

import click

from broker.model.events import EVENT_BY_NAME, EVENTS, Event


def _complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in EVENT_BY_NAME if name.startswith(incomplete.lower())]


@click.command("events")
@click.argument("which", metavar="[NAME]", required=False, shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="An array of all, or the object of one.")
def command(which: str | None, as_json: bool) -> None:
    """Explain the events that the log consists of, all of them or one.

    Names and fields are stable, so that alarms may rest on them. `broker serve --log-format json` writes an object a
    line: time (RFC 3339, UTC), level, event, and the event's fields. Every record may also have `suppressed`, how many
    of the same event were left out before it, and `traceback`.

    \b
    broker events
    broker events commit_failed
    broker serve --log-format json 2>&1 | jq 'select(.event == "commit_failed")'
    """
    if as_json:
        import json

        found = [_fields(row) for row in EVENTS] if which is None else _fields(_find(which))
        click.echo(json.dumps(found, indent=2))
    elif which is not None:
        _print_one(_find(which))
    elif sys.stdout.isatty():
        _print_table()
    else:
        for row in EVENTS:
            click.echo(f"{row.severity}\t{row.name}\t{' '.join(field.name for field in row.fields)}\t{row.meaning}")


def _find(which: str) -> Event:
    """Return the event of a name in any case."""
    row = EVENT_BY_NAME.get(which.lower())
    if row is not None:
        return row
    from difflib import get_close_matches

    near = get_close_matches(which.lower(), EVENT_BY_NAME, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "broker events lists them all"
    raise click.UsageError(f"no event is called {which!a}: {hint}")


def _fields(row: Event) -> dict[str, object]:
    return {
        "event": row.name,
        "level": row.severity,
        "logger": f"broker.{row.room}",
        "meaning": row.meaning,
        "advice": row.advice,
        "fields": [{"name": field.name, "type": field.kind, "meaning": field.meaning} for field in row.fields],
    }


def _print_one(row: Event) -> None:
    click.echo(f"{row.name}, {row.severity}: {row.meaning}\n{row.advice}")
    for field in row.fields:
        click.echo(f"  {field.name:12} {field.kind:8} {field.meaning}")


def _print_table() -> None:
    """Print the registry as a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("level", "event"):
        table.add_column(heading, no_wrap=True)
    table.add_column("fields")
    table.add_column("what has happened")
    for row in EVENTS:
        table.add_row(str(row.severity), row.name, " ".join(field.name for field in row.fields), row.meaning)
    Console(file=sys.stdout).print(table)
