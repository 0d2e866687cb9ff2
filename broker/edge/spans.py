"""Spans for OpenTelemetry: what became of each batch of messages, when tracing is switched on.

One span for a chunk, the run of one channel's records in one commit: from when it was taken until it was handed to its
readers, with the commit's steps as events. Whoever has put a `traceparent` into the headers of its messages (W3C Trace
Context) finds the span in its own trace; of a chunk with several the first is the parent and the others are links. Of
chunks without one a share is traced by itself. The broker changes no header.

The attributes are those of the messaging conventions, which are not stable yet: their names stand here and nowhere
else. Groups are looked at on a thread of their own behind a queue with a bound, and so many spans a second are made at
most; what is more is left out and counted. Exporting is the SDK's, on its own thread.
"""

from __future__ import annotations

import threading
import time
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker._version import __version__
from broker.events import emit
from broker.model.errors import error
from broker.model.settings import MIB, invalid
from broker_native.groups import chunk_heads, chunks_start
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link

    from broker.config.sections import TracingConfig
    from broker.core.group import Group
    from broker.node.passages import Passage
    from broker_native.messages import Batch, Message

__all__ = ["Spans", "find_exporter"]

QUEUED_BYTES_MAX: Final = 16 * MIB
LINKS_MAX: Final = 32
RECORDS_MAX: Final = 256
"""Records of a chunk that are looked at for their headers."""
CHUNKS_MAX: Final = 256
"""Chunks of a group."""
CLOSE_S: Final = 3.0
TRACEPARENT: Final = b"traceparent"
EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The group of entry points by which OpenTelemetry's exporters are found."""

SYSTEM, OPERATION = "messaging.system", "messaging.operation.name"
CHANNEL, COUNT = "messaging.destination.name", "messaging.batch.message_count"
GROUP, EPOCH, FIRST = "broker.group", "broker.epoch", "broker.sequence.first"


class Job(NamedTuple):
    """A group that was delivered."""

    number: int
    value: bytes
    passage: Passage


def find_exporter(name: str) -> SpanExporter:
    """Make the exporter that is installed under a name, `console` or `otlp_proto_http` for instance.

    Raises:
        ConfigError: INVALID_CONFIG; OpenTelemetry or that exporter is not installed, or it cannot be made.
    """
    from importlib.metadata import entry_points

    try:
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        raise invalid("tracing.exporter", "needs opentelemetry-sdk", "pip install broker-bus[otel]") from None
    found = entry_points(group=EXPORTERS)
    known = ", ".join(sorted({each.name for each in found}))
    for each in found:
        if each.name == name:
            try:
                exporter: SpanExporter = each.load()()
            except Exception as failure:  # whatever a package of somebody else raises
                raise invalid("tracing.exporter", f"{name} cannot be made: {failure}") from failure
            return exporter
    hint = f"pip install opentelemetry-exporter-{name.replace('_', '-')}"
    raise invalid("tracing.exporter", f"got {name[:64]!a}, installed are: {known or 'none'}", hint)


