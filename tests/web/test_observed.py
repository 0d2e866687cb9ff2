"""What an operator sees from outside: metrics, health, and a snapshot, of a server that works meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from broker import connect
from broker.model.metrics import METRICS, MetricKind, Source
from broker.node.seconds import Second
from tests.contract.homes import CONFIG, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric as Family

SCRAPE_S_MAX = 2.0
"""No figure of ours: what a busy machine may take for a scrape before something is wrong."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(config=CONFIG + '[server]\nweb = "127.0.0.1:0"\n').start()
    yield server
    server.stop()


def get(server: Server, path: str, **headers: str) -> tuple[int, str, str]:
    """Return status, content type and body."""
    address = json.loads((server.folder / "ready").read_text())["web"]
    request = Request(f"http://{address}{path}", headers=headers)
    try:
        with urlopen(request, timeout=10) as response:
            return response.status, response.headers["content-type"], response.read().decode()
    except HTTPError as refusal:
        return refusal.code, refusal.headers["content-type"], refusal.read().decode()


def scrape(server: Server) -> dict[str, Family]:
    status, content_type, text = get(server, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {family.name: family for family in parse_text(text)}


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    family = families[name.removesuffix("_total")]
    (found,) = [each.value for each in family.samples if each.name == name and each.labels == labels]
    return float(found)


async def test_a_scrape_tells_what_has_happened(server: Server) -> None:
    async with connect(server.unix_url) as bus, bus.subscribe("s.seen.x") as reader:
        await bus.create_queue("seen-work", "s.seen.x")
        before = await asyncio.to_thread(scrape, server)
        await bus.publish_many("s.seen.x", [b"x" * 10] * 20)
        for _ in range(20):
            await anext(aiter(reader))
        begun_s = time.monotonic()
        after = await asyncio.to_thread(scrape, server)
        assert time.monotonic() - begun_s < SCRAPE_S_MAX
    grown = {
        name: value(after, name) - value(before, name)
        for name in ("broker_publish_records_total", "broker_delivery_records_total", "broker_commit_groups_total")
    }
    assert grown["broker_publish_records_total"] >= 20
    assert grown["broker_delivery_records_total"] >= 20
    assert grown["broker_commit_groups_total"] >= 1
    jobs = [value(after, f"broker_consumer_{name}", consumer="seen-work") for name in ("ready_jobs", "lag_messages")]
    assert sum(jobs) == 20
    for name in ("broker_commit_duration_seconds", "broker_delivery_duration_seconds"):
        family = after[name]
        buckets = [each.value for each in family.samples if each.name.endswith("_bucket")]
        (count,) = [each.value for each in family.samples if each.name.endswith("_count")]
        (total,) = [each.value for each in family.samples if each.name.endswith("_sum")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == count > 0
        assert 0 < total < 60
    assert value(after, "process_open_fds") > 0


def test_every_metric_is_told_with_its_type_and_no_other(server: Server) -> None:
    families = scrape(server)
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        if metric.source is Source.STATS:
            assert len(family.samples) == 1
        if metric.kind is MetricKind.HISTOGRAM:
            assert family.samples
    ours = {name for name in families if name.startswith("broker_")}
    assert ours == {metric.name.removesuffix("_total") for metric in METRICS}


def test_openmetrics_is_told_to_who_asks_for_it(server: Server) -> None:
    status, content_type, text = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    assert "broker_publish_records" in {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]


def test_refused_connections_are_counted_by_code(server: Server) -> None:
    address = json.loads((server.folder / "ready").read_text())["tcp"]
    name = "broker_connections_ended_total"
    with pytest.raises(HTTPException):  # it is not spoken there
        urlopen(f"http://{address}/", timeout=10)
    samples = scrape(server)[name.removesuffix("_total")].samples
    assert sum(each.value for each in samples) >= 1
    assert all(set(each.labels) == {"code"} for each in samples)


def test_a_server_that_serves_is_healthy_and_ready(server: Server) -> None:
    assert get(server, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert get(server, "/readyz") == (200, "text/plain; charset=utf-8", "ready\n")
    # Who probes it does so by an address that nobody has named, and is told no more than that.
    assert get(server, "/healthz", Host="10.1.2.3:4780")[0] == 200
    assert get(server, "/v1/stats", Host="10.1.2.3:4780")[0] == 403
    assert get(server, "/metrics", Host="10.1.2.3:4780")[0] == 403


async def test_a_snapshot_tells_who_is_there_and_who_is_behind(server: Server) -> None:
    noticed = asyncio.Event()
    async with (
        connect(server.unix_url, name="phone") as phone,
        connect(server.unix_url, name="writer") as bus,
        phone.subscribe("s.seen.slow", credit_bytes=64 * 1024, on_event=lambda event: noticed.set()),
    ):
        await bus.create_queue("seen-idle", "s.seen.slow")
        for _ in range(6):
            await bus.publish_many("s.seen.slow", [bytes(1_000)] * 100)
        async with asyncio.timeout(30):
            await noticed.wait()
        # The first row comes with the first second.
        await asyncio.sleep(1.1)
        status, content_type, body = await asyncio.to_thread(get, server, "/v1/stats?seconds=2")
    assert (status, content_type) == (200, "application/json")
    told: dict[str, Any] = json.loads(body)
    assert told["ready"] is True
    assert {trouble["name"] for trouble in told["troubles"]} >= {"readers_behind", "consumers_without_members"}
    names = {connection["name"] for connection in told["connections"]}
    assert {"phone", "writer"} <= names
    assert [reader["name"] for reader in told["readers"]] == ["phone"]
    assert told["stats"]["subscriptions_lagging"] == 1
    assert [set(row) for row in told["seconds"]] == [set(Second._fields)] * len(told["seconds"])
    assert 0 < len(told["seconds"]) <= 2
    idle = next(consumer for consumer in told["consumers"] if consumer["name"] == "seen-idle")
    assert (idle["members"], idle["ready"] + idle["lag"]) == (0, 600)
    assert told["config"]["storage"]["segment_bytes"]["unit"] == "bytes"
    assert told["config"]["profiles"][0]["pattern"]["value"] == "e.>"


@pytest.mark.parametrize("asked", ["-1", "x", "301", "9999999999", "٣", "", "1&seconds=2", "1&second=2"])
def test_a_number_of_seconds_that_is_none_is_refused(server: Server, asked: str) -> None:
    status, content_type, body = get(server, f"/v1/stats?seconds={quote(asked, safe='&=')}")
    assert (status, content_type) == (400, "application/problem+json")
    assert json.loads(body)["name"] == "MALFORMED_FRAME"
