"""Works of `broker bench` through pytest-benchmark: a server, loopback, and the native driver.

One round is one run of a work on a server that has been started before. A round's time has connecting in it; the
figures beside it (`extra_info`) are the driver's, from the first publish to the last delivery. Sizes are small enough
for CI, where they prove that the works run and that every message is right; BENCHMARK_MESSAGES makes them large enough
to compare.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from broker.bench.load import RUNNERS, run_live
from broker.bench.options import Options, Work
from broker.bench.server import Target, running_server
from broker.model.levels import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from broker.bench.result import Result

MESSAGES = int(os.environ.get("BENCHMARK_MESSAGES", "2000"))
ROUNDS = 3

STORED = (Level.ACCEPTED, Level.SYNCED)


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    with running_server(None) as target:
        yield target


def measure(benchmark: BenchmarkFixture, target: Target, options: Options) -> None:
    """Run a work for some rounds, each of which must be right, and note what a message cost."""
    results: list[Result] = []

    def once() -> None:
        results.append(RUNNERS.get(options.work, run_live)(options, target))

    benchmark.pedantic(once, rounds=1 if benchmark.disabled else ROUNDS)  # type: ignore[no-untyped-call]
    for result in results:
        assert result.right, (result.errors, result)
        assert result.messages == options.messages
    best = min(results, key=lambda result: result.seconds)
    benchmark.extra_info.update(
        checksum=sum(result.deliveries for result in results),
        ns_per_operation=best.seconds / max(1, best.deliveries) * 1e9,
        bytes_per_operation=options.payload,
        messages_per_s=best.a_second(best.messages),
        driver_share=best.driver_share,
        server_cpu_s=best.server_cpu_s,
    )


@pytest.mark.parametrize("durability", [Level.EPHEMERAL, *STORED], ids=lambda level: level.label)
@pytest.mark.parametrize("batch", [1, 100])
def test_pubsub(benchmark: BenchmarkFixture, server: Target, durability: Level, batch: int) -> None:
    measure(benchmark, server, Options(Work.PUBSUB, durability=durability, batch=batch, messages=MESSAGES, seconds=0))


@pytest.mark.parametrize("subscribers", [10, 100])
def test_fanout(benchmark: BenchmarkFixture, server: Target, subscribers: int) -> None:
    options = Options(Work.FANOUT, durability=Level.EPHEMERAL, subscribers=subscribers, messages=MESSAGES, seconds=0)
    measure(benchmark, server, options)


@pytest.mark.parametrize("pattern", [False, True], ids=["exact", "wildcard"])
def test_many(benchmark: BenchmarkFixture, server: Target, pattern: bool) -> None:
    options = Options(
        Work.MANY,
        durability=Level.EPHEMERAL,
        publishers=5,
        subscribers=10,
        channels=100,
        pattern=pattern,
        messages=MESSAGES,
        seconds=0,
    )
    measure(benchmark, server, options)


@pytest.mark.parametrize("durability", STORED, ids=lambda level: level.label)
def test_replay(benchmark: BenchmarkFixture, server: Target, durability: Level) -> None:
    measure(benchmark, server, Options(Work.REPLAY, durability=durability, batch=100, messages=MESSAGES, seconds=0))
