"""Reading a configuration's sources: every value in its type and range, with the place that set it.

Reading never stops at the first mistake: each is kept as a `Problem`, so that `broker config check` can tell all of
them and `Config.load` raises the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

from broker.config.lines import setting_lines
from broker.config.sections import SECTIONS
from broker.model.errors import BrokerError, error
from broker.model.levels import Level, parse_level
from broker.model.positions import U64_MAX
from broker.model.profiles import Profile
from broker.model.settings import GIB, KIB, MIB, Setting, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from broker.model.settings import Section

ENVIRONMENT_PREFIX = "BROKER"


class Source(NamedTuple):
    """Where a value came from.

    Attributes:
        kind: "default", "file", "environment" or "flag".
        name: the file's path or the variable's name; empty for the others.
        line: in the file, from 1, or None if it is not known.
    """

    kind: str
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.kind == "flag":
            return "command line"
        place = f":{self.line}" if self.line is not None else ""
        return f"{self.kind} {self.name}{place}".rstrip()


DEFAULT = Source("default")
FLAG = Source("flag")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or probably wrong, with a configuration.

    Attributes:
        key: dotted, `limits.channels_max` or `profiles[0].pattern`; empty when it is about a whole source.
        reason: what is wrong, as a rule `got …, expected …`.
        source: who said so; None when it takes several to be wrong.
        hint: what to do about it, or None for the registry's advice.
        code_name: of the error that a start would end with.
    """

    key: str
    reason: str
    source: Source | None = None
    hint: str | None = None
    code_name: str = "INVALID_CONFIG"

    @property
    def detail(self) -> str:
        """What, got, limit, unit and the source, in one line."""
        where = f" ({self.source})" if self.source is not None and self.source != DEFAULT else ""
        return (f"{self.key}: " if self.key else "") + self.reason + where

    @property
    def got(self) -> str | None:
        """What was given, if the reason says it."""
        found = _REASON.match(self.reason)
        return found[1] if found else None

    @property
    def expected(self) -> str | None:
        """What would have been accepted, if the reason says it."""
        found = _REASON.match(self.reason)
        return found[2] if found else None

    def error(self) -> BrokerError:
        """Return the error that a start ends with, not raised."""
        return error(self.code_name, self.detail, self.hint)


_REASON = re.compile(r"got (.+?), (?:expected|limit) (.+)", re.DOTALL)


@dataclass(slots=True)
class Reading:
    """What the sources say.

    Attributes:
        values: by section and name; a wrong one is left out.
        origins: by dotted key, of each value that is no default.
        profiles: with their numbers in the file, in their order; a wrong one is left out.
        problems: in the order in which they were met.
        wrong: names of the sections that have a wrong value; what is left of them is not judged as a whole.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {name: {} for name in SECTIONS})
    origins: dict[str, Source] = field(default_factory=dict)
    profiles: list[tuple[int, Profile]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def refuse(self, key: str, reason: str, source: Source, hint: str | None = None) -> None:
        """Keep a problem."""
        self.problems.append(Problem(key, reason, source, hint))

    def take(self, given: _Given) -> None:
        """Keep a value of a section if the section has such a setting and the value is good."""
        key = f"{given.section}.{given.name}"
        kind = SECTIONS[given.section]
        names = list(settings_of(kind))
        if given.name not in names:
            self.refuse(key, "unknown setting", given.source, similar(given.name, names))
            return
        try:
            self.values[given.section][given.name] = convert(kind, given)
            self.origins[key] = given.source
        except _RefusedError as refused:
            self.refuse(key, str(refused), given.source)
            self.wrong.add(given.section)


def read_sources(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Reading:
    """Read a file, an environment and flags; the last one that sets a value wins.

    Args:
        path: a TOML file, or None for no file.
        environ: the environment.
        flags: values by dotted key; a value of None was not given.
    """
    reading = Reading()
    if path is not None:
        _read_file(reading, path)
    for given in [*_environment_layer(reading, environ), *_flag_layer(reading, flags)]:
        reading.take(given)
    return reading


class _Given(NamedTuple):
    """One value as one source gave it."""

    section: str
    name: str
    value: object
    source: Source
    textual: bool  # the source knows nothing but text, so a number may come as one


class _RefusedError(Exception):
    """A value is not accepted; the text is the reason."""


def _read_file(reading: Reading, path: str) -> None:
    """Read a file's sections, then its profiles."""
    import tomllib

    source = Source("file", path)
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        document = tomllib.loads(text)
    except OSError as failure:
        reading.refuse("", f"file {path}: {failure.strerror}", DEFAULT, "Name a TOML file that this user may read.")
        return
    except ValueError as failure:  # not TOML, or not UTF-8
        reading.refuse("", f"file {path}: not valid TOML: {failure}", DEFAULT, "Correct the file at that place.")
        return
    lines = setting_lines(text)
    profiles = document.pop("profiles", [])
    for section, table in document.items():
        here = source._replace(line=lines.get(section))
        if section not in SECTIONS:
            reading.refuse(section, "unknown section", here, similar(section, [*SECTIONS, "profiles"]))
        elif not isinstance(table, dict):
            reading.refuse(section, f"got {_kind(table)}, expected a table", here)
        else:
            for name, value in table.items():
                line = lines.get(f"{section}.{name}", here.line)
                reading.take(_Given(section, name, value, source._replace(line=line), textual=False))
    _read_profiles(reading, profiles, source, lines)


