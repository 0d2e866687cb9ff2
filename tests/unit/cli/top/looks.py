"""Looks at a server that never was, made by hand."""

from __future__ import annotations

from typing import Any

from broker.cli.top.rates import Change, Reader, Snapshot, compare

MIB = 1 << 20


def stats(**figures: object) -> dict[str, object]:
    """What a busy server tells, but for what the test says."""
    return {
        "pid": 4711,
        "run": 3,
        "cpu_s": 10.0,
        "rss_anon_bytes": 64 * MIB,
        "connections": 1_001,
        "channels_in_memory": 12,
        "records_in": 1_000,
        "record_bytes_in": 128_000,
        "records_out": 2_000,
        "bytes_out": 256_000,
        "chunks_out": 20,
        "groups": 10,
        "fsyncs": 20,
        "subscriptions": 1_000,
        "subscriptions_lagging": 0,
        "demotions": 0,
        "promotions": 0,
        "slices_read": 0,
        "slices_shared": 0,
        "memory_budget_bytes": 1_024 * MIB,
        "memory_used_bytes": 100 * MIB,
        "queued_bytes": 60 * MIB,
        "publishers_held": 0,
        "publishes_refused_memory": 0,
        "jobs_redelivered": 0,
        "jobs_dead": 0,
        "jobs_expired": 0,
        "commit_p50_us": 850,
        "commit_p99_us": 12_300,
        "loop_lag_p99_us": 0,
        "archive_backlog_bytes": 3 * MIB,
        "archive_blocked": 0,
        **figures,
    }


def reader(**fields: Any) -> Reader:
    """Return a reader that lags, as a server tells of it."""
    told: dict[str, object] = {
        "connection": 7,
        "subscription": 2,
        "peer": "127.0.0.1:5000",
        "name": "phone",
        "filters": ["chat.>"],
        "behind_groups": 40,
        "behind_s": 2.5,
        "since_s": 61.0,
        "queued_bytes": 2_048,
        "credit": 0,
        **fields,
    }
    return Reader.of(told)


def snapshot(at_s: float = 100.0, readers: tuple[Reader, ...] = (), more: bool = False, **figures: object) -> Snapshot:
    return Snapshot(at_s, 1_700_000_000.0 + at_s, 0.0012, stats(**figures), readers, more)


def change(readers: tuple[Reader, ...] = (), more: bool = False, **figures: object) -> Change:
    """Return what happened within two seconds after `stats()`."""
    return compare(snapshot(), snapshot(102.0, readers, more, **figures))
