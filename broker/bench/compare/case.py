"""The two priced rows of the chat case study, done by ours on this machine.

Somebody has paid for so many connections and messages on machines of known size. What is done here is the work that
matches: as many connections in rooms, each of them saying something once a second, and a steady stream; in both every
message is synced before it is acknowledged or seen, and latency is taken from when it was due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from broker.bench.compare.cells import microseconds
from broker.bench.compare.outcome import CaseRow
from broker.bench.options import Options, Work
from broker.bench.works import run_work
from broker.model.levels import Level
from broker.model.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bench.result import Result

MB: Final = 1_000_000
GB: Final = 1000 * MB


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        title: for people.
        said: what was paid for and what it did.
        options: the work that matches.
        p99_us: the latency that was promised.
        memory_bytes: what it took; 0 where nothing is said.
    """

    title: str
    said: str
    options: Options
    p99_us: float
    memory_bytes: int = 0


def cases(seconds: float) -> list[Case]:
    """Return both rows, so many seconds each."""
    rooms = Options(
        Work.MANY, durability=Level.SYNCED, publishers=50, subscribers=4950, channels=495, rate=4950, seconds=seconds
    )
    stream = Options(Work.LATENCY, durability=Level.SYNCED, rate=100_000, seconds=seconds)
    return [
        Case(
            "5,000 connections in rooms of 10, 4,950 messages/s to 49,500 deliveries/s",
            "P99 at most 180 ms, 2.1 GB, 2 vCPU",
            rooms,
            p99_us=180_000,
            memory_bytes=int(2.1 * GB),
        ),
        Case("100,000 messages/s", "5 ms, 4 vCPU", stream, p99_us=5_000),
    ]


def run_cases(seconds: float, tell: Callable[[int, int, str], None]) -> list[CaseRow]:
    """Do both.

    Raises:
        BrokerError: the server does not start, or refuses a connection.
    """
    given = cases(seconds)
    rows = []
    for number, case in enumerate(given, 1):
        tell(len(given), number, f"case study: {case.title}")
        rows.append(judged(case, run_work(case.options)[0]))
    return rows


def judged(case: Case, result: Result) -> CaseRow:
    """Put a result beside what was paid for."""
    p50, p99 = (result.latency_us.get(name, 0.0) for name in ("p50", "p99"))
    used = result.server_cpu_s / result.seconds if result.seconds else 0.0
    met = (
        result.right
        and p99 <= case.p99_us
        and (not case.memory_bytes or result.server_memory_bytes <= case.memory_bytes)
    )
    words = (
        f"P50 {microseconds(p50)}, P99 {microseconds(p99)}, {result.server_memory_bytes / MIB:,.0f} MiB, "
        f"{used:.2f} cores of the server, {result.driver_share:.2f} of the driver, "
        f"{result.a_second(result.messages):,.0f} messages/s"
    )
    wrong = (
        "; ".join(result.errors) or f"{result.lost} lost, {result.duplicated} duplicated, {result.reordered} reordered"
    )
    return CaseRow(case.title, case.said, words if result.right else f"{words}; WRONG: {wrong}", met)
