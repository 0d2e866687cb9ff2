"""What a connection of the JSON dialect has sent and not been answered: which numbers of the native protocol are whose.

The client names its operations as it likes; each publish becomes numbers of its line, and answers come for runs of
numbers, in any order, several for one publish or one for several. No I/O; the loop's thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

__all__ = ["AWAITED_MAX", "Id", "Publish", "Publishes", "StoredRun"]

AWAITED_MAX = 65_536
"""Numbers, requests, acknowledgements and questions that wait for their answers; each of them by itself."""

Id: TypeAlias = "str | int | None"


class StoredRun(NamedTuple):
    """Where messages of a publish are that stand one behind the other; `at` is the first of them in it."""

    at: int
    epoch: int
    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a run
    level: int
    duplicate: bool
    delayed: bool


@dataclass(slots=True, eq=False)
class Publish:
    """A publish that waits.

    Attributes:
        id: The client's name for it.
        channel: Where to.
        slot: The number of that channel when it was sent.
        number: Of its first message on the line.
        count: Of its messages.
        op: What it was part of.
        index: Its place in a transaction, whose first number is `transaction`.
        left: Messages that were not answered.
        runs: What was answered.
    """

    id: Id
    channel: str
    slot: int
    number: int
    count: int
    op: str = "publish"
    index: int | None = None
    transaction: int | None = None
    left: int = 0
    runs: list[StoredRun] = field(default_factory=list)


class Publishes:
    """The publishes that wait, by number.

    A number may be given twice: a failed commit takes numbers back, and a client may repeat its own. The older one is
    answered first.
    """

    def __init__(self) -> None:
        self._at: dict[int, list[Publish]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def add(self, publish: Publish, *, divided: bool) -> None:
        """Wait for the answer.

        Args:
            publish: What was sent.
            divided: Its messages may be answered one by one.
        """
        publish.left = publish.count
        for number in range(publish.number, publish.number + (publish.count if divided else 1)):
            self._at.setdefault(number, []).append(publish)

    def _forget(self, publish: Publish, first: int, count: int) -> None:
        for number in range(first, first + count):
            waiting = self._at.get(number)
            if waiting is not None and publish in waiting:
                waiting.remove(publish)
                if not waiting:
                    del self._at[number]

    def stored(self, number: int, run: StoredRun) -> list[Publish]:
        """Take an answer for `run.count` numbers from `number` on; answers the publishes that are answered now.

        Args:
            number: The first.
            run: Where they are; `at` is not looked at.
        """
        finished = []
        done = 0
        while done < run.count:
            waiting = self._at.get(number + done)
            if not waiting:
                # Nobody waits for these: a client that repeats what it has been answered.
                break
            publish = waiting[0]
            at = number + done - publish.number
            count = min(run.count - done, publish.count - at)
            first = run.first if run.delayed or not run.first else run.first + done
            publish.runs.append(run._replace(at=at, first=first, count=count))
            publish.left -= count
            self._forget(publish, number + done, count)
            if not publish.left:
                finished.append(publish)
            done += count
        return finished

    def refused(self, number: int, count: int) -> list[Publish]:
        """Take the refusal of numbers; answers the publishes that are refused."""
        found = []
        end = number + count
        while number < end and self._at:
            waiting = self._at.get(number)
            if not waiting:
                number += 1
                continue
            publish = waiting[0]
            self._forget(publish, publish.number, publish.count)
            found.append(publish)
            number = publish.number + publish.count
        return found
