"""Every metric of `/metrics`, in one registry: its name, its kind, which figure of the broker it is, and what it means.

Names are `broker_<part>_<what>_<unit>` in Prometheus' base units; what only grows in a run ends in `_total`. A name
never changes its meaning. Figures are those that the broker tells anyhow (`stats`, specification.md §13): a metric
costs nothing until somebody reads it. `tests/unit/model/test_metrics.py` holds the registry against what a broker
tells, so no figure is forgotten; the dashboard is held against the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUCKETS_S", "METRICS", "METRIC_BY_NAME", "NO_METRICS", "Metric", "MetricKind", "Source"]


class MetricKind(StrEnum):
    """What Prometheus calls a type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Where a metric's value is found."""

    STATS = "stats"
    """`Node.stats`, by its key."""
    HISTOGRAMS = "histograms"
    """`Node.histograms`, by its key."""
    CONSUMER = "consumer"
    """A field of `ConsumerInfo`; a sample for each durable consumer and work queue in memory, label `consumer`."""
    REFUSALS = "refusals"
    """Connections that were ended with an error; a sample for each, label `code`."""
    BUILD = "build"
    """1, with what runs as labels."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the registry.

    Attributes:
        name: As Prometheus gets it, a counter's with `_total`.
        kind: Its type.
        source, key: Where its value is.
        meaning: One clause.
        scale: The figure times this is the metric.
    """

    name: str
    kind: MetricKind
    source: Source
    key: str
    meaning: str
    scale: float = 1.0


def _counter(name: str, key: str, meaning: str, scale: float = 1.0) -> Metric:
    return Metric(f"broker_{name}_total", MetricKind.COUNTER, Source.STATS, key, meaning, scale)


def _gauge(name: str, key: str, meaning: str, scale: float = 1.0) -> Metric:
    return Metric(f"broker_{name}", MetricKind.GAUGE, Source.STATS, key, meaning, scale)


def _times(name: str, key: str, meaning: str) -> Metric:
    return Metric(f"broker_{name}_seconds", MetricKind.HISTOGRAM, Source.HISTOGRAMS, key, meaning, _MICRO)


def _consumer(name: str, key: str, meaning: str, *, total: bool = False) -> Metric:
    kind = MetricKind.COUNTER if total else MetricKind.GAUGE
    return Metric(f"broker_consumer_{name}{'_total' if total else ''}", kind, Source.CONSUMER, key, meaning)


_MICRO: Final = 1e-6

