"""What a work found out, as one record: for people as rows, for programs as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.bench.machine import describe_machine, describe_python, revision

if TYPE_CHECKING:
    from broker.bench.options import Options
    from broker_native.histogram import Histogram

DRIVER_BUSY_SHARE: Final = 0.95
"""From here on the driver may have been what limited the figure."""

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


def latency_of(histogram: Histogram) -> dict[str, float]:
    """Return the percentiles of nanoseconds in microseconds; zeros when nothing was recorded."""
    if not histogram.count:
        return dict.fromkeys([*PERCENTILES, "max"], 0.0)
    found = {name: histogram.percentile(percent) / 1000 for name, percent in PERCENTILES.items()}
    return {**found, "max": histogram.max / 1000}


@dataclass(slots=True)
class Result:
    """One work's figures. The fields of `as_json` and their order are stable.

    Attributes:
        work: its name; `client` adds which part of it.
        messages: published in the time, or read by `replay`.
        seconds: from the first publish to the last answer or delivery.
        deliveries: messages that subscribers were handed.
        latency_us: from when a message was due to be sent to when it was read.
        server_cpu_s, driver_cpu_s: processor time during `seconds`.
        server_memory_bytes: RssAnon, the most that was seen.
        commit_us_p50: this machine's LMDB one-put commit.
        errors: what went wrong besides messages, for people.
        extra: what only some works have.
    """

    work: str
    options: Options
    messages: int = 0
    seconds: float = 0.0
    deliveries: int = 0
    latency_us: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupt: int = 0
    server_cpu_s: float = 0.0
    driver_cpu_s: float = 0.0
    server_memory_bytes: int = 0
    fsyncs: int = 0
    commit_us_p50: float = 0.0
    errors: list[str] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether every message came, once, in order and whole, and nothing else went wrong."""
        return not (self.lost or self.duplicated or self.reordered or self.corrupt or self.errors)

    @property
    def driver_share(self) -> float:
        """How much of its one core the driver used, 0 to 1."""
        return self.driver_cpu_s / self.seconds if self.seconds else 0.0

    def a_second(self, count: int) -> float:
        """Return a count as a rate."""
        return count / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """Return the figures for programs, with the machine that they belong to."""
        options = self.options
        return {
            "work": self.work,
            "durability": options.durability.label,
            "publishers": options.publishers,
            "subscribers": options.subscribers,
            "channels": options.channels,
            "payload": options.payload,
            "batch": options.batch,
            "ids": options.ids,
            "messages": self.messages,
            "seconds": round(self.seconds, 6),
            "messages_per_s": round(self.a_second(self.messages), 1),
            "deliveries_per_s": round(self.a_second(self.deliveries), 1),
            "latency_us": {name: round(value, 3) for name, value in self.latency_us.items()},
            "lost": self.lost,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "server_cpu_s": round(self.server_cpu_s, 6),
            "driver_cpu_s": round(self.driver_cpu_s, 6),
            "server_memory_bytes": self.server_memory_bytes,
            "fsyncs": self.fsyncs,
            "commit_us_p50": round(self.commit_us_p50, 3),
            "revision": revision(),
            "python": describe_python(),
            "machine": describe_machine(),
            "extra": {
                "deliveries": self.deliveries,
                "corrupt": self.corrupt,
                "rate": options.rate,
                "errors": list(self.errors),
                **self.extra,
            },
        }
