"""A comparison as github-action-benchmark reads it: more is better of all that is told, and nothing wrong is."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from broker.bench.compare.outcome import CURVE_PERCENTS, OURS, Comparison, Measurement, Row, Standing
from broker.bench.tracked import main, tracked

if TYPE_CHECKING:
    from pathlib import Path


def standing(contender: str, deliveries: list[int], **more: object) -> dict[str, Any]:
    rounds = [{"deliveries": count, "seconds": 2.0, "errors": []} for count in deliveries]
    told: dict[str, Any] = {"contender": contender, "how": f"by {contender}", "promise": "never stored"}
    return {**told, "rounds": rounds, "medians": {}, "ratios": {}, **more}


COMPARISON: dict[str, Any] = {
    "format": 1,
    "rows": [
        {
            "work": "ephemeral",
            "standings": [
                standing("broker", [200, 300, 100], medians={"rate": 100.0}),
                standing("redis", [40, 50, 60], medians={"rate": 25.0}, ratios={"rate": 4.0}),
            ],
        },
        {
            "work": "latency",
            "standings": [
                standing("broker", [2], medians={"p50": 50.0, "p99": 90.0}),
                standing("nats", [2], medians={"p50": 60.0, "p99": 81.0}, ratios={"p50": 1.2, "p99": 0.9}),
            ],
        },
    ],
}


def test_rates_and_ratios_are_told() -> None:
    told = {entry["name"]: entry for entry in tracked(COMPARISON)}
    assert {name: entry["value"] for name, entry in told.items()} == {
        "ephemeral: deliveries": 100.0,
        "ephemeral: rate, times redis": 4.0,
        "latency: p50, times nats": 1.2,
        "latency: p99, times nats": 0.9,
    }
    assert told["ephemeral: deliveries"]["range"] == "50 to 150"
    assert told["ephemeral: deliveries"]["unit"] == "1/s"
    assert told["latency: p99, times nats"]["extra"] == "by nats; never stored"


def test_it_reads_what_a_comparison_writes() -> None:
    curve = [float(at) for at, _ in enumerate(CURVE_PERCENTS)]
    ours = Standing(OURS, "ephemeral", "never stored", rounds=[Measurement(deliveries=600, seconds=2.0, curve=curve)])
    theirs = Standing("redis", "PUBLISH", "never stored", rounds=[Measurement(deliveries=150, seconds=2.0)])
    row = Row("ephemeral", "1 → 1", ("rate", "p99"), [ours, theirs])
    comparison = Comparison("2026-11-23", "abc", "3.11", {"cores": 2}, 50.0, {}, {}, rows=[row])
    told = {entry["name"]: entry["value"] for entry in tracked(json.loads(json.dumps(comparison.as_json())))}
    assert told == {"ephemeral: deliveries": 300.0, "ephemeral: rate, times redis": 4.0}


def test_the_command_prints_a_list_with_names_units_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "compared.json"
    file.write_text(json.dumps(COMPARISON))
    assert main([str(file)]) == 0
    for entry in json.loads(capsys.readouterr().out):
        assert {"name", "unit", "value"} <= entry.keys()
        assert isinstance(entry["value"], float)


def test_what_is_wrong_is_no_point_of_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = deepcopy(COMPARISON)
    wrong["rows"][0]["standings"][1]["rounds"][2]["errors"] = ["12 lost"]
    with pytest.raises(ValueError, match="ephemeral, redis: 12 lost"):
        tracked(wrong)
    for text, words in (
        (json.dumps({**COMPARISON, "format": 2}), "format: got 2, expected 1"),
        ('{"benchmarks": []}', "not what `broker bench compare --json` writes"),
        ("[]", "not what `broker bench compare --json` writes"),
        ("no json", "Expecting value"),
    ):
        file = tmp_path / "compared.json"
        file.write_text(text)
        assert main([str(file)]) == 2
        assert words in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
