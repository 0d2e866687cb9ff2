"""`broker config`: judge a configuration before a server meets it, and show what one would run with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from broker.cli import ExitCode, exit_code_of
from broker.cli.options import config_option, overrides, set_option

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from broker.config.judge import Judgement
    from broker.config.sources import Problem

_FILE_HELP = "TOML file, as for `broker serve`."
_SET_HELP = "A setting, as for `broker serve`, such as limits.payload_bytes_max=65536; repeatable."


@click.group("config")
def command() -> None:
    """Check a configuration, or show the effective one.

    Settings come from defaults, then the file of --config, then the environment (BROKER_SERVER_TCP,
    BROKER_LIMITS_PAYLOAD_BYTES_MAX, ...), then --set; the last one wins, exactly as for `broker serve`.

    \b
    broker config check --config broker.toml && kill -HUP "$PID"
    broker config show --config broker.toml | grep ping
    broker config show --toml > broker.toml
    """


@command.command("check")
@config_option(_FILE_HELP)
@set_option(_SET_HELP)
@click.option("--json", "as_json", is_flag=True, help="One object: ok, problems, warnings.")
def check(config_path: Path | None, settings: tuple[str, ...], as_json: bool) -> ExitCode:
    """Tell everything that is wrong with a configuration, and what is legal and probably not meant.

    Exit status 0 if `broker serve` would take it, 5 if not. Warnings do not change the status.

    \b
    broker config check --config broker.toml
    BROKER_LIMITS_CHANNELS_MAX=5000 broker config check --json | jq '.problems[].key'
    """
    judgement = _judge(config_path, settings)
    if as_json:
        _print_json(
            {
                "ok": judgement.config is not None,
                "problems": [_fields(problem) for problem in judgement.problems],
                "warnings": [_fields(warning) for warning in judgement.warnings],
            }
        )
        return _status(judgement)
    for warning in judgement.warnings:
        _print_problem(f"warning {warning.detail}", warning.hint)
    if judgement.config is None:
        return _refuse(judgement)
    given, profiles = len(judgement.origins), len(judgement.config.profiles)
    click.echo(f"ok: {_count(given, 'value')} set, {_count(profiles, 'profile')}, "
               f"{_count(len(judgement.warnings), 'warning')}")  # fmt: skip
    return ExitCode.OK


@command.command("show")
@config_option(_FILE_HELP)
@set_option(_SET_HELP)
@click.option("--toml", "form", flag_value="toml", help="A commented file that `broker serve` takes as it is.")
@click.option("--json", "form", flag_value="json", help="An array of settings.")
@click.option("--defaults", is_flag=True, help="Pass over file, environment and --set.")
def show(config_path: Path | None, settings: tuple[str, ...], form: str | None, defaults: bool) -> ExitCode | None:
    """Show each setting: value, unit, origin, what is accepted, and whether SIGHUP takes a change.

    In a pipe the columns are separated by tabs. Secret values are hidden.

    \b
    broker config show --config broker.toml
    broker config show --json | jq '.[] | select(.origin.kind != "default")'
    broker config show --toml --defaults > broker.toml
    """
    from broker.config import Config
    from broker.config.judge import Judgement, described

    judgement = Judgement(Config(), (), (), {}) if defaults else _judge(config_path, settings)
    if judgement.config is None:
        return _refuse(judgement)
    if form == "toml":
        from broker.config.toml import toml_of

        click.echo(toml_of(judgement.config, judgement.origins), nl=False)
    elif form == "json":
        _print_json(list(described(judgement.config, judgement.origins)))
    else:
        _print_settings(described(judgement.config, judgement.origins))
    return None


def _judge(config_path: Path | None, settings: tuple[str, ...]) -> Judgement:
    """Judge what these options and the environment say, on this machine."""
    import resource

    from broker.config.judge import judge

    descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    path = None if config_path is None else str(config_path)
    judgement = judge(path, flags=overrides(settings), descriptors_max=descriptors_max)
    return judgement if judgement.config is None else _with_access_file(judgement, judgement.config.access.file)


def _with_access_file(judgement: Judgement, path: str) -> Judgement:
    """Judge the access file as well, which the configuration only names: a start would be refused for it, too."""
    if not path:
        return judgement
    from dataclasses import replace

    from broker.access.access_file import read_access_file
    from broker.config.sources import Problem
    from broker.model.errors import ConfigError

    try:
        read_access_file(path)
    except ConfigError as failure:
        problem = Problem(
            "access.file", failure.detail, judgement.origins.get("access.file"), failure.hint, failure.name
        )
        return replace(judgement, config=None, problems=(problem,))
    return judgement


def _status(judgement: Judgement) -> ExitCode:
    return exit_code_of(judgement.problems[0].error()) if judgement.problems else ExitCode.OK


def _refuse(judgement: Judgement) -> ExitCode:
    """Print everything that is wrong, each as a start would."""
    for problem in judgement.problems:
        failure = problem.error()
        _print_problem(f"error {failure}", failure.hint)
    click.echo(f"{_count(len(judgement.problems), 'problem')}", err=True)
    return _status(judgement)


def _print_problem(line: str, hint: str | None) -> None:
    from broker.cli.main import printable

    click.echo(printable(line), err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


def _fields(problem: Problem) -> dict[str, object]:
    failure = problem.error()
    source = problem.source
    return {
        "key": problem.key or None,
        "code": failure.code,
        "name": failure.name,
        "reason": problem.reason,
        "got": problem.got,
        "expected": problem.expected,
        "source": source and {"kind": source.kind, "name": source.name or None, "line": source.line},
        "detail": failure.detail,
        "hint": failure.hint,
    }


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _print_json(body: object) -> None:
    import json

    click.echo(json.dumps(body, indent=2))


def _print_settings(settings: Iterable[dict[str, Any]]) -> None:
    """Print settings as lines of tabs, or on a terminal as a table as wide as it is."""
    rows = [_row(setting) for setting in settings]
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "value", "unit", "origin", "accepted", "change"):
        table.add_column(heading, no_wrap=heading in ("setting", "unit", "change"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout).print(table)


def _row(setting: dict[str, Any]) -> tuple[str, ...]:
    from broker.cli.main import printable
    from broker.config.sources import Source

    origin = Source(**{**setting["origin"], "name": setting["origin"]["name"] or ""})
    accepted = "text"
    if setting["choices"]:
        accepted = ", ".join(setting["choices"])
    elif setting["low"] is not None:
        accepted = f"{setting['low']} to {setting['high']}"
    value = setting["value"]
    return (
        setting["key"],
        printable(value) if isinstance(value, str) else f"{value:.15g}",
        setting["unit"] or "",
        printable(str(origin)),
        accepted,
        "SIGHUP" if setting["reloadable"] else "restart",
    )
