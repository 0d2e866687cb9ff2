"""The pattern trie against a list that is searched from end to end; its memory, its references, its worst case."""

from __future__ import annotations

import gc
import itertools
import random
import sys
import time
import tracemalloc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.trie import PatternTrie
from tests.native.starve import refusals
from tests.reference.trie import PatternTrie as Reference
from tests.reference.trie import is_name, is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

DEEPEST = b".".join([b"a"] * 128)
LONGEST = b"a" * 255


class Value:
    """An object whose equality and hash the trie must never ask for."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")


class Both:
    """The trie and its twin, told the same."""

    def __init__(self) -> None:
        self.native: PatternTrie[Value] = PatternTrie()
        self.twin: Reference[Value] = Reference()

    def insert(self, pattern: bytes, value: Value) -> None:
        self.native.insert(pattern, value)
        self.twin.insert(pattern, value)

    def remove(self, pattern: bytes, value: Value) -> None:
        assert self.native.remove(pattern, value) is self.twin.remove(pattern, value)

    def check(self, names: list[bytes]) -> None:
        assert len(self.native) == len(self.twin)
        assert self.native.version == self.twin.version
        assert self.native.nodes == self.twin.nodes
        for name in names:
            got = [id(value) for value in self.native.match(name)]
            assert len(got) == len(set(got))
            assert set(got) == {id(value) for value in self.twin.match(name)}, name


# Few tokens, so that patterns meet; `*` and `>` are often; long ones, for the hash takes 7 bytes at a time.
literals = st.sampled_from([b"a", b"b", b"c", b"$r", b"aaaaaaa", b"aaaaaaaa", b"aaaaaaab", b"x" * 15])
some_names = st.lists(literals, min_size=1, max_size=6).map(b".".join)
some_patterns = st.builds(
    lambda tokens, rest: b".".join([*tokens, b">"] if rest or not tokens else tokens),
    st.lists(literals | st.just(b"*"), max_size=6),
    st.booleans(),
)
operations = st.lists(st.tuples(st.booleans(), some_patterns, st.integers(0, 3)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(steps=operations, names=st.lists(some_names, min_size=5, max_size=10))
def test_same_as_twin(steps: list[tuple[bool, bytes, int]], names: list[bytes]) -> None:
    both, values = Both(), [Value() for _ in range(4)]
    for insert, pattern, index in steps:
        if insert:
            both.insert(pattern, values[index])
        else:
            both.remove(pattern, values[index])
        both.check(names)
    for pattern, value in list(both.twin.entries):
        both.remove(pattern, value)
        both.check(names)
    assert (both.native.nodes, len(both.native)) == (0, 0)


@settings(max_examples=300)
@given(text=st.text(alphabet="a.*>$", max_size=8).map(str.encode) | st.binary(max_size=300))
def test_what_is_a_pattern_and_what_is_a_name(text: bytes) -> None:
    trie: PatternTrie[str] = PatternTrie()
    if is_pattern(text):
        trie.insert(text, "value")
        assert trie.match(text) == (["value"] if is_name(text) else [])
        assert trie.remove(text, "value")
    else:
        for refused in (trie.insert, trie.remove):
            with pytest.raises(ValueError, match=r"^trie: got pattern"):
                refused(text, "value")
        trie.insert(b">", "value")
        assert trie.match(text) == []
        trie.remove(b">", "value")
    assert (trie.nodes, len(trie)) == (0, 0)


PATTERNS = {
    # pattern: names that it reaches, names that it does not
    b"a": ([b"a"], [b"b", b"a.a", b"aa", b"A"]),
    b"*": ([b"a", b"abc"], [b"a.b", b"$a"]),
    b">": ([b"a", b"a.b", b"a.b.c", DEEPEST, LONGEST], [b"$a", b"$a.b"]),
    b"a.*": ([b"a.b", b"a.$b"], [b"a", b"a.b.c", b"b.b"]),
    b"a.>": ([b"a.b", b"a.b.c"], [b"a", b"b", b"aa.b"]),
    b"*.>": ([b"a.b", b"a.b.c"], [b"a", b"$a.b"]),
    b"*.*.c": ([b"a.b.c", b"c.c.c"], [b"a.b", b"a.b.c.c", b"$a.b.c"]),
    b"a.*.>": ([b"a.b.c", b"a.b.c.d"], [b"a.b", b"a"]),
    b"$reply.1.2": ([b"$reply.1.2"], [b"$reply.1", b"$reply.1.3"]),
    b"$reply.*": ([b"$reply.1"], [b"$reply.1.2"]),
    DEEPEST: ([DEEPEST], [DEEPEST[:-2], DEEPEST[:-1] + b"b"]),
    b".".join([b"*"] * 128): ([DEEPEST], [DEEPEST[:-2]]),
    b".".join([b"*"] * 127 + [b">"]): ([DEEPEST], [DEEPEST[:-2]]),
    LONGEST: ([LONGEST], [LONGEST[:-1], LONGEST[:-1] + b"b"]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_table_of_patterns(pattern: bytes) -> None:
    trie: PatternTrie[str] = PatternTrie()
    trie.insert(pattern, "value")
    reached, missed = PATTERNS[pattern]
    assert [name for name in reached if trie.match(name) != ["value"]] == []
    assert [name for name in missed if trie.match(name) != []] == []


@pytest.mark.parametrize("size", [1, 6, 7, 8, 13, 14, 15, 16, 127, 128, 253])
def test_every_byte_of_a_token_counts(size: int) -> None:
    token = bytes(random.Random(size).choices(b"abcdefgh", k=size))
    trie: PatternTrie[int] = PatternTrie()
    trie.insert(b"x." + token, 1)
    assert trie.match(b"x." + token) == [1]
    for index in range(size):
        assert trie.match(b"x." + token[:index] + b"z" + token[index + 1 :]) == []
    assert trie.match(b"x." + token[:-1]) == []


def test_what_is_too_long_matches_nothing_and_is_refused() -> None:
    trie: PatternTrie[int] = PatternTrie()
    trie.insert(b">", 1)
    assert trie.match(b"a" * 256) == []
    assert trie.match(DEEPEST + b".a") == []
    for pattern in (b"a" * 256, DEEPEST + b".a", b"", b".", b"a.", b".a", b"a..b", b">.a", b"a*", b"*a", b"a.>>"):
        with pytest.raises(ValueError, match="expected 1 to 255 bytes"):
            trie.insert(pattern, 1)
    for wrong in ("a", bytearray(b"a"), None, 1):
        with pytest.raises(TypeError):
            trie.insert(wrong, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            trie.match(wrong)  # type: ignore[arg-type]
    assert (len(trie), trie.version) == (1, 1)


def test_values_are_told_apart_by_identity() -> None:
    first, second = [0], [0]
    trie: PatternTrie[list[int]] = PatternTrie()
    trie.insert(b"a", first)
    trie.insert(b"a", second)
    trie.insert(b"a", first)
    trie.insert(b"*", first)
    assert sorted(map(id, trie.match(b"a"))) == sorted([id(first), id(second)])
    assert (len(trie), trie.version) == (4, 4)
    assert trie.remove(b"a", first)
    assert len(trie.match(b"a")) == 2
    assert not trie.remove(b"a", [0])
    assert trie.remove(b"a", first)
    assert not trie.remove(b"a", first)
    assert len(trie.match(b"a")) == 2  # first is still under `*`
    assert trie.remove(b"*", first)
    assert trie.match(b"a") == [second]
    assert (len(trie), trie.version) == (1, 7)


def test_splitting_and_merging_in_every_order() -> None:
    """Patterns that share their beginnings, put in and taken out in every order, need the nodes they need."""
    patterns = [b"a.b.c.d", b"a.b", b"a.b.*.d", b"a.b.c.>", b"a.x"]
    names = [b"a.b.c.d", b"a.b", b"a.b.x.d", b"a.b.c.x", b"a.x", b"a.b.c"]
    value = Value()
    for order in itertools.permutations(patterns):
        both = Both()
        for pattern in order:
            both.insert(pattern, value)
            both.check(names)
        for pattern in order[2:] + order[:2]:
            both.remove(pattern, value)
            both.check(names)


def test_many_values_under_one_pattern() -> None:
    """Removal takes the last one's place: each order of removal must leave the others."""
    values = [Value() for _ in range(1000)]
    for seed in range(3):
        both = Both()
        for value in values:
            both.insert(b"a.*", value)
        leaving = random.Random(seed).sample(values, k=len(values))
        for count, value in enumerate(leaving):
            both.remove(b"a.*", value)
            if count % 97 == 0:
                both.check([b"a.b"])
        assert both.native.nodes == 0


