"""One whom everybody follows, and who is written to by everybody: a channel with many readers, and one with many
publishers, both stored."""

from __future__ import annotations

from loadtest.cadence import CELEBRITY, CELEBRITY_GROUP, CELEBRITY_MENTIONS, WEIGHTS
from loadtest.user import BrokerUser


class CelebrityUser(BrokerUser):
    """The celebrity of a group of 500, or a follower."""

    kind = "celebrity"
    weight = WEIGHTS[kind]

    def live(self) -> None:
        """Post to all and read what they write; or read the posts and write."""
        group, place = divmod(self.number, CELEBRITY_GROUP)
        posts, mentions = self.side.stored(f"posts.{group}"), self.side.stored(f"mentions.{group}")
        payload = self.side.plan.payload
        reads, writes, cadence = (posts, mentions, CELEBRITY_MENTIONS) if place else (mentions, posts, CELEBRITY)
        self.read({reads: payload})
        for due_ns in self.windows(cadence.interval_s, phase=self.number * 0.618 % 1):
            self.publish(writes, cadence.window, due_ns, payload)
