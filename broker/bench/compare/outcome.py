"""What came out of a comparison: measurements, what they come to over the rounds, and all of it as JSON and back.

A figure of a row is the median of its rounds; the range beside it says how far one may trust it. The larger the better
is true of a rate, and the smaller the better of everything else, so a ratio of more than 1 always says that ours is the
better one.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT: Final = 1
"""Of the JSON. A program that reads it should refuse another."""

BUSY_SHARE: Final = 0.9
"""From here on a core counts as full."""

OURS: Final = "broker"

CURVE_PERCENTS: Final = (
    0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995, 99.999
)  # fmt: skip
"""Where a latency curve is taken."""

FIGURES: Final = {
    "rate": "deliveries a second",
    "p50": "median latency, us",
    "p99": "99th percentile of latency, us",
    "server-cpu": "server's processor, us a delivery",
    "driver-cpu": "driver's processor, us a delivery",
    "memory": "server's own memory at most, bytes",
    "resident": "server's resident memory at most, bytes",
}
"""What can be compared, by the name that thresholds have for it."""


@dataclass(slots=True)
class Measurement:
    """One contender at one work, once.

    Attributes:
        messages: published.
        deliveries: that readers were handed; queues count a message that was put and got as one.
        seconds: from the first publish to the last delivery or answer.
        server_cpu_s, driver_cpu_s: processor time meanwhile; of a queue inside a process all of it is the driver's.
        memory_bytes: the server's own memory at most, without mapped files.
        resident_bytes: what was resident of it at most.
        curve: latency, us, at each of CURVE_PERCENTS; empty where it says nothing.
        errors: what went wrong, for people; a measurement with any is none.
    """

    messages: int = 0
    deliveries: int = 0
    seconds: float = 0.0
    server_cpu_s: float = 0.0
    driver_cpu_s: float = 0.0
    memory_bytes: int = 0
    resident_bytes: int = 0
    curve: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def figure(self, name: str) -> float | None:
        """Return a figure by its name; None where there is none."""
        if name == "rate":
            return self.deliveries / self.seconds if self.seconds else None
        if name in ("p50", "p99"):
            return self.curve[CURVE_PERCENTS.index(float(name[1:]))] if self.curve else None
        if name in ("server-cpu", "driver-cpu"):
            used = self.server_cpu_s if name == "server-cpu" else self.driver_cpu_s
            return used / self.deliveries * 1e6 if used and self.deliveries else None
        return float(self.memory_bytes if name == "memory" else self.resident_bytes) or None


@dataclass(slots=True)
class Standing:
    """One contender at one work, over all rounds.

    Attributes:
        contender: ours or a peer's name.
        how: by what means it did the work, for people.
        promise: what an acknowledgement or a delivery is worth, for people.
        configuration: what its server was told.
        offered: whether a rate was offered, so that nobody was to be the bottleneck.
        rounds: its measurements, in order.
    """

    contender: str
    how: str
    promise: str
    configuration: str = ""
    offered: bool = False
    rounds: list[Measurement] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """What went wrong in any round, each once."""
        return list(dict.fromkeys(each for measurement in self.rounds for each in measurement.errors))

    @property
    def right(self) -> bool:
        """Whether there is a figure, and nothing went wrong."""
        return bool(self.rounds) and not self.errors

    def values(self, name: str) -> list[float]:
        """Return a figure of each round that has it."""
        found = (measurement.figure(name) for measurement in self.rounds if not measurement.errors)
        return [value for value in found if value is not None]

    def median(self, name: str) -> float | None:
        """Return the median of a figure over the rounds; None where there is none."""
        values = self.values(name)
        return statistics.median(values) if values else None

    def median_curve(self) -> list[float]:
        """Return the latency curve of which each point is the median of the rounds' there."""
        curves = [measurement.curve for measurement in self.rounds if measurement.curve and not measurement.errors]
        return [statistics.median(points) for points in zip(*curves, strict=True)]

    def shares(self) -> tuple[float, float]:
        """Return how many cores the server and the driver used, medians."""
        good = [each for each in self.rounds if each.seconds and not each.errors]
        if not good:
            return 0.0, 0.0
        return (
            statistics.median(each.server_cpu_s / each.seconds for each in good),
            statistics.median(each.driver_cpu_s / each.seconds for each in good),
        )

    def bottleneck(self, cores: int) -> str:
        """Say who kept it from being faster, as far as processor time tells.

        Args:
            cores: of the machine.
        """
        server, driver = self.shares()
        if not self.right:
            return "-"
        full = [who for who, share in (("driver", driver), ("server", server)) if share >= BUSY_SHARE]
        who = " and ".join(full) or ("machine" if server + driver >= BUSY_SHARE * cores else "neither")
        if self.offered:
            who = "rate offered"
        return f"{who}: server {server:.0%}, driver {driver:.0%}" if server else f"{who}: {driver:.0%} of a core"


