"""What every setting says about itself: meaning, unit, range, and whether a running server takes a change.

A section of settings is a frozen dataclass whose fields carry `metadata=setting(...)`. The values are checked when a
section is built, wherever they came from, so that no part of the broker meets one that is out of range.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Protocol

from broker.model.errors import BrokerError, error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Section(Protocol):
    """A frozen dataclass of settings."""

    SECTION: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field says about itself.

    Attributes:
        doc: what it is for, one sentence.
        unit: of the value, for instance `bytes`; empty for text.
        low: smallest number accepted, or None for text.
        high: largest number accepted, or None for text.
        choices: the only texts accepted; empty for any.
        reloadable: whether a running server takes a change of it on SIGHUP.
        secret: its value is never shown, logged or part of an error.
    """

    doc: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    reloadable: bool
    secret: bool = False

    def accepted(self) -> str:
        """Return what is accepted, in words: `1 to 255 bytes`, `one of a, b`."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is None or self.high is None:
            return "text"
        return f"{self.low} to {self.high} {self.unit}".rstrip()

    def refusal(self, value: object) -> str:
        """Return why a value of the right type is not accepted, or nothing if it is."""
        if self.choices:
            word = getattr(value, "label", value)
            return "" if word in self.choices else f"got {self.shown(word)!r}, expected {self.accepted()}"
        if self.low is None or self.high is None or not isinstance(value, (int, float)):
            return ""
        # Written so that NaN, which compares false with everything, is refused.
        return "" if self.low <= value <= self.high else f"got {self.shown(value)}, expected {self.accepted()}"

    def shown(self, value: object) -> object:
        """Return a value as it may be seen by anybody: itself, or HIDDEN in place of one that is secret."""
        return HIDDEN if self.secret and value else value


HIDDEN = "(hidden)"
"""What stands where a secret value would."""


def setting(
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    reloadable: bool = False,
    secret: bool = False,
) -> Mapping[str, Setting]:
    """Return the `metadata` of a dataclass field that is a setting; the arguments are those of `Setting`."""
    return {"setting": Setting(doc, unit, low, high, choices, reloadable, secret)}


def settings_of(section: Section | type[Section]) -> dict[str, Setting]:
    """Return the settings of a section by field name, in the order of their definition."""
    return {found.name: found.metadata["setting"] for found in fields(section)}


def check_settings(section: Section) -> None:
    """Check every value of a section against its own range.

    Raises:
        ConfigError: INVALID_CONFIG, naming key, value and accepted range.
    """
    for name, described in settings_of(section).items():
        reason = described.refusal(getattr(section, name))
        if reason:
            raise invalid(f"{section.SECTION}.{name}", reason)


def invalid(key: str, reason: str, hint: str | None = None) -> BrokerError:
    """Return the INVALID_CONFIG error of a key, not raised; its detail is `key: reason`."""
    return error("INVALID_CONFIG", f"{key}: {reason}", hint)
