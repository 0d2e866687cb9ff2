"""`broker metrics`: the same registry for a terminal, a pipe and a program; and a dashboard of what there is."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from broker.cli.main import main
from broker.model.metrics import METRIC_BY_NAME, METRICS, MetricKind

if TYPE_CHECKING:
    from collections.abc import Iterator

METRIC = re.compile(r"\bbroker_[a-z_]+\b")
LABEL = re.compile(r"{{(\w+)}}")


@pytest.fixture
def dashboard(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["metrics", "--dashboard"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def expressions(value: object) -> Iterator[tuple[str, str]]:
    """Walk over all that is asked of Prometheus, with what it is shown as."""
    if isinstance(value, dict):
        if isinstance(value.get("expr"), str):
            yield value["expr"], str(value.get("legendFormat", ""))
        if isinstance(value.get("query"), str) and "(" in value["query"]:
            yield value["query"], ""
        for each in value.values():
            yield from expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each)


def test_every_expression_names_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    named = set()
    for expression, legend in expressions(dashboard):
        names = METRIC.findall(expression)
        assert names, expression
        for name in names:
            metric = METRIC_BY_NAME[name.removesuffix("_bucket")]
            named.add(metric.name)
            # A counter is only ever looked at by its growth, a gauge never.
            grows = f"rate({name}" in expression or f"changes({name}" in expression
            assert grows == (metric.kind is not MetricKind.GAUGE or "changes" in expression), expression
            assert name.endswith("_bucket") == (metric.kind is MetricKind.HISTOGRAM), expression
        for label in LABEL.findall(legend):
            assert label in ("instance", "consumer", "code"), legend
        assert expression.count("(") == expression.count(")"), expression
        assert expression.count("{") == expression.count("}"), expression
    assert len(named) > 40


def test_the_dashboard_is_one_that_grafana_takes(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        assert panel["title"], panel["id"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for place in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert place not in taken, panel["title"]
            taken.add(place)
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}


def test_pipe_gets_one_line_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [[row.kind, row.name, row.meaning] for row in METRICS]


def test_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["metrics"]) == 0
    out = capsys.readouterr().out
    for row in METRICS:
        assert row.name in out


def test_one_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "BROKER_loop_lag_seconds"]) == 0
    assert capsys.readouterr().out.startswith("broker_loop_lag_seconds, histogram: ")
    assert main(["metrics", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert main(["metrics", "--json", METRICS[0].name]) == 0
    assert json.loads(capsys.readouterr().out) == every[0]


@pytest.mark.parametrize(("which", "hint"), [("broker_loop_lag", "broker_loop_lag_seconds"), ("", "lists them all")])
def test_unknown_is_a_usage_error(which: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", which]) == 2
    assert hint in capsys.readouterr().err
