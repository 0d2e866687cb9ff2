"""The pattern trie: a match beside few and many patterns, coming and going subscriptions, the worst names."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from benchmarks.works import SEED, Works
from benchmarks.works import measure as measure_work
from broker_native.trie import PatternTrie

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

CALLS = 100
COMING = 1000
DEEPEST = b".".join([b"a"] * 128)
WORKS = Works("trie")


def rooms(count: int) -> list[bytes]:
    """Return patterns as a chat system has them: `count` rooms in organisations of 100, and one wildcard for each."""
    literal = [b"chat.organisation%d.room%d" % (index // 100, index) for index in range(count)]
    return literal + [b"chat.organisation%d.*" % index for index in range(-(-count // 100))]


def planted(patterns: list[bytes]) -> PatternTrie[object]:
    """Put a value of its own under each pattern."""
    trie: PatternTrie[object] = PatternTrie()
    for pattern in patterns:
        trie.insert(pattern, pattern)
    return trie


@WORKS.work(10 * CALLS, 20 * CALLS)
def match() -> Run:
    patterns = rooms(1000)
    trie = planted(patterns)
    names = random.Random(SEED).choices(patterns[:1000], k=10 * CALLS)
    return lambda: sum(len(trie.match(name)) for name in names)


@WORKS.work(1, 129)
def match_with_forks() -> Run:
    forks = [b".".join([b"a"] * depth + [b"*"]) for depth in range(128)]
    forks += [b".".join([b"a"] * depth + [b">"]) for depth in range(128)]
    trie = planted(forks)
    return lambda: len(trie.match(DEEPEST))


@WORKS.work(2 * COMING, 2 * COMING)
def insert_and_remove() -> Run:
    trie = planted(rooms(COMING))
    coming = [b"chat.organisation%d.new.%d" % (index // 100, index) for index in range(COMING)]

    def run() -> int:
        # A value each: where one falls in a table of pointers depends on where it lies, which evens out.
        for pattern in coming:
            trie.insert(pattern, pattern)
        return len(coming) + sum(trie.remove(pattern, pattern) for pattern in coming)

    return run


def measure(benchmark: BenchmarkFixture, run: Callable[[], int], operations: int) -> None:
    checksum = benchmark(run)
    benchmark.extra_info.update(checksum=checksum, operations=operations)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_operation"] = benchmark.stats.stats.median / operations * 1e9


def built(patterns: list[bytes], benchmark: BenchmarkFixture) -> PatternTrie[object]:
    """Put one value under all patterns, and note how many bytes each of them took."""
    value = object()
    tracemalloc.start()
    try:
        trie: PatternTrie[object] = PatternTrie()
        before = tracemalloc.get_traced_memory()[0]
        for pattern in patterns:
            trie.insert(pattern, value)
        size = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    benchmark.extra_info.update(bytes_per_operation=size / len(patterns), patterns=len(patterns), nodes=trie.nodes)
    return trie


@pytest.mark.parametrize("count", [1, 1000, 100_000])
def test_match(benchmark: BenchmarkFixture, count: int) -> None:
    patterns = rooms(count)
    trie = built(patterns, benchmark)
    names = random.Random(4770).choices(patterns[:count], k=CALLS)
    measure(benchmark, lambda: sum(len(trie.match(name)) for name in names), CALLS)


def test_match_with_many_values(benchmark: BenchmarkFixture) -> None:
    trie: PatternTrie[object] = PatternTrie()
    values = [object() for _ in range(1000)]
    for value in values:
        trie.insert(b"chat.*", value)
        trie.insert(b"chat.>", value)
    benchmark.extra_info["bytes_per_operation"] = 0
    measure(benchmark, lambda: len(trie.match(b"chat.room")), len(values))


def test_insert_and_remove(benchmark: BenchmarkFixture) -> None:
    patterns = rooms(10_000)
    trie = built(patterns, benchmark)
    coming = [b"chat.organisation%d.new.%d" % (index, index) for index in range(CALLS)]
    value = object()

    def run() -> int:
        for pattern in coming:
            trie.insert(pattern, value)
        return sum(trie.remove(pattern, value) for pattern in coming)

    measure(benchmark, run, CALLS)


def test_deepest_name_with_a_fork_at_each_level(benchmark: BenchmarkFixture) -> None:
    patterns = [b".".join([b"a"] * depth + [b"*"]) for depth in range(1, 128)]
    patterns += [b".".join([b"*"] * depth + [b"a"]) for depth in range(1, 128)]
    trie = built(patterns, benchmark)
    measure(benchmark, lambda: len(trie.match(DEEPEST)), 1)


def test_deepest_name_followed_in_vain(benchmark: BenchmarkFixture) -> None:
    """1,000 patterns of 128 tokens, each of which the name leaves at the last one: the budget is 1 ms."""
    chance = random.Random(4770)
    patterns = [b".".join([*chance.choices([b"a", b"*"], k=127), b"x"]) for _ in range(1000)]
    trie = built(patterns, benchmark)
    measure(benchmark, lambda: len(trie.match(DEEPEST)), 1)


def test_trie_works(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure_work(benchmark, kernel_work)
