"""What is demanded of a comparison: ratios to peers, bounds, and an earlier run that must not have been better.

A demand is written as

    WORK[.FIGURE] >= [NUMBER *] PEER        ephemeral>=2*nats     ours is at least twice as good as theirs
    WORK[.FIGURE] <= [NUMBER *] PEER        latency.p99<=1.05*best
    WORK[.FIGURE] >= NUMBER                 ephemeral>=1000000
    WORK[.FIGURE] <= NUMBER                 latency.p99<=5000

with commas between several. PEER may be `best`, the better of the peers in that row, or `each`, which stands for one
demand of each of them. A demand that nothing can meet, alone or beside another, is refused before anything is run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.bench.compare.cells import shown
from broker.bench.compare.outcome import FIGURES, OURS, Comparison, Row, Verdict
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORM: Final = re.compile(
    r"(?P<work>[a-z0-9-]+?)(?:\.(?P<figure>[a-z0-9-]+))?\s*(?P<sign>>=|<=)\s*"
    r"(?:(?P<peer>[a-z-]+)|(?P<number>[-+.\w]+?)(?:\s*\*\s*(?P<of>[a-z-]+))?)"
)
"""A right side of letters alone is a peer."""

PROMISED: Final = (
    "ephemeral>=2*nats", "ephemeral>=2*redis",
    "fanout-10>=3*best", "fanout-100>=2*best", "fanout-1000>=3*best",
    "synced>=4*redis", "synced>=10*nats",
    "replay>=2*redis",
    "queue>=1.5*each",
    "latency.p50<=1.05*best", "latency.p99<=1.05*best",
    "python>=5*each", "python-synced>=5*each",
    "embedded>=20*each",
)  # fmt: skip
"""What this broker promises of itself."""

RATE_MAX: Final = 1e9
"""Deliveries a second that no driver of ours could ever count."""

BEST: Final = "best"
EACH: Final = "each"


@dataclass(frozen=True, slots=True)
class Demand:
    """One demand.

    Attributes:
        text: as it was written.
        work: of whom.
        figure: of what.
        at_least: whether it is a lower bound.
        number: the bound, or the factor before a peer's figure.
        peer: a contender, BEST or EACH; empty for a bound as such.
    """

    text: str
    work: str
    figure: str
    at_least: bool
    number: float
    peer: str


def parse(text: str) -> Demand:
    """Take one demand.

    Raises:
        BrokerError: INVALID_CONFIG; it is none, or nothing can meet it.
    """
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise refused(text, "expected WORK[.FIGURE]>=FACTOR*PEER or WORK[.FIGURE]>=NUMBER, with >= or <=")
    try:
        number = float(found["number"] or 1)
    except ValueError:
        raise refused(text, f"got {found['number']!r}, expected a number") from None
    figure = found["figure"] or "rate"
    if figure not in FIGURES:
        raise refused(text, f"got figure {figure!r}, expected one of {', '.join(FIGURES)}")
    if not math.isfinite(number) or number <= 0:
        raise refused(text, f"got {number:g}, expected a finite number above 0: every figure is one")
    demand = Demand(
        text.strip(), found["work"], figure, found["sign"] == ">=", number, found["peer"] or found["of"] or ""
    )
    if not demand.peer and figure == "rate" and demand.at_least and number > RATE_MAX:
        raise refused(text, f"got {number:g} a second, limit {RATE_MAX:g}")
    return demand


def refused(text: str, why: str) -> Exception:
    """Return the error that refuses a demand."""
    return error("INVALID_CONFIG", f"--require {text}: {why}", "see `broker bench compare --help` for what it takes")


def parse_all(texts: Iterable[str], contenders: Mapping[str, Sequence[str]]) -> list[Demand]:
    """Take demands, with commas between them or not.

    Args:
        texts: what was written.
        contenders: of each work that is going to be done, who takes part.

    Raises:
        BrokerError: INVALID_CONFIG; one is none, nothing can meet it, or two contradict each other.
    """
    demands = [parse(part) for text in texts for part in text.split(",") if part.strip()]
    for demand in demands:
        who = contenders.get(demand.work)
        if who is None:
            works = ", ".join(contenders)
            raise refused(demand.text, f"got work {demand.work!r}, which is not done in this run: {works}")
        peers = [name for name in who if name != OURS]
        if demand.peer in (BEST, EACH):
            if not peers:
                raise refused(demand.text, f"nobody else takes part in {demand.work}")
        elif demand.peer and demand.peer not in peers:
            here = ", ".join(peers) or "nobody"
            raise refused(demand.text, f"got peer {demand.peer!r}, expected one that takes part: {here}")
    contradiction(demands)
    return demands


def promised(contenders: Mapping[str, Sequence[str]]) -> list[Demand]:
    """Return what this broker promises of itself, as far as the run is about it."""
    found = []
    for demand in map(parse, PROMISED):
        peers = [name for name in contenders.get(demand.work, ()) if name != OURS]
        if peers and (demand.peer in (BEST, EACH) or demand.peer in peers):
            found.append(demand)
    return found


def contradiction(demands: Sequence[Demand]) -> None:
    """See that no two demands exclude each other.

    Raises:
        BrokerError: INVALID_CONFIG; two do.
    """
    for low in demands:
        for high in demands:
            same = (low.work, low.figure, low.peer) == (high.work, high.figure, high.peer)
            if same and low.at_least and not high.at_least and low.number > high.number:
                raise refused(f"{low.text},{high.text}", "nothing can meet both")
            # The 99th percentile is never below the median.
            crossed = (low.work, low.figure, high.figure) == (high.work, "p50", "p99")
            bounds = not (low.peer or high.peer) and low.at_least and not high.at_least
            if crossed and bounds and low.number > high.number:
                raise refused(f"{low.text},{high.text}", "nothing can meet both: p99 is never below p50")


def judge(demands: Iterable[Demand], comparison: Comparison) -> list[Verdict]:
    """Return for each demand whether it is met."""
    return [verdict for demand in demands for verdict in judge_one(demand, comparison)]


def judge_one(demand: Demand, comparison: Comparison) -> list[Verdict]:
    """Return the verdict, or one for each peer where the demand says so."""
    row = comparison.row(demand.work)
    if row is None:
        return [Verdict(demand.text, False, "the work was not done")]
    if not demand.peer:
        return [bound(demand, row)]
    if demand.peer != EACH:
        return [compare(demand, row, demand.peer)]
    return [compare(demand, row, peer) for peer in row.peers()]


def bound(demand: Demand, row: Row) -> Verdict:
    """Judge ours by a number."""
    ours = row.standing(OURS)
    got = ours.median(demand.figure) if ours is not None and ours.right else None
    if got is None:
        return Verdict(demand.text, False, f"there is no {demand.figure} of ours")
    met = got >= demand.number if demand.at_least else got <= demand.number
    limit = f"{'at least' if demand.at_least else 'at most'} {shown(demand.figure, demand.number)}"
    return Verdict(demand.text, met, f"got {shown(demand.figure, got)}, limit {limit}")


def compare(demand: Demand, row: Row, peer: str) -> Verdict:
    """Judge ours by a factor of a peer's."""
    ours = row.standing(OURS)
    got = ours.median(demand.figure) if ours is not None and ours.right else None
    rivals = {name: _median(row, name, demand.figure) for name in (row.peers() if peer == BEST else [peer])}
    known = {name: value for name, value in rivals.items() if value is not None}
    # Beside one that failed the better of the others is not known to be the best.
    if got is None or len(known) < len(rivals):
        without = OURS if got is None else next(name for name in rivals if name not in known)
        return Verdict(demand.text, False, f"there is no {demand.figure} of {without} to compare")
    best = (max if demand.figure == "rate" else min)(known, key=lambda name: known[name])
    factor = got / known[best]
    met = factor >= demand.number if demand.at_least else factor <= demand.number
    limit = f"{'at least' if demand.at_least else 'at most'} {demand.number:g}"
    both = f"{shown(demand.figure, got)} and {shown(demand.figure, known[best])}"
    words = f"got {factor:.3g} times {best}'s ({both}), limit {limit}"
    return Verdict(demand.text if peer == demand.peer else f"{demand.text} ({peer})", met, words)


