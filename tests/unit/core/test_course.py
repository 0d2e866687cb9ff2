"""How many bytes lie behind a group, against a list of all of them."""

from __future__ import annotations

from random import Random

import pytest

from broker.core import course
from broker.core.course import Course


def test_nothing_was_committed() -> None:
    assert Course().since(0) == Course().since(99) == 0


@pytest.mark.parametrize("seed", range(5))
def test_it_is_right_within_the_distance_of_two_marks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "STEP_BYTES", 100)
    monkeypatch.setattr(course, "MARKS_MAX", 16)
    chance, marks = Random(seed), Course()
    groups: list[tuple[int, int]] = []
    number = 10
    for _ in range(500):
        number += chance.choice((1, 1, 5))
        groups.append((number, chance.choice((1, 20, 100))))
        marks.add(*groups[-1])
        assert len(marks._groups) <= 16
    assert marks.size_bytes == sum(size for _, size in groups)
    for asked in range(number + 2):
        true = sum(size for number, size in groups if number > asked)
        assert true <= marks.since(asked) <= true + 2 * marks._step_bytes
    assert marks._step_bytes < marks.size_bytes / 4
    assert marks.since(number) < 2 * marks._step_bytes


def test_what_came_since_the_last_mark_is_told_to_who_has_it() -> None:
    marks = Course()
    marks.add(1, 5 << 20)
    assert marks.since(1) == 0
    marks.add(2, 1_000)
    assert marks.since(1) == 1_000
    assert marks.since(2) == 1_000
