"""The registry of metrics, held against what a broker tells: no figure is forgotten, and none made up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.config import Config
from broker.log import ArchiveBy
from broker.model.consumers import ConsumerInfo
from broker.model.metrics import BUCKETS_S, METRIC_BY_NAME, METRICS, NO_METRICS, MetricKind, Source
from broker.node.node import Node

if TYPE_CHECKING:
    from pathlib import Path

NAME = re.compile(r"broker(_[a-z]+)+")


async def test_every_figure_of_a_broker_is_a_metric(tmp_path: Path) -> None:
    config = Config()
    node = await Node.open(
        tmp_path / "data",
        profiles=config.profiles,
        limits=config.limits,
        segment_bytes=config.storage.segment_bytes,
        reserve_bytes=0,
        archive_by=ArchiveBy.THREAD,
    )
    try:
        stats, histograms = node.stats(), node.histograms()
    finally:
        await node.close()
    keys = [metric.key for metric in METRICS if metric.source is Source.STATS]
    assert len(keys) == len(set(keys))
    assert set(keys) | NO_METRICS == set(stats)
    assert set(keys).isdisjoint(NO_METRICS)
    assert {metric.key for metric in METRICS if metric.source is Source.HISTOGRAMS} == set(histograms)
    assert {metric.key for metric in METRICS if metric.source is Source.CONSUMER} <= set(ConsumerInfo._fields)


def test_names_are_stable_words() -> None:
    assert len(METRIC_BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert NAME.fullmatch(metric.name), metric
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric
        assert metric.meaning, metric


def test_times_are_in_seconds_and_sizes_in_bytes() -> None:
    for metric in METRICS:
        # What its figure says of its unit, the metric says as well.
        unit = metric.name.removesuffix("_total").rpartition("_")[2]
        if metric.key.endswith(("_s", "_us")):
            assert unit == "seconds", metric
            assert metric.scale == (1e-6 if metric.key.endswith("_us") else 1.0), metric
        if metric.key.endswith("bytes") or metric.key.endswith("bytes_in"):
            assert unit == "bytes", metric
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
