"""`broker metrics`: the registry of `/metrics` for people and scripts, and the dashboard that shows them."""

from __future__ import annotations

import sys
from importlib.resources import files

import click

from broker.model.metrics import METRIC_BY_NAME, METRICS, Metric


def _complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in METRIC_BY_NAME if name.startswith(incomplete.lower())]


@click.command("metrics")
@click.argument("which", metavar="[NAME]", required=False, shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="An array of all, or the object of one.")
@click.option("--dashboard", is_flag=True, help="Print the Grafana dashboard instead, to be imported there.")
def command(which: str | None, as_json: bool, dashboard: bool) -> None:
    """Explain the metrics that a server with --web answers at /metrics, all of them or one.

    Names are stable, so that alarms may rest on them. Prometheus also finds `process_open_fds` and the like there.

    \b
    broker metrics
    broker metrics broker_delivery_duration_seconds
    broker metrics --dashboard > broker.json
    """
    if dashboard:
        click.echo(files("broker.edge").joinpath("web", "grafana.json").read_text(encoding="utf-8"), nl=False)
    elif as_json:
        import json

        found = [_fields(row) for row in METRICS] if which is None else _fields(_find(which))
        click.echo(json.dumps(found, indent=2))
    elif which is not None:
        row = _find(which)
        click.echo(f"{row.name}, {row.kind}: {row.meaning}")
    elif sys.stdout.isatty():
        _print_table()
    else:
        for row in METRICS:
            click.echo(f"{row.kind}\t{row.name}\t{row.meaning}")


def _find(which: str) -> Metric:
    """Return the metric of a name in any case."""
    row = METRIC_BY_NAME.get(which.lower())
    if row is not None:
        return row
    from difflib import get_close_matches

    near = get_close_matches(which.lower(), METRIC_BY_NAME, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "broker metrics lists them all"
    raise click.UsageError(f"no metric is called {which!a}: {hint}")


def _fields(row: Metric) -> dict[str, str]:
    return {"metric": row.name, "type": row.kind, "meaning": row.meaning}


def _print_table() -> None:
    """Print the registry as a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("type", "metric"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it is")
    for row in METRICS:
        table.add_row(row.kind, row.name, row.meaning)
    Console(file=sys.stdout).print(table)
