"""Tables of a TOML file, read key by key with the type that is expected, so that what nobody reads is refused."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker.model.errors import BrokerError

_T = TypeVar("_T")
HINT = "Correct the file; access_file.md, beside the module broker.access, says what stands in one."
ID_MAX = (1 << 32) - 2
"""Of users and groups; the last number means none."""


class Row:
    """One table.

    Args:
        data: As it was parsed.
        where: The file's name, and the table's key behind it.
    """

    __slots__ = ("_data", "_read", "_where")

    def __init__(self, data: Mapping[str, object], where: str) -> None:
        self._data = data
        self._where = where
        self._read: list[str] = []

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty, or the default, if there is one, where the key is not given."""
        found = self._typed(key, str, "text", default)
        if not found and found != default:
            raise self.refusal(key, "got empty text, expected some")
        return found

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; one that is not given is empty."""
        found: list[object] = self._typed(key, list, "a list of texts", [])
        texts = [each for each in found if isinstance(each, str)]
        if len(texts) != len(found):
            raise self.refusal(key, "got a list of something else, expected a list of texts")
        return texts

    def number(self, key: str, default: float, high: float) -> float:
        """Return a number of seconds from 0 to a bound."""
        found = self._data.get(key, default)
        self._read.append(key)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= high:
            raise self.refusal(key, f"got {_shown(found)}, expected 0 to {high:g} seconds")
        return float(found)

    def whole(self, key: str) -> int | None:
        """Return the number of a user or a group, or None where the key is not given."""
        found = self._data.get(key)
        self._read.append(key)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= ID_MAX):
            raise self.refusal(key, f"got {_shown(found)}, expected a whole number from 0 to {ID_MAX}")
        return found

    def time_s(self, key: str) -> float | None:
        """Return a moment, seconds since 1970, or None where the key is not given."""
        found = self._data.get(key)
        self._read.append(key)
        if found is None:
            return None
        if not isinstance(found, datetime) or found.tzinfo is None:
            raise self.refusal(key, f"got {_shown(found)}, expected a moment with its zone, 2027-01-31T12:00:00Z")
        return found.timestamp()

    def row(self, key: str) -> Row | None:
        """Return a table in this one, or None where it is not given."""
        found = self._typed(key, dict, f"a table, [{key}]", {})
        return Row(found, self._named(key)) if key in self._data else None

    def rows(self, key: str) -> Iterator[Row]:
        """Return the tables of a list, in their order."""
        found: list[object] = self._typed(key, list, f"tables, [[{key}]]", [])
        return (self._sub(each, f"{key}[{index}]") for index, each in enumerate(found))

    def rows_by_name(self, key: str) -> Iterator[tuple[str, Row]]:
        """Return the tables of a table with their names."""
        found: dict[str, object] = self._typed(key, dict, f"tables, [{key}.NAME]", {})
        return ((name, self._sub(each, f"{key}.{name}")) for name, each in found.items())

    def end(self, known: Sequence[str] = ()) -> None:
        """Refuse what nobody has asked for.

        Raises:
            ConfigError: INVALID_CONFIG; there is a key that means nothing here.
        """
        names = [*known, *self._read]
        for key in self._data:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                raise error(
                    "INVALID_CONFIG",
                    f"{self._named(key)}: unknown key",
                    f"did you mean {near[0]}?" if near else f"known are {', '.join(dict.fromkeys(names))}",
                )

    def refusal(self, key: str, reason: str) -> BrokerError:
        """Return the error of a key, or of the table itself, not raised."""
        return error("INVALID_CONFIG", f"{self._named(key)}: {reason}", HINT)

    def _typed(self, key: str, kind: type[_T], words: str, default: _T | None) -> _T:
        found = self._data.get(key, default)
        self._read.append(key)
        if not isinstance(found, kind):
            got = "nothing" if found is None else _shown(found)
            raise self.refusal(key, f"got {got}, expected {words}")
        return found

    def _sub(self, found: object, key: str) -> Row:
        if not isinstance(found, dict):
            raise self.refusal(key, f"got {_shown(found)}, expected a table")
        return Row(found, self._named(key))

    def _named(self, key: str) -> str:
        separator = ": " if self._is_top() else "."
        return f"{self._where}{separator}{key}" if key else self._where

    def _is_top(self) -> bool:
        return ": " not in self._where


def _shown(found: object) -> str:
    """Return what a value is without its text: a secret may stand in the wrong place."""
    return repr(found) if isinstance(found, (bool, int, float)) else type(found).__name__
