"""A crowd on blocking buses, of greenlets or of threads, and its verdict: every message once, in order, nobody held up.

    python -m tests.blocking.crowd URL --greenlets --messages 40

Half of it publish, half of it read, some on a bus of their own and some on one for all. Each publisher numbers what it
publishes to its channel, singly, as windows and as posts; each reader reads all channels by a pattern. One more of them
sleeps for a millisecond again and again and notes how late it was called: by the clock, and by the processor time that
others took meanwhile, which a machine's neighbours cannot make longer.

It says READY once everybody reads. Ends with a line of JSON; whoever runs it judges.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "--greenlets" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import argparse
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from broker import BackoffPolicy
from broker.blocking import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.blocking import Client, Subscription

QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)
PATIENCE_S = 60.0
WINDOW = 10
ROUND = 2 * WINDOW + 1
"""What one round of a publisher publishes: a window, as many posts, and one that it waits for."""


class Heart:
    """Who notices when nobody else is let run."""

    def __init__(self) -> None:
        self.late_s = 0.0
        self.taken_s = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended:
            began_s, took_s = time.perf_counter(), time.process_time()
            time.sleep(0.001)
            self.late_s = max(self.late_s, time.perf_counter() - began_s)
            self.taken_s = max(self.taken_s, time.process_time() - took_s)


def publish(bus: Client, channel: str, rounds: int, pause_s: float) -> None:
    """Publish 0, 1, 2, … to a channel, in each of the ways."""
    number = 0

    def numbered(count: int) -> list[bytes]:
        nonlocal number
        number += count
        return [b"%d" % one for one in range(number - count, number)]

    for _ in range(rounds):
        bus.post_window([(channel, payload) for payload in numbered(WINDOW)]).wait(PATIENCE_S)
        for payload in numbered(WINDOW):
            bus.post(channel, payload)
        bus.publish(channel, *numbered(1), timeout_s=PATIENCE_S)
        bus.flush(timeout_s=PATIENCE_S)
        time.sleep(pause_s)


def read(subscription: Subscription, expected: int, wrong: list[str]) -> None:
    """Read until everything is there, and say what is wrong with it."""
    following: dict[str, int] = {}
    seen = 0
    while seen < expected:
        batches = subscription.next_batches(PATIENCE_S)
        if not batches:
            wrong.append(f"{expected - seen} of {expected} messages did not come")
            return
        for batch in batches:
            for message in batch:
                due = following.get(message.channel, 0)
                if message.payload != b"%d" % due:
                    wrong.append(f"{message.channel}: got {message.payload!r}, due was {due}")
                    return
                following[message.channel] = due + 1
                seen += 1
    extra = subscription.next(0)
    if extra is not None:
        wrong.append(f"more than {expected} messages, {extra}")


def guarded(wrong: list[str], function: Callable[..., None], *args: Any) -> threading.Thread:
    """Run a function as one of the crowd."""

    def run() -> None:
        try:
            function(*args)
        except BaseException as failure:
            wrong.append(f"{function.__name__}: {failure!r}")

    return threading.Thread(target=run)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--greenlets", action="store_true", help="under gevent, with everything replaced")
    parser.add_argument("--size", type=int, default=100, help="how many, half of them readers")
    parser.add_argument("--rounds", type=int, default=3, help="of each publisher")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between rounds")
    parser.add_argument("--plant", action="store_true", help="hold everybody up, as a call does that was not replaced")
    asked = parser.parse_args()
    half = asked.size // 2
    wrong: list[str] = []
    expected = half * asked.rounds * ROUND
    common = connect(asked.url, backoff=QUICK, timeout_s=PATIENCE_S)
    own = [connect(asked.url, backoff=QUICK, timeout_s=PATIENCE_S) for _ in range(half // 2)]
    buses = [*own, *[common] * (half - len(own))]
    subscriptions = [bus.subscribe("s.crowd.*") for bus in buses]
    crowd = [guarded(wrong, read, subscription, expected, wrong) for subscription in subscriptions]
    crowd += [
        guarded(wrong, publish, bus, f"s.crowd.{number}", asked.rounds, asked.pause)
        for number, bus in enumerate(reversed(buses))
    ]
    if asked.plant:
        crowd.append(guarded(wrong, hold_up))
    print("READY", flush=True)
    with Heart() as heart:
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
    resumed = sum(event.name == "resumed" for one in subscriptions for event in one.events)
    others = {event.name for one in subscriptions for event in one.events} - {"resumed", "lagging", "live"}
    for bus in {*own, common}:
        bus.close()
    verdict = {
        "wrong": wrong[:5],
        "expected": expected,
        "resumed": resumed,
        "others": sorted(others),
        "late_s": heart.late_s,
        "taken_s": heart.taken_s,
        "threads": [thread.name for thread in threading.enumerate() if thread.name.startswith("broker")],
    }
    print(json.dumps(verdict))


def hold_up() -> None:
    """Sleep as nobody may who shares a hub."""
    from gevent.monkey import get_original

    get_original("time", "sleep")(3.0)


if __name__ == "__main__":
    main()