class Spans:
    """Makes spans of committed groups.

    Args:
        settings: What is traced.
        exporter: Where spans go.

    Attributes:
        made, left_out: How many spans were made, and how many groups and spans there was no time for.
    """

    def __init__(self, settings: TracingConfig, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "broker"}))
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), resource=resource, shutdown_on_exit=False
        )
        self._processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("broker", __version__)
        self._kind = SpanKind.INTERNAL
        self._propagator = TraceContextTextMapPropagator()
        self._ratio = settings.sample_ratio
        self._per_s_max = settings.spans_per_s_max
        self._name_of: Callable[[int], bytes | None] = lambda channel: None
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._second = 0
        self._second_made = 0
        self.made = 0
        self.left_out = 0
        self._thread = threading.Thread(target=self._run, name="broker-spans", daemon=True)

    def begin(self, name_of: Callable[[int], bytes | None]) -> None:
        """Take groups from now on.

        Args:
            name_of: Answers the name of a channel in memory by its id; from any thread.
        """
        self._name_of = name_of
        self._thread.start()

    def delivered(self, group: Group, passage: Passage) -> None:
        """A group is on its way to its readers; on the loop."""
        if not self._ratio and TRACEPARENT not in group.value:
            return
        size = len(group.value)
        with self._lock:
            if self._queued_bytes + size > QUEUED_BYTES_MAX:
                self.left_out += 1
                return
            self._queued_bytes += size
        self._queue.put(Job(group.number, group.value, passage))

    def close(self) -> None:
        """Export what there is, for a few seconds at most; blocks."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        self._processor.force_flush(int(CLOSE_S * 1_000))
        # The exporter of a collector that is away would wait for it.
        threading.Thread(target=self._provider.shutdown, name="broker-spans-end", daemon=True).start()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._trace(job)
            except Exception as failure:  # of a package of somebody else; messages do not depend on it
                emit("tracing_failed", failure=failure)
            with self._lock:
                self._queued_bytes -= len(job.value)

    def _trace(self, job: Job) -> None:
        heads = chunk_heads(job.value, chunks_start(job.value))
        chunks = [(channel, at, size) for channel, found in heads.items() for _, _, _, at, size in found]
        for channel, at, size in chunks[:CHUNKS_MAX]:
            name = self._name_of(channel)
            if name is None or name.startswith(b"$"):
                continue
            chunk = job.value[at : at + size]
            if (self._ratio or TRACEPARENT in chunk) and self._may():
                self._trace_chunk(job, name.decode(), chunk)

    def _may(self) -> bool:
        """Whether one more span may be made in this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._second_made = second, 0
        if self._second_made >= self._per_s_max:
            self.left_out += 1
            return False
        self._second_made += 1
        return True

    def _trace_chunk(self, job: Job, channel: str, chunk: bytes) -> None:
        (batch,) = FrameReader(error, 0).chunks(chunk, channel)
        contexts = list(self._contexts(batch)) if TRACEPARENT in chunk else []
        span = self._tracer.start_span(
            f"commit {channel}",
            context=contexts[0] if contexts else None,
            kind=self._kind,
            attributes={
                SYSTEM: "broker",
                OPERATION: "commit",
                CHANNEL: channel,
                COUNT: batch.last - batch.first + 1,
                GROUP: job.number,
                # Attributes are signed, and an epoch's run is in its upper half.
                EPOCH: str(batch.epoch),
                FIRST: batch.first,
            },
            links=list(_links(contexts[1:])),
            start_time=batch.time_us * 1_000,
        )
        passage = job.passage
        span.add_event("to disk", timestamp=passage.closed_us * 1_000)
        span.add_event("committed", timestamp=passage.committed_us * 1_000)
        span.end(passage.delivered_us * 1_000)
        self.made += 1

    def _contexts(self, batch: Batch) -> Iterable[Context]:
        """Return where the records of a chunk belong, as far as their headers say so; each trace once."""
        from opentelemetry.trace import get_current_span

        seen: set[tuple[int, int]] = set()
        for message in islice(batch, RECORDS_MAX):
            carrier = carrier_of(message)
            if not carrier:
                continue
            context = self._propagator.extract(carrier)
            found = get_current_span(context).get_span_context()
            if found.is_valid and (found.trace_id, found.span_id) not in seen:
                seen.add((found.trace_id, found.span_id))
                yield context
            if len(seen) > LINKS_MAX:
                return


def carrier_of(message: Message) -> dict[str, str]:
    """Return the headers of Trace Context that a message has, as texts."""
    carrier: dict[str, str] = {}
    for name, value in message.headers.items():
        if name in ("traceparent", "tracestate") and isinstance(value, (str, bytes)):
            carrier[name] = value if isinstance(value, str) else value.decode("latin-1")
    return carrier if "traceparent" in carrier else {}


def _links(contexts: Iterable[Any]) -> Iterable[Link]:
    from opentelemetry.trace import Link, get_current_span

    for context in contexts:
        yield Link(get_current_span(context).get_span_context())
