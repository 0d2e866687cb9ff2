"""How much the users of each scenario publish, how often, and how many messages they are due to receive for it.

Pure, and one place: the scenarios publish by it, and before a test it says whether a threshold can be met at all. What
is delivered grows with the users: more members in a room, more readers of a feed, more groups.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.plan import Plan


class Cadence(NamedTuple):
    """How many messages a window has, and the time between two windows of a publisher at pace 1."""

    window: int
    interval_s: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.window / self.interval_s


TYPING_BYTES: Final = 32

CHAT: Final = Cadence(16, 60.0)
"""A member says so much to one of its rooms, about so often."""
CHAT_THINKING_S: Final = 0.2
"""How long others see that somebody types before they see what."""
ROOM_MEMBERS_MAX: Final = 500
ROOM_MEMBERS_MIN: Final = 2

FANOUT: Final = Cadence(64, 0.028)
FANOUT_GROUP: Final = 20
"""One publishes, the others read."""

CELEBRITY: Final = Cadence(32, 0.2)
CELEBRITY_MENTIONS: Final = Cadence(8, 2.0)
"""What each follower writes to the celebrity."""
CELEBRITY_GROUP: Final = 500

BACKLOG: Final = Cadence(32, 0.1)
BACKLOG_GROUP: Final = 10
BACKLOG_MESSAGES: Final = 2000
"""How much a late reader finds, once there is so much."""
BACKLOG_LIVE_S: Final = 4.0
BACKLOG_AWAY_S: Final = 1.0

RECONNECT: Final = Cadence(16, 0.1)
RECONNECT_GROUP: Final = 10
RECONNECT_STORM_S: Final = 5.0
"""All readers lose their connections at once, so often."""

WEIGHTS: Final = {"chat": 50, "fanout": 4, "celebrity": 2, "backlog": 2, "reconnect": 2}
"""How the users of `mixed` are shared out; 60 in all."""

_SIZES: Final = tuple(ROOM_MEMBERS_MAX // rank for rank in range(1, ROOM_MEMBERS_MAX // ROOM_MEMBERS_MIN + 1))
"""Members of each room among 500 users: Zipf, from 500 down to 2."""


def rooms_of(number: int) -> list[int]:
    """Return the rooms of a chat user.

    Of any 500 users with consecutive numbers, exactly as many are in a room as it has members; who they are looks like
    chance, and every process comes to the same answer.
    """
    return [room for room, size in enumerate(_SIZES) if (number * 211 + room * 97) % ROOM_MEMBERS_MAX < size]


@cache
def members(users: int) -> tuple[int, ...]:
    """Return how many of the first so many chat users are in each room."""
    counts = [0] * len(_SIZES)
    for number in range(users):
        for room in rooms_of(number):
            counts[room] += 1
    return tuple(counts)


def _chat(users: int) -> float:
    # Rooms repeat after 500 users: past that each has more members, and all of them say more.
    some = min(users, ROOM_MEMBERS_MAX)
    counts = members(some)
    heard = 0.0
    for number in range(some):
        rooms = rooms_of(number)
        heard += sum(counts[room] for room in rooms) / len(rooms)
    # Each window comes behind a typing indicator.
    return heard * (CHAT.window + 1) / CHAT.interval_s * (users / some) ** 2 if some else 0.0


def _readers(users: int, group: int) -> int:
    """Return how many of so many users, in groups whose first ones publish, have somebody to read."""
    return users - -(-users // group)


def _celebrity(users: int) -> float:
    return _readers(users, CELEBRITY_GROUP) * (CELEBRITY.rate + CELEBRITY_MENTIONS.rate)


def _backlog(users: int) -> float:
    cycle_s = BACKLOG_LIVE_S + BACKLOG_AWAY_S
    # What it reads late comes on top; how much there is depends on how long the test lasts, so it is not counted on.
    return _readers(users, BACKLOG_GROUP) * BACKLOG.rate * BACKLOG_LIVE_S / cycle_s


def offered(plan: Plan, users: int) -> float:
    """Return the messages a second that so many users are due to receive together."""
    alone: dict[str, Callable[[int], float]] = {
        "chat": _chat,
        "fanout": lambda count: _readers(count, FANOUT_GROUP) * FANOUT.rate,
        "celebrity": _celebrity,
        "backlog": _backlog,
        "reconnect": lambda count: _readers(count, RECONNECT_GROUP) * RECONNECT.rate,
    }
    if plan.scenario != "mixed":
        return alone[plan.scenario](users) * plan.pace
    whole = sum(WEIGHTS.values())
    return sum(alone[kind](users * weight // whole) for kind, weight in WEIGHTS.items()) * plan.pace
