"""Rows on stdout, what becomes of the server on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from broker.cli.top.rates import compare
from broker.cli.top.rows import ROWS_A_HEADING, Rows
from tests.unit.cli.top.looks import change, snapshot

if TYPE_CHECKING:
    import pytest


def test_one_heading_and_a_row_a_look(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(as_json=False, watched=False)
    rows.first(compare(None, snapshot()))
    rows.redraw()
    assert capsys.readouterr() == ("", "")
    for _ in range(2 * ROWS_A_HEADING):
        rows.show(change())
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("commit-p50") == 1
    assert len(out.splitlines()) == 1 + 2 * ROWS_A_HEADING


def test_somebody_who_watches_gets_the_heading_again(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(as_json=False, watched=True)
    for _ in range(ROWS_A_HEADING + 1):
        rows.show(change())
    assert capsys.readouterr().out.count("commit-p50") == 2


def test_an_outage_is_told_once_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(as_json=True, watched=True)
    rows.show(change())
    rows.away(1.0, "CONNECTION_LOST: \x1b gone")
    rows.away(2.0, "CONNECTION_LOST: \x1b gone")
    rows.show(change(run=4))
    out, err = capsys.readouterr()
    assert [json.loads(line)["restarted"] for line in out.splitlines()] == [False, True]
    assert err.splitlines() == [
        r"no answer for 1.00 s: CONNECTION_LOST: \x1b gone; waiting for the server",
        "the server answers again",
        "the server has restarted: run 4, process 4711",
    ]
