"""Rooms of 2 to 500 members by Zipf's law: everybody is in a few, and says something to one of them now and then.

A member types first (an indicator on an ephemeral channel, which nobody stores), then says a burst of messages on the
room's stored channel. Everybody in the room receives all of it, the one who spoke as well. When members speak is a
Poisson process of their own, seeded by their number.
"""

from __future__ import annotations

import random

from loadtest.cadence import CHAT, CHAT_THINKING_S, TYPING_BYTES, WEIGHTS, rooms_of
from loadtest.histogram import now_ns
from loadtest.user import BrokerUser


class ChatUser(BrokerUser):
    """A member of rooms."""

    kind = "chat"
    weight = WEIGHTS[kind]

    def live(self) -> None:
        """Listen to all rooms, speak to one after the other."""
        side = self.side
        rooms = [(side.stored(f"chat.{room}"), side.ephemeral(f"typing.{room}")) for room in rooms_of(self.number)]
        channels = {messages: side.plan.payload for messages, _ in rooms}
        self.read(channels | {typing: TYPING_BYTES for _, typing in rooms})
        chance = random.Random(self.number)
        due_ns = now_ns()
        while True:
            due_ns += int(chance.expovariate(side.plan.pace / CHAT.interval_s) * 1e9)
            if not self.wait_until(due_ns):
                return
            self.speak(*chance.choice(rooms), due_ns)

    def speak(self, messages: str, typing: str, due_ns: int) -> None:
        """Type, then speak; the answers are taken at once, as the next window may be far."""
        self.publish(typing, 1, due_ns, TYPING_BYTES, "typing")
        spoken_ns = due_ns + int(CHAT_THINKING_S * 1e9)
        if self.wait_until(spoken_ns):
            self.publish(messages, CHAT.window, spoken_ns, self.side.plan.payload, "messages")
        self.settle()
