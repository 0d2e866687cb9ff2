"""A configuration as a TOML file that reads back as itself, with a comment above each setting that explains it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from broker.config.judge import plain
from broker.config.sections import SECTIONS
from broker.config.sources import DEFAULT
from broker.model.settings import invalid, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.config.config import Config
    from broker.config.sources import Source
    from broker.model.settings import Section, Setting

WIDTH = 100
"""Characters of a comment's line."""


def toml_of(config: Config, origins: Mapping[str, Source]) -> str:
    """Return a complete, commented TOML file of a configuration.

    Args:
        config: what to write; read from the result, with no environment and no flags, it is the same again.
        origins: where values that are no default were set, for the comments.

    Raises:
        ConfigError: INVALID_CONFIG; a path is no UTF-8, which TOML cannot hold.
    """
    lines: list[str] = []
    for name in SECTIONS:
        lines += ["", f"[{name}]", *section_lines(getattr(config, name), name, origins, WIDTH)]
    lines += ["", "# The policy of the channels that match a pattern; the first profile that matches wins."]
    for index, profile in enumerate(config.profiles):
        lines += ["", "[[profiles]]", *section_lines(profile, f"profiles[{index}]", origins, WIDTH if not index else 0)]
    return "\n".join([*lines[1:], ""])


def section_lines(section: Section, prefix: str, origins: Mapping[str, Source], width: int) -> Iterator[str]:
    """Yield the lines of a section.

    Args:
        section: with its values.
        prefix: the dotted name before its keys.
        origins: where values were set.
        width: of comments; 0 leaves them out.
    """
    for name, setting in settings_of(section).items():
        key = f"{prefix}.{name}"
        value = getattr(section, name)
        if width:
            yield from comment(setting, origins.get(key, DEFAULT), width)
        if setting.secret:
            # Whoever reads the file again adds the secret; an empty one is no secret.
            yield f"# {name} = {toml_value(setting.shown(value), key)}" if value else f'{name} = ""'
        else:
            yield f"{name} = {toml_value(plain(value), key)}"


def comment(setting: Setting, source: Source, width: int) -> Iterator[str]:
    """Yield what a setting says about itself, as comments."""
    reload = "taken on SIGHUP" if setting.reloadable else "needs a restart"
    set_by = "" if source == DEFAULT else f"; set by {source!s}"
    facts = f"{setting.accepted()}; {reload}{set_by}"
    for text in (setting.doc, "".join(each if each.isprintable() else ascii(each)[1:-1] for each in facts)):
        yield from textwrap.wrap(text, width, initial_indent="# ", subsequent_indent="#   ")


def toml_value(value: object, key: str) -> str:
    """Return a value as TOML writes it.

    Raises:
        ConfigError: INVALID_CONFIG; the text is no UTF-8.
    """
    if not isinstance(value, str):
        return repr(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        reason = f"got {ascii(value)[:64]}, expected text in UTF-8, the only one that TOML can hold"
        raise invalid(key, reason, "Rename the path, or give it as a flag instead of in a file.") from None
    return '"' + "".join(_ESCAPES.get(each) or (each if each.isprintable() else _escape(each)) for each in value) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


_ESCAPES = {'"': '\\"', "\\": "\\\\"}
