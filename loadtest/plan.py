"""What a load test is asked to do: its options, each told once, for Locust's command line and for our own.

Pure: no Locust, no sockets. A plan is checked as a whole before anything is started, and `complaints` names all that is
wrong with it at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from broker_native.readings import PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MIN

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIOS: Final = ("mixed", "chat", "fanout", "celebrity", "backlog", "reconnect")
SHAPES: Final = ("steady", "ramp", "spike", "soak")

USERS_DEFAULT: Final = 600
SECONDS_DEFAULT: Final = 60
PREFIX: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def option(default: Any, explained: str, unit: str = "", choices: tuple[str, ...] = ()) -> Any:
    """Make a field of `Plan` that is an option on the command lines."""
    return field(default=default, metadata={"explained": explained, "unit": unit, "choices": choices})


@dataclass(frozen=True, slots=True)
class Option:
    """One option, as a command line wants to know it."""

    name: str
    kind: type
    default: Any
    explained: str
    unit: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """How it is written on a command line."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to the broker, and what must come of it."""

    scenario: str = option("mixed", "what the users do", choices=SCENARIOS)
    shape: str = option("steady", "how the number of users goes over time", choices=SHAPES)
    pace: float = option(1.0, "times as many windows a second as a scenario's own", "factor")
    payload: int = option(128, "of a message; typing indicators have 32", "bytes")
    stored_prefix: str = option("load.s", "where the stored channels of the test live")
    ephemeral_prefix: str = option(
        "load.e", "where typing indicators and live feeds live; a profile there is ephemeral"
    )
    min_rate: float = option(100_000.0, "fail below so many delivered", "messages/s")
    max_p99_ms: float = option(100.0, "fail when the 99th percentile of the latency is not below", "ms")
    max_lost: int = option(0, "fail with more lost", "messages")
    max_duplicated: int = option(0, "fail with more duplicated", "messages")
    max_reordered: int = option(0, "fail with more out of order", "messages")
    max_errors: int = option(0, "fail with more errors of any kind")
    patience: float = option(10.0, "how long the server, or the master, may say nothing", "s")
    token: str = option("", "the credential to connect with, if the server asks for one")
    report: str = option("", "write the report to this file, a page for the browser", "file")
    report_json: str = option("", "write the figures to this file", "file")

    @classmethod
    def of(cls, values: object) -> Plan:
        """Take the options out of whatever has them as attributes."""
        return cls(**{each.name: getattr(values, each.name) for each in fields(cls)})

    def complaints(self) -> list[str]:
        """Say what is wrong with it, each in a line that names the option, what it got, and what it takes."""
        return [
            complaint for check in (self._bad_words, self._bad_sizes, self._bad_thresholds) for complaint in check()
        ]

    def _bad_words(self) -> Iterator[str]:
        for name, known in (("scenario", SCENARIOS), ("shape", SHAPES)):
            if (got := getattr(self, name)) not in known:
                yield f"--{name}: got {got!a}, expected one of {', '.join(known)}"
        for name in ("stored_prefix", "ephemeral_prefix"):
            if not PREFIX.fullmatch(got := getattr(self, name)):
                yield f"{flag(name)}: got {got!a}, expected the beginning of a channel's name such as load.s"
        if self.stored_prefix == self.ephemeral_prefix:
            yield "--ephemeral-prefix: it is --stored-prefix; the two have profiles of their own"

    def _bad_sizes(self) -> Iterator[str]:
        if not PAYLOAD_BYTES_MIN <= self.payload <= PAYLOAD_BYTES_MAX:
            yield f"--payload: got {self.payload} bytes, from {PAYLOAD_BYTES_MIN} to {PAYLOAD_BYTES_MAX}"
        for name, most in (("pace", 1000.0), ("patience", 3600.0)):
            got = getattr(self, name)
            if not 0 < got <= most:
                yield f"{flag(name)}: got {got:g}, expected more than 0 and at most {most:g}"

    def _bad_thresholds(self) -> Iterator[str]:
        if not (math.isfinite(self.min_rate) and self.min_rate >= 0):
            yield f"--min-rate: got {self.min_rate:g} messages/s, expected 0 or more"
        if not (math.isfinite(self.max_p99_ms) and self.max_p99_ms > 0):
            yield f"--max-p99-ms: got {self.max_p99_ms:g} ms: no message takes less than no time; expected more than 0"
        for name in ("max_lost", "max_duplicated", "max_reordered", "max_errors"):
            if (got := getattr(self, name)) < 0:
                yield f"{flag(name)}: got {got}: nothing happens less than 0 times; expected 0 or more"


def flag(name: str) -> str:
    """Return how a field is written on a command line."""
    return "--" + name.replace("_", "-")


def options() -> list[Option]:
    """Return the options of a plan, in their order."""
    kinds = {"str": str, "int": int, "float": float}
    return [
        Option(
            each.name,
            kinds[str(each.type)],
            each.default,
            each.metadata["explained"],
            each.metadata["unit"],
            each.metadata["choices"],
        )
        for each in fields(Plan)
    ]


def unreachable(plan: Plan, users: int, offered: float) -> str | None:
    """Say why `--min-rate` cannot be met by so many users, or None.

    Args:
        plan: the plan.
        users: the most there will be at once.
        offered: messages a second that they are due together.
    """
    if plan.min_rate <= offered:
        return None
    return (
        f"--min-rate: {plan.min_rate:,.0f} messages/s cannot be reached: {users:,} users of {plan.scenario} at pace "
        f"{plan.pace:g} are due {offered:,.0f}; take more users, a higher --pace, or a lower --min-rate"
    )
