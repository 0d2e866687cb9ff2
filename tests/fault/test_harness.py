"""The harness by itself: what it writes down is what happened, and damage is not taken for a value."""

from __future__ import annotations

import asyncio
import time

from broker.model.errors import error
from tests.checker.history import Acked, History, Invoked, Refused, Stalled, Unknown
from tests.fault.harness import BEAT_S, STALL_NOTED_S, Recorder, note_stalls, payload_of, value_of


def test_values_survive_their_payloads() -> None:
    assert [value_of(payload_of(value)) for value in range(3_000)] == list(range(3_000))
    assert len({len(payload_of(value)) for value in range(3_000)}) > 500


def test_damaged_payload_is_a_value_from_nowhere() -> None:
    payload = payload_of(77)
    assert len(payload) > 9
    damaged = [payload[:-1], payload + b"?", payload[:-1] + b"?", b"", payload[:7], payload[1:]]
    assert all(value_of(each) < 0 for each in damaged)
    assert value_of(payload_of(78)[:8] + payload[8:]) < 0


def test_outcomes_are_told_apart() -> None:
    recorder = Recorder(History())
    number, values = recorder.invoke("p", "a", 3)
    assert (number, values) == (1, [0, 1, 2])
    assert recorder.invoke("p", "b", 1) == (4, [3])
    recorder.answer("p", 4, 1, error("DENIED", "no"))
    recorder.answer("p", 1, 3, error("DENIED", "one of them"))
    recorder.answer("p", 4, 1, error("COMMIT_UNKNOWN", "who knows"))
    recorder.answer("p", 1, 0, [])
    kinds = [type(event) for event in recorder.history.events]
    assert kinds == [Invoked, Invoked, Refused, Unknown, Unknown]
    assert Acked not in kinds


def hold_up(seconds: float) -> tuple[float, float]:
    """Keep the loop from everything else; returns since when, and for how long."""
    begun_s = time.monotonic()
    time.sleep(seconds)
    return begun_s, time.monotonic() - begun_s


async def test_a_loop_that_is_held_up_says_so() -> None:
    recorder = Recorder(History())
    noting = asyncio.create_task(note_stalls(recorder))
    await asyncio.sleep(2 * BEAT_S)
    begun_s, held_s = hold_up(3 * STALL_NOTED_S)
    await asyncio.sleep(2 * BEAT_S)
    noting.cancel()
    stalls = [event for event in recorder.history.events if isinstance(event, Stalled)]
    longest = max(stalls, key=lambda stall: stall.seconds)
    assert longest.seconds >= held_s
    assert longest.at_s - longest.seconds <= begun_s
