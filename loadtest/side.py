"""The side that makes load, in one process: who its users are, what they publish and receive, what goes wrong.

There is one for each test in each process that has users: a worker, or Locust alone. Its users call it; whoever
conducts the test takes what it counts and ends it (`conductor.py`).

It knows gevent's clock and no Locust. All calls belong to the one thread of the process.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter as Tally
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker_native.readings import PUBLISHERS_MAX
from loadtest.histogram import Counter
from loadtest.ledger import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadtest.plan import Plan

ERRORS_TOLD: Final = 50
"""Different errors that are told by their words; further ones are counted together."""
FURTHER: Final = "further errors"
STEP_S: Final = 0.05


class Seats:
    """The numbers of users: dense from 0 for each kind, and no two living users of a kind have the same.

    A number that somebody left goes to the next who comes: roles and rooms follow from the number, and publishing goes
    on where the one before ended. There is one of these for a test, whoever has the users.
    """

    def __init__(self) -> None:
        self._free: dict[str, list[int]] = {}
        self._taken: dict[str, int] = {}

    def take(self, kind: str) -> int:
        """Return a number for a new user.

        Raises:
            ValueError: There are more users of a kind than publishers can be told apart.
        """
        if free := self._free.get(kind):
            return heapq.heappop(free)
        number = self._taken.get(kind, 0)
        if number >= PUBLISHERS_MAX:
            raise ValueError(f"users: got more than {PUBLISHERS_MAX:,} of {kind}")
        self._taken[kind] = number + 1
        return number

    def leave(self, kind: str, number: int) -> None:
        """Give a number back."""
        heapq.heappush(self._free.setdefault(kind, []), number)


class Usher(Protocol):
    """Who gives users their numbers: `Seats`, or the master's at the other end of a connection."""

    def take(self, kind: str) -> int:
        """Return a number for a new user of a kind."""

    def leave(self, kind: str, number: int) -> None:
        """Give a number back."""


class Side:
    """The users of one process in one test.

    Args:
        plan: what is asked of them.
        url: of the broker.
        test: what tells the channels of this test from those of any other.
        usher: gives users their numbers.
    """

    def __init__(self, plan: Plan, url: str, test: str, usher: Usher) -> None:
        self.plan = plan
        self.url = url
        self.test = test
        self.usher = usher
        self.account = Account()
        self.counter = Counter()
        self.errors: Tally[str] = Tally()
        self.closing = False
        self.unanswered = 0
        """Windows that were sent and whose answers nobody has taken."""
        self._cpu_s = time.process_time()

    def stored(self, name: str) -> str:
        """Return the name of a stored channel of this test."""
        return f"{self.plan.stored_prefix}.{self.test}.{name}"

    def ephemeral(self, name: str) -> str:
        """Return the name of an ephemeral one."""
        return f"{self.plan.ephemeral_prefix}.{self.test}.{name}"

    def fail(self, what: str) -> None:
        """Count an error."""
        self.errors[what if what in self.errors or len(self.errors) < ERRORS_TOLD else FURTHER] += 1

    # -- what is handed over ------------------------------------------------------------------------------------------

    def report(self, *, all_of_it: bool = False) -> dict[str, Any]:
        """Give away what was counted since the last time."""
        errors, self.errors = dict(self.errors), Tally()
        return {
            "test": self.test,
            "seconds": self.counter.hand_over(all_of_it=all_of_it),
            "errors": errors,
            "cpu_s": time.process_time() - self._cpu_s,
        }

    def finish_publishing(self, sleep: Callable[[float], object], patience_s: float) -> dict[str, int]:
        """Let publishers end, wait until the broker has answered, and return what was published to each channel."""
        self.closing = True
        deadline = time.monotonic() + patience_s
        while self.unanswered and time.monotonic() < deadline:
            sleep(STEP_S)
        if self.unanswered:
            self.fail(f"{self.unanswered} windows had no answer for {patience_s:g} s")
        return dict(self.account.published)

    def finish_reading(
        self, published: Mapping[str, int], sleep: Callable[[float], object], patience_s: float
    ) -> dict[str, Any]:
        """Wait until readers have what they are due, or nothing comes any more, and return what came of everything."""
        seen, deadline = -1, 0.0
        while self.account.owed(published):
            if seen != (seen := self.counter.delivered):
                deadline = time.monotonic() + patience_s
            elif time.monotonic() > deadline:
                break
            sleep(STEP_S)
        return {**self.report(all_of_it=True), "faults": self.account.settle(published).as_list()}
