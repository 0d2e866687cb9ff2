"""The reserve: kept, and asked about rarely."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from broker.log import AppendFull, space
from broker.log.space import OVERHEAD_BYTES, Space

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


class Disk:
    """A file system whose free bytes the test sets, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.questions = 0
        self.now_s = 100.0
        monkeypatch.setattr(space, "free_bytes", self._answer)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def _answer(self, _: Path) -> int:
        self.questions += 1
        return self.free


def test_the_reserve_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 10 * MIB + OVERHEAD_BYTES + 99)
    guard = Space(tmp_path, 10 * MIB)
    with pytest.raises(AppendFull) as caught:
        guard.take(100)
    assert not caught.value.handed_over
    assert caught.value.name == "STORAGE_FULL"
    assert caught.value.temporary
    assert caught.value.hint is not None
    disk.free += 1
    guard.take(100)


def test_a_refusal_asks_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 0)
    guard = Space(tmp_path, 0)
    for _ in range(3):
        with pytest.raises(AppendFull):
            guard.take(1)
    assert disk.questions == 3
    disk.free = 100 * MIB
    guard.take(1)


def test_an_answer_is_spent_before_the_next_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 1024 * MIB)
    guard = Space(tmp_path, 0)
    for _ in range(100):
        guard.take(MIB)
    assert disk.questions == 1
    for _ in range(500):
        guard.take(MIB)
    assert disk.questions == 2


def test_an_answer_grows_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs write to the disk, too."""
    disk = Disk(monkeypatch, 1024 * MIB)
    guard = Space(tmp_path, 0)
    guard.take(1)
    disk.free = 0
    disk.now_s += space.ANSWER_S / 2
    guard.take(1)
    disk.now_s += space.ANSWER_S
    with pytest.raises(AppendFull):
        guard.take(1)
