"""Durability levels: the numbers of the wire, the order of their promises, and their labels."""

from __future__ import annotations

import pytest

from broker.model.levels import Level, parse_level


def test_numbers_are_those_of_the_wire() -> None:
    assert [(level.value, level.label) for level in Level] == [
        (1, "ephemeral"),
        (2, "accepted"),
        (3, "synced"),
        (4, "replicated"),
    ]


def test_levels_are_ordered_by_what_they_promise() -> None:
    assert Level.EPHEMERAL < Level.ACCEPTED < Level.SYNCED < Level.REPLICATED


@pytest.mark.parametrize("level", Level)
def test_label_is_parsed_back(level: Level) -> None:
    assert parse_level(level.label) is level


@pytest.mark.parametrize("label", ["", "SYNCED", "sync", "3"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="no durability level"):
        parse_level(label)
