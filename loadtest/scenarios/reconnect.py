"""A storm: every five seconds all readers drop their connections at once, come back, and go on where they were.

In each group of 10 one publishes all the while, so there is something to have missed. What a reader had received and
not yet looked at goes with its connection and has to come again. Locust's `resume` is the time from the moment of the
storm until a reader is subscribed again.
"""

from __future__ import annotations

from loadtest.cadence import RECONNECT, RECONNECT_GROUP, RECONNECT_STORM_S, WEIGHTS
from loadtest.user import BrokerUser


class ReconnectUser(BrokerUser):
    """The publisher of a group, or a reader in the storm."""

    kind = "reconnect"
    weight = WEIGHTS[kind]

    def live(self) -> None:
        """Publish; or read, and come back again and again."""
        group, place = divmod(self.number, RECONNECT_GROUP)
        channel = self.side.stored(f"storm.{group}")
        payload = self.side.plan.payload
        if not place:
            for due_ns in self.windows(RECONNECT.interval_s, phase=group * 0.618 % 1):
                self.publish(channel, RECONNECT.window, due_ns, payload)
            return
        self.read({channel: payload})
        # No phase: the schedule is of whole intervals since 1970, so it is the same moment for all.
        for due_ns in self.windows(RECONNECT_STORM_S):
            self.reconnect()
            self.fire("resume", due_ns, 0)
