"""Log an event of the registry: the one way in which the broker says something to its operator.

    emit("storage_recovered", group=7)

The record goes to the logger `broker.<room>` of the standard library with the level of the registry, so that an
application that embeds the broker routes it as it likes; `broker serve` writes it as text or JSON, as
`edge/log_output.py` says.

What a stranger can provoke must not fill a disk: of each event EVENTS_PER_S_MAX records a second are written, the rest
is counted, and the next record, or `flush`, says how many they were. What a stranger provokes by the thousand is only
counted: `tally`.

Nothing here raises because of a value, blocks, or touches a file: handlers do. All functions may be called from any
thread.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.model.events import EVENT_BY_NAME, FieldKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.model.events import Event

    Value = str | int | float | bool | None

__all__ = ["EVENTS_PER_S_MAX", "TEXT_CHARS_MAX", "Said", "admit", "emit", "flush", "tallied", "tally", "text_value"]

EVENTS_PER_S_MAX = 10
TEXT_CHARS_MAX = 1_024
"""Of a text field; the rest is cut off, since a peer may have chosen the text."""
_CODES_MAX = 64
"""Codes that `tally` keeps apart; the registry has fewer, but a peer's code may be any number."""

_BARE = re.compile(r"[A-Za-z0-9_./:@%+,-]+")


@dataclass(frozen=True, slots=True)
class Said:
    """One event as it was logged: the `msg` of its `LogRecord`. As text, it is `name key=value key=value`."""

    event: Event
    fields: Mapping[str, Value]

    def __str__(self) -> str:
        return " ".join([self.event.name, *(f"{name}={text_value(value)}" for name, value in self.fields.items())])


def text_value(value: Value) -> str:
    """Return a value as it stands behind `key=`: bare if it is a simple word, else quoted and escaped as in JSON.

    The result has no space outside of quotes and is printable ASCII, so that no text can forge a field or a line.
    """
    if isinstance(value, str) and _BARE.fullmatch(value) and value not in ("null", "true", "false"):
        return value
    return json.dumps(value)


def emit(name: str, /, *, failure: BaseException | None = None, **fields: object) -> None:
    """Log an event.

    Args:
        name: of the registry.
        failure: an exception whose traceback belongs to the record; it fills the field `error`.
        fields: the event's fields, all of them.

    Raises:
        KeyError: the registry has no such event; a mistake in the calling code.
    """
    event = EVENT_BY_NAME[name]
    logger = logging.getLogger(f"broker.{event.room}")
    level = logging.getLevelNamesMapping()[event.severity.upper()]
    if not logger.isEnabledFor(level):
        return
    allowed, left_out = admit(name)
    if not allowed:
        return
    if failure is not None:
        fields["error"] = f"{type(failure).__name__}: {failure}"
    said: dict[str, Value] = {field.name: _typed(field.kind, fields.get(field.name)) for field in event.fields}
    if left_out:
        said["suppressed"] = left_out
    logger.log(level, Said(event, said), exc_info=failure)


def admit(name: str) -> tuple[bool, int]:
    """Return whether one more record of an event may be written in this second, and how many before it were not.

    `emit` asks by itself; this is for records of others that the server's log takes up.
    """
    return _limiter.ask(name)


def tally(code: str) -> None:
    """Count a connection that was ended with an error; `flush` logs `connections_refused` for each code.

    Args:
        code: name of the error.
    """
    _refusals.count(code)


def tallied() -> dict[str, int]:
    """Return how many connections `tally` has counted in this process, by code."""
    return _refusals.ever()


def flush() -> None:
    """Log what has only been counted since the last call: refusals, and records that were left out."""
    for code, (count, within_s) in _refusals.take().items():
        emit("connections_refused", code=code, count=count, within_s=within_s)
    for event, left_out in _limiter.take().items():
        emit("events_suppressed", name=event, count=left_out)


def _typed(kind: FieldKind, value: object) -> Value:
    """Return a field's value in its type. Logging never fails for a value: what does not fit comes as text."""
    if value is None or (kind is FieldKind.BOOLEAN and isinstance(value, bool)):
        return value
    if kind is FieldKind.INTEGER and isinstance(value, int):
        return int(value)
    if kind is FieldKind.NUMBER and isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    text = str(value)
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


class Limiter:
    """Lets a bounded number of records of each event through in a second, and counts the others.

    Args:
        per_s_max: of one event.
        now_s: a monotonic clock.
    """

    def __init__(self, per_s_max: int = EVENTS_PER_S_MAX, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s_max = per_s_max
        self._now_s = now_s
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[float, int]] = {}  # event: when its second began, records since
        self._left_out: dict[str, int] = {}

    def ask(self, name: str) -> tuple[bool, int]:
        """Return whether a record of the event may be written, and how many before it were not."""
        now_s = self._now_s()
        with self._lock:
            begun_s, written = self._windows.get(name, (now_s, 0))
            if now_s - begun_s >= 1:
                begun_s, written = now_s, 0
            if written >= self._per_s_max:
                self._left_out[name] = self._left_out.get(name, 0) + 1
                return False, 0
            self._windows[name] = (begun_s, written + 1)
            return True, self._left_out.pop(name, 0)

    def take(self) -> dict[str, int]:
        """Return how many records were left out, by event, and begin to count anew."""
        with self._lock:
            taken, self._left_out = self._left_out, {}
            return taken


class Refusals:
    """Counts connections that were ended with an error, by its code.

    Args:
        now_s: a monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._since_s = now_s()

    def count(self, code: str) -> None:
        """Count one."""
        with self._lock:
            if code not in self._counts and len(self._counts) >= _CODES_MAX:
                code = "others"
            self._counts[code] = self._counts.get(code, 0) + 1

    def take(self) -> dict[str, tuple[int, float]]:
        """Return by code how many, and the seconds in which they came, and begin anew."""
        now_s = self._now_s()
        with self._lock:
            counts, self._counts = self._counts, {}
            self._taken = _sum(self._taken, counts)
            since_s, self._since_s = self._since_s, now_s
        return {code: (count, round(now_s - since_s, 3)) for code, count in counts.items()}

    def ever(self) -> dict[str, int]:
        """Return by code how many there were since the beginning, whether they were taken or not."""
        with self._lock:
            return _sum(self._taken, self._counts)


def _sum(some: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    """Return the sums by key; the keys are those of `Refusals.count`, so there are few of them."""
    return {code: some.get(code, 0) + others.get(code, 0) for code in some.keys() | others.keys()}


_limiter = Limiter()
_refusals = Refusals()
