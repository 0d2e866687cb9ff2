"""The ring of the newest groups."""

from __future__ import annotations

from broker.node.passages import PASSAGES, Passage, Passages


def test_a_group_is_known_until_its_place_is_taken() -> None:
    passages = Passages()
    assert passages.find(0) is None
    assert passages.find(1) is None
    passages.closed(1, 10, 20)
    assert passages.find(1) == Passage(10, 20, 0, 0)
    passages.delivered(1, 30, 40)
    assert passages.find(1) == Passage(10, 20, 30, 40)
    passages.closed(1 + PASSAGES, 50, 60)
    assert passages.find(1) is None
    assert passages.find(1 + PASSAGES) == Passage(50, 60, 0, 0)
    passages.delivered(1, 70, 80)
    assert passages.find(1 + PASSAGES) == Passage(50, 60, 0, 0), "a group that came late is not another's"