def _median(row: Row, contender: str, figure: str) -> float | None:
    standing = row.standing(contender)
    return standing.median(figure) if standing is not None and standing.right else None


def compare_with(earlier: Comparison, now: Comparison, slower_percent: float) -> list[Verdict]:
    """Judge ours by what it was in an earlier run.

    Machines differ from day to day, and so do the peers on them: ours is expected to have changed as the peers of the
    same row have, by the geometric mean of how each did. Without a peer that is in both, it is the plain figure.

    Args:
        earlier: the run to compare with.
        now: this one.
        slower_percent: how much worse a figure may have become, percent.

    Returns:
        A verdict for each figure of each work that both have.
    """
    verdicts = []
    for row in now.rows:
        before = earlier.row(row.work)
        if before is None:
            continue
        for figure in row.figures:
            ours, then = _median(row, OURS, figure), _median(before, OURS, figure)
            if ours is None or then is None:
                continue
            changes = [
                theirs / past
                for peer in row.peers()
                if (theirs := _median(row, peer, figure)) and (past := _median(before, peer, figure))
            ]
            machine = math.exp(sum(map(math.log, changes)) / len(changes)) if changes else 1.0
            change = ours / then / machine
            slower = (1 - change if figure == "rate" else 1 - 1 / change) * 100
            by = f"{abs(slower):.1f} % {'worse' if slower > 0 else 'better'}"
            words = (
                f"got {by} than {earlier.revision} ({shown(figure, ours)} and {shown(figure, then)}, "
                f"the machine by its peers {machine:.2f} times), limit {slower_percent:g} % worse"
            )
            verdicts.append(Verdict(f"{row.work}.{figure} against the baseline", slower <= slower_percent, words))
    return verdicts
