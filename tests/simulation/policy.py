"""What kind of world a seed draws: how its network, its disk and its processes behave, and what befalls them.

A life in which everything goes wrong all the time finds less than one in which few things do: each seed takes a
handful of troubles, some of them often, and leaves the others out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles

if TYPE_CHECKING:
    from random import Random

LEVELS = {"a.x": 2, "a.y": 2, "s.x": 3, "s.y": 3}
"""The stored channels, each with its level."""
EPHEMERAL = "e.x"
WITH_IDS, LATER, ASKED = "n.ids", "n.later", "q.asked"
"""Channels of errands."""
LEVELS_BY_PATTERN = {
    b"e.>": Level.EPHEMERAL, b"a.>": Level.ACCEPTED, b"s.>": Level.SYNCED, b"n.>": Level.SYNCED, b"q.>": Level.EPHEMERAL
}  # fmt: skip
"""Those of the errands last."""
PAYLOAD_BYTES_MAX = 32 * 1024

TROUBLES = (
    "crash", "power", "restart", "reset", "late", "eof", "silent", "part", "stall", "stall_client", "full", "slow",
    "failing", "dying", "wall",
)  # fmt: skip
"""What can befall a life, as `Life` does it."""
DELAYS_US = {"stall": 150_000, "stall_client": 200_000, "part": 400_000}
"""How long these last at most."""
SILENCES = {"power", "dying", "late", "silent", "part", "stall", "stall_client"}
"""Those after which a peer may be silent although it lives, or the other way round."""


@dataclass
class Policy:
    """The habits of one world; times in microseconds.

    Attributes:
        latency_us: of the network, at most; spike_share of what is sent takes up to spike_us more.
        window_bytes: what a connection has on the wire and unread by the peer.
        cut_share: of reads get a part only; dribble_share one byte.
        sync_us: of a commit, at most.
        tell_us, read_us: until the loop hears of a commit, until a slice is read, at most.
        fail_share: of commits fail.
        troubles: what happens, with repetitions, in no order.
        profiles: of channels; those who fall behind are ended in some worlds.
        bounds: (module, name, value) of what the product bounds.
    """

    latency_us: int
    spike_share: float
    spike_us: int
    window_bytes: int
    cut_share: float
    dribble_share: float
    sync_us: int
    tell_us: int
    read_us: int
    fail_share: float
    active_us: int
    publishers: int
    operations: int
    large_share: float
    credit_bytes: int
    troubles: list[str]
    limits: Limits
    profiles: Profiles
    bounds: list[tuple[str, str, object]] = field(default_factory=list)

    @property
    def is_calm(self) -> bool:
        """Whether nothing but good restarts befalls it."""
        return not set(self.troubles) - {"restart"} and not self.fail_share and not self.spike_share

    @property
    def accepted_window_us(self) -> int:
        """How far apart answers may be read that a crash takes together.

        The server looks every 10 ms whether its oldest uncommitted record is over 50 ms old; to that comes what it
        stands still itself, and what answers take to be read.
        """
        late_us = self.latency_us + (self.spike_us if self.spike_share else 0)
        return 62_000 + late_us + sum(us for trouble, us in DELAYS_US.items() if trouble in self.troubles)

    @property
    def has_silences(self) -> bool:
        """Whether somebody may be silent for long."""
        return bool(SILENCES & set(self.troubles))


def draw_policy(random: Random) -> Policy:
    """Draw a world."""
    kinds = random.sample(TROUBLES, random.choice([0, 1, 2, 2, 3, 4]))
    if random.random() < 0.1:
        kinds = ["failing", "dying", random.choice(["crash", "power", "restart", "reset"])]
    if random.random() < 0.1:
        kinds = ["slow", random.choice(["reset", "late", "eof"])]
    if random.random() < 0.03:
        kinds = ["restart"]
    pick = random.choice
    window_bytes = pick([1_500, 6_000, 64_000, 1 << 20])
    return Policy(
        latency_us=pick([50, 300, 300, 3_000]),
        spike_share=pick([0, 0, 0.02]),
        spike_us=pick([5_000, 200_000]),
        window_bytes=window_bytes,
        cut_share=pick([0, 0.1, 0.5]),
        dribble_share=pick([0, 0, 0.05]),
        sync_us=pick([150, 600, 5_000]),
        tell_us=pick([20, 500]),
        read_us=pick([50, 3_000]),
        fail_share=pick([0, 0, 0.01, 0.08]),
        active_us=pick([150_000, 400_000, 1_000_000]),
        publishers=pick([1, 2, 2, 3]),
        operations=pick([10, 16, 24]),
        large_share=pick([0, 0.03, 0.03 if window_bytes < 4_000 else 0.2]),
        credit_bytes=pick([1_000, 8_000, 8_000, 256_000]),
        troubles=[pick(kinds) for _ in range(random.randint(len(kinds), 6))] if kinds else [],
        limits=with_group_bytes(
            pick([1_500, 64 * 1024]),
            payload_bytes_max=PAYLOAD_BYTES_MAX,
            headers_bytes_max=1_024,
            hello_timeout_s=0.5,
            ping_interval_s=0.5,
            ping_timeout_s=1.5,
            subscription_bytes_max=pick([500, 4_000, 256_000]),
            connection_bytes_max=128 * 1024,
        ),
        profiles=profiles_for(pick(["catchup", "catchup", "disconnect"])),
        bounds=[
            ("broker.core.sequencer", "RECENT_BYTES", pick([1_000, 8_000, 8 << 20])),
            ("broker.node.catchup", "SLICE_BYTES_MAX", pick([500, 4_000, 1 << 20])),
            ("broker.node.catchup", "QUEUED_BYTES_MAX", pick([2_000, 2 << 20])),
            ("broker.node.node", "TURN_BYTES_MAX", pick([300, 512 << 10])),
            ("broker.edge.native", "WRITE_BUFFER_BYTES_HIGH", pick([300, 8_000, 256 << 10])),
            ("broker.client.transport", "WRITE_BUFFER_BYTES_HIGH", pick([300, 8_000, 512 << 10])),
            ("broker.remote.bus", "BLOCK_BYTES", pick([200, 4_000, 256 << 10])),
            ("broker.remote.subscription", "CREDIT_BYTES_MIN", 1),
        ],
    )


def profiles_for(slow: str) -> Profiles:
    """Return profiles that treat readers who fall behind like this."""
    return Profiles([Profile(pattern, level, slow=slow) for pattern, level in LEVELS_BY_PATTERN.items()])


def with_group_bytes(group_bytes_max: int, **bounds: Any) -> Limits:
    """Return limits with a bound of groups below what a configuration may set: short lives reach it."""
    limits = Limits(**bounds)
    object.__setattr__(limits, "group_bytes_max", group_bytes_max)
    return limits