@dataclass(slots=True)
class Row:
    """A work, and everybody who did it.

    Attributes:
        work: its name.
        title: for people.
        figures: what it is judged by, the first one above all.
        standings: ours first.
    """

    work: str
    title: str
    figures: tuple[str, ...]
    standings: list[Standing] = field(default_factory=list)

    def standing(self, contender: str) -> Standing | None:
        """Return the standing of a contender; None when it has no part in this work."""
        return next((each for each in self.standings if each.contender == contender), None)

    def ratio(self, peer: str, figure: str) -> float | None:
        """Return how many times as good as a peer's our figure is; None where one of them has none."""
        ours, theirs = (self._median(name, figure) for name in (OURS, peer))
        if not ours or not theirs:
            return None
        return ours / theirs if figure == "rate" else theirs / ours

    def _median(self, contender: str, figure: str) -> float | None:
        found = self.standing(contender)
        return found.median(figure) if found is not None else None

    def peers(self) -> list[str]:
        """Return who else has a part in it."""
        return [each.contender for each in self.standings if each.contender != OURS]


@dataclass(slots=True)
class Verdict:
    """Whether a demand was met.

    Attributes:
        demand: as it was written.
        met: whether it was.
        words: what was got, and what the limit is.
    """

    demand: str
    met: bool
    words: str


@dataclass(slots=True)
class CaseRow:
    """A priced row of the case study, and what ours came to on this machine.

    Attributes:
        title: what was done.
        said: what was paid for it, and what it came to there.
        measured: what it came to here.
        met: whether ours is no worse.
    """

    title: str
    said: str
    measured: str
    met: bool


@dataclass(slots=True)
class Comparison:
    """All of it.

    Attributes:
        date: when it began, UTC.
        revision, python, machine, commit_us_p50: of this side, as in each result of `broker bench`.
        settings: seconds, rounds, payload and the like.
        versions: of every contender and library, by name.
        missing: of peers that are not here, the command that installs each.
        rows: in the order of the works.
        verdicts: of what was demanded.
        case: rows of the case study, when they were asked for.
    """

    date: str
    revision: str
    python: str
    machine: dict[str, Any]
    commit_us_p50: float
    settings: dict[str, Any]
    versions: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    case: list[CaseRow] = field(default_factory=list)

    @property
    def cores(self) -> int:
        """Of the machine."""
        return int(self.machine.get("cores", 1))

    @property
    def errors(self) -> list[str]:
        """What went wrong, each with who it was and at what."""
        return [
            f"{row.work}, {standing.contender}: {each}"
            for row in self.rows
            for standing in row.standings
            for each in standing.errors
        ]

    @property
    def right(self) -> bool:
        """Whether every measurement is one, and every demand is met."""
        return not self.errors and all(verdict.met for verdict in self.verdicts)

    def row(self, work: str) -> Row | None:
        """Return the row of a work; None when it was not done."""
        return next((row for row in self.rows if row.work == work), None)

    def as_json(self) -> dict[str, Any]:
        """Return all of it, with what follows from the rounds beside them for programs that do not compute."""
        told = asdict(self)
        for row, said in zip(self.rows, told["rows"], strict=True):
            for standing, words in zip(row.standings, said["standings"], strict=True):
                medians = {name: standing.median(name) for name in FIGURES}
                words["medians"] = {name: value for name, value in medians.items() if value is not None}
                words["bottleneck"] = standing.bottleneck(self.cores)
                words["ratios"] = {} if standing.contender == OURS else _ratios(row, standing.contender)
        return {"format": FORMAT, **told, "right": self.right}


def _ratios(row: Row, peer: str) -> dict[str, float]:
    found = {name: row.ratio(peer, name) for name in row.figures}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


NESTED: Final = ("rows", "verdicts", "case")
"""Fields of a comparison that hold records of ours."""


def comparison_of(told: dict[str, Any]) -> Comparison:
    """Take what `as_json` has told.

    Raises:
        ValueError: it is something else, or of another format.
    """
    try:
        if told["format"] != FORMAT:
            raise ValueError(f"format: got {told['format']!r}, expected {FORMAT}")
        rows = [
            Row(row["work"], row["title"], tuple(row["figures"]), [_standing_of(each) for each in row["standings"]])
            for row in told["rows"]
        ]
        rest = {name: told[name] for name in Comparison.__dataclass_fields__ if name not in NESTED}
        verdicts, case = [Verdict(**each) for each in told["verdicts"]], [CaseRow(**each) for each in told["case"]]
        return Comparison(**rest, rows=rows, verdicts=verdicts, case=case)
    except (KeyError, TypeError, AttributeError) as failure:
        raise ValueError(f"not what `broker bench compare --json` writes: {failure!r}") from failure


def _standing_of(told: dict[str, Any]) -> Standing:
    own = {name: told[name] for name in Standing.__dataclass_fields__ if name != "rounds"}
    return Standing(**own, rounds=[Measurement(**each) for each in told["rounds"]])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest; zeros of nothing."""
    return (min(values), max(values)) if values else (0.0, 0.0)
