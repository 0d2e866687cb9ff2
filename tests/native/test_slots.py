"""The table of pointers against a plain dict: growing and shrinking by pieces loses and doubles nothing."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.slots import Slots

FULL, SPARSE, SEGMENT_SLOTS = 768, 256, 1023

# Few first and last bits, so that keys share segments and places, the last slot's and round it among them.
KEYS = st.builds(
    lambda high, low: high << 61 | low,
    st.integers(0, 7),
    st.sampled_from([0, 1, 2, 2**22, 2**32 - 1, 2**32 - 2, 2**31]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), KEYS),
        st.tuples(st.just("remove"), KEYS),
        st.tuples(st.just("merge"), KEYS),
        st.tuples(st.just("many"), st.integers(0, 7)),
        st.tuples(st.just("few"), st.integers(0, 7)),
    ),
    max_size=60,
)


def check(slots: Slots, model: Counter[tuple[int, int]]) -> None:
    found = [pair for segment in slots.walk() for pair in segment]
    assert Counter(found) == model
    assert len(slots) == len(found)
    assert all(len(segment) <= FULL for segment in slots.walk())
    assert len(slots.walk()) == slots.segments <= 1 << slots.depth


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_same_as_a_multiset(steps: list[tuple[str, int]]) -> None:
    slots, chance = Slots(), random.Random(4770)
    model: Counter[tuple[int, int]] = Counter()
    item = 0
    for step, key in steps:
        if step == "insert":
            item += 1
            slots.insert(key, item)
            model[key, item] += 1
        elif step == "remove":
            known = next((pair for pair in model if pair[0] == key), (key, 1))
            assert slots.remove(*known) is (known in model)
            model.pop(known, None)
        elif step == "merge":
            slots.merge(key)
        elif step == "many":
            for _ in range(500):
                item += 1
                more = key << 61 | chance.getrandbits(61)
                slots.insert(more, item)
                model[more, item] += 1
        else:
            for known in [pair for pair in model if pair[0] >> 61 == key]:
                assert slots.remove(*known)
                del model[known]
                slots.merge(known[0])
        for known_key, _ in list(model)[-5:]:
            assert (known_key, slots.find(known_key)) in model
    check(slots, model)


def test_it_grows_and_shrinks_with_what_is_in_it() -> None:
    slots, chance = Slots(), random.Random(7)
    keys = [chance.getrandbits(64) for _ in range(100_000)]
    for number, key in enumerate(keys, 1):
        slots.insert(key, number)
    assert len(slots) == len(keys)
    assert slots.segments * (SEGMENT_SLOTS + 1) < 3 * len(keys)
    assert all(slots.find(key) == number for number, key in enumerate(keys, 1))
    for number, key in enumerate(keys, 1):
        assert slots.remove(key, number)
        slots.merge(key)
    assert len(slots) == 0
    assert slots.segments == 1, "each half finds its other one"


def test_a_key_may_be_there_several_times() -> None:
    slots = Slots()
    for item in (1, 2, 3):
        slots.insert(9, item)
    assert slots.remove(9, 2)
    assert not slots.remove(9, 2)
    assert sorted(slots.walk()[0]) == [(9, 1), (9, 3)]


def test_what_is_round_the_end_moves_up() -> None:
    """Keys whose home is the last slot go on at the first; taking one out leaves no gap before the others."""
    slots, last = Slots(), 2**32 - 1
    for item in range(1, 6):
        slots.insert(item << 40 | last, item)
    slots.insert(0, 9)
    for item in range(1, 6):
        assert slots.remove(item << 40 | last, item)
        assert all(slots.find(other << 40 | last) == other for other in range(item + 1, 6))
        assert slots.find(0) == 9


def test_one_key_too_often_is_refused_and_breaks_nothing() -> None:
    """No split tells equal keys apart; a table of mixed keys never comes to that."""
    slots = Slots()
    for item in range(1, FULL + 1):
        slots.insert(2**64 - 1, item)
    with pytest.raises(MemoryError):
        slots.insert(2**64 - 1, FULL + 1)
    assert len(slots) == FULL


def test_null_is_no_item() -> None:
    with pytest.raises(ValueError, match="item"):
        Slots().insert(1, 0)
