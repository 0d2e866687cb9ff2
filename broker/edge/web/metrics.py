"""`/metrics`: what Prometheus scrapes, read from the broker's own counters when it is asked for.

Nothing is counted for it: `broker.model.metrics` says which figure of the broker each metric is. The figures are taken
on the loop, in a fraction of a millisecond and some 20 µs for each consumer; what is made of them is made in a thread,
since that takes longer. The number of its lines is bounded, whatever strangers do.
"""

from __future__ import annotations

import asyncio
import platform
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.responses import Response

from broker._version import __version__
from broker.edge.web.operator import check_operator
from broker.events import tallied
from broker.model.metrics import BUCKETS_S, METRICS, MetricKind, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

    from broker.edge.web.api import Call
    from broker.model.consumers import ConsumerInfo
    from broker.model.metrics import Metric
    from broker.node.node import Node
    from broker_native.histogram import Histogram

__all__ = ["CONSUMERS_MAX", "Scrape", "metrics"]

CONSUMERS_MAX: Final = 100
"""Consumers that have samples of their own, the first ones by name: every one of them is a dozen lines."""


async def metrics(call: Call) -> Response:
    """Answer a scrape, to who may manage the broker."""
    await check_operator(call)
    scrape = Scrape(call.node)
    loop = asyncio.get_running_loop()
    text, content_type = await loop.run_in_executor(None, scrape.render, call.request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})


class Scrape(Collector):
    """One look at a node; make it on the loop, and have it rendered anywhere.

    Args:
        node: The broker.
    """

    def __init__(self, node: Node) -> None:
        self._stats, self._histograms, self._refusals = node.stats(), node.histograms(), tallied()
        self._consumers, _ = node.consumers.in_memory(CONSUMERS_MAX)

    def collect(self) -> Iterator[Family]:
        """Return each metric of the registry that there is a figure for; the library calls it."""
        for metric in METRICS:
            match metric.source:
                case Source.STATS:
                    # Without an archive there are no figures of one.
                    if metric.key in self._stats:
                        yield _single(metric, self._stats[metric.key])
                case Source.HISTOGRAMS:
                    yield _histogram(metric, self._histograms[metric.key])
                case Source.CONSUMER:
                    yield _labelled(metric, "consumer", _by_consumer(metric, self._consumers))
                case Source.REFUSALS:
                    yield _labelled(metric, "code", self._refusals.items())
                case Source.BUILD:
                    yield _build(metric)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return it as text and its content type, in the format that `accept` prefers."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        # Descriptors, start time and memory under the names that every dashboard knows.
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type


def _single(metric: Metric, value: object) -> Family:
    assert isinstance(value, (int, float))
    if metric.kind is MetricKind.COUNTER:
        return CounterMetricFamily(metric.name, metric.meaning, value=value * metric.scale)
    return GaugeMetricFamily(metric.name, metric.meaning, value=value * metric.scale)


def _labelled(metric: Metric, label: str, values: Iterable[tuple[str, float]]) -> Family:
    kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=[label])
    for name, value in values:
        family.add_metric([name], value)
    return family


def _by_consumer(metric: Metric, consumers: list[ConsumerInfo]) -> list[tuple[str, float]]:
    return [(info.settings.name, getattr(info, metric.key)) for info in consumers]


def _build(metric: Metric) -> Family:
    labels: Mapping[str, str] = {"version": __version__, "python": platform.python_version()}
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _histogram(metric: Metric, histogram: Histogram) -> Family:
    """Return a native histogram in Prometheus' buckets: each of its own goes where its lower end does."""
    counts = [0] * (len(BUCKETS_S) + 1)
    bounds = [round(bound / metric.scale) for bound in BUCKETS_S]
    for low, _, count in histogram.buckets():
        counts[bisect_left(bounds, low)] += count
    buckets, sum_so_far = [], 0
    for bound, count in zip((*BUCKETS_S, float("inf")), counts, strict=True):
        sum_so_far += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(sum_so_far)))
    total = histogram.mean * histogram.count * metric.scale if histogram.count else 0.0
    return HistogramMetricFamily(metric.name, metric.meaning, buckets=buckets, sum_value=total)
