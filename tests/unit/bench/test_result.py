"""Results: the keys that programs rely on, and what people are told."""

from __future__ import annotations

import io
import json

import pytest

from broker.bench.machine import commit_us_p50, describe_machine, revision
from broker.bench.options import Options, Work
from broker.bench.report import print_results, verdict
from broker.bench.result import Result, latency_of
from broker.model.levels import Level
from broker_native.histogram import Histogram

KEYS = [
    "work",
    "durability",
    "publishers",
    "subscribers",
    "channels",
    "payload",
    "batch",
    "ids",
    "messages",
    "seconds",
    "messages_per_s",
    "deliveries_per_s",
    "latency_us",
    "lost",
    "duplicated",
    "reordered",
    "server_cpu_s",
    "driver_cpu_s",
    "server_memory_bytes",
    "fsyncs",
    "commit_us_p50",
    "revision",
    "python",
    "machine",
    "extra",
]


def some_result() -> Result:
    histogram = Histogram()
    for microseconds in range(1, 1001):
        histogram.record(microseconds * 1000)
    return Result(
        "pubsub",
        Options(Work.PUBSUB, durability=Level.EPHEMERAL),
        messages=4000,
        seconds=2.0,
        deliveries=8000,
        latency_us=latency_of(histogram),
        server_cpu_s=1.0,
        driver_cpu_s=0.5,
        server_memory_bytes=3 << 20,
        fsyncs=7,
        commit_us_p50=450.0,
    )


def test_json_has_its_keys_in_their_order() -> None:
    found = json.loads(json.dumps(some_result().as_json()))
    assert list(found) == KEYS
    assert (found["messages_per_s"], found["deliveries_per_s"], found["durability"]) == (2000, 4000, "ephemeral")
    assert list(found["latency_us"]) == ["p50", "p90", "p99", "p999", "max"]
    assert found["latency_us"]["p50"] == pytest.approx(500, rel=0.01)
    assert found["latency_us"]["max"] == 1000
    assert found["machine"]["cores"] >= 1


def test_latency_of_nothing_is_zero() -> None:
    assert set(latency_of(Histogram()).values()) == {0.0}


@pytest.mark.parametrize("fault", ["lost", "duplicated", "reordered", "corrupt"])
def test_any_fault_makes_it_wrong(fault: str) -> None:
    result = some_result()
    assert result.right
    setattr(result, fault, 3)
    assert not result.right
    assert f"3 {fault}" in verdict(result)


def test_any_error_makes_it_wrong() -> None:
    result = some_result()
    result.errors.append("the server went away")
    assert not result.right
    assert "the server went away" in verdict(result)


def test_lines_say_it_all() -> None:
    out = io.StringIO()
    print_results([some_result()], out)
    text = out.getvalue()
    assert text.startswith("pubsub ephemeral: 1 publisher, 1 subscriber, 1 channel, 128-byte payloads, batch 1\n")
    for expected in ("2,000 messages/s", "all there", "25% of a core", "3.0 MiB", "7 fsyncs", "450 us"):
        assert expected in text
    assert "limited" not in text


def test_a_busy_driver_is_said() -> None:
    result = some_result()
    result.driver_cpu_s = 0.95 * result.seconds
    out = io.StringIO()
    print_results([result], out)
    assert "may be what limited" in out.getvalue()


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    print_results([some_result()], out)
    assert "2,000 messages/s" in out.getvalue()


def test_the_machine_is_described() -> None:
    assert 0 < commit_us_p50() < 1e6
    assert set(describe_machine()) == {"cpu", "cores", "kernel", "load_1min"}
    assert revision()
