"""Spans of batches: whose trace they belong to, what they say, and that nothing grows without a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from broker.config.sections import TracingConfig
from broker.edge import spans as spans_module
from broker.edge.spans import Spans, find_exporter
from broker.model.errors import BrokerError
from broker.model.limits import Limits
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import TIME_US, Stage
from tests.reference.frames import Record, build_frame, build_record, publish_body

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"
OTHER = f"00-{TRACE + 1:032x}-{SPAN + 1:016x}-01"
UNSAMPLED = f"00-{TRACE:032x}-{SPAN:016x}-00"


class Traced:
    """A broker with one publisher and tracing.

    Args:
        settings: What is traced.
    """

    def __init__(self, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = Spans(TracingConfig(exporter="memory", **settings), self.exporter)
        self.stage = Stage(limits=Limits())
        self.spans.begin(self.stage.node.tails.name_of)
        self.stage.node.on_delivered = self.spans.delivered
        self.stage.connect("a")
        self.stage.feed("a", control.encode_hello("a", bytes(16)) + build_frame(Kind.CHANNEL, bytes(4) + b"s.x"))
        self.stage.settle()
        self.number = 1

    def publish(self, *headers: dict[str, Any] | None) -> None:
        records = [
            build_record(Record(b"x", headers=None if each is None else msgpack.packb(each))) for each in headers
        ]
        self.stage.feed("a", build_frame(Kind.PUBLISH, publish_body(0, self.number, records)))
        self.number += len(records)
        self.stage.settle()

    def finished(self) -> list[ReadableSpan]:
        self.spans.close()
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def traced() -> Traced:
    return Traced()


def test_a_batch_stands_in_the_trace_of_its_message(traced: Traced) -> None:
    traced.publish({"traceparent": PARENT, "tracestate": "v=1"}, None)
    (span,) = traced.finished()
    assert span.name == "commit s.x"
    assert span.kind is SpanKind.INTERNAL
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (TRACE, SPAN)
    attributes = dict(span.attributes or {})
    assert attributes["messaging.system"] == "broker"
    assert attributes["messaging.operation.name"] == "commit"
    assert attributes["messaging.destination.name"] == "s.x"
    assert attributes["messaging.batch.message_count"] == 2
    assert attributes["broker.sequence.first"] == 1
    assert [event.name for event in span.events] == ["to disk", "committed"]
    assert (span.start_time, span.end_time) == (TIME_US * 1_000, TIME_US * 1_000)
    assert span.resource.attributes["service.name"] == "broker"


def test_other_traces_of_a_batch_are_links(traced: Traced) -> None:
    traced.publish({"traceparent": PARENT}, {"traceparent": OTHER.encode()}, {"traceparent": PARENT})
    (span,) = traced.finished()
    assert [link.context.trace_id for link in span.links] == [TRACE + 1]


@pytest.mark.parametrize(
    "headers", [None, {"other": "x"}, {"traceparent": UNSAMPLED}, {"traceparent": "00-zz"}, {"traceparent": 7}]
)
def test_what_belongs_to_no_trace_is_not_traced(traced: Traced, headers: dict[str, Any] | None) -> None:
    traced.publish(headers)
    assert traced.finished() == []


def test_a_share_of_the_others_is() -> None:
    traced = Traced(sample_ratio=1.0)
    traced.publish(None)
    (span,) = traced.finished()
    assert span.parent is None


def test_no_more_than_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.edge.spans.time.monotonic", lambda: 1_000.0)
    traced = Traced(sample_ratio=1.0, spans_per_s_max=2)
    for _ in range(5):
        traced.publish(None)
    assert len(traced.finished()) == 2
    assert (traced.spans.made, traced.spans.left_out) == (2, 3)


def test_groups_that_wait_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_module, "QUEUED_BYTES_MAX", 1)
    traced = Traced(sample_ratio=1.0)
    traced.publish(None)
    assert traced.finished() == []
    assert traced.spans.left_out == 1


def test_an_exporter_that_is_not_there_is_named() -> None:
    with pytest.raises(BrokerError, match=r"installed are: .*console") as caught:
        find_exporter("otlp_nowhere")
    assert caught.value.hint == "pip install opentelemetry-exporter-otlp-nowhere"
    assert find_exporter("console") is not None
