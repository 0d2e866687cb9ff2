"""What is measured of a native kernel, said once for both measures: the clock and the count of instructions.

A `Work` is made from fixed seeds and runs without chance, clock or network, so that two runs of one build do the very
same. pytest-benchmark times it (`measure`), and `benchmarks.instructions` counts it under callgrind. Its result is
known beforehand: a fast wrong answer fails.

Nothing here imports pytest: a program that is counted instruction by instruction starts slowly enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

SEED = 4770
ONCE_ROUNDS = 20
"""Rounds of a work that is prepared for each of them."""

# What happens between the marks of a measurement; it returns the work's result.
Run: TypeAlias = "Callable[[], int]"


@dataclass(frozen=True)
class Work:
    """One thing that a kernel does.

    Attributes:
        name: `kernel.work`; figures are kept under it.
        prepare: makes all that the run needs. It is no part of what is measured.
        operations: how many times the run does what the name says.
        result: what the run returns.
        bytes_per_operation: of payload, where it has one.
        once: whether a run uses up what was prepared.
    """

    name: str
    prepare: Callable[[], Run]
    operations: int
    result: int
    bytes_per_operation: int = 0
    once: bool = False

    def __str__(self) -> str:
        return self.name.partition(".")[2]


class Works:
    """The works of one kernel, in the order in which they were written down."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self._works: list[Work] = []

    def __iter__(self) -> Iterator[Work]:
        return iter(self._works)

    def work(
        self, operations: int, result: int, *, bytes_per_operation: int = 0, once: bool = False
    ) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
        """Take a function in as a work of its name; the arguments are those of `Work`."""

        def take(prepare: Callable[[], Run]) -> Callable[[], Run]:
            name = f"{self.kernel}.{prepare.__name__}"
            self._works.append(Work(name, prepare, operations, result, bytes_per_operation, once))
            return prepare

        return take


def measure(benchmark: BenchmarkFixture, work: Work) -> None:
    """Time a work, and note what one operation costs."""
    if work.once:
        result = benchmark.pedantic(  # type: ignore[no-untyped-call]
            lambda run: run(), setup=lambda: ((work.prepare(),), {}), rounds=1 if benchmark.disabled else ONCE_ROUNDS
        )
    else:
        result = benchmark(work.prepare())
    assert result == work.result, f"{work.name}: got {result}, expected {work.result}"
    benchmark.extra_info.update(
        checksum=result, operations=work.operations, bytes_per_operation=work.bytes_per_operation
    )
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_operation"] = benchmark.stats.stats.median / work.operations * 1e9