def test_large_against_twin() -> None:
    chance = random.Random(255)
    tokens = [b"t%d" % index for index in range(12)]

    def pattern() -> bytes:
        chosen = chance.choices([*tokens, b"*", b"*"], k=chance.randint(1, 4))
        return b".".join([*chosen, b">"] if chance.random() < 0.2 else chosen)

    both, values = Both(), [Value() for _ in range(50)]
    for _ in range(2000):
        both.insert(pattern(), chance.choice(values))
    names = [b".".join(chance.choices(tokens, k=chance.randint(1, 5))) for _ in range(40)]
    both.check(names)
    for entry in chance.sample(both.twin.entries, k=1500):
        both.remove(*entry)
    both.check(names)


def test_memory_comes_back() -> None:
    chance = random.Random(1)
    value = Value()
    patterns = [b"org%d.room%d.%d" % (chance.randrange(50), chance.randrange(500), index) for index in range(20_000)]
    trie: PatternTrie[Value] = PatternTrie()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for pattern in patterns:
            trie.insert(pattern, value)
        held = tracemalloc.get_traced_memory()[0] - before
        for pattern in patterns:
            trie.remove(pattern, value)
        left = tracemalloc.get_traced_memory()[0] - before
        for pattern in patterns:
            trie.insert(pattern, value)
        del trie
        freed = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 20_000 * 100 < held < 20_000 * 400
    assert left < 2000
    assert freed < 2000


