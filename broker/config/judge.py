"""Everything that is wrong with a configuration at once, and what is legal and probably not meant.

The judge reads the same sources in the same order as a start of the server does, and finds something wrong exactly when
that start would be refused for its configuration.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker.config.config import Config, Origin, assemble
from broker.config.listeners import (
    Guard,
    check_listen_address,
    check_listeners,
    check_unix_path,
    check_web,
    guard_of,
    takes_uvloop,
)
from broker.config.sections import SECTIONS, ServerConfig
from broker.config.sources import DEFAULT, ENVIRONMENT_PREFIX, Problem, Source, read_sources
from broker.model.errors import ConfigError
from broker.model.limits import DESCRIPTORS_RESERVED, Limits
from broker.model.names import covers
from broker.model.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.config.sources import Reading

_OTHERS = {"BROKER_CONFIG", "BROKER_URL", "BROKER_DEBUG", "BROKER_ONLY"}
"""Variables that are ours and no setting."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of reading a configuration.

    Attributes:
        config: the configuration, or None if anything is wrong.
        problems: all that a start would refuse it for.
        warnings: what is legal and probably wrong.
        origins: where each value that is no default was set, by dotted key.
    """

    config: Config | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    origins: Mapping[str, Source]


def judge(
    path: str | None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    descriptors_max: int | None = None,
) -> Judgement:
    """Read a configuration as a start would, and tell all that is wrong with it.

    Args:
        path: a TOML file, or None for no file.
        environ: the environment; None means `os.environ`.
        flags: values by dotted key.
        descriptors_max: the limit of open files that the server will have; None says nothing about it.
    """
    environment = os.environ if environ is None else environ
    origin = Origin(path, dict(flags or {}))
    reading = read_sources(path, environment, origin.flags)
    config, problems = assemble(reading, origin)
    if "server" not in reading.wrong:
        problems += _of_the_server(reading)
    warnings = list(_misspelt(environment))
    if config is not None:
        warnings += _suspicious(config, reading, descriptors_max)
    return Judgement(None if problems else config, tuple(problems), tuple(warnings), reading.origins)


def _of_the_server(reading: Reading) -> Iterator[Problem]:
    """Yield what a start refuses of the server's section after it was read."""
    try:
        server = ServerConfig(**reading.values["server"])
    except ConfigError:
        return  # told already
    tls, access = reading.values["tls"].get("certificate"), reading.values["access"].get("file")
    guard = guard_of(server, Guard(bool(tls), bool(access)))
    if not server.tcp and not server.unix and not server.web:
        yield from _refused(reading, "server.tcp", lambda: check_listeners(server))
    if server.tcp:
        yield from _refused(reading, "server.tcp", lambda: check_listen_address(server.tcp, guard))
    if server.web:
        yield from _refused(reading, "server.web", lambda: check_listen_address(server.web, guard))
        yield from _refused(reading, "server.web", lambda: check_web(server.web))
    yield from _refused(reading, "server.unix", lambda: check_unix_path(server.unix))
    yield from _refused(reading, "server.loop", lambda: takes_uvloop(server.loop))


def _refused(reading: Reading, key: str, check: Callable[[], object]) -> Iterator[Problem]:
    """Yield the problem of a key if a check refuses it."""
    try:
        check()
    except ConfigError as failure:
        reason = failure.detail.removeprefix(f"{key}: ")
        yield Problem(key, reason, reading.origins.get(key, DEFAULT), failure.hint, failure.name)


