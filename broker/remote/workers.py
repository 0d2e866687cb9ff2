"""What workers share, however they wait: what a function works off, and that it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.bus import FunctionT
    from broker_native.work import Job

BEATS_A_LEASE: Final = 3
"""The lease of a job that is being done is extended so often before it would end."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a function works off, and how.

    Attributes:
        function: Called with each job.
        queue: The queue's name.
        filters: What the queue reads; none for one that is there already.
        concurrency: Jobs that are done at once, from 1.
        prefetch: Jobs that wait here besides, so that nobody is idle for a round trip.
        queue_settings: More of `Bus.create_queue`.
    """

    function: Callable[[Job], Any]
    queue: str
    filters: tuple[str, ...]
    concurrency: int
    prefetch: int
    queue_settings: Mapping[str, Any]


def worker_of(
    added: list[WorkerSettings],
    filters: tuple[str, ...],
    queue: str | None,
    concurrency: int,
    prefetch: int | None,
    queue_settings: Mapping[str, Any],
    check: Callable[[object], object] | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Return a decorator that adds a function to those that work; see `Bus.worker`.

    Args:
        added: Takes the settings of each function that is decorated.
        filters, queue, concurrency, prefetch, queue_settings: What somebody asks for.
        check: Called with each function; raises if it can be no worker's.

    Raises:
        RequestError: INVALID_CONSUMER; there is nothing to work off, or nobody to do it.
    """
    if concurrency < 1 or (prefetch is not None and prefetch < 0):
        raise error(
            "INVALID_CONSUMER",
            f"worker: got concurrency {concurrency} and prefetch {prefetch}, expected 1 or more and 0 or more",
        )
    if not filters and queue is None:
        raise error(
            "INVALID_CONSUMER",
            "worker: got neither channels nor a queue",
            "Name the channels that it works off, or a queue that is there already.",
        )
    ahead = concurrency if prefetch is None else prefetch

    def add(function: FunctionT) -> FunctionT:
        if check is not None:
            check(function)
        named = queue or str(getattr(function, "__name__", ""))
        added.append(WorkerSettings(function, named, filters, concurrency, ahead, queue_settings))
        return function

    return add
