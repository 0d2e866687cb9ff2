"""`broker_native.sorting` against Python's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.sorting import sort_keys, sort_numbers
from tests.native.starve import refusals


@given(st.lists(st.binary(max_size=4) | st.text("ab\0", max_size=9).map(str.encode), max_size=80))
def test_keys_are_sorted_and_there_once(keys: list[bytes]) -> None:
    assert sort_keys(keys) == sorted(set(keys))


@given(
    st.lists(
        st.integers(0, 5)
        | st.integers(0, 2**64 - 1)
        | st.integers(2**63 - 2, 2**63 + 2)
        | st.integers(0, 2**20).map(lambda low: low << 40 | 7),
        max_size=200,
    )
)
def test_numbers_are_sorted_and_there_once(numbers: list[int]) -> None:
    assert sort_numbers(numbers) == sorted(set(numbers))


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 5_000])
def test_any_number_of_numbers_is_sorted(count: int) -> None:
    numbers = [(number * 0x9E3779B97F4A7C15) % 2**64 >> (number % 64) for number in range(count)]
    assert sort_numbers(numbers) == sorted(set(numbers))


def test_what_is_neither_is_refused() -> None:
    strange: list[bytes] = ["text"]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        sort_keys(strange)
    for number in (-1, 2**64):
        with pytest.raises(OverflowError):
            sort_numbers([number])


def test_without_memory_both_say_so() -> None:
    keys, numbers = [b"c", b"a", b"b"] * 30, [2**40 + number for number in range(90)]
    assert refusals(lambda: lambda: sort_keys(keys)) > 0
    assert refusals(lambda: lambda: sort_numbers(numbers)) > 0