def _read_profiles(reading: Reading, tables: object, source: Source, lines: Mapping[str, int]) -> None:
    """Read a file's `[[profiles]]`."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        here = source._replace(line=lines.get("profiles"))
        reading.refuse("profiles", f"got {_kind(tables)}, expected tables [[profiles]]", here)
        return
    for index, table in enumerate(tables):
        section = f"profiles[{index}]"
        here = source._replace(line=lines.get(section))
        values: dict[str, Any] = {}
        known = len(reading.problems)
        for name, value in table.items():
            given_at = source._replace(line=lines.get(f"{section}.{name}", here.line))
            _take_of_profile(reading, values, _Given(section, name, value, given_at, textual=False))
        if "pattern" not in table:
            reading.refuse(f"{section}.pattern", "missing", here, 'Add pattern = "…", a channel\'s name or a pattern.')
        profile = _profile(reading, section, here, values) if "pattern" in values else None
        if profile is None or len(reading.problems) > known:
            reading.wrong.add("profiles")
            continue
        reading.profiles.append((index, profile))


def _profile(reading: Reading, section: str, here: Source, values: dict[str, Any]) -> Profile | None:
    """Build a profile of values that are good by themselves; each that contradicts another is told and left out."""
    while True:
        try:
            return Profile(**values)
        except BrokerError as failure:
            key, _, reason = failure.detail.partition(": ")
            name = key.rpartition(".")[2]
            key = f"{section}.{name}"
            reading.refuse(key, reason, reading.origins.get(key, here), failure.hint)
            if values.pop(name, None) is None:
                return None


def _take_of_profile(reading: Reading, values: dict[str, Any], given: _Given) -> None:
    """Keep a value of a profile if it is good."""
    key = f"{given.section}.{given.name}"
    names = list(settings_of(Profile))
    if given.name not in names:
        reading.refuse(key, "unknown setting", given.source, similar(given.name, names))
        return
    try:
        value = convert(Profile, given)
        if isinstance(value, bytes):
            Profile(value)  # whose pattern is judged by the profile itself
        values[given.name] = value
        reading.origins[key] = given.source
    except _RefusedError as refused:
        reading.refuse(key, str(refused), given.source)
    except BrokerError as failure:
        reading.refuse(key, failure.detail, given.source, failure.hint)


def _environment_layer(reading: Reading, environ: Mapping[str, str]) -> Iterator[_Given]:
    # Variables of the build and of orchestrators share the BROKER_ prefix, so only those of a section are ours.
    for variable in sorted(environ):
        source = Source("environment", variable)
        if variable.startswith(f"{ENVIRONMENT_PREFIX}_PROFILES"):
            hint = "Write them as [[profiles]] in the file of --config."
            reading.refuse("profiles", "profiles are set in the file only", source, hint)
        for section in SECTIONS:
            prefix = f"{ENVIRONMENT_PREFIX}_{section.upper()}_"
            if variable.startswith(prefix):
                name = variable.removeprefix(prefix).lower()
                yield _Given(section, name, environ[variable], source, textual=True)


def _flag_layer(reading: Reading, flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if value is None:
            continue
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            reading.refuse(key, "unknown setting", FLAG, similar(section, list(SECTIONS)))
        else:
            yield _Given(section, name, value, FLAG, textual=True)


def similar(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known word, or all of them."""
    from difflib import get_close_matches

    words = list(known)
    near = get_close_matches(word, words, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(words)}"


