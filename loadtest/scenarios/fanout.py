"""Live feeds: in each group of 20 one publishes, fast and without storing it, and the others read every message."""

from __future__ import annotations

from loadtest.cadence import FANOUT, FANOUT_GROUP, WEIGHTS
from loadtest.user import BrokerUser


class FanoutUser(BrokerUser):
    """The publisher or a reader of a feed."""

    kind = "fanout"
    weight = WEIGHTS[kind]

    def live(self) -> None:
        """Publish the feed, or read it."""
        group, place = divmod(self.number, FANOUT_GROUP)
        channel = self.side.ephemeral(f"feed.{group}")
        if place:
            self.read({channel: self.side.plan.payload})
            return
        for due_ns in self.windows(FANOUT.interval_s, phase=group * 0.618 % 1):
            self.publish(channel, FANOUT.window, due_ns, self.side.plan.payload)