BUCKETS_S: Final = (
    *(0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper ends of a histogram's buckets. What is counted under one is exact within 1/128 of it."""

METRICS: Final = (
    Metric("broker_build_info", MetricKind.GAUGE, Source.BUILD, "", "1; version and Python are its labels"),
    # the process
    _gauge("process_run_number", "run", "number of this run of the data directory; a change is a restart"),
    _counter("process_cpu_seconds", "cpu_s", "processor time of the server, its archiving process aside"),
    _gauge("process_memory_bytes", "rss_anon_bytes", "anonymous memory of the server"),
    _gauge("process_time_seconds", "time_us", "the broker's time, since 1970", _MICRO),
    _times("loop_lag", "loop_lag_us", "how late the loop comes to the end of a turn that was asked for"),
    # connections
    _gauge("connections_open", "connections", "connections that are open, on all listeners"),
    Metric(
        "broker_connections_ended_total",
        MetricKind.COUNTER,
        Source.REFUSALS,
        "",
        "connections that were refused, or ended with an error, by its code",
    ),
    _counter("connections_slow_ended", "disconnected_slow", "connections that were ended for not reading"),
    # publishing
    _counter("publish_records", "records_in", "records that were taken"),
    _counter("publish_bytes", "record_bytes_in", "bytes of records that were taken"),
    _counter("publish_repeated_records", "records_repeated", "records that were known by their id and not taken again"),
    _counter("publish_refused_memory", "publishes_refused_memory", "publishes refused while queues held too much"),
    _gauge("publish_held_connections", "publishers_held", "connections not read until there is memory for publishes"),
    # commits
    _counter("commit_groups", "commits", "groups that were appended to the journal"),
    _counter("commit_bytes", "bytes", "bytes of these groups"),
    _counter("commit_fsyncs", "fsyncs", "waits for the disk, of appends, seals and new segments"),
    _times("commit_duration", "commit_us", "from handing a group to the commit thread until the loop hears of it"),
    _gauge("commit_group_number", "groups", "the last group that was applied"),
    _counter("commit_delays", "commit_delays", "groups that waited for the archive"),
    _counter("commit_delay_seconds", "commit_delay_s", "time that groups waited for the archive"),
    _counter("commit_refusals", "commit_refusals", "groups that waited for the archive in vain"),
    # delivering
    _counter("delivery_records", "records_out", "records that were handed to readers"),
    _counter("delivery_chunks", "chunks_out", "chunks that were handed to readers"),
    _counter("delivery_bytes", "bytes_out", "bytes that were handed to readers"),
    _counter("delivery_missed_records", "group_records_missed", "records that no member of a live group had room for"),
    _times("delivery_duration", "delivery_us", "from taking a group's oldest record until its readers' sockets got"),
    # subscriptions
    _gauge("subscriptions_open", "subscriptions", "subscriptions that are open"),
    _gauge("subscriptions_lagging", "subscriptions_lagging", "subscriptions that have fallen behind and read the log"),
    _counter("subscriptions_demoted", "demotions", "subscriptions that fell behind"),
    _counter("subscriptions_promoted", "promotions", "subscriptions that came back to what is live"),
    _counter("subscriptions_slices_read", "slices_read", "pieces of the log that were read for who is behind"),
    _counter("subscriptions_slices_shared", "slices_shared", "pieces that were there, since another had read them"),
    # requests and replies
    _counter("requests_unheard", "requests_unheard", "requests that nobody was there to answer"),
    _counter("replies_sent", "replies_out", "replies that were handed to who had asked"),
    _counter("replies_unheard", "replies_unheard", "replies that nobody waited for any more"),
    # channels
    _gauge("channels_stored", "channels", "channels that there are"),
    _gauge("channels_memory", "channels_in_memory", "of them in memory"),
    _counter("channels_evicted", "channels_evicted", "channels that were freed from memory"),
    _counter("channels_loaded", "channels_loaded", "channels that were brought back into memory"),
    _gauge("channels_full", "channels_full", "channels that take no more until their consumers have done some"),
    _gauge("producers_known", "producers", "producers whose line is in memory"),
    _gauge("ids_memory_bytes", "ids_bytes", "memory of message ids"),
    _counter("ids_loaded", "ids_loaded", "channels whose ids were brought back into memory"),
    # memory
    _gauge("memory_limit_bytes", "memory_budget_bytes", "what queues and what is kept may hold"),
    _gauge("memory_used_bytes", "memory_used_bytes", "what they hold"),
    _gauge("memory_queued_bytes", "queued_bytes", "of it what waits to be sent"),
    _gauge("memory_arriving_bytes", "arriving_bytes", "of it frames that have not come whole"),
    _gauge("memory_pending_bytes", "pending_bytes", "of it what is not committed"),
    _gauge("memory_kept_bytes", "kept_bytes", "of it what is kept for readers and consumers"),
    _gauge("memory_load_bytes", "load_backlog_bytes", "of what waits for channels to be loaded"),
    # consumers
    _gauge("consumers_stored", "consumers", "durable consumers and work queues"),
    _gauge("consumers_memory", "consumers_in_memory", "of them in memory"),
    _gauge("consumers_jobs_leased", "jobs_leased", "jobs that are under way"),
    _counter("consumers_jobs_redelivered", "jobs_redelivered", "jobs that were given out again"),
    _counter("consumers_jobs_dead", "jobs_dead", "jobs that were given up"),
    _counter("consumers_jobs_expired", "jobs_expired", "leases that ran out"),
    _consumer("members", "members", "who takes jobs"),
    _consumer("ready_jobs", "ready", "jobs in memory that wait to be given out"),
    _consumer("leased_jobs", "leased", "jobs that are under way"),
    _consumer("delayed_jobs", "delayed", "jobs that wait for their next attempt"),
    _consumer("lag_messages", "lag", "stored messages not looked at yet; -1 when nobody has counted them"),
    _consumer("held_bytes", "held_bytes", "what retention keeps, since it has not done it"),
    _consumer("acked_jobs", "acked", "jobs that were done", total=True),
    _consumer("redelivered_jobs", "redelivered", "jobs that were given out again", total=True),
    _consumer("dead_jobs", "dead", "jobs that were given up", total=True),
    # delayed messages
    _gauge("delayed_waiting", "delayed_pending", "messages that wait for their time"),
    _gauge("delayed_memory_bytes", "delayed_bytes", "memory of what waits for its time"),
    _counter("delayed_scheduled", "delayed_scheduled", "messages that were taken for later"),
    _counter("delayed_published", "delayed_published", "messages whose time has come"),
    _counter("delayed_cancelled", "delayed_cancelled", "messages that were taken back"),
    _counter("delayed_refused", "delayed_refused", "messages that their channel did not take"),
    # retention
    _counter("retention_trims", "retention_trims", "channels that were cut"),
    _counter("retention_steps", "retention_steps", "steps of looking for what may go"),
    _gauge("retention_held_channels", "retention_held_channels", "channels that consumers keep past their bounds"),
    _gauge("retention_held_bytes", "retention_held_bytes", "what of them is kept so"),
    # the journal and the archive
    _gauge("journal_segments", "segments", "segments of the journal"),
    _gauge("journal_segments_sealed", "sealed", "of them sealed"),
    _counter("journal_seals", "seals", "segments that were sealed"),
    _counter("journal_seal_seconds", "seal_s", "time that was spent on it"),
    _gauge("journal_seal_waiting", "seal_backlog", "full segments that wait to be sealed"),
    _gauge("archive_group_number", "archived_group", "the last group that is in the archive"),
    _gauge("archive_chunks_bytes", "archived_bytes", "chunks in the archive"),
    _gauge("archive_waiting_bytes", "archive_backlog_bytes", "what waits for the archive"),
    _gauge("archive_waiting_segments", "archive_backlog", "sealed segments that wait for the archive"),
    _counter("archive_slices", "archive_slices", "transactions that were written"),
    _counter("archive_write_seconds", "archive_s", "time that was spent writing"),
    _counter("archive_pause_seconds", "archive_pause_s", "time that was rested between, for commits"),
    _counter("archive_written_bytes", "archive_written_bytes", "bytes that were written, since the writer began"),
    _counter("archive_cpu_seconds", "archive_cpu_s", "processor time of the archiving process"),
    _counter("archive_failures", "archive_failures", "attempts that failed"),
    _gauge("archive_blocked", "archive_blocked", "1 when the archive is damaged and nothing is moved there"),
)
"""The registry, by parts."""

METRIC_BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in METRICS})

NO_METRICS: Final = frozenset(
    {"pid", "commit_p50_us", "commit_p99_us", "delivery_p50_us", "delivery_p99_us", "loop_lag_p99_us"}
)
"""Figures of `stats` that are no metrics: a process number, and percentiles, which histograms tell better."""