def convert(kind: type[Section], given: _Given) -> object:
    """Return a given value in the type of its field, within its range; _RefusedError if it has none."""
    described = settings_of(kind)[given.name]
    if type(given.value) is int and abs(given.value) > U64_MAX:
        raise _RefusedError(f"got an integer of more than 64 bits, expected {described.accepted()}")
    # Annotations are text in every module of sections, which makes them a plain key of the table of converters.
    annotation = next(found.type for found in fields(kind) if found.name == given.name)
    value = _CONVERTERS[str(annotation)](given, described)
    reason = described.refusal(value)
    if reason:
        raise _RefusedError(reason)
    return value


def _to_int(given: _Given, described: Setting) -> int:
    value = given.value
    if type(value) is int:
        return value
    multiples = _MULTIPLES.get(described.unit, {})
    if isinstance(value, str) and (given.textual or multiples):
        found = re.fullmatch(r"(-?[0-9]{1,20}) ?([A-Za-z]+)?", value)
        if found is not None and found[2] is None and given.textual:
            return int(found[1])
        if found is not None and found[2] in multiples:
            return int(found[1]) * multiples[found[2]]
    raise _RefusedError(f"got {_shown(value, described)}, expected an integer, {described.accepted()}")


def _to_float(given: _Given, described: Setting) -> float:
    value = given.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and given.textual and re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", value):
        return float(value)
    raise _RefusedError(f"got {_shown(value, described)}, expected a number, {described.accepted()}")


def _to_text(given: _Given, described: Setting) -> str:
    if isinstance(given.value, str):
        return given.value
    raise _RefusedError(f"got {_shown(given.value, described)}, expected {described.accepted()}")


def _to_level(given: _Given, described: Setting) -> Level:
    text = _to_text(given, described)
    try:
        return parse_level(text)
    except ValueError:
        raise _RefusedError(f"got {_shown(text, described)}, expected {described.accepted()}") from None


def _to_pattern(given: _Given, described: Setting) -> bytes:
    return _to_text(given, described).encode("utf-8", "surrogatepass")


_MULTIPLES = {
    "bytes": {"KiB": KIB, "MiB": MIB, "GiB": GIB},
    "seconds": {"s": 1, "min": 60, "h": 3_600, "d": 86_400},
}
"""What may stand behind a whole number of a unit, as text."""

_CONVERTERS: dict[str, Callable[[_Given, Setting], object]] = {
    "int": _to_int,
    "float": _to_float,
    "str": _to_text,
    "Level": _to_level,
    "bytes": _to_pattern,
}


def _shown(value: object, described: Setting) -> str:
    """Return a value for a message, with its type, cut short, and hidden if it is secret."""
    if described.secret:
        return f"{_kind(value)} that is not shown"
    text = ascii(value)
    return f"{_kind(value)} {text if len(text) <= 64 else text[:64] + '…'}"


def _kind(value: object) -> str:
    return {dict: "a table", list: "an array", str: "text", bool: "a boolean"}.get(type(value), type(value).__name__)