def test_references() -> None:
    value = Value()
    start = sys.getrefcount(value)
    trie: PatternTrie[Value] = PatternTrie()
    for count in range(1, 20):
        trie.insert(b"a.%d" % count, value)
        trie.insert(b"a.>", value)
        assert sys.getrefcount(value) == start + 1  # one, however many patterns
    found = trie.match(b"a.1")
    assert sys.getrefcount(value) == start + 2
    del found
    with pytest.raises(ValueError, match="got pattern"):
        trie.insert(b"a..b", value)
    for count in range(1, 20):
        trie.remove(b"a.%d" % count, value)
        trie.remove(b"a.>", value)
    assert sys.getrefcount(value) == start
    trie.insert(b"a", value)
    del trie
    assert sys.getrefcount(value) == start


class Link:
    """An object that points back to the trie in which it is."""

    trie: PatternTrie[Any]

    def __init__(self, trie: PatternTrie[Any], pattern: bytes, log: list[int] | None = None) -> None:
        self.trie, self.pattern, self.log = trie, pattern, log
        trie.insert(pattern, self)

    def __del__(self) -> None:
        if self.log is not None:
            self.log.append(len(self.trie.match(b"a")))
            self.trie.remove(self.pattern, self)
            self.log.append(len(self.trie))


def test_the_collector_sees_through_the_trie() -> None:
    links = [Link(PatternTrie(), b"a") for _ in range(3)]
    Link(links[0].trie, b"b")
    watched = [weakref.ref(link) for link in links]
    assert all(gc.is_tracked(link.trie) for link in links)
    links.clear()
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3


