"""Positions: text and value are one to one, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.errors import RequestError
from broker.model.positions import U32_MAX, U64_MAX, BusPosition, Position

u64 = st.integers(0, U64_MAX)
JOURNAL = bytes(range(16))
JOURNAL_TEXT = "000102030405060708090a0b0c0d0e0f"


@given(st.integers(1, U64_MAX), u64)
def test_position_round_trip(epoch: int, sequence: int) -> None:
    position = Position(epoch, sequence)
    assert Position.parse(str(position)) == position


@given(st.binary(min_size=16, max_size=16), u64, st.integers(0, U32_MAX))
def test_bus_position_round_trip(journal: bytes, group: int, index: int) -> None:
    position = BusPosition(journal, group, index)
    assert BusPosition.parse(str(position)) == position


def test_text_forms() -> None:
    assert str(Position(1 << 40, 42)) == "1099511627776:42"
    assert str(BusPosition(JOURNAL, 7, 3)) == f"{JOURNAL_TEXT}:7:3"


def test_order_is_that_of_commit() -> None:
    assert BusPosition(JOURNAL, 1, 9) < BusPosition(JOURNAL, 2, 0) < BusPosition(JOURNAL, 2, 1)
    assert BusPosition(JOURNAL, 2, 1).index == 1


@pytest.mark.parametrize("text", ["1:0", f"1:{U64_MAX}", f"{U64_MAX}:0"])
def test_position_at_its_bounds(text: str) -> None:
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "1",
        "1:",
        ":1",
        "0:1",
        "1:01",
        "01:1",
        "1:-1",
        "1:+1",
        "1:1:1",
        " 1:1",
        "1:1\n",
        "1:1_0",
        "1:٣",
        f"1:{U64_MAX + 1}",
        f"{U64_MAX + 1}:1",
        "1:" + "9" * 5_000,
    ],
)
def test_other_text_is_no_position(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        Position.parse(text)
    assert caught.value.name == "INVALID_POSITION"
    assert len(caught.value.detail) < 250


@pytest.mark.parametrize("text", [f"{JOURNAL_TEXT}:0:0", f"{JOURNAL_TEXT}:{U64_MAX}:{U32_MAX}"])
def test_bus_position_at_its_bounds(text: str) -> None:
    assert str(BusPosition.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:1",
        f"{JOURNAL_TEXT}:1",
        f"{JOURNAL_TEXT.upper()}:1:1",
        f"{JOURNAL_TEXT}0:1:1",
        f"{JOURNAL_TEXT[1:]}:1:1",
        f"{JOURNAL_TEXT}:{U64_MAX + 1}:0",
        f"{JOURNAL_TEXT}:0:{U32_MAX + 1}",
        f"{JOURNAL_TEXT}:0:00",
    ],
)
def test_other_text_is_no_bus_position(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        BusPosition.parse(text)
    assert caught.value.name == "INVALID_POSITION"
