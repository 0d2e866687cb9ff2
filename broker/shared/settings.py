"""Which settings a shared directory's server has: those of its file, of whoever started it, or of the one before.

An opener may ask for profiles, limits and sizes, or for nothing. A server that is started takes, in this order:
`broker.toml`, if somebody has put that into the directory; what the opener asks for; what the last opener that asked
for anything did, kept in `shared.toml`. So a process that asks for nothing may restart the server of one that does.

A server that runs already keeps what it has. An opener that asked for something else is told which, and what the server
has instead; one that asked for nothing takes it as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from broker.config.config import Config
from broker.config.judge import plain
from broker.config.sections import StorageConfig
from broker.config.toml import toml_value
from broker.model.errors import error
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.model.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from broker.model.errors import BrokerError

__all__ = ["BY_HAND", "KEPT", "SERVER", "Asked", "differs", "read_server"]

BY_HAND = "broker.toml"
KEPT = "shared.toml"
SERVER = "server.json"
_SERVER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What an opener asked for: only what is not the default.

    Attributes:
        sections: values as TOML and JSON have them, by section and name.
        profiles: the same of each profile, with all its values; empty when none were asked for.
    """

    sections: Mapping[str, Mapping[str, object]]
    profiles: Sequence[Mapping[str, object]]

    @classmethod
    def of(cls, profiles: Sequence[Profile], limits: Limits | None, storage: Mapping[str, int]) -> Self:
        """Take the arguments of `Broker.open`.

        Raises:
            ConfigError: INVALID_CONFIG; they are out of range, or contradict each other.
        """
        usual, asked = Limits(), limits or Limits()
        Config(limits=asked, storage=StorageConfig(**storage), profiles=Profiles(profiles))
        changed = {
            name: plain(getattr(asked, name))
            for name in settings_of(asked)
            if getattr(asked, name) != getattr(usual, name)
        }
        rows = [{each.name: plain(getattr(profile, each.name)) for each in fields(profile)} for profile in profiles]
        return cls({name: values for name, values in (("limits", changed), ("storage", storage)) if values}, rows)

    def __bool__(self) -> bool:
        return bool(self.sections or self.profiles)

    def toml(self) -> str:
        """Return it as a configuration file."""
        return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        yield "# What the last opener that asked for anything asked for; the next one of that kind writes the file"
        yield f"# anew. Settings that are to stay belong into {BY_HAND}, which goes before this file."
        for section, values in self.sections.items():
            yield from ("", f"[{section}]", *_pairs(section, values))
        for profile in self.profiles:
            yield from ("", "[[profiles]]", *_pairs("profile", profile))

    def difference(self, server: Mapping[str, Any]) -> str | None:
        """Return what a server has other than asked for, in words; None when nothing is.

        Args:
            server: its settings, by section, as `server.json` has them.
        """
        for section, values in self.sections.items():
            has = server.get(section, {})
            for name, value in values.items():
                if has.get(name) != value:
                    return f"{section}.{name}: got {has.get(name)!r} of the server, expected {value!r}"
        if self.profiles:
            return self._profiles_difference(server.get("profiles", []))
        return None

    def _profiles_difference(self, has: Sequence[Mapping[str, Any]]) -> str | None:
        if len(has) != len(self.profiles):
            return f"profiles: got {len(has)} of the server, expected {len(self.profiles)}"
        for index, (profile, found) in enumerate(zip(self.profiles, has, strict=True)):
            for name, value in profile.items():
                if found.get(name) != value:
                    return f"profiles[{index}].{name}: got {found.get(name)!r} of the server, expected {value!r}"
        return None


def _pairs(section: str, values: Mapping[str, object]) -> Iterator[str]:
    for name, value in values.items():
        yield f"{name} = {toml_value(value, f'{section}.{name}')}"


def read_server(path: Path) -> dict[str, Any]:
    """Return what the directory's last server wrote of itself; empty when there is nothing to be read.

    Args:
        path: the directory.
    """
    try:
        with (path / SERVER).open("rb") as file:
            told = json.loads(file.read(_SERVER_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def differs(path: Path, difference: str) -> BrokerError:
    """Return the error for an opener whose settings are not those of the server, not raised."""
    return error(
        "INVALID_CONFIG",
        f"shared {path}: {difference}",
        f"Ask for the same as who started the server, or for nothing; what is meant for all belongs into {BY_HAND} in "
        "the directory. The settings of a server that is idle end with it.",
    )