def test_a_finalizer_may_use_the_trie_that_dies_with_it() -> None:
    log: list[int] = []
    Link(PatternTrie(), b"a", log)
    gc.collect()
    assert log == [1, 0]


def test_a_finalizer_may_use_the_trie_that_lets_it_go() -> None:
    """The trie of the pattern alone holds the value; removing it by name is what frees it."""
    trie: PatternTrie[Any] = PatternTrie()

    class Ends:
        def __del__(self) -> None:
            trie.insert(b"ended", "value")

    trie.insert(b"a", Ends())
    trie.remove(b"a", trie.match(b"a")[0])
    assert trie.match(b"ended") == ["value"]
    assert len(trie) == 1


def test_a_trie_whose_references_are_gone_refuses() -> None:
    """What the collector does to the list in a cycle, seen by code that still reaches the trie."""
    trie: PatternTrie[Value] = PatternTrie()
    value = Value()
    trie.insert(b"a", value)
    (held,) = (referent for referent in gc.get_referents(trie) if isinstance(referent, list))
    held.clear()
    for use in (lambda: trie.match(b"a"), lambda: trie.insert(b"b", value), lambda: trie.remove(b"a", value)):
        with pytest.raises(RuntimeError, match="being destroyed"):
            use()


ALLOCATIONS_MAX = 16
"""More than one insert makes; which of them may fail without harm (giving memory back) is not for a test to know."""


def insert_failing(trie: PatternTrie[Value], pattern: bytes, value: Value, allocation: int) -> bool:
    """Insert while one allocation fails, counted from 0. Returns False when that was a MemoryError."""
    fault = pytest.importorskip("_testcapi", reason="this Python came without its test module, which fails allocations")
    fault.set_nomemory(allocation, allocation + 1)
    try:
        trie.insert(pattern, value)
    except MemoryError:
        return False
    finally:
        fault.remove_mem_hooks()
    return True


@pytest.mark.parametrize("pattern", [b"a.b.c", b"a.b.*.x", b"a.x", b"new.one.>", b"a.b", b"a.b.c.d"])
@pytest.mark.parametrize("known", [True, False])
def test_without_memory_nothing_changes(pattern: bytes, known: bool) -> None:
    both, value, other = Both(), Value(), Value()
    names = [b"a.b.c", b"a.b.c.d", b"a.b.x.x", b"a.x", b"a.b", b"new.one.x"]
    both.insert(b"a.b.c.d", other)
    both.insert(b"a.b.c", other)
    if known:
        both.insert(b"a.b.c.d", value)
    refused = 0
    for allocation in range(ALLOCATIONS_MAX):
        if insert_failing(both.native, pattern, value, allocation):
            both.twin.insert(pattern, value)
            both.check(names)
            both.remove(pattern, value)
        else:
            refused += 1
        both.check(names)
    # A second copy of what is there needs no memory; anything else needs a member and room for it at least.
    assert refused == 0 if known and pattern == b"a.b.c.d" else 2 <= refused < ALLOCATIONS_MAX
    for entry in list(both.twin.entries):
        both.remove(*entry)
    assert both.native.nodes == 0


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32])
def test_without_memory_nothing_changes_however_full_it_is(size: int) -> None:
    """At each size one of the tables has to grow, for an edge, a value or a place of one."""
    values, value = [Value() for _ in range(size)], Value()
    patterns = [b"p.%d.x" % (number % 5) for number in range(size)]
    made: list[PatternTrie[Value]] = []

    def prepare() -> Callable[[], object]:
        trie: PatternTrie[Value] = PatternTrie()
        for pattern, held in zip(patterns, values, strict=True):
            trie.insert(pattern, held)
        made.append(trie)
        return lambda: trie.insert(b"p.new.>", value)

    assert refusals(prepare) >= 2
    nodes = made[0].nodes
    for trie in made[:-1]:
        assert len(trie) == size
        assert trie.match(b"p.new.any") == []
        assert trie.nodes == nodes
        trie.insert(b"p.new.>", value)
    for trie in made:
        assert len(trie) == size + 1
        assert trie.match(b"p.new.any") == [value]
        assert sorted(map(id, trie.match(b"p.1.x"))) == sorted(map(id, values[1::5]))


