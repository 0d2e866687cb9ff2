"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def config_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --config, whose value is a `Path` or None in `config_path`."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="BROKER_CONFIG",
        show_envvar=True,
        help=help_text,
    )


def set_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the repeatable option --set, whose value is for `overrides`, in `settings`."""
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help=help_text, shell_complete=_complete_key
    )


def _complete_key(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from broker.config.sections import SECTIONS
    from broker.model.settings import settings_of

    keys = [f"{section}.{name}=" for section, kind in SECTIONS.items() for name in settings_of(kind)]
    return [key for key in keys if key.startswith(incomplete)]


def overrides(pairs: tuple[str, ...]) -> dict[str, object]:
    """Return `KEY=VALUE` texts as flags by dotted key; the configuration judges both halves.

    Raises:
        click.BadParameter: one is not of that form.
    """
    flags: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(
                f"got {pair!r}, expected KEY=VALUE, such as limits.payload_bytes_max=65536", param_hint="--set"
            )
        flags[key.strip()] = value.strip()
    return flags
