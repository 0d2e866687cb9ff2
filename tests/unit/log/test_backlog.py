"""What waits for the archive is bounded: groups go as quickly as the rest of the bound lasts, and are refused at it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from broker.log import backlog
from broker.log.backlog import BOUND_S_MAX, FREE_SHARE, STILL_S_MAX, Backlog
from broker.log.errors import AppendFull

BYTES_MAX = 1 << 30
GROUP_BYTES = 1 << 20
FILE_BYTES = GROUP_BYTES * 3 // 2
"""What a group comes to in a sealed segment: less than is reckoned with."""


class Disk:
    """A journal that grows by its groups and shrinks when a slice ends, in a time of its own.

    Args:
        slice_s: how long the archive takes for a slice.
        slice_bytes: what it frees then; more is never in one.
        told: whether the archive says when that will be.
    """

    def __init__(self, slice_s: float, slice_bytes: int, *, told: bool = True) -> None:
        self.slice_s = slice_s
        self.slice_bytes = slice_bytes
        self.told = told
        self.now_s = 1000.0
        self.until_s = self.now_s + slice_s
        self.waiting = slice_bytes
        self.most = 0
        self.backlog = Backlog(lambda: self.waiting, self.steps, self.relief_s, BYTES_MAX)

    def steps(self) -> int:
        """Return how many transactions were written: four a second, or none when nothing is ever freed."""
        return int(self.now_s * 4) if self.slice_bytes else 0

    def relief_s(self) -> float | None:
        return self.until_s - self.now_s if self.told else None

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        while self.now_s >= self.until_s:
            self.until_s += self.slice_s
            self.waiting -= min(self.slice_bytes, self.waiting)

    def write(self, seconds: float, commit_s: float) -> int:
        """Commit groups one after the other; return how many went in."""
        groups, end_s = 0, self.now_s + seconds
        while self.now_s < end_s:
            self.backlog.take(GROUP_BYTES)
            self.waiting += FILE_BYTES
            self.most = max(self.most, self.waiting)
            groups += 1
            self.sleep(commit_s)
        return groups


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `disk` of the test, whichever it is, keep the time."""
    disks: list[Disk] = []
    begun = Disk.__init__

    def begin(self: Disk, *arguments: object, **options: object) -> None:
        begun(self, *arguments, **options)  # type: ignore[arg-type]
        disks.append(self)

    monkeypatch.setattr(Disk, "__init__", begin)
    time = SimpleNamespace(monotonic=lambda: disks[-1].now_s, sleep=lambda seconds: disks[-1].sleep(seconds))
    monkeypatch.setattr(backlog, "time", time)


def test_nothing_is_delayed_below_the_free_share() -> None:
    disk = Disk(10.0, BYTES_MAX // 4)
    disk.write(5.0, 0.1)
    assert disk.most < FREE_SHARE * BYTES_MAX
    assert (disk.backlog.delays, disk.backlog.delay_s) == (0, 0.0)


def test_what_is_left_lasts_until_the_slice_ends() -> None:
    """Groups that could come three times as quickly as the archive takes them in come at its pace; none is refused."""
    slice_bytes = BYTES_MAX // 2
    pace = slice_bytes / 30.0
    disk = Disk(30.0, slice_bytes)
    groups = disk.write(600.0, FILE_BYTES / (3 * pace))
    assert disk.backlog.refusals == 0
    assert disk.most < BYTES_MAX
    assert 0.8 < groups * FILE_BYTES / (600.0 * pace) < 1.2


def test_who_comes_slowly_enough_waits_for_nothing() -> None:
    disk = Disk(10.0, BYTES_MAX // 2)
    disk.waiting = int(0.9 * BYTES_MAX)
    disk.write(9.0, 1.0)
    assert disk.backlog.delays == 0


def test_slows_down_when_nobody_knows_how_long_the_archive_takes() -> None:
    disk = Disk(1e9, 0, told=False)
    disk.waiting = int(0.9 * BYTES_MAX)
    disk.write(1.0, 0.001)
    assert disk.backlog.delays > 0
    assert disk.backlog.delay_s > 0.5


def test_is_refused_at_the_bound_when_nothing_is_taken_in() -> None:
    disk = Disk(1e9, 0)
    disk.waiting = BYTES_MAX
    with pytest.raises(AppendFull):
        disk.backlog.take(GROUP_BYTES)
    assert STILL_S_MAX <= disk.now_s - 1000.0 < 2 * STILL_S_MAX
    assert disk.backlog.refusals == 1


def test_waits_at_the_bound_for_a_slice_that_gets_on() -> None:
    disk = Disk(BOUND_S_MAX / 2, BYTES_MAX // 2)
    disk.waiting = BYTES_MAX
    disk.backlog.take(GROUP_BYTES)
    assert disk.backlog.refusals == 0


def test_is_refused_at_the_bound_when_a_slice_takes_very_long() -> None:
    disk = Disk(10 * BOUND_S_MAX, BYTES_MAX // 2)
    disk.waiting = BYTES_MAX
    with pytest.raises(AppendFull):
        disk.backlog.take(GROUP_BYTES)
    assert BOUND_S_MAX <= disk.now_s - 1000.0 < 2 * BOUND_S_MAX
