"""The verdict and the reports: what holds, what does not, and that the page stands alone."""

from __future__ import annotations

import json
import re
import xml.dom.minidom
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker_native.histogram import Histogram
from loadtest.chart import Line, draw, linear, logarithmic, percentile_axis, short, thinned, time_axis
from loadtest.judge import Judge
from loadtest.ledger import Faults
from loadtest.plan import Plan
from loadtest.screen import bars

if TYPE_CHECKING:
    from pathlib import Path

    from locust.env import Environment

NOBODY = cast("Environment", SimpleNamespace(runner=None))


def report_of(delivered: int, faults: Faults | None = None, errors: dict[str, int] | None = None) -> dict[str, Any]:
    """Return what a process says in the end: three seconds of as many messages, of 1 to 10 ms."""
    latency = Histogram()
    for value in range(1, 11):
        latency.record(value * 1_000_000)
    kinds = {"chat": latency.to_bytes(), "fanout": latency.to_bytes()}
    return {
        "seconds": [[at_s, delivered // 10, delivered, kinds] for at_s in (100, 101, 102)],
        "errors": errors or {},
        "cpu_s": 0.5,
        "faults": (faults or Faults(taken=3 * delivered)).as_list(),
    }


def judged(plan: Plan, *reports: dict[str, Any], ended: str = "") -> Judge:
    """Return the judge of a test that went like that."""
    judge = Judge(plan, "broker://x:1", 10)
    if ended:
        judge.fail(ended)
    for number, report in enumerate(reports):
        judge.take_final(f"worker {number}", report)
    judge.close(NOBODY)
    return judge


def test_what_was_asked_for_has_come() -> None:
    judge = judged(Plan(min_rate=200, max_p99_ms=11), report_of(100), report_of(100))
    assert judge.passed
    assert [each.got for each in judge.findings()][:2] == ["200 messages/s", "10.00 ms"]


@pytest.mark.parametrize(
    ("plan", "faults", "errors", "missed"),
    [
        (Plan(min_rate=201), None, {}, "delivered"),
        (Plan(min_rate=1, max_p99_ms=9), None, {}, "p99 latency"),
        (Plan(min_rate=1), Faults(lost=1), {}, "lost"),
        (Plan(min_rate=1), Faults(duplicated=1), {}, "duplicated"),
        (Plan(min_rate=1), Faults(reordered=1), {}, "reordered"),
        (Plan(min_rate=1), Faults(corrupt=1), {}, "errors"),
        (Plan(min_rate=1), Faults(misplaced=1), {}, "errors"),
        (Plan(min_rate=1), Faults(ahead=1), {}, "errors"),
        (Plan(min_rate=1), None, {"connect": 1}, "errors"),
    ],
)
def test_one_thing_is_enough_to_fail(plan: Plan, faults: Faults | None, errors: dict[str, int], missed: str) -> None:
    judge = judged(plan, report_of(100, faults, errors), report_of(100))
    assert not judge.passed
    assert [each.name for each in judge.findings() if not each.holds] == [missed]


def test_thresholds_may_be_wider() -> None:
    plan = Plan(min_rate=1, max_lost=2, max_errors=1)
    assert judged(plan, report_of(100, Faults(lost=2), {"connect": 1})).passed


def test_a_test_that_ended_early_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not judged(Plan(min_rate=1), report_of(100), ended="the server is gone").passed
    assert "ended early: the server is gone" in capsys.readouterr().out


def test_without_a_message_nothing_is_good() -> None:
    judge = judged(Plan(min_rate=0))
    assert [each.name for each in judge.findings() if not each.holds] == ["p99 latency"]


def test_ramps_are_judged_by_their_best_stretch() -> None:
    reports = [[at_s, 0, 10 * at_s, {}] for at_s in range(100, 120)]
    judge = Judge(Plan(shape="ramp", min_rate=1), "broker://x:1", 10)
    judge.take("worker", {"seconds": reports, "errors": {}, "cpu_s": 0})
    judge.timeline.settle(all_of_them=True)
    assert judge.findings()[0].got == "1,170 messages/s"


def test_the_crowd_must_be_complete_before_it_counts() -> None:
    judge = Judge(Plan(), "broker://x:1", 10)
    judge.crowd_is_complete(9)
    assert judge.timeline.since_s == 0
    judge.crowd_is_complete(10)
    assert judge.timeline.since_s > judge.begun_s


def test_reports_are_written_and_the_page_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "new" / "page.html", tmp_path / "figures.json"
    plan = Plan(min_rate=1, report=str(page), report_json=str(figures), token="hush")
    judge = Judge(plan, "broker://<b>:1", 10)
    for at_s in range(4):
        judge.server.add(float(at_s), {"pid": 1, "cpu_s": at_s * 0.95, "records_in": at_s * 10, "connections": 3})
    judge.begun_s -= 10
    judge.take_final("worker", report_of(100, errors={"<script>alert(1)</script>": 1}))
    judge.close(NOBODY)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|src=|href=|@import|url\(", text)
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "FAILED" in text
    for picture in re.findall(r"<svg.*?</svg>", text):
        xml.dom.minidom.parseString(picture)
    assert text.count("<svg") == 3 + 3
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["passed"] is False
    assert found["errors"] == {"<script>alert(1)</script>": 1}
    assert found["server"]["cores"] == 0.95
    assert "the server had none left" in found["bottleneck"]
    assert "hush" not in text + json.dumps(found)
    assert "FAILED" in capsys.readouterr().out


def test_axes_are_round() -> None:
    assert [name for _, name in linear(131_000).marks] == ["0", "50 k", "100 k", "150 k"]
    assert [name for _, name in logarithmic(0.3, 70).marks] == ["0.1", "1", "10", "100"]
    axis = percentile_axis(99.95)
    assert [name for _, name in axis.marks] == ["0", "90", "99", "99.9", "99.99"]
    assert [round(axis.place(value), 3) for value in (0, 90, 99, 99.9)] == [0, 0.25, 0.5, 0.75]
    assert [name for _, name in time_axis(7200).marks] == ["0 min", "50 min", "100 min"]
    assert [short(value) for value in (0, 0.25, 12, 3500, 2.1e6, 3e9)] == ["0", "0.25", "12", "3.5 k", "2.1 M", "3 G"]


def test_gaps_are_left_and_peaks_are_kept() -> None:
    picture = draw("t", [Line("l", [(0, 1.0), (1, None), (2, 9.0)])], linear(2), linear(4))
    assert picture.count("M") >= 2
    assert max(y for _, y in thinned([(float(at), float(at == 777)) for at in range(5000)], 100) if y is not None) == 1
    assert bars([0, 1, 2]) == " ▄█"
    assert bars([]) == ""
