"""What a request asks for, taken out of its query and its headers, each argument checked and none unknown.

A query is short, so it is taken apart at once; every refusal names the argument, what it got and what it expects.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import parse_qsl

from broker.bus import Since, Until
from broker.model.errors import BrokerError, error
from broker.model.positions import U64_MAX, BusPosition, Position
from broker.wire.dialect import SAFE_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Arguments", "bearer_of", "parse_place", "parse_time", "wrong"]

ARGUMENTS_MAX: Final = 256
QUERY_BYTES_MAX: Final = 32 * 1024
TOKEN_BYTES_MAX: Final = 8 * 1024
"""A HELLO is at most 16 KiB, token and all."""
_BUS = re.compile(r"[0-9a-f]{32}:.*", re.DOTALL)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_TIME = re.compile(r"[0-9]{1,16}", re.ASCII)

DefaultT = TypeVar("DefaultT", int, None)


def wrong(name: str, got: object, expected: str) -> BrokerError:
    """Say what is wrong with an argument or a member of a body."""
    shown = ascii(got)
    cut = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return error("MALFORMED_FRAME", f"{name}: got {cut}, expected {expected}")


class Arguments:
    """The arguments of a query.

    Args:
        query: It, as it came.
        known: Their names; one that is not among them is refused, since it is most likely a slip.

    Raises:
        RequestError: MALFORMED_FRAME; it is too long, no UTF-8, or has an argument that is not known or there twice.
    """

    def __init__(self, query: bytes, known: frozenset[str], repeated: frozenset[str] = frozenset()) -> None:
        if len(query) > QUERY_BYTES_MAX:
            raise error("MALFORMED_FRAME", f"query: got {len(query)} bytes, limit {QUERY_BYTES_MAX} bytes")
        try:
            pairs = parse_qsl(
                query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=ARGUMENTS_MAX
            )
        except ValueError:
            raise error("MALFORMED_FRAME", "query: got what is no UTF-8, or too many arguments") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            if name not in known:
                raise wrong("query", name, f"one of {', '.join(sorted(known))}")
            if name in self._values and name not in repeated:
                raise wrong(name, value, "it to be there once")
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> list[str]:
        """Return every value of an argument."""
        return self._values.get(name, [])

    def text(self, name: str) -> str | None:
        """Return an argument, None when it is not there."""
        values = self._values.get(name)
        return values[0] if values else None

    def once(self) -> dict[str, str]:
        """Return the arguments that are there, each by its name."""
        return {name: values[0] for name, values in self._values.items()}

    def needed(self, name: str) -> str:
        """Return an argument that must be there."""
        value = self.text(name)
        if value is None:
            raise error("MALFORMED_FRAME", f"{name}: it is missing")
        return value

    def number(self, name: str, default: DefaultT, low: int, high: int) -> int | DefaultT:
        """Return an integer within its range."""
        value = self.text(name)
        if value is None:
            return default
        if _DECIMAL.fullmatch(value) is None or not low <= int(value) <= high:
            raise wrong(name, value, f"an integer from {low} to {high}")
        return int(value)

    def seconds(self, name: str, high: float) -> float | None:
        """Return a time span in seconds, from 0."""
        value = self.text(name)
        if value is None:
            return None
        if _NUMBER.fullmatch(value) is None or float(value) > high:
            raise wrong(name, value, f"seconds from 0 to {high:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a yes or no; no when it is not there."""
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise wrong(name, value, "true or false")
        return value == "true"

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """Return one of a few words, None when it is not there."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise wrong(name, value, " or ".join(choices))
        return value

    def time(self, name: str) -> int | None:
        """Return a time as microseconds since 1970."""
        value = self.text(name)
        return None if value is None else parse_time(name, value)


def parse_time(name: str, text: str) -> int:
    """Return a time, given as microseconds since 1970 or in ISO 8601 with a zone, as microseconds.

    Raises:
        RequestError: MALFORMED_FRAME; it is neither.
    """
    if _TIME.fullmatch(text) and int(text) <= SAFE_MAX:
        return int(text)
    try:
        # A `+` of a zone that was not escaped has become a space.
        when = datetime.fromisoformat(text.replace(" ", "+") if text.count(" ") == 1 and "T" in text else text)
        if when.tzinfo is not None and when.year >= 1970:
            return max(0, int(when.timestamp() * 1_000_000))
    except (ValueError, OverflowError):
        pass
    raise wrong(name, text, "microseconds since 1970, or ISO 8601 with a zone")


def parse_place(name: str, text: str) -> Position | BusPosition:
    """Return a place: `sequence`, `epoch:sequence` or `journal:group:index`; epoch 0 is a sequence alone.

    Raises:
        RequestError: MALFORMED_FRAME, INVALID_POSITION; it is none.
    """
    if _BUS.fullmatch(text):
        return BusPosition.parse(text)
    if text == "0:0":
        return Position(0, 0)
    if _DECIMAL.fullmatch(text):
        if int(text) > U64_MAX:
            raise wrong(name, text, f"a sequence to {U64_MAX}")
        return Position(0, int(text))
    return Position.parse(text)


def since_of(arguments: Arguments) -> Since | None:
    """Return the time that `since` names."""
    time_us = arguments.time("since")
    return None if time_us is None else Since(time_us)


def until_of(arguments: Arguments) -> Until | None:
    """Return the time that `until` names."""
    time_us = arguments.time("until")
    return None if time_us is None else Until(time_us)


def bearer_of(headers: Mapping[str, Any]) -> str | None:
    """Return the token of `Authorization: Bearer …`, None without one.

    Raises:
        BrokerError: UNAUTHENTICATED; it is another scheme, or no token.
    """
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = str(value).partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX or not token.isascii():
        raise error("UNAUTHENTICATED", "authorization: got another scheme or no token, expected Bearer and a token")
    return token
