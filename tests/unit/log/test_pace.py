"""The archiver yields to slow commits, and to nothing when it is far behind."""

from __future__ import annotations

from broker.log.backlog import FREE_SHARE
from broker.log.begin import BEGIN_SHARE
from broker.log.pace import PAUSE_S_MAX, REST_MAX, Pace

BACKLOG_BYTES_MAX = 8000
QUIET_S = 0.004


def paced(commit_s: float, steps: int = 20, backlog_bytes: int = 0) -> Pace:
    """Return a pace after commits that took so long beside the archiver."""
    pace = Pace(BACKLOG_BYTES_MAX)
    for _ in range(1000):
        pace.committed(QUIET_S)
    pace.begin()
    for _ in range(steps):
        for _ in range(20):
            pace.committed(commit_s)
        pace.pause_s(0.1, backlog_bytes)
    return pace


def test_no_pause_beside_commits_that_are_as_fast_as_ever() -> None:
    assert paced(QUIET_S).pause_s(0.1, 0) == 0.0


def test_rests_longer_the_longer_commits_stay_slow() -> None:
    pauses = [paced(3 * QUIET_S, steps).pause_s(0.1, 0) for steps in (0, 1, 2, 3)]
    assert pauses == sorted(pauses)
    assert paced(3 * QUIET_S).pause_s(0.1, 0) == 0.1 * REST_MAX
    assert paced(3 * QUIET_S).pause_s(10.0, 0) == PAUSE_S_MAX


def test_goes_on_when_commits_are_fast_again() -> None:
    pace = paced(3 * QUIET_S)
    for _ in range(200):
        pace.committed(QUIET_S)
    pauses = [pace.pause_s(0.1, 0) for _ in range(12)]
    assert pauses == sorted(pauses, reverse=True)
    assert pauses[-1] == 0.0


def test_a_backlog_leaves_less_time_to_rest() -> None:
    pace = paced(3 * QUIET_S)
    begin, free = (round(share * BACKLOG_BYTES_MAX) for share in (BEGIN_SHARE, FREE_SHARE))
    pauses = [pace.pause_s(0.1, backlog) for backlog in (0, begin, free, 5 * free)]
    assert pauses == [0.1 * REST_MAX, 0.1 * REST_MAX, 0.0, 0.0]
    assert round(pace.pause_s(0.1, (begin + free) // 2), 3) == 0.05 * REST_MAX


def test_what_harms_nobody_is_no_reason_to_rest() -> None:
    pace = Pace(BACKLOG_BYTES_MAX)
    for _ in range(1000):
        pace.committed(0.0001)
    pace.begin()
    for _ in range(100):
        pace.committed(0.002)
    assert pace.pause_s(0.1, 0) == 0.0


def test_commits_beside_the_archiver_are_no_measure_of_a_quiet_disk() -> None:
    pace = paced(10 * QUIET_S, steps=200)
    assert round(pace.quiet_s, 6) == QUIET_S
    pace.end()
    for _ in range(2000):
        pace.committed(10 * QUIET_S)
    assert pace.quiet_s > 9 * QUIET_S
