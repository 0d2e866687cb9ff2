"""The honest pair: `python -m tests.hostile.honest HOST PORT RATE`, told what to do through its standard input.

A line `window` on it is answered by a line of JSON, a `Window`, as soon as all that was sent before has come.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time

from tests.hostile import attackers
from tests.hostile.attackers import DELIVER, ERROR, PING, PUBLISHED, SUBSCRIBED

NAMES = ("ephemeral.honest", "stored.honest")
CREDIT_BYTES = 1 << 24
STAMP = struct.Struct("<QQ")
OVERDUE_S = 30.0


class Pair:
    """A publisher's and a subscriber's connection, and what they have seen."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.publisher, self.subscriber = attackers.Peer(address), attackers.Peer(address)
        self.subscriber.open()
        for number, name in enumerate(NAMES, 1):
            self.subscriber.send(attackers.subscribe(number, name, credit=CREDIT_BYTES))
            self.subscriber.until(SUBSCRIBED)
        self.publisher.open()
        for slot, name in enumerate(NAMES):
            self.publisher.send(attackers.channel(slot, name.encode()))
        self.number = 1
        self.sent, self.delivered = [0, 0], [0, 0]
        self.begun = [0, 0]
        self.taken = [0, 0]
        self.latencies_us: tuple[list[float], list[float]] = ([], [])
        self.wrong: list[str] = []

    def publish(self) -> None:
        """Send one message, to each of the channels in turn."""
        slot = self.number % 2
        stamp = STAMP.pack(self.sent[slot], time.perf_counter_ns())
        if not self.publisher.send(attackers.publish(slot, self.number, attackers.record(stamp))):
            self.wrong.append("the publisher was cut off")
        self.number += 1
        self.sent[slot] += 1

    def take(self, wait_s: float, others: list[int]) -> bool:
        """Take in what comes within a time; answers whether one of the other descriptors has something."""
        peers = {peer.socket.fileno(): peer for peer in (self.publisher, self.subscriber)}
        ready = select.select([*peers, *others], [], [], max(0.0, wait_s))[0]
        for descriptor, peer in peers.items():
            if descriptor in ready:
                self._hear(peer)
        return any(other in ready for other in others)

    def _hear(self, peer: attackers.Peer) -> None:
        answer = peer.answer()
        while True:
            if answer is None:
                raise SystemExit(f"an honest connection was ended: {peer.errors}")
            if answer.kind == ERROR:
                self.wrong.append(f"refused: {peer.errors[-1]}")
            elif answer.kind == PING:
                peer.send(attackers.frame(attackers.PONG, answer.body))
            elif answer.kind == DELIVER:
                self._deliver(answer)
            elif answer.kind != PUBLISHED:
                self.wrong.append(f"a frame of kind {answer.kind}")
            answer = peer._whole()
            if answer is None:
                return

    def _deliver(self, answer: attackers.Answer) -> None:
        now_ns = time.perf_counter_ns()
        subscription = int.from_bytes(answer.body[:4], "little")
        slot = subscription - 1
        for payload in attackers.records_of(answer.body, answer.flags)[2]:
            place, sent_ns = STAMP.unpack(payload)
            if place != self.delivered[slot]:
                self.wrong.append(f"{NAMES[slot]}: got message {place}, expected {self.delivered[slot]}")
                self.delivered[slot] = place
            self.delivered[slot] += 1
            self.latencies_us[slot].append((now_ns - sent_ns) / 1e3)
        self.taken[slot] += len(answer.body)
        if self.taken[slot] > CREDIT_BYTES // 4:
            self.subscriber.send(attackers.credit(subscription, self.taken[slot]))
            self.taken[slot] = 0

    def window(self) -> dict[str, object]:
        """Wait for what is under way, and return what was seen since the last window."""
        end = time.monotonic() + OVERDUE_S
        while self.delivered != self.sent and time.monotonic() < end:
            self.take(0.05, [])
        if self.delivered != self.sent:
            self.wrong.append(f"lost: sent {self.sent}, delivered {self.delivered}")
        quick, stored = (sorted(latencies) or [0.0] for latencies in self.latencies_us)
        seen = {
            "sent": sum(self.sent) - sum(self.begun),
            "delivered": len(self.latencies_us[0]) + len(self.latencies_us[1]),
            "wrong": self.wrong[:20],
            "p50_us": quick[len(quick) // 2],
            "p99_us": quick[len(quick) * 99 // 100],
            "max_us": quick[-1],
            "stored_p50_us": stored[len(stored) // 2],
            "stored_p99_us": stored[len(stored) * 99 // 100],
        }
        self.begun = list(self.sent)
        self.latencies_us = ([], [])
        self.wrong = []
        return seen


def main(host: str, port: str, rate: str) -> None:
    """Publish at the rate until standard input ends."""
    pair = Pair((host, int(port)))
    step_s = 1.0 / int(rate)
    print("ready", flush=True)
    due_s = time.monotonic()
    while True:
        if pair.take(due_s - time.monotonic(), [0]):
            line = os.read(0, 4096)
            if not line:
                return
            print(json.dumps(pair.window()), flush=True)
            due_s = time.monotonic()
        if time.monotonic() >= due_s:
            pair.publish()
            due_s = max(due_s + step_s, time.monotonic() - 0.1)  # what was missed for long is not made up for


if __name__ == "__main__":
    main(*sys.argv[1:])
