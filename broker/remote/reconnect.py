"""When to connect again, and what a new connection means for publishes that were not answered.

Pure: time and chance come as arguments, so a test plays years in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.model.errors import BrokerError, Remedy, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.wire.control import Welcome


HINT_S_MAX = 60.0
"""A server that asks for a longer wait is not believed: it may have been somebody else's mistake."""


def hinted_s(retry_after_ms: int, chance: float) -> float:
    """Return how long to wait for a server that has said when to come back: half of it to one and a half.

    It tells all of a crowd the same, and the crowd must not come back as one.

    Args:
        retry_after_ms: What the server said, milliseconds.
        chance: Drawn from [0, 1).
    """
    return min(HINT_S_MAX, retry_after_ms / 1000) * (0.5 + chance)


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How long to wait before each attempt: exponential, with jitter so that a crowd does not come back at once.

    Attributes:
        first_s: longest wait before the first attempt.
        factor: how much longer each next one is, from 1.
        longest_s: no wait is longer.
        settled_s: a connection that has lived so long starts from the beginning.
    """

    first_s: float = 0.05
    factor: float = 2.0
    longest_s: float = 5.0
    settled_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s or self.factor < 1 or self.settled_s < 0:
            raise error("INVALID_CONFIG", f"backoff: got {self}, expected 0 < first_s <= longest_s and factor >= 1")


class Backoff:
    """The waits of one bus.

    Args:
        policy: How long.
        chance: Draws from [0, 1).
    """

    def __init__(self, policy: BackoffPolicy, chance: Callable[[], float]) -> None:
        self._policy = policy
        self._chance = chance
        self._attempts = 0
        self._connected_at: float | None = None

    def connected(self, now_s: float) -> None:
        """A connection was made."""
        self._connected_at = now_s

    def delay_s(self, now_s: float, retry_after_ms: int | None = None) -> float:
        """Return how long to wait before the next attempt: between half of the step and all of it.

        The first attempt after a connection that has settled comes at once: the broker most likely restarts, or one
        connection was cut. A server that has said when to come back is obeyed, and no step is taken: it lives.

        Args:
            now_s: The time.
            retry_after_ms: What the server said, if it said anything.
        """
        policy = self._policy
        if retry_after_ms is not None:
            self._connected_at = None
            return hinted_s(retry_after_ms, self._chance())
        if self._connected_at is not None:
            settled = now_s - self._connected_at >= policy.settled_s
            self._connected_at = None
            if settled:
                self._attempts = 0
                return 0.0
        # The exponent is bounded before the power is taken: after months of attempts it would overflow.
        step_s = min(policy.longest_s, policy.first_s * policy.factor ** min(self._attempts, 64))
        self._attempts += 1
        return step_s * (1 + self._chance()) / 2


def is_final(failure: BaseException) -> bool:
    """Return whether trying again is of no use: the server refuses us, not this moment."""
    return isinstance(failure, BrokerError) and failure.remedy is Remedy.STOP


@dataclass(frozen=True, slots=True)
class LineKnowledge:
    """What the server must know of the producer's line if it is the one that we talked to.

    Attributes:
        journal: the journal of the last connection.
        synced: highest number that was answered with a position, synced or better.
    """

    journal: bytes
    synced: int

    def unknown(self, welcome: Welcome) -> BrokerError | None:
        """Return the error for what was sent and not answered, or None when the server still knows the line.

        A server that knows it tells by `highest` which of the unanswered numbers it has, so they are sent again
        without harm. It has lost the line if it lacks numbers that it cannot have lost, those that were synced: a crash
        takes others, and so does a failed commit. Then nobody can say what became of the rest.
        """
        if welcome.journal == self.journal and welcome.highest >= self.synced:
            return None
        if welcome.journal != self.journal:
            why = f"another journal answers, {welcome.journal.hex()}"
        else:
            why = f"the server knows the line up to {welcome.highest}, synced were {self.synced}"
        return error("COMMIT_UNKNOWN", f"publishes that were not answered: {why}")
