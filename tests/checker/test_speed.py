"""The checker keeps up with a long fault run: a million operations with two readers in half a minute of one core."""

from __future__ import annotations

import time

import pytest

from tests.checker.check import check
from tests.checker.history import SYNCED, Acked, Crashed, Delivered, Event, Finished, History, Invoked, Run, Subscribed

OPERATIONS = 1_000_000
BATCH = 10
CHANNELS = [f"channel{n}" for n in range(50)]
SECONDS_MAX = 30.0


@pytest.mark.slow
def test_million_operations(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = [Subscribed(0.0, consumer, name, True) for consumer in "xy" for name in CHANNELS]
    heads = dict.fromkeys(CHANNELS, 0)
    log: dict[str, list[Run]] = {name: [] for name in CHANNELS}
    for turn in range(OPERATIONS // BATCH):
        name = CHANNELS[turn * 7 % len(CHANNELS)]
        values = list(range(turn * BATCH, (turn + 1) * BATCH))
        first, epoch = heads[name] + 1, 1 + turn // 10_000
        heads[name] += BATCH
        log[name].append(Run(epoch, first, values))
        events.append(Invoked(0.0, "p", turn * BATCH, name, values))
        events.append(Acked(0.0, "p", turn * BATCH, BATCH, epoch, first, SYNCED))
        events += [Delivered(0.0, consumer, name, epoch, first, values) for consumer in "xy"]
        if turn % 1_000 == 0:
            events.append(Crashed(0.0))
    events += [Finished(0.0, consumer, name) for consumer in "xy" for name in CHANNELS]

    started = time.process_time()
    verdict = check(History(events=events, log=log))
    cpu_s = time.process_time() - started
    with capsys.disabled():
        print(f"\n{OPERATIONS:,} operations judged in {cpu_s:.1f} s of one core: {verdict}")
    assert verdict.passed, str(verdict)
    assert verdict.acknowledged == OPERATIONS
    assert verdict.delivered == 2 * OPERATIONS
    assert cpu_s < SECONDS_MAX
