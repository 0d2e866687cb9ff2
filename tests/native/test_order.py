"""The radix sort against `sorted`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.order import sorted_indexes

KEYS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 40),
    st.integers(0, 2**20).map(lambda low: low << 40 | 7),
    st.sampled_from([0, 2**11 - 1, 2**11, 2**55, 2**63, 2**64 - 1]),
)


def in_order(keys: list[int]) -> list[int]:
    return sorted(range(len(keys)), key=keys.__getitem__)


@given(st.lists(KEYS, max_size=200))
def test_orders_as_python_does_and_keeps_the_order_of_equals(keys: list[int]) -> None:
    assert sorted_indexes(keys) == in_order(keys)


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 5_000])
def test_orders_any_number_of_keys(count: int) -> None:
    keys = [(number * 0x9E3779B97F4A7C15) % 2**64 >> (number % 64) for number in range(count)]
    assert sorted_indexes(keys) == in_order(keys)


@pytest.mark.parametrize("key", [-1, 2**64])
def test_refuses_what_is_no_unsigned_number_of_eight_bytes(key: int) -> None:
    with pytest.raises(OverflowError):
        sorted_indexes([1, key])