def _misspelt(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield variables that look like a setting and are none, and are passed over therefore."""
    from difflib import get_close_matches

    sections = {f"{ENVIRONMENT_PREFIX}_{name.upper()}_" for name in SECTIONS}
    known = [
        f"{ENVIRONMENT_PREFIX}_{section}_{name}".upper()
        for section, kind in SECTIONS.items()
        for name in settings_of(kind)
    ]
    for variable in sorted(set(environ) - _OTHERS):
        if not variable.startswith(f"{ENVIRONMENT_PREFIX}_") or variable.startswith(tuple(sections)):
            continue
        near = get_close_matches(variable, known, n=1, cutoff=0.85)
        if near:
            source = Source("environment", variable)
            yield Problem("", f"environment variable {variable} is no setting", source, f"did you mean {near[0]}?")


def _suspicious(config: Config, reading: Reading, descriptors_max: int | None) -> Iterator[Problem]:
    """Yield what is legal and probably not meant."""
    found: list[tuple[str, str, str]] = [*_suspicious_limits(config.limits, descriptors_max)]
    if config.storage.reserve_bytes == 0:
        reason = "got 0 bytes: nothing is kept free, so the journal may fill the file system for everybody on it"
        found.append(
            ("storage.reserve_bytes", reason, "Keep some MiB free; publishing then stops before the disk is full.")
        )
    found += _suspicious_profiles(config)
    for key, reason, hint in found:
        yield Problem(key, reason, reading.origins.get(key, DEFAULT), hint)


def _suspicious_limits(limits: Limits, descriptors_max: int | None) -> Iterator[tuple[str, str, str]]:
    if limits.ping_timeout_s < 2 * limits.ping_interval_s:
        yield (
            "limits.ping_timeout_s",
            f"got {limits.ping_timeout_s:g} seconds, expected at least twice limits.ping_interval_s, "
            f"{2 * limits.ping_interval_s:g} seconds, for one late answer not to end a connection",
            "Raise limits.ping_timeout_s or lower limits.ping_interval_s.",
        )
    if descriptors_max is not None and limits.connections_bound(descriptors_max) < limits.connections_max:
        yield (
            "limits.connections_max",
            f"got {limits.connections_max} connections, limit {limits.connections_bound(descriptors_max)} connections: "
            f"{descriptors_max} open files less {DESCRIPTORS_RESERVED} for the broker itself",
            f"Raise the limit of open files (ulimit -n) to {limits.connections_max + DESCRIPTORS_RESERVED} or more.",
        )


def _suspicious_profiles(config: Config) -> Iterator[tuple[str, str, str]]:
    for index, profile in enumerate(config.profiles):
        if profile.channels_max > config.limits.channels_max:
            yield (
                f"profiles[{index}].channels_max",
                f"got {profile.channels_max} channels, limit {config.limits.channels_max} channels, "
                "limits.channels_max: the profile's own bound is never reached",
                "Lower it, or raise limits.channels_max.",
            )
    if not any(covers(profile.pattern, b">") for profile in config.profiles):
        yield (
            "profiles",
            "none matches every channel; a channel that none matches is refused with NO_PROFILE",
            'Add a last profile with pattern = ">" unless that is meant.',
        )


def described(config: Config, origins: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    """Yield each setting of a configuration as plain values, with its origin; a secret's value is hidden.

    Args:
        config: the configuration.
        origins: as in `Judgement`.
    """
    parts = [(name, name, getattr(config, name)) for name in SECTIONS]
    parts += [("profile", f"profiles[{index}]", profile) for index, profile in enumerate(config.profiles)]
    for section, prefix, values in parts:
        defaults = {found: field.default for found, field in type(values).__dataclass_fields__.items()}
        for name, setting in settings_of(values).items():
            key = f"{prefix}.{name}"
            source = origins.get(key, DEFAULT)
            yield {
                "key": key,
                "section": section,
                "value": setting.shown(plain(getattr(values, name))),
                "default": setting.shown(plain(defaults[name])) if name != "pattern" else None,
                "origin": {"kind": source.kind, "name": source.name or None, "line": source.line},
                "unit": setting.unit or None,
                "low": setting.low,
                "high": setting.high,
                "choices": list(setting.choices) or None,
                "reloadable": setting.reloadable,
                "secret": setting.secret,
                "meaning": setting.doc,
            }


def plain(value: object) -> object:
    """Return a setting's value as TOML and JSON have it: a level is its name, a pattern is text."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    return getattr(value, "label", value)
