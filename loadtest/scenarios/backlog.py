"""Late readers: they come when much has been published, read that from the log, stay a while, leave, and come again.

In each group of 10 one publishes. What was published before a reader came is checked like all else, and is in no
latency: it would be the reader's own lateness. Locust's `catch up` is the time until a reader has all that was there
when it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from broker.model.positions import Position
from loadtest.cadence import (
    BACKLOG,
    BACKLOG_AWAY_S,
    BACKLOG_GROUP,
    BACKLOG_LIVE_S,
    BACKLOG_MESSAGES,
    WEIGHTS,
)
from loadtest.histogram import now_ns
from loadtest.user import BrokerUser

if TYPE_CHECKING:
    from broker.bus import Start

LOOK_S = 0.01


class BacklogUser(BrokerUser):
    """The publisher of a group, or a late reader."""

    kind = "backlog"
    weight = WEIGHTS[kind]

    def live(self) -> None:
        """Publish; or come late again and again."""
        group, place = divmod(self.number, BACKLOG_GROUP)
        channel = self.side.stored(f"backlog.{group}")
        if not place:
            for due_ns in self.windows(BACKLOG.interval_s, phase=group * 0.618 % 1):
                self.publish(channel, BACKLOG.window, due_ns, self.side.plan.payload)
            return
        away_ns, live_ns = int(BACKLOG_AWAY_S * 1e9), int(BACKLOG_LIVE_S * 1e9)
        # Not all at once: that is what `reconnect` is for.
        due_ns = now_ns() + int(self.number * 0.618 % 1 * (away_ns + live_ns))
        while self.wait_until(due_ns):
            self.come_late(channel, due_ns, due_ns + live_ns)
            due_ns += live_ns + away_ns

    def come_late(self, channel: str, due_ns: int, until_ns: int) -> None:
        """Read what is there and what comes, until a time; when the test is closing, until its end."""
        info = self.client.channel(channel)
        behind = info.head - max(0, info.head - BACKLOG_MESSAGES, info.first - 1)
        start: Start = Position(info.epoch, info.head - behind) if info.epoch and info.head > behind else "start"
        reader = self.read({channel: self.side.plan.payload}, start=start, since_ns=due_ns)
        while reader.readings[channel].sequence < info.head and not self.side.closing:
            gevent.sleep(LOOK_S)
        self.fire("catch up", due_ns, behind * self.side.plan.payload)
        if self.wait_until(until_ns):
            self.leave(reader)