def test_removing_needs_no_memory() -> None:
    """Two nodes stay where one would do, and are found all the same."""
    first, second = Value(), Value()
    made: list[PatternTrie[Value]] = []

    def prepare() -> Callable[[], object]:
        trie: PatternTrie[Value] = PatternTrie()
        trie.insert(b"a.b.c.d", first)
        trie.insert(b"a.b.x", second)
        made.append(trie)
        return partial(trie.remove, b"a.b.x", second)

    assert refusals(prepare) == 0
    (trie,) = made
    roomy: PatternTrie[Value] = PatternTrie()
    roomy.insert(b"a.b.c.d", first)
    assert trie.nodes == roomy.nodes + 1
    for _ in range(2):
        assert trie.match(b"a.b.c.d") == [first]
        assert trie.match(b"a.b.x") == trie.match(b"a.b") == []
        trie.insert(b"a.b.x", second)
        assert trie.match(b"a.b.x") == [second]
        trie.remove(b"a.b.x", second)
    trie.remove(b"a.b.c.d", first)
    assert trie.nodes == 0


def test_without_memory_nothing_leaks() -> None:
    trie: PatternTrie[Value] = PatternTrie()
    trie.insert(b"a.b.c", Value())
    value = Value()
    refused = 0
    tracemalloc.start()
    try:
        for allocation in range(ALLOCATIONS_MAX):
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(100):
                if insert_failing(trie, b"a.b.new.>", value, allocation):
                    trie.remove(b"a.b.new.>", value)
                else:
                    refused += 1
            assert tracemalloc.get_traced_memory()[0] - before < 100 * 16, allocation
    finally:
        tracemalloc.stop()
    assert refused >= 600  # two nodes with a label each, a holder, a member


def best_ms(trie: PatternTrie[int], name: bytes) -> float:
    def once() -> float:
        start = time.perf_counter()
        trie.match(name)
        return (time.perf_counter() - start) * 1000

    return min(once() for _ in range(20))


def test_worst_cases_stay_small() -> None:
    """Deepest names against patterns made to be followed to their last token: under 1 ms in a release build.

    The bound is wider, for a build with checks on a busy machine; a walk that visited a node twice would take 2^128.
    """
    chance = random.Random(128)
    forked: PatternTrie[int] = PatternTrie()
    for _ in range(1000):
        forked.insert(b".".join([*chance.choices([b"a", b"*"], k=127), b"x"]), 1)
    assert forked.match(DEEPEST) == []
    assert best_ms(forked, DEEPEST) < 20
    ladder: PatternTrie[int] = PatternTrie()
    for depth in range(1, 128):
        ladder.insert(b".".join([b"a"] * depth + [b"*"]), 1)
        ladder.insert(b".".join([b"*"] * depth + [b"a"]), 1)
        ladder.insert(b".".join([b"*"] * depth + [b">"]), 1)
    assert ladder.match(DEEPEST) == [1]
    assert best_ms(ladder, DEEPEST) < 5
    # What no channel may be called must not make both ways of each level the same one.
    assert ladder.match(b".".join([b"*"] * 128)) == []


def test_version_changes_only_with_the_answers() -> None:
    trie: PatternTrie[int] = PatternTrie()
    assert trie.version == 0
    trie.insert(b"a", 1)
    trie.match(b"a")
    trie.remove(b"b", 1)
    with pytest.raises(ValueError, match="got pattern"):
        trie.insert(b"", 1)
    assert trie.version == 1
    trie.remove(b"a", 1)
    assert trie.version == 2
    with pytest.raises(AttributeError):
        trie.version = 0  # type: ignore[misc]
