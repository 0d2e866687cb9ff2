"""Rates between two looks: restarts, counters that go back, servers that tell less."""

from __future__ import annotations

from typing import Any

import pytest

from broker.cli.top.rates import COUNTERS, Reader, compare
from tests.unit.cli.top.looks import change, reader, snapshot


def test_a_rate_is_growth_by_time() -> None:
    found = change(records_in=1_500, groups=10, cpu_s=11.0)
    assert found.elapsed_s == 2.0
    assert not found.restarted
    assert found.rate("records_in") == 250.0
    assert found.rate("groups") == 0.0
    assert found.rate("cpu_s") == 0.5


def test_the_first_look_knows_no_rates() -> None:
    found = compare(None, snapshot())
    assert (found.elapsed_s, found.restarted, found.rates) == (None, False, {})
    assert found.rate("records_in") is None


@pytest.mark.parametrize("life", [{"run": 4}, {"pid": 4712}, {"run": 4, "pid": 4712}])
@pytest.mark.parametrize("records", [0, 5_000])
def test_no_rate_goes_over_a_restart(life: dict[str, Any], records: int) -> None:
    """Not even of a counter that is higher than before: it may have begun anew and passed what it was."""
    found = change(records_in=records, **life)
    assert found.restarted
    assert (found.elapsed_s, found.rates) == (None, {})
    after = compare(found.now, snapshot(103.0, records_in=records + 100, **life))
    assert (after.restarted, after.rate("records_in")) == (False, 100.0)


def test_a_counter_that_goes_back_has_no_rate_and_others_have() -> None:
    found = change(records_in=999, records_out=2_010)
    assert found.rate("records_in") is None
    assert found.rate("records_out") == 5.0
    assert not found.restarted


@pytest.mark.parametrize("value", [None, "1", True, [1]])
def test_what_a_server_does_not_tell_is_unknown(value: object) -> None:
    found = change(records_in=value, memory_used_bytes=value)
    assert found.rate("records_in") is None
    assert found.now.figure("memory_used_bytes") is None
    assert found.rate("groups") == 0.0


def test_no_time_makes_no_rate() -> None:
    assert compare(snapshot(), snapshot(records_in=5_000)).rates == {}


def test_every_counter_is_one_that_a_server_tells() -> None:
    """`disconnected_slow` and the archiver's are not in the look made by hand; the rest must be spelt alike."""
    assert set(COUNTERS) - set(snapshot().stats) == {"disconnected_slow", "archive_written_bytes", "archive_cpu_s"}


def test_who_is_most_behind_comes_first() -> None:
    near, far, late = reader(behind_groups=1), reader(behind_groups=90), reader(behind_groups=90, behind_s=9.0)
    assert change((near, far, late)).readers == (late, far, near)


def test_a_reader_is_taken_as_far_as_it_is_told() -> None:
    assert Reader.of({}) == Reader(0, 0, "", "", (), 0, None, None, 0.0, 0.0, 0, 0, "")
    odd = Reader.of({"filters": "s.x", "behind_groups": "9", "behind_messages": None, "name": None, "policy": 1})
    assert odd == Reader(0, 0, "", "", (), 0, None, None, 0.0, 0.0, 0, 0, "1")
    assert reader(behind_messages=5, policy="latest").behind_messages == 5
    assert (odd.behind_bytes, reader(behind_bytes=5).behind_bytes) == (None, 5)
