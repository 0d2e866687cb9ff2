"""One frozen value of all settings, how it is put together, and what of a new one a running server takes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.config.listeners import Guard
from broker.config.sections import (
    SECTIONS,
    AccessConfig,
    ServerConfig,
    StorageConfig,
    TlsConfig,
    TracingConfig,
    WebConfig,
)
from broker.config.sources import DEFAULT, Problem, read_sources
from broker.model.errors import ConfigError
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.model.settings import MIB, invalid, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from broker.config.sources import Reading
    from broker.model.settings import Section


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration was read from, so that it can be read again.

    Attributes:
        path: the file, or None.
        flags: what the command line set, by dotted key.
    """

    path: str | None
    flags: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; immutable.

    Raises:
        ConfigError: INVALID_CONFIG; two sections contradict each other.
    """

    server: ServerConfig = field(default_factory=ServerConfig)
    limits: Limits = field(default_factory=Limits)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    profiles: Profiles = field(default_factory=Profiles)
    web: WebConfig = field(default_factory=WebConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    origin: Origin = field(default_factory=lambda: Origin(None, {}), compare=False, repr=False)

    @property
    def guard(self) -> Guard:
        """What stands between its listeners and strangers."""
        return Guard(tls=bool(self.tls.certificate), access=bool(self.access.file))

    def __post_init__(self) -> None:
        # A segment takes the group that is over its bound by one largest frame, and the seal beside it.
        least = 2 * (self.limits.group_bytes_max + self.limits.frame_bytes_max)
        if self.storage.segment_bytes < least:
            raise invalid(
                "storage.segment_bytes",
                f"got {self.storage.segment_bytes} bytes, expected at least {least} bytes: "
                "2 x (limits.group_bytes_max + largest frame)",
            )
        for index, profile in enumerate(self.profiles):
            if profile.payload_bytes_max > self.limits.payload_bytes_max:
                raise invalid(
                    f"profiles[{index}].payload_bytes_max",
                    f"got {profile.payload_bytes_max} bytes, limit {self.limits.payload_bytes_max} bytes, "
                    "limits.payload_bytes_max",
                )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Config:
        """Read a configuration: defaults < file < environment < flags.

        Args:
            path: a TOML file, or None for no file.
            environ: the environment; None means `os.environ`.
            flags: values by dotted key, `{"server.tcp": "127.0.0.1:0"}`; a value of None was not given.

        Returns:
            The configuration, which remembers `path` and `flags` for `reload`.

        Raises:
            ConfigError: INVALID_CONFIG; a source cannot be read, or a key, a type or a range is wrong.
        """
        origin = Origin(None if path is None else os.fspath(path), dict(flags or {}))
        config, problems = assemble(
            read_sources(origin.path, os.environ if environ is None else environ, origin.flags), origin
        )
        if problems:
            raise problems[0].error()
        assert config is not None
        return config

    def reload(self, environ: Mapping[str, str] | None = None) -> tuple[Config, tuple[str, ...]]:
        """Read the same sources again and take what a running server can change.

        Args:
            environ: the environment; None means `os.environ`.

        Returns:
            The configuration to go on with, and the keys whose new values wait for a restart.

        Raises:
            ConfigError: INVALID_CONFIG; the new configuration is not acceptable, so go on with this one.
        """
        return self.adopt(Config.load(self.origin.path, environ, self.origin.flags))

    def adopt(self, fresh: Config) -> tuple[Config, tuple[str, ...]]:
        """Return this configuration with the reloadable settings of another, and the keys that were not taken.

        Raises:
            ConfigError: INVALID_CONFIG; a setting that is taken contradicts one that is not.
        """
        sections: dict[str, Any] = {}
        kept: list[str] = []
        for name in SECTIONS:
            sections[name], left = _adopt(getattr(self, name), getattr(fresh, name))
            kept += left
        return replace(self, **sections, profiles=fresh.profiles), tuple(kept)

    @classmethod
    def small(cls) -> Config:
        """Return a configuration whose every bound a test reaches quickly, on a free loopback port."""
        return cls(
            ServerConfig(tcp="127.0.0.1:0", drain_s=0.5),
            Limits.small(),
            StorageConfig(segment_bytes=1 * MIB, reserve_bytes=0),
        )


def assemble(reading: Reading, origin: Origin) -> tuple[Config | None, list[Problem]]:
    """Put together what was read.

    Values that contradict each other are looked for only among sections whose values are good by themselves.

    Args:
        reading: the values and what is wrong with them so far.
        origin: what the configuration remembers for `reload`.

    Returns:
        The configuration, or None if anything is wrong, and all that is wrong.
    """
    problems = list(reading.problems)
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        sections[name] = None if name in reading.wrong else _section(kind, name, reading, problems)
    numbers, profiles = _ordered(reading, problems)
    if None in sections.values():
        return None, problems
    while True:
        try:
            config = Config(**sections, profiles=profiles, origin=origin)
        except ConfigError as failure:
            problems.append(_contradiction(failure, reading, numbers))
            sections, profiles = _without(failure.detail.partition(": ")[0], sections, profiles)
        else:
            return (None if problems else config), problems


def _section(kind: type[Section], name: str, reading: Reading, problems: list[Problem]) -> Section | None:
    """Build a section; each value that contradicts another is told and left out. None if that does not help."""
    values = dict(reading.values[name])
    while True:
        try:
            return kind(**values)
        except ConfigError as failure:
            problem = _contradiction(failure, reading, [])
            if problem in problems:
                return None
            problems.append(problem)
            if values.pop(problem.key.rpartition(".")[2], None) is None:
                return None


def _ordered(reading: Reading, problems: list[Problem]) -> tuple[list[int], Profiles]:
    """Put the profiles in their order; each that is never reached is told and left out.

    Returns:
        The number in the file of each profile that is left, and these profiles.
    """
    numbers: list[int] = []
    kept: list[Profile] = []
    for number, profile in reading.profiles:
        try:
            Profiles([*kept, profile])
        except ConfigError as failure:
            problems.append(_contradiction(failure, reading, [*numbers, number]))
        else:
            numbers.append(number)
            kept.append(profile)
    return numbers, Profiles(kept)


def _contradiction(failure: ConfigError, reading: Reading, numbers: list[int]) -> Problem:
    """Return what is said of values together as a problem of the key that it names.

    Args:
        failure: whose detail is `key: reason`.
        reading: knows where the key was set.
        numbers: what `profiles[0]`, `profiles[1]`… of the detail are called in the file.
    """
    detail = re.sub(r"profiles\[([0-9]+)\]", lambda found: f"profiles[{numbers[int(found[1])]}]", failure.detail)
    key, _, reason = detail.partition(": ")
    return Problem(key, reason, reading.origins.get(key, DEFAULT), failure.hint)


def _without(key: str, sections: dict[str, Any], profiles: Profiles) -> tuple[dict[str, Any], Profiles]:
    """Return sections and profiles in which the value of a key contradicts nothing."""
    if key == "storage.segment_bytes":
        high = settings_of(StorageConfig)["segment_bytes"].high
        return sections | {"storage": replace(sections["storage"], segment_bytes=int(high or 0))}, profiles
    index = int(key.partition("[")[2].partition("]")[0])
    return sections, Profiles(
        replace(profile, payload_bytes_max=0) if at == index else profile for at, profile in enumerate(profiles)
    )


def _adopt(current: Any, fresh: Any) -> tuple[Any, list[str]]:
    """Return a section with the reloadable values of another, and the keys that differ and were not taken."""
    taken: dict[str, Any] = {}
    kept: list[str] = []
    for name, described in settings_of(current).items():
        value = getattr(fresh, name)
        if value == getattr(current, name):
            continue
        if described.reloadable:
            taken[name] = value
        else:
            kept.append(f"{current.SECTION}.{name}")
    return replace(current, **taken), kept
