"""The stamps and the ledger: against their twin, and each fault that they must not miss."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.histogram import Histogram
from broker_native.ledger import Verifier, payload_of
from tests.reference import driver as twin


@pytest.mark.parametrize("publisher", [0, 1, 65535])
@pytest.mark.parametrize("counter", [0, 1, 2**32, 2**48 - 1])
@pytest.mark.parametrize(("time_ns", "channel"), [(0, 0), (2**64 - 1, 2**32 - 1), (1_700_000_000_000_000_000, 999)])
@pytest.mark.parametrize("payload_bytes", [24, 25, 128])
def test_payloads_are_those_of_the_twin(
    publisher: int, counter: int, time_ns: int, channel: int, payload_bytes: int
) -> None:
    made = payload_of(publisher, counter, time_ns, channel, payload_bytes)
    assert made == twin.payload_of(publisher, counter, time_ns, channel, payload_bytes)


@given(st.lists(st.integers(0, 12), max_size=40))
@settings(max_examples=300, deadline=None)
def test_ledger_counts_as_its_twin(counters: list[int]) -> None:
    """Any order of any counters, some missing and some twice, is counted in the same way."""
    verifier, expected = Verifier(payload_bytes=32), twin.Ledger()
    payloads = verifier.payloads(13)
    for counter in counters:
        verifier.check(payloads[counter])
        expected.take(counter)
    assert verifier.duplicated == expected.duplicated
    assert verifier.reordered == expected.reordered
    assert verifier.lost == expected.lost(13)
    assert verifier.taken == len(counters)
    assert verifier.corrupt == 0


def test_flows_of_a_verifier_are_apart() -> None:
    verifier = Verifier(publishers=2, channels=3, payload_bytes=24)
    payloads = [
        payload
        for publisher in range(2)
        for channel in range(3)
        for payload in verifier.payloads(2, publisher=publisher, channel=channel)
    ]
    latency = Histogram()
    verifier.check_all(reversed(payloads), latency)
    assert (verifier.lost, verifier.reordered, verifier.duplicated, latency.count) == (0, 6, 0, 12)
    verifier.expect(3, publisher=1, channel=2)
    assert verifier.lost == 3


@pytest.mark.parametrize("payload", [b"", b"x" * 23, bytes(24), bytes(25)])
def test_a_foreign_payload_is_corrupt(payload: bytes) -> None:
    verifier = Verifier(payload_bytes=24)
    verifier.check(memoryview(payload))
    assert (verifier.corrupt, verifier.taken) == (1, 1)


def test_more_gaps_than_there_was_room_for() -> None:
    """Every other counter of two flows is missing, and comes later from the last to the first."""
    verifier, expected = Verifier(publishers=2, payload_bytes=32), twin.Ledger()
    payloads = [verifier.payloads(101, publisher=publisher) for publisher in range(2)]
    order = [*range(0, 101, 2), *range(99, 0, -2), 7]
    for counter in order:
        expected.take(counter)
        for publisher in range(2):
            verifier.check(payloads[publisher][counter])
        assert verifier.lost == 2 * expected.lost(101)
    assert (verifier.duplicated, verifier.reordered) == (2 * expected.duplicated, 2 * expected.reordered) == (2, 100)


def test_a_verifier_measures_when_it_is_asked_to() -> None:
    verifier, latency = Verifier(payload_bytes=32), Histogram()
    (payload,) = verifier.payloads(1)
    verifier.check(payload[:23], latency)
    verifier.check(payload, latency)
    verifier.check(payload_of(0, 1, 2**63, 0, 32), latency)
    assert (latency.count, latency.min) == (2, 0)
    assert (verifier.corrupt, verifier.taken) == (1, 3)


@pytest.mark.parametrize(("channel", "publisher"), [(1, 0), (0, 1), (2**32 - 1, 0), (0, 65535)])
def test_a_payload_of_a_flow_that_is_not_is_corrupt(channel: int, publisher: int) -> None:
    verifier = Verifier(payload_bytes=24)
    verifier.check(payload_of(publisher, 0, 1, channel, 24))
    assert (verifier.corrupt, verifier.taken) == (1, 1)


def test_flows_out_of_range_are_refused() -> None:
    verifier = Verifier(payload_bytes=24)
    with pytest.raises(ValueError, match="publisher 1"):
        verifier.payloads(1, publisher=1)
    with pytest.raises(ValueError, match="channel 1"):
        verifier.expect(1, channel=1)
    for options in ({"payload_bytes": 23}, {"publishers": 0}, {"publishers": 65537}, {"channels": 0}):
        with pytest.raises(ValueError, match="payload"):
            Verifier(**{"payload_bytes": 24, **options})
    with pytest.raises(ValueError, match="payload"):
        payload_of(0, 0, 0, 0, 23)
